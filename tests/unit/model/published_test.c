/* The configurations of models as they are published (tests/unit/model/published: every member that
 * their config.json has) are read for what they are: parameters as their publishers count them,
 * windows, ropes; and `shoal inspect` and `shoal plan` take each. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "common/base/json.h"
#include "common/base/memory.h"
#include "common/model/footprint.h"
#include "common/model/model_outline.h"
#include "tests/unit/model/gguf_draft.h"
#include "tests/unit/model/safetensors_draft.h"

#define PUBLISHED SHOAL_TEST_DATA "/../unit/model/published/"

static model_t *open_published(const char *name)
{
    model_t *model;
    char *path = mem_format(PUBLISHED "%s.json", name);
    if (model_outline_open(path, &model) != STATUS_OK)
        fail_msg("%s", status_text());
    free(path);
    return model;
}

/* Of V3 without the layer that drafts; of Gemma without what sees (27,432,406,640 less 416,866,032 of
 * the tower and 6,194,304 of the projector; 4B: 4,300,079,472 less 416,866,032 and 2,950,272). V3.2
 * is V3 and in 61 layers an indexer of 1536*64*128 + 7168*128 + 7168*64 + 2*128. */
static const struct {
    const char *name;
    uint64_t parameters;
    uint32_t context;
    qtype_t matrices; /* of a layer's dense or expert matrices */
} published[] = {
    {"deepseek-v2-lite", 15706484224, 163840, QTYPE_BF16},
    {"deepseek-v3", 671026419200, 163840, QTYPE_F8S},
    {"deepseek-v3.2", 671026419200 + 61ull * 13959424, 163840, QTYPE_F8S},
    {"r1-distill-qwen-7b", 7615616512, 131072, QTYPE_BF16},
    {"r1-distill-llama-8b", 8030261248, 131072, QTYPE_BF16},
    {"llama-3.1-8b-instruct", 8030261248, 131072, QTYPE_BF16},
    {"llama-3.1-8b-instruct-fp8", 8030261248, 131072, QTYPE_F8S},
    {"llama-3.1-8b-instruct-transformers5", 8030261248, 131072, QTYPE_BF16},
    {"qwen2.5-7b-instruct", 7615616512, 32768, QTYPE_BF16},
    {"qwen2.5-7b-instruct-awq", 7615616512, 32768, QTYPE_Z4},
    {"qwen2.5-7b-instruct-gptq-int4", 7615616512, 32768, QTYPE_Z4},
    {"qwen3-8b", 8190735360, 40960, QTYPE_BF16},
    {"qwen3-30b-a3b", 30532122624, 40960, QTYPE_BF16},
    {"mistral-7b-v0.1", 7241732096, 32768, QTYPE_BF16},
    {"mistral-7b-instruct-v0.3", 7248023552, 32768, QTYPE_BF16},
    {"mixtral-8x7b-v0.1", 46702792704, 32768, QTYPE_BF16},
    {"gemma-3-4b-it", 4300079472 - 416866032 - 2950272, 131072, QTYPE_BF16},
    {"gemma-3-27b-it", 27432406640 - 416866032 - 6194304, 131072, QTYPE_BF16},
    {"gemma-3-27b-it-transformers5", 27009346304, 131072, QTYPE_BF16},
    {"gpt-oss-20b", 20914757184, 131072, QTYPE_MXFP4},
};
enum { N_PUBLISHED = sizeof published / sizeof *published };

static void test_each_published_configuration_has_its_parameters(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_PUBLISHED; i++) {
        model_t *model = open_published(published[i].name);
        const model_config_t *config = model_config(model);
        footprint_t footprint;
        footprint_of_model(model, &footprint);
        const model_tensor_t *matrix = model_tensor(model, MODEL_FFN_DOWN, config->n_layers - 1);
        if (matrix == NULL)
            matrix = model_tensor(model, MODEL_EXPERT_DOWN, config->n_layers - 1);
        if (footprint.parameters != published[i].parameters ||
            config->context_train != published[i].context ||
            matrix->type != published[i].matrices)
            fail_msg("%s: %llu parameters, context %u, %s", published[i].name,
                     (unsigned long long)footprint.parameters, config->context_train,
                     qtype_name((uint32_t)matrix->type));
        model_close(model);
    }
}

