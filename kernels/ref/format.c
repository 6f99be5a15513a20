// Conversions between number formats; FP8 by blocks of 128 x 128 ("FP8" of algorithms.md).
#include <math.h>
#include <string.h>

#include "kernels/ref/ref.h"

void ref_fp8_quantize(struct device *d, int64_t n, int64_t k, const float *w, uint8_t *q, float *scales)
{
    (void)d;
    int64_t across = ceil_div(k, FP8_BLOCK);
    for (int64_t bn = 0; bn * FP8_BLOCK < n; bn++)
        for (int64_t bk = 0; bk < across; bk++) {
            int64_t n1 = min_i64((bn + 1) * FP8_BLOCK, n), k1 = min_i64((bk + 1) * FP8_BLOCK, k);
            float amax = 0;
            for (int64_t i = bn * FP8_BLOCK; i < n1; i++)
                for (int64_t j = bk * FP8_BLOCK; j < k1; j++)
                    amax = max2(fabsf(w[i * k + j]), amax);
            float scale = max2(amax, 1e-12f) / 448.0f;
            scales[bn * across + bk] = scale;
            for (int64_t i = bn * FP8_BLOCK; i < n1; i++)
                for (int64_t j = bk * FP8_BLOCK; j < k1; j++)
                    q[i * k + j] = f32_to_fp8(w[i * k + j] / scale);
        }
}

void ref_fp8_dequantize(struct device *d, int64_t n, int64_t k, const uint8_t *q, const float *scales,
                        float *w)
{
    (void)d;
    int64_t across = ceil_div(k, FP8_BLOCK);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < k; j++)
            w[i * k + j] = fp8_to_f32(q[i * k + j]) * scales[i / FP8_BLOCK * across + j / FP8_BLOCK];
}

void ref_to_bf16(struct device *d, int64_t n, const float *x, uint16_t *y)
{
    (void)d;
    for (int64_t i = 0; i < n; i++)
        y[i] = f32_to_bf16(x[i]);
}

void ref_to_bf16_rows(struct device *d, int64_t t, int64_t c, const float *x, int64_t ldx, uint16_t *y,
                      int64_t ldy)
{
    (void)d;
    for (int64_t row = 0; row < t; row++)
        for (int64_t i = 0; i < c; i++) {
            float f; // by way of bytes: y may be x
            memcpy(&f, x + row * ldx + i, sizeof f);
            uint16_t h = f32_to_bf16(f);
            memcpy(y + row * ldy + i, &h, sizeof h);
        }
}

void ref_from_bf16(struct device *d, int64_t n, const uint16_t *x, float *y)
{
    (void)d;
    for (int64_t i = 0; i < n; i++)
        y[i] = bf16_to_f32(x[i]);
}
