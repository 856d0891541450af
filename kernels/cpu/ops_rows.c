/* Ops whose rows are independent: norm, quantization, activation function, bias, rope. The threads
 * share out rows; what one row costs is too little to be cut further. */
#include "kernels/cpu/queue.h"

static void rmsnorm_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const rows_job_t *job = arg;
    const kwork_t *work = job->work;
    const klevel_t *level = job->queue->device->level;
    uint32_t first, end;
    pool_slice(work->batch->n_rows, thread, n_threads, &first, &end);
    for (size_t i = first; i < end; i++)
        level->rmsnorm(floats(work->from[0], i * work->n), floats(work->from[1], 0), work->n,
                       work->number, floats_to(work->to, i * work->n));
}

static status_t run_rmsnorm(kqueue_t *queue, kwork_t *work)
{
    return run_rows(queue, work, rmsnorm_thread);
}

status_t op_rmsnorm(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t x, kref_t weight,
                    float eps, kref_t out)
{
    size_t bytes = matrix_bytes(batch->declared_rows, n, n);
    kwork_t work = {.run = run_rmsnorm, .batch = batch, .n = n, .number = eps};
    work.from[0] = ref_bytes(queue, x, bytes, "rmsnorm input");
    work.to = ref_bytes(queue, out, bytes, "rmsnorm output");
    if (work.from[0] == NULL || work.to == NULL)
        return STATUS_INVALID;
    if (weight.buffer != NULL) {
        work.from[1] = ref_bytes(queue, weight, n * sizeof(float), "rmsnorm weight");
        if (work.from[1] == NULL)
            return STATUS_INVALID;
    }
    return queue_submit(queue, &work, work.to, bytes);
}

static void quantize_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const rows_job_t *job = arg;
    const kwork_t *work = job->work;
    const klevel_t *level = job->queue->device->level;
    const kweight_t *weight = work->weight;
    uint32_t first, end;
    pool_slice(work->batch->n_rows, thread, n_threads, &first, &end);
    for (uint32_t i = first; i < end; i++)
        if (weight_quantize(level, weight, floats(work->from[0], (size_t)i * work->ld),
                            work->to + i * weight->row_bytes))
            batch_row_error(work->batch, i);
}

static status_t run_quantize(kqueue_t *queue, kwork_t *work)
{
    return run_rows(queue, work, quantize_thread);
}

status_t op_quantize(kqueue_t *queue, kbatch_t *batch, const kweight_t *weight, kref_t x,
                     uint32_t ld, kref_t out)
{
    uint32_t k = weight->inputs[0].k;
    if (k == 0)
        return STATUS_OK;
    size_t out_bytes = batch->declared_rows * weight->row_bytes;
    kwork_t work = {.run = run_quantize, .batch = batch, .weight = weight, .ld = ld};
    work.from[0] = ref_bytes(queue, x, matrix_bytes(batch->declared_rows, k, ld), "quantize input");
    work.to = ref_bytes(queue, out, out_bytes, "quantize output");
    if (work.from[0] == NULL || work.to == NULL)
        return STATUS_INVALID;
    if ((uintptr_t)work.to % 64 != 0)
        return fail(STATUS_INVALID, "quantize output: offset %zu is not a multiple of 64",
                    out.offset);
    return queue_submit(queue, &work, work.to, out_bytes);
}

static void silu_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const rows_job_t *job = arg;
    const kwork_t *work = job->work;
    uint32_t first, end;
    pool_slice(work->batch->n_rows, thread, n_threads, &first, &end);
    for (size_t i = first; i < end; i++) {
        const float *gate = floats(work->from[0], i * 2 * work->n);
        job->queue->device->level->silu_mul(gate, gate + work->n, work->n,
                                            floats_to(work->to, i * work->n));
    }
}

static status_t run_silu(kqueue_t *queue, kwork_t *work)
{
    return run_rows(queue, work, silu_thread);
}

status_t op_silu_mul(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t x, kref_t out)
{
    if (n == 0)
        return STATUS_OK;
    uint32_t rows = batch->declared_rows;
    size_t bytes = matrix_bytes(rows, n, n);
    kwork_t work = {.run = run_silu, .batch = batch, .n = n};
    work.from[0] = ref_bytes(queue, x, matrix_bytes(rows, 2ull * n, 2ull * n), "silu_mul input");
    work.to = ref_bytes(queue, out, bytes, "silu_mul output");
    if (work.from[0] == NULL || work.to == NULL)
        return STATUS_INVALID;
    return queue_submit(queue, &work, work.to, bytes);
}

static void bias_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const kwork_t *work = ((const rows_job_t *)arg)->work;
    uint32_t first, end;
    pool_slice(work->batch->n_rows, thread, n_threads, &first, &end);
    for (uint32_t row = first; row < end; row++) {
        float *x = floats_to(work->to, (size_t)row * work->ld);
        const float *bias = floats(work->from[0], 0);
        for (uint32_t i = 0; i < work->n; i++)
            x[i] += bias[i];
    }
}

static status_t run_bias(kqueue_t *queue, kwork_t *work)
{
    return run_rows(queue, work, bias_thread);
}

status_t op_bias_add(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t x, uint32_t ld,
                     kref_t bias)
{
    size_t bytes = matrix_bytes(batch->declared_rows, n, ld);
    kwork_t work = {.run = run_bias, .batch = batch, .n = n, .ld = ld};
    work.from[0] = ref_bytes(queue, bias, n * sizeof(float), "bias");
    work.to = ref_bytes(queue, x, bytes, "bias_add input");
    if (work.from[0] == NULL || work.to == NULL)
        return STATUS_INVALID;
    return queue_submit(queue, &work, work.to, bytes);
}

static void rope_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const rows_job_t *job = arg;
    const kwork_t *work = job->work;
    uint32_t first, end;
    pool_slice(work->batch->n_rows, thread, n_threads, &first, &end);
    for (uint32_t i = first; i < end; i++)
        for (uint32_t h = 0; h < work->heads; h++)
            rope_turn(job->queue->device->level, work->rope, work->batch->rows[i].position,
                      floats_to(work->to, (size_t)i * work->ld + (size_t)h * work->head_dim));
}

static status_t run_rope(kqueue_t *queue, kwork_t *work)
{
    return run_rows(queue, work, rope_thread);
}

status_t op_rope(kqueue_t *queue, kbatch_t *batch, const krope_t *rope, kref_t x, uint32_t ld,
                 uint32_t n_heads, uint32_t head_dim)
{
    if (batch->declared_rows == 0 || n_heads == 0)
        return STATUS_OK;
    if (batch->declared_plain)
        return fail(STATUS_INVALID, "rope: the batch has no positions");
    if (head_dim < rope->spec.first + rope->spec.dim)
        return fail(STATUS_INVALID, "rope: heads of %u, but %u dimensions turn", head_dim,
                    rope->spec.first + rope->spec.dim);
    if (batch->declared_position_max >= rope->spec.positions)
        return fail(STATUS_INVALID, "rope: position %u of %u", batch->declared_position_max,
                    rope->spec.positions);
    size_t bytes = matrix_bytes(batch->declared_rows, (uint64_t)n_heads * head_dim, ld);
    kwork_t work = {.run = run_rope, .batch = batch, .rope = rope, .ld = ld, .heads = n_heads};
    work.head_dim = head_dim;
    work.to = ref_bytes(queue, x, bytes, "rope input");
    if (work.to == NULL)
        return STATUS_INVALID;
    return queue_submit(queue, &work, work.to, bytes);
}
