/* Gate and up, their activation, and its result as the input of down, as one op (fused.h). A thread
 * takes panels of gate and the same panels of up. Of many rows, some at a time stay in its
 * first-level cache until they have become 32 columns of down's input, so that the widest rows of a
 * layer are never written. Few rows stay in the caches anyway: there all panels of a thread follow
 * each other, as a matmul wants to read them, and their columns are finished together. Shapes whose
 * groups reach over panels go the long way, op by op. */
#include <string.h>

#include "kernels/cpu/numbers.h"
#include "kernels/cpu/queue.h"

enum {
    TILE_ROWS = 96,                 /* whose gate and up lie in scratch: 24 KiB */
    TILE_LISTS = (TILE_ROWS + APART_ROWS - 1) / APART_ROWS,
    LISTS_BYTES = ATTEND_SCRATCH_BYTES - 2 * TILE_ROWS * PANEL * 4, /* of a block's tiles */
    BLOCK_ROWS_MAX = LISTS_BYTES / sizeof(kapart_list_t) / TILE_LISTS * TILE_ROWS,
    STRIP_ROWS = 64, /* up to as many are few */
    PIECE_SEGS = PANEL / 8 + 1,
};
_Static_assert(2 * TILE_ROWS * PANEL * sizeof(float) <= ATTEND_SCRATCH_BYTES, "gate and up fit");

/* The part of an input's layout that the columns of some panels fill, as a layout of its own, whose
 * values begin with column `base`. */
typedef struct {
    kinput_t input;
    kseg_t segs[PIECE_SEGS];
    kleaf_t leaves[NUMERICS_LEAVES_MAX];
    size_t offset; /* in the input's bytes */
} piece_t;

static bool is_int8(const kinput_t *input)
{
    return input->kind == KACTIVATION_INT8 || input->kind == KACTIVATION_INT8_16;
}

/* Whether each panel of columns fills bytes of its own. */
static bool has_pieces(const kinput_t *input)
{
    if (input->has_apart) /* which only the whole row shows */
        return false;
    for (uint32_t s = 0; is_int8(input) && s < input->n_segs; s++)
        if (input->segs[s].k / PANEL != (input->segs[s].k + input->segs[s].len - 1u) / PANEL)
            return false;
    /* Pairs are counted from the leaf's start; their two values change places in F32. */
    for (uint32_t l = 0; !is_int8(input) && l < input->n_leaves; l++)
        if (input->leaves[l].k % 2 != 0)
            return false;
    return true;
}

static bool is_fusible(const kgate_up_t *what)
{
    const kweight_t *w = what->gate_up;
    if (what->activate.interleaved || w->n_parts != 2 || w->n_partials != 1 ||
        w->parts[0].n != w->parts[1].n || w->parts[1].panel_first != w->parts[0].n_panels)
        return false;
    for (uint32_t i = 0; i < what->down->n_inputs; i++)
        if (!has_pieces(&what->down->inputs[i]))
            return false;
    return true;
}

static void piece_of_segs(const kinput_t *input, uint32_t first, uint32_t end, uint32_t base,
                          piece_t *out)
{
    /* Segments have at least 1 and at most 32 values: the search begins nearby. */
    uint32_t s = first / SEGMENT_K;
    while (s < input->n_segs && input->segs[s].k < first)
        s++;
    out->offset = s * sizeof(kinput_seg_t);
    out->input.segs = base == 0 ? &input->segs[s] : out->segs;
    for (; s < input->n_segs && input->segs[s].k < end; s++) {
        uint32_t i = out->input.n_segs++;
        if (base == 0)
            continue;
        CHECK(i < PIECE_SEGS);
        out->segs[i] = input->segs[s];
        out->segs[i].k -= base;
    }
}

static void piece_of_leaves(const kinput_t *input, uint32_t first, uint32_t end, uint32_t base,
                            piece_t *out)
{
    size_t value = input->kind == KACTIVATION_BF16 ? sizeof(uint16_t) : sizeof(float);
    uint32_t padded_first = 0;
    for (uint32_t l = 0; l < input->n_leaves; l++) {
        const kleaf_t *leaf = &input->leaves[l];
        uint32_t from = leaf->k > first ? leaf->k : first, leaf_end = leaf->k + leaf->len;
        uint32_t to = leaf_end < end ? leaf_end : end;
        if (from >= to)
            continue;
        uint32_t padded = leaf->k_padded + from - leaf->k;
        if (out->input.n_leaves == 0) {
            padded_first = padded;
            out->offset = padded * value;
        }
        kleaf_t *piece = &out->leaves[out->input.n_leaves++];
        *piece = (kleaf_t){.k = from - base,
                           .len = to - from,
                           .k_padded = padded - padded_first,
                           .len_padded = to < leaf_end ? to - from
                                                       : leaf->len_padded - (from - leaf->k)};
        out->input.k_padded = piece->k_padded + piece->len_padded;
    }
}

