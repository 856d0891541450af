/* See kv_ahead.h. A pool of blocks hands out those that it never used in ascending order, so a cache
 * grows into new pages in all of its layers at the same step: a huge page for each layer, cleared by
 * the system one after the other while the compute threads wait, tens of milliseconds on a good
 * machine. A thread of the device stays ahead of the highest block that was seen instead. It is a
 * little less urgent than compute threads, and where the system cannot do this (before Linux 5.14)
 * nothing is done ahead. */
#include "kernels/cpu/kv_ahead.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "kernels/cpu/pages.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define HUGE_BYTES ((size_t)2 << 20)
#define NICER 5

struct kv_ahead {
    pthread_t thread;
    sem_t bell;
    _Atomic bool stop;
    _Atomic uint32_t highest;   /* block seen */
    _Atomic uint32_t wake_from; /* the first one at which a sleeping thread has work; else UINT32_MAX */
    pthread_mutex_t lock;       /* of the rest; held while one layer's pages are made present */
    kkv_t *caches;
};

/* In a cache: n_present blocks are present in all layers, those up to going_to in layers_present of
 * them. How far ahead, in blocks: less than a layer's huge page, so that a cache that is hardly used has few
 * second ones. */
static uint32_t distance(const kkv_t *kv)
{
    size_t bytes = kv_layer_block_bytes(&kv->pages);
    return (uint32_t)(HUGE_BYTES / bytes / 4 * 3);
}

/* Of one layer, up to `end`. False when the system cannot. */
static bool populate(const kkv_t *kv, uint32_t layer, uint32_t end)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = kv_layer_block_bytes(&kv->pages);
    uintptr_t first = (uintptr_t)kv_page(&kv->pages, layer, kv->n_present, 0) / page * page;
    uintptr_t last = (uintptr_t)kv_page(&kv->pages, layer, end - 1, 0) + bytes;
    return madvise((void *)first, (last - first + page - 1) / page * page,
                   MADV_POPULATE_WRITE) == 0;
}

/* The next cache that is not far enough ahead of `highest`, and up to where it should be. */
static kkv_t *next_cache(const kv_ahead_t *ahead, uint32_t highest, uint32_t *end_out)
{
    for (kkv_t *kv = ahead->caches; kv != NULL; kv = kv->next) {
        uint64_t end = (uint64_t)highest + 1 + distance(kv);
        *end_out = end < kv->pages.n_blocks ? (uint32_t)end : kv->pages.n_blocks;
        if (*end_out > kv->n_present)
            return kv;
    }
    return NULL;
}

/* The first block at which some cache has something to do. */
static uint32_t first_to_do(const kv_ahead_t *ahead)
{
    uint32_t first = UINT32_MAX;
    for (const kkv_t *kv = ahead->caches; kv != NULL; kv = kv->next) {
        uint32_t far = distance(kv), at = kv->n_present > far ? kv->n_present - far : 0;
        first = kv->n_present < kv->pages.n_blocks && at < first ? at : first;
    }
    return first;
}

/* One layer's step ahead. False when there is nothing to do until block *next_out. */
static bool go_ahead(kv_ahead_t *ahead, uint32_t *next_out)
{
    uint32_t end;
    pthread_mutex_lock(&ahead->lock);
    kkv_t *kv = next_cache(ahead, atomic_load(&ahead->highest), &end);
    if (kv != NULL) {
        /* A cache's layers go together; a later look at `highest` waits for the next round. */
        if (kv->layers_present == 0)
            kv->going_to = end;
        bool done = populate(kv, kv->layers_present, kv->going_to);
        if (!done) {
            kv->n_present = UINT32_MAX; /* never again */
        } else if (++kv->layers_present == kv->pages.n_layers) {
            kv->n_present = kv->going_to;
            kv->layers_present = 0;
        }
    }
    *next_out = first_to_do(ahead);
    pthread_mutex_unlock(&ahead->lock);
    return kv != NULL;
}

static void *run(void *context)
{
    kv_ahead_t *ahead = context;
    id_t self = (id_t)syscall(SYS_gettid);
    setpriority(PRIO_PROCESS, self, getpriority(PRIO_PROCESS, self) + NICER);
    while (!atomic_load(&ahead->stop)) {
        uint32_t next;
        if (go_ahead(ahead, &next))
            continue;
        atomic_store(&ahead->wake_from, next);
        if (atomic_load(&ahead->highest) < next)
            while (sem_wait(&ahead->bell) != 0)
                continue;
        atomic_store(&ahead->wake_from, UINT32_MAX);
    }
    return NULL;
}

/* Without a thread steps clear their pages themselves. */
static kv_ahead_t *start(void)
{
    kv_ahead_t *ahead = MEM_NEW(kv_ahead_t);
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
        device->kv_ahead = start();
    kv_ahead_t *ahead = device->kv_ahead;
    if (ahead == NULL)
        return;
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
