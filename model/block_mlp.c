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

struct mlp_scratch {
    float *n;  // [T, C]
    float *gu; // [T, 2F], then its gradient
    float *h;  // [T, F]; backward: its gradient, then h
};

static int64_t scratch_carve(const struct model_config *c, int64_t t, float *base, struct mlp_scratch *ret)
{
    struct carve v = {.base = base};
    ret->n = carve_take(&v, t * c->hidden);
    ret->gu = carve_take(&v, t * 2 * c->ffn);
    ret->h = carve_take(&v, t * c->ffn);
    return v.used;
}

static int64_t mlp_saved_floats(const struct model_config *c, enum dtype dtype, int64_t t)
{
    return saved_carve(c, dtype, t, NULL, &(struct mlp_saved){0});
}
static int64_t mlp_scratch_floats(const struct model_config *c, enum dtype dtype, int64_t t)
{
    (void)dtype;
    return scratch_carve(c, t, NULL, &(struct mlp_scratch){0});
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

static void mlp_forward(const struct block_run *r, const void *weights, float *x, float *saved,
                        float *scratch)
{
    const struct mlp_weights *w = weights;
    const struct kernels *k = r->d->k;
    int64_t C = r->c->hidden, F = r->c->ffn, T = r->t, step = rows_step(T);
    struct mlp_saved s;
    struct mlp_scratch b;
    saved_carve(r->c, r->dtype, T, saved, &s);
    scratch_carve(r->c, T, scratch, &b);
    if (r->keep)
        array_copy(s.x, x, T * C);
    for (int64_t t = 0; t < T; t += step) {
        int64_t m = step < T - t ? step : T - t;
        float *gu = r->keep && s.gu ? s.gu + t * 2 * F : b.gu;
        uint16_t *rough = r->keep && s.rough ? s.rough + t * 2 * F : NULL;
        k->rmsnorm(r->d, m, C, x + t * C, C, w->norm, r->c->rms_eps, b.n, C, NULL);
        linear_forward(r->d, &w->gate_up, m, b.n, C, false, gu, 2 * F);
        if (r->want_output)
            k->swiglu(r->d, m, F, gu, b.h + t * F, rough);
        else if (rough)
            k->to_bf16(r->d, m * 2 * F, gu, rough);
    }
    if (r->want_output)
        linear_forward(r->d, &w->down, T, b.h, F, true, x, C);
}

static void mlp_backward(const struct block_run *r, const void *weights, float *saved, float *scratch,
                         float *dx, float *grads)
{
    const struct mlp_weights *w = weights;
    const struct kernels *k = r->d->k;
    int64_t C = r->c->hidden, F = r->c->ffn, T = r->t, step = rows_step(T);
    struct mlp_saved s;
    struct mlp_scratch b;
    saved_carve(r->c, r->dtype, T, saved, &s);
    scratch_carve(r->c, T, scratch, &b);
    for (int64_t t = 0; t < T; t += step) {
        int64_t m = step < T - t ? step : T - t;
        float *h = b.h + t * F;
        linear_grad_x(r->d, &w->down, m, dx + t * C, C, false, h, F);
        k->swiglu_grad(r->d, m, F, s.rough ? DT_BF16 : DT_F32,
                       s.rough ? (void *)(s.rough + t * 2 * F) : (void *)(s.gu + t * 2 * F), h,
                       b.gu + t * 2 * F, h);
    }
    linear_grad_w(r->d, &w->down, r->dtype, T, dx, C, b.h, F, grads);
    k->rmsnorm(r->d, T, C, s.x, C, w->norm, r->c->rms_eps, b.n, C, NULL);
    linear_grad_w(r->d, &w->gate_up, r->dtype, T, b.gu, 2 * F, b.n, C, grads);
    linear_grad_x(r->d, &w->gate_up, T, b.gu, 2 * F, false, b.n, C);
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
    .grad_scratch = mlp_scratch_floats,
    .forward = mlp_forward,
    .backward = mlp_backward,
};
