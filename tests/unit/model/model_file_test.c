/* The real model of the quickstart: SHOAL_MODEL, or where quickstart and tests/run put it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/model.h"
#include "common/model/plan.h"
#include "tests/unit/model/plan_models.h"

static model_t *model;

static int open_model(void **state)
{
    (void)state;
    const char *path = getenv("SHOAL_MODEL");
    if (path == NULL)
        path = SHOAL_TEST_DATA "/../../.cache/models/SmolLM2-135M-Instruct.Q4_1.gguf";
    if (model_open(path, &model) != STATUS_OK) {
        print_error("%s\nset SHOAL_MODEL to SmolLM2-135M-Instruct.Q4_1.gguf, or run tests/run\n",
                    status_text());
        return -1;
    }
    return 0;
}

static int close_model(void **state)
{
    (void)state;
    model_close(model);
    return 0;
}

static void test_its_configuration_and_sizes_are_the_written_ones(void **state)
{
    (void)state;
    plan_sizes_t found, expected = plan_smollm2();
    plan_sizes(model, &found);
    /* Texts by content, the rest field by field. */
    assert_string_equal(found.config.architecture, expected.config.architecture);
    assert_int_equal(found.config.n_layers, expected.config.n_layers);
    assert_int_equal(found.config.hidden, expected.config.hidden);
    assert_int_equal(found.config.n_heads, expected.config.n_heads);
    assert_int_equal(found.config.n_kv_heads, expected.config.n_kv_heads);
    assert_int_equal(found.config.head_dim, expected.config.head_dim);
    assert_int_equal(found.config.ffn, expected.config.ffn);
    assert_int_equal(found.config.vocab, expected.config.vocab);
    assert_int_equal(found.config.context_train, expected.config.context_train);
    assert_int_equal(found.config.ropes[0].dim, 64);
    assert_int_equal(found.config.ropes[0].pairs, MODEL_ROPE_PAIRS_ADJACENT);
    assert_true(found.config.ropes[0].base == 100000);
    assert_true(found.config.norm_eps == expected.config.norm_eps);
    assert_true(found.config.attention_scale == expected.config.attention_scale);
    assert_true(found.config.tied_embeddings);
    size_t sizes = offsetof(plan_sizes_t, file_bytes);
    assert_memory_equal((const char *)&found + sizes, (const char *)&expected + sizes,
                        sizeof found - sizes);
}

static void test_its_special_ids_and_template_are_those_of_the_checkpoint(void **state)
{
    (void)state;
    const model_special_ids_t *special = model_special_ids(model);
    assert_true(special->has_bos && special->bos == 1 && !special->add_bos);
    assert_true(special->n_eos == 1 && special->eos[0] == 2);
    gguf_text_t chat = model_chat_template(model);
    assert_true(chat.size > 100 && memcmp(chat.data, "{% for message", 14) == 0);
    assert_string_equal(model_name(model), "SmolLM2-135M-Instruct.Q4_1");
}

static void test_its_weights_are_where_the_layers_expect_them(void **state)
{
    (void)state;
    float row[1536];
    for (uint32_t layer = 0; layer < 30; layer++) {
        const model_tensor_t *down = model_tensor(model, MODEL_FFN_DOWN, layer);
        assert_int_equal(down->type, QTYPE_Q4_1);
        assert_int_equal(down->columns, 1536);
        assert_int_equal(down->rows, 576);
        qtype_dequantize_row(down->type, down->data + 575 * down->row_bytes, 1536, row);
        for (int i = 0; i < 1536; i++)
            assert_true(row[i] > -16 && row[i] < 16);
    }
    assert_int_equal(model_tensor(model, MODEL_TOKEN_EMBD, 0)->type, QTYPE_Q8_0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_its_configuration_and_sizes_are_the_written_ones),
        cmocka_unit_test(test_its_special_ids_and_template_are_those_of_the_checkpoint),
        cmocka_unit_test(test_its_weights_are_where_the_layers_expect_them),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
