// Template: keys and values into their pages (struct attn_cache).
#include "kernels/ref/ref.h"

struct kv_write {
    const struct attn_cache *c;
    const struct attn_seq *seqs;
    const float *k, *v;
    int64_t ldk, ldv;
};

// FP8 codes are of numbers that were divided by their scale.
ALWAYS void cache_store(const enum dtype t, void *base, int64_t i, v16 a, int64_t n)
{
    if (t == DT_F32)
        v_store_n((float *)base + i, a, n);
    else if (t == DT_BF16)
        v_store_bf16_n((uint16_t *)base + i, a, n);
    else
        v_store_fp8_n((uint8_t *)base + i, a, n);
}

static float row_scale(int64_t dim, const float *x)
{
    v16 top = v_zero();
    for (int64_t j = 0; j < dim; j += 16)
        top = v_max(v_abs(v_load_n(x + j, min_i64(16, dim - j))), top);
    return max2(v_fold_max(top), 1e-12f) / 448;
}

// Where a run of positions goes: into one page, from slot `slot` on.
struct run {
    const float *k, *v; // [n, D] stride ldk, ldv
    int64_t at, slot, n;
    float k_scale[16], v_scale[16]; // DT_FP8
};

ALWAYS v16 row_load(const enum dtype t, const float *x, int64_t n, float scale)
{
    v16 a = v_load_n(x, n);
    return t == DT_FP8 ? v_div(a, v_set(scale)) : a;
}

// Rows one by one: the values as they lie, the keys down a column of the page, a line of the cache for each element. All lines are
// asked for first, so that their misses overlap.
ALWAYS void write_rows(const enum dtype t, const struct kv_write *w, const struct run *r)
{
    const struct attn_cache *c = w->c;
    const int64_t dim = c->head_dim, step = c->page_tokens, size = (int64_t)dtype_bytes(t);
    char *column = (char *)c->k + (r->at + r->slot) * size;
    for (int64_t j = 0; j < dim; j++)
        __builtin_prefetch(column + j * step * size, 1);
    for (int64_t i = 0; i < r->n; i++, column += size) {
        const float *k = r->k + i * w->ldk, *v = r->v + i * w->ldv;
        for (int64_t j = 0; j < dim; j += 16) {
            int64_t cols = min_i64(16, dim - j);
            cache_store(t, c->v, r->at + (r->slot + i) * dim + j, row_load(t, v + j, cols, r->v_scale[i]),
                        cols);
            if (t == DT_F32) {
                for (int64_t l = 0; l < cols; l++)
                    ((float *)column)[(j + l) * step] = k[j + l];
            } else if (t == DT_BF16) {
                uint16_t code[16];
                v_store_bf16(code, v_load_n(k + j, cols));
                for (int64_t l = 0; l < cols; l++)
                    ((uint16_t *)column)[(j + l) * step] = code[l];
            } else {
                uint8_t code[16];
                v_store_fp8_n(code, row_load(t, k + j, cols, r->k_scale[i]), 16);
                for (int64_t l = 0; l < cols; l++)
                    ((uint8_t *)column)[(j + l) * step] = code[l];
            }
        }
    }
}

// Sixteen rows: squares of keys are transposed in registers.
ALWAYS void write_squares(const enum dtype t, const struct kv_write *w, const struct run *r)
{
    const struct attn_cache *c = w->c;
    const int64_t dim = c->head_dim;
    for (int64_t j = 0; j < dim; j += 16) {
        int64_t cols = min_i64(16, dim - j);
        v16 k[16];
#pragma GCC unroll 16
        for (int64_t i = 0; i < 16; i++)
            k[i] = row_load(t, r->k + i * w->ldk + j, cols, r->k_scale[i]);
        for (int64_t i = 0; i < 16; i++)
            cache_store(t, c->v, r->at + (r->slot + i) * dim + j,
                        row_load(t, r->v + i * w->ldv + j, cols, r->v_scale[i]), cols);
        v_transpose(k);
        for (int64_t i = 0; i < cols; i++)
            cache_store(t, c->k, r->at + (j + i) * c->page_tokens + r->slot, k[i], 16);
    }
}

#define WRITE_DEFINE(name, t)                                                                                \
    static void write_rows_##name(const struct kv_write *w, const struct run *r)                             \
    {                                                                                                        \
        write_rows(t, w, r);                                                                                 \
    }                                                                                                        \
    static void write_squares_##name(const struct kv_write *w, const struct run *r)                          \
    {                                                                                                        \
        write_squares(t, w, r);                                                                              \
    }
WRITE_DEFINE(f32, DT_F32)
WRITE_DEFINE(bf16, DT_BF16)
WRITE_DEFINE(fp8, DT_FP8)

// FP8: the scales of a run, into r and beside its page.
static void run_scales(const struct kv_write *w, struct run *r)
{
    const struct attn_cache *c = w->c;
    int64_t to = r->at / c->head_dim + r->slot;
    for (int64_t i = 0; i < r->n; i++) {
        c->k_scale[to + i] = r->k_scale[i] = row_scale(c->head_dim, r->k + i * w->ldk);
        c->v_scale[to + i] = r->v_scale[i] = row_scale(c->head_dim, r->v + i * w->ldv);
    }
}

static void write_run(const struct kv_write *w, const struct attn_seq *s, int64_t g, int64_t pos, int64_t n)
{
    const struct attn_cache *c = w->c;
    int64_t dim = c->head_dim, row = s->row0 + pos - s->pos0;
    struct run r = {.k = w->k + row * w->ldk + g * dim,
                    .v = w->v + row * w->ldv + g * dim,
                    .at = ((int64_t)s->pages[pos / c->page_tokens] * c->n_kv + g) * dim * c->page_tokens,
                    .slot = pos % c->page_tokens,
                    .n = n};
    if (c->dtype == DT_FP8)
        run_scales(w, &r);
    static void (*const write[3][2])(const struct kv_write *,
                                     const struct run *) = {{write_rows_f32, write_squares_f32},
                                                            {write_rows_bf16, write_squares_bf16},
                                                            {write_rows_fp8, write_squares_fp8}};
    write[c->dtype][n == 16](w, &r);
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

void LANES(kv_write)(struct device *d, const struct attn_cache *c, int n_seqs, const struct attn_seq *seqs,
                     const float *k, int64_t ldk, const float *v, int64_t ldv)
{
    ref_cache_check(c);
    struct kv_write w = {c, seqs, k, v, ldk, ldv};
    int64_t rows = 0, units = (int64_t)n_seqs * c->n_kv;
    for (int i = 0; i < n_seqs; i++)
        rows += seqs[i].n_rows;
    if (units)
        split_run(d, units, 1, (double)rows / n_seqs * c->head_dim * 0.8, kv_units, &w);
}
