/* The whole cluster in one thread and in virtual time, from one seed: real coordinator cores
 * (coordinator/core), real leader schedulers (worker/engine/scheduler.h), and around them faithful
 * small models of what is outside of them: etcd, Redis, agents, networks, clients. The seed decides
 * delays, losses, crashes and the load, so a run that fails fails again.
 *
 * What is checked, all the time and at the end: see check.c. The next token of a sequence is a hash
 * of (seed, choice, position), so the text that must come out is known without a second run. */
#ifndef SHOAL_TESTS_SIM_SIM_H
#define SHOAL_TESTS_SIM_SIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/heap.h"
#include "coordinator/core/core.h"
#include "coordinator/core/mutants.h"
#include "shoal/cluster/v1/state.pb-c.h"
#include "shoal/worker/v1/engine.pb-c.h"
#include "worker/engine/scheduler.h"

enum {
    SIM_COORDINATORS = 2,
    SIM_HOSTS = 6,
    SIM_CLIENTS = 12,
    SIM_JOBS = 3,
    SIM_ITEMS_MAX = 32,
    SIM_SLOTS = 3,
    SIM_LEADERS = 64,
    SIM_STREAMS = 8,
    SIM_KEYS_MAX = 256,
    SIM_WATCHES = 48,
    SIM_VOCAB = 320, /* 64 tokens that texts are made of, then every other byte */
    SIM_TEXT_MAX = 1024,
    SIM_TOKENS_MAX = 64,
    SIM_LEASE_MS = 3000,
    SIM_FAULTS_END_MS = 30000, /* then nothing fails any more */
    SIM_END_MS = 150000,       /* by when everything must have ended */
};

enum { SIM_ID_EOS = 63, SIM_ID_POISON = 62, SIM_ID_EMOJI = 27 };

/* Kinds of faults; each seed draws a set of them. */
enum {
    FAULT_HOST = 1 << 0,        /* a host dies with its agent and ranks */
    FAULT_RANK = 1 << 1,        /* a rank is killed */
    FAULT_COORDINATOR = 1 << 2, /* a coordinator is killed, back soon or late */
    FAULT_PAUSE = 1 << 3,       /* a coordinator stands still for a while */
    FAULT_ETCD = 1 << 4,        /* etcd is killed and comes back */
    FAULT_LEASES = 1 << 5,      /* all leases expire at once */
    FAULT_WATCH = 1 << 6,       /* watches break and lag */
    FAULT_REDIS = 1 << 7,       /* Redis is killed and comes back */
    FAULT_LOSS = 1 << 8,        /* requests and replies of stores are lost */
    FAULT_LINK = 1 << 9,        /* a coordinator's stream to a leader breaks */
    FAULT_CLIENT = 1 << 10,     /* clients disconnect and come back */
    FAULT_EMPTY_ETCD = 1 << 11, /* etcd restarts empty, and is adopted */
    FAULT_EMPTY_REDIS = 1 << 12,
    FAULT_POISON = 1 << 13,     /* one item kills the rank that computes it */
    FAULT_SCALE = 1 << 14,      /* replicas, tp and stages change, a host drains */
    FAULT_CANCEL = 1 << 15,     /* a job is cancelled */
    FAULT_BITS = 16,
};

typedef struct sim sim_t;
typedef void (*sim_fn)(sim_t *sim, void *argument);

/* ---- sim.c: time and chance ---- */
/* fn owns the argument when it runs; if the run ends before, it is released (by free). */
typedef void (*sim_release_fn)(void *argument);
void sim_after(sim_t *sim, uint64_t delay_ms, sim_fn fn, void *take_argument);
void sim_after_with(sim_t *sim, uint64_t delay_ms, sim_fn fn, void *take_argument,
                    sim_release_fn release);
