// Template: the optimizer's arithmetic and the number formats, element by element.
#include <math.h>

struct adamw {
    float *p, *m, *v;
    const float *g;
    float gscale, lr, b1, b2, eps, wd, bc1, bc2;
};

static void adamw_range(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct adamw *a = ctx;
    v16 gs = v_set(a->gscale), b1 = v_set(a->b1), b2 = v_set(a->b2), a1 = v_set(1.0f - a->b1),
        a2 = v_set(1.0f - a->b2);
    v16 bc1 = v_set(a->bc1), bc2 = v_set(a->bc2), eps = v_set(a->eps), lr = v_set(a->lr),
        decay = v_set(a->lr * a->wd);
    for (int64_t i = begin; i < end; i += 16) {
        int64_t n = min_i64(16, end - i);
        v16 g = v_mul(gs, v_load_n(a->g + i, n));
        v16 m = v_fma(b1, v_load_n(a->m + i, n), v_mul(a1, g));
        v16 v = v_fma(b2, v_load_n(a->v + i, n), v_mul(a2, v_mul(g, g)));
        v16 update = v_div(v_div(m, bc1), v_add(v_sqrt(v_div(v, bc2)), eps)), p = v_load_n(a->p + i, n);
        v_store_n(a->m + i, m, n);
        v_store_n(a->v + i, v, n);
        v_store_n(a->p + i, v_fnma(lr, update, v_fnma(decay, p, p)), n);
    }
}

void LANES(adamw)(struct device *d, int64_t n, float *p, float *m, float *v, const float *g, float gscale,
                  float lr, float b1, float b2, float eps, float wd, float bc1, float bc2)
{
    struct adamw a = {p, m, v, g, gscale, lr, b1, b2, eps, wd, bc1, bc2};
    split_run(d, n, 16, 1.0, adamw_range, &a);
}

struct sumsq {
    int64_t n;
    const float *x;
    double *sums; // one per chunk
};

static void sumsq_chunks(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct sumsq *a = ctx;
    for (int64_t c = begin; c < end; c++) {
        const float *x = a->x + c * SUMSQ_CHUNK;
        int64_t n = min_i64(SUMSQ_CHUNK, a->n - c * SUMSQ_CHUNK);
        struct d16 s = d_zero();
        for (int64_t i = 0; i < n; i += 16)
            s = d_add_square(s, v_load_n(x + i, min_i64(16, n - i)));
        a->sums[c] = d_fold(s);
    }
}

double LANES(sumsq)(struct device *d, int64_t n, const float *x)
{
    int64_t chunks = ceil_div(n, SUMSQ_CHUNK);
    struct sumsq a = {n, x, scratch_shared(d, (size_t)(chunks + 1) * sizeof *a.sums)};
    split_run(d, chunks, 1, 0.15 * SUMSQ_CHUNK, sumsq_chunks, &a);
    double sum = 0;
    for (int64_t c = 0; c < chunks; c++)
        sum = sum + a.sums[c];
    return sum;
}

struct fp8 {
    int64_t n, k;
    const float *w;
    uint8_t *q;
    float *scales;
    const uint8_t *q_in;
    const float *scales_in;
    float *out;
};

// Rows of blocks.
static void quantize_blocks(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct fp8 *a = ctx;
    int64_t across = ceil_div(a->k, FP8_BLOCK);
    for (int64_t b = begin * across; b < end * across; b++) {
        int64_t n0 = b / across * FP8_BLOCK, n1 = min_i64(n0 + FP8_BLOCK, a->n);
        int64_t k0 = b % across * FP8_BLOCK, k1 = min_i64(k0 + FP8_BLOCK, a->k);
        v16 amax = v_zero();
        for (int64_t i = n0; i < n1; i++)
            for (int64_t j = k0; j < k1; j += 16)
                amax = v_max(v_abs(v_load_n(a->w + i * a->k + j, min_i64(16, k1 - j))), amax);
        float m = v_fold_max(amax), scale = (m > 1e-12f ? m : 1e-12f) / 448.0f;
        a->scales[b] = scale;
        for (int64_t i = n0; i < n1; i++)
            for (int64_t j = k0; j < k1; j += 16) {
                int64_t n = min_i64(16, k1 - j);
                v_store_fp8_n(a->q + i * a->k + j, v_div(v_load_n(a->w + i * a->k + j, n), v_set(scale)), n);
            }
    }
}

void LANES(fp8_quantize)(struct device *d, int64_t n, int64_t k, const float *w, uint8_t *q, float *scales)
{
    struct fp8 a = {.n = n, .k = k, .w = w, .q = q, .scales = scales};
    split_run(d, ceil_div(n, FP8_BLOCK), 1, 0.8 * FP8_BLOCK * (double)k, quantize_blocks, &a);
}

static void dequantize_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct fp8 *a = ctx;
    int64_t across = ceil_div(a->k, FP8_BLOCK);
    for (int64_t i = begin; i < end; i++)
        for (int64_t j = 0; j < a->k; j += 16) {
            int64_t n = min_i64(16, a->k - j);
            v16 scale = v_set(a->scales_in[i / FP8_BLOCK * across + j / FP8_BLOCK]);
            v_store_n(a->out + i * a->k + j, v_mul(v_load_fp8_n(a->q_in + i * a->k + j, n), scale), n);
        }
}

void LANES(fp8_dequantize)(struct device *d, int64_t n, int64_t k, const uint8_t *q, const float *scales,
                           float *w)
{
    struct fp8 a = {.n = n, .k = k, .q_in = q, .scales_in = scales, .out = w};
    split_run(d, n, 1, 0.3 * (double)k, dequantize_rows, &a);
}

struct convert {
    const float *f_in;
    const uint16_t *h_in;
    float *f_out;
    uint16_t *h_out;
};

static void to_bf16_range(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct convert *a = ctx;
    for (int64_t i = begin; i < end; i += 16)
        v_store_bf16_n(a->h_out + i, v_load_n(a->f_in + i, min_i64(16, end - i)), min_i64(16, end - i));
}

void LANES(to_bf16)(struct device *d, int64_t n, const float *x, uint16_t *y)
{
    struct convert a = {.f_in = x, .h_out = y};
    split_run(d, n, 16, 0.15, to_bf16_range, &a);
}

struct convert_rows {
    int64_t c;
    const float *x;
    int64_t ldx;
    uint16_t *y;
    int64_t ldy;
};

// Sixteen at a time are read before they are written, and end before the next begin: y may be x.
static void to_bf16_rows_range(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct convert_rows *a = ctx;
    for (int64_t row = begin; row < end; row++)
        for (int64_t i = 0; i < a->c; i += 16) {
            int64_t n = min_i64(16, a->c - i);
            v_store_bf16_n(a->y + row * a->ldy + i, v_load_n(a->x + row * a->ldx + i, n), n);
        }
}

void LANES(to_bf16_rows)(struct device *d, int64_t t, int64_t c, const float *x, int64_t ldx, uint16_t *y,
                         int64_t ldy)
{
    struct convert_rows a = {c, x, ldx, y, ldy};
    split_run(d, t, 1, 0.15 * (double)c, to_bf16_rows_range, &a);
}

static void from_bf16_range(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct convert *a = ctx;
    for (int64_t i = begin; i < end; i += 16)
        v_store_n(a->f_out + i, v_load_bf16_n(a->h_in + i, min_i64(16, end - i)), min_i64(16, end - i));
}

void LANES(from_bf16)(struct device *d, int64_t n, const uint16_t *x, float *y)
{
    struct convert a = {.h_in = x, .f_out = y};
    split_run(d, n, 16, 0.15, from_bf16_range, &a);
}
