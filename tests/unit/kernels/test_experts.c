/* Mixtures of experts: the routers against their formulas, the experts against F64, and one set of
 * bits for every placement of the experts, every order of the rows, every level; and the small
 * weights of heads. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "support.h"

enum { EXPERTS = 7, TOP_K = 3, HIDDEN = 96, MIDDLE = 160, ROWS = 37, LEAVES = 4, RANKS_MAX = 6 };
static const uint32_t EDGES[LEAVES + 1] = {0, 40, 80, 120, MIDDLE};

/* ---- experts ---- */

typedef struct {
    qtype_t type;
    bool biases;
    uint8_t *gate_up[EXPERTS], *down[EXPERTS]; /* [2 MIDDLE][HIDDEN], [HIDDEN][MIDDLE] */
    size_t gate_up_bytes, down_bytes;
    float gate_up_bias[EXPERTS][2 * MIDDLE], down_bias[EXPERTS][HIDDEN];
    kactivate_t activate;
    float x[ROWS][HIDDEN], weights[ROWS][TOP_K];
    uint32_t ids[ROWS][TOP_K];
} layer_t;

static layer_t *make_layer(qtype_t type, bool biases, uint64_t seed)
{
    random_t random = {seed};
    layer_t *layer = MEM_NEW(layer_t);
    layer->type = type;
    layer->biases = biases;
    layer->activate = (kactivate_t){
        .kind = biases ? KACTIVATE_CLAMP_GLU : KACTIVATE_SILU, .alpha = 1.702f, .limit = 7.0f};
    for (uint32_t e = 0; e < EXPERTS; e++) {
        layer->gate_up[e] = make_rows(&random, type, 2 * MIDDLE, HIDDEN, &layer->gate_up_bytes);
        layer->down[e] = make_rows(&random, type, HIDDEN, MIDDLE, &layer->down_bytes);
        for (uint32_t i = 0; i < 2 * MIDDLE; i++)
            layer->gate_up_bias[e][i] = random_normal(&random);
        for (uint32_t i = 0; i < HIDDEN; i++)
            layer->down_bias[e][i] = random_normal(&random);
    }
    for (uint32_t row = 0; row < ROWS; row++) {
        for (uint32_t i = 0; i < HIDDEN; i++)
            layer->x[row][i] = random_normal(&random);
        uint32_t id = random_below(&random, 3);
        for (uint32_t k = 0; k < TOP_K; k++) {
            layer->ids[row][k] = id;
            id += 1 + random_below(&random, 2);
            layer->weights[row][k] = (float)random_u32(&random) * 0x1p-32f;
        }
    }
    return layer;
}

static void free_layer(layer_t *layer)
{
    for (uint32_t e = 0; e < EXPERTS; e++) {
        free(layer->gate_up[e]);
        free(layer->down[e]);
    }
    free(layer);
}

/* What one rank holds: experts whose bit is set, leaves [first, end) of each. */
typedef struct {
    uint32_t experts, leaf_first, leaf_end;
} part_t;

typedef struct {
    kweight_t *gate_up[EXPERTS], *down[EXPERTS];
    kref_t gate_up_bias, down_bias, sum;
    kexperts_t *experts;
    uint32_t n;
} rank_t;

static kweight_t *pack(const fixture_t *f, const kweight_part_t *parts, uint32_t n_parts,
                       uint32_t k, const uint32_t *edges, uint32_t n_leaves, const part_t *run)
{
    kweight_spec_t spec = {.name = "w", .parts = parts, .n_parts = n_parts, .k_total = k};
    spec.leaf_edges = edges;
    spec.n_leaves = n_leaves;
    spec.leaf_first = run != NULL ? run->leaf_first : 0;
    spec.leaf_end = run != NULL ? run->leaf_end : 1;
    spec.leaves_apart = run != NULL;
    kweight_t *weight = NULL;
    assert_ok(f->ops->weight_pack(f->device, &spec, &weight));
    return weight;
}

