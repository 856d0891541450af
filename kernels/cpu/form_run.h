/* How a part of a form with runs lies in a panel, and where scales and codes of one k stand in any
 * form. A *run* is what a leaf has of one block of 256 values of the file. It begins with a head: 32
 * halves d; in forms with minimums 32 halves -dmin; then for each of its segments what these are
 * multiplied with, RUN_STEP bytes; the whole in lines of 64 bytes. Then come the segments' lines. So
 * a panel is read in one direction, and takes what the file does.
 *
 * A segment's scale is a signed byte a column (FORM_K6), or two values of 6 bits, scale and minimum:
 * a byte a column with the low nibbles of both, then 16 bytes with the upper two bits of both, those
 * of column c 4 bits up, those of column c + 16 below them. Their products with halves are exact in
 * F32. */
#ifndef SHOAL_KERNELS_CPU_FORM_RUN_H
#define SHOAL_KERNELS_CPU_FORM_RUN_H

#include "kernels/cpu/form_tail.h"

enum { RUN_K = 256 };

#define RUN_HALVES(form) (FORM_HAS_MINIMUMS(form) ? 128u : 64u)
#define RUN_STEP(form) (FORM_HAS_MINIMUMS(form) ? 48u : 32u)
#define RUN_SEGMENT_K(form) ((uint32_t)((form) == FORM_K6 ? SHORT_SEGMENT_K : SEGMENT_K))

static inline size_t run_head_bytes(kform_t form, uint32_t n_segs)
{
    return (RUN_HALVES(form) + (size_t)n_segs * RUN_STEP(form) + 63) / 64 * 64;
}

/* Of `pairs` pairs of units, upper bits and nibbles. */
static inline size_t run_line_bytes(kform_t form, uint32_t pairs)
{
    return FORM_UPPER_BYTES(form) + (size_t)pairs * 128;
}

/* Segments of the run that begins with segment s of the leaf. */
static inline uint32_t run_segments(kform_t form, const kpart_t *part, const kleaf_t *leaf,
                                    uint32_t s)
{
    const uint32_t values = RUN_SEGMENT_K(form);
    uint32_t k = leaf->absolute - leaf->k + part->input->segs[s].k;
    uint32_t n = RUN_K / values - k % RUN_K / values, left = leaf->seg_end - s;
    return n < left ? n : left;
}

static inline size_t run_leaf_bytes(const kpart_t *part, const kleaf_t *leaf)
{
    uint32_t n_segs = leaf->seg_end - leaf->seg_first;
    size_t bytes = (size_t)leaf->len_padded * LINE + n_segs * FORM_UPPER_BYTES(part->form);
    for (uint32_t s = leaf->seg_first, n; s < leaf->seg_end; s += n) {
        n = run_segments(part->form, part, leaf, s);
        bytes += run_head_bytes(part->form, n);
    }
    return bytes;
}

/* Of a run that begins with segment s and whose head `panel` is: where its scales stand. Returns the
 * lines of its first segment. */
static inline const uint8_t *run_open(kform_t form, const kpart_t *part, const kleaf_t *leaf,
                                      uint32_t s, const uint8_t *panel, tail_t *tail)
{
    uint32_t n = run_segments(form, part, leaf, s);
    tail->scales = panel;
    tail->bytes = panel + RUN_HALVES(form);
    tail->run_end = s + n;
    return panel + run_head_bytes(form, n);
}

/* Scale, or minimum, of column c of the segment at which a run of values of 6 bits stands. */
static inline uint32_t run_six_bits(const uint8_t *bytes, uint32_t c, bool minimum)
{
    uint32_t low = bytes[c], top = bytes[PANEL + c % LINE];
    top >>= c < LINE ? 4 : 0;
    return minimum ? low >> 4 | (top >> 2 & 3) << 4 : (low & 15) | (top & 3) << 4;
}

