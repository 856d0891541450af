/* Redis with the job functions of common/net/jobs_store.h, as they are promised there: each call is
 * one atomic change at the server's time, on its way there and back things are late or lost. What is
 * acknowledged was written to disk before, unless the mutant says otherwise. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

enum { LOST_MS = 1000, FSYNC_MS = 400 };

typedef struct {
    core_action_kind_t kind;
    uint32_t coordinator;
    uint64_t life, op, generation;
    bool lose_reply;
    char id[CORE_ID_SIZE]; /* job or session */
    uint64_t index, attempt, process, to, epoch, n, nonce, fence, owner;
    bool complete;
    char error[16], text[SIM_TEXT_MAX];
    uint32_t n_ids;
    char jobs[SIM_JOBS][CORE_ID_SIZE];
    uint64_t versions[SIM_JOBS];
    size_t n_jobs;
    uint8_t pointer[JOBS_POINTER_BYTES_MAX];
    size_t pointer_bytes;
    /* the answer */
    jobs_code_t code;
    uint64_t number;
    struct { char job[CORE_ID_SIZE]; uint64_t index, attempt, deaths; } refs[CORE_CLAIM_MAX];
    size_t n_refs;
    struct { char job[CORE_ID_SIZE]; jobs_state_t state; uint64_t version; } states[SIM_JOBS];
    size_t n_states;
    uint64_t processes[128];
    size_t n_processes;
} call_t;

uint64_t sim_process(jobs_process_t process)
{
    return process.incarnation * 1000000000u + process.revision;
}

static sim_job_t *find_job(sim_t *sim, const char *id)
{
    for (size_t i = 0; i < SIM_JOBS; i++)
        if (sim->redis.data.jobs[i].used && strcmp(sim->redis.data.jobs[i].id, id) == 0)
            return &sim->redis.data.jobs[i];
    return NULL;
}

static sim_process_t *find_process(sim_t *sim, uint64_t number)
{
    sim_redis_data_t *d = &sim->redis.data;
    for (size_t i = 0; i < d->n_processes; i++)
        if (d->processes[i].number == number)
            return &d->processes[i];
    if (d->n_processes == sizeof d->processes / sizeof *d->processes)
        abort();
    d->processes[d->n_processes] = (sim_process_t){.number = number};
    return &d->processes[d->n_processes++];
}

static void end_item(sim_t *sim, sim_job_t *job, sim_item_t *item, jobs_end_t end)
{
    item->state = ITEM_STATE_ENDED;
    item->end = end;
    item->n_records++;
    job->n_ended++;
    job->version++;
    if (item->n_records > 1)
        sim_violate(sim, "an item of job %.8s got a second record", job->id);
    if (job->n_ended == job->n_items && job->state == JOBS_STATE_RUNNING)
        job->state = JOBS_STATE_SUCCEEDED;
}

/* ---- the functions ---- */

static void do_claim(sim_t *sim, call_t *c)
{
    sim_process_t *p = find_process(sim, c->process);
    uint64_t holder = c->coordinator * 1000000 + c->life;
    if (p->holder && p->holder != holder)
        sim_violate(sim, "process number %llu is used by two lives", (unsigned long long)c->process);
    p->holder = holder;
    if (p->dead || c->nonce < p->nonce) {
        c->code = JOBS_STALE;
        return;
    }
    bool repeat = c->nonce == p->nonce;
    p->nonce = c->nonce;
    for (size_t j = 0; j < SIM_JOBS; j++) {
        sim_job_t *job = &sim->redis.data.jobs[j];
        if (!job->used || (job->state != JOBS_STATE_QUEUED && job->state != JOBS_STATE_RUNNING))
            continue;
        for (uint32_t i = 0; i < job->n_items && c->n_refs < c->n; i++) {
            sim_item_t *item = &job->items[i];
            if (repeat && !(item->state == ITEM_STATE_CLAIMED && item->process == c->process &&
                            item->nonce == c->nonce))
                continue;
            if (!repeat) {
                if (item->state != ITEM_STATE_WAITING)
                    continue;
                item->state = ITEM_STATE_CLAIMED;
                item->process = c->process;
                item->nonce = c->nonce;
                item->attempt++;
                job->state = JOBS_STATE_RUNNING;
                job->version++;
            }
            memcpy(c->refs[c->n_refs].job, job->id, CORE_ID_SIZE);
            c->refs[c->n_refs].index = i;
            c->refs[c->n_refs].deaths = item->deaths;
            c->refs[c->n_refs++].attempt = item->attempt;
        }
    }
}

