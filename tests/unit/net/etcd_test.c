/* Operations of the etcd client against a real etcd: values, lists, transactions, endings. */
#include "etcd_server.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/memory.h"

static etcd_server_t server;
static rpc_io_t *io;

static int start_all(void **state)
{
    (void)state;
    etcd_server_start(&server);
    io = net_test_io();
    return 0;
}

static int end_all(void **state)
{
    (void)state;
    etcd_server_end(&server);
    alarm(20); /* a test that failed left its client open, which this would wait for */
    rpc_io_close(io);
    return 0;
}

static void test_a_value_is_put_read_changed_and_deleted(void **state)
{
    (void)state;
    etcd_t *etcd = etcd_server_client(&server, io, NULL);
    int64_t first = must_put(etcd, "/a/key", "one", 0);
    int64_t second = must_put(etcd, "/a/key", "two", 0);
    assert_true(second > first);
    etcd_waiter_t *waiter = etcd_waiter_new();
    etcd_result_t *result;
    etcd_get(etcd, "/a/key", etcd_wait_done, waiter);
    assert_int_equal(etcd_wait(waiter, &result), STATUS_OK);
    assert_int_equal(result->n_kvs, 1);
    assert_string_equal(result->kvs[0].key, "/a/key");
    assert_memory_equal(result->kvs[0].value, "two", 3);
    assert_int_equal(result->kvs[0].create_revision, first);
    assert_int_equal(result->kvs[0].mod_revision, second);
    assert_int_equal(result->kvs[0].version, 2);
    etcd_result_free(result);
    assert_true(etcd_revision_seen(etcd) >= second);
    assert_true(etcd_cluster_id(etcd) != 0);
    assert_true(etcd_reachable(etcd));
    must_delete(etcd, "/a/key");
    assert_null(must_get(etcd, "/a/key"));
    etcd_close(etcd);
}

static void test_a_list_of_several_pages_is_whole_sorted_and_of_one_revision(void **state)
{
    (void)state;
    etcd_options_t options = {.page_keys = 7};
    etcd_t *etcd = etcd_server_client(&server, io, &options);
    must_put(etcd, "/list", "outside", 0);
    must_put(etcd, "/list0", "outside", 0);
    int64_t last = 0;
    for (int i = 0; i < 50; i++) {
        char key[32];
        char value[32];
        snprintf(key, sizeof key, "/list/%03d", (i * 37) % 50);
        snprintf(value, sizeof value, "v%d", (i * 37) % 50);
        last = must_put(etcd, key, value, 0);
    }
    etcd_waiter_t *waiter = etcd_waiter_new();
    etcd_result_t *result;
    etcd_list(etcd, "/list/", etcd_wait_done, waiter);
    assert_int_equal(etcd_wait(waiter, &result), STATUS_OK);
    assert_int_equal(result->n_kvs, 50);
    assert_true(result->revision >= last);
    for (int i = 0; i < 50; i++) {
        char key[32];
        char value[32];
        snprintf(key, sizeof key, "/list/%03d", i);
        snprintf(value, sizeof value, "v%d", i);
        assert_string_equal(result->kvs[i].key, key);
        assert_int_equal(result->kvs[i].value_size, strlen(value));
        assert_memory_equal(result->kvs[i].value, value, strlen(value));
    }
    etcd_result_free(result);
    waiter = etcd_waiter_new();
    etcd_delete_prefix(etcd, "/list/", etcd_wait_done, waiter);
    assert_int_equal(etcd_wait(waiter, &result), STATUS_OK);
    assert_int_equal(result->n_deleted, 50);
    etcd_result_free(result);
    char *outside = must_get(etcd, "/list0");
    assert_string_equal(outside, "outside");
    free(outside);
    etcd_close(etcd);
}

static bool create(etcd_t *etcd, const char *key, const char *value, etcd_result_t **own_out)
{
    const etcd_compare_t absent = {.key = key, .target = ETCD_CREATE_REVISION};
    const etcd_op_t then[] = {
        {.kind = ETCD_PUT, .key = key, .value = value, .value_size = strlen(value)},
        {.kind = ETCD_PUT, .key = "/txn/other", .value = value, .value_size = strlen(value)},
    };
    const etcd_op_t otherwise = {.kind = ETCD_GET_PREFIX, .key = "/txn/"};
    const etcd_txn_t txn = {&absent, 1, then, 2, &otherwise, 1};
    etcd_waiter_t *waiter = etcd_waiter_new();
    etcd_txn(etcd, &txn, etcd_wait_done, waiter);
    assert_int_equal(etcd_wait(waiter, own_out), STATUS_OK);
    return (*own_out)->succeeded;
}

