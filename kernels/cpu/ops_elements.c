/* Ops on single elements and single heads: norms inside a row, activations, scaling, gates, copies
 * of columns. Rows are independent and shared out over the threads; what is not hot is plain C for
 * every level, so that all of them have the same bits. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/numbers.h"
#include "kernels/cpu/queue.h"

enum { ACTIVATE_CHUNK = 256 };

static void my_rows(const kwork_t *work, uint32_t thread, uint32_t n_threads, size_t *first_out,
                    size_t *end_out)
{
    uint32_t first, end;
    pool_slice(work->batch->n_rows, thread, n_threads, &first, &end);
    *first_out = first;
    *end_out = end;
}

/* ---- norms ---- */

static void norm_heads_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const rows_job_t *job = arg;
    const kwork_t *work = job->work;
    size_t first, end;
    my_rows(work, thread, n_threads, &first, &end);
    for (size_t row = first; row < end; row++)
        for (size_t h = 0; h < work->heads; h++) {
            float *x = floats_to(work->to, row * work->ld + h * work->head_dim);
            job->queue->device->level->rmsnorm(x, floats(work->from[0], 0), work->head_dim,
                                               work->number, x);
        }
}

static status_t run_norm_heads(kqueue_t *queue, kwork_t *work)
{
    return run_rows(queue, work, norm_heads_thread);
}

status_t op_norm_heads(kqueue_t *queue, kbatch_t *batch, uint32_t n_heads, uint32_t head_dim,
                       kref_t x, uint32_t ld, kref_t weight, float eps)
{
    if (batch->declared_rows == 0 || n_heads == 0 || head_dim == 0)
        return STATUS_OK;
    size_t bytes = matrix_bytes(batch->declared_rows, (uint64_t)n_heads * head_dim, ld);
    kwork_t work = {.run = run_norm_heads, .batch = batch, .heads = n_heads, .number = eps};
    work.head_dim = head_dim;
    work.ld = ld;
    work.to = ref_bytes(queue, x, bytes, "norm_heads input");
    if (work.to == NULL ||
        !ref_optional(queue, weight, head_dim * sizeof(float), "norm_heads weight", &work.from[0]))
        return STATUS_INVALID;
    return queue_submit(queue, &work, work.to, bytes);
}

static float lanes_sum(float lanes[NUMERICS_LANES])
{
    for (uint32_t distance = 8; distance > 0; distance /= 2)
        for (uint32_t i = 0; i < distance; i++)
            lanes[i] = lanes[i] + lanes[i + distance];
    return lanes[0];
}

static void layer_norm_row(float *x, const float *weight, const float *bias, uint32_t n, float eps)
{
    float lanes[NUMERICS_LANES] = {0}, squares[NUMERICS_LANES] = {0};
    for (uint32_t i = 0; i < n; i++)
        lanes[i % NUMERICS_LANES] += x[i];
    float mean = lanes_sum(lanes) / (float)n;
    for (uint32_t i = 0; i < n; i++) {
        float d = x[i] - mean;
        squares[i % NUMERICS_LANES] = fmaf(d, d, squares[i % NUMERICS_LANES]);
    }
    float r = 1.0f / sqrtf(lanes_sum(squares) / (float)n + eps);
    for (uint32_t i = 0; i < n; i++)
        x[i] = (x[i] - mean) * r * weight[i] + bias[i];
}

static void layer_norm_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const kwork_t *work = ((const rows_job_t *)arg)->work;
    size_t first, end;
    my_rows(work, thread, n_threads, &first, &end);
    for (size_t row = first; row < end; row++)
        layer_norm_row(floats_to(work->to, row * work->ld), floats(work->from[0], 0),
                       floats(work->from[1], 0), work->n, work->number);
}

static status_t run_layer_norm(kqueue_t *queue, kwork_t *work)
{
    return run_rows(queue, work, layer_norm_thread);
}

status_t op_layer_norm(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t x, uint32_t ld,
                       kref_t weight, kref_t bias, float eps)
{
    if (batch->declared_rows == 0 || n == 0)
        return STATUS_OK;
    size_t bytes = matrix_bytes(batch->declared_rows, n, ld);
    kwork_t work = {.run = run_layer_norm, .batch = batch, .n = n, .ld = ld, .number = eps};
    work.to = ref_bytes(queue, x, bytes, "layer_norm input");
    if (work.to == NULL ||
        !ref_input(queue, weight, n * sizeof(float), "layer_norm weight", &work.from[0]) ||
        !ref_input(queue, bias, n * sizeof(float), "layer_norm bias", &work.from[1]))
        return STATUS_INVALID;
    return queue_submit(queue, &work, work.to, bytes);
}

