/* Prompts beside streams that decode: whose turn comes first, how many rows it has by its priority and
 * its tenant, and by which rank's time a step is priced. */
#include <stdio.h>
#include <string.h>

#include "scheduler_rig.h"
#include "worker/engine/scheduler_internal.h"

enum { N_DECODING = 8 };

static int32_t priority_of_next;
static const char *tenant_of_next;

static void next(admission_t *admission)
{
    admission->priority = priority_of_next;
    admission->tenant = tenant_of_next;
}

static rig_sequence_t *admit(rig_t *rig, const char *name, uint32_t n_prompt, int32_t priority,
                             const char *tenant)
{
    priority_of_next = priority;
    tenant_of_next = tenant;
    return rig_admit(rig, name, n_prompt, rig->n_sequences, 100, next);
}

static uint32_t rows_of(const rig_t *rig, const char *session)
{
    for (uint32_t i = 0; i < rig->n_entries; i++)
        if (strcmp(rig->entries[i].session, session) == 0)
            return rig->entries[i].n_tokens;
    return 0;
}

static uint32_t rows_of_prompts(const rig_t *rig)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < rig->n_entries; i++)
        if (!rig->entries[i].sample || rig->entries[i].n_tokens > 1)
            n += rig->entries[i].n_tokens;
    return n;
}

static void wide(scheduler_config_t *config)
{
    config->n_blocks = 1024;
    config->context_max = 1000;
    config->batch_max = 64;
    config->step_tokens_max = 512;
}

/* With that many streams of a priority that wait for their next token. */
static rig_t *rig_with_streams(int32_t priority)
{
    rig_t *rig = rig_new(wide);
    char name[16];
    for (int i = 0; i < N_DECODING; i++) {
        snprintf(name, sizeof name, "d%d", i);
        admit(rig, name, 5, priority, "streams");
    }
    for (int i = 0; i < 4; i++)
        rig_step(rig);
    for (int i = 0; i < N_DECODING; i++)
        assert_true(rig->sequences[i].n_ids > 0);
    return rig;
}

static void finish(rig_t *rig)
{
    rig_run(rig);
    for (uint32_t i = 0; i < rig->n_sequences; i++)
        rig_check_text(&rig->sequences[i]);
    rig_free(rig);
}

static void test_a_more_urgent_prompt_has_its_rows_before_one_that_is_on_its_way(void **state)
{
    (void)state;
    rig_t *rig = rig_with_streams(5);
    rig_sequence_t *slow = admit(rig, "slow", 600, 0, "a");
    rig_step(rig);
    uint32_t alone = rows_of(rig, "slow");
    assert_in_range(alone, 4, 60);
    rig_sequence_t *urgent = admit(rig, "urgent", 60, 5, "a");
    for (int i = 0; urgent->n_ids == 0; i++) {
        assert_true(i < 40 && rig_step(rig));
        assert_true(rows_of(rig, "d0") == 1 && rows_of(rig, "d7") == 1);
        if (rows_of(rig, "urgent") >= alone)
            assert_int_equal(rows_of(rig, "slow"), 0);
        else /* the last of its rows; what is left is another's */
            assert_true(rows_of(rig, "urgent") + rows_of(rig, "slow") <= alone + 1);
    }
    assert_int_equal(slow->n_ids, 0);
    finish(rig);
}

/* Rows of prompts in the first step that has any, when n wait beside streams of priority 0. */
static uint32_t rows_when(uint32_t n, int32_t priority)
{
    rig_t *rig = rig_with_streams(0);
    char name[16];
    for (uint32_t i = 0; i < n; i++) {
        snprintf(name, sizeof name, "p%u", i);
        admit(rig, name, 200, priority, "a");
    }
    assert_true(rig_step(rig));
    uint32_t rows = rows_of_prompts(rig);
    for (int i = 0; i < N_DECODING; i++)
        assert_int_equal(rows_of(rig, rig->sequences[i].session), 1);
    finish(rig);
    return rows;
}

static void guessing(scheduler_config_t *config)
{
    wide(config);
    config->speculate_max = 8;
    config->fixed_rows = 64; /* so that guesses pay */
}

/* Half a step longer than a step with its guesses: streams that repeat themselves would else leave a
 * prompt the few rows that are half of a step without any, for many more of their tokens. */
