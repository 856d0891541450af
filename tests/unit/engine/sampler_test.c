/* The sampler against the exact distribution, its own definition of ties and order, and its state
 * rebuilt from ids. libm is the outside reference for exp and log. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "worker/engine/sampler.h"

enum { VOCAB = 3000 }; /* three blocks, the last one short */

static uint32_t draw_one(sampler_t *sampler, const float *logits, const sampling_t *p,
                         uint32_t position)
{
    sampler_state_t state = {0};
    sampled_t out;
    assert_int_equal(sampler_draw(sampler, logits, p, &state, position, 0, &out), STATUS_OK);
    return out.id;
}

static float random_logit(uint32_t i, uint32_t salt)
{
    uint32_t counter[4] = {i, salt, 0, 0}, out[4];
    philox4x32(counter, 7, out);
    return (float)(out[0] >> 8) / 16777216.0f * 8.0f - 4.0f;
}

static void fill_logits(float *logits, uint32_t salt)
{
    for (uint32_t i = 0; i < VOCAB; i++)
        logits[i] = random_logit(i, salt);
}

/* The counters and results published with the generator. */
static void test_philox_gives_the_published_numbers(void **state)
{
    (void)state;
    uint32_t out[4], zero[4] = {0}, ones[4] = {~0u, ~0u, ~0u, ~0u};
    uint32_t pi[4] = {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344};
    philox4x32(zero, 0, out);
    assert_int_equal(out[0], 0x6627e8d5);
    assert_int_equal(out[3], 0x9b00dbd8);
    philox4x32(ones, ~0ull, out);
    assert_int_equal(out[0], 0x408f276d);
    philox4x32(pi, 0x299f31d0a4093822ull, out);
    assert_int_equal(out[0], 0xd16cfe09);
    assert_int_equal(out[1], 0x94fdcceb);
}

static void test_exp_and_log_are_those_of_mathematics(void **state)
{
    (void)state;
    for (int i = 0; i < 20000; i++) {
        double x = -(double)i * 0.03;
        double wanted = exp(x), got = sampler_exp(x);
        assert_true(fabs(got - wanted) <= 4e-16 * wanted);
        double y = exp((double)(i - 10000) * 0.01);
        assert_true(fabs(sampler_log(y) - log(y)) <= 4e-16 * (1 + fabs(log(y))));
    }
    assert_true(sampler_exp(0) == 1.0);
    assert_true(sampler_exp(-1000) == 0.0);
    assert_true(sampler_exp(-INFINITY) == 0.0);
    assert_true(sampler_log(1.0) == 0.0);
}

static void test_greedy_takes_the_highest_and_on_ties_the_lower_id(void **state)
{
    (void)state;
    float logits[VOCAB];
    sampler_t *sampler = sampler_new(VOCAB);
    fill_logits(logits, 1);
    logits[2500] = logits[1700] = 9.0f;
    assert_int_equal(draw_one(sampler, logits, &sampling_default, 3), 1700);
    sampler_free(sampler);
}

static void test_top_k_1_is_greedy_at_any_temperature(void **state)
{
    (void)state;
    float logits[VOCAB];
    sampler_t *sampler = sampler_new(VOCAB);
    sampling_t p = sampling_default;
    p.temperature = 1.7f;
    p.top_k = 1;
    for (uint32_t salt = 0; salt < 50; salt++) {
        fill_logits(logits, salt);
        logits[40] = logits[2100] = 4.5f;
        assert_int_equal(draw_one(sampler, logits, &p, salt), 40);
    }
    sampler_free(sampler);
}

/* Chi-squared over the tokens, seeds fixed: the limit is 6 standard deviations above the mean. */
static void compare_with_exact(const sampling_t *p, const double *exact, uint32_t n_draws)
{
    float logits[VOCAB];
    sampler_t *sampler = sampler_new(VOCAB);
    fill_logits(logits, 2);
    uint32_t *count = calloc(VOCAB, sizeof *count);
    double chi = 0, rest_expected = 0;
    uint32_t rest = 0, freedom = 0;
    for (uint32_t i = 0; i < n_draws; i++)
        count[draw_one(sampler, logits, p, i)]++;
    for (uint32_t i = 0; i < VOCAB; i++) {
        double expected = exact[i] * n_draws;
        if (exact[i] == 0)
            assert_int_equal(count[i], 0);
        if (expected < 5) {
            rest_expected += expected;
            rest += count[i];
            continue;
        }
        chi += (count[i] - expected) * (count[i] - expected) / expected;
        freedom++;
    }
    if (rest_expected >= 5) {
        chi += (rest - rest_expected) * (rest - rest_expected) / rest_expected;
        freedom++;
    }
    assert_true(freedom > 3);
    assert_true(chi < freedom + 6 * sqrt(2.0 * freedom));
    free(count);
    sampler_free(sampler);
}

