// The ops that work row by row or element by element, of every class against ref, and their gradients against differences in double.
#include "kernels/fmath.h"
#include "tests/kernels/check.h"

static struct check check;

// One array of an op under test. Outputs are guarded and compared; inputs are shared.
#define RUNS 60

static void each(const char *what, size_t bytes, const void *init,
                 void (*op)(struct device *, void *, void *), void *args)
{
    struct guarded want = guarded_new(bytes);
    memcpy(want.p, init, bytes);
    op(check.ref, args, want.p);
    guarded_check(&want, what);
    for (int t = 0; t < check.n_twins; t++) {
        struct guarded got = guarded_new(bytes);
        memcpy(got.p, init, bytes);
        op(check.twin[t], args, got.p);
        guarded_check(&got, what);
        if (bytes % 4 == 0)
            check_same(what, check.twin[t], want.p, got.p, (int64_t)bytes / 4);
        else
            check_same_bytes(what, check.twin[t], want.p, got.p, bytes);
        guarded_free(&got);
    }
    guarded_free(&want);
}

// Arguments of any op here; each uses what it needs. Outputs lie one after another in `out`.
struct args {
    int64_t t, c, ldx, ldy, heads, dim;
    float *x, *w, *dy, *cos, *sin, *temp, *dl, *dh;
    int32_t *ids, *pos;
    uint16_t *half;
    uint8_t *codes;
    bool flag;
    int sign;
};

static void op_rmsnorm(struct device *d, void *ctx, void *out)
{
    struct args *a = ctx;
    float *y = out;
    d->k->rmsnorm(d, a->t, a->c, a->x, a->ldx, a->w, 1e-5f, y, a->ldy, a->flag ? y + a->t * a->ldy : NULL);
}

static void op_rmsnorm_grad(struct device *d, void *ctx, void *out)
{
    struct args *a = ctx;
    float *dx = out;
    d->k->rmsnorm_grad(d, a->t, a->c, a->x, a->ldx, a->w, 1e-5f, a->dy, a->ldx, a->flag, dx, a->ldy,
                       dx + a->t * a->ldy);
}

static void op_rmsnorm_inplace(struct device *d, void *ctx, void *out)
{
    struct args *a = ctx;
    d->k->rmsnorm(d, a->t, a->c, out, a->c, a->w, 1e-6f, out, a->c, NULL);
}

static void test_rmsnorm(void **state)
{
    (void)state;
    for (int i = 0; i < RUNS; i++) {
        struct args a = {.t = check_between(&check, i % 20 ? 1 : 0, i % 7 ? 20 : 400),
                         .c = check_between(&check, 1, i % 5 ? 130 : 700)};
        a.ldx = a.c + check_between(&check, 0, 3);
        a.ldy = a.c + check_between(&check, 0, 3);
        a.flag = i % 2;
        a.x = check_floats(&check, a.t * a.ldx, i % 6 ? 1 : 1e-3f, i % 8 ? 0 : 3);
        a.dy = check_floats(&check, a.t * a.ldx, 1, 0);
        a.w = check_floats(&check, a.c, 1, 0);
        float *init = check_floats(&check, a.t * a.ldy + a.t + a.c, 1, 0);
        each("rmsnorm", (size_t)(a.t * a.ldy + a.t) * 4, init, op_rmsnorm, &a);
        each("rmsnorm_grad", (size_t)(a.t * a.ldy + a.c) * 4, init, op_rmsnorm_grad, &a);
        each("rmsnorm in place", (size_t)(a.t * a.c) * 4, init, op_rmsnorm_inplace, &a);
        free(a.x);
        free(a.dy);
        free(a.w);
        free(init);
    }
}

static void op_rope(struct device *d, void *ctx, void *out)
{
    struct args *a = ctx;
    d->k->rope(d, a->t, a->heads, a->dim, out, a->ldx, a->pos, a->cos, a->sin, a->sign);
}

