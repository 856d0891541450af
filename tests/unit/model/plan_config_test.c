/* Planning from config.json alone: it must say what the weights would say. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/footprint.h"
#include "common/model/model_outline.h"
#include "common/model/plan.h"

/* --- the recorded models, with and without their weights --- */

/* The quantizer of this model stored zero biases beside every matrix, which config.json does not
 * say. */
static bool is_stored_zero_bias(const char *name, model_role_t role)
{
    return strcmp(name, "qwen2-gptq-sym") == 0 &&
           (role == MODEL_ATTN_OUTPUT_BIAS || role == MODEL_FFN_GATE_BIAS ||
            role == MODEL_FFN_UP_BIAS || role == MODEL_FFN_DOWN_BIAS);
}

static void check_same_tensor(const char *name, const model_t *real, const model_t *outline,
                              model_role_t role, uint32_t layer)
{
    const model_tensor_t *a = model_tensor(real, role, layer);
    const model_tensor_t *b = model_tensor(outline, role, layer);
    if ((a == NULL && b == NULL) || (b == NULL && is_stored_zero_bias(name, role)))
        return;
    if (a == NULL || b == NULL || a->rows != b->rows || a->columns != b->columns ||
        a->cut != b->cut || (a->rows > 1 && a->type != b->type))
        fail_msg("%s: role %d of layer %u: %s %s, from the configuration %s", name, (int)role,
                 layer, a ? a->name : "nothing", a ? qtype_name((uint32_t)a->type) : "",
                 b ? qtype_name((uint32_t)b->type) : "nothing");
}

/* What footprint says of the caches is what the planner reserves. */
static void check_cache(const model_t *real, const footprint_t *footprint)
{
    plan_sizes_t sizes;
    plan_need_t need;
    plan_shape_t shape = {.tp = 1, .stages = 1, .context_max = 64};
    plan_sizes(real, &sizes);
    assert_int_equal(plan_need(&sizes, &shape, 0, 0, &need), STATUS_OK);
    assert_int_equal(need.kv_per_token, footprint->kv_bytes_per_token);
    shape.kv_codes = true;
    assert_int_equal(plan_need(&sizes, &shape, 0, 0, &need), STATUS_OK);
    if (footprint->kv_code_bytes_per_token > 0)
        assert_int_equal(need.kv_per_token, footprint->kv_code_bytes_per_token);
}

/* The values of all tensors make up the parameters, a tied head counted once. Real files have more
 * where they hold layers for drafting, tables of ids or stored zero biases. */
static void check_values(const char *name, const footprint_t *footprint, bool real)
{
    static const char *const more[] = {"deepseek-v3", "deepseek-v4", "qwen2-gptq-sym"};
    uint64_t values = 0;
    for (uint32_t i = 0; i < footprint->n_types; i++)
        values += footprint->types[i].values;
    for (size_t i = 0; real && i < sizeof more / sizeof *more; i++)
        if (strncmp(name, more[i], strlen(more[i])) == 0)
            return;
    if (values != footprint->parameters)
        fail_msg("%s: %llu values, %llu parameters", name, (unsigned long long)values,
                 (unsigned long long)footprint->parameters);
}

#define SAME(field) assert_memory_equal(&a->field, &b->field, sizeof a->field)

static void check_same_config(const model_config_t *a, const model_config_t *b)
{
    assert_string_equal(a->architecture, b->architecture);
    SAME(n_layers), SAME(hidden), SAME(n_heads), SAME(n_kv_heads), SAME(head_dim), SAME(ffn);
    SAME(vocab), SAME(context_train), SAME(norm_eps), SAME(attention_scale);
    SAME(tied_embeddings), SAME(activation), SAME(latent), SAME(compressed), SAME(experts);
    SAME(index), SAME(streams), SAME(layers);
    for (size_t i = 0; i < MODEL_ROPES_MAX; i++) {
        SAME(ropes[i].dim), SAME(ropes[i].base), SAME(ropes[i].scale), SAME(ropes[i].magnitude);
    }
}

/* Types of vectors are left out: publishers keep norms in BF16 or F32 and config.json does not
 * say. */
static void check_model(const char *name)
{
    char *path = mem_format("%s/%s", SHOAL_TEST_DATA, name);
    model_t *real, *outline;
    if (model_open(path, &real) != STATUS_OK || model_outline_open(path, &outline) != STATUS_OK)
        fail_msg("%s", status_text());
    const model_config_t *config = model_config(real);
    check_same_config(config, model_config(outline));
    for (int role = 0; role < MODEL_N_ROLES; role++)
        for (uint32_t layer = 0; layer < (role < MODEL_ATTN_NORM ? 1 : config->n_layers); layer++)
            check_same_tensor(name, real, outline, (model_role_t)role, layer);
    footprint_t a, b;
    footprint_of_model(real, &a);
    footprint_of_model(outline, &b);
    assert_true(a.parameters == b.parameters || strcmp(name, "qwen2-gptq-sym") == 0);
    assert_int_equal(a.parameters - b.parameters, a.active_parameters - b.active_parameters);
    check_cache(real, &a);
    check_values(name, &a, true);
    check_values(name, &b, false);
    model_close(real);
    model_close(outline);
    free(path);
}

