/* Clients: each makes one interactive request, reads its stream at its own pace, loses it now and
 * then, and goes on reading at any coordinator from the n it was given. Every id and every byte of
 * text is held against the oracle when it arrives. Some cancel their request after a while, at any
 * coordinator. Job submitters repeat until they are acknowledged. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

enum { CANCELS_ONE_IN = 6, TRIES_MAX = 60, DENIED_MAX = 8, AWAY_LONG_MS = 8000 };

typedef struct {
    uint32_t client;
    uint32_t coordinator;
    uint64_t life, stream;
} step_t;

static void try_soon(sim_t *sim, uint32_t i, uint64_t delay_ms);

static void hang_up(sim_t *sim, sim_client_t *c)
{
    /* Away from whoever holds the session: a stream that never started does not count. */
    if (c->stream && c->stream_started)
        c->left_ms = sim->now_ms;
    c->stream = 0;
    c->stream_started = false;
}

static void lose(sim_t *sim, sim_client_t *c, const char *why)
{
    c->lost = true;
    sim_trace(sim, "client %zu is lost: %s", (size_t)(c - sim->clients), why);
    if (!sim->disturbed && !c->cancelled)
        sim_violate(sim, "request %.8s was lost though no coordinator or store died: %s", c->id,
                    why);
}

static void begin(sim_t *sim, sim_client_t *c, uint32_t coordinator)
{
    core_event_t event = {.kind = CORE_EVENT_GENERATE};
    Shoal__V1__Sampling sampling;
    char *stop;
    request_fill(&c->request, &sampling, &stop, &event.generate.request);
    snprintf(c->id, sizeof c->id, "%016llx%016llx", (unsigned long long)sim_random(sim),
             (unsigned long long)sim_random(sim));
    memcpy(event.generate.request.id, c->id, sizeof c->id);
    event.generate.client = c->stream;
    c->begun = true;
    coordinator_event(sim, coordinator, sim->coordinators[coordinator].life, &event);
}

static void resume(sim_t *sim, sim_client_t *c, uint32_t coordinator)
{
    core_event_t event = {.kind = CORE_EVENT_RESUME};
    event.resume.client = c->stream;
    event.resume.id = c->id;
    event.resume.n = c->n;
    event.resume.n_choices = c->request.choices;
    if (sim->now_ms - c->left_ms >= AWAY_LONG_MS)
        c->absent_long = true;
    coordinator_event(sim, coordinator, sim->coordinators[coordinator].life, &event);
}

static void try_now(sim_t *sim, void *argument)
{
    step_t *s = argument;
    sim_client_t *c = &sim->clients[s->client];
    uint32_t i = s->client;
    free(s);
    c->waiting = false;
    if (c->done || c->lost || c->stream)
        return;
    uint32_t coordinator = (uint32_t)sim_below(sim, SIM_COORDINATORS);
    /* Whoever was refused asks the others before it gives up: one of them may hold the request,
     * also where its replica is gone and nobody else can take it over. */
    if (c->refused)
        coordinator = (c->coordinator + 1) % SIM_COORDINATORS;
    c->refused = false;
    if (!sim->coordinators[coordinator].alive ||
        sim->coordinators[coordinator].paused_until_ms > sim->now_ms) {
        try_soon(sim, i, 100 + sim_below(sim, 400));
        return;
    }
    c->coordinator = coordinator;
    c->life = sim->coordinators[coordinator].life;
    c->stream = ++sim->next_client;
    if (c->started)
        resume(sim, c, coordinator);
    else
        begin(sim, c, coordinator);
}

static void try_soon(sim_t *sim, uint32_t i, uint64_t delay_ms)
{
    sim_client_t *c = &sim->clients[i];
    if (c->waiting)
        return;
    c->waiting = true;
    step_t *s = MEM_NEW(step_t);
    s->client = i;
    sim_after(sim, delay_ms, try_now, s);
}

static void writable(sim_t *sim, void *argument)
{
    step_t *s = argument;
    if (coordinator_put_off(sim, s->coordinator, writable, s, free))
        return;
    core_event_t event = {.kind = CORE_EVENT_CLIENT_WRITABLE};
    event.client.client = s->stream;
    coordinator_event(sim, s->coordinator, s->life, &event);
    free(s);
}

static void gone(sim_t *sim, void *argument)
{
    step_t *s = argument;
    if (coordinator_put_off(sim, s->coordinator, gone, s, free))
        return;
    core_event_t event = {.kind = CORE_EVENT_CLIENT_GONE};
    event.client.client = s->stream;
    coordinator_event(sim, s->coordinator, s->life, &event);
    free(s);
}

static step_t *step(const sim_client_t *c)
{
    step_t *s = MEM_NEW(step_t);
    *s = (step_t){0, c->coordinator, c->life, c->stream};
    return s;
}

