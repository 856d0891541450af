/* See jobs.h, second half. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "coordinator/core/dispatch.h"
#include "coordinator/core/jobs.h"
#include "coordinator/core/session.h"

item_t *items_find(const core_t *core, const char *job, uint64_t index)
{
    char id[CORE_ID_SIZE];
    core_item_session_id(job, index, id);
    return table_get(&core->items, id, strlen(id));
}

bool core_holds_item(const core_t *core, const char *job, uint64_t index)
{
    return items_find(core, job, index) != NULL;
}

static item_t *make(core_t *core, const core_item_ref_t *ref)
{
    job_t *job = table_get(&core->jobs, ref->job, strlen(ref->job));
    if (!job) {
        job = MEM_NEW(job_t);
        snprintf(job->id, sizeof job->id, "%s", ref->job);
        table_put(&core->jobs, job->id, strlen(job->id), job);
    }
    job->n_items++;
    item_t *item = MEM_NEW(item_t);
    item->job = job;
    item->index = ref->index;
    item->attempt = ref->attempt;
    item->born_round = core->mine_round;
    core_item_session_id(ref->job, ref->index, item->id);
    table_put(&core->items, item->id, strlen(item->id), item);
    return item;
}

static void free_result(core_item_result_t *r)
{
    free((void *)(uintptr_t)r->text);
    free((void *)(uintptr_t)r->ids);
    free((void *)(uintptr_t)r->text_identity);
    free((void *)(uintptr_t)r->error_code);
    free((void *)(uintptr_t)r->error_message);
    *r = (core_item_result_t){0};
}

static void destroy(core_t *core, item_t *item)
{
    job_t *job = item->job;
    table_remove(&core->items, item->id, strlen(item->id));
    core_wake_off(core, &item->wake);
    free_result(&item->result);
    free(item);
    if (--job->n_items)
        return;
    table_remove(&core->jobs, job->id, strlen(job->id));
    free(job);
}

static void drop_session(core_t *core, item_t *item, bool tell)
{
    if (!item->session)
        return;
    item->session->item = NULL;
    session_drop(core, item->session, tell);
    item->session = NULL;
}

void items_forget(core_t *core, item_t *item)
{
    drop_session(core, item, true);
    destroy(core, item);
}

/* ---- operations ---- */

static core_item_result_t copy_to_arena(core_t *core, const core_item_result_t *from)
{
    core_item_result_t r = *from;
    arena_t *arena = &core->out->arena;
    r.text = arena_strndup(arena, text_or_empty(from->text), from->text_size);
    uint32_t *ids = ARENA_NEW_ARRAY(arena, uint32_t, from->n_ids + 1);
    if (from->n_ids)
        memcpy(ids, from->ids, from->n_ids * sizeof *ids);
    r.ids = ids;
    r.text_identity = core_copy(core, from->text_identity);
    if (from->error_code) {
        r.error_code = core_copy(core, from->error_code);
        r.error_message = core_copy(core, from->error_message);
    }
    return r;
}

static uint64_t send(core_t *core, item_t *item, core_action_kind_t kind)
{
    core_action_t *action = core_act(core, kind);
    item_op_t *op = MEM_NEW(item_op_t);
    action->op = op->op = core_number(core);
    op->kind = kind;
    op->attempt = item->attempt;
    op->process = core->process;
    memcpy(op->id, item->id, sizeof op->id);
    table_put(&core->item_ops, &op->op, sizeof op->op, op);
    action->item.ref.job = core_copy(core, item->job->id);
    action->item.ref.index = item->index;
    action->item.ref.attempt = item->attempt;
    action->item.process = core->process;
    if (kind == CORE_ACTION_JOBS_COMPLETE || kind == CORE_ACTION_JOBS_FAIL)
        action->item.result = copy_to_arena(core, &item->result);
    return op->op;
}

static void commit(core_t *core, item_t *item)
{
    if (item->op)
        return;
    if (!claims_may_write(core)) {
        core_wake(core, &item->wake, TIMER_ITEM, item, core->now_ms + STORE_RETRY_MS);
        return;
    }
    core_action_kind_t kind = CORE_ACTION_JOBS_RELEASE;
    if (item->state == ITEM_COMMITTING)
        kind = item->result.error_code ? CORE_ACTION_JOBS_FAIL : CORE_ACTION_JOBS_COMPLETE;
    item->op = send(core, item, kind);
}

static void set_failed(item_t *item, const char *code, const char *message)
{
    item->state = ITEM_COMMITTING;
    item->result.finish_reason = SHOAL__V1__FINISH_REASON__FINISH_REASON_ERROR;
    item->result.error_code = mem_strdup(code);
    item->result.error_message = mem_strdup(text_or_empty(message));
}

void items_start(core_t *core, deployment_t *deployment, const core_claimed_t *claimed)
{
    item_t *item = items_find(core, claimed->ref.job, claimed->ref.index);
    if (item && item->attempt >= claimed->ref.attempt)
        return; /* the repeat of a claim whose answer was lost and then came */
    if (item)
        items_forget(core, item);
    item = make(core, &claimed->ref);
    item->deaths = claimed->deaths;
    if (claimed->error_code) {
        set_failed(item, claimed->error_code, claimed->error_message);
        commit(core, item);
        return;
    }
    if (claimed->deaths >= DEATHS_MAX) {
        set_failed(item, "poisoned",
                   "ranks die when they compute this item; it is not tried again");
        commit(core, item);
        return;
    }
    const core_request_t *request = &claimed->request;
    uint64_t tokens = request->n_prompt + request->sampling->max_tokens;
    deployment->item_tokens = (deployment->item_tokens * 7 + tokens) / 8 + 1;
    item->session = session_for_item(core, item, deployment, request);
    dispatch_enqueue(core, item->session->choices);
}

