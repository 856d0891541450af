/* What a rank is told, held against its model. See rank.h. */
#include "worker/engine/rank.h"
#include "worker/engine/stage.h"

#define FORM_TIMEOUT_MS 60000u

status_t rank_config_check(const rank_config_t *c, const model_config_t *shape)
{
    if (c->tp < 1 || c->tp > PLAN_TP_MAX || c->stages < 1 || c->stages > PLAN_STAGES_MAX)
        return fail(STATUS_INVALID, "tp %u × %u stages: at most %d × %d, at least 1 × 1", c->tp,
                    c->stages, PLAN_TP_MAX, PLAN_STAGES_MAX);
    if (c->slice >= c->tp || c->stage >= c->stages || c->rank != c->stage * c->tp + c->slice)
        return fail(STATUS_INVALID, "rank %u cannot be slice %u of %u of stage %u of %u", c->rank,
                    c->slice, c->tp, c->stage, c->stages);
    if (c->layer_count == 0 || c->layer_first >= shape->n_layers ||
        c->layer_count > shape->n_layers - c->layer_first)
        return fail(STATUS_INVALID, "layers %u to %u: the model has %u", c->layer_first,
                    c->layer_first + c->layer_count, shape->n_layers);
    if ((c->stage == 0) != (c->layer_first == 0) ||
        (c->stage == c->stages - 1) != (c->layer_first + c->layer_count == shape->n_layers))
        return fail(STATUS_INVALID, "stage %u of %u cannot have layers %u to %u of %u", c->stage,
                    c->stages, c->layer_first, c->layer_first + c->layer_count, shape->n_layers);
    if (c->shared_head && c->stages == 1)
        return fail(STATUS_INVALID, "a head is shared by several stages; there is one");
    if (c->context_max > (c->beyond_context ? MODEL_CONTEXT_MAX : shape->context_train))
        return fail(STATUS_INVALID, "context_max is %u; the model was trained for %u",
                    c->context_max, shape->context_train);
    if (c->prefill_tokens_max > STEP_TOKENS_MAX || c->batch_max > STEP_ENTRIES_MAX ||
        c->batch_max > c->prefill_tokens_max)
        return fail(STATUS_INVALID,
                    "%u sequences and %u tokens in a step: at most %u and %u, and a token each",
                    c->batch_max, c->prefill_tokens_max, STEP_ENTRIES_MAX, STEP_TOKENS_MAX);
    return STATUS_OK;
}

void rank_config_complete(rank_config_t *c, const model_config_t *shape)
{
    if (c->context_max == 0)
        c->context_max = shape->context_train;
    if (c->prefill_tokens_max == 0)
        c->prefill_tokens_max = 512;
    if (c->batch_max == 0)
        c->batch_max = c->prefill_tokens_max < 64 ? c->prefill_tokens_max : 64;
    if (c->form_timeout_ms == 0)
        c->form_timeout_ms = FORM_TIMEOUT_MS;
}
