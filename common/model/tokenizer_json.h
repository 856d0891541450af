/* Hugging Face's tokenizer.json: what its files share. Internal to the tokenizer. */
#ifndef SHOAL_COMMON_MODEL_TOKENIZER_JSON_H
#define SHOAL_COMMON_MODEL_TOKENIZER_JSON_H

#include "common/base/json.h"
#include "common/model/tokenizer_internal.h"

/* Each reads one part of the file into the tokenizer; NULL or null: there is none. */
status_t tokenizer_json_normalizer(const json_t *value, normalizer_t *out) MUST_USE;
status_t tokenizer_json_pretok(const json_t *value, pretok_t *out) MUST_USE;
status_t tokenizer_json_decoder(const json_t *value, decoder_t *out) MUST_USE;

/* {"String": "…"} or {"Regex": "…"} under "pattern". */
status_t tokenizer_json_pattern(const json_t *object, const char *where,
                                pattern_t **own_out) MUST_USE;

/* The list of a Sequence's parts under either of the names that files use, or NULL when the object
 * is no Sequence; `type_out` is its type. */
status_t tokenizer_json_type(const json_t *object, const char *where, const char *list_name,
                             const char **type_out, const json_t **list_out) MUST_USE;

/* The ids that tokenizer_config.json and generation_config.json name; each may be NULL. */
status_t tokenizer_json_names(tokenizer_t *tokenizer, const tokenizer_text_t *config_json,
                              const tokenizer_text_t *generation_json) MUST_USE;

enum { TOKENIZER_JSON_DEPTH_MAX = 8 }; /* of Sequences inside each other */

#endif