static void test_guesses_count_in_the_step_that_a_prompt_makes_longer(void **state)
{
    (void)state;
    uint32_t without = rows_when(1, 0), n_guesses = 0;
    rig_repeats = 20;
    rig_t *rig = rig_new(guessing);
    char name[16];
    for (uint32_t i = 0; i < N_DECODING; i++) {
        snprintf(name, sizeof name, "d%u", i);
        rig_admit(rig, name, 5, i, 400, NULL);
    }
    for (int i = 0; i < 12; i++)
        rig_step(rig);
    admit(rig, "prompt", 600, 0, "a");
    rig_step(rig);
    for (uint32_t i = 0; i < rig->n_entries; i++)
        n_guesses += rig->entries[i].n_draft;
    uint32_t rows = rows_of(rig, "prompt");
    if (n_guesses < 8 || rows < without + n_guesses / 4 || rows > without + n_guesses)
        fail_msg("%u rows beside streams, %u beside %u guesses more", without, rows, n_guesses);
    finish(rig);
    rig_repeats = 0;
}

static void test_prompts_less_urgent_than_a_stream_count_as_one(void **state)
{
    (void)state;
    uint32_t one = rows_when(1, 0), ten = rows_when(10, 0);
    assert_in_range(one, 4, 60);
    assert_true(ten > 8 * one);
    assert_int_equal(rows_when(1, -1), one);
    assert_int_equal(rows_when(10, -1), one);
}

static void test_prompts_more_urgent_than_all_streams_take_what_a_step_has(void **state)
{
    (void)state;
    rig_t *rig = rig_with_streams(0);
    admit(rig, "equal", 400, 0, "a");
    rig_step(rig);
    assert_in_range(rows_of(rig, "equal"), 4, 60);
    admit(rig, "urgent", 300, 1, "a");
    rig_step(rig);
    assert_int_equal(rows_of(rig, "urgent"), 300);
    assert_int_equal(rows_of(rig, "equal"), 0); /* its share of this step is used up */
    for (int i = 0; i < N_DECODING; i++)
        assert_int_equal(rows_of(rig, rig->sequences[i].session), 1);
    /* Now the urgent one decodes as well, and nobody is more urgent than it. */
    admit(rig, "second", 300, 1, "a");
    rig_step(rig);
    assert_in_range(rows_of(rig, "second"), 4, 60);
    finish(rig);
}

static void test_a_tenant_that_was_served_less_has_its_rows_first(void **state)
{
    (void)state;
    rig_t *rig = rig_with_streams(0);
    char name[16];
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "a%d", i);
        admit(rig, name, 600, 0, "a");
    }
    for (int i = 0; i < 4; i++) {
        rig_step(rig);
        assert_true(rows_of(rig, "a0") >= rows_of(rig, "a1")); /* of one tenant by arrival */
    }
    rig_sequence_t *b = admit(rig, "b", 100, 0, "b");
    rig_step(rig); /* it starts with what those that run leave */
    assert_true(rows_of(rig, "b") > 0);
    rig_step(rig);
    assert_true(rows_of(rig, "b") > rows_of(rig, "a0") && rows_of(rig, "a0") > 0);
    while (b->n_ids == 0)
        assert_true(rig_step(rig));
    assert_int_equal(rig_find(rig, "a0")->n_ids, 0);
    finish(rig);
}

/* ---- the price of a step ---- */

static void two_stages(scheduler_config_t *config)
{
    config->stages = 2;
}

/* What a step of one stream is thought to take, in ms, when its ranks said so. */
static double learnt_ms(uint64_t first_ms, uint64_t last_ms)
{
    const step_work_t work = {.rows = 1, .logits = 1, .decode_keys = 50};
    rig_t *rig = rig_new(two_stages);
    rig_admit(rig, "one", 5, 0, 100, NULL);
    for (uint64_t i = 1; rig_plan(rig); i++) {
        if (first_ms)
            scheduler_step_took(rig->s, i, first_ms * 1000000);
        rig->results[0].took_ns = last_ms * 1000000;
        rig_return(rig);
        rig_take(rig, rig->stream);
    }
    double ms = step_cost_of(&rig->s->cost, &work) / 1e6;
    rig_check_text(rig_find(rig, "one"));
    rig_free(rig);
    return ms;
}

static void test_the_slowest_stage_sets_the_price_of_a_step(void **state)
{
    (void)state;
    double first = learnt_ms(4, 1), last = learnt_ms(1, 4), one = learnt_ms(4, 0);
    assert_true(one > 3.9 && one < 4.1);
    assert_true(first > 3.9 && first < 4.1);
    assert_true(last > 3.9 && last < 4.1);
    assert_true(learnt_ms(0, 0) < 0.001); /* nobody told: the guess, in rows */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_more_urgent_prompt_has_its_rows_before_one_that_is_on_its_way),
        cmocka_unit_test(test_guesses_count_in_the_step_that_a_prompt_makes_longer),
        cmocka_unit_test(test_prompts_less_urgent_than_a_stream_count_as_one),
        cmocka_unit_test(test_prompts_more_urgent_than_all_streams_take_what_a_step_has),
        cmocka_unit_test(test_a_tenant_that_was_served_less_has_its_rows_first),
        cmocka_unit_test(test_the_slowest_stage_sets_the_price_of_a_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
