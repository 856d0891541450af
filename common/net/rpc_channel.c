/* The client's channel: one endpoint, a connection that gRPC makes and renews, the calls on it, and
 * what its state is. Each channel has connections of its own (no shared subchannel pool), so that a
 * stuck one can be dropped without the others. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/clock.h"
#include "common/base/memory.h"
#include "common/net/rpc_internal.h"

struct rpc_channel {
    rpc_io_t *io;
    grpc_channel *grpc;
    char *endpoint; /* as given, without http:// */
    rpc_channel_options_t options;
    rpc_tag_t tag_state;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    rpc_call_t *calls; /* under way, for close; a list through next and previous */
    unsigned n_calls;  /* whose on_end has not returned */
    rpc_state_t state;
    bool watching;     /* a state watch is under way */
    bool closing;
};

static rpc_state_t state_of(grpc_connectivity_state state)
{
    switch (state) {
    case GRPC_CHANNEL_CONNECTING: return RPC_CONNECTING;
    case GRPC_CHANNEL_READY: return RPC_READY;
    case GRPC_CHANNEL_TRANSIENT_FAILURE: return RPC_FAILING;
    default: return RPC_IDLE;
    }
}

static void watch_state(rpc_channel_t *channel, grpc_connectivity_state last)
{
    RPC_TAG_STARTS(&channel->tag_state);
    grpc_channel_watch_connectivity_state(channel->grpc, last, gpr_inf_future(GPR_CLOCK_REALTIME),
                                          channel->io->queue, &channel->tag_state);
}

static void state_changed(rpc_tag_t *tag, bool ok)
{
    (void)ok;
    rpc_channel_t *channel =
        (rpc_channel_t *)(void *)((char *)tag - offsetof(rpc_channel_t, tag_state));
    pthread_mutex_lock(&channel->lock);
    if (channel->closing) {
        channel->watching = false;
        pthread_cond_broadcast(&channel->changed);
        pthread_mutex_unlock(&channel->lock);
        return;
    }
    grpc_connectivity_state now = grpc_channel_check_connectivity_state(channel->grpc, 0);
    rpc_state_t state = state_of(now);
    bool told = state != channel->state && channel->options.on_state;
    channel->state = state;
    pthread_cond_broadcast(&channel->changed);
    pthread_mutex_unlock(&channel->lock);
    /* The next watch starts after the callback, so that two never overlap. */
    if (told)
        channel->options.on_state(channel->options.context, state);
    pthread_mutex_lock(&channel->lock);
    if (channel->closing) {
        channel->watching = false;
        pthread_cond_broadcast(&channel->changed);
    } else {
        watch_state(channel, now);
    }
    pthread_mutex_unlock(&channel->lock);
}

/* host:port with a port of 1 to 65535, or unix:path. */
static bool endpoint_ok(const char *endpoint)
{
    if (strncmp(endpoint, "unix:", 5) == 0)
        return endpoint[5] != 0;
    const char *colon = strrchr(endpoint, ':');
    if (!colon || colon == endpoint || strchr(endpoint, '/') || strchr(endpoint, ' '))
        return false;
    char *end;
    long port = strtol(colon + 1, &end, 10);
    return colon[1] >= '0' && colon[1] <= '9' && *end == 0 && port >= 1 && port <= 65535;
}

static grpc_channel *make_grpc_channel(const rpc_channel_t *channel)
{
    const rpc_channel_options_t *options = &channel->options;
    const struct {
        const char *key;
        size_t value;
    } values[] = {
        {GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, options->message_bytes_max},
        {GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, options->message_bytes_max},
        {GRPC_ARG_KEEPALIVE_TIME_MS, options->keepalive_ms},
        {GRPC_ARG_KEEPALIVE_TIMEOUT_MS, options->keepalive_timeout_ms},
        {GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0},
        {GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100},
        /* gRPC also takes this as the time one attempt may last. */
        {GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000},
        {GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, options->backoff_ms_max},
        {GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1},
        {GRPC_ARG_ENABLE_HTTP_PROXY, 0}, /* http_proxy is for the web, not for a cluster's inside */
        {GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1},
        {GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1},
        {GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0},
    };
    grpc_arg args[sizeof values / sizeof values[0]];
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        args[i].type = GRPC_ARG_INTEGER;
        args[i].key = (char *)(uintptr_t)values[i].key;
        args[i].value.integer = (int)values[i].value;
    }
    grpc_channel_args all = {sizeof args / sizeof args[0], args};
    grpc_channel_credentials *credentials = grpc_insecure_credentials_create();
    grpc_channel *grpc = grpc_channel_create(channel->endpoint, credentials, &all);
    grpc_channel_credentials_release(credentials);
    return grpc;
}

