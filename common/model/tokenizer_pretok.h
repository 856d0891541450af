/* Cuts text into the pieces inside which BPE merges: the pre-tokenizer that a vocabulary was
 * trained with. A row of a table is a name and some patterns; each pattern isolates its matches
 * inside the pieces of the one before, as Hugging Face's Sequence of Split (Isolated) does.
 * Internal to the tokenizer. Immutable after creation; any number of threads may split at once. */
#ifndef SHOAL_COMMON_MODEL_TOKENIZER_PRETOK_H
#define SHOAL_COMMON_MODEL_TOKENIZER_PRETOK_H

#include <stdbool.h>
#include <stddef.h>

#include "common/base/status.h"

typedef struct pretok pretok_t;

/* Receives the pieces from left to right; together they are the whole text, none is empty. */
typedef status_t (*pretok_fn)(void *context, const char *piece, size_t n);

/* STATUS_UNSUPPORTED names the known ones. */
status_t pretok_create(const char *name, pretok_t **own_out) MUST_USE;
void pretok_release(pretok_t *take_pretok);

/* Whether a piece that is itself a token becomes that token, whatever the merges say. */
bool pretok_ignores_merges(const pretok_t *pretok);

/* `text` must be valid UTF-8: it is not checked again, because the library would do so at every
 * match and make a long text quadratic. Stops at the first failure of `fn`. */
status_t pretok_split(const pretok_t *pretok, const char *text, size_t n, pretok_fn fn,
                      void *context) MUST_USE;

#endif
