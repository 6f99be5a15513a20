// weight_pack, gemm, gemm_dw and bias_grad of every class: random shapes with odd tails, strides, accumulation and special values.
// Classes that keep ref's order are compared with ref bit for bit. The others are compared bit for bit with a plain-C model of the order
// they document (order.h), and lie within the derived error bound of ref.
#include "tests/bench/gemm_bench.h"
#include "tests/kernels/check.h"
#include "tests/kernels/order.h"

static struct check check;

// ---- operands --------------------------------------------------------------------------------------------------------

// An operand of `rows` rows for a product of dtype t, and what the product takes: rows of bf16 are those of f32 rounded beforehand.
static struct rows operand(enum dtype t, bool half, int64_t rows, int64_t cols, float scale, int special,
                           float **ret_taken)
{
    const int64_t ld = check_stride(&check, cols), n = rows ? (rows - 1) * ld + cols : 0;
    const float *x = check_floats(&check, n, scale, special);
    float *taken = check_alloc(&check, (size_t)(rows * cols) * 4, 4);
    for (int64_t i = 0; i < rows * cols; i++) {
        float v = x[i / cols * ld + i % cols];
        taken[i] = t == DT_F32 ? v : order_bf16(v);
    }
    *ret_taken = taken;
    if (!half)
        return rows_f32(x, ld);
    uint16_t *h = check_alloc(&check, (size_t)n * 2, 2);
    for (int64_t i = 0; i < n; i++)
        h[i] = f32_to_bf16(x[i]);
    return rows_bf16(h, ld);
}

// ---- gemm ------------------------------------------------------------------------------------------------------------

struct problem {
    enum dtype t;
    int64_t m, n, k, ldy;
    struct rows x;
    float *w, *bias, *y0, *scales;
    uint8_t *codes;
    uint16_t *half;
    bool accumulate, transpose, from_half;
    float *xr, *wr; // [m, k], [n, k]: the operands as the product takes them
};

static void problem_weights(struct problem *p)
{
    p->wr = check_alloc(&check, (size_t)(p->n * p->k) * 4, 4);
    for (int64_t n = 0; n < p->n; n++)
        for (int64_t k = 0; k < p->k; k++) {
            int64_t at = p->transpose ? k * p->n + n : n * p->k + k;
            float w = p->from_half ? bf16_to_f32(p->half[at]) : p->w[at];
            p->wr[n * p->k + k] = p->t == DT_FP8    ? fp8_to_f32(p->codes[at])
                                  : p->t == DT_BF16 ? order_bf16(w)
                                                    : w;
        }
}

static struct problem problem_new(int i)
{
    struct problem p = {.t = (enum dtype)(i % 3)};
    bool tall = i % 31 == 0, big = i % 16 == 0; // more rows than a chunk; several blocks and panels
    p.m = tall ? check_size(&check, 90, 260) : check_size(&check, 0, i % 4 ? 9 : 40);
    p.n = tall ? check_size(&check, 0, 70) : check_size(&check, 0, big ? 400 : 100);
    p.k = tall ? check_size(&check, 0, 140) : check_size(&check, 0, big ? 513 : 150);
    if (i % 203 == 11) { // several blocks of inputs, of columns too, and chunks of rows
        p.m = i % 2 ? check_size(&check, 97, 200) : check_size(&check, 1, 20);
        p.n = i % 2 ? check_size(&check, 1, 60) : check_size(&check, 760, 840);
        p.k = check_size(&check, 1500, 3400);
    }
    if (i == 151 || i == 301) { // few rows, bf16 weights that no cache is thought to hold
        p.m = check_size(&check, 1, 6);
        p.n = check_size(&check, 2100, 2140);
        p.k = check_size(&check, 2010, 2050);
    }
    // one of each format: such weights and more rows than a chunk, which is then twice as tall
    if (i >= 601 && i <= 603) {
        static const int64_t sizes[][2] = {{1111, 1901}, {2101, 2003}, {2903, 2897}}; // 8 MiB and a little
        p.m = p.t == DT_F32    ? check_between(&check, 193, 210)
              : p.t == DT_BF16 ? check_between(&check, 97, 192)
                               : check_between(&check, 97, 110);
        p.n = sizes[p.t][0];
        p.k = sizes[p.t][1];
    }
    p.ldy = check_stride(&check, p.n);
    int special = i % 5 == 0 ? (i % 2 ? 2 : 30) : 0;
    float scale = i % 7 == 3 ? 1e-19f : 1; // products around the smallest normal numbers
    int64_t nk = p.n * p.k, blocks = (p.n + 127) / 128 * ((p.k + 127) / 128);
    p.x = operand(p.t, p.t != DT_F32 && check_between(&check, 0, 1), p.m, p.k, scale, special, &p.xr);
    p.w = check_floats(&check, nk, 0.5f * scale, special);
    p.y0 = check_floats(&check, p.m * p.ldy, 1, 0);
    p.bias = check_between(&check, 0, 1) ? check_floats(&check, p.n, scale * scale, special) : NULL;
    p.accumulate = check_between(&check, 0, 1);
    p.transpose = p.t != DT_FP8 && check_between(&check, 0, 1);
    p.from_half = p.t != DT_FP8 && check_between(&check, 0, 1);
    p.codes = check_bytes(&check, (size_t)nk, 1);
    p.half = check_alloc(&check, (size_t)nk * 2, 2);
    for (int64_t j = 0; j < nk; j++) {
        if ((p.codes[j] & 0x7f) == 0x7f && !special)
            p.codes[j] ^= 1;
        p.half[j] = f32_to_bf16(p.w[j]);
    }
    p.scales = check_floats(&check, blocks, 0.01f, special / 4);
    problem_weights(&p);
    return p;
}

