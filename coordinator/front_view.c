/* What Admin shows (deployments, replicas, status), and the adoption of a store. */
#include <stdlib.h>
#include <string.h>

#include "coordinator/front_state.h"

typedef Shoal__Cluster__V1__DeploymentRecord record_t;

static char *copy_text(arena_t *arena, const char *text)
{
    return arena_strndup(arena, text ? text : "", text ? strlen(text) : 0);
}

Shoal__V1__Deployment *front_deployment(arena_t *arena, const record_t *record, uint64_t version,
                                        const char *message)
{
    Shoal__V1__Deployment *out = ARENA_NEW_ARRAY(arena, Shoal__V1__Deployment, 1);
    shoal__v1__deployment__init(out);
    out->name = copy_text(arena, record->name);
    out->model_path = copy_text(arena, record->model_path);
    out->model_digest = copy_text(arena, record->model_digest);
    out->replicas = record->replicas;
    out->tp = record->tp;
    out->stages = record->stages;
    out->expert_groups = record->expert_groups;
    out->attention_slices = record->attention_slices;
    out->attention_replicas = record->attention_replicas;
    out->context_max = record->context_max;
    out->activations = copy_text(arena, record->activations);
    out->quantize = copy_text(arena, record->quantize);
    out->kv = copy_text(arena, record->kv);
    out->draft_path = copy_text(arena, record->draft_path);
    out->draft_digest = copy_text(arena, record->draft_digest);
    out->kv_tokens_max = record->kv_tokens_max;
    out->steps = ARENA_NEW_ARRAY(arena, Shoal__V1__StepSettings, 1);
    shoal__v1__step_settings__init(out->steps);
    out->steps->rows_max = (uint32_t)record->prefill_tokens_max;
    out->steps->speculate_max = record->speculate_max;
    out->steps->speculate_off = record->speculate_off;
    out->steps->prefix_cache_off = record->prefix_cache_off;
    out->steps->whole_prompts = record->whole_prompts;
    out->version = version;
    out->message = copy_text(arena, message);
    out->shapes = ARENA_NEW_ARRAY(arena, Shoal__V1__Shape *, record->n_shapes + 1);
    for (size_t i = 0; i < record->n_shapes; i++) {
        Shoal__V1__Shape *shape = ARENA_NEW_ARRAY(arena, Shoal__V1__Shape, 1);
        shoal__v1__shape__init(shape);
        shape->ordinal = record->shapes[i]->ordinal;
        shape->tp = record->shapes[i]->tp;
        shape->stages = record->shapes[i]->stages;
        out->shapes[out->n_shapes++] = shape;
    }
    return out;
}

typedef struct {
    ask_t *ask;
    arena_t arena;
    Shoal__V1__ListDeploymentsResponse response;
} listing_t;

/* The words why a state is not reached are the core's, so they are added on its thread. */
static void add_messages(shell_t *shell, void *take_data)
{
    listing_t *listing = take_data;
    for (size_t i = 0; i < listing->response.n_deployments && atomic_load(&shell->running); i++) {
        core_deployment_view_t view;
        Shoal__V1__Deployment *d = listing->response.deployments[i];
        if (core_find_deployment(shell->core, d->name, &view) && view.message)
            d->message = copy_text(&listing->arena, view.message);
    }
    ask_reply(listing->ask, &listing->response);
    arena_release(&listing->arena);
    free(listing);
}

static void on_deployments(void *context, const etcd_result_t *result)
{
    ask_t *ask = context;
    if (result->status != STATUS_OK) {
        ask_fail(ask, fail(STATUS_UNREACHABLE, "etcd: %s", result->message));
        return;
    }
    listing_t *listing = MEM_NEW(listing_t);
    listing->ask = ask;
    shoal__v1__list_deployments_response__init(&listing->response);
    listing->response.deployments =
        ARENA_NEW_ARRAY(&listing->arena, Shoal__V1__Deployment *, result->n_kvs + 1);
    for (size_t i = 0; i < result->n_kvs; i++) {
        ProtobufCMessage *message;
        if (rpc_unpack(&shoal__cluster__v1__deployment_record__descriptor, result->kvs[i].value,
                       result->kvs[i].value_size, NULL, &message) != STATUS_OK)
            continue;
        listing->response.deployments[listing->response.n_deployments++] =
            front_deployment(&listing->arena, (const record_t *)message,
                            (uint64_t)result->kvs[i].mod_revision, "");
        rpc_message_free(message);
    }
    shell_post(ask->shell, add_messages, listing);
}

