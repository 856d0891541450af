/* The agent's shell: options, the host's lock, one loop over signals, ranks, etcd and the clock. It
 * carries out what agent_core decides and tells it what happened. */
#include "worker/agent.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/failpoint.h"
#include "common/base/log.h"
#include "common/base/memory.h"
#include "worker/agent_core.h"
#include "worker/agent_data.h"
#include "worker/agent_host.h"
#include "worker/agent_models.h"
#include "worker/agent_options.h"
#include "worker/agent_store.h"
#include "worker/rank_process.h"

#define STORE_DOWN_EXIT 6

typedef struct {
    uint64_t id;
    uint32_t replica;
    rank_process_t *process;
} child_t;

typedef struct {
    agent_options_t options;
    agent_host_t host;
    agent_core_t *core;
    agent_store_t *store;
    agent_models_t *models;
    int lock, signals;
    bool drained, quit;
    child_t children[AGENT_RANKS_MAX];
    uint32_t n_children;
    fabric_shm_t *shms[AGENT_REPLICAS_MAX]; /* by slot of the core */
    uint64_t incarnation_begun, epoch_begun;
    uint64_t next_tick_ms;
} agent_t;

/* ---- carrying out ---- */

static child_t *find_child(agent_t *agent, uint64_t id)
{
    for (uint32_t i = 0; i < agent->n_children; i++) {
        if (agent->children[i].id == id)
            return &agent->children[i];
    }
    return NULL;
}

static void spawn_rank(agent_t *agent, const agent_action_t *action)
{
    rank_process_t *process;
    uint64_t now = clock_ms();
    if (FAILPOINT("agent.assign")) {
        agent_core_spawned(agent->core, action->rank_id, 0, "fail point agent.assign", now);
        return;
    }
    if (rank_process_spawn(action->start, &process) != STATUS_OK) {
        log_error("%s", status_text());
        agent_core_spawned(agent->core, action->rank_id, 0, status_text(), now);
        return;
    }
    agent->children[agent->n_children++] =
        (child_t){action->rank_id, action->replica, process};
    char node[32] = "";
    if (action->start->in_node)
        snprintf(node, sizeof node, ", NUMA node %u", action->start->numa_node);
    log_info("%s: rank %u is process %d: stage %u, slice %u of %u (%u groups of experts, attention "
             "on %u, %u of it), layers %u to %u%s", action->start->replica, action->start->rank,
             (int)rank_process_pid(process), action->start->stage, action->start->slice,
             action->start->tp, action->start->expert_groups, action->start->attention_slices,
             action->start->attention_replicas, action->start->layer_first,
             action->start->layer_first + action->start->layer_count - 1, node);
    agent_core_spawned(agent->core, action->rank_id, rank_process_pid(process), "", now);
}

static void make_shm(agent_t *agent, const agent_action_t *action)
{
    uint32_t locals[FABRIC_RANKS_MAX];
    const agent_plan_t *plan = agent_core_plan(agent->core, action->replica);
    uint32_t n = agent_core_locals(agent->core, action->replica, locals);
    fabric_shm_release(agent->shms[action->replica]);
    agent->shms[action->replica] = NULL;
    /* Without it the epoch message goes out without memory and the ranks name what is missing. */
    if (fabric_shm_create(plan->epoch, locals, n, &agent->shms[action->replica]) != STATUS_OK)
        log_error("%s/%u: %s", plan->deployment, plan->ordinal, status_text());
}

static void send_epoch(agent_t *agent, const agent_action_t *action)
{
    child_t *child = find_child(agent, action->rank_id);
    rank_epoch_t *epoch = MEM_NEW(rank_epoch_t);
    fabric_shm_t *shm = agent->shms[action->replica];
    agent_core_epoch(agent->core, action->replica, clock_ms(), epoch);
    if (child && rank_process_send_epoch(child->process, epoch, shm ? fabric_shm_fd(shm) : -1) !=
                     STATUS_OK)
        log_warn("%s", status_text()); /* its death, or its silence, follows */
    free(epoch);
}

static void release_child(agent_t *agent, uint64_t id)
{
    child_t *child = find_child(agent, id);
    if (!child)
        return;
    rank_process_release(child->process);
    *child = agent->children[--agent->n_children];
}

static void tell_child(agent_t *agent, const agent_action_t *action)
{
    child_t *child = find_child(agent, action->rank_id);
    status_t status = STATUS_OK;
    if (!child)
        return;
    if (action->kind == AGENT_KILL) {
        log_warn("%s: killing rank %u: %s", rank_process_start_of(child->process)->replica,
                 action->rank, action->text);
        rank_process_kill(child->process);
    } else if (action->kind == AGENT_STOP) {
        status = rank_process_send_stop(child->process);
    } else {
        status = rank_process_send_drain(child->process);
    }
    if (status != STATUS_OK)
        log_warn("%s", status_text());
}

