/* The structure of a GGUF file: header, keys, tensor list, data. Every length is compared with what
 * is left of the file before it is used, so allocations are bounded by the file's size. */
#include <stdlib.h>
#include <string.h>

#include "common/base/checked.h"
#include "common/model/gguf_internal.h"

enum {
    KEY_RECORD_BYTES_MIN = 8 + 1 + 4 + 1,           /* length, name, kind, smallest value */
    TENSOR_RECORD_BYTES_MIN = 8 + 1 + 4 + 8 + 4 + 8, /* length, name, n_dims, dim, type, offset */
    ALIGNMENT_MIN = 8, /* what a typed read of the data needs */
};

/* A place in the file. `gguf` gives the bytes and the words for errors. */
typedef struct {
    gguf_t *gguf;
    uint64_t at;
} cursor_t;

static uint64_t left(const cursor_t *cursor)
{
    return cursor->gguf->size - cursor->at;
}

static status_t take(cursor_t *cursor, uint64_t n, const char *what, const uint8_t **out)
{
    if (n > left(cursor))
        return fail(STATUS_INVALID,
                    "%s: the file ends inside %s: %llu bytes wanted at byte %llu, %llu left",
                    cursor->gguf->label, what, (unsigned long long)n,
                    (unsigned long long)cursor->at, (unsigned long long)left(cursor));
    *out = cursor->gguf->bytes + cursor->at;
    cursor->at += n;
    return STATUS_OK;
}

static status_t take_u32(cursor_t *cursor, const char *what, uint32_t *out)
{
    const uint8_t *bytes;
    TRY(take(cursor, sizeof *out, what, &bytes));
    memcpy(out, bytes, sizeof *out);
    return STATUS_OK;
}

static status_t take_u64(cursor_t *cursor, const char *what, uint64_t *out)
{
    const uint8_t *bytes;
    TRY(take(cursor, sizeof *out, what, &bytes));
    memcpy(out, bytes, sizeof *out);
    return STATUS_OK;
}

/* Strict UTF-8 (RFC 3629: no overlong form, no surrogate) without NUL. */
static bool is_name(const uint8_t *bytes, uint64_t n)
{
    for (uint64_t i = 0; i < n;) {
        uint8_t lead = bytes[i];
        if (lead == 0)
            return false;
        if (lead < 0x80) {
            i++;
            continue;
        }
        uint64_t more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
        if (lead < 0xc2 || lead > 0xf4 || more > n - i - 1)
            return false;
        for (uint64_t j = 1; j <= more; j++)
            if ((bytes[i + j] & 0xc0) != 0x80)
                return false;
        uint8_t next = bytes[i + 1];
        if ((lead == 0xe0 && next < 0xa0) || (lead == 0xed && next > 0x9f) ||
            (lead == 0xf0 && next < 0x90) || (lead == 0xf4 && next > 0x8f))
            return false;
        i += more + 1;
    }
    return true;
}

static status_t take_name(cursor_t *cursor, const char *what, uint64_t bytes_max, gguf_text_t *out)
{
    gguf_t *gguf = cursor->gguf;
    uint64_t start = cursor->at, n;
    const uint8_t *bytes;
    TRY(take_u64(cursor, what, &n));
    if (n == 0 || n > bytes_max)
        return fail(STATUS_INVALID, "%s: %s at byte %llu has %llu bytes; 1 to %llu are allowed",
                    gguf->label, what, (unsigned long long)start, (unsigned long long)n,
                    (unsigned long long)bytes_max);
    TRY(take(cursor, n, what, &bytes));
    if (!is_name(bytes, n))
        return fail(STATUS_INVALID, "%s: %s at byte %llu is not UTF-8 without NUL", gguf->label,
                    what, (unsigned long long)start);
    *out = (gguf_text_t){(const char *)bytes, (size_t)n};
    return STATUS_OK;
}

/* --- header --- */