static const void *problem_source(const struct problem *p, enum dtype *ret)
{
    *ret = p->t == DT_FP8 ? DT_FP8 : p->from_half ? DT_BF16 : DT_F32;
    return p->t == DT_FP8 ? (void *)p->codes : p->from_half ? (void *)p->half : (void *)p->w;
}

static struct guarded problem_pack(const struct problem *p, struct device *d)
{
    enum dtype from;
    const void *src = problem_source(p, &from);
    size_t bytes = d->k->weight_bytes(p->t, p->n, p->k);
    assert_true(bytes >= (size_t)(p->n * p->k) * dtype_bytes(p->t));
    struct guarded packed = guarded_new(bytes);
    d->k->weight_pack(d, p->t, p->n, p->k, src, from, p->transpose, packed.p);
    guarded_check(&packed, "weight_pack", d);
    return packed;
}

static void op_gemm(struct device *d, void *ctx, void **out)
{
    const struct problem *p = ctx;
    struct guarded packed = problem_pack(p, d);
    struct gemm_weight w = {p->t, p->n, p->k, packed.p, p->t == DT_FP8 ? p->scales : NULL};
    d->k->gemm(d, &w, p->m, p->x, p->bias, p->accumulate, out[0], p->ldy);
    guarded_free(&packed);
}

// One element in the order of the class.
static float gemm_model(const struct problem *p, enum isa isa, int64_t m, int64_t n)
{
    const float *x = p->xr + m * p->k, *w = p->wr + n * p->k;
    float s = 0;
    if (p->t == DT_FP8)
        for (int64_t b = 0, blocks = (p->k + 127) / 128; b < blocks; b++) {
            int64_t len = p->k - b * 128 < 128 ? p->k - b * 128 : 128;
            s = fmaf(order_dot(isa, x + b * 128, 1, w + b * 128, 1, len), p->scales[n / 128 * blocks + b], s);
        }
    else
        s = order_dot(isa, x, 1, w, 1, p->k);
    if (p->bias)
        s = s + p->bias[n];
    return p->accumulate ? p->y0[m * p->ldy + n] + s : s;
}

// What its rounding errors are measured against: the sum of magnitudes. Infinite where a sum of products might overflow on its way.
static double gemm_magnitude(const struct problem *p, int64_t m, int64_t n)
{
    double unscaled = 0, s = p->bias ? fabs((double)p->bias[n]) : 0;
    if (p->accumulate)
        s += fabs((double)p->y0[m * p->ldy + n]);
    for (int64_t k = 0; k < p->k; k++) {
        double scale = p->t == DT_FP8 ? (double)p->scales[n / 128 * ((p->k + 127) / 128) + k / 128] : 1;
        double product = fabs((double)p->xr[m * p->k + k] * (double)p->wr[n * p->k + k]);
        unscaled += product;
        s += product * fabs(scale);
    }
    return unscaled < 1e37 && s < 1e37 ? s : INFINITY;
}

