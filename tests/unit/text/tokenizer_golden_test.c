/* SmolLM2's tokenizer against rows recorded from Hugging Face's, and the speed of hard texts. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/memory.h"
#include "common/model/detok.h"
#include "support.h"

static const size_t no_limit = SIZE_MAX;

static token_ids_t ids_of(const json_t *array)
{
    token_ids_t ids = {0};
    size_t i;
    json_t *id;
    json_array_foreach(array, i, id)
        token_ids_append(&ids, (uint32_t)json_integer_value(id));
    return ids;
}

static void assert_same_ids(const token_ids_t *ids, const token_ids_t *wanted, size_t row)
{
    for (size_t i = 0; i < ids->n && i < wanted->n; i++)
        if (ids->ids[i] != wanted->ids[i])
            fail_msg("row %zu: id %zu is %u and should be %u", row, i, ids->ids[i], wanted->ids[i]);
    if (ids->n != wanted->n)
        fail_msg("row %zu: %zu ids and should be %zu", row, ids->n, wanted->n);
}

static void assert_decodes(const uint32_t *ids, size_t n, bool skip_special, const json_t *wanted,
                           size_t row)
{
    buffer_t text = {0};
    assert_int_equal(tokenizer_decode(support_smollm2(), ids, n, skip_special, &text), STATUS_OK);
    if (text.size != json_string_length(wanted) ||
        memcmp(buffer_text(&text), json_string_value(wanted), text.size) != 0)
        fail_msg("row %zu decodes to \"%s\" and should to \"%s\"", row, buffer_text(&text),
                 json_string_value(wanted));
    buffer_release(&text);
}

static void test_every_recorded_text_encodes_to_its_ids(void **state)
{
    (void)state;
    json_t *rows = support_rows("tokenizers/smollm2/encode.jsonl"), *row;
    size_t i;
    json_array_foreach(rows, i, row) {
        const json_t *text = json_object_get(row, "text");
        token_ids_t ids = {0}, wanted = ids_of(json_object_get(row, "ids"));
        assert_int_equal(tokenizer_encode(support_smollm2(), json_string_value(text),
                                          json_string_length(text), TOKENIZE_SPECIAL, no_limit,
                                          &ids), STATUS_OK);
        assert_same_ids(&ids, &wanted, i);
        assert_decodes(ids.ids, ids.n, false, json_object_get(row, "decoded"), i);
        token_ids_release(&ids);
        token_ids_release(&wanted);
    }
    assert_int_equal(i, 278);
    json_decref(rows);
}

static void test_every_recorded_id_list_decodes_to_its_text(void **state)
{
    (void)state;
    json_t *rows = support_rows("tokenizers/smollm2/decode.jsonl"), *row;
    size_t i;
    json_array_foreach(rows, i, row) {
        token_ids_t ids = ids_of(json_object_get(row, "ids"));
        assert_decodes(ids.ids, ids.n, false, json_object_get(row, "decoded"), i);
        assert_decodes(ids.ids, ids.n, true, json_object_get(row, "decoded_skip_special"), i);
        token_ids_release(&ids);
    }
    assert_int_equal(i, 120);
    json_decref(rows);
}

static void test_the_file_names_its_special_tokens(void **state)
{
    (void)state;
    const tokenizer_t *tokenizer = support_smollm2();
    assert_int_equal(tokenizer_n_tokens(tokenizer), 49152);
    assert_int_equal(tokenizer_bos_id(tokenizer), 1);
    assert_int_equal(tokenizer_eos_id(tokenizer), 2);
    assert_false(tokenizer_adds_bos(tokenizer));
    size_t n;
    const uint32_t *ends = tokenizer_end_ids(tokenizer, &n);
    assert_int_equal(n, 2);
    assert_int_equal(ends[0], 0);
    assert_int_equal(ends[1], 2);
    assert_true(tokenizer_is_end(tokenizer, 2));
    assert_false(tokenizer_is_end(tokenizer, 1));
    assert_true(tokenizer_is_special(tokenizer, 16));
    assert_false(tokenizer_is_special(tokenizer, 17));
    assert_int_equal(tokenizer_find(tokenizer, "<|im_end|>", 10), 2);
}

static void test_special_token_text_stays_text_unless_asked_for(void **state)
{
    (void)state;
    static const char text[] = "a<|im_end|>b";
    token_ids_t ids = {0};
    assert_int_equal(tokenizer_encode(support_smollm2(), text, sizeof text - 1, TOKENIZE_PLAIN,
                                      no_limit, &ids), STATUS_OK);
    assert_true(ids.n > 3);
    for (size_t i = 0; i < ids.n; i++)
        assert_false(tokenizer_is_special(support_smollm2(), ids.ids[i]));
    buffer_t back = {0};
    assert_int_equal(tokenizer_decode(support_smollm2(), ids.ids, ids.n, true, &back), STATUS_OK);
    assert_string_equal(buffer_text(&back), text);
    buffer_release(&back);
    token_ids_release(&ids);
}

/* Processor time of this thread, so that a busy machine does not fail the test. */
static uint64_t cpu_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* A megabyte in less than a second; under a sanitizer the time says nothing about the code. */
static void assert_fast(const char *text, size_t n)
{
    token_ids_t ids = {0};
    uint64_t start = cpu_ms();
    assert_int_equal(tokenizer_encode(support_smollm2(), text, n, TOKENIZE_PLAIN, no_limit, &ids),
                     STATUS_OK);
    uint64_t took_ms = cpu_ms() - start;
    print_message("%zu bytes, %zu ids: %llu ms\n", n, ids.n, (unsigned long long)took_ms);
#ifndef __SANITIZE_ADDRESS__
    assert_true(took_ms < 1000);
#endif
    buffer_t back = {0};
    assert_int_equal(tokenizer_decode(support_smollm2(), ids.ids, ids.n, false, &back), STATUS_OK);
    assert_int_equal(back.size, n);
    assert_memory_equal(back.data, text, n);
    buffer_release(&back);
    token_ids_release(&ids);
}

