/* What the files of the fabric share. Nobody outside worker/fabric includes it. */
#ifndef SHOAL_WORKER_FABRIC_FABRIC_INTERNAL_H
#define SHOAL_WORKER_FABRIC_FABRIC_INTERNAL_H

#include <pthread.h>

#include "worker/fabric/fabric.h"
#include "worker/fabric/transport.h"

/* What goes before each message in its lane's stream. */
typedef struct {
    uint64_t bytes;
    uint32_t sequence; /* of the lane, from 0: a lost or repeated message is seen */
    uint32_t magic;
} message_head_t;
_Static_assert(sizeof(message_head_t) <= FABRIC_MESSAGE_BYTES, "as fabric.h promises");
#define MESSAGE_MAGIC 0x4c414f53u
/* No message is longer; a longer length is a broken peer. */
#define MESSAGE_BYTES_MAX ((uint64_t)1 << 40)

/* A message on its way out or in, moved on a piece at a time. */
typedef struct {
    uint32_t peer;
    fabric_lane_t lane;
    message_head_t head;
    const uint8_t *bytes;
    size_t done; /* head and bytes together */
} outgoing_t;
typedef struct {
    uint32_t peer;
    fabric_lane_t lane;
    message_head_t head;
    uint8_t *out;
    size_t bytes_min, bytes_max;
    size_t done;
    bool refused; /* the peer broke the rules: nothing of it may be used */
} incoming_t;

/* Another rank's exchanged parts, when they come as messages: two buffers that take turns. */
typedef struct {
    uint8_t *bytes[2];
    size_t capacity[2];
} part_buffers_t;

/* Silence is counted in a rank's own ticks, not in time: when the whole machine was paused, the
 * watcher has to beat as often as the watched one before it may say that somebody is silent. */
#define FABRIC_SILENT_TICKS (FABRIC_SILENCE_MS / FABRIC_HEARTBEAT_MS)

/* The watch that a rank's service thread keeps over one peer. */
typedef struct {
    int pidfd;          /* of a local rank; -1 before it has opened and after it has left */
    uint64_t beat_seen; /* its last beat */
    uint32_t ticks_silent;
    bool heard;         /* it has beaten at least once */
} watch_t;

/* What lasts alike: members of a group are at the same place, messages come when they come. */
typedef enum { WAIT_MESSAGE, WAIT_EXCHANGE, WAIT_KINDS } wait_kind_t;

struct fabric {
    uint64_t incarnation, epoch;
    uint32_t rank, n_ranks, group_first, group_n;
    uint32_t step_timeout_ms;
    char hosts[FABRIC_RANKS_MAX][FABRIC_HOST_BYTES_MAX];
    fabric_shm_t shm;   /* map is NULL when this rank is alone on its host */
    uint32_t own_index; /* among the local ranks */
    board_t *board;     /* in shm or own */
    board_t *own_board;
    bool has_remote, yields;
    _Atomic uint32_t spins[WAIT_KINDS]; /* how long a wait spins; waits learn it, see wait.c */
    fabric_endpoint_t *endpoint;
    ucx_epoch_t *ucx;
    link_t links[FABRIC_RANKS_MAX];
    uint32_t sequence_out[FABRIC_RANKS_MAX][FABRIC_LANES];
    uint32_t sequence_in[FABRIC_RANKS_MAX][FABRIC_LANES];

    uint64_t exchange; /* number of the last one begun */
    part_buffers_t parts[FABRIC_RANKS_MAX]; /* by member; the own one when there is no shm */

    note_t failed; /* set with failure below it */
    fabric_failure_t failure;
    _Atomic uint32_t wakes; /* fabric_wake calls that no fabric_wait has taken */

    pthread_t service;
    bool service_started;
    int service_event; /* eventfd: look now */
    _Atomic bool service_stop;
    watch_t watches[FABRIC_RANKS_MAX];
    uint64_t abort_told, lost_told; /* bit masks of what was passed on to other hosts */

    _Atomic uint64_t messages_sent, bytes_sent, exchanges, exchange_bytes;
    _Atomic uint64_t frames_refused, frames_held;
};

/* ---- fabric.c ---- */
bool fabric_is_local(const fabric_t *fabric, uint32_t rank);
/* Records what ended the epoch (the first one stays) and tells everybody. */
void fabric_fail(fabric_t *fabric, status_t status, uint32_t rank, bool silent, const char *text);

/* ---- wait.c ---- */
typedef struct {
    const char *operation; /* used when where names none */
    const fabric_where_t *where;
    const uint64_t *needs; /* bit mask of the ranks that are waited for; `done` may clear bits */
    wait_kind_t kind;
} wait_for_t;
typedef bool (*wait_fn)(fabric_t *fabric, void *argument);
/* Waits until `done` says true. `done` may move messages on; when it meets a broken peer it calls
 * fabric_fail, which ends the wait. */
status_t fabric_wait_until(fabric_t *fabric, const wait_for_t *what, wait_fn done,
                           void *argument) MUST_USE;
/* One round of waiting: spins, then sleeps at most sleep_ms_max; *done_out as `done` said last. */
status_t fabric_wait_slice(fabric_t *fabric, const wait_for_t *what, uint64_t sleep_ms_max,
                           wait_fn done, void *argument, bool *done_out) MUST_USE;
/* The words of a failure for this rank, operation and step. */
status_t fabric_failed(fabric_t *fabric, const wait_for_t *what);
/* How long a wait of each kind spins at first. */
void fabric_spins_begin(fabric_t *fabric);
/* What follows from a wait that should have spun longer, or less long. */
uint32_t fabric_spins_next(uint32_t spins, bool longer);
/* Looks at the board and turns a death or an abort into this fabric's failure. */
bool fabric_look_for_failure(fabric_t *fabric);

/* ---- message.c ---- */
void outgoing_start(fabric_t *fabric, outgoing_t *message, uint32_t peer, fabric_lane_t lane,
                    const void *bytes, size_t n);
void incoming_start(incoming_t *message, uint32_t peer, fabric_lane_t lane, void *out,
                    size_t bytes_min, size_t bytes_max);
bool outgoing_step(fabric_t *fabric, outgoing_t *message);
bool incoming_step(fabric_t *fabric, incoming_t *message);

/* ---- service.c ---- */
status_t fabric_service_start(fabric_t *fabric) MUST_USE;
void fabric_service_stop(fabric_t *fabric);
void fabric_service_kick(fabric_t *fabric);

/* ---- ucx_epoch.c (the UCX transport) ---- */
#define FABRIC_CREDIT_PARTS 4u /* of a lane, as much as a receiver keeps back of its credit */
/* Moves the network on; false when nothing happened or somebody else is at it. */
bool ucx_progress(fabric_t *fabric);
status_t ucx_epoch_open(fabric_t *fabric, const fabric_config_t *config) MUST_USE;
void ucx_epoch_close(fabric_t *fabric);
/* A waiter polls the network itself between enter and leave. */
void ucx_poll_enter(fabric_t *fabric);
void ucx_poll_leave(fabric_t *fabric, bool will_sleep);
/* Before the service thread sleeps: the descriptor to poll, or -1; *again_out when not to sleep. */
int ucx_service_arm(fabric_t *fabric, bool *again_out);
/* Each tick: a beat to every remote peer; what ended the epoch, once. */
void ucx_beat(fabric_t *fabric);
uint64_t ucx_beats_heard(const fabric_t *fabric, uint32_t peer);
void ucx_tell_abort(fabric_t *fabric, const char *reason);
void ucx_tell_lost(fabric_t *fabric, uint32_t rank, const char *reason, bool silent);

#endif
