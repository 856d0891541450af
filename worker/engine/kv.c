/* The allocator of KV blocks: a free stack, a list of kept blocks in the order in which they will
 * be given up, and a hash table over the blocks whose tokens are known. See kv.h. */
#include "worker/engine/kv.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "common/base/memory.h"
#include "common/base/status.h"

#define NONE KV_BLOCK_NONE
#define NAMESPACE_PLACES (2u * KV_NAMESPACES_MAX)
#define DEAD_SERIAL UINT64_MAX

typedef struct {
    uint32_t holders;
    uint32_t older, newer; /* neighbours in the kept list */
    uint32_t hash_next;    /* next known block of the same bucket */
    bool known;            /* ids, parent and hash are valid and the block is in the table */
    kv_link_t parent;
    uint64_t serial; /* of this content */
    uint64_t hash;   /* of the whole chain up to this block */
    uint64_t sound; /* the sweep that found its chain whole */
    uint32_t ids[KV_BLOCK_TOKENS];
} block_t;

struct kv {
    uint32_t n_blocks;
    bool keep_prefixes;
    block_t *blocks;
    uint32_t *free_stack;
    uint32_t n_free;
    uint32_t n_kept;
    uint32_t oldest, newest; /* ends of the kept list */
    uint32_t *buckets;
    uint32_t bucket_mask;
    uint64_t serial;
    uint64_t sweep; /* number of the last one */
    uint64_t seed;
    char **namespaces; /* open addressing by hash; the place is the number */
    uint32_t n_namespaces;
};

kv_t *kv_new(const kv_config_t *config)
{
    kv_t *kv = MEM_NEW(kv_t);
    kv->n_blocks = config->n_blocks;
    kv->keep_prefixes = config->keep_prefixes;
    kv->blocks = MEM_NEW_ARRAY(block_t, config->n_blocks);
    kv->free_stack = MEM_NEW_ARRAY(uint32_t, config->n_blocks);
    uint32_t n_buckets = 16;
    while (n_buckets < config->n_blocks && n_buckets < (1u << 30))
        n_buckets *= 2;
    kv->buckets = MEM_NEW_ARRAY(uint32_t, n_buckets);
    memset(kv->buckets, 0xff, n_buckets * sizeof *kv->buckets);
    kv->bucket_mask = n_buckets - 1;
    kv->oldest = kv->newest = NONE;
    /* The lowest number lies on top, which makes small cases easy to read. */
    for (uint32_t i = 0; i < config->n_blocks; i++)
        kv->free_stack[kv->n_free++] = config->n_blocks - 1 - i;
    kv->seed = XXH3_64bits(config->text_identity, strlen(config->text_identity));
    kv->namespaces = MEM_NEW_ARRAY(char *, NAMESPACE_PLACES);
    return kv;
}

void kv_free(kv_t *kv)
{
    if (!kv)
        return;
    for (uint32_t i = 0; i < NAMESPACE_PLACES; i++)
        free(kv->namespaces[i]);
    free(kv->namespaces);
    free(kv->buckets);
    free(kv->free_stack);
    free(kv->blocks);
    free(kv);
}

uint32_t kv_namespace(kv_t *kv, const char *tenant, const char *adapter)
{
    /* The length of the tenant stands first, so that ("ab", "c") and ("a", "bc") differ. */
    char *name = mem_format("%zu %s %s", strlen(tenant), tenant, adapter);
    uint32_t place = (uint32_t)(XXH3_64bits(name, strlen(name)) % NAMESPACE_PLACES);
    while (kv->namespaces[place] && strcmp(kv->namespaces[place], name) != 0)
        place = (place + 1) % NAMESPACE_PLACES;
    if (kv->namespaces[place]) {
        free(name);
        return place;
    }
    if (kv->n_namespaces == KV_NAMESPACES_MAX) {
        free(name);
        return NONE;
    }
    kv->namespaces[place] = name;
    kv->n_namespaces++;
    return place;
}

/* ---- the kept list ---- */

static void kept_remove(kv_t *kv, uint32_t number)
{
    block_t *block = &kv->blocks[number];
    if (block->older == NONE)
        kv->oldest = block->newer;
    else
        kv->blocks[block->older].newer = block->newer;
    if (block->newer == NONE)
        kv->newest = block->older;
    else
        kv->blocks[block->newer].older = block->older;
    kv->n_kept--;
}

