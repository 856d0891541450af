/* V4's hyper-connections: the residual is several streams, which are collapsed before a block and
 * mixed after it. The mixing matrix is made doubly stochastic by Sinkhorn and Knopp's iteration.
 * Products and sums are apart, so plain C is fast and the same on every level. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/numbers.h"
#include "kernels/cpu/queue.h"

typedef struct {
    float pre[KHYPER_STREAMS_MAX], post[KHYPER_STREAMS_MAX];
    float comb[KHYPER_STREAMS_MAX][KHYPER_STREAMS_MAX];
} mixture_t;

static void softmax_row(const float *x, uint32_t n, float eps, float *out)
{
    float most = x[0], sum = 0;
    for (uint32_t i = 1; i < n; i++)
        most = x[i] > most ? x[i] : most;
    for (uint32_t i = 0; i < n; i++) {
        out[i] = exp2_ref((x[i] - most) * LOG2_E);
        sum += out[i];
    }
    for (uint32_t i = 0; i < n; i++)
        out[i] = out[i] / sum + eps;
}

static void scale_rows(mixture_t *m, uint32_t n, float eps)
{
    for (uint32_t i = 0; i < n; i++) {
        float sum = 0;
        for (uint32_t j = 0; j < n; j++)
            sum += m->comb[i][j];
        for (uint32_t j = 0; j < n; j++)
            m->comb[i][j] = m->comb[i][j] / (sum + eps);
    }
}

static void scale_columns(mixture_t *m, uint32_t n, float eps)
{
    for (uint32_t j = 0; j < n; j++) {
        float sum = 0;
        for (uint32_t i = 0; i < n; i++)
            sum += m->comb[i][j];
        for (uint32_t i = 0; i < n; i++)
            m->comb[i][j] = m->comb[i][j] / (sum + eps);
    }
}

static void mixture_of(const khyper_t *what, const float *mixes, const float *base,
                       const float *scale, mixture_t *m)
{
    uint32_t n = what->n_streams;
    for (uint32_t i = 0; i < n; i++)
        m->pre[i] = sigmoid_ref(mixes[i] * scale[0] + base[i]) + what->eps;
    if (what->head)
        return;
    for (uint32_t i = 0; i < n; i++) {
        m->post[i] = 2.0f * sigmoid_ref(mixes[n + i] * scale[1] + base[n + i]);
        float logits[KHYPER_STREAMS_MAX];
        for (uint32_t j = 0; j < n; j++) {
            uint32_t at = 2 * n + i * n + j;
            logits[j] = mixes[at] * scale[2] + base[at];
        }
        softmax_row(logits, n, what->eps, m->comb[i]);
    }
    scale_columns(m, n, what->eps);
    for (uint32_t round = 1; round < what->iterations; round++) {
        scale_rows(m, n, what->eps);
        scale_columns(m, n, what->eps);
    }
}

/* array[0]: khyper_t; from[0]: mixes, [1]: base, [2]: scale, [3]: streams; also: weights. */
static void pre_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const kwork_t *work = ((const rows_job_t *)arg)->work;
    const khyper_t *what = work->array[0];
    uint32_t n = what->n_streams, hidden = what->hidden, first, end;
    pool_slice(work->batch->n_rows, thread, n_threads, &first, &end);
    for (size_t row = first; row < end; row++) {
        mixture_t m;
        mixture_of(what, floats(work->from[0], row * (what->head ? n : (2 + n) * n)),
                   floats(work->from[1], 0), floats(work->from[2], 0), &m);
        const float *streams = floats(work->from[3], row * n * hidden);
        float *out = floats_to(work->to, row * hidden);
        for (uint32_t d = 0; d < hidden; d++)
            out[d] = m.pre[0] * streams[d];
        for (uint32_t i = 1; i < n; i++)
            for (uint32_t d = 0; d < hidden; d++)
                out[d] += m.pre[i] * streams[(size_t)i * hidden + d];
        if (what->head)
            continue;
        float *weights = floats_to(work->also, row * (n + n * n));
        memcpy(weights, m.post, n * sizeof *weights);
        for (uint32_t i = 0; i < n; i++)
            memcpy(weights + n + (size_t)i * n, m.comb[i], n * sizeof *weights);
    }
}

static status_t run_pre(kqueue_t *queue, kwork_t *work)
{
    return run_rows(queue, work, pre_thread);
}

