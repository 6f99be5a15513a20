// model/replay.h and model/trace.h against the engine: whatever it recorded, over refits in both modes, preemption, prefix hits of
// older pages and several turns, is scored again without the difference of a bit; one ulp of one weight is noticed, and the traces
// name its layer and op.
#include "kernels/observe.h"
#include "model/replay.h"
#include "model/trace.h"
#include "model/weights.h"
#include "tests/unit/rollout/tiny.h"

#define VERSIONS 6
#define SEGMENTS 24
#define TURNS    4
#define TOKENS   320
#define EVENTS   256

// ---- an engine at work ------------------------------------------------------------------------------------------------

struct world {
    struct device *d;
    struct model_config c;
    struct layout l;
    enum dtype dtype;
    float *master[VERSIONS];
    struct weights *w[VERSIONS];
    struct rng rng;
};

static void world_open(struct world *w, const char *arch, enum dtype dtype, int threads)
{
    *w = (struct world){.c = tiny_config(), .dtype = dtype};
    snprintf(w->c.arch, sizeof w->c.arch, "%s", arch);
    w->c.n_layers = 3;
    w->c.qkv_bias = !strcmp(arch, "qwen2");
    w->c.qk_norm = !strcmp(arch, "qwen3");
    w->c.tie_embeddings = !strcmp(arch, "qwen2");
    rng_init(&w->rng, 5, 0);
    must(device_open("cpu", test_isa(), threads, &w->d, err));
    must(layout_open(&w->c, &w->l, err));
    for (int i = 0; i < VERSIONS; i++) {
        w->master[i] = mem_alloc((size_t)w->l.total * sizeof(float));
        layout_init_random(&w->l, &w->c, 40 + (uint64_t)i, w->master[i]);
        must(weights_open(w->d, &w->c, &w->l, dtype, false, &w->w[i], err));
        weights_set(w->w[i], w->master[i]);
    }
}

static void world_close(struct world *w)
{
    for (int i = 0; i < VERSIONS; i++) {
        weights_close(w->w[i]);
        mem_free(w->master[i]);
    }
    layout_done(&w->l);
    device_close(w->d);
}

// One segment as a ledger would keep it.
struct record {
    int32_t n, turn, turns, n_events, turn_start;
    uint64_t session;
    int32_t ids[TOKENS];
    uint8_t mask[TOKENS];
    float logprobs[TOKENS], temperatures[TOKENS], rescored[TOKENS];
    int32_t versions[TOKENS];
    struct replay_event events[EVENTS];
};

static void say(struct world *w, struct record *r, uint64_t seed, int32_t n)
{
    (void)w;
    tiny_prompt(seed, r->ids + r->n, n);
    for (int32_t i = 0; i < n; i++) {
        r->versions[r->n + i] = -1;
        r->temperatures[r->n + i] = 1;
    }
    r->n += n;
}

static void submit(struct world *w, struct engine *e, struct record *r, uint64_t id)
{
    struct engine_job job = tiny_job(id, r->ids, r->n, 5 + (int32_t)rng_below(&w->rng, 40));
    job.msg.session = r->session;
    job.msg.sampling.temperature = id % 3 ? 1.0f : 0.7f;
    job.msg.sampling.ignore_eos = true;
    r->turn_start = r->n;
    must(engine_submit(e, &job, err));
}

static void take(struct world *w, struct engine *e, struct record *r, const struct outputs *o,
                 const struct output *i)
{
    float temperature = i->job % 3 ? 1.0f : 0.7f;
    for (int32_t k = 0; k < i->n_spans; k++) {
        const struct msg_span *s = &o->spans[i->first_span + (size_t)k];
        for (int32_t t = s->start; t < s->end; t++)
            r->versions[r->turn_start + t] = (int32_t)s->version;
    }
    for (int32_t k = 0; k < i->n; k++, r->n++) {
        assert_true(r->n < TOKENS);
        r->ids[r->n] = o->ids[i->first_token + (size_t)k];
        r->logprobs[r->n] = o->logprobs[i->first_token + (size_t)k];
        r->temperatures[r->n] = temperature;
        r->mask[r->n] = 1;
    }
    for (int32_t k = 0; k < i->n_kv; k++) {
        const struct msg_kv *kv = &o->kv[i->first_kv + (size_t)k];
        assert_true(r->n_events < EVENTS);
        r->events[r->n_events++] = (struct replay_event){kv->at_token, kv->from, kv->to, kv->version};
    }
    if (i->finish == FINISH_NONE)
        return;
    assert_int_equal(i->finish, FINISH_LENGTH);
    if (++r->turn == r->turns)
        return;
    say(w, r, 1000 + i->job * 10 + (uint64_t)r->turn, 1 + (int32_t)rng_below(&w->rng, 30));
    submit(w, e, r, i->job);
}

