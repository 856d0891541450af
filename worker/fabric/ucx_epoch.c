/* The transport between hosts for one epoch: a UCX connection to each remote peer, and on it a
 * stream of bytes for each lane with a window. The receiver owns a ring of the lane's size and
 * returns credit as it is read; a sender never has more in flight, so a slow reader costs bounded
 * memory here and there. Data is sent only after the peer's first frame of this epoch was heard. */
#include <stdio.h>
#include <stdlib.h>
#include <xxhash.h>

#include "common/base/clock.h"
#include "common/base/memory.h"
#include "worker/fabric/ucx.h"

/* How long a close waits for its last frames to arrive. */
#define LEAVE_MS 300u
#define CLOSE_MS 1000u

/* ---- the transport's table ---- */

static bool can_connect(const fabric_t *fabric, uint32_t peer)
{
    return fabric->ucx && fabric->ucx->peers[peer].ep;
}

static status_t connect_peer(fabric_t *fabric, uint32_t peer, link_t *out)
{
    out->ucx = &fabric->ucx->peers[peer];
    return STATUS_OK;
}

static size_t write_some(link_t *link, fabric_lane_t lane, const void *bytes, size_t n)
{
    ucx_peer_t *peer = link->ucx;
    pthread_mutex_t *mutex = &link->fabric->endpoint->mutex;
    size_t taken = 0;
    if (!atomic_load(&peer->joined))
        return 0;
    pthread_mutex_lock(mutex);
    uint64_t in_flight = peer->sent[lane] - peer->credited[lane];
    size_t room = fabric_lane_bytes(lane) - (size_t)in_flight;
    outgoing_frame_t *one = NULL;
    if (room > 0 && !peer->broken)
        one = ucx_free_frame(peer, true);
    if (one) {
        taken = n < room ? n : room;
        taken = taken < FRAME_PAYLOAD_MAX ? taken : FRAME_PAYLOAD_MAX;
        one->frame = ucx_frame_for(peer, FRAME_DATA);
        one->frame.lane = (uint8_t)lane;
        one->frame.position = peer->sent[lane];
        one->frame.bytes = (uint32_t)taken;
        memcpy(one->payload, bytes, taken);
        peer->sent[lane] += taken;
        ucx_submit(one);
    }
    pthread_mutex_unlock(mutex);
    return taken;
}

static size_t read_some(link_t *link, fabric_lane_t lane, void *out, size_t n)
{
    ucx_peer_t *peer = link->ucx;
    size_t read = ring_read(&peer->in[lane], out, n);
    uint64_t consumed =
        atomic_load_explicit(&peer->in[lane].positions->read, memory_order_relaxed);
    if (read > 0 && consumed - peer->told[lane] >= peer->in[lane].capacity / FABRIC_CREDIT_PARTS) {
        pthread_mutex_lock(&link->fabric->endpoint->mutex);
        ucx_send_credit(peer, lane);
        pthread_mutex_unlock(&link->fabric->endpoint->mutex);
    }
    return read;
}

static bool readable(const link_t *link, fabric_lane_t lane)
{
    return ring_available(&link->ucx->in[lane]) != 0;
}

static void disconnect(link_t *link)
{
    link->ucx = NULL; /* connections are closed together, in ucx_epoch_close */
}

const transport_t transport_ucx = {
    .name = "ucx",
    .can_connect = can_connect,
    .connect = connect_peer,
    .write_some = write_some,
    .read_some = read_some,
    .readable = readable,
    .disconnect = disconnect,
};

ucp_ep_h ucx_peer_connection(const fabric_t *fabric, uint32_t peer)
{
    return fabric->ucx->peers[peer].ep;
}

/* ---- open and close ---- */

static void on_error(void *argument, ucp_ep_h ep, ucs_status_t status)
{
    char how[128];
    (void)ep; /* closed with the epoch, never inside a callback */
    snprintf(how, sizeof how, "the connection to it broke: %s", ucs_status_string(status));
    ucx_lose(argument, how);
}