static void check_windows(const char *name, uint32_t window, uint32_t full_every)
{
    model_t *model = open_published(name);
    const model_config_t *config = model_config(model);
    for (uint32_t i = 0; i < config->n_layers; i++) {
        bool full = full_every != 0 && (i + 1) % full_every == 0;
        assert_int_equal(config->layers[i].window, full ? 0 : window);
    }
    model_close(model);
}

static void test_windows_are_where_the_models_have_them(void **state)
{
    (void)state;
    check_windows("mistral-7b-v0.1", 4096, 0);
    check_windows("mistral-7b-instruct-v0.3", 0, 0);
    check_windows("qwen2.5-7b-instruct", 0, 0);
    check_windows("r1-distill-qwen-7b", 0, 0);
    check_windows("gpt-oss-20b", 128, 2);
    check_windows("gemma-3-27b-it", 1024, 6);
    check_windows("gemma-3-4b-it", 1024, 6);
}

/* Where newer versions of transformers write the same in other words. */
static void check_twins(const char *older, const char *newer)
{
    model_t *a = open_published(older), *b = open_published(newer);
    const model_config_t *one = model_config(a), *other = model_config(b);
    assert_memory_equal(one->layers, other->layers, sizeof one->layers);
    assert_memory_equal(one->ropes, other->ropes, sizeof one->ropes);
    assert_true(one->attention_scale == other->attention_scale);
    assert_int_equal(one->tied_embeddings, other->tied_embeddings);
    assert_int_equal(one->vocab, other->vocab);
    assert_memory_equal(model_special_ids(a), model_special_ids(b),
                        offsetof(model_special_ids_t, eos));
    const float *factors = model_rope_factors(a, 0);
    if (factors != NULL)
        assert_memory_equal(factors, model_rope_factors(b, 0),
                            one->ropes[0].dim / 2 * sizeof *factors);
    assert_int_equal(factors == NULL, model_rope_factors(b, 0) == NULL);
    model_close(a);
    model_close(b);
}

static void test_both_ways_to_write_ropes_are_the_same(void **state)
{
    (void)state;
    check_twins("llama-3.1-8b-instruct", "llama-3.1-8b-instruct-transformers5");
    check_twins("gemma-3-27b-it", "gemma-3-27b-it-transformers5");
    model_t *model = open_published("gemma-3-27b-it");
    const model_config_t *config = model_config(model);
    assert_true(config->ropes[0].base == 1e6f && config->ropes[0].scale == 0.125f);
    assert_true(config->ropes[1].base == 1e4f && config->ropes[1].scale == 1);
    assert_int_equal(config->layers[5].rope, 0);
    assert_int_equal(config->layers[6].rope, 1);
    assert_true(fabsf(config->attention_scale - 1 / sqrtf(168)) < 1e-8f);
    assert_int_equal(model_special_ids(model)->n_eos, 2); /* the whole model's, not the part's */
    model_close(model);
}

/* --- changed members --- */

static json_t *load(const char *name)
{
    char *path = mem_format(PUBLISHED "%s.json", name);
    json_t *config = json_load_file(path, 0, NULL);
    assert_non_null(config);
    free(path);
    return config;
}

static status_t open_json(json_t *take_config, model_t **out)
{
    char *text = json_dumps(take_config, 0);
    status_t status = model_outline_open_bytes("config.json", text, strlen(text), out);
    free(text);
    json_decref(take_config);
    return status;
}

static void set_number(json_t *object, const char *key, double value)
{
    assert_int_equal(json_object_set_new(object, key, json_real(value)), 0);
}

