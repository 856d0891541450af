/* DeepSeek V4: one key head that is the value too, seen in a window; in most layers beside it entries
 * that stand for 4 positions (overlapping, of which an indexer chooses) or for 128. The output goes
 * through groups of heads. The residual stream is several streams that each block mixes by learned
 * weights (hyper-connections). The experts of the first layers stand in a table of token ids. Layers
 * for drafting are left out. */
#include <math.h>
#include <string.h>

#include "common/model/arch.h"

#define L "layers.%u."

/* "compress_rates" gives the rates of both kinds of layers; the released ones are 4 and 128. */
static status_t read_rates(arch_reader_t *r)
{
    model_compressed_t *compressed = &r->out->compressed;
    const json_t *rates = NULL;
    uint64_t overlap = 4, stride = 128;
    TRY(json_may_object(r->config, r->where, "compress_rates", &rates));
    if (rates != NULL) {
        TRY(json_may_u64(rates, r->where, "compressed_sparse_attention", 2, 128, &overlap));
        TRY(json_may_u64(rates, r->where, "heavily_compressed_attention", 2, 128, &stride));
    }
    if ((overlap & (overlap - 1)) != 0 || (stride & (stride - 1)) != 0)
        return fail(STATUS_UNSUPPORTED, "%s: \"compress_rates\" of %llu and %llu; powers of two are "
                    "supported", r->where, (unsigned long long)overlap,
                    (unsigned long long)stride);
    compressed->overlap_rate = (uint32_t)overlap;
    compressed->stride_rate = (uint32_t)stride;
    return STATUS_OK;
}

static status_t set_layer(arch_reader_t *r, uint32_t index, bool overlap, bool stride)
{
    model_layer_t *layer = &r->out->layers[index];
    layer->indexed = overlap;
    layer->rate = (uint16_t)(overlap  ? r->out->compressed.overlap_rate
                             : stride ? r->out->compressed.stride_rate
                                      : 0);
    layer->rope = layer->rate > 0; /* the one with scaling */
    return STATUS_OK;
}

/* "layer_types" by name, or "compress_ratios" by number: 0, 4 or 128 whatever the rates are. */
static status_t read_layers(arch_reader_t *r)
{
    const json_t *types = NULL, *ratios = NULL;
    uint32_t n = r->out->n_layers;
    TRY(json_may_array(r->config, r->where, "layer_types", &types));
    TRY(json_may_array(r->config, r->where, "compress_ratios", &ratios));
    const json_t *list = types != NULL ? types : ratios;
    if (json_array_size(list) < n)
        return fail(STATUS_INVALID, "%s: \"%s\" has %zu elements for %u layers", r->where,
                    types != NULL ? "layer_types" : "compress_ratios", json_array_size(list), n);
    for (uint32_t i = 0; i < n; i++) {
        const json_t *element = json_array_get(list, i);
        const char *type = json_string_value(element);
        json_int_t ratio = json_is_integer(element) ? json_integer_value(element) : -1;
        bool overlap = type ? strcmp(type, "compressed_sparse_attention") == 0 : ratio == 4;
        bool stride = type ? strcmp(type, "heavily_compressed_attention") == 0 : ratio == 128;
        bool window = type ? strcmp(type, "sliding_attention") == 0 : ratio == 0;
        if (!overlap && !stride && !window)
            return fail(STATUS_UNSUPPORTED, "%s: layer %u is of another kind; sliding_attention "
                        "(0), compressed_sparse_attention (4) and heavily_compressed_attention "
                        "(128) are supported", r->where, i);
        TRY(set_layer(r, i, overlap, stride));
    }
    return STATUS_OK;
}

