/* What this process has used of its machine: the signs by which an agent tells a rank that is slow
 * from one that is stuck. Any thread. */
#ifndef SHOAL_WORKER_USAGE_H
#define SHOAL_WORKER_USAGE_H

#include <stdint.h>

/* Processor time of all its threads. */
uint64_t usage_cpu_ms(void);
/* Pages that the process has got, the calling thread left out: a large tensor on a slow disk moves
 * nothing else for long, and one that stands still moves not even those. */
uint64_t usage_pages_got(void);

#endif
