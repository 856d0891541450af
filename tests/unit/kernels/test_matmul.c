/* Matmul: ref against dequantized weights in F64, every level against ref bit by bit, and every cut
 * of the leaves against the uncut product. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "emulated.h"
#include "kernels/cpu/amx.h"
#include "product.h"

static const qtype_t TYPES[] = {
    QTYPE_Q4_1, QTYPE_Q8_0, QTYPE_Q4_0,  QTYPE_BF16,   QTYPE_F16,    QTYPE_F32,
    QTYPE_Q5_0, QTYPE_Q5_1, QTYPE_Q2_K,  QTYPE_Q3_K,   QTYPE_Q4_K,   QTYPE_Q5_K,
    QTYPE_Q6_K, QTYPE_I8S,  QTYPE_MXFP4, QTYPE_IQ4_NL, QTYPE_IQ4_XS, QTYPE_F8S,
    QTYPE_Z4,   QTYPE_Z4_32, QTYPE_Z4_BF16 + 2, QTYPE_S4 + 3, QTYPE_S4_BF16,
};
/* The first six have all widths, the others, which share their kernels, three. */
enum { N_TYPES = sizeof TYPES / sizeof TYPES[0], N_WIDTHS = 6 * 6 + 3 * (N_TYPES - 6) };

typedef struct {
    qtype_t type;
    uint32_t width; /* of whole blocks: of 32, of 256, or any */
    bool leaves;
} case_t;

static case_t case_of(uint32_t i)
{
    static const uint32_t widths[4][6] = {{32, 64, 96, 576, 1408, 2880},
                                          {20, 24, 40, 33, 576, 1409},
                                          {256, 512, 768},
                                          {390, 33, 576}};
    uint32_t t = i < 36 ? i % 6 : 6 + (i - 36) % (N_TYPES - 6);
    uint32_t w = i < 36 ? i / 6 : (i - 36) / (N_TYPES - 6);
    uint32_t values = qtype_info(TYPES[t])->block_values;
    uint32_t kind = TYPES[t] >= QTYPE_OWN_FIRST ? 3 : values == 256 ? 2 : values == 1;
    return (case_t){TYPES[t], widths[kind][w], (t + w) % 2 == 1};
}

/* Largest |found - exact| in units of the row's bound: sum |w| * error of one activation, which is
 * half a quantization step of the largest value of its 32 (0 where activations stay F32), plus F32
 * noise. Leaves end at multiples of 32 here. */
static double worst_error(const shape_t *shape, qtype_t type, const uint8_t *data, const float *x,
                          uint32_t rows, const float *found)
{
    double step = qtype_info(type)->block_values > 1 ? 0.5 / 127 : type == QTYPE_BF16 ? 0x1p-9 : 0;
    uint64_t row_bytes;
    assert_true(qtype_row_bytes(type, shape->k, &row_bytes));
    float *w = MEM_NEW_ARRAY(float, shape->k);
    double worst = 0;
    for (uint32_t c = 0; c < shape->n; c++) {
        qtype_dequantize_row(type, data + c * row_bytes, shape->k, w);
        for (uint32_t r = 0; r < rows; r++) {
            double exact = 0, magnitude = 0, weights = 0, most = 0, bound = 1e-30;
            for (uint32_t k = 0; k < shape->k; k++) {
                if (k % 32 == 0) {
                    bound += weights * most * step;
                    weights = most = 0;
                }
                double a = (double)x[(size_t)r * shape->k + k];
                exact += a * (double)w[k];
                magnitude += fabs(a * (double)w[k]);
                weights += fabs((double)w[k]);
                most = fmax(most, fabs(a));
            }
            bound += weights * most * step + magnitude * 0x1p-19;
            worst = fmax(worst, fabs((double)found[(size_t)r * shape->n + c] - exact) / bound);
        }
    }
    free(w);
    return worst;
}

