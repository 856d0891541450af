/* shoal.v1.Jobs, apart from intake and the two streams: what is asked of jobs that exist. Each call
 * is one operation of the job store. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/front_state.h"

static char *copy_text(arena_t *arena, const char *text)
{
    return arena_strndup(arena, text, strlen(text));
}

Shoal__V1__Job *front_job(arena_t *arena, const jobs_job_t *job)
{
    Shoal__V1__Job *out = ARENA_NEW_ARRAY(arena, Shoal__V1__Job, 1);
    shoal__v1__job__init(out);
    out->counts = ARENA_NEW_ARRAY(arena, Shoal__V1__Counts, 1);
    shoal__v1__counts__init(out->counts);
    out->usage = ARENA_NEW_ARRAY(arena, Shoal__V1__Usage, 1);
    shoal__v1__usage__init(out->usage);
    static const Shoal__V1__Job__State states[] = {
        [JOBS_STATE_NONE] = SHOAL__V1__JOB__STATE__STATE_UNSPECIFIED,
        [JOBS_STATE_QUEUED] = SHOAL__V1__JOB__STATE__QUEUED,
        [JOBS_STATE_RUNNING] = SHOAL__V1__JOB__STATE__RUNNING,
        [JOBS_STATE_SUCCEEDED] = SHOAL__V1__JOB__STATE__SUCCEEDED,
        [JOBS_STATE_CANCELLED] = SHOAL__V1__JOB__STATE__CANCELLED,
        [JOBS_STATE_EXPIRED] = SHOAL__V1__JOB__STATE__EXPIRED,
    };
    out->id = copy_text(arena, job->id);
    out->model = copy_text(arena, job->deployment);
    out->state = states[job->state];
    out->priority = job->priority;
    out->tenant = copy_text(arena, job->tenant);
    out->create_time_ms = job->create_ms;
    out->start_time_ms = job->start_ms;
    out->end_time_ms = job->end_ms;
    out->deadline_time_ms = job->deadline_ms;
    out->counts->total = job->total;
    out->counts->running = job->running;
    out->counts->succeeded = job->succeeded;
    out->counts->failed = job->failed;
    out->counts->cancelled = job->cancelled;
    out->counts->expired = job->expired;
    out->usage->prompt_tokens = (uint32_t)job->prompt_tokens;
    out->usage->completion_tokens = (uint32_t)job->completion_tokens;
    out->usage->cached_tokens = (uint32_t)job->cached_tokens;
    out->version = job->version;
    out->idempotency_key = copy_text(arena, job->idempotency_key);
    out->display_name = copy_text(arena, job->display_name);
    return out;
}

/* ---- one call, one answer; the answers come on the Redis thread ---- */

static void on_job(void *user, const jobs_reply_t *reply)
{
    ask_t *ask = user;
    if (reply->code != JOBS_OK || reply->n_jobs != 1) {
        ask_fail_jobs(ask, reply);
        return;
    }
    arena_t arena = {0};
    ask_reply(ask, front_job(&arena, &reply->jobs[0]));
    arena_release(&arena);
}

static void on_deleted(void *user, const jobs_reply_t *reply)
{
    ask_t *ask = user;
    Shoal__V1__DeleteJobResponse response = SHOAL__V1__DELETE_JOB_RESPONSE__INIT;
    if (reply->code == JOBS_OK)
        ask_reply(ask, &response);
    else
        ask_fail_jobs(ask, reply);
}

typedef status_t (*job_call_fn)(jobs_store_t *store, const char *job, jobs_reply_fn fn, void *user);

static void start_job_call(ask_t *take_ask, const char *id, job_call_fn call, jobs_reply_fn fn)
{
    status_t status = front_check_id("id", id);
    if (status == STATUS_OK)
        status = stores_may_take_jobs(take_ask->shell);
    if (status == STATUS_OK)
        status = call(take_ask->shell->jobs, id, fn, take_ask);
    if (status != STATUS_OK)
        ask_fail(take_ask, status);
}

static void start_get(ask_t *take_ask)
{
    start_job_call(take_ask, ((const Shoal__V1__GetJobRequest *)take_ask->message)->id, jobs_get,
                   on_job);
}

