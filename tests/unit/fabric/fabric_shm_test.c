/* The fabric inside a host, with real processes: order, pieces, exchange, death, silence, abort,
 * time-outs, formation. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/memory.h"
#include "pieces.h"
#include "ranks.h"
#include "worker/fabric/fabric_internal.h"

/* cmocka has a macro of that name; ours is not used in tests. */
#undef fail
#include <cmocka.h>

/* On machines under load a scheduler may hold a woken process back; the promises are 100 ms for a
 * death that is seen and 700 ms for silence. Sanitized programs get twice that. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SLACK 2
#else
#define SLACK 1
#endif

static uint8_t pattern(uint64_t seed, size_t i)
{
    return (uint8_t)((seed * 2654435761u + i * 97 + (i >> 8)) & 255);
}

/* ---- messages ---- */

enum { ORDER_MESSAGES = 300 };

static size_t order_size(uint32_t i)
{
    return i % 7 == 0 ? 0 : (size_t)i * i % 9001;
}

static int order_rank(fabric_t *fabric, shared_t *shared)
{
    (void)shared;
    static uint8_t bytes[9001];
    uint32_t me = fabric_rank(fabric), n = fabric_n_ranks(fabric);
    for (uint32_t i = 0; i < ORDER_MESSAGES; i++) {
        size_t size = order_size(i);
        for (size_t k = 0; k < size; k++)
            bytes[k] = pattern(me * 1000 + i, k);
        fabric_lane_t lane = i & 1 ? FABRIC_PLAN : FABRIC_RESULT;
        EXPECT(fabric_send(fabric, (me + 1) % n, lane, NULL, bytes, size) == STATUS_OK);
    }
    uint32_t from = (me + n - 1) % n;
    /* The lanes are read one after the other: they do not wait for each other. */
    for (uint32_t i = 0; i < 2 * ORDER_MESSAGES; i++) {
        uint32_t number = i < ORDER_MESSAGES ? i : i - ORDER_MESSAGES;
        fabric_lane_t lane = i < ORDER_MESSAGES ? FABRIC_PLAN : FABRIC_RESULT;
        if ((number & 1) != (lane == FABRIC_PLAN))
            continue;
        size_t size = 0;
        EXPECT(fabric_receive(fabric, from, lane, NULL, bytes, sizeof bytes, &size) == STATUS_OK);
        EXPECT(size == order_size(number));
        for (size_t k = 0; k < size; k++)
            EXPECT(bytes[k] == pattern(from * 1000 + number, k));
    }
    return 0;
}

static void test_messages_of_a_lane_arrive_whole_and_in_order(void **state)
{
    (void)state;
    ranks_t ranks;
    ranks_start(&ranks, 3, 3, 10000, order_rank);
    assert_int_equal(ranks_finish(&ranks, 0), 0);
}

#define LONG_BYTES ((size_t)100 << 20)

static int long_rank(fabric_t *fabric, shared_t *shared)
{
    (void)shared;
    uint64_t *words = mem_new(LONG_BYTES / 8, 8);
    if (fabric_rank(fabric) == 1) {
        for (size_t i = 0; i < LONG_BYTES / 8; i++)
            words[i] = i * 0x9e3779b97f4a7c15ull;
        EXPECT(fabric_send(fabric, 0, FABRIC_LOGITS, NULL, words, LONG_BYTES) == STATUS_OK);
    } else {
        EXPECT(fabric_receive_exact(fabric, 1, FABRIC_LOGITS, NULL, words, LONG_BYTES) ==
               STATUS_OK);
        for (size_t i = 0; i < LONG_BYTES / 8; i++)
            EXPECT(words[i] == i * 0x9e3779b97f4a7c15ull);
    }
    free(words);
    return 0;
}

static void test_a_message_longer_than_its_buffer_passes_in_pieces(void **state)
{
    (void)state;
    ranks_t ranks;
    ranks_start(&ranks, 2, 1, 20000, long_rank);
    assert_int_equal(ranks_finish(&ranks, 0), 0);
}

/* ---- exchange ---- */

static size_t part_size(uint32_t round, uint32_t member)
{
    return (round * 37 + member * 1001) % (member == 1 ? 64 : 40000);
}

