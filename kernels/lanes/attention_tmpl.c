// Template: causal attention over paged keys and values. A tile is up to TILE_ROWS rows (query, head) of one sequence that share a
// key/value head; it walks the key blocks together, each row with its own soft-max state, in the order of ref/attention.c.
#include <assert.h>
#include <math.h>

#include "kernels/fmath.h"
#include "kernels/lanes/rows_tmpl.c"
#include "kernels/lanes/tile_tmpl.c"
#include "kernels/ref/ref.h"

TILE_EACH(TILE_DEFINE, f32, DT_F32)
TILE_EACH(TILE_DEFINE, bf16, DT_BF16)
TILE_EACH(TILE_DEFINE, fp8, DT_FP8)
TILE_EACH(TILE_DEFINE_PART, f32, DT_F32)
TILE_EACH(TILE_DEFINE_PART, bf16, DT_BF16)
TILE_EACH(TILE_DEFINE_PART, fp8, DT_FP8)

// By dtype of the cache and height.
static tile_fn *const FULL[3][TILE_ROWS] = {
    {TILE_EACH(TILE_NAME, f32)}, {TILE_EACH(TILE_NAME, bf16)}, {TILE_EACH(TILE_NAME, fp8)}};
static tile_fn *const PART[3][TILE_ROWS] = {
    {TILE_EACH(TILE_NAME_PART, f32)}, {TILE_EACH(TILE_NAME_PART, bf16)}, {TILE_EACH(TILE_NAME_PART, fp8)}};

#define TILE_WIDTH (16 * TILE_COLS)
#define LD_SCORES  (2 * ATTN_BLOCK)

// Tiles of few rows, as decoding makes them, have too few chains to hide an fma's latency behind: they go FEW_COLS vectors wide, over
// two blocks of keys or 64 columns of values at once.
#define FEW_ROWS (TILE_ROWS / 4)
#define FEW_COLS 4

// tile_chain of FEW_COLS columns. Pages lie anywhere, and no hardware prefetcher knows the next one: a row of b asks for its like in
// the blocks ahead, whose two halves of the columns begin at ahead[0] and ahead[1].
ALWAYS void few_chain(const int rows, const enum dtype t, int64_t n_k, const struct operands *o,
                      const char *const *ahead, v16 *acc)
{
    const char *b = o->b, *ahead0 = ahead[0], *ahead1 = ahead[1];
    const int64_t step = o->b_k * (int64_t)dtype_bytes(t);
    for (int64_t k = 0; k < n_k; k++, b += step, ahead0 += step, ahead1 += step) {
        v16 bv[FEW_COLS];
#pragma GCC unroll 4
        for (int v = 0; v < FEW_COLS; v++)
            bv[v] = tile_load(t, b, v / 2 * o->b_pair + v % 2 * 16);
        __builtin_prefetch(ahead0);
        __builtin_prefetch(ahead1);
        if (t == DT_F32) {
            __builtin_prefetch(ahead0 + 64);
            __builtin_prefetch(ahead1 + 64);
        }
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            v16 av = v_set(o->a[r * o->a_row + k]);
#pragma GCC unroll 4
            for (int v = 0; v < FEW_COLS; v++)
                acc[r * FEW_COLS + v] = v_fma(av, bv[v], acc[r * FEW_COLS + v]);
        }
    }
}

#define FEW_DEFINE(rows, name, t)                                                                            \
    static void few_##name##_##rows(int64_t n_k, const struct operands *o, const char *const *ahead,         \
                                    float *c, int64_t ldc)                                                   \
    {                                                                                                        \
        v16 acc[(rows)*FEW_COLS];                                                                            \
        _Pragma("GCC unroll 16") for (int i = 0; i < (rows)*FEW_COLS; i++) acc[i] = v_zero();                \
        few_chain(rows, t, n_k, o, ahead, acc);                                                              \
        _Pragma("GCC unroll 16") for (int i = 0; i < (rows)*FEW_COLS; i++)                                   \
            v_store(c + i / FEW_COLS * ldc + i % FEW_COLS * 16, acc[i]);                                     \
    }
