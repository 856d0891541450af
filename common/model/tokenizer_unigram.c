/* See tokenizer_unigram.h. */
#include "common/model/tokenizer_unigram.h"

#include <math.h>
#include <stdlib.h>

#include "common/base/memory.h"
#include "common/model/tokenizer.h"
#include "common/model/unicode.h"

/* What an unknown character costs beyond the worst piece; SentencePiece's kUnkPenalty. */
static const double unknown_penalty = 10.0;

static size_t slot_hash(uint64_t key)
{
    key = (key ^ key >> 33) * 0xFF51AFD7ED558CCDu;
    return (size_t)(key ^ key >> 29);
}

static unigram_slot_t *slot_of(unigram_slot_t *slots, size_t n_slots, uint64_t key)
{
    size_t mask = n_slots - 1, at = slot_hash(key) & mask;
    while (slots[at].key != 0 && slots[at].key != key)
        at = (at + 1) & mask;
    return &slots[at];
}

static void grow(unigram_t *unigram)
{
    size_t n_slots = unigram->n_slots * 2;
    unigram_slot_t *slots = MEM_NEW_ARRAY(unigram_slot_t, n_slots);
    for (size_t i = 0; i < unigram->n_slots; i++)
        if (unigram->slots[i].key != 0)
            *slot_of(slots, n_slots, unigram->slots[i].key) = unigram->slots[i];
    free(unigram->slots);
    unigram->slots = slots;
    unigram->n_slots = n_slots;
}

static uint32_t new_node(unigram_t *unigram)
{
    MEM_GROW(unigram->ids, unigram->ids_capacity, unigram->n_nodes + 1);
    MEM_GROW(unigram->scores, unigram->scores_capacity, unigram->n_nodes + 1);
    unigram->ids[unigram->n_nodes] = TOKENIZER_NO_ID;
    unigram->scores[unigram->n_nodes] = 0;
    return (uint32_t)unigram->n_nodes++;
}

void unigram_start(unigram_t *unigram)
{
    unigram->n_slots = 1024;
    unigram->slots = MEM_NEW_ARRAY(unigram_slot_t, unigram->n_slots);
    unigram->min_score = INFINITY;
    (void)new_node(unigram); /* the root */
}

void unigram_release(unigram_t *unigram)
{
    free(unigram->slots);
    free(unigram->ids);
    free(unigram->scores);
    *unigram = (unigram_t){0};
}

status_t unigram_add(unigram_t *unigram, const uint8_t *text, size_t n, uint32_t id, double score)
{
    if (n == 0 || n > UNIGRAM_PIECE_BYTES_MAX)
        return fail(STATUS_INVALID, "token %u has %zu bytes; a piece of Unigram has 1 to %d", id, n,
                    UNIGRAM_PIECE_BYTES_MAX);
    uint32_t node = 0;
    for (size_t i = 0; i < n; i++) {
        uint64_t key = ((uint64_t)node << 8 | text[i]) + 1;
        unigram_slot_t *slot = slot_of(unigram->slots, unigram->n_slots, key);
        if (slot->key == 0) {
            if (unigram->n_nodes >= UNIGRAM_NODES_MAX)
                return fail(STATUS_INVALID, "the pieces need more than %d nodes of a trie",
                            UNIGRAM_NODES_MAX);
            *slot = (unigram_slot_t){key, new_node(unigram)};
            node = slot->child;
            if (++unigram->n_used * 2 > unigram->n_slots)
                grow(unigram);
        } else {
            node = slot->child;
        }
    }
    unigram->ids[node] = id;
    unigram->scores[node] = score;
    return STATUS_OK;
}

void unigram_scratch_release(unigram_scratch_t *scratch)
{
    free(scratch->nodes);
    free(scratch->parts);
    *scratch = (unigram_scratch_t){0};
}

static void offer(unigram_node_t *node, double score, size_t start, uint32_t id)
{
    if (node->start == SIZE_MAX || score > node->score)
        *node = (unigram_node_t){score, start, id};
}

static void add_part(unigram_scratch_t *scratch, size_t start, size_t end, uint32_t id)
{
    MEM_GROW(scratch->parts, scratch->parts_capacity, scratch->n_parts + 1);
    scratch->parts[scratch->n_parts].start = start;
    scratch->parts[scratch->n_parts].end = end;
    scratch->parts[scratch->n_parts++].id = id;
}

/* Follows the best path from the end of the text; the parts come out backwards. */
static void read_path(unigram_scratch_t *scratch, size_t n, bool fuse)
{
    scratch->n_parts = 0;
    for (size_t end = n; end > 0;) {
        unigram_node_t node = scratch->nodes[end];
        size_t last = scratch->n_parts;
        if (fuse && node.id == TOKENIZER_NO_ID && last > 0 &&
            scratch->parts[last - 1].id == TOKENIZER_NO_ID)
            scratch->parts[last - 1].start = node.start;
        else
            add_part(scratch, node.start, end, node.id);
        end = node.start;
    }
    for (size_t i = 0, j = scratch->n_parts; i + 1 < j; i++) {
        __auto_type part = scratch->parts[i];
        scratch->parts[i] = scratch->parts[--j];
        scratch->parts[j] = part;
    }
}

void unigram_cut(const unigram_t *unigram, unigram_scratch_t *scratch, const uint8_t *text,
                 size_t n, bool fuse)
{
    double unknown_score = unigram->min_score - unknown_penalty;
    MEM_GROW(scratch->nodes, scratch->nodes_capacity, n + 1);
    for (size_t i = 0; i <= n; i++)
        scratch->nodes[i].start = SIZE_MAX;
    scratch->nodes[0].score = 0;
    size_t length;
    for (size_t at = 0; at < n; at += length) {
        (void)utf8_decode(text + at, &length);
        double here = scratch->nodes[at].score;
        bool has_single = false;
        uint32_t node = 0;
        for (size_t i = at; i < n; i++) {
            const unigram_slot_t *slot =
                slot_of(unigram->slots, unigram->n_slots, ((uint64_t)node << 8 | text[i]) + 1);
            if (slot->key == 0)
                break;
            node = slot->child;
            if (unigram->ids[node] == TOKENIZER_NO_ID)
                continue;
            offer(&scratch->nodes[i + 1], here + unigram->scores[node], at, unigram->ids[node]);
            has_single = has_single || i + 1 == at + length;
        }
        if (!has_single)
            offer(&scratch->nodes[at + length], here + unknown_score, at, TOKENIZER_NO_ID);
    }
    read_path(scratch, n, fuse);
}
