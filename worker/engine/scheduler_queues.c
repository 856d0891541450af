/* Who may start next, and whose time is over. Both are kept in heaps (heap.h), so that a step
 * looks at the few that it needs and never at all that wait. */
#include "worker/engine/scheduler_internal.h"

#define FETCH_AHEAD 8u /* sequences */

void scheduler_reserve(scheduler_t *s, const sequence_t *q)
{
    heap_reserve(&s->tenants[q->tenant].waiting, s->tenants[q->tenant].n_live);
    heap_reserve(&s->solo, s->n_solo);
    heap_reserve(&s->due, s->n_known);
}

/* ---- who may start ---- */

/* Within a tenant the order of waiting is fixed: priority, then those that return from a
 * preemption, then arrival. What changes all the time, tokens served, is the same for all of a
 * tenant, so it is compared between the first ones of the tenants alone. */
static uint64_t waiting_major(const sequence_t *q)
{
    return (uint64_t)(INT32_MAX - (int64_t)q->priority) << 1 | !q->started;
}

static void set_active(scheduler_t *s, uint32_t tenant, bool active)
{
    uint32_t *place = &s->tenants[tenant].active;
    if ((*place != 0) == active)
        return;
    if (active) {
        s->active[s->n_active++] = tenant;
        *place = s->n_active;
        return;
    }
    uint32_t last = s->active[--s->n_active];
    s->active[*place - 1] = last;
    s->tenants[last].active = *place;
    *place = 0;
}

void scheduler_line_up(scheduler_t *s, sequence_t *q)
{
    tenant_t *tenant = &s->tenants[q->tenant];
    if (q->waiting_place == 0)
        heap_put(&tenant->waiting, q, &q->waiting_place, waiting_major(q), q->serial);
    if (q->solo && q->solo_place == 0)
        heap_put(&s->solo, q, &q->solo_place, waiting_major(q), q->serial);
    set_active(s, q->tenant, true);
}

void scheduler_take_out(scheduler_t *s, sequence_t *q)
{
    tenant_t *tenant = &s->tenants[q->tenant];
    heap_remove(&tenant->waiting, &q->waiting_place);
    set_active(s, q->tenant, tenant->waiting.n > 0);
}

void scheduler_leave_line(scheduler_t *s, sequence_t *q)
{
    scheduler_take_out(s, q);
    heap_remove(&s->solo, &q->solo_place);
}

sequence_t *scheduler_first_waiting(const scheduler_t *s)
{
    const heap_entry_t *best = NULL;
    uint64_t best_served = 0;
    for (uint32_t i = 0; i < s->n_active; i++) {
        const tenant_t *tenant = &s->tenants[s->active[i]];
        const heap_entry_t *first = heap_first(&tenant->waiting);
        if (best && first->major > best->major)
            continue;
        if (best && first->major == best->major &&
            (tenant->served > best_served ||
             (tenant->served == best_served && first->minor > best->minor)))
            continue;
        best = first;
        best_served = tenant->served;
    }
    return best ? best->thing : NULL;
}

static uint32_t class_of(int32_t priority)
{
    const int32_t most = SCHEDULER_PRIORITY_MAX;
    int32_t within = priority < -most ? -most : priority > most ? most : priority;
    return (uint32_t)(within + most);
}

void scheduler_count_waiting(scheduler_t *s, const sequence_t *q, bool waits)
{
    if (waits) {
        s->n_waiting++;
        s->waiting_rows += q->n_prompt;
        s->waiting_by[class_of(q->priority)].n++;
        return;
    }
    s->n_waiting--;
    s->waiting_rows -= q->n_prompt;
    s->waiting_by[class_of(q->priority)].n--;
}

uint32_t scheduler_waiting_at(const scheduler_t *s, int32_t priority)
{
    return s->waiting_by[class_of(priority)].n;
}

void scheduler_set_refused(scheduler_t *s, sequence_t *q, bool refused)
{
    uint32_t *of_class = &s->waiting_by[class_of(q->priority)].n_refused;
    if (q->refused == refused)
        return;
    q->refused = refused;
    s->n_refused += refused ? 1u : -1u;
    *of_class += refused ? 1u : -1u;
}

