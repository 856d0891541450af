/* A growable run of bytes. Zero-initialised is empty and ready. Not thread-safe. */
#ifndef SHOAL_COMMON_BASE_BUFFER_H
#define SHOAL_COMMON_BASE_BUFFER_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint8_t *data; /* always followed by a NUL that is not counted, once anything was appended */
    size_t size;   /* bytes */
    size_t capacity;
} buffer_t;

void buffer_append(buffer_t *buffer, const void *bytes, size_t n);
void buffer_append_text(buffer_t *buffer, const char *text);
void buffer_format(buffer_t *buffer, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Removes the first n bytes. */
void buffer_consume(buffer_t *buffer, size_t n);
void buffer_clear(buffer_t *buffer);
void buffer_release(buffer_t *buffer);
/* The content as text, "" when empty; valid until the next change. */
const char *buffer_text(const buffer_t *buffer);

#endif
