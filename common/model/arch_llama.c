/* Architecture `llama` of GGUF: Llama 1 to 3, SmolLM2 and the many models of their shape.
 *
 * RMS norm, grouped-query attention, rope over adjacent pairs (the converter permuted the rows of
 * attn_q and attn_k for that), SwiGLU. Llama 3's long-context rope is the tensor rope_freqs: one
 * factor a pair, computed by the converter. Whatever else the name `llama` has come to cover
 * (experts, sliding windows, yarn, scales of single models) is refused by its key. */
#include <math.h>

#include "common/model/arch.h"

#define ARCH "llama"

static const arch_tensor_t tensors[] = {
    {MODEL_TOKEN_EMBD, "token_embd.weight", ARCH_HIDDEN, ARCH_VOCAB, MODEL_CUT_NONE},
    {MODEL_OUTPUT_NORM, "output_norm.weight", ARCH_HIDDEN, ARCH_ONE, MODEL_CUT_NONE,
     .f32_only = true},
    {MODEL_OUTPUT, "output.weight", ARCH_HIDDEN, ARCH_VOCAB, MODEL_CUT_ROWS_VOCAB,
     .optional = true},
    {MODEL_ROPE_FACTORS, "rope_freqs.weight", ARCH_ROPE_PAIRS, ARCH_ONE, MODEL_CUT_NONE,
     .optional = true, .f32_only = true},
    {MODEL_ATTN_NORM, "blk.%u.attn_norm.weight", ARCH_HIDDEN, ARCH_ONE, MODEL_CUT_NONE,
     .per_layer = true, .f32_only = true},
    {MODEL_ATTN_Q, "blk.%u.attn_q.weight", ARCH_HIDDEN, ARCH_HEADS, MODEL_CUT_ROWS_HEADS,
     .per_layer = true},
    {MODEL_ATTN_K, "blk.%u.attn_k.weight", ARCH_HIDDEN, ARCH_KV_HEADS, MODEL_CUT_ROWS_KV_HEADS,
     .per_layer = true},
    {MODEL_ATTN_V, "blk.%u.attn_v.weight", ARCH_HIDDEN, ARCH_KV_HEADS, MODEL_CUT_ROWS_KV_HEADS,
     .per_layer = true},
    {MODEL_ATTN_OUTPUT, "blk.%u.attn_output.weight", ARCH_HEADS, ARCH_HIDDEN,
     MODEL_CUT_COLUMNS_HEADS, .per_layer = true},
    {MODEL_FFN_NORM, "blk.%u.ffn_norm.weight", ARCH_HIDDEN, ARCH_ONE, MODEL_CUT_NONE,
     .per_layer = true, .f32_only = true},
    {MODEL_FFN_GATE, "blk.%u.ffn_gate.weight", ARCH_HIDDEN, ARCH_FFN, MODEL_CUT_ROWS_FFN,
     .per_layer = true},
    {MODEL_FFN_UP, "blk.%u.ffn_up.weight", ARCH_HIDDEN, ARCH_FFN, MODEL_CUT_ROWS_FFN,
     .per_layer = true},
    {MODEL_FFN_DOWN, "blk.%u.ffn_down.weight", ARCH_FFN, ARCH_HIDDEN, MODEL_CUT_COLUMNS_FFN,
     .per_layer = true},
};

/* Keys that change the arithmetic in a way that Shoal does not have. Zero means "off" in all. */
static status_t refuse_features(const gguf_t *gguf)
{
    static const char *const integers[] = {"expert_count", "attention.sliding_window"};
    static const char *const reals[] = {
        "attention.clamp_kqv",    "attention.max_alibi_bias", "attention.scale", "logit_scale",
        "residual_scale",         "embedding_scale",          "rope.scaling.attn_factor",
        "final_logit_softcapping",
    };
    for (size_t i = 0; i < sizeof integers / sizeof *integers; i++) {
        uint32_t value = 0;
        TRY(arch_read_u32_or(gguf, ARCH, integers[i], 0, UINT32_MAX, &value));
        if (value != 0)
            return fail(STATUS_UNSUPPORTED, "%s: key " ARCH ".%s is %u; only models without it are "
                        "supported", gguf_path(gguf), integers[i], value);
    }
    for (size_t i = 0; i < sizeof reals / sizeof *reals; i++) {
        float value = 0;
        TRY(arch_read_f32_or(gguf, ARCH, reals[i], -1e30f, 1e30f, &value));
        if (value != 0)
            return fail(STATUS_UNSUPPORTED, "%s: key " ARCH ".%s is %g; only models without it are "
                        "supported", gguf_path(gguf), reals[i], (double)value);
    }
    return STATUS_OK;
}

