/* The kernels that work on one row at a time, in plain C: the definitions of docs/numerics.md. */
#include <math.h>
#include <string.h>

#include "common/base/status.h"
#include "kernels/cpu/numbers.h"
#include "kernels/cpu/ref.h"

/* Lane i + lane i^8, then ^4, ^2, ^1: addition commutes, so all lanes end with the same bits. */
static float tree_of_lanes(const float lanes[NUMERICS_LANES])
{
    float sum[NUMERICS_LANES];
    memcpy(sum, lanes, sizeof sum);
    for (uint32_t distance = 8; distance > 0; distance /= 2) {
        float next[NUMERICS_LANES];
        for (uint32_t i = 0; i < NUMERICS_LANES; i++)
            next[i] = sum[i] + sum[i ^ distance];
        memcpy(sum, next, sizeof sum);
    }
    return sum[0];
}

void rmsnorm_ref(const float *x, const float *weight, uint32_t n, float eps, float *out)
{
    float lanes[NUMERICS_LANES] = {0};
    for (uint32_t i = 0; i < n; i++)
        lanes[i % NUMERICS_LANES] = fmaf(x[i], x[i], lanes[i % NUMERICS_LANES]);
    float mean = tree_of_lanes(lanes) / (float)n;
    float r = 1.0f / sqrtf(mean + eps);
    for (uint32_t i = 0; i < n; i++)
        out[i] = weight != NULL ? x[i] * r * weight[i] : x[i] * r;
}

/* The largest magnitude as bits: integers order like the floats, with Inf and NaN on top. */
static uint32_t magnitude_bits(const float *x, uint32_t n)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t bits = float_bits(x[i]) & 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    return most;
}

/* One group of n values. */
static void quantize_group(const float *x, uint32_t n, kinput_seg_t *out)
{
    group_scale_t scale = group_scale(magnitude_bits(x, n));
    int32_t sum = 0;
    memset(out, 0, sizeof *out);
    for (uint32_t i = 0; scale.id != 0.0f && i < n; i++) {
        out->q[i] = (int8_t)lrintf(x[i] * scale.id);
        sum += out->q[i];
    }
    out->da = scale.da;
    out->offset = scale.offset;
    out->sum = (float)sum * scale.da;
    out->start_q4 = SUM_START - 8 * sum;
    out->start_q8 = SUM_START - 128 * sum;
}

/* The group, of those not taken yet, with the largest magnitude; n_segs when none reaches 2^-100. */
static uint32_t largest_group(const kinput_t *layout, const float *x, const uint32_t *taken,
                              uint32_t n_taken)
{
    uint32_t largest = TINY_BITS - 1, at = layout->n_segs;
    for (uint32_t s = 0; s < layout->n_segs; s++) {
        bool is_taken = false;
        for (uint32_t i = 0; i < n_taken; i++)
            is_taken |= taken[i] == s;
        uint32_t most = magnitude_bits(x + layout->segs[s].k, layout->segs[s].len);
        if (!is_taken && most > largest) {
            largest = most;
            at = s;
        }
    }
    return at;
}

/* Takes the largest value, the first of equals, out of a group. */
static void take_apart(const kseg_t *seg, const float *x, kinput_seg_t *group, kapart_t *apart)
{
    float rest[SEGMENT_K];
    uint32_t most = magnitude_bits(x + seg->k, seg->len), at = 0;
    memcpy(rest, x + seg->k, seg->len * sizeof rest[0]);
    while ((float_bits(rest[at]) & 0x7fffffffu) != most)
        at++;
    apart->value[apart->n] = rest[at];
    apart->k[apart->n++] = seg->k + at;
    rest[at] = 0;
    quantize_group(rest, seg->len, group);
}

static bool quantize_int8(const kinput_t *layout, const float *x, uint8_t *row_out)
{
    kinput_seg_t *out = (kinput_seg_t *)(void *)row_out;
    for (uint32_t s = 0; s < layout->n_segs; s++)
        quantize_group(x + layout->segs[s].k, layout->segs[s].len, &out[s]);
    bool bad = magnitude_bits(x, layout->k) >= HUGE_BITS;
    if (!layout->has_apart)
        return bad;
    kapart_t *apart = (kapart_t *)(void *)(out + layout->n_segs);
    memset(apart, 0, sizeof *apart);
    uint32_t taken[NUMERICS_APART], n = 0;
    while (!bad && n < NUMERICS_APART &&
           (taken[n] = largest_group(layout, x, taken, n)) < layout->n_segs)
        n++;
    for (uint32_t s = 0; s < layout->n_segs; s++)
        for (uint32_t i = 0; i < n; i++)
            if (taken[i] == s)
                take_apart(&layout->segs[s], x, &out[s], apart);
    return bad;
}

