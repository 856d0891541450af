/* Admin's hosts: what their agents registered, and which of them drain. Read from etcd at each
 * call, because only the elected coordinator watches hosts. */
#include <stdlib.h>
#include <string.h>

#include "coordinator/front_state.h"
#include "shoal/cluster/v1/state.pb-c.h"

typedef Shoal__Cluster__V1__HostRecord record_t;

typedef struct {
    ask_t *ask;
    char *host; /* Drain: the one that is meant; NULL: all */
    bool undo;
    arena_t arena;
    Shoal__V1__ListHostsResponse response;
} look_t;

static void look_free(look_t *take_look)
{
    arena_release(&take_look->arena);
    free(take_look->host);
    free(take_look);
}

static char *copy_text(arena_t *arena, const char *text)
{
    return arena_strndup(arena, text, strlen(text));
}

static Shoal__V1__Host *show_host(arena_t *arena, const record_t *record)
{
    Shoal__V1__Host *host = ARENA_NEW_ARRAY(arena, Shoal__V1__Host, 1);
    shoal__v1__host__init(host);
    host->id = copy_text(arena, record->id);
    host->address = copy_text(arena, record->address);
    host->cores = record->cores;
    host->memory_bytes = record->memory_bytes;
    host->state = copy_text(arena, "ready");
    host->build = copy_text(arena, record->build);
    host->isa = copy_text(arena, record->isa);
    host->models = ARENA_NEW_ARRAY(arena, char *, record->n_models + 1);
    for (size_t i = 0; i < record->n_models; i++)
        host->models[host->n_models++] = copy_text(arena, record->models[i]->name);
    host->node_cores = ARENA_NEW_ARRAY(arena, uint32_t, record->n_node_cores + 1);
    for (size_t i = 0; i < record->n_node_cores; i++)
        host->node_cores[host->n_node_cores++] = record->node_cores[i];
    return host;
}

static void fail_look(look_t *take_look, status_t status)
{
    ask_fail(take_look->ask, status);
    look_free(take_look);
}

static void on_drains(void *context, const etcd_result_t *result)
{
    look_t *look = context;
    if (result->status != STATUS_OK) {
        fail_look(look, fail(STATUS_UNREACHABLE, "etcd: %s", result->message));
        return;
    }
    Shoal__V1__Host *meant = NULL;
    for (size_t h = 0; h < look->response.n_hosts; h++) {
        Shoal__V1__Host *host = look->response.hosts[h];
        for (size_t i = 0; i < result->n_kvs; i++) {
            const char *slash = strrchr(result->kvs[i].key, '/');
            if (slash && strcmp(slash + 1, host->id) == 0)
                host->state = copy_text(&look->arena, "draining");
        }
        if (look->host && strcmp(look->host, host->id) == 0)
            meant = host;
    }
    if (look->host && !meant) {
        fail_look(look, fail(STATUS_NOT_FOUND, "no host is called \"%s\"", look->host));
        return;
    }
    if (meant)
        ask_reply(look->ask, meant);
    else
        ask_reply(look->ask, &look->response);
    look_free(look);
}

static void on_hosts(void *context, const etcd_result_t *result)
{
    look_t *look = context;
    if (result->status != STATUS_OK) {
        fail_look(look, fail(STATUS_UNREACHABLE, "etcd: %s", result->message));
        return;
    }
    look->response.hosts = ARENA_NEW_ARRAY(&look->arena, Shoal__V1__Host *, result->n_kvs + 1);
    for (size_t i = 0; i < result->n_kvs; i++) {
        ProtobufCMessage *message;
        if (rpc_unpack(&shoal__cluster__v1__host_record__descriptor, result->kvs[i].value,
                       result->kvs[i].value_size, NULL, &message) != STATUS_OK)
            continue;
        look->response.hosts[look->response.n_hosts++] =
            show_host(&look->arena, (const record_t *)message);
        rpc_message_free(message);
    }
    char *prefix = stores_key(look->ask->shell, "drains/");
    etcd_list(look->ask->shell->etcd, prefix, on_drains, look);
    free(prefix);
}

static void list(look_t *look)
{
    shoal__v1__list_hosts_response__init(&look->response);
    char *prefix = stores_key(look->ask->shell, "hosts/");
    etcd_list(look->ask->shell->etcd, prefix, on_hosts, look);
    free(prefix);
}

void front_list_hosts(ask_t *take_ask)
{
    look_t *look = MEM_NEW(look_t);
    look->ask = take_ask;
    list(look);
}

static void on_marked(void *context, const etcd_result_t *result)
{
    look_t *look = context;
    if (result->status != STATUS_OK)
        fail_look(look, fail(STATUS_UNREACHABLE, "etcd: %s", result->message));
    else if (!look->undo && !result->succeeded)
        fail_look(look, fail(STATUS_NOT_FOUND, "no host is called \"%s\"", look->host));
    else
        list(look);
}

/* Marks the host if it is registered; the elected coordinator moves its replicas. */
void front_drain(ask_t *take_ask)
{
    const Shoal__V1__DrainRequest *m = (const Shoal__V1__DrainRequest *)take_ask->message;
    status_t status = request_check_text("host", m->host, REQUEST_NAME_BYTES_MAX);
    if (status == STATUS_OK && (!m->host[0] || strchr(m->host, '/')))
        status = fail(STATUS_INVALID, "host: \"%.64s\" cannot be one", m->host);
    if (status == STATUS_OK)
        status = stores_may_plan(take_ask->shell);
    if (status != STATUS_OK) {
        ask_fail(take_ask, status);
        return;
    }
    look_t *look = MEM_NEW(look_t);
    look->ask = take_ask;
    look->host = mem_strdup(m->host);
    look->undo = m->undo;
    char *drain_name = mem_format("drains/%s", m->host);
    char *host_name = mem_format("hosts/%s", m->host);
    char *drain = stores_key(take_ask->shell, drain_name);
    char *host = stores_key(take_ask->shell, host_name);
    if (m->undo) {
        etcd_delete(take_ask->shell->etcd, drain, on_marked, look);
    } else {
        etcd_compare_t compare = {.key = host,
                                  .target = ETCD_CREATE_REVISION,
                                  .relation = ETCD_GREATER,
                                  .number = 0};
        etcd_op_t op = {.kind = ETCD_PUT, .key = drain, .value = "", .value_size = 0};
        etcd_txn_t txn = {.compares = &compare, .n_compares = 1, .then = &op, .n_then = 1};
        etcd_txn(take_ask->shell->etcd, &txn, on_marked, look);
    }
    free(drain_name);
    free(host_name);
    free(drain);
    free(host);
}
