/* Quantized rows as integers: every type whose values are (integer) * d + m, with one F32 d and m
 * for 32 or for 16 of them, comes down to that here, exactly. The layouts of blocks are those of
 * common/base/qtype*.c, whose F32 values the tests compare with these. */
#include <string.h>

#include "common/base/qtype.h"
#include "kernels/cpu/internal.h"

static float load_half(const uint8_t *bytes)
{
    uint16_t half;
    memcpy(&half, bytes, sizeof half);
    return qtype_f16_to_f32(half);
}

static void codes_q5_0(const uint8_t *row, uint32_t segment, kcodes_t *out)
{
    const uint8_t *block = row + (size_t)segment * 22;
    uint32_t high;
    memcpy(&high, block + 2, sizeof high);
    out->d = load_half(block);
    for (uint32_t i = 0; i < 16; i++) {
        uint32_t low = block[6 + i];
        out->q[i] = (uint8_t)((low & 15) + (high >> i & 1) * 16 + 112);
        out->q[i + 16] = (uint8_t)((low >> 4) + (high >> (i + 16) & 1) * 16 + 112);
    }
}

static void codes_q5_1(const uint8_t *row, uint32_t segment, kcodes_t *out)
{
    const uint8_t *block = row + (size_t)segment * 24;
    uint32_t high;
    memcpy(&high, block + 4, sizeof high);
    out->d = load_half(block);
    out->m = load_half(block + 2);
    for (uint32_t i = 0; i < 16; i++) {
        uint32_t low = block[8 + i];
        out->q[i] = (uint8_t)((low & 15) + (high >> i & 1) * 16);
        out->q[i + 16] = (uint8_t)((low >> 4) + (high >> (i + 16) & 1) * 16);
    }
}

static void codes_q2_k(const uint8_t *row, uint32_t segment, kcodes_t *out)
{
    const uint8_t *block = row + (size_t)(segment / 16) * 84;
    uint32_t s = segment % 16;
    out->d = load_half(block + 80) * (float)(block[s] & 15);
    out->m = -(load_half(block + 82) * (float)(block[s] >> 4));
    for (uint32_t i = 0; i < 16; i++) {
        uint32_t at = s * 16 + i;
        out->q[i] = block[16 + at / 128 * 32 + at % 32] >> (at % 128 / 32 * 2) & 3;
    }
}

static void codes_q3_k(const uint8_t *row, uint32_t segment, kcodes_t *out)
{
    const uint8_t *block = row + (size_t)(segment / 16) * 110, *packed = block + 96;
    uint32_t s = segment % 16;
    int low = packed[s % 8] >> (s / 8 * 4) & 15, top = packed[8 + s % 4] >> (s / 4 * 2) & 3;
    out->d = load_half(block + 108) * (float)((low | top << 4) - 32);
    for (uint32_t i = 0; i < 16; i++) {
        uint32_t at = s * 16 + i;
        int value = block[32 + at / 128 * 32 + at % 32] >> (at % 128 / 32 * 2) & 3;
        bool third = block[at % 32] >> (at / 32) & 1; /* a set bit means no offset */
        out->q[i] = (uint8_t)(value + (third ? 128 : 124));
    }
}

/* Scale and minimum s of the eight of Q4_K and Q5_K. */
static void scales_k4(const uint8_t *block, uint32_t s, kcodes_t *out)
{
    const uint8_t *packed = block + 4;
    int scale = packed[s] & 63, least = packed[s + 4] & 63;
    if (s >= 4) {
        scale = (packed[s + 4] & 15) | (packed[s - 4] >> 6 << 4);
        least = packed[s + 4] >> 4 | (packed[s] >> 6 << 4);
    }
    out->d = load_half(block) * (float)scale;
    out->m = -(load_half(block + 2) * (float)least);
}

static void codes_q4_k(const uint8_t *row, uint32_t segment, kcodes_t *out)
{
    const uint8_t *block = row + (size_t)(segment / 8) * 144;
    uint32_t s = segment % 8;
    scales_k4(block, s, out);
    for (uint32_t i = 0; i < 32; i++)
        out->q[i] = block[16 + s / 2 * 32 + i] >> (s % 2 * 4) & 15;
}

static void codes_q5_k(const uint8_t *row, uint32_t segment, kcodes_t *out)
{
    const uint8_t *block = row + (size_t)(segment / 8) * 176;
    uint32_t s = segment % 8;
    scales_k4(block, s, out);
    for (uint32_t i = 0; i < 32; i++)
        out->q[i] = (uint8_t)((block[48 + s / 2 * 32 + i] >> (s % 2 * 4) & 15) |
                              (block[16 + i] >> s & 1) << 4);
}

static void codes_q6_k(const uint8_t *row, uint32_t segment, kcodes_t *out)
{
    const uint8_t *block = row + (size_t)(segment / 16) * 210;
    uint32_t s = segment % 16;
    out->d = load_half(block + 208) * (float)(int8_t)block[192 + s];
    for (uint32_t i = 0; i < 16; i++) {
        uint32_t half = s / 8, rest = s % 8 * 16 + i;
        int nibble = block[half * 64 + rest % 64] >> (rest / 64 * 4) & 15;
        int top = block[128 + half * 32 + rest % 32] >> (rest / 32 * 2) & 3;
        out->q[i] = (uint8_t)((nibble | top << 4) + 96);
    }
}