static rank_t open_rank(const fixture_t *f, const layer_t *layer, const part_t *part)
{
    rank_t rank = {0};
    uint32_t ids[EXPERTS], first = EDGES[part->leaf_first], n = EDGES[part->leaf_end] - first;
    float *bias = MEM_NEW_ARRAY(float, EXPERTS * 2 * MIDDLE);
    float *down_bias = MEM_NEW_ARRAY(float, EXPERTS *HIDDEN);
    for (uint32_t e = 0; e < EXPERTS; e++) {
        if (!(part->experts >> e & 1))
            continue;
        uint32_t i = rank.n++;
        ids[i] = e;
        kweight_part_t parts[2] = {
            {layer->type, layer->gate_up[e], layer->gate_up_bytes, first, n},
            {layer->type, layer->gate_up[e], layer->gate_up_bytes, MIDDLE + first, n}};
        kweight_part_t down = {layer->type, layer->down[e], layer->down_bytes, 0, HIDDEN};
        rank.gate_up[i] = pack(f, parts, 2, HIDDEN, (uint32_t[]){0, HIDDEN}, 1, NULL);
        rank.down[i] = pack(f, &down, 1, MIDDLE, EDGES, LEAVES, part);
        memcpy(bias + (size_t)i * 2 * n, layer->gate_up_bias[e] + first, n * 4);
        memcpy(bias + ((size_t)i * 2 + 1) * n, layer->gate_up_bias[e] + MIDDLE + first, n * 4);
        memcpy(down_bias + (size_t)i * HIDDEN, layer->down_bias[e], HIDDEN * 4);
    }
    rank.sum = new_ref(f, ROWS * HIDDEN * 8);
    kexperts_spec_t spec = {.hidden = HIDDEN,
                            .n = n,
                            .n_experts = rank.n,
                            .ids = ids,
                            .gate_up = (const kweight_t *const *)rank.gate_up,
                            .down = (const kweight_t *const *)rank.down,
                            .activate = layer->activate,
                            .rows_max = ROWS,
                            .top_k_max = TOP_K};
    rank.gate_up_bias = ref_of(f, bias, (size_t)EXPERTS * 2 * MIDDLE * 4);
    rank.down_bias = ref_of(f, down_bias, (size_t)EXPERTS * HIDDEN * 4);
    if (layer->biases) {
        spec.gate_up_bias = rank.gate_up_bias;
        spec.down_bias = part->leaf_first == 0 ? rank.down_bias : (kref_t){0};
    }
    assert_ok(f->ops->experts_open(f->device, &spec, &rank.experts));
    free(bias);
    free(down_bias);
    return rank;
}

static void close_rank(const fixture_t *f, rank_t *rank)
{
    f->ops->experts_close(rank->experts);
    for (uint32_t i = 0; i < rank->n; i++) {
        f->ops->weight_release(rank->gate_up[i]);
        f->ops->weight_release(rank->down[i]);
    }
    release_ref(f, rank->gate_up_bias);
    release_ref(f, rank->down_bias);
    release_ref(f, rank->sum);
}

/* Rows order[0 … n) as one batch over the ranks of a placement; out [n][HIDDEN], no residual. */
static void run_rows(const fixture_t *f, rank_t *ranks, uint32_t n_ranks, const layer_t *layer,
                     const uint32_t *order, uint32_t n, float *out, uint8_t *errors)
{
    const kernel_ops_t *ops = f->ops;
    float x[ROWS][HIDDEN], weights[ROWS][TOP_K];
    uint32_t ids[ROWS][TOP_K];
    for (uint32_t i = 0; i < n; i++) {
        memcpy(x[i], layer->x[order[i]], sizeof x[0]);
        memcpy(weights[i], layer->weights[order[i]], sizeof weights[0]);
        memcpy(ids[i], layer->ids[order[i]], sizeof ids[0]);
    }
    kbatch_t *batch = NULL;
    assert_ok(ops->batch_new(f->device, ROWS, 0, &batch));
    assert_ok(ops->batch_set_plain(f->queue, batch, n));
    kref_t in = ref_of(f, x, n * sizeof x[0]), result = new_ref(f, n * sizeof x[0]);
    kref_t sums[RANKS_MAX];
    krouting_t routing = {.top_k = TOP_K};
    routing.ids = ref_of(f, ids, n * sizeof ids[0]);
    routing.weights = ref_of(f, weights, n * sizeof weights[0]);
    for (uint32_t r = 0; r < n_ranks; r++) {
        sums[r] = ranks[r].sum;
        assert_ok(ops->integers_clear(f->queue, batch, HIDDEN, sums[r]));
        assert_ok(ops->experts(f->queue, batch, ranks[r].experts, &routing, in, HIDDEN, sums[r]));
    }
    assert_ok(ops->integers_add(f->queue, batch, HIDDEN, sums, n_ranks, (kref_t){0}, result));
    wait_all(f);
    memcpy(out, ops->buffer_host(result.buffer), n * sizeof x[0]);
    (void)ops->batch_row_errors(batch, errors);
    release_ref(f, in);
    release_ref(f, result);
    release_ref(f, routing.ids);
    release_ref(f, routing.weights);
    ops->batch_release(batch);
}

