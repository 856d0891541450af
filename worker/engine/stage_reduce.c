/* The end of a block: what the slices of a stage made comes together, as partial sums of floats in
 * a written tree or as exact integers, and is added to the residual stream. */
#include <string.h>

#include "common/base/failpoint.h"
#include "worker/engine/stage.h"

/* What a part's partials of all slices may take together, and the rows it has at least: fewer would
 * read the weights more often than matmul's own blocks of rows do. Integers of experts, of which a
 * slice gets a piece of each, take no more. */
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
    size_t rows =
        PART_BYTES / stage_partials_row_bytes(stage) / PART_ROWS_STEP * PART_ROWS_STEP;
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
    uint32_t first = index * stage->part_rows, left = stage->work_rows - first;
    if (first >= stage->work_rows)
        return false;
    bool whole = stage->work_rows <= stage->part_rows;
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

stage_call_t *stage_call_of(stage_t *stage, stage_call_t *first, const stage_cut_t *cut,
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

size_t stage_elements(const stage_t *stage, uint32_t n_rows)
{
    return n_rows * (size_t)stage->shape->hidden;
}

size_t stage_partial_bytes(const stage_t *stage, uint32_t n_rows)
{
    return stage_elements(stage, n_rows) * sizeof(float);
}

status_t stage_exchange(const stage_call_t *call, const char *operation, const void *mine,
                        const size_t *bytes, const uint32_t *times, const void **parts_out)
{
    stage_t *stage = call->stage;
    fabric_where_t where = {
        .operation = operation, .step = stage->step, .layer = (int32_t)call->layer};
    uint32_t me = stage->config.slice;
    uint64_t moved = 0; /* to this slice */
    for (uint32_t i = 0; i < stage->config.tp; i++)
        if (i != me)
            moved += times ? times[i] * bytes[me] : bytes[i];
    stage_label(stage, operation, moved);
    if (FAILPOINT("rank.exchange"))
        return fail(STATUS_INTERNAL, "fail point rank.exchange");
    stage_waiting(stage, true);
    status_t status =
        times ? fabric_exchange_pieces(stage->fabric, &where, mine, bytes, times, parts_out)
              : fabric_exchange(stage->fabric, &where, mine, bytes, parts_out);
    stage_waiting(stage, false);
    return status;
}

status_t stage_gather_parts(const stage_call_t *call, const char *operation, const void *mine,
                      kbuffer_t *buffer, const size_t *bytes, const size_t *offsets)
{
    stage_t *stage = call->stage;
    uint8_t *all = stage->ops->buffer_host(buffer);
    const void *parts[PLAN_TP_MAX];
    TRY(stage_exchange(call, operation, mine, bytes, NULL, parts));
    for (uint32_t i = 0; i < stage->config.tp; i++)
        if (i != stage->config.slice && bytes[i] > 0)
            memcpy(all + offsets[i], parts[i], bytes[i]);
    return STATUS_OK;
}

static status_t exchange_partials(void *arg)
{
    const stage_call_t *call = arg;
    stage_t *stage = call->stage;
    const stage_cut_t *cut = call->cut;
    const uint8_t *all = stage->ops->buffer_host(stage->partials);
    size_t one = stage_partial_bytes(stage, call->n_rows), bytes[PLAN_TP_MAX], offsets[PLAN_TP_MAX];
    for (uint32_t i = 0; i < stage->config.tp; i++) {
        bytes[i] = cut->n_partials[i] * one;
        offsets[i] = cut->n_partials_before[i] * one;
    }
    return stage_gather_parts(call, "exchange of partials", all + offsets[stage->config.slice],
                        stage->partials, bytes, offsets);
}

void stage_clear_partials(const stage_call_t *call)
{
    stage_t *stage = call->stage;
    uint32_t me = stage->config.slice;
    size_t one = stage_partial_bytes(stage, call->n_rows);
    uint8_t *all = stage->ops->buffer_host(stage->partials);
    memset(all + call->cut->n_partials_before[me] * one, 0, call->cut->n_partials[me] * one);
}

static status_t exchange_empty_partials(void *arg)
{
    stage_clear_partials(arg);
    return exchange_partials(arg);
}

/* ---- sums of a block ---- */

bool stage_ends_at_once(const stage_mix_t *mix, const kbuffer_t *post_norm)
{
    return !post_norm && !mix->fn;
}

static knormed_t normed_as(const stage_t *stage, kbuffer_t *norm, const kweight_t *weight)
{
    return (knormed_t){
        .norm = stage_at(norm, 0), .eps = stage->shape->norm_eps, .weight = weight};
}

status_t stage_reduce_part(stage_t *stage, const stage_part_t *part, const kweight_t *weight,
                           kref_t input, const stage_cut_t *cut, kbuffer_t *bias,
                           const stage_mix_t *mix, kbuffer_t *post_norm, stage_call_t *call)
{
    const kernel_ops_t *ops = stage->ops;
    size_t one = stage_partial_bytes(stage, part->n), row = stage_partial_bytes(stage, 1);
    uint32_t tp = stage->config.tp;
    kref_t partials[PLAN_TP_MAX];
    stage_call_t *own_call = stage_call_of(stage, call, cut, part);
    for (uint32_t i = 0; i < tp; i++)
        partials[i] = stage_at(stage->partials, cut->n_partials_before[i] * one);
    if (weight)
        TRY(ops->matmul(stage->queue, part->batch, weight, input, partials[stage->config.slice]));
    if (stage_partials_by_pieces(stage, part->n, cut))
        return stage_reduce_partial_pieces(stage, part, weight != NULL, bias,
                                           stage_ends_at_once(mix, post_norm), own_call);
    if (tp > 1)
        TRY(ops->host_call(stage->queue, weight ? exchange_partials : exchange_empty_partials,
                           own_call));
    ktree_add_t add = {.n_leaves = cut->n_leaves,
                       .runs = cut->runs,
                       .partials = partials,
                       .n_ranks = tp,
                       .bias = stage_at(bias, 0)};
    kref_t residual = stage_part_at(part, stage_at(stage->residual, 0), row);
    if (stage_ends_at_once(mix, post_norm) && stage->next.weight && part->batch == stage->batch) {
        knormed_t how = normed_as(stage, stage->next.norm, stage->next.weight);
        stage->prepared = stage->next.weight;
        return ops->fused->tree_add_norm_quantize(stage->queue, part->batch, stage->shape->hidden,
                                                  &add, residual, &how, stage_at(stage->input, 0));
    }
    if (stage_ends_at_once(mix, post_norm))
        return ops->tree_add(stage->queue, part->batch, stage->shape->hidden, &add, residual,
                             residual);
    return ops->tree_add(stage->queue, part->batch, stage->shape->hidden, &add, stage_at(NULL, 0),
                         stage_part_at(part, stage_at(stage->normed, 0), row));
}

status_t stage_reduce_end(stage_t *stage, const stage_mix_t *mix, kbuffer_t *post_norm)
{
    return stage_ends_at_once(mix, post_norm) ? STATUS_OK : stage_end(stage, mix, post_norm);
}

status_t stage_reduce(stage_t *stage, const kweight_t *weight, kref_t x, uint32_t ld,
                      const stage_cut_t *cut, kbuffer_t *bias, const stage_mix_t *mix,
                      kbuffer_t *post_norm, stage_call_t *call)
{
    kref_t input = stage_at(stage->input, 0);
    stage_part_t part;
    if (stage->own_batch)
        return stage_reduce_replicas(stage, weight, x, ld, cut, bias, mix, post_norm, call);
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

status_t stage_normed_input(stage_t *stage, const stage_part_t *part, const stage_mix_t *mix,
                            kbuffer_t *norm, const kweight_t *weight)
{
    const kernel_ops_t *ops = stage->ops;
    uint32_t hidden = stage->shape->hidden;
    size_t row = hidden * sizeof(float);
    kref_t input = stage_at(stage->input, 0);
    bool prepared = stage->prepared == weight;
    stage->prepared = NULL;
    if (prepared)
        return STATUS_OK;
    if (mix->fn)
        return ops->quantize(stage->queue, part->batch, weight,
                             stage_part_at(part, stage_at(stage->normed, 0), row), hidden, input);
    knormed_t how = normed_as(stage, norm, weight);
    return ops->fused->norm_quantize(stage->queue, part->batch, hidden,
                                     stage_part_at(part, stage_at(stage->residual, 0), row), &how,
                                     input);
}

status_t stage_multiply_normed(stage_t *stage, const stage_mix_t *mix, kbuffer_t *norm,
                               const kweight_t *weight, kref_t y)
{
    const kernel_ops_t *ops = stage->ops;
    size_t y_bytes = ops->weight_info(weight).n * sizeof(float);
    stage_part_t part;
    if (mix->fn || stage->own_batch) {
        TRY(stage_begin(stage, mix, norm));
        return stage_multiply(stage, weight, stage_at(stage->normed, 0), stage->shape->hidden, y);
    }
    for (uint32_t i = 0; stage_part(stage, i, &part); i++) {
        TRY(stage_part_begin(stage, &part));
        TRY(stage_normed_input(stage, &part, mix, norm, weight));
        TRY(ops->matmul(stage->queue, part.batch, weight, stage_at(stage->input, 0),
                        stage_part_at(&part, y, y_bytes)));
    }
    return STATUS_OK;
}
