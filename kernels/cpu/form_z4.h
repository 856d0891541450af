/* How a leaf of FORM_Z4 lies in a panel: lines of nibbles segment by segment, as in FORM_Q4; then 32
 * F16 scales for each run of K inside one 128; then 32 bytes of zero points for each run; the whole
 * in lines of 64 bytes. So lines stay aligned and a scale costs no more than in the file. */
#ifndef SHOAL_KERNELS_CPU_FORM_Z4_H
#define SHOAL_KERNELS_CPU_FORM_Z4_H

#include "kernels/cpu/internal.h"
#include "kernels/cpu/numbers.h"

typedef struct {
    const uint8_t *scales, *zeros, *end;
} z4_tail_t;

/* Blocks of 128 that a leaf touches. */
static inline uint32_t z4_runs(const kleaf_t *leaf)
{
    if (leaf->len == 0)
        return 0;
    return (leaf->absolute + leaf->len - 1) / WIDE_SEGMENT_K - leaf->absolute / WIDE_SEGMENT_K + 1;
}

static inline size_t z4_leaf_bytes(const kleaf_t *leaf)
{
    return (size_t)leaf->len_padded * LINE + ((size_t)z4_runs(leaf) * 96 + 63) / 64 * 64;
}

static inline z4_tail_t z4_tail(const kleaf_t *leaf, const uint8_t *panel)
{
    const uint8_t *scales = panel + (size_t)leaf->len_padded * LINE;
    return (z4_tail_t){scales, scales + (size_t)z4_runs(leaf) * 64, panel + z4_leaf_bytes(leaf)};
}

/* The segment behind the run that begins with segment s. */
static inline uint32_t z4_run_end(const kinput_t *input, const kleaf_t *leaf, uint32_t s)
{
    uint32_t to_absolute = leaf->absolute - leaf->k;
    uint32_t block = (to_absolute + input->segs[s].k) / WIDE_SEGMENT_K;
    while (++s < leaf->seg_end && (to_absolute + input->segs[s].k) / WIDE_SEGMENT_K == block)
        ;
    return s;
}

/* -sum(q) of a segment, which an input row holds eightfold (kinput_seg_t). */
static inline int32_t z4_less(const kinput_seg_t *in)
{
    return (in->start_q4 - SUM_START) / 8;
}

#endif
