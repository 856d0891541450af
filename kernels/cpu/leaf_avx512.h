/* How panels of integer forms are read on AVX-512: lines of 64 bytes, scales and zero points. For
 * the leaf kernels and for tile registers. */
#ifndef SHOAL_KERNELS_CPU_LEAF_AVX512_H
#define SHOAL_KERNELS_CPU_LEAF_AVX512_H

#include <string.h>

#include "kernels/cpu/form_run.h"
#include "kernels/cpu/leaf.h"

static inline __m512i load_line(const uint8_t *from)
{
    return _mm512_load_si512(from);
}

static inline __m512 load_halves(const uint8_t *from)
{
    return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(const void *)from));
}

static inline __m512 load_floats(const uint8_t *from)
{
    return _mm512_load_ps((const float *)(const void *)from);
}

/* The scales or minimums of a line of columns. */
static inline __m512 load_scales(kform_t form, const uint8_t *panel, uint32_t line)
{
    return FORM_IS_WIDE(form) ? load_floats(panel + (size_t)line * 64)
                              : load_halves(panel + (size_t)line * 32);
}

static inline __m512i broadcast_k4(const int8_t *from)
{
    int32_t four;
    memcpy(&four, from, sizeof four);
    return _mm512_set1_epi32(four);
}

/* 16 zero points, one in the low half of each 32-bit lane. */
static inline __m512i tail_zeros(const uint8_t *from)
{
    return _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)(const void *)from));
}

static inline __m512 load_signed_bytes(const uint8_t *from)
{
    __m128i bytes = _mm_load_si128((const __m128i *)(const void *)from);
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}

/* What the halves of a run are multiplied with in a segment: run_six_bits of a line of columns, or
 * signed bytes. */
static inline __attribute__((always_inline)) __m512
run_factors(kform_t form, const uint8_t *bytes, uint32_t line, bool minimum)
{
    if (!FORM_HAS_MINIMUMS(form))
        return load_signed_bytes(bytes + line * LINE);
    __m512i low = tail_zeros(bytes + line * LINE), top = tail_zeros(bytes + PANEL);
    if (minimum) {
        low = _mm512_srli_epi32(low, 4);
        top = line == 0 ? _mm512_srli_epi32(top, 2) : _mm512_slli_epi32(top, 2);
    } else {
        low = _mm512_and_si512(low, _mm512_set1_epi32(15));
        top = line == 0 ? top : _mm512_slli_epi32(top, 4);
    }
    top = _mm512_and_si512(top, _mm512_set1_epi32(48));
    return _mm512_cvtepi32_ps(_mm512_or_si512(low, top));
}

/* The minimums of a line of the segment at which the run stands. */
static inline __attribute__((always_inline)) __m512 run_minimums(const tail_t *run, uint32_t line)
{
    return _mm512_mul_ps(load_halves(run->scales + 64 + (size_t)line * 32),
                         run_factors(FORM_K4, run->bytes, line, true));
}

/* The scales of a line of the segment at which the tail or the run stands. */
static inline __attribute__((always_inline)) __m512
tail_scales(kform_t form, const kpart_t *part, const tail_t *tail, uint32_t line)
{
    if (form == FORM_M4) { /* exponent_bits */
        __m512i e = tail_zeros(tail->bytes + line * LINE), one = _mm512_set1_epi32(1);
        __m512i small = _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), e);
        __m512i bits = _mm512_slli_epi32(_mm512_sub_epi32(e, one), 23);
        return _mm512_castsi512_ps(
            _mm512_mask_mov_epi32(bits, _mm512_cmple_epu32_mask(e, one), small));
    }
    const uint8_t *from = tail->scales + (size_t)line * 32;
    if (FORM_HAS_RUNS(form))
        return _mm512_mul_ps(load_halves(from), run_factors(form, tail->bytes, line, false));
    if (form == FORM_X4)
        return _mm512_mul_ps(load_halves(from), load_signed_bytes(tail->bytes + line * LINE));
    if (!part->bf16_scales)
        return load_halves(from);
    __m256i halves = _mm256_load_si256((const __m256i *)(const void *)from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

#endif
