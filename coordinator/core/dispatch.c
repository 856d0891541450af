/* See dispatch.h. */
#include "coordinator/core/dispatch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "coordinator/core/jobs.h"
#include "coordinator/core/leaders.h"
#include "coordinator/core/session.h"

enum { POOLS_TICK_MS = 200, SUSPECT_WAIT_MS = 2000, SOLO_STAGGER_MS = 500,
       LEADER_IDLE_WAIT_MS = 30000, PRIORITY_BIAS = 1000 };

/* ---- places ---- */

static void list_add(sequence_t **head, sequence_t *s)
{
    s->previous = NULL;
    s->next = *head;
    if (*head)
        (*head)->previous = s;
    *head = s;
}

static void list_remove(sequence_t **head, sequence_t *s)
{
    if (s->previous)
        s->previous->next = s->next;
    else
        *head = s->next;
    if (s->next)
        s->next->previous = s->previous;
    s->next = s->previous = NULL;
}

static pool_t *find_pool(deployment_t *d, const char *identity, bool make)
{
    for (size_t i = 0; i < d->n_pools; i++)
        if (strcmp(d->pools[i]->identity, identity) == 0)
            return d->pools[i];
    pool_t *pool = NULL;
    for (size_t i = 0; make && i < d->n_pools && d->n_pools == POOLS_MAX; i++)
        if (!d->pools[i]->waiting.n && !d->pools[i]->suspects.n && !d->pools[i]->solo)
            pool = d->pools[i];
    if (!pool && make) {
        CHECK(d->n_pools < POOLS_MAX);
        pool = d->pools[d->n_pools++] = MEM_NEW(pool_t);
    }
    if (pool) {
        snprintf(pool->identity, sizeof pool->identity, "%s", identity);
        pool->orphan_since_ms = 0;
    }
    return pool;
}

static void enter_room(core_t *core, sequence_t *s)
{
    deployment_t *d = s->session->deployment;
    heap_t *room = &d->waiting;
    if (*s->session->identity) {
        pool_t *pool = find_pool(d, s->session->identity, true);
        room = s->suspect ? &pool->suspects : &pool->waiting;
        if (s->suspect && !pool->suspects_since_ms)
            pool->suspects_since_ms = core->now_ms;
    }
    s->state = SEQUENCE_WAITING;
    s->room = room;
    s->place.owner = s;
    int64_t rank = PRIORITY_BIAS - s->session->priority;
    heap_push(room, &s->place, ((uint64_t)s->class << 32) + (uint64_t)rank, s->arrival);
    core->n_waiting++;
    s->counted = s->class == CLASS_INTERACTIVE && !s->session->admitted;
    if (s->counted)
        d->waiting_tokens += s->need;
    if (!core->pools_wake.node.place)
        core_wake(core, &core->pools_wake, TIMER_POOLS, core, core->now_ms + POOLS_TICK_MS);
}

static void leave_room(core_t *core, sequence_t *s)
{
    heap_remove(s->room, &s->place);
    s->room = NULL;
    core->n_waiting--;
    if (s->counted)
        s->session->deployment->waiting_tokens -= s->need;
}

/* The slot is for this suspect alone: it runs there, or will when the slot is empty. */
static void begin_solo(pool_t *pool, slot_t *slot, sequence_t *s)
{
    slot->solo = s;
    pool->solo = s;
    pool->solo_slot = slot;
}

/* The end of a turn alone, however it came. */
static void end_solo(core_t *core, sequence_t *s)
{
    pool_t *pool = find_pool(s->session->deployment, s->session->identity, false);
    if (pool && pool->solo == s) {
        pool->solo_slot->solo = NULL;
        pool->solo = NULL;
        pool->solo_slot = NULL;
        pool->suspects_since_ms = core->now_ms;
    }
}

static void leave_slot(core_t *core, sequence_t *s)
{
    slot_t *slot = s->slot;
    list_remove(&slot->running, s);
    slot->n_running--;
    slot->committed -= s->need;
    if (s->recovering)
        slot->n_recovering--;
    s->recovering = false;
    end_solo(core, s);
    s->slot = NULL;
}

