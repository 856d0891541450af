/* A simulated coordinator's membership: its lease, its registration, its candidacy. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

typedef struct {
    uint32_t index;
    uint64_t life;
} turn_t;

static void judge_election(sim_t *sim, uint32_t index)
{
    sim_coordinator_t *c = &sim->coordinators[index];
    const sim_key_t *lowest = NULL;
    for (size_t i = 0; i < sim->etcd.n_keys; i++) {
        const sim_key_t *k = &sim->etcd.keys[i];
        if (strncmp(k->key, "election/", 9) == 0 && (!lowest || k->create < lowest->create))
            lowest = k;
    }
    bool ours = lowest && c->lease && lowest->lease == c->lease;
    if (ours == c->elected)
        return;
    c->elected = ours;
    core_event_t event = {.kind = ours ? CORE_EVENT_ELECTED : CORE_EVENT_DEPOSED};
    if (ours) {
        event.elected.key = lowest->key;
        event.elected.create_revision = lowest->create;
    }
    sim_trace(sim, "%s is %s", c->id, ours ? "elected" : "deposed");
    coordinator_event(sim, index, c->life, &event);
}

static void on_election_key(sim_t *sim, uint32_t index, const core_key_t *key)
{
    (void)key;
    judge_election(sim, index);
}

static void enter(sim_t *sim, uint32_t index)
{
    sim_coordinator_t *c = &sim->coordinators[index];
    c->lease = etcd_lease(sim);
    Shoal__Cluster__V1__CoordinatorRecord r = SHOAL__CLUSTER__V1__COORDINATOR_RECORD__INIT;
    r.id = c->id;
    r.endpoint = c->id;
    uint8_t bytes[64];
    size_t n = shoal__cluster__v1__coordinator_record__pack(&r, bytes);
    char key[64];
    snprintf(key, sizeof key, "coordinators/%s", c->id);
    etcd_put(sim, key, bytes, n, c->lease);
    const sim_key_t *put = etcd_get(sim, key);
    core_event_t event = {.kind = CORE_EVENT_REGISTERED};
    event.registered.incarnation = sim->incarnation;
    event.registered.revision = sim->mutant == CORE_MUTANT_CREATE_REVISION ? put->create : put->mod;
    coordinator_event(sim, index, c->life, &event);
    snprintf(key, sizeof key, "election/coordinator/%llu", (unsigned long long)c->lease);
    etcd_put(sim, key, &index, sizeof index, c->lease);
}

static void beat(sim_t *sim, void *argument)
{
    turn_t *t = argument;
    if (coordinator_put_off(sim, t->index, beat, t, free))
        return;
    sim_coordinator_t *c = &sim->coordinators[t->index];
    if (!c->alive || c->life != t->life) {
        free(t);
        return;
    }
    if (sim->etcd.up && !sim->etcd.foreign && !etcd_renew(sim, c->lease)) {
        if (c->elected) {
            core_event_t event = {.kind = CORE_EVENT_DEPOSED};
            c->elected = false;
            coordinator_event(sim, t->index, t->life, &event);
        }
        enter(sim, t->index);
    }
    sim_after(sim, 900 + sim_below(sim, 200), beat, t);
}

void member_start(sim_t *sim, uint32_t index)
{
    turn_t *t = MEM_NEW(turn_t);
    *t = (turn_t){index, sim->coordinators[index].life};
    etcd_watch(sim, (sim_party_t){index, t->life}, "election/", on_election_key, NULL);
    sim_after(sim, 1 + sim_below(sim, 100), beat, t);
}
