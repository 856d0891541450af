/* What the agent publishes. A write is kept until etcd has taken it, or has said that the plan it
 * speaks of is no more; etcd may be away meanwhile. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/failpoint.h"
#include "common/base/log.h"
#include "common/base/memory.h"
#include "common/net/rpc_message.h"
#include "worker/agent_store_internal.h"

#define RETRY_MS 300u
#define FAILURE_TRIES 5u
#define WRITES_MAX 4096u /* far above what 64 replicas can have; the oldest settled ones go */

/* An answer finds its write by number: the write may be gone by then. */
typedef struct {
    agent_store_t *store;
    uint64_t write_id;
} answer_t;

static void on_written(void *context, const etcd_result_t *result)
{
    answer_t *answer = context;
    heard_t *heard = agent_store_hear(HEARD_WRITTEN, result->n_kvs > 0 ? &result->kvs[0] : NULL);
    heard->status = result->status;
    heard->succeeded = result->succeeded;
    heard->write_id = answer->write_id;
    agent_store_post(answer->store, heard);
    free(answer);
}

static answer_t *new_answer(agent_store_t *store, const write_t *write)
{
    answer_t *answer = MEM_NEW(answer_t);
    *answer = (answer_t){store, write->id};
    return answer;
}

static void put_if(agent_store_t *store, write_t *write, const etcd_compare_t *compares, size_t n,
                   const uint8_t *value, size_t bytes, int64_t lease)
{
    const etcd_op_t op = {.kind = ETCD_PUT,
                          .key = write->key,
                          .value = value,
                          .value_size = bytes,
                          .lease = lease};
    const etcd_txn_t txn = {.compares = compares, .n_compares = n, .then = &op, .n_then = 1};
    etcd_txn(store->etcd, &txn, on_written, new_answer(store, write));
}

static void submit(agent_store_t *store, write_t *write)
{
    const etcd_compare_t compares[2] = {
        {.key = write->plan_key, .target = ETCD_MOD_REVISION, .number = (int64_t)write->epoch},
        {.key = write->key, .target = ETCD_MOD_REVISION, .number = write->seen_revision},
    };
    bool leased = write->kind == WRITE_LEASED || write->kind == WRITE_ABSENT;
    if (leased && store->lease_id == 0)
        return; /* agent_store_lease_changed comes back */
    write->in_flight = true;
    switch (write->kind) {
    case WRITE_LEASED:
        put_if(store, write, NULL, 0, write->value, write->value_bytes, store->lease_id);
        break;
    case WRITE_ABSENT:
        put_if(store, write, &compares[1], 1, write->value, write->value_bytes, store->lease_id);
        break;
    case WRITE_GUARDED:
        put_if(store, write, compares, 1, write->value, write->value_bytes, 0);
        break;
    case WRITE_FAILURE:
        if (write->merged) {
            put_if(store, write, compares, 2, write->merged, write->merged_bytes, 0);
        } else {
            write->reading = true;
            etcd_get(store->etcd, write->key, on_written, new_answer(store, write));
        }
        break;
    case WRITE_GONE:
        etcd_delete(store->etcd, write->key, on_written, new_answer(store, write));
        break;
    }
}

static void free_write(write_t *write)
{
    free(write->key);
    free(write->plan_key);
    free(write->value);
    free(write->merged);
    free(write);
}

static void set_value(write_t *write, const uint8_t *value, size_t bytes)
{
    free(write->value);
    free(write->merged);
    write->merged = NULL;
    write->value = mem_new(1, bytes + 1);
    if (bytes > 0)
        memcpy(write->value, value, bytes);
    write->value_bytes = bytes;
    write->settled = false;
}

