/* The merges of a vocabulary and their application to one piece of text. Internal to the tokenizer.
 *
 * The order is that of Hugging Face's BPE: among all adjacent pairs the one of lowest rank merges
 * first, the leftmost of equals. A piece is a linked list of symbols and a heap of candidate pairs,
 * so a piece of n bytes costs O(n log n). */
#ifndef SHOAL_COMMON_MODEL_TOKENIZER_BPE_H
#define SHOAL_COMMON_MODEL_TOKENIZER_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* No symbol, and the id of a symbol that was merged away. */
#define BPE_NONE UINT32_MAX

typedef struct {
    uint64_t key; /* left << 32 | right */
    uint32_t rank;
    uint32_t merged; /* the id that replaces the pair */
} bpe_slot_t;

/* An open-addressed table of pairs. Zero-initialised, then bpe_reserve. */
typedef struct {
    bpe_slot_t *slots;
    size_t n_slots; /* a power of two, more than twice the merges */
} bpe_merges_t;

void bpe_reserve(bpe_merges_t *merges, size_t n_merges);
void bpe_release(bpe_merges_t *merges);
/* Returns false when the pair is already there; with `repeat` the new rank counts instead. At most
 * n_merges of bpe_reserve may be added. */
bool bpe_add(bpe_merges_t *merges, uint32_t left, uint32_t right, uint32_t rank, uint32_t merged,
             bool repeat);
/* NULL when the pair does not merge. */
const bpe_slot_t *bpe_find(const bpe_merges_t *merges, uint32_t left, uint32_t right);

typedef struct {
    uint32_t id;
    uint32_t previous, next; /* indices; BPE_NONE at the ends */
} bpe_symbol_t;

typedef struct {
    uint32_t rank, at, merged; /* the pair that starts at symbol `at` */
} bpe_candidate_t;

/* Scratch memory that grows to the longest piece and serves one encode. */
typedef struct {
    bpe_symbol_t *symbols;
    size_t symbols_capacity;
    bpe_candidate_t *heap;
    size_t n_heap, heap_capacity;
} bpe_scratch_t;

void bpe_scratch_release(bpe_scratch_t *scratch);

/* Merges ids[0..*n) in place and sets *n to how many are left. *n < UINT32_MAX. */
void bpe_merge(const bpe_merges_t *merges, bpe_scratch_t *scratch, uint32_t *ids, size_t *n);

#endif
