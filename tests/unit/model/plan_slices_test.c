/* Leaves, runs and slices, with numbers computed by hand from docs/numerics.md. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "common/model/plan.h"
#include "kernels/numerics.h"
#include "kernels/tree.h"

_Static_assert((int)PLAN_LEAVES_MAX == (int)NUMERICS_LEAVES_MAX, "one definition of leaves");
_Static_assert((int)PLAN_NODES_MAX == (int)TREE_COVER_MAX, "one definition of covers");
_Static_assert((int)PLAN_KV_BLOCK == (int)NUMERICS_KEY_TILE, "KV tokens are whole tiles");

/* In the cut that the rule takes. */
static status_t slice_of(const model_config_t *config, uint32_t tp, uint32_t slice,
                         plan_slice_t *out)
{
    plan_cut_t cut;
    TRY(plan_cut(config, &(plan_cut_t){tp, 0, 0, 0}, &cut));
    return plan_slice(config, &cut, slice, out);
}

static model_config_t smollm2(void)
{
    return (model_config_t){
        .architecture = "llama", .n_layers = 30, .hidden = 576, .n_heads = 9, .n_kv_heads = 3,
        .head_dim = 64, .ffn = 1536, .vocab = 49152, .context_train = 8192,
        .tied_embeddings = true,
    };
}

static void check_run(plan_run_t run, uint32_t first, uint32_t count)
{
    assert_int_equal(run.first, first);
    assert_int_equal(run.count, count);
}

static void check_edges(const plan_leaves_t *leaves, const uint32_t *edges, uint32_t n)
{
    assert_int_equal(leaves->n, n);
    for (uint32_t i = 0; i <= n; i++)
        assert_int_equal(leaves->edge[i], edges[i]);
}
#define CHECK_EDGES(leaves, ...)                                                                   \
    check_edges(leaves, (const uint32_t[]){__VA_ARGS__},                                           \
                sizeof((const uint32_t[]){__VA_ARGS__}) / 4 - 1)

static void test_leaf_edges_are_the_written_ones(void **state)
{
    (void)state;
    plan_leaves_t leaves;
    plan_leaf_edges_heads(9, 64, &leaves); /* floor(576/256) = 2, but four: floor(i*9/4) */
    CHECK_EDGES(&leaves, 0, 2, 4, 6, 9);
    plan_leaf_edges_heads(9, 256, &leaves);
    CHECK_EDGES(&leaves, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9);
    plan_leaf_edges_heads(14, 128, &leaves); /* 1,792 = 7 x 256 */
    CHECK_EDGES(&leaves, 0, 2, 4, 6, 8, 10, 12, 14);
    plan_leaf_edges_heads(14, 127, &leaves); /* 1,778: six of them, floor(i*14/6) */
    CHECK_EDGES(&leaves, 0, 2, 4, 7, 9, 11, 14);
    plan_leaf_edges_heads(20, 256, &leaves); /* floor(i*20/16) */
    CHECK_EDGES(&leaves, 0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13, 15, 16, 17, 18, 20);
    plan_leaf_edges_heads(3, 512, &leaves);
    CHECK_EDGES(&leaves, 0, 1, 2, 3);
    plan_leaf_edges_heads(1, 64, &leaves);
    CHECK_EDGES(&leaves, 0, 1);
    plan_leaf_edges_ffn(1536, &leaves); /* 6 x 256 */
    CHECK_EDGES(&leaves, 0, 256, 512, 768, 1024, 1280, 1536);
    plan_leaf_edges_ffn(352, &leaves); /* u = 8, 44 units, n = 4 */
    CHECK_EDGES(&leaves, 0, 88, 176, 264, 352);
    plan_leaf_edges_ffn(20, &leaves); /* u = 8, 3 units: 8*floor(3/4) = 0, 8*floor(6/4) = 8 … */
    CHECK_EDGES(&leaves, 0, 0, 8, 16, 20);
    plan_leaf_edges_ffn(1408, &leaves); /* u = 32, 44 units, n = 5: 8.8 units a leaf */
    CHECK_EDGES(&leaves, 0, 256, 544, 832, 1120, 1408);
    plan_leaf_edges_ffn(1300, &leaves); /* u = 32, ceil(1300/32) = 41 units, n = 5 */
    CHECK_EDGES(&leaves, 0, 256, 512, 768, 1024, 1300);
    plan_leaf_edges_ffn(700, &leaves); /* u = 32, ceil(700/32) = 22 units, n = 4 */
    CHECK_EDGES(&leaves, 0, 160, 352, 512, 700);
    plan_leaf_edges_ffn(11008, &leaves); /* n = 16, 344 units: 21.5 units a leaf */
    CHECK_EDGES(&leaves, 0, 672, 1376, 2048, 2752, 3424, 4128, 4800, 5504, 6176, 6880, 7552, 8256,
                8928, 9632, 10304, 11008);
    plan_leaf_edges_expert(1536, &leaves);
    CHECK_EDGES(&leaves, 0, 384, 768, 1152, 1536);
}

