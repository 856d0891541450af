/* Configurations of Hugging Face directories: each that contradicts its weights, or asks for what
 * Shoal does not have, is refused with the file, the member and what would be right; and what a right
 * one means. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "common/model/model.h"

typedef struct {
    const char *key, *value; /* a member of config.json and its new text; NULL: taken away */
    const char *text;        /* in the words of the refusal */
    status_t status;         /* 0: STATUS_INVALID */
} wrong_t;

static const wrong_t cases[] = {
    {"model_type", NULL, "\"model_type\""},
    {"model_type", "\"mamba\"", "model_type \"mamba\" is not supported; these are: llama, mistral",
     STATUS_UNSUPPORTED},
    {"num_hidden_layers", NULL, "\"num_hidden_layers\" is missing"},
    {"num_hidden_layers", "0", "num_hidden_layers"},
    {"num_hidden_layers", "1000000", "num_hidden_layers"},
    {"num_hidden_layers", "3", "tensor model.layers.2.input_layernorm.weight [64, 1] is missing"},
    {"num_hidden_layers", "1", "model.layers.1.input_layernorm.weight is no part of architecture",
     STATUS_UNSUPPORTED},
    {"hidden_size", "128", "the configuration implies [128, 320]"},
    {"hidden_size", "\"64\"", "hidden_size"},
    {"intermediate_size", "160", "the configuration implies [64, 160]"},
    {"vocab_size", "321", "the configuration implies [64, 321]"},
    {"vocab_size", NULL, "vocab_size"},
    {"num_attention_heads", "0", "num_attention_heads"},
    {"num_key_value_heads", "3", "4 query heads cannot share 3 key/value heads"},
    {"num_key_value_heads", "2", "k_proj.weight has shape [64, 64, 1, 1] in 2 dimensions; the "
     "configuration implies [64, 32]"},
    {"head_dim", "15", "heads of 15 values; an even number"},
    {"rms_norm_eps", "0", "\"rms_norm_eps\" is 0;"},
    {"rms_norm_eps", NULL, "\"rms_norm_eps\" is missing"},
    {"rope_theta", "0.5", "\"rope_theta\" is 0.5;"},
    {"rope_scaling", "{\"type\": \"longrope\", \"factor\": 2}", "rope scaling \"longrope\"; none",
     STATUS_UNSUPPORTED},
    {"rope_scaling", "{\"factor\": 2}", "neither \"rope_type\" nor \"type\""},
    {"rope_scaling", "{\"type\": \"yarn\"}", "rope scaling \"yarn\" without a factor"},
    {"rope_scaling", "{\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4}",
     "low_freq_factor 4 is not below"},
    {"rope_scaling", "[1]", "rope_scaling"},
    {"rope_scaling", "{\"type\": \"yarn\", \"factor\": 2, \"ramp\": 1}",
     "rope_scaling: \"ramp\" is no member that Shoal reads", STATUS_UNSUPPORTED},
    {"rope_parameters", "{\"full_attention\": {\"rope_theta\": 5000}}",
     "rope_parameters: \"full_attention\" is no member", STATUS_UNSUPPORTED},
    {"rope_parameters", "{\"factor\": 2}", "neither \"rope_type\" nor \"type\""},
    {"attention_bias", "true", "tensor model.layers.0.self_attn.q_proj.bias [64, 1] is missing"},
    {"hidden_act", "\"gelu\"", "\"hidden_act\" is \"gelu\"; \"silu\" is", STATUS_UNSUPPORTED},
    {"tie_word_embeddings", "false", "lm_head.weight is missing"},
    {"tie_word_embeddings", "1", "tie_word_embeddings"},
    {"layer_types", "[\"full_attention\"]", "\"layer_types\" has 1 elements for 2 layers"},
    {"layer_types", "[\"full_attention\", \"linear_attention\"]",
     "layer 1 is \"linear_attention\"; sliding_attention", STATUS_UNSUPPORTED},
    {"layer_types", "[\"full_attention\", \"sliding_attention\"]", "layer 1 slides, and there is"},
    {"eos_token_id", "320", "\"eos_token_id\" must be an id from 0 to 319"},
    {"eos_token_id", "[1, -2]", "\"eos_token_id\" must be an id from 0 to 319"},
    {"max_position_embeddings", "0", "max_position_embeddings"},
};

static char dir[] = "/tmp/shoal-directory-XXXXXX";
static char *config_path, *weights_path;

