// The attention block: x += W_o Attention(rope(q), rope(k), v) with [q k v] = W_qkv RMSNorm(x) (+ bias), grouped key/value heads
// (Ainslie et al. 2023), and optionally RMSNorm over each head of q and k (Qwen3). Keys and values go through pages of
// the cache in training too, so that all passes attend with the same op over the same bytes. Runs on the thread that
// owns the weights; no state.
#include <math.h>

#include "model/array.h"
#include "model/weights.h"

// q, k and v come out of one GEMM into rows of (H + 2G) D floats. With q/k norms each has a linear and an array of its
// own instead, so that all heads of q (and of k) are rows of one norm.
struct attention_weights {
    const struct param *norm_param, *q_norm_param, *k_norm_param;
    float *norm, *q_norm, *k_norm;
    int32_t n_qkv;        // 1 or 3
    struct linear qkv[3]; // [(H + 2G) D, C], or [H D, C], [G D, C], [G D, C]
    struct linear o;      // [C, H D]
};

#define ATTN "model.layers.%d.self_attn."
static const char NORM[] = "model.layers.%d.input_layernorm.weight";
static const char *const QKV[] = {ATTN "q_proj.weight", ATTN "k_proj.weight", ATTN "v_proj.weight"};
static const char *const QKV_BIAS[] = {ATTN "q_proj.bias", ATTN "k_proj.bias", ATTN "v_proj.bias"};
static const char Q_NORM[] = ATTN "q_norm.weight", K_NORM[] = ATTN "k_norm.weight";
static const char *const O[] = {ATTN "o_proj.weight"};

static void attention_params(struct layout_builder *b, const struct model_config *c, int32_t layer)
{
    int64_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    const int64_t rows[] = {q, kv, kv};
    layout_add(b, PARAM_NORM, layer, NORM, 0, c->hidden);
    for (int i = 0; i < 3; i++)
        layout_add(b, PARAM_MATRIX, layer, QKV[i], rows[i], c->hidden);
    for (int i = 0; i < 3 && c->qkv_bias; i++)
        layout_add(b, PARAM_BIAS, layer, QKV_BIAS[i], 0, rows[i]);
    if (c->qk_norm) {
        layout_add(b, PARAM_NORM, layer, Q_NORM, 0, c->head_dim);
        layout_add(b, PARAM_NORM, layer, K_NORM, 0, c->head_dim);
    }
    layout_add(b, PARAM_MATRIX, layer, O[0], c->hidden, q);
}

static void attention_bind(struct binder *b, const struct model_config *c, int32_t layer, void *ret_weights)
{
    struct attention_weights *w = ret_weights;
    bind_vector(b, layer, NORM, &w->norm, &w->norm_param);
    w->n_qkv = c->qk_norm ? 3 : 1;
    for (int i = 0; i < w->n_qkv; i++)
        bind_linear(b, layer, w->n_qkv == 1 ? 3 : 1, QKV + i, c->qkv_bias ? QKV_BIAS + i : NULL, &w->qkv[i]);
    if (c->qk_norm) {
        bind_vector(b, layer, Q_NORM, &w->q_norm, &w->q_norm_param);
        bind_vector(b, layer, K_NORM, &w->k_norm, &w->k_norm_param);
    }
    bind_linear(b, layer, 1, O, NULL, &w->o);
}

// q, k, v of all rows: three views, of one array or of three.
struct qkv {
    float *v[3];
    int64_t ld[3];
};

static struct qkv qkv_carve(const struct model_config *c, int64_t t, struct carve *v)
{
    const int64_t w[] = {c->n_heads * c->head_dim, c->n_kv_heads * c->head_dim, c->n_kv_heads * c->head_dim};
    int64_t all = w[0] + w[1] + w[2];
    struct qkv r;
    if (c->qk_norm) {
        for (int i = 0; i < 3; i++) {
            r.v[i] = carve_take(v, t * w[i]);
            r.ld[i] = w[i];
        }
        return r;
    }
    float *base = carve_take(v, t * all);
    for (int64_t i = 0, at = 0; i < 3; at += w[i++]) {
        r.v[i] = base ? base + at : NULL;
        r.ld[i] = all;
    }
    return r;
}

struct attention_saved {
    float *x;       // [T, C] input
    struct qkv rot; // q, k after norm and rope, v
    float *pre[2];  // q [T, H D], k [T, G D] before their norms; NULL without norms
    void *att;      // [T, H D] in the format of rows_dtype
    float *lse;     // [T, H]
};

