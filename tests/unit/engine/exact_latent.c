/* See exact_layer.h: latent attention (DeepSeek V2, V3, V3.2) in F64. Keys and values are made of
 * the latent for every position and head, as the papers first write it; the engine absorbs them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "exact_layer.h"

#define A "model.layers.%u.self_attn."
#define INNER_EPS 1e-6 /* of the norms inside, whatever rms_norm_eps says */
#define MARGIN 1e-4    /* of the highest score; F32 errs by about 1e-6 of it */

typedef struct {
    uint32_t nope, turning, value, rank, top_k, index_heads, index_dim;
    double scale;
    exact_rope_t rope, index_rope;
    exact_tensor_t q_a, q_a_norm, q_b, kv_a, kv_a_norm, kv_b, o, norm;
    exact_tensor_t index_q, index_k, index_norm, index_norm_bias, index_weights;
    bool has_q_a, indexed;
    double *normed, *keys, *values, *index_keys; /* of every position */
} latent_t;

static void describe(exact_model_t *model, uint32_t layer, latent_t *l)
{
    const json_t *config = model->config, *scaling = json_object_get(config, "rope_scaling");
    double all = exact_number(scaling, "mscale_all_dim", 0);
    double base = exact_number(config, "rope_theta", 0);
    double factor = exact_number(scaling, "factor", 1);
    *l = (latent_t){.nope = exact_count(model, "qk_nope_head_dim"),
                    .turning = exact_count(model, "qk_rope_head_dim"),
                    .value = exact_count(model, "v_head_dim"),
                    .rank = exact_count(model, "kv_lora_rank")};
    l->has_q_a = exact_find(model, A "q_a_proj.weight", layer, &l->q_a);
    if (l->has_q_a)
        l->q_a_norm = exact_tensor(model, A "q_a_layernorm.weight", layer);
    l->q_b = exact_tensor(model, l->has_q_a ? A "q_b_proj.weight" : A "q_proj.weight", layer);
    l->kv_a = exact_tensor(model, A "kv_a_proj_with_mqa.weight", layer);
    l->kv_a_norm = exact_tensor(model, A "kv_a_layernorm.weight", layer);
    l->kv_b = exact_tensor(model, A "kv_b_proj.weight", layer);
    l->o = exact_tensor(model, A "o_proj.weight", layer);
    l->norm = exact_tensor(model, "model.layers.%u.input_layernorm.weight", layer);
    l->rope = exact_rope(base, l->turning, false, scaling, true);
    double mscale = all != 0 && factor > 1 ? 0.1 * all * log(factor) + 1 : 1;
    l->scale = mscale * mscale / sqrt(l->nope + l->turning);
    l->indexed = exact_find(model, A "indexer.wq_b.weight", layer, &l->index_q);
    if (!l->indexed)
        return;
    l->index_k = exact_tensor(model, A "indexer.wk.weight", layer);
    l->index_norm = exact_tensor(model, A "indexer.k_norm.weight", layer);
    l->index_norm_bias = exact_tensor(model, A "indexer.k_norm.bias", layer);
    l->index_weights = exact_tensor(model, A "indexer.weights_proj.weight", layer);
    l->index_heads = exact_count(model, "index_n_heads");
    l->index_dim = exact_count(model, "index_head_dim");
    l->top_k = exact_count(model, "index_topk");
    l->index_rope = exact_rope(base, l->turning, true, scaling, true);
}

static void layer_norm(const exact_tensor_t *weight, const exact_tensor_t *bias, double *x)
{
    double mean = 0, squares = 0;
    for (uint32_t i = 0; i < weight->columns; i++)
        mean += x[i] / weight->columns;
    for (uint32_t i = 0; i < weight->columns; i++)
        squares += (x[i] - mean) * (x[i] - mean) / weight->columns;
    for (uint32_t i = 0; i < weight->columns; i++)
        x[i] = (x[i] - mean) / sqrt(squares + INNER_EPS) * weight->at[i] + bias->at[i];
}

/* Keys [n][heads][nope + turning], values [n][heads][value] and the indexer's keys. */
static void make_keys(exact_model_t *model, latent_t *l, const exact_call_t *call)
{
    uint32_t hidden = model->hidden, dim = l->nope + l->turning, n_heads = model->n_heads;
    double *x = exact_new(model, hidden), *latent = exact_new(model, l->kv_a.rows);
    double *both = exact_new(model, l->kv_b.rows);
    l->normed = exact_new(model, (uint64_t)call->n * hidden);
    l->keys = exact_new(model, (uint64_t)call->n * n_heads * dim);
    l->values = exact_new(model, (uint64_t)call->n * n_heads * l->value);
    l->index_keys = exact_new(model, (uint64_t)call->n * (l->indexed ? l->index_dim : 1));
    for (uint32_t t = 0; t < call->n; t++) {
        double *normed = l->normed + (size_t)t * hidden;
        for (uint32_t i = 0; i < hidden; i++)
            x[i] = (double)call->in[(size_t)t * hidden + i];
        exact_norm(x, l->norm.at, 0, hidden, model->eps, normed);
        exact_multiply(&l->kv_a, normed, latent);
        exact_norm(latent, l->kv_a_norm.at, 0, l->rank, INNER_EPS, latent);
        exact_turn(&l->rope, t, false, latent + l->rank);
        exact_multiply(&l->kv_b, latent, both);
        for (uint32_t h = 0; h < n_heads; h++) {
            const double *from = both + h * (l->nope + l->value);
            double *key = l->keys + ((size_t)t * n_heads + h) * dim;
            memcpy(key, from, l->nope * sizeof *key);
            memcpy(key + l->nope, latent + l->rank, l->turning * sizeof *key);
            memcpy(l->values + ((size_t)t * n_heads + h) * l->value, from + l->nope,
                   l->value * sizeof *key);
        }
        if (l->indexed) {
            double *key = l->index_keys + (size_t)t * l->index_dim;
            exact_multiply(&l->index_k, normed, key);
            layer_norm(&l->index_norm, &l->index_norm_bias, key);
            exact_turn(&l->index_rope, t, false, key);
        }
    }
}

