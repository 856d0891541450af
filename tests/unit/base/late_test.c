/* Libraries opened late: what is there can be called, what is not is named, and programs that have no
 * use for the large ones do not load them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/late.h"

typedef struct {
    __typeof__(strlen) *strlen_late;
    __typeof__(abs) *abs_late;
} calls_t;

static void test_functions_of_an_opened_library_are_called(void **state)
{
    (void)state;
    static const char *const files[] = {"libm.so.6", "libc.so.6", NULL};
    static const char *const names[] = {"strlen", "abs"};
    calls_t calls = {0};
    late_library_t library = {.files = files, .names = names, .n = 2, .calls = &calls};
    assert_int_equal(late_open(&library), STATUS_OK);
    assert_int_equal(calls.strlen_late("shoal"), 5);
    assert_int_equal(calls.abs_late(-7), 7);
    calls.abs_late = NULL;
    assert_int_equal(late_open(&library), STATUS_OK);
    assert_null(calls.abs_late); /* it was done before */
}

static void test_what_is_not_there_is_named(void **state)
{
    (void)state;
    static const char *const none[] = {"libshoal-is-not-there.so.1", NULL};
    static const char *const files[] = {"libc.so.6", NULL};
    static const char *const names[] = {"strlen", "shoal_is_no_function_of_libc"};
    calls_t calls = {0};
    late_library_t library = {.files = none, .names = names, .n = 2, .calls = &calls};
    assert_int_equal(late_open(&library), STATUS_UNSUPPORTED);
    assert_non_null(strstr(status_text(), none[0]));
    library.files = files;
    assert_int_equal(late_open(&library), STATUS_UNSUPPORTED);
    assert_non_null(strstr(status_text(), "libc.so.6 has no shoal_is_no_function_of_libc"));
    assert_false(library.is_open);
}

/* The dynamic loader, asked what it would load. */
static void check_loads_late(const char *program)
{
    char command[512], line[512];
    snprintf(command, sizeof command, "LD_TRACE_LOADED_OBJECTS=1 %s/%s", SHOAL_BIN_DIR, program);
    FILE *told = popen(command, "r");
    assert_non_null(told);
    unsigned n = 0;
    for (; fgets(line, sizeof line, told) != NULL; n++) {
        static const char *const late[] = {"libgrpc", "libabsl", "libucp", "libucs", "libssl"};
        for (size_t i = 0; i < sizeof late / sizeof *late; i++)
            if (strstr(line, late[i]) != NULL)
                fail_msg("%s loads %s before its first line", program, line);
    }
    assert_int_equal(pclose(told), 0);
    assert_true(n > 2 && n < 24);
}

static void test_programs_start_without_the_large_libraries(void **state)
{
    (void)state;
    check_loads_late("shoal-worker");
    check_loads_late("shoal");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_functions_of_an_opened_library_are_called),
        cmocka_unit_test(test_what_is_not_there_is_named),
        cmocka_unit_test(test_programs_start_without_the_large_libraries),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
