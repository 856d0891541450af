/* The loader: from the model's tensors to the packed weights of one slice. A rank reads only the
 * rows and leaf runs that plan.h gives it; the pages of the rest are never touched. */
#include <stdlib.h>

#include "common/base/failpoint.h"
#include "common/base/memory.h"
#include "worker/engine/stage_pack.h"
#include "worker/engine/stage_read.h"

static const model_tensor_t *tensor_of(const stage_t *stage, model_role_t role, uint32_t layer)
{
    return model_tensor(stage->model, role, layer);
}

status_t stage_load_attention(stage_t *stage, uint32_t layer, stage_layer_t *out)
{
    const model_config_t *shape = stage->shape;
    plan_run_t heads = stage->slice.heads, kv = stage->slice.kv_heads;
    uint64_t dim = shape->head_dim;
    if (heads.count == 0)
        return STATUS_OK;
    const stage_rows_t qkv[3] = {
        {tensor_of(stage, MODEL_ATTN_Q, layer), heads.first * dim, heads.count * dim},
        {tensor_of(stage, MODEL_ATTN_K, layer), kv.first * dim, kv.count * dim},
        {tensor_of(stage, MODEL_ATTN_V, layer), kv.first * dim, kv.count * dim},
    };
    const stage_span_t biases[3] = {
        {tensor_of(stage, MODEL_ATTN_Q_BIAS, layer), heads.first * dim, heads.count * dim},
        {tensor_of(stage, MODEL_ATTN_K_BIAS, layer), kv.first * dim, kv.count * dim},
        {tensor_of(stage, MODEL_ATTN_V_BIAS, layer), kv.first * dim, kv.count * dim},
    };
    TRY(stage_pack_whole(stage, qkv, 3, &out->qkv));
    if (biases[0].tensor || biases[1].tensor || biases[2].tensor)
        TRY(stage_pack_vector(stage, biases, 3, &out->qkv_bias));
    TRY(stage_pack_norm(stage, tensor_of(stage, MODEL_ATTN_Q_NORM, layer), &out->q_norm));
    TRY(stage_pack_norm(stage, tensor_of(stage, MODEL_ATTN_K_NORM, layer), &out->k_norm));
    const stage_span_t sinks = {tensor_of(stage, MODEL_ATTN_SINKS, layer), heads.first,
                                heads.count};
    if (sinks.tensor)
        TRY(stage_pack_vector(stage, &sinks, 1, &out->sinks));
    plan_leaves_t leaves;
    plan_leaf_edges_output(shape, &leaves);
    const model_tensor_t *o = tensor_of(stage, MODEL_ATTN_OUTPUT, layer);
    const stage_rows_t output = {o, 0, o->rows};
    return stage_pack(stage, &output, 1, &leaves, stage->slice.head_leaves, false, &out->output);
}

status_t stage_load_dense(stage_t *stage, uint32_t layer, stage_layer_t *out)
{
    plan_run_t ffn = stage->slice.ffn;
    TRY(stage_pack_bias(stage, tensor_of(stage, MODEL_FFN_DOWN_BIAS, layer), &out->down_bias));
    if (ffn.count == 0)
        return STATUS_OK;
    const stage_rows_t gate_up[2] = {
        {tensor_of(stage, MODEL_FFN_GATE, layer), ffn.first, ffn.count},
        {tensor_of(stage, MODEL_FFN_UP, layer), ffn.first, ffn.count},
    };
    const stage_span_t biases[2] = {
        {tensor_of(stage, MODEL_FFN_GATE_BIAS, layer), ffn.first, ffn.count},
        {tensor_of(stage, MODEL_FFN_UP_BIAS, layer), ffn.first, ffn.count},
    };
    TRY(stage_pack_whole(stage, gate_up, 2, &out->gate_up));
    if (biases[0].tensor || biases[1].tensor)
        TRY(stage_pack_vector(stage, biases, 2, &out->gate_up_bias));
    plan_leaves_t leaves;
    plan_leaf_edges_ffn(stage->shape->ffn, &leaves);
    const model_tensor_t *down = tensor_of(stage, MODEL_FFN_DOWN, layer);
    const stage_rows_t rows = {down, 0, down->rows};
    return stage_pack(stage, &rows, 1, &leaves, stage->slice.ffn_leaves, false, &out->down);
}

