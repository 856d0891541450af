/* Wrong vocabularies and wrong texts: each is refused with what is wrong, none crashes. */
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "support.h"

static void assert_refused(const support_vocabulary_t *vocabulary, status_t wanted,
                           const char *words)
{
    tokenizer_t *tokenizer = NULL;
    status_t status = tokenizer_create(&vocabulary->source, &tokenizer);
    assert_null(tokenizer);
    assert_int_equal(status, wanted);
    if (strstr(status_text(), words) == NULL)
        fail_msg("the error \"%s\" does not say \"%s\"", status_text(), words);
}

static tokenizer_t *create(const support_vocabulary_t *vocabulary)
{
    tokenizer_t *tokenizer = NULL;
    if (tokenizer_create(&vocabulary->source, &tokenizer) != STATUS_OK)
        fail_msg("%s", status_text());
    return tokenizer;
}

/* The ids of a text, as "1 2 3". */
static char *ids_text(const tokenizer_t *tokenizer, const char *text, tokenize_mode_t mode)
{
    token_ids_t ids = {0};
    buffer_t out = {0};
    if (tokenizer_encode(tokenizer, text, strlen(text), mode, 1000, &ids) != STATUS_OK)
        fail_msg("%s", status_text());
    for (size_t i = 0; i < ids.n; i++)
        buffer_format(&out, i == 0 ? "%u" : " %u", ids.ids[i]);
    token_ids_release(&ids);
    return out.data == NULL ? mem_strdup("") : (char *)out.data;
}

static void assert_ids(const tokenizer_t *tokenizer, const char *text, tokenize_mode_t mode,
                       const char *wanted)
{
    char *ids = ids_text(tokenizer, text, mode);
    assert_string_equal(ids, wanted);
    free(ids);
}

static void test_a_wrong_token_is_refused_by_number(void **state)
{
    (void)state;
    static support_vocabulary_t vocabulary;
    support_vocabulary(&vocabulary);
    vocabulary.source.n_tokens = 0;
    assert_refused(&vocabulary, STATUS_INVALID, "0 tokens");
    vocabulary.source.n_tokens = (size_t)TOKENIZER_TOKENS_MAX + 1;
    assert_refused(&vocabulary, STATUS_INVALID, "1048577 tokens");

    support_vocabulary(&vocabulary);
    support_add_token(&vocabulary, "", TOKEN_USER_DEFINED);
    assert_refused(&vocabulary, STATUS_INVALID, "token 256 is empty");

    support_vocabulary(&vocabulary);
    support_add_token(&vocabulary, "a", TOKEN_CONTROL);
    assert_refused(&vocabulary, STATUS_INVALID, "tokens 97 and 256 are the same text");

    support_vocabulary(&vocabulary);
    support_add_token(&vocabulary, "x\xC3", TOKEN_NORMAL);
    assert_refused(&vocabulary, STATUS_INVALID, "not UTF-8 at byte 1");

    support_vocabulary(&vocabulary);
    support_add_token(&vocabulary, "gap", (token_kind_t)9);
    assert_refused(&vocabulary, STATUS_INVALID, "token 256 has kind 9");
}

static void test_a_token_of_a_megabyte_is_refused(void **state)
{
    (void)state;
    static support_vocabulary_t vocabulary;
    support_vocabulary(&vocabulary);
    char *huge = mem_new((1 << 20) + 1, 1);
    memset(huge, 'x', 1 << 20);
    support_add_token(&vocabulary, huge, TOKEN_NORMAL);
    assert_refused(&vocabulary, STATUS_INVALID, "1048576 bytes");
    support_vocabulary(&vocabulary);
    huge[TOKENIZER_SPECIAL_BYTES_MAX + 1] = 0;
    support_add_token(&vocabulary, huge, TOKEN_CONTROL);
    assert_refused(&vocabulary, STATUS_INVALID, "at most 1024");
    free(huge);
}