static void test_config_json_alone_tells_every_tensor_of_every_recorded_directory(void **state)
{
    (void)state;
    static const char *const names[] = {
        "deepseek-v2-group", "deepseek-v2-lite", "deepseek-v3", "deepseek-v3-fp8",
        "deepseek-v32-dsa", "deepseek-v4", "deepseek-v4-fp4", "gemma2", "gemma3-text",
        "gpt-oss-bf16", "gpt-oss-mxfp4", "llama-gqa-bf16", "llama-tied-f32",
        "llama3-rope-sharded", "mistral-swa", "mixtral", "qwen2-awq-g128", "qwen2-ct-int8",
        "qwen2-ct-w4a16", "qwen2-f16", "qwen2-gptq-actorder", "qwen2-gptq-sym", "qwen2-moe",
        "qwen2-yarn", "qwen3-moe", "qwen3-qknorm",
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        check_model(names[i]);
}

/* --- configurations that say too little, or what nobody has --- */

static void check_wrong(const char *config, status_t status, const char *words)
{
    model_t *model;
    if (model_outline_open_bytes("m/config.json", config, strlen(config), &model) != status ||
        strstr(status_text(), words) == NULL)
        fail_msg("%s: \"%s\" does not say \"%s\"", config, status_text(), words);
}

#define LLAMA(more)                                                                                \
    "{\"model_type\": \"llama\", \"hidden_size\": 64, \"intermediate_size\": 96, "                 \
    "\"max_position_embeddings\": 64, \"num_attention_heads\": 4, \"num_hidden_layers\": 2, "      \
    "\"rms_norm_eps\": 1e-6, " more "}"

static void test_what_a_configuration_lacks_is_named(void **state)
{
    (void)state;
    check_wrong("", STATUS_INVALID, "m/config.json");
    check_wrong("{}", STATUS_INVALID, "\"model_type\"");
    check_wrong("{\"model_type\": \"mamba9\"}", STATUS_UNSUPPORTED,
                "m/config.json: model_type \"mamba9\" is not supported");
    check_wrong("{\"model_type\": \"llama\"}", STATUS_INVALID,
                "m/config.json: \"num_hidden_layers\" is missing");
    check_wrong(LLAMA("\"vocab_size\": 0"), STATUS_INVALID, "\"vocab_size\" is 0");
    check_wrong(LLAMA("\"vocab_size\": 64, \"torch_dtype\": \"int3\""), STATUS_UNSUPPORTED,
                "m/config.json: \"torch_dtype\" is \"int3\"");
    check_wrong(LLAMA("\"vocab_size\": 64, \"quantization_config\": {\"quant_method\": \"hqq\"}"),
                STATUS_UNSUPPORTED, "m/config.json: quantization_config: the method \"hqq\"");
    /* Online quantization takes the matrices, and nothing that is quantized. */
    model_t *model;
    static const char good[] = LLAMA("\"vocab_size\": 64");
    assert_int_equal(model_outline_open_bytes("x/m.json", good, sizeof good - 1, &model),
                     STATUS_OK);
    assert_string_equal(model_name(model), "m");
    assert_int_equal(model_outline_quantize(model, "q5"), STATUS_INVALID);
    assert_int_equal(model_outline_quantize(model, "q8"), STATUS_OK);
    assert_int_equal(model_tensor(model, MODEL_FFN_UP, 1)->type, QTYPE_Q8_0);
    assert_int_equal(model_tensor(model, MODEL_FFN_UP, 1)->bytes, 96 * 2 * 34);
    assert_int_equal(model_tensor(model, MODEL_TOKEN_EMBD, 0)->type, QTYPE_BF16);
    assert_int_equal(model_tensor(model, MODEL_ATTN_NORM, 0)->type, QTYPE_BF16);
    assert_int_equal(model_outline_quantize(model, "q8"), STATUS_UNSUPPORTED);
    assert_non_null(strstr(status_text(), "m: no matrix of F32, F16 or BF16"));
    model_close(model);
}

/* 4 bits under one scale a row of 64 or 96, whose stored blocks have 1,024. */
static void test_a_short_row_of_4_bits_is_counted_as_what_it_holds(void **state)
{
    (void)state;
    static const char config[] =
        LLAMA("\"vocab_size\": 64, \"torch_dtype\": \"float16\", \"quantization_config\": "
              "{\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": -1}");
    model_t *model;
    assert_int_equal(model_outline_open_bytes("m.json", config, sizeof config - 1, &model),
                     STATUS_OK);
    const model_tensor_t *down = model_tensor(model, MODEL_FFN_DOWN, 1);
    assert_int_equal(down->type, QTYPE_Z4_ROW);
    assert_int_equal(down->row_bytes, 515);
    assert_int_equal(down->bytes, 64 * (3 + 96 / 2));
    plan_sizes_t sizes;
    plan_sizes(model, &sizes);
    assert_int_equal(sizes.ffn_bytes, 2 * 96 * (3 + 64 / 2) + 64 * (3 + 96 / 2));
    model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_a_configuration_lacks_is_named),
        cmocka_unit_test(test_a_short_row_of_4_bits_is_counted_as_what_it_holds),
        cmocka_unit_test(test_config_json_alone_tells_every_tensor_of_every_recorded_directory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
