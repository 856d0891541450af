/* The sending half of a call: a bounded queue in front of gRPC, which takes one message at a time
 * and gives it back once flow control has let it pass. The bound is what keeps a slow reader from
 * costing memory: when the queue is full the sender is told, and told again when there is room. */
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "common/base/memory.h"
#include "common/net/rpc_internal.h"

#define FINISH_MESSAGE_MAX 1024 /* of gRPC's 8 KiB of trailers, percent-encoded at worst */

static void free_outgoing(rpc_outgoing_t *message)
{
    grpc_byte_buffer_destroy(message->buffer);
    free(message);
}

void rpc_call_enqueue(rpc_call_t *call, const void *bytes, size_t n)
{
    rpc_outgoing_t *message = MEM_NEW(rpc_outgoing_t);
    message->buffer = rpc_buffer_make(bytes, n);
    message->size = n;
    if (call->queue_tail)
        call->queue_tail->next = message;
    else
        call->queue_head = message;
    call->queue_tail = message;
    call->queue_bytes += n;
}

void rpc_call_drop_queue(rpc_call_t *call)
{
    while (call->queue_head) {
        rpc_outgoing_t *message = call->queue_head;
        call->queue_head = message->next;
        call->queue_bytes -= message->size;
        free_outgoing(message);
    }
    call->queue_tail = NULL;
}

static rpc_outgoing_t *dequeue(rpc_call_t *call)
{
    rpc_outgoing_t *message = call->queue_head;
    if (message) {
        call->queue_head = message->next;
        if (!call->queue_head)
            call->queue_tail = NULL;
    }
    return message;
}

/* The last word of this side: the status of a server, the half-close of a client. */
static void make_finish_op(rpc_call_t *call, grpc_op *op, grpc_metadata *trailing, grpc_slice *text)
{
    if (!call->server) {
        op->op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
        return;
    }
    op->op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    op->data.send_status_from_server.status =
        (grpc_status_code)rpc_code_from_status(call->finish_status);
    op->data.send_status_from_server.trailing_metadata_count =
        rpc_grpc_metadata_make(call->trailing.pairs, call->trailing.n, trailing);
    op->data.send_status_from_server.trailing_metadata = trailing;
    *text = grpc_slice_from_copied_string(call->finish_message ? call->finish_message : "");
    op->data.send_status_from_server.status_details = text;
}

static bool may_send(const rpc_call_t *call)
{
    return !call->sending && !call->close_done && !call->ended && call->grpc &&
           !call->finish_sent && (call->queue_head || call->finish_wanted);
}

/* Messages go in one batch with what precedes and follows them, so that a unary answer is one trip
 * through gRPC. Lock held. */
static void send_next(rpc_call_t *call)
{
    grpc_op ops[3];
    memset(ops, 0, sizeof ops);
    size_t n_ops = 0;
    if (!call->sent_initial) {
        ops[n_ops++].op = GRPC_OP_SEND_INITIAL_METADATA;
        call->sent_initial = true;
    }
    rpc_outgoing_t *message = dequeue(call);
    if (message) {
        ops[n_ops].op = GRPC_OP_SEND_MESSAGE;
        ops[n_ops++].data.send_message.send_message = message->buffer;
    }
    grpc_metadata trailing[RPC_METADATA_MAX + 1];
    grpc_slice text = grpc_empty_slice();
    grpc_op *finish = NULL;
    if (!call->queue_head && call->finish_wanted) {
        finish = &ops[n_ops++];
        make_finish_op(call, finish, trailing, &text);
        call->finish_sent = true;
    }
    call->sending = true;
    call->in_flight = message;
    if (!rpc_call_batch(call, ops, n_ops, &call->tag_send)) {
        /* Only a call that is already over refuses; its end is on the way. */
        call->sending = false;
        call->in_flight = NULL;
        if (message) {
            call->queue_bytes -= message->size;
            free_outgoing(message);
        }
        call->send_refused = true;
    }
    if (finish && call->server)
        rpc_grpc_metadata_release(
            trailing, finish->data.send_status_from_server.trailing_metadata_count);
    grpc_slice_unref(text);
}

/* What was in flight has passed. Lock held. */
static void sent(rpc_call_t *call)
{
    call->sending = false;
    if (call->in_flight) {
        call->queue_bytes -= call->in_flight->size;
        free_outgoing(call->in_flight);
        call->in_flight = NULL;
    }
}

/* As long as gRPC writes at once, this thread hears so itself. A call that is not over cannot have
 * told its end, so there is nothing to let go of here, and what the user has to be told is left to
 * an I/O thread. */
void rpc_call_send_pump(rpc_call_t *call)
{
    while (may_send(call) && !call->send_refused) {
        bool ok = false;
        rpc_io_catch(call->io);
        send_next(call);
        rpc_tag_t *tag = rpc_io_caught(call->io, &ok);
        if (call->send_refused)
            grpc_call_cancel(call->grpc, NULL);
        if (tag == &call->tag_send && ok && !call->send_blocked) {
            rpc_io_count_caught(call->io);
            sent(call);
            call->ops--;
            rpc_call_unref(call); /* never the last: the caller holds one */
        } else if (tag) {
            rpc_io_hand_over(call->io, tag, ok);
        }
    }
}