static void test_ref_is_the_dequantized_product_within_the_noise_of_its_activations(void **state)
{
    (void)state;
    random_t random = {1};
    for (uint32_t t = 0; t < N_TYPES; t++) {
        for (int mode = KMODE_NATIVE; mode <= KMODE_F32; mode++) {
            fixture_t f = open_fixture("ref", 1, (kmode_t)mode, KQUEUE_NOW);
            shape_t shape = ffn_shape(1536, 40);
            size_t bytes;
            uint8_t *data = make_rows(&random, TYPES[t], shape.n, shape.k, &bytes);
            float *x = make_input(&random, 9, shape.k);
            float *y = whole_product(&f, &shape, TYPES[t], data, bytes, x, 9);
            double worst = worst_error(&shape, TYPES[t], data, x, 9, y);
            if (worst > 1.0 || (mode == KMODE_F32 && worst > 1.0))
                fail_test("%s mode %d: %.3g times the bound", qtype_name(TYPES[t]), mode, worst);
            free(data);
            free(x);
            free(y);
            close_fixture(&f);
        }
    }
}

static void test_every_level_row_count_and_thread_count_gives_refs_bits(void **state)
{
    (void)state;
    const char *levels[TEST_LEVELS_MAX];
    uint32_t n_levels = test_levels(levels);
    static const uint32_t row_counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 13, 31, 64};
    random_t random = {2};
    for (uint32_t i = 0; i < N_WIDTHS; i++) {
        qtype_t type = case_of(i).type;
        uint32_t width = case_of(i).width;
        shape_t shape = case_of(i).leaves ? ffn_shape(width, 75) : whole_shape(width, 33);
        size_t bytes;
        uint8_t *data = make_rows(&random, type, shape.n, shape.k, &bytes);
        float *x = make_input(&random, 64, shape.k);
        for (int mode = KMODE_NATIVE; mode <= KMODE_F32; mode++) {
            fixture_t f = open_fixture("ref", 1, (kmode_t)mode, KQUEUE_NOW);
            float *wanted = whole_product(&f, &shape, type, data, bytes, x, 64);
            close_fixture(&f);
            for (uint32_t v = 0; v < n_levels * 11; v++) {
                uint32_t rows = row_counts[v % 11];
                if (i >= 36 && (v < 11 || v % 3 != i % 3))
                    continue; /* the first six types have seen every number of rows */
                bool tiles = mode == KMODE_NATIVE && rows >= AMX_ROWS_MIN;
                if (!tiles && strcmp(levels[v / 11], EMULATED_AMX) == 0)
                    continue; /* it is avx512 then */
                char what[96];
                snprintf(what, sizeof what, "%s %s K %u M %u", levels[v / 11], qtype_name(type),
                         width, rows);
                fixture_t g = open_fixture(levels[v / 11], 1 + v % 3, (kmode_t)mode, KQUEUE_NOW);
                float *found = whole_product(&g, &shape, type, data, bytes, x, rows);
                assert_same_bits(found, wanted, (size_t)rows * shape.n, what);
                free(found);
                close_fixture(&g);
            }
            free(wanted);
        }
        free(data);
        free(x);
    }
}

/* Contiguous runs, as even as possible; with more ranks than leaves some are empty. */
static void cut(uint32_t n_leaves, uint32_t n_ranks, uint32_t shift, tree_run_t *runs_out)
{
    for (uint32_t r = 0; r < n_ranks; r++) {
        runs_out[r].first = (uint16_t)((r * n_leaves + (r > 0 ? shift : 0)) / n_ranks);
        runs_out[r].end =
            (uint16_t)(((r + 1) * n_leaves + (r + 1 < n_ranks ? shift : 0)) / n_ranks);
    }
}

static void test_every_cut_of_the_leaves_gives_the_uncut_bits(void **state)
{
    (void)state;
    const char *levels[TEST_LEVELS_MAX];
    uint32_t n_levels = test_levels(levels);
    static const uint32_t ranks[] = {2, 3, 4, 6, 8};
    random_t random = {3};
    for (uint32_t i = 0; i < N_WIDTHS; i++) {
        qtype_t type = case_of(i).type;
        shape_t shape = ffn_shape(case_of(i).width, 40);
        size_t bytes;
        uint8_t *data = make_rows(&random, type, shape.n, shape.k, &bytes);
        float *x = make_input(&random, 5, shape.k);
        fixture_t f = open_fixture(levels[i % n_levels], 2, KMODE_NATIVE, KQUEUE_NOW);
        float *wanted = whole_product(&f, &shape, type, data, bytes, x, 5);
        for (uint32_t c = 0; c < 10; c++) {
            tree_run_t runs[TREE_RANKS_MAX];
            uint32_t n_ranks = ranks[c % 5];
            cut(shape.n_leaves, n_ranks, c / 5 * (n_ranks - 1), runs);
            float *found = product(&f, &shape, type, data, bytes, runs, n_ranks, x, 5);
            assert_same_bits(found, wanted, 5u * shape.n, qtype_name(type));
            free(found);
        }
        free(wanted);
        free(data);
        free(x);
        close_fixture(&f);
    }
}

