/* Level "avx512": AVX-512 F, BW, VL, DQ with VNNI and BF16. This file alone is compiled for it and
 * runs only after levels.c has asked the CPU and the operating system. */
#include "kernels/cpu/vec_avx512.h"

#include "kernels/cpu/rows.inc.h"

#define ROWS_1(X) X(0)
#define ROWS_2(X) X(0) X(1)
#define ROWS_3(X) X(0) X(1) X(2)
#define ROWS_4(X) X(0) X(1) X(2) X(3)

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

#define ROW_COUNTS(name)                       \
    {                                          \
        name##_1, name##_2, name##_3, name##_4 \
    }
static const uint8_t *(*const LEAF_KERNELS[N_FORMS][4])(const kinput_t *, const kleaf_t *,
                                                        const uint8_t *const *, const uint8_t *,
                                                        bool, float *) = {
    [FORM_Q8] = ROW_COUNTS(leaf_q8),   [FORM_Q4] = ROW_COUNTS(leaf_q4),
    [FORM_Q4M] = ROW_COUNTS(leaf_q4m), [FORM_BF16] = ROW_COUNTS(leaf_bf16),
    [FORM_F16] = ROW_COUNTS(leaf_f16), [FORM_F32] = ROW_COUNTS(leaf_f32),
    [FORM_I8] = ROW_COUNTS(leaf_i8),   [FORM_U8M] = ROW_COUNTS(leaf_u8m),
    [FORM_N4M] = ROW_COUNTS(leaf_n4m), [FORM_F8] = ROW_COUNTS(leaf_f8),
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
    .score = score_vec,
};
