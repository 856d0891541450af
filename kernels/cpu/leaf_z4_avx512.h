/* One leaf of nibbles less a zero point on AVX-512 VNNI (FORM_Z4): scales and zero points of 128 k
 * stand behind the leaf's lines. The zero point's part of a segment, zero * sum(q), is one
 * VPDPWSSD, from which the sum of the nibbles' products grows. */
#ifndef SHOAL_KERNELS_CPU_LEAF_Z4_AVX512_H
#define SHOAL_KERNELS_CPU_LEAF_Z4_AVX512_H

#define Z4_OPEN(r)                                                                             \
    const kinput_seg_t *in##r = (const kinput_seg_t *)(const void *)rows[r] + leaf->seg_first; \
    __m512 low##r = _mm512_setzero_ps(), high##r = low##r;
#define Z4_START(r)                                               \
    __m512i less##r = _mm512_set1_epi32(z4_less(in##r));          \
    __m512i dot_low##r = _mm512_dpwssd_epi32(sum_start, z_low, less##r); \
    __m512i dot_high##r = _mm512_dpwssd_epi32(sum_start, z_high, less##r);
#define Z4_UNIT(r)                                                 \
    {                                                              \
        __m512i a = broadcast_k4(in##r->q + at);                   \
        dot_low##r = _mm512_dpbusd_epi32(dot_low##r, w_low, a);    \
        dot_high##r = _mm512_dpbusd_epi32(dot_high##r, w_high, a); \
    }
/* As ROW_SCALE of leaf_int8_avx512.inc.h. */
#define Z4_SCALE(r)                                                                    \
    {                                                                                  \
        __m512 da = _mm512_set1_ps(in##r->da), offset = _mm512_set1_ps(in##r->offset); \
        __m512 part_low = _mm512_fmadd_ps(_mm512_castsi512_ps(dot_low##r), da, offset); \
        __m512 part_high = _mm512_fmadd_ps(_mm512_castsi512_ps(dot_high##r), da, offset); \
        low##r = _mm512_fmadd_ps(part_low, d_low, low##r);                             \
        high##r = _mm512_fmadd_ps(part_high, d_high, high##r);                         \
        in##r++;                                                                       \
    }
#define Z4_CLOSE(r)                                                              \
    if (add) {                                                                   \
        low##r = _mm512_add_ps(_mm512_load_ps(tile + (r)*PANEL), low##r);        \
        high##r = _mm512_add_ps(_mm512_load_ps(tile + (r)*PANEL + 16), high##r); \
    }                                                                            \
    _mm512_store_ps(tile + (r)*PANEL, low##r);                                   \
    _mm512_store_ps(tile + (r)*PANEL + 16, high##r);

/* 16 zero points, one in the low half of each 32-bit lane. */
static inline __m512i z4_zeros(const uint8_t *from)
{
    return _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)(const void *)from));
}

#define Z4_LEAF(n)                                                                              \
    static const uint8_t *leaf_z4_##n(const kinput_t *input, const kleaf_t *leaf,               \
                                      const uint8_t *const *rows, const uint8_t *panel,         \
                                      bool add, float *tile, fetch_t fetch)                     \
    {                                                                                           \
        const __m512i nibble = _mm512_set1_epi8(15), sum_start = _mm512_set1_epi32(SUM_START);  \
        z4_tail_t tail = z4_tail(leaf, panel);                                                  \
        ROWS_##n(Z4_OPEN) for (uint32_t s = leaf->seg_first; s < leaf->seg_end;)                \
        {                                                                                       \
            uint32_t end = z4_run_end(input, leaf, s);                                          \
            __m512 d_low = load_halves(tail.scales), d_high = load_halves(tail.scales + 32);    \
            __m512i z_low = z4_zeros(tail.zeros), z_high = z4_zeros(tail.zeros + 16);           \
            tail.scales += 64, tail.zeros += 32;                                                \
            for (; s < end; s++) {                                                              \
                ROWS_##n(Z4_START) for (uint32_t p = 0; p < input->segs[s].pairs; p++)          \
                {                                                                               \
                    __m512i both_low = load_line(panel), both_high = load_line(panel + 64);     \
                    __m512i w_low = _mm512_and_si512(both_low, nibble);                         \
                    __m512i w_high = _mm512_and_si512(both_high, nibble);                       \
                    uint32_t at = p * PAIR_K;                                                   \
                    fetch_line(&fetch), fetch_line(&fetch);                                     \
                    ROWS_##n(Z4_UNIT)                                                           \
                    w_low = _mm512_and_si512(_mm512_srli_epi16(both_low, 4), nibble);           \
                    w_high = _mm512_and_si512(_mm512_srli_epi16(both_high, 4), nibble);         \
                    at += 4;                                                                    \
                    ROWS_##n(Z4_UNIT) panel += 128;                                             \
                }                                                                               \
                ROWS_##n(Z4_SCALE)                                                              \
            }                                                                                   \
        }                                                                                       \
        ROWS_##n(Z4_CLOSE) return tail.end;                                                     \
    }
Z4_LEAF(1)
Z4_LEAF(2)
Z4_LEAF(3)
Z4_LEAF(4)
Z4_LEAF(5)

#endif