static void make_piece(const kinput_t *input, uint32_t first, uint32_t end, uint32_t base,
                       piece_t *out)
{
    out->input = (kinput_t){.kind = input->kind,
                            .pair_order = input->pair_order,
                            .k = end - base,
                            .leaves = out->leaves};
    if (is_int8(input))
        piece_of_segs(input, first, end, base, out);
    else
        piece_of_leaves(input, first, end, base, out);
}

typedef struct {
    kqueue_t *queue;
    kwork_t *work;
    const kgate_up_t *what;
    uint32_t n;      /* columns of gate */
    uint32_t failed; /* some row is an error, so its other panels have to be found */
} job_t;

/* Rows of gate and up, ld apart, of columns [first, end) of gate. */
typedef struct {
    uint32_t first, end, row, n_rows, ld;
    float *gate, *up;
    uint8_t *decoded; /* the thread's device_panel */
    const kapart_list_t *apart; /* of kmatmul_t */
} tile_t;

static void add_bias(const float *bias, const tile_t *tile, uint32_t column, float *x)
{
    uint32_t n = tile->end - tile->first;
    for (uint32_t row = 0; bias != NULL && row < tile->n_rows; row++)
        for (uint32_t i = 0; i < n; i++)
            x[(size_t)row * tile->ld + i] += bias[column + i];
}

/* Panels [panel, end) of the weight, whose first column is `column`, into the tile's rows. */
static void multiply(const job_t *job, const tile_t *tile, uint32_t panel, uint32_t end,
                     uint32_t column, float *out)
{
    const kweight_t *weight = job->what->gate_up;
    kmatmul_t matmul = {.weight = weight,
                        .input = job->work->from[0] + tile->row * weight->row_bytes,
                        .rows = tile->n_rows,
                        .out = out,
                        .ld = tile->ld,
                        .column = column,
                        .scratch = tile->decoded,
                        .apart = tile->apart};
    job->queue->device->level->matmul(&matmul, panel, end, 0, tile->n_rows);
    add_bias(floats(job->work->from[1], 0), tile, column, out);
}

static void activate_row_of(const job_t *job, const float *gate, const float *up, uint32_t n,
                            float *out)
{
    const klevel_t *level = job->queue->device->level;
    if (job->what->activate.kind == KACTIVATE_SILU)
        level->silu_mul(gate, up, n, out);
    else
        level->activate(&job->what->activate, gate, up, n, out);
}

/* The product of the tile stands where its gates were; `x` is where column `base` is in it. */
static void quantize_tile(job_t *job, const tile_t *tile, const kinput_t *input, uint32_t base,
                          const float *x, uint8_t *to)
{
    const klevel_t *level = job->queue->device->level;
    size_t row_bytes = job->what->down->row_bytes;
    piece_t piece;
    make_piece(input, tile->first, tile->end, base, &piece);
    to += tile->row * row_bytes + piece.offset;
    for (uint32_t row = 0; row < tile->n_rows; row++, to += row_bytes)
        if (level->quantize(&piece.input, x + (size_t)row * tile->ld, to)) {
            batch_row_error(job->work->batch, tile->row + row);
            __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
        }
}

/* ---- few rows: all panels of a thread, in `wide` ---- */

static void strip_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    job_t *job = arg;
    const kweight_t *down = job->what->down;
    const kpart_t *gates = &job->what->gate_up->parts[0];
    uint32_t first, end;
    pool_slice(gates->n_panels, thread, n_threads, &first, &end);
    if (first == end)
        return;
    float *wide = floats_to(job->work->also, 0);
    tile_t tile = {.first = first * PANEL,
                   .end = end * PANEL < job->n ? end * PANEL : job->n,
                   .n_rows = job->work->batch->n_rows,
                   .ld = 2 * job->n,
                   .decoded = device_panel(job->queue->device, thread)};
    tile.gate = wide + tile.first;
    tile.up = tile.gate + job->n;
    multiply(job, &tile, first, end, tile.first, tile.gate);
    multiply(job, &tile, first + gates->n_panels, end + gates->n_panels, job->n + tile.first,
             tile.up);
    for (size_t row = 0; row < tile.n_rows; row++)
        activate_row_of(job, tile.gate + row * tile.ld, tile.up + row * tile.ld,
                        tile.end - tile.first, tile.gate + row * tile.ld);
    uint8_t *to = job->work->to;
    /* Groups are found by their column alone, so theirs may be counted from the first one. */
    for (uint32_t i = 0; i < down->n_inputs; to += down->inputs[i++].row_bytes) {
        uint32_t base = is_int8(&down->inputs[i]) ? 0 : tile.first;
        quantize_tile(job, &tile, &down->inputs[i], base, wide + base, to);
    }
}

