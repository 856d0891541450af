/* What a leaf kernel of a vector level is given besides its leaf, rows and panel. */
#ifndef SHOAL_KERNELS_CPU_LEAF_H
#define SHOAL_KERNELS_CPU_LEAF_H

#include <immintrin.h>

#include "kernels/cpu/internal.h"

/* What to bring into the caches meanwhile: for each line of the panel that the kernel reads, the
 * line at `at`, which then moves on by `step` bytes. The hardware's own prefetching keeps up with
 * one row; where several rows compute between two lines it falls behind. Panels follow each other
 * in memory. Fetching beyond the last one reads nothing. */
typedef struct {
    const uint8_t *at;
    size_t step;
} fetch_t;

enum {
    FETCH_AHEAD = 3072,
    FETCH_TILES = 8, /* as many hide the way of the next panel */
    MATMUL_ROWS = 8, /* the most that a kernel computes side by side */
};

typedef const uint8_t *(*leaf_fn)(const kpart_t *part, const kleaf_t *leaf,
                                  const uint8_t *const *rows, const uint8_t *panel, bool add,
                                  float *tile, fetch_t fetch);

/* A form whose panels are worth decoding once when they meet several tiles of rows: where to, how
 * many bytes that takes, and the kernels that read it. */
typedef struct {
    size_t (*bytes)(const kpart_t *part);
    void (*spread)(const kpart_t *part, const uint8_t *panel, uint8_t *to);
    leaf_fn kernels[MATMUL_ROWS];
} spread_t;

/* For one line that the kernel reads. */
static inline void fetch_line(fetch_t *fetch)
{
    _mm_prefetch((const char *)fetch->at, _MM_HINT_T0);
    fetch->at += fetch->step;
}

/* For n lines, a constant. With a step of 0 there is nothing to fetch, and short leaves would feel
 * the instructions. */
static inline __attribute__((always_inline)) void fetch_lines(fetch_t *fetch, uint32_t n)
{
    if (fetch->step == 0)
        return;
#pragma GCC unroll 20
    for (uint32_t i = 0; i < n; i++)
        fetch_line(fetch);
}

#endif