uint32_t scheduler_could_start(const scheduler_t *s, int32_t priority, uint32_t *all_out)
{
    const sequence_t *first = scheduler_first_waiting(s);
    bool lacks = first && first->refused;
    bool again = lacks && scheduler_room(s) > first->refused_room;
    /* Behind so many that lack blocks no plan looks. */
    bool blocked = lacks && (s->n_refused >= SCHEDULER_LOOKS_MAX ||
                             first->passed >= SCHEDULER_PASSES_MAX);
    uint32_t n = again && first->priority >= priority;
    for (uint32_t i = class_of(priority); i < SCHEDULER_PRIORITIES && !blocked; i++)
        n += s->waiting_by[i].n - s->waiting_by[i].n_refused;
    uint32_t all = (blocked ? 0 : s->n_waiting - s->n_refused) + again;
    uint32_t most = s->running_max - s->n_running;
    *all_out = all < most ? all : most;
    return n < most ? n : most;
}

/* Whether a's turn comes before b's. */
static bool goes_first(const scheduler_t *s, const sequence_t *a, const sequence_t *b, bool scarce)
{
    if (a->priority != b->priority)
        return a->priority > b->priority;
    uint64_t served_a = s->tenants[a->tenant].served, served_b = s->tenants[b->tenant].served;
    if (scarce && served_a != served_b)
        return served_a < served_b;
    return a->serial < b->serial;
}

/* In the order of arrival they are nearly sorted, and rows for a dozen are all that a step has. */
static void sort_prompts(const planning_t *p, bool scarce)
{
    sequence_t **prompts = p->s->prompts;
    for (uint32_t i = 1; i < p->n_prompts; i++) {
        sequence_t *q = prompts[i];
        uint32_t at = i;
        for (; at > 0 && goes_first(p->s, q, prompts[at - 1], scarce); at--)
            prompts[at] = prompts[at - 1];
        prompts[at] = q;
    }
}

void scheduler_queue(planning_t *p, step_queue_t *out)
{
    scheduler_t *s = p->s;
    int32_t top = INT32_MIN;
    *out = (step_queue_t){.stages = s->config.stages};
    for (uint32_t i = 0; i < s->n_running; i++) {
        sequence_t *q = s->running[i];
        if (i + FETCH_AHEAD < s->n_running)
            scheduler_fetch(s->running[i + FETCH_AHEAD]);
        if (q->n_ids - q->n_computed > 1) {
            s->prompts[p->n_prompts++] = q;
            continue;
        }
        out->n_decoding++;
        out->decode_keys += q->n_ids;
        top = q->priority > top ? q->priority : top;
    }
    p->decoding_top = out->n_decoding > 0 ? top : INT32_MAX;
    sort_prompts(p, out->n_decoding > 0 && !s->config.whole_prompts);
    if (p->n_prompts > 0)
        out->context = s->prompts[0]->n_computed;
    for (uint32_t i = 0; i < p->n_prompts && s->prompts[i]->priority >= top; i++)
        out->n_prompts++;
    out->n_prompts += scheduler_could_start(s, top, &p->may_start);
    /* Those that are less urgent than somebody who decodes count as one, however many they are. Nor
     * does one that starts after all take a whole step. */
    if (out->n_prompts == 0 && (p->n_prompts > 0 || s->n_waiting > 0))
        out->n_prompts = 1;
}

uint32_t scheduler_piece_rows(const scheduler_t *s, const step_queue_t *queue)
{
    uint64_t rows = s->waiting_rows;
    /* Where prompts take few rows beside those who decode, the batches keep the stages busy. */
    if (queue->stages < 2 || (queue->n_decoding > 0 && !s->config.whole_prompts))
        return UINT32_MAX;
    for (uint32_t i = 0; i < s->n_running; i++)
        if (s->running[i]->n_ids - s->running[i]->n_computed > 1)
            rows += s->running[i]->n_ids - s->running[i]->n_cached;
    return step_cost_piece_rows(&s->cost, rows, queue->stages);
}

