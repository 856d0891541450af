/* Builds a tokenizer from its parts, whoever read them. They come from a model file, so each is
 * checked: an error names the token or the merge and says what would be right. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/tokenizer_internal.h"
#include "common/model/unicode.h"

enum { SHOWN_BYTES = 40 }; /* of a token or merge, in an error */

shown_t tokenizer_show(const void *data, size_t n)
{
    const uint8_t *bytes = data;
    shown_t shown = {""};
    size_t size = 0;
    for (size_t i = 0; i < n && i < SHOWN_BYTES; i++)
        size += (size_t)snprintf(shown.text + size, sizeof shown.text - size,
                                 bytes[i] >= 0x20 && bytes[i] < 0x7F ? "%c" : "\\x%02X", bytes[i]);
    snprintf(shown.text + size, sizeof shown.text - size, "%s", n > SHOWN_BYTES ? "..." : "");
    return shown;
}

tokenizer_t *tokenizer_new(const char *name, size_t n_tokens)
{
    tokenizer_t *tokenizer = MEM_NEW(tokenizer_t);
    tokenizer->name = mem_strdup(name);
    tokenizer->n_tokens = (uint32_t)n_tokens;
    tokenizer->texts = MEM_NEW_ARRAY(token_bytes_t, n_tokens);
    tokenizer->spoken = MEM_NEW_ARRAY(token_bytes_t, n_tokens);
    tokenizer->bytes = MEM_NEW_ARRAY(token_bytes_t, n_tokens);
    tokenizer->kinds = MEM_NEW_ARRAY(uint8_t, n_tokens);
    tokenizer->flags = MEM_NEW_ARRAY(uint8_t, n_tokens);
    for (tokenizer->n_index = 16; tokenizer->n_index < 2 * n_tokens;)
        tokenizer->n_index *= 2;
    tokenizer->index = MEM_NEW_ARRAY(uint32_t, tokenizer->n_index);
    memset(tokenizer->index, 0xFF, tokenizer->n_index * sizeof *tokenizer->index);
    memset(tokenizer->kinds, TOKEN_UNUSED, n_tokens);
    tokenizer->continuing_prefix = mem_strdup("");
    tokenizer->word_suffix = mem_strdup("");
    tokenizer->model_unknown_id = TOKENIZER_NO_ID;
    tokenizer->bos_id = tokenizer->eos_id = TOKENIZER_NO_ID;
    tokenizer->pad_id = tokenizer->unknown_id = TOKENIZER_NO_ID;
    return tokenizer;
}

static status_t check_token(uint32_t id, const char *text, size_t n, token_kind_t kind, bool added)
{
    if (kind < TOKEN_NORMAL || kind > TOKEN_BYTE)
        return fail(STATUS_INVALID, "token %u has kind %u; kinds are 1 to 6", id, kind);
    if (n == 0)
        return fail(STATUS_INVALID, "token %u is empty; a token stands for at least one byte", id);
    size_t size_max = added ? TOKENIZER_SPECIAL_BYTES_MAX : TOKENIZER_TOKEN_BYTES_MAX;
    if (n > size_max)
        return fail(STATUS_INVALID, "token %u has %zu bytes; one of its kind has at most %zu", id,
                    n, size_max);
    size_t valid = utf8_valid_prefix((const uint8_t *)text, n);
    if (valid < n)
        return fail(STATUS_INVALID, "token %u is not UTF-8 at byte %zu: %s", id, valid,
                    tokenizer_show(text, n).text);
    return STATUS_OK;
}

