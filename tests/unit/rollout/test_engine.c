// rollout/engine.h: the promises of its header, on a tiny random model.
#include "tiny.h"

enum { N_JOBS = 24 };

// A mixture: short and long prompts, some with a common start, different temperatures and lengths.
static void submit_mixture(struct engine *e)
{
    int32_t ids[200];
    for (uint64_t j = 1; j <= N_JOBS; j++) {
        int32_t n = (int32_t)(1 + j * 37 % 150);
        tiny_prompt(j % 3 == 0 ? 99 : j, ids, n); // every third begins like the others of its kind
        struct engine_job job = tiny_job(j, ids, n, (int32_t)(5 + j * 13 % 60));
        job.msg.sampling.temperature = 0.5f + 0.1f * (float)(j % 8);
        job.msg.session = j % 2 ? j : 0;
        must(engine_submit(e, &job, err));
    }
}

static struct got *run_mixture(struct tiny *t, struct engine_config c, struct engine_stats *ret_stats)
{
    struct got *got = mem_must(N_JOBS, sizeof *got);
    struct engine *e = tiny_engine(t, c);
    submit_mixture(e);
    tiny_run(e, got, N_JOBS);
    engine_stats(e, ret_stats);
    assert_int_equal(ret_stats->finished, N_JOBS);
    assert_int_equal(ret_stats->kv_used, 0);
    engine_close(e);
    return got;
}

static const struct engine_config ALONE = {.max_running = 1, .no_prefix_cache = true, .kv_tokens = 1024};

// Promise 1. Every way of scheduling gives the tokens and log-probabilities of running each job alone.
static void test_independence(enum dtype dtype)
{
    static const struct engine_config configs[] = {
        {.kv_tokens = 8192},
        {.kv_tokens = 8192, .max_batch_tokens = 40, .prefill_chunk = 7},
        {.kv_tokens = 8192, .max_batch_tokens = 300, .prefill_chunk = 300, .no_prefix_cache = true},
        {.kv_tokens = 8192, .page_tokens = 64, .max_running = 5, .prefill_chunk = 33},
        {.kv_tokens = 512, .max_running = 16, .flush_tokens = 4},
        {.kv_tokens = 512, .max_running = 16, .no_prefix_cache = true},
    };
    struct engine_stats stats;
    struct tiny t;
    tiny_open(&t, dtype, 1);
    struct got *want = run_mixture(&t, ALONE, &stats);
    tiny_close(&t);
    int64_t preemptions = 0, cached = 0;
    for (int threads = 1 + RACES_ONLY; threads <= 2; threads++) {
        tiny_open(&t, dtype, threads);
        for (size_t i = RACES_ONLY ? 3 : 0; i < sizeof configs / sizeof configs[0]; i++) {
            struct got *got = run_mixture(&t, configs[i], &stats);
            for (int j = 0; j < N_JOBS; j++)
                assert_same(&got[j], &want[j]);
            preemptions += stats.preemptions;
            cached += stats.cached_tokens;
            free(got);
        }
        tiny_close(&t);
    }
    assert_true(preemptions > 0); // else memory was not short, and nothing was shown
    assert_true(cached > 0);
    free(want);
}

static void test_independence_f32(void **state)
{
    (void)state;
    test_independence(DT_F32);
}

static void test_independence_bf16(void **state)
{
    (void)state;
    test_independence(DT_BF16);
}

static void test_independence_fp8(void **state)
{
    (void)state;
    test_independence(DT_FP8);
}

// Promise 2.
static void test_resume(void **state)
{
    (void)state;
    struct tiny t;
    tiny_open(&t, DT_F32, 1);
    struct engine *e = tiny_engine(&t, (struct engine_config){.kv_tokens = 1024});
    int32_t ids[100];
    tiny_prompt(5, ids, 40);
    struct got *g = mem_must(2, sizeof *g);
    struct engine_job job = tiny_job(1, ids, 40, 50);
    must(engine_submit(e, &job, err));
    tiny_run(e, g, 1);
    assert_int_equal(g[0].n, 50);
    memcpy(ids + 40, g[0].ids, 17 * 4);
    job.msg.job = 2; // the same trajectory goes on
    job.msg.n_ids = 57;
    job.msg.sampling.max_new = 33;
    must(engine_submit(e, &job, err));
    tiny_run(e, g, 2);
    assert_int_equal(g[1].n, 33);
    assert_memory_equal(g[1].ids, g[0].ids + 17, 33 * 4);
    assert_memory_equal(g[1].logprobs, g[0].logprobs + 17, 33 * 4);
    assert_int_equal(g[1].cached, 32); // the full page before the resumed tokens
    free(g);
    engine_close(e);
    tiny_close(&t);
}

