/* Typed reads of keys: absent, wrong kind and out of range are three errors with three texts. */
#include <math.h>
#include <string.h>

#include "common/model/gguf_internal.h"

static const struct {
    const char *name;
    uint32_t bytes;
} kinds[] = {
    [GGUF_U8] = {"U8", 1},       [GGUF_I8] = {"I8", 1},   [GGUF_U16] = {"U16", 2},
    [GGUF_I16] = {"I16", 2},     [GGUF_U32] = {"U32", 4}, [GGUF_I32] = {"I32", 4},
    [GGUF_F32] = {"F32", 4},     [GGUF_BOOL] = {"BOOL", 1}, [GGUF_TEXT] = {"a text", 0},
    [GGUF_ARRAY] = {"an array", 0}, [GGUF_U64] = {"U64", 8}, [GGUF_I64] = {"I64", 8},
    [GGUF_F64] = {"F64", 8},
};

const char *gguf_kind_name(gguf_kind_t kind)
{
    return (uint32_t)kind < sizeof kinds / sizeof *kinds ? kinds[kind].name : "unknown";
}

uint32_t gguf_kind_bytes(uint32_t kind)
{
    return kind < sizeof kinds / sizeof *kinds ? kinds[kind].bytes : 0;
}

static bool is_integer(gguf_kind_t kind)
{
    return kind <= GGUF_I32 || kind == GGUF_U64 || kind == GGUF_I64;
}

/* The i-th element of an integer kind; U64 beyond INT64_MAX is INT64_MAX, which every range that is
 * asked for excludes. */
static int64_t integer_at(const uint8_t *data, gguf_kind_t kind, uint64_t i)
{
    union {
        uint8_t u8; int8_t i8; uint16_t u16; int16_t i16;
        uint32_t u32; int32_t i32; uint64_t u64; int64_t i64;
    } raw;
    uint32_t each = gguf_kind_bytes(kind);
    memcpy(&raw, data + i * each, each);
    switch (kind) {
    case GGUF_U8: return raw.u8;
    case GGUF_I8: return raw.i8;
    case GGUF_U16: return raw.u16;
    case GGUF_I16: return raw.i16;
    case GGUF_U32: return raw.u32;
    case GGUF_I32: return raw.i32;
    case GGUF_U64: return raw.u64 > INT64_MAX ? INT64_MAX : (int64_t)raw.u64;
    case GGUF_I64: return raw.i64;
    default: break;
    }
    CHECK(false && "an integer kind");
    return 0;
}

static status_t find(const gguf_t *gguf, const char *key, const gguf_value_t **out)
{
    *out = gguf_find(gguf, key);
    if (*out == NULL)
        return fail(STATUS_NOT_FOUND, "%s: key %s is missing", gguf->label, key);
    return STATUS_OK;
}

static status_t wrong_kind(const gguf_t *gguf, const char *key, const gguf_value_t *value,
                           const char *wanted)
{
    return fail(STATUS_INVALID, "%s: key %s is %s; %s would be right", gguf->label, key,
                gguf_kind_name(value->kind), wanted);
}

status_t gguf_read_u32(const gguf_t *gguf, const char *key, uint32_t min, uint32_t max,
                       uint32_t *out)
{
    const gguf_value_t *value;
    TRY(find(gguf, key, &value));
    if (!is_integer(value->kind))
        return wrong_kind(gguf, key, value, "an integer");
    int64_t found = integer_at(value->data, value->kind, 0);
    if (found < (int64_t)min || found > (int64_t)max)
        return fail(STATUS_INVALID, "%s: key %s is %lld; %u to %u would be right", gguf->label, key,
                    (long long)found, min, max);
    *out = (uint32_t)found;
    return STATUS_OK;
}

status_t gguf_read_f32(const gguf_t *gguf, const char *key, float min, float max, float *out)
{
    const gguf_value_t *value;
    TRY(find(gguf, key, &value));
    float found;
    if (value->kind == GGUF_F32) {
        memcpy(&found, value->data, sizeof found);
    } else if (value->kind == GGUF_F64) {
        double wide;
        memcpy(&wide, value->data, sizeof wide);
        /* Beyond F32's range the conversion is undefined, so what is too large becomes Inf here. */
        found = fabs(wide) <= 3.0e38 ? (float)wide : INFINITY;
    } else {
        return wrong_kind(gguf, key, value, "F32");
    }
    /* Written so that NaN fails. */
    if (!(found >= min && found <= max && isfinite(found)))
        return fail(STATUS_INVALID, "%s: key %s is %g; %g to %g would be right", gguf->label, key,
                    (double)found, (double)min, (double)max);
    *out = found;
    return STATUS_OK;
}

status_t gguf_read_bool(const gguf_t *gguf, const char *key, bool *out)
{
    const gguf_value_t *value;
    TRY(find(gguf, key, &value));
    if (value->kind != GGUF_BOOL)
        return wrong_kind(gguf, key, value, "BOOL");
    *out = value->data[0] != 0;
    return STATUS_OK;
}

status_t gguf_read_text(const gguf_t *gguf, const char *key, gguf_text_t *out)
{
    const gguf_value_t *value;
    TRY(find(gguf, key, &value));
    if (value->kind != GGUF_TEXT)
        return wrong_kind(gguf, key, value, "a text");
    *out = (gguf_text_t){(const char *)value->data, (size_t)value->bytes};
    return STATUS_OK;
}

status_t gguf_read_array(const gguf_t *gguf, const char *key, gguf_kind_t element,
                         const gguf_value_t **out)
{
    const gguf_value_t *value;
    TRY(find(gguf, key, &value));
    if (value->kind != GGUF_ARRAY)
        return wrong_kind(gguf, key, value, "an array");
    bool right = element == GGUF_I64 ? is_integer(value->element) : value->element == element;
    if (!right)
        return fail(STATUS_INVALID, "%s: key %s: the array's elements are %s; %s would be right",
                    gguf->label, key, gguf_kind_name(value->element),
                    element == GGUF_I64 ? "integers" : gguf_kind_name(element));
    *out = value;
    return STATUS_OK;
}

gguf_text_t gguf_array_text(const gguf_value_t *value, uint64_t i)
{
    CHECK(value->kind == GGUF_ARRAY && value->element == GGUF_TEXT && i < value->count);
    const uint8_t *at = value->file + value->text_offsets[i];
    uint64_t n;
    memcpy(&n, at, sizeof n);
    return (gguf_text_t){(const char *)at + sizeof n, (size_t)n};
}

int64_t gguf_array_integer(const gguf_value_t *value, uint64_t i)
{
    CHECK(value->kind == GGUF_ARRAY && is_integer(value->element) && i < value->count);
    return integer_at(value->data, value->element, i);
}

float gguf_array_f32(const gguf_value_t *value, uint64_t i)
{
    CHECK(value->kind == GGUF_ARRAY && value->element == GGUF_F32 && i < value->count);
    float found;
    memcpy(&found, value->data + i * sizeof found, sizeof found);
    return found;
}
