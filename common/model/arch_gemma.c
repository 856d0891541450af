/* Gemma 2 and 3 (text): norms before and behind each block, stored minus one in directories (the
 * GGUF converter adds it), embeddings scaled by the root of their width, windows on some layers.
 * Gemma 2 caps scores and logits; Gemma 3 norms the heads of q and k and turns the layers with a
 * window by a rope of their own. */
#include <math.h>

#include "common/model/arch.h"

enum { GEMMA2_27B_LAYERS = 46, GEMMA3_27B_LAYERS = 62, GEMMA3_PATTERN = 6 };

static status_t read_shape(arch_reader_t *r)
{
    static const char *const gelu[] = {"gelu_pytorch_tanh", "gelu_tanh", NULL};
    model_config_t *config = r->out;
    const arch_basics_t basics = {.tied_default = true, .head_dim_default = 256};
    TRY(arch_read_basics(r, &basics));
    TRY(arch_read_heads(r, &basics));
    config->activation = MODEL_ACTIVATION_GELU_TANH;
    config->norm_plus_one = r->gguf == NULL;
    config->embedding_scale = sqrtf((float)config->hidden);
    /* What a configuration does not say is what the models' own code says; null takes a cap away. */
    float scalar = r->gguf == NULL ? 256 : 0;
    TRY(arch_f32_or(r, NULL, "query_pre_attn_scalar", 1e-3f, 1e9f, &scalar));
    if (scalar != 0)
        config->attention_scale = 1.0f / sqrtf(scalar);
    TRY(arch_refuse(r, "attention.scale", NULL));
    TRY(arch_refuse(r, NULL, "attention_bias"));
    TRY(arch_refuse(r, NULL, "use_bidirectional_attention"));
    return arch_text_is(r, "hidden_activation", gelu);
}

/* The 27B models scale by hidden / heads in place of the size of a head. GGUF files have no key for
 * it; the number of layers tells. */
static void scale_27b(arch_reader_t *r, uint32_t n_layers)
{
    model_config_t *config = r->out;
    if (r->gguf != NULL && config->n_layers == n_layers)
        config->attention_scale = 1.0f / sqrtf((float)config->hidden / (float)config->n_heads);
}

/* Whether the files leave a value to its default. */
static bool is_open(const arch_reader_t *r, const char *hf)
{
    return r->gguf != NULL || json_object_get(r->config, hf) == NULL;
}

static bool even_layers_slide(const model_config_t *config, uint32_t layer)
{
    (void)config;
    return layer % 2 == 0;
}

static status_t read_gemma2(arch_reader_t *r)
{
    model_config_t *config = r->out;
    TRY(read_shape(r));
    scale_27b(r, GEMMA2_27B_LAYERS);
    arch_rope_t rope = {.dim = config->head_dim, .dim_max = config->head_dim,
                        .pairs = MODEL_ROPE_PAIRS_HALVES};
    TRY(arch_read_rope(r, &rope));
    config->attention_softcap = is_open(r, "attn_logit_softcapping") ? 50 : 0;
    config->logit_softcap = is_open(r, "final_logit_softcapping") ? 30 : 0;
    TRY(arch_f32_or(r, "attn_logit_softcapping", "attn_logit_softcapping", 0, 1e6f,
                    &config->attention_softcap));
    TRY(arch_f32_or(r, "final_logit_softcapping", "final_logit_softcapping", 0, 1e6f,
                    &config->logit_softcap));
    uint32_t window = 4096;
    TRY(arch_u32_or(r, "attention.sliding_window", "sliding_window", 1, UINT32_MAX, &window));
    return arch_read_windows(r, window, even_layers_slide);
}

static bool all_slide(const model_config_t *config, uint32_t layer)
{
    (void)config, (void)layer;
    return true;
}

static status_t read_gemma3(arch_reader_t *r)
{
    model_config_t *config = r->out;
    uint32_t window = 4096, pattern = GEMMA3_PATTERN;
    float local_base = 10000;
    TRY(read_shape(r));
    scale_27b(r, GEMMA3_27B_LAYERS);
    arch_rope_t rope = {.dim = config->head_dim, .dim_max = config->head_dim,
                        .pairs = MODEL_ROPE_PAIRS_HALVES, .base_default = 1000000,
                        .layer_type = "full_attention"};
    TRY(arch_read_rope(r, &rope));
    TRY(arch_f32_or(r, "rope.freq_base_swa", "rope_local_base_freq", 1, 1e12f, &local_base));
    /* Only what is said of the layers with a window alone is about them. */
    rope.index = 1;
    rope.base_default = local_base;
    rope.base_key = "rope_local_base_freq";
    rope.layer_type = "sliding_attention";
    rope.unscaled = true;
    TRY(arch_read_rope(r, &rope));
    if (r->gguf != NULL)
        config->ropes[1].base = local_base;
    TRY(arch_refuse(r, "attn_logit_softcapping", "attn_logit_softcapping"));
    TRY(arch_f32_or(r, "final_logit_softcapping", "final_logit_softcapping", 0, 1e6f,
                    &config->logit_softcap));
    TRY(arch_u32_or(r, "attention.sliding_window", "sliding_window", 1, UINT32_MAX, &window));
    TRY(arch_u32_or(r, NULL, "sliding_window_pattern", 1, UINT32_MAX, &pattern));
    TRY(arch_read_windows(r, window, all_slide));
    bool by_type = r->gguf == NULL && json_is_array(json_object_get(r->config, "layer_types"));
    for (uint32_t i = 0; i < config->n_layers; i++) {
        if (!by_type && (i + 1) % pattern == 0)
            config->layers[i].window = 0;
        config->layers[i].rope = config->layers[i].window != 0;
    }
    return STATUS_OK;
}

const arch_t arch_gemma2 = {
    .name = "gemma2",
    .gguf = "gemma2",
    .hf = {"gemma2"},
    .read = read_gemma2,
    .groups = {&arch_ends, &arch_norms_around, &arch_attention, &arch_dense},
};

const arch_t arch_gemma3 = {
    .name = "gemma3",
    .gguf = "gemma3",
    .hf = {"gemma3_text"},
    .read = read_gemma3,
    .groups = {&arch_ends, &arch_norms_around, &arch_attention, &arch_qk_norms, &arch_dense},
};
