/* Many rows of integer forms by tile registers; included behind amx_configure, amx_load, amx_zero,
 * amx_dot, amx_store and amx_release, which are instructions in amx.c and plain C in a test.
 *
 * A tile register of sums is 16 rows by a line of 16 columns. Input rows are read where they lie: a
 * segment's q are 32 bytes of its cache line. Codes are those of a panel, decoded once for all rows
 * into the thread's scratch as signed bytes [unit of 4 k][2 lines][16 columns][4 k], which is how
 * the instruction wants them, and the segment's F32 scales and minimums behind. One product over
 * the k of a segment is its exact integer S of docs/numerics.md, whatever order the unit adds in;
 * the vectors do the rest, in the written order. Products of BF16 are not taken from the unit: it
 * adds those of even and of odd k apart and brings each pair of sums to the result at the end. */
#include <immintrin.h>
#include <string.h>

#include "kernels/cpu/amx.h"
#include "kernels/cpu/leaf_avx512.h"
#include "kernels/cpu/vec_avx512.h"

#include "kernels/cpu/panel.inc.h"

enum {
    AMX_TILE_ROWS = 16,
    AMX_ROWS = 2 * AMX_TILE_ROWS, /* side by side */
    AMX_SEGMENTS = 4,             /* whose products lie in the first cache together: 16 KiB */
};

/* Eight registers: sums of two lines for two times 16 rows, their inputs, and the lines' codes. */
#define AMX_SUMS_LOW 0
#define AMX_SUMS_HIGH 1
#define AMX_SUMS_LOW_2 2
#define AMX_SUMS_HIGH_2 3
#define AMX_INPUT 4
#define AMX_INPUT_2 5
#define AMX_CODES_LOW 6
#define AMX_CODES_HIGH 7

#define AMX_INLINE static inline __attribute__((always_inline))

/* What LDTILECFG reads. A register that is not used has no rows and no columns. */
typedef struct {
    _Alignas(64) uint8_t palette;
    uint8_t start_row, zero[14];
    uint16_t column_bytes[16];
    uint8_t rows[16];
} amx_config_t;
_Static_assert(sizeof(amx_config_t) == 64, "LDTILECFG reads 64 bytes");

/* For n and n_2 rows, n_2 maybe none, and segments of `units` times 4 values. */
static amx_config_t amx_shape(uint32_t n, uint32_t n_2, uint32_t units)
{
    uint8_t first = (uint8_t)n, second = (uint8_t)n_2, of_codes = (uint8_t)units;
    uint16_t input = (uint16_t)(units * 4), input_2 = n_2 > 0 ? input : 0;
    uint16_t sums = 64, sums_2 = n_2 > 0 ? sums : 0;
    return (amx_config_t){.palette = 1,
                          .column_bytes = {sums, sums, sums_2, sums_2, input, input_2, 64, 64},
                          .rows = {first, first, second, second, first, second, of_codes,
                                   of_codes}};
}

/* ---- the decoded panel ---- */

static uint32_t amx_units(const kpart_t *part)
{
    return (part->input->kind == KACTIVATION_INT8 ? SEGMENT_K : SHORT_SEGMENT_K) / 4;
}

static size_t amx_code_bytes(const kpart_t *part)
{
    return (size_t)amx_units(part) * 2 * 64;
}

static size_t amx_segment_bytes(const kpart_t *part)
{
    return amx_code_bytes(part) + (FORM_HAS_MINIMUMS(part->form) ? 2u : 1u) * PANEL * sizeof(float);
}

static bool amx_multiplies(const kpart_t *part)
{
    return part->form < FORM_BF16 || FORM_HAS_TAIL(part->form);
}

static size_t amx_spread_bytes(const kpart_t *part)
{
    if (!amx_multiplies(part))
        return level_avx512.spread_bytes(part);
    size_t bytes = part->input->n_segs * amx_segment_bytes(part);
    size_t vectors = level_avx512.spread_bytes(part); /* few rows are left to them */
    return bytes > vectors ? bytes : vectors;
}

