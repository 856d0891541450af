/* Watches, the lease and the queue between etcd's thread and the agent's: see agent_store.h. */
#include "worker/agent_store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/memory.h"
#include "common/net/rpc_message.h"
#include "worker/agent_store_internal.h"

#define READY_SLICE_MS 2000u

/* ---- the queue ---- */

void agent_store_post(agent_store_t *store, heard_t *take_heard)
{
    uint64_t one = 1;
    pthread_mutex_lock(&store->mutex);
    *store->heard_end = take_heard;
    store->heard_end = &take_heard->next;
    pthread_mutex_unlock(&store->mutex);
    if (write(store->event, &one, sizeof one) < 0)
        return; /* full: the agent is awake already */
}

heard_t *agent_store_hear(heard_kind_t kind, const etcd_kv_t *kv)
{
    size_t key = kv ? kv->key_size : 0, value = kv ? kv->value_size : 0;
    heard_t *heard = mem_new(1, sizeof *heard + key + 1 + value);
    heard->kind = kind;
    heard->key = (char *)heard->bytes;
    heard->value = heard->bytes + key + 1;
    if (!kv)
        return heard;
    memcpy(heard->key, kv->key, key);
    if (value > 0)
        memcpy(heard->value, kv->value, value);
    heard->value_bytes = value;
    heard->mod_revision = kv->mod_revision;
    return heard;
}

/* ---- etcd's thread ---- */

static void hear_events(agent_store_t *store, heard_kind_t kind, const etcd_event_t *events,
                        size_t n)
{
    for (size_t i = 0; i < n; i++) {
        heard_t *heard = agent_store_hear(kind, &events[i].kv);
        heard->deleted = events[i].deleted;
        if (events[i].deleted)
            heard->value_bytes = 0;
        agent_store_post(store, heard);
    }
}

static void on_assign_events(void *context, const etcd_event_t *events, size_t n)
{
    hear_events(context, HEARD_ASSIGN, events, n);
}

static void on_assign_regressed(void *context, int64_t revision_seen, int64_t revision_now)
{
    (void)revision_seen;
    (void)revision_now;
    agent_store_post(context, agent_store_hear(HEARD_REGRESSED, NULL));
}

static void on_meta_events(void *context, const etcd_event_t *events, size_t n)
{
    hear_events(context, HEARD_META, events, n);
}

static void on_rank_events(void *context, const etcd_event_t *events, size_t n)
{
    hear_events(context, HEARD_RANK, events, n);
}

static void on_synced(void *context, int64_t revision)
{
    (void)context;
    (void)revision;
}

static void on_granted(void *context, int64_t lease)
{
    heard_t *heard = agent_store_hear(HEARD_LEASE, NULL);
    heard->lease = lease;
    agent_store_post(context, heard);
}

static void on_lost(void *context, int64_t lease)
{
    heard_t *heard = agent_store_hear(HEARD_LEASE_LOST, NULL);
    heard->lease = lease;
    agent_store_post(context, heard);
}

/* ---- the agent's thread ---- */

static void open_lease(agent_store_t *store)
{
    const etcd_lease_handlers_t handlers = {.on_granted = on_granted,
                                            .on_lost = on_lost,
                                            .context = store};
    store->lease = etcd_lease_open(store->etcd, AGENT_LEASE_S, &handlers);
}

static void put_host(agent_store_t *store)
{
    uint8_t *record;
    size_t n = agent_host_pack(store->host, &record);
    char *key = mem_format("%shosts/%s", store->prefix, store->host->id);
    agent_store_write(store, key, record, n, WRITE_LEASED, NULL, 0);
    free(key);
    free(record);
}

static void take_lease(agent_store_t *store, int64_t lease)
{
    store->lease_id = lease;
    put_host(store);
    agent_store_lease_changed(store);
}

void agent_store_host_changed(agent_store_t *store)
{
    if (store->lease_id != 0)
        put_host(store); /* else the next lease brings it */
}

/* Splits "<deployment>/<number>[/<number>[/<number>]]"; false for a key that is not ours. */
static bool split_key(char *key, const char **deployment, uint64_t *numbers, int n_numbers)
{
    char *rest = key;
    *deployment = strsep(&rest, "/");
    for (int i = 0; i < n_numbers; i++) {
        char *word = rest ? strsep(&rest, "/") : NULL, *end;
        if (!word || !word[0])
            return false;
        numbers[i] = strtoull(word, &end, 10);
        if (*end)
            return false;
    }
    return rest == NULL && (*deployment)[0];
}

