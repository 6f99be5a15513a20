// The op table: every array operation of ooze, its formula, shapes, dtypes and order of accumulation. This header
// is the manual. ref/ implements every op in plain C; avx2/, avx512/, … overwrite fields with faster twins that
// must agree with ref (tests/kernels).
//
// Glossary: T rows (tokens), C hidden, H query heads, G key/value heads, D head size, F feed-forward size,
// V vocabulary, N outputs, K inputs. Row-major; rows are contiguous unless a stride is given. "f32" is float.
//
// Order of accumulation (contract 3: the bits of a row depend on nothing but the row)
//   chain(k)  acc = fma(a_k, b_k, acc) for k ascending from acc = 0: one rounding a step. GEMM over K, attention
//             over D and over the keys of a block.
//   sum16     16 partial sums, lane l takes elements l, l+16, l+32, … in order, then lanes fold 8, 4, 2, 1
//             (lane l += lane l + width): norms, soft-max denominators. Elements beyond the end count as the
//             identity (0, or -inf for max16). A sum of products is a chain in each lane.
//   Formulas are evaluated as ref writes them; max(a, b) is a > b ? a : b.
//   Work is split among threads by output only, never inside a reduction, except in the fixed chunks that an op
//   names. Which NaN a NaN result is (payload, sign) is nobody's promise.
// Preconditions are asserted; aliasing is allowed only where an op says so. Any op may be called from one thread
// at a time per device.
#ifndef KERNELS_KERNELS_H
#define KERNELS_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/device.h"

#define FP8_BLOCK   128  // FP8 weights: one scale per 128 x 128 block
#define ATTN_BLOCK  32   // keys per step of the online soft-max from the sequence's start; see ATTN_STEP, too
#define VOCAB_CHUNK 4096 // soft-max statistics over the vocabulary go chunk by chunk
#define SUMSQ_CHUNK 16384

#define SAMPLE_RUN    256  // elements whose probabilities are summed together in the search for a draw
#define SAMPLE_CHUNKS 4096 // VOCAB_CHUNKs of the largest vocabulary to sample from

// A weight matrix W [n, k] packed for one device and class. The layout is private to the class.
struct gemm_weight {
    enum dtype dtype; // DT_F32, DT_BF16 or DT_FP8
    int64_t n, k;
    void *data; // weight_bytes(dtype, n, k) bytes from device_alloc or inside such a block, 64-byte aligned
    float *scales; // DT_FP8: [ceil(n/128), ceil(k/128)], else NULL
};

// Rows of an operand of a product: [rows, columns] with stride ld (elements), F32, or BF16 where the product rounds to bf16 anyway: then
// whoever made the rows has rounded them (RNE), and the bits of the product are the same: results of arithmetic are no subnormals.
struct rows {
    enum dtype dtype; // DT_F32 or DT_BF16
    const void *at;
    int64_t ld;
};
static inline struct rows rows_of(enum dtype dtype, const void *at, int64_t ld)
{
    return (struct rows){dtype, at, ld};
}
static inline struct rows rows_f32(const float *at, int64_t ld)
{
    return rows_of(DT_F32, at, ld);
}
static inline struct rows rows_bf16(const uint16_t *at, int64_t ld)
{
    return rows_of(DT_BF16, at, ld);
}
// Rows of the same operand from column c on.
static inline struct rows rows_from(struct rows r, int64_t c)
{
    return rows_of(r.dtype, (const char *)r.at + c * (int64_t)dtype_bytes(r.dtype), r.ld);
}
// What activations are handed over in to products with weights of this dtype.
static inline enum dtype rows_dtype(enum dtype weights)
{
    return weights == DT_F32 ? DT_F32 : DT_BF16;
}

// One sequence of a batch for attention: rows [row0, row0 + n_rows) hold the queries at positions pos0, pos0+1, …;
// the query at position p attends keys 0 … p. Key j lives in page pages[j / page_tokens], slot j % page_tokens. n_rows >= 1 (kv_write
// also takes 0): attention asks for the first keys of the sequence after the one at hand.
struct attn_seq {
    int32_t row0, n_rows, pos0;
    const int32_t *pages;
};

// Paged keys and values of one layer. page_tokens is a multiple of ATTN_BLOCK.
//   k: page p, kv head g: [D, page_tokens] at element (p * G + g) * D * page_tokens: keys transposed
//   v: page p, kv head g: [page_tokens, D] at the same element
//   k_scale, v_scale: page p, kv head g: [page_tokens] at element (p * G + g) * page_tokens
// F32 holds the numbers, BF16 rounds them (RNE). FP8 (E4M3) has a scale for each token and kv head, for its key and its
// value: scale = max(amax, 1e-12) / 448 over the D numbers, code = fp8(x / scale), and what is read is code * scale.
// Which place inside a page and kv head an element has is a class's own matter: classes from avx512bf16 on order BF16 and FP8
// pages otherwise (avx512bf16/avx512bf16.h). Pages are the size above in every class.
struct attn_cache {
    enum dtype dtype; // DT_F32, DT_BF16 or DT_FP8
    int32_t page_tokens, n_kv, head_dim;
    void *k, *v;              // from device_alloc: 64-byte aligned
    float *k_scale, *v_scale; // DT_FP8, else NULL
};

