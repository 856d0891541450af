/* What the scheduler asks of a draft model and what it is answered: how the ids of some sequences may
 * go on. Only guesses: the sampler draws every token of a text itself. */
#ifndef SHOAL_WORKER_ENGINE_DRAFT_ASK_H
#define SHOAL_WORKER_ENGINE_DRAFT_ASK_H

#include <stdint.h>

#include "worker/engine/lookup.h"
#include "worker/engine/sampler.h"
#include "worker/engine/step_cost.h"

/* Sequences that a draft model goes along with. Where more decode, their rows hide what a step costs
 * beside them, and guesses by a model do not pay. */
#define DRAFT_SEQUENCES_MAX 8u
#define DRAFT_STEPS_MAX (DRAFT_MAX + 1)

typedef struct {
    uint64_t serial; /* of the sequence, which no other has in this epoch */
    uint32_t choice;
    uint32_t n_ids, n_wanted; /* known ids, and guesses that should follow them */
    uint32_t rows_max;        /* of its ids in one step of the draft model */
    const uint32_t *ids;
    const sampling_t *sampling;
} draft_ask_t;

/* `n` is 0 while the draft model has not seen all ids; then n_known of them, and more the next time. */
typedef struct {
    uint64_t serial;
    uint32_t n_ids; /* as asked */
    uint32_t n_known;
    uint32_t n;
    uint32_t ids[DRAFT_MAX];
} draft_answer_t;

typedef struct {
    uint32_t n;
    draft_answer_t answers[DRAFT_SEQUENCES_MAX];
    /* What the draft model's steps were, and how long they took. */
    uint32_t n_steps;
    step_work_t works[DRAFT_STEPS_MAX];
    uint64_t took_ns[DRAFT_STEPS_MAX];
} draft_answers_t;

#endif
