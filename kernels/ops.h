/* The op table: everything a stage may ask of a device, and all it may know of one.
 *
 * Asynchronous by contract. A call takes a queue and (buffer, offset) handles, checks its arguments
 * and returns; the work happens in queue order, some time before an event recorded after it is
 * waited for. Until that wait the host neither reads nor writes a buffer, except inside host_call,
 * which runs at its place in the queue. The CPU's ordinary queue works at the call; KQUEUE_LATE
 * records everything and works at the wait, and fills outputs with NaN patterns until then, so that
 * tests show when a caller relies on the former.
 *
 * Small host arrays and structs passed to an op are copied by the call unless the parameter says
 * otherwise. Objects (weights, tables, batches, buffers) must live until the work that names them
 * is done. One thread at a time uses a device and its queues; other threads touch neither.
 *
 * Every op writes its output as docs/numerics.md says, to the bit. A row whose values are not
 * finite (or, where they are quantized, reach 2^100) becomes a row error: its outputs turn to NaN,
 * so that every rank and later stage sees it too, no other row is touched, and batch_row_errors
 * names it.
 *
 * Shapes are row major; M is the batch's number of rows unless said otherwise; `ld` counts elements
 * from one row to the next. Matrices of floats start at offsets that are multiples of 4; 64 is
 * faster. */
#ifndef SHOAL_KERNELS_OPS_H
#define SHOAL_KERNELS_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"
#include "kernels/numerics.h"
#include "kernels/trace.h"
#include "kernels/tree.h"
#include "kernels/weight.h"

#define KERNELS_OPS_VERSION 4

typedef struct kdevice kdevice_t;
typedef struct kqueue kqueue_t;
typedef struct kbuffer kbuffer_t;
typedef struct ktable ktable_t;     /* embedding rows */
typedef struct krope krope_t;       /* cosines and sines of the positions of one deployment */
typedef struct kkv kkv_t;           /* paged keys and values of all layers of this rank */
typedef struct kbatch kbatch_t;     /* the rows of one step, as the device sees them */
typedef struct kheads kheads_t;     /* one small weight a head */
typedef struct kexperts kexperts_t; /* the experts of one layer that this rank holds */

typedef struct {
    kbuffer_t *buffer;
    size_t offset; /* bytes */
} kref_t;

/* Activation mode: an identity of its own (docs/numerics.md). */
typedef enum {
    KMODE_NATIVE, /* weights in their stored precision, BF16 keys and values */
    KMODE_F32,    /* weights dequantized to F32, F32 keys, values and probabilities */
} kmode_t;

typedef struct {
    /* "ref", "avx2", "avx512", "amx"; NULL: $SHOAL_ISA, else the best, which amx is not while it
     * has only been emulated */
    const char *isa;
    uint32_t threads; /* 0: the CPUs this process may run on */
    kmode_t mode;
} kdevice_options_t;

typedef struct {
    const char *backend; /* "cpu" */
    const char *isa;     /* the level in use */
    uint32_t threads;
    kmode_t mode;
    const char *refused; /* why better levels were not taken, by name; "" when none was refused */
} kdevice_info_t;

typedef enum {
    KQUEUE_NOW,  /* CPU: each op is done when its call returns */
    KQUEUE_LATE, /* for tests: nothing happens before event_wait or queue_close */
} kqueue_kind_t;

/* A point in a queue; 0 is before everything. */
typedef uint64_t kevent_t;

/* One row of a step: one token of one sequence. */
typedef struct {
    uint32_t token;    /* < rows of the table; ignored where no embed op runs */
    uint32_t position; /* absolute, from 0 */
    uint32_t sequence; /* index into the block tables of this batch */
} kbatch_row_t;

/* Block ids of one sequence in order: token at position p lives in blocks[p / 16], slot p % 16. */
typedef struct {
    const uint32_t *blocks;
    uint32_t n_blocks;
} kbatch_table_t;

