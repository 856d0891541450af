/* What the configuration of a model must agree with: the token list, the special ids, the tensors.
 * Numbers 36 to 41 of the list of malformed inputs are files (malformed_test.c); here is what else
 * contradicts itself, and what Shoal refuses because it lacks it. */
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
#include "common/model/arch.h"
#include "common/model/model.h"
#include "common/model/source.h"
#include "tests/unit/model/gguf_cases.h"
#include "tests/unit/model/gguf_draft.h"

#define HEADS "llama.attention.head_count"

static void no_architecture(draft_t *d) { draft_remove_key(d, "general.architecture"); }
static void other_architecture(draft_t *d) { draft_set_text(d, "general.architecture", "mamba"); }
static void no_heads(draft_t *d) { draft_remove_key(d, HEADS); }
static void missing(draft_t *d) { draft_remove_tensor(d, "blk.0.ffn_down.weight"); }
static void experts(draft_t *d) { draft_set_u32(d, "llama.expert_count", 8); }
static void window(draft_t *d) { draft_set_u32(d, "llama.attention.sliding_window", 4096); }
static void yarn(draft_t *d) { draft_set_text(d, "llama.rope.scaling.type", "yarn"); }
static void values(draft_t *d) { draft_set_u32(d, "llama.attention.value_length", 8); }
static void bias(draft_t *d) { draft_add_tensor(d, "blk.0.attn_q.bias", QTYPE_F32, 31, 1); }
static void k_quant(draft_t *d) { draft_tensor(d, "blk.0.ffn_up.weight")->type = QTYPE_I8; }
static void norm_q8(draft_t *d) { draft_tensor(d, "output_norm.weight")->type = QTYPE_Q8_0; }

static void norm_nan(draft_t *d, buffer_t *out)
{
    draft_write(d, out); /* output_norm is the last tensor, 32 F32 values */
    float nan = __builtin_nanf("");
    memcpy(out->data + out->size - sizeof nan, &nan, sizeof nan);
}

static void factor_zero(draft_t *d, buffer_t *out)
{
    draft_add_tensor(d, "rope_freqs.weight", QTYPE_F32, 8, 1);
    draft_write(d, out);
    memset(out->data + out->size - 4, 0, 4);
}

static const gguf_case_t cases[] = {
    {"no architecture", no_architecture, .text = "general.architecture is missing"},
    {"another architecture", other_architecture, .text = "\"mamba\" is not supported; these are: llama",
     .status = STATUS_UNSUPPORTED},
    {"no head count", no_heads, .text = "head_count is missing"},
    {"missing tensor", missing, .text = "tensor blk.0.ffn_down.weight [32, 32] is missing"},
    {"experts", experts, .text = "key llama.expert_used_count is missing"},
    {"sliding window", window, .text = "sliding_window is 4096", .status = STATUS_UNSUPPORTED},
    {"yarn", yarn, .text = "key llama.rope.scaling.factor is missing"},
    {"value heads", values, .text = "value heads of 8", .status = STATUS_UNSUPPORTED},
    {"bias", bias, .text = "attn_q.bias has shape [31, 1, 1, 1]"},
    {"weights of another type", k_quant, .text = "ffn_up.weight is I8, which cannot be a",
     .status = STATUS_UNSUPPORTED},
    {"norm of another type", norm_q8, .text = "output_norm.weight is Q8_0; F32",
     .status = STATUS_UNSUPPORTED},
    {"norm with a NaN", .bytes = norm_nan, .text = "output_norm.weight: element 31 is nan"},
    {"rope factor 0", .bytes = factor_zero, .text = "rope_freqs.weight: element 7 is 0"},
};

static void test_each_configuration_that_contradicts_itself_is_refused(void **state)
{
    (void)state;
    gguf_cases_run(cases, sizeof cases / sizeof *cases);
}

static model_t *open_draft(draft_t *take_draft, buffer_t *bytes)
{
    model_t *model;
    draft_write(take_draft, bytes);
    draft_free(take_draft);
    assert_int_equal(model_open_bytes("/models/tiny.gguf", bytes->data, bytes->size, &model),
                     STATUS_OK);
    return model;
}

