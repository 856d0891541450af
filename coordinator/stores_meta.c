/* Which cluster: etcd and Redis each hold a uuid and an incarnation, Redis also the highest
 * revision of etcd that was seen. They must agree before plans are written or jobs are taken; else
 * one of them was emptied, restored or swapped, and only an operator's `adopt` goes on.
 *
 * At the very first start both are empty. Redis's meta is made first and etcd's second, so that a
 * crash in between is told apart from an emptied store (Redis's is then not yet confirmed). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/stores_state.h"
#include "shoal/cluster/v1/state.pb-c.h"

#define TICK_MS 500
#define VERIFY_MS 30000
#define RETRY_MS 1000
/* Looks in a row that must find a store strange. The two stores are read one after the other, so a
 * single look may meet what another coordinator wrote in between. */
#define DOUBTS 3

bool stores_cluster(shell_t *shell, char uuid_out[33], uint64_t *incarnation_out)
{
    stores_t *stores = shell->stores;
    pthread_mutex_lock(&stores->lock);
    bool known = stores->known;
    memcpy(uuid_out, stores->uuid, sizeof stores->uuid);
    *incarnation_out = stores->incarnation;
    pthread_mutex_unlock(&stores->lock);
    return known;
}

void stores_view(shell_t *shell, store_view_t *etcd_out, store_view_t *redis_out)
{
    stores_t *stores = shell->stores;
    pthread_mutex_lock(&stores->lock);
    *etcd_out = stores->etcd_view;
    *redis_out = stores->redis_view;
    pthread_mutex_unlock(&stores->lock);
}

status_t stores_may_plan(shell_t *shell)
{
    store_view_t etcd, redis;
    stores_view(shell, &etcd, &redis);
    if (!etcd.ok)
        return fail(STATUS_UNREACHABLE, "%s", etcd.text);
    return STATUS_OK;
}

status_t stores_may_take_jobs(shell_t *shell)
{
    store_view_t etcd, redis;
    stores_view(shell, &etcd, &redis);
    const char *why = etcd.foreign ? etcd.text : redis.foreign ? redis.text : NULL;
    if (why)
        return fail(STATUS_UNREACHABLE, "jobs are unavailable: %s", why);
    return STATUS_OK;
}

/* Tells core and Admin.Status where a store stands, when that changed. */
static void tell(shell_t *shell, core_store_t store, core_store_state_t state, const char *text)
{
    stores_t *stores = shell->stores;
    core_store_state_t *told =
        store == CORE_STORE_ETCD ? &stores->etcd_told : &stores->redis_told;
    store_view_t *view = store == CORE_STORE_ETCD ? &stores->etcd_view : &stores->redis_view;
    pthread_mutex_lock(&stores->lock);
    bool changed = *told != state || strcmp(view->text, text) != 0;
    view->ok = state == CORE_STORE_UP;
    view->foreign = state == CORE_STORE_FOREIGN;
    snprintf(view->text, sizeof view->text, "%s", state == CORE_STORE_UP ? "ok" : text);
    pthread_mutex_unlock(&stores->lock);
    bool news = *told != state;
    *told = state;
    if (changed && state != CORE_STORE_UP)
        log_warn("%s: %s", store == CORE_STORE_ETCD ? "etcd" : "redis", text);
    if (news)
        shell_event(shell,
                    &(core_event_t){.kind = CORE_EVENT_STORE, .store = {store, state, text}});
}

static void know(shell_t *shell, const char *uuid, uint64_t incarnation)
{
    stores_t *stores = shell->stores;
    pthread_mutex_lock(&stores->lock);
    bool news = !stores->known || incarnation != stores->incarnation;
    stores->known = true;
    snprintf(stores->uuid, sizeof stores->uuid, "%s", uuid);
    stores->incarnation = incarnation;
    pthread_mutex_unlock(&stores->lock);
    jobs_store_set_cluster(shell->jobs, uuid, incarnation);
    if (news)
        log_info("cluster %s, incarnation %llu", uuid, (unsigned long long)incarnation);
}

/* ---- one look at both stores, step after step ---- */

static void end_look(shell_t *shell, look_t *take_look)
{
    stores_t *stores = shell->stores;
    stores->verifying = false;
    stores->verified_ms = clock_ms();
    free(take_look);
    if (stores->verify_again) {
        stores->verify_again = false;
        stores_verify(shell);
    }
}

/* True when a strange finding is to be believed; else it is looked at anew. */
static bool believe(shell_t *shell)
{
    stores_t *stores = shell->stores;
    if (stores->doubts < DOUBTS)
        stores->doubts++;
    stores->verify_again = stores->verify_again || stores->doubts < DOUBTS;
    return stores->doubts == DOUBTS;
}

