/* The two products of attention with VDPBF16PS: up to four rows share each line of K or V. Every
 * accumulator has a name of its own, because the compiler keeps arrays of them in memory. While a
 * line is multiplied, the line at its place in the next tile is fetched: blocks lie anywhere, so
 * the machine's own prefetching stops at the end of each. */
#ifndef SHOAL_KERNELS_CPU_ATTEND_CORE_AVX512_H
#define SHOAL_KERNELS_CPU_ATTEND_CORE_AVX512_H

static inline void keep_query(attend_t *a, uint32_t r, uint32_t d, vf_t q)
{
    vi_store_halves((uint16_t *)(void *)a->q.pairs[r] + d, bf16_lanes(q));
}

/* Probabilities of keys i … i + 31. */
static inline void keep_probabilities(attend_t *a, uint32_t r, uint32_t i, vf_t x, vf_t y)
{
    _mm512_storeu_si512(a->p[r] + i / 2, (__m512i)_mm512_cvtne2ps_pbh(y, x));
}

static inline __m512i broadcast_u32(uint32_t x)
{
    return _mm512_set1_epi32((int32_t)x);
}

static inline void fetch_ahead(const uint8_t *at)
{
    _mm_prefetch((const char *)at, _MM_HINT_T0);
}

/* n codes, a multiple of 32, as BF16; what is read at `ahead` for the next tile is fetched. */
static inline void decode_codes(kkv_type_t type, const uint8_t *codes, size_t n,
                                const uint8_t *ahead, uint8_t *to)
{
    for (size_t i = 0; i < n; i += 32) {
        __m512i value;
        if (i % 64 == 0)
            fetch_ahead(ahead + i);
        if (type == KKV_INT8) {
            const __m128i *from = (const __m128i *)(const void *)(codes + i);
            __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from)));
            __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from + 1)));
            value = (__m512i)_mm512_cvtne2ps_pbh(high, low);
        } else {
            __m512i at = _mm512_cvtepu8_epi16(
                _mm256_loadu_si256((const __m256i *)(const void *)(codes + i)));
            value = e4_bf16(at, _mm512_test_epi16_mask(at, _mm512_set1_epi16(0x40)),
                            _mm512_slli_epi16(at, 8));
        }
        _mm512_storeu_si512(to + 2 * i, value);
    }
}

#define DOT(acc, lines, pair) acc = _mm512_dpbf16_ps(acc, (__m512bh)(lines), (__m512bh)(pair))

#define SCORES_ROW_OPEN(r) \
    __m512 s##r##0 = _mm512_setzero_ps(), s##r##1 = s##r##0, s##r##2 = s##r##0, s##r##3 = s##r##0;
