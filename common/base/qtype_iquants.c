/* Blocks whose values come from a table of 16, or from a codebook of groups of four or eight. */
#include "common/base/qtype.h"
#include "common/base/qtype_blocks.h"

static const int8_t values_iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};
/* e2m1 doubled, so that all are integers. */
static const int8_t values_fp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
static const uint8_t values_iq2[3] = {0x08, 0x19, 0x2b};
static const uint8_t values_iq3_xxs[8] = {0x04, 0x0c, 0x14, 0x1c, 0x24, 0x2c, 0x34, 0x3e};

static float load_half(const uint8_t *bytes)
{
    return qtype_f16_to_f32(qtype_load_u16(bytes));
}

/* n bytes of nibbles: byte i holds values i and i + n. */
static void nibbles(const uint8_t *q, int n, const int8_t *values, float d, float *out)
{
    for (int i = 0; i < n; i++) {
        out[i] = d * (float)values[q[i] & 15];
        out[i + n] = d * (float)values[q[i] >> 4];
    }
}

void qtype_block_iq4_nl(const uint8_t *block, float *out)
{
    nibbles(block + 2, 16, values_iq4, load_half(block), out);
}

/* d, 2 bytes of the scales' upper bit pairs, 4 bytes of their nibbles, 128 bytes of nibbles. */
void qtype_block_iq4_xs(const uint8_t *block, float *out)
{
    float d = load_half(block);
    uint32_t high = qtype_load_u16(block + 2);
    for (int s = 0; s < 8; s++) {
        int scale = (block[4 + s / 2] >> (s % 2 * 4) & 15) | (int)(high >> (2 * s) & 3) << 4;
        nibbles(block + 8 + s * 16, 16, values_iq4, d * (float)(scale - 32), out + s * 32);
    }
}