void dispatch_leave(core_t *core, sequence_t *s)
{
    slot_t *slot = s->slot;
    switch (s->state) {
    case SEQUENCE_WAITING:
        leave_room(core, s);
        end_solo(core, s);
        break;
    case SEQUENCE_PARKED:
        list_remove(&slot->parked, s);
        s->slot = NULL;
        break;
    case SEQUENCE_DELAYED:
        core_wake_off(core, &s->wake);
        if (slot)
            list_remove(&slot->parked, s);
        s->slot = NULL;
        break;
    case SEQUENCE_RUNNING:
        leave_slot(core, s);
        break;
    case SEQUENCE_NEW:
    case SEQUENCE_ENDED:
        return;
    }
    bool ran = s->state == SEQUENCE_RUNNING;
    s->state = SEQUENCE_NEW;
    if (ran)
        dispatch_pump(core, slot);
}

void dispatch_cancel(core_t *core, sequence_t *s)
{
    if (s->state == SEQUENCE_RUNNING)
        leaders_send_cancel(core, s);
    dispatch_leave(core, s);
}

void dispatch_delay(core_t *core, sequence_t *s, uint64_t delay_ms)
{
    CHECK(s->state == SEQUENCE_NEW);
    s->state = SEQUENCE_DELAYED;
    s->slot = NULL;
    core_wake(core, &s->wake, TIMER_SEQUENCE, s, core->now_ms + delay_ms);
}

/* ---- choice of a slot ---- */

bool dispatch_takes_new(const core_t *core, const slot_t *slot)
{
    const Shoal__Cluster__V1__DeploymentRecord *want = slot->deployment->record;
    const Shoal__Cluster__V1__ReplicaPlan *is = slot->plan;
    return want && is && slot->active && !leaders_waiting(core, slot) &&
           slot->ordinal < want->replicas && strcmp(is->model_digest, want->model_digest) == 0 &&
           strcmp(is->activations, want->activations) == 0;
}

static bool takes(const core_t *core, const slot_t *slot, const sequence_t *s)
{
    if (!*s->session->identity)
        return dispatch_takes_new(core, slot);
    return slot->active && !leaders_waiting(core, slot) &&
           strcmp(slot->active->text_identity, s->session->identity) == 0;
}

typedef struct {
    const core_t *core;
    const sequence_t *sequence;
} usable_t;

static bool usable(void *context, uint32_t node)
{
    const usable_t *u = context;
    const slot_t *slot = cluster_slot(u->sequence->session->deployment, node);
    return slot && takes(u->core, slot, u->sequence);
}

static bool fits(const slot_t *slot, const sequence_t *s)
{
    if (!slot->link || slot->link->state != LINK_OPEN)
        return false;
    if (slot->solo && slot->solo != s)
        return false;
    if (s->suspect)
        return slot->n_running == 0;
    if (s->class == CLASS_CONTINUATION && slot->n_recovering >= RECOVERING_MAX)
        return false;
    return slot->committed == 0 || slot->committed + s->need <= slot->link->credit;
}

/* Whether the leader runs nothing, of whomever. Coordinators begin in the order of their ids, so
 * that two of them that find a fresh replica do not both begin at once: each would take the death
 * that the other's suspect causes for its own's. */
static bool leader_idle(const core_t *core, const slot_t *slot)
{
    size_t before_us = 0;
    for (size_t i = 0; i < core->n_coordinators; i++)
        before_us += strcmp(core->coordinators[i].id, core->config.id) < 0;
    const link_t *link = slot->link;
    return link && link->load.running + link->load.waiting == 0 &&
           core->now_ms >= link->opened_at_ms + before_us * SOLO_STAGGER_MS;
}