/* 4 k of 16 columns: stored values, their upper bits and zeros, to signed bytes. */
AMX_INLINE __m512i amx_unit(kform_t form, __m512i stored, __m512i upper, uint32_t unit,
                            __m512i zero)
{
    const __m512i table = _mm512_broadcast_i32x4(
        _mm_load_si128((const __m128i *)(const void *)codes_table(form)));
    if (!FORM_HAS_BYTES(form))
        stored = _mm512_and_si512(stored, _mm512_set1_epi8(15));
    if (FORM_HAS_TABLE(form))
        stored = _mm512_shuffle_epi8(table, stored);
    if (FORM_UPPER_BITS(form) > 0) {
        __m128i place = _mm_cvtsi32_si128((int)(unit * FORM_UPPER_BITS(form)));
        const __m512i mask = _mm512_set1_epi8((char)((1 << FORM_UPPER_BITS(form)) - 1));
        __m512i bits = _mm512_and_si512(_mm512_srl_epi16(upper, place), mask);
        stored = _mm512_or_si512(stored, _mm512_slli_epi16(bits, 4));
    }
    return _mm512_sub_epi8(stored, zero);
}

/* One line of a segment; `panel` is the segment's first byte, `to` where its first unit goes. */
AMX_INLINE void amx_line(kform_t form, uint32_t pairs, uint32_t units, const uint8_t *panel,
                         const tail_t *tail, uint32_t line, uint8_t *to)
{
    const size_t step = FORM_HAS_BYTES(form) ? 128 : 64; /* a byte form's unit, the others' pair */
    __m512i zero = _mm512_set1_epi8((char)FORM_ZERO(form)), upper = zero;
    if (form == FORM_Z4)
        zero = _mm512_mullo_epi32(tail_zeros(tail->bytes + line * LINE),
                                  _mm512_set1_epi32(0x01010101));
    if (FORM_UPPER_BITS(form) > 0)
        upper = load_line(panel + (size_t)line * 64);
    panel += FORM_UPPER_BYTES(form) + (size_t)line * 64;
    for (uint32_t u = 0; u < 2 * pairs; u++) {
        __m512i stored = load_line(panel + (FORM_HAS_BYTES(form) ? u : u / 2 * 2) * step);
        if (!FORM_HAS_BYTES(form) && u % 2 == 1)
            stored = _mm512_srli_epi16(stored, 4);
        _mm512_store_si512(to + (size_t)u * 128, amx_unit(form, stored, upper, u, zero));
    }
    /* The inputs are 0 there; the unit reads whole registers. */
    for (uint32_t u = 2 * pairs; u < units; u++)
        _mm512_store_si512(to + (size_t)u * 128, _mm512_setzero_si512());
}

/* Returns the byte behind the segment and, where they stand there, its scales. */
AMX_INLINE const uint8_t *amx_segment(kform_t form, const kpart_t *part, uint32_t pairs,
                                      const uint8_t *panel, const tail_t *tail, uint8_t *to)
{
    const size_t scale_bytes = (FORM_IS_WIDE(form) ? 4 : 2) * PANEL;
    uint32_t units = amx_units(part);
    float *scales = (float *)(void *)(to + amx_code_bytes(part));
    amx_line(form, pairs, units, panel, tail, 0, to);
    amx_line(form, pairs, units, panel, tail, 1, to + 64);
    panel += FORM_UPPER_BYTES(form) + (size_t)pairs * (FORM_HAS_BYTES(form) ? 256 : 128);
    for (uint32_t line = 0; line < 2; line++, scales += LINE) {
        vf_store(scales, FORM_SCALES_APART(form) ? tail_scales(form, part, tail, line)
                                                 : load_scales(form, panel, line));
        if (FORM_HAS_MINIMUMS(form))
            vf_store(scales + PANEL, FORM_HAS_RUNS(form)
                                         ? run_minimums(tail, line)
                                         : load_scales(form, panel + scale_bytes, line));
    }
    if (FORM_SCALES_APART(form))
        return panel;
    return panel + scale_bytes * (FORM_HAS_MINIMUMS(form) ? 2 : 1);
}

AMX_INLINE void amx_form(kform_t form, const kpart_t *part, const uint8_t *panel, uint8_t *to)
{
    size_t segment_bytes = amx_segment_bytes(part);
    for (uint32_t l = 0; l < part->input->n_leaves; l++) {
        const kleaf_t *leaf = &part->input->leaves[l];
        tail_t tail = scales_open(form, part, leaf, panel);
        for (uint32_t s = leaf->seg_first; s < leaf->seg_end; s++, to += segment_bytes) {
            panel = scales_reach(form, part, leaf, s, panel, &tail);
            panel = amx_segment(form, part, part->input->segs[s].pairs, panel, &tail, to);
            scales_next(form, part, leaf, s, &tail);
        }
        if (FORM_HAS_TAIL(form))
            panel = tail.end;
    }
}

#define AMX_FORM(name)                     \
    case name:                             \
        amx_form(name, part, panel, to);   \
        break;
