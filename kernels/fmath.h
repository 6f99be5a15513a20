// Own exp, log, sin, cos in single precision: libm picks its code by processor, so its bits differ between
// machines. Each is a fixed sequence of IEEE operations (fma written out); vector twins follow the same
// sequence lane by lane and give the same bits.
#ifndef KERNELS_FMATH_H
#define KERNELS_FMATH_H

// exp(x): <= 1 ulp-ish over [-87.3, 88.7]; 0 below, +inf above; NaN in, NaN out.
float fmath_exp(float x);
// log(x), x > 0 normal; -inf at 0, NaN below.
float fmath_log(float x);
// Rotary tables: angle in double, result rounded once to f32.
void fmath_sincos(double angle, float *ret_sin, float *ret_cos);
// base^(-e), for rope frequencies, in double by own exp/log.
double fmath_pow(double base, double e);

#endif
