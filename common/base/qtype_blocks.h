/* One stored block to F32, a function a type; qtype.c has the table that calls them. `block` needs
 * no alignment. Every product and difference is rounded once, in the order of the reference
 * implementation of the format, so results are equal to it bit by bit. Only qtype*.c include it. */
#ifndef SHOAL_COMMON_BASE_QTYPE_BLOCKS_H
#define SHOAL_COMMON_BASE_QTYPE_BLOCKS_H

#include <stdint.h>
#include <string.h>

typedef void (*qtype_block_fn)(const uint8_t *block, float *out);

/* qtype_kquants.c: blocks of 32 with a fifth bit, and the super-blocks of 256. */
void qtype_block_q5_0(const uint8_t *block, float *out);
void qtype_block_q5_1(const uint8_t *block, float *out);
void qtype_block_q2_k(const uint8_t *block, float *out);
void qtype_block_q3_k(const uint8_t *block, float *out);
void qtype_block_q4_k(const uint8_t *block, float *out);
void qtype_block_q5_k(const uint8_t *block, float *out);
void qtype_block_q6_k(const uint8_t *block, float *out);
void qtype_block_tq1_0(const uint8_t *block, float *out);
void qtype_block_tq2_0(const uint8_t *block, float *out);

/* qtype_iquants.c: values from a table (4 bits) or a codebook of groups. */
void qtype_block_iq4_nl(const uint8_t *block, float *out);
void qtype_block_iq4_xs(const uint8_t *block, float *out);
void qtype_block_mxfp4(const uint8_t *block, float *out);
void qtype_block_nvfp4(const uint8_t *block, float *out);
void qtype_block_iq2_xxs(const uint8_t *block, float *out);
void qtype_block_iq2_xs(const uint8_t *block, float *out);
void qtype_block_iq2_s(const uint8_t *block, float *out);
void qtype_block_iq3_xxs(const uint8_t *block, float *out);
void qtype_block_iq3_s(const uint8_t *block, float *out);
void qtype_block_iq1_s(const uint8_t *block, float *out);
void qtype_block_iq1_m(const uint8_t *block, float *out);

/* The codebooks. In those of 8 values two bits, in those of 4 values four bits are a value's code,
 * the first value lowest. */
extern const uint16_t qtype_grid_iq2_xxs[256], qtype_grid_iq2_xs[512], qtype_grid_iq2_s[1024];
extern const uint16_t qtype_grid_iq1[2048];
extern const uint16_t qtype_grid_iq3_xxs[256], qtype_grid_iq3_s[512];

static inline uint16_t qtype_load_u16(const uint8_t *bytes)
{
    uint16_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

static inline uint32_t qtype_load_u32(const uint8_t *bytes)
{
    uint32_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

#endif
