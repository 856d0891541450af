/* Ids of a model that no token has. See tokenizer.h. */
#include <string.h>

#include "common/model/tokenizer_internal.h"

static token_bytes_t *widen(token_bytes_t *texts, size_t n_before, size_t n)
{
    texts = mem_resize(texts, n, sizeof *texts);
    memset(texts + n_before, 0, (n - n_before) * sizeof *texts);
    return texts;
}

void tokenizer_widen(tokenizer_t *tokenizer, uint32_t n_tokens)
{
    size_t before = tokenizer->n_tokens, n = n_tokens;
    if (n <= before)
        return;
    tokenizer->texts = widen(tokenizer->texts, before, n);
    tokenizer->spoken = widen(tokenizer->spoken, before, n);
    tokenizer->bytes = widen(tokenizer->bytes, before, n);
    tokenizer->kinds = mem_resize(tokenizer->kinds, n, 1);
    tokenizer->flags = mem_resize(tokenizer->flags, n, 1);
    memset(tokenizer->kinds + before, TOKEN_UNUSED, n - before);
    memset(tokenizer->flags + before, 0, n - before);
    tokenizer->n_tokens = n_tokens;
}
