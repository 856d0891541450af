/* Leaves with int8 inputs on AVX2 for one or two rows; leaf_many_avx2.h has those for more. Integer
 * products go through 16-bit lanes: VPMADDUBSW adds two of them with saturation, and what a segment
 * adds up there has to fit. Nibbles do: a pair is at most 15 * 127 * 2 = 3,810, a segment adds 8 of
 * them. For weights of 8 bits the inputs go as two parts instead, 16 h + l with l in -8 ... 7 and h
 * in -8 ... 8: a pair is at most 255 * 8 * 2 = 4,080, and 8 of them 32,640. So weights are read as
 * they lie, once for both parts. */
#ifndef SHOAL_KERNELS_CPU_LEAF_INT8_AVX2_H
#define SHOAL_KERNELS_CPU_LEAF_INT8_AVX2_H

static inline line_t low_nibbles(line_t line)
{
    __m256i mask = _mm256_set1_epi8(15);
    return (line_t){_mm256_and_si256(line.low, mask), _mm256_and_si256(line.high, mask)};
}

static inline line_t high_nibbles(line_t line)
{
    return low_nibbles((line_t){_mm256_srli_epi16(line.low, 4), _mm256_srli_epi16(line.high, 4)});
}

static inline __m256i broadcast_k4(const int8_t *from)
{
    int32_t four;
    memcpy(&four, from, sizeof four);
    return _mm256_set1_epi32(four);
}

/* The compiler would add products to each other before their sum, and run out of registers. */
#define KEEP_ORDER(line) __asm__("" : "+x"((line).low), "+x"((line).high));

static inline line_t add_products(line_t sum, line_t weights, __m256i a)
{
    sum.low = _mm256_add_epi16(sum.low, _mm256_maddubs_epi16(weights.low, a));
    sum.high = _mm256_add_epi16(sum.high, _mm256_maddubs_epi16(weights.high, a));
    KEEP_ORDER(sum)
    return sum;
}

/* 16-bit pairs to one 32-bit sum a column, times a factor. */
static inline line_t widen(line_t sum, int16_t factor)
{
    __m256i times = _mm256_set1_epi16(factor);
    return (line_t){_mm256_madd_epi16(sum.low, times), _mm256_madd_epi16(sum.high, times)};
}

static inline line_t add_sums(line_t a, line_t b)
{
    return (line_t){_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}

static inline line_t same_sums(int32_t x)
{
    return (line_t){_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}

static inline line_t no_products(void)
{
    return (line_t){_mm256_setzero_si256(), _mm256_setzero_si256()};
}

/* What the nibbles name. */
static inline line_t named(line_t nibbles, __m256i table)
{
    return (line_t){_mm256_shuffle_epi8(table, nibbles.low),
                    _mm256_shuffle_epi8(table, nibbles.high)};
}

static inline vf_t line_floats(line_t line)
{
    return (vf_t){_mm256_castsi256_ps(line.low), _mm256_castsi256_ps(line.high)};
}

static inline __m256i widen_bytes(const uint8_t *from)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)from));
}

/* exponent_bits of 8 bytes. */
static inline __m256 load_exponents(const uint8_t *from)
{
    __m256i e = widen_bytes(from), one = _mm256_set1_epi32(1);
    __m256i small = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    __m256i bits = _mm256_slli_epi32(_mm256_sub_epi32(e, one), 23);
    return _mm256_castsi256_ps(_mm256_blendv_epi8(small, bits, _mm256_cmpgt_epi32(e, one)));
}

static inline __m256i widen_signed_bytes(const uint8_t *from)
{
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)from));
}

static inline __m256 load_bf16(const uint8_t *from)
{
    __m128i halves = _mm_load_si128((const __m128i *)(const void *)from);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

static inline vf_t scale_halves(const uint8_t *halves, __m256i low, __m256i high)
{
    return vf_mul(load_halves(halves),
                  (vf_t){_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)});
}

static inline vf_t scale_six_bits(const uint8_t *halves, __m128i by)
{
    return scale_halves(halves, _mm256_cvtepu8_epi32(by),
                        _mm256_cvtepu8_epi32(_mm_srli_si128(by, 8)));
}

