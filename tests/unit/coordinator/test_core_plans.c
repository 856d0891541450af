/* Replicas over many hosts: what one transaction of etcd takes, what goes before it in parts. */
#include "tests/unit/coordinator/core_rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

enum { ETCD_OPS_MAX = 128 };

/* A plan of `n` ranks, each on a host of its own (w000, w001, …), as it stands in etcd. */
static uint64_t wide_replica(rig_t *rig, size_t n)
{
    char name[] = "toy", digest[] = "sha256:toy", activations[] = "native", hosts[200][8];
    Shoal__Cluster__V1__RankPlan ranks[200], *list[200];
    assert_true(n <= 200);
    for (size_t i = 0; i < n; i++) {
        shoal__cluster__v1__rank_plan__init(&ranks[i]);
        snprintf(hosts[i], sizeof hosts[i], "w%03zu", i);
        ranks[i].host = hosts[i];
        list[i] = &ranks[i];
    }
    Shoal__Cluster__V1__ReplicaPlan plan = SHOAL__CLUSTER__V1__REPLICA_PLAN__INIT;
    plan.deployment = name;
    plan.model_digest = digest;
    plan.activations = activations;
    plan.tp = plan.stages = 1;
    plan.context_max = 128;
    plan.formation_deadline_ms = 30000;
    plan.n_ranks = n;
    plan.ranks = list;
    static uint8_t bytes[32768];
    size_t size = shoal__cluster__v1__replica_plan__pack(&plan, bytes);
    rig_put(rig, "replicas/toy/0/plan", bytes, size);
    return rig->revision;
}

/* Answers the last transaction; what stays in the rig is what follows from that. */
static void answer(rig_t *rig, bool known, bool succeeded)
{
    core_event_t event = {.kind = CORE_EVENT_TXN_DONE};
    event.txn_done.op = rig_last(rig, CORE_ACTION_TXN)->op;
    event.txn_done.known = known;
    event.txn_done.succeeded = succeeded;
    rig_clear(rig);
    rig_event(rig, &event);
}

/* What stands below assign/ and ranks/, and whether a plan does, after the transactions so far. */
typedef struct {
    bool assigned[200], recorded[200], on_h0, planned;
    unsigned n_txns;
} etcd_t;

static size_t left(const etcd_t *etcd)
{
    size_t n = 0;
    for (size_t i = 0; i < 200; i++)
        n += (size_t)etcd->assigned[i] + (size_t)etcd->recorded[i];
    return n;
}

static void apply(etcd_t *etcd, const core_action_t *txn, uint64_t epoch)
{
    assert_true(txn->txn.n_writes > 0 && txn->txn.n_writes <= ETCD_OPS_MAX);
    assert_int_equal(txn->txn.n_compares, 2);
    assert_string_equal(txn->txn.compares[1].key, "replicas/toy/0/plan");
    assert_int_equal(txn->txn.compares[1].revision, epoch);
    for (size_t i = 0; i < txn->txn.n_writes; i++) {
        const core_write_t *write = &txn->txn.writes[i];
        unsigned number = 0, at = 0;
        unsigned long long of = 0;
        if (sscanf(write->key, "assign/w%u/toy/0", &number) == 1)
            etcd->assigned[number] = write->value != NULL;
        else if (sscanf(write->key, "ranks/toy/%u/%llu/%u", &at, &of, &number) == 3 && of == epoch)
            etcd->recorded[number] = write->value != NULL;
        else if (strcmp(write->key, "assign/h0/toy/0") == 0)
            etcd->on_h0 = write->value != NULL;
        else if (strcmp(write->key, "replicas/toy/0/plan") == 0)
            etcd->planned = write->value != NULL;
    }
    etcd->n_txns++;
}

