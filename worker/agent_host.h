/* What this host is: its id, address, cores and their NUMA nodes, memory and models. */
#ifndef SHOAL_WORKER_AGENT_HOST_H
#define SHOAL_WORKER_AGENT_HOST_H

#include <stdint.h>

#include "common/base/status.h"
#include "shoal/cluster/v1/state.pb-c.h"
#include "worker/numa.h"

#define AGENT_MODELS_MAX 256

typedef struct {
    char name[256]; /* file name without its extension, or the directory's */
    char path[1024];
    char digest[80];
    uint64_t bytes;
} agent_model_t;

typedef struct {
    char id[64];
    char address[64];
    char boot_id[64];
    uint32_t cores;
    numa_t numa;
    uint64_t memory_bytes;
    char isa[16];
    agent_model_t *models; /* own */
    size_t n_models;
} agent_host_t;

/* Fills id (the host's name when NULL), address, boot id, cores (threads_max when not 0), memory (80 %
 * of what the machine or cgroup has when 0) and the kernel level. */
status_t agent_host_read(const char *id, const char *address, uint32_t threads_max,
                         uint64_t memory_bytes, agent_host_t *out) MUST_USE;
/* The path of a digest on this host; "" when it is not there. */
const char *agent_host_model_path(const agent_host_t *host, const char *digest);
/* The record as it stands in etcd, packed; *own_out is to be freed. */
size_t agent_host_pack(const agent_host_t *host, uint8_t **own_out);
/* Gives up its list of models. */
void agent_host_release(agent_host_t *host);

#endif
