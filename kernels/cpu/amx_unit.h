/* Tile registers as the CPU has them. Numbers of registers are constants, for they are part of the
 * instructions. The compiler's own forms do not say that loads read memory, so each is put behind
 * what does. */
#ifndef SHOAL_KERNELS_CPU_AMX_UNIT_H
#define SHOAL_KERNELS_CPU_AMX_UNIT_H

#include <immintrin.h>

#define AMX_WRITTEN(address) __asm__ volatile("" : : "r"(address) : "memory")

/* `config` has the 64 bytes that LDTILECFG reads. All registers become 0. */
#define amx_configure(config)        \
    do {                             \
        AMX_WRITTEN(config);         \
        _tile_loadconfig(config);    \
    } while (0)
/* Rows of the register's size, `stride` bytes apart. */
#define amx_load(tile, from, stride)           \
    do {                                       \
        AMX_WRITTEN(from);                     \
        _tile_loadd(tile, from, (long)stride); \
    } while (0)
#define amx_store(tile, to, stride) _tile_stored(tile, to, (long)stride)
#define amx_zero(tile) _tile_zero(tile)
/* sums[m][n] += a[m][k] * b[k / 4][4 n + k % 4], signed bytes into 32 bits. */
#define amx_dot(sums, a, b) _tile_dpbssd(sums, a, b)
/* The registers are empty, which switches of threads are cheaper with. */
#define amx_release() _tile_release()

#endif
