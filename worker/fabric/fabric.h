/* The fabric: how the ranks of one replica talk to each other during one epoch. It carries bytes
 * and knows nothing of tensors. One interface, and transports that are asked "can you connect?":
 * shared-memory rings between ranks of one host, UCX active messages between hosts.
 *
 * Order and buffers. Messages of one (peer, lane) arrive in the order they were sent; lanes do not
 * wait for each other. fabric_send copies: the caller's bytes are free again when it returns. It
 * returns as soon as the lane's bounded buffer has taken the message and blocks while that buffer
 * is full, so a message longer than the buffer passes in pieces while the other side receives.
 * Two ranks that both send more than a buffer holds and only then receive wait for ever (until the
 * time-out); the sizes below, or between hosts three quarters of them, are what may be in flight
 * without anybody receiving.
 *
 * Threads. One thread at a time may send to a (peer, lane) and one may receive from it; different
 * (peer, lane, direction) may be used by different threads. fabric_exchange and
 * fabric_exchange_pieces are for one thread, the one that runs the rank's kernel queue. fabric_abort
 * and fabric_wake are for any thread, at any time between open and close.
 *
 * Failure. A wait ends at once when the epoch is aborted or a rank that it needs is known to be
 * dead, else after its time-out. The error names this rank, the operation, the step and the rank
 * that is missing. After the first failure of a replica-wide kind the fabric is good for nothing but
 * fabric_failure and fabric_close: the replica forms anew with a new epoch.
 *
 * Statuses: STATUS_ABORTED (somebody called abort), STATUS_PEER_LOST (a rank is dead or silent),
 * STATUS_TIMEOUT, STATUS_INVALID (a peer sent what it must not: wrong size, wrong order). */
#ifndef SHOAL_WORKER_FABRIC_FABRIC_H
#define SHOAL_WORKER_FABRIC_FABRIC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

typedef struct fabric fabric_t;
typedef struct fabric_endpoint fabric_endpoint_t;
typedef struct fabric_shm fabric_shm_t;

#define FABRIC_RANKS_MAX 64
#define FABRIC_HOST_BYTES_MAX 64      /* of a host's id, its NUL included */
#define FABRIC_ADDRESS_BYTES_MAX 1024 /* of an endpoint's address */

typedef enum {
    FABRIC_PLAN,        /* step plans: leader to every rank */
    FABRIC_ACTIVATIONS, /* the residual stream from stage to stage */
    FABRIC_PARTIALS,    /* reserved for fabric_exchange */
    FABRIC_LOGITS,      /* slices of logits to the rank that samples */
    FABRIC_RESULT,      /* ids, logprobs, rows: last stage to leader */
    FABRIC_CONTROL,     /* reserved for the formation below */
    FABRIC_LANES,
} fabric_lane_t;

/* What a lane buffers towards one peer, with nobody receiving. Between hosts a receiver gives credit
 * back a quarter of it at a time, so once it has received something three quarters are sure
 * (fabric_lane_sure_bytes). */
#define FABRIC_PLAN_BYTES ((size_t)1 << 20)
#define FABRIC_ACTIVATIONS_BYTES ((size_t)4 << 20)
#define FABRIC_MESSAGE_BYTES 64u /* that a message takes there beside its own, at most */
#define FABRIC_LOGITS_BYTES ((size_t)1 << 20)
#define FABRIC_RESULT_BYTES ((size_t)1 << 20)
#define FABRIC_CONTROL_BYTES ((size_t)64 << 10)

/* The longest part that one rank may give to an exchange. Pages that are never touched cost
 * nothing, so the room is generous; longer parts are exchanged in several calls. */
#define FABRIC_EXCHANGE_BYTES_MAX ((size_t)64 << 20)

#define FABRIC_STEP_TIMEOUT_MS 30000u
#define FABRIC_HEARTBEAT_MS 50u
#define FABRIC_SILENCE_MS 600u
#define FABRIC_FOREVER UINT32_MAX /* as timeout_ms: only abort and death end the wait */

/* Where in the work an operation stands; only for the words of errors and for its time-out. */
typedef struct {
    const char *operation; /* "send of activations"; NULL takes the function's own word */
    uint64_t step;
    int32_t layer;       /* -1: outside the layers */
    uint32_t timeout_ms; /* 0: the configured step time-out; FABRIC_FOREVER: idle waits */
} fabric_where_t;

