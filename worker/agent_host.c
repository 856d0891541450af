/* Reading what the host offers: see agent_host.h. */
#include "worker/agent_host.h"

#include <arpa/inet.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "kernels/ops.h"
#include "worker/cgroup.h"

static uint64_t offered_memory(void)
{
    uint64_t machine = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t limit = cgroup_memory_max();
    uint64_t least = machine < limit ? machine : limit;
    return least / 10 * 8;
}

static status_t check_id(const char *id)
{
    size_t n = strlen(id);
    bool good = n > 0 && n < sizeof((agent_host_t *)0)->id;
    for (size_t i = 0; i < n && good; i++)
        good = strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_", id[i]);
    if (!good)
        return fail(STATUS_INVALID, "--host-id \"%s\": 1 to 63 letters, digits, '.', '-' and '_' "
                                    "are right", id);
    return STATUS_OK;
}

static void read_boot_id(char *out, size_t n)
{
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (!file || !fgets(out, (int)n, file))
        out[0] = 0;
    out[strcspn(out, "\n")] = 0;
    if (file)
        fclose(file);
}

status_t agent_host_read(const char *id, const char *address, uint32_t threads_max,
                         uint64_t memory_bytes, agent_host_t *out)
{
    agent_host_t host = {0};
    struct in6_addr v6;
    struct in_addr v4;
    if (id)
        snprintf(host.id, sizeof host.id, "%s", id);
    else if (gethostname(host.id, sizeof host.id - 1) != 0)
        snprintf(host.id, sizeof host.id, "host");
    TRY(check_id(id ? id : host.id));
    if (inet_pton(AF_INET, address, &v4) != 1 && inet_pton(AF_INET6, address, &v6) != 1)
        return fail(STATUS_INVALID, "--address \"%s\": an IP address of this host is right, such "
                                    "as 10.0.0.7", address);
    snprintf(host.address, sizeof host.address, "%s", address);
    read_boot_id(host.boot_id, sizeof host.boot_id);
    cpu_set_t set;
    uint32_t cores = 1;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        cores = (uint32_t)CPU_COUNT(&set);
    host.cores = threads_max && threads_max < cores ? threads_max : cores;
    numa_read("", &host.numa);
    host.memory_bytes = memory_bytes ? memory_bytes : offered_memory();
    const char *levels[KLEVELS_MAX];
    uint32_t n_levels = kernels_cpu_levels(levels);
    const char *forced = getenv("SHOAL_ISA");
    snprintf(host.isa, sizeof host.isa, "%s", forced && forced[0] ? forced
                                              : n_levels > 0      ? levels[n_levels - 1]
                                                                  : "ref");
    *out = host;
    return STATUS_OK;
}

const char *agent_host_model_path(const agent_host_t *host, const char *digest)
{
    for (size_t i = 0; i < host->n_models; i++) {
        if (strcmp(host->models[i].digest, digest) == 0)
            return host->models[i].path;
    }
    return "";
}

size_t agent_host_pack(const agent_host_t *host, uint8_t **own_out)
{
    Shoal__Cluster__V1__HostRecord record = SHOAL__CLUSTER__V1__HOST_RECORD__INIT;
    Shoal__Cluster__V1__ModelRecord *models =
        MEM_NEW_ARRAY(Shoal__Cluster__V1__ModelRecord, host->n_models + 1);
    Shoal__Cluster__V1__ModelRecord **list =
        MEM_NEW_ARRAY(Shoal__Cluster__V1__ModelRecord *, host->n_models + 1);
    agent_host_t copy = *host; /* protobuf-c wants strings that may be written */
    char build[] = SHOAL_VERSION, backend[] = "cpu";
    uint32_t node_cores[NUMA_NODES_MAX];
    for (uint32_t i = 0; i < host->numa.n; i++)
        node_cores[i] = host->numa.nodes[i].n_cpus;
    for (size_t i = 0; i < host->n_models; i++) {
        shoal__cluster__v1__model_record__init(&models[i]);
        models[i].name = host->models[i].name;
        models[i].path = host->models[i].path;
        models[i].digest = host->models[i].digest;
        models[i].bytes = host->models[i].bytes;
        list[i] = &models[i];
    }
    record.id = copy.id;
    record.address = copy.address;
    record.boot_id = copy.boot_id;
    record.cores = host->cores;
    record.memory_bytes = host->memory_bytes;
    record.build = build;
    record.isa = copy.isa;
    record.backend = backend;
    record.models = list;
    record.n_models = host->n_models;
    record.node_cores = node_cores;
    record.n_node_cores = host->numa.n;
    *own_out = mem_new(1, shoal__cluster__v1__host_record__get_packed_size(&record) + 1);
    size_t n = shoal__cluster__v1__host_record__pack(&record, *own_out);
    free(list);
    free(models);
    return n;
}

void agent_host_release(agent_host_t *host)
{
    free(host->models);
    host->models = NULL;
    host->n_models = 0;
}