static bool take_plan_ranks(const Shoal__Cluster__V1__ReplicaPlan *from, agent_plan_t *to)
{
    if (from->n_ranks > FABRIC_RANKS_MAX)
        return false;
    to->n_ranks = (uint32_t)from->n_ranks;
    for (uint32_t i = 0; i < to->n_ranks; i++) {
        const Shoal__Cluster__V1__RankPlan *rank = from->ranks[i];
        agent_plan_rank_t *place = &to->ranks[i];
        if (strlen(rank->host) >= sizeof place->host || rank->rank != i)
            return false;
        snprintf(place->host, sizeof place->host, "%s", rank->host);
        place->stage = rank->stage;
        place->slice = rank->slice;
        place->layer_first = rank->layer_first;
        place->layer_count = rank->layer_count;
        place->threads = rank->threads;
    }
    return true;
}

/* False for a plan that cannot be one; the machine checks its sense. */
static bool take_plan(const agent_store_t *store, const heard_t *heard, agent_plan_t *to)
{
    ProtobufCMessage *message;
    if (rpc_unpack(&shoal__cluster__v1__replica_plan__descriptor, heard->value,
                   heard->value_bytes, NULL, &message) != STATUS_OK)
        return false;
    const Shoal__Cluster__V1__ReplicaPlan *from = (const void *)message;
    memset(to, 0, sizeof *to);
    bool good = strlen(from->deployment) < sizeof to->deployment &&
                strlen(from->model_digest) < sizeof to->model_digest &&
                strlen(from->activations) < sizeof to->activations &&
                strlen(from->quantize) < sizeof to->quantize &&
                strlen(from->kv) < sizeof to->kv &&
                strlen(from->draft_digest) < sizeof to->draft_digest && take_plan_ranks(from, to);
    if (good) {
        snprintf(to->deployment, sizeof to->deployment, "%s", from->deployment);
        snprintf(to->model_digest, sizeof to->model_digest, "%s", from->model_digest);
        snprintf(to->activations, sizeof to->activations, "%s", from->activations);
        snprintf(to->kv, sizeof to->kv, "%s", from->kv);
        snprintf(to->quantize, sizeof to->quantize, "%s", from->quantize);
        snprintf(to->model_path, sizeof to->model_path, "%s",
                 agent_host_model_path(store->host, from->model_digest));
        snprintf(to->draft_digest, sizeof to->draft_digest, "%s", from->draft_digest);
        snprintf(to->draft_path, sizeof to->draft_path, "%s",
                 agent_host_model_path(store->host, from->draft_digest));
        if (from->draft_digest[0] && !to->draft_path[0])
            log_info("%s/%u: its draft model %s is not under --models here: a leader on this host "
                     "goes without it", from->deployment, from->ordinal, from->draft_digest);
        to->ordinal = from->ordinal;
        to->incarnation = from->incarnation;
        to->epoch = (uint64_t)heard->mod_revision;
        to->tp = from->tp;
        to->stages = from->stages;
        to->expert_groups = from->expert_groups;
        to->attention_slices = from->attention_slices;
        to->attention_replicas = from->attention_replicas;
        to->shared_head = from->shared_head;
        to->context_max = from->context_max;
        to->kv_tokens_max = from->kv_tokens_max;
        to->prefill_tokens_max = from->prefill_tokens_max;
        to->speculate_max = from->speculate_max;
        to->speculate_off = from->speculate_off;
        to->prefix_cache_off = from->prefix_cache_off;
        to->whole_prompts = from->whole_prompts;
        to->formation_ms = from->formation_deadline_ms < UINT32_MAX
                               ? (uint32_t)from->formation_deadline_ms
                               : UINT32_MAX;
    }
    rpc_message_free(message);
    return good;
}

static void take_assign(agent_store_t *store, heard_t *heard)
{
    const char *deployment;
    uint64_t ordinal;
    size_t skip = strlen(store->assign_prefix);
    if (strlen(heard->key) < skip || !split_key(heard->key + skip, &deployment, &ordinal, 1))
        return;
    agent_plan_t *plan = NULL;
    if (!heard->deleted) {
        plan = MEM_NEW(agent_plan_t);
        if (!take_plan(store, heard, plan)) {
            log_error("the assignment of %s/%llu is malformed and ignored", deployment,
                      (unsigned long long)ordinal);
            free(plan);
            return;
        }
    }
    store->handlers.on_assign(store->handlers.context, deployment, (uint32_t)ordinal, plan);
    free(plan);
}