status_t tokenizer_put(tokenizer_t *tokenizer, uint32_t id, const char *text, size_t n,
                       token_kind_t kind, unsigned flags)
{
    CHECK(id < tokenizer->n_tokens);
    TRY(check_token(id, text, n, kind, (flags & TOKEN_FLAG_ADDED) != 0));
    token_bytes_t *token = &tokenizer->texts[id];
    if (token->size != 0)
        return fail(STATUS_INVALID, "id %u is given to two tokens: %s and %s", id,
                    tokenizer_show(token->data, token->size).text, tokenizer_show(text, n).text);
    uint32_t other = tokenizer_index_find(tokenizer, (const uint8_t *)text, n);
    if (other != TOKENIZER_NO_ID)
        return fail(STATUS_INVALID, "tokens %u and %u are the same text: %s", other, id,
                    tokenizer_show(text, n).text);
    token->size = (uint32_t)n;
    token->data = (uint8_t *)arena_strndup(&tokenizer->arena, text, n);
    tokenizer->kinds[id] = (uint8_t)kind;
    tokenizer->flags[id] = (uint8_t)flags;
    (void)tokenizer_index_add(tokenizer, id);
    return STATUS_OK;
}

static status_t find_part(const tokenizer_t *tokenizer, size_t rank, const char *which,
                          const void *data, size_t n, uint32_t *out)
{
    *out = tokenizer_index_find(tokenizer, data, n);
    if (*out == TOKENIZER_NO_ID || (tokenizer->flags[*out] & TOKEN_FLAG_MODEL) == 0)
        return fail(STATUS_INVALID, "merge %zu: its %s \"%s\" is no token of the vocabulary", rank,
                    which, tokenizer_show(data, n).text);
    return STATUS_OK;
}

/* Every merge takes one symbol away, so a circle of merges still ends. */
status_t tokenizer_put_merge(tokenizer_t *tokenizer, size_t rank, const char *left, size_t n_left,
                             const char *right, size_t n_right, bool repeat)
{
    uint32_t left_id, right_id, merged_id = TOKENIZER_NO_ID;
    TRY(find_part(tokenizer, rank, "left part", left, n_left, &left_id));
    TRY(find_part(tokenizer, rank, "right part", right, n_right, &right_id));
    size_t skip = strlen(tokenizer->continuing_prefix);
    if (n_right <= skip)
        return fail(STATUS_INVALID, "merge %zu: its right part is no longer than the prefix", rank);
    buffer_t joined = {0};
    buffer_append(&joined, left, n_left);
    buffer_append(&joined, right + skip, n_right - skip);
    status_t status = find_part(tokenizer, rank, "result", joined.data, joined.size, &merged_id);
    buffer_release(&joined);
    TRY(status);
    if (!bpe_add(&tokenizer->merges, left_id, right_id, (uint32_t)rank, merged_id, repeat))
        return fail(STATUS_INVALID, "merge %zu is there twice: \"%s\" and \"%s\"", rank,
                    tokenizer_show(left, n_left).text, tokenizer_show(right, n_right).text);
    return STATUS_OK;
}

static int compare_ids(const void *a, const void *b)
{
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    return left < right ? -1 : left > right;
}

static status_t check_id(const tokenizer_t *tokenizer, const char *what, uint32_t id)
{
    if (id != TOKENIZER_NO_ID && id >= tokenizer->n_tokens)
        return fail(STATUS_INVALID, "%s is %u; the vocabulary has ids 0 to %u", what, id,
                    tokenizer->n_tokens - 1);
    return STATUS_OK;
}

status_t tokenizer_put_named_ids(tokenizer_t *tokenizer, uint32_t bos_id, uint32_t eos_id,
                                 uint32_t pad_id, uint32_t unknown_id, const uint32_t *end_ids,
                                 size_t n_end_ids)
{
    TRY(check_id(tokenizer, "bos_token_id", bos_id));
    TRY(check_id(tokenizer, "eos_token_id", eos_id));
    TRY(check_id(tokenizer, "padding_token_id", pad_id));
    TRY(check_id(tokenizer, "unknown_token_id", unknown_id));
    tokenizer->bos_id = bos_id;
    tokenizer->eos_id = eos_id;
    tokenizer->pad_id = pad_id;
    tokenizer->unknown_id = unknown_id;
    uint32_t *ids = MEM_NEW_ARRAY(uint32_t, n_end_ids + 1);
    tokenizer->end_ids = ids;
    size_t n = 0, n_unique = 0;
    if (eos_id != TOKENIZER_NO_ID)
        ids[n++] = eos_id;
    for (size_t i = 0; i < n_end_ids; i++) {
        TRY(check_id(tokenizer, "an id that ends a generation", end_ids[i]));
        if (end_ids[i] != TOKENIZER_NO_ID)
            ids[n++] = end_ids[i];
    }
    qsort(ids, n, sizeof *ids, compare_ids);
    for (size_t i = 0; i < n; i++)
        if (i == 0 || ids[i] != ids[i - 1])
            ids[n_unique++] = ids[i];
    tokenizer->n_end_ids = n_unique;
    return STATUS_OK;
}

