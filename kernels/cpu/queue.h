/* Queues of the CPU backend: how an op becomes a piece of work. An op checks its arguments, fills a
 * kwork_t and submits it; an ordinary queue runs it there and then, a late one keeps a copy (with
 * its arrays) and runs it at the wait. */
#ifndef SHOAL_KERNELS_CPU_QUEUE_H
#define SHOAL_KERNELS_CPU_QUEUE_H

#include "kernels/cpu/internal.h"
#include "kernels/fused.h"

typedef struct kwork kwork_t;
typedef struct snapshot snapshot_t;

struct kqueue {
    kdevice_t *device;
    kqueue_kind_t kind;
    kevent_t recorded;
    status_t status; /* of the first failure */
    char text[STATUS_TEXT_MAX];
    kwork_t *first, *last; /* late: what is to be done */
    snapshot_t *snapshots; /* late: what outputs held before they were poisoned, newest first */
    trace_t *trace;        /* NULL: none */
};

/* Input rows that a thread goes over at a time, beside which its second-level cache still has room
 * for weights. */
enum { INPUT_BLOCK_BYTES = 256 * 1024 };
enum { WORK_ARRAYS_MAX = 4, WORK_INPUTS_MAX = 6 };

struct kwork {
    kwork_t *next;
    const char *name; /* of the function that submitted it, "op_…" */
    status_t (*run)(kqueue_t *queue, kwork_t *work);
    bool host; /* runs in the caller's floating-point mode */
    /* Host arrays and their sizes; a late queue works on copies, freed after the run. */
    const void *array[WORK_ARRAYS_MAX];
    size_t array_bytes[WORK_ARRAYS_MAX];
    void *owned[WORK_ARRAYS_MAX];

    kbatch_t *batch;
    const kweight_t *weight;
    const ktable_t *table;
    const krope_t *rope;
    kkv_t *kv;
    uint8_t *to;
    uint8_t *also; /* a second output, for ops that have two; a late queue poisons it too */
    size_t also_bytes;
    const uint8_t *from[WORK_INPUTS_MAX];
    size_t bytes;
    uint32_t n, ld, heads, head_dim, layer, n_tables;
    uint32_t ld2;
    float number;
    tree_program_t program;
    khost_fn fn;
    void *arg;
};

/* Runs or keeps the work. `to` (may be NULL) of `bytes` is what it writes: a late queue poisons it.
 */
#define queue_submit(queue, work, to, bytes) \
    ((work)->name = __func__, queue_take(queue, work, to, bytes))
status_t queue_take(kqueue_t *queue, kwork_t *work, void *to, size_t bytes);

/* Declares work->array[i] as a host array of that many bytes. */
void work_array(kwork_t *work, uint32_t i, const void *array, size_t bytes);

/* The address of `bytes` at a handle, or NULL with the failure worded: `what` names the argument.
 */
uint8_t *ref_bytes(kqueue_t *queue, kref_t ref, size_t bytes, const char *what);

/* The same into *bytes_out; `optional` handles without a buffer give NULL and true. */
bool ref_input(kqueue_t *queue, kref_t ref, size_t bytes, const char *what,
               const uint8_t **bytes_out);
bool ref_optional(kqueue_t *queue, kref_t ref, size_t bytes, const char *what,
                  const uint8_t **bytes_out);

static inline const float *floats(const uint8_t *bytes, size_t index)
{
    return bytes != NULL ? (const float *)(const void *)bytes + index : NULL;
}

static inline float *floats_to(uint8_t *bytes, size_t index)
{
    return (float *)(void *)bytes + index;
}

/* n rows of columns floats, ld apart (the last row need not be padded): bytes, or SIZE_MAX when
 * that overflows. */
size_t matrix_bytes(uint64_t rows, uint64_t columns, uint64_t ld);

/* What fn gets as its argument from run_rows. */
typedef struct {
    kqueue_t *queue;
    kwork_t *work;
} rows_job_t;

/* Shares out an op's rows over the threads: pool_slice of work->batch->n_rows. */
status_t run_rows(kqueue_t *queue, kwork_t *work, pool_fn fn);

