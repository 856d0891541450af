/* Leases and elections against a real etcd: life, loss, fences, hand-over. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "etcd_server.h"
#include "tcp_proxy.h"

static etcd_server_t server;
static rpc_io_t *io;

typedef struct {
    _Atomic int64_t granted;
    atomic_uint lost, closed;
    etcd_lease_t *lease;
} holder_t;

static void on_granted(void *context, int64_t lease)
{
    atomic_store(&((holder_t *)context)->granted, lease);
}
static void on_lost(void *context, int64_t lease)
{
    (void)lease;
    atomic_fetch_add(&((holder_t *)context)->lost, 1);
}
static void on_lease_closed(void *context)
{
    atomic_fetch_add(&((holder_t *)context)->closed, 1);
}

static void hold(holder_t *holder, etcd_t *etcd, unsigned ttl_s)
{
    memset(holder, 0, sizeof *holder);
    etcd_lease_handlers_t handlers = {on_granted, on_lost, on_lease_closed, holder};
    holder->lease = etcd_lease_open(etcd, ttl_s, &handlers);
    wait_for(atomic_load(&holder->granted) != 0);
}

static bool key_is(etcd_t *etcd, const char *key, const char *wanted)
{
    char *value = must_get(etcd, key);
    bool is = wanted ? value && strcmp(value, wanted) == 0 : !value;
    free(value);
    return is;
}

static etcd_t *client_behind(tcp_proxy_t *proxy)
{
    tcp_proxy_open(proxy, server.client_port);
    char *endpoint = mem_format("127.0.0.1:%u", proxy->port);
    etcd_options_t options = {.endpoints = endpoint};
    etcd_t *etcd = etcd_server_client(&server, io, &options);
    free(endpoint);
    return etcd;
}

static void test_a_kept_lease_outlives_its_ttl_and_a_revoked_one_ends_at_once(void **state)
{
    (void)state;
    etcd_t *etcd = etcd_server_client(&server, io, NULL);
    holder_t holder;
    hold(&holder, etcd, 2);
    assert_int_equal(etcd_lease_id(holder.lease), holder.granted);
    must_put(etcd, "/l1", "x", holder.granted);
    uint64_t start = clock_ms();
    uint64_t first = etcd_lease_safe_until_ms(holder.lease);
    assert_in_range(first, start, start + 2000);
    while (clock_ms() < start + 4000) {
        /* Whoever trusts safe_until never meets a moment at which it has passed. */
        assert_true(etcd_lease_safe_until_ms(holder.lease) > clock_ms());
        net_test_nap();
    }
    assert_true(key_is(etcd, "/l1", "x"));
    assert_true(etcd_lease_safe_until_ms(holder.lease) >= first + 2000);
    etcd_lease_close(holder.lease, true);
    wait_for(key_is(etcd, "/l1", NULL));
    assert_int_equal(holder.closed, 1);
    assert_int_equal(holder.lost, 0);
    etcd_close(etcd);
}

static void test_a_cut_holder_is_unsafe_before_others_see_its_lease_expire(void **state)
{
    (void)state;
    tcp_proxy_t proxy;
    etcd_t *behind = client_behind(&proxy);
    etcd_t *direct = etcd_server_client(&server, io, NULL);
    holder_t holder;
    hold(&holder, behind, 1);
    must_put(direct, "/l2", "x", holder.granted);
    tcp_proxy_cut(&proxy);
    for (bool gone = false; !gone;) {
        gone = key_is(direct, "/l2", NULL);
        if (gone)
            assert_true(etcd_lease_safe_until_ms(holder.lease) <= clock_ms());
        usleep(20000);
    }
    assert_int_equal(holder.lost, 0); /* nobody has told it yet */
    tcp_proxy_join(&proxy);
    wait_for(holder.lost == 1);
    assert_int_equal(etcd_lease_safe_until_ms(holder.lease), 0);
    etcd_lease_close(holder.lease, false);
    wait_for(holder.closed == 1);
    etcd_close(behind);
    etcd_close(direct);
    tcp_proxy_close(&proxy);
}

static void test_a_holder_counts_from_when_it_sent_and_not_from_the_answer(void **state)
{
    (void)state;
    tcp_proxy_t proxy;
    etcd_t *etcd = client_behind(&proxy);
    holder_t holder;
    hold(&holder, etcd, 2);
    atomic_store(&proxy.delay_ms, 100); /* there and back: 200 ms at least */
    uint64_t last = etcd_lease_safe_until_ms(holder.lease);
    for (unsigned answers = 0; answers < 4;) {
        uint64_t now = clock_ms();
        uint64_t safe = etcd_lease_safe_until_ms(holder.lease);
        /* The first answer may have been on its way before the delay began. */
        if (safe != last && answers++)
            assert_true(safe <= now + 2000 - 150);
        last = safe;
        net_test_nap();
    }
    etcd_close(etcd);
    tcp_proxy_close(&proxy);
}

