/* What this process's cgroup says about memory; both versions of the interface. */
#ifndef SHOAL_WORKER_CGROUP_H
#define SHOAL_WORKER_CGROUP_H

#include <stdint.h>

/* How many processes of our cgroup the kernel has killed for lack of memory so far; 0 when it cannot
 * be read. */
uint64_t cgroup_oom_kills(void);
/* The cgroup's memory limit; UINT64_MAX without one. */
uint64_t cgroup_memory_max(void);

#endif
