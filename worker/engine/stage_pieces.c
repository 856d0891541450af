/* Sums over the slices of a stage by pieces: each slice adds one piece of everybody's numbers and
 * gives the sums, one F32 an element, to all. Of n slices' numbers that sends each slice one nth, and
 * the sums once, where an exchange of all of them sends each slice everything; it waits for the others
 * twice instead of once. A piece is a run of a part's elements, whatever rows they stand in: each
 * element has its own written sum (docs/numerics.md, "Tree" and "MoE"), so who adds it is open. The
 * sums gather in stage->normed, whose rows the block has read by then. */
#include <string.h>

#include "common/base/failpoint.h"
#include "worker/engine/stage.h"

/* Elements whose F32 fill a cache line: pieces begin at multiples. */
enum { PIECE_UNIT = 16 };

/* The elements that slice `index` adds of n. */
static void piece_of(const stage_t *stage, uint32_t index, size_t n, size_t *first_out,
                     size_t *count_out)
{
    size_t units = (n + PIECE_UNIT - 1) / PIECE_UNIT, tp = stage->config.tp;
    size_t first = units * index / tp * PIECE_UNIT, end = units * (index + 1) / tp * PIECE_UNIT;
    *first_out = first;
    *count_out = (end < n ? end : n) - first;
}

/* Whether pieces save enough where all slices together have `bytes` an element. */
static bool pays(const stage_t *stage, uint32_t n_rows, size_t bytes)
{
    uint32_t tp = stage->config.tp;
    return (stage->always_pieces && tp > 1) ||
           plan_sums_by_pieces(tp, stage_elements(stage, n_rows), bytes);
}

/* The sums of a part, of which this slice's piece is made, from everybody's pieces. */
static status_t gather_sums(void *arg)
{
    const stage_call_t *call = arg;
    stage_t *stage = call->stage;
    size_t bytes[PLAN_TP_MAX], offsets[PLAN_TP_MAX], first, count;
    size_t from = stage_partial_bytes(stage, call->row_first);
    for (uint32_t i = 0; i < stage->config.tp; i++) {
        piece_of(stage, i, stage_elements(stage, call->n_rows), &first, &count);
        bytes[i] = count * sizeof(float);
        offsets[i] = from + first * sizeof(float);
    }
    const uint8_t *all = stage->ops->buffer_host(stage->normed);
    return stage_gather_parts(call, "exchange of sums", all + offsets[stage->config.slice],
                        stage->normed, bytes, offsets);
}

/* Where this slice's piece of a part's sums is to be. */
static kref_t sums_at(const stage_t *stage, const stage_part_t *part, size_t *count_out)
{
    size_t first;
    piece_of(stage, stage->config.slice, stage_elements(stage, part->n), &first, count_out);
    return stage_at(stage->normed,
                    (stage_elements(stage, part->first) + first) * sizeof(float));
}

/* What follows once this slice's piece is there. */
static status_t end_pieces(stage_t *stage, const stage_part_t *part, kbuffer_t *bias,
                           bool at_once, stage_call_t *own_call)
{
    const kernel_ops_t *ops = stage->ops;
    uint32_t hidden = stage->shape->hidden;
    size_t row = hidden * sizeof(float);
    kref_t sums = stage_part_at(part, stage_at(stage->normed, 0), row);
    kref_t residual = stage_part_at(part, stage_at(stage->residual, 0), row);
    TRY(ops->host_call(stage->queue, gather_sums, own_call));
    if (bias)
        TRY(ops->bias_add(stage->queue, part->batch, hidden, sums, hidden, stage_at(bias, 0)));
    return at_once ? ops->add(stage->queue, part->batch, hidden, residual, sums, residual)
                   : STATUS_OK;
}

/* ---- partials ---- */

bool stage_partials_by_pieces(const stage_t *stage, uint32_t n_rows, const stage_cut_t *cut)
{
    return pays(stage, n_rows, cut->n_partials_all * sizeof(float));
}

/* A slice has one partial, whose pieces lie as they are to be given, or a few, whose pieces are
 * brought together. What others give comes where their partials would be. */