static void do_mine(sim_t *sim, call_t *c)
{
    for (size_t j = 0; j < SIM_JOBS; j++) {
        const sim_job_t *job = &sim->redis.data.jobs[j];
        for (uint32_t i = 0; job->used && i < job->n_items && c->n_refs < CORE_CLAIM_MAX; i++) {
            if (job->items[i].state != ITEM_STATE_CLAIMED || job->items[i].process != c->process)
                continue;
            memcpy(c->refs[c->n_refs].job, job->id, CORE_ID_SIZE);
            c->refs[c->n_refs].index = i;
            c->refs[c->n_refs++].attempt = job->items[i].attempt;
        }
    }
}

/* A process whose registration stands in etcd is alive: giving its claims away would make two
 * coordinators compute the same items for nothing, and stop it from claiming for ever. */
static void check_release(sim_t *sim, const call_t *c)
{
    for (size_t i = 0; i < sim->etcd.n_keys; i++) {
        const sim_key_t *k = &sim->etcd.keys[i];
        if (strncmp(k->key, "coordinators/", 13) == 0 && !sim->etcd.foreign &&
            sim_process((jobs_process_t){sim->incarnation, k->mod}) == c->process)
            sim_violate(sim, "c%u releases the claims of %s, which is registered", c->coordinator,
                        k->key);
    }
}

static void do_move(sim_t *sim, call_t *c, bool release)
{
    if (release)
        check_release(sim, c);
    find_process(sim, c->process)->dead = true;
    if (c->to)
        find_process(sim, c->to);
    sim_trace(sim, "redis: c%u %s process %llu", c->coordinator, release ? "releases" : "adopts",
              (unsigned long long)c->process);
    for (size_t j = 0; j < SIM_JOBS; j++) {
        sim_job_t *job = &sim->redis.data.jobs[j];
        for (uint32_t i = 0; job->used && i < job->n_items; i++) {
            sim_item_t *item = &job->items[i];
            if (item->state != ITEM_STATE_CLAIMED || item->process != c->process)
                continue;
            if (release)
                item->state = ITEM_STATE_WAITING;
            item->process = c->to;
        }
    }
}

/* The item of complete, fail, release and note_death; NULL with the code set. */
static sim_item_t *current(sim_t *sim, call_t *c, sim_job_t **job_out)
{
    sim_job_t *job = *job_out = find_job(sim, c->id);
    if (!job) {
        c->code = JOBS_NOT_FOUND;
        return NULL;
    }
    sim_item_t *item = &job->items[c->index];
    if (item->state == ITEM_STATE_ENDED) {
        c->code = JOBS_DUP;
        return NULL;
    }
    if (item->state != ITEM_STATE_CLAIMED || item->process != c->process ||
        item->attempt != c->attempt) {
        bool gave_back = c->kind == CORE_ACTION_JOBS_RELEASE && item->state == ITEM_STATE_WAITING;
        c->code = gave_back ? JOBS_OK : JOBS_STALE;
        return NULL;
    }
    return item;
}