struct kernels {
    // ---- weights ---------------------------------------------------------------------------------------------
    // Bytes of a packed W [n, k].
    size_t (*weight_bytes)(enum dtype dtype, int64_t n, int64_t k);
    // Packs src [n, k] (transpose: src is [k, n]) into dst. src_dtype F32 → F32 | BF16 (RNE); BF16 → BF16 | F32;
    // FP8 → FP8 (scales are the caller's, kept beside in gemm_weight.scales; transpose not allowed).
    // Outputs go block by block: rows [r, n) of W, r a multiple of FP8_BLOCK, lie packed at weight_bytes(dtype, r, k) of
    // dst, as they would on their own; so a matrix can be packed in pieces (model/loading.c).
    void (*weight_pack)(struct device *d, enum dtype dtype, int64_t n, int64_t k, const void *src,
                        enum dtype src_dtype, bool transpose, void *dst);

    // ---- GEMM ------------------------------------------------------------------------------------------------
    // s = sum_k x[m,k] W[n,k] + bias[n];  y[m,n] = accumulate ? y[m,n] + s : s
    //   x [M, K] F32, or with BF16 and FP8 weights BF16; y [M, N] f32 stride ldy; bias [N] f32 or NULL. M >= 0.
    //   F32:  chain(k) on f32.
    //   BF16: x rounded to bf16, products of bf16 widened to f32, chain(k).
    //   FP8:  x rounded to bf16; per 128-wide K block b: t_b = chain(k in b) over widened codes;
    //         acc = fma(t_b, scale[n/128, b], acc) for b ascending.
    //   Classes from avx512bf16 on have their own fixed order for BF16 and FP8: avx512bf16/avx512bf16.h, amx/amx.h.
    void (*gemm)(struct device *d, const struct gemm_weight *w, int64_t m, struct rows x, const float *bias,
                 bool accumulate, float *y, int64_t ldy);
    // Weight gradients: dw[n,k] += chain(m)(dy[m,n], x[m,k]): the chain starts at 0 and its result is added once.
    //   dy [M, N], x [M, K]; dw [N, K] f32. DT_F32: both F32. DT_BF16: either of them F32 or BF16, and rounded to bf16 if it is not (f32
    //   accumulation; classes from avx512bf16 on: their own fixed order).
    void (*gemm_dw)(struct device *d, enum dtype dtype, int64_t m, int64_t n, int64_t k, struct rows dy,
                    struct rows x, float *dw);
    // db[n] += dy[m,n], m ascending
    void (*bias_grad)(struct device *d, int64_t m, int64_t n, const float *dy, int64_t lddy, float *db);

    // ---- embedding -------------------------------------------------------------------------------------------
    // y[t,:] = table[ids[t],:]   table [V, C] dtype F32 | BF16 (row-major, not packed); ids in [0, V)
    void (*embed)(struct device *d, enum dtype dtype, const void *table, int64_t c, int64_t t,
                  const int32_t *ids, float *y);
    // dtable[ids[t],:] += dy[t,:], t ascending
    void (*embed_grad)(struct device *d, int64_t c, int64_t t, const int32_t *ids, const float *dy,
                       float *dtable);