// What was sampled is what rescoring finds, bit for bit; also the trainer's own log-probabilities.
static void test_rescore_and_train(enum dtype dtype, enum kv_choice kv)
{
    struct tiny t;
    tiny_open(&t, dtype, 2);
    struct engine *e =
        tiny_engine(&t, (struct engine_config){.kv_tokens = 1024, .kv_dtype = kv, .prefill_chunk = 11});
    int32_t ids[120];
    tiny_prompt(6, ids, 30);
    struct got *g = mem_must(2, sizeof *g);
    struct engine_job job = tiny_job(1, ids, 30, 80);
    job.msg.sampling.temperature = 0.7f;
    must(engine_submit(e, &job, err));
    tiny_run(e, g, 1);
    memcpy(ids + 30, g[0].ids, 80 * 4);
    job.msg.job = 2;
    job.msg.n_ids = 110;
    job.msg.prompt_logprobs = true;
    job.msg.sampling.max_new = 0;
    must(engine_submit(e, &job, err));
    tiny_run(e, g, 2);
    assert_int_equal(g[1].finish, FINISH_LENGTH);
    assert_int_equal(g[1].n_prompt, 110);
    assert_true(g[1].prompt_logprobs[0] == 0);
    assert_memory_equal(g[1].prompt_logprobs + 30, g[0].logprobs, 80 * 4);

    if (dtype != DT_FP8) {
        struct train *train = NULL;
        must(train_open(t.d, &t.c, &t.l, dtype, kv_dtype_choose(kv, dtype), 110, false, &train, err));
        struct weights *w = NULL; // version 0 once more, as the trainer keeps it
        must(weights_open(t.d, &t.c, &t.l, dtype, true, &w, err));
        float *master = mem_alloc((size_t)t.l.total * sizeof(float));
        layout_init_random(&t.l, &t.c, 40, master);
        weights_set(w, master);
        int32_t pos[110], targets[110];
        float inv_temp[110], logprob[110];
        for (int i = 0; i < 110; i++) {
            pos[i] = i;
            targets[i] = i < 109 ? ids[i + 1] : -1;
            inv_temp[i] = 1.0f / 0.7f;
        }
        const struct attn_seq seq = {.row0 = 0, .n_rows = 110, .pos0 = 0};
        const struct batch b = {.n_rows = 110, .n_seqs = 1, .ids = ids, .pos = pos, .seqs = &seq};
        train_forward(train, w, &b);
        train_logprobs(train, w, targets, inv_temp, logprob, NULL);
        assert_memory_equal(logprob + 29, g[0].logprobs, 80 * 4);
        mem_free(master);
        weights_close(w);
        train_close(train);
    }
    free(g);
    engine_close(e);
    tiny_close(&t);
}

static void test_rescore_f32(void **state)
{
    (void)state;
    test_rescore_and_train(DT_F32, KV_AUTO);
}

static void test_rescore_bf16(void **state)
{
    (void)state;
    test_rescore_and_train(DT_BF16, KV_AUTO);
}

static void test_rescore_fp8(void **state)
{
    (void)state;
    test_rescore_and_train(DT_FP8, KV_AUTO);
}

static void test_rescore_kv(void **state)
{
    (void)state;
    static const enum dtype weights[] = {DT_F32, DT_BF16, DT_FP8};
    for (int i = 0; i < 3; i++)
        for (enum kv_choice kv = KV_F32; kv <= KV_FP8; kv++)
            test_rescore_and_train(weights[i], kv);
}

