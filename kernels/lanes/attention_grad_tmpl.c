// Template: gradient of causal attention. A unit is one key/value head of one sequence; inside it key blocks go outermost, then the
// heads of the group, then chunks of query rows: the order in which ref/attention_grad.c feeds every chain.
#include <assert.h>
#include <math.h>

#include "kernels/lanes/tile_tmpl.c"
#include "kernels/ref/ref.h"

TILE_EACH(TILE_DEFINE, f32, DT_F32)
TILE_EACH(TILE_DEFINE_PART, f32, DT_F32)

static tile_fn *const FULL[TILE_ROWS] = {TILE_EACH(TILE_NAME, f32)};
static tile_fn *const PART[TILE_ROWS] = {TILE_EACH(TILE_NAME_PART, f32)};

#define TILE_WIDTH (16 * TILE_COLS)
#define ROWS       48 // query rows whose P and dS are held at once

struct attn_grad {
    struct device *d;
    enum dtype dtype; // of the cache
    int n_heads, n_kv, dim;
    float scale;
    const struct attn_seq *seqs;
    const float *q, *k, *v, *out, *lse, *dout;
    int64_t ldq, ldk, ldv, ldo, lddo, lddq, lddk, lddv;
    float *dq, *dk, *dv;
};

// Scratch of one unit.
struct work {
    float *kt, *vt;     // [D, ATTN_BLOCK] the block's keys and values, transposed, zero past the end
    float *p, *ds;      // [ROWS, ATTN_BLOCK]
    float *delta;       // [group, n_rows]
    const float *k, *v; // [n_rows, D] keys and values as the cache held them
    int64_t ldk, ldv;
};

// c[rows, n_cols] = (fresh ? 0 : c) + a b, tile by tile; a(r, k) at a[r * a_row + k * a_k].
static void product(int64_t rows, int64_t n_k, const float *a, int64_t a_row, int64_t a_k, const float *b,
                    int64_t b_k, int64_t n_cols, float *c, int64_t ldc, bool fresh)
{
    for (int64_t j = 0; j < n_cols; j += TILE_WIDTH)
        for (int64_t r = 0; r < rows; r += TILE_ROWS) {
            struct operands o = {
                .a = a + r * a_row, .a_row = a_row, .a_k = a_k, .b = b + j, .b_k = b_k, .b_pair = 32};
            int64_t n = min_i64(TILE_ROWS, rows - r);
            if (n_cols - j >= TILE_WIDTH)
                FULL[n - 1](n_k, &o, -1, c + r * ldc + j, ldc, fresh);
            else
                PART[n - 1](n_k, &o, n_cols - j, c + r * ldc + j, ldc, fresh);
        }
}

// to [D, ATTN_BLOCK] = rows j0 … of x [n, D] transposed.
static void transpose_block(const float *x, int64_t ld, int64_t n, int64_t dim, float *to)
{
    for (int64_t i = 0; i < ATTN_BLOCK; i += 16)
        for (int64_t j = 0; j < dim; j += 16) {
            v16 t[16];
            for (int64_t l = 0; l < 16; l++)
                t[l] = i + l < n ? v_load_n(x + (i + l) * ld + j, min_i64(16, dim - j)) : v_zero();
            v_transpose(t);
            for (int64_t l = 0; l < min_i64(16, dim - j); l++)
                v_store(to + (j + l) * ATTN_BLOCK + i, t[l]);
        }
}

// S and dP of n rows from i0 on → P and dS.
static void scores_to_grad(const struct attn_grad *a, const struct attn_seq *s, int h, int64_t i0, int64_t n,
                           int64_t j0, const float *delta, struct work *w)
{
    v16 scale = v_set(a->scale);
    for (int64_t i = 0; i < n; i++) {
        v16 lse = v_set(a->lse[(s->row0 + i0 + i) * a->n_heads + h]), dl = v_set(delta[i0 + i]);
        for (int64_t j = 0; j < ATTN_BLOCK; j += 16) {
            float *p = w->p + i * ATTN_BLOCK + j, *ds = w->ds + i * ATTN_BLOCK + j;
            int64_t seen = max_i64(0, i0 + i + 1 - j0 - j);
            v16 e = v_first_n(v_exp(v_sub(v_mul(v_load(p), scale), lse)), v_zero(), min_i64(16, seen));
            v16 g = v_mul(v_mul(e, v_sub(v_load(ds), dl)), scale);
            v_store(p, e);
            v_store(ds, v_first_n(g, v_zero(), min_i64(16, seen)));
        }
    }
}

static void block_grad(const struct attn_grad *a, const struct attn_seq *s, int g, int64_t j0, struct work *w)
{
    int group = a->n_heads / a->n_kv;
    int64_t dim = a->dim, n = s->n_rows, keys = min_i64(ATTN_BLOCK, n - j0), key = s->row0 + j0;
    const float *k = w->k + j0 * w->ldk;
    transpose_block(k, w->ldk, keys, dim, w->kt);
    transpose_block(w->v + j0 * w->ldv, w->ldv, keys, dim, w->vt);
    for (int h = g * group; h < (g + 1) * group; h++)
        for (int64_t i0 = j0; i0 < n; i0 += ROWS) {
            int64_t rows = min_i64(ROWS, n - i0), row = s->row0 + i0;
            const float *q = a->q + row * a->ldq + h * dim, *dout = a->dout + row * a->lddo + h * dim;
            product(rows, dim, q, a->ldq, 1, w->kt, ATTN_BLOCK, ATTN_BLOCK, w->p, ATTN_BLOCK, true);
            product(rows, dim, dout, a->lddo, 1, w->vt, ATTN_BLOCK, ATTN_BLOCK, w->ds, ATTN_BLOCK, true);
            scores_to_grad(a, s, h, i0, rows, j0, w->delta + (h - g * group) * n, w);
            product(rows, keys, w->ds, ATTN_BLOCK, 1, k, w->ldk, dim, a->dq + row * a->lddq + h * dim,
                    a->lddq, j0 == 0);
            bool fresh = h == g * group && i0 == j0;
            product(keys, rows, w->ds, 1, ATTN_BLOCK, q, a->ldq, dim, a->dk + key * a->lddk + g * dim,
                    a->lddk, fresh);
            product(keys, rows, w->p, 1, ATTN_BLOCK, dout, a->lddo, dim, a->dv + key * a->lddv + g * dim,
                    a->lddv, fresh);
        }
}