/* One rank of the replica, as its agent published it. */
typedef struct {
    const char *host;       /* id of its host */
    const uint8_t *address; /* of its endpoint; NULL when it is only reached inside a host */
    size_t address_bytes;
} fabric_peer_t;

/* ---- The endpoint: what other hosts connect to. One a process; it outlives epochs. ---- */

/* Opens the process's UCX worker on the interface that carries `address` (an IP address of this
 * host; RDMA devices of the host are used as well). Only replicas that span hosts need one. */
status_t fabric_endpoint_open(const char *address, fabric_endpoint_t **own_out) MUST_USE;
/* The bytes that peers need; valid as long as the endpoint. */
void fabric_endpoint_address(const fabric_endpoint_t *endpoint, const uint8_t **bytes_out,
                             size_t *n_out);
/* No fabric may be open on it. NULL is fine. */
void fabric_endpoint_close(fabric_endpoint_t *take_endpoint);

/* ---- Shared memory of one host's ranks for one epoch: made by whoever spawned the ranks. ---- */

/* A memfd (sealed in its size) with the rings and slots of the `n_local` ranks in `local[]`. */
status_t fabric_shm_create(uint64_t epoch, const uint32_t *local, uint32_t n_local,
                           fabric_shm_t **own_out) MUST_USE;
/* Borrowed; pass it to each local rank (it needs no other right than the descriptor). */
int fabric_shm_fd(const fabric_shm_t *shm);
/* Ends every wait of every local rank, now. `reason` is cut at 200 bytes; the first one stays. */
void fabric_shm_abort(fabric_shm_t *shm, const char *reason);
/* Tells the local ranks that one of them is dead: "killed by signal 9". */
void fabric_shm_rank_died(fabric_shm_t *shm, uint32_t rank, const char *reason);
void fabric_shm_release(fabric_shm_t *take_shm);

/* ---- One epoch ---- */

typedef struct {
    uint64_t incarnation, epoch; /* compared in this order; older frames are refused */
    uint32_t rank, n_ranks;
    uint32_t group_first, group_n; /* the ranks that exchange with this one, itself among them */
    const fabric_peer_t *peers;    /* n_ranks of them in order of rank, this rank's own included */
    int shm_fd;                    /* borrowed; -1 when no other rank is on this host */
    fabric_endpoint_t *endpoint;   /* NULL when every rank is on this host; outlives the fabric */
    uint32_t step_timeout_ms;      /* 0: FABRIC_STEP_TIMEOUT_MS */
} fabric_config_t;

/* Maps, connects and starts to beat; waits for nobody: the first operation waits for its peer.
 * What the config points to is copied. */
status_t fabric_open(const fabric_config_t *config, fabric_t **own_out) MUST_USE;
/* Frees everything; peers see this rank as gone. NULL is fine. */
void fabric_close(fabric_t *take_fabric);

uint32_t fabric_rank(const fabric_t *fabric);
uint32_t fabric_n_ranks(const fabric_t *fabric);
/* What this lane takes between any two ranks whatever they did before, with nobody receiving. */
size_t fabric_lane_sure_bytes(const fabric_t *fabric, fabric_lane_t lane);

/* Sends n bytes (0 is a message too). `where` may be NULL. */
status_t fabric_send(fabric_t *fabric, uint32_t peer, fabric_lane_t lane,
                     const fabric_where_t *where, const void *bytes, size_t n) MUST_USE;

/* Receives the next message. Longer than bytes_max: STATUS_INVALID and the fabric has failed. */
status_t fabric_receive(fabric_t *fabric, uint32_t peer, fabric_lane_t lane,
                        const fabric_where_t *where, void *out, size_t bytes_max,
                        size_t *bytes_out) MUST_USE;
/* The same for a message that must have exactly n bytes. */
status_t fabric_receive_exact(fabric_t *fabric, uint32_t peer, fabric_lane_t lane,
                              const fabric_where_t *where, void *out, size_t n) MUST_USE;

/* Waits until a message of (peer, lane) begins to arrive, `timeout_ms` passed (0: only looks) or
 * fabric_wake was called; *ready_out says whether a message is there. A time-out is no failure. */
