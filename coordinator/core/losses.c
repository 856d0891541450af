/* The second half of dispatch.h: what happens to a sequence whose replica is gone. It goes on from
 * its log; but what may have killed a rank must not meet other sequences again, so suspects run
 * alone, and one that kills alone, or DEATHS_MAX times in all, ends as poisoned. */
#include <string.h>

#include "common/base/log.h"
#include "coordinator/core/dispatch.h"
#include "coordinator/core/jobs.h"
#include "coordinator/core/leaders.h"
#include "coordinator/core/places.h"
#include "coordinator/core/session.h"

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
    places_leave_slot(core, s);
    s->state = SEQUENCE_DELAYED;
    s->slot = slot;
    places_list_add(&slot->parked, s);
    bool known = slot->failure && slot->failure->epoch == s->lost_epoch;
    uint64_t wait = known ? 0 : s->suspect ? SUSPECT_FAILURE_WAIT_MS : FAILURE_WAIT_MS;
    core_wake(core, &s->wake, TIMER_SEQUENCE, s, core->now_ms + wait);
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
        places_end_solo(core, slot->solo);
    dispatch_unpark(core, slot);
}

/* The record came after the sequence had gone on elsewhere: one that runs runs on, one that waits
 * waits for its turn alone, and one that was lost again goes on alone when that is explained. */
static void late_record(core_t *core, sequence_t *s, slot_t *slot)
{
    if (!take_loss(s, slot) || !hold_death(core, s, slot->failure->epoch, false))
        return;
    if (s->suspect || s->state == SEQUENCE_RUNNING)
        return;
    bool delayed = s->state == SEQUENCE_DELAYED;
    if (!delayed)
        dispatch_leave(core, s);
    s->suspect = true;
    if (!delayed)
        dispatch_enqueue(core, s);
}

/* Whether the record explains the loss that the sequence waits for just now: go_on takes it. */
static bool explains(const sequence_t *s, const slot_t *slot)
{
    return s->state == SEQUENCE_DELAYED && s->slot == slot &&
           s->lost_epoch == slot->failure->epoch;
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
        for (uint32_t c = 0; c < session->n_choices && !session->dead && !session->taking; c++)
            if (session->choices[c].state != SEQUENCE_ENDED &&
                !explains(&session->choices[c], slot))
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

void dispatch_heard(sequence_t *s)
{
    s->slot->unheard_bytes -= s->unheard_bytes;
    s->unheard_bytes = 0;
}

void dispatch_progress(core_t *core, sequence_t *s)
{
    if (!s->suspect || s->log.n < s->n_at_death + PASSED_IDS)
        return;
    s->suspect = false;
    slot_t *slot = s->slot;
    places_end_solo(core, s);
    leaders_send_admit(core, s, false); /* attaches; the leader may run others beside it again */
    dispatch_pump(core, slot);
}