#if TILE_ROWS == 12
#define FEW_EACH(X, ...) X(1, __VA_ARGS__) X(2, __VA_ARGS__) X(3, __VA_ARGS__)
#else
#define FEW_EACH(X, ...) X(1, __VA_ARGS__)
#endif
#define FEW_NAME(rows, name) few_##name##_##rows,
FEW_EACH(FEW_DEFINE, f32, DT_F32)
FEW_EACH(FEW_DEFINE, bf16, DT_BF16)
FEW_EACH(FEW_DEFINE, fp8, DT_FP8)
typedef void few_fn(int64_t n_k, const struct operands *o, const char *const *ahead, float *c, int64_t ldc);
static few_fn *const FEW[3][FEW_ROWS] = {
    {FEW_EACH(FEW_NAME, f32)}, {FEW_EACH(FEW_NAME, bf16)}, {FEW_EACH(FEW_NAME, fp8)}};

struct attention {
    struct device *d;
    const struct attn_cache *c;
    int n_heads, group; // group: query heads a key/value head
    float scale;
    int n_seqs;
    const struct attn_seq *seqs;
    const int64_t
        *first; // [n_seqs + 1] first unit of each sequence; a unit is (key/value head, tile of rows)
    const float *q;
    int64_t ldq;
    enum dtype out_dtype;
    void *out;
    int64_t ldo;
    float *lse;
};

// Rows of one tile and their state. dim_pad: D rounded up to TILE_WIDTH, the stride of q, t and o.
struct tile {
    int n;
    int64_t row[TILE_ROWS], pos[TILE_ROWS]; // row of q, position; positions ascend
    int head[TILE_ROWS];
    float m[16], l[16], shrink[2][16];
    int64_t blocks;              // that they see
    const struct attn_seq *next; // whose keys and values are wanted after these, of head next_g
    int64_t next_g;
    int64_t dim_pad;
    float *q, *s, *t,
        *o; // [n, dim_pad], [n, 2 * ATTN_BLOCK]: two blocks side by side, [n, dim_pad], [n, dim_pad]
};

// c[rows, n_cols] = (fresh ? 0 : c) + a b, for any width. ahead: what few rows ask for, of b's shape.
static void product(enum dtype t, int rows, int64_t n_k, const float *a, int64_t a_row, const void *b,
                    const char *ahead, int64_t b_k, int64_t n_cols, float *c, int64_t ldc, bool fresh)
{
    struct operands o = {.a = a, .a_row = a_row, .a_k = 1, .b_k = b_k, .b_pair = 32};
    for (int64_t j = 0, width; j < n_cols; j += width) {
        o.b = (const char *)b + j * (int64_t)dtype_bytes(t);
        bool few = fresh && rows <= FEW_ROWS && n_cols - j >= 16 * FEW_COLS;
        width = few ? 16 * FEW_COLS : TILE_WIDTH;
        if (few) {
            const char *const next[] = {ahead + j * (int64_t)dtype_bytes(t),
                                        ahead + (j + 32) * (int64_t)dtype_bytes(t)};
            FEW[t][rows - 1](n_k, &o, next, c + j, ldc);
        } else if (n_cols - j >= TILE_WIDTH)
            FULL[t][rows - 1](n_k, &o, -1, c + j, ldc, fresh);
        else
            PART[t][rows - 1](n_k, &o, n_cols - j, c + j, ldc, fresh);
    }
}

static int visible(const struct tile *r, int i, int64_t block)
{
    return (int)min_i64(ATTN_BLOCK, r->pos[i] + 1 - block * ATTN_BLOCK);
}

// The first row that sees anything of the block.
static int block_rows(const struct tile *r, int64_t block)
{
    int i0 = 0;
    while (visible(r, i0, block) <= 0)
        i0++;
    return i0;
}

