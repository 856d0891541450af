/* The simple ways to call: one message there and back with a callback, and the blocking layer of
 * the command line and the tests, a thin shell of a lock and a condition around the callbacks. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/memory.h"
#include "common/net/rpc_internal.h"

typedef struct {
    rpc_unary_fn done;
    void *context;
    bool answered;
    buffer_t answer;
} unary_t;

static void unary_message(rpc_call_t *call, void *context, const uint8_t *bytes, size_t n)
{
    (void)call;
    unary_t *unary = context;
    if (!unary->answered)
        buffer_append(&unary->answer, bytes, n);
    unary->answered = true;
}

static void unary_end(rpc_call_t *call, void *context, const rpc_result_t *result)
{
    (void)call;
    unary_t *unary = context;
    rpc_result_t missing = *result;
    if (result->status == STATUS_OK && !unary->answered) {
        missing.status = STATUS_INTERNAL;
        missing.code = rpc_code_from_status(STATUS_INTERNAL);
        missing.message = "the server ended the call well but sent no answer";
    }
    const uint8_t *bytes = unary->answer.data ? unary->answer.data : (const uint8_t *)"";
    unary->done(unary->context, &missing, bytes, unary->answer.size);
    buffer_release(&unary->answer);
    free(unary);
}

status_t rpc_unary_ready(rpc_channel_t *channel, const char *method, const void *bytes, size_t n,
                         uint64_t timeout_ms, bool wait_for_ready, rpc_unary_fn done, void *context,
                         rpc_call_t **own_call_out)
{
    unary_t *unary = MEM_NEW(unary_t);
    unary->done = done;
    unary->context = context;
    rpc_call_options_t options = {
        .method = method,
        .timeout_ms = timeout_ms,
        .wait_for_ready = wait_for_ready,
        .handlers = {.on_message = unary_message, .on_end = unary_end},
        .context = unary,
    };
    rpc_call_t *call;
    status_t status = rpc_channel_start_call(channel, &options, bytes ? bytes : "", n, &call);
    if (status != STATUS_OK) {
        free(unary);
        return status;
    }
    if (own_call_out)
        *own_call_out = call;
    else
        rpc_call_unref(call);
    return STATUS_OK;
}

status_t rpc_unary(rpc_channel_t *channel, const char *method, const void *bytes, size_t n,
                   uint64_t timeout_ms, rpc_unary_fn done, void *context, rpc_call_t **own_call_out)
{
    return rpc_unary_ready(channel, method, bytes, n, timeout_ms, false, done, context,
                           own_call_out);
}

/* ---- blocking ---- */

struct rpc_stream {
    rpc_call_t *call;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    buffer_t message;
    bool have_message;
    bool writable;
    bool ended;
    bool woken; /* rpc_stream_cancel */
    status_t status;
    char *text;
};

static void stream_init(rpc_stream_t *stream)
{
    pthread_mutex_init(&stream->lock, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&stream->changed, &attributes);
    pthread_condattr_destroy(&attributes);
}

static void stream_release(rpc_stream_t *stream)
{
    pthread_mutex_destroy(&stream->lock);
    pthread_cond_destroy(&stream->changed);
    buffer_release(&stream->message);
    free(stream->text);
}

static void stream_message(rpc_call_t *call, void *context, const uint8_t *bytes, size_t n)
{
    (void)call;
    rpc_stream_t *stream = context;
    pthread_mutex_lock(&stream->lock);
    buffer_clear(&stream->message);
    buffer_append(&stream->message, bytes, n);
    stream->have_message = true;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
}

static void stream_writable(rpc_call_t *call, void *context)
{
    (void)call;
    rpc_stream_t *stream = context;
    pthread_mutex_lock(&stream->lock);
    stream->writable = true;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
}

static void stream_ended(rpc_stream_t *stream, const rpc_result_t *result)
{
    pthread_mutex_lock(&stream->lock);
    stream->ended = true;
    stream->status = result->status;
    stream->text = mem_strdup(result->message);
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
}

static void stream_end(rpc_call_t *call, void *context, const rpc_result_t *result)
{
    (void)call;
    stream_ended(context, result);
}

static void wait_unary_done(void *context, const rpc_result_t *result, const uint8_t *bytes,
                            size_t n)
{
    rpc_stream_t *stream = context;
    if (result->status == STATUS_OK)
        stream_message(NULL, stream, bytes, n);
    stream_ended(stream, result);
}

static status_t stream_failure(const rpc_stream_t *stream, const char *method)
{
    return fail(stream->status, "%s", stream->text[0] ? stream->text : method);
}

