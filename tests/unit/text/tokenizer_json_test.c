/* tokenizer.json: the malformed files with their expected errors, hostile texts, the kinds of model
 * on vocabularies small enough to reckon by hand, and streams. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/memory.h"
#include "common/model/detok.h"
#include "support.h"

/* MODEL stands for the model's members; the rest of the file is as usual. */
#define FILE_OF(steps, added, model)                                                               \
    "{\"added_tokens\":[" added "]," steps "\"model\":{" model "}}"
#define UNIGRAM_MODEL                                                                              \
    "\"type\":\"Unigram\",\"unk_id\":0,\"byte_fallback\":false,\"vocab\":[[\"<unk>\",0],"          \
    "[\"<s>\",0],[\"\xE2\x96\x81\",-3],[\"a\",-2],[\"b\",-2.5],[\"ab\",-2],[\"aba\",-9]]"
#define UNIGRAM_STEPS                                                                              \
    "\"pre_tokenizer\":{\"type\":\"Metaspace\"},\"decoder\":{\"type\":\"Metaspace\"},"
#define SPECIAL(id, text) "{\"id\":" #id ",\"content\":\"" text "\",\"special\":true}"

static status_t open_text(const char *text, tokenizer_t **own_out)
{
    tokenizer_text_t json = {text, strlen(text)};
    return tokenizer_from_json("test", &json, NULL, NULL, own_out);
}

static tokenizer_t *must_open(const char *text)
{
    tokenizer_t *tokenizer = NULL;
    if (open_text(text, &tokenizer) != STATUS_OK)
        fail_msg("%s", status_text());
    return tokenizer;
}

static void assert_ids(const tokenizer_t *tokenizer, const char *text, tokenize_mode_t mode,
                       const char *wanted)
{
    token_ids_t ids = {0};
    buffer_t out = {0};
    if (tokenizer_encode(tokenizer, text, strlen(text), mode, 1000, &ids) != STATUS_OK)
        fail_msg("%s", status_text());
    for (size_t i = 0; i < ids.n; i++)
        buffer_format(&out, i == 0 ? "%u" : " %u", ids.ids[i]);
    assert_string_equal(buffer_text(&out), wanted);
    token_ids_release(&ids);
    buffer_release(&out);
}

static void test_every_malformed_file_has_its_error(void **state)
{
    (void)state;
    size_t n, n_cases = 0;
    char *list = support_read("tokenizers/malformed/expected.txt", &n), *rest = list, *line;
    while ((line = strsep(&rest, "\n")) != NULL) {
        if (*line == 0 || *line == '#')
            continue;
        char *name = strsep(&line, "\t"), *wanted = strsep(&line, "\t"), *words = line;
        char *path = mem_format("tokenizers/malformed/%s.json", name);
        size_t size;
        char *text = support_read(path, &size);
        tokenizer_text_t json = {text == NULL ? "" : text, size};
        tokenizer_t *tokenizer = NULL;
        status_t status = tokenizer_from_json(name, &json, NULL, NULL, &tokenizer);
        if (strcmp(status_name(status), wanted) != 0 && !(status == STATUS_OK && *words == 0))
            fail_msg("%s gives %s (%s) and should give %s", name, status_name(status),
                     status_text(), wanted);
        if (status != STATUS_OK && strstr(status_text(), words) == NULL)
            fail_msg("%s: the error \"%s\" does not say \"%s\"", name, status_text(), words);
        if (status != STATUS_OK && strstr(status_text(), name) == NULL)
            fail_msg("the error \"%s\" does not name %s", status_text(), name);
        tokenizer_release(tokenizer);
        free(text);
        free(path);
        n_cases++;
    }
    print_message("%zu malformed files\n", n_cases);
    assert_true(n_cases >= 70);
    free(list);
}