static void test_the_part_of_a_head_that_turns_may_stand_in_rope_parameters(void **state)
{
    (void)state;
    model_t *model;
    json_t *config = load("llama-3.1-8b-instruct-transformers5");
    set_number(json_object_get(config, "rope_parameters"), "partial_rotary_factor", 0.25);
    assert_int_equal(open_json(config, &model), STATUS_OK);
    assert_int_equal(model_config(model)->ropes[0].dim, 32);
    model_close(model);

    config = load("deepseek-v3"); /* the size stands in a member of its own */
    set_number(json_object_get(config, "rope_scaling"), "partial_rotary_factor", 0.25);
    assert_int_equal(open_json(config, &model), STATUS_OK);
    assert_int_equal(model_config(model)->ropes[0].dim, 64);
    model_close(model);
}

static void test_each_type_of_layers_has_its_own_rope_parameters(void **state)
{
    (void)state;
    model_t *model;
    json_t *config = load("gemma-3-27b-it-transformers5");
    json_t *parameters = json_object_get(json_object_get(config, "text_config"), "rope_parameters");
    json_t *sliding = json_object_get(parameters, "sliding_attention");
    set_number(sliding, "rope_theta", 5000);
    set_number(sliding, "factor", 4);
    assert_int_equal(json_object_set_new(sliding, "rope_type", json_string("linear")), 0);
    assert_int_equal(open_json(json_deep_copy(config), &model), STATUS_OK);
    assert_true(model_config(model)->ropes[0].base == 1e6f);
    assert_true(model_config(model)->ropes[0].scale == 0.125f);
    assert_true(model_config(model)->ropes[1].base == 5000);
    assert_true(model_config(model)->ropes[1].scale == 0.25f);
    model_close(model);
    assert_int_equal(json_object_set_new(sliding, "surprise", json_true()), 0);
    assert_int_equal(open_json(config, &model), STATUS_UNSUPPORTED);
    assert_non_null(strstr(status_text(), "\"surprise\" is no member"));
}

static void test_what_a_nested_configuration_leaves_open_or_gets_wrong(void **state)
{
    (void)state;
    model_t *model;
    json_t *config = load("gemma-3-4b-it");
    json_object_del(config, "text_config");
    assert_int_equal(open_json(config, &model), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "text_config"));
    config = load("gemma-3-4b-it");
    json_object_set_new(json_object_get(config, "text_config"), "model_type", json_string("llama"));
    assert_int_equal(open_json(config, &model), STATUS_UNSUPPORTED);
    assert_non_null(strstr(status_text(), "model_type \"llama\"; gemma3_text"));
    config = load("gemma-3-4b-it");
    json_object_set_new(json_object_get(config, "text_config"), "use_bidirectional_attention",
                        json_true());
    assert_int_equal(open_json(config, &model), STATUS_UNSUPPORTED);
}

/* --- the factor of GGUF files --- */

static float magnitude_of_draft(draft_t *take_draft)
{
    buffer_t bytes = {0};
    model_t *model;
    draft_write(take_draft, &bytes);
    draft_free(take_draft);
    if (model_open_bytes("/models/factor.gguf", bytes.data, bytes.size, &model) != STATUS_OK)
        fail_msg("%s", status_text());
    float magnitude = model_config(model)->ropes[0].magnitude;
    model_close(model);
    buffer_release(&bytes);
    return magnitude;
}

static void check_refused(draft_t *take_draft, const char *words)
{
    buffer_t bytes = {0};
    model_t *model;
    draft_write(take_draft, &bytes);
    draft_free(take_draft);
    assert_int_equal(model_open_bytes("/models/factor.gguf", bytes.data, bytes.size, &model),
                     STATUS_UNSUPPORTED);
    assert_non_null(strstr(status_text(), words));
    buffer_release(&bytes);
}

