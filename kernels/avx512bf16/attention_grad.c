// Gradient of attention on pairs of bf16 (avx512bf16.h has the order). A unit is one query head of one
// tree, a sequence with the branches that share its first rows. Queries, keys, values
// and gradients of the output are rounded and paired once, both ways that the five products want them: along D, where
// S and dP are contracted, and along rows or keys, where dQ, dK and dV are. Scores have queries in the lanes, so that lse and
// delta are vectors; P and dS never leave the first cache.
#include <assert.h>
#include <math.h>

#include "kernels/avx512bf16/attention.h"
#include "kernels/ref/ref.h"

#define KEYS       32 // keys and rows of one square of P and dS
#define ROWS       32
#define ROW_VECS   (ROWS / 16)
#define COL_VECS   4 // vectors of columns, and rows or keys beside them, whose sums are in registers at once
#define COL_ROWS   4
#define SCORE_KEYS 4

struct attn_grad {
    struct device *d;
    enum dtype dtype;
    int n_heads, n_kv, group, dim;
    float scale, c2;
    const struct attn_seq *seqs;
    int32_t *tree; // [trees + 1] first sequence of each
    const float *q, *k, *v, *lse, *dout;
    enum dtype out_dtype;
    const void *out;
    int64_t ldq, ldk, ldv, ldo, lddo, lddq, lddk, lddv;
    float *dq, *dk, *dv;
    // NULL: a unit does the heads of a group one after the other, adding to dk and dv. Else units are heads, and those that
    // are not first in their group leave dk and dv in parts [2][heads not first][rows][D].
    float *parts;
    int64_t part_rows;
};

// One head of one tree. Rows of each sequence are rounded up to ROWS (= KEYS) and lie one after the other, root first, n_pad in
// all; what is past a sequence's end is 0. ld: D rounded up to 16, the stride of everything with columns in the lanes.
struct work {
    int64_t n_pad, ld;
    uint32_t *q_d, *dout_d; // [n_pad / ROWS][D / 2][ROWS] pairs along D
    uint32_t *k_d, *v_d;    // [n_pad / KEYS][D / 2][KEYS]
    uint32_t *q_i, *dout_i; // [n_pad / 2][ld] pairs of rows
    uint32_t *k_j;          // [n_pad / 2][ld] pairs of keys
    float *lse2, *delta;    // [n_pad] lse log2 e; sum(dout out) scale
    float *dk, *dv;         // [KEYS][ld] sums of one block of keys
    uint32_t *p_i, *ds_i,
        *ds_j;    // [KEYS][ROWS / 2] pairs of rows of P, dS; [KEYS / 2][ROWS] pairs of keys of dS
    float *k, *v; // FP8: [longest][D] what the cache gives back of one sequence
};

// Rows of a sequence in the work arrays.
static int64_t rows_pad(const struct attn_seq *s)
{
    return ceil_div(s->n_rows, ROWS) * ROWS;
}

// Cuts the arrays out of base and returns the bytes; base NULL only counts.
static size_t work_carve(const struct attn_grad *a, int64_t tree, char *base, struct work *w)
{
    int64_t dim = a->dim, ld = ceil_div(dim, 16) * 16, n_pad = 0, longest = 0;
    size_t at = 0;
    for (int32_t i = a->tree[tree]; i < a->tree[tree + 1]; i++) {
        n_pad += rows_pad(&a->seqs[i]);
        longest = max_i64(longest, a->seqs[i].n_rows);
    }
    const struct {
        void **to;
        int64_t words;
    } arrays[] = {{(void **)&w->q_d, n_pad * dim / 2},
                  {(void **)&w->dout_d, n_pad * dim / 2},
                  {(void **)&w->k_d, n_pad * dim / 2},
                  {(void **)&w->v_d, n_pad * dim / 2},
                  {(void **)&w->q_i, n_pad / 2 * ld},
                  {(void **)&w->dout_i, n_pad / 2 * ld},
                  {(void **)&w->k_j, n_pad / 2 * ld},
                  {(void **)&w->lse2, n_pad},
                  {(void **)&w->delta, n_pad},
                  {(void **)&w->dk, KEYS * ld},
                  {(void **)&w->dv, KEYS * ld},
                  {(void **)&w->p_i, KEYS * ROWS / 2},
                  {(void **)&w->ds_i, KEYS * ROWS / 2},
                  {(void **)&w->ds_j, KEYS * ROWS / 2},
                  {(void **)&w->k, a->dtype == DT_FP8 ? longest * dim : 0},
                  {(void **)&w->v, a->dtype == DT_FP8 ? longest * dim : 0}};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        if (base)
            *arrays[i].to = base + at;
        at += ((size_t)arrays[i].words * 4 + 63) / 64 * 64;
    }
    w->n_pad = n_pad;
    w->ld = ld;
    return at;
}