typedef struct {
    uint32_t n;
    part_t ranks[RANKS_MAX];
} placement_t;

enum { ALL = (1 << EXPERTS) - 1 };
static const placement_t PLACEMENTS[] = {
    {1, {{ALL, 0, 4}}},
    {3, {{0x07, 0, 4}, {0x18, 0, 4}, {0x60, 0, 4}}},
    {2, {{ALL, 0, 2}, {ALL, 2, 4}}},
    {3, {{ALL, 0, 1}, {ALL, 1, 4}, {ALL, 4, 4}}},
    {5, {{0x55, 0, 3}, {0x55, 3, 4}, {0x2a, 0, 1}, {0x2a, 1, 2}, {0x2a, 2, 4}}},
};
enum { N_PLACEMENTS = sizeof PLACEMENTS / sizeof PLACEMENTS[0] };

static void in_order(uint32_t *order)
{
    for (uint32_t i = 0; i < ROWS; i++)
        order[i] = i;
}

/* All rows in one batch, then turned round and in batches of 5. */
static void run_placement(const char *isa, uint32_t threads, kmode_t mode, kqueue_kind_t kind,
                          const layer_t *layer, const placement_t *placement, bool pieces,
                          float *out, uint8_t *errors)
{
    fixture_t f = open_fixture(isa, threads, mode, kind);
    rank_t ranks[RANKS_MAX];
    uint32_t order[ROWS];
    in_order(order);
    for (uint32_t r = 0; r < placement->n; r++)
        ranks[r] = open_rank(&f, layer, &placement->ranks[r]);
    if (!pieces)
        run_rows(&f, ranks, placement->n, layer, order, ROWS, out, errors);
    for (uint32_t at = 0; pieces && at < ROWS; at += 5) {
        uint32_t n = ROWS - at < 5 ? ROWS - at : 5, back[5];
        float part[5][HIDDEN];
        for (uint32_t i = 0; i < n; i++)
            back[i] = at + n - 1 - i;
        run_rows(&f, ranks, placement->n, layer, back, n, part[0], errors);
        for (uint32_t i = 0; i < n; i++)
            memcpy(out + (size_t)back[i] * HIDDEN, part[i], sizeof part[0]);
    }
    for (uint32_t r = 0; r < placement->n; r++)
        close_rank(&f, &ranks[r]);
    close_fixture(&f);
}

