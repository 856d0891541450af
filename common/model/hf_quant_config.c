/* quantization_config of config.json. */
#include <stdlib.h>
#include <string.h>

#include "common/base/json.h"
#include "common/model/hf_quant.h"

static status_t read_method(const json_t *config, const char *where, hf_method_t *out)
{
    static const struct {
        const char *name;
        hf_method_t method;
    } methods[] = {{"awq", HF_AWQ},
                   {"gptq", HF_GPTQ},
                   {"fp8", HF_FP8},
                   {"compressed-tensors", HF_COMPRESSED},
                   {"mxfp4", HF_MXFP4}};
    const char *name;
    TRY(json_get_text(config, where, "quant_method", &name, NULL));
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        if (strcmp(name, methods[i].name) == 0) {
            *out = methods[i].method;
            return STATUS_OK;
        }
    return fail(STATUS_UNSUPPORTED, "%s: the method \"%.32s\" cannot be read; awq, gptq, fp8, "
                "compressed-tensors and mxfp4 can", where, name);
}

/* A text that must be one of two when it is there. */
static status_t check_text(const json_t *config, const char *where, const char *key,
                           const char *first, const char *second, bool *is_second_out)
{
    const char *text = first;
    TRY(json_may_text(config, where, key, &text, NULL));
    if (strcmp(text, first) != 0 && strcmp(text, second) != 0)
        return fail(STATUS_UNSUPPORTED, "%s: \"%s\" is \"%.32s\"; %s and %s can be read", where,
                    key, text, first, second);
    *is_second_out = strcmp(text, second) == 0;
    return STATUS_OK;
}

static status_t read_groups(const json_t *config, const char *where, hf_quant_t *quant)
{
    TRY(json_get_u64(config, where, "bits", 1, 8, &quant->bits));
    bool four = quant->bits == 4, power = quant->bits == 2 || four || quant->bits == 8;
    if (quant->method == HF_AWQ ? !four : !power)
        return fail(STATUS_UNSUPPORTED, "%s: values of %llu bits; %s can be read", where,
                    (unsigned long long)quant->bits,
                    quant->method == HF_AWQ ? "4" : "2, 4 and 8");
    const json_t *size = json_object_get(config, "group_size");
    if (json_is_integer(size) && json_integer_value(size) == -1)
        return STATUS_OK;
    return json_get_u64(config, where, "group_size", 1, INT32_MAX, &quant->group);
}

static status_t read_blocks(const json_t *config, const char *where, hf_quant_t *quant)
{
    const json_t *sizes = NULL;
    bool other;
    TRY(check_text(config, where, "fmt", "e4m3", "float8_e4m3fn", &other));
    TRY(json_may_array(config, where, "weight_block_size", &sizes));
    if (sizes == NULL)
        return STATUS_OK;
    const json_t *rows = json_array_get(sizes, 0), *columns = json_array_get(sizes, 1);
    if (json_array_size(sizes) != 2 || !json_is_integer(rows) || !json_is_integer(columns) ||
        json_integer_value(rows) < 1 || json_integer_value(columns) < 1)
        return fail(STATUS_INVALID, "%s: weight_block_size must be two integers above 0", where);
    quant->block_rows = (uint64_t)json_integer_value(rows);
    quant->block_columns = (uint64_t)json_integer_value(columns);
    if (quant->block_columns % QTYPE_F8S_VALUES != 0)
        return fail(STATUS_UNSUPPORTED, "%s: scale blocks of %llu columns; multiples of %d can be "
                    "read", where, (unsigned long long)quant->block_columns, QTYPE_F8S_VALUES);
    return STATUS_OK;
}

/* Compressed-tensors says of each group of modules what its values are; they are alike. */
static void read_modules(const json_t *config, hf_quant_t *quant)
{
    const char *key;
    json_t *modules;
    json_object_foreach(json_object_get(config, "config_groups"), key, modules)
    {
        const json_t *weights = json_object_get(modules, "weights");
        const json_t *size = json_object_get(weights, "group_size");
        if (json_integer_value(json_object_get(weights, "num_bits")) != 4)
            continue;
        quant->bits = 4;
        if (json_is_integer(size) && json_integer_value(size) > 0)
            quant->group = (uint64_t)json_integer_value(size);
        return;
    }
}

static status_t read_compressed(const json_t *config, const char *where, hf_quant_t *quant)
{
    const char *format;
    TRY(json_get_text(config, where, "format", &format, NULL));
    static const char *const formats[] = {"int-quantized", "naive-quantized", "float-quantized",
                                          "pack-quantized"};
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (strcmp(format, formats[i]) == 0) {
            read_modules(config, quant);
            return STATUS_OK;
        }
    return fail(STATUS_UNSUPPORTED, "%s: the format \"%.32s\" cannot be read; int-quantized, "
                "float-quantized and pack-quantized can", where, format);
}

uint64_t hf_quant_run(const hf_quant_t *quant)
{
    return quant->group > 0 && quant->group % 32 == 0 ? quant->group : QTYPE_Z4_ROW_VALUES;
}

status_t hf_quant_read_config(hf_quant_t *quant)
{
    const json_t *model = quant->source->config, *config = NULL;
    const char *type = json_string_value(json_object_get(model, "model_type"));
    quant->gpt_oss = type != NULL && strcmp(type, "gpt_oss") == 0;
    quant->block_rows = quant->block_columns = 128;
    char *where = mem_format("%s/config.json: quantization_config", quant->source->path);
    bool second;
    status_t status = json_may_object(model, where, "quantization_config", &config);
    if (status == STATUS_OK && config != NULL)
        status = read_method(config, where, &quant->method);
    if (status == STATUS_OK && (quant->method == HF_AWQ || quant->method == HF_GPTQ))
        status = read_groups(config, where, quant);
    if (status == STATUS_OK && quant->method == HF_AWQ)
        status = check_text(config, where, "version", "gemm", "GEMM", &second);
    if (status == STATUS_OK && quant->method == HF_GPTQ) {
        status = check_text(config, where, "checkpoint_format", "gptq", "gptq_v2", &second);
        quant->zeros_are_less_one = status == STATUS_OK && !second;
    }
    if (status == STATUS_OK && quant->method == HF_FP8)
        status = read_blocks(config, where, quant);
    if (status == STATUS_OK && quant->method == HF_COMPRESSED)
        status = read_compressed(config, where, quant);
    free(where);
    return status;
}
