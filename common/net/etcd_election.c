/* An election: each candidate puts a key under its lease; the one with the lowest create-revision
 * is elected. What is true is what the watch of the prefix shows; the transaction that puts the own
 * key is only a wish. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/net/etcd_internal.h"

typedef struct {
    char *key;
    int64_t create_revision;
    uint8_t *value;
    size_t value_size;
} candidate_t;

struct etcd_election {
    etcd_t *etcd;
    etcd_election_t *next, *previous;
    unsigned refs; /* the handle's, the watch's, the transaction's, the timer's */
    char *key;
    int64_t lease;
    uint8_t *value;
    size_t value_size;
    etcd_election_handlers_t handlers;
    atomic_bool closed;
    bool open;
    bool resign;
    etcd_watch_t *watch;
    bool synced;
    bool lease_lost;
    bool campaigning;   /* a transaction or its retry is under way */
    bool told_elected;
    int64_t told_leader; /* create-revision of the last on_leader */
    unsigned attempt;
    candidate_t *candidates;
    size_t n_candidates, candidates_capacity;
};

static void unref(etcd_election_t *election)
{
    if (--election->refs)
        return;
    for (size_t i = 0; i < election->n_candidates; i++) {
        free(election->candidates[i].key);
        free(election->candidates[i].value);
    }
    free(election->candidates);
    free(election->key);
    free(election->value);
    free(election);
}

static bool silent(etcd_election_t *election)
{
    return !election->open || atomic_load(&election->closed);
}

/* ---- campaigning ---- */

static void campaign(etcd_election_t *election);
static void close_election(void *context);

static void campaign_again(void *context)
{
    etcd_election_t *election = context;
    election->campaigning = false;
    campaign(election);
    unref(election);
}

static void campaigned(void *context, const etcd_result_t *result)
{
    etcd_election_t *election = context;
    if (result->status == STATUS_OK) {
        election->attempt = 0;
        election->campaigning = false;
    } else if (result->status == STATUS_NOT_FOUND) {
        election->lease_lost = true; /* the owner of the lease hears of it and closes us */
        election->campaigning = false;
    } else if (election->open && !atomic_load(&election->etcd->closing)) {
        election->refs++;
        etcd_after(election->etcd, etcd_backoff(election->etcd, election->attempt++),
                   campaign_again, election);
    }
    unref(election);
}

/* Puts the own key unless it is there. */
static void campaign(etcd_election_t *election)
{
    if (!election->open || election->campaigning || election->lease_lost ||
        atomic_load(&election->etcd->closing))
        return;
    election->campaigning = true;
    election->refs++;
    etcd_compare_t absent = {.key = election->key, .target = ETCD_CREATE_REVISION};
    etcd_op_t put = {.kind = ETCD_PUT,
                     .key = election->key,
                     .value = election->value,
                     .value_size = election->value_size,
                     .lease = election->lease};
    etcd_txn_t txn = {.compares = &absent, .n_compares = 1, .then = &put, .n_then = 1};
    etcd_txn(election->etcd, &txn, campaigned, election);
}

/* ---- what the watch shows ---- */

static candidate_t *find(etcd_election_t *election, const char *key)
{
    for (size_t i = 0; i < election->n_candidates; i++)
        if (strcmp(election->candidates[i].key, key) == 0)
            return &election->candidates[i];
    return NULL;
}

static void apply(etcd_election_t *election, const etcd_event_t *event)
{
    candidate_t *candidate = find(election, event->kv.key);
    if (event->deleted) {
        if (!candidate)
            return;
        free(candidate->key);
        free(candidate->value);
        *candidate = election->candidates[--election->n_candidates];
        return;
    }
    if (!candidate) {
        MEM_GROW(election->candidates, election->candidates_capacity, election->n_candidates + 1);
        candidate = &election->candidates[election->n_candidates++];
        *candidate = (candidate_t){.key = mem_strndup(event->kv.key, event->kv.key_size)};
    }
    free(candidate->value);
    candidate->value = mem_new(event->kv.value_size + 1, 1);
    memcpy(candidate->value, event->kv.value, event->kv.value_size);
    candidate->value_size = event->kv.value_size;
    candidate->create_revision = event->kv.create_revision;
}

