/* What the scheduler runs: batches, chunks, blocks, preemption, fairness, solo sequences. */
#include <stdio.h>
#include <string.h>

#include "scheduler_rig.h"

static void test_sequences_run_together_and_each_gives_its_text(void **state)
{
    (void)state;
    rig_t *rig = rig_new(NULL);
    char name[16];
    for (uint32_t i = 0; i < 6; i++) {
        snprintf(name, sizeof name, "s%u", i);
        rig_admit(rig, name, 3 + 9 * i, i, 20, NULL);
    }
    rig_run(rig);
    for (uint32_t i = 0; i < 6; i++)
        rig_check_text(&rig->sequences[i]);
    scheduler_load_t load;
    scheduler_load(rig->s, &load);
    assert_int_equal(load.sequences_max_in_step, 6);
    assert_int_equal(load.tokens_produced, 120);
    assert_int_equal(load.running + load.waiting, 0);
    assert_int_equal(load.kv_tokens_free, load.kv_tokens_total);
    rig_free(rig);
}

static void test_a_new_sequence_joins_the_running_batch(void **state)
{
    (void)state;
    rig_t *rig = rig_new(NULL);
    rig_admit(rig, "long", 10, 0, 100, NULL);
    for (int i = 0; i < 30; i++)
        rig_step(rig);
    rig_admit(rig, "late", 10, 1, 5, NULL);
    assert_true(rig_plan(rig));
    assert_true(rig_planned(rig, "long") && rig_planned(rig, "late"));
    rig_return(rig);
    rig_run(rig);
    rig_check_text(rig_find(rig, "long"));
    rig_check_text(rig_find(rig, "late"));
    rig_free(rig);
}

/* Rows of `session` in the plan that was made last. */
static uint32_t rows_of(const rig_t *rig, const char *session)
{
    for (uint32_t i = 0; i < rig->n_entries; i++)
        if (strcmp(rig->entries[i].session, session) == 0)
            return rig->entries[i].n_tokens;
    return 0;
}

static void test_a_long_prompt_is_cut_and_decoding_goes_on_beside_it(void **state)
{
    (void)state;
    rig_t *rig = rig_new(NULL);
    rig_admit(rig, "short", 4, 0, 40, NULL);
    rig_step(rig);
    rig_admit(rig, "long", 300, 1, 4, NULL);
    for (int i = 0; i < 4; i++) {
        assert_true(rig_plan(rig));
        assert_int_equal(rows_of(rig, "short"), 1);
        /* No more than half of what a step with one stream costs, and at least four. */
        assert_int_equal(rows_of(rig, "long"), 4);
        assert_false(rig->entries[1].sample);
        rig_return(rig);
    }
    rig_run(rig);
    rig_check_text(rig_find(rig, "long"));
    rig_check_text(rig_find(rig, "short"));
    rig_free(rig);
}

static void test_a_prompt_has_whole_steps_while_nobody_runs(void **state)
{
    (void)state;
    rig_t *rig = rig_new(NULL);
    rig_admit(rig, "long", 300, 1, 4, NULL);
    for (int i = 0; i < 4; i++) {
        assert_true(rig_plan(rig));
        assert_int_equal(rows_of(rig, "long"), 64);
        rig_return(rig);
    }
    rig_run(rig);
    rig_check_text(rig_find(rig, "long"));
    rig_free(rig);
}

static void test_prompts_that_wait_together_have_more_rows_and_a_short_one_passes_a_long(void **state)
{
    (void)state;
    rig_t *rig = rig_new(NULL);
    rig_admit(rig, "runs", 4, 0, 100, NULL);
    rig_step(rig);
    rig_admit(rig, "long", 300, 1, 4, NULL);
    rig_step(rig);
    assert_int_equal(rows_of(rig, "long"), 4);
    /* Two wait: four times the rows, of which the older one takes half. */
    rig_admit(rig, "late", 6, 2, 4, NULL);
    assert_true(rig_plan(rig));
    assert_int_equal(rows_of(rig, "late"), 6);
    assert_in_range(rows_of(rig, "long"), 6, 10);
    rig_return(rig);
    for (uint32_t i = 0; i < 4; i++) {
        char name[16];
        snprintf(name, sizeof name, "more%u", i);
        rig_admit(rig, name, 40, 3 + i, 4, NULL);
    }
    assert_true(rig_plan(rig));
    assert_true(rows_of(rig, "runs") == 1 && rows_of(rig, "late") == 1);
    assert_int_equal(rows_of(rig, "long"), 62); /* all of the step, and in order of arrival */
    rig_return(rig);
    rig_run(rig);
    rig_free(rig);
}

static void forty_blocks(scheduler_config_t *config)
{
    config->n_blocks = 40;
}

