/* Packed weights as bytes: the panels alone. All else about a weight follows from its
 * specification and is made anew, so an image decides values and nothing besides: no offset,
 * size or index is ever read from one. */
#include <stdatomic.h>

#include "kernels/cpu/internal.h"

/* To be counted up with every change of what panels hold. All levels read the same panels. */
#define LAYOUT "cpu panels 2, "

const char *weight_layout(const kdevice_t *device)
{
    return device->mode == KMODE_F32 ? LAYOUT "f32" : LAYOUT "native";
}

const void *weight_image(const kweight_t *weight)
{
    return weight->memory;
}

typedef struct {
    uint8_t *to;
    size_t bytes;
    uint32_t n_pieces;
    kimage_fn fill;
    void *arg;
    _Atomic bool failed;
} open_job_t;

static void open_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    open_job_t *job = arg;
    uint32_t first, end;
    pool_slice(job->n_pieces, thread, n_threads, &first, &end);
    for (uint32_t i = first; i < end && !atomic_load(&job->failed); i++) {
        size_t at = (size_t)i * KIMAGE_PIECE;
        size_t n = job->bytes - at < KIMAGE_PIECE ? job->bytes - at : KIMAGE_PIECE;
        if (!job->fill(job->arg, i, job->to + at, n))
            atomic_store(&job->failed, true);
    }
}

status_t weight_open_image(kdevice_t *device, const kweight_spec_t *spec, size_t bytes,
                           kimage_fn fill, void *arg, kweight_t **own_out)
{
    kweight_t *weight;
    TRY(weight_prepare(device, spec, &weight));
    size_t wanted = weight->memory_bytes;
    open_job_t job = {
        .to = weight->memory,
        .bytes = bytes,
        .n_pieces = (uint32_t)((bytes + KIMAGE_PIECE - 1) / KIMAGE_PIECE),
        .fill = fill,
        .arg = arg,
    };
    if (bytes == wanted && bytes > 0)
        pool_run(device->pool, open_thread, &job);
    if (bytes == wanted && !job.failed) {
        *own_out = weight;
        return STATUS_OK;
    }
    weight_release(weight);
    if (bytes != wanted)
        return fail(STATUS_INVALID, "weight %s: an image of %zu bytes; %zu would be right",
                    spec->name, bytes, wanted);
    return fail(STATUS_INVALID, "weight %s: its image cannot be read", spec->name);
}
