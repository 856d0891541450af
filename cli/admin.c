/* The commands of operators: deploy, undeploy, scale, drain, adopt. `deploy --wait` and `scale
 * --wait` return when the desired state is reached, and say what stands in its way when it is not. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/client.h"
#include "cli/command.h"
#include "cli/deployment_view.h"
#include "cli/output.h"
#include "cli/up_models.h"
#include "common/base/clock.h"
#include "common/base/memory.h"
#include "common/model/model_files.h"
#include "common/net/rpc_message.h"
#include "shoal/v1/admin.pb-c.h"

enum { POLL_MS = 50 };

static void pause_ms(long ms)
{
    struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&pause, NULL);
}

/* A replica of an older coordinator tells of none. */
static bool same_steps(const Shoal__V1__StepSettings *is, const Shoal__V1__StepSettings *wanted)
{
    return is == NULL || wanted == NULL ||
           (is->rows_max == wanted->rows_max && is->speculate_max == wanted->speculate_max &&
            is->speculate_off == wanted->speculate_off &&
            is->prefix_cache_off == wanted->prefix_cache_off &&
            is->whole_prompts == wanted->whole_prompts);
}

/* True when every replica of the deployment is active with its model and shape, and no other is
 * left. */
static bool is_reached(const Shoal__V1__Deployment *wanted, const Shoal__V1__ListReplicasResponse *now,
                       size_t *n_active_out)
{
    size_t active = 0, other = 0;
    for (size_t i = 0; i < now->n_replicas; i++) {
        const Shoal__V1__Replica *replica = now->replicas[i];
        uint32_t tp = wanted->tp, stages = wanted->stages;
        uint32_t groups = wanted->expert_groups, holders = wanted->attention_slices;
        uint32_t copies = wanted->attention_replicas, has = replica->attention_replicas;
        for (size_t s = 0; s < wanted->n_shapes; s++)
            if (wanted->shapes[s]->ordinal == replica->ordinal) {
                tp = wanted->shapes[s]->tp;
                stages = wanted->shapes[s]->stages;
                groups = holders = copies = 0;
            }
        bool shaped = (tp == 0 || replica->tp == tp) && (stages == 0 || replica->stages == stages) &&
                      (groups == 0 || replica->expert_groups == groups) &&
                      (holders == 0 || replica->attention_slices == holders) &&
                      (has ? has : 1) == (copies ? copies : 1);
        bool current = strcmp(replica->model_digest, wanted->model_digest) == 0 &&
                       strcmp(replica->activations, wanted->activations) == 0 &&
                       strcmp(replica->quantize, wanted->quantize) == 0 &&
                       strcmp(replica->kv, wanted->kv) == 0 &&
                       strcmp(replica->draft_digest, wanted->draft_digest) == 0 &&
                       replica->context_max == wanted->context_max &&
                       replica->kv_tokens_wanted == wanted->kv_tokens_max &&
                       same_steps(replica->step_settings, wanted->steps);
        if (strcmp(replica->state, "active") == 0 && shaped && current &&
            replica->ordinal < wanted->replicas)
            active++;
        else
            other++;
    }
    *n_active_out = active;
    return active == wanted->replicas && other == 0;
}

static status_t find_deployment(client_t *client, const char *name,
                                Shoal__V1__ListDeploymentsResponse **own_list_out,
                                Shoal__V1__Deployment **out)
{
    Shoal__V1__ListDeploymentsRequest request = SHOAL__V1__LIST_DEPLOYMENTS_REQUEST__INIT;
    Shoal__V1__ListDeploymentsResponse *list;
    TRY(client_call(client, "/shoal.v1.Admin/ListDeployments", &request,
                    &shoal__v1__list_deployments_response__descriptor, &list));
    for (size_t i = 0; i < list->n_deployments; i++)
        if (strcmp(list->deployments[i]->name, name) == 0) {
            *own_list_out = list;
            *out = list->deployments[i];
            return STATUS_OK;
        }
    rpc_message_free(list);
    return fail(STATUS_NOT_FOUND, "no deployment is called \"%s\"; `shoal status` lists them", name);
}