static void kept_append(kv_t *kv, uint32_t number)
{
    block_t *block = &kv->blocks[number];
    block->older = kv->newest;
    block->newer = NONE;
    if (kv->newest == NONE)
        kv->oldest = number;
    else
        kv->blocks[kv->newest].newer = number;
    kv->newest = number;
    kv->n_kept++;
}

/* ---- the table of known blocks ---- */

static void forget(kv_t *kv, uint32_t number)
{
    block_t *block = &kv->blocks[number];
    uint32_t *at = &kv->buckets[block->hash & kv->bucket_mask];
    while (*at != number)
        at = &kv->blocks[*at].hash_next;
    *at = block->hash_next;
    block->known = false;
}

static bool link_alive(const kv_t *kv, kv_link_t link)
{
    if (link.namespace_id == NONE || link.serial == DEAD_SERIAL)
        return false;
    if (link.block == NONE)
        return true;
    const block_t *block = &kv->blocks[link.block];
    return block->known && block->serial == link.serial;
}

static uint64_t chain_hash(const kv_t *kv, kv_link_t parent, const uint32_t *ids)
{
    uint64_t before = parent.block == NONE ? kv->seed + parent.namespace_id * 0x9e3779b97f4a7c15ull
                                           : kv->blocks[parent.block].hash;
    return XXH3_64bits_withSeed(ids, KV_BLOCK_TOKENS * sizeof *ids, before);
}

static uint32_t find(const kv_t *kv, kv_link_t parent, uint64_t hash, const uint32_t *ids)
{
    for (uint32_t at = kv->buckets[hash & kv->bucket_mask]; at != NONE;
         at = kv->blocks[at].hash_next) {
        const block_t *block = &kv->blocks[at];
        if (block->hash == hash && block->parent.block == parent.block &&
            block->parent.serial == parent.serial &&
            block->parent.namespace_id == parent.namespace_id &&
            memcmp(block->ids, ids, sizeof block->ids) == 0)
            return at;
    }
    return NONE;
}

static kv_link_t link_to(const kv_t *kv, uint32_t number, uint32_t namespace_id)
{
    return (kv_link_t){
        .block = number, .namespace_id = namespace_id, .serial = kv->blocks[number].serial};
}

uint32_t kv_known(const kv_t *kv, uint32_t namespace_id, const uint32_t *ids, uint32_t blocks_max)
{
    kv_link_t link = kv_link_root(namespace_id);
    uint32_t n = 0;
    while (n < blocks_max && kv->keep_prefixes && link_alive(kv, link)) {
        uint32_t number = find(kv, link, chain_hash(kv, link, ids), ids);
        if (number == NONE)
            break;
        link = link_to(kv, number, namespace_id);
        ids += KV_BLOCK_TOKENS;
        n++;
    }
    return n;
}

uint32_t kv_match(kv_t *kv, uint32_t namespace_id, const uint32_t *ids, uint32_t blocks_max,
                  uint32_t *blocks_out, kv_link_t *link_out)
{
    kv_link_t link = kv_link_root(namespace_id);
    uint32_t n = 0;
    while (n < blocks_max && kv->keep_prefixes && link_alive(kv, link)) {
        uint64_t hash = chain_hash(kv, link, ids);
        uint32_t number = find(kv, link, hash, ids);
        if (number == NONE)
            break;
        if (kv->blocks[number].holders++ == 0)
            kept_remove(kv, number);
        blocks_out[n++] = number;
        link = link_to(kv, number, namespace_id);
        ids += KV_BLOCK_TOKENS;
    }
    *link_out = link;
    return n;
}

kv_link_t kv_publish(kv_t *kv, kv_link_t parent, uint32_t number, const uint32_t *ids)
{
    const kv_link_t dead = {
        .block = NONE, .namespace_id = parent.namespace_id, .serial = DEAD_SERIAL};
    CHECK(number < kv->n_blocks && kv->blocks[number].holders > 0);
    if (!kv->keep_prefixes || !link_alive(kv, parent) || kv->blocks[number].known)
        return dead;
    uint64_t hash = chain_hash(kv, parent, ids);
    uint32_t known = find(kv, parent, hash, ids);
    if (known != NONE)
        return link_to(kv, known, parent.namespace_id);
    block_t *block = &kv->blocks[number];
    block->known = true;
    block->parent = parent;
    block->serial = ++kv->serial;
    block->hash = hash;
    memcpy(block->ids, ids, sizeof block->ids);
    block->hash_next = kv->buckets[hash & kv->bucket_mask];
    kv->buckets[hash & kv->bucket_mask] = number;
    return link_to(kv, number, parent.namespace_id);
}

