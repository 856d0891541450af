/* One call, on either side: its life, its callbacks, its operations.
 *
 * gRPC reports the end of each batch on some I/O thread; the handlers here note what became known
 * as events under the call's lock, and rpc_call_tell() runs the user's callbacks without the lock,
 * one thread at a time. The memory lives by references: one for the library until on_end has
 * returned, one for each batch under way, those of the user. gRPC's own call object is let go as
 * soon as nothing is under way, because a closing server waits for that. Sending is in rpc_send.c.
 */
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/net/rpc_internal.h"

#define CALL_OF(tag, field) ((rpc_call_t *)(void *)((char *)(tag)-offsetof(rpc_call_t, field)))

void rpc_call_ref(rpc_call_t *call)
{
    atomic_fetch_add(&call->refs, 1);
}

static void free_call(rpc_call_t *call)
{
    rpc_call_drop_queue(call);
    if (call->received)
        grpc_byte_buffer_destroy(call->received);
    if (call->grpc)
        grpc_call_unref(call->grpc);
    grpc_slice_unref(call->status_details);
    grpc_metadata_array_destroy(&call->recv_initial);
    grpc_metadata_array_destroy(&call->recv_trailing);
    rpc_pairs_release(&call->request_metadata);
    rpc_pairs_release(&call->trailing);
    free(call->finish_message);
    free(call->method);
    gpr_free(call->peer);
    pthread_mutex_destroy(&call->lock);
    free(call);
}

void rpc_call_unref(rpc_call_t *take_call)
{
    if (atomic_fetch_sub(&take_call->refs, 1) == 1)
        free_call(take_call);
}

void rpc_call_set_data(rpc_call_t *call, void *data)
{
    atomic_store(&call->data, data);
}

void *rpc_call_data(const rpc_call_t *call)
{
    return atomic_load(&call->data);
}

const char *rpc_call_method(const rpc_call_t *call)
{
    return call->method ? call->method : "";
}

const char *rpc_call_peer(const rpc_call_t *call)
{
    return call->peer ? call->peer : "";
}

const char *rpc_call_metadata(const rpc_call_t *call, const char *key)
{
    return rpc_pairs_find(call->request_metadata.pairs, call->request_metadata.n, key);
}

uint64_t rpc_call_ms_left(const rpc_call_t *call)
{
    gpr_timespec deadline = gpr_convert_clock_type(call->deadline, GPR_CLOCK_MONOTONIC);
    if (gpr_time_cmp(deadline, gpr_inf_future(GPR_CLOCK_MONOTONIC)) == 0)
        return UINT64_MAX;
    gpr_timespec left = gpr_time_sub(deadline, gpr_now(GPR_CLOCK_MONOTONIC));
    int64_t ms = left.tv_sec * 1000 + left.tv_nsec / 1000000;
    return ms > 0 ? (uint64_t)ms : 0;
}

bool rpc_call_batch(rpc_call_t *call, const grpc_op *ops, size_t n_ops, rpc_tag_t *tag)
{
    rpc_call_ref(call);
    call->ops++;
    RPC_TAG_STARTS(tag);
    if (grpc_call_start_batch(call->grpc, ops, n_ops, tag, NULL) == GRPC_CALL_OK)
        return true;
    call->ops--;
    rpc_call_unref(call); /* never the last: the caller holds one */
    return false;
}

/* gRPC's object goes when the end was told and nothing is under way. Lock held. */
static grpc_call *let_go(rpc_call_t *call)
{
    if (!call->end_told || call->ops)
        return NULL;
    grpc_call *grpc = call->grpc;
    call->grpc = NULL;
    return grpc;
}

void rpc_call_op_done(rpc_call_t *call)
{
    pthread_mutex_lock(&call->lock);
    call->ops--;
    grpc_call *grpc = let_go(call);
    pthread_mutex_unlock(&call->lock);
    if (grpc)
        grpc_call_unref(grpc);
    rpc_call_unref(call);
}

/* ---- telling the user ---- */

static void tell_message(rpc_call_t *call)
{
    pthread_mutex_lock(&call->lock);
    grpc_byte_buffer *buffer = call->received;
    call->received = NULL;
    pthread_mutex_unlock(&call->lock);
    if (call->handlers.on_message) {
        if (buffer->data.raw.slice_buffer.count == 1) {
            grpc_slice slice = buffer->data.raw.slice_buffer.slices[0];
            call->handlers.on_message(call, call->context, GRPC_SLICE_START_PTR(slice),
                                      GRPC_SLICE_LENGTH(slice));
        } else {
            grpc_byte_buffer_reader reader;
            grpc_byte_buffer_reader_init(&reader, buffer);
            grpc_slice slice = grpc_byte_buffer_reader_readall(&reader);
            call->handlers.on_message(call, call->context, GRPC_SLICE_START_PTR(slice),
                                      GRPC_SLICE_LENGTH(slice));
            grpc_slice_unref(slice);
            grpc_byte_buffer_reader_destroy(&reader);
        }
    }
    grpc_byte_buffer_destroy(buffer);
}

