/* Leaves of e4m3 codes on AVX2. */
#ifndef SHOAL_KERNELS_CPU_LEAF_E4_AVX2_H
#define SHOAL_KERNELS_CPU_LEAF_E4_AVX2_H

#include "kernels/cpu/e4_avx2.h"

static inline void e4_pair(const uint8_t *codes, uint8_t *lines_out)
{
    line_t both = load_line(codes);
    __m256i low = _mm256_set1_epi16(0xff), *to = (__m256i *)(void *)lines_out;
    _mm256_store_si256(to, e4_bf16(_mm256_and_si256(both.low, low)));
    _mm256_store_si256(to + 1, e4_bf16(_mm256_and_si256(both.high, low)));
    _mm256_store_si256(to + 2, e4_bf16(_mm256_srli_epi16(both.low, 8)));
    _mm256_store_si256(to + 3, e4_bf16(_mm256_srli_epi16(both.high, 8)));
}

#include "kernels/cpu/leaf_e4.inc.h"

#endif
