/* Compressed attention (DeepSeek V4): one head of keys that are the values too, seen in a window, and
 * behind them in the same softmax entries that each stand for several positions. Where entries
 * overlap, an indexer, with entries of its own, chooses those that a row sees. What was turned on the
 * way in is turned back on the output, because values carry the keys' turns. Every rank makes keys
 * and entries for itself; heads are divided by groups of the output's projection, and large
 * projections of what all need by columns. */
#include <math.h>

#include "worker/engine/stage.h"

static kref_t none(void)
{
    return (kref_t){NULL, 0};
}

/* What every slice with attention needs of the normed rows. */
static status_t project_rows(stage_t *stage, uint32_t index)
{
    const model_config_t *shape = stage->shape;
    const stage_layer_t *layer = &stage->layers[index];
    uint32_t wide = layer->kind->indexed ? 4 : 2;
    const stage_projection_t items[] = {
        {layer->qkv, stage_qkv_columns(stage), stage->qkv_out},
        {layer->compressor.weight, wide * shape->head_dim, stage->compress_out},
        {layer->index_compressor.weight, wide * shape->index.head_dim, stage->index_compress_out},
        {layer->index_weights, shape->index.n_heads, stage->index_weights_out},
    };
    uint32_t n = layer->kind->indexed ? 4 : layer->kind->rate > 0 ? 2 : 1;
    return stage_project(stage, index, false, items, n, stage_at(stage->normed, 0),
                         shape->hidden);
}

/* Queries into latent_q, the key into the cache; the normed rank stays in front of qkv_out. */
static status_t project(stage_t *stage, uint32_t index)
{
    const kernel_ops_t *ops = stage->ops;
    const model_config_t *shape = stage->shape;
    const stage_layer_t *layer = &stage->layers[index];
    uint32_t n_heads = stage->slice.heads.count, dim = shape->head_dim;
    uint32_t rank = shape->compressed.q_rank, ld = stage_qkv_columns(stage);
    kref_t both = stage_at(stage->qkv_out, 0), q = stage_at(stage->latent_q, 0);
    kref_t key = stage_at(stage->qkv_out, rank * sizeof(float));
    krope_t *rope = stage->ropes[layer->kind->rope];
    TRY(project_rows(stage, index));
    TRY(ops->norm_heads(stage->queue, stage->batch, 1, rank, both, ld,
                        stage_at(layer->q_a_norm, 0), shape->norm_eps));
    TRY(ops->norm_heads(stage->queue, stage->batch, 1, dim, key, ld,
                        stage_at(layer->kv_a_norm, 0), shape->norm_eps));
    TRY(stage_multiply(stage, layer->q_b, both, ld, q));
    TRY(ops->norm_heads(stage->queue, stage->batch, n_heads, dim, q, n_heads * dim, none(),
                        shape->norm_eps));
    TRY(ops->rope(stage->queue, stage->batch, rope, q, n_heads * dim, n_heads, dim));
    TRY(ops->rope(stage->queue, stage->batch, rope, key, ld, 1, dim));
    return ops->kv_append(stage->queue, stage->batch, stage->kv, index, key, none(), ld);
}

/* Entries of `dim` values, from what project_rows left in `from`. */
static status_t compress(stage_t *stage, const stage_layer_t *layer,
                         const stage_compressor_t *compressor, uint32_t dim, const krope_t *rope,
                         kbuffer_t *from, kkv_t *inputs, kkv_t *entries)
{
    bool overlap = layer->kind->indexed;
    uint32_t ld = (overlap ? 4u : 2u) * dim;
    kcompress_t what = {
        .layer = layer->entries_layer,
        .dim = dim,
        .rate = layer->kind->rate,
        .overlap = overlap,
        .position_bias = stage_at(compressor->position, 0),
        .norm = stage_at(compressor->norm, 0),
        .eps = stage->shape->norm_eps,
        .rope = rope,
    };
    return stage->ops->compress(stage->queue, stage->batch, &what, inputs, entries,
                                stage_at(from, 0), ld);
}

