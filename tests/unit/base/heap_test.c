/* The heap: whatever is put and removed, the smallest of what is left comes first, and each thing
 * knows its place. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "common/base/heap.h"

enum { N = 500, TURNS = 20000 };

typedef struct {
    heap_place_t place;
    uint64_t major, minor;
} thing_t;

static uint32_t next_random(uint32_t *random)
{
    *random = *random * 1664525u + 1013904223u;
    return *random >> 8;
}

/* Takes everything out from the front; returns how many there were. */
static uint32_t check_order(heap_t *heap)
{
    uint64_t major = 0, minor = 0;
    uint32_t n = 0;
    for (const heap_entry_t *first; (first = heap_first(heap)); n++) {
        const thing_t *thing = first->thing;
        assert_int_equal(first->major, thing->major);
        assert_int_equal(first->minor, thing->minor);
        assert_int_equal(heap_major(heap, thing->place), thing->major);
        assert_true(first->major > major || (first->major == major && first->minor >= minor));
        major = first->major;
        minor = first->minor;
        heap_remove(heap, first->place);
        assert_int_equal(thing->place, 0);
    }
    return n;
}

static void test_what_is_left_comes_out_smallest_first(void **state)
{
    (void)state;
    heap_t heap = {0};
    static thing_t things[N];
    uint32_t random = 3, left = 0;
    heap_reserve(&heap, N);
    const heap_entry_t *memory = heap.entries;
    for (uint32_t turn = 0; turn < TURNS; turn++) {
        thing_t *thing = &things[next_random(&random) % N];
        if (thing->place) {
            heap_remove(&heap, &thing->place);
            heap_remove(&heap, &thing->place); /* outside: no effect */
            left--;
        } else {
            thing->major = next_random(&random) % 16;
            thing->minor = (uint64_t)(thing - things);
            heap_put(&heap, thing, &thing->place, thing->major, thing->minor);
            left++;
        }
        assert_int_equal(heap.n, left);
    }
    assert_true(left > N / 4);
    assert_ptr_equal(heap.entries, memory); /* a reserved heap takes no more memory */
    assert_int_equal(check_order(&heap), left);
    heap_release(&heap);
}

static void test_a_push_makes_its_own_room(void **state)
{
    (void)state;
    heap_t heap = {0};
    static thing_t things[N];
    for (uint32_t i = 0; i < N; i++) {
        things[i].major = (i * 7919u) % 101;
        things[i].minor = i;
        heap_push(&heap, &things[i], &things[i].place, things[i].major, i);
    }
    for (uint32_t i = 0; i < N; i += 3)
        heap_remove(&heap, &things[i].place);
    assert_int_equal(check_order(&heap), N - (N + 2) / 3);
    heap_release(&heap);
    assert_null(heap_first(&heap));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_left_comes_out_smallest_first),
        cmocka_unit_test(test_a_push_makes_its_own_room),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
