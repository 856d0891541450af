/* What a step multiplies, reads and sends. See roofline.h. */
#include "common/model/roofline.h"

#include <math.h>

#include "common/model/kv_type.h"

double roofline_experts_touched(uint32_t n, uint32_t used, uint32_t rows)
{
    if (n == 0)
        return 0;
    return n * (1 - pow(1 - (double)used / n, rows));
}

static double at_most(double value, double limit)
{
    return value < limit ? value : limit;
}

static double window_of(const model_layer_t *kind, double context)
{
    return kind->window != 0 ? at_most(context, kind->window) : context;
}

double roofline_kv_read_bytes(const model_config_t *config, const plan_slice_t *slice,
                              uint32_t layer, double context, uint32_t element)
{
    const model_layer_t *kind = &config->layers[layer];
    double seen = window_of(kind, context), dim = config->head_dim, values = 0;
    double index = kind->indexed ? config->index.head_dim : 0;
    if (slice->heads.count == 0)
        return 0;
    switch ((model_attention_kind_t)kind->attention) {
    case MODEL_ATTENTION_GROUPED: values = 2 * seen * slice->kv_heads.count * dim; break;
    case MODEL_ATTENTION_LATENT: {
        double chosen = kind->indexed ? at_most(seen, config->index.top_k) : seen;
        values = chosen * (config->latent.kv_rank + config->latent.rope_dim) + seen * index;
        break;
    }
    case MODEL_ATTENTION_COMPRESSED: {
        double entries = kind->rate > 0 ? context / kind->rate : 0;
        double chosen = kind->indexed ? at_most(entries, config->index.top_k) : entries;
        values = (seen + chosen) * dim + entries * index;
        break;
    }
    }
    return values * element;
}

double roofline_attention_flops(const model_config_t *config, const plan_slice_t *slice,
                                uint32_t layer, double context)
{
    const model_layer_t *kind = &config->layers[layer];
    double seen = window_of(kind, context), heads = slice->heads.count, index = 0;
    if (slice->heads.count == 0)
        return 0;
    if (kind->indexed) /* every rank scores all keys with all index heads */
        index = 2.0 * config->index.n_heads * config->index.head_dim;
    switch ((model_attention_kind_t)kind->attention) {
    case MODEL_ATTENTION_GROUPED: return 4 * heads * config->head_dim * seen;
    case MODEL_ATTENTION_LATENT: {
        double chosen = kind->indexed ? at_most(seen, config->index.top_k) : seen;
        double key = config->latent.kv_rank + config->latent.rope_dim;
        return 2 * heads * (key + config->latent.kv_rank) * chosen + index * seen;
    }
    case MODEL_ATTENTION_COMPRESSED: {
        double entries = kind->rate > 0 ? context / kind->rate : 0;
        double chosen = kind->indexed ? at_most(entries, config->index.top_k) : entries;
        return 4 * heads * config->head_dim * (seen + chosen) + index * entries;
    }
    }
    return 0;
}

/* Adds weights of which this rank multiplies part/of for each of `rows`, and of which it reads the
 * share `read`. */
static void add_weights(double values, double bytes, double part, double of, double rows,
                        double read, roofline_work_t *work)
{
    if (of == 0)
        return;
    work->flops += 2 * rows * values * part / of;
    work->weight_bytes += read * bytes * part / of;
}

static void add_experts(const plan_sizes_t *sizes, const plan_slice_t *slice, double rows,
                        roofline_work_t *work)
{
    const model_experts_t *experts = &sizes->config.experts;
    double part = (double)slice->experts.count * slice->expert_ffn.count;
    double of = (double)experts->n * experts->ffn;
    double touched = roofline_experts_touched(experts->n, experts->n_used, (uint32_t)rows);
    /* Of all experts a token multiplies n_used of n. */
    add_weights((double)sizes->expert_values, 0, part, of, rows * experts->n_used / experts->n, 0,
                work);
    add_weights(0, (double)sizes->expert_bytes, part, of, 0, touched / experts->n, work);
    add_weights((double)sizes->shared_values, (double)sizes->shared_bytes, slice->shared_ffn.count,
                experts->shared_ffn, rows, 1, work);
}

