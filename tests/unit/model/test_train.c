// Gradients of the training pass: against finite differences in the direction of each tensor's own gradient, entropy
// included; with bf16 products beside those in f32; the same bits with and without recomputation; the same sum however the batch is
// cut; sequences that share their first rows; many short sequences; a vocabulary of several chunks.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
// cmocka wants the four above first
#include <cmocka.h>

#include "base/mem.h"
#include "model/model.h"
#include "tests/isa.h"
#include "tests/races.h"
#include "tests/unit/model/tiny.h"

enum { ARCHS = RACES_ONLY ? 1 : TINY_N };
#define ROWS_MAX 1024

struct problem {
    struct device *d;
    struct model_config c;
    struct layout l;
    float *master;
    struct weights *w;
    int32_t n, n_seqs, ids[ROWS_MAX], pos[ROWS_MAX], targets[ROWS_MAX];
    struct attn_seq seqs[ROWS_MAX];
    float inv_temp[ROWS_MAX], dlogprob[ROWS_MAX], dentropy[ROWS_MAX];
    float logprob[ROWS_MAX], entropy[ROWS_MAX]; // of the last run, zero entropy when not asked
};

static void problem_open(struct problem *p, const struct model_config *c, enum dtype dtype, int threads,
                         int n_seqs, const int32_t *len)
{
    struct error err;
    struct rng r;
    memset(p, 0, sizeof(*p));
    rng_init(&r, 17, 0);
    p->c = *c;
    assert_int_equal(device_open("cpu", test_isa(), threads, &p->d, &err), STATUS_OK);
    assert_int_equal(layout_open(&p->c, &p->l, &err), STATUS_OK);
    p->master = mem_alloc((size_t)p->l.total * sizeof(float));
    tiny_weights(&p->l, &p->c, 3, p->master);
    assert_int_equal(weights_open(p->d, &p->c, &p->l, dtype, true, &p->w, &err), STATUS_OK);
    weights_set(p->w, p->master);
    for (int s = 0; s < n_seqs; s++) {
        p->seqs[p->n_seqs++] = (struct attn_seq){p->n, len[s], 0, NULL};
        for (int32_t k = 0; k < len[s]; k++, p->n++) {
            p->ids[p->n] = (int32_t)rng_below(&r, (uint64_t)c->vocab);
            p->pos[p->n] = k;
            p->targets[p->n] = rng_below(&r, 4) ? (int32_t)rng_below(&r, (uint64_t)c->vocab) : -1;
            p->inv_temp[p->n] = 0.5f + (float)rng_uniform(&r);
            p->dlogprob[p->n] = rng_normal(&r);
            p->dentropy[p->n] = rng_normal(&r);
        }
    }
    assert_true(p->n <= ROWS_MAX);
}

static void problem_close(struct problem *p)
{
    weights_close(p->w);
    mem_free(p->master);
    layout_done(&p->l);
    device_close(p->d);
}

// Objective sum_r dlogprob logprob + dentropy entropy over sequences [first, last); gradient added to grads.
static double run(struct problem *p, struct train *t, int first, int last, bool entropy, float *grads)
{
    struct attn_seq seqs[ROWS_MAX];
    int32_t row0 = p->seqs[first].row0, n = 0;
    float *lp = p->logprob + row0, *ent = p->entropy + row0;
    double sum = 0;
    for (int s = first; s < last; s++) {
        seqs[s - first] = p->seqs[s];
        seqs[s - first].row0 = n;
        n += p->seqs[s].n_rows;
    }
    struct batch b = {n, last - first, p->ids + row0, p->pos + row0, seqs};
    train_forward(t, p->w, &b);
    train_logprobs(t, p->w, b.ids, p->inv_temp + row0, lp,
                   NULL); // scoring something else before leaves no trace
    train_logprobs(t, p->w, p->targets + row0, p->inv_temp + row0, lp, entropy ? ent : NULL);
    if (grads)
        train_backward(t, p->w, p->dlogprob + row0, entropy ? p->dentropy + row0 : NULL, grads);
    for (int32_t i = 0; i < n; i++) {
        sum += (double)p->dlogprob[row0 + i] * (double)lp[i];
        if (entropy)
            sum += (double)p->dentropy[row0 + i] * (double)ent[i];
        assert_true(p->targets[row0 + i] >= 0 || lp[i] == 0);
    }
    return sum;
}

// The derivatives of rows [begin, end), which must come one after the other, with their log-probabilities known.
struct asked {
    const struct problem *p;
    const float *logprob, *dlogprob;
    int32_t row, calls;
};

