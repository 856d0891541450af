/* A model of which only config.json is there. It has its configuration and a view of every tensor
 * that its architecture lists, with shape, cut and the type that its rows will have, but no rows:
 * it can be described and planned (plan_sizes), not read. The same functions serve it and a real
 * model, so that a plan made before the download is the plan made after it.
 *
 * Optional biases are there when "attention_bias" or "mlp_bias" says so. */
#ifndef SHOAL_COMMON_MODEL_MODEL_OUTLINE_H
#define SHOAL_COMMON_MODEL_MODEL_OUTLINE_H

#include "common/model/model.h"

/* Whether `path` can only be outlined: a .json file, or a directory without weights. */
bool model_outline_only(const char *path);

/* `path` is a config.json, or the directory that holds one. Errors as model_open. */
status_t model_outline_open(const char *path, model_t **own_out) MUST_USE;
/* Over a config.json in memory; `path` stands in errors. */
status_t model_outline_open_bytes(const char *path, const void *config, size_t n,
                                  model_t **own_out) MUST_USE;

/* The views of a model, this kind or a real one, as they are after online quantization (q8, q4 or
 * fp8): the same matrices as model_open_quantized takes get their types and sizes. Afterwards the
 * model can only be described and planned. STATUS_UNSUPPORTED when none could be changed. */
status_t model_outline_quantize(model_t *model, const char *name) MUST_USE;

#endif