static status_t wait_reached(client_t *client, const char *name, int64_t timeout_ms)
{
    uint64_t until = clock_ms() + (uint64_t)timeout_ms;
    size_t active_before = SIZE_MAX;
    char message[STATUS_TEXT_MAX] = "";
    for (;;) {
        Shoal__V1__ListDeploymentsResponse *list;
        Shoal__V1__Deployment *wanted;
        TRY(find_deployment(client, name, &list, &wanted));
        Shoal__V1__ListReplicasRequest request = SHOAL__V1__LIST_REPLICAS_REQUEST__INIT;
        request.deployment = wanted->name;
        Shoal__V1__ListReplicasResponse *now;
        status_t status = client_call(client, "/shoal.v1.Admin/ListReplicas", &request,
                                      &shoal__v1__list_replicas_response__descriptor, &now);
        if (status != STATUS_OK) {
            rpc_message_free(list);
            return status;
        }
        size_t active = 0;
        bool reached = is_reached(wanted, now, &active);
        if (active != active_before)
            fprintf(stderr, "%s: %zu of %u replicas active\n", name, active, wanted->replicas);
        active_before = active;
        bool news = strncmp(message, wanted->message, sizeof message - 1) != 0;
        snprintf(message, sizeof message, "%s", wanted->message);
        rpc_message_free(list);
        rpc_message_free(now);
        if (news && message[0] != 0 && !reached)
            fprintf(stderr, "%s: %s\n", name, message);
        if (reached)
            return STATUS_OK;
        if (command_interrupted)
            return fail(STATUS_CANCELLED, "interrupted; the change goes on");
        if (clock_ms() >= until)
            return fail(STATUS_TIMEOUT, "%s is not as desired yet%s%s", name, message[0] ? ": " : "", message);
        pause_ms(POLL_MS);
    }
}

/* Prints one object, as a table of these columns or as JSON. */
static void print_row(json_t *take_object, const char *const *columns, size_t n_columns, bool json)
{
    json_t *rows = json_pack("[o]", take_object);
    if (json)
        output_json(json_array_get(rows, 0), false);
    else
        output_table(columns, n_columns, rows);
    json_decref(rows);
}

static void print_deployment(const Shoal__V1__Deployment *deployment, bool json)
{
    static const char *const columns[] = {"name", "replicas", "tp", "stages", "context_max", "version"};
    print_row(deployment_json(deployment), columns, 6, json);
}

enum { SHAPES_MAX = 64 };

/* Reads "0=2x1,1=1x3": ordinal = slices x stages. */
static status_t read_shapes(const char *text, Shoal__V1__Shape shapes[SHAPES_MAX],
                            Shoal__V1__Shape *list[SHAPES_MAX], size_t *n_out)
{
    size_t n = 0;
    for (const char *at = text; *at != 0;) {
        unsigned ordinal, tp, stages;
        int length = 0;
        if (n == SHAPES_MAX || sscanf(at, "%u=%ux%u%n", &ordinal, &tp, &stages, &length) != 3 ||
            (at[length] != ',' && at[length] != 0))
            return fail(STATUS_INVALID, "--shapes: \"%s\" is no list like 0=2x1,1=1x3", text);
        shoal__v1__shape__init(&shapes[n]);
        shapes[n].ordinal = ordinal;
        shapes[n].tp = tp;
        shapes[n].stages = stages;
        list[n] = &shapes[n];
        n++;
        at += length + (at[length] == ',');
    }
    *n_out = n;
    return STATUS_OK;
}

/* Sends the request. A cluster that is still starting is not there yet, or has no host yet: with
 * `wait_ms` the call is repeated until then. */
static status_t send_deploy(client_t *client, const Shoal__V1__DeployRequest *request, int64_t wait_ms,
                            Shoal__V1__Deployment **own_out)
{
    uint64_t until = clock_ms() + (uint64_t)wait_ms;
    for (;;) {
        status_t status = client_call(client, "/shoal.v1.Admin/Deploy", request,
                                      &shoal__v1__deployment__descriptor, own_out);
        bool early = status == STATUS_UNREACHABLE || status == STATUS_REFUSED;
        if (!early || clock_ms() >= until || command_interrupted)
            return status;
        pause_ms(POLL_MS);
    }
}

