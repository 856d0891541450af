/* Fused ops (kernels/fused.h) against the ops they are made of: those on ref with one thread, the
 * fused ones on every level with one to three threads, at once and late. Bytes, not values. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "kernels/fused.h"
#include "emulated.h"
#include "kernels/cpu/amx.h"
#include "support.h"

static const char *level_name; /* what a failure names */

static void assert_same_bytes(const uint8_t *found, const uint8_t *wanted, size_t n,
                              const char *what)
{
    for (size_t i = 0; i < n; i++)
        if (found[i] != wanted[i])
            fail_test("%s on %s: byte %zu of %zu is %02x, the parts give %02x", what, level_name, i,
                      n, found[i], wanted[i]);
}

static uint8_t *bytes_of(const fixture_t *f, kref_t ref, size_t bytes)
{
    wait_all(f);
    uint8_t *copy = mem_new(bytes + 1, 1);
    memcpy(copy, f->ops->buffer_host(ref.buffer), bytes);
    release_ref(f, ref);
    return copy;
}

/* What a test runs: with `fused` or with its parts; the result is freed with free(). */
typedef uint8_t *(*run_fn)(const fixture_t *f, kbatch_t *batch, bool fused, const void *arg,
                           size_t *bytes_out);

static uint8_t *run_on(const char *isa, uint32_t threads, kqueue_kind_t kind, kmode_t mode,
                       uint32_t rows, bool fused, run_fn fn, const void *arg, size_t *bytes_out,
                       uint8_t *errors)
{
    fixture_t f = open_fixture(isa, threads, mode, kind);
    kbatch_t *batch = NULL;
    kbatch_row_t *set = MEM_NEW_ARRAY(kbatch_row_t, rows);
    uint32_t blocks[64];
    for (uint32_t i = 0; i < 64; i++)
        blocks[i] = (i * 37 + 5) % 64;
    for (uint32_t i = 0; i < rows; i++)
        set[i].position = 300 + i;
    assert_ok(f.ops->batch_new(f.device, rows, 64, &batch));
    assert_ok(f.ops->batch_set(f.queue, batch, set, rows, &(kbatch_table_t){blocks, 64}, 1));
    uint8_t *found = fn(&f, batch, fused, arg, bytes_out);
    (void)f.ops->batch_row_errors(batch, errors);
    f.ops->batch_release(batch);
    close_fixture(&f);
    free(set);
    return found;
}

static void check_everywhere(const char *what, kmode_t mode, uint32_t rows, run_fn fn,
                             const void *arg)
{
    const char *levels[TEST_LEVELS_MAX];
    /* Tile registers are for many rows of integers; what is left is avx512's. */
    bool tiles = mode == KMODE_NATIVE && rows >= AMX_ROWS_MIN;
    uint32_t n_levels = tiles ? test_levels(levels) : kernels_cpu_levels(levels);
    size_t n, n_wanted;
    uint8_t wanted_errors[512], errors[512];
    uint8_t *wanted = run_on("ref", 1, KQUEUE_NOW, mode, rows, false, fn, arg, &n_wanted,
                             wanted_errors);
    for (uint32_t v = 0; v < 2 * n_levels; v++) {
        level_name = levels[v / 2];
        uint8_t *found = run_on(level_name, 1 + (v + rows) % 3, v % 2 ? KQUEUE_LATE : KQUEUE_NOW,
                                mode, rows, true, fn, arg, &n, errors);
        assert_true(n == n_wanted);
        assert_same_bytes(found, wanted, n, what);
        assert_memory_equal(errors, wanted_errors, rows);
        free(found);
    }
    free(wanted);
}

/* A weight of n columns in equal parts, of leaves [first, end) of `edges`. */
static kweight_t *pack(const fixture_t *f, const qtype_t *types, uint32_t n_parts, uint32_t n,
                       const uint32_t *edges, uint32_t n_leaves, tree_run_t run)
{
    kweight_part_t parts[2];
    uint8_t *rows[2] = {NULL, NULL};
    random_t random = {77};
    for (uint32_t i = 0; i < n_parts; i++) {
        size_t bytes;
        rows[i] = make_rows(&random, types[i], n / n_parts, edges[n_leaves], &bytes);
        parts[i] = (kweight_part_t){types[i], rows[i], bytes, 0, n / n_parts};
    }
    kweight_spec_t spec = {.name = "w",
                           .parts = parts,
                           .n_parts = n_parts,
                           .k_total = edges[n_leaves],
                           .leaf_edges = edges,
                           .n_leaves = n_leaves,
                           .leaf_first = run.first,
                           .leaf_end = run.end};
    kweight_t *weight = NULL;
    assert_ok(f->ops->weight_pack(f->device, &spec, &weight));
    free(rows[0]);
    free(rows[1]);
    return weight;
}

