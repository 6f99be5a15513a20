// Gradient of causal attention: P is recomputed from the stored lse (Dao 2022, algorithm 4), block of keys by
// block of keys.
#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/fmath.h"
#include "kernels/ref/ref.h"

struct attn_grad {
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

// p[j] and ds[j] of row i of s, head h, and the keys j0 … j0+31 (positions), which are rows of `keys`; what is masked or past the
// end is 0.
static void row_block(const struct attn_grad *a, const struct attn_seq *s, const struct attn_seq *keys, int h,
                      int64_t i, int64_t j0, float *p, float *ds)
{
    int64_t row = s->row0 + i, g = h / (a->n_heads / a->n_kv), dim = a->dim;
    const float *q = a->q + row * a->ldq + h * dim, *dout = a->dout + row * a->lddo + h * dim;
    float lane[16] = {0};
    for (int64_t x = 0; x < pad16(dim); x++)
        lane[x % 16] =
            fmaf(x < dim ? dout[x] : 0,
                 x < dim ? ref_load(a->out_dtype, a->out, row * a->ldo + h * dim + x) : 0, lane[x % 16]);
    float delta = fold16(lane);
    for (int64_t j = j0; j < j0 + ATTN_BLOCK; j++, p++, ds++) {
        *p = *ds = 0;
        if (j > s->pos0 + i)
            continue;
        int64_t key = keys->row0 + j - keys->pos0;
        const float *k = a->k + key * a->ldk + g * dim, *v = a->v + key * a->ldv + g * dim;
        float score = 0, dp = 0;
        for (int64_t x = 0; x < dim; x++) {
            score = fmaf(q[x], k[x], score);
            dp = fmaf(dout[x], v[x], dp);
        }
        *p = fmath_exp(score * a->scale - a->lse[row * a->n_heads + h]);
        *ds = (*p * (dp - delta)) * a->scale;
    }
}

static void clear(float *x, int64_t ld, int64_t row0, int64_t rows, int64_t column, int64_t dim)
{
    for (int64_t i = 0; i < rows; i++)
        memset(x + (row0 + i) * ld + column, 0, (size_t)dim * sizeof *x);
}

// What the rows of s that are not before j0 give to and take from the keys j0 … of `keys`, in head h.
static void block_grad(const struct attn_grad *a, const struct attn_seq *s, const struct attn_seq *keys,
                       int h, int64_t j0)
{
    float p[ATTN_BLOCK], ds[ATTN_BLOCK];
    int64_t dim = a->dim, g = h / (a->n_heads / a->n_kv),
            n_keys = min_i64(ATTN_BLOCK, keys->pos0 + keys->n_rows - j0);
    for (int64_t i = max_i64(0, j0 - s->pos0); i < s->n_rows; i++) {
        row_block(a, s, keys, h, i, j0, p, ds);
        int64_t row = s->row0 + i;
        for (int64_t j = 0; j < n_keys; j++)
            for (int64_t x = 0; x < dim; x++) {
                int64_t key = keys->row0 + j0 - keys->pos0 + j, at_h = h * dim + x, at_g = g * dim + x;
                float *dq = a->dq + row * a->lddq + at_h;
                float *dk = a->dk + key * a->lddk + at_g, *dv = a->dv + key * a->lddv + at_g;
                *dq = fmaf(ds[j], a->k[key * a->ldk + at_g], *dq);
                *dk = fmaf(ds[j], a->q[row * a->ldq + at_h], *dk);
                *dv = fmaf(p[j], a->dout[row * a->lddo + at_h], *dv);
            }
    }
}

// One key/value head of a tree. The root's keys come first, so that a branch's queries meet theirs in order.
static void head_grad(const struct attn_grad *a, int tree, int g)
{
    const struct attn_seq *root = a->seqs + a->tree[tree], *end = a->seqs + a->tree[tree + 1];
    int group = a->n_heads / a->n_kv, dim = a->dim;
    for (const struct attn_seq *s = root; s < end; s++) {
        clear(a->dq, a->lddq, s->row0, s->n_rows, (int64_t)g * group * dim, (int64_t)group * dim);
        clear(a->dk, a->lddk, s->row0, s->n_rows, (int64_t)g * dim, dim);
        clear(a->dv, a->lddv, s->row0, s->n_rows, (int64_t)g * dim, dim);
    }
    for (const struct attn_seq *keys = root; keys < end; keys++)
        for (int64_t j0 = keys->pos0; j0 < keys->pos0 + keys->n_rows; j0 += ATTN_BLOCK)
            for (int h = g * group; h < (g + 1) * group; h++) {
                block_grad(a, keys, keys, h, j0);
                for (const struct attn_seq *s = root + 1; s < end && keys == root; s++)
                    if (j0 < s->pos0)
                        block_grad(a, s, root, h, j0);
            }
}

static void grad_heads(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct attn_grad *a = ctx;
    for (int64_t i = begin; i < end; i++)
        head_grad(a, (int)(i / a->n_kv), (int)(i % a->n_kv));
}

// Rows of x [T, G*D] at the sequences' rows as the cache would hold them → y [T, G*D].
static void round_rows(enum dtype t, int n_kv, int dim, int n_seqs, const struct attn_seq *seqs,
                       const float *x, int64_t ld, float *y)
{
    for (const struct attn_seq *s = seqs; s < seqs + n_seqs; s++)
        for (int64_t i = s->row0; i < s->row0 + s->n_rows; i++)
            for (int64_t g = 0; g < n_kv; g++)
                ref_cache_round(t, dim, x + i * ld + g * dim, y + (i * n_kv + g) * dim);
}

void ref_attention_grad(struct device *d, enum dtype dtype, int n_heads, int n_kv, int head_dim, float scale,
                        int n_seqs, const struct attn_seq *seqs, const float *q, int64_t ldq, const float *k,
                        int64_t ldk, const float *v, int64_t ldv, enum dtype out_dtype, const void *out,
                        int64_t ldo, const float *lse, const float *dout, int64_t lddo, float *dq,
                        int64_t lddq, float *dk, int64_t lddk, float *dv, int64_t lddv)
{
    assert(n_kv > 0 && n_heads % n_kv == 0 && (out_dtype == DT_F32 || out_dtype == DT_BF16));
    struct attn_grad a = {.n_heads = n_heads,
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
    int64_t rows = 0, kv = (int64_t)n_kv * head_dim;
    for (int i = 0; i < n_seqs; i++)
        rows = max_i64(rows, seqs[i].row0 + seqs[i].n_rows);
    float *rounded =
        scratch_shared(d, (size_t)(2 * rows * kv) * sizeof *rounded + ((size_t)n_seqs + 1) * sizeof *a.tree);
    a.tree = (int32_t *)(rounded + 2 * rows * kv);
    int n_trees = attn_trees(n_seqs, seqs, a.tree);
    round_rows(dtype, n_kv, head_dim, n_seqs, seqs, k, ldk, rounded);
    round_rows(dtype, n_kv, head_dim, n_seqs, seqs, v, ldv, rounded + rows * kv);
    a.k = rounded;
    a.v = rounded + rows * kv;
    a.ldk = a.ldv = kv;
    split_run(d, (int64_t)n_trees * n_kv, 1, 1e6, grad_heads, &a);
}