static status_t exchange_partials(void *arg)
{
    const stage_call_t *call = arg;
    stage_t *stage = call->stage;
    const stage_cut_t *cut = call->cut;
    uint32_t me = stage->config.slice, own = cut->n_partials[me];
    size_t n = stage_elements(stage, call->n_rows), one = n * sizeof(float), first, count;
    size_t bytes[PLAN_TP_MAX];
    uint8_t *all = stage->ops->buffer_host(stage->partials);
    uint8_t *mine = all + cut->n_partials_before[me] * one, *packed = mine;
    const void *pieces[PLAN_TP_MAX];
    if (own > 1)
        packed = fabric_exchange_buffer(stage->fabric);
    uint8_t *to = packed;
    for (uint32_t i = 0; i < stage->config.tp; i++) {
        piece_of(stage, i, n, &first, &count);
        bytes[i] = count * sizeof(float);
        for (uint32_t p = 0; own > 1 && p < own; p++, to += bytes[i])
            memcpy(to, mine + p * one + first * sizeof(float), bytes[i]);
    }
    TRY(stage_exchange(call, "exchange of partials", packed, bytes, cut->n_partials, pieces));
    for (uint32_t i = 0; i < stage->config.tp; i++)
        if (i != me || own > 1)
            memcpy(all + cut->n_partials_before[i] * one, pieces[i],
                   cut->n_partials[i] * bytes[me]);
    return STATUS_OK;
}

static status_t exchange_empty_partials(void *arg)
{
    stage_clear_partials(arg);
    return exchange_partials(arg);
}

status_t stage_reduce_partial_pieces(stage_t *stage, const stage_part_t *part, bool has_weight,
                                     kbuffer_t *bias, bool at_once, stage_call_t *own_call)
{
    const kernel_ops_t *ops = stage->ops;
    const stage_cut_t *cut = own_call->cut;
    uint32_t tp = stage->config.tp, me = stage->config.slice;
    size_t one = stage_partial_bytes(stage, part->n), first, count;
    kref_t partials[PLAN_TP_MAX];
    piece_of(stage, me, stage_elements(stage, part->n), &first, &count);
    for (uint32_t i = 0; i < tp; i++)
        partials[i] = stage_at(stage->partials, cut->n_partials_before[i] * one);
    if (cut->n_partials[me] == 1)
        partials[me].offset += first * sizeof(float);
    TRY(ops->host_call(stage->queue, has_weight ? exchange_partials : exchange_empty_partials,
                       own_call));
    ktree_add_t add = {
        .n_leaves = cut->n_leaves, .runs = cut->runs, .partials = partials, .n_ranks = tp};
    kref_t sums = sums_at(stage, part, &count);
    TRY(ops->batch_set_plain(stage->queue, stage->one_row, 1));
    TRY(ops->tree_add(stage->queue, stage->one_row, (uint32_t)count, &add, stage_at(NULL, 0),
                      sums));
    return end_pieces(stage, part, bias, at_once, own_call);
}

/* ---- integers of experts ---- */

static size_t sum_bytes(const stage_t *stage, uint32_t n_rows)
{
    return stage_elements(stage, n_rows) * sizeof(int64_t);
}

size_t stage_sums_of_all_bytes(const stage_t *stage)
{
    size_t tp = stage->config.tp, most = 0, first, count;
    if (tp < 2)
        return 0;
    for (uint32_t n = stage->part_rows; n > 0 && most == 0; n--)
        if (!pays(stage, n, tp * sizeof(int64_t)))
            most = tp * sum_bytes(stage, n);
    for (uint32_t i = 0; i < tp; i++) {
        piece_of(stage, i, stage_elements(stage, stage->part_rows), &first, &count);
        size_t bytes = tp * count * sizeof(int64_t);
        most = bytes > most ? bytes : most;
    }
    return most;
}

kref_t stage_own_sums(const stage_t *stage)
{
    return stage_at(stage->sums, 0);
}

static status_t exchange_whole_sums(void *arg)
{
    const stage_call_t *call = arg;
    stage_t *stage = call->stage;
    const uint8_t *own = stage->ops->buffer_host(stage->sums);
    size_t one = sum_bytes(stage, call->n_rows), bytes[PLAN_TP_MAX], offsets[PLAN_TP_MAX];
    for (uint32_t i = 0; i < stage->config.tp; i++) {
        bytes[i] = one;
        offsets[i] = i * one;
    }
    return stage_gather_parts(call, "exchange of expert sums", own + sum_bytes(stage, call->row_first),
                        stage->sums_of_all, bytes, offsets);
}

