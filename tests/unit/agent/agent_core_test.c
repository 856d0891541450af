/* What an agent decides, event by event, with a clock of the test's own. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "worker/agent_core.h"

/* cmocka has a macro of that name; ours is not used in tests. */
#undef fail
#include <cmocka.h>

typedef struct {
    agent_core_t *core;
    uint64_t now;
    agent_action_t action; /* the one that was taken last */
} world_t;

static world_t world_new(uint64_t epoch_begun)
{
    agent_config_t config = {.cores = 8, .epoch_begun = epoch_begun};
    snprintf(config.host, sizeof config.host, "a");
    snprintf(config.address, sizeof config.address, "10.0.0.1");
    return (world_t){.core = agent_core_new(&config), .now = 1000};
}

static bool next(world_t *world)
{
    return agent_core_next(world->core, &world->action);
}

/* Takes the next action, which must be of this kind. */
static void expect(world_t *world, agent_action_kind_t kind)
{
    if (!next(world))
        fail_msg("nothing follows, action %d should", (int)kind);
    assert_int_equal(world->action.kind, kind);
}

static void expect_nothing(world_t *world)
{
    if (next(world))
        fail_msg("action %d follows, nothing should (%s)", (int)world->action.kind,
                 world->action.text);
}

/* Actions up to one of this kind; the others are dropped. */
static void skip_to(world_t *world, agent_action_kind_t kind)
{
    while (next(world)) {
        if (world->action.kind == kind)
            return;
    }
    fail_msg("action %d never follows", (int)kind);
}

/* Ranks 0..n-1 in `stages` stages; host i is the i-th letter of `hosts`. */
static agent_plan_t plan_of(uint64_t epoch, uint32_t tp, uint32_t stages, const char *hosts)
{
    agent_plan_t plan = {.epoch = epoch, .tp = tp, .stages = stages, .n_ranks = tp * stages,
                         .context_max = 512, .formation_ms = 5000, .kv_tokens_max = 4096};
    snprintf(plan.deployment, sizeof plan.deployment, "smol");
    snprintf(plan.activations, sizeof plan.activations, "native");
    snprintf(plan.model_digest, sizeof plan.model_digest, "sha256:aa");
    snprintf(plan.model_path, sizeof plan.model_path, "/models/smol.gguf");
    for (uint32_t i = 0; i < plan.n_ranks; i++) {
        plan.ranks[i] = (agent_plan_rank_t){.stage = i / tp, .slice = i % tp,
                                            .layer_first = i / tp * 10, .layer_count = 10};
        snprintf(plan.ranks[i].host, sizeof plan.ranks[i].host, "%c", hosts[i]);
    }
    return plan;
}

static void hello(world_t *world, uint64_t id, const char *address)
{
    control_message_t *message = MEM_NEW(control_message_t);
    message->kind = CONTROL_HELLO;
    message->hello.address_bytes = (uint32_t)strlen(address);
    memcpy(message->hello.address, address, strlen(address));
    agent_core_message(world->core, id, message, world->now);
    free(message);
}

static void beat(world_t *world, uint64_t id, uint64_t progress, bool busy, uint32_t sequences)
{
    control_message_t *message = MEM_NEW(control_message_t);
    message->kind = CONTROL_BEAT;
    message->beat = (control_beat_t){progress, sequences, busy};
    agent_core_message(world->core, id, message, world->now);
    free(message);
}

static void active(world_t *world, uint64_t id, uint64_t epoch)
{
    control_message_t *message = MEM_NEW(control_message_t);
    message->kind = CONTROL_ACTIVE;
    message->active.epoch = epoch;
    snprintf(message->active.leader, sizeof message->active.leader, "10.0.0.1:7000");
    agent_core_message(world->core, id, message, world->now);
    free(message);
}

static void failed(world_t *world, uint64_t id, uint64_t epoch, status_t status, uint32_t lost,
                   bool silent, const char *session)
{
    control_message_t *message = MEM_NEW(control_message_t);
    message->kind = CONTROL_FAILED;
    message->failed.epoch = epoch;
    message->failed.status = status;
    message->failed.lost_rank = lost;
    message->failed.silent = silent;
    snprintf(message->failed.text, sizeof message->failed.text, "it failed");
    if (session) {
        message->failed.n_sessions = 1;
        snprintf(message->failed.sessions[0], CONTROL_SESSION_BYTES, "%s", session);
    }
    agent_core_message(world->core, id, message, world->now);
    free(message);
}

static void assign(world_t *world, uint64_t epoch, uint32_t tp, uint32_t stages, const char *hosts)
{
    agent_plan_t plan = plan_of(epoch, tp, stages, hosts);
    assert_int_equal(agent_core_assign(world->core, &plan, world->now), STATUS_OK);
}

static void tick(world_t *world, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        world->now += AGENT_TICK_MS;
        agent_core_tick(world->core, world->now);
    }
}