static void amx_spread(const kpart_t *part, const uint8_t *panel, uint8_t *to)
{
    switch (part->form) {
        AMX_FORM(FORM_Q8)
        AMX_FORM(FORM_Q4)
        AMX_FORM(FORM_Q4M)
        AMX_FORM(FORM_I8)
        AMX_FORM(FORM_N4M)
        AMX_FORM(FORM_Q5)
        AMX_FORM(FORM_Q5M)
        AMX_FORM(FORM_K4)
        AMX_FORM(FORM_K5)
        AMX_FORM(FORM_K6)
        AMX_FORM(FORM_T4)
        AMX_FORM(FORM_S4)
        AMX_FORM(FORM_Z4)
        AMX_FORM(FORM_X4)
        AMX_FORM(FORM_M4)
    default: /* amx_multiplies */
        CHECK(false);
    }
}

/* ---- one leaf of a tile of up to AMX_ROWS rows ---- */

typedef struct {
    const uint8_t *input; /* of the tile's first row: the part's segments */
    size_t row_bytes;
    uint32_t n;
    const uint8_t *panel; /* decoded: the next segment */
    size_t code_bytes, segment_bytes;
    bool minimums;
    const uint8_t *fetch; /* the next panel as packed: so many lines for each AMX_SEGMENTS */
    uint32_t fetch_lines;
} amx_tile_t;

/* The integers of one segment, counted from `first`: [n][PANEL]. */
static inline void amx_dots(const amx_tile_t *tile, const uint8_t *codes, uint32_t segment,
                            int32_t *to)
{
    const uint8_t *input = tile->input + (size_t)segment * sizeof(kinput_seg_t);
    enum { LD = PANEL * sizeof(int32_t) };
    amx_load(AMX_CODES_LOW, codes, 128);
    amx_load(AMX_CODES_HIGH, codes + 64, 128);
    amx_load(AMX_INPUT, input, tile->row_bytes);
    amx_zero(AMX_SUMS_LOW);
    amx_zero(AMX_SUMS_HIGH);
    amx_dot(AMX_SUMS_LOW, AMX_INPUT, AMX_CODES_LOW);
    amx_dot(AMX_SUMS_HIGH, AMX_INPUT, AMX_CODES_HIGH);
    if (tile->n > AMX_TILE_ROWS) {
        int32_t *to_2 = to + AMX_TILE_ROWS * PANEL;
        amx_load(AMX_INPUT_2, input + AMX_TILE_ROWS * tile->row_bytes, tile->row_bytes);
        amx_zero(AMX_SUMS_LOW_2);
        amx_zero(AMX_SUMS_HIGH_2);
        amx_dot(AMX_SUMS_LOW_2, AMX_INPUT_2, AMX_CODES_LOW);
        amx_dot(AMX_SUMS_HIGH_2, AMX_INPUT_2, AMX_CODES_HIGH);
        amx_store(AMX_SUMS_LOW_2, to_2, LD);
        amx_store(AMX_SUMS_HIGH_2, to_2 + LINE, LD);
    }
    amx_store(AMX_SUMS_LOW, to, LD);
    amx_store(AMX_SUMS_HIGH, to + LINE, LD);
}

/* Four rows at a time, whose sums have names of their own (leaf_int8_avx512.inc.h). Behind the last
 * row of a tile the last one is repeated; its sums go where nobody looks. */
