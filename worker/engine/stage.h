/* A stage's slice on a device: its packed weights, its KV memory, and one step through its layers
 * in terms of the op table and the fabric. Knows nothing of sequences but the rows of a plan;
 * choosing tokens is head.h's business. Single-threaded. */
#ifndef SHOAL_WORKER_ENGINE_STAGE_H
#define SHOAL_WORKER_ENGINE_STAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/pool.h"
#include "common/base/status.h"
#include "common/model/manifest.h"
#include "common/model/model.h"
#include "common/model/plan.h"
#include "kernels/fused.h"
#include "kernels/ops.h"
#include "worker/engine/pack_cache.h"
#include "worker/engine/stage_ahead.h"
#include "worker/engine/rank.h"
#include "worker/engine/step_plan.h"

#define STAGE_LOGIT_ROWS PLAN_LOGIT_ROWS /* rows that go through the head at once */

/* Where one matmul's partials lie: those of slice i from leaf run runs[i], n_partials[i] matrices.
 */
typedef struct {
    uint32_t n_leaves;
    tree_run_t runs[PLAN_TP_MAX];
    uint32_t n_partials[PLAN_TP_MAX];
    uint32_t n_partials_before[PLAN_TP_MAX];
    uint32_t n_partials_all;
} stage_cut_t;

/* How a block reads the streams of the residual and writes them; without streams all NULL. */
typedef struct {
    kweight_t *fn; /* F32 */
    kbuffer_t *base, *scale;
} stage_mix_t;

/* A compressor of positions into entries. */
typedef struct {
    kweight_t *weight; /* [kv | gate] */
    kbuffer_t *position, *norm;
} stage_compressor_t;

/* The caches of the layers of one kind that have entries; NULL where there are none. */
typedef struct {
    uint32_t n_layers;
    kkv_t *inputs, *entries, *index_inputs, *index_entries;
} stage_entries_t;

/* Weights of one layer; NULL where this rank's part is empty or the model has none. */
typedef struct {
    const model_layer_t *kind;
    kbuffer_t *attn_norm, *attn_post_norm, *ffn_norm, *ffn_post_norm; /* F32 [hidden] */

    /* Grouped attention: [q heads | k heads | v heads] of this rank. Latent attention: [q_a or q of
     * this rank's heads | kv_a]. */
    kweight_t *qkv;
    kbuffer_t *qkv_bias, *q_norm, *k_norm, *sinks;
    kweight_t *output; /* K: this rank's heads */
    kbuffer_t *output_bias;

    /* Latent attention. */
    kbuffer_t *q_a_norm, *kv_a_norm;
    kweight_t *q_b;
    kheads_t *k_b, *v_b; /* into the latent and out of it, a matrix a head */

    /* Compressed attention: qkv is [q_a | kv], q_a_norm, kv_a_norm, q_b, sinks and output as above. */
    kheads_t *output_a; /* a matrix a group of heads */
    stage_compressor_t compressor, index_compressor;
    uint32_t entries_layer; /* in the caches of its kind */

    stage_mix_t attn_mix, ffn_mix;

    /* The indexer. */
    kweight_t *index_q, *index_k, *index_weights;
    kbuffer_t *index_norm, *index_norm_bias;

    /* Dense: [gate rows | up rows] of this rank, and K: this rank's rows. */
    kweight_t *gate_up, *down;
    kbuffer_t *gate_up_bias, *down_bias;

    /* Experts. */
    kweight_t *router; /* F32: experts, then the shared expert's gate */
    kbuffer_t *router_bias, *router_correction, *router_table;
    uint32_t n_experts; /* of this rank */
    kweight_t **expert_gate_up, **expert_down;
    kbuffer_t *expert_gate_up_bias, *expert_down_bias;
    kexperts_t *experts;
    kweight_t *shared_gate_up, *shared_down;
    kexperts_t *shared;
} stage_layer_t;

typedef struct stage stage_t;

/* What a host call of a step needs; lives until the step's event. */
typedef struct {
    stage_t *stage;
    const stage_cut_t *cut;
    uint32_t layer;             /* of the model */
    uint32_t row_first, n_rows; /* of the step: those of a part; with several replicas of attention
                                   of each replica's rows */
} stage_call_t;