static void check_output(const model_config_t *config, uint32_t n, uint32_t heads, uint32_t inputs)
{
    plan_leaves_t in_heads, in_inputs;
    plan_leaf_edges_attention(config, &in_heads);
    plan_leaf_edges_output(config, &in_inputs);
    assert_int_equal(in_heads.n, n);
    assert_int_equal(in_inputs.n, n);
    for (uint32_t i = 0; i <= n; i++)
        assert_int_equal(in_heads.edge[i] * inputs, in_inputs.edge[i] * heads);
    assert_int_equal(in_heads.edge[n], config->n_heads);
}

/* How wide a leaf is follows from what the output matmul reads: of V3 128 heads of 128 values, though
 * queries have 192; of groups of heads their ranks. */
static void test_leaves_of_attention_count_what_the_output_reads(void **state)
{
    (void)state;
    model_config_t config = smollm2();
    check_output(&config, 4, 1, 64);
    config.latent = (model_latent_t){.kv_rank = 64, .nope_dim = 128, .rope_dim = 64, .value_dim = 128};
    config.head_dim = 192; /* 9 * 192 = 6 * 256 + 192, 9 * 128 = 4 * 256 + 128 */
    check_output(&config, 4, 1, 128);
    config.n_heads = 128;
    check_output(&config, 16, 1, 128);
    config.latent = (model_latent_t){0};
    config.n_heads = 64;
    config.head_dim = 512;
    config.compressed.groups = 8;
    config.compressed.group_rank = 1024;
    check_output(&config, 8, 8, 1024);
    config.compressed.group_rank = 160; /* 1,280 = 5 * 256 */
    check_output(&config, 5, 8, 160);
}

static void check_runs(uint32_t n_leaves, uint32_t tp, const uint32_t *counts)
{
    uint32_t at = 0;
    for (uint32_t slice = 0; slice < tp; slice++) {
        plan_run_t run = plan_leaf_run(n_leaves, tp, slice);
        assert_int_equal(run.count, counts[slice]);
        if (run.count > 0)
            assert_int_equal(run.first, at);
        at += run.count;
    }
    assert_int_equal(at, n_leaves);
}
#define CHECK_RUNS(n_leaves, tp, ...) check_runs(n_leaves, tp, (const uint32_t[]){__VA_ARGS__})

static void test_powers_of_two_cut_at_nodes_of_the_tree_and_others_evenly(void **state)
{
    (void)state;
    CHECK_RUNS(9, 1, 9);
    CHECK_RUNS(9, 2, 5, 4);
    CHECK_RUNS(9, 4, 3, 2, 2, 2);
    CHECK_RUNS(9, 8, 2, 1, 1, 1, 1, 1, 1, 1);
    CHECK_RUNS(9, 16, 1, 1, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0);
    CHECK_RUNS(9, 3, 3, 3, 3);
    CHECK_RUNS(12, 2, 6, 6);
    CHECK_RUNS(12, 3, 4, 4, 4);
    CHECK_RUNS(12, 4, 3, 3, 3, 3);
    CHECK_RUNS(16, 3, 5, 5, 6);
    CHECK_RUNS(4, 6, 0, 1, 1, 0, 1, 1);
}

