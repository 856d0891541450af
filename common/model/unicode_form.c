/* See unicode_form.h. utf8proc's own decomposition sorts marks in quadratic time and its whole-text
 * call cannot leave characters out, so only its tables and its composition are used. */
#include "common/model/unicode_form.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "common/base/memory.h"
#include "common/base/status.h"
#include "common/model/unicode.h"

enum { POINTS_OF_ONE_MAX = 32 }; /* U+FDFA decomposes into 18 */

/* Found by comparing every character with Hugging Face's tokenizers 0.23. */
static const uint32_t newer[][2] = {
    {0x7FD, 0x7FD}, {0x898, 0x89F}, {0x8CA, 0x8D3}, {0x9FE, 0x9FE}, {0xC3C, 0xC3C},
    {0xD3B, 0xD3C}, {0xEBA, 0xEBA}, {0x1715, 0x1715}, {0x1ABF, 0x1ACE}, {0x1DF6, 0x1DFA},
    {0x32FF, 0x32FF}, {0xA7F2, 0xA7F4}, {0xA82C, 0xA82C}, {0xAB69, 0xAB69}, {0x10781, 0x10785},
    {0x10787, 0x107B0}, {0x107B2, 0x107BA}, {0x10D24, 0x10D27}, {0x10EAB, 0x10EAC},
    {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50}, {0x10F82, 0x10F85}, {0x11070, 0x11070},
    {0x1133B, 0x1133B}, {0x1145E, 0x1145E}, {0x11839, 0x1183A}, {0x11938, 0x11938},
    {0x1193D, 0x1193E}, {0x11943, 0x11943}, {0x119E0, 0x119E0}, {0x11A34, 0x11A34},
    {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42}, {0x11D44, 0x11D45},
    {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x16FF0, 0x16FF1}, {0x1E030, 0x1E06D},
    {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF},
    {0x1E4EC, 0x1E4EF}, {0x1F16C, 0x1F16C}, {0x1FBF0, 0x1FBF9},
};

static bool is_newer(uint32_t code_point)
{
    size_t low = 0, high = sizeof newer / sizeof *newer;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (code_point > newer[middle][1])
            low = middle + 1;
        else
            high = middle;
    }
    return low < sizeof newer / sizeof *newer && code_point >= newer[low][0];
}

void unicode_scratch_release(unicode_scratch_t *scratch)
{
    free(scratch->points);
    free(scratch->sorted);
    *scratch = (unicode_scratch_t){0};
}

bool unicode_is_inert(unicode_form_t form, uint32_t code_point)
{
    if (code_point < 0x80)
        return true;
    if (code_point >= 0x4E00 && code_point <= 0x9FFF)
        return true; /* CJK ideographs */
    if (form == UNICODE_NFC)
        return code_point < 0x300 || (code_point >= 0xAC00 && code_point <= 0xD7A3);
    return false;
}

static unsigned combining_class(int32_t point)
{
    return is_newer((uint32_t)point) ? 0 : (unsigned)utf8proc_get_property(point)->combining_class;
}

static void decompose(unicode_form_t form, uint32_t point, unicode_scratch_t *scratch)
{
    MEM_GROW(scratch->points, scratch->points_capacity, scratch->n + POINTS_OF_ONE_MAX);
    if (is_newer(point)) {
        scratch->points[scratch->n++] = (int32_t)point;
        return;
    }
    bool compatible = form == UNICODE_NFKC || form == UNICODE_NFKD;
    int boundary = UTF8PROC_BOUNDCLASS_START;
    utf8proc_ssize_t n = utf8proc_decompose_char(
        (int32_t)point, scratch->points + scratch->n, POINTS_OF_ONE_MAX,
        (utf8proc_option_t)(UTF8PROC_DECOMPOSE | UTF8PROC_STABLE |
                            (compatible ? UTF8PROC_COMPAT : 0)),
        &boundary);
    if (n < 0 || n > POINTS_OF_ONE_MAX) {
        scratch->points[scratch->n++] = (int32_t)point;
        return;
    }
    scratch->n += (size_t)n;
}

/* Sorts a run of marks by class, keeping the order of equals: by counting, since a hostile text is
 * one run of a million marks. */
static void sort_run(unicode_scratch_t *scratch, size_t from, size_t to)
{
    size_t starts[257] = {0};
    for (size_t i = from; i < to; i++)
        starts[combining_class(scratch->points[i]) + 1]++;
    for (size_t class = 0; class < 256; class++)
        starts[class + 1] += starts[class];
    MEM_GROW(scratch->sorted, scratch->sorted_capacity, to - from);
    for (size_t i = from; i < to; i++)
        scratch->sorted[starts[combining_class(scratch->points[i])]++] = scratch->points[i];
    memcpy(scratch->points + from, scratch->sorted, (to - from) * sizeof *scratch->sorted);
}

