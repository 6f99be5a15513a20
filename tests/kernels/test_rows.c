// Embedding, norms, rope, activations and the elementwise ops of every class against ref, bit for bit, and the reference's gradients
// against differences in double.
#include "tests/kernels/check.h"

static struct check check;

#define NONE NULL // no class has an order of its own here

static float *floats(int64_t n, float scale, int special)
{
    return check_floats(&check, n, scale, special);
}

static void *halves(int64_t n)
{
    return check_bytes(&check, (size_t)n * 2, 2);
}

// What ld rows of `width` take, the last one not filled up.
static int64_t span(int64_t rows, int64_t width, int64_t ld)
{
    return rows ? (rows - 1) * ld + width : 0;
}

// ---- norm ------------------------------------------------------------------------------------------------------------

struct norm {
    int64_t t, c, ldx, ldy, lddy, lddx;
    float *x, *w, *dy, eps;
    enum dtype y;
    bool rstd, accumulate;
};

static void op_rmsnorm(struct device *d, void *ctx, void **out)
{
    const struct norm *a = ctx;
    d->k->rmsnorm(d, a->t, a->c, a->x, a->ldx, a->w, a->eps, a->y, out[0], a->ldy, a->rstd ? out[1] : NULL);
}

static void op_rmsnorm_inplace(struct device *d, void *ctx, void **out)
{
    const struct norm *a = ctx;
    d->k->rmsnorm(d, a->t, a->c, out[0], a->ldx, a->w, a->eps, DT_F32, out[0], a->ldx, NULL);
}

static void op_rmsnorm_grad(struct device *d, void *ctx, void **out)
{
    const struct norm *a = ctx;
    d->k->rmsnorm_grad(d, a->t, a->c, a->x, a->ldx, a->w, a->eps, a->dy, a->lddy, a->accumulate, out[0],
                       a->lddx, out[1]);
}

static void test_rmsnorm(void **state)
{
    (void)state;
    for (int i = 0; i < CHECK_SHAPES; i++) {
        struct norm a = {.t = check_size(&check, 0, i % 50 ? 9 : 300),
                         .c = check_size(&check, 1, i % 9 ? 100 : 520),
                         .eps = i % 3 ? 1e-5f : 1e-6f,
                         .rstd = i % 2,
                         .accumulate = i / 2 % 2};
        a.ldx = check_stride(&check, a.c);
        a.ldy = check_stride(&check, a.c);
        a.lddy = check_stride(&check, a.c);
        a.lddx = check_stride(&check, a.c);
        a.x = floats(span(a.t, a.c, a.ldx), i % 6 ? 1 : 1e-20f, i % 5 ? 0 : 10);
        a.dy = floats(span(a.t, a.c, a.lddy), 1, i % 10 ? 0 : 5);
        a.w = floats(a.c, 1, 0);
        struct output out[] = {{"rmsnorm", a.t, a.c, a.ldy, 4, floats(a.t * a.ldy, 1, 0)},
                               {"rmsnorm rstd", 1, a.t, a.t, 4, floats(a.t, 1, 0)}};
        check_op(&check, OP(rmsnorm), op_rmsnorm, &a, 2, out, NONE);
        a.y = DT_BF16;
        check.bf16 = true;
        out[0] = (struct output){"rmsnorm to bf16", a.t, a.c, a.ldy, 2, halves(a.t * a.ldy)};
        check_op(&check, OP(rmsnorm), op_rmsnorm, &a, 2, out, NONE);
        check.bf16 = false;
        struct output same = {"rmsnorm in place", a.t, a.c, a.ldx, 4, floats(a.t * a.ldx, 1, 0)};
        check_op(&check, OP(rmsnorm), op_rmsnorm_inplace, &a, 1, &same, NONE);
        struct output grad[] = {{"rmsnorm_grad dx", a.t, a.c, a.lddx, 4, floats(a.t * a.lddx, 1, 0)},
                                {"rmsnorm_grad dw", 1, a.c, a.c, 4, floats(a.c, 1, 0)}};
        check_op(&check, OP(rmsnorm_grad), op_rmsnorm_grad, &a, 2, grad, NONE);
        check_release(&check);
    }
}

// ---- rope ------------------------------------------------------------------------------------------------------------

enum { POSITIONS = 50 };