static void test_a_right_model_gives_its_configuration_and_tensors(void **state)
{
    (void)state;
    buffer_t bytes = {0};
    model_t *model = open_draft(draft_llama(), &bytes);
    const model_config_t *config = model_config(model);
    assert_string_equal(model_name(model), "tiny");
    assert_string_equal(config->architecture, "llama");
    assert_int_equal(config->head_dim, 16);
    assert_int_equal(config->vocab, 8);
    assert_int_equal(config->ropes[0].pairs, MODEL_ROPE_PAIRS_ADJACENT);
    assert_true(config->ropes[0].scale == 1 && config->attention_scale == 0.25f);
    assert_true(config->tied_embeddings && !config->ropes[0].factors);
    const model_tensor_t *head = model_tensor(model, MODEL_OUTPUT, 0);
    const model_tensor_t *embedding = model_tensor(model, MODEL_TOKEN_EMBD, 0);
    assert_ptr_equal(head->data, embedding->data);
    assert_int_equal(head->cut, MODEL_CUT_ROWS_VOCAB);
    assert_int_equal(embedding->cut, MODEL_CUT_NONE);
    assert_null(model_tensor(model, MODEL_ROPE_FACTORS, 0));
    const model_tensor_t *down = model_tensor(model, MODEL_FFN_DOWN, 0);
    assert_string_equal(down->name, "blk.0.ffn_down.weight");
    assert_int_equal(down->cut, MODEL_CUT_COLUMNS_FFN);
    assert_int_equal(down->bytes, 32 * 18);
    const model_special_ids_t *special = model_special_ids(model);
    assert_true(special->has_bos && special->bos == 1 && !special->add_bos);
    assert_true(special->n_eos == 1 && special->eos[0] == 2);
    assert_true(gguf_text_is(model_chat_template(model), "{{ messages }}"));
    model_close(model);
    buffer_release(&bytes);
}

static void test_an_own_head_linear_scaling_and_rope_factors_are_read(void **state)
{
    (void)state;
    draft_t *draft = draft_llama();
    draft_add_tensor(draft, "output.weight", QTYPE_Q8_0, 32, 8);
    draft_add_tensor(draft, "rope_freqs.weight", QTYPE_F32, 8, 1);
    draft_add_tensor(draft, "blk.0.rotary_emb.inv_freq", QTYPE_F32, 8, 1); /* left out */
    draft_set_text(draft, "llama.rope.scaling.type", "linear");
    draft_set_f32(draft, "llama.rope.scaling.factor", 4);
    draft_set_u32(draft, "tokenizer.ggml.eot_token_id", 5);
    draft_set_u32(draft, "tokenizer.ggml.eom_token_id", 2); /* eos again */
    buffer_t bytes = {0};
    model_t *model = open_draft(draft, &bytes);
    assert_false(model_config(model)->tied_embeddings);
    assert_true(model_config(model)->ropes[0].factors);
    assert_true(model_config(model)->ropes[0].scale == 0.25f);
    assert_int_equal(model_tensor(model, MODEL_OUTPUT, 0)->type, QTYPE_Q8_0);
    assert_non_null(model_tensor(model, MODEL_ROPE_FACTORS, 0));
    const model_special_ids_t *special = model_special_ids(model);
    assert_true(special->n_eos == 2 && special->eos[0] == 2 && special->eos[1] == 5);
    model_close(model);
    buffer_release(&bytes);
}

/* The sizes that a model of some architecture says it has, without its tensors. */
typedef struct {
    const char *key;
    uint32_t value;
} size_key_t;

