/* See buffer.h. */
#include "common/base/buffer.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/base/status.h"

void buffer_append(buffer_t *buffer, const void *bytes, size_t n)
{
    MEM_GROW(buffer->data, buffer->capacity, buffer->size + n + 1);
    if (n > 0)
        memcpy(buffer->data + buffer->size, bytes, n);
    buffer->size += n;
    buffer->data[buffer->size] = 0;
}

void buffer_append_text(buffer_t *buffer, const char *text)
{
    buffer_append(buffer, text, strlen(text));
}

void buffer_format(buffer_t *buffer, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    CHECK(n >= 0);
    MEM_GROW(buffer->data, buffer->capacity, buffer->size + (size_t)n + 1);
    vsnprintf((char *)buffer->data + buffer->size, (size_t)n + 1, format, again);
    va_end(again);
    buffer->size += (size_t)n;
}

void buffer_consume(buffer_t *buffer, size_t n)
{
    CHECK(n <= buffer->size);
    if (n == 0)
        return;
    memmove(buffer->data, buffer->data + n, buffer->size - n);
    buffer->size -= n;
    buffer->data[buffer->size] = 0;
}

void buffer_clear(buffer_t *buffer)
{
    buffer->size = 0;
    if (buffer->data != NULL)
        buffer->data[0] = 0;
}

void buffer_release(buffer_t *buffer)
{
    free(buffer->data);
    *buffer = (buffer_t){0};
}

const char *buffer_text(const buffer_t *buffer)
{
    return buffer->data ? (const char *)buffer->data : "";
}
