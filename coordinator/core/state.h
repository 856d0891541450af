/* What the coordinator's machine remembers: the structs behind core_t, for the files of this folder
 * alone. Each part is changed by one file, named beside it; the others read. */
#ifndef SHOAL_COORDINATOR_CORE_STATE_H
#define SHOAL_COORDINATOR_CORE_STATE_H

#include "common/base/heap.h"
#include "coordinator/core/core.h"
#include "coordinator/core/mutants.h"
#include "coordinator/core/ring.h"
#include "coordinator/core/table.h"
#include "coordinator/core/text_log.h"
#include "shoal/cluster/v1/state.pb-c.h"
#include "shoal/worker/v1/engine.pb-c.h"

enum {
    POOLS_MAX = 16,             /* text identities of one deployment alive at once */
    UNHEARD_BYTES_MAX = 6 << 20, /* of Admits to a leader that has not answered them yet. A link's
                                 * send queue holds 8 MiB; what is over this waits its turn */
    LOSSES_MAX = 4,
    DEATHS_MAX = 3,             /* ranks that one sequence may take with it */
    PASSED_IDS = 8,             /* new ids after which a suspect has passed where it died */
    FAILURE_WAIT_MS = 500,      /* for the record that says who died, before sequences go on; over
                                 * the 200 ms for which an agent waits for names in it … */
    SUSPECT_FAILURE_WAIT_MS = 2500, /* … and before a suspect does: it may cost the next rank, so a
                                     * watch of etcd that broke has time to come back */
    LINK_OPEN_MS = 1000,        /* for HelloReply */
    LINK_RETRY_MS = 200,        /* first wait after a broken link; doubles to 5 s */
    LINK_RETRY_MAX_MS = 5000,
    STARTED_WAIT_MS = 5,        /* for the session pointer */
    KEEP_ENDED_MS = 30000,      /* an ended session can still be resumed */
    POINTER_TTL_MS = 3600000,
    TAKE_WAIT_MS = 3000,        /* for the replica that a pointer names */
    ORPHAN_MS = 30000,          /* no replica of a text identity: its sequences cannot go on */
    STORE_RETRY_MS = 500,       /* an operation whose outcome is not known is repeated */
    CLAIM_IDLE_MS = 500,        /* between claims that found nothing */
    MINE_MS = 30000,
    POLL_MS = 1000,
    ITEM_TOKENS = 512,          /* expected prompt + answer of an item not seen yet */
};

typedef struct deployment deployment_t;
typedef struct slot slot_t;
typedef struct link link_t;
typedef struct session session_t;
typedef struct sequence sequence_t;
typedef struct client client_t;
typedef struct item item_t;
typedef struct job job_t;
typedef struct host host_t;

typedef enum {
    TIMER_SESSION,
    TIMER_SEQUENCE,
    TIMER_LINK,
    TIMER_ITEM,
    TIMER_JOBS,
    TIMER_ROLLOUT,
    TIMER_POOLS,
    TIMER_DRAIN,
} timer_kind_t;

typedef struct {
    heap_place_t place; /* among the timers */
    timer_kind_t kind;
    void *object;
} wake_t;

/* Sequences of one text identity that wait; bound to it because ids of it exist already. */
typedef struct {
    char identity[CORE_NAME_SIZE];
    heap_t waiting;
    heap_t suspects;          /* run alone, one after the other */
    sequence_t *solo;         /* the one whose turn it is */
    slot_t *solo_slot;        /* where */
    uint64_t suspects_since_ms; /* the head waits since then for an empty slot */
    uint64_t orphan_since_ms; /* 0: some slot can take them */
} pool_t;

typedef enum { MODEL_NONE, MODEL_LOADING, MODEL_READY, MODEL_FAILED } model_state_t;