static status_t read_attention(arch_reader_t *r)
{
    model_config_t *config = r->out;
    model_compressed_t *compressed = &config->compressed;
    model_index_t *index = &config->index;
    uint32_t window = 0;
    TRY(arch_u32(r, NULL, "head_dim", 2, MODEL_HEAD_DIM_MAX, &config->head_dim));
    TRY(arch_u32(r, NULL, "qk_rope_head_dim", 2, config->head_dim, &compressed->rope_dim));
    TRY(arch_u32(r, NULL, "q_lora_rank", 1, MODEL_LATENT_MAX, &compressed->q_rank));
    TRY(arch_u32(r, NULL, "o_groups", 1, config->n_heads, &compressed->groups));
    TRY(arch_u32(r, NULL, "o_lora_rank", 1, MODEL_LATENT_MAX, &compressed->group_rank));
    TRY(arch_u32(r, NULL, "sliding_window", 1, UINT32_MAX, &window));
    TRY(arch_u32(r, NULL, "index_n_heads", 1, MODEL_HEADS_MAX, &index->n_heads));
    TRY(arch_u32(r, NULL, "index_head_dim", 2, MODEL_HEAD_DIM_MAX, &index->head_dim));
    TRY(arch_u32(r, NULL, "index_topk", 1, MODEL_CONTEXT_MAX, &index->top_k));
    if (config->n_heads % compressed->groups != 0 || config->head_dim % 2 != 0 ||
        compressed->rope_dim % 2 != 0 || index->head_dim % 2 != 0 ||
        compressed->rope_dim > index->head_dim)
        return fail(STATUS_INVALID, "%s: %u heads of %u values in %u groups, %u values turn, index "
                    "heads of %u: these do not go together", r->where, config->n_heads,
                    config->head_dim, compressed->groups, compressed->rope_dim, index->head_dim);
    config->n_kv_heads = 1;
    config->attention_scale = 1.0f / sqrtf((float)config->head_dim);
    arch_rope_t rope = {.dim = compressed->rope_dim, .dim_max = compressed->rope_dim,
                        .pairs = MODEL_ROPE_PAIRS_ADJACENT, .unscaled = true,
                        .dim_given = true};
    TRY(arch_read_rope(r, &rope));
    rope = (arch_rope_t){.dim = compressed->rope_dim, .dim_max = compressed->rope_dim,
                         .pairs = MODEL_ROPE_PAIRS_ADJACENT, .index = 1, .no_magnitude = true,
                         .dim_given = true,
                         .base_key = "compress_rope_theta", .base_default = 160000};
    TRY(arch_read_rope(r, &rope));
    TRY(read_rates(r));
    TRY(read_layers(r));
    for (uint32_t i = 0; i < config->n_layers; i++) {
        config->layers[i].attention = MODEL_ATTENTION_COMPRESSED;
        config->layers[i].window = window;
    }
    return STATUS_OK;
}

static status_t read_experts(arch_reader_t *r)
{
    static const char *const scores[] = {"sqrtsoftplus", NULL};
    model_config_t *config = r->out;
    uint32_t n_hashed = 3, n_shared = 1;
    bool normalized = true;
    TRY(arch_read_experts(r));
    TRY(arch_u32_or(r, NULL, "num_hash_layers", 0, MODEL_LAYERS_MAX, &n_hashed));
    TRY(arch_u32_or(r, NULL, "n_shared_experts", 1, 1, &n_shared));
    TRY(arch_bool_or(r, NULL, "norm_topk_prob", &normalized));
    TRY(arch_f32_or(r, NULL, "routed_scaling_factor", 0, 1e6f, &config->experts.factor));
    TRY(arch_text_is(r, "scoring_func", scores));
    config->experts.score = MODEL_SCORE_SQRT_SOFTPLUS;
    config->experts.normalized = normalized;
    config->experts.shared_ffn = config->experts.ffn;
    config->activation = MODEL_ACTIVATION_SILU_LIMIT;
    config->activation_limit = 10;
    TRY(arch_f32_or(r, NULL, "swiglu_limit", 1e-3f, 1e6f, &config->activation_limit));
    for (uint32_t i = 0; i < config->n_layers; i++) {
        config->layers[i].ffn = MODEL_FFN_EXPERTS;
        config->layers[i].hashed = i < n_hashed;
    }
    return STATUS_OK;
}

static status_t read_v4(arch_reader_t *r)
{
    static const char *const silu[] = {"silu", NULL};
    model_config_t *config = r->out;
    const arch_basics_t basics = {.no_ffn = true};
    config->streams = (model_streams_t){.n = 4, .iterations = 20, .eps = 1e-6f};
    TRY(arch_read_basics(r, &basics));
    config->ffn = 0;
    TRY(read_attention(r));
    TRY(read_experts(r));
    TRY(arch_u32_or(r, NULL, "hc_mult", 1, 8, &config->streams.n));
    TRY(arch_u32_or(r, NULL, "hc_sinkhorn_iters", 1, 1000, &config->streams.iterations));
    TRY(arch_f32_or(r, NULL, "hc_eps", 1e-12f, 1e-1f, &config->streams.eps));
    return arch_text_is(r, "hidden_act", silu);
}

static bool ignores(uint32_t n_layers, uint32_t n_draft, const char *name)
{
    if (strncmp(name, "layers.", 7) == 0 && name[7] >= '0' && name[7] <= '9')
        return arch_is_draft(name + 7, n_layers, n_draft);
    return strncmp(name, "mtp.", 4) == 0;
}

