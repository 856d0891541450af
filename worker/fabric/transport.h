/* A transport is a table that is asked "can you connect?". It moves a stream of bytes for each
 * (peer, lane) and nothing more: messages, time-outs and failures are the fabric's business. All
 * functions return at once. A transport for GPUs becomes one more row of fabric_transports. */
#ifndef SHOAL_WORKER_FABRIC_TRANSPORT_H
#define SHOAL_WORKER_FABRIC_TRANSPORT_H

#include "worker/fabric/ring.h"
#include "worker/fabric/shm.h"

typedef struct transport transport_t;
typedef struct ucx_peer ucx_peer_t;
typedef struct ucx_epoch ucx_epoch_t;

/* The way to one peer. */
typedef struct {
    const transport_t *transport;
    fabric_t *fabric;
    uint32_t peer;
    ring_t out[FABRIC_LANES], in[FABRIC_LANES]; /* shared memory */
    ucx_peer_t *ucx;                            /* UCX */
} link_t;

struct transport {
    const char *name;
    bool (*can_connect)(const fabric_t *fabric, uint32_t peer);
    status_t (*connect)(fabric_t *fabric, uint32_t peer, link_t *out);
    /* Take or give up to n bytes; RING_BROKEN from read_some when the peer broke the rules. */
    size_t (*write_some)(link_t *link, fabric_lane_t lane, const void *bytes, size_t n);
    size_t (*read_some)(link_t *link, fabric_lane_t lane, void *out, size_t n);
    bool (*readable)(const link_t *link, fabric_lane_t lane);
    void (*disconnect)(link_t *link);
};

extern const transport_t transport_shm;
extern const transport_t transport_ucx;

#endif
