/* A fixed team of threads that all run the same function at once, for kernels. The caller is thread
 * 0. Between runs the others spin a little, then sleep on a futex; when there are more threads than
 * CPUs they give up their time slice instead of spinning. Work is divided by the functions
 * themselves (pool_slice), statically, so which thread computes what depends on timing only in an
 * elastic team (pool_elastic), which leaves out threads that have lost their CPU. */
#ifndef SHOAL_COMMON_BASE_POOL_H
#define SHOAL_COMMON_BASE_POOL_H

#include <stdint.h>

#include "common/base/status.h"

typedef struct pool pool_t;

/* Called on every thread that takes part, thread = 0 … n_threads-1. */
typedef void (*pool_fn)(void *arg, uint32_t thread, uint32_t n_threads);

enum { POOL_THREADS_MAX = 256 };

/* CPUs that this process may use, at least 1: its affinity, or its cgroup's quota if that is less.
 */
uint32_t pool_cpus(void);

/* n_threads 0 means pool_cpus(). on_start, when not NULL, runs once on every thread but the
 * caller's before its first work (for example to set its floating-point mode). */
MUST_USE status_t pool_open(uint32_t n_threads, void (*on_start)(void), pool_t **own_out);
void pool_close(pool_t *take_pool); /* NULL is fine */
uint32_t pool_threads(const pool_t *pool);

/* From now on a run may leave out threads that the system did not run lately (see pool.c), so that
 * one busy neighbour does not hold up the team: fn then sees a smaller n_threads. For work whose
 * results do not depend on the number of threads. */
void pool_elastic(pool_t *pool);

/* Runs fn on the team's threads and returns when all have returned; what they wrote is then visible
 * to the caller. One caller at a time; not from inside fn. */
void pool_run(pool_t *pool, pool_fn fn, void *arg);

/* Rises by one when a run begins and by one when it ends: odd while one is under way, and unchanged
 * while nothing is done. From any thread. */
uint32_t pool_runs(const pool_t *pool);

/* The part [*first_out, *end_out) of n things that thread `thread` of n_threads takes: contiguous,
 * sizes differ by at most one. */
static inline void pool_slice(uint32_t n, uint32_t thread, uint32_t n_threads, uint32_t *first_out,
                              uint32_t *end_out)
{
    *first_out = (uint32_t)((uint64_t)n * thread / n_threads);
    *end_out = (uint32_t)((uint64_t)n * (thread + 1) / n_threads);
}

#endif
