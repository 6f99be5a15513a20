// A tiny random model and an engine on it, for the tests of this room.
#ifndef TESTS_ROLLOUT_TINY_H
#define TESTS_ROLLOUT_TINY_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
// cmocka wants the above first
#include <cmocka.h>

#include "base/mem.h"
#include "base/rng.h"
#include "model/folder.h"
#include "model/model.h"
#include "rollout/engine.h"
#include "tests/isa.h"
#include "tests/races.h"

#define TINY_VOCAB 264

#define must(call)                                                                                           \
    do {                                                                                                     \
        struct error err_ = {0};                                                                             \
        struct error *err = &err_;                                                                           \
        enum status st_ = (call);                                                                            \
        (void)err;                                                                                           \
        if (st_ != STATUS_OK)                                                                                \
            fail_msg("%s: %s", status_name(st_), err_.text);                                                 \
    } while (0)

static inline struct model_config tiny_config(void)
{
    return (struct model_config){.arch = "llama",
                                 .hidden = 64,
                                 .n_layers = 2,
                                 .n_heads = 4,
                                 .n_kv_heads = 2,
                                 .head_dim = 32, // pages of every format as the best class keeps them
                                 .ffn = 96,
                                 .vocab = TINY_VOCAB,
                                 .max_position = 512,
                                 .rms_eps = 1e-5f,
                                 .rope_theta = 1e4,
                                 .rope_scaling = {.factor = 1},
                                 .init_std = 0.6, // far from uniform, so that every mistake shows
                                 .bos_id = -1};
}

struct tiny {
    struct device *d;
    struct model_config c;
    struct layout l;
    enum dtype dtype;
    struct weights *w[3]; // versions of different weights
};

static inline void tiny_open(struct tiny *t, enum dtype dtype, int threads)
{
    *t = (struct tiny){.c = tiny_config(), .dtype = dtype};
    must(device_open("cpu", test_isa(), threads, &t->d, err));
    must(layout_open(&t->c, &t->l, err));
    float *master = mem_alloc((size_t)t->l.total * sizeof(float));
    for (int i = 0; i < 3; i++) {
        layout_init_random(&t->l, &t->c, 40 + (uint64_t)i, master);
        must(weights_open(t->d, &t->c, &t->l, dtype, false, &t->w[i], err));
        weights_set(t->w[i], master);
    }
    mem_free(master);
}

static inline void tiny_close(struct tiny *t)
{
    for (int i = 0; i < 3; i++)
        weights_close(t->w[i]);
    layout_done(&t->l);
    device_close(t->d);
}

static inline struct engine *tiny_engine(struct tiny *t, struct engine_config c)
{
    struct engine *e = NULL;
    must(engine_open(t->d, &t->c, t->dtype, &c, &e, err));
    engine_set_weights(e, t->w[0], 0);
    return e;
}

static inline struct engine_job tiny_job(uint64_t id, const int32_t *ids, int32_t n, int32_t max_new)
{
    return (struct engine_job){
        .msg = {.job = id,
                .run_seed = 7,
                .trajectory = id,
                .attempt = 1,
                .sampling = {.temperature = 1, .top_p = 1, .max_new = max_new, .train = true},
                .n_ids = n,
                .ids = ids}};
}

// n ids that depend on the seed alone.
static inline void tiny_prompt(uint64_t seed, int32_t *ids, int32_t n)
{
    struct rng r;
    rng_init(&r, seed, 1);
    for (int32_t i = 0; i < n; i++)
        ids[i] = (int32_t)rng_below(&r, TINY_VOCAB);
}

// Everything a job gave, put together from its outputs, which are checked on the way.
struct got {
    int32_t n, finish, n_spans, n_kv, cached, n_prompt;
    int32_t ids[512];
    float logprobs[512], prompt_logprobs[512];
    struct msg_span spans[16];
    struct msg_kv kv[64];
    char error[256];
};

static inline void got_add(struct got *g, const struct outputs *o, const struct output *i)
{
    assert_int_equal(g->finish, FINISH_NONE);
    assert_int_equal(i->offset, g->n);
    if (i->n > 0) {
        memcpy(g->ids + g->n, o->ids + i->first_token, (size_t)i->n * 4);
        memcpy(g->logprobs + g->n, o->logprobs + i->first_token, (size_t)i->n * 4);
    }
    int32_t at = g->n;
    for (int32_t k = 0; k < i->n_spans; k++) {
        struct msg_span s = o->spans[i->first_span + (size_t)k];
        assert_int_equal(s.start, at);
        assert_true(s.end > s.start);
        at = s.end;
        if (g->n_spans > 0 && g->spans[g->n_spans - 1].version == s.version)
            g->spans[g->n_spans - 1].end = s.end;
        else
            g->spans[g->n_spans++] = s;
    }
    g->n += i->n;
    assert_int_equal(at, g->n);
    for (int32_t k = 0; k < i->n_kv; k++)
        g->kv[g->n_kv++] = o->kv[i->first_kv + (size_t)k];
    if (i->n_prompt_logprobs > 0)
        memcpy(g->prompt_logprobs, o->prompt_logprobs + i->first_prompt, (size_t)i->n_prompt_logprobs * 4);
    g->n_prompt += i->n_prompt_logprobs;
    g->cached = i->cached_tokens;
    g->finish = i->finish;
    snprintf(g->error, sizeof g->error, "%s", i->error);
}

// One step; outputs of job id go to got[id - 1].
static inline void tiny_step(struct engine *e, struct got *got, uint64_t n_jobs)
{
    struct outputs o;
    outputs_init(&o);
    must(engine_step(e, &o, err));
    for (size_t i = 0; i < o.n_items; i++) {
        assert_true(o.items[i].job >= 1 && o.items[i].job <= n_jobs);
        got_add(&got[o.items[i].job - 1], &o, &o.items[i]);
    }
    outputs_done(&o);
}

static inline void tiny_run(struct engine *e, struct got *got, uint64_t n_jobs)
{
    for (int steps = 0; engine_ready(e); steps++) {
        assert_true(steps < 20000);
        tiny_step(e, got, n_jobs);
    }
}

static inline void assert_same(const struct got *a, const struct got *b)
{
    assert_int_equal(a->n, b->n);
    assert_int_equal(a->finish, b->finish);
    assert_memory_equal(a->ids, b->ids, (size_t)a->n * 4);
    assert_memory_equal(a->logprobs, b->logprobs, (size_t)a->n * 4);
}

#endif
