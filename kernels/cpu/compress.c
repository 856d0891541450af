/* V4's compressor: keeps what each position contributes, and makes the entry of a window when its
 * last position is written. An entry depends on stored inputs alone, so any chunking of a prompt
 * makes the same bits. Plain C for every level: there is one entry for many positions. */
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "kernels/cpu/pages.h"
#include "kernels/cpu/queue.h"

enum { SLOTS_MAX = 2 * KCOMPRESS_RATE_MAX };

/* array[0]: kcompress_t, array[1]: the entries' cache; from[0]: x, [1]: position bias, [2]: norm.
 */
typedef struct {
    const kwork_t *work;
    const kcompress_t *what;
    const kpages_t *inputs, *entries;
} job_t;

static job_t job_of(const kwork_t *work)
{
    return (job_t){work, work->array[0], &work->kv->pages,
                   &(*(const kkv_t *const *)work->array[1])->pages};
}

static void store_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const kwork_t *work = ((const rows_job_t *)arg)->work;
    job_t job = job_of(work);
    uint32_t first, end;
    pool_slice(work->batch->n_rows, thread, n_threads, &first, &end);
    for (uint32_t row = first; row < end; row++) {
        uint32_t position = work->batch->rows[row].position;
        uint32_t block = row_blocks(work->batch, row)[position / KKV_BLOCK_TOKENS];
        if (kv_put(job.inputs, job.what->layer, block, 0, position % KKV_BLOCK_TOKENS,
                   floats(work->from[0], (size_t)row * work->ld), NULL))
            batch_row_error(work->batch, row);
    }
}

/* What a position of the row's sequence has left: kv, then gate. */
static const float *input_at(const job_t *job, uint32_t row, uint32_t position)
{
    uint32_t block = row_blocks(job->work->batch, row)[position / KKV_BLOCK_TOKENS];
    const uint8_t *page = kv_page(job->inputs, job->what->layer, block, 0);
    return floats(page + key_at(job->inputs, position % KKV_BLOCK_TOKENS, 0), 0);
}

/* One dimension over n slots: softmax of the gates, weighing the values. Products and sums apart,
 * slots ascending. */
static float weigh_slots(const float *values, const float *gates, uint32_t n)
{
    float e[SLOTS_MAX];
    float most = gates[0], total = 0, sum = 0;
    for (uint32_t i = 1; i < n; i++)
        most = gates[i] > most ? gates[i] : most;
    for (uint32_t i = 0; i < n; i++) {
        e[i] = exp2_ref((gates[i] - most) * LOG2_E);
        total += e[i];
    }
    for (uint32_t i = 0; i < n; i++)
        sum += values[i] * (e[i] / total);
    return sum;
}

/* The entry of window `index`, whose last position is this row's. */
static void make_entry(const kqueue_t *queue, const job_t *job, uint32_t row, uint32_t index,
                       float *entry)
{
    const kcompress_t *what = job->what;
    uint32_t rate = what->rate, dim = what->dim, width = what->overlap ? 2 * dim : dim;
    const float *bias = floats(job->work->from[1], 0);
    const float *inputs[SLOTS_MAX];
    uint32_t n_before = what->overlap && index > 0 ? rate : 0, n = n_before + rate;
    for (uint32_t i = 0; i < n; i++)
        inputs[i] = input_at(job, row, index * rate - n_before + i);
    /* With overlap the first half of the columns serves the next window, the second this one. */
    uint32_t own = what->overlap ? dim : 0;
    for (uint32_t d = 0; d < dim; d++) {
        float values[SLOTS_MAX], gates[SLOTS_MAX];
        for (uint32_t i = 0; i < n; i++) {
            uint32_t column = i < n_before ? d : own + d;
            values[i] = inputs[i][column];
            gates[i] = inputs[i][width + column] + bias[(size_t)(i % rate) * width + column];
        }
        entry[d] = weigh_slots(values, gates, n);
    }
    queue->device->level->rmsnorm(entry, floats(job->work->from[2], 0), dim, what->eps, entry);
    rope_turn(queue->device->level, what->rope, index * rate, entry);
}

static void entry_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const rows_job_t *rows = arg;
    const kbatch_t *batch = rows->work->batch;
    job_t job = job_of(rows->work);
    uint32_t unit = 0;
    for (uint32_t row = 0; row < batch->n_rows; row++) {
        uint32_t position = batch->rows[row].position;
        if ((position + 1) % job.what->rate != 0 || unit++ % n_threads != thread)
            continue;
        float entry[KHEAD_DIM_MAX];
        uint32_t index = position / job.what->rate;
        make_entry(rows->queue, &job, row, index, entry);
        uint32_t block = row_blocks(batch, row)[entry_block(job.entries, index)];
        if (kv_put(job.entries, job.what->layer, block, 0, entry_slot(job.entries, index), entry,
                   NULL))
            batch_row_error(rows->work->batch, row);
    }
}

static status_t run_compress(kqueue_t *queue, kwork_t *work)
{
    job_t job = job_of(work);
    TRY(check_blocks(work->batch, job.inputs));
    TRY(check_blocks(work->batch, job.entries));
    TRY(run_rows(queue, work, store_thread));
    return run_rows(queue, work, entry_thread);
}

status_t op_compress(kqueue_t *queue, kbatch_t *batch, const kcompress_t *what, kkv_t *inputs,
                     kkv_t *entries, kref_t x, uint32_t ld)
{
    uint32_t rows = batch->declared_rows, width = what->overlap ? 2 * what->dim : what->dim;
    const kpages_t *in = &inputs->pages, *to = &entries->pages;
    if (rows == 0)
        return STATUS_OK;
    if (what->dim > KHEAD_DIM_MAX || in->key_dim != 2 * width || !in->rows || in->rate != 1 ||
        in->n_kv_heads != 1 || in->mode != KMODE_F32 || what->layer >= in->n_layers)
        return fail(STATUS_INVALID,
                    "compress: inputs of %u columns need an exact cache of %u, with one head and "
                    "more than %u layers",
                    2 * width, 2 * width, what->layer);
    if (to->key_dim != what->dim || to->rate != what->rate || to->n_kv_heads != 1 ||
        what->rate < 2 || what->layer >= to->n_layers)
        return fail(STATUS_INVALID,
                    "compress: entries of %u for %u positions, in a cache of %u for %u", what->dim,
                    what->rate, to->key_dim, to->rate);
    if (batch->declared_plain || batch->declared_position_max >= what->rope->spec.positions ||
        what->rope->spec.first + what->rope->spec.dim > what->dim)
        return fail(STATUS_INVALID, "compress: position %u of %u, dimensions up to %u of %u",
                    batch->declared_position_max, what->rope->spec.positions,
                    what->rope->spec.first + what->rope->spec.dim, what->dim);
    kwork_t work = {.run = run_compress, .batch = batch, .kv = inputs, .ld = ld};
    if (!ref_input(queue, x, matrix_bytes(rows, 2ull * width, ld), "compress input",
                   &work.from[0]) ||
        !ref_input(queue, what->position_bias, (size_t)what->rate * width * sizeof(float),
                   "compress position bias", &work.from[1]) ||
        !ref_input(queue, what->norm, what->dim * sizeof(float), "compress norm", &work.from[2]))
        return STATUS_INVALID;
    work_array(&work, 0, what, sizeof *what);
    work_array(&work, 1, &entries, sizeof(kkv_t *));
    return queue_submit(queue, &work, NULL, 0);
}
