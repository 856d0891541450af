/* Guessed tokens, by lookup and by a draft model: the guesses themselves, and that a schedule with them
 * gives every sequence its text, in fewer steps where texts repeat themselves or the draft model is
 * right, and in the same rows where they do not. */
#include "scheduler_rig.h"

#include <stdio.h>
#include <string.h>

#include "worker/engine/lookup.h"

/* ---- the guesses ---- */

static void test_a_text_is_guessed_where_its_last_three_ids_stood_before(void **state)
{
    (void)state;
    uint32_t ids[32] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2};
    lookup_t draft;
    lookup_start(&draft, 32, ids, 11);
    assert_int_equal(draft.source, 0); /* two ids agree: too few */
    ids[11] = 3;
    lookup_learn(&draft, ids, 12);
    lookup_write(&draft, ids, 12, 9);
    const uint32_t wanted[] = {4, 5, 6, 7, 8, 9, 1, 2, 3};
    assert_memory_equal(ids + 12, wanted, sizeof wanted);
    /* A loop shorter than the guess goes on in itself. */
    const uint32_t loop[] = {10, 11, 12, 10, 11, 12};
    memcpy(ids + 12, loop, sizeof loop);
    assert_true(lookup_learn(&draft, ids, 18));
    lookup_write(&draft, ids, 18, 7);
    const uint32_t goes_on[] = {10, 11, 12, 10, 11, 12, 10};
    assert_memory_equal(ids + 18, goes_on, sizeof goes_on);
    lookup_release(&draft);
}

static void test_guesses_begin_when_they_were_right_and_end_at_once_when_not(void **state)
{
    (void)state;
    uint32_t ids[256];
    lookup_t draft;
    for (uint32_t i = 0; i < 256; i++)
        ids[i] = i % 10;
    lookup_start(&draft, 256, ids, 100);
    /* The prompt repeats itself; whether the answer does is not known yet. */
    assert_int_equal(lookup_length(&draft, 1, 8, DRAFT_MAX), 0);
    lookup_learn(&draft, ids, 101);
    assert_int_equal(lookup_length(&draft, 1, 8, DRAFT_MAX), 1);
    lookup_learn(&draft, ids, 106);
    /* Rows that others fill make a further one dearer, and a step that costs only its rows has none
     * to give away. */
    assert_in_range(lookup_length(&draft, 4, 8, DRAFT_MAX), 2,
                    lookup_length(&draft, 1, 8, DRAFT_MAX) - 1);
    assert_int_equal(lookup_length(&draft, 1, 0, DRAFT_MAX), 0);
    lookup_learn(&draft, ids, 130);
    assert_int_equal(lookup_length(&draft, 1, 8, DRAFT_MAX), DRAFT_MAX);
    assert_int_equal(lookup_length(&draft, 1, 8, 3), 3);
    ids[130] = 99;
    lookup_learn(&draft, ids, 131);
    assert_int_equal(lookup_length(&draft, 1, 8, DRAFT_MAX), 0); /* nothing to go by */
    ids[131] = 7, ids[132] = 8, ids[133] = 9;
    lookup_learn(&draft, ids, 134);
    assert_int_not_equal(draft.source, 0); /* guessed again, but seen through sceptical eyes */
    assert_int_equal(lookup_length(&draft, 8, 8, DRAFT_MAX), 0);
    lookup_release(&draft);
}

static void test_a_step_catches_up_with_few_ids_at_a_time(void **state)
{
    (void)state;
    uint32_t ids[300];
    lookup_t draft, at_once;
    for (uint32_t i = 0; i < 300; i++)
        ids[i] = i % 7;
    lookup_start(&draft, 300, ids, 10);
    lookup_start(&at_once, 300, ids, 10);
    assert_false(lookup_learn(&draft, ids, 10 + 2 * DRAFT_LEARN_MAX + 1));
    assert_false(lookup_learn(&draft, ids, 10 + 2 * DRAFT_LEARN_MAX + 1));
    assert_true(lookup_learn(&draft, ids, 10 + 2 * DRAFT_LEARN_MAX + 1));
    for (uint32_t n = 11; n <= 10 + 2 * DRAFT_LEARN_MAX + 1; n++)
        assert_true(lookup_learn(&at_once, ids, n));
    assert_int_equal(draft.source, at_once.source);
    assert_int_equal(draft.rate, at_once.rate);
    lookup_release(&draft);
    lookup_release(&at_once);
}

