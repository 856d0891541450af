/* Appending to the paged KV cache, and attention over it. A unit of work is up to ATTEND_ROWS (row,
 * query head) pairs that read the same KV head of the same sequence; units are dealt to the threads
 * in turn, because later rows of a prompt cost more than earlier ones. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/numbers.h"
#include "kernels/cpu/queue.h"

typedef struct {
    const kqueue_t *queue;
    kwork_t *work;
} job_t;

static const uint32_t *row_blocks(const kbatch_t *batch, uint32_t row)
{
    return batch->blocks + batch->table_first[batch->rows[row].sequence];
}

static void append_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const job_t *job = arg;
    const kwork_t *work = job->work;
    kbatch_t *batch = work->batch;
    const kpages_t *pages = &work->kv->pages;
    uint32_t first, end;
    pool_slice(batch->n_rows, thread, n_threads, &first, &end);
    for (uint32_t row = first; row < end; row++) {
        uint32_t position = batch->rows[row].position;
        uint32_t block = row_blocks(batch, row)[position / KKV_BLOCK_TOKENS];
        for (uint32_t head = 0; head < pages->n_kv_heads; head++) {
            size_t at = (size_t)row * work->ld + (size_t)head * pages->head_dim;
            if (kv_put(pages, work->layer, block, head, position % KKV_BLOCK_TOKENS,
                       (const float *)(const void *)work->from[0] + at,
                       (const float *)(const void *)work->from[1] + at))
                batch_row_error(batch, row);
        }
    }
}

/* Block ids are checked where they are used: the plan that named them came over the wire. */
static status_t check_blocks(const kbatch_t *batch, const kpages_t *pages)
{
    for (uint32_t i = 0; i < batch->table_first[batch->n_tables]; i++)
        if (batch->blocks[i] >= pages->n_blocks)
            return fail(STATUS_INVALID, "KV block %u of %u", batch->blocks[i], pages->n_blocks);
    return STATUS_OK;
}

static status_t run_append(kqueue_t *queue, kwork_t *work)
{
    TRY(check_blocks(work->batch, &work->kv->pages));
    job_t job = {queue, work};
    device_run(queue->device, append_thread, &job, work->batch->n_rows / 4);
    return STATUS_OK;
}

status_t op_kv_append(kqueue_t *queue, kbatch_t *batch, kkv_t *kv, uint32_t layer, kref_t k,
                      kref_t v, uint32_t ld)
{
    if (batch->declared_rows == 0 || kv->pages.n_kv_heads == 0)
        return STATUS_OK;
    if (batch->declared_plain || layer >= kv->pages.n_layers)
        return fail(STATUS_INVALID, "kv_append: layer %u of %u%s", layer, kv->pages.n_layers,
                    batch->declared_plain ? ", and the batch has no positions" : "");
    size_t bytes =
        matrix_bytes(batch->declared_rows, (uint64_t)kv->pages.n_kv_heads * kv->pages.head_dim, ld);
    kwork_t work = {.run = run_append, .batch = batch, .kv = kv, .layer = layer, .ld = ld};
    work.from[0] = ref_bytes(queue, k, bytes, "kv_append keys");
    work.from[1] = ref_bytes(queue, v, bytes, "kv_append values");
    if (work.from[0] == NULL || work.from[1] == NULL)
        return STATUS_INVALID;
    return queue_submit(queue, &work, NULL, 0);
}

/* Rows whose query is not finite get NaN instead of a score; returns whether the head is good. */
static bool query_is_finite(const float *q, uint32_t n)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t bits = float_bits(q[i]) & 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    return most < ROW_ERROR_BITS;
}

/* Adds pair (row, head) to the call unless its query is bad. */
static void add_pair(const kwork_t *work, uint32_t row, uint32_t head, kattend_t *call)
{
    uint32_t dim = work->head_dim;
    const float *q =
        (const float *)(const void *)work->from[0] + (size_t)row * work->ld + (size_t)head * dim;
    float *out = (float *)(void *)work->to + ((size_t)row * work->heads + head) * dim;
    if (!query_is_finite(q, dim)) {
        batch_row_error(work->batch, row);
        for (uint32_t d = 0; d < dim; d++)
            out[d] = bits_float(NAN_BITS);
        return;
    }
    call->positions[call->n] = work->batch->rows[row].position;
    call->q[call->n] = q;
    call->out[call->n] = out;
    call->n++;
}

