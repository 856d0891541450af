/* Pieces of one prompt in several flights: no text changes, nothing is named or given back twice. */
#include <stdio.h>
#include <string.h>

#include "scheduler_rig.h"

static void two_stages_few_blocks(scheduler_config_t *config)
{
    config->stages = 2;
    config->n_blocks = 21;
    config->context_max = 300;
}

static void guessing(scheduler_config_t *config)
{
    two_stages_few_blocks(config);
    config->stages = 3;
    config->speculate_max = 4;
}

/* How many sequences stand in more than one flight, each of which is named once. */
static uint32_t check_flying(rig_t *rig, uint32_t n_rows_in_flight)
{
    char flying[16][SESSION_BYTES];
    uint32_t n = scheduler_flying(rig->s, flying, 16);
    for (uint32_t a = 1; a < n; a++)
        for (uint32_t b = 0; b < a; b++)
            assert_string_not_equal(flying[a], flying[b]);
    return n_rows_in_flight - n;
}

static uint32_t count_live(const rig_t *rig)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < rig->n_sequences; i++)
        n += rig->sequences[i].n_ends == 0;
    return n;
}

/* One to three requests at a time, some of which begin alike, cancelled now and then; results come back
 * late. The rig checks the keys of each row, and which blocks they lie in. */
static void run_pieces(void (*change)(scheduler_config_t *config))
{
    rig_t *rig = rig_new(change);
    uint32_t random = 7, n = 0, n_follow = 0, n_cancelled = 0, entries[8] = {0};
    char name[16];
    for (uint32_t turn = 0; turn < 16000; turn++) {
        random = random * 1664525u + 1013904223u;
        uint32_t what = random >> 24 & 15, live = count_live(rig);
        if (n < RIG_SEQUENCES_MAX && live < 1 + turn / 200 % 4) {
            snprintf(name, sizeof name, "s%u", n++);
            rig_admit(rig, name, 40 + (random >> 8) % 200, random >> 16 & 3,
                      1 + (random >> 10) % 60, NULL);
        } else if (what == 0 && live > 0 && (random >> 8) % 16 == 0) {
            snprintf(name, sizeof name, "s%u", n - 1);
            n_cancelled += rig->n_flights > 1;
            scheduler_cancel(rig->s, name, 0, 1, rig->now_ms);
        } else if (what < 10) {
            if (rig_plan(rig))
                entries[rig->n_flights - 1] = rig->n_entries;
        } else if (rig->n_flights > 0) {
            rig_return(rig);
            memmove(entries, entries + 1, sizeof entries - sizeof *entries);
        }
        uint32_t sum = 0;
        for (uint32_t i = 0; i < rig->n_flights; i++)
            sum += entries[i];
        n_follow += check_flying(rig, sum) > 0;
        rig_take(rig, rig->stream);
    }
    rig_run(rig);
    scheduler_load_t load;
    scheduler_load(rig->s, &load);
    print_message("%u requests, %u cancelled in flight, %llu preempted, %llu tokens from the cache, "
                  "%llu guessed right; pieces together in %u turns\n",
                  n, n_cancelled, (unsigned long long)load.preemptions,
                  (unsigned long long)load.prefix_hit_tokens,
                  (unsigned long long)load.accepted_tokens, n_follow);
    assert_true(n_follow > 50 && n_cancelled > 5 && load.preemptions > 3);
    assert_true(load.prefix_hit_tokens > 1000);
    assert_true(rig->config.speculate_max == 0 || load.accepted_tokens > 100);
    assert_int_equal(load.kv_tokens_free, load.kv_tokens_total);
    for (uint32_t i = 0; i < rig->n_sequences; i++) {
        assert_int_equal(rig->sequences[i].n_ends, 1);
        if (rig->sequences[i].end == END_FINISHED)
            rig_check_text(&rig->sequences[i]);
    }
    rig_free(rig);
}

static void test_pieces_of_a_prompt_follow_each_other_through_the_stages(void **state)
{
    (void)state;
    run_pieces(two_stages_few_blocks);
}

static void test_pieces_and_guesses_share_the_stages(void **state)
{
    (void)state;
    rig_repeats = 20;
    run_pieces(guessing);
    rig_repeats = 0;
}

static void three_stages(scheduler_config_t *config)
{
    config->stages = 3;
    config->step_tokens_max = 64;
}

/* Rows of logits are in no flight beside another; what comes before the first of them is. */
static void logits_of_the_last(admission_t *admission)
{
    admission->logits_from = admission->n_prompt - 1;
}

