/* Rollout: who plans what, and when a host is believed to be dead. */
#include "tests/unit/coordinator/core_rig.h"

#include <string.h>

/* An elected core that has seen everything: `hosts` hosts h0, h1, … and no replica yet. */
static void elected(rig_t *rig, uint32_t replicas, char hosts)
{
    rig_start(rig, replicas);
    rig_elect(rig, 55);
    for (char h = '0'; h < '0' + hosts; h++) {
        char id[] = {'h', h, 0};
        rig_host(rig, id);
    }
    rig_clear(rig);
    rig_listed(rig);
    rig_pass(rig, 10);
}

static void txn_done(rig_t *rig, bool succeeded)
{
    core_action_t *txn = rig_last(rig, CORE_ACTION_TXN);
    assert_non_null(txn);
    core_event_t event = {.kind = CORE_EVENT_TXN_DONE};
    event.txn_done.op = txn->op;
    event.txn_done.known = true;
    event.txn_done.succeeded = succeeded;
    rig_event(rig, &event);
}

static Shoal__Cluster__V1__ReplicaPlan *planned(const rig_t *rig)
{
    const core_action_t *txn = rig_last(rig, CORE_ACTION_TXN);
    assert_non_null(txn);
    Shoal__Cluster__V1__ReplicaPlan *plan = shoal__cluster__v1__replica_plan__unpack(
        NULL, txn->txn.writes[0].value_size, txn->txn.writes[0].value);
    assert_non_null(plan);
    return plan;
}

static bool writes(const core_action_t *txn, const char *key, bool deletes)
{
    for (size_t i = 0; i < txn->txn.n_writes; i++)
        if (strcmp(txn->txn.writes[i].key, key) == 0)
            return (txn->txn.writes[i].value == NULL) == deletes;
    return false;
}

/* The replica runs on `host` and the core's own link to it is open. */
static uint64_t serving(rig_t *rig, const char *host)
{
    elected(rig, 1, 2);
    txn_done(rig, true);
    uint64_t epoch = rig_replica(rig, 0, host, RIG_IDENTITY);
    rig_hello(rig, rig_link(rig), epoch, 1024);
    rig_clear(rig);
    rig_pass(rig, 3000);
    assert_int_equal(rig_count(rig, CORE_ACTION_TXN), 0);
    return epoch;
}

static void test_only_the_elected_coordinator_plans_and_it_names_its_election(void **state)
{
    (void)state;
    rig_t rig;
    rig_start(&rig, 1);
    rig_host(&rig, "h0");
    rig_listed(&rig);
    rig_pass(&rig, 5000);
    assert_int_equal(rig_count(&rig, CORE_ACTION_TXN), 0);
    rig_stop(&rig);
    elected(&rig, 1, 1);
    assert_int_equal(rig_count(&rig, CORE_ACTION_TXN), 1);
    const core_action_t *txn = rig_last(&rig, CORE_ACTION_TXN);
    assert_int_equal(txn->txn.n_compares, 2);
    assert_string_equal(txn->txn.compares[0].key, "election/coordinator/1");
    assert_true(txn->txn.compares[0].on_create);
    assert_int_equal(txn->txn.compares[0].revision, 55);
    assert_string_equal(txn->txn.compares[1].key, "replicas/toy/0/plan");
    assert_int_equal(txn->txn.compares[1].revision, 0); /* made only if absent */
    assert_true(writes(txn, "assign/h0/toy/0", false));
    Shoal__Cluster__V1__ReplicaPlan *plan = planned(&rig);
    assert_int_equal(plan->n_ranks, 1);
    assert_string_equal(plan->ranks[0]->host, "h0");
    shoal__cluster__v1__replica_plan__free_unpacked(plan, NULL);
    rig_stop(&rig);
}

static void test_nothing_is_planned_before_everything_was_listed(void **state)
{
    (void)state;
    rig_t rig;
    rig_start(&rig, 1);
    rig_elect(&rig, 55);
    rig_host(&rig, "h0");
    rig_pass(&rig, 5000);
    assert_int_equal(rig_count(&rig, CORE_ACTION_TXN), 0);
    rig_stop(&rig);
}

