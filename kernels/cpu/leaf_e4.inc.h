/* One leaf of e4m3 weights, which stay bytes in memory (docs/numerics.md, "F8S weights"). A segment of
 * 128 k is spread out to BF16 lines that stay in the first cache, multiplied by the level's own BF16
 * kernels for all rows, and added by one fma with its scales; so a row costs what it costs in BF16
 * and the weights are read from memory at half its size. Included once by each vector level, behind
 * e4_pair(), which makes the two lines of 2 k from their 64 codes, and the BF16 kernels. */

static inline void e4_segment(const uint8_t *panel, uint32_t pairs, uint8_t *lines, fetch_t *fetch)
{
    for (uint32_t p = 0; p < pairs; p++) {
        fetch_line(fetch);
        e4_pair(panel + (size_t)p * 64, lines + (size_t)p * 128);
    }
}

/* sums[r] = fma(part[r], d, sums[r]) for n rows of 32 columns. */
static inline void e4_scale(uint32_t n, const float *part, const float *d, float *sums)
{
    for (uint32_t i = 0; i < n * PANEL; i += 16)
        vf_store(sums + i, vf_fma(vf_load(part + i), vf_load(d + i % PANEL), vf_load(sums + i)));
}

#define E4_LEAF(n)                                                                             \
    static const uint8_t *leaf_e4_##n(const kinput_t *input, const kleaf_t *leaf,              \
                                      const uint8_t *const *rows, const uint8_t *panel,        \
                                      bool add, float *tile, fetch_t fetch)                    \
    {                                                                                          \
        _Alignas(64) uint8_t lines[WIDE_SEGMENT_K * 64];                                       \
        _Alignas(64) float part[(n)*PANEL], sums[(n)*PANEL] = {0};                             \
        for (uint32_t done = 0, len = 0; done < leaf->len; done += len) {                      \
            len = wide_segment(leaf, done);                                                    \
            uint32_t pairs = (len + 1) / 2;                                                    \
            kleaf_t piece = {.k_padded = leaf->k_padded + done, .len_padded = 2 * pairs};      \
            e4_segment(panel, pairs, lines, &fetch);                                           \
            leaf_bf16_##n(input, &piece, rows, lines, false, part, (fetch_t){lines, 0});       \
            panel += (size_t)pairs * 64;                                                       \
            e4_scale(n, part, (const float *)(const void *)panel, sums);                       \
            panel += 128;                                                                      \
        }                                                                                      \
        for (uint32_t i = 0; i < (n)*PANEL; i += 16) {                                         \
            vf_t sum = vf_load(sums + i);                                                      \
            vf_store(tile + i, add ? vf_add(vf_load(tile + i), sum) : sum);                    \
        }                                                                                      \
        return panel;                                                                          \
    }
E4_LEAF(1)
E4_LEAF(2)
E4_LEAF(3)
E4_LEAF(4)
#ifdef E4_LEAF_ROWS_8
E4_LEAF(5)
E4_LEAF(6)
E4_LEAF(7)
E4_LEAF(8)
#endif