static void test_rope(void **state)
{
    (void)state;
    for (int i = 0; i < RUNS; i++) {
        struct args a = {.t = check_between(&check, 1, 30),
                         .heads = check_between(&check, 1, 5),
                         .dim = 2 * check_between(&check, 1, 64)};
        a.ldx = a.heads * a.dim + check_between(&check, 0, 5);
        a.sign = i % 2 ? 1 : -1;
        a.pos = malloc((size_t)a.t * sizeof *a.pos);
        for (int64_t j = 0; j < a.t; j++)
            a.pos[j] = (int32_t)check_between(&check, 0, 49);
        a.cos = check_floats(&check, 50 * a.dim / 2, 1, 0);
        a.sin = check_floats(&check, 50 * a.dim / 2, 1, 0);
        float *init = check_floats(&check, a.t * a.ldx, 1, i % 5 ? 0 : 5);
        each("rope", (size_t)(a.t * a.ldx) * 4, init, op_rope, &a);
        // forward, then the inverse: a rotation comes back
        for (int64_t j = 0; j < 50 * a.dim / 2; j++) {
            a.cos[j] = cosf((float)j);
            a.sin[j] = sinf((float)j);
        }
        float *x = check_floats(&check, a.t * a.ldx, 1, 0), *keep = malloc((size_t)(a.t * a.ldx) * 4);
        memcpy(keep, x, (size_t)(a.t * a.ldx) * 4);
        for (a.sign = 1; a.sign >= -1; a.sign -= 2)
            op_rope(check.ref, &a, x);
        for (int64_t j = 0; j < a.t * a.ldx; j++)
            check_near("rope there and back", check.ref, keep[j], x[j], 1e-5);
        free(x);
        free(keep);
        free(a.pos);
        free(a.cos);
        free(a.sin);
        free(init);
    }
}

static void op_swiglu(struct device *d, void *ctx, void *out)
{
    struct args *a = ctx;
    d->k->swiglu(d, a->t, a->c, a->x, out);
}

static void op_swiglu_grad(struct device *d, void *ctx, void *out)
{
    struct args *a = ctx;
    d->k->swiglu_grad(d, a->t, a->c, out, a->dy, out); // in place, as allowed
}

static void op_add(struct device *d, void *ctx, void *out)
{
    struct args *a = ctx;
    d->k->add(d, a->t * a->c, a->x, out);
}

static void op_round(struct device *d, void *ctx, void *out)
{
    struct args *a = ctx;
    d->k->round_bf16(d, a->t * a->c, out);
}

static void op_to_bf16(struct device *d, void *ctx, void *out)
{
    struct args *a = ctx;
    d->k->to_bf16(d, a->t * a->c, a->x, out);
}

static void op_from_bf16(struct device *d, void *ctx, void *out)
{
    struct args *a = ctx;
    d->k->from_bf16(d, a->t * a->c, a->half, out);
}

static void test_elements(void **state)
{
    (void)state;
    for (int i = 0; i < RUNS; i++) {
        struct args a = {.t = check_between(&check, i % 20 ? 1 : 0, i % 7 ? 9 : 300),
                         .c = check_between(&check, 1, 150)};
        int64_t n = a.t * a.c;
        a.x = check_floats(&check, 2 * n, i % 3 ? 3 : 40, i % 4 ? 0 : 20);
        a.dy = check_floats(&check, n, 1, 0);
        a.half = malloc((size_t)(n ? n : 1) * 2);
        for (int64_t j = 0; j < n; j++)
            a.half[j] = (uint16_t)rng_u32(&check.rng);
        float *init = check_floats(&check, 2 * n, 5, i % 4 ? 0 : 20);
        each("swiglu", (size_t)n * 4, init, op_swiglu, &a);
        each("swiglu_grad", (size_t)(2 * n) * 4, init, op_swiglu_grad, &a);
        each("add", (size_t)n * 4, init, op_add, &a);
        each("round_bf16", (size_t)n * 4, init, op_round, &a);
        each("from_bf16", (size_t)n * 4, init, op_from_bf16, &a);
        each("to_bf16", (size_t)n * 2, init, op_to_bf16, &a);
        free(a.x);
        free(a.dy);
        free(a.half);
        free(init);
    }
}

