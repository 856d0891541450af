/* The prompts of one plan: how many rows they have together, in which order they get them, and which of
 * those that wait start. */
#include "worker/engine/scheduler_internal.h"

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

void scheduler_limit_prompts(planning_t *p, step_queue_t *queue)
{
    scheduler_t *s = p->s;
    queue->n_guesses = s->plan.n_tokens - p->flight->n;
    if (!s->config.whole_prompts)
        p->prompt_rows = step_cost_prompt_rows(&s->cost, queue);
}

/* Those who decode and are all less urgent wait for such a prompt: it is held up by nobody. */
static bool is_urgent(const planning_t *p, const sequence_t *q)
{
    return q->priority > p->decoding_top;
}

/* Whether another prompt of q's priority has its turn behind it. All that run have theirs before those
 * that start. */
static bool others_follow(const planning_t *p, const sequence_t *q)
{
    const scheduler_t *s = p->s;
    if (p->prompt_at < p->n_prompts && s->prompts[p->prompt_at]->priority == q->priority)
        return true;
    return p->may_start > 0 && scheduler_waiting_at(s, q->priority) > 0;
}

/* While rows are scarce no prompt takes more than half of what the ones before it left, so that a short
 * one passes a long one. */
uint32_t scheduler_prompt_share(const planning_t *p, const sequence_t *q, uint32_t n)
{
    uint32_t most = p->prompt_rows;
    if (is_urgent(p, q))
        return n;
    if (p->prompts_limited && others_follow(p, q))
        most -= most / 2;
    return least(n, most);
}

/* ---- starting ---- */

static void enter_running(scheduler_t *s, sequence_t *q)
{
    uint32_t at = s->n_running++;
    for (; at > 0 && s->running[at - 1]->serial > q->serial; at--)
        s->running[at] = s->running[at - 1];
    s->running[at] = q;
    q->state = SEQUENCE_RUNNING;
    scheduler_count_waiting(s, q, false);
    s->pools[q->pool].n_running++;
    scheduler_leave_line(s, q);
}

static void open_slot(scheduler_t *s, sequence_t *q)
{
    uint32_t slot = s->slots_free[--s->n_slots_free];
    q->slot = slot;
    s->slots[slot] = q;
    s->plan.opens[s->plan.n_opens++] = (step_open_t){
        .slot = slot,
        .choice = q->choice,
        .n_prompt = q->n_prompt,
        .n_produced = sequence_produced(q),
        .ids = q->ids,
        .sampling = q->sampling,
    };
}

bool scheduler_start(scheduler_t *s, sequence_t *q)
{
    /* The last token is always computed: somebody has to give its logits. */
    uint32_t match_max = (q->n_ids - 1) / KV_BLOCK_TOKENS;
    if (sequence_owes_logits(q))
        match_max = least(match_max, q->logits_next / KV_BLOCK_TOKENS);
    if (!scheduler_choose_pool(s, q, match_max)) {
        scheduler_set_refused(s, q, true);
        q->refused_room = scheduler_room(s);
        return false;
    }
    s->load.prefix_hit_tokens += q->n_computed;
    if (!q->started)
        q->n_cached = least(q->n_computed, q->n_prompt);
    q->started = true;
    scheduler_set_refused(s, q, false);
    q->passed = 0;
    enter_running(s, q);
    if (q->slot == SLOT_NONE)
        open_slot(s, q);
    return true;
}

/* Whether another try to start q can end otherwise than the last one. A try looks up every block of
 * the prompt, too much for each plan of a long wait. What others have published meanwhile may be
 * its own beginning, so one try a plan is made without a reason. */
static bool is_worth_a_try(planning_t *p, const sequence_t *q)
{
    const scheduler_t *s = p->s;
    if (!q->refused || scheduler_room(s) > q->refused_room)
        return true;
    if (p->looked_again)
        return false;
    p->looked_again = true;
    return true;
}