status_t command_deploy(int argc, char **argv)
{
    cluster_options_t where = {0};
    const char *model, *draft = NULL, *activations, *kv, *quantize, *shapes, *format;
    const char *words[1] = {NULL};
    int64_t replicas, tp, stages, groups, holders, copies;
    int64_t context_max, kv_tokens, chunk, speculate, timeout_ms;
    bool wait = false, json = false, done = false, no_prefix_cache = false, whole_prompts = false;
    const option_t options[] = {
        {"model", OPTION_TEXT, &model, NULL, "PATH", "GGUF file or model directory, as the hosts see it under their --models"},
        {"draft-model", OPTION_TEXT, &draft, NULL, "PATH", COMMAND_DRAFT_MODEL_HELP},
        {"replicas", OPTION_INTEGER, &replicas, "1", "R", "copies of the model", 0, 1024},
        {"tp", OPTION_INTEGER, &tp, "1", "T", "slices of each stage", 1, 64},
        {"stages", OPTION_INTEGER, &stages, "1", "S", "pipeline stages", 1, 64},
        {"expert-groups", OPTION_INTEGER, &groups, "0", "G", "groups of slices, each with whole experts of its own; 0: the planner chooses", 0, 16},
        {"attention-slices", OPTION_INTEGER, &holders, "0", "A", "slices that hold attention and its KV; 0: the planner chooses", 0, 16},
        {"attention-replicas", OPTION_INTEGER, &copies, "1", "R", "replicas of attention among those, each with the KV of its own sequences", 1, 16},
        {"context-max", OPTION_INTEGER, &context_max, "2048", "N", "tokens of prompt and answer", 16, 1048576},
        {"shapes", OPTION_TEXT, &shapes, NULL, "LIST", "other shapes for single replicas: 0=2x1,1=1x3 (slices x stages)"},
        {"kv-tokens-max", OPTION_INTEGER, &kv_tokens, "0", "N", "KV capacity of a replica; 0 takes what fits", 0, 1e12},
        COMMAND_STEP_OPTIONS(&chunk, &speculate, &no_prefix_cache, &whole_prompts),
        {"activations", OPTION_TEXT, &activations, "native", "native|f32", "how activations are kept"},
        {"kv", OPTION_TEXT, &kv, "bf16", "bf16|int8|fp8", "how keys and values are kept"},
        {"quantize", OPTION_TEXT, &quantize, "", "q8|q4|fp8", "quantize F32, F16 and BF16 weights as they are loaded [as stored]"},
        {"wait", OPTION_FLAG, &wait, NULL, NULL, "return when all replicas are active"},
        {"timeout", OPTION_DURATION_MS, &timeout_ms, "120s", "TIME", "how long --wait waits"},
        OUTPUT_OPTION(&format), CLUSTER_DATA_OPTION(where), CLUSTER_ENDPOINT_OPTION(where), {0},
    };
    const options_help_t help = {"shoal deploy [NAME] --model PATH [options]",
                                 "Serves a model, or changes how it is served.",
                                 "shoal deploy smol --model /models/SmolLM2-135M-Instruct.Q4_1.gguf --tp 2 --wait",
                                 options};
    model = shapes = NULL;
    TRY(command_options(&help, argc, argv, words, 0, 1, NULL, &done));
    if (done)
        return STATUS_OK;
    TRY(output_format(format, &json));
    if (model == NULL)
        return fail(STATUS_INVALID, "--model is missing; usage: %s", help.usage);
    client_t *client;
    TRY(client_open(&where, &client));
    char *name = words[0] ? mem_strdup(words[0]) : model_files_name(model);
    char *model_text = NULL, *draft_text = NULL, *activations_text = mem_strdup(activations);
    char *quantize_text = mem_strdup(quantize), *kv_text = mem_strdup(kv);
    Shoal__V1__Deployment deployment = SHOAL__V1__DEPLOYMENT__INIT;
    deployment.name = name;
    deployment.replicas = (uint32_t)replicas;
    deployment.tp = (uint32_t)tp;
    deployment.stages = (uint32_t)stages;
    deployment.expert_groups = (uint32_t)groups;
    deployment.attention_slices = (uint32_t)holders;
    deployment.attention_replicas = (uint32_t)copies;
    deployment.context_max = (uint32_t)context_max;
    deployment.kv_tokens_max = (uint64_t)kv_tokens;
    Shoal__V1__StepSettings steps = SHOAL__V1__STEP_SETTINGS__INIT;
    steps.rows_max = (uint32_t)chunk;
    steps.speculate_max = (uint32_t)speculate;
    steps.speculate_off = speculate == 0;
    steps.prefix_cache_off = no_prefix_cache;
    steps.whole_prompts = whole_prompts;
    deployment.steps = &steps;
    deployment.activations = activations_text;
    deployment.quantize = quantize_text;
    deployment.kv = kv_text;
    Shoal__V1__DeployRequest request = SHOAL__V1__DEPLOY_REQUEST__INIT;
    request.deployment = &deployment;
    Shoal__V1__Shape shape_values[SHAPES_MAX], *shape_list[SHAPES_MAX];
    deployment.shapes = shape_list;
    status_t status = read_shapes(shapes ? shapes : "", shape_values, shape_list, &deployment.n_shapes);
    Shoal__V1__Deployment *reply = NULL;
    if (status == STATUS_OK)
        status = up_offer_model(&where, model, &model_text);
    deployment.model_path = model_text;
    if (status == STATUS_OK && draft)
        status = up_offer_model(&where, draft, &draft_text);
    if (draft_text)
        deployment.draft_path = draft_text;
    if (status == STATUS_OK)
        status = send_deploy(client, &request, wait ? timeout_ms : 0, &reply);
    if (status == STATUS_OK && wait)
        status = wait_reached(client, name, timeout_ms);
    if (status == STATUS_OK)
        print_deployment(reply, json);
    rpc_message_free(reply);
    free(name);
    free(model_text);
    free(draft_text);
    free(activations_text);
    free(quantize_text);
    free(kv_text);
    client_close(client);
    return status;
}

