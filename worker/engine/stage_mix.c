/* Between the residual stream and a block. Ordinarily a block reads it normed and adds to it. With
 * hyper-connections it is several streams: learned weights, made from all of them for each token,
 * collapse them into the block's input, spread its output over them and mix them. */
#include "worker/engine/stage_pack.h"

static khyper_t describe(const stage_t *stage, const stage_mix_t *mix, bool head)
{
    const model_streams_t *streams = &stage->shape->streams;
    return (khyper_t){
        .n_streams = streams->n,
        .hidden = stage->shape->hidden,
        .iterations = streams->iterations,
        .eps = streams->eps,
        .base = stage_at(mix->base, 0),
        .scale = stage_at(mix->scale, 0),
        .head = head,
    };
}

/* stage->mixes from rows of streams, those of a step or of the head. */
static status_t make_mixes(stage_t *stage, const stage_mix_t *mix, kref_t streams)
{
    const kernel_ops_t *ops = stage->ops;
    uint32_t n = stage->residual_columns;
    kref_t flat = stage_at(stage->flat, 0), input = stage_at(stage->mix_input, 0);
    TRY(ops->rmsnorm(stage->queue, stage->step_batch, n, streams, stage_at(NULL, 0),
                     stage->shape->norm_eps, flat));
    TRY(ops->quantize(stage->queue, stage->step_batch, mix->fn, flat, n, input));
    return ops->matmul(stage->queue, stage->step_batch, mix->fn, input, stage_at(stage->mixes, 0));
}

status_t stage_begin(stage_t *stage, const stage_mix_t *mix, kbuffer_t *norm)
{
    const kernel_ops_t *ops = stage->ops;
    kref_t from = stage_at(stage->residual, 0);
    if (mix->fn) {
        khyper_t hyper = describe(stage, mix, false);
        TRY(make_mixes(stage, mix, from));
        /* Of all rows, whoever works on which: every slice keeps its streams. */
        TRY(ops->hyper_pre(stage->queue, stage->step_batch, &hyper, stage_at(stage->mixes, 0), from,
                           stage_at(stage->collapsed, 0), stage_at(stage->mix_weights, 0)));
        from = stage_at(stage->collapsed, 0);
    }
    if (stage->work_rows == 0)
        return STATUS_OK;
    from.offset += stage->work_first * (size_t)stage->shape->hidden * sizeof(float);
    return ops->rmsnorm(stage->queue, stage->batch, stage->shape->hidden, from, stage_at(norm, 0),
                        stage->shape->norm_eps, stage_at(stage->normed, 0));
}

status_t stage_end(stage_t *stage, const stage_mix_t *mix, kbuffer_t *post_norm)
{
    const kernel_ops_t *ops = stage->ops;
    uint32_t hidden = stage->shape->hidden;
    kref_t sum = stage_at(stage->normed, 0), residual = stage_at(stage->residual, 0);
    if (post_norm)
        TRY(ops->rmsnorm(stage->queue, stage->batch, hidden, sum, stage_at(post_norm, 0),
                         stage->shape->norm_eps, sum));
    if (!mix->fn)
        return ops->add(stage->queue, stage->batch, hidden, residual, sum, residual);
    khyper_t hyper = describe(stage, mix, false);
    return ops->hyper_post(stage->queue, stage->batch, &hyper, stage_at(stage->mix_weights, 0), sum,
                           residual);
}

status_t stage_spread(stage_t *stage)
{
    uint32_t hidden = stage->shape->hidden, n = stage->shape->streams.n;
    kheads_at_t to = {.ld = stage->residual_columns, .stride = hidden};
    for (uint32_t i = 0; i < n; i++) {
        to.first = i * hidden;
        TRY(stage->ops->copy_heads(stage->queue, stage->batch, 1, hidden,
                                   stage_at(stage->normed, 0),
                                   (kheads_at_t){.ld = hidden, .stride = hidden},
                                   stage_at(stage->residual, 0), to));
    }
    return STATUS_OK;
}

status_t stage_collapse_head(stage_t *stage)
{
    kref_t rows = stage_at(stage->head_rows, 0);
    khyper_t hyper = describe(stage, &stage->head_mix, true);
    TRY(make_mixes(stage, &stage->head_mix, rows));
    return stage->ops->hyper_pre(stage->queue, stage->batch, &hyper, stage_at(stage->mixes, 0),
                                 rows, stage_at(stage->collapsed, 0),
                                 stage_at(stage->mix_weights, 0));
}

/* The roles of base and scale follow that of fn. */
status_t stage_load_mix(stage_t *stage, uint32_t layer, model_role_t fn, stage_mix_t *out)
{
    const model_tensor_t *weight = model_tensor(stage->model, fn, layer);
    if (weight == NULL)
        return STATUS_OK;
    TRY(stage_pack_f32(stage, &weight, 1, &out->fn));
    TRY(stage_pack_bias(stage, model_tensor(stage->model, fn + 1, layer), &out->base));
    return stage_pack_bias(stage, model_tensor(stage->model, fn + 2, layer), &out->scale);
}

void stage_release_mix(stage_t *stage, stage_mix_t *mix)
{
    if (mix->fn)
        stage->ops->weight_release(mix->fn);
    stage->ops->buffer_release(mix->base);
    stage->ops->buffer_release(mix->scale);
}