static status_t open_peer(fabric_t *fabric, uint32_t rank, const fabric_peer_t *from)
{
    ucx_peer_t *peer = &fabric->ucx->peers[rank];
    uint64_t sum = 0;
    if (from->address_bytes > UCX_ADDRESS_HEAD_BYTES &&
        from->address_bytes <= FABRIC_ADDRESS_BYTES_MAX)
        memcpy(&sum, from->address, sizeof sum);
    size_t n = from->address_bytes - UCX_ADDRESS_HEAD_BYTES;
    if (sum == 0 || sum != XXH64(from->address + UCX_ADDRESS_HEAD_BYTES, n, 0))
        return fail(STATUS_INVALID, "rank %u (host %s) has published a broken address", rank,
                    fabric->hosts[rank]);
    peer->fabric = fabric;
    peer->rank = rank;
    for (fabric_lane_t lane = 0; lane < FABRIC_LANES; lane++) {
        ring_t *ring = &peer->in[lane];
        ring->capacity = fabric_lane_bytes(lane);
        ring->data = malloc(ring->capacity);
        ring->positions = aligned_alloc(64, sizeof *ring->positions);
        CHECK(ring->data && ring->positions);
        memset(ring->positions, 0, sizeof *ring->positions);
    }
    /* UCX reads words of the address, which the etcd record need not align. */
    uint64_t aligned[FABRIC_ADDRESS_BYTES_MAX / 8];
    memcpy(aligned, from->address + UCX_ADDRESS_HEAD_BYTES, n);
    ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER,
        .address = (const ucp_address_t *)(const void *)aligned,
        .err_mode = UCP_ERR_HANDLING_MODE_PEER,
        .err_handler = {.cb = on_error, .arg = peer},
    };
    ucs_status_t status = ucp_ep_create(fabric->endpoint->worker, &params, &peer->ep);
    if (status != UCS_OK)
        return fail(STATUS_UNREACHABLE, "cannot connect to rank %u (host %s): %s", rank,
                    fabric->hosts[rank], ucs_status_string(status));
    return STATUS_OK;
}

status_t ucx_epoch_open(fabric_t *fabric, const fabric_config_t *config)
{
    fabric_endpoint_t *endpoint = fabric->endpoint;
    if (!endpoint)
        return fail(STATUS_INVALID, "ranks on other hosts, but this rank has no endpoint");
    fabric->ucx = MEM_NEW(ucx_epoch_t);
    status_t status = STATUS_OK;
    pthread_mutex_lock(&endpoint->mutex);
    for (uint32_t rank = 0; rank < fabric->n_ranks && status == STATUS_OK; rank++) {
        if (rank != fabric->rank && !fabric_is_local(fabric, rank))
            status = open_peer(fabric, rank, &config->peers[rank]);
    }
    if (status == STATUS_OK) {
        endpoint->open = fabric;
        endpoint->incarnation = fabric->incarnation;
        endpoint->epoch = fabric->epoch;
        ucx_replay_held(endpoint);
    }
    pthread_mutex_unlock(&endpoint->mutex);
    return status;
}

/* One look at a peer to which goodbye is said; true while its answer is worth waiting for. A rank
 * known dead, or silent for half the time until it will be, is told as well, in case it lives behind
 * a bad link, but nobody waits for its answer. */
static bool say_goodbye(fabric_t *fabric, uint32_t rank)
{
    ucx_peer_t *peer = &fabric->ucx->peers[rank];
    if (!peer->ep || peer->broken || !atomic_load(&peer->joined))
        return false;
    frame_t frame = ucx_frame_for(peer, FRAME_LEAVE);
    if (!peer->left_told)
        peer->left_told = ucx_send_short(peer, &frame, NULL);
    bool silent = fabric->watches[rank].ticks_silent >= FABRIC_SILENT_TICKS / 2;
    return !peer->acknowledged && !silent && !note_text(&fabric->board->ranks[rank].dead);
}

/* Says goodbye to whoever lives and waits a little until it is known to have arrived: closing a
 * socket may otherwise throw away what the other side has not read yet. */
static void leave(fabric_t *fabric)
{
    uint64_t end = clock_ms() + LEAVE_MS;
    bool waiting = true;
    while (waiting && clock_ms() < end) {
        waiting = false;
        for (uint32_t rank = 0; rank < fabric->n_ranks; rank++)
            waiting |= say_goodbye(fabric, rank);
        ucp_worker_progress(fabric->endpoint->worker);
    }
}

static void close_endpoints(fabric_t *fabric)
{
    ucp_worker_h worker = fabric->endpoint->worker;
    uint64_t end = clock_ms() + CLOSE_MS;
    for (uint32_t rank = 0; rank < fabric->n_ranks; rank++) {
        ucx_peer_t *peer = &fabric->ucx->peers[rank];
        if (!peer->ep)
            continue;
        peer->broken = true;
        ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS,
                                     .flags = UCP_EP_CLOSE_FLAG_FORCE};
        ucs_status_ptr_t request = ucp_ep_close_nbx(peer->ep, &param);
        while (UCS_PTR_IS_PTR(request) && clock_ms() < end) {
            ucp_worker_progress(worker);
            if (ucp_request_check_status(request) != UCS_INPROGRESS)
                break;
        }
        if (UCS_PTR_IS_PTR(request))
            ucp_request_free(request);
        /* Frames in flight are cancelled by the close; their memory is theirs until then. */
        while (peer->n_in_flight > 0 && clock_ms() < end)
            ucp_worker_progress(worker);
    }
}