/* Rows with corners, one that is not finite, one that overflows in some of its columns. */
static float *rows_with_errors(uint32_t rows, uint32_t k, float huge)
{
    random_t random = {rows * 131 + k};
    float *x = make_input(&random, rows, k);
    if (rows > 3) {
        x[2 * (size_t)k + k / 2] = 1.0f / 0.0f;
        for (uint32_t i = 0; i < k; i++)
            x[3 * (size_t)k + i] = random_normal(&random) * huge;
    }
    return x;
}

/* ---- norm and quantize, alone and behind the tree ---- */

typedef struct {
    uint32_t n, rows, n_leaves;
    qtype_t type;
    bool weighted, behind_tree;
} norm_case_t;

static uint8_t *run_norm(const fixture_t *f, kbatch_t *batch, bool fused, const void *arg,
                         size_t *bytes_out)
{
    const norm_case_t *c = arg;
    const kernel_ops_t *ops = f->ops;
    uint32_t edges[2] = {0, c->n}, rows = c->rows, n = c->n;
    random_t random = {5};
    kweight_t *weight = pack(f, &c->type, 1, 32, edges, 1, (tree_run_t){0, 1});
    size_t row_bytes = ops->weight_info(weight).input_row_bytes, x_bytes = (size_t)rows * n * 4;
    float *values = rows_with_errors(rows, n, 1e25f), *norms = normals(&random, n, 1.0f);
    float *sums = normals(&random, (size_t)rows * n * c->n_leaves, 1.0f);
    kref_t x = ref_of(f, values, x_bytes), normed = new_ref(f, x_bytes);
    kref_t norm = ref_of(f, norms, n * sizeof(float)), out = new_ref(f, rows * row_bytes);
    kref_t partials = ref_of(f, sums, x_bytes * c->n_leaves);
    tree_run_t runs[NUMERICS_LEAVES_MAX];
    kref_t at[NUMERICS_LEAVES_MAX];
    for (uint32_t i = 0; i < c->n_leaves; i++) {
        runs[i] = (tree_run_t){(uint16_t)i, (uint16_t)(i + 1)};
        at[i] = (kref_t){partials.buffer, i * x_bytes};
    }
    ktree_add_t add = {
        .n_leaves = c->n_leaves, .runs = runs, .partials = at, .n_ranks = c->n_leaves, .bias = norm};
    knormed_t how = {.norm = c->weighted ? norm : (kref_t){0}, .eps = 1e-5f, .weight = weight};
    if (fused && c->behind_tree) {
        assert_ok(ops->fused->tree_add_norm_quantize(f->queue, batch, n, &add, x, &how, out));
    } else if (fused) {
        assert_ok(ops->fused->norm_quantize(f->queue, batch, n, x, &how, out));
    } else {
        if (c->behind_tree)
            assert_ok(ops->tree_add(f->queue, batch, n, &add, x, x));
        assert_ok(ops->rmsnorm(f->queue, batch, n, x, how.norm, how.eps, normed));
        assert_ok(ops->quantize(f->queue, batch, weight, normed, n, out));
    }
    uint8_t *found = bytes_of(f, out, rows * row_bytes), *residual = bytes_of(f, x, x_bytes);
    *bytes_out = rows * row_bytes + x_bytes;
    uint8_t *both = mem_new(*bytes_out, 1);
    memcpy(both, found, rows * row_bytes);
    memcpy(both + rows * row_bytes, residual, x_bytes);
    release_ref(f, normed);
    release_ref(f, norm);
    release_ref(f, partials);
    ops->weight_release(weight);
    free(values);
    free(norms);
    free(sums);
    free(found);
    free(residual);
    return both;
}