bool quantize_ref(const kinput_t *layout, const float *x, uint8_t *row_out)
{
    if (layout->kind == KACTIVATION_INT8 || layout->kind == KACTIVATION_INT8_16)
        return quantize_int8(layout, x, row_out);
    bool bad = magnitude_bits(x, layout->k) >= ROW_ERROR_BITS;
    for (uint32_t l = 0; l < layout->n_leaves; l++) {
        const kleaf_t *leaf = &layout->leaves[l];
        for (uint32_t i = 0; i < leaf->len_padded; i++) {
            float value = i < leaf->len ? x[leaf->k + i] : 0.0f;
            if (bad)
                value = bits_float(NAN_BITS);
            size_t at = leaf->k_padded +
                        (layout->pair_order && layout->kind == KACTIVATION_F32 ? i ^ 1 : i);
            if (layout->kind == KACTIVATION_BF16) {
                uint16_t half = bf16_round(value);
                memcpy(row_out + at * 2, &half, 2);
            } else {
                memcpy(row_out + at * 4, &value, 4);
            }
        }
    }
    return bad;
}

void tree_add_ref(const tree_program_t *program, const float *const *inputs, const float *bias,
                  const float *residual, float *out, uint32_t first, uint32_t end)
{
    for (uint32_t i = first; i < end; i++) {
        float stack[TREE_DEPTH_MAX];
        uint32_t depth = 0;
        for (uint32_t s = 0; s < program->n_steps; s++) {
            if (program->steps[s] == TREE_ADD) {
                depth--;
                stack[depth - 1] = stack[depth - 1] + stack[depth];
            } else {
                stack[depth++] = inputs[program->steps[s]][i];
            }
        }
        float sum = stack[0];
        if (bias != NULL)
            sum = sum + bias[i];
        out[i] = residual != NULL ? residual[i] + sum : sum;
    }
}

void silu_mul_ref(const float *gate, const float *up, uint32_t n, float *out)
{
    for (uint32_t i = 0; i < n; i++)
        out[i] = silu_ref(gate[i]) * up[i];
}

/* Comparisons are written so that NaN stays NaN. */
static float clamp_ref(float x, float limit)
{
    x = limit < x ? limit : x;
    return -limit > x ? -limit : x;
}

static float activate_one(const kactivate_t *what, float gate, float up)
{
    float limit = what->limit;
    switch (what->kind) {
    case KACTIVATE_GELU_TANH:
        return gelu_ref(gate) * up;
    case KACTIVATE_CLAMP_GLU:
        gate = limit < gate ? limit : gate;
        gate = gate / (1.0f + exp2_ref(gate * what->alpha * -LOG2_E));
        return (clamp_ref(up, limit) + 1.0f) * gate;
    case KACTIVATE_SILU_LIMIT:
        return silu_ref(limit < gate ? limit : gate) * clamp_ref(up, limit);
    default:
        return silu_ref(gate) * up;
    }
}

void activate_ref(const kactivate_t *what, const float *gate, const float *up, uint32_t n,
                  float *out)
{
    for (uint32_t i = 0; i < n; i++)
        out[i] = activate_one(what, gate[i], up[i]);
}

void softcap_ref(float *x, uint32_t n, float cap)
{
    for (uint32_t i = 0; i < n; i++)
        x[i] = cap * tanh_ref(x[i] / cap);
}

void turn_ref(krope_pairs_t pairs, const float *turns, uint32_t half, float *head)
{
    uint32_t step = pairs == KROPE_ADJACENT ? 2 : 1, partner = pairs == KROPE_ADJACENT ? 1 : half;
    for (uint32_t i = 0; i < half; i++) {
        float *first = head + (size_t)i * step, *second = first + partner;
        float a = *first, b = *second;
        *first = a * turns[i] - b * turns[half + i];
        *second = a * turns[half + i] + b * turns[i];
    }
}