// Scores of a block's rows → their probabilities in place, and the states' update: all maxima, all exponentials, all sums, so that
// the folds of different rows overlap.
// The block's scores are the first (which = 0) or second of the two in r->s. FP8: k_scale, v_scale [ATTN_BLOCK] of the
// block's keys, else NULL.
static void softmax_step(struct tile *r, int64_t block, int which, float scale, const float *k_scale,
                         const float *v_scale)
{
    int i0 = block_rows(r, block);
    v16 low = v_set(-INFINITY), sc = v_set(scale);
    float m[16] = {0}, sum[16] = {0};
    for (int i = i0; i < r->n; i++) {
        float *s = r->s + i * LD_SCORES + which * ATTN_BLOCK;
        int n_keys = visible(r, i, block);
        v16 a = v_load(s), b = v_load(s + 16);
        if (k_scale) {
            a = v_mul(a, v_load(k_scale));
            b = v_mul(b, v_load(k_scale + 16));
        }
        a = v_mul(a, sc);
        b = v_mul(b, sc);
        if (n_keys < ATTN_BLOCK) {
            a = v_first_n(a, low, n_keys);
            b = v_first_n(b, low, max_i64(0, n_keys - 16));
        }
        v_store(s, a);
        v_store(s + 16, b);
        float fold = v_fold_max(v_max(a, b));
        m[i] = r->m[i] > fold ? r->m[i] : fold;
    }
    for (int i = i0; i < r->n; i++) {
        float *s = r->s + i * LD_SCORES + which * ATTN_BLOCK;
        int n_keys = visible(r, i, block);
        v16 top = v_set(m[i]), a = v_exp(v_sub(v_load(s), top)), b = v_exp(v_sub(v_load(s + 16), top));
        if (n_keys < ATTN_BLOCK) {
            a = v_first_n(a, v_zero(), n_keys);
            b = v_first_n(b, v_zero(), max_i64(0, n_keys - 16));
        }
        v_store(s, v_scale ? v_mul(a, v_load(v_scale)) : a); // masked ones are not read
        v_store(s + 16, v_scale ? v_mul(b, v_load(v_scale + 16)) : b);
        sum[i] = v_fold(v_add(a, b));
    }
    if (r->n <=
        FEW_ROWS) { // row by row: nothing is stored narrow and loaded wide again, which would wait for the stores
        for (int i = i0; i < r->n; i++) {
            v16 shrink = v_exp(v_set(r->m[i] - m[i]));
            r->shrink[which][i] = v_first(shrink);
            r->l[i] = v_first(v_fma(v_set(r->l[i]), shrink, v_set(sum[i])));
            r->m[i] = m[i];
        }
        return;
    }
    // The states of all rows at once, one row a lane.
    v16 shrink = v_exp(v_sub(v_load(r->m), v_load(m))), l = v_fma(v_load(r->l), shrink, v_load(sum));
    float ln[16];
    v_store(r->shrink[which], shrink);
    v_store(ln, l);
    for (int i = i0; i < r->n; i++) {
        r->m[i] = m[i];
        r->l[i] = ln[i];
    }
}

// Element of the cache's k where the block's keys start; its values start at row `slot` of the same page.
static int64_t block_page(const struct attn_cache *c, const struct attn_seq *s, int64_t g, int64_t block)
{
    int64_t page = s->pages[block * ATTN_BLOCK / c->page_tokens];
    return (page * c->n_kv + g) * c->head_dim * c->page_tokens;
}
static const float *block_scales(const struct attn_cache *c, const float *scales, const struct attn_seq *s,
                                 int64_t g, int64_t block)
{
    int64_t page = s->pages[block * ATTN_BLOCK / c->page_tokens];
    return scales ? scales + (page * c->n_kv + g) * c->page_tokens + block * ATTN_BLOCK % c->page_tokens
                  : NULL;
}
static int64_t block_slot(const struct attn_cache *c, int64_t block)
{
    return block * ATTN_BLOCK % c->page_tokens;
}

// Where the keys (or values) of a block lie; of one past the end, those of what comes next.
static const char *keys_at(const struct attention *a, const struct attn_seq *s, int64_t g, int64_t block)
{
    return (const char *)a->c->k +
           (block_page(a->c, s, g, block) + block_slot(a->c, block)) * (int64_t)dtype_bytes(a->c->dtype);
}
static const char *values_at(const struct attention *a, const struct attn_seq *s, int64_t g, int64_t block)
{
    return (const char *)a->c->v +
           (block_page(a->c, s, g, block) + block_slot(a->c, block) * a->c->head_dim) *
               (int64_t)dtype_bytes(a->c->dtype);
}
typedef const char *block_fn(const struct attention *a, const struct attn_seq *s, int64_t g, int64_t block);
static const char *ahead_of(const struct attention *a, const struct attn_seq *s, int64_t g,
                            const struct tile *r, int64_t block, block_fn *at)
{
    if (block < r->blocks)
        return at(a, s, g, block);
    int64_t last = (r->next->pos0 + r->next->n_rows - 1) / ATTN_BLOCK;
    return at(a, r->next, r->next_g, min_i64(block - r->blocks, last));
}