enum {
    KKV_BLOCK_TOKENS = 16,
    KBATCH_ROWS_MAX = 65536,
    KHEAD_DIM_MAX = 576,   /* dimensions of keys are even */
    KEXACT_DIM_MAX = 8192, /* of a cache that is exact */
    KHEADS_MAX = 254,      /* query heads of one attention on one rank */
    KROUTE_EXPERTS_MAX = 1024,
    KROUTE_TOP_MAX = 64,
    KHYPER_STREAMS_MAX = 8,
    KCOMPRESS_RATE_MAX = 128,
};

/* How keys and values lie in a cache of native mode: as BF16, or as codes of a byte under an F32
 * scale for each head of a token (docs/numerics.md, "Caches of codes"). */
typedef enum { KKV_BF16, KKV_INT8, KKV_FP8 } kkv_type_t;

/* What a position leaves in the cache: n_kv_heads keys and values. Ordinarily both have head_dim
 * dimensions. With key_dim set (head_dim is ignored then) the key has key_dim and the value
 * value_dim; value_dim 0: keys alone. values_in_keys: nothing is stored beside the key, the value
 * is the key's first value_dim dimensions (MLA: 576 and 512). */
typedef struct {
    uint32_t n_layers;
    uint32_t n_kv_heads; /* on this rank */
    uint32_t head_dim;
    uint32_t n_blocks;
    uint32_t key_dim, value_dim;
    bool values_in_keys;
    /* One entry for `rate` positions, which `compress` writes when the last of them is there: a
     * power of two up to KCOMPRESS_RATE_MAX. 0 and 1: an entry for each position, by kv_append. */
    uint32_t rate;
    /* F32 in native mode too: what compress keeps of each position (KCOMPRESS inputs). */
    bool exact;
    /* Codes need native mode, values of their own and an entry for each position. */
    kkv_type_t type;
} kkv_shape_t;

/* How dimensions of a head turn together: (2i, 2i+1) as llama's GGUF files store q and k, or
 * (i, i + dim/2) as Hugging Face checkpoints do. */
typedef enum { KROPE_ADJACENT, KROPE_HALVES } krope_pairs_t;

typedef struct {
    uint32_t dim; /* dimensions that turn, even, first + dim <= head_dim; the rest stay */
    krope_pairs_t pairs;
    double base;           /* 10000.0 … */
    double position_scale; /* positions are multiplied by it; 1.0 ordinarily (linear scaling:
                              1/factor) */
    const float *factors;  /* [dim/2], each frequency is divided by it; NULL: none. Copied. */
    uint32_t positions;    /* positions 0 … positions-1 can be asked for */
    uint32_t first;        /* dimensions [first, first + dim) of each head turn */
    float magnitude;       /* cosines and sines are multiplied by it; 0 is 1 */
    bool inverse;          /* turns back: the sines are negated */
} krope_spec_t;

typedef struct {
    uint32_t layer;
    uint32_t n_heads;           /* query heads on this rank, up to KHEADS_MAX */
    uint32_t head_dim;          /* of the queries: the cache's key_dim */
    const uint16_t *kv_head_of; /* [n_heads] index into this rank's kv heads; copied */
    float scale;                /* scores are multiplied by it: 1/sqrt(head_dim) ordinarily */
    uint32_t window;            /* 0: none; a key at p is seen from position t iff t - p < window */
    float softcap;              /* 0: none; a scaled score x becomes cap * tanh(x / cap) */
    kref_t sinks; /* F32 [n_heads]: one more logit per head that has no value; NULL: none */
    /* Only these entries of the cache are seen: row i's are the first n_selected[i] (u32) of
     * selected[i][selected_ld] (u32), ascending, each visible to the row. As index_select writes
     * them. .buffer NULL: all that are visible. */
    kref_t selected, n_selected;
    uint32_t selected_ld;
    /* A second cache of the same key and value dimensions, whose entries follow the first one's in
     * the same softmax: V4's compressed entries, while `kv` holds the window. selected and
     * n_selected name entries of this one then. NULL: none. Both have one KV head. */
    const kkv_t *more;
    uint32_t more_layer;
} kattention_t;

/* out[h] = W_h x[h] for each head: n_heads matrices [out_dim][in_dim], F32, borrowed for the call.
 * Native mode keeps them as BF16. One leaf. */
typedef struct {
    const char *name; /* for error texts */
    const float *values;
    uint32_t n_heads, out_dim, in_dim;
} kheads_spec_t;

