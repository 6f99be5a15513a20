// Attention on pairs of bf16 (avx512bf16.h has the order), for everything but sequences of one row (attention_few.c).
//
// A tile is up to TILE_LANES rows (query, head) of one sequence that share a key/value head; each row is a lane, so that maxima,
// exponentials and sums of the soft-max are vertical and keys and values are broadcast. The tile walks the keys from the
// first on in steps of ATTN_STEP. Which rows share a tile moves no bits.
#include <assert.h>
#include <math.h>

#include "kernels/avx512bf16/attention.h"
#include "kernels/fmath.h"
#include "kernels/ref/ref.h"

#define LANE_VECS  3
#define TILE_LANES (16 * LANE_VECS)
#define CHUNK      8 // keys, or columns of values, whose accumulators are in registers at once

// All arrays are [...][TILE_LANES] whatever the number of vectors in use.
struct tile {
    int n, vecs; // rows; vectors of lanes, those past n hold zeros and the last position
    int64_t dim;
    int64_t row[TILE_LANES];
    int head[TILE_LANES];
    int32_t pos[TILE_LANES]; // ascending
    float m[TILE_LANES], l[TILE_LANES], shrink[TILE_LANES];
    uint32_t *q;  // [D / 2] pairs
    uint32_t *p;  // [ATTN_STEP / 2] pairs of probabilities
    float *s, *o; // [ATTN_STEP] scores, [D]
    // Of each pair of keys: the halves that each lane sees, and the lanes that see any.
    uint32_t mask[ATTN_STEP / 2][LANE_VECS];
    __mmask16 lanes[ATTN_STEP / 2][LANE_VECS];
    char *wide; // FP8: the step's keys and values as bf16
};

// The keys of one step.
struct step {
    int64_t first; // key
    int n_keys;    // up to the last that any row sees
    int n_clear;   // pairs of keys that every row sees
    struct kv_block block[ATTN_STEP / ATTN_BLOCK];
};

static size_t tile_scratch(enum dtype t, int64_t dim)
{
    size_t words = (size_t)TILE_LANES * (size_t)(dim / 2 + ATTN_STEP / 2 + ATTN_STEP + dim);
    return words * 4 + (t == DT_FP8 ? (size_t)(2 * ATTN_STEP * dim * 2) : 0);
}

// ---- queries in, results out -----------------------------------------------------------------------------------------

static void tile_rows(const struct attention *a, const struct attn_seq *s, int64_t g, int64_t tile,
                      void *scratch, struct tile *t)
{
    int64_t total = (int64_t)s->n_rows * a->group, first = tile * TILE_LANES;
    t->n = (int)min_i64(TILE_LANES, total - first);
    t->vecs = (t->n + 15) / 16;
    t->dim = a->c->head_dim;
    t->q = scratch;
    t->p = t->q + TILE_LANES * t->dim / 2;
    t->s = (float *)(t->p + TILE_LANES * ATTN_STEP / 2);
    t->o = t->s + TILE_LANES * ATTN_STEP;
    t->wide = (char *)(t->o + TILE_LANES * t->dim);
    for (int i = 0; i < 16 * t->vecs; i++) {
        int64_t at = first + (i < t->n ? i : t->n - 1);
        t->row[i] = s->row0 + at / a->group;
        t->pos[i] = (int32_t)(s->pos0 + at / a->group);
        t->head[i] = (int)(g * a->group + at % a->group);
        t->m[i] = -INFINITY;
        t->l[i] = 0;
    }
    for (int64_t i = 0; i < TILE_LANES * t->dim; i += 16)
        v_store(t->o + i, v_zero());
    for (int v = 0; v < t->vecs; v++)
        for (int64_t j = 0; j < t->dim; j += 32) {
            v16 x[16];
            for (int l = 0; l < 16; l++) {
                int i = 16 * v + l;
                const float *q = a->q + t->row[i] * a->ldq + t->head[i] * t->dim + j;
                x[l] = i < t->n ? v_neighbours(q, t->dim - j) : v_zero();
            }
            v_transpose(x);
            for (int64_t l = 0; l < min_i64(16, (t->dim - j) / 2); l++)
                v_store((float *)(t->q + (j / 2 + l) * TILE_LANES + 16 * v), x[l]);
        }
}

