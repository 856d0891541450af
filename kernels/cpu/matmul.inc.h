/* Drives a level's leaf kernels over panels, rows and leaves; included once by each level's file. A
 * leaf kernel computes one leaf of one panel for n = 1…MATMUL_ROWS rows into a tile [n][32] and
 * returns the panel's next byte. Rows are only ever computed side by side: n changes no element's
 * operations. A form has kernels for as many rows as its accumulators leave registers for. With
 * several tiles of rows, a panel of a form of SPREADS is decoded once for all of them, into the
 * thread's scratch, which stays in its second-level cache.
 *
 * Of the values apart, the columns of weights that some rows need are decoded once for them; their
 * products are added to the rows' sums before these are stored. */

static void add_tiles(uint32_t n, float *to, const float *from)
{
    for (uint32_t i = 0; i < n * PANEL; i += 16)
        vf_store(to + i, vf_add(vf_load(to + i), vf_load(from + i)));
}

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

/* Where a tile fetches from. A single one keeps a fixed distance before itself; several share out
 * the next panel, so that its way from memory takes the time of all of them. */
static fetch_t tile_fetch(const kpart_t *part, const uint8_t *panel, const tile_t *tile)
{
    if (tile->n_tiles == 1)
        return (fetch_t){panel + FETCH_AHEAD, 64};
    uint32_t n_tiles = tile->n_tiles < FETCH_TILES ? tile->n_tiles : FETCH_TILES;
    if (tile->index >= n_tiles)
        return (fetch_t){panel, 0};
    size_t share = part->panel_bytes / n_tiles;
    return (fetch_t){panel + part->panel_bytes + tile->index * share, 64 / n_tiles};
}

enum { LISTED_ROWS = 4 * APART_ROWS };

/* 16 weights of one k. */
static inline __attribute__((always_inline)) vf_t decode_line(kform_t form, const kpart_t *part,
                                                              const code_at_t *at,
                                                              const tail_t *tail, uint32_t line)
{
    vi_t code = vi_and(vi_right(vi_load(at->lines + line * 64), at->shift),
                       vi_set(FORM_HAS_BYTES(form) ? 255 : 15));
    vf_t d = FORM_HAS_TAIL(form) ? tail_scales(form, part, tail, line)
                                 : load_scales(form, at->scales, line);
    if (FORM_UPPER_BITS(form) > 0) {
        vi_t above = vi_right(vi_load(at->upper + line * 64), at->upper_shift);
        above = vi_and(above, vi_set((1 << FORM_UPPER_BITS(form)) - 1));
        code = vi_add(code, vi_left_4(above));
    }
    if (FORM_HAS_TABLE(form))
        code = vi_named(code, codes_table(form));
    if (form == FORM_Z4)
        code = vi_sub(code, vi_load_bytes(tail->bytes + line * LINE));
    else
        code = vi_sub(code, vi_set(FORM_ZERO(form)));
    if (!FORM_HAS_MINIMUMS(form))
        return vf_mul(vi_convert(code), d);
    const uint8_t *minimums = at->scales + (FORM_IS_WIDE(form) ? 128 : 64);
    return vf_fma(vi_convert(code), d, load_scales(form, minimums, line));
}

static inline __attribute__((always_inline)) void
decode_form(kform_t form, const kpart_t *part, const uint8_t *panel, const kapart_list_t *list,
            float *to)
{
    for (uint32_t i = 0; i < list->n; i++, to += PANEL) {
        code_at_t at = code_at(form, part, panel, list->k[i]);
        tail_t tail = {0};
        if (FORM_HAS_TAIL(form))
            tail = tail_of_segment(part, at.segment, panel);
        vf_store(to, decode_line(form, part, &at, &tail, 0));
        vf_store(to + LINE, decode_line(form, part, &at, &tail, 1));
    }
}

/* The columns of a list: [list->n][PANEL]. */
static void decode_columns(const kpart_t *part, const uint8_t *panel, const kapart_list_t *list,
                           float *to)
{
    switch (part->form) {
    case FORM_Q4M: /* what most files have, without a question for each column */
        decode_form(FORM_Q4M, part, panel, list, to);
        return;
    case FORM_Q4:
        decode_form(FORM_Q4, part, panel, list, to);
        return;
    case FORM_Q8:
        decode_form(FORM_Q8, part, panel, list, to);
        return;
    default:
        decode_form(part->form, part, panel, list, to);
    }
}

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

