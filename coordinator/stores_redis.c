/* The core's job and pointer operations: each action becomes one call of the job store, each answer
 * one event. Answers come on the Redis thread and are copied before they are posted. */
#include <stdlib.h>
#include <string.h>

#include "common/base/failpoint.h"
#include "coordinator/stores_state.h"
#include "shoal/v1/jobs.pb-c.h"

/* What is remembered of an operation, and later what came of it. */
typedef struct {
    shell_t *shell;
    core_action_kind_t kind;
    uint64_t op;
    char *job; /* of item operations */
    uint64_t index;
    jobs_reply_t reply; /* shallow: the arrays below are copies */
    arena_t arena;
} pending_t;

static void pending_free(pending_t *take_pending)
{
    arena_release(&take_pending->arena);
    free(take_pending->job);
    free(take_pending);
}

static void keep_refs(pending_t *p, const jobs_reply_t *reply)
{
    jobs_item_t *items = ARENA_NEW_ARRAY(&p->arena, jobs_item_t, reply->n_items + 1);
    for (size_t i = 0; i < reply->n_items; i++) {
        items[i] = (jobs_item_t){.index = reply->items[i].index,
                                 .attempt = reply->items[i].attempt};
        items[i].job = arena_strndup(&p->arena, reply->items[i].job, strlen(reply->items[i].job));
    }
    p->reply.items = items;
    jobs_job_t *jobs = ARENA_NEW_ARRAY(&p->arena, jobs_job_t, reply->n_jobs + 1);
    for (size_t i = 0; i < reply->n_jobs; i++) {
        jobs[i] = (jobs_job_t){.state = reply->jobs[i].state, .version = reply->jobs[i].version};
        jobs[i].id = arena_strndup(&p->arena, reply->jobs[i].id, strlen(reply->jobs[i].id));
    }
    p->reply.jobs = jobs;
    jobs_process_t *processes =
        ARENA_NEW_ARRAY(&p->arena, jobs_process_t, reply->n_processes + 1);
    for (size_t i = 0; i < reply->n_processes; i++)
        processes[i] = reply->processes[i];
    p->reply.processes = processes;
    p->reply.pointer = (const uint8_t *)arena_strndup(
        &p->arena, reply->pointer ? (const char *)reply->pointer : "", reply->pointer_bytes);
}

/* ---- answers, on the core thread ---- */

static void tell_mine(shell_t *shell, const pending_t *p)
{
    arena_t arena = {0};
    core_item_ref_t *refs = ARENA_NEW_ARRAY(&arena, core_item_ref_t, p->reply.n_items + 1);
    for (size_t i = 0; i < p->reply.n_items; i++)
        refs[i] = (core_item_ref_t){p->reply.items[i].job, p->reply.items[i].index,
                                    p->reply.items[i].attempt};
    shell_event(shell, &(core_event_t){.kind = CORE_EVENT_CLAIMS,
                                       .claims = {p->op, p->reply.code, refs, p->reply.n_items,
                                                  p->reply.number}});
    arena_release(&arena);
}

static void tell_states(shell_t *shell, const pending_t *p)
{
    arena_t arena = {0};
    core_job_state_t *states = ARENA_NEW_ARRAY(&arena, core_job_state_t, p->reply.n_jobs + 1);
    for (size_t i = 0; i < p->reply.n_jobs; i++)
        states[i] = (core_job_state_t){p->reply.jobs[i].id, p->reply.jobs[i].state,
                                       p->reply.jobs[i].version};
    shell_event(shell,
                &(core_event_t){.kind = CORE_EVENT_JOB_STATES,
                                .job_states = {p->op, p->reply.code, states, p->reply.n_jobs}});
    arena_release(&arena);
}

/* Whether the item's name is needed no more. After any other answer the core may write the same
 * result again: under the number of an adopted claim, or as a failure. */
static bool is_final(const pending_t *p)
{
    switch (p->reply.code) {
    case JOBS_OK:
    case JOBS_DUP:
    case JOBS_NOT_FOUND:
        return true;
    case JOBS_UNREACHABLE:
    case JOBS_WRONG_STORE:
        return false;
    default:
        return p->kind == CORE_ACTION_JOBS_RELEASE;
    }
}

