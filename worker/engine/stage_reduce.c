/* The end of a block: what the slices of a stage made comes together, as partial sums of floats in
 * a written tree or as exact integers, and is added to the residual stream. */
#include <string.h>

#include "common/base/failpoint.h"
#include "worker/engine/stage.h"

/* What a part's partials or sums of all slices may take together, and the rows it has at least: fewer
 * would read the weights more often than matmul's own blocks of rows do. */
#define PART_BYTES ((size_t)4 << 20)
enum { PART_ROWS_MIN = 32, PART_ROWS_STEP = 16 };

/* ---- parts ---- */

size_t stage_partials_row_bytes(const stage_t *stage)
{
    uint32_t n = stage->attention_cut.n_partials_all > stage->ffn_cut.n_partials_all
                     ? stage->attention_cut.n_partials_all
                     : stage->ffn_cut.n_partials_all;
    return n * (size_t)stage->shape->hidden * sizeof(float);
}

uint32_t stage_part_rows(const stage_t *stage)
{
    size_t row = stage_partials_row_bytes(stage);
    size_t sums = stage->has_experts
                      ? stage->config.tp * (size_t)stage->shape->hidden * sizeof(int64_t) : 0;
    size_t rows = PART_BYTES / (sums > row ? sums : row) / PART_ROWS_STEP * PART_ROWS_STEP;
    rows = rows < PART_ROWS_MIN ? PART_ROWS_MIN : rows;
    if (FAILPOINT("stage.small_parts"))
        rows = PART_ROWS_STEP; /* small models have parts too */
    return rows < stage->rows_max ? (uint32_t)rows : stage->rows_max;
}

uint32_t stage_calls_of_layer(const stage_t *stage)
{
    return 2 * ((stage->rows_max + stage->part_rows - 1) / stage->part_rows) + 1;
}

bool stage_part(const stage_t *stage, uint32_t index, stage_part_t *out)
{
    uint32_t first = index * stage->part_rows, left = stage->n_rows - first;
    if (first >= stage->n_rows)
        return false;
    bool whole = stage->n_rows <= stage->part_rows;
    *out = (stage_part_t){
        .batch = whole ? stage->batch : stage->part_batch,
        .index = index,
        .first = first,
        .n = left < stage->part_rows ? left : stage->part_rows,
    };
    return true;
}

status_t stage_part_begin(stage_t *stage, const stage_part_t *part)
{
    if (part->batch == stage->batch)
        return STATUS_OK;
    return stage->ops->batch_set_plain(stage->queue, part->batch, part->n);
}

/* The call of one part of a block, whose first call knows the layer. */
static stage_call_t *call_of(stage_t *stage, stage_call_t *first, const stage_cut_t *cut,
                             const stage_part_t *part)
{
    stage_call_t *call = &first[part->index];
    *call = (stage_call_t){.stage = stage,
                           .cut = cut,
                           .layer = first->layer,
                           .row_first = part->first,
                           .n_rows = part->n};
    return call;
}

/* ---- the exchange ---- */

/* Bytes of one partial matrix, or one of sums, of n rows. */
static size_t partial_bytes(const stage_t *stage, uint32_t n)
{
    return n * (size_t)stage->shape->hidden * sizeof(float);
}

static size_t sum_bytes(const stage_t *stage, uint32_t n)
{
    return n * (size_t)stage->shape->hidden * sizeof(int64_t);
}

/* Gives `mine` to the group and puts what the others gave into `buffer`, at offsets[i]. */
static status_t exchange(const stage_call_t *call, const char *operation, const void *mine,
                         kbuffer_t *buffer, const size_t *bytes, const size_t *offsets)
{
    stage_t *stage = call->stage;
    uint8_t *all = stage->ops->buffer_host(buffer);
    uint32_t me = stage->config.slice;
    const void *parts[PLAN_TP_MAX];
    fabric_where_t where = {
        .operation = operation, .step = stage->step, .layer = (int32_t)call->layer};
    uint64_t moved = 0;
    for (uint32_t i = 0; i < stage->config.tp; i++)
        moved += bytes[i];
    stage_label(stage, operation, moved);
    if (FAILPOINT("rank.exchange"))
        return fail(STATUS_INTERNAL, "fail point rank.exchange");
    stage_waiting(stage, true);
    status_t status = fabric_exchange(stage->fabric, &where, mine, bytes, parts);
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
    stage_t *stage = call->stage;
    const stage_cut_t *cut = call->cut;
    const uint8_t *all = stage->ops->buffer_host(stage->partials);
    size_t one = partial_bytes(stage, call->n_rows), bytes[PLAN_TP_MAX], offsets[PLAN_TP_MAX];
    for (uint32_t i = 0; i < stage->config.tp; i++) {
        bytes[i] = cut->n_partials[i] * one;
        offsets[i] = cut->n_partials_before[i] * one;
    }
    return exchange(call, "exchange of partials", all + offsets[stage->config.slice],
                    stage->partials, bytes, offsets);
}

/* The same where no leaf of this slice has an element of K. Its sums are +0, as in a slice that has
 * them beside leaves with elements; no matmul writes them, and the buffer is used again. */
static status_t exchange_empty_partials(void *arg)
{
    const stage_call_t *call = arg;
    stage_t *stage = call->stage;
    uint32_t me = stage->config.slice;
    size_t one = partial_bytes(stage, call->n_rows);
    uint8_t *all = stage->ops->buffer_host(stage->partials);
    memset(all + call->cut->n_partials_before[me] * one, 0, call->cut->n_partials[me] * one);
    return exchange_partials(arg);
}

