/* What an agent makes of ranks that die, fall silent or stand still. */
#include "agent_world.h"

/* So many ticks a formation waits for who has not left the epoch before. */
#define LEAVE_TICKS 10u

static void test_a_crash_is_told_with_the_sessions_that_the_leader_names(void **state)
{
    (void)state;
    world_t world = active_world();
    died(&world, 2, true, "killed by signal 11");
    expect(&world, AGENT_RELEASE);
    expect(&world, AGENT_MARK_DEAD);
    assert_int_equal(world.action.rank, 1);
    expect(&world, AGENT_ABORT);
    expect(&world, AGENT_END);
    expect_nothing(&world); /* held back for the leader's account */
    world.now += 20;
    failed(&world, 1, 10, STATUS_PEER_LOST, 1, false, "0123456789abcdef0123456789abcdef");
    expect(&world, AGENT_PUBLISH_FAILED);
    const agent_failure_t *failure = world.action.failed;
    assert_true(failure->crashed);
    assert_int_equal(failure->rank, 1);
    assert_int_equal(failure->n_sessions, 1);
    assert_non_null(strstr(failure->text, "rank 1 (host a): killed by signal 11"));
    assert_string_equal(failure->other_host, "");
    tick(&world, 5);
    beat(&world, 1, 1, false, 0);
    expect_nothing(&world);
    agent_core_free(world.core);
}

static void test_a_crash_is_told_without_the_leaders_account_when_none_comes(void **state)
{
    (void)state;
    world_t world = active_world();
    died(&world, 2, true, "killed by signal 11");
    skip_to(&world, AGENT_END);
    tick(&world, 1);
    expect_nothing(&world); /* the leader may still name the sessions */
    tick(&world, 1);
    expect(&world, AGENT_PUBLISH_FAILED);
    assert_true(world.action.failed->crashed);
    agent_core_free(world.core);
}

static void test_the_leaders_account_that_comes_first_waits_for_the_death(void **state)
{
    (void)state;
    world_t world = active_world();
    failed(&world, 1, 10, STATUS_PEER_LOST, 1, false, "0123456789abcdef0123456789abcdef");
    skip_to(&world, AGENT_END);
    expect_nothing(&world);
    died(&world, 2, true, "killed by signal 11");
    skip_to(&world, AGENT_PUBLISH_FAILED);
    assert_true(world.action.failed->crashed);
    assert_int_equal(world.action.failed->n_sessions, 1);
    agent_core_free(world.core);
}

static void test_a_dead_link_is_reported_as_a_pair_of_hosts(void **state)
{
    (void)state;
    world_t world = world_new(0);
    assign(&world, 10, 1, 2, "ab");
    skip_to(&world, AGENT_SPAWN);
    hello(&world, 1, "mine");
    agent_core_peer(world.core, "smol", 0, 10, 1, (const uint8_t *)"peer", 4, world.now);
    active(&world, 1, 10);
    skip_to(&world, AGENT_PUBLISH_ACTIVE);
    failed(&world, 1, 10, STATUS_PEER_LOST, 1, true, NULL);
    skip_to(&world, AGENT_END);
    tick(&world, 3);
    beat(&world, 1, 1, false, 0);
    tick(&world, 2);
    expect(&world, AGENT_PUBLISH_FAILED);
    assert_string_equal(world.action.failed->host, "a");
    assert_string_equal(world.action.failed->other_host, "b");
    assert_int_equal(world.action.failed->rank, 1);
    agent_core_free(world.core);
}

static void test_a_rank_without_beats_is_killed_after_600_ms_and_its_epoch_failed(void **state)
{
    (void)state;
    world_t world = active_world();
    beat(&world, 1, 1, false, 0);
    beat(&world, 2, 1, false, 0);
    for (int i = 0; i < 6; i++) {
        tick(&world, 1);
        beat(&world, 1, 1, false, 0);
        expect_nothing(&world);
    }
    tick(&world, 1);
    expect(&world, AGENT_KILL);
    assert_int_equal(world.action.rank_id, 2);
    expect_nothing(&world);
    died(&world, 2, false, "killed by signal 9");
    skip_to(&world, AGENT_END);
    tick(&world, 4);
    skip_to(&world, AGENT_PUBLISH_FAILED);
    assert_false(world.action.failed->crashed);
    assert_non_null(strstr(world.action.failed->text, "no progress beat for 600 ms"));
    agent_core_free(world.core);
}

