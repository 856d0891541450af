/* A ring of bytes with one writer and one reader, in memory that both see: between two processes in
 * the epoch's shared memory, or between the thread that takes frames from the network and the one
 * that reads them. Positions only rise; their difference is what lies in the ring. The reader and
 * the writer each own one position, on a cache line of its own, and no lock exists that a killed
 * process could leave held. */
#ifndef SHOAL_WORKER_FABRIC_RING_H
#define SHOAL_WORKER_FABRIC_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    _Alignas(64) _Atomic uint64_t written;
    _Alignas(64) _Atomic uint64_t read;
} ring_positions_t;

typedef struct {
    ring_positions_t *positions;
    uint8_t *data;
    size_t capacity; /* a power of two, so that positions need no division */
} ring_t;

/* Returned instead of a count when the positions make no sense: the other side broke the ring. */
#define RING_BROKEN SIZE_MAX

/* What may be written now. */
static inline size_t ring_room(const ring_t *ring)
{
    uint64_t written = atomic_load_explicit(&ring->positions->written, memory_order_relaxed);
    uint64_t read = atomic_load_explicit(&ring->positions->read, memory_order_acquire);
    uint64_t used = written - read;
    return used <= ring->capacity ? ring->capacity - (size_t)used : 0;
}

/* What may be read now, or RING_BROKEN. */
static inline size_t ring_available(const ring_t *ring)
{
    uint64_t read = atomic_load_explicit(&ring->positions->read, memory_order_relaxed);
    uint64_t written = atomic_load_explicit(&ring->positions->written, memory_order_acquire);
    uint64_t used = written - read;
    return used <= ring->capacity ? (size_t)used : RING_BROKEN;
}

/* Writes up to n bytes and returns how many. */
static inline size_t ring_write(const ring_t *ring, const void *bytes, size_t n)
{
    size_t room = ring_room(ring);
    if (n > room)
        n = room;
    if (n == 0)
        return 0;
    uint64_t written = atomic_load_explicit(&ring->positions->written, memory_order_relaxed);
    size_t at = (size_t)written & (ring->capacity - 1);
    size_t first = n < ring->capacity - at ? n : ring->capacity - at;
    memcpy(ring->data + at, bytes, first);
    memcpy(ring->data, (const uint8_t *)bytes + first, n - first);
    atomic_store_explicit(&ring->positions->written, written + n, memory_order_release);
    return n;
}

/* Reads up to n bytes and returns how many, or RING_BROKEN. */
static inline size_t ring_read(const ring_t *ring, void *out, size_t n)
{
    size_t available = ring_available(ring);
    if (available == RING_BROKEN)
        return RING_BROKEN;
    if (n > available)
        n = available;
    if (n == 0)
        return 0;
    uint64_t read = atomic_load_explicit(&ring->positions->read, memory_order_relaxed);
    size_t at = (size_t)read & (ring->capacity - 1);
    size_t first = n < ring->capacity - at ? n : ring->capacity - at;
    memcpy(out, ring->data + at, first);
    memcpy((uint8_t *)out + first, ring->data, n - first);
    atomic_store_explicit(&ring->positions->read, read + n, memory_order_release);
    return n;
}

#endif
