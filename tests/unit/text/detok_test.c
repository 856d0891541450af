/* The incremental detokenizer: what a stream releases is a function of the ids alone. */
#include <stdlib.h>
#include <string.h>

#include "common/model/detok.h"
#include "common/model/unicode.h"
#include "support.h"

/* A small generator for reproducible id lists (SplitMix64). */
static uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state += 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

static tokenizer_t *byte_tokenizer(void)
{
    static support_vocabulary_t vocabulary;
    support_vocabulary(&vocabulary);
    support_add_token(&vocabulary, "<end>", TOKEN_CONTROL); /* 256 */
    support_add_token(&vocabulary, "\xC3\xB0\xC5\x81", TOKEN_NORMAL); /* 257: F0 9F */
    support_add_token(&vocabulary, "ab\xC3\xA3", TOKEN_NORMAL);       /* 258: 'a' 'b' E3 */
    support_add_token(&vocabulary, "\xC3\xA3\xC4\xA3\xC4\xA4zzzzzzzzzzzz\xC3\xA3", /* 259 */
                      TOKEN_NORMAL); /* E3 81 82 twelve z E3 */
    tokenizer_t *tokenizer = NULL;
    if (tokenizer_create(&vocabulary.source, &tokenizer) != STATUS_OK)
        fail_msg("%s", status_text());
    return tokenizer;
}

static void test_a_character_split_over_tokens_is_held_until_it_is_whole(void **state)
{
    (void)state;
    tokenizer_t *tokenizer = byte_tokenizer();
    detok_t detok = {0};
    buffer_t text = {0};
    static const struct {
        uint32_t id;
        const char *text; /* after this id */
    } steps[] = {
        {257, ""}, {0x98, ""}, {0x80, "\xF0\x9F\x98\x80"},
        {258, "\xF0\x9F\x98\x80""ab"},
        {'c', "\xF0\x9F\x98\x80""ab\xEF\xBF\xBD""c"},
    };
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        assert_int_equal(detok_push(&detok, tokenizer, steps[i].id, &text), STATUS_OK);
        assert_string_equal(buffer_text(&text), steps[i].text);
    }
    buffer_clear(&text);
    assert_int_equal(detok_push(&detok, tokenizer, 0xE3, &text), STATUS_OK);
    assert_int_equal(detok_push(&detok, tokenizer, 259, &text), STATUS_OK);
    assert_string_equal(buffer_text(&text), "\xEF\xBF\xBD\xE3\x81\x82zzzzzzzzzzzz");
    assert_int_equal(detok.n_held, 1);
    detok_finish(&detok, &text);
    assert_string_equal(buffer_text(&text), "\xEF\xBF\xBD\xE3\x81\x82zzzzzzzzzzzz\xEF\xBF\xBD");
    assert_int_equal(detok.n_held, 0);
    buffer_release(&text);
    tokenizer_release(tokenizer);
}

static void test_an_id_out_of_range_changes_nothing(void **state)
{
    (void)state;
    tokenizer_t *tokenizer = byte_tokenizer();
    detok_t detok = {0};
    buffer_t text = {0};
    assert_int_equal(detok_push(&detok, tokenizer, 257, &text), STATUS_OK);
    detok_t before = detok;
    assert_int_equal(detok_push(&detok, tokenizer, 260, &text), STATUS_INVALID);
    assert_memory_equal(&before, &detok, sizeof detok);
    assert_int_equal(text.size, 0);
    buffer_release(&text);
    tokenizer_release(tokenizer);
}

static void test_a_skipped_special_token_does_not_break_a_character(void **state)
{
    (void)state;
    tokenizer_t *tokenizer = byte_tokenizer();
    buffer_t text = {0};
    static const uint32_t ids[] = {257, 256, 0x98, 0x80};
    assert_int_equal(tokenizer_decode(tokenizer, ids, 4, true, &text), STATUS_OK);
    assert_string_equal(buffer_text(&text), "\xF0\x9F\x98\x80");
    buffer_clear(&text);
    assert_int_equal(tokenizer_decode(tokenizer, ids, 4, false, &text), STATUS_OK);
    assert_string_equal(buffer_text(&text), "\xEF\xBF\xBD<end>\xEF\xBF\xBD\xEF\xBF\xBD");
    buffer_release(&text);
    tokenizer_release(tokenizer);
}

