/* Making and closing a stage: its device, its memory, and what each slice of it contributes. */
#include "worker/engine/stage.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "worker/engine/kv.h"

#define KV_BYTES_DEFAULT ((uint64_t)1 << 30)
#define KV_BLOCKS_MAX ((uint64_t)1 << 28)

static void cut_leaves(stage_cut_t *cut, uint32_t n_leaves, uint32_t tp)
{
    cut->n_leaves = n_leaves;
    cut->n_partials_all = 0;
    for (uint32_t i = 0; i < tp; i++) {
        plan_run_t run = plan_leaf_run(n_leaves, tp, i);
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
    plan_leaf_edges_heads(shape->n_heads, &leaves);
    cut_leaves(&stage->attention_cut, leaves.n, stage->config.tp);
    plan_leaf_edges_ffn(shape->ffn, &leaves);
    cut_leaves(&stage->ffn_cut, leaves.n, stage->config.tp);
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
    return stage->ops->queue_open(
        stage->device, stage->config.late_queue ? KQUEUE_LATE : KQUEUE_NOW, &stage->queue);
}

/* KV memory: as many blocks as were asked for and fit; they must hold one sequence of context_max.
 */
static status_t open_kv(stage_t *stage)
{
    kkv_shape_t shape = {
        .n_layers = stage->config.layer_count,
        .n_kv_heads = stage->slice.kv_heads.count,
        .head_dim = stage->shape->head_dim,
        .n_blocks = 1,
    };
    kmode_t mode = stage->config.activations_f32 ? KMODE_F32 : KMODE_NATIVE;
    uint64_t n = KV_BLOCKS_MAX;
    if (shape.n_kv_heads > 0) {
        uint64_t bytes = stage->config.kv_bytes_max ? stage->config.kv_bytes_max : KV_BYTES_DEFAULT;
        n = bytes / stage->ops->kv_block_bytes(mode, &shape);
    }
    uint64_t wanted = stage->config.kv_tokens_max / KV_BLOCK_TOKENS;
    if (wanted > 0 && wanted < n)
        n = wanted;
    if (n > KV_BLOCKS_MAX)
        n = KV_BLOCKS_MAX;
    if (n < kv_blocks_for(stage->config.context_max))
        return fail(
            STATUS_REFUSED,
            "room for %llu KV tokens; one sequence of context_max needs %u: give the rank more "
            "memory or lower context_max",
            (unsigned long long)n * KV_BLOCK_TOKENS, stage->config.context_max);
    stage->n_blocks = shape.n_blocks = (uint32_t)n;
    return shape.n_kv_heads > 0 ? stage->ops->kv_open(stage->device, &shape, &stage->kv)
                                : STATUS_OK;
}

/* Scratch is written once here, so that the first step does not wait for its pages. */
static status_t new_rows(stage_t *stage, size_t rows, size_t row_bytes, kbuffer_t **own_out)
{
    size_t bytes = rows * row_bytes;
    TRY(stage->ops->buffer_new(stage->device, bytes ? bytes : 64, own_out));
    memset(stage->ops->buffer_host(*own_out), 0, bytes ? bytes : 64);
    return STATUS_OK;
}

static status_t open_scratch(stage_t *stage)
{
    const model_config_t *shape = stage->shape;
    const plan_slice_t *slice = &stage->slice;
    size_t rows = stage->rows_max, f = sizeof(float);
    uint32_t n_partials = stage->attention_cut.n_partials_all > stage->ffn_cut.n_partials_all
                              ? stage->attention_cut.n_partials_all
                              : stage->ffn_cut.n_partials_all;
    size_t qkv = ((size_t)slice->heads.count + 2 * (size_t)slice->kv_heads.count) * shape->head_dim;
    TRY(new_rows(stage, rows, shape->hidden * f, &stage->residual));
    TRY(new_rows(stage, rows, shape->hidden * f, &stage->normed));
    TRY(new_rows(stage, rows, stage_input_row_bytes(stage), &stage->input));
    TRY(new_rows(stage, rows, qkv * f, &stage->qkv_out));
    TRY(new_rows(stage, rows, (size_t)slice->heads.count * shape->head_dim * f, &stage->attended));
    TRY(new_rows(stage, rows, 2 * (size_t)slice->ffn.count * f, &stage->gate_up_out));
    TRY(new_rows(stage, rows, (size_t)slice->ffn.count * f, &stage->ffn_out));
    TRY(new_rows(stage, rows, (size_t)n_partials * shape->hidden * f, &stage->partials));
    if (stage->last) {
        size_t input = stage->head ? stage->ops->weight_info(stage->head).input_row_bytes : 0;
        TRY(new_rows(stage, STAGE_LOGIT_ROWS, shape->hidden * f, &stage->head_rows));
        TRY(new_rows(stage, STAGE_LOGIT_ROWS, input, &stage->head_input));
        TRY(new_rows(stage, STAGE_LOGIT_ROWS, (size_t)slice->vocab.count * f, &stage->logits));
    }
    stage->rows = MEM_NEW_ARRAY(kbatch_row_t, rows);
    stage->tables = MEM_NEW_ARRAY(kbatch_table_t, STEP_ENTRIES_MAX);
    stage->calls = MEM_NEW_ARRAY(stage_call_t, 2 * (size_t)stage->config.layer_count + 1);
    return stage->ops->batch_new(stage->device, stage->rows_max, stage->blocks_max, &stage->batch);
}

status_t stage_open(const rank_config_t *config, const model_t *model, stage_t **own_out)
{
    stage_t *stage = MEM_NEW(stage_t);
    stage->config = *config;
    stage->ops = kernels_cpu();
    stage->model = model;
    stage->shape = model_config(model);
    stage->first = config->stage == 0;
    stage->last = config->stage == config->stages - 1;
    stage->rows_max = config->prefill_tokens_max;
    stage->blocks_max = config->batch_max * kv_blocks_for(config->context_max);
    status_t status = plan_slice(stage->shape, config->tp, config->slice, &stage->slice);
    if (status == STATUS_OK) {
        cut_stage(stage);
        status = open_device(stage);
    }
    if (status == STATUS_OK)
        status = stage_load_weights(stage);
    if (status == STATUS_OK)
        status = open_kv(stage);
    if (status == STATUS_OK)
        status = open_scratch(stage);
    if (status != STATUS_OK) {
        stage_close(stage);
        return status;
    }
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
                            stage->attended,  stage->gate_up_out, stage->ffn_out, stage->partials,
                            stage->head_rows, stage->head_input,  stage->logits};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        ops->buffer_release(buffers[i]);
    if (stage->batch)
        ops->batch_release(stage->batch);
    if (stage->kv)
        ops->kv_close(stage->kv);
    if (stage->device)
        ops->device_close(stage->device);
    free(stage->rows);
    free(stage->tables);
    free(stage->calls);
    free(stage);
}
