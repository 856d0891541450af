/* Zeroed pages for weights, KV and buffers. Large ranges start on 2 MiB and ask for huge pages,
 * which the system gives only where it is asked (mode `madvise`).
 *
 * Weights of small models and most scratch are smaller than a huge page: they share *stretches*, in
 * which they follow each other. A stretch is only ever filled up, so what it hands out is zeroed;
 * it is given back when its last part is. */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "common/base/memory.h"
#include "kernels/cpu/internal.h"

enum {
    HUGE_BYTES = 2 << 20,
    PAGE_BYTES = 4096,
    SHARING_BYTES_MIN = 64 << 10, /* zeroing a huge page costs as much as packing smaller ones */
    SHARING_BYTES_MAX = 16 << 20, /* larger weights lose less than an eighth to small pages */
    STRETCH_BYTES = 256 << 20,    /* addresses; memory is taken by what is written */
};

typedef struct stretch stretch_t;
struct stretch {
    stretch_t *next;
    uint8_t *base;
    size_t used;
    uint32_t live; /* ranges that were not given back */
};

static pthread_mutex_t stretches_lock = PTHREAD_MUTEX_INITIALIZER;
static stretch_t *stretches; /* the newest first; ranges are cut from that one */

/* What is mapped for `bytes`: whole pages, and for large ranges room to align. */
static size_t mapped_size(size_t bytes)
{
    return (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

void *map_pages(size_t bytes)
{
    size_t size = mapped_size(bytes);
    if (bytes == 0 || size < bytes)
        return NULL;
    size_t extra = size >= HUGE_BYTES ? HUGE_BYTES : 0;
    uint8_t *base =
        mmap(NULL, size + extra, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return NULL;
    if (extra == 0)
        return base;
    size_t skip = (HUGE_BYTES - (uintptr_t)base % HUGE_BYTES) % HUGE_BYTES;
    if (skip > 0)
        munmap(base, skip);
    if (extra > skip)
        munmap(base + skip + size, extra - skip);
    madvise(base + skip, size, MADV_HUGEPAGE);
    return base + skip;
}

void unmap_pages(void *take_pages, size_t bytes)
{
    if (take_pages != NULL)
        munmap(take_pages, mapped_size(bytes));
}

static uint8_t *cut_from_stretch(size_t size)
{
    if (stretches == NULL || STRETCH_BYTES - stretches->used < size) {
        uint8_t *base = map_pages(STRETCH_BYTES);
        if (base == NULL)
            return NULL;
        stretch_t *newest = MEM_NEW(stretch_t);
        *newest = (stretch_t){.next = stretches, .base = base};
        stretches = newest;
    }
    uint8_t *range = stretches->base + stretches->used;
    stretches->used += size;
    stretches->live++;
    return range;
}

static bool is_shared(size_t bytes)
{
    return bytes >= SHARING_BYTES_MIN && bytes <= SHARING_BYTES_MAX;
}

void *map_shared(size_t bytes)
{
    if (!is_shared(bytes))
        return map_pages(bytes);
    pthread_mutex_lock(&stretches_lock);
    uint8_t *range = cut_from_stretch(mapped_size(bytes));
    pthread_mutex_unlock(&stretches_lock);
    return range != NULL ? range : map_pages(bytes); /* where addresses are limited */
}

void unmap_shared(void *take_pages, size_t bytes)
{
    if (take_pages == NULL || !is_shared(bytes)) {
        unmap_pages(take_pages, bytes);
        return;
    }
    pthread_mutex_lock(&stretches_lock);
    stretch_t **at = &stretches;
    while (*at != NULL && (uintptr_t)take_pages - (uintptr_t)(*at)->base >= STRETCH_BYTES)
        at = &(*at)->next;
    stretch_t *of = *at;
    if (of == NULL) {
        unmap_pages(take_pages, bytes);
    } else if (--of->live == 0) {
        *at = of->next;
        unmap_pages(of->base, STRETCH_BYTES);
        free(of);
    }
    pthread_mutex_unlock(&stretches_lock);
}
