// kv_write, attention and attention_grad of every class against ref: batches of sequences of any length, prefill chunks and decode steps,
// grouped heads, page sizes and orders, sequences that share rows in the gradient, every cache format; pages are full of NaN where nothing was stored. The reference against
// plain formulas and differences in double.
#include "kernels/fmath.h"
#include "tests/kernels/attention_order.h"
#include "tests/kernels/check.h"

static struct check check;

enum { SEQS = 6, SEQ_PAGES = 16, PAGES = 64 };

struct batch {
    int n_seqs, n_heads, n_kv, dim, page_tokens;
    enum dtype t;
    struct attn_seq seqs[SEQS], history[SEQS];
    int root[SEQS]; // whole batches: the sequence whose rows are its first pos0, itself with pos0 = 0
    int32_t pages[SEQS][SEQ_PAGES];
    int n_pages, rows, past; // rows of this call; rows of the history
    int64_t ldq, ldk, ldo;
    float scale, *q, *k, *v, *hk, *hv; // now, and before
    bool lse, whole;                   // whole: every row that is attended is there, as the gradient wants it
    enum dtype out;                    // what attention writes
};

// Pages in any order, some of them nobody's.
static void batch_pages(struct batch *b)
{
    uint32_t all[PAGES], at = 0;
    for (uint32_t i = 0; i < PAGES; i++)
        all[i] = i;
    for (int s = 0; s < b->n_seqs; s++)
        b->n_pages += (b->seqs[s].pos0 + b->seqs[s].n_rows + b->page_tokens - 1) / b->page_tokens;
    b->n_pages += (int)check_between(&check, 0, 2);
    assert_true(b->n_pages <= PAGES);
    rng_shuffle_u32(&check.rng, all, (uint32_t)b->n_pages);
    for (int s = 0; s < b->n_seqs; s++) {
        b->seqs[s].pages = b->history[s].pages = b->pages[s];
        for (int p = 0; p * b->page_tokens < b->seqs[s].pos0 + b->seqs[s].n_rows; p++)
            b->pages[s][p] = (int32_t)all[at++];
    }
}

// Where the number of key j of sequence s and head g is: among those of this call (x), or of the history, which in a whole batch repeats
// the root's.
static const float *key_at(const struct batch *b, int s, int64_t j, int g, const float *x,
                           const float *history)
{
    const struct attn_seq *a = &b->seqs[s];
    if (j < a->pos0 && !b->whole)
        return history + (b->history[s].row0 + j) * b->ldk + g * b->dim;
    int64_t row = j < a->pos0 ? b->seqs[b->root[s]].row0 + j : a->row0 + j - a->pos0;
    return x + row * b->ldk + g * b->dim;
}

// Some sequences of a whole batch become branches: of the last one before them that is none.
static void batch_branch(struct batch *b, int s)
{
    struct attn_seq *a = &b->seqs[s];
    b->root[s] = s;
    if (s == 0 || check_between(&check, 0, 2) == 0)
        return;
    int root = b->root[s - 1];
    int64_t blocks = b->seqs[root].n_rows / ATTN_BLOCK;
    if (blocks) {
        b->root[s] = root;
        a->pos0 = ATTN_BLOCK * (int32_t)check_between(&check, 1, blocks);
    }
}

// The history of branches is what their roots have there now.
static void batch_repeat(struct batch *b)
{
    for (int s = 0; s < b->n_seqs && b->whole; s++)
        for (int64_t j = 0; j < b->seqs[s].pos0; j++) {
            int64_t to = (b->history[s].row0 + j) * b->ldk, from = (b->seqs[b->root[s]].row0 + j) * b->ldk;
            memcpy(b->hk + to, b->k + from, (size_t)(b->n_kv * b->dim) * sizeof(float));
            memcpy(b->hv + to, b->v + from, (size_t)(b->n_kv * b->dim) * sizeof(float));
        }
}