/* Runs fn(arg, thread, n_threads) on the device's threads in kernel mode, or on the caller's alone
 * if `units` of work are too few to share. */
void device_run(kdevice_t *device, pool_fn fn, void *arg, uint32_t units);

/* queue.c */
status_t queue_open(kdevice_t *device, kqueue_kind_t kind, kqueue_t **own_out);
void queue_close(kqueue_t *take_queue);
status_t event_record(kqueue_t *queue, kevent_t *event_out);
status_t event_wait(kqueue_t *queue, kevent_t event);
void queue_reset(kqueue_t *queue);

/* queue_trace.c */
void queue_trace(kqueue_t *queue, trace_t *trace);
/* Runs the work and adds it to the queue's trace. */
status_t trace_work(kqueue_t *queue, kwork_t *work);

/* copies.c */
status_t op_copy_in(kqueue_t *queue, kref_t to, const void *from, size_t bytes);
status_t op_copy_out(kqueue_t *queue, void *to, kref_t from, size_t bytes);
status_t op_copy(kqueue_t *queue, kref_t to, kref_t from, size_t bytes);
status_t op_gather_rows(kqueue_t *queue, kref_t to, kref_t from, const uint32_t *rows, uint32_t n,
                        size_t row_bytes);
status_t op_host_call(kqueue_t *queue, khost_fn fn, void *arg);

/* batch.c */
status_t batch_new(kdevice_t *device, uint32_t rows_max, uint32_t blocks_max, kbatch_t **own_out);
void batch_release(kbatch_t *take_batch);
status_t op_batch_set(kqueue_t *queue, kbatch_t *batch, const kbatch_row_t *rows, uint32_t n_rows,
                      const kbatch_table_t *tables, uint32_t n_tables);
status_t op_batch_set_plain(kqueue_t *queue, kbatch_t *batch, uint32_t n_rows);
uint32_t batch_row_errors(const kbatch_t *batch, uint8_t *flags_out);
status_t table_open(kdevice_t *device, uint32_t qtype, const void *rows, size_t bytes,
                    uint32_t n_rows, uint32_t k, ktable_t **own_out);
void table_close(ktable_t *take_table);
status_t op_embed(kqueue_t *queue, kbatch_t *batch, const ktable_t *table, kref_t out);
/* Marks a row; any thread. */
void batch_row_error(kbatch_t *batch, uint32_t row);

/* ops_rows.c */
status_t op_rmsnorm(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t x, kref_t weight,
                    float eps, kref_t out);
status_t op_quantize(kqueue_t *queue, kbatch_t *batch, const kweight_t *weight, kref_t x,
                     uint32_t ld, kref_t out);
status_t op_silu_mul(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t x, kref_t out);
status_t op_bias_add(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t x, uint32_t ld,
                     kref_t bias);
status_t op_rope(kqueue_t *queue, kbatch_t *batch, const krope_t *rope, kref_t x, uint32_t ld,
                 uint32_t n_heads, uint32_t head_dim);

/* ops_elements.c */
status_t op_norm_heads(kqueue_t *queue, kbatch_t *batch, uint32_t n_heads, uint32_t head_dim,
                       kref_t x, uint32_t ld, kref_t weight, float eps);
status_t op_layer_norm(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t x, uint32_t ld,
                       kref_t weight, kref_t bias, float eps);
status_t op_activate(kqueue_t *queue, kbatch_t *batch, const kactivate_t *what, uint32_t n,
                     kref_t x, kref_t out);
status_t op_scale(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t x, uint32_t ld,
                  float factor);
status_t op_softcap(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t x, uint32_t ld, float cap);
status_t op_gate_rows(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t x, uint32_t ld,
                      kref_t gate, uint32_t gate_ld);
status_t op_add(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t a, kref_t b, kref_t out);
status_t op_mul(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t a, kref_t b, kref_t out);
status_t op_copy_heads(kqueue_t *queue, kbatch_t *batch, uint32_t n_heads, uint32_t n, kref_t x,
                       kheads_at_t x_at, kref_t out, kheads_at_t out_at);