static void test_sizes_beyond_the_limits_are_refused(void **state)
{
    (void)state;
    tokenizer_t *tokenizer = NULL;
    buffer_t text = {0};
    buffer_append_text(&text, "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[");
    for (size_t i = 0; i < 10000000; i++)
        buffer_append(&text, "0,", 2); /* ten million */
    buffer_append_text(&text, "0]}}");
    assert_int_equal(open_text(buffer_text(&text), &tokenizer), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "values"));
    buffer_clear(&text);
    buffer_append_text(&text, "{\"model\":{\"type\":\"BPE\",\"merges\":[],\"vocab\":{\"");
    for (size_t i = 0; i < 1 << 20; i++)
        buffer_append(&text, "x", 1);
    buffer_append_text(&text, "\":0}}}");
    assert_int_equal(open_text(buffer_text(&text), &tokenizer), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "token 0 has 1048576 bytes"));
    buffer_release(&text);
    assert_null(tokenizer);
}

static void test_unigram_takes_the_best_sum_of_scores(void **state)
{
    (void)state;
    tokenizer_t *tokenizer = must_open(FILE_OF(UNIGRAM_STEPS, SPECIAL(1, "<s>"), UNIGRAM_MODEL));
    /* "ab" + "a" is -4, "aba" is -9, "a" + "b" + "a" -6.5. */
    assert_ids(tokenizer, "aba", TOKENIZE_PLAIN, "2 5 3");
    assert_ids(tokenizer, "zz ab", TOKENIZE_PLAIN, "2 0 2 5"); /* unknown neighbours are one */
    assert_ids(tokenizer, "a<s>b", TOKENIZE_SPECIAL, "2 3 1 2 4");
    /* The piece "<s>" has the best score of all, and still ordinary text never becomes it. */
    assert_ids(tokenizer, "a<s>b", TOKENIZE_PLAIN, "2 3 0 4");
    tokenizer_release(tokenizer);
}

static void test_special_tokens_never_come_out_of_plain_text(void **state)
{
    (void)state;
    tokenizer_t *bpe = must_open(FILE_OF(
        "", SPECIAL(4, "<s>") "," SPECIAL(0, "x"),
        "\"type\":\"BPE\",\"ignore_merges\":true,\"vocab\":{\"x\":0,\"<\":1,\"s\":2,\">\":3,"
        "\"<s>\":4,\"<s\":5},\"merges\":[[\"<\",\"s\"],[\"<s\",\">\"]]"));
    assert_ids(bpe, "<s>", TOKENIZE_SPECIAL, "4");
    token_ids_t ids = {0};
    static const uint8_t marks[] = {1, 1, 1, 0, 1, 1};
    assert_int_equal(tokenizer_encode_marked(bpe, "<s><s>", marks, 6, 100, &ids), STATUS_OK);
    assert_int_equal(ids.ids[0], 4);
    token_ids_release(&ids);
    assert_ids(bpe, "x", TOKENIZE_PLAIN, ""); /* its only token is special: left out */
    tokenizer_t *words = must_open(FILE_OF(
        "\"pre_tokenizer\":{\"type\":\"WhitespaceSplit\"},\"decoder\":{\"type\":\"WordPiece\","
        "\"prefix\":\"##\"},", SPECIAL(0, "[UNK]") "," SPECIAL(1, "[CLS]"),
        "\"type\":\"WordPiece\",\"unk_token\":\"[UNK]\",\"continuing_subword_prefix\":\"##\","
        "\"vocab\":{\"[UNK]\":0,\"[CLS]\":1,\"un\":2,\"##do\":3,\"##ing\":4}"));
    assert_ids(words, "undoing und [CLS]", TOKENIZE_PLAIN, "2 3 4 0 0");
    assert_ids(words, "undo[CLS]", TOKENIZE_SPECIAL, "2 3 1");
    tokenizer_release(words);
    tokenizer_release(bpe);
}

static void test_marks_go_with_the_text_through_the_normalizer(void **state)
{
    (void)state;
    tokenizer_t *tokenizer = must_open(FILE_OF(
        "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFKC\"},"
        "{\"type\":\"Lowercase\"}]},",
        "{\"id\":3,\"content\":\"<e>\",\"special\":true,\"normalized\":true}",
        "\"type\":\"BPE\",\"vocab\":{\"<\":0,\"e\":1,\">\":2},\"merges\":[]"));
    /* "<E>" twice behind a ligature that becomes two letters; only the second is marked. */
    static const char text[] = "\xEF\xAC\x81<E><E>";
    static const uint8_t marks[] = {1, 1, 1, 0, 1, 1, 1, 1, 1};
    token_ids_t ids = {0};
    assert_int_equal(tokenizer_encode_marked(tokenizer, text, marks, sizeof marks, 100, &ids),
                     STATUS_OK);
    static const uint32_t wanted[] = {0, 1, 2, 3};
    assert_int_equal(ids.n, 4);
    assert_memory_equal(ids.ids, wanted, sizeof wanted);
    token_ids_release(&ids);
    tokenizer_release(tokenizer);
}