static void batch_new(int i, bool whole, struct batch *b)
{
    static const int dims[] = {16, 64, 8, 32, 5, 24, 48, 1, 17, 80, 128, 33}, pages[] = {32, 64, 96, 128};
    *b = (struct batch){.n_kv = (int)check_between(&check, 1, 3),
                        .dim = dims[rng_below(&check.rng, 12)],
                        .page_tokens = pages[rng_below(&check.rng, 4)],
                        .t = (enum dtype)(i % 3),
                        .scale = i % 5 ? 0.125f : 0.3f,
                        .lse = i % 4};
    bool long_ones = i % 20 == 0;
    // In the forward pass only: which sums of a gradient take in a masked 0 times NaN is nobody's promise. attention_truth has others.
    const int special = !whole && i % 8 == 5 ? 2 : 0;
    b->n_seqs = (int)check_between(&check, i % 50 ? 1 : 0, long_ones ? 2 : SEQS);
    b->n_heads = b->n_kv * (int)check_between(&check, 1, i % 10 == 3 ? 9 : 4);
    for (int s = 0; s < b->n_seqs; s++) {
        struct attn_seq *a = &b->seqs[s];
        bool decode = !whole && check_between(&check, 0, 1);
        // a quarter of the whole batches has something to share
        int most = long_ones ? 96 : whole && i % 4 == 1 && s < 4 ? 70 : 12;
        a->n_rows = decode ? 1 : (int)check_size(&check, 1, most);
        a->pos0 = whole ? 0 : (int)check_size(&check, 0, long_ones ? 257 : 34);
        if (whole)
            batch_branch(b, s);
        a->row0 = b->rows + (i % 7 ? 0 : (int)check_between(&check, 0, 2)); // rows that belong to no sequence
        b->rows = a->row0 + a->n_rows;
        b->history[s] = (struct attn_seq){b->past, a->pos0, 0, NULL};
        b->past += a->pos0;
    }
    batch_pages(b);
    b->ldq = check_stride(&check, b->n_heads * b->dim);
    b->ldk = check_stride(&check, b->n_kv * b->dim);
    b->ldo = check_stride(&check, b->n_heads * b->dim);
    b->q = check_floats(&check, b->rows * b->ldq, i % 6 ? 1 : 20, special);
    b->k = check_floats(&check, b->rows * b->ldk, 1, special);
    b->v = check_floats(&check, b->rows * b->ldk, 1, special);
    b->hk = check_floats(&check, b->past * b->ldk, 1, special);
    b->hv = check_floats(&check, b->past * b->ldk, 1, special);
    b->whole = whole;
    if (b->rows && i % 9 == 0) // a token of zeros, and of subnormals
        for (int64_t j = 0; j < b->n_kv * b->dim; j++) {
            b->k[j] = j % 2 ? -0.0f : 0.0f;
            b->v[j] = 1e-40f;
        }
    batch_repeat(b);
}

// ---- a device's pages ------------------------------------------------------------------------------------------------

static size_t page_elements(const struct batch *b)
{
    return (size_t)b->n_pages * (size_t)(b->n_kv * b->page_tokens);
}

static struct attn_cache cache_at(const struct batch *b, void *k, void *v, float *k_scale, float *v_scale)
{
    return (struct attn_cache){.dtype = b->t,
                               .page_tokens = b->page_tokens,
                               .n_kv = b->n_kv,
                               .head_dim = b->dim,
                               .k = k,
                               .v = v,
                               .k_scale = b->t == DT_FP8 ? k_scale : NULL,
                               .v_scale = b->t == DT_FP8 ? v_scale : NULL};
}

static void write_all(struct device *d, const struct batch *b, const struct attn_cache *c)
{
    d->k->kv_write(d, c, b->n_seqs, b->history, b->hk, b->ldk, b->hv, b->ldk);
    d->k->kv_write(d, c, b->n_seqs, b->seqs, b->k, b->ldk, b->v, b->ldk);
}

struct cache {
    struct guarded part[4]; // k, v, their scales
    struct attn_cache c;
};

static struct cache cache_new(struct device *d, const struct batch *b)
{
    struct cache c;
    for (int i = 0; i < 4; i++) {
        c.part[i] = guarded_new(page_elements(b) * (i < 2 ? (size_t)b->dim * dtype_bytes(b->t) : 4));
        memset(c.part[i].p, 0xff, c.part[i].bytes);
    }
    c.c = cache_at(b, c.part[0].p, c.part[1].p, c.part[2].p, c.part[3].p);
    write_all(d, b, &c.c);
    return c;
}

