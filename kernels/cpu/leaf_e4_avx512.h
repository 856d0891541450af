/* e4m3 codes as BF16 on AVX-512: sizes come from a table of 128 in four registers, of which a code's
 * lowest six bits choose one in each half. */
#ifndef SHOAL_KERNELS_CPU_LEAF_E4_AVX512_H
#define SHOAL_KERNELS_CPU_LEAF_E4_AVX512_H

/* Below the smallest exponent a code is its mantissa * 2^-9; else its fields move to their places and
 * the exponent's bias from 7 to 127. The largest is no number. */
#define E4_SMALL(c)                                                                         \
    ((c) == 0 ? 0 : (c) == 1 ? 0x3b00 : (c) == 2 ? 0x3b80 : (c) == 3 ? 0x3bc0               \
     : (c) == 4 ? 0x3c00 : (c) == 5 ? 0x3c20 : (c) == 6 ? 0x3c40 : 0x3c60)
#define E4_1(c) ((c) == 127 ? 0x7fc0 : (c) < 8 ? E4_SMALL(c) : ((c) << 4) + (120 << 7))
#define E4_8(c) \
    E4_1(c), E4_1(c + 1), E4_1(c + 2), E4_1(c + 3), E4_1(c + 4), E4_1(c + 5), E4_1(c + 6), \
        E4_1(c + 7)
static const _Alignas(64) uint16_t E4_SIZES[128] = {
    E4_8(0),  E4_8(8),  E4_8(16), E4_8(24), E4_8(32), E4_8(40),  E4_8(48),  E4_8(56),
    E4_8(64), E4_8(72), E4_8(80), E4_8(88), E4_8(96), E4_8(104), E4_8(112), E4_8(120),
};

/* `at` holds a code's lowest six bits, `large` whether it has the seventh, `signs` its sign on top. */
static inline __m512i e4_bf16(__m512i at, __mmask32 large, __m512i signs)
{
    const __m512i *sizes = (const __m512i *)(const void *)E4_SIZES;
    __m512i value = _mm512_permutex2var_epi16(sizes[0], at, sizes[1]);
    __m512i other = _mm512_permutex2var_epi16(sizes[2], at, sizes[3]);
    value = _mm512_mask_mov_epi16(value, large, other);
    /* value | (signs & 0x8000) */
    return _mm512_ternarylogic_epi32(value, signs, _mm512_set1_epi16((short)0x8000), 0xf8);
}

static inline void e4_pair(const uint8_t *codes, uint8_t *lines_out)
{
    __m512i both = load_line(codes);
    __mmask32 low = _mm512_test_epi16_mask(both, _mm512_set1_epi16(0x0040));
    __mmask32 high = _mm512_test_epi16_mask(both, _mm512_set1_epi16(0x4000));
    _mm512_store_si512(lines_out, e4_bf16(both, low, _mm512_slli_epi16(both, 8)));
    _mm512_store_si512(lines_out + 64, e4_bf16(_mm512_srli_epi16(both, 8), high, both));
}

#define E4_LEAF_ROWS_8
#include "kernels/cpu/leaf_e4.inc.h"

#endif