static void test_missing_byte_tokens_leave_the_unknown_token(void **state)
{
    (void)state;
    tokenizer_t *tokenizer = must_open(FILE_OF(
        "", "", "\"type\":\"BPE\",\"byte_fallback\":true,\"fuse_unk\":true,\"unk_token\":\"?\","
        "\"vocab\":{\"?\":0,\"a\":1,\"<0xC3>\":2,\"<0xA9>\":3},\"merges\":[]"));
    assert_ids(tokenizer, "a\xC3\xA9 a", TOKENIZE_PLAIN, "1 2 3 0 1"); /* é has both bytes */
    assert_ids(tokenizer, "a\xC3\xA8zza", TOKENIZE_PLAIN, "1 0 1");
    tokenizer_release(tokenizer);
}

static void test_a_pattern_without_end_gives_up(void **state)
{
    (void)state;
    size_t n;
    char *json = support_read("tokenizers/malformed/k14-catastrophic.json", &n);
    tokenizer_t *tokenizer = must_open(json);
    char text[41]; /* short enough that only the limit of steps ends it, not that of the stack */
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = 0;
    token_ids_t ids = {0};
    assert_int_equal(tokenizer_encode(tokenizer, text, sizeof text - 1, TOKENIZE_PLAIN, SIZE_MAX,
                                      &ids), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "gives up"));
    assert_int_equal(ids.n, 0);
    token_ids_release(&ids);
    tokenizer_release(tokenizer);
    free(json);
}

/* --- Speed -------------------------------------------------------------------------------------*/

static uint64_t cpu_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* A megabyte of one thing, in two seconds of processor time; HF itself needs one to three. */
static void assert_fast(const tokenizer_t *tokenizer, const char *unit)
{
    buffer_t text = {0};
    while (text.size < 1 << 20)
        buffer_append_text(&text, unit);
    token_ids_t ids = {0};
    uint64_t start = cpu_ms();
    if (tokenizer_encode(tokenizer, buffer_text(&text), text.size, TOKENIZE_PLAIN, SIZE_MAX,
                         &ids) != STATUS_OK)
        fail_msg("%s", status_text());
    uint64_t took_ms = cpu_ms() - start;
    print_message("a megabyte of \"%s\": %zu ids, %llu ms\n", unit, ids.n,
                  (unsigned long long)took_ms);
#ifndef __SANITIZE_ADDRESS__
    assert_true(took_ms < 2000);
#endif
    token_ids_release(&ids);
    buffer_release(&text);
}

static void test_a_megabyte_of_anything_is_not_quadratic(void **state)
{
    (void)state;
    static const char *const units[] = {
        "a", " ", "ab", "\n", "a ", "\xCC\x81\xCC\x96" /* marks in the wrong order */,
        "\xEF\xB7\xBA" /* becomes 18 characters */, "\xF0\x9F\x98\x80", "<s", "\xE2\x96\x81"};
    static const char *const steps[] = {
        UNIGRAM_STEPS, "",
        "\"normalizer\":{\"type\":\"NFKC\"},\"pre_tokenizer\":{\"type\":\"Whitespace\"},",
        "\"normalizer\":{\"type\":\"NFC\"},"};
    static const char *const models[] = {
        UNIGRAM_MODEL,
        "\"type\":\"BPE\",\"vocab\":{\"a\":0,\"aa\":2,\"b\":3,\"ab\":4,\" \":5},"
        "\"merges\":[[\"a\",\"a\"],[\"a\",\"b\"]]",
        "\"type\":\"WordPiece\",\"unk_token\":\"?\",\"vocab\":{\"?\":0,\"a\":2}",
        "\"type\":\"BPE\",\"byte_fallback\":true,\"vocab\":{\"<0xCC>\":0},\"merges\":[]"};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        char *json = mem_format("{\"added_tokens\":[" SPECIAL(1, "<s>") "],%s\"model\":{%s}}",
                                steps[i], models[i]);
        tokenizer_t *tokenizer = must_open(json);
        print_message("model %zu\n", i);
        for (size_t j = 0; j < sizeof units / sizeof *units; j++)
            assert_fast(tokenizer, units[j]);
        tokenizer_release(tokenizer);
        free(json);
    }
}

