/* One piece of text to ids, by the tokenizer's model. The order of the answers, unknown ones among
 * them, is that of Hugging Face's tokenizers. */
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "common/model/tokenizer_internal.h"
#include "common/model/unicode.h"

/* Words repeat: what short pieces became is kept for the length of one encode. A slot is
 * overwritten by the next piece that falls on it. */
enum { CACHE_SLOTS = 4096, CACHE_PIECE_BYTES = 24, CACHE_IDS = 6, CACHE_AFTER = 256 };

typedef struct {
    uint8_t n_bytes, n_ids; /* n_bytes 0: empty */
    char piece[CACHE_PIECE_BYTES];
    uint32_t ids[CACHE_IDS];
} cache_slot_t;

struct piece_cache {
    size_t n_pieces; /* seen so far: short texts never pay for the cache */
    cache_slot_t *slots;
};

/* Unknown symbols in a row, of which Hugging Face keeps the last back. */
typedef struct {
    encode_t *encode;
    bool pending;
} symbols_t;

status_t encode_check_count(const encode_t *encode)
{
    if (encode->out->n - encode->n_before > encode->ids_max)
        return fail(STATUS_INVALID, "the text has more than %zu tokens; shorten it",
                    encode->ids_max);
    return STATUS_OK;
}

void encode_release(encode_t *encode)
{
    bpe_scratch_release(&encode->bpe);
    unigram_scratch_release(&encode->unigram);
    normalize_scratch_release(&encode->normalize);
    pretok_scratch_release(&encode->pretok);
    buffer_release(&encode->spelling);
    if (encode->cache != NULL)
        free(encode->cache->slots);
    free(encode->cache);
}

static void put_known(symbols_t *symbols, uint32_t id)
{
    const tokenizer_t *tokenizer = symbols->encode->tokenizer;
    if (symbols->pending)
        token_ids_append(symbols->encode->out, tokenizer->model_unknown_id);
    symbols->pending = false;
    if (id != TOKENIZER_NO_ID)
        token_ids_append(symbols->encode->out, id);
}

static void put_unknown(symbols_t *symbols)
{
    const tokenizer_t *tokenizer = symbols->encode->tokenizer;
    if (tokenizer->model_unknown_id == TOKENIZER_NO_ID)
        return; /* left out */
    if (symbols->pending && !tokenizer->fuse_unknown)
        token_ids_append(symbols->encode->out, tokenizer->model_unknown_id);
    symbols->pending = true;
}

/* Byte tokens for all of the text, or false when one is missing. */
static bool put_fallback(encode_t *encode, const uint8_t *text, size_t n)
{
    const tokenizer_t *tokenizer = encode->tokenizer;
    for (size_t i = 0; i < n; i++)
        if (tokenizer->fallback_ids[text[i]] == TOKENIZER_NO_ID)
            return false;
    for (size_t i = 0; i < n; i++)
        token_ids_append(encode->out, tokenizer->fallback_ids[text[i]]);
    return true;
}

static uint32_t find_character(encode_t *encode, const uint8_t *text, size_t length, uint32_t point,
                               bool is_first, bool is_last)
{
    const tokenizer_t *tokenizer = encode->tokenizer;
    if (tokenizer->direct_ids != NULL)
        return point < DIRECT_POINTS ? tokenizer->direct_ids[point]
                                     : tokenizer_model_find(tokenizer, text, length);
    buffer_clear(&encode->spelling);
    if (!is_first)
        buffer_append_text(&encode->spelling, tokenizer->continuing_prefix);
    buffer_append(&encode->spelling, text, length);
    if (is_last)
        buffer_append_text(&encode->spelling, tokenizer->word_suffix);
    return tokenizer_model_find(tokenizer, encode->spelling.data, encode->spelling.size);
}

static void put_characters(encode_t *encode, const uint8_t *text, size_t n)
{
    symbols_t symbols = {encode, false};
    size_t length;
    for (size_t at = 0; at < n; at += length) {
        uint32_t point = utf8_decode(text + at, &length);
        uint32_t id = find_character(encode, text + at, length, point, at == 0, at + length == n);
        if (id != TOKENIZER_NO_ID)
            put_known(&symbols, id);
        else if (!encode->tokenizer->byte_fallback || !put_fallback(encode, text + at, length))
            put_unknown(&symbols);
    }
    put_known(&symbols, TOKENIZER_NO_ID);
}

static void put_bytes(encode_t *encode, const uint8_t *text, size_t n)
{
    symbols_t symbols = {encode, false};
    for (size_t i = 0; i < n; i++) {
        uint32_t id = encode->tokenizer->byte_ids[text[i]];
        if (id != TOKENIZER_NO_ID)
            put_known(&symbols, id);
        else
            put_unknown(&symbols);
    }
    put_known(&symbols, TOKENIZER_NO_ID);
}

/* The token that is the whole piece, for vocabularies that prefer it to the merges. */
static uint32_t find_whole(encode_t *encode, const uint8_t *piece, size_t n)
{
    if (n > TOKENIZER_TOKEN_BYTES_MAX)
        return TOKENIZER_NO_ID;
    if (!encode->tokenizer->byte_mode)
        return tokenizer_model_find(encode->tokenizer, piece, n);
    buffer_clear(&encode->spelling);
    for (size_t i = 0; i < n; i++) {
        uint8_t character[BYTE_TEXT_MAX];
        size_t size = byte_alphabet_write(piece[i], character);
        buffer_append(&encode->spelling, character, size);
    }
    return tokenizer_model_find(encode->tokenizer, encode->spelling.data, encode->spelling.size);
}

