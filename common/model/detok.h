/* Ids to text one at a time, for streams.
 *
 * The text released after n ids is a pure function of those n ids and skip_special: bytes of a
 * character that is not complete yet are held back, bytes that can become no character any more are
 * released as U+FFFD. All releases together with detok_finish are exactly what tokenizer_decode
 * gives for the same ids. The state is one small value: copy it, compare it, or rebuild it by
 * pushing the same ids again. It belongs to one caller at a time. */
#ifndef SHOAL_COMMON_MODEL_DETOK_H
#define SHOAL_COMMON_MODEL_DETOK_H

#include "common/model/tokenizer.h"

/* Zero-initialised is a fresh state that shows special tokens. */
typedef struct {
    uint8_t held[4]; /* an incomplete character; unused bytes are 0, so states compare by bytes */
    uint8_t n_held;  /* 0 to 3 */
    bool skip_special;
} detok_t;

/* Appends what this id releases to `out` (possibly nothing; always valid UTF-8). An id out of range
 * is STATUS_INVALID and changes nothing. */
status_t detok_push(detok_t *detok, const tokenizer_t *tokenizer, uint32_t id,
                    buffer_t *out) MUST_USE;
/* Releases what is still held, as U+FFFD; the state is fresh again. Call at the end of a text. */
void detok_finish(detok_t *detok, buffer_t *out);

#endif