/* ---- activations ---- */

void activate_row(const klevel_t *level, const kactivate_t *what, uint32_t n, const float *x,
                  float *out)
{
    if (!what->interleaved) {
        level->activate(what, x, x + n, n, out);
        return;
    }
    float gate[ACTIVATE_CHUNK], up[ACTIVATE_CHUNK];
    for (uint32_t at = 0; at < n; at += ACTIVATE_CHUNK) {
        uint32_t m = n - at < ACTIVATE_CHUNK ? n - at : ACTIVATE_CHUNK;
        for (uint32_t i = 0; i < m; i++) {
            gate[i] = x[2 * (size_t)(at + i)];
            up[i] = x[2 * (size_t)(at + i) + 1];
        }
        level->activate(what, gate, up, m, out + at);
    }
}

static void activate_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const rows_job_t *job = arg;
    const kwork_t *work = job->work;
    size_t first, end;
    my_rows(work, thread, n_threads, &first, &end);
    for (size_t row = first; row < end; row++)
        activate_row(job->queue->device->level, work->array[0], work->n,
                     floats(work->from[0], row * 2 * work->n), floats_to(work->to, row * work->n));
}

static status_t run_activate(kqueue_t *queue, kwork_t *work)
{
    return run_rows(queue, work, activate_thread);
}

status_t op_activate(kqueue_t *queue, kbatch_t *batch, const kactivate_t *what, uint32_t n,
                     kref_t x, kref_t out)
{
    uint32_t rows = batch->declared_rows;
    if (what->kind < KACTIVATE_SILU || what->kind > KACTIVATE_SILU_LIMIT)
        return fail(STATUS_INVALID, "no such activation: %d", (int)what->kind);
    if (rows == 0 || n == 0)
        return STATUS_OK;
    size_t bytes = matrix_bytes(rows, n, n);
    kwork_t work = {.run = run_activate, .batch = batch, .n = n};
    work.to = ref_bytes(queue, out, bytes, "activate output");
    if (work.to == NULL || !ref_input(queue, x, matrix_bytes(rows, 2ull * n, 2ull * n),
                                      "activate input", &work.from[0]))
        return STATUS_INVALID;
    work_array(&work, 0, what, sizeof *what);
    return queue_submit(queue, &work, work.to, bytes);
}

/* ---- elements ---- */

static void scale_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const kwork_t *work = ((const rows_job_t *)arg)->work;
    size_t first, end;
    my_rows(work, thread, n_threads, &first, &end);
    for (size_t row = first; row < end; row++) {
        float *x = floats_to(work->to, row * work->ld);
        for (uint32_t i = 0; i < work->n; i++)
            x[i] *= work->number;
    }
}

static status_t run_scale(kqueue_t *queue, kwork_t *work)
{
    return run_rows(queue, work, scale_thread);
}

static void softcap_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const rows_job_t *job = arg;
    const kwork_t *work = job->work;
    size_t first, end;
    my_rows(work, thread, n_threads, &first, &end);
    for (size_t row = first; row < end; row++)
        job->queue->device->level->softcap(floats_to(work->to, row * work->ld), work->n,
                                           work->number);
}

static status_t run_softcap(kqueue_t *queue, kwork_t *work)
{
    return run_rows(queue, work, softcap_thread);
}

static void gate_rows_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const kwork_t *work = ((const rows_job_t *)arg)->work;
    size_t first, end;
    my_rows(work, thread, n_threads, &first, &end);
    for (size_t row = first; row < end; row++) {
        float *x = floats_to(work->to, row * work->ld);
        float gate = sigmoid_ref(*floats(work->from[0], row * work->ld2));
        for (uint32_t i = 0; i < work->n; i++)
            x[i] *= gate;
    }
}

static status_t run_gate_rows(kqueue_t *queue, kwork_t *work)
{
    return run_rows(queue, work, gate_rows_thread);
}

/* An op on the first n columns of x [M][ld], in place. */
static status_t in_place(kqueue_t *queue, kwork_t *work, kref_t x, const char *what)
{
    if (work->batch->declared_rows == 0 || work->n == 0)
        return STATUS_OK;
    size_t bytes = matrix_bytes(work->batch->declared_rows, work->n, work->ld);
    work->to = ref_bytes(queue, x, bytes, what);
    if (work->to == NULL)
        return STATUS_INVALID;
    return queue_submit(queue, work, work->to, bytes);
}

status_t op_scale(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t x, uint32_t ld, float factor)
{
    kwork_t work = {.run = run_scale, .batch = batch, .n = n, .ld = ld, .number = factor};
    return in_place(queue, &work, x, "scale input");
}

