// gemm, gemm_dw, weight_pack and bias_grad of every class against ref: random shapes with odd tails, strides, junk around, special values.
#include "tests/kernels/check.h"
#include "tests/kernels/gemm_bench.h"

static struct check check;

#define SHAPES 420

struct problem {
    enum dtype t;
    int64_t m, n, k, ldx, ldy;
    float *x, *w, *bias;
    uint8_t *codes;
    uint16_t *half;
    float *scales;
    bool accumulate, transpose, from_half;
};

static struct problem problem_new(int i)
{
    static const int64_t edges[] = {1, 15, 16, 17, 31, 32, 33, 64, 127, 128, 129, 255, 256, 257, 300};
    struct problem p = {.t = (enum dtype)(i % 3)};
    p.m = i % 17 == 0 ? check_between(&check, 90, 220) : check_between(&check, i % 29 == 0 ? 0 : 1, 30);
    p.n = i % 5 == 0 ? edges[check_between(&check, 0, 14)] : check_between(&check, 1, 150);
    p.k = i % 7 == 0 ? edges[check_between(&check, 0, 14)] : check_between(&check, 1, 200);
    p.ldx = p.k + check_between(&check, 0, 3);
    p.ldy = p.n + check_between(&check, 0, 3);
    int special = i % 11 == 0 && p.t != DT_FP8 ? 2 : 0;
    p.x = check_floats(&check, p.m * p.ldx, 1, special);
    p.w = check_floats(&check, p.n * p.k, 0.5f, special);
    p.bias = check_between(&check, 0, 1) ? check_floats(&check, p.n, 1, 0) : NULL;
    p.accumulate = check_between(&check, 0, 1);
    p.transpose = p.t != DT_FP8 && check_between(&check, 0, 1);
    p.from_half = p.t != DT_FP8 && check_between(&check, 0, 1);
    int64_t blocks = (p.n + 127) / 128 * ((p.k + 127) / 128);
    p.codes = malloc((size_t)(p.n * p.k));
    p.half = malloc((size_t)(p.n * p.k) * 2);
    for (int64_t j = 0; j < p.n * p.k; j++) {
        p.codes[j] = (uint8_t)rng_u32(&check.rng);
        if ((p.codes[j] & 0x7f) == 0x7f) // NaN in about one problem of five
            p.codes[j] = i % 5 ? 0x3c : p.codes[j];
        p.half[j] = f32_to_bf16(p.w[j]);
    }
    p.scales = check_floats(&check, blocks, 0.01f, 0);
    return p;
}

static void problem_free(struct problem *p)
{
    free(p->x);
    free(p->w);
    free(p->bias);
    free(p->codes);
    free(p->half);
    free(p->scales);
}

static struct guarded problem_run(const struct problem *p, struct device *d, const float *y0)
{
    size_t bytes = d->k->weight_bytes(p->t, p->n, p->k);
    struct guarded packed = guarded_new(bytes), y = guarded_new((size_t)(p->m * p->ldy) * sizeof(float));
    const void *src = p->t == DT_FP8 ? (void *)p->codes : p->from_half ? (void *)p->half : (void *)p->w;
    d->k->weight_pack(d, p->t, p->n, p->k, src,
                      p->t == DT_FP8 ? DT_FP8
                      : p->from_half ? DT_BF16
                                     : DT_F32,
                      p->transpose, packed.p);
    guarded_check(&packed, "weight_pack");
    struct gemm_weight w = {p->t, p->n, p->k, packed.p, p->t == DT_FP8 ? p->scales : NULL};
    memcpy(y.p, y0, y.bytes);
    d->k->gemm(d, &w, p->m, p->x, p->ldx, p->bias, p->accumulate, y.p, p->ldy);
    guarded_check(&y, "gemm");
    guarded_free(&packed);
    return y;
}

// sum_k |x_k w_nk|, what rounding errors of a dot product are measured against.
static double magnitude(const struct problem *p, int64_t m, int64_t n)
{
    double s = 0;
    int64_t blocks = (p->k + 127) / 128;
    for (int64_t k = 0; k < p->k; k++) {
        int64_t at = p->transpose ? k * p->n + n : n * p->k + k;
        double w = p->t == DT_FP8
                       ? (double)fp8_to_f32(p->codes[at]) * (double)p->scales[n / 128 * blocks + k / 128]
                   : p->from_half ? (double)bf16_to_f32(p->half[at])
                                  : (double)p->w[at];
        s += fabs((double)p->x[m * p->ldx + k] * w);
    }
    return s;
}

