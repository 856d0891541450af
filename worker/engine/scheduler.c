/* The scheduler's life, its table of sequences, their ends, and the steps that come back. */
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "common/base/memory.h"
#include "worker/engine/scheduler_internal.h"

static uint32_t or_default(uint32_t value, uint32_t by_default)
{
    return value ? value : by_default;
}

static void take_step_memory(scheduler_t *s)
{
    const scheduler_config_t *c = &s->config;
    s->running_max = c->batch_max * c->stages;
    if (s->running_max > STEP_SLOTS_MAX)
        s->running_max = STEP_SLOTS_MAX;
    s->running = MEM_NEW_ARRAY(sequence_t *, s->running_max);
    s->prompts = MEM_NEW_ARRAY(sequence_t *, s->running_max);
    s->plan.closes = MEM_NEW_ARRAY(uint32_t, STEP_SLOTS_MAX);
    s->plan.opens = MEM_NEW_ARRAY(step_open_t, STEP_SLOTS_MAX);
    s->plan.entries = MEM_NEW_ARRAY(step_entry_t, c->batch_max);
    for (uint32_t i = 0; i < c->stages + 1; i++) {
        s->flights[i].entries = MEM_NEW_ARRAY(struct flown, c->batch_max);
    }
    /* The lowest slot lies on top. */
    for (uint32_t i = 0; i < STEP_SLOTS_MAX; i++)
        s->slots_free[s->n_slots_free++] = STEP_SLOTS_MAX - 1 - i;
    uint32_t places = 64;
    while (places < scheduler_known_max(s))
        places *= 2;
    s->table = MEM_NEW_ARRAY(sequence_t *, places);
    s->table_mask = places - 1;
}

status_t scheduler_new(const scheduler_config_t *config, scheduler_t **own_out)
{
    scheduler_config_t c = *config;
    c.batch_max = or_default(c.batch_max, 64);
    c.step_tokens_max = or_default(c.step_tokens_max, 512);
    c.sequences_max = or_default(c.sequences_max, 1024);
    c.pools = or_default(c.pools, 1);
    c.keep_ended_ms = c.keep_ended_ms ? c.keep_ended_ms : 30000;
    c.keep_detached_ms = c.keep_detached_ms ? c.keep_detached_ms : 30000;
    if (c.stages < 1 || c.stages > STAGES_MAX)
        return fail(STATUS_INVALID, "a replica has 1 to %u stages, not %u", STAGES_MAX, c.stages);
    if (c.batch_max > STEP_ENTRIES_MAX || c.step_tokens_max > STEP_TOKENS_MAX ||
        c.batch_max > c.step_tokens_max)
        return fail(STATUS_INVALID,
                    "batch_max %u and step_tokens_max %u: at most %u and %u, and a step holds at "
                    "least one token of each sequence",
                    c.batch_max, c.step_tokens_max, STEP_ENTRIES_MAX, STEP_TOKENS_MAX);
    if (c.speculate_max > DRAFT_MAX)
        return fail(STATUS_INVALID, "%u guesses a sequence and step; at most %u", c.speculate_max,
                    DRAFT_MAX);
    if (c.pools > PLAN_TP_MAX)
        return fail(STATUS_INVALID, "%u pools of KV blocks; at most %d", c.pools, PLAN_TP_MAX);
    if (c.sequences_max > (1u << 20) || c.n_blocks == 0 || c.context_max == 0 || c.vocab == 0)
        return fail(STATUS_INVALID,
                    "a scheduler needs blocks, a context, a vocabulary and at most %u sequences",
                    1u << 20);
    scheduler_t *s = MEM_NEW(scheduler_t);
    s->config = c;
    s->config.text_identity = NULL; /* borrowed for this call only */
    scheduler_open_pools(s, c.text_identity ? c.text_identity : "");
    s->load.kv_tokens_total = (uint64_t)c.n_blocks * KV_BLOCK_TOKENS * c.pools;
    take_step_memory(s);
    *own_out = s;
    return STATUS_OK;
}

static void sequence_free(sequence_t *q)
{
    free(q->ids);
    free(q->drawn);
    free((void *)(uintptr_t)q->sampling.bias);
    free(q->stop_ids);
    free(q->blocks);
    lookup_release(&q->draft);
    free(q);
}

