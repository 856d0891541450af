/* The two products of attention without VDPBF16PS: a line's odd and even halves become F32 and are
 * multiplied one after the other, which is what that instruction does. Queries and probabilities
 * are kept as F32 that have been rounded to BF16, so that a multiplication broadcasts them from
 * memory. All rows of a group share what a line was turned into; every accumulator has a name. */
#ifndef SHOAL_KERNELS_CPU_ATTEND_CORE_AVX2_H
#define SHOAL_KERNELS_CPU_ATTEND_CORE_AVX2_H

#include "kernels/cpu/e4_avx2.h"

/* F32 that are BF16. */
static inline vf_t rounded_lanes(vf_t v)
{
    vi_t halves = bf16_lanes(v);
    return (vf_t){_mm256_castsi256_ps(_mm256_slli_epi32(halves.low, 16)),
                  _mm256_castsi256_ps(_mm256_slli_epi32(halves.high, 16))};
}

static inline void keep_query(attend_t *a, uint32_t r, uint32_t d, vf_t q)
{
    vf_store(a->q.f32[r] + d, rounded_lanes(q));
}

/* Probabilities of keys i … i + 31. */
static inline void keep_probabilities(attend_t *a, uint32_t r, uint32_t i, vf_t x, vf_t y)
{
    vf_store(a->s[r] + i, rounded_lanes(x));
    vf_store(a->s[r] + i + 16, rounded_lanes(y));
}

static inline __m256i load_pairs(const uint8_t *from)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)from);
}

static inline __m256 odd_halves(__m256i pairs)
{
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32((int32_t)0xffff0000u)));
}

static inline __m256 even_halves(__m256i pairs)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
}

static inline void fetch_ahead(const uint8_t *at)
{
    _mm_prefetch((const char *)at, _MM_HINT_T0);
}

static inline __m256i int8_bf16(const uint8_t *codes)
{
    __m128i eight[2] = {_mm_loadl_epi64((const __m128i *)(const void *)codes),
                        _mm_loadl_epi64((const __m128i *)(const void *)(codes + 8))};
    __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight[0]));
    __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight[1]));
    __m256i both = _mm256_packus_epi32(_mm256_srli_epi32(_mm256_castps_si256(low), 16),
                                       _mm256_srli_epi32(_mm256_castps_si256(high), 16));
    return _mm256_permute4x64_epi64(both, 0xd8);
}

/* n codes, a multiple of 32, as BF16; what is read at `ahead` for the next tile is fetched. */
static inline void decode_codes(kkv_type_t type, const uint8_t *codes, size_t n,
                                const uint8_t *ahead, uint8_t *to)
{
    for (size_t i = 0; i < n; i += 16) {
        if (i % 64 == 0)
            fetch_ahead(ahead + i);
        __m256i value;
        if (type == KKV_INT8)
            value = int8_bf16(codes + i);
        else
            value = e4_bf16(_mm256_cvtepu8_epi16(
                _mm_loadu_si128((const __m128i *)(const void *)(codes + i))));
        _mm256_storeu_si256((__m256i *)(void *)(to + 2 * i), value);
    }
}

#define ROWS2_1(X) X(0)
#define ROWS2_2(X) X(0) X(1)
#define ROWS2_3(X) X(0) X(1) X(2)
#define ROWS2_4(X) X(0) X(1) X(2) X(3)

#define FMA_0(r) s##r##0 = _mm256_fmadd_ps(half, q##r, s##r##0);
#define FMA_1(r) s##r##1 = _mm256_fmadd_ps(half, q##r, s##r##1);
#define FMA_2(r) s##r##2 = _mm256_fmadd_ps(half, q##r, s##r##2);
#define FMA_3(r) s##r##3 = _mm256_fmadd_ps(half, q##r, s##r##3);

