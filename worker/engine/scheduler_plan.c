/* What runs next: decoding sequences first, then prompts (scheduler_prompts.c), within the budgets of
 * one step. */
#include <string.h>

#include "worker/engine/scheduler_internal.h"

#define TICKS_MAX 32u /* sequences whose time is over that one plan deals with */

/* ---- blocks ---- */

/* The youngest of a pool that may be preempted; never the oldest there, nor one whose blocks this
 * plan uses. One that is in flight may be: plans run in order, so its blocks are read before anybody
 * else writes them. */
static sequence_t *youngest(const planning_t *p, uint32_t pool)
{
    const scheduler_t *s = p->s;
    sequence_t *found = NULL;
    for (uint32_t i = s->n_running; i-- > 0;) {
        sequence_t *q = s->running[i];
        if (q->pool != pool)
            continue;
        if (found)
            return found; /* q is older */
        if (q->planned != s->round)
            found = q;
    }
    return NULL;
}

/* Blocks for q's first n_tokens; preempts others for them, or q itself when it is the youngest. */
static bool hold_blocks(planning_t *p, sequence_t *q, uint32_t n_tokens)
{
    scheduler_t *s = p->s;
    uint32_t wanted = kv_blocks_for(n_tokens);
    scheduler_give_back(s, sequence_kv(s, q), q);
    while (wanted > q->n_blocks) {
        if (kv_take(sequence_kv(s, q), wanted - q->n_blocks, q->blocks + q->n_blocks)) {
            q->n_blocks = wanted;
            return true;
        }
        sequence_t *victim = youngest(p, q->pool);
        if (!victim)
            return false;
        scheduler_preempt(s, victim);
        if (victim == q)
            return false;
    }
    return true;
}

/* ---- entries ---- */

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static void publish(scheduler_t *s, sequence_t *q)
{
    while ((q->n_published + 1) * KV_BLOCK_TOKENS <= q->n_computed) {
        uint32_t i = q->n_published++;
        q->link = kv_publish(sequence_kv(s, q), q->link, q->blocks[i],
                             q->ids + i * KV_BLOCK_TOKENS);
    }
}

static void ask_for_logits(sequence_t *q, step_entry_t *entry)
{
    uint32_t end = entry->position + entry->n_tokens;
    entry->n_logits = entry->sample + entry->n_draft;
    if (!sequence_owes_logits(q) || q->logits_next >= end)
        return;
    uint32_t first = q->logits_next > entry->position ? q->logits_next : entry->position;
    entry->n_logits = end - first;
    entry->want_logits = true;
    q->logits_next = end;
}

/* Guesses behind q's last id, as many as pay and have room; what they need is what nobody else
 * does: rows that those who decode leave over, and blocks beside one for each who runs. */
static uint32_t guess(planning_t *p, sequence_t *q)
{
    scheduler_t *s = p->s;
    uint32_t produced = q->n_ids - q->n_prompt, n_rows = least(s->n_running, p->entries_max);
    uint32_t rows = p->tokens_left > s->n_running ? p->tokens_left - s->n_running : 0;
    uint32_t most = least(least(s->config.speculate_max, rows),
                          least(p->drafts_left, q->max_tokens - produced - 1));
    if (most == 0 || q->n_ids - q->n_computed != 1 || sequence_owes_logits(q))
        return 0;
    uint32_t n = 0, fixed = scheduler_fixed_rows(s);
    if (q->draft.places && lookup_may_pay(n_rows, fixed) &&
        lookup_learn(&q->draft, q->ids, q->n_ids))
        n = lookup_length(&q->draft, n_rows, fixed, most);
    p->by_model = n == 0;
    if (p->by_model)
        n = least(scheduler_drafted(q), most);
    if (n == 0)
        return 0;
    uint32_t wanted = kv_blocks_for(q->n_ids + n);
    if (wanted > q->n_blocks) {
        uint32_t more = wanted - q->n_blocks;
        kv_pool_t *pool = &s->pools[q->pool];
        if (kv_blocks_free(pool->kv) >= more + pool->n_running &&
            kv_take(pool->kv, more, q->blocks + q->n_blocks))
            q->n_blocks = wanted;
        else
            n = q->n_blocks * KV_BLOCK_TOKENS - q->n_ids;
    }
    if (p->by_model)
        memcpy(q->ids + q->n_ids, q->drafted, n * sizeof *q->ids);
    else
        lookup_write(&q->draft, q->ids, q->n_ids, n);
    p->drafts_left -= n;
    s->load.drafted_tokens += n;
    return n;
}

