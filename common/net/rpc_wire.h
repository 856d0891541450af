/* Reading protobuf's wire format field by field, every length checked. Shared by the check of what
 * arrives and by the index of descriptors; nobody else includes it. */
#ifndef SHOAL_COMMON_NET_RPC_WIRE_H
#define SHOAL_COMMON_NET_RPC_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 };

typedef struct {
    const uint8_t *at, *end;
} wire_t;

typedef struct {
    uint32_t number;
    unsigned type;
    uint64_t value; /* of a varint */
    wire_t bytes;   /* of WIRE_BYTES; of the others their own bytes */
} wire_field_t;

static inline size_t wire_left(const wire_t *wire)
{
    return (size_t)(wire->end - wire->at);
}

/* False when the bytes end inside it or it is longer than ten bytes. */
static inline bool wire_varint(wire_t *wire, uint64_t *out)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 70 && wire->at < wire->end; shift += 7) {
        uint8_t byte = *wire->at++;
        if (shift == 63 && byte > 1)
            return false;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *out = value;
            return true;
        }
    }
    return false;
}

/* Reads one field; false when what stands there is none. Groups (types 3 and 4) are none: proto3
 * has no use for them and they nest without a length. */
static inline bool wire_field(wire_t *wire, wire_field_t *out)
{
    uint64_t tag;
    if (!wire_varint(wire, &tag) || tag >> 3 == 0 || tag >> 3 > 0x1fffffff)
        return false;
    uint64_t n = 0;
    out->number = (uint32_t)(tag >> 3);
    out->type = (unsigned)(tag & 7);
    out->bytes.at = wire->at;
    switch (out->type) {
    case WIRE_VARINT:
        if (!wire_varint(wire, &out->value))
            return false;
        out->bytes.end = wire->at;
        return true;
    case WIRE_FIXED64: n = 8; break;
    case WIRE_FIXED32: n = 4; break;
    case WIRE_BYTES:
        if (!wire_varint(wire, &n))
            return false;
        break;
    default: return false;
    }
    if (n > wire_left(wire))
        return false;
    out->bytes.at = wire->at;
    wire->at += n;
    out->bytes.end = wire->at;
    return true;
}

#endif