struct deployment { /* cluster.c */
    char name[CORE_NAME_SIZE];
    Shoal__Cluster__V1__DeploymentRecord *record; /* NULL: deleted */
    uint64_t mod_revision;
    uint32_t listing; /* in which it was given last, as below */
    model_state_t model;
    char *digest; /* the one that is loaded or being loaded … */
    char *quantize; /* … and how */
    uint64_t model_retry_at_ms;
    const tokenizer_t *tokenizer;
    const plan_sizes_t *sizes;
    char *message;
    ring_t *ring;
    slot_t **slots; /* by ordinal; NULL where there is none */
    size_t n_slots, slots_capacity;
    /* dispatch.c */
    pool_t *pools[POOLS_MAX];
    size_t n_pools;
    heap_t waiting; /* sequences that no identity binds */
    uint64_t waiting_tokens;
    /* jobs.c */
    uint64_t claim_op, claim_nonce, claim_at_ms;
    uint32_t claim_n;
    jobs_process_t claim_process;
    bool claim_repeat; /* the outcome of the last claim is not known */
    uint64_t item_tokens; /* running mean of what items needed */
    /* rollout.c */
    uint64_t changed_at_ms;
};

/* What a host says of its ranks of a slot; only shown. */
typedef struct loading {
    char host[CORE_NAME_SIZE];
    uint64_t epoch, listing;
    uint32_t percent;
} loading_t;

struct slot { /* cluster.c, the rest as noted */
    deployment_t *deployment;
    uint32_t ordinal;
    Shoal__Cluster__V1__ReplicaPlan *plan; /* NULL: none stands in etcd */
    uint64_t epoch;                        /* the plan's mod-revision */
    uint64_t planned_at_ms, active_at_ms;
    uint32_t plan_listing, active_listing;
    Shoal__Cluster__V1__ActiveRecord *active; /* NULL unless it is of this epoch */
    Shoal__Cluster__V1__ActiveRecord *active_seen; /* as it stands in etcd, of whatever epoch */
    bool failed;                           /* this epoch ended; it will be planned anew */
    Shoal__Cluster__V1__FailureRecord *failure; /* newest, of whatever epoch */
    struct loading *loading; /* of hosts that load weights, of whatever epoch */
    size_t n_loading, loading_capacity;
    /* dispatch.c */
    link_t *link;
    uint64_t link_retry_at_ms, link_retry_ms;
    uint64_t link_broken_at_ms; /* 0: not broken since it was last open */
    sequence_t *running, *parked;
    uint32_t n_running;
    uint64_t committed;     /* prompt + max_tokens of the running ones */
    uint64_t unheard_bytes; /* of Admits of the running ones, as in sequence_t */
    sequence_t *solo;   /* a suspect runs here alone, or waits until the slot is empty for it */
    bool solo_alone;    /* since it runs, the leader has shown nothing else */
    /* rollout.c */
    uint64_t txn_op;
    uint64_t plan_at_ms; /* not before */
    uint32_t n_failures; /* in a row */
    uint64_t range_op;
    bool *removed; /* plans.c: what is gone of this epoch's assignments, then of its ranks' records,
                    * once they are removed in parts; NULL before */
    bool removing; /* the transaction under way removes, and another follows it */
    bool late; /* the formation deadline passed; who has reported is being asked */
};

typedef enum { LINK_OPENING, LINK_OPEN } link_state_t;

struct link { /* leaders.c */
    uint64_t id;
    slot_t *slot;
    uint64_t epoch;
    link_state_t state;
    uint64_t opened_at_ms, credit;
    Shoal__Worker__V1__Load load;
    uint64_t steps;
    wake_t wake;
};

typedef enum {
    SEQUENCE_NEW,
    SEQUENCE_WAITING, /* in a waiting room */
    SEQUENCE_PARKED,  /* until the link of its slot is open */
    SEQUENCE_DELAYED, /* until its timer */
    SEQUENCE_RUNNING, /* admitted at slot */
    SEQUENCE_ENDED,
} sequence_state_t;

typedef enum { CLASS_CONTINUATION, CLASS_INTERACTIVE, CLASS_ITEM } sequence_class_t;

typedef struct {
    slot_t *slot;
    uint64_t epoch;
} loss_t;

