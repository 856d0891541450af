/* Messages over a lane's stream of bytes: a head, then the bytes, moved on a piece at a time so that
 * several messages can be under way while one thread waits for all of them. */
#include <stdio.h>

#include "worker/fabric/fabric_internal.h"

/* A piece is published as a whole, so the reader starts on a long message while it is still being
 * written; this size keeps both copies inside the second-level cache. */
#define PIECE_BYTES ((size_t)64 << 10)

void outgoing_start(fabric_t *fabric, outgoing_t *message, uint32_t peer, fabric_lane_t lane,
                    const void *bytes, size_t n)
{
    *message = (outgoing_t){
        .peer = peer,
        .lane = lane,
        .head = {n, fabric->sequence_out[peer][lane]++, MESSAGE_MAGIC},
        .bytes = bytes,
    };
    atomic_fetch_add_explicit(&fabric->messages_sent, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&fabric->bytes_sent, n, memory_order_relaxed);
}

void incoming_start(incoming_t *message, uint32_t peer, fabric_lane_t lane, void *out,
                    size_t bytes_min, size_t bytes_max)
{
    *message = (incoming_t){.peer = peer,
                            .lane = lane,
                            .out = out,
                            .bytes_min = bytes_min,
                            .bytes_max = bytes_max};
}

static size_t piece(size_t n)
{
    return n < PIECE_BYTES ? n : PIECE_BYTES;
}

bool outgoing_step(fabric_t *fabric, outgoing_t *message)
{
    link_t *link = &fabric->links[message->peer];
    const size_t head = sizeof message->head;
    size_t total = head + (size_t)message->head.bytes;
    while (message->done < total) {
        const uint8_t *from;
        size_t n;
        if (message->done < head) {
            from = (const uint8_t *)&message->head + message->done;
            n = head - message->done;
        } else {
            from = message->bytes + (message->done - head);
            n = piece(total - message->done);
        }
        size_t written = link->transport->write_some(link, message->lane, from, n);
        if (written == 0)
            return false;
        message->done += written;
    }
    return true;
}

static bool refuse(fabric_t *fabric, incoming_t *message, const char *what)
{
    message->refused = true;
    atomic_fetch_add_explicit(&fabric->frames_refused, 1, memory_order_relaxed);
    fabric_fail(fabric, STATUS_INVALID, message->peer, false, what);
    return true; /* the wait is over: fabric_wait_until reports the failure */
}

static bool check_head(fabric_t *fabric, incoming_t *message)
{
    char what[160];
    const message_head_t *head = &message->head;
    uint32_t sequence = fabric->sequence_in[message->peer][message->lane]++;
    if (head->magic != MESSAGE_MAGIC || head->bytes > MESSAGE_BYTES_MAX) {
        refuse(fabric, message, "sent bytes that are no message");
        return false;
    }
    if (head->sequence != sequence) {
        snprintf(what, sizeof what, "sent message %u where %u is due", head->sequence, sequence);
        refuse(fabric, message, what);
        return false;
    }
    if (head->bytes < message->bytes_min || head->bytes > message->bytes_max) {
        snprintf(what, sizeof what, "sent a message of %llu bytes where %s%zu are right",
                 (unsigned long long)head->bytes,
                 message->bytes_min == message->bytes_max ? "" : "at most ", message->bytes_max);
        refuse(fabric, message, what);
        return false;
    }
    return true;
}

bool incoming_step(fabric_t *fabric, incoming_t *message)
{
    link_t *link = &fabric->links[message->peer];
    const size_t head = sizeof message->head;
    for (;;) {
        uint8_t *to;
        size_t n;
        if (message->done < head) {
            to = (uint8_t *)&message->head + message->done;
            n = head - message->done;
        } else {
            size_t total = head + (size_t)message->head.bytes;
            if (message->done == total)
                return true;
            to = message->out + (message->done - head);
            n = piece(total - message->done);
        }
        size_t read = link->transport->read_some(link, message->lane, to, n);
        if (read == RING_BROKEN)
            return refuse(fabric, message, "broke its ring");
        if (read == 0)
            return false;
        message->done += read;
        if (message->done == head && !check_head(fabric, message))
            return true;
    }
}
