/* The job store's connection: on every (re)connect it sees that Redis holds our library and is set
 * to keep what it acknowledges, and looks at the settings again every gate_ms.
 *
 * The library is loaded only if none of its name is there. One of the same name with another text
 * is refused instead of replaced: other coordinators may be running on it, and two texts under one
 * name would disagree about the same keys. */
#include "common/net/jobs_store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/net/jobs_store_internal.h"

/* A store that is not well is looked at this often: a Redis that is still loading its data accepts
 * connections and refuses everything, and says nothing when it is done. */
#define TICK_MS 500

static void tell(jobs_store_t *store)
{
    if (!store->on_health)
        return;
    char why[200];
    jobs_health_t health = {.why = why};
    jobs_store_health(store, &health.connected, &health.durable, why, sizeof why);
    store->on_health(store->user, &health);
}

static void set_library(jobs_store_t *store, bool ok, const char *why)
{
    pthread_mutex_lock(&store->lock);
    bool changed = store->library_ok != ok || strcmp(store->library_why, why) != 0;
    store->library_ok = ok;
    store->library_checking = false;
    snprintf(store->library_why, sizeof store->library_why, "%s", why);
    pthread_mutex_unlock(&store->lock);
    if (!changed)
        return;
    if (!ok)
        log_error("jobs are unavailable: %s", why);
    tell(store);
}

static void set_gate(jobs_store_t *store, gate_t gate, const char *why)
{
    pthread_mutex_lock(&store->lock);
    bool changed = store->gate != gate || strcmp(store->gate_why, why) != 0;
    store->gate = gate;
    snprintf(store->gate_why, sizeof store->gate_why, "%s", why);
    pthread_mutex_unlock(&store->lock);
    if (!changed)
        return;
    if (gate == GATE_SHUT)
        log_error("jobs are refused: %s", why);
    tell(store);
}

void jobs_store_health(jobs_store_t *store, bool *connected_out, bool *durable_out, char *text,
                       size_t text_bytes)
{
    pthread_mutex_lock(&store->lock);
    *connected_out = store->library_ok;
    *durable_out = store->library_ok && store->gate == GATE_OPEN;
    snprintf(text, text_bytes, "%s",
             !store->library_ok ? store->library_why
             : store->gate != GATE_OPEN ? store->gate_why
                                        : "");
    pthread_mutex_unlock(&store->lock);
}

/* ---- the durability gate ---- */

static const char *setting(const redisReply *reply, const char *name)
{
    for (size_t i = 0; i + 1 < reply->elements; i += 2)
        if (reply->element[i]->type == REDIS_REPLY_STRING &&
            reply->element[i + 1]->type == REDIS_REPLY_STRING &&
            strcmp(reply->element[i]->str, name) == 0)
            return reply->element[i + 1]->str;
    return "unknown";
}

static void on_config(void *user, status_t status, const char *error, const redisReply *reply)
{
    jobs_store_t *store = user;
    if (status != STATUS_OK || reply->type != REDIS_REPLY_ARRAY) {
        snprintf(store->look_why, sizeof store->look_why, "redis: its settings cannot be read: %s",
                 error);
        return;
    }
    static const struct {
        const char *name, *right;
    } wanted[] = {
        {"appendonly", "yes"}, {"appendfsync", "always"}, {"maxmemory-policy", "noeviction"}};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted && !store->look_why[0]; i++) {
        const char *is = setting(reply, wanted[i].name);
        if (strcmp(is, wanted[i].right) != 0)
            snprintf(store->look_why, sizeof store->look_why,
                     "redis: setting %s is \"%.40s\" and must be \"%s\", else acknowledged jobs "
                     "can be lost",
                     wanted[i].name, is, wanted[i].right);
    }
}

/* "\r\nname:value\r\n" of INFO. */
static void info_value(const char *info, const char *name, char *out, size_t out_bytes)
{
    char line[64];
    snprintf(line, sizeof line, "\n%s:", name);
    const char *found = strstr(info, line);
    snprintf(out, out_bytes, "%s", "unknown");
    if (!found)
        return;
    found += strlen(line);
    snprintf(out, out_bytes, "%.*s", (int)strcspn(found, "\r\n"), found);
}

