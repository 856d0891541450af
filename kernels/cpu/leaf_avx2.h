/* Leaves on AVX2: one or two rows and, with int8 inputs, one line of 16 columns at a time, its
 * integers in 16-bit lanes. VPMADDUBSW adds two products into 16 bits with saturation, which
 * weights above 7 bits can reach; so 8-bit weights go as two nibbles, 16 h + l. A nibble's pair of
 * products is at most 15 * 127 * 2 = 3,810 and a segment adds 8 of them, 30,480, which fits. */
#ifndef SHOAL_KERNELS_CPU_LEAF_AVX2_H
#define SHOAL_KERNELS_CPU_LEAF_AVX2_H

typedef struct {
    __m256i low, high; /* columns 0…7 and 8…15 of a line */
} line_t;

static inline line_t load_line(const uint8_t *from)
{
    return (line_t){_mm256_load_si256((const __m256i *)(const void *)from),
                    _mm256_load_si256((const __m256i *)(const void *)(from + 32))};
}

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

static inline line_t add_products(line_t sum, line_t weights, __m256i a)
{
    return (line_t){
        _mm256_add_epi16(sum.low, _mm256_maddubs_epi16(weights.low, a)),
        _mm256_add_epi16(sum.high, _mm256_maddubs_epi16(weights.high, a)),
    };
}

/* 16-bit pairs to one 32-bit sum a column. */
static inline line_t widen(line_t sum)
{
    __m256i one = _mm256_set1_epi16(1);
    return (line_t){_mm256_madd_epi16(sum.low, one), _mm256_madd_epi16(sum.high, one)};
}

static inline line_t no_products(void)
{
    return (line_t){_mm256_setzero_si256(), _mm256_setzero_si256()};
}

/* The nibbles that are the low or the high half of what the line's nibbles name. */
static inline line_t named(line_t nibbles, __m256i table)
{
    return (line_t){_mm256_shuffle_epi8(table, nibbles.low),
                    _mm256_shuffle_epi8(table, nibbles.high)};
}

/* Adds a unit of 4 k, whose weights are two lines of nibbles when they have 8 bits, to one row. */
static inline void add_unit(bool q8, line_t low_w, line_t high_w, const int8_t *a, line_t *low,
                            line_t *high)
{
    __m256i a4 = broadcast_k4(a);
    *low = add_products(*low, low_w, a4);
    if (q8)
        *high = add_products(*high, high_w, a4);
}

/* The integer sums of a segment: 16-bit sums widened, high nibbles times 16, offset added. */
static inline line_t finish_dots(bool q8, line_t low, line_t high, int32_t start)
{
    __m256i offset = _mm256_set1_epi32(start);
    low = widen(low);
    if (q8) {
        high = widen(high);
        low.low = _mm256_add_epi32(low.low, _mm256_slli_epi32(high.low, 4));
        low.high = _mm256_add_epi32(low.high, _mm256_slli_epi32(high.high, 4));
    }
    return (line_t){_mm256_add_epi32(low.low, offset), _mm256_add_epi32(low.high, offset)};
}

static inline vf_t load_halves(const uint8_t *from)
{
    const __m128i *halves = (const __m128i *)(const void *)from;
    return (vf_t){_mm256_cvtph_ps(_mm_load_si128(halves)),
                  _mm256_cvtph_ps(_mm_load_si128(halves + 1))};
}

static inline vf_t line_floats(line_t line)
{
    return (vf_t){_mm256_castsi256_ps(line.low), _mm256_castsi256_ps(line.high)};
}

static inline void put_line(bool add, float *tile, vf_t sum)
{
    vf_store(tile, add ? vf_add(vf_load(tile), sum) : sum);
}

/* Where one row's next segment stands, and the sum of its leaf. */
typedef struct {
    const kinput_seg_t *in;
    vf_t sum;
} int8_row_t;

static inline int8_row_t open_row(const kleaf_t *leaf, const uint8_t *row)
{
    return (int8_row_t){(const kinput_seg_t *)(const void *)row + leaf->seg_first, vf_set(0)};
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

static inline __m256 load_signed_bytes(const uint8_t *from)
{
    __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)from);
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}

