/* One step through a stage. Everything between batch_set and the last event is queued without
 * looking at a value: what has to happen on the host (exchange, receive, send) stands in the queue
 * as a host call, in its place. */
#include <string.h>

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
    stage_waiting(stage, true);
    status_t status =
        fabric_receive_exact(stage->fabric, stage->config.rank - stage->config.tp,
                             FABRIC_ACTIVATIONS, &where, host_of(stage, stage->residual),
                             (size_t)stage->n_rows * stage->shape->hidden * sizeof(float));
    stage_waiting(stage, false);
    return status;
}

static status_t send_rows(void *arg)
{
    stage_call_t *call = arg;
    stage_t *stage = call->stage;
    fabric_where_t where = where_of(call, "send of activations");
    if (FAILPOINT("rank.send"))
        return fail(STATUS_INTERNAL, "fail point rank.send");
    stage_waiting(stage, true);
    status_t status = fabric_send(stage->fabric, stage->config.rank + stage->config.tp,
                                  FABRIC_ACTIVATIONS, &where, host_of(stage, stage->residual),
                                  (size_t)stage->n_rows * stage->shape->hidden * sizeof(float));
    stage_waiting(stage, false);
    return status;
}

/* Bytes of one partial matrix of this step. */
static size_t partial_bytes(const stage_t *stage)
{
    return (size_t)stage->n_rows * stage->shape->hidden * sizeof(float);
}

/* Gives this slice's partials to the group and puts those of the others beside them. */
static status_t exchange_partials(void *arg)
{
    stage_call_t *call = arg;
    stage_t *stage = call->stage;
    const stage_cut_t *cut = call->cut;
    uint8_t *all = stage->ops->buffer_host(stage->partials);
    size_t one = partial_bytes(stage), bytes[PLAN_TP_MAX];
    const void *parts[PLAN_TP_MAX];
    fabric_where_t where = where_of(call, "exchange of partials");
    uint32_t me = stage->config.slice;
    if (FAILPOINT("rank.exchange"))
        return fail(STATUS_INTERNAL, "fail point rank.exchange");
    for (uint32_t i = 0; i < stage->config.tp; i++)
        bytes[i] = cut->n_partials[i] * one;
    stage_waiting(stage, true);
    status_t status = fabric_exchange(stage->fabric, &where, all + cut->n_partials_before[me] * one,
                                      bytes, parts);
    stage_waiting(stage, false);
    if (status != STATUS_OK)
        return status;
    for (uint32_t i = 0; i < stage->config.tp; i++)
        if (i != me && bytes[i] > 0)
            memcpy(all + cut->n_partials_before[i] * one, parts[i], bytes[i]);
    return STATUS_OK;
}

/* ---- ops of a layer ---- */

/* residual += tree sum of all slices' partials of `weight`, whose input rows are in stage->input.
 */
static status_t reduce(stage_t *stage, const kweight_t *weight, const stage_cut_t *cut,
                       uint32_t layer, stage_call_t *call)
{
    const kernel_ops_t *ops = stage->ops;
    size_t one = partial_bytes(stage);
    uint32_t tp = stage->config.tp;
    kref_t partials[PLAN_TP_MAX];
    for (uint32_t i = 0; i < tp; i++)
        partials[i] = stage_at(stage->partials, cut->n_partials_before[i] * one);
    if (weight)
        TRY(ops->matmul(stage->queue, stage->batch, weight, stage_at(stage->input, 0),
                        partials[stage->config.slice]));
    if (tp > 1) {
        *call = (stage_call_t){.stage = stage, .cut = cut, .layer = layer};
        TRY(ops->host_call(stage->queue, exchange_partials, call));
    }
    ktree_add_t add = {
        .n_leaves = cut->n_leaves, .runs = cut->runs, .partials = partials, .n_ranks = tp};
    kref_t residual = stage_at(stage->residual, 0);
    return ops->tree_add(stage->queue, stage->batch, stage->shape->hidden, &add, residual,
                         residual);
}

