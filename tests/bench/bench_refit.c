// Refit: from the moment the trainer has published its weights (STEP_DONE leaves) until the engine holds them between two steps, so
// that the next token it samples is theirs. Everything is the real thing: the trainer's publish_weights into shared memory, the
// worker with its loader thread, hashes checked, swap. Bound: the bytes of the file at the speed of memcpy on all cores, measured in
// the same run.
//
//   bench_refit [--serve] [--dtype fp8|bf16] [--threads N of the engine] [--isa CLASS] [--batch 32] [--models DIR]
//
// What is reported, in seconds:
//   value        a synchronous iteration: trainer and engine take turns (each with all cores, base/cores.h), so no step is under way
//                when the trainer is done; the batch of 32 sequences waits for the new weights
//   in_flight    the same, but the engine goes on decoding the batch, as with max_lag > 0: what is left of the step under way, which
//                nothing may interrupt, is in it (half a step in the mean)
//   stall, step  in flight: how long no step could run, and what a decode step of the batch takes, which is the most that it may be
//   first_token  in flight: to the end of the first step with the new weights
//   update       the step's last update alone (AdamW over all weights), without publishing
//   update_publish  update and publication in one pass over the weights, as a step does it: STEP_DONE leaves at its end
//   publish      what publication adds to the update: update_publish - update
//   from_step_done  publish + value: an engine that is ready, counted from a trainer that had only to train
//   bound        file bytes / memcpy
//
// --threads 1 on two cores is what an asynchronous run's engine gets there. Not in it: the two messages from the trainer through the
// orchestrator to the engine.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cores.h"
#include "base/file.h"
#include "base/mem.h"
#include "rollout/worker.h"
#include "tests/bench/peaks.h"
#include "tests/bench/subject.h"
#include "trainer/publish.h"

#define CONTEXT   256
#define VERSIONS  1000000
#define WAIT_S    60.0
#define COPY_TIME 0.3

struct bench {
    // options
    bool serve;
    int threads, batch;
    struct run_config *config;
    // trainer's side
    struct trainer *trainer;
    struct publish publish;
    char run_dir[64], run[RUNCONFIG_NAME];
    // engine's side
    struct loop *loop;
    struct worker *worker;
    pthread_t io;
    uint64_t next_job;
    // shared with the I/O thread
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct worker_loaded loaded;
    bool has_loaded, failed;
    int64_t token_version; // newest version that a token came from
    double token_at;       // when the first token of it came out
    int64_t tokens;
    int running;
    // bound
    struct device *device;
    char *from, *to;
    double copy_rate;
};

static double now(void)
{
    return (double)clock_mono_ns(clock_system()) * 1e-9;
}

static _Noreturn void die(const char *what)
{
    printf("{\"error\":\"bench_refit: %s\"}\n", what);
    fflush(stdout);
    _exit(1);
}

static void must(enum status rc, const struct error *err)
{
    if (rc)
        die(err->text);
}

// ---- I/O thread -------------------------------------------------------------------------------------------------------------

static void submit(struct bench *b);

static void on_outputs(void *ctx, const struct outputs *o)
{
    struct bench *b = ctx;
    int ended = 0;
    double t = now();
    pthread_mutex_lock(&b->lock);
    for (size_t i = 0; i < o->n_items; i++) {
        const struct output *item = &o->items[i];
        for (int32_t k = 0; k < item->n_spans; k++) {
            int64_t v = o->spans[item->first_span + (size_t)k].version;
            if (v > b->token_version) {
                b->token_version = v;
                b->token_at = t;
            }
        }
        b->tokens += item->n;
        ended += item->finish != 0;
    }
    b->running -= ended;
    pthread_cond_broadcast(&b->wake);
    pthread_mutex_unlock(&b->lock);
    for (int i = 0; i < ended; i++)
        submit(b);
}

