/* The Redis client's thread: a poll loop around hiredis' asynchronous context.
 *
 * Callers never touch hiredis. They put formatted commands into a locked list and ring an eventfd;
 * the thread moves the list into the connection's output buffer, which is what pipelines them.
 * Commands wait in `waiting` until they are handed over and then in `flying`, oldest first, which
 * is also the order of the answers, so the call timeout looks at one call only. */
#include "common/net/redis.h"

#include <errno.h>
#include <hiredis/async.h>
#include <hiredis/hiredis.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/memory.h"
#include "common/net/redis_url.h"

#define BACKOFF_MIN_MS 50
#define BACKOFF_MAX_MS 2000
#define CONNECT_TIMEOUT_MS 2000

typedef struct call {
    struct call *next;
    redis_t *redis;
    char *command;
    size_t bytes;
    uint64_t sent_ms;
    redis_reply_fn fn;
    void *user;
} call_t;

typedef struct {
    call_t *head, **tail;
} call_list_t;

struct redis {
    redis_config_t config;
    redis_url_t url;
    pthread_t thread;
    int wake_fd;

    pthread_mutex_t lock; /* guards the next five; never held during a callback */
    call_list_t waiting;
    size_t n_calls; /* waiting and flying */
    size_t bytes;
    bool closing;
    bool rung;

    atomic_bool connected;

    /* Below: the I/O thread's alone. */
    redisAsyncContext *context; /* NULL while there is no connection, not even a beginning one */
    call_list_t flying;
    bool want_read, want_write;
    uint64_t connect_by_ms; /* while connecting */
    uint64_t retry_at_ms;
    uint64_t backoff_ms;
    uint64_t next_tick_ms;
    unsigned jitter;
    char why[160]; /* the connection ended */
};

static void list_add(call_list_t *list, call_t *call)
{
    call->next = NULL;
    *list->tail = call;
    list->tail = &call->next;
}

static call_t *list_take(call_list_t *list)
{
    call_t *call = list->head;
    if (call) {
        list->head = call->next;
        if (!list->head)
            list->tail = &list->head;
    }
    return call;
}

/* Ends one call; the only place that runs a caller's function. */
static void call_end(call_t *take_call, status_t status, const char *error, redisReply *reply)
{
    redis_t *redis = take_call->redis;
    pthread_mutex_lock(&redis->lock);
    redis->n_calls--;
    redis->bytes -= take_call->bytes;
    pthread_mutex_unlock(&redis->lock);
    take_call->fn(take_call->user, status, error, reply);
    free(take_call->command);
    free(take_call);
}

static void fail_waiting(redis_t *redis, status_t status, const char *why)
{
    pthread_mutex_lock(&redis->lock);
    call_list_t list = redis->waiting;
    redis->waiting = (call_list_t){NULL, &redis->waiting.head};
    pthread_mutex_unlock(&redis->lock);
    if (!list.head)
        return;
    for (call_t *call = list.head, *next; call; call = next) {
        next = call->next;
        call_end(call, status, why, NULL);
    }
}

/* ---- hiredis' callbacks ---- */

static void on_reply(redisAsyncContext *context, void *answer, void *user)
{
    call_t *call = user;
    redis_t *redis = context->data;
    redisReply *reply = answer;
    /* hiredis answers strictly in order, also when it gives everything up. */
    CHECK(list_take(&redis->flying) == call);
    if (!reply)
        call_end(call, STATUS_UNREACHABLE, redis->why[0] ? redis->why : "redis: connection lost",
                 NULL);
    else if (reply->type == REDIS_REPLY_ERROR)
        call_end(call, STATUS_REFUSED, reply->str, NULL);
    else
        call_end(call, STATUS_OK, "", reply);
}

static void plan_retry(redis_t *redis)
{
    /* Half fixed, half drawn, so that many clients do not come back at the same instant. */
    uint64_t wait = redis->backoff_ms / 2 +
                    (uint64_t)rand_r(&redis->jitter) % (redis->backoff_ms / 2 + 1);
    redis->retry_at_ms = clock_ms() + wait;
    redis->backoff_ms = redis->backoff_ms * 2 > BACKOFF_MAX_MS ? BACKOFF_MAX_MS
                                                               : redis->backoff_ms * 2;
}