/* ---- many rows: a panel of some rows at a time, in a thread's scratch ---- */

static void panel_tile(job_t *job, const tile_t *tile)
{
    const kweight_t *down = job->what->down;
    uint32_t panel = tile->first / PANEL, n_panels = job->what->gate_up->parts[0].n_panels;
    multiply(job, tile, panel, panel + 1, tile->first, tile->gate);
    multiply(job, tile, panel + n_panels, panel + n_panels + 1, job->n + tile->first, tile->up);
    /* Behind the last column of a short panel too, where nobody looks. */
    activate_row_of(job, tile->gate, tile->up, tile->n_rows * PANEL, tile->gate);
    uint8_t *to = job->work->to;
    for (uint32_t i = 0; i < down->n_inputs; to += down->inputs[i++].row_bytes)
        quantize_tile(job, tile, &down->inputs[i], tile->first, tile->gate, to);
}

/* Once for all panels: the lists of each tile of rows [row, end). */
static void list_tiles(const job_t *job, uint32_t row, uint32_t end, kapart_list_t *lists)
{
    const kweight_t *weight = job->what->gate_up;
    const uint8_t *input = job->work->from[0];
    for (; row < end; row += TILE_ROWS, lists += TILE_LISTS) {
        uint32_t n = end - row < TILE_ROWS ? end - row : TILE_ROWS;
        apart_lists(&weight->inputs[0], input + row * weight->row_bytes, weight->row_bytes, n,
                    lists);
    }
}

static void tiles_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    job_t *job = arg;
    const kweight_t *weight = job->what->gate_up;
    uint32_t first, end, n_rows = job->work->batch->n_rows;
    pool_slice(weight->parts[0].n_panels, thread, n_threads, &first, &end);
    uint32_t block = (uint32_t)(INPUT_BLOCK_BYTES / weight->row_bytes) / TILE_ROWS * TILE_ROWS;
    block = block < TILE_ROWS ? TILE_ROWS : block > BLOCK_ROWS_MAX ? BLOCK_ROWS_MAX : block;
    float *scratch =
        floats_to(job->queue->device->scratch + thread * ATTEND_SCRATCH_BYTES, 0);
    kapart_list_t *lists = (kapart_list_t *)(void *)(scratch + 2 * (size_t)TILE_ROWS * PANEL);
    tile_t tile = {.ld = PANEL,
                   .gate = scratch,
                   .up = scratch + (size_t)TILE_ROWS * PANEL,
                   .decoded = device_panel(job->queue->device, thread)};
    for (uint32_t row = 0; row < n_rows; row += block) {
        uint32_t block_end = n_rows - row < block ? n_rows : row + block;
        if (weight->inputs[0].has_apart)
            list_tiles(job, row, block_end, lists);
        for (uint32_t p = first; p < end; p++)
            for (tile.row = row; tile.row < block_end; tile.row += tile.n_rows) {
                uint32_t left = block_end - tile.row, columns = job->n - p * PANEL;
                tile.n_rows = left < TILE_ROWS ? left : TILE_ROWS;
                tile.first = p * PANEL;
                tile.end = tile.first + (columns < PANEL ? columns : PANEL);
                tile.apart = weight->inputs[0].has_apart
                                 ? lists + (tile.row - row) / TILE_ROWS * TILE_LISTS
                                 : NULL;
                panel_tile(job, &tile);
            }
    }
}

/* ---- the op ---- */

/* A row with a value that is not finite is NaN as a whole where values are not grouped; its panels
 * were filled one by one. What is there of a good row never holds a NaN. */
