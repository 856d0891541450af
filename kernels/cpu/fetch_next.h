/* With few rows a matmul waits for its weights, and between two matmuls of a layer there are short
 * ops of one thread, in which memory would rest. So threads that wait fetch their part of the weight
 * that will be multiplied next (pool_fetch_next). Which one that is a weight learns: it is the one
 * that was multiplied after it the last time, because steps are alike. It is a hint; no result
 * depends on it. */
#ifndef SHOAL_KERNELS_CPU_FETCH_NEXT_H
#define SHOAL_KERNELS_CPU_FETCH_NEXT_H

#include "kernels/cpu/internal.h"

struct kafter *fetch_next_new(void);
/* What is released is not followed any more: no weight knows its next one from here on, until it
 * has learnt it again. */
void fetch_next_release(struct kafter *take_after);

/* Before the run in which the threads share out `n_panels` panels of the weight, from the first on,
 * or as many of each of its parts. */
void fetch_next_begin(kdevice_t *device, const kweight_t *weight, uint32_t rows,
                      uint32_t n_panels);

#endif
