/* See exact_layer.h: DeepSeek V4's compressed attention and its hyper-connections in F64. The
 * feed-forward part adds nothing, but its streams are mixed all the same. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "exact_layer.h"

#define A "layers.%u.attn."
#define MARGIN 1e-4 /* of the highest score */
enum { STREAMS_MAX = 8 };

typedef struct {
    uint32_t n;
    double post[STREAMS_MAX], comb[STREAMS_MAX][STREAMS_MAX];
} mixture_t;

typedef struct {
    exact_tensor_t kv, gate, position, norm;
    uint32_t dim, rate;
    double *entries; /* [entries][dim] */
} compressor_t;

typedef struct {
    uint32_t n_streams, dim, turning, window, rate, groups, top_k, index_heads, index_dim;
    exact_rope_t rope;
    exact_tensor_t norm, q_a, q_norm, q_b, kv, kv_norm, sink, o_a, o_b, index_q, index_weights;
    compressor_t main, index;
    bool indexed;
    double *normed, *keys;
} compressed_t;

/* --- hyper-connections --- */

static void divide(mixture_t *m, bool rows, double eps)
{
    for (uint32_t i = 0; i < m->n; i++) {
        double sum = eps;
        for (uint32_t j = 0; j < m->n; j++)
            sum += rows ? m->comb[i][j] : m->comb[j][i];
        for (uint32_t j = 0; j < m->n; j++)
            *(rows ? &m->comb[i][j] : &m->comb[j][i]) /= sum;
    }
}

/* The mixture of a row of streams, and their sum that the block reads. */
static void mix(exact_model_t *model, const exact_tensor_t part[3], const double *streams,
                mixture_t *m, double *in)
{
    const exact_tensor_t *fn = &part[0], *base = &part[1], *scale = &part[2];
    double eps = exact_number(model->config, "hc_eps", 1e-6), flat[STREAMS_MAX * 128], z[80];
    uint32_t n = m->n, hidden = model->hidden;
    assert_true(n <= STREAMS_MAX && n * hidden <= STREAMS_MAX * 128 && fn->rows == n * (n + 2));
    exact_norm(streams, NULL, 0, n * hidden, model->eps, flat);
    exact_multiply(fn, flat, z);
    for (uint32_t i = 0; i < fn->rows; i++)
        z[i] = z[i] * scale->at[i < n ? 0 : i < 2 * n ? 1 : 2] + base->at[i];
    memset(in, 0, hidden * sizeof *in);
    for (uint32_t i = 0; i < n; i++) {
        double pre = 1 / (1 + exp(-z[i])) + eps;
        for (uint32_t d = 0; d < hidden; d++)
            in[d] += pre * streams[i * hidden + d];
        m->post[i] = 2 / (1 + exp(-z[n + i]));
        memcpy(m->comb[i], z + (2 + i) * n, n * sizeof *z);
        exact_softmax(m->comb[i], n, -INFINITY);
        for (uint32_t j = 0; j < n; j++)
            m->comb[i][j] += eps;
    }
    divide(m, false, eps);
    for (uint32_t round = 1; round < exact_count(model, "hc_sinkhorn_iters"); round++) {
        divide(m, true, eps);
        divide(m, false, eps);
    }
}

static void spread(const mixture_t *m, uint32_t hidden, const double *streams, const double *y,
                   double *out)
{
    for (uint32_t i = 0; i < m->n; i++)
        for (uint32_t d = 0; d < hidden; d++) {
            double sum = y == NULL ? 0 : m->post[i] * y[d];
            for (uint32_t j = 0; j < m->n; j++)
                sum += m->comb[j][i] * streams[j * hidden + d];
            out[i * hidden + d] = sum;
        }
}

static void find_mixture(exact_model_t *model, uint32_t layer, bool ffn, exact_tensor_t part[3])
{
    static const char *const names[2][3] = {
        {"layers.%u.hc_attn_fn", "layers.%u.hc_attn_base", "layers.%u.hc_attn_scale"},
        {"layers.%u.hc_ffn_fn", "layers.%u.hc_ffn_base", "layers.%u.hc_ffn_scale"}};
    for (int i = 0; i < 3; i++)
        part[i] = exact_tensor(model, names[ffn][i], layer);
}

/* --- entries --- */

