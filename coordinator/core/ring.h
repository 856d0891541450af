/* The ring: which slot of a deployment a request should meet, so that equal prefixes find their
 * cached KV. Consistent hashing with virtual nodes over ordinals: the node is the slot, not the
 * replica that fills it, so a re-formation moves no key, and every coordinator that knows the same
 * slots finds the same one. Adding or removing one of n slots moves about 1/n of the keys.
 *
 * Load is bounded by whoever walks: the nodes after the first are where a key goes when the first
 * has no credit (bounded loads). Lookup is O(log points); a change is O(points). Not thread-safe.
 */
#ifndef SHOAL_COORDINATOR_CORE_RING_H
#define SHOAL_COORDINATOR_CORE_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    /* Points a node. The spread of a node's share is about 1/sqrt(points): 4.4 % of it at 512, so
     * that the key movement of 1.1/n, which a test holds, leaves two standard deviations. */
    RING_POINTS = 512,
    RING_WALK_MAX = 8,     /* distinct nodes a walk gives */
    RING_LOOK_MAX = 16384, /* points a walk looks at before it gives up */
    RING_BLOCK = 16,       /* tokens; as a KV block, since only whole blocks are shared */
    RING_BLOCKS_MAX = 8,   /* of the prompt in a key */
};

typedef struct ring ring_t;
/* Whether a node may take this key now. */
typedef bool (*ring_usable_fn)(void *context, uint32_t node);

ring_t *ring_new(void);
void ring_free(ring_t *take_ring);
/* Both do nothing when it is so already. */
void ring_add(ring_t *ring, uint32_t node);
void ring_remove(ring_t *ring, uint32_t node);
size_t ring_n_nodes(const ring_t *ring);

/* The first `max` (at most RING_WALK_MAX) distinct usable nodes from the key on, clockwise; usable
 * may be NULL. Returns how many. */
size_t ring_walk(const ring_t *ring, uint64_t key, ring_usable_fn usable, void *context,
                 uint32_t *nodes_out, size_t max);

/* The key of a request: the conversation when there is one, else the prompt's first whole blocks
 * (at most 8; a prompt shorter than one block counts whole), with tenant and adapter, whose KV is
 * not shared. NULL texts are "". */
uint64_t ring_key(const char *tenant, const char *adapter, const char *conversation,
                  const uint32_t *prompt, size_t n_prompt);

#endif
