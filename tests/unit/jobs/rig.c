/* See rig.h. */
#include "tests/unit/jobs/rig.h"

#include <hiredis/hiredis.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/clock.h"

#define PATIENCE_MS 15000

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
}

void server_start(server_t *server)
{
    if (!server->dir[0]) {
        snprintf(server->dir, sizeof server->dir, "/tmp/shoal-jobs-XXXXXX");
        assert_non_null(mkdtemp(server->dir));
        snprintf(server->url, sizeof server->url, "unix:%s/s", server->dir);
    }
    char socket[96];
    snprintf(socket, sizeof socket, "%s/s", server->dir);
    unlink(socket);
    pid_t parent = getpid();
    server->pid = fork();
    assert_true(server->pid >= 0);
    if (server->pid == 0) {
        /* A test that dies takes its server along. */
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(1);
        execlp("redis-server", "redis-server", "--port", "0", "--unixsocket", socket, "--dir",
               server->dir, "--appendonly", "yes", "--appendfsync", "always", "--save", "",
               "--maxmemory-policy", "noeviction", "--logfile", "/dev/null", NULL);
        _exit(1);
    }
    uint64_t until = clock_ms() + PATIENCE_MS;
    for (;;) {
        redisContext *context = redisConnectUnix(socket);
        redisReply *reply = context && !context->err ? redisCommand(context, "PING") : NULL;
        bool up = reply && reply->type == REDIS_REPLY_STATUS;
        if (reply)
            freeReplyObject(reply);
        if (context)
            redisFree(context);
        if (up)
            return;
        assert_true(clock_ms() < until);
        nap();
    }
}

void server_kill(server_t *server)
{
    if (server->pid > 0) {
        kill(server->pid, SIGKILL);
        waitpid(server->pid, NULL, 0);
    }
    server->pid = 0;
}

void server_remove(server_t *server)
{
    server_kill(server);
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", server->dir);
    assert_int_equal(system(command), 0);
    server->dir[0] = '\0';
}

/* ---- answers ---- */

void answer_begin(answer_t *answer)
{
    arena_release(&answer->arena);
    *answer = (answer_t){.lock = PTHREAD_MUTEX_INITIALIZER, .told = PTHREAD_COND_INITIALIZER};
}

void answer_end(answer_t *answer)
{
    arena_release(&answer->arena);
}

static const char *keep(arena_t *arena, const char *text)
{
    return text ? arena_strndup(arena, text, strlen(text)) : NULL;
}

static const uint8_t *keep_bytes(arena_t *arena, const uint8_t *bytes, size_t n)
{
    return bytes ? (const uint8_t *)arena_strndup(arena, (const char *)bytes, n) : NULL;
}

static void keep_rows(answer_t *answer, const jobs_reply_t *from)
{
    arena_t *arena = &answer->arena;
    jobs_job_t *jobs = ARENA_NEW_ARRAY(arena, jobs_job_t, from->n_jobs + 1);
    for (size_t i = 0; i < from->n_jobs; i++) {
        jobs[i] = from->jobs[i];
        jobs[i].id = keep(arena, jobs[i].id);
        jobs[i].deployment = keep(arena, jobs[i].deployment);
        jobs[i].tenant = keep(arena, jobs[i].tenant);
        jobs[i].display_name = keep(arena, jobs[i].display_name);
        jobs[i].idempotency_key = keep(arena, jobs[i].idempotency_key);
    }
    answer->reply.jobs = jobs;
    jobs_item_t *items = ARENA_NEW_ARRAY(arena, jobs_item_t, from->n_items + 1);
    for (size_t i = 0; i < from->n_items; i++) {
        items[i] = from->items[i];
        items[i].job = keep(arena, items[i].job);
        items[i].tenant = keep(arena, items[i].tenant);
        items[i].deployment = keep(arena, items[i].deployment);
        items[i].body = keep_bytes(arena, items[i].body, items[i].body_bytes);
    }
    answer->reply.items = items;
    jobs_result_t *results = ARENA_NEW_ARRAY(arena, jobs_result_t, from->n_results + 1);
    for (size_t i = 0; i < from->n_results; i++) {
        results[i] = from->results[i];
        results[i].record = keep_bytes(arena, results[i].record, results[i].record_bytes);
        results[i].body = keep_bytes(arena, results[i].body, results[i].body_bytes);
    }
    answer->reply.results = results;
}

