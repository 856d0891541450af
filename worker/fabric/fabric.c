/* Opening and closing an epoch's fabric, messages, abort and failure: see fabric.h. */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/memory.h"
#include "worker/fabric/fabric_internal.h"

/* Asked in this order; the first that can connect carries the peer. */
static const transport_t *const transports[] = {&transport_shm, &transport_ucx};

static const char *const lane_names[FABRIC_LANES] = {"plan",   "activations", "partials",
                                                     "logits", "result",      "control message"};

bool fabric_is_local(const fabric_t *fabric, uint32_t rank)
{
    return fabric->shm.map && shm_local_index(&fabric->shm, rank) != UINT32_MAX;
}

static status_t check_config(const fabric_config_t *config)
{
    if (config->n_ranks == 0 || config->n_ranks > FABRIC_RANKS_MAX)
        return fail(STATUS_INVALID, "a replica of %u ranks; 1 to %d are right", config->n_ranks,
                    FABRIC_RANKS_MAX);
    if (config->rank >= config->n_ranks)
        return fail(STATUS_INVALID, "rank %u of %u", config->rank, config->n_ranks);
    if (config->group_n == 0 || config->group_n > config->n_ranks ||
        config->group_first > config->n_ranks - config->group_n ||
        config->rank < config->group_first ||
        config->rank - config->group_first >= config->group_n)
        return fail(STATUS_INVALID, "rank %u is not in its group of %u ranks from %u",
                    config->rank, config->group_n, config->group_first);
    return STATUS_OK;
}

static bool crowded(const fabric_t *fabric)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return true;
    int n_local = 0;
    for (uint32_t rank = 0; rank < fabric->n_ranks; rank++)
        n_local += fabric_is_local(fabric, rank) ? 1 : 0;
    return n_local > CPU_COUNT(&set);
}

static status_t open_board(fabric_t *fabric, const fabric_config_t *config)
{
    if (config->shm_fd < 0) {
        fabric->own_board = aligned_alloc(64, sizeof *fabric->own_board);
        CHECK(fabric->own_board);
        memset(fabric->own_board, 0, sizeof *fabric->own_board);
        fabric->board = fabric->own_board;
        return STATUS_OK;
    }
    TRY(shm_map(config->shm_fd, config->epoch, &fabric->shm));
    fabric->board = fabric->shm.board;
    fabric->own_index = shm_local_index(&fabric->shm, config->rank);
    if (fabric->own_index == UINT32_MAX)
        return fail(STATUS_INVALID, "shared memory has no place for rank %u", config->rank);
    return STATUS_OK;
}

static status_t connect_peers(fabric_t *fabric, const fabric_config_t *config)
{
    for (uint32_t peer = 0; peer < fabric->n_ranks; peer++) {
        if (peer != fabric->rank && !fabric_is_local(fabric, peer))
            fabric->has_remote = true;
    }
    if (fabric->has_remote)
        TRY(ucx_epoch_open(fabric, config));
    for (uint32_t peer = 0; peer < fabric->n_ranks; peer++) {
        if (peer == fabric->rank)
            continue;
        link_t *link = &fabric->links[peer];
        for (size_t i = 0; i < sizeof transports / sizeof *transports && !link->transport; i++) {
            if (transports[i]->can_connect(fabric, peer))
                link->transport = transports[i];
        }
        if (!link->transport)
            return fail(STATUS_UNREACHABLE,
                        "rank %u (host %s) is on another host and has published no address", peer,
                        fabric->hosts[peer]);
        link->fabric = fabric;
        link->peer = peer;
        TRY(link->transport->connect(fabric, peer, link));
    }
    return STATUS_OK;
}

status_t fabric_open(const fabric_config_t *config, fabric_t **own_out)
{
    TRY(check_config(config));
    fabric_t *fabric = MEM_NEW(fabric_t);
    fabric->incarnation = config->incarnation;
    fabric->epoch = config->epoch;
    fabric->rank = config->rank;
    fabric->n_ranks = config->n_ranks;
    fabric->group_first = config->group_first;
    fabric->group_n = config->group_n;
    fabric->step_timeout_ms =
        config->step_timeout_ms ? config->step_timeout_ms : FABRIC_STEP_TIMEOUT_MS;
    fabric->endpoint = config->endpoint;
    fabric->shm.fd = -1;
    fabric->service_event = -1;
    for (uint32_t rank = 0; rank < config->n_ranks; rank++) {
        const char *host = config->peers[rank].host;
        snprintf(fabric->hosts[rank], FABRIC_HOST_BYTES_MAX, "%s", host ? host : "");
        fabric->watches[rank].pidfd = -1;
    }
    status_t status = open_board(fabric, config);
    if (status == STATUS_OK)
        status = connect_peers(fabric, config);
    if (status == STATUS_OK) {
        fabric->yields = crowded(fabric);
        fabric_spins_begin(fabric);
        atomic_store(&fabric->board->ranks[fabric->rank].pid, (int32_t)getpid());
        status = fabric_service_start(fabric);
    }
    if (status != STATUS_OK) {
        fail_in(status, "rank %u: cannot open the fabric of epoch %llu", config->rank,
                (unsigned long long)config->epoch);
        fabric_close(fabric);
        return status;
    }
    *own_out = fabric;
    return STATUS_OK;
}

