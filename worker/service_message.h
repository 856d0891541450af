/* The messages of the Engine service as the leader's mailbox wants them, and back. Pure. */
#ifndef SHOAL_WORKER_SERVICE_MESSAGE_H
#define SHOAL_WORKER_SERVICE_MESSAGE_H

#include "common/base/memory.h"
#include "common/base/status.h"
#include "shoal/worker/v1/engine.pb-c.h"
#include "worker/engine/scheduler.h"

/* Reads an Admit. Its arrays are borrowed from the message and the arena. STATUS_INVALID names the
 * field that cannot be; the caller then answers with an Ended, because every Admit gets one. */
status_t service_read_admit(const Shoal__Worker__V1__Admit *admit, arena_t *arena,
                            admission_t *out) MUST_USE;

/* An output as a message; everything lies in the arena. `drawn` belongs to it. */
Shoal__Worker__V1__SequenceOutput *service_write_output(const sequence_output_t *output,
                                                        const sampled_t *drawn, arena_t *arena);
/* The end of an Admit that never reached the scheduler. */
Shoal__Worker__V1__SequenceOutput *service_write_refusal(const char *session, uint32_t choice,
                                                         uint64_t owner, const char *code,
                                                         const char *words, arena_t *arena);
void service_write_load(const scheduler_load_t *load, Shoal__Worker__V1__Load *out);

#endif