static void own_gemm(void *ctx, const struct device *d, void *const *want, void *const *got)
{
    const struct problem *p = ctx;
    enum isa order = p->t == DT_F32 ? ISA_REF : d->isa;
    // Of the largest products every 17th element: each row, each column and each lane of a vector is among them.
    const int64_t step = p->m * p->n * p->k < 1 << 28 ? 1 : 17;
    for (int64_t m = 0; m < p->m; m++)
        for (int64_t n = m % step; n < p->n; n += step) {
            int64_t at = m * p->ldy + n;
            float model = gemm_model(p, order, m, n), a = ((float *)want[0])[at], b = ((float *)got[0])[at];
            check_same("gemm beside the model of its order", d, &model, &b, 1);
            double size = gemm_magnitude(p, m, n);
            if (isfinite(size))
                check_near("gemm beside ref", d, a, b, order_bound(p->k + p->k / 128 + 4, size));
        }
}

static void test_gemm(void **state)
{
    (void)state;
    for (int i = 0; i < 3 * CHECK_SHAPES; i++) { // CHECK_SHAPES of each format
        struct problem p = problem_new(i);
        struct output y = {"gemm", p.m, p.n, p.ldy, 4, p.y0};
        check_op(&check, OP(gemm), op_gemm, &p, 1, &y, own_gemm);
        check_release(&check);
    }
}

// The reference itself against sums in double.
static void test_gemm_truth(void **state)
{
    (void)state;
    for (int i = 1; i < 200; i++) {
        struct problem p = problem_new(i);
        struct guarded y = guarded_new((size_t)(p.m * p.ldy) * 4);
        void *out = y.p;
        memcpy(y.p, p.y0, y.bytes);
        op_gemm(check.ref, &p, &out);
        for (int64_t m = 0; m < p.m; m++)
            for (int64_t n = 0; n < p.n; n++) {
                double size = gemm_magnitude(&p, m, n), s = p.bias ? (double)p.bias[n] : 0;
                for (int64_t k = 0; k < p.k; k++)
                    s += (double)p.xr[m * p.k + k] * (double)p.wr[n * p.k + k] *
                         (p.t == DT_FP8 ? (double)p.scales[n / 128 * ((p.k + 127) / 128) + k / 128] : 1);
                if (p.accumulate)
                    s += (double)p.y0[m * p.ldy + n];
                if (isfinite(size))
                    check_near("ref gemm", check.ref, s, ((float *)y.p)[m * p.ldy + n],
                               order_bound(p.k + p.k / 128 + 4, size));
            }
        guarded_free(&y);
        check_release(&check);
    }
}

// ---- weight_pack -----------------------------------------------------------------------------------------------------

// A packed layout is the class's own matter: what counts is that a product with row k of the identity brings column k of W back.
static void unpacked(const struct problem *p, struct device *d, const struct guarded *packed)
{
    float *x = calloc((size_t)(p->k * p->k + 1), 4), *y = calloc((size_t)(p->k * p->n + 1), 4);
    for (int64_t k = 0; k < p->k; k++)
        x[k * p->k + k] = 1;
    float ones[16];
    for (int i = 0; i < 16; i++)
        ones[i] = 1;
    struct gemm_weight w = {p->t, p->n, p->k, packed->p, p->t == DT_FP8 ? ones : NULL};
    d->k->gemm(d, &w, p->k, rows_f32(x, p->k), NULL, false, y, p->n);
    for (int64_t k = 0; k < p->k; k++)
        for (int64_t n = 0; n < p->n; n++) {
            float want = p->wr[n * p->k + k], got = y[k * p->n + n];
            if (fabsf(want) < 0x1p-126f) // read as zero
                want = 0;
            if (!(want == got))
                fail_msg("weight_pack on %s: input %lld of output %lld is %a, want %a", d->name, (long long)k,
                         (long long)n, (double)got, (double)want);
        }
    free(x);
    free(y);
}

