/* The shell of a simulated coordinator: carries the core's actions out over the simulated network
 * and stores, keeps its lease, registers and stands for election. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

static void run_actions(sim_t *sim, uint32_t index);

static sim_party_t party_of(const sim_t *sim, uint32_t index)
{
    return (sim_party_t){index, sim->coordinators[index].life};
}

bool coordinator_put_off(sim_t *sim, uint32_t index, sim_fn fn, void *argument,
                         sim_release_fn release)
{
    if (index >= SIM_COORDINATORS || sim->coordinators[index].paused_until_ms <= sim->now_ms)
        return false;
    sim_after_with(sim, sim->coordinators[index].paused_until_ms - sim->now_ms, fn, argument,
                   release);
    return true;
}

/* ---- steps and time ---- */

typedef struct {
    uint32_t index;
    uint64_t life, at_ms;
} turn_t;

static turn_t *turn(const sim_t *sim, uint32_t index, uint64_t at_ms)
{
    turn_t *t = MEM_NEW(turn_t);
    *t = (turn_t){index, sim->coordinators[index].life, at_ms};
    return t;
}

static void tick(sim_t *sim, void *argument)
{
    turn_t *t = argument;
    if (coordinator_put_off(sim, t->index, tick, t, free))
        return;
    sim_coordinator_t *c = &sim->coordinators[t->index];
    if (c->alive && c->life == t->life && c->tick_at_ms == t->at_ms) {
        c->tick_at_ms = UINT64_MAX;
        core_event_t event = {.kind = CORE_EVENT_TICK};
        coordinator_event(sim, t->index, t->life, &event);
    }
    free(t);
}

void coordinator_event(sim_t *sim, uint32_t index, uint64_t life, const core_event_t *event)
{
    sim_coordinator_t *c = &sim->coordinators[index];
    if (!c->alive || c->life != life)
        return;
    if (c->busy)
        abort();
    c->busy = true;
    core_step(c->core, sim->now_ms, event, &c->actions);
    c->busy = false;
    run_actions(sim, index);
    if (!c->alive || c->life != life)
        return;
    uint64_t next = core_next_timer_ms(c->core);
    if (next < c->tick_at_ms) {
        next = next > sim->now_ms ? next : sim->now_ms;
        c->tick_at_ms = next;
        sim_after(sim, next - sim->now_ms, tick, turn(sim, index, next));
    }
}

/* ---- etcd ---- */

static void on_key(sim_t *sim, uint32_t index, const core_key_t *key)
{
    core_event_t event = {.kind = CORE_EVENT_KEY};
    event.key = *key;
    coordinator_event(sim, index, sim->coordinators[index].life, &event);
}

static void on_listed(sim_t *sim, uint32_t index, const char *prefix)
{
    core_event_t event = {.kind = CORE_EVENT_LISTED};
    event.listed.prefix = prefix;
    coordinator_event(sim, index, sim->coordinators[index].life, &event);
}

typedef struct {
    uint32_t index;
    uint64_t life, op, revision;
    bool range, known, succeeded;
    char prefix[96];
    core_compare_t compares[4];
    size_t n_compares, n_writes;
    core_write_t writes[128];
} txn_t;

static void free_txn(void *argument)
{
    txn_t *t = argument;
    for (size_t i = 0; i < t->n_compares; i++)
        free((void *)(uintptr_t)t->compares[i].key);
    for (size_t i = 0; i < t->n_writes; i++) {
        free((void *)(uintptr_t)t->writes[i].key);
        free((void *)(uintptr_t)t->writes[i].value);
    }
    free(t);
}

