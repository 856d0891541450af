/* See safetensors.h. The header is parsed once; its names and shapes are copied to an arena. */
#include "common/model/safetensors.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/checked.h"
#include "common/base/json.h"
#include "common/base/memory.h"
#include "common/model/mapping.h"

enum {
    LENGTH_BYTES = 8,
    LABEL_BYTES_MAX = 160, /* leaves two thirds of a failure text to what is wrong */
    VALUES_MAX = 4 << 20,  /* JSON values of a header: 16 for each of SAFETENSORS_TENSORS_MAX */
    DEPTH_MAX = 4,
};

struct safetensors {
    const uint8_t *bytes;
    uint64_t size;
    void *mapping; /* NULL when the bytes are the caller's */
    char *path;
    char *label; /* the path as errors show it: its end, when it is long */
    uint64_t data_offset;
    size_t n_tensors;
    safetensors_tensor_t *tensors;  /* in the order of the data */
    safetensors_tensor_t **by_name; /* sorted by name */
    arena_t arena;
};

static const struct {
    const char *name;
    uint32_t bytes;
} dtypes[SAFETENSORS_N_DTYPES] = {
    [SAFETENSORS_F64] = {"F64", 8},         [SAFETENSORS_F32] = {"F32", 4},
    [SAFETENSORS_F16] = {"F16", 2},         [SAFETENSORS_BF16] = {"BF16", 2},
    [SAFETENSORS_F8_E4M3] = {"F8_E4M3", 1}, [SAFETENSORS_F8_E5M2] = {"F8_E5M2", 1},
    [SAFETENSORS_F8_E8M0] = {"F8_E8M0", 1}, [SAFETENSORS_I64] = {"I64", 8},
    [SAFETENSORS_I32] = {"I32", 4},         [SAFETENSORS_I16] = {"I16", 2},
    [SAFETENSORS_I8] = {"I8", 1},           [SAFETENSORS_U64] = {"U64", 8},
    [SAFETENSORS_U32] = {"U32", 4},         [SAFETENSORS_U16] = {"U16", 2},
    [SAFETENSORS_U8] = {"U8", 1},           [SAFETENSORS_BOOL] = {"BOOL", 1},
};

const char *safetensors_dtype_name(safetensors_dtype_t dtype)
{
    return dtypes[dtype].name;
}

uint32_t safetensors_dtype_bytes(safetensors_dtype_t dtype)
{
    return dtypes[dtype].bytes;
}

/* --- one tensor of the header --- */

static status_t read_dtype(const json_t *entry, const char *where, safetensors_dtype_t *out)
{
    const char *name;
    TRY(json_get_text(entry, where, "dtype", &name, NULL));
    for (int i = 0; i < SAFETENSORS_N_DTYPES; i++)
        if (strcmp(dtypes[i].name, name) == 0) {
            *out = (safetensors_dtype_t)i;
            return STATUS_OK;
        }
    return fail(STATUS_INVALID, "%s: dtype \"%.32s\" is none of the format's (F32, F16, BF16, "
                "F8_E4M3, I8 …)", where, name);
}

/* Element i of an array of sizes. */
static status_t read_size(const json_t *array, size_t i, const char *where, const char *what,
                          uint64_t *out)
{
    const json_t *value = json_array_get(array, i);
    if (!json_is_integer(value))
        return fail(STATUS_INVALID, "%s: %s[%zu] is of kind %s; it must be an integer of 0 or more",
                    where, what, i, json_kind_name(value));
    if (json_integer_value(value) < 0)
        return fail(STATUS_INVALID, "%s: %s[%zu] is %lld; it must be an integer of 0 or more",
                    where, what, i, (long long)json_integer_value(value));
    *out = (uint64_t)json_integer_value(value);
    return STATUS_OK;
}

