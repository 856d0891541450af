/* Which of the cuts that all give the same numbers a replica takes. See plan.h.
 *
 * Tensor-parallel inside experts keeps every slice equally busy whatever a token chooses, but
 * leaves of an expert are few and cannot always be dealt out evenly: 4 leaves on 3 slices are 1, 1
 * and 2. Whole experts divide evenly in number but not in what one token chooses of them. The rule
 * weighs both. The coordinator's answer is written into the plan, so a rank never has to find the
 * same. */
#include "common/model/plan.h"

enum { CHOSEN_MAX = MODEL_EXPERTS_USED_MAX };

static uint32_t group_size(uint32_t n_experts, uint32_t groups, uint32_t group)
{
    uint64_t n = n_experts;
    return (uint32_t)((group + 1) * n / groups - group * n / groups);
}

static uint32_t largest_group(uint32_t n_experts, uint32_t groups)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < groups; i++) {
        uint32_t n = group_size(n_experts, groups, i);
        most = n > most ? n : most;
    }
    return most;
}

/* The number of ways to choose n_used of the experts with at most `most` of each group. At most
 * 1024 choose 64, which a double holds; an inexact last digit changes nothing here. */
static double ways(const model_experts_t *experts, uint32_t groups, uint32_t most)
{
    double sum[CHOSEN_MAX + 1] = {1};
    for (uint32_t g = 0; g < groups; g++) {
        double next[CHOSEN_MAX + 1] = {0};
        uint32_t n = group_size(experts->n, groups, g);
        double choose = 1; /* c of n */
        for (uint32_t c = 0; c <= most && c <= n && c <= experts->n_used; c++) {
            for (uint32_t j = c; j <= experts->n_used; j++)
                next[j] += sum[j - c] * choose;
            choose = choose * (n - c) / (c + 1);
        }
        for (uint32_t j = 0; j <= experts->n_used; j++)
            sum[j] = next[j];
    }
    return sum[experts->n_used];
}

/* The expected part of a token's experts that falls to the group which has most of them, when every
 * choice is as likely as any other. */
static double busiest_part(const model_experts_t *experts, uint32_t groups)
{
    double all = 0, sum = 0;
    if (groups == 1)
        return 1;
    CHECK(experts->n_used >= 1 && experts->n_used <= CHOSEN_MAX);
    all = ways(experts, groups, experts->n_used);
    for (uint32_t m = 0; m < experts->n_used; m++)
        sum += 1 - ways(experts, groups, m) / all;
    return sum / experts->n_used;
}

/* The largest part of one expert that a slice of a group of `inside` has. */
static double widest_part(const model_experts_t *experts, uint32_t inside)
{
    plan_leaves_t leaves;
    uint32_t widest = 0;
    plan_leaf_edges_expert(experts->ffn, &leaves);
    for (uint32_t i = 0; i < inside; i++) {
        plan_run_t run = plan_leaf_run(leaves.n, inside, i);
        uint32_t width = leaves.edge[run.first + run.count] - leaves.edge[run.first];
        widest = width > widest ? width : widest;
    }
    return (double)widest / experts->ffn;
}

static bool is_possible(uint32_t tp, uint32_t groups)
{
    return groups > 0 && tp % groups == 0 && tp / groups <= PLAN_EXPERT_LEAVES;
}

/* The smallest cost wins, and of costs that differ by rounding alone the fewest groups. */
static uint32_t choose_groups(const model_experts_t *experts, uint32_t tp, bool by_bytes)
{
    uint32_t best = 0;
    double least = 0;
    for (uint32_t groups = 1; groups <= tp; groups++) {
        if (!is_possible(tp, groups))
            continue;
        double cost = (double)largest_group(experts->n, groups) / experts->n;
        if (!by_bytes)
            cost += busiest_part(experts, groups);
        cost *= widest_part(experts, tp / groups);
        if (best == 0 || cost < least * (1 - 1e-9)) {
            best = groups;
            least = cost;
        }
    }
    return best;
}

