/* Matmul and the addition of partials. Threads share out panels of output columns; each walks over
 * all rows in blocks whose inputs stay in its second-level cache. */
#include "kernels/cpu/queue.h"

enum {
    SPREAD_BLOCKS = 2, /* as many make one where a panel is decoded for each */
    ROW_BLOCK_MIN = 16,
    COLUMNS_SHARED = 256, /* tree_add: columns of one unit of work */
};

typedef struct {
    const klevel_t *level;
    kmatmul_t job;
} matmul_job_t;

static void matmul_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const matmul_job_t *matmul = arg;
    kmatmul_t own = matmul->job, *job = &own;
    own.scratch = device_panel(own.weight->device, thread);
    uint32_t first, end;
    pool_slice(job->weight->n_panels, thread, n_threads, &first, &end);
    size_t row_bytes = job->weight->row_bytes; /* 0 when all leaves are empty */
    uint32_t block = (uint32_t)(INPUT_BLOCK_BYTES / (row_bytes > 0 ? row_bytes : 1));
    block = block < ROW_BLOCK_MIN ? ROW_BLOCK_MIN : block / 4 * 4;
    if (job->weight->parts[0].spread_bytes > 0)
        block *= SPREAD_BLOCKS;
    for (uint32_t row = 0; row < job->rows && first < end; row += block) {
        uint32_t row_end = job->rows - row < block ? job->rows : row + block;
        matmul->level->matmul(job, first, end, row, row_end);
    }
}

status_t run_matmul(kqueue_t *queue, kwork_t *work)
{
    matmul_job_t matmul = {
        .level = queue->device->level,
        .job = {.weight = work->weight,
                .input = work->from[0],
                .rows = work->batch->n_rows,
                .out = (float *)(void *)work->to},
    };
    device_run(queue->device, matmul_thread, &matmul, work->weight->n_panels);
    return STATUS_OK;
}

status_t op_matmul(kqueue_t *queue, kbatch_t *batch, const kweight_t *weight, kref_t input,
                   kref_t out)
{
    uint32_t rows = batch->declared_rows;
    if (weight->n_partials == 0 || rows == 0 || weight->n == 0)
        return STATUS_OK;
    size_t bytes = matrix_bytes((uint64_t)rows * weight->n_partials, weight->n, weight->n);
    kwork_t work = {.run = run_matmul, .batch = batch, .weight = weight};
    work.from[0] = ref_bytes(queue, input, rows * weight->row_bytes, "matmul input");
    work.to = ref_bytes(queue, out, bytes, "matmul output");
    if (work.from[0] == NULL || work.to == NULL)
        return STATUS_INVALID;
    if ((uintptr_t)work.from[0] % 64 != 0)
        return fail(STATUS_INVALID, "matmul input: offset %zu is not a multiple of 64",
                    input.offset);
    return queue_submit(queue, &work, work.to, bytes);
}

/* ---- the tree; array[0] holds the addresses of the inputs in the program's order ---- */

void tree_add_row(const klevel_t *level, const kwork_t *work, size_t row)
{
    const float *const *inputs = work->array[0];
    const float *at[NUMERICS_LEAVES_MAX];
    for (uint32_t i = 0; i < work->program.n_inputs; i++)
        at[i] = inputs[i] + row * work->n;
    const float *residual = work->from[0] != NULL ? floats(work->from[0], row * work->n) : NULL;
    level->tree_add(&work->program, at, floats(work->from[1], 0), residual,
                    floats_to(work->to, row * work->n), 0, work->n);
}

static void tree_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const rows_job_t *job = arg;
    uint32_t first, end;
    pool_slice(job->work->batch->n_rows, thread, n_threads, &first, &end);
    for (uint32_t row = first; row < end; row++)
        tree_add_row(job->queue->device->level, job->work, row);
}

static status_t run_tree_add(kqueue_t *queue, kwork_t *work)
{
    rows_job_t job = {queue, work};
    device_run(queue->device, tree_thread, &job,
               (uint32_t)((uint64_t)work->batch->n_rows * work->n / (16 * COLUMNS_SHARED)));
    return STATUS_OK;
}

status_t tree_add_prepare(kqueue_t *queue, const ktree_add_t *what, kref_t residual, kref_t out,
                          const float *inputs[NUMERICS_LEAVES_MAX], kwork_t *work)
{
    uint32_t n = work->n, n_inputs = 0;
    TRY(tree_program(what->n_leaves, what->runs, what->n_ranks, &work->program));
    size_t bytes = matrix_bytes(work->batch->declared_rows, n, n);
    for (uint32_t rank = 0; rank < what->n_ranks; rank++) {
        uint32_t size = tree_cover_size(what->n_leaves, what->runs[rank]);
        const uint8_t *partials = NULL;
        if (size > 0 && !ref_input(queue, what->partials[rank], size * bytes, "tree_add partials",
                                   &partials))
            return STATUS_INVALID;
        for (uint32_t i = 0; i < size; i++)
            inputs[n_inputs++] = floats(partials + i * bytes, 0);
    }
    work->to = ref_bytes(queue, out, bytes, "tree_add output");
    if (work->to == NULL ||
        !ref_optional(queue, residual, bytes, "tree_add residual", &work->from[0]) ||
        !ref_optional(queue, what->bias, n * sizeof(float), "tree_add bias", &work->from[1]))
        return STATUS_INVALID;
    work_array(work, 0, inputs, n_inputs * sizeof inputs[0]);
    return STATUS_OK;
}

status_t op_tree_add(kqueue_t *queue, kbatch_t *batch, uint32_t n, const ktree_add_t *what,
                     kref_t residual, kref_t out)
{
    kwork_t work = {.run = run_tree_add, .batch = batch, .n = n};
    const float *inputs[NUMERICS_LEAVES_MAX];
    TRY(tree_program(what->n_leaves, what->runs, what->n_ranks, &work.program));
    if (batch->declared_rows == 0 || n == 0)
        return STATUS_OK;
    TRY(tree_add_prepare(queue, what, residual, out, inputs, &work));
    return queue_submit(queue, &work, work.to, matrix_bytes(batch->declared_rows, n, n));
}