static bool differentiate(void *ctx, int32_t begin, int32_t end)
{
    struct asked *a = ctx;
    bool any = false;
    assert_int_equal(begin, a->row);
    assert_true(end > begin && end <= a->p->n);
    for (int32_t i = begin; i < end; i++) {
        assert_true((a->p->targets[i] >= 0) == (a->logprob[i] < 0));
        any = any || a->dlogprob[i] != 0;
    }
    a->row = end;
    a->calls++;
    return any;
}

// The whole batch with the objective known beforehand: the bits of run(). Returns the number of ranges.
static int run_objective(struct problem *p, struct train *t, const float *dlogprob, const float *dentropy,
                         bool expect, float *grads)
{
    float lp[ROWS_MAX], ent[ROWS_MAX];
    for (int i = 0; i < ROWS_MAX; i++)
        lp[i] = 7; // not computed
    struct asked a = {.p = p, .logprob = lp, .dlogprob = dlogprob};
    const struct train_objective o = {differentiate, &a, dlogprob, dentropy};
    struct batch b = {p->n, p->n_seqs, p->ids, p->pos, p->seqs};
    train_forward(t, p->w, &b);
    assert_true(train_objective_grad(t, p->w, p->targets, p->inv_temp, &o, lp, ent, grads) == expect);
    assert_int_equal(a.row, p->n);
    train_backward_layers(t, p->w, grads);
    assert_memory_equal(lp, p->logprob, (size_t)p->n * sizeof(float));
    return a.calls;
}

static struct train *train_make(const struct problem *p, enum dtype dtype, int32_t max_tokens, bool recompute)
{
    struct train *t;
    struct error err;
    if (train_open(p->d, &p->c, &p->l, dtype, kv_dtype_for(dtype), max_tokens, recompute, &t, &err))
        fail_msg("%s", err.text);
    return t;
}

static double norm_of(const float *v, int64_t n)
{
    double s = 0;
    for (int64_t i = 0; i < n; i++)
        s += (double)v[i] * (double)v[i];
    return sqrt(s);
}

// (f(w + h u) - f(w - h u)) / 2h = |g| for u = g / |g|, tensor by tensor; Richardson's step removes the h^2 term.
static void differences_check(struct problem *p, bool entropy)
{
    struct train *t = train_make(p, DT_F32, p->n, true);
    float *g = mem_alloc((size_t)p->l.total * sizeof(float)),
          *keep = mem_alloc((size_t)p->l.total * sizeof(float));
    run(p, t, 0, p->n_seqs, entropy, g);
    memcpy(keep, p->master, (size_t)p->l.total * sizeof(float));
    for (int32_t i = 0; i < p->l.n; i++) {
        const struct param *q = &p->l.params[i];
        int64_t n = q->rows * q->cols;
        double norm = norm_of(g + q->offset, n), slope[2], scale = norm_of(keep + q->offset, n);
        assert_true(norm > 0);
        for (int k = 0; k < 2; k++) {
            double h = (k ? 0.5 : 1.0) * 4e-3 * (scale > 1 ? 1 : scale), f[2];
            for (int side = 0; side < 2; side++) {
                for (int64_t e = q->offset; e < q->offset + n; e++)
                    p->master[e] = (float)((double)keep[e] + (side ? -h : h) * (double)g[e] / norm);
                weights_set(p->w, p->master);
                f[side] = run(p, t, 0, p->n_seqs, entropy, NULL);
            }
            slope[k] = (f[0] - f[1]) / (2 * h);
        }
        double got = (4 * slope[1] - slope[0]) / 3;
        memcpy(p->master + q->offset, keep + q->offset, (size_t)n * sizeof(float));
        if (!(fabs(got - norm) < 5e-3 * norm))
            fail_msg("%s %s: |gradient| %.6g, difference quotient %.6g", p->c.arch, q->name, norm, got);
    }
    weights_set(p->w, p->master);
    mem_free(g);
    mem_free(keep);
    train_close(t);
}

static void test_differences(void **state)
{
    static const int32_t len[] = {7, 40, 1, 13};
    (void)state;
    for (int which = 0; which < ARCHS && !RACES_ONLY; which++) {
        struct model_config c = tiny_config(which);
        struct problem p;
        problem_open(&p, &c, DT_F32, 2, 4, len);
        differences_check(&p, false);
        differences_check(&p, true);
        problem_close(&p);
    }
}