/* An elected core beside a replica over `n` hosts that are all gone, and host h0. */
static uint64_t begin(rig_t *rig, etcd_t *etcd, size_t n, uint32_t replicas)
{
    *etcd = (etcd_t){.planned = true};
    for (size_t i = 0; i < n; i++)
        etcd->assigned[i] = etcd->recorded[i] = true;
    rig_start(rig, replicas);
    rig_elect(rig, 55);
    rig_host(rig, "h0");
    uint64_t epoch = wide_replica(rig, n);
    rig_failure(rig, 0, epoch, false, NULL);
    rig_clear(rig);
    rig_listed(rig);
    rig_pass(rig, 10);
    return epoch;
}

static void test_an_old_replica_over_many_hosts_goes_in_parts_before_the_new_plan(void **state)
{
    (void)state;
    rig_t rig;
    etcd_t etcd;
    uint64_t epoch = begin(&rig, &etcd, 150, 1);
    while (!etcd.on_h0) {
        assert_int_equal(rig_count(&rig, CORE_ACTION_TXN), 1); /* one at a time */
        apply(&etcd, rig_last(&rig, CORE_ACTION_TXN), epoch);
        /* The plan is the list of what has to go: it is replaced last. */
        assert_true(etcd.on_h0 == (left(&etcd) == 0));
        assert_true(etcd.n_txns <= 3);
        answer(&rig, true, true);
        rig_pass(&rig, 10);
    }
    assert_int_equal(etcd.n_txns, 3);
    assert_int_equal(rig_count(&rig, CORE_ACTION_TXN), 0);
    rig_stop(&rig);
}

static void test_a_removal_of_unknown_outcome_is_made_again(void **state)
{
    (void)state;
    rig_t rig;
    etcd_t etcd;
    uint64_t epoch = begin(&rig, &etcd, 150, 1);
    answer(&rig, false, false); /* the first part may have happened, or not */
    for (unsigned round = 0; !etcd.on_h0; round++) {
        assert_true(round < 20);
        rig_pass(&rig, 200);
        if (!rig_count(&rig, CORE_ACTION_TXN))
            continue;
        apply(&etcd, rig_last(&rig, CORE_ACTION_TXN), epoch);
        answer(&rig, true, true);
    }
    assert_int_equal(left(&etcd), 0);
    rig_stop(&rig);
}

static void test_a_wide_replica_that_is_scaled_away_leaves_nothing(void **state)
{
    (void)state;
    rig_t rig;
    etcd_t etcd;
    uint64_t epoch = begin(&rig, &etcd, 200, 0);
    for (unsigned round = 0; etcd.planned; round++) {
        assert_true(round < 5);
        apply(&etcd, rig_last(&rig, CORE_ACTION_TXN), epoch);
        assert_true(!etcd.planned == (left(&etcd) == 0));
        answer(&rig, true, true);
        rig_pass(&rig, 10);
    }
    rig_stop(&rig);
}

static void test_a_small_replica_moves_in_one_transaction(void **state)
{
    (void)state;
    rig_t rig;
    etcd_t etcd;
    uint64_t epoch = begin(&rig, &etcd, 40, 1);
    apply(&etcd, rig_last(&rig, CORE_ACTION_TXN), epoch);
    assert_int_equal(left(&etcd), 0);
    assert_true(etcd.on_h0);
    rig_stop(&rig);
}

/* ---- too wide ---- */

static plan_sizes_t deep(void)
{
    plan_sizes_t sizes = {
        .config = {.architecture = "llama", .n_layers = 64, .hidden = 32, .n_heads = 8,
                   .n_kv_heads = 4, .head_dim = 4, .ffn = 1024, .vocab = SIM_VOCAB,
                   .context_train = 4096,
                   .norm_eps = 1e-5f, .attention_scale = 0.5f},
        .file_bytes = 1 << 20,
        .embedding_values = 4096, .embedding_bytes = 4096, .head_values = 4096, .head_bytes = 4096,
        .norm_values = 64, .norm_bytes = 256, .q_values = 1024, .q_bytes = 1024,
        .kv_values = 1024, .kv_bytes = 1024, .output_values = 1024, .output_bytes = 1024,
        .ffn_values = 98304, .ffn_bytes = 98304,
    };
    return sizes;
}