/* ---- schedules ---- */

static void with_guesses(scheduler_config_t *config)
{
    config->speculate_max = 8;
    config->fixed_rows = 16;
}

static scheduler_load_t load_of(const rig_t *rig)
{
    scheduler_load_t load;
    scheduler_load(rig->s, &load);
    return load;
}

static void with_draft_model(scheduler_config_t *config)
{
    with_guesses(config);
    config->draft_model = true;
}

/* s0, s1 and so on, each with a prompt of its own. */
static rig_sequence_t *admit_one(rig_t *rig, uint32_t number, uint32_t n_prompt, uint32_t n_ids)
{
    char name[16];
    snprintf(name, sizeof name, "s%u", number);
    return rig_admit(rig, name, n_prompt, number, n_ids, NULL);
}

static uint64_t steps_of(void (*change)(scheduler_config_t *config), uint32_t n_sequences)
{
    rig_t *rig = rig_new(change);
    for (uint32_t i = 0; i < n_sequences; i++)
        admit_one(rig, i, 20 + i, 200);
    rig_run(rig);
    scheduler_load_t load = load_of(rig);
    /* Each token is computed once, and beside them only the guesses that were wrong. */
    uint64_t n_rows = load.drafted_tokens - load.accepted_tokens;
    for (uint32_t i = 0; i < n_sequences; i++) {
        rig_check_text(&rig->sequences[i]);
        n_rows += rig->sequences[i].n_prompt + 200 - 1;
    }
    assert_int_equal(rig->n_rows, n_rows);
    bool wanted = change && (rig_repeats || rig_drafts > 1);
    assert_true(wanted ? load.accepted_tokens > 50 : load.drafted_tokens == 0);
    assert_true(load.accepted_tokens <= load.drafted_tokens);
    assert_int_equal(load.tokens_produced, 200 * n_sequences);
    assert_int_equal(load.kv_tokens_free, load.kv_tokens_total);
    rig_free(rig);
    return load.steps;
}

static void test_guesses_save_steps_and_change_no_text(void **state)
{
    (void)state;
    rig_repeats = 30;
    for (uint32_t n = 1; n <= 4; n += 3) {
        uint64_t without = steps_of(NULL, n), with = steps_of(with_guesses, n);
        print_message("%u sequences: %llu steps, %llu with guesses\n", n,
                      (unsigned long long)without, (unsigned long long)with);
        assert_true(with * 4 < without * 3);
    }
    rig_repeats = 0;
}

static void test_a_text_that_never_repeats_itself_costs_no_row(void **state)
{
    (void)state;
    assert_int_equal(steps_of(with_guesses, 2), steps_of(NULL, 2));
}

static void test_a_draft_model_saves_steps_of_texts_that_never_repeat_themselves(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= 4; n += 3) {
        uint64_t without = steps_of(NULL, n);
        rig_drafts = 8;
        uint64_t with = steps_of(with_draft_model, n);
        rig_drafts = 0;
        print_message("%u sequences: %llu steps, %llu with a draft model\n", n,
                      (unsigned long long)without, (unsigned long long)with);
        assert_true(with * 2 < without);
    }
}

static void test_a_draft_model_that_is_always_wrong_is_asked_no_more(void **state)
{
    (void)state;
    rig_drafts = 1;
    rig_t *rig = rig_new(with_draft_model);
    for (uint32_t i = 0; i < 6; i++) {
        rig_sequence_t *q = admit_one(rig, i, 20 + i, 100);
        rig_run(rig);
        rig_check_text(q);
    }
    scheduler_load_t load = load_of(rig);
    print_message("%llu guesses for 600 tokens\n", (unsigned long long)load.drafted_tokens);
    assert_int_equal(load.model_accepted_tokens, 0);
    assert_true(load.model_drafted_tokens > 0 && load.drafted_tokens < 60);
    /* A rate that fell is that of the sequences to come as well. */
    uint64_t before = load.drafted_tokens;
    rig_admit(rig, "late", 20, 9, 100, NULL);
    rig_run(rig);
    assert_true(load_of(rig).drafted_tokens - before <= 4);
    rig_free(rig);
    rig_drafts = 0;
}

static void with_draft_model_of_unknown_price(scheduler_config_t *config)
{
    with_draft_model(config);
    config->fixed_rows = 0; /* so that one is asked at a time */
}

