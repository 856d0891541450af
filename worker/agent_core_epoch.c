/* Forming an epoch and accounting for its end. */
#include <stdio.h>
#include <string.h>

#include "worker/agent_core_internal.h"
#include "worker/engine/rank.h"

/* A rank that was aborted by others waits with its account for theirs; a dead rank's waits for the
 * leader to say whose sequences were in the step. */
/* Without a plan's word: KV for a rank when the plan names no number of tokens. */
#define KV_BYTES_DEFAULT ((uint64_t)1 << 30)
/* What a rank packs in less is not worth the disk; of 92 MiB a start takes a quarter when they are
 * kept. */
#define PACK_CACHE_BYTES_MIN ((uint64_t)16 << 20)

static void fill_start(const agent_core_t *core, const agent_plan_t *plan, uint32_t rank,
                       rank_start_t *out)
{
    const agent_config_t *config = &core->config;
    const agent_plan_rank_t *place = &plan->ranks[rank];
    memset(out, 0, sizeof *out); /* starts are compared byte by byte */
    snprintf(out->replica, sizeof out->replica, "%s/%u", plan->deployment, plan->ordinal);
    snprintf(out->model_path, sizeof out->model_path, "%s", plan->model_path);
    snprintf(out->model_digest, sizeof out->model_digest, "%s", plan->model_digest);
    snprintf(out->activations, sizeof out->activations, "%s", plan->activations);
    snprintf(out->kv, sizeof out->kv, "%s", plan->kv);
    snprintf(out->quantize, sizeof out->quantize, "%s", plan->quantize);
    snprintf(out->host, sizeof out->host, "%s", config->host);
    snprintf(out->address, sizeof out->address, "%s", config->address);
    snprintf(out->data_dir, sizeof out->data_dir, "%s", config->data_dir);
    out->pack_cache_bytes = config->pack_cache_bytes;
    out->pack_cache_bytes_min = PACK_CACHE_BYTES_MIN;
    out->rank = rank;
    out->n_ranks = plan->n_ranks;
    out->tp = plan->tp;
    out->stages = plan->stages;
    out->stage = place->stage;
    out->slice = place->slice;
    out->expert_groups = plan->expert_groups;
    out->attention_slices = plan->attention_slices;
    out->attention_replicas = plan->attention_replicas;
    out->shared_head = plan->shared_head;
    out->layer_first = place->layer_first;
    out->layer_count = place->layer_count;
    uint32_t n_local = 0;
    for (uint32_t i = 0; i < plan->n_ranks; i++) {
        bool local = agent_is_local(core, plan, i);
        n_local += local ? 1 : 0;
        if (!local)
            out->spans_hosts = 1;
    }
    uint32_t share = config->cores / (n_local ? n_local : 1);
    out->threads = place->threads ? place->threads : share ? share : 1;
    out->context_max = plan->context_max;
    out->step_timeout_ms = config->step_timeout_ms;
    out->kv_tokens_max = plan->kv_tokens_max;
    out->prefill_tokens_max = plan->prefill_tokens_max;
    if (!plan->speculate_off)
        out->speculate_max = plan->speculate_max ? plan->speculate_max : RANK_SPECULATE;
    if (rank == 0 && out->speculate_max > 0 && plan->draft_path[0]) {
        snprintf(out->draft_path, sizeof out->draft_path, "%s", plan->draft_path);
        snprintf(out->draft_digest, sizeof out->draft_digest, "%s", plan->draft_digest);
    }
    out->prefix_cache_off = plan->prefix_cache_off;
    out->whole_prompts = plan->whole_prompts;
    out->memory_bytes = plan->kv_tokens_max ? 0 : KV_BYTES_DEFAULT;
    out->serve = rank == 0;
}

/* The NUMA node of a rank. A living one stays where its weights are; one that is to be spawned goes
 * where those that are there leave it most room. */
static void place(const agent_core_t *core, const agent_rank_t *living, rank_start_t *start)
{
    if (living != NULL) {
        start->in_node = living->start.in_node;
        start->numa_node = living->start.numa_node;
        return;
    }
    const numa_t *numa = &core->config.numa;
    uint32_t used[NUMA_NODES_MAX] = {0};
    for (uint32_t i = 0; i < AGENT_RANKS_MAX; i++) {
        const agent_rank_t *rank = &core->ranks[i];
        if (rank->state == RANK_NONE || !rank->start.in_node)
            continue;
        uint32_t node = numa_index(numa, rank->start.numa_node);
        if (node < numa->n)
            used[node] += rank->start.threads;
    }
    uint32_t id = numa_choose(numa, used, start->threads);
    start->in_node = id != NUMA_NONE;
    start->numa_node = start->in_node ? id : 0;
}