static void trust_etcd(shell_t *shell)
{
    tell(shell, CORE_STORE_ETCD, CORE_STORE_UP, "ok");
    if (!shell->stores->etcd_trusted) {
        shell->stores->etcd_trusted = true;
        shell->stores->regressions = etcd_regressions(shell->etcd);
        stores_release_held(shell);
    }
}

static void distrust_etcd(shell_t *shell, const char *text)
{
    shell->stores->etcd_trusted = false;
    tell(shell, CORE_STORE_ETCD, CORE_STORE_FOREIGN, text);
}

void stores_freeze_etcd(shell_t *shell, const char *text)
{
    distrust_etcd(shell, text);
    stores_verify(shell);
}

static void on_checked(shell_t *shell, void *take_data)
{
    look_t *look = take_data;
    if (look->redis_code == JOBS_OK) {
        shell->stores->doubts = 0;
        know(shell, look->etcd_uuid, look->etcd_incarnation);
        trust_etcd(shell);
        tell(shell, CORE_STORE_REDIS, CORE_STORE_UP, "ok");
        stores_member_tick(shell);
    } else if (look->redis_code == JOBS_UNREACHABLE) {
        tell(shell, CORE_STORE_REDIS, CORE_STORE_DOWN, look->text);
    } else if (!believe(shell)) {
        log_debug("stores: %s; looking again", look->text);
    } else if (strstr(look->text, "adopt etcd")) {
        distrust_etcd(shell, look->text);
    } else {
        tell(shell, CORE_STORE_REDIS, CORE_STORE_FOREIGN, look->text);
    }
    end_look(shell, look);
}

static void on_check_reply(void *user, const jobs_reply_t *reply)
{
    look_t *look = user;
    look->redis_code = reply->code;
    snprintf(look->text, sizeof look->text, "%s", reply->message);
    shell_post(look->shell, on_checked, look);
}

static void on_made(shell_t *shell, void *take_data)
{
    shell->stores->verify_again = true; /* whatever came of it, look anew */
    end_look(shell, take_data);
}

static void on_etcd_made(void *context, const etcd_result_t *result)
{
    look_t *look = context;
    if (result->status != STATUS_OK)
        log_warn("etcd: the cluster's meta could not be written: %s", result->message);
    shell_post(look->shell, on_made, look);
}

static buffer_t pack_meta(const char *uuid, uint64_t incarnation)
{
    char copy[33];
    snprintf(copy, sizeof copy, "%s", uuid);
    Shoal__Cluster__V1__ClusterMeta meta = SHOAL__CLUSTER__V1__CLUSTER_META__INIT;
    meta.uuid = copy;
    meta.incarnation = incarnation;
    buffer_t bytes = {0};
    rpc_pack(&meta, &bytes);
    return bytes;
}

void stores_write_meta(shell_t *shell, const char *uuid, uint64_t incarnation,
                       int64_t mod_revision, etcd_done_fn done, void *context)
{
    buffer_t bytes = pack_meta(uuid, incarnation);
    char *key = stores_key(shell, "meta");
    etcd_compare_t compare = {.key = key, .target = ETCD_MOD_REVISION, .number = mod_revision};
    etcd_op_t op = {.kind = ETCD_PUT, .key = key, .value = bytes.data, .value_size = bytes.size};
    etcd_txn_t txn = {.compares = &compare, .n_compares = 1, .then = &op, .n_then = 1};
    etcd_txn(shell->etcd, &txn, done, context);
    free(key);
    buffer_release(&bytes);
}

static void on_redis_made(shell_t *shell, void *take_data)
{
    look_t *look = take_data;
    if (look->redis_code != JOBS_OK) {
        on_made(shell, look);
        return;
    }
    stores_write_meta(shell, look->redis.uuid, look->redis.incarnation, 0, on_etcd_made, look);
}

static void on_create_reply(void *user, const jobs_reply_t *reply)
{
    look_t *look = user;
    look->redis_code = reply->code;
    look->redis = reply->meta;
    shell_post(look->shell, on_redis_made, look);
}

