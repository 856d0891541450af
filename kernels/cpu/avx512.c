/* Level "avx512": AVX-512 F, BW, VL, DQ with VNNI and BF16. This file alone is compiled for it and
 * runs only after levels.c has asked the CPU and the operating system. */
#include "kernels/cpu/vec_avx512.h"

#include "kernels/cpu/form_z4.h"
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

static inline __m512i broadcast_k4(const int8_t *from)
{
    int32_t four;
    memcpy(&four, from, sizeof four);
    return _mm512_set1_epi32(four);
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
#define LEAF_NAME(n) leaf_u8m_##n
#define LEAF_FORM FORM_U8M
#include "kernels/cpu/leaf_forms_avx512.inc.h"
#define LEAF_NAME(n) leaf_n4m_##n
#define LEAF_FORM FORM_N4M
#include "kernels/cpu/leaf_forms_avx512.inc.h"
#include "kernels/cpu/leaf_float_avx512.h"
#include "kernels/cpu/leaf_e4_avx512.h"
#include "kernels/cpu/leaf_z4_avx512.h"

#define COUNTS_6(name) name##_1, name##_2, name##_3, name##_4, name##_5, name##_6
#define COUNTS_8(name) COUNTS_6(name), name##_7, name##_8
static const leaf_fn LEAF_KERNELS[N_FORMS][MATMUL_ROWS] = {
    [FORM_Q8] = {COUNTS_6(leaf_q8)},
    [FORM_Q4] = {COUNTS_6(leaf_q4)},
    [FORM_Q4M] = {COUNTS_6(leaf_q4m)},
    [FORM_I8] = {COUNTS_6(leaf_i8)},
    [FORM_U8M] = {COUNTS_6(leaf_u8m)},
    [FORM_N4M] = {COUNTS_6(leaf_n4m)},
    [FORM_BF16] = {COUNTS_8(leaf_bf16)},
    [FORM_F16] = {COUNTS_8(leaf_f16)},
    [FORM_F32] = {COUNTS_8(leaf_f32)},
    [FORM_E4] = {COUNTS_8(leaf_e4)},
    [FORM_Z4] = {leaf_z4_1, leaf_z4_2, leaf_z4_3, leaf_z4_4, leaf_z4_5},
};

#include "kernels/cpu/matmul.inc.h"

#define ATTEND_CORE "kernels/cpu/attend_core_avx512.h"
#include "kernels/cpu/attend.inc.h"

const klevel_t level_avx512 = {
    .name = "avx512",
    .rmsnorm = rmsnorm_vec,
    .quantize = quantize_vec,
    .matmul = matmul_vec,
    .tree_add = tree_add_vec,
    .silu_mul = silu_mul_vec,
    .activate = activate_vec,
    .softcap = softcap_vec,
    .attend = attend_vec,
    .merge = merge_vec,
    .score = score_vec,
};