static void test_norm_and_quantize_in_one_pass_have_the_bytes_of_the_parts(void **state)
{
    (void)state;
    static const uint32_t widths[] = {20, 24, 40, 96, 576, 1408, 2880};
    static const qtype_t types[] = {QTYPE_BF16, QTYPE_F32, QTYPE_Q8_0, QTYPE_F16};
    for (uint32_t i = 0; i < 28; i++) {
        norm_case_t c = {.n = widths[i / 4],
                         .type = types[i % 4],
                         .rows = i % 5 == 0 ? 1 : 9 + i,
                         .n_leaves = 1 + i % 7,
                         .weighted = i % 3 != 0};
        if (c.type == QTYPE_Q8_0 && c.n % 32 != 0)
            c.type = QTYPE_BF16;
        check_everywhere("norm_quantize", KMODE_NATIVE, c.rows, run_norm, &c);
        c.behind_tree = true;
        check_everywhere("tree_add_norm_quantize", KMODE_NATIVE, c.rows, run_norm, &c);
    }
    norm_case_t c = {.n = 512, .type = QTYPE_Q6_K, .rows = 12, .n_leaves = 16, .behind_tree = true};
    check_everywhere("norm_quantize for groups of 16", KMODE_NATIVE, 12, run_norm, &c);
    check_everywhere("norm_quantize in f32 mode", KMODE_F32, 12, run_norm, &c);
}

/* ---- gate and up ---- */

typedef struct {
    uint32_t ffn, hidden, rows;
    tree_run_t run; /* of down's leaves */
    qtype_t gate_up[2], down;
    kactivate_t activate;
    bool biased;
} gate_case_t;

static uint32_t ffn_edges(uint32_t k, uint32_t *edges)
{
    uint32_t n = k / 128 < 4 ? 4 : k / 128 > 16 ? 16 : k / 128, unit = k < 512 ? 8 : 32;
    uint32_t units = (k + unit - 1) / unit;
    for (uint32_t i = 0; i < n; i++)
        edges[i] = unit * (uint32_t)((uint64_t)i * units / n);
    edges[n] = k;
    return n;
}

static uint8_t *run_gate_up(const fixture_t *f, kbatch_t *batch, bool fused, const void *arg,
                            size_t *bytes_out)
{
    const gate_case_t *c = arg;
    const kernel_ops_t *ops = f->ops;
    uint32_t whole[2] = {0, c->hidden}, edges[NUMERICS_LEAVES_MAX + 1], rows = c->rows;
    uint32_t n_leaves = ffn_edges(c->ffn, edges), n = edges[c->run.end] - edges[c->run.first];
    random_t random = {6};
    kweight_t *weight = pack(f, c->gate_up, 2, 2 * n, whole, 1, (tree_run_t){0, 1});
    kweight_t *down = pack(f, &c->down, 1, 40, edges, n_leaves, c->run);
    size_t in_bytes = rows * ops->weight_info(weight).input_row_bytes;
    *bytes_out = rows * ops->weight_info(down).input_row_bytes;
    float *values = rows_with_errors(rows, c->hidden, 3e18f), *biases = normals(&random, 2 * n, 1.0f);
    kref_t x = ref_of(f, values, (size_t)rows * c->hidden * 4), input = new_ref(f, in_bytes);
    kref_t wide = new_ref(f, (size_t)rows * 2 * n * 4), product = new_ref(f, (size_t)rows * n * 4);
    kref_t bias = ref_of(f, biases, 2 * n * sizeof(float)), out = new_ref(f, *bytes_out);
    assert_ok(ops->quantize(f->queue, batch, weight, x, c->hidden, input));
    if (fused) {
        kgate_up_t what = {.gate_up = weight,
                           .bias = c->biased ? bias : (kref_t){0},
                           .activate = c->activate,
                           .down = down};
        assert_ok(ops->fused->gate_up(f->queue, batch, &what, input, wide, out));
    } else {
        assert_ok(ops->matmul(f->queue, batch, weight, input, wide));
        if (c->biased)
            assert_ok(ops->bias_add(f->queue, batch, 2 * n, wide, 2 * n, bias));
        assert_ok(ops->activate(f->queue, batch, &c->activate, n, wide, product));
        assert_ok(ops->quantize(f->queue, batch, down, product, n, out));
    }
    uint8_t *found = bytes_of(f, out, *bytes_out);
    kref_t refs[] = {x, input, wide, product, bias};
    for (uint32_t i = 0; i < 5; i++)
        release_ref(f, refs[i]);
    ops->weight_release(weight);
    ops->weight_release(down);
    free(values);
    free(biases);
    return found;
}