static status_t read_shape(const json_t *entry, const char *where, safetensors_tensor_t *tensor)
{
    const json_t *shape;
    TRY(json_get_array(entry, where, "shape", &shape));
    size_t n = json_array_size(shape);
    if (n > SAFETENSORS_DIMS_MAX)
        return fail(STATUS_INVALID, "%s: the shape has %zu dimensions; at most %d are read", where,
                    n, SAFETENSORS_DIMS_MAX);
    tensor->n_dims = (uint32_t)n;
    tensor->n_values = 1;
    bool fits = true;
    for (size_t i = 0; i < SAFETENSORS_DIMS_MAX; i++) {
        tensor->shape[i] = 1;
        if (i < n)
            TRY(read_size(shape, i, where, "shape", &tensor->shape[i]));
        fits = fits && checked_mul_u64(tensor->n_values, tensor->shape[i], &tensor->n_values);
    }
    fits = fits && checked_mul_u64(tensor->n_values, dtypes[tensor->dtype].bytes, &tensor->bytes);
    if (!fits || tensor->bytes > INT64_MAX)
        return fail(STATUS_INVALID, "%s: the size of its shape in bytes overflows", where);
    return STATUS_OK;
}

static status_t read_offsets(const safetensors_t *file, const json_t *entry, const char *where,
                             safetensors_tensor_t *tensor)
{
    const json_t *offsets;
    uint64_t begin, end, data_bytes = file->size - file->data_offset;
    TRY(json_get_array(entry, where, "data_offsets", &offsets));
    if (json_array_size(offsets) != 2)
        return fail(STATUS_INVALID, "%s: data_offsets has %zu values; it must be [begin, end]",
                    where, json_array_size(offsets));
    TRY(read_size(offsets, 0, where, "data_offsets", &begin));
    TRY(read_size(offsets, 1, where, "data_offsets", &end));
    if (begin > end)
        return fail(STATUS_INVALID, "%s: its data begins at %llu and ends before, at %llu", where,
                    (unsigned long long)begin, (unsigned long long)end);
    if (end > data_bytes)
        return fail(STATUS_INVALID, "%s: its data ends at %llu, but the file has %llu bytes of "
                    "data", where, (unsigned long long)end, (unsigned long long)data_bytes);
    if (end - begin != tensor->bytes)
        return fail(STATUS_INVALID, "%s: its data has %llu bytes, its shape as %s takes %llu",
                    where, (unsigned long long)(end - begin), dtypes[tensor->dtype].name,
                    (unsigned long long)tensor->bytes);
    tensor->offset = file->data_offset + begin;
    tensor->data = file->bytes + tensor->offset;
    return STATUS_OK;
}

static status_t read_tensor(safetensors_t *file, const char *name, const json_t *entry)
{
    size_t n = strlen(name);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f)
            return fail(STATUS_INVALID, "%s: a tensor's name has a control character", file->label);
    if (n == 0 || n > SAFETENSORS_NAME_BYTES_MAX)
        return fail(STATUS_INVALID, "%s: a tensor's name has %zu bytes; it must have 1 to %d",
                    file->label, n, SAFETENSORS_NAME_BYTES_MAX);
    char *where = mem_format("%s: tensor %.100s", file->label, name);
    safetensors_tensor_t *tensor = &file->tensors[file->n_tensors];
    status_t status = STATUS_OK;
    if (!json_is_object(entry))
        status = fail(STATUS_INVALID, "%s is of kind %s; it must be an object", where,
                      json_kind_name(entry));
    if (status == STATUS_OK)
        status = read_dtype(entry, where, &tensor->dtype);
    if (status == STATUS_OK)
        status = read_shape(entry, where, tensor);
    if (status == STATUS_OK)
        status = read_offsets(file, entry, where, tensor);
    if (status == STATUS_OK && json_object_size(entry) != 3)
        status = fail(STATUS_INVALID, "%s has further keys than dtype, shape and data_offsets",
                      where);
    free(where);
    TRY(status);
    tensor->name = arena_strndup(&file->arena, name, n);
    file->n_tensors++;
    return STATUS_OK;
}

