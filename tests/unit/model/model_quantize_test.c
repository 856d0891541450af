/* Online quantization: a view gives the rows that qtype_quantize_row makes of the stored ones, for
 * every matrix that is meant and for no other tensor. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/model.h"
#include "common/model/model_outline.h"
#include "common/model/plan.h"

#define GOLDEN SHOAL_TEST_DATA "/"

static bool is_plain(qtype_t type)
{
    return type == QTYPE_F32 || type == QTYPE_F16 || type == QTYPE_BF16;
}

/* What stays as it is stored, by the words of the header. */
static bool is_meant(model_role_t role)
{
    switch (role) {
    case MODEL_TOKEN_EMBD:
    case MODEL_ROUTER:
    case MODEL_SHARED_ROUTER:
    case MODEL_INDEX_Q_B:
    case MODEL_INDEX_K:
    case MODEL_INDEX_WEIGHTS:
    case MODEL_ATTN_KV_B:
    case MODEL_ATTN_K_B:
    case MODEL_ATTN_V_B: return false;
    default: return true;
    }
}

/* Row 0 and the last one, against the stored rows. */
static void check_rows(const model_tensor_t *stored, const model_tensor_t *view)
{
    uint8_t *row = mem_new(stored->row_bytes, 1), *got = mem_new(view->row_bytes, 1);
    uint8_t *wanted = mem_new(view->row_bytes, 1);
    float *values = MEM_NEW_ARRAY(float, stored->columns);
    for (uint64_t i = 0; i < 2; i++) {
        uint64_t at = i * (stored->rows - 1);
        assert_int_equal(model_read_rows(stored, at, 1, row), STATUS_OK);
        assert_int_equal(model_read_rows(view, at, 1, got), STATUS_OK);
        qtype_dequantize_row(stored->type, row, stored->columns, values);
        qtype_quantize_row(view->type, values, stored->columns, wanted);
        assert_memory_equal(got, wanted, view->row_bytes);
    }
    free(row);
    free(got);
    free(wanted);
    free(values);
}

static size_t check_tensor(const model_tensor_t *stored, const model_tensor_t *view,
                           model_role_t role, qtype_t type)
{
    qtype_t wanted = role == MODEL_OUTPUT && type == QTYPE_Q4_1 ? QTYPE_Q8_0 : type;
    uint64_t block = qtype_info((uint32_t)wanted)->block_values;
    bool padded = wanted == QTYPE_F8S; /* whose last block may be short */
    bool changes = is_plain(stored->type) && stored->rows > 1 && is_meant(role) &&
                   (padded || stored->columns % block == 0);
    assert_int_equal(view->type, changes ? wanted : stored->type);
    assert_true(view->rows == stored->rows && view->columns == stored->columns);
    assert_int_equal(view->cut, stored->cut);
    assert_int_equal(view->bytes, view->rows * view->row_bytes);
    assert_int_equal(view->data == NULL, changes || stored->data == NULL);
    if (changes)
        check_rows(stored, view);
    return changes;
}

static size_t check_layer(const model_t *stored, const model_t *model, uint32_t layer, qtype_t type)
{
    size_t n = 0;
    for (int r = 0; r < MODEL_N_ROLES; r++) {
        model_role_t role = (model_role_t)r;
        const model_tensor_t *a = model_tensor(stored, role, layer);
        const model_tensor_t *b = model_tensor(model, role, layer);
        assert_int_equal(a == NULL, b == NULL);
        if (!a || (role == MODEL_ROUTER_TABLE))
            continue;
        if (role < MODEL_EXPERT_GATE) {
            n += check_tensor(a, b, role, type);
            continue;
        }
        for (uint32_t e = 0; e < model_config(model)->experts.n; e++) {
            model_tensor_t one, other;
            assert_true(model_expert(stored, role, layer, e, &one));
            assert_true(model_expert(model, role, layer, e, &other));
            n += check_tensor(&one, &other, role, type);
        }
    }
    return n;
}

static void test_matrices_are_read_quantized_and_nothing_else_is(void **state)
{
    (void)state;
    static const struct { const char *word; qtype_t type; } words[] = {
        {"q8", QTYPE_Q8_0}, {"q4", QTYPE_Q4_1}, {"fp8", QTYPE_F8S}};
    static const char *const paths[] = {
        GOLDEN "qwen2-f16",   GOLDEN "llama-tied-f32",      GOLDEN "qwen3-moe",
        GOLDEN "deepseek-v3", GOLDEN "deepseek-v32-dsa",    GOLDEN "gpt-oss-bf16",
        GOLDEN "qwen2-moe",   GOLDEN "gguf-qwen3-f16/model.gguf",
        GOLDEN "gguf-deepseek2-lite-f16/model.gguf",
    };
    for (size_t p = 0; p < sizeof paths / sizeof *paths; p++)
        for (size_t w = 0; w < sizeof words / sizeof *words; w++) {
            model_t *stored, *model;
            size_t n = 0;
            assert_int_equal(model_open(paths[p], &stored), STATUS_OK);
            assert_int_equal(model_open_quantized(paths[p], words[w].word, &model), STATUS_OK);
            for (uint32_t layer = 0; layer < model_config(model)->n_layers; layer++)
                n += check_layer(stored, model, layer, words[w].type);
            assert_true(n > 0);
            model_close(stored);
            model_close(model);
        }
}