static float magnitude_of(const char *type, float factor, float attn_factor)
{
    draft_t *draft = draft_llama();
    if (type != NULL) {
        draft_set_text(draft, "llama.rope.scaling.type", type);
        draft_set_f32(draft, "llama.rope.scaling.factor", factor);
    }
    if (attn_factor != 0)
        draft_set_f32(draft, "llama.rope.scaling.attn_factor", attn_factor);
    return magnitude_of_draft(draft);
}

/* llama.cpp multiplies what yarn gives by it, and takes it alone without yarn. */
static void test_attn_factor_multiplies_cosines_and_sines(void **state)
{
    (void)state;
    float yarn = magnitude_of("yarn", 4, 0);
    assert_true(fabsf(yarn - (0.1f * logf(4) + 1)) < 1e-6f);
    assert_true(magnitude_of("yarn", 4, 0.5f) == 0.5f * yarn);
    assert_true(magnitude_of("linear", 4, 0.5f) == 0.5f);
    assert_true(magnitude_of(NULL, 0, 0.75f) == 0.75f);
    assert_true(magnitude_of("none", 1, 0) == 1);
    draft_t *draft = draft_llama();
    draft_set_f32(draft, "llama.rope.scaling.yarn_ext_factor", 0.5f);
    check_refused(draft, "yarn_ext_factor is 0.5");
}

static void test_attn_factor_is_refused_where_scores_would_change_with_it(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        uint32_t value;
    } keys[] = {
        {"block_count", 1}, {"embedding_length", 64}, {"feed_forward_length", 64},
        {"context_length", 4096}, {"attention.head_count", 2}, {"attention.kv_lora_rank", 32},
        {"rope.dimension_count", 16}, {"attention.key_length", 48}, {"attention.value_length", 32},
    };
    draft_t *draft = draft_llama();
    draft_set_text(draft, "general.architecture", "deepseek2");
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        char key[96];
        snprintf(key, sizeof key, "deepseek2.%s", keys[i].key);
        draft_set_u32(draft, key, keys[i].value);
    }
    draft_set_f32(draft, "deepseek2.attention.layer_norm_rms_epsilon", 1e-6f);
    draft_set_f32(draft, "deepseek2.rope.scaling.attn_factor", 0.5f);
    check_refused(draft, "attn_factor is 0.5; with latent attention only 1");
}

/* --- the commands --- */

static void check_command(const char *words)
{
    char *line = mem_format("'%s/shoal' %s >/dev/null 2>&1", SHOAL_BIN_DIR, words);
    int status = system(line);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fail_msg("%s: status %d", line, status);
    free(line);
}

static void test_inspect_and_plan_take_each(void **state)
{
    (void)state;
    char *folder = folder_new();
    folder_write_text(folder, "hosts.json",
                      "{\"hosts\": [{\"count\": 2, \"link_gb_s\": 50, \"link_us\": 10, "
                      "\"devices\": [{\"name\": \"H200-141\", \"count\": 8}]}]}");
    for (size_t i = 0; i < N_PUBLISHED; i++) {
        char *inspect = mem_format("inspect " PUBLISHED "%s.json", published[i].name);
        char *plan = mem_format("plan --model " PUBLISHED "%s.json --hosts %s/hosts.json",
                                published[i].name, folder);
        check_command(inspect);
        check_command(plan);
        free(inspect);
        free(plan);
    }
    folder_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_published_configuration_has_its_parameters),
        cmocka_unit_test(test_windows_are_where_the_models_have_them),
        cmocka_unit_test(test_both_ways_to_write_ropes_are_the_same),
        cmocka_unit_test(test_the_part_of_a_head_that_turns_may_stand_in_rope_parameters),
        cmocka_unit_test(test_each_type_of_layers_has_its_own_rope_parameters),
        cmocka_unit_test(test_what_a_nested_configuration_leaves_open_or_gets_wrong),
        cmocka_unit_test(test_attn_factor_multiplies_cosines_and_sines),
        cmocka_unit_test(test_attn_factor_is_refused_where_scores_would_change_with_it),
        cmocka_unit_test(test_inspect_and_plan_take_each),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
