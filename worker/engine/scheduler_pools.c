/* Pools of KV blocks: one for each replica of attention (common/model/plan.h), the only one otherwise.
 * A sequence has all its blocks in one pool, because one replica attends to it. */
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "worker/engine/scheduler_internal.h"

#define CROWD_BLOCKS 4u /* of a beginning that one more sequence in a pool outweighs */

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

void scheduler_open_pools(scheduler_t *s, const char *text_identity)
{
    const scheduler_config_t *c = &s->config;
    kv_config_t kv = {.n_blocks = c->n_blocks,
                      .keep_prefixes = c->keep_prefixes,
                      .text_identity = text_identity};
    for (uint32_t i = 0; i < c->pools; i++)
        s->pools[i].kv = kv_new(&kv);
    if (c->pools == 1)
        return;
    s->entries_aside = MEM_NEW_ARRAY(step_entry_t, c->batch_max);
    s->flown_aside = MEM_NEW_ARRAY(struct flown, c->batch_max);
}

void scheduler_close_pools(scheduler_t *s)
{
    for (uint32_t i = 0; i < s->config.pools; i++)
        kv_free(s->pools[i].kv);
    free(s->entries_aside);
    free(s->flown_aside);
}

uint64_t scheduler_blocks_free(const scheduler_t *s)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < s->config.pools; i++)
        n += kv_blocks_free(s->pools[i].kv);
    return n;
}

static int64_t room_of(const kv_pool_t *pool)
{
    return (int64_t)kv_blocks_free(pool->kv) - pool->n_running;
}

int64_t scheduler_room(const scheduler_t *s)
{
    int64_t most = room_of(&s->pools[0]);
    for (uint32_t i = 1; i < s->config.pools; i++) {
        int64_t room = room_of(&s->pools[i]);
        most = room > most ? room : most;
    }
    return most;
}

uint32_t scheduler_namespace(scheduler_t *s, const char *tenant, const char *adapter)
{
    uint32_t number = kv_namespace(s->pools[0].kv, tenant, adapter);
    /* All pools see the same names in the same order, so they number them alike. */
    for (uint32_t i = 1; i < s->config.pools; i++)
        CHECK(kv_namespace(s->pools[i].kv, tenant, adapter) == number);
    return number;
}

/* What q's known beginning in a pool is worth, in blocks: less for each sequence that runs there more
 * than elsewhere, because all wait for the replica with most rows in every step, and a beginning is
 * computed once. Else prompts that begin alike would all gather in one pool until it is full. */
static uint32_t worth(const scheduler_t *s, const sequence_t *q, uint32_t blocks_max, uint32_t i)
{
    const kv_pool_t *pool = &s->pools[i];
    uint32_t known = kv_known(pool->kv, q->namespace_id, q->ids, blocks_max), fewest = UINT32_MAX;
    for (uint32_t k = 0; k < s->config.pools; k++)
        fewest = least(fewest, s->pools[k].n_running);
    uint32_t crowd = (pool->n_running - fewest) * CROWD_BLOCKS;
    return known > crowd ? known - crowd : 0;
}

/* Where q would best begin, by the first blocks_max of its blocks, then by room; the others behind
 * it, each once. */
static void rank_pools(const scheduler_t *s, const sequence_t *q, uint32_t blocks_max,
                       uint32_t pools_out[PLAN_TP_MAX])
{
    uint32_t n = s->config.pools, worths[PLAN_TP_MAX];
    pools_out[0] = 0;
    if (n == 1)
        return;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = i;
        worths[i] = worth(s, q, blocks_max, i);
        for (; at > 0; at--) {
            uint32_t before = pools_out[at - 1];
            if (worths[before] > worths[i] ||
                (worths[before] == worths[i] &&
                 room_of(&s->pools[before]) >= room_of(&s->pools[i])))
                break;
            pools_out[at] = before;
        }
        pools_out[at] = i;
    }
}