/* A projection that every slice with attention needs whole. */
typedef struct {
    const kweight_t *weight; /* whole, or the columns that this slice makes; NULL: none of them */
    uint32_t columns;        /* of the whole, and from row to row of `out` */
    kbuffer_t *out;
} stage_projection_t;

/* Some that are exchanged together, for a part. */
enum { STAGE_PROJECTIONS_MAX = 4 };
typedef struct {
    stage_call_t call;
    uint32_t n;
    stage_projection_t items[STAGE_PROJECTIONS_MAX];
} stage_projections_t;

/* Rows of a step that go together through what treats each row for itself, so that its scratch need
 * not hold a whole step. Any division gives the same bytes. */
typedef struct {
    kbatch_t *batch;
    uint32_t index, first, n;
} stage_part_t;

struct stage {
    rank_config_t config; /* its texts are not used after stage_open */
    const kernel_ops_t *ops;
    const model_t *model;
    manifest_t *manifest; /* the model's seal; NULL when it has none */
    const model_config_t *shape;
    kdevice_t *device;
    kqueue_t *queue;
    plan_cut_t cut;
    plan_slice_t slice;
    bool first, last; /* of the replica's stages */
    bool has_head;    /* the last one, or all of them when they share the head */
    stage_layer_t *layers;
    stage_cut_t attention_cut, ffn_cut;
    uint32_t projection_slices;           /* that share the projections; 1: each makes them whole */
    uint32_t projection_of[PLAN_TP_MAX]; /* a slice's number among those with attention */
    kactivate_t activate;
    bool has_experts, has_latent, has_index, has_compressed; /* some layer of this stage */
    uint32_t residual_columns; /* hidden, times the streams */
    uint16_t kv_head_of[MODEL_HEADS_MAX];
    ktable_t *embedding; /* first stage */
    uint8_t *embedding_rows; /* own, where the files do not hold them as rows */
    kbuffer_t *output_norm;
    kweight_t *head; /* NULL when this rank has no rows of the vocabulary */
    krope_t *ropes[MODEL_ROPES_MAX]; /* of keys and queries */
    krope_t *latent_key_rope;        /* the same for the one key head, which stands elsewhere */
    krope_t *index_rope;
    krope_t *inverse_ropes[MODEL_ROPES_MAX];
    kkv_t *kv, *index_kv;
    stage_entries_t overlap, stride;
    stage_mix_t head_mix;
    /* Rows in work: those of the step, or inside attention those of this slice's replica. `batch` has
     * them, their matrices begin with them but for the residual, and work_rows counts them. */
    kbatch_t *batch, *part_batch, *one_row;
    uint32_t work_first, work_rows;
    kbatch_t *step_batch, *own_batch; /* own_batch: NULL with one replica of attention */
    plan_run_t replica_slices[PLAN_TP_MAX];
    uint32_t replica; /* this slice's */
    bool always_pieces; /* however few rows: a test's */
    uint32_t rows_max, blocks_max, n_blocks;
    uint32_t part_rows; /* of a part; the last one may have less */
    uint32_t index_top_k; /* keys that a row sees at most */
    uint64_t weight_bytes;

    /* While it loads. The cache lives as long as the weights, which it may still be writing. */
    pool_t *readers;
    pack_cache_t *pack_cache;
    stage_ahead_t *ahead;
    uint64_t load_told_ms;

    /* Scratch of a step, by rows_max; the second line by part_rows. */
    kbuffer_t *residual, *normed, *qkv_out, *attended;
    kbuffer_t *input, *gate_up_out, *middle, *partials, *sums_of_all;
    kbuffer_t *latent_q, *latent_query, *latent_attended;
    kbuffer_t *flat, *mix_input, *mixes, *mix_weights, *collapsed; /* streams */
    kbuffer_t *compress_out, *index_compress_out, *grouped;
    kbuffer_t *projected; /* by part_rows: this slice's columns of projections that are cut */
    kbuffer_t *router_out, *expert_ids, *expert_weights, *sums;
    kbuffer_t *index_q_out, *index_k_out, *index_weights_out, *selected, *n_selected;
    kbuffer_t *head_rows, *head_input, *logits; /* with the head, by STAGE_LOGIT_ROWS */
    kbatch_row_t *rows;
    kbatch_table_t *tables;
    stage_projections_t *projections; /* 2 for each layer and part; NULL when they are not cut */
    stage_call_t *calls; /* 2 for each layer and part, 1 for each layer, 2 for the ends */