// ---- pairs -----------------------------------------------------------------------------------------------------------

// x [n, D] → to [ceil(n / 32)][D / 2][32].
static void pairs_along_dim(int64_t n, int64_t dim, const float *x, int64_t ld, uint32_t *to)
{
    for (int64_t i = 0; i < ceil_div(n, ROWS) * ROWS; i += 16) {
        uint32_t *square = to + i / 32 * 32 * (dim / 2) + i % 32;
        for (int64_t j = 0; j < dim; j += 32) {
            v16 a[16];
            for (int64_t l = 0; l < 16; l++)
                a[l] = i + l < n ? v_neighbours(x + (i + l) * ld + j, dim - j) : v_zero();
            v_transpose(a);
            for (int64_t l = 0; l < min_i64(16, (dim - j) / 2); l++)
                v_store((float *)(square + (j / 2 + l) * 32), a[l]);
        }
    }
}

// x [n, D] → to [ceil(n / 32) * 16][ld_to].
static void pairs_of_rows(int64_t n, int64_t dim, const float *x, int64_t ld, uint32_t *to, int64_t ld_to)
{
    for (int64_t i = 0; i < ceil_div(n, ROWS) * ROWS; i += 2, to += ld_to)
        for (int64_t j = 0; j < ld_to; j += 16) {
            int64_t cols = min_i64(16, dim - j);
            v16 a = i < n ? v_load_n(x + i * ld + j, cols) : v_zero();
            v16 b = i + 1 < n ? v_load_n(x + (i + 1) * ld + j, cols) : v_zero();
            _mm512_storeu_si512(to + j, (__m512i)v_pairs(a, b));
        }
}

// Keys and values of one sequence, whose rows begin at `at` of the work arrays.
static void pack_keys(const struct attn_grad *a, const struct attn_seq *s, int g, int64_t at, struct work *w)
{
    int64_t dim = a->dim, ldk = a->ldk, ldv = a->ldv, n = s->n_rows;
    const float *k = a->k + s->row0 * ldk + g * dim, *v = a->v + s->row0 * ldv + g * dim;
    if (a->dtype == DT_FP8) {
        for (int64_t i = 0; i < n; i++) {
            ref_cache_round(DT_FP8, dim, k + i * ldk, w->k + i * dim);
            ref_cache_round(DT_FP8, dim, v + i * ldv, w->v + i * dim);
        }
        k = w->k;
        v = w->v;
        ldk = ldv = dim;
    }
    pairs_along_dim(n, dim, k, ldk, w->k_d + at * dim / 2);
    pairs_along_dim(n, dim, v, ldv, w->v_d + at * dim / 2);
    pairs_of_rows(n, dim, k, ldk, w->k_j + at / 2 * w->ld, w->ld);
}

