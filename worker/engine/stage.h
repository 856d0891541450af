/* A stage's slice on a device: its packed weights, its KV memory, and one step through its layers
 * in terms of the op table and the fabric. Knows nothing of sequences but the rows of a plan;
 * choosing tokens is head.h's business. Single-threaded. */
#ifndef SHOAL_WORKER_ENGINE_STAGE_H
#define SHOAL_WORKER_ENGINE_STAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/model/model.h"
#include "common/model/plan.h"
#include "kernels/ops.h"
#include "worker/engine/rank.h"
#include "worker/engine/step_plan.h"

#define STAGE_LOGIT_ROWS PLAN_LOGIT_ROWS /* rows that go through the head at once */

/* Weights of one layer; NULL where this rank's part is empty. */
typedef struct {
    kbuffer_t *attn_norm, *ffn_norm; /* F32 [hidden] */
    kweight_t *qkv;                  /* [q heads | k heads | v heads] of this rank */
    kweight_t *output;               /* K: this rank's heads */
    kweight_t *gate_up;              /* [gate rows | up rows] of this rank */
    kweight_t *down;                 /* K: this rank's rows */
} stage_layer_t;

/* Where one matmul's partials lie: those of slice i from leaf run runs[i], n_partials[i] matrices.
 */
typedef struct {
    uint32_t n_leaves;
    tree_run_t runs[PLAN_TP_MAX];
    uint32_t n_partials[PLAN_TP_MAX];
    uint32_t n_partials_before[PLAN_TP_MAX];
    uint32_t n_partials_all;
} stage_cut_t;

typedef struct stage stage_t;

/* What a host call of a step needs; lives until the step's event. */
typedef struct {
    stage_t *stage;
    const stage_cut_t *cut;
    uint32_t layer; /* of the model */
} stage_call_t;

struct stage {
    rank_config_t config; /* its texts are not used after stage_open */
    const kernel_ops_t *ops;
    const model_t *model;
    const model_config_t *shape;
    kdevice_t *device;
    kqueue_t *queue;
    plan_slice_t slice;
    bool first, last; /* of the replica's stages */
    stage_layer_t *layers;
    stage_cut_t attention_cut, ffn_cut;
    uint16_t kv_head_of[MODEL_HEADS_MAX];
    ktable_t *embedding; /* first stage */
    kbuffer_t *output_norm;
    kweight_t *head; /* last stage; NULL when this slice has no rows of the vocabulary */
    krope_t *rope;
    kkv_t *kv;
    kbatch_t *batch;
    uint32_t rows_max, blocks_max, n_blocks;
    uint64_t weight_bytes;

    /* Scratch of a step, by rows_max. */
    kbuffer_t *residual, *normed, *input, *qkv_out, *attended, *gate_up_out, *ffn_out, *partials;
    kbuffer_t *head_rows, *head_input, *logits; /* last stage, by STAGE_LOGIT_ROWS */
    kbatch_row_t *rows;
    kbatch_table_t *tables;
    stage_call_t *calls; /* 2 for each layer */

    /* The step in work. */
    fabric_t *fabric;
    rank_pulse_t *pulse;
    uint64_t step;
    uint32_t n_rows;
};

/* `model` is borrowed for the stage's life. */
status_t stage_open(const rank_config_t *config, const model_t *model, stage_t **own_out) MUST_USE;
void stage_close(stage_t *take_stage);

/* One step: rows of the plan through this stage's layers, to the next stage or, on the last one,
 * into the residual buffer. Returns when it is done. */
status_t stage_run(stage_t *stage, const step_plan_t *plan) MUST_USE;

/* Last stage: gathers `n` (<= STAGE_LOGIT_ROWS) rows of the residual stream and multiplies them by
 * this slice's rows of the head. On slice 0 the rows of all slices follow each other in *rows_out,
 * each with the whole vocabulary; elsewhere it is NULL. `whole` is scratch of n * vocab, used when
 * tp > 1. */
status_t stage_head(stage_t *stage, const uint32_t *rows, uint32_t n, float *whole,
                    const float **rows_out) MUST_USE;

static inline kref_t stage_at(kbuffer_t *buffer, size_t offset)
{
    return (kref_t){buffer, offset};
}

/* Something moved; see rank_pulse_t. */
static inline void stage_beat(stage_t *stage)
{
    if (stage->pulse)
        atomic_fetch_add_explicit(&stage->pulse->beats, 1, memory_order_relaxed);
}
static inline void stage_waiting(stage_t *stage, bool waiting)
{
    if (stage->pulse)
        atomic_store_explicit(&stage->pulse->waiting, waiting, memory_order_relaxed);
}

/* stage_load.c */
status_t stage_load_weights(stage_t *stage) MUST_USE;
void stage_release_weights(stage_t *stage);
/* Bytes of the widest input that any weight of the stage takes, a row. */
size_t stage_input_row_bytes(const stage_t *stage);

#endif
