/* Leaves, the tree over them, and what each slice of a stage owns. See plan.h. */
#include "common/model/plan.h"

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* floor(i * k / n) without overflow: edges of n parts of k. */
static uint32_t edge_floor(uint32_t k, uint32_t n, uint32_t i)
{
    return (uint32_t)((uint64_t)i * k / n);
}

/* ceil(i * k / n): as even, with the larger parts first. */
static uint32_t edge_ceil(uint32_t k, uint32_t n, uint32_t i)
{
    return (uint32_t)(((uint64_t)i * k + n - 1) / n);
}

/* How many leaves K inputs are cut into: of LEAF_WIDTH and more, but never fewer than four, which
 * is what lets small models be cut at all. */
static uint32_t leaf_count(uint64_t k, uint32_t n_max)
{
    enum { LEAF_WIDTH = 256, LEAVES_MIN = 4 };
    uint64_t n = k / LEAF_WIDTH;
    n = n < LEAVES_MIN ? LEAVES_MIN : n;
    return n < n_max ? (uint32_t)n : n_max;
}

void plan_leaf_edges_heads(uint32_t n_heads, uint32_t d, plan_leaves_t *out)
{
    CHECK(n_heads > 0);
    out->n = leaf_count((uint64_t)n_heads * d, min_u32(n_heads, PLAN_LEAVES_MAX));
    for (uint32_t i = 0; i <= out->n; i++)
        out->edge[i] = edge_floor(n_heads, out->n, i);
}

static void leaf_edges(uint32_t k, uint32_t n_max, plan_leaves_t *out)
{
    CHECK(k > 0);
    uint32_t unit = k < 512 ? 8 : 32;
    uint32_t n_units = (k + unit - 1) / unit;
    out->n = leaf_count(k, n_max);
    for (uint32_t i = 0; i <= out->n; i++)
        out->edge[i] = min_u32(unit * edge_floor(n_units, out->n, i), k);
    out->edge[out->n] = k;
}

/* What attention output is cut between: heads, or groups of heads that a projection of each group
 * has made narrower. `width` is what the output reads of one. */
typedef struct {
    uint32_t n, width, heads;
} output_units_t;

static output_units_t output_units(const model_config_t *config)
{
    const model_compressed_t *compressed = &config->compressed;
    if (compressed->groups > 0)
        return (output_units_t){compressed->groups, compressed->group_rank,
                                config->n_heads / compressed->groups};
    bool latent = config->latent.value_dim > 0;
    return (output_units_t){config->n_heads,
                            latent ? config->latent.value_dim : config->head_dim, 1};
}

void plan_leaf_edges_attention(const model_config_t *config, plan_leaves_t *out)
{
    output_units_t units = output_units(config);
    plan_leaf_edges_heads(units.n, units.width, out);
    for (uint32_t i = 0; i <= out->n; i++)
        out->edge[i] *= units.heads;
}

void plan_leaf_edges_output(const model_config_t *config, plan_leaves_t *out)
{
    output_units_t units = output_units(config);
    plan_leaf_edges_heads(units.n, units.width, out);
    for (uint32_t i = 0; i <= out->n; i++)
        out->edge[i] *= units.width;
}

void plan_leaf_edges_ffn(uint32_t k, plan_leaves_t *out)
{
    leaf_edges(k, PLAN_LEAVES_MAX, out);
}

void plan_leaf_edges_expert(uint32_t k, plan_leaves_t *out)
{
    leaf_edges(k, PLAN_EXPERT_LEAVES, out);
}

uint32_t plan_tp_max(const model_config_t *config)
{
    plan_leaves_t leaves;
    plan_leaf_edges_attention(config, &leaves);
    uint32_t most = leaves.n;
    if (config->ffn > 0) {
        plan_leaf_edges_ffn(config->ffn, &leaves);
        most = leaves.n > most ? leaves.n : most;
    }
    if (config->experts.n > 0) {
        plan_leaf_edges_expert(config->experts.ffn, &leaves);
        most = leaves.n * config->experts.n > most ? leaves.n * config->experts.n : most;
    }
    return most < PLAN_TP_MAX ? most : PLAN_TP_MAX;
}

static bool is_power_of_two(uint32_t n)
{
    return n != 0 && (n & (n - 1)) == 0;
}

plan_run_t plan_leaf_run(uint32_t n_leaves, uint32_t tp, uint32_t slice)
{
    CHECK(tp > 0 && slice < tp);
    if (!is_power_of_two(tp)) {
        uint32_t first = edge_floor(n_leaves, tp, slice);
        return (plan_run_t){first, edge_floor(n_leaves, tp, slice + 1) - first};
    }
    /* Walk down the tree: the slice's bits, highest first, say left or right. */
    plan_run_t run = {0, n_leaves};
    for (uint32_t bit = tp / 2; bit != 0; bit /= 2) {
        uint32_t left = (run.count + 1) / 2;
        if (slice & bit)
            run = (plan_run_t){run.first + left, run.count - left};
        else
            run.count = left;
    }
    return run;
}