static void describe_compressor(exact_model_t *model, uint32_t layer, bool index, uint32_t dim,
                                uint32_t rate, compressor_t *c)
{
    static const char *const names[2][4] = {
        {A "compressor.wkv.weight", A "compressor.wgate.weight", A "compressor.ape",
         A "compressor.norm.weight"},
        {A "indexer.compressor.wkv.weight", A "indexer.compressor.wgate.weight",
         A "indexer.compressor.ape", A "indexer.compressor.norm.weight"}};
    exact_tensor_t *to[4] = {&c->kv, &c->gate, &c->position, &c->norm};
    for (int i = 0; i < 4; i++)
        *to[i] = exact_tensor(model, names[index][i], layer);
    c->dim = dim;
    c->rate = rate;
}

/* One value of an entry: its slots' kv by the softmax of their gates. Overlapping entries take the
 * first halves of the window before as well. */
static double blend(const compressor_t *c, const double *kv, const double *gate, uint32_t entry,
                    uint32_t d)
{
    uint32_t width = c->kv.rows, n = 0;
    bool overlap = width == 2 * c->dim;
    double weights[512], values[512], sum = 0;
    assert_true(2 * c->rate <= 512);
    for (uint32_t part = overlap && entry > 0 ? 0 : 1; part < 2; part++)
        for (uint32_t i = 0; i < c->rate; i++) {
            size_t t = (size_t)(entry + part - 1) * c->rate + i;
            uint32_t column = overlap ? part * c->dim + d : d;
            weights[n] = gate[t * width + column] + c->position.at[i * width + column];
            values[n++] = kv[t * width + column];
        }
    exact_softmax(weights, n, -INFINITY);
    for (uint32_t i = 0; i < n; i++)
        sum += weights[i] * values[i];
    return sum;
}

static void make_entries(exact_model_t *model, const compressed_t *v, compressor_t *c,
                         const exact_rope_t *rope, uint32_t n)
{
    uint32_t width = c->kv.rows, n_entries = n / c->rate;
    double *kv = exact_new(model, (uint64_t)n * width);
    double *gate = exact_new(model, (uint64_t)n * width);
    c->entries = exact_new(model, (uint64_t)n_entries * c->dim);
    for (uint32_t t = 0; t < n; t++) {
        exact_multiply(&c->kv, v->normed + (size_t)t * model->hidden, kv + (size_t)t * width);
        exact_multiply(&c->gate, v->normed + (size_t)t * model->hidden, gate + (size_t)t * width);
    }
    for (uint32_t e = 0; e < n_entries; e++) {
        double *entry = c->entries + (size_t)e * c->dim;
        for (uint32_t d = 0; d < c->dim; d++)
            entry[d] = blend(c, kv, gate, e, d);
        exact_norm(entry, c->norm.at, 0, c->dim, model->eps, entry);
        exact_turn(rope, (double)e * c->rate, false, entry + c->dim - v->turning);
    }
}

/* --- the layer --- */

/* The rate of a layer: "compress_ratios" names the kind, "compress_rates" may say another rate. */
static void describe_rate(exact_model_t *model, uint32_t layer, compressed_t *v)
{
    const json_t *rates = json_object_get(model->config, "compress_rates");
    uint32_t ratio = (uint32_t)json_integer_value(
        json_array_get(json_object_get(model->config, "compress_ratios"), layer));
    v->indexed = ratio == 4;
    v->rate = ratio == 0 ? 0
              : (uint32_t)exact_number(rates, v->indexed ? "compressed_sparse_attention"
                                                         : "heavily_compressed_attention", ratio);
}

