/* Level amx over emulated tile registers: every number of rows, every type with integer inputs and
 * odd cuts, as ref; which products the registers get; and that a wrong register is found. The tests
 * of matmul, of packed forms, of values apart, of fused ops and of experts run it too. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "emulated.h"
#include "kernels/cpu/amx.h"
#include "kernels/cpu/selfcheck.h"
#include "product.h"

static const qtype_t TYPES[] = {
    QTYPE_Q8_0, QTYPE_Q4_0,  QTYPE_Q4_1,   QTYPE_Q5_0,   QTYPE_Q5_1, QTYPE_Q4_K,  QTYPE_Q5_K,
    QTYPE_I8S,  QTYPE_MXFP4, QTYPE_IQ4_NL, QTYPE_IQ4_XS, QTYPE_Z4,   QTYPE_Z4_32, QTYPE_Z4_BF16 + 2,
    QTYPE_S4 + 3, QTYPE_S4_BF16, QTYPE_Q2_K, QTYPE_Q3_K, QTYPE_Q6_K,
};
enum { N_TYPES = sizeof TYPES / sizeof TYPES[0], ROWS_MAX = 100 };

/* A width of whole blocks where the type has them, with a segment that is not full where it can. */
static uint32_t width_of(qtype_t type)
{
    if (type >= QTYPE_OWN_FIRST)
        return 333;
    return qtype_info(type)->block_values == 256 ? 256 : 288;
}

static bool emulates(void)
{
    const char *names[TEST_LEVELS_MAX];
    uint32_t n = test_levels(names);
    return strcmp(names[n - 1], EMULATED_AMX) == 0;
}

/* The product of ref, and of the registers with every step-th number of rows. */
static void check_rows(const shape_t *shape, qtype_t type, random_t *random, uint32_t step)
{
    size_t bytes;
    uint8_t *data = make_rows(random, type, shape->n, shape->k, &bytes);
    float *x = make_input(random, ROWS_MAX, shape->k);
    fixture_t f = open_fixture("ref", 1, KMODE_NATIVE, KQUEUE_NOW);
    float *wanted = whole_product(&f, shape, type, data, bytes, x, ROWS_MAX);
    close_fixture(&f);
    fixture_t g = open_fixture(EMULATED_AMX, 1, KMODE_NATIVE, KQUEUE_NOW);
    for (uint32_t rows = ROWS_MAX; rows >= 1; rows = rows > step ? rows - step : 0) {
        char what[96];
        snprintf(what, sizeof what, "%s K %u M %u", qtype_name(type), shape->k, rows);
        (void)emulated_dots();
        float *found = whole_product(&g, shape, type, data, bytes, x, rows);
        assert_true((emulated_dots() > 0) == (rows >= AMX_ROWS_MIN));
        assert_same_bits(found, wanted, (size_t)rows * shape->n, what);
        free(found);
    }
    close_fixture(&g);
    free(wanted);
    free(data);
    free(x);
}

static void test_every_number_of_rows_of_every_integer_type_has_refs_bits(void **state)
{
    (void)state;
    random_t random = {21};
    if (!emulates())
        skip();
    for (uint32_t t = 0; t < N_TYPES; t++) {
        uint32_t k = width_of(TYPES[t]);
        shape_t shape = t % 2 ? ffn_shape(k, 40) : whole_shape(k, 40);
        check_rows(&shape, TYPES[t], &random, t < 3 ? 1 : 3);
        shape = t % 2 ? whole_shape(k, 33) : ffn_shape(k, 33);
        check_rows(&shape, TYPES[t], &random, 7);
    }
}

/* Leaves that begin and end anywhere, an empty one, and several partials. */
static void test_odd_leaves_and_cuts_have_refs_bits(void **state)
{
    (void)state;
    static const qtype_t types[] = {QTYPE_I8S, QTYPE_Q8_0, QTYPE_Q5_1, QTYPE_Z4, QTYPE_IQ4_NL};
    const shape_t shape = {.k = 96, .n = 35, .n_leaves = 5, .edges = {0, 11, 12, 47, 47, 96}};
    tree_run_t runs[3] = {{0, 1}, {1, 3}, {3, 5}};
    random_t random = {22};
    if (!emulates())
        skip();
    for (uint32_t t = 0; t < sizeof types / sizeof types[0]; t++) {
        size_t bytes;
        uint8_t *data = make_rows(&random, types[t], shape.n, shape.k, &bytes);
        float *x = make_input(&random, 70, shape.k);
        fixture_t f = open_fixture("ref", 1, KMODE_NATIVE, KQUEUE_NOW);
        float *wanted = product(&f, &shape, types[t], data, bytes, runs, 3, x, 70);
        close_fixture(&f);
        for (uint32_t threads = 1; threads <= 3; threads++) {
            fixture_t g = open_fixture(EMULATED_AMX, threads, KMODE_NATIVE, KQUEUE_NOW);
            float *found = product(&g, &shape, types[t], data, bytes, runs, 3, x, 70);
            assert_same_bits(found, wanted, 70u * shape.n, qtype_name(types[t]));
            free(found);
            close_fixture(&g);
        }
        free(wanted);
        free(data);
        free(x);
    }
}

/* Two lines of columns for each 16 rows, segment and panel, and nothing for other types. */
static void test_the_registers_compute_each_segment_once(void **state)
{
    (void)state;
    random_t random = {23};
    enum { K = 160, N = 70, ROWS = 41 };
    if (!emulates())
        skip();
    for (int floats = 0; floats < 2; floats++) {
        qtype_t type = floats ? QTYPE_BF16 : QTYPE_Q4_1;
        shape_t shape = whole_shape(K, N);
        size_t bytes;
        uint8_t *data = make_rows(&random, type, N, K, &bytes);
        float *x = make_input(&random, ROWS, K);
        fixture_t f = open_fixture(EMULATED_AMX, 1, KMODE_NATIVE, KQUEUE_NOW);
        (void)emulated_dots();
        free(whole_product(&f, &shape, type, data, bytes, x, ROWS));
        /* 41 rows go as 21 and 20, each 16 and the rest. */
        assert_int_equal(emulated_dots(), floats ? 0 : 3 * 5 * 4 * 2);
        close_fixture(&f);
        free(data);
        free(x);
    }
}

static void test_the_self_check_finds_a_register_that_errs(void **state)
{
    (void)state;
    if (!emulates())
        skip();
    (void)emulated_dots();
    assert_null(selfcheck(level_emulated()));
    assert_true(emulated_dots() > 0);
    emulated_wrong(true);
    assert_string_equal(selfcheck(level_emulated()), "matmul");
    emulated_wrong(false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_number_of_rows_of_every_integer_type_has_refs_bits),
        cmocka_unit_test(test_odd_leaves_and_cuts_have_refs_bits),
        cmocka_unit_test(test_the_registers_compute_each_segment_once),
        cmocka_unit_test(test_the_self_check_finds_a_register_that_errs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
