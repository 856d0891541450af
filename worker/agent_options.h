/* What an agent is told on its command line. */
#ifndef SHOAL_WORKER_AGENT_OPTIONS_H
#define SHOAL_WORKER_AGENT_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"

typedef struct {
    const char *host_id, *address, *models, *data, *etcd, *cluster;
    int64_t threads, memory, pack_cache, store_wait_ms, drain_ms, step_timeout_ms, load_stuck_ms;
} agent_options_t;

/* Reads them, or prints the help (*help_out). The texts are those of argv. */
status_t agent_options_read(agent_options_t *to, int argc, char **argv, bool *help_out) MUST_USE;

#endif