/* The minimums of a line of the segment at which the run stands. */
static inline __attribute__((always_inline)) vf_t run_minimums(const tail_t *run, uint32_t line)
{
    return scale_six_bits(run->scales + 64 + (size_t)line * 32,
                          load_six_bits(run->bytes, line, true));
}

/* The scales of a line of the segment at which the tail or the run stands. */
static inline __attribute__((always_inline)) vf_t
tail_scales(kform_t form, const kpart_t *part, const tail_t *tail, uint32_t line)
{
    const uint8_t *bytes = tail->bytes + line * LINE, *from = tail->scales + (size_t)line * 32;
    if (form == FORM_M4)
        return (vf_t){load_exponents(bytes), load_exponents(bytes + 8)};
    if (FORM_HAS_RUNS(form) && FORM_HAS_MINIMUMS(form))
        return scale_six_bits(from, load_six_bits(tail->bytes, line, false));
    if (form == FORM_X4 || FORM_HAS_RUNS(form))
        return scale_halves(from, widen_signed_bytes(bytes), widen_signed_bytes(bytes + 8));
    return part->bf16_scales ? (vf_t){load_bf16(from), load_bf16(from + 16)} : load_halves(from);
}

/* What is multiplied has 8 bits. Weights of 5 and 6 bits add the two units of a pair to sums of
 * their own, of which each is at most 31 * 127 * 2 * 4 = 31,496 or 63 * 127 * 2 * 2 = 32,004, with
 * segments of 16. So do e2m1 codes, which are 5 bits with 16 added. */
#define FORM_IS_8BIT(form) (FORM_HAS_BYTES(form) || (form) == FORM_T4 || (form) == FORM_X4)
#define FORM_IS_PAIRED(form) ((form) == FORM_M4 || FORM_UPPER_BITS(form) > 0)

/* Where the sum of a row's segment starts. */
static inline int32_t segment_start(kform_t form, const kinput_seg_t *in)
{
    if (form == FORM_M4)
        return SUM_START + 16 * segment_less(in);
    if (FORM_UPPER_BITS(form) > 0)
        return SUM_START + FORM_ZERO(form) * segment_less(in);
    return FORM_ZERO(form) == 128 ? in->start_q8 : FORM_ZERO(form) == 8 ? in->start_q4 : SUM_START;
}

/* A segment of a panel: its upper bits, its lines and its scales. Then what the sums of one line of
 * columns are scaled with. */
typedef struct {
    const uint8_t *upper, *lines, *scales; /* no scales where they stand apart */
    float *floats;                         /* of a spread panel */
    uint32_t pairs;
} segment_t;

typedef struct {
    vf_t d, m;
    line_t zeros;
} scales_t;

static inline __attribute__((always_inline)) scales_t
segment_scales(kform_t form, int from, const kpart_t *part, const segment_t *segment,
               const tail_t *tail, uint32_t line)
{
    scales_t scales = {.zeros = no_products()};
    float *floats = from == SCALES_PACKED ? NULL : segment->floats + line * LINE;
    if (from == SCALES_FLOATS) {
        scales.d = vf_load(floats);
        scales.m = FORM_HAS_MINIMUMS(form) ? vf_load(floats + PANEL) : scales.d;
        return scales;
    }
    scales.d = FORM_SCALES_APART(form) ? tail_scales(form, part, tail, line)
                                       : load_scales(form, segment->scales, line);
    scales.m = scales.d;
    if (FORM_HAS_RUNS(form) && FORM_HAS_MINIMUMS(form))
        scales.m = run_minimums(tail, line);
    else if (FORM_HAS_MINIMUMS(form))
        scales.m = load_scales(form, segment->scales + (FORM_IS_WIDE(form) ? 128 : 64), line);
    if (from == SCALES_FILL)
        vf_store(floats, scales.d);
    if (from == SCALES_FILL && FORM_HAS_MINIMUMS(form))
        vf_store(floats + PANEL, scales.m);
    if (form == FORM_Z4)
        scales.zeros = (line_t){widen_bytes(tail->bytes + line * LINE),
                                widen_bytes(tail->bytes + line * LINE + 8)};
    return scales;
}

