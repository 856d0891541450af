/* Grouped attention: query heads that share key/value heads, with whatever the layer's description
 * adds to it: biases, norms of heads, a window, capped scores, sinks. */
#include "worker/engine/stage.h"

static status_t prepare(stage_t *stage, const stage_layer_t *layer, uint32_t ld)
{
    const kernel_ops_t *ops = stage->ops;
    const model_config_t *shape = stage->shape;
    uint32_t n_heads = stage->slice.heads.count, n_kv = stage->slice.kv_heads.count;
    uint32_t dim = shape->head_dim;
    kref_t q = stage_at(stage->qkv_out, 0);
    kref_t k = stage_at(stage->qkv_out, n_heads * dim * sizeof(float));
    if (layer->qkv_bias)
        TRY(ops->bias_add(stage->queue, stage->batch, ld, q, ld, stage_at(layer->qkv_bias, 0)));
    if (layer->q_norm)
        TRY(ops->norm_heads(stage->queue, stage->batch, n_heads, dim, q, ld,
                            stage_at(layer->q_norm, 0), shape->norm_eps));
    if (layer->k_norm)
        TRY(ops->norm_heads(stage->queue, stage->batch, n_kv, dim, k, ld,
                            stage_at(layer->k_norm, 0), shape->norm_eps));
    /* q and k stand side by side, so one call turns both. */
    return ops->rope(stage->queue, stage->batch, stage->ropes[layer->kind->rope], q, ld,
                     n_heads + n_kv, dim);
}

static status_t attend(stage_t *stage, uint32_t index, uint32_t ld)
{
    const kernel_ops_t *ops = stage->ops;
    const model_config_t *shape = stage->shape;
    const stage_layer_t *layer = &stage->layers[index];
    uint32_t n_heads = stage->slice.heads.count, n_kv = stage->slice.kv_heads.count;
    size_t head_bytes = shape->head_dim * sizeof(float);
    kref_t q = stage_at(stage->qkv_out, 0), k = stage_at(stage->qkv_out, n_heads * head_bytes);
    kref_t v = stage_at(stage->qkv_out, (n_heads + n_kv) * head_bytes);
    TRY(ops->kv_append(stage->queue, stage->batch, stage->kv, index, k, v, ld));
    kattention_t what = {
        .layer = index,
        .n_heads = n_heads,
        .head_dim = shape->head_dim,
        .kv_head_of = stage->kv_head_of,
        .scale = shape->attention_scale,
        .window = layer->kind->window,
        .softcap = shape->attention_softcap,
        .sinks = stage_at(layer->sinks, 0),
    };
    return ops->attention(stage->queue, stage->batch, stage->kv, &what, q, ld,
                          stage_at(stage->attended, 0));
}

status_t stage_grouped(stage_t *stage, uint32_t index, stage_call_t *call)
{
    const model_config_t *shape = stage->shape;
    const stage_layer_t *layer = &stage->layers[index];
    if (stage_attends(stage, layer)) {
        uint32_t ld = stage_qkv_columns(stage);
        TRY(stage_begin(stage, &layer->attn_mix, layer->attn_norm));
        TRY(stage_multiply(stage, layer->qkv, stage_at(stage->normed, 0), shape->hidden,
                           stage_at(stage->qkv_out, 0)));
        TRY(prepare(stage, layer, ld));
        TRY(attend(stage, index, ld));
    }
    return stage_reduce(stage, layer->output, stage_at(stage->attended, 0),
                        stage->slice.heads.count * shape->head_dim, &stage->attention_cut,
                        layer->output_bias, &layer->attn_mix, layer->attn_post_norm, call);
}
