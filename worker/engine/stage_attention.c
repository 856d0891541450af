/* Grouped attention: query heads that share key/value heads, with whatever the layer's description
 * adds to it: biases, norms of heads, a window, capped scores, sinks. */
#include "worker/engine/stage.h"

/* From a row's [q | k | v] to its turned queries and its entry in the cache. */
static status_t prepare(stage_t *stage, uint32_t index, uint32_t ld)
{
    const kernel_ops_t *ops = stage->ops;
    const model_config_t *shape = stage->shape;
    const stage_layer_t *layer = &stage->layers[index];
    kref_t rows = stage_at(stage->qkv_out, 0);
    kpositioned_t what = {
        .rope = stage->ropes[layer->kind->rope],
        .kv = stage->kv,
        .layer = index,
        .n_heads = stage->slice.heads.count,
        .n_kv_heads = stage->slice.kv_heads.count,
        .head_dim = shape->head_dim,
        .q_norm = stage_at(layer->q_norm, 0),
        .k_norm = stage_at(layer->k_norm, 0),
        .eps = shape->norm_eps,
    };
    if (layer->qkv_bias)
        TRY(ops->bias_add(stage->queue, stage->batch, ld, rows, ld,
                          stage_at(layer->qkv_bias, 0)));
    return ops->fused->position(stage->queue, stage->batch, &what, rows, ld);
}

static status_t attend(stage_t *stage, uint32_t index, uint32_t ld)
{
    const kernel_ops_t *ops = stage->ops;
    const model_config_t *shape = stage->shape;
    const stage_layer_t *layer = &stage->layers[index];
    kattention_t what = {
        .layer = index,
        .n_heads = stage->slice.heads.count,
        .head_dim = shape->head_dim,
        .kv_head_of = stage->kv_head_of,
        .scale = shape->attention_scale,
        .window = layer->kind->window,
        .softcap = shape->attention_softcap,
        .sinks = stage_at(layer->sinks, 0),
    };
    return ops->attention(stage->queue, stage->batch, stage->kv, &what,
                          stage_at(stage->qkv_out, 0), ld, stage_at(stage->attended, 0));
}

status_t stage_grouped(stage_t *stage, uint32_t index, stage_call_t *call)
{
    const model_config_t *shape = stage->shape;
    const stage_layer_t *layer = &stage->layers[index];
    if (stage_attends(stage, layer)) {
        uint32_t ld = stage_qkv_columns(stage);
        TRY(stage_multiply_normed(stage, &layer->attn_mix, layer->attn_norm, layer->qkv,
                                  stage_at(stage->qkv_out, 0)));
        TRY(prepare(stage, index, ld));
        TRY(attend(stage, index, ld));
    }
    return stage_reduce(stage, layer->output, stage_at(stage->attended, 0),
                        stage->slice.heads.count * shape->head_dim, &stage->attention_cut,
                        layer->output_bias, &layer->attn_mix, layer->attn_post_norm, call);
}
