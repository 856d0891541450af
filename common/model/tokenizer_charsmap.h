/* SentencePiece's precompiled character map: a double-array trie of what is replaced and a pool of
 * what replaces it. Internal to the tokenizer; immutable. The bytes come from a file: every index
 * is checked when it is followed, and the replacements are valid UTF-8. */
#ifndef SHOAL_COMMON_MODEL_TOKENIZER_CHARSMAP_H
#define SHOAL_COMMON_MODEL_TOKENIZER_CHARSMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

typedef struct charsmap charsmap_t;

status_t charsmap_create(const uint8_t *blob, size_t n, charsmap_t **own_out) MUST_USE;
/* The same from base64, as tokenizer.json writes it. */
status_t charsmap_create_base64(const char *text, size_t n, charsmap_t **own_out) MUST_USE;
void charsmap_release(charsmap_t *take_map);

/* The replacement of the shortest key that starts text[0..n), or NULL: Hugging Face takes the
 * shortest and replaces all of the text that it asked about. */
const uint8_t *charsmap_find(const charsmap_t *map, const uint8_t *text, size_t n,
                             size_t *size_out);

#endif
