/* How slices share a stage is part of a replica's plan: the planner's choice where the deployment
 * leaves it open, the deployment's own where it does not; a change of it forms the replica anew. */
#include <stdlib.h>
#include <string.h>

#include "core_rig.h"
#include "tests/sim/sim.h"

#define DIGEST "sha256:moe"

/* 8 experts of which 2 are used: on 2 slices the rule cuts inside them. */
static const plan_sizes_t sizes = {
    .config = {.architecture = "mixtral", .n_layers = 8, .hidden = 32, .n_heads = 8,
               .n_kv_heads = 4, .head_dim = 4, .vocab = SIM_VOCAB, .context_train = 4096,
               .norm_eps = 1e-5f, .attention_scale = 0.5f,
               .experts = {.n = 8, .n_used = 2, .ffn = 256},
               .layers = {[0 ... 7] = {.ffn = MODEL_FFN_EXPERTS}}},
    .file_bytes = 1 << 20,
    .embedding_values = 4096, .embedding_bytes = 4096, .head_values = 4096, .head_bytes = 4096,
    .norm_values = 64, .norm_bytes = 256, .q_values = 1024, .q_bytes = 1024,
    .kv_values = 1024, .kv_bytes = 1024, .output_values = 1024, .output_bytes = 1024,
    .expert_values = 98304, .expert_bytes = 98304,
};

typedef struct {
    uint32_t tp, groups, holders, copies;
    bool own_shape; /* ordinal 0 has a shape of its own, of 4 slices */
} wanted_t;

static void deploy(rig_t *rig, wanted_t wanted)
{
    Shoal__Cluster__V1__DeploymentRecord d = SHOAL__CLUSTER__V1__DEPLOYMENT_RECORD__INIT;
    Shoal__Cluster__V1__ShapeRecord shape = SHOAL__CLUSTER__V1__SHAPE_RECORD__INIT;
    Shoal__Cluster__V1__ShapeRecord *shapes = &shape;
    char name[] = "toy", digest[] = DIGEST, activations[] = "native";
    uint8_t bytes[256];
    d.name = d.model_name = name;
    d.model_digest = digest;
    d.replicas = d.stages = 1;
    d.tp = wanted.tp;
    d.expert_groups = wanted.groups;
    d.attention_slices = wanted.holders;
    d.attention_replicas = wanted.copies;
    d.context_max = 128;
    d.activations = activations;
    shape.tp = 4;
    shape.stages = 1;
    d.shapes = &shapes;
    d.n_shapes = wanted.own_shape;
    rig_put(rig, "deployments/toy", bytes, shoal__cluster__v1__deployment_record__pack(&d, bytes));
}

static void add_host(rig_t *rig)
{
    Shoal__Cluster__V1__ModelRecord model = SHOAL__CLUSTER__V1__MODEL_RECORD__INIT;
    Shoal__Cluster__V1__ModelRecord *models = &model;
    Shoal__Cluster__V1__HostRecord r = SHOAL__CLUSTER__V1__HOST_RECORD__INIT;
    char id[] = "h0", digest[] = DIGEST;
    uint8_t bytes[256];
    model.digest = digest;
    r.id = id;
    r.cores = 4;
    r.memory_bytes = 1ull << 32;
    r.n_models = 1;
    r.models = &models;
    rig_put(rig, "hosts/h0", bytes, shoal__cluster__v1__host_record__pack(&r, bytes));
}

static void model_loaded(rig_t *rig)
{
    core_event_t event = {.kind = CORE_EVENT_MODEL};
    event.model.deployment = "toy";
    event.model.digest = DIGEST;
    event.model.quantize = "";
    event.model.tokenizer = oracle_tokenizer();
    event.model.sizes = &sizes;
    rig_event(rig, &event);
}

/* The plan that the last transaction writes, or NULL. */
static const core_write_t *plan_write(const rig_t *rig)
{
    const core_action_t *txn = rig_last(rig, CORE_ACTION_TXN);
    for (size_t i = 0; txn && i < txn->txn.n_writes; i++)
        if (strcmp(txn->txn.writes[i].key, "replicas/toy/0/plan") == 0 && txn->txn.writes[i].value)
            return &txn->txn.writes[i];
    return NULL;
}