// Promise 3, keep: tokens before the refit are those of version 0; spans and events tell where it was.
static void test_refit_keep(void **state)
{
    (void)state;
    struct tiny t;
    tiny_open(&t, DT_F32, 1);
    int32_t ids[50];
    tiny_prompt(8, ids, 50);
    struct got *g = mem_must(2, sizeof *g);
    struct engine *e = tiny_engine(&t, (struct engine_config){.kv_tokens = 1024});
    struct engine_job job = tiny_job(1, ids, 50, 40);
    must(engine_submit(e, &job, err));
    tiny_run(e, g, 1);
    engine_close(e);

    e = tiny_engine(&t, (struct engine_config){.kv_tokens = 1024});
    job.msg.job = 2;
    must(engine_submit(e, &job, err));
    while (g[1].n < 15)
        tiny_step(e, g, 2);
    assert_ptr_equal(engine_set_weights(e, t.w[1], 1), t.w[0]);
    tiny_run(e, g, 2);
    assert_int_equal(g[1].finish, FINISH_LENGTH);
    assert_memory_equal(g[1].ids, g[0].ids, 15 * 4);
    assert_memory_not_equal(g[1].logprobs, g[0].logprobs, 40 * 4);
    assert_int_equal(g[1].n_spans, 2);
    assert_int_equal(g[1].spans[0].version, 0);
    assert_int_equal(g[1].spans[0].end, 15);
    assert_int_equal(g[1].spans[1].version, 1);
    assert_int_equal(g[1].spans[1].end, 40);
    assert_int_equal(g[1].n_kv, 2);
    assert_int_equal(g[1].kv[0].kind, KV_PREFILL);
    assert_int_equal(g[1].kv[0].at_token, 50);
    assert_int_equal(g[1].kv[0].from, 0);
    assert_int_equal(g[1].kv[0].to, 50);
    assert_int_equal(g[1].kv[0].version, 0);
    assert_int_equal(g[1].kv[1].kind, KV_REFIT);
    assert_int_equal(g[1].kv[1].at_token, 65);
    assert_int_equal(g[1].kv[1].from, 64);
    assert_int_equal(g[1].kv[1].to, 65);
    assert_int_equal(g[1].kv[1].version, 1);
    free(g);
    engine_close(e);
    tiny_close(&t);
}

// Promise 3, recompute: what follows the refit is what the new weights would give to the same prefix from the start.
static void test_refit_recompute(void **state)
{
    (void)state;
    struct tiny t;
    tiny_open(&t, DT_BF16, 1);
    int32_t ids[100];
    tiny_prompt(8, ids, 50);
    struct got *g = mem_must(2, sizeof *g);
    struct engine *e = tiny_engine(&t, (struct engine_config){.kv_tokens = 1024, .recompute_on_refit = true});
    struct engine_job job = tiny_job(1, ids, 50, 40);
    must(engine_submit(e, &job, err));
    while (g[0].n < 20)
        tiny_step(e, g, 1);
    engine_set_weights(e, t.w[1], 1);
    tiny_run(e, g, 1);
    assert_int_equal(g[0].n, 40);
    assert_int_equal(g[0].n_spans, 2);
    assert_int_equal(g[0].spans[1].start, 20);
    assert_int_equal(g[0].n_kv, 2);
    assert_int_equal(g[0].kv[0].kind, KV_PREFILL);
    assert_int_equal(g[0].kv[1].kind, KV_REFIT);
    assert_int_equal(g[0].kv[1].from, 0);
    assert_int_equal(g[0].kv[1].to, 70);
    assert_int_equal(g[0].kv[1].version, 1);
    engine_close(e);

    memcpy(ids + 50, g[0].ids, 20 * 4);
    e = tiny_engine(&t, (struct engine_config){.kv_tokens = 1024});
    engine_set_weights(e, t.w[1], 1);
    job.msg.job = 2;
    job.msg.n_ids = 70;
    job.msg.sampling.max_new = 20;
    must(engine_submit(e, &job, err));
    tiny_run(e, g, 2);
    assert_memory_equal(g[1].ids, g[0].ids + 20, 20 * 4);
    assert_memory_equal(g[1].logprobs, g[0].logprobs + 20, 20 * 4);
    free(g);
    engine_close(e);
    tiny_close(&t);
}