/* The segment at `panel`; panel then stands behind it, as do the scales of a spread panel. */
static inline __attribute__((always_inline)) segment_t
open_segment(kform_t form, const kpart_t *part, uint32_t s, const uint8_t **panel,
             uint8_t **spread)
{
    const uint32_t scales = FORM_SCALES_APART(form) ? 0 : FORM_IS_WIDE(form) ? 128 : 64;
    segment_t segment = {.upper = *panel, .pairs = part->input->segs[s].pairs};
    segment.lines = segment.upper + FORM_UPPER_BYTES(form);
    segment.scales = segment.lines + (size_t)segment.pairs * (FORM_HAS_BYTES(form) ? 256 : 128);
    *panel = segment.scales + (FORM_HAS_MINIMUMS(form) ? 2 * scales : scales);
    if (*spread != NULL) {
        segment.floats = (float *)(void *)*spread;
        *spread += PANEL * sizeof(float) * (FORM_HAS_MINIMUMS(form) ? 2 : 1);
    }
    return segment;
}

/* For the lines of a whole segment; what is left of cut ones is not worth the question. */
static inline __attribute__((always_inline)) void fetch_segment(kform_t form, uint32_t pairs,
                                                                fetch_t *fetch)
{
    const uint32_t pair = FORM_HAS_BYTES(form) ? 4 : 2, upper = FORM_UPPER_BITS(form) > 0 ? 2 : 0;
    const uint32_t scales = FORM_HAS_TAIL(form) ? 0 : FORM_IS_WIDE(form) ? 2 : 1;
    /* Of a run's head about a line for each segment. */
    const uint32_t more =
        upper + (FORM_HAS_MINIMUMS(form) && !FORM_HAS_RUNS(form) ? 2 * scales : scales);
    if (FORM_UPPER_BITS(form) < 2 && pairs == 4)
        fetch_lines(fetch, 4 * pair + more);
    else if ((FORM_IS_WIDE(form) || FORM_HAS_BYTES(form) || FORM_UPPER_BITS(form) == 2) &&
             pairs == 2)
        fetch_lines(fetch, 2 * pair + more);
}

/* One row's sums of a segment's line in 16-bit lanes: `high` is of the inputs' upper parts, or of
 * the second unit of each pair. */
typedef struct {
    line_t low, high;
} dots_t;

/* The integer sums of a segment of one row, which grow from segment_start. */
static inline __attribute__((always_inline)) line_t finish_dots(kform_t form,
                                                                const kinput_seg_t *in,
                                                                const dots_t *dots, line_t zeros)
{
    line_t sums = add_sums(widen(dots->low, 1), same_sums(segment_start(form, in)));
    if (FORM_IS_8BIT(form))
        sums = add_sums(sums, widen(dots->high, 16));
    if (FORM_IS_PAIRED(form))
        sums = add_sums(sums, widen(dots->high, 1));
    if (form == FORM_Z4) {
        __m256i less = _mm256_set1_epi32(segment_less(in));
        sums = add_sums(sums, (line_t){_mm256_madd_epi16(zeros.low, less),
                                       _mm256_madd_epi16(zeros.high, less)});
    }
    return sums;
}

/* Adds a segment to one row's sum of its leaf. The integer sums have grown from SUM_START, so their
 * bits are SUM_ZERO + S and the first fma is (float)S * da (internal.h, kinput_seg_t). */
static inline __attribute__((always_inline)) vf_t add_segment(kform_t form, const kinput_seg_t *in,
                                                              line_t sums, const scales_t *scales,
                                                              vf_t sum)
{
    vf_t scaled = vf_fma(line_floats(sums), vf_set(in->da), vf_set(in->offset));
    sum = vf_fma(scaled, scales->d, sum);
    return FORM_HAS_MINIMUMS(form) ? vf_fma(scales->m, vf_set(in->sum), sum) : sum;
}