/* The positions that the row sees, ascending; all, unless an indexer chooses. */
static uint32_t choose(exact_model_t *model, const latent_t *l, uint32_t row, const double *q_rank,
                       double *scores, uint32_t *out, bool *close)
{
    if (!l->indexed || row + 1 <= l->top_k) {
        for (uint32_t t = 0; t <= row; t++)
            out[t] = t;
        return row + 1;
    }
    double *q = exact_new(model, l->index_q.rows), *w = exact_new(model, l->index_heads);
    exact_multiply(&l->index_q, q_rank, q);
    exact_multiply(&l->index_weights, l->normed + (size_t)row * model->hidden, w);
    for (uint32_t h = 0; h < l->index_heads; h++)
        exact_turn(&l->index_rope, row, false, q + h * l->index_dim);
    for (uint32_t t = 0; t <= row; t++) {
        scores[t] = 0;
        for (uint32_t h = 0; h < l->index_heads; h++) {
            double dot = 0;
            for (uint32_t d = 0; d < l->index_dim; d++)
                dot += q[h * l->index_dim + d] * l->index_keys[(size_t)t * l->index_dim + d];
            scores[t] += w[h] / sqrt(l->index_heads) * fmax(0, dot / sqrt(l->index_dim));
        }
    }
    *close = !exact_best(scores, row + 1, l->top_k, MARGIN, out);
    return l->top_k;
}

static void attend(const exact_model_t *model, const latent_t *l, const double *q,
                   const uint32_t *seen, uint32_t n, double *scores, double *out)
{
    uint32_t dim = l->nope + l->turning, n_heads = model->n_heads;
    for (uint32_t h = 0; h < n_heads; h++) {
        for (uint32_t i = 0; i < n; i++) {
            const double *key = l->keys + ((size_t)seen[i] * n_heads + h) * dim;
            scores[i] = 0;
            for (uint32_t d = 0; d < dim; d++)
                scores[i] += q[h * dim + d] * key[d] * l->scale;
        }
        exact_softmax(scores, n, -INFINITY);
        for (uint32_t d = 0; d < l->value; d++) {
            double sum = 0;
            for (uint32_t i = 0; i < n; i++)
                sum += scores[i] * l->values[((size_t)seen[i] * n_heads + h) * l->value + d];
            out[h * l->value + d] = sum;
        }
    }
}

void exact_latent(exact_model_t *model, uint32_t layer, const exact_call_t *call)
{
    latent_t l;
    describe(model, layer, &l);
    make_keys(model, &l, call);
    uint32_t hidden = model->hidden, dim = l.nope + l.turning;
    double *scores = exact_new(model, call->n), *q = exact_new(model, l.q_b.rows);
    double *q_rank = exact_new(model, l.has_q_a ? l.q_a.rows : 1);
    double *found = exact_new(model, model->n_heads * l.value);
    uint32_t *seen = calloc(call->n, sizeof *seen), kept = model->n_kept;
    assert_int_equal(call->width, hidden);
    for (uint32_t r = 0; r < call->n_rows; r++) {
        uint32_t row = call->rows[r];
        const double *normed = l.normed + (size_t)row * hidden;
        double *out = call->out + (size_t)r * hidden;
        if (l.has_q_a) {
            exact_multiply(&l.q_a, normed, q_rank);
            exact_norm(q_rank, l.q_a_norm.at, 0, l.q_a.rows, INNER_EPS, q_rank);
        }
        exact_multiply(&l.q_b, l.has_q_a ? q_rank : normed, q);
        for (uint32_t h = 0; h < model->n_heads; h++)
            exact_turn(&l.rope, row, false, q + h * dim + l.nope);
        uint32_t n = choose(model, &l, row, q_rank, scores, seen, &call->close[r]);
        attend(model, &l, q, seen, n, scores, found);
        exact_multiply(&l.o, found, out);
        for (uint32_t i = 0; i < hidden; i++)
            out[i] += (double)call->in[(size_t)row * hidden + i];
        while (model->n_kept > kept)
            free(model->kept[--model->n_kept]);
    }
    free(seen);
    exact_forget(model);
}
