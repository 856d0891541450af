/* Making and closing a stage: its device, its memory, and what each slice of it contributes. */
#include "worker/engine/stage.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "common/base/memory.h"
#include "worker/engine/kv.h"
#include "worker/engine/stage_read.h"

static void cut_leaves(stage_cut_t *cut, uint32_t n_leaves, const plan_cut_t *plan, bool attention)
{
    cut->n_leaves = n_leaves;
    cut->n_partials_all = 0;
    for (uint32_t i = 0; i < plan->tp; i++) {
        plan_run_t run = attention ? plan_attention_run(plan, n_leaves, i)
                                   : plan_leaf_run(n_leaves, plan->tp, i);
        cut->runs[i] = (tree_run_t){(uint16_t)run.first, (uint16_t)(run.first + run.count)};
        cut->n_partials[i] = tree_cover_size(n_leaves, cut->runs[i]);
        cut->n_partials_before[i] = cut->n_partials_all;
        cut->n_partials_all += cut->n_partials[i];
    }
}

static void cut_stage(stage_t *stage)
{
    const model_config_t *shape = stage->shape;
    plan_leaves_t leaves;
    plan_leaf_edges_attention(shape, &leaves);
    cut_leaves(&stage->attention_cut, leaves.n, &stage->cut, true);
    if (shape->ffn > 0) {
        plan_leaf_edges_ffn(shape->ffn, &leaves);
        cut_leaves(&stage->ffn_cut, leaves.n, &stage->cut, false);
    }
    uint32_t heads_per_kv = shape->n_heads / shape->n_kv_heads;
    for (uint32_t i = 0; i < stage->slice.heads.count; i++)
        stage->kv_head_of[i] =
            (uint16_t)((stage->slice.heads.first + i) / heads_per_kv - stage->slice.kv_heads.first);
}

static status_t open_device(stage_t *stage)
{
    kdevice_options_t options = {
        .threads = stage->config.threads,
        .mode = stage->config.activations_f32 ? KMODE_F32 : KMODE_NATIVE,
    };
    TRY(stage->ops->device_open(&options, &stage->device));
    kdevice_info_t info = stage->ops->device_info(stage->device);
    if (info.refused[0])
        log_warn("%s; %s computes instead", info.refused, info.isa);
    return stage->ops->queue_open(
        stage->device, stage->config.late_queue ? KQUEUE_LATE : KQUEUE_NOW, &stage->queue);
}

static void describe_layers(stage_t *stage)
{
    static const kactivate_kind_t kinds[] = {
        [MODEL_ACTIVATION_SILU] = KACTIVATE_SILU,
        [MODEL_ACTIVATION_GELU_TANH] = KACTIVATE_GELU_TANH,
        [MODEL_ACTIVATION_CLAMP_SWIGLU] = KACTIVATE_CLAMP_GLU,
        [MODEL_ACTIVATION_SILU_LIMIT] = KACTIVATE_SILU_LIMIT,
    };
    const model_config_t *shape = stage->shape;
    stage->activate = (kactivate_t){
        .kind = kinds[shape->activation], .alpha = 1.702f, .limit = shape->activation_limit};
    for (uint32_t i = 0; i < stage->config.layer_count; i++) {
        const model_layer_t *layer = &shape->layers[stage->config.layer_first + i];
        stage->has_experts = stage->has_experts || layer->ffn == MODEL_FFN_EXPERTS;
        stage->has_latent = stage->has_latent || layer->attention == MODEL_ATTENTION_LATENT;
        stage->has_index = stage->has_index || layer->indexed;
        stage->has_compressed =
            stage->has_compressed || layer->attention == MODEL_ATTENTION_COMPRESSED;
    }
    stage->residual_columns = model_residual(shape);
    stage->index_top_k = shape->index.top_k < stage->config.context_max
                             ? shape->index.top_k
                             : stage->config.context_max;
}

uint32_t stage_qkv_columns(const stage_t *stage)
{
    const model_config_t *shape = stage->shape;
    const model_latent_t *latent = &shape->latent;
    uint32_t heads = stage->slice.heads.count;
    if (stage->has_compressed)
        return shape->compressed.q_rank + shape->head_dim;
    if (!stage->has_latent)
        return (heads + 2 * stage->slice.kv_heads.count) * shape->head_dim;
    uint32_t q = latent->q_rank > 0 ? latent->q_rank : heads * shape->head_dim;
    return q + latent->kv_rank + latent->rope_dim;
}

/* Pages of scratch are touched once here, so that the first step does not wait for them; they are
 * zeroed as they come. */
static status_t new_rows(stage_t *stage, size_t rows, size_t row_bytes, kbuffer_t **own_out)
{
    enum { PAGE_BYTES = 4096 };
    size_t bytes = rows * row_bytes;
    TRY(stage->ops->buffer_new(stage->device, bytes ? bytes : 64, own_out));
    volatile uint8_t *pages = stage->ops->buffer_host(*own_out);
    for (size_t at = 0; at < bytes; at += PAGE_BYTES)
        pages[at] = 0;
    return STATUS_OK;
}

