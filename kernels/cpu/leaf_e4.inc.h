/* One leaf of e4m3 weights, which stay bytes in memory (docs/numerics.md, "F8S weights"). A segment
 * of 128 k is spread out to BF16 lines that stay in the first cache, or has been in a panel that is
 * spread out for all rows, multiplied by the level's own BF16 kernels, and added by one fma with its
 * scales; so a row costs what it costs in BF16 and the weights are read from memory at half its
 * size. Included once by each vector level, behind e4_pair(), which makes the two lines of 2 k from
 * their 64 codes, and the BF16 kernels. */

static inline void e4_segment(const uint8_t *panel, uint32_t pairs, uint8_t *lines, fetch_t *fetch)
{
    for (uint32_t p = 0; p < pairs; p++) {
        fetch_line(fetch);
        e4_pair(panel + (size_t)p * 64, lines + (size_t)p * 128);
    }
}

/* sums[r] = fma(run[r], d, sums[r]) for n rows of 32 columns, of which 16 have the scales `low`. */
static inline void e4_scale(uint32_t n, const float *run, vf_t low, vf_t high, float *sums)
{
    for (uint32_t i = 0; i < n * PANEL; i += 32) {
        vf_store(sums + i, vf_fma(vf_load(run + i), low, vf_load(sums + i)));
        vf_store(sums + i + 16, vf_fma(vf_load(run + i + 16), high, vf_load(sums + i + 16)));
    }
}

/* The lines of a segment, and the panel behind its codes: spread out now, or before. */
static inline const uint8_t *e4_lines(const uint8_t **panel, uint32_t pairs, uint8_t *room,
                                      fetch_t *fetch, fetch_t *inner)
{
    (void)inner;
    e4_segment(*panel, pairs, room, fetch);
    *panel += (size_t)pairs * 64;
    return room;
}

static inline const uint8_t *spread_lines(const uint8_t **panel, uint32_t pairs, uint8_t *room,
                                          fetch_t *fetch, fetch_t *inner)
{
    (void)room;
    const uint8_t *lines = *panel;
    *inner = (fetch_t){fetch->at, fetch->step / 2};
    fetch->at += pairs * fetch->step;
    *panel += (size_t)pairs * 128;
    return lines;
}

/* A panel spread out: the segments' lines, each followed by its scales, or shared scales in front of
 * a leaf's lines, as in the panel. A leaf of it brings in the
 * codes of the next panel meanwhile, a line for a pair. */
static size_t e4_spread_bytes(const kpart_t *part)
{
    size_t bytes = 0;
    for (uint32_t l = 0; l < part->input->n_leaves; l++) {
        const kleaf_t *leaf = &part->input->leaves[l];
        bytes += part->shared_scales ? wide_scale_bytes(leaf) : 0;
        for (uint32_t done = 0, len = 0; done < leaf->len; done += len) {
            len = wide_segment(leaf, done);
            bytes += (size_t)(len + 1) / 2 * 128 + (part->shared_scales ? 0 : 128);
        }
    }
    return bytes;
}

static void e4_spread(const kpart_t *part, const uint8_t *panel, uint8_t *to)
{
    for (uint32_t l = 0; l < part->input->n_leaves; l++) {
        const kleaf_t *leaf = &part->input->leaves[l];
        size_t front = part->shared_scales ? wide_scale_bytes(leaf) : 0;
        size_t behind = part->shared_scales ? 0 : 128;
        memcpy(to, panel, front);
        panel += front;
        to += front;
        for (uint32_t done = 0, len = 0; done < leaf->len; done += len) {
            len = wide_segment(leaf, done);
            uint32_t pairs = (len + 1) / 2;
            fetch_t fetch = {panel + FETCH_AHEAD, 64};
            e4_segment(panel, pairs, to, &fetch);
            memcpy(to + (size_t)pairs * 128, panel + (size_t)pairs * 64, behind);
            panel += (size_t)pairs * 64 + behind;
            to += (size_t)pairs * 128 + behind;
        }
    }
}

/* The sums of n rows (leaf_fn). */
static inline void e4_put(uint32_t n, uint32_t adds, float *tile, const float *sums)
{
    for (uint32_t i = 0; i < n * PANEL; i += LINE) {
        vf_t sum = vf_load(sums + i);
        for (uint32_t a = adds; a > 0; a--)
            sum = vf_add(vf_load(tile + (a - 1) * TILE_SUMS + i), sum);
        vf_store(tile + i, sum);
    }
}

#define E4_LEAF(name, n, LINES)                                                                \
    static const uint8_t *leaf_##name##_##n(const kpart_t *part, const kleaf_t *leaf,          \
                                            const uint8_t *const *rows, const uint8_t *panel,  \
                                            uint32_t adds, float *tile, fetch_t fetch)         \
    {                                                                                          \
        _Alignas(64) uint8_t room[WIDE_SEGMENT_K * 64];                                        \
        _Alignas(64) float run[(n)*PANEL], sums[(n)*PANEL] = {0};                              \
        const float *shared = part->shared_scales ? (const float *)(const void *)panel : NULL; \
        panel += shared != NULL ? wide_scale_bytes(leaf) : 0;                                  \
        for (uint32_t done = 0, len = 0; done < leaf->len; done += len) {                      \
            len = wide_segment(leaf, done);                                                    \
            uint32_t pairs = (len + 1) / 2;                                                    \
            kleaf_t piece = {.k_padded = leaf->k_padded + done, .len_padded = 2 * pairs};      \
            fetch_t inner = {panel, 0};                                                        \
            const uint8_t *lines = LINES(&panel, pairs, room, &fetch, &inner);                 \
            leaf_bf16_##n(part, &piece, rows, lines, 0, run, inner);                           \
            const float *d = shared != NULL ? shared++ : (const float *)(const void *)panel;   \
            vf_t low = shared != NULL ? vf_set(*d) : vf_load(d);                               \
            e4_scale(n, run, low, shared != NULL ? low : vf_load(d + 16), sums);               \
            panel += shared != NULL ? 0 : 128;                                                 \
        }                                                                                      \
        e4_put(n, adds, tile, sums);                                                           \
        return panel;                                                                          \
    }
#define E4_LEAVES(n)         \
    E4_LEAF(e4, n, e4_lines) \
    E4_LEAF(spread_e4, n, spread_lines)
E4_LEAVES(1)
E4_LEAVES(2)
E4_LEAVES(3)
E4_LEAVES(4)
#ifdef E4_LEAF_ROWS_8
E4_LEAVES(5)
E4_LEAVES(6)
E4_LEAVES(7)
E4_LEAVES(8)
#endif
