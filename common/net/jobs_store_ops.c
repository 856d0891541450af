/* The operations of the job store: each turns its arguments into one FCALL. The mapping is dull on
 * purpose; what is decided, is decided in the library. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/net/jobs_store_internal.h"

typedef struct {
    jobs_store_t *store;
    shape_t shape;
    jobs_code_t instead; /* answered in place of what Redis says, when not JOBS_OK */
    jobs_reply_fn fn;
    void *user;
} op_t;

/* Arguments in the making; everything lives in the arena until the call has been formatted. */
typedef struct {
    arena_t arena;
    const char **args;
    size_t *sizes;
    size_t n, max;
} command_t;

static void add(command_t *command, const void *bytes, size_t n)
{
    CHECK(command->n < command->max);
    command->args[command->n] = bytes;
    command->sizes[command->n++] = n;
}

static void add_text(command_t *command, const char *text)
{
    add(command, text ? text : "", text ? strlen(text) : 0);
}

static void add_number(command_t *command, uint64_t value)
{
    char digits[24];
    int n = snprintf(digits, sizeof digits, "%" PRIu64, value);
    add(command, arena_strndup(&command->arena, digits, (size_t)n), (size_t)n);
}

static void add_process(command_t *command, jobs_process_t process)
{
    char digits[48];
    int n = snprintf(digits, sizeof digits, "%" PRIu64 ".%" PRIu64, process.incarnation,
                     process.revision);
    add(command, arena_strndup(&command->arena, digits, (size_t)n), (size_t)n);
}

/* FCALL name 1 prefix, and room for n_more arguments. */
static command_t command_of(jobs_store_t *store, const char *name, size_t n_more)
{
    command_t command = {.max = 4 + n_more};
    command.args = ARENA_NEW_ARRAY(&command.arena, const char *, command.max);
    command.sizes = ARENA_NEW_ARRAY(&command.arena, size_t, command.max);
    add_text(&command, "FCALL");
    char function[64];
    int n = snprintf(function, sizeof function, JOBS_LIBRARY "_%s", name);
    add(&command, arena_strndup(&command.arena, function, (size_t)n), (size_t)n);
    add_text(&command, "1");
    add_text(&command, store->prefix);
    return command;
}

/* The same, followed by the cluster that the caller believes in. */
static command_t call_of(jobs_store_t *store, const char *name, size_t n_more)
{
    command_t command = command_of(store, name, 2 + n_more);
    pthread_mutex_lock(&store->lock);
    const char *uuid = arena_strndup(&command.arena, store->uuid, strlen(store->uuid));
    uint64_t incarnation = store->incarnation;
    pthread_mutex_unlock(&store->lock);
    add_text(&command, uuid);
    add_number(&command, incarnation);
    return command;
}

static void on_answer(void *user, status_t status, const char *error, const redisReply *answer)
{
    op_t *op = user;
    arena_t arena = {0};
    jobs_reply_t reply = {.message = error};
    char why[200];
    if (status == STATUS_REFUSED) {
        reply.code = jobs_code_of_error(error);
        if (strstr(error, "Function not found"))
            jobs_store_check(op->store); /* someone flushed it: load it for the repeat */
    } else if (status != STATUS_OK) {
        reply.code = JOBS_UNREACHABLE;
    } else if (op->instead != JOBS_OK) {
        bool connected, durable;
        jobs_store_health(op->store, &connected, &durable, why, sizeof why);
        reply.code = op->instead;
        reply.message = why;
    } else {
        jobs_reply_read(answer, op->shape, &arena, &reply);
    }
    op->fn(op->user, &reply);
    arena_release(&arena);
    free(op);
}

static status_t send_command(jobs_store_t *store, command_t *take_command, shape_t shape,
                             bool intake, jobs_reply_fn fn, void *user)
{
    op_t *op = MEM_NEW(op_t);
    *op = (op_t){store, shape, JOBS_OK, fn, user};
    pthread_mutex_lock(&store->lock);
    if (!store->library_ok && redis_connected(store->redis))
        op->instead = JOBS_UNREACHABLE;
    else if (intake && store->gate == GATE_UNKNOWN)
        op->instead = JOBS_UNREACHABLE;
    else if (intake && store->gate == GATE_SHUT)
        op->instead = JOBS_NOT_DURABLE;
    pthread_mutex_unlock(&store->lock);
    /* What must not run still travels, as a PING, so that its answer comes like any other. */
    static const char *const ping[] = {"PING"};
    status_t status = op->instead != JOBS_OK
                          ? redis_call_text(store->redis, 1, ping, on_answer, op)
                          : redis_call(store->redis, take_command->n, take_command->args,
                                       take_command->sizes, on_answer, op);
    if (status != STATUS_OK)
        free(op);
    arena_release(&take_command->arena);
    return status;
}