/* Where the heads of an input or output row stand: head h has the columns from first + h * stride
 * on; ld is from row to row. */
typedef struct {
    uint32_t ld, stride, first;
} kheads_at_t;

/* How gate and up become one value. Written out in docs/numerics.md, "Rows". */
typedef enum {
    KACTIVATE_SILU,       /* silu(gate) * up */
    KACTIVATE_GELU_TANH,  /* gelu by the tanh formula, of gate, * up */
    KACTIVATE_CLAMP_GLU,  /* gpt-oss: g = min(gate, limit), u = clamp(up, limit):
                             (u + 1) * g * sigmoid(alpha * g) */
    KACTIVATE_SILU_LIMIT, /* V4: silu(min(gate, limit)) * clamp(up, limit) */
} kactivate_kind_t;

typedef struct {
    kactivate_kind_t kind;
    bool interleaved; /* x holds gate and up in turns: gate of j at 2j, up at 2j + 1 */
    float alpha, limit;
} kactivate_t;

typedef enum { KROUTE_SOFTMAX, KROUTE_SIGMOID, KROUTE_SQRT_SOFTPLUS } kroute_score_t;

/* From a row's router logits to its experts and their weights. */
typedef struct {
    uint32_t n_experts; /* up to KROUTE_EXPERTS_MAX */
    uint32_t top_k;     /* up to KROUTE_TOP_MAX */
    kroute_score_t score;
    bool softmax_after; /* KROUTE_SOFTMAX: over the chosen logits instead of over all */
    kref_t bias;        /* F32 [n_experts] added to the scores for the choice alone; NULL: none */
    uint32_t n_groups, groups_kept; /* 0 or 1: no groups; else the experts of the best groups */
    bool group_sum_top2;            /* a group's score: its two best added; else its best */
    bool normalize;                 /* the weights are divided by their sum */
    float factor;                   /* and multiplied by it; 0 is 1 */
    kref_t hash; /* u32 [rows of the table][top_k] experts of each token id; NULL: none */
    uint32_t n_hash_rows;
} kroute_spec_t;

/* The experts of one layer on this rank: whole ones, or the same columns of each. gate_up gives 2n
 * columns for `hidden` inputs in one leaf; down takes n and was packed with leaves_apart. The
 * weights must outlive the object. */
typedef struct {
    uint32_t hidden;
    uint32_t n; /* columns of the activation on this rank; 0: nothing is computed */
    uint32_t n_experts;
    const uint32_t *ids; /* [n_experts] global numbers, ascending; copied */
    const kweight_t *const *gate_up, *const *down; /* [n_experts], copied */
    kref_t gate_up_bias;                           /* F32 [n_experts][2n]; .buffer NULL: none */
    kref_t down_bias; /* F32 [n_experts][hidden]: given by the owner of k = 0 alone */
    kactivate_t activate;
    uint32_t rows_max;  /* rows of a batch */
    uint32_t top_k_max; /* experts of a row; expert_shared: 1 */
} kexperts_spec_t;

/* Which rows an expert gets. As `route` writes it: ids u32 [M][top_k] ascending, weights F32. */
typedef struct {
    kref_t ids, weights;
    uint32_t top_k;
    /* expert_shared: F32 [M][gate_ld], each row's sigmoid is its weight; .buffer NULL: 1. */
    kref_t gate;
    uint32_t gate_ld;
} krouting_t;

/* Scores the cached index keys of each row and selects the best (V3.2, V4):
 *     score(key) = sum over heads of (w[h] * weight_scale) * max(0, (q_h . key) * scale) */
typedef struct {
    uint32_t layer, n_heads, head_dim;
    float scale, weight_scale;
    uint32_t top_k;
} kindex_t;

/* V4's compressor. Each position leaves kv and gate, each (overlap ? 2 : 1) * dim wide, side by
 * side in `inputs` (key_dim that width twice, no values, exact); when the last position of a window
 * of `rate` is written, its entry is made: per dimension a softmax over the window's gates (+
 * position_bias) weighs the kv, over the first half of the previous window and the second half of
 * this one with overlap; then RMS norm by `norm` and `rope` at the window's first position. */
