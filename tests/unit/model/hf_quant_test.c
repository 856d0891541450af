/* Quantized layouts that the recorded models do not have, against values written down here, and
 * parts that contradict one another. */
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
#include "common/model/source.h"
#include "tests/unit/model/safetensors_draft.h"

#define GPTQ "{\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":32}}"
#define AWQ "{\"quantization_config\":{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":32}}"
#define FP8 "{\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128]}}"
#define PACKED                                                                                     \
    "{\"quantization_config\":{\"quant_method\":\"compressed-tensors\","                           \
    "\"format\":\"pack-quantized\"}}"

static char *folder_with(const char *config, st_draft_t *draft)
{
    char *folder = folder_new();
    folder_write_text(folder, "config.json", config);
    folder_write_draft(folder, "model.safetensors", draft);
    return folder;
}

static void check_refused(const char *config, st_draft_t *draft, status_t expected,
                          const char *text)
{
    char *folder = folder_with(config, draft);
    source_t *source = NULL;
    status_t status = source_open(folder, &source);
    if (status != expected || strstr(status_text(), text) == NULL)
        fail_msg("%s \"%s\"; expected %s with \"%s\"", status_name(status), status_text(),
                 status_name(expected), text);
    folder_remove(folder);
}

/* Reads the one tensor "m.weight" of the draft as F32, which the caller frees. */
static float *read_matrix(const char *config, st_draft_t *draft, qtype_t type)
{
    char *folder = folder_with(config, draft);
    source_t *source = NULL;
    if (source_open(folder, &source) != STATUS_OK)
        fail_msg("%s", status_text());
    assert_int_equal(source_n_tensors(source), 1);
    const source_tensor_t *tensor = source_tensor(source, "m.weight");
    assert_non_null(tensor);
    assert_string_equal(qtype_name((uint32_t)tensor->type), qtype_name((uint32_t)type));
    uint8_t *rows = mem_new((size_t)tensor->bytes, 1);
    float *values = MEM_NEW_ARRAY(float, tensor->rows * tensor->columns);
    memset(rows, 0x55, (size_t)tensor->bytes); /* a reader writes all bytes of its rows */
    assert_int_equal(source_read_rows(tensor, 0, tensor->rows, rows), STATUS_OK);
    uint64_t block = qtype_info((uint32_t)type)->block_values;
    uint64_t whole = (tensor->columns + block - 1) / block * block;
    float *row = MEM_NEW_ARRAY(float, whole);
    for (uint64_t r = 0; r < tensor->rows; r++) {
        qtype_dequantize_row(type, rows + r * tensor->row_bytes, whole, row);
        memcpy(values + r * tensor->columns, row, tensor->columns * sizeof *row);
        for (uint64_t i = tensor->columns; i < whole; i++)
            assert_true(row[i] == 0);
    }
    free(row);
    free(rows);
    source_close(source);
    folder_remove(folder);
    return values;
}

/* --- GPTQ of other widths --- */

enum { K = 64, N = 16 };

static uint32_t value_at(uint32_t k, uint32_t n, uint32_t bits)
{
    return (k * 7 + n * 3 + k * n) & ((1u << bits) - 1);
}

/* Scales of the tests fit all three types. */
static void add_scales(st_draft_t *draft, const char *name, const char *dtype, const char *shape,
                       const float *scales, size_t n)
{
    uint16_t halves[2 * N];
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &scales[i], sizeof bits);
        halves[i] = dtype[0] == 'B' ? (uint16_t)(bits >> 16) : qtype_f32_to_f16(scales[i]);
    }
    if (strcmp(dtype, "F32") == 0)
        st_add(draft, name, dtype, shape, scales, n * sizeof *scales);
    else
        st_add(draft, name, dtype, shape, halves, n * sizeof *halves);
}

/* A matrix of K inputs and N outputs in two groups, whose stored zero points are `zero` + n %
 * spread. */
