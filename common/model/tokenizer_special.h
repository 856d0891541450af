/* Finds the tokens that are written out in text: control tokens such as <|im_end|> where they are
 * asked for, and user-defined ones. A byte trie, so a text of n bytes costs O(n * longest token).
 * Internal to the tokenizer. */
#ifndef SHOAL_COMMON_MODEL_TOKENIZER_SPECIAL_H
#define SHOAL_COMMON_MODEL_TOKENIZER_SPECIAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint32_t first_child, next_sibling; /* indices; 0 is none, since node 0 is no one's child */
    uint32_t id;                        /* of the token that ends here, or TOKENIZER_NO_ID */
    uint8_t byte;
    bool needs_mark; /* a control token: found only where its bytes are marked */
} special_node_t;

typedef struct {
    special_node_t *nodes;
    size_t n_nodes, capacity;
    uint32_t roots[256]; /* node of each first byte; 0 is none */
} special_trie_t;

/* text must not be empty. Where it is there already, the first stays. */
void special_add(special_trie_t *trie, const uint8_t *text, size_t n, uint32_t id, bool needs_mark);
void special_release(special_trie_t *trie);

/* The longest token at the start of text[0..n), n > 0: its size, or 0 when there is none. Control
 * tokens count only when each byte's mark is not 0; marks may be NULL: then all or none is marked,
 * as `all_marked` says. */
size_t special_match(const special_trie_t *trie, const uint8_t *text, const uint8_t *marks,
                     bool all_marked, size_t n, uint32_t *id_out);

#endif
