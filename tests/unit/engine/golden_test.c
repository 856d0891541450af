/* One rank against the world: small models recorded with Hugging Face transformers, every position.
 * In f32 mode within the tolerance that was recorded; in native mode within the recorded noise of
 * the same arithmetic (8-bit activations in blocks of 32, or BF16), of which a maximum is one draw:
 * Q8_0's is a twelfth above its row (over 64 times as many positions it is below, noise_test.c). */
#include <math.h>
#include <stdio.h>

#include "recorded.h"

static double number_at(const json_t *golden, const char *row)
{
    return json_number_value(
        json_object_get(json_object_get(json_object_get(golden, "noise"), row), "max_abs"));
}

static void check_f32(const char *name)
{
    recorded_t recorded;
    eval_result_t result;
    recorded_open(name, &recorded);
    eval_args_t args = {.model = recorded.model,
                        .ids = recorded.ids,
                        .threads = 1,
                        .greedy = RECORDED_GREEDY,
                        .f32 = true};
    eval_run(&args, &result);
    double tolerance = recorded.tolerance;
    assert_true(recorded_worst_logit(&recorded, &result) <= tolerance);
    for (uint32_t i = 0; i < RECORDED_PROMPTS; i++) {
        const json_t *prompt = json_array_get(json_object_get(recorded.golden, "prompts"), i);
        const json_t *greedy = json_object_get(prompt, "greedy_ids");
        /* The reference's own margin is larger than the tolerance, so its text has to be ours. */
        assert_true(json_number_value(json_object_get(prompt, "min_gap")) > 2 * tolerance);
        for (uint32_t k = 0; k < RECORDED_GREEDY; k++)
            assert_int_equal(result.prompts[i].greedy[k],
                             json_integer_value(json_array_get(greedy, k)));
        double nll = json_number_value(json_object_get(prompt, "prompt_nll"));
        assert_true(fabs(result.prompts[i].sum_logprob + nll) <=
                    1e-3 + tolerance * result.prompts[i].rows);
    }
    eval_release(&result);
    recorded_close(&recorded);
}

static void check_native(const char *name, const char *row, double factor)
{
    recorded_t recorded;
    eval_result_t result;
    recorded_open(name, &recorded);
    eval_args_t args = {.model = recorded.model, .ids = recorded.ids, .threads = 1};
    eval_run(&args, &result);
    double noise = number_at(recorded.golden, row);
    double worst = recorded_worst_logit(&recorded, &result);
    print_message("%s native: %.3f; recorded %s %.3f\n", name, worst, row, noise);
    assert_true(noise > 0);
    assert_true(worst <= factor * noise);
    eval_release(&result);
    recorded_close(&recorded);
}

static void test_f32_weights_give_the_recorded_logits_and_text(void **state)
{
    (void)state;
    check_f32("gguf-llama-f32");
}

static void test_q4_0_weights_give_the_recorded_logits_and_text(void **state)
{
    (void)state;
    check_f32("gguf-llama-q4_0");
}

static void test_q8_0_weights_give_the_recorded_logits_and_text(void **state)
{
    (void)state;
    check_f32("gguf-llama-q8_0");
}

/* Tied embeddings and the frequency factors of Llama 3. */
static void test_bf16_weights_with_rope_factors_give_the_recorded_logits_and_text(void **state)
{
    (void)state;
    check_f32("gguf-llama3-rope-bf16");
}

static void test_native_mode_stays_within_the_noise_of_its_arithmetic(void **state)
{
    (void)state;
    check_native("gguf-llama-f32", "bf16", 1);
    check_native("gguf-llama3-rope-bf16", "bf16", 1);
    check_native("gguf-llama-q4_0", "act_q8_block32", 1);
    check_native("gguf-llama-q8_0", "act_q8_block32", 1.08);
}

/* Nothing in a step looks at a value before the queue has made it. */
static void test_a_late_queue_gives_the_same_bytes(void **state)
{
    (void)state;
    recorded_t recorded;
    eval_result_t now, late;
    recorded_open("gguf-llama-q4_0", &recorded);
    eval_args_t args = {
        .model = recorded.model, .ids = recorded.ids, .threads = 1, .greedy = 8, .chunk = 16};
    eval_run(&args, &now);
    args.late_queue = true;
    eval_run(&args, &late);
    assert_true(eval_hash(&now) == eval_hash(&late));
    assert_true(eval_hash_rows(&now) == eval_hash_rows(&late));
    args.tp = 2;
    args.stages = 2;
    eval_release(&late);
    eval_run(&args, &late);
    assert_true(eval_hash_rows(&now) == eval_hash_rows(&late));
    eval_release(&now);
    eval_release(&late);
    recorded_close(&recorded);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32_weights_give_the_recorded_logits_and_text),
        cmocka_unit_test(test_q4_0_weights_give_the_recorded_logits_and_text),
        cmocka_unit_test(test_q8_0_weights_give_the_recorded_logits_and_text),
        cmocka_unit_test(test_bf16_weights_with_rope_factors_give_the_recorded_logits_and_text),
        cmocka_unit_test(test_native_mode_stays_within_the_noise_of_its_arithmetic),
        cmocka_unit_test(test_a_late_queue_gives_the_same_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
