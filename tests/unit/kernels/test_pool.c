/* The thread team, and the huge pages that weights and scratch share. */
#include <pthread.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <time.h>

#include "common/base/clock.h"
#include "common/base/pool.h"
#include "kernels/cpu/internal.h"
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

static void sleep_us(uint32_t us)
{
    nanosleep(&(struct timespec){.tv_nsec = (long)us * 1000}, NULL);
}

typedef struct {
    _Atomic bool late;     /* threads other than the caller take 20 ms, as if they were preempted */
    _Atomic uint32_t parts; /* of one run, a bit each */
    uint32_t n_threads;    /* of the last run */
} elastic_t;

static void elastic_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    elastic_t *work = arg;
    if (thread == 0)
        work->n_threads = n_threads;
    else if (work->late)
        sleep_us(20000);
    atomic_fetch_or(&work->parts, 1u << thread);
}

/* Runs for that long or until all threads take part; returns in how many runs they did. */
static uint32_t run_elastic(pool_t *pool, elastic_t *work, uint64_t ms, bool until_whole)
{
    uint32_t whole = 0;
    for (uint64_t end_ms = clock_ms() + ms; clock_ms() < end_ms;) {
        work->parts = 0;
        pool_run(pool, elastic_thread, work);
        assert_int_equal(work->parts, (1u << work->n_threads) - 1);
        whole += work->n_threads == pool_threads(pool);
        if (whole > 0 && until_whole)
            return whole;
        sleep_us(50);
    }
    return whole;
}

/* How often the calling thread lost its processor. */
static uint32_t interruptions(void)
{
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return (uint32_t)usage.ru_nivcsw;
}

static void test_an_elastic_team_goes_on_without_a_late_thread_and_takes_it_back(void **state)
{
    (void)state;
    for (uint32_t n = 2; n <= 3; n++) {
        pool_t *pool = NULL;
        assert_ok(pool_open(n, NULL, &pool));
        elastic_t work = {.late = true};
        /* Every run of a team that waits takes 20 ms: there are at most 15 of them. */
        uint32_t runs = run_elastic(pool, &work, 300, false);
        assert_in_range(runs, 2, 16);
        pool_elastic(pool);
        /* It would be 50. Each that stalls doubles the time without the thread: 4, 8, 16, … 250 ms. */
        uint32_t interrupted = interruptions();
        uint32_t stalls = run_elastic(pool, &work, 1000, false);
        /* A caller that is preempted itself may not see that the other one was late as well. */
        assert_in_range(stalls, 1, 25 + interruptions() - interrupted);
        work.late = false;
        /* The longest time out is a quarter of a second; a loaded machine may add stalls. */
        assert_in_range(run_elastic(pool, &work, 10000, true), 1, 1);
        pool_close(pool);
    }
}

typedef struct {
    uint64_t cpu_ns, wall_ns; /* of the second thread's parts, from the beginning of the runs on */
    uint64_t begin_ns;
    uint32_t whole;
} burn_t;

static uint64_t thread_cpu_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void burn_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    burn_t *burn = arg;
    if (thread == 0) {
        burn->whole += n_threads == 2;
        return;
    }
    uint64_t begin_cpu_ns = thread_cpu_ns(), cpu_ns;
    while ((cpu_ns = thread_cpu_ns() - begin_cpu_ns) < 2000000)
        ;
    burn->cpu_ns += cpu_ns;
    burn->wall_ns += clock_ns() - burn->begin_ns;
}

typedef struct {
    uint32_t whole, runs;
} interrupted_t;

/* One run of ten finds its second thread stopped for a millisecond. */
static void interrupted_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    interrupted_t *work = arg;
    if (thread == 0)
        work->whole += n_threads == 2;
    else if (work->runs % 10 == 0)
        sleep_us(1000);
    for (uint64_t end_ns = clock_ns() + 1000000; clock_ns() < end_ns;)
        ;
}