static void test_wrong_texts_are_refused(void **state)
{
    (void)state;
    tokenizer_t *tokenizer = must_open(FILE_OF(UNIGRAM_STEPS, "", UNIGRAM_MODEL));
    static const char *const wrong[] = {"a\xED\xA0\x80", "a\xC0\x80", "a\xFF", "a\xE2\x82"};
    token_ids_t ids = {0};
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(tokenizer_encode(tokenizer, wrong[i], strlen(wrong[i]), TOKENIZE_PLAIN,
                                          100, &ids), STATUS_INVALID);
        assert_non_null(strstr(status_text(), "byte 1 "));
    }
    assert_int_equal(tokenizer_encode(tokenizer, "a\0b", 3, TOKENIZE_PLAIN, 100, &ids), STATUS_OK);
    /* The size is looked at before the text is. */
    assert_int_equal(tokenizer_encode(tokenizer, "", (size_t)INT32_MAX / 2 + 1, TOKENIZE_PLAIN, 100,
                                      &ids), STATUS_INVALID);
    buffer_t text = {0};
    static const uint32_t out_of_range[] = {UINT32_MAX, 7, 1u << 31};
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(tokenizer_decode(tokenizer, &out_of_range[i], 1, false, &text),
                         STATUS_INVALID);
    assert_int_equal(text.size, 0);
    token_ids_release(&ids);
    tokenizer_release(tokenizer);
}

/* --- Streams -----------------------------------------------------------------------------------*/

