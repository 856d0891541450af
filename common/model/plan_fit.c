/* Layers to stages by cost, and memory: what a rank needs and how many KV tokens fit. See
 * plan.h. */
#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/plan.h"

/* Code, stacks, the allocator's slack, the fabric's rings and the program's libraries. */
static const uint64_t PROCESS_BYTES = 64ull << 20;

static void add_largest(uint64_t values, uint64_t bytes, uint64_t *values_max, uint64_t *bytes_max)
{
    if (values > *values_max)
        *values_max = values;
    if (bytes > *bytes_max)
        *bytes_max = bytes;
}

/* Sums the tensors of some roles of one layer into a pair that keeps the largest layer's. */
static void add_roles(const model_t *model, uint32_t layer, const model_role_t *roles, size_t n,
                      uint64_t *values_max, uint64_t *bytes_max)
{
    uint64_t values = 0, bytes = 0;
    for (size_t i = 0; i < n; i++) {
        const model_tensor_t *tensor = model_tensor(model, roles[i], layer);
        values += tensor->rows * tensor->columns;
        bytes += tensor->bytes;
    }
    add_largest(values, bytes, values_max, bytes_max);
}

void plan_sizes(const model_t *model, plan_sizes_t *out)
{
    static const model_role_t norms[] = {MODEL_ATTN_NORM, MODEL_FFN_NORM};
    static const model_role_t q[] = {MODEL_ATTN_Q};
    static const model_role_t kv[] = {MODEL_ATTN_K, MODEL_ATTN_V};
    static const model_role_t output[] = {MODEL_ATTN_OUTPUT};
    static const model_role_t ffn[] = {MODEL_FFN_GATE, MODEL_FFN_UP, MODEL_FFN_DOWN};
    static const model_role_t embedding[] = {MODEL_TOKEN_EMBD};
    static const model_role_t head[] = {MODEL_OUTPUT_NORM, MODEL_OUTPUT};
    *out = (plan_sizes_t){.config = *model_config(model),
                          .file_bytes = gguf_file_bytes(model_gguf(model))};
    add_roles(model, 0, embedding, 1, &out->embedding_values, &out->embedding_bytes);
    add_roles(model, 0, head, 2, &out->head_values, &out->head_bytes);
    for (uint32_t layer = 0; layer < out->config.n_layers; layer++) {
        add_roles(model, layer, norms, 2, &out->norm_values, &out->norm_bytes);
        add_roles(model, layer, q, 1, &out->q_values, &out->q_bytes);
        add_roles(model, layer, kv, 2, &out->kv_values, &out->kv_bytes);
        add_roles(model, layer, output, 1, &out->output_values, &out->output_bytes);
        add_roles(model, layer, ffn, 3, &out->ffn_values, &out->ffn_bytes);
    }
}

/* --- stages --- */

typedef struct {
    double layer, first, last; /* of a layer; extra of stage 0; extra of the last stage */
    uint32_t stages;
} stage_costs_t;

static double stage_cost(const stage_costs_t *costs, uint32_t stage, uint32_t n_layers)
{
    double cost = costs->layer * n_layers;
    if (stage == 0)
        cost += costs->first;
    if (stage == costs->stages - 1)
        cost += costs->last;
    return cost;
}

/* best[n] over the stages so far: the smallest score of putting the first n layers on them. In the
 * first pass the score is the largest cost of a stage; in the second it is the sum of squares, with
 * `cost_max` from the first pass as a bound, which makes the cut as even as can be.
 * choice[s][n] is the number of layers of stage s in that cut. */
static double cut_layers(const stage_costs_t *costs, uint32_t n_layers, bool squares,
                         double cost_max, uint16_t *choice)
{
    double best[MODEL_LAYERS_MAX + 1], next[MODEL_LAYERS_MAX + 1];
    for (uint32_t n = 0; n <= n_layers; n++)
        best[n] = n == 0 ? 0 : DBL_MAX;
    for (uint32_t s = 0; s < costs->stages; s++) {
        for (uint32_t n = 0; n <= n_layers; n++) {
            next[n] = DBL_MAX;
            /* Of equal scores the one with more layers on the earlier stages wins. */
            for (uint32_t here = 1; here <= n; here++) {
                double cost = stage_cost(costs, s, here), before = best[n - here];
                if (before == DBL_MAX || cost > cost_max)
                    continue;
                double score = squares ? before + cost * cost : (cost > before ? cost : before);
                if (score < next[n]) {
                    next[n] = score;
                    choice[s * (MODEL_LAYERS_MAX + 1) + n] = (uint16_t)here;
                }
            }
        }
        memcpy(best, next, sizeof best);
    }
    return best[n_layers];
}

