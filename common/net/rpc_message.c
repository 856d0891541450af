/* The check of what arrives, and the small ways to pack and unpack. The walk descends along the
 * descriptor only: what a descriptor does not know is skipped by its length, as protobuf-c does. */
#include "common/net/rpc_message.h"

#include <stdlib.h>

#include "common/base/memory.h"
#include "common/net/rpc_wire.h"

const rpc_limits_t rpc_limits_default = {
    .bytes_max = RPC_MESSAGE_BYTES_MAX,
    .depth_max = 16,
    .messages_max = 65536,
    .elements_max = 4u << 20,
};

typedef struct {
    rpc_limits_t left;
    unsigned depth;
} walk_t;

static bool utf8_ok(const uint8_t *at, const uint8_t *end)
{
    while (at < end) {
        uint8_t c = *at++;
        if (c == 0)
            return false; /* protobuf-c's strings end there and would lose the rest */
        if (c < 0x80)
            continue;
        unsigned more = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;
        if (c < 0xc2 || c > 0xf4 || (size_t)(end - at) < more)
            return false;
        uint32_t point = c & (0x3fu >> more);
        for (unsigned i = 0; i < more; i++) {
            if ((*at & 0xc0) != 0x80)
                return false;
            point = point << 6 | (*at++ & 0x3f);
        }
        if ((more == 2 && (point < 0x800 || (point >= 0xd800 && point <= 0xdfff))) ||
            (more == 3 && (point < 0x10000 || point > 0x10ffff)))
            return false;
    }
    return true;
}

static unsigned wire_type_of(ProtobufCType type)
{
    switch (type) {
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_FLOAT: return WIRE_FIXED32;
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_DOUBLE: return WIRE_FIXED64;
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_BYTES:
    case PROTOBUF_C_TYPE_MESSAGE: return WIRE_BYTES;
    default: return WIRE_VARINT;
    }
}

/* Counts the elements of a packed field and checks that it holds whole ones. */
static bool packed_ok(wire_t bytes, unsigned type, size_t *n_out)
{
    size_t unit = type == WIRE_FIXED32 ? 4 : 8;
    *n_out = wire_left(&bytes) / unit;
    if (type != WIRE_VARINT)
        return wire_left(&bytes) % unit == 0;
    *n_out = 0;
    uint64_t value;
    for (; bytes.at < bytes.end; ++*n_out)
        if (!wire_varint(&bytes, &value))
            return false;
    return true;
}

static status_t walk_message(walk_t *walk, const ProtobufCMessageDescriptor *descriptor,
                             wire_t wire);

static status_t take_elements(walk_t *walk, const ProtobufCMessageDescriptor *descriptor,
                              const ProtobufCFieldDescriptor *field, size_t n)
{
    if (n > walk->left.elements_max)
        return fail(STATUS_INVALID, "%s.%s: more repeated values than one message may hold",
                    descriptor->name, field->name);
    walk->left.elements_max -= n;
    return STATUS_OK;
}

static status_t walk_field(walk_t *walk, const ProtobufCMessageDescriptor *descriptor,
                           const ProtobufCFieldDescriptor *field, const wire_field_t *value)
{
    unsigned wanted = wire_type_of(field->type);
    bool repeated = field->label == PROTOBUF_C_LABEL_REPEATED;
    if (value->type != wanted) {
        size_t n;
        if (!repeated || value->type != WIRE_BYTES || wanted == WIRE_BYTES)
            return fail(STATUS_INVALID, "%s.%s: wire type %u instead of %u", descriptor->name,
                        field->name, value->type, wanted);
        if (!packed_ok(value->bytes, wanted, &n))
            return fail(STATUS_INVALID, "%s.%s: the packed values end in the middle of one",
                        descriptor->name, field->name);
        return take_elements(walk, descriptor, field, n);
    }
    if (repeated)
        TRY(take_elements(walk, descriptor, field, 1));
    if (field->type == PROTOBUF_C_TYPE_STRING && !utf8_ok(value->bytes.at, value->bytes.end))
        return fail(STATUS_INVALID, "%s.%s: the text is not valid UTF-8 or holds a NUL",
                    descriptor->name, field->name);
    if (field->type != PROTOBUF_C_TYPE_MESSAGE)
        return STATUS_OK;
    if (walk->left.messages_max == 0)
        return fail(STATUS_INVALID, "%s.%s: more messages inside than one message may hold",
                    descriptor->name, field->name);
    walk->left.messages_max--;
    return walk_message(walk, field->descriptor, value->bytes);
}