static void do_item(sim_t *sim, call_t *c)
{
    sim_job_t *job;
    sim_item_t *item = current(sim, c, &job);
    if (!item)
        return;
    switch (c->kind) {
    case CORE_ACTION_JOBS_RELEASE:
        item->state = ITEM_STATE_WAITING;
        return;
    case CORE_ACTION_JOBS_NOTE_DEATH:
        if (item->death_epoch != c->epoch)
            item->deaths++;
        item->death_epoch = c->epoch;
        c->number = item->deaths;
        return;
    default:
        memcpy(item->text, c->text, sizeof item->text);
        memcpy(item->error, c->error, sizeof item->error);
        item->n_ids = c->n_ids;
        end_item(sim, job, item,
                 c->kind == CORE_ACTION_JOBS_COMPLETE ? JOBS_END_OK : JOBS_END_ERROR);
    }
}

static void do_poll(sim_t *sim, call_t *c)
{
    for (size_t i = 0; i < c->n_jobs; i++) {
        const sim_job_t *job = find_job(sim, c->jobs[i]);
        if (job && job->version <= c->versions[i])
            continue;
        memcpy(c->states[c->n_states].job, c->jobs[i], CORE_ID_SIZE);
        c->states[c->n_states].state = job ? job->state : JOBS_STATE_NONE;
        c->states[c->n_states++].version = job ? job->version : 0;
    }
}

static void do_processes(sim_t *sim, call_t *c)
{
    for (size_t i = 0; i < sim->redis.data.n_processes; i++) {
        const sim_process_t *p = &sim->redis.data.processes[i];
        bool holds = !p->dead;
        for (size_t j = 0; j < SIM_JOBS; j++)
            for (uint32_t k = 0; k < sim->redis.data.jobs[j].n_items; k++)
                holds = holds || (sim->redis.data.jobs[j].items[k].state == ITEM_STATE_CLAIMED &&
                                  sim->redis.data.jobs[j].items[k].process == p->number);
        if (holds)
            c->processes[c->n_processes++] = p->number;
    }
}

static void do_pointer(sim_t *sim, call_t *c)
{
    sim_redis_data_t *d = &sim->redis.data;
    size_t i = 0;
    while (i < d->n_pointers && strcmp(d->pointers[i].id, c->id) != 0)
        i++;
    bool found = i < d->n_pointers;
    sim_pointer_t *p = &d->pointers[i];
    if (c->kind == CORE_ACTION_POINTER_DROP) {
        if (found && p->owner == c->owner)
            *p = d->pointers[--d->n_pointers];
        return;
    }
    if (c->kind == CORE_ACTION_POINTER_PUT) {
        if (found && p->owner > c->owner) {
            c->code = JOBS_STALE;
            c->number = p->owner;
            return;
        }
        if (!found && d->n_pointers == sizeof d->pointers / sizeof *d->pointers)
            abort();
        d->n_pointers += !found;
        memcpy(p->id, c->id, CORE_ID_SIZE);
        p->owner = c->owner;
        memcpy(p->bytes, c->pointer, c->pointer_bytes);
        p->n = c->pointer_bytes;
        return;
    }
    if (!found) {
        c->code = JOBS_NOT_FOUND;
        return;
    }
    if (c->kind == CORE_ACTION_POINTER_TAKE) {
        if (p->owner != c->owner)
            c->code = JOBS_CONFLICT;
        else
            p->owner++;
    }
    c->number = p->owner;
    memcpy(c->pointer, p->bytes, p->n);
    c->pointer_bytes = p->n;
}