static int exchange_rank(fabric_t *fabric, shared_t *shared)
{
    (void)shared;
    uint32_t me = fabric_rank(fabric), first = me / 3 * 3;
    static uint8_t mine[40000];
    for (uint32_t round = 0; round < 200; round++) {
        size_t bytes[3];
        const void *parts[3];
        for (uint32_t i = 0; i < 3; i++)
            bytes[i] = part_size(round, i);
        size_t own = bytes[me - first];
        uint8_t *to = round & 2 ? fabric_exchange_buffer(fabric) : mine;
        for (size_t k = 0; k < own; k++)
            to[k] = pattern(me * 7919 + round, k);
        EXPECT(fabric_exchange(fabric, NULL, to, bytes, parts) == STATUS_OK);
        for (uint32_t i = 0; i < 3; i++) {
            EXPECT(((uintptr_t)parts[i] & 63) == 0);
            const uint8_t *part = parts[i];
            for (size_t k = 0; k < bytes[i]; k++)
                EXPECT(part[k] == pattern((first + i) * 7919 + round, k));
        }
    }
    return 0;
}

static void test_an_exchange_gives_each_member_of_the_group_every_part(void **state)
{
    (void)state;
    ranks_t ranks;
    ranks_start(&ranks, 6, 3, 20000, exchange_rank);
    assert_int_equal(ranks_finish(&ranks, 0), 0);
}

static int pieces_rank(fabric_t *fabric, shared_t *shared)
{
    (void)shared;
    return pieces_traffic(fabric, 3, 3);
}

static void test_an_exchange_of_pieces_gives_each_member_its_own_of_every_part(void **state)
{
    (void)state;
    ranks_t ranks;
    ranks_start(&ranks, 6, 3, 20000, pieces_rank);
    assert_int_equal(ranks_finish(&ranks, 0), 0);
}

/* ---- death, silence, abort, time-out ---- */

/* Rank 2 never takes part in the second exchange; the others wait for it, and the ranks of the
 * other group wait idly for a plan. */
static int lost_rank(fabric_t *fabric, shared_t *shared, const char *how, uint64_t within_ms)
{
    uint32_t me = fabric_rank(fabric);
    size_t bytes[3] = {8, 8, 8};
    const void *parts[3];
    uint64_t mine = me;
    fabric_where_t where = {.operation = NULL, .step = 17, .layer = 4};
    fabric_where_t idle = {.step = 17, .layer = -1, .timeout_ms = FABRIC_FOREVER};
    if (me < 3)
        EXPECT(fabric_exchange(fabric, &where, &mine, bytes, parts) == STATUS_OK);
    EXPECT(rank_wait_heard(fabric));
    atomic_fetch_add(&shared->ready, 1);
    if (me == 2) {
        for (;;)
            pause();
    }
    status_t status;
    size_t n;
    if (me < 3)
        status = fabric_exchange(fabric, &where, &mine, bytes, parts);
    else
        status = fabric_receive(fabric, 0, FABRIC_PLAN, &idle, &mine, sizeof mine, &n);
    uint64_t took_ms = ms_since(shared);
    EXPECT(status == STATUS_PEER_LOST);
    char begin[96];
    snprintf(begin, sizeof begin, "rank %u: %s of step 17%s: rank 2 (host a) is lost: ", me,
             me < 3 ? "exchange" : "receive of plan", me < 3 ? ", layer 4" : "");
    EXPECT(is_in(status_text(), begin));
    EXPECT(is_in(status_text(), how));
    fabric_failure_t failure;
    EXPECT(fabric_failure(fabric, &failure));
    EXPECT(failure.rank == 2 && strcmp(failure.host, "a") == 0);
    atomic_store(&shared->numbers[me], took_ms);
    if (took_ms > within_ms)
        fprintf(stderr, "rank %u: it took %llu ms\n", me, (unsigned long long)took_ms);
    EXPECT(took_ms <= within_ms);
    return 0;
}

static int killed_rank(fabric_t *fabric, shared_t *shared)
{
    return lost_rank(fabric, shared, "died", 100 * SLACK);
}

