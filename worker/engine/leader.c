/* The leader's mailbox: the scheduler behind one lock, with a bell for each side. See leader.h.
 *
 * Two locks. `lock` guards the scheduler and is held only to decide and to copy. `wake_lock` guards
 * the wake functions and is held while one is called, so that closing a stream waits for a call
 * that is under way; it is never taken inside `lock`. */
#include "worker/engine/leader.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/clock.h"
#include "common/base/memory.h"
#include "worker/engine/draft_model.h"

#define SUSPECTS_MAX STEP_ENTRIES_MAX

typedef struct {
    leader_wake_fn wake; /* under wake_lock */
    void *context;
} listener_t;

struct leader {
    pthread_mutex_t lock;
    pthread_cond_t changed; /* an admission, a cancel or a stop came in */
    scheduler_t *scheduler; /* NULL before the epoch is active */
    bool stopping, lost;
    bool rung[SCHEDULER_STREAMS_MAX + 1]; /* woken, and not read since */
    uint32_t n_suspects;
    char suspects[SUSPECTS_MAX][SESSION_BYTES];

    pthread_mutex_t wake_lock;
    listener_t listeners[SCHEDULER_STREAMS_MAX + 1];
    void (*bell)(void *context);
    void *bell_context;
};

leader_t *leader_new(void)
{
    leader_t *leader = MEM_NEW(leader_t);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&leader->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&leader->lock, NULL);
    pthread_mutex_init(&leader->wake_lock, NULL);
    return leader;
}

void leader_free(leader_t *leader)
{
    if (!leader)
        return;
    scheduler_free(leader->scheduler);
    pthread_cond_destroy(&leader->changed);
    pthread_mutex_destroy(&leader->lock);
    pthread_mutex_destroy(&leader->wake_lock);
    free(leader);
}

/* Which streams are to be woken; collected under the lock, carried out after it. */
typedef struct {
    uint32_t n;
    uint32_t streams[SCHEDULER_STREAMS_MAX];
} wakes_t;

static void collect_wakes(leader_t *leader, wakes_t *wakes)
{
    wakes->n = 0;
    for (uint32_t i = 1; i <= SCHEDULER_STREAMS_MAX; i++)
        if (!leader->rung[i] && scheduler_has_output(leader->scheduler, i)) {
            leader->rung[i] = true;
            wakes->streams[wakes->n++] = i;
        }
}

static void ring_streams(leader_t *leader, const wakes_t *wakes)
{
    if (wakes->n == 0)
        return;
    pthread_mutex_lock(&leader->wake_lock);
    for (uint32_t i = 0; i < wakes->n; i++) {
        listener_t *listener = &leader->listeners[wakes->streams[i]];
        if (listener->wake)
            listener->wake(listener->context);
    }
    pthread_mutex_unlock(&leader->wake_lock);
}

static void ring_bell(leader_t *leader)
{
    pthread_mutex_lock(&leader->wake_lock);
    if (leader->bell)
        leader->bell(leader->bell_context);
    pthread_mutex_unlock(&leader->wake_lock);
}

/* ---- the service's side ---- */

uint32_t leader_stream_open(leader_t *leader, leader_wake_fn wake, void *context)
{
    pthread_mutex_lock(&leader->lock);
    uint32_t stream = 0;
    if (leader->scheduler && !leader->lost && !leader->stopping)
        stream = scheduler_stream_open(leader->scheduler, clock_ms());
    leader->rung[stream] = false;
    pthread_mutex_unlock(&leader->lock);
    if (stream != 0) {
        pthread_mutex_lock(&leader->wake_lock);
        leader->listeners[stream] = (listener_t){wake, context};
        pthread_mutex_unlock(&leader->wake_lock);
    }
    return stream;
}

void leader_stream_close(leader_t *leader, uint32_t stream)
{
    if (stream == 0 || stream > SCHEDULER_STREAMS_MAX)
        return;
    /* First deaf, then closed: once the number is free another stream may get it. */
    pthread_mutex_lock(&leader->wake_lock);
    leader->listeners[stream] = (listener_t){0};
    pthread_mutex_unlock(&leader->wake_lock);
    pthread_mutex_lock(&leader->lock);
    scheduler_stream_close(leader->scheduler, stream, clock_ms());
    pthread_mutex_unlock(&leader->lock);
}

