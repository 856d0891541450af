/* Logits and tokens of one step; see head.h. */
#include "worker/engine/head.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/failpoint.h"
#include "common/base/memory.h"
#include "worker/engine/trace_file.h"

/* A sequence as the sampler knows it, from its open to its close. */
typedef struct {
    bool open;
    uint32_t choice;
    uint32_t n_ids; /* prompt and produced so far */
    sampling_t sampling;
    sampling_bias_t *bias;
    sampler_state_t state;
} head_slot_t;

struct head {
    stage_t *stage;
    sampler_t *sampler; /* slice 0 */
    float *whole;       /* slice 0, when several ranks have parts: STAGE_LOGIT_ROWS whole rows */
    uint32_t *rows;     /* of the step's batch: those that go through the head */
    uint32_t *row_entry;
    step_drawn_t *drawn;
    bool missed; /* a guess of the entry in work was wrong: its later rows give no token */
    head_slot_t slots[STEP_SLOTS_MAX];
};

head_t *head_new(stage_t *stage)
{
    head_t *head = MEM_NEW(head_t);
    head->stage = stage;
    head->rows = MEM_NEW_ARRAY(uint32_t, stage->rows_max);
    head->row_entry = MEM_NEW_ARRAY(uint32_t, stage->rows_max);
    head->drawn = MEM_NEW_ARRAY(step_drawn_t, STEP_SAMPLES_MAX);
    if (stage->config.slice == 0) {
        head->sampler = sampler_new(stage->shape->vocab);
        if (stage_head_parts(stage) > 1)
            head->whole = MEM_NEW_ARRAY(float, (size_t)STAGE_LOGIT_ROWS * stage->shape->vocab);
    }
    return head;
}

static void close_slot(head_slot_t *slot)
{
    free(slot->bias);
    sampler_state_release(&slot->state);
    *slot = (head_slot_t){0};
}

void head_reset(head_t *head)
{
    for (uint32_t i = 0; i < STEP_SLOTS_MAX; i++)
        close_slot(&head->slots[i]);
}

void head_free(head_t *head)
{
    if (!head)
        return;
    head_reset(head);
    sampler_free(head->sampler);
    free(head->whole);
    free(head->rows);
    free(head->row_entry);
    free(head->drawn);
    free(head);
}

static status_t open_slot(head_t *head, const step_open_t *open)
{
    head_slot_t *slot = &head->slots[open->slot];
    if (slot->open)
        return fail(STATUS_INVALID, "a step plan opens slot %u twice", open->slot);
    *slot = (head_slot_t){.open = true, .choice = open->choice, .sampling = open->sampling};
    if (open->sampling.n_bias > 0) {
        slot->bias = MEM_NEW_ARRAY(sampling_bias_t, open->sampling.n_bias);
        memcpy(slot->bias, open->sampling.bias, open->sampling.n_bias * sizeof *slot->bias);
    }
    slot->sampling.bias = slot->bias;
    slot->n_ids = open->n_prompt + open->n_produced;
    for (uint32_t i = 0; i < slot->n_ids; i++)
        sampler_state_add(&slot->state, open->ids[i], i >= open->n_prompt);
    return STATUS_OK;
}

/* The token that comes after row `row` of the entry. */
static status_t draw(head_t *head, const step_entry_t *entry, uint32_t row, const float *logits,
                     step_drawn_t *out)
{
    head_slot_t *slot = &head->slots[entry->slot];
    uint32_t position = entry->position + row + 1;
    if (!slot->open || slot->n_ids != position)
        return fail(STATUS_INVALID, "a step plan draws position %u in slot %u, which has %u ids",
                    position, entry->slot, slot->n_ids);
    *out = (step_drawn_t){.slot = entry->slot};
    status_t status = sampler_draw(head->sampler, logits, &slot->sampling, &slot->state, position,
                                   slot->choice, &out->sampled);
    if (status == STATUS_NUMERIC) {
        out->failed = true; /* this sequence's loss; the others of the step go on */
        return STATUS_OK;
    }
    TRY(status);
    sampler_state_add(&slot->state, out->sampled.id, true);
    slot->n_ids++;
    return STATUS_OK;
}