static void op_embed(struct device *d, void *ctx, void *out)
{
    struct args *a = ctx;
    d->k->embed(d, a->flag ? DT_BF16 : DT_F32, a->flag ? (void *)a->half : (void *)a->w, a->c, a->t, a->ids,
                out);
}

static void op_embed_grad(struct device *d, void *ctx, void *out)
{
    struct args *a = ctx;
    d->k->embed_grad(d, a->c, a->t, a->ids, a->x, out);
}

static void test_embed(void **state)
{
    (void)state;
    for (int i = 0; i < RUNS; i++) {
        struct args a = {.t = check_between(&check, 0, i % 9 ? 20 : 600),
                         .c = check_between(&check, 1, 140),
                         .flag = i % 2};
        int64_t v = check_between(&check, 1, 20);
        a.ids = malloc((size_t)(a.t + 1) * sizeof *a.ids);
        for (int64_t j = 0; j < a.t; j++)
            a.ids[j] = (int32_t)check_between(&check, 0, v - 1);
        a.w = check_floats(&check, v * a.c, 1, 0);
        a.x = check_floats(&check, a.t * a.c, 1, 0);
        a.half = malloc((size_t)(v * a.c) * 2);
        for (int64_t j = 0; j < v * a.c; j++)
            a.half[j] = f32_to_bf16(a.w[j]);
        float *init = check_floats(&check, (a.t + v) * a.c, 1, 0);
        each("embed", (size_t)(a.t * a.c) * 4, init, op_embed, &a);
        each("embed_grad", (size_t)(v * a.c) * 4, init, op_embed_grad, &a);
        free(a.ids);
        free(a.w);
        free(a.x);
        free(a.half);
        free(init);
    }
}

// out: logprob, lse, entropy [t] each
static void op_logprob(struct device *d, void *ctx, void *out)
{
    struct args *a = ctx;
    float *o = out;
    d->k->logprob(d, a->t, a->c, a->x, a->ldx, a->temp, a->ids, o, o + a->t, a->flag ? o + 2 * a->t : NULL);
}

static void op_logprob_grad(struct device *d, void *ctx, void *out)
{
    struct args *a = ctx;
    d->k->logprob_grad(d, a->t, a->c, out, a->ldx, a->temp, a->ids, a->w, a->dl, a->flag ? a->w + a->t : NULL,
                       a->flag ? a->dh : NULL);
}

static void op_probs(struct device *d, void *ctx, void *out)
{
    struct args *a = ctx;
    d->k->probs(d, a->t, a->c, a->x, a->ldx, a->temp, a->w, out, a->ldy);
}

// log-probability and entropy in double of one row
static void row_double(const float *x, int64_t v, double temp, int target, double bump_at, double bump,
                       double *ret_logprob, double *ret_entropy)
{
    double top = -1e300, sum = 0, h = 0;
    for (int64_t j = 0; j < v; j++)
        top = fmax(top, ((double)x[j] + ((double)j == bump_at ? bump : 0)) * temp);
    for (int64_t j = 0; j < v; j++)
        sum += exp(((double)x[j] + ((double)j == bump_at ? bump : 0)) * temp - top);
    for (int64_t j = 0; j < v; j++) {
        double logp = ((double)x[j] + ((double)j == bump_at ? bump : 0)) * temp - top - log(sum);
        h -= exp(logp) * (isfinite(logp) ? logp : 0);
        if (j == target)
            *ret_logprob = logp;
    }
    *ret_entropy = h;
}