static void test_a_lease_outlives_the_death_of_etcd(void **state)
{
    (void)state;
    etcd_t *etcd = etcd_server_client(&server, io, NULL);
    holder_t holder;
    hold(&holder, etcd, 2);
    must_put(etcd, "/l3", "x", holder.granted);
    etcd_server_kill(&server);
    usleep(1000000);
    etcd_server_restart(&server);
    assert_int_equal(etcd_wait_ready(etcd, 20000), STATUS_OK);
    uint64_t start = clock_ms();
    while (clock_ms() < start + 3000)
        usleep(20000);
    assert_true(key_is(etcd, "/l3", "x"));
    assert_true(etcd_lease_safe_until_ms(holder.lease) > clock_ms());
    assert_int_equal(holder.lost, 0);
    /* And closing the client leaves the key to its time. */
    etcd_close(etcd);
    assert_int_equal(holder.closed, 1);
    etcd = etcd_server_client(&server, io, NULL);
    assert_true(key_is(etcd, "/l3", "x"));
    wait_for(key_is(etcd, "/l3", NULL));
    etcd_close(etcd);
}

static void test_a_lease_unknown_to_an_emptied_store_is_lost(void **state)
{
    (void)state;
    etcd_t *etcd = etcd_server_client(&server, io, NULL);
    holder_t holder;
    hold(&holder, etcd, 30);
    etcd_server_kill(&server);
    etcd_server_wipe(&server);
    etcd_server_restart(&server);
    wait_for(holder.lost == 1);
    etcd_lease_close(holder.lease, true);
    wait_for(holder.closed == 1);
    etcd_close(etcd);
}

/* ---- elections ---- */

typedef struct {
    holder_t holder;
    etcd_election_t *election;
    _Atomic int64_t elected; /* create-revision of the own key, 0 while not elected */
    atomic_uint terms, deposed, closed;
    pthread_mutex_t lock;
    char leader[16];
} candidate_t;

static void on_elected(void *context, int64_t create_revision)
{
    candidate_t *candidate = context;
    atomic_fetch_add(&candidate->terms, 1);
    atomic_store(&candidate->elected, create_revision);
}
static void on_deposed(void *context)
{
    candidate_t *candidate = context;
    atomic_store(&candidate->elected, 0);
    atomic_fetch_add(&candidate->deposed, 1);
}
static void on_leader(void *context, const uint8_t *value, size_t value_size, int64_t revision)
{
    candidate_t *candidate = context;
    pthread_mutex_lock(&candidate->lock);
    snprintf(candidate->leader, sizeof candidate->leader, "%.*s", (int)value_size,
             value ? (const char *)value : "");
    assert_int_equal(revision == 0, value == NULL);
    pthread_mutex_unlock(&candidate->lock);
}
static void on_election_closed(void *context)
{
    atomic_fetch_add(&((candidate_t *)context)->closed, 1);
}

static void stand(candidate_t *candidate, etcd_t *etcd, const char *prefix, const char *name)
{
    memset(candidate, 0, sizeof *candidate);
    pthread_mutex_init(&candidate->lock, NULL);
    hold(&candidate->holder, etcd, 1);
    etcd_election_handlers_t handlers = {on_elected, on_deposed, on_leader, on_election_closed,
                                         candidate};
    candidate->election = etcd_election_open(etcd, prefix, candidate->holder.granted, name,
                                             strlen(name), &handlers);
}

static bool leads(candidate_t *seen_by, const char *name)
{
    pthread_mutex_lock(&seen_by->lock);
    bool yes = strcmp(seen_by->leader, name) == 0;
    pthread_mutex_unlock(&seen_by->lock);
    return yes;
}

/* Writes a key as the elected one does: guarded by the fence. */
static bool write_guarded(etcd_t *etcd, candidate_t *candidate, int64_t fence)
{
    etcd_compare_t guard = etcd_election_compare(candidate->election, fence);
    etcd_op_t put = {.kind = ETCD_PUT, .key = "/guarded", .value = "x", .value_size = 1};
    etcd_txn_t txn = {.compares = &guard, .n_compares = 1, .then = &put, .n_then = 1};
    etcd_waiter_t *waiter = etcd_waiter_new();
    etcd_result_t *result;
    etcd_txn(etcd, &txn, etcd_wait_done, waiter);
    assert_int_equal(etcd_wait(waiter, &result), STATUS_OK);
    bool succeeded = result->succeeded;
    etcd_result_free(result);
    return succeeded;
}

