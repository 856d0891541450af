/* Level "avx2": AVX2 with FMA and F16C. This file alone is compiled for it and runs only after
 * levels.c has asked the CPU and the operating system. */
#include "kernels/cpu/vec_avx2.h"

#include "kernels/cpu/rows.inc.h"

#define ATTEND_CORE "kernels/cpu/attend_core_avx2.h"
#include "kernels/cpu/attend.inc.h"

#include "kernels/cpu/leaf_avx2.h"

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

const klevel_t level_avx2 = {
    .name = "avx2",
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
