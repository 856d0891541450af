/* What a step costs is learnt from steps, and rows of prompts follow from it: machines made of
 * arithmetic, whose prices the test knows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "worker/engine/step_cost.h"

typedef struct {
    double step, row, logits, decode_key, prompt_key;
} machine_t;

/* A small model on two cores, one that reads a gigabyte for each step, and one behind long texts. */
static const machine_t machines[] = {
    {2e6, 3e5, 1e5, 500, 150},
    {4e7, 9e5, 5e5, 900, 300},
    {1e6, 5e5, 1e4, 2500, 300},
};
enum { MACHINES = sizeof machines / sizeof *machines };

static double exact(const machine_t *m, const step_work_t *work)
{
    return m->step + m->row * work->rows + m->logits * work->logits +
           m->decode_key * (double)work->decode_keys + m->prompt_key * (double)work->prompt_keys;
}

static step_work_t decode(uint32_t n, uint32_t context)
{
    return (step_work_t){.rows = n, .logits = n, .decode_keys = (uint64_t)n * context};
}

static step_work_t joined(uint32_t n, uint32_t context, uint32_t rows, uint32_t before)
{
    step_work_t work = decode(n, context);
    work.rows += rows;
    work.prompt_keys = (uint64_t)rows * before;
    return work;
}

static uint32_t random_state = 1;

static uint32_t draw(uint32_t n)
{
    random_state = random_state * 1664525u + 1013904223u;
    return (random_state >> 8) % n;
}

/* Steps as a server sees them, each up to a tenth slower than it need be; every `spikes`th is
 * twenty times as slow. */
static void learn(step_cost_t *cost, const machine_t *m, uint32_t n_steps, bool prompts,
                  uint32_t spikes)
{
    for (uint32_t i = 0; i < n_steps; i++) {
        step_work_t work = decode(1 + draw(16), 50 + draw(1000));
        if (prompts && i % 3 == 0)
            work = joined(draw(16), 300, 8 + draw(200), draw(2000));
        double took = exact(m, &work) * (1 + draw(100) / 1000.0);
        if (spikes && i % spikes == spikes - 1)
            took *= 20;
        step_cost_learn(cost, &work, (uint64_t)took);
    }
}

static void check_price(const step_cost_t *cost, const machine_t *m, step_work_t work, double off)
{
    double got = step_cost_of(cost, &work) / exact(m, &work);
    if (got < 1 - off || got > 1.06 + off)
        fail_msg("%u rows, %u logits: %.2f of what they cost", work.rows, work.logits, got);
}

static void test_the_prices_of_a_machine_are_learnt_from_its_steps(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < MACHINES; i++) {
        const machine_t *m = &machines[i];
        step_cost_t cost = {0};
        assert_int_equal(step_cost_fixed_rows(&cost, 0), 6); /* 8 rows, each with its logits */
        learn(&cost, m, 200, true, 0);
        check_price(&cost, m, decode(1, 100), 0.12);
        check_price(&cost, m, decode(16, 100), 0.12);
        check_price(&cost, m, decode(8, 1000), 0.12);
        check_price(&cost, m, joined(8, 300, 60, 1500), 0.12);
        check_price(&cost, m, joined(0, 0, 512, 250), 0.25); /* more rows than it ever saw */
        double fixed = m->step / (m->row + m->logits + 300 * m->decode_key);
        assert_in_range(step_cost_fixed_rows(&cost, 300), (uint32_t)(fixed * 0.6),
                        (uint32_t)(fixed * 1.6 + 2));
    }
}

static void test_a_busy_neighbour_moves_no_price_far(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < MACHINES; i++) {
        step_cost_t cost = {0};
        learn(&cost, &machines[i], 400, true, 25);
        check_price(&cost, &machines[i], decode(8, 500), 0.25);
        check_price(&cost, &machines[i], joined(8, 300, 60, 1500), 0.25);
    }
}

static void test_what_prompts_cost_is_not_forgotten_while_none_come(void **state)
{
    (void)state;
    step_cost_t cost = {0}, long_ago = {0};
    learn(&long_ago, &machines[2], 200, true, 0);
    learn(&long_ago, &machines[2], 5000, false, 0);
    check_price(&long_ago, &machines[2], joined(8, 300, 300, 1500), 0.12);
    /* And a machine that got five times slower is another one. */
    learn(&cost, &machines[0], 200, true, 0);
    machine_t slow = machines[0];
    double *price = &slow.step;
    for (uint32_t i = 0; i < 5; i++)
        price[i] *= 5;
    learn(&cost, &slow, 300, true, 0);
    check_price(&cost, &slow, decode(8, 500), 0.15);
}