static void admit(core_t *core, sequence_t *s, slot_t *slot)
{
    s->state = SEQUENCE_RUNNING;
    s->slot = slot;
    s->epoch = slot->epoch;
    list_add(&slot->running, s);
    slot->n_running++;
    slot->committed += s->need;
    if (s->class == CLASS_CONTINUATION) {
        s->recovering = true;
        slot->n_recovering++;
    }
    slot->solo_alone = s->suspect && leader_idle(core, slot);
    if (s->suspect)
        begin_solo(find_pool(slot->deployment, slot->active->text_identity, true), slot, s);
    session_t *session = s->session;
    bool first = !session->admitted;
    if (first)
        session_admitted(core, session, slot);
    leaders_send_admit(core, s, s->suspect);
    if (!first && !session->item && session->sampling && s == &session->choices[0])
        session_moved(core, session, slot);
}

bool dispatch_attach(core_t *core, sequence_t *s, slot_t *slot)
{
    CHECK(s->state == SEQUENCE_NEW);
    leaders_open(core, slot);
    if (!slot->link || slot->link->state != LINK_OPEN)
        return false;
    admit(core, s, slot);
    return true;
}

/* Along the ring: the first slot with credit, or the first whose link must be opened for it. */
static bool route(core_t *core, sequence_t *s)
{
    uint32_t nodes[RING_WALK_MAX];
    usable_t context = {core, s};
    deployment_t *d = s->session->deployment;
    size_t n = ring_walk(d->ring, s->session->ring_key, usable, &context, nodes, RING_WALK_MAX);
    for (size_t i = 0; i < n; i++) {
        slot_t *slot = cluster_slot(d, nodes[i]);
        if (!slot->link)
            leaders_open(core, slot);
        if (slot->link && slot->link->state == LINK_OPENING) {
            s->state = SEQUENCE_PARKED;
            s->slot = slot;
            list_add(&slot->parked, s);
            return true;
        }
        if (fits(slot, s)) {
            admit(core, s, slot);
            return true;
        }
    }
    return false;
}

void dispatch_enqueue(core_t *core, sequence_t *s)
{
    CHECK(s->state == SEQUENCE_NEW);
    deployment_t *d = s->session->deployment;
    if (!s->arrival)
        s->arrival = core_number(core);
    if (s->suspect) {
        enter_room(core, s);
        for (size_t i = 0; i < d->n_slots && s->state == SEQUENCE_WAITING; i++)
            if (d->slots[i] && d->slots[i]->active)
                dispatch_pump(core, d->slots[i]);
        return;
    }
    const pool_t *pool =
        *s->session->identity ? find_pool(d, s->session->identity, false) : NULL;
    const heap_node_t *head = heap_top(*s->session->identity ? (pool ? &pool->waiting : &(heap_t){0})
                                                             : &d->waiting);
    uint64_t major = ((uint64_t)s->class << 32) + (uint64_t)(PRIORITY_BIAS - s->session->priority);
    if ((head && head->major <= major) || !route(core, s))
        enter_room(core, s);
}

void dispatch_unpark(core_t *core, slot_t *slot)
{
    /* Taken out first: a sequence that finds no place elsewhere may be parked here again. */
    sequence_t *moving = NULL, *next;
    for (sequence_t *s = slot->parked; s; s = next) {
        next = s->next;
        if (s->state != SEQUENCE_PARKED)
            continue;
        list_remove(&slot->parked, s);
        s->slot = NULL;
        s->state = SEQUENCE_NEW;
        s->next = moving;
        moving = s;
    }
    for (sequence_t *s = moving; s; s = next) {
        next = s->next;
        s->next = NULL;
        dispatch_enqueue(core, s);
    }
}

/* ---- service of the waiting rooms ---- */

