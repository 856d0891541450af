/* `shoal submit`: a file of prompts becomes a durable job. The file is sent in chunks; with an
 * idempotency key (one is drawn when none is given) a submission whose answer was lost is repeated
 * safely at another coordinator. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/client.h"
#include "cli/command.h"
#include "cli/job_view.h"
#include "cli/output.h"
#include "common/base/clock.h"
#include "common/base/memory.h"
#include "common/net/rpc_message.h"

enum { CHUNK_ITEMS = 500, CHUNK_BYTES = 512 << 10, LINE_BYTES_MAX = 1 << 20, TRIES_MAX = 5 };

typedef struct {
    const char *file, *out, *model, *key, *name, *tenant, *format;
    int64_t priority, deadline_ms;
    bool wait, json;
    char drawn_key[33];
} submit_t;

/* Sends what was gathered and forgets it. */
static status_t send_chunk(rpc_stream_t *stream, Shoal__V1__Item **items, size_t *n_items)
{
    Shoal__V1__ItemChunk chunk = SHOAL__V1__ITEM_CHUNK__INIT;
    chunk.items = items;
    chunk.n_items = *n_items;
    Shoal__V1__SubmitJobRequest message = SHOAL__V1__SUBMIT_JOB_REQUEST__INIT;
    message.message_case = SHOAL__V1__SUBMIT_JOB_REQUEST__MESSAGE_CHUNK;
    message.chunk = &chunk;
    buffer_t bytes = {0};
    rpc_pack(&message, &bytes);
    status_t status = rpc_stream_send(stream, bytes.data, bytes.size);
    buffer_release(&bytes);
    for (size_t i = 0; i < *n_items; i++) {
        free(items[i]->body_json.data);
        free(items[i]);
    }
    *n_items = 0;
    return status;
}

static status_t send_header(rpc_stream_t *stream, const submit_t *submit)
{
    Shoal__V1__JobHeader header = SHOAL__V1__JOB_HEADER__INIT;
    /* protobuf-c wants plain pointers for what it only reads. */
    header.model = (char *)(uintptr_t)(submit->model ? submit->model : "");
    header.idempotency_key = (char *)(uintptr_t)submit->key;
    header.display_name = (char *)(uintptr_t)(submit->name ? submit->name : "");
    header.tenant = (char *)(uintptr_t)(submit->tenant ? submit->tenant : "");
    header.priority = (int32_t)submit->priority;
    header.deadline_ms = (uint64_t)submit->deadline_ms;
    Shoal__V1__SubmitJobRequest message = SHOAL__V1__SUBMIT_JOB_REQUEST__INIT;
    message.message_case = SHOAL__V1__SUBMIT_JOB_REQUEST__MESSAGE_OPEN;
    message.open = &header;
    buffer_t bytes = {0};
    rpc_pack(&message, &bytes);
    status_t status = rpc_stream_send(stream, bytes.data, bytes.size);
    buffer_release(&bytes);
    return status;
}

/* Sends every line that is not blank as an item, byte for byte. */
static status_t send_lines(rpc_stream_t *stream, FILE *file, const char *path)
{
    Shoal__V1__Item *items[CHUNK_ITEMS];
    size_t n_items = 0, bytes = 0, line_number = 0, capacity = 0;
    char *line = NULL;
    status_t status = STATUS_OK;
    for (ssize_t n; status == STATUS_OK && (n = getline(&line, &capacity, file)) >= 0;) {
        line_number++;
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r'))
            n--;
        if (strspn(line, " \t\r\n") >= (size_t)n)
            continue;
        if (n > LINE_BYTES_MAX) {
            status = fail(STATUS_INVALID, "%s line %zu has %zd bytes; at most %d are taken", path,
                          line_number, n, LINE_BYTES_MAX);
            break;
        }
        Shoal__V1__Item *item = MEM_NEW(Shoal__V1__Item);
        shoal__v1__item__init(item);
        item->input_case = SHOAL__V1__ITEM__INPUT_BODY_JSON;
        item->body_json.data = (uint8_t *)mem_strndup(line, (size_t)n);
        item->body_json.len = (size_t)n;
        items[n_items++] = item;
        bytes += (size_t)n;
        if (n_items == CHUNK_ITEMS || bytes > CHUNK_BYTES) {
            status = send_chunk(stream, items, &n_items);
            bytes = 0;
        }
    }
    free(line);
    if (n_items > 0) {
        status_t sent = send_chunk(stream, items, &n_items);
        status = status == STATUS_OK ? sent : status;
    }
    return status;
}

