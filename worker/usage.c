/* See usage.h. */
#include "worker/usage.h"

#include <sys/resource.h>
#include <time.h>

uint64_t usage_cpu_ms(void)
{
    struct timespec used = {0};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return (uint64_t)used.tv_sec * 1000 + (uint64_t)used.tv_nsec / 1000000;
}

uint64_t usage_pages_got(void)
{
    struct rusage all = {0}, own = {0};
    getrusage(RUSAGE_SELF, &all);
    getrusage(RUSAGE_THREAD, &own);
    return (uint64_t)(all.ru_minflt + all.ru_majflt - own.ru_minflt - own.ru_majflt) +
           (uint64_t)(all.ru_inblock - own.ru_inblock);
}
