/* Sequences divided among pools of KV blocks, one for each replica of attention: who lives where, who
 * gives way to whom, and that no schedule changes a text. The rig keeps a KV for each pool, so a row
 * that is sent to the wrong one reads what is not its own. */
#include <stdio.h>
#include <string.h>

#include "scheduler_rig.h"

static void two_pools(scheduler_config_t *config)
{
    config->pools = 2;
}

/* The pool of a sequence in the plan that was made last. */
static uint32_t pool_of(const rig_t *rig, const char *session)
{
    for (uint32_t i = 0; i < rig->n_entries; i++)
        if (strcmp(rig->entries[i].session, session) == 0)
            return rig->entries[i].pool;
    fail_msg("%s is not in the plan", session);
    return 0;
}

static void test_each_starts_where_most_room_is(void **state)
{
    (void)state;
    rig_t *rig = rig_new(two_pools);
    char name[16];
    uint32_t n_in[2] = {0};
    for (uint32_t i = 0; i < 6; i++) {
        snprintf(name, sizeof name, "s%u", i);
        rig_admit(rig, name, 10, i, 20, NULL);
    }
    assert_true(rig_plan(rig));
    assert_int_equal(rig->n_entries, 6);
    for (uint32_t i = 0; i < 6; i++)
        n_in[rig->entries[i].pool]++;
    assert_true(n_in[0] == 3 && n_in[1] == 3);
    rig_return(rig);
    scheduler_load_t load;
    scheduler_load(rig->s, &load);
    assert_int_equal(load.kv_tokens_total, 2 * 64 * KV_BLOCK_TOKENS);
    assert_int_equal(load.kv_tokens_free, (2 * 64 - 6) * KV_BLOCK_TOKENS);
    rig_run(rig);
    for (uint32_t i = 0; i < 6; i++)
        rig_check_text(&rig->sequences[i]);
    rig_free(rig);
}

static void few_blocks(scheduler_config_t *config)
{
    config->pools = 2;
    config->n_blocks = 12;
    config->context_max = 192;
}

static void narrow_pools(scheduler_config_t *config)
{
    config->pools = 2;
    config->n_blocks = 12;
}

static void test_no_sequence_has_blocks_of_two_pools(void **state)
{
    (void)state;
    rig_t *rig = rig_new(narrow_pools);
    rig_sequence_t *fits = rig_admit(rig, "fits", 100, 0, 92, NULL); /* twelve blocks */
    rig_sequence_t *big = rig_admit(rig, "big", 100, 1, 93, NULL);   /* thirteen */
    rig_run(rig);
    rig_check_text(fits);
    assert_int_equal(big->end, END_REFUSED);
    assert_string_equal(big->code, "too_long");
    rig_free(rig);
}

static void test_a_beginning_is_found_in_the_pool_that_has_it(void **state)
{
    (void)state;
    rig_t *rig = rig_new(two_pools);
    rig_admit(rig, "other", 40, 1, 1, NULL);
    rig_run(rig);
    rig_admit(rig, "first", 200, 0, 1, NULL);
    assert_true(rig_plan(rig));
    uint32_t home = pool_of(rig, "first");
    rig_return(rig);
    rig_run(rig);
    /* Company in its pool, so that the other has more room. */
    rig_admit(rig, "held0", 190, 0, 100, NULL);
    rig_admit(rig, "held1", 190, 0, 100, NULL);
    assert_true(rig_plan(rig));
    assert_true(pool_of(rig, "held0") == home && pool_of(rig, "held1") == home);
    rig_return(rig);
    rig_admit(rig, "again", 200, 0, 100, NULL);
    assert_true(rig_plan(rig));
    assert_int_equal(pool_of(rig, "again"), home);
    rig_return(rig);
    /* Three run there now and none elsewhere: its twelve blocks are not worth a fourth. */
    rig_admit(rig, "crowd", 200, 0, 100, NULL);
    assert_true(rig_plan(rig));
    assert_int_equal(pool_of(rig, "crowd"), 1 - home);
    rig_return(rig);
    /* A stranger goes where room is. */
    rig_admit(rig, "stranger", 100, 7, 5, NULL);
    assert_true(rig_plan(rig));
    assert_int_equal(pool_of(rig, "stranger"), 1 - home);
    rig_return(rig);
    rig_run(rig);
    assert_int_equal(rig_find(rig, "again")->n_cached, 192);
    assert_int_equal(rig_find(rig, "crowd")->n_cached, 0);
    assert_int_equal(rig_find(rig, "stranger")->n_cached, 0);
    for (uint32_t i = 0; i < rig->n_sequences; i++)
        rig_check_text(&rig->sequences[i]);
    rig_free(rig);
}

