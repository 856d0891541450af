/* Leaves with BF16, F16 or F32 inputs on AVX2 for three rows and more (leaf_avx2.h has one and
 * two): a line of 16 columns at a time, so that the sums of all rows stay in registers and each
 * line of weights is read once for all of them. Per row two sums with names of their own. */
#ifndef SHOAL_KERNELS_CPU_LEAF_FLOAT_AVX2_H
#define SHOAL_KERNELS_CPU_LEAF_FLOAT_AVX2_H

#define ROWS_3(X) X(0) X(1) X(2)
#define ROWS_4(X) ROWS_3(X) X(3)
#define ROWS_5(X) ROWS_4(X) X(4)
#define ROWS_6(X) ROWS_5(X) X(5)

#define SUMS_OPEN(r)                     \
    __m256 low##r = _mm256_setzero_ps(); \
    __m256 high##r = low##r;
#define SUMS_CLOSE(r)                         \
    _mm256_store_ps(sums + (r)*LINE, low##r); \
    _mm256_store_ps(sums + (r)*LINE + 8, high##r);

#define F32_STEP(r)                                    \
    {                                                  \
        __m256 a = _mm256_broadcast_ss(rows[r] + k);   \
        low##r = _mm256_fmadd_ps(w.low, a, low##r);    \
        high##r = _mm256_fmadd_ps(w.high, a, high##r); \
    }
/* n_k steps of `step` bytes, of which the line's share begins at panel; sums_out [n][16]. */
#define F32_LINE(name, n, LOAD, step)                                                         \
    static void name##_line_##n(const float *const *rows, const uint8_t *panel, uint32_t n_k, \
                                fetch_t fetch, float *sums)                                   \
    {                                                                                         \
        ROWS_##n(SUMS_OPEN) for (uint32_t k = 0; k < n_k; k++, panel += (step))               \
        {                                                                                     \
            fetch_line(&fetch);                                                               \
            if ((step) == 128)                                                                \
                fetch_line(&fetch);                                                           \
            vf_t w = LOAD(panel);                                                             \
            ROWS_##n(F32_STEP)                                                                \
        }                                                                                     \
        ROWS_##n(SUMS_CLOSE)                                                                  \
    }
#define LOAD_FLOATS(panel) vf_load((const float *)(const void *)(panel))
F32_LINE(f32, 3, LOAD_FLOATS, 128)
F32_LINE(f32, 4, LOAD_FLOATS, 128)
F32_LINE(f32, 5, LOAD_FLOATS, 128)
F32_LINE(f32, 6, LOAD_FLOATS, 128)
F32_LINE(f16, 3, load_halves, 64)
F32_LINE(f16, 4, load_halves, 64)
F32_LINE(f16, 5, load_halves, 64)
F32_LINE(f16, 6, load_halves, 64)

/* The two products of a pair, the odd one first (docs/numerics.md, "BF16 weights"). */
#define BF16_STEP(r)                                                       \
    {                                                                      \
        __m256i pair = _mm256_set1_epi32((int32_t)load_pair(rows[r] + k)); \
        __m256 odd = odd_halves(pair), even = even_halves(pair);           \
        low##r = _mm256_fmadd_ps(low_odd, odd, low##r);                    \
        high##r = _mm256_fmadd_ps(high_odd, odd, high##r);                 \
        low##r = _mm256_fmadd_ps(low_even, even, low##r);                  \
        high##r = _mm256_fmadd_ps(high_even, even, high##r);               \
    }
#define BF16_LINE(n)                                                                              \
    static void bf16_line_##n(const uint8_t *const *rows, const uint8_t *panel, uint32_t n_pairs, \
                              fetch_t fetch, float *sums)                                         \
    {                                                                                             \
        ROWS_##n(SUMS_OPEN) for (size_t k = 0; k < (size_t)n_pairs * 4; k += 4, panel += 128)     \
        {                                                                                         \
            fetch_line(&fetch), fetch_line(&fetch);                                               \
            __m256i low = load_pairs(panel), high = load_pairs(panel + 32);                       \
            __m256 low_odd = odd_halves(low), low_even = even_halves(low);                        \
            __m256 high_odd = odd_halves(high), high_even = even_halves(high);                    \
            ROWS_##n(BF16_STEP)                                                                   \
        }                                                                                         \
        ROWS_##n(SUMS_CLOSE)                                                                      \
    }
BF16_LINE(3)
BF16_LINE(4)

/* Fetching is done while the first line is read. */
static inline fetch_t line_fetch(fetch_t fetch, const uint8_t *panel, uint32_t line)
{
    return line == 0 ? fetch : (fetch_t){panel, 0};
}

static inline void put_sums(uint32_t n, uint32_t adds, float *tile, uint32_t line,
                            const float *sums)
{
    for (uint32_t r = 0; r < n; r++)
        put_line(adds, tile + (size_t)r * PANEL + (size_t)line * LINE, vf_load(sums + r * LINE));
}

#define WIDE_LEAF(name, n, row_t, value_bytes, steps, step)                                      \
    static const uint8_t *leaf_##name##_##n(const kpart_t *part, const kleaf_t *leaf,            \
                                            const uint8_t *const *rows, const uint8_t *panel,    \
                                            uint32_t adds, float *tile, fetch_t fetch)           \
    {                                                                                            \
        (void)part;                                                                              \
        _Alignas(32) float sums[n * LINE];                                                       \
        const row_t *at[n];                                                                      \
        for (uint32_t r = 0; r < n; r++)                                                         \
            at[r] =                                                                              \
                (const row_t *)(const void *)(rows[r] + (size_t)leaf->k_padded * (value_bytes)); \
        for (uint32_t line = 0; line < 2; line++) {                                              \
            name##_line_##n(at, panel + (size_t)line * (step) / 2, steps,                        \
                            line_fetch(fetch, panel, line), sums);                               \
            put_sums(n, adds, tile, line, sums);                                                 \
        }                                                                                        \
        return panel + (size_t)(steps) * (step);                                                 \
    }
WIDE_LEAF(f32, 3, float, 4, leaf->len_padded, 128)
WIDE_LEAF(f32, 4, float, 4, leaf->len_padded, 128)
WIDE_LEAF(f32, 5, float, 4, leaf->len_padded, 128)
WIDE_LEAF(f32, 6, float, 4, leaf->len_padded, 128)
WIDE_LEAF(f16, 3, float, 4, leaf->len_padded, 64)
WIDE_LEAF(f16, 4, float, 4, leaf->len_padded, 64)
WIDE_LEAF(f16, 5, float, 4, leaf->len_padded, 64)
WIDE_LEAF(f16, 6, float, 4, leaf->len_padded, 64)
WIDE_LEAF(bf16, 3, uint8_t, 2, leaf->len_padded / 2, 128)
WIDE_LEAF(bf16, 4, uint8_t, 2, leaf->len_padded / 2, 128)

#endif