static status_t parse_header(cursor_t *cursor, uint64_t *n_tensors_out, uint64_t *n_values_out)
{
    gguf_t *gguf = cursor->gguf;
    const uint8_t *magic;
    if (gguf->size == 0)
        return fail(STATUS_INVALID, "%s: the file is empty, a GGUF begins with 24 bytes",
                    gguf->label);
    TRY(take(cursor, 4, "the magic", &magic));
    if (memcmp(magic, "GGUF", 4) != 0)
        return fail(STATUS_INVALID,
                    "%s: the magic is %02x %02x %02x %02x; a GGUF begins with \"GGUF\"",
                    gguf->label, magic[0], magic[1], magic[2], magic[3]);
    TRY(take_u32(cursor, "the version", &gguf->version));
    if (gguf->version != 0 && (gguf->version & 0xffff) == 0)
        return fail(STATUS_INVALID,
                    "%s: version %#x is byte-swapped: a big-endian file; little-endian is read",
                    gguf->label, gguf->version);
    if (gguf->version < 2 || gguf->version > 3)
        return fail(STATUS_INVALID, "%s: GGUF version %u is not read; 2 and 3 are", gguf->label,
                    gguf->version);
    TRY(take_u64(cursor, "the tensor count", n_tensors_out));
    TRY(take_u64(cursor, "the key count", n_values_out));
    return STATUS_OK;
}

/* A count is credible when the limit allows it and the rest of the file could hold so many. */
static status_t check_count(const cursor_t *cursor, const char *what, uint64_t n, uint64_t max,
                            uint64_t bytes_each_min)
{
    if (n > max)
        return fail(STATUS_INVALID, "%s: the header says %llu %s; at most %llu are read",
                    cursor->gguf->label, (unsigned long long)n, what, (unsigned long long)max);
    if (n > left(cursor) / bytes_each_min)
        return fail(STATUS_INVALID,
                    "%s: the header says %llu %s, but the %llu bytes that follow hold %llu at most",
                    cursor->gguf->label, (unsigned long long)n, what,
                    (unsigned long long)left(cursor),
                    (unsigned long long)(left(cursor) / bytes_each_min));
    return STATUS_OK;
}

/* --- keys --- */

static status_t take_texts(cursor_t *cursor, gguf_value_t *value)
{
    uint64_t *offsets = arena_new(&cursor->gguf->arena, value->count, sizeof *offsets);
    for (uint64_t i = 0; i < value->count; i++) {
        uint64_t n;
        const uint8_t *bytes;
        offsets[i] = cursor->at;
        TRY(take_u64(cursor, "an array of texts", &n));
        TRY(take(cursor, n, "a text of an array", &bytes));
    }
    value->text_offsets = offsets;
    return STATUS_OK;
}

static status_t check_bools(const cursor_t *cursor, const gguf_value_t *value)
{
    for (uint64_t i = 0; i < value->count; i++)
        if (value->data[i] > 1)
            return fail(STATUS_INVALID, "%s: key %s: a BOOL is %u; 0 or 1 would be right",
                        cursor->gguf->label, gguf_show(value->key.data, value->key.size).text,
                        value->data[i]);
    return STATUS_OK;
}

static status_t take_array(cursor_t *cursor, gguf_value_t *value)
{
    gguf_t *gguf = cursor->gguf;
    gguf_shown_t key = gguf_show(value->key.data, value->key.size);
    uint32_t element;
    TRY(take_u32(cursor, "an array's element kind", &element));
    TRY(take_u64(cursor, "an array's length", &value->count));
    value->element = (gguf_kind_t)element;
    value->data = gguf->bytes + cursor->at;
    uint32_t each = element == GGUF_TEXT ? 8 : gguf_kind_bytes(element);
    if (element == GGUF_ARRAY)
        return fail(STATUS_INVALID, "%s: key %s: an array of arrays is not read", gguf->label,
                    key.text);
    if (each == 0)
        return fail(STATUS_INVALID, "%s: key %s: unknown element kind %u; 0 to 12 are known",
                    gguf->label, key.text, element);
    uint64_t bytes;
    if (!checked_mul_u64(value->count, each, &bytes) || bytes > left(cursor))
        return fail(STATUS_INVALID,
                    "%s: key %s: an array of %llu elements of at least %u bytes does not fit into "
                    "the %llu bytes left",
                    gguf->label, key.text, (unsigned long long)value->count, each,
                    (unsigned long long)left(cursor));
    if (element == GGUF_TEXT)
        return take_texts(cursor, value);
    cursor->at += bytes;
    return element == GGUF_BOOL ? check_bools(cursor, value) : STATUS_OK;
}

