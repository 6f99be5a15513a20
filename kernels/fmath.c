// exp, log, sine and cosine as fixed sequences of IEEE operations: see fmath.h. The vector twin of fmath_exp
// (avx2/lanes.h, avx512/lanes.h) takes the same steps. The double-precision functions are written without fma, so that the
// compiler has nothing to choose.
#include "kernels/fmath.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

// x = n ln 2 + r, |r| <= ln 2 / 2; exp(r) = 1 + r + r^2 P(r), P the minimax polynomial of degree 5 of Cephes'
// expf (Moshier 1992); then n is added to the exponent field. The bounds keep every result a normal number.
float fmath_exp(float x)
{
    if (x != x)
        return x;
    if (x < -87.3f)
        return 0;
    if (x > 88.7f)
        return INFINITY;
    float shifted = fmaf(x, 1.44269504f, 12582912.0f); // 1.5 * 2^23: n lands in the low bits
    float n = shifted - 12582912.0f;
    float r = fmaf(n, -0.693145752f, x);
    r = fmaf(n, -1.42860677e-6f, r);
    float p = fmaf(1.9875691500e-4f, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    p = fmaf(p, r * r, r) + 1.0f;
    uint32_t bits, steps;
    memcpy(&bits, &p, 4);
    memcpy(&steps, &shifted, 4);
    bits += steps << 23;
    memcpy(&p, &bits, 4);
    return p;
}

// x = m 2^e, m in [sqrt(1/2), sqrt 2); log m = 2 atanh(s), s = (m - 1) / (m + 1), |s| <= 0.1716.
static double log_double(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, 8);
    int64_t e = (int64_t)(bits >> 52) - 1022;
    bits = (bits & 0xfffffffffffffULL) | 0x3fe0000000000000ULL; // [1/2, 1)
    double m;
    memcpy(&m, &bits, 8);
    if (m < 0.70710678118654752440) {
        m = m * 2;
        e--;
    }
    double s = (m - 1) / (m + 1), z = s * s, p = 0;
    for (int k = 23; k >= 3; k -= 2)
        p = (p + 1.0 / k) * z;
    return (double)e * 0.69314718055994530942 + 2 * (s + s * p);
}

float fmath_log(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return x;
    if ((u & 0x7fffffffu) < 0x00800000u) // zero; subnormals count as zero
        return -INFINITY;
    if (u & 0x80000000u)
        return NAN;
    if (u == 0x7f800000u)
        return x;
    return (float)log_double(x);
}

static double exp_double(double x)
{
    double n = (x * 1.44269504088896340736 + 6755399441055744.0) - 6755399441055744.0;
    double r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10, p = 0;
    for (int k = 14; k >= 1; k--)
        p = (p + 1) * r / k;
    uint64_t bits = (uint64_t)((int64_t)n + 1023) << 52;
    double scale;
    memcpy(&scale, &bits, 8);
    return (1 + p) * scale;
}

double fmath_pow(double base, double e)
{
    return exp_double(-e * log_double(base));
}

// Reduction by pi/2 in three parts (Cody & Waite): exact for |angle| < 2^20 pi/2. Polynomials of fdlibm's
// kernels.
void fmath_sincos(double angle, float *ret_sin, float *ret_cos)
{
    double n = (angle * 0.63661977236758134308 + 6755399441055744.0) - 6755399441055744.0;
    double r = ((angle - n * 1.57079632673412561417) - n * 6.07710050630396597660e-11) -
               n * 2.02226624879595063154e-21;
    double z = r * r;
    double s = 1.58969099521155010221e-10;
    s = s * z - 2.50507602534068634195e-08;
    s = s * z + 2.75573137070700676789e-06;
    s = s * z - 1.98412698298579493134e-04;
    s = s * z + 8.33333333332248946124e-03;
    s = s * z - 1.66666666666666324348e-01;
    s = r + r * z * s;
    double c = -1.13596475577881948265e-11;
    c = c * z + 2.08757232129817482790e-09;
    c = c * z - 2.75573143513906633035e-07;
    c = c * z + 2.48015872894767294178e-05;
    c = c * z - 1.38888888888741095749e-03;
    c = c * z + 4.16666666666666019037e-02;
    c = 1 - 0.5 * z + z * z * c;
    int quadrant = (int)((int64_t)n & 3);
    double sine = quadrant & 1 ? c : s, cosine = quadrant & 1 ? s : c;
    *ret_sin = (float)(quadrant & 2 ? -sine : sine);
    *ret_cos = (float)((quadrant + 1) & 2 ? -cosine : cosine);
}
