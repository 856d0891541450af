/* Groups of tensors that architectures are put together from, with their names in both formats.
 * See arch.h. */
#include "common/model/arch.h"

#define GROUP(name, list) const arch_group_t name = {list, sizeof list / sizeof *list}
#define BLK "blk.%u."
#define HF "model.layers.%u."

static const arch_tensor_t ends[] = {
    {MODEL_TOKEN_EMBD, "token_embd.weight", "model.embed_tokens.weight", ARCH_HIDDEN, ARCH_VOCAB,
     .when = ARCH_ONCE},
    {MODEL_OUTPUT_NORM, "output_norm.weight", "model.norm.weight", ARCH_HIDDEN,
     .when = ARCH_ONCE, .vector = true},
    {MODEL_OUTPUT, "output.weight", "lm_head.weight", ARCH_HIDDEN, ARCH_VOCAB,
     .cut = MODEL_CUT_ROWS_VOCAB, .when = ARCH_ONCE, .optional = true},
    {MODEL_ROPE_FACTORS, "rope_freqs.weight", NULL, ARCH_ROPE_PAIRS, .when = ARCH_ONCE,
     .optional = true, .vector = true},
};
GROUP(arch_ends, ends);

static const arch_tensor_t norms[] = {
    {MODEL_ATTN_NORM, BLK "attn_norm.weight", HF "input_layernorm.weight", ARCH_HIDDEN,
     .when = ARCH_LAYER, .vector = true},
    {MODEL_FFN_NORM, BLK "ffn_norm.weight", HF "post_attention_layernorm.weight", ARCH_HIDDEN,
     .when = ARCH_LAYER, .vector = true},
};
GROUP(arch_norms, norms);

/* Gemma: a norm before and one behind each block. */
static const arch_tensor_t norms_around[] = {
    {MODEL_ATTN_NORM, BLK "attn_norm.weight", HF "input_layernorm.weight", ARCH_HIDDEN,
     .when = ARCH_LAYER, .vector = true},
    {MODEL_ATTN_POST_NORM, BLK "post_attention_norm.weight", HF "post_attention_layernorm.weight",
     ARCH_HIDDEN, .when = ARCH_LAYER, .vector = true},
    {MODEL_FFN_NORM, BLK "ffn_norm.weight", HF "pre_feedforward_layernorm.weight", ARCH_HIDDEN,
     .when = ARCH_LAYER, .vector = true},
    {MODEL_FFN_POST_NORM, BLK "post_ffw_norm.weight", HF "post_feedforward_layernorm.weight",
     ARCH_HIDDEN, .when = ARCH_LAYER, .vector = true},
};
GROUP(arch_norms_around, norms_around);

static const arch_tensor_t attention[] = {
    {MODEL_ATTN_Q, BLK "attn_q.weight", HF "self_attn.q_proj.weight", ARCH_HIDDEN, ARCH_Q,
     .cut = MODEL_CUT_ROWS_HEADS, .when = ARCH_GROUPED},
    {MODEL_ATTN_K, BLK "attn_k.weight", HF "self_attn.k_proj.weight", ARCH_HIDDEN, ARCH_KV,
     .cut = MODEL_CUT_ROWS_KV_HEADS, .when = ARCH_GROUPED},
    {MODEL_ATTN_V, BLK "attn_v.weight", HF "self_attn.v_proj.weight", ARCH_HIDDEN, ARCH_KV,
     .cut = MODEL_CUT_ROWS_KV_HEADS, .when = ARCH_GROUPED},
    {MODEL_ATTN_OUTPUT, BLK "attn_output.weight", HF "self_attn.o_proj.weight", ARCH_Q, ARCH_HIDDEN,
     .cut = MODEL_CUT_COLUMNS_HEADS, .when = ARCH_GROUPED},
};
GROUP(arch_attention, attention);

