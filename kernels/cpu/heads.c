/* One small matrix a head: MLA's absorbed projections, V4's grouped output. Each is a packed weight
 * of one leaf; threads share out the heads, and each walks over all rows in blocks. */
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/base/qtype.h"
#include "kernels/cpu/numbers.h"
#include "kernels/cpu/queue.h"

enum { ROWS_BLOCK = 64, HEADS_MAX = 4096 };

struct kheads {
    kdevice_t *device;
    uint32_t n_heads, out_dim, in_dim;
    kweight_t **weights;
    size_t thread_bytes; /* of scratch: ROWS_BLOCK input rows, then as many output rows */
    uint8_t *scratch;
};

/* Rows of one head in the type that the device multiplies. */
static status_t pack_head(kdevice_t *device, const kheads_spec_t *spec, uint32_t head,
                          uint16_t *halves, kweight_t **own_out)
{
    size_t n = (size_t)spec->out_dim * spec->in_dim;
    const float *values = spec->values + head * n;
    bool native = device->mode == KMODE_NATIVE;
    for (size_t i = 0; native && i < n; i++)
        halves[i] = bf16_round_finite(values[i]);
    const uint32_t edges[] = {0, spec->in_dim};
    kweight_part_t part = {.qtype = native ? QTYPE_BF16 : QTYPE_F32,
                           .rows = native ? (const void *)halves : values,
                           .bytes = n * (native ? 2 : 4),
                           .n_rows = spec->out_dim};
    kweight_spec_t weight = {.name = spec->name,
                             .parts = &part,
                             .n_parts = 1,
                             .k_total = spec->in_dim,
                             .leaf_edges = edges,
                             .n_leaves = 1,
                             .leaf_end = 1};
    return weight_pack(device, &weight, own_out);
}

status_t heads_pack(kdevice_t *device, const kheads_spec_t *spec, kheads_t **own_out)
{
    if (spec->n_heads > HEADS_MAX || spec->out_dim < 1 || spec->in_dim < 1 ||
        spec->out_dim > KWEIGHT_K_MAX || spec->in_dim > KWEIGHT_K_MAX)
        return fail(STATUS_INVALID, "weight %s: %u heads of %u times %u", spec->name, spec->n_heads,
                    spec->out_dim, spec->in_dim);
    kheads_t *heads = MEM_NEW(kheads_t);
    *heads = (kheads_t){.device = device,
                        .n_heads = spec->n_heads,
                        .out_dim = spec->out_dim,
                        .in_dim = spec->in_dim};
    heads->weights = MEM_NEW_ARRAY(kweight_t *, spec->n_heads);
    uint16_t *halves = MEM_NEW_ARRAY(uint16_t, (size_t)spec->out_dim * spec->in_dim);
    status_t status = STATUS_OK;
    for (uint32_t h = 0; h < spec->n_heads && status == STATUS_OK; h++)
        status = pack_head(device, spec, h, halves, &heads->weights[h]);
    free(halves);
    if (status == STATUS_OK && spec->n_heads > 0) {
        size_t out_bytes = ((size_t)spec->out_dim * sizeof(float) + 63) / 64 * 64;
        heads->thread_bytes = ROWS_BLOCK * (heads->weights[0]->row_bytes + out_bytes);
        heads->scratch = map_pages(heads->thread_bytes * pool_threads(device->pool));
        if (heads->scratch == NULL)
            status = fail(STATUS_NO_MEMORY, "weight %s: no memory for its scratch", spec->name);
    }
    if (status != STATUS_OK) {
        heads_release(heads);
        return status;
    }
    *own_out = heads;
    return STATUS_OK;
}

void heads_release(kheads_t *take_heads)
{
    if (take_heads == NULL)
        return;
    for (uint32_t h = 0; h < take_heads->n_heads; h++)
        weight_release(take_heads->weights[h]);
    unmap_pages(take_heads->scratch,
                take_heads->thread_bytes * pool_threads(take_heads->device->pool));
    free(take_heads->weights);
    free(take_heads);
}

/* array[0]: where the heads stand in the input, then in the output; array[1]: the weights. */
static void head_block(kqueue_t *queue, const kwork_t *work, const kheads_t *heads, uint32_t head,
                       uint32_t first, uint32_t n, uint8_t *scratch)
{
    const kheads_at_t *at = work->array[0];
    const klevel_t *level = queue->device->level;
    const kweight_t *weight = heads->weights[head];
    float *out = floats_to(scratch + ROWS_BLOCK * weight->row_bytes, 0);
    for (uint32_t i = 0; i < n; i++) {
        size_t from = (size_t)(first + i) * at[0].ld + at[0].first + (size_t)head * at[0].stride;
        if (weight_quantize(level, weight, floats(work->from[0], from),
                            scratch + i * weight->row_bytes))
            batch_row_error(work->batch, first + i);
    }
    kmatmul_t job = {.weight = weight, .input = scratch, .rows = n, .out = out};
    level->matmul(&job, 0, weight->n_panels, 0, n);
    for (uint32_t i = 0; i < n; i++) {
        size_t to = (size_t)(first + i) * at[1].ld + at[1].first + (size_t)head * at[1].stride;
        memcpy(floats_to(work->to, to), out + (size_t)i * weight->n, weight->n * sizeof *out);
    }
}

static void head_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const rows_job_t *job = arg;
    const kheads_t *heads = *(const kheads_t *const *)job->work->array[1];
    uint32_t n_rows = job->work->batch->n_rows;
    for (uint32_t head = thread; head < heads->n_heads; head += n_threads)
        for (uint32_t row = 0; row < n_rows; row += ROWS_BLOCK)
            head_block(job->queue, job->work, heads, head, row,
                       n_rows - row < ROWS_BLOCK ? n_rows - row : ROWS_BLOCK,
                       heads->scratch + thread * heads->thread_bytes);
}

static status_t run_head_matmul(kqueue_t *queue, kwork_t *work)
{
    rows_job_t job = {queue, work};
    device_run(queue->device, head_thread, &job, work->heads);
    return STATUS_OK;
}

status_t op_head_matmul(kqueue_t *queue, kbatch_t *batch, const kheads_t *heads, kref_t x,
                        kheads_at_t x_at, kref_t out, kheads_at_t out_at)
{
    uint32_t rows = batch->declared_rows;
    if (rows == 0 || heads->n_heads == 0)
        return STATUS_OK;
    if (out_at.stride < heads->out_dim && heads->n_heads > 1)
        return fail(STATUS_INVALID, "head_matmul: heads of %u columns, %u apart", heads->out_dim,
                    out_at.stride);
    kheads_at_t at[2] = {x_at, out_at};
    uint32_t dims[2] = {heads->in_dim, heads->out_dim};
    size_t bytes[2];
    for (uint32_t i = 0; i < 2; i++)
        bytes[i] = matrix_bytes(
            rows, at[i].first + (heads->n_heads - 1ull) * at[i].stride + dims[i], at[i].ld);
    kwork_t work = {.run = run_head_matmul, .batch = batch, .heads = heads->n_heads};
    work.to = ref_bytes(queue, out, bytes[1], "head_matmul output");
    if (work.to == NULL || !ref_input(queue, x, bytes[0], "head_matmul input", &work.from[0]))
        return STATUS_INVALID;
    work_array(&work, 0, at, sizeof at);
    work_array(&work, 1, &heads, sizeof heads);
    return queue_submit(queue, &work, work.to, bytes[1]);
}