static const arch_tensor_t ends[] = {
    {MODEL_TOKEN_EMBD, NULL, "embed.weight", ARCH_HIDDEN, ARCH_VOCAB, .when = ARCH_ONCE},
    {MODEL_OUTPUT_NORM, NULL, "norm.weight", ARCH_HIDDEN, .when = ARCH_ONCE, .vector = true},
    {MODEL_OUTPUT, NULL, "head.weight", ARCH_HIDDEN, ARCH_VOCAB, .cut = MODEL_CUT_ROWS_VOCAB,
     .when = ARCH_ONCE, .optional = true},
    {MODEL_HEAD_MIX, NULL, "hc_head_fn", ARCH_STREAMS_HIDDEN, ARCH_STREAMS, .when = ARCH_ONCE},
    {MODEL_HEAD_MIX_BASE, NULL, "hc_head_base", ARCH_STREAMS, .when = ARCH_ONCE, .vector = true},
    {MODEL_HEAD_MIX_SCALE, NULL, "hc_head_scale", ARCH_ONE, .when = ARCH_ONCE, .vector = true},
    {MODEL_ATTN_NORM, NULL, L "attn_norm.weight", ARCH_HIDDEN, .when = ARCH_LAYER, .vector = true},
    {MODEL_FFN_NORM, NULL, L "ffn_norm.weight", ARCH_HIDDEN, .when = ARCH_LAYER, .vector = true},
    {MODEL_ATTN_MIX, NULL, L "hc_attn_fn", ARCH_STREAMS_HIDDEN, ARCH_MIX, .when = ARCH_LAYER},
    {MODEL_ATTN_MIX_BASE, NULL, L "hc_attn_base", ARCH_MIX, .when = ARCH_LAYER, .vector = true},
    {MODEL_ATTN_MIX_SCALE, NULL, L "hc_attn_scale", ARCH_THREE, .when = ARCH_LAYER,
     .vector = true},
    {MODEL_FFN_MIX, NULL, L "hc_ffn_fn", ARCH_STREAMS_HIDDEN, ARCH_MIX, .when = ARCH_LAYER},
    {MODEL_FFN_MIX_BASE, NULL, L "hc_ffn_base", ARCH_MIX, .when = ARCH_LAYER, .vector = true},
    {MODEL_FFN_MIX_SCALE, NULL, L "hc_ffn_scale", ARCH_THREE, .when = ARCH_LAYER, .vector = true},
};

#define COMPRESSOR(when_, kv, gate, position, norm, module, width, rate, dim)                      \
    {kv, NULL, L module "wkv.weight", ARCH_HIDDEN, width, .when = when_},                          \
    {gate, NULL, L module "wgate.weight", ARCH_HIDDEN, width, .when = when_},                      \
    {position, NULL, L module "ape", width, rate, .when = when_, .vector = true},                  \
    {norm, NULL, L module "norm.weight", dim, .when = when_, .vector = true}

