/* What goes to a client's stream: Started, outputs from the position that it has, the end. Output
 * is state: one message is under way at a time and the next one carries all that came since. */
#ifndef SHOAL_COORDINATOR_CORE_CLIENTS_H
#define SHOAL_COORDINATOR_CORE_CLIENTS_H

#include "coordinator/core/state.h"

/* NULL when the number is not known. */
client_t *clients_find(const core_t *core, uint64_t id);
/* Makes a client and binds it to a session, whose former client is ended. */
client_t *clients_bind(core_t *core, uint64_t id, session_t *session);
/* Sends what the client lacks if it is writable; ends it when it has everything. */
void clients_push(core_t *core, session_t *session);
void clients_writable(core_t *core, uint64_t id);
/* Ends a stream that need not be bound to anything. */
void clients_end(core_t *core, uint64_t id, status_t status, const char *text,
                 uint32_t retry_after_ms);
/* Unbinds and forgets without a word. */
void clients_forget(core_t *core, client_t *client);

#endif
