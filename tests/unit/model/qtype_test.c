/* Stored types: sizes of every type, values of those that weights may have. The recorded values in
 * tests/golden/ggml_dequant.safetensors come from the reference implementation of the format. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/base/qtype.h"
#include "common/model/safetensors.h"

static const safetensors_tensor_t *recorded(const safetensors_t *golden, const char *type,
                                            const char *ending)
{
    char *name = mem_format("%s.%s", type, ending);
    const safetensors_tensor_t *tensor = safetensors_find(golden, name);
    free(name);
    assert_non_null(tensor);
    return tensor;
}

static void check_type(const safetensors_t *golden, qtype_t type)
{
    uint64_t expected_bytes;
    const char *name = qtype_name((uint32_t)type);
    const safetensors_tensor_t *raw = recorded(golden, name, "raw");
    const safetensors_tensor_t *values = recorded(golden, name, "f32");
    size_t n = (size_t)values->n_values;
    assert_true(n >= 512);
    assert_true(qtype_row_bytes((uint32_t)type, n, &expected_bytes));
    assert_int_equal(raw->bytes, expected_bytes);
    float *found = MEM_NEW_ARRAY(float, n);
    /* From an odd address: rows of a file are only as aligned as their block size makes them. */
    uint8_t *odd = mem_new((size_t)raw->bytes + 1, 1);
    memcpy(odd + 1, raw->data, (size_t)raw->bytes);
    qtype_dequantize_row(type, odd + 1, n, found);
    for (size_t i = 0; i < n; i++) {
        float expected;
        memcpy(&expected, values->data + i * sizeof expected, sizeof expected);
        if (memcmp(&found[i], &expected, sizeof expected) != 0 &&
            !(isnan(found[i]) && isnan(expected)))
            fail_msg("%s: value %zu is %a; %a is recorded", name, i, (double)found[i],
                     (double)expected);
    }
    free(odd);
    free(found);
}

/* Every type whose name the recording has, so that a type left out of the table is seen too. */
static void test_dequantized_rows_of_25_types_equal_the_recorded_ones_bit_by_bit(void **state)
{
    (void)state;
    safetensors_t *golden;
    assert_int_equal(safetensors_open(SHOAL_TEST_DATA "/ggml_dequant.safetensors", &golden),
                     STATUS_OK);
    size_t n_types = 0;
    for (size_t i = 0; i < safetensors_n_tensors(golden); i++) {
        const char *name = safetensors_at(golden, i)->name;
        size_t n = strlen(name) - 4;
        uint32_t id = 0;
        if (strcmp(name + n, ".raw") != 0)
            continue;
        while (id < 64 && (strlen(qtype_name(id)) != n || memcmp(qtype_name(id), name, n) != 0))
            id++;
        assert_true(id < 64 && qtype_info(id)->is_weight);
        check_type(golden, (qtype_t)id);
        n_types++;
    }
    assert_int_equal(n_types, 25);
    safetensors_close(golden);
}

static float e4m3(uint32_t code)
{
    uint32_t exponent = code >> 3 & 15, mantissa = code & 7;
    double value = exponent == 0 ? ldexp(mantissa, -9) : ldexp(8 + mantissa, (int)exponent - 10);
    return (float)(code & 0x80 ? -value : value);
}

/* Through ldexp, apart from the codes that are no number. */
static void test_every_e4m3_code_has_the_value_that_its_fields_say(void **state)
{
    (void)state;
    for (uint32_t code = 0; code < 256; code++) {
        float found = qtype_e4m3_to_f32((uint8_t)code), expected = e4m3(code);
        if ((code & 0x7f) == 0x7f)
            assert_true(isnan(found));
        else
            assert_memory_equal(&found, &expected, sizeof found);
    }
    assert_true(qtype_e4m3_to_f32(0x7e) == 448.0f);
}