/* Whose turn it is at a slot; NULL when nobody who waits may use it now. */
static sequence_t *next_for(core_t *core, slot_t *slot)
{
    deployment_t *d = slot->deployment;
    pool_t *pool = find_pool(d, slot->active->text_identity, false);
    if (pool && pool->suspects.n && !pool->solo) {
        sequence_t *suspect = heap_top(&pool->suspects)->owner;
        uint64_t waited = core->now_ms - pool->suspects_since_ms;
        bool empty = slot->n_running == 0 && !slot->solo;
        if (empty && (leader_idle(core, slot) || waited >= LEADER_IDLE_WAIT_MS))
            return suspect;
        /* No slot became empty by itself: this one is kept free until it is. */
        if (!slot->solo && (empty || waited >= SUSPECT_WAIT_MS))
            begin_solo(pool, slot, suspect);
    }
    if (pool && pool->solo && slot->solo == pool->solo && pool->solo->state == SEQUENCE_WAITING) {
        uint64_t waited = core->now_ms - pool->suspects_since_ms;
        bool idle = leader_idle(core, slot) || waited >= LEADER_IDLE_WAIT_MS;
        return slot->n_running == 0 && idle ? pool->solo : NULL;
    }
    heap_node_t *bound = pool ? heap_top(&pool->waiting) : NULL;
    heap_node_t *fresh = dispatch_takes_new(core, slot) ? heap_top(&d->waiting) : NULL;
    if (bound && fresh)
        return (bound->major <= fresh->major ? bound : fresh)->owner;
    return bound ? bound->owner : fresh ? fresh->owner : NULL;
}

void dispatch_pump(core_t *core, slot_t *slot)
{
    while (!core->drained && slot->active && slot->link && slot->link->state == LINK_OPEN) {
        sequence_t *s = next_for(core, slot);
        if (!s)
            return;
        if (s->suspect && !*s->session->identity) {
            /* Its deaths were counted by another coordinator; any identity will do for it. */
            leave_room(core, s);
            snprintf(s->session->identity, sizeof s->session->identity, "%s",
                     slot->active->text_identity);
            enter_room(core, s);
            continue;
        }
        if (!fits(slot, s))
            return;
        leave_room(core, s);
        admit(core, s, slot);
    }
}

void dispatch_slot_active(core_t *core, slot_t *slot)
{
    slot->link_retry_at_ms = slot->link_retry_ms = slot->link_broken_at_ms = 0;
    pool_t *pool = find_pool(slot->deployment, slot->active->text_identity, false);
    if (core->n_waiting || core->elected || (pool && pool->waiting.n))
        leaders_open(core, slot);
    dispatch_pump(core, slot);
}

/* ---- losses ---- */

static bool names(const Shoal__Cluster__V1__FailureRecord *failure, const sequence_t *s)
{
    for (size_t i = 0; i < failure->n_sessions; i++)
        if (strcmp(failure->sessions[i], s->session->id) == 0)
            return true;
    return failure->n_sessions == 0;
}

static void note_loss(sequence_t *s, slot_t *slot, uint64_t epoch)
{
    memmove(s->losses + 1, s->losses, (LOSSES_MAX - 1) * sizeof *s->losses);
    s->losses[0] = (loss_t){slot, epoch};
}

/* Whether the slot's failure record is about one of its losses; each counts once. */
static bool take_loss(sequence_t *s, const slot_t *slot)
{
    const Shoal__Cluster__V1__FailureRecord *failure = slot->failure;
    for (size_t i = 0; failure && i < LOSSES_MAX; i++)
        if (s->losses[i].slot == slot && s->losses[i].epoch == failure->epoch) {
            s->losses[i] = (loss_t){0};
            return failure->crashed && names(failure, s);
        }
    return false;
}

/* Holds a death against the sequence; false when that ended it. `alone`: nothing else can have
 * caused it. */
static bool hold_death(core_t *core, sequence_t *s, uint64_t epoch, bool alone)
{
    s->deaths++;
    s->n_at_death = s->log.n;
    if (s->session->item)
        items_note_death(core, s->session->item, epoch);
    if (!alone && s->deaths < DEATHS_MAX)
        return true;
    session_finish(core, s, SHOAL__V1__FINISH_REASON__FINISH_REASON_ERROR, "poisoned",
                   "ranks die when they compute this request; it is not tried again");
    return false;
}

/* Nobody has said why the replica is gone. Once that may be a cut stream; twice in a row without
 * getting on, or with etcd away (so that nobody can say, and no replica is formed anew), what may
 * have been the cause must not meet the others again. */
static void unexplained(core_t *core, sequence_t *s)
{
    bool again = s->unexplained && s->log.n < s->n_at_death + PASSED_IDS;
    if (again || core->etcd != CORE_STORE_UP)
        s->suspect = true;
    s->unexplained = true;
    s->n_at_death = s->log.n;
}

