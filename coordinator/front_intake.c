/* Intake of jobs: Create (one message) and Submit (a stream of chunks) share one way. The lines of
 * a message are checked on the work team, put into the store in pieces, and when all are there the
 * job is submitted. A wrong line refuses the whole submission and names itself; nothing is visible
 * before the end, and an upload whose client went away is dropped. Every step may be repeated, so
 * an answer that was lost costs a repeat, never a second job. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/digest.h"
#include "coordinator/front_state.h"

#define RETRY_MS 300
#define RETRIES_MAX 40 /* 12 s, then the client is told that jobs are unavailable */

typedef struct {
    uint64_t first;
    size_t n;
    uint64_t reserve;
    size_t at; /* in bodies */
} piece_t;

typedef struct {
    shell_t *shell;
    rpc_call_t *call;
    atomic_bool ended; /* the client is gone */
    bool stream;
    bool finished;   /* answered */
    bool opened;     /* the header was taken */
    bool busy;       /* a message is under way between the threads */
    bool half_closed;
    char upload[CORE_ID_SIZE], job[CORE_ID_SIZE];
    char deployment[CORE_NAME_SIZE];
    char *tenant, *display_name, *key;
    int32_t priority;
    uint64_t deadline_ms, seed;

    uint64_t total, tokens; /* items and their expected tokens so far */
    digest_t *digest;       /* of deployment and lines, for the idempotency key */
    char hash[DIGEST_HEX_SIZE];
    table_t names;          /* custom ids so far */
    arena_t names_arena;

    /* The message under way. */
    ProtobufCMessage *message;
    Shoal__V1__Item **items;
    size_t n_items;
    jobs_body_t *bodies;
    piece_t *pieces;
    size_t n_pieces, next_piece;
    unsigned retries;
    status_t status;
    char text[STATUS_TEXT_MAX];
    jobs_code_t code;
} intake_t;

/* ---- life ---- */

static intake_t *intake_new(shell_t *shell, rpc_call_t *call, bool stream)
{
    intake_t *in = MEM_NEW(intake_t);
    in->shell = shell;
    in->call = call;
    in->stream = stream;
    rpc_call_ref(call);
    shell_random_id(in->upload);
    shell_random_id(in->job);
    in->seed = shell_random_seed();
    in->digest = digest_start();
    return in;
}

static void message_free(intake_t *in)
{
    rpc_message_free(in->message);
    free(in->bodies);
    free(in->pieces);
    in->message = NULL;
    in->bodies = NULL;
    in->pieces = NULL;
    in->n_pieces = in->next_piece = 0;
}

static void intake_free(intake_t *take_in)
{
    message_free(take_in);
    if (take_in->digest)
        digest_drop(take_in->digest);
    table_release(&take_in->names);
    arena_release(&take_in->names_arena);
    free(take_in->tenant);
    free(take_in->display_name);
    free(take_in->key);
    rpc_call_unref(take_in->call);
    free(take_in);
}

/* A stream's intake lives until its call has ended; Create's until it is answered. */
static void release_if_done(intake_t *in)
{
    if (in->finished && !in->busy && (!in->stream || atomic_load(&in->ended)))
        intake_free(in);
}

static void on_dropped(void *user, const jobs_reply_t *reply)
{
    (void)user;
    (void)reply; /* what stays is forgotten by its time to live */
}

/* Refuses the submission. */
static void refuse(intake_t *in, status_t status)
{
    rpc_metadata_t retry = {"retry-after-ms", "1000"};
    if (!in->finished) {
        rpc_call_finish(in->call, status, status_text(), &retry, status == STATUS_EXHAUSTED);
        if (in->total && atomic_load(&in->shell->running) &&
            jobs_drop(in->shell->jobs, in->upload, on_dropped, NULL) != STATUS_OK)
            log_debug("jobs: an upload was left to its time to live");
    }
    in->finished = true;
    in->busy = false;
    release_if_done(in);
}

/* ---- the header ---- */

status_t front_check_header(const Shoal__V1__JobHeader *header)
{
    TRY(request_check_text("tenant", header->tenant, REQUEST_NAME_BYTES_MAX));
    TRY(request_check_text("display_name", header->display_name, 256));
    TRY(request_check_text("idempotency_key", header->idempotency_key, 256));
    if (header->priority < -100 || header->priority > 100)
        return fail(STATUS_INVALID, "priority: %d is not from -100 to 100", header->priority);
    if (header->deadline_ms > (uint64_t)366 * 24 * 3600 * 1000)
        return fail(STATUS_INVALID, "deadline_ms: %" PRIu64 " is over a year", header->deadline_ms);
    return STATUS_OK;
}