#define QKV_BIAS(optional_)                                                                        \
    {MODEL_ATTN_Q_BIAS, BLK "attn_q.bias", HF "self_attn.q_proj.bias", ARCH_Q,                     \
     .cut = MODEL_CUT_ROWS_HEADS, .when = ARCH_GROUPED, .vector = true, .optional = optional_},    \
    {MODEL_ATTN_K_BIAS, BLK "attn_k.bias", HF "self_attn.k_proj.bias", ARCH_KV,                    \
     .cut = MODEL_CUT_ROWS_KV_HEADS, .when = ARCH_GROUPED, .vector = true, .optional = optional_}, \
    {MODEL_ATTN_V_BIAS, BLK "attn_v.bias", HF "self_attn.v_proj.bias", ARCH_KV,                    \
     .cut = MODEL_CUT_ROWS_KV_HEADS, .when = ARCH_GROUPED, .vector = true, .optional = optional_}

static const arch_tensor_t attention_bias[] = {QKV_BIAS(false)};
GROUP(arch_attention_bias, attention_bias);
static const arch_tensor_t attention_bias_optional[] = {QKV_BIAS(true)};
GROUP(arch_attention_bias_optional, attention_bias_optional);

static const arch_tensor_t output_bias_optional[] = {
    {MODEL_ATTN_OUTPUT_BIAS, BLK "attn_output.bias", HF "self_attn.o_proj.bias", ARCH_HIDDEN,
     .when = ARCH_GROUPED, .vector = true, .optional = true},
};
GROUP(arch_output_bias_optional, output_bias_optional);

static const arch_tensor_t qk_norms[] = {
    {MODEL_ATTN_Q_NORM, BLK "attn_q_norm.weight", HF "self_attn.q_norm.weight", ARCH_HEAD_DIM,
     .when = ARCH_GROUPED, .vector = true},
    {MODEL_ATTN_K_NORM, BLK "attn_k_norm.weight", HF "self_attn.k_norm.weight", ARCH_HEAD_DIM,
     .when = ARCH_GROUPED, .vector = true},
};
GROUP(arch_qk_norms, qk_norms);

static const arch_tensor_t latent[] = {
    {MODEL_ATTN_Q, BLK "attn_q.weight", HF "self_attn.q_proj.weight", ARCH_HIDDEN, ARCH_Q_LATENT,
     .cut = MODEL_CUT_ROWS_HEADS, .when = ARCH_LATENT_PLAIN_Q},
    {MODEL_ATTN_Q_A, BLK "attn_q_a.weight", HF "self_attn.q_a_proj.weight", ARCH_HIDDEN,
     ARCH_Q_RANK, .when = ARCH_LATENT_RANK_Q},
    {MODEL_ATTN_Q_A_NORM, BLK "attn_q_a_norm.weight", HF "self_attn.q_a_layernorm.weight",
     ARCH_Q_RANK, .when = ARCH_LATENT_RANK_Q, .vector = true},
    {MODEL_ATTN_Q_B, BLK "attn_q_b.weight", HF "self_attn.q_b_proj.weight", ARCH_Q_RANK,
     ARCH_Q_LATENT, .cut = MODEL_CUT_ROWS_HEADS, .when = ARCH_LATENT_RANK_Q},
    {MODEL_ATTN_KV_A, BLK "attn_kv_a_mqa.weight", HF "self_attn.kv_a_proj_with_mqa.weight",
     ARCH_HIDDEN, ARCH_KV_A, .when = ARCH_LATENT},
    {MODEL_ATTN_KV_A_NORM, BLK "attn_kv_a_norm.weight", HF "self_attn.kv_a_layernorm.weight",
     ARCH_KV_RANK, .when = ARCH_LATENT, .vector = true},
    {MODEL_ATTN_KV_B, BLK "attn_kv_b.weight", HF "self_attn.kv_b_proj.weight", ARCH_KV_RANK,
     ARCH_KV_B, .cut = MODEL_CUT_ROWS_HEADS, .when = ARCH_LATENT_WHOLE},
    {MODEL_ATTN_K_B, BLK "attn_k_b.weight", NULL, ARCH_NOPE, ARCH_KV_RANK, ARCH_N_HEADS,
     .cut = MODEL_CUT_ROWS_HEADS, .when = ARCH_LATENT_SPLIT},
    {MODEL_ATTN_V_B, BLK "attn_v_b.weight", NULL, ARCH_KV_RANK, ARCH_VALUE, ARCH_N_HEADS,
     .cut = MODEL_CUT_ROWS_HEADS, .when = ARCH_LATENT_SPLIT},
    {MODEL_ATTN_OUTPUT, BLK "attn_output.weight", HF "self_attn.o_proj.weight", ARCH_V_LATENT,
     ARCH_HIDDEN, .cut = MODEL_CUT_COLUMNS_HEADS, .when = ARCH_LATENT},
};
GROUP(arch_latent, latent);