/* Each of those that wait needs 25 blocks, of which "long" leaves 20. A plan tries up to 16. */
static void test_a_prompt_that_lacks_blocks_gives_those_before_it_no_more_rows(void **state)
{
    uint32_t n_lacking = *(uint32_t *)*state;
    rig_t *rig = rig_new(forty_blocks);
    char name[16];
    rig_admit(rig, "runs", 4, 0, 200, NULL);
    rig_step(rig);
    rig_admit(rig, "long", 300, 1, 4, NULL);
    for (uint32_t i = 0; i < n_lacking; i++) {
        snprintf(name, sizeof name, "lacks%u", i);
        rig_admit(rig, name, 400, 2 + i, 1, NULL);
        rig_step(rig); /* whether it fits is known from here on */
        assert_in_range(rows_of(rig, "long"), 4, 16);
    }
    for (uint32_t i = 0; i < 10; i++) {
        assert_true(rig_plan(rig));
        assert_int_equal(rows_of(rig, "runs"), 1);
        assert_int_equal(rows_of(rig, "long"), 4);
        rig_return(rig);
    }
    /* Once "long" has ended there is room for one, whose rows are no whole step either. */
    while (rig_find(rig, "lacks0")->first_step == 0)
        assert_true(rig_step(rig));
    assert_int_equal(rig_find(rig, "long")->n_ends, 1);
    assert_int_equal(rows_of(rig, "runs"), 1);
    assert_in_range(rows_of(rig, "lacks0"), 4, 31);
    rig_run(rig);
    for (uint32_t i = 0; i < rig->n_sequences; i++)
        rig_check_text(&rig->sequences[i]);
    rig_free(rig);
}

static void test_an_equal_prefix_is_not_computed_again(void **state)
{
    (void)state;
    rig_t *rig = rig_new(NULL);
    rig_admit(rig, "first", 50, 3, 4, NULL);
    rig_run(rig);
    rig_sequence_t *second = rig_admit(rig, "second", 50, 3, 4, NULL);
    assert_true(rig_plan(rig));
    assert_int_equal(rig->entries[0].position, 48);
    assert_int_equal(rig->entries[0].n_tokens, 2);
    rig_return(rig);
    rig_run(rig);
    rig_check_text(second);
    assert_int_equal(second->n_cached, 48);
    /* A prompt of whole blocks still computes its last one: somebody has to give the logits. */
    rig_admit(rig, "third", 48, 3, 4, NULL);
    assert_true(rig_plan(rig));
    assert_int_equal(rig->entries[0].position, 32);
    rig_return(rig);
    rig_run(rig);
    rig_check_text(rig_find(rig, "third"));
    rig_free(rig);
}

static void few_blocks(scheduler_config_t *config)
{
    config->n_blocks = 12;
    config->context_max = 192;
}

static void test_the_youngest_is_preempted_the_oldest_never_and_no_text_changes(void **state)
{
    (void)state;
    rig_t *rig = rig_new(few_blocks);
    scheduler_load_t load;
    char name[16];
    for (uint32_t i = 0; i < 5; i++) {
        snprintf(name, sizeof name, "s%u", i);
        rig_admit(rig, name, 20, i, 100, NULL);
    }
    uint32_t oldest_at = 0;
    for (int i = 0; i < 3000; i++) {
        if (!rig_plan(rig))
            break;
        /* Until it ends, the oldest is in every step. */
        if (rig_find(rig, "s0")->n_ends == 0)
            assert_true(rig_planned(rig, "s0"));
        for (uint32_t e = 0; e < rig->n_entries; e++)
            if (strcmp(rig->entries[e].session, "s0") == 0) {
                assert_true(rig->entries[e].position >= oldest_at);
                oldest_at = rig->entries[e].position;
            }
        rig_return(rig);
        rig_take(rig, rig->stream);
    }
    scheduler_load(rig->s, &load);
    assert_true(load.preemptions > 0);
    for (uint32_t i = 0; i < 5; i++)
        rig_check_text(&rig->sequences[i]);
    assert_int_equal(load.kv_tokens_free, load.kv_tokens_total);
    rig_free(rig);
}

/* It needs 14 blocks now and 30 for its next 256 tokens; after b's end 25 are free. */
static void test_a_preempted_one_returns_when_its_next_256_tokens_have_blocks(void **state)
{
    (void)state;
    rig_t *rig = rig_new(forty_blocks);
    scheduler_load_t load = {0};
    rig_admit(rig, "a", 100, 0, 300, NULL);
    rig_admit(rig, "b", 100, 1, 130, NULL);
    rig_admit(rig, "c", 100, 2, 400, NULL);
    while (load.preemptions == 0) {
        assert_true(rig_step(rig));
        scheduler_load(rig->s, &load);
    }
    while (rig_find(rig, "a")->n_ends == 0) {
        assert_true(rig_step(rig));
        assert_false(rig_planned(rig, "c"));
    }
    assert_int_equal(rig_find(rig, "b")->n_ends, 1);
    rig_run(rig);
    for (uint32_t i = 0; i < 3; i++)
        rig_check_text(&rig->sequences[i]);
    rig_free(rig);
}