static void test_a_piece_without_rows_of_logits_follows_another(void **state)
{
    (void)state;
    rig_t *rig = rig_new(three_stages);
    rig_admit(rig, "last", 200, 3, 2, logits_of_the_last);
    uint32_t n_together = 0, n_rows = 0;
    for (int i = 0; i < 20 && n_rows < 200; i++) {
        while (rig_plan(rig)) {
            n_rows += rig->entries[0].n_tokens;
            assert_true(n_rows < 200 || rig->n_flights == 1);
            n_together = rig->n_flights > n_together ? rig->n_flights : n_together;
        }
        rig_return(rig);
    }
    assert_int_equal(n_together, 4); /* one for each stage, and one ahead */
    rig_run(rig);
    rig_check_text(rig_find(rig, "last"));
    rig_free(rig);
}

static void two_stages_small_chunks(scheduler_config_t *config)
{
    config->stages = 2;
    config->step_tokens_max = 40;
    config->whole_prompts = true;
}

/* While the first chunk of a prompt is in flight, its third block is half written. */
static void test_a_block_is_shared_only_when_all_of_it_was_planned(void **state)
{
    (void)state;
    rig_t *rig = rig_new(two_stages_small_chunks);
    rig_admit(rig, "runs", 5, 1, 50, NULL);
    rig_step(rig);
    rig_admit(rig, "first", 100, 0, 5, NULL);
    rig_admit(rig, "second", 100, 0, 5, NULL);
    assert_true(rig_plan(rig));
    assert_true(rig_planned(rig, "first"));
    assert_int_equal(rig->entries[0].n_tokens, 40);
    assert_true(rig_plan(rig));
    assert_true(rig_planned(rig, "second"));
    assert_int_equal(rig->entries[rig->n_entries - 1].position, 32);
    rig_return(rig);
    rig_run(rig);
    rig_check_text(rig_find(rig, "first"));
    rig_check_text(rig_find(rig, "second"));
    rig_free(rig);
}

/* The number of plans until this one is in a plan; the flights come back as late as they can. */
static uint32_t plans_until(rig_t *rig, const char *name)
{
    uint32_t n = 0;
    for (bool planned = false; !planned; n++) {
        assert_true(n < 40);
        if (!rig_plan(rig)) {
            rig_return(rig);
            assert_true(rig_plan(rig));
        }
        planned = rig_planned(rig, name);
    }
    return n;
}

static void two_stages_long_contexts(scheduler_config_t *config)
{
    config->stages = 2;
    config->n_blocks = 200;
    config->context_max = 1200;
    config->step_tokens_max = 64;
}

static void test_further_pieces_keep_no_other_prompt_waiting(void **state)
{
    (void)state;
    rig_t *rig = rig_new(two_stages_long_contexts);
    rig_admit(rig, "long", 950, 0, 3, NULL);
    assert_true(rig_plan(rig));
    rig_admit(rig, "short", 20, 1, 3, NULL);
    assert_int_equal(plans_until(rig, "short"), 1);
    rig_run(rig);
    rig_check_text(rig_find(rig, "long"));
    rig_check_text(rig_find(rig, "short"));
    rig_free(rig);
}

static void two_stages_whole_prompts(scheduler_config_t *config)
{
    two_stages_long_contexts(config);
    config->step_tokens_max = 512;
    config->whole_prompts = true;
}

/* The first stage would be in the midst of it when the last one wants its part of the head. */
static void test_a_piece_goes_ahead_of_the_batches_but_of_no_head(void **state)
{
    (void)state;
    rig_t *rig = rig_new(two_stages_whole_prompts);
    rig_admit(rig, "short", 20, 1, 1, NULL);
    assert_true(rig_plan(rig));
    assert_true(rig->entries[0].sample);
    rig_admit(rig, "long", 950, 0, 3, NULL);
    assert_true(rig_plan(rig));
    assert_false(rig_plan(rig));
    rig_return(rig); /* the end of the short one */
    assert_true(rig_plan(rig));
    assert_true(rig_plan(rig));
    assert_false(rig_plan(rig));
    assert_int_equal(rig->n_flights, 3);
    rig_run(rig);
    rig_check_text(rig_find(rig, "long"));
    rig_free(rig);
}

enum { DECODERS = 8 };

static void two_stages_short_steps(scheduler_config_t *config)
{
    two_stages_whole_prompts(config);
    config->batch_max = 16;
    config->step_tokens_max = 256;
}