/* Eight pairs a vector: all odd halves, then all even ones. */
#define HALVES(v, ROWS, halves)   \
    {                             \
        __m256 half = halves(load_pairs(p##v)); \
        ROWS(FMA_##v)             \
    }
#define HALVES_2(ROWS, halves) HALVES(0, ROWS, halves) HALVES(1, ROWS, halves)
#define HALVES_4(ROWS, halves) \
    HALVES_2(ROWS, halves) HALVES(2, ROWS, halves) HALVES(3, ROWS, halves)
#define ODD_FACTOR(r) __m256 q##r = _mm256_broadcast_ss(f##r + 1);
#define EVEN_FACTOR(r) __m256 q##r = _mm256_broadcast_ss(f##r);
#define PAIR_STEP(ROWS, HALVES_N)       \
    {                                   \
        ROWS(ODD_FACTOR)                \
        HALVES_N(ROWS, odd_halves)      \
    }                                   \
    {                                   \
        ROWS(EVEN_FACTOR)               \
        HALVES_N(ROWS, even_halves)     \
    }

#define SCORES_FACTORS(r) const float *f##r = a->q.f32[r] + 2 * d;
#define SCORES_OPEN_2(r) __m256 s##r##0 = _mm256_setzero_ps(), s##r##1 = s##r##0;
#define SCORES_OPEN_4(r) SCORES_OPEN_2(r) __m256 s##r##2 = s##r##0, s##r##3 = s##r##0;
#define SCORES_CLOSE_2(r)                   \
    _mm256_storeu_ps(a->s[r] + i, s##r##0); \
    _mm256_storeu_ps(a->s[r] + i + 8, s##r##1);
#define SCORES_CLOSE_4(r)                        \
    SCORES_CLOSE_2(r)                            \
    _mm256_storeu_ps(a->s[r] + i + 16, s##r##2); \
    _mm256_storeu_ps(a->s[r] + i + 24, s##r##3);
#define SCORES_LINES_2 const uint8_t *p0 = k[i / 16] + d * 64, *p1 = p0 + 32;
#define SCORES_LINES_4 SCORES_LINES_2 const uint8_t *p2 = k[i / 16 + 1] + d * 64, *p3 = p2 + 32;
#define SCORES_FETCH_2 fetch_ahead(next[i / 16] + d * 64);
#define SCORES_FETCH_4 SCORES_FETCH_2 fetch_ahead(next[i / 16 + 1] + d * 64);

/* Of n rows, V vectors of keys at a time: as many as registers hold. */
#define SCORES(n, V)                                                            \
    static void scores_rows_##n(attend_t *a, const uint8_t *const k[4],         \
                                const uint8_t *const next[4])                   \
    {                                                                           \
        for (uint32_t i = 0; i < KEYS_TILE; i += 8 * V) {                       \
            ROWS2_##n(SCORES_OPEN_##V)                                          \
            for (size_t d = 0, n_pairs = a->dim / 2; d < n_pairs; d++) {        \
                SCORES_LINES_##V                                                \
                ROWS2_##n(SCORES_FACTORS)                                       \
                SCORES_FETCH_##V                                                \
                PAIR_STEP(ROWS2_##n, HALVES_##V)                                \
            }                                                                   \
            ROWS2_##n(SCORES_CLOSE_##V)                                         \
        }                                                                       \
    }

SCORES(1, 4)
SCORES(2, 4)
SCORES(3, 4)
SCORES(4, 2)

static void scores_bf16(attend_t *a, const uint8_t *const k[4], const uint8_t *const next[4])
{
    static void (*const rows[])(attend_t *, const uint8_t *const[4], const uint8_t *const[4]) = {
        scores_rows_1, scores_rows_2, scores_rows_3, scores_rows_4};
    rows[a->n - 1](a, k, next);
}

#define VALUES_FACTORS(r) const float *f##r = a->s[r] + 2 * (i + j);
#define VALUES_OPEN_2(r)                                                                 \
    __m256 shrink##r = _mm256_broadcast_ss(a->shrink + r);                               \
    __m256 s##r##0 = _mm256_mul_ps(_mm256_loadu_ps(a->o[r] + d), shrink##r);             \
    __m256 s##r##1 = _mm256_mul_ps(_mm256_loadu_ps(a->o[r] + d + 8), shrink##r);
#define VALUES_OPEN_4(r)                                                                 \
    VALUES_OPEN_2(r)                                                                     \
    __m256 s##r##2 = _mm256_mul_ps(_mm256_loadu_ps(a->o[r] + d + 16), shrink##r);        \
    __m256 s##r##3 = _mm256_mul_ps(_mm256_loadu_ps(a->o[r] + d + 24), shrink##r);
#define VALUES_CLOSE_2(r)                   \
    _mm256_storeu_ps(a->o[r] + d, s##r##0); \
    _mm256_storeu_ps(a->o[r] + d + 8, s##r##1);
#define VALUES_CLOSE_4(r)                        \
    VALUES_CLOSE_2(r)                            \
    _mm256_storeu_ps(a->o[r] + d + 16, s##r##2); \
    _mm256_storeu_ps(a->o[r] + d + 24, s##r##3);
#define VALUES_LINES_2 const uint8_t *p0 = page + at, *p1 = p0 + 32;
#define VALUES_LINES_4 VALUES_LINES_2 const uint8_t *p2 = p0 + 64, *p3 = p0 + 96;
#define VALUES_FETCH_2 fetch_ahead(ahead + at);
#define VALUES_FETCH_4 VALUES_FETCH_2 fetch_ahead(ahead + at + 64);

enum { PAGE_PAIRS = KKV_BLOCK_TOKENS / 2 };

/* V vectors of dimensions from d on. */
#define VALUES(n, V)                                                                           \
    static void values_rows_##n##_##V(attend_t *a, const uint8_t *const v[4],                  \
                                      const uint8_t *const next[4], uint32_t n_pairs,          \
                                      uint32_t d)                                              \
    {                                                                                          \
        ROWS2_##n(VALUES_OPEN_##V)                                                             \
        for (uint32_t i = 0; i < n_pairs; i += PAGE_PAIRS) {                                   \
            uint32_t n_here = n_pairs - i < PAGE_PAIRS ? n_pairs - i : PAGE_PAIRS;             \
            const uint8_t *page = v[i / PAGE_PAIRS], *ahead = next[i / PAGE_PAIRS];            \
            for (uint32_t j = 0; j < n_here; j++) {                                            \
                size_t at = ((size_t)j * a->dim16 + d) * sizeof(uint32_t);                     \
                VALUES_LINES_##V                                                               \
                ROWS2_##n(VALUES_FACTORS)                                                      \
                VALUES_FETCH_##V                                                               \
                PAIR_STEP(ROWS2_##n, HALVES_##V)                                               \
            }                                                                                  \
        }                                                                                      \
        ROWS2_##n(VALUES_CLOSE_##V)                                                            \
    }

VALUES(1, 2)
VALUES(2, 2)
VALUES(3, 2)
VALUES(4, 2)
VALUES(1, 4)
VALUES(2, 4)
VALUES(3, 4)

static void values_bf16(attend_t *a, const uint8_t *const v[4], const uint8_t *const next[4],
                        uint32_t n_pairs)
{
    typedef void (*values_fn)(attend_t *, const uint8_t *const[4], const uint8_t *const[4],
                              uint32_t, uint32_t);
    static const values_fn lines_1[] = {values_rows_1_2, values_rows_2_2, values_rows_3_2,
                                        values_rows_4_2};
    static const values_fn lines_2[] = {values_rows_1_4, values_rows_2_4, values_rows_3_4};
    uint32_t d = 0;
    for (; a->n < 4 && d + 32 <= a->dim16; d += 32)
        lines_2[a->n - 1](a, v, next, n_pairs, d);
    for (; d < a->dim16; d += 16)
        lines_1[a->n - 1](a, v, next, n_pairs, d);
}

#endif
