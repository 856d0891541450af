/* F32 rows to quantized ones: the formulas of the GGML reference for its types, so that a model
 * quantized here has the bytes that a file quantized there has. */
#include <math.h>

#include "common/base/qtype.h"
#include "common/base/status.h"

/* Round to nearest, ties to even; values above 65504 become Inf. Integer arithmetic alone. */
uint16_t qtype_f32_to_f16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u);
    if (rest >= 0x47800000u) /* 65536 and above */
        return (uint16_t)(sign | 0x7c00u);
    uint32_t shift = 13;
    uint32_t mantissa = rest;
    if (rest < 0x38800000u) { /* a subnormal half: the leading 1 becomes a bit like the others */
        if (rest < 0x33000000u)
            return (uint16_t)sign;
        shift = 126 - (rest >> 23);
        mantissa = (rest & 0x7fffffu) | 0x800000u;
    } else {
        mantissa -= 112u << 23;
    }
    uint32_t half = mantissa >> shift;
    uint32_t lost = mantissa & ((1u << shift) - 1), middle = 1u << (shift - 1);
    half += lost > middle || (lost == middle && (half & 1));
    return (uint16_t)(sign | half); /* a carry runs into the exponent, as it must */
}

/* The nearest e4m3 code, ties to even; beyond 448 the largest. */
uint8_t qtype_f32_to_e4m3(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint8_t sign = (uint8_t)(bits >> 24 & 0x80u);
    float size = fabsf(value);
    if (!(size < 464.0f)) /* half way between 448 and the 480 that does not exist */
        return sign | 0x7e;
    if (size < 0x1p-6f) /* subnormal steps of 2^-9; rintf rounds ties to even */
        return sign | (uint8_t)rintf(size * 0x1p9f);
    uint32_t rest = bits & 0x7fffffffu;
    uint32_t code = (rest >> 20) - (120u << 3);
    uint32_t lost = rest & 0xfffffu;
    code += lost > 0x80000u || (lost == 0x80000u && (code & 1));
    return sign | (uint8_t)(code > 0x7e ? 0x7e : code);
}

static float larger(float a, float b)
{
    return a > b ? a : b;
}

static int clamp(int value, int least, int most)
{
    return value < least ? least : value > most ? most : value;
}

/* roundf, halves away from zero, of what fits an int; the difference is exact. */
static int round_away(float value)
{
    int whole = (int)value;
    float rest = value - (float)whole;
    return whole + (rest >= 0.5f) - (rest <= -0.5f);
}

/* 0 for what has none: then all codes are 0, and so is the scale as a half. */
static float inverse_of(float d)
{
    return fabsf(d) >= 0x1p-126f ? 1.0f / d : 0.0f;
}

static bool quantize_q8_0(const float *x, uint8_t *out)
{
    float largest = 0;
    for (int i = 0; i < QTYPE_BLOCK_VALUES; i++)
        largest = larger(largest, fabsf(x[i]));
    float d = largest / 127.0f, inverse = inverse_of(d);
    qtype_q8_0_t block = {.d = qtype_f32_to_f16(d)};
    for (int i = 0; i < QTYPE_BLOCK_VALUES; i++)
        block.q[i] = (int8_t)clamp(round_away(x[i] * inverse), -127, 127);
    memcpy(out, &block, sizeof block);
    return isfinite(qtype_f16_to_f32(block.d));
}

static uint8_t nibble(float value)
{
    return (uint8_t)clamp((int)value, 0, 15);
}

/* The value of largest size becomes -8 exactly, whatever its sign. */
static bool quantize_q4_0(const float *x, uint8_t *out)
{
    float largest = 0;
    for (int i = 0; i < QTYPE_BLOCK_VALUES; i++)
        if (fabsf(x[i]) > fabsf(largest))
            largest = x[i];
    float d = largest / -8.0f, inverse = inverse_of(d);
    qtype_q4_0_t block = {.d = qtype_f32_to_f16(d)};
    for (int i = 0; i < 16; i++)
        block.q[i] = (uint8_t)(nibble(x[i] * inverse + 8.5f) |
                               nibble(x[i + 16] * inverse + 8.5f) << 4);
    memcpy(out, &block, sizeof block);
    return isfinite(qtype_f16_to_f32(block.d));
}

static bool quantize_q4_1(const float *x, uint8_t *out)
{
    float least = x[0], most = x[0];
    for (int i = 1; i < QTYPE_BLOCK_VALUES; i++) {
        least = x[i] < least ? x[i] : least;
        most = larger(most, x[i]);
    }
    float d = (most - least) / 15.0f, inverse = inverse_of(d);
    if (!isfinite(d))
        return false;
    qtype_q4_1_t block = {.d = qtype_f32_to_f16(d), .m = qtype_f32_to_f16(least)};
    for (int i = 0; i < 16; i++)
        block.q[i] = (uint8_t)(nibble((x[i] - least) * inverse + 0.5f) |
                               nibble((x[i + 16] - least) * inverse + 0.5f) << 4);
    memcpy(out, &block, sizeof block);
    return isfinite(qtype_f16_to_f32(block.d)) && isfinite(qtype_f16_to_f32(block.m));
}

/* The largest value becomes 448, the largest code. */
static void quantize_f8s(const float *x, size_t n, uint8_t *out)
{
    float largest = 0;
    for (size_t i = 0; i < n; i++)
        largest = larger(largest, fabsf(x[i]));
    qtype_f8s_t block = {.d = largest / 448.0f};
    for (size_t i = 0; i < n; i++)
        block.q[i] = block.d != 0 ? qtype_f32_to_e4m3(x[i] / block.d) : 0;
    memcpy(out, &block, sizeof block);
}

bool qtype_can_quantize(qtype_t type)
{
    return type == QTYPE_Q8_0 || type == QTYPE_Q4_0 || type == QTYPE_Q4_1 || type == QTYPE_F8S;
}

bool qtype_quantize_row(qtype_t type, const float *values, size_t n_values, void *row)
{
    const qtype_info_t *info = qtype_info((uint32_t)type);
    CHECK(qtype_can_quantize(type) && (type == QTYPE_F8S || n_values % info->block_values == 0));
    for (size_t i = 0; i < n_values; i++)
        if (!isfinite(values[i]))
            return false;
    uint8_t *out = row;
    for (size_t i = 0; i < n_values; i += info->block_values, out += info->block_bytes) {
        bool fits = true;
        size_t n = n_values - i;
        switch (type) {
        case QTYPE_Q8_0: fits = quantize_q8_0(values + i, out); break;
        case QTYPE_Q4_0: fits = quantize_q4_0(values + i, out); break;
        case QTYPE_Q4_1: fits = quantize_q4_1(values + i, out); break;
        default: quantize_f8s(values + i, n < QTYPE_F8S_VALUES ? n : QTYPE_F8S_VALUES, out);
        }
        if (!fits)
            return false;
    }
    return true;
}
