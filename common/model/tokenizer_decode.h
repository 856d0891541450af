/* How ids become text: a chain of steps over the texts of the tokens, run one token at a time so
 * that a stream gets the same bytes as a whole. Internal to the tokenizer and its detokenizer.
 * Immutable after it is built.
 *
 * Before Fuse a step sees tokens, behind it one token that comes in parts. What a part cannot
 * decide without the whole (a longer pattern, stripping at the end) is STATUS_UNSUPPORTED there. */
#ifndef SHOAL_COMMON_MODEL_TOKENIZER_DECODE_H
#define SHOAL_COMMON_MODEL_TOKENIZER_DECODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buffer.h"
#include "common/base/status.h"
#include "common/model/detok.h"
#include "common/model/tokenizer_pattern.h"

enum { DECODE_STEPS_MAX = 8 }; /* one bit each in detok_t */

typedef enum {
    DECODE_BYTE_LEVEL,    /* only alone */
    DECODE_BYTE_FALLBACK, /* <0xNN> tokens become bytes */
    DECODE_FUSE,
    DECODE_REPLACE,
    DECODE_STRIP,
    DECODE_METASPACE,
    DECODE_WORDPIECE,
    DECODE_SPACES, /* a space between tokens: what no decoder at all means */
} decode_kind_t;

typedef struct {
    decode_kind_t kind;
    pattern_t *pattern;     /* of REPLACE; owned */
    char *content;          /* of REPLACE; the prefix of WORDPIECE; owned */
    size_t content_size;
    char character[5];      /* of STRIP and METASPACE */
    uint32_t start, stop;   /* of STRIP: how many at most */
    bool drops_first;       /* METASPACE: the first token loses its spaces */
    bool cleanup;           /* of WORDPIECE */
    bool is_fused;          /* a Fuse is before it; set by decoder_add */
} decode_step_t;

typedef struct {
    decode_step_t steps[DECODE_STEPS_MAX];
    size_t n;
    bool is_byte_level; /* the whole chain is ByteLevel */
    bool has_fallback;
} decoder_t;

/* Takes what the step owns, also when it fails. */
status_t decoder_add(decoder_t *decoder, decode_step_t take_step) MUST_USE;
/* When all steps are there. */
status_t decoder_finish(decoder_t *decoder) MUST_USE;
void decoder_release(decoder_t *decoder);

/* One token's text through the chain; what is settled is appended to `out`. */
void decoder_push(const decoder_t *decoder, detok_t *detok, const uint8_t *text, size_t n,
                  buffer_t *out);
/* Releases what is held. */
void decoder_end(const decoder_t *decoder, detok_t *detok, buffer_t *out);

/* The byte of a token written <0xNN>, or -1. */
int decoder_fallback_byte(const uint8_t *text, size_t n);

#endif
