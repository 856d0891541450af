/* An etcd v3 client: values, transactions, leases, watches, elections.
 *
 * What it owns: channels to the members, one thread on which all its logic and every callback runs,
 * and the repair work that etcd leaves to clients: retries, resuming, re-listing, reconciling. What
 * it must not know: what a key means.
 *
 * Threads. Every function may be called from any thread, callbacks included, except the _close
 * functions of the client itself and etcd_wait, which block. Callbacks run on the client's own
 * thread, one at a time, never inside the caller's call, and must not block. Every operation that
 * was started ends in exactly one callback, at shutdown with STATUS_CANCELLED. Data in callbacks is
 * borrowed.
 *
 * Reads are linearizable; they are retried on other members until their time is up. Writes are
 * tried once: STATUS_UNREACHABLE and STATUS_DEADLINE of a write mean that its outcome is unknown.
 */
#ifndef SHOAL_COMMON_NET_ETCD_H
#define SHOAL_COMMON_NET_ETCD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/net/rpc.h"

typedef struct etcd etcd_t;

#define ETCD_KEY_BYTES_MAX 4096
#define ETCD_VALUE_BYTES_MAX (1u << 20)
#define ETCD_TXN_OPS_MAX 128  /* etcd's own default, compares and ops each */

typedef struct {
    const char *endpoints;   /* comma-separated: host:port, http://host:port, unix:/path */
    unsigned timeout_ms;     /* of one operation, retries included; 0: 5,000 */
    unsigned page_keys;      /* keys of a page in a list; 0: 256 */
    unsigned reconcile_ms;   /* how often a watch compares itself with a list; 0: 30,000 */
    unsigned backoff_ms_max; /* longest pause before a retry or reconnect; 0: 2,000 */
} etcd_options_t;

/* Opens without connecting. STATUS_INVALID names the endpoint that cannot be one. */
status_t etcd_open(rpc_io_t *io, const etcd_options_t *options, etcd_t **own_etcd_out) MUST_USE;
/* Ends everything under way (each callback comes, with STATUS_CANCELLED), closes watches, leases
 * (without revoking them) and elections that are still open, and returns when the last callback
 * has returned. Not from a callback. */
void etcd_close(etcd_t *take_etcd);
/* Blocks until a linearizable read succeeds. STATUS_UNREACHABLE says what was tried. */
status_t etcd_wait_ready(etcd_t *etcd, unsigned timeout_ms) MUST_USE;

/* The highest revision in any answer so far, and the cluster id of the latest answer; 0 before the
 * first. */
int64_t etcd_revision_seen(etcd_t *etcd);
uint64_t etcd_cluster_id(etcd_t *etcd);
/* How many times a store was found to hold a lower revision than was seen before: emptied or
 * restored. Whoever promises something on top of etcd stops at a change of this number. */
unsigned etcd_regressions(etcd_t *etcd);
/* Whether the latest answer was a good one. False before the first. */
bool etcd_reachable(etcd_t *etcd);

/* ---- operations ---- */

typedef struct {
    const char *key; /* followed by a NUL that is not counted */
    size_t key_size;
    const uint8_t *value;
    size_t value_size;
    int64_t create_revision;
    int64_t mod_revision;
    int64_t version;
    int64_t lease; /* 0: none */
} etcd_kv_t;

typedef struct {
    status_t status;
    const char *message; /* what went wrong; "" when nothing did */
    int64_t revision;    /* of the store when it answered; of the write for a write */
    bool succeeded;      /* of a transaction: every compare held */
    const etcd_kv_t *kvs; /* of get, list, and of the reads of a transaction, in order */
    size_t n_kvs;
    int64_t n_deleted;
    int64_t lease;       /* of a grant */
    int64_t ttl_s;       /* of a grant or a time-to-live question */
} etcd_result_t;

typedef void (*etcd_done_fn)(void *context, const etcd_result_t *result);

/* A missing key is STATUS_OK with n_kvs 0. Arguments out of range end in STATUS_INVALID through the
 * callback like everything else, so that there is one path. */