static void cache_done(struct cache *c, struct device *d)
{
    for (int i = 0; i < 4; i++) {
        guarded_check(&c->part[i], "pages", d);
        guarded_free(&c->part[i]);
    }
}

// What a cache of this format gives back of x [dim].
static void stored(const struct batch *b, const float *x, float *ret)
{
    float amax = 0;
    for (int i = 0; i < b->dim; i++)
        amax = fmaxf(amax, fabsf(x[i]));
    float scale = fmaxf(amax, 1e-12f) / 448.0f;
    for (int i = 0; i < b->dim; i++)
        ret[i] = b->t == DT_F32    ? x[i]
                 : b->t == DT_BF16 ? bf16_to_f32(f32_to_bf16(x[i]))
                                   : fp8_to_f32(f32_to_fp8(x[i] / scale)) * scale;
}

// ---- kv_write and attention ------------------------------------------------------------------------------------------

static void op_write(struct device *d, void *ctx, void **out)
{
    const struct batch *b = ctx;
    struct attn_cache c = cache_at(b, out[0], out[1], out[2], out[3]);
    write_all(d, b, &c);
}

static void op_attention(struct device *d, void *ctx, void **out)
{
    const struct batch *b = ctx;
    struct cache c = cache_new(d, b);
    d->k->attention(d, &c.c, b->n_heads, b->scale, b->n_seqs, b->seqs, b->q, b->ldq, b->out, out[0], b->ldo,
                    b->lse ? out[1] : NULL);
    cache_done(&c, d);
}

// Soft-max attention in double over the numbers that the cache gives back: one row of one head.
static void attention_double(const struct batch *b, int s, int row, int h, double *out, double *lse)
{
    float kj[128], vj[128];
    int keys = b->seqs[s].pos0 + row + 1, g = h / (b->n_heads / b->n_kv);
    const float *q = b->q + (b->seqs[s].row0 + row) * b->ldq + h * b->dim;
    double top = -1e300, sum = 0;
    for (int x = 0; x < b->dim; x++)
        out[x] = 0;
    for (int pass = 0; pass < 2; pass++)
        for (int j = 0; j < keys; j++) {
            double dot = 0;
            stored(b, key_at(b, s, j, g, b->k, b->hk), kj);
            for (int x = 0; x < b->dim; x++)
                dot += (double)q[x] * (double)kj[x];
            dot *= (double)b->scale;
            if (pass == 0) {
                top = fmax(top, dot);
                continue;
            }
            stored(b, key_at(b, s, j, g, b->v, b->hv), vj);
            sum += exp(dot - top);
            for (int x = 0; x < b->dim; x++)
                out[x] += exp(dot - top) * (double)vj[x];
        }
    for (int x = 0; x < b->dim; x++)
        out[x] /= sum;
    *lse = top + log(sum);
}

static void attention_truth(const struct batch *b)
{
    float *out = check_floats(&check, b->rows * b->ldo, 0, 0),
          *lse = check_floats(&check, b->rows * b->n_heads, 0, 0);
    void *p[] = {out, lse};
    op_attention(check.ref, (void *)b, p);
    for (int s = 0; s < b->n_seqs; s++) {
        int row = b->seqs[s].n_rows - 1, h = (int)check_between(&check, 0, b->n_heads - 1);
        int64_t at = b->seqs[s].row0 + row;
        double want[128], want_lse;
        attention_double(b, s, row, h, want, &want_lse);
        for (int x = 0; x < b->dim; x++)
            check_near("ref attention", check.ref, want[x], out[at * b->ldo + h * b->dim + x], 2e-4);
        if (b->lse)
            check_near("ref attention lse", check.ref, want_lse, lse[at * b->n_heads + h], 2e-4);
    }
}

// ---- classes with an order of their own --------------------------------------------------------------------------------

static bool own_pairs(const struct batch *b)
{
    return avx512bf16_pairs(b->t, b->dim);
}