void fabric_close(fabric_t *take_fabric)
{
    fabric_t *fabric = take_fabric;
    if (!fabric)
        return;
    if (fabric->board && atomic_load(&fabric->board->ranks[fabric->rank].pid) != 0) {
        atomic_store(&fabric->board->ranks[fabric->rank].left, 1);
        board_ring_all(fabric->board);
    }
    fabric_service_stop(fabric);
    for (uint32_t peer = 0; peer < fabric->n_ranks; peer++) {
        if (fabric->links[peer].transport)
            fabric->links[peer].transport->disconnect(&fabric->links[peer]);
        free(fabric->parts[peer].bytes[0]);
        free(fabric->parts[peer].bytes[1]);
    }
    if (fabric->has_remote)
        ucx_epoch_close(fabric);
    shm_unmap(&fabric->shm);
    free(fabric->own_board);
    free(fabric);
}

uint32_t fabric_rank(const fabric_t *fabric)
{
    return fabric->rank;
}

uint32_t fabric_n_ranks(const fabric_t *fabric)
{
    return fabric->n_ranks;
}

size_t fabric_lane_sure_bytes(const fabric_t *fabric, fabric_lane_t lane)
{
    size_t bytes = fabric_lane_bytes(lane);
    for (uint32_t rank = 0; rank < fabric->n_ranks; rank++)
        if (rank != fabric->rank && !fabric_is_local(fabric, rank))
            return bytes - bytes / FABRIC_CREDIT_PARTS;
    return bytes;
}

static status_t check_call(const fabric_t *fabric, uint32_t peer, fabric_lane_t lane)
{
    if (peer >= fabric->n_ranks || peer == fabric->rank || lane >= FABRIC_LANES)
        return fail(STATUS_INVALID, "rank %u: no lane %d to rank %u of %u", fabric->rank,
                    (int)lane, peer, fabric->n_ranks);
    return STATUS_OK;
}

static bool outgoing_done(fabric_t *fabric, void *argument)
{
    return outgoing_step(fabric, argument);
}

static bool incoming_done(fabric_t *fabric, void *argument)
{
    return incoming_step(fabric, argument);
}

status_t fabric_send(fabric_t *fabric, uint32_t peer, fabric_lane_t lane,
                     const fabric_where_t *where, const void *bytes, size_t n)
{
    TRY(check_call(fabric, peer, lane));
    char operation[48];
    snprintf(operation, sizeof operation, "send of %s", lane_names[lane]);
    const uint64_t needs = 1ull << peer;
    const wait_for_t what = {operation, where, &needs, WAIT_MESSAGE};
    if (fabric_look_for_failure(fabric))
        return fabric_failed(fabric, &what);
    outgoing_t message;
    outgoing_start(fabric, &message, peer, lane, bytes, n);
    return fabric_wait_until(fabric, &what, outgoing_done, &message);
}

static status_t receive(fabric_t *fabric, uint32_t peer, fabric_lane_t lane,
                        const fabric_where_t *where, incoming_t *message)
{
    char operation[48];
    snprintf(operation, sizeof operation, "receive of %s", lane_names[lane]);
    const uint64_t needs = 1ull << peer;
    const wait_for_t what = {operation, where, &needs, WAIT_MESSAGE};
    TRY(fabric_wait_until(fabric, &what, incoming_done, message));
    /* The epoch may have failed of something else before, but this is no message all the same. */
    return message->refused ? fabric_failed(fabric, &what) : STATUS_OK;
}

status_t fabric_receive(fabric_t *fabric, uint32_t peer, fabric_lane_t lane,
                        const fabric_where_t *where, void *out, size_t bytes_max,
                        size_t *bytes_out)
{
    TRY(check_call(fabric, peer, lane));
    incoming_t message;
    incoming_start(&message, peer, lane, out, 0, bytes_max);
    TRY(receive(fabric, peer, lane, where, &message));
    *bytes_out = (size_t)message.head.bytes;
    return STATUS_OK;
}

status_t fabric_receive_exact(fabric_t *fabric, uint32_t peer, fabric_lane_t lane,
                              const fabric_where_t *where, void *out, size_t n)
{
    TRY(check_call(fabric, peer, lane));
    incoming_t message;
    incoming_start(&message, peer, lane, out, n, n);
    return receive(fabric, peer, lane, where, &message);
}

