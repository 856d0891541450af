/* What an agent decides about plans, formations, drains: event by event. */
#include "agent_world.h"

static void test_an_assignment_becomes_ranks_an_epoch_and_an_active_record(void **state)
{
    (void)state;
    world_t world = world_new(0);
    assign(&world, 10, 2, 1, "aa");
    expect(&world, AGENT_BEGIN);
    expect(&world, AGENT_SPAWN);
    const rank_start_t *start = world.action.start;
    assert_string_equal(start->replica, "smol/0");
    assert_int_equal(start->threads, 4); /* the host's eight cores, shared out */
    assert_true(start->serve && !start->spans_hosts && start->tp == 2 && start->slice == 0);
    assert_true(start->pack_cache_bytes_min > 0); /* small ones are not worth the disk */
    assert_true(start->expert_groups == 2 && start->attention_slices == 1 &&
                start->attention_replicas == 1); /* as the plan says */
    assert_true(start->speculate_max == 3 && start->prefix_cache_off && start->whole_prompts);
    assert_string_equal(start->draft_path, "/models/draft.gguf");
    assert_string_equal(start->draft_digest, "sha256:bb");
    expect(&world, AGENT_SPAWN);
    assert_true(!world.action.start->serve && world.action.start->slice == 1);
    assert_string_equal(world.action.start->draft_path, ""); /* the leader alone has it */
    expect_nothing(&world);
    agent_core_spawned(world.core, 1, 501, "", world.now);
    agent_core_spawned(world.core, 2, 502, "", world.now);
    hello(&world, 2, "");
    expect(&world, AGENT_PUBLISH_RANK);
    assert_int_equal(world.action.pid, 502);
    expect_nothing(&world);
    hello(&world, 1, "");
    expect(&world, AGENT_PUBLISH_RANK);
    expect(&world, AGENT_MAKE_SHM);
    expect(&world, AGENT_SEND_EPOCH);
    assert_int_equal(world.action.rank_id, 1);
    expect(&world, AGENT_SEND_EPOCH);
    assert_int_equal(world.action.rank_id, 2);
    active(&world, 1, 9); /* of another epoch */
    expect_nothing(&world);
    active(&world, 1, 10);
    expect(&world, AGENT_PUBLISH_ACTIVE);
    assert_string_equal(world.action.active->leader, "10.0.0.1:7000");
    expect_nothing(&world);
    agent_core_free(world.core);
}

static void test_an_epoch_over_two_hosts_waits_for_the_addresses_of_all_its_ranks(void **state)
{
    (void)state;
    world_t world = world_new(0);
    assign(&world, 10, 1, 2, "ab");
    expect(&world, AGENT_BEGIN);
    expect(&world, AGENT_SPAWN);
    assert_true(world.action.start->spans_hosts);
    hello(&world, 1, "mine");
    expect(&world, AGENT_PUBLISH_RANK);
    assert_int_equal(world.action.address_bytes, 4);
    expect_nothing(&world);
    const uint8_t address[5] = "peer";
    agent_core_peer(world.core, "smol", 0, 9, 1, address, 4, world.now);  /* an older epoch */
    agent_core_peer(world.core, "smol", 0, 10, 0, address, 4, world.now); /* our own rank */
    agent_core_peer(world.core, "smol", 1, 10, 1, address, 4, world.now); /* another replica */
    expect_nothing(&world);
    agent_core_peer(world.core, "smol", 0, 10, 1, address, 4, world.now);
    expect(&world, AGENT_MAKE_SHM);
    expect(&world, AGENT_SEND_EPOCH);
    rank_epoch_t *epoch = MEM_NEW(rank_epoch_t);
    agent_core_epoch(world.core, world.action.replica, world.now + 1000, epoch);
    assert_int_equal(epoch->epoch, 10);
    assert_int_equal(epoch->formation_ms, 4000);
    assert_int_equal(epoch->n_peers, 2);
    assert_memory_equal(epoch->peers[0].address, "mine", 4);
    assert_memory_equal(epoch->peers[1].address, "peer", 4);
    free(epoch);
    agent_core_free(world.core);
}

static void test_a_living_rank_is_kept_over_epochs_when_its_slice_is_unchanged(void **state)
{
    (void)state;
    world_t world = active_world();
    /* Rank 1 is lost; rank 0 waits with its weights for the next plan. */
    died(&world, 2, false, "killed by signal 9");
    skip_to(&world, AGENT_END);
    failed(&world, 1, 10, STATUS_PEER_LOST, 1, false, NULL);
    tick(&world, 1);
    beat(&world, 1, 1, false, 0);
    assign(&world, 20, 2, 1, "aa");
    skip_to(&world, AGENT_BEGIN);
    expect(&world, AGENT_PUBLISH_RANK);
    assert_int_equal(world.action.rank, 0);
    expect(&world, AGENT_SPAWN);
    assert_int_equal(world.action.rank, 1);
    assert_int_equal(world.action.rank_id, 3);
    hello(&world, 3, "");
    expect(&world, AGENT_PUBLISH_RANK);
    expect(&world, AGENT_MAKE_SHM);
    expect(&world, AGENT_SEND_EPOCH);
    assert_int_equal(world.action.rank_id, 1);
    assert_int_equal(world.action.epoch, 20);
    expect(&world, AGENT_SEND_EPOCH);
    expect_nothing(&world);
    agent_core_free(world.core);
}

