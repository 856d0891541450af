/* One page of shared memory between an agent and the leader rank that it spawned: the sessions of
 * the steps that are under way. The leader writes it before each step, so that the agent still
 * knows whose sequences were at work when the leader's process dies in the middle of one.
 *
 * One writer, the leader; it may die at any point of a write and the reader still finds a whole
 * list: the one before or the new one. The reader takes nothing on trust, because a process that
 * crashes may have written anything. The memory is a sealed memfd: neither side can shrink it under
 * the other. */
#ifndef SHOAL_WORKER_STEP_PAGE_H
#define SHOAL_WORKER_STEP_PAGE_H

#include <stdint.h>

#include "common/base/status.h"
#include "worker/control.h"

typedef struct step_page step_page_t;

/* New and empty; *own_fd_out goes to the leader with START and is to be closed. */
status_t step_page_create(step_page_t **own_out, int *own_fd_out) MUST_USE;
/* The leader's side. STATUS_INVALID when the descriptor is no such page. */
status_t step_page_map(int fd, step_page_t **own_out) MUST_USE;
/* NULL is fine. */
void step_page_unmap(step_page_t *take_page);

/* Replaces the list; more than CONTROL_SESSIONS_MAX are cut off. Copies, and never blocks. */
void step_page_write(step_page_t *page, uint32_t n, const char (*sessions)[CONTROL_SESSION_BYTES]);
/* The list as it stands, without what is no session's name; returns how many. */
uint32_t step_page_read(const step_page_t *page,
                        char sessions_out[CONTROL_SESSIONS_MAX][CONTROL_SESSION_BYTES]);

#endif