struct sequence { /* dispatch.c; the log by session.c */
    session_t *session;
    uint32_t choice;
    sequence_state_t state;
    sequence_class_t class;
    uint64_t need;  /* KV tokens: prompt + max_tokens */
    slot_t *slot;   /* where it runs or is parked */
    uint64_t epoch; /* of the slot when it was admitted */
    sequence_t *next, *previous; /* in the slot's list */
    heap_place_t place;          /* in a waiting room */
    heap_t *room;
    bool counted; /* in the deployment's waiting_tokens */
    uint64_t arrival;
    wake_t wake;
    text_log_t log;
    Shoal__V1__Logprobs **logprobs; /* log.n of them when asked for */
    size_t logprobs_capacity;
    bool attach_only;
    uint64_t unheard_bytes; /* of its Admits at the slot since the leader last spoke of it */
    bool suspect;    /* was in flight when a rank died by its own doing */
    uint32_t deaths; /* held against it */
    uint32_t n_alone; /* of them, when nothing else was seen beside it */
    bool unexplained;  /* it was lost, and no record said why */
    size_t n_at_death; /* ids it had when it was lost */
    slot_t *lost_slot;   /* where it was lost last, and in which epoch */
    uint64_t lost_epoch;
    loss_t losses[LOSSES_MAX]; /* whose failure records may still come; epoch 0: free */
    bool lost_solo, lost_alone; /* alone: others' sequences were not there either */
    Shoal__V1__FinishReason finish;
    uint32_t cached_tokens;
    char *error_code, *error_message;
};

struct session { /* session.c */
    char id[CORE_ID_SIZE];
    deployment_t *deployment;
    char identity[CORE_NAME_SIZE]; /* "" until the first sequence is admitted */
    const tokenizer_t *tokenizer;
    uint64_t owner;
    uint32_t *prompt;
    size_t n_prompt;
    Shoal__V1__Sampling *sampling; /* NULL while it is being taken over */
    text_stops_t stops;
    int32_t priority;
    char *conversation, *tenant, *adapter;
    uint64_t ring_key;
    sequence_t *choices;
    uint32_t n_choices, n_ended;
    item_t *item;     /* NULL: interactive */
    client_t *client; /* NULL: detached, or an item */
    /* Times; 0 is none. */
    uint64_t deadline_at_ms, wait_until_ms, detach_at_ms, started_by_ms, forget_at_ms, take_by_ms;
    bool admitted;   /* some choice was */
    bool resumable;  /* the pointer is stored */
    uint64_t pointer_op;
    bool superseded; /* another coordinator serves it; the log is kept for a while, in case that
                      * one loses it with the replica before it has the log itself */
    /* While another coordinator's session is taken over, or taken back: */
    bool taking;
    uint32_t take_ordinal;
    uint64_t take_epoch, take_until_ms;
    uint8_t *take_pointer;
    size_t take_pointer_bytes;
    bool take_held; /* the owner number was raised to ours */
    uint64_t take_canceller; /* the client that wants it taken over to end it; 0: none */
    wake_t wake;
    bool dead;          /* forgotten; freed at the end of the step */
    session_t *next_dead;
};

struct client { /* clients.c */
    uint64_t id;
    session_t *session;
    bool started, busy;
    uint32_t sent[CORE_CHOICES_MAX];     /* ids that the client has, a choice */
    uint32_t messages[CORE_CHOICES_MAX]; /* sent, a choice */
    bool sent_end[CORE_CHOICES_MAX];
};

typedef enum {
    ITEM_RUNNING,
    ITEM_COMMITTING, /* its record is ready or on its way */
    ITEM_RELEASING,
} item_state_t;

struct item { /* items.c */
    job_t *job;
    uint64_t index, attempt;
    char id[CORE_ID_SIZE]; /* of its session: job and index hashed; the table's key */
    item_state_t state;
    session_t *session; /* NULL unless it runs */
    uint64_t op;        /* 0: none is under way */
    jobs_process_t process; /* named in the operation under way */
    uint64_t deaths, note_epoch; /* note_epoch: a death still to be counted; 0: none */
    core_item_result_t result;   /* owned copies, once committing */
    uint64_t born_round, seen_round; /* of jobs.c's reading of `mine` */
    wake_t wake;
};

typedef struct { /* an operation on an item that has no answer yet */
    uint64_t op;
    core_action_kind_t kind;
    char id[CORE_ID_SIZE];
    uint64_t attempt;
    jobs_process_t process;
} item_op_t;

struct job { /* jobs.c */
    char id[CORE_NAME_SIZE];
    uint64_t version;
    size_t n_items;
};