static void add_gptq(st_draft_t *draft, uint32_t bits, uint32_t zero, uint32_t spread,
                     const char *dtype)
{
    uint32_t per = 32 / bits, words[K * N] = {0}, zeros[2 * N] = {0};
    float scales[2 * N];
    for (uint32_t k = 0; k < K; k++)
        for (uint32_t n = 0; n < N; n++)
            words[k / per * N + n] |= value_at(k, n, bits) << (k % per * bits);
    for (uint32_t g = 0; g < 2; g++)
        for (uint32_t n = 0; n < N; n++) {
            zeros[g * (N / per) + n / per] |= (zero + n % spread) << (n % per * bits);
            scales[g * N + n] = (float)(g + 1) * 0.25f + (float)n;
        }
    char shape[4][32];
    snprintf(shape[0], 32, "[%u,%u]", K / per, N);
    snprintf(shape[1], 32, "[2,%u]", N / per);
    snprintf(shape[2], 32, "[2,%u]", N);
    st_add(draft, "m.qweight", "I32", shape[0], words, K / per * N * 4);
    st_add(draft, "m.qzeros", "I32", shape[1], zeros, 2 * (N / per) * 4);
    add_scales(draft, "m.scales", dtype, shape[2], scales, 2 * N);
}

static void check_gptq(const char *config, uint32_t bits, uint32_t zero, uint32_t spread,
                       int offset, const char *dtype, qtype_t type)
{
    st_draft_t draft = {0};
    add_gptq(&draft, bits, zero, spread, dtype);
    float *values = read_matrix(config, &draft, type);
    for (uint32_t n = 0; n < N; n++)
        for (uint32_t k = 0; k < K; k++) {
            int minus = (int)(zero + n % spread) + offset;
            float scale = (float)(k / 32 + 1) * 0.25f + (float)n;
            float expected = (float)((int)value_at(k, n, bits) - minus) * scale;
            if (values[n * K + k] != expected)
                fail_msg("%u bits, [%u][%u]: %g; expected %g", bits, n, k,
                         (double)values[n * K + k], (double)expected);
        }
    free(values);
}

static void test_gptq_of_2_4_and_8_bits_and_both_ways_to_count_zero_points(void **state)
{
    (void)state;
#define WITH(bits, more)                                                                           \
    "{\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":" bits                           \
    ",\"group_size\":32" more "}}"
    check_gptq(WITH("4", ""), 4, 3, 4, 1, "F32", QTYPE_I8S);
    check_gptq(WITH("4", ",\"checkpoint_format\":\"gptq\""), 4, 3, 13, 1, "F32", QTYPE_I8S);
    check_gptq(WITH("4", ",\"checkpoint_format\":\"gptq_v2\""), 4, 3, 4, 0, "F32", QTYPE_I8S);
    check_gptq(WITH("4", ""), 4, 3, 13, 1, "F16", QTYPE_Z4_32);
    check_gptq(WITH("4", ",\"checkpoint_format\":\"gptq_v2\""), 4, 3, 4, 0, "BF16",
               QTYPE_Z4_BF16 + 1);
    check_gptq(WITH("2", ""), 2, 0, 4, 1, "F32", QTYPE_I8S);
    check_gptq(WITH("8", ""), 8, 127, 1, 1, "F32", QTYPE_I8S); /* symmetric: fits a signed byte */
    check_gptq(WITH("8", ""), 8, 100, 5, 1, "F32", QTYPE_F32); /* does not */
#undef WITH
}

/* --- FP8 with other scales --- */

static void add_fp8(st_draft_t *draft, uint32_t rows, uint32_t columns)
{
    char shape[32];
    uint8_t codes[1024];
    for (uint32_t i = 0; i < rows * columns; i++)
        codes[i] = (uint8_t)(i % 127 | (i % 3 == 0 ? 0x80 : 0));
    snprintf(shape, sizeof shape, "[%u,%u]", rows, columns);
    st_add(draft, "m.weight", "F8_E4M3", shape, codes, rows * columns);
}

