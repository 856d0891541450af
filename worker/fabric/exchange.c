/* The all-gather of parts inside a group, and the exchange of pieces, of which each member needs one
 * of every other's. Inside a host a rank writes its part (all its pieces) once, into one
 * of two slots that take turns, stores the exchange's number last, and everyone reads it in place.
 * Two slots suffice without any acknowledgement: a rank writes into the slot of exchange k-2 only
 * after exchange k-1 ended, so after everyone began k-1 and thereby gave up the parts of k-2.
 * Members on other hosts get the part, or their piece, as a message on the lane PARTIALS. */
#include <stdio.h>
#include <stdlib.h>

#include "worker/fabric/fabric_internal.h"

/* What moves from whom to whom. An all-gather sends one part to everybody; with pieces, member i
 * gives times[i] * bytes[k] to member k. */
typedef struct {
    uint32_t own;          /* this rank's index in the group */
    const size_t *bytes;
    const uint32_t *times; /* NULL: an all-gather, bytes[i] is member i's part */
    size_t before_own;     /* of bytes[], those of the members before this one */
    size_t all;            /* of bytes[], together */
} layout_t;

typedef struct {
    layout_t layout;
    const void **parts;
    uint64_t number;
    uint64_t missing; /* bit mask of the ranks without which the exchange is not complete */
    bool arrived[FABRIC_RANKS_MAX], sent[FABRIC_RANKS_MAX];
    outgoing_t out[FABRIC_RANKS_MAX];
    incoming_t in[FABRIC_RANKS_MAX];
} gather_t;

/* A buffer of the heap for a part, 64-byte aligned, kept for the exchanges to come. */
static uint8_t *part_buffer(part_buffers_t *buffers, uint32_t which, size_t bytes)
{
    size_t wanted = bytes ? (bytes + 63) & ~(size_t)63 : 64;
    if (buffers->capacity[which] < wanted) {
        free(buffers->bytes[which]);
        buffers->bytes[which] = aligned_alloc(64, wanted);
        CHECK(buffers->bytes[which]);
        buffers->capacity[which] = wanted;
    }
    return buffers->bytes[which];
}

/* Where this rank's part of exchange `number` lies. */
static uint8_t *own_part(fabric_t *fabric, uint64_t number, size_t bytes)
{
    uint32_t which = (uint32_t)(number & 1);
    if (fabric->shm.map)
        return shm_slot_bytes(shm_slot(&fabric->shm, fabric->own_index, which));
    uint32_t member = fabric->rank - fabric->group_first;
    return part_buffer(&fabric->parts[member], which, bytes);
}

void *fabric_exchange_buffer(fabric_t *fabric)
{
    return own_part(fabric, fabric->exchange + 1, FABRIC_EXCHANGE_BYTES_MAX);
}

/* Bytes that a member puts into its slot. */
static size_t part_bytes(const layout_t *layout, uint32_t member)
{
    return layout->times ? layout->times[member] * layout->all : layout->bytes[member];
}

/* Where in it this rank's piece begins. */
static size_t piece_at(const layout_t *layout, uint32_t member)
{
    return layout->times ? layout->times[member] * layout->before_own : 0;
}

/* Bytes that `to` gets of it. */
static size_t given_bytes(const layout_t *layout, uint32_t from, uint32_t to)
{
    return layout->times ? layout->times[from] * layout->bytes[to] : layout->bytes[from];
}

/* A local member's part: there when its slot carries the exchange's number. */
static bool look_local(fabric_t *fabric, gather_t *gather, uint32_t member)
{
    uint32_t rank = fabric->group_first + member;
    uint32_t index = shm_local_index(&fabric->shm, rank);
    shm_slot_t *slot = shm_slot(&fabric->shm, index, (uint32_t)(gather->number & 1));
    uint64_t sequence = atomic_load_explicit(&slot->sequence, memory_order_acquire);
    if (sequence != gather->number)
        return false;
    size_t bytes = part_bytes(&gather->layout, member);
    if (slot->bytes != bytes) {
        char what[128];
        snprintf(what, sizeof what, "gave %llu bytes to an exchange where %zu are right",
                 (unsigned long long)slot->bytes, bytes);
        fabric_fail(fabric, STATUS_INVALID, rank, false, what);
    }
    gather->parts[member] = shm_slot_bytes(slot) + piece_at(&gather->layout, member);
    return true;
}

/* Moves one member's part on; true when nothing more is due from or to it. */
static bool gather_member(fabric_t *fabric, gather_t *gather, uint32_t member)
{
    uint32_t rank = fabric->group_first + member;
    if (fabric_is_local(fabric, rank))
        return look_local(fabric, gather, member);
    if (!gather->sent[member])
        gather->sent[member] = outgoing_step(fabric, &gather->out[member]);
    if (!gather->arrived[member])
        gather->arrived[member] = incoming_step(fabric, &gather->in[member]);
    return gather->sent[member] && gather->arrived[member];
}

