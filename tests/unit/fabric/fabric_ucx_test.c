/* The fabric between hosts, over UCX, in two network namespaces: messages and exchanges, death,
 * silence, a cut link, epochs that overlap, and frames that must not be. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/memory.h"
#include "hosts.h"
#include "pieces.h"
#include "worker/fabric/ucx.h"

/* cmocka has a macro of that name; ours is not used in tests. */
#undef fail
#include <cmocka.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SLACK 2
#else
#define SLACK 1
#endif

static bool have_hosts;

/* Leaves the test out; where everything is to be shown, that is a failure. */
static void need_hosts(void **state)
{
    (void)state;
    const char *all = getenv("SHOAL_REQUIRE_ALL");
    if (!have_hosts && all && *all)
        fail_msg("%s", "no network namespaces with veth links here: run the tests as root");
    if (!have_hosts)
        skip();
}

/* ---- two ranks on each host; the exchange group spans both ---- */

static int traffic(fabric_t *fabric)
{
    uint32_t me = fabric_rank(fabric);
    static uint8_t mine[50000];
    uint64_t blocks = 0;
    EXPECT(fabric_form(fabric, "sha256:aa", 100 + me, 10000, &blocks) == STATUS_OK);
    EXPECT(blocks == 100);
    for (uint32_t round = 0; round < 60; round++) {
        size_t bytes[4];
        const void *parts[4];
        for (uint32_t i = 0; i < 4; i++)
            bytes[i] = round % 5 == i ? 0 : (round * 811 + i * 13) % sizeof mine;
        for (size_t k = 0; k < bytes[me]; k++)
            mine[k] = (uint8_t)(me * 31 + round + k * 7);
        EXPECT(fabric_exchange(fabric, NULL, mine, bytes, parts) == STATUS_OK);
        for (uint32_t i = 0; i < 4; i++) {
            const uint8_t *part = parts[i];
            for (size_t k = 0; k < bytes[i]; k++)
                EXPECT(part[k] == (uint8_t)(i * 31 + round + k * 7));
        }
    }
    if (pieces_traffic(fabric, 4, 2) != 0)
        return 1;
    /* 40 MB from host b to host a, far more than the lane's window. */
    size_t n_words = (size_t)5 << 20;
    if (me == 3 || me == 0) {
        uint64_t *words = mem_new(n_words, 8);
        for (size_t i = 0; me == 3 && i < n_words; i++)
            words[i] = i * 0x9e3779b97f4a7c15ull;
        if (me == 3) {
            EXPECT(fabric_send(fabric, 0, FABRIC_LOGITS, NULL, words, n_words * 8) == STATUS_OK);
        } else {
            EXPECT(fabric_receive_exact(fabric, 3, FABRIC_LOGITS, NULL, words, n_words * 8) ==
                   STATUS_OK);
            for (size_t i = 0; i < n_words; i++)
                EXPECT(words[i] == i * 0x9e3779b97f4a7c15ull);
        }
        free(words);
    }
    return 0;
}

static int traffic_rank(host_rank_t *rank)
{
    fabric_t *fabric;
    EXPECT(fabric_open(&rank->config, &fabric) == STATUS_OK);
    int code = traffic(fabric);
    fabric_close(fabric);
    return code;
}

static void test_messages_and_exchanges_cross_hosts_whole(void **state)
{
    need_hosts(state);
    ranks_t ranks;
    hosts_start(&ranks, 4, 2, 4, 30000, traffic_rank);
    assert_int_equal(ranks_finish(&ranks, 0), 0);
}

/* ---- a rank of host b is lost; all others are in an exchange or wait idly ---- */