static void on_info(void *user, status_t status, const char *error, const redisReply *reply)
{
    jobs_store_t *store = user;
    char value[40];
    if (status != STATUS_OK || reply->type != REDIS_REPLY_STRING) {
        snprintf(store->look_why, sizeof store->look_why, "redis: INFO cannot be read: %s", error);
        return;
    }
    static const struct {
        const char *name, *right;
    } wanted[] = {{"role", "master"}, {"aof_enabled", "1"}, {"aof_last_write_status", "ok"}};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted && !store->look_why[0]; i++) {
        info_value(reply->str, wanted[i].name, value, sizeof value);
        if (strcmp(value, wanted[i].right) != 0)
            snprintf(store->look_why, sizeof store->look_why,
                     "redis: its %s is \"%s\" and must be \"%s\"", wanted[i].name, value,
                     wanted[i].right);
    }
}

/* The last answer of a look, and the only one that moves the gate: a look in progress changes
 * nothing. When the connection ended in between, its end has set the gate already. */
static void on_gate_end(void *user, status_t status, const char *error, const redisReply *reply)
{
    (void)error;
    (void)reply;
    jobs_store_t *store = user;
    if (status == STATUS_OK)
        set_gate(store, store->look_why[0] ? GATE_SHUT : GATE_OPEN, store->look_why);
}

static void on_gate_begin(void *user, status_t status, const char *error, const redisReply *reply)
{
    (void)status;
    (void)error;
    (void)reply;
    jobs_store_t *store = user;
    store->look_why[0] = '\0';
}

static void look_at_gate(jobs_store_t *store)
{
    /* Four pipelined commands whose answers arrive in order; the outer two only mark the ends. */
    static const char *const ping[] = {"PING"};
    static const char *const config[] = {"CONFIG", "GET", "appendonly", "appendfsync",
                                         "maxmemory-policy"};
    static const char *const info[] = {"INFO", "replication", "persistence"};
    if (redis_call_text(store->redis, 1, ping, on_gate_begin, store) != STATUS_OK ||
        redis_call_text(store->redis, 5, config, on_config, store) != STATUS_OK ||
        redis_call_text(store->redis, 3, info, on_info, store) != STATUS_OK ||
        redis_call_text(store->redis, 1, ping, on_gate_end, store) != STATUS_OK)
        log_warn("jobs: the durability gate could not be looked at: %s", status_text());
}

/* ---- the library ---- */

static void list_library(jobs_store_t *store);

static void on_load(void *user, status_t status, const char *error, const redisReply *reply)
{
    (void)reply;
    jobs_store_t *store = user;
    if (status == STATUS_OK) {
        log_info("jobs: library " JOBS_LIBRARY " loaded into redis");
        set_library(store, true, "");
    } else if (status == STATUS_REFUSED && strstr(error, "already exists")) {
        list_library(store); /* another coordinator was faster: see what it loaded */
    } else if (status == STATUS_REFUSED) {
        char why[200];
        snprintf(why, sizeof why, "redis refuses the job library: %.150s", error);
        set_library(store, false, why);
    }
}

/* The code as Redis keeps it, or NULL. FUNCTION LIST answers [[name, value, name, value, …]]. */
static const redisReply *listed_code(const redisReply *reply)
{
    if (reply->type != REDIS_REPLY_ARRAY || !reply->elements ||
        reply->element[0]->type != REDIS_REPLY_ARRAY)
        return NULL;
    const redisReply *row = reply->element[0];
    for (size_t i = 0; i + 1 < row->elements; i += 2)
        if (row->element[i]->type == REDIS_REPLY_STRING &&
            strcmp(row->element[i]->str, "library_code") == 0)
            return row->element[i + 1];
    return NULL;
}

static void on_list(void *user, status_t status, const char *error, const redisReply *reply)
{
    jobs_store_t *store = user;
    if (status == STATUS_UNREACHABLE || status == STATUS_CANCELLED)
        return;
    if (status != STATUS_OK) {
        char why[200];
        snprintf(why, sizeof why,
                 "redis has no function libraries (it must be 7.0 or newer): %.90s", error);
        set_library(store, false, why);
        return;
    }
    const redisReply *code = listed_code(reply);
    if (!code) {
        union {
            const unsigned char *bytes;
            const char *text;
        } library = {.bytes = jobs_lua};
        const char *args[] = {"FUNCTION", "LOAD", library.text};
        size_t sizes[] = {8, 4, jobs_lua_bytes};
        if (redis_call(store->redis, 3, args, sizes, on_load, store) != STATUS_OK)
            set_library(store, false, "redis: the job library could not be sent");
        return;
    }
    bool same = code->type == REDIS_REPLY_STRING && (size_t)code->len == jobs_lua_bytes &&
                memcmp(code->str, jobs_lua, jobs_lua_bytes) == 0;
    const char *why = "redis holds another text under the library name " JOBS_LIBRARY
                      "; it is never replaced: run the version that loaded it";
    set_library(store, same, same ? "" : why);
}