/* Heads of odd sizes: leaves start anywhere, and pairs are counted from each one's start. */
static void test_leaves_with_odd_edges_give_refs_bits_and_the_exact_product(void **state)
{
    (void)state;
    static const qtype_t types[] = {QTYPE_BF16, QTYPE_F16, QTYPE_F32,
                                    QTYPE_I8S,  QTYPE_Q8_0, QTYPE_Z4, QTYPE_S4_BF16 + 1};
    enum { N = sizeof types / sizeof *types };
    const shape_t shape = {.k = 96, .n = 35, .n_leaves = 5, .edges = {0, 11, 12, 47, 47, 96}};
    const char *levels[TEST_LEVELS_MAX];
    uint32_t n_levels = test_levels(levels);
    random_t random = {8};
    for (uint32_t t = 0; t < 2 * N; t++) {
        kmode_t mode = t % 2 ? KMODE_F32 : KMODE_NATIVE;
        size_t bytes;
        uint8_t *data = make_rows(&random, types[t / 2], shape.n, shape.k, &bytes);
        float *x = make_input(&random, 7, shape.k), *wanted = NULL;
        for (uint32_t v = 0; v < n_levels; v++) {
            fixture_t f = open_fixture(levels[v], 1, mode, KQUEUE_NOW);
            float *found = whole_product(&f, &shape, types[t / 2], data, bytes, x, 7);
            tree_run_t runs[3] = {{0, 1}, {1, 3}, {3, 5}};
            float *cut_up = product(&f, &shape, types[t / 2], data, bytes, runs, 3, x, 7);
            assert_same_bits(cut_up, found, 7u * shape.n, "cut at odd edges");
            if (wanted == NULL) {
                wanted = found;
                /* Groups end at the edges too, so the bound's blocks of 32 are only wider. */
                assert_true(worst_error(&shape, types[t / 2], data, x, 7, wanted) <= 1.0);
            } else {
                assert_same_bits(found, wanted, 7u * shape.n, levels[v]);
                free(found);
            }
            free(cut_up);
            close_fixture(&f);
        }
        free(wanted);
        free(data);
        free(x);
    }
}

/* Leaves that cut super-blocks, several of them: with 9 rows panels are decoded on every level. */
static void test_leaves_that_cut_super_blocks_give_refs_bits(void **state)
{
    (void)state;
    enum { ROWS = 9 };
    static const qtype_t types[] = {QTYPE_Q2_K, QTYPE_Q4_K, QTYPE_Q5_K, QTYPE_Q6_K};
    const shape_t shape = {
        .k = 768, .n = 35, .n_leaves = 5, .edges = {0, 11, 130, 130, 475, 768}};
    const char *levels[TEST_LEVELS_MAX];
    uint32_t n_levels = test_levels(levels);
    random_t random = {10};
    for (uint32_t t = 0; t < sizeof types / sizeof *types; t++) {
        size_t bytes;
        uint8_t *data = make_rows(&random, types[t], shape.n, shape.k, &bytes);
        float *x = make_input(&random, ROWS, shape.k), *wanted[2] = {NULL, NULL};
        for (uint32_t v = 0; v < 2 * n_levels; v++) {
            uint32_t few = v % 2, n_rows = few ? 2 : ROWS;
            fixture_t f = open_fixture(levels[v / 2], 1, KMODE_NATIVE, KQUEUE_NOW);
            tree_run_t runs[3] = {{0, 1}, {1, 3}, {3, 5}};
            float *found = whole_product(&f, &shape, types[t], data, bytes, x, n_rows);
            float *cut_up = product(&f, &shape, types[t], data, bytes, runs, 3, x, n_rows);
            assert_same_bits(cut_up, found, n_rows * shape.n, qtype_name(types[t]));
            free(cut_up);
            if (wanted[few] == NULL) {
                wanted[few] = found;
            } else {
                assert_same_bits(found, wanted[few], n_rows * shape.n, levels[v / 2]);
                free(found);
            }
            close_fixture(&f);
        }
        assert_same_bits(wanted[1], wanted[0], 2u * shape.n, "two rows and nine");
        free(wanted[0]);
        free(wanted[1]);
        free(data);
        free(x);
    }
}