status_t command_undeploy(int argc, char **argv)
{
    cluster_options_t where = {0};
    const char *format, *words[1];
    bool json = false, done = false;
    const option_t options[] = {OUTPUT_OPTION(&format), CLUSTER_DATA_OPTION(where),
                                CLUSTER_ENDPOINT_OPTION(where), {0}};
    const options_help_t help = {"shoal undeploy NAME", "Stops serving a model. Its jobs stay.",
                                 "shoal undeploy smol", options};
    TRY(command_options(&help, argc, argv, words, 1, 1, NULL, &done));
    if (done)
        return STATUS_OK;
    TRY(output_format(format, &json));
    client_t *client;
    TRY(client_open(&where, &client));
    char *name = mem_strdup(words[0]);
    Shoal__V1__DeleteDeploymentRequest request = SHOAL__V1__DELETE_DEPLOYMENT_REQUEST__INIT;
    request.name = name;
    Shoal__V1__DeleteDeploymentResponse *reply = NULL;
    status_t status = client_call(client, "/shoal.v1.Admin/DeleteDeployment", &request,
                                  &shoal__v1__delete_deployment_response__descriptor, &reply);
    static const char *const columns[] = {"name", "state"};
    if (status == STATUS_OK)
        print_row(json_pack("{s:s,s:s}", "name", name, "state", "undeployed"), columns, 2, json);
    rpc_message_free(reply);
    free(name);
    client_close(client);
    return status;
}

status_t command_scale(int argc, char **argv)
{
    cluster_options_t where = {0};
    const char *format, *words[1] = {NULL};
    int64_t replicas = 0, tp = 0, stages = 0, if_version, timeout_ms;
    bool replicas_given, tp_given, stages_given, wait = false, json = false, done = false;
    const option_t options[] = {
        {"replicas", OPTION_INTEGER, &replicas, NULL, "N", "copies of the model", 0, 1024, &replicas_given},
        {"tp", OPTION_INTEGER, &tp, NULL, "T", "slices of each stage", 1, 64, &tp_given},
        {"stages", OPTION_INTEGER, &stages, NULL, "S", "pipeline stages", 1, 64, &stages_given},
        {"if-version", OPTION_INTEGER, &if_version, "0", "V", "only if the deployment has this version", 0, 1e15},
        {"wait", OPTION_FLAG, &wait, NULL, NULL, "return when the replicas are as desired"},
        {"timeout", OPTION_DURATION_MS, &timeout_ms, "120s", "TIME", "how long --wait waits"},
        OUTPUT_OPTION(&format), CLUSTER_DATA_OPTION(where), CLUSTER_ENDPOINT_OPTION(where), {0},
    };
    const options_help_t help = {
        "shoal scale [NAME] --replicas N [--tp T] [--stages S] [options]",
        "Changes the number of replicas or their shape while requests run. NAME may be left out when\n"
        "there is one deployment.", "shoal scale smol --replicas 2 --wait", options};
    TRY(command_options(&help, argc, argv, words, 0, 1, NULL, &done));
    if (done)
        return STATUS_OK;
    TRY(output_format(format, &json));
    if (!replicas_given && !tp_given && !stages_given)
        return fail(STATUS_INVALID, "nothing to change: give --replicas, --tp or --stages");
    client_t *client;
    TRY(client_open(&where, &client));
    char *name = mem_strdup(words[0] ? words[0] : "");
    Shoal__V1__ScaleRequest request = SHOAL__V1__SCALE_REQUEST__INIT;
    request.name = name;
    request.if_version = (uint64_t)if_version;
    if (replicas_given) {
        request.has_replicas_case = SHOAL__V1__SCALE_REQUEST__HAS_REPLICAS_REPLICAS;
        request.replicas = (uint32_t)replicas;
    }
    if (tp_given) {
        request.has_tp_case = SHOAL__V1__SCALE_REQUEST__HAS_TP_TP;
        request.tp = (uint32_t)tp;
    }
    if (stages_given) {
        request.has_stages_case = SHOAL__V1__SCALE_REQUEST__HAS_STAGES_STAGES;
        request.stages = (uint32_t)stages;
    }
    Shoal__V1__Deployment *reply = NULL;
    status_t status = client_call(client, "/shoal.v1.Admin/Scale", &request,
                                  &shoal__v1__deployment__descriptor, &reply);
    if (status == STATUS_OK && wait)
        status = wait_reached(client, reply->name, timeout_ms);
    if (status == STATUS_OK)
        print_deployment(reply, json);
    rpc_message_free(reply);
    free(name);
    client_close(client);
    return status;
}

