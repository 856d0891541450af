/* See job_view.h. */
#include "cli/job_view.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/command.h"
#include "cli/output.h"
#include "common/base/clock.h"
#include "common/net/rpc_message.h"

static const char *state_name(Shoal__V1__Job__State state)
{
    switch (state) {
    case SHOAL__V1__JOB__STATE__QUEUED: return "queued";
    case SHOAL__V1__JOB__STATE__RUNNING: return "running";
    case SHOAL__V1__JOB__STATE__SUCCEEDED: return "succeeded";
    case SHOAL__V1__JOB__STATE__CANCELLED: return "cancelled";
    case SHOAL__V1__JOB__STATE__EXPIRED: return "expired";
    default: return "unknown";
    }
}

static bool has_ended(const Shoal__V1__Job *job)
{
    return job->state == SHOAL__V1__JOB__STATE__SUCCEEDED ||
           job->state == SHOAL__V1__JOB__STATE__CANCELLED || job->state == SHOAL__V1__JOB__STATE__EXPIRED;
}

uint64_t job_n_done(const Shoal__V1__Job *job)
{
    const Shoal__V1__Counts *counts = job->counts;
    return counts ? counts->succeeded + counts->failed + counts->cancelled + counts->expired : 0;
}

json_t *job_json(const Shoal__V1__Job *job)
{
    static const Shoal__V1__Counts no_counts = SHOAL__V1__COUNTS__INIT;
    static const Shoal__V1__Usage no_usage = SHOAL__V1__USAGE__INIT;
    const Shoal__V1__Counts *counts = job->counts ? job->counts : &no_counts;
    const Shoal__V1__Usage *usage = job->usage ? job->usage : &no_usage;
    return json_pack(
        "{s:s,s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:s}", "id", job->id,
        "state", state_name(job->state), "model", job->model, "priority", (json_int_t)job->priority,
        "total", (json_int_t)counts->total, "running", (json_int_t)counts->running, "succeeded",
        (json_int_t)counts->succeeded, "failed", (json_int_t)counts->failed, "cancelled",
        (json_int_t)counts->cancelled, "expired", (json_int_t)counts->expired, "prompt_tokens",
        (json_int_t)usage->prompt_tokens, "completion_tokens", (json_int_t)usage->completion_tokens,
        "cached_tokens", (json_int_t)usage->cached_tokens, "create_time_ms",
        (json_int_t)job->create_time_ms, "start_time_ms", (json_int_t)job->start_time_ms, "end_time_ms",
        (json_int_t)job->end_time_ms, "deadline_time_ms", (json_int_t)job->deadline_time_ms,
        "idempotency_key", job->idempotency_key);
}

json_t *result_json(const Shoal__V1__ItemResult *result)
{
    static const char *const reasons[] = {"", "stop", "length", "cancelled", "error"};
    json_t *object = json_pack("{s:I,s:s,s:s}", "index", (json_int_t)result->index, "custom_id",
                               result->custom_id, "status", result->status);
    if (result->error != NULL || strcmp(result->status, "ok") != 0) {
        /* What ended with its job carries no words of its own: the status says why. */
        const char *message = strcmp(result->status, "cancelled") == 0 ? "the job was cancelled"
                              : strcmp(result->status, "expired") == 0 ? "the job's deadline passed"
                                                                       : "no reason was given";
        json_object_set_new(object, "error",
                            json_pack("{s:s,s:s}", "code",
                                      result->error ? result->error->code : result->status, "message",
                                      result->error ? result->error->message : message));
        return object;
    }
    json_t *ids = json_array();
    for (size_t i = 0; i < result->n_ids; i++)
        json_array_append_new(ids, json_integer(result->ids[i]));
    json_object_set_new(object, "text", json_string(result->text));
    json_object_set_new(object, "ids", ids);
    int reason = (int)result->finish_reason;
    json_object_set_new(object, "finish_reason", json_string(reason >= 0 && reason < 5 ? reasons[reason] : ""));
    if (result->usage != NULL)
        json_object_set_new(object, "usage",
                            json_pack("{s:I,s:I,s:I}", "prompt_tokens",
                                      (json_int_t)result->usage->prompt_tokens, "completion_tokens",
                                      (json_int_t)result->usage->completion_tokens, "cached_tokens",
                                      (json_int_t)result->usage->cached_tokens));
    json_object_set_new(object, "seed", output_seed(result->seed));
    json_object_set_new(object, "text_identity", json_string(result->text_identity));
    return object;
}

