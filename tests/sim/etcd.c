/* etcd as its clients see it: revisions, leases, transactions at the server's time, watches that
 * deliver in order but late, break, and then list anew with what changed in between. A restart may
 * come back empty; its revisions then begin again, which is why an epoch alone proves nothing. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

static sim_key_t *find(sim_t *sim, const char *key)
{
    for (size_t i = 0; i < sim->etcd.n_keys; i++)
        if (strcmp(sim->etcd.keys[i].key, key) == 0)
            return &sim->etcd.keys[i];
    return NULL;
}

const sim_key_t *etcd_get(const sim_t *sim, const char *key)
{
    for (size_t i = 0; i < sim->etcd.n_keys; i++)
        if (strcmp(sim->etcd.keys[i].key, key) == 0)
            return &sim->etcd.keys[i];
    return NULL;
}

static bool starts(const char *key, const char *prefix)
{
    return strncmp(key, prefix, strlen(prefix)) == 0;
}

static bool party_lives(const sim_t *sim, sim_party_t party)
{
    if (party.index < SIM_COORDINATORS)
        return sim->coordinators[party.index].alive &&
               sim->coordinators[party.index].life == party.life;
    const sim_host_t *host = &sim->hosts[party.index - SIM_COORDINATORS];
    return host->alive && host->life == party.life;
}

/* ---- watches ---- */

typedef struct {
    sim_watch_t *watch;
    uint64_t generation;
    sim_key_t key; /* value NULL: deleted */
} delivery_t;

static void view_set(sim_watch_t *w, const char *key, uint64_t mod)
{
    for (size_t i = 0; i < w->n_view; i++)
        if (strcmp(w->view[i].key, key) == 0) {
            w->view[i].mod = mod;
            if (!mod)
                w->view[i] = w->view[--w->n_view];
            return;
        }
    if (mod && w->n_view < SIM_KEYS_MAX) {
        snprintf(w->view[w->n_view].key, sizeof w->view[0].key, "%s", key);
        w->view[w->n_view++].mod = mod;
    }
}

static void give(sim_t *sim, sim_watch_t *w, const sim_key_t *key)
{
    core_key_t out = {key->key, key->value, key->size, key->mod, key->create};
    view_set(w, key->key, key->value ? key->mod : 0);
    w->on_key(sim, w->party.index, &out);
}

static void free_delivery(void *argument)
{
    delivery_t *d = argument;
    free(d->key.value);
    free(d);
}

static void deliver(sim_t *sim, void *argument)
{
    delivery_t *d = argument;
    sim_watch_t *w = d->watch;
    if (coordinator_put_off(sim, w->party.index, deliver, d, free_delivery))
        return;
    if (w->used && w->generation == d->generation && party_lives(sim, w->party))
        give(sim, w, &d->key);
    free_delivery(d);
}

static void relist(sim_t *sim, void *argument);

static void relist_later(sim_t *sim, sim_watch_t *w, uint64_t delay_ms)
{
    delivery_t *d = MEM_NEW(delivery_t);
    d->watch = w;
    d->generation = w->generation;
    sim_after(sim, delay_ms, relist, d);
}

static void break_watch(sim_t *sim, sim_watch_t *w)
{
    w->generation = ++sim->number;
    w->broken = true;
    relist_later(sim, w, 100 + sim_below(sim, 1500));
}

/* What the view lacks, as puts and deletes; then everything is said to be listed. */
static void relist(sim_t *sim, void *argument)
{
    delivery_t *d = argument;
    sim_watch_t *w = d->watch;
    if (coordinator_put_off(sim, w->party.index, relist, d, free))
        return;
    bool valid = w->used && w->generation == d->generation;
    free(d);
    if (!valid || !party_lives(sim, w->party))
        return;
    if (!sim->etcd.up) {
        relist_later(sim, w, 200 + sim_below(sim, 300));
        return;
    }
    w->broken = false;
    uint64_t generation = w->generation;
    for (size_t i = w->n_view; i > 0; i--) {
        sim_key_t gone = {0};
        snprintf(gone.key, sizeof gone.key, "%s", w->view[i - 1].key);
        if (!etcd_get(sim, gone.key))
            give(sim, w, &gone);
        if (!w->used || w->generation != generation)
            return;
    }
    for (size_t i = 0; i < sim->etcd.n_keys; i++) {
        sim_key_t key = sim->etcd.keys[i];
        if (!starts(key.key, w->prefix))
            continue;
        bool same = false;
        for (size_t k = 0; k < w->n_view; k++)
            same = same || (strcmp(w->view[k].key, key.key) == 0 && w->view[k].mod == key.mod);
        if (!same)
            give(sim, w, &key);
        if (!w->used || w->generation != generation)
            return;
    }
    if (w->on_listed)
        w->on_listed(sim, w->party.index, w->prefix);
}