static status_t choose_entries(stage_t *stage, uint32_t index, kattention_t *what)
{
    const stage_layer_t *layer = &stage->layers[index];
    const kernel_ops_t *ops = stage->ops;
    const model_index_t *shape = &stage->shape->index;
    uint32_t ld = shape->n_heads * shape->head_dim;
    kref_t q = stage_at(stage->index_q_out, 0), w = stage_at(stage->index_weights_out, 0);
    TRY(compress(stage, layer, &layer->index_compressor, shape->head_dim, stage->index_rope,
                 stage->index_compress_out, stage->overlap.index_inputs, stage->overlap.index_entries));
    TRY(stage_project_index(stage, index));
    TRY(ops->rope(stage->queue, stage->batch, stage->index_rope, q, ld, shape->n_heads,
                  shape->head_dim));
    kindex_t select = {
        .layer = layer->entries_layer,
        .n_heads = shape->n_heads,
        .head_dim = shape->head_dim,
        .scale = 1.0f / sqrtf((float)shape->head_dim),
        .weight_scale = 1.0f / sqrtf((float)shape->n_heads),
        .top_k = stage->index_top_k,
    };
    what->selected = stage_at(stage->selected, 0);
    what->n_selected = stage_at(stage->n_selected, 0);
    what->selected_ld = stage->index_top_k;
    return ops->index_select(stage->queue, stage->batch, stage->overlap.index_entries, &select, q,
                             ld, w, shape->n_heads, what->selected, what->n_selected);
}

static status_t attend(stage_t *stage, uint32_t index)
{
    const kernel_ops_t *ops = stage->ops;
    const model_config_t *shape = stage->shape;
    const stage_layer_t *layer = &stage->layers[index];
    uint32_t n_heads = stage->slice.heads.count, dim = shape->head_dim, ld = n_heads * dim;
    kref_t out = stage_at(stage->attended, 0);
    kattention_t what = {
        .layer = index,
        .n_heads = n_heads,
        .head_dim = dim,
        .kv_head_of = stage->kv_head_of,
        .scale = shape->attention_scale,
        .window = layer->kind->window,
        .sinks = stage_at(layer->sinks, 0),
    };
    if (layer->kind->rate > 0) {
        const stage_entries_t *entries = layer->kind->indexed ? &stage->overlap : &stage->stride;
        TRY(compress(stage, layer, &layer->compressor, dim, stage->ropes[layer->kind->rope],
                     stage->compress_out, entries->inputs, entries->entries));
        what.more = entries->entries;
        what.more_layer = layer->entries_layer;
        if (layer->kind->indexed)
            TRY(choose_entries(stage, index, &what));
    }
    TRY(ops->attention(stage->queue, stage->batch, stage->kv, &what, stage_at(stage->latent_q, 0),
                       ld, out));
    return ops->rope(stage->queue, stage->batch, stage->inverse_ropes[layer->kind->rope], out, ld,
                     n_heads, dim);
}

status_t stage_compressed(stage_t *stage, uint32_t index, stage_call_t *call)
{
    const kernel_ops_t *ops = stage->ops;
    const model_config_t *shape = stage->shape;
    const model_compressed_t *compressed = &shape->compressed;
    const stage_layer_t *layer = &stage->layers[index];
    /* Also a rank without heads keeps its streams. */
    TRY(stage_begin(stage, &layer->attn_mix, layer->attn_norm));
    uint32_t in_group = shape->n_heads / compressed->groups * shape->head_dim;
    uint32_t ld = stage->slice.heads.count * shape->head_dim;
    uint32_t out_ld = ld / in_group * compressed->group_rank;
    kref_t grouped = stage_at(stage->grouped, 0);
    if (stage_attends(stage, layer)) {
        TRY(project(stage, index));
        TRY(attend(stage, index));
        TRY(ops->head_matmul(stage->queue, stage->batch, layer->output_a,
                             stage_at(stage->attended, 0),
                             (kheads_at_t){.ld = ld, .stride = in_group}, grouped,
                             (kheads_at_t){.ld = out_ld, .stride = compressed->group_rank}));
    } else if (stage->projection_slices > 1) { /* those with attention exchange: all take part */
        TRY(project_rows(stage, index));
        if (layer->kind->indexed)
            TRY(stage_project_index(stage, index));
    }
    return stage_reduce(stage, layer->output, grouped, out_ld, &stage->attention_cut,
                        layer->output_bias, &layer->attn_mix, layer->attn_post_norm, call);
}
