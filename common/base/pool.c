/* See pool.h. A run is a new number in `round`; whoever sees it works and then counts itself in
 * `done`. Both words stand on cache lines of their own, and both are futexes: a thread that has
 * spun in vain counts itself in the matching `sleepers` first and sleeps only if the word is
 * unchanged. */
#include "common/base/pool.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/base/memory.h"

/* About 20 µs of pauses: longer than the gap between two kernels of a layer, much shorter than a
 * time slice that another process could have used. */
enum { SPINS = 1500, SPINS_OVERSUBSCRIBED = 20 };

struct pool {
    alignas(64) _Atomic uint32_t round;
    _Atomic uint32_t round_sleepers;
    alignas(64) _Atomic uint32_t done;
    _Atomic uint32_t done_sleepers;
    alignas(64) pool_fn fn;
    void *arg;
    void (*on_start)(void);
    uint32_t n_threads;
    uint32_t spins;
    bool stop;
    pthread_t *threads; /* [n_threads - 1] */
    struct worker {
        pool_t *pool;
        uint32_t index;
    } * workers;
};

static void futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

uint32_t pool_cpus(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return 1;
    int n = CPU_COUNT(&set);
    return n < 1 ? 1 : (uint32_t)n;
}

/* Returns the word's value once it differs from `seen`. */
static uint32_t wait_change(const pool_t *pool, _Atomic uint32_t *word, _Atomic uint32_t *sleepers,
                            uint32_t seen)
{
    for (uint32_t i = 0; i < pool->spins; i++) {
        uint32_t now = atomic_load_explicit(word, memory_order_acquire);
        if (now != seen)
            return now;
        if (pool->spins == SPINS_OVERSUBSCRIBED)
            sched_yield();
        else
            __builtin_ia32_pause();
    }
    /* Sequentially consistent: either the other side sees the count or this side sees the change.
     */
    atomic_fetch_add(sleepers, 1);
    uint32_t now;
    while ((now = atomic_load(word)) == seen)
        futex_wait(word, seen);
    atomic_fetch_sub(sleepers, 1);
    return now;
}

static void *worker_main(void *arg)
{
    struct worker *self = arg;
    pool_t *pool = self->pool;
    if (pool->on_start != NULL)
        pool->on_start();
    uint32_t round = 0;
    for (;;) {
        round = wait_change(pool, &pool->round, &pool->round_sleepers, round);
        if (pool->stop)
            return NULL;
        pool->fn(pool->arg, self->index, pool->n_threads);
        uint32_t n_done = atomic_fetch_add(&pool->done, 1) + 1;
        if (n_done == pool->n_threads - 1 && atomic_load(&pool->done_sleepers) != 0)
            futex_wake_all(&pool->done);
    }
}

static void start_round(pool_t *pool)
{
    atomic_store(&pool->done, 0);
    atomic_fetch_add(&pool->round, 1);
    if (atomic_load(&pool->round_sleepers) != 0)
        futex_wake_all(&pool->round);
}

status_t pool_open(uint32_t n_threads, void (*on_start)(void), pool_t **own_out)
{
    uint32_t cpus = pool_cpus();
    if (n_threads == 0)
        n_threads = cpus < POOL_THREADS_MAX ? cpus : POOL_THREADS_MAX;
    if (n_threads > POOL_THREADS_MAX)
        return fail(STATUS_INVALID, "%u threads: at most %d are possible", n_threads,
                    POOL_THREADS_MAX);
    pool_t *pool = aligned_alloc(64, (sizeof *pool + 63) / 64 * 64);
    CHECK(pool != NULL);
    *pool = (pool_t){.on_start = on_start, .n_threads = n_threads};
    pool->spins = n_threads > cpus ? SPINS_OVERSUBSCRIBED : SPINS;
    pool->threads = MEM_NEW_ARRAY(pthread_t, n_threads);
    pool->workers = MEM_NEW_ARRAY(struct worker, n_threads);
    for (uint32_t i = 1; i < n_threads; i++) {
        pool->workers[i] = (struct worker){.pool = pool, .index = i};
        int error = pthread_create(&pool->threads[i], NULL, worker_main, &pool->workers[i]);
        if (error != 0) {
            pool->n_threads = i;
            pool_close(pool);
            return fail(STATUS_EXHAUSTED,
                        "cannot start compute thread %u of %u (error %d): raise the "
                        "limit on processes or ask for fewer threads",
                        i, n_threads, error);
        }
    }
    *own_out = pool;
    return STATUS_OK;
}

void pool_close(pool_t *take_pool)
{
    if (take_pool == NULL)
        return;
    take_pool->stop = true;
    start_round(take_pool);
    for (uint32_t i = 1; i < take_pool->n_threads; i++)
        pthread_join(take_pool->threads[i], NULL);
    free(take_pool->threads);
    free(take_pool->workers);
    free(take_pool);
}

uint32_t pool_threads(const pool_t *pool)
{
    return pool->n_threads;
}

void pool_run(pool_t *pool, pool_fn fn, void *arg)
{
    if (pool->n_threads == 1) {
        fn(arg, 0, 1);
        return;
    }
    pool->fn = fn;
    pool->arg = arg;
    start_round(pool);
    fn(arg, 0, pool->n_threads);
    uint32_t others = pool->n_threads - 1;
    uint32_t seen = atomic_load_explicit(&pool->done, memory_order_acquire);
    while (seen != others)
        seen = wait_change(pool, &pool->done, &pool->done_sleepers, seen);
}
