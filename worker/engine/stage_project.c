/* Projections that every slice with attention needs whole: to the latents of queries and keys, those
 * of an indexer and of compressors. Where they are large each slice makes a run of their columns, of
 * which each is a sum of its own (docs/numerics.md, "Matmul"), and an exchange gives the rows to all,
 * before any norm sees them; small ones each slice makes for itself (plan_projection_slices). */
#include <string.h>

#include "common/base/failpoint.h"
#include "common/base/memory.h"
#include "worker/engine/stage_pack.h"

enum { NOBODY = UINT32_MAX };

static bool is_cut(const stage_t *stage)
{
    return stage->projection_slices > 1;
}

/* The columns of one projection that a slice makes. */
static plan_run_t run_of(const stage_t *stage, uint32_t columns, uint32_t slice)
{
    uint32_t index = stage->projection_of[slice];
    return index == NOBODY ? (plan_run_t){0, 0}
                           : plan_projection_run(columns, stage->projection_slices, index);
}

static plan_run_t own_run(const stage_t *stage, uint32_t columns)
{
    return is_cut(stage) ? run_of(stage, columns, stage->config.slice)
                         : (plan_run_t){0, columns};
}

void stage_cut_projections(stage_t *stage)
{
    plan_leaves_t leaves;
    uint32_t n = 0;
    bool always = FAILPOINT("stage.small_parts"); /* small models' are cut too */
    plan_leaf_edges_attention(stage->shape, &leaves);
    for (uint32_t i = 0; i < stage->config.tp; i++)
        stage->projection_of[i] =
            plan_attention_run(&stage->cut, leaves.n, i).count > 0 ? n++ : NOBODY;
    stage->projection_slices = plan_projection_slices(stage->shape, &stage->cut, always);
}

status_t stage_load_projection(stage_t *stage, const stage_rows_t *rows, uint32_t n_rows, bool f32,
                               kweight_t **own_out)
{
    stage_rows_t own[KWEIGHT_PARTS_MAX];
    uint64_t columns = 0, before = 0;
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_rows; i++)
        columns += rows[i].count;
    plan_run_t run = own_run(stage, (uint32_t)columns);
    for (uint32_t i = 0; i < n_rows; i++) {
        uint64_t first = run.first > before ? run.first - before : 0;
        uint64_t end = (uint64_t)run.first + run.count;
        end = end > before ? end - before : 0;
        end = end < rows[i].count ? end : rows[i].count;
        if (first < end)
            own[n++] = (stage_rows_t){rows[i].tensor, rows[i].first + first, end - first};
        before += rows[i].count;
    }
    if (n == 0)
        return STATUS_OK;
    if (!f32)
        return stage_pack_whole(stage, own, n, own_out);
    CHECK(n == 1);
    model_tensor_t part = *own[0].tensor;
    const model_tensor_t *tensor = &part;
    part.row_first += own[0].first;
    part.rows = own[0].count;
    return stage_pack_f32(stage, &tensor, 1, own_out);
}

/* ---- a step ---- */

/* What every slice made of a part becomes whole rows. */
static status_t exchange_projections(void *arg)
{
    const stage_projections_t *what = arg;
    const stage_call_t *call = &what->call;
    stage_t *stage = call->stage;
    size_t bytes[PLAN_TP_MAX];
    const void *parts[PLAN_TP_MAX];
    for (uint32_t i = 0; i < stage->config.tp; i++) {
        bytes[i] = 0;
        for (uint32_t k = 0; k < what->n; k++)
            bytes[i] += call->n_rows * sizeof(float) *
                        run_of(stage, what->items[k].columns, i).count;
    }
    TRY(stage_exchange(call, "exchange of projections", stage->ops->buffer_host(stage->projected),
                       bytes, NULL, parts));
    if (stage->projection_of[stage->config.slice] == NOBODY)
        return STATUS_OK;
    for (uint32_t i = 0; i < stage->config.tp; i++) {
        const float *from = parts[i];
        for (uint32_t k = 0; k < what->n; k++) {
            const stage_projection_t *item = &what->items[k];
            plan_run_t run = run_of(stage, item->columns, i);
            float *to = (float *)stage->ops->buffer_host(item->out) +
                        (size_t)call->row_first * item->columns + run.first;
            for (uint32_t r = 0; r < call->n_rows; r++, from += run.count, to += item->columns)
                memcpy(to, from, run.count * sizeof(float));
        }
    }
    return STATUS_OK;
}

