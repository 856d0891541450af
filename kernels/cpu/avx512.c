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

#define LEAF_NAME leaf_q8_1
#define LEAF_ROWS ROWS_1
#define LEAF_Q8 1
#define LEAF_MINIMUMS 0
#include "kernels/cpu/leaf_int8_avx512.inc.h"
#define LEAF_NAME leaf_q8_2
#define LEAF_ROWS ROWS_2
#define LEAF_Q8 1
#define LEAF_MINIMUMS 0
#include "kernels/cpu/leaf_int8_avx512.inc.h"
#define LEAF_NAME leaf_q8_3
#define LEAF_ROWS ROWS_3
#define LEAF_Q8 1
#define LEAF_MINIMUMS 0
#include "kernels/cpu/leaf_int8_avx512.inc.h"
#define LEAF_NAME leaf_q8_4
#define LEAF_ROWS ROWS_4
#define LEAF_Q8 1
#define LEAF_MINIMUMS 0
#include "kernels/cpu/leaf_int8_avx512.inc.h"
#define LEAF_NAME leaf_q4_1
#define LEAF_ROWS ROWS_1
#define LEAF_Q8 0
#define LEAF_MINIMUMS 0
#include "kernels/cpu/leaf_int8_avx512.inc.h"
#define LEAF_NAME leaf_q4_2
#define LEAF_ROWS ROWS_2
#define LEAF_Q8 0
#define LEAF_MINIMUMS 0
#include "kernels/cpu/leaf_int8_avx512.inc.h"
#define LEAF_NAME leaf_q4_3
#define LEAF_ROWS ROWS_3
#define LEAF_Q8 0
#define LEAF_MINIMUMS 0
#include "kernels/cpu/leaf_int8_avx512.inc.h"
#define LEAF_NAME leaf_q4_4
#define LEAF_ROWS ROWS_4
#define LEAF_Q8 0
#define LEAF_MINIMUMS 0
#include "kernels/cpu/leaf_int8_avx512.inc.h"
#define LEAF_NAME leaf_q4m_1
#define LEAF_ROWS ROWS_1
#define LEAF_Q8 0
#define LEAF_MINIMUMS 1
#include "kernels/cpu/leaf_int8_avx512.inc.h"
#define LEAF_NAME leaf_q4m_2
#define LEAF_ROWS ROWS_2
#define LEAF_Q8 0
#define LEAF_MINIMUMS 1
#include "kernels/cpu/leaf_int8_avx512.inc.h"
#define LEAF_NAME leaf_q4m_3
#define LEAF_ROWS ROWS_3
#define LEAF_Q8 0
#define LEAF_MINIMUMS 1
#include "kernels/cpu/leaf_int8_avx512.inc.h"
#define LEAF_NAME leaf_q4m_4
#define LEAF_ROWS ROWS_4
#define LEAF_Q8 0
#define LEAF_MINIMUMS 1
#include "kernels/cpu/leaf_int8_avx512.inc.h"
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
    .attend = attend_vec,
};
