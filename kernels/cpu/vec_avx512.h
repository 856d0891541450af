/* Sixteen F32 lanes for the kernels that AVX2 and AVX-512 share (rows.inc.h, attend.inc.h): here
 * one register. Maximum and minimum return their second operand when nothing compares, like the
 * scalar `a > b ? a : b`. */
#ifndef SHOAL_KERNELS_CPU_VEC_AVX512_H
#define SHOAL_KERNELS_CPU_VEC_AVX512_H

#include <immintrin.h>
#include <stdint.h>

typedef __m512 vf_t;
typedef __m512i vi_t;

static inline __mmask16 vf_mask(uint32_t n)
{
    return (__mmask16)(n >= 16 ? 0xffffu : (1u << n) - 1u);
}
static inline vf_t vf_set(float x)
{
    return _mm512_set1_ps(x);
}
static inline vf_t vf_load(const float *from)
{
    return _mm512_loadu_ps(from);
}
static inline void vf_store(float *to, vf_t v)
{
    _mm512_storeu_ps(to, v);
}
/* The first n lanes; the others are +0 and their memory is not touched. */
static inline vf_t vf_load_n(const float *from, uint32_t n)
{
    return _mm512_maskz_loadu_ps(vf_mask(n), from);
}
static inline void vf_store_n(float *to, vf_t v, uint32_t n)
{
    _mm512_mask_storeu_ps(to, vf_mask(n), v);
}
static inline vf_t vf_add(vf_t a, vf_t b)
{
    return _mm512_add_ps(a, b);
}
static inline vf_t vf_sub(vf_t a, vf_t b)
{
    return _mm512_sub_ps(a, b);
}
static inline vf_t vf_mul(vf_t a, vf_t b)
{
    return _mm512_mul_ps(a, b);
}
static inline vf_t vf_div(vf_t a, vf_t b)
{
    return _mm512_div_ps(a, b);
}
static inline vf_t vf_fma(vf_t a, vf_t b, vf_t c)
{
    return _mm512_fmadd_ps(a, b, c);
}
static inline vf_t vf_max(vf_t a, vf_t b)
{
    return _mm512_max_ps(a, b);
}
static inline vf_t vf_min(vf_t a, vf_t b)
{
    return _mm512_min_ps(a, b);
}
/* Lanes from n on become `other`. */
static inline vf_t vf_keep(vf_t v, uint32_t n, vf_t other)
{
    return _mm512_mask_mov_ps(other, vf_mask(n), v);
}
/* a < b ? x : y, lane by lane; y where nothing compares. */
static inline vf_t vf_pick_less(vf_t a, vf_t b, vf_t x, vf_t y)
{
    return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), x);
}
static inline float vf_first(vf_t v)
{
    return _mm512_cvtss_f32(v);
}
/* The written tree: lane i + lane i^8, then ^4, ^2, ^1; in all lanes. */
static inline float vf_tree_sum(vf_t v)
{
    v = vf_add(v, _mm512_shuffle_f32x4(v, v, 0x4e));
    v = vf_add(v, _mm512_shuffle_f32x4(v, v, 0xb1));
    v = vf_add(v, _mm512_permute_ps(v, 0x4e));
    v = vf_add(v, _mm512_permute_ps(v, 0xb1));
    return vf_first(v);
}
/* The largest lane of each of four vectors; vector r's in all lanes that are r modulo 4. */
static inline vf_t vf_largest_4(vf_t a, vf_t b, vf_t c, vf_t d)
{
    vf_t ab = vf_max(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    vf_t cd = vf_max(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    vf_t v = vf_max(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    v = vf_max(v, _mm512_shuffle_f32x4(v, v, 0x4e));
    return vf_max(v, _mm512_shuffle_f32x4(v, v, 0xb1));
}

/* Each of 8 values twice. */
static inline vf_t vf_twice(const float *from)
{
    __m512i at = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    return _mm512_permutexvar_ps(at, _mm512_castps256_ps512(_mm256_loadu_ps(from)));
}
static inline vf_t vf_swap_pairs(vf_t v)
{
    return _mm512_permute_ps(v, 0xb1);
}
/* Even lanes a - b, odd lanes a + b. */
static inline vf_t vf_sub_add(vf_t a, vf_t b)
{
    return _mm512_mask_sub_ps(_mm512_add_ps(a, b), 0x5555, a, b);
}

static inline vi_t vi_zero(void)
{
    return _mm512_setzero_si512();
}
static inline vi_t vf_bits(vf_t v)
{
    return _mm512_castps_si512(v);
}
static inline vf_t vi_floats(vi_t v)
{
    return _mm512_castsi512_ps(v);
}
static inline vi_t vi_set(int32_t x)
{
    return _mm512_set1_epi32(x);
}
static inline vi_t vi_and(vi_t a, vi_t b)
{
    return _mm512_and_si512(a, b);
}
static inline vi_t vi_add(vi_t a, vi_t b)
{
    return _mm512_add_epi32(a, b);
}
static inline vi_t vi_sub(vi_t a, vi_t b)
{
    return _mm512_sub_epi32(a, b);
}
static inline vi_t vi_max(vi_t a, vi_t b)
{
    return _mm512_max_epi32(a, b);
}
static inline vi_t vi_left_23(vi_t a)
{
    return _mm512_slli_epi32(a, 23);
}
static inline vi_t vi_left_4(vi_t a)
{
    return _mm512_slli_epi32(a, 4);
}
static inline vi_t vi_right_16(vi_t a)
{
    return _mm512_srli_epi32(a, 16);
}
/* The lanes that are equal, as bits. */
static inline uint32_t vi_equal(vi_t a, vi_t b)
{
    return _mm512_cmpeq_epi32_mask(a, b);
}
/* +0 in one lane; from 16 on in none. */
static inline vf_t vf_without(vf_t v, uint32_t lane)
{
    uint32_t bit = lane < 16 ? 1u << lane : 0;
    return _mm512_maskz_mov_ps((__mmask16)~bit, v);
}
static inline vi_t vi_load(const uint8_t *from)
{
    return _mm512_loadu_si512(from);
}
static inline vi_t vi_load_bytes(const uint8_t *from)
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)from));
}
static inline vi_t vi_right(vi_t a, uint32_t n)
{
    return _mm512_srl_epi32(a, _mm_cvtsi32_si128((int32_t)n));
}
/* The bytes of a table of 16 that the lanes name. */
static inline vi_t vi_named(vi_t lanes, const uint8_t *table)
{
    return _mm512_permutexvar_epi32(lanes, vi_load_bytes(table));
}
static inline vf_t vi_convert(vi_t a)
{
    return _mm512_cvtepi32_ps(a);
}
static inline vi_t vf_round(vf_t v)
{
    return _mm512_cvtps_epi32(v);
}
static inline void vi_store_bytes(int8_t *to, vi_t v)
{
    _mm_storeu_si128((__m128i *)(void *)to, _mm512_cvtepi32_epi8(v));
}
static inline void vi_store_halves(uint16_t *to, vi_t v)
{
    _mm256_storeu_si256((__m256i *)(void *)to, _mm512_cvtepi32_epi16(v));
}
/* Of all lanes; integers, so the order is free. */
static inline int32_t vi_sum(vi_t v)
{
    __m256i s = _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    s = _mm256_add_epi32(s, _mm256_permute2x128_si256(s, s, 1));
    s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0x4e));
    s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0xb1));
    return _mm256_cvtsi256_si32(s);
}
static inline int32_t vi_largest(vi_t v)
{
    __m256i s = _mm256_max_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    s = _mm256_max_epi32(s, _mm256_permute2x128_si256(s, s, 1));
    s = _mm256_max_epi32(s, _mm256_shuffle_epi32(s, 0x4e));
    s = _mm256_max_epi32(s, _mm256_shuffle_epi32(s, 0xb1));
    return _mm256_cvtsi256_si32(s);
}
static inline void vi_store(int32_t *to, vi_t v)
{
    _mm512_storeu_si512(to, v);
}

#endif
