/* DeepSeek V2 and V2-Lite, V3 and R1, V3.2: latent attention (MLA), the first layers dense, then
 * experts beside a shared one. V2 routes by softmax, in groups by their best; V3 by sigmoid with a
 * correction of the choice, in groups by the sum of their two best. V3.2 adds an indexer that
 * chooses the keys a token sees. The layers for drafting behind the last one are left out.
 *
 * GGUF files hold all of them as `deepseek2`, the up-projection of the latent in one tensor
 * (attn_kv_b) or, turned for absorption, in two; what is there says which. */
#include <math.h>
#include <string.h>

#include "common/base/log.h"
#include "common/model/arch.h"

/* Of the norms inside attention, whatever rms_norm_eps says: the models' own code gives none. */
#define INNER_EPS 1e-6f

static bool first_layer_has(const arch_reader_t *r, const char *gguf, const char *hf)
{
    /* Of a configuration alone (source_outline.h) there is no tensor to ask: it is believed. */
    if (source_n_tensors(r->source) == 0)
        return *hf != 0 && json_is_integer(json_object_get(r->config, "q_lora_rank"));
    return source_tensor(r->source, r->gguf != NULL ? gguf : hf) != NULL;
}

static status_t read_latent(arch_reader_t *r)
{
    model_config_t *config = r->out;
    model_latent_t *latent = &config->latent;
    uint32_t key_length = 0;
    float mscale;
    latent->split = first_layer_has(r, "blk.0.attn_k_b.weight", "");
    TRY(arch_u32(r, "attention.kv_lora_rank", "kv_lora_rank", 1, MODEL_LATENT_MAX,
                 &latent->kv_rank));
    /* The rank stands in files of models without it as well; the tensors tell. */
    if (first_layer_has(r, "blk.0.attn_q_a.weight", "model.layers.0.self_attn.q_a_proj.weight"))
        TRY(arch_u32(r, "attention.q_lora_rank", "q_lora_rank", 1, MODEL_LATENT_MAX,
                     &latent->q_rank));
    TRY(arch_u32(r, "rope.dimension_count", "qk_rope_head_dim", 2, MODEL_HEAD_DIM_MAX,
                 &latent->rope_dim));
    if (latent->rope_dim % 2 != 0)
        return fail(STATUS_INVALID, "%s: %u values of a head turn; an even number would be right",
                    r->where, latent->rope_dim);
    if (r->gguf != NULL) {
        TRY(arch_u32(r, latent->split ? "attention.key_length_mla" : "attention.key_length", NULL,
                     latent->rope_dim + 1, MODEL_HEAD_DIM_MAX, &key_length));
        latent->nope_dim = key_length - latent->rope_dim;
        TRY(arch_u32(r, latent->split ? "attention.value_length_mla" : "attention.value_length",
                     NULL, 1, MODEL_HEAD_DIM_MAX, &latent->value_dim));
    } else {
        TRY(arch_u32(r, NULL, "qk_nope_head_dim", 1, MODEL_HEAD_DIM_MAX, &latent->nope_dim));
        TRY(arch_u32(r, NULL, "v_head_dim", 1, MODEL_HEAD_DIM_MAX, &latent->value_dim));
    }
    config->head_dim = latent->nope_dim + latent->rope_dim;
    config->n_kv_heads = 1;
    latent->norm_eps = INNER_EPS;
    bool adjacent = true;
    if (r->gguf == NULL) /* transformers' DeepseekV3Config has it; every published model leaves it */
        TRY(arch_bool_or(r, NULL, "rope_interleave", &adjacent));
    arch_rope_t rope = {.dim = latent->rope_dim, .dim_max = latent->rope_dim,
                        .pairs = adjacent ? MODEL_ROPE_PAIRS_ADJACENT : MODEL_ROPE_PAIRS_HALVES,
                        .dim_given = true};
    TRY(arch_read_rope(r, &rope));
    TRY(arch_latent_mscale(r, &mscale));
    config->attention_scale = mscale / sqrtf((float)config->head_dim);
    return STATUS_OK;
}

/* The published GGUF files of V2, V3 and R1 were written before there were keys for groups. Their
 * models choose in groups nevertheless; the number of experts and the score tell which they are. */
