/* See peak.h. The best of a few short rounds: whatever else runs can only make one slower. */
#include "kernels/cpu/peak.h"

#include <string.h>

#include "common/base/clock.h"
#include "kernels/cpu/queue.h"

enum { TRIES = 5, ROUNDS = 400000, READ_BYTES = 64 << 20 }; /* a thread; past any cache of it */

typedef struct {
    double (*compute)(uint64_t rounds); /* NULL: reads */
    const uint8_t *data;
    double operations[POOL_THREADS_MAX];
    uint64_t kept[POOL_THREADS_MAX]; /* so that reads are not left out */
} try_t;

static void try_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    try_t *attempt = arg;
    (void)n_threads;
    if (attempt->compute != NULL) {
        attempt->operations[thread] = attempt->compute(ROUNDS);
        return;
    }
    attempt->kept[thread] =
        peak_read_avx2(attempt->data + (size_t)thread * READ_BYTES, READ_BYTES);
    attempt->operations[thread] = READ_BYTES;
}

typedef struct {
    uint8_t *data;
    uint32_t parts; /* of READ_BYTES */
} clear_t;

static void clear_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const clear_t *clear = arg;
    uint32_t first, end;
    pool_slice(clear->parts, thread, n_threads, &first, &end);
    memset(clear->data + (size_t)first * READ_BYTES, 1, (size_t)(end - first) * READ_BYTES);
}

static double best_rate(kdevice_t *device, double (*compute)(uint64_t), const uint8_t *data)
{
    double best = 0;
    uint32_t n_threads = pool_threads(device->pool);
    for (int i = 0; i < TRIES; i++) {
        try_t attempt = {.compute = compute, .data = data};
        double operations = 0;
        uint64_t begin_ns = clock_ns();
        pool_run(device->pool, try_thread, &attempt);
        uint64_t ns = clock_ns() - begin_ns;
        for (uint32_t t = 0; t < n_threads; t++)
            operations += attempt.operations[t];
        if (ns > 0 && operations / (double)ns > best)
            best = operations / (double)ns;
    }
    return best;
}

status_t device_peak(kdevice_t *device, kpeak_t *out)
{
    bool amx = device->level == &level_amx;
    bool avx512 = amx || device->level == &level_avx512;
    *out = (kpeak_t){0};
    if (!avx512 && device->level != &level_avx2)
        return STATUS_OK;
    size_t bytes = (size_t)pool_threads(device->pool) * READ_BYTES;
    uint8_t *data = map_pages(bytes);
    if (data == NULL)
        return fail(STATUS_NO_MEMORY, "no memory for %zu bytes to read", bytes);
    /* Pages that were never written are all one page; each thread's lie near it. */
    clear_t clear = {data, pool_threads(device->pool)};
    pool_run(device->pool, clear_thread, &clear);
    *out = (kpeak_t){
        .int8_gops = best_rate(device,
                               amx      ? peak_int8_amx
                               : avx512 ? peak_int8_avx512
                                        : peak_int8_avx2,
                               NULL),
        .bf16_gflops = best_rate(device, avx512 ? peak_bf16_avx512 : peak_bf16_avx2, NULL),
        .read_gb = best_rate(device, NULL, data),
    };
    unmap_pages(data, bytes);
    return STATUS_OK;
}
