/* The KV allocator: who holds what, what is given up first, and when a prefix is found. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "worker/engine/kv.h"

static kv_t *make(uint32_t n_blocks, bool keep)
{
    kv_config_t config = {.n_blocks = n_blocks, .keep_prefixes = keep, .text_identity = "test"};
    return kv_new(&config);
}

static void fill_ids(uint32_t *ids, uint32_t n, uint32_t first)
{
    for (uint32_t i = 0; i < n; i++)
        ids[i] = first + i;
}

/* Takes and publishes blocks for n_blocks * 16 ids. */
static void run_sequence(kv_t *kv, uint32_t namespace_id, const uint32_t *ids, uint32_t n_blocks,
                         uint32_t *blocks)
{
    kv_link_t link = kv_link_root(namespace_id);
    assert_true(kv_take(kv, n_blocks, blocks));
    for (uint32_t i = 0; i < n_blocks; i++)
        link = kv_publish(kv, link, blocks[i], ids + i * KV_BLOCK_TOKENS);
}

static void test_taking_is_all_or_nothing(void **state)
{
    (void)state;
    kv_t *kv = make(4, true);
    uint32_t blocks[5];
    assert_false(kv_take(kv, 5, blocks));
    assert_int_equal(kv_blocks_free(kv), 4);
    assert_true(kv_take(kv, 4, blocks));
    assert_int_equal(kv_blocks_free(kv), 0);
    assert_false(kv_take(kv, 1, blocks));
    kv_release(kv, blocks, 4);
    assert_int_equal(kv_blocks_free(kv), 4);
    kv_free(kv);
}

static void test_a_later_prompt_that_begins_alike_gets_the_same_blocks(void **state)
{
    (void)state;
    kv_t *kv = make(8, true);
    uint32_t ids[48], blocks[3], again[3], ns = kv_namespace(kv, "", "");
    kv_link_t link;
    fill_ids(ids, 48, 100);
    run_sequence(kv, ns, ids, 3, blocks);
    assert_int_equal(kv_match(kv, ns, ids, 3, again, &link), 3);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(again[i], blocks[i]);
        assert_int_equal(kv_holders(kv, blocks[i]), 2);
    }
    kv_release(kv, again, 3);
    kv_release(kv, blocks, 3);
    /* Held by nobody, still found. */
    ids[20]++;
    assert_int_equal(kv_match(kv, ns, ids, 3, again, &link), 1);
    assert_int_equal(again[0], blocks[0]);
    kv_free(kv);
}

/* Neighbours in a sequence are neighbours in memory, also in room that a kept prompt gives up. */
static void test_what_a_kept_prompt_gives_up_is_taken_in_its_order(void **state)
{
    (void)state;
    kv_t *kv = make(8, true);
    uint32_t ids[96], blocks[8], again[6], ns = kv_namespace(kv, "", "");
    fill_ids(ids, 96, 0);
    run_sequence(kv, ns, ids, 6, blocks);
    kv_release(kv, blocks, 6);
    assert_true(kv_take(kv, 6, again)); /* the two that were never used, and four */
    for (uint32_t i = 0; i < 2; i++)
        assert_int_equal(again[i], 6 + i);
    for (uint32_t i = 2; i < 6; i++)
        assert_int_equal(again[i], blocks[i]);
    kv_link_t link;
    assert_int_equal(kv_match(kv, ns, ids, 6, blocks, &link), 2); /* its beginning is still known */
    kv_free(kv);
}

static void test_equal_tokens_after_another_beginning_are_no_match(void **state)
{
    (void)state;
    kv_t *kv = make(8, true);
    uint32_t ids[32], blocks[2], again[2], ns = kv_namespace(kv, "", "");
    kv_link_t link;
    fill_ids(ids, 32, 0);
    run_sequence(kv, ns, ids, 2, blocks);
    assert_int_equal(kv_match(kv, ns, ids + 16, 1, again, &link), 0);
    kv_free(kv);
}

static void test_tenants_do_not_see_each_others_prefixes(void **state)
{
    (void)state;
    kv_t *kv = make(8, true);
    uint32_t ids[16], block, again;
    kv_link_t link;
    fill_ids(ids, 16, 0);
    uint32_t a = kv_namespace(kv, "ab", "c"), b = kv_namespace(kv, "a", "bc");
    assert_int_not_equal(a, b);
    assert_int_equal(kv_namespace(kv, "ab", "c"), a);
    run_sequence(kv, a, ids, 1, &block);
    assert_int_equal(kv_match(kv, b, ids, 1, &again, &link), 0);
    assert_int_equal(kv_match(kv, a, ids, 1, &again, &link), 1);
    kv_free(kv);
}

