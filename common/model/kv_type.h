/* How a deployment keeps keys and values, as the word that its record, its plans and the command
 * line have: "" or "bf16", "int8" or "fp8" (docs/numerics.md, "Caches of codes"). */
#ifndef SHOAL_COMMON_MODEL_KV_TYPE_H
#define SHOAL_COMMON_MODEL_KV_TYPE_H

#include "common/model/model.h"

/* A scale lies beside the codes of each head of a token. */
enum { KV_TYPE_SCALE_BYTES = 4 };

/* Whether the word is known and goes with the activations. NULL is "". */
status_t kv_type_check(const char *kv, bool activations_f32) MUST_USE;
/* Caches of codes are for ordinary keys and values: latent and compressed ones have none. */
bool kv_type_may_be_codes(const model_config_t *config);
status_t kv_type_check_model(const char *kv, const model_config_t *config) MUST_USE;
/* Codes of one byte. */
bool kv_type_is_codes(const char *kv);
/* The word of text identities and reports: "f32" with such activations, "bf16" for "". */
const char *kv_type_name(const char *kv, bool activations_f32);

#endif
