// Contract 3: a token's log-probability has the same bits whether it was trained, prefilled whole, prefilled in chunks or
// decoded one token at a time, whatever else is in the batch and wherever its pages are.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
// cmocka wants the four above first
#include <cmocka.h>

#include "base/mem.h"
#include "model/model.h"
#include "tests/isa.h"
#include "tests/races.h"
#include "tests/unit/model/tiny.h"

enum { ARCHS = RACES_ONLY ? 1 : TINY_N, LEAST_THREADS = RACES_ONLY ? 2 : 1 };
#define SEQS     6
#define ROWS_MAX 512
#define PAGES    64

struct fixture {
    struct device *d;
    struct model_config c;
    struct layout l;
    float *master;
    // Sequences of different lengths, laid out one after the other in `order`.
    int32_t len[SEQS], ids[SEQS][128];
};

static void fixture_open(struct fixture *f, int which, const char *isa, int threads)
{
    struct error err;
    static const int32_t len[SEQS] = {1, 33, 17, 64, 97, 5};
    struct rng r;
    rng_init(&r, 7, (uint64_t)which);
    f->c = tiny_config(which);
    assert_int_equal(device_open("cpu", isa, threads, &f->d, &err), STATUS_OK);
    assert_int_equal(layout_open(&f->c, &f->l, &err), STATUS_OK);
    f->master = mem_alloc((size_t)f->l.total * sizeof(float));
    tiny_weights(&f->l, &f->c, 3, f->master);
    for (int i = 0; i < SEQS; i++) {
        f->len[i] = len[i];
        for (int k = 0; k < len[i]; k++)
            f->ids[i][k] = (int32_t)rng_below(&r, (uint64_t)f->c.vocab);
    }
}

static void fixture_close(struct fixture *f)
{
    mem_free(f->master);
    layout_done(&f->l);
    device_close(f->d);
}

// A batch under construction.
struct draft {
    int32_t n, n_seqs, ids[ROWS_MAX], pos[ROWS_MAX], target[ROWS_MAX], seq_of[ROWS_MAX];
    float inv_temp[ROWS_MAX];
    struct attn_seq seqs[SEQS];
};

static void rows_add(struct draft *b, const struct fixture *f, int seq, int32_t from, int32_t to,
                     const int32_t *pages)
{
    b->seqs[b->n_seqs++] = (struct attn_seq){b->n, to - from, from, pages};
    for (int32_t p = from; p < to; p++) {
        b->ids[b->n] = f->ids[seq][p];
        b->pos[b->n] = p;
        b->seq_of[b->n] = seq;
        b->inv_temp[b->n] = 1.0f / 0.7f;
        b->target[b->n++] = p + 1 < f->len[seq] ? f->ids[seq][p + 1] : 0;
    }
}

struct result {
    float logprob[SEQS][128], entropy[SEQS][128];
};

// Scores the rows of b by the engine's side: forward, logits, the sampler's op.
static void engine_run(const struct fixture *f, const struct weights *w, struct kv *kv, const struct draft *b,
                       struct result *ret)
{
    struct arena step;
    struct error err;
    int64_t C = f->c.hidden, V = f->c.vocab;
    arena_init(&step, 0);
    float *hidden = arena_alloc(&step, sizeof(float) * (size_t)(b->n * C));
    float *logits = arena_alloc(&step, sizeof(float) * (size_t)(b->n * V));
    float lp[ROWS_MAX], lse[ROWS_MAX], ent[ROWS_MAX];
    struct batch batch = {b->n, b->n_seqs, b->ids, b->pos, b->seqs};
    assert_int_equal(model_forward(w, kv, &batch, &step, hidden, &err), STATUS_OK);
    model_logits(w, b->n, hidden, logits);
    f->d->k->logprob(f->d, b->n, V, logits, V, b->inv_temp, b->target, lp, lse, ent);
    for (int32_t i = 0; i < b->n; i++) {
        ret->logprob[b->seq_of[i]][b->pos[i]] = lp[i];
        ret->entropy[b->seq_of[i]][b->pos[i]] = ent[i];
    }
    arena_done(&step);
}

static void pages_assign(const struct fixture *f, int32_t page_tokens, uint64_t seed, int32_t pages[SEQS][8])
{
    uint32_t all[PAGES], at = 0;
    struct rng r;
    rng_init(&r, seed, 5);
    for (uint32_t i = 0; i < PAGES; i++)
        all[i] = i;
    rng_shuffle_u32(&r, all, PAGES);
    for (int i = 0; i < SEQS; i++)
        for (int k = 0; k * page_tokens < f->len[i]; k++)
            pages[i][k] = (int32_t)all[at++];
}