static void test_a_vanished_key_alone_dissolves_nothing(void **state)
{
    (void)state;
    rig_t rig;
    serving(&rig, "h0");
    rig_delete(&rig, "hosts/h0");
    rig_pass(&rig, 60000);
    assert_int_equal(rig_count(&rig, CORE_ACTION_TXN), 0);
    rig_stop(&rig);
}

static void test_a_broken_stream_alone_dissolves_nothing(void **state)
{
    (void)state;
    rig_t rig;
    serving(&rig, "h0");
    rig_break(&rig, rig_last(&rig, CORE_ACTION_LINK_OPEN) ? rig_link(&rig) : 0);
    rig_pass(&rig, 20000);
    assert_int_equal(rig_count(&rig, CORE_ACTION_TXN), 0);
    rig_stop(&rig);
}

static void test_a_gone_host_and_a_broken_stream_move_the_replica(void **state)
{
    (void)state;
    rig_t rig;
    elected(&rig, 1, 2);
    txn_done(&rig, true);
    uint64_t epoch = rig_replica(&rig, 0, "h0", RIG_IDENTITY);
    uint64_t link = rig_link(&rig);
    rig_hello(&rig, link, epoch, 1024);
    rig_pass(&rig, 1200);
    rig_clear(&rig);
    rig_break(&rig, link);
    rig_delete(&rig, "hosts/h0");
    rig_pass(&rig, 100);
    const core_action_t *txn = rig_last(&rig, CORE_ACTION_TXN);
    assert_non_null(txn);
    assert_int_equal(txn->txn.compares[1].revision, epoch);
    assert_true(writes(txn, "assign/h0/toy/0", true));
    assert_true(writes(txn, "assign/h1/toy/0", false));
    rig_stop(&rig);
}

static void test_many_hosts_vanishing_at_once_freeze_the_plans(void **state)
{
    (void)state;
    rig_t rig;
    elected(&rig, 1, 6);
    txn_done(&rig, true);
    uint64_t epoch = rig_replica(&rig, 0, "h0", RIG_IDENTITY);
    uint64_t link = rig_link(&rig);
    rig_hello(&rig, link, epoch, 1024);
    rig_pass(&rig, 1200);
    rig_clear(&rig);
    for (char h = '0'; h < '3'; h++) {
        char key[] = {'h', 'o', 's', 't', 's', '/', 'h', h, 0};
        rig_delete(&rig, key);
    }
    rig_break(&rig, link);
    rig_pass(&rig, 20000);
    assert_int_equal(rig_count(&rig, CORE_ACTION_TXN), 0);
    rig_pass(&rig, 15000); /* they did not come back: it is believed in the end */
    assert_int_equal(rig_count(&rig, CORE_ACTION_TXN), 1);
    rig_stop(&rig);
}

static void test_a_failure_record_forms_a_new_epoch_at_once(void **state)
{
    (void)state;
    rig_t rig;
    uint64_t epoch = serving(&rig, "h0");
    rig_failure(&rig, 0, epoch - 5, false, NULL); /* of an older epoch: nothing */
    rig_pass(&rig, 500);
    assert_int_equal(rig_count(&rig, CORE_ACTION_TXN), 0);
    rig_failure(&rig, 0, epoch, false, NULL);
    rig_pass(&rig, 10);
    assert_int_equal(rig_count(&rig, CORE_ACTION_TXN), 1);
    rig_stop(&rig);
}

static void test_a_transaction_that_lost_is_not_repeated_with_old_knowledge(void **state)
{
    (void)state;
    rig_t rig;
    elected(&rig, 1, 1);
    txn_done(&rig, false);
    rig_clear(&rig);
    rig_replica(&rig, 0, "h0", RIG_IDENTITY); /* another coordinator's plan */
    rig_pass(&rig, 5000);
    assert_int_equal(rig_count(&rig, CORE_ACTION_TXN), 0);
    rig_stop(&rig);
}

static void test_scaling_down_removes_plan_and_assignments(void **state)
{
    (void)state;
    rig_t rig;
    serving(&rig, "h0");
    rig_deploy(&rig, 0, 1, 1);
    rig_pass(&rig, 10);
    const core_action_t *txn = rig_last(&rig, CORE_ACTION_TXN);
    assert_non_null(txn);
    assert_true(writes(txn, "replicas/toy/0/plan", true));
    assert_true(writes(txn, "replicas/toy/0/active", true));
    assert_true(writes(txn, "assign/h0/toy/0", true));
    rig_stop(&rig);
}

