/* See ring.h. Points are (hash, node), sorted; hashes are 32 bits, which at 4,096 nodes makes a few
 * hundred ties: they are broken by the lower node, the same at every coordinator. */
#include "coordinator/core/ring.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "common/base/memory.h"

typedef struct {
    uint32_t hash;
    uint32_t node;
} point_t;

struct ring {
    point_t *points;
    size_t n, capacity;
};

static int compare_points(const void *a, const void *b)
{
    const point_t *x = a, *y = b;
    if (x->hash != y->hash)
        return x->hash < y->hash ? -1 : 1;
    return x->node < y->node ? -1 : x->node > y->node;
}

ring_t *ring_new(void)
{
    return MEM_NEW(ring_t);
}

void ring_free(ring_t *ring)
{
    if (!ring)
        return;
    free(ring->points);
    free(ring);
}

size_t ring_n_nodes(const ring_t *ring)
{
    return ring->n / RING_POINTS;
}

static bool has_node(const ring_t *ring, uint32_t node)
{
    for (size_t i = 0; i < ring->n; i++)
        if (ring->points[i].node == node)
            return true;
    return false;
}

void ring_add(ring_t *ring, uint32_t node)
{
    if (has_node(ring, node))
        return;
    point_t fresh[RING_POINTS];
    for (uint32_t i = 0; i < RING_POINTS; i++) {
        uint32_t seed[2] = {node, i};
        fresh[i] = (point_t){(uint32_t)(XXH3_64bits(seed, sizeof seed) >> 32), node};
    }
    qsort(fresh, RING_POINTS, sizeof *fresh, compare_points);
    MEM_GROW(ring->points, ring->capacity, ring->n + RING_POINTS);
    /* Merge from the back, so that nothing is overwritten before it was moved. */
    size_t old = ring->n, add = RING_POINTS, to = ring->n + RING_POINTS;
    while (add > 0) {
        if (old > 0 && compare_points(&ring->points[old - 1], &fresh[add - 1]) > 0)
            ring->points[--to] = ring->points[--old];
        else
            ring->points[--to] = fresh[--add];
    }
    ring->n += RING_POINTS;
}

void ring_remove(ring_t *ring, uint32_t node)
{
    size_t kept = 0;
    for (size_t i = 0; i < ring->n; i++)
        if (ring->points[i].node != node)
            ring->points[kept++] = ring->points[i];
    ring->n = kept;
}

static size_t first_at_or_after(const ring_t *ring, uint32_t hash)
{
    size_t low = 0, high = ring->n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (ring->points[middle].hash < hash)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static bool contains(const uint32_t *nodes, size_t n, uint32_t node)
{
    for (size_t i = 0; i < n; i++)
        if (nodes[i] == node)
            return true;
    return false;
}

size_t ring_walk(const ring_t *ring, uint64_t key, ring_usable_fn usable, void *context,
                 uint32_t *nodes_out, size_t max)
{
    if (max > RING_WALK_MAX)
        max = RING_WALK_MAX;
    size_t start = first_at_or_after(ring, (uint32_t)(key >> 32));
    size_t n_look = ring->n < RING_LOOK_MAX ? ring->n : RING_LOOK_MAX;
    size_t n = 0;
    uint32_t last_refused = UINT32_MAX;
    for (size_t i = 0; i < n_look && n < max; i++) {
        uint32_t node = ring->points[(start + i) % ring->n].node;
        if (node == last_refused || contains(nodes_out, n, node))
            continue;
        if (usable && !usable(context, node)) {
            last_refused = node;
            continue;
        }
        nodes_out[n++] = node;
    }
    return n;
}

static void add_text(XXH3_state_t *state, const char *text)
{
    /* The length goes first: ("ab", "c") and ("a", "bc") are two keys. */
    uint64_t size = text ? strlen(text) : 0;
    XXH3_64bits_update(state, &size, sizeof size);
    if (size)
        XXH3_64bits_update(state, text, size);
}

uint64_t ring_key(const char *tenant, const char *adapter, const char *conversation,
                  const uint32_t *prompt, size_t n_prompt)
{
    XXH3_state_t *state = XXH3_createState();
    XXH3_64bits_reset(state);
    add_text(state, tenant);
    add_text(state, adapter);
    add_text(state, conversation);
    if (!conversation || !*conversation) {
        size_t n = n_prompt;
        if (n_prompt >= RING_BLOCK) {
            size_t blocks = n_prompt / RING_BLOCK;
            n = (blocks < RING_BLOCKS_MAX ? blocks : RING_BLOCKS_MAX) * RING_BLOCK;
        }
        XXH3_64bits_update(state, prompt, n * sizeof *prompt);
    }
    uint64_t key = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return key;
}
