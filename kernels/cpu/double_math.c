/* See double_math.h. Series in Horner form with fma; arguments reduced so that the series end
 * early. */
#include "kernels/cpu/double_math.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

static const double LN2 = 0x1.62e42fefa39efp-1;
static const double LOG2E = 0x1.71547652b82fep+0;
static const double TWO_OVER_PI = 0x1.45f306dc9c883p-1;
/* pi/2 as a sum of two doubles. */
static const double HALF_PI_HIGH = 0x1.921fb54442d18p+0;
static const double HALF_PI_LOW = 0x1.1a62633145c07p-54;
static const double ROUND = 0x1.8p52; /* adding and taking it away rounds half to even */

double math_log2(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int64_t exponent = (int64_t)(bits >> 52) - 1023;
    bits = (bits & 0xfffffffffffffull) | 1023ull << 52;
    double m;
    memcpy(&m, &bits, sizeof m);
    if (m > 1.4142135623730951) {
        m = m * 0.5;
        exponent++;
    }
    /* ln m = 2 artanh s, s = (m - 1)/(m + 1), |s| < 0.172. */
    double s = (m - 1.0) / (m + 1.0);
    double z = s * s;
    double sum = 0;
    for (int n = 25; n >= 1; n -= 2)
        sum = fma(sum, z, 1.0 / n);
    return fma(2.0 * s * sum, LOG2E, (double)exponent);
}

double math_exp2(double x)
{
    double whole = (x + ROUND) - ROUND;
    double t = (x - whole) * LN2; /* |t| < 0.347 */
    double sum = 1.0;
    for (int n = 16; n >= 1; n--)
        sum = fma(sum, t / n, 1.0);
    uint64_t bits = (uint64_t)((int64_t)whole + 1023) << 52;
    double scale;
    memcpy(&scale, &bits, sizeof scale);
    return sum * scale;
}

void math_sin_cos(double x, double *sin_out, double *cos_out)
{
    double quarter = (x * TWO_OVER_PI + ROUND) - ROUND;
    double r = fma(-quarter, HALF_PI_HIGH, x);
    r = fma(-quarter, HALF_PI_LOW, r);
    double z = r * r;
    double s = 1.0, c = 1.0;
    for (int n = 20; n >= 2; n -= 2) {
        s = fma(s, -z / (n * (n + 1)), 1.0);
        c = fma(c, -z / (n * (n - 1)), 1.0);
    }
    s = s * r;
    switch ((int64_t)quarter & 3) {
    case 0:
        *sin_out = s, *cos_out = c;
        return;
    case 1:
        *sin_out = c, *cos_out = -s;
        return;
    case 2:
        *sin_out = -s, *cos_out = -c;
        return;
    default:
        *sin_out = -c, *cos_out = s;
    }
}
