/* libFuzzer over tokenizer.json: the input up to the first NUL is the file, what follows is a text
 * and a list of ids. Whatever is accepted must encode any UTF-8 or refuse it, plain text must never
 * become a special token, and the incremental detokenizer must agree with the whole. */
#include <stdint.h>
#include <string.h>

#include "common/base/status.h"
#include "common/model/detok.h"
#include "common/model/tokenizer.h"
#include "common/model/unicode.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void check_decode(const tokenizer_t *tokenizer, const token_ids_t *ids, bool skip)
{
    buffer_t whole = {0}, pieces = {0};
    CHECK(tokenizer_decode(tokenizer, ids->ids, ids->n, skip, &whole) == STATUS_OK);
    detok_t detok = {.skip_special = skip};
    for (size_t i = 0; i < ids->n; i++) {
        size_t before = pieces.size;
        CHECK(detok_push(&detok, tokenizer, ids->ids[i], &pieces) == STATUS_OK);
        size_t more = pieces.size - before;
        CHECK(more == 0 || utf8_valid_prefix(pieces.data + before, more) == more);
    }
    detok_finish(&detok, &pieces);
    CHECK(pieces.size == whole.size &&
          memcmp(buffer_text(&pieces), buffer_text(&whole), whole.size) == 0);
    buffer_release(&whole);
    buffer_release(&pieces);
}

static void check_encode(const tokenizer_t *tokenizer, const char *text, size_t n)
{
    token_ids_t ids = {0}, plain = {0};
    status_t status = tokenizer_encode(tokenizer, text, n, TOKENIZE_SPECIAL, 1 << 20, &ids);
    CHECK(status == STATUS_OK || ids.n == 0);
    for (size_t i = 0; i < ids.n; i++)
        CHECK(ids.ids[i] < tokenizer_n_tokens(tokenizer));
    if (tokenizer_encode(tokenizer, text, n, TOKENIZE_PLAIN, 1 << 20, &plain) != STATUS_OK)
        CHECK(plain.n == 0);
    check_decode(tokenizer, &ids, false);
    check_decode(tokenizer, &plain, true);
    uint8_t marks[256] = {0};
    if (n <= sizeof marks) {
        /* With no mark set the marked form is the plain one. */
        token_ids_t marked = {0};
        if (tokenizer_encode_marked(tokenizer, text, marks, n, 1 << 20, &marked) == STATUS_OK)
            CHECK(marked.n == plain.n &&
                  (marked.n == 0 || memcmp(marked.ids, plain.ids, marked.n * 4) == 0));
        token_ids_release(&marked);
    }
    token_ids_release(&ids);
    token_ids_release(&plain);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    const uint8_t *end = n == 0 ? NULL : memchr(data, 0, n);
    size_t size = end == NULL ? n : (size_t)(end - data);
    tokenizer_text_t json = {(const char *)data, size};
    tokenizer_t *tokenizer = NULL;
    if (tokenizer_from_json("fuzz", &json, NULL, NULL, &tokenizer) != STATUS_OK) {
        CHECK(tokenizer == NULL && *status_text() != 0);
        return 0;
    }
    const uint8_t *rest = end == NULL ? data + n : end + 1;
    size_t left = (size_t)(data + n - rest);
    check_encode(tokenizer, (const char *)rest, left);
    token_ids_t ids = {0};
    for (size_t i = 0; i + 1 < left; i += 2)
        token_ids_append(&ids, (uint32_t)(rest[i] << 8 | rest[i + 1]) %
                                   tokenizer_n_tokens(tokenizer));
    check_decode(tokenizer, &ids, false);
    check_decode(tokenizer, &ids, true);
    token_ids_release(&ids);
    tokenizer_release(tokenizer);
    return 0;
}
