/* Latent attention (MLA), absorbed for every token: queries are turned into the space of the cached
 * latent, which all heads share, and what they attended to is turned into values behind it. With an
 * indexer the layer sees only the keys that it chooses. Every rank has the latent and makes the
 * choice for itself, from the same bits; heads are divided, and large projections. */
#include <math.h>

#include "worker/engine/stage.h"

static kref_t none(void)
{
    return (kref_t){NULL, 0};
}

/* Where this rank's queries are once they are made. */
typedef struct {
    kref_t q;
    uint32_t ld;
} queries_t;

/* What every slice with attention needs of the normed rows. */
static status_t project_rows(stage_t *stage, uint32_t index)
{
    const stage_layer_t *layer = &stage->layers[index];
    const model_index_t *shape = &stage->shape->index;
    const stage_projection_t items[] = {
        {layer->qkv, stage_qkv_columns(stage), stage->qkv_out},
        {layer->index_k, shape->head_dim, stage->index_k_out},
        {layer->index_weights, shape->n_heads, stage->index_weights_out},
    };
    return stage_project(stage, index, false, items, layer->kind->indexed ? 3 : 1,
                         stage_at(stage->normed, 0), stage->shape->hidden);
}

/* Queries and the cache's entry, from the normed rows. */
static status_t project(stage_t *stage, uint32_t index, queries_t *q_out)
{
    const kernel_ops_t *ops = stage->ops;
    const model_config_t *shape = stage->shape;
    const model_latent_t *latent = &shape->latent;
    const stage_layer_t *layer = &stage->layers[index];
    uint32_t n_heads = stage->slice.heads.count, dim = latent->nope_dim + latent->rope_dim;
    uint32_t ld = stage_qkv_columns(stage), entry_dim = latent->kv_rank + latent->rope_dim;
    kref_t both = stage_at(stage->qkv_out, 0);
    kref_t entry = stage_at(stage->qkv_out, (ld - entry_dim) * sizeof(float));
    TRY(project_rows(stage, index));
    *q_out = (queries_t){both, ld};
    if (layer->q_b) {
        TRY(ops->norm_heads(stage->queue, stage->batch, 1, latent->q_rank, both, ld,
                            stage_at(layer->q_a_norm, 0), latent->norm_eps));
        *q_out = (queries_t){stage_at(stage->latent_q, 0), n_heads * dim};
        TRY(stage_multiply(stage, layer->q_b, both, ld, q_out->q));
    }
    TRY(ops->norm_heads(stage->queue, stage->batch, 1, latent->kv_rank, entry, ld,
                        stage_at(layer->kv_a_norm, 0), latent->norm_eps));
    TRY(ops->rope(stage->queue, stage->batch, stage->ropes[0], q_out->q, q_out->ld, n_heads, dim));
    TRY(ops->rope(stage->queue, stage->batch, stage->latent_key_rope, entry, ld, 1, entry_dim));
    return ops->kv_append(stage->queue, stage->batch, stage->kv, index, entry, none(), ld);
}

/* Chooses the keys of each row; see ops.h, index_select. */
static status_t choose_keys(stage_t *stage, uint32_t index, kattention_t *what)
{
    const kernel_ops_t *ops = stage->ops;
    const model_index_t *shape = &stage->shape->index;
    const stage_layer_t *layer = &stage->layers[index];
    uint32_t ld = shape->n_heads * shape->head_dim;
    kref_t q = stage_at(stage->index_q_out, 0);
    kref_t k = stage_at(stage->index_k_out, 0), w = stage_at(stage->index_weights_out, 0);
    TRY(stage_project_index(stage, index));
    TRY(ops->layer_norm(stage->queue, stage->batch, shape->head_dim, k, shape->head_dim,
                        stage_at(layer->index_norm, 0), stage_at(layer->index_norm_bias, 0),
                        shape->norm_eps));
    TRY(ops->rope(stage->queue, stage->batch, stage->index_rope, q, ld, shape->n_heads,
                  shape->head_dim));
    TRY(ops->rope(stage->queue, stage->batch, stage->index_rope, k, shape->head_dim, 1,
                  shape->head_dim));
    TRY(ops->kv_append(stage->queue, stage->batch, stage->index_kv, index, k, none(),
                       shape->head_dim));
    kindex_t select = {
        .layer = index,
        .n_heads = shape->n_heads,
        .head_dim = shape->head_dim,
        .scale = 1.0f / sqrtf((float)shape->head_dim),
        .weight_scale = 1.0f / sqrtf((float)shape->n_heads),
        .top_k = stage->index_top_k,
    };
    what->selected = stage_at(stage->selected, 0);
    what->n_selected = stage_at(stage->n_selected, 0);
    what->selected_ld = stage->index_top_k;
    return ops->index_select(stage->queue, stage->batch, stage->index_kv, &select, q, ld, w,
                             shape->n_heads, what->selected, what->n_selected);
}

static status_t attend(stage_t *stage, uint32_t index, const queries_t *q)
{
    const kernel_ops_t *ops = stage->ops;
    const model_latent_t *latent = &stage->shape->latent;
    const stage_layer_t *layer = &stage->layers[index];
    uint32_t n_heads = stage->slice.heads.count, rank = latent->kv_rank;
    uint32_t entry_dim = rank + latent->rope_dim, dim = latent->nope_dim + latent->rope_dim;
    kref_t query = stage_at(stage->latent_query, 0), found = stage_at(stage->latent_attended, 0);
    kheads_at_t q_at = {.ld = q->ld, .stride = dim};
    kheads_at_t query_at = {.ld = n_heads * entry_dim, .stride = entry_dim};
    TRY(ops->head_matmul(stage->queue, stage->batch, layer->k_b, q->q, q_at, query, query_at));
    q_at.first = latent->nope_dim;
    query_at.first = rank;
    TRY(ops->copy_heads(stage->queue, stage->batch, n_heads, latent->rope_dim, q->q, q_at, query,
                        query_at));
    kattention_t what = {
        .layer = index,
        .n_heads = n_heads,
        .head_dim = entry_dim,
        .kv_head_of = stage->kv_head_of,
        .scale = stage->shape->attention_scale,
    };
    if (layer->kind->indexed)
        TRY(choose_keys(stage, index, &what));
    TRY(ops->attention(stage->queue, stage->batch, stage->kv, &what, query, n_heads * entry_dim,
                       found));
    kheads_at_t found_at = {.ld = n_heads * rank, .stride = rank};
    kheads_at_t value_at = {.ld = n_heads * latent->value_dim, .stride = latent->value_dim};
    return ops->head_matmul(stage->queue, stage->batch, layer->v_b, found, found_at,
                            stage_at(stage->attended, 0), value_at);
}

status_t stage_latent(stage_t *stage, uint32_t index, stage_call_t *call)
{
    const model_config_t *shape = stage->shape;
    const stage_layer_t *layer = &stage->layers[index];
    if (stage_attends(stage, layer)) {
        queries_t q;
        TRY(stage_begin(stage, &layer->attn_mix, layer->attn_norm));
        TRY(project(stage, index, &q));
        TRY(attend(stage, index, &q));
    } else if (stage->projection_slices > 1) { /* those with attention exchange: all take part */
        TRY(project_rows(stage, index));
        if (layer->kind->indexed)
            TRY(stage_project_index(stage, index));
    }
    return stage_reduce(stage, layer->output, stage_at(stage->attended, 0),
                        stage->slice.heads.count * shape->latent.value_dim, &stage->attention_cut,
                        layer->output_bias, &layer->attn_mix, layer->attn_post_norm, call);
}