static void test_pack(void **state)
{
    (void)state;
    for (int i = 0; i < CHECK_SHAPES; i++) {
        struct problem p = {.t = (enum dtype)(i % 3)};
        p.n = check_size(&check, 0, i % 16 ? 70 : 200);
        p.k = check_size(&check, 0, i % 16 ? 50 : 200);
        p.transpose = p.t != DT_FP8 && i / 3 % 2;
        p.from_half = p.t != DT_FP8 && i / 6 % 2;
        int64_t nk = p.n * p.k;
        // what packs bits gets every kind of number, NaNs with any payload; what is read back through products finite ones
        bool bits = i % 2;
        p.w = bits ? check_bytes(&check, (size_t)nk * 4, 4) : check_floats(&check, nk, 1, 0);
        p.half = bits ? check_bytes(&check, (size_t)nk * 2, 2) : check_alloc(&check, (size_t)nk * 2, 2);
        p.codes = check_bytes(&check, (size_t)nk, 1);
        // the largest subnormal rounds to the smallest normal bf16, which products do not read as zero
        static const float tiny[] = {1e-40f, -0.0f, 0x1.fffffcp-127f, -0x1.fffffcp-127f};
        for (int64_t j = 0; j < nk && !bits; j++) {
            if (j % 9 == 0)
                p.w[j] = tiny[j / 9 % 4];
            p.half[j] = f32_to_bf16(p.w[j]);
            p.codes[j] = (p.codes[j] & 0x7f) == 0x7f ? 0x81 : p.codes[j];
        }
        problem_weights(&p);
        struct guarded want = problem_pack(&p, check.ref);
        for (int t = 0; t < check.n_twins; t++) {
            struct device *d = check.twin[t];
            struct guarded got = problem_pack(&p, d);
            if (!check_own_order(d) || p.t == DT_F32) { // ref's panels: the same bytes
                assert_int_equal(got.bytes, want.bytes);
                check_same_bytes("weight_pack", d, want.p, got.p, want.bytes);
            }
            if (!bits)
                unpacked(&p, d, &got);
            guarded_free(&got);
            check.shapes[OP(weight_pack)][t]++;
            check.shapes[OP(weight_bytes)][t]++;
        }
        guarded_free(&want);
        check_release(&check);
    }
}

// Every FP8 code through a product with 1 must come out as its value.
static void test_fp8_codes(void **state)
{
    (void)state;
    float x = 1, y[256], scales[2] = {1, 1};
    uint8_t codes[256];
    for (int i = 0; i < 256; i++)
        codes[i] = (uint8_t)i;
    for (int t = -1; t < check.n_twins; t++) {
        struct device *d = t < 0 ? check.ref : check.twin[t];
        for (int way = 0; way < 2; way++) { // by outputs, by inputs (each alone with 1)
            int64_t n = way ? 1 : 256, k = way ? 256 : 1;
            struct guarded packed = guarded_new(d->k->weight_bytes(DT_FP8, n, k));
            d->k->weight_pack(d, DT_FP8, n, k, codes, DT_FP8, false, packed.p);
            struct gemm_weight w = {DT_FP8, n, k, packed.p, scales};
            for (int i = 0; i < (way ? 256 : 1); i++) {
                float one[256] = {0};
                one[i] = 1;
                if (way && (i & 0x7f) == 0x7f)
                    continue; // NaN spoils the sums of its neighbours: covered by outputs
                if (way) {
                    codes[0x7f] = codes[0xff] = 0;
                    d->k->weight_pack(d, DT_FP8, n, k, codes, DT_FP8, false, packed.p);
                }
                d->k->gemm(d, &w, 1, rows_f32(way ? one : &x, k), NULL, false, way ? y + i : y, n);
            }
            for (int i = 0; i < 256; i++) {
                float want = fp8_to_f32((uint8_t)i);
                if (!(way && (i & 0x7f) == 0x7f))
                    assert_true(y[i] == want || (y[i] != y[i] && want != want));
            }
            codes[0x7f] = 0x7f;
            codes[0xff] = 0xff;
            guarded_free(&packed);
        }
    }
}

// ---- gradients -------------------------------------------------------------------------------------------------------

struct dw_problem {
    enum dtype t;
    int64_t m, n, k;
    struct rows dy, x;
    float *dw0;
    float *dyr, *xr; // [m, n], [m, k] as the product takes them
};

