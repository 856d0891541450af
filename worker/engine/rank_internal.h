/* What a rank's files share: rank_open.c (its model, stage and memory), rank.c (an epoch and its
 * steps), rank_results.c (logits, the head of earlier stages, and what comes back to the leader). */
#ifndef SHOAL_WORKER_ENGINE_RANK_INTERNAL_H
#define SHOAL_WORKER_ENGINE_RANK_INTERNAL_H

#include "worker/engine/draft_model.h"
#include "worker/engine/head.h"
#include "worker/engine/rank.h"
#include "worker/engine/stage.h"

/* Steps whose head an earlier stage may still owe: those in flight. */
#define RANK_HEADS_MAX (2 * PLAN_STAGES_MAX)

/* On an earlier stage of a shared head: the rows of each planned step that go through it. */
typedef struct {
    uint64_t planned, done;           /* steps */
    uint32_t n_rows[RANK_HEADS_MAX]; /* by step */
    uint32_t n_rows_done;             /* of step done + 1 */
} rank_heads_t;

struct rank {
    rank_config_t config;
    const model_t *model;
    model_t *own_model; /* NULL when the caller had opened it */
    stage_t *stage;
    head_t *head; /* last stage */
    draft_model_t *draft; /* the leader's, when it has one */
    char identity[DIGEST_HEX_SIZE], digest[MODEL_DIGEST_SIZE];

    /* One epoch. */
    fabric_t *fabric;
    leader_t *leader;
    const rank_callbacks_t *callbacks;
    trace_t *trace; /* NULL: none */
    step_limits_t limits;
    step_blocks_t blocks;
    uint64_t last_step;
    uint32_t sampling_rank;
    rank_heads_t heads;
    char flying[STEP_ENTRIES_MAX][SESSION_BYTES];
    arena_t arena, result_arena;
    buffer_t plan_bytes, result_bytes, row_bytes;
};

/* A send waits when the receiver has fallen behind; the fabric's own timeout then decides. */
status_t rank_send(rank_t *rank, uint32_t peer, fabric_lane_t lane, const fabric_where_t *where,
                   const buffer_t *bytes) MUST_USE;

/* A head_logits_fn: rows of logits that an admission asked for, on their way to the leader. */
status_t rank_deliver_logits(void *context, uint32_t slot, uint32_t position, uint32_t n_rows,
                             const float *rows) MUST_USE;

/* On the leader: takes what has come back, and makes its part of the heads whose rows have come;
 * waits up to wait_ms for the first of it, an admission or a failure. */
status_t rank_collect(rank_t *rank, uint32_t wait_ms) MUST_USE;

/* Every rank runs the heads of a step between the same two steps, or two ranks of a stage could wait for
 * each other. The leader decides when its stage does, and says so to all (STEP_HEAD) before it runs
 * one. With S stages and as many batches in flight, stage s has come to step m when the last one has
 * come to the end of step m + s - S, so it makes that head before; those that it is told of it makes
 * at once. With a piece ahead of those batches a stage between the first and the last one may wait
 * there for a step of the last one. Leaving that head for later would hold the last stage up instead,
 * and with it those who decode. The first stage never waits so: nothing goes ahead of its head. */

/* A plan of this step was read. */
void rank_heads_plan(rank_t *rank, const step_plan_t *plan);
/* Whether this rank has a part in a head that it has not made yet: step and rows, at most
 * STAGE_LOGIT_ROWS at once. */
bool rank_heads_due(rank_t *rank, uint64_t *step_out, uint32_t *n_rows_out);
/* Not on the leader: makes its part of the heads up to a step. */
status_t rank_heads_through(rank_t *rank, uint64_t step) MUST_USE;

#endif