static void test_a_wrong_merge_is_refused_by_rank(void **state)
{
    (void)state;
    static const struct {
        const char *merge, *words;
    } cases[] = {
        {"h z q", "two tokens and one space"}, {"hz", "two tokens and one space"},
        {" z", "two tokens and one space"},    {"h ", "two tokens and one space"},
        {"", "two tokens and one space"},      {"zz q", "left part \"zz\""},
        {"h zz", "right part \"zz\""},         {"h q", "result \"hq\""},
        {"t h", "there twice"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        static support_vocabulary_t vocabulary;
        support_vocabulary(&vocabulary);
        support_add_merge(&vocabulary, "t h", "th");
        size_t rank = vocabulary.source.n_merges++;
        vocabulary.merges[rank] = (tokenizer_text_t){cases[i].merge, strlen(cases[i].merge)};
        assert_refused(&vocabulary, STATUS_INVALID, cases[i].words);
        assert_non_null(strstr(status_text(), "merge 1"));
    }
    static support_vocabulary_t vocabulary;
    support_vocabulary(&vocabulary);
    vocabulary.source.n_merges = 10 * 1000 * 1000;
    assert_refused(&vocabulary, STATUS_INVALID, "10000000 merges");
}

static void test_a_vocabulary_without_printable_bytes_is_refused(void **state)
{
    (void)state;
    static support_vocabulary_t vocabulary;
    support_vocabulary(&vocabulary);
    vocabulary.tokens['q'] = (tokenizer_text_t){"other", 5};
    assert_refused(&vocabulary, STATUS_INVALID, "no token stands for the byte 0x71");
}

static void test_a_byte_without_a_token_is_left_out(void **state)
{
    (void)state;
    static support_vocabulary_t vocabulary;
    support_vocabulary(&vocabulary);
    vocabulary.tokens[4] = (tokenizer_text_t){"other", 5};
    tokenizer_t *tokenizer = create(&vocabulary);
    assert_ids(tokenizer, "a\x04z", TOKENIZE_PLAIN, "97 122");
    assert_ids(tokenizer, "\x04", TOKENIZE_PLAIN, "");
    tokenizer_release(tokenizer);
}

static void test_ids_named_by_the_file_must_exist(void **state)
{
    (void)state;
    static support_vocabulary_t vocabulary;
    support_vocabulary(&vocabulary);
    vocabulary.source.eos_id = 256;
    assert_refused(&vocabulary, STATUS_INVALID, "eos_token_id is 256");
    support_vocabulary(&vocabulary);
    static const uint32_t ends[] = {3, 999};
    vocabulary.source.eog_ids = ends;
    vocabulary.source.n_eog_ids = 2;
    assert_refused(&vocabulary, STATUS_INVALID, "ends a generation is 999");
    support_vocabulary(&vocabulary);
    vocabulary.source.pre = "(a+)+$";
    assert_refused(&vocabulary, STATUS_UNSUPPORTED, "pre-tokenizer \"(a+)+$\" is not known");
}

static void test_text_that_is_not_utf8_is_refused_with_its_offset(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t n;
        const char *words;
    } cases[] = {
        {"ab\xFF", 3, "byte 2 (0xFF)"},       {"\xED\xA0\x80", 3, "byte 0 (0xED)"},
        {"x\xC0\xAF", 3, "byte 1 (0xC0)"},    {"\xE0\x80\xAF", 3, "byte 0 (0xE0)"},
        {"\xF4\x90\x80\x80", 4, "byte 0 (0xF4)"}, {"caf\xC3", 4, "byte 3 (0xC3)"},
        {"\x80", 1, "byte 0 (0x80)"},
    };
    static support_vocabulary_t vocabulary;
    support_vocabulary(&vocabulary);
    tokenizer_t *tokenizer = create(&vocabulary);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        token_ids_t ids = {0};
        assert_int_equal(tokenizer_encode(tokenizer, cases[i].text, cases[i].n, TOKENIZE_PLAIN, 100,
                                          &ids), STATUS_INVALID);
        if (strstr(status_text(), cases[i].words) == NULL)
            fail_msg("the error \"%s\" does not say \"%s\"", status_text(), cases[i].words);
        token_ids_release(&ids);
    }
    token_ids_t ids = {0};
    assert_int_equal(tokenizer_encode(tokenizer, "a\0b", 3, TOKENIZE_PLAIN, 100, &ids), STATUS_OK);
    assert_int_equal(ids.n, 3); /* NUL is a byte like any other */
    assert_int_equal(ids.ids[1], 0);
    assert_int_equal(tokenizer_encode(tokenizer, "a", (1u << 30) + 1, TOKENIZE_PLAIN, 100, &ids),
                     STATUS_INVALID);
    assert_non_null(strstr(status_text(), "1073741825 bytes"));
    assert_int_equal(tokenizer_encode(tokenizer, NULL, 0, TOKENIZE_PLAIN, 100, &ids), STATUS_OK);
    assert_int_equal(ids.n, 3);
    token_ids_release(&ids);
    tokenizer_release(tokenizer);
}