static status_t attend(stage_t *stage, uint32_t index, uint32_t ld)
{
    const kernel_ops_t *ops = stage->ops;
    const model_config_t *shape = stage->shape;
    uint32_t n_heads = stage->slice.heads.count, n_kv = stage->slice.kv_heads.count;
    size_t head_bytes = shape->head_dim * sizeof(float);
    kref_t q = stage_at(stage->qkv_out, 0), k = stage_at(stage->qkv_out, n_heads * head_bytes);
    kref_t v = stage_at(stage->qkv_out, (n_heads + n_kv) * head_bytes);
    /* q and k stand side by side, so one call turns both. */
    TRY(ops->rope(stage->queue, stage->batch, stage->rope, q, ld, n_heads + n_kv, shape->head_dim));
    TRY(ops->kv_append(stage->queue, stage->batch, stage->kv, index, k, v, ld));
    kattention_t what = {
        .layer = index,
        .n_heads = n_heads,
        .head_dim = shape->head_dim,
        .kv_head_of = stage->kv_head_of,
        .scale = shape->attention_scale,
    };
    return ops->attention(stage->queue, stage->batch, stage->kv, &what, q, ld,
                          stage_at(stage->attended, 0));
}

static status_t attention_block(stage_t *stage, uint32_t index)
{
    const kernel_ops_t *ops = stage->ops;
    const model_config_t *shape = stage->shape;
    const stage_layer_t *layer = &stage->layers[index];
    kref_t input = stage_at(stage->input, 0), normed = stage_at(stage->normed, 0);
    if (layer->qkv) {
        uint32_t ld =
            (stage->slice.heads.count + 2 * stage->slice.kv_heads.count) * shape->head_dim;
        TRY(ops->rmsnorm(stage->queue, stage->batch, shape->hidden, stage_at(stage->residual, 0),
                         stage_at(layer->attn_norm, 0), shape->norm_eps, normed));
        TRY(ops->quantize(stage->queue, stage->batch, layer->qkv, normed, shape->hidden, input));
        TRY(ops->matmul(stage->queue, stage->batch, layer->qkv, input,
                        stage_at(stage->qkv_out, 0)));
        TRY(attend(stage, index, ld));
        TRY(ops->quantize(stage->queue, stage->batch, layer->output, stage_at(stage->attended, 0),
                          stage->slice.heads.count * shape->head_dim, input));
    }
    return reduce(stage, layer->output, &stage->attention_cut, stage->config.layer_first + index,
                  &stage->calls[2 * index]);
}

static status_t ffn_block(stage_t *stage, uint32_t index)
{
    const kernel_ops_t *ops = stage->ops;
    const model_config_t *shape = stage->shape;
    const stage_layer_t *layer = &stage->layers[index];
    kref_t input = stage_at(stage->input, 0), normed = stage_at(stage->normed, 0);
    uint32_t n = stage->slice.ffn.count;
    if (layer->gate_up) {
        kref_t gate_up = stage_at(stage->gate_up_out, 0), product = stage_at(stage->ffn_out, 0);
        TRY(ops->rmsnorm(stage->queue, stage->batch, shape->hidden, stage_at(stage->residual, 0),
                         stage_at(layer->ffn_norm, 0), shape->norm_eps, normed));
        TRY(ops->quantize(stage->queue, stage->batch, layer->gate_up, normed, shape->hidden,
                          input));
        TRY(ops->matmul(stage->queue, stage->batch, layer->gate_up, input, gate_up));
        TRY(ops->silu_mul(stage->queue, stage->batch, n, gate_up, product));
        TRY(ops->quantize(stage->queue, stage->batch, layer->down, product, n, input));
    }
    return reduce(stage, layer->down, &stage->ffn_cut, stage->config.layer_first + index,
                  &stage->calls[2 * index + 1]);
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
    stage->n_rows = row;
    return stage->ops->batch_set(stage->queue, stage->batch, stage->rows, row, stage->tables,
                                 plan->n_entries);
}

