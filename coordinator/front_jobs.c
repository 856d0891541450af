/* shoal.v1.Jobs, apart from intake: what is asked of jobs that exist. Each call is one operation of
 * the job store, or a row of them for the two streams. Watch and StreamResults look again every
 * POLL_MS while there is nothing new; what they send is state, so a slow reader only sees less
 * often. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/front_state.h"

#define POLL_MS 200
#define PAGE_RECORDS 100
#define SILENT_MS_MAX 30000 /* a store that is away for longer ends a stream as unavailable */

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

/* ---- the two streams ---- */

typedef struct {
    ask_t *ask;
    char id[CORE_ID_SIZE];
    uint64_t seen; /* version, or completion */
    bool follow;
    uint64_t answered_ms; /* by the store */
    task_fn look;
    bool again_now; /* a page was full: the next follows at once */
    bool ended;
} watch_t;

static void watch_free(watch_t *take_watch)
{
    ask_unref(take_watch->ask);
    free(take_watch);
}

static void watch_fail(watch_t *take_watch, status_t status)
{
    ask_ref(take_watch->ask);
    ask_fail(take_watch->ask, status);
    watch_free(take_watch);
}

/* Later, on the core thread, because timers are its own. */
static void schedule(shell_t *shell, void *take_data)
{
    watch_t *watch = take_data;
    if (watch->ended || atomic_load(&watch->ask->ended) || !atomic_load(&shell->running))
        watch_free(watch);
    else if (watch->again_now && rpc_call_writable(watch->ask->call))
        watch->look(shell, watch);
    else
        shell_post_at(shell, clock_ms() + POLL_MS, watch->look, watch);
}

/* What the store's answer means for a stream: true when it holds something to read. */
static bool take_answer(watch_t *watch, const jobs_reply_t *reply)
{
    watch->again_now = false;
    if (reply->code == JOBS_OK) {
        watch->answered_ms = clock_ms();
        return true;
    }
    if (reply->code == JOBS_UNREACHABLE && clock_ms() < watch->answered_ms + SILENT_MS_MAX) {
        shell_post(watch->ask->shell, schedule, watch);
        return false;
    }
    watch_fail(watch, front_jobs_status(reply));
    return false;
}

static void finish(watch_t *watch)
{
    watch->ended = true;
    rpc_call_finish(watch->ask->call, STATUS_OK, NULL, NULL, 0);
}

static void on_watched(void *user, const jobs_reply_t *reply)
{
    watch_t *watch = user;
    if (!take_answer(watch, reply))
        return;
    const jobs_job_t *job = &reply->jobs[0];
    if (job->version > watch->seen) {
        arena_t arena = {0};
        status_t status = rpc_call_send_message(watch->ask->call, front_job(&arena, job));
        arena_release(&arena);
        if (status == STATUS_OK)
            watch->seen = job->version;
    }
    /* A job that has ended changes no more; a watcher that has seen it all ends at once. */
    if (job->state >= JOBS_STATE_SUCCEEDED && watch->seen >= job->version)
        finish(watch);
    shell_post(watch->ask->shell, schedule, watch);
}

static void look_watch(shell_t *shell, void *take_data)
{
    watch_t *watch = take_data;
    if (!atomic_load(&shell->running) || atomic_load(&watch->ask->ended)) {
        watch_free(watch);
        return;
    }
    status_t status = jobs_get(shell->jobs, watch->id, on_watched, watch);
    if (status != STATUS_OK)
        watch_fail(watch, status);
}

static status_t send_result(const watch_t *watch, const jobs_result_t *result)
{
    ProtobufCMessage *message = NULL;
    Shoal__V1__ItemResult none = SHOAL__V1__ITEM_RESULT__INIT, *r = &none;
    static char cancelled[] = "cancelled", expired[] = "expired";
    arena_t arena = {0};
    request_t request = {0};
    if (result->end == JOBS_END_OK || result->end == JOBS_END_ERROR) {
        TRY(rpc_unpack(&shoal__v1__item_result__descriptor, result->record, result->record_bytes,
                       NULL, &message));
        r = (Shoal__V1__ItemResult *)message;
    } else {
        none.status = result->end == JOBS_END_EXPIRED ? expired : cancelled;
        none.index = result->index;
        if (request_from_line(result->body, result->body_bytes, &arena, &request) == STATUS_OK &&
            request.custom_id)
            none.custom_id = copy_text(&arena, request.custom_id);
    }
    r->completion = result->completion;
    r->attempts = (uint32_t)result->attempts;
    status_t status = rpc_call_send_message(watch->ask->call, r);
    request_release(&request);
    arena_release(&arena);
    rpc_message_free(message);
    return status;
}

static void on_results(void *user, const jobs_reply_t *reply)
{
    watch_t *watch = user;
    if (!take_answer(watch, reply))
        return;
    bool all = true;
    for (size_t i = 0; i < reply->n_results && all; i++) {
        status_t status = send_result(watch, &reply->results[i]);
        if (status == STATUS_INVALID) {
            watch_fail(watch, fail(STATUS_INTERNAL, "item %" PRIu64 " of job %s: its record is "
                                   "damaged: %s", reply->results[i].index, watch->id,
                                   status_text()));
            return;
        }
        all = status == STATUS_OK;
        if (all)
            watch->seen = reply->results[i].completion;
    }
    const jobs_job_t *job = &reply->jobs[0];
    bool job_ended = job->state >= JOBS_STATE_SUCCEEDED;
    if (all && ((job_ended && watch->seen >= job->total) ||
                (!watch->follow && !job_ended && !reply->n_results)))
        finish(watch);
    watch->again_now = all && reply->n_results > 0;
    shell_post(watch->ask->shell, schedule, watch);
}

static void look_results(shell_t *shell, void *take_data)
{
    watch_t *watch = take_data;
    if (!atomic_load(&shell->running) || atomic_load(&watch->ask->ended)) {
        watch_free(watch);
        return;
    }
    status_t status =
        jobs_results(shell->jobs, watch->id, watch->seen, PAGE_RECORDS, on_results, watch);
    if (status != STATUS_OK)
        watch_fail(watch, status);
}

static void start_stream(ask_t *take_ask, const char *id, uint64_t seen, bool follow, task_fn look)
{
    status_t status = front_check_id("id", id);
    if (status == STATUS_OK)
        status = stores_may_take_jobs(take_ask->shell);
    if (status != STATUS_OK) {
        ask_fail(take_ask, status);
        return;
    }
    watch_t *watch = MEM_NEW(watch_t);
    watch->ask = take_ask;
    watch->seen = seen;
    watch->follow = follow;
    watch->look = look;
    watch->answered_ms = clock_ms();
    snprintf(watch->id, sizeof watch->id, "%s", id);
    look(take_ask->shell, watch);
}

static void start_watch(ask_t *take_ask)
{
    const Shoal__V1__WatchJobRequest *m = (const Shoal__V1__WatchJobRequest *)take_ask->message;
    start_stream(take_ask, m->id, m->after_version, true, look_watch);
}

static void start_results(ask_t *take_ask)
{
    const Shoal__V1__StreamResultsRequest *m =
        (const Shoal__V1__StreamResultsRequest *)take_ask->message;
    start_stream(take_ask, m->id, m->after_completion, m->follow, look_results);
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
     start_watch, NULL, NULL},
    {"/shoal.v1.Jobs/StreamResults", RPC_SERVER_STREAM,
     &shoal__v1__stream_results_request__descriptor, start_results, NULL, NULL},
};
const size_t front_n_jobs = sizeof front_jobs_methods / sizeof *front_jobs_methods;
