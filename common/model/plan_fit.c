/* Layers to stages by cost, and memory: what a rank needs and how many KV tokens fit. See
 * plan.h. */
#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/kv_type.h"
#include "common/model/plan.h"

/* Code, stacks, the allocator's slack, the fabric's rings and the program's libraries. */
static const uint64_t PROCESS_BYTES = 64ull << 20;

/* Of one layer, by how its tensors are cut. */
typedef struct {
    uint64_t values[MODEL_CUT_ROWS_VOCAB + 1], bytes[MODEL_CUT_ROWS_VOCAB + 1];
} layer_sizes_t;

static void add_tensor(const model_tensor_t *tensor, uint64_t times, layer_sizes_t *out)
{
    if (tensor == NULL)
        return;
    out->values[tensor->cut] += tensor->rows * tensor->columns * times;
    out->bytes[tensor->cut] += tensor->bytes * times;
}

static void add_largest(const layer_sizes_t *layer, model_cut_t a, model_cut_t b,
                        uint64_t *values_max, uint64_t *bytes_max)
{
    uint64_t values = layer->values[a], bytes = layer->bytes[a];
    if (b != a) {
        values += layer->values[b];
        bytes += layer->bytes[b];
    }
    *values_max = values > *values_max ? values : *values_max;
    *bytes_max = bytes > *bytes_max ? bytes : *bytes_max;
}

/* What plan_projection_slices() is of. */
static void add_projections(const model_t *model, uint32_t layer, plan_sizes_t *out)
{
    static const model_role_t roles[] = {
        MODEL_ATTN_Q_A,          MODEL_ATTN_KV_A,           MODEL_COMPRESS_KV,
        MODEL_COMPRESS_GATE,     MODEL_INDEX_COMPRESS_KV,   MODEL_INDEX_COMPRESS_GATE,
        MODEL_INDEX_Q_B,         MODEL_INDEX_K,             MODEL_INDEX_WEIGHTS,
    };
    uint64_t values = 0, bytes = 0;
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++) {
        const model_tensor_t *tensor = model_tensor(model, roles[i], layer);
        values += tensor ? tensor->rows * tensor->columns : 0;
        bytes += tensor ? tensor->bytes : 0;
    }
    out->projection_values = values > out->projection_values ? values : out->projection_values;
    out->projection_bytes = bytes > out->projection_bytes ? bytes : out->projection_bytes;
}

static void add_layer(const model_t *model, uint32_t layer, plan_sizes_t *out)
{
    layer_sizes_t sizes = {0};
    for (int role = MODEL_ATTN_NORM; role < MODEL_N_ROLES; role++)
        add_tensor(model_tensor(model, (model_role_t)role, layer),
                   role < MODEL_EXPERT_GATE ? 1 : out->config.experts.n, &sizes);
    add_largest(&sizes, MODEL_CUT_NONE, MODEL_CUT_NONE, &out->norm_values, &out->norm_bytes);
    add_projections(model, layer, out);
    add_largest(&sizes, MODEL_CUT_ROWS_HEADS, MODEL_CUT_ROWS_HEADS, &out->q_values, &out->q_bytes);
    add_largest(&sizes, MODEL_CUT_ROWS_KV_HEADS, MODEL_CUT_ROWS_KV_HEADS, &out->kv_values,
                &out->kv_bytes);
    add_largest(&sizes, MODEL_CUT_COLUMNS_HEADS, MODEL_CUT_COLUMNS_HEADS, &out->output_values,
                &out->output_bytes);
    add_largest(&sizes, MODEL_CUT_ROWS_FFN, MODEL_CUT_COLUMNS_FFN, &out->ffn_values,
                &out->ffn_bytes);
    add_largest(&sizes, MODEL_CUT_ROWS_EXPERT, MODEL_CUT_COLUMNS_EXPERT, &out->expert_values,
                &out->expert_bytes);
    add_largest(&sizes, MODEL_CUT_ROWS_SHARED, MODEL_CUT_COLUMNS_SHARED, &out->shared_values,
                &out->shared_bytes);
}

