/* The agent's side of etcd: its host record under a lease, the watch over its assignments and over
 * the addresses of the ranks it forms with, and the records it publishes. Everything is retried
 * until it stands or is overtaken; while etcd is away nothing waits for it.
 *
 * etcd's thread only queues what it hears; agent_store_poll hands it out on the agent's thread. All
 * functions are for that thread. */
#ifndef SHOAL_WORKER_AGENT_STORE_H
#define SHOAL_WORKER_AGENT_STORE_H

#include "common/net/etcd.h"
#include "worker/agent_core.h"
#include "worker/agent_host.h"

#define AGENT_LEASE_S 3

typedef struct agent_store agent_store_t;

typedef struct {
    /* assign/<host>/<deployment>/<ordinal>; plan NULL: the key is gone. */
    void (*on_assign)(void *context, const char *deployment, uint32_t ordinal,
                      const agent_plan_t *plan);
    void (*on_peer)(void *context, const char *deployment, uint32_t ordinal, uint64_t epoch,
                    uint32_t rank, const uint8_t *address, uint32_t address_bytes);
    void *context;
} agent_store_handlers_t;

/* Waits up to wait_ms for etcd, saying so; STATUS_UNREACHABLE then. Registers the host. */
status_t agent_store_open(const char *endpoints, const char *cluster, const agent_host_t *host,
                          uint32_t wait_ms, const agent_store_handlers_t *handlers,
                          agent_store_t **own_out) MUST_USE;
/* Readable when there is something to hand out. */
int agent_store_fd(const agent_store_t *store);
/* Hands out what came and retries what failed; call it when readable and every 100 ms. */
void agent_store_poll(agent_store_t *store, uint64_t now_ms);

/* What the host offers has changed: its record is written anew. */
void agent_store_host_changed(agent_store_t *store);
void agent_store_watch_ranks(agent_store_t *store, const agent_plan_t *plan);
void agent_store_unwatch_ranks(agent_store_t *store, const char *deployment, uint32_t ordinal);
void agent_store_put_rank(agent_store_t *store, const agent_plan_t *plan, uint32_t rank,
                          int64_t pid, const uint8_t *address, uint32_t address_bytes);
/* pids[i] is rank i's process, 0 where another host runs it. */
void agent_store_put_active(agent_store_t *store, const agent_plan_t *plan,
                            const control_active_t *active, const int64_t *pids);
/* How far this host's ranks are with their weights, for `shoal status`; 100 takes it away. */
void agent_store_put_loading(agent_store_t *store, const agent_plan_t *plan, uint32_t percent);
void agent_store_put_failed(agent_store_t *store, const agent_plan_t *plan,
                            const agent_failure_t *failure);
/* The host is leaving: drains/<host> under the lease, unless an operator set it already. */
void agent_store_put_drain(agent_store_t *store);
/* With the lease revoked, so that the host is known to be gone at once. */
void agent_store_close(agent_store_t *take_store);

#endif
