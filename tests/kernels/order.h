// The orders of accumulation that classes with a bf16 dot product document (avx512bf16/avx512bf16.h, amx/amx.h), in plain C: what those
// classes must compute bit for bit. Operands are f32 numbers that are bf16 already. The thread has DAZ and FTZ set, as kernel threads
// do (device_open), and the instructions act so in any case.
#ifndef TESTS_KERNELS_ORDER_H
#define TESTS_KERNELS_ORDER_H

#include <math.h>

#include "kernels/kernels.h"

static inline float order_bf16(float x)
{
    return bf16_to_f32(f32_to_bf16(x));
}

// vdpbf16ps: two fused multiply-adds, the odd pair first, each rounded.
static inline float order_pair(float acc, float x0, float w0, float x1, float w1)
{
    return fmaf(x0, w0, fmaf(x1, w1, acc));
}

// The chain over n products from 0, as class `isa` takes it; x and w with strides.
static inline float order_dot(enum isa isa, const float *x, int64_t sx, const float *w, int64_t sw, int64_t n)
{
    float acc = 0;
    if (isa == ISA_AVX512BF16) {
        for (int64_t i = 0; i + 1 < n; i += 2)
            acc = order_pair(acc, x[i * sx], w[i * sw], x[(i + 1) * sx], w[(i + 1) * sw]);
        if (n % 2)
            acc = order_pair(acc, x[(n - 1) * sx], w[(n - 1) * sw], 0, 0);
    } else if (isa == ISA_AMX) {
        for (int64_t step = 0; step < n; step += 32) {
            float sum[2] = {0, 0}; // even, odd
            for (int64_t i = step; i < step + 32; i++)
                sum[i % 2] = i < n ? fmaf(x[i * sx], w[i * sw], sum[i % 2]) : fmaf(0, 0, sum[i % 2]);
            acc = acc + (sum[0] + sum[1]);
        }
    } else {
        for (int64_t i = 0; i < n; i++)
            acc = fmaf(x[i * sx], w[i * sw], acc);
    }
    return acc;
}

// Two orders of one sum of n products, s = the sum of their magnitudes: each is within g s of the sum, g = n u / (1 - n u), u = 2^-24
// (Higham 2002, section 3.1; n counts every rounding on a product's way); a product or a partial sum that is flushed to zero loses at
// most 2^-126.
static inline double order_bound(int64_t n, double s)
{
    double nu = (double)n * 0x1p-24;
    return 2 * nu / (1 - nu) * s + (double)n * 0x1p-125;
}

#endif