static void test_gate_and_up_end_as_the_input_of_down_with_the_bytes_of_the_parts(void **state)
{
    (void)state;
    static const uint32_t widths[] = {20, 24, 40, 96, 576, 1408, 2880};
    static const qtype_t types[][3] = {{QTYPE_BF16, QTYPE_BF16, QTYPE_BF16},
                                       {QTYPE_Q4_1, QTYPE_Q4_1, QTYPE_Q4_1},
                                       {QTYPE_Q4_0, QTYPE_Q8_0, QTYPE_F32},
                                       {QTYPE_F16, QTYPE_Q8_0, QTYPE_Q8_0}};
    for (uint32_t i = 0; i < 28; i++) {
        const qtype_t *t = types[i % 4];
        gate_case_t c = {.ffn = widths[i / 4],
                         .hidden = 64,
                         .rows = i % 5 == 0 ? 1 : i % 5 == 1 ? 131 : 5 + i,
                         .gate_up = {t[0], t[1]},
                         .down = t[2],
                         .activate = {.kind = (kactivate_kind_t)(i % 3 ? 0 : i / 3 % 4),
                                      .interleaved = i % 9 == 4,
                                      .alpha = 1.702f,
                                      .limit = 7.0f},
                         .biased = i % 4 == 2};
        uint32_t edges[NUMERICS_LEAVES_MAX + 1];
        uint16_t n_leaves = (uint16_t)ffn_edges(c.ffn, edges);
        if (c.down != QTYPE_F32 && c.ffn % 32 != 0)
            c.down = QTYPE_BF16;
        c.run = (tree_run_t){0, n_leaves};
        check_everywhere("gate_up", KMODE_NATIVE, c.rows, run_gate_up, &c);
        c.run.first = n_leaves / 2;
        check_everywhere("gate_up of a slice", KMODE_NATIVE, c.rows, run_gate_up, &c);
    }
    gate_case_t c = {.ffn = 512, .hidden = 256, .rows = 20, .run = {1, 4}, .down = QTYPE_Q6_K,
                     .gate_up = {QTYPE_Q6_K, QTYPE_Q4_K}};
    check_everywhere("gate_up of mixed types", KMODE_NATIVE, 20, run_gate_up, &c);
    check_everywhere("gate_up in f32 mode", KMODE_F32, 20, run_gate_up, &c);
    /* More rows than one block takes, and two layouts with values apart. */
    gate_case_t wide = {.ffn = 96, .hidden = 2048, .rows = 200, .run = {0, 4}, .down = QTYPE_Q8_0,
                        .gate_up = {QTYPE_Q6_K, QTYPE_Q4_K}};
    check_everywhere("gate_up of wide rows", KMODE_NATIVE, wide.rows, run_gate_up, &wide);
    wide.gate_up[0] = QTYPE_Q4_K;
    check_everywhere("gate_up in blocks", KMODE_NATIVE, wide.rows, run_gate_up, &wide);
}

/* ---- positions ---- */

typedef struct {
    uint32_t n_heads, n_kv, dim, rows;
    krope_pairs_t pairs;
    bool normed;
} position_case_t;