void etcd_get(etcd_t *etcd, const char *key, etcd_done_fn done, void *context);
/* All keys that begin with `prefix`, read in pages at one revision. Sorted by key. */
void etcd_list(etcd_t *etcd, const char *prefix, etcd_done_fn done, void *context);
/* lease 0: the key stays. */
void etcd_put(etcd_t *etcd, const char *key, const void *value, size_t value_size, int64_t lease,
              etcd_done_fn done, void *context);
void etcd_delete(etcd_t *etcd, const char *key, etcd_done_fn done, void *context);
void etcd_delete_prefix(etcd_t *etcd, const char *prefix, etcd_done_fn done, void *context);

typedef enum {
    ETCD_MOD_REVISION,    /* 0 for a key that does not exist */
    ETCD_CREATE_REVISION, /* likewise */
    ETCD_VERSION,         /* likewise */
    ETCD_VALUE,
    ETCD_LEASE,
} etcd_target_t;
typedef enum { ETCD_EQUAL, ETCD_GREATER, ETCD_LESS, ETCD_NOT_EQUAL } etcd_relation_t;

typedef struct {
    const char *key;
    etcd_target_t target;
    etcd_relation_t relation;
    int64_t number; /* of all targets but the value */
    const void *value;
    size_t value_size;
} etcd_compare_t;

typedef enum {
    ETCD_PUT,
    ETCD_DELETE,
    ETCD_DELETE_PREFIX,
    ETCD_GET,
    ETCD_GET_PREFIX,
} etcd_op_kind_t;

typedef struct {
    etcd_op_kind_t kind;
    const char *key;
    const void *value; /* of a put */
    size_t value_size;
    int64_t lease;
} etcd_op_t;

/* `then` when every compare holds, else `otherwise`; one atomic step. All puts of it get one
 * mod-revision, result->revision. A lost compare is STATUS_OK with succeeded false. */
typedef struct {
    const etcd_compare_t *compares;
    size_t n_compares;
    const etcd_op_t *then;
    size_t n_then;
    const etcd_op_t *otherwise;
    size_t n_otherwise;
} etcd_txn_t;

void etcd_txn(etcd_t *etcd, const etcd_txn_t *txn, etcd_done_fn done, void *context);

/* Compaction, for maintenance and tests: revisions below are forgotten. */
void etcd_compact(etcd_t *etcd, int64_t revision, etcd_done_fn done, void *context);

/* ---- blocking: give etcd_wait_done and a waiter to any operation, then wait ---- */

typedef struct etcd_waiter etcd_waiter_t;

etcd_waiter_t *etcd_waiter_new(void) __attribute__((returns_nonnull, warn_unused_result));
/* The etcd_done_fn to pass; its context is the waiter. */
void etcd_wait_done(void *waiter, const etcd_result_t *result);
/* Blocks until the operation has ended and returns its status, with its words in status_text().
 * With `own_result_out` not NULL and STATUS_OK the result is copied there (etcd_result_free). The
 * waiter is released. Never from a callback. */
status_t etcd_wait(etcd_waiter_t *take_waiter, etcd_result_t **own_result_out) MUST_USE;
void etcd_result_free(etcd_result_t *take_result);

/* ---- lease ---- */

typedef struct etcd_lease etcd_lease_t;

typedef struct {
    /* The lease exists; called once. Keys may be put under it from now on. */
    void (*on_granted)(void *context, int64_t lease);
    /* etcd says that the lease is gone: expired, revoked, or unknown to an emptied store. The last
     * callback before on_closed; the owner closes it and opens a new one. */
    void (*on_lost)(void *context, int64_t lease);
    /* After etcd_lease_close: nothing more will come. May be NULL. */
    void (*on_closed)(void *context);
    void *context;
} etcd_lease_handlers_t;

/* Asks for a lease until it gets one, then keeps it alive every ttl / 3. While etcd is away it goes
 * on trying: etcd keeps leases over its own restart, and only etcd's word ends one. */
etcd_lease_t *etcd_lease_open(etcd_t *etcd, unsigned ttl_s, const etcd_lease_handlers_t *handlers)
    __attribute__((returns_nonnull, warn_unused_result));
