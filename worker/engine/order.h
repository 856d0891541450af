/* An order: a binary heap of things that know their own place in it, so that any of them leaves in
 * O(log n). Smaller (major, minor) comes first. Keys lie in the heap itself, because a comparison
 * that follows a pointer to each of ten thousand sequences costs a step its budget. Memory is taken
 * by order_reserve() alone, which admissions call; putting and removing allocate nothing.
 *
 * Not thread-safe. */
#ifndef SHOAL_WORKER_ENGINE_ORDER_H
#define SHOAL_WORKER_ENGINE_ORDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Lives in the thing; zero-initialised is outside. 1-based place in its order. */
typedef uint32_t order_place_t;

typedef struct {
    uint64_t major, minor;
    void *thing;
    order_place_t *place; /* of the thing */
} order_entry_t;

/* Zero-initialised is empty and ready. */
typedef struct {
    order_entry_t *entries;
    uint32_t n, capacity;
} order_t;

/* Makes room for n things in all. */
void order_reserve(order_t *order, uint32_t n);
void order_release(order_t *order);

/* The place must be outside and room must have been reserved. */
void order_put(order_t *order, void *thing, order_place_t *place, uint64_t major, uint64_t minor);
/* No effect on what is outside. */
void order_remove(order_t *order, order_place_t *place);

/* The first, or NULL. */
static inline const order_entry_t *order_first(const order_t *order)
{
    return order->n > 0 ? &order->entries[0] : NULL;
}

#endif
