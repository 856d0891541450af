/* The text of one choice as a pure function of its ids: detokenized, cut at the first stop string,
 * with what might become a stop string or a character held back.
 *
 * After each id the log knows how many bytes of text are released, and keeps that number for every
 * n, so a client may resume from any n and gets neither a gap nor a repeat. Feeding the same ids to
 * a fresh log gives the same log: that is how a coordinator takes a session over. */
#ifndef SHOAL_COORDINATOR_CORE_TEXT_LOG_H
#define SHOAL_COORDINATOR_CORE_TEXT_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buffer.h"
#include "common/model/detok.h"

typedef struct {
    uint32_t *ids;
    uint32_t *released; /* [i]: bytes of text released after i + 1 ids */
    size_t n;           /* ids that are shown and counted */
    size_t ids_capacity, released_capacity;
    buffer_t text;      /* released bytes, then those held back */
    detok_t detok;
    bool stopped; /* a stop string was completed by the last id: no further id counts */
    bool ended;   /* the last id was pushed: nothing is held back any more */
} text_log_t;

typedef struct {
    char *const *strings; /* at most 8, none empty */
    size_t n;
} text_stops_t;

void text_log_start(text_log_t *log);
/* Appends one id unless the text has stopped or ended. `last`: by the request's own rules (an end
 * id, a stop id, max_tokens) no id follows, so nothing is held back any more. An id out of the
 * vocabulary is STATUS_INVALID and changes nothing. */
status_t text_log_push(text_log_t *log, const tokenizer_t *tokenizer, const text_stops_t *stops,
                       uint32_t id, bool last) MUST_USE;
/* Bytes released after the first n ids; n at most log->n. */
size_t text_log_released(const text_log_t *log, size_t n);
void text_log_release(text_log_t *log);

#endif