static inline __m256 load_bf16(const uint8_t *from)
{
    __m128i halves = _mm_load_si128((const __m128i *)(const void *)from);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

/* The scales of a line of the segment at which the tail stands. */
static inline __attribute__((always_inline)) vf_t
tail_scales(kform_t form, const kpart_t *part, const tail_t *tail, uint32_t line)
{
    const uint8_t *bytes = tail->bytes + line * LINE, *from = tail->scales + (size_t)line * 32;
    if (form == FORM_M4)
        return (vf_t){load_exponents(bytes), load_exponents(bytes + 8)};
    if (form == FORM_X4)
        return vf_mul(load_halves(from),
                      (vf_t){load_signed_bytes(bytes), load_signed_bytes(bytes + 8)});
    return part->bf16_scales ? (vf_t){load_bf16(from), load_bf16(from + 16)} : load_halves(from);
}

/* The scales or minimums of a line of columns. */
static inline vf_t load_scales(kform_t form, const uint8_t *panel, uint32_t line)
{
    return FORM_IS_WIDE(form) ? vf_load((const float *)(const void *)panel + line * LINE)
                              : load_halves(panel + (size_t)line * 32);
}

/* Whether the kernel multiplies two lines of nibbles, the low and the high ones of its values. Those
 * of 5 and 6 bits need no second line: the two units of a pair go to sums of their own, of which
 * each is at most 31 * 127 * 2 * 4 = 31,496 or 63 * 127 * 2 * 2 = 32,004, with segments of 16. So do
 * e2m1 codes, which are 5 bits with 16 added. */
#define FORM_IS_SPLIT(form) (FORM_HAS_BYTES(form) || (form) == FORM_T4 || (form) == FORM_X4)
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

/* Finishes a segment of one row. The integer sums have grown from SUM_START, so their bits are
 * SUM_ZERO + S and the first fma is (float)S * da (internal.h, kinput_seg_t). */
static inline __attribute__((always_inline)) void close_segment(kform_t form, int8_row_t *row,
                                                                line_t low, line_t high,
                                                                line_t zeros, vf_t d, vf_t m)
{
    const kinput_seg_t *in = row->in++;
    line_t sums = finish_dots(FORM_IS_SPLIT(form), low, high, segment_start(form, in));
    if (FORM_IS_PAIRED(form)) {
        high = widen(high);
        sums.low = _mm256_add_epi32(sums.low, high.low);
        sums.high = _mm256_add_epi32(sums.high, high.high);
    }
    if (form == FORM_Z4) {
        __m256i less = _mm256_set1_epi32(segment_less(in));
        sums.low = _mm256_add_epi32(sums.low, _mm256_madd_epi16(zeros.low, less));
        sums.high = _mm256_add_epi32(sums.high, _mm256_madd_epi16(zeros.high, less));
    }
    row->sum = vf_fma(vf_fma(line_floats(sums), vf_set(in->da), vf_set(in->offset)), d, row->sum);
    if (FORM_HAS_MINIMUMS(form))
        row->sum = vf_fma(m, vf_set(in->sum), row->sum);
}

/* Four lines of nibbles: the low and high ones of two units. Where values have no high ones, those
 * are not looked at. */
typedef struct {
    line_t first_low, first_high, second_low, second_high;
} units_t;

typedef struct {
    __m256i low, high;
} tables_t;

static inline tables_t load_tables(kform_t form)
{
    __m256i table = _mm256_broadcastsi128_si256(
        _mm_load_si128((const __m128i *)(const void *)codes_table(form)));
    __m256i nibble = _mm256_set1_epi8(15);
    if (form == FORM_M4) /* 16 more, not 128 */
        return (tables_t){_mm256_sub_epi8(table, _mm256_set1_epi8(112)), table};
    return (tables_t){_mm256_and_si256(table, nibble),
                      _mm256_and_si256(_mm256_srli_epi16(table, 4), nibble)};
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

/* `upper` has the segment's upper bits, this pair's lowest, and then the next pair's. */
static inline __attribute__((always_inline)) units_t load_units(kform_t form, const uint8_t *at,
                                                                tables_t tables, line_t *upper)
{
    line_t w = load_line(at), low = low_nibbles(w), high = high_nibbles(w);
    if (FORM_UPPER_BITS(form) > 0) {
        const int bits = (int)FORM_UPPER_BITS(form);
        line_t first = with_upper(form, low, *upper, 4);
        line_t second = with_upper(form, high, *upper, 4 - bits);
        upper->low = _mm256_srli_epi16(upper->low, 2 * bits);
        upper->high = _mm256_srli_epi16(upper->high, 2 * bits);
        return (units_t){first, first, second, second};
    }
    if (FORM_HAS_TABLE(form))
        return (units_t){named(low, tables.low), named(low, tables.high), named(high, tables.low),
                         named(high, tables.high)};
    if (!FORM_HAS_BYTES(form))
        return (units_t){low, high, high, high};
    line_t next = load_line(at + 128);
    return (units_t){low, high, low_nibbles(next), high_nibbles(next)};
}

/* One row's sums of a segment's line, and the addition of a pair of units to them. */
typedef struct {
    line_t low, high;
} dots_t;

static inline __attribute__((always_inline)) void add_pair(kform_t form, const units_t *w,
                                                           const int8_t *a, dots_t *dots)
{
    const bool split = FORM_IS_SPLIT(form);
    add_unit(split, w->first_low, w->first_high, a, &dots->low, &dots->high);
    if (FORM_IS_PAIRED(form))
        add_unit(false, w->second_low, w->second_low, a + 4, &dots->high, &dots->low);
    else
        add_unit(split, w->second_low, w->second_high, a + 4, &dots->low, &dots->high);
}

/* One or two rows, one line of columns. `line` is 0 or 1; panel is the leaf's first byte. */
static inline __attribute__((always_inline)) const uint8_t *
leaf_int8_line(kform_t form, bool two, const kpart_t *part, const kleaf_t *leaf,
               const uint8_t *const *rows, const uint8_t *panel, uint32_t line, bool add,
               float *out)
{
    const tables_t tables = load_tables(form);
    const uint32_t scales = FORM_IS_WIDE(form) ? 128 : 64, step = FORM_HAS_BYTES(form) ? 256 : 128;
    int8_row_t r0 = open_row(leaf, rows[0]);
    int8_row_t r1 = open_row(leaf, rows[two]);
    tail_t tail = {0};
    if (FORM_HAS_TAIL(form))
        tail = tail_open(part, leaf, panel);
    for (uint32_t s = leaf->seg_first; s < leaf->seg_end; s++) {
        uint32_t pairs = part->input->segs[s].pairs;
        dots_t dots0 = {no_products(), no_products()}, dots1 = dots0;
        line_t upper = no_products();
        if (FORM_UPPER_BITS(form) > 0)
            upper = load_line(panel + (size_t)line * 64);
        panel += FORM_UPPER_BYTES(form);
        const uint8_t *at = panel + (size_t)line * 64;
        for (uint32_t p = 0; p < pairs; p++, at += step) {
            units_t w = load_units(form, at, tables, &upper);
            add_pair(form, &w, r0.in->q + (size_t)p * PAIR_K, &dots0);
            if (two)
                add_pair(form, &w, r1.in->q + (size_t)p * PAIR_K, &dots1);
        }
        panel += pairs * step;
        vf_t d = FORM_HAS_TAIL(form) ? tail_scales(form, part, &tail, line)
                                     : load_scales(form, panel, line), m = d;
        line_t zeros = no_products();
        if (form == FORM_Z4)
            zeros = (line_t){widen_bytes(tail.bytes + line * LINE),
                             widen_bytes(tail.bytes + line * LINE + 8)};
        if (FORM_HAS_MINIMUMS(form))
            m = load_scales(form, panel + scales, line);
        close_segment(form, &r0, dots0.low, dots0.high, zeros, d, m);
        if (two)
            close_segment(form, &r1, dots1.low, dots1.high, zeros, d, m);
        if (FORM_HAS_TAIL(form))
            tail_next(form, part, leaf, s, &tail);
        else
            panel += FORM_HAS_MINIMUMS(form) ? 2 * scales : scales;
    }
    put_line(add, out + (size_t)line * LINE, r0.sum);
    if (two)
        put_line(add, out + PANEL + (size_t)line * LINE, r1.sum);
    return FORM_HAS_TAIL(form) ? tail.end : panel;
}

static inline __attribute__((always_inline)) const uint8_t *
leaf_int8_rows(kform_t form, const kpart_t *part, const kleaf_t *leaf, const uint8_t *const *rows,
               uint32_t n, const uint8_t *panel, bool add, float *tile)
{
    const uint8_t *next = panel;
    uint32_t r = 0;
    for (; r + 2 <= n; r += 2)
        for (uint32_t line = 0; line < 2; line++)
            next = leaf_int8_line(form, true, part, leaf, rows + r, panel, line, add,
                                  tile + (size_t)r * PANEL);
    if (r < n)
        for (uint32_t line = 0; line < 2; line++)
            next = leaf_int8_line(form, false, part, leaf, rows + r, panel, line, add,
                                  tile + (size_t)r * PANEL);
    return next;
}

/* acc + odd * odd, then + even * even, of 8 pairs with one pair. */
static inline __m256 dot_pairs(__m256 acc, __m256i pairs, __m256 odd, __m256 even)
{
    acc = _mm256_fmadd_ps(odd_halves(pairs), odd, acc);
    return _mm256_fmadd_ps(even_halves(pairs), even, acc);
}

static inline vf_t dot_bf16(vf_t acc, line_t pairs, uint32_t pair)
{
    __m256 odd = _mm256_set1_ps(bits_float(pair & 0xffff0000u));
    __m256 even = _mm256_set1_ps(bits_float(pair << 16));
    return (vf_t){dot_pairs(acc.low, pairs.low, odd, even),
                  dot_pairs(acc.high, pairs.high, odd, even)};
}

static inline uint32_t load_pair(const uint8_t *from)
{
    uint32_t pair;
    memcpy(&pair, from, sizeof pair);
    return pair;
}

static inline __attribute__((always_inline)) void leaf_bf16_two(bool two, const kleaf_t *leaf,
                                                                const uint8_t *const *rows,
                                                                const uint8_t *panel, bool add,
                                                                float *tile)
{
    vf_t low0 = vf_set(0), high0 = low0, low1 = low0, high1 = low0;
    const uint8_t *a0 = rows[0] + (size_t)leaf->k_padded * 2;
    const uint8_t *a1 = rows[two] + (size_t)leaf->k_padded * 2;
    for (uint32_t k = 0; k < leaf->len_padded; k += 2, panel += 128) {
        line_t low = load_line(panel), high = load_line(panel + 64);
        low0 = dot_bf16(low0, low, load_pair(a0 + (size_t)k * 2));
        high0 = dot_bf16(high0, high, load_pair(a0 + (size_t)k * 2));
        if (two) {
            low1 = dot_bf16(low1, low, load_pair(a1 + (size_t)k * 2));
            high1 = dot_bf16(high1, high, load_pair(a1 + (size_t)k * 2));
        }
    }
    put_line(add, tile, low0);
    put_line(add, tile + LINE, high0);
    if (two) {
        put_line(add, tile + PANEL, low1);
        put_line(add, tile + PANEL + LINE, high1);
    }
}

static inline vf_t load_weights(bool f16, const uint8_t *from)
{
    return f16 ? load_halves(from) : vf_load((const float *)(const void *)from);
}

static inline __attribute__((always_inline)) void
leaf_float_two(bool f16, bool two, const kleaf_t *leaf, const uint8_t *const *rows,
               const uint8_t *panel, bool add, float *tile)
{
    size_t step = f16 ? 64 : 128;
    vf_t low0 = vf_set(0), high0 = low0, low1 = low0, high1 = low0;
    const float *a0 = (const float *)(const void *)rows[0] + leaf->k_padded;
    const float *a1 = (const float *)(const void *)rows[two] + leaf->k_padded;
    for (uint32_t k = 0; k < leaf->len_padded; k++, panel += step) {
        vf_t low = load_weights(f16, panel), high = load_weights(f16, panel + step / 2);
        low0 = vf_fma(low, vf_set(a0[k]), low0);
        high0 = vf_fma(high, vf_set(a0[k]), high0);
        if (two) {
            low1 = vf_fma(low, vf_set(a1[k]), low1);
            high1 = vf_fma(high, vf_set(a1[k]), high1);
        }
    }
    put_line(add, tile, low0);
    put_line(add, tile + LINE, high0);
    if (two) {
        put_line(add, tile + PANEL, low1);
        put_line(add, tile + PANEL + LINE, high1);
    }
}

static inline __attribute__((always_inline)) const uint8_t *
leaf_float_rows(kform_t form, const kleaf_t *leaf, const uint8_t *const *rows, uint32_t n,
                const uint8_t *panel, bool add, float *tile)
{
    for (uint32_t r = 0; r < n; r += 2) {
        float *to = tile + (size_t)r * PANEL;
        if (form == FORM_BF16 && r + 2 <= n)
            leaf_bf16_two(true, leaf, rows + r, panel, add, to);
        else if (form == FORM_BF16)
            leaf_bf16_two(false, leaf, rows + r, panel, add, to);
        else if (r + 2 <= n)
            leaf_float_two(form == FORM_F16, true, leaf, rows + r, panel, add, to);
        else
            leaf_float_two(form == FORM_F16, false, leaf, rows + r, panel, add, to);
    }
    return panel + leaf->len_padded * (size_t)(form == FORM_F32 ? 128 : 64);
}

#define LEAF(name, n, call)                                                                   \
    static const uint8_t *leaf_##name##_##n(const kpart_t *part, const kleaf_t *leaf,         \
                                            const uint8_t *const *rows, const uint8_t *panel, \
                                            bool add, float *tile, fetch_t fetch)             \
    {                                                                                         \
        (void)part, (void)fetch;                                                              \
        return call;                                                                          \
    }
#define INT8_LEAVES(n)                                                             \
    LEAF(q8, n, leaf_int8_rows(FORM_Q8, part, leaf, rows, n, panel, add, tile))   \
    LEAF(q4, n, leaf_int8_rows(FORM_Q4, part, leaf, rows, n, panel, add, tile))   \
    LEAF(q4m, n, leaf_int8_rows(FORM_Q4M, part, leaf, rows, n, panel, add, tile)) \
    LEAF(i8, n, leaf_int8_rows(FORM_I8, part, leaf, rows, n, panel, add, tile))   \
    LEAF(n4m, n, leaf_int8_rows(FORM_N4M, part, leaf, rows, n, panel, add, tile)) \
    LEAF(q5, n, leaf_int8_rows(FORM_Q5, part, leaf, rows, n, panel, add, tile)) \
    LEAF(q5m, n, leaf_int8_rows(FORM_Q5M, part, leaf, rows, n, panel, add, tile)) \
    LEAF(n5m, n, leaf_int8_rows(FORM_N5M, part, leaf, rows, n, panel, add, tile)) \
    LEAF(n6, n, leaf_int8_rows(FORM_N6, part, leaf, rows, n, panel, add, tile)) \
    LEAF(t4, n, leaf_int8_rows(FORM_T4, part, leaf, rows, n, panel, add, tile)) \
    LEAF(s4, n, leaf_int8_rows(FORM_S4, part, leaf, rows, n, panel, add, tile)) \
    LEAF(z4, n, leaf_int8_rows(FORM_Z4, part, leaf, rows, n, panel, add, tile)) \
    LEAF(x4, n, leaf_int8_rows(FORM_X4, part, leaf, rows, n, panel, add, tile)) \
    LEAF(m4, n, leaf_int8_rows(FORM_M4, part, leaf, rows, n, panel, add, tile))
#define FLOAT_LEAVES(n)                                                        \
    LEAF(bf16, n, leaf_float_rows(FORM_BF16, leaf, rows, n, panel, add, tile)) \
    LEAF(f16, n, leaf_float_rows(FORM_F16, leaf, rows, n, panel, add, tile))   \
    LEAF(f32, n, leaf_float_rows(FORM_F32, leaf, rows, n, panel, add, tile))
INT8_LEAVES(1)
INT8_LEAVES(2)
INT8_LEAVES(3)
INT8_LEAVES(4)
FLOAT_LEAVES(1)
FLOAT_LEAVES(2)

#endif
