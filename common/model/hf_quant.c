/* Which tensors of a directory belong together as one quantized matrix. The tensors themselves say
 * it by their names, types and shapes; quantization_config says only what they leave open (the
 * method of ".qweight", the size of blocks, how zero points are counted). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/text.h"
#include "common/model/hf_convert.h"
#include "common/model/hf_quant.h"

/* --- parts --- */

/* The tensor called like `name` with its last `cut` bytes replaced. NULL when there is none. */
static source_raw_t *part(hf_quant_t *quant, const char *name, size_t cut, const char *ending)
{
    snprintf(quant->name, sizeof quant->name, "%.*s%s", (int)(strlen(name) - cut), name, ending);
    return source_raw(quant->source, quant->name);
}

static char *arena_name(hf_quant_t *quant, const char *name, size_t cut, const char *ending)
{
    size_t n = strlen(name) - cut, n_ending = strlen(ending);
    char *made = ARENA_NEW_ARRAY(&quant->source->arena, char, n + n_ending + 1);
    memcpy(made, name, n);
    memcpy(made + n, ending, n_ending + 1);
    return made;
}

static bool has_shape(const safetensors_tensor_t *tensor, uint32_t n_dims, uint64_t first,
                      uint64_t second)
{
    return tensor->n_dims == n_dims && tensor->shape[0] == first && tensor->shape[1] == second;
}

static bool is_scale(const safetensors_tensor_t *tensor)
{
    return tensor->dtype == SAFETENSORS_F32 || tensor->dtype == SAFETENSORS_F16 ||
           tensor->dtype == SAFETENSORS_BF16 || tensor->dtype == SAFETENSORS_F8_E8M0;
}

static status_t wrong_part(const hf_quant_t *quant, const safetensors_tensor_t *found,
                           safetensors_dtype_t dtype, uint64_t first, uint64_t second)
{
    return fail(STATUS_INVALID, "%s: tensor %.100s is %s of %u dimensions [%llu, %llu …]; %s "
                "[%llu, %llu] would fit its matrix", quant->source->path, found->name,
                safetensors_dtype_name(found->dtype), found->n_dims,
                (unsigned long long)found->shape[0], (unsigned long long)found->shape[1],
                safetensors_dtype_name(dtype), (unsigned long long)first,
                (unsigned long long)second);
}

static status_t no_part(const hf_quant_t *quant, const char *of)
{
    return fail(STATUS_INVALID, "%s: tensor %.100s has no %.100s", quant->source->path, of,
                quant->name);
}

/* Finds a part that must be there with this type and shape, and marks it. */
static status_t take_part(hf_quant_t *quant, const char *name, size_t cut, const char *ending,
                          safetensors_dtype_t dtype, uint64_t first, uint64_t second,
                          const safetensors_tensor_t **out)
{
    source_raw_t *raw = part(quant, name, cut, ending);
    if (raw == NULL)
        return no_part(quant, name);
    bool scale = dtype == SAFETENSORS_F32; /* any type of scale will do */
    if ((scale ? !is_scale(raw->tensor) : raw->tensor->dtype != dtype) ||
        !has_shape(raw->tensor, 2, first, second))
        return wrong_part(quant, raw->tensor, dtype, first, second);
    raw->used = true;
    *out = raw->tensor;
    return STATUS_OK;
}

/* Lists the matrix; `dims` are ours: in, out, experts. */
static status_t add(hf_quant_t *quant, const char *name, qtype_t type, uint32_t n_dims,
                    const uint64_t *dims, const char *stored, const source_parts_t *parts)
{
    status_t status;
    source_tensor_t *tensor = source_add(quant->source, name, type, n_dims, dims, &status);
    TRY(status);
    source_parts_t *own = ARENA_NEW_ARRAY(&quant->source->arena, source_parts_t, 1);
    *own = *parts;
    tensor->parts = own;
    tensor->stored = stored;
    const safetensors_tensor_t *all[] = {parts->weight, parts->scale, parts->zero,
                                         parts->group_of};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i] != NULL)
            tensor->stored_bytes += all[i]->bytes;
    return STATUS_OK;
}

