/* Streams to leaders: one gRPC stream of shoal.worker.v1.Engine/Attach for each link of the core.
 *
 * Messages of a leader are read on credit: a stream may have READ_AHEAD messages that the core has
 * not seen yet, so a coordinator that falls behind holds little memory, and the leader, whose
 * output is state, merely sends larger steps. */
#include "coordinator/shell_state.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/failpoint.h"

#define READ_AHEAD 16
#define SEND_QUEUE_BYTES ((size_t)8 << 20)

typedef struct {
    shell_t *shell;
    uint64_t id;
    bool closed; /* the core wants no event any more */
    rpc_channel_t *channel;
    rpc_call_t *call;
} stream_t;

typedef struct {
    stream_t *stream;
    char *text;     /* of the end */
    uint8_t *bytes; /* of a message */
    size_t size;
} note_t;

static note_t *note_new(stream_t *stream)
{
    note_t *note = MEM_NEW(note_t);
    note->stream = stream;
    return note;
}

static void note_free(note_t *take_note)
{
    free(take_note->text);
    free(take_note->bytes);
    free(take_note);
}

/* Closing a channel waits for its last callback, which the core thread must not. */
static void close_channel(shell_t *shell, void *take_data)
{
    (void)shell;
    stream_t *stream = take_data;
    rpc_call_unref(stream->call);
    rpc_channel_close(stream->channel);
    free(stream);
}

static void on_ended(shell_t *shell, void *take_data)
{
    note_t *note = take_data;
    stream_t *stream = note->stream;
    table_remove(&shell->links, &stream->id, sizeof stream->id);
    if (!stream->closed)
        shell_event(shell, &(core_event_t){.kind = CORE_EVENT_LINK_BROKEN,
                                           .link_broken = {stream->id, note->text}});
    note_free(note);
    shell_work(shell, close_channel, stream);
}

static void on_step(shell_t *shell, void *take_data)
{
    note_t *note = take_data;
    stream_t *stream = note->stream;
    if (!stream->closed) {
        /* Field 2 of the oneof: a StepOutput, which is what the tests aim at. */
        if (note->size && note->bytes[0] == 0x12)
            (void)FAILPOINT("coordinator.step_output");
        shell_event(shell, &(core_event_t){.kind = CORE_EVENT_LINK_MESSAGE,
                                           .link_message = {stream->id, note->bytes, note->size}});
        rpc_call_read(stream->call, 1);
    }
    note_free(note);
}

static void on_message(rpc_call_t *call, void *context, const uint8_t *bytes, size_t n)
{
    (void)call;
    stream_t *stream = context;
    note_t *note = note_new(stream);
    note->bytes = mem_new(n + 1, 1);
    memcpy(note->bytes, bytes, n);
    note->size = n;
    shell_post(stream->shell, on_step, note);
}

static void on_end(rpc_call_t *call, void *context, const rpc_result_t *result)
{
    (void)call;
    stream_t *stream = context;
    note_t *note = note_new(stream);
    note->text = mem_format("%s: %s", rpc_channel_endpoint(stream->channel),
                            result->message[0] ? result->message : status_name(result->status));
    shell_post(stream->shell, on_ended, note);
}

typedef struct {
    uint64_t id;
    char *text;
} broken_t;

static void on_broken(shell_t *shell, void *take_data)
{
    broken_t *broken = take_data;
    shell_event(shell, &(core_event_t){.kind = CORE_EVENT_LINK_BROKEN,
                                       .link_broken = {broken->id, broken->text}});
    free(broken->text);
    free(broken);
}

void links_open(shell_t *shell, const core_action_t *action)
{
    stream_t *stream = MEM_NEW(stream_t);
    stream->shell = shell;
    stream->id = action->link_open.link;
    rpc_channel_options_t channel = {.endpoint = action->link_open.endpoint,
                                     .message_bytes_max = (size_t)16 << 20,
                                     .send_queue_bytes = SEND_QUEUE_BYTES,
                                     .keepalive_ms = 1000,
                                     .keepalive_timeout_ms = 1000};
    status_t status = rpc_channel_open(shell->io, &channel, &stream->channel);
    if (status == STATUS_OK) {
        rpc_call_options_t call = {
            .method = "/shoal.worker.v1.Engine/Attach",
            .manual_read = true,
            .handlers = {.on_message = on_message, .on_end = on_end},
            .context = stream,
        };
        status = rpc_call_start(stream->channel, &call, &stream->call);
        if (status != STATUS_OK)
            rpc_channel_close(stream->channel);
    }
    if (status != STATUS_OK) {
        /* Later, because an action is being carried out and the core must not be stepped now. */
        broken_t *broken = MEM_NEW(broken_t);
        *broken = (broken_t){stream->id, mem_strdup(status_text())};
        free(stream);
        shell_post(shell, on_broken, broken);
        return;
    }
    table_put(&shell->links, &stream->id, sizeof stream->id, stream);
    rpc_call_read(stream->call, READ_AHEAD);
}

void links_send(shell_t *shell, const core_action_t *action)
{
    uint64_t id = action->link_send.link;
    stream_t *stream = table_get(&shell->links, &id, sizeof id);
    if (!stream || stream->closed)
        return;
    if (action->link_send.size && action->link_send.bytes[0] == 0x12)
        (void)FAILPOINT("coordinator.admit");
    status_t status =
        rpc_call_send(stream->call, action->link_send.bytes, action->link_send.size);
    /* A leader that takes nothing for 8 MiB is as good as gone; its end tells the core. */
    if (status != STATUS_OK)
        rpc_call_cancel(stream->call);
}

void links_close(shell_t *shell, const core_action_t *action)
{
    uint64_t id = action->link_close.link;
    stream_t *stream = table_get(&shell->links, &id, sizeof id);
    if (!stream)
        return;
    stream->closed = true;
    rpc_call_cancel(stream->call);
}

void links_end(shell_t *shell)
{
    size_t at = 0;
    for (stream_t *stream; (stream = table_next(&shell->links, &at));) {
        stream->closed = true;
        rpc_call_cancel(stream->call);
    }
    shell_flush(shell, &shell->links);
    table_release(&shell->links);
}
