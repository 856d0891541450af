/* What this machine's units can do at best, measured by loops that do nothing else. */
#ifndef SHOAL_BENCH_KERNELS_PROBE_H
#define SHOAL_BENCH_KERNELS_PROBE_H

#include <stddef.h>
#include <stdint.h>

/* Each runs `rounds` rounds on registers alone and returns the operations done (a multiply-add is
 * 2). */
double probe_vnni(uint64_t rounds);
double probe_bf16(uint64_t rounds);
double probe_fma512(uint64_t rounds);
double probe_maddubs(uint64_t rounds);
double probe_fma256(uint64_t rounds);
/* Reads bytes once; the result only keeps the reads alive. */
uint64_t probe_read(const void *data, size_t bytes);

#endif