struct scene {
    bool recompute, calm; // calm: no refit at all
    enum kv_choice kv;
    const struct weights *instead; // of version 0
};

// Runs SEGMENTS segments through an engine whose memory is short, with a refit every few steps.
static void play(struct world *w, const struct scene *s, struct record *r, struct engine_stats *ret)
{
    const struct engine_config config = {.kv_tokens = 832,
                                         .kv_dtype = s->kv,
                                         .max_batch_tokens = 64,
                                         .prefill_chunk = 17,
                                         .max_running = 10,
                                         .flush_tokens = 3,
                                         .recompute_on_refit = s->recompute};
    struct engine *e = NULL;
    must(engine_open(w->d, &w->c, w->dtype, &config, &e, err));
    engine_set_weights(e, s->instead ? s->instead : w->w[0], 0);
    for (uint64_t i = 0; i < SEGMENTS; i++) {
        memset(&r[i], 0, sizeof r[i]);
        r[i].turns = 1 + (int32_t)(i % TURNS);
        r[i].session = i % 5 ? i + 1 : 0;
        say(w, &r[i], 100 + i / 4, 20 + (int32_t)(i / 4 * 11)); // groups share their prompt
        submit(w, e, &r[i], i + 1);
    }
    struct outputs o;
    outputs_init(&o);
    int version = 0, until = 9;
    for (int step = 0; engine_ready(e); step++) {
        assert_true(step < 5000);
        if (!s->calm && step == until && version + 1 < VERSIONS) {
            version++;
            engine_set_weights(e, w->w[version], version);
            until += 5 + (int)rng_below(&w->rng, 40);
        }
        must(engine_step(e, &o, err));
        for (size_t k = 0; k < o.n_items; k++)
            take(w, e, &r[o.items[k].job - 1], &o, &o.items[k]);
        outputs_clear(&o);
    }
    outputs_done(&o);
    engine_stats(e, ret);
    engine_close(e);
}

// ---- scoring it again -------------------------------------------------------------------------------------------------

struct shelf {
    struct world *w;
    int64_t missing; // version, -1 = none
    int loads;
};

static enum status load(void *ctx, struct weights *w, int64_t version, struct error *err)
{
    struct shelf *s = ctx;
    assert_true(version >= 0 && version < VERSIONS);
    if (version == s->missing)
        return error_set(err, STATUS_NOTFOUND, "version %lld is gone", (long long)version);
    weights_set(w, s->w->master[version]);
    s->loads++;
    return STATUS_OK;
}

struct
try {
    int32_t train_rows;
    size_t kv_bytes;
    int64_t missing;
};

static void replay(struct world *w, enum kv_choice kv, const struct try *t, struct record *r,
                   struct replay_segment *segments, struct replay_summary *ret)
{
    struct shelf shelf = {w, t->missing, 0};
    struct replay p = {.d = w->d,
                       .train_rows = t->train_rows,
                       .kv_dtype = kv_dtype_choose(kv, w->dtype),
                       .kv_bytes = t->kv_bytes,
                       .load = load,
                       .ctx = &shelf};
    must(weights_open(w->d, &w->c, &w->l, w->dtype, false, &p.w, err));
    must(train_open(w->d, &w->c, &w->l, w->dtype, p.kv_dtype, t->train_rows, true, &p.train, err));
    for (int i = 0; i < SEGMENTS; i++) {
        segments[i] = (struct replay_segment){.n = r[i].n,
                                              .ids = r[i].ids,
                                              .mask = r[i].mask,
                                              .logprobs = r[i].logprobs,
                                              .versions = r[i].versions,
                                              .temperatures = r[i].temperatures,
                                              .n_events = r[i].n_events,
                                              .events = r[i].events,
                                              .rescored = r[i].rescored};
        for (int32_t k = 0; k < r[i].n; k++)
            r[i].rescored[k] = 7;
    }
    must(replay_run(&p, SEGMENTS, segments, err));
    replay_summarize(SEGMENTS, segments, ret);
    train_close(p.train);
    weights_close(p.w);
}

