/* Waiting: spin, then yield, then sleep on the doorbell, and end at once when the epoch is over. */
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>

#include "common/base/clock.h"
#include "worker/fabric/fabric_internal.h"

/* About 100 µs: longer than the time between two ranks that finish the same layer on cores of their
 * own, shorter than a time slice that another rank could use. */
#define SPINS 3000
/* With more threads than cores the one that is waited for is probably not running. That more want
 * the cores than this replica's own ranks (another replica, another program) shows in how long waits
 * last, so each wait that had to sleep teaches the next ones: half as long a spin when it was long,
 * twice as long when a little more spinning would have done. */
#define SPINS_CROWDED 64
#define YIELDS 32
#define SHORT_SLEEP_NS 150000u
#define SHORT_YIELD_NS 20000u
/* A sleeper looks again so often even if nobody rings; only a safety net. */
#define SLEEP_MS 100u

static inline void pause_cpu(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

bool fabric_look_for_failure(fabric_t *fabric)
{
    if (atomic_load_explicit(&fabric->failed.state, memory_order_acquire) == NOTE_SET)
        return true;
    /* A death first: an abort usually follows from it and says less. */
    for (uint32_t rank = 0; rank < fabric->n_ranks; rank++) {
        if (atomic_load_explicit(&fabric->board->n_dead, memory_order_acquire) == 0)
            break;
        const note_t *dead = &fabric->board->ranks[rank].dead;
        const char *how = note_text(dead);
        if (how) {
            fabric_fail(fabric, STATUS_PEER_LOST, rank,
                        atomic_load_explicit(&dead->silent, memory_order_relaxed) != 0, how);
            return true;
        }
    }
    const char *reason = note_text(&fabric->board->aborted);
    if (reason)
        fabric_fail(fabric, STATUS_ABORTED, UINT32_MAX, false, reason);
    return reason != NULL;
}

static void word_place(const wait_for_t *what, char *out, size_t n)
{
    const char *operation = what->operation;
    if (what->where && what->where->operation)
        operation = what->where->operation;
    if (!what->where)
        snprintf(out, n, "%s", operation);
    else if (what->where->layer < 0)
        snprintf(out, n, "%s of step %" PRIu64, operation, what->where->step);
    else
        snprintf(out, n, "%s of step %" PRIu64 ", layer %d", operation, what->where->step,
                 what->where->layer);
}

status_t fabric_failed(fabric_t *fabric, const wait_for_t *what)
{
    char place[128];
    word_place(what, place, sizeof place);
    fabric_failure_t failure;
    if (!fabric_failure(fabric, &failure))
        return fail(STATUS_INTERNAL, "rank %u: %s: no failure is known", fabric->rank, place);
    if (failure.rank == UINT32_MAX)
        return fail(failure.status, "rank %u: %s: aborted: %s", fabric->rank, place, failure.text);
    return fail(failure.status, "rank %u: %s: rank %u (host %s) %s%s", fabric->rank, place,
                failure.rank, failure.host, failure.status == STATUS_PEER_LOST ? "is lost: " : "",
                failure.text);
}

static status_t time_is_up(fabric_t *fabric, const wait_for_t *what, uint32_t timeout_ms)
{
    char text[BOARD_REASON_BYTES];
    uint32_t missing = *what->needs ? (uint32_t)__builtin_ctzll(*what->needs) : fabric->rank;
    snprintf(text, sizeof text, "did not answer within %u ms", timeout_ms);
    fabric_fail(fabric, STATUS_TIMEOUT, missing, false, text);
    return fabric_failed(fabric, what);
}

/* A rank that is waited for and has closed its fabric in good order: it will never answer. None:
 * UINT32_MAX. */
static uint32_t find_left(const fabric_t *fabric, const wait_for_t *what)
{
    for (uint32_t rank = 0; rank < fabric->n_ranks; rank++) {
        if ((*what->needs >> rank & 1) && atomic_load(&fabric->board->ranks[rank].left))
            return rank;
    }
    return UINT32_MAX;
}

void fabric_spins_begin(fabric_t *fabric)
{
    for (int kind = 0; kind < WAIT_KINDS; kind++)
        atomic_store(&fabric->spins[kind], fabric->yields ? SPINS_CROWDED : SPINS);
}

uint32_t fabric_spins_next(uint32_t spins, bool longer)
{
    spins = longer ? spins * 2 : spins / 2;
    return spins < SPINS_CROWDED ? SPINS_CROWDED : spins > SPINS ? SPINS : spins;
}

static void learn(fabric_t *fabric, wait_kind_t kind, bool longer)
{
    uint32_t spins = atomic_load_explicit(&fabric->spins[kind], memory_order_relaxed);
    if (!fabric->yields)
        atomic_store_explicit(&fabric->spins[kind], fabric_spins_next(spins, longer),
                              memory_order_relaxed);
}

static bool spin(fabric_t *fabric, wait_kind_t kind, wait_fn done, void *argument)
{
    uint32_t spins = atomic_load_explicit(&fabric->spins[kind], memory_order_relaxed);
    bool yields = spins == SPINS_CROWDED;
    if (fabric->has_remote)
        ucx_poll_enter(fabric);
    bool is_done = false;
    for (uint32_t i = 0; i < spins && !is_done; i++) {
        pause_cpu();
        if (fabric->has_remote)
            ucx_progress(fabric);
        is_done = done(fabric, argument);
    }
    if (yields && !is_done) {
        uint64_t begin = clock_ns();
        for (int i = 0; i < YIELDS && !is_done; i++) {
            sched_yield();
            is_done = done(fabric, argument);
        }
        /* Nobody else wanted the core. */
        if (is_done && clock_ns() - begin < SHORT_YIELD_NS)
            learn(fabric, kind, true);
    }
    if (fabric->has_remote)
        ucx_poll_leave(fabric, !is_done);
    return is_done;
}

status_t fabric_wait_slice(fabric_t *fabric, const wait_for_t *what, uint64_t sleep_ms_max,
                           wait_fn done, void *argument, bool *done_out)
{
    *done_out = spin(fabric, what->kind, done, argument);
    if (*done_out)
        return STATUS_OK;
    bool failed = fabric_look_for_failure(fabric);
    uint32_t gone = find_left(fabric, what);
    if (failed || gone != UINT32_MAX) {
        /* What a rank sent before it died or left still counts. */
        *done_out = done(fabric, argument);
        if (*done_out)
            return STATUS_OK;
        if (!failed)
            fabric_fail(fabric, STATUS_PEER_LOST, gone, false, "it has left the epoch");
        return fabric_failed(fabric, what);
    }
    board_rank_t *own = &fabric->board->ranks[fabric->rank];
    uint32_t key = board_sleep_announce(own);
    *done_out = done(fabric, argument);
    if (!*done_out && !fabric_look_for_failure(fabric)) {
        uint64_t begin = clock_ns();
        board_sleep(own, key, sleep_ms_max < SLEEP_MS ? (uint32_t)sleep_ms_max : SLEEP_MS);
        *done_out = done(fabric, argument);
        learn(fabric, what->kind, *done_out && clock_ns() - begin < SHORT_SLEEP_NS);
    }
    board_sleep_leave(own);
    return STATUS_OK;
}

status_t fabric_wait_until(fabric_t *fabric, const wait_for_t *what, wait_fn done, void *argument)
{
    bool is_done = done(fabric, argument);
    uint32_t timeout_ms = what->where && what->where->timeout_ms ? what->where->timeout_ms
                                                                 : fabric->step_timeout_ms;
    uint64_t end = 0;
    while (!is_done) {
        uint64_t left_ms = SLEEP_MS;
        if (timeout_ms != FABRIC_FOREVER && end != 0) {
            uint64_t now = clock_ms();
            if (now >= end)
                return time_is_up(fabric, what, timeout_ms);
            left_ms = end - now;
        } else if (end == 0) {
            end = clock_ms() + timeout_ms;
        }
        TRY(fabric_wait_slice(fabric, what, left_ms, done, argument, &is_done));
    }
    /* A peer that breaks the rules ends `done` as well. */
    if (atomic_load_explicit(&fabric->failed.state, memory_order_acquire) == NOTE_SET &&
        fabric->failure.status == STATUS_INVALID)
        return fabric_failed(fabric, what);
    return STATUS_OK;
}