static status_t load_layer(stage_t *stage, uint32_t index)
{
    uint32_t layer = stage->config.layer_first + index;
    stage_layer_t *out = &stage->layers[index];
    if (FAILPOINT("rank.load"))
        return fail(STATUS_INTERNAL, "fail point rank.load");
    out->kind = &stage->shape->layers[layer];
    TRY(stage_pack_norm(stage, tensor_of(stage, MODEL_ATTN_NORM, layer), &out->attn_norm));
    TRY(stage_pack_norm(stage, tensor_of(stage, MODEL_ATTN_POST_NORM, layer),
                        &out->attn_post_norm));
    TRY(stage_pack_norm(stage, tensor_of(stage, MODEL_FFN_NORM, layer), &out->ffn_norm));
    TRY(stage_pack_norm(stage, tensor_of(stage, MODEL_FFN_POST_NORM, layer), &out->ffn_post_norm));
    TRY(stage_pack_bias(stage, tensor_of(stage, MODEL_ATTN_OUTPUT_BIAS, layer), &out->output_bias));
    switch ((model_attention_kind_t)out->kind->attention) {
    case MODEL_ATTENTION_GROUPED: TRY(stage_load_attention(stage, layer, out)); break;
    case MODEL_ATTENTION_LATENT: TRY(stage_load_latent(stage, layer, out)); break;
    case MODEL_ATTENTION_COMPRESSED: TRY(stage_load_compressed(stage, layer, out)); break;
    }
    TRY(stage_load_mix(stage, layer, MODEL_ATTN_MIX, &out->attn_mix));
    TRY(stage_load_mix(stage, layer, MODEL_FFN_MIX, &out->ffn_mix));
    return out->kind->ffn == MODEL_FFN_DENSE ? stage_load_dense(stage, layer, out)
                                             : stage_load_experts(stage, layer, out);
}

/* Looked up as stored, not packed. */
static status_t read_embedding(stage_t *stage, const model_tensor_t *table, const uint8_t **rows_out)
{
    *rows_out = table->data;
    TRY(stage_verify(stage, table, 0, table->rows));
    if (table->data == NULL) {
        *rows_out = stage->embedding_rows = mem_new(table->rows * table->row_bytes, 1);
        stage_rows_wanted(stage, table, 0, table->rows);
        TRY(stage_read_rows(stage, table, 0, table->rows, stage->embedding_rows));
    }
    stage_rows_done(stage, table, 0, table->rows);
    return STATUS_OK;
}

static status_t load_embedding(stage_t *stage)
{
    const model_tensor_t *table = tensor_of(stage, MODEL_TOKEN_EMBD, 0);
    size_t bytes = table->rows * table->row_bytes;
    const uint8_t *rows = stage_rows_kept(stage, "table", table, bytes);
    if (rows == NULL) {
        TRY(read_embedding(stage, table, &rows));
        stage_keep_rows(stage, "table", table, rows, bytes);
    }
    return stage->ops->table_open(stage->device, (uint32_t)table->type, rows, bytes,
                                  stage->shape->vocab, stage->shape->hidden, &stage->embedding);
}

static status_t load_ends(stage_t *stage)
{
    if (stage->first)
        TRY(load_embedding(stage));
    if (!stage->has_head)
        return STATUS_OK;
    TRY(stage_pack_norm(stage, tensor_of(stage, MODEL_OUTPUT_NORM, 0), &stage->output_norm));
    TRY(stage_load_mix(stage, 0, MODEL_HEAD_MIX, &stage->head_mix));
    if (stage->slice.vocab.count == 0)
        return STATUS_OK;
    const stage_rows_t head = {tensor_of(stage, MODEL_OUTPUT, 0), stage->slice.vocab.first,
                               stage->slice.vocab.count};
    return stage_pack_whole(stage, &head, 1, &stage->head);
}

