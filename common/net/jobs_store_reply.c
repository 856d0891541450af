/* Reading of the job library's answers. Redis is another process and may have been restored from
 * anything, so each shape is checked before it is used; nothing here can index past an answer. */
#include <stdlib.h>
#include <string.h>

#include "common/net/jobs_store_internal.h"

static const struct {
    const char *name;
    jobs_code_t code;
} codes[] = {
    {"OK", JOBS_OK},
    {"DUP", JOBS_DUP},
    {"STALE", JOBS_STALE},
    {"NOT_FOUND", JOBS_NOT_FOUND},
    {"CONFLICT", JOBS_CONFLICT},
    {"FULL", JOBS_FULL},
    {"FENCED", JOBS_FENCED},
    {"WRONG_STORE", JOBS_WRONG_STORE},
    {"NOT_DURABLE", JOBS_NOT_DURABLE},
    {"INVALID", JOBS_INVALID},
    {"UNREACHABLE", JOBS_UNREACHABLE},
};
#define N_CODES (sizeof codes / sizeof *codes)

const char *jobs_code_name(jobs_code_t code)
{
    for (size_t i = 0; i < N_CODES; i++)
        if (codes[i].code == code)
            return codes[i].name;
    return "?";
}

jobs_code_t jobs_code_of_error(const char *error)
{
    static const struct {
        const char *prefix;
        jobs_code_t code;
    } known[] = {
        {"OOM", JOBS_FULL},
        {"MISCONF", JOBS_NOT_DURABLE},
        {"READONLY", JOBS_NOT_DURABLE},
        {"NOREPLICAS", JOBS_NOT_DURABLE},
        {"LOADING", JOBS_UNREACHABLE},
        {"BUSY", JOBS_UNREACHABLE},
        {"MASTERDOWN", JOBS_UNREACHABLE},
        {"NOAUTH", JOBS_UNREACHABLE},
        {"NOPERM", JOBS_UNREACHABLE},
        {"ERR Function not found", JOBS_UNREACHABLE},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strncmp(error, known[i].prefix, strlen(known[i].prefix)) == 0)
            return known[i].code;
    return JOBS_INVALID;
}

/* ---- single values; each says whether the reply held one ---- */

static const redisReply *at(const redisReply *reply, size_t i)
{
    if (!reply || reply->type != REDIS_REPLY_ARRAY || i >= reply->elements)
        return NULL;
    return reply->element[i];
}

static bool text(const redisReply *reply, const char **out)
{
    if (!reply || (reply->type != REDIS_REPLY_STRING && reply->type != REDIS_REPLY_STATUS))
        return false;
    *out = reply->str;
    return true;
}

static bool bytes(const redisReply *reply, const uint8_t **out, size_t *n_out)
{
    if (!reply || reply->type != REDIS_REPLY_STRING)
        return false;
    *out = (const uint8_t *)reply->str;
    *n_out = (size_t)reply->len;
    return true;
}

static bool number(const redisReply *reply, uint64_t *out)
{
    if (reply && reply->type == REDIS_REPLY_INTEGER && reply->integer >= 0) {
        *out = (uint64_t)reply->integer;
        return true;
    }
    if (!reply || reply->type != REDIS_REPLY_STRING || !reply->len)
        return false;
    char *end;
    *out = strtoull(reply->str, &end, 10);
    return *end == '\0';
}

static bool signed_number(const redisReply *reply, int32_t *out)
{
    if (reply && reply->type == REDIS_REPLY_INTEGER) {
        *out = (int32_t)reply->integer;
        return true;
    }
    if (!reply || reply->type != REDIS_REPLY_STRING)
        return false;
    *out = (int32_t)strtol(reply->str, NULL, 10);
    return true;
}

/* ---- rows ---- */

static bool read_state(const redisReply *reply, jobs_state_t *out)
{
    static const char *const names[] = {"",          "queued",    "running",
                                        "succeeded", "cancelled", "expired"};
    const char *name;
    if (!text(reply, &name))
        return false;
    for (size_t i = 1; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0) {
            *out = (jobs_state_t)i;
            return true;
        }
    return false;
}

/* The order of FIELDS in jobs.lua. A row of one field is a job that is gone. */
static bool read_job(const redisReply *row, jobs_job_t *out)
{
    *out = (jobs_job_t){.deployment = "", .tenant = "", .display_name = "", .idempotency_key = ""};
    if (!text(at(row, 0), &out->id))
        return false;
    if (row->elements == 1)
        return true;
    const char **texts[] = {&out->deployment, &out->tenant, &out->display_name,
                            &out->idempotency_key};
    for (size_t i = 0; i < 4; i++)
        if (!text(at(row, 1 + i), texts[i]))
            return false;
    if (!signed_number(at(row, 5), &out->priority) || !read_state(at(row, 6), &out->state))
        return false;
    uint64_t *numbers[] = {&out->total,     &out->running,           &out->succeeded,
                           &out->failed,    &out->cancelled,         &out->expired,
                           &out->prompt_tokens, &out->completion_tokens, &out->cached_tokens,
                           &out->create_ms, &out->start_ms,          &out->end_ms,
                           &out->deadline_ms,   &out->version,           &out->sequence};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!number(at(row, 7 + i), numbers[i]))
            return false;
    return true;
}

static bool read_item(const redisReply *row, jobs_item_t *out)
{
    uint64_t job_seed;
    if (!text(at(row, 0), &out->job) || !number(at(row, 1), &out->index) ||
        !number(at(row, 2), &out->attempt) || !number(at(row, 3), &out->deaths) ||
        !number(at(row, 4), &job_seed) || !number(at(row, 5), &out->deadline_left_ms) ||
        !signed_number(at(row, 6), &out->priority) || !text(at(row, 7), &out->tenant) ||
        !text(at(row, 8), &out->deployment) || !bytes(at(row, 9), &out->body, &out->body_bytes))
        return false;
    out->seed = jobs_item_seed(job_seed, out->index);
    return true;
}

