/* The tokenizer's inside, shared by the files that build it and that use it. */
#ifndef SHOAL_COMMON_MODEL_TOKENIZER_INTERNAL_H
#define SHOAL_COMMON_MODEL_TOKENIZER_INTERNAL_H

#include "common/base/memory.h"
#include "common/model/tokenizer.h"
#include "common/model/tokenizer_bpe.h"
#include "common/model/tokenizer_decode.h"
#include "common/model/tokenizer_normalize.h"
#include "common/model/tokenizer_pretok.h"
#include "common/model/tokenizer_special.h"
#include "common/model/tokenizer_unigram.h"

enum {
    BYTE_TEXT_MAX = 2,        /* bytes of one character of the byte alphabet */
    DIRECT_POINTS = 1 << 16,  /* characters whose token is found without hashing */
    PREFIX_BYTES_MAX = 64,    /* of a continuing prefix or a word suffix */
};

/* Bytes of a token inside the pools. */
typedef struct {
    uint32_t size; /* 0: no token has this id */
    const uint8_t *data;
} token_bytes_t;

typedef enum { MODEL_BPE, MODEL_UNIGRAM, MODEL_WORDPIECE } model_kind_t;

/* What else is known of a token. */
enum {
    TOKEN_FLAG_MODEL = 1,      /* the model may produce it */
    TOKEN_FLAG_ADDED = 2,      /* it is looked for in text */
    TOKEN_FLAG_LSTRIP = 4,     /* it takes the white space before it */
    TOKEN_FLAG_RSTRIP = 8,     /* and behind it */
    TOKEN_FLAG_WORD = 16,      /* it is found only between non-word characters */
    TOKEN_FLAG_NORMALIZED = 32 /* it is looked for in the normalized text */
};

struct tokenizer {
    char *name;
    uint32_t n_tokens;
    token_bytes_t *texts; /* as the vocabulary writes them; the key of `index` */
    token_bytes_t *spoken; /* what decoding starts from: of tokens that are looked for in normalized
                              text the normalized form, as in Hugging Face; else the text */
    token_bytes_t *bytes; /* what they stand for */
    uint8_t *kinds, *flags;
    uint32_t *index;      /* open-addressed: ids by hash of text, TOKENIZER_NO_ID is empty */
    size_t n_index;       /* a power of two */

    model_kind_t model;
    bool byte_mode;      /* the pieces of the model are bytes: BPE behind ByteLevel */
    bool byte_fallback;  /* what is not known becomes <0xNN> tokens */
    bool fuse_unknown, ignore_merges;
    bool cuts_at_space; /* no merge crosses from another character to U+2581 (see find_cuts) */
    uint32_t model_unknown_id;  /* what the model writes for what it does not know */
    uint32_t byte_ids[256];     /* of the token of one byte, in byte mode */
    uint32_t fallback_ids[256]; /* of <0x00> to <0xFF> */
    uint32_t *direct_ids;       /* by code point below DIRECT_POINTS; NULL in byte mode */
    char *continuing_prefix, *word_suffix; /* "" where there is none */
    size_t word_points_max;     /* of a word of WordPiece */
    bpe_merges_t merges;
    unigram_t unigram;

    special_trie_t specials, normal_specials; /* looked for in the raw, the normalized text */
    normalizer_t normalizer;
    pretok_t pretok;
    size_t n_pretok_stages; /* those that run: not the byte alphabet in byte mode */
    decoder_t decoder;

    uint32_t bos_id, eos_id, pad_id, unknown_id;
    uint32_t *end_ids; /* ascending, unique */
    size_t n_end_ids;
    token_ids_t prefix, suffix; /* what surrounds a text where special tokens are asked for */
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
/* The id among tokens that the model may produce from ordinary text: never a special one. */
uint32_t tokenizer_model_find(const tokenizer_t *tokenizer, const uint8_t *text, size_t n);

/* --- Building: tokenizer_build.c ---------------------------------------------------------------*/

/* A printable form of untrusted bytes for an error text. */
typedef struct {
    char text[164];
} shown_t;
shown_t tokenizer_show(const void *data, size_t n);

/* With room for ids 0 to n_tokens - 1, none of which has a token yet. */
tokenizer_t *tokenizer_new(const char *name, size_t n_tokens);
/* Gives the id its token. The text is copied, checked, and must not be another token's. */
status_t tokenizer_put(tokenizer_t *tokenizer, uint32_t id, const char *text, size_t n,
                       token_kind_t kind, unsigned flags) MUST_USE;
/* One merge; `repeat` says whether the same pair may come again and then counts. */
status_t tokenizer_put_merge(tokenizer_t *tokenizer, size_t rank, const char *left, size_t n_left,
                             const char *right, size_t n_right, bool repeat) MUST_USE;
status_t tokenizer_put_named_ids(tokenizer_t *tokenizer, uint32_t bos_id, uint32_t eos_id,
                                 uint32_t pad_id, uint32_t unknown_id, const uint32_t *end_ids,
                                 size_t n_end_ids) MUST_USE;
/* When tokens, steps and model are there: makes what is derived from them. */
status_t tokenizer_finish(tokenizer_t *tokenizer) MUST_USE;

/* --- Encoding: tokenizer_model.c ---------------------------------------------------------------*/

typedef struct piece_cache piece_cache_t;

/* One encode in progress. */
typedef struct {
    const tokenizer_t *tokenizer;
    token_ids_t *out;
    size_t n_before; /* ids in `out` when it began */
    size_t ids_max;
    bpe_scratch_t bpe;
    unigram_scratch_t unigram;
    normalize_scratch_t normalize;
    pretok_scratch_t pretok;
    buffer_t spelling;
    piece_cache_t *cache;
} encode_t;

/* A pretok_fn: appends the ids of one piece. */
status_t encode_piece(void *encode, const char *piece, size_t n);
status_t encode_check_count(const encode_t *encode);
void encode_release(encode_t *encode);

#endif