static void tile_write(const struct attention *a, const struct tile *t)
{
    for (int v = 0; v < t->vecs; v++) {
        v16 inverse = v_div(v_set(1), v_load(t->l + 16 * v));
        for (int64_t j = 0; j < t->dim; j += 16) {
            v16 x[16];
            int64_t cols = min_i64(16, t->dim - j);
            for (int64_t l = 0; l < 16; l++)
                x[l] = l < cols ? v_mul(v_load(t->o + (j + l) * TILE_LANES + 16 * v), inverse) : v_zero();
            v_transpose(x);
            for (int l = 0; l < 16 && 16 * v + l < t->n; l++)
                rows_store(a->out_dtype, a->out,
                           t->row[16 * v + l] * a->ldo + t->head[16 * v + l] * t->dim + j, x[l], cols);
        }
    }
    for (int i = 0; i < t->n && a->lse; i++)
        a->lse[t->row[i] * a->n_heads + t->head[i]] = fmaf(t->m[i], a->scale, fmath_log(t->l[i]));
}

// ---- one step --------------------------------------------------------------------------------------------------------

static struct step step_of(const struct attention *a, const struct attn_seq *s, int64_t g, struct tile *t,
                           int64_t first)
{
    struct step r = {.first = first, .n_keys = (int)min_i64(ATTN_STEP, t->pos[t->n - 1] + 1 - first)};
    r.n_clear = (int)max_i64(0, min_i64(r.n_keys, t->pos[0] + 1 - first)) / 2;
    for (int b = 0; b * ATTN_BLOCK < r.n_keys; b++)
        r.block[b] = kv_block_at(a->c, s, g, first / ATTN_BLOCK + b);
    for (int v = 0; v < t->vecs; v++) { // position of each lane in the step, in both halves
        __m512i seen = _mm512_sub_epi32(_mm512_loadu_si512(t->pos + 16 * v), _mm512_set1_epi32((int)first));
        seen = _mm512_max_epi32(_mm512_min_epi32(seen, _mm512_set1_epi32(ATTN_STEP)), _mm512_set1_epi32(-1));
        seen =
            _mm512_or_si512(_mm512_slli_epi32(seen, 16), _mm512_and_si512(seen, _mm512_set1_epi32(0xffff)));
        for (int i = r.n_clear; 2 * i < r.n_keys; i++) {
            t->mask[i][v] = _mm512_cmple_epi16_mask(_mm512_set1_epi32((2 * i + 1) << 16 | 2 * i), seen);
            t->lanes[i][v] = _mm512_cmple_epi32_mask(_mm512_set1_epi32((int)first + 2 * i),
                                                     _mm512_loadu_si512(t->pos + 16 * v));
        }
    }
    return r;
}

// FP8: the step's codes to bf16, once for all rows of the tile.
static void step_widen(const struct tile *t, struct step *r)
{
    const int64_t half = ATTN_BLOCK * t->dim * 2,
                  row = 2 * t->dim * 2; // bytes: a block's keys or values, a pair-row of values
    for (int b = 0; b * ATTN_BLOCK < r->n_keys; b++) {
        struct kv_block *k = &r->block[b];
        char *keys = t->wide + b * half, *values = t->wide + (ATTN_STEP / ATTN_BLOCK + b) * half;
        __m512i lo, hi;
        for (int64_t i = 0; i < t->dim / 2; i++) {
            widen_pairs((const uint8_t *)k->k + i * k->k_bytes, &lo, &hi);
            _mm512_storeu_si512(keys + i * 128, lo);
            _mm512_storeu_si512(keys + i * 128 + 64, hi);
        }
        for (int64_t i = 0; i < ATTN_BLOCK / 2; i++)
            for (int64_t j = 0; j < t->dim; j += 32) {
                widen_pairs((const uint8_t *)k->v + i * k->v_bytes + 2 * j, &lo, &hi);
                _mm512_storeu_si512(values + i * row + 4 * j, lo);
                _mm512_storeu_si512(values + i * row + 4 * j + 64, hi);
            }
        k->k = keys;
        k->v = values;
        k->k_bytes = 128;
        k->v_bytes = row;
    }
}

