/* Sessions: one request from its arrival to its end, with a token log a choice. Knows what a client
 * or a job may see of it; where it runs is dispatch.h's business. */
#ifndef SHOAL_COORDINATOR_CORE_SESSION_H
#define SHOAL_COORDINATOR_CORE_SESSION_H

#include "coordinator/core/state.h"

/* Events of clients. */
void session_generate(core_t *core, uint64_t client, const core_request_t *request);
void session_resume(core_t *core, uint64_t client, const char *id, const uint32_t *n,
                    size_t n_choices);
void session_cancel(core_t *core, uint64_t client, const char *id, bool take);
void session_client_gone(core_t *core, uint64_t client);

/* A session for an item; the caller enqueues its one choice. */
session_t *session_for_item(core_t *core, item_t *item, deployment_t *deployment,
                            const core_request_t *request);

/* For takeover.c: an empty session, and what its request is once that is known. */
session_t *session_make(core_t *core, const char *id, deployment_t *deployment);
void session_set_request(session_t *session, const core_request_t *request, uint64_t now_ms);

session_t *session_find(const core_t *core, const char *id);
/* Ends every choice that runs (saying so to leaders when `tell`) and forgets the session. Its
 * client must have been ended before. */
void session_drop(core_t *core, session_t *session, bool tell);
/* Ends the client with a status, the rest as session_drop. */
void session_fail(core_t *core, session_t *session, status_t status, const char *text,
                  uint32_t retry_after_ms);

/* New ids of a choice, the first of them at position `first`; known ones are compared and skipped.
 * logprobs has n entries or is NULL. Returns false when ids are missing in between. */
bool session_append(core_t *core, sequence_t *sequence, uint32_t first, const uint32_t *ids,
                    size_t n, Shoal__V1__Logprobs *const *logprobs);
/* A choice ends; error_code NULL means well. */
void session_finish(core_t *core, sequence_t *sequence, Shoal__V1__FinishReason finish,
                    const char *error_code, const char *error_message);
/* Another coordinator serves it now. */
void session_superseded(core_t *core, session_t *session);
/* The first choice was admitted at the slot. */
void session_admitted(core_t *core, session_t *session, const slot_t *slot);
/* A sequence moved to another slot: the pointer is written again. */
void session_moved(core_t *core, session_t *session, const slot_t *slot);
/* Ids are forgotten: the text identity they belong to has no replica any more. */
void session_restart(core_t *core, session_t *session);

/* Frees the sessions that were dropped: at the end of a step, when nothing points to them. */
void session_bury(core_t *core);

void session_timer(core_t *core, session_t *session); /* TIMER_SESSION */
void session_rearm(core_t *core, session_t *session);

/* takeover.c: the session of a coordinator that is gone. */
void takeover_start(core_t *core, uint64_t client, const char *id, const uint32_t *n,
                    size_t n_choices);
/* The same for a client that wants the request ended. */
void takeover_cancel(core_t *core, uint64_t client, const char *id);
/* The session was taken over, or was not: whoever wants it ended is told. */
void takeover_cancel_done(core_t *core, session_t *session, status_t status, const char *text);
/* A client came back to a session that another coordinator had taken. */
void takeover_back(core_t *core, session_t *session);
void takeover_pointer(core_t *core, const core_event_t *event);
/* The first output of the attached choice 0 says what it was admitted with. False: not usable. */
bool takeover_admitted(core_t *core, session_t *session, const Shoal__Worker__V1__Admit *admitted);
void takeover_step(core_t *core, session_t *session);
/* What it was attached to is gone, or does not know it: look at the pointer again for a while. */
void takeover_again(core_t *core, session_t *session);
/* Packs the session's pointer into the actions' arena. */
uint8_t *takeover_pack(core_t *core, const session_t *session, const slot_t *slot, size_t *n_out);

#endif
