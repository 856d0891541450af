/* Layers to stages and memory, with numbers computed by hand for SmolLM2-135M in Q4_1. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "common/base/buffer.h"
#include "common/model/plan.h"
#include "tests/unit/model/gguf_draft.h"
#include "tests/unit/model/plan_models.h"

static void check_stages(const plan_sizes_t *sizes, uint32_t n, bool shared_head,
                         const uint32_t *counts)
{
    plan_run_t layers[PLAN_STAGES_MAX];
    uint32_t at = 0;
    assert_int_equal(plan_stages(sizes, n, shared_head, layers), STATUS_OK);
    for (uint32_t s = 0; s < n; s++) {
        assert_int_equal(layers[s].first, at);
        assert_int_equal(layers[s].count, counts[s]);
        at += layers[s].count;
    }
    assert_int_equal(at, sizes->config.n_layers);
}

/* A layer multiplies 576*576*2 + 2*192*576 + 3*576*1536 = 3,538,944 values; the head 28,311,552,
 * eight of these. With norms a layer is 3,540,096 and the head 7.9976 layers. On two stages 19 and
 * 11 + 7.9976; on three the smallest maximum is 13, and 12 beside it leaves 5 + 7.9976; stage 0
 * also embeds. */
static void test_the_last_stage_has_fewer_layers_because_it_has_the_head(void **state)
{
    (void)state;
    plan_sizes_t sizes = plan_smollm2();
    check_stages(&sizes, 1, false, (const uint32_t[]){30});
    check_stages(&sizes, 2, false, (const uint32_t[]){19, 11});
    check_stages(&sizes, 3, false, (const uint32_t[]){12, 13, 5});
}

/* Then a layer is a layer. SmolLM2's head is as heavy as eight, so its stages share it where they can;
 * one that is no heavier than a layer stays where it is. */
static void test_stages_that_share_the_head_have_as_many_layers_each(void **state)
{
    (void)state;
    plan_sizes_t sizes = plan_smollm2();
    check_stages(&sizes, 2, true, (const uint32_t[]){15, 15});
    check_stages(&sizes, 3, true, (const uint32_t[]){10, 10, 10});
    check_stages(&sizes, 4, true, (const uint32_t[]){7, 8, 8, 7});
    assert_true(plan_head_is_large(&sizes, 2));
    assert_false(plan_head_is_large(&sizes, 1));
    sizes.head_values = 3540096;
    assert_false(plan_head_is_large(&sizes, 2));
    sizes.head_values++;
    assert_true(plan_head_is_large(&sizes, 2));
}

/* Each of two stages of two slices has a quarter of the head's bytes and an eighth more, and rows of
 * logits of a quarter of the vocabulary; who samples has whole ones beside them. */
static void test_a_shared_head_takes_memory_on_every_stage(void **state)
{
    (void)state;
    plan_sizes_t sizes = plan_smollm2();
    plan_shape_t shape = {.tp = 2, .stages = 2, .context_max = 2048};
    static plan_need_t alone[PLAN_RANKS_MAX], shared[PLAN_RANKS_MAX];
    plan_run_t layers[PLAN_STAGES_MAX];
    assert_int_equal(plan_needs(&sizes, &shape, alone, layers), STATUS_OK);
    shape.shared_head = true;
    assert_int_equal(plan_needs(&sizes, &shape, shared, layers), STATUS_OK);
    assert_int_equal(layers[1].first, 15);
    /* 15 layers of 1,249,344 and of 1,301,184, as below. */
    assert_int_equal(shared[0].weights, 15 * 1249344 + 30081024 + 8460936);
    assert_int_equal(shared[1].weights, 15 * 1301184 + 30081024 + 8460936);
    assert_int_equal(shared[2].weights, 15 * 1249344 + 8460936);
    assert_int_equal(shared[3].weights, 15 * 1301184 + 8460936);
    uint64_t rows = 64 * 4;
    assert_int_equal(shared[0].scratch, alone[0].scratch + rows * 12288);
    assert_int_equal(shared[2].scratch, alone[2].scratch - rows * 12288);
}

/* With a head as heavy as twenty layers the last stage still gets one of its four layers. */
static void test_every_stage_has_a_layer(void **state)
{
    (void)state;
    plan_sizes_t sizes = plan_smollm2();
    sizes.config.n_layers = 4;
    sizes.head_values *= 5;
    check_stages(&sizes, 2, false, (const uint32_t[]){3, 1});
    check_stages(&sizes, 4, false, (const uint32_t[]){1, 1, 1, 1});
}

