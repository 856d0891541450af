/* What a leaf kernel of a vector level is given besides its leaf, rows and panel. */
#ifndef SHOAL_KERNELS_CPU_LEAF_H
#define SHOAL_KERNELS_CPU_LEAF_H

#include <immintrin.h>
#include <string.h>

#include "kernels/cpu/form_run.h"

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
    TILE_SUMS = MATMUL_ROWS * PANEL, /* from one sum of a tile to the next one in a tree */
};

/* Writes the sum of a leaf to `tile`, or, while it is in registers, of `adds` sums and the leaf: of
 * those that stand at tile + i * TILE_SUMS the last is added first, each in front of what there is.
 * The first stands where the result goes. */
typedef const uint8_t *(*leaf_fn)(const kpart_t *part, const kleaf_t *leaf,
                                  const uint8_t *const *rows, const uint8_t *panel,
                                  uint32_t adds, float *tile, fetch_t fetch);

/* A form whose panels are worth decoding once when they meet several tiles of rows: where to, how
 * many bytes that takes, and the kernels that read it. */
typedef struct {
    size_t (*bytes)(const kpart_t *part);
    void (*spread)(const kpart_t *part, const uint8_t *panel, uint8_t *to);
    leaf_fn kernels[MATMUL_ROWS];
    leaf_fn first[MATMUL_ROWS]; /* of the first tile, which decodes what `spread` has left; or none */
} spread_t;

/* Where a kernel of a form with runs has its scales from: the heads of the runs; these, which it
 * writes down as floats (the first tile of several); those floats. */
#define SCALES_PACKED 0
#define SCALES_FILL 1
#define SCALES_FLOATS 2

/* A leaf of a panel of runs, spread, begins with the address of the leaf's first run, in the panel as
 * it was packed, in the place of a line; then come the scales, and minimums, of each segment as
 * floats, which is what is returned. `panel` becomes the run. */
enum { SPREAD_FRONT = 64 };
static inline uint8_t *open_spread(const uint8_t **panel)
{
    uint8_t *scales; /* in the thread's scratch, which matmul_panel may write */
    const uint8_t *run;
    memcpy(&scales, panel, sizeof scales);
    memcpy(&run, *panel, sizeof run);
    *panel = run;
    return scales + SPREAD_FRONT;
}

/* run_six_bits of a line of columns. */
static inline __m128i load_six_bits(const uint8_t *bytes, uint32_t line, bool minimum)
{
    __m128i low = _mm_load_si128((const __m128i *)(const void *)(bytes + line * LINE));
    __m128i top = _mm_load_si128((const __m128i *)(const void *)(bytes + PANEL));
    low = minimum ? _mm_srli_epi16(low, 4) : low;
    if (minimum)
        top = line == 0 ? _mm_srli_epi16(top, 2) : _mm_slli_epi16(top, 2);
    else
        top = line == 0 ? top : _mm_slli_epi16(top, 4);
    return _mm_or_si128(_mm_and_si128(low, _mm_set1_epi8(15)),
                        _mm_and_si128(top, _mm_set1_epi8(48)));
}

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
