/* A bidirectional stream to etcd, seen from the loop: gRPC's threads copy and post, the owner hears
 * on the loop, and an owner that has let go hears nothing more. */
#include <stdlib.h>

#include "common/net/etcd_internal.h"

struct etcd_stream {
    etcd_t *etcd;
    rpc_call_t *call; /* NULL when it could not be started */
    etcd_stream_handlers_t handlers;
    void *owner; /* NULL once dropped */
    size_t endpoint;
};

typedef struct {
    etcd_stream_t *stream;
    buffer_t bytes;   /* of a message */
    status_t status;  /* of the end */
    char *text;       /* likewise; NULL for a message */
} arrival_t;

static void free_arrival(arrival_t *arrival)
{
    buffer_release(&arrival->bytes);
    free(arrival->text);
    free(arrival);
}

static void message_on_loop(void *context)
{
    arrival_t *arrival = context;
    etcd_stream_t *stream = arrival->stream;
    if (stream->owner) {
        const uint8_t *bytes = arrival->bytes.data ? arrival->bytes.data : (const uint8_t *)"";
        stream->handlers.on_message(stream->owner, bytes, arrival->bytes.size);
    }
    free_arrival(arrival);
}

static void end_on_loop(void *context)
{
    arrival_t *arrival = context;
    etcd_stream_t *stream = arrival->stream;
    etcd_t *etcd = stream->etcd;
    if (arrival->status == STATUS_UNREACHABLE && stream->owner)
        etcd_note_failure(etcd, stream->endpoint);
    if (stream->owner)
        stream->handlers.on_end(stream->owner, arrival->status, arrival->text);
    if (stream->call)
        rpc_call_unref(stream->call);
    free(stream);
    free_arrival(arrival);
    etcd->n_busy--;
}

static void on_message(rpc_call_t *call, void *context, const uint8_t *bytes, size_t n)
{
    (void)call;
    etcd_stream_t *stream = context;
    arrival_t *arrival = MEM_NEW(arrival_t);
    arrival->stream = stream;
    buffer_append(&arrival->bytes, bytes, n);
    etcd_post(stream->etcd, message_on_loop, arrival);
}

static void post_end(etcd_stream_t *stream, status_t status, const char *text)
{
    arrival_t *arrival = MEM_NEW(arrival_t);
    arrival->stream = stream;
    arrival->status = status;
    arrival->text = mem_strdup(text);
    etcd_post(stream->etcd, end_on_loop, arrival);
}

static void on_end(rpc_call_t *call, void *context, const rpc_result_t *result)
{
    (void)call;
    post_end(context, result->status, result->message);
}

etcd_stream_t *etcd_stream_open(etcd_t *etcd, const char *method,
                                const etcd_stream_handlers_t *handlers, void *owner)
{
    etcd_stream_t *stream = MEM_NEW(etcd_stream_t);
    stream->etcd = etcd;
    stream->handlers = *handlers;
    stream->owner = owner;
    stream->endpoint = etcd_pick(etcd);
    etcd->n_busy++;
    rpc_call_options_t options = {
        .method = method,
        .manual_read = true,
        .handlers = {.on_message = on_message, .on_end = on_end},
        .context = stream,
    };
    if (rpc_call_start(etcd->channels[stream->endpoint], &options, &stream->call) == STATUS_OK)
        rpc_call_read(stream->call, 1);
    else
        post_end(stream, STATUS_CANCELLED, status_text());
    return stream;
}

bool etcd_stream_send(etcd_stream_t *stream, const void *message)
{
    return stream->call && rpc_call_send_message(stream->call, message) == STATUS_OK;
}

void etcd_stream_more(etcd_stream_t *stream)
{
    if (stream->call)
        rpc_call_read(stream->call, 1);
}

void etcd_stream_drop(etcd_stream_t *take_stream)
{
    if (!take_stream)
        return;
    take_stream->owner = NULL;
    if (take_stream->call)
        rpc_call_cancel(take_stream->call);
}