status_t fabric_wait(fabric_t *fabric, uint32_t peer, fabric_lane_t lane, uint32_t timeout_ms,
                     bool *ready_out) MUST_USE;
/* The same for any of several lanes of a peer, a bit (1 << lane) each; *ready_out has those with a
 * message, none after a time-out or a wake. */
status_t fabric_wait_lanes(fabric_t *fabric, uint32_t peer, uint32_t lanes, uint32_t timeout_ms,
                           uint32_t *ready_out) MUST_USE;
/* Lets a fabric_wait that is under way, or else the next one, return. Any thread. */
void fabric_wake(fabric_t *fabric);

/* The all-gather of partial sums inside the group: gives this rank's bytes and yields all of them.
 * bytes[i] is the size of member i's part (member i is rank group_first + i; bytes of this rank
 * included; 0 is allowed); every member must name the same sizes. parts_out[i] points to the part
 * of member i, 64-byte aligned, readable until this rank's next fabric_exchange call begins and
 * never to be written. Inside a host it is one write that everyone reads. No lock, no allocation
 * after the first exchange of a size. `mine` may be fabric_exchange_buffer(): then nothing is
 * copied. */
status_t fabric_exchange(fabric_t *fabric, const fabric_where_t *where, const void *mine,
                         const size_t *bytes, const void **parts_out) MUST_USE;
/* The half of an all-reduce before its sums: `mine` holds a piece for each member, one behind the
 * other, of times[i] * bytes[k] from member i to member k; every member names the same numbers.
 * pieces_out[i] points to member i's piece for this rank, as long readable as the parts of
 * fabric_exchange, and 64-byte aligned when all of bytes[] but the last are. Members on other hosts
 * are sent their piece alone. A member's pieces together are at most FABRIC_EXCHANGE_BYTES_MAX. */
status_t fabric_exchange_pieces(fabric_t *fabric, const fabric_where_t *where, const void *mine,
                                const size_t *bytes, const uint32_t *times,
                                const void **pieces_out) MUST_USE;
/* Where the next exchange's own part can be written in place; FABRIC_EXCHANGE_BYTES_MAX long. To be
 * asked anew after each exchange: two slots take turns. */
void *fabric_exchange_buffer(fabric_t *fabric);

/* Ends every wait of every rank of the epoch, here and on other hosts, with STATUS_ABORTED and
 * these words (cut at 200 bytes). The first reason stays. Any thread. */
void fabric_abort(fabric_t *fabric, const char *reason);

/* What ended the epoch as this rank sees it. */
typedef struct {
    status_t status;    /* STATUS_ABORTED, STATUS_PEER_LOST, …; STATUS_OK: nothing failed */
    uint32_t rank;      /* the rank that is lost; UINT32_MAX when none is named */
    bool silent;        /* lost by silence or by a broken link, not by a death that was seen */
    char host[FABRIC_HOST_BYTES_MAX]; /* of that rank */
    char text[256];
} fabric_failure_t;
/* False when nothing failed. Any thread. */
bool fabric_failure(const fabric_t *fabric, fabric_failure_t *out);

/* Numbers for people and tests. */
typedef struct {
    uint64_t messages_sent, bytes_sent, exchanges;
    uint64_t exchange_bytes; /* taken from other members in exchanges, of this host and of others */
    uint64_t frames_refused; /* of older epochs, malformed, or beyond a limit */
    uint64_t frames_held;    /* of newer epochs */
} fabric_counts_t;
void fabric_counts(const fabric_t *fabric, fabric_counts_t *out);

/* ---- Formation: prepared and go (docs/design.md, "Formation") ---- */

#define FABRIC_IDENTITY_BYTES_MAX 128 /* its NUL included */

/* Every rank calls this once, after fabric_open and before any other message, when its weights are
 * loaded and its KV memory is counted. Ranks report to rank 0, which compares the text identities
 * (a rank with another one is named and the epoch fails with STATUS_CONFLICT), takes the smallest
 * number of KV blocks and says go. *kv_blocks_out is that number on every rank. The wait is at most
 * timeout_ms. It returns on rank 0 when go was sent to all: from then the replica may be used. */
status_t fabric_form(fabric_t *fabric, const char *text_identity, uint64_t kv_blocks,
                     uint32_t timeout_ms, uint64_t *kv_blocks_out) MUST_USE;

#endif