static void txn_answer(sim_t *sim, void *argument)
{
    txn_t *t = argument;
    if (coordinator_put_off(sim, t->index, txn_answer, t, free_txn))
        return;
    core_event_t event = {.kind = CORE_EVENT_TXN_DONE};
    core_key_t keys[64];
    if (t->range) {
        event.kind = CORE_EVENT_RANGE_DONE;
        event.range_done.op = t->op;
        event.range_done.known = t->known;
        event.range_done.keys = keys;
        for (size_t i = 0; t->known && i < sim->etcd.n_keys && event.range_done.n_keys < 64; i++)
            if (strncmp(sim->etcd.keys[i].key, t->prefix, strlen(t->prefix)) == 0)
                keys[event.range_done.n_keys++] = (core_key_t){.key = sim->etcd.keys[i].key};
    } else {
        event.txn_done.op = t->op;
        event.txn_done.known = t->known;
        event.txn_done.succeeded = t->succeeded;
        event.txn_done.revision = t->revision;
    }
    coordinator_event(sim, t->index, t->life, &event);
    free_txn(t);
}

static void txn_arrive(sim_t *sim, void *argument)
{
    txn_t *t = argument;
    bool loss = sim->now_ms < SIM_FAULTS_END_MS && (sim->faults & FAULT_LOSS);
    bool lost_there = loss && sim_chance(sim, 30), lost_back = loss && sim_chance(sim, 30);
    if (sim->etcd.up && !lost_there) {
        t->known = !lost_back;
        t->succeeded = etcd_compares_hold(sim, t->compares, t->n_compares);
        if (t->succeeded && !t->range) {
            for (size_t i = 0; i < t->n_writes; i++)
                check_plan_write(sim, t->index, t->writes[i].key);
            etcd_write_all(sim, t->writes, t->n_writes);
        }
        t->revision = sim->etcd.revision;
    }
    sim_after_with(sim, t->known ? sim_delay(sim) : 1000, txn_answer, t, free_txn);
}

static void send_txn(sim_t *sim, uint32_t index, const core_action_t *a)
{
    txn_t *t = MEM_NEW(txn_t);
    t->index = index;
    t->life = sim->coordinators[index].life;
    t->op = a->op;
    t->range = a->kind == CORE_ACTION_RANGE;
    if (t->range) {
        snprintf(t->prefix, sizeof t->prefix, "%s", a->watch.prefix);
    } else {
        for (; t->n_compares < a->txn.n_compares; t->n_compares++) {
            t->compares[t->n_compares] = a->txn.compares[t->n_compares];
            t->compares[t->n_compares].key = mem_strdup(a->txn.compares[t->n_compares].key);
        }
        for (; t->n_writes < a->txn.n_writes; t->n_writes++) {
            const core_write_t *w = &a->txn.writes[t->n_writes];
            uint8_t *value = w->value ? mem_new(w->value_size + 1, 1) : NULL;
            if (w->value)
                memcpy(value, w->value, w->value_size);
            t->writes[t->n_writes] = (core_write_t){mem_strdup(w->key), value, w->value_size};
        }
    }
    /* A frozen machine's requests may lie in its socket for long. */
    uint64_t late = sim_chance(sim, 30) ? sim_below(sim, 4000) : 0;
    sim_after_with(sim, sim_delay(sim) + late, txn_arrive, t, free_txn);
}

/* ---- models ---- */

static void model_loaded(sim_t *sim, void *argument)
{
    static const plan_sizes_t sizes = {
        .config = {.architecture = "llama", .n_layers = 8, .hidden = 32, .n_heads = 8,
                   .n_kv_heads = 4, .head_dim = 4, .ffn = 128, .vocab = SIM_VOCAB,
                   .context_train = 4096,
                   .norm_eps = 1e-5f, .attention_scale = 0.5f},
        .file_bytes = 1 << 20,
        .embedding_values = 4096, .embedding_bytes = 4096, .head_values = 4096,
        .head_bytes = 4096, .norm_values = 64, .norm_bytes = 256, .q_values = 1024,
        .q_bytes = 1024, .kv_values = 1024, .kv_bytes = 1024, .output_values = 1024,
        .output_bytes = 1024, .ffn_values = 12288, .ffn_bytes = 12288,
    };
    turn_t *t = argument;
    if (coordinator_put_off(sim, t->index, model_loaded, t, free))
        return;
    core_event_t event = {.kind = CORE_EVENT_MODEL};
    event.model.deployment = "toy";
    event.model.digest = "sha256:toy";
    event.model.tokenizer = oracle_tokenizer();
    event.model.sizes = &sizes;
    coordinator_event(sim, t->index, t->life, &event);
    free(t);
}

