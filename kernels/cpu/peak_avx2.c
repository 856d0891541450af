/* See peak.h. An int8 product of this level is VPMADDUBSW and VPMADDWD, as in its matmul. */
#include <immintrin.h>

#include "kernels/cpu/peak.h"

#define CHAINS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

double peak_int8_avx2(uint64_t rounds)
{
    __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5);
#define OPEN(i) __m256i c##i;
#define STEP(i) __asm__ volatile("vpmaddubsw %2, %1, %0" : "=x"(c##i) : "x"(a), "x"(b));
    CHAINS(OPEN)
    for (uint64_t r = 0; r < rounds; r++) {
        CHAINS(STEP)
    }
#undef OPEN
#undef STEP
    return (double)rounds * 12 * 32 * 2;
}

double peak_bf16_avx2(uint64_t rounds)
{
    __m256 a = _mm256_setzero_ps(), b = a;
#define OPEN(i) __m256 c##i = _mm256_setzero_ps();
#define STEP(i) __asm__ volatile("vfmadd231ps %2, %1, %0" : "+x"(c##i) : "x"(a), "x"(b));
    CHAINS(OPEN)
    for (uint64_t r = 0; r < rounds; r++) {
        CHAINS(STEP)
    }
    return (double)rounds * 12 * 8 * 2;
}

uint64_t peak_read_avx2(const uint8_t *data, size_t bytes)
{
    __m256i s0 = _mm256_setzero_si256(), s1 = s0, s2 = s0, s3 = s0;
    for (size_t i = 0; i + 256 <= bytes; i += 256) {
        const __m256i *at = (const __m256i *)(const void *)(data + i);
#define READ(j) _mm256_xor_si256(_mm256_loadu_si256(at + (j)), _mm256_loadu_si256(at + (j) + 1))
        s0 = _mm256_xor_si256(s0, READ(0));
        s1 = _mm256_xor_si256(s1, READ(2));
        s2 = _mm256_xor_si256(s2, READ(4));
        s3 = _mm256_xor_si256(s3, READ(6));
    }
    __m256i sum = _mm256_xor_si256(_mm256_xor_si256(s0, s1), _mm256_xor_si256(s2, s3));
    return (uint64_t)_mm256_extract_epi64(sum, 0) ^ (uint64_t)_mm256_extract_epi64(sum, 1) ^
           (uint64_t)_mm256_extract_epi64(sum, 2) ^ (uint64_t)_mm256_extract_epi64(sum, 3);
}