typedef struct {
    uint32_t layer; /* of inputs and of the entries */
    uint32_t dim, rate;
    bool overlap;
    kref_t position_bias; /* F32 [rate][(overlap ? 2 : 1) * dim] */
    kref_t norm;          /* F32 [dim] */
    float eps;
    const krope_t *rope;
} kcompress_t;

/* V4's hyper-connections, from mixes F32 [M][(2 + s) * s] (head: [M][s]) of s streams. */
typedef struct {
    uint32_t n_streams, hidden;
    uint32_t iterations; /* of Sinkhorn and Knopp */
    float eps;
    kref_t base, scale; /* F32 [(2 + s) * s] (head: [s]) and [3] (head: [1]) */
    bool head;          /* the final collapse alone: no post, no comb */
} khyper_t;

/* Where the partials of the ranks of a group lie when they are added. */
typedef struct {
    uint32_t n_leaves;
    const tree_run_t *runs; /* [n_ranks] leaves of each rank, in rank order */
    const kref_t *partials; /* [n_ranks] F32 [P of that rank][M][n]; unused for an empty run */
    uint32_t n_ranks;
    kref_t bias; /* F32 [n], .buffer NULL: none */
} ktree_add_t;

/* Billions a second of integer and of BF16 operations, and bytes read from memory. */
typedef struct {
    double int8_gops, bf16_gflops, read_gb;
} kpeak_t;

/* Runs on the host at its place in the queue, in the floating-point mode of the thread that works
 * on the queue. May read and write host-visible buffers. Another status than STATUS_OK makes the
 * queue fail: later ops are skipped and event_wait returns that status with these words. */
typedef status_t (*khost_fn)(void *arg);

