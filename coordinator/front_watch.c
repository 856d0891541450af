/* Jobs.Watch and Jobs.StreamResults. Everybody who reads a job here shares one look at it: the
 * versions of all jobs that are read are asked of Redis in one call. A job that changes is looked
 * at every LOOK_MS; one that does not is looked at less and less often, and at once when this
 * coordinator commits an item of it. Results are read, by each reader from its own place, only when
 * the job's version says that there may be new ones.
 *
 * What is sent is state: a slow reader of Watch only sees less often, and one of StreamResults gets
 * the next page when its stream has room. Everything belongs to the core thread, but what a page
 * tells while it is being read (see read_t). */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/front_state.h"

enum {
    TICK_MS = 50,
    LOOK_MS = 200,       /* between looks at a job that changed at the last one */
    LOOK_MAX_MS = 1600,  /* doubled up to this while it does not */
    LOOK_JOBS_MAX = 1000, /* in one call */
    PAGE_RECORDS = 100,
    SILENT_MS_MAX = 30000, /* a store that is away for longer ends a stream as unavailable */
};

typedef struct watched watched_t;
typedef struct watch watch_t;

/* One job that is read. */
struct watched {
    char id[CORE_ID_SIZE];
    uint64_t version; /* 0: not known yet */
    jobs_state_t state;
    buffer_t snapshot; /* packed shoal.v1.Job of that version */
    uint64_t look_ms, look_at_ms;
    watch_t *watches;
};

/* What came of reading one page; written on the Redis thread while `reading`, then posted. */
typedef struct {
    jobs_code_t code;
    status_t status; /* of sending; STATUS_EXHAUSTED: the stream has no room now */
    char text[STATUS_TEXT_MAX];
    size_t n;
    jobs_state_t state;
    uint64_t version, total;
} page_t;

/* One stream. */
struct watch {
    watch_t *next;
    watched_t *job;
    ask_t *ask; /* owned reference; its `state` is this watch */
    bool results, follow;
    uint64_t seen;        /* version, or completion */
    uint64_t answered_ms; /* by the store */
    /* of results: */
    bool reading, gone; /* gone: the call has ended while a page was read */
    uint64_t read_version; /* of the job when the last page was read */
    page_t page;
};

struct front_watches {
    table_t jobs;
    size_t place; /* where the next look goes on */
    bool ticking, looking;
};

static front_watches_t *watches_of(shell_t *shell)
{
    if (!shell->front->watches)
        shell->front->watches = MEM_NEW(front_watches_t);
    return shell->front->watches;
}

/* ---- lives ---- */

static watched_t *find_job(shell_t *shell, const char *id)
{
    return table_get(&watches_of(shell)->jobs, id, strlen(id));
}

static watched_t *make_job(shell_t *shell, const char *id)
{
    watched_t *job = find_job(shell, id);
    if (job)
        return job;
    job = MEM_NEW(watched_t);
    snprintf(job->id, sizeof job->id, "%s", id);
    job->look_ms = LOOK_MS;
    table_put(&watches_of(shell)->jobs, job->id, strlen(job->id), job);
    return job;
}

/* The stream is over; the job too when nobody else reads it. */
static void watch_free(watch_t *take_watch)
{
    watched_t *job = take_watch->job;
    watch_t **at = &job->watches;
    while (*at != take_watch)
        at = &(*at)->next;
    *at = take_watch->next;
    if (!job->watches) {
        table_remove(&watches_of(take_watch->ask->shell)->jobs, job->id, strlen(job->id));
        buffer_release(&job->snapshot);
        free(job);
    }
    take_watch->ask->state = NULL;
    ask_unref(take_watch->ask);
    free(take_watch);
}

static void watch_fail(watch_t *take_watch, status_t status)
{
    rpc_call_finish(take_watch->ask->call, status, status_text(), NULL, 0);
    watch_free(take_watch);
}

static void watch_end(watch_t *take_watch)
{
    rpc_call_finish(take_watch->ask->call, STATUS_OK, NULL, NULL, 0);
    watch_free(take_watch);
}

static status_t code_status(jobs_code_t code, const char *text)
{
    jobs_reply_t reply = {.code = code, .message = text};
    return front_jobs_status(&reply);
}

/* ---- results ---- */

