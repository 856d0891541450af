/* config.json made flat: models that see as well as read keep what their text part is in
 * "text_config". Only the text part is read. Only source*.c include it. */
#ifndef SHOAL_COMMON_MODEL_HF_CONFIG_H
#define SHOAL_COMMON_MODEL_HF_CONFIG_H

#include <stdbool.h>
#include <stddef.h>

#include "common/base/json.h"
#include "common/base/memory.h"
#include "common/base/status.h"

/* Replaces the configuration of a model with a text part (model_type "gemma3") by one of that part
 * alone ("gemma3_text"), with what the publisher leaves to the defaults of the model's own code;
 * *nested_out says whether it did. `where` names the file in errors. */
status_t hf_config_flatten(const char *where, json_t **config, bool *nested_out) MUST_USE;

/* What a tensor of such a model is called in one that has the text part alone: NULL for tensors of
 * the other parts, which are left out. */
const char *hf_config_text_name(arena_t *arena, const char *name);

#endif