/* Where a leaf's scales stand that are not behind their segments; `panel` is its first byte. */
static inline __attribute__((always_inline)) tail_t
scales_open(kform_t form, const kpart_t *part, const kleaf_t *leaf, const uint8_t *panel)
{
    if (FORM_HAS_TAIL(form))
        return tail_open(part, leaf, panel);
    return (tail_t){.run_end = leaf->seg_first};
}

/* The lines of segment s, of which `panel` is the first byte, or the head of a run before it. */
static inline __attribute__((always_inline)) const uint8_t *
scales_reach(kform_t form, const kpart_t *part, const kleaf_t *leaf, uint32_t s,
             const uint8_t *panel, tail_t *tail)
{
    if (FORM_HAS_RUNS(form) && s == tail->run_end)
        return run_open(form, part, leaf, s, panel, tail);
    return panel;
}

/* Steps behind segment s. */
static inline __attribute__((always_inline)) void
scales_next(kform_t form, const kpart_t *part, const kleaf_t *leaf, uint32_t s, tail_t *tail)
{
    if (FORM_HAS_RUNS(form))
        tail->bytes += RUN_STEP(form);
    else if (FORM_HAS_TAIL(form))
        tail_next(form, part, leaf, s, tail);
}

/* Where the code of one k of an integer form stands: in each 32-bit lane of two lines of 16 columns,
 * `shift` bits up. */
typedef struct {
    const uint8_t *lines;  /* the second one follows the first */
    const uint8_t *upper;  /* of its bits above the nibble, as `lines` */
    const uint8_t *scales; /* behind the segment's lines; not of FORM_SCALES_APART */
    tail_t tail;           /* of FORM_SCALES_APART */
    uint32_t segment, shift, upper_shift;
} code_at_t;

/* The lines of segment s of the one leaf of a part, whose first byte `panel` is. */
static inline __attribute__((always_inline)) const uint8_t *
run_of_segment(kform_t form, const kpart_t *part, const uint8_t *panel, uint32_t s, tail_t *tail)
{
    const uint32_t n = RUN_K / RUN_SEGMENT_K(form), run = s / n;
    const size_t lines = run_line_bytes(form, RUN_SEGMENT_K(form) / PAIR_K);
    uint32_t left = part->input->n_segs - run * n;
    panel += run * (run_head_bytes(form, n) + n * lines);
    *tail = (tail_t){.scales = panel, .bytes = panel + RUN_HALVES(form) + s % n * RUN_STEP(form)};
    return panel + run_head_bytes(form, n < left ? n : left) + s % n * lines;
}

/* `panel` is the first byte of the one leaf of a part: all segments but the last are full. */
static inline __attribute__((always_inline)) code_at_t code_at(kform_t form, const kpart_t *part,
                                                               const uint8_t *panel, uint32_t k)
{
    bool bytes = FORM_HAS_BYTES(form);
    uint32_t values = part->input->kind == KACTIVATION_INT8 ? SEGMENT_K : SHORT_SEGMENT_K;
    uint32_t s = k / values, unit = k % values / 4;
    uint32_t scales = (FORM_IS_WIDE(form) ? 4u : 2u) * (FORM_HAS_MINIMUMS(form) ? 2u : 1u);
    scales = FORM_SCALES_APART(form) ? 0 : scales * PANEL;
    code_at_t at = {.segment = s,
                    .shift = k % 4 * 8 + (bytes ? 0 : unit % 2 * 4),
                    .upper_shift = k % 4 * 8 + unit * FORM_UPPER_BITS(form)};
    if (FORM_HAS_TAIL(form))
        at.tail = tail_of_segment(part, s, panel);
    if (FORM_HAS_RUNS(form))
        at.upper = run_of_segment(form, part, panel, s, &at.tail);
    else
        at.upper = panel + s * (FORM_UPPER_BYTES(form) + values * PANEL / (bytes ? 1 : 2) + scales);
    const uint8_t *lines = at.upper + FORM_UPPER_BYTES(form);
    at.lines = lines + (size_t)(bytes ? unit : unit / 2) * 128;
    at.scales = lines + (size_t)part->input->segs[s].pairs * (bytes ? 256 : 128);
    return at;
}

#endif
