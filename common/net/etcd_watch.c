/* A watch that does not lose changes for good: a list, a stream of events from the next revision,
 * and further lists that repair what the stream may have missed.
 *
 * While a list is under way no message is asked of the stream and one that was already asked for is
 * held back. The list is linearizable and starts after the hold, so its revision is at least that
 * of every event delivered before: the list simply becomes the new truth, and events up to its
 * revision are skipped afterwards. */
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/failpoint.h"
#include "common/base/log.h"
#include "common/net/etcd_keys.h"

struct etcd_watch {
    etcd_t *etcd;
    etcd_watch_t *next, *previous;
    unsigned refs; /* the handle's, timers', the list's */
    char *prefix;
    etcd_watch_handlers_t handlers;
    atomic_bool closed;
    bool open;

    etcd_keys_t keys;
    int64_t next_revision; /* the first one that was not told; 0 before the first list */
    int64_t floor;         /* events up to here are in the last list */
    bool synced;           /* some list was delivered */
    bool listing;
    bool regressed;        /* the list under way is after a store that went back */
    unsigned regressions;  /* of the store, at the last list */
    bool must_list;        /* the revision to go on from is gone */
    etcd_stream_t *stream;
    buffer_t held;         /* a message that came during a list */
    bool have_held;
    unsigned attempt;
    bool retry_armed;
    uint64_t reconcile_at_ms;
    bool reconcile_armed;
    pthread_mutex_t counts_lock;
    etcd_watch_counts_t counts;
};

static void list_keys(etcd_watch_t *watch);
static void close_watch(void *context);
static void open_stream(etcd_watch_t *watch);

static void unref(etcd_watch_t *watch)
{
    if (--watch->refs)
        return;
    etcd_keys_release(&watch->keys);
    buffer_release(&watch->held);
    pthread_mutex_destroy(&watch->counts_lock);
    free(watch->prefix);
    free(watch);
}

static bool silent(etcd_watch_t *watch)
{
    return !watch->open || atomic_load(&watch->closed);
}

static void count(etcd_watch_t *watch, uint64_t *counter, uint64_t n)
{
    pthread_mutex_lock(&watch->counts_lock);
    *counter += n;
    pthread_mutex_unlock(&watch->counts_lock);
}

/* ---- timers ---- */

static void retry(void *context)
{
    etcd_watch_t *watch = context;
    watch->retry_armed = false;
    if (watch->open && !atomic_load(&watch->etcd->closing)) {
        if (!watch->synced || watch->must_list)
            list_keys(watch);
        else if (!watch->stream)
            open_stream(watch);
    }
    unref(watch);
}

static void retry_later(etcd_watch_t *watch)
{
    if (watch->retry_armed)
        return;
    watch->retry_armed = true;
    watch->refs++;
    etcd_after(watch->etcd, etcd_backoff(watch->etcd, watch->attempt++), retry, watch);
}

static void reconcile(void *context);

/* Lists after `ms` at the latest; one timer serves all. */
static void reconcile_in(etcd_watch_t *watch, uint64_t ms)
{
    uint64_t at = clock_ms() + ms;
    if (!watch->reconcile_armed || at < watch->reconcile_at_ms) {
        watch->reconcile_at_ms = at;
        watch->reconcile_armed = true;
        watch->refs++;
        etcd_after(watch->etcd, ms, reconcile, watch);
    }
}

static void reconcile(void *context)
{
    etcd_watch_t *watch = context;
    /* A timer that was overtaken by a sooner one finds that it is not its turn. */
    if (watch->open && !atomic_load(&watch->etcd->closing) && watch->reconcile_armed &&
        clock_ms() >= watch->reconcile_at_ms) {
        watch->reconcile_armed = false;
        list_keys(watch);
    }
    unref(watch);
}

/* ---- lists ---- */

