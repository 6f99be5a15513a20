// Keys and values into pages of pairs (avx512bf16.h). Caches of f32, and of head sizes that do not fit, are avx512's.
#include "kernels/avx512bf16/attention.h"
#include "kernels/ref/ref.h"

struct kv_write {
    const struct attn_cache *c;
    const struct attn_seq *seqs;
    const float *k, *v;
    int64_t ldk, ldv;
};

// n rows of one key/value head, into one page and head from slot `slot` on; k, v [n, D] stride ldk, ldv.
struct run {
    const float *k, *v;
    int64_t at, slot, n; // at: first element of the page and head
};

// ---- bf16 ------------------------------------------------------------------------------------------------------------

// A value row is every other half of a pair-row.
static void value_row(const struct attn_cache *c, const struct run *r, int64_t slot, const float *v)
{
    const int64_t dim = c->head_dim;
    uint16_t *to = (uint16_t *)c->v + r->at + slot / 2 * 2 * dim;
    for (int64_t j = 0; j < dim; j += 16) {
        int64_t cols = min_i64(16, dim - j);
        __m512i code = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(v_load_n(v + j, cols)));
        __mmask32 halves =
            (cols == 16 ? 0xffffffffu : (1u << 2 * cols) - 1) & (slot % 2 ? 0xaaaaaaaau : 0x55555555u);
        _mm512_mask_storeu_epi16(to + 2 * j, halves, slot % 2 ? _mm512_slli_epi32(code, 16) : code);
    }
}

// One by one: a key goes down a column of the page, a pair in each line of the cache. All lines are asked for first.
static void bf16_rows(const struct kv_write *w, const struct run *r)
{
    const struct attn_cache *c = w->c;
    const int64_t dim = c->head_dim, step = c->page_tokens;
    uint32_t *column = (uint32_t *)((uint16_t *)c->k + r->at) + r->slot;
    for (int64_t i = 0; i < dim / 2; i++)
        __builtin_prefetch(column + i * step, 1);
    for (int64_t i = 0; i < r->n; i++, column++) {
        value_row(c, r, r->slot + i, r->v + i * w->ldv);
        for (int64_t j = 0; j < dim; j += 32) {
            uint32_t pairs[16];
            v_store((float *)pairs, v_neighbours(r->k + i * w->ldk + j, dim - j));
            for (int64_t l = 0; l < min_i64(16, (dim - j) / 2); l++)
                column[(j / 2 + l) * step] = pairs[l];
        }
    }
}

// Sixteen rows from an even slot: squares of key pairs are transposed in registers, rows of values zipped two by two.
static void bf16_squares(const struct kv_write *w, const struct run *r)
{
    const struct attn_cache *c = w->c;
    const int64_t dim = c->head_dim;
    uint32_t *k = (uint32_t *)((uint16_t *)c->k + r->at) + r->slot;
    for (int64_t j = 0; j < dim; j += 32) {
        v16 a[16];
#pragma GCC unroll 16
        for (int64_t i = 0; i < 16; i++)
            a[i] = v_neighbours(r->k + i * w->ldk + j, dim - j);
        v_transpose(a);
        for (int64_t i = 0; i < min_i64(16, (dim - j) / 2); i++)
            v_store((float *)(k + (j / 2 + i) * c->page_tokens), a[i]);
    }
    for (int64_t i = 0; i < 16; i += 2)
        for (int64_t j = 0; j < dim; j += 16) {
            int64_t cols = min_i64(16, dim - j);
            const float *v = r->v + i * w->ldv + j;
            v16 pairs = v_pairs(v_load_n(v, cols), v_load_n(v + w->ldv, cols));
            v_store_n((float *)((uint16_t *)c->v + r->at + (r->slot + i) * dim + 2 * j), pairs, cols);
        }
}

// ---- FP8 -------------------------------------------------------------------------------------------------------------