// Keeping everything on one thread, recomputing on two, keeping on three.
static void test_same_bits(void **state)
{
    static const int32_t len[] = {33, 64, 2};
    static const enum dtype dtypes[] = {DT_F32, DT_BF16};
    (void)state;
    for (int which = 0; which < ARCHS; which++)
        for (int k = 0; k < 2; k++) {
            struct model_config c = tiny_config(which);
            struct problem p;
            float *g[3];
            for (int r = 0; r < 3; r++) {
                problem_open(&p, &c, dtypes[k], 1 + r, 3, len);
                // Twice through the same object: nothing of the first batch may leak into the second.
                struct train *t = train_make(&p, dtypes[k], r == 1 ? p.n : ROWS_MAX, r == 1);
                g[r] = mem_alloc((size_t)p.l.total * sizeof(float));
                run(&p, t, 1, 2, false, g[r]);
                memset(g[r], 0, (size_t)p.l.total * sizeof(float));
                run(&p, t, 0, 3, true, g[r]);
                float *known = mem_alloc((size_t)p.l.total * sizeof(float));
                run_objective(&p, t, p.dlogprob, p.dentropy, true, known);
                assert_memory_equal(g[r], known, (size_t)p.l.total * sizeof(float));
                mem_free(known);
                train_close(t);
                assert_memory_equal(g[0], g[r], (size_t)p.l.total * sizeof(float));
                if (r < 2)
                    problem_close(&p);
            }
            for (int32_t i = 0; i + 1 < p.l.n; i++) { // padding stays 0
                const struct param *q = &p.l.params[i];
                for (int64_t e = q->offset + q->rows * q->cols; e < q[1].offset; e++)
                    assert_true(g[0][e] == 0);
            }
            for (int r = 0; r < 3; r++)
                mem_free(g[r]);
            problem_close(&p);
        }
}

static void cuts_check(struct problem *p, int32_t max_tokens)
{
    struct train *t = train_make(p, DT_F32, max_tokens, false);
    float *whole = mem_alloc((size_t)p->l.total * sizeof(float)),
          *parts = mem_alloc((size_t)p->l.total * sizeof(float));
    float lp[ROWS_MAX], ent[ROWS_MAX];
    run(p, t, 0, p->n_seqs, true, whole);
    memcpy(lp, p->logprob, sizeof(lp));
    memcpy(ent, p->entropy, sizeof(ent));
    for (int s = 0; s < p->n_seqs; s += 2)
        run(p, t, s, s + 2 < p->n_seqs ? s + 2 : p->n_seqs, true, parts);
    assert_memory_equal(lp, p->logprob, sizeof(lp));
    assert_memory_equal(ent, p->entropy, sizeof(ent));
    for (int64_t i = 0; i < p->l.total; i++)
        parts[i] -= whole[i];
    double d = norm_of(parts, p->l.total) / norm_of(whole, p->l.total);
    if (!(d < 1e-6))
        fail_msg("gradients of the parts differ by %g", d);
    mem_free(whole);
    mem_free(parts);
    train_close(t);
}

static void test_cuts(void **state)
{
    // 100 sequences of 1 or 2 tokens need more transient pages than there are: several spans.
    int32_t len[100], n = 0;
    struct model_config c = tiny_config(3);
    struct problem p;
    (void)state;
    for (int i = 0; i < 100; i++)
        n += len[i] = 1 + i % 2;
    problem_open(&p, &c, DT_F32, 2, 100, len);
    cuts_check(&p, n);
    problem_close(&p);
    static const int32_t few[] = {40, 3, 64, 33, 9};
    problem_open(&p, &c, DT_F32, 2, 5, few);
    cuts_check(&p, ROWS_MAX);
    problem_close(&p);
    // More rows than the feed-forward block takes at once, and parts that it does.
    static const int32_t many[] = {250, 3, 249, 131, 250, 97};
    problem_open(&p, &c, DT_F32, 2, 6, many);
    cuts_check(&p, p.n);
    problem_close(&p);
}

// ---- shared rows -----------------------------------------------------------------------------------------------

// Sequences of these lengths; the first `shared` rows of each that has some are those of the last before it that has none.
struct forest {
    int n;
    int32_t len[64], shared[64];
};

// The whole sequences: what is shared is equal and, but for the root, has no target.
static void forest_problem(struct problem *p, const struct forest *f, const struct model_config *c,
                           enum dtype dtype, int threads)
{
    problem_open(p, c, dtype, threads, f->n, f->len);
    for (int s = 0, root = 0; s < f->n; s++) {
        int32_t at = p->seqs[s].row0;
        if (!f->shared[s])
            root = p->seqs[s].row0;
        for (int32_t k = 0; k < f->shared[s]; k++) {
            p->ids[at + k] = p->ids[root + k];
            p->targets[at + k] = -1;
        }
    }
}