/* --- AWQ and GPTQ --- */

/* Whether scales have the 16 bits that a Z4 holds. */
static bool scale_is_half(const safetensors_tensor_t *scale)
{
    return scale->dtype == SAFETENSORS_F16 || scale->dtype == SAFETENSORS_BF16;
}

/* Reads g_idx, each input's group. Of several groups *run_out is the largest of 1,024, 128, 64 and 32
 * whose aligned blocks have one group each, or 0. */
static status_t check_groups(hf_quant_t *quant, const safetensors_tensor_t *groups, uint64_t inputs,
                             uint64_t n_groups, uint64_t *run_out)
{
    static const uint64_t runs[4] = {32, 64, 128, 1024};
    int32_t first[4] = {0};
    uint32_t n_whole = 4;
    for (uint64_t k = 0; k < inputs; k++) {
        int32_t group;
        memcpy(&group, groups->data + k * sizeof group, sizeof group);
        if (group < 0 || (uint64_t)group >= n_groups)
            return fail(STATUS_INVALID, "%s: tensor %.100s: input %llu is of group %d; there are "
                        "%llu groups", quant->source->path, groups->name, (unsigned long long)k,
                        group, (unsigned long long)n_groups);
        for (uint32_t i = 0; i < n_whole; i++) {
            first[i] = k % runs[i] == 0 ? group : first[i];
            n_whole = group == first[i] ? n_whole : i;
        }
    }
    if (n_groups > 1)
        *run_out = n_whole > 0 ? runs[n_whole - 1] : 0;
    return STATUS_OK;
}

/* Values of 8 bits less any zero point but 128 do not fit a signed byte. */
static bool zeros_fit(const source_parts_t *parts)
{
    if (parts->bits < 8)
        return true;
    for (uint64_t i = 0; i < parts->zero->bytes; i++)
        if (parts->zero->data[i] + parts->zero_offset != 128)
            return false;
    return true;
}

static status_t take_gptq_groups(hf_quant_t *quant, const char *name, uint64_t inputs,
                                 uint64_t n_groups, source_parts_t *parts, uint64_t *run_out)
{
    source_raw_t *raw = part(quant, name, sizeof "qweight" - 1, "g_idx");
    if (raw == NULL)
        return STATUS_OK;
    if (raw->tensor->dtype != SAFETENSORS_I32 || !has_shape(raw->tensor, 1, inputs, 1))
        return wrong_part(quant, raw->tensor, SAFETENSORS_I32, inputs, 1);
    raw->used = true;
    parts->group_of = raw->tensor;
    return check_groups(quant, raw->tensor, inputs, n_groups, run_out);
}