bool scheduler_takes_turns(const scheduler_t *s, const step_queue_t *queue)
{
    return s->config.whole_prompts && queue->stages > 1 && queue->n_decoding > 0 &&
           queue->n_prompts > 0;
}

bool scheduler_pieces_first(const planning_t *p, const step_queue_t *queue)
{
    const scheduler_t *s = p->s;
    if (!scheduler_takes_turns(s, queue) || s->turn_round != 0 ||
        s->rows_of_turn >= s->config.step_tokens_max)
        return false;
    uint64_t rows = p->may_start > 0 ? s->waiting_rows : 0;
    for (uint32_t i = 0; i < p->n_prompts; i++)
        rows += s->prompts[i]->n_ids - s->prompts[i]->n_computed;
    return rows > p->piece_rows || rows >= s->config.step_tokens_max;
}

bool scheduler_more_prompts(const planning_t *p)
{
    const scheduler_t *s = p->s;
    for (uint32_t i = 0; i < s->n_running; i++)
        if (s->running[i]->n_ids - s->running[i]->n_computed > 1)
            return true;
    return p->may_start > 0;
}

sequence_t *scheduler_next_solo(const scheduler_t *s)
{
    const heap_entry_t *first = heap_first(&s->solo);
    return first ? first->thing : NULL;
}

/* ---- time ---- */

static void settle(scheduler_t *s, sequence_t *q, bool settled)
{
    if (q->settled == settled)
        return;
    q->settled = settled;
    if (settled) {
        q->settled_next = NULL;
        q->settled_before = s->settled_last;
        *(s->settled_last ? &s->settled_last->settled_next : &s->settled) = q;
        s->settled_last = q;
        s->n_settled++;
        return;
    }
    *(q->settled_before ? &q->settled_before->settled_next : &s->settled) = q->settled_next;
    *(q->settled_next ? &q->settled_next->settled_before : &s->settled_last) = q->settled_before;
    s->n_settled--;
}

static uint64_t after(uint64_t at_ms, uint64_t wait_ms)
{
    return wait_ms < UINT64_MAX - at_ms ? at_ms + wait_ms : UINT64_MAX;
}

/* UINT64_MAX: time alone changes nothing. */
static uint64_t due_ms(const scheduler_t *s, const sequence_t *q)
{
    if (q->state == SEQUENCE_ENDED)
        return q->settled ? after(q->ended_at_ms, s->config.keep_ended_ms) : UINT64_MAX;
    uint64_t unwanted = UINT64_MAX;
    if (q->stream == 0)
        unwanted = after(q->detached_at_ms, s->config.keep_detached_ms);
    return unwanted < q->deadline_at_ms ? unwanted : q->deadline_at_ms;
}

void scheduler_retime(scheduler_t *s, sequence_t *q)
{
    settle(s, q,
           q->state == SEQUENCE_ENDED && q->n_in_flight == 0 && !q->dirty && !q->end_owed);
    heap_remove(&s->due, &q->due_place);
    uint64_t due = due_ms(s, q);
    if (due != UINT64_MAX)
        heap_put(&s->due, q, &q->due_place, due, q->serial);
}

void scheduler_leave_time(scheduler_t *s, sequence_t *q)
{
    settle(s, q, false);
    heap_remove(&s->due, &q->due_place);
}

void scheduler_tick_some(scheduler_t *s, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        const heap_entry_t *first = heap_first(&s->due);
        if (!first || first->major > s->now_ms)
            return;
        sequence_t *q = first->thing;
        if (q->state == SEQUENCE_ENDED)
            scheduler_forget(s, q);
        else if (s->now_ms >= q->deadline_at_ms)
            scheduler_end(s, q, END_CANCELLED, FINISH_NONE, "deadline", "the deadline passed");
        else
            scheduler_end(s, q, END_CANCELLED, FINISH_NONE, "cancelled",
                          "no coordinator wanted it any more");
    }
}

uint64_t scheduler_tick(scheduler_t *s, uint64_t now_ms)
{
    s->now_ms = now_ms;
    scheduler_tick_some(s, UINT32_MAX);
    const heap_entry_t *first = heap_first(&s->due);
    return first ? first->major : UINT64_MAX;
}
