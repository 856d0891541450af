/* Hosts: a small model of what an agent does, after docs/design.md "Formation" and "Agent and
 * ranks". It takes assignments, loads for a while, writes its rank records, and when every host of
 * the plan has prepared this epoch, the leader's host makes the leader and writes `active`, if the
 * plan still stands. A host without etcd, or with an emptied one, serves on. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

static sim_party_t party_of(const sim_t *sim, uint32_t host)
{
    return (sim_party_t){SIM_COORDINATORS + host, sim->hosts[host].life};
}

typedef struct {
    uint32_t host, ordinal;
    uint64_t life, epoch;
} task_t;

static task_t *task(const sim_t *sim, uint32_t host, uint32_t ordinal, uint64_t epoch)
{
    task_t *t = MEM_NEW(task_t);
    *t = (task_t){host, ordinal, sim->hosts[host].life, epoch};
    return t;
}

/* The assignment that a task is about, while it still is the newest of a living agent. */
static sim_assignment_t *valid(sim_t *sim, const task_t *t)
{
    sim_host_t *h = &sim->hosts[t->host];
    sim_assignment_t *a = &h->assignments[t->ordinal];
    return h->alive && h->life == t->life && a->used && a->epoch == t->epoch ? a : NULL;
}

static bool etcd_usable(const sim_t *sim)
{
    return sim->etcd.up && !sim->etcd.foreign;
}

static uint32_t host_number(const char *id)
{
    return (uint32_t)strtoul(id + 1, NULL, 10);
}

/* ---- active ---- */

static void write_active(sim_t *sim, void *argument)
{
    task_t *t = argument;
    const sim_assignment_t *a = valid(sim, t);
    const sim_leader_t *leader = leader_of(sim, t->ordinal);
    if (!a || !leader || leader_epoch(leader) != t->epoch) {
        free(t);
        return;
    }
    if (!etcd_usable(sim)) {
        sim_after(sim, 300, write_active, t);
        return;
    }
    char plan_key[64], key[64], endpoint[16];
    snprintf(plan_key, sizeof plan_key, "replicas/toy/%u/plan", t->ordinal);
    core_compare_t stands = {plan_key, false, t->epoch};
    if (etcd_compares_hold(sim, &stands, 1)) {
        Shoal__Cluster__V1__ActiveRecord r = SHOAL__CLUSTER__V1__ACTIVE_RECORD__INIT;
        /* Ports are used again, so an old endpoint may find a new epoch. */
        snprintf(endpoint, sizeof endpoint, "h%u:%u", t->host, t->ordinal);
        char identity[] = "toy-identity";
        r.epoch = t->epoch;
        r.leader = endpoint;
        r.text_identity = identity;
        r.kv_tokens = 1024;
        r.tp = a->plan->tp;
        r.stages = a->plan->stages;
        uint8_t bytes[256];
        size_t n = shoal__cluster__v1__active_record__pack(&r, bytes);
        snprintf(key, sizeof key, "replicas/toy/%u/active", t->ordinal);
        etcd_put(sim, key, bytes, n, 0);
        sim_trace(sim, "replica %u is active in epoch %llu on %s", t->ordinal,
                  (unsigned long long)t->epoch, endpoint);
    }
    free(t);
}

static void maybe_go(sim_t *sim, uint32_t ordinal, uint64_t epoch, uint32_t lead)
{
    const sim_assignment_t *a = &sim->hosts[lead].assignments[ordinal];
    if (!sim->hosts[lead].alive || !a->used || a->epoch != epoch || !a->prepared)
        return;
    for (size_t r = 0; r < a->plan->n_ranks; r++) {
        const sim_host_t *h = &sim->hosts[host_number(a->plan->ranks[r]->host)];
        const sim_assignment_t *other = &h->assignments[ordinal];
        if (!h->alive || !other->used || other->epoch != epoch || !other->prepared)
            return;
    }
    sim_leader_t *old = leader_of(sim, ordinal);
    if (old && leader_epoch(old) >= epoch && leader_host(old) == lead)
        return;
    if (old && leader_host(old) == lead)
        leader_kill(sim, old);
    leader_make(sim, lead, ordinal, epoch, a->plan->stages);
    sim_after(sim, 1 + sim_below(sim, 30), write_active, task(sim, lead, ordinal, epoch));
}