static const arch_tensor_t indexer[] = {
    {MODEL_INDEX_Q_B, NULL, HF "self_attn.indexer.wq_b.weight", ARCH_Q_RANK, ARCH_INDEX_Q,
     .when = ARCH_INDEXED},
    {MODEL_INDEX_K, NULL, HF "self_attn.indexer.wk.weight", ARCH_HIDDEN, ARCH_INDEX_DIM,
     .when = ARCH_INDEXED},
    {MODEL_INDEX_K_NORM, NULL, HF "self_attn.indexer.k_norm.weight", ARCH_INDEX_DIM,
     .when = ARCH_INDEXED, .vector = true},
    {MODEL_INDEX_K_NORM_BIAS, NULL, HF "self_attn.indexer.k_norm.bias", ARCH_INDEX_DIM,
     .when = ARCH_INDEXED, .vector = true},
    {MODEL_INDEX_WEIGHTS, NULL, HF "self_attn.indexer.weights_proj.weight", ARCH_HIDDEN,
     ARCH_INDEX_HEADS, .when = ARCH_INDEXED},
};
GROUP(arch_indexer, indexer);

static const arch_tensor_t dense[] = {
    {MODEL_FFN_GATE, BLK "ffn_gate.weight", HF "mlp.gate_proj.weight", ARCH_HIDDEN, ARCH_FFN,
     .cut = MODEL_CUT_ROWS_FFN, .when = ARCH_DENSE},
    {MODEL_FFN_UP, BLK "ffn_up.weight", HF "mlp.up_proj.weight", ARCH_HIDDEN, ARCH_FFN,
     .cut = MODEL_CUT_ROWS_FFN, .when = ARCH_DENSE},
    {MODEL_FFN_DOWN, BLK "ffn_down.weight", HF "mlp.down_proj.weight", ARCH_FFN, ARCH_HIDDEN,
     .cut = MODEL_CUT_COLUMNS_FFN, .when = ARCH_DENSE},
};
GROUP(arch_dense, dense);

static const arch_tensor_t dense_bias_optional[] = {
    {MODEL_FFN_GATE_BIAS, BLK "ffn_gate.bias", HF "mlp.gate_proj.bias", ARCH_FFN,
     .cut = MODEL_CUT_ROWS_FFN, .when = ARCH_DENSE, .vector = true, .optional = true},
    {MODEL_FFN_UP_BIAS, BLK "ffn_up.bias", HF "mlp.up_proj.bias", ARCH_FFN,
     .cut = MODEL_CUT_ROWS_FFN, .when = ARCH_DENSE, .vector = true, .optional = true},
    {MODEL_FFN_DOWN_BIAS, BLK "ffn_down.bias", HF "mlp.down_proj.bias", ARCH_HIDDEN,
     .when = ARCH_DENSE, .vector = true, .optional = true},
};
GROUP(arch_dense_bias_optional, dense_bias_optional);

#define EXPERT(role, gguf, hf, columns, rows, cut_)                                                \
    {role, BLK gguf, HF hf, columns, rows, ARCH_EXPERTS, .cut = cut_, .when = ARCH_ROUTED,         \
     .each_expert = true}