static void test_any_placement_order_and_level_gives_the_same_bits(void **state)
{
    (void)state;
    const char *levels[TEST_LEVELS_MAX];
    uint32_t n_levels = test_levels(levels);
    static const qtype_t types[] = {QTYPE_BF16, QTYPE_F32, QTYPE_Q8_0, QTYPE_Q4_1};
    float *wanted = MEM_NEW_ARRAY(float, ROWS *HIDDEN), *found = MEM_NEW_ARRAY(float, ROWS *HIDDEN);
    uint8_t errors[ROWS];
    for (uint32_t t = 0; t < 8; t++) {
        layer_t *layer = make_layer(types[t / 2], t % 2 == 1, 31 + t);
        kmode_t mode = t == 2 || t == 7 ? KMODE_F32 : KMODE_NATIVE;
        run_placement("ref", 1, mode, KQUEUE_NOW, layer, &PLACEMENTS[0], false, wanted, errors);
        for (uint32_t i = 0; i < N_PLACEMENTS * n_levels; i++) {
            const char *isa = levels[i % n_levels];
            char what[96];
            snprintf(what, sizeof what, "%s on %s, placement %u", qtype_name(types[t / 2]), isa,
                     i / n_levels);
            run_placement(isa, 1 + i % 3, mode, i % 4 ? KQUEUE_NOW : KQUEUE_LATE, layer,
                          &PLACEMENTS[i / n_levels], i % 2 == 1, found, errors);
            assert_same_bits(found, wanted, ROWS * HIDDEN, what);
        }
        free_layer(layer);
    }
    free(wanted);
    free(found);
}

static void exact_row(const layer_t *layer, uint32_t row, double *out)
{
    float w[MIDDLE > HIDDEN ? MIDDLE : HIDDEN];
    memset(out, 0, HIDDEN * sizeof *out);
    for (uint32_t k = 0; k < TOP_K; k++) {
        uint32_t e = layer->ids[row][k];
        double up[2 * MIDDLE], limit = (double)layer->activate.limit;
        uint64_t in_bytes = layer->gate_up_bytes / (2 * MIDDLE),
                 out_bytes = layer->down_bytes / HIDDEN;
        for (uint32_t i = 0; i < 2 * MIDDLE; i++) {
            qtype_dequantize_row(layer->type, layer->gate_up[e] + i * in_bytes, HIDDEN, w);
            up[i] = layer->biases ? (double)layer->gate_up_bias[e][i] : 0;
            for (uint32_t j = 0; j < HIDDEN; j++)
                up[i] += (double)w[j] * (double)layer->x[row][j];
        }
        for (uint32_t i = 0; i < MIDDLE; i++) {
            double gate = up[i], other = up[MIDDLE + i];
            if (layer->biases) {
                gate = fmin(gate, limit);
                other = fmax(-limit, fmin(other, limit)) + 1;
            }
            up[i] = gate / (1 + exp(-gate * (layer->biases ? 1.702 : 1.0))) * other;
        }
        for (uint32_t i = 0; i < HIDDEN; i++) {
            qtype_dequantize_row(layer->type, layer->down[e] + i * out_bytes, MIDDLE, w);
            double sum = layer->biases ? (double)layer->down_bias[e][i] : 0;
            for (uint32_t j = 0; j < MIDDLE; j++)
                sum += (double)w[j] * up[j];
            out[i] += sum * (double)layer->weights[row][k];
        }
    }
}

static void test_the_sum_of_the_experts_is_the_exact_one_within_its_type(void **state)
{
    (void)state;
    float *found = MEM_NEW_ARRAY(float, ROWS *HIDDEN);
    uint8_t errors[ROWS];
    for (uint32_t t = 0; t < 4; t++) {
        bool native = t / 2 == 1;
        layer_t *layer = make_layer(native ? QTYPE_BF16 : QTYPE_F32, t % 2 == 1, 51 + t);
        run_placement("ref", 1, native ? KMODE_NATIVE : KMODE_F32, KQUEUE_NOW, layer,
                      &PLACEMENTS[0], false, found, errors);
        for (uint32_t row = 0; row < ROWS; row++) {
            double exact[HIDDEN];
            exact_row(layer, row, exact);
            assert_int_equal(errors[row], 0);
            for (uint32_t i = 0; i < HIDDEN; i++) {
                /* Inputs and activations are rounded to BF16 once each in native mode. */
                double bound = native ? 0.02 : 4e-6 * (1 + fabs(exact[i]));
                if (!(fabs((double)found[row * HIDDEN + i] - exact[i]) <= bound))
                    fail_test("%u: row %u element %u is %g, exactly %g", t, row, i,
                              (double)found[row * HIDDEN + i], exact[i]);
            }
        }
        free_layer(layer);
    }
    free(found);
}

