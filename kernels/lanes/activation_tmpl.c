// Template: embedding, rotary embedding, additions: row by row or element by element.
#include <assert.h>

struct rope {
    int64_t heads, dim;
    float *x;
    int64_t ldx;
    const int32_t *pos;
    const float *cos, *sin;
    int sign;
};

static void rope_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct rope *a = ctx;
    int64_t half = a->dim / 2;
    v16 sign = v_set((float)a->sign);
    for (int64_t row = begin; row < end; row++)
        for (int64_t i = 0; i < half; i += 16) {
            int64_t n = min_i64(16, half - i);
            v16 c = v_load_n(a->cos + a->pos[row] * half + i, n),
                s = v_mul(sign, v_load_n(a->sin + a->pos[row] * half + i, n));
            for (int64_t h = 0; h < a->heads; h++) {
                float *lo = a->x + row * a->ldx + h * a->dim + i, *hi = lo + half;
                v16 l = v_load_n(lo, n), u = v_load_n(hi, n);
                v_store_n(lo, v_fma(l, c, v_neg(v_mul(u, s))), n);
                v_store_n(hi, v_fma(u, c, v_mul(l, s)), n);
            }
        }
}

void LANES(rope)(struct device *d, int64_t t, int64_t heads, int64_t head_dim, float *x, int64_t ldx,
                 const int32_t *pos, const float *cos, const float *sin, int sign)
{
    assert(head_dim % 2 == 0 && (sign == 1 || sign == -1));
    struct rope a = {heads, head_dim, x, ldx, pos, cos, sin, sign};
    split_run(d, t, 1, 0.2 * (double)(heads * head_dim) + 5, rope_rows, &a);
}

struct elements {
    const float *x;
    float *y;
};

static void add_range(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct elements *a = ctx;
    for (int64_t i = begin; i < end; i += 16) {
        int64_t n = min_i64(16, end - i);
        v_store_n(a->y + i, v_add(v_load_n(a->y + i, n), v_load_n(a->x + i, n)), n);
    }
}

void LANES(add)(struct device *d, int64_t n, const float *x, float *y)
{
    struct elements a = {x, y};
    split_run(d, n, 16, 0.15, add_range, &a);
}

static void round_range(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct elements *a = ctx;
    for (int64_t i = begin; i < end; i += 16) {
        int64_t n = min_i64(16, end - i);
        v_store_n(a->y + i, v_round_bf16(v_load_n(a->y + i, n)), n);
    }
}

void LANES(round_bf16)(struct device *d, int64_t n, float *x)
{
    struct elements a = {NULL, x};
    split_run(d, n, 16, 0.15, round_range, &a);
}

struct columns {
    int64_t rows, n;
    const int32_t *ids; // NULL: all rows go to the first row of `to`
    const float *from;
    int64_t ld;
    float *to;
};

// Rows of `from` added to rows of `to`, in order: a task owns columns, so rows may collide.
static void add_columns(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct columns *a = ctx;
    for (int64_t t = 0; t < a->rows; t++) {
        float *to = a->to + (a->ids ? a->ids[t] * a->n : 0);
        const float *from = a->from + t * a->ld;
        for (int64_t i = begin; i < end; i += 16) {
            int64_t n = min_i64(16, end - i);
            v_store_n(to + i, v_add(v_load_n(to + i, n), v_load_n(from + i, n)), n);
        }
    }
}

void LANES(embed_grad)(struct device *d, int64_t c, int64_t t, const int32_t *ids, const float *dy,
                       float *dtable)
{
    struct columns a = {t, c, ids, dy, c, dtable};
    split_run(d, c, 32, 0.2 * (double)t, add_columns, &a);
}

void LANES(bias_grad)(struct device *d, int64_t m, int64_t n, const float *dy, int64_t lddy, float *db)
{
    struct columns a = {m, n, NULL, dy, lddy, db};
    split_run(d, n, 32, 0.15 * (double)m, add_columns, &a);
}

struct embed {
    enum dtype dtype;
    const void *table;
    int64_t c;
    const int32_t *ids;
    float *y;
};

static void embed_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct embed *a = ctx;
    for (int64_t t = begin; t < end; t++) {
        assert(a->ids[t] >= 0);
        int64_t from = a->ids[t] * a->c;
        for (int64_t i = 0; i < a->c; i += 16) {
            int64_t n = min_i64(16, a->c - i);
            v_store_n(a->y + t * a->c + i,
                      a->dtype == DT_F32 ? v_load_n((const float *)a->table + from + i, n)
                                         : v_load_bf16_n((const uint16_t *)a->table + from + i, n),
                      n);
        }
    }
}

void LANES(embed)(struct device *d, enum dtype dtype, const void *table, int64_t c, int64_t t,
                  const int32_t *ids, float *y)
{
    assert(dtype == DT_F32 || dtype == DT_BF16);
    struct embed a = {dtype, table, c, ids, y};
    split_run(d, t, 1, 0.15 * (double)c + 20, embed_rows, &a);
}
