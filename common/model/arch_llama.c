/* Llama 1 to 3 and the many models of their shape (SmolLM2, DeepSeek LLM and Coder, R1-Distill-Llama,
 * Mistral), and Mixtral, which is the same with experts.
 *
 * RMS norm, grouped-query attention, SwiGLU. GGUF files turn adjacent pairs (the converter permuted
 * the rows of attn_q and attn_k for that), directories halves. Llama 3's long-context rope is the
 * tensor rope_freqs in a GGUF, one factor a pair, and rope_scaling in a directory. Whatever else the
 * GGUF name `llama` has come to cover (sliding windows, scales of single models) is refused by its
 * key. */
#include <string.h>

#include "common/model/arch.h"

/* Values that change the arithmetic in a way that Shoal does not have. Zero means "off" in all. */
static status_t refuse_features(const arch_reader_t *r)
{
    static const char *const keys[] = {
        "attention.sliding_window", "attention.clamp_kqv", "attention.max_alibi_bias",
        "attention.scale",          "logit_scale",         "residual_scale",
        "embedding_scale",          "final_logit_softcapping",
    };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        TRY(arch_refuse(r, keys[i], NULL));
    static const char *const silu[] = {"silu", NULL};
    return arch_text_is(r, "hidden_act", silu);
}

static bool all_slide(const model_config_t *config, uint32_t layer)
{
    (void)config, (void)layer;
    return true;
}

static status_t read_shape(arch_reader_t *r)
{
    model_config_t *config = r->out;
    const arch_basics_t basics = {0};
    TRY(arch_read_basics(r, &basics));
    TRY(arch_read_heads(r, &basics));
    arch_rope_t rope = {
        .dim = config->head_dim,
        .dim_max = config->head_dim,
        .pairs = r->gguf != NULL ? MODEL_ROPE_PAIRS_ADJACENT : MODEL_ROPE_PAIRS_HALVES,
    };
    TRY(arch_read_rope(r, &rope));
    /* Mistral and Mixtral have windows; transformers' llama reads no such member. */
    const char *type = NULL;
    uint32_t window = 0;
    if (r->gguf == NULL)
        TRY(json_may_text(r->config, r->where, "model_type", &type, NULL));
    if (type != NULL && strcmp(type, "llama") != 0)
        TRY(arch_u32_or(r, NULL, "sliding_window", 1, UINT32_MAX, &window));
    TRY(arch_read_windows(r, window, all_slide));
    return refuse_features(r);
}

static status_t read_mixtral(arch_reader_t *r)
{
    TRY(read_shape(r));
    TRY(arch_read_experts(r));
    r->out->experts.score = MODEL_SCORE_SOFTMAX;
    r->out->experts.normalized = true;
    for (uint32_t i = 0; i < r->out->n_layers; i++)
        r->out->layers[i].ffn = MODEL_FFN_EXPERTS;
    return STATUS_OK;
}

static status_t read_llama(arch_reader_t *r)
{
    uint32_t n_experts = 0;
    TRY(arch_u32_or(r, "expert_count", NULL, 0, MODEL_EXPERTS_MAX, &n_experts));
    return n_experts > 0 ? read_mixtral(r) : read_shape(r);
}

const arch_t arch_llama = {
    .name = "llama",
    .gguf = "llama",
    .hf = {"llama", "mistral"},
    .read = read_llama,
    .groups = {&arch_ends, &arch_norms, &arch_attention, &arch_attention_bias_optional,
               &arch_output_bias_optional, &arch_dense, &arch_dense_bias_optional,
               &arch_router_mixtral, &arch_experts_mixtral},
};

const arch_t arch_mixtral = {
    .name = "mixtral",
    .hf = {"mixtral"},
    .read = read_mixtral,
    .groups = {&arch_ends, &arch_norms, &arch_attention, &arch_router_mixtral,
               &arch_experts_mixtral},
};