static status_t exchange_sums(void *arg)
{
    const stage_call_t *call = arg;
    stage_t *stage = call->stage;
    const uint8_t *own = stage->ops->buffer_host(stage->sums);
    size_t one = sum_bytes(stage, call->n_rows), bytes[PLAN_TP_MAX], offsets[PLAN_TP_MAX];
    for (uint32_t i = 0; i < stage->config.tp; i++) {
        bytes[i] = one;
        offsets[i] = i * one;
    }
    return exchange(call, "exchange of expert sums", own + sum_bytes(stage, call->row_first),
                    stage->sums_of_all, bytes, offsets);
}

/* ---- sums of a block ---- */

/* A block without a post norm and without streams is added to the residual at once; others leave
 * their sum in stage->normed. */
static bool ends_at_once(const stage_mix_t *mix, const kbuffer_t *post_norm)
{
    return !post_norm && !mix->fn;
}

status_t stage_reduce_part(stage_t *stage, const stage_part_t *part, const kweight_t *weight,
                           kref_t input, const stage_cut_t *cut, kbuffer_t *bias,
                           const stage_mix_t *mix, kbuffer_t *post_norm, stage_call_t *call)
{
    const kernel_ops_t *ops = stage->ops;
    size_t one = partial_bytes(stage, part->n), row = partial_bytes(stage, 1);
    uint32_t tp = stage->config.tp;
    kref_t partials[PLAN_TP_MAX];
    stage_call_t *own_call = call_of(stage, call, cut, part);
    for (uint32_t i = 0; i < tp; i++)
        partials[i] = stage_at(stage->partials, cut->n_partials_before[i] * one);
    if (weight)
        TRY(ops->matmul(stage->queue, part->batch, weight, input, partials[stage->config.slice]));
    if (tp > 1)
        TRY(ops->host_call(stage->queue, weight ? exchange_partials : exchange_empty_partials,
                           own_call));
    ktree_add_t add = {.n_leaves = cut->n_leaves,
                       .runs = cut->runs,
                       .partials = partials,
                       .n_ranks = tp,
                       .bias = stage_at(bias, 0)};
    kref_t residual = stage_part_at(part, stage_at(stage->residual, 0), row);
    if (ends_at_once(mix, post_norm))
        return ops->tree_add(stage->queue, part->batch, stage->shape->hidden, &add, residual,
                             residual);
    return ops->tree_add(stage->queue, part->batch, stage->shape->hidden, &add, stage_at(NULL, 0),
                         stage_part_at(part, stage_at(stage->normed, 0), row));
}

status_t stage_reduce_end(stage_t *stage, const stage_mix_t *mix, kbuffer_t *post_norm)
{
    return ends_at_once(mix, post_norm) ? STATUS_OK : stage_end(stage, mix, post_norm);
}

status_t stage_reduce(stage_t *stage, const kweight_t *weight, kref_t x, uint32_t ld,
                      const stage_cut_t *cut, kbuffer_t *bias, const stage_mix_t *mix,
                      kbuffer_t *post_norm, stage_call_t *call)
{
    kref_t input = stage_at(stage->input, 0);
    stage_part_t part;
    for (uint32_t i = 0; stage_part(stage, i, &part); i++) {
        TRY(stage_part_begin(stage, &part));
        if (weight)
            TRY(stage->ops->quantize(stage->queue, part.batch, weight,
                                     stage_part_at(&part, x, ld * sizeof(float)), ld, input));
        TRY(stage_reduce_part(stage, &part, weight, input, cut, bias, mix, post_norm, call));
    }
    return stage_reduce_end(stage, mix, post_norm);
}

status_t stage_multiply(stage_t *stage, const kweight_t *weight, kref_t x, uint32_t ld, kref_t y)
{
    const kernel_ops_t *ops = stage->ops;
    kref_t input = stage_at(stage->input, 0);
    size_t y_bytes = ops->weight_info(weight).n * sizeof(float);
    stage_part_t part;
    for (uint32_t i = 0; stage_part(stage, i, &part); i++) {
        TRY(stage_part_begin(stage, &part));
        TRY(ops->quantize(stage->queue, part.batch, weight,
                          stage_part_at(&part, x, ld * sizeof(float)), ld, input));
        TRY(ops->matmul(stage->queue, part.batch, weight, input,
                        stage_part_at(&part, y, y_bytes)));
    }
    return STATUS_OK;
}

kref_t stage_own_sums(const stage_t *stage)
{
    return stage_at(stage->sums, 0);
}

status_t stage_reduce_integers(stage_t *stage, const stage_mix_t *mix, kbuffer_t *post_norm,
                               stage_call_t *call)
{
    const kernel_ops_t *ops = stage->ops;
    uint32_t tp = stage->config.tp, hidden = stage->shape->hidden;
    kref_t sums[PLAN_TP_MAX];
    stage_part_t part;
    for (uint32_t i = 0; stage_part(stage, i, &part); i++) {
        size_t row = partial_bytes(stage, 1);
        kref_t residual = stage_part_at(&part, stage_at(stage->residual, 0), row);
        bool at_once = ends_at_once(mix, post_norm);
        for (uint32_t k = 0; k < tp; k++)
            sums[k] = stage_at(stage->sums_of_all, k * sum_bytes(stage, part.n));
        sums[stage->config.slice] =
            stage_part_at(&part, stage_at(stage->sums, 0), sum_bytes(stage, 1));
        TRY(stage_part_begin(stage, &part));
        if (tp > 1)
            TRY(ops->host_call(stage->queue, exchange_sums, call_of(stage, call, NULL, &part)));
        TRY(ops->integers_add(stage->queue, part.batch, hidden, sums, tp,
                              at_once ? residual : stage_at(NULL, 0),
                              at_once ? residual
                                      : stage_part_at(&part, stage_at(stage->normed, 0), row)));
    }
    return stage_reduce_end(stage, mix, post_norm);
}
