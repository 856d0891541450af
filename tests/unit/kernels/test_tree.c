/* The reduction tree: covers of runs, and programs that add them as the whole tree would. */
#include <stdio.h>
#include <string.h>

#include "support.h"

static void test_covers_are_the_largest_nodes_of_the_run(void **state)
{
    (void)state;
    tree_run_t cover[TREE_COVER_MAX];
    assert_int_equal(tree_cover(12, (tree_run_t){0, 12}, cover), 1);
    assert_int_equal(cover[0].end, 12);
    /* 12 = 6 + 6, 6 = 3 + 3, 3 = 2 + 1. */
    assert_int_equal(tree_cover(12, (tree_run_t){4, 8}, cover), 3);
    const tree_run_t wanted[] = {{4, 5}, {5, 6}, {6, 8}};
    assert_memory_equal(cover, wanted, sizeof wanted);
    assert_int_equal(tree_cover(9, (tree_run_t){3, 3}, cover), 0);
    /* 9 = 5 + 4: two ranks of 5 and 4 heads send one partial each. */
    assert_int_equal(tree_cover_size(9, (tree_run_t){0, 5}), 1);
    assert_int_equal(tree_cover_size(9, (tree_run_t){5, 9}), 1);
}

static void test_no_cover_is_larger_than_its_maximum(void **state)
{
    (void)state;
    uint32_t most = 0;
    for (uint32_t n = 1; n <= NUMERICS_LEAVES_MAX; n++)
        for (uint32_t first = 0; first <= n; first++)
            for (uint32_t end = first; end <= n; end++) {
                tree_run_t cover[TREE_COVER_MAX];
                uint32_t size = tree_cover(n, (tree_run_t){(uint16_t)first, (uint16_t)end}, cover);
                uint32_t at = first;
                for (uint32_t i = 0; i < size; i++) {
                    assert_int_equal(cover[i].first, at);
                    at = cover[i].end;
                }
                assert_int_equal(at, end);
                most = size > most ? size : most;
            }
    assert_true(most <= TREE_COVER_MAX && most >= 5);
}

/* Writes the node as text, so that the shape of the sum is compared and not only its value. */
static size_t write_node(char *to, uint32_t first, uint32_t end)
{
    if (end - first == 1) {
        to[0] = (char)('a' + first);
        return 1;
    }
    size_t n = 0;
    uint32_t middle = first + (end - first + 1) / 2;
    to[n++] = '(';
    n += write_node(to + n, first, middle);
    n += write_node(to + n, middle, end);
    to[n++] = ')';
    return n;
}

static void check_program(uint32_t n_leaves, const tree_run_t *runs, uint32_t n_runs)
{
    char wanted[128] = {0}, stack[TREE_DEPTH_MAX][128], input[TREE_PROGRAM_MAX][128] = {{0}};
    tree_program_t program;
    assert_ok(tree_program(n_leaves, runs, n_runs, &program));
    write_node(wanted, 0, n_leaves);
    uint32_t n_inputs = 0, depth = 0;
    for (uint32_t r = 0; r < n_runs; r++) {
        tree_run_t cover[TREE_COVER_MAX];
        uint32_t size = tree_cover(n_leaves, runs[r], cover);
        for (uint32_t i = 0; i < size; i++)
            write_node(input[n_inputs++], cover[i].first, cover[i].end);
    }
    assert_int_equal(n_inputs, program.n_inputs);
    for (uint32_t s = 0; s < program.n_steps; s++) {
        if (program.steps[s] != TREE_ADD) {
            assert_true(depth < TREE_DEPTH_MAX);
            strcpy(stack[depth++], input[program.steps[s]]);
            continue;
        }
        char sum[300];
        depth--;
        snprintf(sum, sizeof sum, "(%s%s)", stack[depth - 1], stack[depth]);
        memcpy(stack[depth - 1], sum, 128);
    }
    assert_int_equal(depth, 1);
    assert_string_equal(stack[0], wanted);
}

static void test_programs_of_any_two_cuts_write_the_tree(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= NUMERICS_LEAVES_MAX; n++)
        for (uint32_t a = 0; a <= n; a++)
            for (uint32_t b = a; b <= n; b++) {
                tree_run_t runs[] = {
                    {0, (uint16_t)a}, {(uint16_t)a, (uint16_t)b}, {(uint16_t)b, (uint16_t)n}};
                check_program(n, runs, 3);
            }
}

static void test_runs_that_are_no_partition_are_refused(void **state)
{
    (void)state;
    tree_program_t program;
    tree_run_t gap[] = {{0, 2}, {3, 4}}, overlap[] = {{0, 3}, {2, 4}}, open_end[] = {{0, 3}};
    assert_int_equal(tree_program(4, gap, 2, &program), STATUS_INVALID);
    assert_int_equal(tree_program(4, overlap, 2, &program), STATUS_INVALID);
    assert_int_equal(tree_program(4, open_end, 1, &program), STATUS_INVALID);
    assert_int_equal(tree_program(17, open_end, 1, &program), STATUS_INVALID);
    assert_int_equal(tree_program(0, NULL, 0, &program), STATUS_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_covers_are_the_largest_nodes_of_the_run),
        cmocka_unit_test(test_no_cover_is_larger_than_its_maximum),
        cmocka_unit_test(test_programs_of_any_two_cuts_write_the_tree),
        cmocka_unit_test(test_runs_that_are_no_partition_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
