/* Cuts text into the pieces inside which a model's merges act: the pre-tokenizer that a vocabulary
 * was trained with, a chain of stages where each cuts the pieces of the one before. Internal to the
 * tokenizer. Immutable after it is built; any number of threads may split at once. */
#ifndef SHOAL_COMMON_MODEL_TOKENIZER_PRETOK_H
#define SHOAL_COMMON_MODEL_TOKENIZER_PRETOK_H

#include <stdbool.h>
#include <stddef.h>

#include "common/base/buffer.h"
#include "common/base/status.h"
#include "common/model/tokenizer_pattern.h"

enum { PRETOK_STAGES_MAX = 12 };

/* What becomes of a match, in Hugging Face's words. */
typedef enum {
    SPLIT_REMOVED,
    SPLIT_ISOLATED,
    SPLIT_MERGED_WITH_PREVIOUS,
    SPLIT_MERGED_WITH_NEXT,
    SPLIT_CONTIGUOUS,
} split_behavior_t;

typedef enum { PREPEND_NEVER, PREPEND_FIRST, PREPEND_ALWAYS } prepend_t;

typedef enum {
    PRETOK_SPLIT,
    PRETOK_SPACE,     /* a space before a piece that has none */
    PRETOK_METASPACE, /* spaces become the replacement, one is put in front; then cut before each */
    PRETOK_BYTES,     /* bytes become characters of GPT-2's alphabet */
} pretok_kind_t;

typedef struct {
    pretok_kind_t kind;
    pattern_t *pattern; /* of SPLIT; of METASPACE the replacement, or NULL when it does not cut */
    split_behavior_t behavior;
    bool invert;
    char replacement[5]; /* of METASPACE: one character */
    prepend_t prepend;
} pretok_stage_t;

/* Zero-initialised has no stage: a text is one piece. */
typedef struct {
    pretok_stage_t stages[PRETOK_STAGES_MAX];
    size_t n;
} pretok_t;

/* Takes the stage's pattern, also when it fails because there are too many. */
status_t pretok_add(pretok_t *pretok, pretok_stage_t take_stage) MUST_USE;
/* A Split by an expression; the usual case. */
status_t pretok_add_split(pretok_t *pretok, const char *expression, split_behavior_t behavior,
                          bool invert) MUST_USE;
/* ByteLevel: [a space in front] [GPT-2's words] and the byte alphabet. */
status_t pretok_add_byte_level(pretok_t *pretok, bool prefix_space, bool words) MUST_USE;
status_t pretok_add_metaspace(pretok_t *pretok, const char *replacement, prepend_t prepend,
                              bool split) MUST_USE;
void pretok_release(pretok_t *pretok);

/* Adds the stages that GGUF files mean by a name of tokenizer.ggml.pre, ByteLevel among them.
 * *ignores_merges_out: whether a piece that is itself a token becomes that token.
 * STATUS_UNSUPPORTED names the known ones. */
status_t pretok_add_named(pretok_t *pretok, const char *name, bool *ignores_merges_out) MUST_USE;

/* Receives the pieces from left to right; none is empty. */
typedef status_t (*pretok_fn)(void *context, const char *piece, size_t n);

typedef struct {
    size_t start, end;
    bool is_match;
} pretok_range_t;

/* Serves one thread; zero-initialised is ready. */
typedef struct {
    buffer_t text[PRETOK_STAGES_MAX]; /* of stages that change it */
    pretok_range_t *ranges[PRETOK_STAGES_MAX];
    size_t n_ranges[PRETOK_STAGES_MAX], ranges_capacity[PRETOK_STAGES_MAX];
    pattern_scratch_t patterns;
} pretok_scratch_t;

void pretok_scratch_release(pretok_scratch_t *scratch);

/* Runs the first n_stages stages. `text` must be valid UTF-8: it is not checked again, because the
 * library would do so at every match and make a long text quadratic. is_start: the text is the
 * beginning of the whole input. Stops at the first failure of `fn`. */
status_t pretok_split(const pretok_t *pretok, size_t n_stages, pretok_scratch_t *scratch,
                      const char *text, size_t n, bool is_start, pretok_fn fn,
                      void *context) MUST_USE;

#endif