/* Those of the steps so far ended well. */
static void end_transactions(rig_t *rig)
{
    for (size_t i = 0; i < rig->actions.n; i++)
        if (rig->actions.items[i].kind == CORE_ACTION_TXN) {
            core_event_t event = {.kind = CORE_EVENT_TXN_DONE};
            event.txn_done.op = rig->actions.items[i].op;
            event.txn_done.known = true;
            rig_event(rig, &event);
        }
}

static void test_another_shape_is_formed_one_replica_at_a_time(void **state)
{
    (void)state;
    rig_t rig;
    elected(&rig, 2, 2);
    for (uint32_t i = 0; i < 2; i++) {
        uint64_t epoch = rig_replica(&rig, i, i ? "h1" : "h0", RIG_IDENTITY);
        rig_pass(&rig, 300);
        rig_hello(&rig, rig_link(&rig), epoch, 1024);
    }
    end_transactions(&rig);
    rig_pass(&rig, 3000);
    rig_clear(&rig);
    rig_deploy(&rig, 2, 2, 1);
    rig_pass(&rig, 2000);
    assert_int_equal(rig_count(&rig, CORE_ACTION_TXN), 1);
    Shoal__Cluster__V1__ReplicaPlan *plan = planned(&rig);
    assert_int_equal(plan->tp, 2);
    shoal__cluster__v1__replica_plan__free_unpacked(plan, NULL);
    rig_stop(&rig);
}

static void say_loading(rig_t *rig, const char *key, uint64_t epoch, uint32_t percent)
{
    uint8_t packed[64];
    Shoal__Cluster__V1__LoadingRecord record = SHOAL__CLUSTER__V1__LOADING_RECORD__INIT;
    record.epoch = epoch;
    record.percent = percent;
    rig_put(rig, key, packed, shoal__cluster__v1__loading_record__pack(&record, packed));
}

/* What is shown of the only replica: the percentage, or -1 for none. */
static int shown_loading(const rig_t *rig)
{
    arena_t arena = {0};
    Shoal__V1__ListReplicasResponse list;
    core_list_replicas(rig->core, "", &arena, &list);
    assert_int_equal(list.n_replicas, 1);
    int percent = list.replicas[0]->loading ? (int)list.replicas[0]->loaded_percent : -1;
    arena_release(&arena);
    return percent;
}

static void test_of_hosts_that_load_the_slowest_is_shown_until_the_replica_is_active(void **state)
{
    (void)state;
    rig_t rig;
    elected(&rig, 1, 2);
    uint64_t epoch = rig_replica(&rig, 0, "h0", RIG_IDENTITY);
    say_loading(&rig, "replicas/toy/0/weights/h0", epoch, 40);
    assert_int_equal(shown_loading(&rig), -1); /* active: what is left of loading says nothing */
    rig_delete(&rig, "replicas/toy/0/active");
    assert_int_equal(shown_loading(&rig), 40);
    say_loading(&rig, "replicas/toy/0/weights/h1", epoch, 10);
    assert_int_equal(shown_loading(&rig), 10);
    say_loading(&rig, "replicas/toy/0/weights/h1", epoch, 50);
    assert_int_equal(shown_loading(&rig), 40);
    say_loading(&rig, "replicas/toy/0/weights/h0", epoch - 1, 1); /* of an epoch that is over */
    assert_int_equal(shown_loading(&rig), 50);
    rig_delete(&rig, "replicas/toy/0/weights/h1");
    assert_int_equal(shown_loading(&rig), -1);
    /* It makes no deployment and no slot. */
    size_t n = core_n_deployments(rig.core);
    say_loading(&rig, "replicas/gone/0/weights/h0", epoch, 5);
    say_loading(&rig, "replicas/toy/7/weights/h0", epoch, 5);
    assert_int_equal(core_n_deployments(rig.core), n);
    assert_int_equal(shown_loading(&rig), -1);
    rig_stop(&rig);
}

