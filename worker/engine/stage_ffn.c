/* Feed-forward blocks: dense ones, cut by leaves of down; and experts, whose sums are exact
 * integers, so that any rank may hold any part of any expert. */
#include "worker/engine/stage.h"

/* From the rows of a part to the input of down, in stage->middle. */
static status_t gate_and_up(stage_t *stage, const stage_layer_t *layer, const stage_part_t *part)
{
    kgate_up_t what = {
        .gate_up = layer->gate_up,
        .bias = stage_at(layer->gate_up_bias, 0),
        .activate = stage->activate,
        .down = layer->down,
    };
    TRY(stage_normed_input(stage, part, &layer->ffn_mix, layer->ffn_norm, layer->gate_up));
    return stage->ops->fused->gate_up(stage->queue, part->batch, &what, stage_at(stage->input, 0),
                                      stage_at(stage->gate_up_out, 0), stage_at(stage->middle, 0));
}

/* What is between the norm and the sum treats each row for itself and is wide, so it goes by parts. */
status_t stage_dense(stage_t *stage, uint32_t index, stage_call_t *call)
{
    const stage_layer_t *layer = &stage->layers[index];
    stage_part_t part;
    if (layer->gate_up && layer->ffn_mix.fn)
        TRY(stage_begin(stage, &layer->ffn_mix, layer->ffn_norm));
    for (uint32_t i = 0; stage_part(stage, i, &part); i++) {
        TRY(stage_part_begin(stage, &part));
        if (layer->gate_up)
            TRY(gate_and_up(stage, layer, &part));
        TRY(stage_reduce_part(stage, &part, layer->down, stage_at(stage->middle, 0),
                              &stage->ffn_cut, layer->down_bias, &layer->ffn_mix,
                              layer->ffn_post_norm, call));
    }
    return stage_reduce_end(stage, &layer->ffn_mix, layer->ffn_post_norm);
}

static status_t route(stage_t *stage, const stage_layer_t *layer, uint32_t ld,
                      krouting_t *routing_out)
{
    const kernel_ops_t *ops = stage->ops;
    const model_experts_t *experts = &stage->shape->experts;
    kref_t logits = stage_at(stage->router_out, 0);
    TRY(stage_multiply(stage, layer->router, stage_at(stage->normed, 0), stage->shape->hidden,
                       logits));
    if (layer->router_bias)
        TRY(ops->bias_add(stage->queue, stage->batch, experts->n, logits, ld,
                          stage_at(layer->router_bias, 0)));
    static const kroute_score_t scores[] = {
        [MODEL_SCORE_SOFTMAX] = KROUTE_SOFTMAX,
        [MODEL_SCORE_SOFTMAX_CHOSEN] = KROUTE_SOFTMAX,
        [MODEL_SCORE_SIGMOID] = KROUTE_SIGMOID,
        [MODEL_SCORE_SQRT_SOFTPLUS] = KROUTE_SQRT_SOFTPLUS,
    };
    kroute_spec_t spec = {
        .n_experts = experts->n,
        .top_k = experts->n_used,
        .score = scores[experts->score],
        .softmax_after = experts->score == MODEL_SCORE_SOFTMAX_CHOSEN,
        .bias = stage_at(layer->router_correction, 0),
        .n_groups = experts->n_groups,
        .groups_kept = experts->groups_kept,
        .group_sum_top2 = experts->group_by_sum,
        .normalize = experts->normalized,
        .factor = experts->factor,
        .hash = stage_at(layer->router_table, 0),
        .n_hash_rows = layer->router_table ? stage->shape->vocab : 0,
    };
    *routing_out = (krouting_t){
        .ids = stage_at(stage->expert_ids, 0),
        .weights = stage_at(stage->expert_weights, 0),
        .top_k = experts->n_used,
    };
    return ops->route(stage->queue, stage->batch, &spec, logits, ld, routing_out->ids,
                      routing_out->weights);
}

status_t stage_experts(stage_t *stage, uint32_t index, stage_call_t *call)
{
    const kernel_ops_t *ops = stage->ops;
    const stage_layer_t *layer = &stage->layers[index];
    const model_config_t *shape = stage->shape;
    kref_t normed = stage_at(stage->normed, 0), sums = stage_own_sums(stage);
    bool gated = stage_router_has_gate(shape);
    uint32_t ld = shape->experts.n + (gated ? 1 : 0);
    krouting_t routing;
    TRY(stage_begin(stage, &layer->ffn_mix, layer->ffn_norm));
    TRY(route(stage, layer, ld, &routing));
    TRY(ops->integers_clear(stage->queue, stage->batch, shape->hidden, sums));
    if (layer->experts)
        TRY(ops->experts(stage->queue, stage->batch, layer->experts, &routing, normed,
                         shape->hidden, sums));
    if (layer->shared) {
        krouting_t all = {0};
        if (gated) {
            all.gate = stage_at(stage->router_out, shape->experts.n * sizeof(float));
            all.gate_ld = ld;
        }
        TRY(ops->expert_shared(stage->queue, stage->batch, layer->shared, &all, normed,
                               shape->hidden, sums));
    }
    return stage_reduce_integers(stage, &layer->ffn_mix, layer->ffn_post_norm, call);
}
