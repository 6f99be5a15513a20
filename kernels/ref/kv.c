// Keys and values into their pages, and back out of them for the gradient: the number formats of the cache (struct attn_cache).
#include <assert.h>
#include <math.h>

#include "kernels/ref/ref.h"

// FP8: the scale of the D numbers of one token and head.
static float row_scale(int64_t dim, const float *x)
{
    float top = 0;
    for (int64_t i = 0; i < dim; i++)
        top = max2(fabsf(x[i]), top);
    return max2(top, 1e-12f) / 448;
}

static void cache_store(enum dtype t, void *base, int64_t i, float f, float scale)
{
    if (t == DT_F32)
        ((float *)base)[i] = f;
    else if (t == DT_BF16)
        ((uint16_t *)base)[i] = f32_to_bf16(f);
    else
        ((uint8_t *)base)[i] = f32_to_fp8(f / scale);
}

// Row i of sequence s, head g.
static void write_row(const struct attn_cache *c, const struct attn_seq *s, int64_t i, int64_t g,
                      const float *k, const float *v)
{
    int64_t pos = s->pos0 + i, slot = pos % c->page_tokens, dim = c->head_dim;
    int64_t part = (int64_t)s->pages[pos / c->page_tokens] * c->n_kv + g, at = part * dim * c->page_tokens;
    float k_scale = 1, v_scale = 1;
    if (c->dtype == DT_FP8) {
        c->k_scale[part * c->page_tokens + slot] = k_scale = row_scale(dim, k);
        c->v_scale[part * c->page_tokens + slot] = v_scale = row_scale(dim, v);
    }
    for (int64_t j = 0; j < dim; j++) {
        cache_store(c->dtype, c->k, at + j * c->page_tokens + slot, k[j], k_scale);
        cache_store(c->dtype, c->v, at + slot * dim + j, v[j], v_scale);
    }
}

void ref_kv_write(struct device *d, const struct attn_cache *c, int n_seqs, const struct attn_seq *seqs,
                  const float *k, int64_t ldk, const float *v, int64_t ldv)
{
    (void)d;
    ref_cache_check(c);
    for (const struct attn_seq *s = seqs; s < seqs + n_seqs; s++)
        for (int64_t i = 0; i < s->n_rows; i++)
            for (int64_t g = 0; g < c->n_kv; g++)
                write_row(c, s, i, g, k + (s->row0 + i) * ldk + g * c->head_dim,
                          v + (s->row0 + i) * ldv + g * c->head_dim);
}

void ref_cache_check(const struct attn_cache *c)
{
    assert(c->dtype == DT_F32 || c->dtype == DT_BF16 || c->dtype == DT_FP8);
    assert(c->page_tokens > 0 && c->page_tokens % ATTN_BLOCK == 0 && c->n_kv > 0 && c->head_dim > 0);
    assert(c->dtype != DT_FP8 || (c->k_scale && c->v_scale));
}

void ref_cache_round(enum dtype t, int64_t dim, const float *x, float *y)
{
    float scale = t == DT_FP8 ? row_scale(dim, x) : 1;
    for (int64_t i = 0; i < dim; i++)
        y[i] = t == DT_F32    ? x[i]
               : t == DT_BF16 ? round_to_bf16(x[i])
                              : fp8_to_f32(f32_to_fp8(x[i] / scale)) * scale;
}