static void take_rank(agent_store_t *store, heard_t *heard)
{
    const char *deployment;
    uint64_t numbers[3];
    ProtobufCMessage *message;
    size_t skip = strlen(store->prefix) + strlen("ranks/");
    if (heard->deleted || strlen(heard->key) < skip ||
        !split_key(heard->key + skip, &deployment, numbers, 3))
        return;
    if (rpc_unpack(&shoal__cluster__v1__rank_record__descriptor, heard->value,
                   heard->value_bytes, NULL, &message) != STATUS_OK)
        return;
    const Shoal__Cluster__V1__RankRecord *record = (const void *)message;
    if (record->fabric_address.len <= FABRIC_ADDRESS_BYTES_MAX)
        store->handlers.on_peer(store->handlers.context, deployment, (uint32_t)numbers[0],
                                numbers[1], (uint32_t)numbers[2], record->fabric_address.data,
                                (uint32_t)record->fabric_address.len);
    rpc_message_free(message);
}

/* Keeps a vanished assignment aside, or forgets one that stands again. Returns true when `heard` was
 * taken over. */
static bool hold_back(agent_store_t *store, heard_t *heard)
{
    for (heard_t **at = &store->held_back; *at; at = &(*at)->next)
        if (strcmp((*at)->key, heard->key) == 0) {
            heard_t *old = *at;
            *at = old->next;
            free(old);
            break;
        }
    if (!heard->deleted)
        return false;
    heard->next = store->held_back;
    store->held_back = heard;
    return true;
}

/* A raised incarnation is an operator's word that this etcd counts: what vanished is gone. */
static void take_meta(agent_store_t *store, const heard_t *heard)
{
    ProtobufCMessage *message;
    if (heard->deleted || rpc_unpack(&shoal__cluster__v1__cluster_meta__descriptor, heard->value,
                                     heard->value_bytes, NULL, &message) != STATUS_OK)
        return;
    uint64_t incarnation = ((const Shoal__Cluster__V1__ClusterMeta *)(const void *)message)->incarnation;
    rpc_message_free(message);
    bool adopted = store->held && incarnation > store->incarnation;
    if (incarnation > store->incarnation)
        store->incarnation = incarnation;
    if (!adopted)
        return;
    store->held = false;
    while (store->held_back) {
        heard_t *gone = store->held_back;
        store->held_back = gone->next;
        take_assign(store, gone);
        free(gone);
    }
}

/* Returns true when `heard` was taken over. */
static bool take(agent_store_t *store, heard_t *heard, uint64_t now_ms)
{
    switch (heard->kind) {
    case HEARD_ASSIGN:
        if (store->held && hold_back(store, heard))
            return true;
        take_assign(store, heard);
        break;
    case HEARD_REGRESSED:
        if (!store->held)
            log_warn("etcd was emptied or restored: ranks serve on until it is adopted");
        store->held = true;
        break;
    case HEARD_META:
        take_meta(store, heard);
        break;
    case HEARD_RANK:
        take_rank(store, heard);
        break;
    case HEARD_LEASE:
        take_lease(store, heard->lease);
        break;
    case HEARD_LEASE_LOST:
        log_warn("etcd let this host's lease expire; registering anew");
        etcd_lease_close(store->lease, false);
        store->lease_id = 0;
        open_lease(store);
        break;
    case HEARD_WRITTEN:
        agent_store_written(store, heard, now_ms);
        break;
    }
    return false;
}

void agent_store_poll(agent_store_t *store, uint64_t now_ms)
{
    uint64_t drained;
    if (read(store->event, &drained, sizeof drained) < 0)
        drained = 0;
    pthread_mutex_lock(&store->mutex);
    heard_t *first = store->heard;
    store->heard = NULL;
    store->heard_end = &store->heard;
    pthread_mutex_unlock(&store->mutex);
    while (first) {
        heard_t *heard = first;
        first = heard->next;
        if (!take(store, heard, now_ms))
            free(heard);
    }
    agent_store_retry(store, now_ms);
}

static rank_watch_t **find_watch(agent_store_t *store, const char *deployment, uint32_t ordinal)
{
    rank_watch_t **at = &store->watches;
    while (*at && ((*at)->ordinal != ordinal || strcmp((*at)->deployment, deployment) != 0))
        at = &(*at)->next;
    return at;
}

void agent_store_unwatch_ranks(agent_store_t *store, const char *deployment, uint32_t ordinal)
{
    rank_watch_t **at = find_watch(store, deployment, ordinal);
    rank_watch_t *watch = *at;
    if (!watch)
        return;
    *at = watch->next;
    etcd_watch_close(watch->watch);
    free(watch);
}