/* All exponents, those of subnormal values and of infinity included. */
static void test_every_mxfp4_exponent_has_its_power_of_two(void **state)
{
    (void)state;
    static const float values[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    for (int exponent = 0; exponent < 256; exponent++) {
        uint8_t block[17] = {(uint8_t)exponent};
        float found[32];
        for (int i = 0; i < 16; i++)
            block[1 + i] = (uint8_t)(i | (15 - i) << 4);
        qtype_dequantize_row(QTYPE_MXFP4, block, 32, found);
        for (int i = 0; i < 32; i++) {
            int code = i < 16 ? i : 31 - i;
            float expected = (float)ldexp((double)values[code & 7], exponent - 127);
            assert_true(found[i] == (code & 8 ? -expected : expected));
        }
    }
}

/* 130 values are a whole block of 128 and two values of the next, which is stored whole. */
static void test_rows_of_our_own_types_may_end_inside_a_block(void **state)
{
    (void)state;
    uint64_t bytes;
    qtype_f8s_t f8[2] = {{.d = 0.5f}, {.d = -3}};
    float found[131];
    for (int i = 0; i < 256; i++)
        f8[i / 128].q[i % 128] = (uint8_t)(i % 120);
    assert_true(qtype_row_bytes(QTYPE_F8S, 130, &bytes));
    assert_int_equal(bytes, sizeof f8);
    found[130] = 77;
    qtype_dequantize_row(QTYPE_F8S, f8, 130, found);
    for (uint32_t i = 0; i < 130; i++)
        assert_true(found[i] == e4m3(i % 120) * (i < 128 ? 0.5f : -3.0f));
    assert_true(found[130] == 77);

    qtype_i8s_t i8[2] = {{.d = 0.25f}, {.d = 7}};
    for (int i = 0; i < 64; i++)
        i8[i / 32].q[i % 32] = (int8_t)(i % 2 ? -i - 64 : i);
    assert_true(qtype_row_bytes(QTYPE_I8S, 33, &bytes));
    assert_int_equal(bytes, sizeof i8);
    found[33] = 77;
    qtype_dequantize_row(QTYPE_I8S, i8, 33, found);
    assert_true(found[31] == -95 * 0.25f && found[32] == 32 * 7.0f && found[33] == 77);
}

/* Two blocks of each size, the second one cut short. */
static void test_nibbles_less_a_zero_point_have_the_written_values(void **state)
{
    (void)state;
    static const uint16_t scales[2][2] = {{0x3800, 0xc200}, {0x3f00, 0xc040}}; /* 0.5 and -3 */
    static const int sizes[4] = {128, 32, 64, 1024};
    for (uint32_t type = QTYPE_Z4; type < QTYPE_OWN_END; type++) {
        int size = sizes[(type - QTYPE_Z4) % 4], n = size + 2;
        uint8_t row[2 * (3 + 512)] = {0};
        float values[1027];
        uint64_t bytes;
        for (int i = 0; i < 2 * size; i++) {
            uint8_t *block = row + i / size * (3 + size / 2);
            memcpy(block, &scales[qtype_z4_is_bf16(type)][i / size], 2);
            block[2] = i < size ? 16 : 3;
            block[3 + i % size / 2] |= (uint8_t)(i * 5 % 16 << (i % 2 * 4));
        }
        assert_true(qtype_row_bytes(type, (uint64_t)n, &bytes));
        assert_int_equal(bytes, 2 * (3 + size / 2));
        bool bf16 = qtype_z4_is_bf16(type);
        assert_int_equal(qtype_z4_of((uint64_t)size, bf16, type >= QTYPE_S4), type);
        values[n] = 77;
        qtype_dequantize_row((qtype_t)type, row, (size_t)n, values);
        for (int i = 0; i < n; i++) {
            float wanted = (float)(i * 5 % 16 - (i < size ? 16 : 3)) * (i < size ? 0.5f : -3);
            assert_true(values[i] == wanted);
        }
        assert_true(values[n] == 77);
    }
    assert_int_equal(qtype_held_bytes(QTYPE_Z4_ROW, 1536, 1030), 3 + 512 + 3 + 256);
    assert_int_equal(qtype_held_bytes(QTYPE_S4_BF16 + 3, 2048, 1030), 1030);
    assert_int_equal(qtype_held_bytes(QTYPE_I8S, 33, 72), 72);
    assert_int_equal(qtype_z4_of(96, false, false), QTYPE_Z4_32);
    assert_int_equal(qtype_z4_of(384, true, true), QTYPE_S4_BF16);
}

/* Recorded by the reference implementation: zeros, ties, one large value, scales below the halves'
 * normal range. */
static void test_quantized_rows_have_the_recorded_bytes(void **state)
{
    (void)state;
    static const qtype_t types[] = {QTYPE_Q8_0, QTYPE_Q4_0, QTYPE_Q4_1};
    safetensors_t *golden;
    assert_int_equal(safetensors_open(SHOAL_TEST_DATA "/ggml_quantize.safetensors", &golden),
                     STATUS_OK);
    const safetensors_tensor_t *input = recorded(golden, "input", "f32");
    size_t n = (size_t)input->n_values;
    float *values = MEM_NEW_ARRAY(float, n);
    memcpy(values, input->data, (size_t)input->bytes);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        const char *name = qtype_name((uint32_t)types[i]);
        const safetensors_tensor_t *raw = recorded(golden, name, "raw");
        uint8_t *found = mem_new((size_t)raw->bytes, 1);
        assert_true(qtype_quantize_row(types[i], values, n, found));
        size_t block = qtype_info((uint32_t)types[i])->block_bytes;
        for (size_t b = 0; b < raw->bytes / block; b++)
            if (memcmp(found + b * block, raw->data + b * block, block) != 0)
                fail_msg("%s: block %zu differs", name, b);
        free(found);
    }
    free(values);
    safetensors_close(golden);
}