static int descending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* The distribution written down again with libm and a full sort. */
static void exact_distribution(const sampling_t *p, double *exact)
{
    float logits[VOCAB];
    double sorted[VOCAB], total = 0, kept = 0, cut = 0;
    fill_logits(logits, 2);
    for (uint32_t i = 0; i < VOCAB; i++)
        sorted[i] = exact[i] = exp((double)logits[i] / (double)p->temperature);
    qsort(sorted, VOCAB, sizeof *sorted, descending);
    uint32_t most = p->top_k ? p->top_k : VOCAB;
    for (uint32_t i = 0; i < most; i++)
        total += sorted[i];
    for (uint32_t i = 0; i < most && kept < (double)p->top_p * total; i++) {
        kept += sorted[i];
        cut = sorted[i];
    }
    if (cut < (double)p->min_p * sorted[0])
        cut = (double)p->min_p * sorted[0];
    kept = 0;
    for (uint32_t i = 0; i < VOCAB; i++) {
        exact[i] = exact[i] >= cut ? exact[i] : 0;
        kept += exact[i];
    }
    for (uint32_t i = 0; i < VOCAB; i++)
        exact[i] /= kept;
}

static void test_draws_follow_the_exact_distribution(void **state)
{
    (void)state;
    double exact[VOCAB];
    sampling_t p = sampling_default;
    p.temperature = 0.6f;
    p.seed = 11;
    exact_distribution(&p, exact);
    compare_with_exact(&p, exact, 6000);
    p.top_k = 40;
    exact_distribution(&p, exact);
    compare_with_exact(&p, exact, 6000);
    p.top_p = 0.7f;
    exact_distribution(&p, exact);
    compare_with_exact(&p, exact, 6000);
    p.top_k = 0;
    p.top_p = 0.3f;
    exact_distribution(&p, exact);
    compare_with_exact(&p, exact, 6000);
    p.top_p = 1;
    p.min_p = 0.2f;
    exact_distribution(&p, exact);
    compare_with_exact(&p, exact, 6000);
}

static void test_a_draw_depends_on_seed_position_and_choice_alone(void **state)
{
    (void)state;
    float logits[VOCAB];
    sampler_t *a = sampler_new(VOCAB), *b = sampler_new(VOCAB);
    sampler_state_t none = {0};
    sampled_t x, y;
    sampling_t p = sampling_default;
    p.temperature = 1;
    p.seed = 5;
    fill_logits(logits, 3);
    uint32_t differ_choice = 0, differ_seed = 0;
    for (uint32_t i = 0; i < 50; i++) {
        assert_int_equal(sampler_draw(a, logits, &p, &none, i, 0, &x), STATUS_OK);
        /* In another order, after other draws. */
        assert_int_equal(sampler_draw(b, logits, &p, &none, 49 - i, 1, &y), STATUS_OK);
        assert_int_equal(sampler_draw(b, logits, &p, &none, i, 0, &y), STATUS_OK);
        assert_int_equal(x.id, y.id);
        assert_int_equal(sampler_draw(b, logits, &p, &none, i, 1, &y), STATUS_OK);
        differ_choice += x.id != y.id;
        sampling_t q = p;
        q.seed = 5 | 1ull << 40;
        assert_int_equal(sampler_draw(b, logits, &q, &none, i, 0, &y), STATUS_OK);
        differ_seed += x.id != y.id;
    }
    assert_true(differ_choice > 40 && differ_seed > 40);
    sampler_free(a);
    sampler_free(b);
}

static void test_the_state_replayed_from_ids_is_the_live_one(void **state)
{
    (void)state;
    float logits[VOCAB];
    sampler_t *sampler = sampler_new(VOCAB);
    sampling_t p = sampling_default;
    p.temperature = 0.9f;
    p.repetition_penalty = 1.3f;
    p.presence_penalty = 0.5f;
    p.frequency_penalty = 0.7f;
    p.seed = 99;
    uint32_t ids[120] = {5, 6, 7, 5, 5, 2999, 0, 1, 2, 3};
    sampler_state_t live = {0};
    for (uint32_t i = 0; i < 10; i++)
        sampler_state_add(&live, ids[i], false);
    for (uint32_t i = 10; i < 120; i++) {
        fill_logits(logits, i % 3);
        sampled_t a, b;
        assert_int_equal(sampler_draw(sampler, logits, &p, &live, i, 0, &a), STATUS_OK);
        sampler_state_t replay = {0};
        for (uint32_t k = 0; k < i; k++)
            sampler_state_add(&replay, ids[k], k >= 10);
        assert_true(sampler_state_digest(&replay) == sampler_state_digest(&live));
        assert_int_equal(sampler_draw(sampler, logits, &p, &replay, i, 0, &b), STATUS_OK);
        assert_int_equal(a.id, b.id);
        sampler_state_release(&replay);
        ids[i] = a.id;
        sampler_state_add(&live, a.id, true);
    }
    sampler_state_release(&live);
    sampler_free(sampler);
}

