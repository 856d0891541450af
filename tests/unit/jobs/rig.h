/* What the job store's tests share: a real redis-server of their own (private directory, unix
 * socket, appendonly yes, appendfsync always) that can be killed and started again, and a way to
 * wait for one answer. */
#ifndef SHOAL_TESTS_UNIT_JOBS_RIG_H
#define SHOAL_TESTS_UNIT_JOBS_RIG_H

#include <pthread.h>
#include <sys/types.h>

#include "common/base/memory.h"
#include "common/net/jobs_store.h"
#include "common/net/redis.h"

#define UUID "0123456789abcdef0123456789abcdef"

typedef struct {
    char dir[64];
    char url[96];
    pid_t pid;
} server_t;

/* Starts in a fresh directory, or again in the same one. */
void server_start(server_t *server);
/* SIGKILL; the directory stays. */
void server_kill(server_t *server);
/* SIGKILL and the directory goes. */
void server_remove(server_t *server);

/* A copy of one answer that outlives its callback. */
typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t told;
    bool done;
    jobs_reply_t reply;
    arena_t arena;
} answer_t;

void answer_begin(answer_t *answer);
void answer_end(answer_t *answer);
void on_answer(void *user, const jobs_reply_t *reply);
/* Fails the test after 15 s. */
const jobs_reply_t *answer_wait(answer_t *answer);

/* One call and its answer: ASK(answer, jobs_get(store, id, on_answer, &answer)). The last answer
 * is released by the next ASK on it; answer_end at the end. */
#define ASK(answer, call)                                                                          \
    (answer_begin(&(answer)), assert_int_equal((call), STATUS_OK), answer_wait(&(answer)))

/* Opens a store on the server, waits until it is healthy, creates and confirms the meta of UUID. */
jobs_store_t *store_open(const server_t *server, uint64_t jobs_bytes_max, uint64_t gate_ms);
/* Waits for a state of health; fails the test after 15 s. */
void store_wait(jobs_store_t *store, bool connected, bool durable);

/* A command on a redis client of its own; the integer or 0, and the text in `text` (may be
 * NULL). */
long long ask_redis(const server_t *server, char *text, size_t text_bytes, size_t n,
                    const char *const *args);
#define REDIS(server, ...)                                                                         \
    ask_redis((server), NULL, 0, sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *),           \
              (const char *[]){__VA_ARGS__})

/* Puts `total` items "body <i>" in chunks and submits them as job `id`. */
void make_job(jobs_store_t *store, const char *id, uint64_t total, const jobs_submit_t *how);

#endif