static void notify(sim_t *sim, const sim_key_t *key, bool deleted)
{
    for (size_t i = 0; i < SIM_WATCHES; i++) {
        sim_watch_t *w = &sim->etcd.watches[i];
        if (!w->used || w->broken || !starts(key->key, w->prefix))
            continue;
        bool faults = sim->now_ms < SIM_FAULTS_END_MS && (sim->faults & FAULT_WATCH);
        if (faults && sim_chance(sim, 30)) {
            break_watch(sim, w);
            continue;
        }
        delivery_t *d = MEM_NEW(delivery_t);
        d->watch = w;
        d->generation = w->generation;
        d->key = *key;
        d->key.value = NULL;
        if (!deleted) {
            d->key.value = mem_new(key->size + 1, 1);
            memcpy(d->key.value, key->value, key->size);
        }
        uint64_t at = sim->now_ms + sim_delay(sim) + (faults ? sim_below(sim, 200) : 0);
        w->last_ms = at > w->last_ms ? at : w->last_ms;
        sim_after_with(sim, w->last_ms - sim->now_ms, deliver, d, free_delivery);
    }
}

void etcd_watch(sim_t *sim, sim_party_t party, const char *prefix, sim_key_fn on_key,
                sim_listed_fn on_listed)
{
    for (size_t i = 0; i < SIM_WATCHES; i++) {
        sim_watch_t *w = &sim->etcd.watches[i];
        if (w->used && party_lives(sim, w->party))
            continue;
        memset(w, 0, sizeof *w);
        w->used = true;
        w->broken = true;
        w->generation = ++sim->number;
        w->party = party;
        snprintf(w->prefix, sizeof w->prefix, "%s", prefix);
        w->on_key = on_key;
        w->on_listed = on_listed;
        relist_later(sim, w, sim_delay(sim));
        return;
    }
    abort();
}

void etcd_unwatch(sim_t *sim, sim_party_t party, const char *prefix)
{
    for (size_t i = 0; i < SIM_WATCHES; i++) {
        sim_watch_t *w = &sim->etcd.watches[i];
        if (w->used && w->party.index == party.index && w->party.life == party.life &&
            strcmp(w->prefix, prefix) == 0)
            w->used = false;
    }
}

/* ---- keys ---- */

static void put_at(sim_t *sim, const char *key, const void *value, size_t size, uint64_t lease,
                   uint64_t revision)
{
    sim_key_t *k = find(sim, key);
    if (!k) {
        if (sim->etcd.n_keys == SIM_KEYS_MAX)
            abort();
        k = &sim->etcd.keys[sim->etcd.n_keys++];
        memset(k, 0, sizeof *k);
        snprintf(k->key, sizeof k->key, "%s", key);
        k->create = revision;
    }
    uint8_t *copy = mem_new(size + 1, 1);
    if (size)
        memcpy(copy, value, size);
    free(k->value);
    k->value = copy;
    k->size = size;
    k->mod = revision;
    k->lease = lease;
    notify(sim, k, false);
}

static void delete_at(sim_t *sim, const char *key, uint64_t revision)
{
    sim_key_t *k = find(sim, key);
    if (!k)
        return;
    sim_key_t gone = *k;
    *k = sim->etcd.keys[--sim->etcd.n_keys];
    gone.mod = revision;
    notify(sim, &gone, true);
    free(gone.value);
}

void etcd_put(sim_t *sim, const char *key, const void *value, size_t size, uint64_t lease)
{
    put_at(sim, key, value, size, lease, ++sim->etcd.revision);
}

void etcd_delete(sim_t *sim, const char *key)
{
    if (find(sim, key))
        delete_at(sim, key, ++sim->etcd.revision);
}

bool etcd_compares_hold(const sim_t *sim, const core_compare_t *compares, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const sim_key_t *k = etcd_get(sim, compares[i].key);
        uint64_t is = k ? (compares[i].on_create ? k->create : k->mod) : 0;
        if (is != compares[i].revision)
            return false;
    }
    return true;
}

void etcd_write_all(sim_t *sim, const core_write_t *writes, size_t n)
{
    uint64_t revision = ++sim->etcd.revision;
    for (size_t i = 0; i < n; i++)
        if (writes[i].value)
            put_at(sim, writes[i].key, writes[i].value, writes[i].value_size, 0, revision);
        else
            delete_at(sim, writes[i].key, revision);
}

/* ---- leases ---- */