struct host { /* rollout.c */
    char id[CORE_NAME_SIZE];
    Shoal__Cluster__V1__HostRecord *record; /* the last one, also when its key is gone */
    uint64_t create_revision;
    uint64_t gone_at_ms; /* 0: its key is there */
    uint64_t suspect_until_ms, failed_at_ms;
    bool draining;
    const char **digests; /* of its models, for the planner */
};

typedef struct {
    char id[CORE_NAME_SIZE];
    char *endpoint;
    uint64_t process;
    uint32_t listing;
} coordinator_t;

typedef struct { /* a process whose claims are to be released */
    jobs_process_t process;
    uint64_t since_ms, op;
} dying_t;

typedef struct {
    char a[CORE_NAME_SIZE], b[CORE_NAME_SIZE];
    uint64_t until_ms;
} bad_pair_t;

enum { DYING_MAX = 1024, PAIRS_MAX = 64, FORMER_MAX = 16 };

struct core { /* core.c */
    core_config_t config;
    uint64_t now_ms;
    uint64_t next_number; /* ops, links, arrivals: never used twice */
    uint64_t random;      /* state of the seeded generator, for jitter alone */
    core_actions_t *out;
    heap_t timers;
    bool begun, draining, drained;
    uint64_t drain_until_ms;
    wake_t drain_wake, pools_wake;

    core_store_state_t etcd, redis;
    bool elected;
    char election_key[CORE_NAME_SIZE * 2];
    uint64_t election_revision;
    jobs_process_t process; /* revision 0: not registered */

    deployment_t *deployments[CORE_DEPLOYMENTS_MAX];
    size_t n_deployments;
    table_t by_name; /* of deployments */
    size_t n_slots;
    coordinator_t coordinators[CORE_COORDINATORS_MAX];
    size_t n_coordinators;
    bool listed_deployments, listed_replicas, listed_coordinators, listed_hosts, listed_drains;

    uint32_t listing; /* counts how often the watches began from nothing */
    table_t sessions, clients, links, items, jobs;
    table_t pointer_ops; /* op -> session */
    size_t n_waiting;
    session_t *dead;

    /* jobs.c */
    wake_t jobs_wake;
    table_t item_ops;
    uint64_t mine_op, mine_at_ms, mine_round, adopt_op, adopt_at_ms, poll_op, poll_at_ms;
    size_t poll_place; /* in the table of jobs, where the next poll goes on */
    jobs_process_t mine_process;
    jobs_process_t former[FORMER_MAX]; /* processes we were, whose claims are not ours yet */
    size_t n_former;
    /* rollout.c */
    wake_t rollout_wake;
    table_t hosts;
    dying_t *dying;
    size_t n_dying;
    uint64_t expire_at_ms, expire_op, processes_at_ms, processes_op;
    bad_pair_t pairs[PAIRS_MAX];
    size_t n_pairs;
    uint64_t frozen_until_ms;
    bool rollout_due;
};

/* ---- core.c ---- */
core_action_t *core_act(core_t *core, core_action_kind_t kind);
uint64_t core_number(core_t *core);
uint64_t core_random(core_t *core);
char *core_copy(core_t *core, const char *text); /* in the actions' arena */
void core_log(core_t *core, int level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Moves a timer; at UINT64_MAX it is off. */
void core_wake(core_t *core, wake_t *wake, timer_kind_t kind, void *object, uint64_t at_ms);
void core_wake_off(core_t *core, wake_t *wake);

/* ---- cluster.c: what stands in etcd ---- */
void cluster_key(core_t *core, const core_key_t *key);
void cluster_listed(core_t *core, const char *prefix);
void cluster_model(core_t *core, const core_event_t *event);
void cluster_watch(core_t *core, const char *prefix, bool on);
void cluster_watch_again(core_t *core); /* etcd was adopted: everything is listed anew */
deployment_t *cluster_find(const core_t *core, const char *name); /* NULL when there is none */
slot_t *cluster_slot(const deployment_t *deployment, uint32_t ordinal); /* NULL as well */
/* NULL when a written maximum is reached. */
slot_t *cluster_make_slot(core_t *core, deployment_t *deployment, uint32_t ordinal);
void cluster_load_models(core_t *core);
void cluster_free(core_t *core);

static inline const char *text_or_empty(const char *text)
{
    return text ? text : "";
}

#endif
