/* Replicas of attention: groups of a stage's slices that each hold all heads and the caches of their own
 * sequences. The rows of a step are divided among them by sequence, so a plan has its entries in the
 * order of pools. A slice computes attention for its replica's rows alone; then one exchange carries
 * each replica's partial sums of its rows to every slice of the stage, which adds all of them in the
 * written tree and goes on with all rows. The tree is over leaves, not over ranks, so that a row has
 * the same bits whoever attends to it.
 *
 * Exchanging partials instead of a replica's finished sums saves a second exchange behind the first;
 * where a replica is one slice, both are the same bytes. */
#include "worker/engine/stage.h"

/* ---- whose rows ---- */

status_t stage_open_replicas(stage_t *stage)
{
    uint32_t n = stage->cut.attention_replicas;
    stage_work_on_all(stage);
    for (uint32_t i = 0; i < n; i++) {
        plan_run_t slices = stage->replica_slices[i] = plan_attention_slices(&stage->cut, i);
        if (stage->config.slice >= slices.first)
            stage->replica = i;
    }
    if (n == 1)
        return STATUS_OK;
    return stage->ops->batch_new(stage->device, stage->rows_max, stage->blocks_max,
                                 &stage->own_batch);
}

status_t stage_set_replicas(stage_t *stage, const step_plan_t *plan)
{
    uint32_t n = stage->cut.attention_replicas, entry = 0, row = 0;
    if (n == 1)
        return STATUS_OK;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t first = row;
        for (; entry < plan->n_entries && plan->entries[entry].pool == i; entry++)
            row += plan->entries[entry].n_tokens;
        stage->replica_rows[i] = (plan_run_t){first, row - first};
    }
    if (entry < plan->n_entries)
        return fail(STATUS_INVALID, "step %llu has a sequence of pool %u out of turn",
                    (unsigned long long)plan->step, plan->entries[entry].pool);
    plan_run_t own = stage->replica_rows[stage->replica];
    if (own.count == 0)
        return STATUS_OK;
    return stage->ops->batch_set(stage->queue, stage->own_batch, stage->rows + own.first, own.count,
                                 stage->tables, plan->n_entries);
}

void stage_work_on_own(stage_t *stage)
{
    if (!stage->own_batch)
        return;
    stage->batch = stage->own_batch;
    stage->work_first = stage->replica_rows[stage->replica].first;
    stage->work_rows = stage->replica_rows[stage->replica].count;
}

void stage_work_on_all(stage_t *stage)
{
    stage->batch = stage->step_batch;
    stage->work_first = 0;
    stage->work_rows = stage->n_rows;
}

/* ---- their sums ---- */

/* The rows of a replica that are summed together with the rows of others from `first` on, counted
 * inside each. */
static plan_run_t rows_from(const stage_t *stage, uint32_t replica, uint32_t first)
{
    plan_run_t all = stage->replica_rows[replica];
    uint32_t left = all.count > first ? all.count - first : 0;
    return (plan_run_t){all.first + first, left < stage->part_rows ? left : stage->part_rows};
}

/* Where the partials of each slice lie: one behind the other in stage->partials. */
typedef struct {
    size_t bytes[PLAN_TP_MAX], offsets[PLAN_TP_MAX];
} layout_t;

static size_t row_bytes(const stage_t *stage)
{
    return stage->shape->hidden * sizeof(float);
}

static void lay_out(const stage_t *stage, const stage_cut_t *cut, uint32_t first, layout_t *out)
{
    size_t at = 0;
    for (uint32_t r = 0; r < stage->cut.attention_replicas; r++) {
        plan_run_t slices = stage->replica_slices[r];
        size_t one = rows_from(stage, r, first).count * row_bytes(stage);
        for (uint32_t i = slices.first; i < slices.first + slices.count; i++) {
            out->offsets[i] = at;
            at += out->bytes[i] = cut->n_partials[i] * one;
        }
    }
}