static status_t take_words(hf_quant_t *quant, source_raw_t *raw)
{
    const safetensors_tensor_t *weight = raw->tensor;
    bool awq = quant->method == HF_AWQ;
    size_t cut = sizeof "qweight" - 1;
    uint32_t per_word = 32 / (uint32_t)quant->bits;
    if (weight->dtype != SAFETENSORS_I32 || weight->n_dims != 2)
        return wrong_part(quant, weight, SAFETENSORS_I32, weight->shape[0], weight->shape[1]);
    uint64_t inputs = weight->shape[0] * (awq ? 1 : per_word); /* no overflow: bytes fit 63 bits */
    uint64_t outputs = weight->shape[1] * (awq ? per_word : 1);
    uint64_t group = quant->group == 0 || quant->group > inputs ? inputs : quant->group;
    if (inputs == 0 || outputs == 0 || outputs % per_word != 0)
        return fail(STATUS_INVALID, "%s: tensor %.100s: %llu outputs of %llu inputs are no whole "
                    "words", quant->source->path, weight->name, (unsigned long long)outputs,
                    (unsigned long long)inputs);
    uint64_t n_groups = (inputs + group - 1) / group;
    source_parts_t parts = {.read = awq ? hf_read_awq : hf_read_gptq,
                            .weight = weight,
                            .group = group,
                            .bits = (uint32_t)quant->bits,
                            .zero_offset = quant->zeros_are_less_one};
    TRY(take_part(quant, weight->name, cut, "scales", SAFETENSORS_F32, n_groups, outputs,
                  &parts.scale));
    TRY(take_part(quant, weight->name, cut, "qzeros", SAFETENSORS_I32, n_groups,
                  outputs / per_word, &parts.zero));
    uint64_t run = n_groups == 1 || quant->group % 32 == 0 ? hf_quant_run(quant) : 0;
    if (!awq)
        TRY(take_gptq_groups(quant, weight->name, inputs, n_groups, &parts, &run));
    raw->used = true;
    static const char *const names[] = {"GPTQ 2 bit", "GPTQ 4 bit", "GPTQ 8 bit"};
    const char *stored = awq ? "AWQ 4 bit" : names[quant->bits / 4];
    if (run == 0 && parts.group_of != NULL)
        stored = "GPTQ, act-order";
    /* The fewest bytes that hold the values: nibbles, else bytes, else floats. */
    qtype_t type = run > 0 && zeros_fit(&parts) ? QTYPE_I8S : QTYPE_F32;
    if (run > 0 && quant->bits == 4 && scale_is_half(parts.scale))
        type = qtype_z4_of(run, parts.scale->dtype == SAFETENSORS_BF16, false);
    return add(quant, arena_name(quant, weight->name, cut, "weight"), type, 2,
               (uint64_t[]){inputs, outputs}, stored, &parts);
}

/* --- compressed-tensors --- */

/* A scale for the whole matrix, for each row, or for each group of a row. */
static status_t take_row_scales(hf_quant_t *quant, const char *name, size_t cut, const char *ending,
                                uint64_t rows, uint64_t columns, source_parts_t *parts)
{
    source_raw_t *raw = part(quant, name, cut, ending);
    if (raw == NULL)
        return no_part(quant, name);
    const safetensors_tensor_t *scale = raw->tensor;
    if (!is_scale(scale))
        return wrong_part(quant, scale, SAFETENSORS_F32, rows, 1);
    uint64_t per_row = scale->n_dims == 2 ? scale->shape[1] : 1;
    if (scale->n_values == 1) {
        parts->block_rows = rows;
        parts->group = columns;
    } else if (scale->n_dims == 0 || scale->n_dims > 2 || scale->shape[0] != rows ||
               per_row == 0 || columns % per_row != 0 ||
               (per_row > 1 && columns / per_row % 32 != 0)) {
        return wrong_part(quant, scale, SAFETENSORS_F32, rows, 1);
    } else {
        parts->block_rows = 1;
        parts->group = columns / per_row;
    }
    raw->used = true;
    parts->scale = scale;
    return STATUS_OK;
}

/* What would change the values and cannot be read is refused by name. */
static status_t refuse_part(hf_quant_t *quant, const char *name, size_t cut, const char *ending)
{
    if (part(quant, name, cut, ending) == NULL)
        return STATUS_OK;
    return fail(STATUS_UNSUPPORTED, "%s: tensor %.100s: compressed-tensors with zero points or "
                "act-order cannot be read", quant->source->path, quant->name);
}

