/* Where memory is near which CPUs. On a machine of several NUMA nodes each rank lives in one of
 * them: its threads run on that node's CPUs and its weights, KV and scratch lie in that node's
 * memory, so that no step reads over the link between the nodes. A machine of one node has nothing
 * to choose, and nothing is bound there.
 *
 * The topology is read from files under a root, so that a test can give a made-up machine; choosing
 * is a function of it and of what is taken already; only numa_bind changes the process. */
#ifndef SHOAL_WORKER_NUMA_H
#define SHOAL_WORKER_NUMA_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"

enum {
    NUMA_NODES_MAX = 64,      /* further ones are left out, with their CPUs */
    NUMA_ID_MAX = 1023,       /* the largest number that the kernel gives a node */
    NUMA_NONE = NUMA_ID_MAX + 1, /* of numa_choose: no node */
};

typedef struct {
    uint32_t id;     /* N of /sys/devices/system/node/nodeN */
    uint32_t n_cpus; /* on line, and ours by affinity and cpuset; at least 1 */
    cpu_set_t cpus;
    bool has_memory; /* it has some, and the cpuset lets us have it */
} numa_node_t;

/* The nodes that this process may compute on, in ascending order of their ids. */
typedef struct {
    uint32_t n; /* 0: the system does not tell */
    numa_node_t nodes[NUMA_NODES_MAX];
} numa_t;

/* Reads ROOT/sys/devices/system/node and, for what this process may use, ROOT/proc/self/status.
 * `root` is "" for the real ones. What cannot be read is left out. */
void numa_read(const char *root, numa_t *out);

/* The id of the node for a rank of so many threads, where used[i] threads run in nodes[i] already;
 * NUMA_NONE where it should not be bound: there is one node, it is larger than each, or the CPUs
 * that are free suffice for it in no single node but in all together. Ranks are spread: the node
 * with the most free CPUs is taken, the first among equals. */
uint32_t numa_choose(const numa_t *numa, const uint32_t *used, uint32_t threads);
/* Where a node stands in the list; numa->n when it is not there. */
uint32_t numa_index(const numa_t *numa, uint32_t id);

/* Binds the calling thread, and all that it starts from now on, to the CPUs of a node, and lets
 * what they touch first lie in its memory while it has room. STATUS_NOT_FOUND when the process has
 * no CPU there (any more), STATUS_UNSUPPORTED when the system refuses; a rank runs all the same, and
 * where only memory was refused the CPUs stay bound: then the node of the thread that touches a page
 * first, which is the same one, is the system's own choice. */
status_t numa_bind(const char *root, uint32_t id) MUST_USE;

#endif
