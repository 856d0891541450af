/* The values of int8 rows that are multiplied apart: ref within the bound that they leave, and every
 * level's as ref's. */
#include <math.h>
#include <stdlib.h>

#include "common/base/memory.h"
#include "product.h"

static const qtype_t TYPES[] = {
    QTYPE_Q8_0, QTYPE_Q4_0, QTYPE_Q4_1,   QTYPE_Q5_0,   QTYPE_Q5_1, QTYPE_Q4_K,    QTYPE_Q5_K,
    QTYPE_I8S,  QTYPE_MXFP4, QTYPE_IQ4_NL, QTYPE_IQ4_XS, QTYPE_Z4,  QTYPE_Z4_32, QTYPE_Z4_BF16 + 2,
    QTYPE_S4 + 3, QTYPE_S4_BF16, QTYPE_Q2_K, QTYPE_Q3_K, QTYPE_Q6_K,
};
enum { N_TYPES = sizeof TYPES / sizeof TYPES[0] };

/* The bound of one element when the two groups with the largest values give up those values:
 * half a step of the largest value that stays in each group, and F32 noise. */
static double bound_apart(const float *w, const float *x, uint32_t k, uint32_t group,
                          double *exact_out)
{
    double weights[64] = {0}, most[64] = {0}, second[64] = {0}, magnitude = 0;
    uint32_t n_groups = (k + group - 1) / group;
    *exact_out = 0;
    for (uint32_t i = 0; i < k; i++) {
        double a = fabs((double)x[i]);
        uint32_t g = i / group;
        *exact_out += (double)x[i] * (double)w[i];
        magnitude += fabs((double)x[i] * (double)w[i]);
        weights[g] += fabs((double)w[i]);
        second[g] = a > most[g] ? most[g] : fmax(second[g], a);
        most[g] = fmax(most[g], a);
    }
    for (uint32_t n = 0; n < 2 && n < n_groups; n++) {
        uint32_t largest = 0;
        for (uint32_t g = 1; g < n_groups; g++)
            largest = most[g] > most[largest] ? g : largest;
        most[largest] = -second[largest]; /* taken: no longer the largest of the groups */
    }
    double bound = 1e-30 + magnitude * 0x1p-19;
    for (uint32_t g = 0; g < n_groups; g++)
        bound += weights[g] * fabs(most[g]) * 0.5 / 127;
    return bound;
}

/* Two large values beside values of 1 leave no more noise than those do; a third one does. */
static void test_the_largest_values_of_a_row_of_one_leaf_are_multiplied_apart(void **state)
{
    (void)state;
    random_t random = {12};
    enum { ROWS = 6, K = 468 };
    for (uint32_t t = 0; t < N_TYPES; t++) {
        qtype_t type = TYPES[t];
        uint32_t k = type >= QTYPE_OWN_FIRST ? K : qtype_info(type)->block_values == 256 ? 512 : 480;
        bool short_groups = type == QTYPE_Q2_K || type == QTYPE_Q3_K || type == QTYPE_Q6_K;
        uint32_t group = short_groups ? 16 : 32;
        shape_t shape = whole_shape(k, 40);
        size_t bytes;
        uint8_t *data = make_rows(&random, type, shape.n, shape.k, &bytes);
        float *x = MEM_NEW_ARRAY(float, ROWS * k), *w = MEM_NEW_ARRAY(float, k);
        for (uint32_t i = 0; i < ROWS * k; i++)
            x[i] = random_normal(&random);
        for (uint32_t r = 0; r < ROWS; r++) { /* in any two groups, the last one too */
            x[r * k + random_below(&random, k / 2)] = 4000;
            x[r * k + (r == 0 ? k - 1 : k / 2 + 32 + random_below(&random, k / 2 - 32))] = -3000;
        }
        fixture_t f = open_fixture("ref", 1, KMODE_NATIVE, KQUEUE_NOW);
        float *y = whole_product(&f, &shape, type, data, bytes, x, ROWS);
        uint64_t row_bytes;
        assert_true(qtype_row_bytes(type, k, &row_bytes));
        for (uint32_t c = 0; c < shape.n; c++) {
            qtype_dequantize_row(type, data + c * row_bytes, k, w);
            for (uint32_t r = 0; r < ROWS; r++) {
                double exact, bound = bound_apart(w, x + (size_t)r * k, k, group, &exact);
                double error = fabs((double)y[(size_t)r * shape.n + c] - exact);
                if (error > bound)
                    fail_test("%s: row %u column %u is off by %.3g, bound %.3g", qtype_name(type),
                              r, c, error, bound);
            }
        }
        free(y);
        free(w);
        free(x);
        free(data);
        close_fixture(&f);
    }
}

/* Which of equal values is apart, rows with fewer groups than values, and rows of zeros, of
 * subnormals and of what is too small to quantize: every level as ref, beside ordinary rows. */
static void test_every_level_takes_refs_values_apart(void **state)
{
    (void)state;
    const char *levels[TEST_LEVELS_MAX];
    uint32_t n_levels = test_levels(levels);
    static const uint32_t widths[] = {7, 32, 45, 64, 333, 8230};
    enum { ROWS = 400 }; /* more than matmul lists at once */
    random_t random = {13};
    for (uint32_t i = 0; i < 6; i++) {
        uint32_t k = widths[i];
        shape_t shape = whole_shape(k, 35);
        size_t bytes;
        uint8_t *data = make_rows(&random, QTYPE_I8S, shape.n, k, &bytes);
        float *x = MEM_NEW_ARRAY(float, (size_t)ROWS *k), *wanted = NULL;
        for (uint32_t r = 0; r < ROWS; r++) {
            static const float sizes[] = {1.0f, 0.0f, 0x1p-130f, 0x1p-101f, 0x1p90f};
            for (uint32_t j = 0; j < k; j++) {
                float value = random_normal(&random);
                if (r % 3 == 0)
                    value = 1.0f;
                else if (r % 3 == 1) /* groups of equals, and about one that is larger */
                    value = random_below(&random, k) == 0 ? 2.0f : 1.0f;
                bool minus = random_below(&random, 2) == 1;
                x[(size_t)r * k + j] = (minus ? -value : value) * (r < 10 ? sizes[r % 5] : 1.0f);
            }
        }
        for (uint32_t v = 0; v < 2 * n_levels; v++) {
            fixture_t f = open_fixture(levels[v / 2], 1 + v % 2, KMODE_NATIVE, KQUEUE_NOW);
            float *found = whole_product(&f, &shape, QTYPE_I8S, data, bytes, x, ROWS);
            if (wanted != NULL)
                assert_same_bits(found, wanted, (size_t)ROWS * shape.n, levels[v / 2]);
            if (wanted != NULL)
                free(found);
            else
                wanted = found;
            close_fixture(&f);
        }
        free(wanted);
        free(x);
        free(data);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_largest_values_of_a_row_of_one_leaf_are_multiplied_apart),
        cmocka_unit_test(test_every_level_takes_refs_values_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