// chunk 0: whole sequences in one call. Else every sequence advances by at most `chunk` rows a call, those that are
// done drop out, and the order of the sequences changes from call to call.
static void engine_score(const struct fixture *f, enum dtype dtype, enum dtype kv_dtype, int32_t page_tokens,
                         int32_t chunk, uint64_t seed, struct result *ret)
{
    struct weights *w;
    struct kv *kv;
    struct error err;
    struct rng r;
    int32_t pages[SEQS][8], done[SEQS] = {0};
    static struct draft b;
    rng_init(&r, seed, 6);
    pages_assign(f, page_tokens, seed, pages);
    assert_int_equal(weights_open(f->d, &f->c, &f->l, dtype, false, &w, &err), STATUS_OK);
    weights_set(w, f->master);
    assert_int_equal(kv_open(f->d, &f->c, kv_dtype, PAGES, page_tokens, &kv, &err), STATUS_OK);
    for (;;) {
        uint32_t order[SEQS] = {0, 1, 2, 3, 4, 5};
        if (seed)
            rng_shuffle_u32(&r, order, SEQS);
        b.n = b.n_seqs = 0;
        for (int i = 0; i < SEQS; i++) {
            uint32_t s = order[i];
            int32_t left = f->len[s] - done[s], n = chunk && left > chunk ? chunk : left;
            if (n == 0)
                continue;
            rows_add(&b, f, (int)s, done[s], done[s] + n, pages[s]);
            done[s] += n;
        }
        if (b.n == 0)
            break;
        engine_run(f, w, kv, &b, ret);
    }
    kv_close(kv);
    weights_close(w);
}

static void trainer_score(const struct fixture *f, enum dtype dtype, enum dtype kv_dtype, bool recompute,
                          int32_t max_tokens, uint64_t seed, struct result *ret)
{
    struct weights *w;
    struct train *t;
    struct error err;
    struct rng r;
    static struct draft b;
    uint32_t order[SEQS] = {0, 1, 2, 3, 4, 5};
    float lp[ROWS_MAX], ent[ROWS_MAX];
    rng_init(&r, seed, 8);
    rng_shuffle_u32(&r, order, SEQS);
    b.n = b.n_seqs = 0;
    for (int i = 0; i < SEQS; i++)
        rows_add(&b, f, (int)order[i], 0, f->len[order[i]], NULL);
    assert_int_equal(weights_open(f->d, &f->c, &f->l, dtype, false, &w, &err), STATUS_OK);
    weights_set(w, f->master);
    assert_int_equal(train_open(f->d, &f->c, &f->l, dtype, kv_dtype, max_tokens, recompute, &t, &err),
                     STATUS_OK);
    struct batch batch = {b.n, b.n_seqs, b.ids, b.pos, b.seqs};
    train_forward(t, w, &batch);
    train_logprobs(t, w, b.target, b.inv_temp, lp, ent);
    for (int32_t i = 0; i < b.n; i++) {
        ret->logprob[b.seq_of[i]][b.pos[i]] = lp[i];
        ret->entropy[b.seq_of[i]][b.pos[i]] = ent[i];
    }
    train_close(t);
    weights_close(w);
}

static void same(const struct fixture *f, const struct result *a, const struct result *b)
{
    for (int i = 0; i < SEQS; i++) {
        assert_memory_equal(a->logprob[i], b->logprob[i], sizeof(float) * (size_t)f->len[i]);
        assert_memory_equal(a->entropy[i], b->entropy[i], sizeof(float) * (size_t)f->len[i]);
        for (int k = 0; k < f->len[i]; k++)
            assert_true(a->logprob[i][k] < 0 && a->logprob[i][k] > -60 && a->entropy[i][k] > 0);
    }
}

static void parity(const char *isa, enum dtype dtype, enum dtype kv_dtype, int threads)
{
    static struct result whole, other;
    for (int which = 0; which < ARCHS && threads >= LEAST_THREADS; which++) {
        struct fixture f;
        fixture_open(&f, which, isa, threads);
        engine_score(&f, dtype, kv_dtype, 32, 0, 0, &whole);
        engine_score(&f, dtype, kv_dtype, 64, 0, 11, &other);
        same(&f, &whole, &other);
        engine_score(&f, dtype, kv_dtype, 32, 1, 12, &other); // decode
        same(&f, &whole, &other);
        engine_score(&f, dtype, kv_dtype, 64, 7, 13, &other); // chunked prefill
        same(&f, &whole, &other);
        trainer_score(&f, dtype, kv_dtype, false, ROWS_MAX, 21, &other);
        same(&f, &whole, &other);
        trainer_score(&f, dtype, kv_dtype, true, 217, 22, &other); // exactly full: fewer transient pages
        same(&f, &whole, &other);
        fixture_close(&f);
    }
}

// Weights as they are served; keys and values as `auto` has them and as chosen.
static void test_f32(void **state)
{
    (void)state;
    parity("ref", DT_F32, DT_F32, 1);
    parity(test_isa(), DT_F32, DT_F32, 2);
}
static void test_bf16(void **state)
{
    (void)state;
    parity("ref", DT_BF16, DT_BF16, 1);
    parity(test_isa(), DT_BF16, DT_BF16, 3);
}
static void test_fp8(void **state)
{
    (void)state;
    parity("ref", DT_FP8, DT_F32, 2);
    parity(test_isa(), DT_FP8, DT_F32, 1);
}
static void test_kv_bf16(void **state)
{
    (void)state;
    parity("ref", DT_FP8, DT_BF16, 1);
    parity(test_isa(), DT_FP8, DT_BF16, 2);
    parity(test_isa(), DT_F32, DT_BF16, 1);
}
static void test_kv_fp8(void **state)
{
    (void)state;
    parity("ref", DT_BF16, DT_FP8, 2);
    parity(test_isa(), DT_BF16, DT_FP8, 1);
    parity(test_isa(), DT_FP8, DT_FP8, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_f32), cmocka_unit_test(test_bf16),
                                       cmocka_unit_test(test_fp8), cmocka_unit_test(test_kv_bf16),
                                       cmocka_unit_test(test_kv_fp8)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
