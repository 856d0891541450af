/* The leaf kernels of one int8 form for one to six rows. Included once for each form, with
 * LEAF_NAME(n) and LEAF_FORM set, and maybe LEAF_SCALES (leaf.h). The first of several
 * tiles has more than three rows. */
#ifndef LEAF_SCALES
#define LEAF_SCALES SCALES_PACKED
#endif
#if LEAF_SCALES != SCALES_FILL
#define LEAF_N 1
#define LEAF_ROWS ROWS_1
#include "kernels/cpu/leaf_int8_avx512.inc.h"
#define LEAF_N 2
#define LEAF_ROWS ROWS_2
#include "kernels/cpu/leaf_int8_avx512.inc.h"
#define LEAF_N 3
#define LEAF_ROWS ROWS_3
#include "kernels/cpu/leaf_int8_avx512.inc.h"
#endif
#define LEAF_N 4
#define LEAF_ROWS ROWS_4
#include "kernels/cpu/leaf_int8_avx512.inc.h"
#define LEAF_N 5
#define LEAF_ROWS ROWS_5
#include "kernels/cpu/leaf_int8_avx512.inc.h"
#define LEAF_N 6
#define LEAF_ROWS ROWS_6
#include "kernels/cpu/leaf_int8_avx512.inc.h"
#undef LEAF_NAME
#undef LEAF_FORM
#undef LEAF_SCALES
