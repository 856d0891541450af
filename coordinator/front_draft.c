/* See front_draft.h. */
#include "coordinator/front_draft.h"

#include <stdio.h>
#include <stdlib.h>

#include "common/model/model_files.h"
#include "common/model/tokenizer_same.h"

status_t front_draft_check(const Shoal__V1__Deployment *d)
{
    TRY(request_check_text("draft_path", d->draft_path, 4096));
    if (d->draft_path[0] && d->steps && d->steps->speculate_off)
        return fail(STATUS_INVALID, "draft_path: a draft model guesses tokens ahead, and "
                    "steps.speculate_off forbids it; leave out one of them");
    return STATUS_OK;
}

status_t front_draft_find(shell_t *shell, const Shoal__V1__Deployment *d,
                          const model_entry_t *model, uint32_t context_max,
                          char digest_out[MODEL_DIGEST_SIZE], uint64_t *bytes_out)
{
    digest_out[0] = 0;
    *bytes_out = 0;
    if (!d->draft_path[0])
        return STATUS_OK;
    char *path = NULL, *name = model_files_name(d->draft_path);
    const model_entry_t *draft = NULL;
    status_t status = models_find_file(shell, d->draft_path, name, &path);
    if (status == STATUS_OK)
        status = models_entry(shell, path, d->draft_digest, "", &draft);
    if (status == STATUS_OK && draft->sizes.config.vocab != model->sizes.config.vocab)
        status = fail(STATUS_INVALID,
                      "draft_path: %s has %u tokens and %s has %u: a draft model has the "
                      "tokenizer of the model that it drafts for", d->draft_path,
                      draft->sizes.config.vocab, d->model_path, model->sizes.config.vocab);
    if (status == STATUS_OK)
        status = tokenizer_same(model->tokenizer, d->model_path, draft->tokenizer, d->draft_path);
    if (status == STATUS_OK)
        status = plan_draft_bytes(&draft->sizes, context_max, bytes_out);
    if (status == STATUS_OK)
        snprintf(digest_out, MODEL_DIGEST_SIZE, "%s", draft->digest);
    free(name);
    free(path);
    return status;
}
