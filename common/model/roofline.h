/* How fast a model could run at best: the roofline of one rank, from what a step multiplies, reads
 * and passes on. Pure arithmetic over plan.h; no device is asked.
 *
 * Units: seconds, bytes, floating-point operations (a multiplication and its addition count as
 * two). A step of a stage takes
 *
 *     max over slices of max(flops / flops_s, memory_bytes / memory_bytes_s)  +  link seconds
 *
 * The links' time is added and not hidden: nothing of a layer can run before the partial sums that
 * it starts from are there. What is left out makes the real program slower, never faster: launches,
 * activations through memory, norms, sampling, the scheduler. */
#ifndef SHOAL_COMMON_MODEL_ROOFLINE_H
#define SHOAL_COMMON_MODEL_ROOFLINE_H

#include <stdint.h>

#include "common/model/plan.h"

/* One forward pass over a batch. In a decode step each row is a sequence of its own; in prefill the
 * rows are a piece of one sequence, whose cache is read once for all of them. */
typedef struct {
    uint32_t rows;
    uint32_t sequences;
    uint32_t context;    /* keys that a row sees, on average */
    uint32_t logit_rows; /* rows that the head runs for */
} roofline_step_t;

/* What one rank does in one step. */
typedef struct {
    double flops;
    double weight_bytes; /* every dense weight once; of the experts those that some row uses */
    double kv_bytes;
} roofline_work_t;

/* Experts that at least one of `rows` tokens uses, when each uses `used` of n and no expert is
 * liked better: n * (1 - (1 - used/n)^rows). */
double roofline_experts_touched(uint32_t n, uint32_t used, uint32_t rows);

/* Cache bytes that a row of attention reads in one layer when it sees `context` keys, by the
 * layer's kind: grouped min(context, window) keys and values; latent every key's latent, or the
 * chosen ones and all index keys; compressed the window, and its entries. `element` is 2 (BF16) or
 * 4 (F32). */
double roofline_kv_read_bytes(const model_config_t *config, const plan_slice_t *slice,
                              uint32_t layer, double context, uint32_t element);

/* Floating-point operations of scores and values of one row in one layer, which no weight is part
 * of: 2 * heads * (key values + value values) a key. */
double roofline_attention_flops(const model_config_t *config, const plan_slice_t *slice,
                                uint32_t layer, double context);

/* Of `n` rows or sequences of a step those of the replica of attention that has most of them, when
 * the sequences are dealt out evenly. */
uint32_t roofline_rows_of_replica(const plan_shape_t *shape, const roofline_step_t *step,
                                  uint32_t n);

/* The layers of one rank, and what belongs to its stage: the embedded rows, its part of the head.
 * `slice` is what slice `slice_index` owns. */
void roofline_work(const plan_sizes_t *sizes, const plan_shape_t *shape, const plan_run_t *layers,
                   uint32_t stage, uint32_t slice_index, const plan_slice_t *slice,
                   const roofline_step_t *step, roofline_work_t *out);

/* Partial sums that a slice sends in the exchange behind attention, and behind the FFN of a layer:
 * `rows` * hidden values of 4 bytes for each tree node of its leaves, or of 8 bytes (exact
 * integers) once where there are experts. */
double roofline_partial_bytes_attention(const model_config_t *config, const plan_slice_t *slice,
                                        uint32_t rows);
double roofline_partial_bytes_ffn(const model_config_t *config, const plan_slice_t *slice,
                                  uint32_t layer, uint32_t rows);

/* Bytes of the slice's columns of projections that slices share (plan_projection_columns). */
double roofline_projection_bytes(const model_config_t *config, const plan_slice_t *slice,
                                 uint32_t layer, bool second, uint32_t rows);

#endif