static uint8_t *run_position(const fixture_t *f, kbatch_t *batch, bool fused, const void *arg,
                             size_t *bytes_out)
{
    const position_case_t *c = arg;
    const kernel_ops_t *ops = f->ops;
    uint32_t dim = c->dim, all = c->n_heads + c->n_kv, ld = (all + c->n_kv) * dim + 3;
    krope_spec_t spec = {.dim = dim - dim / 8 * 2, .pairs = c->pairs, .base = 1e4,
                         .position_scale = 1.0, .positions = 1000, .first = dim / 8};
    kkv_shape_t shape = {.n_layers = 2, .n_kv_heads = c->n_kv, .head_dim = dim, .n_blocks = 64};
    krope_t *rope = NULL;
    kkv_t *kv = NULL;
    assert_ok(ops->rope_open(f->device, &spec, &rope));
    assert_ok(ops->kv_open(f->device, &shape, &kv));
    random_t random = {8};
    float *norms = normals(&random, dim, 1.0f), *values = rows_with_errors(c->rows, ld, 1e3f);
    /* In a key and not in a query: which heads of such a row attention still fills is not said. */
    for (uint32_t i = 0; c->rows > 3 && i < ld; i++)
        values[2 * (size_t)ld + i] = i == c->n_heads * dim + 9 ? 1.0f / 0.0f : 1.0f;
    kref_t x = ref_of(f, values, (size_t)c->rows * ld * 4), norm = ref_of(f, norms, dim * 4);
    kref_t k = {x.buffer, c->n_heads * dim * sizeof(float)};
    kref_t v = {x.buffer, all * dim * sizeof(float)};
    uint32_t n_out = c->rows * c->n_heads * dim;
    kref_t out = new_ref(f, n_out * sizeof(float));
    if (fused) {
        kpositioned_t what = {.rope = rope, .kv = kv, .layer = 1, .n_heads = c->n_heads,
                              .n_kv_heads = c->n_kv, .head_dim = dim, .eps = 1e-6f,
                              .q_norm = c->normed ? norm : (kref_t){0},
                              .k_norm = c->normed ? norm : (kref_t){0}};
        assert_ok(ops->fused->position(f->queue, batch, &what, x, ld));
    } else {
        if (c->normed) {
            assert_ok(ops->norm_heads(f->queue, batch, c->n_heads, dim, x, ld, norm, 1e-6f));
            assert_ok(ops->norm_heads(f->queue, batch, c->n_kv, dim, k, ld, norm, 1e-6f));
        }
        assert_ok(ops->rope(f->queue, batch, rope, x, ld, all, dim));
        assert_ok(ops->kv_append(f->queue, batch, kv, 1, k, v, ld));
    }
    /* Attention shows what is in the cache; its own bits are the same on all levels. */
    uint16_t kv_head_of[KHEADS_MAX];
    for (uint32_t h = 0; h < c->n_heads; h++)
        kv_head_of[h] = (uint16_t)(h * c->n_kv / c->n_heads);
    kattention_t what = {.layer = 1, .n_heads = c->n_heads, .head_dim = dim,
                         .kv_head_of = kv_head_of, .scale = 0.2f, .window = c->rows};
    assert_ok(ops->attention(f->queue, batch, kv, &what, x, ld, out));
    uint8_t *found = bytes_of(f, out, n_out * sizeof(float));
    uint8_t *turned = bytes_of(f, x, (size_t)c->rows * ld * 4);
    *bytes_out = n_out * sizeof(float) + (size_t)c->rows * ld * 4;
    uint8_t *both = mem_new(*bytes_out, 1);
    memcpy(both, found, n_out * sizeof(float));
    memcpy(both + n_out * sizeof(float), turned, (size_t)c->rows * ld * 4);
    free(found);
    free(turned);
    release_ref(f, norm);
    ops->rope_close(rope);
    ops->kv_close(kv);
    free(norms);
    free(values);
    return both;
}

static void test_norm_of_heads_rope_and_append_in_one_pass_have_the_bytes_of_the_parts(void **state)
{
    (void)state;
    static const position_case_t cases[] = {
        {9, 3, 64, 40, KROPE_ADJACENT, false}, {4, 2, 44, 1, KROPE_ADJACENT, true},
        {6, 2, 64, 17, KROPE_HALVES, true},    {5, 1, 88, 9, KROPE_HALVES, false},
        {2, 2, 128, 33, KROPE_ADJACENT, true}, {8, 1, 20, 12, KROPE_HALVES, false},
    };
    for (uint32_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        check_everywhere("position", KMODE_NATIVE, cases[i].rows, run_position, &cases[i]);
        check_everywhere("position, f32", KMODE_F32, cases[i].rows, run_position, &cases[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norm_and_quantize_in_one_pass_have_the_bytes_of_the_parts),
        cmocka_unit_test(test_gate_and_up_end_as_the_input_of_down_with_the_bytes_of_the_parts),
        cmocka_unit_test(test_norm_of_heads_rope_and_append_in_one_pass_have_the_bytes_of_the_parts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
