/* See probe.h. */
#include <immintrin.h>

#include "probe.h"

#define CHAINS(X) X(0) X(1) X(2) X(3) X(4) X(5)

double probe_maddubs(uint64_t rounds)
{
    __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5);
#define OPEN(i) __m256i c##i = _mm256_setzero_si256();
#define STEP(i)                                                            \
    {                                                                      \
        __m256i product = _mm256_maddubs_epi16(a, b);                      \
        __asm__ volatile("vpaddw %1, %0, %0" : "+x"(c##i) : "x"(product)); \
        __asm__ volatile("" : "+x"(a));                                    \
    }
    CHAINS(OPEN)
    for (uint64_t r = 0; r < rounds; r++) {
        CHAINS(STEP)
    }
    return (double)rounds * 6 * 32 * 2;
}

uint64_t probe_read(const void *data, size_t bytes)
{
    const __m256i *at = data;
    __m256i sum = _mm256_setzero_si256(), more = sum;
    for (size_t i = 0; i + 4 <= bytes / sizeof *at; i += 4) {
        sum = _mm256_xor_si256(sum, _mm256_xor_si256(at[i], at[i + 1]));
        more = _mm256_xor_si256(more, _mm256_xor_si256(at[i + 2], at[i + 3]));
    }
    sum = _mm256_xor_si256(sum, more);
    return (uint64_t)_mm256_extract_epi64(sum, 0) ^ (uint64_t)_mm256_extract_epi64(sum, 2);
}