#define SCORES_ROW_STEP(r)                           \
    {                                                \
        __m512i b = broadcast_u32(a->q.pairs[r][d]); \
        DOT(s##r##0, k0, b);                         \
        DOT(s##r##1, k1, b);                         \
        DOT(s##r##2, k2, b);                         \
        DOT(s##r##3, k3, b);                         \
    }
#define SCORES_ROW_CLOSE(r)                  \
    _mm512_storeu_ps(a->s[r], s##r##0);      \
    _mm512_storeu_ps(a->s[r] + 16, s##r##1); \
    _mm512_storeu_ps(a->s[r] + 32, s##r##2); \
    _mm512_storeu_ps(a->s[r] + 48, s##r##3);

#define SCORES(n, ROWS)                                                                \
    static void scores_rows_##n(attend_t *a, const uint8_t *const k[4],                \
                                const uint8_t *const next[4])                          \
    {                                                                                  \
        ROWS(SCORES_ROW_OPEN)                                                          \
        const uint8_t *p0 = k[0], *p1 = k[1], *p2 = k[2], *p3 = k[3];                  \
        const uint8_t *n0 = next[0], *n1 = next[1], *n2 = next[2], *n3 = next[3];      \
        for (size_t d = 0, n_pairs = a->dim / 2; d < n_pairs; d++) {                   \
            __m512i k0 = _mm512_loadu_si512(p0 + d * 64);                              \
            __m512i k1 = _mm512_loadu_si512(p1 + d * 64);                              \
            __m512i k2 = _mm512_loadu_si512(p2 + d * 64);                              \
            __m512i k3 = _mm512_loadu_si512(p3 + d * 64);                              \
            fetch_ahead(n0 + d * 64);                                                  \
            fetch_ahead(n1 + d * 64);                                                  \
            fetch_ahead(n2 + d * 64);                                                  \
            fetch_ahead(n3 + d * 64);                                                  \
            ROWS(SCORES_ROW_STEP)                                                      \
        }                                                                              \
        ROWS(SCORES_ROW_CLOSE)                                                         \
    }

SCORES(1, ROWS_1)
SCORES(2, ROWS_2)
SCORES(3, ROWS_3)
SCORES(4, ROWS_4)

static void scores_bf16(attend_t *a, const uint8_t *const k[4], const uint8_t *const next[4])
{
    static void (*const rows[])(attend_t *, const uint8_t *const[4], const uint8_t *const[4]) = {
        scores_rows_1, scores_rows_2, scores_rows_3, scores_rows_4};
    rows[a->n - 1](a, k, next);
}

/* Values: 64 dimensions at a time (four lines), or one line where fewer are left. */
#define VALUES_ROW_OPEN(r)                                                       \
    __m512 shrink##r = _mm512_set1_ps(a->shrink[r]);                             \
    __m512 o##r##0 = _mm512_mul_ps(_mm512_loadu_ps(a->o[r] + d), shrink##r);      \
    __m512 o##r##1 = _mm512_mul_ps(_mm512_loadu_ps(a->o[r] + d + 16), shrink##r); \
    __m512 o##r##2 = _mm512_mul_ps(_mm512_loadu_ps(a->o[r] + d + 32), shrink##r); \
    __m512 o##r##3 = _mm512_mul_ps(_mm512_loadu_ps(a->o[r] + d + 48), shrink##r);
#define VALUES_ROW_STEP(r)                         \
    {                                              \
        __m512i b = broadcast_u32(a->p[r][i + j]); \
        DOT(o##r##0, v0, b);                       \
        DOT(o##r##1, v1, b);                       \
        DOT(o##r##2, v2, b);                       \
        DOT(o##r##3, v3, b);                       \
    }
#define VALUES_ROW_CLOSE(r)                      \
    _mm512_storeu_ps(a->o[r] + d, o##r##0);      \
    _mm512_storeu_ps(a->o[r] + d + 16, o##r##1); \
    _mm512_storeu_ps(a->o[r] + d + 32, o##r##2); \
    _mm512_storeu_ps(a->o[r] + d + 48, o##r##3);

/* The line of a page's pair of keys from dimension d on. */
static inline size_t value_line(const attend_t *a, uint32_t pair, uint32_t d)
{
    return ((size_t)pair * a->dim16 + d) * sizeof(uint32_t);
}

enum { PAGE_PAIRS = KKV_BLOCK_TOKENS / 2 };

#define VALUES(n, ROWS)                                                                     \
    static void values_rows_##n(attend_t *a, const uint8_t *const v[4],                     \
                                const uint8_t *const next[4], uint32_t n_pairs, uint32_t d) \
    {                                                                                       \
        ROWS(VALUES_ROW_OPEN)                                                               \
        for (uint32_t i = 0; i < n_pairs; i += PAGE_PAIRS) {                                \
            uint32_t n_here = n_pairs - i < PAGE_PAIRS ? n_pairs - i : PAGE_PAIRS;          \
            const uint8_t *page = v[i / PAGE_PAIRS], *ahead = next[i / PAGE_PAIRS];         \
            for (uint32_t j = 0; j < n_here; j++) {                                         \
                size_t at = value_line(a, j, d);                                            \
                __m512i v0 = _mm512_loadu_si512(page + at);                                 \
                __m512i v1 = _mm512_loadu_si512(page + at + 64);                            \
                __m512i v2 = _mm512_loadu_si512(page + at + 128);                           \
                __m512i v3 = _mm512_loadu_si512(page + at + 192);                           \
                fetch_ahead(ahead + at);                                                     \
                fetch_ahead(ahead + at + 64);                                                \
                fetch_ahead(ahead + at + 128);                                               \
                fetch_ahead(ahead + at + 192);                                               \
                ROWS(VALUES_ROW_STEP)                                                       \
            }                                                                               \
        }                                                                                   \
        ROWS(VALUES_ROW_CLOSE)                                                              \
    }

VALUES(1, ROWS_1)
VALUES(2, ROWS_2)
VALUES(3, ROWS_3)
VALUES(4, ROWS_4)

static void values_line(attend_t *a, const uint8_t *const v[4], uint32_t n_pairs, uint32_t d)
{
    for (uint32_t r = 0; r < a->n; r++) {
        __m512 o = _mm512_mul_ps(_mm512_loadu_ps(a->o[r] + d), _mm512_set1_ps(a->shrink[r]));
        for (uint32_t i = 0; i < n_pairs; i++) {
            const uint8_t *line = v[i / PAGE_PAIRS] + value_line(a, i % PAGE_PAIRS, d);
            DOT(o, _mm512_loadu_si512(line), broadcast_u32(a->p[r][i]));
        }
        _mm512_storeu_ps(a->o[r] + d, o);
    }
}

static void values_bf16(attend_t *a, const uint8_t *const v[4], const uint8_t *const next[4],
                        uint32_t n_pairs)
{
    static void (*const rows[])(attend_t *, const uint8_t *const[4], const uint8_t *const[4],
                                uint32_t, uint32_t) = {values_rows_1, values_rows_2,
                                                       values_rows_3, values_rows_4};
    uint32_t d = 0;
    for (; d + 64 <= a->dim16; d += 64)
        rows[a->n - 1](a, v, next, n_pairs, d);
    for (; d < a->dim16; d += 16)
        values_line(a, v, n_pairs, d);
}

#endif