static void tell_end(rpc_call_t *call)
{
    rpc_result_t result = {.trailing = call->trailing.pairs, .n_trailing = call->trailing.n};
    char *details = NULL;
    if (call->server) {
        result.cancelled = call->server_cancelled != 0 || !call->finish_sent;
        result.status = call->finish_status;
        if (result.cancelled)
            result.status = rpc_call_ms_left(call) ? STATUS_CANCELLED : STATUS_DEADLINE;
        result.code = rpc_code_from_status(result.status);
        result.message = call->finish_message ? call->finish_message : "";
    } else {
        details = mem_strndup((const char *)GRPC_SLICE_START_PTR(call->status_details),
                              GRPC_SLICE_LENGTH(call->status_details));
        result.code = (int)call->status_code;
        result.status = rpc_status_received(result.code, result.trailing, result.n_trailing);
        result.message = details;
    }
    if (call->handlers.on_end)
        call->handlers.on_end(call, call->context, &result);
    free(details);

    pthread_mutex_lock(&call->lock);
    call->end_told = true;
    grpc_call *grpc = let_go(call);
    pthread_mutex_unlock(&call->lock);
    if (grpc)
        grpc_call_unref(grpc);
    if (call->server)
        rpc_server_call_ended(call->server);
    else
        rpc_channel_call_ended(call->channel, call);
}

void rpc_call_tell(rpc_call_t *call, unsigned events)
{
    call->events |= events;
    if (call->delivering || call->end_told) {
        pthread_mutex_unlock(&call->lock);
        return;
    }
    call->delivering = true;
    rpc_call_ref(call);
    while (call->events && !call->end_told) {
        unsigned event = call->events & -call->events;
        call->events &= ~event;
        pthread_mutex_unlock(&call->lock);
        switch (event) {
        case RPC_EVENT_OPEN:
            if (call->handlers.on_open)
                call->handlers.on_open(call, call->context);
            break;
        case RPC_EVENT_MESSAGE: tell_message(call); break;
        case RPC_EVENT_HALF_CLOSE:
            if (call->handlers.on_half_close)
                call->handlers.on_half_close(call, call->context);
            break;
        case RPC_EVENT_WRITABLE:
            if (call->handlers.on_writable)
                call->handlers.on_writable(call, call->context);
            break;
        default: tell_end(call); break;
        }
        if (event == RPC_EVENT_END)
            rpc_call_unref(call); /* the library's reference */
        pthread_mutex_lock(&call->lock);
        rpc_call_read_pump(call);
    }
    call->delivering = false;
    pthread_mutex_unlock(&call->lock);
    rpc_call_unref(call);
}

/* The end is told only when no read is under way, so that no message can come after it. Lock held;
 * returns without it. */
static void tell_end_when_known(rpc_call_t *call, unsigned events)
{
    if (call->close_done && !call->reading && !call->ended) {
        call->ended = true;
        events |= RPC_EVENT_END;
    }
    rpc_call_tell(call, events);
}

/* ---- reading ---- */

void rpc_call_read_pump(rpc_call_t *call)
{
    if (call->reading || call->read_done || call->ended || !call->grpc || call->received ||
        (call->events & (RPC_EVENT_OPEN | RPC_EVENT_MESSAGE)) ||
        (call->manual_read && call->read_credits == 0) ||
        (call->one_message && call->messages_read > 0))
        return;
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
    op.data.recv_message.recv_message = &call->received;
    call->reading = true;
    if (!rpc_call_batch(call, &op, 1, &call->tag_read)) {
        call->reading = false;
        call->read_done = true;
        return;
    }
    if (call->manual_read)
        call->read_credits--;
}

static void finish_locked(rpc_call_t *call, status_t status, const char *message)
{
    if (!call->finish_wanted) {
        call->finish_wanted = true;
        call->finish_status = status;
        call->finish_message = mem_strdup(message);
        rpc_call_drop_queue(call);
        rpc_call_send_pump(call);
    }
}

static void read_done(rpc_tag_t *tag, bool ok)
{
    rpc_call_t *call = CALL_OF(tag, tag_read);
    unsigned events = 0;
    pthread_mutex_lock(&call->lock);
    call->reading = false;
    if (!ok || !call->received) {
        call->read_done = true;
        /* A cancelled client must not look like one that said all it had to say. */
        bool lost = !ok || grpc_call_failed_before_recv_message(call->grpc) ||
                    (call->close_done && call->server_cancelled);
        if (call->server && !lost) {
            if (!call->one_message)
                events = RPC_EVENT_HALF_CLOSE;
            else if (call->messages_read == 0)
                finish_locked(call, STATUS_INVALID,
                              "the call carries no message; send exactly one");
        }
    } else if (call->received->type != GRPC_BB_RAW ||
               call->received->data.raw.compression != GRPC_COMPRESS_NONE) {
        /* Inflating on a stranger's word is a bomb; nobody needs it on these messages. */
        grpc_byte_buffer_destroy(call->received);
        call->received = NULL;
        call->read_done = true;
        if (call->server)
            finish_locked(call, STATUS_UNSUPPORTED, "compressed messages are not accepted; send "
                                                    "them with grpc-encoding identity");
        else
            grpc_call_cancel(call->grpc, NULL);
    } else {
        call->messages_read++;
        events = RPC_EVENT_MESSAGE;
    }
    tell_end_when_known(call, events);
    rpc_call_op_done(call);
}

