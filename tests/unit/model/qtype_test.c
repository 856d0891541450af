/* Stored types: sizes of every type, values of those that weights may have. The recorded values in
 * tests/golden/dequant come from the reference implementation of the format. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/base/qtype.h"

static void *read_golden(const char *name, const char *ending, size_t *n_out)
{
    char *path = mem_format("%s/dequant/%s.%s", SHOAL_TEST_DATA, name, ending);
    FILE *file = fopen(path, "rbe");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    size_t n = (size_t)ftell(file);
    rewind(file);
    void *bytes = mem_new(n, 1);
    assert_int_equal(fread(bytes, 1, n, file), n);
    fclose(file);
    free(path);
    *n_out = n;
    return bytes;
}

static void check_type(qtype_t type)
{
    size_t raw_bytes, value_bytes;
    uint64_t expected_bytes;
    const char *name = qtype_name((uint32_t)type);
    void *raw = read_golden(name, "raw", &raw_bytes);
    float *expected = read_golden(name, "f32", &value_bytes);
    size_t n = value_bytes / sizeof *expected;
    assert_true(n >= 512);
    assert_true(qtype_row_bytes((uint32_t)type, n, &expected_bytes));
    assert_int_equal(raw_bytes, expected_bytes);
    float *found = MEM_NEW_ARRAY(float, n);
    /* From an odd address: rows of a file are only as aligned as their block size makes them. */
    uint8_t *odd = mem_new(raw_bytes + 1, 1);
    memcpy(odd + 1, raw, raw_bytes);
    qtype_dequantize_row(type, odd + 1, n, found);
    for (size_t i = 0; i < n; i++)
        if (memcmp(&found[i], &expected[i], sizeof *found) != 0 &&
            !(isnan(found[i]) && isnan(expected[i])))
            fail_msg("%s: value %zu is %a; %a is recorded", name, i, (double)found[i],
                     (double)expected[i]);
    free(odd);
    free(found);
    free(expected);
    free(raw);
}

static void test_dequantized_rows_equal_the_recorded_ones_bit_by_bit(void **state)
{
    (void)state;
    check_type(QTYPE_F16);
    check_type(QTYPE_BF16);
    check_type(QTYPE_Q8_0);
    check_type(QTYPE_Q4_0);
    check_type(QTYPE_Q4_1);
}

static void test_f32_rows_are_copied(void **state)
{
    (void)state;
    const float row[3] = {1.5f, -0.0f, 1e-45f};
    float found[3];
    qtype_dequantize_row(QTYPE_F32, row, 3, found);
    assert_memory_equal(row, found, sizeof row);
}

/* An independent definition of binary16: sign, exponent and mantissa through ldexp. */
static void test_every_half_has_the_value_that_its_fields_say(void **state)
{
    (void)state;
    for (uint32_t half = 0; half < 65536; half++) {
        uint32_t exponent = half >> 10 & 31, mantissa = half & 1023;
        float found = qtype_f16_to_f32((uint16_t)half);
        if (exponent == 31 && mantissa != 0) {
            assert_true(isnan(found));
            continue;
        }
        double value = exponent == 31  ? (double)INFINITY
                       : exponent == 0 ? ldexp(mantissa, -24)
                                       : ldexp(1024 + mantissa, (int)exponent - 25);
        float expected = (float)(half & 0x8000 ? -value : value);
        assert_memory_equal(&found, &expected, sizeof found);
    }
}

/* Values and bytes of the recorded rows of all types, so that the table can be wrong in no size. */
static void test_row_sizes_are_those_of_the_recorded_rows(void **state)
{
    (void)state;
    static const struct {
        qtype_t type;
        uint64_t values, bytes;
    } rows[] = {
        {QTYPE_BF16, 512, 1024},     {QTYPE_F16, 512, 1024},      {QTYPE_IQ1_M, 6144, 1344},
        {QTYPE_IQ1_S, 6144, 1200},   {QTYPE_IQ2_S, 6144, 1968},   {QTYPE_IQ2_XS, 6144, 1776},
        {QTYPE_IQ2_XXS, 6144, 1584}, {QTYPE_IQ3_S, 6144, 2640},   {QTYPE_IQ3_XXS, 6144, 2352},
        {QTYPE_IQ4_NL, 3072, 1728},  {QTYPE_IQ4_XS, 6144, 3264},  {QTYPE_MXFP4, 3072, 1632},
        {QTYPE_NVFP4, 6144, 3456},   {QTYPE_Q2_K, 6144, 2016},    {QTYPE_Q3_K, 6144, 2640},
        {QTYPE_Q4_0, 3072, 1728},    {QTYPE_Q4_1, 3072, 1920},    {QTYPE_Q4_K, 6144, 3456},
        {QTYPE_Q5_0, 3072, 2112},    {QTYPE_Q5_1, 3072, 2304},    {QTYPE_Q5_K, 6144, 4224},
        {QTYPE_Q6_K, 6144, 5040},    {QTYPE_Q8_0, 3072, 3264},    {QTYPE_TQ1_0, 6144, 1296},
        {QTYPE_TQ2_0, 6144, 1584},   {QTYPE_F32, 7, 28},          {QTYPE_I64, 7, 56},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint64_t bytes = 0;
        assert_true(qtype_row_bytes((uint32_t)rows[i].type, rows[i].values, &bytes));
        assert_int_equal(bytes, rows[i].bytes);
    }
}

static void test_rows_that_are_no_whole_blocks_or_overflow_have_no_size(void **state)
{
    (void)state;
    uint64_t bytes = 17;
    assert_false(qtype_row_bytes(QTYPE_Q4_0, 31, &bytes));
    assert_false(qtype_row_bytes(QTYPE_F32, UINT64_MAX / 2, &bytes));
    assert_false(qtype_row_bytes(4, 32, &bytes));
    assert_false(qtype_row_bytes(UINT32_MAX, 32, &bytes));
    assert_int_equal(bytes, 17);
    assert_null(qtype_info(33));
    assert_string_equal(qtype_name(77), "unknown");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dequantized_rows_equal_the_recorded_ones_bit_by_bit),
        cmocka_unit_test(test_f32_rows_are_copied),
        cmocka_unit_test(test_every_half_has_the_value_that_its_fields_say),
        cmocka_unit_test(test_row_sizes_are_those_of_the_recorded_rows),
        cmocka_unit_test(test_rows_that_are_no_whole_blocks_or_overflow_have_no_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