/* A process can be kept when it holds just what the plan wants; one that has an endpoint serves a
 * replica on one host as well. */
static bool can_keep(const rank_start_t *have, const rank_start_t *want)
{
    rank_start_t same = *have;
    if (same.spans_hosts && !want->spans_hosts)
        same.spans_hosts = 0;
    return memcmp(&same, want, sizeof same) == 0;
}

static agent_rank_t *spawn(agent_core_t *core, uint32_t replica, const rank_start_t *start,
                           uint64_t now_ms)
{
    for (uint32_t i = 0; i < AGENT_RANKS_MAX; i++) {
        agent_rank_t *rank = &core->ranks[i];
        if (rank->state != RANK_NONE)
            continue;
        memset(rank, 0, sizeof *rank);
        rank->state = RANK_STARTING;
        rank->id = ++core->next_rank_id;
        rank->replica = replica;
        rank->start = *start;
        rank->born_incarnation = core->replicas[replica].plan.incarnation;
        rank->born_epoch = core->replicas[replica].plan.epoch;
        rank->since_ms = now_ms;
        agent_action_t *action = agent_act(core, AGENT_SPAWN);
        action->replica = replica;
        action->rank_id = rank->id;
        action->rank = start->rank;
        action->start = &rank->start;
        return rank;
    }
    return NULL;
}

static void publish_rank(agent_core_t *core, const agent_rank_t *rank)
{
    agent_replica_t *replica = &core->replicas[rank->replica];
    agent_action_t *action = agent_act(core, AGENT_PUBLISH_RANK);
    action->replica = rank->replica;
    action->epoch = replica->plan.epoch;
    action->rank = rank->start.rank;
    action->pid = rank->pid;
    action->address = rank->address;
    action->address_bytes = rank->address_bytes;
}

/* True when the rank of the plan on this host is there and has said hello. */
static bool form_local(agent_core_t *core, uint32_t slot, uint32_t rank, uint64_t now_ms)
{
    agent_replica_t *replica = &core->replicas[slot];
    agent_rank_t *process = agent_rank_of(core, slot, rank);
    rank_start_t want;
    fill_start(core, &replica->plan, rank, &want);
    place(core, process, &want);
    if (process && (process->state == RANK_DYING || process->state == RANK_STOPPING))
        return false; /* its place is free when its death is reported */
    if (process && !can_keep(&process->start, &want)) {
        agent_kill(core, process, "the plan wants another slice or draft model of it", true, now_ms);
        return false;
    }
    if (!process) {
        if (!spawn(core, slot, &want, now_ms)) {
            agent_failure_t failure = {.rank = rank};
            snprintf(failure.host, sizeof failure.host, "%s", core->config.host);
            snprintf(failure.text, sizeof failure.text, "rank %u: this host runs %d ranks already",
                     rank, AGENT_RANKS_MAX);
            agent_fail(core, slot, &failure, 0, now_ms);
        }
        return false;
    }
    if (!process->said_hello)
        return false;
    /* One that was aborted says so unless it is dying itself. A rank that is alone has nothing that
     * aborts it: it leaves its epoch when it is sent the next. */
    if (process->in_epoch != 0 && replica->plan.n_ranks > 1 && now_ms < replica->leave_ms)
        return false;
    if (!replica->peers[rank].known) {
        replica->peers[rank].known = true;
        replica->peers[rank].address_bytes = process->address_bytes;
        memcpy(replica->peers[rank].address, process->address, process->address_bytes);
        publish_rank(core, process);
    }
    return true;
}

/* Processes of this replica that the plan does not want on this host. */
static void drop_others(agent_core_t *core, uint32_t slot, uint64_t now_ms)
{
    const agent_plan_t *plan = &core->replicas[slot].plan;
    for (uint32_t i = 0; i < AGENT_RANKS_MAX; i++) {
        agent_rank_t *process = &core->ranks[i];
        if (process->state == RANK_NONE || process->state == RANK_DYING ||
            process->replica != slot)
            continue;
        if (process->start.rank >= plan->n_ranks ||
            !agent_is_local(core, plan, process->start.rank))
            agent_kill(core, process, "the plan wants it elsewhere", true, now_ms);
    }
}

