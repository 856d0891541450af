/* Drives a level's leaf kernels over panels, rows and leaves; included once by each level's file. A
 * leaf kernel computes one leaf of one panel for n = 1…MATMUL_ROWS rows into a tile [n][32] and
 * returns the panel's next byte. Rows are only ever computed side by side: n changes no element's
 * operations. */

enum { MATMUL_ROWS = 4 };

typedef const uint8_t *(*leaf_fn)(const kinput_t *input, const kleaf_t *leaf,
                                  const uint8_t *const *rows, const uint8_t *panel, bool add,
                                  float *tile);

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

static void panel_rows(const kmatmul_t *job, const kpart_t *part, uint32_t index, uint32_t row,
                       uint32_t n, leaf_fn leaf_kernel)
{
    const kweight_t *weight = job->weight;
    const uint8_t *panel = part->data + (size_t)index * part->panel_bytes;
    const uint8_t *rows[MATMUL_ROWS];
    for (uint32_t r = 0; r < n; r++)
        rows[r] = job->input + (size_t)(row + r) * weight->row_bytes + part->input_offset;
    const kinput_t *input = part->input;
    uint32_t column = index * PANEL;
    uint32_t n_columns = part->n - column < PANEL ? part->n - column : PANEL;
    float *out = job->out + (size_t)row * weight->n + part->column + column;
    _Alignas(64) float stack[TREE_DEPTH_MAX][MATMUL_ROWS * PANEL];
    uint32_t depth = 0;
    const kleaf_t *leaf = input->leaves;
    for (uint32_t s = 0; s < weight->n_steps; s++) {
        if (weight->steps[s] == STEP_LEAF) {
            panel = leaf_kernel(input, leaf++, rows, panel, false, stack[depth++]);
        } else if (weight->steps[s] == STEP_LEAF_ADD) {
            panel = leaf_kernel(input, leaf++, rows, panel, true, stack[depth - 1]);
        } else if (weight->steps[s] == STEP_ADD) {
            depth--;
            add_tiles(n, stack[depth - 1], stack[depth]);
        } else {
            store_tile(n, n_columns, stack[--depth], out, weight->n);
            out += (size_t)job->rows * weight->n;
        }
    }
}

static void matmul_vec(const kmatmul_t *job, uint32_t panel_first, uint32_t panel_end,
                       uint32_t row_first, uint32_t row_end)
{
    for (uint32_t p = panel_first; p < panel_end; p++) {
        const kpart_t *part = weight_part(job->weight, p);
        for (uint32_t row = row_first; row < row_end; row += MATMUL_ROWS) {
            uint32_t n = row_end - row < MATMUL_ROWS ? row_end - row : MATMUL_ROWS;
            panel_rows(job, part, p - part->panel_first, row, n, LEAF_KERNELS[part->form][n - 1]);
        }
    }
}
