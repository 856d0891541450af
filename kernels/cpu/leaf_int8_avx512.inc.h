/* One leaf with int8 inputs on AVX-512 VNNI. Included once for each form and number of rows, with
 * LEAF_NAME(n), LEAF_N, LEAF_ROWS(X) (X(0) X(1) …), LEAF_FORM and LEAF_SCALES set, constants that the
 * compiler folds. Per row: two integer sums of the segment and two F32 sums of the leaf, all with
 * names of their own, because the compiler keeps arrays of vectors in memory. */

#define LEAF_CALL(name, n) name(n)
#define LEAF_START(r)                                                 \
    (FORM_ZERO(LEAF_FORM) == 128 ? _mm512_set1_epi32(in##r->start_q8) \
     : FORM_ZERO(LEAF_FORM) == 8 ? _mm512_set1_epi32(in##r->start_q4) \
     : FORM_ZERO(LEAF_FORM) > 0                                       \
         ? _mm512_set1_epi32(SUM_START + FORM_ZERO(LEAF_FORM) * segment_less(in##r)) \
         : sum_start)

#define ROW_OPEN(r)                                                                            \
    const kinput_seg_t *in##r = (const kinput_seg_t *)(const void *)rows[r] + leaf->seg_first; \
    __m512 leaf_low##r = _mm512_setzero_ps(), leaf_high##r = leaf_low##r;
/* A zero point's part of a segment, zero * sum(q), is one VPDPWSSD, from which the sum grows. */
#define ROW_SEGMENT(r)                                                    \
    __m512i dot_low##r = LEAF_START(r), dot_high##r = dot_low##r;         \
    if (LEAF_FORM == FORM_Z4) {                                           \
        __m512i less = _mm512_set1_epi32(segment_less(in##r));            \
        dot_low##r = _mm512_dpwssd_epi32(dot_low##r, zero_low, less);     \
        dot_high##r = _mm512_dpwssd_epi32(dot_high##r, zero_high, less);  \
    }
#define ROW_UNIT(r)                                                \
    {                                                              \
        __m512i a = broadcast_k4(in##r->q + at);                   \
        dot_low##r = _mm512_dpbusd_epi32(dot_low##r, w_low, a);    \
        dot_high##r = _mm512_dpbusd_epi32(dot_high##r, w_high, a); \
    }
/* The sum's bits are SUM_ZERO + S, so this fma is (float)S * da (internal.h, kinput_seg_t). */
#define ROW_SCALE(r)                                                                   \
    {                                                                                  \
        __m512 da = _mm512_set1_ps(in##r->da), offset = _mm512_set1_ps(in##r->offset); \
        __m512 low = _mm512_fmadd_ps(_mm512_castsi512_ps(dot_low##r), da, offset);     \
        __m512 high = _mm512_fmadd_ps(_mm512_castsi512_ps(dot_high##r), da, offset);   \
        leaf_low##r = _mm512_fmadd_ps(low, d_low, leaf_low##r);                        \
        leaf_high##r = _mm512_fmadd_ps(high, d_high, leaf_high##r);                    \
    }
#define ROW_MINIMUM(r)                                             \
    {                                                              \
        __m512 sum = _mm512_set1_ps(in##r->sum);                   \
        leaf_low##r = _mm512_fmadd_ps(m_low, sum, leaf_low##r);    \
        leaf_high##r = _mm512_fmadd_ps(m_high, sum, leaf_high##r); \
    }
#define ROW_NEXT(r) in##r++;
#define ROW_ADD(r)                                                               \
    leaf_low##r = _mm512_add_ps(_mm512_load_ps(above + (r)*PANEL), leaf_low##r); \
    leaf_high##r = _mm512_add_ps(_mm512_load_ps(above + (r)*PANEL + 16), leaf_high##r);
#define ROW_CLOSE(r)                                \
    _mm512_store_ps(tile + (r)*PANEL, leaf_low##r); \
    _mm512_store_ps(tile + (r)*PANEL + 16, leaf_high##r);

/* The compiler would load a line of nibbles twice, once for each half; one row waits for loads. */
#define KEEP_LOADED(x) __asm__("" : "+v"(x));

/* The low nibble of each byte, or what it names. */
#define NIBBLES(x)                                                                     \
    (FORM_HAS_TABLE(LEAF_FORM) ? _mm512_shuffle_epi8(table, _mm512_and_si512(x, nibble)) \
                               : _mm512_and_si512(x, nibble))

/* 8 k: two units of 4. */
#define PAIR_STEP_BYTES(p)                                                                    \
    {                                                                                         \
        __m512i w_low = load_line(panel + (p)*256), w_high = load_line(panel + (p)*256 + 64); \
        uint32_t at = (p)*PAIR_K;                                                             \
        LEAF_ROWS(ROW_UNIT)                                                                   \
        w_low = load_line(panel + (p)*256 + 128), w_high = load_line(panel + (p)*256 + 192);  \
        at += 4;                                                                              \
        LEAF_ROWS(ROW_UNIT)                                                                   \
    }
#define PAIR_STEP_NIBBLES(p)                                                \
    {                                                                       \
        __m512i both_low = load_line(panel + (p)*128);                      \
        __m512i both_high = load_line(panel + (p)*128 + 64);                \
        KEEP_LOADED(both_low)                                               \
        KEEP_LOADED(both_high)                                              \
        __m512i w_low = NIBBLES(both_low), w_high = NIBBLES(both_high);     \
        uint32_t at = (p)*PAIR_K;                                           \
        LEAF_ROWS(ROW_UNIT)                                                 \
        w_low = NIBBLES(_mm512_srli_epi16(both_low, 4));                    \
        w_high = NIBBLES(_mm512_srli_epi16(both_high, 4));                  \
        at += 4;                                                            \
        LEAF_ROWS(ROW_UNIT)                                                 \
    }
/* A unit's upper bits in their place above the nibbles x: those of unit u stand u * UPPER_BITS up.
 * Bits of the neighbouring byte that a shift brings along are masked. */
#define UPPER_BITS FORM_UPPER_BITS(LEAF_FORM)
#define WITH_UPPER(x, upper, u)                                                          \
    _mm512_ternarylogic_epi64(                                                           \
        x,                                                                               \
        (u)*UPPER_BITS < 4 ? _mm512_slli_epi16(upper, (4 - (u)*UPPER_BITS) & 15)         \
                           : _mm512_srli_epi16(upper, ((u)*UPPER_BITS - 4) & 15),        \
        upper_mask, 0xf8)
/* `place` is the pair whose bits are the lowest that have not been shifted out. */
#define PAIR_STEP_UPPER(p, place)                                                           \
    {                                                                                       \
        __m512i both_low = load_line(panel + (p)*128);                                      \
        __m512i both_high = load_line(panel + (p)*128 + 64);                                \
        KEEP_LOADED(both_low)                                                               \
        KEEP_LOADED(both_high)                                                              \
        __m512i w_low = WITH_UPPER(NIBBLES(both_low), upper_low, 2 * (place));              \
        __m512i w_high = WITH_UPPER(NIBBLES(both_high), upper_high, 2 * (place));           \
        uint32_t at = (p)*PAIR_K;                                                           \
        LEAF_ROWS(ROW_UNIT)                                                                 \
        w_low = WITH_UPPER(NIBBLES(_mm512_srli_epi16(both_low, 4)), upper_low,              \
                           2 * (place) + 1);                                                \
        w_high = WITH_UPPER(NIBBLES(_mm512_srli_epi16(both_high, 4)), upper_high,           \
                            2 * (place) + 1);                                               \
        at += 4;                                                                            \
        LEAF_ROWS(ROW_UNIT)                                                                 \
    }
#define PAIR_STEP_AT(p, place)        \
    if (FORM_HAS_BYTES(LEAF_FORM))    \
        PAIR_STEP_BYTES(p)            \
    else if (UPPER_BITS > 0)          \
        PAIR_STEP_UPPER(p, place)     \
    else                              \
        PAIR_STEP_NIBBLES(p)
#define PAIR_STEP(p) PAIR_STEP_AT(p, p)
#define UPPER_LINES (UPPER_BITS > 0 ? 2u : 0u)
#define MINIMUM_LINES (FORM_HAS_MINIMUMS(LEAF_FORM) ? 2u : 1u)
#define SCALE_LINES /* of a run's head about a line for each segment */ \
    (FORM_HAS_TAIL(LEAF_FORM)   ? 0u                                    \
     : FORM_HAS_RUNS(LEAF_FORM) ? 1u                                    \
                                : (FORM_IS_WIDE(LEAF_FORM) ? 2u : 1u) * MINIMUM_LINES)
/* Where a run begins: its halves, for all its segments. */
#define RUN_OPEN                                                                                \
    if (FORM_HAS_RUNS(LEAF_FORM) && s == tail.run_end) {                                        \
        panel = run_open(LEAF_FORM, part, leaf, s, panel, &tail);                               \
        if (LEAF_SCALES != SCALES_FLOATS) {                                                     \
            run_d_low = load_halves(tail.scales), run_d_high = load_halves(tail.scales + 32);   \
            if (FORM_HAS_MINIMUMS(LEAF_FORM)) {                                                 \
                run_m_low = load_halves(tail.scales + 64);                                      \
                run_m_high = load_halves(tail.scales + 96);                                     \
            }                                                                                   \
        }                                                                                       \
    }
/* What APART gives for a line, of forms whose scales are not behind their segment. */
#define LOAD_SCALES(low, high, APART)                                 \
    __m512 low, high;                                                 \
    if (LEAF_SCALES == SCALES_FLOATS) {                               \
        low = load_floats(scales), high = load_floats(scales + 64);   \
        scales += 128;                                                \
    } else if (FORM_SCALES_APART(LEAF_FORM)) {                        \
        low = APART(0);                                               \
        high = APART(1);                                              \
        if (LEAF_SCALES == SCALES_FILL) {                             \
            _mm512_store_ps(scales, low);                             \
            _mm512_store_ps(scales + 64, high);                       \
            scales += 128;                                            \
        }                                                             \
    } else if (FORM_IS_WIDE(LEAF_FORM)) {                             \
        low = load_floats(panel), high = load_floats(panel + 64); \
        panel += 128;                                             \
    } else {                                                      \
        low = load_halves(panel), high = load_halves(panel + 32); \
        panel += 64;                                              \
    }

#define SCALES_APART(line)                                                                     \
    (FORM_HAS_RUNS(LEAF_FORM)                                                                  \
         ? _mm512_mul_ps((line) == 0 ? run_d_low : run_d_high,                                 \
                         run_factors(LEAF_FORM, tail.bytes, line, false))                      \
         : tail_scales(LEAF_FORM, part, &tail, line))
#define MINIMUMS_APART(line)                            \
    _mm512_mul_ps((line) == 0 ? run_m_low : run_m_high, \
                  run_factors(LEAF_FORM, tail.bytes, line, true))

static const uint8_t *LEAF_CALL(LEAF_NAME, LEAF_N)(const kpart_t *part, const kleaf_t *leaf,
                                                   const uint8_t *const *rows, const uint8_t *panel,
                                                   uint32_t adds, float *tile, fetch_t fetch)
{
    const __m512i nibble = _mm512_set1_epi8(15);
    const __m512i sum_start = _mm512_set1_epi32(SUM_START);
    __m512i table = sum_start;
    if (FORM_HAS_TABLE(LEAF_FORM))
        table = _mm512_broadcast_i32x4(
            _mm_load_si128((const __m128i *)(const void *)codes_table(LEAF_FORM)));
    const kseg_t *segs = part->input->segs;
    uint8_t *scales = LEAF_SCALES != SCALES_PACKED ? open_spread(&panel) : NULL;
    tail_t tail = scales_open(LEAF_FORM, part, leaf, panel);
    (void)scales;
    (void)nibble;
    (void)table;
    (void)sum_start;
    const __m512i upper_mask = _mm512_set1_epi8(UPPER_BITS == 2 ? 0x30 : 0x10);
    (void)upper_mask;
    /* The halves of the run, for all its segments. */
    __m512 run_d_low = _mm512_setzero_ps(), run_d_high = run_d_low, run_m_low = run_d_low;
    __m512 run_m_high = run_d_low;
    (void)run_m_low;
    (void)run_m_high;
    LEAF_ROWS(ROW_OPEN)
    for (uint32_t s = leaf->seg_first; s < leaf->seg_end; s++) {
        uint32_t pairs = segs[s].pairs;
        RUN_OPEN
        __m512i zero_low = sum_start, zero_high = sum_start;
        if (LEAF_FORM == FORM_Z4) {
            zero_low = tail_zeros(tail.bytes);
            zero_high = tail_zeros(tail.bytes + LINE);
        }
        (void)zero_low;
        (void)zero_high;
        LEAF_ROWS(ROW_SEGMENT)
        __m512i upper_low = sum_start, upper_high = sum_start;
        if (UPPER_BITS > 0) {
            upper_low = load_line(panel);
            upper_high = load_line(panel + 64);
            panel += 128;
        }
        (void)upper_low;
        (void)upper_high;
        if (UPPER_BITS < 2 && __builtin_expect(pairs == 4, 1)) {
            fetch_lines(&fetch, (FORM_HAS_BYTES(LEAF_FORM) ? 16 : 8) + UPPER_LINES + SCALE_LINES);
            PAIR_STEP(0)
            PAIR_STEP(1)
            PAIR_STEP(2)
            PAIR_STEP(3)
        } else if ((FORM_HAS_BYTES(LEAF_FORM) || UPPER_BITS == 2) && pairs == 2) {
            /* scales for 16 values */
            fetch_lines(&fetch, (UPPER_BITS == 2 ? 4 : 8) + UPPER_LINES + SCALE_LINES);
            PAIR_STEP(0)
            PAIR_STEP(1)
        } else {
            for (uint32_t p = 0; p < pairs; p++) {
                PAIR_STEP_AT(p, 0)
                upper_low = _mm512_srli_epi16(upper_low, 2 * UPPER_BITS);
                upper_high = _mm512_srli_epi16(upper_high, 2 * UPPER_BITS);
            }
        }
        panel += pairs * (FORM_HAS_BYTES(LEAF_FORM) ? 256u : 128u);
        LOAD_SCALES(d_low, d_high, SCALES_APART)
        LEAF_ROWS(ROW_SCALE)
        if (FORM_HAS_MINIMUMS(LEAF_FORM)) {
            LOAD_SCALES(m_low, m_high, MINIMUMS_APART)
            LEAF_ROWS(ROW_MINIMUM)
        }
        LEAF_ROWS(ROW_NEXT)
        scales_next(LEAF_FORM, part, leaf, s, &tail);
    }
    for (const float *above = tile + adds * TILE_SUMS; above > tile;) {
        above -= TILE_SUMS;
        LEAF_ROWS(ROW_ADD)
    }
    LEAF_ROWS(ROW_CLOSE)
    return LEAF_SCALES != SCALES_PACKED ? scales : FORM_HAS_TAIL(LEAF_FORM) ? tail.end : panel;
}

#undef LEAF_START
#undef ROW_OPEN
#undef ROW_SEGMENT
#undef ROW_UNIT
#undef ROW_SCALE
#undef ROW_MINIMUM
#undef ROW_NEXT
#undef ROW_ADD
#undef ROW_CLOSE
#undef NIBBLES
#undef PAIR_STEP
#undef PAIR_STEP_AT
#undef PAIR_STEP_UPPER
#undef WITH_UPPER
#undef UPPER_BITS
#undef UPPER_LINES
#undef PAIR_STEP_BYTES
#undef PAIR_STEP_NIBBLES
#undef SCALE_LINES
#undef MINIMUM_LINES
#undef RUN_OPEN
#undef LOAD_SCALES
#undef SCALES_APART
#undef MINIMUMS_APART
#undef KEEP_LOADED
#undef LEAF_CALL
#undef LEAF_N
#undef LEAF_ROWS
