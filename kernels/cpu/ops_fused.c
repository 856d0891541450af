/* Sequences of ops whose rows are independent as one pass over each row (fused.h). A row lies in a
 * thread's scratch between two steps, which is in its first-level cache. */
#include "kernels/cpu/queue.h"

/* The widest row that is normed on its way to quantizing. */
enum { NORMED_MAX = ATTEND_SCRATCH_BYTES / sizeof(float) };

/* ---- norm and quantize; from[2] is the norm's weight ---- */

static void norm_quantize_row(const rows_job_t *job, const float *x, uint32_t row, float *scratch,
                              uint8_t *out)
{
    const kwork_t *work = job->work;
    const klevel_t *level = job->queue->device->level;
    level->rmsnorm(x, floats(work->from[2], 0), work->n, work->number, scratch);
    if (weight_quantize(level, work->weight, scratch, out + row * work->weight->row_bytes))
        batch_row_error(work->batch, row);
}

static float *scratch_of(const rows_job_t *job, uint32_t thread)
{
    return floats_to(job->queue->device->scratch + thread * ATTEND_SCRATCH_BYTES, 0);
}

/* Sets what norm_quantize_row needs; *out_out is where the rows go. */
static status_t prepare_norm(kqueue_t *queue, const knormed_t *how, kref_t out, kwork_t *work,
                             uint8_t **out_out)
{
    if (how->weight->inputs[0].k != work->n || work->n > NORMED_MAX)
        return fail(STATUS_INVALID, "norm_quantize: rows of %u, and a weight of %u inputs", work->n,
                    how->weight->inputs[0].k);
    size_t bytes = work->batch->declared_rows * how->weight->row_bytes;
    work->weight = how->weight;
    work->number = how->eps;
    *out_out = ref_bytes(queue, out, bytes, "norm_quantize output");
    if (*out_out == NULL || !ref_optional(queue, how->norm, work->n * sizeof(float),
                                          "norm_quantize weight", &work->from[2]))
        return STATUS_INVALID;
    if ((uintptr_t)*out_out % 64 != 0)
        return fail(STATUS_INVALID, "norm_quantize output: offset %zu is not a multiple of 64",
                    out.offset);
    return STATUS_OK;
}

static void norm_quantize_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const rows_job_t *job = arg;
    const kwork_t *work = job->work;
    uint32_t first, end;
    pool_slice(work->batch->n_rows, thread, n_threads, &first, &end);
    for (uint32_t row = first; row < end; row++)
        norm_quantize_row(job, floats(work->from[0], (size_t)row * work->n), row,
                          scratch_of(job, thread), work->to);
}

static status_t run_norm_quantize(kqueue_t *queue, kwork_t *work)
{
    return run_rows(queue, work, norm_quantize_thread);
}

static status_t op_norm_quantize(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t x,
                                 const knormed_t *how, kref_t out)
{
    uint32_t rows = batch->declared_rows;
    if (rows == 0 || n == 0)
        return STATUS_OK;
    kwork_t work = {.run = run_norm_quantize, .batch = batch, .n = n};
    TRY(prepare_norm(queue, how, out, &work, &work.to));
    if (!ref_input(queue, x, matrix_bytes(rows, n, n), "norm_quantize input", &work.from[0]))
        return STATUS_INVALID;
    return queue_submit(queue, &work, work.to, rows * how->weight->row_bytes);
}

/* ---- and what comes before: the sum of all partials ---- */

static void reduced_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const rows_job_t *job = arg;
    const kwork_t *work = job->work;
    uint32_t first, end;
    pool_slice(work->batch->n_rows, thread, n_threads, &first, &end);
    for (uint32_t row = first; row < end; row++) {
        tree_add_row(job->queue->device->level, work, row);
        norm_quantize_row(job, floats(work->to, (size_t)row * work->n), row,
                          scratch_of(job, thread), work->also);
    }
}

static status_t run_reduced(kqueue_t *queue, kwork_t *work)
{
    return run_rows(queue, work, reduced_thread);
}

static status_t op_tree_add_norm_quantize(kqueue_t *queue, kbatch_t *batch, uint32_t n,
                                          const ktree_add_t *what, kref_t residual,
                                          const knormed_t *how, kref_t out)
{
    uint32_t rows = batch->declared_rows;
    if (rows == 0 || n == 0)
        return STATUS_OK;
    kwork_t work = {.run = run_reduced, .batch = batch, .n = n};
    const float *inputs[NUMERICS_LEAVES_MAX];
    TRY(tree_add_prepare(queue, what, residual, residual, inputs, &work));
    TRY(prepare_norm(queue, how, out, &work, &work.also));
    work.also_bytes = rows * how->weight->row_bytes;
    return queue_submit(queue, &work, work.to, matrix_bytes(rows, n, n));
}

