/* Sixteen F32 lanes for the kernels that AVX2 and AVX-512 share (rows.inc.h, attend.inc.h): here
 * two registers. Maximum and minimum return their second operand when nothing compares, like the
 * scalar `a > b ? a : b`. */
#ifndef SHOAL_KERNELS_CPU_VEC_AVX2_H
#define SHOAL_KERNELS_CPU_VEC_AVX2_H

#include <immintrin.h>
#include <stdint.h>

typedef struct {
    __m256 low, high;
} vf_t;
typedef struct {
    __m256i low, high;
} vi_t;

#define VF_PAIR(name, op)                                    \
    static inline vf_t name(vf_t a, vf_t b)                  \
    {                                                        \
        return (vf_t){op(a.low, b.low), op(a.high, b.high)}; \
    }
VF_PAIR(vf_add, _mm256_add_ps)
VF_PAIR(vf_sub, _mm256_sub_ps)
VF_PAIR(vf_mul, _mm256_mul_ps)
VF_PAIR(vf_div, _mm256_div_ps)
VF_PAIR(vf_max, _mm256_max_ps)
VF_PAIR(vf_min, _mm256_min_ps)

#define VI_PAIR(name, op)                                    \
    static inline vi_t name(vi_t a, vi_t b)                  \
    {                                                        \
        return (vi_t){op(a.low, b.low), op(a.high, b.high)}; \
    }
VI_PAIR(vi_and, _mm256_and_si256)
VI_PAIR(vi_add, _mm256_add_epi32)
VI_PAIR(vi_sub, _mm256_sub_epi32)
VI_PAIR(vi_max, _mm256_max_epi32)