static int lost(host_rank_t *rank, fabric_t *fabric, const char *how, uint64_t within_ms)
{
    uint32_t me = rank->config.rank;
    shared_t *shared = rank->shared;
    uint64_t mine = me;
    size_t bytes[2] = {8, 8};
    const void *parts[2];
    fabric_where_t where = {.step = 17, .layer = 4};
    fabric_where_t idle = {.step = 17, .layer = -1, .timeout_ms = FABRIC_FOREVER};
    EXPECT(fabric_exchange(fabric, &where, &mine, bytes, parts) == STATUS_OK);
    uint64_t blocks;
    EXPECT(fabric_form(fabric, "sha256:aa", 1, 10000, &blocks) == STATUS_OK);
    EXPECT(rank_wait_heard(fabric));
    atomic_fetch_add(&shared->ready, 1);
    if (me == 2) {
        for (;;)
            pause();
    }
    status_t status;
    size_t n;
    /* Groups are {0, 1}, {2, 3}: rank 0 waits for rank 2's result, 1 idly for a plan. */
    if (me == 0)
        status = fabric_receive(fabric, 2, FABRIC_RESULT, &where, &mine, 8, &n);
    else if (me == 1)
        status = fabric_receive(fabric, 0, FABRIC_PLAN, &idle, &mine, 8, &n);
    else
        status = fabric_exchange(fabric, &where, &mine, bytes, parts);
    uint64_t took_ms = ms_since(shared);
    EXPECT(status == STATUS_PEER_LOST);
    EXPECT(is_in(status_text(), "of step 17"));
    if (me != 3 || strcmp(how, "cut") != 0)
        EXPECT(is_in(status_text(), how));
    if (took_ms > within_ms)
        fprintf(stderr, "rank %u: it took %llu ms\n", me, (unsigned long long)took_ms);
    EXPECT(took_ms <= within_ms);
    return 0;
}

/* Goodbye is said to whoever lives; nobody waits for the answer of a rank that is known dead. */
static int close_soon(fabric_t *fabric)
{
    uint64_t begin = clock_ms();
    fabric_close(fabric);
    EXPECT(clock_ms() - begin < 200 * SLACK);
    return 0;
}

static int lost_rank(host_rank_t *rank, const char *how, uint64_t within_ms)
{
    fabric_t *fabric;
    EXPECT(fabric_open(&rank->config, &fabric) == STATUS_OK);
    int code = lost(rank, fabric, how, within_ms);
    return close_soon(fabric) || code;
}

static int killed_rank(host_rank_t *rank)
{
    return lost_rank(rank, "rank 2 (host b) is lost: ", 200 * SLACK);
}

static int silent_rank(host_rank_t *rank)
{
    return lost_rank(rank, "rank 2 (host b) is lost: no heartbeat for 600 ms", 750 * SLACK);
}

static void test_a_killed_rank_is_named_on_both_hosts_at_once(void **state)
{
    need_hosts(state);
    ranks_t ranks;
    hosts_start(&ranks, 4, 2, 2, 30000, killed_rank);
    ranks_wait_ready(&ranks, 4);
    ranks_signal(&ranks, 2, SIGKILL);
    assert_int_equal(ranks_finish(&ranks, 1u << 2), 0);
}

static void test_a_stopped_rank_is_found_silent_on_both_hosts(void **state)
{
    need_hosts(state);
    ranks_t ranks;
    hosts_start(&ranks, 4, 2, 2, 30000, silent_rank);
    ranks_wait_ready(&ranks, 4);
    ranks_signal(&ranks, 2, SIGSTOP);
    assert_int_equal(ranks_finish(&ranks, 1u << 2), 0);
}

/* Rank 2 lives and beats, only its own agent knows that it is lost. */
static int told_rank(host_rank_t *rank)
{
    return lost_rank(rank, "rank 2 (host b) is lost: killed by its cgroup", 200 * SLACK);
}

static void test_what_an_agent_says_of_its_rank_reaches_the_other_host(void **state)
{
    need_hosts(state);
    ranks_t ranks;
    hosts_start(&ranks, 4, 2, 2, 30000, told_rank);
    ranks_wait_ready(&ranks, 4);
    ranks_wait_asleep(&ranks, 1u << 3);
    atomic_store(&ranks.shared->killed_ns, clock_ns());
    fabric_shm_rank_died(ranks.shm, 2, "killed by its cgroup");
    assert_int_equal(ranks_finish(&ranks, 1u << 2), 0);
}

/* Every rank streams over the link or waits for it when it is cut; each names a rank of the other
 * host within two seconds. */
