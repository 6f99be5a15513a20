// Causal attention over paged keys and values with the online soft-max (Milakov & Gimelshein 2018): one query
// row of one head at a time, ATTN_BLOCK keys a step from position 0, so that a row's bits know nothing of
// pages, batches or chunks.
#include <assert.h>
#include <math.h>

#include "kernels/fmath.h"
#include "kernels/ref/ref.h"

static float cache_load(const struct attn_cache *c, const void *base, int64_t i)
{
    return c->dtype == DT_F32    ? ((const float *)base)[i]
           : c->dtype == DT_BF16 ? bf16_to_f32(((const uint16_t *)base)[i])
                                 : fp8_to_f32(((const uint8_t *)base)[i]);
}

struct softmax {
    float m, l, *o; // running maximum, denominator, output [D]
};

// One step of the online soft-max over the keys of block b that are visible (the first n_keys).
static void attend_block(const struct attn_cache *c, const struct attn_seq *s, int64_t g, int64_t b,
                         int n_keys, const float *q, float scale, struct softmax *r)
{
    int64_t slot = b * ATTN_BLOCK % c->page_tokens, dim = c->head_dim;
    int64_t part = (int64_t)s->pages[b * ATTN_BLOCK / c->page_tokens] * c->n_kv + g,
            at = part * dim * c->page_tokens;
    bool scaled = c->dtype == DT_FP8;
    float p[ATTN_BLOCK], lane[16];
    for (int j = 0; j < ATTN_BLOCK; j++) {
        float dot = 0;
        for (int64_t i = 0; i < dim && j < n_keys; i++)
            dot = fmaf(q[i], cache_load(c, c->k, at + i * c->page_tokens + slot + j), dot);
        if (scaled && j < n_keys)
            dot = dot * c->k_scale[part * c->page_tokens + slot + j];
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
    for (int j = 0; scaled && j < n_keys; j++)
        p[j] = p[j] * c->v_scale[part * c->page_tokens + slot + j];
    for (int64_t i = 0; i < dim; i++) {
        float pv = 0;
        for (int j = 0; j < n_keys; j++)
            pv = fmaf(p[j], cache_load(c, c->v, at + (slot + j) * dim + i), pv);
        r->o[i] = fmaf(r->o[i], shrink, pv);
    }
}

void ref_attention(struct device *d, const struct attn_cache *c, int n_heads, float scale, int n_seqs,
                   const struct attn_seq *seqs, const float *q, int64_t ldq, enum dtype out_dtype, void *out,
                   int64_t ldo, float *lse)
{
    ref_cache_check(c);
    assert(n_heads % c->n_kv == 0 && (out_dtype == DT_F32 || out_dtype == DT_BF16));
    float *o = scratch_shared(d, (size_t)c->head_dim * sizeof *o);
    for (const struct attn_seq *s = seqs; s < seqs + n_seqs; s++) {
        assert(s->n_rows >= 1);
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
                    ref_store(out_dtype, out, row * ldo + h * c->head_dim + j, o[j] / r.l);
                if (lse)
                    lse[row * n_heads + h] = r.m + fmath_log(r.l);
            }
    }
}