static status_t submit_once(rpc_channel_t *channel, const submit_t *submit, FILE *file,
                            Shoal__V1__Job **own_out)
{
    rpc_stream_t *stream;
    TRY(rpc_stream_open(channel, "/shoal.v1.Jobs/Submit", 0, &stream));
    status_t status = send_header(stream, submit);
    if (status == STATUS_OK)
        status = send_lines(stream, file, submit->file);
    Shoal__V1__Job *job = NULL;
    if (status == STATUS_OK) {
        rpc_stream_half_close(stream);
        status = client_read(stream, &shoal__v1__job__descriptor, &job);
    }
    rpc_stream_close(stream);
    if (status == STATUS_OK && job == NULL)
        status = fail(STATUS_INTERNAL, "the coordinator sent no job");
    if (status == STATUS_OK)
        *own_out = job;
    return status;
}

static status_t submit_file(client_t *client, const submit_t *submit, Shoal__V1__Job **own_out)
{
    FILE *file = fopen(submit->file, "re");
    if (file == NULL)
        return fail(STATUS_NOT_FOUND, "%s: %s", submit->file, strerror(errno));
    struct stat about;
    status_t status = STATUS_OK;
    if (fstat(fileno(file), &about) == 0 && S_ISDIR(about.st_mode)) {
        fclose(file);
        return fail(STATUS_INVALID, "%s is a directory; a file of JSON lines is wanted",
                    submit->file);
    }
    for (int tried = 0; tried < TRIES_MAX; tried++) {
        rewind(file);
        /* Has asked every endpoint when it fails; asking them all again is no help. */
        rpc_channel_t *channel;
        status = client_channel(client, &channel);
        if (status != STATUS_OK)
            break;
        status = submit_once(channel, submit, file, own_out);
        if (status != STATUS_UNREACHABLE || command_interrupted)
            break;
        client_next(client);
    }
    fclose(file);
    return status;
}

typedef struct {
    Shoal__V1__ItemResult **results;
    size_t n, capacity;
} gathered_t;

static status_t gather(void *arg, Shoal__V1__ItemResult *take_result)
{
    gathered_t *all = arg;
    MEM_GROW(all->results, all->capacity, all->n + 1);
    all->results[all->n++] = take_result;
    return STATUS_OK;
}

static int by_index(const void *a, const void *b)
{
    const Shoal__V1__ItemResult *x = *(Shoal__V1__ItemResult *const *)a;
    const Shoal__V1__ItemResult *y = *(Shoal__V1__ItemResult *const *)b;
    return (x->index > y->index) - (x->index < y->index);
}

/* Writes the results in the order of the job's lines; the file appears whole or not at all. */
static status_t write_results(client_t *client, const char *id, const char *path)
{
    gathered_t all = {0};
    status_t status = job_results(client, id, true, gather, &all);
    char *fresh = mem_format("%s.part", path);
    FILE *out = NULL;
    if (status == STATUS_OK && (out = fopen(fresh, "we")) == NULL)
        status = fail(STATUS_IO, "cannot write %s: %s", fresh, strerror(errno));
    if (all.n > 0)
        qsort(all.results, all.n, sizeof *all.results, by_index);
    for (size_t i = 0; i < all.n; i++) {
        if (out != NULL) {
            json_t *object = result_json(all.results[i]);
            json_dumpf(object, out, JSON_COMPACT);
            fputc('\n', out);
            json_decref(object);
        }
        rpc_message_free(all.results[i]);
    }
    if (out != NULL) {
        bool bad = ferror(out) != 0;
        bad |= fclose(out) != 0;
        if (bad || rename(fresh, path) != 0)
            status = fail(STATUS_IO, "cannot write %s: %s", path, strerror(errno));
    }
    free(all.results);
    free(fresh);
    return status;
}

/* A job must not run for hours before its results turn out to have no place. */
static status_t check_out(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *dir = slash == NULL   ? mem_strdup(".")
                : slash == path ? mem_strdup("/")
                                : mem_strndup(path, (size_t)(slash - path));
    struct stat about;
    status_t status = STATUS_OK;
    if (stat(path, &about) == 0 && S_ISDIR(about.st_mode))
        status = fail(STATUS_INVALID, "--out: %s is a directory; a file is wanted", path);
    else if (stat(dir, &about) != 0)
        status = fail(STATUS_NOT_FOUND, "--out: cannot write %s: %s: %s", path, dir,
                      strerror(errno));
    else if (access(dir, W_OK | X_OK) != 0 || !S_ISDIR(about.st_mode))
        status = fail(STATUS_IO, "--out: cannot write %s: nothing can be made in %s", path, dir);
    free(dir);
    return status;
}