void job_print(const Shoal__V1__Job *job, bool json)
{
    static const char *const columns[] = {"id", "state", "model", "total", "running", "succeeded",
                                          "failed", "cancelled", "expired", "completion_tokens"};
    json_t *object = job_json(job);
    json_t *rows = json_pack("[O]", object);
    if (json)
        output_json(object, false);
    else
        output_table(columns, sizeof columns / sizeof *columns, rows);
    json_decref(rows);
    json_decref(object);
}

/* What is drawn over itself in a terminal, a line at each tenth elsewhere. */
typedef struct {
    uint64_t began_ms;
    uint64_t tokens_before; /* those of the first look, which took none of our time */
    int tenth;              /* the last that was drawn; -1 before the first look */
} progress_t;

static void draw_progress(const Shoal__V1__Job *job, progress_t *progress)
{
    if (job->counts == NULL || job->counts->total == 0)
        return;
    uint64_t done = job_n_done(job), total = job->counts->total;
    uint64_t tokens = job->usage ? job->usage->completion_tokens : 0;
    if (progress->tenth < 0)
        progress->tokens_before = tokens;
    bool terminal = isatty(STDERR_FILENO);
    int now = (int)(done * 10 / total);
    if (!terminal && now == progress->tenth)
        return;
    progress->tenth = now;
    char bar[31], rate[32] = "";
    for (int i = 0; i < 30; i++)
        bar[i] = (uint64_t)i * total < done * 30 ? '#' : '.';
    bar[30] = 0;
    double seconds = (double)(clock_ms() - progress->began_ms) / 1000;
    if (seconds > 0.2 && tokens > progress->tokens_before)
        snprintf(rate, sizeof rate, "  %.0f tok/s", (double)(tokens - progress->tokens_before) / seconds);
    fprintf(stderr, "%s[%s] %llu/%llu items  %llu tokens%s%s", terminal ? "\r" : "", bar,
            (unsigned long long)done, (unsigned long long)total, (unsigned long long)tokens, rate,
            terminal ? "  " : "\n");
    if (terminal && has_ended(job))
        fputc('\n', stderr);
}

status_t job_watch(client_t *client, const char *id, Shoal__V1__Job **own_out)
{
    progress_t progress = {.began_ms = clock_ms(), .tenth = -1};
    uint64_t version = 0;
    char *name = (char *)(uintptr_t)id;
    for (;;) {
        Shoal__V1__WatchJobRequest request = SHOAL__V1__WATCH_JOB_REQUEST__INIT;
        request.id = name;
        request.after_version = version;
        rpc_stream_t *stream;
        TRY(client_stream(client, "/shoal.v1.Jobs/Watch", &request, &stream));
        status_t status;
        Shoal__V1__Job *job = NULL;
        while ((status = client_read(stream, &shoal__v1__job__descriptor, &job)) == STATUS_OK &&
               job != NULL) {
            draw_progress(job, &progress);
            version = job->version;
            if (has_ended(job)) {
                rpc_stream_close(stream);
                *own_out = job;
                return STATUS_OK;
            }
            rpc_message_free(job);
        }
        rpc_stream_close(stream);
        if (status != STATUS_OK && status != STATUS_UNREACHABLE)
            return status;
        client_next(client);
    }
}

status_t job_results(client_t *client, const char *id, bool follow, job_result_fn fn, void *arg)
{
    uint64_t completion = 0;
    for (;;) {
        Shoal__V1__StreamResultsRequest request = SHOAL__V1__STREAM_RESULTS_REQUEST__INIT;
        request.id = (char *)(uintptr_t)id;
        request.after_completion = completion;
        request.follow = follow;
        rpc_stream_t *stream;
        TRY(client_stream(client, "/shoal.v1.Jobs/StreamResults", &request, &stream));
        status_t status;
        Shoal__V1__ItemResult *result = NULL;
        while ((status = client_read(stream, &shoal__v1__item_result__descriptor, &result)) == STATUS_OK &&
               result != NULL) {
            completion = result->completion;
            status = fn(arg, result);
            if (status != STATUS_OK)
                break;
        }
        rpc_stream_close(stream);
        if (status != STATUS_UNREACHABLE)
            return status;
        client_next(client);
    }
}

status_t job_verdict(const Shoal__V1__Job *job)
{
    if (job->state == SHOAL__V1__JOB__STATE__SUCCEEDED && (job->counts == NULL || job->counts->failed == 0))
        return STATUS_OK;
    if (job->state == SHOAL__V1__JOB__STATE__SUCCEEDED)
        return fail(STATUS_ABORTED, "job %s ended, %llu of its items with an error", job->id,
                    (unsigned long long)job->counts->failed);
    return fail(STATUS_ABORTED, "job %s is %s", job->id, state_name(job->state));
}
