/* Leaves with int8 inputs on AVX2 for three rows and more, and the kernels of every form. A line of
 * a segment that is no bytes yet is decoded once for all rows, into a buffer in the first cache;
 * four rows then multiply it side by side, or two where each needs twice the sums. The sums of the
 * leaf stay in memory.
 *
 * Weights of 8 bits and their inputs are widened to 16 bits: VPMADDWD adds two products into 32
 * bits, as much work as two VPMADDUBSW with parts, without widening the parts' sums. Even and odd
 * bytes of a unit's 4 k go apart, which takes one operation each for the products of four rows. */
#ifndef SHOAL_KERNELS_CPU_LEAF_MANY_AVX2_H
#define SHOAL_KERNELS_CPU_LEAF_MANY_AVX2_H

enum {
    DECODED_BYTES = SEGMENT_K * (int)LINE, /* of a segment's line */
    INPUT_BYTES = 2 * (int)SEGMENT_K,      /* even k as 16 bits, then odd k */
    INPUT_ODD = (int)SEGMENT_K,
};

/* From a line to the next of the same columns, as the weights lie and decoded. */
#define LINE_STEP(form) (FORM_HAS_BYTES(form) ? 128 : 64)

static inline void store_line(uint8_t *to, line_t line)
{
    _mm256_store_si256((__m256i *)(void *)to, line.low);
    _mm256_store_si256((__m256i *)(void *)(to + 32), line.high);
}

/* One line of a segment as a line of bytes for each unit, where it is not that already. */
static inline __attribute__((always_inline)) const uint8_t *
decode_segment(kform_t form, const segment_t *segment, uint32_t line, __m256i table, uint8_t *room)
{
    if (FORM_HAS_BYTES(form))
        return segment->lines + (size_t)line * 64;
    line_t upper = load_upper(form, segment, line);
    for (uint32_t p = 0; p < segment->pairs; p++) {
        units_t w = load_units(form, segment, p, line, table, &upper);
        store_line(room + (size_t)p * 128, w.first);
        store_line(room + (size_t)p * 128 + 64, w.second);
    }
    return room;
}

static inline line_t even_bytes(line_t bytes)
{
    __m256i mask = _mm256_set1_epi16(255);
    return (line_t){_mm256_and_si256(bytes.low, mask), _mm256_and_si256(bytes.high, mask)};
}

static inline line_t odd_bytes(line_t bytes)
{
    return (line_t){_mm256_srli_epi16(bytes.low, 8), _mm256_srli_epi16(bytes.high, 8)};
}

/* A segment's inputs as 16 bits: k 0, 2, 4 … and behind them k 1, 3, 5 …. */
static inline void widen_inputs(const kinput_seg_t *in, int8_t *to)
{
    __m256i q = _mm256_load_si256((const __m256i *)(const void *)in->q), *at = (void *)to;
    _mm256_store_si256(at, _mm256_srai_epi16(_mm256_slli_epi16(q, 8), 8));
    _mm256_store_si256(at + 1, _mm256_srai_epi16(q, 8));
}

/* The rows of a group at a segment: their inputs, which a form of 8 bits reads from `wide`, and
 * their sums of the leaf for a line of columns. */
typedef struct {
    const uint8_t *const *inputs;
    const int8_t *wide;
    float *sums;
    uint32_t segment;
} row_group_t;

static inline const kinput_seg_t *group_input(const row_group_t *group, uint32_t r)
{
    return (const kinput_seg_t *)(const void *)group->inputs[r] + group->segment;
}

static inline line_t add_wide(line_t sum, line_t w, __m256i a)
{
    sum.low = _mm256_add_epi32(sum.low, _mm256_madd_epi16(w.low, a));
    sum.high = _mm256_add_epi32(sum.high, _mm256_madd_epi16(w.high, a));
    KEEP_ORDER(sum)
    return sum;
}

static inline __attribute__((always_inline)) dots_t open_dots(kform_t form, const kinput_seg_t *in)
{
    dots_t dots = {no_products(), no_products()};
    if (FORM_IS_8BIT(form))
        dots.low = same_sums(in->start_q8);
    return dots;
}

static inline __attribute__((always_inline)) void close_dots(kform_t form, const kinput_seg_t *in,
                                                             const dots_t *dots,
                                                             const scales_t *scales, float *to)
{
    line_t sums = dots->low;
    if (!FORM_IS_8BIT(form))
        sums = finish_dots(form, in, dots, scales->zeros);
    vf_store(to, add_segment(form, in, sums, scales, vf_load(to)));
}