void rpc_call_send_done(rpc_tag_t *tag, bool ok)
{
    rpc_call_t *call = (rpc_call_t *)(void *)((char *)tag - offsetof(rpc_call_t, tag_send));
    unsigned events = 0;
    pthread_mutex_lock(&call->lock);
    sent(call);
    if (!ok)
        rpc_call_drop_queue(call); /* the connection is gone; the end of the call tells why */
    else
        rpc_call_send_pump(call);
    if (ok && call->send_blocked && call->queue_bytes < call->send_queue_bytes &&
        !call->finish_wanted && !call->close_done) {
        call->send_blocked = false;
        events = RPC_EVENT_WRITABLE;
    }
    rpc_call_tell(call, events);
    rpc_call_op_done(call);
}

static bool over(const rpc_call_t *call)
{
    return call->ended || call->close_done || call->finish_wanted || !call->grpc;
}

status_t rpc_call_send(rpc_call_t *call, const void *bytes, size_t n)
{
    if (n > call->message_bytes_max)
        return fail(STATUS_INVALID, "a message of %zu bytes for %s is over the limit of %zu bytes",
                    n, rpc_call_method(call), call->message_bytes_max);
    status_t status = STATUS_OK;
    pthread_mutex_lock(&call->lock);
    if (over(call)) {
        status = STATUS_CANCELLED;
    } else if (call->queue_bytes >= call->send_queue_bytes) {
        call->send_blocked = true;
        status = STATUS_EXHAUSTED;
    } else {
        rpc_call_enqueue(call, bytes, n);
        rpc_call_send_pump(call);
    }
    pthread_mutex_unlock(&call->lock);
    if (status == STATUS_CANCELLED)
        return fail(status, "%s has ended; nothing more can be sent on it", rpc_call_method(call));
    if (status == STATUS_EXHAUSTED)
        return fail(status, "%s: the peer reads too slowly; send again when it is writable",
                    rpc_call_method(call));
    return STATUS_OK;
}

bool rpc_call_writable(rpc_call_t *call)
{
    pthread_mutex_lock(&call->lock);
    bool writable = !over(call) && call->queue_bytes < call->send_queue_bytes;
    if (!writable)
        call->send_blocked = true;
    pthread_mutex_unlock(&call->lock);
    return writable;
}

/* Records the end once; lock held. */
static bool want_finish(rpc_call_t *call, status_t status, const char *message,
                        const rpc_metadata_t *trailing, size_t n_trailing)
{
    if (!call->server || over(call))
        return false;
    call->finish_wanted = true;
    call->finish_status = status;
    size_t n = message ? strlen(message) : 0;
    if (n > FINISH_MESSAGE_MAX)
        for (n = FINISH_MESSAGE_MAX; n && ((unsigned char)message[n] & 0xc0) == 0x80;)
            n--; /* not inside a character */
    call->finish_message = n ? mem_strndup(message, n) : mem_strdup("");
    for (size_t i = 0; i < n_trailing && i < RPC_METADATA_MAX; i++) {
        if (rpc_metadata_legal(&trailing[i]))
            rpc_pairs_add(&call->trailing, trailing[i].key, trailing[i].value);
        else
            log_warn("%s: trailing metadata \"%s\" cannot be sent", rpc_call_method(call),
                     trailing[i].key);
    }
    if (status != STATUS_OK)
        rpc_pairs_add(&call->trailing, "shoal-status", status_name(status));
    return true;
}

void rpc_call_finish(rpc_call_t *call, status_t status, const char *message,
                     const rpc_metadata_t *trailing, size_t n_trailing)
{
    pthread_mutex_lock(&call->lock);
    if (want_finish(call, status, message, trailing, n_trailing))
        rpc_call_send_pump(call);
    pthread_mutex_unlock(&call->lock);
}

void rpc_call_reply(rpc_call_t *call, const void *bytes, size_t n)
{
    if (n > call->message_bytes_max) {
        rpc_call_fail(call, fail(STATUS_EXHAUSTED,
                                 "the answer of %zu bytes is over the limit of %zu bytes; ask for "
                                 "less",
                                 n, call->message_bytes_max));
        return;
    }
    pthread_mutex_lock(&call->lock);
    if (want_finish(call, STATUS_OK, "", NULL, 0)) {
        rpc_call_enqueue(call, bytes, n);
        rpc_call_send_pump(call);
    }
    pthread_mutex_unlock(&call->lock);
}

void rpc_call_fail(rpc_call_t *call, status_t code)
{
    rpc_call_finish(call, code, status_text(), NULL, 0);
}

void rpc_call_half_close(rpc_call_t *call)
{
    pthread_mutex_lock(&call->lock);
    if (!call->server && !over(call)) {
        call->finish_wanted = true;
        rpc_call_send_pump(call);
    }
    pthread_mutex_unlock(&call->lock);
}

void rpc_call_cancel(rpc_call_t *call)
{
    pthread_mutex_lock(&call->lock);
    if (call->grpc && !call->ended)
        grpc_call_cancel(call->grpc, NULL);
    pthread_mutex_unlock(&call->lock);
}