static void encode_bpe(encode_t *encode, const uint8_t *piece, size_t n)
{
    const tokenizer_t *tokenizer = encode->tokenizer;
    if (tokenizer->ignore_merges) {
        uint32_t whole = find_whole(encode, piece, n);
        if (whole != TOKENIZER_NO_ID) {
            token_ids_append(encode->out, whole);
            return;
        }
    }
    size_t start = encode->out->n;
    if (tokenizer->byte_mode)
        put_bytes(encode, piece, n);
    else
        put_characters(encode, piece, n);
    size_t n_ids = encode->out->n - start;
    if (n_ids > 1)
        bpe_merge(&tokenizer->merges, &encode->bpe, encode->out->ids + start, &n_ids);
    encode->out->n = start + n_ids;
}

static status_t encode_unigram(encode_t *encode, const uint8_t *piece, size_t n)
{
    const tokenizer_t *tokenizer = encode->tokenizer;
    unigram_cut(&tokenizer->unigram, &encode->unigram, piece, n, tokenizer->fuse_unknown);
    for (size_t i = 0; i < encode->unigram.n_parts; i++) {
        uint32_t id = encode->unigram.parts[i].id;
        size_t start = encode->unigram.parts[i].start, end = encode->unigram.parts[i].end;
        if (id != TOKENIZER_NO_ID) {
            token_ids_append(encode->out, id);
            continue;
        }
        if (tokenizer->byte_fallback && put_fallback(encode, piece + start, end - start))
            continue;
        if (tokenizer->model_unknown_id == TOKENIZER_NO_ID)
            return fail(STATUS_INVALID,
                        "the vocabulary has no token for \"%s\" and none for what is unknown",
                        tokenizer_show(piece + start, end - start).text);
        token_ids_append(encode->out, tokenizer->model_unknown_id);
    }
    return STATUS_OK;
}

/* The longest known start, again and again; one part that is not known makes all of it unknown. */
static void encode_wordpiece(encode_t *encode, const uint8_t *piece, size_t n)
{
    const tokenizer_t *tokenizer = encode->tokenizer;
    size_t start = encode->out->n, n_points = 0;
    for (size_t i = 0; i < n; i++)
        n_points += (piece[i] & 0xC0) != 0x80;
    bool known = n_points <= tokenizer->word_points_max;
    for (size_t at = 0; at < n && known;) {
        uint32_t id = TOKENIZER_NO_ID;
        size_t end = n;
        for (; end > at && id == TOKENIZER_NO_ID; end--) {
            if (end < n && (piece[end] & 0xC0) == 0x80)
                continue;
            buffer_clear(&encode->spelling);
            if (at > 0)
                buffer_append_text(&encode->spelling, tokenizer->continuing_prefix);
            buffer_append(&encode->spelling, piece + at, end - at);
            id = tokenizer_model_find(tokenizer, encode->spelling.data, encode->spelling.size);
        }
        known = id != TOKENIZER_NO_ID;
        if (known) {
            token_ids_append(encode->out, id);
            at = end + 1;
        }
    }
    if (!known) {
        encode->out->n = start;
        token_ids_append(encode->out, tokenizer->model_unknown_id);
    }
}

static cache_slot_t *cache_slot(encode_t *encode, const char *piece, size_t n)
{
    if (n > CACHE_PIECE_BYTES)
        return NULL;
    if (encode->cache == NULL)
        encode->cache = MEM_NEW(piece_cache_t);
    if (encode->cache->slots == NULL) {
        if (encode->cache->n_pieces++ < CACHE_AFTER)
            return NULL;
        encode->cache->slots = MEM_NEW_ARRAY(cache_slot_t, CACHE_SLOTS);
    }
    return &encode->cache->slots[XXH3_64bits(piece, n) % CACHE_SLOTS];
}

static status_t encode_word(encode_t *encode, const char *piece, size_t n)
{
    cache_slot_t *slot = cache_slot(encode, piece, n);
    if (slot != NULL && slot->n_bytes == n && memcmp(slot->piece, piece, n) == 0) {
        for (size_t i = 0; i < slot->n_ids; i++)
            token_ids_append(encode->out, slot->ids[i]);
        return encode_check_count(encode);
    }
    size_t start = encode->out->n;
    if (encode->tokenizer->model == MODEL_BPE)
        encode_bpe(encode, (const uint8_t *)piece, n);
    else
        encode_wordpiece(encode, (const uint8_t *)piece, n);
    size_t n_ids = encode->out->n - start;
    if (slot != NULL && n_ids <= CACHE_IDS) {
        slot->n_bytes = (uint8_t)n;
        slot->n_ids = (uint8_t)n_ids;
        memcpy(slot->piece, piece, n);
        for (size_t i = 0; i < n_ids; i++)
            slot->ids[i] = encode->out->ids[start + i];
    }
    return encode_check_count(encode);
}

/* The end of the word that begins at `at`: the next U+2581 that follows another character. */
static size_t word_end(const char *piece, size_t n, size_t at)
{
    static const char space[] = "\xE2\x96\x81";
    size_t size = sizeof space - 1;
    while (n - at >= size && memcmp(piece + at, space, size) == 0)
        at += size;
    const char *next = memmem(piece + at, n - at, space, size);
    return next == NULL ? n : (size_t)(next - piece);
}

status_t encode_piece(void *context, const char *piece, size_t n)
{
    encode_t *encode = context;
    if (encode->tokenizer->model == MODEL_UNIGRAM) {
        TRY(encode_unigram(encode, (const uint8_t *)piece, n));
        return encode_check_count(encode);
    }
    if (!encode->tokenizer->cuts_at_space)
        return encode_word(encode, piece, n);
    for (size_t at = 0, end; at < n; at = end) {
        end = word_end(piece, n, at);
        TRY(encode_word(encode, piece + at, end - at));
    }
    return STATUS_OK;
}