static void test_a_full_pool_sends_its_own_beginning_to_the_next(void **state)
{
    (void)state;
    rig_t *rig = rig_new(few_blocks);
    rig_admit(rig, "a", 96, 0, 60, NULL);
    while (rig_find(rig, "a")->n_ids < 5)
        assert_true(rig_step(rig));
    assert_true(rig_plan(rig));
    uint32_t home = pool_of(rig, "a");
    rig_return(rig);
    /* Six blocks of it stand there, but five free ones are too few for a stranger's ten and for
     * its own rest of six. */
    rig_sequence_t *b = rig_admit(rig, "b", 180, 0, 5, NULL);
    assert_true(rig_plan(rig));
    assert_int_equal(pool_of(rig, "a"), home);
    assert_int_equal(pool_of(rig, "b"), 1 - home);
    rig_return(rig);
    rig_run(rig);
    assert_int_equal(b->n_cached, 0);
    rig_check_text(rig_find(rig, "a"));
    rig_check_text(b);
    rig_free(rig);
}

static void test_the_oldest_of_each_pool_is_in_every_step(void **state)
{
    (void)state;
    rig_t *rig = rig_new(few_blocks);
    scheduler_load_t load;
    char name[16];
    const char *oldest[2] = {NULL, NULL};
    for (uint32_t i = 0; i < 8; i++) {
        snprintf(name, sizeof name, "s%u", i);
        rig_admit(rig, name, 20, i, 100, NULL);
    }
    for (int turn = 0; turn < 5000 && rig_plan(rig); turn++) {
        for (uint32_t i = 0; i < rig->n_entries && turn == 0; i++) {
            rig_sequence_t *q = rig_find(rig, rig->entries[i].session);
            uint32_t pool = rig->entries[i].pool;
            if (!oldest[pool] || strcmp(q->session, oldest[pool]) < 0)
                oldest[pool] = q->session;
        }
        for (uint32_t pool = 0; pool < 2; pool++)
            if (rig_find(rig, oldest[pool])->n_ends == 0)
                assert_int_equal(pool_of(rig, oldest[pool]), pool);
        rig_return(rig);
        rig_take(rig, rig->stream);
    }
    scheduler_load(rig->s, &load);
    assert_true(load.preemptions > 0);
    for (uint32_t i = 0; i < 8; i++)
        rig_check_text(&rig->sequences[i]);
    assert_int_equal(load.kv_tokens_free, load.kv_tokens_total);
    rig_free(rig);
}

static void test_nobody_gives_way_to_another_pool(void **state)
{
    (void)state;
    rig_t *rig = rig_new(few_blocks);
    scheduler_load_t load;
    rig_admit(rig, "a", 96, 0, 90, NULL);
    while (rig_find(rig, "a")->n_ids == 0)
        assert_true(rig_step(rig));
    rig_admit(rig, "b", 96, 0, 90, NULL); /* begins like a, and so grows beside it */
    rig_admit(rig, "c", 10, 1, 150, NULL); /* the youngest, alone in its pool */
    for (int turn = 0; rig_find(rig, "c")->n_ends == 0; turn++) {
        assert_true(rig_plan(rig));
        if (turn == 0)
            assert_true(pool_of(rig, "a") == pool_of(rig, "b") &&
                        pool_of(rig, "a") != pool_of(rig, "c"));
        pool_of(rig, "c"); /* is in every step */
        rig_return(rig);
        rig_take(rig, rig->stream);
    }
    scheduler_load(rig->s, &load);
    assert_true(load.preemptions > 0);
    rig_run(rig);
    for (uint32_t i = 0; i < 3; i++)
        rig_check_text(&rig->sequences[i]);
    rig_free(rig);
}

static void three_pools(scheduler_config_t *config)
{
    config->pools = 3;
    config->stages = 3;
    config->n_blocks = 12;
    config->context_max = 192;
    config->speculate_max = 4;
}

static void test_a_long_random_run_keeps_every_text(void **state)
{
    (void)state;
    rig_t *rig = rig_new(three_pools);
    uint32_t cached = 0;
    assert_true(rig_run_random(rig, 11, 6000, RIG_SEQUENCES_MAX, 60) > 50);
    for (uint32_t i = 0; i < rig->n_sequences; i++)
        cached += rig->sequences[i].end == END_FINISHED && rig->sequences[i].n_cached > 0;
    assert_true(cached > 10);
    rig_free(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_starts_where_most_room_is),
        cmocka_unit_test(test_no_sequence_has_blocks_of_two_pools),
        cmocka_unit_test(test_a_beginning_is_found_in_the_pool_that_has_it),
        cmocka_unit_test(test_a_full_pool_sends_its_own_beginning_to_the_next),
        cmocka_unit_test(test_the_oldest_of_each_pool_is_in_every_step),
        cmocka_unit_test(test_nobody_gives_way_to_another_pool),
        cmocka_unit_test(test_a_long_random_run_keeps_every_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
