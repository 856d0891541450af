/* The start-up check of a kernel level: small inputs, whose results by ref are recorded. */
#ifndef SHOAL_KERNELS_CPU_SELFCHECK_H
#define SHOAL_KERNELS_CPU_SELFCHECK_H

#include "kernels/cpu/internal.h"

enum { SELFCHECK_ANSWERS_MAX = 256 };

/* The name of the first kernel whose result differs from ref's in any bit, or NULL. Takes a few
 * milliseconds; pure apart from MXCSR, which it gives back. */
const char *selfcheck(const klevel_t *level);

/* Digests of everything that the level computes for it, in order; returns how many there are. The
 * tests hold ref's against the recorded ones. */
uint32_t selfcheck_answers(const klevel_t *level, uint64_t out[SELFCHECK_ANSWERS_MAX]);

/* selfcheck_recorded.c: ref's, and zeros behind them. */
extern const uint64_t selfcheck_recorded[SELFCHECK_ANSWERS_MAX];

#endif
