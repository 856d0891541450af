/* Level "avx512": AVX-512 F, BW, VL, DQ with VNNI and BF16. This file alone is compiled for it and
 * runs only after levels.c has asked the CPU and the operating system. */
#include "kernels/cpu/vec_avx512.h"

#include "kernels/cpu/form_tail.h"
#include "kernels/cpu/leaf.h"
#include "kernels/cpu/rows.inc.h"

#define ROWS_1(X) X(0)
#define ROWS_2(X) X(0) X(1)
#define ROWS_3(X) X(0) X(1) X(2)
#define ROWS_4(X) X(0) X(1) X(2) X(3)
#define ROWS_5(X) ROWS_4(X) X(4)
#define ROWS_6(X) ROWS_5(X) X(5)
#define ROWS_7(X) ROWS_6(X) X(6)
#define ROWS_8(X) ROWS_7(X) X(7)

static inline __m512i load_line(const uint8_t *from)
{
    return _mm512_load_si512(from);
}

static inline __m512 load_halves(const uint8_t *from)
{
    return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(const void *)from));
}

static inline __m512 load_floats(const uint8_t *from)
{
    return _mm512_load_ps((const float *)(const void *)from);
}

/* The scales or minimums of a line of columns. */
static inline __m512 load_scales(kform_t form, const uint8_t *panel, uint32_t line)
{
    return FORM_IS_WIDE(form) ? load_floats(panel + (size_t)line * 64)
                              : load_halves(panel + (size_t)line * 32);
}

static inline __m512i broadcast_k4(const int8_t *from)
{
    int32_t four;
    memcpy(&four, from, sizeof four);
    return _mm512_set1_epi32(four);
}

/* 16 zero points, one in the low half of each 32-bit lane. */
static inline __m512i tail_zeros(const uint8_t *from)
{
    return _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)(const void *)from));
}