// A key or value as the cache held it.
static void row_round(enum dtype t, int64_t dim, const float *x, float *y)
{
    if (t == DT_FP8)
        ref_cache_round(t, dim, x, y);
    for (int64_t j = 0; j < dim && t == DT_BF16; j += 16)
        v_store_n(y + j, v_round_bf16(v_load_n(x + j, min_i64(16, dim - j))), min_i64(16, dim - j));
}

static void head_grad(const struct attn_grad *a, const struct attn_seq *s, int g, int thread)
{
    int group = a->n_heads / a->n_kv;
    int64_t dim = a->dim;
    int64_t floats = 2 * dim * ATTN_BLOCK + 2 * ROWS * ATTN_BLOCK + (int64_t)group * s->n_rows, n = s->n_rows;
    struct work w = {.k = a->k + s->row0 * a->ldk + g * dim,
                     .v = a->v + s->row0 * a->ldv + g * dim,
                     .ldk = a->ldk,
                     .ldv = a->ldv};
    w.kt =
        scratch_get(a->d, thread, (size_t)(floats + (a->dtype == DT_F32 ? 0 : 2 * n * dim)) * sizeof(float));
    w.vt = w.kt + dim * ATTN_BLOCK;
    w.p = w.vt + dim * ATTN_BLOCK;
    w.ds = w.p + ROWS * ATTN_BLOCK;
    w.delta = w.ds + ROWS * ATTN_BLOCK;
    if (a->dtype != DT_F32) {
        float *k = w.kt + floats, *v = k + n * dim;
        for (int64_t i = 0; i < n; i++) {
            row_round(a->dtype, dim, w.k + i * w.ldk, k + i * dim);
            row_round(a->dtype, dim, w.v + i * w.ldv, v + i * dim);
        }
        w.k = k;
        w.v = v;
        w.ldk = w.ldv = dim;
    }
    for (int h = 0; h < group; h++)
        for (int64_t i = 0; i < s->n_rows; i++) {
            const float *x = a->dout + (s->row0 + i) * a->lddo + (g * group + h) * dim;
            const float *y = a->out + (s->row0 + i) * a->ldo + (g * group + h) * dim;
            v16 sum = v_zero();
            for (int64_t j = 0; j < dim; j += 16)
                sum =
                    v_fma(v_load_n(x + j, min_i64(16, dim - j)), v_load_n(y + j, min_i64(16, dim - j)), sum);
            w.delta[h * s->n_rows + i] = v_fold(sum);
        }
    for (int64_t j0 = 0; j0 < s->n_rows; j0 += ATTN_BLOCK)
        block_grad(a, s, g, j0, &w);
}

static void grad_heads(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct attn_grad *a = ctx;
    for (int64_t i = begin; i < end; i++)
        head_grad(a, &a->seqs[i / a->n_kv], (int)(i % a->n_kv), thread);
}

void LANES(attention_grad)(struct device *d, enum dtype dtype, int n_heads, int n_kv, int head_dim,
                           float scale, int n_seqs, const struct attn_seq *seqs, const float *q, int64_t ldq,
                           const float *k, int64_t ldk, const float *v, int64_t ldv, const float *out,
                           int64_t ldo, const float *lse, const float *dout, int64_t lddo, float *dq,
                           int64_t lddq, float *dk, int64_t lddk, float *dv, int64_t lddv)
{
    assert(n_kv > 0 && n_heads % n_kv == 0);
    struct attn_grad a = {.d = d,
                          .dtype = dtype,
                          .n_heads = n_heads,
                          .n_kv = n_kv,
                          .dim = head_dim,
                          .scale = scale,
                          .seqs = seqs,
                          .q = q,
                          .k = k,
                          .v = v,
                          .out = out,
                          .lse = lse,
                          .dout = dout,
                          .ldq = ldq,
                          .ldk = ldk,
                          .ldv = ldv,
                          .ldo = ldo,
                          .lddo = lddo,
                          .lddq = lddq,
                          .lddk = lddk,
                          .lddv = lddv,
                          .dq = dq,
                          .dk = dk,
                          .dv = dv};
    double pairs = 0;
    for (int i = 0; i < n_seqs; i++) {
        assert(seqs[i].pos0 == 0);
        pairs += 0.5 * seqs[i].n_rows * (seqs[i].n_rows + 32.0);
    }
    int64_t units = (int64_t)n_seqs * n_kv;
    if (units)
        split_run(d, units, 1, pairs * n_heads * (0.07 * head_dim + 1) / (double)units, grad_heads, &a);
}
