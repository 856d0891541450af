/* The floating-point mode of every kernel: round to nearest even, subnormal inputs taken as zero
 * and subnormal results flushed (DAZ, FTZ), because VDPBF16PS does so whatever MXCSR says and the
 * other levels must agree with it. */
#ifndef SHOAL_KERNELS_CPU_FPMODE_H
#define SHOAL_KERNELS_CPU_FPMODE_H

#include <immintrin.h>
#include <stdint.h>

enum { FPMODE_DEFAULT = 0x1f80, FPMODE_KERNEL = 0x9fc0, FPMODE_FLAGS = 0x3f };

/* Returns the mode to give back to fpmode_leave. */
static inline uint32_t fpmode_enter(void)
{
    uint32_t before = _mm_getcsr();
    _mm_setcsr(FPMODE_KERNEL);
    return before;
}

static inline void fpmode_leave(uint32_t before)
{
    _mm_setcsr(before);
}

static inline int fpmode_is_kernel(void)
{
    return (_mm_getcsr() & ~(uint32_t)FPMODE_FLAGS) == FPMODE_KERNEL;
}

#endif