static void pipeline(scheduler_config_t *config)
{
    config->stages = 3;
    config->n_blocks = 24;
    config->context_max = 192;
}

static void test_with_stages_a_sequence_is_in_one_flight_and_texts_stay(void **state)
{
    (void)state;
    rig_t *rig = rig_new(pipeline);
    scheduler_load_t load;
    char name[16];
    for (uint32_t i = 0; i < 9; i++) {
        snprintf(name, sizeof name, "s%u", i);
        rig_admit(rig, name, 10 + i, i, 90, NULL);
    }
    uint32_t most = 0;
    for (int i = 0; i < 5000; i++) {
        /* The rig's own checks of ids and KV fail if one were in two flights. */
        while (rig_plan(rig))
            for (uint32_t e = 0; e < rig->n_entries && rig->n_flights > 3; e++)
                assert_true(rig->entries[e].n_tokens > 1); /* a fourth is of prompts alone */
        most = rig->n_flights > most ? rig->n_flights : most;
        if (rig->n_flights == 0)
            break;
        rig_return(rig);
        rig_take(rig, rig->stream);
    }
    scheduler_load(rig->s, &load);
    assert_int_equal(most, 4);
    assert_true(load.preemptions > 0);
    for (uint32_t i = 0; i < 9; i++)
        rig_check_text(&rig->sequences[i]);
    rig_free(rig);
}

/* A big request waits for blocks; small ones that keep coming may pass it 8 times. */
static void test_a_request_too_big_is_passed_at_most_8_times(void **state)
{
    (void)state;
    rig_t *rig = rig_new(few_blocks);
    char name[16];
    uint32_t n_small = 0, passed = 0;
    for (; n_small < 3; n_small++) {
        snprintf(name, sizeof name, "small%u", n_small);
        rig_admit(rig, name, 10, n_small % 40, 20, NULL);
    }
    rig_step(rig);
    rig_admit(rig, "big", 150, 45, 20, NULL);
    while (rig_find(rig, "big")->first_step == 0 && n_small < 100) {
        uint32_t before = 0, after = 0;
        snprintf(name, sizeof name, "small%u", n_small);
        rig_admit(rig, name, 10, n_small % 40, 20, NULL);
        n_small++;
        for (uint32_t i = 0; i < rig->n_sequences; i++)
            before += rig->sequences[i].first_step != 0;
        for (int i = 0; i < 4; i++)
            rig_step(rig);
        for (uint32_t i = 0; i < rig->n_sequences; i++)
            after += rig->sequences[i].first_step != 0;
        if (rig_find(rig, "big")->first_step == 0)
            passed += after - before;
    }
    assert_int_not_equal(rig_find(rig, "big")->first_step, 0);
    assert_int_equal(passed, SCHEDULER_PASSES_MAX);
    rig_run(rig);
    for (uint32_t i = 0; i < rig->n_sequences; i++)
        rig_check_text(&rig->sequences[i]);
    rig_free(rig);
}

static void one_at_a_time(scheduler_config_t *config)
{
    config->batch_max = 1;
}

static void high(admission_t *admission)
{
    admission->priority = 5;
}

static void tenant_a(admission_t *admission)
{
    admission->tenant = "a";
}

static void tenant_b(admission_t *admission)
{
    admission->tenant = "b";
}

static void test_a_higher_priority_starts_first(void **state)
{
    (void)state;
    rig_t *rig = rig_new(one_at_a_time);
    rig_admit(rig, "low", 5, 0, 5, NULL);
    rig_admit(rig, "high", 5, 1, 5, high);
    rig_run(rig);
    assert_true(rig_find(rig, "high")->first_step < rig_find(rig, "low")->first_step);
    rig_free(rig);
}

/* One tenant's queue does not hold back another's. */
static void test_tenants_take_turns_by_tokens_served(void **state)
{
    (void)state;
    rig_t *rig = rig_new(one_at_a_time);
    char name[16];
    for (uint32_t i = 0; i < 10; i++) {
        snprintf(name, sizeof name, "a%u", i);
        rig_admit(rig, name, 5, i, 10, tenant_a);
    }
    for (uint32_t i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "b%u", i);
        rig_admit(rig, name, 5, 20 + i, 10, tenant_b);
    }
    rig_run(rig);
    assert_true(rig_find(rig, "b2")->first_step < rig_find(rig, "a4")->first_step);
    assert_true(rig_find(rig, "a2")->first_step < rig_find(rig, "b2")->first_step);
    rig_free(rig);
}