// q k of one block, or of two for few rows.
static void tile_scores(const struct attention *a, const struct attn_seq *s, int64_t g, struct tile *r,
                        int64_t block, int n_blocks)
{
    const struct attn_cache *c = a->c;
    int i0 = block_rows(r, block), n = r->n - i0;
    const char *k = keys_at(a, s, g, block);
    const float *q = r->q + i0 * r->dim_pad;
    float *to = r->s + i0 * LD_SCORES;
    if (n_blocks == 1) {
        product(c->dtype, n, c->head_dim, q, r->dim_pad, k, k, c->page_tokens, ATTN_BLOCK, to, LD_SCORES,
                true);
        return;
    }
    const char *const ahead[] = {ahead_of(a, s, g, r, block + 2, keys_at),
                                 ahead_of(a, s, g, r, block + 3, keys_at)};
    struct operands o = {.a = q,
                         .a_row = r->dim_pad,
                         .a_k = 1,
                         .b = k,
                         .b_k = c->page_tokens,
                         .b_pair = (keys_at(a, s, g, block + 1) - k) / (int64_t)dtype_bytes(c->dtype)};
    FEW[c->dtype][n - 1](c->head_dim, &o, ahead, to, LD_SCORES);
}

// o = o shrink + p v of one block, p in the place of its scores.
static void tile_values(const struct attention *a, const struct attn_seq *s, int64_t g, struct tile *r,
                        int64_t block, int which)
{
    const struct attn_cache *c = a->c;
    int64_t dim = c->head_dim, size = (int64_t)dtype_bytes(c->dtype);
    const char *v = values_at(a, s, g, block);
    const char *ahead = r->n <= FEW_ROWS ? ahead_of(a, s, g, r, block + 2, values_at) : v;
    const float *p = r->s + which * ATTN_BLOCK;
    int i0 = block_rows(r, block);
    // Keys that every row sees go together; what later rows see beyond them continues each row's chain.
    int common = visible(r, i0, block);
    product(c->dtype, r->n - i0, common, p + i0 * LD_SCORES, LD_SCORES, v, ahead, dim, dim,
            r->t + i0 * r->dim_pad, r->dim_pad, true);
    for (int i = i0, same; i < r->n; i += same) {
        for (same = 1; i + same < r->n && r->pos[i + same] == r->pos[i];)
            same++;
        int more = visible(r, i, block) - common;
        if (more > 0)
            product(c->dtype, same, more, p + i * LD_SCORES + common, LD_SCORES, v + common * dim * size, v,
                    dim, dim, r->t + i * r->dim_pad, r->dim_pad, false);
    }
    for (int i = i0; i < r->n; i++) {
        v16 shrink = v_set(r->shrink[which][i]);
        for (int64_t j = 0; j < r->dim_pad; j += 16) {
            float *o = r->o + i * r->dim_pad + j;
            v_store(o, v_fma(v_load(o), shrink, v_load(r->t + i * r->dim_pad + j)));
        }
    }
}

// Two blocks go step by step beside each other: what they have to wait for overlaps.
static void tile_blocks(const struct attention *a, const struct attn_seq *s, int64_t g, struct tile *r,
                        int64_t block, int n_blocks)
{
    tile_scores(a, s, g, r, block, n_blocks);
    for (int i = 0; i < n_blocks; i++)
        softmax_step(r, block + i, i, a->scale, block_scales(a->c, a->c->k_scale, s, g, block + i),
                     block_scales(a->c, a->c->v_scale, s, g, block + i));
    for (int i = 0; i < n_blocks; i++)
        tile_values(a, s, g, r, block + i, i);
}