static void check_fp8(const char *name, const char *dtype, const char *shape, const void *bytes,
                      size_t n, const float expected_scales[3])
{
    st_draft_t draft = {0};
    add_fp8(&draft, 3, 150);
    if (name != NULL)
        st_add(&draft, name, dtype, shape, bytes, n);
    float *values = read_matrix(FP8, &draft, QTYPE_F8S);
    for (uint32_t i = 0; i < 450; i++) {
        uint8_t code = (uint8_t)(i % 127 | (i % 3 == 0 ? 0x80 : 0));
        float expected = qtype_e4m3_to_f32(code) * expected_scales[i / 150];
        if (values[i] != expected)
            fail_msg("%s: value %u is %g; expected %g", name, i, (double)values[i],
                     (double)expected);
    }
    free(values);
}

static void test_fp8_with_scales_by_tensor_by_row_or_none(void **state)
{
    (void)state;
    const float scales[3] = {0.5f, 3, 0.75f};
    const uint16_t bf16 = 0x4040; /* 3 */
    check_fp8(NULL, NULL, NULL, NULL, 0, (float[]){1, 1, 1});
    check_fp8("m.weight_scale", "F32", "[3,1]", scales, sizeof scales, scales);
    check_fp8("m.weight_scale", "BF16", "[]", &bf16, 2, (float[]){3, 3, 3});
    check_fp8("m.weight_scale_inv", "F32", "[1,2]", (float[]){2, 2}, 8, (float[]){2, 2, 2});
    check_fp8("m.scale", "F8_E8M0", "[1,2]", "\x7d\x7d", 2, (float[]){.25f, .25f, .25f});
}

/* --- compressed-tensors --- */

/* 40 inputs: the last block of a row is short, in ours and in the stored words of 8 values. */
static void test_packed_int4_and_int8_rows_that_end_inside_a_block(void **state)
{
    (void)state;
    uint32_t words[2 * 5] = {0};
    int8_t bytes[2 * 40];
    const int64_t shape[2] = {2, 40};
    const float scales[2] = {0.5f, 2};
    for (uint32_t i = 0; i < 80; i++) {
        words[i / 40 * 5 + i % 40 / 8] |= (i * 5 % 16) << (i % 8 * 4);
        bytes[i] = (int8_t)(i * 5 % 16 - 8);
    }
    static const struct {
        const char *dtype;
        qtype_t type;
    } rows[] = {{"F32", QTYPE_I8S}, {"F32", QTYPE_I8S}, {"F16", QTYPE_S4 + 3},
                {"BF16", QTYPE_S4_BF16 + 3}};
    for (int packed = 0; packed < 4; packed++) {
        st_draft_t draft = {0};
        if (packed) {
            st_add(&draft, "m.weight_packed", "I32", "[2,5]", words, sizeof words);
            st_add(&draft, "m.weight_shape", "I64", "[2]", shape, sizeof shape);
        } else {
            st_add(&draft, "m.weight", "I8", "[2,40]", bytes, sizeof bytes);
        }
        add_scales(&draft, "m.weight_scale", rows[packed].dtype, "[2,1]", scales, 2);
        float *values = read_matrix(PACKED, &draft, rows[packed].type);
        for (uint32_t i = 0; i < 80; i++)
            assert_true(values[i] == (float)((int)(i * 5 % 16) - 8) * scales[i / 40]);
        free(values);
    }
}

/* --- what is beside the matrices --- */

static size_t n_tensors(const char *config, const char *name, const char *dtype, const char *shape,
                        const void *bytes, size_t n)
{
    st_draft_t draft = {0};
    source_t *source;
    char *folder = folder_new();
    add_fp8(&draft, 3, 150);
    st_add(&draft, "m.weight_scale", "F32", "[]", (float[]){2}, 4);
    st_add(&draft, name, dtype, shape, bytes, n);
    folder_write_text(folder, "config.json", config);
    folder_write_draft(folder, "model.safetensors", &draft);
    if (source_open(folder, &source) != STATUS_OK)
        fail_msg("%s: %s", name, status_text());
    size_t found = source_n_tensors(source);
    assert_non_null(source_tensor(source, "m.weight"));
    source_close(source);
    folder_remove(folder);
    return found;
}

