/* Leaders: the real scheduler of worker/engine, a model of the ranks (the next token is a hash) and
 * of the Engine service (Hello, Admit, Cancel, StepOutput; docs/design.md, "The way of a request").
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/leader_state.h"

/* A leader's life is checked through its place in sim->leaders. */
typedef struct {
    size_t place;
    uint64_t life;
    uint64_t step;
    uint32_t n;
    step_drawn_t drawn[STEP_ENTRIES_MAX];
} flight_t;

static sim_leader_t *alive(sim_t *sim, size_t place, uint64_t life)
{
    sim_leader_t *l = sim->leaders[place];
    return l && l->life == life ? l : NULL;
}

static size_t place_of(const sim_t *sim, const sim_leader_t *leader)
{
    size_t i = 0;
    while (sim->leaders[i] != leader)
        i++;
    return i;
}

uint32_t leader_host(const sim_leader_t *l)
{
    return l->host;
}

uint64_t leader_epoch(const sim_leader_t *l)
{
    return l->epoch;
}

uint32_t leader_ordinal(const sim_leader_t *l)
{
    return l->ordinal;
}

/* The newest one of the slot, wherever it is. */
sim_leader_t *leader_of(sim_t *sim, uint32_t ordinal)
{
    sim_leader_t *best = NULL;
    for (size_t i = 0; i < SIM_LEADERS; i++) {
        sim_leader_t *l = sim->leaders[i];
        if (l && l->ordinal == ordinal && (!best || l->life > best->life))
            best = l;
    }
    return best;
}

sim_leader_t *leader_at(sim_t *sim, const char *endpoint)
{
    char name[16];
    sim_leader_t *best = NULL;
    for (size_t i = 0; i < SIM_LEADERS; i++) {
        sim_leader_t *l = sim->leaders[i];
        if (!l)
            continue;
        snprintf(name, sizeof name, "h%u:%u", l->host, l->ordinal);
        if (strcmp(name, endpoint) == 0 && (!best || l->life > best->life))
            best = l;
    }
    return best;
}

/* ---- steps ---- */

static void step_done(sim_t *sim, void *argument)
{
    flight_t *f = argument;
    sim_leader_t *l = alive(sim, f->place, f->life);
    if (l) {
        step_result_t result = {.step = f->step, .n = f->n, .drawn = f->drawn};
        if (scheduler_step_done(l->scheduler, &result, sim->now_ms) != STATUS_OK)
            sim_violate(sim, "the scheduler refuses its own step: %s", status_text());
        leader_flush(sim, l);
        leader_plan(sim, l);
    }
    free(f);
}

/* The rank that computes the poison's prompt dies with everything in the step. */
static bool poisoned(sim_t *sim, sim_leader_t *l, const step_plan_t *p)
{
    bool poison = false;
    for (uint32_t e = 0; e < p->n_entries; e++)
        for (uint32_t k = 0; k < p->entries[e].n_tokens; k++)
            poison = poison || p->entries[e].ids[k] == SIM_ID_POISON;
    if (!poison)
        return false;
    const char *sessions[STEP_ENTRIES_MAX];
    static char names[STEP_ENTRIES_MAX][CORE_ID_SIZE];
    size_t n = 0;
    for (uint32_t e = 0; e < p->n_entries; e++) {
        uint32_t choice;
        const char *session =
            scheduler_session_in_slot(l->scheduler, p->entries[e].slot, &choice);
        if (!session)
            continue;
        snprintf(names[n], CORE_ID_SIZE, "%s", session);
        sessions[n] = names[n];
        n++;
    }
    for (uint32_t j = 0; j < SIM_JOBS; j++)
        sim->expected[j].n_deaths += sim->expected[j].poison;
    /* Sometimes the agent does not know who was in the step. */
    host_rank_failed(sim, l, true, sessions, sim_chance(sim, 700) ? n : 0);
    return true;
}