static void test_a_rank_that_its_peers_find_silent_is_killed_before_the_next_epoch(void **state)
{
    (void)state;
    world_t world = active_world();
    failed(&world, 1, 10, STATUS_PEER_LOST, 1, true, NULL);
    expect(&world, AGENT_KILL);
    assert_int_equal(world.action.rank_id, 2);
    skip_to(&world, AGENT_END);
    assign(&world, 20, 2, 1, "aa");
    skip_to(&world, AGENT_PUBLISH_RANK);
    expect_nothing(&world); /* its successor waits for its death */
    died(&world, 2, false, "killed by signal 9");
    skip_to(&world, AGENT_SPAWN);
    assert_int_equal(world.action.rank, 1);
    agent_core_free(world.core);
}

static void test_an_agent_that_was_stopped_itself_takes_nobody_for_silent(void **state)
{
    (void)state;
    world_t world = active_world();
    beat(&world, 1, 1, false, 0);
    beat(&world, 2, 1, false, 0);
    world.now += 10000; /* no tick meanwhile: the whole machine slept */
    tick(&world, 2);
    expect_nothing(&world);
    agent_core_free(world.core);
}

static void test_a_rank_that_waits_at_work_without_computing_is_killed_after_5_s(void **state)
{
    (void)state;
    world_t world = active_world();
    for (uint32_t i = 0; i < AGENT_STUCK_IDLE_MS / AGENT_TICK_MS; i++) {
        beat_used(&world, 1, i, 50 * i); /* works */
        beat_used(&world, 2, 7, 900);    /* is busy and does not get on */
        tick(&world, 1);
        expect_nothing(&world);
    }
    beat_used(&world, 1, 1, 3000);
    beat_used(&world, 2, 7, 900);
    tick(&world, 1);
    expect(&world, AGENT_KILL);
    assert_int_equal(world.action.rank_id, 2);
    assert_non_null(strstr(world.action.text, "without computing"));
    expect_nothing(&world);
    agent_core_free(world.core);
}

/* Two beats a tick: of the first rank, which gets on, and of the second. */
static void load_for(world_t *world, uint32_t ticks, uint64_t *progress, bool second_moves)
{
    for (uint32_t i = 0; i < ticks; i++) {
        beat_loading(world, 1, ++*progress, 10);
        beat_loading(world, 2, second_moves ? *progress : 7, 43);
        tick(world, 1);
    }
}

static void test_a_rank_that_stands_still_while_it_loads_is_killed_after_30_s_and_named(void **state)
{
    (void)state;
    world_t world = world_new(0);
    uint64_t progress = 0;
    agent_plan_t plan = plan_of(10, 2, 1, "aa");
    plan.formation_ms = 600000; /* the weights are many */
    assert_int_equal(agent_core_assign(world.core, &plan, world.now), STATUS_OK);
    hello(&world, 1, "first");
    hello(&world, 2, "second");
    load_for(&world, 2 * AGENT_STUCK_LOADING_MS / AGENT_TICK_MS, &progress, true);
    while (next(&world))
        assert_int_not_equal(world.action.kind, AGENT_KILL);
    /* A disk that is slow for a while is no reason; longer than for work is waited. */
    load_for(&world, AGENT_STUCK_LOADING_MS / AGENT_TICK_MS, &progress, false);
    while (next(&world))
        assert_int_not_equal(world.action.kind, AGENT_KILL);
    load_for(&world, 1, &progress, false);
    skip_to(&world, AGENT_KILL);
    assert_int_equal(world.action.rank_id, 2);
    assert_non_null(strstr(world.action.text, "loading (43 %) without progress for 30000 ms"));
    died(&world, 2, false, "killed by signal 9");
    skip_to(&world, AGENT_PUBLISH_FAILED);
    assert_int_equal(world.action.failed->rank, 1);
    assert_non_null(strstr(world.action.failed->text, "rank 1 (host a)"));
    assert_non_null(strstr(world.action.failed->text, "loading (43 %)"));
    agent_core_free(world.core);
}

