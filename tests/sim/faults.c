/* What goes wrong, drawn from the seed: each kind of fault that the seed has happens a few times
 * before SIM_FAULTS_END_MS. */
#include <stdio.h>
#include <stdlib.h>

#include "tests/sim/sim.h"

static void scale(sim_t *sim)
{
    if (sim_chance(sim, 300)) {
        char key[32];
        uint32_t host = (uint32_t)sim_below(sim, SIM_HOSTS);
        snprintf(key, sizeof key, "drains/h%u", host);
        sim->hosts[host].draining = !sim->hosts[host].draining;
        sim_trace(sim, "h%u %s", host, sim->hosts[host].draining ? "drains" : "drains no more");
        if (!sim->etcd.up || sim->etcd.foreign)
            return;
        if (sim->hosts[host].draining)
            etcd_put(sim, key, "", 0, 0);
        else
            etcd_delete(sim, key);
        return;
    }
    sim->tp = 1 + (uint32_t)sim_below(sim, 2);
    sim->stages = 1 + (uint32_t)sim_below(sim, 3);
    sim->replicas = 1 + (uint32_t)sim_below(sim, SIM_SLOTS);
    sim_trace(sim, "scaled to %u replicas of tp %u x stages %u", sim->replicas, sim->tp,
              sim->stages);
    if (sim->etcd.up && !sim->etcd.foreign)
        sim_deploy(sim);
}

static void happen(sim_t *sim, uint32_t fault)
{
    uint32_t host = (uint32_t)sim_below(sim, SIM_HOSTS);
    uint32_t coordinator = (uint32_t)sim_below(sim, SIM_COORDINATORS);
    sim_leader_t *leader = leader_of(sim, (uint32_t)sim_below(sim, SIM_SLOTS));
    sim_coordinator_t *c = &sim->coordinators[coordinator];
    switch (fault) {
    case FAULT_HOST:
        host_crash(sim, host, 200 + sim_below(sim, 8000));
        break;
    case FAULT_RANK:
        if (leader)
            host_rank_failed(sim, leader, false, NULL, 0);
        break;
    case FAULT_COORDINATOR:
        coordinator_crash(sim, coordinator,
                          sim_chance(sim, 500) ? 100 : 500 + sim_below(sim, 15000));
        break;
    case FAULT_PAUSE:
        if (c->paused_until_ms > sim->now_ms)
            break; /* what was put off keeps its order only up to one time */
        sim_trace(sim, "%s stands still", c->id);
        c->paused_until_ms = sim->now_ms + 300 + sim_below(sim, 8000);
        sim->disturbed = true;
        break;
    case FAULT_ETCD:
        etcd_crash(sim, 200 + sim_below(sim, 6000), false);
        break;
    case FAULT_LEASES:
        sim_trace(sim, "all leases expire");
        if (sim->etcd.up && !sim->etcd.foreign)
            etcd_expire_all(sim);
        break;
    case FAULT_REDIS:
        redis_crash(sim, 200 + sim_below(sim, 6000), false);
        break;
    case FAULT_LINK:
        if (c->alive && c->n_links && c->paused_until_ms <= sim->now_ms) {
            uint64_t link = c->links[sim_below(sim, c->n_links)].link;
            core_event_t event = {.kind = CORE_EVENT_LINK_BROKEN};
            event.link_broken.link = link;
            event.link_broken.text = "cut";
            sim_trace(sim, "a link of %s is cut", c->id);
            leader_stream_broken(sim, coordinator, c->life, link);
            coordinator_event(sim, coordinator, c->life, &event);
        }
        break;
    case FAULT_CLIENT:
        for (uint32_t i = 0; i < SIM_CLIENTS; i++)
            if (sim_chance(sim, 400))
                client_disconnect(sim, i);
        break;
    case FAULT_EMPTY_ETCD:
        sim->disturbed = true;
        etcd_crash(sim, 200 + sim_below(sim, 2000), true);
        break;
    case FAULT_EMPTY_REDIS:
        redis_crash(sim, 200 + sim_below(sim, 2000), true);
        break;
    case FAULT_SCALE:
        scale(sim);
        break;
    case FAULT_CANCEL:
        redis_cancel_job(sim, 1 + (uint32_t)sim_below(sim, SIM_JOBS - 1));
        break;
    default:
        break;
    }
}

static void happen_at(sim_t *sim, void *argument)
{
    uint32_t *fault = argument;
    happen(sim, *fault);
    free(fault);
}

/* The end of all faults: hosts drain no more, and the deployment is as the operator wants it. */
static void calm(sim_t *sim, void *argument)
{
    (void)argument;
    if (!sim->etcd.up || sim->etcd.foreign) {
        sim_after(sim, 500, calm, NULL);
        return;
    }
    sim_trace(sim, "nothing fails any more");
    for (uint32_t h = 0; h < SIM_HOSTS; h++) {
        char key[32];
        snprintf(key, sizeof key, "drains/h%u", h);
        etcd_delete(sim, key);
    }
    sim_deploy(sim);
}

void faults_start(sim_t *sim)
{
    for (unsigned bit = 0; bit < FAULT_BITS; bit++) {
        if (!(sim->faults & (1u << bit)))
            continue;
        bool rare = (1u << bit) & (FAULT_EMPTY_ETCD | FAULT_EMPTY_REDIS | FAULT_CANCEL);
        uint64_t times = rare ? 1 : 1 + sim_below(sim, (1u << bit) == FAULT_CLIENT ? 30 : 5);
        for (uint64_t i = 0; i < times; i++) {
            uint32_t *fault = MEM_NEW(uint32_t);
            *fault = 1u << bit;
            sim_after(sim, 3000 + sim_below(sim, SIM_FAULTS_END_MS - 4000), happen_at, fault);
        }
    }
    sim_after(sim, SIM_FAULTS_END_MS, calm, NULL);
}
