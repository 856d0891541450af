/* The replica's scheduler: which sequences run in the next step, in which KV blocks, and what every
 * coordinator's stream is owed. A pure state machine: events and the time come in, step plans and
 * outputs go out; no thread, clock, socket or random source. leader.h puts a lock around it, the
 * simulator runs it as it is.
 *
 * Rules
 * - Continuous batching: sequences that decode come first, prefill chunks fill what is left of
 *   step_tokens_max. Where prompts are whole and there are several stages, pieces of prompts go first
 *   for the rows of a whole step, then all who decode have a turn. With S stages up to S batches are in
 *   flight; a sequence that decodes is in one of them, a prompt in pieces that follow each other
 *   through the stages, of which one more may be ahead.
 * - While some decode, a step has no more rows of prompts than what those would wait for them allows
 *   (step_cost.h), and no prompt takes all of them while another of its priority waits. Prompts have
 *   their turns by priority, then by tokens served to their tenants, then by arrival. Those that are
 *   less urgent than somebody who decodes count as one, however many they are; those that are more
 *   urgent than all who decode take what a step has.
 * - Waiting sequences start by priority, then by tokens served to their tenant while it wanted some,
 *   then by arrival.
 * One that lacks blocks may be passed by others SCHEDULER_PASSES_MAX times; then blocks are saved
 * for it.
 * - Short of blocks, the youngest running sequence is preempted, never the oldest; it comes back,
 * by recomputing its tokens, when blocks for all of them and its next 256 are free.
 * - A `solo` sequence runs alone: no other sequence is in its step and no other step is in flight.
 * - Admit is idempotent: a known (session, choice) is attached to. A higher owner number takes over
 *   and the attachment before it ends as superseded; a lower one is superseded at once.
 * - Output is state: a stream reads each sequence from its own `sent` position, as slowly as it
 * likes. Every admit ends in exactly one end on the stream that sent it, unless that stream closes
 * first.
 * - An ended sequence stays known for keep_ended_ms; one that nobody is attached to for
 *   keep_detached_ms is cancelled.
 *
 * - With several pools of blocks a sequence lives in one: that which has most of its beginning and
 * is not crowded for it, of equal ones that which has most room, and where that has too little the
 * next. It is chosen anew when
 * a preempted one returns. Whoever lacks blocks preempts in its own pool, of which the oldest stays.
 *
 * - Where every layer has a window, a sequence holds the blocks of what its next rows see and no
 * more; what it gives back stays known to later prompts while nobody needs the room.
 *
 * - Guesses (lookup.h, draft_cost.h) are further rows of a sequence that decodes. They take the place
 *   of no other that decodes, no blocks that another holds, and no row unless it is likely to pay.
 *
 * No allocation in the step path; admission allocates what the sequence will need. A step costs
 * O(running + log of all), however many wait. */
#ifndef SHOAL_WORKER_ENGINE_SCHEDULER_H
#define SHOAL_WORKER_ENGINE_SCHEDULER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "worker/engine/draft_ask.h"
#include "worker/engine/sampler.h"
#include "worker/engine/step_cost.h"
#include "worker/engine/step_plan.h"

#define SCHEDULER_PASSES_MAX 8u
#define SCHEDULER_RETURN_TOKENS 256u
#define SCHEDULER_STREAMS_MAX 64u
#define SCHEDULER_OUTPUT_IDS_MAX 64u
#define SCHEDULER_TENANTS_MAX 256u
#define SCHEDULER_NOTICES_MAX 4096u /* refusals and the like that a stream has not read */
#define SESSION_BYTES 33u /* 32 characters and a NUL */
#define LOGITS_NONE UINT32_MAX

typedef struct scheduler scheduler_t;

