/* Whether two models have the same tokens, so that the ids of one mean in the other what they mean in
 * itself: what a draft model needs. */
#ifndef SHOAL_COMMON_MODEL_TOKENIZER_SAME_H
#define SHOAL_COMMON_MODEL_TOKENIZER_SAME_H

#include "common/base/status.h"
#include "common/model/tokenizer.h"

/* INVALID names the first id that differs. Both are borrowed; the names stand in the error. */
status_t tokenizer_same(const tokenizer_t *model, const char *model_name,
                        const tokenizer_t *draft, const char *draft_name) MUST_USE;

/* The same for the tokenizers of two models. Models without any, as tests make them, are the same. */
status_t tokenizer_check_same(const char *model_path, const char *draft_path) MUST_USE;

#endif