static void end_epoch(agent_t *agent, const agent_action_t *action)
{
    const agent_plan_t *plan = agent_core_plan(agent->core, action->replica);
    fabric_shm_release(agent->shms[action->replica]);
    agent->shms[action->replica] = NULL;
    agent_store_put_loading(agent->store, plan, 100);
    agent_store_unwatch_ranks(agent->store, plan->deployment, plan->ordinal);
}

static void begin_epoch(agent_t *agent, const agent_action_t *action)
{
    const agent_plan_t *plan = agent_core_plan(agent->core, action->replica);
    uint32_t locals[FABRIC_RANKS_MAX];
    if (agent_is_newer(plan->incarnation, plan->epoch, agent->incarnation_begun,
                       agent->epoch_begun)) {
        agent->incarnation_begun = plan->incarnation;
        agent->epoch_begun = plan->epoch;
        agent_data_set_epoch(agent->options.data, plan->incarnation, plan->epoch);
    }
    log_info("%s/%u: forming epoch %llu, tp %u, stages %u", plan->deployment, plan->ordinal,
             (unsigned long long)plan->epoch, plan->tp, plan->stages);
    /* A replica that lives on this host alone needs nobody's address. */
    if (agent_core_locals(agent->core, action->replica, locals) < plan->n_ranks)
        agent_store_watch_ranks(agent->store, plan);
}

static void publish(agent_t *agent, const agent_action_t *action)
{
    const agent_plan_t *plan = agent_core_plan(agent->core, action->replica);
    int64_t pids[FABRIC_RANKS_MAX];
    switch (action->kind) {
    case AGENT_PUBLISH_RANK:
        if (!FAILPOINT("agent.prepared"))
            agent_store_put_rank(agent->store, plan, action->rank, action->pid, action->address,
                                 action->address_bytes);
        break;
    case AGENT_PUBLISH_ACTIVE:
        log_info("%s/%u: epoch %llu is active, leader %s, %llu KV tokens", plan->deployment,
                 plan->ordinal, (unsigned long long)action->epoch, action->active->leader,
                 (unsigned long long)action->active->kv_tokens);
        for (uint32_t i = 0; i < plan->n_ranks; i++)
            pids[i] = agent_core_pid(agent->core, action->replica, i);
        agent_store_put_active(agent->store, plan, action->active, pids);
        break;
    case AGENT_PUBLISH_LOADING:
        agent_store_put_loading(agent->store, plan, action->percent);
        break;
    default:
        log_warn("%s/%u: epoch %llu failed: %s%s", plan->deployment, plan->ordinal,
                 (unsigned long long)action->epoch, action->failed->text,
                 action->failed->crashed ? " (crashed)" : "");
        agent_store_put_failed(agent->store, plan, action->failed);
    }
}

static void carry_out(agent_t *agent)
{
    agent_action_t action;
    while (agent_core_next(agent->core, &action)) {
        fabric_shm_t *shm = agent->shms[action.replica];
        switch (action.kind) {
        case AGENT_SPAWN:
            spawn_rank(agent, &action);
            break;
        case AGENT_KILL:
        case AGENT_STOP:
        case AGENT_DRAIN:
            tell_child(agent, &action);
            break;
        case AGENT_RELEASE:
            release_child(agent, action.rank_id);
            break;
        case AGENT_BEGIN:
            begin_epoch(agent, &action);
            break;
        case AGENT_MAKE_SHM:
            make_shm(agent, &action);
            break;
        case AGENT_SEND_EPOCH:
            send_epoch(agent, &action);
            break;
        case AGENT_MARK_DEAD:
            if (shm)
                fabric_shm_rank_died(shm, action.rank, action.text);
            break;
        case AGENT_ABORT:
            if (shm)
                fabric_shm_abort(shm, action.text);
            break;
        case AGENT_END:
            end_epoch(agent, &action);
            break;
        case AGENT_PUBLISH_RANK:
        case AGENT_PUBLISH_ACTIVE:
        case AGENT_PUBLISH_FAILED:
        case AGENT_PUBLISH_LOADING:
            publish(agent, &action);
            break;
        case AGENT_DRAINED:
            agent->drained = true;
            break;
        }
    }
}

/* ---- what happens ---- */