static void read_sizes(const char *name, const size_key_t *keys, model_config_t *out)
{
    draft_t *draft = draft_new();
    buffer_t bytes = {0};
    source_t *source;
    char key[96];
    draft_set_text(draft, "general.architecture", name);
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", name);
    draft_set_f32(draft, key, 1e-6f);
    for (; keys->key != NULL; keys++) {
        snprintf(key, sizeof key, "%s.%s", name, keys->key);
        draft_set_u32(draft, key, keys->value);
    }
    draft_add_tensor(draft, "token_embd.weight", QTYPE_F32, 32, 1);
    draft_write(draft, &bytes);
    draft_free(draft);
    if (source_open_gguf_bytes("/models/sizes.gguf", bytes.data, bytes.size, &source) != STATUS_OK)
        fail_msg("%s", status_text());
    *out = (model_config_t){0};
    arch_reader_t reader = {.source = source, .gguf = source_gguf(source), .prefix = name,
                            .where = "/models/sizes.gguf", .out = out};
    if (arch_find_gguf((gguf_text_t){name, strlen(name)})->read(&reader) != STATUS_OK)
        fail_msg("%s", status_text());
    for (size_t i = 0; i < MODEL_ROPES_MAX; i++)
        free(reader.factors[i]);
    source_close(source);
    buffer_release(&bytes);
}

static void test_the_27b_gemmas_scale_by_hidden_over_heads(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint32_t layers, hidden, heads, head_dim, square; /* 1 / scale^2 */
    } models[] = {
        {"gemma3", 62, 5376, 32, 128, 168}, {"gemma3", 48, 3840, 16, 256, 256},
        {"gemma2", 46, 4608, 32, 128, 144}, {"gemma2", 42, 3584, 16, 256, 256},
    };
    static model_config_t config;
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        const size_key_t keys[] = {
            {"block_count", models[i].layers}, {"embedding_length", models[i].hidden},
            {"feed_forward_length", 4096}, {"context_length", 8192},
            {"attention.head_count", models[i].heads}, {"attention.head_count_kv", 8},
            {"attention.key_length", models[i].head_dim},
            {"attention.value_length", models[i].head_dim}, {NULL, 0},
        };
        read_sizes(models[i].name, keys, &config);
        double scale = (double)config.attention_scale;
        assert_true(fabs(1 / (scale * scale) - models[i].square) < 1e-3);
    }
}

static void test_deepseek_files_without_group_keys_choose_in_groups(void **state)
{
    (void)state;
    static const struct {
        uint32_t n, gating, n_groups_said, n_groups, kept;
        bool by_sum;
    } models[] = {
        {256, 2, 0, 8, 4, true},  /* V3 and R1 */
        {160, 1, 0, 8, 3, false}, /* V2 */
        {64, 1, 0, 0, 0, false},  /* V2-Lite */
        {256, 1, 0, 0, 0, false}, {160, 2, 0, 0, 0, true},
        {256, 2, 1, 0, 0, true}, /* what the file says is believed */
    };
    static model_config_t config;
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        const size_key_t keys[] = {
            {"block_count", 4}, {"embedding_length", 512}, {"feed_forward_length", 512},
            {"context_length", 4096}, {"attention.head_count", 16},
            {"attention.kv_lora_rank", 512}, {"rope.dimension_count", 64},
            {"attention.key_length", 192}, {"attention.value_length", 128},
            {"expert_used_count", 6}, {"expert_feed_forward_length", 64},
            {"expert_count", models[i].n}, {"expert_gating_func", models[i].gating},
            {models[i].n_groups_said ? "expert_group_count" : NULL, models[i].n_groups_said},
            {NULL, 0},
        };
        read_sizes("deepseek2", keys, &config);
        assert_int_equal(config.experts.n_groups, models[i].n_groups);
        assert_int_equal(config.experts.groups_kept, models[i].kept);
        assert_int_equal(config.experts.group_by_sum, models[i].by_sum);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_configuration_that_contradicts_itself_is_refused),
        cmocka_unit_test(test_a_right_model_gives_its_configuration_and_tensors),
        cmocka_unit_test(test_an_own_head_linear_scaling_and_rope_factors_are_read),
        cmocka_unit_test(test_the_27b_gemmas_scale_by_hidden_over_heads),
        cmocka_unit_test(test_deepseek_files_without_group_keys_choose_in_groups),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