/* Nothing representable is nearer, by trying all codes; ties go to the even one. */
static void test_e4m3_and_half_rounding_take_the_nearest_value(void **state)
{
    (void)state;
    uint32_t random = 1;
    for (int i = 0; i < 20000; i++) {
        random = random * 1664525u + 1013904223u;
        float x = ldexpf((float)(int32_t)random, (int)(random >> 8 & 31) - 47);
        uint8_t code = qtype_f32_to_e4m3(x);
        double size = fabs((double)x), off = fabs((double)qtype_e4m3_to_f32(code) - (double)x);
        for (uint32_t other = 0; other < 0x7f; other++) {
            double far = fabs((double)qtype_e4m3_to_f32((uint8_t)other) - size);
            assert_true(off < far || (off == far && (other == (code & 0x7fu) || (code & 1) == 0)));
        }
        assert_true((code & 0x80) == (x < 0 ? 0x80 : 0));
    }
    for (uint32_t half = 0; half < 0x7c00; half++) { /* each half, and the middle to the next */
        float value = qtype_f16_to_f32((uint16_t)half);
        float next = half == 0x7bff ? 65536.0f : qtype_f16_to_f32((uint16_t)(half + 1));
        float middle = (value + next) / 2;
        assert_int_equal(qtype_f32_to_f16(value), half);
        assert_int_equal(qtype_f32_to_f16(-value), half | 0x8000);
        assert_int_equal(qtype_f32_to_f16(middle), half + (half & 1));
        assert_int_equal(qtype_f32_to_f16(nextafterf(middle, 0)), half);
        assert_int_equal(qtype_f32_to_f16(nextafterf(middle, 1e9f)), half + 1);
    }
    assert_int_equal(qtype_f32_to_f16(INFINITY), 0x7c00);
    assert_true(isnan(qtype_f16_to_f32(qtype_f32_to_f16(NAN))));
    assert_int_equal(qtype_f32_to_e4m3(1e30f), 0x7e);
}