/* One replica as it is wanted; then one thing of it is wanted otherwise. */
static Shoal__Cluster__V1__ReplicaPlan *formed_anew(rig_t *rig,
                                                    Shoal__Cluster__V1__DeploymentRecord d)
{
    elected(rig, 1, 2);
    uint64_t epoch = rig_replica(rig, 0, "h0", RIG_IDENTITY);
    rig_pass(rig, 300);
    rig_hello(rig, rig_link(rig), epoch, 1024);
    end_transactions(rig);
    rig_pass(rig, 3000);
    rig_clear(rig);
    rig_pass(rig, 2000);
    assert_int_equal(rig_count(rig, CORE_ACTION_TXN), 0); /* as it is wanted */
    d.replicas = d.tp = d.stages = 1;
    rig_deploy_as(rig, d);
    rig_pass(rig, 2000);
    assert_int_equal(rig_count(rig, CORE_ACTION_TXN), 1);
    return planned(rig);
}

static void test_another_kv_capacity_or_way_to_fill_steps_is_formed_anew(void **state)
{
    (void)state;
    char draft[] = "sha256:dd";
    uint64_t deadline_ms = 0;
    for (int i = 0; i < 7; i++) {
        rig_t rig;
        Shoal__Cluster__V1__DeploymentRecord d = SHOAL__CLUSTER__V1__DEPLOYMENT_RECORD__INIT;
        d.kv_tokens_max = i == 0 ? 4096 : 0;
        d.prefill_tokens_max = i == 1 ? 256 : 0;
        d.speculate_max = i == 2 ? 4 : 0;
        d.speculate_off = i == 3;
        d.prefix_cache_off = i == 4;
        d.whole_prompts = i == 5;
        if (i == 6)
            d.draft_digest = draft;
        d.draft_bytes = i == 6 ? 100000000 : 0;
        Shoal__Cluster__V1__ReplicaPlan *plan = formed_anew(&rig, d);
        assert_int_equal(plan->kv_tokens_wanted, d.kv_tokens_max);
        assert_int_equal(plan->prefill_tokens_max, d.prefill_tokens_max);
        assert_int_equal(plan->speculate_max, d.speculate_max);
        assert_int_equal(plan->speculate_off, d.speculate_off);
        assert_int_equal(plan->prefix_cache_off, d.prefix_cache_off);
        assert_int_equal(plan->whole_prompts, d.whole_prompts);
        assert_string_equal(plan->draft_digest, d.draft_digest);
        assert_int_equal(plan->draft_bytes, d.draft_bytes);
        /* There is time to read it, from a slow disk. */
        deadline_ms = i == 0 ? plan->formation_deadline_ms : deadline_ms;
        assert_int_equal(plan->formation_deadline_ms, deadline_ms + (i == 6 ? 2000 : 0));
        shoal__cluster__v1__replica_plan__free_unpacked(plan, NULL);
        rig_stop(&rig);
    }
}

static void test_a_draining_host_gives_its_replica_to_another(void **state)
{
    (void)state;
    rig_t rig;
    serving(&rig, "h0");
    rig_put(&rig, "drains/h0", "", 0);
    rig_pass(&rig, 2000);
    assert_int_equal(rig_count(&rig, CORE_ACTION_TXN), 1);
    Shoal__Cluster__V1__ReplicaPlan *plan = planned(&rig);
    assert_string_equal(plan->ranks[0]->host, "h1");
    shoal__cluster__v1__replica_plan__free_unpacked(plan, NULL);
    rig_stop(&rig);
}

static void test_a_foreign_store_stops_plans_but_not_serving(void **state)
{
    (void)state;
    rig_t rig;
    uint64_t epoch = serving(&rig, "h0");
    core_event_t event = {.kind = CORE_EVENT_STORE};
    event.store.store = CORE_STORE_ETCD;
    event.store.state = CORE_STORE_FOREIGN;
    event.store.text = "etcd was emptied";
    rig_event(&rig, &event);
    rig_delete(&rig, "replicas/toy/0/plan");
    rig_delete(&rig, "deployments/toy");
    rig_failure(&rig, 0, epoch, false, NULL);
    rig_pass(&rig, 5000);
    assert_int_equal(rig_count(&rig, CORE_ACTION_TXN), 0);
    rig_generate(&rig, 1, '1', 20, "");
    assert_int_equal(rig_admits(&rig, NULL), 1);
    /* Adopted: everything is asked for anew, and what is not listed then is gone. */
    rig_clear(&rig);
    event.store.state = CORE_STORE_UP;
    rig_event(&rig, &event);
    assert_true(rig_count(&rig, CORE_ACTION_WATCH) >= 3);
    rig_listed(&rig);
    core_deployment_view_t view;
    assert_false(core_find_deployment(rig.core, "toy", &view));
    rig_stop(&rig);
}

