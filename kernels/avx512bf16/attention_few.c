// Attention of a sequence that makes one row, as decoding does, on pairs of bf16: the order of attention.c with keys, then columns, in
// the lanes. The query heads of one key/value head go together, so that keys and values are read once. What bounds it is
// the memory that the pages lie in.
#include <math.h>
#include <string.h>

#include "kernels/avx512bf16/attention.h"
#include "kernels/fmath.h"

#define STEP_BLOCKS (ATTN_STEP / ATTN_BLOCK)

// FEW_ROWS rows of everything; dim_pad: D rounded up to whole vectors.
struct few {
    int n, n_keys; // rows; keys of the step that they see
    int64_t dim, dim_pad;
    float m[FEW_ROWS], l[FEW_ROWS], shrink[FEW_ROWS];
    float *q; // [D / 2 rounded up to 16] pairs
    float *o; // [dim_pad]
    float s[FEW_ROWS][ATTN_STEP];
    uint32_t p[FEW_ROWS][ATTN_STEP / 2],
        pv[FEW_ROWS][ATTN_STEP / 2]; // pairs of probabilities; of those times the value's scale
    struct kv_block block[STEP_BLOCKS], ahead[STEP_BLOCKS]; // of this step, and those asked for meanwhile
};

static int64_t pad16(int64_t n)
{
    return ceil_div(n, 16) * 16;
}

size_t few_scratch(int64_t dim)
{
    return (size_t)(FEW_ROWS * (pad16(dim / 2) + pad16(dim))) * sizeof(float);
}

// Pages lie anywhere, and no hardware prefetcher knows the next one: every pair-row that is read asks for its like one step on.
ALWAYS void ask(const enum dtype t, const char *p)
{
    __builtin_prefetch(p);
    if (t == DT_BF16)
        __builtin_prefetch(p + 64);
}

// Two vectors of pairs, and those of the next 32 keys or columns. bytes: from the pairs of bf16 of one 16 to those of the next.
ALWAYS void load_two(const enum dtype t, const char *p, __m512i *ret)
{
    if (t == DT_FP8) {
        widen_pairs((const uint8_t *)p, &ret[0], &ret[1]);
    } else {
        ret[0] = _mm512_loadu_si512(p);
        ret[1] = _mm512_loadu_si512(p + 64);
    }
}