static void tell_list(etcd_watch_t *watch, const etcd_result_t *result)
{
    etcd_event_t *events =
        MEM_NEW_ARRAY(etcd_event_t, result->n_kvs + watch->keys.n_keys + 1);
    size_t n = 0;
    arena_t arena = {0};
    for (size_t i = 0; i < watch->keys.n_slots; i++)
        watch->keys.slots[i].seen = false;
    for (size_t i = 0; i < result->n_kvs; i++) {
        const etcd_kv_t *kv = &result->kvs[i];
        const etcd_known_t *known = etcd_keys_find(&watch->keys, kv->key, kv->key_size);
        /* In a store that went back equal revisions may stand for other values. */
        if (!known || known->mod_revision != kv->mod_revision || watch->regressed)
            events[n++] = (etcd_event_t){.from_list = true, .kv = *kv};
        etcd_keys_put(&watch->keys, kv)->seen = true;
    }
    size_t n_puts = n;
    for (size_t i = 0; i < watch->keys.n_slots; i++) {
        const etcd_known_t *known = &watch->keys.slots[i];
        if (known->key && !known->seen)
            events[n++] = (etcd_event_t){
                .deleted = true,
                .from_list = true,
                .kv = {.key = arena_strndup(&arena, known->key, known->key_size),
                       .key_size = known->key_size,
                       .value = (const uint8_t *)"",
                       .mod_revision = result->revision}};
    }
    for (size_t i = n_puts; i < n; i++)
        etcd_keys_remove(&watch->keys,
                         etcd_keys_find(&watch->keys, events[i].kv.key, events[i].kv.key_size));
    if (watch->synced) {
        count(watch, &watch->counts.lists, 1);
        count(watch, &watch->counts.repairs, n);
    }
    if (n && !silent(watch) && watch->handlers.on_events)
        watch->handlers.on_events(watch->handlers.context, events, n);
    arena_release(&arena);
    free(events);
}

static void take_message(etcd_watch_t *watch, const uint8_t *bytes, size_t n);

static void release_held(etcd_watch_t *watch)
{
    if (!watch->have_held)
        return;
    watch->have_held = false;
    buffer_t held = watch->held;
    watch->held = (buffer_t){0};
    take_message(watch, held.data ? held.data : (const uint8_t *)"", held.size);
    buffer_release(&held);
}

static void listed(void *context, const etcd_result_t *result)
{
    etcd_watch_t *watch = context;
    watch->listing = false;
    if (!watch->open) {
        unref(watch);
        return;
    }
    if (result->status != STATUS_OK) {
        /* A stream that lives goes on without the comparison, which is tried again soon. */
        if (watch->stream && watch->synced && !watch->must_list) {
            release_held(watch);
            reconcile_in(watch, etcd_jitter(watch->etcd, watch->etcd->options.backoff_ms_max));
        } else {
            retry_later(watch);
        }
        unref(watch);
        return;
    }
    watch->attempt = 0;
    watch->must_list = false;
    /* A store that went back may have come as far again as this watch had seen it: then another
     * answer, or this one, has told. */
    unsigned regressions = etcd_regressions(watch->etcd);
    if (watch->next_revision && (result->revision < watch->next_revision - 1 ||
                                 regressions != watch->regressions)) {
        watch->regressed = true;
        etcd_stream_drop(watch->stream); /* it waits for revisions of a store that is no more */
        watch->stream = NULL;
        watch->have_held = false;
        if (!silent(watch) && watch->handlers.on_regressed)
            watch->handlers.on_regressed(watch->handlers.context, watch->next_revision - 1,
                                         result->revision);
    }
    tell_list(watch, result);
    watch->regressed = false;
    watch->regressions = regressions;
    watch->synced = true;
    watch->floor = result->revision;
    watch->next_revision = result->revision + 1;
    if (!silent(watch) && watch->handlers.on_synced)
        watch->handlers.on_synced(watch->handlers.context, result->revision);
    reconcile_in(watch, etcd_jitter(watch->etcd, watch->etcd->options.reconcile_ms));
    if (!watch->stream) {
        watch->have_held = false;
        open_stream(watch);
    } else {
        release_held(watch);
    }
    unref(watch);
}

