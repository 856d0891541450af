/* See scheduler_rig.h. */
#include "scheduler_rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

static uint64_t chain(uint64_t before, uint32_t id)
{
    return XXH3_64bits_withSeed(&id, sizeof id, before);
}

uint32_t rig_repeats, rig_drafts, rig_draft_context;

/* Even ids above the end of text, so that no text ends by accident. `last` is the id before. */
static uint32_t next_id(uint64_t hash, uint32_t last)
{
    if (rig_repeats)
        return 8 + (last / 2 + 1 + (hash % 11 == 0)) % rig_repeats * 2;
    return 8 + (uint32_t)(hash % (RIG_VOCAB - 16)) / 2 * 2;
}

rig_t *rig_new(void (*change)(scheduler_config_t *config))
{
    rig_t *rig = calloc(1, sizeof *rig);
    rig->config = (scheduler_config_t){.n_blocks = 64,
                                       .vocab = RIG_VOCAB,
                                       .context_max = 512,
                                       .stages = 1,
                                       .batch_max = 8,
                                       .step_tokens_max = 64,
                                       .keep_prefixes = true,
                                       .text_identity = "rig"};
    if (change)
        change(&rig->config);
    rig->now_ms = 1000;
    assert_int_equal(scheduler_new(&rig->config, &rig->s), STATUS_OK);
    uint32_t pools = rig->config.pools ? rig->config.pools : 1;
    rig->kv = calloc((size_t)pools * rig->config.n_blocks * KV_BLOCK_TOKENS, sizeof *rig->kv);
    rig->slots = calloc(STEP_SLOTS_MAX, sizeof *rig->slots);
    rig->stream = scheduler_stream_open(rig->s, rig->now_ms);
    assert_int_not_equal(rig->stream, 0);
    return rig;
}

void rig_free(rig_t *rig)
{
    scheduler_free(rig->s);
    free(rig->kv);
    free(rig->slots);
    step_blocks_release(&rig->blocks);
    arena_release(&rig->arena);
    buffer_release(&rig->bytes);
    free(rig);
}

rig_sequence_t *rig_find(rig_t *rig, const char *session)
{
    for (uint32_t i = 0; i < rig->n_sequences; i++)
        if (strcmp(rig->sequences[i].session, session) == 0)
            return &rig->sequences[i];
    return NULL;
}

rig_sequence_t *rig_admit(rig_t *rig, const char *session, uint32_t n_prompt, uint32_t salt,
                          uint32_t max_tokens, void (*change)(admission_t *admission))
{
    static const uint32_t eos = RIG_EOS;
    rig_sequence_t *q = rig_find(rig, session);
    if (!q) {
        q = &rig->sequences[rig->n_sequences++];
        strcpy(q->session, session);
        q->n_prompt = n_prompt;
        q->max_tokens = max_tokens;
        for (uint32_t i = 0; i < n_prompt; i++)
            q->prompt[i] = 1000 + salt * 1000 + i;
    }
    admission_t admission = {.owner = 1,
                             .prompt = q->prompt,
                             .n_prompt = n_prompt,
                             .max_tokens = max_tokens,
                             .sampling = sampling_default,
                             .stop_ids = &eos,
                             .n_stop_ids = 1,
                             .logits_from = LOGITS_NONE};
    strcpy(admission.session, session);
    if (change)
        change(&admission);
    scheduler_admit(rig->s, rig->stream, &admission, rig->now_ms);
    return q;
}

static void carry_out_opens(rig_t *rig, const step_plan_t *plan)
{
    for (uint32_t i = 0; i < plan->n_closes; i++) {
        assert_true(rig->slots[plan->closes[i]].open);
        rig->slots[plan->closes[i]].open = false;
    }
    for (uint32_t i = 0; i < plan->n_opens; i++) {
        const step_open_t *open = &plan->opens[i];
        assert_false(rig->slots[open->slot].open);
        rig->slots[open->slot].open = true;
        rig->slots[open->slot].n_ids = open->n_prompt + open->n_produced;
        memcpy(rig->slots[open->slot].ids, open->ids,
               rig->slots[open->slot].n_ids * sizeof *open->ids);
    }
}

