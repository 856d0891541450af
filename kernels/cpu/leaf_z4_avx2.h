/* One leaf of nibbles less a zero point on AVX2 (FORM_Z4), with the integer sums of leaf_avx2.h: one
 * row and one line of 16 columns at a time. */
#ifndef SHOAL_KERNELS_CPU_LEAF_Z4_AVX2_H
#define SHOAL_KERNELS_CPU_LEAF_Z4_AVX2_H

/* The sums of a segment, less their zero points' part, growing from SUM_START. `zeros` has one in the
 * low half of each 32-bit lane. */
static inline line_t z4_dots(const uint8_t *lines, uint32_t pairs, const kinput_seg_t *in,
                             line_t zeros)
{
    line_t low = no_products(), none = no_products();
    for (uint32_t p = 0; p < pairs; p++, lines += 128) {
        line_t w = load_line(lines);
        add_unit(false, low_nibbles(w), w, in->q + p * PAIR_K, &low, &none);
        add_unit(false, high_nibbles(w), w, in->q + p * PAIR_K + 4, &low, &none);
    }
    line_t sums = finish_dots(false, low, none, SUM_START);
    __m256i less = _mm256_set1_epi32(z4_less(in));
    return (line_t){_mm256_add_epi32(sums.low, _mm256_madd_epi16(zeros.low, less)),
                    _mm256_add_epi32(sums.high, _mm256_madd_epi16(zeros.high, less))};
}

static inline line_t z4_zeros(const uint8_t *from)
{
    return (line_t){
        _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)from)),
        _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(from + 8)))};
}

static inline void leaf_z4_line(const kinput_t *input, const kleaf_t *leaf, const uint8_t *row,
                                const uint8_t *panel, uint32_t line, bool add, float *out)
{
    const kinput_seg_t *in = (const kinput_seg_t *)(const void *)row + leaf->seg_first;
    z4_tail_t tail = z4_tail(leaf, panel);
    vf_t sum = vf_set(0);
    panel += (size_t)line * 64;
    for (uint32_t s = leaf->seg_first; s < leaf->seg_end;) {
        uint32_t end = z4_run_end(input, leaf, s);
        vf_t d = load_halves(tail.scales + (size_t)line * 32);
        line_t zeros = z4_zeros(tail.zeros + (size_t)line * LINE);
        tail.scales += 64, tail.zeros += 32;
        for (; s < end; s++, in++) {
            uint32_t pairs = input->segs[s].pairs;
            vf_t dots = line_floats(z4_dots(panel, pairs, in, zeros));
            sum = vf_fma(vf_fma(dots, vf_set(in->da), vf_set(in->offset)), d, sum);
            panel += (size_t)pairs * 128;
        }
    }
    put_line(add, out + (size_t)line * LINE, sum);
}

#define Z4_LEAF(n)                                                                        \
    static const uint8_t *leaf_z4_##n(const kinput_t *input, const kleaf_t *leaf,         \
                                      const uint8_t *const *rows, const uint8_t *panel,   \
                                      bool add, float *tile, fetch_t fetch)               \
    {                                                                                     \
        (void)fetch;                                                                      \
        for (uint32_t r = 0; r < (n); r++)                                                \
            for (uint32_t line = 0; line < 2; line++)                                     \
                leaf_z4_line(input, leaf, rows[r], panel, line, add, tile + r * PANEL);   \
        return z4_tail(leaf, panel).end;                                                  \
    }
Z4_LEAF(1)
Z4_LEAF(2)
Z4_LEAF(3)
Z4_LEAF(4)

#endif