static void test_claims_of_a_dead_coordinator_are_released_after_ten_seconds(void **state)
{
    (void)state;
    rig_t rig;
    elected(&rig, 1, 1);
    Shoal__Cluster__V1__CoordinatorRecord r = SHOAL__CLUSTER__V1__COORDINATOR_RECORD__INIT;
    uint8_t bytes[64];
    size_t n = shoal__cluster__v1__coordinator_record__pack(&r, bytes);
    rig_put(&rig, "coordinators/c1", bytes, n);
    uint64_t process = rig.revision;
    rig_delete(&rig, "coordinators/c1");
    rig_clear(&rig);
    rig_pass(&rig, 9500);
    assert_int_equal(rig_count(&rig, CORE_ACTION_JOBS_RELEASE_PROCESS), 0);
    rig_pass(&rig, 1000);
    const core_action_t *release = rig_last(&rig, CORE_ACTION_JOBS_RELEASE_PROCESS);
    assert_non_null(release);
    assert_int_equal(release->release_process.process.revision, process);
    assert_int_equal(release->release_process.fence, 55);
    rig_stop(&rig);
}

static void test_a_process_that_is_registered_is_never_released(void **state)
{
    (void)state;
    rig_t rig;
    elected(&rig, 1, 1);
    rig_pass(&rig, 300);
    const core_action_t *asked = rig_last(&rig, CORE_ACTION_JOBS_PROCESSES);
    assert_non_null(asked);
    const jobs_process_t processes[] = {{1, 100}, {1, rig.revision + 1}, {1, 7}};
    core_event_t event = {.kind = CORE_EVENT_JOB_PROCESSES};
    event.job_processes.op = asked->op;
    event.job_processes.processes = processes;
    event.job_processes.n_processes = 3;
    rig_event(&rig, &event);
    Shoal__Cluster__V1__CoordinatorRecord r = SHOAL__CLUSTER__V1__COORDINATOR_RECORD__INIT;
    uint8_t bytes[64];
    size_t n = shoal__cluster__v1__coordinator_record__pack(&r, bytes);
    rig_put(&rig, "coordinators/c1", bytes, n); /* its key is seen after its claims */
    rig_clear(&rig);
    rig_pass(&rig, 11000);
    assert_int_equal(rig_count(&rig, CORE_ACTION_JOBS_RELEASE_PROCESS), 1);
    assert_int_equal(rig_last(&rig, CORE_ACTION_JOBS_RELEASE_PROCESS)
                         ->release_process.process.revision, 7);
    rig_stop(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_only_the_elected_coordinator_plans_and_it_names_its_election),
        cmocka_unit_test(test_nothing_is_planned_before_everything_was_listed),
        cmocka_unit_test(test_a_vanished_key_alone_dissolves_nothing),
        cmocka_unit_test(test_a_broken_stream_alone_dissolves_nothing),
        cmocka_unit_test(test_a_gone_host_and_a_broken_stream_move_the_replica),
        cmocka_unit_test(test_many_hosts_vanishing_at_once_freeze_the_plans),
        cmocka_unit_test(test_a_failure_record_forms_a_new_epoch_at_once),
        cmocka_unit_test(test_a_transaction_that_lost_is_not_repeated_with_old_knowledge),
        cmocka_unit_test(test_scaling_down_removes_plan_and_assignments),
        cmocka_unit_test(test_another_shape_is_formed_one_replica_at_a_time),
        cmocka_unit_test(test_of_hosts_that_load_the_slowest_is_shown_until_the_replica_is_active),
        cmocka_unit_test(test_another_kv_capacity_or_way_to_fill_steps_is_formed_anew),
        cmocka_unit_test(test_a_draining_host_gives_its_replica_to_another),
        cmocka_unit_test(test_a_foreign_store_stops_plans_but_not_serving),
        cmocka_unit_test(test_claims_of_a_dead_coordinator_are_released_after_ten_seconds),
        cmocka_unit_test(test_a_process_that_is_registered_is_never_released),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