static void vocab_truth(const struct args *a, const float *logprob, const float *lse, const float *entropy)
{
    float *grad = malloc((size_t)(a->t * a->ldx) * 4);
    memcpy(grad, a->x, (size_t)(a->t * a->ldx) * 4);
    check.ref->k->logprob_grad(check.ref, a->t, a->c, grad, a->ldx, a->temp, a->ids, lse, a->dl, entropy,
                               a->dh);
    for (int64_t r = 0; r < a->t; r++) {
        double lp = 0, h = 0, up = 0, up_h, down = 0, down_h, e = 1e-4;
        const float *x = a->x + r * a->ldx;
        row_double(x, a->c, (double)a->temp[r], a->ids[r], -1, 0, &lp, &h);
        check_near("ref entropy", check.ref, h, entropy[r], 2e-4);
        if (a->ids[r] < 0) {
            assert_true(logprob[r] == 0 && grad[r * a->ldx] == 0);
            continue;
        }
        check_near("ref logprob", check.ref, lp, logprob[r], 1e-4);
        int64_t at = r % 2 ? a->ids[r] : check_between(&check, 0, a->c - 1);
        row_double(x, a->c, (double)a->temp[r], a->ids[r], (double)at, e, &up, &up_h);
        row_double(x, a->c, (double)a->temp[r], a->ids[r], (double)at, -e, &down, &down_h);
        double want = ((double)a->dl[r] * (up - down) + (double)a->dh[r] * (up_h - down_h)) / (2 * e);
        check_near("ref logprob_grad", check.ref, want, grad[r * a->ldx + at], 1e-3);
    }
    free(grad);
}

static void test_vocab(void **state)
{
    (void)state;
    for (int i = 0; i < RUNS; i++) {
        struct args a = {.t = check_between(&check, 1, 6),
                         .c = check_between(&check, 1, i % 6 ? 600 : 14000),
                         .flag = i % 2};
        a.ldx = a.c + check_between(&check, 0, 3);
        a.ldy = a.c + check_between(&check, 0, 3);
        a.x = check_floats(&check, a.t * a.ldx, 3, 0);
        a.ids = malloc((size_t)a.t * sizeof *a.ids);
        a.temp = malloc((size_t)a.t * 4);
        a.dl = check_floats(&check, a.t, 1, 0);
        a.dh = check_floats(&check, a.t, 1, 0);
        for (int64_t r = 0; r < a.t; r++) {
            a.ids[r] = (int32_t)check_between(&check, -1, a.c - 1);
            a.temp[r] = (float)(0.5 + rng_uniform(&check.rng));
            if (a.c > 3 && i % 4 == 0) // a masked logit: probability 0, no NaN anywhere
                a.x[r * a.ldx + (a.ids[r] + 1) % a.c] = -INFINITY;
        }
        a.w = calloc((size_t)(3 * a.t), 4);
        float *init = check_floats(&check, 3 * a.t + a.t * a.ldy, 1, 0);
        each("logprob", (size_t)(3 * a.t) * 4, init, op_logprob, &a);
        bool flag = a.flag;
        a.flag = true;
        float *stats = malloc((size_t)(3 * a.t) * 4);
        op_logprob(check.ref, &a, stats);
        memcpy(a.w, stats + a.t, (size_t)(2 * a.t) * 4); // lse, entropy
        if (i % 4)
            vocab_truth(&a, stats, stats + a.t, stats + 2 * a.t);
        for (int64_t r = 0; r < 3 * a.t; r++)
            assert_true(isfinite(stats[r]));
        a.flag = flag;
        each("logprob_grad", (size_t)(a.t * a.ldx) * 4, a.x, op_logprob_grad, &a);
        each("probs", (size_t)(a.t * a.ldy) * 4, init, op_probs, &a);
        free(stats);
        free(a.x);
        free(a.ids);
        free(a.temp);
        free(a.dl);
        free(a.dh);
        free(a.w);
        free(init);
    }
}