static void on_assign(void *context, const char *deployment, uint32_t ordinal,
                      const agent_plan_t *plan)
{
    agent_t *agent = context;
    if (!plan)
        agent_core_unassign(agent->core, deployment, ordinal, clock_ms());
    else if (agent_core_assign(agent->core, plan, clock_ms()) != STATUS_OK)
        log_error("%s", status_text());
    carry_out(agent);
}

static void on_peer(void *context, const char *deployment, uint32_t ordinal, uint64_t epoch,
                    uint32_t rank, const uint8_t *address, uint32_t address_bytes)
{
    agent_t *agent = context;
    agent_core_peer(agent->core, deployment, ordinal, epoch, rank, address, address_bytes,
                    clock_ms());
    carry_out(agent);
}

static void hear_child(agent_t *agent, uint64_t id)
{
    static control_message_t message;
    bool got = true;
    child_t *child;
    /* An action may release the child, so it is looked up each time. */
    while (got && (child = find_child(agent, id))) {
        status_t status = rank_process_receive(child->process, &message, &got);
        if (status == STATUS_INVALID) {
            log_error("rank process %d: %s", (int)rank_process_pid(child->process),
                      status_text());
            rank_process_kill(child->process);
        }
        if (status != STATUS_OK)
            return; /* its end is seen through its pidfd */
        if (!got)
            return;
        if (message.kind == CONTROL_BEAT && message.beat.sequences > 0)
            (void)FAILPOINT("agent.beat"); /* of a leader with sequences */
        agent_core_message(agent->core, id, &message, clock_ms());
        carry_out(agent);
    }
}

/* What a stopped or stuck rank had no room for waits for it, and nobody else does. */
static void send_more(agent_t *agent, uint64_t id)
{
    child_t *child = find_child(agent, id);
    if (child && rank_process_flush(child->process) != STATUS_OK)
        log_warn("%s", status_text()); /* its death follows */
}

static void bury_child(agent_t *agent, uint64_t id)
{
    rank_death_t death;
    hear_child(agent, id); /* its last words come before its death */
    child_t *child = find_child(agent, id);
    if (!child || !rank_process_reap(child->process, 0, &death))
        return;
    static char flying[CONTROL_SESSIONS_MAX][CONTROL_SESSION_BYTES];
    const agent_death_t told = {.crashed = death.crashed,
                                .text = death.text,
                                .n_sessions = rank_process_flying(child->process, flying),
                                .sessions = (const char(*)[CONTROL_SESSION_BYTES])flying};
    agent_core_died(agent->core, id, &told, clock_ms());
    carry_out(agent);
}

static void take_signal(agent_t *agent)
{
    struct signalfd_siginfo about;
    if (read(agent->signals, &about, sizeof about) != (ssize_t)sizeof about)
        return;
    if (agent->drained || agent->quit)
        return;
    static int n_signals;
    if (++n_signals > 1) {
        log_warn("a second signal: leaving at once");
        agent->quit = true;
        return;
    }
    log_info("draining for at most %lld ms", (long long)agent->options.drain_ms);
    agent_store_put_drain(agent->store);
    agent_core_drain(agent->core, (uint32_t)agent->options.drain_ms, clock_ms());
    carry_out(agent);
}

static void say_models(const agent_t *agent)
{
    if (agent->host.n_models == 0)
        log_warn("no model is under --models %s yet; a GGUF file or a directory that is put there "
                 "is offered", agent->options.models);
    for (size_t i = 0; i < agent->host.n_models; i++)
        log_info("offers model %s", agent->host.models[i].name);
}

static void take_models(agent_t *agent)
{
    if (!agent_models_take(agent->models, &agent->host))
        return;
    say_models(agent);
    agent_store_host_changed(agent->store);
}