status_t rpc_channel_open(rpc_io_t *io, const rpc_channel_options_t *options,
                          rpc_channel_t **own_channel_out)
{
    const char *endpoint = options->endpoint ? options->endpoint : "";
    if (strncmp(endpoint, "http://", 7) == 0)
        endpoint += 7;
    if (!endpoint_ok(endpoint))
        return fail(STATUS_INVALID, "\"%s\" is no endpoint: it must be host:port or unix:/path",
                    options->endpoint ? options->endpoint : "");
    rpc_channel_t *channel = MEM_NEW(rpc_channel_t);
    channel->io = io;
    channel->options = *options;
    channel->options.endpoint = NULL;
    channel->endpoint = mem_strdup(endpoint);
    rpc_channel_options_t *o = &channel->options;
    if (!o->message_bytes_max)
        o->message_bytes_max = RPC_MESSAGE_BYTES_MAX;
    if (!o->send_queue_bytes)
        o->send_queue_bytes = RPC_SEND_QUEUE_BYTES;
    if (!o->keepalive_ms)
        o->keepalive_ms = 10000;
    if (!o->keepalive_timeout_ms)
        o->keepalive_timeout_ms = 5000;
    if (!o->backoff_ms_max)
        o->backoff_ms_max = 2000;
    pthread_mutex_init(&channel->lock, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&channel->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    channel->tag_state.run = state_changed;
    channel->grpc = make_grpc_channel(channel);
    channel->watching = true;
    watch_state(channel, GRPC_CHANNEL_IDLE);
    *own_channel_out = channel;
    return STATUS_OK;
}

void rpc_channel_close(rpc_channel_t *take_channel)
{
    rpc_channel_t *channel = take_channel;
    pthread_mutex_lock(&channel->lock);
    channel->closing = true;
    pthread_cond_broadcast(&channel->changed);
    /* Cancelling takes the call's lock, which nobody holds while taking ours. No call can start any
     * more, so one pass reaches all. */
    for (rpc_call_t *call = channel->calls; call; call = call->next)
        rpc_call_cancel(call);
    while (channel->n_calls)
        pthread_cond_wait(&channel->changed, &channel->lock);
    pthread_mutex_unlock(&channel->lock);
    /* The state becomes "shut down", which ends the watch. */
    grpc_channel_destroy(channel->grpc);
    pthread_mutex_lock(&channel->lock);
    while (channel->watching)
        pthread_cond_wait(&channel->changed, &channel->lock);
    pthread_mutex_unlock(&channel->lock);
    pthread_mutex_destroy(&channel->lock);
    pthread_cond_destroy(&channel->changed);
    free(channel->endpoint);
    free(channel);
}

const char *rpc_channel_endpoint(const rpc_channel_t *channel)
{
    return channel->endpoint;
}

void rpc_channel_connect(rpc_channel_t *channel)
{
    grpc_channel_check_connectivity_state(channel->grpc, 1);
}

rpc_state_t rpc_channel_state(rpc_channel_t *channel)
{
    pthread_mutex_lock(&channel->lock);
    rpc_state_t state = channel->state;
    pthread_mutex_unlock(&channel->lock);
    return state;
}

static status_t wait_connected(rpc_channel_t *channel, unsigned timeout_ms, bool one_attempt)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    int waited = 0;
    pthread_mutex_lock(&channel->lock);
    while (channel->state != RPC_READY && waited != ETIMEDOUT && !channel->closing &&
           !(one_attempt && channel->state == RPC_FAILING)) {
        /* Also after a lost connection, which leaves the channel idle. */
        if (channel->state == RPC_IDLE)
            grpc_channel_check_connectivity_state(channel->grpc, 1);
        waited = pthread_cond_timedwait(&channel->changed, &channel->lock, &until);
    }
    bool ready = channel->state == RPC_READY;
    pthread_mutex_unlock(&channel->lock);
    if (ready)
        return STATUS_OK;
    if (waited != ETIMEDOUT)
        return fail(STATUS_UNREACHABLE, "no connection to %s; is it running?", channel->endpoint);
    return fail(STATUS_UNREACHABLE, "no connection to %s within %u ms; is it running?",
                channel->endpoint, timeout_ms);
}