/* A job that had begun before this command has no rate: its tokens did not take this command's time. */
static void print_end(const Shoal__V1__Job *job, bool repeated, uint64_t took_ms)
{
    double seconds = (double)took_ms / 1000;
    unsigned long long tokens = job->usage ? job->usage->completion_tokens : 0;
    if (repeated)
        fprintf(stderr, "%.1f s, %llu tokens; the job was submitted earlier\n", seconds, tokens);
    else
        fprintf(stderr, "%.1f s, %llu tokens, %.1f tok/s\n", seconds, tokens,
                seconds > 0 ? (double)tokens / seconds : 0);
}

static status_t submit_and_wait(client_t *client, submit_t *submit)
{
    Shoal__V1__Job *job = NULL;
    uint64_t began_ms = clock_ms();
    TRY(submit_file(client, submit, &job));
    bool repeated = job_n_done(job) > 0; /* the key's job of an earlier time */
    if (!submit->wait) {
        job_print(job, submit->json);
        rpc_message_free(job);
        return STATUS_OK;
    }
    fprintf(stderr, "job %s accepted: %llu items\n", job->id,
            (unsigned long long)(job->counts ? job->counts->total : 0));
    char id[64];
    snprintf(id, sizeof id, "%s", job->id);
    rpc_message_free(job);
    TRY(job_watch(client, id, &job));
    status_t status = submit->out ? write_results(client, id, submit->out) : STATUS_OK;
    if (status == STATUS_OK) {
        job_print(job, submit->json);
        print_end(job, repeated, clock_ms() - began_ms);
        status = job_verdict(job);
    }
    rpc_message_free(job);
    return status;
}

static void draw_key(char key[33])
{
    uint8_t random[16];
    CHECK(getrandom(random, sizeof random, 0) == (ssize_t)sizeof random);
    for (size_t i = 0; i < sizeof random; i++)
        snprintf(key + 2 * i, 3, "%02x", random[i]);
}

status_t command_submit(int argc, char **argv)
{
    cluster_options_t where = {0};
    submit_t submit = {0};
    const char *words[1];
    bool done = false;
    const option_t options[] = {
        {"out", OPTION_TEXT, &submit.out, NULL, "FILE", "write the results there, sorted by index (implies --wait)"},
        {"wait", OPTION_FLAG, &submit.wait, NULL, NULL, "follow the job until it ends"},
        DEPLOYMENT_OPTION(submit.model),
        {"priority", OPTION_INTEGER, &submit.priority, "0", "N", "higher first", -100, 100},
        {"deadline", OPTION_DURATION_MS, &submit.deadline_ms, "0", "TIME", "the job expires after it; 0 is never"},
        {"key", OPTION_TEXT, &submit.key, NULL, "TEXT", "idempotency key: the same key and file are the same job [drawn]",
         .environment = "SHOAL_IDEMPOTENCY_KEY"},
        {"name", OPTION_TEXT, &submit.name, NULL, "TEXT", "shown in lists", .environment = "SHOAL_JOB_NAME"},
        {"tenant", OPTION_TEXT, &submit.tenant, NULL, "NAME", "who is charged"},
        OUTPUT_OPTION(&submit.format), CLUSTER_DATA_OPTION(where), CLUSTER_ENDPOINT_OPTION(where), {0},
    };
    const options_help_t help = {
        "shoal submit FILE.jsonl [options]",
        "Submits a batch job. A line is {custom_id?, prompt | messages, max_tokens?, temperature?, …} or\n"
        "OpenAI's {custom_id, method, url, body}. Once acknowledged it is never lost.",
        "shoal submit examples/prompts.jsonl --out results.jsonl", options};
    TRY(command_options(&help, argc, argv, words, 1, 1, NULL, &done));
    if (done)
        return STATUS_OK;
    TRY(output_format(submit.format, &submit.json));
    submit.file = words[0];
    submit.wait |= submit.out != NULL;
    if (submit.out != NULL)
        TRY(check_out(submit.out));
    if (submit.key == NULL) {
        draw_key(submit.drawn_key);
        submit.key = submit.drawn_key;
    }
    client_t *client;
    TRY(client_open(&where, &client));
    status_t status = submit_and_wait(client, &submit);
    client_close(client);
    return status;
}
