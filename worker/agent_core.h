/* What an agent decides, as a pure state machine: which ranks to start, keep, stop and kill, when
 * an epoch's memory is made and its ranks are told, what is published. Events and the time come in,
 * actions go out in order; no process, socket, clock or store is known here. The shell (agent.c)
 * and the simulator carry the actions out.
 *
 * The life of a replica on this host: assigned (a plan and its epoch) → ranks of this host are
 * started or kept → each says hello with its address, which is published → when the addresses of
 * all ranks of the plan are known every local rank is sent the epoch → the leader, if it is here,
 * reports active → until a failure ends the epoch. A failure leaves the living ranks waiting,
 * weights in place, for the next plan. A plan that is gone stops the ranks. */
#ifndef SHOAL_WORKER_AGENT_CORE_H
#define SHOAL_WORKER_AGENT_CORE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "worker/control.h"
#include "worker/numa.h"

#define AGENT_REPLICAS_MAX 64
#define AGENT_RANKS_MAX 256 /* processes of one host */
#define AGENT_TICK_MS 100u  /* how often the shell calls agent_core_tick */
#define AGENT_HELLO_MS 20000u   /* from the spawn to the first word */
#define AGENT_STUCK_MS 60000u   /* busy without any progress */
/* The same while the process hardly used a processor: it does not compute slowly, it waits for what
 * does not come. A plain C kernel at the largest step may take seconds for a layer, and many times
 * that on a machine with other work, but it uses what processor time it gets. */
#define AGENT_STUCK_IDLE_MS 5000u
/* The same while it loads, where a slow disk may hold a page back. */
#define AGENT_STUCK_LOADING_MS 30000u
#define AGENT_LOADING_SHOWN_MS 2000u /* loads that take longer are shown … */
#define AGENT_LOADING_TELL_MS 1000u  /* … so often at most */
#define AGENT_STOP_MS 5000u     /* from STOP to the end of the process */
#define AGENT_NAME_BYTES 129

typedef struct agent_core agent_core_t;

/* One rank of a plan, as the shell read it from the store. */
typedef struct {
    uint32_t stage, slice, layer_first, layer_count, threads;
    char host[FABRIC_HOST_BYTES_MAX];
} agent_plan_rank_t;

typedef struct {
    char deployment[AGENT_NAME_BYTES];
    uint32_t ordinal;
    uint64_t incarnation, epoch;
    char model_digest[80];
    char model_path[1024]; /* of that digest on this host; "" when the host has no such model */
    uint32_t tp, stages, context_max;
    uint32_t expert_groups, attention_slices; /* as rank_start_t */
    uint32_t attention_replicas;
    bool shared_head;
    char activations[8];
    char kv[8];       /* the cache's type (common/model/kv_type.h) */
    char quantize[8]; /* "" | "q8" | "q4" | "fp8" */
    char draft_digest[80], draft_path[1024]; /* as of the model; both "" for none */
    uint64_t kv_tokens_max, prefill_tokens_max;
    uint32_t speculate_max; /* 0: the default, unless speculate_off */
    bool speculate_off, prefix_cache_off, whole_prompts;
    uint32_t formation_ms;
    uint32_t n_ranks;
    agent_plan_rank_t ranks[FABRIC_RANKS_MAX]; /* in order of rank */
} agent_plan_t;

typedef struct {
    char host[FABRIC_HOST_BYTES_MAX];
    char address[64];
    char data_dir[512];
    uint64_t pack_cache_bytes;
    uint32_t cores;
    numa_t numa; /* ranks are spread over its nodes; without any they are not bound */
    uint32_t step_timeout_ms;
    uint32_t load_stuck_ms; /* a rank that loads without progress is killed; 0: the default */
    /* Epochs up to this one were begun by an earlier process of this agent, whose ranks are
     * dead. */
    uint64_t incarnation_begun, epoch_begun;
} agent_config_t;

typedef enum {
    AGENT_SPAWN = 1,   /* rank_id, start */
    AGENT_KILL,        /* rank_id, text */
    AGENT_STOP,        /* rank_id */
    AGENT_DRAIN,       /* rank_id */
    AGENT_RELEASE,     /* rank_id: dead and told; forget the process */
    AGENT_BEGIN,       /* replica, epoch: remember that it was begun; watch ranks/<…>/<epoch>/ */
    AGENT_MAKE_SHM,    /* replica, epoch: new memory for its local ranks (agent_core_locals) */
    AGENT_SEND_EPOCH,  /* replica, rank_id: agent_core_epoch has the message; with the memory */
    AGENT_MARK_DEAD,   /* replica, rank, text: in the epoch's memory */
    AGENT_ABORT,       /* replica, text: in the epoch's memory */
    AGENT_END,         /* replica, epoch: its memory and watch are needed no more */
    AGENT_PUBLISH_RANK,   /* replica, epoch, rank, pid, address */
    AGENT_PUBLISH_ACTIVE, /* replica, epoch, active */
    AGENT_PUBLISH_FAILED, /* replica, epoch, failed */
    AGENT_PUBLISH_LOADING, /* replica, epoch, percent; 100: none loads any more */
    AGENT_DRAINED,        /* after agent_core_drain: no rank is left */
} agent_action_kind_t;