static void test_ids_out_of_range_are_refused_with_their_place(void **state)
{
    (void)state;
    static support_vocabulary_t vocabulary;
    support_vocabulary(&vocabulary);
    tokenizer_t *tokenizer = create(&vocabulary);
    static const uint32_t wrong[] = {256, 1u << 31, UINT32_MAX};
    for (size_t i = 0; i < 3; i++) {
        uint32_t ids[] = {'o', 'k', wrong[i]};
        buffer_t text = {0};
        assert_int_equal(tokenizer_decode(tokenizer, ids, 3, false, &text), STATUS_INVALID);
        assert_non_null(strstr(status_text(), "ids[2]"));
        assert_int_equal(text.size, 0);
        buffer_release(&text);
    }
    tokenizer_release(tokenizer);
}

static void test_the_lowest_rank_merges_first_and_the_leftmost_of_equals(void **state)
{
    (void)state;
    static support_vocabulary_t vocabulary;
    support_vocabulary(&vocabulary);
    support_add_merge(&vocabulary, "b c", "bc");   /* 256 */
    support_add_merge(&vocabulary, "a b", "ab");   /* 257 */
    support_add_merge(&vocabulary, "a a", "aa");   /* 258 */
    support_add_merge(&vocabulary, "aa aa", "aaaa"); /* 259 */
    support_add_merge(&vocabulary, "bc d", "bcd"); /* 260 */
    tokenizer_t *tokenizer = create(&vocabulary);
    assert_ids(tokenizer, "abc", TOKENIZE_PLAIN, "97 256");
    assert_ids(tokenizer, "aab", TOKENIZE_PLAIN, "97 257");
    assert_ids(tokenizer, "aaa", TOKENIZE_PLAIN, "258 97");
    assert_ids(tokenizer, "aaaaaaa", TOKENIZE_PLAIN, "259 258 97");
    assert_ids(tokenizer, "abcd", TOKENIZE_PLAIN, "97 260");
    tokenizer_release(tokenizer);
}

static void test_the_longest_special_token_wins_and_only_where_allowed(void **state)
{
    (void)state;
    static support_vocabulary_t vocabulary;
    support_vocabulary(&vocabulary);
    support_add_token(&vocabulary, "<s>", TOKEN_CONTROL);        /* 256 */
    support_add_token(&vocabulary, "<s><s>", TOKEN_CONTROL);     /* 257 */
    support_add_token(&vocabulary, "<tab>", TOKEN_USER_DEFINED); /* 258 */
    support_add_token(&vocabulary, "<unused>", TOKEN_UNUSED);
    tokenizer_t *tokenizer = create(&vocabulary);
    assert_ids(tokenizer, "<s><s><s>", TOKENIZE_SPECIAL, "257 256");
    assert_ids(tokenizer, "<s", TOKENIZE_SPECIAL, "60 115");
    assert_ids(tokenizer, "<<s>", TOKENIZE_SPECIAL, "60 256");
    assert_ids(tokenizer, "<s>", TOKENIZE_PLAIN, "60 115 62");
    assert_ids(tokenizer, "<tab>", TOKENIZE_PLAIN, "258");
    assert_ids(tokenizer, "<unused>", TOKENIZE_SPECIAL, "60 117 110 117 115 101 100 62");
    /* A special token that is only partly the template's own stays text. */
    static const uint8_t marks[] = {1, 1, 1, 0, 1, 1};
    token_ids_t ids = {0};
    assert_int_equal(tokenizer_encode_marked(tokenizer, "<s><s>", marks, 6, 100, &ids), STATUS_OK);
    assert_int_equal(ids.n, 4);
    assert_int_equal(ids.ids[0], 256);
    assert_int_equal(ids.ids[1], '<');
    token_ids_release(&ids);
    tokenizer_release(tokenizer);
}

