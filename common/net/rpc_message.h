/* Protobuf messages in and out, with limits. What arrives is walked along its descriptor before
 * protobuf-c sees it: lengths, nesting, counts, wire types and UTF-8 are checked first, so garbage
 * and bombs end in STATUS_INVALID with the field's name instead of in memory. Pure; any thread. */
#ifndef SHOAL_COMMON_NET_RPC_MESSAGE_H
#define SHOAL_COMMON_NET_RPC_MESSAGE_H

#include <protobuf-c/protobuf-c.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buffer.h"
#include "common/base/status.h"
#include "common/net/rpc.h"

typedef struct {
    size_t bytes_max;      /* of the whole message */
    unsigned depth_max;    /* of messages inside messages; the outermost is 1 */
    size_t messages_max;   /* submessages, counted over the whole message */
    size_t elements_max;   /* elements of repeated fields, packed ones included */
} rpc_limits_t;

/* 4 MiB, 16 levels, 65,536 submessages, 4 Mi elements. */
extern const rpc_limits_t rpc_limits_default;

/* Checks and unpacks. `limits` NULL takes the defaults. Release with rpc_message_free. Strings of
 * the result are valid UTF-8 without NUL bytes. STATUS_INVALID names the message and the field. */
status_t rpc_unpack(const ProtobufCMessageDescriptor *descriptor, const void *bytes, size_t n,
                    const rpc_limits_t *limits, ProtobufCMessage **own_message_out) MUST_USE;
/* NULL is allowed. */
void rpc_message_free(void *take_message);

/* Appends the packed message. */
void rpc_pack(const void *message, buffer_t *buffer);

/* rpc_call_send and rpc_call_reply of a packed message. */
status_t rpc_call_send_message(rpc_call_t *call, const void *message) MUST_USE;
void rpc_call_reply_message(rpc_call_t *call, const void *message);

/* rpc_unary_wait with messages on both ends: *own_reply_out is of `reply_descriptor`. */
status_t rpc_unary_message_wait(rpc_channel_t *channel, const char *method, const void *request,
                                const ProtobufCMessageDescriptor *reply_descriptor,
                                uint64_t timeout_ms, ProtobufCMessage **own_reply_out) MUST_USE;

#endif