void items_give_back(core_t *core, const core_item_ref_t *ref)
{
    item_t *item = make(core, ref);
    item->state = ITEM_RELEASING;
    commit(core, item);
}

void items_release(core_t *core, item_t *item, bool tell)
{
    if (item->state != ITEM_RUNNING)
        return;
    drop_session(core, item, tell);
    item->state = ITEM_RELEASING;
    commit(core, item);
}

/* ---- what sessions report ---- */

void items_session_ended(core_t *core, session_t *session)
{
    item_t *item = session->item;
    const sequence_t *s = session->choices;
    core_item_result_t *r = &item->result;
    item->session = NULL;
    session->item = NULL;
    if (s->error_code)
        set_failed(item, s->error_code, s->error_message);
    item->state = ITEM_COMMITTING;
    size_t size = text_log_released(&s->log, s->log.n);
    r->text = mem_strndup(buffer_text(&s->log.text), size);
    r->text_size = size;
    uint32_t *ids = MEM_NEW_ARRAY(uint32_t, s->log.n + 1);
    if (s->log.n)
        memcpy(ids, s->log.ids, s->log.n * sizeof *ids);
    r->ids = ids;
    r->n_ids = s->log.n;
    r->finish_reason = s->finish;
    r->prompt_tokens = (uint32_t)session->n_prompt;
    r->completion_tokens = (uint32_t)s->log.n;
    r->cached_tokens = s->cached_tokens;
    r->seed = session->sampling->seed;
    r->text_identity = mem_strdup(session->identity);
    commit(core, item);
    core_wake(core, &core->jobs_wake, TIMER_JOBS, core, core->now_ms);
}

void items_session_superseded(core_t *core, item_t *item)
{
    item->session->item = NULL;
    item->session = NULL; /* its session is being dropped by who calls */
    destroy(core, item);
}

static void send_note(core_t *core, item_t *item)
{
    if (!claims_may_write(core)) {
        core_wake(core, &item->wake, TIMER_ITEM, item, core->now_ms + STORE_RETRY_MS);
        return;
    }
    uint64_t epoch = item->note_epoch;
    send(core, item, CORE_ACTION_JOBS_NOTE_DEATH);
    core->out->items[core->out->n - 1].item.epoch = epoch;
}

void items_note_death(core_t *core, item_t *item, uint64_t epoch)
{
    item->note_epoch = epoch;
    send_note(core, item);
}

void items_timer(core_t *core, item_t *item)
{
    if (item->state != ITEM_RUNNING)
        commit(core, item);
    else if (item->note_epoch)
        send_note(core, item);
}

/* ---- answers ---- */

static bool same(jobs_process_t a, jobs_process_t b)
{
    return a.incarnation == b.incarnation && a.revision == b.revision;
}

static void retry(core_t *core, item_t *item)
{
    uint64_t spread = core_random(core) % STORE_RETRY_MS;
    core_wake(core, &item->wake, TIMER_ITEM, item, core->now_ms + STORE_RETRY_MS / 2 + spread);
}

static void noted(core_t *core, item_t *item, const core_event_t *event)
{
    if (event->jobs_done.code == JOBS_UNREACHABLE) {
        retry(core, item);
        return;
    }
    item->note_epoch = 0;
    if (event->jobs_done.code != JOBS_OK)
        return;
    item->deaths = event->jobs_done.number;
    if (item->deaths >= DEATHS_MAX && item->session)
        session_finish(core, item->session->choices,
                       SHOAL__V1__FINISH_REASON__FINISH_REASON_ERROR, "poisoned",
                       "ranks die when they compute this item; it is not tried again");
}

static void written(core_t *core, item_t *item, const item_op_t *op, jobs_code_t code)
{
    item->op = 0;
    switch (code) {
    case JOBS_OK:
    case JOBS_DUP:
    case JOBS_NOT_FOUND:
        destroy(core, item);
        return;
    case JOBS_STALE:
        /* Under a former number of ours the claim may have been adopted by now. */
        if (!same(op->process, core->process) || core->n_former)
            retry(core, item);
        else
            destroy(core, item);
        return;
    case JOBS_INVALID:
        if (op->kind == CORE_ACTION_JOBS_COMPLETE) {
            free_result(&item->result);
            set_failed(item, "internal", "the result cannot be stored");
            commit(core, item);
        } else {
            core_log(core, LOG_ERROR, "item %llu of job %s is given up: Redis refuses its record",
                     (unsigned long long)item->index, item->job->id);
            destroy(core, item);
        }
        return;
    default:
        retry(core, item);
        return;
    }
}

bool items_done(core_t *core, const core_event_t *event)
{
    uint64_t number = event->jobs_done.op;
    item_op_t *op = table_remove(&core->item_ops, &number, sizeof number);
    if (!op)
        return false;
    item_t *item = table_get(&core->items, op->id, strlen(op->id));
    bool known = item && item->attempt == op->attempt;
    if (known && op->kind == CORE_ACTION_JOBS_NOTE_DEATH)
        noted(core, item, event);
    else if (known && item->op == number)
        written(core, item, op, event->jobs_done.code);
    free(op);
    return true;
}
