/* The agent's events: plans come and go, ranks speak and die. See agent_core.h. */
#include "worker/agent_core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "worker/agent_core_internal.h"

#define FORMATION_DEFAULT_MS 60000u
/* A draining leader that says so often in a row that it has no sequence is done. */
#define DRAIN_IDLE_BEATS 3u

agent_core_t *agent_core_new(const agent_config_t *config)
{
    agent_core_t *core = MEM_NEW(agent_core_t);
    core->config = *config;
    return core;
}

void agent_core_free(agent_core_t *take_core)
{
    if (!take_core)
        return;
    free(take_core->actions);
    free(take_core);
}

agent_action_t *agent_act(agent_core_t *core, agent_action_kind_t kind)
{
    if (core->first_action == core->n_actions)
        core->first_action = core->n_actions = 0;
    MEM_GROW(core->actions, core->actions_capacity, core->n_actions + 1);
    agent_action_t *action = &core->actions[core->n_actions++];
    memset(action, 0, sizeof *action);
    action->kind = kind;
    return action;
}

bool agent_core_next(agent_core_t *core, agent_action_t *out)
{
    if (core->first_action == core->n_actions)
        return false;
    *out = core->actions[core->first_action++];
    return true;
}

const agent_plan_t *agent_core_plan(const agent_core_t *core, uint32_t replica)
{
    return &core->replicas[replica].plan;
}

bool agent_is_local(const agent_core_t *core, const agent_plan_t *plan, uint32_t rank)
{
    return strcmp(plan->ranks[rank].host, core->config.host) == 0;
}

uint32_t agent_core_locals(const agent_core_t *core, uint32_t replica,
                           uint32_t out[FABRIC_RANKS_MAX])
{
    const agent_plan_t *plan = &core->replicas[replica].plan;
    uint32_t n = 0;
    for (uint32_t rank = 0; rank < plan->n_ranks; rank++) {
        if (agent_is_local(core, plan, rank))
            out[n++] = rank;
    }
    return n;
}

void agent_core_epoch(const agent_core_t *core, uint32_t slot, uint64_t now_ms, rank_epoch_t *out)
{
    const agent_replica_t *replica = &core->replicas[slot];
    memset(out, 0, sizeof *out);
    out->incarnation = replica->plan.incarnation;
    out->epoch = replica->plan.epoch;
    out->formation_ms =
        now_ms < replica->deadline_ms ? (uint32_t)(replica->deadline_ms - now_ms) : 1;
    out->n_peers = replica->plan.n_ranks;
    for (uint32_t i = 0; i < out->n_peers; i++) {
        memcpy(out->peers[i].host, replica->plan.ranks[i].host, sizeof out->peers[i].host);
        out->peers[i].address_bytes = replica->peers[i].address_bytes;
        memcpy(out->peers[i].address, replica->peers[i].address,
               replica->peers[i].address_bytes);
    }
}

agent_rank_t *agent_rank_of(agent_core_t *core, uint32_t slot, uint32_t rank)
{
    for (uint32_t i = 0; i < AGENT_RANKS_MAX; i++) {
        agent_rank_t *process = &core->ranks[i];
        if (process->state != RANK_NONE && process->replica == slot &&
            process->start.rank == rank)
            return process;
    }
    return NULL;
}

int64_t agent_core_pid(agent_core_t *core, uint32_t replica, uint32_t rank)
{
    const agent_rank_t *process = agent_rank_of(core, replica, rank);
    return process ? process->pid : 0;
}

static agent_rank_t *by_id(agent_core_t *core, uint64_t rank_id)
{
    for (uint32_t i = 0; i < AGENT_RANKS_MAX; i++) {
        if (core->ranks[i].state != RANK_NONE && core->ranks[i].id == rank_id)
            return &core->ranks[i];
    }
    return NULL;
}

