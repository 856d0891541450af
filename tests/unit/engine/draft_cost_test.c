/* Whether a draft model's guesses pay, on machines whose prices the test knows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "worker/engine/lookup.h"
#include "worker/engine/draft_cost.h"

/* A machine on which a step is mostly reading weights; the draft model has a part of them. */
static double price(const step_work_t *work, double part)
{
    return part * (8e6 + 5e5 * work->rows + 2e5 * work->logits + 300 * (double)work->decode_keys +
                   100 * (double)work->prompt_keys);
}

static step_work_t decode(uint32_t n)
{
    return (step_work_t){.rows = n, .logits = n, .decode_keys = n * 300};
}

static step_work_t prompt(uint32_t n)
{
    return (step_work_t){.rows = n, .logits = 1, .prompt_keys = (uint64_t)n * n / 2};
}

static void learn(draft_cost_t *cost, step_cost_t *target, double part)
{
    for (uint32_t i = 0; i < 200; i++) {
        step_work_t work = i % 10 ? decode(1 + i % 8) : prompt(64 + i);
        step_cost_learn(target, &work, (uint64_t)price(&work, 1));
        draft_cost_draft_took(cost, &work, (uint64_t)price(&work, part));
    }
}

static draft_case_t one(double rate)
{
    return (draft_case_t){.rate = rate, .n_rows = 1, .keys = 300, .stages = 1, .behind = 2,
                          .context = 300, .tokens_left = 200, .max = DRAFT_MAX};
}

static void test_a_cheap_draft_model_that_is_right_is_asked_for_more(void **state)
{
    (void)state;
    draft_cost_t cost = {0};
    step_cost_t target = {0};
    draft_case_t c = one(0.9);
    assert_int_equal(draft_cost_length(&cost, &target, &c), 0); /* no step was seen */
    learn(&cost, &target, 0.05);
    uint32_t at_90 = draft_cost_length(&cost, &target, &c);
    c.rate = 0.7;
    uint32_t at_70 = draft_cost_length(&cost, &target, &c);
    assert_in_range(at_70, 2, at_90 - 1);
    assert_in_range(at_90, 3, DRAFT_MAX);
    c.rate = 0.05;
    assert_int_equal(draft_cost_length(&cost, &target, &c), 0);
    c.rate = 0.9;
    c.max = 2;
    assert_int_equal(draft_cost_length(&cost, &target, &c), 2);
}

static void test_a_draft_model_as_slow_as_the_model_is_never_asked(void **state)
{
    (void)state;
    draft_cost_t cost = {0};
    step_cost_t target = {0};
    draft_case_t c = one(1);
    learn(&cost, &target, 1);
    assert_int_equal(draft_cost_length(&cost, &target, &c), 0);
    /* While one token is on its way, the other stages stand idle, and all of them cost. */
    c.stages = 4;
    assert_true(draft_cost_length(&cost, &target, &c) > 0);
}

static void test_a_large_batch_hides_what_guesses_would_save(void **state)
{
    (void)state;
    draft_cost_t cost = {0};
    step_cost_t target = {0};
    learn(&cost, &target, 0.1);
    draft_case_t c = one(0.7);
    uint32_t alone = draft_cost_length(&cost, &target, &c);
    c.n_rows = 8;
    c.keys = 2400;
    uint32_t of_eight = draft_cost_length(&cost, &target, &c);
    c.n_rows = 64;
    c.keys = 19200;
    assert_true(alone > of_eight);
    assert_int_equal(draft_cost_length(&cost, &target, &c), 0);
}

static void test_a_long_prompt_is_not_seen_for_a_short_answer(void **state)
{
    (void)state;
    draft_cost_t cost = {0};
    step_cost_t target = {0};
    learn(&cost, &target, 0.1);
    draft_case_t c = one(0.9);
    c.behind = c.context = 4000;
    assert_true(draft_cost_length(&cost, &target, &c) > 0);
    c.tokens_left = 4;
    assert_int_equal(draft_cost_length(&cost, &target, &c), 0);
}

/* A world in which guesses are always wrong: what they cost beside what the text costs. */
static double lost(uint32_t n_tokens, draft_cost_t *cost, const step_cost_t *target)
{
    double text = 0, more = 0, rate = draft_cost_first_rate(cost);
    for (uint32_t i = 0; i < n_tokens; i++) {
        draft_case_t c = one(rate);
        uint32_t n = draft_cost_length(cost, target, &c);
        step_work_t without = decode(1), with = decode(1 + n), step = decode(1);
        text += price(&without, 1);
        more += price(&with, 1) - price(&without, 1) + n * price(&step, 0.1);
        draft_cost_held(cost, &rate, n, 0);
        draft_cost_step_took(cost, (uint64_t)price(&with, 1));
    }
    return more / text;
}

static void test_one_that_is_always_wrong_costs_little(void **state)
{
    (void)state;
    draft_cost_t cost = {0};
    step_cost_t target = {0};
    learn(&cost, &target, 0.1);
    double first = lost(200, &cost, &target), later = lost(2000, &cost, &target);
    print_message("%.1f %% of the first 200 tokens, %.1f %% of those after\n", 100 * first,
                  100 * later);
    assert_true(first < 0.15);
    assert_true(later > 0 && later < 0.04);
}

static void test_one_that_becomes_right_is_noticed(void **state)
{
    (void)state;
    draft_cost_t cost = {0};
    step_cost_t target = {0};
    learn(&cost, &target, 0.1);
    (void)lost(500, &cost, &target);
    double rate = draft_cost_first_rate(&cost);
    uint32_t most = 0;
    for (uint32_t i = 0; i < 500; i++) {
        draft_case_t c = one(rate);
        uint32_t n = draft_cost_length(&cost, &target, &c);
        step_work_t with = decode(1 + n);
        draft_cost_held(&cost, &rate, n, n);
        draft_cost_step_took(&cost, (uint64_t)price(&with, 1));
        most = n > most ? n : most;
    }
    assert_true(rate > 0.9 && most > 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_cheap_draft_model_that_is_right_is_asked_for_more),
        cmocka_unit_test(test_a_draft_model_as_slow_as_the_model_is_never_asked),
        cmocka_unit_test(test_a_large_batch_hides_what_guesses_would_save),
        cmocka_unit_test(test_a_long_prompt_is_not_seen_for_a_short_answer),
        cmocka_unit_test(test_one_that_is_always_wrong_costs_little),
        cmocka_unit_test(test_one_that_becomes_right_is_noticed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