// Pages are the class's own matter; what counts is what attention makes of them. Scales are everybody's.
static void own_write(void *ctx, const struct device *d, void *const *want, void *const *got)
{
    const struct batch *b = ctx;
    size_t pages = page_elements(b), bytes = pages * (size_t)b->dim * dtype_bytes(b->t);
    for (int i = own_pairs(b) ? 2 : 0; i < 4; i++)
        check_same_bytes("kv_write", d, want[i], got[i], i < 2 ? bytes : pages * 4);
}

static void own_keys(const struct batch *b, int s, int g, struct order_kv *ret)
{
    ret->n = b->seqs[s].pos0 + b->seqs[s].n_rows;
    assert_true(ret->n <= ORDER_KEYS);
    for (int64_t j = 0; j < ret->n; j++) {
        order_store(b->t, b->dim, key_at(b, s, j, g, b->k, b->hk), ret->k[j], &ret->k_scale[j]);
        order_store(b->t, b->dim, key_at(b, s, j, g, b->v, b->hv), ret->v[j], &ret->v_scale[j]);
    }
}

// n numbers that attention has written, from element i on.
static void same_out(const char *what, const struct device *d, const struct batch *b, const void *want,
                     const void *got, int64_t n)
{
    if (b->out == DT_F32)
        check_same(what, d, want, got, n);
    else
        check_same_bf16(what, d, want, got, n);
}
static double out_at(const struct batch *b, const void *out, int64_t i)
{
    return (double)(b->out == DT_F32 ? ((const float *)out)[i] : bf16_to_f32(((const uint16_t *)out)[i]));
}

// The order of the class bit for bit, and its distance from ref: q, and p in both sums, are rounded to bf16 (u = 2^-9 in the mean, twice
// that at most), which moves a score by sum |q - bf16(q)| |k| scale, lse by that and 2 u, and out by no more than 2 u + exp(2 of that) - 1
// of the largest value. Out in bf16: both are rounded once more. Where a sum is not finite, or might not be on its way, there is no distance.
static void own_attention(void *ctx, const struct device *d, void *const *want, void *const *got)
{
    static struct order_kv kv;
    const struct batch *b = ctx;
    const char *out = got[0];
    const float *lse = got[1];
    if (!own_pairs(b)) {
        same_out("attention", d, b, want[0], out, b->rows ? (b->rows - 1) * b->ldo + b->n_heads * b->dim : 0);
        check_same("attention lse", d, want[1], lse, b->rows * b->n_heads);
        return;
    }
    for (int s = 0; s < b->n_seqs; s++)
        for (int h = 0; h < b->n_heads; h++) {
            if (h % (b->n_heads / b->n_kv) == 0)
                own_keys(b, s, h / (b->n_heads / b->n_kv), &kv);
            for (int i = 0; i < b->seqs[s].n_rows; i++) {
                float model[ORDER_DIM];
                uint16_t model_bf16[ORDER_DIM];
                int64_t row = b->seqs[s].row0 + i, keys = b->seqs[s].pos0 + i + 1,
                        at = row * b->ldo + h * b->dim;
                const float *q = b->q + row * b->ldq + h * b->dim;
                float l = order_attention(&kv, b->dim, keys, b->scale, q, model, fmath_log);
                for (int x = 0; x < b->dim; x++)
                    model_bf16[x] = f32_to_bf16(model[x]);
                same_out("attention in its own order", d, b, b->out == DT_F32 ? (void *)model : model_bf16,
                         out + at * (int64_t)dtype_bytes(b->out), b->dim);
                if (b->lse)
                    check_same("lse in its own order", d, &l, &lse[row * b->n_heads + h], 1);
                double moved = 0, top = 0;
                for (int64_t j = 0; j < keys; j++) {
                    double sum = 0, rounded = 0;
                    for (int x = 0; x < b->dim; x++) {
                        double v = fabs((double)kv.v[j][x] * (double)kv.v_scale[j]);
                        double k = fabs((double)kv.k[j][x] * (double)kv.k_scale[j]);
                        sum += fabs((double)q[x]) * k;
                        rounded += fabs((double)q[x] - (double)order_bf16(q[x])) * k;
                        top = v < 1e37 ? fmax(top, v) : INFINITY;
                    }
                    double score = (double)b->scale * (rounded + sum * 0x1p-16);
                    moved = sum < 1e8 ? fmax(moved, score) : INFINITY;
                }
                if (b->lse && isfinite(moved))
                    check_near("lse in bf16 against ref", d,
                               (double)((const float *)want[1])[row * b->n_heads + h],
                               (double)lse[row * b->n_heads + h], moved + 2.1 * 0x1p-9 + 1e-5);
                double bound = (2.1 * 0x1p-9 + expm1(2 * moved)) * top + 1e-5;
                bound += b->out == DT_BF16 ? 2.1 * 0x1p-9 * top : 0;
                for (int x = 0; x < b->dim && isfinite(bound); x++)
                    check_near("attention in bf16 against ref", d, out_at(b, want[0], at + x),
                               out_at(b, out, at + x), bound);
            }
        }
}

