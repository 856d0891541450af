/* Quantized rows as integers: what codes.c takes apart gives the values of the format back, bit by
 * bit, for every type that it knows. */
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "kernels/cpu/internal.h"
#include "support.h"

static void test_integers_scales_and_minimums_are_the_stored_values(void **state)
{
    (void)state;
    enum { K = 1024, N = 60 };
    random_t random = {15};
    uint32_t n_types = 0;
    for (uint32_t type = 0; type < 1100; type++) {
        kmultiply_t multiply;
        if (!type_multiply(type, KMODE_NATIVE, &multiply) || multiply.codes == NULL)
            continue;
        n_types++;
        size_t bytes;
        uint8_t *rows = make_rows(&random, (qtype_t)type, N, K, &bytes);
        uint32_t longest = multiply.kind == KACTIVATION_INT8 ? SEGMENT_K : SHORT_SEGMENT_K;
        int32_t zero = FORM_ZERO(multiply.form);
        for (uint32_t row = 0; row < N; row++) {
            const uint8_t *from = rows + row * (bytes / N);
            float values[K], found[K];
            qtype_dequantize_row((qtype_t)type, from, K, values);
            for (uint32_t k = 0; k < K; k++) {
                kcodes_t codes = {0};
                multiply.codes(from, k / longest, &codes);
                float product = (float)(codes.q[k % longest] - zero) * codes.d;
                found[k] = FORM_HAS_MINIMUMS(multiply.form) ? product + codes.m : product;
                /* A nibble and the bits above it hold no more. */
                assert_true(FORM_HAS_BYTES(multiply.form) ||
                            codes.q[k % longest] < 16 << FORM_UPPER_BITS(multiply.form));
                values[k] += 0.0f; /* the sign of a zero is lost in 0 * -d + 0 */
                found[k] += 0.0f;
            }
            assert_same_bits(found, values, K, qtype_name(type));
        }
        free(rows);
    }
    assert_int_equal(n_types, 8);
}

static void test_every_weight_type_is_multiplied_in_both_modes(void **state)
{
    (void)state;
    kmultiply_t multiply;
    for (uint32_t type = 0; type < 1100; type++) {
        const qtype_info_t *info = qtype_info(type);
        bool weight = info != NULL && info->is_weight;
        assert_int_equal(type_multiply(type, KMODE_NATIVE, &multiply), weight);
        assert_int_equal(type_multiply(type, KMODE_F32, &multiply), weight);
        assert_int_equal(multiply.form, FORM_F32);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_integers_scales_and_minimums_are_the_stored_values),
        cmocka_unit_test(test_every_weight_type_is_multiplied_in_both_modes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