static void start_cancel(ask_t *take_ask)
{
    start_job_call(take_ask, ((const Shoal__V1__CancelJobRequest *)take_ask->message)->id,
                   jobs_cancel, on_job);
}

static void start_delete(ask_t *take_ask)
{
    start_job_call(take_ask, ((const Shoal__V1__DeleteJobRequest *)take_ask->message)->id,
                   jobs_delete, on_deleted);
}

static uint32_t page_size(const ask_t *ask)
{
    const Shoal__V1__ListJobsRequest *m = (const Shoal__V1__ListJobsRequest *)ask->message;
    return m->page_size ? m->page_size : 100;
}

static void on_list(void *user, const jobs_reply_t *reply)
{
    ask_t *ask = user;
    if (reply->code != JOBS_OK) {
        ask_fail_jobs(ask, reply);
        return;
    }
    arena_t arena = {0};
    char token[24] = "";
    Shoal__V1__ListJobsResponse response = SHOAL__V1__LIST_JOBS_RESPONSE__INIT;
    response.jobs = ARENA_NEW_ARRAY(&arena, Shoal__V1__Job *, reply->n_jobs + 1);
    response.n_jobs = reply->n_jobs;
    for (size_t i = 0; i < reply->n_jobs; i++)
        response.jobs[i] = front_job(&arena, &reply->jobs[i]);
    /* A full page may be the last one; the next is then empty and says so. */
    if (reply->n_jobs && reply->n_jobs == page_size(ask))
        snprintf(token, sizeof token, "%" PRIu64, reply->jobs[reply->n_jobs - 1].sequence);
    response.next_page_token = token;
    ask_reply(ask, &response);
    arena_release(&arena);
}

static void start_list(ask_t *take_ask)
{
    const Shoal__V1__ListJobsRequest *m = (const Shoal__V1__ListJobsRequest *)take_ask->message;
    uint64_t before = 0;
    status_t status = stores_may_take_jobs(take_ask->shell);
    size_t n = strlen(m->page_token);
    if (status != STATUS_OK)
        ; /* named already */
    else if (m->page_size > 1000)
        status = fail(STATUS_INVALID, "page_size: %u is not 1 to 1,000", m->page_size);
    else if (n > 19 || strspn(m->page_token, "0123456789") != n)
        status = fail(STATUS_INVALID, "page_token: \"%.40s\" is not one that List gave",
                      m->page_token);
    else
        before = strtoull(m->page_token, NULL, 10);
    if (status == STATUS_OK)
        status = jobs_list(take_ask->shell->jobs, before, page_size(take_ask), on_list, take_ask);
    if (status != STATUS_OK)
        ask_fail(take_ask, status);
}

const front_method_t front_jobs_methods[] = {
    {"/shoal.v1.Jobs/Create", RPC_UNARY, &shoal__v1__create_job_request__descriptor, front_create,
     NULL, NULL},
    {"/shoal.v1.Jobs/Get", RPC_UNARY, &shoal__v1__get_job_request__descriptor, start_get, NULL,
     NULL},
    {"/shoal.v1.Jobs/List", RPC_UNARY, &shoal__v1__list_jobs_request__descriptor, start_list, NULL,
     NULL},
    {"/shoal.v1.Jobs/Cancel", RPC_UNARY, &shoal__v1__cancel_job_request__descriptor, start_cancel,
     NULL, NULL},
    {"/shoal.v1.Jobs/Delete", RPC_UNARY, &shoal__v1__delete_job_request__descriptor, start_delete,
     NULL, NULL},
    {"/shoal.v1.Jobs/Watch", RPC_SERVER_STREAM, &shoal__v1__watch_job_request__descriptor,
     front_start_watch, front_watch_writable, front_watch_ended},
    {"/shoal.v1.Jobs/StreamResults", RPC_SERVER_STREAM,
     &shoal__v1__stream_results_request__descriptor, front_start_results, front_watch_writable,
     front_watch_ended},
};
const size_t front_n_jobs = sizeof front_jobs_methods / sizeof *front_jobs_methods;
