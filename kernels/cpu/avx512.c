/* Level "avx512": AVX-512 F, BW, VL, DQ with VNNI and BF16. This file alone is compiled for it and
 * runs only after levels.c has asked the CPU and the operating system. */
#include "kernels/cpu/vec_avx512.h"

#include "kernels/cpu/amx.h"
#include "kernels/cpu/form_run.h"
#include "kernels/cpu/leaf_avx512.h"
#include "kernels/cpu/rows.inc.h"

#define ROWS_1(X) X(0)
#define ROWS_2(X) X(0) X(1)
#define ROWS_3(X) X(0) X(1) X(2)
#define ROWS_4(X) X(0) X(1) X(2) X(3)
#define ROWS_5(X) ROWS_4(X) X(4)
#define ROWS_6(X) ROWS_5(X) X(5)
#define ROWS_7(X) ROWS_6(X) X(6)
#define ROWS_8(X) ROWS_7(X) X(7)

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
#define LEAF_NAME(n) leaf_k4_##n
#define LEAF_FORM FORM_K4
#include "kernels/cpu/leaf_forms_avx512.inc.h"
#define LEAF_NAME(n) leaf_fill_k4_##n
#define LEAF_FORM FORM_K4
#define LEAF_SCALES SCALES_FILL
#include "kernels/cpu/leaf_forms_avx512.inc.h"
#define LEAF_NAME(n) leaf_spread_k4_##n
#define LEAF_FORM FORM_K4
#define LEAF_SCALES SCALES_FLOATS
#include "kernels/cpu/leaf_forms_avx512.inc.h"
#define LEAF_NAME(n) leaf_k5_##n
#define LEAF_FORM FORM_K5
#include "kernels/cpu/leaf_forms_avx512.inc.h"
#define LEAF_NAME(n) leaf_fill_k5_##n
#define LEAF_FORM FORM_K5
#define LEAF_SCALES SCALES_FILL
#include "kernels/cpu/leaf_forms_avx512.inc.h"
#define LEAF_NAME(n) leaf_spread_k5_##n
#define LEAF_FORM FORM_K5
#define LEAF_SCALES SCALES_FLOATS
#include "kernels/cpu/leaf_forms_avx512.inc.h"
#define LEAF_NAME(n) leaf_k6_##n
#define LEAF_FORM FORM_K6
#include "kernels/cpu/leaf_forms_avx512.inc.h"
#define LEAF_NAME(n) leaf_fill_k6_##n
#define LEAF_FORM FORM_K6
#define LEAF_SCALES SCALES_FILL
#include "kernels/cpu/leaf_forms_avx512.inc.h"
#define LEAF_NAME(n) leaf_spread_k6_##n
#define LEAF_FORM FORM_K6
#define LEAF_SCALES SCALES_FLOATS
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
    [FORM_K4] = {COUNTS_6(leaf_k4)},
    [FORM_K5] = {COUNTS_6(leaf_k5)},
    [FORM_K6] = {COUNTS_6(leaf_k6)},
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

#include "kernels/cpu/panel.inc.h"
#include "kernels/cpu/runs.inc.h"

#define RUNS(name)                                          \
    {                                                       \
        runs_spread_bytes, runs_spread,                     \
            {COUNTS_6(leaf_spread_##name)},                 \
            {NULL, NULL, NULL, leaf_fill_##name##_4,        \
             leaf_fill_##name##_5, leaf_fill_##name##_6}    \
    }
static const spread_t SPREADS[N_FORMS] = {
    [FORM_E4] = {e4_spread_bytes, e4_spread, {COUNTS_8(leaf_spread_e4)}, {0}},
    [FORM_K4] = RUNS(k4),
    [FORM_K5] = RUNS(k5),
    [FORM_K6] = RUNS(k6),
};

#include "kernels/cpu/matmul.inc.h"

#define ATTEND_CORE "kernels/cpu/attend_core_avx512.h"
#include "kernels/cpu/attend.inc.h"

#define SHARED_WITH_AMX                                                                    \
    .rmsnorm = rmsnorm_vec, .quantize = quantize_vec, .tree_add = tree_add_vec,            \
    .silu_mul = silu_mul_vec, .activate = activate_vec, .softcap = softcap_vec,            \
    .turn = turn_vec, .attend = attend_vec, .merge = merge_vec, .score = score_vec

const klevel_t level_avx512 = {
    .name = "avx512",
    .matmul = matmul_vec,
    .spread_bytes = spread_bytes_vec,
    SHARED_WITH_AMX,
};

const klevel_t level_amx = {
    .name = "amx",
    .matmul = matmul_amx,
    .spread_bytes = spread_bytes_amx,
    .tile_rows = AMX_ROWS_MIN,
    SHARED_WITH_AMX,
};
