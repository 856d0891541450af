/* How a deployment's weights are quantized is part of what it serves: a change of it reads the model's
 * sizes again and is in the plans that follow. */
#include <stdlib.h>
#include <string.h>

#include "core_rig.h"
#include "tests/sim/sim.h"

static const plan_sizes_t sizes = {
    .config = {.architecture = "llama", .n_layers = 8, .hidden = 32, .n_heads = 8, .n_kv_heads = 4,
               .head_dim = 4, .ffn = 1024, .vocab = SIM_VOCAB, .context_train = 4096,
               .norm_eps = 1e-5f, .attention_scale = 0.5f},
    .file_bytes = 1 << 20,
    .embedding_values = 4096, .embedding_bytes = 4096, .head_values = 4096, .head_bytes = 4096,
    .norm_values = 64, .norm_bytes = 256, .q_values = 1024, .q_bytes = 1024,
    .kv_values = 1024, .kv_bytes = 1024, .output_values = 1024, .output_bytes = 1024,
    .ffn_values = 98304, .ffn_bytes = 98304,
};

static void deploy(rig_t *rig, char *quantize)
{
    Shoal__Cluster__V1__DeploymentRecord d = SHOAL__CLUSTER__V1__DEPLOYMENT_RECORD__INIT;
    char name[] = "toy", digest[] = "sha256:toy", activations[] = "native", kv[] = "int8";
    uint8_t bytes[256];
    d.name = d.model_name = name;
    d.model_digest = digest;
    d.replicas = d.tp = d.stages = 1;
    d.context_max = 128;
    d.activations = activations;
    d.quantize = quantize;
    if (quantize[0] != 0)
        d.kv = kv;
    rig_put(rig, "deployments/toy", bytes, shoal__cluster__v1__deployment_record__pack(&d, bytes));
}

static void model_loaded(rig_t *rig, const char *quantize)
{
    core_event_t event = {.kind = CORE_EVENT_MODEL};
    event.model.deployment = "toy";
    event.model.digest = "sha256:toy";
    event.model.quantize = quantize;
    event.model.tokenizer = oracle_tokenizer();
    event.model.sizes = &sizes;
    rig_event(rig, &event);
}

static Shoal__Cluster__V1__ReplicaPlan *written_plan(const rig_t *rig)
{
    const core_action_t *txn = rig_last(rig, CORE_ACTION_TXN);
    for (size_t i = 0; txn && i < txn->txn.n_writes; i++) {
        const core_write_t *write = &txn->txn.writes[i];
        if (strcmp(write->key, "replicas/toy/0/plan") == 0 && write->value)
            return shoal__cluster__v1__replica_plan__unpack(NULL, write->value_size, write->value);
    }
    return NULL;
}

static void test_a_change_of_quantization_loads_the_model_again_and_is_in_the_next_plan(void **state)
{
    (void)state;
    rig_t rig;
    rig_start(&rig, 1);
    core_deployment_view_t view;
    rig_elect(&rig, 55);
    rig_host(&rig, "h0");
    rig_clear(&rig);
    char quantize[] = "q8", none[] = "";
    deploy(&rig, none); /* as it was */
    assert_int_equal(rig_count(&rig, CORE_ACTION_LOAD_MODEL), 0);
    deploy(&rig, quantize);
    assert_int_equal(rig_count(&rig, CORE_ACTION_LOAD_MODEL), 1);
    assert_string_equal(rig_last(&rig, CORE_ACTION_LOAD_MODEL)->load_model.quantize, "q8");
    model_loaded(&rig, ""); /* asked for before the change */
    assert_true(core_find_deployment(rig.core, "toy", &view));
    assert_null(view.tokenizer);
    rig_listed(&rig);
    rig_pass(&rig, 1000);
    assert_null(written_plan(&rig));
    model_loaded(&rig, "q8");
    rig_pass(&rig, 1000);
    Shoal__Cluster__V1__ReplicaPlan *plan = written_plan(&rig);
    assert_non_null(plan);
    assert_string_equal(plan->quantize, "q8");
    assert_string_equal(plan->kv, "int8");
    shoal__cluster__v1__replica_plan__free_unpacked(plan, NULL);
    rig_stop(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_change_of_quantization_loads_the_model_again_and_is_in_the_next_plan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