/* Deploys on a new cluster and gives back the rig with the plan put where watchers see it. */
static void check_planned(rig_t *rig, wanted_t wanted, uint32_t tp, uint32_t groups,
                          uint32_t holders)
{
    rig_start(rig, 0);
    rig_elect(rig, 55);
    add_host(rig);
    rig_listed(rig);
    deploy(rig, wanted);
    model_loaded(rig);
    rig_pass(rig, 1000);
    const core_write_t *write = plan_write(rig);
    assert_non_null(write);
    Shoal__Cluster__V1__ReplicaPlan *plan =
        shoal__cluster__v1__replica_plan__unpack(NULL, write->value_size, write->value);
    assert_non_null(plan);
    assert_int_equal(plan->tp, tp);
    assert_int_equal(plan->expert_groups, groups);
    assert_int_equal(plan->attention_slices, holders);
    assert_int_equal(plan->attention_replicas,
                     wanted.copies && !wanted.own_shape ? wanted.copies : 1);
    shoal__cluster__v1__replica_plan__free_unpacked(plan, NULL);
}

static void test_the_plan_says_how_slices_share_a_stage(void **state)
{
    (void)state;
    rig_t rig;
    check_planned(&rig, (wanted_t){.tp = 2}, 2, 1, 2);
    rig_stop(&rig);
    check_planned(&rig, (wanted_t){.tp = 2, .groups = 2, .holders = 1}, 2, 2, 1);
    rig_stop(&rig);
    check_planned(&rig, (wanted_t){.tp = 2, .copies = 2}, 2, 1, 2);
    rig_stop(&rig);
    check_planned(&rig, (wanted_t){.tp = 2, .copies = 2, .own_shape = true}, 4, 1, 4);
    rig_stop(&rig);
    /* It was asked for of 2 slices, not of the 4 of this replica. */
    check_planned(&rig, (wanted_t){.tp = 2, .groups = 2, .holders = 1, .own_shape = true}, 4, 1, 4);
    rig_stop(&rig);
}

/* The replica's leader is there. */
static void form(rig_t *rig)
{
    Shoal__Cluster__V1__ActiveRecord active = SHOAL__CLUSTER__V1__ACTIVE_RECORD__INIT;
    char leader[] = "h0:1", identity[] = RIG_IDENTITY;
    uint8_t bytes[256];
    uint64_t epoch = rig->revision;
    active.epoch = epoch;
    active.leader = leader;
    active.text_identity = identity;
    rig_put(rig, "replicas/toy/0/active", bytes,
            shoal__cluster__v1__active_record__pack(&active, bytes));
    rig_pass(rig, 300);
    rig_hello(rig, rig_link(rig), epoch, 1024);
    rig_pass(rig, 3000);
}

/* Whether a replica of 2 slices, which the planner cut, is planned again when this is wanted. */
static bool plans_again(wanted_t wanted)
{
    rig_t rig;
    check_planned(&rig, (wanted_t){.tp = 2}, 2, 1, 2);
    const core_write_t *write = plan_write(&rig);
    uint8_t bytes[1024];
    assert_true(write->value_size <= sizeof bytes);
    memcpy(bytes, write->value, write->value_size);
    size_t size = write->value_size;
    core_event_t done = {.kind = CORE_EVENT_TXN_DONE};
    done.txn_done.op = rig_last(&rig, CORE_ACTION_TXN)->op;
    done.txn_done.known = done.txn_done.succeeded = true;
    rig_event(&rig, &done);
    rig_put(&rig, "replicas/toy/0/plan", bytes, size);
    form(&rig);
    rig_clear(&rig);
    deploy(&rig, wanted);
    for (uint32_t i = 0; i < 20; i++)
        rig_pass(&rig, 1000);
    bool again = plan_write(&rig) != NULL;
    rig_stop(&rig);
    return again;
}

static void test_a_replica_is_formed_anew_when_another_cut_is_wanted_and_only_then(void **state)
{
    (void)state;
    assert_false(plans_again((wanted_t){.tp = 2}));
    assert_false(plans_again((wanted_t){.tp = 2, .groups = 1, .holders = 2, .copies = 1}));
    assert_true(plans_again((wanted_t){.tp = 2, .groups = 2}));
    assert_true(plans_again((wanted_t){.tp = 2, .holders = 1}));
    assert_true(plans_again((wanted_t){.tp = 2, .copies = 2}));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_plan_says_how_slices_share_a_stage),
        cmocka_unit_test(test_a_replica_is_formed_anew_when_another_cut_is_wanted_and_only_then),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