/* The scales of a line of the segment at which the tail stands. */
static inline __attribute__((always_inline)) __m512
tail_scales(kform_t form, const kpart_t *part, const tail_t *tail, uint32_t line)
{
    if (form == FORM_M4) { /* exponent_bits */
        __m512i e = tail_zeros(tail->bytes + line * LINE), one = _mm512_set1_epi32(1);
        __m512i small = _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), e);
        __m512i bits = _mm512_slli_epi32(_mm512_sub_epi32(e, one), 23);
        return _mm512_castsi512_ps(
            _mm512_mask_mov_epi32(bits, _mm512_cmple_epu32_mask(e, one), small));
    }
    const uint8_t *from = tail->scales + (size_t)line * 32;
    if (form == FORM_X4) {
        __m128i six = _mm_load_si128((const __m128i *)(const void *)(tail->bytes + line * LINE));
        return _mm512_mul_ps(load_halves(from), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(six)));
    }
    if (!part->bf16_scales)
        return load_halves(from);
    __m256i halves = _mm256_load_si256((const __m256i *)(const void *)from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

#define LEAF_NAME(n) leaf_q8_##n
#define LEAF_FORM FORM_Q8
#include "kernels/cpu/leaf_forms_avx512.inc.h"
#define LEAF_NAME(n) leaf_q4_##n
#define LEAF_FORM FORM_Q4
#include "kernels/cpu/leaf_forms_avx512.inc.h"
#define LEAF_NAME(n) leaf_q4m_##n
#define LEAF_FORM FORM_Q4M
#include "kernels/cpu/leaf_forms_avx512.inc.h"
#define LEAF_NAME(n) leaf_i8_##n
#define LEAF_FORM FORM_I8
#include "kernels/cpu/leaf_forms_avx512.inc.h"
#define LEAF_NAME(n) leaf_n4m_##n
#define LEAF_FORM FORM_N4M
#include "kernels/cpu/leaf_forms_avx512.inc.h"
#define LEAF_NAME(n) leaf_q5_##n
#define LEAF_FORM FORM_Q5
#include "kernels/cpu/leaf_forms_avx512.inc.h"
#define LEAF_NAME(n) leaf_q5m_##n
#define LEAF_FORM FORM_Q5M
#include "kernels/cpu/leaf_forms_avx512.inc.h"
#define LEAF_NAME(n) leaf_n5m_##n
#define LEAF_FORM FORM_N5M
#include "kernels/cpu/leaf_forms_avx512.inc.h"
#define LEAF_NAME(n) leaf_n6_##n
#define LEAF_FORM FORM_N6
#include "kernels/cpu/leaf_forms_avx512.inc.h"
#define LEAF_NAME(n) leaf_t4_##n
#define LEAF_FORM FORM_T4
#include "kernels/cpu/leaf_forms_avx512.inc.h"
#define LEAF_NAME(n) leaf_s4_##n
#define LEAF_FORM FORM_S4
#include "kernels/cpu/leaf_forms_avx512.inc.h"
#define LEAF_NAME(n) leaf_z4_##n
#define LEAF_FORM FORM_Z4
#include "kernels/cpu/leaf_forms_avx512.inc.h"
#define LEAF_NAME(n) leaf_x4_##n
#define LEAF_FORM FORM_X4
#include "kernels/cpu/leaf_forms_avx512.inc.h"
#define LEAF_NAME(n) leaf_m4_##n
#define LEAF_FORM FORM_M4
#include "kernels/cpu/leaf_forms_avx512.inc.h"
#include "kernels/cpu/leaf_float_avx512.h"
#include "kernels/cpu/leaf_e4_avx512.h"

#define COUNTS_6(name) name##_1, name##_2, name##_3, name##_4, name##_5, name##_6
#define COUNTS_8(name) COUNTS_6(name), name##_7, name##_8
static const leaf_fn LEAF_KERNELS[N_FORMS][MATMUL_ROWS] = {
    [FORM_Q8] = {COUNTS_6(leaf_q8)},
    [FORM_Q4] = {COUNTS_6(leaf_q4)},
    [FORM_Q4M] = {COUNTS_6(leaf_q4m)},
    [FORM_I8] = {COUNTS_6(leaf_i8)},
    [FORM_N4M] = {COUNTS_6(leaf_n4m)},
    [FORM_Q5] = {COUNTS_6(leaf_q5)},
    [FORM_Q5M] = {COUNTS_6(leaf_q5m)},
    [FORM_N5M] = {COUNTS_6(leaf_n5m)},
    [FORM_N6] = {COUNTS_6(leaf_n6)},
    [FORM_T4] = {COUNTS_6(leaf_t4)},
    [FORM_BF16] = {COUNTS_8(leaf_bf16)},
    [FORM_F16] = {COUNTS_8(leaf_f16)},
    [FORM_F32] = {COUNTS_8(leaf_f32)},
    [FORM_E4] = {COUNTS_8(leaf_e4)},
    [FORM_S4] = {COUNTS_6(leaf_s4)},
    [FORM_Z4] = {COUNTS_6(leaf_z4)},
    [FORM_X4] = {COUNTS_6(leaf_x4)},
    [FORM_M4] = {COUNTS_6(leaf_m4)},
};

static const spread_t SPREADS[N_FORMS] = {
    [FORM_E4] = {e4_spread_bytes, e4_spread, {COUNTS_8(leaf_spread_e4)}},
};

#include "kernels/cpu/matmul.inc.h"

#define ATTEND_CORE "kernels/cpu/attend_core_avx512.h"
#include "kernels/cpu/attend.inc.h"

const klevel_t level_avx512 = {
    .name = "avx512",
    .rmsnorm = rmsnorm_vec,
    .quantize = quantize_vec,
    .matmul = matmul_vec,
    .spread_bytes = spread_bytes_vec,
    .tree_add = tree_add_vec,
    .silu_mul = silu_mul_vec,
    .activate = activate_vec,
    .softcap = softcap_vec,
    .turn = turn_vec,
    .attend = attend_vec,
    .merge = merge_vec,
    .score = score_vec,
};