typedef struct {
    uint32_t n_blocks; /* KV blocks of 16 tokens, of each pool */
    uint32_t pools;    /* replicas of attention, each with blocks of its own; 0 takes 1 */
    uint32_t window;   /* no layer sees a key behind it (plan_kv_window): such blocks are given
                          back while their sequence runs; 0: none */
    uint32_t vocab;
    uint32_t context_max;      /* tokens of prompt and answer together */
    uint32_t stages;           /* batches in flight at most, beside one piece of prompts */
    uint32_t batch_max;        /* sequences in a step; 0 takes 64 */
    uint32_t step_tokens_max;  /* rows of a step; 0 takes 512 */
    uint32_t sequences_max;    /* waiting and running at once; 0 takes 1024 */
    uint64_t keep_ended_ms;    /* 0 takes 30,000 */
    uint64_t keep_detached_ms; /* 0 takes 30,000 */
    bool keep_prefixes;
    bool whole_prompts; /* prompts get the rows of whole steps, with several stages in pieces, however
                           many wait for their next token */
    uint32_t speculate_max;    /* guesses of a sequence in a step (lookup.h); 0: none */
    bool draft_model;          /* there is one to ask, for up to speculate_max guesses */
    uint32_t fixed_rows;       /* what a step costs beside its rows, in rows of guesses; 0 takes
                                  what scheduler_step_took() taught */
    const char *text_identity; /* borrowed for the call */
} scheduler_config_t;

/* What a coordinator asks for. Pointers are borrowed for the call. */
typedef struct {
    char session[SESSION_BYTES];
    uint32_t choice;
    uint64_t owner;
    uint32_t from_n; /* first produced index to send */
    const uint32_t *prompt;
    uint32_t n_prompt;
    const uint32_t *produced;
    uint32_t n_produced;
    sampling_t sampling;
    uint32_t max_tokens;      /* of produced ids, those given included */
    const uint32_t *stop_ids; /* end of text and the request's own together */
    uint32_t n_stop_ids;
    int32_t priority;     /* higher first */
    uint64_t deadline_ms; /* from now; 0 is none */
    const char *tenant;   /* NULL is "" */
    const char *adapter;  /* NULL is "" */
    bool attach_only;
    bool solo;
    uint32_t logits_from; /* eval: rows from this position on are sent to the leader's logits
                             callback; LOGITS_NONE otherwise */
} admission_t;

typedef enum {
    END_NONE = 0,
    END_FINISHED = 1,
    END_CANCELLED = 2,
    END_REFUSED = 3,
    END_SUPERSEDED = 4,
    END_REPLICA_LOST = 5,
} end_reason_t; /* the numbers of shoal.worker.v1.SequenceEnded.Reason */

typedef enum {
    FINISH_NONE = 0,
    FINISH_STOP = 1,
    FINISH_LENGTH = 2
} finish_t; /* as shoal.v1.FinishReason */

/* What a stream is owed for one sequence: new ids, an end, or both. */
typedef struct {
    char session[SESSION_BYTES];
    uint32_t choice;
    uint64_t owner;
    uint32_t first_position; /* index of ids[0] among the produced tokens */
    uint32_t n_ids;
    uint32_t ids[SCHEDULER_OUTPUT_IDS_MAX];
    bool has_logprobs;
    const sampled_t *drawn; /* n_ids of them when has_logprobs; valid until the scheduler changes,
                               so a caller with a lock copies them inside it */
    end_reason_t end;       /* END_NONE while it goes on */
    finish_t finish;
    const char
        *error_code; /* "" or a stable word: "invalid", "too_long", "deadline", "unknown", … */
    char error[STATUS_TEXT_MAX];
    uint32_t n_prompt, n_cached;
} sequence_output_t;

/* Numbers since the epoch began; shoal.worker.v1.Load and the steps of Replica. */
typedef struct {
    uint64_t steps;
    uint32_t running, waiting;
    uint64_t kv_tokens_free, kv_tokens_total;
    uint64_t prefix_hit_tokens;
    uint64_t sequences_max_in_step;
    uint64_t tokens_produced;
    uint64_t preemptions;
    uint64_t drafted_tokens;  /* guesses that were computed */
    uint64_t accepted_tokens; /* and of those the ones that became tokens */
    uint64_t model_drafted_tokens, model_accepted_tokens; /* of both, those of a draft model */
    uint64_t draft_ns; /* that its steps took */
} scheduler_load_t;

status_t scheduler_new(const scheduler_config_t *config, scheduler_t **own_out) MUST_USE;
void scheduler_free(scheduler_t *take_scheduler);