static status_t exchange_sum_pieces(void *arg)
{
    const stage_call_t *call = arg;
    stage_t *stage = call->stage;
    const uint8_t *own = stage->ops->buffer_host(stage->sums);
    uint8_t *all = stage->ops->buffer_host(stage->sums_of_all);
    uint32_t me = stage->config.slice, times[PLAN_TP_MAX];
    size_t bytes[PLAN_TP_MAX], first, count;
    const void *pieces[PLAN_TP_MAX];
    for (uint32_t i = 0; i < stage->config.tp; i++) {
        piece_of(stage, i, stage_elements(stage, call->n_rows), &first, &count);
        bytes[i] = count * sizeof(int64_t);
        times[i] = 1;
    }
    TRY(stage_exchange(call, "exchange of expert sums", own + sum_bytes(stage, call->row_first),
                       bytes, times, pieces));
    for (uint32_t i = 0; i < stage->config.tp; i++)
        if (i != me && bytes[me] > 0)
            memcpy(all + i * bytes[me], pieces[i], bytes[me]);
    return STATUS_OK;
}

static status_t reduce_whole(stage_t *stage, const stage_part_t *part, bool at_once,
                             stage_call_t *own_call)
{
    const kernel_ops_t *ops = stage->ops;
    uint32_t tp = stage->config.tp, hidden = stage->shape->hidden;
    size_t row = hidden * sizeof(float);
    kref_t sums[PLAN_TP_MAX], residual = stage_part_at(part, stage_at(stage->residual, 0), row);
    for (uint32_t k = 0; k < tp; k++)
        sums[k] = stage_at(stage->sums_of_all, k * sum_bytes(stage, part->n));
    sums[stage->config.slice] = stage_part_at(part, stage_own_sums(stage), sum_bytes(stage, 1));
    if (tp > 1)
        TRY(ops->host_call(stage->queue, exchange_whole_sums, own_call));
    return ops->integers_add(stage->queue, part->batch, hidden, sums, tp,
                             at_once ? residual : stage_at(NULL, 0),
                             at_once ? residual
                                     : stage_part_at(part, stage_at(stage->normed, 0), row));
}

static status_t reduce_pieces(stage_t *stage, const stage_part_t *part, bool at_once,
                              stage_call_t *own_call)
{
    const kernel_ops_t *ops = stage->ops;
    uint32_t tp = stage->config.tp, me = stage->config.slice;
    kref_t sums[PLAN_TP_MAX], mine = stage_part_at(part, stage_own_sums(stage),
                                                   sum_bytes(stage, 1));
    size_t first, count;
    piece_of(stage, me, stage_elements(stage, part->n), &first, &count);
    for (uint32_t i = 0; i < tp; i++)
        sums[i] = stage_at(stage->sums_of_all, i * count * sizeof(int64_t));
    sums[me] = stage_at(mine.buffer, mine.offset + first * sizeof(int64_t));
    TRY(ops->host_call(stage->queue, exchange_sum_pieces, own_call));
    kref_t to = sums_at(stage, part, &count);
    TRY(ops->batch_set_plain(stage->queue, stage->one_row, 1));
    TRY(ops->integers_add(stage->queue, stage->one_row, (uint32_t)count, sums, tp,
                          stage_at(NULL, 0), to));
    return end_pieces(stage, part, NULL, at_once, own_call);
}

status_t stage_reduce_integers(stage_t *stage, const stage_mix_t *mix, kbuffer_t *post_norm,
                               stage_call_t *call)
{
    bool at_once = stage_ends_at_once(mix, post_norm);
    stage_part_t part;
    for (uint32_t i = 0; stage_part(stage, i, &part); i++) {
        stage_call_t *own_call = stage_call_of(stage, call, NULL, &part);
        TRY(stage_part_begin(stage, &part));
        if (pays(stage, part.n, stage->config.tp * sizeof(int64_t)))
            TRY(reduce_pieces(stage, &part, at_once, own_call));
        else
            TRY(reduce_whole(stage, &part, at_once, own_call));
    }
    return stage_reduce_end(stage, mix, post_norm);
}

/* ---- */

status_t stage_pieces_open(stage_t *stage)
{
    stage->always_pieces = FAILPOINT("stage.small_parts"); /* small models have pieces too */
    return stage->ops->batch_new(stage->device, 1, 0, &stage->one_row);
}