// Scores of CHUNK keys from j0 on, and their maxima; masked: some rows do not see some of them.
ALWAYS void score_chunk(const int vecs, struct tile *t, const struct step *r, int64_t j0, v16 *top)
{
    const struct kv_block *b = &r->block[j0 / ATTN_BLOCK];
    const char *k = b->k + j0 % ATTN_BLOCK * 4;
    const float *q = (const float *)t->q;
    v16 acc[CHUNK * LANE_VECS];
#pragma GCC unroll 24
    for (int i = 0; i < CHUNK * vecs; i++)
        acc[i] = v_zero();
    for (int64_t i = 0; i < t->dim / 2; i++, k += b->k_bytes, q += TILE_LANES) {
        v16 x[LANE_VECS];
#pragma GCC unroll 3
        for (int v = 0; v < vecs; v++)
            x[v] = v_load(q + 16 * v);
#pragma GCC unroll 8
        for (int j = 0; j < CHUNK; j++) {
            __m512i pair = v_broadcast(k + 4 * j);
#pragma GCC unroll 3
            for (int v = 0; v < vecs; v++)
                acc[j * vecs + v] = v_dot_pairs(acc[j * vecs + v], x[v], pair);
        }
    }
    bool masked = j0 + CHUNK > 2 * r->n_clear;
#pragma GCC unroll 8
    for (int j = 0; j < CHUNK; j++)
#pragma GCC unroll 3
        for (int v = 0; v < vecs; v++) {
            v16 s = acc[j * vecs + v];
            if (b->k_scale)
                s = v_mul(s, v_set(b->k_scale[j0 % ATTN_BLOCK + j]));
            v_store(t->s + (j0 + j) * TILE_LANES + 16 * v, s);
            if (!masked)
                top[v] = v_max(top[v], s);
            else
                top[v] =
                    _mm512_mask_max_ps(top[v],
                                       _mm512_cmpge_epi32_mask(_mm512_loadu_si512(t->pos + 16 * v),
                                                               _mm512_set1_epi32((int)(r->first + j0) + j)),
                                       top[v], s);
        }
}

// Scores → pairs of probabilities; m, l and shrink of the vector of lanes v.
ALWAYS void softmax_vec(const bool scaled, struct tile *t, const struct step *r, float c2, int v, v16 top)
{
    v16 c = v_set(c2), old = v_load(t->m + 16 * v), shift = v_neg(v_mul(top, c));
    v16 shrink = v_exp2(v_mul(v_sub(old, top), c)), l = v_mul(v_load(t->l + 16 * v), shrink);
    v_store(t->m + 16 * v, top);
    v_store(t->shrink + 16 * v, shrink);
    const float *s = t->s + 16 * v;
    for (int i = 0; 2 * i < r->n_keys; i++, s += 2 * TILE_LANES) {
        v16 a = v_exp2(v_fma(v_load(s), c, shift)), b = v_exp2(v_fma(v_load(s + TILE_LANES), c, shift));
        __m512i pair = (__m512i)v_pairs(a, b);
        if (i >= r->n_clear)
            pair = _mm512_maskz_mov_epi16(t->mask[i][v], pair);
        l = v_dot_seen(i < r->n_clear ? 0xffff : t->lanes[i][v], l, (v16)pair, ONES);
        if (scaled) {
            const float *vs = r->block[2 * i / ATTN_BLOCK].v_scale + 2 * i % ATTN_BLOCK;
            pair = (__m512i)v_pairs(v_mul(a, v_set(vs[0])), v_mul(b, v_set(vs[1])));
            if (i >= r->n_clear)
                pair = _mm512_maskz_mov_epi16(t->mask[i][v], pair);
        }
        v_store((float *)t->p + i * TILE_LANES + 16 * v, (v16)pair);
    }
    v_store(t->l + 16 * v, l);
}

