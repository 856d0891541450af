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

/* Of a prompt of 900 rows go 512 and what fills the piece, then those who decode have a turn. */
static void check_turns(rig_t *rig)
{
    uint32_t rows = 0, rows_at_turn = 0, n_pieces = 0, n_decodes = 0, n_together = 0;
    while (rows < 900) {
        if (!rig_plan(rig)) {
            rig_return(rig);
            continue;
        }
        for (uint32_t i = 0; i < rig->n_entries; i++) {
            bool piece = strcmp(rig->entries[i].session, "prompt") == 0;
            if (!piece && n_decodes++ == 0)
                rows_at_turn = rows;
            rows += piece ? rig->entries[i].n_tokens : 0;
            n_pieces += piece;
            assert_true(rig->entries[i].n_tokens <= 128);
        }
        n_together += rig->n_flights >= 2 && rows < 900;
    }
    print_message("%u pieces, the turn of those who decode after %u rows\n", n_pieces, rows_at_turn);
    assert_in_range(n_pieces, 8, 16);
    assert_in_range(n_together, n_pieces - 3, n_pieces);
    assert_in_range(rows_at_turn, 512 - 128, 512 + 128);
    assert_in_range(n_decodes, 1, 4);
}

static void test_whole_prompts_go_in_pieces_while_those_who_decode_wait_for_a_step(void **state)
{
    (void)state;
    rig_t *rig = rig_new(two_stages_whole_prompts);
    char name[8];
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "d%d", i);
        rig_admit(rig, name, 5, (uint32_t)i, 50, NULL);
    }
    /* One batch on each stage, or two of the four would never get a place. */
    for (int turn = 0; turn < 6; turn++) {
        while (rig_plan(rig))
            continue;
        while (rig->n_flights > 0)
            rig_return(rig);
        rig_take(rig, rig->stream);
    }
    for (int i = 0; i < 4; i++)
        assert_true(rig->sequences[i].n_ids > 0);
    rig_admit(rig, "prompt", 900, 5, 3, NULL);
    check_turns(rig);
    rig_run(rig);
    rig_check_text(rig_find(rig, "prompt"));
    rig_free(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_block_is_shared_only_when_all_of_it_was_planned),
        cmocka_unit_test(test_pieces_of_a_prompt_follow_each_other_through_the_stages),
        cmocka_unit_test(test_pieces_and_guesses_share_the_stages),
        cmocka_unit_test(test_further_pieces_keep_no_other_prompt_waiting),
        cmocka_unit_test(test_a_piece_goes_ahead_of_the_batches_but_of_no_head),
        cmocka_unit_test(test_whole_prompts_go_in_pieces_while_those_who_decode_wait_for_a_step),
        cmocka_unit_test(test_a_piece_without_rows_of_logits_follows_another),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
