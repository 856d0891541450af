/* See exact_layer.h: reading, norms, turns and choices. */
#include "exact_layer.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/qtype.h"

void exact_open(const char *path, exact_model_t *out)
{
    *out = (exact_model_t){0};
    assert_int_equal(source_open(path, &out->source), STATUS_OK);
    out->config = source_config(out->source);
    assert_non_null(out->config);
    out->hidden = exact_count(out, "hidden_size");
    out->n_heads = exact_count(out, "num_attention_heads");
    out->eps = exact_number(out->config, "rms_norm_eps", 0);
    assert_true(out->eps > 0);
}

void exact_close(exact_model_t *model)
{
    exact_forget(model);
    source_close(model->source);
}

void exact_forget(exact_model_t *model)
{
    while (model->n_kept > 0)
        free(model->kept[--model->n_kept]);
}

double *exact_new(exact_model_t *model, uint64_t n)
{
    assert_true(model->n_kept < EXACT_TENSORS_MAX);
    double *values = calloc(n, sizeof *values);
    assert_non_null(values);
    return model->kept[model->n_kept++] = values;
}

bool exact_find(exact_model_t *model, const char *format, uint32_t layer, exact_tensor_t *out)
{
    char name[128];
    const char *rest = strstr(format, "%u");
    assert_non_null(rest);
    snprintf(name, sizeof name, "%.*s%u%s", (int)(rest - format), format, layer, rest + 2);
    const source_tensor_t *tensor = source_tensor(model->source, name);
    if (tensor == NULL)
        return false;
    uint32_t rows = (uint32_t)tensor->rows, columns = (uint32_t)tensor->columns;
    double *values = exact_new(model, (uint64_t)rows * columns);
    uint8_t *raw = malloc(tensor->rows * tensor->row_bytes);
    float *row = malloc(columns * sizeof *row);
    assert_true(raw != NULL && row != NULL);
    assert_int_equal(source_read_rows(tensor, 0, rows, raw), STATUS_OK);
    for (uint32_t r = 0; r < rows; r++) {
        qtype_dequantize_row(tensor->type, raw + r * tensor->row_bytes, columns, row);
        for (uint32_t c = 0; c < columns; c++)
            values[(size_t)r * columns + c] = (double)row[c];
    }
    free(raw);
    free(row);
    *out = (exact_tensor_t){values, rows, columns};
    return true;
}

exact_tensor_t exact_tensor(exact_model_t *model, const char *format, uint32_t layer)
{
    exact_tensor_t tensor;
    if (!exact_find(model, format, layer, &tensor))
        fail_msg("no tensor %s of layer %u", format, layer);
    return tensor;
}

double exact_number(const json_t *object, const char *key, double otherwise)
{
    const json_t *value = json_object_get(object, key);
    return json_is_number(value) ? json_number_value(value) : otherwise;
}

uint32_t exact_count(const exact_model_t *model, const char *key)
{
    json_int_t value = json_integer_value(json_object_get(model->config, key));
    if (value < 1 || value > 1 << 20)
        fail_msg("config.json has no %s", key);
    return (uint32_t)value;
}

void exact_multiply(const exact_tensor_t *w, const double *x, double *y)
{
    for (uint32_t r = 0; r < w->rows; r++) {
        double sum = 0;
        for (uint32_t c = 0; c < w->columns; c++)
            sum += w->at[(size_t)r * w->columns + c] * x[c];
        y[r] = sum;
    }
}

void exact_norm(const double *x, const double *weight, double plus, uint32_t n, double eps,
                double *y)
{
    double squares = 0;
    for (uint32_t i = 0; i < n; i++)
        squares += x[i] * x[i];
    double r = 1 / sqrt(squares / n + eps);
    for (uint32_t i = 0; i < n; i++)
        y[i] = x[i] * r * (weight == NULL ? 1 : weight[i] + plus);
}

/* --- turns --- */

static double llama3_divisor(const json_t *scaling, double frequency, double factor)
{
    double low = exact_number(scaling, "low_freq_factor", 1);
    double high = exact_number(scaling, "high_freq_factor", 4);
    double original = exact_number(scaling, "original_max_position_embeddings", 0);
    double waves = original * frequency / (2 * M_PI), smooth = (waves - low) / (high - low);
    smooth = fmin(fmax(smooth, 0), 1);
    return 1 / ((1 - smooth) / factor + smooth);
}