void scheduler_free(scheduler_t *s)
{
    if (!s)
        return;
    for (sequence_t *q = s->all, *next; q; q = next) {
        next = q->all_next;
        sequence_free(q);
    }
    for (uint32_t i = 1; i <= SCHEDULER_STREAMS_MAX; i++)
        for (notice_t *notice = s->streams[i].notices, *next; notice; notice = next) {
            next = notice->next;
            free(notice);
        }
    for (uint32_t i = 0; i < s->n_tenants; i++) {
        free(s->tenants[i].name);
        heap_release(&s->tenants[i].waiting);
    }
    heap_release(&s->solo);
    heap_release(&s->due);
    for (uint32_t i = 0; i < sizeof s->flights / sizeof *s->flights; i++)
        free(s->flights[i].entries);
    free(s->plan.closes);
    free(s->plan.opens);
    free(s->plan.entries);
    free(s->table);
    free(s->running);
    free(s->prompts);
    scheduler_close_pools(s);
    free(s);
}

/* ---- the table ---- */

static uint32_t place_of(const scheduler_t *s, const char *session, uint32_t choice)
{
    return (uint32_t)XXH3_64bits_withSeed(session, strlen(session), choice) & s->table_mask;
}

sequence_t *scheduler_find(const scheduler_t *s, const char *session, uint32_t choice)
{
    sequence_t *q = s->table[place_of(s, session, choice)];
    while (q && (q->choice != choice || strcmp(q->session, session) != 0))
        q = q->hash_next;
    return q;
}

/* Whoever comes back after a pause starts level with the least served of those that did not: what
 * was not asked for is not owed, or the pause would be made up for at everybody else's cost. */
static void come_back(scheduler_t *s, tenant_t *tenant)
{
    uint64_t least = UINT64_MAX;
    if (tenant->n_live > 0)
        return;
    for (uint32_t i = 0; i < s->n_tenants; i++)
        if (s->tenants[i].n_live > 0 && s->tenants[i].served < least)
            least = s->tenants[i].served;
    if (least != UINT64_MAX && least > tenant->served)
        tenant->served = least;
}

void scheduler_add(scheduler_t *s, sequence_t *q)
{
    come_back(s, &s->tenants[q->tenant]);
    sequence_t **place = &s->table[place_of(s, q->session, q->choice)];
    q->hash_next = *place;
    *place = q;
    q->all_before = s->all_last;
    if (s->all_last)
        s->all_last->all_next = q;
    else
        s->all = q;
    s->all_last = q;
    s->n_known++;
    scheduler_count_waiting(s, q, true);
    s->n_solo += q->solo;
    s->tenants[q->tenant].n_live++;
    s->tokens_committed += scheduler_tokens_held(s, sequence_committed(q));
    scheduler_reserve(s, q);
    scheduler_line_up(s, q);
    scheduler_retime(s, q);
    while (s->n_known > scheduler_known_max(s) && s->settled)
        scheduler_forget(s, s->settled);
}

void scheduler_forget(scheduler_t *s, sequence_t *q)
{
    sequence_t **at = &s->table[place_of(s, q->session, q->choice)];
    while (*at != q)
        at = &(*at)->hash_next;
    *at = q->hash_next;
    if (q->all_before)
        q->all_before->all_next = q->all_next;
    else
        s->all = q->all_next;
    if (q->all_next)
        q->all_next->all_before = q->all_before;
    else
        s->all_last = q->all_before;
    s->n_known--;
    scheduler_leave_time(s, q);
    sequence_free(q);
}

/* ---- ends ---- */

void scheduler_leave_running(scheduler_t *s, sequence_t *q)
{
    uint32_t at = 0;
    for (uint32_t end = s->n_running; end - at > 1;) {
        uint32_t middle = at + (end - at) / 2;
        if (s->running[middle]->serial > q->serial)
            end = middle;
        else
            at = middle;
    }
    CHECK(s->running[at] == q);
    s->n_running--;
    memmove(&s->running[at], &s->running[at + 1], (s->n_running - at) * sizeof(sequence_t *));
    scheduler_let_go(sequence_kv(s, q), q);
    s->pools[q->pool].n_running--;
}

void scheduler_preempt(scheduler_t *s, sequence_t *q)
{
    scheduler_leave_running(s, q);
    q->state = SEQUENCE_WAITING;
    scheduler_count_waiting(s, q, true);
    s->load.preemptions++;
    if (q->n_in_flight == 0)
        scheduler_line_up(s, q);
}