/* What the token stands for by itself, in the middle of a text. */
static token_bytes_t bytes_of(tokenizer_t *tokenizer, uint32_t id)
{
    const token_bytes_t *text = &tokenizer->spoken[id];
    if (tokenizer->decoder.is_byte_level) {
        uint8_t *bytes = arena_new(&tokenizer->arena, text->size, 1);
        size_t size = byte_alphabet_read(text->data, text->size, bytes);
        return size == 0 ? *text : (token_bytes_t){(uint32_t)size, bytes};
    }
    int byte = decoder_fallback_byte(text->data, text->size);
    if (byte >= 0 && tokenizer->decoder.has_fallback) {
        uint8_t value = (uint8_t)byte;
        return (token_bytes_t){
            1, (uint8_t *)arena_strndup(&tokenizer->arena, (const char *)&value, 1)};
    }
    detok_t detok = {.seen = 0xFF, .n_stripped = 0xFF};
    buffer_t out = {0};
    decoder_push(&tokenizer->decoder, &detok, text->data, text->size, &out);
    token_bytes_t bytes = {
        (uint32_t)out.size,
        (uint8_t *)arena_strndup(&tokenizer->arena, buffer_text(&out), out.size)};
    buffer_release(&out);
    return bytes;
}

/* Real vocabularies lack tokens for bytes that their training text never held, but one without
 * printable ASCII is not byte-level, and nearly every text would lose letters. */
static status_t find_bytes(tokenizer_t *tokenizer)
{
    for (unsigned byte = 0; byte < 256; byte++) {
        uint8_t text[BYTE_TEXT_MAX];
        size_t size = byte_alphabet_write((uint8_t)byte, text);
        uint32_t id = tokenizer_model_find(tokenizer, text, size);
        tokenizer->byte_ids[byte] = id;
        if (id == TOKENIZER_NO_ID && byte >= 0x20 && byte <= 0x7E &&
            tokenizer->model_unknown_id == TOKENIZER_NO_ID)
            return fail(STATUS_INVALID,
                        "no token stands for the byte 0x%02X; a byte-level vocabulary spells it %s",
                        byte, tokenizer_show(text, size).text);
    }
    return STATUS_OK;
}

static void find_fallbacks(tokenizer_t *tokenizer)
{
    for (unsigned byte = 0; byte < 256; byte++) {
        char text[8];
        int n = snprintf(text, sizeof text, "<0x%02X>", byte);
        tokenizer->fallback_ids[byte] =
            tokenizer_index_find(tokenizer, (const uint8_t *)text, (size_t)n);
    }
}

static void find_characters(tokenizer_t *tokenizer)
{
    tokenizer->direct_ids = MEM_NEW_ARRAY(uint32_t, DIRECT_POINTS);
    for (uint32_t point = 0; point < DIRECT_POINTS; point++) {
        uint8_t text[UNICODE_UTF8_MAX];
        tokenizer->direct_ids[point] = TOKENIZER_NO_ID;
        if (point < 0xD800 || point > 0xDFFF)
            tokenizer->direct_ids[point] =
                tokenizer_model_find(tokenizer, text, utf8_encode(point, text));
    }
}