status_t plan_stages(const plan_sizes_t *sizes, uint32_t stages,
                     plan_run_t layers_out[PLAN_STAGES_MAX])
{
    uint32_t n_layers = sizes->config.n_layers;
    uint32_t max = n_layers < PLAN_STAGES_MAX ? n_layers : PLAN_STAGES_MAX;
    CHECK(n_layers <= MODEL_LAYERS_MAX);
    if (stages < 1 || stages > max)
        return fail(STATUS_INVALID, "%u stages for %u layers; 1 to %u would be right", stages,
                    n_layers, max);
    stage_costs_t costs = {
        .layer = (double)(sizes->norm_values + sizes->q_values + sizes->kv_values +
                          sizes->output_values + sizes->ffn_values),
        .first = (double)sizes->norm_values / 2,
        .last = (double)sizes->head_values / 2,
        .stages = stages,
    };
    uint16_t *choice = MEM_NEW_ARRAY(uint16_t, (size_t)stages * (MODEL_LAYERS_MAX + 1));
    double cost_max = cut_layers(&costs, n_layers, false, DBL_MAX, choice);
    cut_layers(&costs, n_layers, true, cost_max, choice);
    uint32_t end = n_layers;
    for (uint32_t s = stages; s-- > 0;) {
        uint32_t here = choice[s * (MODEL_LAYERS_MAX + 1) + end];
        layers_out[s] = (plan_run_t){end - here, here};
        end -= here;
    }
    CHECK(end == 0);
    free(choice);
    return STATUS_OK;
}

/* --- memory --- */

static uint64_t share(uint64_t whole, uint32_t part, uint32_t of)
{
    /* Through 128 bits: bytes of a tensor times rows may pass 64. Rounded up. */
    return (uint64_t)(((unsigned __int128)whole * part + of - 1) / of);
}

/* Bytes of part/of of some tensors in the form the kernels keep them. */
static uint64_t packed(const plan_shape_t *shape, uint64_t values, uint64_t bytes, uint32_t part,
                       uint32_t of)
{
    if (shape->activations_f32)
        return share(values * sizeof(float), part, of);
    return share(bytes + bytes / 8, part, of);
}

static uint64_t whole_blocks(uint64_t tokens)
{
    return tokens / PLAN_KV_BLOCK * PLAN_KV_BLOCK;
}

uint64_t plan_kv_tokens_needed(const plan_shape_t *shape)
{
    return 2 * whole_blocks((uint64_t)shape->context_max + PLAN_KV_BLOCK - 1);
}

uint64_t plan_kv_tokens_wanted(const plan_shape_t *shape)
{
    if (shape->kv_tokens_max != 0)
        return whole_blocks(shape->kv_tokens_max);
    return plan_kv_tokens_needed(shape) * (PLAN_KV_SEQUENCES / 2);
}

static status_t check_shape(const plan_sizes_t *sizes, const plan_shape_t *shape)
{
    if (shape->tp < 1 || shape->tp > PLAN_TP_MAX)
        return fail(STATUS_INVALID, "tp is %u; 1 to %d would be right", shape->tp, PLAN_TP_MAX);
    uint32_t n_layers = sizes->config.n_layers;
    uint32_t max = n_layers < PLAN_STAGES_MAX ? n_layers : PLAN_STAGES_MAX;
    if (shape->stages < 1 || shape->stages > max || shape->stages * shape->tp > PLAN_RANKS_MAX)
        return fail(STATUS_INVALID, "%u stages of tp %u for %u layers; 1 to %u stages and at most "
                    "%d ranks would be right", shape->stages, shape->tp, n_layers, max,
                    PLAN_RANKS_MAX);
    if (shape->context_max < 1 || shape->context_max > sizes->config.context_train)
        return fail(STATUS_INVALID, "context_max is %u; the model was trained for %u, so 1 to %u "
                    "would be right", shape->context_max, sizes->config.context_train,
                    sizes->config.context_train);
    if (plan_kv_tokens_wanted(shape) < plan_kv_tokens_needed(shape))
        return fail(STATUS_INVALID, "kv_tokens_max %llu holds no two sequences of context_max %u; "
                    "%llu or more would be right", (unsigned long long)shape->kv_tokens_max,
                    shape->context_max, (unsigned long long)plan_kv_tokens_needed(shape));
    return STATUS_OK;
}

static uint64_t scratch_bytes(const plan_sizes_t *sizes, const plan_shape_t *shape,
                              const plan_slice_t *slice, bool last)
{
    const model_config_t *config = &sizes->config;
    uint64_t rows = shape->prefill_tokens_max ? shape->prefill_tokens_max : PLAN_STEP_ROWS;
    /* A row: residual, norm, its quantized copy and two partials of the exchange; q, its attention
     * output, k and v; gate, up and their product. All as F32. */
    uint64_t values = 5ull * config->hidden +
                      2ull * config->head_dim * (slice->heads.count + slice->kv_heads.count) +
                      3ull * slice->ffn.count;
    uint64_t bytes = rows * values * sizeof(float);
    if (last) /* the sampler also gathers whole rows of logits */
        bytes += (uint64_t)PLAN_LOGIT_ROWS * (slice->vocab.count + config->vocab) * sizeof(float);
    return bytes;
}

