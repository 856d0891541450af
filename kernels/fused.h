/* Sequences of a layer's ops as one op each (version 3 of the table): what one row needs stays in
 * the caches of the thread that treats it, and threads come together less often. Each has exactly
 * the bits of the ops it names, one after the other; the contract is that of ops.h. */
#ifndef SHOAL_KERNELS_FUSED_H
#define SHOAL_KERNELS_FUSED_H

#include "kernels/ops.h"

/* How rows are normed and turned into the input of `weight`. */
typedef struct {
    kref_t norm; /* F32 [n]; .buffer NULL: none */
    float eps;
    const kweight_t *weight; /* borrowed until the work is done */
} knormed_t;

/* [gate | up] of one input and what follows, up to the input of `down`. */
typedef struct {
    const kweight_t *gate_up; /* 2n outputs, one partial */
    kref_t bias;              /* F32 [2n]; .buffer NULL: none */
    kactivate_t activate;
    const kweight_t *down; /* K is n */
} kgate_up_t;

/* How rows [q heads | k heads | v heads] become queries and entries of the cache. */
typedef struct {
    const krope_t *rope;
    kkv_t *kv; /* n_kv_heads of head_dim, keys and values */
    uint32_t layer;
    uint32_t n_heads, n_kv_heads, head_dim;
    kref_t q_norm, k_norm; /* F32 [head_dim]; .buffer NULL: none */
    float eps;
} kpositioned_t;

typedef struct kfused_ops {
    /* rmsnorm of x [M][n], then quantize: out holds M * input_row_bytes bytes. */
    status_t (*norm_quantize)(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t x,
                              const knormed_t *how, kref_t out);
    /* tree_add into `residual` [M][n], then norm_quantize of it. */
    status_t (*tree_add_norm_quantize)(kqueue_t *queue, kbatch_t *batch, uint32_t n,
                                       const ktree_add_t *what, kref_t residual,
                                       const knormed_t *how, kref_t out);
    /* matmul, bias_add, activate, quantize for `down`, whose input `out` becomes; input and out must
     * not overlap. `wide` F32 [M][2n] is scratch: what it holds afterwards is not said. */
    status_t (*gate_up)(kqueue_t *queue, kbatch_t *batch, const kgate_up_t *what, kref_t input,
                        kref_t wide, kref_t out);
    /* norm_heads of q and k, rope of both, in place in x [M][ld], then kv_append. */
    status_t (*position)(kqueue_t *queue, kbatch_t *batch, const kpositioned_t *what, kref_t x,
                         uint32_t ld);
} kfused_ops_t;

#endif