static void test_loads_that_take_long_are_shown_once_a_second_until_they_end(void **state)
{
    (void)state;
    world_t world = world_new(0);
    uint32_t n = 0, last = 0;
    agent_plan_t plan = plan_of(10, 2, 1, "aa");
    plan.formation_ms = 600000;
    assert_int_equal(agent_core_assign(world.core, &plan, world.now), STATUS_OK);
    hello(&world, 1, "first");
    hello(&world, 2, "second");
    while (next(&world))
        ;
    for (uint32_t i = 1; i <= 48; i++) {
        beat_loading(&world, 1, i, 90);
        beat_loading(&world, 2, i, (uint8_t)i); /* the slower one counts */
        tick(&world, 1);
        while (next(&world)) {
            assert_int_equal(world.action.kind, AGENT_PUBLISH_LOADING);
            assert_int_equal(world.action.percent, i);
            assert_true(i >= AGENT_LOADING_SHOWN_MS / AGENT_TICK_MS);
            assert_true(n == 0 || i - last >= AGENT_LOADING_TELL_MS / AGENT_TICK_MS);
            last = i;
            n++;
        }
    }
    assert_int_equal(n, 3);
    beat(&world, 1, 50, false, 0);
    beat(&world, 2, 50, false, 0);
    tick(&world, 1);
    expect(&world, AGENT_PUBLISH_LOADING);
    assert_int_equal(world.action.percent, 100);
    tick(&world, 1);
    expect_nothing(&world);
    agent_core_free(world.core);
}

static void test_a_rank_that_computes_slowly_has_a_minute_for_a_piece_of_work(void **state)
{
    (void)state;
    world_t world = active_world();
    for (uint32_t i = 0; i < AGENT_STUCK_MS / AGENT_TICK_MS; i++) {
        beat_used(&world, 1, i, 50 * i);
        beat_used(&world, 2, 7, 900 + 10 * i); /* a tenth of a processor is all that it gets */
        tick(&world, 1);
        expect_nothing(&world);
    }
    beat_used(&world, 1, 1, 90000);
    beat_used(&world, 2, 7, 9000);
    tick(&world, 1);
    expect(&world, AGENT_KILL);
    assert_int_equal(world.action.rank_id, 2);
    expect_nothing(&world);
    agent_core_free(world.core);
}

static void test_a_rank_that_is_idle_is_not_stuck_for_as_long_as_it_likes(void **state)
{
    (void)state;
    world_t world = active_world();
    for (uint32_t i = 0; i < 700; i++) {
        beat(&world, 1, 3, false, 0);
        beat(&world, 2, 7, false, 0);
        tick(&world, 1);
    }
    expect_nothing(&world);
    agent_core_free(world.core);
}

static const char flying[2][CONTROL_SESSION_BYTES] = {"0123456789abcdef0123456789abcdef",
                                                      "fedcba9876543210fedcba9876543210"};

static void test_a_leaders_crash_is_told_at_once_with_the_sessions_of_its_last_step(void **state)
{
    (void)state;
    world_t world = active_world();
    const agent_death_t death = {true, "killed by signal 6", 2, flying};
    agent_core_died(world.core, 1, &death, world.now);
    skip_to(&world, AGENT_PUBLISH_FAILED);
    assert_true(world.action.failed->crashed);
    assert_int_equal(world.action.failed->n_sessions, 2);
    assert_string_equal(world.action.failed->sessions[1], flying[1]);
    agent_core_free(world.core);
}

static void test_ranks_that_crash_together_are_told_as_one_with_the_leaders_sessions(void **state)
{
    (void)state;
    world_t world = active_world();
    died(&world, 2, true, "killed by signal 6");
    skip_to(&world, AGENT_END);
    expect_nothing(&world);
    const agent_death_t death = {true, "killed by signal 6", 2, flying};
    agent_core_died(world.core, 1, &death, world.now);
    skip_to(&world, AGENT_PUBLISH_FAILED);
    assert_true(world.action.failed->crashed);
    assert_int_equal(world.action.failed->n_sessions, 2);
    tick(&world, 5);
    expect_nothing(&world);
    agent_core_free(world.core);
}

static void test_a_second_crash_does_not_end_the_wait_for_the_leaders_account(void **state)
{
    (void)state;
    world_t world = world_new(0);
    assign(&world, 10, 1, 3, "aaa");
    for (uint64_t id = 1; id <= 3; id++)
        hello(&world, id, "address");
    active(&world, 1, 10);
    skip_to(&world, AGENT_PUBLISH_ACTIVE);
    died(&world, 2, true, "killed by signal 6");
    skip_to(&world, AGENT_END);
    died(&world, 3, true, "killed by signal 6");
    expect(&world, AGENT_RELEASE);
    expect_nothing(&world); /* the leader lives as far as is known, or its death is on its way */
    const agent_death_t death = {true, "killed by signal 6", 2, flying};
    agent_core_died(world.core, 1, &death, world.now);
    skip_to(&world, AGENT_PUBLISH_FAILED);
    assert_int_equal(world.action.failed->n_sessions, 2);
    expect_nothing(&world);
    agent_core_free(world.core);
}