// Older pages are read by their own session only, and what was read is told.
static void test_sessions_across_refit(void **state)
{
    (void)state;
    struct tiny t;
    tiny_open(&t, DT_F32, 1);
    struct engine *e = tiny_engine(&t, (struct engine_config){.kv_tokens = 2048});
    int32_t ids[200];
    tiny_prompt(11, ids, 100);
    struct got *g = mem_must(5, sizeof *g);
    struct engine_job job = tiny_job(1, ids, 100, 30);
    job.msg.session = 77;
    must(engine_submit(e, &job, err));
    tiny_run(e, g, 1);
    memcpy(ids + 100, g[0].ids, 30 * 4);
    tiny_prompt(12, ids + 130, 20); // what the environment says
    engine_set_weights(e, t.w[1], 1);

    job.msg.n_ids = 150;
    job.msg.job = 2;
    job.msg.session = 78; // a stranger
    must(engine_submit(e, &job, err));
    tiny_run(e, g, 2);
    assert_int_equal(g[1].cached, 0);

    engine_flush_cache(e); // the stranger's new pages would be as good as the session's own
    job.msg.job = 3;
    job.msg.session = 77;
    must(engine_submit(e, &job, err));
    tiny_run(e, g, 3);
    assert_int_equal(g[2].cached, 0); // flushed too

    engine_set_weights(e, t.w[2], 2);
    job.msg.job = 4;
    must(engine_submit(e, &job, err));
    tiny_run(e, g, 4);
    assert_int_equal(g[3].cached, 128);
    assert_int_equal(g[3].n_kv, 2);
    assert_int_equal(g[3].kv[1].kind, KV_PREFILL);
    assert_int_equal(g[3].kv[1].from, 128);
    assert_int_equal(g[3].kv[1].to, 150);
    assert_int_equal(g[3].kv[1].version, 2);
    assert_int_equal(g[3].kv[0].kind, KV_PREFIX_HIT);
    assert_int_equal(g[3].kv[0].from, 0);
    assert_int_equal(g[3].kv[0].to, 128);
    assert_int_equal(g[3].kv[0].version, 1);
    assert_int_equal(g[3].kv[0].at_token, 150);
    assert_int_equal(g[3].spans[0].version, 2);

    // With recompute nobody reads older pages.
    engine_close(e);
    e = tiny_engine(&t, (struct engine_config){.kv_tokens = 2048, .recompute_on_refit = true});
    memset(g, 0, 5 * sizeof *g);
    job.msg.job = 1;
    must(engine_submit(e, &job, err));
    tiny_run(e, g, 1);
    engine_set_weights(e, t.w[1], 1);
    job.msg.job = 2;
    must(engine_submit(e, &job, err));
    tiny_run(e, g, 2);
    assert_int_equal(g[1].cached, 0);
    free(g);
    engine_close(e);
    tiny_close(&t);
}

// The members of a group compute their common prompt once, also when they arrive together.
static void test_group_shares_prompt(void **state)
{
    (void)state;
    struct tiny t;
    tiny_open(&t, DT_F32, 1);
    struct engine *e = tiny_engine(&t, (struct engine_config){.kv_tokens = 8192, .prefill_chunk = 64});
    int32_t ids[201];
    tiny_prompt(3, ids, 201);
    struct got *g = mem_must(16, sizeof *g);
    for (uint64_t j = 1; j <= 16; j++) {
        struct engine_job job = tiny_job(j, ids, 201, 8);
        job.msg.session = j;
        must(engine_submit(e, &job, err));
    }
    tiny_run(e, g, 16);
    struct engine_stats s;
    engine_stats(e, &s);
    assert_int_equal(s.prefill_tokens, 201 + 15 * 9); // 192 rows are full pages
    assert_int_equal(s.cached_tokens, 15 * 192);
    for (int j = 1; j < 16; j++)
        assert_int_equal(g[j].cached, 192);
    assert_memory_not_equal(g[0].ids, g[1].ids, 8 * 4); // each its own draws
    free(g);
    engine_close(e);
    tiny_close(&t);
}