static void test_a_text_over_the_draft_models_context_takes_no_turn_from_another(void **state)
{
    (void)state;
    rig_drafts = 9;
    rig_draft_context = 100;
    rig_t *rig = rig_new(with_draft_model_of_unknown_price);
    rig_sequence_t *over = rig_admit(rig, "over", 120, 0, 200, NULL);
    rig_sequence_t *within = rig_admit(rig, "within", 20, 1, 120, NULL);
    for (uint64_t step = 1; rig_plan(rig); step++) {
        scheduler_step_took(rig->s, step, 10000000);
        rig_return(rig);
        rig->now_ms++;
        rig_take(rig, rig->stream);
    }
    rig_check_text(over);
    rig_check_text(within);
    scheduler_load_t load = load_of(rig);
    print_message("%llu guesses\n", (unsigned long long)load.model_drafted_tokens);
    assert_true(load.model_accepted_tokens > 30);
    assert_int_equal(load.model_drafted_tokens, load.model_accepted_tokens);
    rig_free(rig);
    rig_drafts = rig_draft_context = 0;
}

/* Where a text repeats itself its own ids are the guesses, elsewhere the draft model's. */
static void test_both_kinds_of_guesses_work_together(void **state)
{
    (void)state;
    rig_repeats = 30;
    rig_drafts = 8;
    rig_t *rig = rig_new(with_draft_model);
    rig_sequence_t *q = rig_admit(rig, "both", 20, 0, 300, NULL);
    rig_run(rig);
    rig_check_text(q);
    scheduler_load_t load = load_of(rig);
    assert_true(load.model_accepted_tokens > 20);
    assert_true(load.accepted_tokens - load.model_accepted_tokens > 50);
    rig_free(rig);
    rig_repeats = rig_drafts = 0;
}

static uint32_t stop_id;

static void stops_there(admission_t *admission)
{
    admission->stop_ids = &stop_id;
}

static void test_a_stop_among_the_guesses_is_the_end(void **state)
{
    (void)state;
    rig_repeats = 30;
    rig_t *rig = rig_new(with_guesses);
    rig_sequence_t *whole = rig_admit(rig, "whole", 20, 0, 150, NULL);
    rig_run(rig);
    rig_check_text(whole);
    assert_true(load_of(rig).accepted_tokens > 30);
    /* Every place of the text where an id stands for the first time, as the end. */
    for (uint32_t at = 0, n = 0; at < 150 && n < 30; at++) {
        bool first = true;
        for (uint32_t i = 0; i < at; i++)
            first &= whole->ids[i] != whole->ids[at];
        if (!first)
            continue;
        char name[16];
        snprintf(name, sizeof name, "stop%u", n++);
        stop_id = whole->ids[at];
        rig_sequence_t *cut = rig_admit(rig, name, 20, 0, 150, stops_there);
        rig_run(rig);
        assert_int_equal(cut->end, END_FINISHED);
        assert_int_equal(cut->finish, FINISH_STOP);
        assert_int_equal(cut->n_ids, at + 1);
        assert_memory_equal(cut->ids, whole->ids, (at + 1) * sizeof *cut->ids);
    }
    rig_free(rig);
    rig_repeats = 0;
}

static void few_rows(scheduler_config_t *config)
{
    with_guesses(config);
    config->step_tokens_max = 11;
}

static void test_guesses_take_only_rows_that_are_left(void **state)
{
    (void)state;
    rig_repeats = 10;
    rig_t *rig = rig_new(few_rows);
    /* Five decode in loops, with six rows to spare: every step has one for each of the five. */
    rig_sequence_t *five[5];
    for (uint32_t i = 0; i < 5; i++)
        five[i] = admit_one(rig, i, 8, 100);
    for (int i = 0; i < 8; i++)
        rig_step(rig);
    for (int i = 0; i < 20; i++) {
        rig_plan(rig);
        for (uint32_t k = 0; k < 5; k++)
            assert_true(rig_planned(rig, five[k]->session) || five[k]->n_ends == 1);
        rig_return(rig);
        rig_take(rig, rig->stream);
    }
    rig_run(rig);
    assert_true(load_of(rig).accepted_tokens > 50);
    for (uint32_t i = 0; i < rig->n_sequences; i++)
        rig_check_text(&rig->sequences[i]);
    rig_free(rig);
    rig_repeats = 0;
}