/* Id i as the rows of the entry have it: behind the known ones stand guesses. */
static uint32_t id_of(const rig_t *rig, const step_entry_t *entry, uint32_t i)
{
    if (i < entry->position)
        return rig->slots[entry->slot].ids[i];
    uint32_t id = entry->ids[i - entry->position];
    if (i < entry->position + entry->n_tokens - entry->n_draft)
        assert_int_equal(id, rig->slots[entry->slot].ids[i]);
    return id;
}

/* Where the KV of the entry's token i lies. */
static uint64_t *kv_of(const rig_t *rig, const step_entry_t *entry, uint32_t i)
{
    assert_true(entry->blocks[i / 16] < rig->config.n_blocks);
    size_t block = (size_t)entry->pool * rig->config.n_blocks + entry->blocks[i / 16];
    return &rig->kv[block * 16 + i % 16];
}

/* Writes the KV of every row of the step, as every layer does before its attention. */
static void write_kv(rig_t *rig, const step_entry_t *entry)
{
    uint64_t hash = 0;
    for (uint32_t i = 0; i < entry->position + entry->n_tokens; i++) {
        hash = chain(hash, id_of(rig, entry, i));
        if (i >= entry->position)
            *kv_of(rig, entry, i) = hash;
    }
}

/* Everything that the rows of the entry read is this sequence's own. Draws from its last rows until
 * one has not the next row's id. */
static uint32_t check_and_draw(rig_t *rig, const step_entry_t *entry, step_drawn_t *drawn_out)
{
    uint64_t hash = 0;
    uint32_t first = entry->position + entry->n_tokens - 1 - entry->n_draft, n_drawn = 0;
    uint32_t *n_ids = &rig->slots[entry->slot].n_ids;
    uint32_t window = rig->config.window, seen = 0;
    if (window > 0 && entry->position + 1 > window)
        seen = (entry->position + 1 - window) / 64 * 64;
    bool draws = entry->sample;
    if (draws)
        assert_int_equal(*n_ids, first + 1);
    for (uint32_t i = 0; i < entry->position + entry->n_tokens; i++) {
        uint32_t id = id_of(rig, entry, i);
        hash = chain(hash, id);
        if (i >= seen) /* attention reads whole tiles of 64 */
            assert_true(*kv_of(rig, entry, i) == hash);
        if (i < first || !draws)
            continue;
        uint32_t next = next_id(hash, id);
        drawn_out[n_drawn++] = (step_drawn_t){.slot = entry->slot, .sampled = {.id = next}};
        rig->slots[entry->slot].ids[(*n_ids)++] = next;
        draws = i + 1 < entry->position + entry->n_tokens &&
                entry->ids[i + 1 - entry->position] == next;
    }
    return n_drawn;
}

static void note_entry(rig_t *rig, const step_plan_t *plan, uint32_t i)
{
    const step_entry_t *entry = &plan->entries[i];
    uint32_t choice;
    const char *session = scheduler_session_in_slot(rig->s, entry->slot, &choice);
    assert_non_null(session);
    strcpy(rig->entries[i].session, session);
    assert_true(entry->pool < (rig->config.pools ? rig->config.pools : 1));
    assert_true(i == 0 || plan->entries[i - 1].pool <= entry->pool);
    rig->entries[i].pool = entry->pool;
    rig->entries[i].position = entry->position;
    rig->entries[i].n_tokens = entry->n_tokens;
    rig->entries[i].n_draft = entry->n_draft;
    rig->entries[i].sample = entry->sample;
    rig_sequence_t *q = rig_find(rig, session);
    if (q && q->first_step == 0)
        q->first_step = plan->step;
}

