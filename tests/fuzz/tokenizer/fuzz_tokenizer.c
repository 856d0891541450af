/* libFuzzer: the first byte decides. Odd: the rest is a vocabulary (pieces between newlines:
 * tokens, and with a leading byte 1 merges) and a text. Even: a fixed vocabulary, and the rest is
 * both a text and a list of ids. Whatever a tokenizer accepts must decode to what it encoded, and
 * the incremental detokenizer must agree with the whole. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/detok.h"
#include "common/model/tokenizer.h"
#include "common/model/unicode.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

enum { TOKENS_MAX = 320, MERGES_MAX = 64 };

typedef struct {
    tokenizer_text_t tokens[TOKENS_MAX], merges[MERGES_MAX];
    uint8_t kinds[TOKENS_MAX];
    char spellings[256][2];
    tokenizer_source_t source;
    bool is_odd; /* see is_byte_letters */
} vocabulary_t;

/* An added token is found by its text and, as in Hugging Face's tokenizers, decoded as the letters of
 * bytes when all of its characters are such: beyond ASCII that is another text. */
static bool is_byte_letters(const char *text, size_t n, uint8_t kind)
{
    bool is_added = kind == TOKEN_UNKNOWN || kind == TOKEN_CONTROL || kind == TOKEN_USER_DEFINED;
    for (size_t i = 0; is_added && i < n; i++)
        if ((uint8_t)text[i] >= 0x80)
            return true;
    return false;
}

static void add_token(vocabulary_t *vocabulary, const char *text, size_t n, uint8_t kind)
{
    if (vocabulary->source.n_tokens == TOKENS_MAX)
        return;
    vocabulary->is_odd |= is_byte_letters(text, n, kind);
    vocabulary->kinds[vocabulary->source.n_tokens] = kind;
    vocabulary->tokens[vocabulary->source.n_tokens++] = (tokenizer_text_t){text, n};
}

static void add_bytes(vocabulary_t *vocabulary)
{
    uint32_t hidden = 0x100;
    for (unsigned byte = 0; byte < 256; byte++) {
        bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) ||
                         byte >= 0xAE;
        uint8_t spelling[UNICODE_UTF8_MAX];
        size_t n = utf8_encode(printable ? byte : hidden++, spelling);
        memcpy(vocabulary->spellings[byte], spelling, n);
        add_token(vocabulary, vocabulary->spellings[byte], n, TOKEN_NORMAL);
    }
    vocabulary->source = (tokenizer_source_t){
        .tokens = vocabulary->tokens, .kinds = vocabulary->kinds, .n_tokens = 256,
        .merges = vocabulary->merges, .pre = "gpt-2",
        .bos_id = TOKENIZER_NO_ID, .eos_id = TOKENIZER_NO_ID, .pad_id = TOKENIZER_NO_ID,
        .unknown_id = TOKENIZER_NO_ID};
}

static void add_merge(vocabulary_t *vocabulary, const char *text, size_t n)
{
    if (vocabulary->source.n_merges < MERGES_MAX)
        vocabulary->merges[vocabulary->source.n_merges++] = (tokenizer_text_t){text, n};
}

static void add_fixed(vocabulary_t *vocabulary)
{
    static const char *const merges[] = {"a a", "aa aa", "\xC4\xA0 a", "t h", "th e"};
    static const char *const made[] = {"aa", "aaaa", "\xC4\xA0\x61", "th", "the"};
    for (size_t i = 0; i < sizeof merges / sizeof *merges; i++) {
        add_token(vocabulary, made[i], strlen(made[i]), TOKEN_NORMAL);
        add_merge(vocabulary, merges[i], strlen(merges[i]));
    }
    add_token(vocabulary, "<|s|>", 5, TOKEN_CONTROL);
    add_token(vocabulary, "<|s|><", 6, TOKEN_CONTROL);
    add_token(vocabulary, "<t>", 3, TOKEN_USER_DEFINED);
    add_token(vocabulary, "\xF0\x9F\x98\x80", 4, TOKEN_UNUSED);
}