static void turn(agent_t *agent)
{
    struct pollfd fds[3 + 2 * AGENT_RANKS_MAX];
    uint64_t ids[AGENT_RANKS_MAX];
    uint32_t n = agent->n_children;
    fds[0] = (struct pollfd){.fd = agent->signals, .events = POLLIN};
    fds[1] = (struct pollfd){.fd = agent_store_fd(agent->store), .events = POLLIN};
    fds[2] = (struct pollfd){.fd = agent_models_fd(agent->models), .events = POLLIN};
    for (uint32_t i = 0; i < n; i++) {
        rank_process_t *process = agent->children[i].process;
        ids[i] = agent->children[i].id;
        short events = rank_process_has_unsent(process) ? POLLIN | POLLOUT : POLLIN;
        fds[3 + 2 * i] = (struct pollfd){.fd = rank_process_socket(process), .events = events};
        fds[4 + 2 * i] = (struct pollfd){.fd = rank_process_pidfd(process), .events = POLLIN};
        /* After the end of file the socket is readable for ever; only the death counts then. */
        if (rank_process_hung_up(process))
            fds[3 + 2 * i].fd = -1;
    }
    uint64_t now = clock_ms();
    int wait_ms = now < agent->next_tick_ms ? (int)(agent->next_tick_ms - now) : 0;
    if (poll(fds, 3 + 2 * (nfds_t)n, wait_ms) < 0)
        return;
    for (uint32_t i = 0; i < n; i++) {
        if (fds[3 + 2 * i].revents & POLLOUT)
            send_more(agent, ids[i]);
        if (fds[3 + 2 * i].revents & ~POLLOUT)
            hear_child(agent, ids[i]);
        if (fds[4 + 2 * i].revents)
            bury_child(agent, ids[i]);
    }
    if (fds[0].revents)
        take_signal(agent);
    if (fds[2].revents)
        take_models(agent);
    now = clock_ms();
    if (fds[1].revents || now >= agent->next_tick_ms)
        agent_store_poll(agent->store, now);
    if (now >= agent->next_tick_ms) {
        agent->next_tick_ms = now + AGENT_TICK_MS;
        agent_core_tick(agent->core, now);
        carry_out(agent);
    }
}

/* ---- life ---- */

static status_t prepare(agent_t *agent)
{
    const agent_options_t *options = &agent->options;
    sigset_t set;
    TRY(agent_host_read(options->host_id, options->address, (uint32_t)options->threads,
                        (uint64_t)options->memory, &agent->host));
    TRY(agent_data_lock(options->data, &agent->lock));
    TRY(agent_models_open(options->models, options->data, &agent->host, &agent->models));
    agent_data_epoch(options->data, &agent->incarnation_begun, &agent->epoch_begun);
    /* Blocked before any thread starts, so that only the loop sees them. */
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    if (sigprocmask(SIG_BLOCK, &set, NULL) != 0)
        return fail(STATUS_INTERNAL, "cannot block signals: %m");
    agent->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (agent->signals < 0)
        return fail(STATUS_INTERNAL, "cannot make a signalfd: %m");
    signal(SIGPIPE, SIG_IGN);
    agent_config_t config = {.cores = agent->host.cores,
                             .pack_cache_bytes = (uint64_t)options->pack_cache,
                             .step_timeout_ms = (uint32_t)options->step_timeout_ms,
                             .load_stuck_ms = (uint32_t)options->load_stuck_ms,
                             .incarnation_begun = agent->incarnation_begun,
                             .epoch_begun = agent->epoch_begun,
                             .numa = agent->host.numa};
    snprintf(config.host, sizeof config.host, "%s", agent->host.id);
    snprintf(config.address, sizeof config.address, "%s", agent->host.address);
    snprintf(config.data_dir, sizeof config.data_dir, "%s", options->data);
    agent->core = agent_core_new(&config);
    const agent_store_handlers_t handlers = {on_assign, on_peer, agent};
    return agent_store_open(options->etcd, options->cluster, &agent->host,
                            (uint32_t)options->store_wait_ms, &handlers, &agent->store);
}

static void leave(agent_t *agent)
{
    while (agent->n_children > 0)
        release_child(agent, agent->children[0].id);
    for (uint32_t i = 0; i < AGENT_REPLICAS_MAX; i++)
        fabric_shm_release(agent->shms[i]);
    agent_store_close(agent->store);
    agent_models_close(agent->models);
    agent_core_free(agent->core);
    agent_host_release(&agent->host);
    if (agent->signals >= 0)
        close(agent->signals);
    if (agent->lock >= 0)
        close(agent->lock);
}

int agent_main(int argc, char **argv)
{
    static agent_t agent = {.lock = -1, .signals = -1};
    bool help = false;
    log_start("shoal-worker agent");
    failpoint_start();
    status_t status = agent_options_read(&agent.options, argc, argv, &help);
    if (status == STATUS_OK && help)
        return 0;
    if (status == STATUS_OK)
        status = prepare(&agent);
    if (status != STATUS_OK) {
        log_error("%s", status_text());
        leave(&agent);
        return status == STATUS_UNREACHABLE ? STORE_DOWN_EXIT : status_exit_code(status);
    }
    log_info("host %s at %s offers %u cores, %llu MiB, %zu models (kernels: %s)", agent.host.id,
             agent.host.address, agent.host.cores,
             (unsigned long long)(agent.host.memory_bytes >> 20), agent.host.n_models,
             agent.host.isa);
    say_models(&agent);
    while (!agent.drained && !agent.quit)
        turn(&agent);
    leave(&agent);
    log_info("left");
    return 0;
}
