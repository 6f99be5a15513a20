// The feed-forward block: x += W_down (silu(W_gate n) * W_up n), n = RMSNorm(x) (Shazeer 2020, SwiGLU). Runs on the thread
// that owns the weights; no state.
#include "model/array.h"
#include "model/weights.h"

struct mlp_weights {
    const struct param *norm_param;
    float *norm;           // [C]
    struct linear gate_up; // [2F, C]: gate rows, then up rows
    struct linear down;    // [C, F]
};

static const char NORM[] = "model.layers.%d.post_attention_layernorm.weight";
static const char *const GATE_UP[] = {"model.layers.%d.mlp.gate_proj.weight",
                                      "model.layers.%d.mlp.up_proj.weight"};
static const char *const DOWN[] = {"model.layers.%d.mlp.down_proj.weight"};

static void mlp_params(struct layout_builder *b, const struct model_config *c, int32_t layer)
{
    layout_add(b, PARAM_NORM, layer, NORM, 0, c->hidden);
    layout_add(b, PARAM_MATRIX, layer, GATE_UP[0], c->ffn, c->hidden);
    layout_add(b, PARAM_MATRIX, layer, GATE_UP[1], c->ffn, c->hidden);
    layout_add(b, PARAM_MATRIX, layer, DOWN[0], c->hidden, c->ffn);
}

static void mlp_bind(struct binder *b, const struct model_config *c, int32_t layer, void *ret_weights)
{
    struct mlp_weights *w = ret_weights;
    (void)c;
    bind_vector(b, layer, NORM, &w->norm, &w->norm_param);
    bind_linear(b, layer, 2, GATE_UP, NULL, &w->gate_up);
    bind_linear(b, layer, 1, DOWN, NULL, &w->down);
}

// Kept for the backward pass; n and the activation are cheap and computed again. In a model of bf16 products gate and up are
// kept in bf16 too, half of all that a layer keeps: the forward pass, whose bits are the engine's, reads them in f32 before;
// the gradient takes the rounded ones, recomputed or not.
struct mlp_saved {
    float *x;        // [T, C] input
    float *gu;       // [T, 2F] DT_F32
    uint16_t *rough; // [T, 2F] else
};

static int64_t saved_carve(const struct model_config *c, enum dtype dtype, int64_t t, float *base,
                           struct mlp_saved *ret)
{
    struct carve v = {.base = base};
    *ret = (struct mlp_saved){.x = carve_take(&v, t * c->hidden)};
    if (dtype == DT_F32)
        ret->gu = carve_take(&v, t * 2 * c->ffn);
    else
        ret->rough = (uint16_t *)carve_take(&v, t * c->ffn);
    return v.used;
}

// gate and up are the widest rows of the model. They are made and used up some rows at a time, so that they still lie in a cache when
// the next op reads them. W_down follows for all rows: packing goes by whole matrices. Bits know nothing of it; how often each op is
// called must follow from T alone, since traces (trace.h) number the calls.
#define ROWS_MOST 384

static int64_t rows_step(int64_t t)
{
    int64_t steps = (t + ROWS_MOST - 1) / ROWS_MOST;
    return (t + steps - 1) / steps;
}

// Rows that products read ("rows") are in the format of rows_dtype.
struct mlp_scratch {
    void *n;   // [step, C] rows
    float *gu; // [step, 2F]
    void *h;   // [T, F] rows
};

static int64_t scratch_carve(const struct model_config *c, enum dtype dtype, int64_t t, float *base,
                             struct mlp_scratch *ret)
{
    struct carve v = {.base = base};
    int64_t most = t < ROWS_MOST ? t : ROWS_MOST;
    ret->n = carve_rows(&v, dtype, most * c->hidden);
    ret->gu = carve_take(&v, most * 2 * c->ffn);
    ret->h = carve_rows(&v, dtype, t * c->ffn);
    return v.used;
}

struct mlp_grad_scratch {
    void *dx;  // [T, C] rows: dx as it came; NULL where rows are F32
    float *dh; // [step, F] gradient of h
    void *h;   // [T, F] rows: h once more
    float *n;  // [T, C] rows: n once more, then its gradient
};

static int64_t grad_scratch_carve(const struct model_config *c, enum dtype dtype, int64_t t, float *base,
                                  struct mlp_grad_scratch *ret)
{
    struct carve v = {.base = base};
    ret->dx = rows_dtype(dtype) == DT_F32 ? NULL : carve_rows(&v, dtype, t * c->hidden);
    ret->dh = carve_take(&v, (t < ROWS_MOST ? t : ROWS_MOST) * c->ffn);
    ret->h = carve_rows(&v, dtype, t * c->ffn);
    ret->n = carve_take(&v, t * c->hidden);
    return v.used;
}

