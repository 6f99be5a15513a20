// Contract 3, class by class: the bits of a row do not depend on the other rows, on how a prompt was cut into chunks, on page size or
// page order, or on the number of threads (1 to 4).
#include "tests/kernels/check.h"
#include "tests/races.h"

#define THREADS 4

static struct rng rng;
static struct device *devices[THREADS]; // one class, 1 … 4 threads

static void fill(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = rng_normal(&rng);
}

static void same(const char *what, const struct device *d, const float *a, const float *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (memcmp(a + i, b + i, sizeof *a))
            fail_msg("%s on %s: element %lld differs: %a and %a", what, d->name, (long long)i, (double)a[i],
                     (double)b[i]);
}

// x [m, k] rounded to bf16 in rows ld apart, the first of them `start` elements from the memory's; all else is NaN.
static uint16_t *spread(const float *x, int64_t m, int64_t k, int64_t ld, int64_t start)
{
    uint16_t *h = malloc((size_t)(start + m * ld) * sizeof *h);
    assert_non_null(h);
    for (int64_t i = 0; i < start + m * ld; i++)
        h[i] = 0x7fc0;
    for (int64_t i = 0; i < m * k; i++)
        h[start + i / k * ld + i % k] = f32_to_bf16(x[i]);
    return h;
}

static void same_bf16(const char *what, const struct device *d, const uint16_t *a, const uint16_t *b,
                      int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (a[i] != b[i])
            fail_msg("%s on %s: element %lld differs: %04x and %04x", what, d->name, (long long)i, a[i],
                     b[i]);
}

// y of M rows at once = y of each row alone = y of any part, on any number of threads; and from the rows rounded beforehand, wherever
// they begin.
static void gemm_rows(enum dtype t, int64_t m, int64_t n, int64_t k)
{
    float *x = malloc((size_t)(m * k) * 4), *w = malloc((size_t)(n * k) * 4),
          *y = malloc((size_t)(m * n) * 4);
    float *z = malloc((size_t)(m * n) * 4),
          *scales = malloc((size_t)((n + 127) / 128 * ((k + 127) / 128)) * 4);
    uint8_t *q = malloc((size_t)(n * k));
    fill(x, m * k);
    fill(w, n * k);
    struct device *one = devices[0];
    struct gemm_weight g = {t, n, k, device_alloc(one, one->k->weight_bytes(t, n, k)),
                            t == DT_FP8 ? scales : NULL};
    one->k->fp8_quantize(one, n, k, w, q, scales);
    one->k->weight_pack(one, t, n, k, t == DT_FP8 ? (void *)q : (void *)w, t == DT_FP8 ? DT_FP8 : DT_F32,
                        false, g.data);
    for (int64_t r = 0; r < m; r++)
        one->k->gemm(one, &g, 1, rows_f32(x + r * k, k), NULL, false, y + r * n, n);
    for (int i = 0; i < THREADS; i++) {
        devices[i]->k->gemm(devices[i], &g, m, rows_f32(x, k), NULL, false, z, n);
        same("gemm of all rows at once", devices[i], y, z, m * n);
        for (int64_t r = 0, part; r < m; r += part) {
            part = 1 + (int64_t)rng_below(&rng, (uint64_t)(m - r < 14 ? m - r : 14));
            devices[i]->k->gemm(devices[i], &g, part, rows_f32(x + r * k, k), NULL, false, z + r * n, n);
        }
        same("gemm in parts", devices[i], y, z, m * n);
        if (t != DT_F32) { // even and odd strides, from a pair's begin and from within one
            const int64_t ld = k + i % 2, start = i / 2;
            uint16_t *h = spread(x, m, k, ld, start);
            devices[i]->k->gemm(devices[i], &g, m, rows_bf16(h + start, ld), NULL, false, z, n);
            same("gemm of rows rounded beforehand", devices[i], y, z, m * n);
            free(h);
        }
    }
    device_free(one, g.data);
    free(x);
    free(w);
    free(y);
    free(z);
    free(scales);
    free(q);
}