static void test_the_prefix_used_longest_ago_is_given_up_first_and_from_its_end(void **state)
{
    (void)state;
    kv_t *kv = make(4, true);
    uint32_t old[32], young[32], a[2], b[2], taken, again[2], ns = kv_namespace(kv, "", "");
    kv_link_t link;
    fill_ids(old, 32, 0);
    fill_ids(young, 32, 1000);
    run_sequence(kv, ns, old, 2, a);
    run_sequence(kv, ns, young, 2, b);
    kv_release(kv, a, 2);
    kv_release(kv, b, 2);
    assert_true(kv_take(kv, 1, &taken));
    assert_int_equal(taken, a[1]);
    assert_int_equal(kv_match(kv, ns, young, 2, again, &link), 2);
    kv_release(kv, again, 2);
    assert_int_equal(kv_match(kv, ns, old, 2, again, &link), 1);
    kv_free(kv);
}

static void test_two_sequences_with_equal_tokens_share_one_chain(void **state)
{
    (void)state;
    kv_t *kv = make(8, true);
    uint32_t ids[32], a[2], b[2], again[2], ns = kv_namespace(kv, "", "");
    kv_link_t link_a = kv_link_root(ns), link_b = kv_link_root(ns), link;
    fill_ids(ids, 32, 0);
    assert_true(kv_take(kv, 2, a) && kv_take(kv, 2, b));
    link_a = kv_publish(kv, link_a, a[0], ids);
    link_b = kv_publish(kv, link_b, b[0], ids);
    assert_int_equal(link_b.block, a[0]);
    /* The second goes on in the first one's chain. */
    kv_publish(kv, link_b, b[1], ids + 16);
    assert_int_equal(kv_match(kv, ns, ids, 2, again, &link), 2);
    assert_int_equal(again[0], a[0]);
    assert_int_equal(again[1], b[1]);
    kv_free(kv);
}

static void test_a_chain_whose_parent_was_given_up_takes_nothing_further(void **state)
{
    (void)state;
    kv_t *kv = make(3, true);
    uint32_t ids[48], first, own[3], again[2], ns = kv_namespace(kv, "", "");
    kv_link_t root = kv_link_root(ns), link;
    fill_ids(ids, 48, 0);
    assert_true(kv_take(kv, 1, &first));
    kv_link_t known = kv_publish(kv, root, first, ids);
    kv_release(kv, &first, 1);
    /* Everything is taken: the kept parent is gone, its number now holds something else. */
    assert_true(kv_take(kv, 3, own));
    link = kv_publish(kv, known, own[1], ids + 16);
    kv_publish(kv, link, own[2], ids + 32);
    assert_int_equal(kv_match(kv, ns, ids, 2, again, &link), 0);
    assert_int_equal(kv_match(kv, ns, ids + 16, 2, again, &link), 0);
    kv_free(kv);
}

static void test_without_prefix_reuse_nothing_is_kept(void **state)
{
    (void)state;
    kv_t *kv = make(4, false);
    uint32_t ids[16], block, again, ns = kv_namespace(kv, "", "");
    kv_link_t link;
    fill_ids(ids, 16, 0);
    run_sequence(kv, ns, ids, 1, &block);
    assert_int_equal(kv_match(kv, ns, ids, 1, &again, &link), 0);
    kv_release(kv, &block, 1);
    assert_int_equal(kv_blocks_free(kv), 4);
    kv_free(kv);
}