static void test_a_crash_that_is_reported_after_the_next_epoch_began_to_form_is_not_of_that_epoch(
    void **state)
{
    (void)state;
    world_t world = active_world();
    died(&world, 2, true, "killed by signal 6");
    failed(&world, 1, 10, STATUS_PEER_LOST, 1, false, "0123456789abcdef0123456789abcdef");
    skip_to(&world, AGENT_PUBLISH_FAILED);
    assign(&world, 20, 2, 1, "aa");
    skip_to(&world, AGENT_SPAWN);
    assert_int_equal(world.action.rank, 1);
    const agent_death_t death = {true, "killed by signal 6", 2, flying};
    agent_core_died(world.core, 1, &death, world.now); /* of the same step */
    skip_to(&world, AGENT_SPAWN);
    assert_int_equal(world.action.rank, 0);
    expect_nothing(&world);
    hello(&world, 3, "third");
    expect(&world, AGENT_PUBLISH_RANK);
    expect_nothing(&world); /* waits for the address of the new leader */
    hello(&world, 4, "fourth");
    skip_to(&world, AGENT_SEND_EPOCH);
    died(&world, 4, true, "killed by signal 6"); /* this one is of epoch 20 */
    skip_to(&world, AGENT_END);
    tick(&world, 3);
    skip_to(&world, AGENT_PUBLISH_FAILED);
    assert_int_equal(world.action.epoch, 20);
    assert_true(world.action.failed->crashed);
    agent_core_free(world.core);
}

/* Three ranks here; the second has crashed in epoch 10, the leader has left it, and epoch 20 forms. */
static world_t world_after_a_crash(void)
{
    world_t world = world_new(0);
    assign(&world, 10, 1, 3, "aaa");
    for (uint64_t id = 1; id <= 3; id++)
        hello(&world, id, "address");
    for (uint64_t id = 1; id <= 3; id++)
        prepared(&world, id, 10);
    active(&world, 1, 10);
    skip_to(&world, AGENT_PUBLISH_ACTIVE);
    died(&world, 2, true, "killed by signal 6");
    failed(&world, 1, 10, STATUS_PEER_LOST, 1, false, "0123456789abcdef0123456789abcdef");
    skip_to(&world, AGENT_PUBLISH_FAILED);
    assign(&world, 20, 1, 3, "aaa");
    skip_to(&world, AGENT_SPAWN);
    hello(&world, 4, "fourth");
    return world;
}

static void test_a_process_that_has_not_left_its_epoch_is_not_taken_into_the_next(void **state)
{
    (void)state;
    world_t world = world_after_a_crash();
    tick(&world, 2);
    while (next(&world))
        assert_int_equal(world.action.kind, AGENT_PUBLISH_RANK);
    died(&world, 3, true, "killed by signal 6"); /* of the same step, with its end long under way */
    skip_to(&world, AGENT_SPAWN);
    assert_int_equal(world.action.rank, 2);
    hello(&world, 5, "fifth");
    for (int i = 0; i < 3; i++)
        skip_to(&world, AGENT_SEND_EPOCH);
    expect_nothing(&world);
    agent_core_free(world.core);
    world = world_after_a_crash();
    failed(&world, 3, 10, STATUS_PEER_LOST, 1, false, NULL); /* lives, and is kept at once */
    for (int i = 0; i < 3; i++)
        skip_to(&world, AGENT_SEND_EPOCH);
    expect_nothing(&world);
    agent_core_free(world.core);
}

static void test_a_kept_process_that_crashes_before_it_formed_the_epoch_crashed_in_an_earlier_one(
    void **state)
{
    (void)state;
    for (int formed = 0; formed < 2; formed++) {
        world_t world = world_after_a_crash();
        tick(&world, LEAVE_TICKS - 1);
        while (next(&world))
            assert_int_not_equal(world.action.kind, AGENT_SEND_EPOCH);
        tick(&world, 1); /* it may be at a long piece of work */
        for (int i = 0; i < 3; i++)
            skip_to(&world, AGENT_SEND_EPOCH);
        prepared(&world, 3, formed ? 20 : 10);
        const agent_death_t death = {true, "killed by signal 6", 2, flying};
        agent_core_died(world.core, 3, &death, world.now);
        died(&world, 1, formed, "killed by signal 6");
        tick(&world, 3);
        skip_to(&world, AGENT_PUBLISH_FAILED);
        assert_int_equal(world.action.epoch, 20);
        assert_int_equal(world.action.failed->rank, 2);
        assert_int_equal(world.action.failed->crashed, formed);
        assert_int_equal(world.action.failed->n_sessions, formed ? 2 : 0);
        agent_core_free(world.core);
    }
}