/* SentencePiece vocabularies have no pre-tokenizer: a whole prompt is one piece. Where no token has
 * a U+2581 behind another character, no merge can cross that place, so the words before and behind
 * it merge as if they stood alone; cutting there gives the same ids many times faster. */
static void find_cuts(tokenizer_t *tokenizer)
{
    static const char space[] = "\xE2\x96\x81";
    size_t size = sizeof space - 1;
    bool cuts = tokenizer_model_find(tokenizer, (const uint8_t *)space, size) != TOKENIZER_NO_ID &&
                !tokenizer->ignore_merges;
    for (uint32_t id = 0; id < tokenizer->n_tokens && cuts; id++) {
        const token_bytes_t *text = &tokenizer->texts[id];
        if (text->size == 0 || (tokenizer->flags[id] & TOKEN_FLAG_MODEL) == 0)
            continue;
        const uint8_t *end = text->data + text->size, *at = text->data;
        while (cuts && (at = memmem(at, (size_t)(end - at), space, size)) != NULL) {
            size_t before = (size_t)(at - text->data);
            cuts = before == 0 || (before >= size && memcmp(at - size, space, size) == 0);
            at += size;
        }
    }
    tokenizer->cuts_at_space = cuts;
}

/* A token that is looked for in normalized text is looked for in its own normalized form. */
static status_t add_special(tokenizer_t *tokenizer, uint32_t id, normalize_scratch_t *scratch)
{
    const token_bytes_t *text = &tokenizer->texts[id];
    bool needs_mark = tokenizer->kinds[id] != TOKEN_USER_DEFINED;
    if ((tokenizer->flags[id] & TOKEN_FLAG_NORMALIZED) == 0) {
        special_add(&tokenizer->specials, text->data, text->size, id, needs_mark);
        return STATUS_OK;
    }
    normal_text_t in = {text->data, NULL, text->size, true}, out;
    TRY(normalizer_run(&tokenizer->normalizer, scratch, &in, &out));
    if (out.n == 0 || out.n > TOKENIZER_TOKEN_BYTES_MAX)
        return STATUS_OK;
    special_add(&tokenizer->normal_specials, out.data, out.n, id, needs_mark);
    tokenizer->spoken[id] = (token_bytes_t){
        (uint32_t)out.n,
        (uint8_t *)arena_strndup(&tokenizer->arena, (const char *)out.data, out.n)};
    return STATUS_OK;
}

static status_t add_specials(tokenizer_t *tokenizer)
{
    normalize_scratch_t scratch = {0};
    status_t status = STATUS_OK;
    memcpy(tokenizer->spoken, tokenizer->texts, tokenizer->n_tokens * sizeof *tokenizer->spoken);
    for (uint32_t id = 0; id < tokenizer->n_tokens && status == STATUS_OK; id++)
        if (tokenizer->flags[id] & TOKEN_FLAG_ADDED)
            status = add_special(tokenizer, id, &scratch);
    normalize_scratch_release(&scratch);
    return status;
}

status_t tokenizer_finish(tokenizer_t *tokenizer)
{
    TRY(decoder_finish(&tokenizer->decoder));
    TRY(add_specials(tokenizer));
    for (uint32_t id = 0; id < tokenizer->n_tokens; id++)
        if (tokenizer->texts[id].size > 0)
            tokenizer->bytes[id] = bytes_of(tokenizer, id);
    size_t n = tokenizer->pretok.n;
    tokenizer->n_pretok_stages = n;
    bool plain = *tokenizer->continuing_prefix == 0 && *tokenizer->word_suffix == 0;
    if (tokenizer->model == MODEL_BPE && plain && n > 0 &&
        tokenizer->pretok.stages[n - 1].kind == PRETOK_BYTES) {
        tokenizer->byte_mode = true;
        tokenizer->n_pretok_stages = n - 1;
        TRY(find_bytes(tokenizer));
    } else if (tokenizer->model == MODEL_BPE && plain) {
        find_characters(tokenizer);
        find_cuts(tokenizer);
    }
    find_fallbacks(tokenizer);
    return STATUS_OK;
}