    // ---- norm, rope, activation ------------------------------------------------------------------------------
    // RMSNorm (Zhang & Sennrich 2019): r = 1 / sqrt(sum16(x^2) / C + eps); y = (x * r) * w.
    //   x [T, C] stride ldx; y [T, C] stride ldy, F32 (then y may be x) or BF16 (rounded to nearest even). rstd [T] out, or NULL.
    void (*rmsnorm)(struct device *d, int64_t t, int64_t c, const float *x, int64_t ldx, const float *w,
                    float eps, enum dtype y_dtype, void *y, int64_t ldy, float *rstd);
    // dx (+)= r*(w*dy) - x * (r^3 * sum16((dy*w)*x) / C);  dw += chain(t)(dy, x*r). dx overlaps neither x nor dy.
    void (*rmsnorm_grad)(struct device *d, int64_t t, int64_t c, const float *x, int64_t ldx, const float *w,
                         float eps, const float *dy, int64_t lddy, bool accumulate, float *dx, int64_t lddx,
                         float *dw);
    // Rotary embedding (Su 2021), half-split layout as in Llama: with (c, s) = table[pos[t]], i < D/2:
    //   y_i = x_i c_i - x_{i+D/2} s_i;  y_{i+D/2} = x_{i+D/2} c_i + x_i s_i.  sign = -1: the inverse (the gradient).
    //   x [T, heads, D] in place, row stride ldx; tables cos, sin [max_pos, D/2].
    void (*rope)(struct device *d, int64_t t, int64_t heads, int64_t head_dim, float *x, int64_t ldx,
                 const int32_t *pos, const float *cos, const float *sin, int sign);
    // y = silu(g) * u, silu(g) = g / (1 + exp(-g)).  gu [T, 2F]: g in [0, F), u in [F, 2F); y [T, F] F32 | BF16.
    // kept [T, 2F] = bf16(gu) for the gradient, on the way, or NULL.
    void (*swiglu)(struct device *d, int64_t t, int64_t f, const float *gu, enum dtype y_dtype, void *y,
                   uint16_t *kept);
    // With o = 1 / (1 + exp(-g)): dg = (dy u) (o (1 + g (1 - o))), du = dy (g o).  gu [T, 2F];
    // out dgu [T, 2F] and y [T, F], silu(g) * u once more, or NULL. All three are F32 or BF16; dgu may be gu, y may be dy if F32.
    void (*swiglu_grad)(struct device *d, int64_t t, int64_t f, enum dtype dtype, const void *gu,
                        const float *dy, void *dgu, void *y);
    // y += x, n elements
    void (*add)(struct device *d, int64_t n, const float *x, float *y);
    // x = bf16(x) in place
    void (*round_bf16)(struct device *d, int64_t n, float *x);

    // ---- attention -------------------------------------------------------------------------------------------
    // Stores k, v [T, G*D] f32 (stride ldk, ldv) into the pages of each sequence at its rows' positions, rounded or
    // quantised to the cache dtype (struct attn_cache).
    void (*kv_write)(struct device *d, const struct attn_cache *c, int n_seqs, const struct attn_seq *seqs,
                     const float *k, int64_t ldk, const float *v, int64_t ldv);
    // Causal attention with grouped heads, online soft-max (Milakov & Gimelshein 2018; Dao 2022) over key blocks of
    // ATTN_BLOCK from position 0:
    //   s = scale * chain(D)(q, k);  m' = max(m, max16(s));  p = exp(s - m');  e = exp(m - m');
    //   l = fma(l, e, sum16(p));  o = fma(o, e, chain over the block's visible keys (p v));  at the end out = o / l
    // Masked keys have p = 0 and are never read as values; what lies in unused slots does not matter.
    //   FP8: chains over the widened codes; s = scale * (chain(D)(q, k) * k_scale) and p * v_scale goes into the chain of
    //   values (not into the sum).
    //   Classes from avx512bf16 on have their own fixed order for BF16 and FP8 pages, by steps of ATTN_STEP keys
    //   (avx512bf16/avx512bf16.h).
    //   q [T, H*D] stride ldq; out [T, H*D] stride ldo, F32 or BF16 (the last step, rounded to nearest even); lse [T, H] = m + log l,
    //   or NULL.
    void (*attention)(struct device *d, const struct attn_cache *c, int n_heads, float scale, int n_seqs,
                      const struct attn_seq *seqs, const float *q, int64_t ldq, enum dtype out_dtype,
                      void *out, int64_t ldo, float *lse);
    // Gradient of all rows that attend one another: a sequence begins at position 0, or it is a branch. A branch has pos0 > 0, a
    // multiple of ATTN_BLOCK, and goes on from the nearest sequence before it with pos0 = 0, its root: its keys 0 … pos0 - 1 are
    // the root's rows of these positions, which there must be (pos0 <= root's n_rows). What the rows that several sequences share
    // cost is so paid once, and a root with its branches is a tree. pages are ignored.
    //   dtype is that of the cache that the forward pass went through; k, v [T, G*D] f32 as given to kv_write (the op rounds them
    // as the cache did), out (F32 or BF16, widened) and lse from the forward pass. dq, dk, dv are written (not added), only at the sequences' rows, and
    // overlap no input (Dao 2022, algorithm 4):
    //   P = exp(scale * q.k - lse), 0 where masked;  dS = P * (dout.v - sum16(dout * out)) * scale
    //   dq_i = chain(j) dS_ij k_j up to the end of i's block;  dk_j = chain(h, i) dS_ij q_i and dv_j = chain(h, i)
    //   P_ij dout_i over the heads h of the group, then the rows i: from the start of j's block on those of j's own sequence, then
    //   all rows of each branch that sees j, in the order of the branches.
    // So dq of a branch's rows has the bits that the sequence would have on its own. Classes from avx512bf16 on: see attention.
    void (*attention_grad)(struct device *d, enum dtype dtype, int n_heads, int n_kv, int head_dim,
                           float scale, int n_seqs, const struct attn_seq *seqs, const float *q, int64_t ldq,
                           const float *k, int64_t ldk, const float *v, int64_t ldv, enum dtype out_dtype,
                           const void *out, int64_t ldo, const float *lse, const float *dout, int64_t lddo,
                           float *dq, int64_t lddq, float *dk, int64_t lddk, float *dv, int64_t lddv);

