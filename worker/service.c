/* The Engine service's shell: streams, and one thread (the pump) that hands out what the leader owes
 * them. Messages come in on the I/O threads; nothing there waits for a step. */
#include "worker/service.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/net/rpc_message.h"
#include "worker/service_internal.h"

#define ATTACH "/shoal.worker.v1.Engine/Attach"
#define SEQUENCES_PER_MESSAGE 256u
/* Admits that are given back make outputs large; a coordinator takes messages of 16 MiB. */
#define ADMITTED_PER_MESSAGE ((size_t)4 << 20)

void service_ring(service_t *service)
{
    uint64_t one = 1;
    if (write(service->wake, &one, sizeof one) < 0)
        return; /* full: the pump is awake already */
}

void service_on_wake(void *context)
{
    stream_t *stream = context;
    atomic_store(&stream->dirty, true);
    service_ring(stream->service);
}

/* ---- the pump; with the mutex held ---- */

uint64_t service_credit(service_t *service, const stream_t *stream)
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
    step.credit_tokens = service_credit(service, stream);
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

/* Superseded is the end of an admission; the sequence itself goes on for another coordinator. */
static bool has_ended(const sequence_output_t *output)
{
    return output->end != END_NONE && output->end != END_SUPERSEDED;
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
                                        stream->leader_stream, has_ended(&output), clock_ms());
    return out;
}

/* One message to a stream; true when there may be more for it at once. */
static bool hand_out(service_t *service, stream_t *stream)
{
    Shoal__Worker__V1__SequenceOutput *sequences[SEQUENCES_PER_MESSAGE];
    size_t n = 0, admitted = 0;
    bool more = true;
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
    while (more && n < SEQUENCES_PER_MESSAGE && admitted < ADMITTED_PER_MESSAGE) {
        Shoal__Worker__V1__SequenceOutput *one = take_output(service, stream);
        more = one != NULL;
        if (one && one->admitted)
            admitted += shoal__worker__v1__admit__get_packed_size(one->admitted);
        if (one)
            sequences[n++] = one;
    }
    if (n > 0)
        send_step(service, stream, sequences, n);
    for (size_t i = 0; i < n; i++) {
        if (sequences[i]->admitted)
            shoal__worker__v1__admit__free_unpacked(sequences[i]->admitted, NULL);
    }
    arena_reset(&service->arena);
    return more;
}

static void pass(service_t *service)
{
    for (stream_t *stream = service->streams; stream && service->leader; stream = stream->next) {
        if (stream->leader_stream == 0)
            continue;
        if (atomic_exchange(&stream->dirty, false) || stream->unsent.size > 0) {
            while (hand_out(service, stream))
                ;
            if (leader_stream_overrun(service->leader, stream->leader_stream))
                rpc_call_finish(stream->call, STATUS_EXHAUSTED, SERVICE_UNREAD, NULL, 0);
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

/* ---- life ---- */

static status_t listen_on(service_t *service, const char *address)
{
    char endpoint[96];
    bool v6 = strchr(address, ':') != NULL;
    snprintf(endpoint, sizeof endpoint, "%s%s%s:0", v6 ? "[" : "", address, v6 ? "]" : "");
    const rpc_method_t method = {
        .name = ATTACH,
        .kind = RPC_BIDI,
        .handlers = service_handlers,
        .context = service,
    };
    const rpc_server_options_t options = {.listen = endpoint,
                                          .methods = &method,
                                          .n_methods = 1,
                                          .message_bytes_max = SERVICE_MESSAGE_BYTES_MAX,
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
        service_ring(service);
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
            rpc_call_finish(stream->call, STATUS_UNREACHABLE, words, NULL, 0);
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
    service_ring(service);
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
        service_ring(service);
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