static void test_gemm_rows(void **state)
{
    (void)state;
    for (int t = DT_F32; t <= DT_FP8; t++) {
        gemm_rows((enum dtype)t, 23, 576, 576);
        gemm_rows((enum dtype)t, 130, 96, 200);
        gemm_rows((enum dtype)t, 7, 700, 131);
        gemm_rows((enum dtype)t, 200, 264, 128);
        gemm_rows((enum dtype)t, 98, 100, 1700); // blocks of inputs
        for (int i = 0; i < 10; i++)
            gemm_rows((enum dtype)t, 1 + (int64_t)rng_below(&rng, 60), 1 + (int64_t)rng_below(&rng, 90),
                      1 + (int64_t)rng_below(&rng, 300));
    }
    // Weights that no cache is thought to hold, more rows than a chunk: ref and amx do not divide a product by the weights' size.
    if (devices[0]->isa >= ISA_AVX2 && devices[0]->isa <= ISA_AVX512BF16)
        gemm_rows(DT_BF16, RACES_ONLY ? 100 : 210, 2100, 2010);
}

// dw on any number of threads, from rows of f32 and from those rows rounded beforehand.
static void dw_threads(int64_t m, int64_t n, int64_t k)
{
    float *dy = malloc((size_t)(m * n) * 4), *x = malloc((size_t)(m * k) * 4),
          *want = malloc((size_t)(n * k) * 4), *got = malloc((size_t)(n * k) * 4);
    fill(dy, m * n);
    fill(x, m * k);
    uint16_t *half_dy = spread(dy, m, n, n, 0), *half_x = spread(x, m, k, k, 0);
    const struct rows dys[] = {rows_f32(dy, n), rows_bf16(half_dy, n)};
    const struct rows xs[] = {rows_f32(x, k), rows_bf16(half_x, k)};
    for (int t = DT_F32; t <= DT_BF16; t++) {
        memset(want, 0, (size_t)(n * k) * 4);
        devices[0]->k->gemm_dw(devices[0], (enum dtype)t, m, n, k, dys[0], xs[0], want);
        for (int i = 0; i < THREADS; i++)
            for (int way = 0; way < (t == DT_BF16 ? 2 : 1); way++) {
                const int rows = way ? 1 + i % 3 : 0; // which of the two are rounded
                memset(got, 0, (size_t)(n * k) * 4);
                devices[i]->k->gemm_dw(devices[i], (enum dtype)t, m, n, k, dys[rows & 1], xs[rows >> 1], got);
                same("gemm_dw", devices[i], want, got, n * k);
            }
    }
    free(dy);
    free(x);
    free(half_dy);
    free(half_x);
    free(want);
    free(got);
}

static void test_dw_threads(void **state)
{
    (void)state;
    dw_threads(300, 200, 330);
    dw_threads(2101, 43, 75); // several parts of the batch
    for (int i = 0; i < 10; i++)
        dw_threads(1 + (int64_t)rng_below(&rng, 300), 1 + (int64_t)rng_below(&rng, 200),
                   1 + (int64_t)rng_below(&rng, 200));
}

enum { HEADS = 6, KV = 2, DIM = 64, LEN = 150 };

// Pages full of NaN.
static struct attn_cache cache_new(struct device *d, enum dtype t, int page_tokens, int n_pages)
{
    size_t bytes = (size_t)(n_pages * KV * DIM * page_tokens) * dtype_bytes(t);
    size_t scales = (size_t)(n_pages * KV * page_tokens) * sizeof(float);
    struct attn_cache c = {t,
                           page_tokens,
                           KV,
                           DIM,
                           device_alloc(d, bytes),
                           device_alloc(d, bytes),
                           device_alloc(d, scales),
                           device_alloc(d, scales)};
    memset(c.k, 0xff, bytes);
    memset(c.v, 0xff, bytes);
    memset(c.k_scale, 0xff, scales);
    memset(c.v_scale, 0xff, scales);
    if (t != DT_FP8) {
        device_free(d, c.k_scale);
        device_free(d, c.v_scale);
        c.k_scale = c.v_scale = NULL;
    }
    return c;
}

static void cache_free(struct device *d, struct attn_cache *c)
{
    device_free(d, c->k);
    device_free(d, c->v);
    device_free(d, c->k_scale);
    device_free(d, c->v_scale);
}