/* No weight changes with them. What is not one of them stays in the list, and is refused by whoever
 * looks for the architecture's tensors. */
static void test_static_scales_of_activations_and_caches_are_left_aside(void **state)
{
    (void)state;
    static const char ct[] = "{\"quantization_config\":{\"quant_method\":\"compressed-tensors\","
                             "\"format\":\"float-quantized\"}}";
    static const float scales[2] = {0.5f, 2};
    static const char *const left[] = {"m.input_scale", "a.self_attn.k_scale",
                                       "a.self_attn.v_scale", "a.self_attn.k_proj.output_scale"};
    for (size_t i = 0; i < sizeof left / sizeof *left; i++) {
        assert_int_equal(n_tensors(FP8, left[i], "F32", "[]", scales, 4), 1);
        assert_int_equal(n_tensors(ct, left[i], "BF16", "[1]", scales, 2), 1);
        assert_int_equal(n_tensors("{\"model_type\":\"llama\"}", left[i], "F32", "[1]", scales, 4),
                         2);
    }
    assert_int_equal(n_tensors(FP8, "m.input_scale", "F32", "[2]", scales, 8), 2);
    assert_int_equal(n_tensors(FP8, "other.input_scale", "F32", "[]", scales, 4), 2);
    assert_int_equal(n_tensors(FP8, "a.mlp.k_scale", "F32", "[]", scales, 4), 2);
}

/* --- what is refused --- */

static void test_methods_that_cannot_be_read_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *config, *text;
        status_t status;
    } cases[] = {
        {"{\"quant_method\":\"bitsandbytes\"}", "the method \"bitsandbytes\" cannot be read; awq",
         STATUS_UNSUPPORTED},
        {"{\"bits\":4}", "has no \"quant_method\"", STATUS_INVALID},
        {"{\"quant_method\":\"gptq\",\"bits\":3,\"group_size\":32}", "values of 3 bits; 2, 4 and 8",
         STATUS_UNSUPPORTED},
        {"{\"quant_method\":\"awq\",\"bits\":8,\"group_size\":32}", "values of 8 bits; 4 can",
         STATUS_UNSUPPORTED},
        {"{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":0}", "\"group_size\" is 0",
         STATUS_INVALID},
        {"{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":32,\"version\":\"gemv\"}",
         "\"version\" is \"gemv\"; gemm", STATUS_UNSUPPORTED},
        {"{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":1,\"checkpoint_format\":\"marlin\"}",
         "\"checkpoint_format\" is \"marlin\"", STATUS_UNSUPPORTED},
        {"{\"quant_method\":\"fp8\",\"fmt\":\"e5m2\"}", "\"fmt\" is \"e5m2\"", STATUS_UNSUPPORTED},
        {"{\"quant_method\":\"fp8\",\"weight_block_size\":[128]}", "must be two integers above 0",
         STATUS_INVALID},
        {"{\"quant_method\":\"fp8\",\"weight_block_size\":[0,128]}", "must be two integers above 0",
         STATUS_INVALID},
        {"{\"quant_method\":\"fp8\",\"weight_block_size\":[128,96]}", "scale blocks of 96 columns",
         STATUS_UNSUPPORTED},
        {"{\"quant_method\":\"compressed-tensors\",\"format\":\"marlin-24\"}",
         "the format \"marlin-24\" cannot be read", STATUS_UNSUPPORTED},
        {"[]", "\"quantization_config\" is of kind array", STATUS_INVALID},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *config = mem_format("{\"quantization_config\":%s}", cases[i].config);
        st_draft_t draft = {0};
        st_add(&draft, "a", "F32", "[1]", NULL, 4);
        check_refused(config, &draft, cases[i].status, cases[i].text);
        free(config);
    }
}

typedef struct {
    const char *name, *dtype, *shape;
    size_t bytes;
    const char *data;
} part_t;