static status_t send_result(ask_t *ask, const jobs_result_t *result)
{
    ProtobufCMessage *message = NULL;
    Shoal__V1__ItemResult none = SHOAL__V1__ITEM_RESULT__INIT, *r = &none;
    static char cancelled[] = "cancelled", expired[] = "expired";
    arena_t arena = {0};
    request_t request = {0};
    if (result->end == JOBS_END_OK || result->end == JOBS_END_ERROR) {
        if (rpc_unpack(&shoal__v1__item_result__descriptor, result->record, result->record_bytes,
                       NULL, &message) != STATUS_OK)
            return fail(STATUS_INTERNAL, "item %" PRIu64 ": its record is damaged", result->index);
        r = (Shoal__V1__ItemResult *)message;
    } else {
        none.status = result->end == JOBS_END_EXPIRED ? expired : cancelled;
        none.index = result->index;
        if (request_from_line(result->body, result->body_bytes, &arena, &request) == STATUS_OK &&
            request.custom_id)
            none.custom_id = arena_strndup(&arena, request.custom_id, strlen(request.custom_id));
    }
    r->completion = result->completion;
    r->attempts = (uint32_t)result->attempts;
    status_t status = rpc_call_send_message(ask->call, r);
    request_release(&request);
    arena_release(&arena);
    rpc_message_free(message);
    return status;
}

static void read_page(shell_t *shell, watch_t *watch);

static void page_read(shell_t *shell, void *take_data)
{
    watch_t *watch = take_data;
    const page_t *page = &watch->page;
    watch->reading = false;
    if (watch->gone || !atomic_load(&shell->running)) {
        watch_free(watch);
        return;
    }
    if (page->code == JOBS_UNREACHABLE && clock_ms() < watch->answered_ms + SILENT_MS_MAX) {
        watch->read_version = 0; /* read again when the store answers looks */
        return;
    }
    if (page->code != JOBS_OK) {
        watch_fail(watch, code_status(page->code, page->text));
        return;
    }
    watch->answered_ms = clock_ms();
    if (page->status == STATUS_EXHAUSTED) { /* front_watch_writable goes on */
        if (rpc_call_writable(watch->ask->call))
            read_page(shell, watch);
        return;
    }
    if (page->status != STATUS_OK) {
        if (page->status != STATUS_CANCELLED) /* else the end of the call is on its way */
            watch_fail(watch, fail(page->status, "%s", page->text));
        return;
    }
    watch->read_version = page->version;
    bool job_ended = page->state >= JOBS_STATE_SUCCEEDED;
    if ((job_ended && watch->seen >= page->total) ||
        (!watch->follow && !job_ended && page->n == 0))
        watch_end(watch);
    else if (page->n || watch->job->version > watch->read_version)
        read_page(shell, watch);
}

static void on_results(void *user, const jobs_reply_t *reply)
{
    watch_t *watch = user;
    page_t *page = &watch->page;
    *page = (page_t){.code = reply->code, .n = reply->n_results};
    snprintf(page->text, sizeof page->text, "%s", reply->message ? reply->message : "");
    if (reply->code == JOBS_OK) {
        page->state = reply->jobs[0].state;
        page->version = reply->jobs[0].version;
        page->total = reply->jobs[0].total;
    }
    for (size_t i = 0; reply->code == JOBS_OK && i < reply->n_results; i++) {
        page->status = send_result(watch->ask, &reply->results[i]);
        if (page->status != STATUS_OK) {
            snprintf(page->text, sizeof page->text, "%s", status_text());
            break;
        }
        watch->seen = reply->results[i].completion;
    }
    shell_post(watch->ask->shell, page_read, watch);
}

static void read_page(shell_t *shell, watch_t *watch)
{
    watch->reading = true;
    status_t status = jobs_results(shell->jobs, watch->job->id, watch->seen, PAGE_RECORDS,
                                   on_results, watch);
    if (status == STATUS_OK)
        return;
    watch->page.code = status == STATUS_INVALID ? JOBS_INVALID : JOBS_UNREACHABLE;
    snprintf(watch->page.text, sizeof watch->page.text, "%s", status_text());
    shell_post(shell, page_read, watch);
}

/* ---- what is new about a job ---- */

