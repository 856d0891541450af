/* See rollout.h: when something is planned. How is plans.c, who is dead deaths.c. */
#include "coordinator/core/rollout.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "coordinator/core/leaders.h"

enum {
    TICK_MS = 250,
    SETTLE_MS = 1000,       /* for the watch to show what a transaction wrote */
    STALE_MS = 200,         /* a transaction's compares failed: knowledge is old */
    IMPOSSIBLE_MS = 1000,   /* before a plan that was not possible is tried again */
    STEADY_MS = 30000,      /* an epoch that lived so long clears the failures before it */
    FAILURE_WAIT_MAX_MS = 5000,
    REPORT_MS = 2000,       /* over the agents' formation deadline, for their own report */
};

/* ---- election, hosts ---- */

static void free_hosts(core_t *core)
{
    size_t i = 0;
    for (host_t *h; (h = table_next(&core->hosts, &i));) {
        if (h->record)
            shoal__cluster__v1__host_record__free_unpacked(h->record, NULL);
        free(h->digests);
        free(h);
    }
    table_release(&core->hosts);
}

void rollout_elected(core_t *core, bool elected)
{
    cluster_watch(core, "hosts/", false); /* no harm where there is none */
    cluster_watch(core, "drains/", false);
    if (elected) {
        cluster_watch(core, "hosts/", true);
        cluster_watch(core, "drains/", true);
    }
    core->listed_hosts = core->listed_drains = false;
    core->frozen_until_ms = 0;
    core->n_pairs = 0;
    free_hosts(core);
    releases_elected(core);
    for (size_t i = 0; i < core->n_deployments; i++)
        for (size_t k = 0; k < core->deployments[i]->n_slots; k++) {
            slot_t *slot = core->deployments[i]->slots[k];
            if (slot) {
                slot->txn_op = slot->range_op = 0;
                plans_forget_removals(slot);
                slot->plan_at_ms = 0;
            }
        }
    core_log(core, LOG_INFO, elected ? "elected: this coordinator plans" : "not elected any more");
    rollout_changed(core);
}

static host_t *find_or_make(core_t *core, const char *id)
{
    host_t *host = deaths_find(core, id);
    if (host || strlen(id) >= CORE_NAME_SIZE || core->hosts.n >= CORE_HOSTS_MAX)
        return host;
    host = MEM_NEW(host_t);
    snprintf(host->id, sizeof host->id, "%s", id);
    table_put(&core->hosts, host->id, strlen(host->id), host);
    return host;
}

void rollout_host_key(core_t *core, const core_key_t *key)
{
    if (!core->elected)
        return;
    const char *id = key->key + strlen("hosts/");
    if (!key->value) {
        host_t *gone = deaths_find(core, id);
        if (gone)
            deaths_host_gone(core, gone);
        rollout_changed(core);
        return;
    }
    Shoal__Cluster__V1__HostRecord *record =
        shoal__cluster__v1__host_record__unpack(NULL, key->value_size, key->value);
    host_t *host = record ? find_or_make(core, id) : NULL;
    if (!host) {
        core_log(core, LOG_ERROR, "hosts/%.64s is left out", id);
        if (record)
            shoal__cluster__v1__host_record__free_unpacked(record, NULL);
        return;
    }
    if (host->record)
        shoal__cluster__v1__host_record__free_unpacked(host->record, NULL);
    free(host->digests);
    host->record = record;
    host->create_revision = key->create_revision;
    host->digests = MEM_NEW_ARRAY(const char *, record->n_models + 1);
    for (size_t i = 0; i < record->n_models; i++)
        host->digests[i] = record->models[i]->digest;
    deaths_host_back(core, host);
    rollout_changed(core);
}

void rollout_drain_key(core_t *core, const core_key_t *key)
{
    if (!core->elected)
        return;
    const char *id = key->key + strlen("drains/");
    host_t *host = key->value ? find_or_make(core, id) : deaths_find(core, id);
    if (host)
        host->draining = key->value != NULL;
    rollout_changed(core);
}