static void test_attention(void **state)
{
    (void)state;
    for (int i = 0; i < CHECK_SHAPES; i++) {
        struct batch b;
        batch_new(i, false, &b);
        int64_t pages = (int64_t)page_elements(&b), size = (int64_t)dtype_bytes(b.t);
        void *nan = check_alloc(&check, (size_t)(pages * b.dim * 4), 4);
        memset(nan, 0xff, (size_t)(pages * b.dim * 4));
        struct output cache[] = {{"kv_write keys", 1, pages * b.dim, pages * b.dim, (size_t)size, nan},
                                 {"kv_write values", 1, pages * b.dim, pages * b.dim, (size_t)size, nan},
                                 {"kv_write key scales", 1, pages, pages, 4, nan},
                                 {"kv_write value scales", 1, pages, pages, 4, nan}};
        check.aligned = true;
        check_op(&check, OP(kv_write), op_write, &b, 4, cache, own_write);
        check.aligned = false;
        struct output out[] = {
            {"attention", b.rows, b.n_heads * b.dim, b.ldo, 4, check_floats(&check, b.rows * b.ldo, 1, 0)},
            {"attention lse", 1, b.rows * b.n_heads, b.rows * b.n_heads, 4,
             check_floats(&check, b.rows * b.n_heads, 1, 0)}};
        check_op(&check, OP(attention), op_attention, &b, 2, out, own_attention);
        b.out = DT_BF16;
        check.bf16 = true;
        out[0] = (struct output){"attention to bf16",
                                 b.rows,
                                 b.n_heads * b.dim,
                                 b.ldo,
                                 2,
                                 check_bytes(&check, (size_t)(b.rows * b.ldo) * 2, 2)};
        check_op(&check, OP(attention), op_attention, &b, 2, out, own_attention);
        b.out = DT_F32;
        check.bf16 = false;
        if (i % 8 == 1)
            attention_truth(&b);
        check_release(&check);
    }
}

// ---- the gradient ----------------------------------------------------------------------------------------------------

struct grad {
    struct batch b;
    float *out, *lse, *dout;
    uint16_t *out_bf16; // NULL, or what is handed over; out are then its numbers
    int64_t lddq, lddk, lddv;
};

static void op_grad(struct device *d, void *ctx, void **o)
{
    const struct grad *g = ctx;
    const struct batch *b = &g->b;
    d->k->attention_grad(d, b->t, b->n_heads, b->n_kv, b->dim, b->scale, b->n_seqs, b->seqs, b->q, b->ldq,
                         b->k, b->ldk, b->v, b->ldk, g->out_bf16 ? DT_BF16 : DT_F32,
                         g->out_bf16 ? (void *)g->out_bf16 : g->out, b->ldo, g->lse, g->dout, b->ldo, o[0],
                         g->lddq, o[1], g->lddk, o[2], g->lddv);
}

static void grad_new(int i, struct grad *g)
{
    struct batch *b = &g->b;
    batch_new(i, true, b);
    b->lse = true;
    b->scale = 0.2f;
    if (i % 6 == 0) // q of 20 makes exp(s - lse) of one key 1 and the others 0: nothing to see
        check_fill(&check, b->q, b->rows * b->ldq, 1, 0);
    g->out = check_floats(&check, b->rows * b->ldo, 0, 0);
    g->lse = check_floats(&check, b->rows * b->n_heads, 0, 0);
    g->dout = check_floats(&check, b->rows * b->ldo, 1, 0);
    g->lddq = check_stride(&check, b->n_heads * b->dim);
    g->lddk = check_stride(&check, b->n_kv * b->dim);
    g->lddv = check_stride(&check, b->n_kv * b->dim);
    void *p[] = {g->out, g->lse};
    op_attention(check.ref, b, p);
    g->out_bf16 = NULL;
}

