/* Fail points: each action happens in a child, because most of them end the process. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/failpoint.h"
#include "common/base/memory.h"

/* Arms the list in a child ("%" in it becomes "%<pid of the child>"), passes point "a" n times, and
 * returns how the child ended. The child exits with the number of passings that said "fail". */
static int pass_in_child(const char *list, int n)
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        setpgid(0, 0);
        signal(SIGABRT, SIG_DFL);
        close(STDERR_FILENO);
        const char *percent = strchr(list, '%');
        char *mine = percent ? mem_format("%.*s%%%ld%s", (int)(percent - list), list,
                                          (long)getpid(), percent + 1) : mem_strdup(list);
        setenv("SHOAL_FAILPOINTS", mine, 1);
        free(mine);
        failpoint_start();
        int n_failed = 0;
        for (int i = 0; i < n; i++)
            n_failed += FAILPOINT("a");
        _exit(n_failed);
    }
    int status;
    assert_int_equal(waitpid(child, &status, WUNTRACED), child);
    if (WIFSTOPPED(status)) {
        int stopped = status;
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
        return stopped;
    }
    return status;
}

static void check_failures(const char *list, int n, int n_failed)
{
    int status = pass_in_child(list, n);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), n_failed);
}

static void test_an_unset_variable_arms_nothing(void **state)
{
    (void)state;
    unsetenv("SHOAL_FAILPOINTS");
    failpoint_start();
    assert_false(failpoint_armed);
    assert_false(FAILPOINT("a"));
    check_failures("", 3, 0);
}

static void test_an_error_is_given_once_at_the_named_passing(void **state)
{
    (void)state;
    check_failures("a=error", 5, 1);
    check_failures("a=error@3", 5, 1);
    check_failures("a=error@6", 5, 0);
    check_failures("a=error@*", 5, 5);
    check_failures("b=error@*", 5, 0);
    check_failures("aa=error@*;b=kill;a=error", 5, 1);
    check_failures("nonsense;=;a", 5, 0);
}

static void test_an_entry_may_name_the_one_process_that_it_means(void **state)
{
    (void)state;
    check_failures("a%=error@2", 3, 1);
    check_failures("a%0=error@*", 3, 0); /* ten times another process's id */
    check_failures("b%=error@*", 3, 0);
}

static void test_the_named_passing_is_counted_from_one(void **state)
{
    (void)state;
    assert_true(WIFEXITED(pass_in_child("a=kill@3", 2)));
    int status = pass_in_child("a=kill@3", 3);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void test_a_point_can_abort_or_stop_its_process(void **state)
{
    (void)state;
    int status = pass_in_child("a=abort", 1);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    status = pass_in_child("a=stop", 1);
    assert_true(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
}

static void test_a_point_can_kill_another_process_and_goes_on_itself(void **state)
{
    (void)state;
    pid_t victim = fork();
    assert_true(victim >= 0);
    if (victim == 0) {
        alarm(10); /* nobody else ends it when the point does not */
        for (;;)
            pause();
    }
    char *late = mem_format("a=kill:%ld@3", (long)victim);
    int status;
    check_failures(late, 2, 0);
    assert_int_equal(waitpid(victim, &status, WNOHANG), 0);
    check_failures(late, 5, 0);
    assert_int_equal(waitpid(victim, &status, 0), victim);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    check_failures(late, 5, 0); /* the victim is gone */
    free(late);
}

static void test_a_kill_of_no_process_harms_nobody(void **state)
{
    (void)state;
    /* Taken for a number, each of these would end the child, with the group that is its own. */
    check_failures("a=kill:;a=kill:0;a=kill:x;a=kill:0x7f", 3, 0);
}

static void test_a_stall_takes_its_time_and_is_no_failure(void **state)
{
    (void)state;
    uint64_t before = clock_ms();
    check_failures("a=stall:60", 2, 0);
    assert_true(clock_ms() - before >= 60);
}

static void test_a_file_arms_a_running_process(void **state)
{
    (void)state;
    char path[] = "/tmp/shoal-failpoint-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    char *list = mem_format("file:%s", path);
    check_failures(list, 3, 0);
    assert_int_equal(write(fd, "a=error@2\n", 10), 10);
    check_failures(list, 3, 1);
    close(fd);
    unlink(path);
    check_failures(list, 3, 0); /* a file that is gone arms nothing */
    free(list);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_an_unset_variable_arms_nothing),
        cmocka_unit_test(test_an_error_is_given_once_at_the_named_passing),
        cmocka_unit_test(test_an_entry_may_name_the_one_process_that_it_means),
        cmocka_unit_test(test_the_named_passing_is_counted_from_one),
        cmocka_unit_test(test_a_point_can_abort_or_stop_its_process),
        cmocka_unit_test(test_a_point_can_kill_another_process_and_goes_on_itself),
        cmocka_unit_test(test_a_kill_of_no_process_harms_nobody),
        cmocka_unit_test(test_a_stall_takes_its_time_and_is_no_failure),
        cmocka_unit_test(test_a_file_arms_a_running_process),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