static void send_snapshot(watch_t *watch)
{
    const watched_t *job = watch->job;
    if (job->version > watch->seen &&
        rpc_call_send(watch->ask->call, job->snapshot.data, job->snapshot.size) == STATUS_OK)
        watch->seen = job->version;
    /* A job that has ended changes no more; a watcher that has seen it all ends at once. */
    if (job->version && job->state >= JOBS_STATE_SUCCEEDED && watch->seen >= job->version)
        watch_end(watch);
}

static void serve(shell_t *shell, watch_t *watch)
{
    if (!watch->results)
        send_snapshot(watch);
    else if (!watch->reading && watch->job->version > watch->read_version)
        read_page(shell, watch);
}

/* ---- looks ---- */

typedef struct {
    char id[CORE_ID_SIZE];
    jobs_state_t state; /* of changed ones */
    uint64_t version;
    buffer_t snapshot;
    bool changed;
} seen_t;

typedef struct {
    shell_t *shell;
    jobs_code_t code;
    char text[STATUS_TEXT_MAX];
    size_t n;
    seen_t jobs[];
} look_jobs_t;

static void take_seen(shell_t *shell, const look_jobs_t *look, seen_t *seen)
{
    watched_t *job = find_job(shell, seen->id);
    if (!job)
        return;
    uint64_t now = clock_ms();
    if (seen->changed && seen->version > job->version) {
        buffer_release(&job->snapshot);
        job->snapshot = seen->snapshot;
        seen->snapshot = (buffer_t){0};
        job->version = seen->version;
        job->state = seen->state;
    }
    uint64_t slower = job->look_ms * 2 < LOOK_MAX_MS ? job->look_ms * 2 : LOOK_MAX_MS;
    job->look_ms = seen->changed ? LOOK_MS : slower;
    job->look_at_ms = now + job->look_ms;
    bool deleted = seen->changed && seen->state == JOBS_STATE_NONE;
    watch_t *next;
    for (watch_t *watch = job->watches; watch; watch = next) {
        next = watch->next; /* the job goes with its last watch, so it is not touched after that */
        if (look->code == JOBS_OK)
            watch->answered_ms = now;
        bool wait = look->code == JOBS_UNREACHABLE && now < watch->answered_ms + SILENT_MS_MAX;
        if (watch->reading || wait)
            continue;
        if (deleted)
            watch_fail(watch, fail(STATUS_NOT_FOUND, "job %s was deleted or never was", seen->id));
        else if (look->code != JOBS_OK)
            watch_fail(watch, code_status(look->code, look->text));
        else
            serve(shell, watch);
    }
}

static void looked(shell_t *shell, void *take_data)
{
    look_jobs_t *look = take_data;
    watches_of(shell)->looking = false;
    for (size_t i = 0; i < look->n; i++) {
        if (atomic_load(&shell->running))
            take_seen(shell, look, &look->jobs[i]);
        buffer_release(&look->jobs[i].snapshot);
    }
    free(look);
}

static seen_t *seen_of(look_jobs_t *look, const char *id, size_t *at)
{
    /* Answers come in the order of the question, the unchanged ones left out. */
    while (*at < look->n && strcmp(look->jobs[*at].id, id) != 0)
        ++*at;
    return *at < look->n ? &look->jobs[*at] : NULL;
}

static void on_looked(void *user, const jobs_reply_t *reply)
{
    look_jobs_t *look = user;
    look->code = reply->code;
    snprintf(look->text, sizeof look->text, "%s", reply->message ? reply->message : "");
    size_t at = 0;
    for (size_t i = 0; reply->code == JOBS_OK && i < reply->n_jobs; i++) {
        seen_t *seen = seen_of(look, reply->jobs[i].id, &at);
        if (!seen)
            break;
        seen->changed = true;
        seen->state = reply->jobs[i].state;
        seen->version = reply->jobs[i].version;
        if (seen->state == JOBS_STATE_NONE)
            continue;
        arena_t arena = {0};
        rpc_pack(front_job(&arena, &reply->jobs[i]), &seen->snapshot);
        arena_release(&arena);
    }
    shell_post(look->shell, looked, look);
}