void leader_admit(leader_t *leader, uint32_t stream, const admission_t *admission)
{
    wakes_t wakes;
    if (stream == 0)
        return;
    pthread_mutex_lock(&leader->lock);
    scheduler_admit(leader->scheduler, stream, admission, clock_ms());
    collect_wakes(leader, &wakes);
    pthread_cond_signal(&leader->changed);
    pthread_mutex_unlock(&leader->lock);
    ring_streams(leader, &wakes);
    ring_bell(leader);
}

void leader_cancel(leader_t *leader, const char *session, uint32_t choice, uint64_t owner)
{
    wakes_t wakes = {0};
    pthread_mutex_lock(&leader->lock);
    if (leader->scheduler) {
        scheduler_cancel(leader->scheduler, session, choice, owner, clock_ms());
        collect_wakes(leader, &wakes);
    }
    pthread_cond_signal(&leader->changed);
    pthread_mutex_unlock(&leader->lock);
    ring_streams(leader, &wakes);
    ring_bell(leader);
}

bool leader_take(leader_t *leader, uint32_t stream, sequence_output_t *out, sampled_t *drawn_out)
{
    if (stream == 0 || stream > SCHEDULER_STREAMS_MAX)
        return false;
    pthread_mutex_lock(&leader->lock);
    leader->rung[stream] = false;
    bool got = leader->scheduler && scheduler_output(leader->scheduler, stream, out);
    if (got && out->has_logprobs && drawn_out)
        memcpy(drawn_out, out->drawn, out->n_ids * sizeof *drawn_out);
    pthread_mutex_unlock(&leader->lock);
    if (got) {
        out->drawn = drawn_out;
        out->has_logprobs = out->has_logprobs && drawn_out;
    }
    return got;
}

bool leader_stream_overrun(leader_t *leader, uint32_t stream)
{
    pthread_mutex_lock(&leader->lock);
    bool overrun = leader->scheduler && scheduler_stream_overrun(leader->scheduler, stream);
    pthread_mutex_unlock(&leader->lock);
    return overrun;
}

uint64_t leader_credit(leader_t *leader, uint32_t stream)
{
    pthread_mutex_lock(&leader->lock);
    uint64_t credit = 0;
    if (leader->scheduler && !leader->lost && stream <= SCHEDULER_STREAMS_MAX)
        credit = scheduler_credit(leader->scheduler, stream);
    pthread_mutex_unlock(&leader->lock);
    return credit;
}

void leader_load(leader_t *leader, scheduler_load_t *out)
{
    *out = (scheduler_load_t){0};
    pthread_mutex_lock(&leader->lock);
    if (leader->scheduler)
        scheduler_load(leader->scheduler, out);
    pthread_mutex_unlock(&leader->lock);
}

void leader_stop(leader_t *leader)
{
    pthread_mutex_lock(&leader->lock);
    leader->stopping = true;
    pthread_cond_signal(&leader->changed);
    pthread_mutex_unlock(&leader->lock);
    ring_bell(leader);
}

uint32_t leader_flying(leader_t *leader, char (*sessions_out)[SESSION_BYTES], uint32_t max)
{
    pthread_mutex_lock(&leader->lock);
    uint32_t n = leader->scheduler ? scheduler_flying(leader->scheduler, sessions_out, max) : 0;
    pthread_mutex_unlock(&leader->lock);
    return n;
}

uint32_t leader_suspects(leader_t *leader, char (*sessions_out)[SESSION_BYTES], uint32_t max)
{
    pthread_mutex_lock(&leader->lock);
    uint32_t n = leader->n_suspects < max ? leader->n_suspects : max;
    memcpy(sessions_out, leader->suspects, n * sizeof leader->suspects[0]);
    pthread_mutex_unlock(&leader->lock);
    return n;
}

/* ---- the rank's side ---- */

status_t leader_install(leader_t *leader, const scheduler_config_t *config,
                        void (*bell)(void *context), void *bell_context)
{
    scheduler_t *scheduler;
    TRY(scheduler_new(config, &scheduler));
    pthread_mutex_lock(&leader->lock);
    CHECK(!leader->scheduler); /* a leader_t is one epoch */
    leader->scheduler = scheduler;
    pthread_mutex_unlock(&leader->lock);
    pthread_mutex_lock(&leader->wake_lock);
    leader->bell = bell;
    leader->bell_context = bell_context;
    pthread_mutex_unlock(&leader->wake_lock);
    return STATUS_OK;
}