uint64_t sim_random(sim_t *sim);
uint64_t sim_below(sim_t *sim, uint64_t n); /* 0 … n-1 */
bool sim_chance(sim_t *sim, unsigned in_1000);
void sim_deploy(sim_t *sim); /* writes the deployment as the operator wants it now */
uint64_t sim_delay(sim_t *sim); /* of one message: mostly 1 to 5 ms, sometimes much more */
/* Records the first violation; the run then ends. */
void sim_violate(sim_t *sim, const char *format, ...) __attribute__((format(printf, 2, 3)));
void sim_trace(sim_t *sim, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- oracle.c: what must come out ---- */
const tokenizer_t *oracle_tokenizer(void);
uint32_t oracle_id(uint64_t seed, uint32_t choice, uint32_t position);
typedef struct {
    uint32_t ids[SIM_TOKENS_MAX];
    uint32_t n;
    char text[SIM_TEXT_MAX];
} oracle_text_t;
void oracle_text(uint64_t seed, uint32_t choice, uint32_t max_tokens, const char *stop,
                 oracle_text_t *out);
uint64_t sim_mix(uint64_t a, uint64_t b);

/* A request as client or item make it; pure in (seed). */
typedef struct {
    uint64_t seed;
    uint32_t prompt[48];
    size_t n_prompt;
    uint32_t max_tokens, choices;
    char stop[16]; /* "" is none */
    bool poison;
} request_t;
void request_draw(uint64_t seed, bool poison, request_t *out);
/* Borrows from the request; the sampling is in *sampling_out. */
void request_fill(const request_t *request, Shoal__V1__Sampling *sampling_out, char **stop_out,
                  core_request_t *out);

/* ---- etcd.c ---- */
typedef struct {
    char key[160];
    uint8_t *value;
    size_t size;
    uint64_t create, mod;
    uint64_t lease; /* 0 is none */
} sim_key_t;

typedef struct {
    uint64_t id, last_ms;
    bool alive;
} sim_lease_t;

/* Who asks or watches: coordinators come first, then hosts. A life ends with a crash. */
typedef struct {
    uint32_t index;
    uint64_t life;
} sim_party_t;

typedef void (*sim_key_fn)(sim_t *sim, uint32_t index, const core_key_t *key);
typedef void (*sim_listed_fn)(sim_t *sim, uint32_t index, const char *prefix);

typedef struct {
    bool used;
    uint64_t generation; /* deliveries of an older one are void */
    sim_party_t party;
    char prefix[96];
    sim_key_fn on_key;
    sim_listed_fn on_listed;
    uint64_t last_ms; /* deliveries keep their order */
    struct { char key[160]; uint64_t mod; } view[SIM_KEYS_MAX];
    size_t n_view;
    bool broken;
} sim_watch_t;

typedef struct {
    sim_key_t keys[SIM_KEYS_MAX];
    size_t n_keys;
    uint64_t revision;
    bool up, foreign;
    uint64_t generation; /* of the server: raised by a restart */
    sim_lease_t leases[256];
    size_t n_leases;
    sim_watch_t watches[SIM_WATCHES];
} sim_etcd_t;

typedef void (*sim_txn_fn)(sim_t *sim, void *argument, bool known, bool succeeded,
                           uint64_t revision);
const sim_key_t *etcd_get(const sim_t *sim, const char *key);
/* At the server, now. */
void etcd_put(sim_t *sim, const char *key, const void *value, size_t size, uint64_t lease);
void etcd_delete(sim_t *sim, const char *key);
void etcd_write_all(sim_t *sim, const core_write_t *writes, size_t n); /* one revision */
uint64_t etcd_lease(sim_t *sim);
bool etcd_renew(sim_t *sim, uint64_t lease); /* false: it is gone */
void etcd_expire_all(sim_t *sim);
void etcd_watch(sim_t *sim, sim_party_t party, const char *prefix, sim_key_fn on_key,
                sim_listed_fn on_listed);
void etcd_unwatch(sim_t *sim, sim_party_t party, const char *prefix);
void etcd_start(sim_t *sim);
void etcd_crash(sim_t *sim, uint64_t down_ms, bool emptied);
void etcd_free(sim_t *sim);
bool etcd_compares_hold(const sim_t *sim, const core_compare_t *compares, size_t n);

/* ---- redis.c ---- */
/* (incarnation, revision) as one number. */
uint64_t sim_process(jobs_process_t process);
typedef enum { ITEM_STATE_WAITING, ITEM_STATE_CLAIMED, ITEM_STATE_ENDED } sim_item_state_t;
typedef struct {
    sim_item_state_t state;
    uint64_t process, attempt, nonce, deaths, death_epoch;
    uint32_t n_records; /* terminal records accepted; never over 1 */
    jobs_end_t end;
    uint32_t n_ids;
    char error[16];
    char text[SIM_TEXT_MAX];
} sim_item_t;
typedef struct {
    bool used;
    char id[CORE_ID_SIZE];
    uint64_t seed, version;
    uint32_t n_items, n_ended;
    jobs_state_t state;
    bool poison; /* its item 0 */
    sim_item_t items[SIM_ITEMS_MAX];
} sim_job_t;
typedef struct {
    char id[CORE_ID_SIZE];
    uint64_t owner;
    uint8_t bytes[JOBS_POINTER_BYTES_MAX];
    size_t n;
} sim_pointer_t;
typedef struct {
    uint64_t number, nonce, holder; /* holder: (coordinator, life) that used it */
    bool dead;
} sim_process_t;
/* All that Redis keeps, without pointers: a copy of it is a snapshot. */
typedef struct {
    sim_job_t jobs[SIM_JOBS];
    sim_pointer_t pointers[SIM_CLIENTS * 4];
    size_t n_pointers;
    sim_process_t processes[128];
    size_t n_processes;
    uint64_t fence;
} sim_redis_data_t;
typedef struct {
    sim_redis_data_t data;
    sim_redis_data_t fsynced; /* of the mutant that acknowledges first */
    sim_redis_data_t backup;  /* before it was emptied */
    bool up, foreign;
    uint64_t generation;
    uint64_t last_request_ms[SIM_COORDINATORS]; /* a connection keeps its order */
} sim_redis_t;
void redis_start(sim_t *sim);
/* Carries a JOBS_* or POINTER_* action out; the event comes later. */
void redis_call(sim_t *sim, uint32_t coordinator, const core_action_t *action);
typedef void (*sim_submit_fn)(sim_t *sim, uint32_t job, bool acknowledged);
void redis_submit(sim_t *sim, uint32_t job, sim_submit_fn done);
void redis_cancel_job(sim_t *sim, uint32_t job);
void redis_crash(sim_t *sim, uint64_t down_ms, bool emptied);

/* ---- host.c, leader.c ---- */
typedef struct {
    bool used;
    uint64_t epoch;
    Shoal__Cluster__V1__ReplicaPlan *plan;
    bool prepared;
} sim_assignment_t;
typedef struct {
    char id[8];
    bool alive, draining;
    uint64_t life, lease;
    sim_assignment_t assignments[SIM_SLOTS];
} sim_host_t;

typedef struct sim_leader sim_leader_t;
typedef struct {
    bool used, open;
    uint32_t coordinator;
    uint64_t life, link;
    uint32_t number; /* the scheduler's */
    uint64_t last_ms;
    uint64_t credit; /* as last told; and how many sequences there were */
    uint32_t busy;
    char attaching[16][CORE_ID_SIZE + 12]; /* session/choice whose Admit is to be told back */
    size_t n_attaching;
} sim_stream_t;

void host_start(sim_t *sim, uint32_t host);
void host_crash(sim_t *sim, uint32_t host, uint64_t down_ms);
/* A rank of the leader's replica dies, and the leader with it. */
void host_rank_failed(sim_t *sim, struct sim_leader *leader, bool crashed,
                      const char *const *sessions, size_t n);
void host_report_failure(sim_t *sim, uint32_t reporter, uint32_t ordinal, uint64_t epoch,
                         const char *lost_host, bool crashed, const char *const *sessions,
                         size_t n);
void host_free(sim_t *sim);

sim_leader_t *leader_at(sim_t *sim, const char *endpoint);
sim_leader_t *leader_of(sim_t *sim, uint32_t ordinal);
sim_leader_t *leader_make(sim_t *sim, uint32_t host, uint32_t ordinal, uint64_t epoch,
                          uint32_t stages);
uint32_t leader_host(const sim_leader_t *leader);
uint64_t leader_epoch(const sim_leader_t *leader);
uint32_t leader_ordinal(const sim_leader_t *leader);
/* It dies: its streams break. */
void leader_kill(sim_t *sim, sim_leader_t *leader);
void leader_stream_broken(sim_t *sim, uint32_t coordinator, uint64_t life, uint64_t link);
void leader_message(sim_t *sim, const char *endpoint, uint32_t coordinator, uint64_t life,
                    uint64_t link, const uint8_t *bytes, size_t size);
void leaders_free(sim_t *sim);
void leader_dump(sim_t *sim, const sim_leader_t *leader);

/* ---- coordinator.c ---- */
typedef struct {
    uint64_t link;
    char endpoint[16];
    uint64_t last_ms;
} sim_link_t;
typedef struct {
    char id[8];
    core_t *core;
    core_actions_t actions;
    bool alive;
    uint64_t life, lease;
    uint64_t paused_until_ms;
    uint64_t tick_at_ms;
    bool elected;
    uint64_t election_create;
    sim_link_t links[64];
    size_t n_links;
    bool busy; /* inside core_step */
} sim_coordinator_t;
void coordinator_start(sim_t *sim, uint32_t index);
void coordinator_crash(sim_t *sim, uint32_t index, uint64_t down_ms);
/* Gives an event to a life; nothing when that life is over. Waits while it is paused. */
void coordinator_event(sim_t *sim, uint32_t index, uint64_t life, const core_event_t *event);
/* While it stands still, what would reach it is put off: true, and fn runs again later. */
bool coordinator_put_off(sim_t *sim, uint32_t index, sim_fn fn, void *argument,
                         sim_release_fn release);
void coordinators_store(sim_t *sim, core_store_t store, core_store_state_t state);
void coordinator_free(sim_t *sim);

/* ---- member.c ---- */
void member_start(sim_t *sim, uint32_t index); /* registers, stands for election, keeps its lease */

/* ---- client.c ---- */
typedef struct {
    request_t request;
    uint64_t stream; /* the client number of the open stream; 0: none */
    uint32_t coordinator;
    uint64_t life;
    char id[CORE_ID_SIZE];
    bool begun, started, stream_started, done, lost, resumable;
    uint64_t left_ms;   /* since when it has no stream */
    bool absent_long;   /* it was away for nearly detach_ms: cancelling it is right */
    bool cancelled;     /* it asked for that */
    uint32_t n[CORE_CHOICES_MAX];
    uint32_t ids[2][SIM_TOKENS_MAX];
    uint32_t n_ids[2];
    char text[2][SIM_TEXT_MAX];
    bool ended[2];
    bool waiting;       /* for the next attempt */
    bool refused;       /* by the coordinator asked last: the next one is asked */
    uint32_t n_tries, n_denied;
} sim_client_t;
void clients_start(sim_t *sim);
void client_action(sim_t *sim, uint32_t coordinator, uint64_t life, const core_action_t *action);
void client_disconnect(sim_t *sim, uint32_t client);
void clients_coordinator_died(sim_t *sim, uint32_t coordinator);
void jobs_start(sim_t *sim);

/* ---- check.c, faults.c ---- */
void check_plan_write(sim_t *sim, uint32_t coordinator, const char *key);
bool check_finished(const sim_t *sim);
void check_end(sim_t *sim);
void faults_start(sim_t *sim);
void sim_dump(sim_t *sim);

typedef struct {
    char id[CORE_ID_SIZE];
    uint64_t seed;
    uint32_t n_items;
    bool acknowledged, cancelled, poison;
    uint32_t n_deaths; /* of ranks, by its poison item */
} sim_expected_job_t;

struct sim {
    uint64_t seed, random, now_ms, number;
    uint32_t faults;
    uint32_t mutant;
    bool tracing;
    heap_t queue;
    char violation[512];
    bool stopped;
    bool jobs_void; /* Redis was adopted empty: what it held is gone with the operator's will */
    uint64_t incarnation;
    uint64_t next_life, next_client;
    uint32_t tp, stages, replicas;
    sim_etcd_t etcd;
    sim_redis_t redis;
    sim_coordinator_t coordinators[SIM_COORDINATORS];
    sim_host_t hosts[SIM_HOSTS];
    sim_leader_t *leaders[SIM_LEADERS];
    sim_client_t clients[SIM_CLIENTS];
    sim_expected_job_t expected[SIM_JOBS];
    bool disturbed; /* something happened that may rightly lose an interactive request */
    uint32_t n_deaths_untold; /* crashes whose record etcd took late or never: its host died */
    uint64_t n_events;
};

/* Runs one seed; true when nothing was violated, else *violation_out (SIM text, static) says what.
 */
bool sim_run(uint64_t seed, uint32_t mutant, bool tracing, char violation_out[512]);

#endif