/* Rows first … first + n - 1 of the entry, of which those that draw are its last ones. A token is
 * drawn from the row of a guess exactly as it would be if the guess had come as a token before; so
 * the first row whose guess was wrong ends it, and what was drawn until then is the text. */
static status_t draw_rows(head_t *head, const step_entry_t *entry, uint32_t first, uint32_t n,
                          const float *logits, step_result_t *result)
{
    uint32_t begin = entry->n_tokens - 1 - entry->n_draft;
    for (uint32_t row = first < begin ? begin : first; row < first + n; row++) {
        if (row == begin)
            head->missed = false;
        if (head->missed)
            return STATUS_OK;
        step_drawn_t *drawn = &result->drawn[result->n++];
        TRY(draw(head, entry, row, logits + (size_t)(row - first) * head->stage->shape->vocab,
                 drawn));
        head->missed = drawn->failed ||
                       (row + 1 < entry->n_tokens && drawn->sampled.id != entry->ids[row + 1]);
    }
    return STATUS_OK;
}

/* The rows of a group that stand in the same entry are given away together. */
static status_t use_group(head_t *head, const step_plan_t *plan, uint32_t first, uint32_t n,
                          const float *logits, head_logits_fn deliver, void *context,
                          step_result_t *result)
{
    uint32_t vocab = head->stage->shape->vocab, batch_row = 0, seen = 0;
    for (uint32_t i = 0; i < n;) {
        uint32_t e = head->row_entry[first + i], count = 1;
        while (i + count < n && head->row_entry[first + i + count] == e)
            count++;
        const step_entry_t *entry = &plan->entries[e];
        for (; seen < e; seen++)
            batch_row += plan->entries[seen].n_tokens;
        uint32_t in_entry = head->rows[first + i] - batch_row;
        const float *row = logits + (size_t)i * vocab;
        if (entry->want_logits)
            TRY(deliver(context, entry->slot, entry->position + in_entry, count, row));
        if (entry->sample)
            TRY(draw_rows(head, entry, in_entry, count, row, result));
        i += count;
    }
    return STATUS_OK;
}

status_t head_run(head_t *head, const step_plan_t *plan, head_logits_fn deliver, void *context,
                  step_result_t *result_out)
{
    stage_t *stage = head->stage;
    step_result_t result = {.step = plan->step, .drawn = head->drawn};
    uint32_t n_rows = 0, batch_row = 0;
    if (stage->config.slice == 0) {
        for (uint32_t i = 0; i < plan->n_closes; i++)
            close_slot(&head->slots[plan->closes[i]]);
        for (uint32_t i = 0; i < plan->n_opens; i++)
            TRY(open_slot(head, &plan->opens[i]));
    }
    for (uint32_t e = 0; e < plan->n_entries; e++) {
        const step_entry_t *entry = &plan->entries[e];
        batch_row += entry->n_tokens;
        for (uint32_t i = entry->n_logits; i > 0; i--) {
            head->rows[n_rows] = batch_row - i;
            head->row_entry[n_rows++] = e;
        }
    }
    for (uint32_t first = 0; first < n_rows; first += STAGE_LOGIT_ROWS) {
        uint32_t n = n_rows - first < STAGE_LOGIT_ROWS ? n_rows - first : STAGE_LOGIT_ROWS;
        const float *logits;
        TRY(stage_head(stage, head->rows + first, n, head->whole, &logits));
        stage_beat(stage);
        uint64_t begin_ns = stage->trace ? clock_ns() : 0;
        if (!logits)
            continue;
        TRY(use_group(head, plan, first, n, logits, deliver, context, &result));
        trace_span(stage->trace, "sample", begin_ns, n);
    }
    if (FAILPOINT("rank.sampled"))
        return fail(STATUS_INTERNAL, "fail point rank.sampled");
    *result_out = result;
    return STATUS_OK;
}
