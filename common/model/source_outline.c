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

/* Scales are taken for what plain tensors are, which hf_quant.c sees for itself. */
static qtype_t nibbles_type(const hf_quant_t *quant, qtype_t plain)
{
    if (quant->bits != 4 || plain == QTYPE_F32)
        return QTYPE_I8S;
    return qtype_z4_of(hf_quant_run(quant), plain == QTYPE_BF16, quant->method == HF_COMPRESSED);
}

static qtype_t compressed_type(const json_t *config, const hf_quant_t *quant, qtype_t plain)
{
    const char *format = json_string_value(json_object_get(config, "format"));
    if (format != NULL && strcmp(format, "float-quantized") == 0)
        return QTYPE_F8S;
    return format != NULL && strcmp(format, "pack-quantized") == 0 ? nibbles_type(quant, plain)
                                                                   : QTYPE_I8S;
}

static void words_types(const json_t *config, const hf_quant_t *quant,
                        source_outline_types_t *types)
{
    types->matrix = types->experts = nibbles_type(quant, types->plain);
    bool act_order = quant->method == HF_GPTQ && json_is_true(json_object_get(config, "desc_act"));
    if (quant->group == 0 || (quant->group % 32 == 0 && !act_order))
        return;
    /* Blocks of 32 columns whose scales differ; where there is one scale, the order is nothing. */
    types->one_group_max = quant->group;
    types->one_group = types->matrix;
    types->matrix = types->experts = QTYPE_F32;
}

static void matrix_types(const source_t *source, const hf_quant_t *quant,
                         source_outline_types_t *types)
{
    const json_t *config = json_object_get(source->config, "quantization_config");
    const char *expert = json_string_value(json_object_get(source->config, "expert_dtype"));
    types->matrix = types->experts = types->plain;
    switch (quant->method) {
    case HF_NONE: break;
    case HF_AWQ:
    case HF_GPTQ: words_types(config, quant, types); break;
    case HF_FP8:
        types->matrix = QTYPE_F8S;
        types->experts =
            expert != NULL && strcmp(expert, "fp4") == 0 ? QTYPE_MXFP4 : QTYPE_F8S;
        break;
    case HF_COMPRESSED:
        types->matrix = types->experts = compressed_type(config, quant, types->plain);
        break;
    case HF_MXFP4: types->experts = QTYPE_MXFP4; break;
    }
}

status_t source_outline_types(const source_t *source, source_outline_types_t *out)
{
    source_outline_types_t types = {0};
    hf_quant_t *quant = MEM_NEW(hf_quant_t);
    /* A directory's path stands in the errors there, in front of "/config.json". */
    const char *slash = strrchr(source->path, '/');
    source_t folder = *source;
    folder.path = slash != NULL ? mem_strndup(source->path, (size_t)(slash - source->path))
                                : mem_strdup(".");
    quant->source = &folder;
    status_t status = hf_quant_read_config(quant);
    if (status == STATUS_OK)
        status = read_plain(source, &types.plain);
    if (status == STATUS_OK)
        matrix_types(source, quant, &types);
    free(folder.path);
    free(quant);
    TRY(status);
    *out = types;
    return STATUS_OK;
}

qtype_t source_outline_matrix(const source_outline_types_t *types, bool expert, uint64_t columns)
{
    if (columns <= types->one_group_max)
        return types->one_group;
    return expert ? types->experts : types->matrix;
}
