/* The value types of GGML files: their ids, block layouts, and the exact meaning of each stored row
 * as F32. This is the definition that every packed form in the kernels is measured against.
 *
 * All types of the format are known by name and size, so a file's structure can be checked whole
 * and an error can name what it found; only those with `is_weight` can be read as weights. Rows are
 * little-endian, as the machines that Shoal runs on. Pure; any thread. Run it with the default
 * MXCSR: subnormal halves are exact here, and flushing them belongs to the kernels. */
#ifndef SHOAL_COMMON_BASE_QTYPE_H
#define SHOAL_COMMON_BASE_QTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The numbers are those of the file format. Gaps are types that the format has removed. */
typedef enum {
    QTYPE_F32 = 0,
    QTYPE_F16 = 1,
    QTYPE_Q4_0 = 2,
    QTYPE_Q4_1 = 3,
    QTYPE_Q5_0 = 6,
    QTYPE_Q5_1 = 7,
    QTYPE_Q8_0 = 8,
    QTYPE_Q8_1 = 9,
    QTYPE_Q2_K = 10,
    QTYPE_Q3_K = 11,
    QTYPE_Q4_K = 12,
    QTYPE_Q5_K = 13,
    QTYPE_Q6_K = 14,
    QTYPE_Q8_K = 15,
    QTYPE_IQ2_XXS = 16,
    QTYPE_IQ2_XS = 17,
    QTYPE_IQ3_XXS = 18,
    QTYPE_IQ1_S = 19,
    QTYPE_IQ4_NL = 20,
    QTYPE_IQ3_S = 21,
    QTYPE_IQ2_S = 22,
    QTYPE_IQ4_XS = 23,
    QTYPE_I8 = 24,
    QTYPE_I16 = 25,
    QTYPE_I32 = 26,
    QTYPE_I64 = 27,
    QTYPE_F64 = 28,
    QTYPE_IQ1_M = 29,
    QTYPE_BF16 = 30,
    QTYPE_TQ1_0 = 34,
    QTYPE_TQ2_0 = 35,
    QTYPE_MXFP4 = 39,
    QTYPE_NVFP4 = 40,
    /* Our own, for rows made from other formats; they never stand in a file. */
    QTYPE_OWN_FIRST = 1000,
    QTYPE_I8S = 1000, /* blocks of 32 signed bytes under an F32 scale */
    QTYPE_F8S = 1001, /* blocks of 128 e4m3 values under an F32 scale */
    QTYPE_Z4 = 1002,  /* blocks of 128 nibbles less a zero point under an F16 scale */
    QTYPE_Z4_32 = 1003,
    QTYPE_Z4_64 = 1004,
    QTYPE_Z4_ROW = 1005,  /* of 1,024: one scale for a row, or for some 1,024 */
    QTYPE_Z4_BF16 = 1006, /* four as from Z4 on, under BF16 scales */
    QTYPE_S4 = 1010,      /* eight as from Z4 on, whose zero point is always 8 */
    QTYPE_S4_BF16 = 1014,
    QTYPE_OWN_END = 1018,
} qtype_t;

typedef struct {
    const char *name;      /* "Q4_1" */
    uint32_t block_values; /* values of one block, along K; a row is whole blocks */
    uint32_t block_bytes;
    bool is_weight; /* qtype_dequantize_row and the kernels read it */
} qtype_info_t;

/* NULL when the format has no such type (any more). The result lives for ever. */
const qtype_info_t *qtype_info(uint32_t id);

/* The types of nibbles under 16 bits of scale. */
static inline bool qtype_is_z4(uint32_t id)
{
    return id >= QTYPE_Z4 && id < QTYPE_OWN_END;
}
static inline bool qtype_z4_is_bf16(uint32_t id)
{
    return (id - QTYPE_Z4) % 8 >= 4;
}
/* The one for groups of so many values, a multiple of 32. */
qtype_t qtype_z4_of(uint64_t group, bool bf16, bool zero_is_8);

/* "Q4_1", or "type 77" has no name: "unknown". Never NULL. */
const char *qtype_name(uint32_t id);

/* Bytes of a row of n_values. False when the type is unknown, the row is not whole blocks, or the
 * product overflows; then *bytes_out is left alone. In our own types the last block of a row may be
 * short: it is stored whole, with zeros behind the values. */
bool qtype_row_bytes(uint32_t id, uint64_t n_values, uint64_t *bytes_out);

/* What kernels keep of a row of n_values that takes row_bytes: no nibbles behind its values, which in
 * blocks of 1,024 can be a third of the row. */
