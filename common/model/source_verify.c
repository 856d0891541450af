/* What a rank maps, checked against the model's seal. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/model/mapping.h"
#include "common/model/model_files.h"
#include "common/model/source_internal.h"

/* --- files that everybody reads --- */

/* The bytes before the first tensor's data. */
static status_t verify_header(const manifest_t *manifest, const char *name, const uint8_t *file,
                              uint64_t file_bytes, const uint8_t *first_data)
{
    return manifest_check(manifest, name, file, file_bytes, 0, (uint64_t)(first_data - file));
}

static status_t verify_whole(const source_t *source, const manifest_t *manifest, const char *name)
{
    char *path = mem_format("%s/%s", source->path, name);
    void *bytes = NULL;
    uint64_t n = 0;
    struct stat info;
    status_t status = STATUS_OK;
    bool is_empty = stat(path, &info) == 0 && S_ISREG(info.st_mode) && info.st_size == 0;
    if (!is_empty) /* which cannot be mapped */
        status = mapping_open(path, "a sealed file is mapped", &bytes, &n);
    if (status == STATUS_OK)
        status = manifest_check(manifest, name, is_empty ? (const uint8_t *)"" : bytes, n, 0, n);
    mapping_close(bytes, n);
    free(path);
    return status;
}

static const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash == NULL ? path : slash + 1;
}

/* Each file up to its first tensor: the keys and the list of tensors. */
static status_t verify_gguf(const source_t *source, const manifest_t *manifest)
{
    for (size_t f = 0; f < gguf_n_files(source->gguf); f++) {
        gguf_file_t file = gguf_file_at(source->gguf, f);
        uint64_t n = file.n;
        for (size_t i = 0; i < gguf_n_tensors(source->gguf); i++) {
            const uint8_t *data = gguf_tensor_at(source->gguf, i)->data;
            uint64_t at = (uint64_t)((uintptr_t)data - (uintptr_t)file.bytes); /* may wrap */
            n = at < n ? at : n;
        }
        TRY(manifest_check(manifest, file_name(file.path), file.bytes, file.n, 0, n));
    }
    return STATUS_OK;
}

status_t source_verify_files(const source_t *source, const manifest_t *manifest)
{
    if (source->gguf != NULL)
        return verify_gguf(source, manifest);
    model_files_t files = {0};
    status_t status = model_files_list(source->path, &files);
    for (size_t i = 0; i < files.n && status == STATUS_OK; i++)
        if (!model_file_is_weights(files.names[i]))
            status = verify_whole(source, manifest, files.names[i]);
    model_files_release(&files);
    for (size_t i = 0; i < source->n_shards && status == STATUS_OK; i++)
        if (safetensors_n_tensors(source->shards[i]) > 0)
            status = verify_header(manifest, source->shard_names[i],
                                   safetensors_bytes(source->shards[i]),
                                   safetensors_file_bytes(source->shards[i]),
                                   safetensors_at(source->shards[i], 0)->data);
    return status;
}

/* --- rows --- */

/* Finds the file that the bytes lie in and checks them. */
static status_t verify_bytes(const source_t *source, const manifest_t *manifest,
                             const uint8_t *data, uint64_t n)
{
    for (size_t i = 0; source->gguf != NULL && i < gguf_n_files(source->gguf); i++) {
        gguf_file_t file = gguf_file_at(source->gguf, i);
        uint64_t at = (uint64_t)((uintptr_t)data - (uintptr_t)file.bytes); /* wraps when before it */
        if (at <= file.n && n <= file.n - at)
            return manifest_check(manifest, file_name(file.path), file.bytes, file.n, at, n);
    }
    for (size_t i = 0; i < source->n_shards; i++) {
        const uint8_t *file = safetensors_bytes(source->shards[i]);
        uint64_t bytes = safetensors_file_bytes(source->shards[i]);
        uint64_t at = (uint64_t)((uintptr_t)data - (uintptr_t)file); /* wraps when before it */
        if (at <= bytes && n <= bytes - at)
            return manifest_check(manifest, source->shard_names[i], file, bytes, at, n);
    }
    CHECK(false && "a tensor of this source lies in one of its files");
}

static status_t verify_part(const source_t *source, const manifest_t *manifest,
                            const safetensors_tensor_t *part)
{
    return part == NULL ? STATUS_OK : verify_bytes(source, manifest, part->data, part->bytes);
}

status_t source_verify_rows(const source_t *source, const manifest_t *manifest,
                            const source_tensor_t *tensor, uint64_t row_first, uint64_t n_rows)
{
    CHECK(row_first <= tensor->rows && n_rows <= tensor->rows - row_first);
    if (tensor->base != NULL)
        return source_verify_rows(source, manifest, tensor->base, row_first, n_rows);
    if (tensor->data != NULL)
        return verify_bytes(source, manifest, tensor->data + row_first * tensor->row_bytes,
                            n_rows * tensor->row_bytes);
    const source_parts_t *parts = tensor->parts;
    uint64_t row_bytes = parts->weight->bytes / tensor->rows;
    if (parts->in_order)
        TRY(verify_bytes(source, manifest, parts->weight->data + row_first * row_bytes,
                         n_rows * row_bytes));
    else
        TRY(verify_part(source, manifest, parts->weight));
    TRY(verify_part(source, manifest, parts->scale));
    TRY(verify_part(source, manifest, parts->zero));
    return verify_part(source, manifest, parts->group_of);
}