/* What counts is tokens, and only those of the time in which both wanted some. */
static void test_a_tenant_that_paused_has_no_arrears_and_small_requests_run_more_often(void **state)
{
    (void)state;
    rig_t *rig = rig_new(one_at_a_time);
    char name[16];
    rig_admit(rig, "early", 5, 0, 2, tenant_b);
    rig_run(rig);
    for (uint32_t i = 0; i < 20; i++) {
        snprintf(name, sizeof name, "a%u", i);
        rig_admit(rig, name, 10, 1 + i, 30, tenant_a);
    }
    while (rig_find(rig, "a9")->n_ends == 0)
        rig_step(rig);
    for (uint32_t i = 0; i < 20; i++) {
        snprintf(name, sizeof name, "b%u", i);
        rig_admit(rig, name, 5, 21 + i, 5, tenant_b);
    }
    rig_run(rig);
    /* Four of 10 tokens for each one of 40; not 40 of them first for the ten that b missed. */
    for (uint32_t i = 0; i < 4; i++) {
        uint64_t next_a[2];
        for (uint32_t k = 0; k < 2; k++) {
            snprintf(name, sizeof name, "a%u", 11 + i + k);
            next_a[k] = rig_find(rig, name)->first_step;
        }
        uint32_t between = 0;
        for (uint32_t k = 0; k < 20; k++) {
            snprintf(name, sizeof name, "b%u", k);
            uint64_t step = rig_find(rig, name)->first_step;
            between += step > next_a[0] && step < next_a[1];
        }
        assert_in_range(between, 3, 5);
    }
    rig_free(rig);
}

static void test_a_solo_sequence_is_alone_in_its_steps_and_in_flight(void **state)
{
    (void)state;
    rig_t *rig = rig_new(pipeline);
    char name[16];
    for (uint32_t i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "s%u", i);
        rig_admit(rig, name, 10, i, 30, NULL);
    }
    rig_admit(rig, "alone", 10, 9, 10, rig_solo);
    rig_admit(rig, "also", 10, 10, 10, rig_solo);
    uint32_t n_solo = 0;
    bool solo_flies = false;
    for (int i = 0; i < 5000; i++) {
        while (rig_plan(rig)) {
            assert_false(solo_flies);
            if (!rig_planned(rig, "alone") && !rig_planned(rig, "also"))
                continue;
            assert_int_equal(rig->n_entries, 1);
            assert_int_equal(rig->n_flights, 1);
            solo_flies = true;
            n_solo++;
        }
        if (rig->n_flights == 0)
            break;
        rig_return(rig);
        solo_flies = false;
        rig_take(rig, rig->stream);
    }
    assert_int_equal(n_solo, 20);
    for (uint32_t i = 0; i < rig->n_sequences; i++)
        rig_check_text(&rig->sequences[i]);
    rig_free(rig);
}

/* Many random requests, cancels and returns; the rig checks every row that would be read. */
static void test_a_long_random_run_keeps_every_text(void **state)
{
    (void)state;
    rig_t *rig = rig_new(pipeline);
    assert_true(rig_run_random(rig, 4, 6000, RIG_SEQUENCES_MAX, 60) > 50);
    rig_free(rig);
}

int main(void)
{
    uint32_t few = 2, many = 20;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sequences_run_together_and_each_gives_its_text),
        cmocka_unit_test(test_a_new_sequence_joins_the_running_batch),
        cmocka_unit_test(test_a_long_prompt_is_cut_and_decoding_goes_on_beside_it),
        cmocka_unit_test(test_a_prompt_has_whole_steps_while_nobody_runs),
        cmocka_unit_test(
            test_prompts_that_wait_together_have_more_rows_and_a_short_one_passes_a_long),
        cmocka_unit_test_prestate(
            test_a_prompt_that_lacks_blocks_gives_those_before_it_no_more_rows, &few),
        cmocka_unit_test_prestate(
            test_a_prompt_that_lacks_blocks_gives_those_before_it_no_more_rows, &many),
        cmocka_unit_test(test_an_equal_prefix_is_not_computed_again),
        cmocka_unit_test(test_the_youngest_is_preempted_the_oldest_never_and_no_text_changes),
        cmocka_unit_test(test_a_preempted_one_returns_when_its_next_256_tokens_have_blocks),
        cmocka_unit_test(test_with_stages_a_sequence_is_in_one_flight_and_texts_stay),
        cmocka_unit_test(test_a_request_too_big_is_passed_at_most_8_times),
        cmocka_unit_test(test_a_higher_priority_starts_first),
        cmocka_unit_test(test_tenants_take_turns_by_tokens_served),
        cmocka_unit_test(
            test_a_tenant_that_paused_has_no_arrears_and_small_requests_run_more_often),
        cmocka_unit_test(test_a_solo_sequence_is_alone_in_its_steps_and_in_flight),
        cmocka_unit_test(test_a_long_random_run_keeps_every_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