/* Waits for a change until a time of the monotonic clock. */
static void wait_until(leader_t *leader, uint64_t at_ms)
{
    struct timespec until = {.tv_sec = (time_t)(at_ms / 1000),
                             .tv_nsec = (long)(at_ms % 1000) * 1000000};
    pthread_cond_timedwait(&leader->changed, &leader->lock, &until);
}

static bool try_plan(leader_t *leader, buffer_t *bytes_out)
{
    step_plan_t plan;
    if (leader->stopping || !scheduler_plan(leader->scheduler, clock_ms(), &plan))
        return false;
    step_plan_write(&plan, bytes_out);
    return true;
}

leader_next_t leader_next(leader_t *leader, uint32_t wait_ms, buffer_t *bytes_out)
{
    wakes_t wakes;
    leader_next_t next = LEADER_IDLE;
    pthread_mutex_lock(&leader->lock);
    bool planned = try_plan(leader, bytes_out);
    if (!planned && !leader->stopping && wait_ms > 0 &&
        scheduler_in_flight(leader->scheduler) == 0) {
        wait_until(leader, clock_ms() + wait_ms);
        planned = try_plan(leader, bytes_out);
    }
    if (planned)
        next = LEADER_PLAN;
    else if (leader->stopping && scheduler_in_flight(leader->scheduler) == 0)
        next = LEADER_STOPPED;
    collect_wakes(leader, &wakes); /* planning ends sequences whose deadline passed */
    pthread_mutex_unlock(&leader->lock);
    ring_streams(leader, &wakes);
    return next;
}

status_t leader_step_done(leader_t *leader, const step_result_t *result)
{
    wakes_t wakes;
    pthread_mutex_lock(&leader->lock);
    status_t status = scheduler_step_done(leader->scheduler, result, clock_ms());
    collect_wakes(leader, &wakes);
    pthread_mutex_unlock(&leader->lock);
    ring_streams(leader, &wakes);
    return status;
}

bool leader_ask_drafts(leader_t *leader, draft_model_t *draft)
{
    draft_ask_t asks[DRAFT_SEQUENCES_MAX];
    pthread_mutex_lock(&leader->lock);
    uint32_t n = leader->stopping ? 0 : scheduler_ask_drafts(leader->scheduler,
                                                           draft_model_context_max(draft), asks);
    if (n > 0)
        draft_model_take(draft, asks, n);
    pthread_mutex_unlock(&leader->lock);
    return n > 0;
}

void leader_drafts_done(leader_t *leader, const draft_answers_t *answers)
{
    pthread_mutex_lock(&leader->lock);
    scheduler_drafts_done(leader->scheduler, answers);
    pthread_mutex_unlock(&leader->lock);
}

void leader_step_took(leader_t *leader, uint64_t step, uint64_t took_ns)
{
    pthread_mutex_lock(&leader->lock);
    scheduler_step_took(leader->scheduler, step, took_ns);
    pthread_mutex_unlock(&leader->lock);
}

uint32_t leader_in_flight(leader_t *leader)
{
    pthread_mutex_lock(&leader->lock);
    uint32_t n = leader->scheduler ? scheduler_in_flight(leader->scheduler) : 0;
    pthread_mutex_unlock(&leader->lock);
    return n;
}

void leader_lose(leader_t *leader, const char *why)
{
    wakes_t wakes = {0};
    pthread_mutex_lock(&leader->wake_lock);
    leader->bell = NULL; /* the fabric that it rings is about to go */
    pthread_mutex_unlock(&leader->wake_lock);
    pthread_mutex_lock(&leader->lock);
    leader->lost = true;
    if (leader->scheduler) {
        leader->n_suspects =
            scheduler_lose(leader->scheduler, why, clock_ms(), leader->suspects, SUSPECTS_MAX);
        collect_wakes(leader, &wakes);
    }
    pthread_mutex_unlock(&leader->lock);
    ring_streams(leader, &wakes);
}

bool leader_session_in_slot(leader_t *leader, uint32_t slot, char session_out[SESSION_BYTES],
                            uint32_t *choice_out)
{
    pthread_mutex_lock(&leader->lock);
    const char *session = scheduler_session_in_slot(leader->scheduler, slot, choice_out);
    if (session)
        memcpy(session_out, session, SESSION_BYTES);
    pthread_mutex_unlock(&leader->lock);
    return session != NULL;
}
