/* The frames to and from one peer of an epoch: a bounded stock of outgoing ones, which UCX gives back
 * when they are sent, and the checks that everything that comes in passes before it is used. */
#include <stdio.h>
#include <stdlib.h>

#include "common/base/memory.h"
#include "worker/fabric/ucx.h"

/* Enough data in flight to fill a fast link's round trip, and room for short frames besides. */
#define DATA_FRAMES_MAX 32
#define SHORT_BYTES BOARD_REASON_BYTES

/* ---- sending; all with the endpoint's mutex held ---- */

outgoing_frame_t *ucx_free_frame(ucx_peer_t *peer, bool is_data)
{
    outgoing_frame_t **list = is_data ? &peer->free_data : &peer->free_short;
    uint32_t *n = is_data ? &peer->n_data : &peer->n_short;
    outgoing_frame_t *one = *list;
    if (one) {
        *list = one->next;
        return one;
    }
    if (*n == (is_data ? DATA_FRAMES_MAX : UCX_SHORT_FRAMES_MAX))
        return NULL;
    (*n)++;
    one = mem_new(1, sizeof *one + (is_data ? FRAME_PAYLOAD_MAX : SHORT_BYTES));
    one->peer = peer;
    one->is_data = is_data;
    return one;
}

static void give_free(outgoing_frame_t *one)
{
    outgoing_frame_t **list = one->is_data ? &one->peer->free_data : &one->peer->free_short;
    one->next = *list;
    *list = one;
}

void ucx_lose(ucx_peer_t *peer, const char *how)
{
    fabric_t *fabric = peer->fabric;
    peer->broken = true;
    if (atomic_load(&fabric->board->ranks[peer->rank].left))
        return;
    board_rank_died(fabric->board, peer->rank, how, true);
    fabric_look_for_failure(fabric);
}

static void on_sent(void *request, ucs_status_t status, void *argument)
{
    outgoing_frame_t *one = argument;
    (void)status; /* a failed send comes with the endpoint's error callback */
    one->peer->n_in_flight--;
    give_free(one);
    ucp_request_free(request);
}

void ucx_submit(outgoing_frame_t *one)
{
    ucx_peer_t *peer = one->peer;
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK |
                        UCP_OP_ATTR_FIELD_USER_DATA,
        .flags = UCP_AM_SEND_FLAG_EAGER,
        .cb.send = on_sent,
        .user_data = one,
    };
    ucs_status_ptr_t request =
        ucp_am_send_nbx(peer->ep, FRAME_ACTIVE_MESSAGE, &one->frame, sizeof one->frame,
                        one->payload, one->frame.bytes, &param);
    if (UCS_PTR_IS_PTR(request)) {
        peer->n_in_flight++;
        return;
    }
    if (UCS_PTR_IS_ERR(request)) {
        char how[128];
        snprintf(how, sizeof how, "cannot send to it: %s",
                 ucs_status_string(UCS_PTR_STATUS(request)));
        ucx_lose(peer, how);
    }
    give_free(one);
}

frame_t ucx_frame_for(const ucx_peer_t *peer, frame_kind_t kind)
{
    return (frame_t){
        .magic = FRAME_MAGIC,
        .version = FRAME_VERSION,
        .kind = (uint8_t)kind,
        .incarnation = peer->fabric->incarnation,
        .epoch = peer->fabric->epoch,
        .from = peer->fabric->rank,
        .to = peer->rank,
    };
}

/* False when the connection is broken or too many short frames wait for the network. */
bool ucx_send_short(ucx_peer_t *peer, const frame_t *frame, const char *text)
{
    if (peer->broken || !peer->ep)
        return false;
    outgoing_frame_t *one = ucx_free_frame(peer, false);
    if (!one)
        return false;
    one->frame = *frame;
    size_t n = text ? strlen(text) : 0;
    n = n < SHORT_BYTES ? n : SHORT_BYTES;
    if (n > 0)
        memcpy(one->payload, text, n);
    one->frame.bytes = (uint32_t)n;
    ucx_submit(one);
    return true;
}

void ucx_send_credit(ucx_peer_t *peer, fabric_lane_t lane)
{
    uint64_t consumed = atomic_load(&peer->in[lane].positions->read);
    frame_t frame = ucx_frame_for(peer, FRAME_CREDIT);
    frame.lane = (uint8_t)lane;
    frame.position = consumed;
    if (ucx_send_short(peer, &frame, NULL))
        peer->told[lane] = consumed;
}