#define AMX_FOUR(X) X(0) X(1) X(2) X(3)
#define AMX_ROW_OPEN(r)                                                                         \
    uint32_t row##r = row + (r) < tile->n ? row + (r) : tile->n - 1;                            \
    const kinput_seg_t *in##r =                                                                 \
        (const kinput_seg_t *)(const void *)(tile->input + row##r * tile->row_bytes) + segment; \
    const int32_t *dots##r = dots + row##r * PANEL;                                             \
    __m512 low##r = _mm512_setzero_ps(), high##r = low##r;                                      \
    if (!opens) {                                                                               \
        low##r = _mm512_load_ps(sums + (row + (r)) * PANEL);                                    \
        high##r = _mm512_load_ps(sums + (row + (r)) * PANEL + LINE);                            \
    }
#define AMX_ROW_SCALE(r)                                                           \
    {                                                                              \
        __m512 da = _mm512_set1_ps(in##r->da);                                     \
        __m512 s_low = _mm512_cvtepi32_ps(_mm512_load_si512(dots##r));             \
        __m512 s_high = _mm512_cvtepi32_ps(_mm512_load_si512(dots##r + LINE));     \
        low##r = _mm512_fmadd_ps(_mm512_mul_ps(s_low, da), d_low, low##r);         \
        high##r = _mm512_fmadd_ps(_mm512_mul_ps(s_high, da), d_high, high##r);     \
    }
#define AMX_ROW_MINIMUM(r)                               \
    {                                                    \
        __m512 sum = _mm512_set1_ps(in##r->sum);         \
        low##r = _mm512_fmadd_ps(m_low, sum, low##r);    \
        high##r = _mm512_fmadd_ps(m_high, sum, high##r); \
    }
#define AMX_ROW_NEXT(r) \
    in##r++;            \
    dots##r += AMX_ROWS * PANEL;
#define AMX_ROW_CLOSE(r)                                   \
    _mm512_store_ps(sums + (row + (r)) * PANEL, low##r);   \
    _mm512_store_ps(sums + (row + (r)) * PANEL + LINE, high##r);

/* Adds n segments, the first of which is `segment`, to the sums of rows [row, row + 4): `dots` are
 * their integers. `opens` says that there are no sums yet. */
static void amx_scale(const amx_tile_t *tile, uint32_t row, uint32_t segment, uint32_t n,
                      const int32_t *dots, bool opens, float *sums)
{
    AMX_FOUR(AMX_ROW_OPEN)
    const float *scales = (const float *)(const void *)(tile->panel + tile->code_bytes);
    for (uint32_t s = 0; s < n; s++) {
        __m512 d_low = _mm512_load_ps(scales), d_high = _mm512_load_ps(scales + LINE);
        AMX_FOUR(AMX_ROW_SCALE)
        if (tile->minimums) {
            __m512 m_low = _mm512_load_ps(scales + PANEL);
            __m512 m_high = _mm512_load_ps(scales + PANEL + LINE);
            AMX_FOUR(AMX_ROW_MINIMUM)
        }
        AMX_FOUR(AMX_ROW_NEXT)
        scales += tile->segment_bytes / sizeof *scales;
    }
    AMX_FOUR(AMX_ROW_CLOSE)
}

static void amx_leaf(amx_tile_t *tile, const kleaf_t *leaf, float *sums)
{
    _Alignas(64) int32_t dots[AMX_SEGMENTS * AMX_ROWS * PANEL];
    if (leaf->seg_first == leaf->seg_end)
        memset(sums, 0, tile->n * PANEL * sizeof *sums);
    for (uint32_t s = leaf->seg_first, n; s < leaf->seg_end; s += n) {
        n = leaf->seg_end - s < AMX_SEGMENTS ? leaf->seg_end - s : AMX_SEGMENTS;
        for (uint32_t i = 0; i < n; i++)
            amx_dots(tile, tile->panel + i * tile->segment_bytes, s + i,
                     dots + (size_t)i * AMX_ROWS * PANEL);
        for (uint32_t i = 0; i < tile->fetch_lines; i++, tile->fetch += 64)
            _mm_prefetch((const char *)tile->fetch, _MM_HINT_T1);
        for (uint32_t row = 0; row < tile->n; row += 4)
            amx_scale(tile, row, s, n, dots, s == leaf->seg_first, sums);
        tile->panel += n * tile->segment_bytes;
    }
}

/* ---- panels ---- */

static void add_tiles(uint32_t n, float *to, const float *from)
{
    for (uint32_t i = 0; i < n * PANEL; i += 16)
        vf_store(to + i, vf_add(vf_load(to + i), vf_load(from + i)));
}

/* `decoded` is the panel for the registers; `apart` is NULL where no value is. */
static void amx_panel_tile(const kmatmul_t *job, const kpart_t *part, uint32_t index,
                           const uint8_t *decoded, const apart_t *apart, const tile_t *rows)
{
    _Alignas(64) float stack[TREE_DEPTH_MAX][AMX_ROWS * PANEL];
    const kweight_t *weight = job->weight;
    const uint8_t *packed = part->data + (size_t)index * part->panel_bytes;
    size_t share = part->panel_bytes / rows->n_tiles, n_segs = part->input->n_segs;
    amx_tile_t tile = {
        .input = job->input + (size_t)rows->row * weight->row_bytes + part->input_offset,
        .row_bytes = weight->row_bytes,
        .n = rows->n,
        .panel = decoded,
        .code_bytes = amx_code_bytes(part),
        .segment_bytes = amx_segment_bytes(part),
        .minimums = FORM_HAS_MINIMUMS(part->form),
        .fetch = packed + part->panel_bytes + rows->index * share,
        .fetch_lines = n_segs == 0 ? 0 : (uint32_t)(share * AMX_SEGMENTS / 64 / n_segs) + 1};
    uint32_t column = index * PANEL, depth = 0;
    uint32_t n_columns = part->n - column < PANEL ? part->n - column : PANEL;
    size_t ld = job->ld > 0 ? job->ld : weight->n;
    float *out = job->out + rows->row * ld + (part->column + column - job->column);
    const kleaf_t *leaf = part->input->leaves;
    for (uint32_t s = 0; s < weight->n_steps; s++) {
        amx_leaf(&tile, leaf++, stack[depth]);
        for (uint32_t adds = weight->steps[s] & STEP_ADDS; adds > 0; adds--, depth--)
            add_tiles(tile.n, stack[depth - 1], stack[depth]);
        depth++;
        if (weight->steps[s] & STEP_OUT) {
            if (apart != NULL) {
                scale_floats_t floats = {decoded + tile.code_bytes, tile.segment_bytes};
                if (rows->row == apart->row)
                    decode_columns(part, packed, floats, apart->list, apart->columns);
                add_apart(apart, rows, stack[depth - 1]);
            }
            store_tile(tile.n, n_columns, stack[--depth], out, ld);
            out += job->rows * ld;
        }
    }
}

/* All rows of a panel; *configured is how many the registers have. */
static void amx_panel(const kmatmul_t *job, const kpart_t *part, uint32_t index,
                      uint32_t row_first, uint32_t row_end, const kapart_list_t *lists,
                      uint32_t *configured)
{
    _Alignas(64) float columns[APART_ROWS * NUMERICS_APART * PANEL];
    amx_spread(part, part->data + (size_t)index * part->panel_bytes, job->scratch);
    tile_t tile = {.row = row_first, .n_tiles = (row_end - row_first + AMX_ROWS - 1) / AMX_ROWS};
    apart_t apart = {.columns = columns};
    for (uint32_t end = row_end; tile.row < row_end; tile.row += tile.n, tile.index++) {
        if (lists != NULL && (tile.row - row_first) % APART_ROWS == 0) {
            apart.list = lists++;
            apart.row = tile.row;
            end = row_end - tile.row < APART_ROWS ? row_end : tile.row + APART_ROWS;
        }
        tile.n = tile_rows(AMX_ROWS, end - tile.row);
        if (tile.n != *configured) {
            uint32_t first = tile.n < AMX_TILE_ROWS ? tile.n : AMX_TILE_ROWS;
            amx_config_t config = amx_shape(first, tile.n - first, amx_units(part));
            amx_configure(&config);
            *configured = tile.n;
        }
        amx_panel_tile(job, part, index, job->scratch, apart.list != NULL ? &apart : NULL, &tile);
    }
}

/* Panels [panel_first, panel_end) of the weight, which are the part's. */
static void amx_part(const kmatmul_t *job, const kpart_t *part, uint32_t panel_first,
                     uint32_t panel_end, uint32_t row_first, uint32_t row_end)
{
    kapart_list_t own[LISTED_ROWS / APART_ROWS];
    bool has_apart = part->input->has_apart, given = job->apart != NULL;
    given &= part->input == job->weight->inputs;
    uint32_t most = has_apart ? LISTED_ROWS : row_end - row_first, configured = 0;
    for (uint32_t row = row_first, end; row < row_end; row = end) {
        end = row_end - row < most ? row_end : row + most;
        const kapart_list_t *lists = own;
        if (has_apart && given)
            lists = job->apart + row / APART_ROWS;
        else if (has_apart)
            apart_lists(part->input,
                        job->input + row * job->weight->row_bytes + part->input_offset,
                        job->weight->row_bytes, end - row, own);
        for (uint32_t p = panel_first; p < panel_end; p++)
            amx_panel(job, part, p - part->panel_first, row, end, has_apart ? lists : NULL,
                      &configured);
    }
    amx_release();
}

static void amx_matmul(const kmatmul_t *job, uint32_t panel_first, uint32_t panel_end,
                       uint32_t row_first, uint32_t row_end)
{
    if (row_end - row_first < AMX_ROWS_MIN || job->scratch == NULL) {
        level_avx512.matmul(job, panel_first, panel_end, row_first, row_end);
        return;
    }
    for (uint32_t p = panel_first, end; p < panel_end; p = end) {
        const kpart_t *part = weight_part(job->weight, p);
        end = part->panel_first + part->n_panels;
        end = end < panel_end ? end : panel_end;
        if (amx_multiplies(part) && part->spread_bytes > 0)
            amx_part(job, part, p, end, row_first, row_end);
        else
            level_avx512.matmul(job, p, end, row_first, row_end);
    }
}