static void on_loaded(void *ctx, const struct worker_loaded *l)
{
    struct bench *b = ctx;
    pthread_mutex_lock(&b->lock);
    b->loaded = *l;
    b->has_loaded = true;
    pthread_cond_broadcast(&b->wake);
    pthread_mutex_unlock(&b->lock);
}

static void on_failed(void *ctx, const struct error *err)
{
    (void)ctx;
    die(err->text);
}

static void *io_main(void *arg)
{
    loop_run(((struct bench *)arg)->loop);
    return NULL;
}

static void submit(struct bench *b)
{
    struct error err;
    int32_t ids[CONTEXT];
    uint64_t job = ++b->next_job;
    for (int32_t i = 0; i < CONTEXT; i++)
        ids[i] = (int32_t)((job * 7919 + (uint64_t)i * 104729) % (uint64_t)subject_model.vocab);
    const struct engine_job j = {
        .msg = {.job = job,
                .trajectory = job,
                .sampling = {.temperature = 1, .top_p = 1, .max_new = 4096, .train = true},
                .n_ids = CONTEXT,
                .ids = ids},
        .flush_tokens = 1};
    must(worker_submit(b->worker, &j, &err), &err);
    pthread_mutex_lock(&b->lock);
    b->running++;
    pthread_mutex_unlock(&b->lock);
}

// ---- one refit --------------------------------------------------------------------------------------------------------------

struct figures {
    double value, in_flight, first_token, stall, step, update, update_publish, load, copy_rate;
    int64_t bytes;
};

static void wait_until(struct bench *b, bool (*ok)(const struct bench *, int64_t), int64_t x,
                       const char *what)
{
    double end = now() + WAIT_S;
    pthread_mutex_lock(&b->lock);
    while (!ok(b, x)) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        t.tv_sec++;
        (void)pthread_cond_timedwait(&b->wake, &b->lock, &t);
        if (now() > end)
            die(what);
    }
    pthread_mutex_unlock(&b->lock);
}

static bool is_loaded(const struct bench *b, int64_t version)
{
    return b->has_loaded && b->loaded.load.version == version;
}

static bool has_token(const struct bench *b, int64_t version)
{
    return b->token_version >= version;
}

static bool has_tokens(const struct bench *b, int64_t n)
{
    return b->tokens >= n;
}

static int64_t tokens(struct bench *b)
{
    pthread_mutex_lock(&b->lock);
    int64_t n = b->tokens;
    pthread_mutex_unlock(&b->lock);
    return n;
}

// Seconds of a decode step of the whole batch, over 20 of them.
static double step_seconds(struct bench *b)
{
    int64_t n = tokens(b);
    wait_until(b, has_tokens, n + b->batch, "no tokens come");
    double t0 = now();
    n = tokens(b);
    wait_until(b, has_tokens, n + 20 * b->batch, "no tokens come");
    return (now() - t0) / 20;
}

static void apply_range(void *ctx, struct device *solo, const struct param *p, int64_t begin, int64_t end)
{
    optimizer_apply(ctx, solo, p, begin, end);
}

// A step's last update by the gradient that is there, and its publication, as the trainer's session does it.
static void publish(struct bench *b, struct worker_load *load, struct figures *f)
{
    static const struct run_optimizer adamw = {
        .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.01};
    struct trainer *t = b->trainer;
    struct error err;
    char path[RUNCONFIG_PATH], hash[HASH_HEX];
    double t0 = now();
    optimizer_update(&t->optimizer, t->device, &t->layout, &adamw, 1e-6, 1, t->grads, t->master);
    f->update = now() - t0;
    t0 = now();
    struct optimizer_pass pass = optimizer_begin(&t->optimizer, &adamw, 1e-6, 1, t->grads, t->master);
    struct weights_before before = {.fn = apply_range, .ctx = &pass};
    must(publish_update(&b->publish, t, ++t->step, &before, true, path, hash, &f->bytes, &err), &err);
    f->update_publish = now() - t0;
    *load = (struct worker_load){.version = t->step};
    snprintf(load->path, sizeof load->path, "%s", path);
    memcpy(load->hash, hash, HASH_HEX);
}