    /* The step in work. */
    fabric_t *fabric;
    rank_pulse_t *pulse;
    trace_t *trace; /* of the rank; NULL: none */
    uint64_t step;
    uint64_t waited_ns; /* in it, for the stages before and behind */
    uint32_t n_rows;
    plan_run_t replica_rows[PLAN_TP_MAX]; /* of each replica of attention, one behind the other */
    /* What the rows that the block in work leaves are turned into first: the input of `weight`,
     * behind this norm. NULL: something else is done with them. */
    struct {
        kbuffer_t *norm;
        const kweight_t *weight;
    } next;
    const kweight_t *prepared; /* whose input the last block has left in stage->input */
};

/* `model` is borrowed for the stage's life. */
status_t stage_open(const rank_config_t *config, const model_t *model, stage_t **own_out) MUST_USE;
void stage_close(stage_t *take_stage);

/* One step: rows of the plan through this stage's layers, to the next stage or, on the last one,
 * into the residual buffer. Returns when it is done. */
status_t stage_run(stage_t *stage, const step_plan_t *plan) MUST_USE;

/* stage_head.c: the rows of the last stage's residual stream times the head. */
/* Last stage: gathers `n` (<= STAGE_LOGIT_ROWS) rows of the residual stream, shows them to the other
 * stages when those share the head, and multiplies them by this rank's rows of it. On slice 0 the rows
 * of all ranks follow each other in *rows_out, each with the whole vocabulary; elsewhere it is NULL.
 * `whole` is scratch of n * vocab, used when more than one rank has a part (stage_head_parts). */
status_t stage_head(stage_t *stage, const uint32_t *rows, uint32_t n, float *whole,
                    const float **rows_out) MUST_USE;
/* An earlier stage, beside stage_head() of the same rows of step `step` on the last one: waits for
 * them, and sends what this rank makes of them. */
status_t stage_head_part(stage_t *stage, uint64_t step, uint32_t n) MUST_USE;
/* Ranks that have a part of the head. */
uint32_t stage_head_parts(const stage_t *stage);
/* Whether a step of so many rows, and its plan of so many bytes, may go to the next stages while rows of
 * the head wait for them. What does not fit into the lanes between them, beside those of the batches in
 * flight, would wait for the last stage, and that for the head. Plans are large where prompts of many
 * thousands of tokens begin. */
bool stage_passes_head(const stage_t *stage, uint32_t n_rows, size_t plan_bytes);

/* Rows that a step may have for that; UINT32_MAX where the last stage has the whole head. With two stages
 * and 2,048 columns 511, and 383 where a rank is on another host. Needs stage->fabric. */
uint32_t stage_rows_past_heads(const stage_t *stage);

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

/* What the host call in work is called in a trace, and the bytes that it moves. */
static inline void stage_label(stage_t *stage, const char *operation, uint64_t bytes)
{
    if (stage->trace) {
        stage->trace->label = operation;
        stage->trace->label_bytes = bytes;
    }
}

/* Columns of qkv_out. */
uint32_t stage_qkv_columns(const stage_t *stage);
static inline bool stage_router_has_gate(const model_config_t *shape)
{
    return shape->experts.shared_ffn > 0 && shape->experts.shared_gated;
}

/* stage_load*.c */
status_t stage_load_weights(stage_t *stage) MUST_USE;
void stage_release_weights(stage_t *stage);
status_t stage_load_attention(stage_t *stage, uint32_t layer, stage_layer_t *out) MUST_USE;
status_t stage_load_compressed(stage_t *stage, uint32_t layer, stage_layer_t *out) MUST_USE;
status_t stage_load_latent(stage_t *stage, uint32_t layer, stage_layer_t *out) MUST_USE;
status_t stage_load_dense(stage_t *stage, uint32_t layer, stage_layer_t *out) MUST_USE;
status_t stage_load_experts(stage_t *stage, uint32_t layer, stage_layer_t *out) MUST_USE;
/* Bytes of the widest input that any weight of the stage takes, a row. */
size_t stage_input_row_bytes(const stage_t *stage);

/* stage_attention.c, stage_latent.c, stage_ffn.c: a block of a layer, from the
 * residual stream to the residual stream. `call` is for its host calls. */
