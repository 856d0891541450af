/* See jobs.h, first half. Reading `mine` and claiming never overlap: an item just claimed would
 * look like one that nobody here knows, and would be given back. */
#include "coordinator/core/jobs.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "coordinator/core/dispatch.h"
#include "coordinator/core/session.h"

enum { JOBS_TICK_MS = 250, REFUSED_WAIT_MS = 1000, POLL_JOBS_MAX = 1000 };

static void wake_now(core_t *core)
{
    core_wake(core, &core->jobs_wake, TIMER_JOBS, core, core->now_ms);
}

bool claims_may_write(const core_t *core)
{
    return core->redis == CORE_STORE_UP && core->process.revision && core->n_former == 0;
}

void claims_registered(core_t *core, jobs_process_t process)
{
    jobs_process_t old = core->process;
    if (old.revision == process.revision && old.incarnation == process.incarnation)
        return;
    core->process = process;
    /* Claims belong to a process; those of the one we were are taken over before anything else. */
    if (old.revision && core->n_former < FORMER_MAX)
        core->former[core->n_former++] = old;
    for (size_t i = 0; i < core->n_deployments; i++) {
        deployment_t *d = core->deployments[i];
        d->claim_repeat = false;
        d->claim_nonce = 0;
        d->claim_at_ms = core->now_ms;
    }
    core->adopt_at_ms = 0;
    wake_now(core);
}

void claims_store_changed(core_t *core)
{
    if (core->redis == CORE_STORE_UP) {
        core->mine_at_ms = core->now_ms;
        for (size_t i = 0; i < core->n_deployments; i++)
            core->deployments[i]->claim_at_ms = core->now_ms;
    }
    wake_now(core);
}

void claims_hint(core_t *core)
{
    for (size_t i = 0; i < core->n_deployments; i++)
        if (!core->deployments[i]->claim_repeat)
            core->deployments[i]->claim_at_ms = core->now_ms;
    wake_now(core);
}

static bool claiming(const core_t *core)
{
    for (size_t i = 0; i < core->n_deployments; i++)
        if (core->deployments[i]->claim_op || core->deployments[i]->claim_repeat)
            return true;
    return false;
}

/* ---- claims ---- */

static void claim(core_t *core, deployment_t *d)
{
    if (d->claim_op || core->now_ms < d->claim_at_ms || core->mine_op || core->draining)
        return;
    if (!d->claim_repeat) {
        if (!d->record || d->model != MODEL_READY || core->items.n >= core->config.items_max)
            return;
        uint64_t n = dispatch_free_credit(core, d) / d->item_tokens;
        uint64_t room = core->config.items_max - core->items.n;
        n = n < room ? n : room;
        n = n < CORE_CLAIM_MAX ? n : CORE_CLAIM_MAX;
        if (n == 0)
            return;
        d->claim_n = (uint32_t)n;
        d->claim_nonce++;
        d->claim_process = core->process;
    }
    core_action_t *action = core_act(core, CORE_ACTION_JOBS_CLAIM);
    action->op = d->claim_op = core_number(core);
    action->claim.deployment = core_copy(core, d->name);
    action->claim.n = d->claim_n;
    action->claim.process = d->claim_process;
    action->claim.nonce = d->claim_nonce;
}

void claims_claimed(core_t *core, const core_event_t *event)
{
    deployment_t *d = NULL;
    for (size_t i = 0; i < core->n_deployments; i++)
        if (core->deployments[i]->claim_op == event->claimed.op)
            d = core->deployments[i];
    if (!d || !event->claimed.op)
        return;
    d->claim_op = 0;
    bool current = d->claim_process.revision == core->process.revision &&
                   d->claim_process.incarnation == core->process.incarnation;
    d->claim_repeat = event->claimed.code == JOBS_UNREACHABLE && current;
    if (event->claimed.code != JOBS_OK) {
        uint64_t wait = event->claimed.code == JOBS_UNREACHABLE ? STORE_RETRY_MS : REFUSED_WAIT_MS;
        d->claim_at_ms = core->now_ms + wait / 2 + core_random(core) % wait;
        return;
    }
    for (size_t i = 0; i < event->claimed.n_items; i++) {
        const core_claimed_t *claimed = &event->claimed.items[i];
        if (core->draining)
            items_give_back(core, &claimed->ref);
        else
            items_start(core, d, claimed);
    }
    bool full = event->claimed.n_items >= d->claim_n;
    d->claim_at_ms = core->now_ms + (full ? 0 : CLAIM_IDLE_MS);
    wake_now(core);
}

/* ---- what Redis says we hold ---- */

static void ask_mine(core_t *core, uint64_t cursor)
{
    core_action_t *action = core_act(core, CORE_ACTION_JOBS_MINE);
    action->op = core->mine_op = core_number(core);
    action->mine.process = core->mine_process = core->process;
    action->mine.cursor = cursor;
}

static void end_mine(core_t *core)
{
    /* What was held before this round began and was in none of its pages is not ours any more. */
    size_t i = 0;
    for (item_t *item; (item = table_next(&core->items, &i));) {
        if (item->state != ITEM_RUNNING || item->born_round >= core->mine_round ||
            item->seen_round == core->mine_round)
            continue;
        core_log(core, LOG_WARN, "item %llu of job %s is not ours any more",
                 (unsigned long long)item->index, item->job->id);
        items_forget(core, item);
        i = 0;
    }
    core->mine_at_ms = core->now_ms + MINE_MS;
    wake_now(core);
}