status_t stage_run(stage_t *stage, const step_plan_t *plan)
{
    const kernel_ops_t *ops = stage->ops;
    stage_call_t ends = {.stage = stage, .layer = stage->config.layer_first};
    stage_call_t *edge = &stage->calls[2 * stage->config.layer_count];
    TRY(set_rows(stage, plan));
    *edge = ends;
    if (stage->first)
        TRY(ops->embed(stage->queue, stage->batch, stage->embedding, stage_at(stage->residual, 0)));
    else
        TRY(ops->host_call(stage->queue, receive_rows, edge));
    for (uint32_t i = 0; i < stage->config.layer_count; i++) {
        if (stage->pulse)
            atomic_store_explicit(&stage->pulse->layer, stage->config.layer_first + i,
                                  memory_order_relaxed);
        stage_beat(stage);
        if (FAILPOINT("rank.layer"))
            return fail(STATUS_INTERNAL, "fail point rank.layer");
        TRY(attention_block(stage, i));
        TRY(ffn_block(stage, i));
    }
    if (!stage->last)
        TRY(ops->host_call(stage->queue, send_rows, edge));
    kevent_t event;
    TRY(ops->event_record(stage->queue, &event));
    return ops->event_wait(stage->queue, event);
}

/* ---- the head ---- */

typedef struct {
    stage_t *stage;
    uint32_t n;
    float *whole;
} gather_t;

/* Every slice's columns of n rows come together on slice 0. */
static status_t gather_logits(void *arg)
{
    gather_t *gather = arg;
    stage_t *stage = gather->stage;
    uint32_t vocab = stage->shape->vocab, tp = stage->config.tp;
    uint32_t leader = stage->config.rank - stage->config.slice;
    float *mine = host_of(stage, stage->logits);
    fabric_where_t where = {.operation = "gather of logits", .step = stage->step, .layer = -1};
    if (stage->config.slice != 0) {
        size_t bytes = (size_t)gather->n * stage->slice.vocab.count * sizeof(float);
        return fabric_send(stage->fabric, leader, FABRIC_LOGITS, &where, mine, bytes);
    }
    for (uint32_t i = 0; i < tp; i++) {
        plan_run_t run = plan_vocab_run(vocab, tp, i);
        /* Received over this slice's own columns once those have been copied. */
        if (i > 0)
            TRY(fabric_receive_exact(stage->fabric, leader + i, FABRIC_LOGITS, &where, mine,
                                     (size_t)gather->n * run.count * sizeof(float)));
        for (uint32_t row = 0; row < gather->n; row++)
            memcpy(gather->whole + (size_t)row * vocab + run.first, mine + (size_t)row * run.count,
                   run.count * sizeof(float));
    }
    return STATUS_OK;
}

status_t stage_head(stage_t *stage, const uint32_t *rows, uint32_t n, float *whole,
                    const float **rows_out)
{
    const kernel_ops_t *ops = stage->ops;
    const model_config_t *shape = stage->shape;
    kref_t head_rows = stage_at(stage->head_rows, 0), input = stage_at(stage->head_input, 0);
    gather_t gather = {.stage = stage, .n = n, .whole = whole};
    TRY(ops->gather_rows(stage->queue, head_rows, stage_at(stage->residual, 0), rows, n,
                         shape->hidden * sizeof(float)));
    TRY(ops->batch_set_plain(stage->queue, stage->batch, n));
    if (stage->head) {
        TRY(ops->rmsnorm(stage->queue, stage->batch, shape->hidden, head_rows,
                         stage_at(stage->output_norm, 0), shape->norm_eps, head_rows));
        TRY(ops->quantize(stage->queue, stage->batch, stage->head, head_rows, shape->hidden,
                          input));
        TRY(ops->matmul(stage->queue, stage->batch, stage->head, input,
                        stage_at(stage->logits, 0)));
    }
    if (stage->config.tp > 1)
        TRY(ops->host_call(stage->queue, gather_logits, &gather));
    kevent_t event;
    TRY(ops->event_record(stage->queue, &event));
    TRY(ops->event_wait(stage->queue, event));
    *rows_out = stage->config.slice != 0 ? NULL
                : stage->config.tp > 1   ? whole
                                         : host_of(stage, stage->logits);
    return STATUS_OK;
}