// From here on the forward pass had written bf16.
static void grad_round(struct grad *g)
{
    int64_t n = g->b.rows * g->b.ldo;
    g->out_bf16 = check_alloc(&check, (size_t)n * 2, 2);
    check.ref->k->to_bf16(check.ref, n, g->out, g->out_bf16);
    check.ref->k->from_bf16(check.ref, n, g->out_bf16, g->out);
}

typedef float order_rows[ORDER_KEYS][ORDER_DIM];
typedef double bound_rows[ORDER_KEYS][ORDER_DIM];

// One head of one sequence in the class's own order. dk and dv [SEQS] hold each sequence's keys from its first row on; those that a branch
// has in common with its root are the root's.
static void own_head(const struct grad *g, const struct device *d, const struct order_kv *kv, int s, int h,
                     void *const *got, order_rows *dk, order_rows *dv)
{
    static float all_k[ORDER_KEYS][ORDER_DIM], all_v[ORDER_KEYS][ORDER_DIM], dq[ORDER_KEYS * ORDER_DIM];
    const struct batch *b = &g->b;
    const struct attn_seq *a = &b->seqs[s];
    int64_t row = a->row0;
    size_t before = (size_t)a->pos0 * sizeof all_k[0], own = (size_t)a->n_rows * sizeof all_k[0];
    int root = b->root[s];
    const struct order_head head = {.n = a->n_rows,
                                    .q = b->q + row * b->ldq + h * b->dim,
                                    .out = g->out + row * b->ldo + h * b->dim,
                                    .lse = g->lse + row * b->n_heads + h,
                                    .dout = g->dout + row * b->ldo + h * b->dim,
                                    .ldq = b->ldq,
                                    .ldo = b->ldo,
                                    .lddo = b->ldo,
                                    .ld_lse = b->n_heads,
                                    .dq = dq,
                                    .lddq = b->dim};
    memcpy(all_k, dk[root], before);
    memcpy(all_v, dv[root], before);
    order_grad(kv, b->dim, b->scale, &head, all_k, all_v);
    memcpy(dk[root], all_k, before);
    memcpy(dv[root], all_v, before);
    memcpy(dk[s], all_k + a->pos0, own);
    memcpy(dv[s], all_v + a->pos0, own);
    for (int64_t i = 0; i < a->n_rows; i++)
        check_same("dq in its own order", d, dq + i * b->dim,
                   (float *)got[0] + (row + i) * g->lddq + h * b->dim, b->dim);
}

// How far the roundings to bf16 (2^-9 each, at most two on any factor's way: FP8 keys and values are rounded twice) may bring one
// head's gradients from ref's: a score moves by scale 2 u sum |q k|, so P by a factor; dP by 2 u sum |dout v|, whatever cancels.
static void grad_bounds(const struct grad *g, const struct order_kv *kv, int s, int h, bound_rows dq,
                        bound_rows *dk, bound_rows *dv)
{
    const struct batch *b = &g->b;
    const struct attn_seq *a = &b->seqs[s];
    const double u2 = 2.02 * 0x1p-9, scale = (double)b->scale;
    for (int64_t i = 0; i < a->n_rows; i++)
        for (int x = 0; x < b->dim; x++)
            dq[i][x] = 0;
    for (int64_t i = 0; i < a->n_rows; i++)
        for (int64_t j = 0; j <= a->pos0 + i; j++) {
            int64_t row = a->row0 + i, key = j < a->pos0 ? j : j - a->pos0;
            int of = j < a->pos0 ? b->root[s] : s;
            const float *q = b->q + row * b->ldq + h * b->dim, *o = g->dout + row * b->ldo + h * b->dim;
            const float *out = g->out + row * b->ldo + h * b->dim;
            double dot = 0, size = 0, dp = 0, dp_size = 0;
            for (int x = 0; x < b->dim; x++) {
                double qk = (double)q[x] * (double)kv->k[j][x], ov = (double)o[x] * (double)kv->v[j][x];
                dot += qk;
                size += fabs(qk);
                dp += ov - (double)o[x] * (double)out[x];
                dp_size += fabs(ov) + fabs((double)o[x] * (double)out[x]);
            }
            double moved = expm1(scale * size * u2 + 1e-5) + u2;
            double p = exp(dot * scale - (double)g->lse[row * b->n_heads + h]);
            double ds = p * fabs(dp) * scale, e = ds * moved + p * (1 + moved) * scale * dp_size * u2;
            for (int x = 0; x < b->dim; x++) {
                dq[i][x] += (e + ds * u2) * fabs((double)kv->k[j][x]);
                dk[of][key][x] += (e + ds * u2) * fabs((double)q[x]);
                dv[of][key][x] += p * (moved + u2) * fabs((double)o[x]);
            }
        }
}

