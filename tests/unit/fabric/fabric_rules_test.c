/* Ranks of one host that break the fabric's rules: each is refused by name and nothing is read out of
 * bounds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ranks.h"
#include "worker/fabric/shm.h"

/* cmocka has a macro of that name; ours is not used in tests. */
#undef fail
#include <cmocka.h>

static int wrong_size_rank(fabric_t *fabric, shared_t *shared)
{
    (void)shared;
    uint8_t bytes[64] = {0};
    if (fabric_rank(fabric) == 0) {
        EXPECT(fabric_send(fabric, 1, FABRIC_PLAN, NULL, bytes, 33) == STATUS_OK);
        return 0;
    }
    EXPECT(fabric_receive_exact(fabric, 0, FABRIC_PLAN, NULL, bytes, 32) == STATUS_INVALID);
    EXPECT(is_in(status_text(), "rank 1: receive of plan: rank 0 (host a) sent a message of 33 "
                                "bytes where 32 are right"));
    return 0;
}

static void test_a_message_of_another_size_is_refused_by_name(void **state)
{
    (void)state;
    ranks_t ranks;
    ranks_start(&ranks, 2, 1, 5000, wrong_size_rank);
    assert_int_equal(ranks_finish(&ranks, 0), 0);
}

static int wrong_part_rank(fabric_t *fabric, shared_t *shared)
{
    (void)shared;
    uint32_t me = fabric_rank(fabric);
    /* Rank 1 believes that its own part has 24 bytes. */
    size_t bytes[2] = {16, me == 1 ? 24 : 16};
    const void *parts[2];
    uint8_t mine[24] = {0};
    status_t status = fabric_exchange(fabric, NULL, mine, bytes, parts);
    if (me == 0) {
        EXPECT(status == STATUS_INVALID);
        EXPECT(is_in(status_text(), "rank 1 (host a) gave 24 bytes to an exchange where 16"));
    }
    return 0;
}

static int wrong_piece_rank(fabric_t *fabric, shared_t *shared)
{
    (void)shared;
    uint32_t me = fabric_rank(fabric);
    /* Rank 1 believes that it gives two pieces to each. */
    const uint32_t times[2] = {1, me == 1 ? 2 : 1};
    size_t bytes[2] = {16, 16};
    const void *pieces[2];
    uint8_t mine[64] = {0};
    status_t status = fabric_exchange_pieces(fabric, NULL, mine, bytes, times, pieces);
    if (me == 0) {
        EXPECT(status == STATUS_INVALID);
        EXPECT(is_in(status_text(), "rank 1 (host a) gave 64 bytes to an exchange where 32"));
    }
    bytes[0] = FABRIC_EXCHANGE_BYTES_MAX;
    EXPECT(fabric_exchange_pieces(fabric, NULL, mine, bytes, times, pieces) == STATUS_INVALID);
    EXPECT(is_in(status_text(), "at most 67108864 are right"));
    return 0;
}

static void test_an_exchange_of_other_sizes_is_refused_by_name(void **state)
{
    (void)state;
    ranks_t ranks;
    ranks_start(&ranks, 2, 2, 5000, wrong_part_rank);
    assert_int_equal(ranks_finish(&ranks, 0), 0);
    ranks_start(&ranks, 2, 2, 5000, wrong_piece_rank);
    assert_int_equal(ranks_finish(&ranks, 0), 0);
}

static int broken_ring_rank(fabric_t *fabric, shared_t *shared)
{
    uint8_t bytes[64];
    if (fabric_rank(fabric) == 0) {
        while (!atomic_load(&shared->done))
            nap();
        return 0;
    }
    size_t n;
    EXPECT(fabric_receive(fabric, 0, FABRIC_PLAN, NULL, bytes, sizeof bytes, &n) ==
           STATUS_INVALID);
    EXPECT(is_in(status_text(), "rank 0 (host a)"));
    atomic_store(&shared->done, 1);
    return 0;
}

static void test_garbage_in_a_ring_is_refused_and_nothing_is_read_out_of_bounds(void **state)
{
    (void)state;
    for (int kind = 0; kind < 2; kind++) {
        ranks_t ranks;
        ranks_start(&ranks, 2, 1, 5000, broken_ring_rank);
        ring_t ring = shm_ring(ranks.shm, 0, 1, FABRIC_PLAN);
        if (kind == 0) {
            memset(ring.data, 0xee, 4096);
            atomic_store(&ring.positions->written, 4096);
        } else {
            atomic_store(&ring.positions->written, (uint64_t)1 << 60);
        }
        assert_int_equal(ranks_finish(&ranks, 0), 0);
    }
}

static void test_only_sealed_memory_of_this_epoch_is_mapped(void **state)
{
    (void)state;
    uint32_t local[2] = {0, 1};
    fabric_shm_t *shm;
    assert_int_equal(fabric_shm_create(8, local, 2, &shm), STATUS_OK);
    fabric_peer_t peers[2] = {{.host = "a"}, {.host = "a"}};
    fabric_config_t config = {.epoch = 7, .n_ranks = 2, .group_n = 1, .peers = peers};
    config.shm_fd = fabric_shm_fd(shm);
    fabric_t *fabric;
    assert_int_equal(fabric_open(&config, &fabric), STATUS_STALE);
    assert_true(is_in(status_text(), "epoch 8, not 7"));
    /* It cannot be cut short under a rank that has it mapped. */
    assert_int_not_equal(ftruncate(fabric_shm_fd(shm), 4096), 0);
    fabric_shm_release(shm);

    int plain = memfd_create("plain", MFD_CLOEXEC);
    assert_int_equal(ftruncate(plain, 1 << 20), 0);
    config.shm_fd = plain;
    assert_int_equal(fabric_open(&config, &fabric), STATUS_INVALID);
    close(plain);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_message_of_another_size_is_refused_by_name),
        cmocka_unit_test(test_an_exchange_of_other_sizes_is_refused_by_name),
        cmocka_unit_test(test_garbage_in_a_ring_is_refused_and_nothing_is_read_out_of_bounds),
        cmocka_unit_test(test_only_sealed_memory_of_this_epoch_is_mapped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