status_t rpc_unary_wait(rpc_channel_t *channel, const char *method, const void *bytes, size_t n,
                        uint64_t timeout_ms, buffer_t *reply)
{
    rpc_stream_t waiter = {0};
    stream_init(&waiter);
    status_t status =
        rpc_unary(channel, method, bytes, n, timeout_ms, wait_unary_done, &waiter, NULL);
    if (status == STATUS_OK) {
        pthread_mutex_lock(&waiter.lock);
        while (!waiter.ended)
            pthread_cond_wait(&waiter.changed, &waiter.lock);
        pthread_mutex_unlock(&waiter.lock);
        if (waiter.status != STATUS_OK)
            status = stream_failure(&waiter, method);
        else
            buffer_append(reply, waiter.message.data, waiter.message.size);
    }
    stream_release(&waiter);
    return status;
}

status_t rpc_stream_open(rpc_channel_t *channel, const char *method, uint64_t timeout_ms,
                         rpc_stream_t **own_stream_out)
{
    rpc_stream_t *stream = MEM_NEW(rpc_stream_t);
    stream_init(stream);
    rpc_call_options_t options = {
        .method = method,
        .timeout_ms = timeout_ms,
        .manual_read = true,
        .handlers = {.on_message = stream_message,
                     .on_writable = stream_writable,
                     .on_end = stream_end},
        .context = stream,
    };
    status_t status = rpc_call_start(channel, &options, &stream->call);
    if (status != STATUS_OK) {
        stream_release(stream);
        free(stream);
        return status;
    }
    /* One message is always asked for: gRPC tells the end of a stream only to who reads. */
    rpc_call_read(stream->call, 1);
    *own_stream_out = stream;
    return STATUS_OK;
}

status_t rpc_stream_send(rpc_stream_t *stream, const void *bytes, size_t n)
{
    for (;;) {
        pthread_mutex_lock(&stream->lock);
        stream->writable = false;
        pthread_mutex_unlock(&stream->lock);
        status_t status = rpc_call_send(stream->call, bytes, n);
        if (status == STATUS_INVALID || status == STATUS_OK)
            return status;
        pthread_mutex_lock(&stream->lock);
        /* Refused for good means that the end is known or about to be told. */
        while (!stream->ended && !stream->woken &&
               (status == STATUS_CANCELLED || !stream->writable))
            pthread_cond_wait(&stream->changed, &stream->lock);
        bool ended = stream->ended;
        bool woken = stream->woken;
        pthread_mutex_unlock(&stream->lock);
        if (ended && stream->status != STATUS_OK)
            return stream_failure(stream, "the stream has ended");
        if (ended || woken)
            return fail(STATUS_CANCELLED, "the stream has ended; nothing more can be sent");
    }
}

void rpc_stream_half_close(rpc_stream_t *stream)
{
    rpc_call_half_close(stream->call);
}

status_t rpc_stream_read(rpc_stream_t *stream, uint64_t timeout_ms, buffer_t *message,
                         bool *ended_out)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)(timeout_ms / 1000);
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    *ended_out = false;
    int waited = 0;
    pthread_mutex_lock(&stream->lock);
    while (!stream->have_message && !stream->ended && !stream->woken && waited != ETIMEDOUT) {
        if (timeout_ms)
            waited = pthread_cond_timedwait(&stream->changed, &stream->lock, &until);
        else
            pthread_cond_wait(&stream->changed, &stream->lock);
    }
    bool have = stream->have_message;
    bool ended = stream->ended;
    bool woken = stream->woken;
    if (have) {
        buffer_clear(message);
        buffer_append(message, stream->message.data, stream->message.size);
        stream->have_message = false;
    }
    pthread_mutex_unlock(&stream->lock);
    if (have) {
        rpc_call_read(stream->call, 1);
        return STATUS_OK;
    }
    if (ended) {
        *ended_out = stream->status == STATUS_OK;
        return *ended_out ? STATUS_OK : stream_failure(stream, "the stream has ended");
    }
    if (woken)
        return fail(STATUS_CANCELLED, "the wait for a message was interrupted");
    return fail(STATUS_TIMEOUT, "no message within %llu ms", (unsigned long long)timeout_ms);
}

void rpc_stream_close(rpc_stream_t *take_stream)
{
    rpc_call_cancel(take_stream->call);
    pthread_mutex_lock(&take_stream->lock);
    while (!take_stream->ended)
        pthread_cond_wait(&take_stream->changed, &take_stream->lock);
    pthread_mutex_unlock(&take_stream->lock);
    rpc_call_unref(take_stream->call);
    stream_release(take_stream);
    free(take_stream);
}

void rpc_stream_cancel(rpc_stream_t *stream)
{
    pthread_mutex_lock(&stream->lock);
    stream->woken = true;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
    rpc_call_cancel(stream->call);
}
