// What kv_write, attention and its gradient of this class share: pages of pairs, exp2, and the conversion to pairs. The order of
// operations and the layout of pages are in avx512bf16.h. Private to the class.
#ifndef KERNELS_AVX512BF16_ATTENTION_H
#define KERNELS_AVX512BF16_ATTENTION_H

#include "kernels/avx512bf16/avx512bf16.h"
#include "kernels/avx512bf16/widen.h"

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)

#include "kernels/lanes/rows_tmpl.c"

#define LOG2E 1.44269504f

// One attention call.
struct attention {
    struct device *d;
    const struct attn_cache *c;
    int n_heads, group; // group: query heads a key/value head
    float scale, c2;    // c2: scale * log2 e
    int n_seqs;
    const struct attn_seq *seqs;
    const int64_t *first; // [n_seqs + 1] first unit of each sequence
    const float *q;
    int64_t ldq;
    enum dtype out_dtype;
    void *out;
    int64_t ldo;
    float *lse;
};

// ATTN_BLOCK keys and values of one page and head, widened or not. k: pair-row i of D / 2 at k + i * k_bytes; v: pair-row i of
// ATTN_BLOCK / 2 at v + i * v_bytes. Scales are NULL unless FP8.
struct kv_block {
    const char *k, *v;
    int64_t k_bytes, v_bytes;
    const float *k_scale, *v_scale;
};

// A sequence that makes one row, one position, goes by this (attention_few.c): the query heads of key/value head g, up to FEW_ROWS of
// them. Meanwhile the first keys and values of what comes next are asked for.
#define FEW_ROWS 8
size_t few_scratch(int64_t dim);
void few_rows(const struct attention *a, const struct attn_seq *s, int64_t g, const struct attn_seq *next,
              int64_t next_g, void *scratch);

static inline struct kv_block kv_block_at(const struct attn_cache *c, const struct attn_seq *s, int64_t g,
                                          int64_t block)
{
    int64_t key = block * ATTN_BLOCK, slot = key % c->page_tokens, size = (int64_t)dtype_bytes(c->dtype);
    int64_t part = (int64_t)s->pages[key / c->page_tokens] * c->n_kv + g, at = part * c->page_tokens;
    return (struct kv_block){
        .k = (const char *)c->k + (at * c->head_dim + 2 * slot) * size,
        .v = (const char *)c->v + (at + slot) * c->head_dim * size,
        .k_bytes = 2 * c->page_tokens * size,
        .v_bytes = 2 * c->head_dim * size,
        .k_scale = c->k_scale ? c->k_scale + at + slot : NULL,
        .v_scale = c->v_scale ? c->v_scale + at + slot : NULL,
    };
}

// 2^x for x up to a little above 0, below -126 as 2^-126: n = x rounded, 2^(x - n) by a polynomial of degree 5 (minimax, 1 at 0:
// relative error below 2e-7), times 2^n.
ALWAYS v16 v_exp2(v16 x)
{
    v16 magic = v_set(12582912.0f); // 1.5 * 2^23
    x = v_max(v_set(-126.0f), x);   // NaN stays
    v16 n = v_sub(v_add(x, magic), magic), r = v_sub(x, n);
    v16 p = v_fma(v_set(0x1.5bba14p-10f), r, v_set(0x1.3cea88p-7f));
    p = v_fma(p, r, v_set(0x1.c6b752p-5f));
    p = v_fma(p, r, v_set(0x1.ebf9bcp-3f));
    p = v_fma(p, r, v_set(0x1.62e42ap-1f));
    p = v_fma(p, r, v_set(1.0f));
    return _mm512_scalef_ps(p, n);
}

// Up to 32 neighbours as sixteen pairs; what lies past n is 0.
ALWAYS v16 v_neighbours(const float *x, int64_t n)
{
    v16 high = n > 16 ? v_load_n(x + 16, n - 16) : v_zero();
    return (v16)_mm512_cvtne2ps_pbh(high, v_load_n(x, n));
}

ALWAYS __m512i v_broadcast(const void *pair)
{
    return _mm512_set1_epi32(*(const int32_t *)pair);
}

// v_dot_pairs in the lanes of the mask, acc in the others. Not by the instruction's own mask, which gcc 12 cuts to eight lanes.
ALWAYS v16 v_dot_seen(__mmask16 lanes, v16 acc, v16 x, __m512i w)
{
    return _mm512_mask_mov_ps(acc, lanes, v_dot_pairs(acc, x, w));
}

#define ONES _mm512_set1_epi32(0x3f803f80) // (1, 1)

#endif
#endif