void scheduler_end(scheduler_t *s, sequence_t *q, end_reason_t end, finish_t finish,
                   const char *code, const char *error)
{
    if (q->state == SEQUENCE_ENDED)
        return;
    /* Blocks and slot are free at once, also when a step with them is in flight: whatever uses them
     * next stands in a later plan, and ranks run plans in order. */
    if (q->state == SEQUENCE_RUNNING)
        scheduler_leave_running(s, q);
    else
        scheduler_count_waiting(s, q, false);
    scheduler_set_refused(s, q, false);
    scheduler_leave_line(s, q);
    if (q->slot != SLOT_NONE) {
        s->slots[q->slot] = NULL;
        s->closing[s->n_closing++] = q->slot;
        s->slots_free[s->n_slots_free++] = q->slot;
        q->slot = SLOT_NONE;
    }
    s->n_solo -= q->solo;
    s->tenants[q->tenant].n_live--;
    lookup_release(&q->draft); /* what ended is kept for a while, and guesses no more */
    q->state = SEQUENCE_ENDED;
    q->end = end;
    q->finish = finish;
    q->error_code = code;
    q->error = error;
    q->ended_at_ms = s->now_ms;
    s->tokens_committed -= scheduler_tokens_held(s, sequence_committed(q));
    if (q->stream != 0) {
        q->end_owed = true;
        scheduler_mark_dirty(s, q);
    }
    scheduler_retime(s, q);
}

/* ---- a step comes back ---- */

static bool is_stop_id(const sequence_t *q, uint32_t id)
{
    for (uint32_t i = 0; i < q->n_stop_ids; i++)
        if (q->stop_ids[i] == id)
            return true;
    return false;
}

static void append_drawn(scheduler_t *s, sequence_t *q, const step_drawn_t *drawn)
{
    if (q->state == SEQUENCE_ENDED)
        return;
    if (drawn->failed) {
        /* Which of its blocks is to blame nobody knows: none of them is offered any more. */
        if (q->n_ids >= KV_BLOCK_TOKENS)
            kv_unpublish(sequence_kv(s, q), q->namespace_id, q->ids);
        scheduler_end(s, q, END_REFUSED, FINISH_NONE, "numeric",
                      "the model gave values that are not finite for this text");
        return;
    }
    if (q->drawn)
        q->drawn[sequence_produced(q) - q->n_given] = drawn->sampled;
    q->ids[q->n_ids++] = drawn->sampled.id;
    s->load.tokens_produced++;
    s->tenants[q->tenant].served++;
    if (q->stream != 0)
        scheduler_mark_dirty(s, q);
    if (is_stop_id(q, drawn->sampled.id))
        scheduler_end(s, q, END_FINISHED, FINISH_STOP, "", NULL);
    else if (sequence_produced(q) >= q->max_tokens)
        scheduler_end(s, q, END_FINISHED, FINISH_LENGTH, "", NULL);
}

/* A step with q came back, or never will. */
static void leave_flight(scheduler_t *s, sequence_t *q)
{
    q->n_in_flight--;
    if (q->state == SEQUENCE_WAITING && q->n_in_flight == 0)
        scheduler_line_up(s, q);
    else if (q->state == SEQUENCE_ENDED)
        scheduler_retime(s, q);
}

/* Whether the result has tokens for every entry that draws, and for no other. */
static bool answers(const flight_t *flight, const step_result_t *result)
{
    uint32_t k = 0;
    for (uint32_t i = 0; i < flight->n; i++) {
        const struct flown *entry = &flight->entries[i];
        uint32_t n = 0;
        while (n < entry->n_samples_max && k < result->n && result->drawn[k].slot == entry->slot) {
            n++;
            if (result->drawn[k++].failed)
                break;
        }
        if (n == 0 && entry->n_samples_max > 0)
            return false;
    }
    return flight->step == result->step && k == result->n;
}

/* n >= 1 tokens of one entry. */
static void take_drawn(scheduler_t *s, sequence_t *q, const step_drawn_t *drawn, uint32_t n)
{
    uint32_t n_good = n - drawn[n - 1].failed;
    /* Guesses that were right have their KV; a sequence preempted meanwhile has none at all. */
    if (q->state == SEQUENCE_RUNNING && n_good > 1)
        q->n_computed += n_good - 1;
    s->load.accepted_tokens += n - 1;
    for (uint32_t i = 0; i < n; i++)
        append_drawn(s, q, &drawn[i]);
}