static void on_answered(shell_t *shell, void *take_data)
{
    pending_t *p = take_data;
    core_event_t event = {.kind = CORE_EVENT_JOBS_DONE,
                          .jobs_done = {p->op, p->reply.code, p->reply.number}};
    /* A strange store is found here first; the comparison then names it. */
    if (p->reply.code == JOBS_WRONG_STORE)
        stores_verify(shell);
    switch (p->kind) {
    case CORE_ACTION_JOBS_MINE:
        tell_mine(shell, p);
        break;
    case CORE_ACTION_JOBS_POLL:
        tell_states(shell, p);
        break;
    case CORE_ACTION_JOBS_PROCESSES:
        event.kind = CORE_EVENT_JOB_PROCESSES;
        event.job_processes.processes = p->reply.processes;
        event.job_processes.n_processes = p->reply.n_processes;
        shell_event(shell, &event);
        break;
    case CORE_ACTION_POINTER_PUT:
    case CORE_ACTION_POINTER_GET:
    case CORE_ACTION_POINTER_TAKE:
        event = (core_event_t){.kind = CORE_EVENT_POINTER_DONE,
                               .pointer_done = {p->op, p->reply.code, p->reply.number,
                                                p->reply.pointer, p->reply.pointer_bytes}};
        shell_event(shell, &event);
        break;
    case CORE_ACTION_POINTER_DROP:
        break;
    case CORE_ACTION_JOBS_COMPLETE:
    case CORE_ACTION_JOBS_FAIL:
    case CORE_ACTION_JOBS_RELEASE:
        if (p->reply.code == JOBS_OK && p->kind != CORE_ACTION_JOBS_RELEASE)
            (void)FAILPOINT("coordinator.after_commit");
        if (p->reply.code == JOBS_OK)
            front_job_changed(shell, p->job);
        if (is_final(p))
            stores_forget_item(shell, p->job, p->index);
        shell_event(shell, &event);
        break;
    default:
        shell_event(shell, &event);
        break;
    }
    pending_free(p);
}

static void on_reply(void *user, const jobs_reply_t *reply)
{
    pending_t *p = user;
    p->reply = *reply;
    if (reply->code != JOBS_OK && reply->code != JOBS_DUP && reply->code != JOBS_UNREACHABLE)
        log_debug("redis: operation ended %s: %s", jobs_code_name(reply->code), reply->message);
    p->reply.message = NULL;
    p->reply.results = NULL;
    keep_refs(p, reply);
    shell_post(p->shell, on_answered, p);
}

static void on_claim_reply(void *user, const jobs_reply_t *reply)
{
    pending_t *p = user;
    stores_claimed(p->shell, p->op, reply);
    pending_free(p);
}

/* ---- calls ---- */

static status_t commit(shell_t *shell, const core_action_t *action, pending_t *p)
{
    const core_item_ref_t *ref = &action->item.ref;
    const core_item_result_t *r = &action->item.result;
    bool ok = action->kind == CORE_ACTION_JOBS_COMPLETE;
    arena_t arena = {0};
    Shoal__V1__ItemResult record = SHOAL__V1__ITEM_RESULT__INIT;
    Shoal__V1__Usage usage = SHOAL__V1__USAGE__INIT;
    Shoal__V1__Error error = SHOAL__V1__ERROR__INIT;
    union { /* protobuf-c wants mutable pointers and packs without writing */
        const uint32_t *from;
        uint32_t *to;
    } ids = {.from = r->ids};
#define TEXT(text) arena_strndup(&arena, (text) ? (text) : "", (text) ? strlen(text) : 0)
    record.index = ref->index;
    record.custom_id = TEXT(stores_custom_id(shell, ref));
    record.status = TEXT(ok ? "ok" : "error");
    record.text = arena_strndup(&arena, r->text ? r->text : "", r->text_size);
    record.ids = ids.to;
    record.n_ids = r->n_ids;
    record.finish_reason = r->finish_reason;
    usage.prompt_tokens = r->prompt_tokens;
    usage.completion_tokens = r->completion_tokens;
    usage.cached_tokens = r->cached_tokens;
    record.usage = &usage;
    record.seed = r->seed;
    record.text_identity = TEXT(r->text_identity);
    if (r->error_code) {
        error.code = TEXT(r->error_code);
        error.message = TEXT(r->error_message);
        record.error = &error;
    }
#undef TEXT
    buffer_t bytes = {0};
    rpc_pack(&record, &bytes);
    jobs_claim_t claim = {ref->job, ref->index, action->item.process, ref->attempt};
    jobs_tokens_t tokens = {r->prompt_tokens, r->completion_tokens, r->cached_tokens};
    (void)FAILPOINT("coordinator.before_commit");
    status_t status = ok ? jobs_complete(shell->jobs, &claim, tokens, bytes.data, bytes.size,
                                         on_reply, p)
                         : jobs_fail(shell->jobs, &claim, tokens, bytes.data, bytes.size, on_reply,
                                     p);
    buffer_release(&bytes);
    arena_release(&arena);
    return status;
}