static void test_penalties_and_bias_change_the_logits_as_written(void **state)
{
    (void)state;
    float logits[4] = {2.0f, -1.0f, 1.9f, 0.0f};
    sampler_t *sampler = sampler_new(4);
    sampler_state_t counts = {0};
    sampled_t out;
    sampler_state_add(&counts, 0, false);
    /* Positive logits are divided, so 0 falls to 1.0 and 2 wins. */
    sampling_t p = sampling_default;
    p.repetition_penalty = 2.0f;
    assert_int_equal(sampler_draw(sampler, logits, &p, &counts, 1, 0, &out), STATUS_OK);
    assert_int_equal(out.id, 2);
    /* Presence and frequency count produced ids only. */
    p = sampling_default;
    p.presence_penalty = 2.0f;
    assert_int_equal(sampler_draw(sampler, logits, &p, &counts, 1, 0, &out), STATUS_OK);
    assert_int_equal(out.id, 0);
    sampler_state_add(&counts, 0, true);
    assert_int_equal(sampler_draw(sampler, logits, &p, &counts, 2, 0, &out), STATUS_OK);
    assert_int_equal(out.id, 2);
    p = sampling_default;
    p.frequency_penalty = 0.04f;
    assert_int_equal(sampler_draw(sampler, logits, &p, &counts, 2, 0, &out), STATUS_OK);
    assert_int_equal(out.id, 0);
    for (int i = 0; i < 3; i++)
        sampler_state_add(&counts, 0, true);
    assert_int_equal(sampler_draw(sampler, logits, &p, &counts, 5, 0, &out), STATUS_OK);
    assert_int_equal(out.id, 2);
    sampling_bias_t bias = {.id = 1, .bias = 100};
    p = sampling_default;
    p.n_bias = 1;
    p.bias = &bias;
    p.want_logprobs = true;
    p.n_top = 3;
    assert_int_equal(sampler_draw(sampler, logits, &p, &counts, 5, 0, &out), STATUS_OK);
    assert_int_equal(out.id, 1);
    /* Log-probabilities are the model's own, before all of that. */
    double sum = exp(2.0) + exp(-1.0) + exp((double)1.9f) + 1;
    assert_true(fabs((double)out.logprob - (-1.0 - log(sum))) < 1e-6);
    assert_int_equal(out.n_top, 3);
    assert_int_equal(out.top[0].id, 0);
    assert_int_equal(out.top[1].id, 2);
    assert_int_equal(out.top[2].id, 3);
    assert_true(fabs(sampler_logprob(logits, 4, 2) - ((double)1.9f - log(sum))) < 1e-12);
    sampler_state_release(&counts);
    sampler_free(sampler);
}

static void test_logits_that_are_not_finite_are_an_error(void **state)
{
    (void)state;
    float logits[VOCAB];
    sampler_t *sampler = sampler_new(VOCAB);
    sampler_state_t none = {0};
    sampled_t out;
    fill_logits(logits, 1);
    logits[77] = NAN;
    assert_int_equal(sampler_draw(sampler, logits, &sampling_default, &none, 1, 0, &out),
                     STATUS_NUMERIC);
    logits[77] = INFINITY;
    assert_int_equal(sampler_draw(sampler, logits, &sampling_default, &none, 1, 0, &out),
                     STATUS_NUMERIC);
    logits[77] = -INFINITY; /* a token that cannot come is fine */
    assert_int_equal(sampler_draw(sampler, logits, &sampling_default, &none, 1, 0, &out),
                     STATUS_OK);
    sampler_free(sampler);
}

static void test_parameters_out_of_range_are_refused_by_name(void **state)
{
    (void)state;
    struct {
        sampling_t p;
        const char *name;
    } cases[] = {
        {sampling_default, "temperature"}, {sampling_default, "top_p"},
        {sampling_default, "min_p"},       {sampling_default, "top_k"},
        {sampling_default, "repetition"},  {sampling_default, "logprobs"},
    };
    cases[0].p.temperature = NAN;
    cases[1].p.top_p = 0;
    cases[2].p.min_p = 1.5f;
    cases[3].p.top_k = 51;
    cases[4].p.repetition_penalty = -1;
    cases[5].p.n_top = 21;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(sampling_check(&cases[i].p, 50), STATUS_INVALID);
        assert_non_null(strstr(status_text(), cases[i].name));
    }
    assert_int_equal(sampling_check(&sampling_default, 50), STATUS_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_gives_the_published_numbers),
        cmocka_unit_test(test_exp_and_log_are_those_of_mathematics),
        cmocka_unit_test(test_greedy_takes_the_highest_and_on_ties_the_lower_id),
        cmocka_unit_test(test_top_k_1_is_greedy_at_any_temperature),
        cmocka_unit_test(test_draws_follow_the_exact_distribution),
        cmocka_unit_test(test_a_draw_depends_on_seed_position_and_choice_alone),
        cmocka_unit_test(test_the_state_replayed_from_ids_is_the_live_one),
        cmocka_unit_test(test_penalties_and_bias_change_the_logits_as_written),
        cmocka_unit_test(test_logits_that_are_not_finite_are_an_error),
        cmocka_unit_test(test_parameters_out_of_range_are_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
