/* The build for measuring what the written order costs: a matmul of several leaves is one sum over
 * all of K there, without the values apart that a matmul of one leaf has otherwise. */
#include <math.h>
#include <stdlib.h>

#include "common/base/memory.h"
#include "product.h"

enum { K = 1536, N = 40, ROWS = 9 };

static float *merged_and_bytes(const char *isa, qtype_t type, const shape_t *shape,
                               const uint8_t *data, size_t bytes, const float *x,
                               size_t *row_bytes_out)
{
    fixture_t f = open_fixture(isa, 2, KMODE_NATIVE, KQUEUE_NOW);
    tree_run_t run = {0, (uint16_t)shape->n_leaves};
    kweight_t *weight = pack(&f, shape, type, data, bytes, run);
    *row_bytes_out = f.ops->weight_info(weight).input_row_bytes;
    f.ops->weight_release(weight);
    float *result = whole_product(&f, shape, type, data, bytes, x, ROWS);
    close_fixture(&f);
    return result;
}

/* docs/numerics.md, "F16 and F32 weights", from +0 to the end without a leaf. */
static void test_f32_weights_are_summed_from_the_first_to_the_last_value(void **state)
{
    (void)state;
    random_t random = {31};
    shape_t shape = ffn_shape(K, N);
    float *w = normals(&random, N * K, 0.1f), *x = normals(&random, ROWS * K, 1);
    float wanted[ROWS * N];
    for (uint32_t row = 0; row < ROWS; row++)
        for (uint32_t n = 0; n < N; n++) {
            float sum = 0;
            for (uint32_t k = 0; k < K; k += 2) {
                sum = fmaf(w[n * K + k + 1], x[row * K + k + 1], sum);
                sum = fmaf(w[n * K + k], x[row * K + k], sum);
            }
            wanted[row * N + n] = sum;
        }
    assert_int_equal(shape.n_leaves, 12);
    const char *levels[TEST_LEVELS_MAX];
    uint32_t n_levels = test_levels(levels);
    for (uint32_t i = 0; i < n_levels; i++) {
        size_t row_bytes;
        float *found = merged_and_bytes(levels[i], QTYPE_F32, &shape, (const uint8_t *)w,
                                        (size_t)N * K * sizeof *w, x, &row_bytes);
        assert_same_bits(found, wanted, ROWS * N, levels[i]);
        free(found);
    }
    free(w);
    free(x);
}

/* So that the two builds differ in leaves alone. */
static void test_8_bit_rows_of_merged_leaves_have_no_values_apart(void **state)
{
    (void)state;
    random_t random = {32};
    shape_t shape = ffn_shape(K, N), whole = whole_shape(K, N);
    size_t bytes, merged_bytes, whole_bytes;
    uint8_t *data = make_rows(&random, QTYPE_Q4_0, N, K, &bytes);
    float *x = make_input(&random, ROWS, K), *first = NULL;
    const char *levels[TEST_LEVELS_MAX];
    uint32_t n_levels = test_levels(levels);
    for (uint32_t i = 0; i < n_levels; i++) {
        float *found =
            merged_and_bytes(levels[i], QTYPE_Q4_0, &shape, data, bytes, x, &merged_bytes);
        free(merged_and_bytes(levels[i], QTYPE_Q4_0, &whole, data, bytes, x, &whole_bytes));
        assert_true(merged_bytes < whole_bytes);
        if (first != NULL)
            assert_same_bits(found, first, ROWS * N, levels[i]);
        else
            first = found;
        if (found != first)
            free(found);
    }
    free(first);
    free(data);
    free(x);
}

/* One rank of three has leaves that no node of the tree holds, and sends a partial for each node. */
static void test_a_run_of_several_nodes_keeps_its_partials(void **state)
{
    (void)state;
    random_t random = {33};
    shape_t shape = ffn_shape(K, N);
    float *w = normals(&random, N * K, 0.1f);
    fixture_t f = open_fixture(NULL, 1, KMODE_NATIVE, KQUEUE_NOW);
    tree_run_t run = {4, 8};
    kweight_t *weight =
        pack(&f, &shape, QTYPE_F32, (const uint8_t *)w, (size_t)N * K * sizeof *w, run);
    assert_true(tree_cover_size(shape.n_leaves, run) > 1);
    assert_int_equal(f.ops->weight_info(weight).n_partials, tree_cover_size(shape.n_leaves, run));
    f.ops->weight_release(weight);
    close_fixture(&f);
    free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32_weights_are_summed_from_the_first_to_the_last_value),
        cmocka_unit_test(test_8_bit_rows_of_merged_leaves_have_no_values_apart),
        cmocka_unit_test(test_a_run_of_several_nodes_keeps_its_partials),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