uint64_t qtype_held_bytes(uint32_t id, uint64_t n_values, uint64_t row_bytes);

/* out[i] = the value of element i of the row, i < n_values; n_values is whole blocks (in our own
 * types any number) and the type has is_weight (both CHECKed: the file reader has refused
 * everything else). `row` needs no alignment. The values are those of the format's reference
 * implementation, bit by bit. Q4_0: (q - 8) * d. Q4_1: q * d + m, where the product is exact. Q8_0:
 * q * d. d and m are halves. */
void qtype_dequantize_row(qtype_t type, const void *row, size_t n_values, float *out);

/* The value of an e4m3 code (1 sign, 4 exponent, 3 mantissa bits, bias 7; no infinities, 0x7f and
 * 0xff are NaN), exact. */
float qtype_e4m3_to_f32(uint8_t code);

/* Nearest, ties to even. Halves above 65504 are Inf; e4m3 saturates at 448. */
uint16_t qtype_f32_to_f16(float value);
uint8_t qtype_f32_to_e4m3(float value);

/* Q8_0, Q4_0, Q4_1 (with the bytes of the format's reference implementation) and F8S (d = the
 * largest size in the block / 448, codes to nearest). */
bool qtype_can_quantize(qtype_t type);
/* Writes n_values as a row of the type, which qtype_can_quantize (CHECKed, as is that GGML types
 * get whole blocks). False when a value is not finite or a scale is beyond what a half can hold;
 * the row is then undefined. */
bool qtype_quantize_row(qtype_t type, const float *values, size_t n_values, void *row);

/* One block each of the types with blocks. In Q4 blocks byte i holds value i in its low nibble and
 * value i + 16 in its high one. */
enum { QTYPE_BLOCK_VALUES = 32 };
typedef struct {
    uint16_t d; /* F16 */
    uint8_t q[16];
} qtype_q4_0_t;
typedef struct {
    uint16_t d; /* F16 */
    uint16_t m; /* F16 */
    uint8_t q[16];
} qtype_q4_1_t;
typedef struct {
    uint16_t d; /* F16 */
    int8_t q[32];
} qtype_q8_0_t;
/* value = q * d. */
typedef struct {
    float d;
    int8_t q[32];
} qtype_i8s_t;
/* value = e4m3 * d. */
enum { QTYPE_F8S_VALUES = 128 };
typedef struct {
    float d;
    uint8_t q[QTYPE_F8S_VALUES];
} qtype_f8s_t;
/* value = (nibble - zero) * d; byte i has values 2 i (low) and 2 i + 1. A block has the first
 * 3 + values / 2 bytes of this. */
enum { QTYPE_Z4_VALUES = 128, QTYPE_Z4_ROW_VALUES = 1024, QTYPE_Z4_ZERO_MAX = 16 };
typedef struct __attribute__((packed)) {
    uint16_t d; /* F16 or BF16 */
    uint8_t zero;
    uint8_t q[QTYPE_Z4_ROW_VALUES / 2];
} qtype_z4_t;
_Static_assert(offsetof(qtype_z4_t, q) == 3, "no padding");
_Static_assert(sizeof(qtype_i8s_t) == 36 && sizeof(qtype_f8s_t) == 132, "no padding");
_Static_assert(sizeof(qtype_q4_0_t) == 18, "as in files");
_Static_assert(sizeof(qtype_q4_1_t) == 20, "as in files");
_Static_assert(sizeof(qtype_q8_0_t) == 34, "as in files");

static inline float qtype_bits_to_f32(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float qtype_bf16_to_f32(uint16_t bits)
{
    return qtype_bits_to_f32((uint32_t)bits << 16);
}

/* Integer arithmetic alone, so that neither MXCSR nor the compiler decides about subnormals. */
static inline float qtype_f16_to_f32(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t exponent = (half >> 10) & 0x1fu;
    uint32_t mantissa = half & 0x3ffu;
    if (exponent == 0x1f) /* Inf, and NaN with its payload */
        return qtype_bits_to_f32(sign | 0x7f800000u | mantissa << 13);
    if (exponent != 0)
        return qtype_bits_to_f32(sign | (exponent + 112) << 23 | mantissa << 13);
    if (mantissa == 0)
        return qtype_bits_to_f32(sign);
    uint32_t shift = (uint32_t)__builtin_clz(mantissa) - 21; /* brings the top bit to bit 10 */
    return qtype_bits_to_f32(sign | (113 - shift) << 23 | ((mantissa << shift) & 0x3ffu) << 13);
}

#endif