static status_t walk_message(walk_t *walk, const ProtobufCMessageDescriptor *descriptor,
                             wire_t wire)
{
    if (walk->depth >= walk->left.depth_max)
        return fail(STATUS_INVALID, "%s: messages are nested deeper than %u", descriptor->name,
                    walk->left.depth_max);
    walk->depth++;
    size_t offset_end = wire_left(&wire);
    while (wire.at < wire.end) {
        wire_field_t value;
        size_t offset = offset_end - wire_left(&wire);
        if (!wire_field(&wire, &value))
            return fail(STATUS_INVALID, "%s: no valid field at byte %zu of %zu", descriptor->name,
                        offset, offset_end);
        const ProtobufCFieldDescriptor *field =
            protobuf_c_message_descriptor_get_field(descriptor, value.number);
        /* Unknown fields are kept by protobuf-c, each in an element of its own. */
        if (!field) {
            if (walk->left.elements_max == 0)
                return fail(STATUS_INVALID, "%s: too many unknown fields", descriptor->name);
            walk->left.elements_max--;
            continue;
        }
        TRY(walk_field(walk, descriptor, field, &value));
    }
    walk->depth--;
    return STATUS_OK;
}

status_t rpc_unpack(const ProtobufCMessageDescriptor *descriptor, const void *bytes, size_t n,
                    const rpc_limits_t *limits, ProtobufCMessage **own_message_out)
{
    walk_t walk = {.left = limits ? *limits : rpc_limits_default};
    if (n > walk.left.bytes_max)
        return fail(STATUS_INVALID, "%s: %zu bytes are over the limit of %zu", descriptor->name, n,
                    walk.left.bytes_max);
    const uint8_t *at = n ? bytes : (const uint8_t *)"";
    TRY(walk_message(&walk, descriptor, (wire_t){at, at + n}));
    ProtobufCMessage *message = protobuf_c_message_unpack(descriptor, NULL, n, at);
    if (!message)
        return fail(STATUS_INVALID, "%s: the bytes are no such message", descriptor->name);
    *own_message_out = message;
    return STATUS_OK;
}

void rpc_message_free(void *take_message)
{
    protobuf_c_message_free_unpacked(take_message, NULL);
}

void rpc_pack(const void *message, buffer_t *buffer)
{
    size_t n = protobuf_c_message_get_packed_size(message);
    uint8_t *bytes = mem_new(n ? n : 1, 1);
    protobuf_c_message_pack(message, bytes);
    buffer_append(buffer, bytes, n);
    free(bytes);
}

status_t rpc_call_send_message(rpc_call_t *call, const void *message)
{
    buffer_t bytes = {0};
    rpc_pack(message, &bytes);
    status_t status = rpc_call_send(call, bytes.data, bytes.size);
    buffer_release(&bytes);
    return status;
}

void rpc_call_reply_message(rpc_call_t *call, const void *message)
{
    buffer_t bytes = {0};
    rpc_pack(message, &bytes);
    rpc_call_reply(call, bytes.data, bytes.size);
    buffer_release(&bytes);
}

status_t rpc_unary_message_wait(rpc_channel_t *channel, const char *method, const void *request,
                                const ProtobufCMessageDescriptor *reply_descriptor,
                                uint64_t timeout_ms, ProtobufCMessage **own_reply_out)
{
    buffer_t bytes = {0};
    buffer_t reply = {0};
    rpc_pack(request, &bytes);
    status_t status = rpc_unary_wait(channel, method, bytes.data, bytes.size, timeout_ms, &reply);
    /* An answer is bounded by the channel's message limit, which may be over the default. */
    rpc_limits_t limits = rpc_limits_default;
    limits.bytes_max = SIZE_MAX;
    if (status == STATUS_OK)
        status = rpc_unpack(reply_descriptor, reply.data, reply.size, &limits, own_reply_out);
    buffer_release(&bytes);
    buffer_release(&reply);
    return status;
}