static status_t read_heads(const gguf_t *gguf, model_config_t *config)
{
    TRY(arch_read_u32(gguf, ARCH, "attention.head_count", 1, MODEL_HEADS_MAX, &config->n_heads));
    config->n_kv_heads = config->n_heads;
    TRY(arch_read_u32_or(gguf, ARCH, "attention.head_count_kv", 1, config->n_heads,
                         &config->n_kv_heads));
    if (config->n_heads % config->n_kv_heads != 0)
        return fail(STATUS_INVALID, "%s: %u query heads cannot share %u key/value heads evenly",
                    gguf_path(gguf), config->n_heads, config->n_kv_heads);
    config->head_dim = 0;
    TRY(arch_read_u32_or(gguf, ARCH, "attention.key_length", 2, MODEL_HEAD_DIM_MAX,
                         &config->head_dim));
    if (config->head_dim == 0) {
        if (config->hidden % config->n_heads != 0)
            return fail(STATUS_INVALID, "%s: " ARCH ".embedding_length %u is no multiple of %u "
                        "heads and there is no " ARCH ".attention.key_length", gguf_path(gguf),
                        config->hidden, config->n_heads);
        config->head_dim = config->hidden / config->n_heads;
    }
    if (config->head_dim % 2 != 0 || config->head_dim > MODEL_HEAD_DIM_MAX)
        return fail(STATUS_INVALID, "%s: heads of %u values; an even number up to %d would be "
                    "right", gguf_path(gguf), config->head_dim, MODEL_HEAD_DIM_MAX);
    uint32_t value_length = config->head_dim;
    TRY(arch_read_u32_or(gguf, ARCH, "attention.value_length", 1, UINT32_MAX, &value_length));
    if (value_length != config->head_dim)
        return fail(STATUS_UNSUPPORTED, "%s: value heads of %u beside key heads of %u; only equal "
                    "ones are supported", gguf_path(gguf), value_length, config->head_dim);
    config->attention_scale = 1.0f / sqrtf((float)config->head_dim);
    return STATUS_OK;
}

static status_t read_rope_scaling(const gguf_t *gguf, model_config_t *config)
{
    float factor = 1;
    TRY(arch_read_f32_or(gguf, ARCH, "rope.scale_linear", 1e-3f, 1e6f, &factor));
    gguf_text_t type = {"none", 4};
    if (gguf_find(gguf, ARCH ".rope.scaling.type") != NULL)
        TRY(gguf_read_text(gguf, ARCH ".rope.scaling.type", &type));
    if (gguf_text_is(type, "linear"))
        TRY(arch_read_f32(gguf, ARCH, "rope.scaling.factor", 1e-3f, 1e6f, &factor));
    else if (!gguf_text_is(type, "none"))
        return fail(STATUS_UNSUPPORTED, "%s: rope scaling \"%.*s\"; none, linear and the tensor "
                    "rope_freqs.weight are supported", gguf_path(gguf),
                    (int)(type.size < 32 ? type.size : 32), type.data);
    config->rope_scale = 1.0f / factor;
    return STATUS_OK;
}

static status_t read_rope(const gguf_t *gguf, model_config_t *config)
{
    config->rope_pairs = MODEL_ROPE_PAIRS_ADJACENT;
    config->rope_dim = config->head_dim;
    TRY(arch_read_u32_or(gguf, ARCH, "rope.dimension_count", 2, config->head_dim,
                         &config->rope_dim));
    if (config->rope_dim % 2 != 0)
        return fail(STATUS_INVALID, "%s: key " ARCH ".rope.dimension_count is %u; an even number "
                    "would be right", gguf_path(gguf), config->rope_dim);
    config->rope_base = 10000;
    TRY(arch_read_f32_or(gguf, ARCH, "rope.freq_base", 1, 1e12f, &config->rope_base));
    return read_rope_scaling(gguf, config);
}

static status_t read_config(const gguf_t *gguf, model_config_t *config)
{
    TRY(arch_read_u32(gguf, ARCH, "block_count", 1, MODEL_LAYERS_MAX, &config->n_layers));
    TRY(arch_read_u32(gguf, ARCH, "embedding_length", 1, MODEL_HIDDEN_MAX, &config->hidden));
    TRY(arch_read_u32(gguf, ARCH, "feed_forward_length", 1, MODEL_FFN_MAX, &config->ffn));
    TRY(arch_read_u32(gguf, ARCH, "context_length", 1, MODEL_CONTEXT_MAX, &config->context_train));
    TRY(arch_read_f32(gguf, ARCH, "attention.layer_norm_rms_epsilon", 1e-12f, 1e-1f,
                      &config->norm_eps));
    TRY(read_heads(gguf, config));
    TRY(read_rope(gguf, config));
    return refuse_features(gguf);
}

const arch_t arch_llama = {ARCH, read_config, tensors, sizeof tensors / sizeof *tensors};