status_t stage_grouped(stage_t *stage, uint32_t index, stage_call_t *call) MUST_USE;
status_t stage_latent(stage_t *stage, uint32_t index, stage_call_t *call) MUST_USE;
status_t stage_compressed(stage_t *stage, uint32_t index, stage_call_t *call) MUST_USE;
status_t stage_dense(stage_t *stage, uint32_t index, stage_call_t *call) MUST_USE;
status_t stage_experts(stage_t *stage, uint32_t index, stage_call_t *call) MUST_USE;

/* stage_replicas.c: attention by several replicas, each of its own sequences. */
status_t stage_open_replicas(stage_t *stage) MUST_USE;
/* The rows of each replica, and this one's own, from a plan whose rows are set. */
status_t stage_set_replicas(stage_t *stage, const step_plan_t *plan) MUST_USE;
/* What follows is done for the rows of this slice's replica alone, or for all again. */
void stage_work_on_own(stage_t *stage);
void stage_work_on_all(stage_t *stage);
/* Whether this slice has anything to do in a layer's attention. */
static inline bool stage_attends(const stage_t *stage, const stage_layer_t *layer)
{
    return layer->qkv && stage->work_rows > 0;
}
/* As stage_reduce: each replica's sums of its own rows reach every slice of the stage. Works on all
 * rows from there. */
status_t stage_reduce_replicas(stage_t *stage, const kweight_t *weight, kref_t x, uint32_t ld,
                               const stage_cut_t *cut, kbuffer_t *bias, const stage_mix_t *mix,
                               kbuffer_t *post_norm, stage_call_t *call) MUST_USE;

/* stage_project.c */
/* Who shares the projections; once the cut is known. */
void stage_cut_projections(stage_t *stage);
status_t stage_open_projections(stage_t *stage) MUST_USE;
/* Rows of ld floats times each of the projections, whole in their outputs. When they are shared, also
 * slices without attention take part, in the same order: `second` is the later one of a layer. */
status_t stage_project(stage_t *stage, uint32_t index, bool second,
                       const stage_projection_t *items, uint32_t n, kref_t x,
                       uint32_t ld) MUST_USE;
/* An indexer's queries, from the normed rank of all queries that stands in front of qkv_out. */
status_t stage_project_index(stage_t *stage, uint32_t index) MUST_USE;

/* stage_mix.c: between the residual and a block. */
/* The block's input, the residual or what `mix` makes of its streams, normed, into stage->normed. */
status_t stage_begin(stage_t *stage, const stage_mix_t *mix, kbuffer_t *norm) MUST_USE;
/* What a block gives, in stage->normed, into the residual: added, or by the weights that stage_begin
 * made. */
status_t stage_end(stage_t *stage, const stage_mix_t *mix, kbuffer_t *post_norm) MUST_USE;
/* Each stream begins as the embedded row. */
status_t stage_spread(stage_t *stage) MUST_USE;
/* Streams of n gathered rows become one: rows [n][streams * hidden] in head_rows to [n][hidden]
 * there. */
status_t stage_collapse_head(stage_t *stage) MUST_USE;
status_t stage_load_mix(stage_t *stage, uint32_t layer, model_role_t fn, stage_mix_t *out) MUST_USE;
void stage_release_mix(stage_t *stage, stage_mix_t *mix);

/* stage_cache.c: the caches of keys and values of every kind. */
status_t stage_open_caches(stage_t *stage) MUST_USE;
void stage_close_caches(stage_t *stage);

/* stage_reduce.c */
/* Rows of a part, from the widths of partials and sums; to be called once all cuts are known. */
uint32_t stage_part_rows(const stage_t *stage);
/* Host calls that one layer may make in a step. */
uint32_t stage_calls_of_layer(const stage_t *stage);
/* Bytes a row of the partials of all slices together. */
size_t stage_partials_row_bytes(const stage_t *stage);
/* Part `index` of the step in work; false behind the last one. Its batch is ready for ops that are
 * queued behind stage_part_begin and before that of the next part. */
bool stage_part(const stage_t *stage, uint32_t index, stage_part_t *out);
status_t stage_part_begin(stage_t *stage, const stage_part_t *part) MUST_USE;
/* Where a part's rows of a matrix begin. */
static inline kref_t stage_part_at(const stage_part_t *part, kref_t matrix, size_t row_bytes)
{
    return stage_at(matrix.buffer, matrix.offset + part->first * row_bytes);
}
/* The tree sum of all slices' partials of `weight`, whose rows of the part are `input`, + bias: where
 * stage_reduce_end expects it. NULL: none of it. `call` is the block's first one. */
