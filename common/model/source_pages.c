/* What the pages of mapped weight files cost this process. The kernel keeps every page that was
 * once touched in the process's account until memory is short; a loader that has copied what it
 * read says so here, and a model is never counted twice. */
#include <sys/mman.h>
#include <unistd.h>

#include "common/model/source_internal.h"

/* A wish for more than the system fetches at once is cut short by it; this is what every system
 * fetches. */
enum { WANT_BYTES = 128 << 10 };

/* Whole pages around the bytes. A page that a neighbour still reads comes back from the page cache
 * when it is touched; the mapping is shared and read-only, so no change can be lost. */
static void advise(const uint8_t *data, uint64_t n, int advice)
{
    if (n == 0)
        return;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = (uintptr_t)data / page * page;
    uintptr_t end = ((uintptr_t)data + n + page - 1) / page * page;
    uintptr_t step = advice == MADV_WILLNEED ? WANT_BYTES : end - first;
    for (; first < end; first += step) {
        size_t bytes = end - first < step ? end - first : step;
        /* A refusal costs memory or time, nothing else. */
        (void)madvise((void *)first, bytes, advice);
    }
}

static void advise_part(const safetensors_tensor_t *part, int advice)
{
    if (part != NULL)
        advise(part->data, part->bytes, advice);
}

static void advise_rows(const source_tensor_t *tensor, uint64_t first, uint64_t n, int advice)
{
    CHECK(first <= tensor->rows && n <= tensor->rows - first);
    while (tensor->base != NULL)
        tensor = tensor->base; /* of a view, which has the same rows */
    if (tensor->data != NULL) {
        advise(tensor->data + first * tensor->row_bytes, n * tensor->row_bytes, advice);
        return;
    }
    const source_parts_t *parts = tensor->parts;
    uint64_t row_bytes = parts->weight->bytes / tensor->rows;
    if (parts->in_order)
        advise(parts->weight->data + first * row_bytes, n * row_bytes, advice);
    else
        advise_part(parts->weight, advice);
    advise_part(parts->scale, advice);
    advise_part(parts->zero, advice);
    advise_part(parts->group_of, advice);
}

static void advise_files(const source_t *source, int advice)
{
    if (!source->is_mapped)
        return;
    for (size_t i = 0; source->gguf != NULL && i < gguf_n_files(source->gguf); i++) {
        gguf_file_t file = gguf_file_at(source->gguf, i);
        advise(file.bytes, file.n, advice);
    }
    for (size_t i = 0; i < source->n_shards; i++)
        advise(safetensors_bytes(source->shards[i]), safetensors_file_bytes(source->shards[i]),
               advice);
}

void source_fetch_around(const source_t *source, bool around)
{
    advise_files(source, around ? MADV_NORMAL : MADV_RANDOM);
}

void source_forget_all(const source_t *source)
{
    advise_files(source, MADV_DONTNEED);
}

void source_want_rows(const source_t *source, const source_tensor_t *tensor, uint64_t row_first,
                      uint64_t n_rows)
{
    if (source->is_mapped)
        advise_rows(tensor, row_first, n_rows, MADV_WILLNEED);
}

void source_forget_rows(const source_t *source, const source_tensor_t *tensor, uint64_t row_first,
                        uint64_t n_rows)
{
    if (source->is_mapped)
        advise_rows(tensor, row_first, n_rows, MADV_DONTNEED);
}