static void refit(struct bench *b, bool decoding, struct figures *f)
{
    struct error err;
    struct worker_load load;
    publish(b, &load, f);
    if (decoding) { // the trainer's threads are out of the way: steps take what they take alone
        f->step = step_seconds(b);
        usleep((useconds_t)(f->step * 1e6 *
                            ((double)(b->trainer->step * 37 % 100) / 100))); // anywhere in a step
    }
    double t0 = now();
    must(worker_load_start(b->worker, &load, &err), &err);
    wait_until(b, is_loaded, load.version, "the weights are not loaded");
    if (!b->loaded.ok)
        die(b->loaded.error);
    double took = (double)b->loaded.swapped_ns * 1e-9 - t0;
    if (!decoding) {
        f->value = took;
        f->load = b->loaded.load_ms * 1e-3;
    } else {
        f->in_flight = took;
        f->stall = b->loaded.stall_ms * 1e-3;
        wait_until(b, has_token, load.version, "no token of the new weights");
        f->first_token = b->token_at - t0;
    }
    publish_prune(&b->publish, 1);
}

static struct figures measure(struct bench *b)
{
    struct figures f = {0};
    // the engine rests: between two iterations, and while memcpy is measured
    worker_pause(b->worker, ENGINE_PAUSE_IN_PLACE);
    usleep(200000);
    refit(b, false, &f);
    f.copy_rate = peak_copy(b->device, b->to, b->from, (size_t)f.bytes, COPY_TIME);
    worker_continue(b->worker);
    refit(b, true, &f);
    return f;
}

// What the engine gets in a synchronous run on this host.
static int engine_share(void)
{
    struct cores_share *share = mem_must(1, sizeof *share);
    struct run_config *c = mem_must(1, sizeof *c);
    struct cores_list allowed;
    struct error err;
    c->n_stages = 1;
    c->stages[0] = (struct run_stage){.kind = RUN_STAGE_RL, .max_lag = 0};
    c->rollout.engines = 1;
    cores_allowed(&allowed);
    must(cores_for_engine(c, &allowed, 0, share, &err), &err);
    int threads = share->threads;
    free(share);
    free(c);
    return threads;
}

// ---- life -------------------------------------------------------------------------------------------------------------------

static void open_all(struct bench *b)
{
    struct error err = {0};
    struct figures f = {0};
    must(subject_run("refit", b->run_dir, b->run, &err), &err);
    must(trainer_open(b->config, "", &b->trainer, &err), &err);
    must(trainer_restart(b->trainer, &err), &err);
    must(publish_init(&b->publish, b->run_dir, b->run, "/dev/shm", &err), &err);
    must(loop_open(&b->loop, &err), &err);
    if (!b->threads)
        b->threads = engine_share();
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->wake, NULL);
    const struct worker_config w = {
        .isa = b->config->trainer.isa,
        .threads = b->threads,
        .model = b->trainer->model,
        .dtype = rollout_dtype(b->config),
        .engine = {.kv_tokens = b->batch * 8192 > 65536 ? 65536 : b->batch * 8192, .max_running = b->batch},
        .loop = b->loop,
        .on_outputs = on_outputs,
        .on_loaded = on_loaded,
        .on_failed = on_failed,
        .ctx = b};
    must(worker_open(&w, &b->worker, &err), &err);
    must(device_open("cpu", b->config->trainer.isa, 0, &b->device, &err), &err);
    if (pthread_create(&b->io, NULL, io_main, b))
        die("no thread");
    refit(b, false, &f);
    b->from = device_alloc(b->device, (size_t)f.bytes);
    b->to = device_alloc(b->device, (size_t)f.bytes);
    if (!b->from || !b->to)
        die("no memory");
    for (int i = 0; i < b->batch; i++)
        submit(b);
    wait_until(b, has_tokens, 4 * b->batch, "no tokens come");
}

