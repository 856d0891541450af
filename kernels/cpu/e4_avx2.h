/* e4m3 codes as BF16 on AVX2, 16 of them in a register: for weights and for caches of codes. */
#ifndef SHOAL_KERNELS_CPU_E4_AVX2_H
#define SHOAL_KERNELS_CPU_E4_AVX2_H

#include <immintrin.h>

/* Codes in the low bytes of 16-bit lanes. Exponent and mantissa move to their places and the
 * exponent's bias from 7 to 127; below the smallest exponent the value is the mantissa * 2^-9, one of
 * eight numbers, which come from two tables of bytes. */
static inline __m256i e4_bf16(__m256i codes)
{
    const __m256i low = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 0, (char)0x80, (char)0xc0, 0, 0x20, 0x40, 0x60, 0, 0, 0, 0, 0, 0, 0, 0));
    const __m256i high = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        0, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c, 0, 0, 0, 0, 0, 0, 0, 0));
    __m256i size = _mm256_slli_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(0x7f)), 4);
    __m256i sign = _mm256_slli_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(0x80)), 8);
    __m256i value = _mm256_add_epi16(size, _mm256_set1_epi16(120 << 7));
    __m256i mantissa = _mm256_and_si256(codes, _mm256_set1_epi16(7));
    /* A byte of 0x80 asks for 0. */
    __m256i low_at = _mm256_or_si256(mantissa, _mm256_set1_epi16((short)0x8000));
    __m256i high_at = _mm256_or_si256(_mm256_slli_epi16(mantissa, 8), _mm256_set1_epi16(0x80));
    __m256i small = _mm256_or_si256(_mm256_shuffle_epi8(low, low_at),
                                    _mm256_shuffle_epi8(high, high_at));
    __m256i is_small = _mm256_cmpgt_epi16(_mm256_set1_epi16(1 << 7), size);
    __m256i is_nan = _mm256_cmpeq_epi16(size, _mm256_set1_epi16(0x7f0));
    value = _mm256_blendv_epi8(value, small, is_small);
    value = _mm256_blendv_epi8(value, _mm256_set1_epi16(0x7fc0), is_nan);
    return _mm256_or_si256(value, sign);
}

#endif