static status_t take_value(cursor_t *cursor, gguf_value_t *value)
{
    gguf_t *gguf = cursor->gguf;
    uint32_t kind;
    TRY(take_name(cursor, "a key", GGUF_KEY_BYTES_MAX, &value->key));
    TRY(take_u32(cursor, "a value's kind", &kind));
    value->kind = (gguf_kind_t)kind;
    value->count = 1;
    value->file = gguf->bytes;
    if (kind == GGUF_ARRAY)
        return take_array(cursor, value);
    if (kind == GGUF_TEXT) {
        TRY(take_u64(cursor, "a text's length", &value->bytes));
        return take(cursor, value->bytes, "a text", &value->data);
    }
    uint32_t each = gguf_kind_bytes(kind);
    if (each == 0)
        return fail(STATUS_INVALID, "%s: key %s: unknown value kind %u; 0 to 12 are known",
                    gguf->label, gguf_show(value->key.data, value->key.size).text, kind);
    TRY(take(cursor, each, "a value", &value->data));
    return kind == GGUF_BOOL ? check_bools(cursor, value) : STATUS_OK;
}

static int compare_keys(const void *left_item, const void *right_item)
{
    const gguf_value_t *a = *(gguf_value_t *const *)left_item;
    const gguf_value_t *b = *(gguf_value_t *const *)right_item;
    size_t shorter = a->key.size < b->key.size ? a->key.size : b->key.size;
    int order = memcmp(a->key.data, b->key.data, shorter);
    return order != 0 ? order : (a->key.size > b->key.size) - (a->key.size < b->key.size);
}

static status_t parse_values(cursor_t *cursor, uint64_t n)
{
    gguf_t *gguf = cursor->gguf;
    TRY(check_count(cursor, "keys", n, GGUF_KEYS_MAX, KEY_RECORD_BYTES_MIN));
    gguf->values = ARENA_NEW_ARRAY(&gguf->arena, gguf_value_t, n);
    gguf->by_key = ARENA_NEW_ARRAY(&gguf->arena, gguf_value_t *, n);
    gguf->n_values = (size_t)n;
    for (uint64_t i = 0; i < n; i++) {
        TRY(take_value(cursor, &gguf->values[i]));
        gguf->by_key[i] = &gguf->values[i];
    }
    qsort(gguf->by_key, n, sizeof *gguf->by_key, compare_keys);
    for (uint64_t i = 1; i < n; i++)
        if (compare_keys(&gguf->by_key[i - 1], &gguf->by_key[i]) == 0)
            return fail(STATUS_INVALID, "%s: key %s appears twice", gguf->label,
                        gguf_show(gguf->by_key[i]->key.data, gguf->by_key[i]->key.size).text);
    return STATUS_OK;
}

static status_t read_alignment(gguf_t *gguf)
{
    gguf->alignment = GGUF_ALIGNMENT_DEFAULT;
    const gguf_value_t *value = gguf_find(gguf, "general.alignment");
    if (value == NULL)
        return STATUS_OK;
    if (value->kind != GGUF_U32)
        return fail(STATUS_INVALID, "%s: general.alignment is %s; U32 would be right", gguf->label,
                    gguf_kind_name(value->kind));
    memcpy(&gguf->alignment, value->data, sizeof gguf->alignment);
    uint32_t n = gguf->alignment;
    if (n < ALIGNMENT_MIN || n > GGUF_ALIGNMENT_MAX || (n & (n - 1)) != 0)
        return fail(STATUS_INVALID,
                    "%s: general.alignment is %u; a power of two from %d to %d would be right",
                    gguf->label, n, ALIGNMENT_MIN, GGUF_ALIGNMENT_MAX);
    return STATUS_OK;
}