static void own_rows(const struct grad *g, const struct device *d, int s, double (*bound)[ORDER_DIM],
                     const float *want, const float *got, int64_t ld, int64_t at)
{
    for (int64_t i = 0; i < g->b.seqs[s].n_rows; i++)
        for (int x = 0; x < g->b.dim; x++) {
            int64_t e = (g->b.seqs[s].row0 + i) * ld + at + x;
            check_near("attention_grad in bf16 against ref", d, want[e], got[e], 1.1 * bound[i][x] + 1e-5);
        }
}

// One key/value head of all sequences, roots before their branches: bit for bit, and within the bounds of ref.
static void own_group(const struct grad *g, const struct device *d, int kv_head, void *const *want,
                      void *const *got)
{
    static struct order_kv kv[SEQS];
    static order_rows one_k[SEQS], one_v[SEQS], dk[SEQS], dv[SEQS];
    static bound_rows bound_q, bound_k[SEQS], bound_v[SEQS];
    const struct batch *b = &g->b;
    int group = b->n_heads / b->n_kv, at = kv_head * b->dim;
    for (int s = 0; s < b->n_seqs; s++) {
        own_keys(b, s, kv_head, &kv[s]);
        for (int64_t j = 0; j < kv[s].n; j++)
            for (int x = 0; x < b->dim; x++) {
                kv[s].k[j][x] = order_bf16(kv[s].k[j][x] * kv[s].k_scale[j]);
                kv[s].v[j][x] = order_bf16(kv[s].v[j][x] * kv[s].v_scale[j]);
                bound_k[s][j][x] = bound_v[s][j][x] = 0;
            }
    }
    for (int h = kv_head * group; h < (kv_head + 1) * group; h++) {
        for (int s = 0; s < b->n_seqs; s++) {
            own_head(g, d, &kv[s], s, h, got, one_k, one_v);
            grad_bounds(g, &kv[s], s, h, bound_q, bound_k, bound_v);
            own_rows(g, d, s, bound_q, want[0], got[0], g->lddq, h * b->dim);
        }
        for (int s = 0; s < b->n_seqs; s++) // the heads of a group are added in order
            for (int64_t i = 0; i < b->seqs[s].n_rows; i++)
                for (int x = 0; x < b->dim; x++) {
                    dk[s][i][x] = h % group ? dk[s][i][x] + one_k[s][i][x] : one_k[s][i][x];
                    dv[s][i][x] = h % group ? dv[s][i][x] + one_v[s][i][x] : one_v[s][i][x];
                }
    }
    for (int s = 0; s < b->n_seqs; s++) {
        own_rows(g, d, s, bound_k[s], want[1], got[1], g->lddk, at);
        own_rows(g, d, s, bound_v[s], want[2], got[2], g->lddv, at);
        for (int64_t i = 0; i < b->seqs[s].n_rows; i++) {
            int64_t row = b->seqs[s].row0 + i;
            check_same("dk in its own order", d, dk[s][i], (float *)got[1] + row * g->lddk + at, b->dim);
            check_same("dv in its own order", d, dv[s][i], (float *)got[2] + row * g->lddv + at, b->dim);
        }
    }
}

