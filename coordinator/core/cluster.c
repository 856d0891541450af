/* What stands in etcd, as this coordinator knows it: deployments, slots with their plans and active
 * records, coordinators. Values are unpacked and checked here; a value that is not what it should
 * be is left out with a log line, because one bad key must not stop the rest. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "coordinator/core/dispatch.h"
#include "coordinator/core/leaders.h"
#include "coordinator/core/rollout.h"
#include "coordinator/core/state.h"

enum { MODEL_RETRY_MS = 5000 };

#define UNPACK(type, key) type##__unpack(NULL, (key)->value_size, (key)->value)

void cluster_watch(core_t *core, const char *prefix, bool on)
{
    core_action_t *action = core_act(core, on ? CORE_ACTION_WATCH : CORE_ACTION_UNWATCH);
    action->watch.prefix = core_copy(core, prefix);
}

deployment_t *cluster_find(const core_t *core, const char *name)
{
    return table_get(&core->by_name, name, strlen(name));
}

slot_t *cluster_slot(const deployment_t *deployment, uint32_t ordinal)
{
    return ordinal < deployment->n_slots ? deployment->slots[ordinal] : NULL;
}

static deployment_t *find_or_make(core_t *core, const char *name)
{
    deployment_t *deployment = cluster_find(core, name);
    if (deployment)
        return deployment;
    if (core->n_deployments == CORE_DEPLOYMENTS_MAX || strlen(name) >= CORE_NAME_SIZE) {
        core_log(core, LOG_ERROR,
                 "deployment \"%.64s\" is left out: at most %d, with names below %d bytes", name,
                 CORE_DEPLOYMENTS_MAX, CORE_NAME_SIZE);
        return NULL;
    }
    deployment = MEM_NEW(deployment_t);
    snprintf(deployment->name, sizeof deployment->name, "%s", name);
    deployment->ring = ring_new();
    deployment->item_tokens = ITEM_TOKENS;
    core->deployments[core->n_deployments++] = deployment;
    table_put(&core->by_name, deployment->name, strlen(deployment->name), deployment);
    return deployment;
}

slot_t *cluster_make_slot(core_t *core, deployment_t *deployment, uint32_t ordinal)
{
    slot_t *slot = cluster_slot(deployment, ordinal);
    if (slot)
        return slot;
    if (ordinal >= CORE_SLOTS_MAX || core->n_slots == CORE_SLOTS_MAX) {
        core_log(core, LOG_ERROR, "replica %s/%u is left out: at most %d", deployment->name,
                 ordinal, CORE_SLOTS_MAX);
        return NULL;
    }
    size_t old = deployment->slots_capacity;
    MEM_GROW(deployment->slots, deployment->slots_capacity, (size_t)ordinal + 1);
    for (size_t i = old; i < deployment->slots_capacity; i++)
        deployment->slots[i] = NULL;
    if (deployment->n_slots <= ordinal)
        deployment->n_slots = (size_t)ordinal + 1;
    slot = MEM_NEW(slot_t);
    slot->deployment = deployment;
    slot->ordinal = ordinal;
    deployment->slots[ordinal] = slot;
    core->n_slots++;
    return slot;
}

void cluster_load_models(core_t *core)
{
    for (size_t i = 0; i < core->n_deployments; i++) {
        deployment_t *d = core->deployments[i];
        if (!d->record || d->model == MODEL_READY || d->model == MODEL_LOADING)
            continue;
        if (d->model == MODEL_FAILED && core->now_ms < d->model_retry_at_ms)
            continue;
        d->model = MODEL_LOADING;
        free(d->digest);
        free(d->quantize);
        d->digest = mem_strdup(d->record->model_digest);
        d->quantize = mem_strdup(d->record->quantize);
        core_action_t *action = core_act(core, CORE_ACTION_LOAD_MODEL);
        action->load_model.deployment = core_copy(core, d->name);
        action->load_model.model_name = core_copy(core, d->record->model_name);
        action->load_model.path = core_copy(core, d->record->model_path);
        action->load_model.digest = core_copy(core, d->record->model_digest);
        action->load_model.quantize = core_copy(core, d->record->quantize);
    }
}

void cluster_model(core_t *core, const core_event_t *event)
{
    deployment_t *d = cluster_find(core, event->model.deployment);
    if (!d || d->model != MODEL_LOADING || !d->digest ||
        strcmp(d->digest, event->model.digest) != 0 ||
        strcmp(d->quantize, text_or_empty(event->model.quantize)) != 0)
        return;
    if (!event->model.tokenizer) {
        d->model = MODEL_FAILED;
        d->model_retry_at_ms = core->now_ms + MODEL_RETRY_MS;
        free(d->message);
        d->message = mem_strdup(text_or_empty(event->model.text));
        core_log(core, LOG_ERROR, "the model of deployment %s cannot be read: %s", d->name,
                 d->message);
        return;
    }
    d->model = MODEL_READY;
    d->tokenizer = event->model.tokenizer;
    d->sizes = event->model.sizes;
    d->claim_at_ms = 0;
    core_wake(core, &core->jobs_wake, TIMER_JOBS, core, core->now_ms);
    rollout_changed(core);
}

static void deployment_key(core_t *core, const char *name, const core_key_t *key)
{
    deployment_t *d = strchr(name, '/') ? NULL : find_or_make(core, name);
    if (!d)
        return;
    Shoal__Cluster__V1__DeploymentRecord *record = NULL;
    if (key->value) {
        record = UNPACK(shoal__cluster__v1__deployment_record, key);
        if (!record) {
            core_log(core, LOG_ERROR, "deployments/%s is no DeploymentRecord", name);
            return;
        }
    }
    if (d->record)
        shoal__cluster__v1__deployment_record__free_unpacked(d->record, NULL);
    d->record = record;
    d->listing = core->listing;
    d->mod_revision = key->mod_revision;
    d->changed_at_ms = core->now_ms;
    if (record && (!d->digest || strcmp(d->digest, record->model_digest) != 0 ||
                   strcmp(d->quantize, record->quantize) != 0))
        d->model = MODEL_NONE;
    cluster_load_models(core);
    core_wake(core, &core->jobs_wake, TIMER_JOBS, core, core->now_ms);
    rollout_changed(core);
}

/* Puts the active record in force when it is of the plan's epoch. */
static void match_active(core_t *core, slot_t *slot)
{
    Shoal__Cluster__V1__ActiveRecord *seen = slot->active_seen;
    bool matches = seen && slot->plan && seen->epoch == slot->epoch && !slot->failed;
    if (matches == (slot->active != NULL) && slot->active == (matches ? seen : NULL))
        return;
    slot->active = matches ? seen : NULL;
    if (matches) {
        slot->active_at_ms = core->now_ms;
        dispatch_slot_active(core, slot);
    } else {
        dispatch_slot_lost(core, slot);
    }
    rollout_changed(core);
}