/* --- tensors --- */

/* Dimensions, type and the bytes that follow from them. */
static status_t take_shape(cursor_t *cursor, gguf_tensor_t *tensor)
{
    const char *label = cursor->gguf->label;
    TRY(take_u32(cursor, "a tensor's dimensions", &tensor->n_dims));
    if (tensor->n_dims < 1 || tensor->n_dims > GGUF_DIMS_MAX)
        return fail(STATUS_INVALID, "%s: tensor %s has %u dimensions; 1 to %d are read", label,
                    tensor->name, tensor->n_dims, GGUF_DIMS_MAX);
    uint64_t n_values = 1;
    for (uint32_t i = 0; i < GGUF_DIMS_MAX; i++) {
        tensor->dims[i] = 1;
        if (i >= tensor->n_dims)
            continue;
        TRY(take_u64(cursor, "a tensor's dimensions", &tensor->dims[i]));
        if (tensor->dims[i] == 0 || tensor->dims[i] > INT64_MAX)
            return fail(STATUS_INVALID, "%s: tensor %s: dimension %u is %lld; it must be above 0",
                        label, tensor->name, i, (long long)tensor->dims[i]);
        if (!checked_mul_u64(n_values, tensor->dims[i], &n_values) || n_values > INT64_MAX)
            return fail(STATUS_INVALID, "%s: tensor %s: the product of its dimensions overflows",
                        label, tensor->name);
    }
    uint32_t type;
    TRY(take_u32(cursor, "a tensor's type", &type));
    const qtype_info_t *info = type < QTYPE_OWN_FIRST ? qtype_info(type) : NULL;
    if (info == NULL)
        return fail(STATUS_INVALID, "%s: tensor %s: the format has no type %d (any more)", label,
                    tensor->name, (int)type);
    tensor->type = (qtype_t)type;
    if (tensor->dims[0] % info->block_values != 0)
        return fail(STATUS_INVALID, "%s: tensor %s: rows of %llu values are not whole %s blocks "
                    "of %u", label, tensor->name, (unsigned long long)tensor->dims[0], info->name,
                    info->block_values);
    if (!qtype_row_bytes(type, tensor->dims[0], &tensor->row_bytes) ||
        !checked_mul_u64(tensor->row_bytes, n_values / tensor->dims[0], &tensor->bytes))
        return fail(STATUS_INVALID, "%s: tensor %s: its size in bytes overflows", label,
                    tensor->name);
    return STATUS_OK;
}

static status_t take_tensor(cursor_t *cursor, gguf_tensor_t *tensor)
{
    gguf_t *gguf = cursor->gguf;
    gguf_text_t name;
    TRY(take_name(cursor, "a tensor name", GGUF_TENSOR_NAME_BYTES_MAX, &name));
    tensor->name = arena_strndup(&gguf->arena, name.data, name.size);
    TRY(take_shape(cursor, tensor));
    TRY(take_u64(cursor, "a tensor's offset", &tensor->offset));
    if (tensor->offset % gguf->alignment != 0)
        return fail(STATUS_INVALID, "%s: tensor %s: offset %llu is no multiple of the alignment %u",
                    gguf->label, gguf_show(name.data, name.size).text,
                    (unsigned long long)tensor->offset, gguf->alignment);
    return STATUS_OK;
}