/* What a rank reads has the same blocks, though each is named once. */
static void pass_through_bytes(rig_t *rig, step_plan_t *plan)
{
    const step_limits_t limits = {.vocab = UINT32_MAX, .context_max = rig->config.context_max,
                                  .n_blocks = rig->config.n_blocks, .pools = rig->config.pools};
    step_plan_t read;
    step_plan_write(plan, &rig->bytes);
    arena_reset(&rig->arena);
    status_t status = step_plan_read(rig->bytes.data, rig->bytes.size, &limits, &rig->blocks,
                                     &rig->arena, &read);
    if (status != STATUS_OK)
        fail_msg("%s", status_text());
    assert_int_equal(read.n_entries, plan->n_entries);
    for (uint32_t i = 0; i < read.n_entries; i++)
        assert_memory_equal(read.entries[i].blocks, plan->entries[i].blocks,
                            read.entries[i].n_blocks * sizeof(uint32_t));
    *plan = read;
}

/* What a draft model would say. */
static void answer(const draft_ask_t *ask, draft_answer_t *out)
{
    uint64_t hash = 0;
    uint32_t last = ask->ids[ask->n_ids - 1];
    *out = (draft_answer_t){.serial = ask->serial, .n_ids = ask->n_ids, .n_known = ask->n_ids};
    for (uint32_t i = 0; i < ask->n_ids; i++)
        hash = chain(hash, ask->ids[i]);
    for (; out->n < ask->n_wanted; out->n++) {
        last = next_id(hash, last);
        hash = chain(hash, last);
        out->ids[out->n] = hash / 16 % 8 < rig_drafts - 1 ? last : last + 1;
    }
}

static void answer_all(rig_t *rig)
{
    draft_ask_t asks[DRAFT_SEQUENCES_MAX];
    draft_answers_t answers = {0};
    uint32_t context = rig_draft_context ? rig_draft_context : UINT32_MAX;
    uint32_t n = scheduler_ask_drafts(rig->s, context, asks);
    for (uint32_t i = 0; i < n; i++)
        if (asks[i].n_ids + asks[i].n_wanted <= context)
            answer(&asks[i], &answers.answers[answers.n++]);
    scheduler_drafts_done(rig->s, &answers);
}

bool rig_plan(rig_t *rig)
{
    step_plan_t plan;
    rig->n_entries = 0;
    if (rig_drafts)
        answer_all(rig);
    if (!scheduler_plan(rig->s, rig->now_ms, &plan))
        return false;
    pass_through_bytes(rig, &plan);
    assert_true(plan.n_entries > 0 && plan.n_entries <= rig->config.batch_max);
    assert_true(plan.n_tokens <= rig->config.step_tokens_max);
    assert_true(rig->n_flights < rig->config.stages + (rig->config.stages > 1));
    carry_out_opens(rig, &plan);
    step_drawn_t *drawn = rig->drawn[rig->n_flights];
    step_result_t result = {.step = plan.step, .drawn = drawn};
    for (uint32_t i = 0; i < plan.n_entries; i++) {
        assert_true(rig->slots[plan.entries[i].slot].open);
        note_entry(rig, &plan, i);
        write_kv(rig, &plan.entries[i]);
    }
    for (uint32_t i = 0; i < plan.n_entries; i++)
        result.n += check_and_draw(rig, &plan.entries[i], drawn + result.n);
    rig->n_entries = plan.n_entries;
    rig->n_rows += plan.n_tokens;
    rig->results[rig->n_flights++] = result;
    return true;
}

void rig_return(rig_t *rig)
{
    assert_true(rig->n_flights > 0);
    assert_int_equal(scheduler_step_done(rig->s, &rig->results[0], rig->now_ms), STATUS_OK);
    rig->n_flights--;
    for (uint32_t i = 0; i < rig->n_flights; i++) {
        memcpy(rig->drawn[i], rig->drawn[i + 1], sizeof rig->drawn[i]);
        rig->results[i] = rig->results[i + 1];
        rig->results[i].drawn = rig->drawn[i];
    }
}

