/* Allocation that is never NULL, and the arena: the memory of one request or one step.
 *
 * Small allocations of our own making abort the process when memory is gone (the kernel would kill
 * it anyway and the cluster is built for that); sizes that come from outside are checked against a
 * written limit before they get here. */
#ifndef SHOAL_COMMON_BASE_MEMORY_H
#define SHOAL_COMMON_BASE_MEMORY_H

#include <stddef.h>

/* Zeroed; released with free(). n * size is checked. */
void *mem_new(size_t n, size_t size) __attribute__((returns_nonnull, warn_unused_result));
/* Like realloc; new bytes are not zeroed. */
void *mem_resize(void *take_old, size_t n, size_t size)
    __attribute__((returns_nonnull, warn_unused_result));
char *mem_strdup(const char *text) __attribute__((returns_nonnull, warn_unused_result));
char *mem_strndup(const char *text, size_t n) __attribute__((returns_nonnull, warn_unused_result));
/* printf into a fresh string. */
char *mem_format(const char *format, ...)
    __attribute__((format(printf, 1, 2), returns_nonnull, warn_unused_result));

#define MEM_NEW(type) ((type *)mem_new(1, sizeof(type)))
#define MEM_NEW_ARRAY(type, n) ((type *)mem_new((n), sizeof(type)))

/* Makes room in a growable array: doubles `*capacity` until it holds `n_wanted` elements. */
#define MEM_GROW(array, capacity, n_wanted)                                                        \
    do {                                                                                           \
        size_t grow_wanted_ = (n_wanted);                                                          \
        if (grow_wanted_ > (capacity)) {                                                           \
            size_t grow_n_ = (capacity) ? (capacity) : 8;                                          \
            while (grow_n_ < grow_wanted_)                                                         \
                grow_n_ *= 2;                                                                      \
            (array) = mem_resize((array), grow_n_, sizeof *(array));                               \
            (capacity) = grow_n_;                                                                  \
        }                                                                                          \
    } while (0)

typedef struct arena_block arena_block_t;

/* An arena hands out memory that dies all at once. Zero-initialised is empty and ready. Not
 * thread-safe. */
typedef struct {
    arena_block_t *head;
} arena_t;

void *arena_new(arena_t *arena, size_t n, size_t size)
    __attribute__((returns_nonnull, warn_unused_result));
char *arena_strndup(arena_t *arena, const char *text, size_t n)
    __attribute__((returns_nonnull, warn_unused_result));
/* Forgets everything but keeps the largest block, so that a step loop does not allocate. */
void arena_reset(arena_t *arena);
void arena_release(arena_t *arena);

#define ARENA_NEW_ARRAY(arena, type, n) ((type *)arena_new((arena), (n), sizeof(type)))

#endif