// The same sequence through the cache, cut into chunks of `chunk` (0: random), pages of page_tokens in the order of `order`.
static void run_sequence(struct device *d, enum dtype t, int page_tokens, int chunk, uint64_t order,
                         const float *q, const float *k, const float *v, enum dtype out_dtype, void *out,
                         float *lse)
{
    int n_pages = (LEN + page_tokens - 1) / page_tokens + 3;
    uint32_t ids[16];
    int32_t pages[16];
    struct rng r;
    rng_init(&r, order, 7);
    for (int i = 0; i < n_pages; i++)
        ids[i] = (uint32_t)i;
    rng_shuffle_u32(&r, ids, (uint32_t)n_pages);
    for (int i = 0; i < n_pages; i++)
        pages[i] = (int32_t)ids[i];
    struct attn_cache c = cache_new(d, t, page_tokens, n_pages);
    for (int at = 0, n; at < LEN; at += n) {
        n = chunk ? chunk : 1 + (int)rng_below(&r, 60);
        n = n < LEN - at ? n : LEN - at;
        struct attn_seq s = {0, n, at, pages};
        d->k->kv_write(d, &c, 1, &s, k + at * KV * DIM, KV * DIM, v + at * KV * DIM, KV * DIM);
        d->k->attention(d, &c, HEADS, 0.125f, 1, &s, q + at * HEADS * DIM, HEADS * DIM, out_dtype,
                        (char *)out + at * HEADS * DIM * (int)dtype_bytes(out_dtype), HEADS * DIM,
                        lse + at * HEADS);
    }
    cache_free(d, &c);
}

static void test_attention_chunks(void **state)
{
    (void)state;
    static float q[LEN * HEADS * DIM], k[LEN * KV * DIM], v[LEN * KV * DIM], want[LEN * HEADS * DIM],
        got[LEN * HEADS * DIM];
    static float lse[LEN * HEADS], lse2[LEN * HEADS];
    static uint16_t want_bf16[LEN * HEADS * DIM], got_bf16[LEN * HEADS * DIM];
    fill(q, LEN * HEADS * DIM);
    fill(k, LEN * KV * DIM);
    fill(v, LEN * KV * DIM);
    for (int t = DT_F32; t <= DT_FP8; t++) {
        run_sequence(devices[0], (enum dtype)t, 64, LEN, 1, q, k, v, DT_F32, want, lse);
        devices[0]->k->to_bf16(devices[0], LEN * HEADS * DIM, want, want_bf16);
        static const int page_sizes[] = {32, 64, 128}, chunks[] = {1, 7, 33, 0, 0, LEN};
        for (int i = 0; i < THREADS; i++)
            for (int p = 0; p < 3; p++)
                for (int c = 0; c < 6; c++) {
                    const bool half = (i + p + c) % 2; // written as bf16
                    run_sequence(devices[i], (enum dtype)t, page_sizes[p], chunks[c],
                                 (uint64_t)(i * 100 + p * 10 + c), q, k, v, half ? DT_BF16 : DT_F32,
                                 half ? (void *)got_bf16 : (void *)got, lse2);
                    if (half)
                        same_bf16("attention to bf16", devices[i], want_bf16, got_bf16, LEN * HEADS * DIM);
                    else
                        same("attention", devices[i], want, got, LEN * HEADS * DIM);
                    same("attention lse", devices[i], lse, lse2, LEN * HEADS);
                }
    }
}

// A batch through kv_write, attention and its gradient; between the two, out is what models with weights of t hand over
// (rows_dtype), and afterwards its numbers.
struct copy {
    int n_seqs, rows;
    struct attn_seq seqs[8];
    int32_t pages[8][4], n_pages;
    float *q, *k, *v, *dout, *out, *lse, *dq, *dk, *dv;
};

static void copy_new(struct copy *c, int rows)
{
    *c = (struct copy){.rows = rows};
    float **wide[] = {&c->q, &c->dout, &c->out, &c->dq}, **narrow[] = {&c->k, &c->v, &c->dk, &c->dv};
    for (int i = 0; i < 4; i++) {
        *wide[i] = calloc((size_t)(rows * HEADS * DIM), sizeof(float));
        *narrow[i] = calloc((size_t)(rows * KV * DIM), sizeof(float));
    }
    c->lse = calloc((size_t)(rows * HEADS), sizeof(float));
}

static void copy_free(struct copy *c)
{
    float *all[] = {c->q, c->k, c->v, c->dout, c->out, c->lse, c->dq, c->dk, c->dv};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]);
}