/* Both stores have been read. */
static void compare(shell_t *shell, look_t *look)
{
    if (look->etcd_has && look->redis.exists) {
        if (jobs_meta_check(shell->jobs, look->etcd_uuid, look->etcd_incarnation,
                            (uint64_t)look->etcd_revision, on_check_reply, look) == STATUS_OK)
            return;
    } else if ((look->etcd_has || look->redis.confirmed) && !believe(shell)) {
        log_debug("stores: one of them holds no cluster; looking again");
    } else if (look->etcd_has) {
        tell(shell, CORE_STORE_REDIS, CORE_STORE_FOREIGN,
             "redis holds no cluster: it was emptied; accept with: shoal adopt redis");
        trust_etcd(shell);
    } else if (look->redis.exists && look->redis.confirmed) {
        distrust_etcd(shell,
                      "etcd holds no cluster: it was emptied; accept with: shoal adopt etcd");
    } else if (look->redis.exists) {
        stores_write_meta(shell, look->redis.uuid, look->redis.incarnation, 0, on_etcd_made, look);
        return;
    } else {
        char uuid[CORE_ID_SIZE];
        shell_random_id(uuid);
        if (jobs_meta_create(shell->jobs, uuid, on_create_reply, look) == STATUS_OK)
            return;
    }
    end_look(shell, look);
}

static void on_read(shell_t *shell, void *take_data)
{
    look_t *look = take_data;
    char uuid[33];
    uint64_t incarnation;
    bool known = stores_cluster(shell, uuid, &incarnation);
    bool etcd_ok = look->etcd_status == STATUS_OK, redis_ok = look->redis_code == JOBS_OK;
    if (etcd_ok && redis_ok) {
        compare(shell, look);
        return;
    }
    /* One store alone is taken as it was known: a store that answers nothing proves nothing. */
    if (!etcd_ok)
        tell(shell, CORE_STORE_ETCD, CORE_STORE_DOWN, "etcd does not answer");
    else if (look->etcd_has && known && strcmp(uuid, look->etcd_uuid) == 0 &&
             incarnation == look->etcd_incarnation &&
             shell->stores->regressions == etcd_regressions(shell->etcd))
        trust_etcd(shell);
    if (!redis_ok)
        tell(shell, CORE_STORE_REDIS, CORE_STORE_DOWN, look->text);
    else if (look->redis.exists && known && strcmp(uuid, look->redis.uuid) == 0 &&
             incarnation == look->redis.incarnation)
        tell(shell, CORE_STORE_REDIS, CORE_STORE_UP, "ok");
    end_look(shell, look);
}

static void on_get_reply(void *user, const jobs_reply_t *reply)
{
    look_t *look = user;
    look->redis_code = reply->code;
    look->redis = reply->meta;
    snprintf(look->text, sizeof look->text, "%s", reply->message);
    shell_post(look->shell, on_read, look);
}

static void read_redis(shell_t *shell, void *take_data)
{
    look_t *look = take_data;
    if (jobs_meta_get(shell->jobs, on_get_reply, look) == STATUS_OK)
        return;
    look->redis_code = JOBS_UNREACHABLE;
    snprintf(look->text, sizeof look->text, "%s", status_text());
    on_read(shell, look);
}

void stores_read_meta(const etcd_result_t *result, look_t *look)
{
    look->etcd_status = result->status;
    look->etcd_revision = result->revision;
    if (result->status != STATUS_OK || result->n_kvs != 1)
        return;
    ProtobufCMessage *message;
    if (rpc_unpack(&shoal__cluster__v1__cluster_meta__descriptor, result->kvs[0].value,
                   result->kvs[0].value_size, NULL, &message) != STATUS_OK) {
        look->etcd_status = STATUS_INVALID;
        return;
    }
    const Shoal__Cluster__V1__ClusterMeta *meta = (const Shoal__Cluster__V1__ClusterMeta *)message;
    look->etcd_has = true;
    snprintf(look->etcd_uuid, sizeof look->etcd_uuid, "%s", meta->uuid);
    look->etcd_incarnation = meta->incarnation;
    look->etcd_mod_revision = result->kvs[0].mod_revision;
    rpc_message_free(message);
}

static void on_etcd_read(void *context, const etcd_result_t *result)
{
    look_t *look = context;
    stores_read_meta(result, look);
    shell_post(look->shell, read_redis, look);
}

void stores_verify(shell_t *shell)
{
    stores_t *stores = shell->stores;
    if (!atomic_load(&shell->running))
        return;
    if (stores->verifying) {
        stores->verify_again = true;
        return;
    }
    stores->verifying = true;
    look_t *look = MEM_NEW(look_t);
    look->shell = shell;
    char *key = stores_key(shell, "meta");
    etcd_get(shell->etcd, key, on_etcd_read, look);
    free(key);
}

/* ---- supervision ---- */

