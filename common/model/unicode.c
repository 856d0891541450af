/* See unicode.h. */
#include "common/model/unicode.h"

/* Size of the character that a lead byte starts and the range of the byte after it; size 0 for
 * bytes that start none. The narrowed ranges shut out overlong forms (E0, F0), surrogates (ED) and
 * what lies above U+10FFFF (F4). */
typedef struct {
    size_t size;
    uint8_t low, high;
} lead_t;

static lead_t lead_of(uint8_t byte)
{
    if (byte < 0x80)
        return (lead_t){1, 0, 0};
    if (byte < 0xC2)
        return (lead_t){0, 0, 0};
    if (byte < 0xE0)
        return (lead_t){2, 0x80, 0xBF};
    if (byte < 0xF0)
        return (lead_t){3, byte == 0xE0 ? 0xA0 : 0x80, byte == 0xED ? 0x9F : 0xBF};
    if (byte < 0xF5)
        return (lead_t){4, byte == 0xF0 ? 0x90 : 0x80, byte == 0xF4 ? 0x8F : 0xBF};
    return (lead_t){0, 0, 0};
}

utf8_kind_t utf8_next(const uint8_t *bytes, size_t n, size_t *length_out)
{
    lead_t lead = lead_of(bytes[0]);
    *length_out = 1;
    if (lead.size == 0)
        return UTF8_BROKEN;
    for (size_t i = 1; i < lead.size; i++) {
        if (i == n)
            return UTF8_PARTIAL;
        uint8_t low = i == 1 ? lead.low : 0x80;
        uint8_t high = i == 1 ? lead.high : 0xBF;
        if (bytes[i] < low || bytes[i] > high)
            return UTF8_BROKEN;
        *length_out = i + 1;
    }
    return UTF8_COMPLETE;
}

size_t utf8_valid_prefix(const uint8_t *bytes, size_t n)
{
    size_t at = 0, length;
    while (at < n) {
        if (bytes[at] < 0x80)
            length = 1;
        else if (utf8_next(bytes + at, n - at, &length) != UTF8_COMPLETE)
            return at;
        at += length;
    }
    return n;
}

uint32_t utf8_decode(const uint8_t *bytes, size_t *length_out)
{
    static const uint8_t lead_bits[5] = {0, 0x7F, 0x1F, 0x0F, 0x07};
    size_t size = lead_of(bytes[0]).size;
    uint32_t code_point = bytes[0] & lead_bits[size];
    for (size_t i = 1; i < size; i++)
        code_point = code_point << 6 | (bytes[i] & 0x3Fu);
    *length_out = size > 0 ? size : 1; /* a caller's loop ends even over what is not valid */
    return code_point;
}

size_t utf8_encode(uint32_t code_point, uint8_t out[UNICODE_UTF8_MAX])
{
    if (code_point < 0x80) {
        out[0] = (uint8_t)code_point;
        return 1;
    }
    size_t size = code_point < 0x800 ? 2 : code_point < 0x10000 ? 3 : 4;
    static const uint8_t lead_mark[5] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (size_t i = size - 1; i > 0; i--) {
        out[i] = (uint8_t)(0x80 | (code_point & 0x3F));
        code_point >>= 6;
    }
    out[0] = (uint8_t)(lead_mark[size] | code_point);
    return size;
}

bool unicode_is_space(uint32_t code_point)
{
    if (code_point < 0x80)
        return (code_point >= 9 && code_point <= 13) || (code_point >= 28 && code_point <= 32);
    return code_point == 0x85 || code_point == 0xA0 || code_point == 0x1680 ||
           (code_point >= 0x2000 && code_point <= 0x200A) || code_point == 0x2028 ||
           code_point == 0x2029 || code_point == 0x202F || code_point == 0x205F ||
           code_point == 0x3000;
}

size_t utf8_append_lossy(buffer_t *out, const uint8_t *bytes, size_t n, bool at_end)
{
    size_t at = 0, good = 0, length; /* bytes[good..at) are valid and not yet copied */
    while (at < n) {
        utf8_kind_t kind = utf8_next(bytes + at, n - at, &length);
        if (kind == UTF8_COMPLETE) {
            at += length;
            continue;
        }
        buffer_append(out, bytes + good, at - good);
        if (kind == UTF8_PARTIAL && !at_end)
            return n - at;
        buffer_append(out, "\xEF\xBF\xBD", 3);
        at += length;
        good = at;
    }
    buffer_append(out, bytes + good, at - good);
    return 0;
}