/* ---- what arrives ---- */

static void take_text(sim_t *sim, sim_client_t *c, const core_action_t *a,
                      const oracle_text_t *want)
{
    uint32_t choice = a->output.choice;
    char *have = c->text[choice];
    size_t n = strlen(have);
    if (n + a->output.text_size >= SIM_TEXT_MAX) {
        sim_violate(sim, "request %.8s: more text than there can be", c->id);
        return;
    }
    memcpy(have + n, a->output.text, a->output.text_size);
    have[n + a->output.text_size] = 0;
    if (strncmp(want->text, have, strlen(have)) != 0)
        sim_violate(sim, "request %.8s choice %u: text \"%s\" should begin \"%s\"", c->id, choice,
                    have, want->text);
}

static void take_end(sim_t *sim, sim_client_t *c, const core_action_t *a, const oracle_text_t *want)
{
    uint32_t choice = a->output.choice;
    const char *error = a->output.error_code;
    c->ended[choice] = true;
    if (error && strcmp(error, "cancelled") == 0 && (c->absent_long || c->cancelled))
        return;
    if (error && sim->disturbed && strcmp(error, "replica_lost") == 0)
        return;
    if (error)
        sim_violate(sim, "request %.8s choice %u ended with the error %s", c->id, choice, error);
    else if (c->n_ids[choice] != want->n || strcmp(c->text[choice], want->text) != 0)
        sim_violate(sim,
                    "request %.8s choice %u ended with %u ids and \"%s\" instead of %u and \"%s\"",
                    c->id, choice, c->n_ids[choice], c->text[choice], want->n, want->text);
}

static void take_output(sim_t *sim, sim_client_t *c, const core_action_t *a)
{
    uint32_t choice = a->output.choice;
    oracle_text_t want;
    oracle_text(c->request.seed, choice, c->request.max_tokens, c->request.stop, &want);
    for (size_t i = 0; i < a->output.n_ids; i++) {
        uint32_t at = c->n_ids[choice];
        if (at >= want.n || want.ids[at] != a->output.ids[i]) {
            sim_violate(sim, "request %.8s choice %u: id %u at position %u is a gap or a repeat",
                        c->id, choice, a->output.ids[i], at);
            return;
        }
        c->ids[choice][c->n_ids[choice]++] = a->output.ids[i];
    }
    c->n[choice] = a->output.n;
    take_text(sim, c, a, &want);
    if (a->output.ended)
        take_end(sim, c, a, &want);
    bool slow = sim_chance(sim, 30);
    sim_after(sim, 1 + sim_below(sim, slow ? 800 : 15), writable, step(c));
}

static void take_finish(sim_t *sim, sim_client_t *c, const core_action_t *a)
{
    uint32_t i = (uint32_t)(c - sim->clients);
    hang_up(sim, c);
    if (a->end.status == STATUS_OK) {
        c->done = true;
        for (uint32_t k = 0; k < c->request.choices; k++)
            if (!c->ended[k])
                sim_violate(sim, "request %.8s was closed before choice %u ended", c->id, k);
        return;
    }
    c->n_tries++;
    c->refused = c->started;
    c->n_denied += a->end.status == STATUS_NOT_FOUND || a->end.status == STATUS_ABORTED;
    sim_trace(sim, "client %u, request %.8s at c%u: %s: %s", i, c->id, c->coordinator,
              status_name(a->end.status), a->end.text);
    if (a->end.status == STATUS_INVALID) {
        sim_violate(sim, "request %.8s is refused as invalid: %s", c->id, a->end.text);
    } else if (c->started && (c->n_tries > TRIES_MAX || c->n_denied > DENIED_MAX)) {
        lose(sim, c, a->end.text);
    } else if (c->started) {
        try_soon(sim, i, 200 + sim_below(sim, 600));
    } else {
        c->begun = false;
        try_soon(sim, i, a->end.retry_after_ms ? a->end.retry_after_ms : 300);
    }
}

void client_action(sim_t *sim, uint32_t coordinator, uint64_t life, const core_action_t *a)
{
    uint64_t stream = a->kind == CORE_ACTION_STARTED  ? a->started.client
                      : a->kind == CORE_ACTION_OUTPUT ? a->output.client
                                                      : a->end.client;
    for (uint32_t i = 0; i < SIM_CLIENTS; i++) {
        sim_client_t *c = &sim->clients[i];
        if (c->stream != stream || c->coordinator != coordinator || c->life != life)
            continue;
        if (a->kind == CORE_ACTION_STARTED) {
            if (a->started.seed != c->request.seed || strcmp(a->started.id, c->id) != 0)
                sim_violate(sim, "request %.8s is started with another id or seed", c->id);
            c->started = c->stream_started = true;
            c->resumable = a->started.resumable;
        } else if (a->kind == CORE_ACTION_OUTPUT) {
            if (!c->started)
                sim_violate(sim, "request %.8s: output before Started", c->id);
            take_output(sim, c, a);
        } else {
            take_finish(sim, c, a);
        }
        return;
    }
}