typedef struct {
    const link_t *link;
    uint32_t lanes, ready; /* a bit each */
} look_t;

static bool take_wake(fabric_t *fabric)
{
    return atomic_load_explicit(&fabric->wakes, memory_order_relaxed) != 0 &&
           atomic_exchange(&fabric->wakes, 0) != 0;
}

static bool look_done(fabric_t *fabric, void *argument)
{
    look_t *look = argument;
    for (uint32_t lane = 0; lane < FABRIC_LANES; lane++)
        if ((look->lanes & 1u << lane) &&
            look->link->transport->readable(look->link, (fabric_lane_t)lane))
            look->ready |= 1u << lane;
    return look->ready != 0 || take_wake(fabric);
}

status_t fabric_wait_lanes(fabric_t *fabric, uint32_t peer, uint32_t lanes, uint32_t timeout_ms,
                           uint32_t *ready_out)
{
    TRY(check_call(fabric, peer, lanes < 1u << FABRIC_LANES ? FABRIC_PLAN : FABRIC_LANES));
    const uint64_t needs = 1ull << peer;
    const wait_for_t what = {"wait", NULL, &needs, WAIT_MESSAGE};
    look_t look = {.link = &fabric->links[peer], .lanes = lanes};
    if (fabric->has_remote && timeout_ms == 0)
        ucx_progress(fabric);
    bool done = look_done(fabric, &look);
    if (!done && fabric_look_for_failure(fabric))
        return fabric_failed(fabric, &what);
    uint64_t end = clock_ms() + timeout_ms;
    while (!done && timeout_ms > 0) {
        /* Slices of a wait, because its end is no failure here. */
        uint64_t now = clock_ms();
        if (timeout_ms != FABRIC_FOREVER && now >= end)
            break;
        TRY(fabric_wait_slice(fabric, &what, end - now, look_done, &look, &done));
    }
    *ready_out = look.ready;
    return STATUS_OK;
}

status_t fabric_wait(fabric_t *fabric, uint32_t peer, fabric_lane_t lane, uint32_t timeout_ms,
                     bool *ready_out)
{
    uint32_t ready = 0;
    TRY(check_call(fabric, peer, lane));
    TRY(fabric_wait_lanes(fabric, peer, 1u << lane, timeout_ms, &ready));
    *ready_out = ready != 0;
    return STATUS_OK;
}

void fabric_wake(fabric_t *fabric)
{
    atomic_fetch_add(&fabric->wakes, 1);
    board_ring(fabric->board, fabric->rank);
}

void fabric_abort(fabric_t *fabric, const char *reason)
{
    board_abort(fabric->board, reason);
    fabric_look_for_failure(fabric);
    fabric_service_kick(fabric);
}

void fabric_fail(fabric_t *fabric, status_t status, uint32_t rank, bool silent, const char *text)
{
    uint32_t empty = NOTE_EMPTY;
    if (!atomic_compare_exchange_strong(&fabric->failed.state, &empty, NOTE_TAKEN)) {
        /* Another thread is writing it down; callers may rely on its words being there. */
        while (atomic_load_explicit(&fabric->failed.state, memory_order_acquire) != NOTE_SET)
            sched_yield();
        return;
    }
    fabric_failure_t *failure = &fabric->failure;
    failure->status = status;
    failure->rank = rank;
    failure->silent = silent;
    if (rank < fabric->n_ranks)
        snprintf(failure->host, sizeof failure->host, "%s", fabric->hosts[rank]);
    snprintf(failure->text, sizeof failure->text, "%s", text);
    atomic_store_explicit(&fabric->failed.state, NOTE_SET, memory_order_release);
    /* The others would wait for this rank: they are told now, not after their time-out. */
    if (status != STATUS_ABORTED && status != STATUS_PEER_LOST) {
        char words[BOARD_REASON_BYTES];
        snprintf(words, sizeof words, "rank %u: rank %u %s", fabric->rank, rank, text);
        board_abort(fabric->board, words);
    }
    fabric_service_kick(fabric);
}

bool fabric_failure(const fabric_t *fabric, fabric_failure_t *out)
{
    if (atomic_load_explicit(&fabric->failed.state, memory_order_acquire) != NOTE_SET)
        return false;
    *out = fabric->failure;
    return true;
}

void fabric_counts(const fabric_t *fabric, fabric_counts_t *out)
{
    *out = (fabric_counts_t){
        .messages_sent = atomic_load(&fabric->messages_sent),
        .bytes_sent = atomic_load(&fabric->bytes_sent),
        .exchanges = atomic_load(&fabric->exchanges),
        .exchange_bytes = atomic_load(&fabric->exchange_bytes),
        .frames_refused = atomic_load(&fabric->frames_refused),
        .frames_held = atomic_load(&fabric->frames_held),
    };
}