static void default_groups(const arch_reader_t *r)
{
    model_experts_t *experts = &r->out->experts;
    bool v3 = experts->n == 256 && experts->score == MODEL_SCORE_SIGMOID;
    bool v2 = experts->n == 160 && experts->score == MODEL_SCORE_SOFTMAX;
    if (r->gguf == NULL || (!v3 && !v2))
        return;
    experts->n_groups = 8;
    experts->groups_kept = v3 ? 4 : 3;
    log_info("%s: key %s.expert_group_count is missing; %u experts are chosen from %u of %u groups, "
             "as DeepSeek %s does", r->where, r->prefix, experts->n, experts->groups_kept,
             experts->n_groups, v3 ? "V3" : "V2");
}

static status_t read_groups(arch_reader_t *r)
{
    model_experts_t *experts = &r->out->experts;
    TRY(arch_u32_or(r, "expert_group_count", "n_group", 1, experts->n, &experts->n_groups));
    if (experts->n_groups == 0)
        default_groups(r);
    if (experts->n_groups <= 1) {
        experts->n_groups = 0;
        return STATUS_OK;
    }
    if (experts->groups_kept == 0)
        TRY(arch_u32(r, "expert_group_used_count", "topk_group", 1, experts->n_groups,
                     &experts->groups_kept));
    uint32_t in_group = experts->n / experts->n_groups;
    if (experts->n % experts->n_groups != 0 || in_group * experts->groups_kept < experts->n_used ||
        (experts->group_by_sum && in_group < 2))
        return fail(STATUS_INVALID, "%s: %u of %u experts cannot be chosen from %u of %u groups",
                    r->where, experts->n_used, experts->n, experts->groups_kept,
                    experts->n_groups);
    return STATUS_OK;
}

static status_t read_routing(arch_reader_t *r, model_score_t score)
{
    model_experts_t *experts = &r->out->experts;
    uint32_t n_shared = 0, gating = score == MODEL_SCORE_SIGMOID ? 2 : 1;
    TRY(arch_read_experts(r));
    TRY(arch_u32_or(r, "expert_shared_count", "n_shared_experts", 0, 64, &n_shared));
    experts->shared_ffn = n_shared * experts->ffn;
    TRY(arch_u32_or(r, "expert_gating_func", NULL, 1, 2, &gating));
    experts->score = gating == 2 ? MODEL_SCORE_SIGMOID : MODEL_SCORE_SOFTMAX;
    experts->group_by_sum = experts->score == MODEL_SCORE_SIGMOID;
    TRY(arch_f32_or(r, "expert_weights_scale", "routed_scaling_factor", 0, 1e6f,
                    &experts->factor));
    /* transformers' DeepseekV2 never reads "norm_topk_prob"; no published V2 asks for the norm. */
    if (r->gguf != NULL || score == MODEL_SCORE_SIGMOID)
        TRY(arch_bool_or(r, "expert_weights_norm", "norm_topk_prob", &experts->normalized));
    return read_groups(r);
}

static status_t read_deepseek(arch_reader_t *r, model_score_t score)
{
    static const char *const silu[] = {"silu", NULL};
    model_config_t *config = r->out;
    const arch_basics_t basics = {0};
    uint32_t n_dense = score == MODEL_SCORE_SIGMOID && r->gguf == NULL ? 3 : 0;
    TRY(arch_refuse(r, NULL, "attention_bias"));
    TRY(arch_read_basics(r, &basics));
    TRY(read_latent(r));
    TRY(read_routing(r, score));
    TRY(arch_u32_or(r, "leading_dense_block_count", "first_k_dense_replace", 0, config->n_layers,
                    &n_dense));
    uint32_t every = 1;
    TRY(arch_u32_or(r, NULL, "moe_layer_freq", 1, 1, &every));
    for (uint32_t i = 0; i < config->n_layers; i++) {
        config->layers[i].attention = MODEL_ATTENTION_LATENT;
        config->layers[i].ffn = i < n_dense ? MODEL_FFN_DENSE : MODEL_FFN_EXPERTS;
    }
    return arch_text_is(r, "hidden_act", silu);
}

