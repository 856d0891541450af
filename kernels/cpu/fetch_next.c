/* See fetch_next.h. A weight may be gone when the one before it is multiplied again, so what was
 * learnt counts only while no weight of the process has been released since. */
#include "kernels/cpu/fetch_next.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "common/base/memory.h"

enum {
    ROWS_FEW = 16,               /* beyond as many a matmul computes longer than it reads */
    BYTES_MAX = 256 * 1024,      /* of a thread: beside what its second-level cache holds now */
};

struct kafter {
    const kweight_t *next; /* NULL: not known */
    uint32_t n_released;   /* when that was learnt */
    uint32_t n_panels;     /* that the threads shared out when this weight was multiplied */
};

static _Atomic uint32_t weights_released;

struct kafter *fetch_next_new(void)
{
    return MEM_NEW(struct kafter);
}

void fetch_next_release(struct kafter *take_after)
{
    atomic_fetch_add(&weights_released, 1);
    free(take_after);
}

static void fetch_slices(pool_t *pool, const kweight_t *next)
{
    uint32_t n_threads = pool_threads(pool), first, end;
    for (uint32_t t = 0; t < n_threads; t++) {
        pool_slice(next->after->n_panels, t, n_threads, &first, &end);
        const kpart_t *part = weight_part(next, first);
        size_t bytes = (end - first) * part->panel_bytes;
        pool_fetch_next(pool, t, part->data + (first - part->panel_first) * part->panel_bytes,
                        bytes < BYTES_MAX ? bytes : BYTES_MAX);
    }
}

void fetch_next_begin(kdevice_t *device, const kweight_t *weight, uint32_t rows,
                      uint32_t n_panels)
{
    uint32_t n_released = atomic_load_explicit(&weights_released, memory_order_relaxed);
    struct kafter *after = weight->after;
    if (device->multiplied != NULL && device->multiplied_released == n_released) {
        struct kafter *before = device->multiplied->after;
        before->next = weight;
        before->n_released = n_released;
    }
    after->n_panels = n_panels;
    device->multiplied = weight;
    device->multiplied_released = n_released;
    if (rows > ROWS_FEW || after->next == NULL || after->n_released != n_released)
        return;
    fetch_slices(device->pool, after->next);
}
