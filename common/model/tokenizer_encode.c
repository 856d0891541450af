/* Text to ids: special tokens first, then pieces, then the bytes of each piece merged. */
#include <stdlib.h>

#include "common/model/tokenizer_internal.h"
#include "common/model/unicode.h"

/* One encode in progress. */
typedef struct {
    const tokenizer_t *tokenizer;
    token_ids_t *out;
    size_t n_before; /* ids in `out` when it began */
    size_t ids_max;
    bpe_scratch_t scratch;
    buffer_t spelling; /* of a piece in the byte alphabet */
} encode_t;

static status_t check_count(const encode_t *encode)
{
    if (encode->out->n - encode->n_before > encode->ids_max)
        return fail(STATUS_INVALID, "the text has more than %zu tokens; shorten it",
                    encode->ids_max);
    return STATUS_OK;
}

/* The token that is the whole piece, for vocabularies that prefer it to the merges. */
static uint32_t find_whole(encode_t *encode, const uint8_t *piece, size_t n)
{
    buffer_clear(&encode->spelling);
    for (size_t i = 0; i < n; i++) {
        uint8_t character[BYTE_TEXT_MAX];
        size_t size = byte_alphabet_write(piece[i], character);
        buffer_append(&encode->spelling, character, size);
    }
    return tokenizer_index_find(encode->tokenizer, encode->spelling.data, encode->spelling.size);
}

static status_t encode_piece(void *context, const char *piece, size_t n)
{
    encode_t *encode = context;
    const tokenizer_t *tokenizer = encode->tokenizer;
    const uint8_t *bytes = (const uint8_t *)piece;
    if (pretok_ignores_merges(tokenizer->pretok) && n <= TOKENIZER_TOKEN_BYTES_MAX) {
        uint32_t whole = find_whole(encode, bytes, n);
        if (whole != TOKENIZER_NO_ID) {
            token_ids_append(encode->out, whole);
            return check_count(encode);
        }
    }
    size_t start = encode->out->n;
    for (size_t i = 0; i < n; i++) {
        uint32_t id = tokenizer->byte_ids[bytes[i]];
        if (id != TOKENIZER_NO_ID)
            token_ids_append(encode->out, id);
    }
    size_t n_ids = encode->out->n - start;
    if (n_ids > 1)
        bpe_merge(&tokenizer->merges, &encode->scratch, encode->out->ids + start, &n_ids);
    encode->out->n = start + n_ids;
    return check_count(encode);
}

/* Walks the text from special token to special token. */
static status_t encode_text(encode_t *encode, const char *text, const uint8_t *marks,
                            bool all_marked, size_t n)
{
    const special_trie_t *specials = &encode->tokenizer->specials;
    const pretok_t *pretok = encode->tokenizer->pretok;
    size_t at = 0, plain = 0; /* text[plain..at) holds no special token */
    while (at < n) {
        uint32_t id = TOKENIZER_NO_ID;
        size_t size = special_match(specials, (const uint8_t *)text + at,
                                    marks == NULL ? NULL : marks + at, all_marked, n - at, &id);
        if (size == 0) {
            at++;
            continue;
        }
        TRY(pretok_split(pretok, text + plain, at - plain, encode_piece, encode));
        token_ids_append(encode->out, id);
        TRY(check_count(encode));
        at += size;
        plain = at;
    }
    return pretok_split(pretok, text + plain, n - plain, encode_piece, encode);
}

static status_t encode_checked(const tokenizer_t *tokenizer, const char *text, const uint8_t *marks,
                               bool all_marked, size_t n, size_t ids_max, token_ids_t *out)
{
    if (n > TOKENIZER_TEXT_BYTES_MAX)
        return fail(STATUS_INVALID, "the text has %zu bytes; at most %d can be tokenized", n,
                    TOKENIZER_TEXT_BYTES_MAX);
    if (n == 0)
        return STATUS_OK;
    size_t valid = utf8_valid_prefix((const uint8_t *)text, n);
    if (valid < n)
        return fail(STATUS_INVALID, "the text is not UTF-8: byte %zu (0x%02X) starts no character",
                    valid, (uint8_t)text[valid]);
    encode_t encode = {
        .tokenizer = tokenizer, .out = out, .n_before = out->n, .ids_max = ids_max};
    status_t status = encode_text(&encode, text, marks, all_marked, n);
    if (status != STATUS_OK)
        out->n = encode.n_before;
    bpe_scratch_release(&encode.scratch);
    buffer_release(&encode.spelling);
    return status;
}

status_t tokenizer_encode(const tokenizer_t *tokenizer, const char *text, size_t n,
                          tokenize_mode_t mode, size_t ids_max, token_ids_t *out)
{
    return encode_checked(tokenizer, text, NULL, mode == TOKENIZE_SPECIAL, n, ids_max, out);
}

status_t tokenizer_encode_marked(const tokenizer_t *tokenizer, const char *text,
                                 const uint8_t *marks, size_t n, size_t ids_max, token_ids_t *out)
{
    return encode_checked(tokenizer, text, marks, false, n, ids_max, out);
}