static bool gathered(fabric_t *fabric, void *argument)
{
    gather_t *gather = argument;
    for (uint32_t member = 0; member < fabric->group_n; member++) {
        uint64_t bit = 1ull << (fabric->group_first + member);
        if ((gather->missing & bit) && gather_member(fabric, gather, member))
            gather->missing &= ~bit;
    }
    return gather->missing == 0;
}

static status_t check_sizes(fabric_t *fabric, const layout_t *layout)
{
    for (uint32_t member = 0; member < fabric->group_n; member++) {
        size_t bytes = part_bytes(layout, member);
        if (bytes > FABRIC_EXCHANGE_BYTES_MAX)
            return fail(STATUS_INVALID,
                        "rank %u: exchange: a part of %zu bytes; at most %zu are right",
                        fabric->rank, bytes, FABRIC_EXCHANGE_BYTES_MAX);
    }
    return STATUS_OK;
}

/* Starts the messages to and from the members on other hosts and rings for the local ones. */
static void start_members(fabric_t *fabric, gather_t *gather, const uint8_t *part)
{
    const layout_t *layout = &gather->layout;
    const uint8_t *next = part;
    for (uint32_t member = 0; member < fabric->group_n; member++) {
        uint32_t rank = fabric->group_first + member;
        size_t taken = given_bytes(layout, member, layout->own);
        size_t given = given_bytes(layout, layout->own, member);
        const uint8_t *from = layout->times ? next : part;
        next += given;
        if (rank == fabric->rank)
            continue;
        atomic_fetch_add_explicit(&fabric->exchange_bytes, taken, memory_order_relaxed);
        if (fabric_is_local(fabric, rank)) {
            board_ring(fabric->board, rank);
            continue;
        }
        uint8_t *to = part_buffer(&fabric->parts[member], (uint32_t)(gather->number & 1), taken);
        gather->parts[member] = to;
        outgoing_start(fabric, &gather->out[member], rank, FABRIC_PARTIALS, from, given);
        incoming_start(&gather->in[member], rank, FABRIC_PARTIALS, to, taken, taken);
    }
}

/* Puts the own part where others find it and starts what goes to members on other hosts. */
static void publish(fabric_t *fabric, gather_t *gather, const void *mine)
{
    uint32_t own = gather->layout.own;
    size_t n = part_bytes(&gather->layout, own);
    uint8_t *part = own_part(fabric, gather->number, n);
    if (mine != part && n > 0)
        memcpy(part, mine, n);
    gather->parts[own] = part + piece_at(&gather->layout, own);
    if (fabric->shm.map) {
        uint32_t which = (uint32_t)(gather->number & 1);
        shm_slot_t *slot = shm_slot(&fabric->shm, fabric->own_index, which);
        slot->bytes = n;
        atomic_store_explicit(&slot->sequence, gather->number, memory_order_release);
    }
    start_members(fabric, gather, part);
}

static status_t exchange(fabric_t *fabric, const fabric_where_t *where, const void *mine,
                         const layout_t *layout, const void **parts_out)
{
    gather_t gather;
    const wait_for_t what = {"exchange", where, &gather.missing, WAIT_EXCHANGE};
    TRY(check_sizes(fabric, layout));
    if (fabric_look_for_failure(fabric))
        return fabric_failed(fabric, &what);
    gather.layout = *layout;
    gather.parts = parts_out;
    gather.number = ++fabric->exchange;
    gather.missing = 0;
    for (uint32_t member = 0; member < fabric->group_n; member++)
        gather.missing |= 1ull << (fabric->group_first + member);
    gather.missing &= ~(1ull << fabric->rank);
    memset(gather.arrived, 0, fabric->group_n * sizeof gather.arrived[0]);
    memset(gather.sent, 0, fabric->group_n * sizeof gather.sent[0]);
    publish(fabric, &gather, mine);
    atomic_fetch_add_explicit(&fabric->exchanges, 1, memory_order_relaxed);
    TRY(fabric_wait_until(fabric, &what, gathered, &gather));
    for (uint32_t member = 0; member < fabric->group_n; member++)
        if (!fabric_is_local(fabric, fabric->group_first + member) &&
            fabric->group_first + member != fabric->rank && gather.in[member].refused)
            return fabric_failed(fabric, &what);
    return STATUS_OK;
}

status_t fabric_exchange(fabric_t *fabric, const fabric_where_t *where, const void *mine,
                         const size_t *bytes, const void **parts_out)
{
    const layout_t layout = {.own = fabric->rank - fabric->group_first, .bytes = bytes};
    return exchange(fabric, where, mine, &layout, parts_out);
}

status_t fabric_exchange_pieces(fabric_t *fabric, const fabric_where_t *where, const void *mine,
                                const size_t *bytes, const uint32_t *times,
                                const void **pieces_out)
{
    layout_t layout = {
        .own = fabric->rank - fabric->group_first, .bytes = bytes, .times = times};
    for (uint32_t member = 0; member < fabric->group_n; member++) {
        layout.before_own += member < layout.own ? bytes[member] : 0;
        layout.all += bytes[member];
    }
    return exchange(fabric, where, mine, &layout, pieces_out);
}