static status_t check_metadata(const safetensors_t *file, const json_t *metadata)
{
    if (!json_is_object(metadata))
        return fail(STATUS_INVALID, "%s: __metadata__ is of kind %s; it must be an object",
                    file->label, json_kind_name(metadata));
    const char *key;
    const json_t *value;
    json_object_foreach((json_t *)(uintptr_t)metadata, key, value)
        if (!json_is_string(value))
            return fail(STATUS_INVALID, "%s: __metadata__: \"%.64s\" is of kind %s; all of it "
                        "must be strings", file->label, key, json_kind_name(value));
    return STATUS_OK;
}

/* --- the header --- */

/* The kinds of files that people rename are told by their first bytes: the first pages of what the
 * header's length would be say nothing helpful. */
static status_t check_kind(const safetensors_t *file)
{
    const uint8_t *bytes = file->bytes;
    if (file->size >= 2 && bytes[0] == 0x80 && bytes[1] <= 5 && bytes[1] >= 2)
        return fail(STATUS_INVALID, "%s: this is a pickle, which runs code when it is read; "
                    "convert it to safetensors", file->label);
    if (file->size >= 4 && memcmp(bytes, "PK\3\4", 4) == 0)
        return fail(STATUS_INVALID, "%s: this is a zip archive (a PyTorch checkpoint?); convert "
                    "it to safetensors", file->label);
    return STATUS_OK;
}

static status_t header_length(const safetensors_t *file, uint64_t *out)
{
    if (file->size < LENGTH_BYTES)
        return fail(STATUS_INVALID, "%s: %llu bytes; a safetensors file begins with 8 that say "
                    "how long its header is", file->label, (unsigned long long)file->size);
    TRY(check_kind(file));
    uint64_t length;
    memcpy(&length, file->bytes, sizeof length);
    if (length < 2 || length > SAFETENSORS_HEADER_BYTES_MAX)
        return fail(STATUS_INVALID, "%s: the header's length is %llu; it must be 2 to %d",
                    file->label, (unsigned long long)length, SAFETENSORS_HEADER_BYTES_MAX);
    if (length > file->size - LENGTH_BYTES)
        return fail(STATUS_INVALID, "%s: the header's length is %llu, but only %llu bytes follow",
                    file->label, (unsigned long long)length,
                    (unsigned long long)(file->size - LENGTH_BYTES));
    if (file->bytes[LENGTH_BYTES] != '{')
        return fail(STATUS_INVALID, "%s: the header does not begin with {", file->label);
    *out = length;
    return STATUS_OK;
}

static status_t read_entries(safetensors_t *file, json_t *header)
{
    size_t n = json_object_size(header);
    if (n > SAFETENSORS_TENSORS_MAX)
        return fail(STATUS_INVALID, "%s: %zu tensors; a file has at most %d", file->label, n,
                    SAFETENSORS_TENSORS_MAX);
    file->tensors = ARENA_NEW_ARRAY(&file->arena, safetensors_tensor_t, n);
    file->by_name = ARENA_NEW_ARRAY(&file->arena, safetensors_tensor_t *, n);
    const char *key;
    json_t *value;
    json_object_foreach(header, key, value) {
        if (strcmp(key, "__metadata__") == 0)
            TRY(check_metadata(file, value));
        else
            TRY(read_tensor(file, key, value));
    }
    return STATUS_OK;
}

static int by_offset(const void *a, const void *b)
{
    const safetensors_tensor_t *left = a, *right = b;
    if (left->offset != right->offset)
        return left->offset < right->offset ? -1 : 1;
    if (left->bytes != right->bytes) /* empty ones first, so that they do not look like overlaps */
        return left->bytes < right->bytes ? -1 : 1;
    return strcmp(left->name, right->name);
}

static int by_name(const void *a, const void *b)
{
    const safetensors_tensor_t *const *left = a, *const *right = b;
    return strcmp((*left)->name, (*right)->name);
}

