/* See exact_layer.h: attention of grouped heads in F64. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "exact_layer.h"

#define A "model.layers.%u.self_attn."

typedef struct {
    uint32_t dim, n_kv, window; /* window 0: none */
    double scale, softcap, plus;
    exact_rope_t rope;
    exact_tensor_t q, k, v, o, norm, q_norm, k_norm, post_norm, sinks;
    exact_tensor_t q_bias, k_bias, v_bias, o_bias;
    bool head_norms, post, biases, biased_out, has_sinks;
} grouped_t;

static bool is(const exact_model_t *model, const char *type)
{
    return strcmp(json_string_value(json_object_get(model->config, "model_type")), type) == 0;
}

/* Which layers see a window: all, those that are named, every second, or all but every n-th. */
static uint32_t window_of(const exact_model_t *model, uint32_t layer)
{
    uint32_t window = (uint32_t)exact_number(model->config, "sliding_window", 0);
    if (json_is_false(json_object_get(model->config, "use_sliding_window")))
        return 0;
    const json_t *types = json_object_get(model->config, "layer_types");
    if (types != NULL)
        return strcmp(json_string_value(json_array_get(types, layer)), "sliding_attention") == 0
                   ? window : 0;
    if (is(model, "gemma2"))
        return layer % 2 == 0 ? window : 0;
    if (is(model, "gemma3_text"))
        return (layer + 1) % exact_count(model, "sliding_window_pattern") != 0 ? window : 0;
    return window;
}

static void describe(exact_model_t *model, uint32_t layer, grouped_t *g)
{
    const json_t *config = model->config, *scaling = json_object_get(config, "rope_scaling");
    bool gemma = is(model, "gemma2") || is(model, "gemma3_text");
    double base = exact_number(config, "rope_theta", 10000);
    *g = (grouped_t){.n_kv = exact_count(model, "num_key_value_heads"), .plus = gemma ? 1 : 0};
    g->q = exact_tensor(model, A "q_proj.weight", layer);
    g->k = exact_tensor(model, A "k_proj.weight", layer);
    g->v = exact_tensor(model, A "v_proj.weight", layer);
    g->o = exact_tensor(model, A "o_proj.weight", layer);
    g->norm = exact_tensor(model, "model.layers.%u.input_layernorm.weight", layer);
    g->dim = g->q.rows / model->n_heads;
    g->head_norms = exact_find(model, A "q_norm.weight", layer, &g->q_norm) &&
                    exact_find(model, A "k_norm.weight", layer, &g->k_norm);
    g->post = gemma && exact_find(model, "model.layers.%u.post_attention_layernorm.weight", layer,
                                  &g->post_norm);
    g->biases = exact_find(model, A "q_proj.bias", layer, &g->q_bias) &&
                exact_find(model, A "k_proj.bias", layer, &g->k_bias) &&
                exact_find(model, A "v_proj.bias", layer, &g->v_bias);
    g->biased_out = exact_find(model, A "o_proj.bias", layer, &g->o_bias);
    g->has_sinks = exact_find(model, A "sinks", layer, &g->sinks);
    g->window = window_of(model, layer);
    g->softcap = exact_number(config, "attn_logit_softcapping", 0);
    g->scale = 1 / sqrt(exact_number(config, "query_pre_attn_scalar", g->dim));
    if (is(model, "gemma3_text") && g->window > 0) {
        base = exact_number(config, "rope_local_base_freq", 0);
        scaling = NULL;
    }
    g->rope = exact_rope(base, g->dim, true, scaling, true);
}

/* n_heads heads of x, with bias, norm and turn. */
static void project(const exact_model_t *model, const grouped_t *g, const exact_tensor_t *w,
                    const exact_tensor_t *bias, const exact_tensor_t *norm, const double *x,
                    double position, double *y)
{
    exact_multiply(w, x, y);
    for (uint32_t i = 0; g->biases && i < w->rows; i++)
        y[i] += bias->at[i];
    for (uint32_t h = 0; norm != NULL && h < w->rows / g->dim; h++) {
        if (g->head_norms)
            exact_norm(y + h * g->dim, norm->at, g->plus, g->dim, model->eps, y + h * g->dim);
        exact_turn(&g->rope, position, false, y + h * g->dim);
    }
}

static void attend(const exact_model_t *model, const grouped_t *g, const double *q, const double *k,
                   const double *v, uint32_t row, double *scores, double *out)
{
    uint32_t first = g->window > 0 && row + 1 > g->window ? row + 1 - g->window : 0;
    uint32_t ld = g->n_kv * g->dim;
    for (uint32_t h = 0; h < model->n_heads; h++) {
        uint32_t kv = h / (model->n_heads / g->n_kv) * g->dim, n = row + 1 - first;
        for (uint32_t t = 0; t < n; t++) {
            double dot = 0;
            for (uint32_t d = 0; d < g->dim; d++)
                dot += q[h * g->dim + d] * k[(size_t)(first + t) * ld + kv + d];
            dot *= g->scale;
            scores[t] = g->softcap > 0 ? g->softcap * tanh(dot / g->softcap) : dot;
        }
        exact_softmax(scores, n, g->has_sinks ? g->sinks.at[h] : -INFINITY);
        for (uint32_t d = 0; d < g->dim; d++) {
            double sum = 0;
            for (uint32_t t = 0; t < n; t++)
                sum += scores[t] * v[(size_t)(first + t) * ld + kv + d];
            out[h * g->dim + d] = sum;
        }
    }
}

void exact_grouped(exact_model_t *model, uint32_t layer, const exact_call_t *call)
{
    grouped_t g;
    describe(model, layer, &g);
    uint32_t ld = g.n_kv * g.dim, hidden = model->hidden;
    double *k = exact_new(model, (uint64_t)call->n * ld);
    double *v = exact_new(model, (uint64_t)call->n * ld);
    double *x = exact_new(model, hidden), *q = exact_new(model, g.q.rows);
    double *normed = exact_new(model, (uint64_t)call->n * hidden);
    double *scores = exact_new(model, call->n), *found = exact_new(model, g.q.rows);
    assert_int_equal(call->width, hidden);
    for (uint32_t t = 0; t < call->n; t++) {
        double *row = normed + (size_t)t * hidden;
        for (uint32_t i = 0; i < hidden; i++)
            x[i] = (double)call->in[(size_t)t * hidden + i];
        exact_norm(x, g.norm.at, g.plus, hidden, model->eps, row);
        project(model, &g, &g.k, &g.k_bias, &g.k_norm, row, t, k + (size_t)t * ld);
        project(model, &g, &g.v, &g.v_bias, NULL, row, t, v + (size_t)t * ld);
    }
    for (uint32_t r = 0; r < call->n_rows; r++) {
        uint32_t row = call->rows[r];
        double *out = call->out + (size_t)r * hidden;
        project(model, &g, &g.q, &g.q_bias, &g.q_norm, normed + (size_t)row * hidden, row, q);
        attend(model, &g, q, k, v, row, scores, found);
        exact_multiply(&g.o, found, out);
        for (uint32_t i = 0; g.biased_out && i < hidden; i++)
            out[i] += g.o_bias.at[i];
        if (g.post)
            exact_norm(out, g.post_norm.at, g.plus, hidden, model->eps, out);
        for (uint32_t i = 0; i < hidden; i++)
            out[i] += (double)call->in[(size_t)row * hidden + i];
    }
    exact_forget(model);
}
