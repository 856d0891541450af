/* Every quantized matrix of the recorded models, read as rows and dequantized, has the digest that
 * the reference recorded over its F32 bytes (golden.json, dequant_fp32_sha256_16), and where values
 * are recorded too, these values. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/digest.h"
#include "common/base/json.h"
#include "common/base/memory.h"
#include "common/model/safetensors.h"
#include "common/model/source.h"

static float *dequantize(const source_tensor_t *tensor)
{
    uint8_t *rows = mem_new((size_t)tensor->bytes, 1);
    float *values = MEM_NEW_ARRAY(float, tensor->rows * tensor->columns);
    /* In uneven pieces, so that a reader that forgets its first row is seen. */
    for (uint64_t row = 0, n = 1; row < tensor->rows; row += n, n = n % 37 + 5) {
        n = n < tensor->rows - row ? n : tensor->rows - row;
        assert_int_equal(source_read_rows(tensor, row, n, rows + row * tensor->row_bytes),
                         STATUS_OK);
    }
    if (tensor->data != NULL)
        assert_memory_equal(rows, tensor->data, tensor->bytes);
    for (uint64_t row = 0; row < tensor->rows; row++)
        qtype_dequantize_row(tensor->type, rows + row * tensor->row_bytes, tensor->columns,
                             values + row * tensor->columns);
    free(rows);
    return values;
}

/* gpt-oss's experts are recorded as [experts, in, out]. */
static float *turned_back(const source_tensor_t *tensor, float *take_values)
{
    uint64_t in = tensor->dims[0], out = tensor->dims[1];
    float *turned = MEM_NEW_ARRAY(float, tensor->rows * in);
    for (uint64_t e = 0; e < tensor->dims[2]; e++)
        for (uint64_t o = 0; o < out; o++)
            for (uint64_t i = 0; i < in; i++)
                turned[(e * in + i) * out + o] = take_values[(e * out + o) * in + i];
    free(take_values);
    return turned;
}

/* compressed-tensors' INT4 was recorded before its values became integers, so recorded zeros have
 * signs, which 4 bits cannot store: there only recorded values can be compared, as numbers. */
static bool zeros_have_signs(const source_tensor_t *tensor)
{
    return strcmp(tensor->stored, "INT4 packed") == 0;
}

static void check_tensor(const source_t *source, const safetensors_t *golden, const char *name,
                         const char *digest)
{
    const source_tensor_t *tensor = source_tensor(source, name);
    if (tensor == NULL)
        fail_msg("%s: %s is not listed", source_path(source), name);
    if (!qtype_info((uint32_t)tensor->type)->is_weight)
        return;
    float *values = dequantize(tensor);
    if (tensor->n_dims == 3)
        values = turned_back(tensor, values);
    size_t bytes = (size_t)(tensor->rows * tensor->columns) * sizeof *values;
    char found[DIGEST_HEX_SIZE];
    digest_of_bytes(values, bytes, found);
    if (!zeros_have_signs(tensor) && strncmp(found, digest, 16) != 0)
        fail_msg("%s: %s (%s) has digest %.16s; %s is recorded", source_path(source), name,
                 tensor->stored, found, digest);
    char *key = mem_format("dequant.%s", name);
    const safetensors_tensor_t *recorded = safetensors_find(golden, key);
    free(key);
    if (recorded != NULL) {
        assert_int_equal(recorded->bytes, bytes);
        const float *expected = (const float *)(const void *)recorded->data;
        for (size_t i = 0; i < bytes / sizeof *expected; i++)
            if (values[i] != expected[i])
                fail_msg("%s: value %zu of %s is %a; %a is recorded", source_path(source), i, name,
                         (double)values[i], (double)expected[i]);
    }
    free(values);
}

/* Each recorded matrix is right, those stored as `stored` are read as `type`, and no matrix is
 * converted that is not recorded. */
static void check_model(const char *name, qtype_t type, const char *stored)
{
    char *path = mem_format("%s/%s", SHOAL_TEST_DATA, name);
    char *file = mem_format("%s/golden.json", path);
    char *values = mem_format("%s/golden.safetensors", path);
    source_t *source;
    safetensors_t *golden;
    json_t *record;
    if (source_open(path, &source) != STATUS_OK)
        fail_msg("%s", status_text());
    assert_int_equal(json_read_file(file, NULL, &record), STATUS_OK);
    assert_int_equal(safetensors_open(values, &golden), STATUS_OK);
    json_t *digests = json_object_get(record, "dequant_fp32_sha256_16");
    const char *key;
    json_t *digest;
    size_t n = 0, n_of_type = 0, n_recorded = 0;
    json_object_foreach(digests, key, digest)
        check_tensor(source, golden, key, json_string_value(digest));
    for (size_t i = 0; i < source_n_tensors(source); i++) {
        const source_tensor_t *tensor = source_tensor_at(source, i);
        n += tensor->parts != NULL;
        n_of_type += strcmp(tensor->stored, stored) == 0 && tensor->type == type;
    }
    for (size_t i = 0; i < safetensors_n_tensors(golden); i++)
        n_recorded += strncmp(safetensors_at(golden, i)->name, "dequant.", 8) == 0;
    assert_true(n_recorded > 0);
    if (n != json_object_size(digests) || n_of_type == 0)
        fail_msg("%s: %zu tensors are converted, %zu of them %s as %s; %zu are recorded", name, n,
                 n_of_type, stored, qtype_name((uint32_t)type), json_object_size(digests));
    safetensors_close(golden);
    json_decref(record);
    source_close(source);
    free(values);
    free(file);
    free(path);
}