static status_t read_v2(arch_reader_t *r)
{
    static const char *const methods[] = {"group_limited_greedy", "greedy", NULL};
    static const char *const greedy[] = {"greedy", NULL};
    TRY(arch_text_is(r, "topk_method", methods));
    TRY(read_deepseek(r, MODEL_SCORE_SOFTMAX));
    /* "greedy" ignores groups, whatever their number. */
    if (r->gguf == NULL && arch_text_is(r, "topk_method", greedy) == STATUS_OK)
        r->out->experts.n_groups = r->out->experts.groups_kept = 0;
    return STATUS_OK;
}

static status_t read_v3(arch_reader_t *r)
{
    static const char *const methods[] = {"noaux_tc", NULL};
    static const char *const scores[] = {"sigmoid", NULL};
    TRY(arch_text_is(r, "topk_method", methods));
    TRY(arch_text_is(r, "scoring_func", scores));
    return read_deepseek(r, MODEL_SCORE_SIGMOID);
}

static status_t read_v32(arch_reader_t *r)
{
    model_index_t *index = &r->out->index;
    TRY(read_v3(r));
    if (r->out->latent.q_rank == 0)
        return fail(STATUS_INVALID, "%s: an indexer needs \"q_lora_rank\"", r->where);
    TRY(arch_u32(r, NULL, "index_n_heads", 1, MODEL_HEADS_MAX, &index->n_heads));
    TRY(arch_u32(r, NULL, "index_head_dim", 2, MODEL_HEAD_DIM_MAX, &index->head_dim));
    TRY(arch_u32(r, NULL, "index_topk", 1, MODEL_CONTEXT_MAX, &index->top_k));
    if (index->head_dim % 2 != 0 || index->head_dim < r->out->latent.rope_dim)
        return fail(STATUS_INVALID, "%s: index heads of %u values, of which %u turn", r->where,
                    index->head_dim, r->out->latent.rope_dim);
    index->norm_eps = INNER_EPS;
    for (uint32_t i = 0; i < r->out->n_layers; i++)
        r->out->layers[i].indexed = true;
    return STATUS_OK;
}

/* Layers behind the last one draft tokens; plain decoding leaves them out. */
static bool ignores(uint32_t n_layers, uint32_t n_draft, const char *name)
{
    static const char *const prefixes[] = {"model.layers.", "blk."};
    for (size_t i = 0; i < 2; i++) {
        size_t n = strlen(prefixes[i]);
        if (strncmp(name, prefixes[i], n) == 0 && name[n] >= '0' && name[n] <= '9')
            return arch_is_draft(name + n, n_layers, n_draft);
    }
    return false;
}

#define CORRECTION(optional_)                                                                      \
    {MODEL_ROUTER_CORRECTION, "blk.%u.exp_probs_b.bias",                                           \
     "model.layers.%u.mlp.gate.e_score_correction_bias", ARCH_EXPERTS, .when = ARCH_ROUTED,        \
     .vector = true, .optional = optional_}
static const arch_tensor_t correction[] = {CORRECTION(false)};
static const arch_tensor_t correction_optional[] = {CORRECTION(true)};
static const arch_group_t group = {correction, 1}, group_optional = {correction_optional, 1};

const arch_t arch_deepseek2 = {
    .name = "deepseek2",
    .gguf = "deepseek2",
    .hf = {"deepseek_v2"},
    .read = read_v2,
    .groups = {&arch_ends, &arch_norms, &arch_latent, &arch_dense, &arch_router, &arch_experts,
               &arch_shared_experts, &group_optional},
    .ignores = ignores,
};

const arch_t arch_deepseek_v3 = {
    .name = "deepseek-v3",
    .hf = {"deepseek_v3"},
    .read = read_v3,
    .groups = {&arch_ends, &arch_norms, &arch_latent, &arch_dense, &arch_router, &arch_experts,
               &arch_shared_experts, &group},
    .ignores = ignores,
};

const arch_t arch_deepseek_v32 = {
    .name = "deepseek-v3.2",
    .hf = {"deepseek_v32"},
    .read = read_v32,
    .groups = {&arch_ends, &arch_norms, &arch_latent, &arch_indexer, &arch_dense, &arch_router,
               &arch_experts, &arch_shared_experts, &group},
    .ignores = ignores,
};