/* The reference: all bytes of the ids joined, then made UTF-8 in one go. */
static void lossy_text(const tokenizer_t *tokenizer, const uint32_t *ids, size_t n, buffer_t *out)
{
    buffer_t bytes = {0};
    for (size_t i = 0; i < n; i++) {
        size_t size;
        const uint8_t *data = tokenizer_bytes(tokenizer, ids[i], &size);
        buffer_append(&bytes, data, size);
    }
    assert_int_equal(utf8_append_lossy(out, bytes.data, bytes.size, true), 0);
    buffer_release(&bytes);
}

static void test_a_replayed_state_equals_the_live_one_at_every_id(void **state)
{
    (void)state;
    enum { N = 24, ROUNDS = 400 };
    tokenizer_t *tokenizer = byte_tokenizer();
    uint64_t seed = 1;
    for (size_t round = 0; round < ROUNDS; round++) {
        uint32_t ids[N];
        for (size_t i = 0; i < N; i++) /* mostly the upper bytes, where characters break */
            ids[i] = next_random(&seed) % 4 == 0 ? (uint32_t)(next_random(&seed) % 260)
                                                 : (uint32_t)(0x80 + next_random(&seed) % 0x80);
        detok_t live = {0};
        buffer_t text = {0};
        for (size_t n = 1; n <= N; n++) {
            assert_int_equal(detok_push(&live, tokenizer, ids[n - 1], &text), STATUS_OK);
            assert_int_equal(utf8_valid_prefix(text.data, text.size), text.size);
            detok_t replay = {0};
            buffer_t again = {0}, whole = {0};
            for (size_t i = 0; i < n; i++)
                assert_int_equal(detok_push(&replay, tokenizer, ids[i], &again), STATUS_OK);
            assert_memory_equal(&replay, &live, sizeof live);
            assert_string_equal(buffer_text(&again), buffer_text(&text));
            detok_finish(&replay, &again);
            lossy_text(tokenizer, ids, n, &whole);
            assert_int_equal(again.size, whole.size);
            assert_memory_equal(again.data, whole.data, whole.size);
            buffer_release(&again);
            buffer_release(&whole);
        }
        buffer_release(&text);
    }
    tokenizer_release(tokenizer);
}

static void test_broken_bytes_become_one_replacement_a_maximal_part(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t n_replacements;
    } cases[] = {
        /* Unicode, table 3-8 and its neighbours. */
        {"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82", 8}, {"\xED\xA0\x80", 3}, {"\xF4\x91\x92\x93", 4},
        {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF", 4}, {"\xFF\xFE", 2},       {"\xE2\x82", 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        buffer_t text = {0};
        const uint8_t *bytes = (const uint8_t *)cases[i].bytes;
        (void)utf8_append_lossy(&text, bytes, strlen(cases[i].bytes), true);
        assert_int_equal(text.size, 3 * cases[i].n_replacements);
        for (size_t at = 0; at < text.size; at += 3)
            assert_memory_equal(text.data + at, "\xEF\xBF\xBD", 3);
        buffer_release(&text);
    }
}

static void test_every_character_survives_encode_and_decode(void **state)
{
    (void)state;
    for (uint32_t code = 0; code <= 0x10FFFF; code++) {
        if (code >= 0xD800 && code <= 0xDFFF)
            continue;
        uint8_t bytes[UNICODE_UTF8_MAX];
        size_t n = utf8_encode(code, bytes), length;
        assert_true(utf8_decode(bytes, &length) == code && length == n);
        assert_int_equal(utf8_next(bytes, n, &length), UTF8_COMPLETE);
        assert_int_equal(utf8_valid_prefix(bytes, n), n);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_character_split_over_tokens_is_held_until_it_is_whole),
        cmocka_unit_test(test_an_id_out_of_range_changes_nothing),
        cmocka_unit_test(test_a_skipped_special_token_does_not_break_a_character),
        cmocka_unit_test(test_a_replayed_state_equals_the_live_one_at_every_id),
        cmocka_unit_test(test_broken_bytes_become_one_replacement_a_maximal_part),
        cmocka_unit_test(test_every_character_survives_encode_and_decode),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