static uint32_t find_slot(const agent_core_t *core, const char *deployment, uint32_t ordinal)
{
    for (uint32_t i = 0; i < AGENT_REPLICAS_MAX; i++) {
        const agent_replica_t *replica = &core->replicas[i];
        if (replica->state != REPLICA_NONE && replica->plan.ordinal == ordinal &&
            strcmp(replica->plan.deployment, deployment) == 0)
            return i;
    }
    return UINT32_MAX;
}

void agent_kill(agent_core_t *core, agent_rank_t *rank, const char *why, bool for_plan,
                uint64_t now_ms)
{
    if (rank->state == RANK_DYING)
        return;
    rank->for_plan = for_plan;
    rank->state = RANK_DYING;
    rank->since_ms = now_ms;
    snprintf(rank->kill_text, sizeof rank->kill_text, "%s", why);
    agent_action_t *action = agent_act(core, AGENT_KILL);
    action->replica = rank->replica;
    action->rank_id = rank->id;
    action->rank = rank->start.rank;
    snprintf(action->text, sizeof action->text, "%s", why);
}

/* ---- plans ---- */

static status_t check_plan(const agent_core_t *core, const agent_plan_t *plan)
{
    if (plan->deployment[0] == 0 || plan->epoch == 0)
        return fail(STATUS_INVALID, "a plan without a deployment or an epoch");
    if (plan->tp == 0 || plan->stages == 0 || plan->tp > FABRIC_RANKS_MAX ||
        plan->stages > FABRIC_RANKS_MAX || plan->tp * plan->stages != plan->n_ranks ||
        plan->n_ranks > FABRIC_RANKS_MAX)
        return fail(STATUS_INVALID, "plan of %s/%u: %u ranks for tp %u x %u stages",
                    plan->deployment, plan->ordinal, plan->n_ranks, plan->tp, plan->stages);
    if (strcmp(plan->activations, "native") != 0 && strcmp(plan->activations, "f32") != 0)
        return fail(STATUS_INVALID, "plan of %s/%u: activations \"%s\"; native or f32 is right",
                    plan->deployment, plan->ordinal, plan->activations);
    if (plan->kv[0] != 0 && strcmp(plan->kv, "int8") != 0 && strcmp(plan->kv, "fp8") != 0)
        return fail(STATUS_INVALID, "plan of %s/%u: kv \"%s\"; int8, fp8 or nothing is right",
                    plan->deployment, plan->ordinal, plan->kv);
    bool here = false;
    for (uint32_t i = 0; i < plan->n_ranks; i++) {
        const agent_plan_rank_t *rank = &plan->ranks[i];
        if (rank->stage * plan->tp + rank->slice != i || rank->slice >= plan->tp ||
            rank->host[0] == 0)
            return fail(STATUS_INVALID, "plan of %s/%u: rank %u is stage %u, slice %u of host "
                                        "\"%s\"", plan->deployment, plan->ordinal, i, rank->stage,
                        rank->slice, rank->host);
        here = here || agent_is_local(core, plan, i);
    }
    if (!here)
        return fail(STATUS_INVALID, "plan of %s/%u has no rank on this host", plan->deployment,
                    plan->ordinal);
    return STATUS_OK;
}

static uint32_t take_slot(agent_core_t *core, const agent_plan_t *plan)
{
    uint32_t slot = find_slot(core, plan->deployment, plan->ordinal);
    for (uint32_t i = 0; slot == UINT32_MAX && i < AGENT_REPLICAS_MAX; i++) {
        if (core->replicas[i].state == REPLICA_NONE)
            slot = i;
    }
    return slot;
}

static void fail_at_once(agent_core_t *core, uint32_t slot, const char *text, uint64_t now_ms)
{
    agent_failure_t failure = {0};
    uint32_t locals[FABRIC_RANKS_MAX];
    agent_core_locals(core, slot, locals);
    failure.rank = locals[0];
    snprintf(failure.host, sizeof failure.host, "%s", core->config.host);
    snprintf(failure.text, sizeof failure.text, "%s", text);
    agent_fail(core, slot, &failure, 0, now_ms);
}