static void pack_queries(const struct attn_grad *a, const struct attn_seq *s, int h, int64_t at,
                         struct work *w)
{
    int64_t dim = a->dim, n = s->n_rows;
    const float *q = a->q + s->row0 * a->ldq + h * dim, *dout = a->dout + s->row0 * a->lddo + h * dim;
    pairs_along_dim(n, dim, q, a->ldq, w->q_d + at * dim / 2);
    pairs_along_dim(n, dim, dout, a->lddo, w->dout_d + at * dim / 2);
    pairs_of_rows(n, dim, q, a->ldq, w->q_i + at / 2 * w->ld, w->ld);
    pairs_of_rows(n, dim, dout, a->lddo, w->dout_i + at / 2 * w->ld, w->ld);
    for (int64_t i = 0; i < rows_pad(s); i++) {
        v16 sum = v_zero();
        for (int64_t j = 0; j < dim && i < n; j += 16) {
            int64_t cols = min_i64(16, dim - j);
            sum = v_fma(v_load_n(dout + i * a->lddo + j, cols),
                        rows_load(a->out_dtype, a->out, (s->row0 + i) * a->ldo + h * dim + j, cols), sum);
        }
        w->delta[at + i] = v_fold(sum) * a->scale;
        w->lse2[at + i] = i < n ? a->lse[(s->row0 + i) * a->n_heads + h] * LOG2E : 0;
    }
}

// ---- one square ------------------------------------------------------------------------------------------------------

// P and dS of the rows i0 … and the keys j0 … of the work arrays; diagonal: some rows do not see some of the keys.
static void square_scores(const struct attn_grad *a, struct work *w, int64_t i0, int64_t j0, bool diagonal)
{
    const int64_t half = a->dim / 2;
    const float *q = (float *)w->q_d + i0 * half, *dout = (float *)w->dout_d + i0 * half;
    const uint32_t *k = w->k_d + j0 * half, *v = w->v_d + j0 * half;
    const v16 c2 = v_set(a->c2), scale = v_set(a->scale);
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int j = 0; j < KEYS; j += SCORE_KEYS) {
        v16 s[SCORE_KEYS][ROW_VECS], g[SCORE_KEYS][ROW_VECS];
#pragma GCC unroll 8
        for (int y = 0; y < SCORE_KEYS; y++)
#pragma GCC unroll 4
            for (int x = 0; x < ROW_VECS; x++)
                s[y][x] = g[y][x] = v_zero();
        for (int64_t i = 0; i < half; i++) {
            v16 qx[ROW_VECS], ox[ROW_VECS];
#pragma GCC unroll 4
            for (int x = 0; x < ROW_VECS; x++) {
                qx[x] = v_load(q + i * ROWS + 16 * x);
                ox[x] = v_load(dout + i * ROWS + 16 * x);
            }
#pragma GCC unroll 8
            for (int y = 0; y < SCORE_KEYS; y++) {
                __m512i ky = v_broadcast(k + i * KEYS + j + y), vy = v_broadcast(v + i * KEYS + j + y);
#pragma GCC unroll 4
                for (int x = 0; x < ROW_VECS; x++) {
                    s[y][x] = v_dot_pairs(s[y][x], qx[x], ky);
                    g[y][x] = v_dot_pairs(g[y][x], ox[x], vy);
                }
            }
        }
#pragma GCC unroll 8
        for (int y = 0; y < SCORE_KEYS; y++)
#pragma GCC unroll 4
            for (int x = 0; x < ROW_VECS; x++) {
                v16 p = v_exp2(v_fma(s[y][x], c2, v_neg(v_load(w->lse2 + i0 + 16 * x))));
                v16 ds = v_mul(p, v_fma(g[y][x], scale, v_neg(v_load(w->delta + i0 + 16 * x))));
                if (diagonal) {
                    __mmask16 seen =
                        _mm512_cmpge_epi32_mask(lanes, _mm512_set1_epi32((int)(j0 - i0) + j + y - 16 * x));
                    p = _mm512_maskz_mov_ps(seen, p);
                    ds = _mm512_maskz_mov_ps(seen, ds);
                }
                g[y][x] = ds;
                _mm256_storeu_si256((__m256i *)(w->p_i + ((j + y) * ROWS + 16 * x) / 2),
                                    (__m256i)_mm512_cvtneps_pbh(p));
                _mm256_storeu_si256((__m256i *)(w->ds_i + ((j + y) * ROWS + 16 * x) / 2),
                                    (__m256i)_mm512_cvtneps_pbh(ds));
                if (y % 2)
                    _mm512_storeu_si512(w->ds_j + (j + y) / 2 * ROWS + 16 * x,
                                        (__m512i)v_pairs(g[y - 1][x], ds));
            }
    }
}