static void test_a_plan_of_another_shape_replaces_the_ranks_one_by_one(void **state)
{
    (void)state;
    world_t world = active_world();
    assign(&world, 20, 1, 1, "a");
    expect(&world, AGENT_ABORT);
    expect(&world, AGENT_END);
    assert_int_equal(world.action.epoch, 10);
    expect(&world, AGENT_BEGIN);
    expect(&world, AGENT_KILL);
    assert_int_equal(world.action.rank_id, 2);
    expect(&world, AGENT_KILL);
    assert_int_equal(world.action.rank_id, 1);
    expect_nothing(&world); /* the new rank 0 waits until the old one's memory is free */
    died(&world, 2, false, "killed");
    expect(&world, AGENT_RELEASE);
    expect_nothing(&world);
    died(&world, 1, false, "killed");
    expect(&world, AGENT_RELEASE);
    expect(&world, AGENT_SPAWN);
    assert_int_equal(world.action.start->tp, 1);
    expect_nothing(&world);
    agent_core_free(world.core);
}

static void test_ranks_are_spread_over_nodes_and_stay_where_they_live(void **state)
{
    (void)state;
    agent_config_t config = {.cores = 8, .numa = {.n = 2}};
    config.numa.nodes[0] = (numa_node_t){.id = 0, .n_cpus = 4};
    config.numa.nodes[1] = (numa_node_t){.id = 3, .n_cpus = 4};
    snprintf(config.host, sizeof config.host, "a");
    world_t world = {.core = agent_core_new(&config), .now = 1000};
    assign(&world, 10, 2, 1, "aa");
    for (uint32_t rank = 0; rank < 2; rank++) {
        skip_to(&world, AGENT_SPAWN);
        assert_true(world.action.start->threads == 4 && world.action.start->in_node);
        assert_int_equal(world.action.start->numa_node, rank == 0 ? 0 : 3);
        agent_core_spawned(world.core, 1 + rank, 501 + rank, "", world.now);
    }
    hello(&world, 1, "");
    hello(&world, 2, "");
    active(&world, 1, 10);
    skip_to(&world, AGENT_PUBLISH_ACTIVE);
    /* The first dies. The second stays where it is, and the new one takes the room of the dead. */
    died(&world, 1, false, "killed by signal 9");
    failed(&world, 2, 10, STATUS_PEER_LOST, 0, false, NULL);
    tick(&world, 1);
    beat(&world, 2, 1, false, 0);
    assign(&world, 20, 2, 1, "aa");
    skip_to(&world, AGENT_SPAWN);
    assert_true(world.action.rank == 0 && world.action.start->in_node);
    assert_int_equal(world.action.start->numa_node, 0);
    hello(&world, 3, "");
    skip_to(&world, AGENT_SEND_EPOCH);
    expect(&world, AGENT_SEND_EPOCH);
    assert_int_equal(world.action.rank_id, 2);
    expect_nothing(&world);
    agent_core_free(world.core);
    /* One rank of all cores is larger than each node. */
    world = (world_t){.core = agent_core_new(&config), .now = 1000};
    assign(&world, 10, 1, 1, "a");
    skip_to(&world, AGENT_SPAWN);
    assert_true(world.action.start->threads == 8 && !world.action.start->in_node);
    agent_core_free(world.core);
}

static void test_a_formation_that_does_not_end_names_who_is_missing(void **state)
{
    (void)state;
    world_t world = world_new(0);
    assign(&world, 10, 1, 2, "ab");
    skip_to(&world, AGENT_SPAWN);
    hello(&world, 1, "mine");
    expect(&world, AGENT_PUBLISH_RANK);
    for (int i = 0; i < 49; i++) {
        tick(&world, 1);
        beat(&world, 1, 1, false, 0);
    }
    expect_nothing(&world);
    tick(&world, 1);
    skip_to(&world, AGENT_PUBLISH_FAILED);
    assert_int_equal(world.action.failed->rank, 1);
    assert_string_equal(world.action.failed->host, "b");
    assert_non_null(strstr(world.action.failed->text, "rank 1 (host b) has not reported"));
    agent_core_free(world.core);
}

static void test_a_plan_that_is_gone_stops_its_ranks_and_kills_the_deaf(void **state)
{
    (void)state;
    world_t world = active_world();
    agent_core_unassign(world.core, "smol", 0, world.now);
    expect(&world, AGENT_STOP);
    expect(&world, AGENT_STOP);
    died(&world, 1, false, "exited with code 0");
    expect(&world, AGENT_RELEASE);
    expect_nothing(&world);
    for (uint32_t i = 0; i <= AGENT_STOP_MS / AGENT_TICK_MS; i++) {
        beat(&world, 2, 1, false, 0);
        tick(&world, 1);
    }
    expect(&world, AGENT_KILL);
    died(&world, 2, false, "killed");
    expect(&world, AGENT_RELEASE);
    expect(&world, AGENT_END);
    expect_nothing(&world);
    /* The place is free for the same name. */
    assign(&world, 30, 1, 1, "a");
    expect(&world, AGENT_BEGIN);
    expect(&world, AGENT_SPAWN);
    agent_core_free(world.core);
}