static uint32_t collect_nodes(plan_run_t node, plan_run_t run, plan_run_t *nodes_out, uint32_t n)
{
    uint32_t end = node.first + node.count, run_end = run.first + run.count;
    if (node.count == 0 || node.first >= run_end || end <= run.first)
        return n;
    if (node.first >= run.first && end <= run_end) {
        CHECK(n < PLAN_NODES_MAX);
        nodes_out[n] = node;
        return n + 1;
    }
    uint32_t left = (node.count + 1) / 2;
    n = collect_nodes((plan_run_t){node.first, left}, run, nodes_out, n);
    return collect_nodes((plan_run_t){node.first + left, node.count - left}, run, nodes_out, n);
}

uint32_t plan_run_nodes(uint32_t n_leaves, plan_run_t run, plan_run_t nodes_out[PLAN_NODES_MAX])
{
    CHECK(n_leaves <= PLAN_LEAVES_MAX && run.first + run.count <= n_leaves);
    return collect_nodes((plan_run_t){0, n_leaves}, run, nodes_out, 0);
}

plan_run_t plan_vocab_run(uint32_t vocab, uint32_t tp, uint32_t slice)
{
    CHECK(tp > 0 && slice < tp && vocab <= MODEL_VOCAB_MAX);
    uint32_t n_blocks = (vocab + PLAN_VOCAB_BLOCK - 1) / PLAN_VOCAB_BLOCK;
    uint32_t first = min_u32(edge_ceil(n_blocks, tp, slice) * PLAN_VOCAB_BLOCK, vocab);
    uint32_t end = min_u32(edge_ceil(n_blocks, tp, slice + 1) * PLAN_VOCAB_BLOCK, vocab);
    return (plan_run_t){first, end - first};
}

plan_run_t plan_head_run(uint32_t vocab, uint32_t tp, uint32_t stages, bool shared, uint32_t stage,
                         uint32_t slice)
{
    CHECK(stage < stages);
    if (shared)
        return plan_vocab_run(vocab, tp * stages, stage * tp + slice);
    return stage == stages - 1 ? plan_vocab_run(vocab, tp, slice) : (plan_run_t){0};
}

/* A run of leaves as a run of what the leaves' edges count. */
static plan_run_t run_of_leaves(const plan_leaves_t *leaves, plan_run_t run)
{
    uint32_t first = leaves->edge[run.first];
    return (plan_run_t){first, leaves->edge[run.first + run.count] - first};
}

static void slice_experts(const model_experts_t *experts, const plan_cut_t *cut, uint32_t slice,
                          plan_slice_t *out)
{
    plan_leaves_t leaves;
    uint32_t tp = cut->tp, groups = cut->expert_groups;
    CHECK(groups > 0 && tp % groups == 0);
    uint32_t inside = tp / groups, group = slice / inside;
    uint32_t first = edge_floor(experts->n, groups, group);
    out->experts = (plan_run_t){first, edge_floor(experts->n, groups, group + 1) - first};
    plan_leaf_edges_expert(experts->ffn, &leaves);
    out->expert_leaves = plan_leaf_run(leaves.n, inside, slice % inside);
    out->expert_ffn = run_of_leaves(&leaves, out->expert_leaves);
    if (experts->shared_ffn == 0)
        return;
    plan_leaf_edges_expert(experts->shared_ffn, &leaves);
    out->shared_leaves = plan_leaf_run(leaves.n, tp, slice);
    out->shared_ffn = run_of_leaves(&leaves, out->shared_leaves);
}

status_t plan_slice(const model_config_t *config, const plan_cut_t *cut, uint32_t slice,
                    plan_slice_t *out)
{
    uint32_t tp = cut->tp;
    CHECK(tp >= 1 && tp <= PLAN_TP_MAX);
    if (slice >= tp)
        return fail(STATUS_INVALID, "slice %u of tp %u; 0 to %u would be right", slice, tp, tp - 1);
    plan_leaves_t heads, ffn;
    plan_leaf_edges_attention(config, &heads);
    plan_slice_t found = {0};
    found.head_leaves = plan_attention_run(cut, heads.n, slice);
    found.heads = run_of_leaves(&heads, found.head_leaves);
    if (config->ffn > 0) {
        plan_leaf_edges_ffn(config->ffn, &ffn);
        found.ffn_leaves = plan_leaf_run(ffn.n, tp, slice);
        found.ffn = run_of_leaves(&ffn, found.ffn_leaves);
    }
    if (config->experts.n > 0)
        slice_experts(&config->experts, cut, slice, &found);
    found.vocab = plan_vocab_run(config->vocab, tp, slice);
    if (found.heads.count > 0) {
        found.projection_slices = plan_projection_slices(config, cut, false);
        uint32_t group = config->n_heads / config->n_kv_heads;
        found.kv_heads.first = found.heads.first / group;
        uint32_t last = (found.heads.first + found.heads.count - 1) / group;
        found.kv_heads.count = last + 1 - found.kv_heads.first;
    }
    *out = found;
    return STATUS_OK;
}
