/* Builds a tokenizer from plain arrays. They come from a model file, so each is checked: an error
 * names the token or the merge and says what would be right. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/tokenizer_internal.h"
#include "common/model/unicode.h"

enum { SHOWN_BYTES = 40 }; /* of a token or merge, in an error */

/* A printable form of untrusted bytes for an error text. */
typedef struct {
    char text[SHOWN_BYTES * 4 + 4];
} shown_t;

static shown_t show(const void *data, size_t n)
{
    const uint8_t *bytes = data;
    shown_t shown;
    size_t size = 0;
    for (size_t i = 0; i < n && i < SHOWN_BYTES; i++)
        size += (size_t)snprintf(shown.text + size, sizeof shown.text - size,
                                 bytes[i] >= 0x20 && bytes[i] < 0x7F ? "%c" : "\\x%02X", bytes[i]);
    snprintf(shown.text + size, sizeof shown.text - size, "%s", n > SHOWN_BYTES ? "..." : "");
    return shown;
}

static bool is_found_in_text(uint8_t kind)
{
    return kind == TOKEN_CONTROL || kind == TOKEN_UNKNOWN || kind == TOKEN_USER_DEFINED;
}

static status_t check_token(const tokenizer_source_t *source, size_t id, uint8_t kind)
{
    const tokenizer_text_t *token = &source->tokens[id];
    if (kind < TOKEN_NORMAL || kind > TOKEN_BYTE)
        return fail(STATUS_INVALID, "token %zu has kind %u; kinds are 1 to 6", id, kind);
    if (token->size == 0)
        return fail(STATUS_INVALID, "token %zu is empty; a token stands for at least one byte", id);
    size_t size_max = is_found_in_text(kind) ? TOKENIZER_SPECIAL_BYTES_MAX
                                             : TOKENIZER_TOKEN_BYTES_MAX;
    if (token->size > size_max)
        return fail(STATUS_INVALID, "token %zu has %zu bytes; one of its kind has at most %zu", id,
                    token->size, size_max);
    size_t valid = utf8_valid_prefix((const uint8_t *)token->data, token->size);
    if (valid < token->size)
        return fail(STATUS_INVALID, "token %zu is not UTF-8 at byte %zu: %s", id, valid,
                    show(token->data, token->size).text);
    return STATUS_OK;
}

/* What the token stands for: only normal ones are spelled in the byte alphabet. */
static token_bytes_t bytes_of(tokenizer_t *tokenizer, const token_bytes_t *text, uint8_t kind)
{
    if (is_found_in_text(kind))
        return *text;
    uint8_t *bytes = arena_new(&tokenizer->arena, text->size, 1);
    size_t size = byte_alphabet_read(text->data, text->size, bytes);
    return size == 0 ? *text : (token_bytes_t){(uint32_t)size, bytes};
}

static status_t add_tokens(tokenizer_t *tokenizer, const tokenizer_source_t *source)
{
    size_t n = source->n_tokens;
    tokenizer->n_tokens = (uint32_t)n;
    tokenizer->texts = MEM_NEW_ARRAY(token_bytes_t, n);
    tokenizer->bytes = MEM_NEW_ARRAY(token_bytes_t, n);
    tokenizer->kinds = MEM_NEW_ARRAY(uint8_t, n);
    for (tokenizer->n_index = 16; tokenizer->n_index < 2 * n; )
        tokenizer->n_index *= 2;
    tokenizer->index = MEM_NEW_ARRAY(uint32_t, tokenizer->n_index);
    memset(tokenizer->index, 0xFF, tokenizer->n_index * sizeof *tokenizer->index);
    for (size_t i = 0; i < n; i++) {
        uint8_t kind = source->kinds == NULL ? TOKEN_NORMAL : source->kinds[i];
        TRY(check_token(source, i, kind));
        token_bytes_t *text = &tokenizer->texts[i];
        text->size = (uint32_t)source->tokens[i].size;
        text->data =
            (uint8_t *)arena_strndup(&tokenizer->arena, source->tokens[i].data, text->size);
        tokenizer->kinds[i] = kind;
        tokenizer->bytes[i] = bytes_of(tokenizer, text, kind);
        uint32_t other = tokenizer_index_add(tokenizer, (uint32_t)i);
        if (other != TOKENIZER_NO_ID)
            return fail(STATUS_INVALID, "tokens %u and %zu are the same text: %s", other, i,
                        show(text->data, text->size).text);
        if (is_found_in_text(kind))
            special_add(&tokenizer->specials, text->data, text->size, (uint32_t)i,
                        kind != TOKEN_USER_DEFINED);
    }
    return STATUS_OK;
}

/* Real vocabularies lack tokens for bytes that their training text never held, but one without
 * printable ASCII is not byte-level, and nearly every text would lose letters. */
static status_t add_bytes(tokenizer_t *tokenizer)
{
    for (unsigned byte = 0; byte < 256; byte++) {
        uint8_t text[BYTE_TEXT_MAX];
        size_t size = byte_alphabet_write((uint8_t)byte, text);
        uint32_t id = tokenizer_index_find(tokenizer, text, size);
        tokenizer->byte_ids[byte] = id;
        if (id == TOKENIZER_NO_ID && byte >= 0x20 && byte <= 0x7E)
            return fail(STATUS_INVALID,
                        "no token stands for the byte 0x%02X; a byte-level vocabulary spells it %s",
                        byte, show(text, size).text);
    }
    return STATUS_OK;
}

