/* Packed weights as bytes: the panels alone. All else about a weight follows from its specification
 * and is made anew, so an image decides values and nothing besides: no offset, size or index is ever
 * read from one. */
#include <stdatomic.h>
#include <string.h>

#include "kernels/cpu/internal.h"

/* To be counted up with every change of what panels hold. All levels read the same panels. */
#define LAYOUT "cpu panels 1, "

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
    const uint8_t *from;
    size_t bytes;
    uint32_t n_pieces;
    kimage_fn check;
    void *arg;
    _Atomic bool damaged;
} open_job_t;

/* What is checked is the copy, which nobody else can change any more. */
static void open_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    open_job_t *job = arg;
    uint32_t first, end;
    pool_slice(job->n_pieces, thread, n_threads, &first, &end);
    for (uint32_t i = first; i < end && !atomic_load(&job->damaged); i++) {
        size_t at = (size_t)i * KIMAGE_PIECE;
        size_t n = job->bytes - at < KIMAGE_PIECE ? job->bytes - at : KIMAGE_PIECE;
        memcpy(job->to + at, job->from + at, n);
        if (job->check != NULL && !job->check(job->arg, i, job->to + at, n))
            atomic_store(&job->damaged, true);
    }
}

status_t weight_open_image(kdevice_t *device, const kweight_spec_t *spec, const void *image,
                           size_t bytes, kimage_fn check, void *arg, kweight_t **own_out)
{
    kweight_t *weight;
    TRY(weight_prepare(device, spec, &weight));
    size_t wanted = weight->memory_bytes;
    open_job_t job = {
        .to = weight->memory,
        .from = image,
        .bytes = bytes,
        .n_pieces = (uint32_t)((bytes + KIMAGE_PIECE - 1) / KIMAGE_PIECE),
        .check = check,
        .arg = arg,
    };
    if (bytes == wanted && bytes > 0)
        pool_run(device->pool, open_thread, &job);
    if (bytes != wanted || job.damaged) {
        weight_release(weight);
        if (bytes != wanted)
            return fail(STATUS_INVALID, "weight %s: an image of %zu bytes; %zu would be right",
                        spec->name, bytes, wanted);
        return fail(STATUS_INVALID, "weight %s: its image is damaged", spec->name);
    }
    *own_out = weight;
    return STATUS_OK;
}