/* `spread`: the decoded panel, twice as large, or NULL. `apart`: NULL where no values are apart. */
static void panel_tile(const kmatmul_t *job, const kpart_t *part, uint32_t index,
                       const uint8_t *spread, const apart_t *apart, const tile_t *tile,
                       leaf_fn leaf_kernel)
{
    const kweight_t *weight = job->weight;
    const uint8_t *packed = part->data + (size_t)index * part->panel_bytes;
    const uint8_t *first = spread != NULL ? spread : packed, *panel = first;
    uint32_t row = tile->row, n = tile->n;
    fetch_t first_fetch = tile_fetch(part, packed, tile);
    const uint8_t *rows[MATMUL_ROWS];
    for (uint32_t r = 0; r < n; r++)
        rows[r] = job->input + (size_t)(row + r) * weight->row_bytes + part->input_offset;
    uint32_t column = index * PANEL;
    uint32_t n_columns = part->n - column < PANEL ? part->n - column : PANEL;
    size_t ld = job->ld > 0 ? job->ld : weight->n;
    float *out = job->out + row * ld + (part->column + column - job->column);
    _Alignas(64) float stack[TREE_DEPTH_MAX][MATMUL_ROWS * PANEL];
    uint32_t depth = 0;
    const kleaf_t *leaf = part->input->leaves;
    for (uint32_t s = 0; s < weight->n_steps; s++) {
        if (weight->steps[s] == STEP_LEAF || weight->steps[s] == STEP_LEAF_ADD) {
            bool add = weight->steps[s] == STEP_LEAF_ADD;
            size_t lines = (size_t)(panel - first) / (spread != NULL ? 128 : 64);
            fetch_t fetch = {first_fetch.at + lines * first_fetch.step, first_fetch.step};
            depth += !add;
            panel = leaf_kernel(part, leaf++, rows, panel, add, stack[depth - 1], fetch);
        } else if (weight->steps[s] == STEP_ADD) {
            depth--;
            add_tiles(n, stack[depth - 1], stack[depth]);
        } else {
            if (apart != NULL) {
                if (row == apart->row)
                    decode_columns(part, packed, apart->list, apart->columns);
                add_apart(apart, tile, stack[depth - 1]);
            }
            store_tile(n, n_columns, stack[--depth], out, ld);
            out += job->rows * ld;
        }
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

static size_t spread_bytes_vec(const kpart_t *part)
{
    return SPREADS[part->form].bytes != NULL ? SPREADS[part->form].bytes(part) : 0;
}

/* Rows [row_first, row_end), up to LISTED_ROWS where there are values apart. */
static void matmul_panel(const kmatmul_t *job, const kpart_t *part, uint32_t index,
                         uint32_t row_first, uint32_t row_end, const kapart_list_t *lists)
{
    _Alignas(64) float columns[APART_ROWS * NUMERICS_APART * PANEL];
    const spread_t *spread = &SPREADS[part->form];
    const leaf_fn *kernels = LEAF_KERNELS[part->form];
    const uint8_t *panel = part->data + (size_t)index * part->panel_bytes;
    uint32_t n_rows = row_end - row_first, most = MATMUL_ROWS;
    while (kernels[most - 1] == NULL)
        most--;
    uint8_t *decoded = NULL;
    if (n_rows > most && part->spread_bytes > 0 && job->scratch != NULL) {
        decoded = job->scratch;
        spread->spread(part, panel, decoded);
        kernels = spread->kernels;
    }
    tile_t tile = {.row = row_first, .n_tiles = (n_rows + most - 1) / most};
    apart_t apart = {.columns = columns};
    uint32_t end = row_end;
    for (; tile.row < row_end; tile.row += tile.n, tile.index++) {
        if (lists != NULL && (tile.row - row_first) % APART_ROWS == 0) {
            apart.list = lists++;
            apart.row = tile.row;
            end = row_end - tile.row < APART_ROWS ? row_end : tile.row + APART_ROWS;
        }
        tile.n = tile_rows(most, end - tile.row);
        panel_tile(job, part, index, decoded, apart.list != NULL ? &apart : NULL, &tile,
                   kernels[tile.n - 1]);
    }
}

static void matmul_rows(const kmatmul_t *job, uint32_t panel_first, uint32_t panel_end,
                        uint32_t row_first, uint32_t row_end)
{
    kapart_list_t own[LISTED_ROWS / APART_ROWS];
    const kapart_list_t *lists = job->apart;
    const kinput_t *listed = lists != NULL ? job->weight->inputs : NULL;
    if (lists != NULL)
        lists += row_first / APART_ROWS;
    for (uint32_t p = panel_first; p < panel_end; p++) {
        const kpart_t *part = weight_part(job->weight, p);
        bool has_apart = part->input->has_apart;
        if (has_apart && listed != part->input) {
            size_t row_bytes = job->weight->row_bytes;
            const uint8_t *input = job->input + row_first * row_bytes + part->input_offset;
            apart_lists(part->input, input, row_bytes, row_end - row_first, own);
            lists = own;
            listed = part->input;
        }
        matmul_panel(job, part, p - part->panel_first, row_first, row_end,
                     has_apart ? lists : NULL);
    }
}

static bool has_apart(const kweight_t *weight)
{
    bool any = false;
    for (uint32_t i = 0; i < weight->n_inputs; i++)
        any |= weight->inputs[i].has_apart;
    return any;
}

static void matmul_vec(const kmatmul_t *job, uint32_t panel_first, uint32_t panel_end,
                       uint32_t row_first, uint32_t row_end)
{
    uint32_t most = has_apart(job->weight) ? LISTED_ROWS : row_end - row_first;
    for (uint32_t row = row_first, end; row < row_end; row = end) {
        end = row_end - row < most ? row_end : row + most;
        matmul_rows(job, panel_first, panel_end, row, end);
    }
}