static void test_each_pre_tokenizer_cuts_as_its_pattern_says(void **state)
{
    (void)state;
    static const struct {
        const char *pre, *text, *ids; /* a merged pair shows that no cut fell between */
    } cases[] = {
        {"gpt-2", "a12", "97 256"},      {"smollm", "a12", "97 49 50"},
        {"default", "a12", "97 256"},    {"llama-bpe", "a1212", "97 49 256 50"},
        {"gpt-2", "x  y", "120 32 257"}, {"smollm", "x  1", "120 258 49"},
        {"gpt-2", "$ y", "36 257"},      {"llama-bpe", "(y", "259"},
        {"gpt-2", "(y", "40 121"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        static support_vocabulary_t vocabulary;
        support_vocabulary(&vocabulary);
        support_add_merge(&vocabulary, "1 2", "12");               /* 256 */
        support_add_merge(&vocabulary, "\xC4\xA0 y", "\xC4\xA0y"); /* 257: space and y */
        support_add_merge(&vocabulary, "\xC4\xA0 \xC4\xA0", "\xC4\xA0\xC4\xA0"); /* 258 */
        support_add_merge(&vocabulary, "( y", "(y");               /* 259 */
        if (strcmp(cases[i].ids, "97 49 256 50") == 0)
            vocabulary.merges[0] = (tokenizer_text_t){"2 1", 3},
            vocabulary.tokens[256] = (tokenizer_text_t){"21", 2};
        vocabulary.source.pre = cases[i].pre;
        tokenizer_t *tokenizer = create(&vocabulary);
        assert_ids(tokenizer, cases[i].text, TOKENIZE_PLAIN, cases[i].ids);
        tokenizer_release(tokenizer);
    }
}

static void test_a_whole_piece_beats_the_merges_only_where_the_vocabulary_says_so(void **state)
{
    (void)state;
    static support_vocabulary_t vocabulary;
    support_vocabulary(&vocabulary);
    support_add_token(&vocabulary, "word", TOKEN_NORMAL); /* no merges lead to it */
    vocabulary.source.pre = "llama-bpe";
    tokenizer_t *tokenizer = create(&vocabulary);
    assert_ids(tokenizer, "word", TOKENIZE_PLAIN, "256");
    tokenizer_release(tokenizer);
    vocabulary.source.pre = "gpt-2";
    tokenizer = create(&vocabulary);
    assert_ids(tokenizer, "word", TOKENIZE_PLAIN, "119 111 114 100");
    tokenizer_release(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_wrong_token_is_refused_by_number),
        cmocka_unit_test(test_a_token_of_a_megabyte_is_refused),
        cmocka_unit_test(test_a_wrong_merge_is_refused_by_rank),
        cmocka_unit_test(test_a_vocabulary_without_printable_bytes_is_refused),
        cmocka_unit_test(test_a_byte_without_a_token_is_left_out),
        cmocka_unit_test(test_ids_named_by_the_file_must_exist),
        cmocka_unit_test(test_text_that_is_not_utf8_is_refused_with_its_offset),
        cmocka_unit_test(test_ids_out_of_range_are_refused_with_their_place),
        cmocka_unit_test(test_the_lowest_rank_merges_first_and_the_leftmost_of_equals),
        cmocka_unit_test(test_the_longest_special_token_wins_and_only_where_allowed),
        cmocka_unit_test(test_each_pre_tokenizer_cuts_as_its_pattern_says),
        cmocka_unit_test(test_a_whole_piece_beats_the_merges_only_where_the_vocabulary_says_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
