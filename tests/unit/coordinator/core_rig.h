/* A bench for one coordinator core: events in by hand, actions out to look at. The vocabulary is
 * the simulator's (tests/sim/oracle.c). */
#ifndef SHOAL_TESTS_UNIT_COORDINATOR_CORE_RIG_H
#define SHOAL_TESTS_UNIT_COORDINATOR_CORE_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "coordinator/core/core.h"
#include "shoal/cluster/v1/state.pb-c.h"
#include "shoal/worker/v1/engine.pb-c.h"

#define RIG_IDENTITY "identity-a"

typedef struct {
    core_t *core;
    core_actions_t actions; /* of the steps since rig_clear */
    uint64_t now_ms;
    uint64_t revision;
} rig_t;

/* A core that knows deployment "toy" (replicas wanted) and its model, with both stores up and
 * registered as process `revision` 100. */
void rig_start(rig_t *rig, uint32_t replicas);
void rig_start_with(rig_t *rig, uint32_t replicas, uint64_t waiting_tokens_max);
/* With these limits; endpoint and build are the rig's, id ("c0") and seed (7) where none is given. */
void rig_start_config(rig_t *rig, uint32_t replicas, const core_config_t *with);
void rig_stop(rig_t *rig);
void rig_event(rig_t *rig, const core_event_t *event);
/* Time passes, with ticks where the core asks for them. */
void rig_pass(rig_t *rig, uint64_t ms);
void rig_clear(rig_t *rig);
size_t rig_count(const rig_t *rig, core_action_kind_t kind);
/* The last action of a kind; NULL when there is none. */
core_action_t *rig_last(const rig_t *rig, core_action_kind_t kind);

void rig_put(rig_t *rig, const char *key, const void *value, size_t size);
void rig_delete(rig_t *rig, const char *key);
void rig_listed(rig_t *rig);
void rig_deploy(rig_t *rig, uint32_t replicas, uint32_t tp, uint32_t stages);
/* The toy model, otherwise as `d` says. */
void rig_deploy_as(rig_t *rig, Shoal__Cluster__V1__DeploymentRecord d);
/* Plan and active record of a slot on host `host`; returns the epoch. */
uint64_t rig_replica(rig_t *rig, uint32_t ordinal, const char *host, const char *identity);
void rig_host(rig_t *rig, const char *id);
void rig_failure(rig_t *rig, uint32_t ordinal, uint64_t epoch, bool crashed, const char *session);
void rig_elect(rig_t *rig, uint64_t create_revision);

/* The link that was opened last. */
uint64_t rig_link(const rig_t *rig);
void rig_hello(rig_t *rig, uint64_t link, uint64_t epoch, uint64_t credit);
void rig_break(rig_t *rig, uint64_t link);
void rig_output(rig_t *rig, uint64_t link, const char *session, uint64_t owner, uint32_t first,
                const uint32_t *ids, size_t n);
void rig_end(rig_t *rig, uint64_t link, const char *session, uint64_t owner,
             Shoal__Worker__V1__SequenceEnded__Reason reason);
/* Messages sent to leaders since rig_clear, of one kind; the last is unpacked into *own_out. */
size_t rig_admits(const rig_t *rig, Shoal__Worker__V1__CoordinatorMessage **own_out);
size_t rig_cancels(const rig_t *rig);
void rig_free(Shoal__Worker__V1__CoordinatorMessage *message);

/* Asks for a text of at most max_tokens with the id 32 times the digit. */
void rig_generate(rig_t *rig, uint64_t client, char digit, uint32_t max_tokens, const char *stop);
void rig_generate_for(rig_t *rig, uint64_t client, char digit, uint32_t max_tokens,
                      int32_t priority);
const char *rig_id(char digit);
void rig_client(rig_t *rig, core_event_kind_t kind, uint64_t client);
void rig_resume(rig_t *rig, uint64_t client, char digit, uint32_t n);
/* A claim's answer with one item of job "job". */
void rig_claimed(rig_t *rig, uint64_t op, uint64_t index, uint64_t attempt, uint64_t deaths);
void rig_jobs_done(rig_t *rig, uint64_t op, jobs_code_t code, uint64_t number);

#endif
