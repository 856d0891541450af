/* What a tokenizer does to text before it is cut: a chain of steps, each over the whole section.
 * Internal to the tokenizer. Immutable after it is built; any number of threads may run it.
 *
 * Marks (which bytes may form special tokens, see tokenizer.h) go along with the text: a character
 * that a step makes is marked where all bytes that it was made of were. */
#ifndef SHOAL_COMMON_MODEL_TOKENIZER_NORMALIZE_H
#define SHOAL_COMMON_MODEL_TOKENIZER_NORMALIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buffer.h"
#include "common/model/tokenizer_charsmap.h"
#include "common/model/tokenizer_pattern.h"
#include "common/model/unicode_form.h"

enum {
    NORMALIZE_STEPS_MAX = 32,
    NORMALIZE_CONTENT_BYTES_MAX = 1024, /* of what Replace and Prepend put in */
};

typedef enum {
    NORMALIZE_FORM,
    NORMALIZE_LOWERCASE,
    NORMALIZE_STRIP,          /* white space at the ends */
    NORMALIZE_STRIP_ACCENTS,  /* every mark */
    NORMALIZE_STRIP_NONSPACING, /* Mn alone, as BertNormalizer does */
    NORMALIZE_REPLACE,
    NORMALIZE_PREPEND,
    NORMALIZE_BYTE_LEVEL,     /* bytes become characters of GPT-2's alphabet */
    NORMALIZE_CHARSMAP,
    NORMALIZE_NMT,            /* control characters go, odd spaces become spaces */
    NORMALIZE_CLEAN,          /* BertNormalizer's clean_text */
    NORMALIZE_CHINESE,        /* spaces around ideographs */
    NORMALIZE_SQUEEZE,        /* SentencePiece: no spaces at the ends, single ones inside */
} normalize_kind_t;

typedef struct {
    normalize_kind_t kind;
    unicode_form_t form;
    bool left, right;      /* of STRIP */
    pattern_t *pattern;    /* of REPLACE; owned */
    char *content;         /* of REPLACE and PREPEND; owned */
    size_t content_size;
    charsmap_t *charsmap;  /* owned */
} normalize_step_t;

/* Zero-initialised has no step. */
typedef struct {
    normalize_step_t steps[NORMALIZE_STEPS_MAX];
    size_t n;
} normalizer_t;

/* Takes what the step owns, also when it fails because there are too many. */
status_t normalizer_add(normalizer_t *normalizer, normalize_step_t take_step) MUST_USE;
void normalizer_release(normalizer_t *normalizer);

typedef struct {
    const uint8_t *data, *marks; /* marks NULL: all or none is marked, the caller knows which */
    size_t n;
    bool is_start; /* its first character is the first of the whole input */
} normal_text_t;

/* Two texts that take turns. Zero-initialised is ready and serves one thread. */
typedef struct {
    buffer_t text[2], marks[2];
    unicode_scratch_t unicode;
    pattern_scratch_t patterns;
} normalize_scratch_t;

void normalize_scratch_release(normalize_scratch_t *scratch);

/* Runs all steps; *out lives in the scratch or is `in` itself, until the next run. in->data must be
 * valid UTF-8. A text that grows beyond 16 times TOKENIZER_TEXT_BYTES_MAX is STATUS_INVALID. */
status_t normalizer_run(const normalizer_t *normalizer, normalize_scratch_t *scratch,
                        const normal_text_t *in, normal_text_t *out) MUST_USE;

#endif