static void few_blocks_two_stages(scheduler_config_t *config)
{
    with_guesses(config);
    config->n_blocks = 28;
    config->stages = 2;
    config->batch_max = 4;
}

static void draft_few_blocks_two_stages(scheduler_config_t *config)
{
    few_blocks_two_stages(config);
    config->draft_model = true;
}

/* Preemption, cancels, equal prefixes, two steps in flight: whatever happens beside the guesses. */
static scheduler_load_t run_random(void (*change)(scheduler_config_t *config), uint32_t random)
{
    rig_t *rig = rig_new(change);
    uint32_t finished = rig_run_random(rig, random, 8000, 120, 200);
    scheduler_load_t load = load_of(rig);
    print_message("%u texts; %llu guesses, %llu right; %llu of a draft model, %llu right; "
                  "%llu preemptions\n",
                  finished, (unsigned long long)load.drafted_tokens,
                  (unsigned long long)load.accepted_tokens,
                  (unsigned long long)load.model_drafted_tokens,
                  (unsigned long long)load.model_accepted_tokens,
                  (unsigned long long)load.preemptions);
    assert_true(finished > 50 && load.preemptions > 0);
    assert_true(load.accepted_tokens > 300 && load.drafted_tokens > load.accepted_tokens);
    rig_free(rig);
    return load;
}

static void test_a_long_random_run_with_guesses_keeps_every_text(void **state)
{
    (void)state;
    rig_repeats = 14;
    assert_int_equal(run_random(few_blocks_two_stages, 11).model_drafted_tokens, 0);
    rig_repeats = 0;
}

static void test_a_long_random_run_with_a_draft_model_keeps_every_text(void **state)
{
    (void)state;
    rig_drafts = 7;
    scheduler_load_t load = run_random(draft_few_blocks_two_stages, 12);
    assert_true(load.model_accepted_tokens > 300);
    assert_true(load.model_drafted_tokens > load.model_accepted_tokens);
    rig_drafts = 0;
}

static void test_a_result_with_more_tokens_than_its_plan_may_give_is_an_error(void **state)
{
    (void)state;
    rig_repeats = 10;
    rig_t *rig = rig_new(with_guesses);
    rig_admit(rig, "a", 8, 0, 100, NULL);
    while (rig_plan(rig) && rig->entries[0].n_draft < 2)
        rig_return(rig);
    uint32_t most = 1 + rig->entries[0].n_draft;
    step_result_t *result = &rig->results[0];
    for (uint32_t i = result->n; i <= most; i++)
        result->drawn[i] = result->drawn[0];
    uint32_t right = result->n;
    result->n = most + 1;
    assert_int_equal(scheduler_step_done(rig->s, result, 0), STATUS_INTERNAL);
    result->n = 0;
    assert_int_equal(scheduler_step_done(rig->s, result, 0), STATUS_INTERNAL);
    result->n = right;
    rig_run(rig);
    rig_check_text(&rig->sequences[0]);
    rig_free(rig);
    rig_repeats = 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_text_is_guessed_where_its_last_three_ids_stood_before),
        cmocka_unit_test(test_guesses_begin_when_they_were_right_and_end_at_once_when_not),
        cmocka_unit_test(test_a_step_catches_up_with_few_ids_at_a_time),
        cmocka_unit_test(test_guesses_save_steps_and_change_no_text),
        cmocka_unit_test(test_a_text_that_never_repeats_itself_costs_no_row),
        cmocka_unit_test(test_a_draft_model_saves_steps_of_texts_that_never_repeat_themselves),
        cmocka_unit_test(test_a_draft_model_that_is_always_wrong_is_asked_no_more),
        cmocka_unit_test(test_a_text_over_the_draft_models_context_takes_no_turn_from_another),
        cmocka_unit_test(test_both_kinds_of_guesses_work_together),
        cmocka_unit_test(test_a_stop_among_the_guesses_is_the_end),
        cmocka_unit_test(test_guesses_take_only_rows_that_are_left),
        cmocka_unit_test(test_a_long_random_run_with_guesses_keeps_every_text),
        cmocka_unit_test(test_a_long_random_run_with_a_draft_model_keeps_every_text),
        cmocka_unit_test(test_a_result_with_more_tokens_than_its_plan_may_give_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
