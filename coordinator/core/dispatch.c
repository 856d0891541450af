/* See dispatch.h. Where a sequence may be is places.c; what a lost replica means is losses.c. */
#include "coordinator/core/dispatch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/core/leaders.h"
#include "coordinator/core/places.h"
#include "coordinator/core/session.h"

enum {
    POOLS_TICK_MS = 200,
    SUSPECT_WAIT_MS = 2000,      /* then a slot is kept free for the suspect */
    SOLO_STAGGER_MS = 500,       /* between coordinators that want to begin one */
    LEADER_IDLE_WAIT_MS = 30000, /* then a suspect runs though others' sequences are there */
};

/* ---- choice of a slot ---- */

bool dispatch_takes_new(const core_t *core, const slot_t *slot)
{
    const Shoal__Cluster__V1__DeploymentRecord *want = slot->deployment->record;
    const Shoal__Cluster__V1__ReplicaPlan *is = slot->plan;
    return want && is && slot->active && !leaders_waiting(core, slot) &&
           slot->ordinal < want->replicas && strcmp(is->model_digest, want->model_digest) == 0 &&
           strcmp(is->activations, want->activations) == 0 && strcmp(is->kv, want->kv) == 0 &&
           strcmp(is->quantize, want->quantize) == 0;
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

/* What its Admit takes at most: an id has 5 bytes or fewer. */
static uint64_t admit_bytes_max(const sequence_t *s)
{
    const session_t *session = s->session;
    uint64_t bytes = 1024 + (session->n_prompt + s->log.n) * 5;
    if (session->sampling)
        bytes += shoal__v1__sampling__get_packed_size(session->sampling);
    return bytes;
}

static bool fits(const slot_t *slot, const sequence_t *s)
{
    if (!slot->link || slot->link->state != LINK_OPEN)
        return false;
    if (slot->solo && slot->solo != s)
        return false;
    if (s->suspect)
        return slot->n_running == 0;
    if (slot->unheard_bytes && slot->unheard_bytes + admit_bytes_max(s) > UNHEARD_BYTES_MAX)
        return false;
    /* One sequence may be larger than the credit; but none goes to a leader that grants nothing at
     * all, because it drains. */
    if (slot->committed == 0)
        return slot->link->credit > 0;
    return slot->committed + s->need <= slot->link->credit;
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
    places_list_add(&slot->running, s);
    slot->n_running++;
    slot->committed += s->need;
    slot->solo_alone = s->suspect && leader_idle(core, slot);
    if (s->suspect)
        places_begin_solo(places_pool(slot->deployment, slot->active->text_identity, true), slot,
                          s);
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
            places_list_add(&slot->parked, s);
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
        places_enter_room(core, s);
        for (size_t i = 0; i < d->n_slots && s->state == SEQUENCE_WAITING; i++)
            if (d->slots[i] && d->slots[i]->active)
                dispatch_pump(core, d->slots[i]);
        return;
    }
    const pool_t *pool =
        *s->session->identity ? places_pool(d, s->session->identity, false) : NULL;
    const heap_entry_t *head =
        heap_first(*s->session->identity ? (pool ? &pool->waiting : &(heap_t){0}) : &d->waiting);
    if ((head && head->major <= places_rank(s)) || !route(core, s))
        places_enter_room(core, s);
}

void dispatch_unpark(core_t *core, slot_t *slot)
{
    /* Taken out first: a sequence that finds no place elsewhere may be parked here again. */
    sequence_t *moving = NULL, *next;
    for (sequence_t *s = slot->parked; s; s = next) {
        next = s->next;
        if (s->state != SEQUENCE_PARKED)
            continue;
        places_list_remove(&slot->parked, s);
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
    pool_t *pool = places_pool(d, slot->active->text_identity, false);
    if (pool && pool->suspects.n && !pool->solo) {
        sequence_t *suspect = heap_first(&pool->suspects)->thing;
        uint64_t waited = core->now_ms - pool->suspects_since_ms;
        bool empty = slot->n_running == 0 && !slot->solo;
        if (empty && (leader_idle(core, slot) || waited >= LEADER_IDLE_WAIT_MS))
            return suspect;
        /* No slot became empty by itself: this one is kept free until it is. */
        if (!slot->solo && (empty || waited >= SUSPECT_WAIT_MS))
            places_begin_solo(pool, slot, suspect);
    }
    if (pool && pool->solo && slot->solo == pool->solo && pool->solo->state == SEQUENCE_WAITING) {
        uint64_t waited = core->now_ms - pool->suspects_since_ms;
        bool idle = leader_idle(core, slot) || waited >= LEADER_IDLE_WAIT_MS;
        return slot->n_running == 0 && idle ? pool->solo : NULL;
    }
    const heap_entry_t *bound = pool ? heap_first(&pool->waiting) : NULL;
    const heap_entry_t *fresh = dispatch_takes_new(core, slot) ? heap_first(&d->waiting) : NULL;
    if (bound && fresh)
        return (bound->major <= fresh->major ? bound : fresh)->thing;
    return bound ? bound->thing : fresh ? fresh->thing : NULL;
}

void dispatch_pump(core_t *core, slot_t *slot)
{
    while (!core->drained && slot->active && slot->link && slot->link->state == LINK_OPEN) {
        sequence_t *s = next_for(core, slot);
        if (!s)
            return;
        if (s->suspect && !*s->session->identity) {
            /* Its deaths were counted by another coordinator; any identity will do for it. */
            places_leave_room(core, s);
            snprintf(s->session->identity, sizeof s->session->identity, "%s",
                     slot->active->text_identity);
            places_enter_room(core, s);
            continue;
        }
        if (!fits(slot, s))
            return;
        places_leave_room(core, s);
        admit(core, s, slot);
    }
}

void dispatch_slot_active(core_t *core, slot_t *slot)
{
    slot->link_retry_at_ms = slot->link_retry_ms = slot->link_broken_at_ms = 0;
    pool_t *pool = places_pool(slot->deployment, slot->active->text_identity, false);
    if (core->n_waiting || core->elected || (pool && pool->waiting.n))
        leaders_open(core, slot);
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
    const heap_entry_t *first;
    while ((first = heap_first(&pool->waiting)) || (first = heap_first(&pool->suspects)))
        session_restart(core, ((sequence_t *)first->thing)->session);
}

static void serve_room(core_t *core, heap_t *room)
{
    const heap_entry_t *first;
    while ((first = heap_first(room))) {
        sequence_t *s = first->thing;
        places_leave_room(core, s);
        s->state = SEQUENCE_NEW;
        if (s->suspect || !route(core, s)) {
            places_enter_room(core, s);
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
        const heap_entry_t *head = heap_first(&d->waiting);
        suspects = suspects || (head && ((const sequence_t *)head->thing)->suspect);
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
