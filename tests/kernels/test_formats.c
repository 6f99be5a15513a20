// The optimizer's ops and the conversions between number formats of every class against ref, bit for bit; the reference against double.
#include "tests/kernels/check.h"

static struct check check;

// ---- optimizer -------------------------------------------------------------------------------------------------------

struct optim {
    int64_t n;
    float *x, step[8]; // step: gscale, lr, b1, b2, eps, wd, bc1, bc2
};

static void op_adamw(struct device *d, void *ctx, void **out)
{
    const struct optim *a = ctx;
    const float *s = a->step;
    d->k->adamw(d, a->n, out[0], out[1], out[2], a->x, s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]);
}

static void op_sumsq(struct device *d, void *ctx, void **out)
{
    const struct optim *a = ctx;
    double s = d->k->sumsq(d, a->n, a->x);
    memcpy(out[0], &s, sizeof s);
}

static void test_optim(void **state)
{
    (void)state;
    for (int i = 0; i < CHECK_SHAPES; i++) {
        struct optim a = {.n = i % 25
                                   ? check_size(&check, 0, 300)
                                   : SUMSQ_CHUNK * check_between(&check, 0, 2) + check_between(&check, 0, 40),
                          .step = {0.7f, 1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.19f, 0.0975f}};
        int special = i % 6 ? 0 : 10;
        a.x = check_floats(&check, a.n, i % 7 ? 1 : 1e-20f, special);
        for (int s = 0; s < 8 && i % 2; s++)
            a.step[s] *= (float)(0.5 + 0.5 * rng_uniform(&check.rng));
        float *p = check_floats(&check, a.n, 1, special), *m = check_floats(&check, a.n, 1, 0),
              *v = check_floats(&check, a.n, 1, 0);
        for (int64_t j = 0; j < a.n; j++)
            v[j] = fabsf(v[j]);
        struct output moments[] = {
            {"adamw p", 1, a.n, a.n, 4, p}, {"adamw m", 1, a.n, a.n, 4, m}, {"adamw v", 1, a.n, a.n, 4, v}};
        check_op(&check, OP(adamw), op_adamw, &a, 3, moments, NULL);
        float zero[2] = {0, 0};
        if (special == 0) { // no NaN, whose bits are nobody's promise
            struct output sum = {"sumsq", 1, 8, 8, 1, zero};
            check_op(&check, OP(sumsq), op_sumsq, &a, 1, &sum, NULL);
        }
        check_release(&check);
    }
    for (int i = 0; i < 200; i++) { // huge and subnormal numbers instead
        struct optim a = {.n = check_size(&check, 0, 513)};
        a.x = check_floats(&check, a.n, 1e15f, 0);
        for (int64_t j = 0; j < a.n; j += 7)
            a.x[j] = j % 2 ? 3e38f : 1e-42f;
        float zero[2] = {0, 0};
        struct output sum = {"sumsq", 1, 8, 8, 1, zero};
        check_op(&check, OP(sumsq), op_sumsq, &a, 1, &sum, NULL);
        check_release(&check);
    }
}

static void test_optim_truth(void **state)
{
    (void)state;
    for (int i = 0; i < 60; i++) {
        struct optim a = {.n = check_between(&check, 1, i % 5 ? 200 : 70000),
                          .step = {0.7f, 1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.19f, 0.0975f}};
        a.x = check_floats(&check, a.n, 1, 0);
        double want = 0;
        for (int64_t j = 0; j < a.n; j++)
            want += (double)a.x[j] * (double)a.x[j];
        check_near("ref sumsq", check.ref, want, check.ref->k->sumsq(check.ref, a.n, a.x), want * 1e-12);
        float *p = check_floats(&check, a.n, 1, 0), *m = check_floats(&check, a.n, 1, 0),
              *v = check_floats(&check, a.n, 1, 0);
        for (int64_t j = 0; j < a.n; j++)
            v[j] = fabsf(v[j]);
        double g = 0.7f * (double)a.x[0], m1 = 0.9f * (double)m[0] + 0.1 * g,
               v1 = 0.95f * (double)v[0] + 0.05 * g * g, p0 = p[0];
        void *out[] = {p, m, v};
        op_adamw(check.ref, &a, out);
        check_near("ref adamw", check.ref,
                   p0 - 1e-2 * 0.1 * p0 - 1e-2 * (m1 / 0.19) / (sqrt(v1 / 0.0975) + 1e-8), p[0], 1e-5);
        check_release(&check);
    }
}

// ---- formats ---------------------------------------------------------------------------------------------------------

struct format {
    int64_t n, k;
    const void *x;
    float *scales;
};

