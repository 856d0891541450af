/* The Unigram model: the cutting of a text into known pieces with the highest sum of scores.
 * Internal to the tokenizer. A byte trie in one hash table; a text of n bytes costs
 * O(n * longest piece). Scores and ties are as in Hugging Face's tokenizers, in doubles. */
#ifndef SHOAL_COMMON_MODEL_TOKENIZER_UNIGRAM_H
#define SHOAL_COMMON_MODEL_TOKENIZER_UNIGRAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

enum {
    UNIGRAM_PIECE_BYTES_MAX = 1024,
    UNIGRAM_NODES_MAX = 1 << 23,
};

typedef struct {
    uint64_t key;   /* node << 8 | byte, plus 1; 0 is empty */
    uint32_t child;
} unigram_slot_t;

typedef struct {
    unigram_slot_t *slots;
    size_t n_slots, n_used;
    uint32_t *ids; /* by node: the piece that ends there, or TOKENIZER_NO_ID */
    size_t n_nodes, ids_capacity;
    double *scores; /* by node */
    size_t scores_capacity;
    double min_score; /* of all pieces, those that are never produced too */
} unigram_t;

void unigram_start(unigram_t *unigram);
void unigram_release(unigram_t *unigram);
/* STATUS_INVALID when the pieces are too long. */
status_t unigram_add(unigram_t *unigram, const uint8_t *text, size_t n, uint32_t id,
                     double score) MUST_USE;

typedef struct {
    double score;
    size_t start; /* SIZE_MAX: no path ends here */
    uint32_t id;
} unigram_node_t;

/* Serves one thread; zero-initialised is ready. */
typedef struct {
    unigram_node_t *nodes;
    size_t nodes_capacity;
    struct {
        size_t start, end;
        uint32_t id;
    } *parts; /* the answer of the last unigram_cut, in order */
    size_t n_parts, parts_capacity;
} unigram_scratch_t;

void unigram_scratch_release(unigram_scratch_t *scratch);

/* Cuts valid UTF-8 into scratch->parts. A part of the id TOKENIZER_NO_ID is not known; neighbours
 * of that kind are one part if `fuse`. */
void unigram_cut(const unigram_t *unigram, unigram_scratch_t *scratch, const uint8_t *text,
                 size_t n, bool fuse);

#endif
