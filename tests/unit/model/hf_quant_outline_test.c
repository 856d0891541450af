/* Matrices of 4 bits whose width and group meet in unusual ways: the planner, which sees the
 * configuration and a width, must expect the type that the reader makes of their parts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/source.h"
#include "common/model/source_outline.h"
#include "tests/unit/model/safetensors_draft.h"

/* Both see the same matrix: one by its parts, one by the configuration and its width. */
static void check_type(const char *quantized, st_draft_t *draft, uint64_t columns, qtype_t type,
                       const char *stored)
{
    char *config = mem_format("{\"torch_dtype\":\"float16\",\"quantization_config\":{%s}}",
                              quantized);
    source_t *outline, *source;
    source_outline_types_t types;
    assert_int_equal(source_outline_open_bytes("c", config, strlen(config), &outline), STATUS_OK);
    assert_int_equal(source_outline_types(outline, &types), STATUS_OK);
    char *folder = folder_new();
    folder_write_text(folder, "config.json", config);
    folder_write_draft(folder, "model.safetensors", draft);
    assert_int_equal(source_open(folder, &source), STATUS_OK);
    const source_tensor_t *tensor = source_tensor(source, "m.weight");
    if (tensor->type != type || source_outline_matrix(&types, false, columns) != type ||
        strcmp(tensor->stored, stored) != 0)
        fail_msg("%s, %llu columns: %s \"%s\", outlined as %s; expected %s \"%s\"", quantized,
                 (unsigned long long)columns, qtype_name((uint32_t)tensor->type), tensor->stored,
                 qtype_name((uint32_t)source_outline_matrix(&types, false, columns)),
                 qtype_name((uint32_t)type), stored);
    source_close(outline);
    source_close(source);
    folder_remove(folder);
    free(config);
}

/* 8 outputs of so many inputs by "awq" or by "gptq", whose inputs may name their groups. */
static void check_words(const char *method, uint32_t group, uint32_t inputs, bool act_order,
                        qtype_t type, const char *stored)
{
    st_draft_t draft = {0};
    bool awq = strcmp(method, "awq") == 0;
    uint32_t n_groups = (inputs + group - 1) / group;
    uint8_t *zeros = mem_new(inputs, 4);
    char shape[3][32];
    snprintf(shape[0], 32, awq ? "[%u,1]" : "[%u,8]", awq ? inputs : inputs / 8);
    snprintf(shape[1], 32, "[%u,1]", n_groups);
    snprintf(shape[2], 32, "[%u,8]", n_groups);
    memset(zeros, 0, inputs * 4);
    st_add(&draft, "m.qweight", "I32", shape[0], zeros, inputs * 4);
    st_add(&draft, "m.qzeros", "I32", shape[1], zeros, n_groups * 4);
    st_add(&draft, "m.scales", "F16", shape[2], zeros, n_groups * 16);
    for (uint32_t k = 0; k < inputs; k++)
        memcpy(zeros + 4 * k, &(uint32_t){k % n_groups}, 4);
    snprintf(shape[0], 32, "[%u]", inputs);
    if (act_order)
        st_add(&draft, "m.g_idx", "I32", shape[0], zeros, inputs * 4);
    char *config = mem_format("\"quant_method\":\"%s\",\"bits\":4,\"group_size\":%u%s", method,
                              group, act_order ? ",\"desc_act\":true" : "");
    check_type(config, &draft, inputs, type, stored);
    free(config);
    free(zeros);
}

static void check_packed(const char *group, uint32_t columns, uint32_t per_row, qtype_t type)
{
    st_draft_t draft = {0};
    uint8_t zeros[2048] = {0};
    char shape[2][32];
    snprintf(shape[0], 32, "[2,%u]", columns / 8);
    snprintf(shape[1], 32, "[2,%u]", per_row);
    st_add(&draft, "m.weight_packed", "I32", shape[0], zeros, columns);
    st_add(&draft, "m.weight_shape", "I64", "[2]", (int64_t[]){2, columns}, 16);
    st_add(&draft, "m.weight_scale", "F16", shape[1], zeros, per_row * 4);
    char *config = mem_format("\"quant_method\":\"compressed-tensors\",\"format\":"
                              "\"pack-quantized\",\"config_groups\":{\"g\":{\"weights\":"
                              "{\"num_bits\":4,\"group_size\":%s}}}", group);
    check_type(config, &draft, columns, type, "INT4 packed");
    free(config);
}

static void test_a_matrix_as_wide_as_a_group_or_no_multiple_of_32_is_outlined_as_it_is_read(
    void **state)
{
    (void)state;
    check_words("awq", 48, 96, false, QTYPE_F32, "AWQ 4 bit");
    check_words("awq", 48, 48, false, QTYPE_Z4_ROW, "AWQ 4 bit");
    check_words("awq", 64, 64, false, QTYPE_Z4_64, "AWQ 4 bit");
    check_words("awq", 256, 512, false, QTYPE_Z4, "AWQ 4 bit");
    check_words("gptq", 48, 96, false, QTYPE_F32, "GPTQ 4 bit");
    check_words("gptq", 48, 48, false, QTYPE_Z4_ROW, "GPTQ 4 bit");
    check_words("gptq", 128, 64, false, QTYPE_Z4, "GPTQ 4 bit");
    check_words("gptq", 32, 64, true, QTYPE_F32, "GPTQ, act-order");
    check_words("gptq", 64, 64, true, QTYPE_Z4_64, "GPTQ 4 bit");
    check_packed("256", 256, 1, QTYPE_S4);
    check_packed("512", 512, 1, QTYPE_S4);
    check_packed("1024", 1024, 1, QTYPE_S4 + 3);
    check_packed("256", 512, 2, QTYPE_S4);
    check_packed("64", 64, 1, QTYPE_S4 + 2);
    check_packed("128", 64, 1, QTYPE_S4);
    check_packed("48", 48, 1, QTYPE_S4 + 3);
    check_packed("null", 256, 1, QTYPE_S4 + 3);
    check_packed("-1", 128, 1, QTYPE_S4 + 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            test_a_matrix_as_wide_as_a_group_or_no_multiple_of_32_is_outlined_as_it_is_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
