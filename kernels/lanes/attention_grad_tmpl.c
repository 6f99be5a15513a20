// Template: gradient of causal attention. A unit is one key/value head of one tree (a sequence with the branches that share its
// first rows); inside it key blocks go outermost, then the heads of the group, then chunks of query rows: the order in which ref/attention_grad.c feeds every chain.
#include <assert.h>
#include <math.h>

#include "kernels/lanes/rows_tmpl.c"
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
    int32_t *tree; // [trees + 1] first sequence of each
    const float *q, *k, *v, *lse, *dout;
    enum dtype out_dtype;
    const void *out;
    int64_t ldq, ldk, ldv, ldo, lddo, lddq, lddk, lddv;
    float *dq, *dk, *dv;
};

// Scratch of one unit.
struct work {
    float *kt, *vt;     // [D, ATTN_BLOCK] the block's keys and values, transposed, zero past the end
    float *p, *ds;      // [ROWS, ATTN_BLOCK]
    float *delta;       // [group, rows] of the tree's sequences one after the other
    int64_t rows;       // of the tree
    const float *k, *v; // [n_rows, D] keys and values of one sequence as the cache held them
    int64_t ldk, ldv;
    float *rounded; // [2, longest, D] where they are unless that is f32
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

// S and dP of n rows, the first at position i0 and at `row`, with the keys from position j0 on → P and dS. delta [n].
static void scores_to_grad(const struct attn_grad *a, int h, int64_t row, int64_t i0, int64_t n, int64_t j0,
                           const float *delta, struct work *w)
{
    v16 scale = v_set(a->scale);
    for (int64_t i = 0; i < n; i++) {
        v16 lse = v_set(a->lse[(row + i) * a->n_heads + h]), dl = v_set(delta[i]);
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

// What the rows i0 … of s give to and take from the keys j0 … of `keys` (row numbers of theirs), whose transposes are in w, in head h.
// at: where the rows of s begin among the tree's. first: the first rows that these keys meet.
static void rows_grad(const struct attn_grad *a, const struct attn_seq *s, int64_t at, int64_t i0,
                      const struct attn_seq *keys, int64_t j0, int h, bool first, struct work *w)
{
    int group = a->n_heads / a->n_kv, g = h / group;
    int64_t dim = a->dim, n = min_i64(ATTN_BLOCK, keys->n_rows - j0), key = keys->row0 + j0;
    const float *delta = w->delta + h % group * w->rows + at;
    for (; i0 < s->n_rows; i0 += ROWS, first = false) {
        int64_t rows = min_i64(ROWS, s->n_rows - i0), row = s->row0 + i0;
        const float *q = a->q + row * a->ldq + h * dim, *dout = a->dout + row * a->lddo + h * dim;
        product(rows, dim, q, a->ldq, 1, w->kt, ATTN_BLOCK, ATTN_BLOCK, w->p, ATTN_BLOCK, true);
        product(rows, dim, dout, a->lddo, 1, w->vt, ATTN_BLOCK, ATTN_BLOCK, w->ds, ATTN_BLOCK, true);
        scores_to_grad(a, h, row, s->pos0 + i0, rows, keys->pos0 + j0, delta + i0, w);
        product(rows, n, w->ds, ATTN_BLOCK, 1, w->k + j0 * w->ldk, w->ldk, dim,
                a->dq + row * a->lddq + h * dim, a->lddq, keys->pos0 + j0 == 0);
        product(n, rows, w->ds, 1, ATTN_BLOCK, q, a->ldq, dim, a->dk + key * a->lddk + g * dim, a->lddk,
                first);
        product(n, rows, w->p, 1, ATTN_BLOCK, dout, a->lddo, dim, a->dv + key * a->lddv + g * dim, a->lddv,
                first);
    }
}

// The keys j0 … of `keys`, whose rows begin at `at` among the tree's, with its own rows and, if it is the root, those of the branches
// that see them.
static void block_grad(const struct attn_grad *a, const struct attn_seq *keys, const struct attn_seq *end,
                       int64_t at, int g, int64_t j0, struct work *w)
{
    int group = a->n_heads / a->n_kv;
    int64_t n = min_i64(ATTN_BLOCK, keys->n_rows - j0);
    transpose_block(w->k + j0 * w->ldk, w->ldk, n, a->dim, w->kt);
    transpose_block(w->v + j0 * w->ldv, w->ldv, n, a->dim, w->vt);
    for (int h = g * group; h < (g + 1) * group; h++) {
        rows_grad(a, keys, at, j0, keys, j0, h, h == g * group, w);
        int64_t branch = keys->n_rows;
        for (const struct attn_seq *s = keys + 1; s < end && keys->pos0 == 0; branch += s++->n_rows)
            if (j0 < s->pos0)
                rows_grad(a, s, branch, 0, keys, j0, h, false, w);
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

static void find_delta(const struct attn_grad *a, const struct attn_seq *s, int g, int64_t at, struct work *w)
{
    int64_t dim = a->dim, group = a->n_heads / a->n_kv;
    for (int64_t h = 0; h < group; h++)
        for (int64_t i = 0; i < s->n_rows; i++) {
            const float *x = a->dout + (s->row0 + i) * a->lddo + (g * group + h) * dim;
            int64_t y = (s->row0 + i) * a->ldo + (g * group + h) * dim;
            v16 sum = v_zero();
            for (int64_t j = 0; j < dim; j += 16)
                sum = v_fma(v_load_n(x + j, min_i64(16, dim - j)),
                            rows_load(a->out_dtype, a->out, y + j, min_i64(16, dim - j)), sum);
            w->delta[h * w->rows + at + i] = v_fold(sum);
        }
}

// Keys and values of s → w->k, w->v.
static void take_keys(const struct attn_grad *a, const struct attn_seq *s, int g, struct work *w)
{
    int64_t dim = a->dim, n = s->n_rows;
    w->k = a->k + s->row0 * a->ldk + g * dim;
    w->v = a->v + s->row0 * a->ldv + g * dim;
    w->ldk = a->ldk;
    w->ldv = a->ldv;
    if (a->dtype == DT_F32)
        return;
    float *k = w->rounded, *v = k + n * dim;
    for (int64_t i = 0; i < n; i++) {
        row_round(a->dtype, dim, w->k + i * w->ldk, k + i * dim);
        row_round(a->dtype, dim, w->v + i * w->ldv, v + i * dim);
    }
    w->k = k;
    w->v = v;
    w->ldk = w->ldv = dim;
}

static void head_grad(const struct attn_grad *a, int64_t tree, int g, int thread)
{
    const struct attn_seq *root = a->seqs + a->tree[tree], *end = a->seqs + a->tree[tree + 1];
    int64_t dim = a->dim, longest = 0, at = 0;
    struct work w = {0};
    for (const struct attn_seq *s = root; s < end; s++) {
        w.rows += s->n_rows;
        longest = max_i64(longest, s->n_rows);
    }
    int64_t floats = 2 * dim * ATTN_BLOCK + 2 * ROWS * ATTN_BLOCK + a->n_heads / a->n_kv * w.rows;
    w.kt = scratch_get(a->d, thread,
                       (size_t)(floats + (a->dtype == DT_F32 ? 0 : 2 * longest * dim)) * sizeof(float));
    w.vt = w.kt + dim * ATTN_BLOCK;
    w.p = w.vt + dim * ATTN_BLOCK;
    w.ds = w.p + ROWS * ATTN_BLOCK;
    w.delta = w.ds + ROWS * ATTN_BLOCK;
    w.rounded = w.kt + floats;
    for (const struct attn_seq *s = root; s < end; at += s++->n_rows)
        find_delta(a, s, g, at, &w);
    at = 0;
    for (const struct attn_seq *s = root; s < end; at += s++->n_rows) {
        take_keys(a, s, g, &w);
        for (int64_t j0 = 0; j0 < s->n_rows; j0 += ATTN_BLOCK)
            block_grad(a, s, end, at, g, j0, &w);
    }
}

static void grad_heads(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct attn_grad *a = ctx;
    for (int64_t i = begin; i < end; i++)
        head_grad(a, i / a->n_kv, (int)(i % a->n_kv), thread);
}

void LANES(attention_grad)(struct device *d, enum dtype dtype, int n_heads, int n_kv, int head_dim,
                           float scale, int n_seqs, const struct attn_seq *seqs, const float *q, int64_t ldq,
                           const float *k, int64_t ldk, const float *v, int64_t ldv, enum dtype out_dtype,
                           const void *out, int64_t ldo, const float *lse, const float *dout, int64_t lddo,
                           float *dq, int64_t lddq, float *dk, int64_t lddk, float *dv, int64_t lddv)
{
    assert(n_kv > 0 && n_heads % n_kv == 0 && (out_dtype == DT_F32 || out_dtype == DT_BF16));
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
                          .out_dtype = out_dtype,
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
    for (int i = 0; i < n_seqs; i++)
        pairs += attn_pairs(&seqs[i]);
    a.tree = scratch_shared(d, ((size_t)n_seqs + 1) * sizeof *a.tree);
    int64_t units = (int64_t)attn_trees(n_seqs, seqs, a.tree) * n_kv;
    if (units)
        split_run(d, units, 1, pairs * n_heads * (0.07 * head_dim + 1) / (double)units, grad_heads, &a);
}
