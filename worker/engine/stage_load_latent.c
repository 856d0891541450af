/* Weights of latent attention (MLA) and of its indexer. The up-projection of the latent becomes two
 * small matrices a head: k_b turns a query into the latent's space, v_b turns an attended latent into
 * values, so the latent itself is what is cached and attended to, for every token. */
#include <stdlib.h>

#include "common/base/memory.h"
#include "worker/engine/stage_pack.h"

static const model_tensor_t *tensor_of(const stage_t *stage, model_role_t role, uint32_t layer)
{
    return model_tensor(stage->model, role, layer);
}

/* Rows of one tensor as F32; to be freed. */
static status_t read_rows_f32(const stage_t *stage, const model_tensor_t *tensor, uint64_t first,
                              uint64_t count, float **own_out)
{
    model_tensor_t part = *tensor;
    part.row_first += first;
    part.rows = count;
    *own_out = MEM_NEW_ARRAY(float, count * tensor->columns);
    return stage_read_f32(stage, &part, *own_out);
}

static status_t pack_heads(stage_t *stage, const char *name, const float *values, uint32_t out_dim,
                           uint32_t in_dim, kheads_t **own_out)
{
    kheads_spec_t spec = {
        .name = name,
        .values = values,
        .n_heads = stage->slice.heads.count,
        .out_dim = out_dim,
        .in_dim = in_dim,
    };
    return stage->ops->heads_pack(stage->device, &spec, own_out);
}

/* attn_kv_b: [nope rows | value rows] of each head, of which those of nope are turned. */
static status_t load_whole(stage_t *stage, const model_tensor_t *kv_b, stage_layer_t *out)
{
    const model_latent_t *latent = &stage->shape->latent;
    plan_run_t heads = stage->slice.heads;
    size_t nope = latent->nope_dim, value = latent->value_dim, rank = latent->kv_rank;
    float *rows = NULL;
    status_t status = read_rows_f32(stage, kv_b, heads.first * (nope + value),
                                    heads.count * (nope + value), &rows);
    float *k_b = MEM_NEW_ARRAY(float, heads.count * rank * nope);
    float *v_b = MEM_NEW_ARRAY(float, heads.count * value * rank);
    for (size_t h = 0; h < heads.count; h++) {
        const float *head = rows + h * (nope + value) * rank;
        for (size_t r = 0; r < rank; r++)
            for (size_t d = 0; d < nope; d++)
                k_b[(h * rank + r) * nope + d] = head[d * rank + r];
        for (size_t i = 0; i < value * rank; i++)
            v_b[h * value * rank + i] = head[nope * rank + i];
    }
    if (status == STATUS_OK)
        status = pack_heads(stage, kv_b->name, k_b, latent->kv_rank, latent->nope_dim, &out->k_b);
    if (status == STATUS_OK)
        status = pack_heads(stage, kv_b->name, v_b, latent->value_dim, latent->kv_rank, &out->v_b);
    free(rows);
    free(k_b);
    free(v_b);
    return status;
}

static status_t load_split(stage_t *stage, const model_tensor_t *k_b, const model_tensor_t *v_b,
                           stage_layer_t *out)
{
    const model_latent_t *latent = &stage->shape->latent;
    plan_run_t heads = stage->slice.heads;
    float *keys = NULL, *values = NULL;
    uint64_t rank = latent->kv_rank, value = latent->value_dim;
    status_t status = read_rows_f32(stage, k_b, heads.first * rank, heads.count * rank, &keys);
    if (status == STATUS_OK)
        status = read_rows_f32(stage, v_b, heads.first * value, heads.count * value, &values);
    if (status == STATUS_OK)
        status = pack_heads(stage, k_b->name, keys, latent->kv_rank, latent->nope_dim, &out->k_b);
    if (status == STATUS_OK)
        status = pack_heads(stage, v_b->name, values, latent->value_dim, latent->kv_rank,
                            &out->v_b);
    free(keys);
    free(values);
    return status;
}

static status_t load_indexer(stage_t *stage, uint32_t layer, stage_layer_t *out)
{
    const model_tensor_t *q = tensor_of(stage, MODEL_INDEX_Q_B, layer);
    const model_tensor_t *k = tensor_of(stage, MODEL_INDEX_K, layer);
    const model_tensor_t *weights = tensor_of(stage, MODEL_INDEX_WEIGHTS, layer);
    const stage_rows_t q_rows = {q, 0, q->rows}, k_rows = {k, 0, k->rows};
    const stage_rows_t weight_rows = {weights, 0, weights->rows};
    TRY(stage_load_projection(stage, &q_rows, 1, false, &out->index_q));
    TRY(stage_load_projection(stage, &k_rows, 1, false, &out->index_k));
    TRY(stage_load_projection(stage, &weight_rows, 1, true, &out->index_weights));
    TRY(stage_pack_bias(stage, tensor_of(stage, MODEL_INDEX_K_NORM, layer), &out->index_norm));
    return stage_pack_bias(stage, tensor_of(stage, MODEL_INDEX_K_NORM_BIAS, layer),
                           &out->index_norm_bias);
}

status_t stage_load_latent(stage_t *stage, uint32_t layer, stage_layer_t *out)
{
    const model_config_t *shape = stage->shape;
    const model_latent_t *latent = &shape->latent;
    plan_run_t heads = stage->slice.heads;
    uint64_t dim = (uint64_t)latent->nope_dim + latent->rope_dim;
    if (heads.count == 0)
        return STATUS_OK;
    const model_tensor_t *kv_a = tensor_of(stage, MODEL_ATTN_KV_A, layer);
    const model_tensor_t *q_a = tensor_of(stage, MODEL_ATTN_Q_A, layer);
    stage_rows_t rows[2] = {{q_a, 0, q_a ? q_a->rows : 0}, {kv_a, 0, kv_a->rows}};
    stage_rows_t q = {tensor_of(stage, q_a ? MODEL_ATTN_Q_B : MODEL_ATTN_Q, layer),
                      heads.first * dim, heads.count * dim};
    if (q_a) {
        TRY(stage_pack_whole(stage, &q, 1, &out->q_b));
        TRY(stage_load_projection(stage, rows, 2, false, &out->qkv));
    } else {
        rows[0] = q;
        TRY(stage_pack_whole(stage, rows, 2, &out->qkv));
    }
    TRY(stage_pack_norm(stage, tensor_of(stage, MODEL_ATTN_Q_A_NORM, layer), &out->q_a_norm));
    TRY(stage_pack_norm(stage, tensor_of(stage, MODEL_ATTN_KV_A_NORM, layer), &out->kv_a_norm));
    if (latent->split)
        TRY(load_split(stage, tensor_of(stage, MODEL_ATTN_K_B, layer),
                       tensor_of(stage, MODEL_ATTN_V_B, layer), out));
    else
        TRY(load_whole(stage, tensor_of(stage, MODEL_ATTN_KV_B, layer), out));
    if (out->kind->indexed)
        TRY(load_indexer(stage, layer, out));
    plan_leaves_t leaves;
    plan_leaf_edges_output(shape, &leaves);
    const model_tensor_t *o = tensor_of(stage, MODEL_ATTN_OUTPUT, layer);
    const stage_rows_t output = {o, 0, o->rows};
    return stage_pack(stage, &output, 1, &leaves, stage->slice.head_leaves, false, &out->output);
}