static int cut(host_rank_t *rank, fabric_t *fabric)
{
    uint32_t me = rank->config.rank;
    uint32_t other = (me + 2) % 4;
    static uint8_t bytes[3000000];
    fabric_where_t where = {.step = 3, .layer = -1};
    uint64_t blocks;
    EXPECT(fabric_form(fabric, "sha256:aa", 1, 10000, &blocks) == STATUS_OK);
    EXPECT(rank_wait_heard(fabric));
    status_t status;
    uint32_t round = 0;
    do {
        if (round++ == 3)
            atomic_fetch_add(&rank->shared->ready, 1); /* it streams */
        status = fabric_send(fabric, other, FABRIC_ACTIVATIONS, &where, bytes, sizeof bytes);
        if (status == STATUS_OK)
            status = fabric_receive_exact(fabric, other, FABRIC_ACTIVATIONS, &where, bytes,
                                          sizeof bytes);
    } while (status == STATUS_OK);
    uint64_t took_ms = ms_since(rank->shared);
    EXPECT(status == STATUS_PEER_LOST);
    EXPECT(is_in(status_text(), me < 2 ? "(host b) is lost: no heartbeat for 600 ms"
                                       : "(host a) is lost: no heartbeat for 600 ms"));
    fabric_failure_t failure;
    EXPECT(fabric_failure(fabric, &failure) && failure.silent);
    if (took_ms > 1000)
        fprintf(stderr, "rank %u: it took %llu ms\n", me, (unsigned long long)took_ms);
    EXPECT(took_ms <= 2000);
    return 0;
}

static int cut_rank(host_rank_t *rank)
{
    fabric_t *fabric;
    EXPECT(fabric_open(&rank->config, &fabric) == STATUS_OK);
    int code = cut(rank, fabric) | close_soon(fabric);
    /* What was sent into the cut link keeps the kernel busy; the close of an endpoint ends that. */
    atomic_fetch_add(&rank->shared->numbers[0], ucx_shut_stuck_sockets());
    atomic_fetch_add(&rank->shared->done, 1);
    EXPECT(ucx_shut_stuck_sockets() == 0);
    return code;
}

static void test_a_cut_link_is_named_within_two_seconds(void **state)
{
    need_hosts(state);
    ranks_t ranks;
    hosts_start(&ranks, 4, 2, 2, 30000, cut_rank);
    ranks_wait_ready(&ranks, 4);
    atomic_store(&ranks.shared->killed_ns, clock_ns());
    hosts_link(false);
    uint64_t end = clock_ms() + 20000;
    while (atomic_load(&ranks.shared->done) < 4 && clock_ms() < end)
        nap();
    uint64_t n_shut = atomic_load(&ranks.shared->numbers[0]);
    int bad = ranks_finish(&ranks, 0);
    hosts_link(true);
    assert_int_equal(bad, 0);
    assert_true(n_shut > 0);
}

/* ---- abort, leaving, epochs ---- */

static int abort_rank(host_rank_t *rank)
{
    fabric_t *fabric;
    uint64_t word = 0, blocks;
    EXPECT(fabric_open(&rank->config, &fabric) == STATUS_OK);
    EXPECT(fabric_form(fabric, "sha256:aa", 1, 10000, &blocks) == STATUS_OK);
    if (rank->config.rank == 2) {
        fabric_abort(fabric, "layer 9 produced NaN");
    } else {
        uint64_t begin = clock_ms();
        uint32_t from = rank->config.rank == 0 ? 1 : 0;
        EXPECT(fabric_receive_exact(fabric, from, FABRIC_PLAN, NULL, &word, 8) == STATUS_ABORTED);
        EXPECT(is_in(status_text(), "layer 9 produced NaN"));
        EXPECT(clock_ms() - begin < 1000 * SLACK);
    }
    fabric_close(fabric);
    return 0;
}

static void test_an_abort_reaches_the_ranks_of_the_other_host(void **state)
{
    need_hosts(state);
    ranks_t ranks;
    hosts_start(&ranks, 3, 2, 1, 10000, abort_rank);
    assert_int_equal(ranks_finish(&ranks, 0), 0);
}

/* Rank 0 goes on to epoch 8 while rank 1 is still in epoch 7. */
static int epochs_rank(host_rank_t *rank)
{
    fabric_t *fabric;
    uint64_t word = 70 + rank->config.rank, blocks;
    fabric_counts_t counts;
    rank->config.shm_fd = -1;
    EXPECT(fabric_open(&rank->config, &fabric) == STATUS_OK);
    EXPECT(fabric_form(fabric, "sha256:aa", 1, 10000, &blocks) == STATUS_OK);
    if (rank->config.rank == 0) {
        /* The last word of an epoch arrives although the sender closes at once. */
        EXPECT(fabric_send(fabric, 1, FABRIC_PLAN, NULL, &word, 8) == STATUS_OK);
    } else {
        do {
            nap();
            fabric_counts(fabric, &counts);
        } while (counts.frames_held == 0);
        EXPECT(fabric_receive_exact(fabric, 0, FABRIC_PLAN, NULL, &word, 8) == STATUS_OK);
        EXPECT(word == 70);
    }
    fabric_close(fabric);
    rank->config.epoch = 8;
    EXPECT(fabric_open(&rank->config, &fabric) == STATUS_OK);
    atomic_fetch_add(&rank->shared->ready, 1);
    EXPECT(fabric_form(fabric, "sha256:aa", 1, 10000, &blocks) == STATUS_OK);
    if (rank->config.rank == 0) {
        fabric_counts(fabric, &counts);
        EXPECT(fabric_receive_exact(fabric, 1, FABRIC_RESULT, NULL, &word, 8) == STATUS_OK);
        EXPECT(word == 81);
    } else {
        word = 81;
        EXPECT(fabric_send(fabric, 0, FABRIC_RESULT, NULL, &word, 8) == STATUS_OK);
    }
    fabric_close(fabric);
    return 0;
}