static void look_at_due(shell_t *shell)
{
    front_watches_t *watches = watches_of(shell);
    uint64_t now = clock_ms();
    size_t max = watches->jobs.n < LOOK_JOBS_MAX ? watches->jobs.n : LOOK_JOBS_MAX;
    look_jobs_t *look = mem_new(1, sizeof *look + max * sizeof look->jobs[0]);
    arena_t arena = {0};
    jobs_seen_t *ask = ARENA_NEW_ARRAY(&arena, jobs_seen_t, max + 1);
    look->shell = shell;
    for (size_t i = 0; i < watches->jobs.n && look->n < max; i++) {
        const watched_t *job = table_next(&watches->jobs, &watches->place);
        if (!job) { /* around */
            watches->place = 0;
            job = table_next(&watches->jobs, &watches->place);
        }
        if (!job || job->look_at_ms > now)
            continue;
        memcpy(look->jobs[look->n].id, job->id, sizeof job->id);
        ask[look->n++] = (jobs_seen_t){job->id, job->version};
    }
    status_t status = STATUS_OK;
    watches->looking = look->n > 0;
    if (look->n)
        status = jobs_poll(shell->jobs, look->n, ask, on_looked, look);
    if (status != STATUS_OK) {
        jobs_reply_t reply = {.code = status == STATUS_INVALID ? JOBS_INVALID : JOBS_UNREACHABLE,
                              .message = status_text()};
        on_looked(look, &reply);
    } else if (!look->n) {
        free(look);
    }
    arena_release(&arena);
}

static void tick(shell_t *shell, void *take_data)
{
    (void)take_data;
    front_watches_t *watches = watches_of(shell);
    watches->ticking = watches->jobs.n > 0 && atomic_load(&shell->running);
    if (!watches->ticking)
        return;
    if (!watches->looking)
        look_at_due(shell);
    shell_post_at(shell, clock_ms() + TICK_MS, tick, NULL);
}

static void look_soon(shell_t *shell, watched_t *job)
{
    job->look_ms = LOOK_MS;
    job->look_at_ms = 0;
    if (watches_of(shell)->ticking)
        return;
    watches_of(shell)->ticking = true;
    tick(shell, NULL);
}

void front_job_changed(shell_t *shell, const char *id)
{
    watched_t *job = shell->front->watches ? find_job(shell, id) : NULL;
    if (job)
        job->look_at_ms = 0;
}

/* ---- calls ---- */

static void start(ask_t *take_ask, const char *id, watch_t with)
{
    shell_t *shell = take_ask->shell;
    status_t status = front_check_id("id", id);
    if (status == STATUS_OK)
        status = stores_may_take_jobs(shell);
    if (status != STATUS_OK) {
        ask_fail(take_ask, status);
        return;
    }
    if (atomic_load(&take_ask->ended)) { /* its end has been told, or will be while state is NULL */
        ask_unref(take_ask);
        return;
    }
    watch_t *watch = MEM_NEW(watch_t);
    *watch = with;
    watch->ask = take_ask;
    watch->answered_ms = clock_ms();
    watch->job = make_job(shell, id);
    watch->next = watch->job->watches;
    watch->job->watches = watch;
    take_ask->state = watch;
    look_soon(shell, watch->job);
    if (watch->results)
        read_page(shell, watch);
    else
        send_snapshot(watch);
}

void front_start_watch(ask_t *take_ask)
{
    const Shoal__V1__WatchJobRequest *m = (const Shoal__V1__WatchJobRequest *)take_ask->message;
    start(take_ask, m->id, (watch_t){.seen = m->after_version});
}

void front_start_results(ask_t *take_ask)
{
    const Shoal__V1__StreamResultsRequest *m =
        (const Shoal__V1__StreamResultsRequest *)take_ask->message;
    start(take_ask, m->id,
          (watch_t){.results = true, .seen = m->after_completion, .follow = m->follow});
}

void front_watch_writable(ask_t *ask)
{
    watch_t *watch = ask->state;
    if (!watch)
        return;
    if (!watch->results)
        send_snapshot(watch);
    else if (!watch->reading)
        read_page(ask->shell, watch);
}

void front_watch_ended(ask_t *ask)
{
    watch_t *watch = ask->state;
    if (!watch)
        return;
    if (watch->reading)
        watch->gone = true;
    else
        watch_free(watch);
}

void front_watches_release(front_watches_t *take_watches)
{
    if (!take_watches)
        return;
    CHECK(take_watches->jobs.n == 0);
    table_release(&take_watches->jobs);
    free(take_watches);
}
