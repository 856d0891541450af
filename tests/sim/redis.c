/* Redis with the job functions of common/net/jobs_store.h, as they are promised there: each call is
 * one atomic change at the server's time, on its way there and back things are late or lost. What
 * is acknowledged was written to disk before, unless the mutant says otherwise. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/redis_call.h"

enum { LOST_MS = 1000, FSYNC_MS = 400 };

/* ---- the way there and back ---- */

static void answer_claimed(sim_t *sim, redis_call_t *c)
{
    static core_claimed_t items[CORE_CLAIM_MAX];
    static request_t requests[CORE_CLAIM_MAX];
    static Shoal__V1__Sampling samplings[CORE_CLAIM_MAX];
    static char *stops[CORE_CLAIM_MAX];
    for (size_t i = 0; i < c->n_refs; i++) {
        request_draw(sim_mix(c->refs[i].seed, c->refs[i].index), c->refs[i].poison, &requests[i]);
        requests[i].choices = 1;
        memset(&items[i], 0, sizeof items[i]);
        request_fill(&requests[i], &samplings[i], &stops[i], &items[i].request);
        items[i].ref = (core_item_ref_t){c->refs[i].job, c->refs[i].index, c->refs[i].attempt};
        items[i].deaths = c->refs[i].deaths;
    }
    core_event_t event = {.kind = CORE_EVENT_CLAIMED};
    event.claimed.op = c->op;
    event.claimed.code = c->code;
    event.claimed.items = items;
    event.claimed.n_items = c->n_refs;
    coordinator_event(sim, c->coordinator, c->life, &event);
}

static void answer_claims(sim_t *sim, redis_call_t *c)
{
    core_item_ref_t refs[CORE_CLAIM_MAX];
    for (size_t i = 0; i < c->n_refs; i++)
        refs[i] = (core_item_ref_t){c->refs[i].job, c->refs[i].index, c->refs[i].attempt};
    core_event_t event = {.kind = CORE_EVENT_CLAIMS};
    event.claims.op = c->op;
    event.claims.code = c->code;
    event.claims.refs = refs;
    event.claims.n_refs = c->n_refs;
    coordinator_event(sim, c->coordinator, c->life, &event);
}

static void answer_lists(sim_t *sim, redis_call_t *c)
{
    core_job_state_t states[SIM_JOBS];
    jobs_process_t processes[128];
    core_event_t event = {.kind = CORE_EVENT_JOB_STATES};
    if (c->kind == CORE_ACTION_JOBS_POLL) {
        for (size_t i = 0; i < c->n_states; i++)
            states[i] =
                (core_job_state_t){c->states[i].job, c->states[i].state, c->states[i].version};
        event.job_states.op = c->op;
        event.job_states.code = c->code;
        event.job_states.states = states;
        event.job_states.n_states = c->n_states;
    } else {
        event.kind = CORE_EVENT_JOB_PROCESSES;
        for (size_t i = 0; i < c->n_processes; i++)
            processes[i] =
                (jobs_process_t){c->processes[i] / 1000000000u, c->processes[i] % 1000000000u};
        event.job_processes.op = c->op;
        event.job_processes.code = c->code;
        event.job_processes.processes = processes;
        event.job_processes.n_processes = c->n_processes;
    }
    coordinator_event(sim, c->coordinator, c->life, &event);
}

static void answer(sim_t *sim, void *argument)
{
    redis_call_t *c = argument;
    if (coordinator_put_off(sim, c->coordinator, answer, c, free))
        return;
    core_event_t event = {.kind = CORE_EVENT_JOBS_DONE};
    switch (c->kind) {
    case CORE_ACTION_JOBS_CLAIM:
        answer_claimed(sim, c);
        break;
    case CORE_ACTION_JOBS_MINE:
        answer_claims(sim, c);
        break;
    case CORE_ACTION_JOBS_POLL:
    case CORE_ACTION_JOBS_PROCESSES:
        answer_lists(sim, c);
        break;
    case CORE_ACTION_POINTER_DROP:
        break;
    case CORE_ACTION_POINTER_PUT:
    case CORE_ACTION_POINTER_GET:
    case CORE_ACTION_POINTER_TAKE:
        event.kind = CORE_EVENT_POINTER_DONE;
        event.pointer_done.op = c->op;
        event.pointer_done.code = c->code;
        event.pointer_done.number = c->number;
        event.pointer_done.pointer = c->pointer;
        event.pointer_done.pointer_bytes = c->pointer_bytes;
        coordinator_event(sim, c->coordinator, c->life, &event);
        break;
    default:
        event.jobs_done.op = c->op;
        event.jobs_done.code = c->code;
        event.jobs_done.number = c->number;
        coordinator_event(sim, c->coordinator, c->life, &event);
        break;
    }
    free(c);
}