static void apply(sim_t *sim, call_t *c)
{
    c->code = JOBS_OK;
    if (sim->redis.foreign) {
        c->code = JOBS_WRONG_STORE;
        return;
    }
    switch (c->kind) {
    case CORE_ACTION_JOBS_CLAIM:
        do_claim(sim, c);
        break;
    case CORE_ACTION_JOBS_MINE:
        do_mine(sim, c);
        break;
    case CORE_ACTION_JOBS_ADOPT:
        do_move(sim, c, false);
        break;
    case CORE_ACTION_JOBS_RELEASE_PROCESS:
        if (c->fence < sim->redis.data.fence) {
            c->code = JOBS_FENCED;
            break;
        }
        sim->redis.data.fence = c->fence;
        do_move(sim, c, true);
        break;
    case CORE_ACTION_JOBS_COMPLETE:
    case CORE_ACTION_JOBS_FAIL:
    case CORE_ACTION_JOBS_RELEASE:
    case CORE_ACTION_JOBS_NOTE_DEATH:
        do_item(sim, c);
        break;
    case CORE_ACTION_JOBS_POLL:
        do_poll(sim, c);
        break;
    case CORE_ACTION_JOBS_PROCESSES:
        do_processes(sim, c);
        break;
    case CORE_ACTION_POINTER_PUT:
    case CORE_ACTION_POINTER_GET:
    case CORE_ACTION_POINTER_TAKE:
    case CORE_ACTION_POINTER_DROP:
        do_pointer(sim, c);
        break;
    default:
        break;
    }
}

/* ---- the way there and back ---- */

static void answer_claimed(sim_t *sim, call_t *c)
{
    static core_claimed_t items[CORE_CLAIM_MAX];
    static request_t requests[CORE_CLAIM_MAX];
    static Shoal__V1__Sampling samplings[CORE_CLAIM_MAX];
    static char *stops[CORE_CLAIM_MAX];
    for (size_t i = 0; i < c->n_refs; i++) {
        const sim_job_t *job = find_job(sim, c->refs[i].job);
        request_draw(sim_mix(job ? job->seed : 1, c->refs[i].index),
                     job && job->poison && c->refs[i].index == 0, &requests[i]);
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

static void answer_claims(sim_t *sim, call_t *c)
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

static void answer_lists(sim_t *sim, call_t *c)
{
    core_job_state_t states[SIM_JOBS];
    jobs_process_t processes[128];
    core_event_t event = {.kind = CORE_EVENT_JOB_STATES};
    if (c->kind == CORE_ACTION_JOBS_POLL) {
        for (size_t i = 0; i < c->n_states; i++)
            states[i] = (core_job_state_t){c->states[i].job, c->states[i].state, c->states[i].version};
        event.job_states.op = c->op;
        event.job_states.code = c->code;
        event.job_states.states = states;
        event.job_states.n_states = c->n_states;
    } else {
        event.kind = CORE_EVENT_JOB_PROCESSES;
        for (size_t i = 0; i < c->n_processes; i++)
            processes[i] = (jobs_process_t){c->processes[i] / 1000000000u, c->processes[i] % 1000000000u};
        event.job_processes.op = c->op;
        event.job_processes.code = c->code;
        event.job_processes.processes = processes;
        event.job_processes.n_processes = c->n_processes;
    }
    coordinator_event(sim, c->coordinator, c->life, &event);
}

static void answer(sim_t *sim, void *argument)
{
    call_t *c = argument;
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

static void answer_unreachable(sim_t *sim, call_t *c)
{
    c->code = JOBS_UNREACHABLE;
    c->n_refs = c->n_states = c->n_processes = c->pointer_bytes = 0;
    c->number = 0;
    sim_after(sim, LOST_MS, answer, c);
}

static void arrive(sim_t *sim, void *argument)
{
    call_t *c = argument;
    if (!sim->redis.up || c->generation != sim->redis.generation) {
        answer_unreachable(sim, c);
        return;
    }
    apply(sim, c);
    if (c->lose_reply)
        answer_unreachable(sim, c);
    else
        sim_after(sim, sim_delay(sim), answer, c);
}

static void copy_arguments(const sim_t *sim, call_t *c, const core_action_t *a)
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
            snprintf(c->text, sizeof c->text, "%.*s", (int)a->item.result.text_size, a->item.result.text);
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
    call_t *c = MEM_NEW(call_t);
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
            end_item(sim, job, &job->items[i], JOBS_END_CANCELLED);
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
    sim_trace(sim, "redis dies for %llu ms%s", (unsigned long long)down_ms, emptied ? ", loses all" : "");
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