void agent_store_watch_ranks(agent_store_t *store, const agent_plan_t *plan)
{
    agent_store_unwatch_ranks(store, plan->deployment, plan->ordinal);
    const etcd_watch_handlers_t handlers = {.on_events = on_rank_events,
                                            .on_synced = on_synced,
                                            .context = store};
    char *prefix = mem_format("%sranks/%s/%u/%llu/", store->prefix, plan->deployment,
                              plan->ordinal, (unsigned long long)plan->epoch);
    rank_watch_t *watch = MEM_NEW(rank_watch_t);
    snprintf(watch->deployment, sizeof watch->deployment, "%s", plan->deployment);
    watch->ordinal = plan->ordinal;
    watch->watch = etcd_watch_open(store->etcd, prefix, &handlers);
    watch->next = store->watches;
    store->watches = watch;
    free(prefix);
}

static status_t wait_for_etcd(agent_store_t *store, const char *endpoints, uint32_t wait_ms)
{
    uint64_t end = clock_ms() + wait_ms;
    for (;;) {
        uint64_t now = clock_ms();
        unsigned slice = now < end && end - now < READY_SLICE_MS ? (unsigned)(end - now)
                                                                 : READY_SLICE_MS;
        status_t status = etcd_wait_ready(store->etcd, slice ? slice : 1);
        now = clock_ms();
        if (status == STATUS_OK)
            return STATUS_OK;
        if (now >= end)
            return fail_in(STATUS_UNREACHABLE, "etcd at %s did not answer within %u ms",
                           endpoints, wait_ms);
        log_info("waiting for etcd at %s, %llu s more (%s)", endpoints,
                 (unsigned long long)((end - now + 999) / 1000), status_text());
    }
}

status_t agent_store_open(const char *endpoints, const char *cluster, const agent_host_t *host,
                          uint32_t wait_ms, const agent_store_handlers_t *handlers,
                          agent_store_t **own_out)
{
    agent_store_t *store = MEM_NEW(agent_store_t);
    const etcd_options_t options = {.endpoints = endpoints};
    const etcd_watch_handlers_t watch = {.on_events = on_assign_events,
                                         .on_synced = on_synced,
                                         .on_regressed = on_assign_regressed,
                                         .context = store};
    const etcd_watch_handlers_t meta = {.on_events = on_meta_events,
                                        .on_synced = on_synced,
                                        .context = store};
    store->host = host;
    store->handlers = *handlers;
    store->heard_end = &store->heard;
    pthread_mutex_init(&store->mutex, NULL);
    store->prefix = mem_format("/shoal/%s/", cluster);
    store->assign_prefix = mem_format("%sassign/%s/", store->prefix, host->id);
    store->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    status_t status = store->event < 0 ? fail(STATUS_INTERNAL, "cannot make an eventfd: %m")
                                       : rpc_io_open(0, &store->io);
    if (status == STATUS_OK)
        status = etcd_open(store->io, &options, &store->etcd);
    if (status == STATUS_OK)
        status = wait_for_etcd(store, endpoints, wait_ms);
    if (status != STATUS_OK) {
        agent_store_close(store);
        return status;
    }
    open_lease(store);
    char *meta_key = mem_format("%smeta", store->prefix);
    store->meta = etcd_watch_open(store->etcd, meta_key, &meta);
    free(meta_key);
    store->assigns = etcd_watch_open(store->etcd, store->assign_prefix, &watch);
    *own_out = store;
    return STATUS_OK;
}

int agent_store_fd(const agent_store_t *store)
{
    return store->event;
}

static void free_list(heard_t *list)
{
    while (list) {
        heard_t *next = list->next;
        free(list);
        list = next;
    }
}

void agent_store_close(agent_store_t *take_store)
{
    agent_store_t *store = take_store;
    if (!store)
        return;
    while (store->watches)
        agent_store_unwatch_ranks(store, store->watches->deployment, store->watches->ordinal);
    if (store->assigns)
        etcd_watch_close(store->assigns);
    if (store->meta)
        etcd_watch_close(store->meta);
    if (store->lease)
        agent_store_revoke(store);
    if (store->etcd)
        etcd_close(store->etcd);
    if (store->io)
        rpc_io_close(store->io);
    free_list(store->heard);
    free_list(store->held_back);
    agent_store_drop_writes(store);
    if (store->event >= 0)
        close(store->event);
    free(store->prefix);
    free(store->assign_prefix);
    pthread_mutex_destroy(&store->mutex);
    free(store);
}
