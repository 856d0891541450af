/* gpt-oss: grouped attention with biases and a learned sink a head, windows on every other layer,
 * experts with biases whose gate and up are clamped and, in directories, lie in turns in one tensor;
 * the router weighs the chosen alone. Yarn without rounded edges. */
#include <math.h>

#include "common/model/arch.h"

#define HF "model.layers.%u."

static bool even_layers_slide(const model_config_t *config, uint32_t layer)
{
    (void)config;
    return layer % 2 == 0;
}

static status_t read_gpt_oss(arch_reader_t *r)
{
    model_config_t *config = r->out;
    const arch_basics_t basics = {.head_dim_default = 64, .no_ffn = r->gguf != NULL};
    uint32_t window = 0;
    TRY(arch_read_basics(r, &basics));
    TRY(arch_read_heads(r, &basics));
    arch_rope_t rope = {.dim = config->head_dim, .dim_max = config->head_dim,
                        .pairs = MODEL_ROPE_PAIRS_HALVES, .base_default = 150000,
                        .untruncated = r->gguf != NULL};
    TRY(arch_read_rope(r, &rope));
    TRY(arch_u32(r, "attention.sliding_window", "sliding_window", 1, UINT32_MAX, &window));
    TRY(arch_read_windows(r, window, even_layers_slide));
    TRY(arch_read_experts(r));
    config->experts.score = MODEL_SCORE_SOFTMAX_CHOSEN;
    config->experts.interleaved = r->gguf == NULL;
    config->activation = MODEL_ACTIVATION_CLAMP_SWIGLU;
    config->activation_limit = 7;
    TRY(arch_f32_or(r, NULL, "swiglu_limit", 1e-3f, 1e6f, &config->activation_limit));
    for (uint32_t i = 0; i < config->n_layers; i++)
        config->layers[i].ffn = MODEL_FFN_EXPERTS;
    return STATUS_OK;
}

static const arch_tensor_t tensors[] = {
    {MODEL_ATTN_NORM, "blk.%u.attn_norm.weight", HF "input_layernorm.weight", ARCH_HIDDEN,
     .when = ARCH_LAYER, .vector = true},
    {MODEL_FFN_NORM, "blk.%u.post_attention_norm.weight", HF "post_attention_layernorm.weight",
     ARCH_HIDDEN, .when = ARCH_LAYER, .vector = true},
    {MODEL_ATTN_SINKS, "blk.%u.attn_sinks.weight", HF "self_attn.sinks", ARCH_N_HEADS,
     .when = ARCH_GROUPED, .vector = true},
    {MODEL_ROUTER, "blk.%u.ffn_gate_inp.weight", HF "mlp.router.weight", ARCH_HIDDEN, ARCH_EXPERTS,
     .when = ARCH_ROUTED},
    {MODEL_ROUTER_BIAS, "blk.%u.ffn_gate_inp.bias", HF "mlp.router.bias", ARCH_EXPERTS,
     .when = ARCH_ROUTED, .vector = true},
    {MODEL_EXPERT_GATE, "blk.%u.ffn_gate_exps.weight", NULL, ARCH_HIDDEN, ARCH_EXPERT_FFN,
     ARCH_EXPERTS, .cut = MODEL_CUT_ROWS_EXPERT, .when = ARCH_ROUTED},
    {MODEL_EXPERT_UP, "blk.%u.ffn_up_exps.weight", NULL, ARCH_HIDDEN, ARCH_EXPERT_FFN, ARCH_EXPERTS,
     .cut = MODEL_CUT_ROWS_EXPERT, .when = ARCH_ROUTED},
    {MODEL_EXPERT_DOWN, "blk.%u.ffn_down_exps.weight", HF "mlp.experts.down_proj", ARCH_EXPERT_FFN,
     ARCH_HIDDEN, ARCH_EXPERTS, .cut = MODEL_CUT_COLUMNS_EXPERT, .when = ARCH_ROUTED},
    {MODEL_EXPERT_GATE_UP, NULL, HF "mlp.experts.gate_up_proj", ARCH_HIDDEN, ARCH_EXPERT_GATE_UP,
     ARCH_EXPERTS, .cut = MODEL_CUT_ROWS_EXPERT, .when = ARCH_ROUTED},
    {MODEL_EXPERT_GATE_BIAS, "blk.%u.ffn_gate_exps.bias", NULL, ARCH_EXPERT_FFN, ARCH_EXPERTS,
     .cut = MODEL_CUT_ROWS_EXPERT, .when = ARCH_ROUTED, .vector = true},
    {MODEL_EXPERT_UP_BIAS, "blk.%u.ffn_up_exps.bias", NULL, ARCH_EXPERT_FFN, ARCH_EXPERTS,
     .cut = MODEL_CUT_ROWS_EXPERT, .when = ARCH_ROUTED, .vector = true},
    {MODEL_EXPERT_GATE_UP_BIAS, NULL, HF "mlp.experts.gate_up_proj_bias", ARCH_EXPERT_GATE_UP,
     ARCH_EXPERTS, .cut = MODEL_CUT_ROWS_EXPERT, .when = ARCH_ROUTED, .vector = true},
    {MODEL_EXPERT_DOWN_BIAS, "blk.%u.ffn_down_exps.bias", HF "mlp.experts.down_proj_bias",
     ARCH_HIDDEN, ARCH_EXPERTS, .when = ARCH_ROUTED, .vector = true},
    {MODEL_ATTN_OUTPUT_BIAS, "blk.%u.attn_output.bias", HF "self_attn.o_proj.bias", ARCH_HIDDEN,
     .when = ARCH_GROUPED, .vector = true},
};
static const arch_group_t group = {tensors, sizeof tensors / sizeof *tensors};

const arch_t arch_gpt_oss = {
    .name = "gpt-oss",
    .gguf = "gpt-oss",
    .hf = {"gpt_oss"},
    .read = read_gpt_oss,
    .groups = {&arch_ends, &arch_attention, &arch_attention_bias, &group},
};
