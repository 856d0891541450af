/* Guesses by a draft model: whose next ids it is asked for before a plan is made, and what became of
 * them. It stands aside where a sequence's own earlier ids guess already (lookup.h): those cost nothing.
 */
#include <string.h>

#include "worker/engine/scheduler_internal.h"

/* Ids that the draft model sees of one sequence in one go, so that others need not wait long for
 * their next token. */
#define CATCH_UP_ROWS 64u
#define CATCH_UP_ROWS_ALONE 256u

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Sequences that may stand in the next plan with one row each, if it is not for pieces of prompts alone. */
static bool decodes(const sequence_t *q)
{
    return q->n_in_flight == 0 && !q->solo && q->n_ids - q->n_computed == 1;
}

/* A plan that would be made now takes no more of them. */
static uint32_t entries_max(const scheduler_t *s)
{
    uint32_t share = (s->n_running + s->n_waiting + s->config.stages - 1) / s->config.stages;
    return least(s->config.batch_max, share > 0 ? share : 1);
}

static bool looks_up(scheduler_t *s, sequence_t *q, uint32_t n_rows)
{
    return q->draft.places && lookup_may_pay(n_rows, scheduler_fixed_rows(s)) &&
           lookup_learn(&q->draft, q->ids, q->n_ids) &&
           lookup_length(&q->draft, n_rows, scheduler_fixed_rows(s), 1) > 0;
}

static void describe(const scheduler_t *s, const sequence_t *q, draft_case_t *c)
{
    uint32_t left = q->max_tokens - sequence_produced(q);
    c->rate = q->draft_rate > 0 ? q->draft_rate : draft_cost_first_rate(&s->draft_cost);
    c->behind = q->n_ids - q->n_drafted_known;
    c->context = q->n_ids;
    c->tokens_left = left;
    c->max = least(s->config.speculate_max, left - 1);
}

uint32_t scheduler_ask_drafts(scheduler_t *s, uint32_t context_max,
                              draft_ask_t asks[DRAFT_SEQUENCES_MAX])
{
    sequence_t *some[DRAFT_SEQUENCES_MAX];
    uint32_t n_rows = 0, n = 0, most = entries_max(s);
    draft_case_t c = {.fixed_rows = s->config.fixed_rows};
    if (!s->config.draft_model || s->lost || s->n_flights >= s->config.stages)
        return 0;
    for (uint32_t i = 0; i < s->n_running && n_rows < most; i++) {
        sequence_t *q = s->running[i];
        if (!decodes(q))
            continue;
        if (n_rows == DRAFT_SEQUENCES_MAX)
            return 0;
        c.keys += q->n_ids;
        some[n_rows++] = q;
    }
    c.n_rows = n_rows;
    c.stages = s->config.stages / least(s->config.stages, s->n_running > 0 ? s->n_running : 1);
    for (uint32_t i = 0; i < n_rows; i++) {
        sequence_t *q = some[i];
        if (q->logits_next < q->n_prompt || q->drafted_at == q->n_ids || looks_up(s, q, n_rows))
            continue;
        /* The draft model would be silent, round after round, and what is given to it for asking
         * and the turn to teach its price would be lost to the others. */
        if (q->n_ids >= context_max)
            continue;
        describe(s, q, &c);
        c.max = least(c.max, context_max - q->n_ids);
        uint32_t n_wanted = draft_cost_length(&s->draft_cost, &s->cost, &c);
        if (n_wanted == 0)
            continue;
        asks[n++] = (draft_ask_t){
            .serial = q->serial, .choice = q->choice, .n_ids = q->n_ids, .n_wanted = n_wanted,
            .rows_max = n_rows > 1 ? CATCH_UP_ROWS : CATCH_UP_ROWS_ALONE,
            .ids = q->ids, .sampling = &q->sampling};
        if (c.fixed_rows == 0 && !draft_cost_is_learnt(&s->draft_cost))
            break;
    }
    return n;
}

static sequence_t *running_one(scheduler_t *s, uint64_t serial)
{
    for (uint32_t i = 0; i < s->n_running; i++)
        if (s->running[i]->serial == serial)
            return s->running[i];
    return NULL;
}

void scheduler_drafts_done(scheduler_t *s, const draft_answers_t *answers)
{
    for (uint32_t i = 0; i < answers->n_steps; i++) {
        draft_cost_draft_took(&s->draft_cost, &answers->works[i], answers->took_ns[i]);
        s->load.draft_ns += answers->took_ns[i];
    }
    for (uint32_t i = 0; i < answers->n; i++) {
        const draft_answer_t *answer = &answers->answers[i];
        sequence_t *q = running_one(s, answer->serial);
        if (!q || q->n_ids != answer->n_ids)
            continue; /* it was cancelled or preempted meanwhile */
        q->n_drafted_known = answer->n_known;
        q->n_drafted = answer->n;
        q->drafted_at = q->n_ids;
        memcpy(q->drafted, answer->ids, answer->n * sizeof *q->drafted);
    }
}

uint32_t scheduler_drafted(const sequence_t *q)
{
    return q->drafted_at == q->n_ids ? q->n_drafted : 0;
}

void scheduler_hold_drafts(scheduler_t *s, const struct flown *entry, const step_drawn_t *drawn,
                           uint32_t n)
{
    sequence_t *q = entry->sequence;
    if (entry->n_drafted == 0 || n == 0)
        return;
    if (q->draft_rate <= 0)
        q->draft_rate = draft_cost_first_rate(&s->draft_cost);
    /* A row without a token tells nothing of its guess. */
    uint32_t n_held = drawn[n - 1].failed ? n - 1 : entry->n_drafted;
    draft_cost_held(&s->draft_cost, &q->draft_rate, n_held, n - 1);
    s->load.model_drafted_tokens += entry->n_drafted;
    s->load.model_accepted_tokens += n - 1;
}