uint32_t roofline_rows_of_replica(const plan_shape_t *shape, const roofline_step_t *step,
                                  uint32_t n)
{
    uint32_t replicas = shape->attention_replicas ? shape->attention_replicas : 1;
    uint32_t sequences = (step->sequences + replicas - 1) / replicas;
    return step->sequences > 0 ? (uint32_t)((uint64_t)n * sequences / step->sequences) : n;
}

void roofline_work(const plan_sizes_t *sizes, const plan_shape_t *shape, const plan_run_t *layers,
                   uint32_t stage, uint32_t slice_index, const plan_slice_t *slice,
                   const roofline_step_t *step, roofline_work_t *out)
{
    const model_config_t *config = &sizes->config;
    uint32_t element = shape->activations_f32 ? 4 : shape->kv_codes ? 1 : 2;
    double scales = shape->kv_codes ? 1 + KV_TYPE_SCALE_BYTES / (double)config->head_dim : 1;
    double rows = step->rows, heads = slice->heads.count, n_heads = config->n_heads;
    double own = roofline_rows_of_replica(shape, step, step->rows); /* with attention here */
    double sequences = roofline_rows_of_replica(shape, step, step->sequences);
    roofline_work_t work = {0};
    for (uint32_t i = 0; i < layers[stage].count; i++) {
        uint32_t layer = layers[stage].first + i;
        add_weights((double)(sizes->norm_values - sizes->projection_values),
                    (double)(sizes->norm_bytes - sizes->projection_bytes), 1, 1, own, 1, &work);
        add_weights((double)sizes->projection_values, (double)sizes->projection_bytes, 1,
                    slice->projection_slices, own, 1, &work);
        add_weights((double)sizes->q_values, (double)sizes->q_bytes, heads, n_heads, own, 1,
                    &work);
        add_weights((double)sizes->kv_values, (double)sizes->kv_bytes, slice->kv_heads.count,
                    config->n_kv_heads, own, 1, &work);
        add_weights((double)sizes->output_values, (double)sizes->output_bytes, heads, n_heads,
                    own, 1, &work);
        if (config->layers[layer].ffn == MODEL_FFN_DENSE)
            add_weights((double)sizes->ffn_values, (double)sizes->ffn_bytes, slice->ffn.count,
                        config->ffn, rows, 1, &work);
        else
            add_experts(sizes, slice, rows, &work);
        work.flops += own * roofline_attention_flops(config, slice, layer, step->context);
        work.kv_bytes += scales * sequences *
                         roofline_kv_read_bytes(config, slice, layer, step->context, element);
    }
    if (stage == 0)
        work.weight_bytes += rows * (double)sizes->embedding_bytes / config->vocab;
    plan_run_t head = plan_head_run(config->vocab, shape->tp, shape->stages, shape->shared_head,
                                    stage, slice_index);
    add_weights((double)sizes->head_values, (double)sizes->head_bytes, head.count, config->vocab,
                step->logit_rows, 1, &work);
    *out = work;
}

double roofline_partial_bytes_attention(const model_config_t *config, const plan_slice_t *slice,
                                        uint32_t rows)
{
    plan_leaves_t leaves;
    plan_run_t nodes[PLAN_NODES_MAX];
    plan_leaf_edges_attention(config, &leaves);
    return 4.0 * rows * config->hidden * plan_run_nodes(leaves.n, slice->head_leaves, nodes);
}

double roofline_partial_bytes_ffn(const model_config_t *config, const plan_slice_t *slice,
                                  uint32_t layer, uint32_t rows)
{
    plan_leaves_t leaves;
    plan_run_t nodes[PLAN_NODES_MAX];
    if (config->layers[layer].ffn == MODEL_FFN_EXPERTS)
        return 8.0 * rows * config->hidden;
    plan_leaf_edges_ffn(config->ffn, &leaves);
    return 4.0 * rows * config->hidden * plan_run_nodes(leaves.n, slice->ffn_leaves, nodes);
}

double roofline_projection_bytes(const model_config_t *config, const plan_slice_t *slice,
                                 uint32_t layer, bool second, uint32_t rows)
{
    if (slice->projection_slices < 2)
        return 0;
    return 4.0 * rows * plan_projection_columns(config, layer, second) / slice->projection_slices;
}
