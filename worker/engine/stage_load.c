/* The loader: from the mapped model file to the packed weights of one slice. A rank reads only the
 * rows and leaf runs that plan.h gives it; the pages of the rest are never touched. */
#include <stdlib.h>

#include "common/base/memory.h"
#include "worker/engine/stage.h"

/* Rows [first, first + count) of a tensor as a part of a packed weight. */
static kweight_part_t part_of(const model_tensor_t *tensor, uint64_t first, uint64_t count)
{
    return (kweight_part_t){
        .qtype = (uint32_t)tensor->type,
        .rows = tensor->data,
        .bytes = tensor->bytes,
        .row_first = (uint32_t)first,
        .n_rows = (uint32_t)count,
    };
}

static status_t pack(stage_t *stage, const char *name, const kweight_part_t *parts,
                     uint32_t n_parts, const plan_leaves_t *leaves, plan_run_t run,
                     kweight_t **own_out)
{
    kweight_spec_t spec = {
        .name = name,
        .parts = parts,
        .n_parts = n_parts,
        .k_total = leaves->edge[leaves->n],
        .leaf_edges = leaves->edge,
        .n_leaves = leaves->n,
        .leaf_first = run.first,
        .leaf_end = run.first + run.count,
    };
    TRY(stage->ops->weight_pack(stage->device, &spec, own_out));
    stage->weight_bytes += stage->ops->weight_info(*own_out).packed_bytes;
    stage_beat(stage);
    return STATUS_OK;
}

/* A matmul whose input every rank holds whole has one leaf. */
static status_t pack_whole(stage_t *stage, const char *name, const kweight_part_t *parts,
                           uint32_t n_parts, uint32_t k, kweight_t **own_out)
{
    plan_leaves_t leaves = {.n = 1, .edge = {0, k}};
    return pack(stage, name, parts, n_parts, &leaves, (plan_run_t){0, 1}, own_out);
}

static status_t load_vector(stage_t *stage, const model_tensor_t *tensor, kbuffer_t **own_out)
{
    TRY(stage->ops->buffer_new(stage->device, tensor->bytes, own_out));
    return stage->ops->copy_in(stage->queue, stage_at(*own_out, 0), tensor->data, tensor->bytes);
}

static status_t load_attention(stage_t *stage, uint32_t layer, stage_layer_t *out)
{
    const model_config_t *shape = stage->shape;
    plan_run_t heads = stage->slice.heads, kv = stage->slice.kv_heads;
    uint64_t dim = shape->head_dim;
    TRY(load_vector(stage, model_tensor(stage->model, MODEL_ATTN_NORM, layer), &out->attn_norm));
    if (heads.count == 0)
        return STATUS_OK;
    const model_tensor_t *q = model_tensor(stage->model, MODEL_ATTN_Q, layer);
    const model_tensor_t *k = model_tensor(stage->model, MODEL_ATTN_K, layer);
    const model_tensor_t *v = model_tensor(stage->model, MODEL_ATTN_V, layer);
    const model_tensor_t *o = model_tensor(stage->model, MODEL_ATTN_OUTPUT, layer);
    kweight_part_t qkv[3] = {
        part_of(q, heads.first * dim, heads.count * dim),
        part_of(k, kv.first * dim, kv.count * dim),
        part_of(v, kv.first * dim, kv.count * dim),
    };
    TRY(pack_whole(stage, q->name, qkv, 3, shape->hidden, &out->qkv));
    plan_leaves_t leaves;
    plan_leaf_edges_heads(shape->n_heads, &leaves);
    for (uint32_t i = 0; i <= leaves.n; i++)
        leaves.edge[i] *= shape->head_dim;
    kweight_part_t output = part_of(o, 0, o->rows);
    return pack(stage, o->name, &output, 1, &leaves, stage->slice.head_leaves, &out->output);
}