/* The tensors, in the order of their data, must follow one another to the end of the file. */
static status_t check_cover(safetensors_t *file)
{
    uint64_t at = file->data_offset;
    for (size_t i = 0; i < file->n_tensors; i++) {
        const safetensors_tensor_t *tensor = &file->tensors[i];
        if (tensor->offset != at)
            return fail(STATUS_INVALID, "%s: tensor %.100s: its data begins at %llu and %s at %llu;"
                        " tensors must follow one another", file->label, tensor->name,
                        (unsigned long long)(tensor->offset - file->data_offset),
                        tensor->offset < at ? "overlaps the one before, which ends"
                                            : "leaves a hole behind the one before, which ends",
                        (unsigned long long)(at - file->data_offset));
        at += tensor->bytes;
    }
    if (at != file->size)
        return fail(STATUS_INVALID, "%s: %llu bytes behind the last tensor's data", file->label,
                    (unsigned long long)(file->size - at));
    return STATUS_OK;
}

static status_t parse(safetensors_t *file)
{
    uint64_t length;
    TRY(header_length(file, &length));
    file->data_offset = LENGTH_BYTES + length;
    const json_limits_t limits = {SAFETENSORS_HEADER_BYTES_MAX, DEPTH_MAX, VALUES_MAX};
    char *name = mem_format("%s: the header", file->label);
    json_t *header = NULL;
    status_t status =
        json_read_object(name, file->bytes + LENGTH_BYTES, (size_t)length, &limits, &header);
    free(name);
    TRY(status);
    status = read_entries(file, header);
    json_decref(header);
    TRY(status);
    if (file->n_tensors > 0) /* qsort of an empty array may be given no NULL */
        qsort(file->tensors, file->n_tensors, sizeof *file->tensors, by_offset);
    for (size_t i = 0; i < file->n_tensors; i++)
        file->by_name[i] = &file->tensors[i];
    if (file->n_tensors > 0)
        qsort(file->by_name, file->n_tensors, sizeof *file->by_name, by_name);
    return check_cover(file);
}

/* --- open, close, look up --- */

static status_t open_handle(const char *path, const void *bytes, uint64_t size, void *take_mapping,
                            safetensors_t **own_out)
{
    safetensors_t *file = MEM_NEW(safetensors_t);
    file->bytes = bytes;
    file->size = size;
    file->mapping = take_mapping;
    file->path = mem_strdup(path);
    size_t n = strlen(path);
    file->label = n <= LABEL_BYTES_MAX ? mem_strdup(path)
                                       : mem_format("...%s", path + n - LABEL_BYTES_MAX);
    status_t status = parse(file);
    if (status != STATUS_OK) {
        safetensors_close(file);
        return status;
    }
    *own_out = file;
    return STATUS_OK;
}

status_t safetensors_open(const char *path, safetensors_t **own_out)
{
    void *mapping;
    uint64_t size;
    TRY(mapping_open(path, "weights are safetensors files", &mapping, &size));
    return open_handle(path, mapping, size, mapping, own_out);
}

status_t safetensors_open_bytes(const char *path, const void *bytes, size_t n,
                                safetensors_t **own_out)
{
    return open_handle(path, bytes, n, NULL, own_out);
}

void safetensors_close(safetensors_t *take_file)
{
    if (take_file == NULL)
        return;
    mapping_close(take_file->mapping, take_file->size);
    arena_release(&take_file->arena);
    free(take_file->path);
    free(take_file->label);
    free(take_file);
}

const char *safetensors_path(const safetensors_t *file)
{
    return file->path;
}

uint64_t safetensors_file_bytes(const safetensors_t *file)
{
    return file->size;
}

const uint8_t *safetensors_bytes(const safetensors_t *file)
{
    return file->bytes;
}

size_t safetensors_n_tensors(const safetensors_t *file)
{
    return file->n_tensors;
}

const safetensors_tensor_t *safetensors_at(const safetensors_t *file, size_t i)
{
    CHECK(i < file->n_tensors);
    return &file->tensors[i];
}

const safetensors_tensor_t *safetensors_find(const safetensors_t *file, const char *name)
{
    for (size_t low = 0, high = file->n_tensors; low < high;) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(file->by_name[middle]->name, name);
        if (order == 0)
            return file->by_name[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}
