/* A Hugging Face directory as a source: which files it has, that index and shards agree, and its
 * plain tensors. The names of shards come from the index, which is untrusted: only plain names of
 * files in this very directory are opened. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/json.h"
#include "common/base/log.h"
#include "common/model/hf_config.h"
#include "common/model/model_files.h"
#include "common/model/source_internal.h"

static const char index_name[] = MODEL_INDEX_NAME, single_name[] = MODEL_SINGLE_NAME;

/* --- files --- */

static bool has_file(const source_t *source, const char *name)
{
    char *path = mem_format("%s/%s", source->path, name);
    bool there = access(path, F_OK) == 0;
    free(path);
    return there;
}

static status_t read_json(const source_t *source, const char *name, json_t **own_out)
{
    char *path = mem_format("%s/%s", source->path, name);
    status_t status = json_read_file(path, NULL, own_out);
    free(path);
    return status;
}

static void add_shard(source_t *source, const char *name, safetensors_t *take_shard)
{
    size_t n = source->n_shards + 1;
    source->shards = mem_resize(source->shards, n, sizeof *source->shards);
    source->shard_names = mem_resize(source->shard_names, n, sizeof *source->shard_names);
    source->shards[n - 1] = take_shard;
    source->shard_names[n - 1] = mem_strdup(name);
    source->n_shards = n;
    source->bytes += safetensors_file_bytes(take_shard);
}

static status_t open_shard(source_t *source, const char *name)
{
    char *path = mem_format("%s/%s", source->path, name);
    safetensors_t *shard = NULL;
    status_t status = safetensors_open(path, &shard);
    free(path);
    TRY(status);
    add_shard(source, name, shard);
    return STATUS_OK;
}

/* Opens each shard that the index names once. */
static status_t open_shards(source_t *source, const json_t *map)
{
    json_t *seen = json_object();
    CHECK(seen != NULL);
    status_t status = STATUS_OK;
    const char *key;
    const json_t *value;
    json_object_foreach((json_t *)(uintptr_t)map, key, value) {
        const char *name = NULL;
        char *where = mem_format("%s/%s", source->path, index_name);
        status = json_get_text(map, where, key, &name, NULL);
        free(where);
        if (status != STATUS_OK || json_object_get(seen, name) != NULL) {
            if (status != STATUS_OK)
                break;
            continue;
        }
        if (!model_shard_name_is_good(name))
            status = fail(STATUS_INVALID, "%s/%s: a shard has a name that is not allowed (%zu "
                          "bytes); it must be a file of this directory that ends in .safetensors",
                          source->path, index_name, strlen(name));
        if (status == STATUS_OK && source->n_shards == SOURCE_SHARDS_MAX)
            status = fail(STATUS_INVALID, "%s/%s: more than %d shards", source->path, index_name,
                          SOURCE_SHARDS_MAX);
        if (status == STATUS_OK)
            status = open_shard(source, name);
        if (status == STATUS_NOT_FOUND)
            status = fail(STATUS_INVALID, "%s/%s names the shard %s, which is not there",
                          source->path, index_name, name);
        if (status != STATUS_OK)
            break;
        CHECK(json_object_set_new(seen, name, json_true()) == 0);
    }
    json_decref(seen);
    return status;
}

/* --- the tensors of all shards --- */

static int raw_by_name(const void *a, const void *b)
{
    const source_raw_t *left = a, *right = b;
    return strcmp(left->tensor->name, right->tensor->name);
}

static status_t collect(source_t *source)
{
    size_t n = 0;
    for (size_t s = 0; s < source->n_shards; s++)
        n += safetensors_n_tensors(source->shards[s]);
    if (n > SOURCE_TENSORS_MAX)
        return fail(STATUS_INVALID, "%s: %zu tensors; a model has at most %d", source->path, n,
                    SOURCE_TENSORS_MAX);
    source->raws = MEM_NEW_ARRAY(source_raw_t, n);
    for (size_t s = 0; s < source->n_shards; s++)
        for (size_t i = 0; i < safetensors_n_tensors(source->shards[s]); i++)
            source->raws[source->n_raws++] =
                (source_raw_t){safetensors_at(source->shards[s], i), (uint32_t)s, false};
    if (n > 0)
        qsort(source->raws, n, sizeof *source->raws, raw_by_name);
    for (size_t i = 1; i < n; i++)
        if (raw_by_name(&source->raws[i - 1], &source->raws[i]) == 0)
            return fail(STATUS_INVALID, "%s: tensor %.100s is in two shards, %s and %s",
                        source->path, source->raws[i].tensor->name,
                        source->shard_names[source->raws[i - 1].shard],
                        source->shard_names[source->raws[i].shard]);
    return STATUS_OK;
}

/* Each tensor of the index must be in the shard that the index says. Tensors that the index leaves
 * out are listed all the same: whether they are known is the architecture's business. */
static status_t check_index(const source_t *source, const json_t *map)
{
    const char *key;
    const json_t *value;
    json_object_foreach((json_t *)(uintptr_t)map, key, value) {
        const source_raw_t *raw = source_raw(source, key);
        const char *wanted = json_string_value(value);
        if (raw == NULL)
            return fail(STATUS_INVALID, "%s/%s: tensor %.100s is not in %s", source->path,
                        index_name, key, wanted);
        if (strcmp(source->shard_names[raw->shard], wanted) != 0)
            return fail(STATUS_INVALID, "%s/%s: tensor %.100s is not in %s but in %s",
                        source->path, index_name, key, wanted, source->shard_names[raw->shard]);
    }
    return STATUS_OK;
}

