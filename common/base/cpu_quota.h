/* How many CPUs' time the cgroup of this process may use, both versions of the interface. Threads
 * beyond it do not run faster: the kernel stops them all together until the next period. */
#ifndef SHOAL_COMMON_BASE_CPU_QUOTA_H
#define SHOAL_COMMON_BASE_CPU_QUOTA_H

#include <stdint.h>

/* The smallest quota on the way from this process's group to the root, in whole CPUs, rounded up; 0
 * when there is none or it cannot be read. `root` stands before /proc and /sys, "" for the real
 * ones. */
uint32_t cpu_quota(const char *root);

#endif
