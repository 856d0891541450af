/* The heap of order.h. */
#include "worker/engine/order.h"

#include <stdlib.h>

#include "common/base/memory.h"
#include "common/base/status.h"

void order_reserve(order_t *order, uint32_t n)
{
    size_t capacity = order->capacity;
    MEM_GROW(order->entries, capacity, n);
    order->capacity = (uint32_t)capacity;
}

void order_release(order_t *order)
{
    free(order->entries);
    *order = (order_t){0};
}

static bool before(const order_entry_t *a, const order_entry_t *b)
{
    return a->major != b->major ? a->major < b->major : a->minor < b->minor;
}

static void set(order_t *order, uint32_t at, const order_entry_t *entry)
{
    order->entries[at] = *entry;
    *entry->place = at + 1;
}

/* Finds the place of `entry`, going up or down from the hole at `at`. */
static void settle(order_t *order, uint32_t at, const order_entry_t *entry)
{
    while (at > 0 && before(entry, &order->entries[(at - 1) / 2])) {
        set(order, at, &order->entries[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= order->n)
            break;
        if (child + 1 < order->n && before(&order->entries[child + 1], &order->entries[child]))
            child++;
        if (!before(&order->entries[child], entry))
            break;
        set(order, at, &order->entries[child]);
        at = child;
    }
    set(order, at, entry);
}

void order_put(order_t *order, void *thing, order_place_t *place, uint64_t major, uint64_t minor)
{
    const order_entry_t entry = {major, minor, thing, place};
    CHECK(*place == 0 && order->n < order->capacity);
    order->n++;
    settle(order, order->n - 1, &entry);
}

void order_remove(order_t *order, order_place_t *place)
{
    if (*place == 0)
        return;
    uint32_t at = *place - 1;
    CHECK(at < order->n && order->entries[at].place == place);
    *place = 0;
    order->n--;
    if (at == order->n)
        return;
    const order_entry_t last = order->entries[order->n];
    settle(order, at, &last);
}