/* Q, K and V of a mixed file: each part has the bits that it has alone. */
static void test_parts_of_several_types_have_the_bits_that_they_have_alone(void **state)
{
    (void)state;
    enum { K = 512, N = 37, ROWS = 6, PARTS = 5 };
    static const qtype_t types[PARTS] = {QTYPE_Q4_K, QTYPE_Q6_K, QTYPE_BF16, QTYPE_F16, QTYPE_Q8_0};
    const char *levels[TEST_LEVELS_MAX];
    uint32_t n_levels = test_levels(levels);
    random_t random = {9};
    shape_t shape = ffn_shape(K, N);
    uint8_t *data[PARTS];
    kweight_part_t parts[PARTS];
    float *x = make_input(&random, ROWS, K);
    for (uint32_t p = 0; p < PARTS; p++) {
        parts[p] = (kweight_part_t){.qtype = types[p], .n_rows = N};
        parts[p].rows = data[p] = make_rows(&random, types[p], N, K, &parts[p].bytes);
    }
    for (uint32_t v = 0; v < n_levels; v++) {
        fixture_t f = open_fixture(levels[v], 2, KMODE_NATIVE, KQUEUE_NOW);
        kweight_spec_t spec = {.name = "qkv", .parts = parts, .n_parts = PARTS, .k_total = K};
        spec.leaf_edges = shape.edges;
        spec.n_leaves = spec.leaf_end = shape.n_leaves;
        kweight_t *weight = NULL;
        assert_ok(f.ops->weight_pack(f.device, &spec, &weight));
        kweight_info_t info = f.ops->weight_info(weight);
        assert_int_equal(info.activation, KACTIVATION_MIXED);
        kbatch_t *batch = plain_batch(&f, ROWS);
        kref_t in = ref_of(&f, x, ROWS * K * 4), input = new_ref(&f, ROWS * info.input_row_bytes);
        kref_t out = new_ref(&f, ROWS * PARTS * N * 4);
        assert_ok(f.ops->quantize(f.queue, batch, weight, in, K, input));
        assert_ok(f.ops->matmul(f.queue, batch, weight, input, out));
        wait_all(&f);
        const float *found = f.ops->buffer_host(out.buffer);
        for (uint32_t p = 0; p < PARTS; p++) {
            float *wanted = whole_product(&f, &shape, types[p], data[p], parts[p].bytes, x, ROWS);
            for (uint32_t row = 0; row < ROWS; row++)
                assert_same_bits(found + ((size_t)row * PARTS + p) * N, wanted + (size_t)row * N, N,
                                 qtype_name(types[p]));
            free(wanted);
        }
        release_ref(&f, in);
        release_ref(&f, input);
        release_ref(&f, out);
        f.ops->weight_release(weight);
        f.ops->batch_release(batch);
        close_fixture(&f);
    }
    for (uint32_t p = 0; p < PARTS; p++)
        free(data[p]);
    free(x);
}

