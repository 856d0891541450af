/* See probe.h. */
#include <immintrin.h>

#include "probe.h"

#define CHAINS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9)

double probe_maddubs(uint64_t rounds)
{
    __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5);
#define OPEN(i) __m256i c##i = _mm256_setzero_si256();
#define STEP(i)                                                                     \
    {                                                                               \
        __m256i product;                                                            \
        __asm__ volatile("vpmaddubsw %2, %1, %0" : "=x"(product) : "x"(a), "x"(b)); \
        __asm__ volatile("vpaddw %1, %0, %0" : "+x"(c##i) : "x"(product));          \
    }
    CHAINS(OPEN)
    for (uint64_t r = 0; r < rounds; r++) {
        CHAINS(STEP)
    }
#undef OPEN
#undef STEP
    return (double)rounds * 10 * 32 * 2;
}

double probe_fma256(uint64_t rounds)
{
    __m256 a = _mm256_set1_ps(0), b = a;
#define OPEN(i) __m256 c##i = _mm256_setzero_ps();
#define STEP(i) __asm__ volatile("vfmadd231ps %2, %1, %0" : "+x"(c##i) : "x"(a), "x"(b));
    CHAINS(OPEN)
    for (uint64_t r = 0; r < rounds; r++) {
        CHAINS(STEP)
    }
    return (double)rounds * 10 * 8 * 2;
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
