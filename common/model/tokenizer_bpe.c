/* See tokenizer_bpe.h. */
#include "common/model/tokenizer_bpe.h"

#include <stdlib.h>

#include "common/base/memory.h"
#include "common/base/status.h"

/* Ids are below UINT32_MAX, so no pair has this key. */
#define EMPTY UINT64_MAX
enum { SHORT_PIECE = 32 };

static uint64_t pair_key(uint32_t left, uint32_t right)
{
    return (uint64_t)left << 32 | right;
}

/* The finalizer of MurmurHash3: every bit of the key reaches the low bits that pick the slot. */
static size_t pair_hash(uint64_t key)
{
    key = (key ^ key >> 33) * 0xFF51AFD7ED558CCDu;
    key = (key ^ key >> 33) * 0xC4CEB9FE1A85EC53u;
    return (size_t)(key ^ key >> 33);
}

void bpe_reserve(bpe_merges_t *merges, size_t n_merges)
{
    merges->n_slots = 16;
    while (merges->n_slots < 2 * n_merges + 1)
        merges->n_slots *= 2;
    merges->slots = MEM_NEW_ARRAY(bpe_slot_t, merges->n_slots);
    for (size_t i = 0; i < merges->n_slots; i++)
        merges->slots[i].key = EMPTY;
}

void bpe_release(bpe_merges_t *merges)
{
    free(merges->slots);
    *merges = (bpe_merges_t){0};
}

/* The slot that holds the key or the empty one where it belongs. */
static bpe_slot_t *slot_of(const bpe_merges_t *merges, uint64_t key)
{
    size_t mask = merges->n_slots - 1, at = pair_hash(key) & mask;
    while (merges->slots[at].key != EMPTY && merges->slots[at].key != key)
        at = (at + 1) & mask;
    return &merges->slots[at];
}

bool bpe_add(bpe_merges_t *merges, uint32_t left, uint32_t right, uint32_t rank, uint32_t merged,
             bool repeat)
{
    bpe_slot_t *slot = slot_of(merges, pair_key(left, right));
    if (slot->key != EMPTY && !repeat)
        return false;
    *slot = (bpe_slot_t){pair_key(left, right), rank, merged};
    return true;
}

const bpe_slot_t *bpe_find(const bpe_merges_t *merges, uint32_t left, uint32_t right)
{
    const bpe_slot_t *slot = slot_of(merges, pair_key(left, right));
    return slot->key != EMPTY ? slot : NULL;
}

void bpe_scratch_release(bpe_scratch_t *scratch)
{
    free(scratch->symbols);
    free(scratch->heap);
    *scratch = (bpe_scratch_t){0};
}

static bool is_before(const bpe_candidate_t *a, const bpe_candidate_t *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static void heap_push(bpe_scratch_t *scratch, bpe_candidate_t candidate)
{
    MEM_GROW(scratch->heap, scratch->heap_capacity, scratch->n_heap + 1);
    size_t at = scratch->n_heap++;
    while (at > 0) {
        size_t parent = (at - 1) / 2;
        if (!is_before(&candidate, &scratch->heap[parent]))
            break;
        scratch->heap[at] = scratch->heap[parent];
        at = parent;
    }
    scratch->heap[at] = candidate;
}

static bpe_candidate_t heap_pop(bpe_scratch_t *scratch)
{
    bpe_candidate_t *heap = scratch->heap;
    bpe_candidate_t top = heap[0], last = heap[--scratch->n_heap];
    size_t at = 0, n = scratch->n_heap;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= n)
            break;
        if (child + 1 < n && is_before(&heap[child + 1], &heap[child]))
            child++;
        if (!is_before(&heap[child], &last))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return top;
}

static void offer(const bpe_merges_t *merges, bpe_scratch_t *scratch, uint32_t at)
{
    const bpe_symbol_t *symbol = &scratch->symbols[at];
    if (symbol->next == BPE_NONE)
        return;
    const bpe_slot_t *slot = bpe_find(merges, symbol->id, scratch->symbols[symbol->next].id);
    if (slot != NULL)
        heap_push(scratch, (bpe_candidate_t){slot->rank, at, slot->merged});
}

/* Whether the candidate is still what stands at its place: an earlier merge may have taken either
 * symbol. A symbol that was taken carries the id BPE_NONE. */
static bool is_current(const bpe_merges_t *merges, const bpe_scratch_t *scratch,
                       const bpe_candidate_t *candidate)
{
    const bpe_symbol_t *symbol = &scratch->symbols[candidate->at];
    if (symbol->id == BPE_NONE || symbol->next == BPE_NONE)
        return false;
    const bpe_slot_t *slot = bpe_find(merges, symbol->id, scratch->symbols[symbol->next].id);
    return slot != NULL && slot->merged == candidate->merged;
}

/* Most pieces are words of a few symbols: there looking at all pairs each time is faster than a
 * heap. ranks[i] is that of the pair (i, i + 1); the last is never read. */
static size_t merge_short(const bpe_merges_t *merges, uint32_t *ids, size_t n)
{
    const bpe_slot_t *pairs[SHORT_PIECE];
    for (size_t i = 0; i + 1 < n; i++)
        pairs[i] = bpe_find(merges, ids[i], ids[i + 1]);
    while (n > 1) {
        size_t best = n;
        for (size_t i = 0; i + 1 < n; i++)
            if (pairs[i] != NULL && (best == n || pairs[i]->rank < pairs[best]->rank))
                best = i;
        if (best == n)
            break;
        ids[best] = pairs[best]->merged;
        n--;
        for (size_t i = best + 1; i < n; i++) {
            ids[i] = ids[i + 1];
            pairs[i] = i + 1 < n ? pairs[i + 1] : NULL;
        }
        pairs[best] = best + 1 < n ? bpe_find(merges, ids[best], ids[best + 1]) : NULL;
        if (best > 0)
            pairs[best - 1] = bpe_find(merges, ids[best - 1], ids[best]);
    }
    return n;
}

void bpe_merge(const bpe_merges_t *merges, bpe_scratch_t *scratch, uint32_t *ids, size_t *n)
{
    CHECK(*n < BPE_NONE);
    uint32_t count = (uint32_t)*n;
    if (count < 2)
        return;
    if (count <= SHORT_PIECE) {
        *n = merge_short(merges, ids, count);
        return;
    }
    MEM_GROW(scratch->symbols, scratch->symbols_capacity, count);
    bpe_symbol_t *symbols = scratch->symbols;
    for (uint32_t i = 0; i < count; i++)
        symbols[i] = (bpe_symbol_t){ids[i], i == 0 ? BPE_NONE : i - 1,
                                    i + 1 == count ? BPE_NONE : i + 1};
    scratch->n_heap = 0;
    for (uint32_t i = 0; i + 1 < count; i++)
        offer(merges, scratch, i);
    while (scratch->n_heap > 0) {
        bpe_candidate_t top = heap_pop(scratch);
        if (!is_current(merges, scratch, &top))
            continue;
        bpe_symbol_t *left = &symbols[top.at], *right = &symbols[left->next];
        left->id = top.merged;
        left->next = right->next;
        right->id = BPE_NONE;
        if (left->next != BPE_NONE)
            symbols[left->next].previous = top.at;
        offer(merges, scratch, top.at);
        if (left->previous != BPE_NONE)
            offer(merges, scratch, left->previous);
    }
    size_t left_over = 0;
    for (uint32_t at = 0; at != BPE_NONE; at = symbols[at].next)
        ids[left_over++] = symbols[at].id;
    *n = left_over;
}