/* A replica of two ranks on this host, active in epoch 10; their ids are 1 and 2. */
static world_t active_world(void)
{
    world_t world = world_new(0);
    assign(&world, 10, 2, 1, "aa");
    expect(&world, AGENT_BEGIN);
    expect(&world, AGENT_SPAWN);
    expect(&world, AGENT_SPAWN);
    agent_core_spawned(world.core, 1, 501, "", world.now);
    agent_core_spawned(world.core, 2, 502, "", world.now);
    hello(&world, 1, "");
    hello(&world, 2, "");
    active(&world, 1, 10);
    skip_to(&world, AGENT_PUBLISH_ACTIVE);
    expect_nothing(&world);
    return world;
}

/* ---- */

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
    expect(&world, AGENT_SPAWN);
    assert_true(!world.action.start->serve && world.action.start->slice == 1);
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
    agent_core_died(world.core, 2, false, "killed by signal 9", world.now);
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
    agent_core_died(world.core, 2, false, "killed", world.now);
    expect(&world, AGENT_RELEASE);
    expect_nothing(&world);
    agent_core_died(world.core, 1, false, "killed", world.now);
    expect(&world, AGENT_RELEASE);
    expect(&world, AGENT_SPAWN);
    assert_int_equal(world.action.start->tp, 1);
    expect_nothing(&world);
    agent_core_free(world.core);
}

static void test_a_crash_is_told_with_the_sessions_that_the_leader_names(void **state)
{
    (void)state;
    world_t world = active_world();
    agent_core_died(world.core, 2, true, "killed by signal 11", world.now);
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
    agent_core_died(world.core, 2, true, "killed by signal 11", world.now);
    skip_to(&world, AGENT_END);
    tick(&world, 3);
    beat(&world, 1, 1, false, 0);
    expect_nothing(&world);
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
    agent_core_died(world.core, 2, true, "killed by signal 11", world.now);
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
    agent_core_died(world.core, 2, false, "killed by signal 9", world.now);
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
    agent_core_died(world.core, 2, false, "killed by signal 9", world.now);
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

static void test_a_rank_that_beats_but_stands_still_at_work_is_killed(void **state)
{
    (void)state;
    world_t world = active_world();
    for (uint32_t i = 0; i < AGENT_STUCK_MS / AGENT_TICK_MS; i++) {
        beat(&world, 1, i, true, 0);  /* works */
        beat(&world, 2, 7, true, 0);  /* is busy and does not get on */
        tick(&world, 1);
        expect_nothing(&world);
    }
    beat(&world, 1, 1, true, 0);
    beat(&world, 2, 7, true, 0);
    tick(&world, 1);
    expect(&world, AGENT_KILL);
    assert_int_equal(world.action.rank_id, 2);
    expect_nothing(&world);
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
    agent_core_died(world.core, 1, false, "exited with code 0", world.now);
    expect(&world, AGENT_RELEASE);
    expect_nothing(&world);
    for (uint32_t i = 0; i <= AGENT_STOP_MS / AGENT_TICK_MS; i++) {
        beat(&world, 2, 1, false, 0);
        tick(&world, 1);
    }
    expect(&world, AGENT_KILL);
    agent_core_died(world.core, 2, false, "killed", world.now);
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
    agent_core_died(world.core, 2, false, "exited", world.now);
    agent_core_died(world.core, 1, false, "exited", world.now);
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
        cmocka_unit_test(test_a_crash_is_told_with_the_sessions_that_the_leader_names),
        cmocka_unit_test(test_a_crash_is_told_without_the_leaders_account_when_none_comes),
        cmocka_unit_test(test_the_leaders_account_that_comes_first_waits_for_the_death),
        cmocka_unit_test(test_a_dead_link_is_reported_as_a_pair_of_hosts),
        cmocka_unit_test(test_a_rank_without_beats_is_killed_after_600_ms_and_its_epoch_failed),
        cmocka_unit_test(test_a_rank_that_its_peers_find_silent_is_killed_before_the_next_epoch),
        cmocka_unit_test(test_an_agent_that_was_stopped_itself_takes_nobody_for_silent),
        cmocka_unit_test(test_a_rank_that_beats_but_stands_still_at_work_is_killed),
        cmocka_unit_test(test_a_formation_that_does_not_end_names_who_is_missing),
        cmocka_unit_test(test_a_plan_that_is_gone_stops_its_ranks_and_kills_the_deaf),
        cmocka_unit_test(test_an_epoch_of_an_earlier_agent_is_failed_and_not_formed_again),
        cmocka_unit_test(test_a_drain_lets_leaders_finish_and_then_stops_everything),
        cmocka_unit_test(test_a_drain_does_not_wait_longer_than_it_may),
        cmocka_unit_test(test_a_plan_that_makes_no_sense_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