static status_t open_index_scratch(stage_t *stage)
{
    const model_index_t *index = &stage->shape->index;
    size_t rows = stage->rows_max, f = sizeof(float);
    TRY(new_rows(stage, rows, (size_t)index->n_heads * index->head_dim * f, &stage->index_q_out));
    TRY(new_rows(stage, rows, index->head_dim * f, &stage->index_k_out));
    TRY(new_rows(stage, rows, index->n_heads * f, &stage->index_weights_out));
    TRY(new_rows(stage, rows, stage->index_top_k * sizeof(uint32_t), &stage->selected));
    return new_rows(stage, rows, sizeof(uint32_t), &stage->n_selected);
}

static status_t open_latent_scratch(stage_t *stage)
{
    const model_config_t *shape = stage->shape;
    const model_latent_t *latent = &shape->latent;
    size_t rows = stage->rows_max, f = sizeof(float), heads = stage->slice.heads.count;
    size_t entry = (size_t)latent->kv_rank + latent->rope_dim;
    TRY(new_rows(stage, rows, latent->q_rank > 0 ? heads * shape->head_dim * f : 0,
                 &stage->latent_q));
    TRY(new_rows(stage, rows, heads * entry * f, &stage->latent_query));
    return new_rows(stage, rows, heads * latent->kv_rank * f, &stage->latent_attended);
}

static status_t open_compressed_scratch(stage_t *stage)
{
    const model_config_t *shape = stage->shape;
    const model_compressed_t *compressed = &shape->compressed;
    size_t rows = stage->rows_max, f = sizeof(float), heads = stage->slice.heads.count;
    size_t groups = heads / (shape->n_heads / compressed->groups);
    TRY(new_rows(stage, rows, heads * shape->head_dim * f, &stage->latent_q));
    TRY(new_rows(stage, rows, 4 * (size_t)shape->head_dim * f, &stage->compress_out));
    TRY(new_rows(stage, rows, 4 * (size_t)shape->index.head_dim * f, &stage->index_compress_out));
    return new_rows(stage, rows, groups * compressed->group_rank * f, &stage->grouped);
}

static status_t open_stream_scratch(stage_t *stage)
{
    size_t rows = stage->rows_max, f = sizeof(float), n = stage->shape->streams.n;
    TRY(new_rows(stage, rows, stage->residual_columns * f, &stage->flat));
    TRY(new_rows(stage, rows, stage_input_row_bytes(stage), &stage->mix_input));
    TRY(new_rows(stage, rows, (2 + n) * n * f, &stage->mixes));
    TRY(new_rows(stage, rows, (1 + n) * n * f, &stage->mix_weights));
    return new_rows(stage, rows, stage->shape->hidden * f, &stage->collapsed);
}

static status_t open_expert_scratch(stage_t *stage)
{
    const model_config_t *shape = stage->shape;
    size_t rows = stage->rows_max, used = shape->experts.n_used;
    TRY(new_rows(stage, rows, (shape->experts.n + 1) * sizeof(float), &stage->router_out));
    TRY(new_rows(stage, rows, used * sizeof(uint32_t), &stage->expert_ids));
    TRY(new_rows(stage, rows, used * sizeof(float), &stage->expert_weights));
    TRY(new_rows(stage, rows, shape->hidden * sizeof(int64_t), &stage->sums));
    return new_rows(stage, 1, stage_sums_of_all_bytes(stage), &stage->sums_of_all);
}

static status_t open_head_scratch(stage_t *stage)
{
    size_t f = sizeof(float);
    size_t input = stage->head ? stage->ops->weight_info(stage->head).input_row_bytes : 0;
    /* Columns of every part come here; the first one has most. */
    uint32_t columns = plan_vocab_run(stage->shape->vocab, stage_head_parts(stage), 0).count;
    TRY(new_rows(stage, STAGE_LOGIT_ROWS, stage->residual_columns * f, &stage->head_rows));
    TRY(new_rows(stage, STAGE_LOGIT_ROWS, input, &stage->head_input));
    return new_rows(stage, STAGE_LOGIT_ROWS, (size_t)columns * f, &stage->logits);
}