/* ---- from q, k and v to queries and cache entries ---- */

/* from[0], from[1]: norms of q and of k. heads: those of q; n: those of k. */
static void position_row(const rows_job_t *job, uint32_t row)
{
    const kwork_t *work = job->work;
    const klevel_t *level = job->queue->device->level;
    uint32_t position = work->batch->rows[row].position, all = work->heads + work->n;
    float *x = floats_to(work->to, (size_t)row * work->ld), *head = x;
    for (uint32_t h = 0; h < all; h++, head += work->head_dim) {
        const float *norm = floats(work->from[h < work->heads ? 0 : 1], 0);
        if (norm != NULL)
            level->rmsnorm(head, norm, work->head_dim, work->number, head);
        rope_turn(level, work->rope, position, head);
    }
    if (append_row(work->batch, &work->kv->pages, work->layer, row,
                   x + (size_t)work->heads * work->head_dim, head))
        batch_row_error(work->batch, row);
}

static void position_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const rows_job_t *job = arg;
    uint32_t first, end;
    pool_slice(job->work->batch->n_rows, thread, n_threads, &first, &end);
    for (uint32_t row = first; row < end; row++)
        position_row(job, row);
}

static status_t run_position(kqueue_t *queue, kwork_t *work)
{
    TRY(check_blocks(work->batch, &work->kv->pages));
    return run_rows(queue, work, position_thread);
}

static status_t check_position(const kbatch_t *batch, const kpositioned_t *what)
{
    const kpages_t *pages = &what->kv->pages;
    const krope_spec_t *rope = &what->rope->spec;
    if (batch->declared_plain || what->layer >= pages->n_layers)
        return fail(STATUS_INVALID, "position: layer %u of %u%s", what->layer, pages->n_layers,
                    batch->declared_plain ? ", and the batch has no positions" : "");
    if (pages->rate > 1 || pages->v_bytes == 0 || pages->n_kv_heads != what->n_kv_heads ||
        pages->key_dim != what->head_dim || pages->value_dim != what->head_dim)
        return fail(STATUS_INVALID, "position: %u heads of %u, which are not the cache's",
                    what->n_kv_heads, what->head_dim);
    if (what->head_dim < rope->first + rope->dim)
        return fail(STATUS_INVALID, "position: heads of %u, but %u dimensions turn", what->head_dim,
                    rope->first + rope->dim);
    if (batch->declared_position_max >= rope->positions)
        return fail(STATUS_INVALID, "position: %u of %u", batch->declared_position_max,
                    rope->positions);
    return STATUS_OK;
}

static status_t op_position(kqueue_t *queue, kbatch_t *batch, const kpositioned_t *what, kref_t x,
                            uint32_t ld)
{
    uint32_t rows = batch->declared_rows, dim = what->head_dim;
    if (rows == 0 || what->n_heads + what->n_kv_heads == 0)
        return STATUS_OK;
    TRY(check_position(batch, what));
    uint64_t columns = (what->n_heads + 2ull * what->n_kv_heads) * dim;
    size_t bytes = matrix_bytes(rows, columns, ld);
    kwork_t work = {.run = run_position,
                    .batch = batch,
                    .rope = what->rope,
                    .kv = what->kv,
                    .layer = what->layer,
                    .heads = what->n_heads,
                    .n = what->n_kv_heads,
                    .head_dim = dim,
                    .ld = ld,
                    .number = what->eps};
    work.to = ref_bytes(queue, x, bytes, "position input");
    if (work.to == NULL ||
        !ref_optional(queue, what->q_norm, dim * sizeof(float), "q_norm", &work.from[0]) ||
        !ref_optional(queue, what->k_norm, dim * sizeof(float), "k_norm", &work.from[1]))
        return STATUS_INVALID;
    return queue_submit(queue, &work, work.to, bytes);
}

const kfused_ops_t CPU_FUSED_OPS = {
    .norm_quantize = op_norm_quantize,
    .tree_add_norm_quantize = op_tree_add_norm_quantize,
    .gate_up = op_gate_up,
    .position = op_position,
};
