/* Status and its words, checked arithmetic, memory and arenas, buffers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/buffer.h"
#include "common/base/checked.h"
#include "common/base/memory.h"
#include "common/base/status.h"

/* cmocka's macro hides fail(); the parentheses reach the function. */
#define FAIL(...) (fail)(__VA_ARGS__)

/* --- status --- */

static void test_a_failure_keeps_its_code_and_words(void **state)
{
    (void)state;
    assert_int_equal(FAIL(STATUS_REFUSED, "%s has %d", "a", 7), STATUS_REFUSED);
    assert_string_equal(status_text(), "a has 7");
    assert_int_equal(fail_in(STATUS_REFUSED, "model %s", "m"), STATUS_REFUSED);
    assert_string_equal(status_text(), "model m: a has 7");
}

static void test_words_may_be_made_from_the_words_before(void **state)
{
    (void)state;
    (void)FAIL(STATUS_IO, "first");
    (void)FAIL(STATUS_IO, "%s, then %s", status_text(), "second");
    assert_string_equal(status_text(), "first, then second");
}

static void test_words_that_are_too_long_are_cut_and_end(void **state)
{
    (void)state;
    char long_text[2 * STATUS_TEXT_MAX];
    memset(long_text, 'x', sizeof long_text - 1);
    long_text[sizeof long_text - 1] = 0;
    (void)FAIL(STATUS_IO, "%s", long_text);
    assert_int_equal(strlen(status_text()), STATUS_TEXT_MAX - 1);
    (void)fail_in(STATUS_IO, "prefix");
    assert_int_equal(strlen(status_text()), STATUS_TEXT_MAX - 1);
    assert_int_equal(strncmp(status_text(), "prefix: xxx", 11), 0);
    (void)fail_in(STATUS_IO, "%s", long_text);
    assert_int_equal(strlen(status_text()), STATUS_TEXT_MAX - 1);
}

static void *fail_elsewhere(void *argument)
{
    (void)argument;
    (void)FAIL(STATUS_IO, "elsewhere");
    return NULL;
}

static void test_each_thread_has_its_own_words(void **state)
{
    (void)state;
    (void)FAIL(STATUS_IO, "here");
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, fail_elsewhere, NULL), 0);
    pthread_join(thread, NULL);
    assert_string_equal(status_text(), "here");
}

static void test_exit_codes_are_the_promised_ones(void **state)
{
    (void)state;
    assert_int_equal(status_exit_code(STATUS_OK), 0);
    assert_int_equal(status_exit_code(STATUS_INTERNAL), 1);
    assert_int_equal(status_exit_code(STATUS_INVALID), 2);
    assert_int_equal(status_exit_code(STATUS_NOT_FOUND), 3);
    assert_int_equal(status_exit_code(STATUS_REFUSED), 4);
    assert_int_equal(status_exit_code(STATUS_EXHAUSTED), 4);
    assert_int_equal(status_exit_code(STATUS_CONFLICT), 5);
    assert_int_equal(status_exit_code(STATUS_UNREACHABLE), 6);
    assert_int_equal(status_exit_code(STATUS_DEADLINE), 7);
    assert_string_equal(status_name(STATUS_POISONED), "POISONED");
    assert_string_equal(status_name((status_t)999), "UNKNOWN");
}

