/* Watches against a real etcd: order, resumption, compaction, lost events, emptied stores. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/failpoint.h"
#include "common/base/memory.h"
#include "etcd_server.h"
#include "tcp_proxy.h"

static etcd_server_t server;
static rpc_io_t *io;
static char failpoint_file[64];

/* What a watch told: the state that follows from it, and every event in a row of text. */
typedef struct {
    pthread_mutex_t lock;
    char keys[4096][32];
    char values[4096][16];
    size_t n_keys;
    buffer_t told; /* "+a=1 -b ~c=2 ": put, delete, and ~ for what a list found */
    int64_t last_revision;   /* of an event */
    int64_t synced_revision; /* up to which all was told */
    atomic_uint synced, regressed, closed, disorder;
} seen_keys_t;

static void remember(seen_keys_t *seen_keys, const etcd_event_t *event)
{
    const char *key = strrchr(event->kv.key, '/') + 1;
    buffer_format(&seen_keys->told, "%s%s%s", event->from_list ? "~" : "",
                  event->deleted ? "-" : "+", key);
    if (!event->deleted)
        buffer_format(&seen_keys->told, "=%.*s", (int)event->kv.value_size, event->kv.value);
    buffer_append_text(&seen_keys->told, " ");
    size_t i = 0;
    while (i < seen_keys->n_keys && strcmp(seen_keys->keys[i], key) != 0)
        i++;
    if (event->deleted) {
        if (i < seen_keys->n_keys) {
            size_t last = --seen_keys->n_keys;
            memmove(seen_keys->keys[i], seen_keys->keys[last], sizeof seen_keys->keys[i]);
            memmove(seen_keys->values[i], seen_keys->values[last], sizeof seen_keys->values[i]);
        }
        return;
    }
    if (i == seen_keys->n_keys)
        seen_keys->n_keys++;
    snprintf(seen_keys->keys[i], sizeof seen_keys->keys[i], "%s", key);
    snprintf(seen_keys->values[i], sizeof seen_keys->values[i], "%.*s", (int)event->kv.value_size,
             event->kv.value);
}

static void on_events(void *context, const etcd_event_t *events, size_t n)
{
    seen_keys_t *seen_keys = context;
    pthread_mutex_lock(&seen_keys->lock);
    for (size_t i = 0; i < n; i++) {
        remember(seen_keys, &events[i]);
        if (events[i].from_list)
            continue;
        if (events[i].kv.mod_revision < seen_keys->last_revision ||
            events[i].kv.mod_revision <= seen_keys->synced_revision)
            atomic_fetch_add(&seen_keys->disorder, 1);
        seen_keys->last_revision = events[i].kv.mod_revision;
    }
    pthread_mutex_unlock(&seen_keys->lock);
}

static void on_synced(void *context, int64_t revision)
{
    seen_keys_t *seen_keys = context;
    pthread_mutex_lock(&seen_keys->lock);
    seen_keys->synced_revision = revision;
    pthread_mutex_unlock(&seen_keys->lock);
    atomic_fetch_add(&seen_keys->synced, 1);
}

static void on_regressed(void *context, int64_t before, int64_t now)
{
    seen_keys_t *seen_keys = context;
    if (before > now)
        atomic_fetch_add(&seen_keys->regressed, 1);
    pthread_mutex_lock(&seen_keys->lock);
    seen_keys->last_revision = seen_keys->synced_revision = 0;
    pthread_mutex_unlock(&seen_keys->lock);
}

static void on_closed(void *context)
{
    atomic_fetch_add(&((seen_keys_t *)context)->closed, 1);
}

static etcd_watch_t *open_watch(etcd_t *etcd, const char *prefix, seen_keys_t **own_out)
{
    *own_out = MEM_NEW(seen_keys_t);
    pthread_mutex_init(&(*own_out)->lock, NULL);
    etcd_watch_handlers_t handlers = {on_events, on_synced, on_regressed, on_closed, *own_out};
    return etcd_watch_open(etcd, prefix, &handlers);
}

static void free_seen(seen_keys_t *take_seen)
{
    assert_int_equal(take_seen->closed, 1);
    assert_int_equal(take_seen->disorder, 0);
    buffer_release(&take_seen->told);
    free(take_seen);
}

