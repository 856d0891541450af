/* Text to ids: the tokens that are looked for in the raw text first, then those in the normalized
 * text between them, then pieces, which tokenizer_model.c turns into ids. */
#include <stdlib.h>
#include <string.h>

#include "common/model/tokenizer_internal.h"
#include "common/model/unicode.h"

/* What is done with the text between two found tokens. */
typedef status_t (*between_fn)(encode_t *encode, const normal_text_t *text, bool all_marked);

/* The last character before `at`, which must be above 0. */
static uint32_t point_before(const uint8_t *text, size_t at)
{
    size_t length;
    do
        at--;
    while (at > 0 && (text[at] & 0xC0) == 0x80);
    return utf8_decode(text + at, &length);
}

static bool is_whole_word(const normal_text_t *text, size_t start, size_t end)
{
    size_t length;
    return (start == 0 || !unicode_is_word(point_before(text->data, start))) &&
           (end == text->n || !unicode_is_word(utf8_decode(text->data + end, &length)));
}

/* Takes the white space around a found token that the token asks for; nothing before `done`. */
static void take_spaces(const normal_text_t *text, unsigned flags, size_t done, size_t *start,
                        size_t *end)
{
    if (flags & TOKEN_FLAG_LSTRIP)
        while (*start > done && unicode_is_white(point_before(text->data, *start)))
            do
                (*start)--;
            while ((text->data[*start] & 0xC0) == 0x80);
    size_t length;
    if (flags & TOKEN_FLAG_RSTRIP)
        while (*end < text->n && unicode_is_white(utf8_decode(text->data + *end, &length)))
            *end += length;
}

static normal_text_t part_of(const normal_text_t *text, size_t start, size_t end)
{
    return (normal_text_t){text->data + start, text->marks == NULL ? NULL : text->marks + start,
                           end - start, text->is_start && start == 0};
}

/* Walks the text from token to token. */
static status_t walk(encode_t *encode, const special_trie_t *trie, const normal_text_t *text,
                     bool all_marked, between_fn between)
{
    const uint8_t *flags = encode->tokenizer->flags;
    size_t at = 0, done = 0; /* text[done..at) holds no token */
    while (at < text->n && trie->n_nodes > 0) {
        uint32_t id = TOKENIZER_NO_ID;
        size_t size = trie->roots[text->data[at]] == 0
                          ? 0
                          : special_match(trie, text->data + at,
                                          text->marks == NULL ? NULL : text->marks + at, all_marked,
                                          text->n - at, &id);
        size_t start = at, end = at + size;
        at = size == 0 ? at + 1 : end;
        if (size == 0 || ((flags[id] & TOKEN_FLAG_WORD) && !is_whole_word(text, start, end)))
            continue;
        take_spaces(text, flags[id], done, &start, &end);
        normal_text_t before = part_of(text, done, start);
        TRY(between(encode, &before, all_marked));
        token_ids_append(encode->out, id);
        TRY(encode_check_count(encode));
        at = done = end;
    }
    normal_text_t rest = part_of(text, done, text->n);
    return between(encode, &rest, all_marked);
}

static status_t cut(encode_t *encode, const normal_text_t *text, bool all_marked)
{
    (void)all_marked;
    if (text->n == 0)
        return STATUS_OK;
    const tokenizer_t *tokenizer = encode->tokenizer;
    return pretok_split(&tokenizer->pretok, tokenizer->n_pretok_stages, &encode->pretok,
                        (const char *)text->data, text->n, text->is_start, encode_piece, encode);
}

static status_t normalize(encode_t *encode, const normal_text_t *text, bool all_marked)
{
    if (text->n == 0)
        return STATUS_OK;
    normal_text_t normal;
    TRY(normalizer_run(&encode->tokenizer->normalizer, &encode->normalize, text, &normal));
    return walk(encode, &encode->tokenizer->normal_specials, &normal, all_marked, cut);
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
    normal_text_t whole = {(const uint8_t *)text, marks, n, true};
    status_t status = walk(&encode, &tokenizer->specials, &whole, all_marked, normalize);
    if (status != STATUS_OK)
        out->n = encode.n_before;
    encode_release(&encode);
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