static void test_parts_that_do_not_fit_their_matrix_are_refused_by_name(void **state)
{
    (void)state;
#define QWEIGHT {"m.qweight", "I32", "[8,16]", 512, NULL} /* GPTQ: 64 inputs; AWQ: 8 inputs */
#define QZEROS {"m.qzeros", "I32", "[2,2]", 16, NULL}
#define SCALES {"m.scales", "F16", "[2,16]", 64, NULL}
#define EXPERTS {"e_blocks", "U8", "[1,2,1,16]", 32, NULL}
#define CODES {"m.weight_packed", "I32", "[2,8]", 64, NULL}
#define SHAPE {"m.weight_shape", "I64", "[2]", 16, "\2\0\0\0\0\0\0\0\x40\0\0\0\0\0\0\0"}
    static const struct {
        const char *config, *text;
        part_t parts[4];
        status_t status;
    } cases[] = {
        {GPTQ, "tensor m.qweight has no m.scales", {QWEIGHT, QZEROS}, STATUS_INVALID},
        {GPTQ, "tensor m.qweight has no m.qzeros", {QWEIGHT, SCALES}, STATUS_INVALID},
        {GPTQ, "tensor m.scales is F16 of 2 dimensions [1, 16 …]; F32 [2, 16]",
         {QWEIGHT, QZEROS, {"m.scales", "F16", "[1,16]", 32, NULL}}, STATUS_INVALID},
        {GPTQ, "tensor m.scales is I16", {QWEIGHT, QZEROS, {"m.scales", "I16", "[2,16]", 64, NULL}},
         STATUS_INVALID},
        {GPTQ, "tensor m.qzeros is I32 of 2 dimensions [2, 1 …]; I32 [2, 2]",
         {QWEIGHT, SCALES, {"m.qzeros", "I32", "[2,1]", 8, NULL}}, STATUS_INVALID},
        {GPTQ, "tensor m.g_idx is I32 of 1 dimensions [63, 1 …]; I32 [64, 1]",
         {QWEIGHT, QZEROS, SCALES, {"m.g_idx", "I32", "[63]", 252, NULL}}, STATUS_INVALID},
        {GPTQ, "tensor m.qweight: 15 outputs of 64 inputs are no whole words",
         {{"m.qweight", "I32", "[8,15]", 480, NULL}}, STATUS_INVALID},
        {GPTQ, "tensor m.qweight is I32 of 1 dimensions", {{"m.qweight", "I32", "[8]", 32, NULL}},
         STATUS_INVALID},
        {AWQ, "tensor m.scales is F16 of 2 dimensions [2, 16 …]; F32 [1, 128]",
         {QWEIGHT, QZEROS, SCALES}, STATUS_INVALID},
        {FP8, "tensor m.weight_scale_inv is F32 of 2 dimensions [2, 2 …]; F32 [2, 1]",
         {{"m.weight", "F8_E4M3", "[129,2]", 258, NULL},
          {"m.weight_scale_inv", "F32", "[2,2]", 16, NULL}}, STATUS_INVALID},
        {FP8, "tensor m.weight is F8_E4M3 of 1 dimensions",
         {{"m.weight", "F8_E4M3", "[4]", 4, NULL}}, STATUS_INVALID},
        {"{}", "tensor e_scales is U8 of 3 dimensions",
         {EXPERTS, {"e_scales", "U8", "[1,2,2]", 4, NULL}}, STATUS_INVALID},
        {"{}", "tensor e_blocks is U8, which cannot be used as it is", {EXPERTS},
         STATUS_UNSUPPORTED},
        {"{}", "tensor m.scale is F8_E8M0 of 2 dimensions [2, 1 …]; F8_E8M0 [2, 2]",
         {{"m.weight", "I8", "[2,32]", 64, NULL}, {"m.scale", "F8_E8M0", "[2,1]", 2, NULL}},
         STATUS_INVALID},
        {PACKED, "tensor m.weight_packed has no m.weight_shape", {CODES}, STATUS_INVALID},
        {PACKED, "tensor m.weight_packed has no m.weight_scale", {CODES, SHAPE}, STATUS_INVALID},
        {PACKED, "tensor m.weight_zero_point: compressed-tensors with zero points",
         {CODES, SHAPE, {"m.weight_zero_point", "I8", "[2,1]", 2, NULL}}, STATUS_UNSUPPORTED},
        {PACKED, "tensor m.weight_scale is F32 of 2 dimensions [2, 3 …]",
         {CODES, SHAPE, {"m.weight_scale", "F32", "[2,3]", 24, NULL}}, STATUS_INVALID},
        {PACKED, "tensor m.weight_packed is I32 of 2 dimensions [2, 7 …]",
         {{"m.weight_packed", "I32", "[2,7]", 56, NULL}, SHAPE}, STATUS_INVALID},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        st_draft_t draft = {0};
        for (size_t p = 0; p < 4 && cases[i].parts[p].name != NULL; p++) {
            const part_t *part = &cases[i].parts[p];
            st_add(&draft, part->name, part->dtype, part->shape, part->data, part->bytes);
        }
        check_refused(cases[i].config, &draft, cases[i].status, cases[i].text);
    }
}

