/* The server that the tests call. See net_test.h. */
#include "net_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/memory.h"

seen_t seen;

void net_test_nap(void)
{
    usleep(1000);
}

/* State of one call: also notices callbacks that overlap. */
typedef struct {
    atomic_uint inside;
    size_t total;
    size_t left, each;
} state_t;

static void enter(rpc_call_t *call)
{
    state_t *state = rpc_call_data(call);
    if (atomic_fetch_add(&state->inside, 1) != 0)
        atomic_fetch_add(&seen.overlaps, 1);
}

static void leave(rpc_call_t *call)
{
    state_t *state = rpc_call_data(call);
    atomic_fetch_sub(&state->inside, 1);
}

static void on_open(rpc_call_t *call, void *context)
{
    (void)context;
    rpc_call_set_data(call, MEM_NEW(state_t));
    atomic_fetch_add(&seen.opened, 1);
}

static void on_end(rpc_call_t *call, void *context, const rpc_result_t *result)
{
    (void)context;
    enter(call);
    leave(call);
    free(rpc_call_data(call));
    if (result->cancelled)
        atomic_fetch_add(&seen.cancelled, 1);
    if (result->status == STATUS_DEADLINE)
        atomic_fetch_add(&seen.deadline_passed, 1);
    atomic_fetch_add(&seen.ended, 1);
}

static void unary_message(rpc_call_t *call, void *context, const uint8_t *bytes, size_t n)
{
    (void)context;
    enter(call);
    atomic_fetch_add(&seen.messages, 1);
    rpc_call_reply(call, bytes, n);
    leave(call);
}

static void silent_message(rpc_call_t *call, void *context, const uint8_t *bytes, size_t n)
{
    (void)call;
    (void)context;
    (void)bytes;
    (void)n;
    atomic_fetch_add(&seen.messages, 1);
}

static void fail_message(rpc_call_t *call, void *context, const uint8_t *bytes, size_t n)
{
    (void)context;
    char *words = mem_strndup((const char *)bytes, n);
    const rpc_metadata_t trailing[] = {{"retry-after-ms", "250"}};
    rpc_call_finish(call, STATUS_EXHAUSTED, words, trailing, 1);
    free(words);
}

static void lose_message(rpc_call_t *call, void *context, const uint8_t *bytes, size_t n)
{
    (void)context;
    (void)bytes;
    (void)n;
    rpc_call_finish(call, STATUS_REPLICA_LOST, "replica m/0 was lost", NULL, 0);
}

static void count_go_on(rpc_call_t *call, void *context)
{
    (void)context;
    enter(call);
    state_t *state = rpc_call_data(call);
    char *message = mem_new(state->each + 1, 1);
    while (state->left) {
        snprintf(message, state->each + 1, "%zu", state->left);
        status_t status = rpc_call_send(call, message, state->each);
        if (status == STATUS_EXHAUSTED)
            atomic_fetch_add(&seen.refused_sends, 1);
        if (status != STATUS_OK)
            break;
        atomic_fetch_add(&seen.sent_messages, 1);
        state->left--;
    }
    if (!state->left)
        rpc_call_finish(call, STATUS_OK, "", NULL, 0);
    free(message);
    leave(call);
}

static void count_message(rpc_call_t *call, void *context, const uint8_t *bytes, size_t n)
{
    state_t *state = rpc_call_data(call);
    char *text = mem_strndup((const char *)bytes, n);
    if (sscanf(text, "%zu %zu", &state->left, &state->each) != 2)
        state->left = 0;
    free(text);
    count_go_on(call, context);
}

static void sum_message(rpc_call_t *call, void *context, const uint8_t *bytes, size_t n)
{
    (void)context;
    (void)bytes;
    enter(call);
    ((state_t *)rpc_call_data(call))->total += n;
    atomic_fetch_add(&seen.messages, 1);
    atomic_fetch_add(&seen.bytes, n);
    leave(call);
}

static void sum_half_close(rpc_call_t *call, void *context)
{
    (void)context;
    enter(call);
    char text[32];
    atomic_fetch_add(&seen.half_closed, 1);
    snprintf(text, sizeof text, "%zu", ((state_t *)rpc_call_data(call))->total);
    rpc_call_reply(call, text, strlen(text));
    leave(call);
}

static void chat_message(rpc_call_t *call, void *context, const uint8_t *bytes, size_t n)
{
    (void)context;
    enter(call);
    atomic_fetch_add(&seen.messages, 1);
    status_t status = rpc_call_send(call, bytes, n);
    if (status != STATUS_OK)
        rpc_call_fail(call, status);
    leave(call);
}

static void chat_half_close(rpc_call_t *call, void *context)
{
    (void)context;
    atomic_fetch_add(&seen.half_closed, 1);
    rpc_call_finish(call, STATUS_OK, "", NULL, 0);
}

static void meta_message(rpc_call_t *call, void *context, const uint8_t *bytes, size_t n)
{
    (void)context;
    (void)bytes;
    (void)n;
    const char *value = rpc_call_metadata(call, "x-test");
    char *text = mem_format("%s %s %s %llu", value ? value : "-", rpc_call_peer(call),
                            rpc_call_method(call), (unsigned long long)rpc_call_ms_left(call));
    rpc_call_reply(call, text, strlen(text));
    free(text);
}

#define METHOD(name, kind, message, half_close, writable)                                          \
    {"/test.Echo/" name, kind, {on_open, message, half_close, writable, on_end}, NULL, false}

static const rpc_method_t methods[] = {
    METHOD("Unary", RPC_UNARY, unary_message, NULL, NULL),
    METHOD("Silent", RPC_UNARY, silent_message, NULL, NULL),
    METHOD("Fail", RPC_UNARY, fail_message, NULL, NULL),
    METHOD("Lose", RPC_UNARY, lose_message, NULL, NULL),
    METHOD("Count", RPC_SERVER_STREAM, count_message, NULL, count_go_on),
    METHOD("Sum", RPC_CLIENT_STREAM, sum_message, sum_half_close, NULL),
    METHOD("Chat", RPC_BIDI, chat_message, chat_half_close, NULL),
    METHOD("Meta", RPC_UNARY, meta_message, NULL, NULL),
};

rpc_io_t *net_test_io(void)
{
    rpc_io_t *io;
    assert_int_equal(rpc_io_open(0, &io), STATUS_OK);
    return io;
}

rpc_server_t *net_test_server(rpc_io_t *io, const rpc_server_options_t *options)
{
    rpc_server_options_t all = options ? *options : (rpc_server_options_t){0};
    rpc_server_t *server;
    if (!all.listen)
        all.listen = "127.0.0.1:0";
    all.methods = methods;
    all.n_methods = sizeof methods / sizeof methods[0];
    assert_int_equal(rpc_server_open(io, &all, &server), STATUS_OK);
    return server;
}

rpc_channel_t *net_test_channel(rpc_io_t *io, const rpc_server_t *server)
{
    char *endpoint = mem_format("127.0.0.1:%u", rpc_server_port(server));
    rpc_channel_t *channel;
    rpc_channel_options_t options = {.endpoint = endpoint};
    assert_int_equal(rpc_channel_open(io, &options, &channel), STATUS_OK);
    free(endpoint);
    return channel;
}