typedef struct {
    uint32_t version; /* KERNELS_OPS_VERSION */

    /* --- device ------------------------------------------------------------------------------ */
    /* UNSUPPORTED when a forced level cannot run here; its words say what is missing. Starts the
     * threads; every level that it considers is self-checked once a process. */
    status_t (*device_open)(const kdevice_options_t *options, kdevice_t **own_out);
    void (*device_close)(kdevice_t *take_device); /* after everything made from it */
    kdevice_info_t (*device_info)(const kdevice_t *device);

    /* --- buffers: zeroed, 64-byte aligned --------------------------------------------------- */
    status_t (*buffer_new)(kdevice_t *device, size_t bytes, kbuffer_t **own_out);
    void (*buffer_release)(kbuffer_t *take_buffer); /* NULL is fine */
    /* Host address of a buffer; NULL where the host cannot see it. Valid to read or write only
     * inside host_call or between event_wait and the next op that names the buffer. */
    void *(*buffer_host)(kbuffer_t *buffer);
    size_t (*buffer_bytes)(const kbuffer_t *buffer);

    /* --- queues and events ------------------------------------------------------------------- */
    status_t (*queue_open)(kdevice_t *device, kqueue_kind_t kind, kqueue_t **own_out);
    void (*queue_close)(kqueue_t *take_queue); /* finishes what was queued */
    /* Ops return INVALID at the call for arguments that cannot be right (nothing is queued then).
     */
    status_t (*event_record)(kqueue_t *queue, kevent_t *event_out);
    /* STATUS_OK, or the status of the first failure in the queue, which stays until queue_reset. */
    status_t (*event_wait)(kqueue_t *queue, kevent_t event);
    void (*queue_reset)(kqueue_t *queue); /* forgets a failure; drops what is still queued */
    /* The ops that run from now on add themselves to `trace` (trace.h), which is borrowed; NULL
     * stops it. A host call may set trace->label while it runs. */
    void (*queue_trace)(kqueue_t *queue, trace_t *trace);
    /* What the threads of a device reach at best, measured now: some tens of milliseconds. Zeros on
     * a level without vectors. */
    status_t (*device_peak)(kdevice_t *device, kpeak_t *out);

    status_t (*copy_in)(kqueue_t *queue, kref_t to, const void *from,
                        size_t bytes); /* copied now */
    status_t (*copy_out)(kqueue_t *queue, void *to, kref_t from,
                         size_t bytes); /* `to` lives until the wait */
    status_t (*copy)(kqueue_t *queue, kref_t to, kref_t from, size_t bytes); /* must not overlap */
    /* to[i] = from[rows[i]] for n rows of row_bytes; rows are copied now. */
    status_t (*gather_rows)(kqueue_t *queue, kref_t to, kref_t from, const uint32_t *rows,
                            uint32_t n, size_t row_bytes);
    status_t (*host_call)(kqueue_t *queue, khost_fn fn, void *arg);

    /* --- weights and tables ------------------------------------------------------------------ */
    status_t (*weight_pack)(kdevice_t *device, const kweight_spec_t *spec, kweight_t **own_out);
    /* Packed weights as bytes, so that they can be kept on disk. weight_layout names how the
     * devices of a mode pack: images of another name must not be opened. weight_image: the
     * weight_info.packed_bytes bytes of a weight, borrowed; NULL where the host cannot see them,
     * and of an empty weight. weight_open_image makes the weight of the same specification of
     * them: `image` (at a multiple of 64, a mapped file for example) is read where it lies and
     * must outlive the weight; the parts' rows are not read, so those pointers may be NULL.
     * INVALID when `bytes` are not those of the specification. */
    const char *(*weight_layout)(kmode_t mode);
    const void *(*weight_image)(const kweight_t *weight);
    status_t (*weight_open_image)(kdevice_t *device, const kweight_spec_t *spec,
                                  const void *image, size_t bytes, kweight_t **own_out);
    void (*weight_release)(kweight_t *take_weight);
    kweight_info_t (*weight_info)(const kweight_t *weight);
    /* Rows stay where they are (a mapped file) and must outlive the table. */
    status_t (*table_open)(kdevice_t *device, uint32_t qtype, const void *rows, size_t bytes,
                           uint32_t n_rows, uint32_t k, ktable_t **own_out);
    void (*table_close)(ktable_t *take_table);
    status_t (*rope_open)(kdevice_t *device, const krope_spec_t *spec, krope_t **own_out);
    void (*rope_close)(krope_t *take_rope);

    /* --- paged KV --------------------------------------------------------------------------- */
    status_t (*kv_open)(kdevice_t *device, const kkv_shape_t *shape, kkv_t **own_out);
    void (*kv_close)(kkv_t *take_kv);
    size_t (*kv_block_bytes)(kmode_t mode, const kkv_shape_t *shape); /* of one block, all layers */

    /* --- the rows of a step ------------------------------------------------------------------ */
    /* Room for that many rows and block ids over all tables; batch_set allocates nothing. */
    status_t (*batch_new)(kdevice_t *device, uint32_t rows_max, uint32_t blocks_max,
                          kbatch_t **own_out);
    void (*batch_release)(kbatch_t *take_batch);
    /* Sets the rows for the ops that follow in this queue and clears the row errors. Copied now; a
     * batch that is set again while a late queue still uses it keeps both versions. Rows of one
     * sequence have ascending, consecutive positions and stand together. */
    status_t (*batch_set)(kqueue_t *queue, kbatch_t *batch, const kbatch_row_t *rows,
                          uint32_t n_rows, const kbatch_table_t *tables, uint32_t n_tables);
    /* Makes the ops that follow use only n rows without positions, for example gathered last rows:
     * embed, rope, kv_append and attention are then refused. */
    status_t (*batch_set_plain)(kqueue_t *queue, kbatch_t *batch, uint32_t n_rows);
    /* After event_wait: 1 for each row that had values which are not finite since batch_set;
     * returns their number. flags_out may be NULL. */
    uint32_t (*batch_row_errors)(const kbatch_t *batch, uint8_t *flags_out);

    /* --- ops of a layer ---------------------------------------------------------------------- */
    /* out F32 [M][k] = rows of the table, dequantized exactly. */
    status_t (*embed)(kqueue_t *queue, kbatch_t *batch, const ktable_t *table, kref_t out);
    /* out [M][n] = (x * 1/sqrt(mean(x^2) + eps)) * weight, weight F32 [n], .buffer NULL: none; out
     * may be x. */
    status_t (*rmsnorm)(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t x, kref_t weight,
                        float eps, kref_t out);
    /* Turns F32 rows x [M][ld], of which the first weight_info.k columns count, into the input of
     * `weight`: out holds M * weight_info.input_row_bytes bytes. Two weights with equal leaf edges,
     * run and activation kind share one input. */
    status_t (*quantize)(kqueue_t *queue, kbatch_t *batch, const kweight_t *weight, kref_t x,
                         uint32_t ld, kref_t out);
    /* out F32 [P][M][n], P = weight_info.n_partials: a one-leaf weight gives the product itself. */
    status_t (*matmul)(kqueue_t *queue, kbatch_t *batch, const kweight_t *weight, kref_t input,
                       kref_t out);
    /* residual [M][n] += tree sum of all ranks' partials (+ bias), as out; out may be residual.
     * residual.buffer NULL: the sum alone. Copies nothing of `what` but its arrays. */
    status_t (*tree_add)(kqueue_t *queue, kbatch_t *batch, uint32_t n, const ktree_add_t *what,
                         kref_t residual, kref_t out);
    /* x [M][ld] += bias F32 [n], in place. */
    status_t (*bias_add)(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t x, uint32_t ld,
                         kref_t bias);
    /* Turns n_heads heads of head_dim that stand side by side in x [M][ld], in place. */
    status_t (*rope)(kqueue_t *queue, kbatch_t *batch, const krope_t *rope, kref_t x, uint32_t ld,
                     uint32_t n_heads, uint32_t head_dim);
    /* Writes k and v, each n_kv_heads heads side by side in rows of ld, to the batch's positions.
     */
    status_t (*kv_append)(kqueue_t *queue, kbatch_t *batch, kkv_t *kv, uint32_t layer, kref_t k,
                          kref_t v, uint32_t ld);
    /* out [M][n_heads * head_dim]: causal attention of each row over the positions up to its own,
     * all of which kv_append has written. */
    status_t (*attention)(kqueue_t *queue, kbatch_t *batch, const kkv_t *kv,
                          const kattention_t *what, kref_t q, uint32_t ld, kref_t out);
    /* out [M][n] = silu(x[.., j]) * x[.., n + j], x [M][2n]: gate, then up. */
    status_t (*silu_mul)(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t x, kref_t out);

    /* --- version 2 --------------------------------------------------------------------------- */
    /* RMS norm of each of n_heads heads of head_dim that stand side by side in x [M][ld], in place.
     * weight F32 [head_dim], shared by the heads; .buffer NULL: none. One head and an offset of x
     * norm a range of columns. */
    status_t (*norm_heads)(kqueue_t *queue, kbatch_t *batch, uint32_t n_heads, uint32_t head_dim,
                           kref_t x, uint32_t ld, kref_t weight, float eps);
    /* Layer norm with weight and bias F32 [n] of the first n columns of x [M][ld], in place. */
    status_t (*layer_norm)(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t x, uint32_t ld,
                           kref_t weight, kref_t bias, float eps);
    /* out [M][n] from x [M][2n]; silu_mul is KACTIVATE_SILU. */
    status_t (*activate)(kqueue_t *queue, kbatch_t *batch, const kactivate_t *what, uint32_t n,
                         kref_t x, kref_t out);
    /* x [M][ld], first n columns, in place: x * factor; cap * tanh(x / cap). */
    status_t (*scale)(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t x, uint32_t ld,
                      float factor);
    status_t (*softcap)(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t x, uint32_t ld,
                        float cap);
    /* x [M][ld] *= sigmoid(gate [M][gate_ld], one value a row). */
    status_t (*gate_rows)(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t x, uint32_t ld,
                          kref_t gate, uint32_t gate_ld);
    /* out [M][n] = a + b, a * b; out may be a or b. */
    status_t (*add)(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t a, kref_t b, kref_t out);
    status_t (*mul)(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t a, kref_t b, kref_t out);
    /* Copies n columns of each of n_heads heads. */
    status_t (*copy_heads)(kqueue_t *queue, kbatch_t *batch, uint32_t n_heads, uint32_t n, kref_t x,
                           kheads_at_t x_at, kref_t out, kheads_at_t out_at);

    status_t (*heads_pack)(kdevice_t *device, const kheads_spec_t *spec, kheads_t **own_out);
    void (*heads_release)(kheads_t *take_heads);
    /* x and out must not overlap. A row with values that are not finite becomes a row error. */
    status_t (*head_matmul)(kqueue_t *queue, kbatch_t *batch, const kheads_t *heads, kref_t x,
                            kheads_at_t x_at, kref_t out, kheads_at_t out_at);

    /* Writes ids u32 [M][top_k] ascending and weights F32 [M][top_k] from logits [M][ld]. A row
     * with a logit that is not finite becomes a row error: experts 0 … top_k - 1, weights NaN. */
    status_t (*route)(kqueue_t *queue, kbatch_t *batch, const kroute_spec_t *spec, kref_t logits,
                      uint32_t ld, kref_t ids, kref_t weights);
    status_t (*experts_open)(kdevice_t *device, const kexperts_spec_t *spec, kexperts_t **own_out);
    void (*experts_close)(kexperts_t *take_experts);
    /* sum int64 [M][hidden] (8-byte aligned) += each leaf's F32 result * (router weight * 2^28),
     * rounded half to even, of the rows x [M][ld] that route to experts of this rank. A result that
     * is not below 2^22 makes a row error: the row's elements become INT64_MIN. The caller clears
     * `sum` first (integers_clear). */
    status_t (*experts)(kqueue_t *queue, kbatch_t *batch, const kexperts_t *experts,
                        const krouting_t *routing, kref_t x, uint32_t ld, kref_t sum);
    /* The same for one expert (n_experts 1) that gets all rows with weight 1 or its gate. */
    status_t (*expert_shared)(kqueue_t *queue, kbatch_t *batch, const kexperts_t *experts,
                              const krouting_t *routing, kref_t x, uint32_t ld, kref_t sum);
    status_t (*integers_clear)(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t sum);
    /* residual [M][n] += (float)(sum of the ranks' int64 [M][n]) / 2^28, as out; out may be
     * residual. residual.buffer NULL: the sum alone. */
    status_t (*integers_add)(kqueue_t *queue, kbatch_t *batch, uint32_t n, const kref_t *sums,
                             uint32_t n_ranks, kref_t residual, kref_t out);

    /* Selects for each row the top_k entries of `keys` (one KV head, no values) with the highest
     * score, of those visible at the row's position; the lower entry on ties. selected u32
     * [M][top_k] ascending, n_selected u32 [M]. q [M][ld] heads side by side, w [M][w_ld]. */
    status_t (*index_select)(kqueue_t *queue, kbatch_t *batch, const kkv_t *keys,
                             const kindex_t *what, kref_t q, uint32_t ld, kref_t w, uint32_t w_ld,
                             kref_t selected, kref_t n_selected);
    /* x [M][ld]: kv, then gate. Writes `inputs` and the entries that become complete. */
    status_t (*compress)(kqueue_t *queue, kbatch_t *batch, const kcompress_t *what, kkv_t *inputs,
                         kkv_t *entries, kref_t x, uint32_t ld);
    /* collapsed [M][hidden] = sum of pre[i] * stream i; weights [M][s + s * s]: post, comb. Streams
     * F32 [M][s * hidden]. head: weights is not written. */
    status_t (*hyper_pre)(kqueue_t *queue, kbatch_t *batch, const khyper_t *what, kref_t mixes,
                          kref_t streams, kref_t collapsed, kref_t weights);
    /* streams[i] = post[i] * y + sum over j of comb[j][i] * streams[j], in place. */
    status_t (*hyper_post)(kqueue_t *queue, kbatch_t *batch, const khyper_t *what, kref_t weights,
                           kref_t y, kref_t streams);

    const struct kfused_ops *fused; /* version 3, fused.h */
} kernel_ops_t;

/* The CPU's table; valid for ever. */
const kernel_ops_t *kernels_cpu(void);
/* Begins the self-check on a thread of its own; device_open, later, waits for its answer. */
void kernels_cpu_begin(void);

/* "ref", "avx2", "amx", "avx512" that this machine can run; the last is the one that is taken
 * without being asked for. Returns their number. Tests and benches walk over it. */
enum { KLEVELS_MAX = 4 };
uint32_t kernels_cpu_levels(const char *names_out[KLEVELS_MAX]);

#endif
