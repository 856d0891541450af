/* The experts of one layer on this rank. Rows are sorted by expert into *pairs* (row, choice); a
 * block of pairs goes through its experts' matmuls phase by phase, so that all threads work on all
 * experts at once and each weight is read once a block. Results become integers before they are
 * added (docs/numerics.md, "MoE"): exact, so neither order nor placement can show. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "kernels/cpu/numbers.h"
#include "kernels/cpu/queue.h"

enum { BLOCK_BYTES = 48 << 20, PAIRS_MIN = 64, COLUMNS_UNIT = 64 };

/* 1.5 * 2^52: a double plus it is rounded to an integer, half to even, which stands in the low bits
 * of the sum. */
#define INTEGER_ZERO 0x1.8p52
#define WEIGHT_ONE 0x1p28

struct kexperts {
    kdevice_t *device;
    kexperts_spec_t spec; /* ids, gate_up and down point to copies */
    uint32_t n_leaves;
    /* Of one pair: quantized input, gate and up, quantized activation, leaf results. */
    size_t input_bytes, gate_up_bytes, middle_bytes, result_bytes;
    uint32_t pairs_max; /* of a block */
};

typedef struct {
    uint32_t row, choice; /* index into the routing's arrays */
} pair_t;

/* One expert's share of a block of pairs. */
typedef struct {
    uint32_t expert, first, n; /* pairs [first, first + n) of the block */
    uint32_t unit_first[2];    /* panels of gate_up and of down before it, over the block */
} share_t;

typedef struct {
    kqueue_t *queue;
    kwork_t *work;
    const kexperts_t *experts;
    const pair_t *pairs; /* of the block */
    uint32_t n_pairs;
    const share_t *shares;
    uint32_t n_shares, n_units[2];
    uint8_t *rows_input; /* one quantized input a batch row */
    uint8_t *input, *gate_up, *middle, *result;
    bool shared;
} block_t;

/* ---- open and close ---- */

static bool same_inputs(const kweight_t *a, const kweight_t *b)
{
    bool same = a->n_inputs == b->n_inputs && a->row_bytes == b->row_bytes;
    for (uint32_t i = 0; same && i < a->n_inputs; i++)
        same = a->inputs[i].kind == b->inputs[i].kind;
    return same;
}

static status_t check_expert(const kexperts_spec_t *spec, uint32_t i)
{
    const kweight_t *first_up = spec->gate_up[0], *first_down = spec->down[0];
    const kweight_t *up = spec->gate_up[i], *down = spec->down[i];
    if (up->n != 2 * spec->n || up->inputs[0].k != spec->hidden || up->n_partials != 1)
        return fail(STATUS_INVALID,
                    "expert %u: gate and up of %u inputs and %u outputs, not %u "
                    "and %u in one leaf",
                    spec->ids[i], up->inputs[0].k, up->n, spec->hidden, 2 * spec->n);
    if (down->n != spec->hidden || down->inputs[0].k != spec->n || down->n_partials == 0 ||
        down->n_partials != down->inputs[0].n_leaves)
        return fail(STATUS_INVALID,
                    "expert %u: down of %u inputs and %u outputs, not %u and %u "
                    "with leaves apart",
                    spec->ids[i], down->inputs[0].k, down->n, spec->n, spec->hidden);
    if (!same_inputs(up, first_up) || !same_inputs(down, first_down) ||
        down->n_partials != first_down->n_partials)
        return fail(STATUS_UNSUPPORTED,
                    "expert %u: its weights need other inputs than those of "
                    "expert %u",
                    spec->ids[i], spec->ids[0]);
    if (i > 0 && spec->ids[i] <= spec->ids[i - 1])
        return fail(STATUS_INVALID, "expert %u follows expert %u", spec->ids[i], spec->ids[i - 1]);
    return STATUS_OK;
}

static void *copy_of(const void *from, size_t n, size_t size)
{
    void *to = mem_new(n, size);
    memcpy(to, from, n * size);
    return to;
}

