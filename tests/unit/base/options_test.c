/* The option table: values, units, ranges, where a value comes from, and the words of errors. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/options.h"

static bool loud, given;
static const char *name;
static int64_t count, wait_ms;
static double heat;

static const char *group;

static const option_t table[] = {
    {"loud", OPTION_FLAG, &loud, "false", NULL, "be loud"},
    {"name", OPTION_TEXT, &name, "nobody", "NAME", "who", .given = &given},
    {"count", OPTION_INTEGER, &count, "3", "N", "how many", 1, 100000},
    {"wait-ms", OPTION_DURATION_MS, &wait_ms, "2s", "TIME", "how long", 0, 3600000},
    {"heat", OPTION_REAL, &heat, "1", "T", "how hot", 0, 2},
    {"group", OPTION_TEXT, &group, NULL, "NAME,…", "whose", .environment = "SHOAL_TEAM"},
    {NULL},
};

static const char *words[4];
static size_t n_words;
static bool help;

/* Reads a NULL-ended list of arguments after the program's name. */
static status_t read_words(const char *first, ...)
{
    static char copies[16][64];
    char *argv[17] = {copies[0]};
    int argc = 1;
    strcpy(copies[0], "program");
    va_list rest;
    va_start(rest, first);
    for (const char *word = first; word != NULL; word = va_arg(rest, const char *)) {
        argv[argc] = copies[argc];
        strncpy(copies[argc], word, sizeof copies[0] - 1);
        argc++;
    }
    va_end(rest);
    return options_read(table, argc, argv, words, 4, &n_words, &help);
}

static void check_error(status_t status, const char *text)
{
    assert_int_equal(status, STATUS_INVALID);
    if (strstr(status_text(), text) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", status_text(), text);
}

static void test_defaults_hold_when_nothing_is_typed(void **state)
{
    (void)state;
    assert_int_equal(read_words(NULL), STATUS_OK);
    assert_false(loud || given || help);
    assert_string_equal(name, "nobody");
    assert_true(count == 3 && wait_ms == 2000 && heat == 1);
    assert_int_equal(n_words, 0);
}

static void test_typed_values_win_in_both_spellings(void **state)
{
    (void)state;
    assert_int_equal(read_words("--count", "7", "--name=ann", "--loud", "file", "--heat=0.5",
                                "--wait-ms", "1m", "-", NULL), STATUS_OK);
    assert_true(loud && given && count == 7 && heat == 0.5 && wait_ms == 60000);
    assert_string_equal(name, "ann");
    assert_int_equal(n_words, 2);
    assert_string_equal(words[0], "file");
    assert_string_equal(words[1], "-"); /* standard input is a word */
}

static void test_after_two_dashes_everything_is_a_word(void **state)
{
    (void)state;
    assert_int_equal(read_words("--", "--count", "--help", NULL), STATUS_OK);
    assert_int_equal(n_words, 2);
    assert_string_equal(words[0], "--count");
    assert_false(help);
    assert_int_equal(count, 3);
}

static void test_the_environment_wins_over_the_default_and_loses_to_the_line(void **state)
{
    (void)state;
    setenv("SHOAL_WAIT_MS", "30s", 1);
    setenv("SHOAL_COUNT", "9", 1);
    assert_int_equal(read_words("--count", "4", NULL), STATUS_OK);
    assert_int_equal(wait_ms, 30000);
    assert_int_equal(count, 4);
    setenv("SHOAL_COUNT", "nine", 1);
    check_error(read_words(NULL), "environment SHOAL_COUNT: --count: \"nine\"");
    unsetenv("SHOAL_COUNT");
    unsetenv("SHOAL_WAIT_MS");
}

static void test_an_option_is_read_from_the_variable_that_its_row_names_and_no_other(void **state)
{
    (void)state;
    group = NULL;
    setenv("SHOAL_GROUP", "of another command", 1);
    assert_int_equal(read_words(NULL), STATUS_OK);
    assert_null(group);
    setenv("SHOAL_TEAM", "red", 1);
    assert_int_equal(read_words(NULL), STATUS_OK);
    assert_string_equal(group, "red");
    unsetenv("SHOAL_GROUP");
    unsetenv("SHOAL_TEAM");
}

static void test_numbers_take_units(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int64_t value;
    } rows[] = {
        {"0", 0},        {"-5", -5},          {"4k", 4000},   {"4K", 4096},
        {"2m", 2000000}, {"2M", 2097152},     {"1g", 1000000000}, {"1G", 1073741824},
        {"1.5K", 1536},  {"1e3", 1000},       {"9223372036854775807", INT64_MAX},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int64_t found = 77;
        assert_int_equal(options_parse_integer("x", rows[i].text, &found), STATUS_OK);
        assert_true(found == rows[i].value);
    }
    static const char *const wrong[] = {"", "x", "4KB", "1.5", "4 ", "nan", "inf", "1e300", "K"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        int64_t found = 77;
        check_error(options_parse_integer("x", wrong[i], &found), "is no whole number");
        assert_int_equal(found, 77);
    }
}