static bool told(seen_keys_t *seen_keys, const char *text)
{
    pthread_mutex_lock(&seen_keys->lock);
    bool yes = strcmp(buffer_text(&seen_keys->told), text) == 0;
    pthread_mutex_unlock(&seen_keys->lock);
    return yes;
}

static void forget_told(seen_keys_t *seen_keys)
{
    pthread_mutex_lock(&seen_keys->lock);
    buffer_clear(&seen_keys->told);
    pthread_mutex_unlock(&seen_keys->lock);
}

/* Whether what the watch told adds up to "a=1 b=2 " (keys sorted by the caller's expectation). */
static bool holds(seen_keys_t *seen_keys, const char *key, const char *value)
{
    bool found = false;
    pthread_mutex_lock(&seen_keys->lock);
    for (size_t i = 0; i < seen_keys->n_keys; i++)
        if (strcmp(seen_keys->keys[i], key) == 0)
            found = value && strcmp(seen_keys->values[i], value) == 0;
    if (!value) {
        found = true;
        for (size_t i = 0; i < seen_keys->n_keys; i++)
            found = found && strcmp(seen_keys->keys[i], key) != 0;
    }
    pthread_mutex_unlock(&seen_keys->lock);
    return found;
}

static void test_a_watch_tells_what_is_and_then_each_change_in_order(void **state)
{
    (void)state;
    etcd_t *etcd = etcd_server_client(&server, io, NULL);
    must_put(etcd, "/w1/a", "1", 0);
    must_put(etcd, "/w1/b", "2", 0);
    must_put(etcd, "/w10", "outside", 0);
    seen_keys_t *seen_keys;
    etcd_watch_t *watch = open_watch(etcd, "/w1/", &seen_keys);
    wait_for(seen_keys->synced == 1);
    assert_true(told(seen_keys, "~+a=1 ~+b=2 "));
    must_put(etcd, "/w1/a", "3", 0);
    must_delete(etcd, "/w1/b");
    must_put(etcd, "/w1/c", "4", 0);
    must_put(etcd, "/w10", "outside", 0);
    must_put(etcd, "/w1/c", "5", 0);
    wait_for(told(seen_keys, "~+a=1 ~+b=2 +a=3 -b +c=4 +c=5 "));
    etcd_watch_close(watch);
    wait_for(seen_keys->closed == 1);
    etcd_close(etcd);
    free_seen(seen_keys);
}

/* A client behind a relay that can be cut, and one that writes meanwhile. */
typedef struct {
    tcp_proxy_t proxy;
    etcd_t *direct, *behind;
    seen_keys_t *seen_keys;
    etcd_watch_t *watch;
} cut_t;

static void open_cut(cut_t *cut, const char *prefix)
{
    tcp_proxy_open(&cut->proxy, server.client_port);
    char *endpoint = mem_format("127.0.0.1:%u", cut->proxy.port);
    /* No comparison in between: what is told comes from the stream alone. */
    etcd_options_t options = {.endpoints = endpoint, .reconcile_ms = 600000};
    cut->direct = etcd_server_client(&server, io, NULL);
    cut->behind = etcd_server_client(&server, io, &options);
    cut->watch = open_watch(cut->behind, prefix, &cut->seen_keys);
    wait_for(cut->seen_keys->synced == 1);
    free(endpoint);
}

static void close_cut(cut_t *cut)
{
    etcd_close(cut->behind);
    etcd_close(cut->direct);
    tcp_proxy_close(&cut->proxy);
    free_seen(cut->seen_keys);
}

static void test_a_cut_watch_resumes_without_a_gap_or_a_repeat(void **state)
{
    (void)state;
    cut_t cut;
    open_cut(&cut, "/w2/");
    must_put(cut.direct, "/w2/a", "1", 0);
    wait_for(told(cut.seen_keys, "+a=1 "));
    for (int round = 0; round < 3; round++) {
        forget_told(cut.seen_keys);
        tcp_proxy_cut(&cut.proxy);
        must_put(cut.direct, "/w2/a", "2", 0);
        must_put(cut.direct, "/w2/a", "3", 0);
        must_delete(cut.direct, "/w2/a");
        must_put(cut.direct, "/w2/b", "4", 0);
        assert_true(told(cut.seen_keys, ""));
        tcp_proxy_join(&cut.proxy);
        wait_for(told(cut.seen_keys, "+a=2 +a=3 -a +b=4 "));
    }
    assert_true(etcd_watch_counts(cut.watch).streams >= 4);
    assert_int_equal(etcd_watch_counts(cut.watch).repairs, 0);
    close_cut(&cut);
}