static status_t take_packed(hf_quant_t *quant, source_raw_t *raw)
{
    const safetensors_tensor_t *weight = raw->tensor;
    size_t cut = sizeof "_packed" - 1;
    source_raw_t *shape = part(quant, weight->name, cut, "_shape");
    if (shape == NULL)
        return no_part(quant, weight->name);
    if (shape->tensor->dtype != SAFETENSORS_I64 || !has_shape(shape->tensor, 1, 2, 1))
        return wrong_part(quant, shape->tensor, SAFETENSORS_I64, 2, 1);
    uint64_t sizes[2]; /* out, in */
    memcpy(sizes, shape->tensor->data, sizeof sizes);
    uint32_t bits = 0;
    for (uint32_t candidate = 2; candidate <= 8 && bits == 0; candidate *= 2)
        if (sizes[1] > 0 && sizes[1] <= INT64_MAX / 8 &&
            (sizes[1] + 32 / candidate - 1) / (32 / candidate) == weight->shape[1])
            bits = candidate;
    if (weight->dtype != SAFETENSORS_I32 || weight->n_dims != 2 || sizes[0] != weight->shape[0] ||
        bits == 0)
        return wrong_part(quant, weight, SAFETENSORS_I32, sizes[0], sizes[1] / 8);
    TRY(refuse_part(quant, weight->name, cut, "_zero_point"));
    TRY(refuse_part(quant, weight->name, cut, "_g_idx"));
    source_parts_t parts = {.read = hf_read_signed, .in_order = true, .weight = weight,
                            .bits = bits};
    TRY(take_row_scales(quant, weight->name, cut, "_scale", sizes[0], sizes[1], &parts));
    shape->used = raw->used = true;
    static const char *const names[] = {"INT2 packed", "INT4 packed", "INT8 packed"};
    qtype_t type = QTYPE_I8S;
    if (bits == 4 && scale_is_half(parts.scale))
        type = qtype_z4_of(parts.group == sizes[1] ? hf_quant_run(quant) : parts.group,
                           parts.scale->dtype == SAFETENSORS_BF16, true);
    return add(quant, arena_name(quant, weight->name, cut, ""), type, 2,
               (uint64_t[]){sizes[1], sizes[0]}, names[bits / 4], &parts);
}

static status_t take_int8(hf_quant_t *quant, source_raw_t *raw)
{
    const safetensors_tensor_t *weight = raw->tensor;
    if (weight->n_dims != 2)
        return wrong_part(quant, weight, SAFETENSORS_I8, weight->shape[0], weight->shape[1]);
    TRY(refuse_part(quant, weight->name, 0, "_zero_point"));
    TRY(refuse_part(quant, weight->name, 0, "_g_idx"));
    source_parts_t parts = {.read = hf_read_signed, .in_order = true, .weight = weight, .bits = 8};
    TRY(take_row_scales(quant, weight->name, 0, "_scale", weight->shape[0], weight->shape[1],
                        &parts));
    raw->used = true;
    return add(quant, weight->name, QTYPE_I8S, 2, (uint64_t[]){weight->shape[1], weight->shape[0]},
               "INT8", &parts);
}

/* --- FP8 and FP4 --- */

static status_t take_fp8(hf_quant_t *quant, source_raw_t *raw)
{
    const safetensors_tensor_t *weight = raw->tensor;
    const char *name = weight->name;
    if (weight->n_dims != 2)
        return wrong_part(quant, weight, SAFETENSORS_F8_E4M3, weight->shape[0], weight->shape[1]);
    uint64_t rows = weight->shape[0], columns = weight->shape[1];
    source_parts_t parts = {.read = hf_read_fp8, .in_order = true, .weight = weight,
                            .block_rows = rows, .group = columns};
    static const struct {
        size_t cut;
        const char *ending;
    } scales[] = {{0, "_scale_inv"}, {sizeof "weight" - 1, "scale"}, {0, "_scale"}};
    for (size_t i = 0; i < sizeof scales / sizeof *scales && parts.scale == NULL; i++) {
        if (scales[i].cut > 0 && !text_ends_with(name, ".weight"))
            continue;
        source_raw_t *scale = part(quant, name, scales[i].cut, scales[i].ending);
        if (scale == NULL)
            continue;
        uint64_t high = rows / quant->block_rows + (rows % quant->block_rows != 0);
        uint64_t wide = columns / quant->block_columns + (columns % quant->block_columns != 0);
        if (is_scale(scale->tensor) && has_shape(scale->tensor, 2, high, wide)) {
            scale->used = true;
            parts.scale = scale->tensor;
            parts.block_rows = quant->block_rows;
            parts.group = quant->block_columns;
        } else if (scale->tensor->n_values == 1 || has_shape(scale->tensor, 2, rows, 1)) {
            TRY(take_row_scales(quant, name, scales[i].cut, scales[i].ending, rows, columns,
                                &parts));
        } else {
            return wrong_part(quant, scale->tensor, SAFETENSORS_F32, high, wide);
        }
    }
    raw->used = true;
    return add(quant, name, QTYPE_F8S, 2, (uint64_t[]){columns, rows}, "FP8 e4m3", &parts);
}