static int make_directory(void **state)
{
    (void)state;
    assert_non_null(mkdtemp(dir));
    config_path = mem_format("%s/config.json", dir);
    weights_path = mem_format("%s/model.safetensors", dir);
    char buffer[4096];
    FILE *in = fopen(SHOAL_TEST_DATA "/llama-tied-f32/model.safetensors", "rb");
    FILE *out = fopen(weights_path, "wb");
    assert_non_null(in);
    assert_non_null(out);
    for (size_t n; (n = fread(buffer, 1, sizeof buffer, in)) > 0;)
        assert_int_equal(fwrite(buffer, 1, n, out), n);
    fclose(in);
    return fclose(out);
}

static int remove_directory(void **state)
{
    (void)state;
    unlink(config_path);
    unlink(weights_path);
    free(config_path);
    free(weights_path);
    return rmdir(dir);
}

/* The recorded configuration with one member changed. */
static void write_config(const char *key, const char *value)
{
    json_t *config = json_load_file(SHOAL_TEST_DATA "/llama-tied-f32/config.json", 0, NULL);
    assert_non_null(config);
    if (value != NULL)
        assert_int_equal(json_object_set_new(config, key, json_loads(value, JSON_DECODE_ANY, NULL)),
                         0);
    else if (key != NULL)
        json_object_del(config, key);
    assert_int_equal(json_dump_file(config, config_path, 0), 0);
    json_decref(config);
}

static void test_each_configuration_that_cannot_be_right_is_refused(void **state)
{
    (void)state;
    size_t n_wrong = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const wrong_t *wrong = &cases[i];
        status_t expected = wrong->status ? wrong->status : STATUS_INVALID;
        model_t *model = NULL;
        write_config(wrong->key, wrong->value);
        status_t status = model_open(dir, &model);
        if (status == STATUS_OK)
            model_close(model);
        if (status == expected && strstr(status_text(), wrong->text) != NULL &&
            strstr(status_text(), dir) != NULL)
            continue;
        print_error("%s = %s: %s \"%s\"; expected %s with \"%s\"\n", wrong->key,
                    wrong->value ? wrong->value : "nothing", status_name(status),
                    status == STATUS_OK ? "" : status_text(), status_name(expected), wrong->text);
        n_wrong++;
    }
    assert_int_equal(n_wrong, 0);
}

static model_t *open_golden(const char *name)
{
    model_t *model;
    char *path = mem_format("%s/%s", SHOAL_TEST_DATA, name);
    if (model_open(path, &model) != STATUS_OK)
        fail_msg("%s", status_text());
    assert_string_equal(model_name(model), name);
    free(path);
    return model;
}

static model_t *open_changed(const char *key, const char *value)
{
    model_t *model;
    write_config(key, value);
    if (model_open(dir, &model) != STATUS_OK)
        fail_msg("%s = %s: %s", key, value, status_text());
    return model;
}

static void test_members_that_transformers_does_not_read_change_nothing(void **state)
{
    (void)state;
    model_t *model = open_changed("rope_parameters", "{\"rope_theta\": 5000}");
    assert_true(model_config(model)->ropes[0].base == 5000 && !model_config(model)->ropes[0].factors);
    model_close(model);
    model = open_changed("sliding_window", "4");
    assert_int_equal(model_config(model)->layers[0].window, 0);
    model_close(model);
    model = open_changed("rope_scaling", "{\"type\": \"yarn\", \"factor\": 4}");
    float magnitude = model_config(model)->ropes[0].magnitude;
    model_close(model);
    model = open_changed("rope_scaling",
                         "{\"type\": \"yarn\", \"factor\": 4, \"attn_factor\": 0.5}");
    assert_true(magnitude > 1 && model_config(model)->ropes[0].magnitude == magnitude);
    model_close(model);
}

/* deepseek-v3 has 4 layers and one that drafts, and the size of what turns in a member of its own. */
static void test_only_as_many_layers_draft_as_the_configuration_says(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        int value;
        const char *text; /* NULL: it opens */
    } changes[] = {
        {"num_nextn_predict_layers", 1, NULL},
        {"num_nextn_predict_layers", 0, "tensor model.layers.4."},
        {"num_hidden_layers", 3, "tensor model.layers.4."},
        {"partial_rotary_factor", 0, NULL}, /* a half */
        {"attention_bias", 1, "\"attention_bias\" is 1"},
    };
    char folder[] = "/tmp/shoal-drafts-XXXXXX";
    assert_non_null(mkdtemp(folder));
    char *config_file = mem_format("%s/config.json", folder);
    char *weights = mem_format("%s/model.safetensors", folder);
    assert_int_equal(symlink(SHOAL_TEST_DATA "/deepseek-v3/model.safetensors", weights), 0);
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        json_t *config = json_load_file(SHOAL_TEST_DATA "/deepseek-v3/config.json", 0, NULL);
        bool half = strcmp(changes[i].key, "partial_rotary_factor") == 0;
        json_object_set_new(config, changes[i].key,
                            half ? json_real(0.5) : json_integer(changes[i].value));
        assert_int_equal(json_dump_file(config, config_file, 0), 0);
        json_decref(config);
        model_t *model = NULL;
        status_t status = model_open(folder, &model);
        if (changes[i].text == NULL && status != STATUS_OK)
            fail_msg("%s: %s", changes[i].key, status_text());
        if (changes[i].text == NULL) {
            assert_int_equal(model_config(model)->ropes[0].dim, 8);
            model_close(model);
        } else {
            assert_int_equal(status, STATUS_UNSUPPORTED);
            assert_non_null(strstr(status_text(), changes[i].text));
        }
    }
    unlink(config_file);
    unlink(weights);
    free(config_file);
    free(weights);
    rmdir(folder);
}