static void test_compaction_during_a_cut_is_survived_by_listing_again(void **state)
{
    (void)state;
    cut_t cut;
    must_put((open_cut(&cut, "/w3/"), cut.direct), "/w3/keep", "1", 0);
    must_put(cut.direct, "/w3/gone", "1", 0);
    must_put(cut.direct, "/w3/changed", "1", 0);
    wait_for(told(cut.seen_keys, "+keep=1 +gone=1 +changed=1 "));
    forget_told(cut.seen_keys);
    tcp_proxy_cut(&cut.proxy);
    must_delete(cut.direct, "/w3/gone");
    must_put(cut.direct, "/w3/changed", "2", 0);
    must_put(cut.direct, "/w3/changed", "3", 0);
    int64_t last = must_put(cut.direct, "/w3/new", "1", 0);
    etcd_waiter_t *waiter = etcd_waiter_new();
    etcd_compact(cut.direct, last, etcd_wait_done, waiter);
    assert_int_equal(etcd_wait(waiter, NULL), STATUS_OK);
    tcp_proxy_join(&cut.proxy);
    /* The difference between then and now, and nothing about what is as it was. */
    wait_for(told(cut.seen_keys, "~+changed=3 ~+new=1 ~-gone "));
    assert_int_equal(etcd_watch_counts(cut.watch).compactions, 1);
    must_put(cut.direct, "/w3/keep", "2", 0);
    wait_for(told(cut.seen_keys, "~+changed=3 ~+new=1 ~-gone +keep=2 "));
    close_cut(&cut);
}

static void set_failpoints(const char *list)
{
    FILE *file = fopen(failpoint_file, "w");
    assert_non_null(file);
    fputs(list, file);
    assert_int_equal(fclose(file), 0);
}

static void test_a_lost_event_is_repaired_by_the_next_comparison(void **state)
{
    (void)state;
    etcd_t *etcd = etcd_server_client(&server, io, NULL);
    must_put(etcd, "/w4/gone", "1", 0);
    seen_keys_t *seen_keys;
    etcd_watch_t *watch = open_watch(etcd, "/w4/", &seen_keys);
    wait_for(seen_keys->synced == 1);
    set_failpoints("etcd.watch.lose=error@*");
    must_delete(etcd, "/w4/gone");
    must_put(etcd, "/w4/new", "1", 0);
    usleep(200000);
    set_failpoints("");
    assert_true(holds(seen_keys, "gone", "1"));
    assert_true(holds(seen_keys, "new", NULL));
    etcd_watch_reconcile(watch);
    wait_for(seen_keys->synced == 2);
    assert_true(holds(seen_keys, "gone", NULL));
    assert_true(holds(seen_keys, "new", "1"));
    assert_int_equal(etcd_watch_counts(watch).repairs, 2);
    must_put(etcd, "/w4/new", "2", 0);
    wait_for(holds(seen_keys, "new", "2"));
    etcd_close(etcd);
    free_seen(seen_keys);
}

static void test_a_killed_and_a_stopped_etcd_leave_the_watch_working(void **state)
{
    (void)state;
    etcd_t *etcd = etcd_server_client(&server, io, NULL);
    seen_keys_t *seen_keys;
    open_watch(etcd, "/w5/", &seen_keys);
    wait_for(seen_keys->synced == 1);
    etcd_server_kill(&server);
    etcd_server_restart(&server);
    assert_int_equal(etcd_wait_ready(etcd, 20000), STATUS_OK);
    must_put(etcd, "/w5/a", "1", 0);
    wait_for(holds(seen_keys, "a", "1"));
    etcd_server_stop(&server);
    usleep(300000);
    etcd_server_continue(&server);
    must_put(etcd, "/w5/a", "2", 0);
    wait_for(holds(seen_keys, "a", "2"));
    assert_int_equal(seen_keys->regressed, 0);
    etcd_close(etcd);
    free_seen(seen_keys);
}