uint64_t etcd_lease(sim_t *sim)
{
    for (size_t i = 0; i < sizeof sim->etcd.leases / sizeof *sim->etcd.leases; i++) {
        sim_lease_t *l = &sim->etcd.leases[i];
        if (l->alive)
            continue;
        *l = (sim_lease_t){++sim->number, sim->now_ms, true};
        return l->id;
    }
    abort();
}

static void expire(sim_t *sim, sim_lease_t *lease)
{
    lease->alive = false;
    for (size_t i = sim->etcd.n_keys; i > 0; i--)
        if (sim->etcd.keys[i - 1].lease == lease->id) {
            char key[160];
            memcpy(key, sim->etcd.keys[i - 1].key, sizeof key);
            etcd_delete(sim, key);
            i = sim->etcd.n_keys + 1;
        }
}

bool etcd_renew(sim_t *sim, uint64_t id)
{
    for (size_t i = 0; id && i < sizeof sim->etcd.leases / sizeof *sim->etcd.leases; i++) {
        sim_lease_t *l = &sim->etcd.leases[i];
        if (l->id != id || !l->alive)
            continue;
        l->last_ms = sim->now_ms;
        return true;
    }
    return false;
}

void etcd_expire_all(sim_t *sim)
{
    for (size_t i = 0; i < sizeof sim->etcd.leases / sizeof *sim->etcd.leases; i++)
        if (sim->etcd.leases[i].alive)
            expire(sim, &sim->etcd.leases[i]);
}

static void look_at_leases(sim_t *sim, void *argument)
{
    (void)argument;
    for (size_t i = 0; sim->etcd.up && i < sizeof sim->etcd.leases / sizeof *sim->etcd.leases;
         i++) {
        sim_lease_t *l = &sim->etcd.leases[i];
        if (l->alive && sim->now_ms - l->last_ms >= SIM_LEASE_MS)
            expire(sim, l);
    }
    sim_after(sim, 250, look_at_leases, NULL);
}

/* ---- life of the server ---- */

void etcd_start(sim_t *sim)
{
    sim->etcd.up = true;
    sim->etcd.revision = 1;
    sim_after(sim, 250, look_at_leases, NULL);
}

static void clear(sim_t *sim)
{
    for (size_t i = 0; i < sim->etcd.n_keys; i++)
        free(sim->etcd.keys[i].value);
    sim->etcd.n_keys = 0;
}

static void adopt(sim_t *sim, void *argument)
{
    (void)argument;
    sim_trace(sim, "etcd is adopted");
    sim->etcd.foreign = false;
    sim->incarnation++;
    sim_deploy(sim);
    coordinators_store(sim, CORE_STORE_ETCD, CORE_STORE_UP);
    for (size_t i = 0; i < SIM_WATCHES; i++)
        if (sim->etcd.watches[i].used)
            break_watch(sim, &sim->etcd.watches[i]);
}

static void back(sim_t *sim, void *argument)
{
    (void)argument;
    sim->etcd.up = true;
    sim_trace(sim, "etcd is back%s", sim->etcd.foreign ? ", empty" : "");
    /* Every lease starts anew at its full time. */
    for (size_t i = 0; i < sizeof sim->etcd.leases / sizeof *sim->etcd.leases; i++)
        sim->etcd.leases[i].last_ms = sim->now_ms;
    coordinators_store(sim, CORE_STORE_ETCD,
                       sim->etcd.foreign ? CORE_STORE_FOREIGN : CORE_STORE_UP);
    if (sim->etcd.foreign)
        sim_after(sim, 2000 + sim_below(sim, 3000), adopt, NULL);
}

void etcd_crash(sim_t *sim, uint64_t down_ms, bool emptied)
{
    if (!sim->etcd.up || sim->etcd.foreign)
        return;
    sim_trace(sim, "etcd dies for %llu ms%s", (unsigned long long)down_ms,
              emptied ? ", loses all" : "");
    sim->etcd.up = false;
    sim->etcd.generation++;
    if (emptied) {
        clear(sim);
        sim->etcd.revision = 1;
        sim->etcd.foreign = true;
        for (size_t i = 0; i < sizeof sim->etcd.leases / sizeof *sim->etcd.leases; i++)
            sim->etcd.leases[i].alive = false;
    }
    for (size_t i = 0; i < SIM_WATCHES; i++)
        if (sim->etcd.watches[i].used)
            break_watch(sim, &sim->etcd.watches[i]);
    coordinators_store(sim, CORE_STORE_ETCD, CORE_STORE_DOWN);
    sim_after(sim, down_ms, back, NULL);
}

void etcd_free(sim_t *sim)
{
    clear(sim);
}