static void test_quantized_matrices_dequantize_to_the_recorded_digests(void **state)
{
    (void)state;
    check_model("qwen2-awq-g128", QTYPE_Z4, "AWQ 4 bit");
    check_model("qwen2-gptq-sym", QTYPE_Z4, "GPTQ 4 bit");
    check_model("qwen2-gptq-actorder", QTYPE_F32, "GPTQ, act-order");
    check_model("qwen2-ct-int8", QTYPE_I8S, "INT8");
    check_model("qwen2-ct-w4a16", QTYPE_S4_BF16 + 1, "INT4 packed");
    check_model("deepseek-v3-fp8", QTYPE_F8S, "FP8 e4m3");
    check_model("deepseek-v4-fp4", QTYPE_MXFP4, "FP4 e2m1");
    check_model("gpt-oss-mxfp4", QTYPE_MXFP4, "MXFP4");
}

/* --- GGUF --- */

/* The matrices of a layer that a file has unchanged but for its name. Queries and keys of `llama`
 * files are permuted and latent matrices may be split: those are left to the logits. */
static const struct {
    const char *hf, *gguf;
} same_matrices[] = {
    {"self_attn.o_proj", "attn_output"},      {"self_attn.v_proj", "attn_v"},
    {"mlp.gate_proj", "ffn_gate"},            {"mlp.up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"},            {"self_attn.q_a_proj", "attn_q_a"},
    {"mlp.experts.gate_proj", "ffn_gate_exps"}, {"mlp.experts.up_proj", "ffn_up_exps"},
    {"mlp.experts.down_proj", "ffn_down_exps"}, {"block_sparse_moe.experts.w2", "ffn_down_exps"},
    {"mlp.shared_experts.down_proj", "ffn_down_shexp"},
};

/* Finds what the file calls a Hugging Face tensor; *first_out is its first row. NULL: not by
 * name. */
static const source_tensor_t *find_matrix(const source_t *source, const char *name,
                                          uint64_t *first_out)
{
    unsigned layer, expert = 0;
    char rest[128];
    *first_out = 0;
    if (strcmp(name, "model.embed_tokens.weight") == 0)
        return source_tensor(source, "token_embd.weight");
    if (strcmp(name, "lm_head.weight") == 0)
        return source_tensor(source, "output.weight");
    if (sscanf(name, "model.layers.%u.%127s", &layer, rest) != 2)
        return NULL;
    char *number = strstr(rest, ".experts."); /* its number is a row range, not part of the name */
    if (number != NULL) {
        number += sizeof ".experts." - 1;
        char *end = NULL;
        expert = (unsigned)strtoul(number, &end, 10);
        memmove(number, end + 1, strlen(end));
    }
    for (size_t i = 0; i < sizeof same_matrices / sizeof *same_matrices; i++) {
        const char *wanted = same_matrices[i].hf;
        if (strncmp(rest, wanted, strlen(wanted)) != 0 ||
            strcmp(rest + strlen(wanted), ".weight") != 0)
            continue;
        char *gguf_name = mem_format("blk.%u.%s.weight", layer, same_matrices[i].gguf);
        const source_tensor_t *tensor = source_tensor(source, gguf_name);
        free(gguf_name);
        assert_non_null(tensor);
        *first_out = expert * tensor->dims[1];
        return tensor;
    }
    return NULL;
}

static size_t check_gguf(const char *model)
{
    char *path = mem_format("%s/%s/model.gguf", SHOAL_TEST_DATA, model);
    char *file = mem_format("%s/%s/golden.json", SHOAL_TEST_DATA, model);
    source_t *source;
    json_t *record, *digest;
    const char *name;
    size_t n = 0;
    assert_int_equal(source_open(path, &source), STATUS_OK);
    assert_int_equal(json_read_file(file, NULL, &record), STATUS_OK);
    json_object_foreach(json_object_get(record, "dequant_fp32_sha256_16"), name, digest) {
        uint64_t first;
        const source_tensor_t *tensor = find_matrix(source, name, &first);
        if (tensor == NULL)
            continue;
        float *values = dequantize(tensor);
        char found[DIGEST_HEX_SIZE];
        uint64_t rows = tensor->n_dims == 3 ? tensor->dims[1] : tensor->rows;
        digest_of_bytes(values + first * tensor->columns,
                        (size_t)(rows * tensor->columns) * sizeof *values, found);
        if (strncmp(found, json_string_value(digest), 16) != 0)
            fail_msg("%s: %s (%s) has digest %.16s; %s is recorded", model, name, tensor->stored,
                     found, json_string_value(digest));
        free(values);
        n++;
    }
    json_decref(record);
    source_close(source);
    free(file);
    free(path);
    return n;
}

static void test_matrices_of_gguf_files_dequantize_to_the_recorded_digests(void **state)
{
    (void)state;
    static const char *const models[] = {
        "gguf-deepseek2-lite-f16", "gguf-deepseek2-v3-q8_0", "gguf-llama-f32",
        "gguf-llama-kquants", "gguf-llama-q4_0", "gguf-llama-q8_0", "gguf-llama3-rope-bf16",
        "gguf-mixtral-q4_1", "gguf-qwen2-q5_1", "gguf-qwen3-f16", "gguf-qwen3moe-q8_0",
    };
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        assert_true(check_gguf(models[i]) >= 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantized_matrices_dequantize_to_the_recorded_digests),
        cmocka_unit_test(test_matrices_of_gguf_files_dequantize_to_the_recorded_digests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