static void copy_run(struct copy *c, struct device *d, enum dtype t)
{
    struct attn_cache cache = cache_new(d, t, 32, c->n_pages);
    void *out = calloc((size_t)(c->rows * HEADS * DIM), sizeof(float));
    d->k->kv_write(d, &cache, c->n_seqs, c->seqs, c->k, KV * DIM, c->v, KV * DIM);
    d->k->attention(d, &cache, HEADS, 0.125f, c->n_seqs, c->seqs, c->q, HEADS * DIM, rows_dtype(t), out,
                    HEADS * DIM, c->lse);
    d->k->attention_grad(d, t, HEADS, KV, DIM, 0.125f, c->n_seqs, c->seqs, c->q, HEADS * DIM, c->k, KV * DIM,
                         c->v, KV * DIM, rows_dtype(t), out, HEADS * DIM, c->lse, c->dout, HEADS * DIM, c->dq,
                         HEADS * DIM, c->dk, KV * DIM, c->dv, KV * DIM);
    if (rows_dtype(t) == DT_F32)
        memcpy(c->out, out, (size_t)(c->rows * HEADS * DIM) * sizeof(float));
    else
        d->k->from_bf16(d, c->rows * HEADS * DIM, out, c->out);
    free(out);
    cache_free(d, &cache);
}

static void copy_rows(const struct copy *from, int at, struct copy *to, int to_at, int n, bool with_dout)
{
    memcpy(to->q + to_at * HEADS * DIM, from->q + at * HEADS * DIM, (size_t)(n * HEADS * DIM) * 4);
    memcpy(to->k + to_at * KV * DIM, from->k + at * KV * DIM, (size_t)(n * KV * DIM) * 4);
    memcpy(to->v + to_at * KV * DIM, from->v + at * KV * DIM, (size_t)(n * KV * DIM) * 4);
    if (with_dout)
        memcpy(to->dout + to_at * HEADS * DIM, from->dout + at * HEADS * DIM, (size_t)(n * HEADS * DIM) * 4);
}

// What tree computed beside what whole did.
static void tree_compare(const struct device *d, const struct copy *tree, const struct copy *whole)
{
    for (int s = 0, root = 0; s < tree->n_seqs; s++) {
        const struct attn_seq *a = &tree->seqs[s];
        int row = a->row0, n = a->n_rows, at = whole->seqs[s].row0 + a->pos0;
        root = a->pos0 ? root : s;
        same("out of a branch", d, whole->out + at * HEADS * DIM, tree->out + row * HEADS * DIM,
             n * HEADS * DIM);
        same("lse of a branch", d, whole->lse + at * HEADS, tree->lse + row * HEADS, n * HEADS);
        same("dq of a branch", d, whole->dq + at * HEADS * DIM, tree->dq + row * HEADS * DIM,
             n * HEADS * DIM);
        if (root != s) {
            same("dk of a branch", d, whole->dk + at * KV * DIM, tree->dk + row * KV * DIM, n * KV * DIM);
            same("dv of a branch", d, whole->dv + at * KV * DIM, tree->dv + row * KV * DIM, n * KV * DIM);
            continue;
        }
        for (int64_t e = 0; e < n * KV * DIM; e++) {
            double sum[2] = {0}, size[2] = {1, 1};
            for (int k = s; k == s || (k < tree->n_seqs && tree->seqs[k].pos0); k++) {
                if (k > s && e >= tree->seqs[k].pos0 * KV * DIM)
                    continue; // a row that this branch does not share
                int64_t from = whole->seqs[k].row0 * KV * DIM + e;
                const float x[] = {whole->dk[from], whole->dv[from]};
                for (int i = 0; i < 2; i++) {
                    sum[i] += (double)x[i];
                    size[i] += fabs((double)x[i]);
                }
            }
            check_near("dk of shared rows", d, sum[0], tree->dk[row * KV * DIM + e], 1e-5 * size[0]);
            check_near("dv of shared rows", d, sum[1], tree->dv[row * KV * DIM + e], 1e-5 * size[1]);
        }
    }
}

