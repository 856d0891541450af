/* Functions in double, written out so that no libm decides a bit of a rope table. Each is accurate
 * to a few units in the last place of a double, far below the F32 that the tables hold. */
#ifndef SHOAL_KERNELS_CPU_DOUBLE_MATH_H
#define SHOAL_KERNELS_CPU_DOUBLE_MATH_H

/* x > 0 and normal. */
double math_log2(double x);
/* |x| < 1000. */
double math_exp2(double x);
/* |x| < 2^30. */
void math_sin_cos(double x, double *sin_out, double *cos_out);

#endif