static int silent_rank(fabric_t *fabric, shared_t *shared)
{
    return lost_rank(fabric, shared, "no heartbeat for 600 ms", 700 * SLACK);
}

static void test_a_killed_rank_is_named_by_every_wait_within_100_ms(void **state)
{
    (void)state;
    ranks_t ranks;
    ranks_start(&ranks, 6, 3, 20000, killed_rank);
    ranks_wait_ready(&ranks, 6);
    ranks_signal(&ranks, 2, SIGKILL);
    assert_int_equal(ranks_finish(&ranks, 1u << 2), 0);
}

static void test_a_stopped_rank_is_found_silent_within_700_ms(void **state)
{
    (void)state;
    ranks_t ranks;
    ranks_start(&ranks, 6, 3, 20000, silent_rank);
    ranks_wait_ready(&ranks, 6);
    ranks_signal(&ranks, 2, SIGSTOP);
    assert_int_equal(ranks_finish(&ranks, 1u << 2), 0);
}

static int told_rank(fabric_t *fabric, shared_t *shared)
{
    uint64_t word;
    size_t n;
    fabric_where_t idle = {.step = 1, .layer = -1, .timeout_ms = FABRIC_FOREVER};
    atomic_fetch_add(&shared->ready, 1);
    status_t status = fabric_receive(fabric, 1 - fabric_rank(fabric), FABRIC_PLAN, &idle, &word,
                                     sizeof word, &n);
    EXPECT(status == STATUS_ABORTED);
    EXPECT(is_in(status_text(), "a new epoch begins"));
    EXPECT(ms_since(shared) <= 100 * SLACK);
    return 0;
}

static void test_an_abort_by_the_parent_ends_every_wait_with_its_reason(void **state)
{
    (void)state;
    ranks_t ranks;
    ranks_start(&ranks, 2, 1, 20000, told_rank);
    ranks_wait_ready(&ranks, 2);
    ranks_wait_asleep(&ranks, 3);
    atomic_store(&ranks.shared->killed_ns, clock_ns());
    fabric_shm_abort(ranks.shm, "a new epoch begins");
    fabric_shm_abort(ranks.shm, "a second reason is not heard");
    assert_int_equal(ranks_finish(&ranks, 0), 0);
}

static int abort_rank(fabric_t *fabric, shared_t *shared)
{
    uint64_t word = 0;
    if (fabric_rank(fabric) == 0) {
        atomic_store(&shared->killed_ns, clock_ns());
        fabric_abort(fabric, "layer 9 produced NaN");
        EXPECT(fabric_send(fabric, 1, FABRIC_PLAN, NULL, &word, 8) == STATUS_ABORTED);
        return 0;
    }
    EXPECT(fabric_receive_exact(fabric, 0, FABRIC_PLAN, NULL, &word, 8) == STATUS_ABORTED);
    EXPECT(is_in(status_text(), "layer 9 produced NaN"));
    return 0;
}

static void test_an_abort_by_a_rank_reaches_the_others(void **state)
{
    (void)state;
    ranks_t ranks;
    ranks_start(&ranks, 3, 1, 20000, abort_rank);
    assert_int_equal(ranks_finish(&ranks, 0), 0);
}

static int timeout_rank(fabric_t *fabric, shared_t *shared)
{
    uint64_t word = 0;
    fabric_where_t where = {.operation = "receive of activations", .step = 5, .layer = -1};
    if (fabric_rank(fabric) == 0) {
        uint64_t begin = clock_ms();
        EXPECT(fabric_receive_exact(fabric, 1, FABRIC_ACTIVATIONS, &where, &word, 8) ==
               STATUS_TIMEOUT);
        EXPECT(clock_ms() - begin >= 290 && clock_ms() - begin < 1000 * SLACK);
        EXPECT(is_in(status_text(), "rank 0: receive of activations of step 5: rank 1 (host a) "
                                    "did not answer within 300 ms"));
        atomic_store(&shared->done, 1);
        return 0;
    }
    while (!atomic_load(&shared->done))
        nap();
    /* The others learn of it, too. */
    EXPECT(fabric_send(fabric, 0, FABRIC_PLAN, NULL, &word, 8) == STATUS_ABORTED);
    EXPECT(is_in(status_text(), "did not answer within 300 ms"));
    return 0;
}