// Sequences that share their first rows = the whole sequences: the same bits of out, lse and dq, and of dk and dv of rows that are not
// shared; of those that are, the sum.
static void test_attention_tree(void **state)
{
    (void)state;
    static const int own[] = {100, 17, 40, 1, 64, 33, 5}, shared[] = {0, 96, 64, 32, 0, 64, 32};
    struct copy tree, whole, first;
    int rows = 0, all = 0;
    for (int s = 0; s < 7; s++) {
        rows += own[s];
        all += own[s] + shared[s];
    }
    copy_new(&tree, rows);
    copy_new(&whole, all);
    fill(tree.q, rows * HEADS * DIM);
    fill(tree.k, rows * KV * DIM);
    fill(tree.v, rows * KV * DIM);
    fill(tree.dout, rows * HEADS * DIM);
    rows = all = 0;
    for (int s = 0, root = 0; s < 7; s++) {
        root = shared[s] ? root : s;
        for (int p = 0; p < 4; p++) {
            whole.pages[s][p] = whole.n_pages++;
            tree.pages[s][p] = 32 * p < shared[s] ? tree.pages[root][p] : tree.n_pages++;
        }
        tree.seqs[s] = (struct attn_seq){rows, own[s], shared[s], tree.pages[s]};
        whole.seqs[s] = (struct attn_seq){all, own[s] + shared[s], 0, whole.pages[s]};
        copy_rows(&tree, tree.seqs[root].row0, &whole, all, shared[s], false);
        copy_rows(&tree, rows, &whole, all + shared[s], own[s], true);
        rows += own[s];
        all += own[s] + shared[s];
    }
    tree.n_seqs = whole.n_seqs = 7;
    for (int i = 0; i < 3 * THREADS; i++) {
        copy_run(&tree, devices[i % THREADS], (enum dtype)(i / THREADS));
        copy_run(&whole, devices[i % THREADS], (enum dtype)(i / THREADS));
        tree_compare(devices[i % THREADS], &tree, &whole);
        if (i % THREADS == 0) {
            copy_new(&first, rows);
            memcpy(first.dk, tree.dk, (size_t)(rows * KV * DIM) * 4);
            memcpy(first.dv, tree.dv, (size_t)(rows * KV * DIM) * 4);
        }
        same("dk of shared rows", devices[i % THREADS], first.dk, tree.dk, rows * KV * DIM);
        same("dv of shared rows", devices[i % THREADS], first.dv, tree.dv, rows * KV * DIM);
        if (i % THREADS == THREADS - 1)
            copy_free(&first);
    }
    copy_free(&tree);
    copy_free(&whole);
}

// Sequences in a batch = sequences alone, forward and backward.
static void test_attention_batch(void **state)
{
    (void)state;
    enum { SEQS = 9, ROWS = 9 * 60 };
    static float q[ROWS * HEADS * DIM], k[ROWS * KV * DIM], v[ROWS * KV * DIM], dout[ROWS * HEADS * DIM];
    static float out[2][ROWS * HEADS * DIM], lse[2][ROWS * HEADS], dq[2][ROWS * HEADS * DIM],
        dk[2][ROWS * KV * DIM], dv[2][ROWS * KV * DIM];
    static int32_t pages[SEQS][2];
    struct attn_seq seqs[SEQS];
    fill(q, ROWS * HEADS * DIM);
    fill(k, ROWS * KV * DIM);
    fill(v, ROWS * KV * DIM);
    fill(dout, ROWS * HEADS * DIM);
    int rows = 0;
    for (int s = 0; s < SEQS; s++) {
        pages[s][0] = 2 * s;
        pages[s][1] = 2 * s + 1;
        seqs[s] = (struct attn_seq){rows, 1 + (int)rng_below(&rng, 60), 0, pages[s]};
        rows += seqs[s].n_rows;
    }
    for (int i = 0; i < 3 * THREADS; i++) {
        enum dtype t = (enum dtype)(i / THREADS);
        struct device *d = devices[i % THREADS];
        struct attn_cache c = cache_new(d, t, 32, 2 * SEQS);
        d->k->kv_write(d, &c, SEQS, seqs, k, KV * DIM, v, KV * DIM);
        for (int way = 0; way < 2; way++) // all at once, one by one
            for (int s = 0; s < (way ? SEQS : 1); s++) {
                int n = way ? 1 : SEQS;
                d->k->attention(d, &c, HEADS, 0.125f, n, seqs + s, q, HEADS * DIM, DT_F32, out[way],
                                HEADS * DIM, lse[way]);
                d->k->attention_grad(d, t, HEADS, KV, DIM, 0.125f, n, seqs + s, q, HEADS * DIM, k, KV * DIM,
                                     v, KV * DIM, DT_F32, out[way], HEADS * DIM, lse[way], dout, HEADS * DIM,
                                     dq[way], HEADS * DIM, dk[way], KV * DIM, dv[way], KV * DIM);
            }
        same("attention in a batch", d, out[0], out[1], rows * HEADS * DIM);
        same("attention_grad dq", d, dq[0], dq[1], rows * HEADS * DIM);
        same("attention_grad dk", d, dk[0], dk[1], rows * KV * DIM);
        same("attention_grad dv", d, dv[0], dv[1], rows * KV * DIM);
        cache_free(d, &c);
    }
}

