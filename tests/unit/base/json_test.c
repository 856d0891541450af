/* JSON from outside: the limits, the words of errors and the typed getters. */
#include "common/base/json.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/buffer.h"
#undef fail
#include <cmocka.h>

static json_t *must_read(const char *text)
{
    json_t *value = NULL;
    if (json_read_object("test", text, strlen(text), NULL, &value) != STATUS_OK)
        fail_msg("%s", status_text());
    return value;
}

static void assert_refused(const char *text, size_t n, const json_limits_t *limits,
                           const char *words)
{
    json_t *value = NULL;
    assert_int_equal(json_read("doc.json", text, n, limits, &value), STATUS_INVALID);
    assert_null(value);
    assert_non_null(strstr(status_text(), "doc.json"));
    if (strstr(status_text(), words) == NULL)
        fail_msg("the error \"%s\" does not say \"%s\"", status_text(), words);
}

static void test_what_is_no_json_is_refused_with_its_line(void **state)
{
    (void)state;
    static const struct {
        const char *text, *words;
    } cases[] = {
        {"", "line 1"}, {"{", "line 1"}, {"{\"a\":1}x", "end of file expected"},
        {"{\"a\":\n01}", "line 2"}, {"[1,]", "line 1"}, {"{\"a\":1,\"a\":2}", "duplicate"},
        {"[1e999]", "overflow"}, {"[NaN]", "invalid token"}, {"[\"\\ud800\"]", "invalid Unicode"},
        {"\xEF\xBB\xBF{}", "line 1"}, {"[\"\xC3\"]", "unable to decode byte"},
        {"{\"a\\u0000\":1}", "NUL"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_refused(cases[i].text, strlen(cases[i].text), NULL, cases[i].words);
}

static void test_limits_hold_before_anything_is_built(void **state)
{
    (void)state;
    json_limits_t limits = {.bytes_max = 10, .depth_max = 2, .values_max = 4};
    assert_refused("[1,2,3,4,5]", 11, &limits, "has 11 bytes");
    assert_refused("[[[1]]]", 7, &limits, "nested deeper than 2");
    assert_refused("[1,2,3,4]", 9, &limits, "about 5 values");
    json_t *value = NULL;
    assert_int_equal(json_read("t", "[1,2,3]", 7, &limits, &value), STATUS_OK);
    json_decref(value);
    /* Brackets and commas inside strings are letters, escaped quotes do not end them. */
    assert_int_equal(json_read("t", "[\",\\\"[[,\"]", 10, &limits, &value), STATUS_OK);
    json_decref(value);
    buffer_t deep = {0};
    for (size_t i = 0; i < 100000; i++)
        buffer_append(&deep, "[", 1);
    limits = (json_limits_t){.depth_max = SIZE_MAX};
    assert_refused(buffer_text(&deep), deep.size, &limits, "nested deeper than 512");
    buffer_release(&deep);
}

static void test_getters_name_the_place_and_what_is_right(void **state)
{
    (void)state;
    json_t *value = must_read("{\"t\":\"x\",\"n\":7,"
                              "\"r\":0.5,\"b\":true,\"z\":null,\"a\":[],\"o\":{},"
                              "\"u\":\"a\\u0000b\",\"m\":-1}");
    const char *text = NULL;
    size_t n = 0;
    uint64_t number = 3;
    double real = 0;
    bool flag = false;
    const json_t *list = NULL;
    assert_int_equal(json_get_text(value, "cfg", "t", &text, NULL), STATUS_OK);
    assert_string_equal(text, "x");
    assert_int_equal(json_get_text(value, "cfg", "u", &text, &n), STATUS_OK);
    assert_int_equal(n, 3);
    assert_int_equal(json_get_text(value, "cfg", "u", &text, NULL), STATUS_INVALID);
    assert_int_equal(json_get_number(value, "cfg", "n", &real), STATUS_OK);
    assert_true(real > 6.9 && real < 7.1);
    assert_int_equal(json_get_bool(value, "cfg", "b", &flag), STATUS_OK);
    assert_true(flag);
    assert_int_equal(json_get_array(value, "cfg", "a", &list), STATUS_OK);
    assert_int_equal(json_get_object(value, "cfg", "o", &list), STATUS_OK);
    assert_int_equal(json_get_u64(value, "cfg", "n", 8, 9, &number), STATUS_INVALID);
    assert_string_equal(status_text(), "cfg: \"n\" is 7; it must be 8 to 9");
    assert_int_equal(json_get_u64(value, "cfg", "m", 0, 9, &number), STATUS_INVALID);
    assert_int_equal(json_get_u64(value, "cfg", "r", 0, 9, &number), STATUS_INVALID);
    assert_string_equal(status_text(), "cfg: \"r\" is of kind number; it must be an integer");
    assert_int_equal(json_get_text(value, "cfg", "q", &text, NULL), STATUS_INVALID);
    assert_string_equal(status_text(), "cfg has no \"q\"; it must be there as a string");
    assert_int_equal(json_may_u64(value, "cfg", "q", 0, 9, &number), STATUS_OK);
    assert_int_equal(json_may_u64(value, "cfg", "z", 0, 9, &number), STATUS_OK);
    assert_int_equal(number, 3);
    assert_int_equal(json_may_u64(value, "cfg", "t", 0, 9, &number), STATUS_INVALID);
    json_decref(value);
}

static void test_files_are_regular_and_bounded(void **state)
{
    (void)state;
    char path[] = "/tmp/shoal-json-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "{\"a\":[1]}", 9), 9);
    close(fd);
    json_t *value = NULL;
    json_limits_t limits = {.bytes_max = 8};
    assert_int_equal(json_read_file(path, &limits, &value), STATUS_INVALID);
    assert_int_equal(json_read_file(path, NULL, &value), STATUS_OK);
    assert_int_equal(json_array_size(json_object_get(value, "a")), 1);
    json_decref(value);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(json_read_file(path, NULL, &value), STATUS_NOT_FOUND);
    assert_int_equal(json_read_file("/tmp", NULL, &value), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "no regular file"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_no_json_is_refused_with_its_line),
        cmocka_unit_test(test_limits_hold_before_anything_is_built),
        cmocka_unit_test(test_getters_name_the_place_and_what_is_right),
        cmocka_unit_test(test_files_are_regular_and_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