struct rope {
    int64_t t, heads, dim, ldx;
    int32_t *pos;
    float *cos, *sin;
    int sign;
};

static void op_rope(struct device *d, void *ctx, void **out)
{
    const struct rope *a = ctx;
    d->k->rope(d, a->t, a->heads, a->dim, out[0], a->ldx, a->pos, a->cos, a->sin, a->sign);
}

static struct rope rope_new(int i)
{
    struct rope a = {.t = check_size(&check, 0, 20),
                     .heads = check_between(&check, 1, 5),
                     .dim = 2 * check_size(&check, 1, i % 4 ? 32 : 128),
                     .sign = i % 2 ? 1 : -1};
    a.ldx = check_stride(&check, a.heads * a.dim);
    a.pos = check_alloc(&check, (size_t)a.t * sizeof *a.pos, 4);
    for (int64_t j = 0; j < a.t; j++)
        a.pos[j] = (int32_t)check_between(&check, 0, POSITIONS - 1);
    a.cos = floats(POSITIONS * a.dim / 2, 1, 0);
    a.sin = floats(POSITIONS * a.dim / 2, 1, 0);
    return a;
}

static void test_rope(void **state)
{
    (void)state;
    for (int i = 0; i < CHECK_SHAPES; i++) {
        struct rope a = rope_new(i);
        struct output x = {"rope", a.t, a.heads * a.dim, a.ldx, 4, floats(a.t * a.ldx, 1, i % 5 ? 0 : 10)};
        check_op(&check, OP(rope), op_rope, &a, 1, &x, NONE);
        check_release(&check);
    }
}

// Forward, then the inverse: a rotation comes back.
static void test_rope_inverse(void **state)
{
    (void)state;
    for (int i = 0; i < 50; i++) {
        struct rope a = rope_new(i);
        for (int64_t j = 0; j < POSITIONS * a.dim / 2; j++) {
            a.cos[j] = cosf((float)j);
            a.sin[j] = sinf((float)j);
        }
        float *x = floats(a.t * a.ldx, 1, 0), *keep = floats(a.t * a.ldx, 0, 0);
        memcpy(keep, x, (size_t)(a.t * a.ldx) * 4);
        void *out = x;
        for (a.sign = 1; a.sign >= -1; a.sign -= 2)
            op_rope(check.ref, &a, &out);
        for (int64_t j = 0; j < a.t * a.ldx; j++)
            check_near("rope there and back", check.ref, keep[j], x[j], 1e-5);
        check_release(&check);
    }
}

// ---- activation and elements -----------------------------------------------------------------------------------------

struct elements {
    int64_t t, f, n;
    enum dtype out; // of what is written, and of gu in the gradient
    float *x, *dy;
    uint16_t *codes;
};

static void op_swiglu(struct device *d, void *ctx, void **out)
{
    const struct elements *a = ctx;
    d->k->swiglu(d, a->t, a->f, a->x, a->out, out[0], NULL);
}
static void op_swiglu_kept(struct device *d, void *ctx, void **out)
{
    const struct elements *a = ctx;
    d->k->swiglu(d, a->t, a->f, a->x, a->out, out[0], out[1]);
}
static const void *gate_up(const struct elements *a)
{
    return a->out == DT_F32 ? (const void *)a->x : a->codes;
}
static void op_swiglu_grad(struct device *d, void *ctx, void **out)
{
    const struct elements *a = ctx;
    d->k->swiglu_grad(d, a->t, a->f, a->out, gate_up(a), a->dy, out[0], NULL);
}
static void op_swiglu_grad_both(struct device *d, void *ctx, void **out)
{
    const struct elements *a = ctx;
    d->k->swiglu_grad(d, a->t, a->f, a->out, gate_up(a), a->dy, out[0], out[1]);
}
// y takes the place of dy
static void op_swiglu_grad_over(struct device *d, void *ctx, void **out)
{
    const struct elements *a = ctx;
    d->k->swiglu_grad(d, a->t, a->f, a->out, gate_up(a), out[1], out[0], out[1]);
}
// dgu takes the place of gu
static void op_swiglu_grad_inplace(struct device *d, void *ctx, void **out)
{
    const struct elements *a = ctx;
    d->k->swiglu_grad(d, a->t, a->f, a->out, out[0], a->dy, out[0], out[1]);
}
static void op_add(struct device *d, void *ctx, void **out)
{
    const struct elements *a = ctx;
    d->k->add(d, a->n, a->x, out[0]);
}
static void op_round(struct device *d, void *ctx, void **out)
{
    const struct elements *a = ctx;
    d->k->round_bf16(d, a->n, out[0]);
}

