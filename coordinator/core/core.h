/* The coordinator as one pure machine: an event and the time go in, actions come out.
 *
 * It owns every decision of a coordinator: where a request runs (ring, credits, waiting room), what
 * its client sees (sessions), which items it claims and how their results are committed (jobs), and
 * while elected, which ranks form which replica (rollout). It knows no socket, thread, clock or
 * random source: the shell around it turns gRPC calls, etcd watches, Redis replies and timers into
 * events and carries the actions out. The simulator (tests/sim) is another shell around it.
 *
 * The contract, for whoever writes a shell:
 * - One thread at a time. core_step() handles one event; whatever it points to is borrowed for the
 *   call. Actions are appended to *actions, in order, and live until core_actions_reset().
 * - `now_ms` is monotonic. At the latest when core_next_timer_ms() says so, a CORE_EVENT_TICK is
 *   due; an earlier one does no harm.
 * - Numbers called `op` are made by the core, never 0 and never used twice. An action with an `op`
 *   ends in exactly one event that carries it, also when the store cannot be reached.
 * - Links, ops and clients that the core no longer knows are ignored, so late events do no harm.
 * - Values of etcd and messages of leaders come and go as bytes: the core packs and checks them.
 * - After each (re)connect the shell compares both stores' cluster records and gives the STORE
 * event before it passes on anything else of that connection. While etcd is FOREIGN its keys are
 * not taken; when it is UP again (adopted) the core gives up its watches and asks for new ones.
 * - Keys of etcd come and go without "/shoal/<cluster>/": "deployments/smol". The election key too.
 *
 * Source of the rules: docs/design.md, sections 3 and 4. */
#ifndef SHOAL_COORDINATOR_CORE_CORE_H
#define SHOAL_COORDINATOR_CORE_CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/memory.h"
#include "common/base/status.h"
#include "common/model/plan.h"
#include "common/model/tokenizer.h"
#include "common/net/jobs_store.h" /* plain types and result codes alone: no call of it */
#include "shoal/v1/admin.pb-c.h"
#include "shoal/v1/common.pb-c.h"

typedef struct core core_t;

enum {
    CORE_ID_SIZE = 33,    /* 32 hex digits and a NUL */
    CORE_NAME_SIZE = 129, /* longest name of a deployment, host, coordinator, tenant; and NUL */

    /* Written maxima. A request past one of them is refused with STATUS_EXHAUSTED; a key of etcd
     * past one is left out with a log line. */
    CORE_DEPLOYMENTS_MAX = 256,
    CORE_SLOTS_MAX = 4096,
    CORE_HOSTS_MAX = 16384,
    CORE_COORDINATORS_MAX = 256,
    CORE_SESSIONS_MAX = 131072,
    CORE_ITEMS_MAX = 4096, /* claimed and not yet committed, a coordinator */
    CORE_CLAIM_MAX = 64,   /* items in one claim; below JOBS_CLAIM_MAX */
    CORE_CHOICES_MAX = 16,
};

/* What a coordinator is started with. Zero takes the default in the comment. */
typedef struct {
    const char *id;              /* of this coordinator, unique in the cluster */
    const char *endpoint;        /* host:port that clients may use */
    const char *build;           /* sent in Hello */
    uint64_t seed;               /* of nonces and jitter: random in production */
    uint32_t detach_ms;          /* 10,000: a session without a client lives so long */
    uint32_t queue_wait_ms;      /* 10,000: in the waiting room, then RESOURCE_EXHAUSTED */
    uint64_t waiting_tokens_max; /* 262,144: prompt + max_tokens waiting, a deployment */
    uint32_t items_max;          /* 256: claimed at once; at most CORE_ITEMS_MAX */
    uint32_t drain_ms;           /* 30,000 */
    uint32_t formation_ms;       /* 30,000: formation deadline apart from the bytes to load */
    uint32_t release_ms;         /* 10,000: then a dead coordinator's claims are released */
    uint32_t mutant;             /* 0. For the simulator: a planted fault of core/mutants.h */
} core_config_t;

