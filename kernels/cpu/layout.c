/* Cuts a matmul's input into leaves and segments (docs/numerics.md, "Matmul") and lays out one
 * padded input row. Depends on nothing but the spec, so every part of a fused weight, every level
 * and every thread sees the same cuts. */
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "kernels/cpu/internal.h"

static size_t round_up(size_t value, size_t to)
{
    return (value + to - 1) / to * to;
}

status_t check_edges(const kweight_spec_t *spec)
{
    const char *name = spec->name;
    if (spec->k_total < 1 || spec->k_total > KWEIGHT_K_MAX)
        return fail(STATUS_INVALID, "weight %s: %u inputs, 1 to %d are possible", name,
                    spec->k_total, KWEIGHT_K_MAX);
    if (spec->n_leaves < 1 || spec->n_leaves > NUMERICS_LEAVES_MAX)
        return fail(STATUS_INVALID, "weight %s: %u leaves, 1 to %d are possible", name,
                    spec->n_leaves, NUMERICS_LEAVES_MAX);
    if (spec->leaf_first > spec->leaf_end || spec->leaf_end > spec->n_leaves)
        return fail(STATUS_INVALID, "weight %s: leaves [%u, %u) of %u", name, spec->leaf_first,
                    spec->leaf_end, spec->n_leaves);
    for (uint32_t i = 0; i < spec->n_leaves; i++)
        if (spec->leaf_edges[i] > spec->leaf_edges[i + 1])
            return fail(STATUS_INVALID,
                        "weight %s: leaf edges must not descend, %u is followed by %u", name,
                        spec->leaf_edges[i], spec->leaf_edges[i + 1]);
    if (spec->leaf_edges[0] != 0 || spec->leaf_edges[spec->n_leaves] != spec->k_total)
        return fail(STATUS_INVALID, "weight %s: leaf edges must reach from 0 to %u", name,
                    spec->k_total);
    return STATUS_OK;
}

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Appends the segments of one leaf; they end at absolute multiples, as blocks and groups do. */
static void cut_leaf(kinput_t *input, kleaf_t *leaf, uint32_t absolute, uint32_t end, uint32_t base)
{
    uint32_t longest = input->kind == KACTIVATION_INT8 ? SEGMENT_K : SHORT_SEGMENT_K;
    while (absolute < end) {
        uint32_t block = (absolute / longest + 1) * longest;
        uint32_t next = smaller(block, end);
        uint32_t len = next - absolute;
        uint32_t pairs = (len + PAIR_K - 1) / PAIR_K;
        input->segs[input->n_segs++] =
            (kseg_t){.k = absolute - base, .len = (uint8_t)len, .pairs = (uint8_t)pairs};
        leaf->len_padded += pairs * PAIR_K;
        absolute = next;
    }
}

/* In a build for measuring, a run that makes one partial is one leaf. Experts' leaves stay: what
 * they become are integers, which no tree adds. */
uint32_t leaves_summed(const kweight_spec_t *spec)
{
    uint32_t n = spec->leaf_end - spec->leaf_first;
    tree_run_t run = {(uint16_t)spec->leaf_first, (uint16_t)spec->leaf_end};
    bool merged = NUMERICS_ONE_LEAF && n > 1 && !spec->leaves_apart &&
                  tree_cover_size(spec->n_leaves, run) == 1;
    return merged ? 1 : n;
}

void input_layout(const kweight_spec_t *spec, kactivation_t kind, bool pair_order,
                  kinput_t *own_out)
{
    bool integers = kind == KACTIVATION_INT8 || kind == KACTIVATION_INT8_16;
    uint32_t base = spec->leaf_edges[spec->leaf_first];
    uint32_t n_leaves = leaves_summed(spec);
    kinput_t input = {.kind = kind, .pair_order = pair_order, .n_leaves = n_leaves};
    input.k = spec->leaf_edges[spec->leaf_end] - base;
    input.leaves = MEM_NEW_ARRAY(kleaf_t, n_leaves);
    /* Each leaf adds at most one cut block at each of its ends. */
    input.segs = MEM_NEW_ARRAY(kseg_t, input.k / SHORT_SEGMENT_K + 2 * (size_t)n_leaves + 1);
    for (uint32_t i = 0; i < n_leaves; i++) {
        uint32_t first = spec->leaf_edges[spec->leaf_first + i];
        uint32_t last = i + 1 < n_leaves ? spec->leaf_first + i + 1 : spec->leaf_end;
        uint32_t end = spec->leaf_edges[last];
        kleaf_t *leaf = &input.leaves[i];
        *leaf = (kleaf_t){
            .k = first - base, .len = end - first, .absolute = first, .k_padded = input.k_padded};
        leaf->seg_first = input.n_segs;
        if (integers)
            cut_leaf(&input, leaf, first, end, base);
        else
            leaf->len_padded = (end - first + 1) / 2 * 2;
        leaf->seg_end = input.n_segs;
        input.k_padded += leaf->len_padded;
    }
    input.has_apart = integers && spec->n_leaves == 1 && input.n_segs > 0;
    size_t value_bytes = kind == KACTIVATION_BF16 ? 2 : 4;
    input.row_bytes = integers ? input.n_segs * sizeof(kinput_seg_t) +
                                     (input.has_apart ? sizeof(kapart_t) : 0)
                               : round_up(input.k_padded * value_bytes, 64);
    *own_out = input;
}

void input_release(kinput_t *input)
{
    free(input->leaves);
    free(input->segs);
    *input = (kinput_t){0};
}