// o = o shrink + p v of n columns from d0 on.
ALWAYS void value_chunk(const int n, const int vecs, struct tile *t, const struct step *r, int64_t d0)
{
    v16 acc[CHUNK * LANE_VECS];
    float *o = t->o + d0 * TILE_LANES;
    const float *p = (const float *)t->p;
#pragma GCC unroll 8
    for (int d = 0; d < n; d++)
#pragma GCC unroll 3
        for (int v = 0; v < vecs; v++)
            acc[d * vecs + v] = v_mul(v_load(o + d * TILE_LANES + 16 * v), v_load(t->shrink + 16 * v));
    int i = 0;
    for (int b = 0; i < r->n_clear; b++) {
        const char *pair = r->block[b].v + 4 * d0;
        for (int stop = (int)min_i64(r->n_clear, (b + 1) * ATTN_BLOCK / 2); i < stop;
             i++, pair += r->block[b].v_bytes, p += TILE_LANES) {
            v16 x[LANE_VECS];
#pragma GCC unroll 3
            for (int v = 0; v < vecs; v++)
                x[v] = v_load(p + 16 * v);
#pragma GCC unroll 8
            for (int d = 0; d < n; d++) {
                __m512i y = v_broadcast(pair + 4 * d);
#pragma GCC unroll 3
                for (int v = 0; v < vecs; v++)
                    acc[d * vecs + v] = v_dot_pairs(acc[d * vecs + v], x[v], y);
            }
        }
    }
    for (; 2 * i < r->n_keys; i++, p += TILE_LANES) { // not every row sees these
        const struct kv_block *b = &r->block[2 * i / ATTN_BLOCK];
        const char *pair = b->v + i % (ATTN_BLOCK / 2) * b->v_bytes + 4 * d0;
#pragma GCC unroll 8
        for (int d = 0; d < n; d++)
#pragma GCC unroll 3
            for (int v = 0; v < vecs; v++)
                acc[d * vecs + v] =
                    v_dot_seen(t->lanes[i][v], acc[d * vecs + v], v_load(p + 16 * v),
                               _mm512_maskz_mov_epi16(t->mask[i][v], v_broadcast(pair + 4 * d)));
    }
#pragma GCC unroll 8
    for (int d = 0; d < n; d++)
#pragma GCC unroll 3
        for (int v = 0; v < vecs; v++)
            v_store(o + d * TILE_LANES + 16 * v, acc[d * vecs + v]);
}

ALWAYS void step_run(const int vecs, const struct attention *a, struct tile *t, struct step *r)
{
    v16 top[LANE_VECS];
#pragma GCC unroll 3
    for (int v = 0; v < vecs; v++)
        top[v] = v_load(t->m + 16 * v);
    for (int64_t j = 0; j < r->n_keys; j += CHUNK)
        score_chunk(vecs, t, r, j, top);
#pragma GCC unroll 3
    for (int v = 0; v < vecs; v++)
        if (a->c->dtype == DT_FP8)
            softmax_vec(true, t, r, a->c2, v, top[v]);
        else
            softmax_vec(false, t, r, a->c2, v, top[v]);
    int64_t d = 0;
    for (; d + CHUNK <= t->dim; d += CHUNK)
        value_chunk(CHUNK, vecs, t, r, d);
    for (; d < t->dim; d += 2)
        value_chunk(2, vecs, t, r, d);
}

static void step_1(const struct attention *a, struct tile *t, struct step *r)
{
    step_run(1, a, t, r);
}
static void step_2(const struct attention *a, struct tile *t, struct step *r)
{
    step_run(2, a, t, r);
}
static void step_3(const struct attention *a, struct tile *t, struct step *r)
{
    step_run(3, a, t, r);
}

// ---- the op ----------------------------------------------------------------------------------------------------------

