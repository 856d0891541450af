/* See kv_ahead.h. A pool of blocks hands out those that it never used in ascending order, so a
 * cache grows into new pages in all of its layers at the same step: a huge page for each layer,
 * cleared by the system one after the other while the compute threads wait, tens of milliseconds on
 * a good machine. A thread of the device stays ahead of the highest block that was seen instead, a
 * little less urgent than compute threads. Layers are kept ahead by different lengths, so that they
 * do not all come to a new page at the same step. Where the system cannot do this (before Linux
 * 5.14) nothing is done ahead.
 *
 * While steps run it goes only as far as the next ones need, since its time is theirs. While the
 * device has nothing to do it goes much further, so that a server that waited for its requests does
 * not clear memory while it computes them: on a virtual machine whose host has to find each page,
 * that was 5 % of the time of the first dozens of requests. */
#include "kernels/cpu/kv_ahead.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "kernels/cpu/pages.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define HUGE_BYTES ((size_t)2 << 20)
#define NICER 5
/* How far ahead an idle device goes, all caches together. */
#define IDLE_BYTES ((size_t)256 << 20)
/* Without work for so long a device is idle. While it is not it is looked at ever more rarely. */
#define QUIET_NS_MIN 5000000
#define QUIET_NS_MAX 80000000

struct kv_ahead {
    const pool_t *pool; /* of the device */
    pthread_t thread;
    sem_t bell;
    _Atomic bool stop;
    _Atomic uint32_t highest;   /* block seen */
    /* The first one at which a sleeping thread has work; else UINT32_MAX. */
    _Atomic uint32_t wake_from;
    pthread_mutex_t lock;       /* of the rest; held while one layer's pages are made present */
    kkv_t *caches;
};

/* How far ahead of the highest block a layer is kept while steps run, in blocks: from three eighths
 * of a huge page to three quarters, so that a cache that is hardly used has few second ones. */
static uint32_t distance(const kkv_t *kv, uint32_t layer)
{
    double blocks = (double)(HUGE_BYTES / kv_layer_block_bytes(&kv->pages));
    return (uint32_t)(blocks * 3 / 8 * (1 + (layer + 1.0) / kv->pages.n_layers));
}

/* Up to the end of the huge page in which block `end - 1` of the layer ends. False when the system
 * cannot. */
static bool populate(const kkv_t *kv, uint32_t layer, uint32_t end)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = kv_layer_block_bytes(&kv->pages);
    uintptr_t base = (uintptr_t)kv_page(&kv->pages, layer, 0, 0);
    uintptr_t first = (base + kv->n_present[layer] * bytes) / page * page;
    uintptr_t last = (base + end * bytes + HUGE_BYTES - 1) / HUGE_BYTES * HUGE_BYTES;
    uintptr_t all = ((uintptr_t)kv->pages.data + kv->pages.bytes + page - 1) / page * page;
    last = last < all ? last : all;
    if (madvise((void *)first, last - first, MADV_POPULATE_WRITE) != 0)
        return false;
    size_t present = (last - base) / bytes;
    kv->n_present[layer] = present < kv->pages.n_blocks ? (uint32_t)present : kv->pages.n_blocks;
    return true;
}

/* Blocks beyond the highest that an idle device makes present. */
static uint32_t distance_idle(const kv_ahead_t *ahead)
{
    size_t bytes = 0;
    for (kkv_t *kv = ahead->caches; kv != NULL; kv = kv->next)
        bytes += kv_layer_block_bytes(&kv->pages) * kv->pages.n_layers;
    return bytes > 0 ? (uint32_t)(IDLE_BYTES / bytes) : 0;
}

/* What is to be done next: the layer that is least far ahead of those that are not far enough. */
typedef struct {
    kkv_t *kv; /* NULL: nothing is */
    uint32_t layer, end;
} next_t;

static next_t choose(const kv_ahead_t *ahead, uint32_t highest, bool idle)
{
    next_t next = {0};
    uint32_t least = UINT32_MAX, far = distance_idle(ahead);
    for (kkv_t *kv = ahead->caches; kv != NULL; kv = kv->next) {
        for (uint32_t layer = 0; layer < kv->pages.n_layers; layer++) {
            uint32_t present = kv->n_present[layer], all = kv->pages.n_blocks;
            uint64_t end = (uint64_t)highest + 1 + distance(kv, layer);
            if (idle && end < present + 1ull && present < (uint64_t)highest + 1 + far)
                end = present + 1ull; /* page by page */
            end = end < all ? end : all;
            if (present >= end || present >= least)
                continue;
            least = present;
            next = (next_t){kv, layer, (uint32_t)end};
        }
    }
    return next;
}

/* The first block at which some layer has something to do. */
static uint32_t first_to_do(const kv_ahead_t *ahead)
{
    uint32_t first = UINT32_MAX;
    for (const kkv_t *kv = ahead->caches; kv != NULL; kv = kv->next) {
        for (uint32_t layer = 0; layer < kv->pages.n_layers; layer++) {
            uint32_t present = kv->n_present[layer], far = distance(kv, layer);
            uint32_t at = present > far ? present - far : 0;
            first = present < kv->pages.n_blocks && at < first ? at : first;
        }
    }
    return first;
}

typedef enum {
    AHEAD_WENT,  /* one page, or what takes its place */
    AHEAD_COULD, /* nothing until block *next_out, or until the device is idle */
    AHEAD_DONE,  /* nothing until block *next_out, where half of what idle time made is used */
} ahead_t;