status_t rpc_channel_wait_ready(rpc_channel_t *channel, unsigned timeout_ms)
{
    return wait_connected(channel, timeout_ms, false);
}

status_t rpc_channel_wait_attempt(rpc_channel_t *channel, unsigned timeout_ms)
{
    return wait_connected(channel, timeout_ms, true);
}

/* ---- calls ---- */

void rpc_channel_call_ended(rpc_channel_t *channel, rpc_call_t *call)
{
    pthread_mutex_lock(&channel->lock);
    if (call->previous)
        call->previous->next = call->next;
    else
        channel->calls = call->next;
    if (call->next)
        call->next->previous = call->previous;
    channel->n_calls--;
    pthread_cond_broadcast(&channel->changed);
    pthread_mutex_unlock(&channel->lock);
}

static status_t check_metadata(const rpc_call_options_t *options)
{
    if (options->n_metadata > RPC_METADATA_MAX)
        return fail(STATUS_INVALID, "%zu metadata pairs for %s; at most %d go along",
                    options->n_metadata, options->method, RPC_METADATA_MAX);
    for (size_t i = 0; i < options->n_metadata; i++)
        if (!rpc_metadata_legal(&options->metadata[i]))
            return fail(STATUS_INVALID, "metadata \"%s\" for %s: keys are lower case, values are"
                                        " printable ASCII",
                        options->metadata[i].key, options->method);
    return STATUS_OK;
}

status_t rpc_channel_start_call(rpc_channel_t *channel, const rpc_call_options_t *options,
                                const void *only_message, size_t n, rpc_call_t **own_call_out)
{
    TRY(check_metadata(options));
    if (only_message && n > channel->options.message_bytes_max)
        return fail(STATUS_INVALID, "a message of %zu bytes for %s is over the limit of %zu bytes",
                    n, options->method, channel->options.message_bytes_max);
    gpr_timespec deadline = gpr_inf_future(GPR_CLOCK_MONOTONIC);
    if (options->timeout_ms)
        deadline = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                gpr_time_from_millis((int64_t)options->timeout_ms, GPR_TIMESPAN));
    grpc_slice method = grpc_slice_from_copied_string(options->method);
    pthread_mutex_lock(&channel->lock);
    if (channel->closing) {
        pthread_mutex_unlock(&channel->lock);
        grpc_slice_unref(method);
        return fail(STATUS_CANCELLED, "the channel to %s is closing", channel->endpoint);
    }
    grpc_call *grpc = grpc_channel_create_call(channel->grpc, NULL, GRPC_PROPAGATE_DEFAULTS,
                                               channel->io->queue, method, NULL, deadline, NULL);
    grpc_slice_unref(method);
    rpc_call_t *call = rpc_call_new(channel->io, grpc, &options->handlers, options->context);
    call->channel = channel;
    call->method = mem_strdup(options->method);
    call->deadline = deadline;
    call->message_bytes_max = channel->options.message_bytes_max;
    call->send_queue_bytes = channel->options.send_queue_bytes;
    call->manual_read = options->manual_read;
    atomic_store(&call->data, options->data);
    if (only_message) {
        rpc_call_enqueue(call, only_message, n);
        call->finish_wanted = true;
    }
    rpc_call_ref(call); /* the caller's */
    call->next = channel->calls;
    if (call->next)
        call->next->previous = call;
    channel->calls = call;
    channel->n_calls++;
    /* Still under the channel's lock: a close that comes now must find a call it can cancel. */
    rpc_call_begin_client(call, options->metadata, options->n_metadata, options->wait_for_ready);
    pthread_mutex_unlock(&channel->lock);
    *own_call_out = call;
    return STATUS_OK;
}

status_t rpc_call_start(rpc_channel_t *channel, const rpc_call_options_t *options,
                        rpc_call_t **own_call_out)
{
    return rpc_channel_start_call(channel, options, NULL, 0, own_call_out);
}