/* ---- events ---- */
typedef enum {
    CORE_EVENT_TICK = 1, /* only time passed */
    CORE_EVENT_DRAIN,    /* SIGTERM: end everything within drain_ms, then CORE_ACTION_DRAINED */

    CORE_EVENT_GENERATE,        /* .generate: a new interactive request, tokenized */
    CORE_EVENT_RESUME,          /* .resume: a client goes on reading a request */
    CORE_EVENT_CANCEL,          /* .cancel: a client wants a request ended; answered by END, with
                                 * STATUS_STALE when it has ended already */
    CORE_EVENT_CLIENT_WRITABLE, /* .client: its last OUTPUT was written */
    CORE_EVENT_CLIENT_GONE,     /* .client: its stream broke; this is no cancel */

    CORE_EVENT_STORE,      /* .store: came, went, or is not of this cluster */
    CORE_EVENT_KEY,        /* .key: below a watched prefix; listed, put or deleted */
    CORE_EVENT_LISTED,     /* .listed: all keys were given. A re-list within one watch gives deletes
                            * for the keys that have gone; in a new watch's first list, what is
                            * missing counts as deleted */
    CORE_EVENT_TXN_DONE,   /* .txn_done */
    CORE_EVENT_RANGE_DONE, /* .range_done */
    CORE_EVENT_REGISTERED, /* .registered: coordinators/<id> was put; again after a lease loss */
    CORE_EVENT_ELECTED,    /* .elected */
    CORE_EVENT_DEPOSED,    /* elected no more, or not known to be */

    CORE_EVENT_MODEL, /* .model: ends LOAD_MODEL, well or not */

    CORE_EVENT_LINK_MESSAGE, /* .link_message: one packed shoal.worker.v1.LeaderMessage */
    CORE_EVENT_LINK_BROKEN,  /* .link_broken: the stream ended or could not be opened */

    CORE_EVENT_CLAIMED,       /* .claimed: ends JOBS_CLAIM */
    CORE_EVENT_CLAIMS,        /* .claims: ends JOBS_MINE */
    CORE_EVENT_JOB_STATES,    /* .job_states: ends JOBS_POLL */
    CORE_EVENT_JOB_PROCESSES, /* .job_processes: ends JOBS_PROCESSES */
    CORE_EVENT_JOBS_DONE,     /* .jobs_done: ends every other JOBS_* */
    CORE_EVENT_JOBS_HINT,     /* there may be new items to claim: a job was submitted */
    CORE_EVENT_POINTER_DONE,  /* .pointer_done: ends POINTER_PUT, GET and TAKE */
} core_event_kind_t;

/* A request, whether it came from a client or from a job. The core keeps a copy. */
typedef struct {
    char id[CORE_ID_SIZE]; /* lower-case hex; not read for items, see core_item_session_id() */
    const char *deployment;
    const uint32_t *prompt;
    size_t n_prompt;                   /* at least 1 */
    const Shoal__V1__Sampling *sampling; /* every field set: defaults, drawn seed, max_tokens cut
                                          * to the context; ranges are checked by the front */
    int32_t priority;                  /* -100 to 100 */
    uint64_t deadline_ms;              /* left from now on; 0 is none */
    const char *conversation;          /* decides the ring key when given; NULL or "" is none */
    const char *tenant;                /* NULL is "" */
    const char *adapter;               /* NULL is "" */
} core_request_t;

typedef enum { CORE_STORE_ETCD, CORE_STORE_REDIS } core_store_t;
typedef enum {
    CORE_STORE_DOWN,    /* serving goes on; jobs (Redis) or plans (etcd) wait */
    CORE_STORE_UP,      /* connected and of this cluster */
    CORE_STORE_FOREIGN, /* emptied, restored or of another cluster: refused until adopted */
} core_store_state_t;

