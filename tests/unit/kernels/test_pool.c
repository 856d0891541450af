/* The thread team. */
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "common/base/pool.h"
#include "support.h"

typedef struct {
    uint32_t seen[POOL_THREADS_MAX];
    uint64_t sum;
    uint32_t round;
} work_t;

static void count_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    work_t *work = arg;
    assert_true(thread < n_threads);
    work->seen[thread]++;
}

static void test_every_thread_works_once_a_run(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= 5; n += 2) {
        pool_t *pool = NULL;
        assert_ok(pool_open(n, NULL, &pool));
        assert_int_equal(pool_threads(pool), n);
        work_t work = {0};
        for (uint32_t round = 0; round < 2000; round++)
            pool_run(pool, count_thread, &work);
        for (uint32_t i = 0; i < n; i++)
            assert_int_equal(work.seen[i], 2000);
        pool_close(pool);
    }
}

static void test_threads_that_slept_wake_up(void **state)
{
    (void)state;
    pool_t *pool = NULL;
    assert_ok(pool_open(3, NULL, &pool));
    work_t work = {0};
    for (uint32_t round = 0; round < 20; round++) {
        /* Longer than the spinning, so that the next run finds them on the futex. */
        nanosleep(&(struct timespec){.tv_nsec = 3000000}, NULL);
        pool_run(pool, count_thread, &work);
    }
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(work.seen[i], 20);
    pool_close(pool);
}

static _Atomic uint32_t n_started;

static void note_start(void)
{
    n_started++;
}

static void test_the_start_function_runs_on_all_but_the_caller(void **state)
{
    (void)state;
    pool_t *pool = NULL;
    assert_ok(pool_open(4, note_start, &pool));
    work_t work = {0};
    pool_run(pool, count_thread, &work);
    assert_int_equal(n_started, 3);
    pool_close(pool);
    pool_close(NULL);
}

static void test_slices_cover_everything_once(void **state)
{
    (void)state;
    for (uint32_t n = 0; n < 70; n++)
        for (uint32_t threads = 1; threads < 9; threads++) {
            uint32_t at = 0;
            for (uint32_t t = 0; t < threads; t++) {
                uint32_t first, end;
                pool_slice(n, t, threads, &first, &end);
                assert_int_equal(first, at);
                assert_true(end - first <= n / threads + 1);
                at = end;
            }
            assert_int_equal(at, n);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_thread_works_once_a_run),
        cmocka_unit_test(test_threads_that_slept_wake_up),
        cmocka_unit_test(test_the_start_function_runs_on_all_but_the_caller),
        cmocka_unit_test(test_slices_cover_everything_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
