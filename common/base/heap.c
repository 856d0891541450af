/* See heap.h. */
#include "common/base/heap.h"

#include <stdlib.h>

#include "common/base/memory.h"
#include "common/base/status.h"

void heap_reserve(heap_t *heap, uint32_t n)
{
    size_t capacity = heap->capacity;
    MEM_GROW(heap->entries, capacity, n);
    CHECK(capacity <= UINT32_MAX);
    heap->capacity = (uint32_t)capacity;
}

void heap_release(heap_t *heap)
{
    free(heap->entries);
    *heap = (heap_t){0};
}

static bool before(const heap_entry_t *a, const heap_entry_t *b)
{
    return a->major != b->major ? a->major < b->major : a->minor < b->minor;
}

static void set(heap_t *heap, uint32_t at, const heap_entry_t *entry)
{
    heap->entries[at] = *entry;
    *entry->place = at + 1;
}

/* Finds the place of `entry`, going up or down from the hole at `at`. */
static void settle(heap_t *heap, uint32_t at, const heap_entry_t *entry)
{
    while (at > 0 && before(entry, &heap->entries[(at - 1) / 2])) {
        set(heap, at, &heap->entries[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= heap->n)
            break;
        if (child + 1 < heap->n && before(&heap->entries[child + 1], &heap->entries[child]))
            child++;
        if (!before(&heap->entries[child], entry))
            break;
        set(heap, at, &heap->entries[child]);
        at = child;
    }
    set(heap, at, entry);
}

void heap_put(heap_t *heap, void *thing, heap_place_t *place, uint64_t major, uint64_t minor)
{
    const heap_entry_t entry = {major, minor, thing, place};
    CHECK(*place == 0 && heap->n < heap->capacity);
    heap->n++;
    settle(heap, heap->n - 1, &entry);
}

void heap_push(heap_t *heap, void *thing, heap_place_t *place, uint64_t major, uint64_t minor)
{
    heap_reserve(heap, heap->n + 1);
    heap_put(heap, thing, place, major, minor);
}

void heap_remove(heap_t *heap, heap_place_t *place)
{
    if (*place == 0)
        return;
    uint32_t at = *place - 1;
    CHECK(at < heap->n && heap->entries[at].place == place);
    *place = 0;
    heap->n--;
    if (at == heap->n)
        return;
    const heap_entry_t last = heap->entries[heap->n];
    settle(heap, at, &last);
}
