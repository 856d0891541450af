/* See detok.h. */
#include "common/model/detok.h"

#include <string.h>

#include "common/model/unicode.h"

/* What is held is joined with the next token's first bytes here; longer tokens follow directly. */
enum { JOIN_BYTES = 16 };

static void hold(detok_t *detok, const uint8_t *bytes, size_t n)
{
    CHECK(n < sizeof detok->held);
    memset(detok->held, 0, sizeof detok->held);
    if (n > 0)
        memcpy(detok->held, bytes, n);
    detok->n_held = (uint8_t)n;
}

status_t detok_push(detok_t *detok, const tokenizer_t *tokenizer, uint32_t id, buffer_t *out)
{
    size_t n;
    const uint8_t *bytes = tokenizer_bytes(tokenizer, id, &n);
    if (bytes == NULL)
        return fail(STATUS_INVALID, "token id %u is out of range: the vocabulary has %u tokens", id,
                    tokenizer_n_tokens(tokenizer));
    if (detok->skip_special && tokenizer_is_special(tokenizer, id))
        return STATUS_OK;
    if (detok->n_held > 0) {
        /* Enough of the token to settle the held character: afterwards nothing of it is pending,
         * or the token was too short to settle it and is held with it. */
        uint8_t join[JOIN_BYTES];
        size_t n_join = n < JOIN_BYTES - sizeof detok->held ? n : JOIN_BYTES - sizeof detok->held;
        memcpy(join, detok->held, detok->n_held);
        memcpy(join + detok->n_held, bytes, n_join);
        size_t rest = utf8_append_lossy(out, join, detok->n_held + n_join, false);
        if (n_join == n) {
            hold(detok, join + detok->n_held + n_join - rest, rest);
            return STATUS_OK;
        }
        bytes += n_join - rest; /* the join ended inside a character: it is read again, whole */
        n -= n_join - rest;
    }
    size_t rest = utf8_append_lossy(out, bytes, n, false);
    hold(detok, bytes + n - rest, rest);
    return STATUS_OK;
}

void detok_finish(detok_t *detok, buffer_t *out)
{
    (void)utf8_append_lossy(out, detok->held, detok->n_held, true);
    hold(detok, NULL, 0);
}