uint64_t jobs_item_seed(uint64_t job_seed, uint64_t index)
{
    /* splitmix64's output function (Steele, Lea, Flood 2014) over a Weyl sequence of the index. */
    uint64_t z = job_seed + (index + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    /* Below 2^53: results show the seed, and JSON readers keep no larger number exactly. */
    z &= (UINT64_C(1) << 53) - 1;
    return z ? z : 1;
}

/* ---- which cluster ---- */

static status_t meta_op(jobs_store_t *store, const char *name, const char *uuid,
                        uint64_t incarnation, uint64_t revision, jobs_reply_fn fn, void *user)
{
    command_t command = command_of(store, name, 3);
    add_text(&command, uuid);
    add_number(&command, incarnation);
    add_number(&command, revision);
    return send_command(store, &command, SHAPE_META, false, fn, user);
}

status_t jobs_meta_get(jobs_store_t *store, jobs_reply_fn fn, void *user)
{
    return meta_op(store, "meta_get", "", 0, 0, fn, user);
}

status_t jobs_meta_create(jobs_store_t *store, const char *uuid, jobs_reply_fn fn, void *user)
{
    return meta_op(store, "meta_create", uuid, 0, 0, fn, user);
}

status_t jobs_meta_check(jobs_store_t *store, const char *uuid, uint64_t incarnation,
                         uint64_t revision, jobs_reply_fn fn, void *user)
{
    return meta_op(store, "meta_check", uuid, incarnation, revision, fn, user);
}

status_t jobs_meta_adopt(jobs_store_t *store, const char *uuid, uint64_t incarnation,
                         uint64_t revision, jobs_reply_fn fn, void *user)
{
    return meta_op(store, "meta_adopt", uuid, incarnation, revision, fn, user);
}

/* ---- intake ---- */

status_t jobs_put(jobs_store_t *store, const char *upload, uint64_t first, size_t n,
                  const jobs_body_t *bodies, uint64_t reserve_bytes, jobs_reply_fn fn, void *user)
{
    size_t bytes = 0;
    if (n < 1 || n > JOBS_CHUNK_ITEMS_MAX)
        return fail(STATUS_INVALID, "a chunk of %zu items; right is 1 to %d", n,
                    JOBS_CHUNK_ITEMS_MAX);
    for (size_t i = 0; i < n; i++) {
        if (bodies[i].body_bytes > JOBS_CHUNK_BYTES_MAX - bytes)
            return fail(STATUS_INVALID, "a chunk of more than %d bytes", JOBS_CHUNK_BYTES_MAX);
        bytes += bodies[i].body_bytes;
    }
    command_t command = call_of(store, "put", 5 + n);
    add_text(&command, upload);
    add_number(&command, first);
    add_number(&command, reserve_bytes);
    add_number(&command, store->jobs_bytes_max);
    add_number(&command, JOBS_UPLOAD_TTL_MS);
    for (size_t i = 0; i < n; i++)
        add(&command, bodies[i].body ? (const char *)bodies[i].body : "", bodies[i].body_bytes);
    return send_command(store, &command, SHAPE_PLAIN, true, fn, user);
}

status_t jobs_submit(jobs_store_t *store, const jobs_submit_t *submit, jobs_reply_fn fn, void *user)
{
    command_t command = call_of(store, "submit", 12);
    add_text(&command, submit->job);
    add_text(&command, submit->upload);
    add_number(&command, submit->total);
    add_text(&command, submit->deployment);
    add_text(&command, submit->tenant);
    add_text(&command, submit->display_name);
    add_text(&command, submit->idempotency_key);
    add_text(&command, submit->body_hash);
    char priority[16];
    snprintf(priority, sizeof priority, "%" PRId32, submit->priority);
    add_text(&command, priority);
    add_number(&command, submit->deadline_ms);
    add_number(&command, submit->seed);
    add_number(&command, submit->item_tokens);
    return send_command(store, &command, SHAPE_JOB, true, fn, user);
}

/* Operations whose arguments are one text. */
static status_t text_op(jobs_store_t *store, const char *name, const char *text, shape_t shape,
                        jobs_reply_fn fn, void *user)
{
    command_t command = call_of(store, name, 1);
    add_text(&command, text);
    return send_command(store, &command, shape, false, fn, user);
}

status_t jobs_drop(jobs_store_t *store, const char *upload, jobs_reply_fn fn, void *user)
{
    return text_op(store, "drop", upload, SHAPE_PLAIN, fn, user);
}

/* ---- claims ---- */

status_t jobs_claim(jobs_store_t *store, const char *deployment, size_t n, jobs_process_t process,
                    uint64_t nonce, jobs_reply_fn fn, void *user)
{
    command_t command = call_of(store, "claim", 4);
    add_text(&command, deployment);
    add_number(&command, n < JOBS_CLAIM_MAX ? n : JOBS_CLAIM_MAX);
    add_process(&command, process);
    add_number(&command, nonce);
    return send_command(store, &command, SHAPE_ITEMS, false, fn, user);
}

status_t jobs_mine(jobs_store_t *store, jobs_process_t process, uint64_t cursor, jobs_reply_fn fn,
                   void *user)
{
    command_t command = call_of(store, "mine", 2);
    add_process(&command, process);
    add_number(&command, cursor);
    return send_command(store, &command, SHAPE_ITEMS, false, fn, user);
}

status_t jobs_adopt(jobs_store_t *store, jobs_process_t from, jobs_process_t to, jobs_reply_fn fn,
                    void *user)
{
    command_t command = call_of(store, "adopt", 2);
    add_process(&command, from);
    add_process(&command, to);
    return send_command(store, &command, SHAPE_NUMBER, false, fn, user);
}

static command_t claim_call(jobs_store_t *store, const char *name, const jobs_claim_t *claim,
                            size_t n_more)
{
    command_t command = call_of(store, name, 4 + n_more);
    add_text(&command, claim->job);
    add_number(&command, claim->index);
    add_process(&command, claim->process);
    add_number(&command, claim->attempt);
    return command;
}

static status_t commit(jobs_store_t *store, const jobs_claim_t *claim, const char *end,
                       jobs_tokens_t tokens, const uint8_t *record, size_t record_bytes,
                       jobs_reply_fn fn, void *user)
{
    if (record_bytes > JOBS_RECORD_BYTES_MAX)
        return fail(STATUS_INVALID, "a result of %zu bytes; at most %d are stored", record_bytes,
                    JOBS_RECORD_BYTES_MAX);
    command_t command = claim_call(store, "commit", claim, 5);
    add_text(&command, end);
    add_number(&command, tokens.prompt_tokens);
    add_number(&command, tokens.completion_tokens);
    add_number(&command, tokens.cached_tokens);
    add(&command, record ? (const char *)record : "", record_bytes);
    return send_command(store, &command, SHAPE_COMMIT, false, fn, user);
}

status_t jobs_complete(jobs_store_t *store, const jobs_claim_t *claim, jobs_tokens_t tokens,
                       const uint8_t *record, size_t record_bytes, jobs_reply_fn fn, void *user)
{
    return commit(store, claim, "ok", tokens, record, record_bytes, fn, user);
}

status_t jobs_fail(jobs_store_t *store, const jobs_claim_t *claim, jobs_tokens_t tokens,
                   const uint8_t *record, size_t record_bytes, jobs_reply_fn fn, void *user)
{
    return commit(store, claim, "error", tokens, record, record_bytes, fn, user);
}

status_t jobs_release(jobs_store_t *store, const jobs_claim_t *claim, jobs_reply_fn fn, void *user)
{
    command_t command = claim_call(store, "release", claim, 0);
    return send_command(store, &command, SHAPE_COMMIT, false, fn, user);
}

status_t jobs_note_death(jobs_store_t *store, const jobs_claim_t *claim, uint64_t epoch,
                         jobs_reply_fn fn, void *user)
{
    command_t command = claim_call(store, "note_death", claim, 1);
    add_number(&command, epoch);
    return send_command(store, &command, SHAPE_COMMIT, false, fn, user);
}

status_t jobs_release_process(jobs_store_t *store, uint64_t fence, jobs_process_t process,
                              jobs_reply_fn fn, void *user)
{
    command_t command = call_of(store, "release_process", 2);
    add_number(&command, fence);
    add_process(&command, process);
    return send_command(store, &command, SHAPE_NUMBER, false, fn, user);
}

status_t jobs_processes(jobs_store_t *store, jobs_reply_fn fn, void *user)
{
    return text_op(store, "processes", "", SHAPE_PROCESSES, fn, user);
}

/* ---- jobs as a whole ---- */

status_t jobs_expire(jobs_store_t *store, jobs_reply_fn fn, void *user)
{
    return text_op(store, "expire", "", SHAPE_NUMBER, fn, user);
}

status_t jobs_queued(jobs_store_t *store, jobs_reply_fn fn, void *user)
{
    return text_op(store, "queued", "", SHAPE_NUMBER, fn, user);
}

status_t jobs_cancel(jobs_store_t *store, const char *job, jobs_reply_fn fn, void *user)
{
    return text_op(store, "cancel", job, SHAPE_JOB, fn, user);
}

status_t jobs_delete(jobs_store_t *store, const char *job, jobs_reply_fn fn, void *user)
{
    return text_op(store, "delete", job, SHAPE_PLAIN, fn, user);
}

status_t jobs_get(jobs_store_t *store, const char *job, jobs_reply_fn fn, void *user)
{
    return text_op(store, "get", job, SHAPE_JOB, fn, user);
}

status_t jobs_list(jobs_store_t *store, uint64_t before, size_t n, jobs_reply_fn fn, void *user)
{
    command_t command = call_of(store, "list", 2);
    add_number(&command, before);
    add_number(&command, n < 1000 ? n : 1000);
    return send_command(store, &command, SHAPE_JOBS, false, fn, user);
}

status_t jobs_poll(jobs_store_t *store, size_t n, const jobs_seen_t *seen, jobs_reply_fn fn,
                   void *user)
{
    if (n > 1000)
        return fail(STATUS_INVALID, "a poll of %zu jobs; at most 1,000 go together", n);
    command_t command = call_of(store, "poll", 2 * n);
    for (size_t i = 0; i < n; i++) {
        add_text(&command, seen[i].job);
        add_number(&command, seen[i].after_version);
    }
    return send_command(store, &command, SHAPE_JOBS, false, fn, user);
}

status_t jobs_results(jobs_store_t *store, const char *job, uint64_t after, size_t n,
                      jobs_reply_fn fn, void *user)
{
    command_t command = call_of(store, "results", 3);
    add_text(&command, job);
    add_number(&command, after);
    add_number(&command, n < JOBS_RESULTS_MAX ? n : JOBS_RESULTS_MAX);
    return send_command(store, &command, SHAPE_RESULTS, false, fn, user);
}

/* ---- session pointers ---- */

static status_t pointer_op(jobs_store_t *store, const char *name, const char *id, uint64_t owner,
                           const uint8_t *pointer, size_t bytes, uint64_t ttl_ms, jobs_reply_fn fn,
                           void *user)
{
    if (bytes > JOBS_POINTER_BYTES_MAX)
        return fail(STATUS_INVALID, "a session pointer of %zu bytes; at most %d are stored", bytes,
                    JOBS_POINTER_BYTES_MAX);
    command_t command = call_of(store, name, 4);
    add_text(&command, id);
    add_number(&command, owner);
    add(&command, pointer ? (const char *)pointer : "", bytes);
    add_number(&command, ttl_ms);
    return send_command(store, &command, SHAPE_POINTER, false, fn, user);
}

status_t jobs_req_put(jobs_store_t *store, const char *id, uint64_t owner, const uint8_t *pointer,
                      size_t bytes, uint64_t ttl_ms, jobs_reply_fn fn, void *user)
{
    return pointer_op(store, "req_put", id, owner, pointer, bytes, ttl_ms, fn, user);
}

status_t jobs_req_get(jobs_store_t *store, const char *id, jobs_reply_fn fn, void *user)
{
    return pointer_op(store, "req_get", id, 0, NULL, 0, 0, fn, user);
}

status_t jobs_req_take(jobs_store_t *store, const char *id, uint64_t owner, const uint8_t *pointer,
                       size_t bytes, uint64_t ttl_ms, jobs_reply_fn fn, void *user)
{
    return pointer_op(store, "req_take", id, owner, pointer, bytes, ttl_ms, fn, user);
}

status_t jobs_req_drop(jobs_store_t *store, const char *id, uint64_t owner, jobs_reply_fn fn,
                       void *user)
{
    return pointer_op(store, "req_drop", id, owner, NULL, 0, 0, fn, user);
}
