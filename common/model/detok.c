/* See detok.h. Here: bytes that become characters; every other decoder is tokenizer_decode.c's. */
#include "common/model/detok.h"

#include <string.h>

#include "common/model/tokenizer_internal.h"
#include "common/model/unicode.h"

/* What is held is joined with the next token's first bytes here; longer tokens follow directly. */
enum { JOIN_BYTES = 16, CHARACTER_BYTES = 4 };

static void hold(detok_t *detok, const uint8_t *bytes, size_t n)
{
    CHECK(n < CHARACTER_BYTES);
    memset(detok->held, 0, CHARACTER_BYTES);
    if (n > 0)
        memcpy(detok->held, bytes, n);
    detok->n_held = (uint8_t)n;
}

static void push_bytes(detok_t *detok, const uint8_t *bytes, size_t n, buffer_t *out)
{
    if (detok->n_held > 0) {
        /* Enough of the token to settle the held character: afterwards nothing of it is pending,
         * or the token was too short to settle it and is held with it. */
        uint8_t join[JOIN_BYTES];
        size_t n_join = n < JOIN_BYTES - CHARACTER_BYTES ? n : JOIN_BYTES - CHARACTER_BYTES;
        memcpy(join, detok->held, detok->n_held);
        if (n_join > 0)
            memcpy(join + detok->n_held, bytes, n_join);
        size_t rest = utf8_append_lossy(out, join, detok->n_held + n_join, false);
        if (n_join == n) {
            hold(detok, join + detok->n_held + n_join - rest, rest);
            return;
        }
        bytes += n_join - rest; /* the join ended inside a character: it is read again, whole */
        n -= n_join - rest;
    }
    size_t rest = utf8_append_lossy(out, bytes, n, false);
    hold(detok, bytes + n - rest, rest);
}

status_t detok_push(detok_t *detok, const tokenizer_t *tokenizer, uint32_t id, buffer_t *out)
{
    if (id >= tokenizer->n_tokens)
        return fail(STATUS_INVALID, "token id %u is out of range: the vocabulary has %u tokens", id,
                    tokenizer->n_tokens);
    detok->tokenizer = tokenizer;
    if (tokenizer->texts[id].size == 0) /* a gap in the vocabulary */
        return STATUS_OK;
    if (detok->skip_special && tokenizer_is_special(tokenizer, id))
        return STATUS_OK;
    if (tokenizer->decoder.is_byte_level)
        push_bytes(detok, tokenizer->bytes[id].data, tokenizer->bytes[id].size, out);
    else
        decoder_push(&tokenizer->decoder, detok, tokenizer->spoken[id].data,
                     tokenizer->spoken[id].size, out);
    return STATUS_OK;
}

void detok_finish(detok_t *detok, buffer_t *out)
{
    if (detok->tokenizer != NULL) {
        if (detok->tokenizer->decoder.is_byte_level)
            (void)utf8_append_lossy(out, detok->held, detok->n_held, true);
        else
            decoder_end(&detok->tokenizer->decoder, detok, out);
    }
    *detok = (detok_t){.skip_special = detok->skip_special};
}