static void test_frames_of_a_newer_epoch_are_held_and_an_epoch_ends_in_order(void **state)
{
    need_hosts(state);
    ranks_t ranks;
    hosts_start(&ranks, 2, 1, 1, 10000, epochs_rank);
    assert_int_equal(ranks_finish(&ranks, 0), 0);
}

/* ---- frames that must not be ---- */

static void send_raw(fabric_t *fabric, const void *header, size_t n_header, const void *payload,
                     size_t n)
{
    pthread_mutex_lock(&fabric->endpoint->mutex);
    ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS,
                                 .flags = UCP_AM_SEND_FLAG_EAGER};
    ucs_status_ptr_t request = ucp_am_send_nbx(ucx_peer_connection(fabric, 1),
                                               FRAME_ACTIVE_MESSAGE, header, n_header, payload, n,
                                               &param);
    while (UCS_PTR_IS_PTR(request) && ucp_request_check_status(request) == UCS_INPROGRESS)
        ucp_worker_progress(fabric->endpoint->worker);
    if (UCS_PTR_IS_PTR(request))
        ucp_request_free(request);
    pthread_mutex_unlock(&fabric->endpoint->mutex);
}

/* Nothing of this may do more than raise the count of refused frames. */
static uint64_t send_refused(fabric_t *fabric)
{
    static uint8_t bytes[100000];
    frame_t good = {.magic = FRAME_MAGIC, .version = FRAME_VERSION, .kind = FRAME_DATA,
                    .incarnation = 1, .epoch = 7, .from = 0, .to = 1, .bytes = 8};
    uint64_t n = 0;
    for (size_t cut_at = 0; cut_at < sizeof good; cut_at += 5, n++)
        send_raw(fabric, &good, cut_at, bytes, 8);
    frame_t bad = good;
    bad.magic++;
    send_raw(fabric, &bad, sizeof bad, bytes, 8);
    bad = good;
    bad.version = 9;
    send_raw(fabric, &bad, sizeof bad, bytes, 8);
    bad = good;
    bad.bytes = 9;
    send_raw(fabric, &bad, sizeof bad, bytes, 8);
    bad = good;
    bad.bytes = 100000;
    send_raw(fabric, &bad, sizeof bad, bytes, 100000);
    bad = good;
    bad.from = 64;
    send_raw(fabric, &bad, sizeof bad, bytes, 8);
    bad.from = 63;
    send_raw(fabric, &bad, sizeof bad, bytes, 8);
    bad.from = 1; /* its own */
    send_raw(fabric, &bad, sizeof bad, bytes, 8);
    bad = good;
    bad.to = 0;
    send_raw(fabric, &bad, sizeof bad, bytes, 8);
    bad = good;
    bad.epoch = 6;
    send_raw(fabric, &bad, sizeof bad, bytes, 8);
    bad = good;
    bad.kind = 99;
    send_raw(fabric, &bad, sizeof bad, bytes, 8);
    bad = good;
    bad.kind = FRAME_LOST;
    bad.subject = 5000;
    send_raw(fabric, &bad, sizeof bad, bytes, 8);
    n += 11;
    /* More of a newer epoch than is held for a peer: 40 frames of 30 KB; 34 of them fit. */
    bad = good;
    bad.epoch = 9;
    bad.bytes = 30 << 10;
    for (int i = 0; i < 40; i++)
        send_raw(fabric, &bad, sizeof bad, bytes, bad.bytes);
    return n + 40 - 34;
}