static void test_an_elastic_team_keeps_a_thread_that_is_only_interrupted(void **state)
{
    (void)state;
    /* A machine that runs something else proves nothing: then it is tried again. */
    for (uint32_t attempt = 0; attempt < 20; attempt++) {
        pool_t *pool = NULL;
        assert_ok(pool_open(2, NULL, &pool));
        pool_elastic(pool);
        interrupted_t work = {0};
        uint64_t begin_ns = clock_ns();
        for (work.runs = 0; work.runs < 100; work.runs++)
            pool_run(pool, interrupted_thread, &work);
        uint64_t took_ns = clock_ns() - begin_ns;
        pool_close(pool);
        if (took_ns > 118000000)
            continue;
        assert_int_equal(work.whole, 100);
        return;
    }
    skip();
}

static void test_an_elastic_team_keeps_a_thread_that_only_has_more_to_do(void **state)
{
    (void)state;
    pool_t *pool = NULL;
    assert_ok(pool_open(2, NULL, &pool));
    pool_elastic(pool);
    /* A machine that runs something else proves nothing: then it is tried again. */
    for (uint32_t attempt = 0; attempt < 20; attempt++) {
        burn_t burn = {0};
        for (uint32_t i = 0; i < 20; i++) {
            burn.begin_ns = clock_ns();
            pool_run(pool, burn_thread, &burn);
        }
        if (burn.wall_ns > burn.cpu_ns + burn.cpu_ns / 20 || burn.whole == 0)
            continue;
        assert_int_equal(burn.whole, 20);
        break;
    }
    pool_close(pool);
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

/* Small weights lie side by side in huge pages, more than one stretch of them here. What is given
 * back, in any order, never comes back with old values in it. */
static void test_weights_that_share_pages_are_zeroed_and_apart(void **state)
{
    (void)state;
    enum { N = 40, ROUNDS = 3 };
    static const size_t sizes[] = {1, 200000, 65536, (1 << 20) + 64, 5 << 20, 16 << 20, 20 << 20};
    for (uint32_t round = 0; round < ROUNDS; round++) {
        uint8_t *at[N];
        size_t bytes[N];
        for (uint32_t i = 0; i < N; i++) {
            bytes[i] = sizes[(i + round) % (sizeof sizes / sizeof *sizes)];
            at[i] = map_shared(bytes[i]);
            assert_non_null(at[i]);
            assert_int_equal((uintptr_t)at[i] % 4096, 0);
            assert_int_equal(at[i][0] | at[i][bytes[i] / 2] | at[i][bytes[i] - 1], 0);
            at[i][0] = at[i][bytes[i] / 2] = at[i][bytes[i] - 1] = (uint8_t)(i + 1);
        }
        /* The third behind the second, if the stretch had room; the first is too small to share. */
        assert_true(round > 0 || at[2] == at[1] + 200704);
        for (uint32_t i = 0; i < N; i++) { /* 7 and 40 have no common divisor */
            uint32_t one = (i * 7 + round) % N;
            uint8_t mark = (uint8_t)(one + 1);
            assert_int_equal(at[one][0], mark);
            assert_int_equal(at[one][bytes[one] / 2], mark);
            assert_int_equal(at[one][bytes[one] - 1], mark);
            unmap_shared(at[one], bytes[one]);
        }
    }
    unmap_shared(NULL, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_thread_works_once_a_run),
        cmocka_unit_test(test_threads_that_slept_wake_up),
        cmocka_unit_test(test_the_start_function_runs_on_all_but_the_caller),
        cmocka_unit_test(test_an_elastic_team_goes_on_without_a_late_thread_and_takes_it_back),
        cmocka_unit_test(test_an_elastic_team_keeps_a_thread_that_is_only_interrupted),
        cmocka_unit_test(test_an_elastic_team_keeps_a_thread_that_only_has_more_to_do),
        cmocka_unit_test(test_slices_cover_everything_once),
        cmocka_unit_test(test_weights_that_share_pages_are_zeroed_and_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
