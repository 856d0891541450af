/* A draft model: a small model with the same tokens, whole on the leader's rank, that guesses how the
 * sequences of a larger one go on. It has its own weights, its own small cache and its own threads, and
 * no other rank knows of it: guesses travel as rows of the step plan, and the sampler keeps those that
 * it would have drawn, so a guess decides how many tokens a step gives and never which.
 *
 * It draws as the sampler would, with the sequence's own parameters and random numbers but without
 * penalties, so that it is right as often for drawn texts as for greedy ones.
 *
 * What it knows of a sequence it may lose at any time: it sees the ids again the next time it is
 * asked. So preemption, cancels and ends need no word here, and a new epoch begins with nothing.
 *
 * All functions are called from the rank's thread. draft_model_take() alone may be called with the
 * scheduler locked: it copies. */
#ifndef SHOAL_WORKER_ENGINE_DRAFT_MODEL_H
#define SHOAL_WORKER_ENGINE_DRAFT_MODEL_H

#include "common/base/status.h"
#include "worker/engine/draft_ask.h"
#include "worker/engine/rank.h"

/* Opens the draft model of `rank`'s configuration, whose defaults are set, for a model of this
 * vocabulary. INVALID when its tokens are not that model's. */
status_t draft_model_open(const rank_config_t *rank, uint32_t vocab,
                          draft_model_t **own_out) MUST_USE;
void draft_model_close(draft_model_t *take_draft); /* NULL is fine */
uint64_t draft_model_bytes(const draft_model_t *draft); /* its weights */
/* Ids and guesses of a sequence that it can go along with. */
uint32_t draft_model_context_max(const draft_model_t *draft);

/* A new epoch: no sequence is known, and progress shows in `pulse`, which may be NULL. */
void draft_model_begin(draft_model_t *draft, rank_pulse_t *pulse);

/* Copies what is asked; at most DRAFT_SEQUENCES_MAX. */
void draft_model_take(draft_model_t *draft, const draft_ask_t *asks, uint32_t n);
/* Answers all that was taken. `out` is the draft model's and valid until the next call. */
status_t draft_model_run(draft_model_t *draft, const draft_answers_t **out) MUST_USE;

#endif