static bool has_room_for(const planning_t *p, const sequence_t *q)
{
    return scheduler_has_room(p) && (p->prompt_rows > 0 || is_urgent(p, q));
}

/* One more has gone before these; true when for one of them that was the last time. */
static bool pass(planning_t *p)
{
    bool enough = false;
    for (uint32_t i = 0; i < p->n_too_big; i++)
        enough |= ++p->too_big[i]->passed >= SCHEDULER_PASSES_MAX;
    return enough;
}

/* Looks at one that waits, which is out of its line. False when nobody behind it may start. */
static bool look_at(planning_t *p, sequence_t *q)
{
    scheduler_t *s = p->s;
    if (!scheduler_has_slot(s, q))
        return false;
    bool overdue = s->now_ms >= q->deadline_at_ms; /* its end is a matter of the next tick */
    if (overdue || (sequence_owes_logits(q) && s->n_flights > 0))
        return true;
    /* A solo sequence starts in its own turn; here it only has its blocks saved. */
    if (q->solo && scheduler_room(s) >= scheduler_blocks_to_start(s, q))
        return true;
    if (!q->solo && is_worth_a_try(p, q) && scheduler_start(s, q)) {
        p->may_start -= p->may_start > 0;
        scheduler_add_entry(p, q);
        return !pass(p);
    }
    if (q->passed >= SCHEDULER_PASSES_MAX)
        return false;
    p->too_big[p->n_too_big++] = q;
    return true;
}

/* Starts those that wait and are more urgent than this, as long as there is room. */
static void start_waiting(planning_t *p, int64_t above)
{
    scheduler_t *s = p->s;
    while (!p->starts_over && p->n_looked < SCHEDULER_LOOKS_MAX && s->n_running < s->running_max) {
        sequence_t *q = scheduler_first_waiting(s);
        if (!q || q->priority <= above || !has_room_for(p, q))
            return;
        scheduler_take_out(s, q);
        p->looked[p->n_looked++] = q;
        p->starts_over = !look_at(p, q);
    }
}

/* ---- turns ---- */

static void plan_running(planning_t *p)
{
    scheduler_t *s = p->s;
    const sequence_t *first = p->n_prompts > 0 ? scheduler_first_waiting(s) : NULL;
    int64_t waiting_top = first ? first->priority : INT64_MIN;
    for (uint32_t i = 0; i < p->n_prompts && scheduler_has_room(p); i++) {
        sequence_t *q = s->prompts[i];
        p->prompt_at = i;
        if (waiting_top > q->priority) {
            start_waiting(p, q->priority);
            first = scheduler_first_waiting(s);
            waiting_top = first ? first->priority : INT64_MIN;
        }
        p->prompt_at = i + 1;
        /* Another one may have preempted it meanwhile. */
        if (q->state == SEQUENCE_RUNNING && !q->solo && q->n_in_flight == 0 && has_room_for(p, q))
            scheduler_add_entry(p, q);
    }
    p->prompt_at = p->n_prompts;
}

/* Plans run in order on every stage, so a later piece finds the keys of those before. They come last,
 * or a prompt would keep every other one waiting. */
static void plan_further_pieces(planning_t *p)
{
    scheduler_t *s = p->s;
    if (p->piece_rows == UINT32_MAX)
        return;
    for (uint32_t i = 0; i < p->n_prompts; i++) {
        sequence_t *q = s->prompts[i];
        if (q->state == SEQUENCE_RUNNING && !q->solo && q->n_in_flight > 0 &&
            q->planned != s->round && q->n_ids > q->n_computed && has_room_for(p, q))
            scheduler_add_entry(p, q);
    }
}

void scheduler_plan_prompts(planning_t *p)
{
    p->prompts_limited = p->prompt_rows < p->tokens_left;
    p->prompt_rows = least(least(p->prompt_rows, p->piece_rows), p->tokens_left);
    plan_running(p);
    start_waiting(p, INT64_MIN);
    plan_further_pieces(p);
}
