/* The best that this machine's units do, by loops that do nothing else: what shares of a roofline
 * are shares of. Each runs on registers alone and returns the operations done, a multiplication and
 * an addition being two. */
#ifndef SHOAL_KERNELS_CPU_PEAK_H
#define SHOAL_KERNELS_CPU_PEAK_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/ops.h"

double peak_int8_amx(uint64_t rounds); /* amx.c */
double peak_int8_avx512(uint64_t rounds);
double peak_bf16_avx512(uint64_t rounds);
double peak_int8_avx2(uint64_t rounds);
double peak_bf16_avx2(uint64_t rounds); /* F32: this level has no BF16 product */
/* Reads the bytes once; the result only keeps the reads alive. bytes is a multiple of 256. */
uint64_t peak_read_avx2(const uint8_t *data, size_t bytes);

/* The threads of a device together, some tens of milliseconds. */
status_t device_peak(kdevice_t *device, kpeak_t *out);

#endif
