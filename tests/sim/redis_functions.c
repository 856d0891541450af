/* The job functions of common/net/jobs_store.h as they are promised there: each one atomic, on
 * plain arrays, so that a copy of the data is a snapshot of the store. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/redis_call.h"

uint64_t sim_process(jobs_process_t process)
{
    return process.incarnation * 1000000000u + process.revision;
}

sim_job_t *redis_find_job(sim_t *sim, const char *id)
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

void redis_end_item(sim_t *sim, sim_job_t *job, sim_item_t *item, jobs_end_t end)
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

/* All that the answer says of an item, taken now. */
static void add_ref(redis_call_t *c, const sim_job_t *job, uint32_t index)
{
    memcpy(c->refs[c->n_refs].job, job->id, CORE_ID_SIZE);
    c->refs[c->n_refs].index = index;
    c->refs[c->n_refs].attempt = job->items[index].attempt;
    c->refs[c->n_refs].deaths = job->items[index].deaths;
    c->refs[c->n_refs].seed = job->seed;
    c->refs[c->n_refs++].poison = job->poison && index == 0;
}

static void do_claim(sim_t *sim, redis_call_t *c)
{
    sim_process_t *p = find_process(sim, c->process);
    uint64_t holder = c->coordinator * 1000000 + c->life;
    if (p->holder && p->holder != holder)
        sim_violate(sim, "process number %llu is used by two lives",
                    (unsigned long long)c->process);
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
            add_ref(c, job, i);
        }
    }
}

static void do_mine(sim_t *sim, redis_call_t *c)
{
    for (size_t j = 0; j < SIM_JOBS; j++) {
        const sim_job_t *job = &sim->redis.data.jobs[j];
        for (uint32_t i = 0; job->used && i < job->n_items && c->n_refs < CORE_CLAIM_MAX; i++) {
            if (job->items[i].state != ITEM_STATE_CLAIMED || job->items[i].process != c->process)
                continue;
            add_ref(c, job, i);
        }
    }
}

/* A process whose registration stands in etcd is alive: giving its claims away would make two
 * coordinators compute the same items for nothing, and stop it from claiming for ever. */
static void check_release(sim_t *sim, const redis_call_t *c)
{
    for (size_t i = 0; i < sim->etcd.n_keys; i++) {
        const sim_key_t *k = &sim->etcd.keys[i];
        if (strncmp(k->key, "coordinators/", 13) == 0 && !sim->etcd.foreign &&
            sim_process((jobs_process_t){sim->incarnation, k->mod}) == c->process)
            sim_violate(sim, "c%u releases the claims of %s, which is registered", c->coordinator,
                        k->key);
    }
}

static void do_move(sim_t *sim, redis_call_t *c, bool release)
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
static sim_item_t *current(sim_t *sim, redis_call_t *c, sim_job_t **job_out)
{
    sim_job_t *job = *job_out = redis_find_job(sim, c->id);
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

static void do_item(sim_t *sim, redis_call_t *c)
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
        redis_end_item(sim, job, item,
                 c->kind == CORE_ACTION_JOBS_COMPLETE ? JOBS_END_OK : JOBS_END_ERROR);
    }
}

static void do_poll(sim_t *sim, redis_call_t *c)
{
    for (size_t i = 0; i < c->n_jobs; i++) {
        const sim_job_t *job = redis_find_job(sim, c->jobs[i]);
        if (job && job->version <= c->versions[i])
            continue;
        memcpy(c->states[c->n_states].job, c->jobs[i], CORE_ID_SIZE);
        c->states[c->n_states].state = job ? job->state : JOBS_STATE_NONE;
        c->states[c->n_states++].version = job ? job->version : 0;
    }
}

static void do_processes(sim_t *sim, redis_call_t *c)
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

static void do_pointer(sim_t *sim, redis_call_t *c)
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

void redis_apply(sim_t *sim, redis_call_t *c)
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