/* What a form with a table multiplies: bytes 128 above the values; of e2m1 codes 16 above them. */
static inline __attribute__((always_inline)) __m256i load_table(kform_t form)
{
    if (!FORM_HAS_TABLE(form))
        return _mm256_setzero_si256();
    __m256i table = _mm256_broadcastsi128_si256(
        _mm_load_si128((const __m128i *)(const void *)codes_table(form)));
    return form == FORM_M4 ? _mm256_sub_epi8(table, _mm256_set1_epi8(112)) : table;
}

/* Nibbles with the lowest of the upper bits above them. Bits of the neighbouring byte that a shift
 * brings along are masked. */
static inline __attribute__((always_inline)) line_t with_upper(kform_t form, line_t nibbles,
                                                               line_t upper, int shift)
{
    __m256i mask = _mm256_set1_epi8(FORM_UPPER_BITS(form) == 2 ? 0x30 : 0x10);
    return (line_t){
        _mm256_or_si256(nibbles.low, _mm256_and_si256(_mm256_slli_epi16(upper.low, shift), mask)),
        _mm256_or_si256(nibbles.high, _mm256_and_si256(_mm256_slli_epi16(upper.high, shift), mask)),
    };
}

/* The weights of a pair's two units of 4 k as bytes. */
typedef struct {
    line_t first, second;
} units_t;

/* `upper` has the segment's upper bits, this pair's lowest, and then the next pair's. */
static inline __attribute__((always_inline)) units_t
load_units(kform_t form, const segment_t *segment, uint32_t p, uint32_t line, __m256i table,
           line_t *upper)
{
    const uint8_t *at = segment->lines + (size_t)line * 64;
    if (FORM_HAS_BYTES(form))
        return (units_t){load_line(at + (size_t)p * 256), load_line(at + (size_t)p * 256 + 128)};
    line_t w = load_line(at + (size_t)p * 128), low = low_nibbles(w), high = high_nibbles(w);
    if (FORM_UPPER_BITS(form) > 0) {
        const int bits = (int)FORM_UPPER_BITS(form);
        low = with_upper(form, low, *upper, 4);
        high = with_upper(form, high, *upper, 4 - bits);
        upper->low = _mm256_srli_epi16(upper->low, 2 * bits);
        upper->high = _mm256_srli_epi16(upper->high, 2 * bits);
    }
    if (FORM_HAS_TABLE(form))
        return (units_t){named(low, table), named(high, table)};
    return (units_t){low, high};
}

static inline line_t load_upper(kform_t form, const segment_t *segment, uint32_t line)
{
    return FORM_UPPER_BITS(form) > 0 ? load_line(segment->upper + (size_t)line * 64)
                                     : no_products();
}

/* Adds a pair to one row's sums. q are the row's values of the pair, or the lower parts of them,
 * with the upper parts SEGMENT_K behind. */
static inline __attribute__((always_inline)) void add_pair(kform_t form, const units_t *w,
                                                           const int8_t *q, dots_t *dots)
{
    dots->low = add_products(dots->low, w->first, broadcast_k4(q));
    if (FORM_IS_PAIRED(form)) {
        dots->high = add_products(dots->high, w->second, broadcast_k4(q + 4));
        return;
    }
    dots->low = add_products(dots->low, w->second, broadcast_k4(q + 4));
    if (FORM_IS_8BIT(form)) {
        dots->high = add_products(dots->high, w->first, broadcast_k4(q + SEGMENT_K));
        dots->high = add_products(dots->high, w->second, broadcast_k4(q + SEGMENT_K + 4));
    }
}

/* The parts l and h of a segment's inputs, [2][SEGMENT_K]. The average is (q + 128 + 8) / 2 without
 * its carry lost. */
static inline void split_inputs(const kinput_seg_t *in, int8_t *parts_out)
{
    __m256i q = _mm256_load_si256((const __m256i *)(const void *)in->q), *to = (void *)parts_out;
    __m256i nibble = _mm256_set1_epi8(15), eight = _mm256_set1_epi8(8);
    __m256i low = _mm256_and_si256(_mm256_add_epi8(q, eight), nibble);
    __m256i half = _mm256_avg_epu8(_mm256_xor_si256(q, _mm256_set1_epi8(-128)),
                                   _mm256_set1_epi8(7));
    __m256i high = _mm256_and_si256(_mm256_srli_epi16(half, 3), _mm256_set1_epi8(31));
    _mm256_store_si256(to, _mm256_sub_epi8(low, eight));
    _mm256_store_si256(to + 1, _mm256_sub_epi8(high, eight));
}