static void test_an_epoch_of_an_earlier_agent_is_failed_and_not_formed_again(void **state)
{
    (void)state;
    world_t world = world_new(10);
    assign(&world, 10, 1, 1, "a");
    skip_to(&world, AGENT_PUBLISH_FAILED);
    assert_int_equal(world.action.epoch, 10);
    assert_non_null(strstr(world.action.failed->text, "restarted"));
    expect_nothing(&world);
    assign(&world, 11, 1, 1, "a");
    expect(&world, AGENT_BEGIN);
    expect(&world, AGENT_SPAWN);
    /* An emptied store counts from 1 again; its plans are of a higher incarnation. */
    agent_plan_t plan = plan_of(2, 1, 1, "a");
    plan.incarnation = 1;
    assert_int_equal(agent_core_assign(world.core, &plan, world.now), STATUS_OK);
    skip_to(&world, AGENT_BEGIN);
    assert_int_equal(world.action.epoch, 2);
    agent_core_free(world.core);
}

static void test_a_drain_lets_leaders_finish_and_then_stops_everything(void **state)
{
    (void)state;
    world_t world = active_world();
    agent_core_drain(world.core, 10000, world.now);
    expect(&world, AGENT_DRAIN);
    assert_int_equal(world.action.rank_id, 1);
    for (int i = 0; i < 10; i++) {
        beat(&world, 1, 1, true, 3);
        beat(&world, 2, 1, false, 0);
        tick(&world, 1);
    }
    expect_nothing(&world);
    for (int i = 0; i < 3; i++) {
        beat(&world, 1, 1, false, 0);
        beat(&world, 2, 1, false, 0);
    }
    tick(&world, 1);
    expect(&world, AGENT_STOP);
    expect(&world, AGENT_STOP);
    died(&world, 2, false, "exited");
    died(&world, 1, false, "exited");
    tick(&world, 1);
    skip_to(&world, AGENT_DRAINED);
    expect_nothing(&world);
    agent_core_free(world.core);
}

static void test_a_drain_does_not_wait_longer_than_it_may(void **state)
{
    (void)state;
    world_t world = active_world();
    agent_core_drain(world.core, 1000, world.now);
    expect(&world, AGENT_DRAIN);
    for (int i = 0; i < 9; i++) {
        beat(&world, 1, 1, true, 3);
        beat(&world, 2, 1, false, 0);
        tick(&world, 1);
    }
    expect_nothing(&world);
    tick(&world, 1);
    expect(&world, AGENT_STOP);
    agent_core_free(world.core);
}

static void test_a_plan_that_makes_no_sense_is_refused_by_name(void **state)
{
    (void)state;
    world_t world = world_new(0);
    agent_plan_t plan = plan_of(10, 2, 1, "bb");
    assert_int_equal(agent_core_assign(world.core, &plan, world.now), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "no rank on this host"));
    plan = plan_of(10, 2, 1, "aa");
    plan.tp = 3;
    assert_int_equal(agent_core_assign(world.core, &plan, world.now), STATUS_INVALID);
    plan = plan_of(10, 2, 1, "aa");
    plan.ranks[1].slice = 0;
    assert_int_equal(agent_core_assign(world.core, &plan, world.now), STATUS_INVALID);
    expect_nothing(&world);
    plan = plan_of(10, 1, 1, "a");
    plan.model_path[0] = 0;
    assert_int_equal(agent_core_assign(world.core, &plan, world.now), STATUS_OK);
    skip_to(&world, AGENT_PUBLISH_FAILED);
    assert_non_null(strstr(world.action.failed->text, "host a has no model sha256:aa"));
    agent_core_free(world.core);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_an_assignment_becomes_ranks_an_epoch_and_an_active_record),
        cmocka_unit_test(test_an_epoch_over_two_hosts_waits_for_the_addresses_of_all_its_ranks),
        cmocka_unit_test(test_a_living_rank_is_kept_over_epochs_when_its_slice_is_unchanged),
        cmocka_unit_test(test_a_plan_of_another_shape_replaces_the_ranks_one_by_one),
        cmocka_unit_test(test_ranks_are_spread_over_nodes_and_stay_where_they_live),
        cmocka_unit_test(test_a_formation_that_does_not_end_names_who_is_missing),
        cmocka_unit_test(test_a_plan_that_is_gone_stops_its_ranks_and_kills_the_deaf),
        cmocka_unit_test(test_an_epoch_of_an_earlier_agent_is_failed_and_not_formed_again),
        cmocka_unit_test(test_a_drain_lets_leaders_finish_and_then_stops_everything),
        cmocka_unit_test(test_a_drain_does_not_wait_longer_than_it_may),
        cmocka_unit_test(test_a_plan_that_makes_no_sense_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
