/* The end of a block: what the slices of a stage made comes together, as partial sums of floats in
 * a written tree or as exact integers, and is added to the residual stream. */
#include <string.h>

#include "common/base/failpoint.h"
#include "worker/engine/stage.h"

/* Bytes of one partial matrix of this step. */
static size_t partial_bytes(const stage_t *stage)
{
    return (size_t)stage->n_rows * stage->shape->hidden * sizeof(float);
}

static size_t sum_bytes(const stage_t *stage)
{
    return (size_t)stage->n_rows * stage->shape->hidden * sizeof(int64_t);
}

/* Gives this slice's bytes to the group and puts those of the others beside them, at offsets[i]. */
static status_t exchange(const stage_call_t *call, const char *operation, kbuffer_t *buffer,
                         const size_t *bytes, const size_t *offsets)
{
    stage_t *stage = call->stage;
    uint8_t *all = stage->ops->buffer_host(buffer);
    uint32_t me = stage->config.slice;
    const void *parts[PLAN_TP_MAX];
    fabric_where_t where = {
        .operation = operation, .step = stage->step, .layer = (int32_t)call->layer};
    if (FAILPOINT("rank.exchange"))
        return fail(STATUS_INTERNAL, "fail point rank.exchange");
    stage_waiting(stage, true);
    status_t status = fabric_exchange(stage->fabric, &where, all + offsets[me], bytes, parts);
    stage_waiting(stage, false);
    if (status != STATUS_OK)
        return status;
    for (uint32_t i = 0; i < stage->config.tp; i++)
        if (i != me && bytes[i] > 0)
            memcpy(all + offsets[i], parts[i], bytes[i]);
    return STATUS_OK;
}

static status_t exchange_partials(void *arg)
{
    const stage_call_t *call = arg;
    const stage_cut_t *cut = call->cut;
    size_t one = partial_bytes(call->stage), bytes[PLAN_TP_MAX], offsets[PLAN_TP_MAX];
    for (uint32_t i = 0; i < call->stage->config.tp; i++) {
        bytes[i] = cut->n_partials[i] * one;
        offsets[i] = cut->n_partials_before[i] * one;
    }
    return exchange(call, "exchange of partials", call->stage->partials, bytes, offsets);
}

/* The same where no leaf of this slice has an element of K. Its sums are +0, as in a slice that has
 * them beside leaves with elements; no matmul writes them, and the buffer is used again. */
static status_t exchange_empty_partials(void *arg)
{
    const stage_call_t *call = arg;
    stage_t *stage = call->stage;
    uint32_t me = stage->config.slice;
    size_t one = partial_bytes(stage);
    uint8_t *all = stage->ops->buffer_host(stage->partials);
    memset(all + call->cut->n_partials_before[me] * one, 0, call->cut->n_partials[me] * one);
    return exchange_partials(arg);
}

static status_t exchange_sums(void *arg)
{
    const stage_call_t *call = arg;
    size_t one = sum_bytes(call->stage), bytes[PLAN_TP_MAX], offsets[PLAN_TP_MAX];
    for (uint32_t i = 0; i < call->stage->config.tp; i++) {
        bytes[i] = one;
        offsets[i] = i * one;
    }
    return exchange(call, "exchange of expert sums", call->stage->sums, bytes, offsets);
}

status_t stage_reduce(stage_t *stage, const kweight_t *weight, const stage_cut_t *cut,
                      kbuffer_t *bias, const stage_mix_t *mix, kbuffer_t *post_norm,
                      stage_call_t *call)
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
    call->cut = cut;
    if (tp > 1)
        TRY(ops->host_call(stage->queue, weight ? exchange_partials : exchange_empty_partials,
                           call));
    ktree_add_t add = {.n_leaves = cut->n_leaves,
                       .runs = cut->runs,
                       .partials = partials,
                       .n_ranks = tp,
                       .bias = stage_at(bias, 0)};
    kref_t residual = stage_at(stage->residual, 0);
    if (!post_norm && !mix->fn)
        return ops->tree_add(stage->queue, stage->batch, stage->shape->hidden, &add, residual,
                             residual);
    TRY(ops->tree_add(stage->queue, stage->batch, stage->shape->hidden, &add, stage_at(NULL, 0),
                      stage_at(stage->normed, 0)));
    return stage_end(stage, mix, post_norm);
}

kref_t stage_own_sums(const stage_t *stage)
{
    return stage_at(stage->sums, stage->config.slice * sum_bytes(stage));
}

status_t stage_reduce_integers(stage_t *stage, const stage_mix_t *mix, kbuffer_t *post_norm,
                               stage_call_t *call)
{
    const kernel_ops_t *ops = stage->ops;
    uint32_t tp = stage->config.tp, hidden = stage->shape->hidden;
    kref_t sums[PLAN_TP_MAX], residual = stage_at(stage->residual, 0);
    for (uint32_t i = 0; i < tp; i++)
        sums[i] = stage_at(stage->sums, i * sum_bytes(stage));
    if (tp > 1)
        TRY(ops->host_call(stage->queue, exchange_sums, call));
    if (!post_norm && !mix->fn)
        return ops->integers_add(stage->queue, stage->batch, hidden, sums, tp, residual, residual);
    TRY(ops->integers_add(stage->queue, stage->batch, hidden, sums, tp, stage_at(NULL, 0),
                          stage_at(stage->normed, 0)));
    return stage_end(stage, mix, post_norm);
}