uint64_t scheduler_tokens_held(const scheduler_t *s, uint64_t tokens)
{
    return plan_kv_tokens_held(s->config.window, s->config.step_tokens_max, tokens);
}

void scheduler_give_back(const scheduler_t *s, kv_t *kv, sequence_t *q)
{
    uint32_t window = s->config.window;
    if (window == 0 || q->n_computed + 1 <= window)
        return;
    /* Attention reads whole tiles and passes over what a row does not see; none of it may be what
     * another writes. Guesses that were right have blocks that are not published yet. */
    uint32_t tiles = (q->n_computed + 1 - window) / PLAN_KV_BLOCK;
    uint32_t n = least(tiles * (PLAN_KV_BLOCK / KV_BLOCK_TOKENS), q->n_published);
    if (n > q->n_behind) {
        kv_release(kv, q->blocks + q->n_behind, n - q->n_behind);
        q->n_behind = n;
    }
}

void scheduler_let_go(kv_t *kv, sequence_t *q)
{
    kv_release(kv, q->blocks + q->n_behind, q->n_blocks - q->n_behind);
    if (q->n_behind > 0)
        kv_touch(kv, q->link);
    q->n_blocks = q->n_behind = q->n_told = 0;
    q->n_computed = q->n_published = 0;
}

uint32_t scheduler_blocks_to_start(const scheduler_t *s, const sequence_t *q)
{
    uint32_t whole = q->n_prompt + q->max_tokens;
    uint32_t tokens = least(q->n_ids + (q->started ? SCHEDULER_RETURN_TOKENS : 1u), whole);
    return kv_blocks_for(scheduler_tokens_held(s, tokens - q->n_behind * KV_BLOCK_TOKENS));
}

/* Gives q its blocks in one pool, those of its beginning that are known there included. */
static bool hold_first(const scheduler_t *s, kv_pool_t *pool, sequence_t *q, uint32_t match_max)
{
    kv_t *kv = pool->kv;
    uint32_t matched = kv_match(kv, q->namespace_id, q->ids, match_max, q->blocks, &q->link);
    q->n_blocks = q->n_published = matched;
    q->n_computed = matched * KV_BLOCK_TOKENS;
    scheduler_give_back(s, kv, q);
    /* All its tokens and the next one, or as many behind what it gave back as it holds at once. */
    uint32_t behind = q->n_behind * KV_BLOCK_TOKENS;
    uint32_t tokens = least(q->n_ids + 1, q->n_prompt + q->max_tokens) - behind;
    uint32_t held = matched - q->n_behind;
    uint32_t wanted = kv_blocks_for(scheduler_tokens_held(s, tokens));
    uint32_t taken = wanted > held ? wanted - held : 0;
    if (kv_blocks_free(kv) + held < scheduler_blocks_to_start(s, q) + pool->n_running ||
        !kv_take(kv, taken, q->blocks + matched)) {
        scheduler_let_go(kv, q);
        return false;
    }
    q->n_blocks = matched + taken;
    return true;
}

bool scheduler_choose_pool(scheduler_t *s, sequence_t *q, uint32_t match_max)
{
    uint32_t pools[PLAN_TP_MAX];
    rank_pools(s, q, match_max, pools);
    for (uint32_t i = 0; i < s->config.pools; i++)
        if (hold_first(s, &s->pools[pools[i]], q, match_max)) {
            q->pool = pools[i];
            return true;
        }
    return false;
}

void scheduler_sort_entries(scheduler_t *s, flight_t *flight)
{
    uint32_t n = 0;
    for (uint32_t pool = 0; pool < s->config.pools; pool++)
        for (uint32_t i = 0; i < flight->n; i++)
            if (s->plan.entries[i].pool == pool) {
                s->entries_aside[n] = s->plan.entries[i];
                s->flown_aside[n++] = flight->entries[i];
            }
    CHECK(n == flight->n);
    memcpy(s->plan.entries, s->entries_aside, n * sizeof *s->entries_aside);
    memcpy(flight->entries, s->flown_aside, n * sizeof *s->flown_aside);
}
