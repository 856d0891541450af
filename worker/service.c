/* The Engine service's shell: streams, and one thread (the pump) that hands out what the leader owes
 * them. Messages come in on the I/O threads; nothing there waits for a step. */
#include "worker/service.h"

#include <errno.h>
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
#include "common/net/rpc.h"
#include "common/net/rpc_message.h"
#include "worker/service_book.h"
#include "worker/service_message.h"

#define ATTACH "/shoal.worker.v1.Engine/Attach"
#define SEQUENCES_PER_MESSAGE 256u
#define REFUSALS_MAX 1024u /* of one stream, not yet sent */
#define MESSAGE_BYTES_MAX ((size_t)16 << 20)

typedef struct refusal refusal_t;
struct refusal {
    refusal_t *next;
    char session[64];
    uint32_t choice;
    uint64_t owner;
    const char *code;
    char words[STATUS_TEXT_MAX];
};

typedef struct stream stream_t;
struct stream {
    stream_t *next;
    service_t *service;
    rpc_call_t *call;       /* a reference */
    uint32_t leader_stream; /* 0 once the epoch is over */
    _Atomic bool dirty;     /* something may be owed */
    uint64_t sent_ms;
    buffer_t unsent;        /* a message that found the queue full */
    refusal_t *refusals, **refusals_end;
    uint32_t n_refusals;
};

struct service {
    char replica[192];
    rpc_io_t *io;
    rpc_server_t *server;
    pthread_t pump;
    bool pumping;
    int wake; /* eventfd */
    _Atomic bool stop;
    pthread_mutex_t mutex;
    pthread_cond_t passed; /* the pump went over all streams */
    /* Under the mutex. */
    stream_t *streams;
    leader_t *leader; /* of the active epoch */
    uint64_t epoch, passes;
    char text_identity[128];
    uint32_t context_max;
    bool draining;
    service_book_t *book;
    arena_t arena;
};

static void ring(service_t *service)
{
    uint64_t one = 1;
    if (write(service->wake, &one, sizeof one) < 0)
        return; /* full: the pump is awake already */
}

/* From the leader, with its lock held: only the bell. */
static void on_wake(void *context)
{
    stream_t *stream = context;
    atomic_store(&stream->dirty, true);
    ring(stream->service);
}

/* ---- the pump; with the mutex held ---- */

static uint64_t credit_of(service_t *service, const stream_t *stream)
{
    return service->draining ? 0 : leader_credit(service->leader, stream->leader_stream);
}

/* The bytes are kept when the queue is full after all, so nothing that was taken is lost. */
static void send_step(service_t *service, stream_t *stream,
                      Shoal__Worker__V1__SequenceOutput **sequences, size_t n)
{
    Shoal__Worker__V1__LeaderMessage message = SHOAL__WORKER__V1__LEADER_MESSAGE__INIT;
    Shoal__Worker__V1__StepOutput step = SHOAL__WORKER__V1__STEP_OUTPUT__INIT;
    Shoal__Worker__V1__Load load;
    scheduler_load_t numbers;
    leader_load(service->leader, &numbers);
    service_write_load(&numbers, &load);
    step.step = numbers.steps;
    step.credit_tokens = credit_of(service, stream);
    step.sequences = sequences;
    step.n_sequences = n;
    step.load = &load;
    message.message_case = SHOAL__WORKER__V1__LEADER_MESSAGE__MESSAGE_STEP;
    message.step = &step;
    buffer_clear(&stream->unsent);
    rpc_pack(&message, &stream->unsent);
    stream->sent_ms = clock_ms();
    if (rpc_call_send(stream->call, stream->unsent.data, stream->unsent.size) != STATUS_EXHAUSTED)
        buffer_clear(&stream->unsent);
}

static Shoal__Worker__V1__SequenceOutput *take_refusal(stream_t *stream, arena_t *arena)
{
    refusal_t *one = stream->refusals;
    if (!one)
        return NULL;
    stream->refusals = one->next;
    stream->n_refusals--;
    Shoal__Worker__V1__SequenceOutput *out = service_write_refusal(
        one->session, one->choice, one->owner, one->code, one->words, arena);
    free(one);
    return out;
}