void rollout_changed(core_t *core)
{
    if (core->elected)
        core_wake(core, &core->rollout_wake, TIMER_ROLLOUT, core, core->now_ms);
}

void rollout_failure(core_t *core, slot_t *slot)
{
    if (!core->elected)
        return;
    deaths_failure(core, slot->failure);
    slot->n_failures++;
    /* The first two are answered at once; a replica that dies again and again must not keep the
     * hosts busy with loading. */
    uint64_t wait =
        slot->n_failures <= 2 ? 0 : 100u << (slot->n_failures < 8 ? slot->n_failures : 8);
    slot->plan_at_ms = core->now_ms + (wait < FAILURE_WAIT_MAX_MS ? wait : FAILURE_WAIT_MAX_MS);
    rollout_changed(core);
}

/* ---- answers of etcd ---- */

void rollout_txn_done(core_t *core, const core_event_t *event)
{
    for (size_t i = 0; i < core->n_deployments; i++)
        for (size_t k = 0; k < core->deployments[i]->n_slots; k++) {
            slot_t *slot = core->deployments[i]->slots[k];
            if (!slot || !slot->txn_op || slot->txn_op != event->txn_done.op)
                continue;
            slot->txn_op = 0;
            bool written = event->txn_done.known && event->txn_done.succeeded;
            if (slot->removing && written) { /* the next part follows at once */
                slot->removing = false;
                slot->plan_at_ms = core->now_ms;
                rollout_changed(core);
                return;
            }
            if (!written)
                plans_forget_removals(slot);
            uint64_t wait = written ? SETTLE_MS : STALE_MS;
            slot->plan_at_ms = core->now_ms + (event->txn_done.known ? wait : SETTLE_MS);
            return;
        }
}

void rollout_range_done(core_t *core, const core_event_t *event)
{
    for (size_t i = 0; i < core->n_deployments; i++)
        for (size_t k = 0; k < core->deployments[i]->n_slots; k++) {
            slot_t *slot = core->deployments[i]->slots[k];
            if (!slot || !slot->range_op || slot->range_op != event->range_done.op)
                continue;
            slot->range_op = 0;
            if (!event->range_done.known || !slot->plan || slot->active)
                return;
            slot->late = true;
            for (size_t r = 0; r < slot->plan->n_ranks; r++) {
                bool reported = false;
                for (size_t n = 0; n < event->range_done.n_keys; n++) {
                    const char *end = strrchr(event->range_done.keys[n].key, '/');
                    reported = reported || (end && strtoul(end + 1, NULL, 10) == r);
                }
                if (!reported)
                    deaths_suspect(core, slot->plan->ranks[r]->host);
            }
            rollout_changed(core);
            return;
        }
}

/* ---- what to do now ---- */

static void form(core_t *core, slot_t *slot)
{
    if (!plans_form(core, slot->deployment, slot))
        slot->plan_at_ms = core->now_ms + IMPOSSIBLE_MS;
}

static bool on_draining_host(const core_t *core, const slot_t *slot)
{
    for (size_t i = 0; i < slot->plan->n_ranks; i++) {
        const host_t *h = deaths_find(core, slot->plan->ranks[i]->host);
        if (h && h->draining)
            return true;
    }
    return false;
}

static bool is_forming(const slot_t *slot)
{
    return slot->txn_op || slot->removed || (slot->plan && !slot->active);
}

/* A replica of another text identity ends only when its sequences did, or their time is over. */
static bool may_change(const core_t *core, const slot_t *slot)
{
    if (plans_same_text(slot))
        return true;
    uint64_t since = core->now_ms - slot->deployment->changed_at_ms;
    const link_t *link = slot->link;
    bool idle = link && link->state == LINK_OPEN && since >= SETTLE_MS && slot->n_running == 0 &&
                link->load.running + link->load.waiting == 0;
    return idle || since >= core->config.drain_ms;
}

