/* The draft model of a deployment, looked at when it is deployed. */
#ifndef SHOAL_COORDINATOR_FRONT_DRAFT_H
#define SHOAL_COORDINATOR_FRONT_DRAFT_H

#include "coordinator/front_state.h"
#include "coordinator/shell_state.h"

/* Whether a deployment may name a draft model at all. */
status_t front_draft_check(const Shoal__V1__Deployment *d) MUST_USE;

/* Work team: its digest, and the bytes that it takes on the leader's host for sequences of
 * `context_max`, which is what the record will have and not a 0 of the request. INVALID when its
 * tokens are not those of `model`. Without a draft model both are empty. */
status_t front_draft_find(shell_t *shell, const Shoal__V1__Deployment *d,
                          const model_entry_t *model, uint32_t context_max,
                          char digest_out[MODEL_DIGEST_SIZE], uint64_t *bytes_out) MUST_USE;

#endif