/* All pairs of the rows [first, end) of one sequence with one KV head, ATTEND_ROWS at a time. *unit
 * counts calls over the whole op. */
static void attend_run(const job_t *job, uint32_t first, uint32_t end, uint32_t kv_head,
                       uint32_t thread, uint32_t n_threads, uint32_t *unit)
{
    const kwork_t *work = job->work;
    const kpages_t *pages = &work->kv->pages;
    const uint16_t *kv_head_of = work->array[0];
    uint16_t heads[UINT8_MAX];
    uint32_t n_heads = 0;
    for (uint32_t h = 0; h < work->heads; h++)
        if (kv_head_of[h] == kv_head)
            heads[n_heads++] = (uint16_t)h;
    uint64_t n_pairs = (uint64_t)(end - first) * n_heads;
    for (uint64_t at = 0; at < n_pairs; at += ATTEND_ROWS) {
        if ((*unit)++ % n_threads != thread)
            continue;
        kattend_t call = {.pages = pages,
                          .base = kv_page(pages, work->layer, 0, kv_head),
                          .block_stride = (pages->k_bytes + pages->v_bytes) * pages->n_kv_heads,
                          .blocks = row_blocks(work->batch, first),
                          .scale = work->number};
        for (uint64_t i = at; i < at + ATTEND_ROWS && i < n_pairs; i++)
            add_pair(work, first + (uint32_t)(i / n_heads), heads[i % n_heads], &call);
        if (call.n > 0)
            job->queue->device->level->attend(&call);
    }
}

static void attend_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const job_t *job = arg;
    const kbatch_t *batch = job->work->batch;
    uint32_t unit = 0;
    for (uint32_t first = 0; first < batch->n_rows;) {
        uint32_t end = first + 1;
        while (end < batch->n_rows && batch->rows[end].sequence == batch->rows[first].sequence)
            end++;
        for (uint32_t head = 0; head < job->work->kv->pages.n_kv_heads; head++)
            attend_run(job, first, end, head, thread, n_threads, &unit);
        first = end;
    }
}

static status_t run_attention(kqueue_t *queue, kwork_t *work)
{
    TRY(check_blocks(work->batch, &work->kv->pages));
    job_t job = {queue, work};
    device_run(queue->device, attend_thread, &job, work->batch->n_rows * work->heads / ATTEND_ROWS);
    return STATUS_OK;
}

status_t op_attention(kqueue_t *queue, kbatch_t *batch, const kkv_t *kv, const kattention_t *what,
                      kref_t q, uint32_t ld, kref_t out)
{
    uint32_t rows = batch->declared_rows;
    if (rows == 0 || what->n_heads == 0)
        return STATUS_OK;
    if (batch->declared_plain || what->layer >= kv->pages.n_layers || what->n_heads >= UINT8_MAX ||
        what->head_dim != kv->pages.head_dim)
        return fail(STATUS_INVALID, "attention: layer %u of %u, %u heads of %u in a cache of %u",
                    what->layer, kv->pages.n_layers, what->n_heads, what->head_dim,
                    kv->pages.head_dim);
    for (uint32_t h = 0; h < what->n_heads; h++)
        if (what->kv_head_of[h] >= kv->pages.n_kv_heads)
            return fail(STATUS_INVALID, "attention: head %u reads KV head %u of %u", h,
                        what->kv_head_of[h], kv->pages.n_kv_heads);
    size_t width = (size_t)what->n_heads * what->head_dim;
    kwork_t work = {.run = run_attention, .batch = batch, .kv = (kkv_t *)(uintptr_t)kv, .ld = ld};
    work.layer = what->layer;
    work.heads = what->n_heads;
    work.head_dim = what->head_dim;
    /* Scores are powers of two; one factor serves both. */
    work.number = what->scale * LOG2_E;
    work.from[0] = ref_bytes(queue, q, matrix_bytes(rows, width, ld), "attention queries");
    work.to = ref_bytes(queue, out, matrix_bytes(rows, width, width), "attention output");
    if (work.from[0] == NULL || work.to == NULL)
        return STATUS_INVALID;
    work_array(&work, 0, what->kv_head_of, what->n_heads * sizeof(uint16_t));
    return queue_submit(queue, &work, work.to, matrix_bytes(rows, width, width));
}
