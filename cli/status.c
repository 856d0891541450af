/* `shoal status`, `hosts` and `replicas`: what the cluster is and where each layer and slice runs. */
#include <stdio.h>
#include <stdlib.h>

#include "cli/client.h"
#include "cli/command.h"
#include "cli/deployment_view.h"
#include "cli/output.h"
#include "common/base/buffer.h"
#include "common/base/memory.h"
#include "common/net/rpc_message.h"
#include "shoal/v1/admin.pb-c.h"

static json_t *host_json(const Shoal__V1__Host *host)
{
    json_t *models = json_array();
    for (size_t i = 0; i < host->n_models; i++)
        json_array_append_new(models, json_string(host->models[i]));
    json_t *nodes = json_array();
    for (size_t i = 0; i < host->n_node_cores; i++)
        json_array_append_new(nodes, json_integer(host->node_cores[i]));
    return json_pack("{s:s,s:s,s:s,s:I,s:o,s:f,s:s,s:s,s:o}", "host", host->id, "address", host->address,
                     "state", host->state, "cores", (json_int_t)host->cores, "node_cores", nodes, "memory_gib",
                     (double)host->memory_bytes / 1073741824.0, "isa", host->isa, "build", host->build,
                     "models", models);
}

static status_t list_hosts(client_t *client, json_t **own_out)
{
    Shoal__V1__ListHostsRequest request = SHOAL__V1__LIST_HOSTS_REQUEST__INIT;
    Shoal__V1__ListHostsResponse *reply;
    TRY(client_call(client, "/shoal.v1.Admin/ListHosts", &request,
                    &shoal__v1__list_hosts_response__descriptor, &reply));
    json_t *rows = json_array();
    for (size_t i = 0; i < reply->n_hosts; i++)
        json_array_append_new(rows, host_json(reply->hosts[i]));
    rpc_message_free(reply);
    *own_out = rows;
    return STATUS_OK;
}

static json_t *place_json(const Shoal__V1__Replica *replica, const Shoal__V1__RankPlace *place)
{
    char layers[48], slice[32];
    snprintf(layers, sizeof layers, "%u-%u", place->layer_first, place->layer_first + place->layer_count - 1);
    snprintf(slice, sizeof slice, "%u of %u", place->slice + 1, replica->tp);
    return json_pack("{s:s,s:I,s:I,s:s,s:s,s:s,s:I}", "replica", replica->id, "rank",
                     (json_int_t)place->rank, "stage", (json_int_t)place->stage, "layers", layers, "slice",
                     slice, "host", place->host, "pid", (json_int_t)place->pid);
}

/* As the ranks take them: of a deployment that says nothing 0 stands here for the default. */
static json_t *steps_json(const Shoal__V1__StepSettings *steps)
{
    uint32_t chunk = steps->rows_max ? steps->rows_max : COMMAND_CHUNK;
    uint32_t speculate = steps->speculate_max ? steps->speculate_max : COMMAND_SPECULATE;
    return json_pack("{s:I,s:I,s:b,s:b}", "chunk", (json_int_t)chunk, "speculate",
                     (json_int_t)(steps->speculate_off ? 0 : speculate), "prefix_cache",
                     !steps->prefix_cache_off, "whole_prompts", steps->whole_prompts);
}

static json_t *replica_json(const Shoal__V1__Replica *replica)
{
    char shape[48];
    snprintf(shape, sizeof shape, "%u x %u", replica->stages, replica->tp);
    json_t *ranks = json_array();
    for (size_t i = 0; i < replica->n_ranks; i++)
        json_array_append_new(ranks, place_json(replica, replica->ranks[i]));
    json_t *object = json_pack(
        "{s:s,s:s,s:s,s:I,s:I,s:I,s:I,s:s,s:s,s:I,s:I,s:I,s:I}", "replica", replica->id, "state",
        replica->state, "stages_x_tp", shape, "epoch", (json_int_t)replica->epoch, "ordinal",
        (json_int_t)replica->ordinal, "tp", (json_int_t)replica->tp, "stages",
        (json_int_t)replica->stages, "leader", replica->leader, "text_identity", replica->text_identity,
        "running", (json_int_t)replica->running, "waiting", (json_int_t)replica->waiting, "steps",
        (json_int_t)replica->steps, "kv_tokens_free", (json_int_t)replica->kv_tokens_free);
    json_t *more = json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:s,s:o}", "expert_groups",
                             (json_int_t)replica->expert_groups, "attention_slices",
                             (json_int_t)replica->attention_slices, "attention_replicas",
                             (json_int_t)replica->attention_replicas, "kv_tokens_total",
                             (json_int_t)replica->kv_tokens_total, "prefix_hit_tokens",
                             (json_int_t)replica->prefix_hit_tokens, "sequences_max_in_step",
                             (json_int_t)replica->sequences_max_in_step, "tokens_produced",
                             (json_int_t)replica->tokens_produced, "message", replica->message, "ranks", ranks);
    json_object_update(object, more);
    json_decref(more);
    json_object_set_new(object, "draft_digest", json_string(replica->draft_digest));
    if (replica->step_settings != NULL)
        json_object_set_new(object, "step_settings", steps_json(replica->step_settings));
    if (replica->loading)
        json_object_set_new(object, "loaded_percent", json_integer(replica->loaded_percent));
    return object;
}

