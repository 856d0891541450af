/* The integers in which experts' results are added (docs/numerics.md, "MoE"): cleared, then summed
 * over ranks and given to the residual. */
#include <string.h>

#include "kernels/cpu/numbers.h"
#include "kernels/cpu/queue.h"

static status_t run_clear(kqueue_t *queue, kwork_t *work)
{
    (void)queue;
    memset(work->to, 0, (size_t)work->batch->n_rows * work->n * sizeof(int64_t));
    return STATUS_OK;
}

status_t op_integers_clear(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t sum)
{
    if (batch->declared_rows == 0 || n == 0)
        return STATUS_OK;
    size_t bytes = 2 * matrix_bytes(batch->declared_rows, n, n);
    kwork_t work = {.run = run_clear, .batch = batch, .n = n};
    work.to = ref_bytes(queue, sum, bytes, "integers_clear");
    if (work.to == NULL)
        return STATUS_INVALID;
    return queue_submit(queue, &work, work.to, bytes);
}

/* Elements of a unit of work: fewer cost less than waking a thread. */
enum { ELEMENTS_SHARED = 4096 };

/* array[0]: addresses of the ranks' sums, work->heads of them. INT64_MIN, which no sum reaches,
 * stands for a row error. Elements are shared out, not rows, which may be few and long. */
static void add_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const kwork_t *work = ((const rows_job_t *)arg)->work;
    const int64_t *const *sums = work->array[0];
    size_t all = (size_t)work->batch->n_rows * work->n;
    size_t first = all * thread / n_threads, end = all * (thread + 1) / n_threads;
    const float *residual = floats(work->from[0], 0);
    float *out = floats_to(work->to, 0);
    for (size_t i = first; i < end;) {
        size_t row = i / work->n, stop = (row + 1) * work->n;
        bool bad = false;
        for (stop = stop < end ? stop : end; i < stop; i++) {
            uint64_t sum = 0;
            bool spoilt = false;
            for (uint32_t rank = 0; rank < work->heads; rank++) {
                spoilt |= sums[rank][i] == INT64_MIN;
                sum += (uint64_t)sums[rank][i];
            }
            float value = (float)(int64_t)sum * 0x1p-28f;
            value = spoilt ? bits_float(NAN_BITS) : value;
            out[i] = residual != NULL ? residual[i] + value : value;
            bad |= spoilt;
        }
        if (bad)
            batch_row_error(work->batch, (uint32_t)row);
    }
}

static status_t run_add(kqueue_t *queue, kwork_t *work)
{
    rows_job_t job = {queue, work};
    size_t all = (size_t)work->batch->n_rows * work->n;
    device_run(queue->device, add_thread, &job, (uint32_t)(all / ELEMENTS_SHARED));
    return STATUS_OK;
}

enum { RANKS_MAX = 256 };

status_t op_integers_add(kqueue_t *queue, kbatch_t *batch, uint32_t n, const kref_t *sums,
                         uint32_t n_ranks, kref_t residual, kref_t out)
{
    if (batch->declared_rows == 0 || n == 0)
        return STATUS_OK;
    if (n_ranks > RANKS_MAX)
        return fail(STATUS_INVALID, "integers_add: %u ranks", n_ranks);
    size_t bytes = matrix_bytes(batch->declared_rows, n, n);
    const uint8_t *inputs[RANKS_MAX];
    kwork_t work = {.run = run_add, .batch = batch, .n = n, .heads = n_ranks};
    for (uint32_t i = 0; i < n_ranks; i++) {
        if (!ref_input(queue, sums[i], 2 * bytes, "integers_add sums", &inputs[i]))
            return STATUS_INVALID;
        if ((uintptr_t)inputs[i] % sizeof(int64_t) != 0)
            return fail(STATUS_INVALID, "integers_add: offset %zu is not a multiple of 8",
                        sums[i].offset);
    }
    work.to = ref_bytes(queue, out, bytes, "integers_add output");
    if (work.to == NULL ||
        !ref_optional(queue, residual, bytes, "integers_add residual", &work.from[0]))
        return STATUS_INVALID;
    work_array(&work, 0, inputs, n_ranks * sizeof inputs[0]);
    return queue_submit(queue, &work, work.to, bytes);
}
