/* How a leaf of a form with a tail lies in a panel: lines of nibbles segment by segment, as in
 * FORM_Q4; behind them what the segments are scaled with; the whole in lines of 64 bytes. So lines
 * stay aligned and a scale costs no more than in the file. For each *run* of K inside one block of
 * part->run values the tail has 32 scales of 16 bits (not FORM_M4), then come rows of 32 bytes:
 * zero points for each run (FORM_Z4), 6-bit scales less 32 (FORM_X4) or exponents (FORM_M4) for
 * each segment. */
#ifndef SHOAL_KERNELS_CPU_FORM_TAIL_H
#define SHOAL_KERNELS_CPU_FORM_TAIL_H

#include "kernels/cpu/internal.h"
#include "kernels/cpu/numbers.h"

/* Where the scales and the bytes of the segment that is computed next stand. */
typedef struct {
    const uint8_t *scales, *bytes, *end;
    uint32_t run_end; /* the segment behind the run */
} tail_t;

static inline bool form_has_segment_bytes(kform_t form)
{
    return form == FORM_X4 || form == FORM_M4;
}

/* Runs that a leaf touches. */
static inline uint32_t tail_runs(const kpart_t *part, const kleaf_t *leaf)
{
    if (leaf->len == 0)
        return 0;
    return (leaf->absolute + leaf->len - 1) / part->run - leaf->absolute / part->run + 1;
}

static inline size_t tail_scale_bytes(const kpart_t *part, const kleaf_t *leaf)
{
    return part->form == FORM_M4 ? 0 : (size_t)tail_runs(part, leaf) * 64;
}

static inline size_t tail_leaf_bytes(const kpart_t *part, const kleaf_t *leaf)
{
    uint32_t rows = form_has_segment_bytes(part->form) ? leaf->seg_end - leaf->seg_first
                    : part->form == FORM_Z4            ? tail_runs(part, leaf)
                                                       : 0;
    size_t tail = tail_scale_bytes(part, leaf) + (size_t)rows * PANEL;
    return (size_t)leaf->len_padded * LINE + (tail + 63) / 64 * 64;
}

/* Finds the end of the run that begins with segment s. */
static inline void tail_run(const kpart_t *part, const kleaf_t *leaf, uint32_t s, tail_t *tail)
{
    const kseg_t *segs = part->input->segs;
    uint32_t next = (leaf->absolute - leaf->k + segs[s].k) / part->run + 1;
    while (++s < leaf->seg_end && leaf->absolute - leaf->k + segs[s].k < next * part->run)
        ;
    tail->run_end = s;
}

/* `panel` is the leaf's first byte; an empty leaf has no run. */
static inline tail_t tail_open(const kpart_t *part, const kleaf_t *leaf, const uint8_t *panel)
{
    const uint8_t *scales = panel + (size_t)leaf->len_padded * LINE;
    tail_t tail = {scales, scales + tail_scale_bytes(part, leaf),
                   panel + tail_leaf_bytes(part, leaf), leaf->seg_end};
    if (leaf->seg_first < leaf->seg_end)
        tail_run(part, leaf, leaf->seg_first, &tail);
    return tail;
}

/* The tail of segment s of the one leaf of a part; `panel` is the leaf's first byte. */
static inline tail_t tail_of_segment(const kpart_t *part, uint32_t s, const uint8_t *panel)
{
    const kleaf_t *leaf = part->input->leaves;
    uint32_t run = part->input->segs[s].k / part->run;
    const uint8_t *scales = panel + (size_t)leaf->len_padded * LINE;
    const uint8_t *bytes = scales + tail_scale_bytes(part, leaf);
    bytes += (size_t)(form_has_segment_bytes(part->form) ? s : run) * PANEL;
    return (tail_t){scales + (part->form == FORM_M4 ? 0 : (size_t)run * 64), bytes, bytes, s + 1};
}

/* Steps behind segment s. */
static inline void tail_next(kform_t form, const kpart_t *part, const kleaf_t *leaf, uint32_t s,
                             tail_t *tail)
{
    if (form_has_segment_bytes(form))
        tail->bytes += PANEL;
    if (form == FORM_M4 || s + 1 != tail->run_end)
        return;
    tail->scales += 64;
    if (form == FORM_Z4)
        tail->bytes += PANEL;
    if (s + 1 < leaf->seg_end)
        tail_run(part, leaf, s + 1, tail);
}

/* The bits of half of 2^(e - 127), the scale of doubled e2m1 values. */
static inline uint32_t exponent_bits(uint32_t e)
{
    return e < 2 ? 0x00200000u << e : (e - 1) << 23;
}

/* -sum(q) of a segment, which an input row holds eightfold (kinput_seg_t). */
static inline int32_t segment_less(const kinput_seg_t *in)
{
    return (in->start_q4 - SUM_START) / 8;
}

#endif