static int64_t mlp_saved_floats(const struct model_config *c, enum dtype dtype, int64_t t)
{
    return saved_carve(c, dtype, t, NULL, &(struct mlp_saved){0});
}
static int64_t mlp_scratch_floats(const struct model_config *c, enum dtype dtype, int64_t t)
{
    return scratch_carve(c, dtype, t, NULL, &(struct mlp_scratch){0});
}
static int64_t mlp_grad_scratch_floats(const struct model_config *c, enum dtype dtype, int64_t t)
{
    return grad_scratch_carve(c, dtype, t, NULL, &(struct mlp_grad_scratch){0});
}

static void mlp_forward(const struct block_run *r, const void *weights, float *x, float *saved,
                        float *scratch)
{
    const struct mlp_weights *w = weights;
    const struct kernels *k = r->d->k;
    const enum dtype rows = rows_dtype(r->dtype);
    int64_t C = r->c->hidden, F = r->c->ffn, T = r->t, step = rows_step(T);
    struct mlp_saved s;
    struct mlp_scratch b;
    saved_carve(r->c, r->dtype, T, saved, &s);
    scratch_carve(r->c, r->dtype, T, scratch, &b);
    if (r->keep)
        array_copy(s.x, x, T * C);
    for (int64_t t = 0; t < T; t += step) {
        int64_t m = step < T - t ? step : T - t;
        float *gu = r->keep && s.gu ? s.gu + t * 2 * F : b.gu;
        uint16_t *rough = r->keep && s.rough ? s.rough + t * 2 * F : NULL;
        k->rmsnorm(r->d, m, C, x + t * C, C, w->norm, r->c->rms_eps, rows, b.n, C, NULL);
        linear_forward(r->d, &w->gate_up, m, rows_of(rows, b.n, C), false, gu, 2 * F);
        if (r->want_output)
            k->swiglu(r->d, m, F, gu, rows, (char *)b.h + t * F * (int64_t)dtype_bytes(rows), rough);
        else if (rough)
            k->to_bf16(r->d, m * 2 * F, gu, rough);
    }
    if (r->want_output)
        linear_forward(r->d, &w->down, T, rows_of(rows, b.h, F), true, x, C);
}

static void mlp_backward(const struct block_run *r, const void *weights, float *saved, float *scratch,
                         float *dx, float *grads)
{
    const struct mlp_weights *w = weights;
    const struct kernels *k = r->d->k;
    const enum dtype rows = rows_dtype(r->dtype);
    const int64_t size = (int64_t)dtype_bytes(rows);
    int64_t C = r->c->hidden, F = r->c->ffn, T = r->t, step = rows_step(T);
    struct mlp_saved s;
    struct mlp_grad_scratch b;
    saved_carve(r->c, r->dtype, T, saved, &s);
    grad_scratch_carve(r->c, r->dtype, T, scratch, &b);
    const struct rows dy = linear_rows(r->d, r->dtype, T, C, dx, C, b.dx, C);
    void *gu = s.rough ? (void *)s.rough : (void *)s.gu; // becomes its own gradient
    for (int64_t t = 0; t < T; t += step) {
        int64_t m = step < T - t ? step : T - t;
        void *part = (char *)gu + t * 2 * F * size;
        struct rows dy_part = rows_from(dy, t * dy.ld);
        linear_grad_x(r->d, &w->down, m, dy_part, false, b.dh, F);
        k->swiglu_grad(r->d, m, F, rows, part, b.dh, part, (char *)b.h + t * F * size);
    }
    linear_grad_w(r->d, &w->down, r->dtype, T, dy, rows_of(rows, b.h, F), grads);
    k->rmsnorm(r->d, T, C, s.x, C, w->norm, r->c->rms_eps, rows, b.n, C, NULL);
    linear_grad_w(r->d, &w->gate_up, r->dtype, T, rows_of(rows, gu, 2 * F), rows_of(rows, b.n, C), grads);
    linear_grad_x(r->d, &w->gate_up, T, rows_of(rows, gu, 2 * F), false, b.n, C);
    k->rmsnorm_grad(r->d, T, C, s.x, C, w->norm, r->c->rms_eps, b.n, C, true, dx, C,
                    grads + w->norm_param->offset);
}

const struct block block_mlp = {
    .name = "mlp",
    .params = mlp_params,
    .weights_size = sizeof(struct mlp_weights),
    .bind = mlp_bind,
    .saved = mlp_saved_floats,
    .scratch = mlp_scratch_floats,
    .grad_scratch = mlp_grad_scratch_floats,
    .forward = mlp_forward,
    .backward = mlp_backward,
};