/* hiredis frees the context after either of the next two. */
static void on_gone(redis_t *redis, const char *why)
{
    bool was_connected = atomic_exchange(&redis->connected, false);
    redis->context = NULL;
    redis->want_read = redis->want_write = false;
    if (!redis->why[0])
        snprintf(redis->why, sizeof redis->why, "redis %s: %s", redis->url.shown,
                 why && why[0] ? why : "connection closed");
    plan_retry(redis);
    if (was_connected) {
        log_warn("%s", redis->why);
        if (redis->config.on_state)
            redis->config.on_state(redis->config.user, false, redis->why);
    }
    fail_waiting(redis, STATUS_UNREACHABLE, redis->why);
}

static void on_disconnect(const redisAsyncContext *context, int status)
{
    (void)status;
    on_gone(context->data, context->errstr);
}

static void on_auth(redisAsyncContext *context, void *answer, void *user)
{
    (void)user;
    redis_t *redis = context->data;
    redisReply *reply = answer;
    if (reply && reply->type == REDIS_REPLY_ERROR)
        log_error("redis %s refuses the password: %s", redis->url.shown, reply->str);
}

static void on_connect(const redisAsyncContext *context, int status)
{
    redis_t *redis = context->data;
    if (status != REDIS_OK) {
        on_gone(redis, context->errstr);
        return;
    }
    redis->connect_by_ms = 0;
    redis->backoff_ms = BACKOFF_MIN_MS;
    redis->why[0] = '\0';
    if (redis->url.password)
        redisAsyncCommand(redis->context, on_auth, NULL, "AUTH %s", redis->url.password);
    atomic_store(&redis->connected, true);
    if (redis->config.on_state)
        redis->config.on_state(redis->config.user, true, "");
}

static void add_read(void *user)
{
    ((redis_t *)user)->want_read = true;
}

static void del_read(void *user)
{
    ((redis_t *)user)->want_read = false;
}

static void add_write(void *user)
{
    ((redis_t *)user)->want_write = true;
}

static void del_write(void *user)
{
    ((redis_t *)user)->want_write = false;
}

/* ---- the loop ---- */

static void connect_now(redis_t *redis)
{
    redis->why[0] = '\0';
    redisAsyncContext *context = redis->url.unix_path
                                     ? redisAsyncConnectUnix(redis->url.unix_path)
                                     : redisAsyncConnect(redis->url.host, redis->url.port);
    if (!context || context->err) {
        snprintf(redis->why, sizeof redis->why, "redis %s: %s", redis->url.shown,
                 context ? context->errstr : "out of memory");
        if (context)
            redisAsyncFree(context);
        plan_retry(redis);
        fail_waiting(redis, STATUS_UNREACHABLE, redis->why);
        return;
    }
    redis->context = context;
    context->data = redis;
    context->ev.data = redis;
    context->ev.addRead = add_read;
    context->ev.delRead = del_read;
    context->ev.addWrite = add_write;
    context->ev.delWrite = del_write;
    redis->connect_by_ms = clock_ms() + CONNECT_TIMEOUT_MS;
    redisAsyncSetConnectCallback(context, on_connect);
    redisAsyncSetDisconnectCallback(context, on_disconnect);
}

/* Moves what waits into the connection, or ends it when there is none. */
static void hand_over(redis_t *redis)
{
    if (!atomic_load(&redis->connected)) {
        fail_waiting(redis, STATUS_UNREACHABLE,
                     redis->why[0] ? redis->why : "redis: not connected yet");
        return;
    }
    pthread_mutex_lock(&redis->lock);
    call_list_t list = redis->waiting;
    redis->waiting = (call_list_t){NULL, &redis->waiting.head};
    pthread_mutex_unlock(&redis->lock);
    if (!list.head)
        return;
    uint64_t now = clock_ms();
    for (call_t *call = list.head, *next; call; call = next) {
        next = call->next;
        call->sent_ms = now;
        list_add(&redis->flying, call);
        int sent = redisAsyncFormattedCommand(redis->context, on_reply, call, call->command,
                                              call->bytes);
        CHECK(sent == REDIS_OK); /* refused only after a disconnect, which `connected` excludes */
        free(call->command);
        call->command = NULL;
    }
}