bool ucx_release_frames(ucx_peer_t *peer)
{
    if (peer->n_in_flight > 0)
        return false;
    outgoing_frame_t *lists[2] = {peer->free_data, peer->free_short};
    for (int i = 0; i < 2; i++) {
        for (outgoing_frame_t *next, *one = lists[i]; one; one = next) {
            next = one->next;
            free(one);
        }
    }
    return true;
}

/* ---- taking frames in ---- */

static void break_rules(ucx_peer_t *peer, const char *what)
{
    fabric_t *fabric = peer->fabric;
    atomic_fetch_add_explicit(&fabric->frames_refused, 1, memory_order_relaxed);
    peer->refused = true;
    fabric_fail(fabric, STATUS_INVALID, peer->rank, false, what);
}

static void take_data(ucx_peer_t *peer, const frame_t *frame, const uint8_t *payload)
{
    if (frame->lane >= FABRIC_LANES || frame->position != peer->received[frame->lane]) {
        break_rules(peer, "sent data out of order");
        return;
    }
    const ring_t *ring = &peer->in[frame->lane];
    if (frame->bytes > ring_room(ring)) {
        break_rules(peer, "sent more than its window");
        return;
    }
    ring_write(ring, payload, frame->bytes);
    peer->received[frame->lane] += frame->bytes;
}

static void take_credit(ucx_peer_t *peer, const frame_t *frame)
{
    if (frame->lane >= FABRIC_LANES || frame->position < peer->credited[frame->lane] ||
        frame->position > peer->sent[frame->lane]) {
        break_rules(peer, "gave credit for what was never sent");
        return;
    }
    peer->credited[frame->lane] = frame->position;
}

static void take_lost(fabric_t *fabric, const frame_t *frame, const char *text)
{
    if (frame->subject == fabric->rank) {
        /* For this rank the other one is out of reach, but nobody else shall hear that from here:
         * the others were told the cause and would take an echo of it for another one. */
        fabric_fail(fabric, STATUS_PEER_LOST, frame->from, true, "it holds this rank for lost");
    } else if (frame->subject < fabric->n_ranks) {
        board_rank_died(fabric->board, frame->subject, text, frame->silent != 0);
    } else {
        atomic_fetch_add_explicit(&fabric->frames_refused, 1, memory_order_relaxed);
        return;
    }
    fabric_look_for_failure(fabric);
}

void ucx_take_frame(fabric_t *fabric, const frame_t *frame, const uint8_t *payload)
{
    char text[BOARD_REASON_BYTES];
    if (frame->to != fabric->rank || frame->from >= fabric->n_ranks ||
        !fabric->ucx->peers[frame->from].fabric) {
        atomic_fetch_add_explicit(&fabric->frames_refused, 1, memory_order_relaxed);
        return;
    }
    ucx_peer_t *peer = &fabric->ucx->peers[frame->from];
    if (peer->broken || (peer->refused && frame->kind != FRAME_LEFT)) {
        atomic_fetch_add_explicit(&fabric->frames_refused, 1, memory_order_relaxed);
        return;
    }
    atomic_fetch_add(&peer->heard, 1);
    atomic_store(&peer->joined, true);
    size_t n = frame->bytes < sizeof text - 1 ? frame->bytes : sizeof text - 1;
    if (frame->kind == FRAME_LOST || frame->kind == FRAME_ABORT) {
        for (size_t i = 0; i < n; i++)
            text[i] = payload[i] >= 32 && payload[i] != 127 ? (char)payload[i] : '?';
        text[n] = 0;
    }
    switch (frame->kind) {
    case FRAME_DATA:
        take_data(peer, frame, payload);
        break;
    case FRAME_CREDIT:
        take_credit(peer, frame);
        break;
    case FRAME_BEAT:
        return; /* wakes nobody */
    case FRAME_LOST:
        take_lost(fabric, frame, text);
        break;
    case FRAME_ABORT:
        board_abort(fabric->board, text);
        fabric_look_for_failure(fabric);
        break;
    case FRAME_LEAVE: {
        atomic_store(&fabric->board->ranks[frame->from].left, 1);
        frame_t answer = ucx_frame_for(peer, FRAME_LEFT);
        ucx_send_short(peer, &answer, NULL);
        break;
    }
    case FRAME_LEFT:
        peer->acknowledged = true;
        break;
    default:
        atomic_fetch_add_explicit(&fabric->frames_refused, 1, memory_order_relaxed);
        return;
    }
    board_ring(fabric->board, fabric->rank);
}