/* A coordinator's stream. Returns its number, or 0 when SCHEDULER_STREAMS_MAX are open. */
uint32_t scheduler_stream_open(scheduler_t *s, uint64_t now_ms);
/* It has not read SCHEDULER_NOTICES_MAX ends that belong to no sequence of its own: nothing more is
 * admitted on it, what it is owed is incomplete, and it is to be closed. */
bool scheduler_stream_overrun(const scheduler_t *s, uint32_t stream);
/* Its sequences go on; they are cancelled when nobody attaches within keep_detached_ms. */
void scheduler_stream_close(scheduler_t *s, uint32_t stream, uint64_t now_ms);

/* Starts or attaches; whatever is wrong with it comes back as an end on the stream. */
void scheduler_admit(scheduler_t *s, uint32_t stream, const admission_t *admission,
                     uint64_t now_ms);
/* Ignored when the sequence is unknown or has a higher owner number. */
void scheduler_cancel(scheduler_t *s, const char *session, uint32_t choice, uint64_t owner,
                      uint64_t now_ms);

/* Deadlines, detached and ended sequences whose time is over. Returns when it wants to be called
 * next at the latest (UINT64_MAX: no need). */
uint64_t scheduler_tick(scheduler_t *s, uint64_t now_ms);

/* Makes the next plan, or returns false when there is nothing to do now: nothing runnable, or
 * enough batches in flight. The plan's arrays are the scheduler's, valid until the next call of
 * this. */
bool scheduler_plan(scheduler_t *s, uint64_t now_ms, step_plan_t *plan_out);
/* A step came back. Steps come back in the order in which they were planned. INTERNAL when the
 * result does not answer the plan. */
status_t scheduler_step_done(scheduler_t *s, const step_result_t *result, uint64_t now_ms) MUST_USE;
/* A rank worked so long on a step in flight; of several, and of what the step's result says, the
 * longest counts, since the slowest stage sets the pace. What is learnt of it (step_cost.h) when the
 * step comes back goes into later plans; a scheduler that is never told goes by a first guess. */
void scheduler_step_took(scheduler_t *s, uint64_t step, uint64_t took_ns);
uint32_t scheduler_in_flight(const scheduler_t *s);

/* Before a plan: which of those that it would let decode are worth guesses of a draft model, and how
 * many; a sequence and its guesses together are at most `context_max` long, the draft model's. Ids
 * and parameters point into the scheduler and stay until it changes. Returns how many. */
uint32_t scheduler_ask_drafts(scheduler_t *s, uint32_t context_max,
                              draft_ask_t asks_out[DRAFT_SEQUENCES_MAX]);
/* What the draft model answered, and how long it took; the next plan uses it. */
void scheduler_drafts_done(scheduler_t *s, const draft_answers_t *answers);

/* Sessions of the steps that are in flight now; at most max are written, returns how many. */
uint32_t scheduler_flying(const scheduler_t *s, char (*sessions_out)[SESSION_BYTES], uint32_t max);

/* The replica is lost: every attached sequence ends with END_REPLICA_LOST and these words. Sessions
 * that were in a step in flight are written to `suspects_out` (at most max); returns how many. */
uint32_t scheduler_lose(scheduler_t *s, const char *why, uint64_t now_ms,
                        char (*suspects_out)[SESSION_BYTES], uint32_t max);

/* The next thing that `stream` is owed; false when there is nothing. Marks it as sent. */
bool scheduler_output(scheduler_t *s, uint32_t stream, sequence_output_t *out);
bool scheduler_has_output(const scheduler_t *s, uint32_t stream);

/* KV tokens that the stream's coordinator may have committed at once: the prompt + max_tokens of
 * all it admitted whose end it has not been sent, and its share of what nobody has committed. */
uint64_t scheduler_credit(const scheduler_t *s, uint32_t stream);
void scheduler_load(const scheduler_t *s, scheduler_load_t *out);

/* The session and choice in a slot (for logits and fail points); NULL when the slot is free. */
const char *scheduler_session_in_slot(const scheduler_t *s, uint32_t slot, uint32_t *choice_out);

#endif
