/* A pattern of a tokenizer file: a literal string or a regular expression in the syntax of
 * Oniguruma, which Hugging Face's tokenizers use. Expressions are translated to PCRE2 where the two
 * differ (\s, \w, \h, \v, \u, scripts, the m option) and refused as STATUS_UNSUPPORTED where PCRE2
 * cannot say the same (sets inside sets, intersections). Matching is bounded: a pattern that
 * backtracks without end is STATUS_INVALID after a number of steps. Internal to the tokenizer.
 *
 * Character properties are those of the installed PCRE2 (Debian 12: Unicode 14). */
#ifndef SHOAL_COMMON_MODEL_TOKENIZER_PATTERN_H
#define SHOAL_COMMON_MODEL_TOKENIZER_PATTERN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buffer.h"
#include "common/base/status.h"

enum { PATTERN_BYTES_MAX = 8192 };

typedef struct pattern pattern_t;

/* What one thread needs while it matches; serves any number of patterns in turn. Zero-initialised
 * is ready. */
typedef struct {
    void *match, *limits, *stack;
} pattern_scratch_t;

void pattern_scratch_release(pattern_scratch_t *scratch);

status_t pattern_literal(const char *text, size_t n, pattern_t **own_out) MUST_USE;
status_t pattern_regex(const char *text, size_t n, pattern_t **own_out) MUST_USE;
void pattern_release(pattern_t *take_pattern);

/* The literal's bytes, or NULL for an expression. */
const char *pattern_literal_text(const pattern_t *pattern, size_t *n_out);

/* A walk from match to match; starts as {.at = 0, .last_end = SIZE_MAX}. */
typedef struct {
    size_t at;         /* where the next search begins */
    size_t start, end; /* of the match that was found */
    size_t last_end;
} pattern_walk_t;
#define PATTERN_WALK_START ((pattern_walk_t){.last_end = SIZE_MAX})

/* Goes to the next match in text[0..n), which must be valid UTF-8; *found_out false: there is none.
 * A match may be empty, but not where the one before ended, as in Hugging Face. */
status_t pattern_next(const pattern_t *pattern, pattern_scratch_t *scratch, const char *text,
                      size_t n, pattern_walk_t *walk, bool *found_out) MUST_USE;

/* Appends the expression in PCRE2's syntax; public for the tests. */
status_t pattern_translate(const char *text, size_t n, buffer_t *out) MUST_USE;

#endif
