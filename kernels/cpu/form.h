/* How packed panels are stored: the forms, and what each has. */
#ifndef SHOAL_KERNELS_CPU_FORM_H
#define SHOAL_KERNELS_CPU_FORM_H

/* A part's panels, segment by segment (or leaf by leaf) along K.
 * Q8:  per 4 k two lines [16 columns][4 k] of q + 128; after the segment 32 F16 scales.
 * Q4:  per 8 k two lines [16][4], low nibble k..k+3, high nibble k+4..k+7; then 32 scales.
 * Q4M: as Q4, then 32 F16 minimums.
 * I8:  as Q8 with F32 scales. N4M: Q4M with F32 ones.
 * BF16: per 2 k two lines [16][2]. F32: per k two lines [16]. F16: per k one line of 32.
 * E4: e4m3 codes, per 2 k one line [16 columns][2 k][2]: of column c and of c + 16; after each segment
 * of 128 k 32 F32 scales, or, where all columns of a panel share them, one scale for each segment in
 * front of the leaf's codes, in whole lines. T4: as Q4, nibbles that name one of 16 integers. The
 * others: form_tail.h; S4: nibbles less 8, Z4: less a zero point, X4: a table's, under two scales,
 * M4: a table's, under powers of two.
 * Q5, Q5M: the values' fifth bits, then as Q4, Q4M. A segment's upper bits are two lines [16
 * columns][4]: those of the pair's first unit of 4 k lowest, then those of its second, then the next
 * pair's.
 * K4, K5, K6: form_run.h; lines as of Q4, Q5, and of two upper bits, without scales behind them. */
typedef enum {
    FORM_Q8,
    FORM_Q4,
    FORM_Q4M,
    FORM_I8,
    FORM_N4M,
    FORM_Q5,
    FORM_Q5M,
    FORM_K4,
    FORM_K5,
    FORM_K6,
    FORM_T4,
    FORM_BF16, /* the forms before have integer inputs */
    FORM_F16,
    FORM_F32,
    FORM_E4,
    FORM_S4, /* from here on integer inputs and tails */
    FORM_Z4,
    FORM_X4,
    FORM_M4,
    N_FORMS
} kform_t;

/* Integer forms: a byte for each value, not a nibble; minimums beside the scales; F32 scales; scales
 * in front of runs; scales that are not behind their segment. */
#define FORM_HAS_BYTES(form) ((form) == FORM_Q8 || (form) == FORM_I8)
#define FORM_HAS_MINIMUMS(form)                                                                   \
    ((form) == FORM_Q4M || (form) == FORM_N4M || (form) == FORM_Q5M || (form) == FORM_K4 || \
     (form) == FORM_K5)
#define FORM_IS_WIDE(form) ((form) == FORM_I8 || (form) == FORM_N4M)
#define FORM_HAS_RUNS(form) ((form) == FORM_K4 || (form) == FORM_K5 || (form) == FORM_K6)
#define FORM_HAS_TAIL(form) ((form) >= FORM_S4)
#define FORM_SCALES_APART(form) (FORM_HAS_TAIL(form) || FORM_HAS_RUNS(form))
/* Bits of a value above its nibble, and the bytes that they take before a segment's nibbles. */
#define FORM_UPPER_BITS(form)                                          \
    ((form) == FORM_Q5 || (form) == FORM_Q5M || (form) == FORM_K5 ? 1u \
     : (form) == FORM_K6                                          ? 2u \
                                                                  : 0u)
#define FORM_UPPER_BYTES(form) (FORM_UPPER_BITS(form) > 0 ? 128u : 0u)
#define FORM_HAS_TABLE(form) ((form) == FORM_T4 || (form) == FORM_X4 || (form) == FORM_M4)
/* What is taken from a stored value, or from a table's: z of docs/numerics.md. */
#define FORM_ZERO(form)                                                       \
    ((form) == FORM_Q8 || (form) == FORM_I8 || FORM_HAS_TABLE(form) ? 128     \
     : (form) == FORM_Q4 || (form) == FORM_S4                       ? 8   \
     : (form) == FORM_Q5                                            ? 16  \
     : (form) == FORM_K6                                            ? 32  \
                                                                    : 0)

#endif
