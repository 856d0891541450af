/* The frame between hosts: the header of each active message. Peers are not trusted: whatever
 * arrives is checked against this rank's epoch, its ranks, the lane's window and the frame's own
 * length before a byte of it is used. Numbers are little-endian, as all hosts of a cluster are. */
#ifndef SHOAL_WORKER_FABRIC_FRAME_H
#define SHOAL_WORKER_FABRIC_FRAME_H

#include <stdint.h>

#define FRAME_MAGIC 0x42414653u
#define FRAME_VERSION 1
#define FRAME_ACTIVE_MESSAGE 17 /* the id under which frames travel */
#define FRAME_PAYLOAD_MAX ((uint32_t)32 << 10)
#define FRAME_HELD_BYTES_MAX ((size_t)1 << 20) /* of newer epochs, for each peer */

typedef enum {
    FRAME_DATA = 1, /* bytes of a lane; position: of the first one in the lane's stream */
    FRAME_CREDIT,   /* position: up to where the receiver has consumed the lane */
    FRAME_BEAT,     /* every 50 ms; the first one says that the peer has opened this epoch */
    FRAME_LOST,     /* subject: a dead rank; the payload says how it was lost */
    FRAME_ABORT,    /* the payload says why */
    FRAME_LEAVE,    /* the sender closes in good order after all that it sent before */
    FRAME_LEFT,     /* answers LEAVE: all of it has arrived */
} frame_kind_t;

typedef struct {
    uint32_t magic;
    uint8_t version, kind, lane, silent;
    uint64_t incarnation, epoch;
    uint32_t from, to;
    uint64_t position;
    uint32_t subject;
    uint32_t bytes; /* of the payload */
} frame_t;
_Static_assert(sizeof(frame_t) == 48, "the frame's layout is a wire contract");

#endif