/* Eight who decode, each of which has had its first token. */
static rig_t *start_decoders(void (*change)(scheduler_config_t *config))
{
    rig_t *rig = rig_new(change);
    char name[8];
    for (int i = 0; i < DECODERS; i++) {
        snprintf(name, sizeof name, "d%d", i);
        rig_admit(rig, name, 5, (uint32_t)i, 100, NULL);
    }
    for (int turn = 0; turn < 6; turn++) {
        while (rig_plan(rig))
            continue;
        while (rig->n_flights > 0)
            rig_return(rig);
        rig_take(rig, rig->stream);
    }
    for (int i = 0; i < DECODERS; i++)
        assert_true(rig->sequences[i].n_ids > 0);
    return rig;
}

/* Plans one step; what is in flight comes back as late as it can, or before the next plan. */
static void plan_next(rig_t *rig, bool late)
{
    while (!late && rig->n_flights > 0)
        rig_return(rig);
    while (!rig_plan(rig))
        rig_return(rig);
}

/* Of a prompt of 900 rows go 256 and what fills the piece, then each who decodes has a turn, once: nobody
 * waits for more rows than these, and a piece that is in the turn. */
static void check_turns(bool late)
{
    uint32_t rows = 0, n_pieces = 0, n_alone = 0, most = 0, rows_at[DECODERS] = {0};
    rig_t *rig = start_decoders(two_stages_short_steps);
    rig_admit(rig, "prompt", 900, 9, 3, NULL);
    while (rows < 900) {
        uint32_t n = 0;
        plan_next(rig, late);
        for (uint32_t i = 0; i < rig->n_entries; i++) {
            assert_true(rig->entries[i].n_tokens <= 128);
            n += strcmp(rig->entries[i].session, "prompt") == 0 ? rig->entries[i].n_tokens : 0;
        }
        for (uint32_t d = 0; d < DECODERS; d++) {
            if (rig_planned(rig, rig->sequences[d].session))
                rows_at[d] = rows;
            most = rows - rows_at[d] > most ? rows - rows_at[d] : most;
        }
        rows += n;
        n_pieces += n > 0;
        n_alone += n > 0 && rig->n_entries == 1;
    }
    print_message("%u pieces, %u alone; who decodes waited for %u rows\n", n_pieces, n_alone, most);
    assert_in_range(n_pieces, 8, 16);
    assert_in_range(n_alone, 6, n_pieces - 2);
    assert_in_range(most, 256, 256 + 2 * 128);
    rig_run(rig);
    rig_check_text(rig_find(rig, "prompt"));
    rig_free(rig);
}

static void test_whole_prompts_go_in_pieces_between_turns_of_all_who_decode(void **state)
{
    (void)state;
    check_turns(true);
    check_turns(false);
}

/* A prompt a step, which is less than a piece or has no more than that to compute. */
static void check_short_prompts(uint32_t n_prompt, uint32_t salts, bool late)
{
    uint32_t last[DECODERS] = {0}, most = 0;
    char name[16];
    rig_t *rig = start_decoders(two_stages_whole_prompts);
    if (salts == 1) { /* the first one fills the cache */
        rig_admit(rig, "before", n_prompt, 20, 1, NULL);
        while (rig_find(rig, "before")->n_ends == 0)
            rig_step(rig);
    }
    for (uint32_t step = 1; step <= 60; step++) {
        snprintf(name, sizeof name, "p%u", step);
        rig_admit(rig, name, n_prompt, 20 + step % salts, 1, NULL);
        plan_next(rig, late);
        rig_take(rig, rig->stream);
        for (uint32_t d = 0; d < DECODERS; d++) {
            if (rig_planned(rig, rig->sequences[d].session))
                last[d] = step;
            most = step - last[d] > most ? step - last[d] : most;
        }
    }
    print_message("prompts of %u: who decodes waited for %u steps\n", n_prompt, most);
    assert_true(most <= 4);
    rig_run(rig);
    for (uint32_t i = 0; i < rig->n_sequences; i++)
        rig_check_text(&rig->sequences[i]);
    rig_free(rig);
}

static void test_short_prompts_take_no_steps_of_their_own(void **state)
{
    (void)state;
    for (int late = 0; late < 2; late++) {
        check_short_prompts(20, 25, late);
        check_short_prompts(500, 1, late);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_block_is_shared_only_when_all_of_it_was_planned),
        cmocka_unit_test(test_pieces_of_a_prompt_follow_each_other_through_the_stages),
        cmocka_unit_test(test_pieces_and_guesses_share_the_stages),
        cmocka_unit_test(test_further_pieces_keep_no_other_prompt_waiting),
        cmocka_unit_test(test_a_piece_goes_ahead_of_the_batches_but_of_no_head),
        cmocka_unit_test(test_whole_prompts_go_in_pieces_between_turns_of_all_who_decode),
        cmocka_unit_test(test_short_prompts_take_no_steps_of_their_own),
        cmocka_unit_test(test_a_piece_without_rows_of_logits_follows_another),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