void front_list_deployments(ask_t *take_ask)
{
    char *prefix = stores_key(take_ask->shell, "deployments/");
    etcd_list(take_ask->shell->etcd, prefix, on_deployments, take_ask);
    free(prefix);
}

void front_list_replicas(ask_t *take_ask)
{
    const Shoal__V1__ListReplicasRequest *m =
        (const Shoal__V1__ListReplicasRequest *)take_ask->message;
    arena_t arena = {0};
    Shoal__V1__ListReplicasResponse response = SHOAL__V1__LIST_REPLICAS_RESPONSE__INIT;
    core_list_replicas(take_ask->shell->core, m->deployment, &arena, &response);
    ask_reply(take_ask, &response);
    arena_release(&arena);
}

/* The answer is complete but for the number of jobs, which Redis knows; without it, it is 0. */
typedef struct {
    ask_t *ask;
    buffer_t packed;
} counting_t;

static void on_counted(void *user, const jobs_reply_t *reply)
{
    counting_t *counting = user;
    ProtobufCMessage *message;
    status_t status = rpc_unpack(&shoal__v1__status_response__descriptor, counting->packed.data,
                                 counting->packed.size, NULL, &message);
    if (status == STATUS_OK) {
        Shoal__V1__StatusResponse *response = (Shoal__V1__StatusResponse *)message;
        if (reply->code == JOBS_OK)
            response->jobs_queued = reply->number;
        ask_reply(counting->ask, response);
        rpc_message_free(message);
    } else {
        ask_fail(counting->ask, status);
    }
    buffer_release(&counting->packed);
    free(counting);
}

static void status_counted(ask_t *take_ask, const Shoal__V1__StatusResponse *response)
{
    counting_t *counting = MEM_NEW(counting_t);
    counting->ask = take_ask;
    rpc_pack(response, &counting->packed);
    jobs_reply_t none = {.code = JOBS_UNREACHABLE};
    if (jobs_queued(take_ask->shell->jobs, on_counted, counting) != STATUS_OK)
        on_counted(counting, &none);
}

void front_status(ask_t *take_ask)
{
    shell_t *shell = take_ask->shell;
    arena_t arena = {0};
    store_view_t etcd, redis;
    char uuid[33] = "";
    Shoal__V1__StatusResponse response = SHOAL__V1__STATUS_RESPONSE__INIT;
    core_status(shell->core, &arena, &response);
    stores_view(shell, &etcd, &redis);
    (void)stores_cluster(shell, uuid, &response.incarnation);
    response.cluster = copy_text(&arena, shell->options.cluster);
    response.cluster_uuid = uuid;
    response.coordinator = shell->id;
    response.etcd = etcd.text;
    response.redis = redis.text;
    response.version = copy_text(&arena, SHOAL_VERSION);
    bool connected, durable;
    char why[200];
    jobs_store_health(shell->jobs, &connected, &durable, why, sizeof why);
    if (redis.ok && !durable)
        response.redis = why;
    status_counted(take_ask, &response);
    arena_release(&arena);
}

/* ---- Adopt ---- */

static void on_adopted(void *user, status_t status, const char *text, uint64_t incarnation)
{
    ask_t *ask = user;
    Shoal__V1__AdoptResponse response = SHOAL__V1__ADOPT_RESPONSE__INIT;
    response.incarnation = incarnation;
    if (status == STATUS_OK)
        ask_reply(ask, &response);
    else
        ask_fail(ask, fail(status, "%s", text));
}

void front_adopt(ask_t *take_ask)
{
    const Shoal__V1__AdoptRequest *m = (const Shoal__V1__AdoptRequest *)take_ask->message;
    if (strcmp(m->store, "etcd") && strcmp(m->store, "redis"))
        ask_fail(take_ask, fail(STATUS_INVALID,
                                "store: \"%.20s\" is neither \"etcd\" nor \"redis\"", m->store));
    else
        stores_adopt(take_ask->shell, m->store, on_adopted, take_ask);
}
