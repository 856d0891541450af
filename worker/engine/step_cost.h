/* What a step costs, learnt from the steps that were run, and what follows from it: how many rows of
 * prompts a step may take while others wait for their next token, and what a step costs beside its
 * rows. No number of a model depends on it: it decides in which steps rows are computed, and never
 * which.
 *
 * A step is taken to cost a sum of five parts: itself, each row, each row of logits, and each key
 * that a row attends to, which is dearer for a row alone than for a prompt's rows in tiles. Their
 * prices are fitted to the times of recent steps. What those do not tell apart (streams that decode,
 * ten to a step for minutes) keeps the proportions of the first guess, and what steps with prompts
 * told is not forgotten while none come.
 *
 * Pure: times come in, nothing is measured here. No allocation. */
#ifndef SHOAL_WORKER_ENGINE_STEP_COST_H
#define SHOAL_WORKER_ENGINE_STEP_COST_H

#include <stdbool.h>
#include <stdint.h>

#include "worker/engine/step_plan.h"

#define STEP_COST_PARTS 5u

/* A step's work by what it is paid for. */
typedef struct {
    uint32_t rows, logits;
    uint64_t decode_keys; /* that rows of one token attend to, summed over the rows */
    uint64_t prompt_keys; /* and those of longer chunks */
} step_work_t;

/* Zero-initialised it knows the first guess alone. */
typedef struct {
    double price[STEP_COST_PARTS]; /* ns; 0 before the first step was seen */
    double pace; /* how many times what they should have taken the last steps of prompts beside
                    streams took; goes back to 1 in others; 0: none was seen */
    struct {
        double xx[STEP_COST_PARTS][STEP_COST_PARTS], xy[STEP_COST_PARTS];
    } seen[2]; /* recent steps without rows of prompts, and with them */
} step_cost_t;

/* What `plan` asks for. */
void step_cost_work(const step_plan_t *plan, step_work_t *out);

/* A step of this work took so long. */
void step_cost_learn(step_cost_t *cost, const step_work_t *work, uint64_t took_ns);

/* What such a step is expected to take, in ns; before the first one was seen, in rows. */
double step_cost_of(const step_cost_t *cost, const step_work_t *work);

/* What a step costs beside its rows, in rows that decode behind `context` tokens; at least 1. */
uint32_t step_cost_fixed_rows(const step_cost_t *cost, uint64_t context);

/* Who waits for whom when the next step is planned. */
typedef struct {
    uint32_t n_decoding;  /* sequences that wait for their next token */
    uint64_t decode_keys; /* their tokens together */
    uint32_t n_prompts;   /* sequences that wait for their first one, could run, and are no less
                             urgent than those that decode */
    uint64_t context;     /* tokens before the rows that would come next */
    uint32_t stages;      /* batches in flight */
    uint32_t n_guesses;   /* rows of guesses that the step has beside those that decode */
} step_queue_t;

/* Rows of prompts that the next step may have. One prompt makes the step of those that decode, with
 * their guesses, half as long again and no longer; where n wait it is n * n times that, since each of
 * them waits for all before it and the batch is the poorer by all of them, but once prices are known no
 * more than n times that or what fits into a step of 30 ms, whichever is more. UINT32_MAX when nobody
 * decodes. */
uint32_t step_cost_prompt_rows(const step_cost_t *cost, const step_queue_t *queue);

/* Rows of a piece, where prompts of n_rows together go through so many stages with nothing else: pieces
 * of r take (n_rows / r + stages - 1) * (r + fixed rows), which is least at sqrt(n_rows * fixed /
 * (stages - 1)). UINT32_MAX for one stage. */
uint32_t step_cost_piece_rows(const step_cost_t *cost, uint64_t n_rows, uint32_t stages);

#endif