status_t scheduler_step_done(scheduler_t *s, const step_result_t *result, uint64_t now_ms)
{
    s->now_ms = now_ms;
    if (s->n_flights == 0)
        return fail(STATUS_INTERNAL, "step %llu came back, but none is in flight",
                    (unsigned long long)result->step);
    flight_t *flight = &s->flights[scheduler_flight(s, 0)];
    if (!answers(flight, result))
        return fail(STATUS_INTERNAL,
                    "step %llu came back with %u tokens, which do not answer step %llu of %u "
                    "sequences",
                    (unsigned long long)result->step, result->n, (unsigned long long)flight->step,
                    flight->n);
    for (uint32_t i = 0, k = 0; i < flight->n; i++) {
        const struct flown *entry = &flight->entries[i];
        uint32_t first = k;
        while (k < result->n && result->drawn[k].slot == entry->slot)
            k++;
        leave_flight(s, entry->sequence);
        scheduler_hold_drafts(s, entry, &result->drawn[first], k - first);
        if (k > first)
            take_drawn(s, entry->sequence, &result->drawn[first], k - first);
    }
    scheduler_step_took(s, flight->step, result->took_ns);
    if (flight->took_ns > 0) {
        step_cost_learn(&s->cost, &flight->work, flight->took_ns);
        draft_cost_step_took(&s->draft_cost, flight->took_ns);
    }
    flight->n = 0;
    s->flight_first = scheduler_flight(s, 1);
    s->n_flights--;
    return STATUS_OK;
}

void scheduler_step_took(scheduler_t *s, uint64_t step, uint64_t took_ns)
{
    for (uint32_t i = 0; i < s->n_flights; i++) {
        flight_t *flight = &s->flights[scheduler_flight(s, i)];
        if (flight->step == step && took_ns > flight->took_ns)
            flight->took_ns = took_ns;
    }
}

uint32_t scheduler_in_flight(const scheduler_t *s)
{
    return s->n_flights;
}

/* Whether it stands in a flight before the f-th: pieces of one prompt are no reason to name it twice. */
static bool flies_before(const scheduler_t *s, const sequence_t *q, uint32_t f)
{
    for (uint32_t i = 0; i < f && q->n_in_flight > 1; i++) {
        const flight_t *flight = &s->flights[scheduler_flight(s, i)];
        for (uint32_t k = 0; k < flight->n; k++)
            if (flight->entries[k].sequence == q)
                return true;
    }
    return false;
}

uint32_t scheduler_flying(const scheduler_t *s, char (*sessions_out)[SESSION_BYTES], uint32_t max)
{
    uint32_t n = 0;
    for (uint32_t f = 0; f < s->n_flights; f++) {
        const flight_t *flight = &s->flights[scheduler_flight(s, f)];
        for (uint32_t i = 0; i < flight->n && n < max; i++)
            if (!flies_before(s, flight->entries[i].sequence, f))
                memcpy(sessions_out[n++], flight->entries[i].sequence->session, SESSION_BYTES);
    }
    return n;
}

uint32_t scheduler_lose(scheduler_t *s, const char *why, uint64_t now_ms,
                        char (*suspects_out)[SESSION_BYTES], uint32_t max)
{
    uint32_t n = scheduler_flying(s, suspects_out, max);
    s->now_ms = now_ms;
    for (uint32_t f = 0; f < s->n_flights; f++) {
        flight_t *flight = &s->flights[scheduler_flight(s, f)];
        for (uint32_t i = 0; i < flight->n; i++)
            leave_flight(s, flight->entries[i].sequence);
        flight->n = 0;
    }
    s->n_flights = 0;
    s->lost = true;
    memcpy(s->lost_why, why, strnlen(why, sizeof s->lost_why - 1));
    for (sequence_t *q = s->all; q; q = q->all_next)
        scheduler_end(s, q, END_REPLICA_LOST, FINISH_NONE, "replica_lost", s->lost_why);
    return n;
}

/* ---- numbers ---- */

void scheduler_load(const scheduler_t *s, scheduler_load_t *out)
{
    *out = s->load;
    out->running = s->n_running;
    out->waiting = s->n_waiting;
    out->kv_tokens_free = scheduler_blocks_free(s) * KV_BLOCK_TOKENS;
}

const char *scheduler_session_in_slot(const scheduler_t *s, uint32_t slot, uint32_t *choice_out)
{
    if (slot >= STEP_SLOTS_MAX || !s->slots[slot])
        return NULL;
    *choice_out = s->slots[slot]->choice;
    return s->slots[slot]->session;
}
