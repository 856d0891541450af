/* `shoal inspect` and `shoal plan` as people call them: what is printed and the exit codes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "common/base/buffer.h"
#include "common/base/memory.h"
#include "tests/unit/model/gguf_draft.h"
#include "tests/unit/model/plan_config_models.h"
#include "tests/unit/model/safetensors_draft.h"

/* Runs `shoal WORDS` and returns its exit code; `out` gets standard output, and standard error too
 * where `both`. */
static int shoal(buffer_t *out, bool both, const char *words)
{
    char *line = mem_format("'%s/shoal' %s %s", SHOAL_BIN_DIR, words,
                            both ? "2>&1" : "2>/dev/null");
    FILE *pipe = popen(line, "re");
    assert_non_null(pipe);
    char piece[512];
    buffer_clear(out);
    for (size_t n; (n = fread(piece, 1, sizeof piece, pipe)) > 0;)
        buffer_append(out, piece, n);
    int code = pclose(pipe);
    free(line);
    assert_true(WIFEXITED(code));
    return WEXITSTATUS(code);
}

/* The same with -o json. */
static json_t *shoal_json(int code, const char *words)
{
    buffer_t out = {0};
    char *line = mem_format("%s -o json", words);
    int found = shoal(&out, false, line);
    json_t *report = json_loadb(buffer_text(&out), out.size, 0, NULL);
    if (found != code || report == NULL)
        fail_msg("shoal %s: exit code %d: %s", line, found, buffer_text(&out));
    buffer_release(&out);
    free(line);
    return report;
}

static long long number(const json_t *report, const char *key)
{
    return (long long)json_integer_value(json_object_get(report, key));
}

static void test_a_directory_is_described(void **state)
{
    (void)state;
    json_t *report = shoal_json(0, "inspect " SHOAL_TEST_DATA "/deepseek-v3-fp8");
    assert_string_equal(json_string_value(json_object_get(report, "architecture")), "deepseek-v3");
    assert_true(json_is_true(json_object_get(report, "supported")));
    /* Two layers of attention: q_a 96*256, q_b 192*96, kv_a 80*256, kv_b 256*64, output 256*128 and
     * norms 96 + 64 + 2*256: 113,312 each. Dense 3*320*256. Experts: 4 and a shared one of
     * 3*128*256, router 4*256 + 4. Embedding and head 2*320*256, norm 256. */
    assert_int_equal(number(report, "parameters"),
                     2 * 113312 + 245760 + 5 * 98304 + 1028 + 2 * 81920 + 256);
    assert_int_equal(number(report, "active_parameters"),
                     2 * 113312 + 245760 + 3 * 98304 + 1028 + 81920 + 256);
    assert_int_equal(number(report, "kv_bytes_per_token"), 2 * (64 + 16) * 2);
    assert_null(json_object_get(report, "kv_code_bytes_per_token")); /* latent */
    assert_string_equal(json_string_value(json_object_get(
                            json_array_get(json_object_get(report, "types"), 0), "type")),
                        "FP8 e4m3");
    assert_true(json_is_true(json_object_get(report, "chat_template")));
    assert_string_equal(
        json_string_value(json_object_get(json_object_get(report, "tokenizer"), "kind")), "BPE");
    json_decref(report);
}

static void test_lines_for_people_and_digests(void **state)
{
    (void)state;
    buffer_t out = {0};
    assert_int_equal(shoal(&out, true, "inspect " SHOAL_TEST_DATA "/gpt-oss-mxfp4 --digest"), 0);
    assert_non_null(strstr(buffer_text(&out), "architecture       gpt-oss\n"));
    assert_non_null(strstr(buffer_text(&out), "experts            4, 2 a token"));
    assert_non_null(strstr(buffer_text(&out), "digest             sha256:"));
    assert_non_null(strstr(buffer_text(&out), "\nMXFP4 "));
    assert_int_equal(shoal(&out, true, "inspect /nowhere"), 3);
    assert_int_equal(shoal(&out, true, "inspect"), 2);
    assert_int_equal(shoal(&out, true, "inspect --help"), 0);
    assert_non_null(strstr(buffer_text(&out), "Example:"));
    buffer_release(&out);
}

/* An architecture that nobody has: its name, its tensors and its tokenizer are still told. */
static void test_an_unsupported_model_is_described_and_the_exit_code_says_so(void **state)
{
    (void)state;
    char *folder = folder_new();
    draft_t *draft = draft_llama();
    buffer_t file = {0}, out = {0};
    draft_set_text(draft, "general.architecture", "mamba9");
    draft_write(draft, &file);
    folder_write(folder, "m.gguf", file.data, file.size);
    char *words = mem_format("inspect '%s/m.gguf'", folder);
    json_t *report = shoal_json(4, words);
    assert_string_equal(json_string_value(json_object_get(report, "architecture")), "mamba9");
    assert_true(json_is_false(json_object_get(report, "supported")));
    assert_non_null(strstr(json_string_value(json_object_get(report, "why_not")),
                           "architecture \"mamba9\" is not supported"));
    assert_true(number(report, "parameters") > 0);
    assert_true(json_array_size(json_object_get(report, "types")) > 0);
    json_decref(report);
    assert_int_equal(shoal(&out, true, words), 4);
    assert_non_null(strstr(buffer_text(&out), "supported          no: "));
    free(words);
    /* Broken files are told as far as they can be read: here not at all. */
    folder_write_text(folder, "m.gguf", "GGUF");
    words = mem_format("inspect '%s/m.gguf'", folder);
    report = shoal_json(2, words);
    assert_null(json_object_get(report, "parameters"));
    json_decref(report);
    free(words);
    buffer_release(&file);
    buffer_release(&out);
    draft_free(draft);
    folder_remove(folder);
}