static void sort_marks(unicode_scratch_t *scratch)
{
    for (size_t i = 0; i < scratch->n;) {
        size_t from = i;
        while (i < scratch->n && combining_class(scratch->points[i]) != 0)
            i++;
        if (i > from + 1)
            sort_run(scratch, from, i);
        i += i == from;
    }
}

/* Composes between characters that the tables of Unicode 9 know; a newer one separates. */
static void compose(unicode_scratch_t *scratch)
{
    size_t n = 0;
    for (size_t i = 0; i < scratch->n;) {
        if (is_newer((uint32_t)scratch->points[i])) {
            scratch->points[n++] = scratch->points[i++];
            continue;
        }
        size_t from = i;
        while (i < scratch->n && !is_newer((uint32_t)scratch->points[i]))
            i++;
        utf8proc_ssize_t composed = utf8proc_normalize_utf32(
            scratch->points + from, (utf8proc_ssize_t)(i - from),
            (utf8proc_option_t)(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
        size_t left = composed < 0 ? i - from : (size_t)composed;
        memmove(scratch->points + n, scratch->points + from, left * sizeof *scratch->points);
        n += left;
    }
    scratch->n = n;
}

void unicode_normalize(unicode_form_t form, const uint8_t *text, size_t n,
                       unicode_scratch_t *scratch)
{
    scratch->n = 0;
    size_t length;
    for (size_t at = 0; at < n; at += length)
        decompose(form, utf8_decode(text + at, &length), scratch);
    sort_marks(scratch);
    if (form == UNICODE_NFC || form == UNICODE_NFKC)
        compose(scratch);
}

static utf8proc_category_t category(uint32_t code_point)
{
    return utf8proc_category((int32_t)code_point);
}

bool unicode_is_nonspacing(uint32_t code_point)
{
    return category(code_point) == UTF8PROC_CATEGORY_MN;
}

bool unicode_is_mark(uint32_t code_point)
{
    utf8proc_category_t kind = category(code_point);
    return kind >= UTF8PROC_CATEGORY_MN && kind <= UTF8PROC_CATEGORY_ME;
}

bool unicode_is_punctuation(uint32_t code_point)
{
    if (code_point < 0x80)
        return code_point > 0x20 && code_point < 0x7F &&
               !((code_point >= '0' && code_point <= '9') ||
                 ((code_point | 0x20) >= 'a' && (code_point | 0x20) <= 'z'));
    utf8proc_category_t kind = category(code_point);
    return kind >= UTF8PROC_CATEGORY_PC && kind <= UTF8PROC_CATEGORY_PO;
}

bool unicode_is_control(uint32_t code_point)
{
    if (code_point == '\t' || code_point == '\n' || code_point == '\r')
        return false;
    utf8proc_category_t kind = category(code_point);
    return kind == UTF8PROC_CATEGORY_CC || kind == UTF8PROC_CATEGORY_CF ||
           kind == UTF8PROC_CATEGORY_CN || kind == UTF8PROC_CATEGORY_CO;
}

bool unicode_is_word(uint32_t code_point)
{
    utf8proc_category_t kind = category(code_point);
    if (kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_NL)
        return true; /* letters, marks, decimal and letter digits stand together */
    if (kind == UTF8PROC_CATEGORY_PC || code_point == 0x200C || code_point == 0x200D)
        return true;
    /* Symbols that count as alphabetic: circled and squared letters. */
    return (code_point >= 0x24B6 && code_point <= 0x24E9) ||
           (code_point >= 0x1F130 && code_point <= 0x1F149) ||
           (code_point >= 0x1F150 && code_point <= 0x1F169) ||
           (code_point >= 0x1F170 && code_point <= 0x1F189);
}

bool unicode_is_white(uint32_t code_point)
{
    if (code_point < 0x80)
        return (code_point >= '\t' && code_point <= '\r') || code_point == ' ';
    return code_point == 0x85 || code_point == 0xA0 || code_point == 0x1680 ||
           (code_point >= 0x2000 && code_point <= 0x200A) || code_point == 0x2028 ||
           code_point == 0x2029 || code_point == 0x202F || code_point == 0x205F ||
           code_point == 0x3000;
}

size_t unicode_lower(uint32_t code_point, uint32_t out[2])
{
    if (code_point == 0x130) { /* the only one that becomes two */
        out[0] = 'i';
        out[1] = 0x307;
        return 2;
    }
    out[0] = (uint32_t)utf8proc_tolower((int32_t)code_point);
    return 1;
}

bool unicode_grapheme_ends(uint32_t left, uint32_t right, int32_t *state)
{
    return utf8proc_grapheme_break_stateful((int32_t)left, (int32_t)right, state);
}