/* ---- links ---- */

typedef struct {
    uint32_t index;
    uint64_t life, link;
    char endpoint[16];
    uint8_t *bytes; /* NULL: closed */
    size_t size;
} letter_t;

static void free_letter(void *argument)
{
    letter_t *l = argument;
    free(l->bytes);
    free(l);
}

static void letter_arrives(sim_t *sim, void *argument)
{
    letter_t *l = argument;
    if (l->bytes)
        leader_message(sim, l->endpoint, l->index, l->life, l->link, l->bytes, l->size);
    else
        leader_stream_broken(sim, l->index, l->life, l->link);
    free_letter(l);
}

static sim_link_t *find_link(sim_coordinator_t *c, uint64_t link)
{
    for (size_t i = 0; i < c->n_links; i++)
        if (c->links[i].link == link)
            return &c->links[i];
    return NULL;
}

static void send_letter(sim_t *sim, uint32_t index, uint64_t link, const uint8_t *bytes,
                        size_t size)
{
    sim_coordinator_t *c = &sim->coordinators[index];
    sim_link_t *k = find_link(c, link);
    if (!k)
        return;
    letter_t *l = MEM_NEW(letter_t);
    l->index = index;
    l->life = c->life;
    l->link = link;
    memcpy(l->endpoint, k->endpoint, sizeof l->endpoint);
    if (bytes) {
        l->bytes = mem_new(size + 1, 1);
        memcpy(l->bytes, bytes, size);
        l->size = size;
    }
    uint64_t at = sim->now_ms + sim_delay(sim);
    k->last_ms = at > k->last_ms ? at : k->last_ms;
    sim_after_with(sim, k->last_ms - sim->now_ms, letter_arrives, l, free_letter);
}

static void open_link(sim_coordinator_t *c, const core_action_t *a)
{
    if (c->n_links == sizeof c->links / sizeof *c->links)
        abort();
    sim_link_t *k = &c->links[c->n_links++];
    k->link = a->link_open.link;
    k->last_ms = 0;
    snprintf(k->endpoint, sizeof k->endpoint, "%s", a->link_open.endpoint);
}

static void forget_link(sim_coordinator_t *c, uint64_t link)
{
    sim_link_t *k = find_link(c, link);
    if (k)
        *k = c->links[--c->n_links];
}

/* ---- actions ---- */

static void run_action(sim_t *sim, uint32_t index, const core_action_t *a)
{
    sim_coordinator_t *c = &sim->coordinators[index];
    switch (a->kind) {
    case CORE_ACTION_STARTED:
    case CORE_ACTION_OUTPUT:
    case CORE_ACTION_END:
        client_action(sim, index, c->life, a);
        break;
    case CORE_ACTION_WATCH:
        etcd_watch(sim, party_of(sim, index), a->watch.prefix, on_key, on_listed);
        break;
    case CORE_ACTION_UNWATCH:
        etcd_unwatch(sim, party_of(sim, index), a->watch.prefix);
        break;
    case CORE_ACTION_TXN:
    case CORE_ACTION_RANGE:
        send_txn(sim, index, a);
        break;
    case CORE_ACTION_LOAD_MODEL:
        sim_after(sim, 5, model_loaded, turn(sim, index, 0));
        break;
    case CORE_ACTION_LINK_OPEN:
        open_link(c, a);
        break;
    case CORE_ACTION_LINK_SEND:
        send_letter(sim, index, a->link_send.link, a->link_send.bytes, a->link_send.size);
        break;
    case CORE_ACTION_LINK_CLOSE:
        send_letter(sim, index, a->link_close.link, NULL, 0);
        forget_link(c, a->link_close.link);
        break;
    case CORE_ACTION_LOG:
        sim_trace(sim, "%s: %s", c->id, a->log.text);
        break;
    case CORE_ACTION_DRAINED:
        break;
    default:
        redis_call(sim, index, a);
        break;
    }
}

