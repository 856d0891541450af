/* See tokenizer.h. Here: what a finished tokenizer answers, and decoding. Building is in
 * tokenizer_build.c and what calls it, encoding in tokenizer_encode.c. */
#include "common/model/tokenizer.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "common/model/detok.h"
#include "common/model/tokenizer_internal.h"
#include "common/model/unicode.h"

void token_ids_append(token_ids_t *list, uint32_t id)
{
    MEM_GROW(list->ids, list->capacity, list->n + 1);
    list->ids[list->n++] = id;
}

void token_ids_release(token_ids_t *list)
{
    free(list->ids);
    *list = (token_ids_t){0};
}

/* GPT-2's alphabet writes a printable byte as the character of the same number and the 68 others
 * as U+0100 and up, in ascending order. */
static bool is_printable(unsigned byte)
{
    return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

/* How many bytes below this one are not printable. */
static unsigned hidden_below(unsigned byte)
{
    if (byte <= 0x21)
        return byte;
    if (byte <= 0x7F)
        return 0x21;
    return byte <= 0xA1 ? 0x21 + (byte - 0x7F) : 0x21 + 0x22;
}

size_t byte_alphabet_write(uint8_t byte, uint8_t out[BYTE_TEXT_MAX])
{
    uint8_t encoded[UNICODE_UTF8_MAX];
    size_t n = utf8_encode(is_printable(byte) ? byte : 0x100 + hidden_below(byte), encoded);
    CHECK(n <= BYTE_TEXT_MAX);
    memcpy(out, encoded, n);
    return n;
}

size_t byte_alphabet_read(const uint8_t *text, size_t n, uint8_t *out)
{
    size_t size = 0, length;
    for (size_t at = 0; at < n; at += length) {
        uint32_t code = utf8_decode(text + at, &length);
        if (code < 0x100 && is_printable(code))
            out[size++] = (uint8_t)code;
        else if (code >= 0x100 && code <= 0x120)
            out[size++] = (uint8_t)(code - 0x100);
        else if (code >= 0x121 && code <= 0x142)
            out[size++] = (uint8_t)(code - 0x121 + 0x7F);
        else if (code == 0x143)
            out[size++] = 0xAD;
        else
            return 0;
    }
    return size;
}

uint32_t tokenizer_index_find(const tokenizer_t *tokenizer, const uint8_t *text, size_t n)
{
    size_t mask = tokenizer->n_index - 1, at = (size_t)XXH3_64bits(text, n) & mask;
    for (; tokenizer->index[at] != TOKENIZER_NO_ID; at = (at + 1) & mask) {
        const token_bytes_t *token = &tokenizer->texts[tokenizer->index[at]];
        if (token->size == n && memcmp(token->data, text, n) == 0)
            return tokenizer->index[at];
    }
    return TOKENIZER_NO_ID;
}

uint32_t tokenizer_index_add(tokenizer_t *tokenizer, uint32_t id)
{
    const token_bytes_t *token = &tokenizer->texts[id];
    uint32_t other = tokenizer_index_find(tokenizer, token->data, token->size);
    if (other != TOKENIZER_NO_ID)
        return other;
    size_t mask = tokenizer->n_index - 1, at = (size_t)XXH3_64bits(token->data, token->size) & mask;
    while (tokenizer->index[at] != TOKENIZER_NO_ID)
        at = (at + 1) & mask;
    tokenizer->index[at] = id;
    return TOKENIZER_NO_ID;
}

uint32_t tokenizer_model_find(const tokenizer_t *tokenizer, const uint8_t *text, size_t n)
{
    uint32_t id = tokenizer_index_find(tokenizer, text, n);
    if (id == TOKENIZER_NO_ID || (tokenizer->flags[id] & TOKEN_FLAG_MODEL) == 0 ||
        tokenizer_is_special(tokenizer, id))
        return TOKENIZER_NO_ID;
    return id;
}

void tokenizer_release(tokenizer_t *take_tokenizer)
{
    if (take_tokenizer == NULL)
        return;
    free(take_tokenizer->name);
    free(take_tokenizer->texts);
    free(take_tokenizer->spoken);
    free(take_tokenizer->bytes);
    free(take_tokenizer->kinds);
    free(take_tokenizer->flags);
    free(take_tokenizer->index);
    free(take_tokenizer->direct_ids);
    free(take_tokenizer->continuing_prefix);
    free(take_tokenizer->word_suffix);
    free(take_tokenizer->end_ids);
    bpe_release(&take_tokenizer->merges);
    unigram_release(&take_tokenizer->unigram);
    special_release(&take_tokenizer->specials);
    special_release(&take_tokenizer->normal_specials);
    normalizer_release(&take_tokenizer->normalizer);
    pretok_release(&take_tokenizer->pretok);
    decoder_release(&take_tokenizer->decoder);
    token_ids_release(&take_tokenizer->prefix);
    token_ids_release(&take_tokenizer->suffix);
    arena_release(&take_tokenizer->arena);
    free(take_tokenizer);
}

uint32_t tokenizer_n_tokens(const tokenizer_t *tokenizer)
{
    return tokenizer->n_tokens;
}

uint32_t tokenizer_bos_id(const tokenizer_t *tokenizer)
{
    return tokenizer->bos_id;
}

uint32_t tokenizer_eos_id(const tokenizer_t *tokenizer)
{
    return tokenizer->eos_id;
}

bool tokenizer_adds_bos(const tokenizer_t *tokenizer)
{
    for (size_t i = 0; i < tokenizer->prefix.n; i++)
        if (tokenizer->prefix.ids[i] == tokenizer->bos_id)
            return true;
    return false;
}

const uint32_t *tokenizer_prefix_ids(const tokenizer_t *tokenizer, size_t *n_out)
{
    *n_out = tokenizer->prefix.n;
    return tokenizer->prefix.ids;
}

const uint32_t *tokenizer_suffix_ids(const tokenizer_t *tokenizer, size_t *n_out)
{
    *n_out = tokenizer->suffix.n;
    return tokenizer->suffix.ids;
}

const uint32_t *tokenizer_end_ids(const tokenizer_t *tokenizer, size_t *n_out)
{
    *n_out = tokenizer->n_end_ids;
    return tokenizer->end_ids;
}

bool tokenizer_is_end(const tokenizer_t *tokenizer, uint32_t id)
{
    for (size_t i = 0; i < tokenizer->n_end_ids; i++)
        if (tokenizer->end_ids[i] == id)
            return true;
    return false;
}

bool tokenizer_is_special(const tokenizer_t *tokenizer, uint32_t id)
{
    if (id >= tokenizer->n_tokens)
        return false;
    return tokenizer->kinds[id] == TOKEN_CONTROL || tokenizer->kinds[id] == TOKEN_UNKNOWN;
}

uint32_t tokenizer_find(const tokenizer_t *tokenizer, const char *text, size_t n)
{
    return tokenizer_index_find(tokenizer, (const uint8_t *)text, n);
}

const uint8_t *tokenizer_bytes(const tokenizer_t *tokenizer, uint32_t id, size_t *n_out)
{
    if (id >= tokenizer->n_tokens)
        return NULL;
    *n_out = tokenizer->bytes[id].size;
    return tokenizer->bytes[id].data;
}

/* Decoding a list is the incremental detokenizer run to its end, so that the two cannot differ. */
status_t tokenizer_decode(const tokenizer_t *tokenizer, const uint32_t *ids, size_t n,
                          bool skip_special, buffer_t *out)
{
    for (size_t i = 0; i < n; i++)
        if (ids[i] >= tokenizer->n_tokens)
            return fail(STATUS_INVALID, "ids[%zu] is %u; the vocabulary has ids 0 to %u", i, ids[i],
                        tokenizer->n_tokens - 1);
    detok_t detok = {.skip_special = skip_special};
    for (size_t i = 0; i < n; i++)
        TRY(detok_push(&detok, tokenizer, ids[i], out));
    detok_finish(&detok, out);
    return STATUS_OK;
}