static void answer_unreachable(sim_t *sim, redis_call_t *c)
{
    c->code = JOBS_UNREACHABLE;
    c->n_refs = c->n_states = c->n_processes = c->pointer_bytes = 0;
    c->number = 0;
    sim_after(sim, LOST_MS, answer, c);
}

static void arrive(sim_t *sim, void *argument)
{
    redis_call_t *c = argument;
    if (!sim->redis.up || c->generation != sim->redis.generation) {
        answer_unreachable(sim, c);
        return;
    }
    redis_apply(sim, c);
    if (c->lose_reply)
        answer_unreachable(sim, c);
    else
        sim_after(sim, sim_delay(sim), answer, c);
}

static void copy_arguments(const sim_t *sim, redis_call_t *c, const core_action_t *a)
{
    switch (a->kind) {
    case CORE_ACTION_JOBS_CLAIM:
        c->process = sim_process(a->claim.process);
        c->n = a->claim.n;
        c->nonce = a->claim.nonce;
        break;
    case CORE_ACTION_JOBS_MINE:
        c->process = sim_process(a->mine.process);
        break;
    case CORE_ACTION_JOBS_ADOPT:
        c->process = sim_process(a->adopt.from);
        c->to = sim_process(a->adopt.to);
        break;
    case CORE_ACTION_JOBS_RELEASE_PROCESS:
        c->process = sim_process(a->release_process.process);
        c->fence = sim->incarnation * 1000000000u + a->release_process.fence;
        break;
    case CORE_ACTION_JOBS_COMPLETE:
    case CORE_ACTION_JOBS_FAIL:
    case CORE_ACTION_JOBS_RELEASE:
    case CORE_ACTION_JOBS_NOTE_DEATH:
        snprintf(c->id, sizeof c->id, "%s", a->item.ref.job);
        c->index = a->item.ref.index;
        c->attempt = a->item.ref.attempt;
        c->process = sim_process(a->item.process);
        c->epoch = a->item.epoch;
        c->n_ids = (uint32_t)a->item.result.n_ids;
        if (a->item.result.text)
            snprintf(c->text, sizeof c->text, "%.*s", (int)a->item.result.text_size,
                     a->item.result.text);
        if (a->item.result.error_code)
            snprintf(c->error, sizeof c->error, "%s", a->item.result.error_code);
        break;
    case CORE_ACTION_JOBS_POLL:
        for (size_t i = 0; i < a->poll.n_jobs && i < SIM_JOBS; i++) {
            snprintf(c->jobs[i], CORE_ID_SIZE, "%s", a->poll.jobs[i].job);
            c->versions[i] = a->poll.jobs[i].after_version;
            c->n_jobs++;
        }
        break;
    case CORE_ACTION_POINTER_PUT:
    case CORE_ACTION_POINTER_GET:
    case CORE_ACTION_POINTER_TAKE:
    case CORE_ACTION_POINTER_DROP:
        snprintf(c->id, sizeof c->id, "%s", a->pointer.id);
        c->owner = a->pointer.owner;
        c->pointer_bytes = a->pointer.pointer_bytes;
        if (a->pointer.pointer)
            memcpy(c->pointer, a->pointer.pointer, a->pointer.pointer_bytes);
        break;
    default:
        break;
    }
}

void redis_call(sim_t *sim, uint32_t coordinator, const core_action_t *action)
{
    redis_call_t *c = MEM_NEW(redis_call_t);
    c->kind = action->kind;
    c->coordinator = coordinator;
    c->life = sim->coordinators[coordinator].life;
    c->op = action->op;
    c->generation = sim->redis.generation;
    copy_arguments(sim, c, action);
    bool loss = sim->now_ms < SIM_FAULTS_END_MS && (sim->faults & FAULT_LOSS);
    if (loss && sim_chance(sim, 15)) {
        answer_unreachable(sim, c); /* the request never came there */
        return;
    }
    c->lose_reply = loss && sim_chance(sim, 15);
    uint64_t at = sim->now_ms + sim_delay(sim);
    uint64_t *last = &sim->redis.last_request_ms[coordinator];
    *last = at > *last ? at : *last;
    sim_after(sim, *last - sim->now_ms, arrive, c);
}