static status_t open_rope(stage_t *stage, uint32_t index, uint32_t first,
                          model_rope_pairs_t pairs, bool inverse, krope_t **own_out)
{
    const model_rope_t *rope = &stage->shape->ropes[index];
    krope_spec_t spec = {
        .dim = rope->dim,
        .pairs = pairs == MODEL_ROPE_PAIRS_ADJACENT ? KROPE_ADJACENT : KROPE_HALVES,
        .base = (double)rope->base,
        .position_scale = (double)rope->scale,
        .factors = rope->factors ? model_rope_factors(stage->model, index) : NULL,
        .positions = stage->config.context_max,
        .first = first,
        .magnitude = rope->magnitude,
        .inverse = inverse,
    };
    return stage->ops->rope_open(stage->device, &spec, own_out);
}

/* What turns stands at the end of a head of compressed attention, those of its indexer included, and
 * is turned back on the output. */
static status_t load_compressed_ropes(stage_t *stage)
{
    const model_config_t *shape = stage->shape;
    uint32_t dim = shape->compressed.rope_dim, first = shape->head_dim - dim;
    for (uint32_t i = 0; i < MODEL_ROPES_MAX; i++) {
        TRY(open_rope(stage, i, first, shape->ropes[i].pairs, false, &stage->ropes[i]));
        TRY(open_rope(stage, i, first, shape->ropes[i].pairs, true, &stage->inverse_ropes[i]));
    }
    if (!stage->has_index)
        return STATUS_OK;
    return open_rope(stage, 1, shape->index.head_dim - dim, shape->ropes[1].pairs, false,
                     &stage->index_rope);
}

/* A latent query head turns behind what does not turn; the key behind the latent; the heads of the
 * indexer in front, and always by halves. */
static status_t load_ropes(stage_t *stage)
{
    const model_config_t *shape = stage->shape;
    const model_tensor_t *factors = model_tensor(stage->model, MODEL_ROPE_FACTORS, 0);
    if (factors != NULL) /* read as the model was opened, and never kept */
        TRY(stage_verify(stage, factors, 0, factors->rows));
    if (stage->has_compressed)
        return load_compressed_ropes(stage);
    for (uint32_t i = 0; i < MODEL_ROPES_MAX; i++)
        if (shape->ropes[i].dim > 0)
            TRY(open_rope(stage, i, stage->has_latent ? shape->latent.nope_dim : 0,
                          shape->ropes[i].pairs, false, &stage->ropes[i]));
    if (stage->has_latent)
        TRY(open_rope(stage, 0, shape->latent.kv_rank, shape->ropes[0].pairs, false,
                      &stage->latent_key_rope));
    if (stage->has_index)
        TRY(open_rope(stage, 0, 0, MODEL_ROPE_PAIRS_HALVES, false, &stage->index_rope));
    return STATUS_OK;
}

status_t stage_load_weights(stage_t *stage)
{
    stage->layers = MEM_NEW_ARRAY(stage_layer_t, stage->config.layer_count);
    TRY(stage_read_begin(stage));
    status_t status = STATUS_OK;
    for (uint32_t i = 0; status == STATUS_OK && i < stage->config.layer_count; i++) {
        status = load_layer(stage, i);
        stage_read_progress(stage, i + 1);
    }
    if (status == STATUS_OK)
        status = load_ends(stage);
    stage_read_end(stage, status == STATUS_OK);
    TRY(status);
    TRY(load_ropes(stage));
    kevent_t event;
    TRY(stage->ops->event_record(stage->queue, &event));
    return stage->ops->event_wait(stage->queue, event);
}

/* ---- releasing ---- */