status_t agent_core_assign(agent_core_t *core, const agent_plan_t *plan, uint64_t now_ms)
{
    TRY(check_plan(core, plan));
    uint32_t slot = take_slot(core, plan);
    if (slot == UINT32_MAX)
        return fail(STATUS_EXHAUSTED, "this host has %d replicas already", AGENT_REPLICAS_MAX);
    agent_replica_t *replica = &core->replicas[slot];
    if (replica->state != REPLICA_NONE && !replica->removed &&
        !agent_is_newer(plan->incarnation, plan->epoch, replica->plan.incarnation,
                        replica->plan.epoch))
        return STATUS_OK;
    if (replica->state != REPLICA_NONE && replica->state != REPLICA_FAILED &&
        replica->state != REPLICA_LEAVING)
        agent_end_epoch(core, slot, "a newer plan has come");
    memset(replica, 0, sizeof *replica);
    replica->state = REPLICA_FORMING;
    replica->plan = *plan;
    if (replica->plan.formation_ms == 0)
        replica->plan.formation_ms = FORMATION_DEFAULT_MS;
    replica->deadline_ms = now_ms + replica->plan.formation_ms;
    replica->leave_ms = now_ms + AGENT_LEAVE_MS;
    /* Whoever dies already died in an earlier epoch; this one is not failed by it. */
    for (uint32_t i = 0; i < AGENT_RANKS_MAX; i++) {
        if (core->ranks[i].replica == slot && core->ranks[i].state == RANK_DYING)
            core->ranks[i].for_plan = true;
    }
    if (!agent_is_newer(plan->incarnation, plan->epoch, core->config.incarnation_begun,
                        core->config.epoch_begun)) {
        /* An epoch is formed once. Its ranks of this host died with the agent before this one. */
        fail_at_once(core, slot, "the agent of this host was restarted, its ranks died with it",
                     now_ms);
        return STATUS_OK;
    }
    if (plan->model_path[0] == 0) {
        char text[STATUS_TEXT_MAX];
        snprintf(text, sizeof text, "host %s has no model %s under its --models",
                 core->config.host, plan->model_digest);
        fail_at_once(core, slot, text, now_ms);
        return STATUS_OK;
    }
    if (core->draining) {
        fail_at_once(core, slot, "this host is draining", now_ms);
        return STATUS_OK;
    }
    agent_action_t *action = agent_act(core, AGENT_BEGIN);
    action->replica = slot;
    action->epoch = plan->epoch;
    agent_form(core, slot, now_ms);
    return STATUS_OK;
}

static void stop_rank(agent_core_t *core, agent_rank_t *rank, uint64_t now_ms)
{
    if (rank->state == RANK_STOPPING || rank->state == RANK_DYING)
        return;
    rank->state = RANK_STOPPING;
    rank->since_ms = now_ms;
    agent_action_t *action = agent_act(core, AGENT_STOP);
    action->replica = rank->replica;
    action->rank_id = rank->id;
}

static void free_slot_when_empty(agent_core_t *core, uint32_t slot)
{
    agent_replica_t *replica = &core->replicas[slot];
    if (replica->state != REPLICA_LEAVING)
        return;
    for (uint32_t i = 0; i < AGENT_RANKS_MAX; i++) {
        if (core->ranks[i].state != RANK_NONE && core->ranks[i].replica == slot)
            return;
    }
    agent_action_t *action = agent_act(core, AGENT_END);
    action->replica = slot;
    action->epoch = replica->plan.epoch;
    replica->state = REPLICA_NONE;
}

/* Its ranks end by themselves: the leader hands out what is owed and tells the others. */
static void leave(agent_core_t *core, uint32_t slot, uint64_t now_ms)
{
    agent_replica_t *replica = &core->replicas[slot];
    replica->state = REPLICA_LEAVING;
    replica->removed = true;
    for (uint32_t i = 0; i < AGENT_RANKS_MAX; i++) {
        if (core->ranks[i].state != RANK_NONE && core->ranks[i].replica == slot)
            stop_rank(core, &core->ranks[i], now_ms);
    }
    free_slot_when_empty(core, slot);
}

