// trainer/rescore.h through the session: CHECK and TRACE over published weights. What an engine would record is made here with the
// engine's forward pass over pages.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
// cmocka wants the four above first
#include <cmocka.h>

#include "base/file.h"
#include "tests/unit/trainer/tiny.h"
#include "trainer/session.h"

#define VERSIONS 3
#define TOKENS   90
#define SPLIT    50 // rows from here on are of the newer version
#define SEGMENTS 4
#define SAMPLED  63 // tokens of a segment

static char run_dir[256], shm[300];
static struct run_config *config;
static struct session *session;
static char paths[VERSIONS][RUNCONFIG_PATH], hashes[VERSIONS][HASH_HEX];

static int setup(void **state)
{
    (void)state;
    struct error err;
    snprintf(run_dir, sizeof run_dir, "%s/ooze-rescore-XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    if (!mkdtemp(run_dir))
        return -1;
    snprintf(shm, sizeof shm, "%s/shm", run_dir);
    config = tiny_config();
    return file_mkdirs(shm, 0700, &err);
}

static int teardown(void **state)
{
    (void)state;
    struct error err;
    session_close(session);
    session = NULL;
    free(config);
    return file_remove_tree(run_dir, &err);
}

static void must(enum status rc, const struct error *err)
{
    if (rc)
        fail_msg("%s", err->text);
}

// A trainer that has published VERSIONS versions.
static void train(enum run_dtype trainer, enum run_dtype rollout, enum run_kv_dtype kv)
{
    struct error err = {0};
    struct msg m;
    config->trainer.dtype = trainer;
    config->rollout.dtype = rollout;
    config->rollout.kv_dtype = kv;
    must(session_open(config, run_dir, "0123abcd", shm, clock_system(), &session, &err), &err);
    const struct msg_welcome w = {
        .run = "0123abcd", .epoch = 1, .accepted = true, .checkpoint = "", .checkpoint_hash = ""};
    must(session_welcome(session, &w, &m, &err), &err);
    for (int v = 0; v < VERSIONS; v++) {
        struct tiny_step step;
        if (v > 0) {
            tiny_step_init(&step, 6, 0, 2, 70 + (uint64_t)v);
            step.msg.step = v - 1;
            step.msg.stage_first = v == 1;
            step.msg.publish = true;
            must(session_prepare(session, &step.msg, &m, &err), &err);
        }
        assert_int_equal(m.type, MSG_STEP_DONE);
        assert_int_equal(m.step_done.version, v);
        snprintf(paths[v], sizeof paths[v], "%s", m.step_done.path);
        snprintf(hashes[v], sizeof hashes[v], "%s", m.step_done.hash);
        if (v > 0)
            tiny_step_done(&step);
    }
}

// ---- what an engine would have recorded ---------------------------------------------------------------------------------

struct record {
    struct msg_check_segment segment;
    int32_t ids[TOKENS], versions[TOKENS];
    uint8_t mask[TOKENS];
    float logprobs[TOKENS], temperatures[TOKENS];
    struct msg_kv kv[2];
};

static struct weights *open_version(struct device *d, int v)
{
    struct weights *w = NULL;
    struct error err = {0};
    must(weights_open(d, &session->trainer->model, &session->trainer->layout, rollout_dtype(config), false,
                      &w, &err),
         &err);
    must(weights_load(w, paths[v], hashes[v], &err), &err);
    return w;
}

// Rows [from, to) over the pages, and the log-probabilities of the tokens after them.
static void compute(struct record *r, struct weights *w, struct kv *kv, const int32_t *pages, int32_t from,
                    int32_t to)
{
    struct device *d = session->trainer->device;
    struct arena step;
    struct error err = {0};
    int32_t pos[TOKENS];
    static float hidden[TOKENS * 32], logits[TOKENS * TINY_VOCAB];
    float inv_temp[TOKENS], lp[TOKENS], lse[TOKENS];
    int32_t rows = to - from;
    for (int32_t i = 0; i < rows; i++)
        pos[i] = from + i;
    const struct attn_seq seq = {.n_rows = rows, .pos0 = from, .pages = pages};
    const struct batch b = {rows, 1, r->ids + from, pos, &seq};
    arena_init(&step, 0);
    must(model_forward(w, kv, &b, &step, hidden, &err), &err);
    model_logits(w, rows, hidden, logits);
    for (int32_t i = 0; i < rows; i++)
        inv_temp[i] = 1.0f / r->temperatures[from + i + 1];
    d->k->logprob(d, rows, TINY_VOCAB, logits, TINY_VOCAB, inv_temp, r->ids + from + 1, lp, lse, NULL);
    for (int32_t i = 0; i < rows; i++)
        if (r->mask[from + i + 1])
            r->logprobs[from + i + 1] = lp[i];
    arena_done(&step);
}

// older == newer: one version throughout.
static void record_make(struct record *r, uint64_t trajectory, int older, int newer)
{
    struct device *d = session->trainer->device;
    struct weights *w[2] = {open_version(d, older), open_version(d, newer)};
    struct kv *kv = NULL;
    struct rng rng;
    struct error err = {0};
    const int32_t pages[] = {0, 1, 2};
    *r = (struct record){.segment = {trajectory, 1, 0, TOKENS, 0}};
    rng_init(&rng, trajectory, 3);
    for (int i = 0; i < TOKENS; i++) {
        r->ids[i] = (int32_t)rng_below(&rng, TINY_VOCAB);
        r->mask[i] = i >= 20 && i % 9 != 0;
        r->versions[i] = !r->mask[i] ? -1 : i <= SPLIT ? older : newer;
        r->temperatures[i] = r->mask[i] && trajectory % 2 ? 0.8f : 1;
    }
    r->kv[r->segment.n_kv++] = (struct msg_kv){KV_PREFILL, 20, 0, 20, older};
    if (newer != older)
        r->kv[r->segment.n_kv++] = (struct msg_kv){KV_REFIT, SPLIT + 1, SPLIT, SPLIT + 1, newer};
    must(kv_open(d, &session->trainer->model, kv_dtype_choose(run_kv_choice(config), rollout_dtype(config)),
                 3, 32, &kv, &err),
         &err);
    compute(r, w[0], kv, pages, 0, SPLIT);
    compute(r, w[1], kv, pages, SPLIT, TOKENS - 1);
    kv_close(kv);
    weights_close(w[0]);
    weights_close(w[1]);
}

struct question {
    struct msg_check m;
    struct msg_check_segment segments[SEGMENTS];
    struct msg_weights weights[VERSIONS];
    struct msg_kv kv[2 * SEGMENTS];
    int32_t ids[SEGMENTS * TOKENS], versions[SEGMENTS * TOKENS];
    uint8_t mask[SEGMENTS * TOKENS];
    float logprobs[SEGMENTS * TOKENS], temperatures[SEGMENTS * TOKENS];
};

static void question_make(struct question *q, const struct record *r)
{
    *q = (struct question){
        .m = {.epoch = 1, .id = 9, .step = 2, .n_segments = SEGMENTS, .n_weights = VERSIONS}};
    for (int i = 0; i < VERSIONS; i++)
        q->weights[i] = (struct msg_weights){i, paths[i], hashes[i]};
    for (int i = 0; i < SEGMENTS; i++) {
        q->segments[i] = r[i].segment;
        memcpy(q->kv + q->m.n_kv, r[i].kv, sizeof r[i].kv);
        q->m.n_kv += r[i].segment.n_kv;
        memcpy(q->ids + q->m.n_tokens, r[i].ids, sizeof r[i].ids);
        memcpy(q->versions + q->m.n_tokens, r[i].versions, sizeof r[i].versions);
        memcpy(q->mask + q->m.n_tokens, r[i].mask, sizeof r[i].mask);
        memcpy(q->logprobs + q->m.n_tokens, r[i].logprobs, sizeof r[i].logprobs);
        memcpy(q->temperatures + q->m.n_tokens, r[i].temperatures, sizeof r[i].temperatures);
        q->m.n_tokens += TOKENS;
    }
    q->m.segments = q->segments;
    q->m.weights = q->weights;
    q->m.kv = q->kv;
    q->m.ids = q->ids;
    q->m.versions = q->versions;
    q->m.mask = q->mask;
    q->m.logprobs = q->logprobs;
    q->m.temperatures = q->temperatures;
}

static const struct msg_check_done *ask(const struct question *q)
{
    static struct msg m;
    struct error err = {0};
    must(session_check(session, &q->m, &m, &err), &err);
    assert_int_equal(m.type, MSG_CHECK_DONE);
    assert_int_equal(m.check_done.epoch, 1);
    assert_int_equal(m.check_done.id, 9);
    return &m.check_done;
}

// ---- tests --------------------------------------------------------------------------------------------------------------

static void check_all(enum run_dtype trainer, enum run_dtype rollout, enum run_kv_dtype kv)
{
    static struct record r[SEGMENTS];
    static struct question q;
    train(trainer, rollout, kv);
    record_make(&r[0], 100, 0, 0);
    record_make(&r[1], 101, 0, 1);
    record_make(&r[2], 102, 1, 2);
    record_make(&r[3], 103, 2,
                1); // versions fall, as after a run that went back: the versions are walked twice
    question_make(&q, r);
    const struct msg_check_done *a = ask(&q);
    assert_string_equal(a->error, "");
    assert_int_equal(a->compared, SEGMENTS);
    assert_int_equal(a->skipped, 0);
    assert_int_equal(a->crossing, 3);
    assert_int_equal(a->tokens, SEGMENTS * SAMPLED);
    assert_true(a->max_abs_diff == 0);
    assert_false(a->differs);
    // one bit of what was recorded
    q.logprobs[2 * TOKENS + 71] = nextafterf(q.logprobs[2 * TOKENS + 71], -100);
    q.logprobs[3 * TOKENS + 80] -= 0.5f;
    a = ask(&q);
    assert_true(a->differs);
    assert_int_equal(a->trajectory, 102);
    assert_int_equal(a->attempt, 1);
    assert_int_equal(a->position, 71);
    assert_int_equal(a->version, 2);
    assert_true(a->recorded < a->rescored);
    assert_true(fabs(a->max_abs_diff - 0.5) < 1e-4);
    // an event left out
    question_make(&q, r);
    memmove(&q.kv[2], &q.kv[3], 4 * sizeof q.kv[0]);
    q.segments[1].n_kv--;
    q.m.n_kv--;
    a = ask(&q); // still told by the tokens' versions: decoding made those rows
    assert_false(a->differs);
    q.kv[0].version = 1; // the prompt of trajectory 100 was not made by that
    a = ask(&q);
    assert_true(a->differs || a->skipped == 1);
    // of another incarnation: no answer
    struct msg m;
    struct error err = {0};
    q.m.epoch = 2;
    must(session_check(session, &q.m, &m, &err), &err);
    assert_int_equal(m.type, MSG_NONE);
}

static void test_fp8_rollouts(void **state)
{
    (void)state;
    check_all(RUN_F32, RUN_FP8, RUN_KV_DTYPE_AUTO);
    assert_non_null(session->rescore.train);
}

static void test_bf16(void **state)
{
    (void)state;
    check_all(RUN_BF16, RUN_BF16, RUN_KV_DTYPE_AUTO);
    assert_null(session->rescore.train); // the training pass itself
}

static void test_fp8_keys(void **state)
{
    (void)state;
    check_all(RUN_BF16, RUN_FP8, RUN_KV_DTYPE_FP8);
}

static void test_weights_that_are_gone(void **state)
{
    (void)state;
    static struct record r[SEGMENTS];
    static struct question q;
    train(RUN_F32, RUN_BF16, RUN_KV_DTYPE_AUTO);
    record_make(&r[0], 100, 0, 0);
    record_make(&r[1], 101, 0, 1);
    record_make(&r[2], 102, 1, 2);
    record_make(&r[3], 103, 2, 2);
    question_make(&q, r);
    assert_int_equal(unlink(paths[0]), 0);
    const struct msg_check_done *a = ask(&q);
    assert_string_equal(a->error, "");
    assert_int_equal(a->skipped, 2);
    assert_int_equal(a->compared, 2);
    assert_int_equal(a->crossing, 1);
    assert_int_equal(a->tokens, 2 * SAMPLED);
    assert_int_equal(a->tokens_skipped, 2 * SAMPLED);
    assert_false(a->differs);
    q.m.n_weights = 2; // nobody says where version 2 is
    a = ask(&q);
    assert_int_equal(a->compared, 0);
    // there, but another file
    q.m.n_weights = 3;
    snprintf(hashes[1], sizeof hashes[1], "%s", hashes[2]);
    a = ask(&q);
    assert_non_null(strstr(a->error, "hash"));
    assert_false(a->differs);
    // a history that contradicts itself: the rest is compared all the same
    question_make(&q, r);
    q.m.weights = q.weights;
    q.versions[3 * TOKENS + 20] = 1; // the prompt before it was made by version 2
    q.weights[1].path = "";
    a = ask(&q);
    assert_int_equal(a->compared, 0);
    assert_non_null(strstr(a->error, "trajectory 103"));
}

static void test_trace(void **state)
{
    (void)state;
    struct msg m, twice;
    struct error err = {0};
    struct trace engine;
    int32_t ids[TOKENS];
    struct rng rng;
    train(RUN_F32, RUN_FP8, RUN_KV_DTYPE_AUTO);
    rng_init(&rng, 1, 1);
    for (int i = 0; i < TOKENS; i++)
        ids[i] = (int32_t)rng_below(&rng, TINY_VOCAB);
    struct msg_trace t = {1, 5, 2, paths[2], hashes[2], TOKENS, ids};
    must(session_trace(session, &t, &m, &err), &err);
    assert_int_equal(m.type, MSG_TRACE_DONE);
    assert_true(m.trace_done.ok);
    assert_int_equal(m.trace_done.id, 5);
    assert_int_equal(m.trace_done.version, 2);
    assert_int_equal(m.trace_done.n_logprobs, TOKENS);
    struct weights *w = open_version(session->trainer->device, 2);
    must(trace_engine(w, kv_dtype_choose(KV_AUTO, DT_FP8), TOKENS, ids, &engine, &err), &err);
    struct msg_trace_op *ops = mem_must((size_t)engine.n_ops, sizeof *ops);
    uint64_t *digests = mem_must((size_t)engine.n_ops, sizeof *digests);
    for (int32_t i = 0; i < engine.n_ops; i++) {
        ops[i] = (struct msg_trace_op){engine.ops[i].layer, engine.ops[i].nth, engine.ops[i].block,
                                       engine.ops[i].op};
        digests[i] = engine.ops[i].digest;
    }
    twice.trace_done = (struct msg_trace_done){.n_ops = engine.n_ops, .ops = ops, .digests = digests};
    assert_int_equal(msg_trace_compare(&m.trace_done, &twice.trace_done), -1);
    assert_memory_equal(m.trace_done.logprobs, engine.logprobs, sizeof(float) * TOKENS);
    // other weights part at once
    t.version = 1;
    t.path = paths[1];
    t.hash = hashes[1];
    must(session_trace(session, &t, &m, &err), &err);
    assert_true(msg_trace_compare(&m.trace_done, &twice.trace_done) >= 0);
    // refusals are answers
    t.path = "/nonexistent";
    t.hash = hashes[2];
    must(session_trace(session, &t, &m, &err), &err);
    assert_false(m.trace_done.ok);
    assert_non_null(strstr(m.trace_done.error, "gone"));
    ids[3] = TINY_VOCAB;
    t.path = paths[1];
    must(session_trace(session, &t, &m, &err), &err);
    assert_non_null(strstr(m.trace_done.error, "vocabulary"));
    ids[3] = 1;
    t.epoch = 7;
    must(session_trace(session, &t, &m, &err), &err);
    assert_int_equal(m.type, MSG_NONE);
    trace_done(&engine);
    free(ops);
    free(digests);
    weights_close(w);
}

// Scoring is no part of training: a run that is checked in between has the weights of one that is not.
static void test_training_unmoved(void **state)
{
    (void)state;
    static struct record r[SEGMENTS];
    static struct question q;
    struct tiny_step step;
    struct msg m;
    struct error err = {0};
    char unchecked[HASH_HEX];
    for (int round = 0; round < 2; round++) {
        train(RUN_BF16, RUN_BF16, RUN_KV_DTYPE_AUTO);
        for (uint64_t i = 0; i < SEGMENTS; i++)
            record_make(&r[i], 100 + i, 0, (int)i % 3);
        question_make(&q, r);
        if (round == 1)
            assert_int_equal(ask(&q)->compared, SEGMENTS);
        tiny_step_init(&step, 6, 0, 2, 99);
        step.msg.step = 2;
        step.msg.stage_first = false;
        must(session_prepare(session, &step.msg, &m, &err), &err);
        if (round == 0)
            memcpy(unchecked, m.step_done.hash, HASH_HEX);
        else
            assert_string_equal(m.step_done.hash, unchecked);
        tiny_step_done(&step);
        session_close(session);
        session = NULL;
    }
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_fp8_rollouts),          TEST(test_bf16),  TEST(test_fp8_keys),
        TEST(test_weights_that_are_gone), TEST(test_trace), TEST(test_training_unmoved),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