static void compare(const struct problem *p, const struct device *d, const float *want, const float *got)
{
    if (p->t == DT_F32 || !check_own_order(d)) {
        check_same("gemm", d, want, got, p->m * p->ldy);
        return;
    }
    for (int64_t m = 0; m < p->m; m++)
        for (int64_t j = 0; j < p->ldy; j++) {
            double a = want[m * p->ldy + j], b = got[m * p->ldy + j];
            if (j >= p->n)
                assert_true(a == b || (a != a && b != b)); // between the rows nothing is written
            else if (isfinite(a))
                check_near("gemm", d, a, b, 1e-6 * (magnitude(p, m, j) + fabs(a)) + 1e-30);
            else
                assert_true(!isfinite(b) || magnitude(p, m, j) > 1e30);
        }
}

static void test_gemm(void **state)
{
    (void)state;
    for (int i = 0; i < SHAPES; i++) {
        struct problem p = problem_new(i);
        float *y0 = check_floats(&check, p.m * p.ldy, 1, 0);
        struct guarded want = problem_run(&p, check.ref, y0);
        for (int t = 0; t < check.n_twins; t++) {
            struct guarded got = problem_run(&p, check.twin[t], y0);
            compare(&p, check.twin[t], want.p, got.p);
            guarded_free(&got);
        }
        guarded_free(&want);
        free(y0);
        problem_free(&p);
    }
}

// The reference itself against sums in double.
static void test_gemm_truth(void **state)
{
    (void)state;
    for (int i = 0; i < 60; i++) {
        struct problem p =
            problem_new(3 * i + i % 3 + 1); // no special values at these indices but by multiples of 11
        p.accumulate = false;
        float *y0 = check_floats(&check, p.m * p.ldy, 1, 0);
        struct guarded y = problem_run(&p, check.ref, y0);
        int64_t blocks = (p.k + 127) / 128;
        for (int64_t m = 0; m < p.m; m++)
            for (int64_t n = 0; n < p.n; n++) {
                double s = p.bias ? (double)p.bias[n] : 0;
                for (int64_t k = 0; k < p.k; k++) {
                    int64_t at = p.transpose ? k * p.n + n : n * p.k + k;
                    float w = p.from_half ? bf16_to_f32(p.half[at]) : p.w[at], x = p.x[m * p.ldx + k];
                    if (p.t != DT_F32)
                        x = bf16_to_f32(f32_to_bf16(x));
                    if (p.t == DT_BF16)
                        w = bf16_to_f32(f32_to_bf16(w));
                    double wd = p.t == DT_FP8 ? (double)fp8_to_f32(p.codes[at]) *
                                                    (double)p.scales[n / 128 * blocks + k / 128]
                                              : (double)w;
                    s += (double)x * wd;
                }
                double got = ((float *)y.p)[m * p.ldy + n];
                if (isfinite(s) && fabs(s) < 1e30 && isfinite(magnitude(&p, m, n)))
                    check_near("ref gemm", check.ref, s, got, 3e-6 * (magnitude(&p, m, n) + 1));
            }
        guarded_free(&y);
        free(y0);
        problem_free(&p);
    }
}

static void test_gemm_dw(void **state)
{
    (void)state;
    for (int i = 0; i < 160; i++) {
        enum dtype t = i % 2 ? DT_BF16 : DT_F32;
        int64_t m =
            i % 9 == 0 ? check_between(&check, 120, 300) : check_between(&check, i % 31 == 0 ? 0 : 1, 40);
        int64_t n = check_between(&check, 1, i % 23 == 0 ? 420 : 70),
                k = check_between(&check, 1, i % 19 == 0 ? 540 : 90);
        int64_t lddy = n + check_between(&check, 0, 2), ldx = k + check_between(&check, 0, 2);
        int special = i % 13 == 0 ? 2 : 0;
        float *dy = check_floats(&check, m * lddy, 1, special),
              *x = check_floats(&check, m * ldx, 1, special);
        float *dw0 = check_floats(&check, n * k, 1, 0);
        struct guarded want = guarded_new((size_t)(n * k) * 4);
        memcpy(want.p, dw0, want.bytes);
        check.ref->k->gemm_dw(check.ref, t, m, n, k, dy, lddy, x, ldx, want.p);
        for (int j = 0; j < check.n_twins; j++) {
            struct device *d = check.twin[j];
            struct guarded got = guarded_new((size_t)(n * k) * 4);
            memcpy(got.p, dw0, got.bytes);
            d->k->gemm_dw(d, t, m, n, k, dy, lddy, x, ldx, got.p);
            guarded_check(&got, "gemm_dw");
            if (t == DT_F32 || !check_own_order(d)) {
                check_same("gemm_dw", d, want.p, got.p, n * k);
            } else {
                for (int64_t at = 0; at < n * k; at++) {
                    double a = ((float *)want.p)[at], b = ((float *)got.p)[at], size = fabs(a);
                    for (int64_t r = 0; r < m; r++)
                        size += fabs((double)dy[r * lddy + at / k] * (double)x[r * ldx + at % k]);
                    if (isfinite(a))
                        check_near("gemm_dw", d, a, b, 1e-6 * size + 1e-30);
                    else
                        assert_true(!isfinite(b) || size > 1e30);
                }
            }
            guarded_free(&got);
        }
        guarded_free(&want);
        free(dy);
        free(x);
        free(dw0);
    }
}