void agent_core_unassign(agent_core_t *core, const char *deployment, uint32_t ordinal,
                         uint64_t now_ms)
{
    uint32_t slot = find_slot(core, deployment, ordinal);
    if (slot != UINT32_MAX && core->replicas[slot].state != REPLICA_LEAVING)
        leave(core, slot, now_ms);
}

void agent_core_peer(agent_core_t *core, const char *deployment, uint32_t ordinal, uint64_t epoch,
                     uint32_t rank, const uint8_t *address, uint32_t address_bytes,
                     uint64_t now_ms)
{
    uint32_t slot = find_slot(core, deployment, ordinal);
    if (slot == UINT32_MAX)
        return;
    agent_replica_t *replica = &core->replicas[slot];
    if (replica->state != REPLICA_FORMING || replica->plan.epoch != epoch ||
        rank >= replica->plan.n_ranks || address_bytes > FABRIC_ADDRESS_BYTES_MAX ||
        agent_is_local(core, &replica->plan, rank))
        return;
    replica->peers[rank].known = true;
    replica->peers[rank].address_bytes = address_bytes;
    memcpy(replica->peers[rank].address, address, address_bytes);
    agent_form(core, slot, now_ms);
}

/* ---- ranks ---- */

void agent_core_spawned(agent_core_t *core, uint64_t rank_id, int64_t pid, const char *text,
                        uint64_t now_ms)
{
    agent_rank_t *rank = by_id(core, rank_id);
    if (!rank)
        return;
    if (pid > 0)
        rank->pid = pid;
    else
        agent_core_died(core, rank_id, &(agent_death_t){.text = text}, now_ms);
}

static void take_hello(agent_core_t *core, agent_rank_t *rank, const control_hello_t *hello,
                       uint64_t now_ms)
{
    if (rank->said_hello)
        return;
    rank->said_hello = true;
    rank->address_bytes = hello->address_bytes;
    memcpy(rank->address, hello->address, hello->address_bytes);
    if (rank->state == RANK_STARTING)
        rank->state = RANK_READY;
    agent_form(core, rank->replica, now_ms);
}

void agent_core_message(agent_core_t *core, uint64_t rank_id, const control_message_t *message,
                        uint64_t now_ms)
{
    agent_rank_t *rank = by_id(core, rank_id);
    if (!rank)
        return;
    rank->ticks_silent = 0;
    switch (message->kind) {
    case CONTROL_HELLO:
        take_hello(core, rank, &message->hello, now_ms);
        break;
    case CONTROL_BEAT:
        agent_take_beat(rank, &message->beat);
        break;
    case CONTROL_PREPARED:
        if (message->prepared.epoch == rank->in_epoch)
            rank->prepared_epoch = rank->in_epoch;
        break;
    case CONTROL_ACTIVE:
        if (rank->start.rank == 0)
            agent_take_active(core, rank->replica, &message->active);
        break;
    case CONTROL_FAILED:
        agent_take_failed(core, rank, &message->failed, now_ms);
        break;
    default:
        break; /* LOADED is a step that nothing waits for here */
    }
}

/* The leader, when it lives here, says a moment later whose sequences were in the step. */
static uint32_t hold_back_ms(agent_core_t *core, uint32_t slot)
{
    const agent_replica_t *replica = &core->replicas[slot];
    const agent_rank_t *leader = agent_rank_of(core, slot, 0);
    bool waits = replica->state == REPLICA_ACTIVE ||
                 (replica->state == REPLICA_FAILED && replica->failure_waits);
    return waits && leader && leader->state == RANK_READY ? AGENT_HOLD_BACK_MS : 0;
}