static bool release_peer(ucx_peer_t *peer)
{
    for (fabric_lane_t lane = 0; lane < FABRIC_LANES; lane++) {
        free(peer->in[lane].data);
        free(peer->in[lane].positions);
    }
    return ucx_release_frames(peer);
}

void ucx_epoch_close(fabric_t *fabric)
{
    fabric_endpoint_t *endpoint = fabric->endpoint;
    if (!fabric->ucx)
        return;
    pthread_mutex_lock(&endpoint->mutex);
    if (endpoint->open == fabric)
        leave(fabric);
    endpoint->open = NULL;
    close_endpoints(fabric);
    pthread_mutex_unlock(&endpoint->mutex);
    bool all = true;
    for (uint32_t rank = 0; rank < fabric->n_ranks; rank++)
        all = release_peer(&fabric->ucx->peers[rank]) && all;
    /* With a send that UCX never gave back, its frame and the peer it names stay allocated. */
    if (all)
        free(fabric->ucx);
    fabric->ucx = NULL;
}

/* ---- progress and the service thread ---- */

bool ucx_progress(fabric_t *fabric)
{
    if (pthread_mutex_trylock(&fabric->endpoint->mutex) != 0)
        return false;
    unsigned events = ucp_worker_progress(fabric->endpoint->worker);
    pthread_mutex_unlock(&fabric->endpoint->mutex);
    return events != 0;
}

void ucx_poll_enter(fabric_t *fabric)
{
    atomic_fetch_add(&fabric->ucx->pollers, 1);
}

void ucx_poll_leave(fabric_t *fabric, bool will_sleep)
{
    /* The one that sleeps leaves the network to the service thread, which has to know. */
    if (atomic_fetch_sub(&fabric->ucx->pollers, 1) == 1 && will_sleep)
        fabric_service_kick(fabric);
}

int ucx_service_arm(fabric_t *fabric, bool *again_out)
{
    *again_out = false;
    if (atomic_load(&fabric->ucx->pollers) > 0)
        return -1;
    pthread_mutex_lock(&fabric->endpoint->mutex);
    ucs_status_t status = ucp_worker_arm(fabric->endpoint->worker);
    pthread_mutex_unlock(&fabric->endpoint->mutex);
    *again_out = status == UCS_ERR_BUSY;
    return status == UCS_OK ? fabric->endpoint->event_fd : -1;
}

void ucx_beat(fabric_t *fabric)
{
    pthread_mutex_lock(&fabric->endpoint->mutex);
    for (uint32_t rank = 0; rank < fabric->n_ranks; rank++) {
        ucx_peer_t *peer = &fabric->ucx->peers[rank];
        if (!peer->ep || peer->broken)
            continue;
        frame_t frame = ucx_frame_for(peer, FRAME_BEAT);
        /* A peer whose network is stuck gets no further beats; it has enough to read. */
        if (peer->n_in_flight < UCX_SHORT_FRAMES_MAX / 2)
            ucx_send_short(peer, &frame, NULL);
        for (fabric_lane_t lane = 0; lane < FABRIC_LANES; lane++) {
            uint64_t consumed = atomic_load(&peer->in[lane].positions->read);
            if (consumed - peer->told[lane] >= peer->in[lane].capacity / FABRIC_CREDIT_PARTS)
                ucx_send_credit(peer, lane);
        }
    }
    pthread_mutex_unlock(&fabric->endpoint->mutex);
}

uint64_t ucx_beats_heard(const fabric_t *fabric, uint32_t peer)
{
    return fabric->ucx ? atomic_load(&fabric->ucx->peers[peer].heard) : 0;
}

static void tell_all(fabric_t *fabric, const frame_t *about, const char *text)
{
    pthread_mutex_lock(&fabric->endpoint->mutex);
    for (uint32_t rank = 0; rank < fabric->n_ranks; rank++) {
        ucx_peer_t *peer = &fabric->ucx->peers[rank];
        if (!peer->ep || peer->broken)
            continue;
        frame_t frame = ucx_frame_for(peer, (frame_kind_t)about->kind);
        frame.subject = about->subject;
        frame.silent = about->silent;
        ucx_send_short(peer, &frame, text);
    }
    pthread_mutex_unlock(&fabric->endpoint->mutex);
}

void ucx_tell_abort(fabric_t *fabric, const char *reason)
{
    frame_t about = {.kind = FRAME_ABORT};
    tell_all(fabric, &about, reason);
}

void ucx_tell_lost(fabric_t *fabric, uint32_t rank, const char *reason, bool silent)
{
    frame_t about = {.kind = FRAME_LOST, .subject = rank, .silent = silent ? 1 : 0};
    tell_all(fabric, &about, reason);
}
