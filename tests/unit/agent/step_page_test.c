/* The page that a leader and its agent share: what was written last is read, whatever the writer
 * was at when it died. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "worker/step_page.h"

/* cmocka has a macro of that name; ours is not used in tests. */
#undef fail
#include <cmocka.h>

typedef char names_t[CONTROL_SESSIONS_MAX + 44][CONTROL_SESSION_BYTES];

/* A list of n names that all carry the same number. */
static void fill(names_t names, uint32_t n, uint32_t number)
{
    for (uint32_t i = 0; i < n; i++)
        snprintf(names[i], CONTROL_SESSION_BYTES, "%08x%08x%08x%08x", number, n, i, number);
}

static void write_names(step_page_t *page, const names_t names, uint32_t n)
{
    step_page_write(page, n, (const char(*)[CONTROL_SESSION_BYTES])names);
}

static void test_what_the_leader_wrote_last_is_read_by_its_agent(void **state)
{
    (void)state;
    step_page_t *agent, *leader;
    int fd;
    static names_t names;
    static char got[CONTROL_SESSIONS_MAX][CONTROL_SESSION_BYTES];
    assert_int_equal(step_page_create(&agent, &fd), STATUS_OK);
    assert_int_equal(step_page_read(agent, got), 0);
    assert_int_equal(step_page_map(fd, &leader), STATUS_OK);
    for (uint32_t number = 1; number < 6; number++) {
        fill(names, 2 * number, number);
        write_names(leader, names, 2 * number);
        assert_int_equal(step_page_read(agent, got), 2 * number);
        assert_memory_equal(got, names, 2 * number * CONTROL_SESSION_BYTES);
    }
    fill(names, CONTROL_SESSIONS_MAX + 44, 9);
    write_names(leader, names, CONTROL_SESSIONS_MAX + 44);
    assert_int_equal(step_page_read(agent, got), CONTROL_SESSIONS_MAX);
    step_page_write(leader, 0, NULL);
    assert_int_equal(step_page_read(agent, got), 0);
    assert_int_not_equal(ftruncate(fd, 0), 0); /* nobody can pull it away under the other */
    step_page_unmap(leader);
    step_page_unmap(agent);
    close(fd);
}

static void test_garbage_of_a_crashing_writer_names_nobody(void **state)
{
    (void)state;
    step_page_t *agent, *leader;
    int fd;
    static names_t names;
    static char got[CONTROL_SESSIONS_MAX][CONTROL_SESSION_BYTES];
    assert_int_equal(step_page_create(&agent, &fd), STATUS_OK);
    assert_int_equal(step_page_map(fd, &leader), STATUS_OK);
    fill(names, 4, 1);
    memset(names[0], 'x', CONTROL_SESSION_BYTES); /* without an end */
    names[1][3] = '\n';
    names[2][0] = 0;
    write_names(leader, names, 4);
    assert_int_equal(step_page_read(agent, got), 1);
    assert_string_equal(got[0], names[3]);
    memset(leader, 0xff, 64); /* a count beyond the list */
    assert_true(step_page_read(agent, got) <= CONTROL_SESSIONS_MAX);
    step_page_unmap(leader);
    int other = memfd_create("other", MFD_CLOEXEC);
    assert_int_equal(step_page_map(other, &leader), STATUS_INVALID);
    assert_int_equal(step_page_map(fd, &leader), STATUS_INVALID); /* its mark is gone */
    close(other);
    close(fd);
    step_page_unmap(agent);
}

static void test_a_writer_killed_at_any_moment_leaves_a_whole_list(void **state)
{
    (void)state;
    static names_t names[2];
    static char got[CONTROL_SESSIONS_MAX][CONTROL_SESSION_BYTES];
    fill(names[0], 200, 1);
    fill(names[1], 200, 2);
    for (int round = 0; round < 60; round++) {
        step_page_t *agent, *leader;
        int fd, status;
        assert_int_equal(step_page_create(&agent, &fd), STATUS_OK);
        assert_int_equal(step_page_map(fd, &leader), STATUS_OK);
        pid_t child = fork();
        assert_true(child >= 0);
        for (uint32_t number = 0; child == 0; number++)
            write_names(leader, names[number & 1], 200);
        while (step_page_read(agent, got) == 0)
            usleep(100);
        usleep((useconds_t)(round * 37 % 500));
        kill(child, SIGKILL);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(step_page_read(agent, got), 200);
        for (uint32_t i = 1; i < 200; i++)
            assert_memory_equal(got[i], got[0], 8); /* all of one list */
        step_page_unmap(leader);
        step_page_unmap(agent);
        close(fd);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_the_leader_wrote_last_is_read_by_its_agent),
        cmocka_unit_test(test_garbage_of_a_crashing_writer_names_nobody),
        cmocka_unit_test(test_a_writer_killed_at_any_moment_leaves_a_whole_list),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
