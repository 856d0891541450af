/* See pool.h. A run is a new number in the `round` of each thread that takes part; whoever sees it
 * works and then counts itself in `done`. Each of these words stands on a cache line of its own and
 * is a futex: a thread that has spun in vain counts itself in the matching `sleepers` first and
 * sleeps only if the word is unchanged.
 *
 * An elastic team does without threads that the system does not run. When the caller has slept for a
 * thread it looks at that thread's processor time: what did not rise meanwhile was a stall, time in
 * which the thread was preempted. Stalls are added up and fade. A thread that stalls for a larger
 * share of the time than its work is worth is left out of the following runs, for a time that
 * doubles while that happens again and again: a busy neighbour costs a stall now and then, not one
 * a run. One that is only interrupted, by a server's own threads between two steps, stays. And a
 * thread that the system keeps on the caller's own CPU, where only one of the two can run, is moved
 * away from it. */
#include "common/base/pool.h"

#include <limits.h>
#include <linux/futex.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/cpu_quota.h"
#include "common/base/memory.h"

/* About 20 µs of pauses: longer than the gap between two kernels of a layer, much shorter than a
 * time slice that another process could have used. */
enum { SPINS = 1500, SPINS_OVERSUBSCRIBED = 20 };

/* The memory of stalls: what is older has faded to 1/e. Some slices of time of a busy neighbour. */
#define STALLS_NS 40000000.0
/* A thread stays while it stalls for less than this share of the time, and for less than its part
 * of the team's work. With half of two threads' time nothing would be won by the second, and what
 * waits for memory gains less from it than half. */
#define SHARE_MAX 0.3
#define SHARE_MIN 0.05
/* A thread that is taken back leaves again after a stall of this length. */
#define TRUST_NS 1000000.0
/* How long such a thread is left out. The longest is what finding out that the neighbour is gone
 * may take; a stall of some 4 ms each time then costs 2 %. */
#define OUT_NS_MIN 4000000u
#define OUT_NS_MAX 250000000u
#define SOON_ROUNDS 8u
/* The least time between two moves of a thread. */
#define MOVE_NS 1000000u

struct member {
    alignas(64) _Atomic uint32_t round;
    _Atomic uint32_t sleepers;
    _Atomic uint32_t finished; /* the last round that it has worked in, */
    _Atomic uint64_t finished_ns; /* and when, in an elastic team */
    _Atomic int cpu;           /* where it was at the end of that round */
    _Atomic int tid;           /* 0: it has not begun yet */
    uint32_t share;            /* which part of the round it takes */
    /* The rest is the caller's alone. */
    uint64_t out_until_ns; /* 0: it takes part */
    uint64_t out_ns;       /* how long it was left out the last time */
    uint64_t back_ns;      /* since when it takes part again, */
    uint32_t back_round;   /* and since which round */
    bool behind;           /* the caller sleeps for it */
    uint64_t cpu_ns;       /* its processor time when that began */
    double stalled_ns;     /* how long it did not run while it was behind, faded, */
    uint64_t faded_ns;     /* up to this time */
    pool_t *pool;
    pthread_t thread;
};

struct pool {
    alignas(64) _Atomic uint32_t done;
    _Atomic uint32_t done_sleepers;
    alignas(64) pool_fn fn;
    void *arg;
    uint32_t n_taking_part; /* in this round, the caller included */
    _Atomic uint32_t runs;  /* begun and ended */
    void (*on_start)(void);
    uint32_t n_threads;
    uint32_t n_out; /* that are left out now */
    uint32_t round;
    uint32_t spins;
    bool stop, elastic;
    uint64_t moved_ns;  /* when a thread was moved the last time */
    cpu_set_t allowed;  /* CPUs of the process when the team was opened */
    struct member *members; /* [n_threads]; of the first, the caller's, only the hint is used */
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
    uint32_t cpus = n < 1 ? 1 : (uint32_t)n, quota = cpu_quota("");
    return quota > 0 && quota < cpus ? quota : cpus;
}

/* Spins until the word differs from `seen`; false when that was in vain. */
static bool spin(const pool_t *pool, _Atomic uint32_t *word, uint32_t seen)
{
    for (uint32_t i = 0; i < pool->spins; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != seen)
            return true;
        if (pool->spins == SPINS_OVERSUBSCRIBED)
            sched_yield();
        else
            __builtin_ia32_pause();
    }
    return false;
}

/* Sleeps until the word differs from `seen`. */
static void sleep_for_change(_Atomic uint32_t *word, _Atomic uint32_t *sleepers, uint32_t seen)
{
    /* Sequentially consistent: either the other side sees the count or this side sees the change.
     */
    atomic_fetch_add(sleepers, 1);
    while (atomic_load(word) == seen)
        futex_wait(word, seen);
    atomic_fetch_sub(sleepers, 1);
}