/* Without prompts there is nothing to tell a row from its logits: the first guess keeps them apart. */
static void test_what_steps_do_not_tell_apart_keeps_the_proportions_of_the_guess(void **state)
{
    (void)state;
    step_cost_t cost = {0}, guess = {0};
    step_work_t work = decode(8, 500), prompt = joined(8, 500, 40, 800);
    for (uint32_t i = 0; i < 100; i++)
        step_cost_learn(&cost, &work, 10000000);
    assert_true(step_cost_of(&cost, &work) > 9.9e6 && step_cost_of(&cost, &work) < 10.1e6);
    double learnt = step_cost_of(&cost, &prompt) / step_cost_of(&cost, &work);
    double guessed = step_cost_of(&guess, &prompt) / step_cost_of(&guess, &work);
    assert_true(learnt > 0.9 * guessed && learnt < 1.1 * guessed);
}

static void test_one_prompt_makes_a_step_half_as_long_again_at_most(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < MACHINES; i++)
        for (uint32_t n = 2; n <= 64; n *= 2)
            for (uint32_t before = 0; before <= 8000; before += 2000) {
                const machine_t *m = &machines[i];
                step_cost_t cost = {0};
                learn(&cost, m, 300, true, 0);
                step_queue_t queue = {n, 300 * n, 1, before, 1};
                uint32_t rows = step_cost_prompt_rows(&cost, &queue);
                step_work_t alone = decode(n, 300), with = joined(n, 300, rows, before + rows);
                double longer = exact(m, &with) / exact(m, &alone);
                if (rows > 4 && longer > 1.5)
                    fail_msg("%u rows beside %u: %.2f times", rows, n, longer);
                if (rows < 512 && longer < 1.25)
                    fail_msg("only %u rows beside %u: %.2f times", rows, n, longer);
            }
}

static void test_prompts_have_whole_steps_when_nobody_runs_and_more_rows_the_more_wait(void **state)
{
    (void)state;
    step_cost_t cost = {0};
    assert_int_equal(step_cost_prompt_rows(&cost, &(step_queue_t){.n_prompts = 1, .stages = 1}),
                     UINT32_MAX);
    uint32_t before = 0;
    for (uint32_t n = 1; n <= 8; n++) {
        uint32_t rows = step_cost_prompt_rows(&cost, &(step_queue_t){8, 800, n, 0, 1});
        assert_true(rows > before);
        before = rows;
    }
    assert_true(before > 400);
    /* One stream is a small price for fifteen others' first tokens. */
    assert_true(step_cost_prompt_rows(&cost, &(step_queue_t){1, 100, 15, 0, 1}) >= 512);
    /* Of two batches that go round, one has the prompt: a stream waits for both. */
    uint32_t one = step_cost_prompt_rows(&cost, &(step_queue_t){8, 0, 1, 0, 1});
    uint32_t two = step_cost_prompt_rows(&cost, &(step_queue_t){8, 0, 1, 0, 2});
    assert_in_range(two, one + 2, one + 5);
    assert_int_equal(step_cost_prompt_rows(&cost, &(step_queue_t){1, 1, 1, 8000, 1}), 4);
}

/* On a machine of known prices no step is longer than the prompts' shares together or than 30 ms. */
static void test_a_wave_of_prompts_does_not_make_whole_steps(void **state)
{
    (void)state;
    uint32_t by_time = 0;
    for (uint32_t i = 0; i < MACHINES; i++) {
        const machine_t *m = &machines[i];
        step_cost_t cost = {0};
        learn(&cost, m, 300, true, 0);
        for (uint32_t n = 2; n <= 32; n *= 2) {
            uint32_t rows = step_cost_prompt_rows(&cost, &(step_queue_t){3, 900, n, 0, 1});
            rows = rows < 512 ? rows : 512;
            step_work_t alone = decode(3, 300), with = joined(3, 300, rows, 0);
            double longer = exact(m, &with) / exact(m, &alone), ms = exact(m, &with) / 1e6;
            if (longer > 1 + 0.5 * n && ms > 36)
                fail_msg("machine %u, %u prompts: %u rows, %.1f times, %.0f ms", i, n, rows, longer, ms);
            by_time += longer > 1 + 0.5 * n;
        }
    }
    assert_true(by_time > 0); /* where 30 ms are more than the shares, they are used */
}

/* Everything takes so many times as long or as short from one step to the next. The tenth step of a wave
 * then takes again what it may. */