static void prepared(sim_t *sim, void *argument)
{
    task_t *t = argument;
    sim_assignment_t *a = valid(sim, t);
    if (a) {
        a->prepared = true;
        for (size_t r = 0; etcd_usable(sim) && r < a->plan->n_ranks; r++) {
            char key[96];
            snprintf(key, sizeof key, "ranks/toy/%u/%llu/%zu", t->ordinal,
                     (unsigned long long)t->epoch, r);
            if (host_number(a->plan->ranks[r]->host) == t->host)
                etcd_put(sim, key, "", 0, 0);
        }
        maybe_go(sim, t->ordinal, t->epoch, host_number(a->plan->ranks[0]->host));
    }
    free(t);
}

/* ---- assignments ---- */

static void stop(sim_t *sim, uint32_t host, uint32_t ordinal)
{
    sim_assignment_t *a = &sim->hosts[host].assignments[ordinal];
    sim_leader_t *leader = leader_of(sim, ordinal);
    if (leader && leader_host(leader) == host)
        leader_kill(sim, leader);
    if (a->plan)
        shoal__cluster__v1__replica_plan__free_unpacked(a->plan, NULL);
    memset(a, 0, sizeof *a);
}

static void on_key(sim_t *sim, uint32_t index, const core_key_t *key)
{
    uint32_t host = index - SIM_COORDINATORS;
    unsigned ordinal;
    const char *last = strrchr(key->key, '/');
    if (sim->etcd.foreign || !last || sscanf(last + 1, "%u", &ordinal) != 1 || ordinal >= SIM_SLOTS)
        return;
    sim_assignment_t *a = &sim->hosts[host].assignments[ordinal];
    if (!key->value) {
        stop(sim, host, ordinal);
        return;
    }
    if (a->used && a->epoch == key->mod_revision)
        return;
    stop(sim, host, ordinal);
    a->plan = shoal__cluster__v1__replica_plan__unpack(NULL, key->value_size, key->value);
    if (!a->plan)
        abort();
    a->used = true;
    a->epoch = key->mod_revision;
    sim_after(sim, 50 + sim_below(sim, 600), prepared, task(sim, host, ordinal, a->epoch));
}

/* ---- failures ---- */

typedef struct {
    uint32_t ordinal, reporter;
    uint64_t life, epoch;
    bool crashed, untold;
    char host[8];
    char sessions[32][CORE_ID_SIZE];
    size_t n;
} report_t;

static void write_failure(sim_t *sim, void *argument)
{
    report_t *r = argument;
    bool lost = !sim->hosts[r->reporter].alive || sim->hosts[r->reporter].life != r->life;
    if (r->crashed && !r->untold && (lost || !etcd_usable(sim))) {
        r->untold = true;
        sim->n_deaths_untold++;
    }
    if (lost) {
        free(r);
        return;
    }
    if (!etcd_usable(sim)) {
        sim_after(sim, 300, write_failure, r);
        return;
    }
    Shoal__Cluster__V1__FailureRecord f = SHOAL__CLUSTER__V1__FAILURE_RECORD__INIT;
    char message[] = "a rank died";
    char *list[32];
    for (size_t i = 0; i < r->n; i++)
        list[i] = r->sessions[i];
    f.epoch = r->epoch;
    f.host = r->host;
    f.crashed = r->crashed;
    f.message = message;
    f.sessions = list;
    f.n_sessions = r->n;
    uint8_t bytes[2048];
    size_t n = shoal__cluster__v1__failure_record__pack(&f, bytes);
    char key[64];
    snprintf(key, sizeof key, "replicas/toy/%u/failed", r->ordinal);
    etcd_put(sim, key, bytes, n, 0);
    free(r);
}

void host_report_failure(sim_t *sim, uint32_t reporter, uint32_t ordinal, uint64_t epoch,
                         const char *lost_host, bool crashed, const char *const *sessions, size_t n)
{
    report_t *r = MEM_NEW(report_t);
    r->ordinal = ordinal;
    r->reporter = reporter;
    r->life = sim->hosts[reporter].life;
    r->epoch = epoch;
    r->crashed = crashed;
    snprintf(r->host, sizeof r->host, "%s", lost_host);
    for (r->n = 0; r->n < n && r->n < 32; r->n++)
        snprintf(r->sessions[r->n], CORE_ID_SIZE, "%s", sessions[r->n]);
    sim_after(sim, 2 + sim_below(sim, 40), write_failure, r);
}