status_t op_softcap(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t x, uint32_t ld, float cap)
{
    if (!(cap > 0.0f))
        return fail(STATUS_INVALID, "softcap of %g", (double)cap);
    kwork_t work = {.run = run_softcap, .batch = batch, .n = n, .ld = ld, .number = cap};
    return in_place(queue, &work, x, "softcap input");
}

status_t op_gate_rows(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t x, uint32_t ld,
                      kref_t gate, uint32_t gate_ld)
{
    kwork_t work = {.run = run_gate_rows, .batch = batch, .n = n, .ld = ld, .ld2 = gate_ld};
    if (!ref_input(queue, gate, matrix_bytes(batch->declared_rows, 1, gate_ld), "gate_rows gate",
                   &work.from[0]))
        return STATUS_INVALID;
    return in_place(queue, &work, x, "gate_rows input");
}

/* out may be an input, so the compiler must take them one by one or check; it checks. */
static void add_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const kwork_t *work = ((const rows_job_t *)arg)->work;
    size_t first, end;
    my_rows(work, thread, n_threads, &first, &end);
    const float *a = floats(work->from[0], 0), *b = floats(work->from[1], 0);
    float *out = floats_to(work->to, 0);
    for (size_t i = first * work->n; i < end * work->n; i++)
        out[i] = a[i] + b[i];
}

static status_t run_add(kqueue_t *queue, kwork_t *work)
{
    return run_rows(queue, work, add_thread);
}

static void mul_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const kwork_t *work = ((const rows_job_t *)arg)->work;
    size_t first, end;
    my_rows(work, thread, n_threads, &first, &end);
    const float *a = floats(work->from[0], 0), *b = floats(work->from[1], 0);
    float *out = floats_to(work->to, 0);
    for (size_t i = first * work->n; i < end * work->n; i++)
        out[i] = a[i] * b[i];
}

static status_t run_mul(kqueue_t *queue, kwork_t *work)
{
    return run_rows(queue, work, mul_thread);
}

static status_t two_inputs(kqueue_t *queue, kwork_t *work, kref_t a, kref_t b, kref_t out)
{
    size_t bytes = matrix_bytes(work->batch->declared_rows, work->n, work->n);
    work->to = ref_bytes(queue, out, bytes, "output of add or mul");
    if (work->to == NULL || !ref_input(queue, a, bytes, "input of add or mul", &work->from[0]) ||
        !ref_input(queue, b, bytes, "input of add or mul", &work->from[1]))
        return STATUS_INVALID;
    return queue_submit(queue, work, work->to, bytes);
}

status_t op_add(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t a, kref_t b, kref_t out)
{
    kwork_t work = {.run = run_add, .batch = batch, .n = n};
    return two_inputs(queue, &work, a, b, out);
}

status_t op_mul(kqueue_t *queue, kbatch_t *batch, uint32_t n, kref_t a, kref_t b, kref_t out)
{
    kwork_t work = {.run = run_mul, .batch = batch, .n = n};
    return two_inputs(queue, &work, a, b, out);
}

/* ---- columns of heads ---- */

/* array[0]: where the heads stand, first the input's, then the output's. */
static status_t run_copy_heads(kqueue_t *queue, kwork_t *work)
{
    (void)queue;
    const kheads_at_t *at = work->array[0];
    for (size_t row = 0; row < work->batch->n_rows; row++)
        for (size_t h = 0; h < work->heads; h++)
            memmove(floats_to(work->to, row * at[1].ld + at[1].first + h * at[1].stride),
                    floats(work->from[0], row * at[0].ld + at[0].first + h * at[0].stride),
                    work->n * sizeof(float));
    return STATUS_OK;
}

status_t op_copy_heads(kqueue_t *queue, kbatch_t *batch, uint32_t n_heads, uint32_t n, kref_t x,
                       kheads_at_t x_at, kref_t out, kheads_at_t out_at)
{
    uint32_t rows = batch->declared_rows;
    if (rows == 0 || n_heads == 0 || n == 0)
        return STATUS_OK;
    kheads_at_t at[2] = {x_at, out_at};
    kwork_t work = {.run = run_copy_heads, .batch = batch, .heads = n_heads, .n = n};
    size_t bytes[2];
    for (uint32_t i = 0; i < 2; i++)
        bytes[i] = matrix_bytes(rows, at[i].first + (n_heads - 1ull) * at[i].stride + n, at[i].ld);
    work.to = ref_bytes(queue, out, bytes[1], "copy_heads output");
    if (work.to == NULL || !ref_input(queue, x, bytes[0], "copy_heads input", &work.from[0]))
        return STATUS_INVALID;
    work_array(&work, 0, at, sizeof at);
    return queue_submit(queue, &work, work.to, bytes[1]);
}