static status_t call_pointer(shell_t *shell, const core_action_t *action, pending_t *p)
{
    jobs_store_t *jobs = shell->jobs;
    const char *id = action->pointer.id;
    uint64_t owner = action->pointer.owner, ttl_ms = action->pointer.ttl_ms;
    const uint8_t *bytes = action->pointer.pointer;
    size_t n = action->pointer.pointer_bytes;
    switch (action->kind) {
    case CORE_ACTION_POINTER_PUT:
        return jobs_req_put(jobs, id, owner, bytes, n, ttl_ms, on_reply, p);
    case CORE_ACTION_POINTER_GET:
        return jobs_req_get(jobs, id, on_reply, p);
    case CORE_ACTION_POINTER_TAKE:
        return jobs_req_take(jobs, id, owner, bytes, n, ttl_ms, on_reply, p);
    default:
        return jobs_req_drop(jobs, id, owner, on_reply, p);
    }
}

static status_t call(shell_t *shell, const core_action_t *action, pending_t *p)
{
    jobs_store_t *jobs = shell->jobs;
    jobs_claim_t claim = {action->item.ref.job, action->item.ref.index, action->item.process,
                          action->item.ref.attempt};
    switch (action->kind) {
    case CORE_ACTION_JOBS_CLAIM:
        return jobs_claim(jobs, action->claim.deployment, action->claim.n, action->claim.process,
                          action->claim.nonce, on_claim_reply, p);
    case CORE_ACTION_JOBS_MINE:
        return jobs_mine(jobs, action->mine.process, action->mine.cursor, on_reply, p);
    case CORE_ACTION_JOBS_ADOPT:
        return jobs_adopt(jobs, action->adopt.from, action->adopt.to, on_reply, p);
    case CORE_ACTION_JOBS_COMPLETE:
    case CORE_ACTION_JOBS_FAIL:
        return commit(shell, action, p);
    case CORE_ACTION_JOBS_RELEASE:
        return jobs_release(jobs, &claim, on_reply, p);
    case CORE_ACTION_JOBS_NOTE_DEATH:
        return jobs_note_death(jobs, &claim, action->item.epoch, on_reply, p);
    case CORE_ACTION_JOBS_POLL:
        return jobs_poll(jobs, action->poll.n_jobs, action->poll.jobs, on_reply, p);
    case CORE_ACTION_JOBS_EXPIRE:
        return jobs_expire(jobs, on_reply, p);
    case CORE_ACTION_JOBS_PROCESSES:
        return jobs_processes(jobs, on_reply, p);
    case CORE_ACTION_JOBS_RELEASE_PROCESS:
        return jobs_release_process(jobs, action->release_process.fence,
                                    action->release_process.process, on_reply, p);
    default:
        return call_pointer(shell, action, p);
    }
}

void stores_redis(shell_t *shell, const core_action_t *action)
{
    pending_t *p = MEM_NEW(pending_t);
    p->shell = shell;
    p->kind = action->kind;
    p->op = action->op;
    if (action->kind == CORE_ACTION_JOBS_COMPLETE || action->kind == CORE_ACTION_JOBS_FAIL ||
        action->kind == CORE_ACTION_JOBS_RELEASE) {
        p->job = mem_strdup(action->item.ref.job);
        p->index = action->item.ref.index;
    }
    status_t status = call(shell, action, p);
    if (status == STATUS_OK)
        return;
    /* Nothing was sent, so there is no callback: the answer is made here. */
    jobs_reply_t reply = {.code = status == STATUS_INVALID ? JOBS_INVALID : JOBS_UNREACHABLE,
                          .message = status_text()};
    if (action->kind == CORE_ACTION_JOBS_CLAIM)
        on_claim_reply(p, &reply);
    else
        on_reply(p, &reply);
}