static void list_keys(etcd_watch_t *watch)
{
    if (watch->listing)
        return;
    watch->listing = true;
    watch->refs++;
    etcd_list(watch->etcd, watch->prefix, listed, watch);
}

/* ---- the stream ---- */

static void drop_stream(etcd_watch_t *watch)
{
    etcd_stream_drop(watch->stream);
    watch->stream = NULL;
    watch->have_held = false;
}

static void tell_events(etcd_watch_t *watch, const Etcdserverpb__WatchResponse *response)
{
    arena_t arena = {0};
    if (response->n_events && FAILPOINT("etcd.watch.lose"))
        return; /* so that a test sees whether a lost event is repaired */
    etcd_event_t *events = ARENA_NEW_ARRAY(&arena, etcd_event_t, response->n_events + 1);
    size_t n = 0;
    for (size_t i = 0; i < response->n_events; i++) {
        Etcdserverpb__KeyValue *kv = response->events[i]->kv;
        if (!kv || kv->mod_revision <= watch->floor)
            continue;
        etcd_event_t *event = &events[n++];
        event->deleted = response->events[i]->type == ETCDSERVERPB__EVENT__EVENT_TYPE__DELETE;
        etcd_kvs_from(&arena, &kv, 1, &event->kv);
        etcd_known_t *known = etcd_keys_find(&watch->keys, event->kv.key, event->kv.key_size);
        if (!event->deleted)
            etcd_keys_put(&watch->keys, &event->kv);
        else if (known)
            etcd_keys_remove(&watch->keys, known);
        if (kv->mod_revision >= watch->next_revision)
            watch->next_revision = kv->mod_revision + 1;
    }
    if (n && !silent(watch) && watch->handlers.on_events)
        watch->handlers.on_events(watch->handlers.context, events, n);
    arena_release(&arena);
}

/* The watch cannot go on from its revision, or must not. */
static void start_over(etcd_watch_t *watch)
{
    drop_stream(watch);
    watch->must_list = true;
    list_keys(watch);
}

static void take_response(etcd_watch_t *watch, const Etcdserverpb__WatchResponse *response)
{
    int64_t now = response->header ? response->header->revision : 0;
    if (response->canceled) {
        if (response->compact_revision) {
            log_info("etcd watch of %s: revision %lld is compacted, listing again", watch->prefix,
                     (long long)watch->next_revision);
            count(watch, &watch->counts.compactions, 1);
            start_over(watch);
        } else {
            log_warn("etcd watch of %s was cancelled: %s", watch->prefix, response->cancel_reason);
            drop_stream(watch);
            retry_later(watch);
        }
        return;
    }
    if (response->created && now && now < watch->next_revision - 1) {
        start_over(watch); /* the list finds how far the store went back */
        return;
    }
    /* Events are hints: after each reconnect a list confirms them soon, but not all at once. */
    if (response->created && watch->counts.streams > 1)
        reconcile_in(watch, etcd_jitter(watch->etcd, watch->etcd->options.reconcile_ms / 10));
    watch->attempt = 0;
    tell_events(watch, response);
    if (watch->stream)
        etcd_stream_more(watch->stream);
}

static void take_message(etcd_watch_t *watch, const uint8_t *bytes, size_t n)
{
    rpc_limits_t limits = {ETCD_MESSAGE_BYTES_MAX, 8, 4u << 20, 4u << 20};
    ProtobufCMessage *message;
    if (rpc_unpack(&etcdserverpb__watch_response__descriptor, bytes, n, &limits, &message) !=
        STATUS_OK) {
        log_warn("etcd watch of %s: %s", watch->prefix, status_text());
        start_over(watch);
        return;
    }
    take_response(watch, (const Etcdserverpb__WatchResponse *)(const void *)message);
    rpc_message_free(message);
}

static void stream_message(void *owner, const uint8_t *bytes, size_t n)
{
    etcd_watch_t *watch = owner;
    if (watch->listing) {
        buffer_clear(&watch->held);
        buffer_append(&watch->held, bytes, n);
        watch->have_held = true;
        return;
    }
    take_message(watch, bytes, n);
}