/* The inputs of a unit of 4 k, or of its even or odd ones, times a line of weights. */
#define UNIT(r, sum, at)                                                     \
    if ((r) < n) {                                                           \
        __m256i a = broadcast_k4(q##r + (at));                               \
        dots##r.sum = FORM_IS_8BIT(form) ? add_wide(dots##r.sum, w, a)       \
                                         : add_products(dots##r.sum, w, a);  \
    }
#define UNITS(sum, at) UNIT(0, sum, at) UNIT(1, sum, at) UNIT(2, sum, at) UNIT(3, sum, at)
#define ROW_OPEN(r)                                                                           \
    const kinput_seg_t *in##r = group_input(group, (r) < n ? (r) : 0);                        \
    const int8_t *q##r = FORM_IS_8BIT(form) ? group->wide + (r) * INPUT_BYTES : in##r->q;     \
    dots_t dots##r = open_dots(form, in##r);
#define ROW_CLOSE(r) \
    if ((r) < n)     \
        close_dots(form, in##r, &dots##r, scales, group->sums + (r) * PANEL);

/* n rows, a constant, times a line of columns. The sums have names of their own, because the
 * compiler keeps arrays of vectors in memory. */
static inline __attribute__((always_inline)) void
multiply_group(kform_t form, uint32_t n, const row_group_t *group, const uint8_t *lines,
               uint32_t pairs, const scales_t *scales)
{
    ROW_OPEN(0)
    ROW_OPEN(1)
    ROW_OPEN(2)
    ROW_OPEN(3)
    for (uint32_t p = 0; p < pairs; p++, lines += 2 * LINE_STEP(form)) {
        uint32_t at = p * PAIR_K;
        line_t bytes = load_line(lines), w = FORM_IS_8BIT(form) ? even_bytes(bytes) : bytes;
        UNITS(low, at)
        if (FORM_IS_8BIT(form)) {
            w = odd_bytes(bytes);
            UNITS(low, at + INPUT_ODD)
        }
        bytes = load_line(lines + LINE_STEP(form));
        w = FORM_IS_8BIT(form) ? even_bytes(bytes) : bytes;
        if (FORM_IS_PAIRED(form)) {
            UNITS(high, at + 4)
        } else {
            UNITS(low, at + 4)
        }
        if (FORM_IS_8BIT(form)) {
            w = odd_bytes(bytes);
            UNITS(low, at + 4 + INPUT_ODD)
        }
    }
    ROW_CLOSE(0)
    ROW_CLOSE(1)
    ROW_CLOSE(2)
    ROW_CLOSE(3)
}
#undef UNIT
#undef UNITS
#undef ROW_OPEN
#undef ROW_CLOSE

/* n rows times a line of columns. */
static inline __attribute__((always_inline)) void
multiply_rows(kform_t form, uint32_t n, row_group_t group, const uint8_t *lines, uint32_t pairs,
              const scales_t *scales)
{
    const uint32_t most = FORM_IS_PAIRED(form) ? 2 : 4;
    for (; n >= most; n -= most) {
        multiply_group(form, most, &group, lines, pairs, scales);
        group.inputs += most;
        group.wide += most * INPUT_BYTES;
        group.sums += most * PANEL;
    }
    if (n == 3 && most > 3)
        multiply_group(form, 3, &group, lines, pairs, scales);
    else if (n == 2 && most > 2)
        multiply_group(form, 2, &group, lines, pairs, scales);
    else if (n == 1)
        multiply_group(form, 1, &group, lines, pairs, scales);
}

/* n rows, up to MATMUL_ROWS. */
static inline __attribute__((always_inline)) const uint8_t *
leaf_int8_many(kform_t form, int from, uint32_t n, const kpart_t *part, const kleaf_t *leaf,
               const uint8_t *const *inputs, const uint8_t *panel, uint32_t adds, float *tile,
               fetch_t fetch)
{
    _Alignas(64) uint8_t decoded[DECODED_BYTES];
    _Alignas(64) int8_t wide[MATMUL_ROWS * INPUT_BYTES];
    _Alignas(64) float own[MATMUL_ROWS * PANEL];
    const __m256i table = load_table(form);
    float *sums = adds > 0 ? own : tile;
    for (uint32_t i = 0; i < n * PANEL; i += LINE)
        vf_store(sums + i, vf_set(0));
    uint8_t *floats = from != SCALES_PACKED ? open_spread(&panel) : NULL;
    tail_t tail = scales_open(form, part, leaf, panel);
    for (uint32_t s = leaf->seg_first; s < leaf->seg_end; s++) {
        panel = scales_reach(form, part, leaf, s, panel, &tail);
        segment_t segment = open_segment(form, part, s, &panel, &floats);
        fetch_segment(form, segment.pairs, &fetch);
        row_group_t group = {inputs, wide, sums, s};
        for (uint32_t r = 0; FORM_IS_8BIT(form) && r < n; r++)
            widen_inputs(group_input(&group, r), wide + r * INPUT_BYTES);
        for (uint32_t line = 0; line < 2; line++, group.sums += LINE) {
            const uint8_t *lines = decode_segment(form, &segment, line, table, decoded);
            scales_t scales = segment_scales(form, from, part, &segment, &tail, line);
            multiply_rows(form, n, group, lines, segment.pairs, &scales);
        }
        scales_next(form, part, leaf, s, &tail);
    }
    for (uint32_t i = 0; adds > 0 && i < n * PANEL; i += LINE)
        put_line(adds, tile + i, vf_load(own + i));
    return from != SCALES_PACKED ? floats : FORM_HAS_TAIL(form) ? tail.end : panel;
}

#define MANY(name, n)                                                                         \
    static const uint8_t *leaf_##name##_##n(const kpart_t *part, const kleaf_t *leaf,         \
                                            const uint8_t *const *rows, const uint8_t *panel, \
                                            uint32_t adds, float *tile, fetch_t fetch)        \
    {                                                                                         \
        return leaf_##name##_many(n, part, leaf, rows, panel, adds, tile, fetch);             \
    }
#define FEW(name, form, from, n)                                                                \
    static const uint8_t *leaf_##name##_##n(const kpart_t *part, const kleaf_t *leaf,           \
                                            const uint8_t *const *rows, const uint8_t *panel,   \
                                            uint32_t adds, float *tile, fetch_t fetch)          \
    {                                                                                           \
        return leaf_int8_few(form, from, (n) == 2, part, leaf, rows, panel, adds, tile, fetch); \
    }
#define MANY_OF(name, form, from)                                                         \
    static __attribute__((noinline)) const uint8_t *leaf_##name##_many(                   \
        uint32_t n, const kpart_t *part, const kleaf_t *leaf, const uint8_t *const *rows, \
        const uint8_t *panel, uint32_t adds, float *tile, fetch_t fetch)                  \
    {                                                                                     \
        return leaf_int8_many(form, from, n, part, leaf, rows, panel, adds, tile, fetch); \
    }