/* All ones in the first n of 8 lanes. */
static inline __m256i vf_mask8(uint32_t n)
{
    __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int32_t)n), lanes);
}
static inline uint32_t vf_low_n(uint32_t n)
{
    return n < 8 ? n : 8;
}
static inline uint32_t vf_high_n(uint32_t n)
{
    return n > 8 ? n - 8 : 0;
}
static inline vf_t vf_set(float x)
{
    return (vf_t){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
static inline vf_t vf_load(const float *from)
{
    return (vf_t){_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
}
static inline void vf_store(float *to, vf_t v)
{
    _mm256_storeu_ps(to, v.low);
    _mm256_storeu_ps(to + 8, v.high);
}
/* The first n lanes; the others are +0 and their memory is not touched. */
static inline vf_t vf_load_n(const float *from, uint32_t n)
{
    return (vf_t){_mm256_maskload_ps(from, vf_mask8(vf_low_n(n))),
                  _mm256_maskload_ps(from + 8, vf_mask8(vf_high_n(n)))};
}
static inline void vf_store_n(float *to, vf_t v, uint32_t n)
{
    _mm256_maskstore_ps(to, vf_mask8(vf_low_n(n)), v.low);
    _mm256_maskstore_ps(to + 8, vf_mask8(vf_high_n(n)), v.high);
}
static inline vf_t vf_fma(vf_t a, vf_t b, vf_t c)
{
    return (vf_t){_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
/* Lanes from n on become `other`. */
static inline vf_t vf_keep(vf_t v, uint32_t n, vf_t other)
{
    __m256 low = _mm256_castsi256_ps(vf_mask8(vf_low_n(n)));
    __m256 high = _mm256_castsi256_ps(vf_mask8(vf_high_n(n)));
    return (vf_t){_mm256_blendv_ps(other.low, v.low, low),
                  _mm256_blendv_ps(other.high, v.high, high)};
}
/* a < b ? x : y, lane by lane; y where nothing compares. */
static inline vf_t vf_pick_less(vf_t a, vf_t b, vf_t x, vf_t y)
{
    return (vf_t){_mm256_blendv_ps(y.low, x.low, _mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ)),
                  _mm256_blendv_ps(y.high, x.high, _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ))};
}
/* The written tree: lane i + lane i^8, then ^4, ^2, ^1. */
static inline float vf_tree_sum(vf_t v)
{
    __m256 s = _mm256_add_ps(v.low, v.high);
    s = _mm256_add_ps(s, _mm256_permute2f128_ps(s, s, 1));
    s = _mm256_add_ps(s, _mm256_permute_ps(s, 0x4e));
    s = _mm256_add_ps(s, _mm256_permute_ps(s, 0xb1));
    return _mm256_cvtss_f32(s);
}
/* The largest lane of each of four vectors; vector r's in all lanes that are r modulo 4. */
static inline vf_t vf_largest_4(vf_t a, vf_t b, vf_t c, vf_t d)
{
    __m256 e = _mm256_max_ps(a.low, a.high), f = _mm256_max_ps(b.low, b.high);
    __m256 g = _mm256_max_ps(c.low, c.high), h = _mm256_max_ps(d.low, d.high);
    __m256 ef = _mm256_max_ps(_mm256_unpacklo_ps(e, f), _mm256_unpackhi_ps(e, f));
    __m256 gh = _mm256_max_ps(_mm256_unpacklo_ps(g, h), _mm256_unpackhi_ps(g, h));
    __m256 v = _mm256_max_ps(_mm256_shuffle_ps(ef, gh, 0x44), _mm256_shuffle_ps(ef, gh, 0xee));
    v = _mm256_max_ps(v, _mm256_permute2f128_ps(v, v, 1));
    return (vf_t){v, v};
}

/* Each of 8 values twice. */
static inline vf_t vf_twice(const float *from)
{
    __m256 v = _mm256_loadu_ps(from);
    return (vf_t){_mm256_permutevar8x32_ps(v, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3)),
                  _mm256_permutevar8x32_ps(v, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7))};
}
static inline vf_t vf_swap_pairs(vf_t v)
{
    return (vf_t){_mm256_permute_ps(v.low, 0xb1), _mm256_permute_ps(v.high, 0xb1)};
}
/* Even lanes a - b, odd lanes a + b. */
VF_PAIR(vf_sub_add, _mm256_addsub_ps)

static inline vi_t vi_zero(void)
{
    return (vi_t){_mm256_setzero_si256(), _mm256_setzero_si256()};
}
static inline vi_t vf_bits(vf_t v)
{
    return (vi_t){_mm256_castps_si256(v.low), _mm256_castps_si256(v.high)};
}
static inline vf_t vi_floats(vi_t v)
{
    return (vf_t){_mm256_castsi256_ps(v.low), _mm256_castsi256_ps(v.high)};
}
static inline vi_t vi_set(int32_t x)
{
    return (vi_t){_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
static inline vi_t vi_left_23(vi_t a)
{
    return (vi_t){_mm256_slli_epi32(a.low, 23), _mm256_slli_epi32(a.high, 23)};
}
static inline vi_t vi_left_4(vi_t a)
{
    return (vi_t){_mm256_slli_epi32(a.low, 4), _mm256_slli_epi32(a.high, 4)};
}
static inline vi_t vi_right_16(vi_t a)
{
    return (vi_t){_mm256_srli_epi32(a.low, 16), _mm256_srli_epi32(a.high, 16)};
}
/* The lanes that are equal, as bits. */
static inline uint32_t vi_equal(vi_t a, vi_t b)
{
    __m256 low = _mm256_castsi256_ps(_mm256_cmpeq_epi32(a.low, b.low));
    __m256 high = _mm256_castsi256_ps(_mm256_cmpeq_epi32(a.high, b.high));
    return (uint32_t)_mm256_movemask_ps(low) | (uint32_t)_mm256_movemask_ps(high) << 8;
}
/* +0 in one lane; from 16 on in none. */
static inline vf_t vf_without(vf_t v, uint32_t lane)
{
    __m256i at = _mm256_set1_epi32((int32_t)lane);
    __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i low = _mm256_cmpeq_epi32(lanes, at);
    __m256i high = _mm256_cmpeq_epi32(_mm256_add_epi32(lanes, _mm256_set1_epi32(8)), at);
    return (vf_t){_mm256_andnot_ps(_mm256_castsi256_ps(low), v.low),
                  _mm256_andnot_ps(_mm256_castsi256_ps(high), v.high)};
}
static inline vi_t vi_load(const uint8_t *from)
{
    return (vi_t){_mm256_loadu_si256((const __m256i *)(const void *)from),
                  _mm256_loadu_si256((const __m256i *)(const void *)(from + 32))};
}
static inline vi_t vi_load_bytes(const uint8_t *from)
{
    return (vi_t){
        _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)from)),
        _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(from + 8)))};
}
static inline vi_t vi_right(vi_t a, uint32_t n)
{
    __m128i count = _mm_cvtsi32_si128((int32_t)n);
    return (vi_t){_mm256_srl_epi32(a.low, count), _mm256_srl_epi32(a.high, count)};
}
/* The bytes of a table of 16 that 8 lanes name. */
static inline __m256i vi_named8(__m256i lanes, vi_t table)
{
    __m256i low = _mm256_permutevar8x32_epi32(table.low, lanes);
    __m256i high = _mm256_permutevar8x32_epi32(table.high, lanes);
    return _mm256_blendv_epi8(low, high, _mm256_cmpgt_epi32(lanes, _mm256_set1_epi32(7)));
}
static inline vi_t vi_named(vi_t lanes, const uint8_t *table)
{
    vi_t bytes = vi_load_bytes(table);
    return (vi_t){vi_named8(lanes.low, bytes), vi_named8(lanes.high, bytes)};
}
static inline vf_t vi_convert(vi_t a)
{
    return (vf_t){_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)};
}
static inline vi_t vf_round(vf_t v)
{
    return (vi_t){_mm256_cvtps_epi32(v.low), _mm256_cvtps_epi32(v.high)};
}
/* Of all lanes; integers, so the order is free. */
static inline int32_t vi_sum(vi_t v)
{
    __m256i s = _mm256_add_epi32(v.low, v.high);
    s = _mm256_add_epi32(s, _mm256_permute2x128_si256(s, s, 1));
    s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0x4e));
    s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0xb1));
    return _mm256_cvtsi256_si32(s);
}
static inline int32_t vi_largest(vi_t v)
{
    __m256i s = _mm256_max_epi32(v.low, v.high);
    s = _mm256_max_epi32(s, _mm256_permute2x128_si256(s, s, 1));
    s = _mm256_max_epi32(s, _mm256_shuffle_epi32(s, 0x4e));
    s = _mm256_max_epi32(s, _mm256_shuffle_epi32(s, 0xb1));
    return _mm256_cvtsi256_si32(s);
}
/* Values fit 16 bits, unsigned. */
static inline void vi_store_halves(uint16_t *to, vi_t v)
{
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(v.low, v.high), 0xd8);
    _mm256_storeu_si256((__m256i *)(void *)to, packed);
}
/* Values fit 8 bits, signed. */
static inline void vi_store_bytes(int8_t *to, vi_t v)
{
    __m256i halves = _mm256_permute4x64_epi64(_mm256_packs_epi32(v.low, v.high), 0xd8);
    __m128i bytes =
        _mm_packs_epi16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
    _mm_storeu_si128((__m128i *)(void *)to, bytes);
}
static inline void vi_store(int32_t *to, vi_t v)
{
    _mm256_storeu_si256((__m256i *)(void *)to, v.low);
    _mm256_storeu_si256((__m256i *)(void *)(to + 8), v.high);
}

#endif