static void run_actions(sim_t *sim, uint32_t index)
{
    sim_coordinator_t *c = &sim->coordinators[index];
    for (size_t i = 0; i < c->actions.n; i++)
        run_action(sim, index, &c->actions.items[i]);
    core_actions_reset(&c->actions);
}

/* ---- news of the stores ---- */

typedef struct {
    uint32_t index;
    uint64_t life;
    core_store_t store;
    core_store_state_t state;
} store_news_t;

static void tell_store(sim_t *sim, void *argument)
{
    store_news_t *n = argument;
    if (coordinator_put_off(sim, n->index, tell_store, n, free))
        return;
    core_event_t event = {.kind = CORE_EVENT_STORE};
    event.store.store = n->store;
    event.store.state = n->state;
    event.store.text = "the store is not of this cluster";
    coordinator_event(sim, n->index, n->life, &event);
    free(n);
}

static void store_news(sim_t *sim, uint32_t index, core_store_t store, core_store_state_t state)
{
    store_news_t *n = MEM_NEW(store_news_t);
    *n = (store_news_t){index, sim->coordinators[index].life, store, state};
    sim_after(sim, 0, tell_store, n);
}

void coordinators_store(sim_t *sim, core_store_t store, core_store_state_t state)
{
    for (uint32_t i = 0; i < SIM_COORDINATORS; i++)
        if (sim->coordinators[i].alive)
            store_news(sim, i, store, state);
}

/* ---- life ---- */

void coordinator_start(sim_t *sim, uint32_t index)
{
    sim_coordinator_t *c = &sim->coordinators[index];
    snprintf(c->id, sizeof c->id, "c%u", index);
    core_config_t config = {
        .id = c->id,
        .endpoint = c->id,
        .build = "sim",
        .seed = sim_random(sim),
        .items_max = 24,
        .mutant = sim->mutant,
    };
    c->core = core_new(&config);
    c->alive = true;
    c->life = ++sim->next_life;
    c->lease = 0;
    c->elected = false;
    c->n_links = 0;
    c->tick_at_ms = UINT64_MAX;
    c->paused_until_ms = 0;
    store_news(sim, index, CORE_STORE_ETCD,
               !sim->etcd.up       ? CORE_STORE_DOWN
               : sim->etcd.foreign ? CORE_STORE_FOREIGN
                                   : CORE_STORE_UP);
    store_news(sim, index, CORE_STORE_REDIS,
               !sim->redis.up       ? CORE_STORE_DOWN
               : sim->redis.foreign ? CORE_STORE_FOREIGN
                                    : CORE_STORE_UP);
    member_start(sim, index);
}

static void start_again(sim_t *sim, void *argument)
{
    turn_t *t = argument;
    coordinator_start(sim, t->index);
    free(t);
}

void coordinator_crash(sim_t *sim, uint32_t index, uint64_t down_ms)
{
    sim_coordinator_t *c = &sim->coordinators[index];
    if (!c->alive)
        return;
    sim_trace(sim, "%s dies for %llu ms", c->id, (unsigned long long)down_ms);
    sim->disturbed = true;
    for (size_t i = 0; i < c->n_links; i++)
        send_letter(sim, index, c->links[i].link, NULL, 0);
    c->alive = false;
    c->paused_until_ms = 0;
    core_free(c->core);
    core_actions_release(&c->actions);
    c->core = NULL;
    clients_coordinator_died(sim, index);
    sim_after(sim, down_ms, start_again, turn(sim, index, 0));
}

void coordinator_free(sim_t *sim)
{
    for (uint32_t i = 0; i < SIM_COORDINATORS; i++) {
        core_free(sim->coordinators[i].core);
        core_actions_release(&sim->coordinators[i].actions);
    }
}