/* The kernels compute the same cover from the same tree, by code of their own. */
static void test_the_nodes_of_a_run_are_the_kernels_cover_and_at_most_three(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= PLAN_LEAVES_MAX; n++)
        for (uint32_t tp = 1; tp <= PLAN_TP_MAX; tp++)
            for (uint32_t slice = 0; slice < tp; slice++) {
                plan_run_t run = plan_leaf_run(n, tp, slice), nodes[PLAN_NODES_MAX];
                tree_run_t cover[TREE_COVER_MAX];
                uint32_t n_nodes = plan_run_nodes(n, run, nodes);
                tree_run_t same = {(uint16_t)run.first, (uint16_t)(run.first + run.count)};
                assert_int_equal(n_nodes, tree_cover(n, same, cover));
                for (uint32_t i = 0; i < n_nodes; i++) {
                    assert_int_equal(nodes[i].first, cover[i].first);
                    assert_int_equal(nodes[i].first + nodes[i].count, cover[i].end);
                }
                assert_true(n_nodes <= 3);
                if ((tp & (tp - 1)) == 0)
                    assert_int_equal(n_nodes, run.count > 0);
            }
}

static void test_nine_heads_on_two_ranks_are_four_and_five_with_a_shared_kv_head(void **state)
{
    (void)state;
    model_config_t config = smollm2();
    plan_slice_t slice;
    assert_int_equal(slice_of(&config, 2, 0, &slice), STATUS_OK);
    assert_int_equal(slice.heads.first, 0);
    assert_int_equal(slice.heads.count, 4);
    assert_int_equal(slice.kv_heads.first, 0);
    assert_int_equal(slice.kv_heads.count, 2); /* heads 0-3 read kv heads 0 and 1 */
    assert_int_equal(slice.ffn.first, 0);
    assert_int_equal(slice.ffn.count, 768);
    assert_int_equal(slice.vocab.count, 24576);
    assert_int_equal(slice_of(&config, 2, 1, &slice), STATUS_OK);
    assert_int_equal(slice.heads.first, 4);
    assert_int_equal(slice.heads.count, 5);
    assert_int_equal(slice.kv_heads.first, 1);
    assert_int_equal(slice.kv_heads.count, 2); /* heads 4-8 read kv heads 1 and 2 */
    assert_int_equal(slice.ffn.first, 768);
    assert_int_equal(slice.vocab.first, 24576);
    assert_int_equal(slice_of(&config, 3, 1, &slice), STATUS_OK);
    check_run(slice.head_leaves, 1, 1); /* of four leaves on three slices 1, 1 and 2 */
    check_run(slice.heads, 2, 2);
    check_run(slice.kv_heads, 0, 2);
    check_run(slice.ffn_leaves, 2, 2);
    assert_int_equal(slice.ffn.first, 512);
    assert_int_equal(slice.ffn.count, 512);
}

static void test_a_rank_without_heads_needs_no_kv_head(void **state)
{
    (void)state;
    model_config_t config = smollm2();
    plan_slice_t slice;
    assert_int_equal(slice_of(&config, 16, 15, &slice), STATUS_OK);
    assert_int_equal(slice.heads.count, 0);
    assert_int_equal(slice.kv_heads.count, 0);
}

static void test_vocabulary_slices_end_on_blocks_and_cover_everything_once(void **state)
{
    (void)state;
    /* 128,256 tokens are 126 blocks, the last of 256: 42 blocks each on three ranks. */
    assert_int_equal(plan_vocab_run(128256, 3, 0).count, 43008);
    assert_int_equal(plan_vocab_run(128256, 3, 2).first, 86016);
    assert_int_equal(plan_vocab_run(128256, 3, 2).count, 42240);
    assert_int_equal(plan_vocab_run(320, 2, 0).count, 320);
    assert_int_equal(plan_vocab_run(320, 2, 1).count, 0);
    for (uint32_t tp = 1; tp <= PLAN_TP_MAX; tp++) {
        uint32_t at = 0;
        for (uint32_t slice = 0; slice < tp; slice++) {
            plan_run_t run = plan_vocab_run(50257, tp, slice);
            assert_int_equal(run.first, at);
            at += run.count;
            assert_true(at % PLAN_VOCAB_BLOCK == 0 || at == 50257);
        }
        assert_int_equal(at, 50257);
    }
}