typedef struct {
    const char *key;
    const uint8_t *value; /* NULL when deleted; an empty value is not NULL */
    size_t value_size;
    uint64_t mod_revision;
    uint64_t create_revision;
} core_key_t;

typedef struct {
    const char *job;
    uint64_t index;
    uint64_t attempt;
} core_item_ref_t;

/* A claimed item as the shell prepared it: parsed, templated, tokenized. */
typedef struct {
    core_item_ref_t ref;
    uint64_t deaths;
    core_request_t request;    /* not read when error_code is given */
    const char *error_code;    /* NULL, or why it cannot run ("invalid", "too_long") */
    const char *error_message;
} core_claimed_t;

typedef struct {
    const char *job;
    jobs_state_t state; /* JOBS_STATE_NONE: deleted */
    uint64_t version;
} core_job_state_t;

typedef struct {
    core_event_kind_t kind;
    union {
        struct {
            uint64_t client; /* made by the shell, one a stream; never 0, never used twice */
            core_request_t request;
        } generate;
        struct {
            uint64_t client;
            const char *id;
            const uint32_t *n; /* tokens that the client has, a number a choice */
            size_t n_choices;
        } resume;
        struct {
            uint64_t client;
            const char *id;
            bool take; /* no coordinator that answers has it: take it over, then end it */
        } cancel;
        struct { uint64_t client; } client;
        struct { core_store_t store; core_store_state_t state; const char *text; } store;
        core_key_t key;
        struct { const char *prefix; uint64_t revision; } listed;
        struct {
            uint64_t op;
            bool known;     /* false: the reply was lost, it may have happened */
            bool succeeded; /* the compares held */
            uint64_t revision;
        } txn_done;
        struct { uint64_t op; bool known; const core_key_t *keys; size_t n_keys; } range_done;
        jobs_process_t registered; /* incarnation of the cluster, mod-revision of the put */
        struct { const char *key; uint64_t create_revision; } elected;
        struct {
            const char *deployment, *digest, *quantize; /* as in LOAD_MODEL */
            const tokenizer_t *tokenizer;    /* lives as long as the core; NULL: failed */
            const plan_sizes_t *sizes;       /* the same */
            const char *text;                /* why it failed */
        } model;
        struct { uint64_t link; const uint8_t *bytes; size_t size; } link_message;
        struct { uint64_t link; const char *text; } link_broken;
        struct {
            uint64_t op;
            jobs_code_t code;
            const core_claimed_t *items;
            size_t n_items;
        } claimed;
        struct {
            uint64_t op;
            jobs_code_t code;
            const core_item_ref_t *refs;
            size_t n_refs;
            uint64_t cursor; /* reply.number: 0 when this was the last page */
        } claims;
        struct {
            uint64_t op;
            jobs_code_t code;
            const core_job_state_t *states; /* of those that changed, in any order */
            size_t n_states;
        } job_states;
        struct {
            uint64_t op;
            jobs_code_t code;
            const jobs_process_t *processes;
            size_t n_processes;
        } job_processes;
        struct { uint64_t op; jobs_code_t code; uint64_t number; /* reply.number */ } jobs_done;
        struct {
            uint64_t op;
            jobs_code_t code;
            uint64_t number; /* the owner number that stands there */
            const uint8_t *pointer;
            size_t pointer_bytes;
        } pointer_done;
    };
} core_event_t;

