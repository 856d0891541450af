/* What agent_store.c (what is heard) and agent_store_write.c (what is published) share. */
#ifndef SHOAL_WORKER_AGENT_STORE_INTERNAL_H
#define SHOAL_WORKER_AGENT_STORE_INTERNAL_H

#include <pthread.h>

#include "worker/agent_store.h"

typedef enum {
    HEARD_ASSIGN,
    HEARD_RANK,
    HEARD_LEASE,
    HEARD_LEASE_LOST,
    HEARD_WRITTEN, /* a write's answer */
    HEARD_REGRESSED, /* etcd went back: it was emptied or restored */
    HEARD_META,      /* the cluster's meta: its incarnation says whether etcd was adopted */
} heard_kind_t;

/* Something that etcd's thread heard, copied. */
typedef struct heard heard_t;
struct heard {
    heard_t *next;
    heard_kind_t kind;
    bool deleted, succeeded;
    status_t status;
    int64_t lease, mod_revision;
    uint64_t write_id;
    char *key;      /* in bytes */
    uint8_t *value; /* in bytes */
    size_t value_bytes;
    uint8_t bytes[];
};

typedef struct rank_watch rank_watch_t;
struct rank_watch {
    rank_watch_t *next;
    char deployment[AGENT_NAME_BYTES];
    uint32_t ordinal;
    etcd_watch_t *watch;
};

typedef enum {
    WRITE_LEASED,  /* a put under the lease; again under each new lease */
    WRITE_ABSENT,  /* the same, only if the key does not exist */
    WRITE_GUARDED, /* a put that stands only while the plan is the one it speaks of */
    WRITE_FAILURE, /* a FailureRecord: merged with what others wrote about the same epoch */
    WRITE_GONE,    /* a deletion; forgotten when etcd has done it */
} write_kind_t;

typedef struct write_record write_t;
struct write_record {
    write_t *next;
    uint64_t id;
    write_kind_t kind;
    char *key, *plan_key; /* plan_key: GUARDED and FAILURE */
    uint64_t epoch;
    uint8_t *value;
    size_t value_bytes;
    bool in_flight, reading, settled;
    uint64_t next_try_ms;
    uint32_t tries;
    int64_t seen_revision; /* FAILURE: of the record it was merged with */
    uint8_t *merged;       /* FAILURE: what to write */
    size_t merged_bytes;
};

struct agent_store {
    rpc_io_t *io;
    etcd_t *etcd;
    etcd_lease_t *lease;
    int64_t lease_id;
    etcd_watch_t *assigns, *meta;
    /* While etcd is not adopted after it went back, assignments that vanished are kept aside: ranks
     * serve on, and end only when an operator has accepted that store. */
    bool held;
    heard_t *held_back;
    uint64_t incarnation; /* highest seen */
    rank_watch_t *watches;
    const agent_host_t *host;
    agent_store_handlers_t handlers;
    char *prefix, *assign_prefix;
    int event;
    pthread_mutex_t mutex;
    heard_t *heard, **heard_end; /* under the mutex */
    write_t *writes;
    uint64_t next_write_id;
};

void agent_store_post(agent_store_t *store, heard_t *take_heard);
heard_t *agent_store_hear(heard_kind_t kind, const etcd_kv_t *kv);

/* Publishes a value and keeps at it; a later value of the key takes the place of an earlier one. */
void agent_store_write(agent_store_t *store, const char *key, const uint8_t *value, size_t bytes,
                       write_kind_t kind, const char *plan_key, uint64_t epoch);
void agent_store_written(agent_store_t *store, const heard_t *heard, uint64_t now_ms);
void agent_store_retry(agent_store_t *store, uint64_t now_ms);
void agent_store_lease_changed(agent_store_t *store);
/* Takes the host's keys away with the lease; waits a moment for it. */
void agent_store_revoke(agent_store_t *store);
void agent_store_drop_writes(agent_store_t *store);

#endif
