/* The end of the last stage: rows of logits, and on slice 0 the choice of tokens. Keeps, by slot,
 * what plans opened: parameters and how often each id occurred. Single-threaded. */
#ifndef SHOAL_WORKER_ENGINE_HEAD_H
#define SHOAL_WORKER_ENGINE_HEAD_H

#include "worker/engine/stage.h"

typedef struct head head_t;

/* Rows of logits that an entry asked for; `slot` names the sequence. */
typedef status_t (*head_logits_fn)(void *context, uint32_t slot, uint32_t position, uint32_t n_rows,
                                   const float *rows);

/* `stage` is borrowed for the head's life. */
head_t *head_new(stage_t *stage);
void head_free(head_t *take_head);
/* Forgets every slot: a new epoch. */
void head_reset(head_t *head);

/* After stage_run() of the same plan: carries out closes and opens, computes the rows that the plan
 * asks for and draws. On slice 0 `result_out` receives what was drawn; its array is the head's and
 * valid until the next call. */
status_t head_run(head_t *head, const step_plan_t *plan, head_logits_fn logits, void *context,
                  step_result_t *result_out) MUST_USE;

#endif