// Reductions and row ops on 1 … 4 threads.
static void test_threads(void **state)
{
    (void)state;
    enum { T = 3000, C = 300 };
    static float x[T * C], dy[T * C], w[C], a[2][T * C], dw[2][C], r[2][T], h[2][T], temp[T];
    static int32_t ids[T];
    fill(x, T * C);
    fill(dy, T * C);
    fill(w, C);
    for (int i = 0; i < T; i++) {
        temp[i] = 1.25f;
        ids[i] = (int32_t)rng_below(&rng, C);
    }
    double sum[2];
    for (int op = 0; op < 9; op++)
        for (int i = 0; i < THREADS; i++) {
            struct device *d = devices[i];
            int o = i > 0;
            memset(a[o], 0, sizeof a[o]);
            memset(dw[o], 0, sizeof dw[o]);
            memset(r[o], 0, sizeof r[o]);
            memset(h[o], 0, sizeof h[o]);
            switch (op) {
            case 0:
                d->k->rmsnorm_grad(d, T, C, x, C, w, 1e-5f, dy, C, false, a[o], C, dw[o]);
                break;
            case 1:
                d->k->rmsnorm(d, T, C, x, C, w, 1e-5f, DT_F32, a[o], C, r[o]);
                break;
            case 2:
                d->k->logprob(d, T, C, x, C, temp, ids, a[o], r[o], h[o]);
                break;
            case 3:
                d->k->embed_grad(d, C, T, ids, dy, a[o]);
                break;
            case 4:
                sum[o] = d->k->sumsq(d, T * C, x);
                assert_true(sum[0] == sum[o]);
                break;
            case 5:
                d->k->rmsnorm(d, T, C, x, C, w, 1e-5f, DT_BF16, a[o], C, r[o]);
                break;
            case 6:
                d->k->swiglu(d, T, C / 2, x, DT_BF16, a[o], NULL);
                break;
            case 7: // in place
                d->k->to_bf16(d, T * C, x, (uint16_t *)a[o]);
                d->k->swiglu_grad(d, T, C / 2, DT_BF16, a[o], dy, a[o], NULL);
                break;
            case 8: // in place
                memcpy(a[o], x, sizeof a[o]);
                d->k->to_bf16_rows(d, T, C, a[o], C, (uint16_t *)a[o], 2 * C);
                break;
            }
            static const char *const names[] = {"rmsnorm_grad", "rmsnorm",     "logprob",
                                                "embed_grad",   "sumsq",       "rmsnorm to bf16",
                                                "swiglu",       "swiglu_grad", "to_bf16_rows"};
            same(names[op], d, a[0], a[o], T * C);
            same(names[op], d, dw[0], dw[o], C);
            same(names[op], d, r[0], r[o], T);
            same(names[op], d, h[0], h[o], T);
        }
}

// The devices of class i, 1 … 4 threads; i past the last class: amx over the model of its instructions.
static bool class_open(int i, const char *name)
{
    static struct kernels tables[THREADS];
    for (int t = 0; t < THREADS; t++) {
        struct error err = {.text = "the model of amx needs avx512bf16"};
        devices[t] = NULL;
        if (i > ISA_AMX)
            devices[t] = check_open_model(&tables[t], t + 1);
        else if (device_open("cpu", name, t + 1, &devices[t], &err))
            devices[t] = NULL;
        if (!devices[t]) {
            print_message("skipped: %s\n", err.text);
            return false;
        }
    }
    return true;
}

int main(void)
{
    static const char *const names[] = {"ref", "avx2", "avx512", "avx512bf16", "amx", "amx in software"};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gemm_rows),        cmocka_unit_test(test_dw_threads),
        cmocka_unit_test(test_attention_chunks), cmocka_unit_test(test_attention_batch),
        cmocka_unit_test(test_attention_tree),   cmocka_unit_test(test_threads),
    };
    int rc = 0;
    for (int i = 0; i < 6; i++) {
        if (!class_open(i, names[i]))
            continue;
        print_message("class %s\n", names[i]);
        rng_init(&rng, 44, (uint64_t)i);
        rc |= cmocka_run_group_tests(tests, NULL, NULL);
        for (int t = 0; t < THREADS; t++)
            device_close(devices[t]);
    }
    return rc;
}