static void plan_key(core_t *core, slot_t *slot, const core_key_t *key)
{
    Shoal__Cluster__V1__ReplicaPlan *plan = NULL;
    if (key->value && !(plan = UNPACK(shoal__cluster__v1__replica_plan, key))) {
        core_log(core, LOG_ERROR, "%s is no ReplicaPlan", key->key);
        return;
    }
    slot->plan_listing = core->listing;
    if (plan && slot->plan && key->mod_revision == slot->epoch) { /* a re-list */
        shoal__cluster__v1__replica_plan__free_unpacked(plan, NULL);
        return;
    }
    if (slot->plan)
        shoal__cluster__v1__replica_plan__free_unpacked(slot->plan, NULL);
    slot->plan = plan;
    slot->epoch = plan ? key->mod_revision : 0;
    slot->planned_at_ms = core->now_ms;
    slot->late = false;
    plans_forget_removals(slot);
    slot->failed = plan && slot->failure && slot->failure->epoch == slot->epoch;
    if (plan)
        ring_add(slot->deployment->ring, slot->ordinal);
    else
        ring_remove(slot->deployment->ring, slot->ordinal);
    /* Another epoch: the one before serves no more, whatever its leader still sends. */
    slot->active = NULL;
    dispatch_slot_lost(core, slot);
    match_active(core, slot);
    rollout_changed(core);
}

static void active_key(core_t *core, slot_t *slot, const core_key_t *key)
{
    Shoal__Cluster__V1__ActiveRecord *active = NULL;
    if (key->value && !(active = UNPACK(shoal__cluster__v1__active_record, key))) {
        core_log(core, LOG_ERROR, "%s is no ActiveRecord", key->key);
        return;
    }
    slot->active_listing = core->listing;
    Shoal__Cluster__V1__ActiveRecord *old = slot->active_seen;
    if (active && old && slot->active == old && old->epoch == active->epoch &&
        strcmp(old->leader, active->leader) == 0) { /* a re-list */
        shoal__cluster__v1__active_record__free_unpacked(active, NULL);
        return;
    }
    if (slot->active) {
        slot->active = NULL;
        dispatch_slot_lost(core, slot);
    }
    slot->active_seen = active;
    if (old)
        shoal__cluster__v1__active_record__free_unpacked(old, NULL);
    match_active(core, slot);
    rollout_changed(core);
}