/* Lines of the input become tokens or merges; returns where the text begins. */
static size_t add_lines(vocabulary_t *vocabulary, const char *data, size_t n)
{
    size_t at = 0;
    while (at < n) {
        const char *end = memchr(data + at, '\n', n - at);
        if (end == NULL || end == data + at)
            break;
        size_t size = (size_t)(end - data) - at;
        if (data[at] == 1)
            add_merge(vocabulary, data + at + 1, size - 1);
        else if (data[at] < 8)
            add_token(vocabulary, data + at + 1, size - 1, (uint8_t)data[at]);
        else
            add_token(vocabulary, data + at, size, TOKEN_NORMAL);
        at += size + 1;
    }
    return at < n ? at + 1 : n;
}

static void check_decode(const tokenizer_t *tokenizer, const uint32_t *ids, size_t n, bool skip)
{
    buffer_t whole = {0}, pieces = {0};
    CHECK(tokenizer_decode(tokenizer, ids, n, skip, &whole) == STATUS_OK);
    detok_t detok = {.skip_special = skip};
    for (size_t i = 0; i < n; i++) {
        size_t before = pieces.size;
        CHECK(detok_push(&detok, tokenizer, ids[i], &pieces) == STATUS_OK);
        size_t more = pieces.size - before;
        CHECK(more == 0 || utf8_valid_prefix(pieces.data + before, more) == more);
    }
    detok_finish(&detok, &pieces);
    CHECK(pieces.size == whole.size &&
          memcmp(buffer_text(&pieces), buffer_text(&whole), whole.size) == 0);
    buffer_release(&whole);
    buffer_release(&pieces);
}

static void check_encode(const tokenizer_t *tokenizer, const char *text, size_t n,
                         tokenize_mode_t mode, bool is_odd)
{
    token_ids_t ids = {0};
    if (tokenizer_encode(tokenizer, text, n, mode, SIZE_MAX, &ids) == STATUS_OK) {
        buffer_t back = {0};
        CHECK(tokenizer_decode(tokenizer, ids.ids, ids.n, false, &back) == STATUS_OK);
        CHECK(is_odd || (back.size == n && memcmp(buffer_text(&back), text, n) == 0));
        for (size_t i = 0; i < ids.n && mode == TOKENIZE_PLAIN; i++)
            CHECK(!tokenizer_is_special(tokenizer, ids.ids[i]));
        check_decode(tokenizer, ids.ids, ids.n, true);
        buffer_release(&back);
    } else {
        CHECK(n > 0 && utf8_valid_prefix((const uint8_t *)text, n) < n);
    }
    token_ids_release(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static vocabulary_t vocabulary;
    if (n == 0)
        return 0;
    memset(&vocabulary, 0, sizeof vocabulary);
    add_bytes(&vocabulary);
    static const char *const pres[] = {"gpt-2", "smollm", "llama-bpe", "default"};
    vocabulary.source.pre = pres[data[0] >> 1 & 3];
    const char *text = (const char *)data + 1;
    size_t size = n - 1;
    bool custom = (data[0] & 1) != 0;
    if (custom) {
        size_t used = add_lines(&vocabulary, text, size);
        text += used;
        size -= used;
    } else {
        add_fixed(&vocabulary);
    }
    tokenizer_t *tokenizer = NULL;
    status_t status = tokenizer_create(&vocabulary.source, &tokenizer);
    CHECK(status == STATUS_OK || custom);
    if (status != STATUS_OK)
        return 0;
    check_encode(tokenizer, text, size, TOKENIZE_PLAIN, vocabulary.is_odd);
    check_encode(tokenizer, text, size, TOKENIZE_SPECIAL, vocabulary.is_odd);
    token_ids_t ids = {0};
    for (size_t i = 0; i + 1 < size; i += 2)
        token_ids_append(&ids, (uint32_t)((uint8_t)text[i] << 8 | (uint8_t)text[i + 1]) %
                                   tokenizer_n_tokens(tokenizer));
    check_decode(tokenizer, ids.ids, ids.n, false);
    check_decode(tokenizer, ids.ids, ids.n, true);
    token_ids_release(&ids);
    tokenizer_release(tokenizer);
    return 0;
}
