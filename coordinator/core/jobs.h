/* Jobs: claims items against credit that nobody waits for, runs them as sessions, commits their
 * results until the store has answered, and keeps what it holds equal to what Redis says it holds.
 *
 * With Redis away running items go on and their results wait here; an operation without an answer
 * is repeated, which its function in Redis makes harmless. */
#ifndef SHOAL_COORDINATOR_CORE_JOBS_H
#define SHOAL_COORDINATOR_CORE_JOBS_H

#include "coordinator/core/state.h"

/* ---- jobs.c: claims, adoption, reconciliation, cancelled jobs ---- */
void claims_registered(core_t *core, jobs_process_t process);
void claims_store_changed(core_t *core); /* core->redis is another */
void claims_hint(core_t *core);
void claims_claimed(core_t *core, const core_event_t *event);
void claims_mine(core_t *core, const core_event_t *event);
void claims_states(core_t *core, const core_event_t *event);
/* True when the op was one of jobs.c or items.c. */
bool claims_done(core_t *core, const core_event_t *event);
/* Draining: give back what is not committed. */
void claims_release_all(core_t *core);
/* Operations on items may be sent: Redis is there and knows this process. */
bool claims_may_write(const core_t *core);
void claims_timer(core_t *core); /* TIMER_JOBS */
void claims_free(core_t *core);

/* ---- items.c: one item from its claim to its record ---- */
item_t *items_find(const core_t *core, const char *job, uint64_t index);
/* A claimed item starts to run, or to fail. */
void items_start(core_t *core, deployment_t *deployment, const core_claimed_t *claimed);
/* A claim that is ours in Redis but not known here is given back. */
void items_give_back(core_t *core, const core_item_ref_t *ref);
/* Stops a running item and gives it back; its leader may compute on for whoever claims it next
 * unless `tell`. */
void items_release(core_t *core, item_t *item, bool tell);
/* Forgets it without a word to Redis: the claim is not ours any more. */
void items_forget(core_t *core, item_t *item);
bool items_done(core_t *core, const core_event_t *event);

/* The item's session ended, well or not; the session is still whole. */
void items_session_ended(core_t *core, session_t *session);
/* Another attempt runs it: forget it. */
void items_session_superseded(core_t *core, item_t *item);
/* A rank died by its own doing with this item in its step. */
void items_note_death(core_t *core, item_t *item, uint64_t epoch);
void items_timer(core_t *core, item_t *item); /* TIMER_ITEM */

#endif