static void describe(exact_model_t *model, uint32_t layer, compressed_t *v)
{
    const json_t *config = model->config;
    *v = (compressed_t){.n_streams = exact_count(model, "hc_mult"),
                        .dim = exact_count(model, "head_dim"),
                        .turning = exact_count(model, "qk_rope_head_dim"),
                        .window = exact_count(model, "sliding_window"),
                        .groups = exact_count(model, "o_groups")};
    describe_rate(model, layer, v);
    v->norm = exact_tensor(model, "layers.%u.attn_norm.weight", layer);
    v->q_a = exact_tensor(model, A "wq_a.weight", layer);
    v->q_norm = exact_tensor(model, A "q_norm.weight", layer);
    v->q_b = exact_tensor(model, A "wq_b.weight", layer);
    v->kv = exact_tensor(model, A "wkv.weight", layer);
    v->kv_norm = exact_tensor(model, A "norm.weight", layer);
    v->sink = exact_tensor(model, A "attn_sink", layer);
    v->o_a = exact_tensor(model, A "wo_a.weight", layer);
    v->o_b = exact_tensor(model, A "wo_b.weight", layer);
    bool plain = v->rate == 0;
    double base = exact_number(config, plain ? "rope_theta" : "compress_rope_theta", 0);
    v->rope = exact_rope(base, v->turning, false,
                         plain ? NULL : json_object_get(config, "rope_scaling"), false);
    if (plain)
        return;
    describe_compressor(model, layer, false, v->dim, v->rate, &v->main);
    if (!v->indexed)
        return;
    v->index_heads = exact_count(model, "index_n_heads");
    v->index_dim = exact_count(model, "index_head_dim");
    v->top_k = exact_count(model, "index_topk");
    v->index_q = exact_tensor(model, A "indexer.wq_b.weight", layer);
    v->index_weights = exact_tensor(model, A "indexer.weights_proj.weight", layer);
    describe_compressor(model, layer, true, v->index_dim, v->rate, &v->index);
}

static uint32_t choose(exact_model_t *model, const compressed_t *v, uint32_t row,
                       const double *q_rank, double *scores, uint32_t *out, bool *close)
{
    uint32_t n = v->rate == 0 ? 0 : (row + 1) / v->rate;
    for (uint32_t e = 0; e < n; e++)
        out[e] = e;
    if (!v->indexed || n <= v->top_k)
        return n;
    double *q = exact_new(model, v->index_q.rows), *w = exact_new(model, v->index_heads);
    exact_multiply(&v->index_q, q_rank, q);
    exact_multiply(&v->index_weights, v->normed + (size_t)row * model->hidden, w);
    for (uint32_t h = 0; h < v->index_heads; h++)
        exact_turn(&v->rope, row, false, q + (h + 1) * v->index_dim - v->turning);
    for (uint32_t e = 0; e < n; e++) {
        scores[e] = 0;
        for (uint32_t h = 0; h < v->index_heads; h++) {
            double dot = 0;
            for (uint32_t d = 0; d < v->index_dim; d++)
                dot += q[h * v->index_dim + d] * v->index.entries[(size_t)e * v->index_dim + d];
            scores[e] += w[h] / sqrt(v->index_heads) * fmax(0, dot / sqrt(v->index_dim));
        }
    }
    *close = !exact_best(scores, n, v->top_k, MARGIN, out);
    return v->top_k;
}

/* The window's keys and the chosen entries in one softmax; keys are values; turned back. */
static void attend(const exact_model_t *model, const compressed_t *v, uint32_t row, const double *q,
                   const uint32_t *seen, uint32_t n_seen, double *scores, double *out)
{
    uint32_t first = row + 1 > v->window ? row + 1 - v->window : 0, n_window = row + 1 - first;
    for (uint32_t h = 0; h < model->n_heads; h++) {
        double *found = out + h * v->dim;
        for (uint32_t i = 0; i < n_window + n_seen; i++) {
            const double *key = i < n_window ? v->keys + (size_t)(first + i) * v->dim
                                : v->main.entries + (size_t)seen[i - n_window] * v->dim;
            scores[i] = 0;
            for (uint32_t d = 0; d < v->dim; d++)
                scores[i] += q[h * v->dim + d] * key[d] / sqrt(v->dim);
        }
        exact_softmax(scores, n_window + n_seen, v->sink.at[h]);
        memset(found, 0, v->dim * sizeof *found);
        for (uint32_t i = 0; i < n_window + n_seen; i++) {
            const double *key = i < n_window ? v->keys + (size_t)(first + i) * v->dim
                                : v->main.entries + (size_t)seen[i - n_window] * v->dim;
            for (uint32_t d = 0; d < v->dim; d++)
                found[d] += scores[i] * key[d];
        }
        exact_turn(&v->rope, row, true, found + v->dim - v->turning);
    }
}

