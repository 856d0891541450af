/* Quantized rows as integers: every type whose values are (integer) * d + m, with one F32 d and m
 * for 32 or for 16 of them, comes down to that here, exactly. The layouts of blocks are those of
 * common/base/qtype*.c, whose F32 values the tests compare with these. */
#include <string.h>

#include "common/base/qtype.h"
#include "kernels/cpu/internal.h"

static uint16_t load_u16(const uint8_t *bytes)
{
    uint16_t half;
    memcpy(&half, bytes, sizeof half);
    return half;
}

static float load_half(const uint8_t *bytes)
{
    return qtype_f16_to_f32(load_u16(bytes));
}

static void codes_q5_0(const uint8_t *row, uint32_t segment, kcodes_t *out)
{
    const uint8_t *block = row + (size_t)segment * 22;
    uint32_t high;
    memcpy(&high, block + 2, sizeof high);
    out->d = load_half(block);
    for (uint32_t i = 0; i < 16; i++) {
        uint32_t low = block[6 + i];
        out->q[i] = (uint8_t)((low & 15) + (high >> i & 1) * 16);
        out->q[i + 16] = (uint8_t)((low >> 4) + (high >> (i + 16) & 1) * 16);
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
    out->half_d = load_u16(block);
    out->half_m = load_u16(block + 2) ^ 0x8000;
    out->scale = (uint8_t)scale;
    out->minimum = (uint8_t)least;
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
    out->half_d = load_u16(block + 208);
    out->scale = block[192 + s];
    for (uint32_t i = 0; i < 16; i++) {
        uint32_t half = s / 8, rest = s % 8 * 16 + i;
        int nibble = block[half * 64 + rest % 64] >> (rest / 64 * 4) & 15;
        int top = block[128 + half * 32 + rest % 32] >> (rest / 32 * 2) & 3;
        out->q[i] = (uint8_t)(nibble | top << 4);
    }
}

/* Of IQ4_NL and IQ4_XS, -127 … 113, and e2m1 doubled, -12 … 12; both plus 128. */
static const _Alignas(16) uint8_t TABLE_IQ4[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                                   129, 141, 153, 166, 181, 197, 217, 241};
static const _Alignas(16) uint8_t TABLE_FP4[16] = {128, 129, 130, 131, 132, 134, 136, 140,
                                                   128, 127, 126, 125, 124, 122, 120, 116};

const uint8_t *codes_table(kform_t form)
{
    return form == FORM_M4 ? TABLE_FP4 : TABLE_IQ4;
}

static void codes_i8s(const uint8_t *row, uint32_t segment, kcodes_t *out)
{
    const uint8_t *block = row + (size_t)segment * sizeof(qtype_i8s_t);
    memcpy(&out->d, block, sizeof out->d);
    for (uint32_t i = 0; i < 32; i++)
        out->q[i] = block[4 + i] ^ 0x80;
}

/* In native mode, beside Z4 and its kin; types that are not here are multiplied as F32. */
static const struct {
    uint32_t qtype;
    kmultiply_t multiply;
} TYPES[] = {
    {QTYPE_Q8_0, {FORM_Q8, KACTIVATION_INT8}},
    {QTYPE_Q4_0, {FORM_Q4, KACTIVATION_INT8}},
    {QTYPE_Q4_1, {FORM_Q4M, KACTIVATION_INT8}},
    {QTYPE_Q5_0, {FORM_Q5, KACTIVATION_INT8, .codes = codes_q5_0}},
    {QTYPE_Q5_1, {FORM_Q5M, KACTIVATION_INT8, .codes = codes_q5_1}},
    {QTYPE_Q2_K, {FORM_N4M, KACTIVATION_INT8_16, .codes = codes_q2_k}},
    {QTYPE_Q3_K, {FORM_I8, KACTIVATION_INT8_16, .codes = codes_q3_k}},
    {QTYPE_Q4_K, {FORM_K4, KACTIVATION_INT8, .codes = codes_q4_k}},
    {QTYPE_Q5_K, {FORM_K5, KACTIVATION_INT8, .codes = codes_q5_k}},
    {QTYPE_Q6_K, {FORM_K6, KACTIVATION_INT8_16, .codes = codes_q6_k}},
    {QTYPE_IQ4_NL, {FORM_T4, KACTIVATION_INT8}},
    {QTYPE_IQ4_XS, {FORM_X4, KACTIVATION_INT8, .run = 256}},
    {QTYPE_MXFP4, {FORM_M4, KACTIVATION_INT8, .run = 32}},
    {QTYPE_I8S, {FORM_I8, KACTIVATION_INT8, .codes = codes_i8s}},
    {QTYPE_F8S, {FORM_E4, KACTIVATION_BF16}},
    {QTYPE_BF16, {FORM_BF16, KACTIVATION_BF16}},
    {QTYPE_F16, {FORM_F16, KACTIVATION_F32}},
};

bool type_multiply(uint32_t qtype, kmode_t mode, kmultiply_t *out)
{
    const qtype_info_t *info = qtype_info(qtype);
    *out = (kmultiply_t){.form = FORM_F32, .kind = KACTIVATION_F32};
    for (size_t i = 0; mode == KMODE_NATIVE && i < sizeof TYPES / sizeof TYPES[0]; i++)
        if (TYPES[i].qtype == qtype)
            *out = TYPES[i].multiply;
    if (mode == KMODE_NATIVE && info != NULL && qtype_is_z4(qtype))
        *out = (kmultiply_t){.form = qtype < QTYPE_S4 ? FORM_Z4 : FORM_S4,
                             .kind = KACTIVATION_INT8,
                             .run = info->block_values,
                             .bf16_scales = qtype_z4_is_bf16(qtype)};
    return info != NULL && info->is_weight;
}
