/* The configuration of a model without its weights. See source_outline.h. */
#include "common/model/source_outline.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/base/json.h"
#include "common/model/hf_config.h"
#include "common/model/hf_quant.h"
#include "common/model/source_internal.h"

static source_t *new_source(const char *path)
{
    source_t *source = MEM_NEW(source_t);
    source->path = mem_strdup(path);
    source->is_directory = true;
    return source;
}

static status_t finish(source_t *take_source, status_t status, source_t **own_out)
{
    if (status != STATUS_OK) {
        source_close(take_source);
        return status;
    }
    *own_out = take_source;
    return STATUS_OK;
}

status_t source_outline_open(const char *path, source_t **own_out)
{
    struct stat info;
    if (stat(path, &info) != 0)
        return fail(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "%s: cannot open: %s", path,
                    strerror(errno));
    char *file = mem_format("%s%s", path, S_ISDIR(info.st_mode) ? "/config.json" : "");
    source_t *source = new_source(file);
    status_t status = json_read_file(file, NULL, &source->config);
    if (status == STATUS_OK)
        status = hf_config_flatten(file, &source->config, &source->is_nested);
    free(file);
    return finish(source, status, own_out);
}

status_t source_outline_open_bytes(const char *path, const void *config, size_t n,
                                   source_t **own_out)
{
    source_t *source = new_source(path);
    status_t status = json_read_object(path, config, n, NULL, &source->config);
    if (status == STATUS_OK)
        status = hf_config_flatten(path, &source->config, &source->is_nested);
    return finish(source, status, own_out);
}

/* --- types --- */

static status_t read_plain(const source_t *source, qtype_t *out)
{
    static const struct {
        const char *name;
        qtype_t type;
    } types[] = {{"bfloat16", QTYPE_BF16}, {"float16", QTYPE_F16}, {"float32", QTYPE_F32}};
    const char *name = "bfloat16"; /* what models are published in when they do not say */
    TRY(json_may_text(source->config, source->path, "torch_dtype", &name, NULL));
    TRY(json_may_text(source->config, source->path, "dtype", &name, NULL));
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(name, types[i].name) == 0) {
            *out = types[i].type;
            return STATUS_OK;
        }
    return fail(STATUS_UNSUPPORTED, "%s: \"torch_dtype\" is \"%.32s\"; bfloat16, float16 "
                "and float32 are supported", source->path, name);
}

/* Scales are taken for what plain tensors are, which hf_quant.c sees for itself. 0 is one group for
 * all. */
static qtype_t nibbles_type(uint64_t group, qtype_t plain, bool zero_is_8)
{
    if (group % 32 != 0 || plain == QTYPE_F32)
        return QTYPE_I8S;
    return qtype_z4_of(group > 0 ? group : QTYPE_Z4_ROW_VALUES, plain == QTYPE_BF16, zero_is_8);
}

/* Compressed-tensors says of each group of modules what its values are; they are alike. */
static qtype_t compressed_type(json_t *config, qtype_t plain)
{
    const char *format = json_string_value(json_object_get(config, "format")), *key;
    json_t *modules;
    if (format != NULL && strcmp(format, "float-quantized") == 0)
        return QTYPE_F8S;
    if (format == NULL || strcmp(format, "pack-quantized") != 0)
        return QTYPE_I8S;
    json_object_foreach(json_object_get(config, "config_groups"), key, modules)
    {
        const json_t *weights = json_object_get(modules, "weights");
        const json_t *size = json_object_get(weights, "group_size");
        json_int_t group = json_is_integer(size) && json_integer_value(size) > 0
                               ? json_integer_value(size)
                               : 0;
        if (json_integer_value(json_object_get(weights, "num_bits")) == 4)
            return nibbles_type((uint64_t)group, plain, true);
    }
    return QTYPE_I8S;
}

/* As hf_quant.c decides, who has the sizes of matrices. */
static qtype_t words_type(const hf_quant_t *quant, qtype_t plain)
{
    return quant->bits == 4 ? nibbles_type(quant->group, plain, false) : QTYPE_I8S;
}

status_t source_outline_types(const source_t *source, source_outline_types_t *out)
{
    source_outline_types_t types;
    json_t *config = json_object_get(source->config, "quantization_config");
    const char *expert = json_string_value(json_object_get(source->config, "expert_dtype"));
    hf_quant_t *quant = MEM_NEW(hf_quant_t);
    /* A directory's path stands in the errors there, in front of "/config.json". */
    const char *slash = strrchr(source->path, '/');
    source_t folder = *source;
    folder.path = slash != NULL ? mem_strndup(source->path, (size_t)(slash - source->path))
                                : mem_strdup(".");
    quant->source = &folder;
    status_t status = hf_quant_read_config(quant);
    hf_method_t method = quant->method;
    if (status == STATUS_OK)
        status = read_plain(source, &types.plain);
    qtype_t words = status == STATUS_OK ? words_type(quant, types.plain) : QTYPE_I8S;
    free(folder.path);
    free(quant);
    TRY(status);
    types.matrix = types.experts = types.plain;
    switch (method) {
    case HF_NONE: break;
    case HF_AWQ: types.matrix = types.experts = words; break;
    case HF_GPTQ:
        /* Scales in the order of activation leave no runs of columns that share one. */
        types.matrix = types.experts =
            json_is_true(json_object_get(config, "desc_act")) ? QTYPE_F32 : words;
        break;
    case HF_FP8: types.matrix = types.experts = QTYPE_F8S; break;
    case HF_COMPRESSED: types.matrix = types.experts = compressed_type(config, types.plain); break;
    case HF_MXFP4: types.experts = QTYPE_MXFP4; break;
    }
    if (method == HF_FP8 && expert != NULL && strcmp(expert, "fp4") == 0)
        types.experts = QTYPE_MXFP4;
    *out = types;
    return STATUS_OK;
}