// rows x (16 vecs) sums: c = (fresh ? 0 : c) + chain over n pairs of (a(r, i), b(i)); a(r, i) at a[r * a_row + i * a_pair], b [n][ldb].
ALWAYS void sums(const int rows, const int vecs, int64_t n, const uint32_t *a, int64_t a_row, int64_t a_pair,
                 const uint32_t *b, int64_t ldb, bool fresh, float *c, int64_t ldc, int64_t cols)
{
    v16 acc[COL_ROWS * COL_VECS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++)
            acc[r * vecs + v] = fresh ? v_zero() : v_load_n(c + r * ldc + 16 * v, cols - 16 * v);
    for (int64_t i = 0; i < n; i++, a += a_pair, b += ldb) {
        v16 y[COL_VECS];
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++)
            y[v] = v_load((const float *)b + 16 * v);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            __m512i x = v_broadcast(a + r * a_row);
#pragma GCC unroll 4
            for (int v = 0; v < vecs; v++)
                acc[r * vecs + v] = v_dot_pairs(acc[r * vecs + v], y[v], x);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++)
            v_store_n(c + r * ldc + 16 * v, acc[r * vecs + v], cols - 16 * v);
}

#define SUMS_DEFINE(name, rows, vecs)                                                                        \
    static void name(int64_t n, const uint32_t *a, int64_t a_row, int64_t a_pair, const uint32_t *b,         \
                     int64_t ldb, bool fresh, float *c, int64_t ldc, int64_t cols)                           \
    {                                                                                                        \
        sums(rows, vecs, n, a, a_row, a_pair, b, ldb, fresh, c, ldc, cols);                                  \
    }
SUMS_DEFINE(sums_wide, COL_ROWS, COL_VECS)
SUMS_DEFINE(sums_narrow, COL_ROWS, 1)
SUMS_DEFINE(sums_wide_row, 1, COL_VECS)
SUMS_DEFINE(sums_narrow_row, 1, 1)

// The same for any number of rows and columns.
static void product(int64_t rows, int64_t cols, int64_t n, const uint32_t *a, int64_t a_row, int64_t a_pair,
                    const uint32_t *b, int64_t ldb, bool fresh, float *c, int64_t ldc)
{
    for (int64_t j = 0, width; j < cols; j += width) {
        bool wide = cols - j >= 16 * COL_VECS;
        width = wide ? 16 * COL_VECS : min_i64(16, cols - j);
        for (int64_t r = 0, high; r < rows; r += high) {
            high = rows - r >= COL_ROWS ? COL_ROWS : 1;
            (high == 1 ? wide ? sums_wide_row : sums_narrow_row
             : wide    ? sums_wide
                    : sums_narrow)(n, a + r * a_row, a_row, a_pair, b + j, ldb, fresh, c + r * ldc + j, ldc,
                                   width);
        }
    }
}

// What the rows i0 … of s, which begin at `at` of the work arrays, and the keys j0 … of the work arrays give one another. first: the
// first rows that these keys meet.
static void square_grad(const struct attn_grad *a, struct work *w, const struct attn_seq *s, int64_t at,
                        int64_t i0, int64_t j0, bool first, float *dq)
{
    int64_t i = at + i0;
    square_scores(a, w, i, j0, i == j0);
    product(KEYS, w->ld, ROWS / 2, w->p_i, ROWS / 2, 1, w->dout_i + i / 2 * w->ld, w->ld, first, w->dv,
            w->ld);
    product(KEYS, w->ld, ROWS / 2, w->ds_i, ROWS / 2, 1, w->q_i + i / 2 * w->ld, w->ld, first, w->dk, w->ld);
    product(min_i64(ROWS, s->n_rows - i0), a->dim, KEYS / 2, w->ds_j, 1, ROWS, w->k_j + j0 / 2 * w->ld, w->ld,
            j0 == 0, dq + (s->row0 + i0) * a->lddq, a->lddq);
}