static void failed_key(core_t *core, slot_t *slot, const core_key_t *key)
{
    if (!key->value)
        return;
    Shoal__Cluster__V1__FailureRecord *failure = UNPACK(shoal__cluster__v1__failure_record, key);
    if (!failure) {
        core_log(core, LOG_ERROR, "%s is no FailureRecord", key->key);
        return;
    }
    bool known = slot->failure && slot->failure->epoch == failure->epoch;
    if (slot->failure)
        shoal__cluster__v1__failure_record__free_unpacked(slot->failure, NULL);
    slot->failure = failure;
    if (known)
        return;
    bool current = slot->plan && failure->epoch == slot->epoch;
    if (current) {
        slot->failed = true;
        core_log(core, LOG_WARN, "replica %s/%u, epoch %llu: %s", slot->deployment->name,
                 slot->ordinal, (unsigned long long)failure->epoch, failure->message);
    }
    /* Suspects first: dispatch_slot_lost then finds the record in place. */
    dispatch_failure(core, slot);
    match_active(core, slot);
    if (current)
        rollout_failure(core, slot);
}

/* Nothing is decided by it, and no slot is made for it: what it speaks of may be gone. */
static void loading_key(core_t *core, slot_t *slot, const char *host, const core_key_t *key)
{
    size_t i = 0;
    if (!slot || strlen(host) >= CORE_NAME_SIZE)
        return;
    while (i < slot->n_loading && strcmp(slot->loading[i].host, host) != 0)
        i++;
    if (!key->value) {
        if (i < slot->n_loading)
            slot->loading[i] = slot->loading[--slot->n_loading];
        return;
    }
    Shoal__Cluster__V1__LoadingRecord *record = UNPACK(shoal__cluster__v1__loading_record, key);
    if (!record) {
        core_log(core, LOG_ERROR, "%s is no LoadingRecord", key->key);
        return;
    }
    if (i == slot->n_loading) {
        MEM_GROW(slot->loading, slot->loading_capacity, slot->n_loading + 1);
        slot->n_loading++;
    }
    loading_t *loading = &slot->loading[i];
    snprintf(loading->host, sizeof loading->host, "%s", host);
    loading->epoch = record->epoch;
    loading->percent = record->percent;
    loading->listing = core->listing;
    shoal__cluster__v1__loading_record__free_unpacked(record, NULL);
}

static void replica_key(core_t *core, const char *rest, const core_key_t *key)
{
    char name[CORE_NAME_SIZE];
    unsigned ordinal;
    int end = 0;
    if (sscanf(rest, "%128[^/]/%u/%n", name, &ordinal, &end) != 2 || end == 0)
        return;
    const char *what = rest + end;
    if (strncmp(what, "weights/", 8) == 0) {
        const deployment_t *of = cluster_find(core, name);
        loading_key(core, of ? cluster_slot(of, ordinal) : NULL, what + 8, key);
        return;
    }
    deployment_t *d = key->value ? find_or_make(core, name) : cluster_find(core, name);
    if (!d)
        return;
    slot_t *slot = key->value ? cluster_make_slot(core, d, ordinal) : cluster_slot(d, ordinal);
    if (!slot)
        return;
    if (strcmp(what, "plan") == 0)
        plan_key(core, slot, key);
    else if (strcmp(what, "active") == 0)
        active_key(core, slot, key);
    else if (strcmp(what, "failed") == 0)
        failed_key(core, slot, key);
}

static void coordinator_key(core_t *core, const char *id, const core_key_t *key)
{
    size_t i = 0;
    while (i < core->n_coordinators && strcmp(core->coordinators[i].id, id) != 0)
        i++;
    /* The mod-revision, not the create-revision: a coordinator that restarts before its lease ran
     * out writes over its own key, which keeps its create-revision. */
    uint64_t process = core->config.mutant == CORE_MUTANT_CREATE_REVISION ? key->create_revision
                                                                          : key->mod_revision;
    jobs_process_t old = {core->process.incarnation, 0};
    if (i < core->n_coordinators)
        old.revision = core->coordinators[i].process;
    if (!key->value) {
        if (i == core->n_coordinators)
            return;
        free(core->coordinators[i].endpoint);
        core->coordinators[i] = core->coordinators[--core->n_coordinators];
        rollout_process_gone(core, old);
        return;
    }
    Shoal__Cluster__V1__CoordinatorRecord *record =
        UNPACK(shoal__cluster__v1__coordinator_record, key);
    if (!record || strlen(id) >= CORE_NAME_SIZE || i == CORE_COORDINATORS_MAX) {
        core_log(core, LOG_ERROR, "coordinators/%.64s is left out", id);
        if (record)
            shoal__cluster__v1__coordinator_record__free_unpacked(record, NULL);
        return;
    }
    if (i == core->n_coordinators)
        core->coordinators[core->n_coordinators++] = (coordinator_t){.process = process};
    coordinator_t *c = &core->coordinators[i];
    snprintf(c->id, sizeof c->id, "%s", id);
    free(c->endpoint);
    c->endpoint = mem_strdup(record->endpoint);
    c->process = process;
    c->listing = core->listing;
    shoal__cluster__v1__coordinator_record__free_unpacked(record, NULL);
    if (old.revision && old.revision != process)
        rollout_process_gone(core, old);
}