/* Half of 2^(e - 127), for the doubled values: below 2^-126 a subnormal. */
static float half_power(uint8_t e)
{
    return qtype_bits_to_f32(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
}

void qtype_block_mxfp4(const uint8_t *block, float *out)
{
    nibbles(block + 1, 16, values_fp4, half_power(block[0]), out);
}

/* 4 scales e4m3 without sign (0x7f counts as 0), each for 16 values. */
void qtype_block_nvfp4(const uint8_t *block, float *out)
{
    for (int s = 0; s < 4; s++) {
        uint8_t code = block[s];
        int exponent = code >> 3 & 15, mantissa = code & 7;
        float d = exponent == 0
                      ? (float)mantissa * 0x1p-9f
                      : (float)(8 + mantissa) *
                            qtype_bits_to_f32((uint32_t)(exponent - 10 + 127) << 23);
        d = code == 0x7f ? 0.0f : d * 0.5f;
        nibbles(block + 4 + s * 8, 8, values_fp4, d, out + s * 16);
    }
}

/* --- codebooks --- */

/* Seven sign bits and, as the eighth, their parity. */
static uint8_t signs_of(uint32_t code)
{
    code &= 127;
    return (uint8_t)(code | (uint32_t)__builtin_parity(code) << 7);
}

static void group_of_8(uint16_t grid, uint8_t signs, float d, float *out)
{
    for (int i = 0; i < 8; i++) {
        float value = d * (float)values_iq2[grid >> (2 * i) & 3];
        out[i] = signs >> i & 1 ? -value : value;
    }
}

/* d, then for each 32 values: 4 bytes of grid numbers, 4 times 7 sign bits, 4 bits of scale. */
void qtype_block_iq2_xxs(const uint8_t *block, float *out)
{
    float d = load_half(block);
    for (int s = 0; s < 8; s++) {
        const uint8_t *q = block + 2 + s * 8;
        uint32_t rest = qtype_load_u32(q + 4);
        float step = d * (0.5f + (float)(rest >> 28)) * 0.25f;
        for (int g = 0; g < 4; g++)
            group_of_8(qtype_grid_iq2_xxs[q[g]], signs_of(rest >> (7 * g)), step,
                       out + s * 32 + g * 8);
    }
}

/* d, 32 times (9 bits of grid number, 7 sign bits), 8 bytes of 4-bit scales for 16 values each. */
void qtype_block_iq2_xs(const uint8_t *block, float *out)
{
    float d = load_half(block);
    for (int g = 0; g < 32; g++) {
        uint32_t q = qtype_load_u16(block + 2 + 2 * g);
        int scale = block[66 + g / 4] >> (g / 2 % 2 * 4) & 15;
        float step = d * (0.5f + (float)scale) * 0.25f;
        group_of_8(qtype_grid_iq2_xs[q & 511], signs_of(q >> 9), step, out + g * 8);
    }
}

/* d, 32 bytes of grid numbers, 32 of signs, 8 of upper bit pairs, 8 of scales. */
void qtype_block_iq2_s(const uint8_t *block, float *out)
{
    float d = load_half(block);
    for (int g = 0; g < 32; g++) {
        uint32_t number = block[2 + g] | (uint32_t)(block[66 + g / 4] >> (g % 4 * 2) & 3) << 8;
        int scale = block[74 + g / 4] >> (g / 2 % 2 * 4) & 15;
        float step = d * (0.5f + (float)scale) * 0.25f;
        group_of_8(qtype_grid_iq2_s[number], block[34 + g], step, out + g * 8);
    }
}

/* d, 64 bytes of grid numbers, then for each 32 values 4 times 7 sign bits and 4 bits of scale. */
void qtype_block_iq3_xxs(const uint8_t *block, float *out)
{
    float d = load_half(block);
    for (int s = 0; s < 8; s++) {
        uint32_t rest = qtype_load_u32(block + 66 + s * 4);
        float step = d * (0.5f + (float)(rest >> 28)) * 0.5f;
        for (int i = 0; i < 32; i++) {
            uint16_t grid = qtype_grid_iq3_xxs[block[2 + s * 8 + i / 4]];
            float value = step * (float)values_iq3_xxs[grid >> (i % 4 * 4) & 7];
            out[s * 32 + i] = signs_of(rest >> (i / 8 * 7)) >> (i % 8) & 1 ? -value : value;
        }
    }
}

/* d, 64 bytes of grid numbers, 8 of ninth bits, 32 of signs, 4 of scales for 32 values each. */
void qtype_block_iq3_s(const uint8_t *block, float *out)
{
    float d = load_half(block);
    for (int i = 0; i < 256; i++) {
        int g = i / 4;
        uint32_t number = block[2 + g] | (uint32_t)(block[66 + g / 8] >> (g % 8) & 1) << 8;
        int scale = block[106 + i / 64] >> (i / 32 % 2 * 4) & 15;
        float step = d * (float)(1 + 2 * scale);
        float value = step * (float)(2 * (qtype_grid_iq3_s[number] >> (i % 4 * 4) & 7) + 1);
        out[i] = block[74 + i / 8] >> (i % 8) & 1 ? -value : value;
    }
}

/* Codes 0, 1, 2 are -1, 0, 1, moved by an eighth. */
static void group_of_iq1(uint16_t grid, float delta, float d, float *out)
{
    for (int i = 0; i < 8; i++)
        out[i] = d * ((float)((grid >> (2 * i) & 3) - 1) + delta);
}

/* d, 32 bytes of grid numbers, 8 times (4 times 3 upper bits, 3 bits of scale, sign of delta). */
void qtype_block_iq1_s(const uint8_t *block, float *out)
{
    float d = load_half(block);
    for (int s = 0; s < 8; s++) {
        uint32_t rest = qtype_load_u16(block + 34 + 2 * s);
        float step = d * (float)(2 * (rest >> 12 & 7) + 1);
        float delta = rest & 0x8000u ? -0.125f : 0.125f;
        for (int g = 0; g < 4; g++) {
            uint32_t number = block[2 + s * 4 + g] | (rest >> (3 * g) & 7) << 8;
            group_of_iq1(qtype_grid_iq1[number], delta, step, out + s * 32 + g * 8);
        }
    }
}

/* 32 bytes of grid numbers, 16 of (3 upper bits, sign of delta) for 8 values each, and 4 words of
 * four 3-bit scales whose top nibbles together are the half d. */
void qtype_block_iq1_m(const uint8_t *block, float *out)
{
    uint32_t half = 0;
    for (int i = 0; i < 4; i++)
        half |= (uint32_t)(qtype_load_u16(block + 48 + 2 * i) >> 12) << (4 * i);
    float d = qtype_f16_to_f32((uint16_t)half);
    for (int g = 0; g < 32; g++) {
        int rest = block[32 + g / 2] >> (g % 2 * 4) & 15;
        int scale = qtype_load_u16(block + 48 + g / 8 * 2) >> (g / 2 % 4 * 3) & 7;
        uint32_t number = block[g] | (uint32_t)(rest & 7) << 8;
        group_of_iq1(qtype_grid_iq1[number], rest & 8 ? -0.125f : 0.125f,
                     d * (float)(2 * scale + 1), out + g * 8);
    }
}