static void test_the_planner_counts_the_quantized_bytes(void **state)
{
    (void)state;
    model_t *stored, *model;
    plan_sizes_t a, b;
    assert_int_equal(model_open(GOLDEN "qwen3-moe", &stored), STATUS_OK);
    assert_int_equal(model_open_quantized(GOLDEN "qwen3-moe", "q8", &model), STATUS_OK);
    plan_sizes(stored, &a);
    plan_sizes(model, &b);
    assert_int_equal(a.q_values, b.q_values);
    assert_int_equal(a.q_bytes, a.q_values * 2);
    assert_int_equal(b.q_bytes, b.q_values / 32 * 34);
    assert_int_equal(a.embedding_bytes, b.embedding_bytes);
    assert_true(model_weight_bytes(model) < model_weight_bytes(stored));
    model_close(stored);
    model_close(model);
}

/* What is planned before a model is there is what is loaded. */
static void test_a_plan_from_the_configuration_counts_what_loading_makes(void **state)
{
    (void)state;
    static const char *const names[] = {"q8", "q4", "fp8"};
    static const char *const models[] = {
        GOLDEN "qwen2-f16",        GOLDEN "llama-tied-f32", GOLDEN "qwen3-moe",
        GOLDEN "deepseek-v2-lite", GOLDEN "deepseek-v3",    GOLDEN "deepseek-v32-dsa",
        GOLDEN "deepseek-v4",      GOLDEN "gpt-oss-bf16",   GOLDEN "gemma3-text",
    };
    for (size_t m = 0; m < sizeof models / sizeof *models; m++)
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            model_t *loaded, *stored, *outline;
            if (model_open_quantized(models[m], names[i], &loaded) != STATUS_OK ||
                model_open(models[m], &stored) != STATUS_OK ||
                model_outline_open(models[m], &outline) != STATUS_OK ||
                model_outline_quantize(stored, names[i]) != STATUS_OK ||
                model_outline_quantize(outline, names[i]) != STATUS_OK)
                fail_msg("%s", status_text());
            for (int role = 0; role < MODEL_N_ROLES; role++)
                for (uint32_t layer = 0; layer < model_config(loaded)->n_layers; layer++) {
                    const model_tensor_t *a = model_tensor(loaded, (model_role_t)role, layer);
                    const model_tensor_t *b = model_tensor(stored, (model_role_t)role, layer);
                    const model_tensor_t *c = model_tensor(outline, (model_role_t)role, layer);
                    if (a == NULL || a->rows == 1) /* of vectors a configuration does not tell */
                        continue;
                    if (a->type != b->type || a->bytes != b->bytes || a->type != c->type ||
                        a->bytes != c->bytes)
                        fail_msg("%s in %s: role %d is loaded as %s, planned as %s and %s",
                                 models[m], names[i], role, qtype_name((uint32_t)a->type),
                                 qtype_name((uint32_t)b->type), qtype_name((uint32_t)c->type));
                }
            model_close(loaded);
            model_close(stored);
            model_close(outline);
        }
}

static void test_what_cannot_be_quantized_is_refused_by_name(void **state)
{
    (void)state;
    model_t *model;
    assert_int_equal(model_open_quantized(GOLDEN "qwen2-f16", "q5", &model), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "\"q5\" is none of q8, q4 and fp8"));
    assert_int_equal(model_open_quantized(GOLDEN "gguf-llama-q4_0/model.gguf", "q8", &model),
                     STATUS_UNSUPPORTED);
    assert_non_null(strstr(status_text(), "these are Q4_0"));
    assert_int_equal(model_check_quantize(""), STATUS_OK);
    assert_int_equal(model_check_quantize("fp8"), STATUS_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matrices_are_read_quantized_and_nothing_else_is),
        cmocka_unit_test(test_the_planner_counts_the_quantized_bytes),
        cmocka_unit_test(test_a_plan_from_the_configuration_counts_what_loading_makes),
        cmocka_unit_test(test_what_cannot_be_quantized_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
