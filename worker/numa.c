/* See numa.h. Lists of CPUs and of nodes are the kernel's: "0-3,8,10-11". */
#include "worker/numa.h"

#include <errno.h>
#include <linux/mempolicy.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PATH_BYTES = 512, LINE_BYTES = 8192 };
_Static_assert(NUMA_ID_MAX < CPU_SETSIZE, "a set of CPUs holds the numbers of nodes as well");

/* Members beyond the set's size are left out. False, with what was read until then, where the text
 * is no list. */
static bool read_list(const char *text, cpu_set_t *out)
{
    CPU_ZERO(out);
    while (*text != 0 && *text != '\n') {
        char *end;
        if (*text < '0' || *text > '9')
            return false;
        unsigned long first = strtoul(text, &end, 10), last = first;
        if (*end == '-') {
            if (end[1] < '0' || end[1] > '9')
                return false;
            last = strtoul(end + 1, &end, 10);
        }
        for (unsigned long i = first; i <= last && i < CPU_SETSIZE; i++)
            CPU_SET(i, out);
        text = *end == ',' ? end + 1 : end;
    }
    return true;
}

/* The list that a file holds, or the line of it that begins with `key`. */
static bool read_list_of(const char *path, const char *key, cpu_set_t *out)
{
    FILE *file = fopen(path, "re");
    char line[LINE_BYTES];
    bool found = false;
    size_t n = strlen(key);
    while (file && !found && fgets(line, sizeof line, file))
        if (strncmp(line, key, n) == 0)
            found = read_list(line + n + strspn(line + n, " \t"), out);
    if (file)
        fclose(file);
    return found;
}

/* What stays of the set when the file has a list; all of it when it has none. */
static void keep(cpu_set_t *set, const char *root, const char *name, const char *key)
{
    char path[PATH_BYTES];
    cpu_set_t list;
    snprintf(path, sizeof path, "%s%s", root, name);
    if (read_list_of(path, key, &list))
        CPU_AND(set, set, &list);
}

void numa_read(const char *root, numa_t *out)
{
    static const char *const nodes = "/sys/devices/system/node";
    char path[PATH_BYTES];
    cpu_set_t online, memory, allowed;
    memset(out, 0, sizeof *out);
    snprintf(path, sizeof path, "%s%s/online", root, nodes);
    if (!read_list_of(path, "", &online))
        return;
    memset(&allowed, 0xff, sizeof allowed);
    keep(&allowed, root, "/proc/self/status", "Cpus_allowed_list:");
    keep(&allowed, root, "/sys/devices/system/cpu/online", "");
    memory = online;
    keep(&memory, root, "/sys/devices/system/node/has_memory", "");
    keep(&memory, root, "/proc/self/status", "Mems_allowed_list:");
    for (uint32_t id = 0; id <= NUMA_ID_MAX && out->n < NUMA_NODES_MAX; id++) {
        numa_node_t node = {.id = id, .has_memory = CPU_ISSET(id, &memory)};
        if (!CPU_ISSET(id, &online))
            continue;
        snprintf(path, sizeof path, "%s%s/node%u/cpulist", root, nodes, id);
        if (!read_list_of(path, "", &node.cpus))
            continue;
        CPU_AND(&node.cpus, &node.cpus, &allowed);
        node.n_cpus = (uint32_t)CPU_COUNT(&node.cpus);
        if (node.n_cpus > 0)
            out->nodes[out->n++] = node;
    }
}

uint32_t numa_index(const numa_t *numa, uint32_t id)
{
    uint32_t i = 0;
    while (i < numa->n && numa->nodes[i].id != id)
        i++;
    return i;
}

/* Below zero where more threads than CPUs are in a node: the next rank then goes where fewest wait
 * for a CPU. */
static int64_t idle_cpus(const numa_t *numa, const uint32_t *used, uint32_t i)
{
    return (int64_t)numa->nodes[i].n_cpus - (int64_t)used[i];
}

uint32_t numa_choose(const numa_t *numa, const uint32_t *used, uint32_t threads)
{
    int64_t all_idle = 0;
    uint32_t best = numa->n;
    if (numa->n < 2)
        return NUMA_NONE;
    for (uint32_t i = 0; i < numa->n; i++) {
        int64_t idle = idle_cpus(numa, used, i);
        all_idle += idle > 0 ? idle : 0;
        if (threads <= numa->nodes[i].n_cpus &&
            (best == numa->n || idle > idle_cpus(numa, used, best)))
            best = i;
    }
    if (best == numa->n)
        return NUMA_NONE;
    /* Where CPUs lie idle in several nodes, waiting for one in a single node costs more than memory
     * that is far; where none are idle, the rank waits anyway. */
    bool fits = idle_cpus(numa, used, best) >= (int64_t)threads;
    return fits || all_idle < (int64_t)threads ? numa->nodes[best].id : NUMA_NONE;
}

static status_t prefer_memory(uint32_t id)
{
    enum { BITS = 8 * sizeof(unsigned long) };
    unsigned long mask[(NUMA_ID_MAX + 1) / BITS] = {0};
    mask[id / BITS] = 1ul << id % BITS;
    /* The kernel takes one bit less than it is told. Preferred, not bound: a model that is larger
     * than the node's memory serves more slowly, and is not killed. */
    if (syscall(SYS_set_mempolicy, MPOL_PREFERRED, mask, NUMA_ID_MAX + 2) != 0)
        return fail(STATUS_UNSUPPORTED, "NUMA node %u: its memory cannot be preferred: %s", id,
                    strerror(errno));
    return STATUS_OK;
}

status_t numa_bind(const char *root, uint32_t id)
{
    numa_t numa;
    numa_read(root, &numa);
    uint32_t i = numa_index(&numa, id);
    if (i == numa.n)
        return fail(STATUS_NOT_FOUND, "NUMA node %u has no CPU that this process may use", id);
    const numa_node_t *node = &numa.nodes[i];
    if (sched_setaffinity(0, sizeof node->cpus, &node->cpus) != 0)
        return fail(STATUS_UNSUPPORTED, "NUMA node %u: its CPUs cannot be bound to: %s", id,
                    strerror(errno));
    return node->has_memory ? prefer_memory(id) : STATUS_OK;
}