static int64_t saved_carve(const struct model_config *c, enum dtype dtype, int64_t t, float *base,
                           struct attention_saved *ret)
{
    struct carve v = {.base = base};
    int64_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    ret->x = carve_take(&v, t * c->hidden);
    ret->rot = qkv_carve(c, t, &v);
    ret->pre[0] = c->qk_norm ? carve_take(&v, t * q) : NULL;
    ret->pre[1] = c->qk_norm ? carve_take(&v, t * kv) : NULL;
    ret->att = carve_rows(&v, dtype, t * q);
    ret->lse = carve_take(&v, t * c->n_heads);
    return v.used;
}

// The forward pass needs [T, C] in the format of rows_dtype, the norm's output.
struct attention_grad_scratch {
    void *dx;     // [T, C] rows: dx as it came; NULL where rows are F32
    float *n;     // [T, C] rows: the norm's output once more, then its gradient
    struct qkv d; // gradients of rot, then of pre; at last rows, each in its place
    float *datt;  // [T, H D]
};

static int64_t grad_scratch_carve(const struct model_config *c, enum dtype dtype, int64_t t, float *base,
                                  struct attention_grad_scratch *ret)
{
    struct carve v = {.base = base};
    ret->dx = rows_dtype(dtype) == DT_F32 ? NULL : carve_rows(&v, dtype, t * c->hidden);
    ret->n = carve_take(&v, t * c->hidden);
    ret->d = qkv_carve(c, t, &v);
    ret->datt = carve_take(&v, t * c->n_heads * c->head_dim);
    return v.used;
}

static int64_t attention_saved_floats(const struct model_config *c, enum dtype dtype, int64_t t)
{
    return saved_carve(c, dtype, t, NULL, &(struct attention_saved){0});
}
static int64_t attention_scratch_floats(const struct model_config *c, enum dtype dtype, int64_t t)
{
    struct carve v = {0};
    carve_rows(&v, dtype, t * c->hidden);
    return v.used;
}
static int64_t attention_grad_scratch_floats(const struct model_config *c, enum dtype dtype, int64_t t)
{
    return grad_scratch_carve(c, dtype, t, NULL, &(struct attention_grad_scratch){0});
}

static float softmax_scale(const struct model_config *c)
{
    return 1.0f / sqrtf((float)c->head_dim);
}

static void rope_both(const struct block_run *r, const struct qkv *x, int sign)
{
    const int64_t heads[] = {r->c->n_heads, r->c->n_kv_heads};
    for (int i = 0; i < 2; i++)
        r->d->k->rope(r->d, r->t, heads[i], r->c->head_dim, x->v[i], x->ld[i], r->pos, r->rope->cos,
                      r->rope->sin, sign);
}

static void attend(const struct block_run *r, const struct attention_saved *s)
{
    const struct kernels *k = r->d->k;
    int64_t q = r->c->n_heads * r->c->head_dim;
    const struct qkv *x = &s->rot;
    for (int32_t i = 0, first = 0; i < r->n_spans; first = r->span_end[i++]) {
        int n = r->span_end[i] - first;
        k->kv_write(r->d, &r->cache, n, r->seqs + first, x->v[1], x->ld[1], x->v[2], x->ld[2]);
        k->attention(r->d, &r->cache, (int)r->c->n_heads, softmax_scale(r->c), n, r->seqs + first, x->v[0],
                     x->ld[0], rows_dtype(r->dtype), s->att, q, r->keep ? s->lse : NULL);
    }
}

static void attention_forward(const struct block_run *r, const void *weights, float *x, float *saved,
                              float *scratch)
{
    const struct attention_weights *w = weights;
    const struct kernels *k = r->d->k;
    const struct model_config *c = r->c;
    const enum dtype rows = rows_dtype(r->dtype);
    int64_t C = c->hidden, D = c->head_dim, T = r->t;
    struct attention_saved s;
    saved_carve(c, r->dtype, T, saved, &s);
    if (r->keep)
        array_copy(s.x, x, T * C);
    k->rmsnorm(r->d, T, C, x, C, w->norm, c->rms_eps, rows, scratch, C, NULL);
    for (int i = 0; i < w->n_qkv; i++) {
        float *y = i < 2 && s.pre[i] ? s.pre[i] : s.rot.v[i];
        linear_forward(r->d, &w->qkv[i], T, rows_of(rows, scratch, C), false, y, s.rot.ld[i]);
    }
    if (c->qk_norm) {
        k->rmsnorm(r->d, T * c->n_heads, D, s.pre[0], D, w->q_norm, c->rms_eps, DT_F32, s.rot.v[0], D, NULL);
        k->rmsnorm(r->d, T * c->n_kv_heads, D, s.pre[1], D, w->k_norm, c->rms_eps, DT_F32, s.rot.v[1], D,
                   NULL);
    }
    rope_both(r, &s.rot, 1);
    attend(r, &s);
    if (r->want_output)
        linear_forward(r->d, &w->o, T, rows_of(rows, s.att, c->n_heads * D), true, x, C);
}

