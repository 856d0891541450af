/* Ops that move bytes, and the host's turn in the queue. */
#include <string.h>

#include "kernels/cpu/queue.h"

static status_t run_copy(kqueue_t *queue, kwork_t *work)
{
    (void)queue;
    memcpy(work->to, work->from[0], work->bytes);
    return STATUS_OK;
}

static status_t run_copy_in(kqueue_t *queue, kwork_t *work)
{
    (void)queue;
    memcpy(work->to, work->array[0], work->bytes);
    return STATUS_OK;
}

status_t op_copy_in(kqueue_t *queue, kref_t to, const void *from, size_t bytes)
{
    kwork_t work = {.run = run_copy_in, .bytes = bytes};
    if (bytes == 0)
        return STATUS_OK;
    work.to = ref_bytes(queue, to, bytes, "copy_in");
    if (work.to == NULL)
        return STATUS_INVALID;
    work_array(&work, 0, from, bytes);
    return queue_submit(queue, &work, work.to, bytes);
}

status_t op_copy_out(kqueue_t *queue, void *to, kref_t from, size_t bytes)
{
    kwork_t work = {.run = run_copy, .bytes = bytes, .to = to};
    if (bytes == 0)
        return STATUS_OK;
    work.from[0] = ref_bytes(queue, from, bytes, "copy_out");
    if (work.from[0] == NULL)
        return STATUS_INVALID;
    return queue_submit(queue, &work, work.to, bytes);
}

status_t op_copy(kqueue_t *queue, kref_t to, kref_t from, size_t bytes)
{
    kwork_t work = {.run = run_copy, .bytes = bytes};
    if (bytes == 0)
        return STATUS_OK;
    work.from[0] = ref_bytes(queue, from, bytes, "copy source");
    work.to = ref_bytes(queue, to, bytes, "copy target");
    if (work.from[0] == NULL || work.to == NULL)
        return STATUS_INVALID;
    if (work.to < work.from[0] + bytes && work.from[0] < work.to + bytes)
        return fail(STATUS_INVALID, "copy: source and target overlap");
    return queue_submit(queue, &work, work.to, bytes);
}

static status_t run_gather(kqueue_t *queue, kwork_t *work)
{
    (void)queue;
    const uint32_t *rows = work->array[0];
    for (uint32_t i = 0; i < work->n; i++)
        memcpy(work->to + i * work->bytes, work->from[0] + rows[i] * work->bytes, work->bytes);
    return STATUS_OK;
}

status_t op_gather_rows(kqueue_t *queue, kref_t to, kref_t from, const uint32_t *rows, uint32_t n,
                        size_t row_bytes)
{
    kwork_t work = {.run = run_gather, .n = n, .bytes = row_bytes};
    if (n == 0 || row_bytes == 0)
        return STATUS_OK;
    size_t most = 0;
    for (uint32_t i = 0; i < n; i++)
        most = rows[i] > most ? rows[i] : most;
    if (row_bytes > SIZE_MAX / KBATCH_ROWS_MAX || n > KBATCH_ROWS_MAX || most >= KBATCH_ROWS_MAX)
        return fail(STATUS_INVALID, "gather of %u rows up to row %zu of %zu bytes", n, most,
                    row_bytes);
    work.from[0] = ref_bytes(queue, from, (most + 1) * row_bytes, "gather source");
    work.to = ref_bytes(queue, to, n * row_bytes, "gather target");
    if (work.from[0] == NULL || work.to == NULL)
        return STATUS_INVALID;
    work_array(&work, 0, rows, n * sizeof *rows);
    return queue_submit(queue, &work, work.to, n * row_bytes);
}

static status_t run_host(kqueue_t *queue, kwork_t *work)
{
    (void)queue;
    return work->fn(work->arg);
}

status_t op_host_call(kqueue_t *queue, khost_fn fn, void *arg)
{
    kwork_t work = {.run = run_host, .host = true, .fn = fn, .arg = arg};
    return queue_submit(queue, &work, NULL, 0);
}