// ---- one head --------------------------------------------------------------------------------------------------------

// to [rows, D] = or += from [rows][ld].
static void rows_out(const struct attn_grad *a, const struct work *w, int64_t rows, const float *from,
                     bool add, float *to, int64_t ld)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < a->dim; j += 16) {
            int64_t cols = min_i64(16, a->dim - j);
            float *y = to + i * ld + j;
            v16 x = v_load(from + i * w->ld + j);
            v_store_n(y, add ? v_add(v_load_n(y, cols), x) : x, cols);
        }
}

// Sums of the keys j0 … of `keys`, the sequence nth of the tree, whose rows begin at `at` of the work arrays: over its own rows, then,
// if it is the root, over those of the branches that see them.
static void keys_grad(const struct attn_grad *a, struct work *w, const struct attn_seq *keys,
                      const struct attn_seq *end, int64_t at, int64_t j0, float *dq)
{
    for (int64_t i0 = j0; i0 < keys->n_rows; i0 += ROWS)
        square_grad(a, w, keys, at, i0, at + j0, i0 == j0, dq);
    if (keys->pos0 > 0)
        return;
    at = rows_pad(keys);
    for (const struct attn_seq *s = keys + 1; s < end; at += rows_pad(s++))
        for (int64_t i0 = 0; i0 < s->n_rows && j0 < s->pos0; i0 += ROWS)
            square_grad(a, w, s, at, i0, j0, false, dq);
}

static void head_grad(const struct attn_grad *a, int64_t tree, int h, struct work *w)
{
    int g = h / a->group, nth = h % a->group;
    const struct attn_seq *root = a->seqs + a->tree[tree], *end = a->seqs + a->tree[tree + 1];
    float *dq = a->dq + h * a->dim, *dk = a->dk + g * a->dim, *dv = a->dv + g * a->dim;
    int64_t lddk = a->lddk, lddv = a->lddv, at = 0;
    if (a->parts && nth) {
        int64_t part = a->part_rows * a->dim, nths = (int64_t)a->n_kv * (a->group - 1);
        dk = a->parts + ((int64_t)g * (a->group - 1) + nth - 1) * part;
        dv = dk + nths * part;
        lddk = lddv = a->dim;
    }
    for (const struct attn_seq *s = root; s < end; at += rows_pad(s++))
        pack_queries(a, s, h, at, w);
    at = 0;
    for (const struct attn_seq *s = root; s < end; at += rows_pad(s++))
        for (int64_t j0 = 0; j0 < s->n_rows; j0 += KEYS) {
            keys_grad(a, w, s, end, at, j0, dq);
            int64_t keys = min_i64(KEYS, s->n_rows - j0), row = s->row0 + j0;
            bool add = nth && !a->parts;
            rows_out(a, w, keys, w->dk, add, dk + row * lddk, lddk);
            rows_out(a, w, keys, w->dv, add, dv + row * lddv, lddv);
        }
}

// Units: (tree, key/value head), or (tree, query head) with parts.
static void grad_units(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct attn_grad *a = ctx;
    int64_t per_tree = a->parts ? a->n_heads : a->n_kv;
    for (int64_t u = begin; u < end; u++) {
        int64_t tree = u / per_tree, at = 0;
        struct work w = {0};
        char *base = scratch_get(a->d, thread, work_carve(a, tree, NULL, &w));
        work_carve(a, tree, base, &w);
        int unit = (int)(u % per_tree), first = a->parts ? unit : unit * a->group,
            n = a->parts ? 1 : a->group;
        for (int32_t i = a->tree[tree]; i < a->tree[tree + 1]; at += rows_pad(&a->seqs[i++]))
            pack_keys(a, &a->seqs[i], first / a->group, at, &w);
        for (int h = first; h < first + n; h++)
            head_grad(a, tree, h, &w);
    }
}