/* Each group of heads has a part of o_a of its own. */
static void project_out(exact_model_t *model, const compressed_t *v, const double *found, double *y)
{
    uint32_t rank = v->o_a.rows / v->groups, in = v->o_a.columns;
    double *grouped = exact_new(model, v->o_a.rows);
    for (uint32_t g = 0; g < v->groups; g++) {
        exact_tensor_t part = {v->o_a.at + (size_t)g * rank * in, rank, in};
        exact_multiply(&part, found + (size_t)g * in, grouped + g * rank);
    }
    exact_multiply(&v->o_b, grouped, y);
}

static void make_keys(exact_model_t *model, compressed_t *v, const exact_tensor_t part[3],
                      const exact_call_t *call)
{
    double *streams = exact_new(model, call->width), *in = exact_new(model, model->hidden);
    mixture_t m = {.n = v->n_streams};
    v->normed = exact_new(model, (uint64_t)call->n * model->hidden);
    v->keys = exact_new(model, (uint64_t)call->n * v->dim);
    for (uint32_t t = 0; t < call->n; t++) {
        double *normed = v->normed + (size_t)t * model->hidden, *key = v->keys + (size_t)t * v->dim;
        for (uint32_t i = 0; i < call->width; i++)
            streams[i] = (double)call->in[(size_t)t * call->width + i];
        mix(model, part, streams, &m, in);
        exact_norm(in, v->norm.at, 0, model->hidden, model->eps, normed);
        exact_multiply(&v->kv, normed, key);
        exact_norm(key, v->kv_norm.at, 0, v->dim, model->eps, key);
        exact_turn(&v->rope, t, false, key + v->dim - v->turning);
    }
    if (v->rate > 0)
        make_entries(model, v, &v->main, &v->rope, call->n);
    if (v->indexed)
        make_entries(model, v, &v->index, &v->rope, call->n);
}

static void check_row(exact_model_t *model, const compressed_t *v, const exact_tensor_t parts[2][3],
                      const exact_call_t *call, uint32_t r, uint32_t *seen, double *scores)
{
    uint32_t row = call->rows[r], hidden = model->hidden;
    const double *normed = v->normed + (size_t)row * hidden;
    double *q_rank = exact_new(model, v->q_a.rows), *q = exact_new(model, v->q_b.rows);
    double *found = exact_new(model, v->q_b.rows), *y = exact_new(model, hidden);
    double *streams = exact_new(model, call->width), *between = exact_new(model, call->width);
    mixture_t m = {.n = v->n_streams};
    exact_multiply(&v->q_a, normed, q_rank);
    exact_norm(q_rank, v->q_norm.at, 0, v->q_a.rows, model->eps, q_rank);
    exact_multiply(&v->q_b, q_rank, q);
    for (uint32_t h = 0; h < model->n_heads; h++) {
        exact_norm(q + h * v->dim, NULL, 0, v->dim, model->eps, q + h * v->dim);
        exact_turn(&v->rope, row, false, q + (h + 1) * v->dim - v->turning);
    }
    uint32_t n = choose(model, v, row, q_rank, scores, seen, &call->close[r]);
    attend(model, v, row, q, seen, n, scores, found);
    project_out(model, v, found, y);
    for (uint32_t i = 0; i < call->width; i++)
        streams[i] = (double)call->in[(size_t)row * call->width + i];
    mix(model, parts[0], streams, &m, found);
    spread(&m, hidden, streams, y, between);
    mix(model, parts[1], between, &m, found);
    spread(&m, hidden, between, NULL, call->out + (size_t)r * call->width);
}

void exact_compressed(exact_model_t *model, uint32_t layer, const exact_call_t *call)
{
    compressed_t v;
    exact_tensor_t parts[2][3];
    describe(model, layer, &v);
    find_mixture(model, layer, false, parts[0]);
    find_mixture(model, layer, true, parts[1]);
    assert_int_equal(call->width, v.n_streams * model->hidden);
    make_keys(model, &v, parts[0], call);
    uint32_t *seen = calloc(call->n, sizeof *seen), kept = model->n_kept;
    double *scores = calloc(call->n + v.window, sizeof *scores);
    assert_true(seen != NULL && scores != NULL);
    for (uint32_t r = 0; r < call->n_rows; r++) {
        check_row(model, &v, parts, call, r, seen, scores);
        while (model->n_kept > kept)
            free(model->kept[--model->n_kept]);
    }
    free(scores);
    free(seen);
    exact_forget(model);
}