static void test_more_stages_than_layers_are_refused(void **state)
{
    (void)state;
    plan_sizes_t sizes = plan_smollm2();
    plan_run_t layers[PLAN_STAGES_MAX];
    assert_int_equal(plan_stages(&sizes, 31, false, layers), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "31 stages for 30 layers; 1 to 30"));
    assert_int_equal(plan_stages(&sizes, 0, true, layers), STATUS_INVALID);
}

static plan_shape_t shape_of(uint32_t tp, uint32_t stages, uint32_t context_max)
{
    return (plan_shape_t){.tp = tp, .stages = stages, .context_max = context_max};
}

/* Stage 1 of 2 has 11 layers; slice 1 of tp 2 has 5 of 9 heads, 2 of 3 kv heads, half the FFN.
 * Stored bytes of a layer: norms 4,608; q 207,360; k and v 138,240; output 207,360; FFN 1,658,880.
 * With 1/8 more: 5,184 + 233,280*5/9 + 155,520*2/3 + 233,280*5/9 + 1,866,240/2
 *   = 5,184 + 129,600 + 103,680 + 129,600 + 933,120 = 1,301,184 a layer.
 * Head: (30,081,024 + 2,304) * 9/8 / 2 = 16,921,872.
 * KV: 2 * 11 layers * 2 heads * 64 * 2 bytes = 5,632 a token. */
static void test_a_rank_needs_its_part_of_the_file_and_an_eighth(void **state)
{
    (void)state;
    plan_sizes_t sizes = plan_smollm2();
    plan_shape_t shape = shape_of(2, 2, 2048);
    plan_need_t need;
    assert_int_equal(plan_need(&sizes, &shape, 1, 1, &need), STATUS_OK);
    assert_int_equal(need.weights, 11 * 1301184 + 16921872);
    assert_int_equal(need.kv_per_token, 5632);
    assert_int_equal(need.fixed, need.weights + need.scratch + need.process);
    assert_int_equal(plan_need(&sizes, &shape, 0, 0, &need), STATUS_OK);
    /* 19 layers with 4 heads: 5,184 + 103,680 + 103,680 + 103,680 + 933,120 = 1,249,344 each, and
     * the embedding as it is stored. */
    assert_int_equal(need.weights, 19 * 1249344 + 30081024);
    assert_int_equal(need.kv_per_token, 2 * 19 * 2 * 64 * 2);
    shape.kv_codes = true; /* a byte a value, and 4 a head and token of K and of V */
    assert_int_equal(plan_need(&sizes, &shape, 0, 0, &need), STATUS_OK);
    assert_int_equal(need.kv_per_token, 2 * 19 * 2 * (64 + 4));
    shape.kv_codes = false;
    shape.activations_f32 = true;
    assert_int_equal(plan_need(&sizes, &shape, 1, 1, &need), STATUS_OK);
    assert_int_equal(need.kv_per_token, 2 * 5632);
    /* F32 weights: norms 1,152; q 331,776*5/9; kv 221,184*2/3; output as q; FFN 2,654,208/2. */
    assert_int_equal(need.weights,
                     11 * 4 * (1152 + 184320 + 147456 + 184320 + 1327104) + 4 * (28312128 / 2));
}

static void test_kv_tokens_are_what_the_tightest_rank_holds_in_whole_tiles(void **state)
{
    (void)state;
    plan_sizes_t sizes = plan_smollm2();
    plan_shape_t shape = shape_of(2, 1, 1000);
    plan_need_t needs[2];
    uint64_t memory[2], tokens = 0;
    for (uint32_t slice = 0; slice < 2; slice++) {
        assert_int_equal(plan_need(&sizes, &shape, 0, slice, &needs[slice]), STATUS_OK);
        memory[slice] = needs[slice].fixed + 5000 * needs[slice].kv_per_token;
    }
    memory[1] -= 1; /* 4,999 tokens there, 78 whole tiles */
    assert_int_equal(plan_fit(&sizes, &shape, memory, &tokens), STATUS_OK);
    assert_int_equal(tokens, 78 * 64);
    memory[0] = memory[1] = 1ull << 40;
    assert_int_equal(plan_fit(&sizes, &shape, memory, &tokens), STATUS_OK);
    assert_int_equal(tokens, 8 * 1024); /* eight sequences of 1,000 tokens, each in whole tiles */
    shape.kv_tokens_max = 2100;
    assert_int_equal(plan_fit(&sizes, &shape, memory, &tokens), STATUS_OK);
    assert_int_equal(tokens, 2048); /* 32 whole tiles */
}

