/* The handle, its list, and rows as they are stored or as another type. Directories are read in
 * source_dir.c, quantized formats in hf_quant.c. See source.h. */
#include "common/model/source.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/base/checked.h"
#include "common/model/source_internal.h"

source_tensor_t *source_add(source_t *source, const char *name, qtype_t type, uint32_t n_dims,
                            const uint64_t *dims, status_t *status_out)
{
    source_tensor_t tensor = {.name = name, .type = type, .n_dims = n_dims, .rows = 1};
    bool fits = true;
    for (uint32_t i = 0; i < GGUF_DIMS_MAX; i++) {
        tensor.dims[i] = i < n_dims ? dims[i] : 1;
        if (tensor.dims[i] == 0) {
            *status_out = fail(STATUS_INVALID, "%s: tensor %.100s is empty", source->path, name);
            return NULL;
        }
        if (i > 0)
            fits = fits && checked_mul_u64(tensor.rows, tensor.dims[i], &tensor.rows);
    }
    tensor.columns = tensor.dims[0];
    if (!fits || !qtype_row_bytes((uint32_t)type, tensor.columns, &tensor.row_bytes) ||
        !checked_mul_u64(tensor.rows, tensor.row_bytes, &tensor.bytes) ||
        tensor.bytes > INT64_MAX) {
        *status_out = fail(STATUS_INVALID, "%s: tensor %.100s: rows of %llu values do not make "
                           "whole rows of %s, or their size overflows", source->path, name,
                           (unsigned long long)tensor.columns, qtype_name((uint32_t)type));
        return NULL;
    }
    MEM_GROW(source->tensors, source->tensors_capacity, source->n_tensors + 1);
    source->tensors[source->n_tensors] = tensor;
    *status_out = STATUS_OK;
    return &source->tensors[source->n_tensors++];
}