// Forward and backward in both dtypes, in place where that is allowed.
static void swiglu_check(struct elements *a, float scale, int special)
{
    int64_t n = a->n;
    for (int o = 0; o < 2; o++) {
        size_t size = o ? 2 : 4;
        a->out = o ? DT_BF16 : DT_F32;
        check.bf16 = o;
        struct output y[] = {{o ? "swiglu to bf16" : "swiglu", 1, n, n, size, floats(n, 1, special)},
                             {"kept", 1, 2 * n, 2 * n, 2, halves(2 * n)}};
        check_op(&check, OP(swiglu), op_swiglu, a, 1, y, NONE);
        check_op(&check, OP(swiglu), op_swiglu_kept, a, 2, y, NONE);
        struct output dgu[] = {{o ? "swiglu_grad to bf16" : "swiglu_grad", 1, 2 * n, 2 * n, size,
                                o ? halves(2 * n) : (void *)floats(2 * n, scale, special)},
                               {"swiglu_grad y", 1, n, n, size, floats(n, 1, special)}};
        check_op(&check, OP(swiglu_grad), op_swiglu_grad, a, 1, dgu, NONE);
        check_op(&check, OP(swiglu_grad), op_swiglu_grad_both, a, 2, dgu, NONE);
        if (!o)
            check_op(&check, OP(swiglu_grad), op_swiglu_grad_over, a, 2, dgu, NONE);
        check_op(&check, OP(swiglu_grad), op_swiglu_grad_inplace, a, 2, dgu, NONE);
    }
    check.bf16 = false;
}

// What is written in bf16 is what would be written in f32, rounded as to_bf16 does it, and gu
// of bf16 is as good as those numbers in f32.
static void rounded_check(const char *what, struct device *d, const float *whole, const uint16_t *half,
                          int64_t n)
{
    uint16_t *want = halves(n);
    d->k->to_bf16(d, n, whole, want);
    check_same_bf16(what, d, want, half, n);
}

static void test_rounded(void **state)
{
    (void)state;
    for (int i = 0; i < 400; i++) {
        struct elements a = {.t = check_size(&check, 1, 7), .f = check_size(&check, 1, 100)};
        struct device *d = i % (check.n_twins + 1) ? check.twin[i % (check.n_twins + 1) - 1] : check.ref;
        a.n = a.t * a.f;
        int special = i % 4 ? 0 : 40;
        a.x = floats(2 * a.n, 3, special);
        a.dy = floats(a.n, 1, special);
        float *y = floats(2 * a.n, 0, 0), *w = floats(a.f, 1, 0);
        uint16_t *h = halves(2 * a.n), *h2 = halves(a.n);
        d->k->rmsnorm(d, a.t, a.f, a.x, a.f, w, 1e-5f, DT_F32, y, a.f, NULL);
        d->k->rmsnorm(d, a.t, a.f, a.x, a.f, w, 1e-5f, DT_BF16, h, a.f, NULL);
        rounded_check("rmsnorm rounded", d, y, h, a.n);
        d->k->swiglu(d, a.t, a.f, a.x, DT_F32, y, NULL);
        d->k->swiglu(d, a.t, a.f, a.x, DT_BF16, h, NULL);
        rounded_check("swiglu rounded", d, y, h, a.n);
        float *dgu = floats(2 * a.n, 0, 0);
        d->k->to_bf16(d, 2 * a.n, a.x, h);
        d->k->from_bf16(d, 2 * a.n, h, a.x);
        d->k->swiglu_grad(d, a.t, a.f, DT_F32, a.x, a.dy, dgu, y);
        d->k->swiglu_grad(d, a.t, a.f, DT_BF16, h, a.dy, h, h2); // in place
        rounded_check("swiglu_grad rounded", d, dgu, h, 2 * a.n);
        rounded_check("swiglu_grad y rounded", d, y, h2, a.n);
        check_release(&check);
    }
}