static Shoal__Worker__V1__SequenceOutput *take_output(service_t *service, stream_t *stream)
{
    static sequence_output_t output;
    static sampled_t drawn[SCHEDULER_OUTPUT_IDS_MAX];
    if (!leader_take(service->leader, stream->leader_stream, &output, drawn))
        return NULL;
    if (service->draining && output.end == END_REFUSED && output.error_code &&
        strcmp(output.error_code, "unknown") == 0)
        output.error_code = "draining";
    Shoal__Worker__V1__SequenceOutput *out =
        service_write_output(&output, drawn, &service->arena);
    out->admitted = service_book_output(service->book, output.session, output.choice,
                                        stream->leader_stream, output.end != END_NONE, clock_ms());
    return out;
}

/* One message to a stream; true when there may be more for it at once. */
static bool hand_out(service_t *service, stream_t *stream)
{
    Shoal__Worker__V1__SequenceOutput *sequences[SEQUENCES_PER_MESSAGE];
    size_t n = 0;
    if (stream->unsent.size > 0) {
        status_t status =
            rpc_call_send(stream->call, stream->unsent.data, stream->unsent.size);
        if (status == STATUS_EXHAUSTED)
            return false;
        buffer_clear(&stream->unsent);
    }
    if (!rpc_call_writable(stream->call)) {
        atomic_store(&stream->dirty, true); /* on_writable rings */
        return false;
    }
    while (n < SEQUENCES_PER_MESSAGE && stream->refusals)
        sequences[n++] = take_refusal(stream, &service->arena);
    if (!stream->refusals)
        stream->refusals_end = &stream->refusals;
    while (n < SEQUENCES_PER_MESSAGE) {
        Shoal__Worker__V1__SequenceOutput *one = take_output(service, stream);
        if (!one)
            break;
        sequences[n++] = one;
    }
    if (n > 0)
        send_step(service, stream, sequences, n);
    for (size_t i = 0; i < n; i++) {
        if (sequences[i]->admitted)
            shoal__worker__v1__admit__free_unpacked(sequences[i]->admitted, NULL);
    }
    arena_reset(&service->arena);
    return n == SEQUENCES_PER_MESSAGE;
}

static void pass(service_t *service)
{
    for (stream_t *stream = service->streams; stream && service->leader; stream = stream->next) {
        if (stream->leader_stream == 0)
            continue;
        if (atomic_exchange(&stream->dirty, false) || stream->unsent.size > 0) {
            while (hand_out(service, stream))
                ;
        }
        if (clock_ms() - stream->sent_ms >= SERVICE_CREDIT_MS && stream->unsent.size == 0 &&
            rpc_call_writable(stream->call))
            send_step(service, stream, NULL, 0);
    }
    service->passes++;
    pthread_cond_broadcast(&service->passed);
}

static void *run_pump(void *argument)
{
    service_t *service = argument;
    while (!atomic_load(&service->stop)) {
        struct pollfd fd = {.fd = service->wake, .events = POLLIN};
        uint64_t drained;
        if (poll(&fd, 1, (int)SERVICE_CREDIT_MS / 2) > 0 &&
            read(service->wake, &drained, sizeof drained) < 0 && errno != EAGAIN)
            log_error("service: cannot read an eventfd: %m");
        pthread_mutex_lock(&service->mutex);
        pass(service);
        pthread_mutex_unlock(&service->mutex);
    }
    return NULL;
}

/* ---- what comes in; on the I/O threads ---- */