/* Deploys a model of 64 layers as tp 2 and `stages`, with `n` hosts that each hold one rank. */
static void deploy_deep(rig_t *rig, uint32_t stages, unsigned n, const plan_sizes_t *sizes)
{
    char name[] = "toy", digest[] = "sha256:deep", activations[] = "native", id[8];
    Shoal__Cluster__V1__DeploymentRecord d = SHOAL__CLUSTER__V1__DEPLOYMENT_RECORD__INIT;
    uint8_t bytes[256];
    d.name = d.model_name = name;
    d.model_digest = digest;
    d.activations = activations;
    d.replicas = 1;
    d.tp = 2;
    d.stages = stages;
    d.context_max = 128;
    plan_shape_t shape = {.tp = 2, .stages = stages, .context_max = 128};
    static plan_need_t needs[PLAN_RANKS_MAX];
    plan_run_t layers[PLAN_STAGES_MAX];
    assert_int_equal(plan_needs(sizes, &shape, needs, layers), STATUS_OK);
    uint64_t memory = 0;
    for (size_t i = 0; i < (size_t)stages * 2; i++) {
        uint64_t tokens = plan_kv_tokens_needed(&sizes->config, &shape);
        uint64_t need = needs[i].fixed + needs[i].kv_per_token * tokens;
        memory = need > memory ? need : memory;
    }
    rig_start(rig, 0);
    rig_elect(rig, 55);
    Shoal__Cluster__V1__ModelRecord model = SHOAL__CLUSTER__V1__MODEL_RECORD__INIT;
    Shoal__Cluster__V1__ModelRecord *models = &model;
    model.digest = digest;
    for (unsigned h = 0; h < n; h++) {
        Shoal__Cluster__V1__HostRecord r = SHOAL__CLUSTER__V1__HOST_RECORD__INIT;
        snprintf(id, sizeof id, "w%03u", h);
        r.id = id;
        r.cores = 1;
        r.memory_bytes = memory;
        r.n_models = 1;
        r.models = &models;
        char key[32];
        snprintf(key, sizeof key, "hosts/%s", id);
        rig_put(rig, key, bytes, shoal__cluster__v1__host_record__pack(&r, bytes));
    }
    rig_listed(rig);
    rig_put(rig, "deployments/toy", bytes, shoal__cluster__v1__deployment_record__pack(&d, bytes));
    core_event_t loaded = {.kind = CORE_EVENT_MODEL};
    loaded.model.deployment = name;
    loaded.model.digest = digest;
    loaded.model.tokenizer = oracle_tokenizer();
    loaded.model.sizes = sizes;
    rig_event(rig, &loaded);
    rig_pass(rig, 10);
}

static void test_a_replica_over_more_hosts_than_a_transaction_takes_is_refused(void **state)
{
    (void)state;
    rig_t rig;
    plan_sizes_t sizes = deep();
    deploy_deep(&rig, 62, 124, &sizes);
    rig_pass(&rig, 3000);
    assert_int_equal(rig_count(&rig, CORE_ACTION_TXN), 0);
    core_deployment_view_t view;
    assert_true(core_find_deployment(rig.core, "toy", &view));
    if (!strstr(view.message, "124 ranks") || !strstr(view.message, "119 hosts"))
        fail_msg("%s", view.message);
    rig_stop(&rig);
    /* One that fits to the last key is written, plan and assignments together. */
    deploy_deep(&rig, 59, 119, &sizes);
    assert_int_equal(rig_count(&rig, CORE_ACTION_TXN), 1);
    assert_int_equal(rig_last(&rig, CORE_ACTION_TXN)->txn.n_writes, 119);
    rig_stop(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            test_an_old_replica_over_many_hosts_goes_in_parts_before_the_new_plan),
        cmocka_unit_test(test_a_removal_of_unknown_outcome_is_made_again),
        cmocka_unit_test(test_a_wide_replica_that_is_scaled_away_leaves_nothing),
        cmocka_unit_test(test_a_small_replica_moves_in_one_transaction),
        cmocka_unit_test(
            test_a_replica_over_more_hosts_than_a_transaction_takes_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