void plan_sizes(const model_t *model, plan_sizes_t *out)
{
    const model_tensor_t *embedding = model_tensor(model, MODEL_TOKEN_EMBD, 0);
    const model_tensor_t *norm = model_tensor(model, MODEL_OUTPUT_NORM, 0);
    const model_tensor_t *head = model_tensor(model, MODEL_OUTPUT, 0);
    *out = (plan_sizes_t){
        .config = *model_config(model),
        .file_bytes = source_bytes(model_source(model)),
        .embedding_values = embedding->rows * embedding->columns,
        .embedding_bytes = embedding->rows * embedding->row_bytes, /* it is kept as stored */
        .head_values = norm->columns + head->rows * head->columns,
        .head_bytes = norm->bytes + head->bytes,
    };
    for (uint32_t layer = 0; layer < out->config.n_layers; layer++)
        add_layer(model, layer, out);
}

/* --- stages --- */

typedef struct {
    double before[MODEL_LAYERS_MAX + 1]; /* all layers before the n-th */
    double first, last;                  /* extra of stage 0; extra of the last stage */
    uint32_t stages;
} stage_costs_t;

/* Of layers [end - n_layers, end). */
static double stage_cost(const stage_costs_t *costs, uint32_t stage, uint32_t end,
                         uint32_t n_layers)
{
    double cost = costs->before[end] - costs->before[end - n_layers];
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
                double cost = stage_cost(costs, s, n, here), before = best[n - here];
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

static void layer_costs(const plan_sizes_t *sizes, stage_costs_t *out)
{
    const model_config_t *config = &sizes->config;
    double attention = (double)(sizes->norm_values + sizes->q_values + sizes->kv_values +
                                sizes->output_values);
    double dense = attention + (double)sizes->ffn_values, experts = attention;
    if (config->experts.n > 0)
        experts += (double)sizes->shared_values +
                   (double)sizes->expert_values * config->experts.n_used / config->experts.n;
    out->before[0] = 0;
    for (uint32_t i = 0; i < config->n_layers; i++)
        out->before[i + 1] =
            out->before[i] + (config->layers[i].ffn == MODEL_FFN_DENSE ? dense : experts);
}

bool plan_head_is_large(const plan_sizes_t *sizes, uint32_t stages)
{
    stage_costs_t costs;
    layer_costs(sizes, &costs);
    uint32_t n_layers = sizes->config.n_layers;
    return stages > 1 && (double)sizes->head_values * n_layers > costs.before[n_layers];
}

status_t plan_stages(const plan_sizes_t *sizes, uint32_t stages, bool shared_head,
                     plan_run_t layers_out[PLAN_STAGES_MAX])
{
    uint32_t n_layers = sizes->config.n_layers;
    uint32_t max = n_layers < PLAN_STAGES_MAX ? n_layers : PLAN_STAGES_MAX;
    CHECK(n_layers <= MODEL_LAYERS_MAX);
    if (stages < 1 || stages > max)
        return fail(STATUS_INVALID, "%u stages for %u layers; 1 to %u would be right", stages,
                    n_layers, max);
    stage_costs_t costs = {
        .first = (double)sizes->norm_values / 2,
        .last = shared_head ? 0 : (double)sizes->head_values,
        .stages = stages,
    };
    layer_costs(sizes, &costs);
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

static uint64_t pools_of(const plan_shape_t *shape)
{
    return shape->attention_replicas ? shape->attention_replicas : 1;
}

uint32_t plan_kv_window(const model_config_t *config)
{
    uint32_t widest = 0;
    for (uint32_t i = 0; i < config->n_layers; i++) {
        const model_layer_t *layer = &config->layers[i];
        if (layer->window == 0 || layer->rate > 0)
            return 0; /* entries of windows long past are seen */
        widest = layer->window > widest ? layer->window : widest;
    }
    return widest;
}

/* Of one sequence of context_max. */
static uint64_t sequence_tokens(const model_config_t *config, const plan_shape_t *shape)
{
    uint64_t rows = shape->prefill_tokens_max ? shape->prefill_tokens_max : PLAN_STEP_ROWS;
    uint64_t tokens = plan_kv_tokens_held(plan_kv_window(config), rows, shape->context_max);
    return whole_blocks(tokens + PLAN_KV_BLOCK - 1);
}

uint64_t plan_kv_tokens_needed(const model_config_t *config, const plan_shape_t *shape)
{
    uint64_t pools = pools_of(shape), sequences = pools > 2 ? pools : 2;
    return sequences * sequence_tokens(config, shape);
}

uint64_t plan_kv_tokens_wanted(const model_config_t *config, const plan_shape_t *shape)
{
    uint64_t pools = pools_of(shape);
    if (shape->kv_tokens_max != 0)
        return pools * whole_blocks(shape->kv_tokens_max / pools);
    return pools * PLAN_KV_SEQUENCES * sequence_tokens(config, shape);
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
    if (plan_kv_tokens_wanted(&sizes->config, shape) <
        plan_kv_tokens_needed(&sizes->config, shape))
        return fail(STATUS_INVALID, "kv_tokens_max %llu holds no %s of context_max %u; "
                    "%llu or more would be right", (unsigned long long)shape->kv_tokens_max,
                    pools_of(shape) > 2 ? "sequence on each replica of attention" : "two sequences",
                    shape->context_max,
                    (unsigned long long)plan_kv_tokens_needed(&sizes->config, shape));
    return STATUS_OK;
}

static uint64_t scratch_bytes(const plan_sizes_t *sizes, const plan_shape_t *shape,
                              const plan_slice_t *slice, plan_run_t head, bool last)
{
    const model_config_t *config = &sizes->config;
    uint64_t rows = shape->prefill_tokens_max ? shape->prefill_tokens_max : PLAN_STEP_ROWS;
    /* A row: residual, norm, its quantized copy and two partials of the exchange; q, its attention
     * output, k and v; gate, up and their product. All as F32. */
    uint64_t values = 2ull * model_residual(config) + 3ull * config->hidden +
                      2ull * config->head_dim * (slice->heads.count + slice->kv_heads.count) +
                      3ull * slice->ffn.count;
    const model_latent_t *latent = &config->latent;
    if (latent->kv_rank > 0) /* absorbed queries, and latents before they become values */
        values += (uint64_t)slice->heads.count * (2ull * latent->kv_rank + latent->rope_dim) +
                  latent->q_rank + latent->kv_rank + latent->rope_dim;
    if (config->experts.n > 0) /* sums of 8 bytes, this rank's and the group's */
        values += 2ull * config->hidden * (shape->tp + 1) + config->experts.n +
                  3ull * slice->expert_ffn.count * config->experts.n_used +
                  3ull * slice->shared_ffn.count;
    uint64_t bytes = rows * values * sizeof(float);
    /* The sampler also gathers whole rows of logits. */
    bytes += (uint64_t)PLAN_LOGIT_ROWS * (head.count + (last ? config->vocab : 0)) * sizeof(float);
    return bytes;
}

static uint64_t ffn_bytes(const plan_sizes_t *sizes, const plan_shape_t *shape,
                          const plan_slice_t *slice, uint32_t layer)
{
    const model_config_t *config = &sizes->config;
    const model_experts_t *experts = &config->experts;
    if (config->layers[layer].ffn == MODEL_FFN_DENSE)
        return packed(shape, sizes->ffn_values, sizes->ffn_bytes, slice->ffn.count, config->ffn);
    uint64_t whole = share(sizes->expert_bytes, slice->experts.count, experts->n);
    uint64_t values = share(sizes->expert_values, slice->experts.count, experts->n);
    uint64_t bytes = packed(shape, values, whole, slice->expert_ffn.count, experts->ffn);
    if (experts->shared_ffn > 0)
        bytes += packed(shape, sizes->shared_values, sizes->shared_bytes, slice->shared_ffn.count,
                        experts->shared_ffn);
    return bytes;
}

/* What a token leaves in the caches of one layer. `element` is the size of an ordinary value; what is
 * kept of each position until its entry is made is F32, and an entry counts by the token: by those
 * of a block where it stands for more, as each block has room for one. */
static uint64_t kv_bytes(const model_config_t *config, const plan_slice_t *slice, uint32_t layer,
                         const plan_shape_t *shape)
{
    uint64_t element = shape->activations_f32 ? 4 : shape->kv_codes ? 1 : 2;
    uint64_t scale = element == 1 ? KV_TYPE_SCALE_BYTES : 0;
    const model_layer_t *kind = &config->layers[layer];
    uint64_t dim = config->head_dim, index = kind->indexed ? config->index.head_dim : 0;
    if (slice->heads.count == 0)
        return 0;
    switch ((model_attention_kind_t)kind->attention) {
    case MODEL_ATTENTION_GROUPED:
        return slice->kv_heads.count * (plan_head_values(dim) * element + 2 * scale);
    case MODEL_ATTENTION_LATENT:
        return ((uint64_t)config->latent.kv_rank + config->latent.rope_dim + index) * element;
    case MODEL_ATTENTION_COMPRESSED: break;
    }
    if (kind->rate == 0)
        return dim * element;
    uint64_t width = kind->indexed ? 2 : 1, positions = plan_entry_positions(kind->rate);
    return dim * element + 2 * width * (dim + index) * sizeof(float) +
           ((dim + index) * element + positions - 1) / positions;
}

static void need_of(const plan_sizes_t *sizes, const plan_shape_t *shape, const plan_run_t *layers,
                    uint32_t stage, uint32_t slice_index, const plan_slice_t *slice,
                    plan_need_t *out)
{
    const model_config_t *config = &sizes->config;
    bool last = stage == shape->stages - 1;
    plan_run_t head = plan_head_run(config->vocab, shape->tp, shape->stages, shape->shared_head,
                                    stage, slice_index);
    uint64_t attention =
        packed(shape, sizes->norm_values - sizes->projection_values,
               sizes->norm_bytes - sizes->projection_bytes, 1, 1) +
        packed(shape, sizes->projection_values, sizes->projection_bytes,
               slice->projection_slices > 0, slice->projection_slices > 0
                                                 ? slice->projection_slices : 1) +
        packed(shape, sizes->q_values, sizes->q_bytes, slice->heads.count, config->n_heads) +
        packed(shape, sizes->kv_values, sizes->kv_bytes, slice->kv_heads.count,
               config->n_kv_heads) +
        packed(shape, sizes->output_values, sizes->output_bytes, slice->heads.count,
               config->n_heads);
    plan_need_t need = {.process = PROCESS_BYTES, .kv_pools = (uint32_t)pools_of(shape)};
    for (uint32_t i = 0; i < layers[stage].count; i++)
        need.weights += attention + ffn_bytes(sizes, shape, slice, layers[stage].first + i);
    /* Rows of the embedding are read from the mapped file, so it counts as stored. */
    if (stage == 0)
        need.weights += sizes->embedding_bytes;
    need.weights += packed(shape, sizes->head_values, sizes->head_bytes, head.count, config->vocab);
    need.scratch = scratch_bytes(sizes, shape, slice, head, last);
    need.draft = stage == 0 && slice_index == 0 ? shape->draft_bytes : 0;
    need.fixed = need.weights + need.scratch + need.process + need.draft;
    for (uint32_t i = 0; i < layers[stage].count; i++)
        need.kv_per_token += kv_bytes(config, slice, layers[stage].first + i, shape);
    *out = need;
}

status_t plan_needs(const plan_sizes_t *sizes, const plan_shape_t *shape,
                    plan_need_t needs_out[PLAN_RANKS_MAX], plan_run_t layers_out[PLAN_STAGES_MAX])
{
    TRY(check_shape(sizes, shape));
    plan_cut_t cut;
    plan_cut_t wanted = plan_shape_cut(shape);
    TRY(plan_cut(&sizes->config, &wanted, &cut));
    TRY(plan_stages(sizes, shape->stages, shape->shared_head, layers_out));
    for (uint32_t slice = 0; slice < shape->tp; slice++) {
        plan_slice_t owned;
        TRY(plan_slice(&sizes->config, &cut, slice, &owned));
        for (uint32_t stage = 0; stage < shape->stages; stage++)
            need_of(sizes, shape, layers_out, stage, slice, &owned,
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

status_t plan_draft_bytes(const plan_sizes_t *draft, uint32_t context_max, uint64_t *bytes_out)
{
    uint32_t trained = draft->config.context_train;
    plan_shape_t shape = {.tp = 1, .stages = 1, .context_max = trained, .prefill_tokens_max = 256};
    if (context_max > 0 && context_max < trained)
        shape.context_max = context_max;
    plan_need_t need;
    TRY(plan_need(draft, &shape, 0, 0, &need));
    *bytes_out = need.weights + need.scratch +
                 plan_kv_bytes(&need, plan_draft_tokens(shape.context_max));
    return STATUS_OK;
}

static uint64_t mib(uint64_t bytes)
{
    return (bytes + (1 << 20) - 1) >> 20;
}

static status_t too_small(const model_config_t *config, const plan_shape_t *shape,
                          const plan_need_t *need, uint32_t rank,
                          uint64_t memory_bytes)
{
    return fail(STATUS_REFUSED,
                "rank %u (stage %u, slice %u) has %llu MiB; it needs %llu MiB for weights, "
                "%llu MiB for work space and %llu MiB for %s of %u tokens: more "
                "stages, a larger tp or a smaller context_max would be right",
                rank, rank / shape->tp, rank % shape->tp, (unsigned long long)(memory_bytes >> 20),
                (unsigned long long)mib(need->weights + need->draft),
                (unsigned long long)mib(need->scratch + need->process),
                (unsigned long long)mib(plan_kv_bytes(need, plan_kv_tokens_needed(config, shape))),
                pools_of(shape) > 1 ? "a sequence" : "two sequences", shape->context_max);
}

status_t plan_fit(const plan_sizes_t *sizes, const plan_shape_t *shape,
                  const uint64_t *memory_bytes, uint64_t *kv_tokens_out)
{
    plan_need_t needs[PLAN_RANKS_MAX];
    plan_run_t layers[PLAN_STAGES_MAX];
    TRY(plan_needs(sizes, shape, needs, layers));
    const model_config_t *config = &sizes->config;
    uint64_t tokens = plan_kv_tokens_wanted(config, shape);
    uint64_t shortfall_max = 0;
    uint32_t tightest = 0;
    for (uint32_t rank = 0; rank < shape->tp * shape->stages; rank++) {
        const plan_need_t *need = &needs[rank];
        uint64_t least = need->fixed + plan_kv_bytes(need, plan_kv_tokens_needed(config, shape));
        if (memory_bytes[rank] < least) {
            if (least - memory_bytes[rank] > shortfall_max) {
                shortfall_max = least - memory_bytes[rank];
                tightest = rank;
            }
        } else {
            uint64_t room = plan_kv_tokens(need, memory_bytes[rank] - need->fixed);
            tokens = room < tokens ? room : tokens;
        }
    }
    if (shortfall_max != 0)
        return too_small(config, shape, &needs[tightest], tightest, memory_bytes[tightest]);
    *kv_tokens_out = pools_of(shape) * whole_blocks(tokens / pools_of(shape));
    return STATUS_OK;
}
