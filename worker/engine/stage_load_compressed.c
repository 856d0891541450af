/* Weights of compressed attention: queries through a rank, one key head, its compressors, and the
 * output's projection group by group. */
#include <stdlib.h>

#include "common/base/memory.h"
#include "worker/engine/stage_pack.h"

static const model_tensor_t *tensor_of(const stage_t *stage, model_role_t role, uint32_t layer)
{
    return model_tensor(stage->model, role, layer);
}

/* The matrices of this rank's groups of heads. */
static status_t load_output_a(stage_t *stage, uint32_t layer, stage_layer_t *out)
{
    const model_compressed_t *compressed = &stage->shape->compressed;
    const model_tensor_t *tensor = tensor_of(stage, MODEL_ATTN_OUTPUT_A, layer);
    uint32_t in_group = stage->shape->n_heads / compressed->groups;
    uint32_t first = stage->slice.heads.first / in_group, n = stage->slice.heads.count / in_group;
    model_tensor_t part = *tensor;
    part.row_first += (uint64_t)first * compressed->group_rank;
    part.rows = (uint64_t)n * compressed->group_rank;
    float *values = MEM_NEW_ARRAY(float, part.rows * part.columns);
    kheads_spec_t spec = {
        .name = tensor->name,
        .values = values,
        .n_heads = n,
        .out_dim = compressed->group_rank,
        .in_dim = (uint32_t)tensor->columns,
    };
    status_t status = stage_read_f32(stage, &part, values);
    if (status == STATUS_OK)
        status = stage->ops->heads_pack(stage->device, &spec, &out->output_a);
    free(values);
    return status;
}

/* The roles of gate, position and norm follow that of kv. */
static status_t load_compressor(stage_t *stage, uint32_t layer, model_role_t kv,
                                stage_compressor_t *out)
{
    const model_tensor_t *tensors[2] = {tensor_of(stage, kv, layer),
                                        tensor_of(stage, kv + 1, layer)};
    const model_tensor_t *position = tensor_of(stage, kv + 2, layer);
    const stage_rows_t rows[2] = {{tensors[0], 0, tensors[0]->rows},
                                  {tensors[1], 0, tensors[1]->rows}};
    TRY(stage_load_projection(stage, rows, 2, false, &out->weight));
    size_t n = position->rows * position->columns;
    float *values = MEM_NEW_ARRAY(float, n);
    status_t status = stage_read_f32(stage, position, values);
    if (status == STATUS_OK)
        status = stage_pack_values(stage, values, n, &out->position);
    free(values);
    TRY(status);
    return stage_pack_norm(stage, tensor_of(stage, kv + 3, layer), &out->norm);
}

static status_t load_index(stage_t *stage, uint32_t layer, stage_layer_t *out)
{
    const model_tensor_t *q = tensor_of(stage, MODEL_INDEX_Q_B, layer);
    const model_tensor_t *weights = tensor_of(stage, MODEL_INDEX_WEIGHTS, layer);
    const stage_rows_t rows = {q, 0, q->rows}, weight_rows = {weights, 0, weights->rows};
    TRY(stage_load_projection(stage, &rows, 1, false, &out->index_q));
    TRY(stage_load_projection(stage, &weight_rows, 1, true, &out->index_weights));
    return load_compressor(stage, layer, MODEL_INDEX_COMPRESS_KV, &out->index_compressor);
}

status_t stage_load_compressed(stage_t *stage, uint32_t layer, stage_layer_t *out)
{
    const model_config_t *shape = stage->shape;
    plan_run_t heads = stage->slice.heads;
    uint64_t dim = shape->head_dim;
    if (heads.count == 0)
        return STATUS_OK;
    const model_tensor_t *q_a = tensor_of(stage, MODEL_ATTN_Q_A, layer);
    const model_tensor_t *kv = tensor_of(stage, MODEL_ATTN_KV_A, layer);
    const stage_rows_t rows[2] = {{q_a, 0, q_a->rows}, {kv, 0, kv->rows}};
    const stage_rows_t q_b = {tensor_of(stage, MODEL_ATTN_Q_B, layer), heads.first * dim,
                              heads.count * dim};
    const stage_span_t sinks = {tensor_of(stage, MODEL_ATTN_SINKS, layer), heads.first,
                                heads.count};
    TRY(stage_load_projection(stage, rows, 2, false, &out->qkv));
    TRY(stage_pack_whole(stage, &q_b, 1, &out->q_b));
    TRY(stage_pack_norm(stage, tensor_of(stage, MODEL_ATTN_Q_A_NORM, layer), &out->q_a_norm));
    TRY(stage_pack_norm(stage, tensor_of(stage, MODEL_ATTN_KV_A_NORM, layer), &out->kv_a_norm));
    TRY(stage_pack_vector(stage, &sinks, 1, &out->sinks));
    TRY(load_output_a(stage, layer, out));
    if (out->kind->rate > 0)
        TRY(load_compressor(stage, layer, MODEL_COMPRESS_KV, &out->compressor));
    if (out->kind->indexed)
        TRY(load_index(stage, layer, out));
    plan_leaves_t leaves;
    plan_leaf_edges_output(shape, &leaves);
    const model_tensor_t *o = tensor_of(stage, MODEL_ATTN_OUTPUT, layer);
    const stage_rows_t output = {o, 0, o->rows};
    return stage_pack(stage, &output, 1, &leaves, stage->slice.head_leaves, false, &out->output);
}
