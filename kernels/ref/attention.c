// Causal attention over paged keys and values with the online soft-max (Milakov & Gimelshein 2018): one query
// row of one head at a time, ATTN_BLOCK keys a step from position 0, so that a row's bits know nothing of
// pages, batches or chunks.
#include <assert.h>
#include <math.h>

#include "kernels/fmath.h"
#include "kernels/ref/ref.h"

static void cache_store(const struct attn_cache *c, void *base, int64_t i, float f)
{
    if (c->dtype == DT_F32)
        ((float *)base)[i] = f;
    else
        ((uint16_t *)base)[i] = f32_to_bf16(f);
}

static float cache_load(const struct attn_cache *c, const void *base, int64_t i)
{
    return c->dtype == DT_F32 ? ((const float *)base)[i] : bf16_to_f32(((const uint16_t *)base)[i]);
}

static void cache_check(const struct attn_cache *c)
{
    assert(c->dtype == DT_F32 || c->dtype == DT_BF16);
    assert(c->page_tokens > 0 && c->page_tokens % ATTN_BLOCK == 0 && c->n_kv > 0 && c->head_dim > 0);
}

// Offset of the [D, page_tokens] (keys) or [page_tokens, D] (values) part that holds position pos.
static int64_t page_offset(const struct attn_cache *c, const struct attn_seq *s, int64_t pos, int64_t g)
{
    return ((int64_t)s->pages[pos / c->page_tokens] * c->n_kv + g) * c->head_dim * c->page_tokens;
}

void ref_kv_write(struct device *d, const struct attn_cache *c, int n_seqs, const struct attn_seq *seqs,
                  const float *k, int64_t ldk, const float *v, int64_t ldv)
{
    (void)d;
    cache_check(c);
    for (const struct attn_seq *s = seqs; s < seqs + n_seqs; s++)
        for (int64_t i = 0; i < s->n_rows; i++)
            for (int64_t g = 0; g < c->n_kv; g++) {
                int64_t at = page_offset(c, s, s->pos0 + i, g), slot = (s->pos0 + i) % c->page_tokens,
                        dim = c->head_dim;
                for (int64_t j = 0; j < dim; j++) {
                    cache_store(c, c->k, at + j * c->page_tokens + slot,
                                k[(s->row0 + i) * ldk + g * dim + j]);
                    cache_store(c, c->v, at + slot * dim + j, v[(s->row0 + i) * ldv + g * dim + j]);
                }
            }
}

struct softmax {
    float m, l, *o; // running maximum, denominator, output [D]
};

// One step of the online soft-max over the keys of block b that are visible (the first n_keys).
static void attend_block(const struct attn_cache *c, const struct attn_seq *s, int64_t g, int64_t b,
                         int n_keys, const float *q, float scale, struct softmax *r)
{
    int64_t at = page_offset(c, s, b * ATTN_BLOCK, g), slot = b * ATTN_BLOCK % c->page_tokens,
            dim = c->head_dim;
    float p[ATTN_BLOCK], lane[16];
    for (int j = 0; j < ATTN_BLOCK; j++) {
        float dot = 0;
        for (int64_t i = 0; i < dim && j < n_keys; i++)
            dot = fmaf(q[i], cache_load(c, c->k, at + i * c->page_tokens + slot + j), dot);
        p[j] = j < n_keys ? dot * scale : -INFINITY;
    }
    for (int l = 0; l < 16; l++)
        lane[l] = max2(p[l], p[l + 16]);
    float m = max2(r->m, fold16_max(lane)), shrink = fmath_exp(r->m - m);
    for (int j = 0; j < ATTN_BLOCK; j++)
        p[j] = j < n_keys ? fmath_exp(p[j] - m) : 0;
    for (int l = 0; l < 16; l++)
        lane[l] = p[l] + p[l + 16];
    r->m = m;
    r->l = fmaf(r->l, shrink, fold16(lane));
    for (int64_t i = 0; i < dim; i++) {
        float pv = 0;
        for (int j = 0; j < n_keys; j++)
            pv = fmaf(p[j], cache_load(c, c->v, at + (slot + j) * dim + i), pv);
        r->o[i] = fmaf(r->o[i], shrink, pv);
    }
}

void ref_attention(struct device *d, const struct attn_cache *c, int n_heads, float scale, int n_seqs,
                   const struct attn_seq *seqs, const float *q, int64_t ldq, float *out, int64_t ldo,
                   float *lse)
{
    cache_check(c);
    assert(n_heads % c->n_kv == 0);
    float *o = scratch_shared(d, (size_t)c->head_dim * sizeof *o);
    for (const struct attn_seq *s = seqs; s < seqs + n_seqs; s++)
        for (int64_t i = 0; i < s->n_rows; i++)
            for (int h = 0; h < n_heads; h++) {
                int64_t row = s->row0 + i, keys = s->pos0 + i + 1;
                struct softmax r = {.m = -INFINITY, .o = o};
                for (int j = 0; j < c->head_dim; j++)
                    o[j] = 0;
                for (int64_t b = 0; b * ATTN_BLOCK < keys; b++)
                    attend_block(c, s, h / (n_heads / c->n_kv), b,
                                 (int)min_i64(ATTN_BLOCK, keys - b * ATTN_BLOCK),
                                 q + row * ldq + h * c->head_dim, scale, &r);
                for (int j = 0; j < c->head_dim; j++)
                    out[row * ldo + h * c->head_dim + j] = o[j] / r.l;
                if (lse)
                    lse[row * n_heads + h] = r.m + fmath_log(r.l);
            }
}
