/* What each sequence of the epoch was admitted with, kept so that a coordinator which takes a
 * session over (attach_only) can be given a whole token log. Bounded; not thread-safe: the service's
 * mutex protects it. */
#ifndef SHOAL_WORKER_SERVICE_BOOK_H
#define SHOAL_WORKER_SERVICE_BOOK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shoal/worker/v1/engine.pb-c.h"

#define SERVICE_BOOK_ENTRIES_MAX 8192
#define SERVICE_BOOK_BYTES_MAX ((size_t)256 << 20)
/* Ended sequences stay known to the scheduler for 30 s; a little longer here. */
#define SERVICE_BOOK_KEEP_MS 35000u
/* No output for so long: nobody is attached any more. */
#define SERVICE_BOOK_IDLE_MS 600000u

typedef struct service_book service_book_t;

service_book_t *service_book_new(void);
void service_book_free(service_book_t *take_book);
/* Forgets everything: a new epoch begins. */
void service_book_clear(service_book_t *book);

/* Remembers an Admit (without its produced ids), unless the sequence is known. */
void service_book_put(service_book_t *book, Shoal__Worker__V1__Admit *admit, uint64_t now_ms);
/* The next output of the sequence on this stream carries the Admit. */
void service_book_attach(service_book_t *book, const char *session, uint32_t choice,
                         uint32_t stream);
/* Called for each output; `ended` starts the time until it is forgotten. Returns the remembered
 * Admit when the output has to carry it, to be released with protobuf_c_message_free_unpacked. */
Shoal__Worker__V1__Admit *service_book_output(service_book_t *book, const char *session,
                                              uint32_t choice, uint32_t stream, bool ended,
                                              uint64_t now_ms);

#endif