void agent_store_write(agent_store_t *store, const char *key, const uint8_t *value, size_t bytes,
                       write_kind_t kind, const char *plan_key, uint64_t epoch)
{
    write_t **at = &store->writes;
    uint32_t n = 0;
    while (*at && strcmp((*at)->key, key) != 0) {
        write_t *old = *at;
        if (++n > WRITES_MAX && old->settled && !old->in_flight) {
            *at = old->next;
            free_write(old);
            continue;
        }
        at = &old->next;
    }
    if (!*at) {
        *at = MEM_NEW(write_t);
        (*at)->key = mem_strdup(key);
    }
    write_t *write = *at;
    write->id = ++store->next_write_id; /* an answer to an earlier value is not this one's */
    write->kind = kind;
    write->epoch = epoch;
    free(write->plan_key);
    write->plan_key = plan_key ? mem_strdup(plan_key) : NULL;
    write->seen_revision = 0;
    write->tries = 0;
    write->reading = false;
    set_value(write, value, bytes);
    submit(store, write);
}

static void merge_sessions(Shoal__Cluster__V1__FailureRecord *to,
                           const Shoal__Cluster__V1__FailureRecord *from, arena_t *arena)
{
    char **sessions = ARENA_NEW_ARRAY(arena, char *, to->n_sessions + from->n_sessions + 1);
    size_t n = 0;
    for (size_t i = 0; i < to->n_sessions + from->n_sessions; i++) {
        char *one =
            i < to->n_sessions ? to->sessions[i] : from->sessions[i - to->n_sessions];
        bool known = false;
        for (size_t k = 0; k < n; k++)
            known = known || strcmp(sessions[k], one) == 0;
        if (!known)
            sessions[n++] = one;
    }
    to->sessions = sessions;
    to->n_sessions = n;
}

/* Several agents may see the end of one epoch: one knows that a rank crashed, another whose sequences
 * were in the step. The record that stands tells both. False: it tells all that this one does. */
static bool merge(write_t *write, const heard_t *heard)
{
    arena_t arena = {0};
    ProtobufCMessage *there = NULL, *own = NULL;
    const ProtobufCMessageDescriptor *type = &shoal__cluster__v1__failure_record__descriptor;
    bool adds = true;
    write->seen_revision = heard->mod_revision;
    status_t status = rpc_unpack(type, write->value, write->value_bytes, NULL, &own);
    CHECK(status == STATUS_OK); /* packed by us */
    Shoal__Cluster__V1__FailureRecord *mine = (void *)own;
    if (heard->value_bytes > 0)
        status = rpc_unpack(type, heard->value, heard->value_bytes, NULL, &there);
    const Shoal__Cluster__V1__FailureRecord *known = status == STATUS_OK ? (void *)there : NULL;
    Shoal__Cluster__V1__FailureRecord merged = *mine;
    if (known && known->epoch > mine->epoch) {
        adds = false;
    } else if (known && known->epoch == mine->epoch) {
        bool keep = known->crashed || !mine->crashed;
        merged = keep ? *known : *mine;
        merge_sessions(&merged, keep ? mine : known, &arena);
        adds = !keep || merged.n_sessions > known->n_sessions;
    }
    if (adds) {
        write->merged = mem_new(
            1, shoal__cluster__v1__failure_record__get_packed_size(&merged) + 1);
        write->merged_bytes = shoal__cluster__v1__failure_record__pack(&merged, write->merged);
    }
    rpc_message_free(there);
    rpc_message_free(own);
    arena_release(&arena);
    return adds;
}

void agent_store_written(agent_store_t *store, const heard_t *heard, uint64_t now_ms)
{
    write_t **at = &store->writes, *write;
    while ((write = *at) && write->id != heard->write_id)
        at = &write->next;
    if (!write)
        return;
    write->in_flight = false;
    if (heard->status != STATUS_OK) {
        write->next_try_ms = now_ms + RETRY_MS;
        write->reading = false;
        free(write->merged);
        write->merged = NULL;
        return;
    }
    if (write->kind == WRITE_GONE) {
        *at = write->next;
        free_write(write);
        return;
    }
    if (write->reading) {
        write->reading = false;
        write->settled = !merge(write, heard);
        if (!write->settled)
            submit(store, write);
        return;
    }
    /* Somebody else may have written the record between our reading and writing it. */
    if (!heard->succeeded && write->kind == WRITE_FAILURE && write->tries++ < FAILURE_TRIES) {
        free(write->merged);
        write->merged = NULL;
        submit(store, write);
        return;
    }
    write->settled = true;
    if (!heard->succeeded)
        log_info("%s: overtaken, not written", write->key);
}