static status_t list_replicas(client_t *client, json_t **own_out)
{
    Shoal__V1__ListReplicasRequest request = SHOAL__V1__LIST_REPLICAS_REQUEST__INIT;
    Shoal__V1__ListReplicasResponse *reply;
    TRY(client_call(client, "/shoal.v1.Admin/ListReplicas", &request,
                    &shoal__v1__list_replicas_response__descriptor, &reply));
    json_t *rows = json_array();
    for (size_t i = 0; i < reply->n_replicas; i++)
        json_array_append_new(rows, replica_json(reply->replicas[i]));
    rpc_message_free(reply);
    *own_out = rows;
    return STATUS_OK;
}

static status_t list_deployments(client_t *client, json_t **own_out)
{
    Shoal__V1__ListDeploymentsRequest request = SHOAL__V1__LIST_DEPLOYMENTS_REQUEST__INIT;
    Shoal__V1__ListDeploymentsResponse *reply;
    TRY(client_call(client, "/shoal.v1.Admin/ListDeployments", &request,
                    &shoal__v1__list_deployments_response__descriptor, &reply));
    json_t *rows = json_array();
    for (size_t i = 0; i < reply->n_deployments; i++)
        json_array_append_new(rows, deployment_json(reply->deployments[i]));
    rpc_message_free(reply);
    *own_out = rows;
    return STATUS_OK;
}

static void print_deployments(const json_t *deployments)
{
    static const char *const columns[] = {"name", "replicas", "tp", "stages", "context_max",
                                          "version", "message"};
    if (json_array_size(deployments) == 0)
        return;
    output_table(columns, sizeof columns / sizeof *columns, deployments);
    putchar('\n');
}

/* How far the weights are, behind the state of a replica whose hosts say so. */
static void show_loading(json_t *replica)
{
    const json_t *percent = json_object_get(replica, "loaded_percent");
    if (!percent)
        return;
    char *state = mem_format("%s, %lld %% loaded",
                             json_string_value(json_object_get(replica, "state")),
                             (long long)json_integer_value(percent));
    json_object_set_new(replica, "state", json_string(state));
    free(state);
}

static void print_replicas(const json_t *replicas)
{
    static const char *const columns[] = {"replica", "state", "stages_x_tp", "epoch", "running", "waiting",
                                          "steps", "tokens_produced", "kv_tokens_free", "leader"};
    json_t *shown = json_deep_copy(replicas);
    for (size_t i = 0; i < json_array_size(shown); i++)
        show_loading(json_array_get(shown, i));
    output_table(columns, sizeof columns / sizeof *columns, shown);
    json_decref(shown);
    static const char *const places[] = {"replica", "rank", "stage", "layers", "slice", "host", "pid"};
    json_t *rows = json_array();
    for (size_t i = 0; i < json_array_size(replicas); i++)
        json_array_extend(rows, json_object_get(json_array_get(replicas, i), "ranks"));
    if (json_array_size(rows) > 0) {
        putchar('\n');
        output_table(places, sizeof places / sizeof *places, rows);
    }
    json_decref(rows);
}

/* "16+16": the cores of each node that ranks are spread over; "-" where there is one. */
static void show_nodes(json_t *row)
{
    const json_t *cores = json_object_get(row, "node_cores");
    buffer_t text = {0};
    for (size_t i = 0; json_array_size(cores) > 1 && i < json_array_size(cores); i++)
        buffer_format(&text, "%s%lld", i > 0 ? "+" : "",
                      (long long)json_integer_value(json_array_get(cores, i)));
    json_object_set_new(row, "numa", json_string(text.size > 0 ? buffer_text(&text) : "-"));
    buffer_release(&text);
}

static void print_hosts(const json_t *hosts)
{
    static const char *const columns[] = {"host", "state", "address", "cores", "numa", "memory_gib", "isa",
                                          "offers"};
    json_t *rows = json_deep_copy(hosts);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        json_t *row = json_array_get(rows, i);
        size_t n = json_array_size(json_object_get(row, "models"));
        char *offers = n == 0   ? mem_strdup("no model")
                       : n == 1 ? mem_strdup("1 model")
                                : mem_format("%zu models", n);
        json_object_set_new(row, "offers", json_string(offers));
        show_nodes(row);
        free(offers);
    }
    output_table(columns, sizeof columns / sizeof *columns, rows);
    json_decref(rows);
}

