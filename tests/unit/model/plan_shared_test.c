/* What the slices of a stage share beside experts and heads: projections to latents, and the sums of
 * a block. The cuts themselves are plan_cut_test.c's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/model/plan_models.h"

/* The shape of DeepSeek-V3's attention: 7168 * 2112 values of projections, 13.2 million of which
 * each of eight slices is spared; and one of a small model. */
static model_config_t with_latents(uint32_t hidden, uint32_t q_rank, uint32_t kv_rank, uint32_t rope)
{
    model_config_t config = plan_smollm2().config;
    config.hidden = hidden;
    config.n_heads = config.n_kv_heads = 128;
    config.latent.q_rank = q_rank;
    config.latent.kv_rank = kv_rank;
    config.latent.rope_dim = rope;
    for (uint32_t i = 0; i < config.n_layers; i++)
        config.layers[i].attention = MODEL_ATTENTION_LATENT;
    return config;
}

static void test_large_projections_are_shared_by_the_slices_with_attention(void **state)
{
    (void)state;
    plan_slice_t slice;
    plan_cut_t cut = {.tp = 8, .attention_slices = 8, .attention_replicas = 1};
    model_config_t large = with_latents(7168, 1536, 512, 64), small = with_latents(64, 48, 32, 8);
    assert_int_equal(plan_projection_slices(&large, &cut, false), 8);
    assert_int_equal(plan_projection_columns(&large, 0, false), 2112);
    assert_int_equal(plan_projection_columns(&large, 0, true), 0);
    cut.attention_replicas = 2;
    assert_int_equal(plan_projection_slices(&large, &cut, true), 1);
    cut.attention_replicas = 1;
    cut.attention_slices = 3; /* slices 0, 2 and 5 */
    assert_int_equal(plan_projection_slices(&large, &cut, false), 3);
    assert_int_equal(plan_slice(&large, &cut, 2, &slice), STATUS_OK);
    assert_int_equal(slice.projection_slices, 3);
    assert_int_equal(plan_slice(&large, &cut, 1, &slice), STATUS_OK);
    assert_int_equal(slice.projection_slices, 0);
    cut.attention_slices = 1;
    assert_int_equal(plan_projection_slices(&large, &cut, true), 1);
    cut = (plan_cut_t){.tp = 4, .attention_slices = 4, .attention_replicas = 1};
    assert_int_equal(plan_projection_slices(&small, &cut, false), 1);
    assert_int_equal(plan_projection_slices(&small, &cut, true), 4);
    /* 88 columns are no 16 for each of eight. */
    cut = (plan_cut_t){.tp = 8, .attention_slices = 8, .attention_replicas = 1};
    assert_int_equal(plan_projection_slices(&small, &cut, true), 1);
    large.latent.q_rank = 0; /* queries are made from rows, and are each slice's own */
    assert_int_equal(plan_projection_slices(&large, &cut, true), 1);
    model_config_t grouped = plan_smollm2().config;
    assert_int_equal(plan_projection_slices(&grouped, &cut, true), 1);
}

static void test_every_column_of_a_shared_projection_has_one_owner(void **state)
{
    (void)state;
    static const uint32_t columns[] = {1, 16, 64, 88, 127, 2112, 8192};
    for (size_t c = 0; c < sizeof columns / sizeof *columns; c++)
        for (uint32_t n = 1; n <= PLAN_TP_MAX; n++) {
            uint32_t next = 0;
            for (uint32_t i = 0; i < n; i++) {
                plan_run_t run = plan_projection_run(columns[c], n, i);
                assert_int_equal(run.first, run.count > 0 ? next : run.first);
                assert_true(run.first % PLAN_PROJECTION_COLUMNS == 0);
                next += run.count;
            }
            assert_int_equal(next, columns[c]);
        }
    plan_run_t second = plan_projection_run(2112, 8, 1);
    assert_true(second.first == 256 && second.count == 272);
}

/* Integers of 4 slices: of 32 bytes an element a slice would get 24 and gets 6, and 3 of sums. */
static void test_sums_go_by_pieces_where_that_saves_enough(void **state)
{
    (void)state;
    assert_false(plan_sums_by_pieces(1, 1 << 20, 8));
    assert_false(plan_sums_by_pieces(2, 1 << 20, 8)); /* partials of two: the same bytes */
    assert_true(plan_sums_by_pieces(2, 1 << 20, 16));
    assert_false(plan_sums_by_pieces(4, 8192, 32)); /* 15 bytes less an element */
    assert_true(plan_sums_by_pieces(4, 8960, 32));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_large_projections_are_shared_by_the_slices_with_attention),
        cmocka_unit_test(test_every_column_of_a_shared_projection_has_one_owner),
        cmocka_unit_test(test_sums_go_by_pieces_where_that_saves_enough),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
