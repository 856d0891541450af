/* What every way of multiplying by panels needs: the sums' way out, and the products of values
 * apart. Included once by each level's file, behind its vectors and its readers of panels
 * (load_scales, tail_scales, run_minimums); a tile is some rows of a panel. */

static void store_tile(uint32_t n_rows, uint32_t n_columns, const float *tile, float *out,
                       size_t ld)
{
    for (uint32_t r = 0; r < n_rows; r++) {
        const float *from = tile + r * PANEL;
        float *to = out + r * ld;
        if (n_columns == PANEL) {
            vf_store(to, vf_load(from));
            vf_store(to + 16, vf_load(from + 16));
        } else {
            memcpy(to, from, n_columns * sizeof *to);
        }
    }
}

/* One tile: rows [row, row + n) of a panel, the index-th of n_tiles. */
typedef struct {
    uint32_t row, n, index, n_tiles;
} tile_t;

enum { LISTED_ROWS = 4 * APART_ROWS };

/* Scales of a part's one leaf that have been decoded: floats of a segment, d and, behind 32 of them,
 * m, and bytes to the next segment's. NULL: they have not. */
typedef struct {
    const uint8_t *first;
    size_t step;
} scale_floats_t;

/* 16 weights of one k. `floats`: the scales of its segment, decoded, or NULL. */
static inline __attribute__((always_inline)) vf_t decode_line(kform_t form, const kpart_t *part,
                                                              const code_at_t *at,
                                                              const float *floats, uint32_t line)
{
    vi_t code = vi_and(vi_right(vi_load(at->lines + line * 64), at->shift),
                       vi_set(FORM_HAS_BYTES(form) ? 255 : 15));
    vf_t d = floats != NULL            ? vf_load(floats + line * LINE)
             : FORM_SCALES_APART(form) ? tail_scales(form, part, &at->tail, line)
                                       : load_scales(form, at->scales, line);
    if (FORM_UPPER_BITS(form) > 0) {
        vi_t above = vi_right(vi_load(at->upper + line * 64), at->upper_shift);
        above = vi_and(above, vi_set((1 << FORM_UPPER_BITS(form)) - 1));
        code = vi_add(code, vi_left_4(above));
    }
    if (FORM_HAS_TABLE(form))
        code = vi_named(code, codes_table(form));
    if (form == FORM_Z4)
        code = vi_sub(code, vi_load_bytes(at->tail.bytes + line * LINE));
    else
        code = vi_sub(code, vi_set(FORM_ZERO(form)));
    if (!FORM_HAS_MINIMUMS(form))
        return vf_mul(vi_convert(code), d);
    const uint8_t *minimums = at->scales + (FORM_IS_WIDE(form) ? 128 : 64);
    return vf_fma(vi_convert(code), d,
                  floats != NULL        ? vf_load(floats + PANEL + line * LINE)
                  : FORM_HAS_RUNS(form) ? run_minimums(&at->tail, line)
                                        : load_scales(form, minimums, line));
}

static inline __attribute__((always_inline)) void
decode_form(kform_t form, const kpart_t *part, const uint8_t *panel, const scale_floats_t *floats,
            const kapart_list_t *list, float *to)
{
    for (uint32_t i = 0; i < list->n; i++, to += PANEL) {
        code_at_t at = code_at(form, part, panel, list->k[i]);
        const float *scales = NULL;
        if (floats != NULL)
            scales = (const float *)(const void *)(floats->first + at.segment * floats->step);
        vf_store(to, decode_line(form, part, &at, scales, 0));
        vf_store(to + LINE, decode_line(form, part, &at, scales, 1));
    }
}

#define DECODE_CASE(form)                               \
    case form:                                          \
        decode_form(form, part, panel, NULL, list, to); \
        return;
#define DECODE_RUNS_CASE(form)                                \
    case form:                                                \
        if (floats.first != NULL)                             \
            decode_form(form, part, panel, &floats, list, to); \
        else                                                  \
            decode_form(form, part, panel, NULL, list, to);   \
        return;
/* The columns of a list: [list->n][PANEL]. */
static void decode_columns(const kpart_t *part, const uint8_t *panel, scale_floats_t floats,
                           const kapart_list_t *list, float *to)
{
    switch (part->form) { /* what most files have, without a question for each column */
        DECODE_CASE(FORM_Q8)
        DECODE_CASE(FORM_Q4)
        DECODE_CASE(FORM_Q4M)
        DECODE_CASE(FORM_Q5)
        DECODE_RUNS_CASE(FORM_K4)
        DECODE_RUNS_CASE(FORM_K5)
        DECODE_RUNS_CASE(FORM_K6)
    default: decode_form(part->form, part, panel, NULL, list, to);
    }
}
#undef DECODE_CASE
#undef DECODE_RUNS_CASE

/* The list of the rows that a tile belongs to, which begin with `row`, and its columns. The first
 * tile decodes them, when it has read the panel. */
typedef struct {
    const kapart_list_t *list;
    float *columns;
    uint32_t row;
} apart_t;

static inline void add_value(float x, const float *w, vf_t *low, vf_t *high)
{
    vf_t value = vf_set(x);
    *low = vf_fma(value, vf_load(w), *low);
    *high = vf_fma(value, vf_load(w + LINE), *high);
}

/* Adds the products of the values apart of a tile's rows to its sums. */
static void add_apart(const apart_t *apart, const tile_t *tile, float *sums)
{
    const kapart_list_t *list = apart->list;
    uint32_t row = tile->row - apart->row;
    for (uint32_t end = row + tile->n; row < end; row++, sums += PANEL) {
        const float *value = list->value[row];
        const uint16_t *column = list->column[row];
        vf_t low = vf_load(sums), high = vf_load(sums + LINE);
        if (__builtin_expect(list->n_values[row] == NUMERICS_APART, 1)) {
            for (uint32_t i = 0; i < NUMERICS_APART; i++)
                add_value(value[i], apart->columns + column[i] * PANEL, &low, &high);
        } else {
            for (uint32_t i = 0; i < list->n_values[row]; i++)
                add_value(value[i], apart->columns + column[i] * PANEL, &low, &high);
        }
        vf_store(sums, low);
        vf_store(sums + LINE, high);
    }
}

/* Rows of the next tile. What is left after whole tiles is cut evenly: two rows alone would wait
 * for the latency of their few sums, and for their weights. */
static uint32_t tile_rows(uint32_t most, uint32_t left)
{
    if (left <= most)
        return left;
    return left < 2 * most ? (left + 1) / 2 : most;
}