static void test_a_wait_without_an_answer_ends_after_its_time_and_names_the_rank(void **state)
{
    (void)state;
    ranks_t ranks;
    ranks_start(&ranks, 2, 1, 300, timeout_rank);
    assert_int_equal(ranks_finish(&ranks, 0), 0);
}

static int leaving_rank(fabric_t *fabric, shared_t *shared)
{
    (void)shared;
    uint64_t word = 42;
    const board_rank_t *other = &fabric->board->ranks[1];
    if (fabric_rank(fabric) == 1) {
        EXPECT(fabric_send(fabric, 0, FABRIC_RESULT, NULL, &word, 8) == STATUS_OK);
        return 0; /* closes and exits */
    }
    while (!atomic_load(&other->left))
        nap();
    word = 0;
    EXPECT(fabric_receive_exact(fabric, 1, FABRIC_RESULT, NULL, &word, 8) == STATUS_OK);
    EXPECT(word == 42);
    EXPECT(fabric_receive_exact(fabric, 1, FABRIC_RESULT, NULL, &word, 8) == STATUS_PEER_LOST);
    EXPECT(is_in(status_text(), "has left the epoch"));
    return 0;
}

static void test_what_a_rank_sent_before_it_left_is_still_received(void **state)
{
    (void)state;
    ranks_t ranks;
    ranks_start(&ranks, 2, 1, 5000, leaving_rank);
    assert_int_equal(ranks_finish(&ranks, 0), 0);
}

/* ---- formation, wake ---- */

static int form_rank(fabric_t *fabric, shared_t *shared)
{
    (void)shared;
    uint64_t blocks = 0;
    uint32_t me = fabric_rank(fabric);
    EXPECT(fabric_form(fabric, "sha256:aa/native", 1000 - 10 * me, 5000, &blocks) == STATUS_OK);
    EXPECT(blocks == 970);
    return 0;
}

static void test_a_formation_takes_the_smallest_number_of_blocks(void **state)
{
    (void)state;
    ranks_t ranks;
    ranks_start(&ranks, 4, 2, 5000, form_rank);
    assert_int_equal(ranks_finish(&ranks, 0), 0);
}

static int form_other_rank(fabric_t *fabric, shared_t *shared)
{
    (void)shared;
    uint64_t blocks = 0;
    uint32_t me = fabric_rank(fabric);
    status_t status =
        fabric_form(fabric, me == 2 ? "sha256:bb/native" : "sha256:aa/native", 10, 5000, &blocks);
    EXPECT(status == (me == 0 ? STATUS_CONFLICT : STATUS_ABORTED));
    EXPECT(is_in(status_text(),
                 "rank 2 (host a) computes text identity sha256:bb/native where the leader has"));
    return 0;
}

static void test_a_rank_of_another_text_identity_is_named_to_all(void **state)
{
    (void)state;
    ranks_t ranks;
    ranks_start(&ranks, 3, 1, 5000, form_other_rank);
    assert_int_equal(ranks_finish(&ranks, 0), 0);
}