static void need_of(const plan_sizes_t *sizes, const plan_shape_t *shape, const plan_run_t *layers,
                    uint32_t stage, const plan_slice_t *slice, plan_need_t *out)
{
    const model_config_t *config = &sizes->config;
    bool last = stage == shape->stages - 1;
    uint64_t layer =
        packed(shape, sizes->norm_values, sizes->norm_bytes, 1, 1) +
        packed(shape, sizes->q_values, sizes->q_bytes, slice->heads.count, config->n_heads) +
        packed(shape, sizes->kv_values, sizes->kv_bytes, slice->kv_heads.count,
               config->n_kv_heads) +
        packed(shape, sizes->output_values, sizes->output_bytes, slice->heads.count,
               config->n_heads) +
        packed(shape, sizes->ffn_values, sizes->ffn_bytes, slice->ffn.count, config->ffn);
    plan_need_t need = {.process = PROCESS_BYTES};
    need.weights = layer * layers[stage].count;
    /* Rows of the embedding are read from the mapped file, so it counts as stored. */
    if (stage == 0)
        need.weights += sizes->embedding_bytes;
    if (last)
        need.weights += packed(shape, sizes->head_values, sizes->head_bytes, slice->vocab.count,
                               config->vocab);
    need.scratch = scratch_bytes(sizes, shape, slice, last);
    need.fixed = need.weights + need.scratch + need.process;
    uint64_t element = shape->activations_f32 ? 4 : 2;
    need.kv_per_token =
        2ull * layers[stage].count * slice->kv_heads.count * config->head_dim * element;
    *out = need;
}

status_t plan_needs(const plan_sizes_t *sizes, const plan_shape_t *shape,
                    plan_need_t needs_out[PLAN_RANKS_MAX], plan_run_t layers_out[PLAN_STAGES_MAX])
{
    TRY(check_shape(sizes, shape));
    TRY(plan_stages(sizes, shape->stages, layers_out));
    for (uint32_t slice = 0; slice < shape->tp; slice++) {
        plan_slice_t owned;
        TRY(plan_slice(&sizes->config, shape->tp, slice, &owned));
        for (uint32_t stage = 0; stage < shape->stages; stage++)
            need_of(sizes, shape, layers_out, stage, &owned,
                    &needs_out[stage * shape->tp + slice]);
    }
    return STATUS_OK;
}

status_t plan_need(const plan_sizes_t *sizes, const plan_shape_t *shape, uint32_t stage,
                   uint32_t slice, plan_need_t *out)
{
    plan_need_t needs[PLAN_RANKS_MAX];
    plan_run_t layers[PLAN_STAGES_MAX];
    TRY(plan_needs(sizes, shape, needs, layers));
    if (stage >= shape->stages || slice >= shape->tp)
        return fail(STATUS_INVALID, "stage %u, slice %u of %u stages of tp %u", stage, slice,
                    shape->stages, shape->tp);
    *out = needs[stage * shape->tp + slice];
    return STATUS_OK;
}

static uint64_t mib(uint64_t bytes)
{
    return (bytes + (1 << 20) - 1) >> 20;
}

static status_t too_small(const plan_shape_t *shape, const plan_need_t *need, uint32_t rank,
                          uint64_t memory_bytes)
{
    return fail(STATUS_REFUSED,
                "rank %u (stage %u, slice %u) has %llu MiB; it needs %llu MiB for weights, "
                "%llu MiB for work space and %llu MiB for two sequences of %u tokens: more "
                "stages, a larger tp or a smaller context_max would be right",
                rank, rank / shape->tp, rank % shape->tp, (unsigned long long)(memory_bytes >> 20),
                (unsigned long long)mib(need->weights),
                (unsigned long long)mib(need->scratch + need->process),
                (unsigned long long)mib(plan_kv_tokens_needed(shape) * need->kv_per_token),
                shape->context_max);
}

status_t plan_fit(const plan_sizes_t *sizes, const plan_shape_t *shape,
                  const uint64_t *memory_bytes, uint64_t *kv_tokens_out)
{
    plan_need_t needs[PLAN_RANKS_MAX];
    plan_run_t layers[PLAN_STAGES_MAX];
    TRY(plan_needs(sizes, shape, needs, layers));
    uint64_t tokens = plan_kv_tokens_wanted(shape);
    uint64_t shortfall_max = 0;
    uint32_t tightest = 0;
    for (uint32_t rank = 0; rank < shape->tp * shape->stages; rank++) {
        const plan_need_t *need = &needs[rank];
        uint64_t least = need->fixed + plan_kv_tokens_needed(shape) * need->kv_per_token;
        if (memory_bytes[rank] < least) {
            if (least - memory_bytes[rank] > shortfall_max) {
                shortfall_max = least - memory_bytes[rank];
                tightest = rank;
            }
        } else if (need->kv_per_token != 0 &&
                   (memory_bytes[rank] - need->fixed) / need->kv_per_token < tokens) {
            tokens = (memory_bytes[rank] - need->fixed) / need->kv_per_token;
        }
    }
    if (shortfall_max != 0)
        return too_small(shape, &needs[tightest], tightest, memory_bytes[tightest]);
    *kv_tokens_out = whole_blocks(tokens);
    return STATUS_OK;
}