/* Drops the connection: hiredis ends every call under way through on_reply. */
static void give_up(redis_t *redis, const char *why)
{
    bool was_connecting = !atomic_load(&redis->connected);
    snprintf(redis->why, sizeof redis->why, "redis %s: %s", redis->url.shown, why);
    redisAsyncContext *context = redis->context;
    redisAsyncFree(context);
    if (was_connecting) /* hiredis tells of the end of established connections only */
        on_gone(redis, why);
}

static int wait_ms(const redis_t *redis, uint64_t now)
{
    uint64_t at = now + 60000;
    if (!redis->context && redis->retry_at_ms < at)
        at = redis->retry_at_ms;
    if (redis->context && redis->connect_by_ms && redis->connect_by_ms < at)
        at = redis->connect_by_ms;
    if (redis->flying.head && redis->flying.head->sent_ms + redis->config.call_timeout_ms < at)
        at = redis->flying.head->sent_ms + redis->config.call_timeout_ms;
    if (redis->next_tick_ms && redis->next_tick_ms < at)
        at = redis->next_tick_ms;
    return at > now ? (int)(at - now) : 0;
}

static void do_timers(redis_t *redis)
{
    uint64_t now = clock_ms();
    if (redis->context && redis->connect_by_ms && now >= redis->connect_by_ms)
        give_up(redis, "no connection within 2 s");
    if (redis->context && redis->flying.head &&
        now >= redis->flying.head->sent_ms + redis->config.call_timeout_ms)
        give_up(redis, "no answer in time");
    if (!redis->context && now >= redis->retry_at_ms)
        connect_now(redis);
    if (redis->next_tick_ms && now >= redis->next_tick_ms) {
        redis->next_tick_ms = now + redis->config.tick_ms;
        redis->config.on_tick(redis->config.user);
    }
}

static void do_io(redis_t *redis, short revents)
{
    /* Each handler may free the context, so it is looked at again before the next. */
    if (redis->context && (revents & (POLLIN | POLLERR | POLLHUP)) && redis->want_read)
        redisAsyncHandleRead(redis->context);
    if (redis->context && (revents & (POLLOUT | POLLERR | POLLHUP)) && redis->want_write)
        redisAsyncHandleWrite(redis->context);
}

static void *io_main(void *user)
{
    redis_t *redis = user;
    pthread_setname_np(pthread_self(), "redis");
    for (;;) {
        struct pollfd fds[2] = {{redis->wake_fd, POLLIN, 0}, {-1, 0, 0}};
        if (redis->context) {
            fds[1].fd = redis->context->c.fd;
            fds[1].events =
                (short)((redis->want_read ? POLLIN : 0) | (redis->want_write ? POLLOUT : 0));
        }
        if (poll(fds, 2, wait_ms(redis, clock_ms())) < 0 && errno != EINTR)
            CHECK(false);
        if (fds[0].revents) {
            uint64_t rung;
            ssize_t got = read(redis->wake_fd, &rung, sizeof rung);
            (void)got; /* EAGAIN is fine: the bell is only a hint */
        }
        pthread_mutex_lock(&redis->lock);
        redis->rung = false;
        bool closing = redis->closing;
        pthread_mutex_unlock(&redis->lock);
        if (closing)
            break;
        do_io(redis, fds[1].revents);
        hand_over(redis);
        do_timers(redis);
    }
    redis->config.on_state = NULL;
    if (redis->context)
        give_up(redis, "the client is closing");
    fail_waiting(redis, STATUS_CANCELLED, "redis: the client is closing");
    return NULL;
}

/* ---- what callers see ---- */