static void test_a_megabyte_without_a_space_is_not_quadratic(void **state)
{
    (void)state;
    enum { N = 1 << 20 };
    char *text = mem_new(N, 1);
    memset(text, 'a', N);
    assert_fast(text, N);
    memset(text, ' ', N);
    assert_fast(text, N);
    memset(text, '<', N);
    assert_fast(text, N);
    for (size_t i = 0; i < N; i++)
        text[i] = (char)('a' + (i * i + i / 7) % 26);
    assert_fast(text, N);
    free(text);
}

static void test_too_many_ids_are_refused_and_leave_the_list_alone(void **state)
{
    (void)state;
    token_ids_t ids = {0};
    token_ids_append(&ids, 7);
    assert_int_equal(tokenizer_encode(support_smollm2(), "Hello, world!", 13, TOKENIZE_PLAIN, 3,
                                      &ids), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "more than 3 tokens"));
    assert_int_equal(ids.n, 1);
    assert_int_equal(tokenizer_encode(support_smollm2(), "Hello, world!", 13, TOKENIZE_PLAIN, 4,
                                      &ids), STATUS_OK);
    assert_int_equal(ids.n, 5);
    token_ids_release(&ids);
}

static int teardown(void **state)
{
    (void)state;
    support_release();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_recorded_text_encodes_to_its_ids),
        cmocka_unit_test(test_every_recorded_id_list_decodes_to_its_text),
        cmocka_unit_test(test_the_file_names_its_special_tokens),
        cmocka_unit_test(test_special_token_text_stays_text_unless_asked_for),
        cmocka_unit_test(test_a_megabyte_without_a_space_is_not_quadratic),
        cmocka_unit_test(test_too_many_ids_are_refused_and_leave_the_list_alone),
    };
    return cmocka_run_group_tests(tests, NULL, teardown);
}