static void test_of_two_transactions_one_wins_and_the_other_reads_why(void **state)
{
    (void)state;
    etcd_t *etcd = etcd_server_client(&server, io, NULL);
    etcd_result_t *result;
    assert_true(create(etcd, "/txn/key", "first", &result));
    int64_t revision = result->revision;
    etcd_result_free(result);
    assert_false(create(etcd, "/txn/key", "second", &result));
    assert_int_equal(result->n_kvs, 2);
    assert_string_equal(result->kvs[0].key, "/txn/key");
    assert_memory_equal(result->kvs[0].value, "first", 5);
    /* Both puts of the transaction carry its one revision. */
    assert_int_equal(result->kvs[0].mod_revision, revision);
    assert_int_equal(result->kvs[1].mod_revision, revision);
    etcd_result_free(result);
    etcd_close(etcd);
}

static void test_each_kind_of_compare_decides(void **state)
{
    (void)state;
    etcd_t *etcd = etcd_server_client(&server, io, NULL);
    int64_t made = must_put(etcd, "/cmp", "a", 0);
    int64_t changed = must_put(etcd, "/cmp", "b", 0);
    const struct {
        etcd_compare_t compare;
        bool holds;
    } cases[] = {
        {{"/cmp", ETCD_MOD_REVISION, ETCD_EQUAL, changed, NULL, 0}, true},
        {{"/cmp", ETCD_MOD_REVISION, ETCD_EQUAL, made, NULL, 0}, false},
        {{"/cmp", ETCD_MOD_REVISION, ETCD_GREATER, made, NULL, 0}, true},
        {{"/cmp", ETCD_CREATE_REVISION, ETCD_EQUAL, made, NULL, 0}, true},
        {{"/cmp", ETCD_CREATE_REVISION, ETCD_LESS, made, NULL, 0}, false},
        {{"/cmp", ETCD_VERSION, ETCD_EQUAL, 2, NULL, 0}, true},
        {{"/cmp", ETCD_VERSION, ETCD_NOT_EQUAL, 2, NULL, 0}, false},
        {{"/cmp", ETCD_VALUE, ETCD_EQUAL, 0, "b", 1}, true},
        {{"/cmp", ETCD_VALUE, ETCD_EQUAL, 0, "a", 1}, false},
        {{"/cmp", ETCD_LEASE, ETCD_EQUAL, 0, NULL, 0}, true},
        {{"/nothing", ETCD_VERSION, ETCD_EQUAL, 0, NULL, 0}, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        etcd_txn_t txn = {.compares = &cases[i].compare, .n_compares = 1};
        etcd_waiter_t *waiter = etcd_waiter_new();
        etcd_result_t *result;
        etcd_txn(etcd, &txn, etcd_wait_done, waiter);
        assert_int_equal(etcd_wait(waiter, &result), STATUS_OK);
        assert_int_equal(result->succeeded, cases[i].holds);
        etcd_result_free(result);
    }
    etcd_close(etcd);
}

static void test_what_cannot_be_is_refused_with_words(void **state)
{
    (void)state;
    etcd_t *etcd = etcd_server_client(&server, io, NULL);
    etcd_waiter_t *waiter = etcd_waiter_new();
    etcd_put(etcd, "", "x", 1, 0, etcd_wait_done, waiter);
    assert_int_equal(etcd_wait(waiter, NULL), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "1 to 4096"));
    char *big = mem_new(ETCD_VALUE_BYTES_MAX + 1, 1);
    waiter = etcd_waiter_new();
    etcd_put(etcd, "/big", big, ETCD_VALUE_BYTES_MAX + 1, 0, etcd_wait_done, waiter);
    assert_int_equal(etcd_wait(waiter, NULL), STATUS_INVALID);
    waiter = etcd_waiter_new();
    etcd_put(etcd, "/big", big, ETCD_VALUE_BYTES_MAX, 0, etcd_wait_done, waiter);
    assert_int_equal(etcd_wait(waiter, NULL), STATUS_OK);
    free(big);
    waiter = etcd_waiter_new();
    etcd_put(etcd, "/lease", "x", 1, 12345, etcd_wait_done, waiter);
    assert_int_equal(etcd_wait(waiter, NULL), STATUS_NOT_FOUND);
    etcd_t *bad;
    const char *endpoints[] = {"", "nohost", "127.0.0.1:1,,127.0.0.1:2", "https://a:1"};
    for (size_t i = 0; i < sizeof endpoints / sizeof endpoints[0]; i++) {
        etcd_options_t options = {.endpoints = endpoints[i]};
        assert_int_equal(etcd_open(io, &options, &bad), STATUS_INVALID);
    }
    etcd_close(etcd);
}