static void stream_end(void *owner, status_t status, const char *message)
{
    etcd_watch_t *watch = owner;
    (void)status;
    log_debug("etcd watch of %s: the stream ended: %s", watch->prefix, message);
    watch->stream = NULL;
    if (!watch->listing)
        watch->have_held = false;
    retry_later(watch);
}

static void open_stream(etcd_watch_t *watch)
{
    static const etcd_stream_handlers_t handlers = {stream_message, stream_end};
    size_t end_size;
    char *end = etcd_prefix_end(watch->prefix, &end_size);
    Etcdserverpb__WatchCreateRequest create = ETCDSERVERPB__WATCH_CREATE_REQUEST__INIT;
    size_t prefix_size = strlen(watch->prefix);
    create.key.data = (uint8_t *)watch->prefix;
    create.key.len = prefix_size ? prefix_size : 1;
    create.range_end.data = (uint8_t *)end;
    create.range_end.len = end_size;
    create.start_revision = watch->next_revision;
    Etcdserverpb__WatchRequest request = ETCDSERVERPB__WATCH_REQUEST__INIT;
    request.request_union_case = ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CREATE_REQUEST;
    request.create_request = &create;
    watch->stream = etcd_stream_open(watch->etcd, "/etcdserverpb.Watch/Watch", &handlers, watch);
    count(watch, &watch->counts.streams, 1);
    if (!etcd_stream_send(watch->stream, &request)) {
        drop_stream(watch);
        retry_later(watch);
    }
    free(end);
}

/* ---- opening and closing ---- */

static void begin(void *context)
{
    etcd_watch_t *watch = context;
    etcd_t *etcd = watch->etcd;
    watch->open = true;
    etcd->n_busy++;
    watch->next = etcd->watches;
    if (watch->next)
        watch->next->previous = watch;
    etcd->watches = watch;
    if (!atomic_load(&etcd->closing))
        list_keys(watch);
    else if (!atomic_exchange(&watch->closed, true))
        close_watch(watch);
}

static void close_watch(void *context)
{
    etcd_watch_t *watch = context;
    etcd_t *etcd = watch->etcd;
    watch->open = false;
    etcd->n_busy--;
    if (watch->previous)
        watch->previous->next = watch->next;
    else
        etcd->watches = watch->next;
    if (watch->next)
        watch->next->previous = watch->previous;
    drop_stream(watch);
    if (watch->handlers.on_closed)
        watch->handlers.on_closed(watch->handlers.context);
    unref(watch);
}

void etcd_watches_close(etcd_t *etcd)
{
    /* Those that the user has closed have a task of their own in the queue. */
    for (etcd_watch_t *watch = etcd->watches, *next; watch; watch = next) {
        next = watch->next;
        if (!atomic_exchange(&watch->closed, true))
            close_watch(watch);
    }
}

etcd_watch_t *etcd_watch_open(etcd_t *etcd, const char *prefix,
                              const etcd_watch_handlers_t *handlers)
{
    etcd_watch_t *watch = MEM_NEW(etcd_watch_t);
    watch->etcd = etcd;
    watch->refs = 1;
    watch->prefix = mem_strdup(prefix);
    watch->handlers = *handlers;
    pthread_mutex_init(&watch->counts_lock, NULL);
    etcd_post(etcd, begin, watch);
    return watch;
}

void etcd_watch_close(etcd_watch_t *take_watch)
{
    atomic_store(&take_watch->closed, true);
    etcd_post(take_watch->etcd, close_watch, take_watch);
}

static void reconcile_now(void *context)
{
    etcd_watch_t *watch = context;
    if (watch->open && watch->synced)
        list_keys(watch);
}

void etcd_watch_reconcile(etcd_watch_t *watch)
{
    etcd_post(watch->etcd, reconcile_now, watch);
}

etcd_watch_counts_t etcd_watch_counts(etcd_watch_t *watch)
{
    pthread_mutex_lock(&watch->counts_lock);
    etcd_watch_counts_t counts = watch->counts;
    pthread_mutex_unlock(&watch->counts_lock);
    return counts;
}
