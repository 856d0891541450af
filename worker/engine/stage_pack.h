/* From tensors of the model to weights and vectors of a device: what the loaders of all kinds of
 * layers share. A rank reads only the rows that it is given; rows that the files hold as rows are
 * packed from the mapped file, others are made in memory first, those of one weight at a time. */
#ifndef SHOAL_WORKER_ENGINE_STAGE_PACK_H
#define SHOAL_WORKER_ENGINE_STAGE_PACK_H

#include "worker/engine/stage.h"

/* Rows [first, first + count) of a tensor become the next output columns of a weight. */
typedef struct {
    const model_tensor_t *tensor;
    uint64_t first, count;
} stage_rows_t;

/* Rows are checked against the model's seal, where it has one, before anything is made of them:
 * STATUS_INVALID names the file and the bytes that are not as sealed. */
status_t stage_verify(const stage_t *stage, const model_tensor_t *tensor, uint64_t first,
                      uint64_t count) MUST_USE;
/* All values of a view as F32. */
status_t stage_read_f32(const stage_t *stage, const model_tensor_t *tensor, float *out) MUST_USE;

/* A weight whose K is cut at leaf edges, of which this rank has a run. */
status_t stage_pack(stage_t *stage, const stage_rows_t *rows, uint32_t n_rows,
                    const plan_leaves_t *leaves, plan_run_t run, bool leaves_apart,
                    kweight_t **own_out) MUST_USE;
/* A matmul whose input every rank holds whole has one leaf. */
status_t stage_pack_whole(stage_t *stage, const stage_rows_t *rows, uint32_t n_rows,
                          kweight_t **own_out) MUST_USE;
/* The same of a projection that is shared among slices (stage_project.c): of this slice's columns,
 * and NULL when it has none. `f32`: weights in F32, of one tensor. */
status_t stage_load_projection(stage_t *stage, const stage_rows_t *rows, uint32_t n_rows, bool f32,
                               kweight_t **own_out) MUST_USE;
/* The same with weights in F32 whatever their type, so that the input stays F32: routers. */
status_t stage_pack_f32(stage_t *stage, const model_tensor_t *const *tensors, uint32_t n,
                        kweight_t **own_out) MUST_USE;

/* Parts of vectors side by side, as F32 in one buffer. A part without a tensor is zeros. */
typedef struct {
    const model_tensor_t *tensor;
    uint64_t first, count;
} stage_span_t;
status_t stage_pack_vector(stage_t *stage, const stage_span_t *spans, uint32_t n,
                           kbuffer_t **own_out) MUST_USE;
/* A whole vector; *own_out stays NULL when `tensor` is NULL. */
status_t stage_pack_bias(stage_t *stage, const model_tensor_t *tensor,
                         kbuffer_t **own_out) MUST_USE;
/* The same of a norm's weights, which some models store minus one. */
status_t stage_pack_norm(stage_t *stage, const model_tensor_t *tensor,
                         kbuffer_t **own_out) MUST_USE;
/* Values as they are given. */
status_t stage_pack_values(stage_t *stage, const float *values, size_t n,
                           kbuffer_t **own_out) MUST_USE;

#endif