static void test_bias_grad(void **state)
{
    (void)state;
    for (int i = 0; i < 40; i++) {
        int64_t m = check_between(&check, 0, 40), n = check_between(&check, 1, 100),
                ld = n + check_between(&check, 0, 3);
        float *dy = check_floats(&check, m * ld, 1, i % 4 ? 0 : 5), *db0 = check_floats(&check, n, 1, 0);
        struct guarded want = guarded_new((size_t)n * 4);
        memcpy(want.p, db0, want.bytes);
        check.ref->k->bias_grad(check.ref, m, n, dy, ld, want.p);
        for (int j = 0; j < check.n_twins; j++) {
            struct guarded got = guarded_new((size_t)n * 4);
            memcpy(got.p, db0, got.bytes);
            check.twin[j]->k->bias_grad(check.twin[j], m, n, dy, ld, got.p);
            guarded_check(&got, "bias_grad");
            check_same("bias_grad", check.twin[j], want.p, got.p, n);
            guarded_free(&got);
        }
        guarded_free(&want);
        free(dy);
        free(db0);
    }
}

// Every FP8 code through a product with 1 must come out as its value.
static void test_fp8_codes(void **state)
{
    (void)state;
    float x = 1, scale = 1, y[256];
    uint8_t codes[256];
    for (int i = 0; i < 256; i++)
        codes[i] = (uint8_t)i;
    float scales[2] = {scale, scale};
    for (int t = -1; t < check.n_twins; t++) {
        struct device *d = t < 0 ? check.ref : check.twin[t];
        struct guarded packed = guarded_new(d->k->weight_bytes(DT_FP8, 256, 1));
        d->k->weight_pack(d, DT_FP8, 256, 1, codes, DT_FP8, false, packed.p);
        struct gemm_weight w = {DT_FP8, 256, 1, packed.p, scales};
        d->k->gemm(d, &w, 1, &x, 1, NULL, false, y, 256);
        for (int i = 0; i < 256; i++) {
            float want = fp8_to_f32((uint8_t)i);
            assert_true(y[i] == want || (y[i] != y[i] && want != want));
        }
        guarded_free(&packed);
    }
}

// Up to avx512 the classes share ref's panels: the same bytes, whatever the shape, the way the matrix lies and its numbers.
static void test_pack_bytes(void **state)
{
    (void)state;
    for (int i = 0; i < 200; i++) {
        int64_t n = check_between(&check, 1, 150), k = check_between(&check, 1, 150);
        enum dtype to = (enum dtype)(i % 3), from = to == DT_FP8 ? DT_FP8 : (enum dtype)(i / 3 % 2);
        bool transpose = to != DT_FP8 && i / 6 % 2;
        size_t src_bytes = (size_t)(n * k) * dtype_bytes(from), bytes = check.ref->k->weight_bytes(to, n, k);
        uint8_t *src = malloc(src_bytes);
        for (size_t j = 0; j < src_bytes; j++)
            src[j] = (uint8_t)rng_u32(&check.rng); // every kind of number, NaNs with any bits
        struct guarded want = guarded_new(bytes);
        check.ref->k->weight_pack(check.ref, to, n, k, src, from, transpose, want.p);
        for (int t = 0; t < check.n_twins && check.twin[t]->isa <= ISA_AVX512; t++) {
            struct guarded got = guarded_new(bytes);
            check.twin[t]->k->weight_pack(check.twin[t], to, n, k, src, from, transpose, got.p);
            guarded_check(&got, "weight_pack");
            check_same_bytes("weight_pack", check.twin[t], want.p, got.p, bytes);
            guarded_free(&got);
        }
        guarded_free(&want);
        free(src);
    }
}

// --bench [isa] [threads] measures instead.
int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "--bench"))
        return gemm_bench(argc > 2 ? argv[2] : "auto", argc > 3 ? atoi(argv[3]) : 0);
    if (!check_init(&check, 11))
        return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pack_bytes), cmocka_unit_test(test_fp8_codes),
        cmocka_unit_test(test_gemm_truth), cmocka_unit_test(test_gemm),
        cmocka_unit_test(test_gemm_dw),    cmocka_unit_test(test_bias_grad),
    };
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    check_done(&check);
    return rc;
}