static void test_a_result_of_two_to_the_22_spoils_its_row_on_every_rank(void **state)
{
    (void)state;
    layer_t *layer = make_layer(QTYPE_F32, false, 61);
    float *found = MEM_NEW_ARRAY(float, ROWS *HIDDEN), *clean = MEM_NEW_ARRAY(float, ROWS *HIDDEN);
    uint8_t errors[ROWS];
    run_placement(NULL, 2, KMODE_F32, KQUEUE_NOW, layer, &PLACEMENTS[4], false, clean, errors);
    for (uint32_t i = 0; i < HIDDEN; i++)
        layer->x[5][i] *= 1e5f;
    layer->x[9][3] = NAN;
    run_placement(NULL, 2, KMODE_F32, KQUEUE_NOW, layer, &PLACEMENTS[4], false, found, errors);
    for (uint32_t row = 0; row < ROWS; row++) {
        bool bad = row == 5 || row == 9;
        assert_int_equal(errors[row], bad);
        for (uint32_t i = 0; bad && i < HIDDEN; i++)
            assert_true(isnan(found[row * HIDDEN + i]));
        if (!bad)
            assert_same_bits(found + row * HIDDEN, clean + row * HIDDEN, HIDDEN, "neighbour");
    }
    free(found);
    free(clean);
    free_layer(layer);
}

static void test_a_shared_expert_is_weighed_by_its_gate(void **state)
{
    (void)state;
    layer_t *layer = make_layer(QTYPE_F32, false, 62);
    fixture_t f = open_fixture(NULL, 2, KMODE_F32, KQUEUE_NOW);
    rank_t rank = open_rank(&f, layer, &(part_t){1, 0, 4});
    kbatch_t *batch = NULL;
    assert_ok(f.ops->batch_new(f.device, ROWS, 0, &batch));
    assert_ok(f.ops->batch_set_plain(f.queue, batch, ROWS));
    kref_t x = ref_of(&f, layer->x, sizeof layer->x), out = new_ref(&f, sizeof layer->x);
    for (uint32_t row = 0; row < ROWS; row++)
        for (uint32_t k = 0; k < TOP_K; k++) {
            layer->ids[row][k] = 0;
            layer->weights[row][k] = k == 0 ? 1.0f : 0.0f;
        }
    for (uint32_t gated = 0; gated < 2; gated++) {
        /* The gate of a row is its input's element 2. */
        krouting_t routing = {.gate_ld = HIDDEN};
        if (gated)
            routing.gate = (kref_t){x.buffer, 8};
        assert_ok(f.ops->integers_clear(f.queue, batch, HIDDEN, rank.sum));
        assert_ok(
            f.ops->expert_shared(f.queue, batch, rank.experts, &routing, x, HIDDEN, rank.sum));
        assert_ok(f.ops->integers_add(f.queue, batch, HIDDEN, &rank.sum, 1, x, out));
        wait_all(&f);
        const float *found = f.ops->buffer_host(out.buffer);
        for (uint32_t i = 0; i < ROWS * HIDDEN; i++) {
            double input = (double)layer->x[i / HIDDEN][i % HIDDEN];
            double gate = 1 / (1 + exp(-(double)layer->x[i / HIDDEN][2])), exact[HIDDEN];
            exact_row(layer, i / HIDDEN, exact);
            double wanted = input + exact[i % HIDDEN] * (gated ? gate : 1.0);
            assert_true(fabs((double)found[i] - wanted) <= 1e-5);
        }
    }
    release_ref(&f, x);
    release_ref(&f, out);
    f.ops->batch_release(batch);
    close_rank(&f, &rank);
    close_fixture(&f);
    free_layer(layer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_placement_order_and_level_gives_the_same_bits),
        cmocka_unit_test(test_the_sum_of_the_experts_is_the_exact_one_within_its_type),
        cmocka_unit_test(test_a_result_of_two_to_the_22_spoils_its_row_on_every_rank),
        cmocka_unit_test(test_a_shared_expert_is_weighed_by_its_gate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
