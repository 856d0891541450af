/* Blocks of 32 values with a fifth bit, and the "K" and ternary super-blocks of 256. */
#include "common/base/qtype.h"
#include "common/base/qtype_blocks.h"

static float load_half(const uint8_t *bytes)
{
    return qtype_f16_to_f32(qtype_load_u16(bytes));
}

/* d, 4 bytes of fifth bits, 16 bytes of nibbles. */
void qtype_block_q5_0(const uint8_t *block, float *out)
{
    float d = load_half(block);
    uint32_t high = qtype_load_u32(block + 2);
    for (int i = 0; i < 16; i++) {
        int low = block[6 + i];
        out[i] = d * (float)((low & 15) + (int)(high >> i & 1) * 16 - 16);
        out[i + 16] = d * (float)((low >> 4) + (int)(high >> (i + 16) & 1) * 16 - 16);
    }
}

void qtype_block_q5_1(const uint8_t *block, float *out)
{
    float d = load_half(block), m = load_half(block + 2);
    uint32_t high = qtype_load_u32(block + 4);
    for (int i = 0; i < 16; i++) {
        int low = block[8 + i];
        out[i] = d * (float)((low & 15) + (int)(high >> i & 1) * 16) + m;
        out[i + 16] = d * (float)((low >> 4) + (int)(high >> (i + 16) & 1) * 16) + m;
    }
}

/* 16 bytes (scale, minimum), 64 bytes of 2-bit values, d, dmin. In all super-blocks of 2-bit values
 * a byte holds the values that lie 32 apart. */
void qtype_block_q2_k(const uint8_t *block, float *out)
{
    const uint8_t *scales = block, *q = block + 16;
    float d = load_half(block + 80), d_min = load_half(block + 82);
    for (int i = 0; i < 256; i++) {
        uint8_t scale = scales[i / 16];
        int value = q[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        float step = d * (float)(scale & 15), least = d_min * (float)(scale >> 4);
        out[i] = step * (float)value - least;
    }
}

/* 32 bytes of third bits, 64 bytes of 2-bit values, 12 bytes of 6-bit scales, d. */
void qtype_block_q3_k(const uint8_t *block, float *out)
{
    const uint8_t *high = block, *q = block + 32, *packed = block + 96;
    float d = load_half(block + 108), steps[16];
    for (int i = 0; i < 16; i++) {
        int low = packed[i % 8] >> (i / 8 * 4) & 15;
        int top = packed[8 + i % 4] >> (i / 4 * 2) & 3;
        steps[i] = d * (float)((low | top << 4) - 32);
    }
    for (int i = 0; i < 256; i++) {
        int value = q[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        int lower = (high[i % 32] >> (i / 32) & 1) ? 0 : 4; /* a set bit means no offset */
        out[i] = steps[i / 16] * (float)(value - lower);
    }
}

/* The eight 6-bit scales and minimums of Q4_K and Q5_K in 12 bytes: the first four of each lie in
 * the low bits of bytes 0 to 7, the others are put together from bytes 8 to 11 and the high
 * bits. */
static void scales_k4(const uint8_t *packed, int i, int *scale_out, int *least_out)
{
    if (i < 4) {
        *scale_out = packed[i] & 63;
        *least_out = packed[i + 4] & 63;
    } else {
        *scale_out = (packed[i + 4] & 15) | (packed[i - 4] >> 6 << 4);
        *least_out = packed[i + 4] >> 4 | (packed[i] >> 6 << 4);
    }
}

/* d, dmin, 12 bytes of scales, 128 bytes of nibbles. */
void qtype_block_q4_k(const uint8_t *block, float *out)
{
    float d = load_half(block), d_min = load_half(block + 2);
    for (int s = 0; s < 8; s++) {
        int scale, least;
        scales_k4(block + 4, s, &scale, &least);
        float step = d * (float)scale, minus = d_min * (float)least;
        const uint8_t *q = block + 16 + s / 2 * 32;
        for (int i = 0; i < 32; i++)
            out[s * 32 + i] = step * (float)(q[i] >> (s % 2 * 4) & 15) - minus;
    }
}

/* d, dmin, 12 bytes of scales, 32 bytes of fifth bits, 128 bytes of nibbles. */
void qtype_block_q5_k(const uint8_t *block, float *out)
{
    float d = load_half(block), d_min = load_half(block + 2);
    const uint8_t *high = block + 16;
    for (int s = 0; s < 8; s++) {
        int scale, least;
        scales_k4(block + 4, s, &scale, &least);
        float step = d * (float)scale, minus = d_min * (float)least;
        const uint8_t *q = block + 48 + s / 2 * 32;
        for (int i = 0; i < 32; i++) {
            int value = (q[i] >> (s % 2 * 4) & 15) | (high[i] >> s & 1) << 4;
            out[s * 32 + i] = step * (float)value - minus;
        }
    }
}

/* 128 bytes of nibbles, 64 bytes of upper bit pairs, 16 signed scales, d. */
void qtype_block_q6_k(const uint8_t *block, float *out)
{
    const uint8_t *low = block, *high = block + 128, *scales = block + 192;
    float d = load_half(block + 208);
    for (int i = 0; i < 256; i++) {
        int half = i / 128, rest = i % 128;
        int nibble = low[half * 64 + rest % 64] >> (rest / 64 * 4) & 15;
        int top = high[half * 32 + rest % 32] >> (rest / 32 * 2) & 3;
        float step = d * (float)(int8_t)scales[i / 16];
        out[i] = step * (float)((nibble | top << 4) - 32);
    }
}

/* Five (in the last 4 bytes four) base-3 digits a byte, as a fixed-point fraction: multiplying by a
 * power of three modulo 256 brings a digit to the top. */
static float ternary(float d, uint8_t packed, int digit)
{
    static const uint8_t powers[5] = {1, 3, 9, 27, 81};
    uint8_t shifted = (uint8_t)(packed * powers[digit]);
    return d * (float)((shifted * 3 >> 8) - 1);
}

/* 32 + 16 bytes of five digits, 4 bytes of four, d. */
void qtype_block_tq1_0(const uint8_t *block, float *out)
{
    float d = load_half(block + 52);
    for (int i = 0; i < 160; i++)
        out[i] = ternary(d, block[i % 32], i / 32);
    for (int i = 0; i < 80; i++)
        out[160 + i] = ternary(d, block[32 + i % 16], i / 16);
    for (int i = 0; i < 16; i++)
        out[240 + i] = ternary(d, block[48 + i % 4], i / 4);
}

/* 64 bytes of 2-bit values, d. */
void qtype_block_tq2_0(const uint8_t *block, float *out)
{
    float d = load_half(block + 64);
    for (int i = 0; i < 256; i++) {
        int value = block[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        out[i] = d * (float)(value - 1);
    }
}