static status_t exchange_rows(void *arg)
{
    const stage_call_t *call = arg;
    stage_t *stage = call->stage;
    layout_t layout;
    lay_out(stage, call->cut, call->row_first, &layout);
    const uint8_t *all = stage->ops->buffer_host(stage->partials);
    return stage_gather_parts(call, "exchange of attention",
                              all + layout.offsets[stage->config.slice], stage->partials,
                              layout.bytes, layout.offsets);
}

/* This slice's partials of its replica's rows. */
static status_t multiply_own(stage_t *stage, uint32_t index, const kweight_t *weight, kref_t x,
                             uint32_t ld, kref_t out)
{
    const kernel_ops_t *ops = stage->ops;
    kref_t input = stage_at(stage->input, 0);
    stage_part_t part;
    if (!weight || !stage_part(stage, index, &part))
        return STATUS_OK;
    TRY(stage_part_begin(stage, &part));
    TRY(ops->quantize(stage->queue, part.batch, weight,
                      stage_part_at(&part, x, ld * sizeof(float)), ld, input));
    return ops->matmul(stage->queue, part.batch, weight, input, out);
}

/* The tree of one replica's partials, for rows of its own, where stage_reduce_end expects it. */
static status_t add_rows(stage_t *stage, uint32_t replica, plan_run_t rows,
                         const stage_cut_t *cut, const layout_t *layout, kbuffer_t *bias,
                         bool at_once)
{
    const kernel_ops_t *ops = stage->ops;
    plan_run_t slices = stage->replica_slices[replica];
    kref_t partials[PLAN_TP_MAX];
    for (uint32_t i = 0; i < slices.count; i++)
        partials[i] = stage_at(stage->partials, layout->offsets[slices.first + i]);
    ktree_add_t add = {.n_leaves = cut->n_leaves,
                       .runs = cut->runs + slices.first,
                       .partials = partials,
                       .n_ranks = slices.count,
                       .bias = stage_at(bias, 0)};
    size_t offset = rows.first * row_bytes(stage);
    kref_t residual = stage_at(at_once ? stage->residual : NULL, at_once ? offset : 0);
    kref_t out = at_once ? residual : stage_at(stage->normed, offset);
    TRY(ops->batch_set_plain(stage->queue, stage->part_batch, rows.count));
    return ops->tree_add(stage->queue, stage->part_batch, stage->shape->hidden, &add, residual,
                         out);
}

status_t stage_reduce_replicas(stage_t *stage, const kweight_t *weight, kref_t x, uint32_t ld,
                               const stage_cut_t *cut, kbuffer_t *bias, const stage_mix_t *mix,
                               kbuffer_t *post_norm, stage_call_t *call)
{
    uint32_t n = stage->cut.attention_replicas, most = 0, layer = call->layer;
    bool at_once = stage_ends_at_once(mix, post_norm);
    for (uint32_t r = 0; r < n; r++)
        most = stage->replica_rows[r].count > most ? stage->replica_rows[r].count : most;
    for (uint32_t i = 0, first = 0; first < most; i++, first += stage->part_rows) {
        layout_t layout;
        lay_out(stage, cut, first, &layout);
        TRY(multiply_own(stage, i, weight, x, ld,
                         stage_at(stage->partials, layout.offsets[stage->config.slice])));
        call[i] = (stage_call_t){.stage = stage,
                                 .cut = cut,
                                 .layer = layer,
                                 .row_first = first,
                                 .n_rows = stage->part_rows};
        TRY(stage->ops->host_call(stage->queue, exchange_rows, &call[i]));
        for (uint32_t r = 0; r < n; r++) {
            plan_run_t rows = rows_from(stage, r, first);
            if (rows.count > 0)
                TRY(add_rows(stage, r, rows, cut, &layout, bias, at_once));
        }
    }
    stage_work_on_all(stage);
    return stage_reduce_end(stage, mix, post_norm);
}