status_t plan_cut(const model_config_t *config, const plan_cut_t *wanted, plan_cut_t *out)
{
    const model_experts_t *experts = &config->experts;
    uint32_t tp = wanted->tp, expert_groups = wanted->expert_groups;
    uint32_t attention_slices = wanted->attention_slices;
    uint32_t replicas = wanted->attention_replicas ? wanted->attention_replicas : 1;
    if (tp < 1 || tp > PLAN_TP_MAX)
        return fail(STATUS_INVALID, "tp is %u; 1 to %d would be right", tp, PLAN_TP_MAX);
    if (attention_slices > tp)
        return fail(STATUS_INVALID, "attention on %u of %u slices; 1 to %u would be right",
                    attention_slices, tp, tp);
    attention_slices = attention_slices ? attention_slices : tp;
    if (attention_slices % replicas != 0)
        return fail(STATUS_INVALID, "%u replicas of attention on %u slices; a divisor of %u would be "
                    "right", replicas, attention_slices, attention_slices);
    if (expert_groups != 0 && experts->n == 0)
        return fail(STATUS_INVALID, "%u groups of experts, but the model has no experts",
                    expert_groups);
    if (expert_groups != 0 && !is_possible(tp, expert_groups))
        return fail(STATUS_INVALID, "%u groups of experts on %u slices; a divisor of %u would be "
                    "right that leaves a group at most %d slices, as many as an expert has leaves",
                    expert_groups, tp, tp, PLAN_EXPERT_LEAVES);
    *out = (plan_cut_t){.tp = tp, .expert_groups = expert_groups,
                        .attention_slices = attention_slices, .attention_replicas = replicas};
    if (experts->n > 0 && expert_groups == 0)
        out->expert_groups = choose_groups(experts, tp, false);
    return STATUS_OK;
}

/* Holder i is this slice. */
static uint32_t holder_slice(const plan_cut_t *cut, uint32_t i)
{
    return i * cut->tp / cut->attention_slices;
}

plan_run_t plan_attention_run(const plan_cut_t *cut, uint32_t n_leaves, uint32_t slice)
{
    uint32_t tp = cut->tp, holders = cut->attention_slices;
    CHECK(slice < tp && holders >= 1 && holders <= tp && cut->attention_replicas >= 1);
    uint32_t inside = holders / cut->attention_replicas;
    /* The first holder at this slice or behind it. */
    uint32_t next = (slice * holders + tp - 1) / tp;
    if (next < holders && holder_slice(cut, next) == slice)
        return plan_leaf_run(n_leaves, inside, next % inside);
    bool last = next % inside == 0; /* what comes next belongs to another replica, or to none */
    return (plan_run_t){last ? n_leaves : plan_leaf_run(n_leaves, inside, next % inside).first, 0};
}

plan_run_t plan_attention_slices(const plan_cut_t *cut, uint32_t replica)
{
    uint32_t inside = cut->attention_slices / cut->attention_replicas;
    CHECK(replica < cut->attention_replicas);
    uint32_t first = holder_slice(cut, replica * inside);
    return (plan_run_t){first, holder_slice(cut, (replica + 1) * inside) - first};
}

/* Whether a slice with attention keeps the cache of all heads. */
static bool cache_is_whole(const model_config_t *config)
{
    for (uint32_t i = 0; i < config->n_layers; i++)
        if (config->layers[i].attention == MODEL_ATTENTION_GROUPED)
            return false;
    return true;
}

status_t plan_cuts(const model_config_t *config, const plan_shape_t *shape,
                   plan_cut_t cuts_out[PLAN_CUTS_MAX], uint32_t *n_out)
{
    plan_cut_t cut;
    uint32_t n = 0;
    plan_cut_t wanted = plan_shape_cut(shape);
    TRY(plan_cut(config, &wanted, &cut));
    cuts_out[n++] = cut;
    if (config->experts.n > 0 && shape->expert_groups == 0) {
        cut.expert_groups = choose_groups(&config->experts, shape->tp, true);
        if (cut.expert_groups != cuts_out[0].expert_groups)
            cuts_out[n++] = cut;
    }
    if (shape->attention_slices == 0 && cache_is_whole(config))
        while (cut.attention_slices / 2 >= cut.attention_replicas &&
               cut.attention_slices / 2 % cut.attention_replicas == 0) {
            cut.attention_slices /= 2;
            CHECK(n < PLAN_CUTS_MAX);
            cuts_out[n++] = cut;
        }
    *n_out = n;
    return STATUS_OK;
}