static void *worker_main(void *arg)
{
    struct member *self = arg;
    pool_t *pool = self->pool;
    if (pool->on_start != NULL)
        pool->on_start();
    atomic_store(&self->tid, (int)syscall(SYS_gettid));
    uint32_t round = 0;
    for (;;) {
        if (!spin(pool, &self->round, round))
            sleep_for_change(&self->round, &self->sleepers, round);
        round = atomic_load(&self->round);
        if (pool->stop)
            return NULL;
        /* The next round may begin as soon as this thread is counted. */
        uint32_t others = pool->n_taking_part - 1;
        pool->fn(pool->arg, self->share, pool->n_taking_part);
        if (pool->elastic) {
            atomic_store_explicit(&self->finished_ns, clock_ns(), memory_order_relaxed);
            atomic_store_explicit(&self->cpu, sched_getcpu(), memory_order_relaxed);
        }
        atomic_store_explicit(&self->finished, round, memory_order_relaxed);
        uint32_t n_done = atomic_fetch_add(&pool->done, 1) + 1;
        if (n_done == others && atomic_load(&pool->done_sleepers) != 0)
            futex_wake_all(&pool->done);
    }
}

static void start_member(struct member *member, uint32_t round)
{
    atomic_store(&member->round, round);
    if (atomic_load(&member->sleepers) != 0)
        futex_wake_all(&member->round);
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
    pool->members = aligned_alloc(64, n_threads * sizeof *pool->members);
    CHECK(pool->members != NULL);
    for (uint32_t i = 0; i < n_threads; i++)
        pool->members[i] = (struct member){.pool = pool, .cpu = -1};
    if (sched_getaffinity(0, sizeof pool->allowed, &pool->allowed) != 0)
        CPU_ZERO(&pool->allowed); /* then no thread is moved */
    for (uint32_t i = 1; i < n_threads; i++) {
        struct member *member = &pool->members[i];
        int error = pthread_create(&member->thread, NULL, worker_main, member);
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

void pool_elastic(pool_t *pool)
{
    pool->elastic = true;
}

void pool_close(pool_t *take_pool)
{
    if (take_pool == NULL)
        return;
    take_pool->stop = true;
    for (uint32_t i = 1; i < take_pool->n_threads; i++)
        start_member(&take_pool->members[i], take_pool->round + 1);
    for (uint32_t i = 1; i < take_pool->n_threads; i++)
        pthread_join(take_pool->members[i].thread, NULL);
    free(take_pool->members);
    free(take_pool);
}

uint32_t pool_threads(const pool_t *pool)
{
    return pool->n_threads;
}

/* Faded stalls beyond which a thread is left out. */
static double stalls_max(const pool_t *pool)
{
    double share = fmin(SHARE_MAX, 1.0 / pool->n_threads);
    return STALLS_NS * fmax(share, SHARE_MIN);
}

/* Whether a thread takes part in the round that begins now. */
static bool takes_part(pool_t *pool, struct member *member, uint64_t now_ns)
{
    if (member->out_until_ns == 0)
        return true;
    if (now_ns < member->out_until_ns)
        return false;
    member->out_until_ns = 0;
    member->back_ns = member->faded_ns = now_ns;
    member->back_round = pool->round;
    member->stalled_ns = stalls_max(pool) - TRUST_NS;
    pool->n_out--;
    return true;
}

static bool is_behind(const pool_t *pool, struct member *member)
{
    return member->out_until_ns == 0 && atomic_load(&member->finished) != pool->round;
}

/* Longer if it was just back when its last stall began, by the clock or by what the team did since:
 * on a machine with far too much to do the clock runs on while nobody of the team does. */
static void leave_out(pool_t *pool, struct member *member, uint64_t begin_ns, uint64_t now_ns)
{
    bool soon = member->out_ns > 0 && (begin_ns < member->back_ns + 4 * member->out_ns ||
                                       pool->round - member->back_round < SOON_ROUNDS);
    uint64_t out_ns = soon ? 2 * member->out_ns : OUT_NS_MIN;
    member->out_ns = out_ns < OUT_NS_MAX ? out_ns : OUT_NS_MAX;
    member->out_until_ns = now_ns + member->out_ns;
    pool->n_out++;
}

/* Processor time of a thread; UINT64_MAX where it cannot be read. Then a thread that works cannot
 * be told from one that is stalled, and stall_of counts no stall. */
static uint64_t cpu_time_ns(const struct member *member)
{
    clockid_t clock;
    struct timespec time;
    if (pthread_getcpuclockid(member->thread, &clock) != 0 || clock_gettime(clock, &time) != 0)
        return UINT64_MAX;
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* How long a thread for which the caller slept from begin_ns on has not run until it finished. */
static uint64_t stall_of(struct member *member, uint64_t begin_ns)
{
    uint64_t end_ns = atomic_load(&member->finished_ns), cpu_ns = cpu_time_ns(member);
    if (end_ns <= begin_ns || cpu_ns == UINT64_MAX || member->cpu_ns == UINT64_MAX)
        return 0;
    uint64_t ran_ns = cpu_ns - member->cpu_ns, span_ns = end_ns - begin_ns;
    return ran_ns < span_ns ? span_ns - ran_ns : 0;
}

/* Notes for whom the caller is going to sleep. */
static void begin_sleep(pool_t *pool)
{
    for (uint32_t i = 1; i < pool->n_threads; i++) {
        struct member *member = &pool->members[i];
        member->behind = is_behind(pool, member);
        if (member->behind)
            member->cpu_ns = cpu_time_ns(member);
    }
}

/* All have finished: adds up how long each was not run meanwhile. */
static void end_sleep(pool_t *pool, uint64_t begin_ns)
{
    uint64_t now_ns = clock_ns();
    for (uint32_t i = 1; i < pool->n_threads; i++) {
        struct member *member = &pool->members[i];
        if (!member->behind)
            continue;
        double since_ns = (double)(now_ns - member->faded_ns);
        member->stalled_ns = member->stalled_ns * exp(-since_ns / STALLS_NS) +
                             (double)stall_of(member, begin_ns);
        member->faded_ns = now_ns;
        if (member->stalled_ns > stalls_max(pool))
            leave_out(pool, member, begin_ns, now_ns);
    }
}

/* Takes a thread that was last on the caller's CPU away from the CPUs of the whole team, if the
 * process may use others. */
static void move_away(pool_t *pool, uint64_t now_ns)
{
    int here = sched_getcpu();
    if (here < 0 || now_ns - pool->moved_ns < MOVE_NS)
        return;
    for (uint32_t i = 1; i < pool->n_threads; i++) {
        struct member *member = &pool->members[i];
        cpu_set_t others = pool->allowed;
        if (!is_behind(pool, member) || atomic_load(&member->cpu) != here || !member->tid)
            continue;
        CPU_CLR((size_t)here, &others);
        for (uint32_t j = 1; j < pool->n_threads; j++) {
            int cpu = atomic_load(&pool->members[j].cpu);
            if (j != i && cpu >= 0)
                CPU_CLR((size_t)cpu, &others);
        }
        if (CPU_COUNT(&others) == 0 || sched_setaffinity(member->tid, sizeof others, &others) != 0)
            continue;
        pool->moved_ns = now_ns;
    }
}

/* Waits for the others to finish their parts. */
static void wait_done(pool_t *pool)
{
    uint32_t others = pool->n_taking_part - 1, seen;
    while ((seen = atomic_load_explicit(&pool->done, memory_order_acquire)) != others)
        if (!spin(pool, &pool->done, seen))
            break;
    if (seen == others)
        return;
    uint64_t slept_from_ns = pool->elastic ? clock_ns() : 0;
    if (pool->elastic) {
        begin_sleep(pool);
        move_away(pool, slept_from_ns);
    }
    while ((seen = atomic_load_explicit(&pool->done, memory_order_acquire)) != others)
        sleep_for_change(&pool->done, &pool->done_sleepers, seen);
    if (pool->elastic)
        end_sleep(pool, slept_from_ns);
}

static void run_round(pool_t *pool, pool_fn fn, void *arg)
{
    uint64_t now_ns = pool->elastic && pool->n_threads > 1 ? clock_ns() : 0;
    if (pool->n_out + 1 == pool->n_threads && pool->n_threads > 1)
        for (uint32_t i = 1; i < pool->n_threads; i++)
            (void)takes_part(pool, &pool->members[i], now_ns);
    if (pool->n_out + 1 == pool->n_threads) {
        fn(arg, 0, 1);
        return;
    }
    pool->fn = fn;
    pool->arg = arg;
    pool->round++;
    atomic_store(&pool->done, 0);
    uint32_t n = 1;
    for (uint32_t i = 1; i < pool->n_threads; i++)
        if (takes_part(pool, &pool->members[i], now_ns))
            pool->members[i].share = n++;
    pool->n_taking_part = n;
    for (uint32_t i = 1; i < pool->n_threads; i++)
        if (pool->members[i].out_until_ns == 0)
            start_member(&pool->members[i], pool->round);
    fn(arg, 0, n);
    wait_done(pool);
}

void pool_run(pool_t *pool, pool_fn fn, void *arg)
{
    /* Only the caller writes this word: no locked instruction is needed. */
    uint32_t runs = atomic_load_explicit(&pool->runs, memory_order_relaxed);
    atomic_store_explicit(&pool->runs, runs + 1, memory_order_relaxed);
    run_round(pool, fn, arg);
    atomic_store_explicit(&pool->runs, runs + 2, memory_order_relaxed);
}

uint32_t pool_runs(const pool_t *pool)
{
    return atomic_load_explicit(&pool->runs, memory_order_relaxed);
}
