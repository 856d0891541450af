/* What an agent keeps on disk: a lock, and the newest epoch that it began. */
#ifndef SHOAL_WORKER_AGENT_DATA_H
#define SHOAL_WORKER_AGENT_DATA_H

#include <stdint.h>

#include "common/base/status.h"

/* Makes the directory if need be and locks it until the descriptor is closed: a second agent on it
 * would answer for the same host. STATUS_REFUSED names the other one's pid. */
status_t agent_data_lock(const char *data, int *own_lock_out) MUST_USE;
/* An epoch is formed once: up to this one (compared by incarnation first) they were begun by an
 * earlier process of this agent, whose ranks are dead. Zeros when there was none. */
void agent_data_epoch(const char *data, uint64_t *incarnation_out, uint64_t *epoch_out);
void agent_data_set_epoch(const char *data, uint64_t incarnation, uint64_t epoch);

#endif
