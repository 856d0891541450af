/* The server: arrivals, dispatch by name, limits, the orderly end.
 *
 * Calls arrive through the generic request only and are looked up here, so a method that nobody
 * registered is answered at once instead of hanging until its deadline. Several requests stay
 * armed; gRPC keeps further arrivals itself until one is. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/memory.h"
#include "common/net/rpc_internal.h"

#define ARRIVALS 16
#define CALLS_MAX_DEFAULT 100000
#define STREAMS_MAX_DEFAULT 10000
#define RETRY_AFTER_MS "250" /* told to clients that come while calls_max is reached */

struct rpc_server {
    rpc_io_t *io;
    grpc_server *grpc;
    rpc_method_t *methods; /* sorted by name */
    size_t n_methods;
    rpc_server_options_t options;
    unsigned port;
    rpc_health_t *health;
    rpc_reflection_t *reflection;
    rpc_arrival_t arrivals[ARRIVALS];
    rpc_tag_t tag_shutdown;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned n_calls;    /* whose on_end has not returned */
    unsigned n_arrivals; /* armed */
    bool closing;
    bool shut_down;
};

static int compare_methods(const void *a, const void *b)
{
    return strcmp(((const rpc_method_t *)a)->name, ((const rpc_method_t *)b)->name);
}

static const rpc_method_t *find_method(const rpc_server_t *server, const char *name)
{
    rpc_method_t key = {.name = name};
    if (server->n_methods == 0)
        return NULL;
    return bsearch(&key, server->methods, server->n_methods, sizeof key, compare_methods);
}

void rpc_server_call_ended(rpc_server_t *server)
{
    pthread_mutex_lock(&server->lock);
    server->n_calls--;
    pthread_cond_broadcast(&server->changed);
    pthread_mutex_unlock(&server->lock);
}

/* Arms one arrival; lock held. */
static void arm(rpc_server_t *server, rpc_arrival_t *arrival)
{
    grpc_call_details_init(&arrival->details);
    grpc_metadata_array_init(&arrival->metadata);
    arrival->grpc = NULL;
    RPC_TAG_STARTS(&arrival->tag);
    grpc_call_error error =
        grpc_server_request_call(server->grpc, &arrival->grpc, &arrival->details,
                                 &arrival->metadata, server->io->queue, server->io->queue,
                                 &arrival->tag);
    CHECK(error == GRPC_CALL_OK);
    server->n_arrivals++;
}

static void disarm(rpc_arrival_t *arrival)
{
    grpc_call_details_destroy(&arrival->details);
    grpc_metadata_array_destroy(&arrival->metadata);
}

/* Answers a call that no handler will see. */
static void refuse(rpc_call_t *call, bool busy)
{
    static const rpc_metadata_t retry = {"retry-after-ms", RETRY_AFTER_MS};
    if (busy)
        rpc_call_finish(call, STATUS_EXHAUSTED,
                        "the server has as many calls under way as it takes; try again later",
                        &retry, 1);
    else
        rpc_call_fail(call, fail(STATUS_UNSUPPORTED,
                                 "no method %s here; server reflection lists what there is",
                                 call->method));
}

static void accept_call(rpc_server_t *server, rpc_arrival_t *arrival, bool busy)
{
    static const rpc_handlers_t no_handlers;
    char *name = mem_strndup((const char *)GRPC_SLICE_START_PTR(arrival->details.method),
                             GRPC_SLICE_LENGTH(arrival->details.method));
    const rpc_method_t *method = busy ? NULL : find_method(server, name);
    rpc_call_t *call =
        rpc_call_new(server->io, arrival->grpc, method ? &method->handlers : &no_handlers,
                     method ? method->context : NULL);
    call->server = server;
    call->method = name;
    call->peer = grpc_call_get_peer(arrival->grpc);
    call->deadline = arrival->details.deadline;
    rpc_pairs_copy(&call->request_metadata, &arrival->metadata);
    call->message_bytes_max = server->options.message_bytes_max;
    call->send_queue_bytes = server->options.send_queue_bytes;
    if (method) {
        call->one_message = method->kind == RPC_UNARY || method->kind == RPC_SERVER_STREAM;
        call->manual_read = method->manual_read;
    } else {
        call->manual_read = true; /* nothing is read from a call that is refused */
        rpc_call_ref(call);
    }
    rpc_call_begin_server(call);
    if (!method) {
        refuse(call, busy);
        rpc_call_unref(call);
    }
}

