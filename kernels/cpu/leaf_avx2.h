/* Leaves on AVX2 with BF16, F16 or F32 inputs for one or two rows, leaf_float_avx2.h has those for
 * more, and what these share with leaves with int8 inputs (leaf_int8_avx2.h). */
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

static inline vf_t load_halves(const uint8_t *from)
{
    const __m128i *halves = (const __m128i *)(const void *)from;
    return (vf_t){_mm256_cvtph_ps(_mm_load_si128(halves)),
                  _mm256_cvtph_ps(_mm_load_si128(halves + 1))};
}

/* A line of a tile, behind the sums that are added to it (leaf_fn). */
static inline void put_line(uint32_t adds, float *tile, vf_t sum)
{
    for (; adds > 0; adds--)
        sum = vf_add(vf_load(tile + (adds - 1) * TILE_SUMS), sum);
    vf_store(tile, sum);
}

/* The scales or minimums of a line of columns. */
static inline vf_t load_scales(kform_t form, const uint8_t *panel, uint32_t line)
{
    return FORM_IS_WIDE(form) ? vf_load((const float *)(const void *)panel + line * LINE)
                              : load_halves(panel + (size_t)line * 32);
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
                                                                const uint8_t *panel, uint32_t adds,
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
    put_line(adds, tile, low0);
    put_line(adds, tile + LINE, high0);
    if (two) {
        put_line(adds, tile + PANEL, low1);
        put_line(adds, tile + PANEL + LINE, high1);
    }
}

static inline vf_t load_weights(bool f16, const uint8_t *from)
{
    return f16 ? load_halves(from) : vf_load((const float *)(const void *)from);
}

static inline __attribute__((always_inline)) void
leaf_float_two(bool f16, bool two, const kleaf_t *leaf, const uint8_t *const *rows,
               const uint8_t *panel, uint32_t adds, float *tile)
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
    put_line(adds, tile, low0);
    put_line(adds, tile + LINE, high0);
    if (two) {
        put_line(adds, tile + PANEL, low1);
        put_line(adds, tile + PANEL + LINE, high1);
    }
}

static inline __attribute__((always_inline)) const uint8_t *
leaf_float_rows(kform_t form, const kleaf_t *leaf, const uint8_t *const *rows, uint32_t n,
                const uint8_t *panel, uint32_t adds, float *tile)
{
    for (uint32_t r = 0; r < n; r += 2) {
        float *to = tile + (size_t)r * PANEL;
        if (form == FORM_BF16 && r + 2 <= n)
            leaf_bf16_two(true, leaf, rows + r, panel, adds, to);
        else if (form == FORM_BF16)
            leaf_bf16_two(false, leaf, rows + r, panel, adds, to);
        else if (r + 2 <= n)
            leaf_float_two(form == FORM_F16, true, leaf, rows + r, panel, adds, to);
        else
            leaf_float_two(form == FORM_F16, false, leaf, rows + r, panel, adds, to);
    }
    return panel + leaf->len_padded * (size_t)(form == FORM_F32 ? 128 : 64);
}

#define LEAF(name, n, call)                                                                   \
    static const uint8_t *leaf_##name##_##n(const kpart_t *part, const kleaf_t *leaf,         \
                                            const uint8_t *const *rows, const uint8_t *panel, \
                                            uint32_t adds, float *tile, fetch_t fetch)        \
    {                                                                                         \
        (void)part, (void)fetch;                                                              \
        return call;                                                                          \
    }
#define FLOAT_LEAVES(n)                                                         \
    LEAF(bf16, n, leaf_float_rows(FORM_BF16, leaf, rows, n, panel, adds, tile)) \
    LEAF(f16, n, leaf_float_rows(FORM_F16, leaf, rows, n, panel, adds, tile))   \
    LEAF(f32, n, leaf_float_rows(FORM_F32, leaf, rows, n, panel, adds, tile))
FLOAT_LEAVES(1)
FLOAT_LEAVES(2)

#endif
