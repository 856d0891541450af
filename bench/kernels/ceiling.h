/* What a matmul could reach at most on this machine: its multiply instructions at the rate that the
 * probes found for them, or its weight's bytes at the rate of reading them. */
#ifndef SHOAL_BENCH_KERNELS_CEILING_H
#define SHOAL_BENCH_KERNELS_CEILING_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/qtype.h"

/* What this process has computed for; a neighbour's turns on its core do not count. */
uint64_t cpu_ns(void);

/* Rates of one thread in 10^9 operations a second, a multiply-add counting as 2; 0 where the
 * machine lacks the unit. */
typedef struct {
    double maddubs, fma256, vnni, bf16, fma512;
} probes_t;

/* n_levels as kernels_cpu_levels gives it. */
probes_t probes_run(uint32_t n_levels, uint32_t n_rounds);
void probes_print(const probes_t *probes);

/* GB/s of reading so many bytes again and again, from whatever cache they stay in. */
double probe_read_rate(size_t bytes, uint32_t n_rounds);

/* The probe of the unit that does a type's products. */
double ceiling_peak(const probes_t *probes, const char *isa, qtype_t type);

/* That peak, less what the additions of scaled segments (docs/numerics.md) take of the same unit:
 * for each sum of products a multiplication by the activations' scale, one by the weights', and
 * one by the minimum where there is one. */
double ceiling_compute(const probes_t *probes, const char *isa, qtype_t type);

#endif
