/* The head: rows of the residual stream behind the last layer, times the rows of the vocabulary that
 * this rank has. It is cut by rows of the vocabulary, each a logit of its own, among the slices of the
 * last stage or, when it is shared, among the ranks of all stages: slice i of the last stage then sends
 * the rows to slice i of each other one, and everybody's columns come together on slice 0 of the last. */
#include <string.h>

#include "common/base/clock.h"
#include "common/base/failpoint.h"
#include "worker/engine/stage.h"

typedef struct {
    stage_t *stage;
    uint64_t step;
    uint32_t n;
    float *whole;
} head_call_t;

static float *host_of(stage_t *stage, kbuffer_t *buffer)
{
    return stage->ops->buffer_host(buffer);
}

static fabric_where_t where_of(const head_call_t *call, const char *operation)
{
    return (fabric_where_t){.operation = operation, .step = call->step, .layer = -1};
}

static size_t rows_bytes(const head_call_t *call)
{
    return (size_t)call->n * call->stage->residual_columns * sizeof(float);
}

uint32_t stage_head_parts(const stage_t *stage)
{
    return stage->config.tp * (stage->config.shared_head ? stage->config.stages : 1);
}

uint32_t stage_rows_past_heads(const stage_t *stage)
{
    if (!stage->config.shared_head || stage->config.stages < 2)
        return UINT32_MAX;
    /* The last stage has taken the rows of the step whose head it makes; of the others in flight all
     * may lie in one lane. */
    size_t lane = fabric_lane_sure_bytes(stage->fabric, FABRIC_ACTIVATIONS);
    size_t room = lane / (stage->config.stages - 1) - FABRIC_MESSAGE_BYTES;
    return (uint32_t)(room / (stage->residual_columns * sizeof(float)));
}

bool stage_passes_head(const stage_t *stage, uint32_t n_rows, size_t plan_bytes)
{
    if (FAILPOINT("stage.heads_first"))
        return false;
    return n_rows <= stage_rows_past_heads(stage) &&
           plan_bytes * stage->config.stages <= FABRIC_PLAN_BYTES / 2;
}

/* ---- rows to the other stages ---- */

static status_t show_rows(void *arg)
{
    const head_call_t *call = arg;
    stage_t *stage = call->stage;
    fabric_where_t where = where_of(call, "send of rows to the head");
    status_t status = STATUS_OK;
    stage_label(stage, where.operation, rows_bytes(call));
    stage_waiting(stage, true);
    for (uint32_t i = 0; status == STATUS_OK && i + 1 < stage->config.stages; i++)
        status = fabric_send(stage->fabric, i * stage->config.tp + stage->config.slice,
                             FABRIC_ACTIVATIONS, &where, host_of(stage, stage->head_rows),
                             rows_bytes(call));
    stage_waiting(stage, false);
    return status;
}

static status_t take_rows(void *arg)
{
    const head_call_t *call = arg;
    stage_t *stage = call->stage;
    fabric_where_t where = where_of(call, "receive of rows to the head");
    uint32_t from = (stage->config.stages - 1) * stage->config.tp + stage->config.slice;
    stage_label(stage, where.operation, rows_bytes(call));
    stage_waiting(stage, true);
    status_t status = fabric_receive_exact(stage->fabric, from, FABRIC_ACTIVATIONS, &where,
                                           host_of(stage, stage->head_rows), rows_bytes(call));
    stage_waiting(stage, false);
    return status;
}

/* ---- logits to who samples ---- */

/* Each row is a message of its own, so that it is received where it belongs. */
static status_t send_columns(void *arg)
{
    const head_call_t *call = arg;
    stage_t *stage = call->stage;
    fabric_where_t where = where_of(call, "gather of logits");
    uint32_t count = stage->slice.vocab.count;
    const float *columns = host_of(stage, stage->logits);
    status_t status = STATUS_OK;
    stage_label(stage, where.operation, (uint64_t)call->n * count * sizeof(float));
    stage_waiting(stage, true);
    for (uint32_t row = 0; row < call->n && status == STATUS_OK; row++)
        status = fabric_send(stage->fabric, (stage->config.stages - 1) * stage->config.tp,
                             FABRIC_LOGITS, &where, columns + (size_t)row * count,
                             count * sizeof(float));
    stage_waiting(stage, false);
    return status;
}

