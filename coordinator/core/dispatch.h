/* Where sequences run: the ring's choice, credits, the waiting rooms, solo runs of suspects, and
 * what happens to a sequence whose replica was lost.
 *
 * A sequence is in one place at a time: in a waiting room, parked at a slot whose link opens,
 * delayed, running at a slot, or ended. Order of service: continuations after a loss
 * then interactive ones by priority, then items; within these by arrival. The head of a room is not
 * passed by others, so nothing starves; a slot that runs nothing of ours takes the head whatever
 * its credit says. To a leader go at most UNHEARD_BYTES_MAX of Admits, or one, that it has not
 * answered: after a broken stream many long logs are sent anew, and they must not overflow the
 * link's send queue, which would break the next stream as well. Per request O(log n). */
#ifndef SHOAL_COORDINATOR_CORE_DISPATCH_H
#define SHOAL_COORDINATOR_CORE_DISPATCH_H

#include "coordinator/core/state.h"

/* Sends a sequence, which is in no place, to a replica or to its waiting room. */
void dispatch_enqueue(core_t *core, sequence_t *sequence);
/* Admits it at this very slot if its link is open (else opens it), whatever the credit. */
bool dispatch_attach(core_t *core, sequence_t *sequence, slot_t *slot);
/* Takes a sequence out of whatever place it is in; no word is sent to a leader. */
void dispatch_leave(core_t *core, sequence_t *sequence);
/* Like leave, and tells the leader that runs it. */
void dispatch_cancel(core_t *core, sequence_t *sequence);
/* Tries again after delay_ms. */
void dispatch_delay(core_t *core, sequence_t *sequence, uint64_t delay_ms);
/* Serves the waiting rooms from a slot that may have got credit. */
void dispatch_pump(core_t *core, slot_t *slot);

/* The replica under a running sequence is gone: it goes on elsewhere from its log, once it is known
 * (or FAILURE_WAIT_MS have passed) whether it has to be suspected. */
void dispatch_lost(core_t *core, sequence_t *sequence);
/* Every running sequence of the slot is lost, and its link is closed. */
void dispatch_slot_lost(core_t *core, slot_t *slot);
/* A new failure record stands at the slot. */
void dispatch_failure(core_t *core, slot_t *slot);
/* The slot can serve: its epoch is active. */
void dispatch_slot_active(core_t *core, slot_t *slot);
/* The leader said something about it: its Admit was read. */
void dispatch_heard(sequence_t *sequence);
/* New ids came: a suspect may have passed the point where it died. */
void dispatch_progress(core_t *core, sequence_t *sequence);

/* Parked sequences find their way again: the link of their slot opened or broke. */
void dispatch_unpark(core_t *core, slot_t *slot);

/* Whether a slot takes sequences that nothing binds to a text identity. */
bool dispatch_takes_new(const core_t *core, const slot_t *slot);
/* KV tokens that could be committed at once to the deployment's slots and that nobody waits for. */
uint64_t dispatch_free_credit(const core_t *core, const deployment_t *deployment);
/* Milliseconds after which a refused request may come again. */
uint32_t dispatch_retry_ms(const core_t *core, const deployment_t *deployment);

void dispatch_timer(core_t *core, sequence_t *sequence); /* TIMER_SEQUENCE */
void dispatch_pools_timer(core_t *core);                 /* TIMER_POOLS */
void dispatch_free(deployment_t *deployment);

#endif
