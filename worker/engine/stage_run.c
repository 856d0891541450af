/* One step through a stage. Everything between batch_set and the last event is queued without
 * looking at a value: what has to happen on the host (exchange, receive, send) stands in the queue
 * as a host call, in its place. */
#include <string.h>

#include "common/base/clock.h"
#include "common/base/failpoint.h"
#include "worker/engine/stage.h"

/* ---- host calls ---- */

static fabric_where_t where_of(const stage_call_t *call, const char *operation)
{
    return (fabric_where_t){
        .operation = operation, .step = call->stage->step, .layer = (int32_t)call->layer};
}

static float *host_of(stage_t *stage, kbuffer_t *buffer)
{
    return stage->ops->buffer_host(buffer);
}

static status_t receive_rows(void *arg)
{
    stage_call_t *call = arg;
    stage_t *stage = call->stage;
    fabric_where_t where = where_of(call, "receive of activations");
    stage_label(stage, where.operation,
                (uint64_t)stage->n_rows * stage->residual_columns * sizeof(float));
    uint64_t begin_ns = clock_ns();
    stage_waiting(stage, true);
    status_t status =
        fabric_receive_exact(stage->fabric, stage->config.rank - stage->config.tp,
                             FABRIC_ACTIVATIONS, &where, host_of(stage, stage->residual),
                             (size_t)stage->n_rows * stage->residual_columns * sizeof(float));
    stage_waiting(stage, false);
    stage->waited_ns += clock_ns() - begin_ns;
    return status;
}

static status_t send_rows(void *arg)
{
    stage_call_t *call = arg;
    stage_t *stage = call->stage;
    fabric_where_t where = where_of(call, "send of activations");
    stage_label(stage, where.operation,
                (uint64_t)stage->n_rows * stage->residual_columns * sizeof(float));
    if (FAILPOINT("rank.send"))
        return fail(STATUS_INTERNAL, "fail point rank.send");
    uint64_t begin_ns = clock_ns();
    stage_waiting(stage, true);
    status_t status = fabric_send(stage->fabric, stage->config.rank + stage->config.tp,
                                  FABRIC_ACTIVATIONS, &where, host_of(stage, stage->residual),
                                  (size_t)stage->n_rows * stage->residual_columns * sizeof(float));
    stage_waiting(stage, false);
    stage->waited_ns += clock_ns() - begin_ns;
    return status;
}

/* Shows the rows of the residual stream to a test. */
static status_t show_rows(void *arg)
{
    const stage_call_t *call = arg;
    stage_t *stage = call->stage;
    uint32_t n = stage->residual_columns;
    for (uint32_t i = 0; i < stage->n_rows; i++)
        stage->config.hidden(stage->config.hidden_context, call->layer, stage->rows[i].position, n,
                             host_of(stage, stage->residual) + (size_t)i * n);
    return STATUS_OK;
}

static status_t show(stage_t *stage, uint32_t layer, stage_call_t *call)
{
    if (!stage->config.hidden)
        return STATUS_OK;
    *call = (stage_call_t){.stage = stage, .layer = layer};
    return stage->ops->host_call(stage->queue, show_rows, call);
}

/* ---- a step ---- */

static status_t set_rows(stage_t *stage, const step_plan_t *plan)
{
    uint32_t row = 0;
    if (plan->n_tokens > stage->rows_max || plan->n_blocks > stage->blocks_max ||
        plan->n_entries > stage->config.batch_max)
        return fail(STATUS_INVALID,
                    "step %llu has %u tokens of %u sequences; this rank takes %u of %u",
                    (unsigned long long)plan->step, plan->n_tokens, plan->n_entries,
                    stage->rows_max, stage->config.batch_max);
    for (uint32_t i = 0; i < plan->n_entries; i++) {
        const step_entry_t *entry = &plan->entries[i];
        stage->tables[i] = (kbatch_table_t){entry->blocks, entry->n_blocks};
        for (uint32_t t = 0; t < entry->n_tokens; t++)
            stage->rows[row++] = (kbatch_row_t){
                .token = entry->ids[t], .position = entry->position + t, .sequence = i};
    }
    stage->step = plan->step;
    stage->waited_ns = 0;
    stage->n_rows = row;
    stage->prepared = NULL;
    stage_work_on_all(stage);
    TRY(stage->ops->batch_set(stage->queue, stage->batch, stage->rows, row, stage->tables,
                              plan->n_entries));
    return stage_set_replicas(stage, plan);
}

