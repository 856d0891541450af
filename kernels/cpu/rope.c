/* Rotary position embedding. The cosines and sines of all positions of a deployment are computed
 * once, in double, by our own functions; a row's turn is four products and two sums a pair. */
#include <stdlib.h>

#include "common/base/memory.h"
#include "kernels/cpu/double_math.h"
#include "kernels/cpu/internal.h"

enum { POSITIONS_MAX = 1 << 24 };

static status_t check_spec(const krope_spec_t *spec)
{
    if (spec->dim < 2 || spec->dim > KHEAD_DIM_MAX || spec->dim % 2 != 0)
        return fail(STATUS_UNSUPPORTED,
                    "rope over %u dimensions: even numbers up to %d can be turned", spec->dim,
                    KHEAD_DIM_MAX);
    if (spec->first > KHEAD_DIM_MAX - spec->dim || !(spec->magnitude >= 0.0f) ||
        !(spec->magnitude < 1e6f))
        return fail(STATUS_INVALID, "rope from dimension %u on, with magnitude %g", spec->first,
                    (double)spec->magnitude);
    if (!(spec->base > 1.0) || !(spec->base < 1e30) || !(spec->position_scale > 0.0) ||
        !(spec->position_scale <= 1e6))
        return fail(STATUS_INVALID, "rope with base %g and position scale %g", spec->base,
                    spec->position_scale);
    if (spec->positions < 1 || spec->positions > POSITIONS_MAX ||
        (double)spec->positions * spec->position_scale > 1e9)
        return fail(STATUS_INVALID, "rope for %u positions: 1 to %d are possible", spec->positions,
                    POSITIONS_MAX);
    for (uint32_t i = 0; spec->factors != NULL && i < spec->dim / 2; i++)
        if (!(spec->factors[i] >= 1e-3f) || !(spec->factors[i] <= 1e6f))
            return fail(STATUS_INVALID, "rope factor %u is %g", i, (double)spec->factors[i]);
    return STATUS_OK;
}

status_t rope_open(kdevice_t *device, const krope_spec_t *spec, krope_t **own_out)
{
    (void)device;
    TRY(check_spec(spec));
    krope_t *rope = MEM_NEW(krope_t);
    rope->spec = *spec;
    rope->spec.factors = NULL;
    uint32_t half = spec->dim / 2;
    rope->table = MEM_NEW_ARRAY(float, (size_t)spec->positions * spec->dim);
    double log2_base = math_log2(spec->base);
    float magnitude = spec->magnitude > 0.0f ? spec->magnitude : 1.0f;
    float sine_magnitude = spec->inverse ? -magnitude : magnitude;
    for (uint32_t i = 0; i < half; i++) {
        double frequency = math_exp2(-2.0 * i / spec->dim * log2_base);
        if (spec->factors != NULL)
            frequency = frequency / (double)spec->factors[i];
        /* Models are trained with frequencies in F32; the rounding is theirs. */
        double angle_step = (double)(float)frequency * spec->position_scale;
        for (uint32_t p = 0; p < spec->positions; p++) {
            double sine, cosine;
            math_sin_cos(p * angle_step, &sine, &cosine);
            rope->table[(size_t)p * spec->dim + i] = (float)cosine * magnitude;
            rope->table[(size_t)p * spec->dim + half + i] = (float)sine * sine_magnitude;
        }
    }
    *own_out = rope;
    return STATUS_OK;
}

void rope_close(krope_t *take_rope)
{
    if (take_rope == NULL)
        return;
    free(take_rope->table);
    free(take_rope);
}

void rope_turn(const klevel_t *level, const krope_t *rope, uint32_t position, float *head)
{
    const krope_spec_t *spec = &rope->spec;
    level->turn(spec->pairs, rope->table + (size_t)position * spec->dim, spec->dim / 2,
                head + spec->first);
}
