/* Two hosts as two network namespaces joined by a veth pair, and ranks as processes in them. */
#ifndef SHOAL_TESTS_UNIT_FABRIC_HOSTS_H
#define SHOAL_TESTS_UNIT_FABRIC_HOSTS_H

#include <stdbool.h>

#include "ranks.h"

/* False, having said why, when this process may not make network namespaces. */
bool hosts_make(void);
void hosts_remove(void);
/* Takes the link between them down or up. */
void hosts_link(bool up);

typedef struct {
    fabric_config_t config; /* of the rank's epoch; peers are filled in */
    fabric_peer_t peers[FABRIC_RANKS_MAX];
    fabric_endpoint_t *endpoint;
    shared_t *shared;
} host_rank_t;

typedef int (*host_rank_fn)(host_rank_t *rank);

/* Starts n ranks; the first `n_a` live on host "a", the others on host "b". Each has an endpoint and
 * everybody's address; config is of epoch 7 with groups of group_n. ranks->shm is host b's. */
void hosts_start(ranks_t *ranks, uint32_t n, uint32_t n_a, uint32_t group_n,
                 uint32_t step_timeout_ms, host_rank_fn function);

/* One process on host "a" without endpoint or shared memory. */
void hosts_start_bare(ranks_t *ranks, host_rank_fn function);

#endif
