/* The agent's tables, shared by agent_core.c (events of plans and ranks) and agent_core_epoch.c
 * (forming an epoch and its end). */
#ifndef SHOAL_WORKER_AGENT_CORE_INTERNAL_H
#define SHOAL_WORKER_AGENT_CORE_INTERNAL_H

#include "worker/agent_core.h"

/* How long a death is held back for the leader, when it lives here, to say whose sequences were in
 * the step. Coordinators wait longer than this for the record. */
#define AGENT_HOLD_BACK_MS 200u
/* How long a formation waits for processes that have not said that they left the epoch before: its
 * ranks were aborted, and one of them may be dying of what ended it. */
#define AGENT_LEAVE_MS 1000u

typedef enum {
    RANK_NONE,     /* the place is free */
    RANK_STARTING, /* spawned, has not said hello */
    RANK_READY,    /* said hello; waits for an epoch or works in one */
    RANK_STOPPING, /* told to stop */
    RANK_DYING,    /* killed; its death has not been reported */
} rank_state_t;

/* A process of this host. */
typedef struct {
    rank_state_t state;
    uint64_t id;
    uint32_t replica; /* slot */
    rank_start_t start;
    int64_t pid;
    bool said_hello, beaten;
    bool for_plan; /* killed because the plan wants its place */
    uint64_t born_incarnation, born_epoch; /* of the plan that it was started for */
    uint64_t in_epoch;       /* that it was sent and has not said to have left; 0: none */
    uint64_t prepared_epoch; /* that it was sent last and has begun to form; 0: none */
    uint32_t sequences;     /* of a leader: running and waiting, as it said last */
    uint32_t idle_beats;    /* beats in a row without any */
    uint32_t address_bytes;
    uint8_t address[FABRIC_ADDRESS_BYTES_MAX];
    uint32_t ticks_silent;
    uint64_t since_ms; /* of the state */
    uint64_t progress;
    uint32_t ticks_stuck; /* since the last progress, or since it was last idle */
    uint64_t cpu_ms, cpu_ms_then; /* processor time now, and at the last progress */
    bool loading;
    uint8_t loaded_percent; /* while it loads */
    char kill_text[128]; /* why we killed it; "" when we did not */
    char last_words[STATUS_TEXT_MAX]; /* why it cannot do its work; "" when it did not say so */
} agent_rank_t;

typedef enum {
    REPLICA_NONE,
    REPLICA_FORMING, /* ranks are started, addresses gathered */
    REPLICA_SENT,    /* the local ranks were sent the epoch */
    REPLICA_ACTIVE,  /* the leader, on this host, has reported active */
    REPLICA_FAILED,  /* the epoch is over; the next plan is waited for */
    REPLICA_LEAVING, /* the plan is gone; its ranks are ending */
} agent_replica_state_t;

typedef struct {
    agent_replica_state_t state;
    agent_plan_t plan;
    bool removed; /* while LEAVING: nothing follows */
    uint64_t deadline_ms; /* of the formation */
    uint64_t leave_ms;    /* until then ranks that are in an earlier epoch are waited for */
    bool loading_begun, loading_shown;
    uint32_t loading_percent;
    uint64_t loading_told_ms;
    struct {
        bool known;
        uint32_t address_bytes;
        uint8_t address[FABRIC_ADDRESS_BYTES_MAX];
    } peers[FABRIC_RANKS_MAX];
    control_active_t active;
    /* A failure that is held back a little, because a better account may follow. */
    bool failure_waits, failure_told;
    uint64_t failure_ms;
    agent_failure_t failure;
} agent_replica_t;

struct agent_core {
    agent_config_t config;
    agent_replica_t replicas[AGENT_REPLICAS_MAX];
    agent_rank_t ranks[AGENT_RANKS_MAX];
    uint64_t next_rank_id;
    bool draining, drained;
    uint64_t drain_end_ms;
    agent_action_t *actions; /* a queue: [first, n) */
    size_t n_actions, first_action, actions_capacity;
};

agent_action_t *agent_act(agent_core_t *core, agent_action_kind_t kind);

/* agent_core_watch.c */
void agent_take_beat(agent_rank_t *rank, const control_beat_t *beat);
void agent_watch_rank(agent_core_t *core, agent_rank_t *rank, uint64_t now_ms);
void agent_show_loading(agent_core_t *core, uint32_t slot, uint64_t now_ms);
/* The living process that holds a rank of the slot's plan; NULL when there is none. */
agent_rank_t *agent_rank_of(agent_core_t *core, uint32_t replica, uint32_t rank);
bool agent_is_local(const agent_core_t *core, const agent_plan_t *plan, uint32_t rank);
void agent_kill(agent_core_t *core, agent_rank_t *rank, const char *why, bool for_plan,
                uint64_t now_ms);

/* ---- agent_core_epoch.c ---- */
/* Starts or keeps the ranks that the plan wants, and goes on when all is there. */
void agent_form(agent_core_t *core, uint32_t replica, uint64_t now_ms);
/* The epoch is over for this reason; `wait_ms` holds the word back for a better account. */
void agent_fail(agent_core_t *core, uint32_t replica, const agent_failure_t *failure,
                uint32_t wait_ms, uint64_t now_ms);
/* Whether a dead rank belongs to an epoch that is over: several ranks that crash in one step die some
 * milliseconds apart, and the next epoch may be forming, or sent, when the last of them goes. */
bool agent_is_late(const agent_core_t *core, const agent_rank_t *rank);
/* So that another process may take the place of this one in the forming epoch. False when another
 * host may use its address already. */
bool agent_forget_address(agent_core_t *core, const agent_rank_t *rank);
void agent_epoch_tick(agent_core_t *core, uint32_t replica, uint64_t now_ms);
void agent_take_active(agent_core_t *core, uint32_t replica, const control_active_t *active);
void agent_take_failed(agent_core_t *core, agent_rank_t *rank, const control_failed_t *failed,
                       uint64_t now_ms);
void agent_end_epoch(agent_core_t *core, uint32_t replica, const char *why);

#endif