static const arch_tensor_t experts[] = {
    EXPERT(MODEL_EXPERT_GATE, "ffn_gate_exps.weight", "mlp.experts.%u.gate_proj.weight",
           ARCH_HIDDEN, ARCH_EXPERT_FFN, MODEL_CUT_ROWS_EXPERT),
    EXPERT(MODEL_EXPERT_UP, "ffn_up_exps.weight", "mlp.experts.%u.up_proj.weight", ARCH_HIDDEN,
           ARCH_EXPERT_FFN, MODEL_CUT_ROWS_EXPERT),
    EXPERT(MODEL_EXPERT_DOWN, "ffn_down_exps.weight", "mlp.experts.%u.down_proj.weight",
           ARCH_EXPERT_FFN, ARCH_HIDDEN, MODEL_CUT_COLUMNS_EXPERT),
};
GROUP(arch_experts, experts);

static const arch_tensor_t experts_mixtral[] = {
    EXPERT(MODEL_EXPERT_GATE, "ffn_gate_exps.weight", "block_sparse_moe.experts.%u.w1.weight",
           ARCH_HIDDEN, ARCH_EXPERT_FFN, MODEL_CUT_ROWS_EXPERT),
    EXPERT(MODEL_EXPERT_UP, "ffn_up_exps.weight", "block_sparse_moe.experts.%u.w3.weight",
           ARCH_HIDDEN, ARCH_EXPERT_FFN, MODEL_CUT_ROWS_EXPERT),
    EXPERT(MODEL_EXPERT_DOWN, "ffn_down_exps.weight", "block_sparse_moe.experts.%u.w2.weight",
           ARCH_EXPERT_FFN, ARCH_HIDDEN, MODEL_CUT_COLUMNS_EXPERT),
};
GROUP(arch_experts_mixtral, experts_mixtral);

static const arch_tensor_t router[] = {
    {MODEL_ROUTER, BLK "ffn_gate_inp.weight", HF "mlp.gate.weight", ARCH_HIDDEN, ARCH_EXPERTS,
     .when = ARCH_ROUTED},
};
GROUP(arch_router, router);

static const arch_tensor_t router_mixtral[] = {
    {MODEL_ROUTER, BLK "ffn_gate_inp.weight", HF "block_sparse_moe.gate.weight", ARCH_HIDDEN,
     ARCH_EXPERTS, .when = ARCH_ROUTED},
};
GROUP(arch_router_mixtral, router_mixtral);

#define SHARED(module)                                                                             \
    {MODEL_SHARED_GATE, BLK "ffn_gate_shexp.weight", HF "mlp." module ".gate_proj.weight",         \
     ARCH_HIDDEN, ARCH_SHARED_FFN, .cut = MODEL_CUT_ROWS_SHARED, .when = ARCH_SHARED},             \
    {MODEL_SHARED_UP, BLK "ffn_up_shexp.weight", HF "mlp." module ".up_proj.weight", ARCH_HIDDEN,  \
     ARCH_SHARED_FFN, .cut = MODEL_CUT_ROWS_SHARED, .when = ARCH_SHARED},                          \
    {MODEL_SHARED_DOWN, BLK "ffn_down_shexp.weight", HF "mlp." module ".down_proj.weight",         \
     ARCH_SHARED_FFN, ARCH_HIDDEN, .cut = MODEL_CUT_COLUMNS_SHARED, .when = ARCH_SHARED}

/* Qwen2-MoE: with a gate of its own. */
static const arch_tensor_t shared_expert[] = {
    SHARED("shared_expert"),
    {MODEL_SHARED_ROUTER, BLK "ffn_gate_inp_shexp.weight", HF "mlp.shared_expert_gate.weight",
     ARCH_HIDDEN, .when = ARCH_SHARED},
};
GROUP(arch_shared_expert, shared_expert);

static const arch_tensor_t shared_experts[] = {SHARED("shared_experts")};
GROUP(arch_shared_experts, shared_experts);