/* How a rank ended. */
typedef struct {
    bool crashed;     /* by its own doing */
    const char *text;
    uint32_t n_sessions; /* of a leader: whose sequences were in the steps under way */
    const char (*sessions)[CONTROL_SESSION_BYTES];
} agent_death_t;

/* Why an epoch ended: shoal.cluster.v1.FailureRecord. */
typedef struct {
    uint32_t rank;
    char host[FABRIC_HOST_BYTES_MAX];
    bool crashed;
    char other_host[FABRIC_HOST_BYTES_MAX]; /* "" unless the link to it is what is dead */
    char text[STATUS_TEXT_MAX];
    uint32_t n_sessions;
    char sessions[CONTROL_SESSIONS_MAX][CONTROL_SESSION_BYTES];
} agent_failure_t;

typedef struct {
    agent_action_kind_t kind;
    uint32_t replica; /* a slot of the core; agent_core_plan tells which replica it is */
    uint64_t epoch, rank_id;
    uint32_t rank, percent;
    int64_t pid;
    const rank_start_t *start;
    const control_active_t *active;
    const agent_failure_t *failed;
    const uint8_t *address;
    uint32_t address_bytes;
    char text[256];
} agent_action_t;

/* Whether formation a comes after b: an emptied store counts its revisions from 1 again, but in a
 * higher incarnation. */
static inline bool agent_is_newer(uint64_t incarnation_a, uint64_t epoch_a, uint64_t incarnation_b,
                                  uint64_t epoch_b)
{
    return incarnation_a != incarnation_b ? incarnation_a > incarnation_b : epoch_a > epoch_b;
}

agent_core_t *agent_core_new(const agent_config_t *config);
void agent_core_free(agent_core_t *take_core);

/* ---- events ---- */

/* assign/<host>/<deployment>/<ordinal> holds this plan. An older epoch than the known one is
 * ignored, the same one too. STATUS_INVALID names what makes no sense in it. */
status_t agent_core_assign(agent_core_t *core, const agent_plan_t *plan, uint64_t now_ms) MUST_USE;
/* The key is gone: the ranks end in good order. */
void agent_core_unassign(agent_core_t *core, const char *deployment, uint32_t ordinal,
                         uint64_t now_ms);
/* ranks/<deployment>/<ordinal>/<epoch>/<rank> holds this address. */
void agent_core_peer(agent_core_t *core, const char *deployment, uint32_t ordinal, uint64_t epoch,
                     uint32_t rank, const uint8_t *address, uint32_t address_bytes,
                     uint64_t now_ms);
/* A spawned rank runs (pid), or could not be started (pid 0, text). */
void agent_core_spawned(agent_core_t *core, uint64_t rank_id, int64_t pid, const char *text,
                        uint64_t now_ms);
void agent_core_message(agent_core_t *core, uint64_t rank_id, const control_message_t *message,
                        uint64_t now_ms);
void agent_core_died(agent_core_t *core, uint64_t rank_id, const agent_death_t *death,
                     uint64_t now_ms);
/* SIGTERM: leaders refuse new sequences; when their epochs are idle or after drain_ms the ranks are
 * stopped, then AGENT_DRAINED comes. */
void agent_core_drain(agent_core_t *core, uint32_t drain_ms, uint64_t now_ms);
/* To be called every AGENT_TICK_MS. Silence and standing still are counted in these calls, not in
 * time: an agent that was stopped itself must not take its ranks for silent. */
void agent_core_tick(agent_core_t *core, uint64_t now_ms);

/* ---- what follows from them ---- */

/* The next action, valid until the next event; false when there is none. */
bool agent_core_next(agent_core_t *core, agent_action_t *out);

/* Of a slot named by an action. */
const agent_plan_t *agent_core_plan(const agent_core_t *core, uint32_t replica);
/* The ranks of the plan on this host, ascending; returns how many. */
uint32_t agent_core_locals(const agent_core_t *core, uint32_t replica,
                           uint32_t out[FABRIC_RANKS_MAX]);
/* The process id of the plan's rank; 0 when it runs on another host or not at all. */
int64_t agent_core_pid(agent_core_t *core, uint32_t replica, uint32_t rank);
void agent_core_epoch(const agent_core_t *core, uint32_t replica, uint64_t now_ms,
                      rank_epoch_t *out);

#endif
