// The kernels of the class avx512bf16: products of bf16 pairs by vdpbf16ps. All else is avx512's.
//
// Order of its own, which kernels.h leaves to the class: the chain goes over pairs, acc = dp(x_2i x_2i+1, w_2i w_2i+1, acc)
// for i ascending from acc = 0; an odd last element is paired with 0. FP8 codes are widened to bf16 (exact) and go the same
// way inside each block of 128; gemm_dw pairs the rows 2i and 2i+1 of the batch.
#ifndef KERNELS_AVX512BF16_AVX512BF16_H
#define KERNELS_AVX512BF16_AVX512BF16_H

#include "kernels/avx512/avx512.h"

size_t avx512bf16_weight_bytes(enum dtype dtype, int64_t n, int64_t k);
void avx512bf16_weight_pack(struct device *d, enum dtype dtype, int64_t n, int64_t k, const void *src,
                            enum dtype src_dtype, bool transpose, void *dst);
void avx512bf16_gemm(struct device *d, const struct gemm_weight *w, int64_t m, struct rows x,
                     const float *bias, bool accumulate, float *y, int64_t ldy);
void avx512bf16_gemm_dw(struct device *d, enum dtype dtype, int64_t m, int64_t n, int64_t k, struct rows dy,
                        struct rows x, float *dw);

// Bits of avx512's.
void avx512bf16_swiglu(struct device *d, int64_t t, int64_t f, const float *gu, enum dtype y_dtype, void *y,
                       uint16_t *kept);
void avx512bf16_swiglu_grad(struct device *d, int64_t t, int64_t f, enum dtype dtype, const void *gu,
                            const float *dy, void *dgu, void *y);

// Packed BF16 and FP8: [ceil(n / PANEL)][ceil(k / 2)][PANEL pairs]. A pair-row of bf16 is PANEL * 2 halves in column order. A
// pair-row of FP8 is 64 codes in the order that byte unpacking turns into two vectors of 16 columns: code j (0 or 1) of column c
// lies at c % 16 / 4 * 16 + c / 16 * 8 + c % 4 * 2 + j.

// ---- attention -------------------------------------------------------------------------------------------------------
// BF16 pages with an even D and FP8 pages with D a multiple of 32 go by pairs; all other caches are avx512's, bits and bytes.
//
// Pages: k of a page and head is [D / 2][page_tokens] pairs (k_2i, k_2i+1) of one token, v is [page_tokens / 2][D] pairs of the
// values of two tokens (v_2t, v_2t+1) in one column. A pair of bf16 is 32 bits. FP8: every 32 pairs of a pair-row are 64 codes in the order
// of the packed weights above.
//
// Order: keys go in steps of ATTN_STEP from position 0, each step being, with c = scale * log2 e rounded to f32,
//   s = chain over the pairs of D from 0 of dp(bf16(q), k), FP8: times k_scale;  m' = max(m, all visible s)
//   p = exp2(fma(s, c, -(m' * c)));  e = exp2((m - m') * c)     (exp2: attention.h)
//   l = chain over the pairs of keys from l * e of dp(bf16(p), 1);  o = chain over the pairs of keys from o * e of dp(bf16(p), v),
//   FP8: of dp(bf16(p * v_scale), v);  at the end out = o * (1 / l), lse = fma(m, scale, log l).
// Keys 2t and 2t+1 are a pair; a masked key has p = 0 and v = 0 in its half. The soft-max is in f32; q and p are rounded to bf16.
//
// Gradient: k and v are what the cache gives back; they, q, dout, P and dS are rounded to bf16.
//   P = exp2(fma(chain over the pairs of D (q, k), c, -(lse * log2 e))), 0 where masked
//   dS = P * fma(chain over the pairs of D (dout, v), scale, -(sum16(dout * out) * scale))
//   dq_i = chain over the pairs of keys (2t, 2t+1) (dS, k);  dk_j, dv_j = sum over the heads of the group, in order, of the chain over
//   the pairs of rows (2t, 2t+1) (dS, q), (P, dout). Pairs count from the start of the sequence; a branch's follow those of its root
//   and of the branches before it in the same chain, and the second half of an odd last one is 0.
// scale > 0.
#define ATTN_STEP 64

static inline bool avx512bf16_pairs(enum dtype t, int64_t dim)
{
    return (t == DT_BF16 && dim % 2 == 0) || (t == DT_FP8 && dim % 32 == 0);
}

void avx512bf16_kv_write(struct device *d, const struct attn_cache *c, int n_seqs,
                         const struct attn_seq *seqs, const float *k, int64_t ldk, const float *v,
                         int64_t ldv);
void avx512bf16_attention(struct device *d, const struct attn_cache *c, int n_heads, float scale, int n_seqs,
                          const struct attn_seq *seqs, const float *q, int64_t ldq, enum dtype out_dtype,
                          void *out, int64_t ldo, float *lse);
void avx512bf16_attention_grad(struct device *d, enum dtype dtype, int n_heads, int n_kv, int head_dim,
                               float scale, int n_seqs, const struct attn_seq *seqs, const float *q,
                               int64_t ldq, const float *k, int64_t ldk, const float *v, int64_t ldv,
                               enum dtype out_dtype, const void *out, int64_t ldo, const float *lse,
                               const float *dout, int64_t lddo, float *dq, int64_t lddq, float *dk,
                               int64_t lddk, float *dv, int64_t lddv);

#endif