/* A broken invariant must end the process in a release build too. */
static void test_check_stays_on(void **state)
{
    (void)state;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        signal(SIGABRT, SIG_DFL);
        close(STDERR_FILENO);
        CHECK(child == 1);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

/* --- checked --- */

static void test_arithmetic_that_overflows_says_so_and_changes_nothing(void **state)
{
    (void)state;
    size_t size = 7;
    uint64_t wide = 7;
    assert_false(checked_add_size(SIZE_MAX, 1, &size));
    assert_false(checked_mul_size(SIZE_MAX / 2 + 1, 2, &size));
    assert_false(checked_add_u64(UINT64_MAX, 1, &wide));
    assert_false(checked_mul_u64(1ull << 32, 1ull << 32, &wide));
    assert_true(size == 7 && wide == 7);
    assert_true(checked_add_size(SIZE_MAX - 1, 1, &size) && size == SIZE_MAX);
    assert_true(checked_mul_u64((1ull << 32) - 1, 1ull << 32, &wide));
    assert_true(wide == 0xffffffff00000000);
}

/* --- memory --- */

static void test_new_memory_is_zero_and_texts_are_copies(void **state)
{
    (void)state;
    unsigned char *bytes = mem_new(100, 3);
    for (int i = 0; i < 300; i++)
        assert_int_equal(bytes[i], 0);
    free(bytes);
    free(mem_new(0, 0));
    char *text = mem_strndup("abcdef", 3);
    assert_string_equal(text, "abc");
    free(text);
    text = mem_format("%d-%s", 5, "x");
    assert_string_equal(text, "5-x");
    free(text);
}

static void test_a_growing_array_keeps_what_it_holds(void **state)
{
    (void)state;
    int *values = NULL;
    size_t capacity = 0;
    for (int i = 0; i < 1000; i++) {
        MEM_GROW(values, capacity, (size_t)i + 1);
        values[i] = i;
    }
    assert_int_equal(capacity, 1024);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(values[i], i);
    free(values);
}

static void test_an_arena_gives_zeroed_aligned_memory_that_stays(void **state)
{
    (void)state;
    arena_t arena = {0};
    unsigned char *parts[200];
    for (size_t i = 0; i < 200; i++) {
        size_t n = i * i; /* from nothing to more than half a block */
        parts[i] = arena_new(&arena, n, 1);
        assert_int_equal((uintptr_t)parts[i] % 64, 0);
        for (size_t j = 0; j < n; j++)
            assert_int_equal(parts[i][j], 0);
        memset(parts[i], (int)i, n);
    }
    for (size_t i = 0; i < 200; i++)
        for (size_t j = 0; j < i * i; j++)
            assert_int_equal(parts[i][j], i);
    assert_string_equal(arena_strndup(&arena, "abcdef", 3), "abc");
    arena_release(&arena);
    assert_null(arena.head);
}

/* The step loop allocates nothing once its arena has been as full as it gets. */
static void test_a_reset_arena_gives_its_largest_block_again_zeroed(void **state)
{
    (void)state;
    arena_t arena = {0};
    memset(arena_new(&arena, 50000, 1), 1, 50000);
    memset(arena_new(&arena, 100000, 1), 1, 100000);
    arena_reset(&arena);
    unsigned char *first = arena_new(&arena, 100000, 1);
    for (int i = 0; i < 100000; i++)
        assert_int_equal(first[i], 0);
    arena_reset(&arena);
    assert_ptr_equal(arena_new(&arena, 100000, 1), first);
    arena_release(&arena);
    arena_reset(&arena);
}

/* --- buffer --- */

static void test_a_buffer_grows_formats_and_gives_up_its_front(void **state)
{
    (void)state;
    buffer_t buffer = {0};
    assert_string_equal(buffer_text(&buffer), "");
    buffer_append(&buffer, "abc", 3);
    buffer_append(&buffer, NULL, 0);
    buffer_append_text(&buffer, "def");
    buffer_format(&buffer, "-%05d", 42);
    assert_string_equal(buffer_text(&buffer), "abcdef-00042");
    assert_int_equal(buffer.size, 12);
    buffer_consume(&buffer, 0);
    buffer_consume(&buffer, 6);
    assert_string_equal(buffer_text(&buffer), "-00042");
    buffer_consume(&buffer, 6);
    assert_int_equal(buffer.size, 0);
    assert_string_equal(buffer_text(&buffer), "");
    for (int i = 0; i < 5000; i++)
        buffer_format(&buffer, "%04d", i);
    assert_int_equal(buffer.size, 20000);
    assert_memory_equal(buffer.data + 4 * 4999, "4999", 5); /* and the NUL */
    buffer_clear(&buffer);
    assert_string_equal(buffer_text(&buffer), "");
    buffer_release(&buffer);
    assert_null(buffer.data);
    buffer_clear(&buffer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_failure_keeps_its_code_and_words),
        cmocka_unit_test(test_words_may_be_made_from_the_words_before),
        cmocka_unit_test(test_words_that_are_too_long_are_cut_and_end),
        cmocka_unit_test(test_each_thread_has_its_own_words),
        cmocka_unit_test(test_exit_codes_are_the_promised_ones),
        cmocka_unit_test(test_check_stays_on),
        cmocka_unit_test(test_arithmetic_that_overflows_says_so_and_changes_nothing),
        cmocka_unit_test(test_new_memory_is_zero_and_texts_are_copies),
        cmocka_unit_test(test_a_growing_array_keeps_what_it_holds),
        cmocka_unit_test(test_an_arena_gives_zeroed_aligned_memory_that_stays),
        cmocka_unit_test(test_a_reset_arena_gives_its_largest_block_again_zeroed),
        cmocka_unit_test(test_a_buffer_grows_formats_and_gives_up_its_front),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
