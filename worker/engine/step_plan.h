/* A step plan: what the leader tells every rank to do in one step. Ranks run plans strictly in the
 * order of `step` and keep no state of sequences but what plans gave them: by slot, all their block
 * numbers, and the last stage parameters and ids for the sampler, from an `open` to the `close` of it.
 *
 * On the wire (lane PLAN) a plan is little-endian. A sequence's block numbers are named once: its bytes
 * do not grow with the text, and who reads plans keeps, by slot, those that were named (step_blocks_t).
 * step_plan_read() checks every count, index and length against the limits below before anything is
 * used. */
#ifndef SHOAL_WORKER_ENGINE_STEP_PLAN_H
#define SHOAL_WORKER_ENGINE_STEP_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buffer.h"
#include "common/base/memory.h"
#include "common/base/status.h"
#include "worker/engine/sampler.h"

#define STEP_ENTRIES_MAX 512u /* sequences in one step */
#define STEP_SLOTS_MAX 1024u  /* sequences that the last stage knows at once */
#define STEP_TOKENS_MAX 8192u /* rows of one step */
#define STEP_SAMPLES_MAX STEP_ENTRIES_MAX /* tokens that one step gives */
#define STEP_PLAN_BYTES_MAX (64u << 20)
/* Part of what ranks agree on when they form: those with other plans, or other messages
 * between them, are of another version. */
#define STEP_PLAN_VERSION "plans 5"

typedef enum {
    STEP_RUN = 1,  /* compute the entries */
    STEP_STOP = 2, /* the epoch is over in good order: ranks return from rank_run() */
    STEP_HEAD = 3, /* no step of its own: earlier stages make their part of the heads up to `step` */
} step_kind_t;

/* A sequence becomes known to the last stage: its ids so far and how to choose the next ones. */
typedef struct {
    uint32_t slot;
    uint32_t choice;
    uint32_t n_prompt, n_produced;
    const uint32_t *ids; /* n_prompt + n_produced */
    sampling_t sampling;
} step_open_t;

/* One sequence's part of the step: n_tokens rows that begin at absolute position `position`. */
typedef struct {
    uint32_t slot;
    uint32_t pool;       /* the replica of attention that has its KV; ascending in a plan */
    uint32_t position;
    uint32_t n_tokens;
    uint32_t n_blocks;   /* covers position + n_tokens tokens */
    uint32_t n_told;     /* of these, the first that earlier plans named for this slot */
    uint32_t n_logits;   /* the last n_logits rows go through the head; at least `sample` */
    bool sample;         /* draw a token from the last row */
    uint32_t n_draft;    /* with `sample`: the last n_draft rows are guesses. Draws begin n_draft rows
                            earlier and end with the first token that is not the next row's */
    bool want_logits;    /* send the n_logits rows to the leader as well (eval) */
    const uint32_t *ids; /* n_tokens */
    const uint32_t *blocks;
} step_entry_t;

typedef struct {
    step_kind_t kind;
    uint64_t step; /* 1, 2, 3, … in an epoch */
    uint32_t n_closes, n_opens, n_entries;
    uint32_t n_tokens;  /* sum over the entries */
    uint32_t n_blocks;  /* sum over the entries */
    uint32_t n_logits;  /* sum over the entries */
    uint32_t n_samples; /* entries with `sample`, and their guesses: tokens that may come of it */
    uint32_t *closes;   /* slots; carried out before the opens */
    step_open_t *opens;
    step_entry_t *entries;
} step_plan_t;

/* What a reader holds a plan against. */
typedef struct {
    uint32_t vocab;
    uint32_t context_max;
    uint32_t n_blocks; /* KV blocks of this epoch, of each pool */
    uint32_t pools;    /* replicas of attention; 0 is 1 */
} step_limits_t;

/* Block numbers of the sequences in slots, as far as the plans of an epoch have named them. */
typedef struct {
    struct {
        uint32_t n, capacity;
        uint32_t *blocks;
    } slots[STEP_SLOTS_MAX];
} step_blocks_t;

/* A new epoch: nothing was named. Memory is kept. */
void step_blocks_clear(step_blocks_t *blocks);
void step_blocks_release(step_blocks_t *blocks);

/* Replaces the content of `out` with the plan's bytes. */
void step_plan_write(const step_plan_t *plan, buffer_t *out);
/* Reads bytes into *out. Its arrays live in `arena`, ids are copied; block numbers live in `blocks` and
 * stay until the next call. INVALID names what is wrong; `blocks` is then of no more use. */
status_t step_plan_read(const void *bytes, size_t size, const step_limits_t *limits,
                        step_blocks_t *blocks, arena_t *arena, step_plan_t *out) MUST_USE;

/* What the sampling rank answers: for each entry with `sample` one token, and further ones as far as
 * its guesses were right, all with its slot. */
typedef struct {
    uint32_t slot;
    bool failed; /* the row was not finite: no token; the sequence's loss, not the replica's; the
                    last of its entry */
    sampled_t sampled;
} step_drawn_t;

typedef struct {
    uint64_t step;
    uint64_t took_ns; /* that the answering rank worked on it, without its waits for other stages */
    uint32_t n;
    step_drawn_t *drawn; /* in the order of the plan's entries */
} step_result_t;

void step_result_write(const step_result_t *result, buffer_t *out);
status_t step_result_read(const void *bytes, size_t size, uint32_t vocab, arena_t *arena,
                          step_result_t *out) MUST_USE;

#endif
