/* The places of sequences: the waiting rooms (one for what nothing binds, one and one for suspects
 * a text identity), the lists of a slot, the turn alone. Pure bookkeeping, for dispatch.c and
 * losses.c: whoever calls has decided. */
#ifndef SHOAL_COORDINATOR_CORE_PLACES_H
#define SHOAL_COORDINATOR_CORE_PLACES_H

#include "coordinator/core/state.h"

void places_list_add(sequence_t **head, sequence_t *sequence);
void places_list_remove(sequence_t **head, sequence_t *sequence);

/* The pool of a text identity; with `make`, one is made or an empty one is given that identity. */
pool_t *places_pool(deployment_t *deployment, const char *identity, bool make);

/* The order of a waiting room: class, then priority; heap ties go by arrival. */
uint64_t places_rank(const sequence_t *sequence);
void places_enter_room(core_t *core, sequence_t *sequence);
void places_leave_room(core_t *core, sequence_t *sequence);

/* The slot is for this suspect alone: it runs there, or will when the slot is empty. */
void places_begin_solo(pool_t *pool, slot_t *slot, sequence_t *sequence);
/* The end of a turn alone, however it came. */
void places_end_solo(core_t *core, sequence_t *sequence);

/* Out of the slot it runs at. */
void places_leave_slot(core_t *core, sequence_t *sequence);

#endif