/* A window of 1,000, a step of 512 rows and what is around them, in whole tiles: of 8,192 tokens, of
 * which a sequence sees no more, 1,600 are held. One layer that sees all keeps all. */
static void test_a_window_bounds_what_a_sequence_needs(void **state)
{
    (void)state;
    plan_sizes_t sizes = plan_smollm2();
    plan_shape_t shape = shape_of(1, 1, 8192);
    uint64_t memory = 1ull << 40, tokens = 0;
    for (uint32_t i = 0; i < sizes.config.n_layers; i++)
        sizes.config.layers[i].window = i % 2 ? 1000 : 900;
    assert_int_equal(plan_kv_window(&sizes.config), 1000);
    assert_int_equal(plan_kv_tokens_needed(&sizes.config, &shape), 2 * 1600);
    assert_int_equal(plan_fit(&sizes, &shape, &memory, &tokens), STATUS_OK);
    assert_int_equal(tokens, PLAN_KV_SEQUENCES * 1600);
    shape.context_max = 700;
    assert_int_equal(plan_kv_tokens_needed(&sizes.config, &shape), 2 * 704);
    shape.context_max = 8192;
    sizes.config.layers[7].window = 0;
    assert_int_equal(plan_kv_window(&sizes.config), 0);
    assert_int_equal(plan_kv_tokens_needed(&sizes.config, &shape), 2 * 8192);
}

static void test_too_little_memory_for_two_sequences_is_refused_with_the_numbers(void **state)
{
    (void)state;
    plan_sizes_t sizes = plan_smollm2();
    plan_shape_t shape = shape_of(1, 1, 8192);
    plan_need_t need;
    uint64_t tokens = 17;
    assert_int_equal(plan_need(&sizes, &shape, 0, 0, &need), STATUS_OK);
    assert_int_equal(need.kv_per_token, 2 * 30 * 3 * 64 * 2); /* 23,040 */
    uint64_t memory = need.fixed + 16384 * need.kv_per_token;
    assert_int_equal(plan_fit(&sizes, &shape, &memory, &tokens), STATUS_OK);
    assert_int_equal(tokens, 16384);
    memory--;
    tokens = 17;
    assert_int_equal(plan_fit(&sizes, &shape, &memory, &tokens), STATUS_REFUSED);
    assert_non_null(strstr(status_text(), "rank 0 (stage 0, slice 0)"));
    assert_non_null(strstr(status_text(), "360 MiB for two sequences of 8192 tokens"));
    memory = need.fixed / 2;
    assert_int_equal(plan_fit(&sizes, &shape, &memory, &tokens), STATUS_REFUSED);
    assert_int_equal(tokens, 17);
}

static void test_shapes_that_no_memory_would_make_right_are_invalid(void **state)
{
    (void)state;
    plan_sizes_t sizes = plan_smollm2();
    plan_need_t need;
    plan_shape_t shape = shape_of(1, 1, 8193);
    assert_int_equal(plan_need(&sizes, &shape, 0, 0, &need), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "context_max is 8193; the model was trained for 8192"));
    shape = shape_of(1, 1, 0);
    assert_int_equal(plan_need(&sizes, &shape, 0, 0, &need), STATUS_INVALID);
    shape = shape_of(17, 1, 64);
    assert_int_equal(plan_need(&sizes, &shape, 0, 0, &need), STATUS_INVALID);
    shape = shape_of(16, 30, 64); /* 480 ranks */
    assert_int_equal(plan_need(&sizes, &shape, 0, 0, &need), STATUS_INVALID);
    shape = shape_of(1, 1, 1024);
    shape.kv_tokens_max = 2047;
    assert_int_equal(plan_need(&sizes, &shape, 0, 0, &need), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "holds no two sequences of context_max 1024; 2048 or"));
}