static void test_cancel_pause_deadline(void **state)
{
    (void)state;
    struct tiny t;
    tiny_open(&t, DT_F32, 1);
    struct clock_fake clock;
    clock_fake_init(&clock, 1000);
    struct engine *e =
        tiny_engine(&t, (struct engine_config){.kv_tokens = 1024, .clock = &clock.clock, .flush_tokens = 4});
    int32_t ids[20];
    tiny_prompt(3, ids, 20);
    struct got *g = mem_must(8, sizeof *g);
    struct engine_job job = tiny_job(1, ids, 20, 100);
    must(engine_submit(e, &job, err));
    struct error why;
    assert_int_equal(engine_submit(e, &job, &why), STATUS_EXISTS);
    job.msg.job = 2;
    job.msg.deadline_ms = 50;
    must(engine_submit(e, &job, err));
    job.msg.job = 3; // waits for newer weights
    job.msg.min_version = 1;
    must(engine_submit(e, &job, err));
    for (int i = 0; i < 6; i++)
        tiny_step(e, g, 3);
    assert_int_equal(g[0].n, 4); // flushed by fours
    assert_true(engine_cancel(e, 1));
    assert_false(engine_cancel(e, 9));
    tiny_step(e, g, 3);
    assert_int_equal(g[0].finish, FINISH_ABORT);
    assert_int_equal(g[0].n, 6); // nothing sampled is lost
    assert_int_equal(engine_wake_ms(e), 50);
    clock_fake_advance_ms(&clock, 51);
    tiny_step(e, g, 3);
    assert_int_equal(g[1].finish, FINISH_ERROR);
    assert_true(g[1].n >= 7);
    assert_int_equal(g[2].finish, FINISH_ERROR); // its deadline passed while it waited
    assert_false(engine_ready(e));
    assert_int_equal(engine_wake_ms(e), INT64_MAX);

    job.msg.job = 4;
    job.msg.deadline_ms = 0;
    must(engine_submit(e, &job, err));
    assert_false(engine_ready(e)); // min_version 1
    engine_set_weights(e, t.w[1], 1);
    for (int i = 0; i < 9; i++)
        tiny_step(e, g, 4);
    static const enum engine_pause how[] = {ENGINE_PAUSE_IN_PLACE, ENGINE_PAUSE_RETRACT};
    for (int i = 0; i < 2; i++) {
        engine_pause(e, how[i]);
        assert_false(engine_ready(e));
        struct engine_stats s;
        engine_stats(e, &s);
        assert_int_equal(s.running, i == 0);
        assert_true(s.paused);
        engine_continue(e);
        tiny_step(e, g, 4);
    }
    tiny_run(e, g, 4);
    assert_int_equal(g[3].n, 100);
    free(g);
    engine_close(e);
    tiny_close(&t);
}

static void test_refusals(void **state)
{
    (void)state;
    struct tiny t;
    tiny_open(&t, DT_F32, 1);
    struct engine *e = tiny_engine(&t, (struct engine_config){.kv_tokens = 256});
    struct error why;
    int32_t ids[300] = {1, 2, 3};
    struct engine_job job = tiny_job(1, ids, 3, 4);
#define REFUSED(field, value, want, words)                                                                   \
    do {                                                                                                     \
        struct engine_job bad = job;                                                                         \
        bad.field = (value);                                                                                 \
        assert_int_equal(engine_submit(e, &bad, &why), want);                                                \
        assert_non_null(strstr(why.text, words));                                                            \
    } while (0)
    REFUSED(msg.sampling.temperature, 0, STATUS_REFUSED, "training");
    REFUSED(msg.sampling.top_k, 5, STATUS_REFUSED, "training");
    REFUSED(msg.sampling.top_p, 0.9f, STATUS_REFUSED, "training");
    REFUSED(msg.sampling.min_p, 0.1f, STATUS_REFUSED, "training");
    REFUSED(msg.sampling.min_new, 2, STATUS_REFUSED, "training");
    REFUSED(msg.sampling.temperature, NAN, STATUS_INVALID, "temperature");
    REFUSED(msg.sampling.top_p, 0, STATUS_INVALID, "top_p");
    REFUSED(msg.sampling.max_new, 0, STATUS_INVALID, "nothing to do");
    REFUSED(msg.n_ids, 0, STATUS_INVALID, "empty");
    REFUSED(msg.n_ids, 256, STATUS_INVALID, "no room");
    ids[1] = TINY_VOCAB;
    REFUSED(msg.n_ids, 3, STATUS_INVALID, "position 1");
    ids[1] = 2;
    must(engine_submit(e, &job, err));

    // Room for 256 tokens: max_new is cut, and two that need it all take turns.
    struct got *g = mem_must(3, sizeof *g);
    tiny_prompt(2, ids, 200);
    for (uint64_t j = 2; j <= 3; j++) {
        job = tiny_job(j, ids, 200, 400);
        must(engine_submit(e, &job, err));
    }
    tiny_run(e, g, 3);
    for (int j = 1; j < 3; j++) {
        assert_int_equal(g[j].n, 56);
        assert_int_equal(g[j].finish, FINISH_LENGTH);
    }
    free(g);
    engine_close(e);
    tiny_close(&t);
}