static void arrived(rpc_tag_t *tag, bool ok)
{
    rpc_arrival_t *arrival = (rpc_arrival_t *)(void *)tag;
    rpc_server_t *server = arrival->server;
    if (ok) {
        pthread_mutex_lock(&server->lock);
        bool busy = server->n_calls >= server->options.calls_max;
        server->n_calls++;
        pthread_mutex_unlock(&server->lock);
        accept_call(server, arrival, busy);
    }
    disarm(arrival);
    pthread_mutex_lock(&server->lock);
    server->n_arrivals--;
    if (ok && !server->closing)
        arm(server, arrival);
    pthread_cond_broadcast(&server->changed);
    pthread_mutex_unlock(&server->lock);
}

static void shut_down(rpc_tag_t *tag, bool ok)
{
    (void)ok;
    rpc_server_t *server =
        (rpc_server_t *)(void *)((char *)tag - offsetof(rpc_server_t, tag_shutdown));
    pthread_mutex_lock(&server->lock);
    server->shut_down = true;
    pthread_cond_broadcast(&server->changed);
    pthread_mutex_unlock(&server->lock);
}

static grpc_arg int_arg(const char *key, size_t value)
{
    grpc_arg arg = {.type = GRPC_ARG_INTEGER};
    arg.key = (char *)(uintptr_t)key;
    arg.value.integer = value > INT32_MAX ? INT32_MAX : (int)value;
    return arg;
}