/* Turns an offset from the data's start into one from the file's start. */
static status_t place_tensor(gguf_t *gguf, uint64_t data_start, gguf_tensor_t *tensor)
{
    uint64_t start, end;
    if (!checked_add_u64(data_start, tensor->offset, &start) ||
        !checked_add_u64(start, tensor->bytes, &end) || end > gguf->size)
        return fail(STATUS_INVALID,
                    "%s: tensor %s: offset %llu and %llu bytes reach past the end of the file: its "
                    "data begins at %llu of %llu",
                    gguf->label, tensor->name, (unsigned long long)tensor->offset,
                    (unsigned long long)tensor->bytes, (unsigned long long)data_start,
                    (unsigned long long)gguf->size);
    tensor->offset = start;
    tensor->data = gguf->bytes + start;
    return STATUS_OK;
}

static int compare_names(const void *left_item, const void *right_item)
{
    const gguf_tensor_t *a = *(gguf_tensor_t *const *)left_item;
    const gguf_tensor_t *b = *(gguf_tensor_t *const *)right_item;
    return strcmp(a->name, b->name);
}

static int compare_offsets(const void *left_item, const void *right_item)
{
    const gguf_tensor_t *a = *(gguf_tensor_t *const *)left_item;
    const gguf_tensor_t *b = *(gguf_tensor_t *const *)right_item;
    return (a->offset > b->offset) - (a->offset < b->offset);
}

static status_t check_apart(gguf_t *gguf)
{
    gguf_tensor_t **sorted = gguf->by_name;
    qsort(sorted, gguf->n_tensors, sizeof *sorted, compare_offsets);
    for (size_t i = 1; i < gguf->n_tensors; i++)
        if (sorted[i]->offset < sorted[i - 1]->offset + sorted[i - 1]->bytes)
            return fail(STATUS_INVALID, "%s: tensors %s and %s overlap at byte %llu", gguf->label,
                        sorted[i - 1]->name, sorted[i]->name,
                        (unsigned long long)sorted[i]->offset);
    qsort(sorted, gguf->n_tensors, sizeof *sorted, compare_names);
    for (size_t i = 1; i < gguf->n_tensors; i++)
        if (strcmp(sorted[i]->name, sorted[i - 1]->name) == 0)
            return fail(STATUS_INVALID, "%s: tensor %s appears twice", gguf->label,
                        sorted[i]->name);
    return STATUS_OK;
}

static status_t parse_tensors(cursor_t *cursor, uint64_t n)
{
    gguf_t *gguf = cursor->gguf;
    TRY(check_count(cursor, "tensors", n, GGUF_TENSORS_MAX, TENSOR_RECORD_BYTES_MIN));
    gguf->tensors = ARENA_NEW_ARRAY(&gguf->arena, gguf_tensor_t, n);
    gguf->by_name = ARENA_NEW_ARRAY(&gguf->arena, gguf_tensor_t *, n);
    gguf->n_tensors = (size_t)n;
    for (uint64_t i = 0; i < n; i++) {
        TRY(take_tensor(cursor, &gguf->tensors[i]));
        gguf->by_name[i] = &gguf->tensors[i];
    }
    uint64_t data_start;
    if (!checked_add_u64(cursor->at, gguf->alignment - 1, &data_start))
        return fail(STATUS_INVALID, "%s: the data's start overflows", gguf->label);
    data_start -= data_start % gguf->alignment;
    for (uint64_t i = 0; i < n; i++)
        TRY(place_tensor(gguf, data_start, &gguf->tensors[i]));
    return check_apart(gguf);
}

status_t gguf_parse(gguf_t *gguf)
{
    cursor_t cursor = {.gguf = gguf};
    uint64_t n_tensors, n_values;
    TRY(parse_header(&cursor, &n_tensors, &n_values));
    TRY(check_count(&cursor, "tensors", n_tensors, GGUF_TENSORS_MAX, TENSOR_RECORD_BYTES_MIN));
    TRY(parse_values(&cursor, n_values));
    TRY(read_alignment(gguf));
    return parse_tensors(&cursor, n_tensors);
}
