/* Who is dead. A host's vanished key alone dissolves nothing: it says as much about etcd as about
 * the host. It counts only together with a broken stream to the leader of a replica that has a rank
 * there. When more than a third of the hosts vanish within 5 s, even that is not believed for a
 * while: the plans are frozen and an alarm is written. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "coordinator/core/leaders.h"
#include "coordinator/core/rollout.h"

enum {
    VANISH_WINDOW_MS = 5000,
    FREEZE_MS = 30000,
    SUSPECT_MS = 30000,
    FORMING_GONE_MS = 1000,
    RESTARTED_MS = 1500,
    FORGET_MS = 600000,
};

host_t *deaths_find(const core_t *core, const char *id)
{
    return table_get(&core->hosts, id, strlen(id));
}

static void count(const core_t *core, size_t *present_out, size_t *vanished_out)
{
    *present_out = *vanished_out = 0;
    size_t i = 0;
    for (const host_t *h; (h = table_next(&core->hosts, &i));) {
        if (!h->record)
            continue;
        *present_out += h->gone_at_ms == 0;
        *vanished_out += h->gone_at_ms && core->now_ms - h->gone_at_ms < VANISH_WINDOW_MS;
    }
}

void deaths_host_gone(core_t *core, host_t *host)
{
    if (host->gone_at_ms || !host->record)
        return;
    host->gone_at_ms = core->now_ms;
    size_t present, vanished;
    count(core, &present, &vanished);
    /* One host alone is never a mass: with two hosts one death is half of them. */
    if (vanished < 2 || vanished * 3 <= present + vanished)
        return;
    if (core->frozen_until_ms <= core->now_ms)
        core_log(core, LOG_ERROR,
                 "ALARM: %zu of %zu hosts vanished from etcd within 5 s; that is taken "
                 "as a fault of etcd: plans are frozen until they are back, at most %d s",
                 vanished, present + vanished, FREEZE_MS / 1000);
    core->frozen_until_ms = core->now_ms + FREEZE_MS;
}

void deaths_host_back(core_t *core, host_t *host)
{
    host->gone_at_ms = 0;
    size_t present, vanished;
    count(core, &present, &vanished);
    if (vanished * 3 <= present + vanished)
        core->frozen_until_ms = 0;
}

void deaths_suspect(core_t *core, const char *id)
{
    host_t *host = deaths_find(core, id);
    if (host)
        host->suspect_until_ms = core->now_ms + SUSPECT_MS;
}

void deaths_failure(core_t *core, const Shoal__Cluster__V1__FailureRecord *failure)
{
    if (*failure->other_host) {
        bad_pair_t *pair = &core->pairs[core->n_pairs < PAIRS_MAX ? core->n_pairs++ : 0];
        snprintf(pair->a, sizeof pair->a, "%s", failure->host);
        snprintf(pair->b, sizeof pair->b, "%s", failure->other_host);
        pair->until_ms = core->now_ms + SUSPECT_MS;
        core_log(core, LOG_WARN, "the link between hosts %s and %s is dead; plans avoid the pair",
                 pair->a, pair->b);
        return;
    }
    host_t *host = deaths_find(core, failure->host);
    if (!host || failure->crashed)
        return;
    /* The first death may be anybody's; the second within half a minute is the host's. */
    if (host->failed_at_ms && core->now_ms - host->failed_at_ms < SUSPECT_MS)
        host->suspect_until_ms = core->now_ms + SUSPECT_MS;
    host->failed_at_ms = core->now_ms;
}

const char *deaths_verdict(const core_t *core, const slot_t *slot)
{
    bool frozen = core->now_ms < core->frozen_until_ms;
    uint64_t planned = core->now_ms - slot->planned_at_ms;
    bool broken = slot->link_broken_at_ms != 0;
    for (size_t i = 0; i < slot->plan->n_ranks; i++) {
        const host_t *h = deaths_find(core, slot->plan->ranks[i]->host);
        bool gone = !h || !h->record || h->gone_at_ms;
        uint64_t gone_for = h && h->gone_at_ms ? core->now_ms - h->gone_at_ms : planned;
        if (gone && !frozen && (slot->active ? broken : gone_for >= FORMING_GONE_MS))
            return "a host of it is gone";
        /* Its agent registered anew after the plan was written: its ranks died with the one
         * before, unless the leader still answers. */
        if (!gone && slot->active && broken && h->create_revision > slot->epoch &&
            core->now_ms - slot->link_broken_at_ms >= RESTARTED_MS)
            return "an agent of it was started anew";
    }
    return NULL;
}

void deaths_forget_old(core_t *core)
{
    size_t i = 0;
    for (host_t *h; (h = table_next(&core->hosts, &i));) {
        if (!h->gone_at_ms || core->now_ms - h->gone_at_ms < FORGET_MS || h->draining)
            continue;
        table_remove(&core->hosts, h->id, strlen(h->id));
        shoal__cluster__v1__host_record__free_unpacked(h->record, NULL);
        free(h->digests);
        free(h);
        i = 0;
    }
}