// The same problem without the rows that a root has: those of row r are at rows[r] of p.
static void forest_share(const struct problem *p, const struct forest *f, struct problem *ret, int32_t *rows)
{
    *ret = *p;
    ret->n = 0;
    for (int s = 0; s < f->n; s++) {
        ret->seqs[s] =
            (struct attn_seq){.row0 = ret->n, .n_rows = f->len[s] - f->shared[s], .pos0 = f->shared[s]};
        for (int32_t k = f->shared[s]; k < f->len[s]; k++) {
            int32_t from = p->seqs[s].row0 + k, to = ret->n++;
            rows[to] = from;
            ret->ids[to] = p->ids[from];
            ret->pos[to] = k;
            ret->targets[to] = p->targets[from];
            ret->inv_temp[to] = p->inv_temp[from];
            ret->dlogprob[to] = p->dlogprob[from];
            ret->dentropy[to] = p->dentropy[from];
        }
    }
}

static void forest_check(const struct forest *f, int arch, enum dtype dtype)
{
    struct model_config c = tiny_config(arch);
    struct problem p, tree;
    int32_t rows[ROWS_MAX];
    float *first = NULL;
    for (int r = 0; r < 3; r++) { // the same bits on any number of threads, with and without recomputation
        forest_problem(&p, f, &c, dtype, 1 + r);
        forest_share(&p, f, &tree, rows);
        struct train *t = train_make(&p, dtype, p.n, r == 1);
        float *whole = mem_alloc((size_t)p.l.total * sizeof(float)),
              *shared = mem_alloc((size_t)p.l.total * sizeof(float));
        run(&p, t, 0, f->n, true, whole);
        train_close(t);
        t = train_make(&p, dtype, tree.n, r == 1);
        run(&tree, t, 0, f->n, true, shared);
        train_close(t);
        for (int32_t i = 0; i < tree.n; i++) {
            assert_memory_equal(&tree.logprob[i], &p.logprob[rows[i]], sizeof(float));
            assert_memory_equal(&tree.entropy[i], &p.entropy[rows[i]], sizeof(float));
        }
        for (int32_t i = 0; i < p.l.n; i++) {
            const struct param *q = &p.l.params[i];
            int64_t n = q->rows * q->cols;
            double norm = norm_of(whole + q->offset, n),
                   bound = dtype == DT_F32 ? 1e-5 : 2e-2; // bf16: operands of products are rounded
            for (int64_t e = q->offset; e < q->offset + n; e++)
                whole[e] -= shared[e];
            double d = norm_of(whole + q->offset, n) / norm;
            if (!(d < bound))
                fail_msg("%s %s: the gradient of shared rows differs by %g", c.arch, q->name, d);
        }
        if (!first)
            first = shared;
        assert_memory_equal(first, shared, (size_t)p.l.total * sizeof(float));
        if (first != shared)
            mem_free(shared);
        mem_free(whole);
        problem_close(&p);
    }
    mem_free(first);
}

static void test_shared_rows(void **state)
{
    static const struct forest some = {6, {70, 67, 65, 33, 40, 36}, {0, 64, 64, 32, 0, 32}},
                               whole_root = {3, {64, 65, 96}, {0, 64, 32}};
    // Trees with many short branches: more pages than rows, several spans.
    struct forest many = {.n = 30};
    (void)state;
    for (int s = 0; s < many.n; s++) {
        many.len[s] = s % 10 ? 33 + s % 3 : 34;
        many.shared[s] = s % 10 ? 32 : 0;
    }
    for (int arch = 0; arch < ARCHS; arch++)
        for (int k = 0; k < 2; k++) {
            forest_check(&some, arch, k ? DT_BF16 : DT_F32);
            forest_check(&whole_root, arch, k ? DT_BF16 : DT_F32);
            forest_check(&many, arch, k ? DT_BF16 : DT_F32);
        }
}

static void test_tree_limits(void **state)
{
    struct train_tree t = {0};
    (void)state;
    // A long prompt with answers of a usual length: hundreds of them. With answers of one token: dozens.
    int n = 0;
    train_tree_add(&t, 4000, 0);
    for (; n < 10000; n++) {
        train_tree_add(&t, 64, 3968);
        assert_true(train_tree_fits(&t));
    }
    t = (struct train_tree){0};
    train_tree_add(&t, 1100, 0);
    for (n = 0; train_tree_fits(&t); n++)
        train_tree_add(&t, 1, 1088);
    assert_true(n > 40 && n < 80);
}

