/* The indexer of sparse attention: scores of all visible entries, then the best top_k of them in
 * ascending order. Rows are shared out over the threads; where there are fewer rows than threads,
 * each row's entries are. */
#include <string.h>

#include "kernels/cpu/pages.h"
#include "kernels/cpu/queue.h"

enum { RADIX_BITS = 11, RADIX = 1 << RADIX_BITS };

typedef struct {
    kqueue_t *queue;
    kwork_t *work;
    uint32_t row; /* of the row whose entries are shared out */
} job_t;

/* A number that orders like the float; -0 has become +0, NaN is below everything. */
static uint32_t order_of(float score)
{
    uint32_t bits = float_bits(score + 0.0f);
    if ((bits & 0x7fffffffu) > ROW_ERROR_BITS)
        return 0;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* The k-th highest order number, and how many entries lie above it: by its digits, highest first.
 */
static uint32_t threshold_of(const float *scores, uint32_t n, uint32_t k, uint32_t *above_out)
{
    uint32_t prefix = 0, above = 0;
    for (uint32_t shift = 22;; shift -= RADIX_BITS) {
        /* Digits of 10, 11 and 11 bits. */
        uint32_t counts[RADIX] = {0};
        uint32_t settled = shift == 22 ? 0 : UINT32_MAX << (shift + RADIX_BITS);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t order = order_of(scores[i]);
            if ((order & settled) == prefix)
                counts[order >> shift & (RADIX - 1)]++;
        }
        uint32_t digit = RADIX - 1;
        while (above + counts[digit] < k)
            above += counts[digit--];
        prefix |= digit << shift;
        if (shift == 0)
            break;
    }
    *above_out = above;
    return prefix;
}

/* Writes the ranks of the k best of n > k scores, ascending. */
static void select_best(const float *scores, uint32_t n, uint32_t k, uint32_t *out)
{
    uint32_t above;
    uint32_t threshold = threshold_of(scores, n, k, &above);
    uint32_t ties = k - above, found = 0;
    for (uint32_t i = 0; i < n && found < k; i++) {
        uint32_t order = order_of(scores[i]);
        bool tie = order == threshold && ties > 0;
        ties -= tie;
        if (tie || order > threshold)
            out[found++] = i;
    }
}

static bool all_finite(const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if ((float_bits(x[i]) & 0x7fffffffu) >= ROW_ERROR_BITS)
            return false;
    return true;
}

/* from[0]: q, [1]: w; array[0]: kindex_t. */
static void score_entries(const job_t *job, uint32_t row, uint32_t first, uint32_t end,
                          uint32_t thread, float *scores)
{
    const kwork_t *work = job->work;
    const kindex_t *what = work->array[0];
    const kpages_t *pages = &work->kv->pages;
    kdevice_t *device = job->queue->device;
    kscore_t call = {.scratch = device->scratch + thread * ATTEND_SCRATCH_BYTES,
                     .n_heads = what->n_heads,
                     .scale = what->scale,
                     .weight_scale = what->weight_scale,
                     .q = floats(work->from[0], (size_t)row * work->ld),
                     .w = floats(work->from[1], (size_t)row * work->ld2),
                     .scores_out = scores};
    call.pass = (kpass_t){.pages = pages,
                          .base = kv_page(pages, what->layer, 0, 0),
                          .block_stride = pages->k_bytes,
                          .blocks = row_blocks(work->batch, row)};
    call.pass.first[0] = first;
    call.pass.end[0] = end;
    device->level->score(&call);
}

static float *scores_of(const job_t *job, uint32_t thread)
{
    const kpages_t *pages = &job->work->kv->pages;
    return (float *)(void *)job->queue->device->scratch_block +
           (size_t)thread * pages->n_blocks * pages->slots;
}

static void score_share(void *arg, uint32_t thread, uint32_t n_threads)
{
    const job_t *job = arg;
    uint32_t n = entries_visible(&job->work->kv->pages, job->work->batch->rows[job->row].position);
    uint32_t first, end;
    pool_slice((n + KEYS_TILE - 1) / KEYS_TILE, thread, n_threads, &first, &end);
    first *= KEYS_TILE;
    end = end * KEYS_TILE < n ? end * KEYS_TILE : n;
    if (first < end)
        score_entries(job, job->row, first, end, thread, scores_of(job, 0));
}

