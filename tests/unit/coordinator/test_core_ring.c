/* The ring: shares, movement, and keys that meet. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "coordinator/core/ring.h"

enum { KEYS = 20000 };

static uint64_t key_of(uint32_t i)
{
    uint32_t prompt[20] = {i, i * 7u};
    return ring_key("t", "", "", prompt, 20);
}

static ring_t *ring_of(uint32_t n)
{
    ring_t *ring = ring_new();
    for (uint32_t i = 0; i < n; i++)
        ring_add(ring, i);
    return ring;
}

static uint32_t first(const ring_t *ring, uint64_t key)
{
    uint32_t node;
    assert_int_equal(ring_walk(ring, key, NULL, NULL, &node, 1), 1);
    return node;
}

static void test_slots_get_nearly_equal_shares(void **state)
{
    (void)state;
    ring_t *ring = ring_of(10);
    uint32_t counts[10] = {0};
    for (uint32_t i = 0; i < KEYS; i++)
        counts[first(ring, key_of(i))]++;
    for (uint32_t i = 0; i < 10; i++)
        assert_in_range(counts[i], KEYS / 10 * 80 / 100, KEYS / 10 * 120 / 100);
    ring_free(ring);
}

static void test_a_new_slot_moves_at_most_its_share_of_keys_and_only_to_itself(void **state)
{
    (void)state;
    for (uint32_t n = 2; n <= 12; n++) {
        ring_t *before = ring_of(n - 1), *after = ring_of(n);
        uint32_t moved = 0;
        for (uint32_t i = 0; i < KEYS; i++) {
            uint32_t a = first(before, key_of(i)), b = first(after, key_of(i));
            moved += a != b;
            if (a != b)
                assert_int_equal(b, n - 1);
        }
        assert_true(moved <= KEYS * 11 / 10 / n);
        assert_true(moved > 0);
        ring_free(before);
        ring_free(after);
    }
}

static bool not_node(void *context, uint32_t node)
{
    return node != *(uint32_t *)context;
}

static void test_keys_of_a_slot_that_is_not_usable_go_on_and_come_back(void **state)
{
    (void)state;
    ring_t *ring = ring_of(5);
    for (uint32_t i = 0; i < 500; i++) {
        uint32_t usual = first(ring, key_of(i)), other;
        assert_int_equal(ring_walk(ring, key_of(i), not_node, &usual, &other, 1), 1);
        assert_int_not_equal(usual, other);
        assert_int_equal(first(ring, key_of(i)), usual);
    }
    ring_free(ring);
}

static void test_a_walk_gives_every_slot_once(void **state)
{
    (void)state;
    ring_t *ring = ring_of(6);
    uint32_t nodes[RING_WALK_MAX];
    assert_int_equal(ring_walk(ring, 12345, NULL, NULL, nodes, RING_WALK_MAX), 6);
    uint32_t seen = 0;
    for (size_t i = 0; i < 6; i++)
        seen |= 1u << nodes[i];
    assert_int_equal(seen, 63);
    ring_remove(ring, 3);
    ring_remove(ring, 3);
    assert_int_equal(ring_n_nodes(ring), 5);
    ring_add(ring, 3);
    ring_add(ring, 3);
    assert_int_equal(ring_n_nodes(ring), 6);
    ring_free(ring);
}

static void test_prompts_with_the_same_first_blocks_have_one_key(void **state)
{
    (void)state;
    uint32_t a[200], b[200];
    for (uint32_t i = 0; i < 200; i++)
        a[i] = b[i] = i;
    b[130] = 9999; /* after the eighth block */
    assert_int_equal(ring_key("t", "", "", a, 200), ring_key("t", "", "", b, 200));
    b[127] = 9999;
    assert_int_not_equal(ring_key("t", "", "", a, 200), ring_key("t", "", "", b, 200));
    /* Whole blocks count: what follows the last whole one does not. */
    assert_int_equal(ring_key("t", "", "", a, 40), ring_key("t", "", "", a, 47));
}

static void test_tenant_adapter_and_conversation_part_keys(void **state)
{
    (void)state;
    uint32_t p[4] = {1, 2, 3, 4};
    uint64_t key = ring_key("t", "a", "", p, 4);
    assert_int_not_equal(key, ring_key("u", "a", "", p, 4));
    assert_int_not_equal(key, ring_key("t", "b", "", p, 4));
    assert_int_not_equal(ring_key("ab", "c", "", p, 4), ring_key("a", "bc", "", p, 4));
    assert_int_equal(ring_key("t", "", "talk", p, 4), ring_key("t", "", "talk", p, 2));
    assert_int_not_equal(ring_key("t", "", "talk", p, 4), ring_key("t", "", "chat", p, 4));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slots_get_nearly_equal_shares),
        cmocka_unit_test(test_a_new_slot_moves_at_most_its_share_of_keys_and_only_to_itself),
        cmocka_unit_test(test_keys_of_a_slot_that_is_not_usable_go_on_and_come_back),
        cmocka_unit_test(test_a_walk_gives_every_slot_once),
        cmocka_unit_test(test_prompts_with_the_same_first_blocks_have_one_key),
        cmocka_unit_test(test_tenant_adapter_and_conversation_part_keys),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