static void test_a_wave_keeps_to_its_time_soon_after_the_machine_changed(void **state)
{
    (void)state;
    for (double pace = 0.4; pace < 3; pace *= 6) {
        const machine_t *m = &machines[0];
        step_cost_t cost = {0};
        double ms = 0;
        learn(&cost, m, 300, true, 0);
        for (uint32_t i = 0; i < 10; i++) {
            uint32_t rows = step_cost_prompt_rows(&cost, &(step_queue_t){2, 600, 8, 0, 1});
            step_work_t work = joined(2, 300, rows, 100);
            ms = exact(m, &work) * pace / 1e6;
            step_cost_learn(&cost, &work, (uint64_t)(ms * 1e6));
        }
        if (ms < 24 || ms > 36)
            fail_msg("%.1f times as long: steps of %.1f ms", pace, ms);
    }
}

static void test_a_pace_that_has_gone_is_not_counted_twice(void **state)
{
    (void)state;
    const machine_t *m = &machines[0];
    step_cost_t cost = {0};
    learn(&cost, m, 300, true, 0);
    for (uint32_t i = 0; i < 10; i++) { /* a wave on a machine that is faster for a while */
        uint32_t rows = step_cost_prompt_rows(&cost, &(step_queue_t){2, 600, 8, 0, 1});
        step_work_t work = joined(2, 300, rows, 100);
        step_cost_learn(&cost, &work, (uint64_t)(exact(m, &work) * 0.4));
    }
    for (uint32_t i = 0; i < 300; i++) { /* its streams go on alone, as slow as ever */
        step_work_t work = {2, 2, 600, 0};
        step_cost_learn(&cost, &work, (uint64_t)exact(m, &work));
    }
    uint32_t rows = step_cost_prompt_rows(&cost, &(step_queue_t){2, 600, 8, 0, 1});
    step_work_t work = joined(2, 300, rows, 100);
    double ms = exact(m, &work) / 1e6;
    if (ms > 50)
        fail_msg("the first step of the next wave takes %.1f ms", ms);
}

/* Streams whose steps are long because of their guesses are held up by half of that. */
static void test_guesses_make_a_step_longer_and_leave_more_to_one_prompt_and_less_to_a_wave(void **state)
{
    (void)state;
    step_cost_t cost = {0};
    learn(&cost, &machines[0], 300, true, 0);
    step_queue_t one = {8, 2400, 1, 0, 1}, wave = {2, 600, 14, 0, 1};
    uint32_t without = step_cost_prompt_rows(&cost, &one);
    uint32_t of_wave = step_cost_prompt_rows(&cost, &wave);
    one.n_guesses = 40;
    wave.n_guesses = 14;
    uint32_t with = step_cost_prompt_rows(&cost, &one);
    step_work_t alone = decode(48, 300), joins = joined(48, 300, with, with);
    double longer = exact(&machines[0], &joins) / exact(&machines[0], &alone);
    if (with < 2 * without || longer > 1.5 || longer < 1.25)
        fail_msg("%u rows without guesses, %u with 40: %.2f times", without, with, longer);
    if (step_cost_prompt_rows(&cost, &wave) >= of_wave)
        fail_msg("%u rows of a wave beside guesses as without", of_wave);
}

/* Eight streams of guesses, whose texts grow, and a prompt of 4096 tokens on a machine with a
 * neighbour that makes every tenth step up to three times as long: keys of the streams and of the
 * prompt grow together, and hardly a step tells the one from the other. Returns how many steps it
 * took. */
static uint32_t join(const machine_t *m, double *longest_out, double *mean_out)
{
    enum { STREAMS = 8, ROWS = 72 };
    step_cost_t cost = {0};
    uint32_t before = 0, n_steps = 0, context = 64;
    double sum = 0;
    for (*longest_out = 0; before < 4096 && n_steps < 4096; context += n_steps > 0 ? 7 : 1) {
        bool guessing = context > 300, joins = context > 400;
        uint32_t n = guessing ? STREAMS + STREAMS * draw(9) : STREAMS;
        step_work_t alone = decode(joins ? ROWS : n, context), work = alone;
        if (joins) {
            step_queue_t queue = {STREAMS, STREAMS * context, 1, before, 1, ROWS - STREAMS};
            uint32_t rows = step_cost_prompt_rows(&cost, &queue);
            work = joined(ROWS, context, rows, before + rows / 2);
            double longer = exact(m, &work) / exact(m, &alone);
            *longest_out = longer > *longest_out ? longer : *longest_out;
            sum += longer;
            before += rows;
            n_steps++;
        }
        double slow = draw(10) == 0 ? 1 + draw(200) / 100.0 : 1 + draw(100) / 1000.0;
        step_cost_learn(&cost, &work, (uint64_t)(exact(m, &work) * slow));
    }
    *mean_out = sum / n_steps;
    return n_steps;
}

