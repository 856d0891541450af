/* Drives a level's leaf kernels over panels, rows and leaves; included once by each level's file. A
 * leaf kernel computes one leaf of one panel for n = 1…MATMUL_ROWS rows, adds it in registers to the
 * sums that the tree has of the leaves before it, and puts that into a tile [n][32]; it returns the
 * panel's next byte. Rows are only ever computed side by side: n changes no element's operations. A
 * form has kernels for as many rows as its accumulators leave registers for. With several tiles of
 * rows, a panel of a form of SPREADS is decoded once for all of them, into the thread's scratch,
 * which stays in its second-level cache. Behind panel.inc.h and runs.inc.h.
 *
 * Of the values apart, the columns of weights that some rows need are decoded once for them; their
 * products are added to the rows' sums before these are stored. */

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

/* `spread`: the decoded panel, or NULL. `apart`: NULL where no values are apart. */
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
    _Alignas(64) float stack[TREE_DEPTH_MAX][TILE_SUMS];
    uint32_t depth = 0;
    const kleaf_t *leaf = part->input->leaves;
    for (uint32_t s = 0; s < weight->n_steps; s++) {
        size_t lines = (size_t)(panel - first) / 64;
        if (spread != NULL && lines > 0) /* of the panel as packed, about */
            lines = lines * part->panel_bytes / part->spread_bytes;
        fetch_t fetch = {first_fetch.at + lines * first_fetch.step, first_fetch.step};
        uint32_t adds = weight->steps[s] & STEP_ADDS;
        depth = depth + 1 - adds;
        panel = leaf_kernel(part, leaf++, rows, panel, adds, stack[depth - 1], fetch);
        if (weight->steps[s] & STEP_OUT) {
            if (apart != NULL) {
                scale_floats_t floats = {NULL, 0};
                if (spread != NULL && FORM_HAS_RUNS(part->form))
                    floats = runs_spread_scales(part, spread);
                if (row == apart->row)
                    decode_columns(part, packed, floats, apart->list, apart->columns);
                add_apart(apart, tile, stack[depth - 1]);
            }
            store_tile(n, n_columns, stack[--depth], out, ld);
            out += job->rows * ld;
        }
    }
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
    if (n_rows > most && spread->spread != NULL && part->spread_bytes > 0 &&
        job->scratch != NULL) {
        decoded = job->scratch;
        spread->spread(part, panel, decoded);
        kernels = spread->kernels;
    }
    bool fills = decoded != NULL && spread->first[most - 1] != NULL;
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
        leaf_fn kernel = (fills && tile.index == 0 ? spread->first : kernels)[tile.n - 1];
        panel_tile(job, part, index, decoded, apart.list != NULL ? &apart : NULL, &tile, kernel);
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