// out: p, m, v [n] each
static void op_adamw(struct device *d, void *ctx, void *out)
{
    struct args *a = ctx;
    float *p = out;
    d->k->adamw(d, a->c, p, p + a->c, p + 2 * a->c, a->x, 0.7f, 1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.19f,
                0.0975f);
}

static void op_sumsq(struct device *d, void *ctx, void *out)
{
    struct args *a = ctx;
    double s = d->k->sumsq(d, a->c, a->x);
    memcpy(out, &s, sizeof s);
}

static void test_optim(void **state)
{
    (void)state;
    for (int i = 0; i < RUNS; i++) {
        struct args a = {.c = check_between(&check, 1, i % 5 ? 200 : 70000)};
        a.x = check_floats(&check, a.c, 1, 0);
        float *init = check_floats(&check, 3 * a.c, 1, 0);
        for (int64_t j = 2 * a.c; j < 3 * a.c; j++)
            init[j] = fabsf(init[j]);
        each("adamw", (size_t)(3 * a.c) * 4, init, op_adamw, &a);
        each("sumsq", sizeof(double), init, op_sumsq, &a);
        double want = 0;
        for (int64_t j = 0; j < a.c; j++)
            want += (double)a.x[j] * (double)a.x[j];
        check_near("ref sumsq", check.ref, want, check.ref->k->sumsq(check.ref, a.c, a.x), want * 1e-12);
        float *p = malloc((size_t)(3 * a.c) * 4);
        memcpy(p, init, (size_t)(3 * a.c) * 4);
        op_adamw(check.ref, &a, p);
        double g = 0.7f * (double)a.x[0], m = 0.9f * (double)init[a.c] + 0.1 * g,
               v = 0.95f * (double)init[2 * a.c] + 0.05 * g * g;
        double w =
            (double)init[0] - 1e-2 * 0.1 * (double)init[0] - 1e-2 * (m / 0.19) / (sqrt(v / 0.0975) + 1e-8);
        check_near("ref adamw", check.ref, w, p[0], 1e-5);
        free(p);
        free(a.x);
        free(init);
    }
}

// out: scales [blocks] f32, then q [n*k] padded to whole words
static void op_quantize(struct device *d, void *ctx, void *out)
{
    struct args *a = ctx;
    int64_t blocks = (a->t + 127) / 128 * ((a->c + 127) / 128);
    d->k->fp8_quantize(d, a->t, a->c, a->x, (uint8_t *)out + blocks * 4, out);
}

static void op_dequantize(struct device *d, void *ctx, void *out)
{
    struct args *a = ctx;
    d->k->fp8_dequantize(d, a->t, a->c, a->codes, a->w, out);
}

static void test_fp8(void **state)
{
    (void)state;
    for (int i = 0; i < RUNS; i++) {
        struct args a = {.t = check_between(&check, 1, i % 3 ? 40 : 300),
                         .c = check_between(&check, 1, i % 4 ? 50 : 290)};
        int64_t n = a.t * a.c, blocks = (a.t + 127) / 128 * ((a.c + 127) / 128);
        a.x = check_floats(&check, n, i % 5 ? 1 : 1e-20f, i % 7 ? 0 : 4);
        a.codes = malloc((size_t)n);
        for (int64_t j = 0; j < n; j++)
            a.codes[j] = (uint8_t)rng_u32(&check.rng);
        a.w = check_floats(&check, blocks, 1, 0);
        uint8_t *init =
            calloc(1, (size_t)(blocks * 4 + n + 1)); // one more byte where words would mistake codes for NaN
        size_t bytes = (size_t)(blocks * 4 + n);
        each("fp8_quantize", bytes % 4 ? bytes : bytes + 1, init, op_quantize, &a);
        float *finit = check_floats(&check, n, 1, 0);
        each("fp8_dequantize", (size_t)n * 4, finit, op_dequantize, &a);
        free(a.x);
        free(a.codes);
        free(a.w);
        free(init);
        free(finit);
    }
}