static void test_a_group_number_out_of_range_is_refused(void **state)
{
    (void)state;
    int32_t groups[K] = {0};
    for (int bad = -1; bad <= 2; bad += 3) {
        st_draft_t draft = {0};
        groups[7] = bad;
        add_gptq(&draft, 4, 3, 4, "F32");
        st_add(&draft, "m.g_idx", "I32", "[64]", groups, sizeof groups);
        check_refused(GPTQ, &draft, STATUS_INVALID, "tensor m.g_idx: input 7 is of group");
    }
}

/* --- scales that mean nothing are seen when their rows are read --- */

static void check_bad_scale(const char *config, st_draft_t *draft, uint64_t row)
{
    char *folder = folder_with(config, draft);
    source_t *source;
    assert_int_equal(source_open(folder, &source), STATUS_OK);
    const source_tensor_t *tensor = source_tensor_at(source, 0);
    uint8_t *rows = mem_new((size_t)tensor->bytes, 1);
    char *text = mem_format("the scale of a block in row %llu is not a finite number",
                            (unsigned long long)row);
    assert_int_equal(source_read_rows(tensor, 0, row, rows), STATUS_OK);
    assert_int_equal(source_read_rows(tensor, row, 1, rows), STATUS_INVALID);
    assert_non_null(strstr(status_text(), text));
    free(text);
    free(rows);
    source_close(source);
    folder_remove(folder);
}

static void test_a_scale_that_is_no_number_fails_the_rows_it_scales(void **state)
{
    (void)state;
    st_draft_t draft = {0};
    st_add(&draft, "m.weight", "I8", "[2,4]", NULL, 8);
    st_add(&draft, "m.weight_scale", "F32", "[2,1]", (float[]){1, NAN}, 8);
    check_bad_scale("{}", &draft, 1);
    st_add(&draft, "m.weight", "F8_E4M3", "[3,4]", NULL, 12);
    st_add(&draft, "m.weight_scale", "F32", "[3,1]", (float[]){1, 1, INFINITY}, 12);
    check_bad_scale("{}", &draft, 2);
    st_add(&draft, "e_blocks", "U8", "[1,2,1,16]", NULL, 32);
    st_add(&draft, "e_scales", "U8", "[1,2,1]", "\x7f\xff", 2);
    check_bad_scale("{}", &draft, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gptq_of_2_4_and_8_bits_and_both_ways_to_count_zero_points),
        cmocka_unit_test(test_fp8_with_scales_by_tensor_by_row_or_none),
        cmocka_unit_test(test_packed_int4_and_int8_rows_that_end_inside_a_block),
        cmocka_unit_test(test_static_scales_of_activations_and_caches_are_left_aside),
        cmocka_unit_test(test_methods_that_cannot_be_read_are_refused_by_name),
        cmocka_unit_test(test_parts_that_do_not_fit_their_matrix_are_refused_by_name),
        cmocka_unit_test(test_a_group_number_out_of_range_is_refused),
        cmocka_unit_test(test_a_scale_that_is_no_number_fails_the_rows_it_scales),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
