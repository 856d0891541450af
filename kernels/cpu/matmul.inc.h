/* Drives a level's leaf kernels over panels, rows and leaves; included once by each level's file. A
 * leaf kernel computes one leaf of one panel for n = 1…MATMUL_ROWS rows into a tile [n][32] and
 * returns the panel's next byte. Rows are only ever computed side by side: n changes no element's
 * operations. A form has kernels for as many rows as its accumulators leave registers for. With
 * several tiles of rows, a panel of a form of SPREADS is decoded once for all of them, into the
 * thread's scratch, which stays in its second-level cache. */

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

/* `spread` is the decoded panel, twice as large, or NULL. */
static void panel_tile(const kmatmul_t *job, const kpart_t *part, uint32_t index,
                       const uint8_t *spread, const tile_t *tile, leaf_fn leaf_kernel)
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

static void matmul_vec(const kmatmul_t *job, uint32_t panel_first, uint32_t panel_end,
                       uint32_t row_first, uint32_t row_end)
{
    uint32_t n_rows = row_end - row_first;
    for (uint32_t p = panel_first; p < panel_end; p++) {
        const kpart_t *part = weight_part(job->weight, p);
        const spread_t *spread = &SPREADS[part->form];
        const leaf_fn *kernels = LEAF_KERNELS[part->form];
        uint32_t index = p - part->panel_first, most = MATMUL_ROWS;
        while (kernels[most - 1] == NULL)
            most--;
        uint8_t *decoded = NULL;
        if (n_rows > most && part->spread_bytes > 0 && job->scratch != NULL) {
            decoded = job->scratch;
            spread->spread(part, part->data + (size_t)index * part->panel_bytes, decoded);
            kernels = spread->kernels;
        }
        tile_t tile = {.row = row_first, .n_tiles = (n_rows + most - 1) / most};
        for (; tile.row < row_end; tile.row += tile.n, tile.index++) {
            tile.n = tile_rows(most, row_end - tile.row);
            panel_tile(job, part, index, decoded, &tile, kernels[tile.n - 1]);
        }
    }
}
