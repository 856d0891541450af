/* The transport inside a host: one ring in shared memory for each (pair, lane, direction). */
#include "worker/fabric/fabric_internal.h"

static bool can_connect(const fabric_t *fabric, uint32_t peer)
{
    return fabric_is_local(fabric, peer);
}

static status_t connect_peer(fabric_t *fabric, uint32_t peer, link_t *out)
{
    uint32_t other = shm_local_index(&fabric->shm, peer);
    for (fabric_lane_t lane = 0; lane < FABRIC_LANES; lane++) {
        if (lane == FABRIC_PARTIALS)
            continue;
        out->out[lane] = shm_ring(&fabric->shm, fabric->own_index, other, lane);
        out->in[lane] = shm_ring(&fabric->shm, other, fabric->own_index, lane);
    }
    return STATUS_OK;
}

static size_t write_some(link_t *link, fabric_lane_t lane, const void *bytes, size_t n)
{
    size_t written = ring_write(&link->out[lane], bytes, n);
    if (written > 0)
        board_ring(link->fabric->board, link->peer);
    return written;
}

static size_t read_some(link_t *link, fabric_lane_t lane, void *out, size_t n)
{
    size_t read = ring_read(&link->in[lane], out, n);
    /* The writer may sleep because the ring was full. */
    if (read > 0 && read != RING_BROKEN)
        board_ring(link->fabric->board, link->peer);
    return read;
}

static bool readable(const link_t *link, fabric_lane_t lane)
{
    return ring_available(&link->in[lane]) != 0;
}

static void disconnect(link_t *link)
{
    (void)link; /* the mapping goes with the epoch */
}

const transport_t transport_shm = {
    .name = "shm",
    .can_connect = can_connect,
    .connect = connect_peer,
    .write_some = write_some,
    .read_some = read_some,
    .readable = readable,
    .disconnect = disconnect,
};