void leader_plan(sim_t *sim, sim_leader_t *l)
{
    step_plan_t p;
    while (scheduler_plan(l->scheduler, sim->now_ms, &p)) {
        for (uint32_t i = 0; i < p.n_opens; i++)
            l->slots[p.opens[i].slot] = (slot_params_t){p.opens[i].sampling.seed,
                                                        p.opens[i].choice, p.opens[i].n_prompt};
        if (poisoned(sim, l, &p))
            return; /* the leader is gone */
        flight_t *f = MEM_NEW(flight_t);
        f->place = place_of(sim, l);
        f->life = l->life;
        f->step = l->step = p.step;
        for (uint32_t e = 0; e < p.n_entries; e++) {
            const step_entry_t *entry = &p.entries[e];
            if (!entry->sample)
                continue;
            const slot_params_t *params = &l->slots[entry->slot];
            uint32_t position = entry->position + entry->n_tokens - params->n_prompt;
            f->drawn[f->n].slot = entry->slot;
            f->drawn[f->n++].sampled.id = oracle_id(params->seed, params->choice, position);
        }
        uint64_t at = sim->now_ms + 15 + sim_below(sim, 60);
        l->done_at_ms = at > l->done_at_ms ? at : l->done_at_ms; /* steps come back in order */
        sim_after(sim, l->done_at_ms - sim->now_ms, step_done, f);
    }
}

static void tick(sim_t *sim, void *argument)
{
    flight_t *f = argument;
    sim_leader_t *l = alive(sim, f->place, f->life);
    if (!l) {
        free(f);
        return;
    }
    scheduler_tick(l->scheduler, sim->now_ms);
    leader_flush(sim, l);
    leader_plan(sim, l);
    sim_after(sim, 200, tick, f);
}

/* ---- life ---- */

sim_leader_t *leader_make(sim_t *sim, uint32_t host, uint32_t ordinal, uint64_t epoch,
                          uint32_t stages)
{
    size_t place = 0;
    while (place < SIM_LEADERS && sim->leaders[place])
        place++;
    if (place == SIM_LEADERS)
        abort();
    sim_leader_t *l = sim->leaders[place] = MEM_NEW(sim_leader_t);
    l->host = host;
    l->ordinal = ordinal;
    l->epoch = epoch;
    l->life = ++sim->next_life;
    scheduler_config_t config = {
        .n_blocks = 64,
        .vocab = SIM_VOCAB,
        .context_max = 128,
        .stages = stages,
        .keep_prefixes = true,
        .text_identity = "toy-identity",
    };
    if (scheduler_new(&config, &l->scheduler) != STATUS_OK)
        abort();
    flight_t *f = MEM_NEW(flight_t);
    f->place = place;
    f->life = l->life;
    sim_after(sim, 200, tick, f);
    return l;
}

static void destroy(sim_leader_t *l)
{
    scheduler_free(l->scheduler);
    for (size_t i = 0; i < l->n_book; i++)
        free(l->book[i].admit);
    free(l);
}

void leader_kill(sim_t *sim, sim_leader_t *l)
{
    for (size_t i = 0; i < SIM_STREAMS; i++)
        if (l->streams[i].used)
            leader_send(sim, &l->streams[i], NULL);
    sim->leaders[place_of(sim, l)] = NULL;
    destroy(l);
}

void leaders_free(sim_t *sim)
{
    for (size_t i = 0; i < SIM_LEADERS; i++)
        if (sim->leaders[i])
            destroy(sim->leaders[i]);
}

void leader_dump(sim_t *sim, const sim_leader_t *l)
{
    scheduler_load_t load;
    scheduler_load(l->scheduler, &load);
    sim_trace(sim, "leader of %u on h%u, epoch %llu: running %u waiting %u free %llu in flight %u",
              l->ordinal, l->host, (unsigned long long)l->epoch, load.running, load.waiting,
              (unsigned long long)load.kv_tokens_free, scheduler_in_flight(l->scheduler));
}