/* ---- actions ---- */
typedef enum {
    /* To a client's stream: STARTED first, END last and exactly once. After an OUTPUT the core
     * waits for CLIENT_WRITABLE: output is state, not a queue, so a slow reader costs nothing.
     * After END or CLIENT_GONE the client's number is forgotten. */
    CORE_ACTION_STARTED = 1,
    CORE_ACTION_OUTPUT,
    CORE_ACTION_END,

    CORE_ACTION_WATCH, /* list, then watch a prefix: KEY and LISTED follow */
    CORE_ACTION_UNWATCH, /* without effect where nothing is watched */
    CORE_ACTION_TXN, /* compares and writes, all or nothing */
    CORE_ACTION_RANGE, /* all keys below a prefix, once */
    CORE_ACTION_LOAD_MODEL, /* open a deployment's model for tokenizer and sizes */

    CORE_ACTION_LINK_OPEN, /* open shoal.worker.v1.Engine/Attach at an endpoint */
    CORE_ACTION_LINK_SEND, /* one packed shoal.worker.v1.CoordinatorMessage, in order */
    CORE_ACTION_LINK_CLOSE, /* no event of this link is wanted any more */

    /* The calls of common/net/jobs_store.h, by name. */
    CORE_ACTION_JOBS_CLAIM,
    CORE_ACTION_JOBS_MINE,
    CORE_ACTION_JOBS_ADOPT,
    CORE_ACTION_JOBS_COMPLETE,
    CORE_ACTION_JOBS_FAIL,
    CORE_ACTION_JOBS_RELEASE,
    CORE_ACTION_JOBS_NOTE_DEATH,
    CORE_ACTION_JOBS_POLL,
    CORE_ACTION_JOBS_EXPIRE,
    CORE_ACTION_JOBS_PROCESSES,
    CORE_ACTION_JOBS_RELEASE_PROCESS,
    CORE_ACTION_POINTER_PUT,
    CORE_ACTION_POINTER_GET,
    CORE_ACTION_POINTER_TAKE,
    CORE_ACTION_POINTER_DROP, /* op 0: nothing is answered */

    CORE_ACTION_LOG, /* a line for people */
    CORE_ACTION_DRAINED, /* nothing is left to do: the process may end */
} core_action_kind_t;

typedef struct {
    const char *key;
    const uint8_t *value; /* NULL deletes; an empty value is not NULL */
    size_t value_size;
} core_write_t;

typedef struct {
    const char *key;
    bool on_create;    /* of the create-revision, else of the mod-revision */
    uint64_t revision; /* 0: the key must be absent */
} core_compare_t;

/* The terminal record of an item, as the shell stores and serves it (shoal.v1.ItemResult). */
typedef struct {
    const char *text; /* UTF-8 */
    size_t text_size;
    const uint32_t *ids;
    size_t n_ids;
    Shoal__V1__FinishReason finish_reason;
    uint32_t prompt_tokens, completion_tokens, cached_tokens;
    uint64_t seed;
    const char *text_identity;
    const char *error_code; /* NULL when it completed */
    const char *error_message;
} core_item_result_t;

