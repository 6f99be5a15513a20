// The optimizer's arithmetic: sum of squares for the gradient norm, and AdamW (Loshchilov & Hutter 2019).
#include <math.h>

#include "kernels/ref/ref.h"

double ref_sumsq(struct device *d, int64_t n, const float *x)
{
    (void)d;
    double sum = 0;
    for (int64_t c = 0; c < n; c += SUMSQ_CHUNK) {
        double lane[16] = {0};
        for (int64_t i = c; i < min_i64(c + SUMSQ_CHUNK, n); i++)
            lane[i % 16] = lane[i % 16] + (double)x[i] * (double)x[i]; // the square is exact
        for (int width = 8; width; width /= 2)
            for (int l = 0; l < width; l++)
                lane[l] = lane[l] + lane[l + width];
        sum = sum + lane[0];
    }
    return sum;
}

void ref_adamw(struct device *d, int64_t n, float *p, float *m, float *v, const float *g, float gscale,
               float lr, float b1, float b2, float eps, float wd, float bc1, float bc2)
{
    (void)d;
    float a1 = 1.0f - b1, a2 = 1.0f - b2, decay = lr * wd;
    for (int64_t i = 0; i < n; i++) {
        float gi = gscale * g[i];
        m[i] = fmaf(b1, m[i], a1 * gi);
        v[i] = fmaf(b2, v[i], a2 * (gi * gi));
        float update = (m[i] / bc1) / (sqrtf(v[i] / bc2) + eps);
        p[i] = fmaf(-lr, update, fmaf(-decay, p[i], p[i]));
    }
}