static status_t take_header(intake_t *in, const Shoal__V1__JobHeader *header)
{
    core_deployment_view_t view;
    const model_entry_t *entry;
    if (!header)
        return fail(STATUS_INVALID, "header: it is missing");
    TRY(front_check_header(header));
    TRY(stores_may_take_jobs(in->shell));
    TRY(front_find(in->shell, header->model, &view, &entry));
    snprintf(in->deployment, sizeof in->deployment, "%s", view.name);
    in->tenant = mem_strdup(header->tenant);
    in->display_name = mem_strdup(header->display_name);
    in->key = mem_strdup(header->idempotency_key);
    in->priority = header->priority;
    in->deadline_ms = header->deadline_ms;
    in->opened = true;
    digest_add_field(in->digest, in->deployment, strlen(in->deployment));
    return STATUS_OK;
}

/* ---- lines, on the work team ---- */

static status_t check_name(intake_t *in, const char *custom_id)
{
    if (!custom_id || !custom_id[0])
        return STATUS_OK;
    size_t n = strlen(custom_id);
    if (table_get(&in->names, custom_id, n))
        return fail(STATUS_INVALID, "custom_id \"%.64s\" stands on an earlier line", custom_id);
    char *copy = arena_strndup(&in->names_arena, custom_id, n);
    table_put(&in->names, copy, n, copy);
    return STATUS_OK;
}

/* Checks one line; says what it will take. */
static status_t check_line(intake_t *in, const ProtobufCBinaryData *line, uint64_t *reserve_out)
{
    arena_t arena = {0};
    request_t request = {0};
    status_t status = request_from_line(line->data, line->len, &arena, &request);
    if (status == STATUS_OK && request.sampling.choices > 1)
        status = fail(STATUS_INVALID, "choices: %u; an item of a job has one",
                      request.sampling.choices);
    if (status == STATUS_OK && request.model && request.model[0] &&
        strcmp(request.model, in->deployment) != 0)
        status = fail(STATUS_INVALID, "model: \"%.64s\"; the job runs on \"%s\"", request.model,
                      in->deployment);
    if (status == STATUS_OK)
        status = check_name(in, request.custom_id);
    if (status == STATUS_OK) {
        uint64_t tokens = request.sampling.has_max_tokens_case ==
                                  SHOAL__V1__SAMPLING__HAS_MAX_TOKENS__NOT_SET
                              ? REQUEST_MAX_TOKENS_DEFAULT
                              : request.sampling.max_tokens;
        in->tokens += tokens + line->len / 4;
        /* The line, its result (a token is about 4 bytes of text and 2 of id), and what Redis
         * itself needs for them. */
        *reserve_out = line->len + tokens * 6 + 512;
        request_release(&request);
    }
    arena_release(&arena);
    return status;
}

static status_t check_lines(intake_t *in)
{
    if (in->n_items > JOBS_ITEMS_MAX - in->total)
        return fail(STATUS_INVALID, "items: a job has at most %d", JOBS_ITEMS_MAX);
    in->bodies = MEM_NEW_ARRAY(jobs_body_t, in->n_items + 1);
    in->pieces = MEM_NEW_ARRAY(piece_t, in->n_items + 1);
    size_t bytes = 0;
    piece_t *piece = NULL;
    for (size_t i = 0; i < in->n_items; i++) {
        const Shoal__V1__Item *item = in->items[i];
        uint64_t line = in->total + 1, reserve;
        if (item->input_case != SHOAL__V1__ITEM__INPUT_BODY_JSON)
            return fail(STATUS_INVALID, "line %" PRIu64 ": body_json is missing", line);
        const ProtobufCBinaryData *body = &item->body_json;
        if (body->len > JOBS_CHUNK_BYTES_MAX)
            return fail(STATUS_INVALID, "line %" PRIu64 ": %zu bytes; at most %d are taken", line,
                        body->len, JOBS_CHUNK_BYTES_MAX);
        status_t status = check_line(in, body, &reserve);
        if (status != STATUS_OK)
            return fail_in(status, "line %" PRIu64, line);
        digest_add_field(in->digest, body->data, body->len);
        if (!piece || piece->n == JOBS_CHUNK_ITEMS_MAX ||
            bytes + body->len > JOBS_CHUNK_BYTES_MAX) {
            piece = &in->pieces[in->n_pieces++];
            *piece = (piece_t){.first = in->total, .at = i};
            bytes = 0;
        }
        in->bodies[i] = (jobs_body_t){body->data, body->len};
        piece->n++;
        piece->reserve += reserve;
        bytes += body->len;
        in->total++;
    }
    return STATUS_OK;
}