// Stop ids end a job and are part of it; before min_new they are never sampled; ignore_eos frees the model's own.
static void test_stop(void **state)
{
    (void)state;
    struct tiny t;
    tiny_open(&t, DT_F32, 1);
    t.c.n_eos = 1;
    int32_t ids[10];
    tiny_prompt(2, ids, 10);
    struct got *g = mem_must(3, sizeof *g);
    struct engine *e = tiny_engine(&t, (struct engine_config){.kv_tokens = 1024});
    struct engine_job job = tiny_job(1, ids, 10, 60);
    job.msg.sampling.ignore_eos = true;
    must(engine_submit(e, &job, err));
    tiny_run(e, g, 1);
    assert_int_equal(g[0].n, 60);
    engine_close(e);
    t.c.eos_ids[0] = g[0].ids[30];
    int32_t first = 0;
    while (g[0].ids[first] != g[0].ids[30])
        first++;

    e = tiny_engine(&t, (struct engine_config){.kv_tokens = 1024});
    job.msg.job = 2;
    job.msg.sampling.ignore_eos = false;
    must(engine_submit(e, &job, err));
    job.msg.job = 3;
    job.msg.trajectory = 1;
    job.msg.sampling.train = false;
    job.msg.sampling.min_new = first + 1;
    must(engine_submit(e, &job, err));
    tiny_run(e, g, 3);
    assert_int_equal(g[1].finish, FINISH_STOP);
    assert_int_equal(g[1].n, first + 1);
    assert_memory_equal(g[1].ids, g[0].ids, (size_t)(first + 1) * 4);
    for (int32_t i = 0; i <= first; i++)
        assert_true(g[2].ids[i] != t.c.eos_ids[0]);
    free(g);
    engine_close(e);
    tiny_close(&t);
}

// Logits that are not numbers end the job, not the process.
static void test_not_finite(void **state)
{
    (void)state;
    struct tiny t;
    tiny_open(&t, DT_F32, 1);
    float *master = mem_alloc((size_t)t.l.total * sizeof(float));
    for (int64_t i = 0; i < t.l.total; i++)
        master[i] = NAN;
    weights_set(t.w[1], master);
    mem_free(master);
    struct engine *e = tiny_engine(&t, (struct engine_config){.kv_tokens = 1024});
    engine_set_weights(e, t.w[1], 1);
    int32_t ids[3] = {1, 2, 3};
    struct got *g = mem_must(1, sizeof *g);
    struct engine_job job = tiny_job(1, ids, 3, 4);
    must(engine_submit(e, &job, err));
    tiny_run(e, g, 1);
    assert_int_equal(g[0].finish, FINISH_ERROR);
    assert_int_equal(g[0].n, 0);
    assert_non_null(strstr(g[0].error, "finite"));
    free(g);
    engine_close(e);
    tiny_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_independence_f32),
        cmocka_unit_test(test_independence_bf16),
        cmocka_unit_test(test_independence_fp8),
        cmocka_unit_test(test_resume),
        cmocka_unit_test(test_rescore_f32),
        cmocka_unit_test(test_rescore_bf16),
        cmocka_unit_test(test_rescore_fp8),
        cmocka_unit_test(test_rescore_kv),
        cmocka_unit_test(test_refit_keep),
        cmocka_unit_test(test_refit_recompute),
        cmocka_unit_test(test_sessions_across_refit),
        cmocka_unit_test(test_group_shares_prompt),
        cmocka_unit_test(test_cancel_pause_deadline),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_stop),
        cmocka_unit_test(test_not_finite),
    };
    return cmocka_run_group_tests_name("rollout engine", tests, NULL, NULL);
}
