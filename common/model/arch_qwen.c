/* Qwen2 (biases on q, k and v; R1-Distill-Qwen), Qwen2-MoE (experts beside a shared one with a gate
 * of its own), Qwen3 (norms of each head of q and k in place of the biases) and Qwen3-MoE. */
#include "common/model/arch.h"

/* From max_window_layers on. */
static bool late_layers_slide(const model_config_t *config, uint32_t layer)
{
    (void)config, (void)layer;
    return true;
}

static status_t read_windows(arch_reader_t *r)
{
    bool use = false;
    uint32_t window = 0, first = r->out->n_layers;
    TRY(arch_bool_or(r, NULL, "use_sliding_window", &use));
    TRY(arch_u32_or(r, NULL, "sliding_window", 0, UINT32_MAX, &window));
    TRY(arch_u32_or(r, NULL, "max_window_layers", 0, UINT32_MAX, &first));
    if (!use)
        return STATUS_OK;
    TRY(arch_read_windows(r, window, late_layers_slide));
    bool by_type = r->gguf == NULL && json_is_array(json_object_get(r->config, "layer_types"));
    for (uint32_t i = 0; !by_type && i < r->out->n_layers && i < first; i++)
        r->out->layers[i].window = 0;
    return STATUS_OK;
}

static status_t read_shape(arch_reader_t *r, uint32_t head_dim_default, bool no_ffn)
{
    static const char *const silu[] = {"silu", NULL};
    model_config_t *config = r->out;
    const arch_basics_t basics = {.head_dim_default = head_dim_default, .no_ffn = no_ffn};
    TRY(arch_read_basics(r, &basics));
    TRY(arch_read_heads(r, &basics));
    arch_rope_t rope = {.dim = config->head_dim, .dim_max = config->head_dim,
                        .pairs = MODEL_ROPE_PAIRS_HALVES};
    TRY(arch_read_rope(r, &rope));
    TRY(read_windows(r));
    return arch_text_is(r, "hidden_act", silu);
}

static status_t read_qwen2(arch_reader_t *r)
{
    return read_shape(r, 0, false);
}

static status_t read_qwen3(arch_reader_t *r)
{
    return read_shape(r, 128, false);
}

/* Every decoder_sparse_step-th layer has experts but those of mlp_only_layers. */
static status_t read_sparse_layers(arch_reader_t *r)
{
    model_config_t *config = r->out;
    const json_t *dense = NULL;
    uint32_t step = 1;
    TRY(arch_u32_or(r, NULL, "decoder_sparse_step", 1, UINT32_MAX, &step));
    for (uint32_t i = 0; i < config->n_layers; i++)
        config->layers[i].ffn = (i + 1) % step == 0 ? MODEL_FFN_EXPERTS : MODEL_FFN_DENSE;
    if (r->gguf != NULL)
        return STATUS_OK;
    TRY(json_may_array(r->config, r->where, "mlp_only_layers", &dense));
    for (size_t i = 0; i < json_array_size(dense); i++) {
        const json_t *layer = json_array_get(dense, i);
        if (!json_is_integer(layer) || json_integer_value(layer) < 0 ||
            json_integer_value(layer) >= config->n_layers)
            return fail(STATUS_INVALID, "%s: \"mlp_only_layers\": element %zu must be a layer, 0 to "
                        "%u", r->where, i, config->n_layers - 1);
        config->layers[json_integer_value(layer)].ffn = MODEL_FFN_DENSE;
    }
    return STATUS_OK;
}

static status_t read_qwen2moe(arch_reader_t *r)
{
    model_experts_t *experts = &r->out->experts;
    TRY(read_shape(r, 0, true));
    TRY(arch_read_experts(r));
    TRY(arch_u32(r, "expert_shared_feed_forward_length", "shared_expert_intermediate_size", 1,
                 MODEL_FFN_MAX, &experts->shared_ffn));
    experts->shared_gated = true;
    experts->score = MODEL_SCORE_SOFTMAX;
    TRY(arch_bool_or(r, NULL, "norm_topk_prob", &experts->normalized));
    return read_sparse_layers(r);
}

static status_t read_qwen3moe(arch_reader_t *r)
{
    model_experts_t *experts = &r->out->experts;
    TRY(read_shape(r, 128, true));
    TRY(arch_read_experts(r));
    experts->score = MODEL_SCORE_SOFTMAX;
    experts->normalized = r->gguf != NULL; /* which has no key for it */
    TRY(arch_bool_or(r, NULL, "norm_topk_prob", &experts->normalized));
    return read_sparse_layers(r);
}

/* Some quantizers store zero biases beside every matrix; a bias that is there is added. */
const arch_t arch_qwen2 = {
    .name = "qwen2",
    .gguf = "qwen2",
    .hf = {"qwen2"},
    .read = read_qwen2,
    .groups = {&arch_ends, &arch_norms, &arch_attention, &arch_attention_bias,
               &arch_output_bias_optional, &arch_dense, &arch_dense_bias_optional},
};

const arch_t arch_qwen2moe = {
    .name = "qwen2moe",
    .gguf = "qwen2moe",
    .hf = {"qwen2_moe"},
    .read = read_qwen2moe,
    .groups = {&arch_ends, &arch_norms, &arch_attention, &arch_attention_bias, &arch_dense,
               &arch_router, &arch_experts, &arch_shared_expert},
};

const arch_t arch_qwen3 = {
    .name = "qwen3",
    .gguf = "qwen3",
    .hf = {"qwen3"},
    .read = read_qwen3,
    .groups = {&arch_ends, &arch_norms, &arch_attention, &arch_attention_bias_optional,
               &arch_output_bias_optional, &arch_qk_norms, &arch_dense, &arch_dense_bias_optional},
};

const arch_t arch_qwen3moe = {
    .name = "qwen3moe",
    .gguf = "qwen3moe",
    .hf = {"qwen3_moe"},
    .read = read_qwen3moe,
    .groups = {&arch_ends, &arch_norms, &arch_attention, &arch_attention_bias_optional,
               &arch_output_bias_optional, &arch_qk_norms, &arch_dense, &arch_router,
               &arch_experts},
};