/* ---- puts and the submission, on the core thread ---- */

static void go_on(shell_t *shell, void *take_data);

static void on_checked(shell_t *shell, void *take_data)
{
    intake_t *in = take_data;
    if (in->status != STATUS_OK)
        refuse(in, fail(in->status, "%s", in->text));
    else
        go_on(shell, in);
}

static void do_check(shell_t *shell, void *take_data)
{
    intake_t *in = take_data;
    in->status = check_lines(in);
    if (in->status != STATUS_OK)
        snprintf(in->text, sizeof in->text, "%s", status_text());
    shell_post(shell, on_checked, in);
}

static void on_put_task(shell_t *shell, void *take_data)
{
    intake_t *in = take_data;
    if (in->code == JOBS_OK) {
        in->next_piece++;
        in->retries = 0;
        go_on(shell, in);
    } else if (in->code == JOBS_UNREACHABLE && in->retries++ < RETRIES_MAX &&
               atomic_load(&shell->running)) {
        shell_post_at(shell, clock_ms() + RETRY_MS, go_on, in);
    } else {
        jobs_reply_t reply = {.code = in->code, .message = in->text};
        refuse(in, front_jobs_status(&reply));
    }
}

static void on_put(void *user, const jobs_reply_t *reply)
{
    intake_t *in = user;
    in->code = reply->code;
    snprintf(in->text, sizeof in->text, "%s", reply->message);
    shell_post(in->shell, on_put_task, in);
}

static void on_submitted_task(shell_t *shell, void *take_data)
{
    intake_t *in = take_data;
    if (in->code == JOBS_UNREACHABLE && in->retries++ < RETRIES_MAX &&
        atomic_load(&shell->running)) {
        shell_post_at(shell, clock_ms() + RETRY_MS, go_on, in);
        return;
    }
    if (in->code == JOBS_OK || in->code == JOBS_DUP) {
        in->busy = false;
        shell_event(shell, &(core_event_t){.kind = CORE_EVENT_JOBS_HINT});
        release_if_done(in);
        return;
    }
    jobs_reply_t reply = {.code = in->code, .message = in->text};
    refuse(in, front_jobs_status(&reply));
}

static void on_submitted(void *user, const jobs_reply_t *reply)
{
    intake_t *in = user;
    in->code = reply->code;
    snprintf(in->text, sizeof in->text, "%s", reply->message);
    if (reply->code == JOBS_OK || reply->code == JOBS_DUP) {
        arena_t arena = {0};
        rpc_call_reply_message(in->call, front_job(&arena, &reply->jobs[0]));
        arena_release(&arena);
        in->finished = true;
    }
    shell_post(in->shell, on_submitted_task, in);
}

static status_t submit(intake_t *in)
{
    if (!in->total)
        return fail(STATUS_INVALID, "items: a job has at least one");
    if (in->digest) {
        digest_finish(in->digest, in->hash);
        in->digest = NULL;
    }
    jobs_submit_t submit = {
        .job = in->job,
        .upload = in->upload,
        .total = in->total,
        .deployment = in->deployment,
        .tenant = in->tenant,
        .display_name = in->display_name,
        .idempotency_key = in->key,
        .body_hash = in->hash,
        .priority = in->priority,
        .deadline_ms = in->deadline_ms,
        .seed = in->seed,
        .item_tokens = in->tokens / in->total,
    };
    return jobs_submit(in->shell->jobs, &submit, on_submitted, in);
}

/* The next step: a piece, the next message, or the submission. */
static void go_on(shell_t *shell, void *take_data)
{
    intake_t *in = take_data;
    status_t status = STATUS_OK;
    if (!atomic_load(&shell->running))
        status = fail(STATUS_UNREACHABLE, "the coordinator is ending");
    else if (in->stream && atomic_load(&in->ended))
        status = fail(STATUS_CANCELLED, "the client is gone");
    else if (in->next_piece < in->n_pieces) {
        const piece_t *piece = &in->pieces[in->next_piece];
        status = jobs_put(shell->jobs, in->upload, piece->first, piece->n,
                          in->bodies + piece->at, piece->reserve, on_put, in);
    } else if (in->stream && !in->half_closed) {
        message_free(in);
        in->busy = false;
        rpc_call_read(in->call, 1);
    } else {
        message_free(in);
        status = submit(in);
    }
    if (status != STATUS_OK)
        refuse(in, status);
}