/* Compares what is with what was told, and tells the difference. */
static void judge(etcd_election_t *election)
{
    const candidate_t *first = NULL;
    for (size_t i = 0; i < election->n_candidates; i++)
        if (!first || election->candidates[i].create_revision < first->create_revision)
            first = &election->candidates[i];
    bool elected = first && strcmp(first->key, election->key) == 0;
    int64_t leader = first ? first->create_revision : 0;
    bool changed = leader != election->told_leader;
    election->told_leader = leader;
    /* A new own key is another term: the old fence is void before the new one is told. */
    if (election->told_elected && (!elected || changed)) {
        election->told_elected = false;
        if (!silent(election) && election->handlers.on_deposed)
            election->handlers.on_deposed(election->handlers.context);
    }
    if (changed && !silent(election) && election->handlers.on_leader)
        election->handlers.on_leader(election->handlers.context, first ? first->value : NULL,
                                     first ? first->value_size : 0, leader);
    if (elected && !election->told_elected) {
        election->told_elected = true;
        if (!silent(election) && election->handlers.on_elected)
            election->handlers.on_elected(election->handlers.context, leader);
    }
}

static void watch_events(void *context, const etcd_event_t *events, size_t n)
{
    etcd_election_t *election = context;
    bool own_gone = false;
    for (size_t i = 0; i < n; i++) {
        apply(election, &events[i]);
        if (strcmp(events[i].kv.key, election->key) == 0)
            own_gone = events[i].deleted;
    }
    if (!election->synced)
        return; /* half a list decides nothing */
    judge(election);
    if (own_gone)
        campaign(election);
}

static void watch_synced(void *context, int64_t revision)
{
    (void)revision;
    etcd_election_t *election = context;
    election->synced = true;
    judge(election);
    if (!find(election, election->key))
        campaign(election);
}

static void watch_closed(void *context)
{
    etcd_election_t *election = context;
    unref(election);
}

/* ---- opening and closing ---- */

static void begin(void *context)
{
    static const etcd_watch_handlers_t handlers = {
        .on_events = watch_events, .on_synced = watch_synced, .on_closed = watch_closed};
    etcd_election_t *election = context;
    etcd_t *etcd = election->etcd;
    election->open = true;
    etcd->n_busy++;
    election->next = etcd->elections;
    if (election->next)
        election->next->previous = election;
    etcd->elections = election;
    if (atomic_load(&etcd->closing)) {
        if (!atomic_exchange(&election->closed, true))
            close_election(election);
        return;
    }
    etcd_watch_handlers_t with_context = handlers;
    with_context.context = election;
    char *prefix = mem_strndup(election->key,
                               (size_t)(strrchr(election->key, '/') - election->key) + 1);
    election->refs++;
    election->watch = etcd_watch_open(etcd, prefix, &with_context);
    free(prefix);
}

static void ignore(void *context, const etcd_result_t *result)
{
    (void)context;
    (void)result;
}

static void close_election(void *context)
{
    etcd_election_t *election = context;
    etcd_t *etcd = election->etcd;
    election->open = false;
    etcd->n_busy--;
    if (election->previous)
        election->previous->next = election->next;
    else
        etcd->elections = election->next;
    if (election->next)
        election->next->previous = election->previous;
    if (election->watch)
        etcd_watch_close(election->watch);
    if (election->resign) {
        Etcdserverpb__DeleteRangeRequest request = ETCDSERVERPB__DELETE_RANGE_REQUEST__INIT;
        request.key.data = (uint8_t *)election->key;
        request.key.len = strlen(election->key);
        etcd_call(etcd, ETCD_CALL_RESIGN, &request, STATUS_OK, ignore, NULL);
    }
    if (election->handlers.on_closed)
        election->handlers.on_closed(election->handlers.context);
    unref(election);
}

void etcd_elections_close(etcd_t *etcd)
{
    /* Those that the user has closed have a task of their own in the queue. */
    for (etcd_election_t *election = etcd->elections, *next; election; election = next) {
        next = election->next;
        if (!atomic_exchange(&election->closed, true))
            close_election(election);
    }
}

etcd_election_t *etcd_election_open(etcd_t *etcd, const char *prefix, int64_t lease,
                                    const void *value, size_t value_size,
                                    const etcd_election_handlers_t *handlers)
{
    etcd_election_t *election = MEM_NEW(etcd_election_t);
    election->etcd = etcd;
    election->refs = 1;
    election->key = mem_format("%s/%016" PRIx64, prefix, (uint64_t)lease);
    election->lease = lease;
    election->value = mem_new(value_size + 1, 1);
    memcpy(election->value, value, value_size);
    election->value_size = value_size;
    election->handlers = *handlers;
    etcd_post(etcd, begin, election);
    return election;
}

etcd_compare_t etcd_election_compare(etcd_election_t *election, int64_t create_revision)
{
    return (etcd_compare_t){
        .key = election->key, .target = ETCD_CREATE_REVISION, .number = create_revision};
}

void etcd_election_close(etcd_election_t *take_election, bool resign)
{
    atomic_store(&take_election->closed, true);
    take_election->resign = resign;
    etcd_post(take_election->etcd, close_election, take_election);
}
