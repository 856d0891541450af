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

/* Whether online quantization takes tensors of this role: the matrices of layers, but those that
 * choose (routers, the indexer's weights) or mix streams, and neither embedding nor head, which the
 * text depends on most. */
bool model_outline_quantizes(model_role_t role);

/* The views of a model, this kind or a real one, as they are after online quantization to `type`
 * (Q8_0, Q4_0, Q4_1 or F8S): plain tensors of the roles above get its type and size. Afterwards the
 * model can only be described and planned. STATUS_UNSUPPORTED when none could be changed. */
status_t model_outline_quantize(model_t *model, qtype_t type) MUST_USE;

#endif