void host_rank_failed(sim_t *sim, sim_leader_t *leader, bool crashed, const char *const *sessions,
                      size_t n)
{
    uint32_t host = leader_host(leader), ordinal = leader_ordinal(leader);
    uint64_t epoch = leader_epoch(leader);
    sim_trace(sim, "a rank of replica %u, epoch %llu, on h%u dies%s", ordinal,
              (unsigned long long)epoch, host, crashed ? " by its own doing" : "");
    leader_kill(sim, leader);
    if (sim->hosts[host].assignments[ordinal].epoch == epoch)
        sim->hosts[host].assignments[ordinal].prepared = false;
    host_report_failure(sim, host, ordinal, epoch, sim->hosts[host].id, crashed, sessions, n);
}

static void start_again(sim_t *sim, void *argument)
{
    uint32_t *host = argument;
    host_start(sim, *host);
    free(host);
}

void host_crash(sim_t *sim, uint32_t host, uint64_t down_ms)
{
    sim_host_t *h = &sim->hosts[host];
    if (!h->alive)
        return;
    sim_trace(sim, "host h%u dies for %llu ms", host, (unsigned long long)down_ms);
    h->alive = false;
    for (uint32_t ordinal = 0; ordinal < SIM_SLOTS; ordinal++) {
        const sim_assignment_t *a = &h->assignments[ordinal];
        sim_leader_t *leader = leader_of(sim, ordinal);
        uint64_t epoch = a->epoch;
        if (leader && a->used && leader_epoch(leader) == epoch && leader_host(leader) != host) {
            /* Peers notice over the fabric: the leader ends and its agent tells why. */
            uint32_t lead = leader_host(leader);
            leader_kill(sim, leader);
            sim->hosts[lead].assignments[ordinal].prepared = false;
            host_report_failure(sim, lead, ordinal, epoch, h->id, false, NULL, 0);
        }
        stop(sim, host, ordinal);
    }
    uint32_t *again = MEM_NEW(uint32_t);
    *again = host;
    sim_after(sim, down_ms, start_again, again);
}

/* ---- life of an agent ---- */

static void put_record(sim_t *sim, uint32_t host)
{
    sim_host_t *h = &sim->hosts[host];
    Shoal__Cluster__V1__ModelRecord model = SHOAL__CLUSTER__V1__MODEL_RECORD__INIT;
    char name[] = "toy", digest[] = "sha256:toy", address[] = "10.0.0.1";
    model.name = name;
    model.digest = digest;
    Shoal__Cluster__V1__ModelRecord *models[] = {&model};
    Shoal__Cluster__V1__HostRecord r = SHOAL__CLUSTER__V1__HOST_RECORD__INIT;
    r.id = h->id;
    r.address = address;
    r.cores = 2;
    r.memory_bytes = 1ull << 32;
    r.n_models = 1;
    r.models = models;
    uint8_t bytes[256];
    size_t n = shoal__cluster__v1__host_record__pack(&r, bytes);
    char key[32];
    snprintf(key, sizeof key, "hosts/%s", h->id);
    etcd_put(sim, key, bytes, n, h->lease);
}

static void beat(sim_t *sim, void *argument)
{
    task_t *t = argument;
    sim_host_t *h = &sim->hosts[t->host];
    if (!h->alive || h->life != t->life) {
        free(t);
        return;
    }
    if (etcd_usable(sim) && !etcd_renew(sim, h->lease)) {
        h->lease = etcd_lease(sim);
        put_record(sim, t->host);
    }
    sim_after(sim, 900 + sim_below(sim, 200), beat, t);
}

void host_start(sim_t *sim, uint32_t host)
{
    sim_host_t *h = &sim->hosts[host];
    h->alive = true;
    h->life = ++sim->next_life;
    h->lease = 0;
    snprintf(h->id, sizeof h->id, "h%u", host);
    memset(h->assignments, 0, sizeof h->assignments);
    char prefix[32];
    snprintf(prefix, sizeof prefix, "assign/%s/", h->id);
    etcd_watch(sim, party_of(sim, host), prefix, on_key, NULL);
    sim_after(sim, 1 + sim_below(sim, 50), beat, task(sim, host, 0, 0));
}

void host_free(sim_t *sim)
{
    for (uint32_t host = 0; host < SIM_HOSTS; host++)
        for (uint32_t ordinal = 0; ordinal < SIM_SLOTS; ordinal++)
            if (sim->hosts[host].assignments[ordinal].plan)
                shoal__cluster__v1__replica_plan__free_unpacked(
                    sim->hosts[host].assignments[ordinal].plan, NULL);
}