// Sequences of one row have a unit for each key/value head, others for each of its tiles.
static bool seq_few(const struct attention *a, const struct attn_seq *s)
{
    return s->n_rows == 1 && a->group <= FEW_ROWS;
}
static int64_t seq_tiles(const struct attention *a, const struct attn_seq *s)
{
    return seq_few(a, s) ? 1 : ceil_div((int64_t)s->n_rows * a->group, TILE_LANES);
}

static void attention_tile(const struct attention *a, const struct attn_seq *s, int64_t g, int64_t tile,
                           void *scratch)
{
    static void (*const run[LANE_VECS])(const struct attention *, struct tile *,
                                        struct step *) = {step_1, step_2, step_3};
    struct tile t;
    tile_rows(a, s, g, tile, scratch, &t);
    for (int64_t first = 0; first <= t.pos[t.n - 1]; first += ATTN_STEP) {
        struct step r = step_of(a, s, g, &t, first);
        if (a->c->dtype == DT_FP8)
            step_widen(&t, &r);
        run[t.vecs - 1](a, &t, &r);
    }
    tile_write(a, &t);
}

// The long tiles of a sequence come first, so that threads end together.
static void attention_units(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct attention *a = ctx;
    size_t few = few_scratch(a->c->head_dim), tile = tile_scratch(a->c->dtype, a->c->head_dim);
    void *scratch = scratch_get(a->d, thread, few > tile ? few : tile);
    int s = 0;
    for (int64_t u = begin; u < end; u++) {
        while (a->first[s + 1] <= u)
            s++;
        int64_t tiles = seq_tiles(a, &a->seqs[s]), i = u - a->first[s], n_kv = a->c->n_kv;
        const struct attn_seq *next = &a->seqs[i + 1 < n_kv || s + 1 == a->n_seqs ? s : s + 1];
        if (seq_few(a, &a->seqs[s]))
            few_rows(a, &a->seqs[s], i, next, (i + 1) % n_kv, scratch);
        else
            attention_tile(a, &a->seqs[s], i % n_kv, tiles - 1 - i / n_kv, scratch);
    }
}

void avx512bf16_attention(struct device *d, const struct attn_cache *c, int n_heads, float scale, int n_seqs,
                          const struct attn_seq *seqs, const float *q, int64_t ldq, enum dtype out_dtype,
                          void *out, int64_t ldo, float *lse)
{
    if (!avx512bf16_pairs(c->dtype, c->head_dim)) {
        avx512_attention(d, c, n_heads, scale, n_seqs, seqs, q, ldq, out_dtype, out, ldo, lse);
        return;
    }
    ref_cache_check(c);
    assert(n_heads % c->n_kv == 0 && scale > 0 && (out_dtype == DT_F32 || out_dtype == DT_BF16));
    int64_t *first = scratch_shared(d, (size_t)(n_seqs + 1) * sizeof *first);
    struct attention a = {d,     c, n_heads, n_heads / c->n_kv, scale, scale * LOG2E, n_seqs, seqs,
                          first, q, ldq,     out_dtype,         out,   ldo,           lse};
    double pairs = 0; // (row, key) pairs of one head
    double bytes = 0; // of keys and values
    first[0] = 0;
    for (int i = 0; i < n_seqs; i++) {
        assert(seqs[i].n_rows >= 1);
        first[i + 1] = first[i] + c->n_kv * seq_tiles(&a, &seqs[i]);
        pairs += (double)seqs[i].n_rows * (seqs[i].pos0 + 0.5 * seqs[i].n_rows + 16);
        bytes += (double)(seqs[i].pos0 + seqs[i].n_rows) * (double)(c->n_kv * c->head_dim * 2) *
                 (double)dtype_bytes(c->dtype);
    }
    int64_t units = first[n_seqs];
    double products = pairs * n_heads * (0.014 * c->head_dim + 0.3),
           way = bytes * 0.055; // or the way here, out of memory
    if (units)
        split_run(d, units, 1, (products > way ? products : way) / (double)units, attention_units, &a);
}