static void assert_exact(const struct replay_summary *s, const struct replay_segment *segments)
{
    if (s->segment >= 0) {
        const struct replay_segment *g = &segments[s->segment];
        fail_msg("segment %d token %d version %d: recorded %.9g rescored %.9g (%d broken)", s->segment,
                 s->position, g->versions[s->position], (double)g->logprobs[s->position],
                 (double)g->rescored[s->position], s->broken);
    }
    assert_int_equal(s->broken, 0);
    assert_true(s->max_abs_diff == 0);
}

static void play_and_replay(const char *arch, enum dtype dtype, enum kv_choice kv, bool recompute)
{
    struct world w;
    struct engine_stats stats;
    struct replay_summary s;
    struct record *r = mem_must(SEGMENTS, sizeof *r);
    struct replay_segment segments[SEGMENTS];
    world_open(&w, arch, dtype, 2);
    play(&w, &(struct scene){.recompute = recompute, .kv = kv}, r, &stats);
    assert_true(stats.preemptions > 0);
    assert_true(stats.cached_tokens > 0);
    assert_int_equal(stats.refits, VERSIONS - 1);
    replay(&w, kv, &(struct try){400, 1 << 30, -1}, r, segments, &s);
    assert_exact(&s, segments);
    assert_int_equal(s.compared, SEGMENTS);
    assert_true(s.crossing >= SEGMENTS / 2);
    assert_true(s.tokens > 1000);
    assert_int_equal(s.tokens_skipped, 0);
    // other divisions of the same work: nothing may move a bit
    replay(&w, kv, &(struct try){150, 1, -1}, r, segments, &s);
    assert_exact(&s, segments);
    assert_int_equal(s.compared, SEGMENTS);
    free(r);
    world_close(&w);
}

static void test_keep(void **state)
{
    (void)state;
    play_and_replay("llama", DT_F32, KV_AUTO, false);
    play_and_replay("qwen2", DT_BF16, KV_AUTO, false);
    play_and_replay("qwen3", DT_FP8, KV_AUTO, false);
}

static void test_recompute(void **state)
{
    (void)state;
    play_and_replay("qwen3", DT_F32, KV_AUTO, true);
    play_and_replay("llama", DT_BF16, KV_AUTO, true);
    play_and_replay("qwen2", DT_FP8, KV_AUTO, true);
}

static void test_kv_dtypes(void **state)
{
    (void)state;
    play_and_replay("llama", DT_BF16, KV_FP8, false);
    if (RACES_ONLY)
        return;
    play_and_replay("qwen3", DT_FP8, KV_BF16, false);
    play_and_replay("qwen2", DT_BF16, KV_F32, true);
}

// A version whose weights are gone takes the segments that need it along, and only those.
static void test_missing_weights(void **state)
{
    (void)state;
    struct world w;
    struct engine_stats stats;
    struct replay_summary s;
    struct record *r = mem_must(SEGMENTS, sizeof *r);
    struct replay_segment segments[SEGMENTS];
    world_open(&w, "llama", DT_BF16, 1);
    play(&w, &(struct scene){0}, r, &stats);
    replay(&w, KV_AUTO, &(struct try){400, 1 << 30, 2}, r, segments, &s);
    assert_exact(&s, segments);
    assert_true(s.no_weights > 0 && s.compared > 0);
    assert_int_equal(s.no_weights + s.compared, SEGMENTS);
    assert_true(s.tokens_skipped > 0);
    for (int i = 0; i < SEGMENTS; i++)
        for (int32_t t = 0; t < r[i].n; t++)
            if (r[i].mask[t] && r[i].versions[t] == 2)
                assert_int_equal(segments[i].outcome, REPLAY_NO_WEIGHTS);
    free(r);
    world_close(&w);
}

