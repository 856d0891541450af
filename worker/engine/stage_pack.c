/* See stage_pack.h. */
#include "worker/engine/stage_pack.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "worker/engine/stage_read.h"

status_t stage_verify(const stage_t *stage, const model_tensor_t *tensor, uint64_t first,
                      uint64_t count)
{
    if (stage->manifest == NULL || count == 0)
        return STATUS_OK;
    return source_verify_rows(model_source(stage->model), stage->manifest, tensor->source,
                              tensor->row_first + first, count);
}

status_t stage_read_f32(const stage_t *stage, const model_tensor_t *tensor, float *out)
{
    size_t bytes = tensor->rows * tensor->columns * sizeof *out;
    const void *kept = stage_rows_kept(stage, "values", tensor, bytes);
    if (kept != NULL) {
        memcpy(out, kept, bytes);
        return STATUS_OK;
    }
    stage_rows_wanted(stage, tensor, 0, tensor->rows);
    TRY(stage_verify(stage, tensor, 0, tensor->rows));
    status_t status = model_read_f32(tensor, out);
    stage_rows_done(stage, tensor, 0, tensor->rows);
    if (status == STATUS_OK)
        stage_keep_rows(stage, "values", tensor, out, bytes);
    return status;
}

typedef struct {
    kweight_part_t parts[KWEIGHT_PARTS_MAX];
    uint8_t *own[KWEIGHT_PARTS_MAX];
    uint32_t n;
} parts_t;

/* Describes rows that are not there yet. */
static void describe_part(parts_t *parts, const stage_rows_t *rows)
{
    const model_tensor_t *tensor = rows->tensor;
    CHECK(parts->n < KWEIGHT_PARTS_MAX && rows->first + rows->count <= tensor->rows);
    bool in_place = tensor->data != NULL;
    parts->parts[parts->n++] = (kweight_part_t){
        .qtype = (uint32_t)tensor->type,
        .rows = tensor->data,
        .bytes = in_place ? tensor->bytes : rows->count * tensor->row_bytes,
        .row_first = in_place ? (uint32_t)rows->first : 0,
        .n_rows = (uint32_t)rows->count,
    };
}

static status_t read_part(stage_t *stage, parts_t *parts, uint32_t index, const stage_rows_t *rows)
{
    kweight_part_t *part = &parts->parts[index];
    stage_rows_wanted(stage, rows->tensor, rows->first, rows->count);
    TRY(stage_verify(stage, rows->tensor, rows->first, rows->count));
    if (rows->tensor->data != NULL)
        return STATUS_OK;
    parts->own[index] = mem_new(part->bytes + 1, 1);
    part->rows = parts->own[index];
    return stage_read_rows(stage, rows->tensor, rows->first, rows->count, parts->own[index]);
}

static status_t count(stage_t *stage, const kweight_t *weight)
{
    stage->weight_bytes += stage->ops->weight_info(weight).packed_bytes;
    stage_beat(stage);
    return STATUS_OK;
}

static status_t pack(stage_t *stage, const kweight_spec_t *spec, kweight_t **own_out)
{
    TRY(stage->ops->weight_pack(stage->device, spec, own_out));
    return count(stage, *own_out);
}

static status_t pack_rows(stage_t *stage, const stage_rows_t *rows, uint32_t n_rows,
                          const kweight_spec_t *spec, parts_t *parts, kweight_t **own_out)
{
    status_t status = STATUS_OK;
    for (uint32_t i = 0; status == STATUS_OK && i < n_rows; i++)
        status = read_part(stage, parts, i, &rows[i]);
    if (status == STATUS_OK)
        status = pack(stage, spec, own_out);
    for (uint32_t i = 0; i < n_rows; i++) {
        stage_rows_done(stage, rows[i].tensor, rows[i].first, rows[i].count);
        free(parts->own[i]);
    }
    return status;
}

status_t stage_pack(stage_t *stage, const stage_rows_t *rows, uint32_t n_rows,
                    const plan_leaves_t *leaves, plan_run_t run, bool leaves_apart,
                    kweight_t **own_out)
{
    parts_t parts = {0};
    char id[PACK_CACHE_ID_SIZE];
    for (uint32_t i = 0; i < n_rows; i++)
        describe_part(&parts, &rows[i]);
    const kweight_spec_t spec = {
        .name = rows[0].tensor->name,
        .parts = parts.parts,
        .n_parts = parts.n,
        .k_total = leaves->edge[leaves->n],
        .leaf_edges = leaves->edge,
        .n_leaves = leaves->n,
        .leaf_first = run.first,
        .leaf_end = run.first + run.count,
        .leaves_apart = leaves_apart,
    };
    stage_weight_id(rows, n_rows, &spec, id);
    if (stage_weight_kept(stage, &spec, id, own_out))
        TRY(count(stage, *own_out));
    else
        TRY(pack_rows(stage, rows, n_rows, &spec, &parts, own_out));
    stage_keep_weight(stage, id, *own_out);
    return STATUS_OK;
}