static void release_layer(stage_t *stage, stage_layer_t *l)
{
    const kernel_ops_t *ops = stage->ops;
    kbuffer_t *buffers[] = {
        l->attn_norm,    l->attn_post_norm, l->ffn_norm,     l->ffn_post_norm,
        l->qkv_bias,     l->q_norm,         l->k_norm,       l->sinks,
        l->output_bias,  l->q_a_norm,       l->kv_a_norm,    l->index_norm,
        l->gate_up_bias, l->down_bias,      l->router_bias,  l->router_correction,
        l->expert_gate_up_bias, l->expert_down_bias, l->index_norm_bias, l->router_table,
        l->compressor.position, l->compressor.norm, l->index_compressor.position,
        l->index_compressor.norm,
    };
    kweight_t *weights[] = {
        l->qkv, l->output, l->q_b, l->index_q, l->index_k, l->index_weights, l->gate_up, l->down,
        l->router, l->shared_gate_up, l->shared_down, l->compressor.weight,
        l->index_compressor.weight,
    };
    if (l->experts)
        ops->experts_close(l->experts);
    if (l->shared)
        ops->experts_close(l->shared);
    if (l->k_b)
        ops->heads_release(l->k_b);
    if (l->v_b)
        ops->heads_release(l->v_b);
    if (l->output_a)
        ops->heads_release(l->output_a);
    stage_release_mix(stage, &l->attn_mix);
    stage_release_mix(stage, &l->ffn_mix);
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        ops->buffer_release(buffers[i]);
    for (size_t i = 0; i < sizeof weights / sizeof *weights; i++)
        if (weights[i])
            ops->weight_release(weights[i]);
    for (uint32_t e = 0; e < l->n_experts; e++) {
        if (l->expert_gate_up[e])
            ops->weight_release(l->expert_gate_up[e]);
        if (l->expert_down[e])
            ops->weight_release(l->expert_down[e]);
    }
    free(l->expert_gate_up);
    free(l->expert_down);
}

void stage_release_weights(stage_t *stage)
{
    const kernel_ops_t *ops = stage->ops;
    krope_t *ropes[] = {stage->ropes[0], stage->ropes[1], stage->latent_key_rope,
                        stage->index_rope, stage->inverse_ropes[0], stage->inverse_ropes[1]};
    pack_cache_close(stage->pack_cache); /* it may still write the weights */
    for (uint32_t i = 0; stage->layers && i < stage->config.layer_count; i++)
        release_layer(stage, &stage->layers[i]);
    free(stage->layers);
    if (stage->head)
        ops->weight_release(stage->head);
    ops->buffer_release(stage->output_norm);
    stage_release_mix(stage, &stage->head_mix);
    if (stage->embedding)
        ops->table_close(stage->embedding);
    free(stage->embedding_rows);
    for (size_t i = 0; i < sizeof ropes / sizeof *ropes; i++)
        if (ropes[i])
            ops->rope_close(ropes[i]);
}

static void widen(const stage_t *stage, const kweight_t *weight, size_t *most)
{
    size_t bytes = weight ? stage->ops->weight_info(weight).input_row_bytes : 0;
    *most = bytes > *most ? bytes : *most;
}

size_t stage_input_row_bytes(const stage_t *stage)
{
    size_t most = 0;
    widen(stage, stage->head_mix.fn, &most);
    for (uint32_t i = 0; i < stage->config.layer_count; i++) {
        const stage_layer_t *l = &stage->layers[i];
        const kweight_t *all[] = {
            l->qkv,     l->output,        l->q_b,         l->gate_up,    l->down,
            l->index_q, l->index_k,       l->index_weights, l->router,
            l->attn_mix.fn, l->ffn_mix.fn, l->compressor.weight, l->index_compressor.weight,
        };
        for (size_t k = 0; k < sizeof all / sizeof *all; k++)
            widen(stage, all[k], &most);
    }
    return most;
}