static int wait_rank(fabric_t *fabric, shared_t *shared)
{
    uint64_t word = 1;
    bool ready = true;
    if (fabric_rank(fabric) == 1) {
        while (!atomic_load(&shared->done))
            nap();
        EXPECT(fabric_send(fabric, 0, FABRIC_LOGITS, NULL, &word, 8) == STATUS_OK);
        EXPECT(fabric_send(fabric, 0, FABRIC_RESULT, NULL, &word, 8) == STATUS_OK);
        return 0;
    }
    uint32_t lanes = 1u << FABRIC_RESULT | 1u << FABRIC_ACTIVATIONS, found = 1;
    EXPECT(fabric_wait_lanes(fabric, 1, lanes, 0, &found) == STATUS_OK && found == 0);
    EXPECT(fabric_wait_lanes(fabric, 1, 1u << FABRIC_LANES, 0, &found) == STATUS_INVALID);
    EXPECT(fabric_wait(fabric, 1, FABRIC_RESULT, 0, &ready) == STATUS_OK && !ready);
    uint64_t begin = clock_ms();
    EXPECT(fabric_wait(fabric, 1, FABRIC_RESULT, 50, &ready) == STATUS_OK && !ready);
    EXPECT(clock_ms() - begin >= 49);
    fabric_wake(fabric);
    begin = clock_ms();
    EXPECT(fabric_wait(fabric, 1, FABRIC_RESULT, 5000, &ready) == STATUS_OK && !ready);
    EXPECT(clock_ms() - begin < 1000);
    atomic_store(&shared->done, 1);
    EXPECT(fabric_wait(fabric, 1, FABRIC_RESULT, 5000, &ready) == STATUS_OK && ready);
    /* Only the lanes that were asked for, whatever has come on another one. */
    EXPECT(fabric_wait_lanes(fabric, 1, lanes, 0, &found) == STATUS_OK);
    EXPECT(found == 1u << FABRIC_RESULT);
    EXPECT(fabric_receive_exact(fabric, 1, FABRIC_RESULT, NULL, &word, 8) == STATUS_OK);
    return 0;
}

static void test_a_wait_ends_with_a_message_a_wake_or_its_time(void **state)
{
    (void)state;
    ranks_t ranks;
    ranks_start(&ranks, 2, 1, 5000, wait_rank);
    assert_int_equal(ranks_finish(&ranks, 0), 0);
}

/* A rank that shares its core with somebody must not spin against it for long. */
static int spinning_rank(fabric_t *fabric, shared_t *shared)
{
    (void)shared;
    size_t bytes[2] = {8, 8};
    const void *parts[2];
    uint64_t mine = 1;
    for (int i = 0; i < 20; i++) {
        for (int k = 0; fabric_rank(fabric) == 1 && k < 3; k++)
            nap();
        EXPECT(fabric_exchange(fabric, NULL, &mine, bytes, parts) == STATUS_OK);
    }
    if (fabric_rank(fabric) == 0)
        EXPECT(atomic_load(&fabric->spins[WAIT_EXCHANGE]) <= 64);
    return 0;
}

/* How soon it spins again depends on who else wants the cores; the rule does not. */
static void test_a_wait_spins_as_long_as_waits_have_lasted(void **state)
{
    (void)state;
    ranks_t ranks;
    ranks_start(&ranks, 2, 2, 20000, spinning_rank);
    assert_int_equal(ranks_finish(&ranks, 0), 0);
    uint32_t spins = fabric_spins_next(64, false);
    assert_int_equal(spins, 64);
    for (int i = 0; i < 6; i++)
        spins = fabric_spins_next(spins, true);
    assert_int_equal(spins, 3000);
    assert_int_equal(fabric_spins_next(spins, true), 3000);
    assert_int_equal(fabric_spins_next(spins, false), 1500);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_messages_of_a_lane_arrive_whole_and_in_order),
        cmocka_unit_test(test_a_message_longer_than_its_buffer_passes_in_pieces),
        cmocka_unit_test(test_an_exchange_gives_each_member_of_the_group_every_part),
        cmocka_unit_test(test_an_exchange_of_pieces_gives_each_member_its_own_of_every_part),
        cmocka_unit_test(test_a_killed_rank_is_named_by_every_wait_within_100_ms),
        cmocka_unit_test(test_a_stopped_rank_is_found_silent_within_700_ms),
        cmocka_unit_test(test_an_abort_by_the_parent_ends_every_wait_with_its_reason),
        cmocka_unit_test(test_an_abort_by_a_rank_reaches_the_others),
        cmocka_unit_test(test_a_wait_without_an_answer_ends_after_its_time_and_names_the_rank),
        cmocka_unit_test(test_a_wait_spins_as_long_as_waits_have_lasted),
        cmocka_unit_test(test_what_a_rank_sent_before_it_left_is_still_received),
        cmocka_unit_test(test_a_formation_takes_the_smallest_number_of_blocks),
        cmocka_unit_test(test_a_rank_of_another_text_identity_is_named_to_all),
        cmocka_unit_test(test_a_wait_ends_with_a_message_a_wake_or_its_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