status_t stage_pack_whole(stage_t *stage, const stage_rows_t *rows, uint32_t n_rows,
                          kweight_t **own_out)
{
    plan_leaves_t leaves = {.n = 1, .edge = {0, (uint32_t)rows[0].tensor->columns}};
    return stage_pack(stage, rows, n_rows, &leaves, (plan_run_t){0, 1}, false, own_out);
}

status_t stage_pack_f32(stage_t *stage, const model_tensor_t *const *tensors, uint32_t n,
                        kweight_t **own_out)
{
    uint64_t columns = tensors[0]->columns, n_rows = 0;
    for (uint32_t i = 0; i < n; i++)
        n_rows += tensors[i]->rows;
    float *values = MEM_NEW_ARRAY(float, n_rows * columns);
    status_t status = STATUS_OK;
    uint64_t at = 0;
    for (uint32_t i = 0; status == STATUS_OK && i < n; i++) {
        status = stage_read_f32(stage, tensors[i], values + at * columns);
        at += tensors[i]->rows;
    }
    const uint32_t edges[2] = {0, (uint32_t)columns};
    kweight_part_t part = {.qtype = QTYPE_F32, .rows = values, .n_rows = (uint32_t)n_rows,
                           .bytes = n_rows * columns * sizeof *values};
    kweight_spec_t spec = {.name = tensors[0]->name, .parts = &part, .n_parts = 1,
                           .k_total = (uint32_t)columns, .leaf_edges = edges, .n_leaves = 1,
                           .leaf_end = 1};
    if (status == STATUS_OK)
        status = pack(stage, &spec, own_out);
    free(values);
    return status;
}

status_t stage_pack_values(stage_t *stage, const float *values, size_t n, kbuffer_t **own_out)
{
    size_t bytes = n * sizeof *values;
    TRY(stage->ops->buffer_new(stage->device, bytes ? bytes : sizeof *values, own_out));
    if (bytes == 0)
        return STATUS_OK;
    return stage->ops->copy_in(stage->queue, stage_at(*own_out, 0), values, bytes);
}

status_t stage_pack_vector(stage_t *stage, const stage_span_t *spans, uint32_t n,
                           kbuffer_t **own_out)
{
    uint64_t n_values = 0;
    for (uint32_t i = 0; i < n; i++)
        n_values += spans[i].count;
    float *values = MEM_NEW_ARRAY(float, n_values + 1);
    status_t status = STATUS_OK;
    uint64_t at = 0;
    for (uint32_t i = 0; status == STATUS_OK && i < n; i++) {
        const model_tensor_t *tensor = spans[i].tensor;
        if (tensor != NULL) {
            CHECK(spans[i].first + spans[i].count <= tensor->columns && tensor->rows == 1);
            float *whole = MEM_NEW_ARRAY(float, tensor->columns);
            status = stage_read_f32(stage, tensor, whole);
            memcpy(values + at, whole + spans[i].first, spans[i].count * sizeof *values);
            free(whole);
        }
        at += spans[i].count;
    }
    if (status == STATUS_OK)
        status = stage_pack_values(stage, values, n_values, own_out);
    free(values);
    return status;
}

status_t stage_pack_bias(stage_t *stage, const model_tensor_t *tensor, kbuffer_t **own_out)
{
    if (tensor == NULL)
        return STATUS_OK;
    stage_span_t span = {tensor, 0, tensor->columns};
    return stage_pack_vector(stage, &span, 1, own_out);
}

status_t stage_pack_norm(stage_t *stage, const model_tensor_t *tensor, kbuffer_t **own_out)
{
    if (tensor == NULL)
        return STATUS_OK;
    float *values = MEM_NEW_ARRAY(float, tensor->columns);
    status_t status = stage_read_f32(stage, tensor, values);
    for (uint64_t i = 0; stage->shape->norm_plus_one && i < tensor->columns; i++)
        values[i] = 1.0f + values[i];
    if (status == STATUS_OK)
        status = stage_pack_values(stage, values, tensor->columns, own_out);
    free(values);
    return status;
}