/* Two texts that begin alike, and one that does not. */
static void test_what_is_unpublished_is_not_found_nor_what_follows_it(void **state)
{
    (void)state;
    kv_t *kv = make(12, true);
    uint32_t bad[48], beside[48], other[32], a[3], b[3], c[2], again[3];
    uint32_t ns = kv_namespace(kv, "", "");
    kv_link_t link;
    fill_ids(bad, 48, 0);
    fill_ids(beside, 16, 0);
    fill_ids(beside + 16, 32, 500);
    fill_ids(other, 32, 1000);
    run_sequence(kv, ns, bad, 3, a);
    assert_int_equal(kv_match(kv, ns, beside, 1, b, &link), 1);
    assert_true(kv_take(kv, 2, b + 1));
    link = kv_publish(kv, link, b[1], beside + 16);
    run_sequence(kv, ns, other, 2, c);
    kv_release(kv, c, 2);
    kv_release(kv, a, 3);
    kv_unpublish(kv, ns, bad);
    kv_link_t none;
    assert_int_equal(kv_match(kv, ns, bad, 3, again, &none), 0);
    assert_int_equal(kv_match(kv, ns, beside, 3, again, &none), 0);
    /* Who holds a block keeps it, but what it computes after it is not offered either. */
    assert_int_equal(kv_holders(kv, b[0]), 1);
    kv_publish(kv, link, b[2], beside + 32);
    assert_int_equal(kv_match(kv, ns, beside, 3, again, &none), 0);
    assert_int_equal(kv_blocks_free(kv), 9);
    kv_release(kv, b, 3);
    assert_int_equal(kv_blocks_free(kv), 12);
    /* Nor do they take the room of what may still be found. */
    uint32_t taken[10];
    assert_true(kv_take(kv, 10, taken));
    kv_release(kv, taken, 10);
    assert_int_equal(kv_match(kv, ns, other, 2, again, &none), 2);
    /* The same tokens may be computed and offered anew. */
    run_sequence(kv, ns, bad, 3, a);
    assert_int_equal(kv_match(kv, ns, bad, 3, again, &none), 3);
    kv_free(kv);
}

/* A long random run against a model that only counts. */
static void test_no_block_is_ever_lost_or_given_twice(void **state)
{
    (void)state;
    enum { N = 64, SEQUENCES = 8 };
    kv_t *kv = make(N, true);
    uint32_t blocks[SEQUENCES][N], n_blocks[SEQUENCES] = {0}, random = 1,
                                   ns = kv_namespace(kv, "", "");
    for (int turn = 0; turn < 20000; turn++) {
        random = random * 1664525u + 1013904223u;
        uint32_t s = random >> 16 & 7, n = random >> 20 & 3;
        if ((random >> 8 & 15) == 0) {
            uint32_t ids[16], again;
            kv_link_t link;
            fill_ids(ids, 16, (random >> 24 & 3) * 7);
            kv_unpublish(kv, ns, ids);
            assert_int_equal(kv_match(kv, ns, ids, 1, &again, &link), 0);
        } else if (n_blocks[s] > 0) {
            kv_release(kv, blocks[s], n_blocks[s]);
            n_blocks[s] = 0;
        } else {
            uint32_t ids[16 * 4];
            kv_link_t link;
            fill_ids(ids, 64, (random >> 24 & 3) * 7);
            uint32_t matched = kv_match(kv, ns, ids, n, blocks[s], &link);
            if (!kv_take(kv, n + 1 - matched, blocks[s] + matched)) {
                kv_release(kv, blocks[s], matched);
                continue;
            }
            for (uint32_t i = matched; i < n; i++)
                link = kv_publish(kv, link, blocks[s][i], ids + 16 * i);
            n_blocks[s] = n + 1;
        }
        uint32_t holders[N] = {0}, held = 0;
        for (uint32_t i = 0; i < SEQUENCES; i++)
            for (uint32_t k = 0; k < n_blocks[i]; k++)
                holders[blocks[i][k]]++;
        for (uint32_t i = 0; i < N; i++) {
            assert_int_equal(kv_holders(kv, i), holders[i]);
            held += holders[i] > 0;
        }
        assert_int_equal(kv_blocks_free(kv), N - held);
    }
    kv_free(kv);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_taking_is_all_or_nothing),
        cmocka_unit_test(test_a_later_prompt_that_begins_alike_gets_the_same_blocks),
        cmocka_unit_test(test_what_a_kept_prompt_gives_up_is_taken_in_its_order),
        cmocka_unit_test(test_equal_tokens_after_another_beginning_are_no_match),
        cmocka_unit_test(test_tenants_do_not_see_each_others_prefixes),
        cmocka_unit_test(test_the_prefix_used_longest_ago_is_given_up_first_and_from_its_end),
        cmocka_unit_test(test_two_sequences_with_equal_tokens_share_one_chain),
        cmocka_unit_test(test_a_chain_whose_parent_was_given_up_takes_nothing_further),
        cmocka_unit_test(test_without_prefix_reuse_nothing_is_kept),
        cmocka_unit_test(test_what_is_unpublished_is_not_found_nor_what_follows_it),
        cmocka_unit_test(test_no_block_is_ever_lost_or_given_twice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
