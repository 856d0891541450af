/* See peak.h. Twelve independent chains hide the latency of the units. */
#include <immintrin.h>

#include "kernels/cpu/peak.h"

#define CHAINS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

double peak_int8_avx512(uint64_t rounds)
{
    __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
#define OPEN(i) __m512i c##i = _mm512_setzero_si512();
#define STEP(i) __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(c##i) : "v"(a), "v"(b));
    CHAINS(OPEN)
    for (uint64_t r = 0; r < rounds; r++) {
        CHAINS(STEP)
    }
#undef OPEN
#undef STEP
    return (double)rounds * 12 * 64 * 2;
}

double peak_bf16_avx512(uint64_t rounds)
{
    __m512 a = _mm512_setzero_ps(), b = a;
#define OPEN(i) __m512 c##i = _mm512_setzero_ps();
#define STEP(i) __asm__ volatile("vdpbf16ps %2, %1, %0" : "+v"(c##i) : "v"(a), "v"(b));
    CHAINS(OPEN)
    for (uint64_t r = 0; r < rounds; r++) {
        CHAINS(STEP)
    }
    return (double)rounds * 12 * 32 * 2;
}
