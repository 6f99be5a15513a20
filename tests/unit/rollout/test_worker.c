// rollout/worker.h where its loop does not run: outputs wait, the compute thread sleeps when it has too many, and nothing of them is
// lost when it is stopped.
#include "tests/isa.h"
#include "tiny.h"

#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "rollout/worker.h"

enum { JOB_TOKENS = 120 };

struct side {
    struct loop *loop;
    struct worker *worker;
    char dir[64];
    int64_t n_tokens, n_finished; // delivered
    int n_loaded;
};

// The hands of the workers' clock, and how often it is looked at: what turns without sleeping looks all the time.
static struct {
    atomic_llong ahead_ns, looks;
} hands;

static int64_t look(void *ctx)
{
    (void)ctx;
    hands.looks++;
    return clock_mono_ns(clock_system()) + hands.ahead_ns;
}

static const struct clock watched = {.mono_ns = look};

static void on_outputs(void *ctx, const struct outputs *o)
{
    struct side *s = ctx;
    for (size_t i = 0; i < o->n_items; i++) {
        s->n_tokens += o->items[i].n;
        s->n_finished += o->items[i].finish != FINISH_NONE;
    }
}

static void on_loaded(void *ctx, const struct worker_loaded *l)
{
    struct side *s = ctx;
    assert_true(l->ok);
    s->n_loaded++;
}

static void on_failed(void *ctx, const struct error *err)
{
    (void)ctx;
    fail_msg("%s", err->text);
}

// One layer, one head: a million tokens are to be had in seconds.
static struct model_config small_config(void)
{
    struct model_config c = tiny_config();
    c.hidden = c.ffn = 32;
    c.n_layers = c.n_heads = c.n_kv_heads = 1;
    c.vocab = 64;
    return c;
}

static void load(struct side *s)
{
    struct model_config c = small_config();
    struct worker_load l = {.version = 0, .folder = true};
    struct layout layout;
    char hash[HASH_HEX];
    must(layout_open(&c, &layout, err));
    float *master = mem_alloc((size_t)layout.total * sizeof(float));
    layout_init_random(&layout, &c, 40, master);
    snprintf(l.path, sizeof l.path, "%s/model", s->dir);
    must(model_folder_write(l.path, &c, &layout, master, DT_F32, NULL, hash, err));
    mem_free(master);
    layout_done(&layout);
    must(worker_load_start(s->worker, &l, err));
    for (int i = 0; i < 1000 && s->n_loaded == 0; i++)
        loop_run_for(s->loop, 10);
    assert_int_equal(s->n_loaded, 1);
}

static void side_open(struct side *s)
{
    *s = (struct side){0};
    strcpy(s->dir, "/tmp/ooze-worker-XXXXXX");
    assert_non_null(mkdtemp(s->dir));
    must(loop_open(&s->loop, err));
    const struct worker_config w = {
        .isa = test_isa(),
        .threads = 1,
        .model = small_config(),
        .dtype = DT_F32,
        .engine = {.kv_tokens = 1 << 18,
                   .max_running = 512,
                   .max_batch_tokens = 4096,
                   .flush_tokens = 16, // else there are too many outputs before there are too many tokens
                   .clock = &watched},
        .loop = s->loop,
        .on_outputs = on_outputs,
        .on_loaded = on_loaded,
        .on_failed = on_failed,
        .ctx = s};
    must(worker_open(&w, &s->worker, err));
    load(s);
}

static void side_close(struct side *s)
{
    worker_close(s->worker);
    loop_close(s->loop);
    must(file_remove_tree(s->dir, err));
}

static void submit(struct side *s, uint64_t id, int32_t max_new, int64_t min_version, int64_t deadline_ms)
{
    const int32_t ids[] = {1, 2, 3};
    struct engine_job job = tiny_job(id, ids, 3, max_new);
    job.msg.min_version = min_version;
    job.msg.deadline_ms = deadline_ms;
    must(worker_submit(s->worker, &job, err));
}

static void pause_ms(int ms)
{
    nanosleep(&(struct timespec){.tv_nsec = ms * 1000000L}, NULL);
}

// The loop does not run meanwhile.
static struct worker_stats wait_generated(struct side *s, int64_t want)
{
    struct worker_stats stats = {0};
    for (int i = 0; i < 100000 && stats.engine.generated_tokens < want; i++) {
        pause_ms(1);
        worker_stats(s->worker, &stats);
    }
    assert_true(stats.engine.generated_tokens >= want);
    return stats;
}

static void test_stop(void **state)
{
    (void)state;
    struct side s;
    side_open(&s);
    for (uint64_t id = 1; id <= 4; id++)
        submit(&s, id, 30, 0, 0);
    submit(&s, 5, 30, 9, 0); // waits for version 9 for ever
    wait_generated(&s, 4 * 30);
    assert_int_equal(s.n_tokens, 0); // those of the first step are ready, the others wait for company
    worker_stop(s.worker);
    assert_int_equal(s.n_tokens, 4 * 30);
    assert_int_equal(s.n_finished, 4);
    loop_run_for(s.loop, 50); // what was posted finds nothing left
    assert_int_equal(s.n_tokens, 4 * 30);
    worker_stop(s.worker); // once more is fine
    side_close(&s);
    worker_stop(NULL);
}

// More than the I/O thread takes: the compute thread waits, also past a job's deadline, which it cannot tell anybody of.
static void test_full(void **state)
{
    (void)state;
    enum { LIMIT = 1 << 20 }; // OUTPUT_TOKENS_MAX
    const int64_t hour_ms = 3600000;
    int jobs = RACES_ONLY ? 4 : LIMIT / JOB_TOKENS * 5 / 4;
    struct side s;
    side_open(&s);
    submit(&s, 1, 10, 9, hour_ms); // waits for version 9
    for (int i = 0; i < jobs; i++)
        submit(&s, (uint64_t)i + 2, JOB_TOKENS, 0, 0);
    struct worker_stats stats = wait_generated(&s, RACES_ONLY ? JOB_TOKENS : LIMIT), later = stats;
    do {
        stats = later;
        pause_ms(50);
        worker_stats(s.worker, &later);
    } while (later.engine.generated_tokens > stats.engine.generated_tokens);
    assert_true(stats.engine.generated_tokens < LIMIT + 2 * 512 * 32); // it has stopped
    hands.ahead_ns += 2 * hour_ms * 1000000;
    worker_cancel(s.worker, 12345); // a look at the deadline
    pause_ms(50);
    long long before = hands.looks;
    pause_ms(100);
    if (!RACES_ONLY)
        assert_true(hands.looks - before < 10);
    for (int i = 0; i < 10000 && s.n_finished < jobs + 1; i++)
        loop_run_for(s.loop, 10);
    assert_int_equal(s.n_finished, jobs + 1);
    assert_int_equal(s.n_tokens, (int64_t)jobs * JOB_TOKENS);
    side_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stop),
        cmocka_unit_test(test_full),
    };
    return cmocka_run_group_tests_name("rollout worker", tests, NULL, NULL);
}
