/* Zeroed pages for weights, KV and buffers. Large ranges start on 2 MiB and ask for huge pages,
 * which the system gives only where it is asked (mode `madvise`). */
#include <stdint.h>
#include <sys/mman.h>

#include "kernels/cpu/internal.h"

enum { HUGE_BYTES = 2 << 20, PAGE_BYTES = 4096 };

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