static status_t check_hyper(const khyper_t *what)
{
    if (what->n_streams < 1 || what->n_streams > KHYPER_STREAMS_MAX || what->hidden < 1 ||
        what->iterations > 1000)
        return fail(STATUS_UNSUPPORTED,
                    "hyper-connections of %u streams of %u with %u iterations; "
                    "up to %d streams can be",
                    what->n_streams, what->hidden, what->iterations, KHYPER_STREAMS_MAX);
    return STATUS_OK;
}

status_t op_hyper_pre(kqueue_t *queue, kbatch_t *batch, const khyper_t *what, kref_t mixes,
                      kref_t streams, kref_t collapsed, kref_t weights)
{
    TRY(check_hyper(what));
    uint32_t rows = batch->declared_rows, n = what->n_streams;
    uint32_t n_mixes = what->head ? n : (2 + n) * n;
    if (rows == 0)
        return STATUS_OK;
    size_t bytes = matrix_bytes(rows, what->hidden, what->hidden);
    uint64_t width = (uint64_t)n * what->hidden;
    kwork_t work = {.run = run_pre, .batch = batch};
    work.to = ref_bytes(queue, collapsed, bytes, "hyper_pre output");
    if (!what->head) {
        work.also_bytes = matrix_bytes(rows, n + n * n, n + n * n);
        work.also = ref_bytes(queue, weights, work.also_bytes, "hyper_pre weights");
        if (work.also == NULL)
            return STATUS_INVALID;
    }
    if (work.to == NULL ||
        !ref_input(queue, mixes, matrix_bytes(rows, n_mixes, n_mixes), "hyper_pre mixes",
                   &work.from[0]) ||
        !ref_input(queue, what->base, n_mixes * sizeof(float), "hyper_pre base", &work.from[1]) ||
        !ref_input(queue, what->scale, (what->head ? 1 : 3) * sizeof(float), "hyper_pre scale",
                   &work.from[2]) ||
        !ref_input(queue, streams, matrix_bytes(rows, width, width), "hyper_pre streams",
                   &work.from[3]))
        return STATUS_INVALID;
    work_array(&work, 0, what, sizeof *what);
    return queue_submit(queue, &work, work.to, bytes);
}

/* from[0]: weights, [1]: y. Eight dimensions of all streams are read before any is written. */
static void post_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    enum { STEP = 64 };
    const kwork_t *work = ((const rows_job_t *)arg)->work;
    const khyper_t *what = work->array[0];
    uint32_t n = what->n_streams, hidden = what->hidden, first, end;
    pool_slice(work->batch->n_rows, thread, n_threads, &first, &end);
    for (size_t row = first; row < end; row++) {
        const float *post = floats(work->from[0], row * (n + n * n)), *comb = post + n;
        const float *y = floats(work->from[1], row * hidden);
        float *streams = floats_to(work->to, row * n * hidden);
        for (uint32_t at = 0; at < hidden; at += STEP) {
            uint32_t m = hidden - at < STEP ? hidden - at : STEP;
            float old[KHYPER_STREAMS_MAX][STEP];
            for (uint32_t j = 0; j < n; j++)
                memcpy(old[j], streams + (size_t)j * hidden + at, m * sizeof old[0][0]);
            for (uint32_t i = 0; i < n; i++) {
                float *to = streams + (size_t)i * hidden + at;
                for (uint32_t d = 0; d < m; d++)
                    to[d] = post[i] * y[at + d];
                for (uint32_t j = 0; j < n; j++)
                    for (uint32_t d = 0; d < m; d++)
                        to[d] += comb[(size_t)j * n + i] * old[j][d];
            }
        }
    }
}

static status_t run_post(kqueue_t *queue, kwork_t *work)
{
    return run_rows(queue, work, post_thread);
}

status_t op_hyper_post(kqueue_t *queue, kbatch_t *batch, const khyper_t *what, kref_t weights,
                       kref_t y, kref_t streams)
{
    TRY(check_hyper(what));
    uint32_t rows = batch->declared_rows, n = what->n_streams;
    if (rows == 0)
        return STATUS_OK;
    uint64_t width = (uint64_t)n * what->hidden;
    size_t bytes = matrix_bytes(rows, width, width);
    kwork_t work = {.run = run_post, .batch = batch};
    work.to = ref_bytes(queue, streams, bytes, "hyper_post streams");
    if (work.to == NULL ||
        !ref_input(queue, weights, matrix_bytes(rows, n + n * n, n + n * n), "hyper_post weights",
                   &work.from[0]) ||
        !ref_input(queue, y, matrix_bytes(rows, what->hidden, what->hidden), "hyper_post input",
                   &work.from[1]))
        return STATUS_INVALID;
    work_array(&work, 0, what, sizeof *what);
    return queue_submit(queue, &work, work.to, bytes);
}