void agent_form(agent_core_t *core, uint32_t slot, uint64_t now_ms)
{
    agent_replica_t *replica = &core->replicas[slot];
    if (replica->state != REPLICA_FORMING)
        return;
    const agent_plan_t *plan = &replica->plan;
    bool all = true;
    drop_others(core, slot, now_ms);
    for (uint32_t rank = 0; rank < plan->n_ranks && replica->state == REPLICA_FORMING; rank++) {
        if (agent_is_local(core, plan, rank))
            all = form_local(core, slot, rank, now_ms) && all;
        else
            all = replica->peers[rank].known && all;
    }
    if (!all || replica->state != REPLICA_FORMING)
        return;
    agent_act(core, AGENT_MAKE_SHM)->replica = slot;
    for (uint32_t rank = 0; rank < plan->n_ranks; rank++) {
        agent_rank_t *process = agent_rank_of(core, slot, rank);
        if (!process)
            continue;
        agent_action_t *action = agent_act(core, AGENT_SEND_EPOCH);
        action->replica = slot;
        action->rank_id = process->id;
        action->epoch = plan->epoch;
        process->in_epoch = plan->epoch;
        process->prepared_epoch = 0;
    }
    replica->state = REPLICA_SENT;
}

bool agent_is_late(const agent_core_t *core, const agent_rank_t *rank)
{
    const agent_replica_t *replica = &core->replicas[rank->replica];
    bool born_earlier = rank->born_epoch != replica->plan.epoch ||
                        rank->born_incarnation != replica->plan.incarnation;
    /* Until it has begun to form the new epoch it is at what the earlier one left it with. */
    return born_earlier && (replica->state == REPLICA_FORMING ||
                            rank->prepared_epoch != replica->plan.epoch);
}

bool agent_forget_address(agent_core_t *core, const agent_rank_t *rank)
{
    agent_replica_t *replica = &core->replicas[rank->replica];
    for (uint32_t i = 0; i < replica->plan.n_ranks; i++) {
        if (!agent_is_local(core, &replica->plan, i))
            return false;
    }
    if (rank->start.rank < replica->plan.n_ranks)
        replica->peers[rank->start.rank].known = false;
    return true;
}

void agent_end_epoch(agent_core_t *core, uint32_t slot, const char *why)
{
    agent_replica_t *replica = &core->replicas[slot];
    agent_action_t *action;
    if (replica->state == REPLICA_SENT || replica->state == REPLICA_ACTIVE) {
        action = agent_act(core, AGENT_ABORT);
        action->replica = slot;
        snprintf(action->text, sizeof action->text, "%s", why);
    }
    action = agent_act(core, AGENT_END);
    action->replica = slot;
    action->epoch = replica->plan.epoch;
}

static void tell_failure(agent_core_t *core, uint32_t slot)
{
    agent_replica_t *replica = &core->replicas[slot];
    agent_action_t *action = agent_act(core, AGENT_PUBLISH_FAILED);
    action->replica = slot;
    action->epoch = replica->plan.epoch;
    action->failed = &replica->failure;
    replica->failure_waits = false;
    replica->failure_told = true;
}

/* A second account of the same end: one may be the cause and the other know the sessions. False when
 * it adds nothing. */
static bool merge_failure(agent_replica_t *replica, const agent_failure_t *fresh, bool is_cause)
{
    agent_failure_t known = replica->failure;
    bool better = fresh->crashed && !known.crashed;
    bool more = fresh->n_sessions > known.n_sessions;
    bool cause = is_cause && !replica->failure_told && !known.crashed;
    if (!better && !more && !cause)
        return false;
    if (better || cause)
        replica->failure = *fresh;
    const agent_failure_t *source = more ? fresh : &known;
    replica->failure.n_sessions = source->n_sessions;
    memcpy(replica->failure.sessions, source->sessions, sizeof source->sessions);
    return true;
}

void agent_fail(agent_core_t *core, uint32_t slot, const agent_failure_t *failure,
                uint32_t wait_ms, uint64_t now_ms)
{
    agent_replica_t *replica = &core->replicas[slot];
    if (replica->state == REPLICA_NONE || replica->state == REPLICA_LEAVING)
        return;
    if (replica->state != REPLICA_FAILED) {
        agent_end_epoch(core, slot, failure->text);
        replica->state = REPLICA_FAILED;
        replica->failure = *failure;
        replica->failure_waits = true;
        replica->failure_told = false;
        replica->failure_ms = now_ms + wait_ms;
    } else if (!merge_failure(replica, failure, wait_ms == 0)) {
        /* Nothing new, but perhaps the one that would have named sessions is dead as well. */
        if (wait_ms > 0 || !replica->failure_waits)
            return;
        replica->failure_ms = now_ms;
    } else {
        replica->failure_waits = true;
        if (wait_ms == 0 || replica->failure_told || replica->failure.n_sessions > 0)
            replica->failure_ms = now_ms;
    }
    if (now_ms >= replica->failure_ms)
        tell_failure(core, slot);
}