status_t redis_open(const redis_config_t *config, redis_t **own_redis_out)
{
    redis_url_t url;
    TRY(redis_url_parse(config->url, &url));
    int wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wake_fd < 0) {
        redis_url_release(&url);
        return fail(STATUS_IO, "redis: no eventfd: %s", strerror(errno));
    }
    redis_t *redis = MEM_NEW(redis_t);
    redis->config = *config;
    redis->url = url;
    redis->wake_fd = wake_fd;
    redis->config.url = NULL;
    if (!redis->config.call_timeout_ms)
        redis->config.call_timeout_ms = 5000;
    if (!redis->config.calls_max)
        redis->config.calls_max = 65536;
    if (!redis->config.bytes_max)
        redis->config.bytes_max = (size_t)256 << 20;
    redis->backoff_ms = BACKOFF_MIN_MS;
    redis->jitter = (unsigned)clock_ns() ^ (unsigned)getpid();
    redis->waiting.tail = &redis->waiting.head;
    redis->flying.tail = &redis->flying.head;
    if (redis->config.on_tick && redis->config.tick_ms)
        redis->next_tick_ms = clock_ms() + redis->config.tick_ms;
    pthread_mutex_init(&redis->lock, NULL);
    int error = pthread_create(&redis->thread, NULL, io_main, redis);
    if (error) {
        pthread_mutex_destroy(&redis->lock);
        close(wake_fd);
        redis_url_release(&redis->url);
        free(redis);
        return fail(STATUS_IO, "redis: no thread: %s", strerror(error));
    }
    *own_redis_out = redis;
    return STATUS_OK;
}

static void ring(redis_t *redis)
{
    uint64_t one = 1;
    ssize_t put = write(redis->wake_fd, &one, sizeof one);
    (void)put; /* fails only when the counter is full, and then it is rung already */
}

void redis_close(redis_t *take_redis)
{
    if (!take_redis)
        return;
    CHECK(!pthread_equal(pthread_self(), take_redis->thread));
    pthread_mutex_lock(&take_redis->lock);
    take_redis->closing = true;
    pthread_mutex_unlock(&take_redis->lock);
    ring(take_redis);
    pthread_join(take_redis->thread, NULL);
    pthread_mutex_destroy(&take_redis->lock);
    close(take_redis->wake_fd);
    redis_url_release(&take_redis->url);
    free(take_redis);
}

status_t redis_call(redis_t *redis, size_t n_args, const char *const *args, const size_t *sizes,
                    redis_reply_fn fn, void *user)
{
    call_t *call = MEM_NEW(call_t);
    /* hiredis takes the table of pointers without const but writes nothing. */
    union {
        const char *const *given;
        const char **taken;
    } table = {.given = args};
    long long bytes = redisFormatCommandArgv(&call->command, (int)n_args, table.taken, sizes);
    CHECK(bytes > 0);
    call->redis = redis;
    call->bytes = (size_t)bytes;
    call->fn = fn;
    call->user = user;
    pthread_mutex_lock(&redis->lock);
    status_t status = STATUS_OK;
    if (redis->closing)
        status = STATUS_CANCELLED;
    else if (redis->n_calls >= redis->config.calls_max ||
             redis->bytes + call->bytes > redis->config.bytes_max)
        status = STATUS_EXHAUSTED;
    bool bell = false;
    if (status == STATUS_OK) {
        list_add(&redis->waiting, call);
        redis->n_calls++;
        redis->bytes += call->bytes;
        bell = !redis->rung;
        redis->rung = true;
    }
    pthread_mutex_unlock(&redis->lock);
    if (status == STATUS_OK) {
        if (bell)
            ring(redis);
        return STATUS_OK;
    }
    free(call->command);
    free(call);
    if (status == STATUS_CANCELLED)
        return fail(status, "redis: the client is closing");
    return fail(status, "redis: %zu calls or %zu bytes wait for answers already; try later",
                redis->config.calls_max, redis->config.bytes_max);
}

status_t redis_call_text(redis_t *redis, size_t n_args, const char *const *args, redis_reply_fn fn,
                         void *user)
{
    return redis_call(redis, n_args, args, NULL, fn, user);
}

bool redis_connected(const redis_t *redis)
{
    return atomic_load(&redis->connected);
}