/* Writes a row's list, for which `scores` has been filled or, with `score`, is filled here. */
static void select_row(const job_t *job, uint32_t row, bool score, uint32_t thread, float *scores)
{
    const kwork_t *work = job->work;
    const kindex_t *what = work->array[0];
    uint32_t n = entries_visible(&work->kv->pages, work->batch->rows[row].position);
    uint32_t *out = (uint32_t *)(void *)work->to + (size_t)row * what->top_k;
    uint32_t k = n < what->top_k ? n : what->top_k;
    ((uint32_t *)(void *)work->also)[row] = k;
    size_t q_n = (size_t)what->n_heads * what->head_dim;
    bool good = all_finite(floats(work->from[0], (size_t)row * work->ld), q_n) &&
                all_finite(floats(work->from[1], (size_t)row * work->ld2), what->n_heads);
    if (!good)
        batch_row_error(work->batch, row);
    if (n > k && good) {
        if (score)
            score_entries(job, row, 0, n, thread, scores);
        select_best(scores, n, k, out);
        return;
    }
    for (uint32_t i = 0; i < k; i++)
        out[i] = i;
}

static void select_rows(void *arg, uint32_t thread, uint32_t n_threads)
{
    const job_t *job = arg;
    for (uint32_t row = thread; row < job->work->batch->n_rows; row += n_threads)
        select_row(job, row, true, thread, scores_of(job, thread));
}

static status_t run_index(kqueue_t *queue, kwork_t *work)
{
    const kpages_t *pages = &work->kv->pages;
    TRY(check_blocks(work->batch, pages));
    job_t job = {queue, work, 0};
    uint32_t most = 0, n_rows = work->batch->n_rows;
    for (uint32_t row = 0; row < n_rows; row++) {
        uint32_t n = entries_visible(pages, work->batch->rows[row].position);
        most = n > most ? n : most;
    }
    if (most > (uint64_t)pages->n_blocks * pages->slots)
        return fail(STATUS_INVALID, "index_select: %u entries in %u blocks of %u", most,
                    pages->n_blocks, pages->slots);
    if (n_rows >= pool_threads(queue->device->pool)) {
        device_run(queue->device, select_rows, &job, n_rows);
        return STATUS_OK;
    }
    for (job.row = 0; job.row < n_rows; job.row++) {
        device_run(queue->device, score_share, &job, most / KEYS_CHUNK + 1);
        select_row(&job, job.row, false, 0, scores_of(&job, 0));
    }
    return STATUS_OK;
}

status_t op_index_select(kqueue_t *queue, kbatch_t *batch, const kkv_t *keys, const kindex_t *what,
                         kref_t q, uint32_t ld, kref_t w, uint32_t w_ld, kref_t selected,
                         kref_t n_selected)
{
    uint32_t rows = batch->declared_rows;
    const kpages_t *pages = &keys->pages;
    if (rows == 0)
        return STATUS_OK;
    if (batch->declared_plain || what->layer >= pages->n_layers ||
        what->head_dim != pages->key_dim || what->head_dim > KHEAD_DIM_MAX ||
        pages->value_dim != 0 || pages->n_kv_heads != 1 || what->n_heads < 1 || what->top_k < 1)
        return fail(STATUS_INVALID,
                    "index_select: layer %u of %u, %u heads of %u, the best %u, in a cache of %u "
                    "heads of %u with values of %u",
                    what->layer, pages->n_layers, what->n_heads, what->head_dim, what->top_k,
                    pages->n_kv_heads, pages->key_dim, pages->value_dim);
    size_t q_width = (size_t)what->n_heads * what->head_dim;
    size_t bytes = matrix_bytes(rows, what->top_k, what->top_k);
    kwork_t work = {.run = run_index, .batch = batch, .kv = (kkv_t *)(uintptr_t)keys, .ld = ld};
    work.ld2 = w_ld;
    work.to = ref_bytes(queue, selected, bytes, "index_select lists");
    work.also_bytes = rows * sizeof(uint32_t);
    work.also = ref_bytes(queue, n_selected, work.also_bytes, "index_select list lengths");
    if (work.to == NULL || work.also == NULL ||
        !ref_input(queue, q, matrix_bytes(rows, q_width, ld), "index_select queries",
                   &work.from[0]) ||
        !ref_input(queue, w, matrix_bytes(rows, what->n_heads, w_ld), "index_select weights",
                   &work.from[1]))
        return STATUS_INVALID;
    work_array(&work, 0, what, sizeof *what);
    return queue_submit(queue, &work, work.to, bytes);
}
