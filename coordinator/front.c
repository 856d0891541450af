/* The public gRPC services: listens, unpacks, and brings each call to the core thread. A call that
 * arrives before the coordinator serves is refused as unavailable, so clients try another one. */
#include "coordinator/front_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RETRY_AFTER_MS "1000" /* for refusals that say nothing better */
#define METHODS_MAX 32

void ask_ref(ask_t *ask)
{
    atomic_fetch_add(&ask->refs, 1);
}

void ask_unref(ask_t *take_ask)
{
    if (atomic_fetch_sub(&take_ask->refs, 1) != 1)
        return;
    rpc_message_free(take_ask->message);
    rpc_call_unref(take_ask->call);
    free(take_ask->silent);
    free(take_ask);
}

void ask_reply(ask_t *take_ask, const void *message)
{
    rpc_call_reply_message(take_ask->call, message);
    ask_unref(take_ask);
}

void ask_end(ask_t *take_ask)
{
    rpc_call_finish(take_ask->call, STATUS_OK, NULL, NULL, 0);
    ask_unref(take_ask);
}

void ask_fail(ask_t *take_ask, status_t status)
{
    rpc_metadata_t retry = {"retry-after-ms", RETRY_AFTER_MS};
    rpc_call_finish(take_ask->call, status, status_text(), &retry, status == STATUS_EXHAUSTED);
    ask_unref(take_ask);
}

status_t front_jobs_status(const jobs_reply_t *reply)
{
    switch (reply->code) {
    case JOBS_NOT_FOUND:
        return fail(STATUS_NOT_FOUND, "%s", reply->message);
    case JOBS_CONFLICT:
        return fail(STATUS_CONFLICT, "%s", reply->message);
    case JOBS_FULL:
        return fail(STATUS_EXHAUSTED, "%s", reply->message);
    case JOBS_STALE:
    case JOBS_FENCED:
        return fail(STATUS_STALE, "%s", reply->message);
    case JOBS_INVALID:
        return fail(STATUS_INTERNAL, "%s", reply->message);
    default: /* away, strange, or set to lose jobs: another time, or another coordinator */
        return fail(STATUS_UNREACHABLE, "jobs are unavailable: %s", reply->message);
    }
}

void ask_fail_jobs(ask_t *take_ask, const jobs_reply_t *reply)
{
    ask_fail(take_ask, front_jobs_status(reply));
}

/* ---- from the transport to the core thread ---- */

static void start_task(shell_t *shell, void *take_data)
{
    ask_t *ask = take_data;
    if (!atomic_load(&shell->running)) {
        ask_fail(ask, fail(STATUS_UNREACHABLE, "the coordinator is ending"));
        return;
    }
    ask->method->start(ask);
}

static void writable_task(shell_t *shell, void *take_data)
{
    ask_t *ask = take_data;
    if (atomic_load(&shell->running))
        ask->method->writable(ask);
    ask_unref(ask);
}

static void ended_task(shell_t *shell, void *take_data)
{
    (void)shell;
    ask_t *ask = take_data;
    if (ask->method->ended)
        ask->method->ended(ask);
    ask_unref(ask); /* the transport's reference */
}

typedef struct {
    shell_t *shell;
    const front_method_t *method;
} route_t;

static void on_open(rpc_call_t *call, void *context)
{
    const route_t *route = context;
    ask_t *ask = MEM_NEW(ask_t);
    atomic_init(&ask->refs, 1);
    ask->method = route->method;
    ask->shell = route->shell;
    ask->call = call;
    rpc_call_ref(call);
    rpc_call_set_data(call, ask);
}

/* Names the store that is missing: that is what an operator can mend. */
static status_t not_serving(shell_t *shell)
{
    const char *store = atomic_load(&shell->waits_for);
    if (!store)
        return fail(STATUS_UNREACHABLE, "the coordinator is not serving yet; try another one");
    bool etcd = strcmp(store, "etcd") == 0;
    return fail(STATUS_UNREACHABLE, "the coordinator is not serving yet: it waits for %s at %s",
                store, etcd ? shell->options.etcd : shell->options.redis);
}

static void on_message(rpc_call_t *call, void *context, const uint8_t *bytes, size_t n)
{
    (void)context;
    ask_t *ask = rpc_call_data(call);
    if (ask->message) {
        (void)fail(STATUS_INVALID, "%s takes one message", ask->method->name);
        rpc_call_fail(call, STATUS_INVALID);
        return;
    }
    status_t status = rpc_unpack(ask->method->request, bytes, n, NULL, &ask->message);
    if (status == STATUS_OK && !atomic_load(&ask->shell->running))
        status = not_serving(ask->shell);
    if (status != STATUS_OK) {
        rpc_call_fail(call, status);
        return;
    }
    ask_ref(ask);
    shell_post(ask->shell, start_task, ask);
}

