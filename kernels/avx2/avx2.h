// The kernels of the class avx2: twins of ref with the same bits.
#ifndef KERNELS_AVX2_AVX2_H
#define KERNELS_AVX2_AVX2_H

#include "kernels/internal.h"

void avx2_weight_pack(struct device *d, enum dtype dtype, int64_t n, int64_t k, const void *src,
                      enum dtype src_dtype, bool transpose, void *dst);
void avx2_gemm(struct device *d, const struct gemm_weight *w, int64_t m, struct rows x, const float *bias,
               bool accumulate, float *y, int64_t ldy);
void avx2_gemm_dw(struct device *d, enum dtype dtype, int64_t m, int64_t n, int64_t k, struct rows dy,
                  struct rows x, float *dw);
void avx2_bias_grad(struct device *d, int64_t m, int64_t n, const float *dy, int64_t lddy, float *db);
void avx2_embed(struct device *d, enum dtype dtype, const void *table, int64_t c, int64_t t,
                const int32_t *ids, float *y);
void avx2_embed_grad(struct device *d, int64_t c, int64_t t, const int32_t *ids, const float *dy,
                     float *dtable);
void avx2_rmsnorm(struct device *d, int64_t t, int64_t c, const float *x, int64_t ldx, const float *w,
                  float eps, enum dtype y_dtype, void *y, int64_t ldy, float *rstd);
void avx2_rmsnorm_grad(struct device *d, int64_t t, int64_t c, const float *x, int64_t ldx, const float *w,
                       float eps, const float *dy, int64_t lddy, bool accumulate, float *dx, int64_t lddx,
                       float *dw);
void avx2_rope(struct device *d, int64_t t, int64_t heads, int64_t head_dim, float *x, int64_t ldx,
               const int32_t *pos, const float *cos, const float *sin, int sign);
void avx2_swiglu(struct device *d, int64_t t, int64_t f, const float *gu, enum dtype y_dtype, void *y,
                 uint16_t *kept);
void avx2_swiglu_grad(struct device *d, int64_t t, int64_t f, enum dtype dtype, const void *gu,
                      const float *dy, void *dgu, void *y);
void avx2_add(struct device *d, int64_t n, const float *x, float *y);
void avx2_round_bf16(struct device *d, int64_t n, float *x);
void avx2_kv_write(struct device *d, const struct attn_cache *c, int n_seqs, const struct attn_seq *seqs,
                   const float *k, int64_t ldk, const float *v, int64_t ldv);
void avx2_attention(struct device *d, const struct attn_cache *c, int n_heads, float scale, int n_seqs,
                    const struct attn_seq *seqs, const float *q, int64_t ldq, enum dtype out_dtype, void *out,
                    int64_t ldo, float *lse);
void avx2_attention_grad(struct device *d, enum dtype dtype, int n_heads, int n_kv, int head_dim, float scale,
                         int n_seqs, const struct attn_seq *seqs, const float *q, int64_t ldq, const float *k,
                         int64_t ldk, const float *v, int64_t ldv, enum dtype out_dtype, const void *out,
                         int64_t ldo, const float *lse, const float *dout, int64_t lddo, float *dq,
                         int64_t lddq, float *dk, int64_t lddk, float *dv, int64_t lddv);
void avx2_logprob(struct device *d, int64_t r, int64_t v, const float *logits, int64_t ld,
                  const float *inv_temp, const int32_t *targets, float *logprob, float *lse, float *entropy);
void avx2_logprob_grad(struct device *d, int64_t r, int64_t v, float *logits, int64_t ld,
                       const float *inv_temp, const int32_t *targets, const float *lse, const float *dlogprob,
                       const float *entropy, const float *dentropy);
void avx2_sample(struct device *d, int64_t r, int64_t v, const float *logits, int64_t ld,
                 const float *inv_temp, const float *uniform, int32_t *token, float *logprob, float *lse);
void avx2_probs(struct device *d, int64_t r, int64_t v, const float *logits, int64_t ld,
                const float *inv_temp, const float *lse, float *p, int64_t ldp);
double avx2_sumsq(struct device *d, int64_t n, const float *x);
void avx2_adamw(struct device *d, int64_t n, float *p, float *m, float *v, const float *g, float gscale,
                float lr, float b1, float b2, float eps, float wd, float bc1, float bc2);
void avx2_fp8_quantize(struct device *d, int64_t n, int64_t k, const float *w, uint8_t *q, float *scales);
void avx2_fp8_dequantize(struct device *d, int64_t n, int64_t k, const uint8_t *q, const float *scales,
                         float *w);
void avx2_to_bf16(struct device *d, int64_t n, const float *x, uint16_t *y);
void avx2_to_bf16_rows(struct device *d, int64_t t, int64_t c, const float *x, int64_t ldx, uint16_t *y,
                       int64_t ldy);
void avx2_from_bf16(struct device *d, int64_t n, const uint16_t *x, float *y);

#endif
