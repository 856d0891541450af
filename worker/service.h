/* The Engine service (proto/shoal/worker/v1/engine.proto): how coordinators reach a replica's
 * leader. It lives in the leader's rank process, over epochs; each epoch has its own leader_t. It
 * turns messages into admissions and cancels, and what leader_take gives into StepOutputs, one at a
 * time for each stream and only while the stream is writable: a slow coordinator costs no memory.
 *
 * All functions are called from the rank's main or control thread. */
#ifndef SHOAL_WORKER_SERVICE_H
#define SHOAL_WORKER_SERVICE_H

#include <stdint.h>

#include "common/base/status.h"
#include "worker/engine/leader.h"

#define SERVICE_CONTRACT_VERSION 1u
#define SERVICE_CREDIT_MS 200u /* an idle stream is told its credit so often */

typedef struct service service_t;

/* Listens on address:0. `replica` is "<deployment>/<ordinal>". */
status_t service_open(const char *address, const char *replica, service_t **own_out) MUST_USE;
unsigned service_port(const service_t *service);

/* An epoch is active: streams are answered from now on. The leader outlives the matching
 * service_end. */
void service_begin(service_t *service, leader_t *leader, uint64_t epoch, const char *text_identity,
                   uint32_t context_max);
/* The epoch is over (rank_run has returned, so every sequence has its end): sends what streams are
 * still owed, for at most `grace_ms`, then closes them. After it returns nobody uses the leader. */
void service_end(service_t *service, uint32_t grace_ms);
/* Refuses new sequences by name ("draining"); those that run go on. */
void service_drain(service_t *service);
void service_close(service_t *take_service);

#endif