static status_t find_part(const tokenizer_t *tokenizer, size_t rank, const char *which,
                          const void *data, size_t n, uint32_t *out)
{
    *out = tokenizer_index_find(tokenizer, data, n);
    if (*out == TOKENIZER_NO_ID)
        return fail(STATUS_INVALID, "merge %zu: its %s \"%s\" is no token of the vocabulary", rank,
                    which, show(data, n).text);
    return STATUS_OK;
}

/* Since both parts have at least one byte, a merged token is longer than its parts: merges cannot
 * run in a circle. */
static status_t add_merge(tokenizer_t *tokenizer, const tokenizer_text_t *merge, size_t rank,
                          buffer_t *joined)
{
    const char *space = memchr(merge->data, ' ', merge->size);
    size_t left_size = space == NULL ? 0 : (size_t)(space - merge->data);
    if (left_size == 0 || left_size + 1 >= merge->size ||
        memchr(space + 1, ' ', merge->size - left_size - 1) != NULL)
        return fail(STATUS_INVALID, "merge %zu is \"%s\"; it must be two tokens and one space",
                    rank, show(merge->data, merge->size).text);
    size_t right_size = merge->size - left_size - 1;
    uint32_t left, right, merged;
    TRY(find_part(tokenizer, rank, "left part", merge->data, left_size, &left));
    TRY(find_part(tokenizer, rank, "right part", space + 1, right_size, &right));
    buffer_clear(joined);
    buffer_append(joined, merge->data, left_size);
    buffer_append(joined, space + 1, right_size);
    TRY(find_part(tokenizer, rank, "result", joined->data, joined->size, &merged));
    if (!bpe_add(&tokenizer->merges, left, right, (uint32_t)rank, merged))
        return fail(STATUS_INVALID, "merge %zu is there twice: \"%s\"", rank,
                    show(merge->data, merge->size).text);
    return STATUS_OK;
}

static status_t add_merges(tokenizer_t *tokenizer, const tokenizer_source_t *source)
{
    bpe_reserve(&tokenizer->merges, source->n_merges);
    buffer_t joined = {0};
    status_t status = STATUS_OK;
    for (size_t i = 0; i < source->n_merges && status == STATUS_OK; i++)
        status = add_merge(tokenizer, &source->merges[i], i, &joined);
    buffer_release(&joined);
    return status;
}

static int compare_ids(const void *a, const void *b)
{
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    return left < right ? -1 : left > right;
}

static status_t check_id(const tokenizer_source_t *source, const char *what, uint32_t id)
{
    if (id != TOKENIZER_NO_ID && id >= source->n_tokens)
        return fail(STATUS_INVALID, "%s is %u; the vocabulary has ids 0 to %zu", what, id,
                    source->n_tokens - 1);
    return STATUS_OK;
}

static status_t add_named_ids(tokenizer_t *tokenizer, const tokenizer_source_t *source)
{
    TRY(check_id(source, "bos_token_id", source->bos_id));
    TRY(check_id(source, "eos_token_id", source->eos_id));
    TRY(check_id(source, "padding_token_id", source->pad_id));
    TRY(check_id(source, "unknown_token_id", source->unknown_id));
    tokenizer->bos_id = source->bos_id;
    tokenizer->eos_id = source->eos_id;
    tokenizer->pad_id = source->pad_id;
    tokenizer->unknown_id = source->unknown_id;
    tokenizer->add_bos = source->add_bos && source->bos_id != TOKENIZER_NO_ID;
    uint32_t *ids = MEM_NEW_ARRAY(uint32_t, source->n_eog_ids + 1);
    tokenizer->end_ids = ids;
    size_t n = 0, n_unique = 0;
    if (source->eos_id != TOKENIZER_NO_ID)
        ids[n++] = source->eos_id;
    for (size_t i = 0; i < source->n_eog_ids; i++) {
        TRY(check_id(source, "an id that ends a generation", source->eog_ids[i]));
        if (source->eog_ids[i] != TOKENIZER_NO_ID)
            ids[n++] = source->eog_ids[i];
    }
    qsort(ids, n, sizeof *ids, compare_ids);
    for (size_t i = 0; i < n; i++)
        if (i == 0 || ids[i] != ids[i - 1])
            ids[n_unique++] = ids[i];
    tokenizer->n_end_ids = n_unique;
    return STATUS_OK;
}

static status_t build(tokenizer_t *tokenizer, const tokenizer_source_t *source)
{
    if (source->n_tokens == 0 || source->n_tokens > TOKENIZER_TOKENS_MAX)
        return fail(STATUS_INVALID, "the vocabulary has %zu tokens; 1 to %d are possible",
                    source->n_tokens, TOKENIZER_TOKENS_MAX);
    if (source->n_merges > TOKENIZER_MERGES_MAX)
        return fail(STATUS_INVALID, "there are %zu merges; at most %d are possible",
                    source->n_merges, TOKENIZER_MERGES_MAX);
    TRY(pretok_create(source->pre == NULL ? "default" : source->pre, &tokenizer->pretok));
    TRY(add_tokens(tokenizer, source));
    TRY(add_bytes(tokenizer));
    TRY(add_merges(tokenizer, source));
    return add_named_ids(tokenizer, source);
}

status_t tokenizer_create(const tokenizer_source_t *source, tokenizer_t **own_out)
{
    tokenizer_t *tokenizer = MEM_NEW(tokenizer_t);
    tokenizer->name = mem_strdup(source->name == NULL ? "tokenizer" : source->name);
    status_t status = build(tokenizer, source);
    if (status != STATUS_OK) {
        status = fail_in(status, "%s", tokenizer->name);
        tokenizer_release(tokenizer);
        return status;
    }
    *own_out = tokenizer;
    return STATUS_OK;
}
