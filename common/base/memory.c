/* See memory.h. An arena is a list of blocks, newest first, each at least 64 KiB. */
#include "common/base/memory.h"

#include <stdalign.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/checked.h"
#include "common/base/status.h"

enum { ARENA_BLOCK_BYTES_MIN = 64 * 1024, ARENA_ALIGN = 64 };

struct arena_block {
    arena_block_t *next;
    size_t used;
    size_t size;
    alignas(ARENA_ALIGN) unsigned char data[];
};

void *mem_new(size_t n, size_t size)
{
    void *memory = calloc(n ? n : 1, size ? size : 1);
    CHECK(memory != NULL);
    return memory;
}

void *mem_resize(void *take_old, size_t n, size_t size)
{
    size_t bytes;
    CHECK(checked_mul_size(n, size, &bytes));
    void *memory = realloc(take_old, bytes ? bytes : 1);
    CHECK(memory != NULL);
    return memory;
}

char *mem_strndup(const char *text, size_t n)
{
    char *copy = mem_new(n + 1, 1);
    memcpy(copy, text, n);
    return copy;
}

char *mem_strdup(const char *text)
{
    return mem_strndup(text, strlen(text));
}

char *mem_format(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char *out = NULL;
    int n = vasprintf(&out, format, args);
    va_end(args);
    CHECK(n >= 0 && out != NULL);
    return out;
}

void *arena_new(arena_t *arena, size_t n, size_t size)
{
    size_t bytes;
    CHECK(checked_mul_size(n, size, &bytes) && bytes < SIZE_MAX / 2);
    bytes = (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    arena_block_t *block = arena->head;
    if (block == NULL || block->size - block->used < bytes) {
        size_t wanted = block ? block->size * 2 : ARENA_BLOCK_BYTES_MIN;
        if (wanted < bytes)
            wanted = bytes;
        wanted = (wanted + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
        block = aligned_alloc(ARENA_ALIGN, sizeof *block + wanted);
        CHECK(block != NULL);
        *block = (arena_block_t){.next = arena->head, .size = wanted};
        arena->head = block;
    }
    void *memory = block->data + block->used;
    block->used += bytes;
    memset(memory, 0, bytes);
    return memory;
}

char *arena_strndup(arena_t *arena, const char *text, size_t n)
{
    char *copy = arena_new(arena, n + 1, 1);
    memcpy(copy, text, n);
    return copy;
}

void arena_reset(arena_t *arena)
{
    /* Blocks double, so the newest is the largest. */
    if (arena->head == NULL)
        return;
    arena_block_t *old = arena->head->next;
    while (old != NULL) {
        arena_block_t *next = old->next;
        free(old);
        old = next;
    }
    arena->head->next = NULL;
    arena->head->used = 0;
}

void arena_release(arena_t *arena)
{
    for (arena_block_t *block = arena->head; block != NULL;) {
        arena_block_t *next = block->next;
        free(block);
        block = next;
    }
    arena->head = NULL;
}