static grpc_server *make_grpc_server(const rpc_server_options_t *options)
{
    grpc_arg args[] = {
        int_arg(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, options->message_bytes_max),
        int_arg(GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, options->message_bytes_max),
        int_arg(GRPC_ARG_MAX_CONCURRENT_STREAMS, options->streams_max),
        int_arg(GRPC_ARG_KEEPALIVE_TIME_MS, options->keepalive_ms),
        int_arg(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, options->keepalive_timeout_ms),
        int_arg(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
        int_arg(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
        int_arg(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 100),
        /* Two servers on one port would share its clients at random. */
        int_arg(GRPC_ARG_ALLOW_REUSEPORT, 0),
        int_arg(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1),
        int_arg(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0),
    };
    grpc_channel_args all = {sizeof args / sizeof args[0], args};
    return grpc_server_create(&all, NULL);
}

static void set_defaults(rpc_server_options_t *options)
{
    if (!options->message_bytes_max)
        options->message_bytes_max = RPC_MESSAGE_BYTES_MAX;
    if (!options->send_queue_bytes)
        options->send_queue_bytes = RPC_SEND_QUEUE_BYTES;
    if (!options->calls_max)
        options->calls_max = CALLS_MAX_DEFAULT;
    if (!options->streams_max)
        options->streams_max = STREAMS_MAX_DEFAULT;
    if (!options->keepalive_ms)
        options->keepalive_ms = 10000;
    if (!options->keepalive_timeout_ms)
        options->keepalive_timeout_ms = 5000;
}

static void make_methods(rpc_server_t *server)
{
    size_t n = server->options.n_methods;
    server->methods = MEM_NEW_ARRAY(rpc_method_t, n + 2 * RPC_SERVICE_METHODS_MAX);
    if (n)
        memcpy(server->methods, server->options.methods, n * sizeof *server->methods);
    if (!server->options.no_services) {
        server->health = rpc_health_new(server->options.methods, n);
        server->reflection = rpc_reflection_new(server->options.methods, n);
        n += rpc_health_methods(server->health, server->methods + n);
        n += rpc_reflection_methods(server->reflection, server->methods + n);
    }
    server->n_methods = n;
    qsort(server->methods, n, sizeof *server->methods, compare_methods);
}

static void free_server(rpc_server_t *server)
{
    if (server->health)
        rpc_health_free(server->health);
    if (server->reflection)
        rpc_reflection_free(server->reflection);
    pthread_mutex_destroy(&server->lock);
    pthread_cond_destroy(&server->changed);
    free(server->methods);
    free(server);
}

/* Ends the gRPC side: after this no tag of the server is under way. */
static void stop_grpc(rpc_server_t *server, unsigned grace_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += grace_ms / 1000;
    until.tv_nsec += (long)(grace_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    RPC_TAG_STARTS(&server->tag_shutdown);
    grpc_server_shutdown_and_notify(server->grpc, server->io->queue, &server->tag_shutdown);
    pthread_mutex_lock(&server->lock);
    while (server->n_calls && grace_ms)
        if (pthread_cond_timedwait(&server->changed, &server->lock, &until) == ETIMEDOUT)
            break;
    pthread_mutex_unlock(&server->lock);
    grpc_server_cancel_all_calls(server->grpc);
    pthread_mutex_lock(&server->lock);
    while (server->n_calls || server->n_arrivals || !server->shut_down)
        pthread_cond_wait(&server->changed, &server->lock);
    pthread_mutex_unlock(&server->lock);
    grpc_server_destroy(server->grpc);
}

status_t rpc_server_open(rpc_io_t *io, const rpc_server_options_t *options,
                         rpc_server_t **own_server_out)
{
    rpc_server_t *server = MEM_NEW(rpc_server_t);
    server->io = io;
    server->options = *options;
    set_defaults(&server->options);
    pthread_mutex_init(&server->lock, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&server->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    make_methods(server);
    server->tag_shutdown.run = shut_down;
    server->grpc = make_grpc_server(&server->options);
    grpc_server_register_completion_queue(server->grpc, io->queue, NULL);

    grpc_server_credentials *credentials = grpc_insecure_server_credentials_create();
    int port = grpc_server_add_http2_port(server->grpc, options->listen, credentials);
    grpc_server_credentials_release(credentials);
    grpc_server_start(server->grpc);
    if (port == 0) {
        stop_grpc(server, 0);
        free_server(server);
        return fail(STATUS_IO,
                    "cannot listen on \"%s\": it must be host:port or unix:/path, and free",
                    options->listen);
    }
    server->port = strncmp(options->listen, "unix:", 5) == 0 ? 0 : (unsigned)port;
    pthread_mutex_lock(&server->lock);
    for (size_t i = 0; i < ARRIVALS; i++) {
        server->arrivals[i] = (rpc_arrival_t){.tag = {.run = arrived}, .server = server};
        arm(server, &server->arrivals[i]);
    }
    pthread_mutex_unlock(&server->lock);
    *own_server_out = server;
    return STATUS_OK;
}

unsigned rpc_server_port(const rpc_server_t *server)
{
    return server->port;
}

unsigned rpc_server_calls(const rpc_server_t *server)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)(uintptr_t)&server->lock;
    pthread_mutex_lock(lock);
    unsigned n = server->n_calls;
    pthread_mutex_unlock(lock);
    return n;
}

void rpc_server_set_serving(rpc_server_t *server, const char *service, bool serving)
{
    if (server->health)
        rpc_health_set(server->health, service, serving);
}

void rpc_server_close(rpc_server_t *take_server, unsigned grace_ms)
{
    pthread_mutex_lock(&take_server->lock);
    take_server->closing = true;
    pthread_mutex_unlock(&take_server->lock);
    if (take_server->health)
        rpc_health_stop(take_server->health);
    stop_grpc(take_server, grace_ms);
    free_server(take_server);
}