// Scores of the blocks b0 … b0 + blocks - 1 of the step.
ALWAYS void few_scores(const enum dtype t, const int rows, const int blocks, struct few *f, int b0)
{
    v16 acc[16];
    const float *q = f->q;
    const int64_t ld = pad16(f->dim / 2);
    const struct kv_block *b = f->block + b0;
    const char *k0 = b[0].k, *k1 = b[blocks - 1].k;
    const char *next0 = f->ahead[b0].k, *next1 = f->ahead[b0 + blocks - 1].k;
#pragma GCC unroll 16
    for (int i = 0; i < rows * 2 * blocks; i++)
        acc[i] = v_zero();
    for (int64_t i = 0; i < f->dim / 2; i++, k0 += b->k_bytes, k1 += b->k_bytes) {
        __m512i k[4];
        load_two(t, k0, k);
        ask(t, next0 + i * b->k_bytes);
        if (blocks == 2) {
            load_two(t, k1, k + 2);
            ask(t, next1 + i * b->k_bytes);
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            v16 x = v_set(q[r * ld + i]);
#pragma GCC unroll 4
            for (int v = 0; v < 2 * blocks; v++)
                acc[r * 2 * blocks + v] = v_dot_pairs(acc[r * 2 * blocks + v], x, k[v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < 2 * blocks; v++) {
            v16 s = acc[r * 2 * blocks + v];
            if (t == DT_FP8)
                s = v_mul(s, v_load(b[v / 2].k_scale + v % 2 * 16));
            v_store(f->s[r] + b0 * ATTN_BLOCK + 16 * v, s);
        }
}

// Scores → pairs of probabilities; a lane past n_keys has probability 0. All maxima, then all exponentials, so that the folds of
// different rows overlap.
ALWAYS void few_softmax(const enum dtype t, const int rows, struct few *f, float c2)
{
    const int vecs = (f->n_keys + 15) / 16;
    const v16 c = v_set(c2), low = v_set(-INFINITY);
    v16 top[FEW_ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        top[r] = v_set(f->m[r]);
        for (int v = 0; v < vecs; v++)
            top[r] = v_max(top[r], v_first_n(v_load(f->s[r] + 16 * v), low, min_i64(16, f->n_keys - 16 * v)));
        top[r] = v_set(v_fold_max(top[r]));
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        v16 shift = v_neg(v_mul(top[r], c));
        f->shrink[r] = v_first(v_exp2(v_mul(v_sub(v_set(f->m[r]), top[r]), c)));
        f->m[r] = v_first(top[r]);
        for (int v = 0; v < vecs; v++) {
            __mmask16 seen = v_mask(min_i64(16, f->n_keys - 16 * v));
            v16 p = v_exp2(v_fma(v_load(f->s[r] + 16 * v), c, shift));
            _mm256_storeu_si256((__m256i *)(f->p[r] + 8 * v),
                                _mm256_maskz_mov_epi16(seen, (__m256i)_mm512_cvtneps_pbh(p)));
            if (t != DT_FP8)
                continue;
            p = v_mul(p, v_load(f->block[v / 2].v_scale + v % 2 * 16));
            _mm256_storeu_si256((__m256i *)(f->pv[r] + 8 * v),
                                _mm256_maskz_mov_epi16(seen, (__m256i)_mm512_cvtneps_pbh(p)));
        }
    }
}

// o = o shrink + p v of the columns d0 … d0 + 16 vecs - 1; cols < 16: of the first cols of one vector. With `sums` l = l shrink + p
// on the way: a chain of its own that the others hide.
ALWAYS void few_values(const enum dtype t, const int rows, const int vecs, const bool sums, struct few *f,
                       int64_t d0, int64_t cols)
{
    const int64_t size = (int64_t)dtype_bytes(t);
    v16 acc[16], l[FEW_ROWS];
    uint32_t(*const p)[ATTN_STEP / 2] = t == DT_FP8 ? f->pv : f->p;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++)
            acc[r * vecs + v] = v_mul(v_load(f->o + r * f->dim_pad + d0 + 16 * v), v_set(f->shrink[r]));
#pragma GCC unroll 8
    for (int r = 0; sums && r < rows; r++)
        l[r] = v_set(f->l[r] * f->shrink[r]);
    for (int i = 0; 2 * i < f->n_keys; i++) {
        const struct kv_block *b = &f->block[2 * i / ATTN_BLOCK];
        const int64_t row = i % (ATTN_BLOCK / 2) * b->v_bytes + d0 * 2 * size;
        const char *at = b->v + row, *next = f->ahead[2 * i / ATTN_BLOCK].v + row;
        __m512i y[4];
        if (vecs == 1) {
            y[0] = _mm512_maskz_loadu_epi32(v_mask(cols), at);
        } else {
            load_two(t, at, y);
            ask(t, next);
            if (vecs == 4) {
                load_two(t, at + 64 * size, y + 2);
                ask(t, next + 64 * size);
            }
        }
        if (2 * i + 1 == f->n_keys) // the other key of the last pair is not there
#pragma GCC unroll 4
            for (int v = 0; v < vecs; v++)
                y[v] = _mm512_and_si512(y[v], _mm512_set1_epi32(0xffff));
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            v16 x = v_set(((const float *)p[r])[i]);
#pragma GCC unroll 4
            for (int v = 0; v < vecs; v++)
                acc[r * vecs + v] = v_dot_pairs(acc[r * vecs + v], x, y[v]);
            if (sums)
                l[r] = v_dot_pairs(l[r], v_set(((const float *)f->p[r])[i]), ONES);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++)
            v_store(f->o + r * f->dim_pad + d0 + 16 * v, acc[r * vecs + v]);
#pragma GCC unroll 8
    for (int r = 0; sums && r < rows; r++)
        f->l[r] = v_first(l[r]);
}

ALWAYS void few_step(const enum dtype t, const int rows, struct few *f, float c2)
{
    const int wide = rows <= 4 ? 4 : 2; // vectors of values at once
    if (rows <= 4 && f->n_keys > ATTN_BLOCK) {
        few_scores(t, rows, 2, f, 0);
    } else {
        few_scores(t, rows, 1, f, 0);
        if (f->n_keys > ATTN_BLOCK)
            few_scores(t, rows, 1, f, 1);
    }
    few_softmax(t, rows, f, c2);
    int64_t d = 0;
    if (f->dim >= 16 * wide) {
        few_values(t, rows, wide, true, f, 0, 16);
        d = 16 * wide;
    } else if (f->dim >= 32) {
        few_values(t, rows, 2, true, f, 0, 16);
        d = 32;
    } else {
        few_values(DT_BF16, rows, 1, true, f, 0, min_i64(16, f->dim)); // FP8 has at least 32 columns
        d = 16;
    }
    for (; d + 16 * wide <= f->dim; d += 16 * wide)
        few_values(t, rows, wide, false, f, d, 16);
    for (; wide == 4 && d + 32 <= f->dim; d += 32)
        few_values(t, rows, 2, false, f, d, 16);
    for (; t == DT_BF16 && d < f->dim; d += 16)
        few_values(t, rows, 1, false, f, d, min_i64(16, f->dim - d));
}

#define STEP_DEFINE(rows)                                                                                    \
    static void bf16_##rows(struct few *f, float c2)                                                         \
    {                                                                                                        \
        few_step(DT_BF16, rows, f, c2);                                                                      \
    }                                                                                                        \
    static void fp8_##rows(struct few *f, float c2)                                                          \
    {                                                                                                        \
        few_step(DT_FP8, rows, f, c2);                                                                       \
    }
STEP_DEFINE(1)
STEP_DEFINE(2)
STEP_DEFINE(3)
STEP_DEFINE(4)
STEP_DEFINE(5)
STEP_DEFINE(6)
STEP_DEFINE(7)
STEP_DEFINE(8)
static void (*const STEPS[2][FEW_ROWS])(struct few *, float) = {
    {bf16_1, bf16_2, bf16_3, bf16_4, bf16_5, bf16_6, bf16_7, bf16_8},
    {fp8_1, fp8_2, fp8_3, fp8_4, fp8_5, fp8_6, fp8_7, fp8_8}};

// The blocks of the step that begins at key `first`; one that is past the end is the one before it.
static void blocks_at(const struct attention *a, const struct attn_seq *s, int64_t g, int64_t first,
                      struct kv_block *ret)
{
    for (int64_t b = 0; b < STEP_BLOCKS; b++)
        ret[b] =
            first + b * ATTN_BLOCK <= s->pos0 ? kv_block_at(a->c, s, g, first / ATTN_BLOCK + b) : ret[b - 1];
}

void few_rows(const struct attention *a, const struct attn_seq *s, int64_t g, const struct attn_seq *next,
              int64_t next_g, void *scratch)
{
    int64_t dim = a->c->head_dim, ld = pad16(dim / 2), head = g * a->group, pos = s->pos0;
    struct few f = {.n = a->group, .dim = dim, .dim_pad = pad16(dim)};
    f.q = scratch;
    f.o = f.q + FEW_ROWS * ld;
    for (int r = 0; r < f.n; r++) {
        const float *q = a->q + s->row0 * a->ldq + (head + r) * dim;
        f.m[r] = -INFINITY;
        for (int64_t j = 0; j < dim; j += 32)
            v_store(f.q + r * ld + j / 2, v_neighbours(q + j, dim - j));
        for (int64_t j = 0; j < f.dim_pad; j += 16)
            v_store(f.o + r * f.dim_pad + j, v_zero());
    }
    blocks_at(a, s, g, 0, f.ahead);
    for (int64_t first = 0; first <= pos; first += ATTN_STEP) {
        f.n_keys = (int)min_i64(ATTN_STEP, pos + 1 - first);
        memcpy(f.block, f.ahead, sizeof f.block);
        if (first + ATTN_STEP <= pos)
            blocks_at(a, s, g, first + ATTN_STEP, f.ahead);
        else
            blocks_at(a, next, next_g, 0, f.ahead);
        STEPS[a->c->dtype == DT_FP8][f.n - 1](&f, a->c2);
    }
    for (int r = 0; r < f.n; r++) {
        v16 inverse = v_div(v_set(1), v_set(f.l[r]));
        for (int64_t j = 0; j < dim; j += 16)
            rows_store(a->out_dtype, a->out, s->row0 * a->ldo + (head + r) * dim + j,
                       v_mul(v_load(f.o + r * f.dim_pad + j), inverse), min_i64(16, dim - j));
        if (a->lse)
            a->lse[s->row0 * a->n_heads + head + r] = fmaf(f.m[r], a->scale, fmath_log(f.l[r]));
    }
}