    // ---- vocabulary ------------------------------------------------------------------------------------------
    // z = logits * inv_temp[r];  lse[r] = m + log S, m = max16(z), S = sum_v exp(z - m): sum16 within VOCAB_CHUNK,
    // chunks added in order;  logprob[r] = z[target] - lse (target < 0: skipped, 0);
    // entropy[r] = lse - sum_v p z = lse - (sum_v exp(z - m) z) / S, summed likewise, or NULL. A logit of -inf has
    // probability 0 and adds nothing. logits [R, V] f32 stride ld.
    void (*logprob)(struct device *d, int64_t r, int64_t v, const float *logits, int64_t ld,
                    const float *inv_temp, const int32_t *targets, float *logprob, float *lse,
                    float *entropy);
    // In place: dlogits[r,v] = inv_temp * (dlogprob[r] * (1{v = target} - p_v) - dentropy[r] * p_v (log p_v +
    // entropy[r])). dentropy may be NULL (then entropy too). Rows with target < 0 become 0.
    void (*logprob_grad)(struct device *d, int64_t r, int64_t v, float *logits, int64_t ld,
                         const float *inv_temp, const int32_t *targets, const float *lse,
                         const float *dlogprob, const float *entropy, const float *dentropy);
    // One draw a row from softmax(z), with its log-probability, as logprob computes both. With e = exp(z - m) and s_c the sums of
    // logprob's chunks: target = uniform[r] * sum_c s_c; the chunk is the first at which the running sum of s_c exceeds the target, in
    // it the first run of SAMPLE_RUN elements at which the running sum of sum16(e) does, in that the first element at which the running
    // sum of e does; running sums in double from the start of the row on, ascending. Where rounding leaves no such place: the last
    // element of the run with e > 0, or else the last before it.
    //   uniform [R] in (0, 1); token [R] out, -1 when lse is not finite (then logprob is 0); lse [R] out as logprob's.
    //   V <= SAMPLE_CHUNKS * VOCAB_CHUNK.
    void (*sample)(struct device *d, int64_t r, int64_t v, const float *logits, int64_t ld,
                   const float *inv_temp, const float *uniform, int32_t *token, float *logprob, float *lse);
    // p[r,v] = exp(logits * inv_temp - lse[r])
    void (*probs)(struct device *d, int64_t r, int64_t v, const float *logits, int64_t ld,
                  const float *inv_temp, const float *lse, float *p, int64_t ldp);

    // ---- optimizer and formats -------------------------------------------------------------------------------
    // Sum of squares in double: chunks of SUMSQ_CHUNK elements (sum16 in double inside), chunk sums added in order.
    double (*sumsq)(struct device *d, int64_t n, const float *x);
    // AdamW (Loshchilov & Hutter 2019): g' = gscale*g; m = b1 m + (1-b1) g'; v = b2 v + (1-b2) g'^2;
    // p = (p - lr*wd*p) - lr * (m/bc1) / (sqrt(v/bc2) + eps), bc = 1 - b^step given by the caller. Elementwise.
    void (*adamw)(struct device *d, int64_t n, float *p, float *m, float *v, const float *g, float gscale,
                  float lr, float b1, float b2, float eps, float wd, float bc1, float bc2);
    // E4M3, 128x128 blocks ("FP8" of algorithms.md): scale = max(amax, 1e-12)/448; q = fp8(w/scale).
    //   w [N, K] f32; q [N, K]; scales [ceil(N/128), ceil(K/128)].
    void (*fp8_quantize)(struct device *d, int64_t n, int64_t k, const float *w, uint8_t *q, float *scales);
    void (*fp8_dequantize)(struct device *d, int64_t n, int64_t k, const uint8_t *q, const float *scales,
                           float *w);
    void (*to_bf16)(struct device *d, int64_t n, const float *x, uint16_t *y);
    // y [T, C] stride ldy = bf16(x), x [T, C] stride ldx. y may be x, each row in its own place (ldy = 2 ldx).
    void (*to_bf16_rows)(struct device *d, int64_t t, int64_t c, const float *x, int64_t ldx, uint16_t *y,
                         int64_t ldy);
    void (*from_bf16)(struct device *d, int64_t n, const uint16_t *x, float *y);
};

#endif