// Each event matters: one left out or changed is a difference, or a contradiction.
static void test_events_matter(void **state)
{
    (void)state;
    struct world w;
    struct engine_stats stats;
    struct replay_summary s;
    struct record *r = mem_must(SEGMENTS, sizeof *r), *copy = mem_must(SEGMENTS, sizeof *r);
    struct replay_segment segments[SEGMENTS];
    world_open(&w, "llama", DT_F32, 1);
    play(&w, &(struct scene){0}, r, &stats);
    int noticed = 0, tried = 0;
    for (int i = 0; i < SEGMENTS; i++)
        for (int32_t k = 0; k < r[i].n_events; k++)
            if (r[i].events[k].to - r[i].events[k].from > 20 && tried < 12) {
                memcpy(copy, r, SEGMENTS * sizeof *r);
                copy[i].events[k].version ^= 1;
                replay(&w, KV_AUTO, &(struct try){400, 1 << 30, -1}, copy, segments, &s);
                // an event that a later one covers before any token was sampled has no effect
                bool same = s.segment < 0 && s.broken == 0;
                noticed += !same;
                tried++;
                if (s.segment >= 0)
                    assert_int_equal(s.segment, i);
            }
    assert_int_equal(tried, 12);
    assert_true(noticed >= 9);
    // a token that claims another version
    memcpy(copy, r, SEGMENTS * sizeof *r);
    copy[3].versions[r[3].turn_start] ^= 1;
    replay(&w, KV_AUTO, &(struct try){400, 1 << 30, -1}, copy, segments, &s);
    assert_true(s.broken == 1 || s.segment == 3);
    free(copy);
    free(r);
    world_close(&w);
}

static void test_unscorable(void **state)
{
    (void)state;
    struct world w;
    struct engine_stats stats;
    struct replay_summary s;
    struct record *r = mem_must(SEGMENTS, sizeof *r);
    struct replay_segment segments[SEGMENTS];
    world_open(&w, "llama", DT_F32, 1);
    play(&w, &(struct scene){.calm = true}, r, &stats);
    r[1].ids[2] = TINY_VOCAB;
    r[2].temperatures[r[2].n - 1] = 0;
    r[4].mask[0] = 1; // nothing stands before it
    r[5].events[0].from = 5000;
    r[5].events[0].to = 5001;
    r[6].logprobs[r[6].n - 1] = NAN;
    replay(&w, KV_AUTO, &(struct try){400, 1 << 30, -1}, r, segments, &s);
    assert_int_equal(s.broken, 4);
    assert_int_equal(s.first_broken, 1);
    assert_int_equal(s.crossing, 0);
    assert_int_equal(s.segment, 6);
    assert_int_equal(s.position, r[6].n - 1);
    assert_true(isinf(s.max_abs_diff));
    free(r);
    world_close(&w);
}

// ---- one ulp ----------------------------------------------------------------------------------------------------------

// The last bit of one weight of the matrix `name`, as it is packed.
static void nudge(struct weights *w, const char *name)
{
    for (int32_t i = 0; i < w->n_linears; i++)
        for (int32_t k = 0; k < w->linears[i]->n_params; k++)
            if (!strcmp(w->linears[i]->params[k]->name, name)) {
                ((uint8_t *)w->linears[i]->fwd[0].data)[0] ^= 1;
                return;
            }
    fail_msg("no matrix %s", name);
}

static const struct trace_op *part(const struct trace *a, const struct trace *b)
{
    for (int32_t i = 0, j; i < a->n_ops; i++) {
        for (j = 0; j < b->n_ops; j++)
            if (a->ops[i].layer == b->ops[j].layer && a->ops[i].nth == b->ops[j].nth &&
                !strcmp(a->ops[i].op, b->ops[j].op) && !strcmp(a->ops[i].block, b->ops[j].block))
                break;
        if (j < b->n_ops && a->ops[i].digest != b->ops[j].digest)
            return &a->ops[i];
    }
    return NULL;
}

