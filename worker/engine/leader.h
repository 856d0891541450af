/* The leader's mailbox: what rank 0 of stage 0 and the threads of the Engine service share. It is
 * the scheduler behind one lock that is held only to copy, and a bell for the rank's thread.
 *
 * Order of life: leader_new() → rank_run() installs the scheduler when the epoch is formed, calls
 * `active`, runs steps, and on its way out ends every sequence as REPLICA_LOST (also on a stop) →
 * the service drains and closes its streams → leader_free(). One leader_t is one epoch; streams can
 * be opened from `active` on.
 *
 * Every function may be called from any thread unless it says otherwise. */
#ifndef SHOAL_WORKER_ENGINE_LEADER_H
#define SHOAL_WORKER_ENGINE_LEADER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/buffer.h"
#include "common/base/status.h"
#include "worker/engine/scheduler.h"

typedef struct leader leader_t;
typedef struct draft_model draft_model_t;

/* Called whenever a stream may have become non-empty, at most once until leader_take() was called
 * on it again; a first call may come from inside leader_stream_open's caller's next admission. On
 * the rank's thread or on that of an admission. It only rings a bell: it must not block and must
 * not call back into the leader. */
typedef void (*leader_wake_fn)(void *context);

leader_t *leader_new(void);
/* After rank_run() returned and every stream is closed. */
void leader_free(leader_t *take_leader);

/* 0 when too many are open, before the epoch is active, and after it ended. */
uint32_t leader_stream_open(leader_t *leader, leader_wake_fn wake, void *context);
/* No wake is running or will come after this returns. */
void leader_stream_close(leader_t *leader, uint32_t stream);

/* Whatever is wrong with an admission comes back as an end on its stream. */
void leader_admit(leader_t *leader, uint32_t stream, const admission_t *admission);
void leader_cancel(leader_t *leader, const char *session, uint32_t choice, uint64_t owner);

/* What a stream is owed next; false when there is nothing. `drawn_out` (SCHEDULER_OUTPUT_IDS_MAX
 * places, may be NULL) receives the log-probabilities, and out->drawn points to it. */
bool leader_take(leader_t *leader, uint32_t stream, sequence_output_t *out, sampled_t *drawn_out);

/* The stream leaves so much unread that the scheduler takes nothing from it any more: it is to be
 * closed. */
bool leader_stream_overrun(leader_t *leader, uint32_t stream);

/* Newest numbers, for HelloReply, StepOutput and the agent. */
uint64_t leader_credit(leader_t *leader, uint32_t stream);
void leader_load(leader_t *leader, scheduler_load_t *out);

/* Asks the rank's thread to end the epoch in good order: no further step is planned, running ones
 * come back, all ranks are told, rank_run() returns STATUS_OK. */
void leader_stop(leader_t *leader);

/* Sessions of the steps that are in flight now, at most max; returns how many. */
uint32_t leader_flying(leader_t *leader, char (*sessions_out)[SESSION_BYTES], uint32_t max);

/* After rank_run() failed: sessions that were in a step in flight, at most max; returns how many.
 */
uint32_t leader_suspects(leader_t *leader, char (*sessions_out)[SESSION_BYTES], uint32_t max);

/* ---- for rank.c alone, on the rank's thread ---- */

/* `bell`, which may be NULL, is called when an admission, a cancel or a stop came in, on that
 * thread; it must not block. */
status_t leader_install(leader_t *leader, const scheduler_config_t *config,
                        void (*bell)(void *context), void *bell_context) MUST_USE;

typedef enum {
    LEADER_PLAN,   /* a plan was made and its bytes are in the buffer */
    LEADER_IDLE,   /* nothing to run now */
    LEADER_STOPPED /* leader_stop() was called and nothing is in flight */
} leader_next_t;
/* The next plan's bytes. With nothing in flight it waits up to wait_ms for one. */
leader_next_t leader_next(leader_t *leader, uint32_t wait_ms, buffer_t *bytes_out);
status_t leader_step_done(leader_t *leader, const step_result_t *result) MUST_USE;
/* Before a plan: hands what scheduler_ask_drafts() asks to the draft model; false when that is
 * nothing. And what it answered. */
bool leader_ask_drafts(leader_t *leader, draft_model_t *draft);
void leader_drafts_done(leader_t *leader, const draft_answers_t *answers);
/* As scheduler_step_took(). */
void leader_step_took(leader_t *leader, uint64_t step, uint64_t took_ns);
uint32_t leader_in_flight(leader_t *leader);
/* Ends every sequence as REPLICA_LOST with these words; no stream can be opened any more. */
void leader_lose(leader_t *leader, const char *why);
/* False when the slot is free. */
bool leader_session_in_slot(leader_t *leader, uint32_t slot, char session_out[SESSION_BYTES],
                            uint32_t *choice_out);

#endif