/* The first of several tiles has more than four rows. */
#define FILLS(name, form)                                                                       \
    MANY_OF(name, form, SCALES_FILL)                                                            \
    MANY(name, 5) MANY(name, 6) MANY(name, 7) MANY(name, 8)
#define LEAVES(name, form, from)                                                              \
    MANY_OF(name, form, from)                                                                   \
    FEW(name, form, from, 1)                                                                    \
    FEW(name, form, from, 2)                                                                    \
    MANY(name, 3) MANY(name, 4) MANY(name, 5) MANY(name, 6) MANY(name, 7) MANY(name, 8)
#define INT8_LEAVES(name, form) LEAVES(name, form, SCALES_PACKED)
INT8_LEAVES(q8, FORM_Q8)
INT8_LEAVES(q4, FORM_Q4)
INT8_LEAVES(q4m, FORM_Q4M)
INT8_LEAVES(i8, FORM_I8)
INT8_LEAVES(n4m, FORM_N4M)
INT8_LEAVES(q5, FORM_Q5)
INT8_LEAVES(q5m, FORM_Q5M)
INT8_LEAVES(k4, FORM_K4)
FILLS(fill_k4, FORM_K4)
LEAVES(spread_k4, FORM_K4, SCALES_FLOATS)
INT8_LEAVES(k5, FORM_K5)
FILLS(fill_k5, FORM_K5)
LEAVES(spread_k5, FORM_K5, SCALES_FLOATS)
INT8_LEAVES(k6, FORM_K6)
FILLS(fill_k6, FORM_K6)
LEAVES(spread_k6, FORM_K6, SCALES_FLOATS)
INT8_LEAVES(t4, FORM_T4)
INT8_LEAVES(s4, FORM_S4)
INT8_LEAVES(z4, FORM_Z4)
INT8_LEAVES(x4, FORM_X4)
INT8_LEAVES(m4, FORM_M4)
#undef MANY
#undef FEW
#undef MANY_OF
#undef FILLS
#undef LEAVES
#undef INT8_LEAVES

#endif