static ahead_t go_ahead(kv_ahead_t *ahead, bool idle, uint32_t *next_out)
{
    ahead_t what = AHEAD_WENT;
    pthread_mutex_lock(&ahead->lock);
    uint32_t highest = atomic_load(&ahead->highest);
    next_t next = choose(ahead, highest, false);
    if (next.kv == NULL) {
        next = choose(ahead, highest, true);
        what = next.kv == NULL ? AHEAD_DONE : idle ? AHEAD_WENT : AHEAD_COULD;
    }
    if (what == AHEAD_WENT && !populate(next.kv, next.layer, next.end))
        next.kv->n_present[next.layer] = UINT32_MAX; /* never again */
    *next_out = first_to_do(ahead);
    uint64_t half = (uint64_t)highest + 1 + distance_idle(ahead) / 2;
    if (what == AHEAD_DONE && half < *next_out)
        *next_out = (uint32_t)half;
    pthread_mutex_unlock(&ahead->lock);
    return what;
}

/* Until the bell, or for so long; 0 is for ever. */
static void wait_for_bell(kv_ahead_t *ahead, long at_most_ns)
{
    struct timespec until;
    if (at_most_ns == 0) {
        while (sem_wait(&ahead->bell) != 0)
            continue;
        return;
    }
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += at_most_ns;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    (void)sem_clockwait(&ahead->bell, CLOCK_MONOTONIC, &until);
}

static void *run(void *context)
{
    kv_ahead_t *ahead = context;
    id_t self = (id_t)syscall(SYS_gettid);
    setpriority(PRIO_PROCESS, self, getpriority(PRIO_PROCESS, self) + NICER);
    uint32_t runs = 1;
    long wait_ns = QUIET_NS_MIN;
    while (!atomic_load(&ahead->stop)) {
        uint32_t next, runs_now = pool_runs(ahead->pool);
        bool idle = runs_now == runs && runs % 2 == 0;
        ahead_t what = go_ahead(ahead, idle, &next);
        if (what == AHEAD_WENT) {
            wait_ns = idle ? QUIET_NS_MIN : wait_ns;
            continue;
        }
        runs = runs_now;
        atomic_store(&ahead->wake_from, next);
        if (atomic_load(&ahead->highest) < next)
            wait_for_bell(ahead, what == AHEAD_COULD ? wait_ns : 0);
        wait_ns = wait_ns < QUIET_NS_MAX ? 2 * wait_ns : QUIET_NS_MAX;
        atomic_store(&ahead->wake_from, UINT32_MAX);
    }
    return NULL;
}

/* Without a thread steps clear their pages themselves. */
static kv_ahead_t *start(const pool_t *pool)
{
    kv_ahead_t *ahead = MEM_NEW(kv_ahead_t);
    ahead->pool = pool;
    sem_init(&ahead->bell, 0, 0);
    pthread_mutex_init(&ahead->lock, NULL);
    if (pthread_create(&ahead->thread, NULL, run, ahead) == 0)
        return ahead;
    free(ahead);
    return NULL;
}

void kv_ahead_add(kkv_t *kv)
{
    kdevice_t *device = kv->device;
    size_t bytes = kv_layer_block_bytes(&kv->pages);
    /* Small ones lie in few huge pages, which the first touch has made present. */
    if (kv->pages.data == NULL || bytes * kv->pages.n_blocks < 2 * HUGE_BYTES)
        return;
    if (device->kv_ahead == NULL)
        device->kv_ahead = start(device->pool);
    kv_ahead_t *ahead = device->kv_ahead;
    if (ahead == NULL)
        return;
    kv->n_present = MEM_NEW_ARRAY(uint32_t, kv->pages.n_layers);
    pthread_mutex_lock(&ahead->lock);
    kv->next = ahead->caches;
    ahead->caches = kv;
    pthread_mutex_unlock(&ahead->lock);
    sem_post(&ahead->bell);
}

void kv_ahead_remove(kkv_t *kv)
{
    kv_ahead_t *ahead = kv->device->kv_ahead;
    if (ahead == NULL)
        return;
    pthread_mutex_lock(&ahead->lock);
    for (kkv_t **at = &ahead->caches; *at != NULL; at = &(*at)->next)
        if (*at == kv) {
            *at = kv->next;
            break;
        }
    pthread_mutex_unlock(&ahead->lock);
    free(kv->n_present);
    kv->n_present = NULL;
}

void kv_ahead_see(kv_ahead_t *ahead, uint32_t block)
{
    if (ahead == NULL || block <= atomic_load_explicit(&ahead->highest, memory_order_relaxed))
        return;
    atomic_store(&ahead->highest, block);
    if (block >= atomic_load(&ahead->wake_from) &&
        atomic_exchange(&ahead->wake_from, UINT32_MAX) != UINT32_MAX)
        sem_post(&ahead->bell);
}

void kv_ahead_close(kv_ahead_t *take_ahead)
{
    if (take_ahead == NULL)
        return;
    atomic_store(&take_ahead->stop, true);
    sem_post(&take_ahead->bell);
    pthread_join(take_ahead->thread, NULL);
    sem_destroy(&take_ahead->bell);
    pthread_mutex_destroy(&take_ahead->lock);
    free(take_ahead);
}
