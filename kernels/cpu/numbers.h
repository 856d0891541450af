/* Formulas that more than one level needs, in scalar form: the definitions of docs/numerics.md,
 * "Functions". Integer tricks replace conversions so that no level depends on a rounding mode. */
#ifndef SHOAL_KERNELS_CPU_NUMBERS_H
#define SHOAL_KERNELS_CPU_NUMBERS_H

#include <stdbool.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define EXP2_MIN (-125.0f) /* the smallest result, 2^-125 * 0.707, is still normal */
#define EXP2_MAX 126.0f
#define EXP2_ROUND 12582912.0f /* 1.5 * 2^23: adding and taking it away rounds half to even */
/* Interpolates (2^f - 1)/f in the Chebyshev nodes of [-1/2, 1/2]; largest relative error with F32
 * arithmetic 1.0e-7 (tests/unit/kernels/test_numbers.c measures it). */
#define EXP2_C1 0x1.62e43p-1f
#define EXP2_C2 0x1.ebfbep-3f
#define EXP2_C3 0x1.c6af6cp-5f
#define EXP2_C4 0x1.3b2a54p-7f
#define EXP2_C5 0x1.5f089p-10f
#define EXP2_C6 0x1.44138ap-13f

#define LOG2_E 1.44269504088896340736f
#define ROW_ERROR_BITS 0x7f800000u
#define TINY_BITS 0x0d800000u /* 2^-100 */
#define HUGE_BITS 0x71800000u /* 2^100: below it SUM_ZERO * da is finite */
/* The low two bits of an activation scale are 0, so SUM_ZERO * da, 3 * 2^22 times it, is exact. */
#define SCALE_BITS 0xfffffffcu
/* 1.5 * 2^23 as float and as bits: the bits plus an integer below 2^22 are the float plus it. */
#define SUM_ZERO 12582912.0f
#define SUM_START 0x4b400000
#define NAN_BITS 0x7fc00000u

static inline uint32_t float_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float bits_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* What a quantized group of magnitude `most` (bits) is scaled by, there and back. */
typedef struct {
    float id, da, offset;
} group_scale_t;

static inline group_scale_t group_scale(uint32_t most)
{
    float nan = bits_float(NAN_BITS);
    if (most >= HUGE_BITS)
        return (group_scale_t){0.0f, nan, nan};
    if (most < TINY_BITS)
        return (group_scale_t){0.0f, 0.0f, 0.0f};
    float amax = bits_float(most);
    float da = bits_float(float_bits(amax / 127.0f) & SCALE_BITS);
    return (group_scale_t){127.0f / amax, da, -SUM_ZERO * da};
}

/* Nearest BF16, half to even, of a finite value. */
static inline uint16_t bf16_round(float x)
{
    uint32_t bits = float_bits(x);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* Whether no value is NaN or infinite. Four lanes, which the baseline has. */
static inline bool values_are_finite(const float *x, uint32_t n)
{
    typedef int32_t lanes_t __attribute__((vector_size(16)));
    lanes_t bad = {0, 0, 0, 0};
    uint32_t i = 0, rest = 0;
    for (; i + 4 <= n; i += 4) {
        lanes_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bad |= (bits & 0x7fffffff) >= (int32_t)ROW_ERROR_BITS;
    }
    for (; i < n; i++)
        rest |= (float_bits(x[i]) & 0x7fffffffu) >= ROW_ERROR_BITS;
    return (bad[0] | bad[1] | bad[2] | bad[3]) == 0 && rest == 0;
}

/* As bf16_round, but what would round up to Inf becomes the largest BF16. */
static inline uint16_t bf16_round_finite(float x)
{
    uint16_t half = bf16_round(x);
    return (half & 0x7fffu) == 0x7f80u ? (uint16_t)(half - 1) : half;
}

static inline float bf16_value(uint16_t bits)
{
    return bits_float((uint32_t)bits << 16);
}

/* 2^x, x clamped to [EXP2_MIN, EXP2_MAX]; exactly 1 at 0; NaN stays NaN. The clamps keep their
 * second operand when nothing compares, as the vector minimum and maximum do. */
static inline float exp2_ref(float x)
{
    x = EXP2_MIN > x ? EXP2_MIN : x;
    x = EXP2_MAX < x ? EXP2_MAX : x;
    float shifted = x + EXP2_ROUND;
    float whole = shifted - EXP2_ROUND;
    float f = x - whole;
    float p = EXP2_C6;
    p = fmaf(p, f, EXP2_C5);
    p = fmaf(p, f, EXP2_C4);
    p = fmaf(p, f, EXP2_C3);
    p = fmaf(p, f, EXP2_C2);
    p = fmaf(p, f, EXP2_C1);
    p = fmaf(p, f, 1.0f);
    /* The low bits of `shifted` are the whole part in two's complement. */
    return bits_float(float_bits(p) + (float_bits(shifted) << 23));
}

/* x * sigmoid(x). */
static inline float silu_ref(float x)
{
    return x / (1.0f + exp2_ref(x * -LOG2_E));
}

static inline float sigmoid_ref(float x)
{
    return 1.0f / (1.0f + exp2_ref(x * -LOG2_E));
}

/* (tanh(y)/y - 1)/z in z = y^2, interpolated in the Chebyshev nodes of [0, TANH_SMALL^2]; beyond
 * it 1 - 2/(e^2y + 1) loses no digits. */
#define TANH_SMALL 0.625f
#define TANH_C0 -0x1.555556p-2f
#define TANH_C1 0x1.1110eap-3f
#define TANH_C2 -0x1.ba08c4p-5f
#define TANH_C3 0x1.64a976p-6f
#define TANH_C4 -0x1.116a16p-7f
#define TANH_C5 0x1.2c83cp-9f

static inline float tanh_ref(float y)
{
    float size = bits_float(float_bits(y) & 0x7fffffffu);
    float z = y * y;
    float p = TANH_C5;
    p = fmaf(p, z, TANH_C4);
    p = fmaf(p, z, TANH_C3);
    p = fmaf(p, z, TANH_C2);
    p = fmaf(p, z, TANH_C1);
    p = fmaf(p, z, TANH_C0);
    float small = fmaf(p * z, y, y);
    float large = 1.0f - 2.0f / (1.0f + exp2_ref(size * (2.0f * LOG2_E)));
    large = bits_float(float_bits(large) | (float_bits(y) & 0x80000000u));
    return size < TANH_SMALL ? small : large;
}

/* GELU by the tanh formula is x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)). */
#define GELU_CUBE 0.044715f
#define GELU_FACTOR (-2.3022082f) /* -2 sqrt(2/pi) log2(e) */

static inline float gelu_ref(float x)
{
    float inner = fmaf(x * x * GELU_CUBE, x, x);
    return x / (1.0f + exp2_ref(inner * GELU_FACTOR));
}

#endif
