/* peers-probe THREADS: what this machine's units give at most to so many threads at once, a line of
 * JSON: int8 dot products, bf16 dot products, fp32 multiply-adds, reading 1 GiB. bench/peers takes
 * the ceilings of its rows from here, in the same run. Each thread is pinned to a processor of its
 * own, where there is one; a figure is the best of several rounds that all begin together.
 *
 * From two threads on also line_ns, how long a cache line takes from the first thread to the second
 * and back. A virtual machine's processors are cores of the host, and not always the same ones: two
 * that share a cache hear of each other in a fifth of the time of two that do not, and together read
 * two thirds as much. It changes within seconds, with every figure of two threads or processes, so
 * two programs may be compared only where line_ns was the same for both. */
#include <pthread.h>
#include <sched.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/memory.h"
#include "common/base/status.h"
#include "bench/kernels/probe.h"

enum { THREADS_MAX = 256, ROUNDS = 8, CHAIN_ROUNDS = 2000000 };
enum { LINE_BATCHES = 501, LINE_TRIPS = 64 };
static const size_t READ_BYTES = (size_t)1 << 30;

typedef struct {
    const char *name;
    double (*probe)(uint64_t rounds); /* NULL: read memory */
} unit_t;

typedef struct {
    uint32_t index, n_threads;
    const unit_t *unit;
    pthread_barrier_t *together;
    uint8_t *memory;
    uint64_t elapsed_ns[ROUNDS];
    double work[ROUNDS];
    uint64_t sink;
} one_thread_t;

static void pin(uint32_t index)
{
    cpu_set_t allowed, mine;
    CPU_ZERO(&mine);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) <= (int)index)
        return;
    for (uint32_t cpu = 0, seen = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed) && seen++ == index)
            CPU_SET(cpu, &mine);
    pthread_setaffinity_np(pthread_self(), sizeof mine, &mine);
}

static void *work(void *context)
{
    one_thread_t *self = context;
    size_t bytes = READ_BYTES / self->n_threads / 4096 * 4096;
    pin(self->index);
    if (self->unit->probe == NULL) {
        self->memory = aligned_alloc(4096, bytes);
        CHECK(self->memory != NULL);
        memset(self->memory, 1, bytes);
    }
    for (uint32_t i = 0; i < ROUNDS; i++) {
        pthread_barrier_wait(self->together);
        uint64_t begun = clock_ns();
        if (self->unit->probe != NULL) {
            self->work[i] = self->unit->probe(CHAIN_ROUNDS);
        } else {
            self->sink ^= probe_read(self->memory, bytes);
            self->work[i] = (double)bytes;
        }
        self->elapsed_ns[i] = clock_ns() - begun;
    }
    free(self->memory);
    return NULL;
}

/* Giga operations or bytes a second of all threads together. */
static double rate(const unit_t *unit, uint32_t n_threads)
{
    pthread_barrier_t together;
    pthread_barrier_init(&together, NULL, n_threads);
    one_thread_t *threads = MEM_NEW_ARRAY(one_thread_t, n_threads);
    pthread_t ids[THREADS_MAX];
    for (uint32_t i = 0; i < n_threads; i++) {
        threads[i] = (one_thread_t){
            .index = i, .n_threads = n_threads, .unit = unit, .together = &together};
        CHECK(pthread_create(&ids[i], NULL, work, &threads[i]) == 0);
    }
    for (uint32_t i = 0; i < n_threads; i++)
        pthread_join(ids[i], NULL);
    double best = 0;
    volatile uint64_t sink = 0;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        double total = 0;
        uint64_t slowest_ns = 1;
        for (uint32_t i = 0; i < n_threads; i++) {
            total += threads[i].work[round];
            sink = sink ^ threads[i].sink;
            if (threads[i].elapsed_ns[round] > slowest_ns)
                slowest_ns = threads[i].elapsed_ns[round];
        }
        best = total / (double)slowest_ns > best ? total / (double)slowest_ns : best;
    }
    free(threads);
    pthread_barrier_destroy(&together);
    return best;
}

/* A word on a line of its own, which one thread writes and the other waits for. */
typedef struct {
    alignas(64) _Atomic uint32_t value;
    alignas(64) char end[64]; /* the neighbouring line, which a processor may fetch along */
} word_t;

static word_t there, back;

static void wait_for(word_t *word, uint32_t value)
{
    while (atomic_load_explicit(&word->value, memory_order_acquire) != value)
        __builtin_ia32_pause();
}

static void *answer(void *context)
{
    (void)context;
    pin(1);
    for (uint32_t i = 1; i <= LINE_BATCHES * LINE_TRIPS; i++) {
        wait_for(&there, i);
        atomic_store_explicit(&back.value, i, memory_order_release);
    }
    return NULL;
}

static int by_size(const void *a, const void *b)
{
    uint64_t x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

static void *ask(void *context)
{
    uint64_t *batch_ns = context; /* [LINE_BATCHES] */
    pin(0);
    for (uint32_t i = 1, batch = 0; batch < LINE_BATCHES; batch++) {
        uint64_t begun = clock_ns();
        for (uint32_t trip = 0; trip < LINE_TRIPS; trip++, i++) {
            atomic_store_explicit(&there.value, i, memory_order_release);
            wait_for(&back, i);
        }
        batch_ns[batch] = clock_ns() - begun;
    }
    return NULL;
}

/* A round trip; the median, because a batch in which a thread was interrupted takes milliseconds. */
static double line_ns(void)
{
    static uint64_t batch_ns[LINE_BATCHES];
    pthread_t first, second;
    CHECK(pthread_create(&second, NULL, answer, NULL) == 0);
    CHECK(pthread_create(&first, NULL, ask, batch_ns) == 0);
    pthread_join(first, NULL);
    pthread_join(second, NULL);
    qsort(batch_ns, LINE_BATCHES, sizeof *batch_ns, by_size);
    return (double)batch_ns[LINE_BATCHES / 2] / LINE_TRIPS;
}

/* On one processor a round trip would take two turns of the scheduler. */
static bool has_two_processors(void)
{
    cpu_set_t allowed;
    return sched_getaffinity(0, sizeof allowed, &allowed) == 0 && CPU_COUNT(&allowed) >= 2;
}

int main(int argc, char **argv)
{
    uint32_t n_threads = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 1;
    if (n_threads < 1 || n_threads > THREADS_MAX) {
        fprintf(stderr, "peers-probe: threads must be from 1 to %d\n", THREADS_MAX);
        return 1;
    }
    if (!__builtin_cpu_supports("avx2")) {
        fprintf(stderr, "peers-probe: this processor has no AVX2\n");
        return 1;
    }
    /* 16-bit products of bytes are what AVX2 without dot products has for int8. */
    const unit_t units[] = {{"read_gbs", NULL},          {"avx2_int8_gops", probe_maddubs},
                            {"int8_gops", probe_vnni},   {"bf16_gflops", probe_bf16},
                            {"fp32_gflops", probe_fma512}};
    bool avx512 = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
    size_t n_units = avx512 ? sizeof units / sizeof units[0] : 2;
    printf("{\"threads\": %u", n_threads);
    for (size_t i = 0; i < n_units; i++)
        printf(", \"%s\": %.1f", units[i].name, rate(&units[i], n_threads));
    if (n_threads >= 2 && has_two_processors())
        printf(", \"line_ns\": %.1f", line_ns());
    printf("}\n");
    return 0;
}