/* One row of gate and up, as they lie, through the level's activation. */
void activate_row(const klevel_t *level, const kactivate_t *what, uint32_t n, const float *x,
                  float *out);

/* heads.c */
status_t op_head_matmul(kqueue_t *queue, kbatch_t *batch, const kheads_t *heads, kref_t x,
                        kheads_at_t x_at, kref_t out, kheads_at_t out_at);

/* index.c, compress.c, hyper.c */
status_t op_index_select(kqueue_t *queue, kbatch_t *batch, const kkv_t *keys, const kindex_t *what,
                         kref_t q, uint32_t ld, kref_t w, uint32_t w_ld, kref_t selected,
                         kref_t n_selected);
status_t op_compress(kqueue_t *queue, kbatch_t *batch, const kcompress_t *what, kkv_t *inputs,
                     kkv_t *entries, kref_t x, uint32_t ld);
status_t op_hyper_pre(kqueue_t *queue, kbatch_t *batch, const khyper_t *what, kref_t mixes,
                      kref_t streams, kref_t collapsed, kref_t weights);
status_t op_hyper_post(kqueue_t *queue, kbatch_t *batch, const khyper_t *what, kref_t weights,
                       kref_t y, kref_t streams);

/* route.c, experts.c, ops_integers.c */
status_t op_route(kqueue_t *queue, kbatch_t *batch, const kroute_spec_t *spec, kref_t logits,
                  uint32_t ld, kref_t ids, kref_t weights);
status_t op_experts(kqueue_t *queue, kbatch_t *batch, const kexperts_t *experts,
                    const krouting_t *routing, kref_t x, uint32_t ld, kref_t sum);
status_t op_expert_shared(kqueue_t *queue, kbatch_t *batch, const kexperts_t *experts,
                          const krouting_t *routing, kref_t x, uint32_t ld, kref_t sum);
status_t op_integers_clear(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t sum);
status_t op_integers_add(kqueue_t *queue, kbatch_t *batch, uint32_t n, const kref_t *sums,
                         uint32_t n_ranks, kref_t residual, kref_t out);

/* ops_matmul.c */
status_t op_matmul(kqueue_t *queue, kbatch_t *batch, const kweight_t *weight, kref_t input,
                   kref_t out);
status_t op_tree_add(kqueue_t *queue, kbatch_t *batch, uint32_t n, const ktree_add_t *what,
                     kref_t residual, kref_t out);

/* Of batch, weight, from[0] and to. */
status_t run_matmul(kqueue_t *queue, kwork_t *work);
/* Checks the arguments and fills in program, to, from[0] (residual), from[1] (bias) and array[0],
 * which is `inputs`. work->batch and work->n are set. */
status_t tree_add_prepare(kqueue_t *queue, const ktree_add_t *what, kref_t residual, kref_t out,
                          const float *inputs[NUMERICS_LEAVES_MAX], kwork_t *work);
/* One row of such a work. */
void tree_add_row(const klevel_t *level, const kwork_t *work, size_t row);

/* ops_fused.c, ops_gate_up.c */
extern const kfused_ops_t CPU_FUSED_OPS;
status_t op_gate_up(kqueue_t *queue, kbatch_t *batch, const kgate_up_t *what, kref_t input,
                    kref_t wide, kref_t out);

/* ops_attention.c */
/* One row of keys and values, head_dim or value_dim a head, into the cache; true when a value is
 * not finite. */
bool append_row(const kbatch_t *batch, const kpages_t *pages, uint32_t layer, uint32_t row,
                const float *k, const float *v);
const uint32_t *row_blocks(const kbatch_t *batch, uint32_t row);
status_t check_blocks(const kbatch_t *batch, const kpages_t *pages);
status_t op_kv_append(kqueue_t *queue, kbatch_t *batch, kkv_t *kv, uint32_t layer, kref_t k,
                      kref_t v, uint32_t ld);
status_t op_attention(kqueue_t *queue, kbatch_t *batch, const kkv_t *kv, const kattention_t *what,
                      kref_t q, uint32_t ld, kref_t out);

#endif
