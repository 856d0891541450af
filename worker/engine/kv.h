/* The KV blocks of one replica, or of one of its replicas of attention, as its leader sees them:
 * numbers only, no bytes. Block b holds the same 16 tokens on every rank of those, so one allocator
 * decides for all of them.
 *
 * A block is free, held (by one or more sequences) or kept: held by nobody, but full of known
 * tokens, so that a later prompt that begins alike takes it instead of computing it. Kept blocks
 * are given up least recently used first, and deepest first within one prompt.
 *
 * Because every rank runs step plans strictly in order, a block may be published as soon as the
 * plan that fills it has been made, and taken again as soon as its last reader was planned.
 *
 * Pure and single-threaded: no clock, no bytes on a device, no allocation after kv_new() but for
 * namespaces never seen before. */
#ifndef SHOAL_WORKER_ENGINE_KV_H
#define SHOAL_WORKER_ENGINE_KV_H

#include <stdbool.h>
#include <stdint.h>

#define KV_BLOCK_TOKENS 16u
#define KV_BLOCK_NONE UINT32_MAX
/* Namespaces (tenant and adapter) whose prefixes are kept at once; further ones share nothing. */
#define KV_NAMESPACES_MAX 4096u

typedef struct kv kv_t;

typedef struct {
    uint32_t n_blocks;
    bool keep_prefixes;        /* false: every prompt is computed from its first token */
    const char *text_identity; /* borrowed for the call; seeds the hashes */
} kv_config_t;

kv_t *kv_new(const kv_config_t *config);
void kv_free(kv_t *take_kv);

static inline uint32_t kv_blocks_for(uint64_t n_tokens)
{
    return (uint32_t)((n_tokens + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS);
}

/* The number of a (tenant, adapter) pair: prefixes are shared only inside one. Returns
 * KV_BLOCK_NONE, which matches nothing, when KV_NAMESPACES_MAX are in use. */
uint32_t kv_namespace(kv_t *kv, const char *tenant, const char *adapter);

/* A place in a chain of known blocks: what the next block follows. `serial` tells one content of a
 * block number from a later one, so a link to a block that was given up is noticed. */
typedef struct {
    uint32_t block; /* KV_BLOCK_NONE for the beginning of a prompt */
    uint32_t namespace_id;
    uint64_t serial;
} kv_link_t;

static inline kv_link_t kv_link_root(uint32_t namespace_id)
{
    return (kv_link_t){.block = KV_BLOCK_NONE, .namespace_id = namespace_id, .serial = 0};
}

/* Takes hold of the longest run of kept or held blocks that hold ids[0..16), ids[16..32), …, at
 * most blocks_max of them, and writes their numbers and the link that the next block follows.
 * Tokens are compared one by one; a hash only finds the candidate. Returns how many blocks matched.
 */
uint32_t kv_match(kv_t *kv, uint32_t namespace_id, const uint32_t *ids, uint32_t blocks_max,
                  uint32_t *blocks_out, kv_link_t *link_out);

/* How many blocks kv_match would take hold of. */
uint32_t kv_known(const kv_t *kv, uint32_t namespace_id, const uint32_t *ids, uint32_t blocks_max);

/* Takes hold of n blocks of no content, giving up kept ones when no free one is left. All or
 * nothing; false when fewer than n are not held. */
bool kv_take(kv_t *kv, uint32_t n, uint32_t *blocks_out);

/* Says that `block`, which is held, has ids[0..16) and follows `parent` in its sequence. When
 * another block is already known for the same tokens, that one stays and its link is returned, so
 * both sequences go on in one chain. A parent that was given up meanwhile ends the chain: the link
 * returned then accepts nothing further. */
kv_link_t kv_publish(kv_t *kv, kv_link_t parent, uint32_t block, const uint32_t *ids);

/* Forgets the known block that begins a prompt with ids[0..16), and every block that follows it in
 * any sequence: what they hold is not to be trusted. Whoever holds one keeps it; no later prompt
 * finds it. O(blocks of the replica). */
void kv_unpublish(kv_t *kv, uint32_t namespace_id, const uint32_t *ids);

/* Lets go of a sequence's blocks, given in the order of its tokens. */
void kv_release(kv_t *kv, const uint32_t *blocks, uint32_t n);

/* Of a chain of known blocks that ends with `link` the kept ones become the last to be given up, the
 * deepest before the others: to be called when a sequence ends that let go of its beginning before,
 * because no block can be matched without those in front of it. */
void kv_touch(kv_t *kv, kv_link_t link);

/* Blocks that kv_take() could hand out now: free and kept ones. */
uint32_t kv_blocks_free(const kv_t *kv);
uint32_t kv_blocks_total(const kv_t *kv);
/* Holders of a block; for tests. */
uint32_t kv_holders(const kv_t *kv, uint32_t block);

#endif
