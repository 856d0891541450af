/* etcd for the core: watches into KEY and LISTED events, transactions, ranges.
 *
 * While etcd is not trusted (it went back in revision, so it was emptied or restored) the changes
 * it tells are held back: they would dissolve every replica, and the promise is that serving goes
 * on until an operator has decided. They are handed over, in order, once it is trusted. When they
 * become too many, or etcd is known to be foreign, they are dropped instead: the core is told that
 * etcd is foreign, and lists everything anew when that is over. */
#include <stdlib.h>
#include <string.h>

#include "common/base/failpoint.h"
#include "coordinator/stores_state.h"

struct watch {
    watch_t *next;
    shell_t *shell;
    char *prefix; /* as the core named it */
    etcd_watch_t *watch;
    bool closed;
};

enum { HELD_KEYS_MAX = 65536, HELD_BYTES_MAX = 64 << 20 };

/* Changes of one callback, or (n == 0) the news that all was listed. */
struct held {
    held_t *next;
    watch_t *watch;
    arena_t arena;
    core_key_t *keys;
    size_t n, bytes; /* keys and bytes of their values */
    uint64_t revision;
    bool closed; /* the last one of this watch */
};

char *stores_key(const shell_t *shell, const char *key)
{
    return mem_format("/shoal/%s/%s", shell->options.cluster, key);
}

/* The core's name of a key of etcd. */
static const char *short_key(const shell_t *shell, const char *key)
{
    size_t n = sizeof "/shoal//" - 1 + strlen(shell->options.cluster);
    return strlen(key) >= n ? key + n : key;
}

static core_key_t copy_kv(const shell_t *shell, arena_t *arena, const etcd_kv_t *kv, bool deleted)
{
    const char *key = short_key(shell, kv->key);
    core_key_t out = {.key = arena_strndup(arena, key, strlen(key)),
                      .mod_revision = (uint64_t)kv->mod_revision,
                      .create_revision = (uint64_t)kv->create_revision};
    if (!deleted) {
        uint8_t *value = ARENA_NEW_ARRAY(arena, uint8_t, kv->value_size + 1);
        if (kv->value_size)
            memcpy(value, kv->value, kv->value_size);
        out.value = value;
        out.value_size = kv->value_size;
    }
    return out;
}

static void tell(shell_t *shell, held_t *take_held, bool drop)
{
    watch_t *watch = take_held->watch;
    drop = drop || watch->closed;
    for (size_t i = 0; i < take_held->n && !drop; i++)
        shell_event(shell,
                    &(core_event_t){.kind = CORE_EVENT_KEY, .key = take_held->keys[i]});
    if (!take_held->n && !take_held->closed && !drop)
        shell_event(shell,
                    &(core_event_t){.kind = CORE_EVENT_LISTED,
                                    .listed = {watch->prefix, take_held->revision}});
    if (take_held->closed) {
        free(watch->prefix);
        free(watch);
    }
    arena_release(&take_held->arena);
    free(take_held);
}

static void let_go(shell_t *shell, bool drop)
{
    stores_t *stores = shell->stores;
    stores->held_keys = stores->held_bytes = 0;
    for (held_t *held; (held = stores->held);) {
        stores->held = held->next;
        if (!stores->held)
            stores->held_tail = &stores->held;
        tell(shell, held, drop);
    }
}

void stores_release_held(shell_t *shell)
{
    let_go(shell, false);
}

static void on_change(shell_t *shell, void *take_data)
{
    held_t *held = take_data;
    stores_t *stores = shell->stores;
    held->next = NULL;
    *stores->held_tail = held;
    stores->held_tail = &held->next;
    stores->held_keys += held->n;
    stores->held_bytes += held->bytes;
    if (stores->etcd_trusted || !atomic_load(&shell->running)) {
        let_go(shell, false);
        return;
    }
    bool full = stores->held_keys > HELD_KEYS_MAX || stores->held_bytes > HELD_BYTES_MAX ||
                FAILPOINT("coordinator.held");
    if (full && stores->etcd_told != CORE_STORE_FOREIGN)
        stores_freeze_etcd(shell, "etcd changes while it is not known whether it is still this "
                                  "cluster's: what it says is dropped, and plans wait until it "
                                  "has been compared with redis and listed anew");
    if (stores->etcd_told == CORE_STORE_FOREIGN)
        let_go(shell, true);
}

static void on_events(void *context, const etcd_event_t *events, size_t n)
{
    watch_t *watch = context;
    held_t *held = MEM_NEW(held_t);
    held->watch = watch;
    held->keys = ARENA_NEW_ARRAY(&held->arena, core_key_t, n);
    held->n = n;
    for (size_t i = 0; i < n; i++) {
        held->keys[i] = copy_kv(watch->shell, &held->arena, &events[i].kv, events[i].deleted);
        held->bytes += held->keys[i].value_size;
    }
    shell_post(watch->shell, on_change, held);
}

static void on_synced(void *context, int64_t revision)
{
    watch_t *watch = context;
    held_t *held = MEM_NEW(held_t);
    held->watch = watch;
    held->revision = (uint64_t)revision;
    shell_post(watch->shell, on_change, held);
}

static void distrust(shell_t *shell, void *take_data)
{
    (void)take_data;
    if (shell->stores->etcd_trusted)
        log_error("etcd went back in revision: it was emptied or restored; its keys are held back");
    shell->stores->etcd_trusted = false;
    stores_verify(shell);
}

static void on_regressed(void *context, int64_t seen, int64_t now)
{
    (void)seen;
    (void)now;
    watch_t *watch = context;
    shell_post(watch->shell, distrust, NULL);
}

