/* See tokenizer_special.h. */
#include "common/model/tokenizer_special.h"

#include <stdlib.h>

#include "common/base/memory.h"
#include "common/base/status.h"
#include "common/model/tokenizer.h"

static uint32_t new_node(special_trie_t *trie, uint8_t byte, uint32_t next_sibling)
{
    if (trie->n_nodes == 0)
        trie->n_nodes = 1; /* index 0 stays unused: it means "none" */
    CHECK(trie->n_nodes < UINT32_MAX);
    MEM_GROW(trie->nodes, trie->capacity, trie->n_nodes + 1);
    trie->nodes[trie->n_nodes] = (special_node_t){0, next_sibling, TOKENIZER_NO_ID, byte, false};
    return (uint32_t)trie->n_nodes++;
}

static uint32_t child_of(const special_trie_t *trie, uint32_t node, uint8_t byte)
{
    uint32_t child = trie->nodes[node].first_child;
    while (child != 0 && trie->nodes[child].byte != byte)
        child = trie->nodes[child].next_sibling;
    return child;
}

void special_add(special_trie_t *trie, const uint8_t *text, size_t n, uint32_t id, bool needs_mark)
{
    CHECK(n > 0);
    uint32_t node = trie->roots[text[0]];
    if (node == 0)
        trie->roots[text[0]] = node = new_node(trie, text[0], 0);
    for (size_t i = 1; i < n; i++) {
        uint32_t child = child_of(trie, node, text[i]);
        if (child == 0) {
            child = new_node(trie, text[i], trie->nodes[node].first_child);
            trie->nodes[node].first_child = child;
        }
        node = child;
    }
    if (trie->nodes[node].id != TOKENIZER_NO_ID) /* two tokens may have one normalized form */
        return;
    trie->nodes[node].id = id;
    trie->nodes[node].needs_mark = needs_mark;
}

void special_release(special_trie_t *trie)
{
    free(trie->nodes);
    *trie = (special_trie_t){0};
}

size_t special_match(const special_trie_t *trie, const uint8_t *text, const uint8_t *marks,
                     bool all_marked, size_t n, uint32_t *id_out)
{
    uint32_t node = trie->roots[text[0]];
    bool marked = marks == NULL ? all_marked : true;
    size_t longest = 0;
    for (size_t i = 0; node != 0; i++) {
        marked = marked && (marks == NULL || marks[i] != 0);
        const special_node_t *here = &trie->nodes[node];
        if (here->id != TOKENIZER_NO_ID && (marked || !here->needs_mark)) {
            longest = i + 1;
            *id_out = here->id;
        }
        node = i + 1 < n ? child_of(trie, node, text[i + 1]) : 0;
    }
    return longest;
}