/* The columns of one rank. */
static status_t gather_rank(const head_call_t *call, uint32_t rank, plan_run_t run)
{
    stage_t *stage = call->stage;
    fabric_where_t where = where_of(call, "gather of logits");
    const float *own = host_of(stage, stage->logits);
    for (uint32_t row = 0; row < call->n; row++) {
        float *to = call->whole + (size_t)row * stage->shape->vocab + run.first;
        if (rank == stage->config.rank)
            memcpy(to, own + (size_t)row * run.count, run.count * sizeof(float));
        else
            TRY(fabric_receive_exact(stage->fabric, rank, FABRIC_LOGITS, &where, to,
                                     run.count * sizeof(float)));
    }
    return STATUS_OK;
}

/* The columns of one stage's slices. */
static status_t gather_stage(const head_call_t *call, uint32_t from)
{
    stage_t *stage = call->stage;
    const rank_config_t *config = &stage->config;
    for (uint32_t i = 0; i < config->tp; i++) {
        plan_run_t run = plan_head_run(stage->shape->vocab, config->tp, config->stages,
                                       config->shared_head, from, i);
        uint64_t begin_ns = clock_ns();
        TRY(gather_rank(call, from * config->tp + i, run));
        if (from != config->stage)
            stage->waited_ns += clock_ns() - begin_ns;
    }
    return STATUS_OK;
}

/* The nearest stage first: what it has left to do before its part waits for none behind it. */
static status_t gather_columns(void *arg)
{
    const head_call_t *call = arg;
    stage_t *stage = call->stage;
    stage_label(stage, "gather of logits",
                (uint64_t)call->n * stage->shape->vocab * sizeof(float));
    stage_waiting(stage, true);
    status_t status = gather_stage(call, stage->config.stages - 1);
    for (uint32_t i = stage->config.stages - 1; status == STATUS_OK && i-- > 0;)
        if (stage->config.shared_head)
            status = gather_stage(call, i);
    stage_waiting(stage, false);
    return status;
}

/* ---- the product ---- */

/* From head_rows to logits. */
static status_t multiply(stage_t *stage, uint32_t n)
{
    const kernel_ops_t *ops = stage->ops;
    const model_config_t *shape = stage->shape;
    kref_t from = stage_at(stage->head_rows, 0), input = stage_at(stage->head_input, 0);
    kref_t logits = stage_at(stage->logits, 0);
    uint32_t columns = stage->slice.vocab.count;
    TRY(ops->batch_set_plain(stage->queue, stage->batch, n));
    if (!stage->head)
        return STATUS_OK;
    if (stage->head_mix.fn) {
        TRY(stage_collapse_head(stage));
        from = stage_at(stage->collapsed, 0);
    }
    knormed_t how = {.norm = stage_at(stage->output_norm, 0),
                     .eps = shape->norm_eps,
                     .weight = stage->head};
    TRY(ops->fused->norm_quantize(stage->queue, stage->batch, shape->hidden, from, &how, input));
    TRY(ops->matmul(stage->queue, stage->batch, stage->head, input, logits));
    if (shape->logit_softcap != 0)
        TRY(ops->softcap(stage->queue, stage->batch, columns, logits, columns,
                         shape->logit_softcap));
    return STATUS_OK;
}

static status_t finish(stage_t *stage)
{
    kevent_t event;
    TRY(stage->ops->event_record(stage->queue, &event));
    return stage->ops->event_wait(stage->queue, event);
}

status_t stage_head(stage_t *stage, const uint32_t *rows, uint32_t n, float *whole,
                    const float **rows_out)
{
    const kernel_ops_t *ops = stage->ops;
    head_call_t call = {.stage = stage, .step = stage->step, .n = n, .whole = whole};
    bool gathers = stage_head_parts(stage) > 1, samples = stage->config.slice == 0;
    TRY(ops->gather_rows(stage->queue, stage_at(stage->head_rows, 0), stage_at(stage->residual, 0),
                         rows, n, stage->residual_columns * sizeof(float)));
    if (stage->config.shared_head)
        TRY(ops->host_call(stage->queue, show_rows, &call));
    TRY(multiply(stage, n));
    if (gathers)
        TRY(ops->host_call(stage->queue, samples ? gather_columns : send_columns, &call));
    TRY(finish(stage));
    *rows_out = !samples ? NULL : gathers ? whole : host_of(stage, stage->logits);
    return STATUS_OK;
}

status_t stage_head_part(stage_t *stage, uint64_t step, uint32_t n)
{
    head_call_t call = {.stage = stage, .step = step, .n = n};
    TRY(stage->ops->host_call(stage->queue, take_rows, &call));
    TRY(multiply(stage, n));
    TRY(stage->ops->host_call(stage->queue, send_columns, &call));
    return finish(stage);
}