static bool read_result(const redisReply *row, jobs_result_t *out)
{
    static const char *const ends[] = {"", "ok", "error", "cancelled", "expired"};
    const char *end;
    if (!number(at(row, 0), &out->completion) || !number(at(row, 1), &out->index) ||
        !number(at(row, 2), &out->attempts) || !text(at(row, 3), &end) ||
        !bytes(at(row, 4), &out->record, &out->record_bytes) ||
        !bytes(at(row, 5), &out->body, &out->body_bytes))
        return false;
    for (size_t i = 1; i < sizeof ends / sizeof *ends; i++)
        if (strcmp(end, ends[i]) == 0)
            out->end = (jobs_end_t)i;
    return out->end != JOBS_END_NONE;
}

static bool read_process(const redisReply *row, jobs_process_t *out)
{
    const char *words;
    char *end;
    if (!text(row, &words))
        return false;
    out->incarnation = strtoull(words, &end, 10);
    if (*end != '.')
        return false;
    out->revision = strtoull(end + 1, &end, 10);
    return *end == '\0';
}

static bool read_meta(const redisReply *row, jobs_meta_t *out)
{
    uint64_t exists, confirmed;
    const char *uuid;
    if (!number(at(row, 0), &exists) || !text(at(row, 1), &uuid) ||
        !number(at(row, 2), &out->incarnation) || !number(at(row, 3), &out->revision) ||
        !number(at(row, 4), &confirmed) || strlen(uuid) >= sizeof out->uuid)
        return false;
    out->exists = exists != 0;
    out->confirmed = confirmed != 0;
    memcpy(out->uuid, uuid, strlen(uuid) + 1);
    return true;
}

/* ---- whole answers ---- */

#define READ_ROWS(kind, field, n_field, read)                                                      \
    do {                                                                                           \
        const redisReply *rows_ = at(reply, 2);                                                    \
        if (!rows_ || rows_->type != REDIS_REPLY_ARRAY)                                            \
            return false;                                                                          \
        kind *array_ = ARENA_NEW_ARRAY(arena, kind, rows_->elements + 1);                          \
        for (size_t i_ = 0; i_ < rows_->elements; i_++)                                            \
            if (!read(rows_->element[i_], &array_[i_]))                                            \
                return false;                                                                      \
        out->field = array_;                                                                       \
        out->n_field = rows_->elements;                                                            \
    } while (0)

#define READ_ONE(kind, field, n_field, read, row)                                                  \
    do {                                                                                           \
        kind *one_ = ARENA_NEW_ARRAY(arena, kind, 1);                                              \
        if (!read((row), one_))                                                                    \
            return false;                                                                          \
        out->field = one_;                                                                         \
        out->n_field = 1;                                                                          \
    } while (0)

static bool read_rest(const redisReply *reply, shape_t shape, arena_t *arena, jobs_reply_t *out)
{
    bool ok = out->code == JOBS_OK, dup = out->code == JOBS_DUP;
    switch (shape) {
    case SHAPE_PLAIN:
        return true;
    case SHAPE_NUMBER:
        return !ok || number(at(reply, 2), &out->number);
    case SHAPE_JOB:
        if (ok || dup)
            READ_ONE(jobs_job_t, jobs, n_jobs, read_job, at(reply, 2));
        return true;
    case SHAPE_JOBS:
        if (ok)
            READ_ROWS(jobs_job_t, jobs, n_jobs, read_job);
        return true;
    case SHAPE_ITEMS:
        if (ok)
            READ_ROWS(jobs_item_t, items, n_items, read_item);
        return !at(reply, 3) || number(at(reply, 3), &out->number);
    case SHAPE_COMMIT:
        if (dup)
            READ_ONE(jobs_result_t, results, n_results, read_result, at(reply, 2));
        return !ok || !at(reply, 2) || number(at(reply, 2), &out->number);
    case SHAPE_RESULTS:
        if (!ok)
            return true;
        READ_ROWS(jobs_result_t, results, n_results, read_result);
        READ_ONE(jobs_job_t, jobs, n_jobs, read_job, at(reply, 3));
        return true;
    case SHAPE_PROCESSES:
        if (ok)
            READ_ROWS(jobs_process_t, processes, n_processes, read_process);
        return true;
    case SHAPE_POINTER:
        if (at(reply, 2) && !number(at(reply, 2), &out->number))
            return false;
        return !at(reply, 3) || bytes(at(reply, 3), &out->pointer, &out->pointer_bytes);
    case SHAPE_META:
        return !at(reply, 2) || read_meta(at(reply, 2), &out->meta);
    }
    return false;
}

void jobs_reply_read(const redisReply *reply, shape_t shape, arena_t *arena, jobs_reply_t *out)
{
    *out = (jobs_reply_t){.code = JOBS_INVALID, .message = ""};
    const char *name = "";
    bool good = text(at(reply, 0), &name) && text(at(reply, 1), &out->message);
    bool known = false;
    for (size_t i = 0; good && i < N_CODES; i++)
        if (strcmp(codes[i].name, name) == 0) {
            out->code = codes[i].code;
            known = true;
        }
    if (known && read_rest(reply, shape, arena, out))
        return;
    *out = (jobs_reply_t){.code = JOBS_INVALID,
                          .message = "redis: the job library answered in an unknown shape; its "
                                     "data was not written by this version"};
}