static void test_f8s_rows_keep_the_largest_value_and_round_the_others(void **state)
{
    (void)state;
    float values[200], found[200];
    for (int i = 0; i < 200; i++)
        values[i] = sinf((float)i) * (i < 128 ? 0.01f : 30.0f);
    values[77] = -0.5f;
    for (int i = 128; i < 200; i++)
        values[i] = i == 199 ? 0.0f : values[i];
    qtype_f8s_t row[2];
    assert_true(qtype_quantize_row(QTYPE_F8S, values, 200, row));
    assert_true(row[0].d == 0.5f / 448.0f);
    qtype_dequantize_row(QTYPE_F8S, row, 200, found);
    assert_true(fabsf(found[77] + 0.5f) < 1e-7f);
    for (int i = 0; i < 200; i++) /* half a step of 3 mantissa bits, or of the smallest step */
        assert_true(fabsf(found[i] - values[i]) <=
                    fmaxf(fabsf(values[i]) / 16, row[i / 128].d * 0x1p-10f) * 1.0001f);
    memset(values, 0, sizeof values);
    assert_true(qtype_quantize_row(QTYPE_F8S, values, 200, row));
    qtype_dequantize_row(QTYPE_F8S, row, 200, found);
    assert_memory_equal(found, values, sizeof values);
}

static void test_values_that_no_block_can_hold_are_refused(void **state)
{
    (void)state;
    static const qtype_t types[] = {QTYPE_Q8_0, QTYPE_Q4_0, QTYPE_Q4_1, QTYPE_F8S};
    uint8_t row[256];
    for (size_t i = 0; i < 4; i++) {
        float values[32] = {1, 2, 3};
        assert_true(qtype_can_quantize(types[i]));
        assert_true(qtype_quantize_row(types[i], values, 32, row));
        values[9] = 1e9f; /* its scale is above 65504, which F8S alone can store */
        assert_true(qtype_quantize_row(types[i], values, 32, row) == (types[i] == QTYPE_F8S));
        values[9] = NAN;
        assert_false(qtype_quantize_row(types[i], values, 32, row));
        values[9] = -INFINITY;
        assert_false(qtype_quantize_row(types[i], values, 32, row));
    }
    assert_false(qtype_can_quantize(QTYPE_Q6_K));
    float wide[32] = {3e38f, -3e38f}; /* their difference is no float */
    assert_false(qtype_quantize_row(QTYPE_Q4_1, wide, 32, row));
    float tiny[32] = {1e-44f, -1e-44f}, found[32]; /* too small for a scale: zeros */
    for (size_t i = 0; i < 3; i++) {
        assert_true(qtype_quantize_row(types[i], tiny, 32, row));
        qtype_dequantize_row(types[i], row, 32, found);
        assert_true(found[0] == 0 && found[1] == 0 && found[31] == 0);
    }
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
        cmocka_unit_test(test_dequantized_rows_of_25_types_equal_the_recorded_ones_bit_by_bit),
        cmocka_unit_test(test_every_e4m3_code_has_the_value_that_its_fields_say),
        cmocka_unit_test(test_every_mxfp4_exponent_has_its_power_of_two),
        cmocka_unit_test(test_rows_of_our_own_types_may_end_inside_a_block),
        cmocka_unit_test(test_nibbles_less_a_zero_point_have_the_written_values),
        cmocka_unit_test(test_quantized_rows_have_the_recorded_bytes),
        cmocka_unit_test(test_e4m3_and_half_rounding_take_the_nearest_value),
        cmocka_unit_test(test_f8s_rows_keep_the_largest_value_and_round_the_others),
        cmocka_unit_test(test_values_that_no_block_can_hold_are_refused),
        cmocka_unit_test(test_f32_rows_are_copied),
        cmocka_unit_test(test_every_half_has_the_value_that_its_fields_say),
        cmocka_unit_test(test_row_sizes_are_those_of_the_recorded_rows),
        cmocka_unit_test(test_rows_that_are_no_whole_blocks_or_overflow_have_no_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