static void tick(shell_t *shell, void *take_data)
{
    (void)take_data;
    stores_t *stores = shell->stores;
    if (!atomic_load(&shell->running))
        return;
    uint64_t now = clock_ms();
    bool reachable = etcd_reachable(shell->etcd);
    bool well = stores->etcd_told == CORE_STORE_UP && stores->redis_told == CORE_STORE_UP;
    if (!reachable && stores->etcd_told == CORE_STORE_UP)
        tell(shell, CORE_STORE_ETCD, CORE_STORE_DOWN, "etcd does not answer");
    if (stores->etcd_trusted && etcd_regressions(shell->etcd) != stores->regressions)
        stores->etcd_trusted = false;
    if ((reachable && !stores->etcd_was_reachable) || !stores->etcd_trusted ||
        now >= stores->verified_ms + (well ? VERIFY_MS : RETRY_MS))
        stores_verify(shell);
    stores->etcd_was_reachable = reachable;
    stores_member_tick(shell);
    shell_post_at(shell, now + TICK_MS, tick, NULL);
}

static void on_redis_health(shell_t *shell, void *take_data)
{
    char *why = take_data;
    if (why && shell->stores->redis_told == CORE_STORE_UP)
        tell(shell, CORE_STORE_REDIS, CORE_STORE_DOWN, why);
    free(why);
    stores_verify(shell);
}

void stores_redis_health(void *user, const jobs_health_t *health)
{
    shell_t *shell = user;
    if (atomic_load(&shell->running))
        shell_post(shell, on_redis_health, health->connected ? NULL : mem_strdup(health->why));
}

/* ---- life ---- */

static status_t await_redis(shell_t *shell, uint64_t until)
{
    char why[200];
    bool connected, durable, said = false;
    for (;;) {
        jobs_store_health(shell->jobs, &connected, &durable, why, sizeof why);
        if (connected)
            return STATUS_OK;
        if (clock_ms() >= until)
            return fail(STATUS_UNREACHABLE, "%s; waited %lld ms (--store-wait)", why,
                        (long long)shell->options.store_wait_ms);
        atomic_store(&shell->waits_for, "redis");
        if (!said)
            log_info("waiting for redis at %s", shell->options.redis);
        said = true;
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    }
}

status_t stores_open(shell_t *shell)
{
    stores_t *stores = MEM_NEW(stores_t);
    shell->stores = stores;
    pthread_mutex_init(&stores->lock, NULL);
    snprintf(stores->etcd_view.text, sizeof stores->etcd_view.text, "etcd: not compared yet");
    snprintf(stores->redis_view.text, sizeof stores->redis_view.text, "redis: not compared yet");
    stores_etcd_begin(shell);
    uint64_t wait_ms = (uint64_t)shell->options.store_wait_ms, until = clock_ms() + wait_ms;
    jobs_store_config_t jobs = {.url = shell->options.redis,
                                .cluster = shell->options.cluster,
                                .jobs_bytes_max = (uint64_t)shell->options.jobs_bytes_max,
                                .on_health = stores_redis_health,
                                .user = shell};
    TRY(jobs_store_open(&jobs, &shell->jobs));
    etcd_options_t etcd = {.endpoints = shell->options.etcd};
    TRY(etcd_open(shell->io, &etcd, &shell->etcd));
    if (etcd_wait_ready(shell->etcd, wait_ms < 300 ? (unsigned)wait_ms : 300) != STATUS_OK) {
        atomic_store(&shell->waits_for, "etcd");
        log_info("waiting for etcd at %s", shell->options.etcd);
        uint64_t now = clock_ms();
        TRY(etcd_wait_ready(shell->etcd, until > now ? (unsigned)(until - now) : 1));
    }
    return await_redis(shell, until);
}

void stores_begin(shell_t *shell)
{
    stores_t *stores = shell->stores;
    stores->etcd_was_reachable = true;
    stores->regressions = etcd_regressions(shell->etcd);
    stores_verify(shell);
    stores_member_begin(shell);
    shell_post_at(shell, clock_ms() + TICK_MS, tick, NULL);
}

void stores_leave(shell_t *shell)
{
    stores_member_close(shell, true);
    stores_etcd_close(shell);
}

void stores_release(shell_t *shell)
{
    if (!shell->stores)
        return;
    stores_items_close(shell);
    pthread_mutex_destroy(&shell->stores->lock);
    free(shell->stores);
}

void stores_close(shell_t *shell)
{
    if (shell->etcd)
        etcd_close(shell->etcd);
    if (shell->jobs)
        jobs_store_close(shell->jobs);
    shell->etcd = NULL;
    shell->jobs = NULL;
}
