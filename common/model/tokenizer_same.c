/* See tokenizer_same.h. */
#include "common/model/tokenizer_same.h"

#include <string.h>

#define WRONG "a draft model has the tokenizer of the model that it drafts for"

static bool is_same_token(const tokenizer_t *a, const tokenizer_t *b, uint32_t id)
{
    size_t n_a = 0, n_b = 0;
    const uint8_t *bytes_a = tokenizer_bytes(a, id, &n_a), *bytes_b = tokenizer_bytes(b, id, &n_b);
    if (!bytes_a || !bytes_b)
        return bytes_a == bytes_b;
    return n_a == n_b && memcmp(bytes_a, bytes_b, n_a) == 0 &&
           tokenizer_is_special(a, id) == tokenizer_is_special(b, id);
}

status_t tokenizer_same(const tokenizer_t *model, const char *model_name,
                        const tokenizer_t *draft, const char *draft_name)
{
    uint32_t n = tokenizer_n_tokens(model);
    if (tokenizer_n_tokens(draft) != n)
        return fail(STATUS_INVALID, "%s has %u tokens and %s has %u: " WRONG, draft_name,
                    tokenizer_n_tokens(draft), model_name, n);
    for (uint32_t id = 0; id < n; id++)
        if (!is_same_token(model, draft, id))
            return fail(STATUS_INVALID, "token %u of %s is not the one of %s: " WRONG, id,
                        draft_name, model_name);
    return STATUS_OK;
}

status_t tokenizer_check_same(const char *model_path, const char *draft_path)
{
    tokenizer_t *model = NULL, *draft = NULL;
    if (strcmp(model_path, draft_path) == 0)
        return STATUS_OK;
    status_t for_model = tokenizer_open(model_path, &model);
    status_t status = tokenizer_open(draft_path, &draft);
    if (for_model != STATUS_OK && status != STATUS_OK)
        return STATUS_OK; /* ids are all that there is, and their number was compared */
    if (for_model != STATUS_OK)
        status = fail(STATUS_INVALID, "%s has no tokenizer and %s has one: " WRONG, model_path,
                      draft_path);
    if (status == STATUS_OK)
        status = tokenizer_same(model, model_path, draft, draft_path);
    if (model)
        tokenizer_release(model);
    if (draft)
        tokenizer_release(draft);
    return status;
}
