/* The reduction tree of a matmul whose input is cut over ranks (docs/numerics.md, "Leaves").
 *
 * A tree over n leaves splits into its first ceil(n/2) and its last floor(n/2) leaves, recursively.
 * A rank owns a contiguous, possibly empty, run of leaves and sends one partial sum for each node
 * of the *cover* of its run: the largest nodes of the tree that lie inside the run, ascending. What
 * is added above the covers is written by the tree alone, so any cut of the leaves gives the same
 * bits. Everything here is pure. */
#ifndef SHOAL_KERNELS_TREE_H
#define SHOAL_KERNELS_TREE_H

#include <stdint.h>

#include "common/base/status.h"
#include "kernels/numerics.h"

enum {
    /* The cover of a run in a tree of 16 leaves has at most 2 * (depth - 1) nodes. */
    TREE_COVER_MAX = 8,
    TREE_RANKS_MAX = 16, /* ranks of one group that own at least one leaf are never more */
    TREE_PROGRAM_MAX = 2 * NUMERICS_LEAVES_MAX,
    TREE_DEPTH_MAX = 6, /* values that a program holds at once */
};

/* Leaves [first, end). */
typedef struct {
    uint16_t first;
    uint16_t end;
} tree_run_t;

/* Writes the cover of `run` in a tree of n_leaves (1 to 16), ascending; returns its size P: 0 for
 * an empty run. The partials of a rank are a matrix [P][rows][columns] in this order. */
uint32_t tree_cover(uint32_t n_leaves, tree_run_t run, tree_run_t cover_out[TREE_COVER_MAX]);

/* P alone, for sizes. */
uint32_t tree_cover_size(uint32_t n_leaves, tree_run_t run);

/* How to add the partials of all ranks: a postfix program. A step >= 0 pushes that input, where
 * inputs are numbered rank by rank in the order of runs, cover node by cover node; TREE_ADD
 * replaces the two topmost values a, b (b on top) by a + b. */
enum { TREE_ADD = -1 };
typedef struct {
    uint32_t n_inputs;
    uint32_t n_steps;
    int8_t steps[TREE_PROGRAM_MAX];
} tree_program_t;

/* The program for ranks whose runs are given in rank order. INVALID unless the runs, empty ones
 * left out, ascend and together are exactly [0, n_leaves). */
MUST_USE status_t tree_program(uint32_t n_leaves, const tree_run_t *runs, uint32_t n_runs,
                               tree_program_t *program_out);

#endif
