// Template: SwiGLU and its gradient, sixteen columns of a row at a time.
#include <assert.h>

#include "kernels/lanes/rows_tmpl.c"

struct swiglu {
    int64_t f;
    const void *gu;
    const float *dy;
    void *out, *y; // dgu; y
    uint16_t *kept;
};

// n columns from column i of a row on.
ALWAYS void swiglu_some(const enum dtype t, const struct swiglu *a, int64_t row, int64_t i, int64_t n)
{
    const int64_t at = row * 2 * a->f + i;
    v16 g = rows_load(DT_F32, a->gu, at, n), u = rows_load(DT_F32, a->gu, at + a->f, n);
    rows_store(t, a->y, row * a->f + i, v_mul(v_div(g, v_add(v_set(1.0f), v_exp(v_neg(g)))), u), n);
    if (a->kept) {
        v_store_bf16_n(a->kept + at, g, n);
        v_store_bf16_n(a->kept + at + a->f, u, n);
    }
}

ALWAYS void swiglu_range(const enum dtype t, const struct swiglu *a, int64_t begin, int64_t end)
{
    const int64_t whole = a->f / 16 * 16;
    for (int64_t row = begin; row < end; row++) {
        for (int64_t i = 0; i < whole; i += 16)
            swiglu_some(t, a, row, i, 16);
        if (whole < a->f)
            swiglu_some(t, a, row, whole, a->f - whole);
    }
}

ROWS_RANGE(swiglu)

void LANES(swiglu)(struct device *d, int64_t t, int64_t f, const float *gu, enum dtype y_dtype, void *y,
                   uint16_t *kept)
{
    assert(y_dtype == DT_F32 || y_dtype == DT_BF16);
    struct swiglu a = {.f = f, .gu = gu, .y = y, .kept = kept};
    split_run(d, t, 1, 0.5 * (double)f, ROWS_PICK(swiglu, y_dtype), &a);
}

// t: of gu, dgu and y.
ALWAYS void swiglu_grad_some(const enum dtype t, const struct swiglu *a, int64_t row, int64_t i, int64_t n)
{
    const int64_t at = row * 2 * a->f + i;
    v16 one = v_set(1.0f), g = rows_load(t, a->gu, at, n), u = rows_load(t, a->gu, at + a->f, n),
        dy = rows_load(DT_F32, a->dy, row * a->f + i, n), below = v_add(one, v_exp(v_neg(g)));
    v16 sigmoid = v_div(one, below);
    v16 dg = v_mul(v_mul(dy, u), v_mul(sigmoid, v_fma(g, v_sub(one, sigmoid), one)));
    rows_store(t, a->out, at, dg, n);
    rows_store(t, a->out, at + a->f, v_mul(dy, v_mul(g, sigmoid)), n);
    if (a->y)
        rows_store(t, a->y, row * a->f + i, v_mul(v_div(g, below), u), n);
}

ALWAYS void swiglu_grad_range(const enum dtype t, const struct swiglu *a, int64_t begin, int64_t end)
{
    const int64_t whole = a->f / 16 * 16;
    for (int64_t row = begin; row < end; row++) {
        for (int64_t i = 0; i < whole; i += 16)
            swiglu_grad_some(t, a, row, i, 16);
        if (whole < a->f)
            swiglu_grad_some(t, a, row, whole, a->f - whole);
    }
}

ROWS_RANGE(swiglu_grad)

void LANES(swiglu_grad)(struct device *d, int64_t t, int64_t f, enum dtype dtype, const void *gu,
                        const float *dy, void *dgu, void *y)
{
    assert(dtype == DT_F32 || dtype == DT_BF16);
    struct swiglu a = {.f = f, .gu = gu, .dy = dy, .out = dgu, .y = y};
    split_run(d, t, 1, 0.8 * (double)f, ROWS_PICK(swiglu_grad, dtype), &a);
}