static void test_a_draft_model_takes_its_bytes_of_the_first_rank_alone(void **state)
{
    (void)state;
    plan_sizes_t sizes = plan_smollm2();
    plan_shape_t shape = shape_of(2, 2, 2048), without = shape;
    plan_need_t needs[PLAN_RANKS_MAX], needs_without[PLAN_RANKS_MAX];
    plan_run_t layers[PLAN_STAGES_MAX];
    assert_int_equal(plan_draft_bytes(&sizes, 2048, &shape.draft_bytes), STATUS_OK);
    /* Weights with an eighth more (98 MB of file, of which an embedding is the head once again), and
     * 2,048 + 7 * 1,024 + 256 tokens of 30 layers * 3 heads * (64 + 64) values of two bytes. */
    uint64_t kv = (2048 + 7 * 1024 + 256) * 30ull * 3 * 128 * 2;
    assert_in_range(shape.draft_bytes, kv + (98ull << 20), kv + (300ull << 20));
    assert_int_equal(plan_needs(&sizes, &shape, needs, layers), STATUS_OK);
    assert_int_equal(plan_needs(&sizes, &without, needs_without, layers), STATUS_OK);
    assert_int_equal(needs[0].fixed, needs_without[0].fixed + shape.draft_bytes);
    for (uint32_t rank = 1; rank < 4; rank++)
        assert_int_equal(needs[rank].fixed, needs_without[rank].fixed);
    /* Memory that was enough is not any more, and the replica gets fewer KV tokens or none. */
    uint64_t memory[4], tokens, tokens_without;
    for (uint32_t rank = 0; rank < 4; rank++)
        memory[rank] = needs[0].fixed + plan_kv_bytes(&needs[0], 5000);
    assert_int_equal(plan_fit(&sizes, &without, memory, &tokens_without), STATUS_OK);
    assert_int_equal(plan_fit(&sizes, &shape, memory, &tokens), STATUS_OK);
    assert_true(tokens <= 5000 && tokens_without > tokens);
    memory[0] = needs_without[0].fixed + plan_kv_bytes(&needs[0], 5000);
    assert_int_equal(plan_fit(&sizes, &shape, memory, &tokens), STATUS_REFUSED);
}

static void test_sizes_of_an_opened_model_are_those_of_its_tensors(void **state)
{
    (void)state;
    draft_t *draft = draft_llama();
    buffer_t bytes = {0};
    draft_write(draft, &bytes);
    model_t *model;
    assert_int_equal(model_open_bytes("tiny", bytes.data, bytes.size, &model), STATUS_OK);
    plan_sizes_t sizes;
    plan_sizes(model, &sizes);
    assert_int_equal(sizes.file_bytes, bytes.size);
    assert_int_equal(sizes.embedding_bytes, 8 * 18);
    assert_int_equal(sizes.head_values, 8 * 32 + 32);
    assert_int_equal(sizes.head_bytes, 8 * 18 + 128);
    assert_int_equal(sizes.norm_bytes, 2 * 128);
    assert_int_equal(sizes.q_values, 1024);
    assert_int_equal(sizes.kv_bytes, 2 * 16 * 18);
    assert_int_equal(sizes.output_bytes, 32 * 18);
    assert_int_equal(sizes.ffn_values, 3 * 1024);
    model_close(model);
    buffer_release(&bytes);
    draft_free(draft);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_last_stage_has_fewer_layers_because_it_has_the_head),
        cmocka_unit_test(test_stages_that_share_the_head_have_as_many_layers_each),
        cmocka_unit_test(test_a_shared_head_takes_memory_on_every_stage),
        cmocka_unit_test(test_every_stage_has_a_layer),
        cmocka_unit_test(test_more_stages_than_layers_are_refused),
        cmocka_unit_test(test_a_rank_needs_its_part_of_the_file_and_an_eighth),
        cmocka_unit_test(test_kv_tokens_are_what_the_tightest_rank_holds_in_whole_tiles),
        cmocka_unit_test(test_a_window_bounds_what_a_sequence_needs),
        cmocka_unit_test(test_too_little_memory_for_two_sequences_is_refused_with_the_numbers),
        cmocka_unit_test(test_shapes_that_no_memory_would_make_right_are_invalid),
        cmocka_unit_test(test_a_draft_model_takes_its_bytes_of_the_first_rank_alone),
        cmocka_unit_test(test_sizes_of_an_opened_model_are_those_of_its_tensors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