/* ---- what goes wrong on the client's side ---- */

void client_disconnect(sim_t *sim, uint32_t i)
{
    sim_client_t *c = &sim->clients[i];
    if (!c->stream || c->done || !c->started)
        return;
    sim_trace(sim, "client %u disconnects from c%u at n %u", i, c->coordinator, c->n[0]);
    sim_after(sim, 1, gone, step(c));
    hang_up(sim, c);
    try_soon(sim, i, 50 + sim_below(sim, 4000));
}

void clients_coordinator_died(sim_t *sim, uint32_t coordinator)
{
    for (uint32_t i = 0; i < SIM_CLIENTS; i++) {
        sim_client_t *c = &sim->clients[i];
        if (!c->stream || c->coordinator != coordinator)
            continue;
        hang_up(sim, c);
        c->begun = c->started;
        try_soon(sim, i, 50 + sim_below(sim, 1500));
    }
}

/* Wherever the request is now: the one that is asked takes it over if it has to. */
static void cancel(sim_t *sim, void *argument)
{
    step_t *s = argument;
    sim_client_t *c = &sim->clients[s->client];
    uint32_t at = (uint32_t)sim_below(sim, SIM_COORDINATORS);
    const sim_coordinator_t *coordinator = &sim->coordinators[at];
    bool there = coordinator->alive && coordinator->paused_until_ms <= sim->now_ms;
    if (c->done || c->lost || sim->now_ms >= SIM_FAULTS_END_MS) {
        free(s);
        return;
    }
    if (!c->started || !there) {
        sim_after(sim, 100, cancel, s);
        return;
    }
    core_event_t event = {.kind = CORE_EVENT_CANCEL};
    event.cancel.client = ++sim->next_client;
    event.cancel.id = c->id;
    event.cancel.take = true;
    c->cancelled = true;
    sim_trace(sim, "client %u cancels %.8s at c%u", s->client, c->id, at);
    coordinator_event(sim, at, coordinator->life, &event);
    free(s);
}

void clients_start(sim_t *sim)
{
    for (uint32_t i = 0; i < SIM_CLIENTS; i++) {
        if (sim_mix(sim->seed, 7000 + i) % CANCELS_ONE_IN == 0) {
            step_t *s = MEM_NEW(step_t);
            s->client = i;
            sim_after(sim, 1600 + sim_below(sim, SIM_FAULTS_END_MS - 4000), cancel, s);
        }
        request_draw(sim_mix(sim->seed, 9000 + i), false, &sim->clients[i].request);
        try_soon(sim, i, 1500 + sim_below(sim, SIM_FAULTS_END_MS - 4000));
    }
}

/* ---- jobs ---- */

static void submit_after(sim_t *sim, uint32_t job, uint64_t delay_ms);

static void submitted(sim_t *sim, uint32_t job, bool acknowledged)
{
    if (acknowledged) {
        sim_trace(sim, "job %u is acknowledged", job);
        sim->expected[job].acknowledged = true;
        /* The front that took it tells its own core; the others find it by themselves. */
        core_event_t event = {.kind = CORE_EVENT_JOBS_HINT};
        uint32_t at = (uint32_t)sim_below(sim, SIM_COORDINATORS);
        if (sim->coordinators[at].paused_until_ms <= sim->now_ms)
            coordinator_event(sim, at, sim->coordinators[at].life, &event);
        return;
    }
    submit_after(sim, job, 500);
}

static void submit(sim_t *sim, void *argument)
{
    uint32_t *job = argument;
    redis_submit(sim, *job, submitted);
    free(job);
}

static void submit_after(sim_t *sim, uint32_t job, uint64_t delay_ms)
{
    uint32_t *argument = MEM_NEW(uint32_t);
    *argument = job;
    sim_after(sim, delay_ms, submit, argument);
}

void jobs_start(sim_t *sim)
{
    for (uint32_t j = 0; j < SIM_JOBS; j++) {
        sim_expected_job_t *job = &sim->expected[j];
        job->seed = sim_mix(sim->seed, 8000 + j);
        job->n_items = 4 + (uint32_t)sim_below(sim, SIM_ITEMS_MAX - 3);
        job->poison = j == 0 && (sim->faults & FAULT_POISON);
        snprintf(job->id, sizeof job->id, "%016llx%016llx", (unsigned long long)job->seed,
                 (unsigned long long)j);
        submit_after(sim, j, 1500 + sim_below(sim, SIM_FAULTS_END_MS - 5000));
    }
}