void claims_mine(core_t *core, const core_event_t *event)
{
    if (event->claims.op != core->mine_op || !core->mine_op)
        return;
    core->mine_op = 0;
    bool current = core->mine_process.revision == core->process.revision;
    if (event->claims.code != JOBS_OK || !current) {
        core->mine_at_ms = core->now_ms + REFUSED_WAIT_MS;
        wake_now(core);
        return;
    }
    for (size_t i = 0; i < event->claims.n_refs; i++) {
        const core_item_ref_t *ref = &event->claims.refs[i];
        item_t *item = items_find(core, ref->job, ref->index);
        if (item && item->attempt < ref->attempt) {
            items_forget(core, item);
            item = NULL;
        }
        if (item)
            item->seen_round = core->mine_round;
        else if (core->items.n < CORE_ITEMS_MAX)
            items_give_back(core, ref);
    }
    if (event->claims.cursor)
        ask_mine(core, event->claims.cursor);
    else
        end_mine(core);
}

/* ---- former processes ---- */

static void adopt(core_t *core)
{
    if (!core->n_former || core->adopt_op || core->now_ms < core->adopt_at_ms)
        return;
    core_action_t *action = core_act(core, CORE_ACTION_JOBS_ADOPT);
    action->op = core->adopt_op = core_number(core);
    action->adopt.from = core->former[0];
    action->adopt.to = core->process;
}

static void adopted(core_t *core, const core_event_t *event)
{
    core->adopt_op = 0;
    if (event->jobs_done.code == JOBS_UNREACHABLE) {
        core->adopt_at_ms = core->now_ms + STORE_RETRY_MS;
        return;
    }
    if (event->jobs_done.code == JOBS_OK && event->jobs_done.number)
        return; /* more are left: the timer asks again */
    core->n_former--;
    memmove(core->former, core->former + 1, core->n_former * sizeof *core->former);
    core->mine_at_ms = core->now_ms;
}

/* ---- jobs that ended under us ---- */

static void poll(core_t *core)
{
    if (core->poll_op || core->now_ms < core->poll_at_ms || core->jobs.n == 0)
        return;
    size_t max = core->jobs.n < POLL_JOBS_MAX ? core->jobs.n : POLL_JOBS_MAX;
    jobs_seen_t *seen = ARENA_NEW_ARRAY(&core->out->arena, jobs_seen_t, max);
    size_t n = 0;
    while (n < max) { /* all the way around at most, since max is at most their number */
        const job_t *job = table_next(&core->jobs, &core->poll_place);
        if (job)
            seen[n++] = (jobs_seen_t){core_copy(core, job->id), job->version};
        else
            core->poll_place = 0;
    }
    core_action_t *action = core_act(core, CORE_ACTION_JOBS_POLL);
    action->op = core->poll_op = core_number(core);
    action->poll.jobs = seen;
    action->poll.n_jobs = n;
    core->poll_at_ms = core->now_ms + POLL_MS;
}

void claims_states(core_t *core, const core_event_t *event)
{
    if (event->job_states.op != core->poll_op || !core->poll_op)
        return;
    core->poll_op = 0;
    if (event->job_states.code != JOBS_OK)
        return;
    for (size_t k = 0; k < event->job_states.n_states; k++) {
        const core_job_state_t *state = &event->job_states.states[k];
        job_t *job = table_get(&core->jobs, state->job, strlen(state->job));
        if (!job)
            continue;
        job->version = state->version;
        if (state->state == JOBS_STATE_QUEUED || state->state == JOBS_STATE_RUNNING ||
            state->state == JOBS_STATE_SUCCEEDED)
            continue;
        size_t i = 0;
        for (item_t *item; (item = table_next(&core->items, &i));)
            if (item->job == job && item->state == ITEM_RUNNING)
                items_release(core, item, true);
    }
}

/* ---- the rest ---- */

bool claims_done(core_t *core, const core_event_t *event)
{
    if (core->adopt_op && event->jobs_done.op == core->adopt_op) {
        adopted(core, event);
        wake_now(core);
        return true;
    }
    return items_done(core, event);
}

void claims_release_all(core_t *core)
{
    size_t i = 0;
    for (item_t *item; (item = table_next(&core->items, &i));)
        items_release(core, item, false);
}

void claims_timer(core_t *core)
{
    core_wake(core, &core->jobs_wake, TIMER_JOBS, core, core->now_ms + JOBS_TICK_MS);
    cluster_load_models(core);
    if (core->redis != CORE_STORE_UP || !core->process.revision)
        return;
    adopt(core);
    if (core->n_former)
        return;
    bool mine_due = core->now_ms >= core->mine_at_ms;
    if (mine_due && !core->mine_op && !claiming(core)) {
        core->mine_round++;
        ask_mine(core, 0);
    }
    poll(core);
    for (size_t i = 0; i < core->n_deployments; i++)
        /* A due reading waits for claims under way; no new one starts before it. */
        if (!mine_due || core->deployments[i]->claim_repeat)
            claim(core, core->deployments[i]);
}

void claims_free(core_t *core)
{
    size_t i = 0;
    for (item_t *item; (item = table_next(&core->items, &i)); i = 0)
        items_forget(core, item);
    i = 0;
    for (item_op_t *op; (op = table_next(&core->item_ops, &i));)
        free(op);
    table_release(&core->items);
    table_release(&core->item_ops);
    table_release(&core->jobs);
}
