/* A binary heap of things that know their own place in it, so that any of them leaves in O(log n):
 * the earliest timer, the next of a line, the next event of a simulation. Smaller (major, minor)
 * comes first. Keys lie in the heap itself, because a comparison that follows a pointer to each of
 * ten thousand things costs a step its budget.
 *
 * A step that must not allocate calls heap_put(), for which heap_reserve() has taken the memory
 * before; everybody else calls heap_push(). Not thread-safe. */
#ifndef SHOAL_COMMON_BASE_HEAP_H
#define SHOAL_COMMON_BASE_HEAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Lives in the thing, as long as the thing is in a heap; zero-initialised is outside. 1-based. */
typedef uint32_t heap_place_t;

typedef struct {
    uint64_t major, minor;
    void *thing;
    heap_place_t *place; /* of the thing */
} heap_entry_t;

/* Zero-initialised is empty and ready. */
typedef struct {
    heap_entry_t *entries;
    uint32_t n, capacity;
} heap_t;

/* Makes room for n things in all. */
void heap_reserve(heap_t *heap, uint32_t n);
/* The heap is empty and ready again. Places of what was in it are not touched. */
void heap_release(heap_t *heap);

/* The place must be outside and room must have been reserved; allocates nothing. */
void heap_put(heap_t *heap, void *thing, heap_place_t *place, uint64_t major, uint64_t minor);
/* The same, making room first. */
void heap_push(heap_t *heap, void *thing, heap_place_t *place, uint64_t major, uint64_t minor);
/* No effect on what is outside. */
void heap_remove(heap_t *heap, heap_place_t *place);

/* The first, or NULL; valid until the heap changes. */
static inline const heap_entry_t *heap_first(const heap_t *heap)
{
    return heap->n > 0 ? &heap->entries[0] : NULL;
}

/* Of the thing at a place that is not outside. */
static inline uint64_t heap_major(const heap_t *heap, heap_place_t place)
{
    return heap->entries[place - 1].major;
}

#endif