static void test_durations_need_a_unit(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int64_t ms;
    } rows[] = {{"500ms", 500}, {"2s", 2000}, {"1.5s", 1500}, {"5m", 300000},
                {"1h", 3600000}, {"1d", 86400000}, {"0", 0}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int64_t found = 77;
        assert_int_equal(options_parse_duration_ms("x", rows[i].text, &found), STATUS_OK);
        assert_true(found == rows[i].ms);
    }
    static const char *const wrong[] = {"", "5", "-1s", "5 s", "1w", "s", "nan", "1e300h"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        int64_t found = 77;
        check_error(options_parse_duration_ms("x", wrong[i], &found), "is no duration");
        assert_int_equal(found, 77);
    }
}

static void test_both_ends_of_a_range_are_in_it(void **state)
{
    (void)state;
    assert_int_equal(read_words("--count", "1", "--heat", "2", NULL), STATUS_OK);
    assert_int_equal(read_words("--count", "100000", "--heat", "0", NULL), STATUS_OK);
    check_error(read_words("--count", "0", NULL), "--count: 0 is outside 1 to 100000");
    check_error(read_words("--count", "100001", NULL), "outside");
    check_error(read_words("--heat", "2.5", NULL), "--heat: 2.5 is outside 0 to 2");
    check_error(read_words("--heat", "nan", NULL), "is no number");
    check_error(read_words("--wait-ms", "2h", NULL), "--wait-ms: 2h is outside");
}

static void test_errors_name_the_option_and_what_would_be_right(void **state)
{
    (void)state;
    check_error(read_words("--coumt", "3", NULL), "unknown option --coumt; --help");
    check_error(read_words("--coumt=3", NULL), "unknown option --coumt;");
    check_error(read_words("--count", NULL), "--count needs a value N");
    check_error(read_words("--loud=maybe", NULL), "neither true nor false");
    check_error(read_words("a", "b", "c", "d", "e", NULL), "unexpected word \"e\"");
}

static void test_help_is_asked_for_before_anything_is_judged(void **state)
{
    (void)state;
    assert_int_equal(read_words("--count", "wrong", "--help", NULL), STATUS_OK);
    assert_true(help);
}

/* What options_print_help writes; standard output is a file meanwhile. */
static void read_help(const options_help_t *about, char *text, size_t size)
{
    fflush(stdout);
    int kept = dup(STDOUT_FILENO);
    FILE *file = tmpfile();
    assert_non_null(file);
    dup2(fileno(file), STDOUT_FILENO);
    options_print_help(about);
    fflush(stdout);
    dup2(kept, STDOUT_FILENO);
    close(kept);
    rewind(file);
    text[fread(text, 1, size - 1, file)] = 0;
    fclose(file);
}

static void test_help_is_aligned_by_characters_and_indents_every_line_of_the_example(void **state)
{
    (void)state;
    const options_help_t about = {"program", "About.", "first\nsecond", table};
    char text[2048];
    read_help(&about, text, sizeof text);
    static const char *const lines[] = {
        "\n  --heat T                     how hot [1]\n",
        "\n  --group NAME,…               whose (environment: SHOAL_TEAM)\n",
        "\nEvery option can be given as SHOAL_<OPTION> in the environment: --loud as SHOAL_LOUD.\n",
        "\nExample:\n  first\n  second\n",
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        if (strstr(text, lines[i]) == NULL)
            fail_msg("no \"%s\" in \"%s\"", lines[i], text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults_hold_when_nothing_is_typed),
        cmocka_unit_test(test_typed_values_win_in_both_spellings),
        cmocka_unit_test(test_after_two_dashes_everything_is_a_word),
        cmocka_unit_test(test_the_environment_wins_over_the_default_and_loses_to_the_line),
        cmocka_unit_test(test_an_option_is_read_from_the_variable_that_its_row_names_and_no_other),
        cmocka_unit_test(test_numbers_take_units),
        cmocka_unit_test(test_durations_need_a_unit),
        cmocka_unit_test(test_both_ends_of_a_range_are_in_it),
        cmocka_unit_test(test_errors_name_the_option_and_what_would_be_right),
        cmocka_unit_test(test_help_is_asked_for_before_anything_is_judged),
        cmocka_unit_test(
            test_help_is_aligned_by_characters_and_indents_every_line_of_the_example),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
