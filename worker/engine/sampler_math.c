/* The sampler's own functions: exp and log in F64 and Philox. Each is one written sequence of
 * multiplications and additions, so that its bits do not depend on a C library; the build forbids
 * contraction, so no compiler fuses them either. */
#include <string.h>

#include "worker/engine/sampler.h"

static double bits_to_f64(uint64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint64_t f64_to_bits(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor series to degree 13 (error below 1e-17).
 * The two parts of ln 2 are those of fdlibm: n * hi is exact for |n| < 2^21. Below 2^-1021 the
 * result is 0 rather than a subnormal, whatever mode the thread is in. */
double sampler_exp(double x)
{
    if (!(x > -707.0))
        return x < 0 ? 0.0 : x; /* NaN stays NaN */
    const double magic = 0x1.8p52;
    double n = x * 0x1.71547652b82fep+0 + magic - magic;
    double r = x - n * 0x1.62e42feep-1;
    r = r - n * 0x1.a39ef35793c76p-33;
    double p = 1.0 / 6227020800.0;
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    int64_t exponent = (int64_t)n + 1023;
    return p * bits_to_f64((uint64_t)exponent << 52);
}

/* x = 2^e m with m in [sqrt(1/2), sqrt(2)); log m = 2 atanh(s), s = (m - 1)/(m + 1), |s| < 0.1716,
 * by its series to s^23 (error below 1e-19). x is finite, normal and positive. */
double sampler_log(double x)
{
    uint64_t bits = f64_to_bits(x);
    int64_t e = (int64_t)(bits >> 52 & 0x7ff) - 1023;
    double m = bits_to_f64((bits & 0xfffffffffffffull) | 0x3ff0000000000000ull);
    if (m > 0x1.6a09e667f3bcdp+0) {
        m *= 0.5;
        e += 1;
    }
    double s = (m - 1.0) / (m + 1.0);
    double q = s * s;
    double p = 1.0 / 23.0;
    for (int k = 21; k >= 1; k -= 2)
        p = p * q + 1.0 / (double)k;
    double result = 2.0 * s * p;
    return (double)e * 0x1.62e42feep-1 + ((double)e * 0x1.a39ef35793c76p-33 + result);
}

/* Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). */
void philox4x32(const uint32_t counter[4], uint64_t key, uint32_t out[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xd2511f53u * c0;
        uint64_t b = (uint64_t)0xcd9e8d57u * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)a;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}