static void traces(struct world *w, const struct weights *engine, const struct weights *trainer,
                   struct trace *ret_engine, struct trace *ret_trainer)
{
    int32_t ids[200];
    struct train *train = NULL;
    tiny_prompt(3, ids, 200);
    must(train_open(w->d, &w->c, &w->l, w->dtype, kv_dtype_for(w->dtype), 200, true, &train, err));
    must(trace_engine(engine, kv_dtype_for(w->dtype), 200, ids, ret_engine, err));
    trace_train(train, trainer, 200, ids, ret_trainer);
    train_close(train);
    assert_null(w->d->observer);
}

static void ulp(const char *arch, enum dtype dtype, const char *matrix, int32_t layer, const char *block,
                int32_t nth)
{
    struct world w;
    struct engine_stats stats;
    struct replay_summary s;
    struct trace a, b;
    struct record *r = mem_must(SEGMENTS, sizeof *r);
    struct replay_segment segments[SEGMENTS];
    struct weights *faulty = NULL;
    world_open(&w, arch, dtype, 1);
    must(weights_open(w.d, &w.c, &w.l, dtype, false, &faulty, err));
    weights_set(faulty, w.master[0]);

    traces(&w, faulty, w.w[0], &a, &b);
    assert_null(part(&a, &b));
    assert_null(part(&b, &a));
    assert_true(a.n_ops > 3 * 8);
    assert_memory_equal(a.logprobs, b.logprobs, 200 * sizeof(float));
    assert_true(a.logprobs[0] == 0 && a.logprobs[1] < 0);
    assert_string_equal(a.ops[0].block, "embedding");
    assert_int_equal(a.ops[0].layer, -1);
    assert_string_equal(a.ops[a.n_ops - 1].op, "logprobs");
    assert_int_equal(a.ops[a.n_ops - 1].layer, 3);
    trace_done(&a);
    trace_done(&b);

    nudge(faulty, matrix);
    traces(&w, faulty, w.w[0], &a, &b);
    const struct trace_op *op = part(&a, &b);
    if (!op)
        fail_msg("nobody notices one ulp of %s in %s", matrix, dtype_name(dtype));
    assert_int_equal(op->layer, layer);
    assert_string_equal(op->block, block);
    assert_string_equal(op->op, "gemm");
    assert_int_equal(op->nth, nth);
    trace_done(&a);
    trace_done(&b);

    play(&w, &(struct scene){.calm = true, .instead = faulty}, r, &stats);
    replay(&w, KV_AUTO, &(struct try){400, 1 << 30, -1}, r, segments, &s);
    assert_int_equal(s.broken, 0);
    assert_true(s.max_abs_diff > 0);
    assert_true(s.segment >= 0);
    weights_close(faulty);
    free(r);
    world_close(&w);
}

static void test_one_ulp(void **state)
{
    (void)state;
    ulp("llama", DT_F32, "model.layers.1.self_attn.q_proj.weight", 1, "attention", 0);
    ulp("llama", DT_BF16, "model.layers.2.self_attn.o_proj.weight", 2, "attention", 1);
    ulp("qwen2", DT_BF16, "model.layers.0.mlp.gate_proj.weight", 0, "mlp", 0);
    ulp("qwen3", DT_FP8, "model.layers.1.self_attn.v_proj.weight", 1, "attention", 2);
}

int main(void)
{
    const struct CMUnitTest threaded[] = {cmocka_unit_test(test_kv_dtypes)};
    const struct CMUnitTest all[] = {
        cmocka_unit_test(test_keep),          cmocka_unit_test(test_recompute),
        cmocka_unit_test(test_kv_dtypes),     cmocka_unit_test(test_missing_weights),
        cmocka_unit_test(test_events_matter), cmocka_unit_test(test_unscorable),
        cmocka_unit_test(test_one_ulp),
    };
    return RACES_ONLY ? cmocka_run_group_tests(threaded, NULL, NULL)
                      : cmocka_run_group_tests(all, NULL, NULL);
}