/* --- projections --- */

/* Values of weights that a slice is spared in a layer where sharing is to pay: an exchange costs 5
 * to 50 µs, in which a core reads about so many bytes. */
#define SPARED_VALUES_MIN ((uint64_t)1 << 20)

uint32_t plan_projection_columns(const model_config_t *config, uint32_t layer, bool second)
{
    const model_layer_t *kind = &config->layers[layer];
    const model_index_t *index = &config->index;
    bool latent = kind->attention == MODEL_ATTENTION_LATENT && config->latent.q_rank > 0;
    if (!latent && kind->attention != MODEL_ATTENTION_COMPRESSED)
        return 0;
    if (second)
        return kind->indexed ? index->n_heads * index->head_dim : 0;
    uint32_t weights = kind->indexed ? index->n_heads : 0;
    if (latent)
        return config->latent.q_rank + config->latent.kv_rank + config->latent.rope_dim +
               (kind->indexed ? index->head_dim : 0) + weights;
    uint32_t compressors = kind->indexed    ? 4 * (config->head_dim + index->head_dim)
                           : kind->rate > 0 ? 2 * config->head_dim : 0;
    return config->compressed.q_rank + config->head_dim + compressors + weights;
}

/* Of the layer that has most of them; and the fewest columns from rows that one has. */
static uint64_t projection_values(const model_config_t *config, uint32_t *columns_min_out)
{
    uint64_t most = 0;
    *columns_min_out = UINT32_MAX;
    for (uint32_t i = 0; i < config->n_layers; i++) {
        bool latent = config->layers[i].attention == MODEL_ATTENTION_LATENT;
        uint64_t rank = latent ? config->latent.q_rank : config->compressed.q_rank;
        uint32_t columns = plan_projection_columns(config, i, false);
        uint64_t values = (uint64_t)columns * config->hidden +
                          rank * plan_projection_columns(config, i, true);
        most = values > most ? values : most;
        *columns_min_out = columns < *columns_min_out ? columns : *columns_min_out;
    }
    return most;
}

/* A slice with attention has columns of its first projection, to the latents of queries and keys. */
static uint32_t first_columns(const model_config_t *config)
{
    if (config->latent.q_rank > 0)
        return config->latent.q_rank + config->latent.kv_rank + config->latent.rope_dim;
    return config->compressed.q_rank + config->head_dim;
}

uint32_t plan_projection_slices(const model_config_t *config, const plan_cut_t *cut, bool always)
{
    plan_leaves_t leaves;
    uint32_t n = 0, columns_min;
    uint64_t values = projection_values(config, &columns_min);
    plan_leaf_edges_attention(config, &leaves);
    for (uint32_t i = 0; i < cut->tp; i++)
        n += plan_attention_run(cut, leaves.n, i).count > 0;
    if (cut->attention_replicas > 1) /* which have different rows */
        return 1;
    if (n < 2 || columns_min == 0 || first_columns(config) < n * PLAN_PROJECTION_COLUMNS)
        return 1;
    return always || values / n * (n - 1) >= SPARED_VALUES_MIN ? n : 1;
}

plan_run_t plan_projection_run(uint32_t columns, uint32_t slices, uint32_t index)
{
    uint64_t units = (columns + PLAN_PROJECTION_COLUMNS - 1) / PLAN_PROJECTION_COLUMNS;
    uint32_t first = (uint32_t)(units * index / slices) * PLAN_PROJECTION_COLUMNS;
    uint32_t end = (uint32_t)(units * (index + 1) / slices) * PLAN_PROJECTION_COLUMNS;
    return (plan_run_t){first, (end < columns ? end : columns) - first};
}

/* --- sums --- */

/* A second wait is worth so many bytes less for each slice: some 20 µs of copying. */
#define PIECES_SAVE_MIN ((uint64_t)128 << 10)

bool plan_sums_by_pieces(uint32_t tp, uint64_t n, uint64_t bytes_all)
{
    uint64_t each = bytes_all * (tp - 1) / tp; /* what others have of an element, on average */
    return tp > 1 && each > sizeof(float) &&
           n * (tp - 1) / tp * (each - sizeof(float)) >= PIECES_SAVE_MIN;
}