static const char *after(const char *key, const char *prefix)
{
    size_t n = strlen(prefix);
    return strncmp(key, prefix, n) == 0 ? key + n : NULL;
}

void cluster_key(core_t *core, const core_key_t *key)
{
    const char *rest;
    /* What an emptied or foreign etcd says is not taken for the end of what runs. */
    if (core->etcd == CORE_STORE_FOREIGN)
        return;
    if ((rest = after(key->key, "deployments/")))
        deployment_key(core, rest, key);
    else if ((rest = after(key->key, "replicas/")))
        replica_key(core, rest, key);
    else if ((rest = after(key->key, "coordinators/")))
        coordinator_key(core, rest, key);
    else if (after(key->key, "hosts/"))
        rollout_host_key(core, key);
    else if (after(key->key, "drains/"))
        rollout_drain_key(core, key);
}

static void sweep_replicas(core_t *core, deployment_t *d)
{
    for (size_t k = 0; k < d->n_slots; k++) {
        slot_t *slot = d->slots[k];
        core_key_t gone = {.key = "replicas/"};
        if (slot && slot->active_seen && slot->active_listing != core->listing)
            active_key(core, slot, &gone);
        if (slot && slot->plan && slot->plan_listing != core->listing)
            plan_key(core, slot, &gone);
        for (size_t i = slot ? slot->n_loading : 0; i > 0; i--) {
            if (slot->loading[i - 1].listing != core->listing)
                slot->loading[i - 1] = slot->loading[--slot->n_loading];
        }
    }
}

/* A new watch knows nothing of the one before: what it did not list is gone. */
static void sweep(core_t *core, const char *prefix)
{
    for (size_t i = 0; i < core->n_deployments; i++) {
        deployment_t *d = core->deployments[i];
        core_key_t gone = {.key = "deployments/"};
        if (strcmp(prefix, "replicas/") == 0)
            sweep_replicas(core, d);
        else if (strcmp(prefix, "deployments/") == 0 && d->record && d->listing != core->listing)
            deployment_key(core, d->name, &gone);
    }
    for (size_t i = core->n_coordinators; i > 0 && strcmp(prefix, "coordinators/") == 0; i--) {
        char id[CORE_NAME_SIZE];
        snprintf(id, sizeof id, "%s", core->coordinators[i - 1].id);
        core_key_t gone = {.key = "coordinators/"};
        if (core->coordinators[i - 1].listing != core->listing)
            coordinator_key(core, id, &gone);
    }
}

void cluster_watch_again(core_t *core)
{
    static const char *const prefixes[] = {"deployments/", "replicas/", "coordinators/"};
    core->listing++;
    core->listed_deployments = core->listed_replicas = core->listed_coordinators = false;
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        cluster_watch(core, prefixes[i], false);
        cluster_watch(core, prefixes[i], true);
    }
}

void cluster_listed(core_t *core, const char *prefix)
{
    if (core->etcd == CORE_STORE_FOREIGN)
        return;
    sweep(core, prefix);
    if (strcmp(prefix, "deployments/") == 0)
        core->listed_deployments = true;
    else if (strcmp(prefix, "replicas/") == 0)
        core->listed_replicas = true;
    else if (strcmp(prefix, "coordinators/") == 0)
        core->listed_coordinators = true;
    else if (strcmp(prefix, "hosts/") == 0)
        core->listed_hosts = true;
    else if (strcmp(prefix, "drains/") == 0)
        core->listed_drains = true;
    rollout_changed(core);
}

static void free_slot(slot_t *slot)
{
    free(slot->loading);
    if (slot->plan)
        shoal__cluster__v1__replica_plan__free_unpacked(slot->plan, NULL);
    if (slot->active_seen)
        shoal__cluster__v1__active_record__free_unpacked(slot->active_seen, NULL);
    if (slot->failure)
        shoal__cluster__v1__failure_record__free_unpacked(slot->failure, NULL);
    plans_forget_removals(slot);
    free(slot);
}

void cluster_free(core_t *core)
{
    table_release(&core->by_name);
    for (size_t i = 0; i < core->n_deployments; i++) {
        deployment_t *d = core->deployments[i];
        for (size_t k = 0; k < d->n_slots; k++)
            if (d->slots[k]) {
                leaders_close(core, d->slots[k]);
                free_slot(d->slots[k]);
            }
        dispatch_free(d);
        if (d->record)
            shoal__cluster__v1__deployment_record__free_unpacked(d->record, NULL);
        free(d->slots);
        free(d->digest);
        free(d->quantize);
        free(d->message);
        ring_free(d->ring);
        free(d);
    }
    for (size_t i = 0; i < core->n_coordinators; i++)
        free(core->coordinators[i].endpoint);
}