// d <- gradient of q, k, v after rope, by the saved q, k, v and datt.
static void attend_grad(const struct block_run *r, const struct attention_saved *s,
                        const struct attention_grad_scratch *b)
{
    const struct model_config *c = r->c;
    int64_t q = c->n_heads * c->head_dim;
    r->d->k->attention_grad(r->d, r->cache.dtype, (int)c->n_heads, (int)c->n_kv_heads, (int)c->head_dim,
                            softmax_scale(c), r->n_seqs, r->seqs, s->rot.v[0], s->rot.ld[0], s->rot.v[1],
                            s->rot.ld[1], s->rot.v[2], s->rot.ld[2], rows_dtype(r->dtype), s->att, q, s->lse,
                            b->datt, q, b->d.v[0], b->d.ld[0], b->d.v[1], b->d.ld[1], b->d.v[2], b->d.ld[2]);
}

// Through the norms of q and k, in place: d <- gradient before the norm. The saved q and k after rope are no longer
// needed and take the result first.
static void head_norms_grad(const struct block_run *r, const struct attention_weights *w,
                            struct attention_saved *s, struct attention_grad_scratch *b, float *grads)
{
    const int64_t heads[] = {r->c->n_heads, r->c->n_kv_heads};
    float *const norm[] = {w->q_norm, w->k_norm};
    const struct param *const param[] = {w->q_norm_param, w->k_norm_param};
    int64_t D = r->c->head_dim;
    for (int i = 0; i < 2; i++) {
        r->d->k->rmsnorm_grad(r->d, r->t * heads[i], D, s->pre[i], D, norm[i], r->c->rms_eps, b->d.v[i], D,
                              false, s->rot.v[i], D, grads + param[i]->offset);
        b->d.v[i] = s->rot.v[i];
    }
}

static void attention_backward(const struct block_run *r, const void *weights, float *saved, float *scratch,
                               float *dx, float *grads)
{
    const struct attention_weights *w = weights;
    const struct kernels *k = r->d->k;
    const struct model_config *c = r->c;
    const enum dtype rows = rows_dtype(r->dtype);
    int64_t C = c->hidden, T = r->t, q = c->n_heads * c->head_dim;
    struct attention_saved s;
    struct attention_grad_scratch b;
    saved_carve(c, r->dtype, T, saved, &s);
    grad_scratch_carve(c, r->dtype, T, scratch, &b);
    const struct rows dy = linear_rows(r->d, r->dtype, T, C, dx, C, b.dx, C);
    linear_grad_w(r->d, &w->o, r->dtype, T, dy, rows_of(rows, s.att, q), grads);
    linear_grad_x(r->d, &w->o, T, dy, false, b.datt, q);
    attend_grad(r, &s, &b);
    rope_both(r, &b.d, -1);
    if (c->qk_norm)
        head_norms_grad(r, w, &s, &b, grads);
    k->rmsnorm(r->d, T, C, s.x, C, w->norm, c->rms_eps, rows, b.n, C, NULL);
    struct rows d[3];
    for (int i = 0; i < w->n_qkv; i++) {
        linear_grad_bias(r->d, &w->qkv[i], T, b.d.v[i], b.d.ld[i], grads);
        d[i] = linear_rows(r->d, r->dtype, T, w->qkv[i].n, b.d.v[i], b.d.ld[i], b.d.v[i], 2 * b.d.ld[i]);
        linear_grad_w(r->d, &w->qkv[i], r->dtype, T, d[i], rows_of(rows, b.n, C), grads);
    }
    for (int i = 0; i < w->n_qkv; i++)
        linear_grad_x(r->d, &w->qkv[i], T, d[i], i > 0, b.n, C);
    k->rmsnorm_grad(r->d, T, C, s.x, C, w->norm, c->rms_eps, b.n, C, true, dx, C,
                    grads + w->norm_param->offset);
}

const struct block block_attention = {
    .name = "attention",
    .params = attention_params,
    .weights_size = sizeof(struct attention_weights),
    .bind = attention_bind,
    .saved = attention_saved_floats,
    .scratch = attention_scratch_floats,
    .grad_scratch = attention_grad_scratch_floats,
    .forward = attention_forward,
    .backward = attention_backward,
};