static void test_a_dead_etcd_is_named_and_one_that_returns_is_used_again(void **state)
{
    (void)state;
    etcd_options_t options = {.timeout_ms = 1000};
    etcd_t *etcd = etcd_server_client(&server, io, &options);
    must_put(etcd, "/dead", "before", 0);
    etcd_server_kill(&server);
    etcd_waiter_t *waiter = etcd_waiter_new();
    etcd_get(etcd, "/dead", etcd_wait_done, waiter);
    assert_int_equal(etcd_wait(waiter, NULL), STATUS_UNREACHABLE);
    assert_non_null(strstr(status_text(), server.endpoint + 7));
    assert_false(etcd_reachable(etcd));
    uint64_t start = clock_ms();
    assert_int_equal(etcd_wait_ready(etcd, 500), STATUS_UNREACHABLE);
    assert_in_range(clock_ms() - start, 400, 3000);
    etcd_server_restart(&server);
    assert_int_equal(etcd_wait_ready(etcd, 20000), STATUS_OK);
    char *value = must_get(etcd, "/dead");
    assert_string_equal(value, "before");
    free(value);
    assert_int_equal(etcd_regressions(etcd), 0);
    etcd_close(etcd);
}

static void test_a_stopped_etcd_ends_calls_in_time(void **state)
{
    (void)state;
    etcd_options_t options = {.timeout_ms = 700};
    etcd_t *etcd = etcd_server_client(&server, io, &options);
    etcd_server_stop(&server);
    uint64_t start = clock_ms();
    etcd_waiter_t *waiter = etcd_waiter_new();
    etcd_put(etcd, "/stopped", "x", 1, 0, etcd_wait_done, waiter);
    assert_int_equal(etcd_wait(waiter, NULL), STATUS_DEADLINE);
    assert_in_range(clock_ms() - start, 600, 5000);
    etcd_server_continue(&server);
    assert_int_equal(etcd_wait_ready(etcd, 20000), STATUS_OK);
    etcd_close(etcd);
}

static void test_with_a_dead_endpoint_the_other_one_serves(void **state)
{
    (void)state;
    char *endpoints = mem_format("127.0.0.1:1,%s", server.endpoint);
    etcd_options_t options = {.endpoints = endpoints};
    etcd_t *etcd = etcd_server_client(&server, io, &options);
    must_put(etcd, "/two", "x", 0);
    etcd_close(etcd);
    free(endpoints);
}

static atomic_uint n_done, n_cancelled;
static void count_done(void *context, const etcd_result_t *result)
{
    (void)context;
    atomic_fetch_add(&n_done, 1);
    if (result->status == STATUS_CANCELLED)
        atomic_fetch_add(&n_cancelled, 1);
}

static void test_closing_ends_every_operation_exactly_once(void **state)
{
    (void)state;
    etcd_t *etcd = etcd_server_client(&server, io, NULL);
    etcd_server_stop(&server);
    for (int i = 0; i < 100; i++) {
        etcd_put(etcd, "/end", "x", 1, 0, count_done, NULL);
        etcd_list(etcd, "/end", count_done, NULL);
    }
    uint64_t start = clock_ms();
    etcd_close(etcd);
    assert_in_range(clock_ms() - start, 0, 2000);
    assert_int_equal(n_done, 200);
    assert_int_equal(n_cancelled, 200);
    etcd_server_continue(&server);
}

static void test_an_emptied_store_is_noticed(void **state)
{
    (void)state;
    etcd_t *etcd = etcd_server_client(&server, io, NULL);
    for (int i = 0; i < 5; i++)
        must_put(etcd, "/regress", "x", 0);
    int64_t seen_before = etcd_revision_seen(etcd);
    etcd_server_kill(&server);
    etcd_server_wipe(&server);
    etcd_server_restart(&server);
    assert_int_equal(etcd_wait_ready(etcd, 20000), STATUS_OK);
    must_put(etcd, "/regress", "x", 0);
    assert_int_equal(etcd_regressions(etcd), 1);
    assert_int_equal(etcd_revision_seen(etcd), seen_before);
    etcd_close(etcd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_value_is_put_read_changed_and_deleted),
        cmocka_unit_test(test_a_list_of_several_pages_is_whole_sorted_and_of_one_revision),
        cmocka_unit_test(test_of_two_transactions_one_wins_and_the_other_reads_why),
        cmocka_unit_test(test_each_kind_of_compare_decides),
        cmocka_unit_test(test_what_cannot_be_is_refused_with_words),
        cmocka_unit_test(test_a_dead_etcd_is_named_and_one_that_returns_is_used_again),
        cmocka_unit_test(test_a_stopped_etcd_ends_calls_in_time),
        cmocka_unit_test(test_with_a_dead_endpoint_the_other_one_serves),
        cmocka_unit_test(test_closing_ends_every_operation_exactly_once),
        cmocka_unit_test(test_an_emptied_store_is_noticed),
    };
    return cmocka_run_group_tests(tests, start_all, end_all);
}
