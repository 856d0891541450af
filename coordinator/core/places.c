/* See places.h. */
#include "coordinator/core/places.h"

#include <stdio.h>
#include <string.h>

#include "coordinator/core/dispatch.h"
#include "coordinator/core/leaders.h"

enum { PRIORITY_BIAS = 1000, POOLS_TICK_MS = 200 };

void places_list_add(sequence_t **head, sequence_t *s)
{
    s->previous = NULL;
    s->next = *head;
    if (*head)
        (*head)->previous = s;
    *head = s;
}

void places_list_remove(sequence_t **head, sequence_t *s)
{
    if (s->previous)
        s->previous->next = s->next;
    else
        *head = s->next;
    if (s->next)
        s->next->previous = s->previous;
    s->next = s->previous = NULL;
}

pool_t *places_pool(deployment_t *d, const char *identity, bool make)
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

uint64_t places_rank(const sequence_t *s)
{
    int64_t rank = PRIORITY_BIAS - s->session->priority;
    return ((uint64_t)s->class << 32) + (uint64_t)rank;
}

void places_enter_room(core_t *core, sequence_t *s)
{
    deployment_t *d = s->session->deployment;
    heap_t *room = &d->waiting;
    if (*s->session->identity) {
        pool_t *pool = places_pool(d, s->session->identity, true);
        room = s->suspect ? &pool->suspects : &pool->waiting;
        if (s->suspect && !pool->suspects_since_ms)
            pool->suspects_since_ms = core->now_ms;
    }
    s->state = SEQUENCE_WAITING;
    s->room = room;
    heap_push(room, s, &s->place, places_rank(s), s->arrival);
    core->n_waiting++;
    s->counted = s->class == CLASS_INTERACTIVE && !s->session->admitted;
    if (s->counted)
        d->waiting_tokens += s->need;
    if (!core->pools_wake.place)
        core_wake(core, &core->pools_wake, TIMER_POOLS, core, core->now_ms + POOLS_TICK_MS);
}

void places_leave_room(core_t *core, sequence_t *s)
{
    heap_remove(s->room, &s->place);
    s->room = NULL;
    core->n_waiting--;
    if (s->counted)
        s->session->deployment->waiting_tokens -= s->need;
}

/* The slot is for this suspect alone: it runs there, or will when the slot is empty. */
void places_begin_solo(pool_t *pool, slot_t *slot, sequence_t *s)
{
    slot->solo = s;
    pool->solo = s;
    pool->solo_slot = slot;
}

/* The end of a turn alone, however it came. */
void places_end_solo(core_t *core, sequence_t *s)
{
    pool_t *pool = places_pool(s->session->deployment, s->session->identity, false);
    if (pool && pool->solo == s) {
        pool->solo_slot->solo = NULL;
        pool->solo = NULL;
        pool->solo_slot = NULL;
        pool->suspects_since_ms = core->now_ms;
    }
}

void places_leave_slot(core_t *core, sequence_t *s)
{
    slot_t *slot = s->slot;
    places_list_remove(&slot->running, s);
    slot->n_running--;
    slot->committed -= s->need;
    dispatch_heard(s);
    places_end_solo(core, s);
    s->slot = NULL;
}

void dispatch_leave(core_t *core, sequence_t *s)
{
    slot_t *slot = s->slot;
    switch (s->state) {
    case SEQUENCE_WAITING:
        places_leave_room(core, s);
        places_end_solo(core, s);
        break;
    case SEQUENCE_PARKED:
        places_list_remove(&slot->parked, s);
        s->slot = NULL;
        break;
    case SEQUENCE_DELAYED:
        core_wake_off(core, &s->wake);
        if (slot)
            places_list_remove(&slot->parked, s);
        s->slot = NULL;
        break;
    case SEQUENCE_RUNNING:
        places_leave_slot(core, s);
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