void agent_take_active(agent_core_t *core, uint32_t slot, const control_active_t *active)
{
    agent_replica_t *replica = &core->replicas[slot];
    if (replica->state != REPLICA_SENT || active->epoch != replica->plan.epoch)
        return;
    replica->state = REPLICA_ACTIVE;
    replica->active = *active;
    for (uint32_t i = 0; i < replica->plan.n_ranks; i++) {
        agent_rank_t *process = agent_rank_of(core, slot, i);
        if (process) /* its word may still be on its way */
            process->prepared_epoch = active->epoch;
    }
    agent_action_t *action = agent_act(core, AGENT_PUBLISH_ACTIVE);
    action->replica = slot;
    action->epoch = active->epoch;
    action->active = &replica->active;
}

void agent_take_failed(agent_core_t *core, agent_rank_t *rank, const control_failed_t *failed,
                       uint64_t now_ms)
{
    agent_replica_t *replica = &core->replicas[rank->replica];
    if (failed->epoch != 0 && failed->epoch == rank->in_epoch)
        rank->in_epoch = 0;
    if (failed->epoch != 0 && failed->epoch != replica->plan.epoch) {
        agent_form(core, rank->replica, now_ms); /* of an epoch that is over for this agent */
        return;
    }
    if (failed->status == STATUS_OK || rank->state == RANK_STOPPING)
        return; /* stopped in good order */
    agent_failure_t failure = {.rank = rank->start.rank};
    if (failed->epoch == 0) /* its end follows, and is told with these words */
        snprintf(rank->last_words, sizeof rank->last_words, "%s", failed->text);
    snprintf(failure.host, sizeof failure.host, "%s", core->config.host);
    snprintf(failure.text, sizeof failure.text, "%s", failed->text);
    if (failed->lost_rank < replica->plan.n_ranks) {
        failure.rank = failed->lost_rank;
        snprintf(failure.host, sizeof failure.host, "%s",
                 replica->plan.ranks[failed->lost_rank].host);
        /* Two agents that live and do not hear each other: the link, reported as a pair. */
        if (failed->silent && strcmp(failure.host, core->config.host) != 0) {
            memcpy(failure.other_host, failure.host, sizeof failure.other_host);
            snprintf(failure.host, sizeof failure.host, "%s", core->config.host);
        }
    }
    failure.n_sessions = failed->n_sessions;
    memcpy(failure.sessions, failed->sessions, sizeof failure.sessions);
    /* A process here that its peers do not hear is stuck: it must not be kept for the next epoch. */
    agent_rank_t *lost = agent_rank_of(core, rank->replica, failure.rank);
    if (failed->silent && failed->status == STATUS_PEER_LOST && lost && lost != rank &&
        failed->lost_rank == lost->start.rank)
        agent_kill(core, lost, "its peers hear nothing of it", false, now_ms);
    agent_fail(core, rank->replica, &failure, AGENT_HOLD_BACK_MS, now_ms);
}

static void deadline_passed(agent_core_t *core, uint32_t slot, uint64_t now_ms)
{
    agent_replica_t *replica = &core->replicas[slot];
    agent_failure_t failure = {.rank = 0};
    snprintf(failure.host, sizeof failure.host, "%s", core->config.host);
    const char *missing = "its ranks did not come to an agreement";
    char words[128];
    for (uint32_t rank = 0; rank < replica->plan.n_ranks; rank++) {
        if (replica->peers[rank].known)
            continue;
        failure.rank = rank;
        snprintf(failure.host, sizeof failure.host, "%s", replica->plan.ranks[rank].host);
        snprintf(words, sizeof words, "rank %u (host %s) has not reported", rank, failure.host);
        missing = words;
        break;
    }
    snprintf(failure.text, sizeof failure.text, "not active within %u ms: %s",
             replica->plan.formation_ms, missing);
    agent_fail(core, slot, &failure, 0, now_ms);
}

void agent_epoch_tick(agent_core_t *core, uint32_t slot, uint64_t now_ms)
{
    agent_replica_t *replica = &core->replicas[slot];
    if (replica->state == REPLICA_FAILED && replica->failure_waits &&
        now_ms >= replica->failure_ms)
        tell_failure(core, slot);
    if (replica->state == REPLICA_FORMING && now_ms >= replica->leave_ms)
        agent_form(core, slot, now_ms); /* who has not left may be at a long piece of work */
    /* After the ranks were sent the epoch only the leader's agent learns whether it became active. */
    bool waits = replica->state == REPLICA_FORMING ||
                 (replica->state == REPLICA_SENT && agent_is_local(core, &replica->plan, 0));
    if (waits && now_ms >= replica->deadline_ms)
        deadline_passed(core, slot, now_ms);
}