static void test_a_late_crash_ends_a_formation_over_hosts_and_blames_nobody(void **state)
{
    (void)state;
    world_t world = world_new(0);
    assign(&world, 10, 1, 2, "ab");
    skip_to(&world, AGENT_SPAWN);
    hello(&world, 1, "mine");
    agent_core_peer(world.core, "smol", 0, 10, 1, (const uint8_t *)"peer", 4, world.now);
    active(&world, 1, 10);
    skip_to(&world, AGENT_PUBLISH_ACTIVE);
    assign(&world, 20, 1, 2, "ab");
    failed(&world, 1, 10, STATUS_ABORTED, UINT32_MAX, false, NULL);
    skip_to(&world, AGENT_PUBLISH_RANK);
    const agent_death_t death = {true, "killed by signal 6", 2, flying};
    agent_core_died(world.core, 1, &death, world.now);
    skip_to(&world, AGENT_PUBLISH_FAILED); /* the other host may have its address */
    assert_int_equal(world.action.epoch, 20);
    assert_false(world.action.failed->crashed);
    assert_int_equal(world.action.failed->n_sessions, 0);
    agent_core_free(world.core);
}

static void test_a_rank_that_cannot_do_its_work_is_told_with_its_own_words(void **state)
{
    (void)state;
    world_t world = world_new(0);
    assign(&world, 10, 1, 1, "a");
    skip_to(&world, AGENT_SPAWN);
    failed(&world, 1, 0, STATUS_INVALID, UINT32_MAX, false, NULL);
    died(&world, 1, false, "exited with code 2");
    skip_to(&world, AGENT_PUBLISH_FAILED);
    assert_string_equal(world.action.failed->text,
                        "rank 0 (host a): exited with code 2: it failed");
    assert_false(world.action.failed->crashed);
    agent_core_free(world.core);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_crash_is_told_with_the_sessions_that_the_leader_names),
        cmocka_unit_test(test_a_crash_is_told_without_the_leaders_account_when_none_comes),
        cmocka_unit_test(test_the_leaders_account_that_comes_first_waits_for_the_death),
        cmocka_unit_test(test_a_dead_link_is_reported_as_a_pair_of_hosts),
        cmocka_unit_test(test_a_rank_without_beats_is_killed_after_600_ms_and_its_epoch_failed),
        cmocka_unit_test(test_a_rank_that_its_peers_find_silent_is_killed_before_the_next_epoch),
        cmocka_unit_test(test_an_agent_that_was_stopped_itself_takes_nobody_for_silent),
        cmocka_unit_test(test_a_rank_that_waits_at_work_without_computing_is_killed_after_5_s),
        cmocka_unit_test(
            test_a_rank_that_stands_still_while_it_loads_is_killed_after_30_s_and_named),
        cmocka_unit_test(test_loads_that_take_long_are_shown_once_a_second_until_they_end),
        cmocka_unit_test(test_a_rank_that_computes_slowly_has_a_minute_for_a_piece_of_work),
        cmocka_unit_test(test_a_rank_that_is_idle_is_not_stuck_for_as_long_as_it_likes),
        cmocka_unit_test(test_a_leaders_crash_is_told_at_once_with_the_sessions_of_its_last_step),
        cmocka_unit_test(test_ranks_that_crash_together_are_told_as_one_with_the_leaders_sessions),
        cmocka_unit_test(test_a_second_crash_does_not_end_the_wait_for_the_leaders_account),
        cmocka_unit_test(
            test_a_crash_that_is_reported_after_the_next_epoch_began_to_form_is_not_of_that_epoch),
        cmocka_unit_test(test_a_process_that_has_not_left_its_epoch_is_not_taken_into_the_next),
        cmocka_unit_test(
            test_a_kept_process_that_crashes_before_it_formed_the_epoch_crashed_in_an_earlier_one),
        cmocka_unit_test(test_a_late_crash_ends_a_formation_over_hosts_and_blames_nobody),
        cmocka_unit_test(test_a_rank_that_cannot_do_its_work_is_told_with_its_own_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