bool scheduler_add_entry(planning_t *p, sequence_t *q)
{
    scheduler_t *s = p->s;
    uint32_t n = least(q->n_ids - q->n_computed, p->tokens_left);
    if (p->flight->n >= p->entries_max)
        return false;
    bool is_prompt = n > 1;
    if (is_prompt)
        n = scheduler_prompt_share(p, q, n);
    /* Rows of logits are large; with only one such step in flight, no ring between stages can be
     * full in both directions at once. */
    if (sequence_owes_logits(q) && q->logits_next < q->n_computed + n && s->n_flights > 0)
        return false;
    if (n == 0)
        return false;
    if (!hold_blocks(p, q, q->n_computed + n))
        return false;
    uint32_t n_draft = guess(p, q);
    step_entry_t *entry = &s->plan.entries[p->flight->n];
    *entry = (step_entry_t){
        .slot = q->slot,
        .pool = q->pool,
        .position = q->n_computed,
        .n_tokens = n + n_draft,
        .n_blocks = kv_blocks_for(q->n_computed + n + n_draft),
        .sample = q->n_computed + n == q->n_ids,
        .n_draft = n_draft,
        .ids = q->ids + q->n_computed,
        .blocks = q->blocks,
    };
    entry->n_told = least(q->n_told, entry->n_blocks);
    q->n_told += entry->n_blocks - entry->n_told;
    ask_for_logits(q, entry);
    p->alone |= entry->want_logits || q->solo;
    p->flight->entries[p->flight->n++] =
        (struct flown){q, q->slot, entry->sample + n_draft, p->by_model ? n_draft : 0};
    p->tokens_left -= entry->n_tokens;
    p->prompt_rows -= is_prompt ? least(n, p->prompt_rows) : 0;
    q->n_computed += n;
    q->n_in_flight++;
    q->planned = s->round;
    publish(s, q);
    /* Produced tokens are counted when they come back; these are the rows computed for the tenant.
     */
    if (!entry->sample || n > 1)
        s->tenants[q->tenant].served += n;
    s->plan.n_tokens += entry->n_tokens;
    s->plan.n_blocks += entry->n_blocks;
    s->plan.n_logits += entry->n_logits;
    s->plan.n_samples += entry->sample + entry->n_draft;
    return true;
}

/* ---- one plan ---- */

/* Whether the next token of q may be planned. Who was in a batch of a turn is not again before all
 * had their place, however soon it is back: the youngest would never have one. */
static bool may_decode(const scheduler_t *s, const sequence_t *q)
{
    return !q->solo && q->n_in_flight == 0 && q->n_ids - q->n_computed <= 1 &&
           (s->turn_round == 0 || q->planned < s->turn_round);
}

/* True when somebody found no place. */
static bool plan_decodes(planning_t *p)
{
    scheduler_t *s = p->s;
    for (uint32_t i = 0; i < s->n_running;) {
        sequence_t *q = s->running[i];
        if (may_decode(s, q)) {
            if (!scheduler_has_room(p))
                return true;
            scheduler_add_entry(p, q);
        }
        /* It may have preempted itself; then another one stands here now. Those that it
         * preempted are younger and stand behind it. */
        if (i < s->n_running && s->running[i] == q)
            i++;
    }
    return false;
}

/* Those who decode beside whole prompts have their turn in as many batches as they need: what is left
 * over of them goes into the next plan, before any piece. */
static void plan_turn(planning_t *p)
{
    scheduler_t *s = p->s;
    uint32_t n = p->flight->n;
    bool left = plan_decodes(p);
    if (p->flight->n > n || s->turn_round != 0)
        s->rows_of_turn = 0;
    if (!left)
        s->turn_round = 0;
    else if (s->turn_round == 0)
        s->turn_round = s->round;
}

static void plan_together(planning_t *p)
{
    scheduler_t *s = p->s;
    step_queue_t queue;
    scheduler_queue(p, &queue);
    if (!scheduler_takes_turns(s, &queue))
        s->turn_round = 0;
    p->piece_rows = scheduler_piece_rows(s, &queue);
    bool pieces_first = scheduler_pieces_first(p, &queue);
    if (p->ahead && !pieces_first && (queue.n_decoding > 0 || p->piece_rows == UINT32_MAX))
        return;
    s->mean_context = queue.n_decoding ? queue.decode_keys / queue.n_decoding : 0;
    if (!p->ahead && !pieces_first)
        plan_turn(p);
    uint32_t n_rows = s->plan.n_tokens;
    scheduler_limit_prompts(p, &queue);
    scheduler_plan_prompts(p);
    s->rows_of_turn += s->plan.n_tokens - n_rows;
    /* The rest of the prompts waits for blocks, is solo, or was in the cache: no further piece waits
     * for this one. */
    if (!p->ahead && (p->flight->n == 0 || (pieces_first && !scheduler_more_prompts(p))))
        plan_turn(p);
}