/* 49,152 tokens are 48 blocks. */
static void test_a_head_is_cut_among_the_last_slices_or_among_all_ranks(void **state)
{
    (void)state;
    assert_int_equal(plan_head_run(49152, 2, 3, false, 1, 0).count, 0);
    assert_int_equal(plan_head_run(49152, 2, 3, false, 2, 1).first, 24576);
    assert_int_equal(plan_head_run(49152, 2, 3, false, 2, 1).count, 24576);
    for (uint32_t tp = 1; tp <= PLAN_TP_MAX; tp++)
        for (uint32_t stages = 1; stages <= 16; stages++) {
            uint32_t at = 0, most = 0, least = UINT32_MAX;
            for (uint32_t rank = 0; rank < tp * stages; rank++) {
                plan_run_t run = plan_head_run(49152, tp, stages, true, rank / tp, rank % tp);
                assert_int_equal(run.first, at);
                at += run.count;
                most = run.count > most ? run.count : most;
                least = run.count < least ? run.count : least;
            }
            assert_int_equal(at, 49152);
            assert_true(most - least <= PLAN_VOCAB_BLOCK);
        }
}

static void test_slices_out_of_range_are_refused(void **state)
{
    (void)state;
    model_config_t config = smollm2();
    plan_slice_t slice;
    assert_int_equal(slice_of(&config, 0, 0, &slice), STATUS_INVALID);
    assert_int_equal(slice_of(&config, 17, 0, &slice), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "tp is 17; 1 to 16"));
    assert_int_equal(slice_of(&config, 2, 2, &slice), STATUS_INVALID);
}

/* SmolLM2 has 4 leaves of heads and 6 of its FFN; its experts would have 4 leaves each. */
static void test_no_slice_is_left_without_work(void **state)
{
    (void)state;
    model_config_t config = smollm2();
    assert_int_equal(plan_tp_max(&config), 6);
    config.ffn = 0;
    assert_int_equal(plan_tp_max(&config), 4);
    config.experts = (model_experts_t){.n = 3, .n_used = 2, .ffn = 256};
    assert_int_equal(plan_tp_max(&config), 12);
    config.experts.n = 6;
    assert_int_equal(plan_tp_max(&config), PLAN_TP_MAX);
}

/* Whole experts and leaves of experts: groups of slices hold whole experts, and the slices of a group
 * leaves of each. 4 leaves of 64 values on 3 slices are 1, 1 and 2. */
static void test_slices_share_experts_by_leaves_and_by_groups(void **state)
{
    (void)state;
    static const struct {
        uint32_t tp, groups, slice, first, count, leaf_first, leaves;
    } rows[] = {
        {1, 1, 0, 0, 6, 0, 4}, {2, 1, 1, 0, 6, 2, 2}, {3, 1, 1, 0, 6, 1, 1}, {3, 1, 2, 0, 6, 2, 2},
        {4, 1, 3, 0, 6, 3, 1}, {5, 5, 0, 0, 1, 0, 4}, {5, 5, 4, 4, 2, 0, 4}, {6, 2, 4, 3, 3, 1, 1},
        {8, 2, 3, 0, 3, 3, 1}, {8, 2, 5, 3, 3, 1, 1}, {7, 7, 0, 0, 0, 0, 4}, {4, 2, 3, 3, 3, 2, 2},
        {4, 4, 1, 1, 2, 0, 4},
    };
    model_config_t config = smollm2();
    config.experts = (model_experts_t){.n = 6, .n_used = 2, .ffn = 256, .shared_ffn = 512};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        plan_cut_t cut;
        plan_slice_t slice;
        const plan_cut_t wanted = {rows[i].tp, rows[i].groups, 0, 0};
        assert_int_equal(plan_cut(&config, &wanted, &cut), STATUS_OK);
        assert_int_equal(plan_slice(&config, &cut, rows[i].slice, &slice), STATUS_OK);
        check_run(slice.experts, rows[i].first, rows[i].count);
        check_run(slice.expert_leaves, rows[i].leaf_first, rows[i].leaves);
        check_run(slice.expert_ffn, 64 * rows[i].leaf_first, 64 * rows[i].leaves);
    }
}

