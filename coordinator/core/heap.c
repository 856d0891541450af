/* See heap.h. Children of place p are 2p and 2p + 1. */
#include "coordinator/core/heap.h"

#include <stdlib.h>

#include "common/base/memory.h"
#include "common/base/status.h"

static bool before(const heap_node_t *a, const heap_node_t *b)
{
    return a->major != b->major ? a->major < b->major : a->minor < b->minor;
}

static void put(heap_t *heap, size_t place, heap_node_t *node)
{
    heap->nodes[place - 1] = node;
    node->place = place;
}

static void rise(heap_t *heap, heap_node_t *node)
{
    size_t place = node->place;
    while (place > 1 && before(node, heap->nodes[place / 2 - 1])) {
        put(heap, place, heap->nodes[place / 2 - 1]);
        place /= 2;
    }
    put(heap, place, node);
}

static void sink(heap_t *heap, heap_node_t *node)
{
    size_t place = node->place;
    for (;;) {
        size_t child = place * 2;
        if (child > heap->n)
            break;
        if (child < heap->n && before(heap->nodes[child], heap->nodes[child - 1]))
            child++;
        if (!before(heap->nodes[child - 1], node))
            break;
        put(heap, place, heap->nodes[child - 1]);
        place = child;
    }
    put(heap, place, node);
}

void heap_push(heap_t *heap, heap_node_t *node, uint64_t major, uint64_t minor)
{
    CHECK(node->place == 0);
    MEM_GROW(heap->nodes, heap->capacity, heap->n + 1);
    node->major = major;
    node->minor = minor;
    heap->n++;
    put(heap, heap->n, node);
    rise(heap, node);
}

void heap_remove(heap_t *heap, heap_node_t *node)
{
    if (node->place == 0)
        return;
    CHECK(node->place <= heap->n && heap->nodes[node->place - 1] == node);
    heap_node_t *last = heap->nodes[heap->n - 1];
    size_t place = node->place;
    heap->n--;
    node->place = 0;
    if (last == node)
        return;
    put(heap, place, last);
    rise(heap, last);
    sink(heap, last);
}

heap_node_t *heap_top(const heap_t *heap)
{
    return heap->n ? heap->nodes[0] : NULL;
}

void heap_release(heap_t *heap)
{
    free(heap->nodes);
    *heap = (heap_t){0};
}