static void on_closed(void *context)
{
    watch_t *watch = context;
    held_t *held = MEM_NEW(held_t);
    held->watch = watch;
    held->closed = true;
    shell_post(watch->shell, on_change, held);
}

void stores_watch(shell_t *shell, const core_action_t *action)
{
    watch_t *watch = MEM_NEW(watch_t);
    watch->shell = shell;
    watch->prefix = mem_strdup(action->watch.prefix);
    watch->next = shell->stores->watches;
    shell->stores->watches = watch;
    etcd_watch_handlers_t handlers = {on_events, on_synced, on_regressed, on_closed, watch};
    char *prefix = stores_key(shell, watch->prefix);
    watch->watch = etcd_watch_open(shell->etcd, prefix, &handlers);
    free(prefix);
}

void stores_unwatch(shell_t *shell, const core_action_t *action)
{
    for (watch_t **at = &shell->stores->watches; *at; at = &(*at)->next) {
        watch_t *watch = *at;
        if (strcmp(watch->prefix, action->watch.prefix) != 0)
            continue;
        *at = watch->next;
        watch->closed = true;
        etcd_watch_close(watch->watch);
        return;
    }
}

void stores_etcd_begin(shell_t *shell)
{
    shell->stores->held_tail = &shell->stores->held;
}

void stores_etcd_close(shell_t *shell)
{
    /* Each watch's memory is released by the last note of it, which etcd_watch_close brings. */
    while (shell->stores->watches) {
        watch_t *watch = shell->stores->watches;
        shell->stores->watches = watch->next;
        watch->closed = true;
        etcd_watch_close(watch->watch);
    }
}

/* ---- transactions and ranges ---- */

typedef struct {
    shell_t *shell;
    uint64_t op;
    bool known, succeeded;
    uint64_t revision;
    arena_t arena;
    core_key_t *keys;
    size_t n;
} answer_t;

static void on_txn_answer(shell_t *shell, void *take_data)
{
    answer_t *a = take_data;
    shell_event(shell, &(core_event_t){.kind = CORE_EVENT_TXN_DONE,
                                       .txn_done = {a->op, a->known, a->succeeded, a->revision}});
    free(a);
}

static void on_txn(void *context, const etcd_result_t *result)
{
    answer_t *a = context;
    /* What etcd itself refused did not happen; anything else may have. */
    a->known = result->status == STATUS_OK || result->status == STATUS_INVALID ||
               result->status == STATUS_REFUSED;
    a->succeeded = result->status == STATUS_OK && result->succeeded;
    a->revision = (uint64_t)result->revision;
    if (result->status != STATUS_OK)
        log_warn("etcd: a transaction ended with %s: %s", status_name(result->status),
                 result->message);
    shell_post(a->shell, on_txn_answer, a);
}

void stores_txn(shell_t *shell, const core_action_t *action)
{
    arena_t arena = {0};
    size_t n_compares = action->txn.n_compares, n_writes = action->txn.n_writes;
    etcd_compare_t *compares = ARENA_NEW_ARRAY(&arena, etcd_compare_t, n_compares + 1);
    etcd_op_t *ops = ARENA_NEW_ARRAY(&arena, etcd_op_t, n_writes + 1);
    bool plan = false;
    for (size_t i = 0; i < n_compares; i++) {
        const core_compare_t *from = &action->txn.compares[i];
        char *key = stores_key(shell, from->key);
        compares[i] = (etcd_compare_t){
            .key = arena_strndup(&arena, key, strlen(key)),
            .target = from->on_create ? ETCD_CREATE_REVISION : ETCD_MOD_REVISION,
            .relation = ETCD_EQUAL,
            .number = (int64_t)from->revision};
        free(key);
    }
    for (size_t i = 0; i < n_writes; i++) {
        const core_write_t *from = &action->txn.writes[i];
        char *key = stores_key(shell, from->key);
        ops[i] = (etcd_op_t){.kind = from->value ? ETCD_PUT : ETCD_DELETE,
                             .key = arena_strndup(&arena, key, strlen(key)),
                             .value = from->value,
                             .value_size = from->value_size};
        plan = plan || (from->value && strstr(from->key, "/plan"));
        free(key);
    }
    if (plan)
        (void)FAILPOINT("coordinator.plan");
    answer_t *a = MEM_NEW(answer_t);
    a->shell = shell;
    a->op = action->op;
    etcd_txn_t txn = {.compares = compares, .n_compares = n_compares, .then = ops,
                      .n_then = n_writes};
    etcd_txn(shell->etcd, &txn, on_txn, a);
    arena_release(&arena);
}

static void on_range_answer(shell_t *shell, void *take_data)
{
    answer_t *a = take_data;
    shell_event(shell, &(core_event_t){.kind = CORE_EVENT_RANGE_DONE,
                                       .range_done = {a->op, a->known, a->keys, a->n}});
    arena_release(&a->arena);
    free(a);
}

static void on_range(void *context, const etcd_result_t *result)
{
    answer_t *a = context;
    a->known = result->status == STATUS_OK;
    if (a->known) {
        a->keys = ARENA_NEW_ARRAY(&a->arena, core_key_t, result->n_kvs + 1);
        a->n = result->n_kvs;
        for (size_t i = 0; i < a->n; i++)
            a->keys[i] = copy_kv(a->shell, &a->arena, &result->kvs[i], false);
    }
    shell_post(a->shell, on_range_answer, a);
}

void stores_range(shell_t *shell, const core_action_t *action)
{
    answer_t *a = MEM_NEW(answer_t);
    a->shell = shell;
    a->op = action->op;
    char *prefix = stores_key(shell, action->watch.prefix);
    etcd_list(shell->etcd, prefix, on_range, a);
    free(prefix);
}