static void spread_errors(const job_t *job)
{
    const kweight_t *down = job->what->down;
    const klevel_t *level = job->queue->device->level;
    float *nan = floats_to(job->queue->device->scratch, 0);
    for (uint32_t i = 0; i < PANEL; i++)
        nan[i] = bits_float(NAN_BITS);
    for (uint32_t row = 0; row < job->work->batch->n_rows; row++) {
        uint8_t *to = job->work->to + row * down->row_bytes;
        for (uint32_t i = 0; i < down->n_inputs; to += down->inputs[i++].row_bytes) {
            const kinput_t *input = &down->inputs[i];
            bool half = input->kind == KACTIVATION_BF16, bad = false;
            for (uint32_t k = 0; !is_int8(input) && k < input->k_padded && !bad; k++) {
                uint32_t bits = 0;
                memcpy((uint8_t *)&bits + (half ? 2 : 0), to + (size_t)k * (half ? 2 : 4),
                       half ? 2 : 4);
                bad = (bits & 0x7fffffffu) > ROW_ERROR_BITS;
            }
            for (uint32_t at = 0; bad && at < job->n; at += PANEL) {
                piece_t piece;
                make_piece(input, at, job->n - at < PANEL ? job->n : at + PANEL, at, &piece);
                (void)level->quantize(&piece.input, nan, to + piece.offset);
            }
        }
    }
}

/* The ops one after the other; the product lies over the gates, which are read before it. */
static void long_way_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const job_t *job = arg;
    const kwork_t *work = job->work;
    const klevel_t *level = job->queue->device->level;
    uint32_t first, end;
    pool_slice(work->batch->n_rows, thread, n_threads, &first, &end);
    for (uint32_t row = first; row < end; row++) {
        float *x = floats_to(work->also, (size_t)row * 2 * job->n);
        const float *bias = floats(work->from[1], 0);
        for (uint32_t i = 0; bias != NULL && i < 2 * job->n; i++)
            x[i] += bias[i];
        activate_row(level, &job->what->activate, job->n, x, x);
        if (weight_quantize(level, job->what->down, x, work->to + row * job->what->down->row_bytes))
            batch_row_error(work->batch, row);
    }
}

static status_t run_gate_up(kqueue_t *queue, kwork_t *work)
{
    job_t job = {.queue = queue, .work = work, .what = work->array[0], .n = work->n};
    kdevice_t *device = queue->device;
    if (is_fusible(job.what)) {
        pool_fn fn = work->batch->n_rows <= STRIP_ROWS ? strip_thread : tiles_thread;
        device_run(device, fn, &job, work->weight->parts[0].n_panels);
        if (job.failed)
            spread_errors(&job);
        return STATUS_OK;
    }
    kwork_t matmul = {.batch = work->batch, .weight = work->weight, .to = work->also};
    matmul.from[0] = work->from[0];
    TRY(run_matmul(queue, &matmul));
    device_run(device, long_way_thread, &job, work->batch->n_rows / 4);
    return STATUS_OK;
}

status_t op_gate_up(kqueue_t *queue, kbatch_t *batch, const kgate_up_t *what, kref_t input,
                    kref_t wide, kref_t out)
{
    const kweight_t *weight = what->gate_up, *down = what->down;
    uint32_t rows = batch->declared_rows, n = down->inputs[0].k;
    if (weight->n != 2 * n || weight->n_partials != 1)
        return fail(STATUS_INVALID, "gate_up: %u outputs in %u partials before %u inputs",
                    weight->n, weight->n_partials, n);
    if (what->activate.kind < KACTIVATE_SILU || what->activate.kind > KACTIVATE_SILU_LIMIT)
        return fail(STATUS_INVALID, "no such activation: %d", (int)what->activate.kind);
    if (rows == 0 || n == 0)
        return STATUS_OK;
    kwork_t work = {.run = run_gate_up, .batch = batch, .weight = weight, .n = n};
    work.to = ref_bytes(queue, out, rows * down->row_bytes, "gate_up output");
    work.also_bytes = matrix_bytes(rows, 2ull * n, 2ull * n);
    work.also = ref_bytes(queue, wide, work.also_bytes, "gate_up scratch");
    if (work.to == NULL || work.also == NULL ||
        !ref_input(queue, input, rows * weight->row_bytes, "gate_up input", &work.from[0]) ||
        !ref_optional(queue, what->bias, 2ull * n * sizeof(float), "gate_up bias", &work.from[1]))
        return STATUS_INVALID;
    if ((uintptr_t)work.to % 64 != 0 || (uintptr_t)work.from[0] % 64 != 0)
        return fail(STATUS_INVALID, "gate_up: input and output at multiples of 64");
    work_array(&work, 0, what, sizeof *what);
    return queue_submit(queue, &work, work.to, rows * down->row_bytes);
}
