/* What the files of the etcd client share; nobody else includes it.
 *
 * One thread, the loop, runs everything: starts of operations, answers, timers, callbacks. gRPC's
 * threads only copy what came and post it. So all state but the few marked fields is the loop's
 * alone and needs no lock. Timers cannot be cancelled: what they refer to counts them, and at
 * shutdown all fire at once. */
#ifndef SHOAL_COMMON_NET_ETCD_INTERNAL_H
#define SHOAL_COMMON_NET_ETCD_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/base/buffer.h"
#include "common/base/memory.h"
#include "common/net/etcd.h"
#include "common/net/rpc_message.h"
#include "etcd/rpc.pb-c.h"

#define ETCD_ENDPOINTS_MAX 16
#define ETCD_MESSAGE_BYTES_MAX (64u << 20) /* a watch may have much to catch up on */
#define ETCD_LIST_KEYS_MAX 1000000

typedef void (*etcd_run_fn)(void *context);

typedef struct etcd_task {
    struct etcd_task *next;
    etcd_run_fn run;
    void *context;
} etcd_task_t;

typedef struct {
    uint64_t due_ms;
    etcd_run_fn run;
    void *context;
} etcd_timer_t;

typedef struct etcd_op etcd_op_state_t;
typedef struct etcd_stream etcd_stream_t;

struct etcd {
    rpc_io_t *io;
    etcd_options_t options;
    rpc_channel_t *channels[ETCD_ENDPOINTS_MAX];
    size_t n_channels;
    size_t current; /* the endpoint in use */
    uint64_t random;

    pthread_t thread;
    pthread_mutex_t lock; /* of the next three */
    pthread_cond_t wake;
    etcd_task_t *tasks_head, *tasks_tail;
    atomic_bool closing; /* set once; new work then ends in STATUS_CANCELLED */
    bool stop;

    etcd_timer_t *timers; /* a heap, the soonest first */
    size_t n_timers, timers_capacity;
    size_t n_busy; /* operations and streams that have not ended, objects that are open */
    etcd_op_state_t *ops;
    etcd_lease_t *leases;
    etcd_watch_t *watches;
    etcd_election_t *elections;

    int64_t revision_now; /* as of the latest answers; lower than seen after a regression */
    _Atomic int64_t revision_seen;
    _Atomic uint64_t cluster_id;
    atomic_uint regressions;
    atomic_bool reachable;
};

/* ---- loop ---- */

status_t etcd_loop_start(etcd_t *etcd) MUST_USE;
void etcd_loop_join(etcd_t *etcd);
/* From any thread. */
void etcd_post(etcd_t *etcd, etcd_run_fn run, void *context);
/* On the loop: runs later; at shutdown at once. */
void etcd_after(etcd_t *etcd, uint64_t delay_ms, etcd_run_fn run, void *context);
/* On the loop: between half of `ms` and all of it. */
uint64_t etcd_jitter(etcd_t *etcd, uint64_t ms);
/* The pause before attempt number `attempt` (from 0): doubling from 50 ms up to the limit. */
uint64_t etcd_backoff(etcd_t *etcd, unsigned attempt);

/* ---- operations ---- */

/* A result with what only the client itself needs. */
typedef struct {
    etcd_result_t public_part; /* first, so that the one is the other */
    bool more;                 /* a range has further keys */
    int code;                  /* gRPC's */
} etcd_full_result_t;

/* What etcd knew when a request was sent: an answer from before that is from another store. */
typedef struct {
    int64_t revision;
    unsigned regressions;
} etcd_mark_t;
etcd_mark_t etcd_mark(etcd_t *etcd);
/* Takes note of an answer's header; true when the store went back. */
bool etcd_note_header(etcd_t *etcd, const Etcdserverpb__ResponseHeader *header, etcd_mark_t mark);
void etcd_note_failure(etcd_t *etcd, size_t endpoint);
/* The endpoint to use now: the current one unless its connection is known to fail. */
size_t etcd_pick(etcd_t *etcd);

typedef enum {
    ETCD_CALL_RANGE, ETCD_CALL_PUT, ETCD_CALL_DELETE, ETCD_CALL_TXN, ETCD_CALL_COMPACT,
    ETCD_CALL_GRANT,
    /* The last words of who leaves: also sent while the client closes, which waits a second. */
    ETCD_CALL_REVOKE, ETCD_CALL_RESIGN,
} etcd_call_kind_t;

/* Starts a call from any thread; `status` not OK makes it end with that and status_text(). Reads
 * are retried until their time is up. */
void etcd_call(etcd_t *etcd, etcd_call_kind_t kind, const void *message, status_t status,
               etcd_done_fn done, void *context);
/* The same with a time of its own. */
void etcd_call_within(etcd_t *etcd, etcd_call_kind_t kind, const void *message, unsigned timeout_ms,
                      status_t status, etcd_done_fn done, void *context);
/* One page of the keys with the prefix, from a key on, at a revision (0: now). */
void etcd_page(etcd_t *etcd, const void *from, size_t from_size, const char *prefix,
               int64_t revision, etcd_done_fn done, void *context);
/* The first key after all that begin with the prefix; "\0" with *size_out 1 for an empty prefix. */
char *etcd_prefix_end(const char *prefix, size_t *size_out);
/* Cancels everything under way; on the loop. */
void etcd_ops_cancel(etcd_t *etcd);
/* Fills kvs from a message; keys are copied into the arena, values stay the message's. */
void etcd_kvs_from(arena_t *arena, Etcdserverpb__KeyValue *const *from, size_t n, etcd_kv_t *kvs);
status_t etcd_check_key(const char *key);

/* ---- streams ---- */

typedef struct {
    /* One message; the next comes after etcd_stream_more. */
    void (*on_message)(void *owner, const uint8_t *bytes, size_t n);
    /* The stream has ended; it is freed afterwards. Not after etcd_stream_drop. */
    void (*on_end)(void *owner, status_t status, const char *message);
} etcd_stream_handlers_t;

/* On the loop, like all of these. The first message is asked for at once. */
etcd_stream_t *etcd_stream_open(etcd_t *etcd, const char *method,
                                const etcd_stream_handlers_t *handlers, void *owner);
/* False when the stream cannot take it; its end is then on the way or must be forced. */
bool etcd_stream_send(etcd_stream_t *stream, const void *message);
void etcd_stream_more(etcd_stream_t *stream);
/* Cancels it; the owner hears nothing more. NULL is allowed. */
void etcd_stream_drop(etcd_stream_t *take_stream);

/* Closes what is still open; on the loop, at shutdown. */
void etcd_leases_close(etcd_t *etcd);
void etcd_watches_close(etcd_t *etcd);
void etcd_elections_close(etcd_t *etcd);

#endif