/* ---- blocks that are not to be trusted ---- */

/* No longer known: what nobody holds is free at once. */
static void drop(kv_t *kv, uint32_t number)
{
    forget(kv, number);
    if (kv->blocks[number].holders == 0) {
        kept_remove(kv, number);
        kv->free_stack[kv->n_free++] = number;
    }
}

/* Whether every block from here to the beginning of the prompt is known. Those found sound are
 * marked, so that one sweep walks over each of them once. */
static bool chain_is_whole(kv_t *kv, uint32_t number)
{
    uint32_t at = number;
    while (kv->blocks[at].sound != kv->sweep && kv->blocks[at].parent.block != NONE &&
           link_alive(kv, kv->blocks[at].parent))
        at = kv->blocks[at].parent.block;
    if (kv->blocks[at].sound != kv->sweep && kv->blocks[at].parent.block != NONE)
        return false;
    while (kv->blocks[number].sound != kv->sweep) {
        kv->blocks[number].sound = kv->sweep;
        if (kv->blocks[number].parent.block != NONE)
            number = kv->blocks[number].parent.block;
    }
    return true;
}

/* The block and all before it that are still known. */
static void drop_chain(kv_t *kv, uint32_t number)
{
    bool more = true;
    while (more) {
        kv_link_t parent = kv->blocks[number].parent;
        more = parent.block != NONE && link_alive(kv, parent);
        drop(kv, number);
        number = parent.block;
    }
}

void kv_unpublish(kv_t *kv, uint32_t namespace_id, const uint32_t *ids)
{
    kv_link_t root = kv_link_root(namespace_id);
    if (!kv->keep_prefixes || !link_alive(kv, root))
        return;
    uint32_t first = find(kv, root, chain_hash(kv, root, ids), ids);
    if (first == NONE)
        return;
    drop(kv, first);
    kv->sweep++;
    for (uint32_t number = 0; number < kv->n_blocks; number++)
        if (kv->blocks[number].known && !chain_is_whole(kv, number))
            drop_chain(kv, number);
}

bool kv_take(kv_t *kv, uint32_t n, uint32_t *blocks_out)
{
    if (n > kv_blocks_free(kv))
        return false;
    uint32_t n_free = n < kv->n_free ? n : kv->n_free;
    for (uint32_t i = 0; i < n_free; i++)
        blocks_out[i] = kv->free_stack[--kv->n_free];
    /* A prompt's blocks are given up from its end. Turned round they stand as they stood in it, most
     * of them one behind the other in memory, where attention reads longer runs. */
    for (uint32_t i = n; i-- > n_free;) {
        uint32_t number = kv->oldest;
        kept_remove(kv, number);
        forget(kv, number);
        blocks_out[i] = number;
    }
    for (uint32_t i = 0; i < n; i++)
        kv->blocks[blocks_out[i]].holders = 1;
    return true;
}

void kv_release(kv_t *kv, const uint32_t *blocks, uint32_t n)
{
    /* From the end, so that a prompt's deepest block is given up first: a block without its parent
     * can never be matched again. */
    for (uint32_t i = n; i-- > 0;) {
        block_t *block = &kv->blocks[blocks[i]];
        CHECK(block->holders > 0);
        if (--block->holders > 0)
            continue;
        if (block->known)
            kept_append(kv, blocks[i]);
        else
            kv->free_stack[kv->n_free++] = blocks[i];
    }
}

void kv_touch(kv_t *kv, kv_link_t link)
{
    /* Without its beginning nothing of a chain is found again. */
    kv_link_t first = link;
    while (first.block != NONE && link_alive(kv, first))
        first = kv->blocks[first.block].parent;
    if (first.block != NONE)
        return;
    while (link.block != NONE) {
        if (kv->blocks[link.block].holders == 0) {
            kept_remove(kv, link.block);
            kept_append(kv, link.block);
        }
        link = kv->blocks[link.block].parent;
    }
}

uint32_t kv_blocks_free(const kv_t *kv)
{
    return kv->n_free + kv->n_kept;
}

uint32_t kv_blocks_total(const kv_t *kv)
{
    return kv->n_blocks;
}

uint32_t kv_holders(const kv_t *kv, uint32_t block)
{
    CHECK(block < kv->n_blocks);
    return kv->blocks[block].holders;
}