// dk and dv of the heads after the first, added in order.
static void parts_add(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct attn_grad *a = ctx;
    const int64_t part = a->part_rows * a->dim, nths = (int64_t)a->n_kv * (a->group - 1);
    for (int64_t u = begin; u < end; u++) {
        const struct attn_seq *s = &a->seqs[u / a->n_kv];
        int64_t g = u % a->n_kv;
        struct work w = {.ld = a->dim};
        for (int64_t nth = 0; nth < a->group - 1; nth++) {
            const float *dk = a->parts + (g * (a->group - 1) + nth) * part + s->row0 * a->dim;
            rows_out(a, &w, s->n_rows, dk, true, a->dk + s->row0 * a->lddk + g * a->dim, a->lddk);
            rows_out(a, &w, s->n_rows, dk + nths * part, true, a->dv + s->row0 * a->lddv + g * a->dim,
                     a->lddv);
        }
    }
}

void avx512bf16_attention_grad(struct device *d, enum dtype dtype, int n_heads, int n_kv, int head_dim,
                               float scale, int n_seqs, const struct attn_seq *seqs, const float *q,
                               int64_t ldq, const float *k, int64_t ldk, const float *v, int64_t ldv,
                               enum dtype out_dtype, const void *out, int64_t ldo, const float *lse,
                               const float *dout, int64_t lddo, float *dq, int64_t lddq, float *dk,
                               int64_t lddk, float *dv, int64_t lddv)
{
    if (!avx512bf16_pairs(dtype, head_dim)) {
        avx512_attention_grad(d, dtype, n_heads, n_kv, head_dim, scale, n_seqs, seqs, q, ldq, k, ldk, v, ldv,
                              out_dtype, out, ldo, lse, dout, lddo, dq, lddq, dk, lddk, dv, lddv);
        return;
    }
    assert(n_kv > 0 && n_heads % n_kv == 0 && scale > 0 && (out_dtype == DT_F32 || out_dtype == DT_BF16));
    struct attn_grad a = {.d = d,
                          .dtype = dtype,
                          .n_heads = n_heads,
                          .n_kv = n_kv,
                          .group = n_heads / n_kv,
                          .dim = head_dim,
                          .scale = scale,
                          .c2 = scale * LOG2E,
                          .seqs = seqs,
                          .q = q,
                          .k = k,
                          .v = v,
                          .out_dtype = out_dtype,
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
    double pairs = 0;
    for (int i = 0; i < n_seqs; i++) {
        pairs += attn_pairs(&seqs[i]);
        a.part_rows = max_i64(a.part_rows, seqs[i].row0 + seqs[i].n_rows);
    }
    // Few long sequences: heads are shared out too.
    size_t list = ((size_t)n_seqs + 1) * sizeof *a.tree,
           parts = (size_t)(2 * (n_heads - n_kv) * a.part_rows * head_dim);
    int threads = pool_threads(d->pool);
    a.tree = scratch_shared(d, list);
    int64_t n_trees = attn_trees(n_seqs, seqs, a.tree), units = n_trees * n_kv;
    if (a.group > 1 && threads > 1 && units < 4 * threads) {
        a.parts = scratch_shared(d, parts * sizeof(float) + list);
        a.tree = (int32_t *)(a.parts + parts);
        attn_trees(n_seqs, seqs, a.tree);
        units = n_trees * n_heads;
    }
    if (units)
        split_run(d, units, 1, pairs * n_heads * (0.04 * head_dim + 1) / (double)units, grad_units, &a);
    if (a.parts && n_seqs)
        split_run(d, (int64_t)n_seqs * n_kv, 1, pairs / n_seqs * 0.1, parts_add, &a);
}
