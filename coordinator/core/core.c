/* The machine's frame: events to the part that owns them, actions, timers, the drain. */
#include "coordinator/core/core.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "common/base/log.h"
#include "coordinator/core/clients.h"
#include "coordinator/core/dispatch.h"
#include "coordinator/core/jobs.h"
#include "coordinator/core/leaders.h"
#include "coordinator/core/rollout.h"
#include "coordinator/core/session.h"
#include "coordinator/core/state.h"

void core_actions_reset(core_actions_t *actions)
{
    actions->n = 0;
    arena_reset(&actions->arena);
}

void core_actions_release(core_actions_t *actions)
{
    free(actions->items);
    arena_release(&actions->arena);
    *actions = (core_actions_t){0};
}

core_action_t *core_act(core_t *core, core_action_kind_t kind)
{
    core_actions_t *out = core->out;
    MEM_GROW(out->items, out->capacity, out->n + 1);
    core_action_t *action = &out->items[out->n++];
    *action = (core_action_t){.kind = kind};
    return action;
}

uint64_t core_number(core_t *core)
{
    return ++core->next_number;
}

/* splitmix64. */
uint64_t core_random(core_t *core)
{
    uint64_t z = (core->random += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

char *core_copy(core_t *core, const char *text)
{
    text = text_or_empty(text);
    return arena_strndup(&core->out->arena, text, strlen(text));
}

void core_log(core_t *core, int level, const char *format, ...)
{
    char line[STATUS_TEXT_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    core_action_t *action = core_act(core, CORE_ACTION_LOG);
    action->log.level = level;
    action->log.text = core_copy(core, line);
}

void core_wake(core_t *core, wake_t *wake, timer_kind_t kind, void *object, uint64_t at_ms)
{
    if (wake->place && heap_major(&core->timers, wake->place) == at_ms)
        return;
    heap_remove(&core->timers, &wake->place);
    wake->kind = kind;
    wake->object = object;
    if (at_ms != UINT64_MAX)
        heap_push(&core->timers, wake, &wake->place, at_ms, core_number(core));
}

void core_wake_off(core_t *core, wake_t *wake)
{
    heap_remove(&core->timers, &wake->place);
}

core_t *core_new(const core_config_t *config)
{
    core_t *core = MEM_NEW(core_t);
    core->config = *config;
    core_config_t *c = &core->config;
    c->id = mem_strdup(text_or_empty(config->id));
    c->endpoint = mem_strdup(text_or_empty(config->endpoint));
    c->build = mem_strdup(text_or_empty(config->build));
    c->detach_ms = c->detach_ms ? c->detach_ms : 10000;
    c->queue_wait_ms = c->queue_wait_ms ? c->queue_wait_ms : 10000;
    c->waiting_tokens_max = c->waiting_tokens_max ? c->waiting_tokens_max : 262144;
    c->items_max = c->items_max ? c->items_max : 256;
    c->items_max = c->items_max < CORE_ITEMS_MAX ? c->items_max : CORE_ITEMS_MAX;
    c->drain_ms = c->drain_ms ? c->drain_ms : 30000;
    c->formation_ms = c->formation_ms ? c->formation_ms : 30000;
    c->release_ms = c->release_ms ? c->release_ms : 10000;
    core->random = config->seed;
    core->dying = MEM_NEW_ARRAY(dying_t, DYING_MAX);
    return core;
}

void core_free(core_t *core)
{
    if (!core)
        return;
    /* Freeing sessions moves timers and lists, which writes actions that nobody carries out. */
    core_actions_t unread = {0};
    core->out = &unread;
    core->draining = core->drained = true;
    claims_free(core);
    size_t i = 0;
    for (session_t *s; (s = table_next(&core->sessions, &i)); i = 0) {
        if (s->client)
            clients_forget(core, s->client);
        session_drop(core, s, false);
    }
    session_bury(core);
    rollout_free(core);
    cluster_free(core);
    table_release(&core->sessions);
    table_release(&core->clients);
    table_release(&core->links);
    table_release(&core->pointer_ops);
    heap_release(&core->timers);
    core_actions_release(&unread);
    free((void *)(uintptr_t)core->config.id);
    free((void *)(uintptr_t)core->config.endpoint);
    free((void *)(uintptr_t)core->config.build);
    free(core->dying);
    free(core);
}

static void begin(core_t *core)
{
    core->begun = true;
    cluster_watch(core, "deployments/", true);
    cluster_watch(core, "replicas/", true);
    cluster_watch(core, "coordinators/", true);
    core_wake(core, &core->jobs_wake, TIMER_JOBS, core, core->now_ms);
}

static void check_drained(core_t *core)
{
    if (!core->draining || core->drained)
        return;
    bool late = core->now_ms >= core->drain_until_ms;
    size_t i = 0;
    for (session_t *s; late && (s = table_next(&core->sessions, &i)); i = 0)
        session_fail(core, s, STATUS_UNREACHABLE,
                     "this coordinator is shutting down: resume at another one", 0);
    size_t n_live = 0;
    i = 0;
    for (session_t *s; (s = table_next(&core->sessions, &i));)
        n_live += !s->superseded &&
                  (s->n_choices == 0 || s->n_ended < s->n_choices || s->client);
    if (n_live || (core->items.n && !late)) {
        core_wake(core, &core->drain_wake, TIMER_DRAIN, core, core->now_ms + 50);
        return;
    }
    core->drained = true;
    core_act(core, CORE_ACTION_DRAINED);
}

static void run_timer(core_t *core, const wake_t *wake)
{
    switch (wake->kind) {
    case TIMER_SESSION:
        session_timer(core, wake->object);
        break;
    case TIMER_SEQUENCE:
        dispatch_timer(core, wake->object);
        break;
    case TIMER_LINK:
        leaders_timer(core, wake->object);
        break;
    case TIMER_ITEM:
        items_timer(core, wake->object);
        break;
    case TIMER_JOBS:
        claims_timer(core);
        break;
    case TIMER_ROLLOUT:
        rollout_timer(core);
        break;
    case TIMER_POOLS:
        dispatch_pools_timer(core);
        break;
    case TIMER_DRAIN:
        check_drained(core);
        break;
    }
}

static void run_timers(core_t *core)
{
    /* A timer that sets itself again sets a later time, so the number of rounds is bounded by the
     * timers that are due; the limit only guards against a fault of our own. */
    for (size_t n = 0; n < 1000000; n++) {
        const heap_entry_t *first = heap_first(&core->timers);
        if (!first || first->major > core->now_ms)
            return;
        const wake_t *wake = first->thing;
        heap_remove(&core->timers, first->place);
        run_timer(core, wake);
    }
}

static void store_event(core_t *core, const core_event_t *event)
{
    core_store_state_t *state = event->store.store == CORE_STORE_ETCD ? &core->etcd : &core->redis;
    if (*state == event->store.state)
        return;
    bool adopted = *state == CORE_STORE_FOREIGN && event->store.store == CORE_STORE_ETCD;
    *state = event->store.state;
    if (adopted)
        cluster_watch_again(core);
    if (adopted && core->elected)
        rollout_elected(core, true);
    if (event->store.state == CORE_STORE_FOREIGN)
        core_log(core, LOG_ERROR, "jobs and plans are refused: %s",
                 text_or_empty(event->store.text));
    if (event->store.store == CORE_STORE_REDIS)
        claims_store_changed(core);
    rollout_changed(core);
}

static void start_drain(core_t *core)
{
    if (core->draining)
        return;
    core->draining = true;
    core->drain_until_ms = core->now_ms + core->config.drain_ms;
    claims_release_all(core);
    core_wake(core, &core->drain_wake, TIMER_DRAIN, core, core->now_ms);
}

static void elected_event(core_t *core, const core_event_t *event)
{
    bool elected = event->kind == CORE_EVENT_ELECTED;
    if (elected) {
        snprintf(core->election_key, sizeof core->election_key, "%s", event->elected.key);
        core->election_revision = event->elected.create_revision;
    }
    if (core->elected == elected)
        return;
    core->elected = elected;
    rollout_elected(core, elected);
}

/* Clients, links and time. */
static bool handle_serving(core_t *core, const core_event_t *event)
{
    switch (event->kind) {
    case CORE_EVENT_TICK:
        return true;
    case CORE_EVENT_DRAIN:
        start_drain(core);
        return true;
    case CORE_EVENT_GENERATE:
        session_generate(core, event->generate.client, &event->generate.request);
        return true;
    case CORE_EVENT_RESUME:
        session_resume(core, event->resume.client, event->resume.id, event->resume.n,
                       event->resume.n_choices);
        return true;
    case CORE_EVENT_CANCEL:
        session_cancel(core, event->cancel.client, event->cancel.id, event->cancel.take);
        return true;
    case CORE_EVENT_CLIENT_WRITABLE:
        clients_writable(core, event->client.client);
        return true;
    case CORE_EVENT_CLIENT_GONE:
        session_client_gone(core, event->client.client);
        return true;
    case CORE_EVENT_LINK_MESSAGE:
        leaders_message(core, event->link_message.link, event->link_message.bytes,
                        event->link_message.size);
        return true;
    case CORE_EVENT_LINK_BROKEN:
        leaders_broken(core, event->link_broken.link, event->link_broken.text);
        return true;
    case CORE_EVENT_MODEL:
        cluster_model(core, event);
        return true;
    default:
        return false;
    }
}

/* etcd and Redis. */
static void handle_stores(core_t *core, const core_event_t *event)
{
    switch (event->kind) {
    case CORE_EVENT_STORE:
        store_event(core, event);
        break;
    case CORE_EVENT_KEY:
        cluster_key(core, &event->key);
        break;
    case CORE_EVENT_LISTED:
        cluster_listed(core, event->listed.prefix);
        break;
    case CORE_EVENT_TXN_DONE:
        rollout_txn_done(core, event);
        break;
    case CORE_EVENT_RANGE_DONE:
        rollout_range_done(core, event);
        break;
    case CORE_EVENT_REGISTERED:
        claims_registered(core, event->registered);
        break;
    case CORE_EVENT_ELECTED:
    case CORE_EVENT_DEPOSED:
        elected_event(core, event);
        break;
    case CORE_EVENT_CLAIMED:
        claims_claimed(core, event);
        break;
    case CORE_EVENT_CLAIMS:
        claims_mine(core, event);
        break;
    case CORE_EVENT_JOB_STATES:
        claims_states(core, event);
        break;
    case CORE_EVENT_JOB_PROCESSES:
        rollout_processes(core, event);
        break;
    case CORE_EVENT_JOBS_DONE:
        if (!claims_done(core, event))
            rollout_jobs_done(core, event);
        break;
    case CORE_EVENT_JOBS_HINT:
        claims_hint(core);
        break;
    case CORE_EVENT_POINTER_DONE:
        takeover_pointer(core, event);
        break;
    default:
        break;
    }
}

void core_step(core_t *core, uint64_t now_ms, const core_event_t *event, core_actions_t *actions)
{
    core->out = actions;
    if (now_ms > core->now_ms)
        core->now_ms = now_ms;
    if (!core->begun)
        begin(core);
    if (!handle_serving(core, event))
        handle_stores(core, event);
    run_timers(core);
    session_bury(core);
    core->out = NULL;
}

uint64_t core_next_timer_ms(const core_t *core)
{
    if (!core->begun)
        return 0;
    const heap_entry_t *first = heap_first(&core->timers);
    return first ? first->major : UINT64_MAX;
}

void core_item_session_id(const char *job, uint64_t index, char id_out[CORE_ID_SIZE])
{
    char name[CORE_NAME_SIZE + 32];
    int n = snprintf(name, sizeof name, "%s/%llu", job, (unsigned long long)index);
    XXH128_hash_t h = XXH3_128bits(name, (size_t)n < sizeof name ? (size_t)n : sizeof name - 1);
    snprintf(id_out, CORE_ID_SIZE, "%016llx%016llx", (unsigned long long)h.high64,
             (unsigned long long)h.low64);
}
