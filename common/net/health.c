/* grpc.health.v1: Check answers at once, Watch sends the status and each change of it. A watcher
 * that reads slowly gets the newest status when it can take one; none is queued for it. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/net/rpc_internal.h"
#include "common/net/rpc_message.h"
#include "grpc/health/v1/health.pb-c.h"

typedef Grpc__Health__V1__HealthCheckRequest request_t;
#define SERVING GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
#define NOT_SERVING GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING
#define SERVICE_UNKNOWN GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN

typedef struct {
    char *name;
    bool serving;
} service_t;

typedef struct watcher {
    struct watcher *next, *previous;
    rpc_call_t *call; /* not counted: on_end takes the watcher out before the call goes */
    char *service;
    int sent; /* -1 before the first */
} watcher_t;

struct rpc_health {
    pthread_mutex_t lock;
    service_t *services;
    size_t n_services, services_capacity;
    watcher_t *watchers;
    bool stopped;
};

static service_t *find_service(rpc_health_t *health, const char *name)
{
    for (size_t i = 0; i < health->n_services; i++)
        if (strcmp(health->services[i].name, name) == 0)
            return &health->services[i];
    return NULL;
}

static void add_service(rpc_health_t *health, const char *name, size_t n, bool serving)
{
    char *text = mem_strndup(name, n);
    service_t *known = find_service(health, text);
    if (known) {
        known->serving = serving;
        free(text);
        return;
    }
    MEM_GROW(health->services, health->services_capacity, health->n_services + 1);
    health->services[health->n_services++] = (service_t){text, serving};
}

rpc_health_t *rpc_health_new(const rpc_method_t *methods, size_t n_methods)
{
    rpc_health_t *health = MEM_NEW(rpc_health_t);
    pthread_mutex_init(&health->lock, NULL);
    add_service(health, "", 0, true);
    for (size_t i = 0; i < n_methods; i++) {
        const char *slash = strrchr(methods[i].name, '/');
        if (slash && slash > methods[i].name)
            add_service(health, methods[i].name + 1, (size_t)(slash - methods[i].name - 1), true);
    }
    return health;
}

static int status_of(rpc_health_t *health, const char *name)
{
    const service_t *service = find_service(health, name);
    return !service ? SERVICE_UNKNOWN : service->serving ? SERVING : NOT_SERVING;
}

/* Lock held. What cannot be sent now is sent by on_writable. */
static void update(rpc_health_t *health, watcher_t *watcher)
{
    int status = status_of(health, watcher->service);
    if (status == watcher->sent)
        return;
    Grpc__Health__V1__HealthCheckResponse response =
        GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    response.status = (Grpc__Health__V1__HealthCheckResponse__ServingStatus)status;
    if (rpc_call_send_message(watcher->call, &response) == STATUS_OK)
        watcher->sent = status;
}

void rpc_health_set(rpc_health_t *health, const char *service, bool serving)
{
    pthread_mutex_lock(&health->lock);
    add_service(health, service, strlen(service), serving);
    if (service[0] == 0)
        for (size_t i = 0; i < health->n_services; i++)
            health->services[i].serving = serving;
    for (watcher_t *watcher = health->watchers; watcher; watcher = watcher->next)
        update(health, watcher);
    pthread_mutex_unlock(&health->lock);
}

void rpc_health_stop(rpc_health_t *health)
{
    pthread_mutex_lock(&health->lock);
    health->stopped = true;
    for (watcher_t *watcher = health->watchers; watcher; watcher = watcher->next)
        rpc_call_finish(watcher->call, STATUS_UNREACHABLE, "the server shuts down", NULL, 0);
    pthread_mutex_unlock(&health->lock);
}

void rpc_health_free(rpc_health_t *take_health)
{
    for (size_t i = 0; i < take_health->n_services; i++)
        free(take_health->services[i].name);
    free(take_health->services);
    pthread_mutex_destroy(&take_health->lock);
    free(take_health);
}

static request_t *read_request(rpc_call_t *call, const uint8_t *bytes, size_t n)
{
    ProtobufCMessage *message;
    status_t status =
        rpc_unpack(&grpc__health__v1__health_check_request__descriptor, bytes, n, NULL, &message);
    if (status == STATUS_OK)
        return (request_t *)message;
    rpc_call_fail(call, status);
    return NULL;
}

static void check_message(rpc_call_t *call, void *context, const uint8_t *bytes, size_t n)
{
    rpc_health_t *health = context;
    request_t *request = read_request(call, bytes, n);
    if (!request)
        return;
    pthread_mutex_lock(&health->lock);
    int status = status_of(health, request->service);
    pthread_mutex_unlock(&health->lock);
    if (status == SERVICE_UNKNOWN) {
        rpc_call_fail(call, fail(STATUS_NOT_FOUND, "no service \"%.200s\" here", request->service));
    } else {
        Grpc__Health__V1__HealthCheckResponse response =
            GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
        response.status = (Grpc__Health__V1__HealthCheckResponse__ServingStatus)status;
        rpc_call_reply_message(call, &response);
    }
    rpc_message_free(request);
}

static void watch_message(rpc_call_t *call, void *context, const uint8_t *bytes, size_t n)
{
    rpc_health_t *health = context;
    request_t *request = read_request(call, bytes, n);
    if (!request)
        return;
    watcher_t *watcher = MEM_NEW(watcher_t);
    watcher->call = call;
    watcher->service = mem_strdup(request->service);
    watcher->sent = -1;
    rpc_message_free(request);
    rpc_call_set_data(call, watcher);
    pthread_mutex_lock(&health->lock);
    watcher->next = health->watchers;
    if (watcher->next)
        watcher->next->previous = watcher;
    health->watchers = watcher;
    update(health, watcher);
    if (health->stopped)
        rpc_call_finish(call, STATUS_UNREACHABLE, "the server shuts down", NULL, 0);
    pthread_mutex_unlock(&health->lock);
}

static void watch_writable(rpc_call_t *call, void *context)
{
    rpc_health_t *health = context;
    watcher_t *watcher = rpc_call_data(call);
    pthread_mutex_lock(&health->lock);
    if (watcher)
        update(health, watcher);
    pthread_mutex_unlock(&health->lock);
}

static void watch_end(rpc_call_t *call, void *context, const rpc_result_t *result)
{
    (void)result;
    rpc_health_t *health = context;
    watcher_t *watcher = rpc_call_data(call);
    if (!watcher)
        return;
    pthread_mutex_lock(&health->lock);
    if (watcher->previous)
        watcher->previous->next = watcher->next;
    else
        health->watchers = watcher->next;
    if (watcher->next)
        watcher->next->previous = watcher->previous;
    pthread_mutex_unlock(&health->lock);
    free(watcher->service);
    free(watcher);
}

size_t rpc_health_methods(rpc_health_t *health, rpc_method_t *methods)
{
    methods[0] = (rpc_method_t){.name = "/grpc.health.v1.Health/Check",
                                .kind = RPC_UNARY,
                                .handlers = {.on_message = check_message},
                                .context = health};
    methods[1] = (rpc_method_t){.name = "/grpc.health.v1.Health/Watch",
                                .kind = RPC_SERVER_STREAM,
                                .handlers = {.on_message = watch_message,
                                             .on_writable = watch_writable,
                                             .on_end = watch_end},
                                .context = health};
    return 2;
}