void on_answer(void *user, const jobs_reply_t *reply)
{
    answer_t *answer = user;
    pthread_mutex_lock(&answer->lock);
    CHECK(!answer->done); /* exactly one callback */
    answer->reply = *reply;
    answer->reply.message = keep(&answer->arena, reply->message);
    answer->reply.pointer = keep_bytes(&answer->arena, reply->pointer, reply->pointer_bytes);
    keep_rows(answer, reply);
    jobs_process_t *processes =
        ARENA_NEW_ARRAY(&answer->arena, jobs_process_t, reply->n_processes + 1);
    for (size_t i = 0; i < reply->n_processes; i++)
        processes[i] = reply->processes[i];
    answer->reply.processes = processes;
    answer->done = true;
    pthread_cond_signal(&answer->told);
    pthread_mutex_unlock(&answer->lock);
}

const jobs_reply_t *answer_wait(answer_t *answer)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += PATIENCE_MS / 1000;
    pthread_mutex_lock(&answer->lock);
    while (!answer->done)
        CHECK(pthread_cond_timedwait(&answer->told, &answer->lock, &until) == 0);
    pthread_mutex_unlock(&answer->lock);
    return &answer->reply;
}

/* ---- stores ---- */

void store_wait(jobs_store_t *store, bool connected, bool durable)
{
    char why[200];
    bool is_connected, is_durable;
    uint64_t until = clock_ms() + PATIENCE_MS;
    for (;;) {
        jobs_store_health(store, &is_connected, &is_durable, why, sizeof why);
        if (is_connected == connected && is_durable == durable)
            return;
        if (clock_ms() > until)
            fail_msg("health stays %d %d: %s", is_connected, is_durable, why);
        nap();
    }
}

jobs_store_t *store_open(const server_t *server, uint64_t jobs_bytes_max, uint64_t gate_ms)
{
    jobs_store_t *store;
    jobs_store_config_t config = {.url = server->url,
                                  .cluster = "test",
                                  .jobs_bytes_max = jobs_bytes_max,
                                  .gate_ms = gate_ms};
    assert_int_equal(jobs_store_open(&config, &store), STATUS_OK);
    store_wait(store, true, true);
    answer_t a = {0};
    ASK(a, jobs_meta_create(store, UUID, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_OK);
    uint64_t incarnation = a.reply.meta.incarnation;
    ASK(a, jobs_meta_check(store, UUID, incarnation, 100, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_OK);
    jobs_store_set_cluster(store, UUID, incarnation);
    answer_end(&a);
    return store;
}

long long ask_redis(const server_t *server, char *text, size_t text_bytes, size_t n,
                    const char *const *args)
{
    redisContext *context = redisConnectUnix(server->url + 5);
    assert_true(context && !context->err);
    const char *copy[64];
    assert_true(n <= 64);
    for (size_t i = 0; i < n; i++)
        copy[i] = args[i];
    redisReply *reply = redisCommandArgv(context, (int)n, copy, NULL);
    assert_non_null(reply);
    if (reply->type == REDIS_REPLY_ERROR)
        fail_msg("redis: %s", reply->str);
    if (text)
        snprintf(text, text_bytes, "%s", reply->str ? reply->str : "");
    long long number = reply->integer;
    freeReplyObject(reply);
    redisFree(context);
    return number;
}

void make_job(jobs_store_t *store, const char *id, uint64_t total, const jobs_submit_t *how)
{
    static char words[JOBS_CHUNK_ITEMS_MAX][32];
    jobs_body_t bodies[JOBS_CHUNK_ITEMS_MAX];
    answer_t a = {0};
    for (uint64_t first = 0; first < total;) {
        size_t n = total - first < JOBS_CHUNK_ITEMS_MAX ? (size_t)(total - first)
                                                        : JOBS_CHUNK_ITEMS_MAX;
        for (size_t i = 0; i < n; i++) {
            snprintf(words[i], sizeof words[i], "body %zu", (size_t)first + i);
            bodies[i] = (jobs_body_t){(const uint8_t *)words[i], strlen(words[i])};
        }
        ASK(a, jobs_put(store, id, first, n, bodies, n * 100, on_answer, &a));
        assert_int_equal(a.reply.code, JOBS_OK);
        first += n;
    }
    jobs_submit_t submit = how ? *how : (jobs_submit_t){0};
    submit.job = id;
    submit.upload = id;
    submit.total = total;
    if (!submit.deployment)
        submit.deployment = "m";
    if (!submit.tenant)
        submit.tenant = "";
    if (!submit.seed)
        submit.seed = 7;
    ASK(a, jobs_submit(store, &submit, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_OK);
    answer_end(&a);
}