/* One row's inputs of a segment, and its sums of the leaf. */
typedef struct {
    const kinput_seg_t *in;
    const int8_t *q;
    vf_t sum[2];
} int8_row_t;

static inline __attribute__((always_inline)) void
close_line(kform_t form, int8_row_t *row, const dots_t *dots, const scales_t *scales, uint32_t line)
{
    line_t sums = finish_dots(form, row->in, dots, scales->zeros);
    row->sum[line] = add_segment(form, row->in, sums, scales, row->sum[line]);
}

/* One line of a segment with one row or two. */
static inline __attribute__((always_inline)) void
few_line(kform_t form, bool two, const segment_t *segment, const scales_t *scales, __m256i table,
         uint32_t line, int8_row_t *r0, int8_row_t *r1)
{
    line_t upper = load_upper(form, segment, line);
    dots_t dots0 = {no_products(), no_products()}, dots1 = dots0;
    for (uint32_t p = 0; p < segment->pairs; p++) {
        units_t w = load_units(form, segment, p, line, table, &upper);
        add_pair(form, &w, r0->q + (size_t)p * PAIR_K, &dots0);
        if (two)
            add_pair(form, &w, r1->q + (size_t)p * PAIR_K, &dots1);
    }
    close_line(form, r0, &dots0, scales, line);
    if (two)
        close_line(form, r1, &dots1, scales, line);
}

static inline __attribute__((always_inline)) void open_inputs(kform_t form, int8_row_t *row,
                                                              int8_t *parts)
{
    row->q = row->in->q;
    if (FORM_IS_8BIT(form)) {
        split_inputs(row->in, parts);
        row->q = parts;
    }
}

static inline __attribute__((always_inline)) void put_row(uint32_t adds, float *tile,
                                                          const int8_row_t *row)
{
    put_line(adds, tile, row->sum[0]);
    put_line(adds, tile + LINE, row->sum[1]);
}

/* One or two rows. `from`: SCALES_PACKED or another. */
static inline __attribute__((always_inline)) const uint8_t *
leaf_int8_few(kform_t form, int from, bool two, const kpart_t *part, const kleaf_t *leaf,
              const uint8_t *const *rows, const uint8_t *panel, uint32_t adds, float *tile,
              fetch_t fetch)
{
    _Alignas(32) int8_t parts[2][2 * SEGMENT_K];
    const __m256i table = load_table(form);
    int8_row_t r0 = {.sum = {vf_set(0), vf_set(0)}}, r1 = r0;
    r0.in = (const kinput_seg_t *)(const void *)rows[0] + leaf->seg_first;
    r1.in = (const kinput_seg_t *)(const void *)rows[two] + leaf->seg_first;
    uint8_t *floats = from != SCALES_PACKED ? open_spread(&panel) : NULL;
    tail_t tail = scales_open(form, part, leaf, panel);
    for (uint32_t s = leaf->seg_first; s < leaf->seg_end; s++, r0.in++, r1.in++) {
        panel = scales_reach(form, part, leaf, s, panel, &tail);
        segment_t segment = open_segment(form, part, s, &panel, &floats);
        fetch_segment(form, segment.pairs, &fetch);
        open_inputs(form, &r0, parts[0]);
        if (two)
            open_inputs(form, &r1, parts[1]);
        scales_t scales = segment_scales(form, from, part, &segment, &tail, 0);
        few_line(form, two, &segment, &scales, table, 0, &r0, &r1);
        scales = segment_scales(form, from, part, &segment, &tail, 1);
        few_line(form, two, &segment, &scales, table, 1, &r0, &r1);
        scales_next(form, part, leaf, s, &tail);
    }
    put_row(adds, tile, &r0);
    if (two)
        put_row(adds, tile + PANEL, &r1);
    return from != SCALES_PACKED ? floats : FORM_HAS_TAIL(form) ? tail.end : panel;
}

#endif