typedef struct {
    core_action_kind_t kind;
    uint64_t op; /* 0 where nothing is answered */
    union {
        struct {
            uint64_t client;
            const char *id, *text_identity, *deployment;
            uint64_t seed;
            const char *const *endpoints; /* of the coordinators, this one first */
            size_t n_endpoints;
            bool resumable;
            uint32_t prompt_tokens;
        } started;
        struct {
            uint64_t client;
            uint32_t choice;
            uint32_t n; /* tokens produced so far */
            const uint32_t *ids;
            size_t n_ids;
            const char *text;
            size_t text_size;
            Shoal__V1__Logprobs **logprobs; /* n_ids of them, or NULL */
            bool ended;                     /* then the rest: */
            Shoal__V1__FinishReason finish_reason;
            uint32_t prompt_tokens, completion_tokens, cached_tokens;
            const char *error_code, *error_message; /* NULL unless something went wrong */
        } output;
        struct {
            uint64_t client;
            status_t status; /* STATUS_OK: everything was said */
            const char *text;
            uint32_t retry_after_ms; /* with STATUS_EXHAUSTED; 0 is none */
        } end;
        struct { const char *prefix; } watch; /* WATCH, UNWATCH, RANGE */
        struct {
            const core_compare_t *compares;
            size_t n_compares;
            const core_write_t *writes;
            size_t n_writes;
        } txn;
        struct { const char *deployment, *model_name, *path, *digest, *quantize; } load_model;
        struct { uint64_t link; const char *endpoint; } link_open;
        struct { uint64_t link; const uint8_t *bytes; size_t size; } link_send;
        struct { uint64_t link; } link_close;
        struct {
            const char *deployment;
            uint32_t n;
            jobs_process_t process;
            uint64_t nonce; /* a repeat after JOBS_UNREACHABLE carries the same */
        } claim;
        struct { jobs_process_t process; uint64_t cursor; } mine;
        struct { jobs_process_t from, to; } adopt;
        struct {
            core_item_ref_t ref;
            jobs_process_t process;
            uint64_t epoch;            /* NOTE_DEATH */
            core_item_result_t result; /* COMPLETE, FAIL */
        } item; /* COMPLETE, FAIL, RELEASE, NOTE_DEATH */
        struct { const jobs_seen_t *jobs; size_t n_jobs; } poll;
        struct { jobs_process_t process; uint64_t fence; } release_process;
        struct {
            const char *id;
            uint64_t owner;         /* PUT, DROP: ours; TAKE: the one that was read */
            const uint8_t *pointer; /* PUT, TAKE; packed by the core */
            size_t pointer_bytes;
            uint64_t ttl_ms;
        } pointer;
        struct { int level; const char *text; } log; /* log_level_t of common/base/log.h */
    };
} core_action_t;

/* Zero-initialised is empty and ready. */
typedef struct {
    core_action_t *items;
    size_t n, capacity;
    arena_t arena; /* all that the actions point to */
} core_actions_t;

void core_actions_reset(core_actions_t *actions);
void core_actions_release(core_actions_t *actions);

/* ---- the machine ---- */

/* Copies the configuration. The first step's actions begin with the watches that the core needs. */
core_t *core_new(const core_config_t *config);
void core_free(core_t *take_core);
void core_step(core_t *core, uint64_t now_ms, const core_event_t *event, core_actions_t *actions);
/* When the next tick is due; UINT64_MAX when nothing waits for time. */
uint64_t core_next_timer_ms(const core_t *core);

/* The session id of an item: the same at every coordinator, so that an item claimed anew attaches
 * to what a leader still computes. Its owner number is the attempt. */
void core_item_session_id(const char *job, uint64_t index, char id_out[CORE_ID_SIZE]);

/* Whether a claimed item is not done yet: its record may still be written. */
bool core_holds_item(const core_t *core, const char *job, uint64_t index);

/* ---- what fronts ask (between steps, on the core's thread) ---- */

/* A deployment that a request may name; NULL when there is none. "" finds the only one. The record
 * is the core's copy of what stands in etcd; valid until the next step. */
typedef struct {
    const char *name, *model_name, *model_path, *digest;
    uint32_t context_max;
    uint32_t replicas, tp, stages;
    uint32_t replicas_active;
    const char *text_identity;    /* of the active replicas; "" before the first */
    const tokenizer_t *tokenizer; /* NULL until the model is loaded */
    const char *message;          /* why the desired state is not reached; known when elected */
} core_deployment_view_t;
bool core_find_deployment(const core_t *core, const char *name, core_deployment_view_t *out);
size_t core_n_deployments(const core_t *core);
void core_deployment_at(const core_t *core, size_t i, core_deployment_view_t *out);

/* Replicas of one deployment, or of all ("" or NULL); strings and messages live in the arena. */
void core_list_replicas(const core_t *core, const char *deployment, arena_t *arena,
                        Shoal__V1__ListReplicasResponse *out);
/* elected, coordinators, sessions_running, sessions_waiting of the message; the rest is left. */
void core_status(const core_t *core, arena_t *arena, Shoal__V1__StatusResponse *out);

#endif