static void take_items(intake_t *in, Shoal__V1__Item **items, size_t n)
{
    in->items = items;
    in->n_items = n;
    shell_work(in->shell, do_check, in);
}

/* ---- Create ---- */

void front_create(ask_t *take_ask)
{
    intake_t *in = intake_new(take_ask->shell, take_ask->call, false);
    in->message = take_ask->message;
    take_ask->message = NULL;
    ask_unref(take_ask);
    const Shoal__V1__CreateJobRequest *m = (const Shoal__V1__CreateJobRequest *)in->message;
    in->busy = true;
    status_t status = take_header(in, m->header);
    if (status == STATUS_OK && m->n_items > JOBS_CHUNK_ITEMS_MAX)
        status = fail(STATUS_INVALID, "items: %zu; Create takes at most %d, Submit any number",
                      m->n_items, JOBS_CHUNK_ITEMS_MAX);
    if (status != STATUS_OK)
        refuse(in, status);
    else
        take_items(in, m->items, m->n_items);
}

/* ---- Submit ---- */

static void take_message(shell_t *shell, void *take_data)
{
    intake_t *in = take_data;
    const Shoal__V1__SubmitJobRequest *m = (const Shoal__V1__SubmitJobRequest *)in->message;
    status_t status = STATUS_OK;
    bool is_open = m->message_case == SHOAL__V1__SUBMIT_JOB_REQUEST__MESSAGE_OPEN;
    if (!atomic_load(&shell->running)) {
        status = fail(STATUS_UNREACHABLE, "the coordinator is not serving; try another one");
    } else if (is_open != !in->opened) {
        status = fail(STATUS_INVALID, "%s", is_open ? "open: it comes once, as the first message"
                                                    : "the first message must be open");
    } else if (is_open) {
        status = take_header(in, m->open);
    } else if (m->message_case != SHOAL__V1__SUBMIT_JOB_REQUEST__MESSAGE_CHUNK) {
        status = fail(STATUS_INVALID, "message: one of open and chunk must be given");
    } else if (m->chunk->n_items > JOBS_CHUNK_ITEMS_MAX) {
        status = fail(STATUS_INVALID, "chunk: %zu items; at most %d go together",
                      m->chunk->n_items, JOBS_CHUNK_ITEMS_MAX);
    } else {
        take_items(in, m->chunk->items, m->chunk->n_items);
        return;
    }
    if (status != STATUS_OK)
        refuse(in, status);
    else
        go_on(shell, in);
}

static void take_half_close(shell_t *shell, void *take_data)
{
    intake_t *in = take_data;
    in->half_closed = true;
    if (in->finished || in->busy)
        return;
    in->busy = true;
    if (!in->opened)
        refuse(in, fail(STATUS_INVALID, "the first message must be open"));
    else
        go_on(shell, in);
}

static void take_end(shell_t *shell, void *take_data)
{
    (void)shell;
    intake_t *in = take_data;
    atomic_store(&in->ended, true);
    if (in->busy)
        return; /* go_on sees it */
    if (!in->finished)
        refuse(in, fail(STATUS_CANCELLED, "the client is gone"));
    else
        release_if_done(in);
}

static void on_open(rpc_call_t *call, void *context)
{
    rpc_call_set_data(call, intake_new(context, call, true));
    rpc_call_read(call, 1);
}

/* With manual_read the next message comes only after go_on has asked for it, so `message` and
 * `busy` belong to this thread until the task is posted. */
static void on_message(rpc_call_t *call, void *context, const uint8_t *bytes, size_t n)
{
    shell_t *shell = context;
    intake_t *in = rpc_call_data(call);
    status_t status = rpc_unpack(&shoal__v1__submit_job_request__descriptor, bytes, n, NULL,
                                 &in->message);
    if (status != STATUS_OK) {
        rpc_call_fail(call, status);
        return;
    }
    in->busy = true;
    shell_post(shell, take_message, in);
}

static void on_half_close(rpc_call_t *call, void *context)
{
    shell_post(context, take_half_close, rpc_call_data(call));
}

static void on_end(rpc_call_t *call, void *context, const rpc_result_t *result)
{
    (void)result;
    shell_post(context, take_end, rpc_call_data(call));
}

rpc_method_t front_submit_method(shell_t *shell)
{
    return (rpc_method_t){
        .name = "/shoal.v1.Jobs/Submit",
        .kind = RPC_CLIENT_STREAM,
        .handlers = {.on_open = on_open,
                     .on_message = on_message,
                     .on_half_close = on_half_close,
                     .on_end = on_end},
        .context = shell,
        .manual_read = true,
    };
}
