/* Rollout, while this coordinator is elected: makes the replicas that stand in etcd those that the
 * deployments want. It decides which ranks form which replica, in which epoch, on which hosts; who
 * is dead; and which claims of dead coordinators are given back.
 *
 * Every write is one transaction that compares the election key's create-revision and the plan's
 * mod-revision, so a coordinator that is elected no more, or has old knowledge, changes nothing. */
#ifndef SHOAL_COORDINATOR_CORE_ROLLOUT_H
#define SHOAL_COORDINATOR_CORE_ROLLOUT_H

#include "coordinator/core/state.h"

void rollout_elected(core_t *core, bool elected);
void rollout_host_key(core_t *core, const core_key_t *key);  /* hosts/<id> */
void rollout_drain_key(core_t *core, const core_key_t *key); /* drains/<id> */
/* Something that plans depend on has changed: look again soon. */
void rollout_changed(core_t *core);
void rollout_failure(core_t *core, slot_t *slot);
/* A coordinator's process ended or was replaced. */
void rollout_process_gone(core_t *core, jobs_process_t process);
void rollout_txn_done(core_t *core, const core_event_t *event);
void rollout_range_done(core_t *core, const core_event_t *event);
void rollout_processes(core_t *core, const core_event_t *event);
bool rollout_jobs_done(core_t *core, const core_event_t *event);
void rollout_timer(core_t *core); /* TIMER_ROLLOUT */
void rollout_free(core_t *core);

/* plans.c: one replica's plan and assignments, in one transaction. */
/* False, with the deployment's message set, when no placing is possible now. */
bool plans_form(core_t *core, deployment_t *deployment, slot_t *slot);
void plans_remove(core_t *core, slot_t *slot);
/* The slot's plan is another, or what came of a removal is not known: nothing counts as removed. */
void plans_forget_removals(slot_t *slot);
/* Whether the plan that stands is the one the deployment wants, and gives the same text. */
bool plans_same_shape(const slot_t *slot);
bool plans_same_text(const slot_t *slot);

/* deaths.c: which hosts are gone, and whether to believe it. */
host_t *deaths_find(const core_t *core, const char *id);
void deaths_host_gone(core_t *core, host_t *host);
void deaths_host_back(core_t *core, host_t *host);
/* A FailureRecord came: its host, or its pair of hosts, may be avoided for a while. */
void deaths_failure(core_t *core, const Shoal__Cluster__V1__FailureRecord *failure);
void deaths_suspect(core_t *core, const char *host);
/* Why the slot's replica must be given up; NULL: it need not. */
const char *deaths_verdict(const core_t *core, const slot_t *slot);
void deaths_forget_old(core_t *core);

/* releases.c: claims of dead coordinators, expiry of jobs. */
void releases_elected(core_t *core);
void releases_step(core_t *core);

#endif