static int garbage_rank(host_rank_t *rank)
{
    fabric_t *fabric;
    uint64_t word = 5, blocks;
    rank->config.shm_fd = -1;
    EXPECT(fabric_open(&rank->config, &fabric) == STATUS_OK);
    EXPECT(fabric_form(fabric, "sha256:aa", 1, 10000, &blocks) == STATUS_OK);
    if (rank->config.rank == 0) {
        uint64_t n = send_refused(fabric);
        atomic_store(&rank->shared->numbers[0], n);
        EXPECT(fabric_send(fabric, 1, FABRIC_PLAN, NULL, &word, 8) == STATUS_OK);
        EXPECT(fabric_receive_exact(fabric, 1, FABRIC_RESULT, NULL, &word, 8) == STATUS_OK);
        frame_t bad = {.magic = FRAME_MAGIC, .version = FRAME_VERSION, .kind = FRAME_CREDIT,
                       .incarnation = 1, .epoch = 7, .from = 0, .to = 1, .position = 1 << 30};
        send_raw(fabric, &bad, sizeof bad, NULL, 0);
        EXPECT(fabric_receive_exact(fabric, 1, FABRIC_RESULT, NULL, &word, 8) == STATUS_ABORTED);
    } else {
        EXPECT(fabric_receive_exact(fabric, 0, FABRIC_PLAN, NULL, &word, 8) == STATUS_OK);
        fabric_counts_t counts;
        fabric_counts(fabric, &counts);
        uint64_t wanted = atomic_load(&rank->shared->numbers[0]);
        if (counts.frames_refused != wanted)
            fprintf(stderr, "refused %llu of %llu\n", (unsigned long long)counts.frames_refused,
                    (unsigned long long)wanted);
        EXPECT(counts.frames_refused == wanted);
        EXPECT(fabric_send(fabric, 0, FABRIC_RESULT, NULL, &word, 8) == STATUS_OK);
        EXPECT(fabric_receive_exact(fabric, 0, FABRIC_PLAN, NULL, &word, 8) == STATUS_INVALID);
        EXPECT(is_in(status_text(), "rank 0 (host a) gave credit for what was never sent"));
    }
    fabric_close(fabric);
    return 0;
}

static void test_malformed_frames_are_refused_and_counted(void **state)
{
    need_hosts(state);
    ranks_t ranks;
    hosts_start(&ranks, 2, 1, 1, 10000, garbage_rank);
    assert_int_equal(ranks_finish(&ranks, 0), 0);
}

static int no_link_rank(host_rank_t *rank)
{
    (void)rank;
    fabric_endpoint_t *endpoint;
    EXPECT(fabric_endpoint_open("10.211.7.1", &endpoint) == STATUS_UNREACHABLE);
    EXPECT(is_in(status_text(), "vea (10.211.7.1) has no link"));
    return 0;
}

static void test_an_endpoint_without_a_link_is_refused_by_name(void **state)
{
    need_hosts(state);
    ranks_t ranks;
    hosts_link(false);
    hosts_start_bare(&ranks, no_link_rank);
    int bad = ranks_finish(&ranks, 0);
    hosts_link(true);
    assert_int_equal(bad, 0);
}

static void test_an_address_that_no_interface_has_is_refused(void **state)
{
    (void)state;
    fabric_endpoint_t *endpoint;
    assert_int_equal(fabric_endpoint_open("203.0.113.77", &endpoint), STATUS_INVALID);
    assert_true(is_in(status_text(), "203.0.113.77"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_messages_and_exchanges_cross_hosts_whole),
        cmocka_unit_test(test_a_killed_rank_is_named_on_both_hosts_at_once),
        cmocka_unit_test(test_a_stopped_rank_is_found_silent_on_both_hosts),
        cmocka_unit_test(test_what_an_agent_says_of_its_rank_reaches_the_other_host),
        cmocka_unit_test(test_a_cut_link_is_named_within_two_seconds),
        cmocka_unit_test(test_an_abort_reaches_the_ranks_of_the_other_host),
        cmocka_unit_test(test_frames_of_a_newer_epoch_are_held_and_an_epoch_ends_in_order),
        cmocka_unit_test(test_malformed_frames_are_refused_and_counted),
        cmocka_unit_test(test_an_endpoint_without_a_link_is_refused_by_name),
        cmocka_unit_test(test_an_address_that_no_interface_has_is_refused),
    };
    have_hosts = hosts_make();
    int bad = cmocka_run_group_tests(tests, NULL, NULL);
    if (have_hosts)
        hosts_remove();
    return bad;
}
