/* What the stores_*.c files share. Everything belongs to the core thread, but what `lock`
 * guards. */
#ifndef SHOAL_COORDINATOR_STORES_STATE_H
#define SHOAL_COORDINATOR_STORES_STATE_H

#include "coordinator/shell_state.h"

typedef struct watch watch_t;
typedef struct held held_t;

struct stores {
    watch_t *watches;
    held_t *held, **held_tail; /* changes of keys that wait until etcd is trusted again */
    size_t held_keys, held_bytes;
    table_t items;             /* stores_items.c: custom ids of what is claimed */
    size_t items_sweep_at;     /* and how many of them are looked through; 0: any */

    /* stores_member.c */
    etcd_lease_t *lease;
    etcd_election_t *election;
    char *election_key;
    int64_t lease_id;      /* 0: none */
    uint64_t life;         /* of the lease: answers that belong to an earlier one are dropped */
    bool register_waits;   /* the lease is there, the cluster is not known yet */
    uint64_t registered_incarnation; /* 0: not registered under this lease */

    /* stores_meta.c */
    bool verifying, verify_again;
    uint64_t verified_ms;
    unsigned doubts; /* strange findings in a row */
    bool etcd_trusted; /* this cluster's, and has not gone back since it was verified */
    bool etcd_was_reachable;
    unsigned regressions;
    core_store_state_t etcd_told, redis_told;

    pthread_mutex_t lock;
    bool known;
    char uuid[33];
    uint64_t incarnation;
    bool redis_up;
    store_view_t etcd_view, redis_view;
};

/* What one look at both stores has found (stores_meta.c). */
typedef struct {
    shell_t *shell;
    /* of etcd */
    status_t etcd_status;
    bool etcd_has;
    char etcd_uuid[33];
    uint64_t etcd_incarnation;
    int64_t etcd_mod_revision, etcd_revision;
    /* of Redis */
    jobs_code_t redis_code;
    jobs_meta_t redis;
    char text[256];
} look_t;

/* Reads the answer of a get of "meta". */
void stores_read_meta(const etcd_result_t *result, look_t *look);
/* Writes etcd's meta if it still has that mod-revision (0: is absent). */
void stores_write_meta(shell_t *shell, const char *uuid, uint64_t incarnation,
                       int64_t mod_revision, etcd_done_fn done, void *context);

/* Tells that etcd is foreign until the two stores have been compared again. */
void stores_freeze_etcd(shell_t *shell, const char *text);

/* stores_etcd.c: hands over what was held. */
void stores_release_held(shell_t *shell);
void stores_etcd_begin(shell_t *shell);
void stores_etcd_close(shell_t *shell);

/* stores_member.c */
void stores_member_begin(shell_t *shell);
void stores_member_tick(shell_t *shell);
void stores_member_close(shell_t *shell, bool leave);

/* stores_items.c: remembers which custom_id a claimed item has, for its result. */
void stores_items_close(shell_t *shell);
void stores_claimed(shell_t *shell, uint64_t op, const jobs_reply_t *reply);
const char *stores_custom_id(shell_t *shell, const core_item_ref_t *ref);
void stores_forget_item(shell_t *shell, const char *job, uint64_t index);

#endif