/* DeepSeek V4's experts: pairs of e2m1 codes in a byte. */
static status_t take_fp4(hf_quant_t *quant, source_raw_t *raw, source_raw_t *scale)
{
    const safetensors_tensor_t *weight = raw->tensor;
    if (weight->n_dims != 2 || weight->shape[1] % 16 != 0)
        return wrong_part(quant, weight, SAFETENSORS_I8, weight->shape[0], weight->shape[1]);
    if (!has_shape(scale->tensor, 2, weight->shape[0], weight->shape[1] / 16))
        return wrong_part(quant, scale->tensor, SAFETENSORS_F8_E8M0, weight->shape[0],
                          weight->shape[1] / 16);
    source_parts_t parts = {.read = hf_read_fp4, .in_order = true, .weight = weight,
                            .scale = scale->tensor};
    raw->used = scale->used = true;
    return add(quant, weight->name, QTYPE_MXFP4, 2,
               (uint64_t[]){weight->shape[1] * 2, weight->shape[0]}, "FP4 e2m1", &parts);
}

/* gpt-oss: [experts, out, in/32, 16] codes and [experts, out, in/32] exponents. */
static status_t take_mxfp4(hf_quant_t *quant, source_raw_t *raw, source_raw_t *scale)
{
    const safetensors_tensor_t *weight = raw->tensor;
    const uint64_t *shape = weight->shape;
    bool good = weight->n_dims == 4 && shape[3] == 16 && shape[2] <= INT64_MAX / 32;
    if (!good)
        return wrong_part(quant, weight, SAFETENSORS_U8, shape[0], shape[1]);
    if (scale->tensor->n_dims != 3 || memcmp(scale->tensor->shape, shape, 3 * sizeof *shape) != 0)
        return wrong_part(quant, scale->tensor, SAFETENSORS_U8, shape[0], shape[1]);
    source_parts_t parts = {.read = hf_read_fp4, .in_order = true, .weight = weight,
                            .scale = scale->tensor};
    raw->used = scale->used = true;
    return add(quant, arena_name(quant, weight->name, sizeof "_blocks" - 1, ""), QTYPE_MXFP4, 3,
               (uint64_t[]){shape[2] * 32, shape[1], shape[0]}, "MXFP4", &parts);
}

static status_t take_turned(hf_quant_t *quant, source_raw_t *raw, qtype_t type)
{
    const safetensors_tensor_t *weight = raw->tensor;
    source_parts_t parts = {.read = hf_read_turned, .weight = weight};
    raw->used = true;
    return add(quant, weight->name, type, 3,
               (uint64_t[]){weight->shape[1], weight->shape[2], weight->shape[0]},
               safetensors_dtype_name(weight->dtype), &parts);
}

/* --- static scales --- */

/* What publishers of static quantization store beside the matrices: the scale that an activation is
 * rounded with before the matmul, and those of an 8-bit cache. They change no weight. Nothing here
 * rounds activations or the cache to such codes (the references do not either: transformers
 * decompresses and multiplies), so they are taken and left aside. */