static void list_library(jobs_store_t *store)
{
    static const char *const args[] = {"FUNCTION", "LIST", "LIBRARYNAME", JOBS_LIBRARY, "WITHCODE"};
    if (redis_call_text(store->redis, 5, args, on_list, store) != STATUS_OK)
        set_library(store, false, "redis: the job library could not be looked for");
}

void jobs_store_check(jobs_store_t *store)
{
    pthread_mutex_lock(&store->lock);
    bool begin = !store->library_checking;
    store->library_checking = true;
    pthread_mutex_unlock(&store->lock);
    store->looked_ms = clock_ms();
    if (begin)
        list_library(store);
    look_at_gate(store);
}

/* ---- life ---- */

static void on_state(void *user, bool connected, const char *error)
{
    jobs_store_t *store = user;
    pthread_mutex_lock(&store->lock);
    store->library_checking = false;
    store->gate = GATE_UNKNOWN;
    snprintf(store->gate_why, sizeof store->gate_why, "redis: its settings are being read");
    pthread_mutex_unlock(&store->lock);
    if (connected)
        jobs_store_check(store);
    else
        set_library(store, false, error);
}

static void on_tick(void *user)
{
    jobs_store_t *store = user;
    uint64_t now = clock_ms();
    pthread_mutex_lock(&store->lock);
    redis_t *redis = store->redis; /* under the lock, because the first tick may race the opening */
    bool well = store->library_ok && store->gate == GATE_OPEN;
    pthread_mutex_unlock(&store->lock);
    if (redis_connected(redis) && (!well || now >= store->looked_ms + store->gate_ms))
        jobs_store_check(store);
}

static status_t check_cluster_name(const char *name)
{
    size_t n = name ? strlen(name) : 0;
    if (n < 1 || n > 64 || strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != n)
        return fail(STATUS_INVALID, "cluster name \"%.70s\" is not 1 to 64 of a-z, 0-9 and -",
                    name ? name : "");
    return STATUS_OK;
}

status_t jobs_store_open(const jobs_store_config_t *config, jobs_store_t **own_store_out)
{
    TRY(check_cluster_name(config->cluster));
    jobs_store_t *store = MEM_NEW(jobs_store_t);
    /* The braces keep all keys of a cluster in one slot should Redis ever be a cluster itself. */
    store->prefix = mem_format("shoal:{%s}:", config->cluster);
    store->jobs_bytes_max = config->jobs_bytes_max ? config->jobs_bytes_max : (uint64_t)1 << 30;
    store->gate_ms = config->gate_ms ? config->gate_ms : 30000;
    store->on_health = config->on_health;
    store->user = config->user;
    snprintf(store->library_why, sizeof store->library_why, "redis %.150s: not connected yet",
             config->url ? config->url : "");
    pthread_mutex_init(&store->lock, NULL);
    redis_config_t redis = {.url = config->url,
                            .call_timeout_ms = config->call_timeout_ms,
                            .on_state = on_state,
                            .on_tick = on_tick,
                            .tick_ms = TICK_MS < store->gate_ms ? TICK_MS : store->gate_ms,
                            .user = store};
    pthread_mutex_lock(&store->lock);
    status_t status = redis_open(&redis, &store->redis);
    pthread_mutex_unlock(&store->lock);
    if (status != STATUS_OK) {
        pthread_mutex_destroy(&store->lock);
        free(store->prefix);
        free(store);
        return status;
    }
    *own_store_out = store;
    return STATUS_OK;
}

void jobs_store_close(jobs_store_t *take_store)
{
    if (!take_store)
        return;
    redis_close(take_store->redis);
    pthread_mutex_destroy(&take_store->lock);
    free(take_store->prefix);
    free(take_store);
}

void jobs_store_set_cluster(jobs_store_t *store, const char *uuid, uint64_t incarnation)
{
    pthread_mutex_lock(&store->lock);
    snprintf(store->uuid, sizeof store->uuid, "%s", uuid);
    store->incarnation = incarnation;
    pthread_mutex_unlock(&store->lock);
}
