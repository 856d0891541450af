/* A model's vocabulary may be padded beyond its tokenizer's: ids of the padding stand for nothing. */
#include <string.h>

#include "common/model/detok.h"
#include "support.h"

static void test_ids_that_no_token_has_decode_to_nothing_between_others(void **state)
{
    (void)state;
    tokenizer_t *tokenizer = NULL;
    assert_int_equal(tokenizer_open(SHOAL_TEST_DATA "/qwen3-moe", &tokenizer), STATUS_OK);
    uint32_t n = tokenizer_n_tokens(tokenizer);
    const uint32_t ids[] = {72, n, 73, n + 7};
    const uint32_t plain[] = {72, 73};
    buffer_t text = {0}, wanted = {0};
    assert_int_equal(tokenizer_decode(tokenizer, ids, 4, false, &text), STATUS_INVALID);
    tokenizer_widen(tokenizer, n + 8);
    assert_int_equal(tokenizer_n_tokens(tokenizer), n + 8);
    assert_int_equal(tokenizer_decode(tokenizer, ids, 4, false, &text), STATUS_OK);
    assert_int_equal(tokenizer_decode(tokenizer, plain, 2, false, &wanted), STATUS_OK);
    assert_int_equal(text.size, wanted.size);
    assert_memory_equal(text.data, wanted.data, wanted.size);
    assert_false(tokenizer_is_special(tokenizer, n));
    assert_false(tokenizer_is_end(tokenizer, n + 7));
    size_t size = 1;
    (void)tokenizer_bytes(tokenizer, n, &size);
    assert_int_equal(size, 0);
    const uint32_t beyond = n + 8;
    assert_int_equal(tokenizer_decode(tokenizer, &beyond, 1, false, &text), STATUS_INVALID);
    tokenizer_widen(tokenizer, 1); /* never fewer */
    assert_int_equal(tokenizer_n_tokens(tokenizer), n + 8);
    token_ids_t again = {0};
    assert_int_equal(tokenizer_encode(tokenizer, "hello", 5, TOKENIZE_PLAIN, 100, &again), STATUS_OK);
    assert_true(again.n > 0);
    token_ids_release(&again);
    buffer_release(&text);
    buffer_release(&wanted);
    tokenizer_release(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ids_that_no_token_has_decode_to_nothing_between_others),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