static bool is_static_scale(hf_quant_t *quant, const safetensors_tensor_t *tensor)
{
    static const char *const inputs[] = {"input_scale", "input_zero_point", "input_global_scale"};
    static const char *const caches[] = {
        ".self_attn.q_scale", ".self_attn.k_scale", ".self_attn.v_scale", ".k_proj.k_scale",
        ".v_proj.v_scale", ".k_proj.output_scale", ".v_proj.output_scale",
    };
    if ((quant->method != HF_FP8 && quant->method != HF_COMPRESSED) || tensor->n_dims > 2)
        return false;
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) {
        size_t cut = strlen(inputs[i]);
        if (text_ends_with(tensor->name, inputs[i]) && tensor->n_values == 1 &&
            (part(quant, tensor->name, cut, "weight") != NULL ||
             part(quant, tensor->name, cut, "weight_packed") != NULL))
            return true;
    }
    for (size_t i = 0; i < sizeof caches / sizeof *caches; i++)
        if (text_ends_with(tensor->name, caches[i]))
            return true;
    return false;
}

/* --- all of them --- */

static status_t take_bytes(hf_quant_t *quant, source_raw_t *raw)
{
    const char *name = raw->tensor->name;
    if (!text_ends_with(name, ".weight"))
        return STATUS_OK;
    source_raw_t *scale = part(quant, name, sizeof "weight" - 1, "scale");
    if (scale != NULL && scale->tensor->dtype == SAFETENSORS_F8_E8M0)
        return take_fp4(quant, raw, scale);
    return part(quant, name, 0, "_scale") != NULL ? take_int8(quant, raw) : STATUS_OK;
}

static status_t take(hf_quant_t *quant, source_raw_t *raw)
{
    const safetensors_tensor_t *tensor = raw->tensor;
    const char *name = tensor->name;
    bool words = quant->method == HF_AWQ || quant->method == HF_GPTQ;
    if (is_static_scale(quant, tensor)) {
        raw->used = true;
        return STATUS_OK;
    }
    bool experts = text_ends_with(name, "experts.gate_up_proj") ||
                   text_ends_with(name, "experts.down_proj");
    switch (tensor->dtype) {
    case SAFETENSORS_I32:
        if (words && text_ends_with(name, ".qweight"))
            return take_words(quant, raw);
        if (quant->method == HF_COMPRESSED && text_ends_with(name, ".weight_packed"))
            return take_packed(quant, raw);
        return STATUS_OK;
    case SAFETENSORS_I8: return take_bytes(quant, raw);
    case SAFETENSORS_F8_E4M3: return take_fp8(quant, raw);
    case SAFETENSORS_U8:
        if (text_ends_with(name, "_blocks")) {
            source_raw_t *scale = part(quant, name, sizeof "_blocks" - 1, "_scales");
            if (scale != NULL && scale->tensor->dtype == SAFETENSORS_U8)
                return take_mxfp4(quant, raw, scale);
        }
        return STATUS_OK;
    default: break;
    }
    if (!quant->gpt_oss || !experts || tensor->n_dims != 3)
        return STATUS_OK;
    switch (tensor->dtype) {
    case SAFETENSORS_BF16: return take_turned(quant, raw, QTYPE_BF16);
    case SAFETENSORS_F16: return take_turned(quant, raw, QTYPE_F16);
    case SAFETENSORS_F32: return take_turned(quant, raw, QTYPE_F32);
    default: return STATUS_OK;
    }
}

status_t hf_quant_take(source_t *source)
{
    hf_quant_t *quant = MEM_NEW(hf_quant_t);
    quant->source = source;
    status_t status = hf_quant_read_config(quant);
    for (size_t i = 0; i < source->n_raws && status == STATUS_OK; i++)
        if (!source->raws[i].used)
            status = take(quant, &source->raws[i]);
    free(quant);
    return status;
}
