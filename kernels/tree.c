/* See tree.h. */
#include "kernels/tree.h"

#include "common/base/status.h"

/* Appends the cover of `run` inside the node [first, end). */
static uint32_t cover_node(uint32_t first, uint32_t end, tree_run_t run, tree_run_t *cover_out,
                           uint32_t n)
{
    if (run.end <= first || end <= run.first)
        return n;
    if (run.first <= first && end <= run.end) {
        CHECK(n < TREE_COVER_MAX);
        cover_out[n] = (tree_run_t){(uint16_t)first, (uint16_t)end};
        return n + 1;
    }
    uint32_t middle = first + (end - first + 1) / 2;
    n = cover_node(first, middle, run, cover_out, n);
    return cover_node(middle, end, run, cover_out, n);
}

uint32_t tree_cover(uint32_t n_leaves, tree_run_t run, tree_run_t cover_out[TREE_COVER_MAX])
{
    CHECK(n_leaves >= 1 && n_leaves <= NUMERICS_LEAVES_MAX);
    CHECK(run.first <= run.end && run.end <= n_leaves);
    if (run.first == run.end)
        return 0;
    return cover_node(0, n_leaves, run, cover_out, 0);
}

uint32_t tree_cover_size(uint32_t n_leaves, tree_run_t run)
{
    tree_run_t cover[TREE_COVER_MAX];
    return tree_cover(n_leaves, run, cover);
}

/* Writes the steps of the node [first, end): the next input if the node is one, else its halves and
 * their sum. Inputs ascend by leaf, so they are met in the order of their numbers. */
static void program_node(uint32_t first, uint32_t end, const tree_run_t *inputs,
                         tree_program_t *program, uint32_t *next)
{
    if (inputs[*next].first == first && inputs[*next].end == end) {
        program->steps[program->n_steps++] = (int8_t)(*next)++;
        return;
    }
    CHECK(end - first > 1);
    uint32_t middle = first + (end - first + 1) / 2;
    program_node(first, middle, inputs, program, next);
    program_node(middle, end, inputs, program, next);
    program->steps[program->n_steps++] = TREE_ADD;
}

status_t tree_program(uint32_t n_leaves, const tree_run_t *runs, uint32_t n_runs,
                      tree_program_t *program_out)
{
    if (n_leaves < 1 || n_leaves > NUMERICS_LEAVES_MAX)
        return fail(STATUS_INVALID, "a tree of %u leaves: 1 to %d are possible", n_leaves,
                    NUMERICS_LEAVES_MAX);
    tree_run_t inputs[NUMERICS_LEAVES_MAX + TREE_COVER_MAX];
    uint32_t n_inputs = 0;
    uint32_t at = 0;
    for (uint32_t i = 0; i < n_runs; i++) {
        if (runs[i].first > runs[i].end || runs[i].end > n_leaves)
            return fail(STATUS_INVALID, "rank %u owns leaves [%u, %u) of %u", i, runs[i].first,
                        runs[i].end, n_leaves);
        if (runs[i].first == runs[i].end)
            continue;
        if (runs[i].first != at)
            return fail(STATUS_INVALID, "rank %u owns leaves from %u, but %u is the next one", i,
                        runs[i].first, at);
        n_inputs += tree_cover(n_leaves, runs[i], inputs + n_inputs);
        at = runs[i].end;
    }
    if (at != n_leaves)
        return fail(STATUS_INVALID, "the ranks own leaves up to %u of %u", at, n_leaves);
    *program_out = (tree_program_t){.n_inputs = n_inputs};
    uint32_t next = 0;
    inputs[n_inputs] = (tree_run_t){UINT16_MAX, UINT16_MAX};
    program_node(0, n_leaves, inputs, program_out, &next);
    CHECK(next == n_inputs);
    return STATUS_OK;
}
