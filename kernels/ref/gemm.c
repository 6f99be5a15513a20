// Matrix products: one chain of fused multiply-adds per output, over k (gemm) or m (gemm_dw) ascending.
#include <assert.h>
#include <math.h>

#include "kernels/ref/ref.h"

struct gemm {
    const struct gemm_weight *w;
    int64_t m;
    struct rows x;
    const float *bias;
    bool accumulate;
    float *y;
    int64_t ldy;
};

static float weight_at(const struct gemm_weight *w, int64_t n, int64_t k)
{
    int64_t i = n / PANEL * PANEL * w->k + k * PANEL + n % PANEL;
    switch (w->dtype) {
    case DT_F32:
        return ((const float *)w->data)[i];
    case DT_BF16:
        return bf16_to_f32(((const uint16_t *)w->data)[i]);
    default:
        return fp8_to_f32(((const uint8_t *)w->data)[i]);
    }
}

// Element (m, k) of rows as the product with weights of this dtype takes it.
static float row_at(const struct rows *x, enum dtype weights, int64_t m, int64_t k)
{
    int64_t i = m * x->ld + k;
    if (x->dtype == DT_BF16)
        return bf16_to_f32(((const uint16_t *)x->at)[i]);
    float v = ((const float *)x->at)[i];
    return weights == DT_F32 ? v : round_to_bf16(v);
}

static float dot_chain(const struct gemm *g, int64_t m, int64_t n, int64_t k0, int64_t k1)
{
    float acc = 0;
    for (int64_t k = k0; k < k1; k++)
        acc = fmaf(row_at(&g->x, g->w->dtype, m, k), weight_at(g->w, n, k), acc);
    return acc;
}

static float dot(const struct gemm *g, int64_t m, int64_t n)
{
    const struct gemm_weight *w = g->w;
    if (w->dtype != DT_FP8)
        return dot_chain(g, m, n, 0, w->k);
    float acc = 0;
    int64_t blocks = ceil_div(w->k, FP8_BLOCK);
    for (int64_t b = 0; b < blocks; b++) {
        float t = dot_chain(g, m, n, b * FP8_BLOCK, min_i64((b + 1) * FP8_BLOCK, w->k));
        acc = fmaf(t, w->scales[n / FP8_BLOCK * blocks + b], acc);
    }
    return acc;
}

static void gemm_columns(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct gemm *g = ctx;
    for (int64_t m = 0; m < g->m; m++)
        for (int64_t n = begin; n < end; n++) {
            float sum = dot(g, m, n);
            if (g->bias)
                sum = sum + g->bias[n];
            float *y = g->y + m * g->ldy + n;
            *y = g->accumulate ? *y + sum : sum;
        }
}

void ref_gemm(struct device *d, const struct gemm_weight *w, int64_t m, struct rows x, const float *bias,
              bool accumulate, float *y, int64_t ldy)
{
    assert(w->dtype == DT_FP8 ? w->scales != NULL : w->dtype == DT_F32 || w->dtype == DT_BF16);
    assert(x.dtype == DT_F32 || (x.dtype == DT_BF16 && w->dtype != DT_F32));
    assert(m >= 0 && (m < 2 || (x.ld >= w->k && ldy >= w->n)));
    struct gemm g = {w, m, x, bias, accumulate, y, ldy};
    split_run(d, w->n, PANEL, 3.0 * (double)m * (double)w->k, gemm_columns, &g);
}

struct gemm_dw {
    enum dtype dtype;
    int64_t m, n, k;
    struct rows dy, x;
    float *dw;
};

static void gemm_dw_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct gemm_dw *g = ctx;
    for (int64_t n = begin; n < end; n++)
        for (int64_t k = 0; k < g->k; k++) {
            float acc = 0;
            for (int64_t m = 0; m < g->m; m++)
                acc = fmaf(row_at(&g->dy, g->dtype, m, n), row_at(&g->x, g->dtype, m, k), acc);
            g->dw[n * g->k + k] = g->dw[n * g->k + k] + acc;
        }
}

void ref_gemm_dw(struct device *d, enum dtype dtype, int64_t m, int64_t n, int64_t k, struct rows dy,
                 struct rows x, float *dw)
{
    assert(dtype == DT_F32 || dtype == DT_BF16);
    assert(dtype == DT_BF16 || (dy.dtype == DT_F32 && x.dtype == DT_F32));
    if (m == 0)
        return;
    struct gemm_dw g = {dtype, m, n, k, dy, x, dw};
    split_run(d, n, 1, 3.0 * (double)m * (double)k, gemm_dw_rows, &g);
}

void ref_bias_grad(struct device *d, int64_t m, int64_t n, const float *dy, int64_t lddy, float *db)
{
    (void)d;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            db[j] = db[j] + dy[i * lddy + j];
}