static void test_a_long_prompt_goes_on_and_holds_nobody_up_beside_a_neighbour(void **state)
{
    (void)state;
    static const machine_t small = {2.5e6, 2e5, 1e4, 130, 100};
    for (uint32_t i = 0; i <= MACHINES; i++) {
        double longest, mean;
        uint32_t n_steps = join(i < MACHINES ? &machines[i] : &small, &longest, &mean);
        if (longest > 1.65 || mean > 1.55 || mean < 1.25)
            fail_msg("machine %u: %u steps, %.2f times as long at most, %.2f in the mean", i,
                     n_steps, longest, mean);
    }
}

static void test_a_prompt_alone_goes_through_stages_in_pieces_of_the_best_size(void **state)
{
    (void)state;
    step_cost_t cost = {0};
    assert_int_equal(step_cost_piece_rows(&cost, 4096, 1), UINT32_MAX);
    for (uint32_t stages = 2; stages <= 4; stages++) {
        uint32_t rows = step_cost_piece_rows(&cost, 4096, stages);
        double took[3];
        for (uint32_t i = 0; i < 3; i++) {
            double piece = rows * (0.7 + 0.3 * i);
            took[i] = (4096 / piece + stages - 1) * (piece + 8);
        }
        assert_true(took[1] < took[0] && took[1] < took[2]);
    }
    assert_int_equal(step_cost_piece_rows(&cost, 20, 2), 32);
    assert_int_equal(step_cost_piece_rows(&cost, 0, 2), 32);
    /* No small one is left over, and steps that are dear beside their rows change little. */
    assert_int_equal(step_cost_piece_rows(&cost, 140, 2), 35);
    for (int i = 0; i < 200; i++) {
        step_cost_learn(&cost, &(step_work_t){.rows = 1 + (uint32_t)i % 4}, 10000000);
        step_cost_learn(&cost, &(step_work_t){.rows = 512, .prompt_keys = 512}, 20000000);
    }
    assert_true(step_cost_fixed_rows(&cost, 0) > 20);
    assert_in_range(step_cost_piece_rows(&cost, 4096, 2), 32, 190);
}

static void test_work_is_counted_by_sequences_that_decode_and_those_that_do_not(void **state)
{
    (void)state;
    step_entry_t entries[] = {
        {.position = 99, .n_tokens = 1, .sample = true},               /* 100 keys */
        {.position = 10, .n_tokens = 3, .sample = true, .n_draft = 2}, /* 11 + 12 + 13 */
        {.position = 16, .n_tokens = 4, .sample = true},               /* 17 + 18 + 19 + 20 */
        {.position = 0, .n_tokens = 10},                               /* 55 */
    };
    step_plan_t plan = {.n_entries = 4, .entries = entries, .n_tokens = 18, .n_logits = 5};
    step_work_t work;
    step_cost_work(&plan, &work);
    assert_int_equal(work.rows, 18);
    assert_int_equal(work.logits, 5);
    assert_int_equal(work.decode_keys, 136);
    assert_int_equal(work.prompt_keys, 129);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_prices_of_a_machine_are_learnt_from_its_steps),
        cmocka_unit_test(test_a_busy_neighbour_moves_no_price_far),
        cmocka_unit_test(test_what_prompts_cost_is_not_forgotten_while_none_come),
        cmocka_unit_test(test_what_steps_do_not_tell_apart_keeps_the_proportions_of_the_guess),
        cmocka_unit_test(test_one_prompt_makes_a_step_half_as_long_again_at_most),
        cmocka_unit_test(
            test_prompts_have_whole_steps_when_nobody_runs_and_more_rows_the_more_wait),
        cmocka_unit_test(test_a_wave_of_prompts_does_not_make_whole_steps),
        cmocka_unit_test(test_a_wave_keeps_to_its_time_soon_after_the_machine_changed),
        cmocka_unit_test(test_a_pace_that_has_gone_is_not_counted_twice),
        cmocka_unit_test(
            test_guesses_make_a_step_longer_and_leave_more_to_one_prompt_and_less_to_a_wave),
        cmocka_unit_test(test_a_long_prompt_goes_on_and_holds_nobody_up_beside_a_neighbour),
        cmocka_unit_test(test_a_prompt_alone_goes_through_stages_in_pieces_of_the_best_size),
        cmocka_unit_test(test_work_is_counted_by_sequences_that_decode_and_those_that_do_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
