/* What the parts of the UCX transport share: the endpoint (ucx_endpoint.c: one worker a
 * process, which takes frames in for whatever epoch), the frames to and from a peer (ucx_frames.c) and
 * the peers of one epoch (ucx_epoch.c). */
#ifndef SHOAL_WORKER_FABRIC_UCX_H
#define SHOAL_WORKER_FABRIC_UCX_H

#include <pthread.h>

#include "worker/fabric/fabric_internal.h"
#include "worker/fabric/frame.h"
#include "worker/fabric/ucx_late.h"

/* A frame kept because its epoch has not begun here. */
typedef struct held_frame held_frame_t;
struct held_frame {
    held_frame_t *next;
    frame_t frame;
    uint8_t payload[];
};
typedef struct {
    held_frame_t *first, **last;
    size_t bytes;
} held_list_t;

struct fabric_endpoint {
    ucp_context_h context;
    ucp_worker_h worker;
    int event_fd;
    uint8_t address[FABRIC_ADDRESS_BYTES_MAX];
    size_t address_bytes;
    /* Held around every call into UCX, so also while frames are taken in. Nobody sleeps with it. */
    pthread_mutex_t mutex;
    fabric_t *open; /* the epoch that is open now */
    uint64_t incarnation, epoch; /* of it, or of the last one */
    held_list_t held[FABRIC_RANKS_MAX]; /* by sending rank */
};

#define UCX_SHORT_FRAMES_MAX 64 /* in flight to a peer */
#define UCX_ADDRESS_HEAD_BYTES 8 /* a checksum goes before UCX's own bytes */

/* A frame on its way to a peer; it belongs to UCX until its send ends. */
typedef struct outgoing_frame outgoing_frame_t;
struct outgoing_frame {
    outgoing_frame_t *next;
    ucx_peer_t *peer;
    bool is_data;
    frame_t frame;
    uint8_t payload[];
};

struct ucx_peer {
    fabric_t *fabric;
    uint32_t rank;
    ucp_ep_h ep;
    bool broken, left_told; /* under the endpoint's mutex, as all below but `heard` and rings */
    bool acknowledged;      /* our LEAVE arrived there */
    bool refused;           /* it broke the rules: nothing of it is taken in any more */
    _Atomic bool joined;
    _Atomic uint64_t heard; /* frames of this epoch */
    uint64_t sent[FABRIC_LANES], credited[FABRIC_LANES]; /* positions in the outgoing streams */
    uint64_t received[FABRIC_LANES];                     /* positions in the incoming streams */
    uint64_t told[FABRIC_LANES];                         /* consumed, as the peer knows it */
    ring_t in[FABRIC_LANES];
    outgoing_frame_t *free_data, *free_short;
    uint32_t n_data, n_short;   /* allocated */
    uint32_t n_in_flight;
};

struct ucx_epoch {
    _Atomic int32_t pollers;
    ucx_peer_t peers[FABRIC_RANKS_MAX];
};

/* ---- ucx_frames.c; all with the endpoint's mutex held ---- */

/* A free frame of the peer's bounded stock; NULL when all are in flight. */
outgoing_frame_t *ucx_free_frame(ucx_peer_t *peer, bool is_data);
void ucx_submit(outgoing_frame_t *one);
frame_t ucx_frame_for(const ucx_peer_t *peer, frame_kind_t kind);
/* False when the connection is broken or too many short frames wait for the network. */
bool ucx_send_short(ucx_peer_t *peer, const frame_t *frame, const char *text);
void ucx_send_credit(ucx_peer_t *peer, fabric_lane_t lane);
/* The connection to the peer is no more. */
void ucx_lose(ucx_peer_t *peer, const char *how);
/* Frees the peer's frames; false when UCX still holds one. */
bool ucx_release_frames(ucx_peer_t *peer);

/* Takes a checked-in frame for the open epoch; called with the mutex held. */
void ucx_take_frame(fabric_t *fabric, const frame_t *frame, const uint8_t *payload);
/* Gives the held frames of the epoch that just opened to it and forgets older ones; with the mutex
 * held. */
void ucx_replay_held(fabric_endpoint_t *endpoint);
/* ---- ucx_sockets.c ---- */
/* Shuts down this process's TCP connections whose other side does not answer any more; before a
 * worker is destroyed. Returns how many. */
uint32_t ucx_shut_stuck_sockets(void);

/* The connection to a remote peer; for tests that send what no fabric would. */
ucp_ep_h ucx_peer_connection(const fabric_t *fabric, uint32_t peer);

#endif
