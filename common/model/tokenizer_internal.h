/* The tokenizer's inside, shared by the files that build it and that use it. */
#ifndef SHOAL_COMMON_MODEL_TOKENIZER_INTERNAL_H
#define SHOAL_COMMON_MODEL_TOKENIZER_INTERNAL_H

#include "common/base/memory.h"
#include "common/model/tokenizer.h"
#include "common/model/tokenizer_bpe.h"
#include "common/model/tokenizer_pretok.h"
#include "common/model/tokenizer_special.h"

enum { BYTE_TEXT_MAX = 2 }; /* bytes of one character of the byte alphabet */

/* Bytes of a token inside the pools. */
typedef struct {
    uint32_t size;
    const uint8_t *data;
} token_bytes_t;

struct tokenizer {
    char *name;
    uint32_t n_tokens;
    token_bytes_t *texts; /* as the vocabulary writes them; the key of `index` */
    token_bytes_t *bytes; /* what they stand for */
    uint8_t *kinds;
    uint32_t *index;      /* open-addressed: ids by hash of text, TOKENIZER_NO_ID is empty */
    size_t n_index;       /* a power of two */
    uint32_t byte_ids[256]; /* of the token of one byte; TOKENIZER_NO_ID where there is none */
    bpe_merges_t merges;
    special_trie_t specials;
    pretok_t *pretok;
    uint32_t bos_id, eos_id, pad_id, unknown_id;
    uint32_t *end_ids; /* ascending, unique */
    size_t n_end_ids;
    bool add_bos;
    arena_t arena; /* holds texts and bytes */
};

/* Writes how GPT-2's byte alphabet spells a byte (one UTF-8 character) and returns its size. */
size_t byte_alphabet_write(uint8_t byte, uint8_t out[BYTE_TEXT_MAX]);
/* Reads a token's text back to bytes: out needs n bytes. Returns the size, or 0 when a character is
 * not of the alphabet: such a token stands for its own text, as in Hugging Face's decoder. */
size_t byte_alphabet_read(const uint8_t *text, size_t n, uint8_t *out);

/* The id of the token with this text through the index. */
uint32_t tokenizer_index_find(const tokenizer_t *tokenizer, const uint8_t *text, size_t n);
/* Adds tokenizer->texts[id]; returns the id that already has this text, or TOKENIZER_NO_ID. */
uint32_t tokenizer_index_add(tokenizer_t *tokenizer, uint32_t id);

#endif
