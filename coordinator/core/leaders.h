/* One stream a leader: opened on first use with Hello, closed when idle, tried again with growing
 * waits when broken. Messages are packed and checked here. */
#ifndef SHOAL_COORDINATOR_CORE_LEADERS_H
#define SHOAL_COORDINATOR_CORE_LEADERS_H

#include "coordinator/core/state.h"

/* Opens the slot's link unless it has one or its wait is not over. */
void leaders_open(core_t *core, slot_t *slot);
/* Closes it without touching sequences. */
void leaders_close(core_t *core, slot_t *slot);
/* True while a broken link waits for its next try. */
bool leaders_waiting(const core_t *core, const slot_t *slot);

void leaders_send_admit(core_t *core, sequence_t *sequence, bool solo);
void leaders_send_cancel(core_t *core, const sequence_t *sequence);

void leaders_message(core_t *core, uint64_t link, const uint8_t *bytes, size_t size);
void leaders_broken(core_t *core, uint64_t link, const char *text);
void leaders_timer(core_t *core, link_t *link); /* TIMER_LINK */

#endif