static status_t load_ffn(stage_t *stage, uint32_t layer, stage_layer_t *out)
{
    plan_run_t ffn = stage->slice.ffn;
    TRY(load_vector(stage, model_tensor(stage->model, MODEL_FFN_NORM, layer), &out->ffn_norm));
    if (ffn.count == 0)
        return STATUS_OK;
    const model_tensor_t *gate = model_tensor(stage->model, MODEL_FFN_GATE, layer);
    const model_tensor_t *up = model_tensor(stage->model, MODEL_FFN_UP, layer);
    const model_tensor_t *down = model_tensor(stage->model, MODEL_FFN_DOWN, layer);
    kweight_part_t gate_up[2] = {part_of(gate, ffn.first, ffn.count),
                                 part_of(up, ffn.first, ffn.count)};
    TRY(pack_whole(stage, gate->name, gate_up, 2, stage->shape->hidden, &out->gate_up));
    plan_leaves_t leaves;
    plan_leaf_edges_ffn(stage->shape->ffn, &leaves);
    kweight_part_t part = part_of(down, 0, down->rows);
    return pack(stage, down->name, &part, 1, &leaves, stage->slice.ffn_leaves, &out->down);
}

static status_t load_ends(stage_t *stage)
{
    const model_config_t *shape = stage->shape;
    if (stage->first) {
        const model_tensor_t *table = model_tensor(stage->model, MODEL_TOKEN_EMBD, 0);
        TRY(stage->ops->table_open(stage->device, (uint32_t)table->type, table->data, table->bytes,
                                   shape->vocab, shape->hidden, &stage->embedding));
    }
    if (!stage->last)
        return STATUS_OK;
    TRY(load_vector(stage, model_tensor(stage->model, MODEL_OUTPUT_NORM, 0), &stage->output_norm));
    if (stage->slice.vocab.count == 0)
        return STATUS_OK;
    const model_tensor_t *head = model_tensor(stage->model, MODEL_OUTPUT, 0);
    kweight_part_t part = part_of(head, stage->slice.vocab.first, stage->slice.vocab.count);
    return pack_whole(stage, head->name, &part, 1, shape->hidden, &stage->head);
}

static status_t load_rope(stage_t *stage)
{
    const model_config_t *shape = stage->shape;
    const model_tensor_t *factors = model_tensor(stage->model, MODEL_ROPE_FACTORS, 0);
    krope_spec_t spec = {
        .dim = shape->rope_dim,
        .pairs = shape->rope_pairs == MODEL_ROPE_PAIRS_ADJACENT ? KROPE_ADJACENT : KROPE_HALVES,
        .base = (double)shape->rope_base,
        .position_scale = (double)shape->rope_scale,
        .factors = factors ? (const float *)(const void *)factors->data : NULL,
        .positions = stage->config.context_max,
    };
    return stage->ops->rope_open(stage->device, &spec, &stage->rope);
}

status_t stage_load_weights(stage_t *stage)
{
    stage->layers = MEM_NEW_ARRAY(stage_layer_t, stage->config.layer_count);
    for (uint32_t i = 0; i < stage->config.layer_count; i++) {
        TRY(load_attention(stage, stage->config.layer_first + i, &stage->layers[i]));
        TRY(load_ffn(stage, stage->config.layer_first + i, &stage->layers[i]));
    }
    TRY(load_ends(stage));
    TRY(load_rope(stage));
    kevent_t event;
    TRY(stage->ops->event_record(stage->queue, &event));
    return stage->ops->event_wait(stage->queue, event);
}

static void release_weight(stage_t *stage, kweight_t *weight)
{
    if (weight)
        stage->ops->weight_release(weight);
}

void stage_release_weights(stage_t *stage)
{
    for (uint32_t i = 0; stage->layers && i < stage->config.layer_count; i++) {
        stage_layer_t *layer = &stage->layers[i];
        stage->ops->buffer_release(layer->attn_norm);
        stage->ops->buffer_release(layer->ffn_norm);
        release_weight(stage, layer->qkv);
        release_weight(stage, layer->output);
        release_weight(stage, layer->gate_up);
        release_weight(stage, layer->down);
    }
    free(stage->layers);
    release_weight(stage, stage->head);
    stage->ops->buffer_release(stage->output_norm);
    if (stage->embedding)
        stage->ops->table_close(stage->embedding);
    if (stage->rope)
        stage->ops->rope_close(stage->rope);
}

size_t stage_input_row_bytes(const stage_t *stage)
{
    size_t most = 0;
    for (uint32_t i = 0; i < stage->config.layer_count; i++) {
        const stage_layer_t *layer = &stage->layers[i];
        const kweight_t *all[4] = {layer->qkv, layer->output, layer->gate_up, layer->down};
        for (int k = 0; k < 4; k++)
            if (all[k] && stage->ops->weight_info(all[k]).input_row_bytes > most)
                most = stage->ops->weight_info(all[k]).input_row_bytes;
    }
    return most;
}