static void refuse(stream_t *stream, const Shoal__Worker__V1__Admit *admit, const char *code,
                   const char *words)
{
    if (stream->n_refusals == REFUSALS_MAX) {
        rpc_call_finish(stream->call, STATUS_EXHAUSTED,
                        "too many refused sequences that were not read", NULL, 0);
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
    ring(stream->service);
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
    stream->leader_stream = leader_stream_open(service->leader, on_wake, stream);
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
    reply.credit_tokens = credit_of(service, stream);
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
    const rpc_limits_t limits = {.bytes_max = MESSAGE_BYTES_MAX,
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
    ring(context);
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

/* ---- life ---- */

static status_t listen_on(service_t *service, const char *address)
{
    char endpoint[96];
    bool v6 = strchr(address, ':') != NULL;
    snprintf(endpoint, sizeof endpoint, "%s%s%s:0", v6 ? "[" : "", address, v6 ? "]" : "");
    const rpc_method_t method = {
        .name = ATTACH,
        .kind = RPC_BIDI,
        .handlers = {.on_message = on_message,
                     .on_half_close = on_half_close,
                     .on_writable = on_writable,
                     .on_end = on_end},
        .context = service,
    };
    const rpc_server_options_t options = {.listen = endpoint,
                                          .methods = &method,
                                          .n_methods = 1,
                                          .message_bytes_max = MESSAGE_BYTES_MAX,
                                          .calls_max = 256,
                                          .keepalive_ms = 1000,
                                          .keepalive_timeout_ms = 1000};
    TRY(rpc_io_open(0, &service->io));
    return rpc_server_open(service->io, &options, &service->server);
}

status_t service_open(const char *address, const char *replica, service_t **own_out)
{
    service_t *service = MEM_NEW(service_t);
    snprintf(service->replica, sizeof service->replica, "%s", replica);
    pthread_mutex_init(&service->mutex, NULL);
    pthread_cond_init(&service->passed, NULL);
    service->book = service_book_new();
    service->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    status_t status = STATUS_OK;
    if (service->wake < 0 || pthread_create(&service->pump, NULL, run_pump, service) != 0)
        status = fail(STATUS_INTERNAL, "cannot start the service's thread: %m");
    service->pumping = status == STATUS_OK;
    if (status == STATUS_OK)
        status = listen_on(service, address);
    if (status != STATUS_OK) {
        service_close(service);
        return status;
    }
    *own_out = service;
    return STATUS_OK;
}

unsigned service_port(const service_t *service)
{
    return rpc_server_port(service->server);
}

void service_begin(service_t *service, leader_t *leader, uint64_t epoch, const char *text_identity,
                   uint32_t context_max)
{
    pthread_mutex_lock(&service->mutex);
    service->leader = leader;
    service->epoch = epoch;
    service->context_max = context_max;
    snprintf(service->text_identity, sizeof service->text_identity, "%s", text_identity);
    service_book_clear(service->book);
    pthread_mutex_unlock(&service->mutex);
}

static bool is_owed(const service_t *service)
{
    for (const stream_t *stream = service->streams; stream; stream = stream->next) {
        if (stream->leader_stream != 0 && (atomic_load(&stream->dirty) || stream->refusals ||
                                           stream->unsent.size > 0))
            return true;
    }
    return false;
}

/* Waits until the pump has passed over all streams and none is owed anything. */
static void flush(service_t *service, uint64_t end_ms)
{
    uint64_t passes = service->passes;
    while ((is_owed(service) || service->passes == passes) && clock_ms() < end_ms) {
        ring(service);
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 20000000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&service->passed, &service->mutex, &until);
    }
}

void service_end(service_t *service, uint32_t grace_ms)
{
    char words[256];
    pthread_mutex_lock(&service->mutex);
    if (service->leader) {
        flush(service, clock_ms() + grace_ms);
        snprintf(words, sizeof words, "epoch %llu of replica %s is over",
                 (unsigned long long)service->epoch, service->replica);
        for (stream_t *stream = service->streams; stream; stream = stream->next) {
            if (stream->leader_stream == 0)
                continue;
            leader_stream_close(service->leader, stream->leader_stream);
            stream->leader_stream = 0;
            finish(stream->call, STATUS_UNREACHABLE, words);
        }
        service->leader = NULL;
    }
    pthread_mutex_unlock(&service->mutex);
}

void service_drain(service_t *service)
{
    pthread_mutex_lock(&service->mutex);
    service->draining = true;
    pthread_mutex_unlock(&service->mutex);
    if (service->server)
        rpc_server_set_serving(service->server, "", false);
    ring(service);
}

void service_close(service_t *take_service)
{
    service_t *service = take_service;
    if (!service)
        return;
    if (service->server) {
        service_end(service, 0);
        rpc_server_close(service->server, 500);
    }
    if (service->pumping) {
        atomic_store(&service->stop, true);
        ring(service);
        pthread_join(service->pump, NULL);
    }
    if (service->io)
        rpc_io_close(service->io);
    service_book_free(service->book);
    arena_release(&service->arena);
    if (service->wake >= 0)
        close(service->wake);
    pthread_cond_destroy(&service->passed);
    pthread_mutex_destroy(&service->mutex);
    free(service);
}
