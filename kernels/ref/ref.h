// The reference kernels: every op of kernels.h in plain C, in the order the header documents. Slow, and the
// truth.
#ifndef KERNELS_REF_REF_H
#define KERNELS_REF_REF_H

#include "kernels/internal.h"

size_t ref_weight_bytes(enum dtype dtype, int64_t n, int64_t k);
void ref_weight_pack(struct device *d, enum dtype dtype, int64_t n, int64_t k, const void *src,
                     enum dtype src_dtype, bool transpose, void *dst);
void ref_gemm(struct device *d, const struct gemm_weight *w, int64_t m, struct rows x, const float *bias,
              bool accumulate, float *y, int64_t ldy);
void ref_gemm_dw(struct device *d, enum dtype dtype, int64_t m, int64_t n, int64_t k, struct rows dy,
                 struct rows x, float *dw);
void ref_bias_grad(struct device *d, int64_t m, int64_t n, const float *dy, int64_t lddy, float *db);
void ref_embed(struct device *d, enum dtype dtype, const void *table, int64_t c, int64_t t,
               const int32_t *ids, float *y);
void ref_embed_grad(struct device *d, int64_t c, int64_t t, const int32_t *ids, const float *dy,
                    float *dtable);
void ref_rmsnorm(struct device *d, int64_t t, int64_t c, const float *x, int64_t ldx, const float *w,
                 float eps, enum dtype y_dtype, void *y, int64_t ldy, float *rstd);
void ref_rmsnorm_grad(struct device *d, int64_t t, int64_t c, const float *x, int64_t ldx, const float *w,
                      float eps, const float *dy, int64_t lddy, bool accumulate, float *dx, int64_t lddx,
                      float *dw);
void ref_rope(struct device *d, int64_t t, int64_t heads, int64_t head_dim, float *x, int64_t ldx,
              const int32_t *pos, const float *cos, const float *sin, int sign);
void ref_swiglu(struct device *d, int64_t t, int64_t f, const float *gu, enum dtype y_dtype, void *y,
                uint16_t *kept);
void ref_swiglu_grad(struct device *d, int64_t t, int64_t f, enum dtype dtype, const void *gu,
                     const float *dy, void *dgu, void *y);
void ref_add(struct device *d, int64_t n, const float *x, float *y);
void ref_round_bf16(struct device *d, int64_t n, float *x);
void ref_kv_write(struct device *d, const struct attn_cache *c, int n_seqs, const struct attn_seq *seqs,
                  const float *k, int64_t ldk, const float *v, int64_t ldv);
void ref_attention(struct device *d, const struct attn_cache *c, int n_heads, float scale, int n_seqs,
                   const struct attn_seq *seqs, const float *q, int64_t ldq, enum dtype out_dtype, void *out,
                   int64_t ldo, float *lse);
void ref_attention_grad(struct device *d, enum dtype dtype, int n_heads, int n_kv, int head_dim, float scale,
                        int n_seqs, const struct attn_seq *seqs, const float *q, int64_t ldq, const float *k,
                        int64_t ldk, const float *v, int64_t ldv, enum dtype out_dtype, const void *out,
                        int64_t ldo, const float *lse, const float *dout, int64_t lddo, float *dq,
                        int64_t lddq, float *dk, int64_t lddk, float *dv, int64_t lddv);
void ref_logprob(struct device *d, int64_t r, int64_t v, const float *logits, int64_t ld,
                 const float *inv_temp, const int32_t *targets, float *logprob, float *lse, float *entropy);
void ref_logprob_grad(struct device *d, int64_t r, int64_t v, float *logits, int64_t ld,
                      const float *inv_temp, const int32_t *targets, const float *lse, const float *dlogprob,
                      const float *entropy, const float *dentropy);
void ref_sample(struct device *d, int64_t r, int64_t v, const float *logits, int64_t ld,
                const float *inv_temp, const float *uniform, int32_t *token, float *logprob, float *lse);
void ref_probs(struct device *d, int64_t r, int64_t v, const float *logits, int64_t ld, const float *inv_temp,
               const float *lse, float *p, int64_t ldp);
double ref_sumsq(struct device *d, int64_t n, const float *x);
void ref_adamw(struct device *d, int64_t n, float *p, float *m, float *v, const float *g, float gscale,
               float lr, float b1, float b2, float eps, float wd, float bc1, float bc2);
void ref_fp8_quantize(struct device *d, int64_t n, int64_t k, const float *w, uint8_t *q, float *scales);
void ref_fp8_dequantize(struct device *d, int64_t n, int64_t k, const uint8_t *q, const float *scales,
                        float *w);
void ref_to_bf16(struct device *d, int64_t n, const float *x, uint16_t *y);
void ref_to_bf16_rows(struct device *d, int64_t t, int64_t c, const float *x, int64_t ldx, uint16_t *y,
                      int64_t ldy);
void ref_from_bf16(struct device *d, int64_t n, const uint16_t *x, float *y);

// Preconditions of a cache; and y [D] = what is read back of the key or value x [D] of one token and head.
void ref_cache_check(const struct attn_cache *c);
void ref_cache_round(enum dtype t, int64_t dim, const float *x, float *y);

// ---- sum16
// -------------------------------------------------------------------------------------------------------
// Lane l of a row's 16 partial results; both folds destroy a.

static inline float fold16(float a[16])
{
    for (int width = 8; width; width /= 2)
        for (int l = 0; l < width; l++)
            a[l] = a[l] + a[l + width];
    return a[0];
}
// a if a > b, else b (so NaN in a yields b): what the vector instruction computes.
static inline float max2(float a, float b)
{
    return a > b ? a : b;
}
static inline float fold16_max(float a[16])
{
    for (int width = 8; width; width /= 2)
        for (int l = 0; l < width; l++)
            a[l] = max2(a[l], a[l + width]);
    return a[0];
}
static inline int64_t pad16(int64_t n)
{
    return (n + 15) / 16 * 16;
}
// Element i of an array of F32 or BF16; writing rounds to nearest even.
static inline float ref_load(enum dtype t, const void *p, int64_t i)
{
    return t == DT_F32 ? ((const float *)p)[i] : bf16_to_f32(((const uint16_t *)p)[i]);
}
static inline void ref_store(enum dtype t, void *p, int64_t i, float x)
{
    if (t == DT_F32)
        ((float *)p)[i] = x;
    else
        ((uint16_t *)p)[i] = f32_to_bf16(x);
}
static inline float round_to_bf16(float x)
{
    return bf16_to_f32(f32_to_bf16(x));
}

#endif