static void own_grad(void *ctx, const struct device *d, void *const *want, void *const *got)
{
    const struct grad *g = ctx;
    const struct batch *b = &g->b;
    int64_t ld[] = {g->lddq, g->lddk, g->lddv};
    for (int a = 0; a < 3 && !own_pairs(b) && b->rows; a++)
        check_same("attention_grad", d, want[a], got[a],
                   (b->rows - 1) * ld[a] + (a ? b->n_kv : b->n_heads) * b->dim);
    for (int kv_head = 0; own_pairs(b) && kv_head < b->n_kv; kv_head++)
        own_group(g, d, kv_head, want, got);
}

static void test_attention_grad(void **state)
{
    (void)state;
    for (int i = 0; i < CHECK_SHAPES; i++) {
        struct grad g;
        grad_new(i, &g);
        const struct batch *b = &g.b;
        struct output out[] = {{"attention_grad dq", b->rows, b->n_heads * b->dim, g.lddq, 4,
                                check_floats(&check, b->rows * g.lddq, 1, 0)},
                               {"attention_grad dk", b->rows, b->n_kv * b->dim, g.lddk, 4,
                                check_floats(&check, b->rows * g.lddk, 1, 0)},
                               {"attention_grad dv", b->rows, b->n_kv * b->dim, g.lddv, 4,
                                check_floats(&check, b->rows * g.lddv, 1, 0)}};
        check_op(&check, OP(attention_grad), op_grad, &g, 3, out, own_grad);
        grad_round(&g);
        check_op(&check, OP(attention_grad), op_grad, &g, 3, out, own_grad);
        check_release(&check);
    }
}

// loss = sum(out * dout) in double, over f32 pages.
static double loss_double(const struct grad *g)
{
    const struct batch *b = &g->b;
    double loss = 0, out[128], lse;
    for (int s = 0; s < b->n_seqs; s++)
        for (int row = 0; row < b->seqs[s].n_rows; row++)
            for (int h = 0; h < b->n_heads; h++) {
                attention_double(b, s, row, h, out, &lse);
                for (int x = 0; x < b->dim; x++)
                    loss += out[x] * (double)g->dout[(b->seqs[s].row0 + row) * b->ldo + h * b->dim + x];
            }
    return loss;
}

// An element of a sequence's row of q, k or v moved both ways.
static void test_grad_truth(void **state)
{
    (void)state;
    for (int i = 0; i < 36; i++) {
        struct grad g;
        grad_new(3 * i, &g); // DT_F32
        struct batch *b = &g.b;
        if (!b->n_seqs) {
            check_release(&check);
            continue;
        }
        float *d[3];
        int64_t ld[] = {g.lddq, g.lddk, g.lddv}, in_ld[] = {b->ldq, b->ldk, b->ldk};
        for (int a = 0; a < 3; a++)
            d[a] = check_floats(&check, b->rows * ld[a], 0, 0);
        op_grad(check.ref, &g, (void *[]){d[0], d[1], d[2]});
        for (int probe = 0; probe < 3; probe++) {
            float *in[] = {b->q, b->k, b->v};
            const struct attn_seq *s = &b->seqs[check_between(&check, 0, b->n_seqs - 1)];
            int64_t row = s->row0 + check_between(&check, 0, s->n_rows - 1);
            int64_t col = check_between(&check, 0, (probe ? b->n_kv : b->n_heads) * b->dim - 1);
            float *x = in[probe] + row * in_ld[probe] + col, keep = *x, up, down;
            *x = up = keep + 0x1p-10f;
            double high = loss_double(&g);
            *x = down = keep - 0x1p-10f;
            double low = loss_double(&g);
            *x = keep;
            check_near("attention_grad against differences", check.ref,
                       (high - low) / ((double)up - (double)down), d[probe][row * ld[probe] + col], 5e-4);
        }
        check_release(&check);
    }
}

int main(void)
{
    if (!check_init(&check, 22))
        return 77;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_attention),
                                       cmocka_unit_test(test_attention_grad),
                                       cmocka_unit_test(test_grad_truth)};
    return check_close(&check, "attention", cmocka_run_group_tests(tests, NULL, NULL));
}
