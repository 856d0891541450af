/* What coordinators send to the Engine service. These handlers run on the I/O threads of gRPC: they
 * copy into the leader's mailbox and never wait for a step. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/net/rpc_message.h"
#include "worker/service_internal.h"

static void refuse(stream_t *stream, const Shoal__Worker__V1__Admit *admit, const char *code,
                   const char *words)
{
    if (stream->n_refusals == SERVICE_REFUSALS_MAX) {
        rpc_call_finish(stream->call, STATUS_EXHAUSTED, SERVICE_UNREAD, NULL, 0);
        return;
    }
    refusal_t *one = MEM_NEW(refusal_t);
    snprintf(one->session, sizeof one->session, "%s", admit->session);
    one->choice = admit->choice;
    one->owner = admit->owner;
    one->code = code;
    snprintf(one->words, sizeof one->words, "%s", words);
    *stream->refusals_end = one;
    stream->refusals_end = &one->next;
    stream->n_refusals++;
    atomic_store(&stream->dirty, true);
    service_ring(stream->service);
}

static void take_admit(service_t *service, stream_t *stream, Shoal__Worker__V1__Admit *admit)
{
    arena_t arena = {0};
    admission_t admission;
    status_t status = service_read_admit(admit, &arena, &admission);
    if (status != STATUS_OK) {
        refuse(stream, admit, "invalid", status_text());
    } else {
        /* While draining only what runs already may be attached to. */
        bool attach_only = admission.attach_only;
        admission.attach_only = attach_only || service->draining;
        if (attach_only)
            service_book_attach(service->book, admit->session, admit->choice,
                                stream->leader_stream);
        else if (!service->draining)
            service_book_put(service->book, admit, clock_ms());
        leader_admit(service->leader, stream->leader_stream, &admission);
    }
    arena_release(&arena);
}

static void finish(rpc_call_t *call, status_t status, const char *words)
{
    rpc_call_finish(call, status, words, NULL, 0);
}

static bool hello_is_good(service_t *service, rpc_call_t *call,
                          const Shoal__Worker__V1__Hello *hello)
{
    char words[STATUS_TEXT_MAX];
    if (hello->contract_version != SERVICE_CONTRACT_VERSION) {
        snprintf(words, sizeof words, "replica %s speaks contract version %u, not %u (build %s)",
                 service->replica, SERVICE_CONTRACT_VERSION, hello->contract_version,
                 hello->build);
        finish(call, STATUS_REFUSED, words);
        return false;
    }
    if (!service->leader) {
        snprintf(words, sizeof words, "replica %s has no active epoch", service->replica);
        finish(call, STATUS_UNREACHABLE, words);
        return false;
    }
    if (hello->text_identity[0] && strcmp(hello->text_identity, service->text_identity) != 0) {
        snprintf(words, sizeof words, "replica %s computes text identity %s, not %s",
                 service->replica, service->text_identity, hello->text_identity);
        finish(call, STATUS_REFUSED, words);
        return false;
    }
    return true;
}

static void take_hello(service_t *service, rpc_call_t *call,
                       const Shoal__Worker__V1__Hello *hello)
{
    if (!hello_is_good(service, call, hello))
        return;
    stream_t *stream = MEM_NEW(stream_t);
    stream->service = service;
    stream->refusals_end = &stream->refusals;
    stream->leader_stream = leader_stream_open(service->leader, service_on_wake, stream);
    if (stream->leader_stream == 0) {
        free(stream);
        finish(call, STATUS_EXHAUSTED, "the leader has as many streams as it takes");
        return;
    }
    stream->call = call;
    rpc_call_ref(call);
    stream->sent_ms = clock_ms();
    stream->next = service->streams;
    service->streams = stream;
    rpc_call_set_data(call, stream);
    Shoal__Worker__V1__LeaderMessage message = SHOAL__WORKER__V1__LEADER_MESSAGE__INIT;
    Shoal__Worker__V1__HelloReply reply = SHOAL__WORKER__V1__HELLO_REPLY__INIT;
    reply.replica = service->replica;
    reply.epoch = service->epoch;
    reply.text_identity = service->text_identity;
    reply.credit_tokens = service_credit(service, stream);
    reply.context_max = service->context_max;
    message.message_case = SHOAL__WORKER__V1__LEADER_MESSAGE__MESSAGE_HELLO;
    message.hello = &reply;
    if (rpc_call_send_message(call, &message) != STATUS_OK)
        rpc_call_fail(call, STATUS_INTERNAL);
    log_info("coordinator %s attached", hello->coordinator);
}

static void take_message(service_t *service, rpc_call_t *call,
                         Shoal__Worker__V1__CoordinatorMessage *message)
{
    stream_t *stream = rpc_call_data(call);
    bool is_hello =
        message->message_case == SHOAL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_HELLO;
    if (is_hello != (stream == NULL)) {
        finish(call, STATUS_INVALID, "Hello is the first message, and only the first");
        return;
    }
    if (is_hello) {
        take_hello(service, call, message->hello);
        return;
    }
    if (stream->leader_stream == 0)
        return; /* the epoch is over and the stream about to close */
    switch (message->message_case) {
    case SHOAL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_ADMIT:
        take_admit(service, stream, message->admit);
        break;
    case SHOAL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_CANCEL:
        leader_cancel(service->leader, message->cancel->session, message->cancel->choice,
                      message->cancel->owner);
        break;
    default:
        finish(call, STATUS_INVALID, "a message of an unknown kind; Admit or Cancel is right");
    }
}

static void on_message(rpc_call_t *call, void *context, const uint8_t *bytes, size_t n)
{
    service_t *service = context;
    const rpc_limits_t limits = {.bytes_max = SERVICE_MESSAGE_BYTES_MAX,
                                 .depth_max = 8,
                                 .messages_max = 65536,
                                 .elements_max = (size_t)4 << 20};
    ProtobufCMessage *message;
    if (rpc_unpack(&shoal__worker__v1__coordinator_message__descriptor, bytes, n, &limits,
                   &message) != STATUS_OK) {
        rpc_call_fail(call, STATUS_INVALID);
        return;
    }
    pthread_mutex_lock(&service->mutex);
    take_message(service, call, (Shoal__Worker__V1__CoordinatorMessage *)(void *)message);
    pthread_mutex_unlock(&service->mutex);
    rpc_message_free(message);
}

static void on_half_close(rpc_call_t *call, void *context)
{
    (void)context;
    finish(call, STATUS_OK, "");
}

static void on_writable(rpc_call_t *call, void *context)
{
    (void)call;
    service_ring(context);
}

static void on_end(rpc_call_t *call, void *context, const rpc_result_t *result)
{
    service_t *service = context;
    (void)result;
    pthread_mutex_lock(&service->mutex);
    stream_t *stream = rpc_call_data(call);
    if (stream) {
        stream_t **at = &service->streams;
        while (*at != stream)
            at = &(*at)->next;
        *at = stream->next;
        /* Its sequences go on: a lost connection is no cancellation. */
        if (stream->leader_stream != 0)
            leader_stream_close(service->leader, stream->leader_stream);
    }
    pthread_mutex_unlock(&service->mutex);
    if (!stream)
        return;
    while (stream->refusals) {
        refusal_t *one = stream->refusals;
        stream->refusals = one->next;
        free(one);
    }
    buffer_release(&stream->unsent);
    rpc_call_unref(stream->call);
    free(stream);
}

const rpc_handlers_t service_handlers = {
    .on_message = on_message,
    .on_half_close = on_half_close,
    .on_writable = on_writable,
    .on_end = on_end,
};