void agent_store_retry(agent_store_t *store, uint64_t now_ms)
{
    for (write_t *write = store->writes; write; write = write->next) {
        if (!write->settled && !write->in_flight && now_ms >= write->next_try_ms)
            submit(store, write);
    }
}

void agent_store_lease_changed(agent_store_t *store)
{
    for (write_t *write = store->writes; write; write = write->next) {
        if (write->kind != WRITE_LEASED && write->kind != WRITE_ABSENT)
            continue;
        write->settled = false;
        write->id = ++store->next_write_id;
        submit(store, write);
    }
}

void agent_store_revoke(agent_store_t *store)
{
    /* Deleting the host's key first says it at once even if the revocation is not waited for. */
    char *key = mem_format("%shosts/%s", store->prefix, store->host->id);
    if (etcd_reachable(store->etcd)) {
        etcd_waiter_t *waiter = etcd_waiter_new();
        etcd_delete(store->etcd, key, etcd_wait_done, waiter);
        if (etcd_wait(waiter, NULL) != STATUS_OK)
            log_warn("cannot take %s away: %s", key, status_text());
    }
    free(key);
    etcd_lease_close(store->lease, true);
    store->lease = NULL;
}

void agent_store_drop_writes(agent_store_t *store)
{
    while (store->writes) {
        write_t *write = store->writes;
        store->writes = write->next;
        free_write(write);
    }
}

/* ---- the records ---- */

static char *plan_key_of(const agent_store_t *store, const agent_plan_t *plan)
{
    return mem_format("%sreplicas/%s/%u/plan", store->prefix, plan->deployment, plan->ordinal);
}

/* Takes a key away that is kept under the lease. */
static void take_away(agent_store_t *store, write_t *write)
{
    write->id = ++store->next_write_id; /* the answer to its last value is not the deletion's */
    write->kind = WRITE_GONE;
    set_value(write, NULL, 0);
    submit(store, write);
}

/* Takes rank records of older epochs away. */
static void forget_ranks(agent_store_t *store, const agent_plan_t *plan)
{
    char *prefix = mem_format("%sranks/%s/%u/", store->prefix, plan->deployment, plan->ordinal);
    for (write_t *write = store->writes; write; write = write->next)
        if (write->kind == WRITE_LEASED && strncmp(write->key, prefix, strlen(prefix)) == 0 &&
            write->epoch != plan->epoch)
            take_away(store, write);
    free(prefix);
}

void agent_store_put_rank(agent_store_t *store, const agent_plan_t *plan, uint32_t rank,
                          int64_t pid, const uint8_t *address, uint32_t address_bytes)
{
    Shoal__Cluster__V1__RankRecord record = SHOAL__CLUSTER__V1__RANK_RECORD__INIT;
    uint8_t copy[FABRIC_ADDRESS_BYTES_MAX], packed[FABRIC_ADDRESS_BYTES_MAX + 256];
    char host[sizeof store->host->id];
    forget_ranks(store, plan);
    memcpy(copy, address, address_bytes);
    memcpy(host, store->host->id, sizeof host);
    record.rank = rank;
    record.host = host;
    record.pid = pid;
    record.fabric_address.data = copy;
    record.fabric_address.len = address_bytes;
    char *key = mem_format("%sranks/%s/%u/%llu/%u", store->prefix, plan->deployment,
                           plan->ordinal, (unsigned long long)plan->epoch, rank);
    CHECK(shoal__cluster__v1__rank_record__get_packed_size(&record) <= sizeof packed);
    size_t n = shoal__cluster__v1__rank_record__pack(&record, packed);
    agent_store_write(store, key, packed, n, WRITE_LEASED, NULL, plan->epoch);
    free(key);
}

