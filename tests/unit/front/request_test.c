/* What clients may ask for: each field's range, both spellings of a job line, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "coordinator/request.h"

static status_t read_line(const char *line, request_t *out, arena_t *arena)
{
    return request_from_line((const uint8_t *)line, strlen(line), arena, out);
}

static void test_both_spellings_of_a_line_become_the_same_request(void **state)
{
    (void)state;
    arena_t arena = {0};
    request_t a, b;
    assert_int_equal(read_line("{\"custom_id\":\"x\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],"
                               "\"max_tokens\":5,\"temperature\":0.5,\"stop\":\"a\"}", &a, &arena), STATUS_OK);
    assert_int_equal(read_line("{\"custom_id\":\"x\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\","
                               "\"body\":{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],"
                               "\"max_tokens\":5,\"temperature\":0.5,\"stop\":[\"a\"]}}", &b, &arena), STATUS_OK);
    assert_string_equal(a.custom_id, b.custom_id);
    assert_int_equal(a.kind, REQUEST_CHAT);
    assert_true(json_equal(a.messages, b.messages));
    assert_int_equal(a.sampling.max_tokens, 5);
    assert_int_equal(b.sampling.max_tokens, 5);
    assert_true(a.sampling.temperature == 0.5f && b.sampling.temperature == 0.5f);
    assert_string_equal(a.sampling.stop[0], b.sampling.stop[0]);
    assert_true(a.sampling.top_p == 1.0f && a.sampling.repetition_penalty == 1.0f);
    assert_false(a.has_seed);
    request_release(&a);
    request_release(&b);
    arena_release(&arena);
}

static void test_a_wrong_line_is_refused_naming_what_is_wrong(void **state)
{
    (void)state;
    static const struct { const char *line, *word; } cases[] = {
        {"", "JSON"}, {"{", "JSON"}, {"[]", "object"}, {"{}", "prompt"}, {"{\"prompt\":3}", "prompt"},
        {"{\"prompt\":\"\"}", "prompt"}, {"{\"prompt\":[]}", "prompt"},
        {"{\"prompt\":[1.5]}", "prompt"}, {"{\"prompt\":[1,-1]}", "prompt"}, {"{\"prompt\":[4294967296]}", "prompt"},
        {"{\"prompt\":[1],\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}", "exactly one"},
        {"{\"prompt\":\"a\",\"prompt\":\"b\"}", "JSON"},
        {"{\"prompt\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}", "exactly one"},
        {"{\"prompt\":\"a\",\"colour\":1}", "colour"}, {"{\"prompt\":\"a\",\"temperature\":9}", "temperature"},
        {"{\"prompt\":\"a\",\"temperature\":\"hot\"}", "temperature"}, {"{\"prompt\":\"a\",\"max_tokens\":0}", "max_tokens"},
        {"{\"prompt\":\"a\",\"max_tokens\":-1}", "max_tokens"}, {"{\"prompt\":\"a\",\"max_tokens\":1.5}", "max_tokens"},
        {"{\"prompt\":\"a\",\"top_p\":0}", "top_p"}, {"{\"prompt\":\"a\",\"min_p\":1.01}", "min_p"},
        {"{\"prompt\":\"a\",\"seed\":-1}", "seed"}, {"{\"prompt\":\"a\",\"stop\":\"\"}", "stop"},
        {"{\"prompt\":\"a\",\"stop\":[1]}", "stop"}, {"{\"prompt\":\"a\",\"n\":2}", "n"},
        {"{\"prompt\":\"a\",\"stream\":true}", "stream"}, {"{\"prompt\":\"a\",\"logit_bias\":{\"x\":1}}", "logit_bias"},
        {"{\"prompt\":\"a\",\"logit_bias\":{\"1\":101}}", "logit_bias"}, {"{\"messages\":[]}", "messages"},
        {"{\"messages\":[{\"role\":\"user\"}]}", "content"}, {"{\"custom_id\":7,\"prompt\":\"a\"}", "custom_id"},
        {"{\"url\":\"/v1/embeddings\",\"method\":\"POST\",\"body\":{}}", "url"},
        {"{\"url\":\"/v1/completions\",\"method\":\"GET\",\"body\":{\"prompt\":\"a\"}}", "method"},
        {"{\"url\":\"/v1/completions\",\"method\":\"POST\",\"body\":{\"messages\":[{\"role\":\"u\",\"content\":\"\"}]}}", "prompt"},
        {"{\"url\":\"/v1/completions\",\"method\":\"POST\",\"body\":{\"prompt\":\"a\"},\"extra\":1}", "extra"},
        {"{\"prompt\":\"\\u0000\"}", "JSON"}, {"{\"prompt\":\"\\ud800\"}", "JSON"}, {"{\"prompt\":\"a\"} x", "JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        arena_t arena = {0};
        request_t request;
        if (read_line(cases[i].line, &request, &arena) != STATUS_INVALID)
            fail_msg("taken: %s", cases[i].line);
        if (strstr(status_text(), cases[i].word) == NULL)
            fail_msg("%s: \"%s\" does not name %s", cases[i].line, status_text(), cases[i].word);
        arena_release(&arena);
    }
}

static void test_a_line_of_deep_nesting_or_great_length_is_refused(void **state)
{
    (void)state;
    size_t n = 1 << 20;
    char *line = mem_new(n + 2, 1);
    memset(line, '[', n);
    arena_t arena = {0};
    request_t request;
    assert_int_equal(request_from_line((uint8_t *)line, n, &arena, &request), STATUS_INVALID);
    assert_int_equal(request_from_line((uint8_t *)line, n + 1, &arena, &request), STATUS_INVALID);
    free(line);
    arena_release(&arena);
}

static void test_a_seed_is_a_number_or_its_digits(void **state)
{
    (void)state;
    static const struct { const char *line; uint64_t seed; } good[] = {
        {"{\"prompt\":\"a\",\"seed\":9007199254740991}", 9007199254740991u},
        {"{\"prompt\":\"a\",\"seed\":\"0\"}", 0},
        {"{\"prompt\":\"a\",\"seed\":\"18446744073709551615\"}", UINT64_MAX},
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        arena_t arena = {0};
        request_t request;
        assert_int_equal(read_line(good[i].line, &request, &arena), STATUS_OK);
        assert_true(request.has_seed && request.sampling.seed == good[i].seed);
        request_release(&request);
        arena_release(&arena);
    }
    static const char *const bad[] = {
        "\"\"", "\"-1\"", "\" 1\"", "\"1 \"", "\"1x\"",
        "\"18446744073709551616\"", "1.5", "true"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char line[80];
        snprintf(line, sizeof line, "{\"prompt\":\"a\",\"seed\":%s}", bad[i]);
        arena_t arena = {0};
        request_t request;
        assert_int_equal(read_line(line, &request, &arena), STATUS_INVALID);
        assert_non_null(strstr(status_text(), "seed"));
        arena_release(&arena);
    }
}

static void test_a_prompt_may_be_token_ids_which_must_be_in_the_vocabulary(void **state)
{
    (void)state;
    arena_t arena = {0};
    request_t request;
    assert_int_equal(read_line("{\"prompt\":[0,7,4294967295]}", &request, &arena), STATUS_OK);
    assert_int_equal(request.kind, REQUEST_IDS);
    assert_int_equal(request.n_ids, 3);
    assert_int_equal(request.ids[1], 7);
    assert_int_equal(request_fit(&request, 3, UINT32_MAX, 100), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "token_ids"));
    request_release(&request);
    assert_int_equal(read_line("{\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{\"prompt\":[9]}}",
                               &request, &arena), STATUS_OK);
    assert_int_equal(request_fit(&request, 1, 10, 100), STATUS_OK);
    request_release(&request);
    arena_release(&arena);
}

static void test_every_truncation_of_a_line_is_refused(void **state)
{
    (void)state;
    static const char line[] = "{\"custom_id\":\"x\",\"prompt\":\"h\\u00e9\",\"stop\":[\"a\"],\"seed\":4}";
    for (size_t n = 0; n + 1 < sizeof line; n++) {
        arena_t arena = {0};
        request_t request;
        assert_int_equal(request_from_line((const uint8_t *)line, n, &arena, &request), STATUS_INVALID);
        arena_release(&arena);
    }
}

static void test_numbers_outside_their_range_are_refused_not_clamped(void **state)
{
    (void)state;
    Shoal__V1__Sampling sampling = SHOAL__V1__SAMPLING__INIT;
    bool has_seed;
    sampling.has_temperature_case = SHOAL__V1__SAMPLING__HAS_TEMPERATURE_TEMPERATURE;
    static const float bad[] = {-0.1f, 2.1f, NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < 5; i++) {
        sampling.temperature = bad[i];
        assert_int_equal(request_check_sampling(&sampling, &has_seed), STATUS_INVALID);
    }
    sampling.temperature = 2;
    assert_int_equal(request_check_sampling(&sampling, &has_seed), STATUS_OK);
}

static void test_prompt_and_answer_must_fit_the_context(void **state)
{
    (void)state;
    arena_t arena = {0};
    request_t request;
    assert_int_equal(read_line("{\"prompt\":\"a\"}", &request, &arena), STATUS_OK);
    assert_int_equal(request_fit(&request, 100, 1000, 100), STATUS_INVALID);
    assert_int_equal(request_fit(&request, 90, 1000, 100), STATUS_OK);
    assert_int_equal(request.sampling.max_tokens, 10);
    assert_int_equal(read_line("{\"prompt\":\"a\",\"max_tokens\":11}", &request, &arena), STATUS_OK);
    assert_int_equal(request_fit(&request, 90, 1000, 100), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "at most 10"));
    assert_int_equal(read_line("{\"prompt\":\"a\",\"stop_ids\":[1000]}", &request, &arena), STATUS_OK);
    assert_int_equal(request_fit(&request, 1, 1000, 100), STATUS_INVALID);
    arena_release(&arena);
}

static void test_names_must_be_utf8_of_bounded_length(void **state)
{
    (void)state;
    assert_int_equal(request_check_text("x", "h\xc3\xa9", 10), STATUS_OK);
    static const char *const bad[] = {"\xff", "\xc3", "\xed\xa0\x80", "\xc0\x80", "\xf4\x90\x80\x80", "\xe0\x80\x80"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(request_check_text("x", bad[i], 10), STATUS_INVALID);
    assert_int_equal(request_check_text("x", "12345678901", 10), STATUS_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_both_spellings_of_a_line_become_the_same_request),
        cmocka_unit_test(test_a_wrong_line_is_refused_naming_what_is_wrong),
        cmocka_unit_test(test_a_line_of_deep_nesting_or_great_length_is_refused),
        cmocka_unit_test(test_a_seed_is_a_number_or_its_digits),
        cmocka_unit_test(test_a_prompt_may_be_token_ids_which_must_be_in_the_vocabulary),
        cmocka_unit_test(test_every_truncation_of_a_line_is_refused),
        cmocka_unit_test(test_numbers_outside_their_range_are_refused_not_clamped),
        cmocka_unit_test(test_prompt_and_answer_must_fit_the_context),
        cmocka_unit_test(test_names_must_be_utf8_of_bounded_length),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
