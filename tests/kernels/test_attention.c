// kv_write, attention and attention_grad of every class against ref: batches of sequences of any length, prefill chunks and decode steps,
// grouped heads, page sizes and orders, every cache format; pages are full of NaN where nothing was stored. The reference against
// plain formulas and differences in double.
#include "tests/kernels/check.h"

static struct check check;

enum { SEQS = 6, SEQ_PAGES = 16, PAGES = 64 };

struct batch {
    int n_seqs, n_heads, n_kv, dim, page_tokens;
    enum dtype t;
    struct attn_seq seqs[SEQS], history[SEQS];
    int32_t pages[SEQS][SEQ_PAGES];
    int n_pages, rows, past; // rows of this call; rows of the history
    int64_t ldq, ldk, ldo;
    float scale, *q, *k, *v, *hk, *hv; // now, and before
    bool lse;
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
    b->n_seqs = (int)check_between(&check, i % 50 ? 1 : 0, long_ones ? 2 : SEQS);
    b->n_heads = b->n_kv * (int)check_between(&check, 1, 4);
    for (int s = 0; s < b->n_seqs; s++) {
        struct attn_seq *a = &b->seqs[s];
        bool decode = !whole && check_between(&check, 0, 1);
        a->n_rows = decode ? 1 : (int)check_size(&check, 1, long_ones ? 96 : 12);
        a->pos0 = whole ? 0 : (int)check_size(&check, 0, long_ones ? 257 : 34);
        a->row0 = b->rows + (i % 7 ? 0 : (int)check_between(&check, 0, 2)); // rows that belong to no sequence
        b->rows = a->row0 + a->n_rows;
        b->history[s] = (struct attn_seq){b->past, a->pos0, 0, NULL};
        b->past += a->pos0;
    }
    batch_pages(b);
    b->ldq = check_stride(&check, b->n_heads * b->dim);
    b->ldk = check_stride(&check, b->n_kv * b->dim);
    b->ldo = check_stride(&check, b->n_heads * b->dim);
    b->q = check_floats(&check, b->rows * b->ldq, i % 6 ? 1 : 20, 0);
    b->k = check_floats(&check, b->rows * b->ldk, 1, 0);
    b->v = check_floats(&check, b->rows * b->ldk, 1, 0);
    b->hk = check_floats(&check, b->past * b->ldk, 1, 0);
    b->hv = check_floats(&check, b->past * b->ldk, 1, 0);
    if (b->rows && i % 9 == 0) // a token of zeros, and of subnormals
        for (int64_t j = 0; j < b->n_kv * b->dim; j++) {
            b->k[j] = j % 2 ? -0.0f : 0.0f;
            b->v[j] = 1e-40f;
        }
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
    d->k->attention(d, &c.c, b->n_heads, b->scale, b->n_seqs, b->seqs, b->q, b->ldq, out[0], b->ldo,
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
            bool old = j < b->seqs[s].pos0;
            int64_t at =
                (old ? b->history[s].row0 + j : b->seqs[s].row0 + j - b->seqs[s].pos0) * b->ldk + g * b->dim;
            double dot = 0;
            stored(b, (old ? b->hk : b->k) + at, kj);
            for (int x = 0; x < b->dim; x++)
                dot += (double)q[x] * (double)kj[x];
            dot *= (double)b->scale;
            if (pass == 0) {
                top = fmax(top, dot);
                continue;
            }
            stored(b, (old ? b->hv : b->v) + at, vj);
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
        check_op(&check, OP(kv_write), op_write, &b, 4, cache, NULL);
        struct output out[] = {
            {"attention", b.rows, b.n_heads * b.dim, b.ldo, 4, check_floats(&check, b.rows * b.ldo, 1, 0)},
            {"attention lse", 1, b.rows * b.n_heads, b.rows * b.n_heads, 4,
             check_floats(&check, b.rows * b.n_heads, 1, 0)}};
        check_op(&check, OP(attention), op_attention, &b, 2, out, NULL);
        if (i % 8 == 1)
            attention_truth(&b);
        check_release(&check);
    }
}

// ---- the gradient ----------------------------------------------------------------------------------------------------

struct grad {
    struct batch b;
    float *out, *lse, *dout;
    int64_t lddq, lddk, lddv;
};

static void op_grad(struct device *d, void *ctx, void **o)
{
    const struct grad *g = ctx;
    const struct batch *b = &g->b;
    d->k->attention_grad(d, b->t, b->n_heads, b->n_kv, b->dim, b->scale, b->n_seqs, b->seqs, b->q, b->ldq,
                         b->k, b->ldk, b->v, b->ldk, g->out, b->ldo, g->lse, g->dout, b->ldo, o[0], g->lddq,
                         o[1], g->lddk, o[2], g->lddv);
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
        check_op(&check, OP(attention_grad), op_grad, &g, 3, out, NULL);
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
