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
    const float *q, *k, *v, *out, *lse, *dout;
    int64_t ldq, ldk, ldv, ldo, lddo, lddq, lddk, lddv;
    float *dq, *dk, *dv;
};

// p[j] and ds[j] of query i of head h and the keys j0 … j0+31; what is masked or past the end is 0.
static void row_block(const struct attn_grad *a, const struct attn_seq *s, int h, int64_t i, int64_t j0,
                      float *p, float *ds)
{
    int64_t row = s->row0 + i, g = h / (a->n_heads / a->n_kv), dim = a->dim;
    const float *q = a->q + row * a->ldq + h * dim, *dout = a->dout + row * a->lddo + h * dim,
                *out = a->out + row * a->ldo + h * dim;
    float lane[16] = {0};
    for (int64_t x = 0; x < pad16(dim); x++)
        lane[x % 16] = fmaf(x < dim ? dout[x] : 0, x < dim ? out[x] : 0, lane[x % 16]);
    float delta = fold16(lane);
    for (int64_t j = j0; j < j0 + ATTN_BLOCK; j++, p++, ds++) {
        *p = *ds = 0;
        if (j > i)
            continue;
        const float *k = a->k + (s->row0 + j) * a->ldk + g * dim,
                    *v = a->v + (s->row0 + j) * a->ldv + g * dim;
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

// One key/value head of one sequence.
static void head_grad(const struct attn_grad *a, const struct attn_seq *s, int g)
{
    int group = a->n_heads / a->n_kv, dim = a->dim;
    float p[ATTN_BLOCK], ds[ATTN_BLOCK];
    clear(a->dq, a->lddq, s->row0, s->n_rows, (int64_t)g * group * dim, (int64_t)group * dim);
    clear(a->dk, a->lddk, s->row0, s->n_rows, (int64_t)g * dim, dim);
    clear(a->dv, a->lddv, s->row0, s->n_rows, (int64_t)g * dim, dim);
    for (int64_t j0 = 0; j0 < s->n_rows; j0 += ATTN_BLOCK)
        for (int h = g * group; h < (g + 1) * group; h++)
            for (int64_t i = j0; i < s->n_rows; i++) {
                row_block(a, s, h, i, j0, p, ds);
                int64_t row = s->row0 + i;
                for (int64_t j = 0; j < min_i64(ATTN_BLOCK, s->n_rows - j0); j++)
                    for (int64_t x = 0; x < dim; x++) {
                        int64_t key = s->row0 + j0 + j, at_h = h * dim + x, at_g = g * dim + x;
                        float *dq = a->dq + row * a->lddq + at_h;
                        float *dk = a->dk + key * a->lddk + at_g, *dv = a->dv + key * a->lddv + at_g;
                        *dq = fmaf(ds[j], a->k[key * a->ldk + at_g], *dq);
                        *dk = fmaf(ds[j], a->q[row * a->ldq + at_h], *dk);
                        *dv = fmaf(p[j], a->dout[row * a->lddo + at_h], *dv);
                    }
            }
}

static void grad_heads(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct attn_grad *a = ctx;
    for (int64_t i = begin; i < end; i++)
        head_grad(a, &a->seqs[i / a->n_kv], (int)(i % a->n_kv));
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
                        int64_t ldk, const float *v, int64_t ldv, const float *out, int64_t ldo,
                        const float *lse, const float *dout, int64_t lddo, float *dq, int64_t lddq, float *dk,
                        int64_t lddk, float *dv, int64_t lddv)
{
    assert(n_kv > 0 && n_heads % n_kv == 0);
    struct attn_grad a = {.n_heads = n_heads,
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
    int64_t rows = 0, kv = (int64_t)n_kv * head_dim;
    for (int i = 0; i < n_seqs; i++) {
        assert(seqs[i].pos0 == 0);
        rows = max_i64(rows, seqs[i].row0 + seqs[i].n_rows);
    }
    float *rounded = scratch_shared(d, (size_t)(2 * rows * kv) * sizeof *rounded);
    round_rows(dtype, n_kv, head_dim, n_seqs, seqs, k, ldk, rounded);
    round_rows(dtype, n_kv, head_dim, n_seqs, seqs, v, ldv, rounded + rows * kv);
    a.k = rounded;
    a.v = rounded + rows * kv;
    a.ldk = a.ldv = kv;
    split_run(d, (int64_t)n_seqs * n_kv, 1, 1e6, grad_heads, &a);
}