status_t command_drain(int argc, char **argv)
{
    cluster_options_t where = {0};
    const char *format, *words[1];
    bool undo = false, json = false, done = false;
    const option_t options[] = {
        {"undo", OPTION_FLAG, &undo, NULL, NULL, "let the host take work again"},
        OUTPUT_OPTION(&format), CLUSTER_DATA_OPTION(where), CLUSTER_ENDPOINT_OPTION(where), {0},
    };
    const options_help_t help = {"shoal drain HOST [options]",
                                 "Moves every replica away from a host, losing nothing.",
                                 "shoal drain gpu-node-3", options};
    TRY(command_options(&help, argc, argv, words, 1, 1, NULL, &done));
    if (done)
        return STATUS_OK;
    TRY(output_format(format, &json));
    client_t *client;
    TRY(client_open(&where, &client));
    char *host = mem_strdup(words[0]);
    Shoal__V1__DrainRequest request = SHOAL__V1__DRAIN_REQUEST__INIT;
    request.host = host;
    request.undo = undo;
    Shoal__V1__Host *reply = NULL;
    status_t status = client_call(client, "/shoal.v1.Admin/Drain", &request,
                                  &shoal__v1__host__descriptor, &reply);
    static const char *const columns[] = {"host", "state"};
    if (status == STATUS_OK)
        print_row(json_pack("{s:s,s:s}", "host", reply->id, "state", reply->state), columns, 2,
                  json);
    rpc_message_free(reply);
    free(host);
    client_close(client);
    return status;
}

status_t command_adopt(int argc, char **argv)
{
    cluster_options_t where = {0};
    const char *format, *words[1];
    bool json = false, done = false;
    const option_t options[] = {OUTPUT_OPTION(&format), CLUSTER_DATA_OPTION(where),
                                CLUSTER_ENDPOINT_OPTION(where), {0}};
    const options_help_t help = {
        "shoal adopt etcd|redis",
        "Accepts a store that was restored or emptied, which Shoal refuses until told so. What the\n"
        "store lost stays lost.", "shoal adopt redis", options};
    TRY(command_options(&help, argc, argv, words, 1, 1, NULL, &done));
    if (done)
        return STATUS_OK;
    TRY(output_format(format, &json));
    if (strcmp(words[0], "etcd") != 0 && strcmp(words[0], "redis") != 0)
        return fail(STATUS_INVALID, "\"%s\" is no store; write etcd or redis", words[0]);
    client_t *client;
    TRY(client_open(&where, &client));
    char *store = mem_strdup(words[0]);
    Shoal__V1__AdoptRequest request = SHOAL__V1__ADOPT_REQUEST__INIT;
    request.store = store;
    Shoal__V1__AdoptResponse *reply = NULL;
    status_t status = client_call(client, "/shoal.v1.Admin/Adopt", &request,
                                  &shoal__v1__adopt_response__descriptor, &reply);
    static const char *const columns[] = {"store", "incarnation"};
    if (status == STATUS_OK)
        print_row(json_pack("{s:s,s:I}", "store", store, "incarnation",
                            (json_int_t)reply->incarnation), columns, 2, json);
    rpc_message_free(reply);
    free(store);
    client_close(client);
    return status;
}