void agent_store_put_loading(agent_store_t *store, const agent_plan_t *plan, uint32_t percent)
{
    Shoal__Cluster__V1__LoadingRecord record = SHOAL__CLUSTER__V1__LOADING_RECORD__INIT;
    uint8_t packed[64];
    char *key = mem_format("%sreplicas/%s/%u/weights/%s", store->prefix, plan->deployment,
                           plan->ordinal, store->host->id);
    record.epoch = plan->epoch;
    record.percent = percent;
    size_t n = shoal__cluster__v1__loading_record__pack(&record, packed);
    write_t *write = store->writes;
    while (write && strcmp(write->key, key) != 0)
        write = write->next;
    if (percent < 100)
        agent_store_write(store, key, packed, n, WRITE_LEASED, NULL, plan->epoch);
    else if (write && write->kind == WRITE_LEASED)
        take_away(store, write);
    free(key);
}

void agent_store_put_active(agent_store_t *store, const agent_plan_t *plan,
                            const control_active_t *active, const int64_t *pids)
{
    Shoal__Cluster__V1__ActiveRecord record = SHOAL__CLUSTER__V1__ACTIVE_RECORD__INIT;
    Shoal__Cluster__V1__RankRecord ranks[FABRIC_RANKS_MAX], *list[FABRIC_RANKS_MAX];
    agent_plan_t *copy = MEM_NEW(agent_plan_t);
    control_active_t words = *active;
    *copy = *plan;
    for (uint32_t i = 0; i < plan->n_ranks; i++) {
        shoal__cluster__v1__rank_record__init(&ranks[i]);
        ranks[i].rank = i;
        ranks[i].host = copy->ranks[i].host;
        ranks[i].pid = pids[i];
        list[i] = &ranks[i];
    }
    record.epoch = plan->epoch;
    record.leader = words.leader;
    record.text_identity = words.text_identity;
    record.kv_tokens = active->kv_tokens;
    record.ranks = list;
    record.n_ranks = plan->n_ranks;
    record.tp = plan->tp;
    record.stages = plan->stages;
    char *key = mem_format("%sreplicas/%s/%u/active", store->prefix, plan->deployment,
                           plan->ordinal);
    char *plan_key = plan_key_of(store, plan);
    uint8_t *packed =
        mem_new(1, shoal__cluster__v1__active_record__get_packed_size(&record) + 1);
    size_t n = shoal__cluster__v1__active_record__pack(&record, packed);
    if (!FAILPOINT("agent.active"))
        agent_store_write(store, key, packed, n, WRITE_GUARDED, plan_key, plan->epoch);
    free(packed);
    free(plan_key);
    free(key);
    free(copy);
}

void agent_store_put_failed(agent_store_t *store, const agent_plan_t *plan,
                            const agent_failure_t *failure)
{
    Shoal__Cluster__V1__FailureRecord record = SHOAL__CLUSTER__V1__FAILURE_RECORD__INIT;
    agent_failure_t *words = MEM_NEW(agent_failure_t);
    char *sessions[CONTROL_SESSIONS_MAX];
    *words = *failure;
    for (uint32_t i = 0; i < failure->n_sessions; i++)
        sessions[i] = words->sessions[i];
    record.epoch = plan->epoch;
    record.rank = failure->rank;
    record.host = words->host;
    record.crashed = failure->crashed;
    record.message = words->text;
    record.other_host = words->other_host;
    record.sessions = sessions;
    record.n_sessions = failure->n_sessions;
    char *key = mem_format("%sreplicas/%s/%u/failed", store->prefix, plan->deployment,
                           plan->ordinal);
    char *plan_key = plan_key_of(store, plan);
    uint8_t *packed =
        mem_new(1, shoal__cluster__v1__failure_record__get_packed_size(&record) + 1);
    size_t n = shoal__cluster__v1__failure_record__pack(&record, packed);
    agent_store_write(store, key, packed, n, WRITE_FAILURE, plan_key, plan->epoch);
    free(packed);
    free(plan_key);
    free(key);
    free(words);
}

void agent_store_put_drain(agent_store_t *store)
{
    char *key = mem_format("%sdrains/%s", store->prefix, store->host->id);
    agent_store_write(store, key, NULL, 0, WRITE_ABSENT, NULL, 0);
    free(key);
}
