/* One leaf with int8 inputs on AVX-512 VNNI. Included once for each form and number of rows, with
 * LEAF_NAME, LEAF_ROWS(X) (X(0) X(1) …), LEAF_Q8 and LEAF_MINIMUMS set. Per row: two integer sums
 * of the segment, two F32 sums of the activation group and two of the leaf, all with names of their
 * own, because the compiler keeps arrays of vectors in memory. */

#if LEAF_Q8
#define LEAF_START(sums) ((sums)*16) /* -128 a = 16 * (-8 a) */
#elif LEAF_MINIMUMS
#define LEAF_START(sums) 0
#else
#define LEAF_START(sums) (sums)
#endif

#define ROW_OPEN(r)                                                                    \
    const int8_t *a##r = (const int8_t *)rows[r] + leaf->k_padded;                     \
    const float *da##r =                                                               \
        (const float *)(const void *)(rows[r] + input->da_offset) + leaf->group_first; \
    __m512 acc_low##r = _mm512_setzero_ps(), acc_high##r = acc_low##r;                 \
    __m512 leaf_low##r = acc_low##r, leaf_high##r = acc_low##r;
#define ROW_SEGMENT(r)                                                                    \
    int32_t neg##r = ((const int32_t *)(const void *)(rows[r] + input->neg8_offset))[s];  \
    __m512i dot_low##r = _mm512_set1_epi32(LEAF_START(neg##r)), dot_high##r = dot_low##r; \
    (void)neg##r;
#define ROW_UNIT(r)                                                \
    {                                                              \
        __m512i a = broadcast_k4(a##r + at);                       \
        dot_low##r = _mm512_dpbusd_epi32(dot_low##r, w_low, a);    \
        dot_high##r = _mm512_dpbusd_epi32(dot_high##r, w_high, a); \
    }
#define ROW_SCALE(r)                                                                     \
    acc_low##r = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot_low##r), d_low, acc_low##r);     \
    acc_high##r = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot_high##r), d_high, acc_high##r); \
    a##r += pairs * PAIR_K;
#define ROW_MINIMUM(r)                                                                  \
    {                                                                                   \
        const float *sums = (const float *)(const void *)(rows[r] + input->sum_offset); \
        __m512 sum = _mm512_set1_ps(sums[s]);                                           \
        acc_low##r = _mm512_fmadd_ps(m_low, sum, acc_low##r);                           \
        acc_high##r = _mm512_fmadd_ps(m_high, sum, acc_high##r);                        \
    }
#define ROW_GROUP(r)                                                   \
    {                                                                  \
        __m512 da = _mm512_set1_ps(*da##r++);                          \
        leaf_low##r = _mm512_fmadd_ps(acc_low##r, da, leaf_low##r);    \
        leaf_high##r = _mm512_fmadd_ps(acc_high##r, da, leaf_high##r); \
        acc_low##r = _mm512_setzero_ps();                              \
        acc_high##r = acc_low##r;                                      \
    }
#define ROW_CLOSE(r)                                                                       \
    if (add) {                                                                             \
        leaf_low##r = _mm512_add_ps(_mm512_load_ps(tile + (r)*PANEL), leaf_low##r);        \
        leaf_high##r = _mm512_add_ps(_mm512_load_ps(tile + (r)*PANEL + 16), leaf_high##r); \
    }                                                                                      \
    _mm512_store_ps(tile + (r)*PANEL, leaf_low##r);                                        \
    _mm512_store_ps(tile + (r)*PANEL + 16, leaf_high##r);

/* 8 k: two units of 4. */
#if LEAF_Q8
#define PAIR_STEP(p)                                                                          \
    {                                                                                         \
        __m512i w_low = load_line(panel + (p)*256), w_high = load_line(panel + (p)*256 + 64); \
        uint32_t at = (p)*PAIR_K;                                                             \
        LEAF_ROWS(ROW_UNIT)                                                                   \
        w_low = load_line(panel + (p)*256 + 128), w_high = load_line(panel + (p)*256 + 192);  \
        at += 4;                                                                              \
        LEAF_ROWS(ROW_UNIT)                                                                   \
    }
#define PAIR_BYTES 256
#else
#define PAIR_STEP(p)                                                        \
    {                                                                       \
        __m512i both_low = load_line(panel + (p)*128);                      \
        __m512i both_high = load_line(panel + (p)*128 + 64);                \
        __m512i w_low = _mm512_and_si512(both_low, nibble);                 \
        __m512i w_high = _mm512_and_si512(both_high, nibble);               \
        uint32_t at = (p)*PAIR_K;                                           \
        LEAF_ROWS(ROW_UNIT)                                                 \
        w_low = _mm512_and_si512(_mm512_srli_epi16(both_low, 4), nibble);   \
        w_high = _mm512_and_si512(_mm512_srli_epi16(both_high, 4), nibble); \
        at += 4;                                                            \
        LEAF_ROWS(ROW_UNIT)                                                 \
    }
#define PAIR_BYTES 128
#endif

static const uint8_t *LEAF_NAME(const kinput_t *input, const kleaf_t *leaf,
                                const uint8_t *const *rows, const uint8_t *panel, bool add,
                                float *tile)
{
    const __m512i nibble = _mm512_set1_epi8(15);
    (void)nibble;
    LEAF_ROWS(ROW_OPEN)
    for (uint32_t s = leaf->seg_first; s < leaf->seg_end; s++) {
        uint32_t pairs = input->segs[s].pairs;
        LEAF_ROWS(ROW_SEGMENT)
        if (__builtin_expect(pairs == 4, 1)) {
            PAIR_STEP(0)
            PAIR_STEP(1)
            PAIR_STEP(2)
            PAIR_STEP(3)
        } else {
            for (uint32_t p = 0; p < pairs; p++)
                PAIR_STEP(p)
        }
        panel += pairs * PAIR_BYTES;
        __m512 d_low = load_halves(panel), d_high = load_halves(panel + 32);
        LEAF_ROWS(ROW_SCALE)
        panel += 64;
#if LEAF_MINIMUMS
        __m512 m_low = load_halves(panel), m_high = load_halves(panel + 32);
        LEAF_ROWS(ROW_MINIMUM)
        panel += 64;
#endif
        if (input->segs[s].group_end) {
            LEAF_ROWS(ROW_GROUP)
        }
    }
    LEAF_ROWS(ROW_CLOSE)
    return panel;
}

#undef LEAF_START
#undef ROW_OPEN
#undef ROW_SEGMENT
#undef ROW_UNIT
#undef ROW_SCALE
#undef ROW_MINIMUM
#undef ROW_GROUP
#undef ROW_CLOSE
#undef PAIR_STEP
#undef PAIR_BYTES
#undef LEAF_NAME
#undef LEAF_ROWS
#undef LEAF_Q8
#undef LEAF_MINIMUMS
