// Rotary embedding, SwiGLU and the elementwise odds and ends.
#include <assert.h>
#include <math.h>

#include "kernels/fmath.h"
#include "kernels/ref/ref.h"

void ref_rope(struct device *d, int64_t t, int64_t heads, int64_t head_dim, float *x, int64_t ldx,
              const int32_t *pos, const float *cos, const float *sin, int sign)
{
    (void)d;
    assert(head_dim % 2 == 0 && (sign == 1 || sign == -1));
    int64_t half = head_dim / 2;
    for (int64_t row = 0; row < t; row++)
        for (int64_t h = 0; h < heads; h++) {
            float *a = x + row * ldx + h * head_dim, *b = a + half;
            for (int64_t i = 0; i < half; i++) {
                float c = cos[pos[row] * half + i], s = (float)sign * sin[pos[row] * half + i];
                float lo = fmaf(a[i], c, -(b[i] * s)), hi = fmaf(b[i], c, a[i] * s);
                a[i] = lo;
                b[i] = hi;
            }
        }
}

static float silu_times(float g, float u)
{
    return (g / (1.0f + fmath_exp(-g))) * u;
}

void ref_swiglu(struct device *d, int64_t t, int64_t f, const float *gu, enum dtype y_dtype, void *y,
                uint16_t *kept)
{
    (void)d;
    assert(y_dtype == DT_F32 || y_dtype == DT_BF16);
    for (int64_t row = 0; row < t; row++)
        for (int64_t i = 0; i < f; i++)
            ref_store(y_dtype, y, row * f + i, silu_times(gu[row * 2 * f + i], gu[row * 2 * f + f + i]));
    for (int64_t i = 0; i < t * 2 * f && kept; i++)
        kept[i] = f32_to_bf16(gu[i]);
}

void ref_swiglu_grad(struct device *d, int64_t t, int64_t f, enum dtype dtype, const void *gu,
                     const float *dy, void *dgu, void *y)
{
    (void)d;
    assert(dtype == DT_F32 || dtype == DT_BF16);
    for (int64_t row = 0; row < t; row++)
        for (int64_t i = 0; i < f; i++) {
            int64_t at = row * 2 * f + i;
            float g = ref_load(dtype, gu, at), u = ref_load(dtype, gu, at + f), dyi = dy[row * f + i];
            float sigmoid = 1.0f / (1.0f + fmath_exp(-g));
            ref_store(dtype, dgu, at, (dyi * u) * (sigmoid * fmaf(g, 1.0f - sigmoid, 1.0f)));
            ref_store(dtype, dgu, at + f, dyi * (g * sigmoid));
            if (y)
                ref_store(dtype, y, row * f + i, silu_times(g, u));
        }
}

void ref_add(struct device *d, int64_t n, const float *x, float *y)
{
    (void)d;
    for (int64_t i = 0; i < n; i++)
        y[i] = y[i] + x[i];
}

void ref_round_bf16(struct device *d, int64_t n, float *x)
{
    (void)d;
    for (int64_t i = 0; i < n; i++)
        x[i] = round_to_bf16(x[i]);
}