static float row_scale(int64_t dim, const float *x)
{
    v16 top = v_zero();
    for (int64_t j = 0; j < dim; j += 16)
        top = v_max(v_abs(v_load(x + j)), top);
    return max2(v_fold_max(top), 1e-12f) / 448;
}

// Codes of one row go byte by byte: each has a place of its own among the 64 that are widened together.
static void fp8_rows(const struct kv_write *w, const struct run *r)
{
    const struct attn_cache *c = w->c;
    const int64_t dim = c->head_dim, scales = r->at / dim;
    for (int64_t i = 0; i < r->n; i++) {
        const float *k = r->k + i * w->ldk, *v = r->v + i * w->ldv;
        int64_t slot = r->slot + i, to_k = widen_place(slot % 32, 0), to_v = slot / 2 * 2 * dim;
        float k_scale = row_scale(dim, k), v_scale = row_scale(dim, v);
        uint8_t *keys = (uint8_t *)c->k + r->at + slot / 32 * WIDEN_CODES + to_k,
                *values = (uint8_t *)c->v + r->at + to_v;
        c->k_scale[scales + slot] = k_scale;
        c->v_scale[scales + slot] = v_scale;
        for (int64_t j = 0; j < dim; j += 16) {
            uint8_t kc[16], vc[16];
            v_store_fp8_n(kc, v_div(v_load(k + j), v_set(k_scale)), 16);
            v_store_fp8_n(vc, v_div(v_load(v + j), v_set(v_scale)), 16);
            for (int64_t l = 0; l < 16; l++) {
                keys[(j + l) / 2 * 2 * c->page_tokens + l % 2] = kc[l];
                values[(j + l) / 32 * WIDEN_CODES + widen_place((j + l) % 32, slot % 2)] = vc[l];
            }
        }
    }
}

// ---- the op ----------------------------------------------------------------------------------------------------------

static void write_run(const struct kv_write *w, const struct attn_seq *s, int64_t g, int64_t pos, int64_t n)
{
    const struct attn_cache *c = w->c;
    int64_t dim = c->head_dim, row = s->row0 + pos - s->pos0;
    const struct run r = {.k = w->k + row * w->ldk + g * dim,
                          .v = w->v + row * w->ldv + g * dim,
                          .at =
                              ((int64_t)s->pages[pos / c->page_tokens] * c->n_kv + g) * dim * c->page_tokens,
                          .slot = pos % c->page_tokens,
                          .n = n};
    if (c->dtype == DT_FP8)
        fp8_rows(w, &r);
    else if (n == 16)
        bf16_squares(w, &r);
    else
        bf16_rows(w, &r);
}

// Runs end at multiples of 16, so that all but the ends of a long sequence are whole squares, inside one page.
static void kv_units(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct kv_write *w = ctx;
    for (int64_t u = begin; u < end; u++) {
        const struct attn_seq *s = &w->seqs[u / w->c->n_kv];
        for (int64_t pos = s->pos0, stop = pos + s->n_rows, n; pos < stop; pos += n) {
            n = min_i64(16 - pos % 16, stop - pos);
            write_run(w, s, u % w->c->n_kv, pos, n);
        }
    }
}

void avx512bf16_kv_write(struct device *d, const struct attn_cache *c, int n_seqs,
                         const struct attn_seq *seqs, const float *k, int64_t ldk, const float *v,
                         int64_t ldv)
{
    if (!avx512bf16_pairs(c->dtype, c->head_dim)) {
        avx512_kv_write(d, c, n_seqs, seqs, k, ldk, v, ldv);
        return;
    }
    ref_cache_check(c);
    struct kv_write w = {c, seqs, k, v, ldk, ldv};
    int64_t rows = 0, units = (int64_t)n_seqs * c->n_kv;
    for (int i = 0; i < n_seqs; i++)
        rows += seqs[i].n_rows;
    if (units)
        split_run(d, units, 1, (double)rows / n_seqs * c->head_dim * (c->dtype == DT_FP8 ? 2 : 0.5), kv_units,
                  &w);
}