/* ---- jobs from outside ---- */

typedef struct {
    uint32_t job;
    sim_submit_fn done;
    bool acknowledged;
} submit_t;

static void submit_answer(sim_t *sim, void *argument)
{
    submit_t *s = argument;
    s->done(sim, s->job, s->acknowledged);
    free(s);
}

static void submit_arrive(sim_t *sim, void *argument)
{
    submit_t *s = argument;
    sim_expected_job_t *expected = &sim->expected[s->job];
    if (sim->redis.up && !sim->redis.foreign) {
        sim_job_t *job = &sim->redis.data.jobs[s->job];
        if (!job->used) { /* else the idempotency key finds it */
            memset(job, 0, sizeof *job);
            job->used = true;
            memcpy(job->id, expected->id, CORE_ID_SIZE);
            job->seed = expected->seed;
            job->n_items = expected->n_items;
            job->poison = expected->poison;
            job->state = JOBS_STATE_QUEUED;
            job->version = 1;
        }
        s->acknowledged = !(sim->faults & FAULT_LOSS) || !sim_chance(sim, 200);
    }
    sim_after(sim, sim_delay(sim), submit_answer, s);
}

void redis_submit(sim_t *sim, uint32_t job, sim_submit_fn done)
{
    submit_t *s = MEM_NEW(submit_t);
    s->job = job;
    s->done = done;
    sim_after(sim, sim_delay(sim), submit_arrive, s);
}

void redis_cancel_job(sim_t *sim, uint32_t index)
{
    sim_job_t *job = &sim->redis.data.jobs[index];
    if (!sim->redis.up || sim->redis.foreign || !job->used || job->n_ended == job->n_items)
        return;
    sim_trace(sim, "job %u is cancelled", index);
    sim->expected[index].cancelled = true;
    job->state = JOBS_STATE_CANCELLED;
    for (uint32_t i = 0; i < job->n_items; i++)
        if (job->items[i].state != ITEM_STATE_ENDED)
            redis_end_item(sim, job, &job->items[i], JOBS_END_CANCELLED);
}

/* ---- life of the server ---- */

static void fsync_late(sim_t *sim, void *argument)
{
    (void)argument;
    sim->redis.fsynced = sim->redis.data;
    sim_after(sim, FSYNC_MS, fsync_late, NULL);
}

void redis_start(sim_t *sim)
{
    sim->redis.up = true;
    if (sim->mutant == CORE_MUTANT_ACK_BEFORE_FSYNC)
        sim_after(sim, FSYNC_MS, fsync_late, NULL);
}

static void settle(sim_t *sim, void *argument)
{
    (void)argument;
    /* The operator either brings the old data back or takes the empty store as it is. */
    bool restored = sim_chance(sim, 500);
    sim_trace(sim, "redis is %s", restored ? "restored" : "adopted empty");
    if (restored) {
        sim->redis.data = sim->redis.backup;
    } else {
        sim->jobs_void = true;
        sim->redis.data.fence = 0;
    }
    sim->redis.foreign = false;
    coordinators_store(sim, CORE_STORE_REDIS, CORE_STORE_UP);
}

static void back(sim_t *sim, void *argument)
{
    (void)argument;
    sim->redis.up = true;
    coordinators_store(sim, CORE_STORE_REDIS,
                       sim->redis.foreign ? CORE_STORE_FOREIGN : CORE_STORE_UP);
    if (sim->redis.foreign)
        sim_after(sim, 2000 + sim_below(sim, 3000), settle, NULL);
}

void redis_crash(sim_t *sim, uint64_t down_ms, bool emptied)
{
    if (!sim->redis.up || sim->redis.foreign)
        return;
    sim_trace(sim, "redis dies for %llu ms%s", (unsigned long long)down_ms,
              emptied ? ", loses all" : "");
    sim->redis.up = false;
    sim->redis.generation++;
    sim->disturbed = true;
    if (sim->mutant == CORE_MUTANT_ACK_BEFORE_FSYNC)
        sim->redis.data = sim->redis.fsynced;
    if (emptied) {
        sim->redis.backup = sim->redis.data;
        memset(&sim->redis.data, 0, sizeof sim->redis.data);
        sim->redis.foreign = true;
    }
    coordinators_store(sim, CORE_STORE_REDIS, CORE_STORE_DOWN);
    sim_after(sim, down_ms, back, NULL);
}
