// Template: RMSNorm and its gradient, sum16 as one vector accumulator.
#include <assert.h>
#include <math.h>

#include "kernels/lanes/rows_tmpl.c"

struct norm {
    int64_t t, c;
    const float *x;
    int64_t ldx;
    const float *w;
    float eps;
    void *y;
    int64_t ldy;
    float *rstd;
    // gradient
    const float *dy;
    int64_t lddy;
    bool accumulate;
    float *dx;
    int64_t lddx;
    float *dw;
};

static float rstd_of(const float *x, int64_t c, float eps)
{
    v16 sum = v_zero();
    for (int64_t i = 0; i < c; i += 16) {
        v16 v = v_load_n(x + i, min_i64(16, c - i));
        sum = v_fma(v, v, sum);
    }
    return 1.0f / sqrtf(v_fold(sum) / (float)c + eps);
}

ALWAYS void norm_range(const enum dtype t, const struct norm *a, int64_t begin, int64_t end)
{
    for (int64_t row = begin; row < end; row++) {
        const float *x = a->x + row * a->ldx;
        float r = rstd_of(x, a->c, a->eps);
        v16 rv = v_set(r);
        for (int64_t i = 0; i < a->c; i += 16) {
            int64_t n = min_i64(16, a->c - i);
            rows_store(t, a->y, row * a->ldy + i, v_mul(v_mul(v_load_n(x + i, n), rv), v_load_n(a->w + i, n)),
                       n);
        }
        if (a->rstd)
            a->rstd[row] = r;
    }
}

ROWS_RANGE(norm)

void LANES(rmsnorm)(struct device *d, int64_t t, int64_t c, const float *x, int64_t ldx, const float *w,
                    float eps, enum dtype y_dtype, void *y, int64_t ldy, float *rstd)
{
    assert(y_dtype == DT_F32 || y_dtype == DT_BF16);
    struct norm a = {
        .t = t, .c = c, .x = x, .ldx = ldx, .w = w, .eps = eps, .y = y, .ldy = ldy, .rstd = rstd};
    split_run(d, t, 1, 0.15 * (double)c + 10, ROWS_PICK(norm, y_dtype), &a);
}

static void grad_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct norm *a = ctx;
    for (int64_t row = begin; row < end; row++) {
        const float *x = a->x + row * a->ldx, *dy = a->dy + row * a->lddy;
        float r = rstd_of(x, a->c, a->eps), *dx = a->dx + row * a->lddx;
        a->rstd[row] = r;
        v16 sum = v_zero(), rv = v_set(r);
        for (int64_t i = 0; i < a->c; i += 16) {
            int64_t n = min_i64(16, a->c - i);
            sum = v_fma(v_mul(v_load_n(dy + i, n), v_load_n(a->w + i, n)), v_load_n(x + i, n), sum);
        }
        v16 s = v_set((((r * r) * r) * v_fold(sum)) / (float)a->c);
        for (int64_t i = 0; i < a->c; i += 16) {
            int64_t n = min_i64(16, a->c - i);
            v16 g = v_mul(rv, v_mul(v_load_n(a->w + i, n), v_load_n(dy + i, n)));
            g = v_fnma(v_load_n(x + i, n), s, g);
            v_store_n(dx + i, a->accumulate ? v_add(v_load_n(dx + i, n), g) : g, n);
        }
    }
}

static void grad_columns(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct norm *a = ctx;
    for (int64_t c0 = begin; c0 < end; c0 += 64) { // 64 columns: whole lines, four chains in flight
        v16 sum[4] = {v_zero(), v_zero(), v_zero(), v_zero()};
        for (int64_t row = 0; row < a->t; row++) {
            v16 r = v_set(a->rstd[row]);
            for (int64_t v = 0, i = c0; v < 4 && i < end; v++, i += 16) {
                int64_t n = min_i64(16, end - i);
                v16 xr = v_mul(v_load_n(a->x + row * a->ldx + i, n), r);
                sum[v] = v_fma(v_load_n(a->dy + row * a->lddy + i, n), xr, sum[v]);
            }
        }
        for (int64_t v = 0, i = c0; v < 4 && i < end; v++, i += 16) {
            int64_t n = min_i64(16, end - i);
            v_store_n(a->dw + i, v_add(v_load_n(a->dw + i, n), sum[v]), n);
        }
    }
}

void LANES(rmsnorm_grad)(struct device *d, int64_t t, int64_t c, const float *x, int64_t ldx, const float *w,
                         float eps, const float *dy, int64_t lddy, bool accumulate, float *dx, int64_t lddx,
                         float *dw)
{
    struct norm a = {.t = t,
                     .c = c,
                     .x = x,
                     .ldx = ldx,
                     .w = w,
                     .eps = eps,
                     .dy = dy,
                     .lddy = lddy,
                     .accumulate = accumulate,
                     .dx = dx,
                     .lddx = lddx,
                     .dw = dw};
    a.rstd = scratch_shared(d, (size_t)t * sizeof *a.rstd);
    split_run(d, t, 1, 0.3 * (double)c + 20, grad_rows, &a);
    split_run(d, c, 64, 0.1 * (double)t, grad_columns, &a);
}