static void test_elements(void **state)
{
    (void)state;
    for (int i = 0; i < CHECK_SHAPES; i++) {
        struct elements a = {.t = check_size(&check, 0, i % 40 ? 7 : 200), .f = check_size(&check, 0, 100)};
        a.n = a.t * a.f;
        int special = i % 4 ? 0 : 40;
        float scale = i % 3 ? 3 : 40;
        a.x = floats(2 * a.n, scale, special);
        a.dy = floats(a.n, 1, special);
        a.codes = halves(2 * a.n);
        swiglu_check(&a, scale, special);
        struct output sum = {"add", 1, a.n, a.n, 4, floats(a.n, scale, special)};
        check_op(&check, OP(add), op_add, &a, 1, &sum, NONE);
        // half of the inputs are any bits at all
        struct output x = {
            "round_bf16", 1, a.n,
            a.n,          4, i % 2 ? check_bytes(&check, (size_t)a.n * 4, 4) : floats(a.n, 1, special)};
        check_op(&check, OP(round_bf16), op_round, &a, 1, &x, NONE);
        check_release(&check);
    }
}

// ---- embedding -------------------------------------------------------------------------------------------------------

struct embed {
    enum dtype dtype;
    int64_t t, c;
    int32_t *ids;
    void *table;
    float *dy;
};

static void op_embed(struct device *d, void *ctx, void **out)
{
    const struct embed *a = ctx;
    d->k->embed(d, a->dtype, a->table, a->c, a->t, a->ids, out[0]);
}

static void op_embed_grad(struct device *d, void *ctx, void **out)
{
    const struct embed *a = ctx;
    d->k->embed_grad(d, a->c, a->t, a->ids, a->dy, out[0]);
}

static void test_embed(void **state)
{
    (void)state;
    for (int i = 0; i < CHECK_SHAPES; i++) {
        struct embed a = {.dtype = i % 2 ? DT_BF16 : DT_F32,
                          .t = check_size(&check, 0, i % 30 ? 20 : 513),
                          .c = check_size(&check, 0, 130)};
        int64_t v = check_between(&check, 1, 20);
        a.ids = check_alloc(&check, (size_t)a.t * sizeof *a.ids, 4);
        for (int64_t j = 0; j < a.t; j++)
            a.ids[j] = (int32_t)check_between(&check, 0, v - 1);
        a.table = i % 2   ? check_bytes(&check, (size_t)(v * a.c) * 2, 2)
                  : i % 4 ? check_bytes(&check, (size_t)(v * a.c) * 4, 4)
                          : (void *)floats(v * a.c, 1, 10);
        a.dy = floats(a.t * a.c, 1, i % 5 ? 0 : 10);
        struct output y = {"embed", 1, a.t * a.c, a.t * a.c, 4, floats(a.t * a.c, 1, 0)};
        check_op(&check, OP(embed), op_embed, &a, 1, &y, NONE);
        struct output dtable = {"embed_grad", 1, v * a.c, v * a.c, 4, floats(v * a.c, 1, i % 5 ? 0 : 10)};
        check_op(&check, OP(embed_grad), op_embed_grad, &a, 1, &dtable, NONE);
        check_release(&check);
    }
}

// ---- RMSNorm and SwiGLU gradients of the reference against differences of double formulas ----------------------------

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
        float *x = floats(2 * c, 1, 0), *w = floats(c, 1, 0), *dy = floats(c, 1, 0);
        float *dx = floats(c, 1, 0), *dw = floats(c, 0, 0), *dgu = floats(2 * c, 1, 0);
        check.ref->k->rmsnorm_grad(check.ref, 1, c, x, c, w, 1e-5f, dy, c, false, dx, c, dw);
        check.ref->k->swiglu_grad(check.ref, 1, c, DT_F32, x, dy, dgu, NULL);
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
        check_release(&check);
    }
}

int main(void)
{
    if (!check_init(&check, 33))
        return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rmsnorm),   cmocka_unit_test(test_rope),    cmocka_unit_test(test_rope_inverse),
        cmocka_unit_test(test_elements),  cmocka_unit_test(test_rounded), cmocka_unit_test(test_embed),
        cmocka_unit_test(test_gradients),
    };
    return check_close(&check, "rows", cmocka_run_group_tests(tests, NULL, NULL));
}