static void go_on(core_t *core, sequence_t *s)
{
    slot_t *slot = s->lost_slot;
    if (s->session->taking) { /* there is no log yet to go on from */
        takeover_again(core, s->session);
        return;
    }
    s->class = CLASS_CONTINUATION;
    if (slot->failure && slot->failure->epoch == s->lost_epoch && take_loss(s, slot)) {
        /* A record that names it alone is proof. Without names another coordinator's sequence may
         * have been there unseen: only the second such death is held to be its own. */
        s->n_alone += s->lost_solo && s->lost_alone;
        bool alone = s->lost_solo && (slot->failure->n_sessions == 1 || s->n_alone >= 2);
        if (!hold_death(core, s, s->lost_epoch, alone))
            return;
        s->suspect = true;
    } else if (!slot->failure || slot->failure->epoch != s->lost_epoch) {
        unexplained(core, s);
    }
    dispatch_enqueue(core, s);
}

static void lose(core_t *core, sequence_t *s)
{
    slot_t *slot = s->slot;
    s->lost_solo = slot->solo == s;
    s->lost_alone = s->lost_solo && slot->solo_alone;
    s->lost_slot = slot;
    s->lost_epoch = s->epoch;
    note_loss(s, slot, s->epoch);
    leave_slot(core, s);
    s->state = SEQUENCE_DELAYED;
    s->slot = slot;
    list_add(&slot->parked, s);
    bool known = slot->failure && slot->failure->epoch == s->lost_epoch;
    core_wake(core, &s->wake, TIMER_SEQUENCE, s, core->now_ms + (known ? 0 : FAILURE_WAIT_MS));
}

void dispatch_lost(core_t *core, sequence_t *s)
{
    if (s->state == SEQUENCE_RUNNING)
        lose(core, s);
}

void dispatch_slot_lost(core_t *core, slot_t *slot)
{
    leaders_close(core, slot);
    while (slot->running)
        lose(core, slot->running);
    if (slot->solo) /* it only waited for the slot to be empty */
        end_solo(core, slot->solo);
    dispatch_unpark(core, slot);
}

/* The record came after the sequence had gone on elsewhere: one that runs runs on, one that waits
 * waits for its turn alone. */
static void late_record(core_t *core, sequence_t *s, slot_t *slot)
{
    if (!take_loss(s, slot) || !hold_death(core, s, slot->failure->epoch, false))
        return;
    if (s->suspect || s->state == SEQUENCE_RUNNING)
        return;
    dispatch_leave(core, s);
    s->suspect = true;
    dispatch_enqueue(core, s);
}

void dispatch_failure(core_t *core, slot_t *slot)
{
    const Shoal__Cluster__V1__FailureRecord *failure = slot->failure;
    sequence_t *next;
    for (sequence_t *s = slot->parked; s; s = next) {
        next = s->next;
        if (s->state == SEQUENCE_DELAYED && s->lost_epoch == failure->epoch)
            core_wake(core, &s->wake, TIMER_SEQUENCE, s, core->now_ms);
    }
    if (!failure->crashed)
        return;
    size_t i = 0;
    for (session_t *session; (session = table_next(&core->sessions, &i));) {
        for (uint32_t c = 0; c < session->n_choices && !session->dead; c++)
            if (session->choices[c].state != SEQUENCE_ENDED &&
                session->choices[c].state != SEQUENCE_DELAYED)
                late_record(core, &session->choices[c], slot);
        if (session->dead)
            i = 0; /* the table has changed; a loss that was taken is not found again */
    }
}

void dispatch_timer(core_t *core, sequence_t *s)
{
    if (s->state != SEQUENCE_DELAYED)
        return;
    bool lost = s->slot != NULL;
    dispatch_leave(core, s);
    if (lost)
        go_on(core, s);
    else
        dispatch_enqueue(core, s);
}

void dispatch_progress(core_t *core, sequence_t *s)
{
    if (s->recovering) {
        s->recovering = false;
        s->slot->n_recovering--;
    }
    if (!s->suspect || s->log.n < s->n_at_death + PASSED_IDS)
        return;
    s->suspect = false;
    slot_t *slot = s->slot;
    end_solo(core, s);
    leaders_send_admit(core, s, false); /* attaches; the leader may run others beside it again */
    dispatch_pump(core, slot);
}