static void on_writable(rpc_call_t *call, void *context)
{
    (void)context;
    ask_t *ask = rpc_call_data(call);
    if (!ask->method->writable)
        return;
    ask_ref(ask);
    shell_post(ask->shell, writable_task, ask);
}

static void on_end(rpc_call_t *call, void *context, const rpc_result_t *result)
{
    (void)context;
    (void)result;
    ask_t *ask = rpc_call_data(call);
    atomic_store(&ask->ended, true);
    shell_post(ask->shell, ended_task, ask);
}

/* ---- the server ---- */

static route_t routes[METHODS_MAX];

static size_t add_methods(shell_t *shell, rpc_method_t *methods, size_t n,
                          const front_method_t *from, size_t n_from)
{
    static const rpc_handlers_t handlers = {.on_open = on_open,
                                            .on_message = on_message,
                                            .on_writable = on_writable,
                                            .on_end = on_end};
    for (size_t i = 0; i < n_from; i++, n++) {
        CHECK(n < METHODS_MAX);
        routes[n] = (route_t){shell, &from[i]};
        methods[n] = (rpc_method_t){.name = from[i].name,
                                    .kind = from[i].kind,
                                    .handlers = handlers,
                                    .context = &routes[n]};
    }
    return n;
}

/* host:port for clients: what --advertise says, else the host that is listened on. */
static void name_endpoint(shell_t *shell)
{
    const char *listen = shell->options.listen, *colon = strrchr(listen, ':');
    char host[CORE_NAME_SIZE], machine[65] = "localhost";
    gethostname(machine, sizeof machine - 1);
    int n = colon ? (int)(colon - listen) : (int)strlen(listen);
    snprintf(host, sizeof host, "%.*s", n, listen);
    if (shell->options.advertise)
        snprintf(host, sizeof host, "%s", shell->options.advertise);
    else if (strcmp(host, "0.0.0.0") == 0 || strcmp(host, "[::]") == 0 || !host[0])
        snprintf(host, sizeof host, "%s", machine);
    unsigned port = rpc_server_port(shell->front->server);
    snprintf(shell->endpoint, sizeof shell->endpoint, "%.110s:%u", host, port);
    if (shell->options.id)
        snprintf(shell->id, sizeof shell->id, "%s", shell->options.id);
    else
        snprintf(shell->id, sizeof shell->id, "%s-%u", machine, port);
}

status_t front_open(shell_t *shell)
{
    shell->front = MEM_NEW(front_t);
    rpc_method_t methods[METHODS_MAX];
    size_t n = 0;
    n = add_methods(shell, methods, n, front_inference_methods, front_n_inference);
    n = add_methods(shell, methods, n, front_jobs_methods, front_n_jobs);
    n = add_methods(shell, methods, n, front_admin_methods, front_n_admin);
    CHECK(n < METHODS_MAX);
    methods[n++] = front_submit_method(shell);
    rpc_server_options_t options = {.listen = shell->options.listen, .methods = methods,
                                    .n_methods = n};
    status_t status = rpc_server_open(shell->io, &options, &shell->front->server);
    if (status != STATUS_OK) {
        free(shell->front);
        shell->front = NULL;
        return status;
    }
    rpc_server_set_serving(shell->front->server, "", false);
    name_endpoint(shell);
    return STATUS_OK;
}

void front_close(shell_t *shell, unsigned grace_ms)
{
    rpc_server_close(shell->front->server, grace_ms);
    front_cancel_end(shell);
}

void front_release(shell_t *shell)
{
    if (!shell->front)
        return;
    front_watches_release(shell->front->watches);
    table_release(&shell->front->clients);
    table_release(&shell->front->asking);
    free(shell->front);
}

void front_set_serving(shell_t *shell, bool serving)
{
    rpc_server_set_serving(shell->front->server, "", serving);
}

/* ---- shared by the services ---- */

status_t front_find(shell_t *shell, const char *name, core_deployment_view_t *view_out,
                    const model_entry_t **entry_out)
{
    TRY(request_check_text("model", name, REQUEST_NAME_BYTES_MAX));
    if (!core_find_deployment(shell->core, name, view_out)) {
        if (!name[0])
            return fail(STATUS_NOT_FOUND, "model: none is named, and there are %zu deployments",
                        core_n_deployments(shell->core));
        return fail(STATUS_NOT_FOUND, "model: no deployment is called \"%s\"", name);
    }
    *entry_out = models_of(shell, view_out->tokenizer);
    if (!*entry_out)
        return fail(STATUS_UNREACHABLE, "deployment %s: its model is not open here yet%s%s",
                    view_out->name, view_out->message && view_out->message[0] ? ": " : "",
                    view_out->message ? view_out->message : "");
    return STATUS_OK;
}

status_t front_check_id(const char *what, const char *id)
{
    if (strlen(id) != 32 || strspn(id, "0123456789abcdef") != 32)
        return fail(STATUS_INVALID, "%s: \"%.40s\" is not 32 lower-case hex digits", what, id);
    return STATUS_OK;
}