/* Every leaf of every expert is owned once, whatever tp is. */
static void test_every_leaf_of_every_expert_has_one_owner(void **state)
{
    (void)state;
    model_config_t config = smollm2();
    config.experts = (model_experts_t){.n = 7, .n_used = 2, .ffn = 96, .shared_ffn = 40};
    for (uint32_t tp = 1; tp <= PLAN_TP_MAX; tp++) {
        uint32_t owners[7][PLAN_EXPERT_LEAVES] = {0}, shared[PLAN_EXPERT_LEAVES] = {0};
        for (uint32_t s = 0; s < tp; s++) {
            plan_slice_t slice;
            assert_int_equal(slice_of(&config, tp, s, &slice), STATUS_OK);
            for (uint32_t e = 0; e < slice.experts.count; e++)
                for (uint32_t l = 0; l < slice.expert_leaves.count; l++)
                    owners[slice.experts.first + e][slice.expert_leaves.first + l]++;
            for (uint32_t l = 0; l < slice.shared_leaves.count; l++)
                shared[slice.shared_leaves.first + l]++;
        }
        for (uint32_t l = 0; l < PLAN_EXPERT_LEAVES; l++) {
            assert_int_equal(shared[l], 1);
            for (uint32_t e = 0; e < 7; e++)
                assert_int_equal(owners[e][l], 1);
        }
    }
}

/* Where heads are projected by group, a group is never cut. */
static void test_groups_of_heads_stay_whole(void **state)
{
    (void)state;
    model_config_t config = smollm2();
    config.n_heads = 12;
    config.n_kv_heads = 1;
    config.compressed.groups = 3;
    plan_slice_t slice;
    assert_int_equal(slice_of(&config, 2, 0, &slice), STATUS_OK);
    check_run(slice.heads, 0, 8);
    check_run(slice.head_leaves, 0, 2);
    assert_int_equal(slice_of(&config, 2, 1, &slice), STATUS_OK);
    check_run(slice.heads, 8, 4);
    check_run(slice.kv_heads, 0, 1);
    assert_int_equal(slice_of(&config, 4, 3, &slice), STATUS_OK);
    assert_int_equal(slice.heads.count, 0);
    assert_int_equal(slice.kv_heads.count, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_leaf_edges_are_the_written_ones),
        cmocka_unit_test(test_leaves_of_attention_count_what_the_output_reads),
        cmocka_unit_test(test_powers_of_two_cut_at_nodes_of_the_tree_and_others_evenly),
        cmocka_unit_test(test_the_nodes_of_a_run_are_the_kernels_cover_and_at_most_three),
        cmocka_unit_test(test_nine_heads_on_two_ranks_are_four_and_five_with_a_shared_kv_head),
        cmocka_unit_test(test_a_rank_without_heads_needs_no_kv_head),
        cmocka_unit_test(test_vocabulary_slices_end_on_blocks_and_cover_everything_once),
        cmocka_unit_test(test_a_head_is_cut_among_the_last_slices_or_among_all_ranks),
        cmocka_unit_test(test_slices_out_of_range_are_refused),
        cmocka_unit_test(test_no_slice_is_left_without_work),
        cmocka_unit_test(test_slices_share_experts_by_leaves_and_by_groups),
        cmocka_unit_test(test_every_leaf_of_every_expert_has_one_owner),
        cmocka_unit_test(test_groups_of_heads_stay_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