static status_t make_part(stage_t *stage, const stage_part_t *part,
                          const stage_projections_t *what, kref_t x, uint32_t ld)
{
    const kernel_ops_t *ops = stage->ops;
    kref_t input = stage_at(stage->input, 0);
    size_t at = 0;
    for (uint32_t k = 0; k < what->n; k++) {
        const stage_projection_t *item = &what->items[k];
        if (item->weight) {
            TRY(ops->quantize(stage->queue, part->batch, item->weight,
                              stage_part_at(part, x, ld * sizeof(float)), ld, input));
            TRY(ops->matmul(stage->queue, part->batch, item->weight, input,
                            stage_at(stage->projected, at)));
        }
        at += part->n * sizeof(float) * own_run(stage, item->columns).count;
    }
    return STATUS_OK;
}

status_t stage_project(stage_t *stage, uint32_t index, bool second,
                       const stage_projection_t *items, uint32_t n, kref_t x, uint32_t ld)
{
    uint32_t n_parts = (stage->rows_max + stage->part_rows - 1) / stage->part_rows;
    stage_part_t part;
    if (!is_cut(stage)) {
        for (uint32_t i = 0; i < n; i++)
            TRY(stage_multiply(stage, items[i].weight, x, ld, stage_at(items[i].out, 0)));
        return STATUS_OK;
    }
    for (uint32_t i = 0; stage_part(stage, i, &part); i++) {
        stage_projections_t *what =
            &stage->projections[(2 * (size_t)index + second) * n_parts + i];
        *what = (stage_projections_t){
            .call = {.stage = stage,
                     .layer = stage->config.layer_first + index,
                     .row_first = part.first,
                     .n_rows = part.n},
            .n = n,
        };
        memcpy(what->items, items, n * sizeof *items);
        TRY(stage_part_begin(stage, &part));
        TRY(make_part(stage, &part, what, x, ld));
        TRY(stage->ops->host_call(stage->queue, exchange_projections, what));
    }
    return STATUS_OK;
}

status_t stage_project_index(stage_t *stage, uint32_t index)
{
    const model_index_t *shape = &stage->shape->index;
    const stage_projection_t item = {stage->layers[index].index_q,
                                     shape->n_heads * shape->head_dim, stage->index_q_out};
    return stage_project(stage, index, true, &item, 1, stage_at(stage->qkv_out, 0),
                         stage_qkv_columns(stage));
}

status_t stage_open_projections(stage_t *stage)
{
    const model_config_t *shape = stage->shape;
    const uint32_t columns[] = {
        stage_qkv_columns(stage), shape->index.n_heads * shape->index.head_dim,
        shape->index.head_dim,    shape->index.n_heads,
        4 * shape->head_dim,      4 * shape->index.head_dim,
    };
    uint32_t n_parts = (stage->rows_max + stage->part_rows - 1) / stage->part_rows;
    size_t own = 0;
    if (!is_cut(stage))
        return STATUS_OK;
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
        own += own_run(stage, columns[i]).count;
    stage->projections = MEM_NEW_ARRAY(stage_projections_t,
                                       2 * (size_t)stage->config.layer_count * n_parts);
    size_t bytes = stage->part_rows * own * sizeof(float);
    return stage->ops->buffer_new(stage->device, bytes ? bytes : sizeof(float),
                                  &stage->projected);
}