static void test_a_directory_says_what_its_layers_are(void **state)
{
    (void)state;
    model_t *model = open_golden("gemma3-text");
    const model_config_t *config = model_config(model);
    assert_true(config->norm_plus_one && config->tied_embeddings && config->embedding_scale == 8);
    for (uint32_t i = 0; i < 4; i++) { /* every third is global, with the scaled rope */
        assert_int_equal(config->layers[i].window, i == 2 ? 0 : 16);
        assert_int_equal(config->layers[i].rope, i == 2 ? 0 : 1);
    }
    assert_true(config->ropes[0].scale == 0.125f && config->ropes[1].scale == 1);
    assert_true(config->ropes[0].base == 1e6f && config->ropes[1].base == 1e4f);
    model_close(model);

    model = open_golden("deepseek-v3");
    config = model_config(model);
    assert_int_equal(config->n_layers, 4); /* and not the fifth, which drafts */
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(config->layers[i].attention, MODEL_ATTENTION_LATENT);
        assert_int_equal(config->layers[i].ffn, i == 0 ? MODEL_FFN_DENSE : MODEL_FFN_EXPERTS);
    }
    /* (0.1 ln 40 + 1)^2 / sqrt(24) */
    assert_true(fabs((double)config->attention_scale - 0.3824989) < 1e-6);
    assert_true(config->ropes[0].magnitude == 1 && model_rope_factors(model, 0) != NULL);
    assert_null(model_tensor(model, MODEL_EXPERT_GATE, 0));
    model_tensor_t expert;
    assert_true(model_expert(model, MODEL_EXPERT_DOWN, 3, 7, &expert));
    assert_string_equal(expert.name, "model.layers.3.mlp.experts.7.down_proj.weight");
    model_close(model);
}

static void test_experts_in_one_tensor_are_found_one_by_one(void **state)
{
    (void)state;
    model_t *model = open_golden("gpt-oss-mxfp4");
    model_tensor_t first, last, bias;
    assert_true(model_config(model)->experts.interleaved);
    assert_true(model_expert(model, MODEL_EXPERT_GATE_UP, 1, 0, &first));
    assert_true(model_expert(model, MODEL_EXPERT_GATE_UP, 1, 3, &last));
    assert_true(model_expert(model, MODEL_EXPERT_DOWN_BIAS, 1, 3, &bias));
    assert_true(first.rows == 128 && first.columns == 64 && first.row_first == 0);
    assert_true(last.rows == 128 && last.row_first == 3 * 128);
    assert_true(bias.rows == 1 && bias.columns == 64 && bias.row_first == 3);
    float a[64], b[64];
    assert_int_equal(model_read_f32(&bias, a), STATUS_OK);
    assert_true(model_expert(model, MODEL_EXPERT_DOWN_BIAS, 1, 0, &bias));
    assert_int_equal(model_read_f32(&bias, b), STATUS_OK);
    assert_memory_not_equal(a, b, sizeof a);
    model_close(model);
}

static void test_special_ids_come_from_both_configurations(void **state)
{
    (void)state;
    model_t *model = open_golden("llama3-rope-sharded");
    const model_special_ids_t *special = model_special_ids(model);
    assert_true(special->has_bos && special->bos == 0 && !special->add_bos);
    assert_true(special->n_eos == 2 && special->eos[0] == 1 && special->eos[1] == 3);
    assert_null(model_gguf(model));
    assert_int_equal(model_chat_template(model).size, 0);
    model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_configuration_that_cannot_be_right_is_refused),
        cmocka_unit_test(test_members_that_transformers_does_not_read_change_nothing),
        cmocka_unit_test(test_only_as_many_layers_draft_as_the_configuration_says),
        cmocka_unit_test(test_a_directory_says_what_its_layers_are),
        cmocka_unit_test(test_experts_in_one_tensor_are_found_one_by_one),
        cmocka_unit_test(test_special_ids_come_from_both_configurations),
    };
    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
