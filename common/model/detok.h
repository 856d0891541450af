/* Ids to text one at a time, for streams.
 *
 * The text released after n ids is a pure function of those n ids and skip_special: bytes of a
 * character that is not complete yet are held back, bytes that can become no character any more are
 * released as U+FFFD. All releases together with detok_finish are exactly what tokenizer_decode
 * gives for the same ids. The state is one small value: copy it, compare it, or rebuild it by
 * pushing the same ids again. It belongs to one caller at a time.
 *
 * A vocabulary with byte fallback (SentencePiece) writes rare characters as runs of byte tokens. Such
 * a run is text only if all of it is valid UTF-8, as in Hugging Face; so it is held until it ends,
 * or until it fills the state: then what is complete is released and the rest judged by itself. */
#ifndef SHOAL_COMMON_MODEL_DETOK_H
#define SHOAL_COMMON_MODEL_DETOK_H

#include "common/model/tokenizer.h"

enum { DETOK_HELD_MAX = 120 };

/* Zero-initialised is a fresh state that shows special tokens. */
typedef struct {
    uint8_t held[DETOK_HELD_MAX]; /* what waits; unused bytes are 0, so states compare by bytes */
    uint8_t n_held;
    uint8_t n_stripped; /* characters that a Strip took from the beginning; 255 is "no more" */
    uint8_t seen;       /* by step of the decoder: a token has come */
    bool skip_special;
    const tokenizer_t *tokenizer; /* of the last push, for detok_finish; NULL before it */
} detok_t;

/* Appends what this id releases to `out` (possibly nothing; always valid UTF-8). An id out of range
 * is STATUS_INVALID and changes nothing. All pushes of one state are with tokenizers of one
 * vocabulary; the last one outlives the state. */
status_t detok_push(detok_t *detok, const tokenizer_t *tokenizer, uint32_t id,
                    buffer_t *out) MUST_USE;
/* Releases what is still held; the state is fresh again. Call at the end of a text. */
void detok_finish(detok_t *detok, buffer_t *out);

#endif
