/* One layer's attention in F64, from a directory's config.json and its weights: what the engine's
 * layer is compared with at positions that no recording reaches. It shares no code with the engine
 * but the reading of tensors. Layers are taken without their feed-forward part, whose last matrix
 * the test writes as zeros. */
#ifndef SHOAL_TESTS_ENGINE_EXACT_LAYER_H
#define SHOAL_TESTS_ENGINE_EXACT_LAYER_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/model/source.h"

enum { EXACT_TENSORS_MAX = 128, EXACT_PAIRS_MAX = 64 };

typedef struct {
    source_t *source;
    const json_t *config;
    double *kept[EXACT_TENSORS_MAX]; /* of the layer in work */
    uint32_t n_kept;
    uint32_t hidden, n_heads;
    double eps;
} exact_model_t;

/* A matrix [rows][columns], or a vector in `at` (rows 1). */
typedef struct {
    const double *at;
    uint32_t rows, columns;
} exact_tensor_t;

/* Rows in, chosen rows out: `in` [n][width] is what the layer began with, `out` [n_rows][width]
 * what it leaves of the rows that are asked for. A row whose choice of keys is too close to say (a
 * tie in F32) is left out: its flag in `close` becomes true. */
typedef struct {
    const float *in;
    uint32_t n, width;
    const uint32_t *rows;
    uint32_t n_rows;
    double *out;
    bool *close;
} exact_call_t;

void exact_open(const char *path, exact_model_t *out);
void exact_close(exact_model_t *model);

/* Grouped heads (with windows, caps, sinks, biases and norms of heads, as the configuration says),
 * latent heads (with an indexer where there is one), compressed heads. */
void exact_grouped(exact_model_t *model, uint32_t layer, const exact_call_t *call);
void exact_latent(exact_model_t *model, uint32_t layer, const exact_call_t *call);
void exact_compressed(exact_model_t *model, uint32_t layer, const exact_call_t *call);

/* --- what they are made of --- */

/* False when there is no such tensor. `format` takes the layer. Kept until exact_forget. */
bool exact_find(exact_model_t *model, const char *format, uint32_t layer, exact_tensor_t *out);
exact_tensor_t exact_tensor(exact_model_t *model, const char *format, uint32_t layer);
void exact_forget(exact_model_t *model);
/* Zeroed memory that is kept as tensors are. */
double *exact_new(exact_model_t *model, uint64_t n);

double exact_number(const json_t *object, const char *key, double otherwise);
uint32_t exact_count(const exact_model_t *model, const char *key);

void exact_multiply(const exact_tensor_t *w, const double *x, double *y);
/* weight NULL: none; `plus` is added to each weight (Gemma's norms are 1 + w). */
void exact_norm(const double *x, const double *weight, double plus, uint32_t n, double eps,
                double *y);

/* As docs/numerics.md has it: frequencies rounded to F32, angles and the rest in double. */
typedef struct {
    uint32_t dim;
    bool halves;
    double frequency[EXACT_PAIRS_MAX], magnitude;
} exact_rope_t;

/* `scaling` as rope_scaling says it; NULL: none. */
exact_rope_t exact_rope(double base, uint32_t dim, bool halves, const json_t *scaling,
                        bool with_magnitude);
void exact_turn(const exact_rope_t *rope, double position, bool back, double *x);

/* Softmax of n scores with one more logit (-INFINITY: none) that has no value. */
void exact_softmax(double *scores, uint32_t n, double sink);
/* The k highest of n scores, ascending, the lower index on ties; false when the last one in and the
 * first one out are closer than `margin` of the highest. */
bool exact_best(const double *scores, uint32_t n, uint32_t k, double margin, uint32_t *out);

#endif
