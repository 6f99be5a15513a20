// RMSNorm (Zhang & Sennrich 2019) and its gradient.
#include <assert.h>
#include <math.h>

#include "kernels/ref/ref.h"

static float rstd_of(const float *x, int64_t c, float eps)
{
    float lane[16] = {0};
    for (int64_t i = 0; i < pad16(c); i++) {
        float v = i < c ? x[i] : 0;
        lane[i % 16] = fmaf(v, v, lane[i % 16]);
    }
    return 1.0f / sqrtf(fold16(lane) / (float)c + eps);
}

void ref_rmsnorm(struct device *d, int64_t t, int64_t c, const float *x, int64_t ldx, const float *w,
                 float eps, enum dtype y_dtype, void *y, int64_t ldy, float *rstd)
{
    (void)d;
    assert(y_dtype == DT_F32 || y_dtype == DT_BF16);
    for (int64_t row = 0; row < t; row++) {
        float r = rstd_of(x + row * ldx, c, eps);
        for (int64_t i = 0; i < c; i++)
            ref_store(y_dtype, y, row * ldy + i, (x[row * ldx + i] * r) * w[i]);
        if (rstd)
            rstd[row] = r;
    }
}

void ref_rmsnorm_grad(struct device *d, int64_t t, int64_t c, const float *x, int64_t ldx, const float *w,
                      float eps, const float *dy, int64_t lddy, bool accumulate, float *dx, int64_t lddx,
                      float *dw)
{
    float *sum = scratch_shared(d, (size_t)c * sizeof *sum);
    for (int64_t i = 0; i < c; i++)
        sum[i] = 0;
    for (int64_t row = 0; row < t; row++) {
        const float *xr = x + row * ldx, *gr = dy + row * lddy;
        float r = rstd_of(xr, c, eps), lane[16] = {0};
        for (int64_t i = 0; i < pad16(c); i++)
            lane[i % 16] = fmaf(i < c ? gr[i] * w[i] : 0, i < c ? xr[i] : 0, lane[i % 16]);
        float s = (((r * r) * r) * fold16(lane)) / (float)c;
        for (int64_t i = 0; i < c; i++) {
            float g = fmaf(-xr[i], s, r * (w[i] * gr[i]));
            float *out = dx + row * lddx + i;
            sum[i] = fmaf(gr[i], xr[i] * r, sum[i]);
            *out = accumulate ? *out + g : g;
        }
    }
    for (int64_t i = 0; i < c; i++)
        dw[i] = dw[i] + sum[i];
}