static void test_comparing_all_the_time_beside_writes_tells_the_truth_in_the_end(void **state)
{
    (void)state;
    etcd_options_t often = {.reconcile_ms = 20, .page_keys = 5};
    etcd_t *etcd = etcd_server_client(&server, io, &often);
    seen_keys_t *seen_keys;
    etcd_watch_t *watch = open_watch(etcd, "/w6/", &seen_keys);
    unsigned random = 1;
    for (int i = 0; i < 400; i++) {
        char key[32];
        char value[16];
        random = random * 1664525 + 1013904223;
        snprintf(key, sizeof key, "/w6/%u", random >> 28);
        snprintf(value, sizeof value, "%d", i);
        if (random >> 20 & 1)
            must_put(etcd, key, value, 0);
        else
            must_delete(etcd, key);
    }
    must_put(etcd, "/w6/end", "1", 0);
    wait_for(holds(seen_keys, "end", "1"));
    assert_true(etcd_watch_counts(watch).lists > 5);
    etcd_waiter_t *waiter = etcd_waiter_new();
    etcd_result_t *result;
    etcd_list(etcd, "/w6/", etcd_wait_done, waiter);
    assert_int_equal(etcd_wait(waiter, &result), STATUS_OK);
    assert_int_equal(result->n_kvs, seen_keys->n_keys);
    for (size_t i = 0; i < result->n_kvs; i++) {
        char *value = mem_strndup((const char *)result->kvs[i].value, result->kvs[i].value_size);
        assert_true(holds(seen_keys, result->kvs[i].key + 4, value));
        free(value);
    }
    etcd_result_free(result);
    etcd_close(etcd);
    free_seen(seen_keys);
}

static void test_an_emptied_store_is_told_and_its_new_content_too(void **state)
{
    (void)state;
    etcd_t *etcd = etcd_server_client(&server, io, NULL);
    must_put(etcd, "/w7/old", "1", 0);
    must_put(etcd, "/w7/same", "1", 0);
    seen_keys_t *seen_keys;
    open_watch(etcd, "/w7/", &seen_keys);
    wait_for(seen_keys->synced == 1);
    etcd_server_kill(&server);
    etcd_server_wipe(&server);
    etcd_server_restart(&server);
    wait_for(seen_keys->regressed == 1);
    wait_for(holds(seen_keys, "old", NULL) && holds(seen_keys, "same", NULL));
    must_put(etcd, "/w7/same", "2", 0);
    wait_for(holds(seen_keys, "same", "2"));
    assert_true(etcd_regressions(etcd) >= 1);
    etcd_close(etcd);
    free_seen(seen_keys);
}

static int start_all(void **state)
{
    (void)state;
    strcpy(failpoint_file, "/tmp/shoal_failpoints_XXXXXX");
    int fd = mkstemp(failpoint_file);
    assert_true(fd >= 0);
    close(fd);
    char *from = mem_format("file:%s", failpoint_file);
    setenv("SHOAL_FAILPOINTS", from, 1);
    free(from);
    failpoint_start();
    etcd_server_start(&server);
    io = net_test_io();
    return 0;
}

static int end_all(void **state)
{
    (void)state;
    etcd_server_end(&server);
    alarm(20); /* a test that failed left its client open, which this would wait for */
    unlink(failpoint_file);
    rpc_io_close(io);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_watch_tells_what_is_and_then_each_change_in_order),
        cmocka_unit_test(test_a_cut_watch_resumes_without_a_gap_or_a_repeat),
        cmocka_unit_test(test_compaction_during_a_cut_is_survived_by_listing_again),
        cmocka_unit_test(test_a_lost_event_is_repaired_by_the_next_comparison),
        cmocka_unit_test(test_a_killed_and_a_stopped_etcd_leave_the_watch_working),
        cmocka_unit_test(test_comparing_all_the_time_beside_writes_tells_the_truth_in_the_end),
        cmocka_unit_test(test_an_emptied_store_is_told_and_its_new_content_too),
    };
    return cmocka_run_group_tests(tests, start_all, end_all);
}
