/* Whether guesses of a draft model pay, and how many. They cost rows of a step, as all guesses do, and
 * steps of the draft model before it: one for each guess, and all of a text's ids once. What both
 * models' steps take is learnt (step_cost.h), and how often guesses were right is counted.
 *
 * While they do not pay they are still tried now and then, or it would never be noticed that they do:
 * what a trial is expected to cost is paid from an allowance, a small part of the time that steps
 * took. So a draft model that is always wrong costs that part and no more, after its first sequences.
 *
 * Pure: times come in, nothing is measured here. No allocation. */
#ifndef SHOAL_WORKER_ENGINE_DRAFT_COST_H
#define SHOAL_WORKER_ENGINE_DRAFT_COST_H

#include <stdbool.h>
#include <stdint.h>

#include "worker/engine/step_cost.h"

/* Zero-initialised it knows nothing yet. */
typedef struct {
    step_cost_t step;    /* of the draft model */
    uint32_t n_steps;    /* that it was learnt from, as far as they are counted */
    double rate;         /* how often guesses were right lately, of all sequences */
    bool rated;          /* some were held against a token */
    double allowance_ns; /* for trials */
} draft_cost_t;

/* A sequence whose last id is known, and the step that it would decode in. */
typedef struct {
    double rate;            /* of its guesses */
    uint32_t n_rows;        /* sequences that decode in the step */
    uint64_t keys;          /* that their rows attend to, together */
    uint32_t stages;        /* that a token goes through while no other batch keeps them busy; 1 or more */
    uint32_t behind;        /* its ids that the draft model has not seen */
    uint32_t context;       /* its ids */
    uint32_t tokens_left;   /* that it may still produce */
    uint32_t max;           /* guesses */
    uint32_t fixed_rows;    /* tests: a step costs this and its rows, and the draft model nothing; 0: as
                               learnt */
} draft_case_t;

/* The rate that a sequence starts with. */
double draft_cost_first_rate(const draft_cost_t *cost);

/* Enough of its steps were seen. Before, one sequence at a time is enough to learn what they take. */
bool draft_cost_is_learnt(const draft_cost_t *cost);

/* How many guesses are worth their cost; 0: none. Where none are and the allowance holds a trial, it
 * is taken from the allowance and a few are tried. */
uint32_t draft_cost_length(draft_cost_t *cost, const step_cost_t *target, const draft_case_t *c);

/* n_guessed guesses were computed and the first n_right of them were right. */
void draft_cost_held(draft_cost_t *cost, double *rate, uint32_t n_guessed, uint32_t n_right);

/* A step without guesses took so long, or a step of the draft model. */
void draft_cost_step_took(draft_cost_t *cost, uint64_t took_ns);
void draft_cost_draft_took(draft_cost_t *cost, const step_work_t *work, uint64_t took_ns);

#endif