static size_t lines(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

status_t experts_open(kdevice_t *device, const kexperts_spec_t *spec, kexperts_t **own_out)
{
    if (spec->rows_max < 1 || spec->rows_max > KBATCH_ROWS_MAX || spec->top_k_max < 1 ||
        spec->top_k_max > KROUTE_TOP_MAX || spec->n_experts > KROUTE_EXPERTS_MAX)
        return fail(STATUS_INVALID, "%u experts for %u rows with %u each", spec->n_experts,
                    spec->rows_max, spec->top_k_max);
    bool any = spec->n > 0 && spec->n_experts > 0;
    for (uint32_t i = 0; any && i < spec->n_experts; i++)
        TRY(check_expert(spec, i));
    kexperts_t *experts = MEM_NEW(kexperts_t);
    experts->device = device;
    experts->spec = *spec;
    if (!any) {
        experts->spec.n_experts = 0;
        *own_out = experts;
        return STATUS_OK;
    }
    experts->spec.ids = copy_of(spec->ids, spec->n_experts, sizeof *spec->ids);
    experts->spec.gate_up = copy_of(spec->gate_up, spec->n_experts, sizeof *spec->gate_up);
    experts->spec.down = copy_of(spec->down, spec->n_experts, sizeof *spec->down);
    experts->n_leaves = spec->down[0]->n_partials;
    experts->input_bytes = spec->gate_up[0]->row_bytes;
    experts->gate_up_bytes = lines(2 * (size_t)spec->n * sizeof(float));
    experts->middle_bytes = spec->down[0]->row_bytes;
    experts->result_bytes = (size_t)experts->n_leaves * spec->hidden * sizeof(float);
    size_t pair_bytes = experts->input_bytes + experts->gate_up_bytes + experts->middle_bytes +
                        experts->result_bytes;
    size_t pairs = BLOCK_BYTES / pair_bytes;
    size_t most = (size_t)spec->rows_max * spec->top_k_max;
    pairs = pairs < PAIRS_MIN ? PAIRS_MIN : pairs;
    experts->pairs_max = (uint32_t)(pairs < most ? pairs : most);
    status_t status = device_scratch_reserve(
        device, spec->rows_max * experts->input_bytes + experts->pairs_max * pair_bytes + 64 +
                    most * (sizeof(pair_t) + sizeof(uint32_t)) + spec->n_experts * sizeof(share_t));
    if (status != STATUS_OK) {
        experts_close(experts);
        return status;
    }
    *own_out = experts;
    return STATUS_OK;
}

void experts_close(kexperts_t *take_experts)
{
    if (take_experts == NULL)
        return;
    if (take_experts->spec.n_experts > 0) {
        free((void *)(uintptr_t)take_experts->spec.ids);
        free((void *)(uintptr_t)take_experts->spec.gate_up);
        free((void *)(uintptr_t)take_experts->spec.down);
    }
    free(take_experts);
}

/* ---- phases: each is shared out over the threads ---- */

static void quantize_rows(void *arg, uint32_t thread, uint32_t n_threads)
{
    const block_t *block = arg;
    const kwork_t *work = block->work;
    const kweight_t *weight = block->experts->spec.gate_up[0];
    uint32_t first, end;
    pool_slice(work->batch->n_rows, thread, n_threads, &first, &end);
    for (uint32_t row = first; row < end; row++)
        if (weight_quantize(block->queue->device->level, weight,
                            floats(work->from[0], (size_t)row * work->ld),
                            block->rows_input + row * weight->row_bytes))
            batch_row_error(work->batch, row);
}

static void copy_inputs(void *arg, uint32_t thread, uint32_t n_threads)
{
    const block_t *block = arg;
    size_t bytes = block->experts->input_bytes;
    uint32_t first, end;
    pool_slice(block->n_pairs, thread, n_threads, &first, &end);
    for (size_t i = first; i < end; i++)
        memcpy(block->input + i * bytes, block->rows_input + block->pairs[i].row * bytes, bytes);
}

/* Panels [first, end) of all experts' gate_up (which = 0) or down (1). */
static void multiply_units(const block_t *block, uint32_t which, uint32_t thread, uint32_t first,
                           uint32_t end)
{
    const kexperts_t *experts = block->experts;
    for (uint32_t s = 0; s < block->n_shares && first < end; s++) {
        const share_t *share = &block->shares[s];
        const kweight_t *weight =
            which == 0 ? experts->spec.gate_up[share->expert] : experts->spec.down[share->expert];
        uint32_t at = share->unit_first[which];
        if (at + weight->n_panels <= first)
            continue;
        uint32_t last = end < at + weight->n_panels ? end : at + weight->n_panels;
        uint8_t *input = which == 0 ? block->input + share->first * experts->input_bytes
                                    : block->middle + share->first * experts->middle_bytes;
        uint8_t *out = which == 0 ? block->gate_up + (size_t)share->first * 2 * experts->spec.n * 4
                                  : block->result + share->first * experts->result_bytes;
        kmatmul_t job = {.weight = weight,
                         .input = input,
                         .rows = share->n,
                         .out = floats_to(out, 0),
                         .scratch = device_panel(weight->device, thread)};
        block->queue->device->level->matmul(&job, first - at, last - at, 0, share->n);
        first = last;
    }
}

static void multiply_gate_up(void *arg, uint32_t thread, uint32_t n_threads)
{
    const block_t *block = arg;
    uint32_t first, end;
    pool_slice(block->n_units[0], thread, n_threads, &first, &end);
    multiply_units(block, 0, thread, first, end);
}

static void multiply_down(void *arg, uint32_t thread, uint32_t n_threads)
{
    const block_t *block = arg;
    uint32_t first, end;
    pool_slice(block->n_units[1], thread, n_threads, &first, &end);
    multiply_units(block, 1, thread, first, end);
}

/* Bias, activation and the input of down, in place of gate and up. */
static void activate_pairs(void *arg, uint32_t thread, uint32_t n_threads)
{
    const block_t *block = arg;
    const kexperts_t *experts = block->experts;
    const klevel_t *level = block->queue->device->level;
    uint32_t first, end, n = experts->spec.n;
    pool_slice(block->n_pairs, thread, n_threads, &first, &end);
    for (uint32_t s = 0; s < block->n_shares; s++) {
        const share_t *share = &block->shares[s];
        const float *bias = floats(block->work->from[3], (size_t)share->expert * 2 * n);
        uint32_t share_end = share->first + share->n < end ? share->first + share->n : end;
        for (uint32_t i = share->first > first ? share->first : first; i < share_end; i++) {
            float *x = floats_to(block->gate_up, (size_t)i * 2 * n);
            for (uint32_t j = 0; bias != NULL && j < 2 * n; j++)
                x[j] += bias[j];
            /* Its own first half: each element is written after it and its partner were read,
             * in blocks when they stand in turns. */
            activate_row(level, &experts->spec.activate, n, x, x);
            if (weight_quantize(level, experts->spec.down[share->expert], x,
                                block->middle + i * experts->middle_bytes))
                batch_row_error(block->work->batch, block->pairs[i].row);
        }
    }
}

/* The router weight of a pair, times 2^28. */
static double pair_weight(const block_t *block, const pair_t *pair)
{
    const kwork_t *work = block->work;
    float weight = 1.0f;
    if (!block->shared)
        weight = *floats(work->from[2], pair->choice);
    else if (work->from[2] != NULL)
        weight = sigmoid_ref(*floats(work->from[2], (size_t)pair->row * work->ld2));
    return (double)weight * WEIGHT_ONE;
}

/* to[i] += from[i] * weight as integers; false when one is not below 2^22 (or not a number). Both
 * factors have 24 bits, so the product is exact in double. */
static bool add_integers(const float *from, double weight, uint32_t n, int64_t *to)
{
    double most = 0;
    bool numbers = true;
    for (uint32_t i = 0; i < n; i++) {
        double x = (double)from[i] * weight;
        double size = fabs(x);
        most = size > most ? size : most;
        numbers &= size == size;
        double sum = x + INTEGER_ZERO;
        int64_t bits, zero;
        const double start = INTEGER_ZERO;
        memcpy(&bits, &sum, sizeof bits);
        memcpy(&zero, &start, sizeof zero);
        to[i] = (int64_t)((uint64_t)to[i] + (uint64_t)bits - (uint64_t)zero);
    }
    return numbers && most < 0x1p50;
}

/* Threads take columns, since a row may appear in several pairs. */
static void add_results(void *arg, uint32_t thread, uint32_t n_threads)
{
    const block_t *block = arg;
    const kexperts_t *experts = block->experts;
    uint32_t hidden = experts->spec.hidden, first, end;
    pool_slice((hidden + COLUMNS_UNIT - 1) / COLUMNS_UNIT, thread, n_threads, &first, &end);
    first *= COLUMNS_UNIT;
    end = end * COLUMNS_UNIT < hidden ? end * COLUMNS_UNIT : hidden;
    for (uint32_t s = 0; s < block->n_shares && first < end; s++) {
        const share_t *share = &block->shares[s];
        const float *results = floats(block->result + share->first * experts->result_bytes, first);
        const float *bias = floats(block->work->from[4], (size_t)share->expert * hidden + first);
        for (uint32_t i = 0; i < share->n; i++) {
            const pair_t *pair = &block->pairs[share->first + i];
            double weight = pair_weight(block, pair);
            int64_t *to = (int64_t *)(void *)block->work->to + (size_t)pair->row * hidden + first;
            bool good = bias == NULL || add_integers(bias, weight, end - first, to);
            for (uint32_t leaf = 0; leaf < experts->n_leaves; leaf++)
                good &= add_integers(results + ((size_t)leaf * share->n + i) * hidden, weight,
                                     end - first, to);
            if (!good)
                batch_row_error(block->work->batch, pair->row);
        }
    }
}

/* ---- a block ---- */

/* Cuts the block's pairs into its experts' shares. */
static uint32_t make_shares(block_t *block, const uint32_t *expert_of_pair, share_t *shares)
{
    uint32_t n = 0, units[2] = {0, 0};
    for (uint32_t i = 0; i < block->n_pairs; i++) {
        uint32_t expert = expert_of_pair[i];
        if (n == 0 || shares[n - 1].expert != expert) {
            shares[n] = (share_t){expert, i, 0, {units[0], units[1]}};
            units[0] += block->experts->spec.gate_up[expert]->n_panels;
            units[1] += block->experts->spec.down[expert]->n_panels;
            n++;
        }
        shares[n - 1].n++;
    }
    memcpy(block->n_units, units, sizeof units);
    return n;
}

static void run_block(block_t *block)
{
    kdevice_t *device = block->queue->device;
    device_run(device, copy_inputs, block, block->n_pairs / 4);
    device_run(device, multiply_gate_up, block, block->n_units[0]);
    device_run(device, activate_pairs, block, block->n_pairs / 4);
    device_run(device, multiply_down, block, block->n_units[1]);
    device_run(device, add_results, block, block->n_pairs);
}

static void spoil_rows(const block_t *block)
{
    size_t hidden = block->experts->spec.hidden;
    for (size_t row = 0; row < block->work->batch->n_rows; row++)
        for (size_t i = 0; block->work->batch->errors[row] && i < hidden; i++)
            ((int64_t *)(void *)block->work->to)[row * hidden + i] = INT64_MIN;
}

/* Index of a global expert in this rank's, or n_experts. */
static uint32_t local_expert(const kexperts_spec_t *spec, uint32_t id)
{
    uint32_t low = 0, high = spec->n_experts;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (spec->ids[middle] < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < spec->n_experts && spec->ids[low] == id ? low : spec->n_experts;
}

/* All pairs of this rank, by expert, then by row. Returns their number. */
static uint32_t sort_pairs(const block_t *block, uint32_t top_k, pair_t *pairs, uint32_t *experts)
{
    const kexperts_spec_t *spec = &block->experts->spec;
    uint32_t n_rows = block->work->batch->n_rows, starts[KROUTE_EXPERTS_MAX + 1] = {0};
    const uint32_t *ids = (const uint32_t *)(const void *)block->work->from[1];
    for (uint32_t i = 0; i < n_rows * top_k; i++) {
        uint32_t expert = block->shared ? 0 : local_expert(spec, ids[i]);
        if (expert < spec->n_experts)
            starts[expert + 1]++;
    }
    for (uint32_t e = 0; e < spec->n_experts; e++)
        starts[e + 1] += starts[e];
    uint32_t n = starts[spec->n_experts];
    for (uint32_t i = 0; i < n_rows * top_k; i++) {
        uint32_t expert = block->shared ? 0 : local_expert(spec, ids[i]);
        if (expert >= spec->n_experts)
            continue;
        experts[starts[expert]] = expert;
        pairs[starts[expert]++] = (pair_t){i / top_k, i};
    }
    return n;
}

/* from[0]: x, [1]: ids, [2]: weights or gate, [3] and [4]: biases; array[0]: the experts. */
static status_t run_experts(kqueue_t *queue, kwork_t *work)
{
    const kexperts_t *experts = *(const kexperts_t *const *)work->array[0];
    block_t block = {
        .queue = queue, .work = work, .experts = experts, .shared = work->from[1] == NULL};
    uint32_t top_k = work->n, n_rows = work->batch->n_rows;
    size_t n_choices = (size_t)n_rows * top_k;
    uint8_t *at = queue->device->scratch_block;
    block.rows_input = at;
    at += experts->spec.rows_max * experts->input_bytes;
    block.input = at;
    at += experts->pairs_max * experts->input_bytes;
    block.middle = at;
    at += experts->pairs_max * experts->middle_bytes;
    block.gate_up = at;
    at += experts->pairs_max * experts->gate_up_bytes;
    block.result = at;
    at += experts->pairs_max * experts->result_bytes;
    pair_t *pairs = (pair_t *)(void *)at;
    uint32_t *expert_of_pair = (uint32_t *)(void *)(pairs + n_choices);
    share_t *shares = (share_t *)(void *)(expert_of_pair + n_choices);
    uint32_t n_pairs = sort_pairs(&block, top_k, pairs, expert_of_pair);
    if (n_pairs > 0)
        device_run(queue->device, quantize_rows, &block, n_rows / 4);
    block.shares = shares;
    for (uint32_t first = 0; first < n_pairs; first += block.n_pairs) {
        block.pairs = pairs + first;
        block.n_pairs = n_pairs - first < experts->pairs_max ? n_pairs - first : experts->pairs_max;
        block.n_shares = make_shares(&block, expert_of_pair + first, shares);
        run_block(&block);
    }
    spoil_rows(&block);
    return STATUS_OK;
}

static status_t submit_experts(kqueue_t *queue, kwork_t *work, const kexperts_t *experts, kref_t x,
                               kref_t sum)
{
    const kexperts_spec_t *spec = &experts->spec;
    uint32_t rows = work->batch->declared_rows;
    if (rows > spec->rows_max || work->n > spec->top_k_max || work->n < 1)
        return fail(STATUS_INVALID, "experts: %u rows with %u experts each; opened for %u and %u",
                    rows, work->n, spec->rows_max, spec->top_k_max);
    size_t n_experts = spec->n_experts,
           sum_bytes = 2 * matrix_bytes(rows, spec->hidden, spec->hidden);
    work->run = run_experts;
    work->to = ref_bytes(queue, sum, sum_bytes, "experts sum");
    if (work->to == NULL ||
        !ref_input(queue, x, matrix_bytes(rows, spec->hidden, work->ld), "experts input",
                   &work->from[0]) ||
        !ref_optional(queue, spec->gate_up_bias, n_experts * 2 * spec->n * sizeof(float),
                      "experts bias", &work->from[3]) ||
        !ref_optional(queue, spec->down_bias, n_experts * spec->hidden * sizeof(float),
                      "experts bias", &work->from[4]))
        return STATUS_INVALID;
    if ((uintptr_t)work->to % sizeof(int64_t) != 0)
        return fail(STATUS_INVALID, "experts sum: offset %zu is not a multiple of 8", sum.offset);
    work_array(work, 0, &experts, sizeof experts);
    return queue_submit(queue, work, work->to, sum_bytes);
}

status_t op_experts(kqueue_t *queue, kbatch_t *batch, const kexperts_t *experts,
                    const krouting_t *routing, kref_t x, uint32_t ld, kref_t sum)
{
    if (batch->declared_rows == 0 || experts->spec.n_experts == 0)
        return STATUS_OK;
    kwork_t work = {.batch = batch, .n = routing->top_k, .ld = ld};
    size_t bytes = matrix_bytes(batch->declared_rows, routing->top_k, routing->top_k);
    if (!ref_input(queue, routing->ids, bytes, "experts ids", &work.from[1]) ||
        !ref_input(queue, routing->weights, bytes, "experts weights", &work.from[2]))
        return STATUS_INVALID;
    return submit_experts(queue, &work, experts, x, sum);
}

status_t op_expert_shared(kqueue_t *queue, kbatch_t *batch, const kexperts_t *experts,
                          const krouting_t *routing, kref_t x, uint32_t ld, kref_t sum)
{
    if (batch->declared_rows == 0 || experts->spec.n_experts == 0)
        return STATUS_OK;
    if (experts->spec.n_experts != 1)
        return fail(STATUS_INVALID, "expert_shared: %u experts", experts->spec.n_experts);
    kwork_t work = {.batch = batch, .n = 1, .ld = ld};
    if (routing != NULL) {
        work.ld2 = routing->gate_ld;
        if (!ref_optional(queue, routing->gate,
                          matrix_bytes(batch->declared_rows, 1, routing->gate_ld),
                          "expert_shared gate", &work.from[2]))
            return STATUS_INVALID;
    }
    return submit_experts(queue, &work, experts, x, sum);
}