/* What the three commands share: options, a client, and a choice of what to fetch and print. */
static status_t show(int argc, char **argv, const char *usage, const char *about,
                     status_t (*fetch)(client_t *, json_t **), void (*print)(const json_t *))
{
    cluster_options_t where = {0};
    const char *format;
    bool done = false, json = false;
    const option_t options[] = {OUTPUT_OPTION(&format), CLUSTER_DATA_OPTION(where),
                                CLUSTER_ENDPOINT_OPTION(where), {0}};
    const options_help_t help = {usage, about, usage, options};
    TRY(command_options(&help, argc, argv, NULL, 0, 0, NULL, &done));
    if (done)
        return STATUS_OK;
    TRY(output_format(format, &json));
    client_t *client;
    TRY(client_open(&where, &client));
    json_t *content = NULL;
    status_t status = fetch(client, &content);
    if (status == STATUS_OK && json)
        output_json(content, false);
    else if (status == STATUS_OK)
        print(content);
    json_decref(content);
    client_close(client);
    return status;
}

static status_t fetch_status(client_t *client, json_t **own_out)
{
    Shoal__V1__StatusRequest request = SHOAL__V1__STATUS_REQUEST__INIT;
    Shoal__V1__StatusResponse *reply;
    TRY(client_call(client, "/shoal.v1.Admin/Status", &request,
                    &shoal__v1__status_response__descriptor, &reply));
    json_t *endpoints = json_array();
    for (size_t i = 0; i < reply->n_coordinators; i++)
        json_array_append_new(endpoints, json_string(reply->coordinators[i]));
    json_t *content = json_pack(
        "{s:s,s:s,s:I,s:s,s:b,s:o,s:s,s:s,s:I,s:I,s:I,s:s}", "cluster", reply->cluster, "uuid",
        reply->cluster_uuid, "incarnation", (json_int_t)reply->incarnation, "answered_by",
        reply->coordinator, "elected", reply->elected, "coordinators", endpoints, "etcd", reply->etcd,
        "redis", reply->redis, "jobs_queued", (json_int_t)reply->jobs_queued, "sessions_running",
        (json_int_t)reply->sessions_running, "sessions_waiting", (json_int_t)reply->sessions_waiting,
        "version", reply->version);
    rpc_message_free(reply);
    json_t *hosts = NULL, *deployments = NULL, *replicas = NULL;
    status_t status = list_hosts(client, &hosts);
    if (status == STATUS_OK)
        status = list_deployments(client, &deployments);
    if (status == STATUS_OK)
        status = list_replicas(client, &replicas);
    if (status != STATUS_OK) {
        json_decref(hosts);
        json_decref(deployments);
        json_decref(content);
        return status;
    }
    json_object_set_new(content, "hosts", hosts);
    json_object_set_new(content, "deployments", deployments);
    json_object_set_new(content, "replicas", replicas);
    *own_out = content;
    return STATUS_OK;
}

static void print_status(const json_t *content)
{
    const char *key;
    json_t *value;
    json_t *copy = json_deep_copy(content);
    json_object_foreach(copy, key, value)
        if (json_is_string(value))
            printf("%-18s %s\n", key, json_string_value(value));
        else if (json_is_integer(value))
            printf("%-18s %lld\n", key, (long long)json_integer_value(value));
        else if (json_is_boolean(value))
            printf("%-18s %s\n", key, json_is_true(value) ? "yes" : "no");
    printf("%-18s", "coordinators");
    for (size_t i = 0; i < json_array_size(json_object_get(copy, "coordinators")); i++)
        printf(" %s", json_string_value(json_array_get(json_object_get(copy, "coordinators"), i)));
    printf("\n\n");
    print_hosts(json_object_get(copy, "hosts"));
    putchar('\n');
    print_deployments(json_object_get(copy, "deployments"));
    print_replicas(json_object_get(copy, "replicas"));
    json_decref(copy);
}

status_t command_status(int argc, char **argv)
{
    return show(argc, argv, "shoal status",
                "Shows stores, coordinators, hosts, deployments, replicas, and where each layer and slice\n"
                "runs.",
                fetch_status, print_status);
}

status_t command_hosts(int argc, char **argv)
{
    return show(argc, argv, "shoal hosts", "Lists the hosts.", list_hosts, print_hosts);
}

status_t command_replicas(int argc, char **argv)
{
    return show(argc, argv, "shoal replicas", "Lists the replicas, their counters and their ranks.",
                list_replicas, print_replicas);
}