static void print(const struct figures *f)
{
    printf("{\"value\":%.6f,\"bound\":%.6f,\"bound_name\":\"bytes / "
           "memcpy\",\"load_s\":%.6f,\"in_flight_s\":%.6f,"
           "\"first_token_s\":%.6f,\"stall_s\":%.6f,\"step_s\":%.6f,\"stall_steps\":%.3f,"
           "\"update_s\":%.6f,\"update_publish_s\":%.6f,\"publish_s\":%.6f,\"from_step_done_s\":%.6f,"
           "\"bytes\":%lld,\"copy_gbs\":%.2f,"
           "\"limits\":{\"stall\":{\"value\":%.6f,\"at_most\":%.6f}}}\n",
           f->value, (double)f->bytes / f->copy_rate, f->load, f->in_flight, f->first_token, f->stall,
           f->step, f->stall / f->step, f->update, f->update_publish, f->update_publish - f->update,
           f->value + f->update_publish - f->update, (long long)f->bytes, f->copy_rate * 1e-9, f->stall,
           f->step);
    fflush(stdout);
}

static void stop(void *ctx)
{
    loop_stop(ctx);
}

static void close_all(struct bench *b)
{
    struct error err;
    publish_leave(&b->publish);
    if (file_remove_tree(b->run_dir, &err))
        fprintf(stderr, "bench_refit: %s\n", err.text);
    if (loop_post(b->loop, stop, b->loop) == STATUS_OK)
        pthread_join(b->io, NULL);
    worker_close(b->worker);
    loop_close(b->loop);
    trainer_close(b->trainer);
    device_free(b->device, b->from);
    device_free(b->device, b->to);
    device_close(b->device);
    free(b->config);
}

static void config_init(struct run_config *c)
{
    c->seed = 1;
    c->model = subject_model;
    c->trainer.dtype = RUN_BF16;
    c->trainer.micro_batch_tokens = 1024;
    snprintf(c->trainer.isa, sizeof c->trainer.isa, "auto");
    c->rollout.dtype = RUN_FP8;
    c->n_stages = 1;
    c->stages[0] = (struct run_stage){.kind = RUN_STAGE_RL};
}

static bool option(struct bench *b, const char *name, const char *value)
{
    if (strcmp(name, "--threads") == 0)
        b->threads = atoi(value);
    else if (strcmp(name, "--batch") == 0)
        b->batch = atoi(value);
    else if (strcmp(name, "--isa") == 0)
        snprintf(b->config->trainer.isa, sizeof b->config->trainer.isa, "%s", value);
    else if (strcmp(name, "--dtype") == 0)
        b->config->rollout.dtype = strcmp(value, "bf16") == 0 ? RUN_BF16 : RUN_FP8;
    else
        return strcmp(name, "--models") == 0; // weights are random: nothing to read
    return true;
}

int main(int argc, char **argv)
{
    struct bench b = {.batch = 32, .token_version = -1, .config = mem_must(1, sizeof *b.config)};
    config_init(b.config);
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--serve") == 0)
            b.serve = true;
        else if (i + 1 < argc && option(&b, argv[i], argv[i + 1]))
            i++;
        else
            die("unknown option; the first lines of tests/bench/bench_refit.c have them all");
    }
    char line[64];
    pool_thread_init();
    open_all(&b);
    if (b.serve) {
        printf("{\"ready\":true,\"isa\":\"%s\",\"engine_threads\":%d,\"dtype\":\"%s\"}\n",
               isa_name(b.device->isa), b.threads, dtype_name(rollout_dtype(b.config)));
        fflush(stdout);
    }
    for (int i = 0; b.serve ? fgets(line, sizeof line, stdin) && strncmp(line, "quit", 4) != 0 : i < 7; i++) {
        if (b.serve && strncmp(line, "run", 3) != 0)
            continue;
        struct figures f = measure(&b);
        print(&f);
    }
    close_all(&b);
    return 0;
}