static void op_dw(struct device *d, void *ctx, void **out)
{
    const struct dw_problem *p = ctx;
    d->k->gemm_dw(d, p->t, p->m, p->n, p->k, p->dy, p->x, out[0]);
}

static void own_dw(void *ctx, const struct device *d, void *const *want, void *const *got)
{
    const struct dw_problem *p = ctx;
    enum isa order = p->t == DT_F32 ? ISA_REF : d->isa;
    for (int64_t n = 0; n < p->n; n++)
        for (int64_t k = 0; k < p->k; k++) {
            int64_t at = n * p->k + k;
            float a = ((float *)want[0])[at], b = ((float *)got[0])[at];
            float model =
                p->m ? p->dw0[at] + order_dot(order, p->dyr + n, p->n, p->xr + k, p->k, p->m) : p->dw0[at];
            check_same("gemm_dw beside the model of its order", d, &model, &b, 1);
            double size = fabs((double)p->dw0[at]);
            for (int64_t r = 0; r < p->m; r++)
                size += fabs((double)p->dyr[r * p->n + n] * (double)p->xr[r * p->k + k]);
            if (size < 1e37)
                check_near("gemm_dw beside ref", d, a, b, order_bound(p->m + 3, size));
        }
}

static void test_gemm_dw(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * CHECK_SHAPES; i++) {
        struct dw_problem p = {.t = i % 2 ? DT_BF16 : DT_F32};
        p.m = i % 19 == 0 ? check_size(&check, 120, 300) : check_size(&check, 0, 40);
        p.n = check_size(&check, 0, i % 101 == 7 ? 420 : 50);
        p.k = check_size(&check, 0, i % 103 == 9 ? 540 : 60);
        if (i % 211 == 13) // several parts of the batch, several tasks
            p.m = check_between(&check, 600, 2600), p.n = check_size(&check, 100, 230),
            p.k = check_size(&check, 1, 40);
        if (i == 400 || i == 407) // more of x than is packed at once
            p.m = check_between(&check, 2100, 2200), p.n = check_size(&check, 1, 15),
            p.k = check_size(&check, 4200, 4300);
        int special = i % 7 == 0 ? 5 : 0;
        float scale = i % 9 == 3 ? 1e-19f : 1;
        p.dy = operand(p.t, p.t == DT_BF16 && i & 2, p.m, p.n, scale, special, &p.dyr);
        p.x = operand(p.t, p.t == DT_BF16 && i & 4, p.m, p.k, scale, special, &p.xr);
        p.dw0 = check_floats(&check, p.n * p.k, 1, special);
        struct output dw = {"gemm_dw", p.n, p.k, p.k, 4, p.dw0};
        check_op(&check, OP(gemm_dw), op_dw, &p, 1, &dw, own_dw);
        check_release(&check);
    }
}

static void op_bias_grad(struct device *d, void *ctx, void **out)
{
    const struct dw_problem *p = ctx;
    d->k->bias_grad(d, p->m, p->n, p->dy.at, p->dy.ld, out[0]);
}

static void test_bias_grad(void **state)
{
    (void)state;
    for (int i = 0; i < CHECK_SHAPES; i++) {
        struct dw_problem p = {.m = check_size(&check, 0, i % 9 ? 40 : 513), .n = check_size(&check, 0, 150)};
        p.dy = operand(DT_F32, false, p.m, p.n, 1, i % 4 ? 0 : 5, &p.dyr);
        struct output db = {"bias_grad", 1, p.n, p.n, 4, check_floats(&check, p.n, 1, 0)};
        check_op(&check, OP(bias_grad), op_bias_grad, &p, 1, &db, NULL);
        check_release(&check);
    }
}

// --bench [--isa CLASS] [--threads N] [--type T] measures instead.
int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "--bench"))
        return gemm_bench(argc - 1, argv + 1);
    if (!check_init(&check, 11))
        return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pack), cmocka_unit_test(test_fp8_codes), cmocka_unit_test(test_gemm_truth),
        cmocka_unit_test(test_gemm), cmocka_unit_test(test_gemm_dw),   cmocka_unit_test(test_bias_grad),
    };
    return check_close(&check, "gemm", cmocka_run_group_tests(tests, NULL, NULL));
}