static void check_forming(core_t *core, slot_t *slot)
{
    uint64_t deadline = slot->planned_at_ms + slot->plan->formation_deadline_ms + REPORT_MS;
    if (core->now_ms < deadline || slot->range_op)
        return;
    if (slot->late) {
        core_log(core, LOG_WARN, "replica %s/%u did not form in time: it is planned anew",
                 slot->deployment->name, slot->ordinal);
        form(core, slot);
        return;
    }
    char prefix[CORE_NAME_SIZE * 2];
    snprintf(prefix, sizeof prefix, "ranks/%s/%u/%llu/", slot->deployment->name, slot->ordinal,
             (unsigned long long)slot->epoch);
    core_action_t *action = core_act(core, CORE_ACTION_RANGE);
    action->op = slot->range_op = core_number(core);
    action->watch.prefix = core_copy(core, prefix);
}

/* Returns true when the slot is being changed by choice, which is done to one at a time. */
static bool consider_slot(core_t *core, slot_t *slot, bool others_change)
{
    if (slot->txn_op || core->now_ms < slot->plan_at_ms)
        return false;
    /* A formation whose old assignments are partly gone is carried through. */
    if (!slot->plan || slot->failed || slot->removed) {
        form(core, slot);
        return false;
    }
    const char *verdict = deaths_verdict(core, slot);
    if (verdict) {
        core_log(core, LOG_WARN, "replica %s/%u is planned anew: %s", slot->deployment->name,
                 slot->ordinal, verdict);
        form(core, slot);
        return false;
    }
    bool shape = plans_same_shape(slot);
    if (!slot->active) {
        if (shape)
            check_forming(core, slot);
        else
            form(core, slot); /* nothing runs there yet */
        return false;
    }
    if (core->now_ms - slot->active_at_ms >= STEADY_MS)
        slot->n_failures = 0;
    if ((shape && !on_draining_host(core, slot)) || others_change || !may_change(core, slot))
        return false;
    form(core, slot);
    return slot->txn_op != 0;
}

static void consider(core_t *core, deployment_t *d)
{
    uint32_t want = d->record ? d->record->replicas : 0;
    if (want > CORE_SLOTS_MAX)
        want = CORE_SLOTS_MAX;
    bool changing = false;
    for (size_t k = 0; k < d->n_slots && k < want; k++)
        changing = changing || (d->slots[k] && is_forming(d->slots[k]));
    for (uint32_t k = 0; k < want && d->model == MODEL_READY; k++) {
        slot_t *slot = cluster_make_slot(core, d, k);
        if (!slot)
            return;
        changing = consider_slot(core, slot, changing) || changing;
    }
    for (size_t k = want; k < d->n_slots; k++) {
        slot_t *slot = d->slots[k];
        if (slot && slot->plan && !slot->txn_op && core->now_ms >= slot->plan_at_ms)
            plans_remove(core, slot);
    }
}

static bool may_plan(const core_t *core)
{
    return core->etcd == CORE_STORE_UP && core->redis != CORE_STORE_FOREIGN &&
           core->process.revision && core->listed_deployments && core->listed_replicas &&
           core->listed_coordinators && core->listed_hosts && core->listed_drains;
}

void rollout_timer(core_t *core)
{
    if (!core->elected)
        return;
    core_wake(core, &core->rollout_wake, TIMER_ROLLOUT, core, core->now_ms + TICK_MS);
    for (size_t i = 0; i < core->n_deployments; i++)
        for (size_t k = 0; k < core->deployments[i]->n_slots; k++) {
            /* The streams to all leaders are the second witness of a host's death. */
            slot_t *slot = core->deployments[i]->slots[k];
            if (slot && slot->active && !slot->link)
                leaders_open(core, slot);
        }
    deaths_forget_old(core);
    if (!may_plan(core))
        return;
    for (size_t i = 0; i < core->n_deployments; i++)
        consider(core, core->deployments[i]);
    releases_step(core);
}

void rollout_free(core_t *core)
{
    free_hosts(core);
}