static void test_one_of_three_is_elected_and_resigning_hands_over_at_once(void **state)
{
    (void)state;
    etcd_t *etcd = etcd_server_client(&server, io, NULL);
    candidate_t candidates[3];
    char name[] = "a";
    for (size_t i = 0; i < 3; i++) {
        name[0] = (char)('a' + i);
        stand(&candidates[i], etcd, "/e1/coordinator", name);
        wait_for(leads(&candidates[i], "a"));
    }
    wait_for(candidates[0].elected != 0);
    int64_t fence = candidates[0].elected;
    assert_true(write_guarded(etcd, &candidates[0], fence));
    assert_int_equal(candidates[1].elected, 0);
    assert_int_equal(candidates[2].elected, 0);
    etcd_election_close(candidates[0].election, true);
    wait_for(candidates[1].elected != 0);
    assert_true(candidates[1].elected > fence);
    wait_for(leads(&candidates[2], "b"));
    assert_int_equal(candidates[2].elected, 0);
    assert_int_equal(candidates[0].closed, 1);
    etcd_close(etcd);
    assert_int_equal(candidates[1].closed, 1);
}

static void test_a_cut_leader_is_replaced_and_its_fence_fails(void **state)
{
    (void)state;
    tcp_proxy_t proxy;
    etcd_t *behind = client_behind(&proxy);
    etcd_t *direct = etcd_server_client(&server, io, NULL);
    candidate_t first;
    candidate_t second;
    stand(&first, behind, "/e2/coordinator", "first");
    wait_for(first.elected != 0);
    stand(&second, direct, "/e2/coordinator", "second");
    wait_for(leads(&second, "first"));
    int64_t fence = first.elected;
    tcp_proxy_cut(&proxy);
    wait_for(second.elected != 0);
    assert_true(second.elected > fence);
    assert_true(etcd_lease_safe_until_ms(first.holder.lease) <= clock_ms());
    assert_int_equal(first.deposed, 0);
    assert_false(write_guarded(direct, &first, fence));
    tcp_proxy_join(&proxy);
    wait_for(first.deposed == 1 && first.holder.lost == 1);
    wait_for(leads(&first, "second"));
    assert_int_equal(second.deposed, 0);
    etcd_close(behind);
    etcd_close(direct);
    tcp_proxy_close(&proxy);
}

static void test_a_leader_whose_key_was_deleted_stands_again_with_a_new_fence(void **state)
{
    (void)state;
    etcd_t *etcd = etcd_server_client(&server, io, NULL);
    candidate_t candidate;
    stand(&candidate, etcd, "/e3/coordinator", "only");
    wait_for(candidate.elected != 0);
    int64_t fence = candidate.elected;
    char *key = mem_format("/e3/coordinator/%016llx",
                           (unsigned long long)candidate.holder.granted);
    uint64_t start = clock_ms();
    must_delete(etcd, key);
    wait_for(candidate.terms == 2);
    assert_in_range(clock_ms() - start, 0, 10000); /* by the event, not by a later comparison */
    assert_int_equal(candidate.deposed, 1);
    assert_true(candidate.elected > fence);
    assert_false(write_guarded(etcd, &candidate, fence));
    assert_true(write_guarded(etcd, &candidate, candidate.elected));
    free(key);
    etcd_close(etcd);
}

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_kept_lease_outlives_its_ttl_and_a_revoked_one_ends_at_once),
        cmocka_unit_test(test_a_cut_holder_is_unsafe_before_others_see_its_lease_expire),
        cmocka_unit_test(test_a_holder_counts_from_when_it_sent_and_not_from_the_answer),
        cmocka_unit_test(test_a_lease_outlives_the_death_of_etcd),
        cmocka_unit_test(test_a_lease_unknown_to_an_emptied_store_is_lost),
        cmocka_unit_test(test_one_of_three_is_elected_and_resigning_hands_over_at_once),
        cmocka_unit_test(test_a_cut_leader_is_replaced_and_its_fence_fails),
        cmocka_unit_test(test_a_leader_whose_key_was_deleted_stands_again_with_a_new_fence),
    };
    return cmocka_run_group_tests(tests, start_all, end_all);
}