static void tile_rows(const struct attention *a, const struct attn_seq *s, int64_t g, int64_t tile,
                      const struct attn_seq *next, int64_t next_g, float *scratch)
{
    int64_t total = (int64_t)s->n_rows * a->group, first = tile * TILE_ROWS, dim = a->c->head_dim;
    struct tile r = {.n = (int)min_i64(TILE_ROWS, total - first),
                     .next = next,
                     .next_g = next_g,
                     .dim_pad = ceil_div(dim, TILE_WIDTH) * TILE_WIDTH};
    r.q = scratch;
    r.t = r.q + TILE_ROWS * r.dim_pad;
    r.o = r.t + TILE_ROWS * r.dim_pad;
    r.s = r.o + TILE_ROWS * r.dim_pad;
    for (int i = 0; i < r.n; i++) {
        r.row[i] = s->row0 + (first + i) / a->group;
        r.pos[i] = s->pos0 + (first + i) / a->group;
        r.head[i] = (int)(g * a->group + (first + i) % a->group);
        r.m[i] = -INFINITY;
        for (int64_t j = 0; j < dim; j += 16)
            v_store(r.q + i * r.dim_pad + j,
                    v_load_n(a->q + r.row[i] * a->ldq + r.head[i] * dim + j, min_i64(16, dim - j)));
        for (int64_t j = 0; j < r.dim_pad; j += 16) {
            v_store(r.t + i * r.dim_pad + j, v_zero()); // the padding stays zero
            v_store(r.o + i * r.dim_pad + j, v_zero());
        }
    }
    r.blocks = r.pos[r.n - 1] / ATTN_BLOCK + 1;
    for (int64_t b = 0, n; b < r.blocks; b += n) {
        n = r.n <= FEW_ROWS && b + 1 < r.blocks ? 2 : 1;
        tile_blocks(a, s, g, &r, b, (int)n);
    }
    for (int i = 0; i < r.n; i++) {
        v16 l = v_set(r.l[i]);
        for (int64_t j = 0; j < dim; j += 16)
            rows_store(a->out_dtype, a->out, r.row[i] * a->ldo + r.head[i] * dim + j,
                       v_div(v_load(r.o + i * r.dim_pad + j), l), min_i64(16, dim - j));
        if (a->lse)
            a->lse[r.row[i] * a->n_heads + r.head[i]] = r.m[i] + fmath_log(r.l[i]);
    }
}

static void attention_units(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct attention *a = ctx;
    int64_t dim_pad = ceil_div(a->c->head_dim, TILE_WIDTH) * TILE_WIDTH;
    float *scratch =
        scratch_get(a->d, thread, (size_t)(TILE_ROWS * (3 * dim_pad + LD_SCORES)) * sizeof *scratch);
    int s = 0;
    for (int64_t u = begin; u < end; u++) {
        while (a->first[s + 1] <= u)
            s++;
        int64_t tiles = ceil_div((int64_t)a->seqs[s].n_rows * a->group, TILE_ROWS), i = u - a->first[s];
        int64_t g = (i + 1) / tiles;
        bool more = g < a->c->n_kv || s + 1 == a->n_seqs;
        tile_rows(a, &a->seqs[s], i / tiles, i % tiles, &a->seqs[more ? s : s + 1], g % a->c->n_kv, scratch);
    }
}

void LANES(attention)(struct device *d, const struct attn_cache *c, int n_heads, float scale, int n_seqs,
                      const struct attn_seq *seqs, const float *q, int64_t ldq, enum dtype out_dtype,
                      void *out, int64_t ldo, float *lse)
{
    ref_cache_check(c);
    assert(n_heads % c->n_kv == 0 && (out_dtype == DT_F32 || out_dtype == DT_BF16));
    int64_t *first = scratch_shared(d, (size_t)(n_seqs + 1) * sizeof *first);
    struct attention a = {d,     c, n_heads, n_heads / c->n_kv, scale, n_seqs, seqs,
                          first, q, ldq,     out_dtype,         out,   ldo,    lse};
    double pairs = 0; // (row, key) pairs of one head
    first[0] = 0;
    for (int i = 0; i < n_seqs; i++) {
        assert(seqs[i].n_rows >= 1);
        first[i + 1] = first[i] + c->n_kv * ceil_div((int64_t)seqs[i].n_rows * a.group, TILE_ROWS);
        pairs += (double)seqs[i].n_rows * (seqs[i].pos0 + 0.5 * seqs[i].n_rows + 16);
    }
    int64_t units = first[n_seqs];
    if (units)
        split_run(d, units, 1, pairs * n_heads * (0.03 * c->head_dim + 1) / (double)units, attention_units,
                  &a);
}
