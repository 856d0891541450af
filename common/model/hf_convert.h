/* Rows of our types from the parts of quantized matrices: one reader a stored layout. hf_quant.c
 * has checked all shapes before a reader is chosen. Only hf_*.c include it. */
#ifndef SHOAL_COMMON_MODEL_HF_CONVERT_H
#define SHOAL_COMMON_MODEL_HF_CONVERT_H

#include "common/model/source_internal.h"

/* AWQ "gemm": weight [in, out/8] words of eight 4-bit values, the column of nibble n being
 * 0 2 4 6 1 3 5 7; zero [groups, out/8] packed alike; scale [groups, out]. To the Z4 of
 * the groups' size, I8S or F32. */
status_t hf_read_awq(const source_tensor_t *tensor, uint64_t row_first, uint64_t n_rows,
                     uint8_t *out) MUST_USE;

/* GPTQ: weight [in * bits/32, out] words of values that follow one another in `in`; zero
 * [groups, out * bits/32]; scale [groups, out]; group_of [in] or NULL. To a Z4 (of 4
 * bits), I8S or F32, as AWQ. */
status_t hf_read_gptq(const source_tensor_t *tensor, uint64_t row_first, uint64_t n_rows,
                      uint8_t *out) MUST_USE;

/* compressed-tensors: weight [out, in] bytes (bits 8), or [out, in * bits/32] words of values moved
 * up by half their range; scale [out, in/group] or one. To I8S, or words of
 * 4 bits under scales of 16 to the S4 of the groups' size. */
status_t hf_read_signed(const source_tensor_t *tensor, uint64_t row_first, uint64_t n_rows,
                        uint8_t *out) MUST_USE;

/* e4m3 codes [out, in] under scales [out/block_rows, in/group], or without. To F8S. */
status_t hf_read_fp8(const source_tensor_t *tensor, uint64_t row_first, uint64_t n_rows,
                     uint8_t *out) MUST_USE;

/* e2m1 codes in pairs, low nibble first, under an exponent byte for each 32. To MXFP4. */
status_t hf_read_fp4(const source_tensor_t *tensor, uint64_t row_first, uint64_t n_rows,
                     uint8_t *out) MUST_USE;

/* [experts, in, out] values, turned to [experts, out, in]; the type stays. */
status_t hf_read_turned(const source_tensor_t *tensor, uint64_t row_first, uint64_t n_rows,
                        uint8_t *out) MUST_USE;

/* Element i of a packed array of words, rows of `columns` values each: unsigned, bits 2, 4 or 8. */
static inline uint32_t hf_unpack(const uint8_t *words, uint64_t word, uint64_t value, uint32_t bits)
{
    uint32_t packed;
    memcpy(&packed, words + word * sizeof packed, sizeof packed);
    return packed >> (value % (32 / bits) * bits) & ((1u << bits) - 1);
}

#endif