#define SPM_DECODER                                                                                \
    "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":" \
    "{\"String\":\"\xE2\x96\x81\"},\"content\":\" \"},{\"type\":\"ByteFallback\"}," \
    "{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]},"

/* <s> 0, "▁a" 1, "b" 2, then the 256 bytes from 3 on. */
static tokenizer_t *open_spm(void)
{
    buffer_t json = {0};
    buffer_append_text(&json, "{\"added_tokens\":[" SPECIAL(0, "<s>") "]," SPM_DECODER
                              "\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,\"merges\":[],"
                              "\"vocab\":{\"<s>\":0,\"\xE2\x96\x81\x61\":1,\"b\":2");
    for (unsigned byte = 0; byte < 256; byte++)
        buffer_format(&json, ",\"<0x%02X>\":%u", byte, byte + 3);
    buffer_append_text(&json, "}}}");
    tokenizer_t *tokenizer = must_open(buffer_text(&json));
    buffer_release(&json);
    return tokenizer;
}

static void assert_decodes(const tokenizer_t *tokenizer, const uint32_t *ids, size_t n,
                           const char *wanted)
{
    buffer_t text = {0};
    assert_int_equal(tokenizer_decode(tokenizer, ids, n, false, &text), STATUS_OK);
    assert_string_equal(buffer_text(&text), wanted);
    buffer_release(&text);
}

static void test_a_run_of_byte_tokens_is_text_only_as_a_whole(void **state)
{
    (void)state;
    tokenizer_t *tokenizer = open_spm();
    enum { E2 = 0xE2 + 3, X82 = 0x82 + 3, AC = 0xAC + 3, FF = 0xFF + 3 };
    assert_decodes(tokenizer, (uint32_t[]){1, E2, X82, AC, 2}, 5, "a\xE2\x82\xAC" "b");
    assert_decodes(tokenizer, (uint32_t[]){1, E2, X82, 2}, 4, "a\xEF\xBF\xBD\xEF\xBF\xBD" "b");
    assert_decodes(tokenizer, (uint32_t[]){E2, X82, AC, FF}, 4,
                   "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
    assert_decodes(tokenizer, (uint32_t[]){' ' + 3, 1, 1}, 3, " a a"); /* one space is stripped */
    size_t n;
    const uint8_t *bytes = tokenizer_bytes(tokenizer, E2, &n);
    assert_int_equal(n, 1);
    assert_int_equal(bytes[0], 0xE2);
    tokenizer_release(tokenizer);
}

static void test_a_stream_releases_what_the_whole_gives(void **state)
{
    (void)state;
    tokenizer_t *tokenizer = open_spm();
    uint64_t random = 12345;
    for (size_t round = 0; round < 300; round++) {
        uint32_t ids[400];
        size_t n = 0;
        while (n < 400) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            uint32_t pick = (uint32_t)(random >> 40);
            /* Long runs of one good character, so that the state fills, broken now and then. */
            static const uint8_t euro[] = {0xE2, 0x82, 0xAC};
            ids[n] = round % 3 == 0 ? pick % 259 : (uint32_t)euro[n % 3] + 3;
            if (pick % 97 == 0)
                ids[n] = pick / 97 % 259;
            n++;
        }
        buffer_t whole = {0}, live = {0};
        assert_int_equal(tokenizer_decode(tokenizer, ids, n, round % 2 == 0, &whole), STATUS_OK);
        detok_t detok = {.skip_special = round % 2 == 0};
        for (size_t i = 0; i < n; i++) {
            size_t before = live.size;
            assert_int_equal(detok_push(&detok, tokenizer, ids[i], &live), STATUS_OK);
            assert_true(live.size >= before);
        }
        detok_finish(&detok, &live);
        assert_int_equal(live.size, whole.size);
        assert_memory_equal(live.data, whole.data, whole.size);
        buffer_release(&whole);
        buffer_release(&live);
    }
    tokenizer_release(tokenizer);
}

static void test_the_configuration_names_ids(void **state)
{
    (void)state;
    tokenizer_t *tokenizer = NULL;
    static const char json[] = FILE_OF(UNIGRAM_STEPS, SPECIAL(1, "<s>"), UNIGRAM_MODEL);
    static const char config[] = "{\"bos_token\":{\"content\":\"<s>\"},\"eos_token\":\"b\","
                                 "\"pad_token\":\"gone\",\"add_bos_token\":true}";
    static const char generation[] = "{\"eos_token_id\":[5,4]}";
    tokenizer_text_t texts[] = {{json, strlen(json)}, {config, strlen(config)},
                                {generation, strlen(generation)}};
    assert_int_equal(tokenizer_from_json("t", &texts[0], &texts[1], &texts[2], &tokenizer),
                     STATUS_OK);
    assert_int_equal(tokenizer_bos_id(tokenizer), 1);
    assert_int_equal(tokenizer_eos_id(tokenizer), 4);
    assert_true(tokenizer_adds_bos(tokenizer));
    size_t n;
    const uint32_t *ends = tokenizer_end_ids(tokenizer, &n);
    assert_int_equal(n, 2);
    assert_int_equal(ends[0], 4);
    assert_int_equal(ends[1], 5);
    const uint32_t *prefix = tokenizer_prefix_ids(tokenizer, &n);
    assert_int_equal(n, 1);
    assert_int_equal(prefix[0], 1);
    tokenizer_release(tokenizer);
    texts[2] = (tokenizer_text_t){"{\"eos_token_id\":7}", 18};
    assert_int_equal(tokenizer_from_json("t", &texts[0], &texts[1], &texts[2], &tokenizer),
                     STATUS_INVALID);
    assert_non_null(strstr(status_text(), "eos_token_id"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_malformed_file_has_its_error),
        cmocka_unit_test(test_sizes_beyond_the_limits_are_refused),
        cmocka_unit_test(test_unigram_takes_the_best_sum_of_scores),
        cmocka_unit_test(test_special_tokens_never_come_out_of_plain_text),
        cmocka_unit_test(test_marks_go_with_the_text_through_the_normalizer),
        cmocka_unit_test(test_missing_byte_tokens_leave_the_unknown_token),
        cmocka_unit_test(test_a_pattern_without_end_gives_up),
        cmocka_unit_test(test_a_megabyte_of_anything_is_not_quadratic),
        cmocka_unit_test(test_wrong_texts_are_refused),
        cmocka_unit_test(test_a_run_of_byte_tokens_is_text_only_as_a_whole),
        cmocka_unit_test(test_a_stream_releases_what_the_whole_gives),
        cmocka_unit_test(test_the_configuration_names_ids),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