static status_t open_indexed(source_t *source)
{
    json_t *index;
    TRY(read_json(source, index_name, &index));
    char *where = mem_format("%s/%s", source->path, index_name);
    const json_t *map = NULL;
    status_t status = json_get_object(index, where, "weight_map", &map);
    free(where);
    if (status == STATUS_OK)
        status = open_shards(source, map);
    if (status == STATUS_OK)
        status = collect(source);
    if (status == STATUS_OK)
        status = check_index(source, map);
    json_decref(index);
    return status;
}

/* --- plain tensors --- */

static bool plain_type(safetensors_dtype_t dtype, qtype_t *type_out)
{
    switch (dtype) {
    case SAFETENSORS_F64: *type_out = QTYPE_F64; return true;
    case SAFETENSORS_F32: *type_out = QTYPE_F32; return true;
    case SAFETENSORS_F16: *type_out = QTYPE_F16; return true;
    case SAFETENSORS_BF16: *type_out = QTYPE_BF16; return true;
    case SAFETENSORS_I64: *type_out = QTYPE_I64; return true;
    case SAFETENSORS_I32: *type_out = QTYPE_I32; return true;
    case SAFETENSORS_I16: *type_out = QTYPE_I16; return true;
    case SAFETENSORS_I8: *type_out = QTYPE_I8; return true;
    default: return false;
    }
}

/* The format promises no alignment, the kernels want it: odd data is copied out. */
static status_t read_unaligned(const source_tensor_t *tensor, uint64_t row_first, uint64_t n_rows,
                               uint8_t *out)
{
    memcpy(out, tensor->parts->weight->data + row_first * tensor->row_bytes,
           (size_t)(n_rows * tensor->row_bytes));
    return STATUS_OK;
}

static status_t add_plain(source_t *source, const safetensors_tensor_t *found)
{
    qtype_t type;
    const char *stored = safetensors_dtype_name(found->dtype);
    if (!plain_type(found->dtype, &type))
        return fail(STATUS_UNSUPPORTED, "%s: tensor %.100s is %s, which cannot be used as it is "
                    "and belongs to no quantized matrix", source->path, found->name, stored);
    if (found->n_dims > GGUF_DIMS_MAX)
        return fail(STATUS_UNSUPPORTED, "%s: tensor %.100s has %u dimensions; at most %d can be "
                    "used", source->path, found->name, found->n_dims, GGUF_DIMS_MAX);
    uint64_t dims[GGUF_DIMS_MAX] = {1, 1, 1, 1};
    for (uint32_t i = 0; i < found->n_dims; i++)
        dims[i] = found->shape[found->n_dims - 1 - i];
    status_t status;
    source_tensor_t *tensor = source_add(source, found->name, type,
                                         found->n_dims > 0 ? found->n_dims : 1, dims, &status);
    TRY(status);
    tensor->stored = stored;
    tensor->stored_bytes = found->bytes;
    if ((uintptr_t)found->data % safetensors_dtype_bytes(found->dtype) == 0) {
        tensor->data = found->data;
    } else {
        source_parts_t *parts = ARENA_NEW_ARRAY(&source->arena, source_parts_t, 1);
        *parts = (source_parts_t){.read = read_unaligned, .in_order = true, .weight = found};
        tensor->parts = parts;
    }
    return STATUS_OK;
}

/* Of a model with several parts the text part's tensors get the names that they have without the
 * others, and those of the others are left out. */
static void take_text_part(source_t *source)
{
    uint64_t bytes_left_out = 0;
    for (size_t i = 0; i < source->n_raws; i++) {
        source_raw_t *raw = &source->raws[i];
        if (hf_config_text_name(&source->arena, raw->tensor->name) == NULL) {
            raw->used = true;
            bytes_left_out += raw->tensor->bytes;
        }
    }
    if (bytes_left_out > 0)
        log_info("%s: %llu bytes of weights are for pictures and are left out", source->path,
                 (unsigned long long)bytes_left_out);
}

/* Quantized matrices first: what they take is not listed by itself. */
static status_t list_tensors(source_t *source)
{
    if (source->is_nested)
        take_text_part(source);
    TRY(hf_quant_take(source));
    for (size_t i = 0; i < source->n_raws; i++)
        if (!source->raws[i].used)
            TRY(add_plain(source, source->raws[i].tensor));
    for (size_t i = 0; source->is_nested && i < source->n_tensors; i++)
        source->tensors[i].name =
            hf_config_text_name(&source->arena, source->tensors[i].name);
    return STATUS_OK;
}

status_t source_use_bytes(source_t *source, const void *config, size_t config_bytes,
                          const void *weights, size_t weights_bytes)
{
    safetensors_t *shard;
    TRY(json_read_object("config.json", config, config_bytes, NULL, &source->config));
    TRY(hf_config_flatten("config.json", &source->config, &source->is_nested));
    TRY(safetensors_open_bytes(single_name, weights, weights_bytes, &shard));
    add_shard(source, single_name, shard);
    TRY(collect(source));
    return list_tensors(source);
}

status_t source_open_directory(source_t *source)
{
    if (!has_file(source, "config.json"))
        return fail(STATUS_INVALID, "%s: the directory has no config.json; a model is one GGUF "
                    "file or a Hugging Face directory", source->path);
    TRY(read_json(source, "config.json", &source->config));
    TRY(hf_config_flatten(source->path, &source->config, &source->is_nested));
    if (has_file(source, "generation_config.json"))
        TRY(read_json(source, "generation_config.json", &source->generation_config));
    if (has_file(source, single_name)) { /* as Hugging Face: it wins over an index */
        TRY(open_shard(source, single_name));
        TRY(collect(source));
    } else if (has_file(source, index_name)) {
        TRY(open_indexed(source));
    } else {
        return fail(STATUS_INVALID, "%s: the directory has neither %s nor %s", source->path,
                    single_name, index_name);
    }
    return list_tensors(source);
}