void rpc_call_read(rpc_call_t *call, unsigned n)
{
    pthread_mutex_lock(&call->lock);
    call->read_credits += n;
    /* While a callback runs its thread reads on afterwards. */
    if (!call->delivering)
        rpc_call_read_pump(call);
    pthread_mutex_unlock(&call->lock);
}

/* ---- beginning and end ---- */

static void close_done(rpc_tag_t *tag, bool ok)
{
    (void)ok; /* these operations always succeed; what they report is in their fields */
    rpc_call_t *call = CALL_OF(tag, tag_close);
    pthread_mutex_lock(&call->lock);
    call->close_done = true;
    if (!call->server)
        rpc_pairs_copy(&call->trailing, &call->recv_trailing);
    if (!call->server || call->server_cancelled)
        rpc_call_drop_queue(call);
    /* A manual reader that grants nothing would hold the end of a cancelled call for ever; whether
     * a message lies unread no longer matters then. */
    tell_end_when_known(call, 0);
    rpc_call_op_done(call);
}

static void initial_done(rpc_tag_t *tag, bool ok)
{
    (void)ok; /* we read nothing from it; a failure also ends the call */
    rpc_call_op_done(CALL_OF(tag, tag_initial));
}

rpc_call_t *rpc_call_new(rpc_io_t *io, grpc_call *take_grpc, const rpc_handlers_t *handlers,
                         void *context)
{
    rpc_call_t *call = MEM_NEW(rpc_call_t);
    call->io = io;
    atomic_init(&call->refs, 1);
    atomic_init(&call->data, NULL);
    pthread_mutex_init(&call->lock, NULL);
    call->grpc = take_grpc;
    call->handlers = *handlers;
    call->context = context;
    call->deadline = gpr_inf_future(GPR_CLOCK_MONOTONIC);
    call->status_details = grpc_empty_slice();
    grpc_metadata_array_init(&call->recv_initial);
    grpc_metadata_array_init(&call->recv_trailing);
    call->tag_send.run = rpc_call_send_done;
    call->tag_read.run = read_done;
    call->tag_close.run = close_done;
    call->tag_initial.run = initial_done;
    return call;
}

void rpc_call_begin_server(rpc_call_t *call)
{
    grpc_op op = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER};
    op.data.recv_close_on_server.cancelled = &call->server_cancelled;
    pthread_mutex_lock(&call->lock);
    CHECK(rpc_call_batch(call, &op, 1, &call->tag_close));
    rpc_call_tell(call, RPC_EVENT_OPEN);
}

void rpc_call_begin_client(rpc_call_t *call, const rpc_metadata_t *metadata, size_t n_metadata,
                           bool wait_for_ready)
{
    grpc_metadata pairs[RPC_METADATA_MAX + 1];
    size_t n = rpc_grpc_metadata_make(metadata, n_metadata, pairs);
    grpc_op ops[2] = {{.op = GRPC_OP_SEND_INITIAL_METADATA}, {.op = GRPC_OP_RECV_INITIAL_METADATA}};
    ops[0].data.send_initial_metadata.count = n;
    ops[0].data.send_initial_metadata.metadata = pairs;
    if (wait_for_ready)
        ops[0].flags = GRPC_INITIAL_METADATA_WAIT_FOR_READY |
                       GRPC_INITIAL_METADATA_WAIT_FOR_READY_EXPLICITLY_SET;
    ops[1].data.recv_initial_metadata.recv_initial_metadata = &call->recv_initial;
    grpc_op end = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT};
    end.data.recv_status_on_client.trailing_metadata = &call->recv_trailing;
    end.data.recv_status_on_client.status = &call->status_code;
    end.data.recv_status_on_client.status_details = &call->status_details;
    pthread_mutex_lock(&call->lock);
    call->sent_initial = true;
    CHECK(rpc_call_batch(call, ops, 2, &call->tag_initial));
    rpc_grpc_metadata_release(pairs, n); /* gRPC has copied what it keeps */
    CHECK(rpc_call_batch(call, &end, 1, &call->tag_close));
    rpc_call_send_pump(call);
    rpc_call_read_pump(call);
    pthread_mutex_unlock(&call->lock);
}