/* 0 until granted. */
int64_t etcd_lease_id(etcd_lease_t *lease);
/* Until when, by clock_ms(), no one else can see the lease expired: when the last acknowledged
 * keepalive was *sent*, plus the TTL that etcd granted. A holder that fences itself stops before. 0
 * before the grant and after the loss. */
uint64_t etcd_lease_safe_until_ms(etcd_lease_t *lease);
/* With `revoke` the keys under it go at once (best effort), else when it expires. */
void etcd_lease_close(etcd_lease_t *take_lease, bool revoke);

/* ---- watch ---- */

typedef struct {
    bool deleted;    /* kv.key and kv.mod_revision (of the deletion, or the list that lacked it) */
    bool from_list;  /* found by a list and not by an event: intermediate changes may be missing */
    etcd_kv_t kv;
} etcd_event_t;

typedef struct etcd_watch etcd_watch_t;

typedef struct {
    /* Changes in order of revision; those of one revision come in one call, unless from a list. */
    void (*on_events)(void *context, const etcd_event_t *events, size_t n);
    /* The first list was delivered, and again after each re-list or reconcile: all that stood at
     * `revision` has been told. */
    void (*on_synced)(void *context, int64_t revision);
    /* The store went back to a lower revision (emptied or restored); the events that follow, up to
     * the next on_synced, lead from the old state to the new one. May be NULL. */
    void (*on_regressed)(void *context, int64_t revision_seen, int64_t revision_now);
    /* After etcd_watch_close: nothing more will come. May be NULL. */
    void (*on_closed)(void *context);
    void *context;
} etcd_watch_handlers_t;

/* Tells all keys under the prefix as puts from_list, then each change. A cut stream is resumed from
 * the next revision after a jittered pause; where that revision is compacted the prefix is listed
 * again and the difference told as puts and deletes. Every reconcile_ms, and soon after each
 * reconnect, a paged list repairs what a lost event left wrong. Keys known are held in memory
 * (key and revisions, no values). */
etcd_watch_t *etcd_watch_open(etcd_t *etcd, const char *prefix,
                              const etcd_watch_handlers_t *handlers)
    __attribute__((returns_nonnull, warn_unused_result));
void etcd_watch_close(etcd_watch_t *take_watch);
/* Lists and compares now, besides the regular times. */
void etcd_watch_reconcile(etcd_watch_t *watch);
/* How often streams were opened, lists compared after the first, and differences found by them. */
typedef struct {
    uint64_t streams, lists, repairs, compactions;
} etcd_watch_counts_t;
etcd_watch_counts_t etcd_watch_counts(etcd_watch_t *watch);

/* ---- election ---- */

typedef struct etcd_election etcd_election_t;

typedef struct {
    /* Elected. `create_revision` of the own key is the fence: every write of the elected one
     * compares it (etcd_election_compare), and higher ones win in other stores. */
    void (*on_elected)(void *context, int64_t create_revision);
    /* No longer elected: the own key is gone or somebody else's is older. */
    void (*on_deposed)(void *context);
    /* Who is elected changed: the value of that key; NULL and 0 when nobody is. May be NULL. */
    void (*on_leader)(void *context, const uint8_t *value, size_t value_size,
                      int64_t create_revision);
    void (*on_closed)(void *context);
    void *context;
} etcd_election_handlers_t;

/* Puts prefix/<lease in hex> under the lease and is elected while that key has the lowest
 * create-revision under prefix/. A key that vanishes while the lease lives is put again, with a new
 * create-revision, behind the others. When the lease is lost, close and campaign with a new one. */
etcd_election_t *etcd_election_open(etcd_t *etcd, const char *prefix, int64_t lease,
                                    const void *value, size_t value_size,
                                    const etcd_election_handlers_t *handlers)
    __attribute__((returns_nonnull, warn_unused_result));
/* The guard of a transaction: the own key still has that create-revision. The key stays valid while
 * the election is open. */
etcd_compare_t etcd_election_compare(etcd_election_t *election, int64_t create_revision);
/* With `resign` the own key is deleted (best effort), so that the next one is elected at once. */
void etcd_election_close(etcd_election_t *take_election, bool resign);

#endif