static double yarn_divisor(const json_t *scaling, double base, uint32_t dim, uint32_t pair,
                           double factor)
{
    double original = exact_number(scaling, "original_max_position_embeddings", 0), edge[2];
    const double beta[2] = {exact_number(scaling, "beta_fast", 32),
                            exact_number(scaling, "beta_slow", 1)};
    for (int i = 0; i < 2; i++)
        edge[i] = dim * log(original / (beta[i] * 2 * M_PI)) / (2 * log(base));
    if (!json_is_false(json_object_get(scaling, "truncate"))) {
        edge[0] = floor(edge[0]);
        edge[1] = ceil(edge[1]);
    }
    edge[0] = fmax(edge[0], 0);
    edge[1] = fmin(edge[1], dim - 1.0);
    double width = edge[0] < edge[1] ? edge[1] - edge[0] : 0.001;
    double ramp = fmin(fmax((pair - edge[0]) / width, 0), 1);
    return 1 / (ramp / factor + (1 - ramp));
}

static double yarn_part(double factor, double mscale)
{
    return factor > 1 ? 0.1 * mscale * log(factor) + 1 : 1;
}

exact_rope_t exact_rope(double base, uint32_t dim, bool halves, const json_t *scaling,
                        bool with_magnitude)
{
    exact_rope_t rope = {.dim = dim, .halves = halves, .magnitude = 1};
    const char *type = json_string_value(json_object_get(scaling, "rope_type"));
    type = type ? type : json_string_value(json_object_get(scaling, "type"));
    double factor = exact_number(scaling, "factor", 1);
    bool yarn = type != NULL && strcmp(type, "yarn") == 0;
    assert_true(dim % 2 == 0 && dim / 2 <= EXACT_PAIRS_MAX);
    for (uint32_t i = 0; i < dim / 2; i++) {
        double frequency = pow(base, -2.0 * i / dim), divisor = 1;
        if (yarn)
            divisor = yarn_divisor(scaling, base, dim, i, factor);
        else if (type != NULL && strcmp(type, "llama3") == 0)
            divisor = llama3_divisor(scaling, frequency, factor);
        rope.frequency[i] = (double)(float)(frequency / (double)(float)divisor);
        if (type != NULL && strcmp(type, "linear") == 0)
            rope.frequency[i] *= (double)(float)(1 / factor);
    }
    double part = exact_number(scaling, "mscale", 0);
    double all = exact_number(scaling, "mscale_all_dim", 0);
    if (yarn && with_magnitude)
        rope.magnitude = part != 0 && all != 0
                             ? yarn_part(factor, part) / yarn_part(factor, all)
                             : exact_number(scaling, "attention_factor", yarn_part(factor, 1));
    return rope;
}

void exact_turn(const exact_rope_t *rope, double position, bool back, double *x)
{
    for (uint32_t i = 0; i < rope->dim / 2; i++) {
        double c = cos(position * rope->frequency[i]) * rope->magnitude;
        double s = sin(position * rope->frequency[i]) * rope->magnitude * (back ? -1 : 1);
        uint32_t first = rope->halves ? i : 2 * i;
        uint32_t second = rope->halves ? i + rope->dim / 2 : 2 * i + 1;
        double a = x[first], b = x[second];
        x[first] = a * c - b * s;
        x[second] = a * s + b * c;
    }
}

/* --- scores --- */

void exact_softmax(double *scores, uint32_t n, double sink)
{
    double most = sink, total = 0;
    for (uint32_t i = 0; i < n; i++)
        most = fmax(most, scores[i]);
    for (uint32_t i = 0; i < n; i++)
        total += scores[i] = exp(scores[i] - most);
    total += exp(sink - most);
    for (uint32_t i = 0; i < n; i++)
        scores[i] /= total;
}

bool exact_best(const double *scores, uint32_t n, uint32_t k, double margin, uint32_t *out)
{
    double *left = malloc(n * sizeof *left), worst_in = INFINITY, best_out = -INFINITY, most = 0;
    assert_true(left != NULL && k < n);
    memcpy(left, scores, n * sizeof *left);
    for (uint32_t i = 0; i < k; i++) {
        uint32_t best = 0;
        for (uint32_t j = 1; j < n; j++)
            best = left[j] > left[best] ? j : best;
        worst_in = left[best];
        left[best] = -INFINITY;
    }
    uint32_t n_out = 0;
    for (uint32_t j = 0; j < n; j++) {
        most = fmax(most, fabs(scores[j]));
        if (left[j] == -INFINITY)
            out[n_out++] = j;
        else
            best_out = fmax(best_out, left[j]);
    }
    free(left);
    return worst_in - best_out > margin * most;
}
