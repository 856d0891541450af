/* A binary heap of things that carry their own node: the earliest timer, the next of a waiting
 * room. Smaller (major, minor) comes first. Push, remove and pop are O(log n); a node knows its
 * place, so removal needs no search. Not thread-safe. */
#ifndef SHOAL_COORDINATOR_CORE_HEAP_H
#define SHOAL_COORDINATOR_CORE_HEAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Zero-initialised is outside of every heap. */
typedef struct {
    uint64_t major, minor;
    size_t place; /* 1-based place in its heap; 0: in none */
    void *owner;  /* whose node it is */
} heap_node_t;

/* Zero-initialised is empty and ready. */
typedef struct {
    heap_node_t **nodes;
    size_t n, capacity;
} heap_t;

/* The node must be in no heap. */
void heap_push(heap_t *heap, heap_node_t *node, uint64_t major, uint64_t minor);
/* No effect on a node that is in none. */
void heap_remove(heap_t *heap, heap_node_t *node);
/* NULL when empty; the node stays. */
heap_node_t *heap_top(const heap_t *heap);
void heap_release(heap_t *heap);

#endif
