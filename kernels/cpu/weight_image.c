/* Packed weights as bytes: the panels alone. All else about a weight follows from its
 * specification and is made anew, so an image decides values and nothing besides, but that its size
 * tells which of two layouts it has: no offset, size or index is ever read from one. */
#include <string.h>

#include "kernels/cpu/internal.h"

/* To be counted up with every change of what panels hold. All levels read the same panels. */
#if NUMERICS_ONE_LEAF
#define LAYOUT "cpu panels 6 of one leaf, "
#else
#define LAYOUT "cpu panels 6, "
#endif

const char *weight_layout(kmode_t mode)
{
    return mode == KMODE_F32 ? LAYOUT "f32" : LAYOUT "native";
}

const void *weight_image(const kweight_t *weight)
{
    return weight->memory;
}

status_t weight_open_image(kdevice_t *device, const kweight_spec_t *spec, const void *image,
                           size_t bytes, kweight_t **own_out)
{
    kweight_t *weight;
    CHECK((uintptr_t)image % 64 == 0);
    TRY(weight_prepare(device, spec, true, &weight));
    size_t wanted = weight->memory_bytes, larger = wanted;
    /* Scales that columns share make panels smaller, and are found by that. */
    if (bytes != wanted) {
        weight_release(weight);
        TRY(weight_prepare(device, spec, false, &weight));
        larger = weight->memory_bytes;
    }
    if (bytes != weight->memory_bytes || bytes == 0) {
        weight_release(weight);
        return fail(STATUS_INVALID, "weight %s: an image of %zu bytes; %zu or %zu would be right",
                    spec->name, bytes, wanted, larger);
    }
    /* Panels are written by weight_pack alone, so that this one may be mapped read-only. */
    void *memory;
    memcpy(&memory, &image, sizeof memory);
    weight->borrowed = true;
    weight_place(weight, memory);
    *own_out = weight;
    return STATUS_OK;
}