static void test_large_vocabulary(void **state)
{
    // 300,001 tokens: 64 rows of logits at a time, so three chunks, the last one partial.
    static const int32_t len[] = {60, 90, 35};
    struct model_config c = tiny_config(0);
    struct problem p;
    (void)state;
    if (RACES_ONLY)
        return;
    c.hidden = 16;
    c.n_layers = 1;
    c.n_heads = c.n_kv_heads = 1;
    c.ffn = 16;
    c.vocab = 300001;
    problem_open(&p, &c, DT_F32, 2, 3, len);
    for (int s = 0; s < 3; s++)
        p.targets[p.seqs[s].row0] = 300000; // the last token too
    cuts_check(&p, p.n);
    // With the objective known the head sees each chunk once; the middle one has nothing to learn from.
    struct train *t = train_make(&p, DT_F32, p.n, true);
    size_t bytes = (size_t)p.l.total * sizeof(float);
    float *apart = mem_alloc(bytes), *known = mem_alloc(bytes), zero[ROWS_MAX] = {0};
    for (int32_t i = 0, k = 0; i < p.n; k += p.targets[i++] >= 0)
        p.dlogprob[i] = k >= 64 && k < 128 ? 0 : p.dlogprob[i];
    run(&p, t, 0, 3, false, apart);
    assert_int_equal(run_objective(&p, t, p.dlogprob, NULL, true, known), 3);
    assert_memory_equal(apart, known, bytes);
    run_objective(&p, t, zero, NULL, false, known);
    assert_memory_equal(apart, known, bytes);
    mem_free(apart);
    mem_free(known);
    train_close(t);
    problem_close(&p);
}

// Tensor by tensor the gradient of the bf16 model beside the f32 model's: rounding parts them by some hundredths, a row or a column
// read wrongly by far more.
static void rounding_check(const struct model_config *c, int n_seqs, const int32_t *len, double bound)
{
    float *g[2];
    struct problem p;
    for (int k = 0; k < 2; k++) {
        const enum dtype t = k ? DT_BF16 : DT_F32;
        problem_open(&p, c, t, 2, n_seqs, len);
        struct train *train = train_make(&p, t, p.n, false);
        g[k] = mem_alloc((size_t)p.l.total * sizeof(float));
        run(&p, train, 0, n_seqs, false, g[k]);
        train_close(train);
        if (k == 0)
            problem_close(&p);
    }
    for (int32_t i = 0; i < p.l.n; i++) {
        const struct param *q = &p.l.params[i];
        const int64_t n = q->rows * q->cols;
        float *a = g[0] + q->offset, *b = g[1] + q->offset;
        const double norm = norm_of(a, n);
        for (int64_t e = 0; e < n; e++)
            b[e] -= a[e];
        if (!(norm_of(b, n) < bound * norm))
            fail_msg("%s %s: the gradients in bf16 and in f32 differ by %g", c->arch, q->name,
                     norm_of(b, n) / norm);
    }
    mem_free(g[0]);
    mem_free(g[1]);
    problem_close(&p);
}

static void test_rounding(void **state)
{
    static const int32_t len[] = {200, 33, 150, 37}, few[] = {60, 90, 35};
    (void)state;
    for (int arch = 0; arch < ARCHS; arch++) {
        struct model_config c = tiny_config(arch);
        c.init_std = 0.1;
        rounding_check(&c, 4, len, 5e-2);
    }
    struct model_config c = tiny_config(0); // three chunks of the head
    c.init_std = 0.1;
    c.n_layers = 1;
    c.vocab = 300001;
    if (!RACES_ONLY)
        rounding_check(&c, 3, few, 5e-2);
}

static void test_nothing_to_train(void **state)
{
    static const int32_t len[] = {5};
    struct model_config c = tiny_config(0);
    struct problem p;
    (void)state;
    problem_open(&p, &c, DT_F32, 2, 1, len);
    struct train *t = train_make(&p, DT_F32, 8, false);
    float *g = mem_alloc((size_t)p.l.total * sizeof(float));
    for (int i = 0; i < 5; i++)
        p.targets[i] = -1;
    assert_true(run(&p, t, 0, 1, true, g) == 0);
    assert_true(norm_of(g, p.l.total) == 0);
    struct batch none = {0};
    train_forward(t, p.w, &none);
    train_logprobs(t, p.w, NULL, NULL, NULL, NULL);
    train_backward(t, p.w, NULL, NULL, g);
    assert_true(norm_of(g, p.l.total) == 0);
    mem_free(g);
    train_close(t);
    problem_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_differences), cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_cuts),        cmocka_unit_test(test_shared_rows),
        cmocka_unit_test(test_tree_limits), cmocka_unit_test(test_large_vocabulary),
        cmocka_unit_test(test_rounding),    cmocka_unit_test(test_nothing_to_train)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