static void test_a_plan_needs_no_weights(void **state)
{
    (void)state;
    char *folder = folder_new();
    folder_write_text(folder, "config.json", PLAN_CONFIG_DEEPSEEK_V3);
    folder_write_text(folder, "hosts.json",
                      "{\"hosts\": [{\"count\": 2, \"link_gb_s\": 50, \"devices\": [{\"name\": "
                      "\"H100-80\", \"count\": 8}]}]}");
    folder_write_text(folder, "one.json",
                      "{\"hosts\": [{\"devices\": [{\"name\": \"RTX-4090-24\"}]}]}");
    char *words = mem_format("inspect '%s'", folder);
    json_t *report = shoal_json(0, words);
    assert_int_equal(number(report, "parameters"), 671026419200);
    json_decref(report);
    free(words);

    words = mem_format("plan --model '%s/config.json' --hosts '%s/hosts.json'", folder, folder);
    report = shoal_json(0, words);
    assert_true(json_is_true(json_object_get(report, "fits")));
    assert_int_equal(json_array_size(json_object_get(report, "ranks")),
                     number(report, "tp") * number(report, "stages"));
    const json_t *one = json_object_get(json_object_get(report, "roofline"), "decode_one");
    assert_true(json_real_value(json_object_get(one, "tokens_s")) > 0);
    assert_non_null(strstr(json_string_value(json_object_get(report, "note")), "serves CPUs"));
    json_decref(report);
    free(words);

    buffer_t out = {0};
    words = mem_format("plan --model '%s' --hosts '%s/one.json'", folder, folder);
    assert_int_equal(shoal(&out, true, words), 4);
    assert_non_null(strstr(buffer_text(&out), "fits               no: rank 0"));
    assert_non_null(strstr(buffer_text(&out), "it would fit       on devices of "));
    assert_non_null(strstr(buffer_text(&out), "of the largest device (tp "));
    assert_non_null(strstr(buffer_text(&out), "shoal plan: it does not fit: "));
    free(words);
    words = mem_format("plan --model '%s' --hosts '%s/nothing.json'", folder, folder);
    assert_int_equal(shoal(&out, true, words), 3);
    assert_int_equal(shoal(&out, true, "plan"), 2);
    assert_int_equal(shoal(&out, true, "plan --help"), 0);
    assert_non_null(strstr(buffer_text(&out), "RTX-4090-24"));
    free(words);
    buffer_release(&out);
    folder_remove(folder);
}

/* A model with weights, quantized as it is loaded: q8 takes 34/32 of a byte a value where BF16
 * takes two, so the layers' part shrinks and the embedding stays. */
static void test_quantizing_is_planned_for_a_model_that_is_here(void **state)
{
    (void)state;
    char *folder = folder_new();
    folder_write_text(folder, "h.json",
                      "{\"hosts\": [{\"devices\": [{\"name\": \"EPYC-9654\"}]}]}");
    char *words = mem_format("plan --model " SHOAL_TEST_DATA "/qwen2-f16 --hosts '%s/h.json' "
                             "--context 64", folder);
    char *quantized = mem_format("%s --quantize q8", words);
    json_t *plain = shoal_json(0, words), *small = shoal_json(0, quantized);
    long long before = number(json_object_get(plain, "model"), "weight_bytes");
    long long after = number(json_object_get(small, "model"), "weight_bytes");
    assert_true(after < before && after > before / 3);
    assert_string_equal(json_string_value(json_object_get(small, "quantize")), "q8");
    json_decref(plain);
    json_decref(small);
    buffer_t out = {0};
    free(quantized);
    quantized = mem_format("%s --quantize q5", words);
    assert_int_equal(shoal(&out, true, quantized), 2);
    assert_non_null(strstr(buffer_text(&out), "\"q5\" is none of q8, q4 and fp8"));
    free(quantized);
    free(words);
    buffer_release(&out);
    folder_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_directory_is_described),
        cmocka_unit_test(test_lines_for_people_and_digests),
        cmocka_unit_test(test_an_unsupported_model_is_described_and_the_exit_code_says_so),
        cmocka_unit_test(test_a_plan_needs_no_weights),
        cmocka_unit_test(test_quantizing_is_planned_for_a_model_that_is_here),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
