/* Level "avx2": AVX2 with FMA and F16C. This file alone is compiled for it and runs only after
 * levels.c has asked the CPU and the operating system. */
#include "kernels/cpu/vec_avx2.h"

#include "kernels/cpu/form_run.h"
#include "kernels/cpu/leaf.h"
#include "kernels/cpu/rows.inc.h"

#define ATTEND_CORE "kernels/cpu/attend_core_avx2.h"
#include "kernels/cpu/attend.inc.h"

#include "kernels/cpu/leaf_avx2.h"
#include "kernels/cpu/leaf_int8_avx2.h"
#include "kernels/cpu/leaf_many_avx2.h"
#include "kernels/cpu/leaf_float_avx2.h"
#include "kernels/cpu/leaf_e4_avx2.h"

#define COUNTS_4(name) name##_1, name##_2, name##_3, name##_4
#define COUNTS_6(name) COUNTS_4(name), name##_5, name##_6
#define COUNTS_8(name) COUNTS_6(name), name##_7, name##_8
static const leaf_fn LEAF_KERNELS[N_FORMS][MATMUL_ROWS] = {
    [FORM_Q8] = {COUNTS_8(leaf_q8)},     [FORM_Q4] = {COUNTS_8(leaf_q4)},
    [FORM_Q4M] = {COUNTS_8(leaf_q4m)},   [FORM_I8] = {COUNTS_8(leaf_i8)},
    [FORM_N4M] = {COUNTS_8(leaf_n4m)},   [FORM_Q5] = {COUNTS_8(leaf_q5)},
    [FORM_Q5M] = {COUNTS_8(leaf_q5m)},   [FORM_K4] = {COUNTS_8(leaf_k4)},
    [FORM_K5] = {COUNTS_8(leaf_k5)},     [FORM_K6] = {COUNTS_8(leaf_k6)},
    [FORM_BF16] = {COUNTS_4(leaf_bf16)}, [FORM_F16] = {COUNTS_6(leaf_f16)},
    [FORM_F32] = {COUNTS_6(leaf_f32)},   [FORM_E4] = {COUNTS_4(leaf_e4)},
    [FORM_T4] = {COUNTS_8(leaf_t4)},     [FORM_S4] = {COUNTS_8(leaf_s4)},
    [FORM_Z4] = {COUNTS_8(leaf_z4)},     [FORM_X4] = {COUNTS_8(leaf_x4)},
    [FORM_M4] = {COUNTS_8(leaf_m4)},
};

#include "kernels/cpu/panel.inc.h"
#include "kernels/cpu/runs.inc.h"

#define RUNS(name)                                                       \
    {                                                                    \
        runs_spread_bytes, runs_spread, {COUNTS_8(leaf_spread_##name)},  \
        {                                                                \
            NULL, NULL, NULL, NULL, leaf_fill_##name##_5,                \
                leaf_fill_##name##_6, leaf_fill_##name##_7,              \
                leaf_fill_##name##_8                                     \
        }                                                                \
    }
static const spread_t SPREADS[N_FORMS] = {
    [FORM_E4] = {e4_spread_bytes, e4_spread, {COUNTS_4(leaf_spread_e4)}, {0}},
    [FORM_K4] = RUNS(k4),
    [FORM_K5] = RUNS(k5),
    [FORM_K6] = RUNS(k6),
};

#include "kernels/cpu/matmul.inc.h"

const klevel_t level_avx2 = {
    .name = "avx2",
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
