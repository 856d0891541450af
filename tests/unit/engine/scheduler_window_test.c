/* Models whose every layer has a window: a sequence gives back the blocks that none of its further
 * rows sees, whatever it is then preempted for, found again by or guesses. The rig holds every key
 * that a row can see against the text's own, so a block that is given back too early shows at once. */
#include <stdio.h>

#include "scheduler_rig.h"

enum { WINDOW = 64, HELD_BLOCKS = 16 /* of a window, a step of 64 rows and their tiles */ };

static void windowed(scheduler_config_t *config)
{
    config->window = WINDOW;
}

static void narrow(scheduler_config_t *config)
{
    config->window = WINDOW;
    config->n_blocks = HELD_BLOCKS + 4;
}

static scheduler_load_t load_of(const rig_t *rig)
{
    scheduler_load_t load;
    scheduler_load(rig->s, &load);
    return load;
}

static void test_a_sequence_is_longer_than_all_blocks_there_are(void **state)
{
    (void)state;
    rig_t *rig = rig_new(narrow);
    /* Credit for the whole of it, though there is not so much room. */
    assert_true(scheduler_credit(rig->s, rig->stream) >= rig->config.context_max);
    rig_sequence_t *q = rig_admit(rig, "long", 300, 0, 212, NULL); /* 32 blocks of 20 */
    uint64_t least = UINT64_MAX;
    while (rig_plan(rig)) {
        uint64_t free_tokens = load_of(rig).kv_tokens_free;
        least = free_tokens < least ? free_tokens : least;
        rig_return(rig);
        rig_take(rig, rig->stream);
    }
    rig_check_text(q);
    assert_int_equal(q->n_ids, 212);
    /* What it gave back is kept for others, and free to be taken. */
    assert_true(least >= 4 * KV_BLOCK_TOKENS);
    assert_int_equal(load_of(rig).preemptions, 0);
    rig_free(rig);
}

static void test_a_window_makes_room_for_more_at_once(void **state)
{
    (void)state;
    for (uint32_t window = 0; window <= WINDOW; window += WINDOW) {
        rig_t *rig = rig_new(window ? windowed : NULL);
        char name[16];
        uint64_t together = 0;
        for (uint32_t i = 0; i < 4; i++) {
            snprintf(name, sizeof name, "s%u", i);
            rig_admit(rig, name, 200, i, 300, NULL); /* 32 blocks each, of 64 */
        }
        while (rig_step(rig)) {
            uint64_t running = load_of(rig).running;
            together = running > together ? running : together;
        }
        for (uint32_t i = 0; i < 4; i++)
            rig_check_text(&rig->sequences[i]);
        if (window) {
            assert_int_equal(together, 4);
            assert_int_equal(load_of(rig).preemptions, 0);
        } else { /* they start, and have to make room for each other */
            assert_true(together < 4 || load_of(rig).preemptions > 0);
        }
        rig_free(rig);
    }
}

static void crowded(scheduler_config_t *config)
{
    config->window = WINDOW;
    config->n_blocks = 2 * HELD_BLOCKS + 3;
    config->stages = 2;
    config->speculate_max = 4;
    config->fixed_rows = 16;
    config->pools = 2;
}

static void tiny(scheduler_config_t *config)
{
    crowded(config);
    config->window = 1;
    config->pools = 1;
    config->n_blocks = 14;
}

/* Guesses, two stages, pools that are too small: no schedule changes a text. */
static void test_no_schedule_changes_a_text(void **state)
{
    (void)state;
    void (*const all[])(scheduler_config_t *) = {windowed, narrow, crowded, tiny};
    for (size_t c = 0; c < sizeof all / sizeof *all; c++) {
        uint64_t preemptions = 0;
        for (rig_repeats = 0; rig_repeats <= 9; rig_repeats += 9) {
            rig_t *rig = rig_new(all[c]);
            char name[16];
            for (uint32_t i = 0; i < 9; i++) {
                snprintf(name, sizeof name, "s%u", i);
                rig_admit(rig, name, 30 + 37 * (i % 5), i % 4, 150, NULL);
            }
            /* With two stages a second plan is made before the first result is back. */
            bool more = true;
            while (more || rig->n_flights > 0) {
                more = rig->n_flights < rig->config.stages && rig_plan(rig);
                if (!more && rig->n_flights > 0) {
                    rig_return(rig);
                    rig_take(rig, rig->stream);
                    more = true;
                }
            }
            for (uint32_t i = 0; i < 9; i++)
                rig_check_text(&rig->sequences[i]);
            preemptions += load_of(rig).preemptions;
            assert_int_equal(load_of(rig).kv_tokens_free, load_of(rig).kv_tokens_total);
            rig_free(rig);
        }
        print_message("%zu: %llu preemptions\n", c, (unsigned long long)preemptions);
        if (all[c] == crowded)
            assert_true(preemptions > 0);
    }
    rig_repeats = 0;
}

static void roomy(scheduler_config_t *config)
{
    config->window = WINDOW;
    config->n_blocks = 40;
}

/* What was given back first is not what is given up first once the sequence has ended: without its
 * beginning nothing behind it could be found. */
static void test_the_beginning_of_what_ended_is_found_again(void **state)
{
    (void)state;
    rig_t *rig = rig_new(roomy);
    rig_sequence_t *first = rig_admit(rig, "first", 400, 1, 8, NULL); /* 26 blocks */
    rig_run(rig);
    rig_sequence_t *again = rig_admit(rig, "again", 400, 1, 8, NULL);
    rig_run(rig);
    assert_int_equal(again->n_cached, 384);
    rig_admit(rig, "other", 300, 2, 100, NULL); /* ten more than are free */
    rig_run(rig);
    rig_sequence_t *last = rig_admit(rig, "last", 400, 1, 8, NULL);
    rig_run(rig);
    assert_true(last->n_cached >= 12 * KV_BLOCK_TOKENS && last->n_cached < 384);
    rig_check_text(first);
    rig_check_text(again);
    rig_check_text(last);
    rig_free(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_sequence_is_longer_than_all_blocks_there_are),
        cmocka_unit_test(test_a_window_makes_room_for_more_at_once),
        cmocka_unit_test(test_no_schedule_changes_a_text),
        cmocka_unit_test(test_the_beginning_of_what_ended_is_found_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
