/* One leaf with BF16 or F32 inputs on AVX-512: ascending K, one accumulator for each 16 columns and
 * row. */
#ifndef SHOAL_KERNELS_CPU_LEAF_FLOAT_AVX512_H
#define SHOAL_KERNELS_CPU_LEAF_FLOAT_AVX512_H

#define FLOAT_OPEN(r) __m512 low##r = _mm512_setzero_ps(), high##r = low##r;
#define FLOAT_ADD(r)                                                   \
    low##r = _mm512_add_ps(_mm512_load_ps(above + (r)*PANEL), low##r); \
    high##r = _mm512_add_ps(_mm512_load_ps(above + (r)*PANEL + 16), high##r);
#define FLOAT_STORE(r)                         \
    _mm512_store_ps(tile + (r)*PANEL, low##r); \
    _mm512_store_ps(tile + (r)*PANEL + 16, high##r);
#define FLOAT_CLOSE(n)                                                  \
    for (const float *above = tile + adds * TILE_SUMS; above > tile;) { \
        above -= TILE_SUMS;                                             \
        ROWS_##n(FLOAT_ADD)                                             \
    }                                                                   \
    ROWS_##n(FLOAT_STORE)

#define BF16_STEP(r)                                                                         \
    {                                                                                        \
        __m512bh a = (__m512bh)broadcast_k4((const int8_t *)rows[r] + (size_t)(at + k) * 2); \
        low##r = _mm512_dpbf16_ps(low##r, (__m512bh)w_low, a);                               \
        high##r = _mm512_dpbf16_ps(high##r, (__m512bh)w_high, a);                            \
    }
#define BF16_LEAF(n)                                                                          \
    static const uint8_t *leaf_bf16_##n(const kpart_t *part, const kleaf_t *leaf,             \
                                        const uint8_t *const *rows, const uint8_t *panel,     \
                                        uint32_t adds, float *tile, fetch_t fetch)            \
    {                                                                                         \
        (void)part;                                                                           \
        uint32_t at = leaf->k_padded;                                                         \
        ROWS_##n(FLOAT_OPEN) for (uint32_t k = 0; k < leaf->len_padded; k += 2, panel += 128) \
        {                                                                                     \
            fetch_line(&fetch), fetch_line(&fetch);                                           \
            __m512i w_low = load_line(panel), w_high = load_line(panel + 64);                 \
            ROWS_##n(BF16_STEP)                                                               \
        }                                                                                     \
        FLOAT_CLOSE(n) return panel;                                                          \
    }
BF16_LEAF(1)
BF16_LEAF(2)
BF16_LEAF(3)
BF16_LEAF(4)
BF16_LEAF(5)
BF16_LEAF(6)
BF16_LEAF(7)
BF16_LEAF(8)

#define F32_STEP(r)                                                                \
    {                                                                              \
        __m512 a = _mm512_set1_ps(((const float *)(const void *)rows[r])[at + k]); \
        low##r = _mm512_fmadd_ps(w_low, a, low##r);                                \
        high##r = _mm512_fmadd_ps(w_high, a, high##r);                             \
    }
#define F32_LEAF(name, n, LOAD, STEP_BYTES)                                                       \
    static const uint8_t *leaf_##name##_##n(const kpart_t *part, const kleaf_t *leaf,             \
                                            const uint8_t *const *rows, const uint8_t *panel,     \
                                            uint32_t adds, float *tile, fetch_t fetch)            \
    {                                                                                             \
        (void)part;                                                                               \
        uint32_t at = leaf->k_padded;                                                             \
        ROWS_##n(FLOAT_OPEN) for (uint32_t k = 0; k < leaf->len_padded; k++, panel += STEP_BYTES) \
        {                                                                                         \
            fetch_line(&fetch);                                                                   \
            if (STEP_BYTES == 128)                                                                \
                fetch_line(&fetch);                                                               \
            __m512 w_low = LOAD(panel), w_high = LOAD(panel + STEP_BYTES / 2);                    \
            ROWS_##n(F32_STEP)                                                                    \
        }                                                                                         \
        FLOAT_CLOSE(n) return panel;                                                              \
    }
F32_LEAF(f16, 1, load_halves, 64)
F32_LEAF(f16, 2, load_halves, 64)
F32_LEAF(f16, 3, load_halves, 64)
F32_LEAF(f16, 4, load_halves, 64)
F32_LEAF(f16, 5, load_halves, 64)
F32_LEAF(f16, 6, load_halves, 64)
F32_LEAF(f16, 7, load_halves, 64)
F32_LEAF(f16, 8, load_halves, 64)
F32_LEAF(f32, 1, load_floats, 128)
F32_LEAF(f32, 2, load_floats, 128)
F32_LEAF(f32, 3, load_floats, 128)
F32_LEAF(f32, 4, load_floats, 128)
F32_LEAF(f32, 5, load_floats, 128)
F32_LEAF(f32, 6, load_floats, 128)
F32_LEAF(f32, 7, load_floats, 128)
F32_LEAF(f32, 8, load_floats, 128)

#endif