/* ---- time ---- */

static void check_orphans(core_t *core, deployment_t *d, pool_t *pool)
{
    bool served = false, other = false;
    for (size_t i = 0; i < d->n_slots; i++) {
        const slot_t *slot = d->slots[i];
        if (!slot || !slot->active)
            continue;
        if (strcmp(slot->active->text_identity, pool->identity) == 0)
            served = true;
        else
            other = true;
    }
    if (served || !other || (!pool->waiting.n && !pool->suspects.n)) {
        pool->orphan_since_ms = 0;
        return;
    }
    if (!pool->orphan_since_ms)
        pool->orphan_since_ms = core->now_ms;
    if (core->now_ms - pool->orphan_since_ms < ORPHAN_MS)
        return;
    heap_node_t *top;
    while ((top = heap_top(&pool->waiting)) || (top = heap_top(&pool->suspects)))
        session_restart(core, ((sequence_t *)top->owner)->session);
}

static void serve_room(core_t *core, heap_t *room)
{
    heap_node_t *top;
    while ((top = heap_top(room))) {
        sequence_t *s = top->owner;
        leave_room(core, s);
        s->state = SEQUENCE_NEW;
        if (s->suspect || !route(core, s)) {
            enter_room(core, s);
            return;
        }
    }
}

/* Nothing that waits depends on one event alone: what a lost watch, a closed link or a reservation
 * left behind is found here. */
void dispatch_pools_timer(core_t *core)
{
    for (size_t i = 0; i < core->n_deployments; i++) {
        deployment_t *d = core->deployments[i];
        bool suspects = false;
        for (size_t k = 0; k < d->n_pools; k++) {
            serve_room(core, &d->pools[k]->waiting);
            check_orphans(core, d, d->pools[k]);
            suspects = suspects || d->pools[k]->suspects.n;
        }
        serve_room(core, &d->waiting);
        const heap_node_t *head = heap_top(&d->waiting);
        suspects = suspects || (head && ((const sequence_t *)head->owner)->suspect);
        for (size_t k = 0; (suspects || d->waiting.n) && k < d->n_slots; k++) {
            slot_t *slot = d->slots[k];
            if (!slot || !slot->active)
                continue;
            if (suspects && !slot->link)
                leaders_open(core, slot);
            dispatch_pump(core, slot);
        }
    }
    if (core->n_waiting)
        core_wake(core, &core->pools_wake, TIMER_POOLS, core, core->now_ms + POOLS_TICK_MS);
}

uint64_t dispatch_free_credit(const core_t *core, const deployment_t *d)
{
    if (d->waiting.n)
        return 0;
    uint64_t free_tokens = 0;
    for (size_t i = 0; i < d->n_slots; i++) {
        const slot_t *slot = d->slots[i];
        if (!slot || slot->solo || !dispatch_takes_new(core, slot))
            continue;
        if (!slot->link || slot->link->state != LINK_OPEN)
            free_tokens += d->item_tokens; /* enough to open it */
        else if (slot->link->credit > slot->committed)
            free_tokens += slot->link->credit - slot->committed;
        else if (slot->n_running == 0)
            free_tokens += d->item_tokens;
    }
    return free_tokens;
}

uint32_t dispatch_retry_ms(const core_t *core, const deployment_t *d)
{
    /* As long as the room is full, what waits needs about queue_wait_ms; spread so that those who
     * were refused together do not come back together. */
    (void)d;
    uint64_t half = core->config.queue_wait_ms / 2;
    uint64_t spread = (core->next_number * 2654435761u) % (half + 1);
    return (uint32_t)(500 + half / 2 + spread / 2);
}

void dispatch_free(deployment_t *d)
{
    for (size_t i = 0; i < d->n_pools; i++) {
        heap_release(&d->pools[i]->waiting);
        heap_release(&d->pools[i]->suspects);
        free(d->pools[i]);
    }
    heap_release(&d->waiting);
}