static void op_quantize(struct device *d, void *ctx, void **out)
{
    const struct format *a = ctx;
    d->k->fp8_quantize(d, a->n, a->k, a->x, out[0], out[1]);
}
static void op_dequantize(struct device *d, void *ctx, void **out)
{
    const struct format *a = ctx;
    d->k->fp8_dequantize(d, a->n, a->k, a->x, a->scales, out[0]);
}
static void op_to_bf16(struct device *d, void *ctx, void **out)
{
    const struct format *a = ctx;
    d->k->to_bf16(d, a->n * a->k, a->x, out[0]);
}
struct format_rows {
    int64_t t, c, ldx, ldy;
    const float *x;
};
static void op_to_bf16_rows(struct device *d, void *ctx, void **out)
{
    const struct format_rows *a = ctx;
    d->k->to_bf16_rows(d, a->t, a->c, a->x, a->ldx, out[0], a->ldy);
}
// y takes the place of x: the first half of each row of ldx floats.
static void op_to_bf16_inplace(struct device *d, void *ctx, void **out)
{
    const struct format_rows *a = ctx;
    d->k->to_bf16_rows(d, a->t, a->c, out[0], a->ldx, out[0], 2 * a->ldx);
}
static void op_from_bf16(struct device *d, void *ctx, void **out)
{
    const struct format *a = ctx;
    d->k->from_bf16(d, a->n * a->k, a->x, out[0]);
}

static void test_fp8(void **state)
{
    (void)state;
    for (int i = 0; i < CHECK_SHAPES; i++) {
        struct format a = {.n = check_size(&check, 0, i % 12 ? 40 : 300),
                           .k = check_size(&check, 0, i % 12 ? 60 : 300)};
        int64_t nk = a.n * a.k, blocks = (a.n + 127) / 128 * ((a.k + 127) / 128);
        float *blank = check_floats(&check, nk, 1, 0);
        a.scales = check_floats(&check, blocks, 1, i % 5 ? 0 : 40);
        a.x = check_floats(&check, nk, i % 5 ? 1 : 1e-20f, i % 3 ? 0 : 4);
        struct output q[] = {{"fp8_quantize", 1, nk, nk, 1, blank},
                             {"fp8_quantize scales", 1, blocks, blocks, 4, a.scales}};
        check_op(&check, OP(fp8_quantize), op_quantize, &a, 2, q, NULL);
        a.x = check_bytes(&check, (size_t)nk, 1);
        struct output w = {"fp8_dequantize", 1, nk, nk, 4, blank};
        check_op(&check, OP(fp8_dequantize), op_dequantize, &a, 1, &w, NULL);
        check_release(&check);
    }
}

static void test_bf16(void **state)
{
    (void)state;
    for (int i = 0; i < CHECK_SHAPES; i++) {
        struct format a = {.n = check_size(&check, 0, i % 20 ? 9 : 100), .k = check_size(&check, 0, 130)};
        int64_t nk = a.n * a.k;
        float *blank = check_floats(&check, nk, 1, 0);
        // every kind of number: half of them any bits at all
        a.x = i % 2 ? check_bytes(&check, (size_t)nk * 4, 4) : (void *)check_floats(&check, nk, 1, 100);
        struct output half = {"to_bf16", 1, nk, nk, 2, blank};
        check_op(&check, OP(to_bf16), op_to_bf16, &a, 1, &half, NULL);
        a.x = check_bytes(&check, (size_t)nk * 2, 2);
        struct output whole = {"from_bf16", 1, nk, nk, 4, blank};
        check_op(&check, OP(from_bf16), op_from_bf16, &a, 1, &whole, NULL);
        check_release(&check);
    }
}

// Also in place, where the floats behind a row's c halves are left as they were.
static void test_bf16_rows(void **state)
{
    (void)state;
    for (int i = 0; i < CHECK_SHAPES; i++) {
        struct format_rows a = {.t = check_size(&check, 0, i % 20 ? 9 : 100),
                                .c = check_size(&check, 1, 130)};
        a.ldx = check_stride(&check, a.c);
        a.ldy = check_stride(&check, a.c);
        int64_t nx = a.t * a.ldx;
        a.x = i % 2 ? check_bytes(&check, (size_t)nx * 4, 4) : (void *)check_floats(&check, nx, 1, 100);
        void *blank = check_bytes(&check, (size_t)(a.t * a.ldy) * 2, 2);
        struct output half = {"to_bf16_rows", a.t, a.c, a.ldy, 2, blank};
        check_op(&check, OP(to_bf16_rows), op_to_bf16_rows, &a, 1, &half, NULL);
        struct output same = {"to_bf16_rows in place", a.t, 4 * a.c, 4 * a.ldx, 1, a.x};
        check.aligned = true;
        check_op(&check, OP(to_bf16_rows), op_to_bf16_inplace, &a, 1, &same, NULL);
        check.aligned = false;
        check_release(&check);
    }
}

int main(void)
{
    if (!check_init(&check, 66))
        return 77;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_optim), cmocka_unit_test(test_optim_truth),
                                       cmocka_unit_test(test_fp8), cmocka_unit_test(test_bf16),
                                       cmocka_unit_test(test_bf16_rows)};
    return check_close(&check, "formats", cmocka_run_group_tests(tests, NULL, NULL));
}