/* Where the next block begins with the normed rows as the input of one weight, the one before it
 * makes that input when it adds its sum to the residual. */
static void expect_next(stage_t *stage, const stage_mix_t *mix, kbuffer_t *norm,
                        const kweight_t *weight)
{
    stage->next.norm = norm;
    stage->next.weight = mix->fn || stage->own_batch ? NULL : weight;
}

static void expect_attention(stage_t *stage, uint32_t index)
{
    const stage_layer_t *layer = &stage->layers[index];
    stage->next.weight = NULL;
    if (index < stage->config.layer_count && layer->kind->attention == MODEL_ATTENTION_GROUPED)
        expect_next(stage, &layer->attn_mix, layer->attn_norm, layer->qkv);
}

static void expect_ffn(stage_t *stage, uint32_t index)
{
    const stage_layer_t *layer = &stage->layers[index];
    stage->next.weight = NULL;
    if (layer->kind->ffn == MODEL_FFN_DENSE)
        expect_next(stage, &layer->ffn_mix, layer->ffn_norm, layer->gate_up);
}

static status_t run_layer(stage_t *stage, uint32_t index)
{
    const model_layer_t *kind = stage->layers[index].kind;
    uint32_t layer = stage->config.layer_first + index;
    uint32_t n_calls = stage_calls_of_layer(stage);
    stage_call_t *calls = &stage->calls[n_calls * index], *ffn_calls = calls + n_calls / 2;
    for (uint32_t i = 0; i < n_calls; i++)
        calls[i] = (stage_call_t){.stage = stage, .layer = layer};
    stage_work_on_own(stage);
    expect_ffn(stage, index);
    switch ((model_attention_kind_t)kind->attention) {
    case MODEL_ATTENTION_GROUPED: TRY(stage_grouped(stage, index, &calls[0])); break;
    case MODEL_ATTENTION_LATENT: TRY(stage_latent(stage, index, &calls[0])); break;
    case MODEL_ATTENTION_COMPRESSED: TRY(stage_compressed(stage, index, &calls[0])); break;
    }
    stage_work_on_all(stage);
    expect_attention(stage, index + 1);
    if (kind->ffn == MODEL_FFN_DENSE)
        TRY(stage_dense(stage, index, ffn_calls));
    else
        TRY(stage_experts(stage, index, ffn_calls));
    return show(stage, layer + 1, &calls[n_calls - 1]);
}

static status_t begin_rows(stage_t *stage, stage_call_t *calls)
{
    const kernel_ops_t *ops = stage->ops;
    bool streams = stage->shape->streams.n > 0;
    kref_t rows = stage_at(streams ? stage->normed : stage->residual, 0);
    uint32_t hidden = stage->shape->hidden;
    if (!stage->first)
        return ops->host_call(stage->queue, receive_rows, &calls[0]);
    TRY(ops->embed(stage->queue, stage->batch, stage->embedding, rows));
    if (stage->shape->embedding_scale != 0)
        TRY(ops->scale(stage->queue, stage->batch, hidden, rows, hidden,
                       stage->shape->embedding_scale));
    if (streams)
        TRY(stage_spread(stage));
    return show(stage, 0, &calls[1]);
}

status_t stage_run(stage_t *stage, const step_plan_t *plan)
{
    const kernel_ops_t *ops = stage->ops;
    stage_call_t *edge = &stage->calls[stage_calls_of_layer(stage) * stage->config.layer_count];
    TRY(set_rows(stage, plan));
    *edge = (stage_call_t){.stage = stage, .layer = stage->config.layer_first};
    TRY(begin_rows(stage, edge));
    for (uint32_t i = 0; i < stage->config.layer_count; i++) {
        if (stage->pulse)
            atomic_store_explicit(&stage->pulse->layer, stage->config.layer_first + i,
                                  memory_order_relaxed);
        stage_beat(stage);
        if (FAILPOINT("rank.layer"))
            return fail(STATUS_INTERNAL, "fail point rank.layer");
        TRY(run_layer(stage, i));
    }
    if (!stage->last)
        TRY(ops->host_call(stage->queue, send_rows, edge));
    kevent_t event;
    TRY(ops->event_record(stage->queue, &event));
    return ops->event_wait(stage->queue, event);
}