/* 16 bytes of nibbles, byte i with values i and i + 16, that name one of 16 integers. */
static void from_table(const uint8_t *nibbles, const int8_t *table, kcodes_t *out)
{
    for (uint32_t i = 0; i < 16; i++) {
        out->q[i] = (uint8_t)(table[nibbles[i] & 15] + 128);
        out->q[i + 16] = (uint8_t)(table[nibbles[i] >> 4] + 128);
    }
}

static const int8_t TABLE_IQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                     1,    13,   25,  38,  53,  69,  89,  113};
/* e2m1 doubled. */
static const int8_t TABLE_FP4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static void codes_iq4_nl(const uint8_t *row, uint32_t segment, kcodes_t *out)
{
    const uint8_t *block = row + (size_t)segment * 18;
    out->d = load_half(block);
    from_table(block + 2, TABLE_IQ4, out);
}

static void codes_iq4_xs(const uint8_t *row, uint32_t segment, kcodes_t *out)
{
    const uint8_t *block = row + (size_t)(segment / 8) * 136;
    uint32_t s = segment % 8, high = block[2] | (uint32_t)block[3] << 8;
    int scale = (block[4 + s / 2] >> (s % 2 * 4) & 15) | (int)(high >> (2 * s) & 3) << 4;
    out->d = load_half(block) * (float)(scale - 32);
    from_table(block + 8 + s * 16, TABLE_IQ4, out);
}

static void codes_mxfp4(const uint8_t *row, uint32_t segment, kcodes_t *out)
{
    const uint8_t *block = row + (size_t)segment * 17;
    uint32_t e = block[0]; /* half of 2^(e - 127), for the doubled values */
    out->d = qtype_bits_to_f32(e < 2 ? 0x00200000u << e : (e - 1) << 23);
    from_table(block + 1, TABLE_FP4, out);
}

static void codes_i8s(const uint8_t *row, uint32_t segment, kcodes_t *out)
{
    const uint8_t *block = row + (size_t)segment * sizeof(qtype_i8s_t);
    memcpy(&out->d, block, sizeof out->d);
    for (uint32_t i = 0; i < 32; i++)
        out->q[i] = block[4 + i] ^ 0x80;
}

/* In native mode; types that are not here are multiplied as F32. */
static const struct {
    uint32_t qtype;
    kmultiply_t multiply;
} TYPES[] = {
    {QTYPE_Q8_0, {FORM_Q8, KACTIVATION_INT8, NULL}},
    {QTYPE_Q4_0, {FORM_Q4, KACTIVATION_INT8, NULL}},
    {QTYPE_Q4_1, {FORM_Q4M, KACTIVATION_INT8, NULL}},
    {QTYPE_Q5_0, {FORM_I8, KACTIVATION_INT8, codes_q5_0}},
    {QTYPE_Q5_1, {FORM_U8M, KACTIVATION_INT8, codes_q5_1}},
    {QTYPE_Q2_K, {FORM_N4M, KACTIVATION_INT8_16, codes_q2_k}},
    {QTYPE_Q3_K, {FORM_I8, KACTIVATION_INT8_16, codes_q3_k}},
    {QTYPE_Q4_K, {FORM_N4M, KACTIVATION_INT8, codes_q4_k}},
    {QTYPE_Q5_K, {FORM_U8M, KACTIVATION_INT8, codes_q5_k}},
    {QTYPE_Q6_K, {FORM_I8, KACTIVATION_INT8_16, codes_q6_k}},
    {QTYPE_IQ4_NL, {FORM_I8, KACTIVATION_INT8, codes_iq4_nl}},
    {QTYPE_IQ4_XS, {FORM_I8, KACTIVATION_INT8, codes_iq4_xs}},
    {QTYPE_MXFP4, {FORM_I8, KACTIVATION_INT8, codes_mxfp4}},
    {QTYPE_I8S, {FORM_I8, KACTIVATION_INT8, codes_i8s}},
    {QTYPE_Z4, {FORM_Z4, KACTIVATION_INT8, NULL}},
    {QTYPE_F8S, {FORM_E4, KACTIVATION_BF16, NULL}},
    {QTYPE_BF16, {FORM_BF16, KACTIVATION_BF16, NULL}},
    {QTYPE_F16, {FORM_F16, KACTIVATION_F32, NULL}},
};

bool type_multiply(uint32_t qtype, kmode_t mode, kmultiply_t *out)
{
    const qtype_info_t *info = qtype_info(qtype);
    *out = (kmultiply_t){FORM_F32, KACTIVATION_F32, NULL};
    for (size_t i = 0; mode == KMODE_NATIVE && i < sizeof TYPES / sizeof TYPES[0]; i++)
        if (TYPES[i].qtype == qtype)
            *out = TYPES[i].multiply;
    return info != NULL && info->is_weight;
}