// RMSNorm and SwiGLU gradients of the reference against differences of double formulas.
static double norm_loss(const double *x, const double *w, const float *dy, int64_t c)
{
    double ss = 0, loss = 0;
    for (int64_t i = 0; i < c; i++)
        ss += x[i] * x[i];
    double r = 1 / sqrt(ss / (double)c + 1e-5);
    for (int64_t i = 0; i < c; i++)
        loss += x[i] * r * w[i] * (double)dy[i];
    return loss;
}

static double swiglu_loss(const double *gu, const float *dy, int64_t f)
{
    double loss = 0;
    for (int64_t i = 0; i < f; i++)
        loss += gu[i] / (1 + exp(-gu[i])) * gu[f + i] * (double)dy[i];
    return loss;
}

static void test_gradients(void **state)
{
    (void)state;
    for (int i = 0; i < 40; i++) {
        int64_t c = check_between(&check, 2, 90), at = check_between(&check, 0, c - 1);
        float *x = check_floats(&check, 2 * c, 1, 0), *w = check_floats(&check, c, 1, 0),
              *dy = check_floats(&check, c, 1, 0);
        float *dx = malloc((size_t)c * 4), *dw = calloc((size_t)c, 4), *dgu = malloc((size_t)(2 * c) * 4);
        check.ref->k->rmsnorm_grad(check.ref, 1, c, x, c, w, 1e-5f, dy, c, false, dx, c, dw);
        check.ref->k->swiglu_grad(check.ref, 1, c, x, dy, dgu);
        double xd[200], wd[100], h = 1e-5;
        for (int64_t j = 0; j < 2 * c; j++)
            xd[j] = x[j];
        for (int64_t j = 0; j < c; j++)
            wd[j] = w[j];
        double *slots[] = {&xd[at], &wd[at], &xd[at], &xd[c + at]};
        double got[] = {dx[at], dw[at], dgu[at], dgu[c + at]}, loss[2];
        for (int s = 0; s < 4; s++) {
            double keep = *slots[s];
            for (int side = 0; side < 2; side++) {
                *slots[s] = keep + (side ? h : -h);
                loss[side] = s < 2 ? norm_loss(xd, wd, dy, c) : swiglu_loss(xd, dy, c);
            }
            *slots[s] = keep;
            check_near("gradient against differences", check.ref, (loss[1] - loss[0]) / (2 * h), got[s],
                       1e-4);
        }
        free(x);
        free(w);
        free(dy);
        free(dx);
        free(dw);
        free(dgu);
    }
}

// exp of every class over its whole range, both cut-offs and the special values: probs with lse 0 is nothing but exp.
static void test_exp(void **state)
{
    (void)state;
    enum { N = 400000, ODD = 9 };
    static const float odd[ODD] = {-87.3f, 88.7f, -87.30001f, 88.70001f, 0, -0.0f, INFINITY, -INFINITY, NAN};
    static float x[N + ODD], want[N + ODD], got[N + ODD];
    for (int i = 0; i < N; i++)
        x[i] = (float)(-90 + 180.0 * i / N);
    memcpy(x + N, odd, sizeof odd);
    for (int i = 0; i < N + ODD; i++)
        want[i] = fmath_exp(x[i]);
    float one = 1, zero = 0;
    for (int t = 0; t < check.n_twins; t++) {
        check.twin[t]->k->probs(check.twin[t], 1, N + ODD, x, N + ODD, &one, &zero, got, N + ODD);
        check_same("exp", check.twin[t], want, got, N + ODD);
    }
}

int main(void)
{
    if (!check_init(&check, 33))
        return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rmsnorm), cmocka_unit_test(test_rope),      cmocka_unit_test(test_elements),
        cmocka_unit_test(test_embed),   cmocka_unit_test(test_vocab),     cmocka_unit_test(test_optim),
        cmocka_unit_test(test_fp8),     cmocka_unit_test(test_gradients), cmocka_unit_test(test_exp),
    };
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    check_done(&check);
    return rc;
}