static status_t open_scratch(stage_t *stage)
{
    const model_config_t *shape = stage->shape;
    const plan_slice_t *slice = &stage->slice;
    size_t rows = stage->rows_max, part = stage->part_rows, f = sizeof(float);
    size_t value_dim = stage->has_latent ? shape->latent.value_dim : shape->head_dim;
    TRY(new_rows(stage, rows, stage->residual_columns * f, &stage->residual));
    TRY(new_rows(stage, rows, shape->hidden * f, &stage->normed));
    TRY(new_rows(stage, rows, stage_qkv_columns(stage) * f, &stage->qkv_out));
    TRY(new_rows(stage, rows, slice->heads.count * value_dim * f, &stage->attended));
    TRY(new_rows(stage, part, 2 * (size_t)slice->ffn.count * f, &stage->gate_up_out));
    TRY(new_rows(stage, part, stage_input_row_bytes(stage), &stage->middle));
    TRY(new_rows(stage, part, stage_input_row_bytes(stage), &stage->input));
    TRY(new_rows(stage, part, stage_partials_row_bytes(stage), &stage->partials));
    if (stage->has_latent)
        TRY(open_latent_scratch(stage));
    if (stage->has_compressed)
        TRY(open_compressed_scratch(stage));
    if (stage->has_index)
        TRY(open_index_scratch(stage));
    if (shape->streams.n > 0)
        TRY(open_stream_scratch(stage));
    if (stage->has_experts)
        TRY(open_expert_scratch(stage));
    if (stage->has_head)
        TRY(open_head_scratch(stage));
    stage->rows = MEM_NEW_ARRAY(kbatch_row_t, rows);
    stage->tables = MEM_NEW_ARRAY(kbatch_table_t, STEP_ENTRIES_MAX);
    stage->calls = MEM_NEW_ARRAY(stage_call_t, stage_calls_of_layer(stage) *
                                                   (size_t)stage->config.layer_count + 2);
    TRY(stage->ops->batch_new(stage->device, stage->part_rows, 0, &stage->part_batch));
    TRY(stage->ops->batch_new(stage->device, stage->rows_max, stage->blocks_max,
                              &stage->step_batch));
    return stage_open_replicas(stage);
}

/* What everybody reads of a sealed model, before anything is made of it. */
static status_t open_seal(stage_t *stage)
{
    status_t status = manifest_open(model_path(stage->model), &stage->manifest);
    if (status == STATUS_NOT_FOUND)
        return STATUS_OK;
    TRY(status);
    return source_verify_files(model_source(stage->model), stage->manifest);
}

status_t stage_open(const rank_config_t *config, const model_t *model, stage_t **own_out)
{
    stage_t *stage = MEM_NEW(stage_t);
    stage->config = *config;
    stage->ops = kernels_cpu();
    stage->model = model;
    stage->shape = model_config(model);
    stage->pulse = config->pulse;
    stage->first = config->stage == 0;
    stage->last = config->stage == config->stages - 1;
    stage->has_head = stage->last || config->shared_head;
    stage->rows_max = config->prefill_tokens_max;
    stage->blocks_max = config->batch_max * kv_blocks_for(config->context_max);
    plan_cut_t wanted = {config->tp, config->expert_groups, config->attention_slices,
                         config->attention_replicas};
    status_t status = open_seal(stage);
    if (status == STATUS_OK)
        status = plan_cut(stage->shape, &wanted, &stage->cut);
    if (status == STATUS_OK)
        status = plan_slice(stage->shape, &stage->cut, config->slice, &stage->slice);
    if (status == STATUS_OK) {
        stage->slice.vocab = plan_head_run(stage->shape->vocab, config->tp, config->stages,
                                           config->shared_head, config->stage, config->slice);
        cut_stage(stage);
        stage_cut_projections(stage);
        describe_layers(stage);
        stage_open_kept(stage);
        status = open_device(stage);
    }
    if (status == STATUS_OK)
        status = stage_load_weights(stage);
    if (status == STATUS_OK)
        status = stage_open_caches(stage);
    if (status == STATUS_OK) {
        stage->part_rows = stage_part_rows(stage);
        status = stage_pieces_open(stage);
    }
    if (status == STATUS_OK)
        status = stage_open_projections(stage);
    if (status == STATUS_OK)
        status = open_scratch(stage);
    if (status != STATUS_OK) {
        stage_close(stage);
        return status;
    }
    stage->pulse = NULL; /* an epoch brings its own */
    *own_out = stage;
    return STATUS_OK;
}

void stage_close(stage_t *stage)
{
    if (!stage)
        return;
    const kernel_ops_t *ops = stage->ops;
    if (stage->queue)
        ops->queue_close(stage->queue);
    stage_release_weights(stage);
    kbuffer_t *buffers[] = {stage->residual,  stage->normed,      stage->input,   stage->qkv_out,
                            stage->attended,  stage->gate_up_out, stage->middle, stage->partials,
                            stage->head_rows, stage->head_input,  stage->logits,
                            stage->latent_q, stage->latent_query, stage->latent_attended,
                            stage->router_out, stage->expert_ids, stage->expert_weights,
                            stage->sums, stage->index_q_out, stage->index_k_out,
                            stage->index_weights_out, stage->selected, stage->n_selected,
                            stage->flat, stage->mix_input, stage->mixes, stage->mix_weights,
                            stage->collapsed,
                            stage->compress_out, stage->index_compress_out, stage->grouped,
                            stage->projected,
                            stage->sums_of_all};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        ops->buffer_release(buffers[i]);
    kbatch_t *batches[] = {stage->step_batch, stage->own_batch, stage->part_batch,
                           stage->one_row};
    for (size_t i = 0; i < sizeof batches / sizeof *batches; i++)
        if (batches[i])
            ops->batch_release(batches[i]);
    stage_close_caches(stage);
    if (stage->device)
        ops->device_close(stage->device);
    manifest_close(stage->manifest);
    free(stage->rows);
    free(stage->tables);
    free(stage->calls);
    free(stage->projections);
    free(stage);
}