/* Below it the scale's offset is finite, so no row can lose its numbers without being named. */
static void test_a_quantized_input_of_two_to_the_hundredth_is_a_row_error(void **state)
{
    (void)state;
    const char *levels[TEST_LEVELS_MAX];
    uint32_t n_levels = test_levels(levels);
    shape_t shape = whole_shape(96, 40);
    random_t random = {4};
    size_t bytes;
    uint8_t *data = make_rows(&random, QTYPE_Q4_1, shape.n, shape.k, &bytes);
    for (uint32_t i = 0; i < 2 * n_levels; i++) {
        fixture_t f = open_fixture(levels[i / 2], 1, KMODE_NATIVE, KQUEUE_NOW);
        tree_run_t run = {0, 1};
        float x[3][96];
        for (uint32_t k = 0; k < 3 * 96; k++)
            x[k / 96][k % 96] = 1;
        x[1][40] = i % 2 ? -0x1p100f : -0x1.fffffep99f;
        kweight_t *weight = pack(&f, &shape, QTYPE_Q4_1, data, bytes, run);
        kbatch_t *batch = plain_batch(&f, 3);
        kref_t out = partials_of(&f, batch, &shape, weight, run, x[0], 3);
        const float *y = f.ops->buffer_host(out.buffer);
        uint8_t flags[3];
        assert_int_equal(f.ops->batch_row_errors(batch, flags), i % 2);
        assert_int_equal(flags[1], i % 2);
        for (uint32_t c = 0; c < shape.n; c++) {
            assert_true(isfinite(y[c]) && y[c] == y[2 * shape.n + c]);
            assert_true(isnan(y[shape.n + c]) == (i % 2 == 1));
        }
        release_ref(&f, out);
        f.ops->batch_release(batch);
        f.ops->weight_release(weight);
        close_fixture(&f);
    }
    free(data);
}

/* Levels without 32-bit products of bytes split inputs or weights into parts whose sums just fit 16
 * bits: every input value fills whole segments once, against the largest and the smallest weights. */
static void test_every_input_value_meets_the_ends_of_the_bytes(void **state)
{
    (void)state;
    enum { K = 512, N = 33, VALUES = 255 };
    const char *levels[TEST_LEVELS_MAX];
    uint32_t n_levels = test_levels(levels);
    shape_t shape = ffn_shape(K, N);
    random_t random = {7};
    size_t bytes;
    uint8_t *data = make_rows(&random, QTYPE_Q8_0, N, K, &bytes);
    for (size_t at = 0; at < bytes; at++) {
        size_t column = at / (bytes / N), byte = at % 34;
        if (byte >= 2 && column % 4 < 3)
            data[at] = column % 4 == 0 || (column % 4 == 2 && byte % 2 == 0) ? 127 : 128;
    }
    static float x[VALUES][K];
    for (uint32_t i = 0; i < VALUES * K; i++) /* 127 makes the scale 1 */
        x[i / K][i % K] = i % 32 == 31 ? 127 : (float)(i / K) - 127;
    for (uint32_t i = 0; i < n_levels; i++) {
        fixture_t f = open_fixture("ref", 1, KMODE_NATIVE, KQUEUE_NOW);
        fixture_t g = open_fixture(levels[i], 1, KMODE_NATIVE, KQUEUE_NOW);
        float *wanted = whole_product(&f, &shape, QTYPE_Q8_0, data, bytes, x[0], VALUES);
        float *found = whole_product(&g, &shape, QTYPE_Q8_0, data, bytes, x[0], VALUES);
        assert_same_bits(found, wanted, (size_t)VALUES * N, levels[i]);
        free(found);
        for (uint32_t row = 0; row < VALUES; row += 2) { /* 2 rows, at the end 1 */
            uint32_t rows = row + 2 <= VALUES ? 2 : 1;
            found = whole_product(&g, &shape, QTYPE_Q8_0, data, bytes, x[row], rows);
            assert_same_bits(found, wanted + (size_t)row * N, (size_t)rows * N, levels[i]);
            free(found);
        }
        free(wanted);
        close_fixture(&g);
        close_fixture(&f);
    }
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ref_is_the_dequantized_product_within_the_noise_of_its_activations),
        cmocka_unit_test(test_every_level_row_count_and_thread_count_gives_refs_bits),
        cmocka_unit_test(test_every_cut_of_the_leaves_gives_the_uncut_bits),
        cmocka_unit_test(test_leaves_with_odd_edges_give_refs_bits_and_the_exact_product),
        cmocka_unit_test(test_leaves_that_cut_super_blocks_give_refs_bits),
        cmocka_unit_test(test_parts_of_several_types_have_the_bits_that_they_have_alone),
        cmocka_unit_test(test_a_quantized_input_of_two_to_the_hundredth_is_a_row_error),
        cmocka_unit_test(test_every_input_value_meets_the_ends_of_the_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