void agent_core_died(agent_core_t *core, uint64_t rank_id, const agent_death_t *death,
                     uint64_t now_ms)
{
    agent_rank_t *rank = by_id(core, rank_id);
    if (!rank)
        return;
    uint32_t slot = rank->replica;
    agent_replica_t *replica = &core->replicas[slot];
    bool late = agent_is_late(core, rank);
    bool meant = rank->state == RANK_STOPPING || (rank->state == RANK_DYING && rank->for_plan) ||
                 (late && replica->state == REPLICA_FORMING && agent_forget_address(core, rank));
    agent_failure_t failure = {.rank = rank->start.rank, .crashed = death->crashed && !late};
    uint32_t n = death->n_sessions;
    failure.n_sessions = late ? 0 : n < CONTROL_SESSIONS_MAX ? n : CONTROL_SESSIONS_MAX;
    if (failure.n_sessions > 0)
        memcpy(failure.sessions, death->sessions, failure.n_sessions * CONTROL_SESSION_BYTES);
    snprintf(failure.host, sizeof failure.host, "%s", core->config.host);
    const char *why = rank->kill_text[0] ? rank->kill_text : rank->last_words;
    snprintf(failure.text, sizeof failure.text, "rank %u (host %s): %s%s%s", rank->start.rank,
             core->config.host, death->text, why[0] ? ": " : "", why);
    agent_action_t *action = agent_act(core, AGENT_RELEASE);
    action->rank_id = rank_id;
    action->replica = slot;
    rank->state = RANK_NONE;
    if (replica->state == REPLICA_SENT || replica->state == REPLICA_ACTIVE) {
        action = agent_act(core, AGENT_MARK_DEAD);
        action->replica = slot;
        action->rank = rank->start.rank;
        snprintf(action->text, sizeof action->text, "%s", death->text);
    }
    if (meant)
        agent_form(core, slot, now_ms); /* its place may be free for the one that the plan wants */
    else
        agent_fail(core, slot, &failure, hold_back_ms(core, slot), now_ms);
    free_slot_when_empty(core, slot);
}

/* ---- time ---- */

static void tick_drain(agent_core_t *core, uint64_t now_ms)
{
    bool empty = true;
    for (uint32_t i = 0; i < AGENT_REPLICAS_MAX; i++) {
        agent_replica_t *replica = &core->replicas[i];
        if (replica->state == REPLICA_NONE)
            continue;
        const agent_rank_t *leader = agent_rank_of(core, i, 0);
        bool idle = leader ? leader->idle_beats >= DRAIN_IDLE_BEATS
                           : replica->state == REPLICA_FAILED;
        if (replica->state != REPLICA_LEAVING && (idle || now_ms >= core->drain_end_ms))
            leave(core, i, now_ms);
        empty = empty && replica->state == REPLICA_NONE;
    }
    if (empty && !core->drained) {
        core->drained = true;
        agent_act(core, AGENT_DRAINED);
    }
}

void agent_core_tick(agent_core_t *core, uint64_t now_ms)
{
    for (uint32_t i = 0; i < AGENT_RANKS_MAX; i++)
        agent_watch_rank(core, &core->ranks[i], now_ms);
    for (uint32_t i = 0; i < AGENT_REPLICAS_MAX; i++) {
        agent_epoch_tick(core, i, now_ms);
        agent_show_loading(core, i, now_ms);
    }
    if (core->draining)
        tick_drain(core, now_ms);
}

void agent_core_drain(agent_core_t *core, uint32_t drain_ms, uint64_t now_ms)
{
    if (core->draining)
        return;
    core->draining = true;
    core->drain_end_ms = now_ms + drain_ms;
    for (uint32_t i = 0; i < AGENT_RANKS_MAX; i++) {
        agent_rank_t *rank = &core->ranks[i];
        if (rank->state != RANK_READY || rank->start.rank != 0)
            continue;
        rank->idle_beats = 0; /* what comes in now still counts */
        agent_action_t *action = agent_act(core, AGENT_DRAIN);
        action->replica = rank->replica;
        action->rank_id = rank->id;
    }
    tick_drain(core, now_ms);
}