void rig_take(rig_t *rig, uint32_t stream)
{
    sequence_output_t out;
    while (scheduler_output(rig->s, stream, &out)) {
        rig_sequence_t *q = rig_find(rig, out.session);
        assert_non_null(q);
        if (out.n_ids > 0) {
            assert_true(out.first_position <= q->n_ids);
            memcpy(q->ids + out.first_position, out.ids, out.n_ids * sizeof *out.ids);
            q->n_ids = out.first_position + out.n_ids;
        }
        q->n_cached = out.n_cached;
        if (out.end != END_NONE) {
            q->n_ends++;
            q->end = out.end;
            q->finish = out.finish;
            q->code = out.error_code;
        }
    }
    assert_false(scheduler_has_output(rig->s, stream));
}

bool rig_step(rig_t *rig)
{
    bool planned = rig_plan(rig);
    if (rig->n_flights > 0)
        rig_return(rig);
    else if (!planned)
        return false;
    rig->now_ms++;
    rig_take(rig, rig->stream);
    return true;
}

void rig_run(rig_t *rig)
{
    for (int i = 0; rig_step(rig); i++)
        assert_true(i < 10000);
    rig_take(rig, rig->stream);
}

bool rig_planned(const rig_t *rig, const char *session)
{
    for (uint32_t i = 0; i < rig->n_entries; i++)
        if (strcmp(rig->entries[i].session, session) == 0)
            return true;
    return false;
}

void rig_check_text(const rig_sequence_t *q)
{
    uint64_t hash = 0;
    assert_int_equal(q->n_ends, 1);
    assert_int_equal(q->end, END_FINISHED);
    assert_int_equal(q->n_ids, q->max_tokens);
    for (uint32_t i = 0; i < q->n_prompt; i++)
        hash = chain(hash, q->prompt[i]);
    for (uint32_t i = 0; i < q->n_ids; i++) {
        uint32_t last = i ? q->ids[i - 1] : q->prompt[q->n_prompt - 1];
        assert_int_equal(q->ids[i], next_id(hash, last));
        hash = chain(hash, q->ids[i]);
    }
}

void rig_solo(admission_t *admission)
{
    admission->solo = true;
}

/* Of the random request that comes next. */
static bool random_solo;
static int32_t random_priority;

static void random_request(admission_t *admission)
{
    admission->solo = random_solo;
    admission->priority = random_priority;
}

uint32_t rig_run_random(rig_t *rig, uint32_t random, uint32_t turns, uint32_t n_max,
                        uint32_t tokens_max)
{
    uint32_t n = 0, finished = 0;
    char name[16];
    for (uint32_t turn = 0; turn < turns; turn++) {
        random = random * 1664525u + 1013904223u;
        uint32_t what = random >> 24 & 7;
        if (what == 0 && n < n_max) {
            snprintf(name, sizeof name, "s%u", n++);
            random_solo = (random >> 20 & 8) == 0;
            random_priority = (int32_t)(random >> 12 & 3) - 1;
            rig_admit(rig, name, 1 + (random >> 8) % 100, random >> 16 & 3,
                      1 + (random >> 10) % tokens_max, random_request);
        } else if (what == 1 && n > 0 && (random >> 8) % 4 == 0) {
            snprintf(name, sizeof name, "s%u", (random >> 8) % n);
            scheduler_cancel(rig->s, name, 0, 1, rig->now_ms);
        } else if (what < 5) {
            rig_plan(rig);
        } else if (rig->n_flights > 0) {
            rig_return(rig);
        }
        rig_take(rig, rig->stream);
    }
    rig_run(rig);
    for (uint32_t i = 0; i < rig->n_sequences; i++) {
        assert_int_equal(rig->sequences[i].n_ends, 1);
        if (rig->sequences[i].end != END_FINISHED)
            continue;
        finished++;
        rig_check_text(&rig->sequences[i]);
    }
    scheduler_load_t load;
    scheduler_load(rig->s, &load);
    assert_int_equal(load.kv_tokens_free, load.kv_tokens_total);
    return finished;
}