/* A solo sequence that could run, or NULL; one that waits is started. */
static sequence_t *ready_solo(scheduler_t *s)
{
    for (uint32_t i = 0; i < s->n_running; i++)
        if (s->running[i]->solo && s->running[i]->n_in_flight == 0)
            return s->running[i];
    sequence_t *best = scheduler_next_solo(s);
    if (!best || s->n_running >= s->running_max || !scheduler_has_slot(s, best))
        return NULL;
    return scheduler_start(s, best) ? best : NULL;
}

static void reset_plan(scheduler_t *s)
{
    step_plan_t *plan = &s->plan;
    plan->n_opens = plan->n_closes = plan->n_entries = 0;
    plan->n_tokens = plan->n_blocks = plan->n_logits = plan->n_samples = 0;
    s->round++;
}

/* Slots whose sequences ended. An empty plan is never sent, so they wait for the next real one. */
static void list_closes(scheduler_t *s)
{
    memcpy(s->plan.closes, s->closing, s->n_closing * sizeof *s->closing);
    s->plan.n_closes = s->n_closing;
    s->n_closing = 0;
}

/* Fills the flight; what it holds stays empty when nothing can run now. */
static void fill(planning_t *p)
{
    scheduler_t *s = p->s;
    bool solo_exists = s->n_solo > 0;
    bool solo_turn = solo_exists && !s->solo_ran_last;
    if (!solo_turn)
        plan_together(p);
    if (p->flight->n > 0 || !solo_exists) {
        s->solo_ran_last = false;
        return;
    }
    /* Its turn: it waits until every step before it has come back, and is the only one in its own.
     */
    if (s->n_flights > 0)
        return;
    sequence_t *q = ready_solo(s);
    if (q)
        scheduler_add_entry(p, q);
    if (p->flight->n > 0)
        s->solo_ran_last = true;
    else if (solo_turn)
        plan_together(p);
}

/* Whether another step may be sent. Pieces of prompts go one ahead of the batches for all stages, so that a
 * stage that was held up finds the next one there. But not before a head: the last stage would wait for
 * the other ones' parts of it until they are through with that step. */
static bool may_plan(const scheduler_t *s)
{
    if (s->lost || s->n_flights > s->config.stages)
        return false;
    for (uint32_t i = 0; i < s->n_flights; i++)
        if (s->flights[scheduler_flight(s, i)].alone)
            return false;
    return s->n_flights < s->config.stages ||
           (s->config.stages > 1 && s->flights[scheduler_flight(s, 0)].work.logits == 0);
}

static bool make_plan(scheduler_t *s)
{
    if (!may_plan(s))
        return false;
    reset_plan(s);
    flight_t *flight = &s->flights[scheduler_flight(s, s->n_flights)];
    flight->n = 0;
    /* With several stages the sequences are dealt out evenly, so that no stage stands idle. */
    uint32_t share = (s->n_running + s->n_waiting + s->config.stages - 1) / s->config.stages;
    planning_t p = {
        .s = s,
        .flight = flight,
        .ahead = s->n_flights == s->config.stages,
        .tokens_left = s->config.step_tokens_max,
        .prompt_rows = UINT32_MAX,
        .decoding_top = INT32_MAX,
        .entries_max = least(s->config.batch_max, share > 0 ? share : 1),
        .drafts_left = STEP_SAMPLES_MAX - s->config.batch_max,
    };
    fill(&p);
    for (uint32_t i = 0; i < p.n_looked; i++)
        if (p.looked[i]->state == SEQUENCE_WAITING)
            scheduler_line_up(s, p.looked[i]);
    if (flight->n == 0) {
        CHECK(s->plan.n_opens == 0); /* an open that is not sent would be lost */
        return false;
    }
    list_closes(s);
    if (s->config.pools > 1)
        scheduler_sort_entries(s, flight);
    flight->step = ++s->load.steps;
    flight->alone = p.alone;
    flight->took_ns = 0;
    s->n_flights++;
    if (flight->n > s->load.sequences_max_in_step)
        s->load.sequences_max_in_step = flight->n;
    s->plan.kind = STEP_RUN;
    s->plan.step = flight->step;
    s->plan.n_entries = flight->n;
    step_cost_work(&s->plan, &flight->work);
    return true;
}

bool scheduler_plan(scheduler_t *s, uint64_t now_ms, step_plan_t *plan_out)
{
    s->now_ms = now_ms;
    scheduler_tick_some(s, TICKS_MAX);
    if (make_plan(s)) {
        *plan_out = s->plan;
        return true;
    }
    scheduler_tick_some(s, UINT32_MAX);
    return false;
}