source_raw_t *source_raw(const source_t *source, const char *name)
{
    for (size_t low = 0, high = source->n_raws; low < high;) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(source->raws[middle].tensor->name, name);
        if (order == 0)
            return &source->raws[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

static int by_name(const void *a, const void *b)
{
    const source_tensor_t *left = a, *right = b;
    return strcmp(left->name, right->name);
}

static status_t sort_tensors(source_t *source)
{
    if (source->n_tensors == 0)
        return fail(STATUS_INVALID, "%s: the model has no tensors", source->path);
    qsort(source->tensors, source->n_tensors, sizeof *source->tensors, by_name);
    for (size_t i = 1; i < source->n_tensors; i++)
        if (strcmp(source->tensors[i].name, source->tensors[i - 1].name) == 0)
            return fail(STATUS_INVALID, "%s: tensor %.100s is there twice, as %s and as %s",
                        source->path, source->tensors[i].name, source->tensors[i - 1].stored,
                        source->tensors[i].stored);
    return STATUS_OK;
}

static status_t list_gguf(source_t *source)
{
    source->bytes = gguf_file_bytes(source->gguf);
    for (size_t i = 0; i < gguf_n_tensors(source->gguf); i++) {
        const gguf_tensor_t *found = gguf_tensor_at(source->gguf, i);
        status_t status;
        source_tensor_t *tensor = source_add(source, found->name, found->type, found->n_dims,
                                             found->dims, &status);
        TRY(status);
        tensor->stored = qtype_name((uint32_t)found->type);
        tensor->stored_bytes = found->bytes;
        tensor->data = found->data;
    }
    return STATUS_OK;
}

static status_t finish(source_t *take_source, status_t status, source_t **own_out)
{
    if (status == STATUS_OK && take_source->gguf != NULL)
        status = list_gguf(take_source);
    if (status == STATUS_OK)
        status = sort_tensors(take_source);
    if (status != STATUS_OK) {
        source_close(take_source);
        return status;
    }
    *own_out = take_source;
    return STATUS_OK;
}

status_t source_open(const char *path, source_t **own_out)
{
    struct stat info;
    if (stat(path, &info) != 0)
        return fail(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "%s: cannot open: %s", path,
                    strerror(errno));
    source_t *source = MEM_NEW(source_t);
    source->path = mem_strdup(path);
    source->is_directory = S_ISDIR(info.st_mode);
    source->is_mapped = true;
    status_t status = source->is_directory ? source_open_directory(source)
                                           : gguf_open(path, &source->gguf);
    if (status == STATUS_OK)
        source_fetch_around(source, false);
    return finish(source, status, own_out);
}

status_t source_open_gguf_bytes(const char *path, const void *bytes, size_t n, source_t **own_out)
{
    source_t *source = MEM_NEW(source_t);
    source->path = mem_strdup(path);
    return finish(source, gguf_open_bytes(path, bytes, n, &source->gguf), own_out);
}

status_t source_open_directory_bytes(const char *path, const void *config, size_t config_bytes,
                                     const void *weights, size_t weights_bytes,
                                     source_t **own_out)
{
    source_t *source = MEM_NEW(source_t);
    source->path = mem_strdup(path);
    source->is_directory = true;
    return finish(source, source_use_bytes(source, config, config_bytes, weights, weights_bytes),
                  own_out);
}

void source_close(source_t *take_source)
{
    if (take_source == NULL)
        return;
    gguf_close(take_source->gguf);
    for (size_t i = 0; i < take_source->n_shards; i++) {
        safetensors_close(take_source->shards[i]);
        free(take_source->shard_names[i]);
    }
    free(take_source->shards);
    free(take_source->shard_names);
    free(take_source->raws);
    free(take_source->tensors);
    json_decref(take_source->config);
    json_decref(take_source->generation_config);
    arena_release(&take_source->arena);
    free(take_source->path);
    free(take_source);
}

const char *source_path(const source_t *source)
{
    return source->path;
}

bool source_is_directory(const source_t *source)
{
    return source->is_directory;
}

const gguf_t *source_gguf(const source_t *source)
{
    return source->gguf;
}

const json_t *source_config(const source_t *source)
{
    return source->config;
}

const json_t *source_generation_config(const source_t *source)
{
    return source->generation_config;
}

uint64_t source_bytes(const source_t *source)
{
    return source->bytes;
}

size_t source_n_tensors(const source_t *source)
{
    return source->n_tensors;
}

const source_tensor_t *source_tensor_at(const source_t *source, size_t i)
{
    CHECK(i < source->n_tensors);
    return &source->tensors[i];
}

const source_tensor_t *source_tensor(const source_t *source, const char *name)
{
    for (size_t low = 0, high = source->n_tensors; low < high;) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(source->tensors[middle].name, name);
        if (order == 0)
            return &source->tensors[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

/* --- rows --- */

enum { VIEW_ROWS = 32 }; /* at a time: a turned matrix is read faster so */

static status_t read_quantized(const source_tensor_t *tensor, uint64_t row_first, uint64_t n_rows,
                               uint8_t *out)
{
    const source_tensor_t *base = tensor->base;
    size_t columns = (size_t)base->columns;
    uint8_t *stored = mem_new(VIEW_ROWS, (size_t)base->row_bytes);
    float *values = MEM_NEW_ARRAY(float, columns);
    status_t status = STATUS_OK;
    for (uint64_t r = 0; r < n_rows && status == STATUS_OK; r++, out += tensor->row_bytes) {
        uint64_t left = n_rows - r;
        if (r % VIEW_ROWS == 0)
            status = source_read_rows(base, row_first + r, left < VIEW_ROWS ? left : VIEW_ROWS,
                                      stored);
        if (status != STATUS_OK)
            break;
        qtype_dequantize_row(base->type, stored + r % VIEW_ROWS * base->row_bytes, columns,
                             values);
        if (!qtype_quantize_row(tensor->type, values, columns, out))
            status = fail(STATUS_INVALID, "tensor %.100s: row %llu holds a value that is not "
                          "finite or too large for %s", base->name,
                          (unsigned long long)(row_first + r), qtype_name((uint32_t)tensor->type));
    }
    free(stored);
    free(values);
    return status;
}

bool source_tensor_quantized(const source_tensor_t *tensor, qtype_t type,
                             source_tensor_t *view_out)
{
    bool plain = tensor->type == QTYPE_F32 || tensor->type == QTYPE_F16 ||
                 tensor->type == QTYPE_BF16;
    uint64_t row_bytes, bytes;
    if (!plain || !qtype_can_quantize(type) ||
        !qtype_row_bytes((uint32_t)type, tensor->columns, &row_bytes) ||
        !checked_mul_u64(row_bytes, tensor->rows, &bytes))
        return false;
    source_tensor_t view = *tensor;
    view.type = type;
    view.row_bytes = row_bytes;
    view.bytes = bytes;
    view.data = NULL;
    view.base = tensor;
    *view_out = view;
    return true;
}

status_t source_read_rows(const source_tensor_t *tensor, uint64_t row_first, uint64_t n_rows,
                          uint8_t *out)
{
    CHECK(row_first <= tensor->rows && n_rows <= tensor->rows - row_first);
    if (tensor->base != NULL)
        return read_quantized(tensor, row_first, n_rows, out);
    if (tensor->data == NULL)
        return tensor->parts->read(tensor, row_first, n_rows, out);
    if (n_rows > 0)
        memcpy(out, tensor->data + row_first * tensor->row_bytes,
               (size_t)(n_rows * tensor->row_bytes));
    return STATUS_OK;
}