status_t stage_reduce_part(stage_t *stage, const stage_part_t *part, const kweight_t *weight,
                           kref_t input, const stage_cut_t *cut, kbuffer_t *bias,
                           const stage_mix_t *mix, kbuffer_t *post_norm,
                           stage_call_t *call) MUST_USE;
/* After all parts: post norm and the way into the residual. */
status_t stage_reduce_end(stage_t *stage, const stage_mix_t *mix, kbuffer_t *post_norm) MUST_USE;
/* All of it, for all parts, from `x`, rows of ld floats. */
status_t stage_reduce(stage_t *stage, const kweight_t *weight, kref_t x, uint32_t ld,
                      const stage_cut_t *cut, kbuffer_t *bias, const stage_mix_t *mix,
                      kbuffer_t *post_norm, stage_call_t *call) MUST_USE;
/* y = weight x for each row of the step, x being rows of ld floats and y of as many as the weight has
 * outputs. */
status_t stage_multiply(stage_t *stage, const kweight_t *weight, kref_t x, uint32_t ld,
                        kref_t y) MUST_USE;
/* y = weight times the normed rows of the step, as stage_begin norms them. */
status_t stage_multiply_normed(stage_t *stage, const stage_mix_t *mix, kbuffer_t *norm,
                               const kweight_t *weight, kref_t y) MUST_USE;
/* A part's normed rows as the input of `weight`, in stage->input. With streams stage_begin has
 * normed them. */
status_t stage_normed_input(stage_t *stage, const stage_part_t *part, const stage_mix_t *mix,
                            kbuffer_t *norm, const kweight_t *weight) MUST_USE;
/* Values of n rows of the residual's width, and their bytes as F32: one partial matrix. */
size_t stage_elements(const stage_t *stage, uint32_t n_rows);
size_t stage_partial_bytes(const stage_t *stage, uint32_t n_rows);
/* In a host call, where no leaf of this slice has an element of K: its sums are +0, as in a slice
 * that has such leaves beside others; no matmul writes them, and the buffer is used again. */
void stage_clear_partials(const stage_call_t *call);
/* The call of one part of a block, whose first call knows the layer. */
stage_call_t *stage_call_of(stage_t *stage, stage_call_t *first, const stage_cut_t *cut,
                            const stage_part_t *part);
/* In a host call: gives `mine` to the slices and shows what they gave, until the next exchange: whole
 * parts, or with `times` pieces (fabric_exchange_pieces). */
status_t stage_exchange(const stage_call_t *call, const char *operation, const void *mine,
                        const size_t *bytes, const uint32_t *times,
                        const void **parts_out) MUST_USE;
/* The same of whole parts, which come into `buffer`, at offsets[i]; the own one is there. */
status_t stage_gather_parts(const stage_call_t *call, const char *operation, const void *mine,
                      kbuffer_t *buffer, const size_t *bytes, const size_t *offsets) MUST_USE;
/* A block without a post norm and without streams is added to the residual at once; others leave
 * their sum in stage->normed. */
bool stage_ends_at_once(const stage_mix_t *mix, const kbuffer_t *post_norm);

/* stage_pieces.c: sums of which each slice makes a piece. */
status_t stage_pieces_open(stage_t *stage) MUST_USE;
/* Whether rows' partials are added by pieces; the same on every slice. */
bool stage_partials_by_pieces(const stage_t *stage, uint32_t n_rows, const stage_cut_t *cut);
/* The rest of stage_reduce_part after the matmul, in that way. own_call->cut is the cut. */
status_t stage_reduce_partial_pieces(stage_t *stage, const stage_part_t *part, bool has_weight,
                                     kbuffer_t *bias, bool at_once,
                                     stage_call_t *own_call) MUST_USE;
/* stage_reduce with the sum of all slices' integers; this one's are in stage->sums. */
status_t stage_reduce_integers(stage_t *stage, const stage_mix_t *mix, kbuffer_t *post_norm,
                               stage_call_t *call) MUST_USE;
/* Where this slice's integers lie. */
kref_t stage_own_sums(const stage_t *stage);
/* What the integers of the other slices take at most, of a part. */
size_t stage_sums_of_all_bytes(const stage_t *stage);

#endif