static const arch_tensor_t attention[] = {
    {MODEL_ATTN_Q_A, NULL, L "attn.wq_a.weight", ARCH_HIDDEN, ARCH_Q_RANK, .when = ARCH_COMPRESSED},
    {MODEL_ATTN_Q_A_NORM, NULL, L "attn.q_norm.weight", ARCH_Q_RANK, .when = ARCH_COMPRESSED,
     .vector = true},
    {MODEL_ATTN_Q_B, NULL, L "attn.wq_b.weight", ARCH_Q_RANK, ARCH_Q, .cut = MODEL_CUT_ROWS_HEADS,
     .when = ARCH_COMPRESSED},
    {MODEL_ATTN_KV_A, NULL, L "attn.wkv.weight", ARCH_HIDDEN, ARCH_HEAD_DIM,
     .when = ARCH_COMPRESSED},
    {MODEL_ATTN_KV_A_NORM, NULL, L "attn.norm.weight", ARCH_HEAD_DIM, .when = ARCH_COMPRESSED,
     .vector = true},
    {MODEL_ATTN_SINKS, NULL, L "attn.attn_sink", ARCH_N_HEADS, .when = ARCH_COMPRESSED,
     .vector = true},
    {MODEL_ATTN_OUTPUT_A, NULL, L "attn.wo_a.weight", ARCH_GROUP_IN, ARCH_GROUPS_OUT,
     .cut = MODEL_CUT_ROWS_HEADS, .when = ARCH_COMPRESSED},
    {MODEL_ATTN_OUTPUT, NULL, L "attn.wo_b.weight", ARCH_GROUPS_OUT, ARCH_HIDDEN,
     .cut = MODEL_CUT_COLUMNS_HEADS, .when = ARCH_COMPRESSED},
    COMPRESSOR(ARCH_OVERLAP, MODEL_COMPRESS_KV, MODEL_COMPRESS_GATE, MODEL_COMPRESS_POSITION,
               MODEL_COMPRESS_NORM, "attn.compressor.", ARCH_TWO_HEAD_DIM, ARCH_OVERLAP_RATE,
               ARCH_HEAD_DIM),
    COMPRESSOR(ARCH_STRIDE, MODEL_COMPRESS_KV, MODEL_COMPRESS_GATE, MODEL_COMPRESS_POSITION,
               MODEL_COMPRESS_NORM, "attn.compressor.", ARCH_HEAD_DIM, ARCH_STRIDE_RATE,
               ARCH_HEAD_DIM),
    COMPRESSOR(ARCH_OVERLAP, MODEL_INDEX_COMPRESS_KV, MODEL_INDEX_COMPRESS_GATE,
               MODEL_INDEX_COMPRESS_POSITION, MODEL_INDEX_COMPRESS_NORM,
               "attn.indexer.compressor.", ARCH_TWO_INDEX_DIM, ARCH_OVERLAP_RATE, ARCH_INDEX_DIM),
    {MODEL_INDEX_Q_B, NULL, L "attn.indexer.wq_b.weight", ARCH_Q_RANK, ARCH_INDEX_Q,
     .when = ARCH_OVERLAP},
    {MODEL_INDEX_WEIGHTS, NULL, L "attn.indexer.weights_proj.weight", ARCH_HIDDEN,
     ARCH_INDEX_HEADS, .when = ARCH_OVERLAP},
};

static const arch_tensor_t experts[] = {
    {MODEL_ROUTER, NULL, L "ffn.gate.weight", ARCH_HIDDEN, ARCH_EXPERTS, .when = ARCH_ROUTED},
    {MODEL_ROUTER_CORRECTION, NULL, L "ffn.gate.bias", ARCH_EXPERTS, .when = ARCH_CHOSEN,
     .vector = true},
    {MODEL_ROUTER_TABLE, NULL, L "ffn.gate.tid2eid", ARCH_EXPERTS_USED, ARCH_VOCAB,
     .when = ARCH_HASHED, .table = true},
    {MODEL_SHARED_GATE, NULL, L "ffn.shared_experts.w1.weight", ARCH_HIDDEN, ARCH_SHARED_FFN,
     .cut = MODEL_CUT_ROWS_SHARED, .when = ARCH_SHARED},
    {MODEL_SHARED_UP, NULL, L "ffn.shared_experts.w3.weight", ARCH_HIDDEN, ARCH_SHARED_FFN,
     .cut = MODEL_CUT_ROWS_SHARED, .when = ARCH_SHARED},
    {MODEL_SHARED_DOWN, NULL, L "ffn.shared_experts.w2.weight", ARCH_SHARED_FFN, ARCH_HIDDEN,
     .cut = MODEL_CUT_COLUMNS_SHARED, .when = ARCH_SHARED},
    {MODEL_EXPERT_GATE, NULL, L "ffn.experts.%u.w1.weight", ARCH_HIDDEN, ARCH_EXPERT_FFN,
     ARCH_EXPERTS, .cut = MODEL_CUT_ROWS_EXPERT, .when = ARCH_ROUTED, .each_expert = true},
    {MODEL_EXPERT_UP, NULL, L "ffn.experts.%u.w3.weight", ARCH_HIDDEN, ARCH_EXPERT_FFN,
     ARCH_EXPERTS, .cut = MODEL_CUT_ROWS_EXPERT, .when = ARCH_ROUTED, .each_expert = true},
    {MODEL_EXPERT_DOWN, NULL, L "ffn.experts.%u.w2.weight", ARCH_EXPERT_FFN, ARCH_HIDDEN,
     ARCH_EXPERTS, .cut = MODEL_CUT_COLUMNS_EXPERT, .when = ARCH_ROUTED, .each_expert = true},
};

#define GROUP(list) {list, sizeof list / sizeof *list}
static const arch_group_t ends_group = GROUP(ends), attention_group = GROUP(attention),
                          experts_group = GROUP(experts);

const arch_t arch_deepseek_v4 = {
    .name = "deepseek-v4",
    .hf = {"deepseek_v4"},
    .read = read_v4,
    .groups = {&ends_group, &attention_group, &experts_group},
    .ignores = ignores,
};
