// The compute thread, its queues, and the door to the loader thread (loader.c): see worker.h.
#include "rollout/worker.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "rollout/loader.h"

#define OUTPUT_TOKENS_MAX ((size_t)1 << 20) // held for the I/O thread before the compute thread waits
#define OUTPUT_ITEMS_MAX  ((size_t)1 << 18)

enum command_kind {
    COMMAND_SUBMIT,
    COMMAND_CANCEL,
    COMMAND_CANCEL_ALL,
    COMMAND_PAUSE,
    COMMAND_CONTINUE,
    COMMAND_FLUSH,
    COMMAND_TRACE,
};

struct command {
    enum command_kind kind;
    enum engine_pause how;
    uint64_t job_id;
    struct engine_job *job;     // SUBMIT: ours, with a copy of its ids behind it
    struct worker_trace *trace; // TRACE: ours
};

struct commands {
    struct command *v;
    size_t n, cap;
};

struct worker {
    struct worker_config config;
    struct device *device;
    char numerics_id[KV_NUMERICS_ID];
    struct engine *engine;
    struct loader *loader;
    pthread_t thread;
    bool started;

    pthread_mutex_t lock; // guards what follows
    pthread_cond_t wake;  // of the compute thread
    bool stop, posted;
    struct commands inbox;
    struct outputs ready;     // for the I/O thread; empty = the compute thread may swap its own in
    struct weights *incoming; // loaded, to be swapped in
    struct worker_load incoming_load;
    struct worker_stats stats;
    struct worker_trace *traced; // answers for the I/O thread, oldest first
    int n_traces;                // asked for and not delivered
    struct error failure;        // status OK = none

    int64_t step_ns;       // compute thread: of the last step that sampled
    int64_t helped_ns;     // compute thread: in which it loaded weights while sequences waited
    struct commands taken; // compute thread
    struct outputs fill;   // compute thread
    struct outputs drain;  // I/O thread
};

// ---- I/O thread -------------------------------------------------------------------------------------------------------

static void trace_free(struct worker_trace *t)
{
    trace_done(&t->trace);
    free(t);
}

// Brings what the compute thread has ready. One post at a time is under way.
static void deliver(void *ctx)
{
    struct worker *w = ctx;
    pthread_mutex_lock(&w->lock);
    w->posted = false;
    struct outputs empty = w->drain;
    w->drain = w->ready;
    w->ready = empty;
    struct error failure = w->failure;
    struct worker_trace *traced = w->traced;
    w->traced = NULL;
    for (struct worker_trace *t = traced; t; t = t->next)
        w->n_traces--;
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->lock);
    if (w->drain.n_items > 0)
        w->config.on_outputs(w->config.ctx, &w->drain);
    outputs_clear(&w->drain);
    for (struct worker_trace *next; traced; traced = next) {
        next = traced->next;
        w->config.on_traced(w->config.ctx, traced);
        trace_free(traced);
    }
    if (failure.status != STATUS_OK)
        w->config.on_failed(w->config.ctx, &failure);
}

static void push(struct worker *w, struct command c)
{
    pthread_mutex_lock(&w->lock);
    struct commands *q = &w->inbox;
    if (q->n == q->cap) {
        q->cap = q->cap ? 2 * q->cap : 64;
        q->v = mem_grow(q->v, q->cap, sizeof *q->v);
    }
    q->v[q->n++] = c;
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->lock);
}

enum status worker_submit(struct worker *w, const struct engine_job *job, struct error *err)
{
    pthread_mutex_lock(&w->lock);
    bool full = w->inbox.n >= WORKER_COMMANDS;
    pthread_mutex_unlock(&w->lock);
    if (full)
        return error_set(err, STATUS_AGAIN, "%d commands wait for the engine already", WORKER_COMMANDS);
    size_t n = job->msg.n_ids > 0 ? (size_t)job->msg.n_ids : 0;
    struct engine_job *copy = mem_must(1, sizeof *copy + n * sizeof(int32_t));
    *copy = *job;
    int32_t *ids = (int32_t *)(copy + 1);
    if (n)
        memcpy(ids, job->msg.ids, n * sizeof *ids);
    copy->msg.ids = ids;
    push(w, (struct command){.kind = COMMAND_SUBMIT, .job = copy});
    return STATUS_OK;
}

void worker_cancel(struct worker *w, uint64_t job)
{
    push(w, (struct command){.kind = COMMAND_CANCEL, .job_id = job});
}

void worker_cancel_all(struct worker *w)
{
    push(w, (struct command){.kind = COMMAND_CANCEL_ALL});
}

void worker_pause(struct worker *w, enum engine_pause how)
{
    push(w, (struct command){.kind = COMMAND_PAUSE, .how = how});
}

void worker_continue(struct worker *w)
{
    push(w, (struct command){.kind = COMMAND_CONTINUE});
}

void worker_flush_cache(struct worker *w)
{
    push(w, (struct command){.kind = COMMAND_FLUSH});
}

enum status worker_trace(struct worker *w, const struct msg_trace *m, struct error *err)
{
    pthread_mutex_lock(&w->lock);
    bool full = w->n_traces == WORKER_TRACES;
    w->n_traces += !full;
    pthread_mutex_unlock(&w->lock);
    if (full)
        return error_set(err, STATUS_AGAIN, "%d traces are under way", WORKER_TRACES);
    size_t n = (size_t)m->n_ids;
    struct worker_trace *t = mem_must(1, sizeof *t + n * sizeof *t->ids);
    *t = (struct worker_trace){
        .id = m->id, .epoch = m->epoch, .version = m->version, .n = m->n_ids, .ids = (int32_t *)(t + 1)};
    memcpy(t->ids, m->ids, n * sizeof *t->ids);
    push(w, (struct command){.kind = COMMAND_TRACE, .trace = t});
    return STATUS_OK;
}

void worker_stats(struct worker *w, struct worker_stats *ret)
{
    pthread_mutex_lock(&w->lock);
    *ret = w->stats;
    pthread_mutex_unlock(&w->lock);
}

enum status worker_load_start(struct worker *w, const struct worker_load *load, struct error *err)
{
    return loader_start(w->loader, load, err);
}

int64_t worker_newest(struct worker *w)
{
    return loader_newest(w->loader);
}

const char *worker_numerics_id(const struct worker *w)
{
    return w->numerics_id;
}

const char *worker_device_name(const struct worker *w)
{
    return w->device->name;
}

// ---- compute thread -----------------------------------------------------------------------------------------------------

static void run_trace(struct worker *w, struct worker_trace *t)
{
    struct error err;
    t->ok = engine_trace(w->engine, t->version, t->n, t->ids, &t->trace, &err) == STATUS_OK;
    if (!t->ok)
        memcpy(t->error, err.text, sizeof t->error);
    pthread_mutex_lock(&w->lock);
    struct worker_trace **at = &w->traced;
    while (*at)
        at = &(*at)->next;
    *at = t;
    pthread_mutex_unlock(&w->lock);
}

static void run_command(struct worker *w, struct command *c)
{
    struct engine *e = w->engine;
    struct error err;
    switch (c->kind) {
    case COMMAND_SUBMIT:
        if (engine_submit(e, c->job, &err) != STATUS_OK) {
            outputs_add(&w->fill, c->job->msg.job, 0);
            outputs_finish(&w->fill, FINISH_ERROR, err.text);
        }
        free(c->job);
        break;
    case COMMAND_CANCEL:
        engine_cancel(e, c->job_id);
        break;
    case COMMAND_CANCEL_ALL:
        engine_cancel_all(e);
        break;
    case COMMAND_PAUSE:
        engine_pause(e, c->how);
        break;
    case COMMAND_CONTINUE:
        engine_continue(e);
        break;
    case COMMAND_FLUSH:
        engine_flush_cache(e);
        break;
    case COMMAND_TRACE:
        run_trace(w, c->trace);
        break;
    }
}

// Between two steps. The old weights go back to the loader, to be filled next time.
static void swap_weights(struct worker *w, struct weights *incoming)
{
    const struct clock *clock = w->config.engine.clock;
    int64_t t0 = clock_mono_ns(clock);
    weights_bind(incoming, w->device);
    const struct weights *old = engine_set_weights(w->engine, incoming, w->incoming_load.version);
    int64_t swapped_ns = clock_mono_ns(clock);
    double stall_ms = (double)(swapped_ns - t0 + w->helped_ns) * 1e-6;
    w->helped_ns = 0;
    pthread_mutex_lock(&w->lock);
    w->incoming = NULL;
    w->stats.last_stall_ms = stall_ms;
    w->stats.loads++;
    memcpy(w->stats.version_hash, w->incoming_load.hash, HASH_HEX);
    engine_stats(w->engine, &w->stats.engine);
    pthread_mutex_unlock(&w->lock);
    loader_return(w->loader, (struct weights *)old, stall_ms,
                  swapped_ns); // the loader made it, and owns it again
}

// The I/O thread has not taken what is there already: no step until it has.
static bool is_full(const struct worker *w)
{
    return w->fill.n_tokens > OUTPUT_TOKENS_MAX || w->fill.n_items > OUTPUT_ITEMS_MAX;
}

static bool nothing_to_do(struct worker *w)
{
    bool can_deliver = w->fill.n_items > 0 && w->ready.n_items == 0;
    return !w->stop && !w->incoming && w->inbox.n == 0 && !can_deliver &&
           (is_full(w) || !engine_ready(w->engine)) && !loader_wants_help(w->loader);
}

// Sleeps until there is a command, new weights, room for outputs, or a deadline. true: go on; false: stop.
static bool wait_for_work(struct worker *w)
{
    const struct clock *clock = w->config.engine.clock;
    pthread_mutex_lock(&w->lock);
    while (nothing_to_do(w)) {
        int64_t wake_ms = is_full(w) ? INT64_MAX : engine_wake_ms(w->engine);
        if (wake_ms == INT64_MAX) {
            pthread_cond_wait(&w->wake, &w->lock);
            continue;
        }
        int64_t left = wake_ms - clock_mono_ms(clock);
        if (left <= 0)
            break;
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        int64_t ns = t.tv_nsec + left % 1000 * 1000000;
        t.tv_sec += left / 1000 + ns / 1000000000;
        t.tv_nsec = ns % 1000000000;
        pthread_cond_timedwait(&w->wake, &w->lock, &t);
    }
    struct commands taken = w->inbox;
    w->inbox = w->taken;
    w->inbox.n = 0;
    w->taken = taken;
    bool go_on = !w->stop;
    pthread_mutex_unlock(&w->lock);
    return go_on;
}

// Gives the step's outputs to the I/O thread if it took the last ones; else they wait for company.
static void hand_over(struct worker *w, int64_t busy_ns)
{
    pthread_mutex_lock(&w->lock);
    w->stats.busy_ns += busy_ns;
    engine_stats(w->engine, &w->stats.engine);
    bool post = false;
    if (w->fill.n_items > 0 && w->ready.n_items == 0) {
        struct outputs empty = w->ready;
        w->ready = w->fill;
        w->fill = empty;
    }
    if (w->ready.n_items > 0 || w->traced) {
        post = !w->posted;
        w->posted = true;
    }
    pthread_mutex_unlock(&w->lock);
    if (post && loop_post(w->config.loop, deliver, w) != STATUS_OK) {
        pthread_mutex_lock(&w->lock); // the loop is closing, or drowning: try again with the next outputs
        w->posted = false;
        pthread_mutex_unlock(&w->lock);
    }
}

static void fail(struct worker *w, const struct error *err)
{
    pthread_mutex_lock(&w->lock);
    w->failure = *err;
    bool post = !w->posted;
    w->posted = true;
    pthread_mutex_unlock(&w->lock);
    if (post && loop_post(w->config.loop, deliver, w) != STATUS_OK)
        return; // the loop is closing: the process ends anyway
}

// Weights that are being loaded: an engine with nothing to do does its share at once; one that is busy does the rest of it when that
// takes no longer than a step, so that generation stalls no longer than that.
static void help_loader(struct worker *w)
{
    const struct clock *clock = w->config.engine.clock;
    bool idle = !engine_ready(w->engine);
    int64_t t0 = clock_mono_ns(clock);
    loader_help(w->loader, w->device, idle ? INT64_MAX : w->step_ns - w->helped_ns);
    if (!idle)
        w->helped_ns += clock_mono_ns(clock) - t0;
}

static void *compute(void *arg)
{
    struct worker *w = arg;
    const struct clock *clock = w->config.engine.clock;
    struct error pinned;
    if (pool_adopt(w->device->pool, &pinned) != STATUS_OK)
        fail(w, &pinned);
    while (wait_for_work(w)) {
        for (size_t i = 0; i < w->taken.n; i++)
            run_command(w, &w->taken.v[i]);
        w->taken.n = 0;
        help_loader(w);
        pthread_mutex_lock(&w->lock);
        struct weights *incoming = w->incoming;
        pthread_mutex_unlock(&w->lock);
        if (incoming)
            swap_weights(w, incoming);
        int64_t t0 = clock_mono_ns(clock);
        struct error err;
        if (!is_full(w) && engine_step(w->engine, &w->fill, &err) != STATUS_OK) {
            fail(w, &err);
            break;
        }
        int64_t ns = clock_mono_ns(clock) - t0;
        if (w->stats.engine.running > 0)
            w->step_ns = ns;
        hand_over(w, ns);
    }
    return NULL;
}

// ---- loader's side --------------------------------------------------------------------------------------------------------

void worker_give_weights(struct worker *w, struct weights *incoming, const struct worker_load *load,
                         double load_ms)
{
    pthread_mutex_lock(&w->lock);
    w->stats.last_load_ms = load_ms;
    w->incoming_load = *load;
    w->incoming = incoming;
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->lock);
}

void worker_wake(struct worker *w)
{
    pthread_mutex_lock(&w->lock);
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->lock);
}

// ---- life -------------------------------------------------------------------------------------------------------------------

enum status worker_open(const struct worker_config *c, struct worker **ret, struct error *err)
{
    struct worker *w = mem_must(1, sizeof *w);
    w->config = *c;
    if (!w->config.engine.clock)
        w->config.engine.clock = clock_system();
    outputs_init(&w->ready);
    outputs_init(&w->fill);
    outputs_init(&w->drain);
    w->stats.engine.version = -1;
    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&w->wake, &attr);
    pthread_condattr_destroy(&attr);
    enum status st = device_open("cpu", c->isa, c->threads, &w->device, err);
    if (st == STATUS_OK && c->pin)
        st = pool_pin(w->device->pool, c->pin, pool_threads(w->device->pool), err);
    if (st == STATUS_OK)
        st = engine_open(w->device, &c->model, c->dtype, &w->config.engine, &w->engine, err);
    if (st == STATUS_OK) {
        kv_numerics_id(w->device, c->engine.kv_dtype, w->numerics_id, sizeof w->numerics_id);
        engine_stats(w->engine, &w->stats.engine);
        st = loader_open(w, &w->config, &w->loader, err);
    }
    if (st == STATUS_OK) {
        int rc = pthread_create(&w->thread, NULL, compute, w);
        w->started = rc == 0;
        if (rc)
            st = error_errno(err, rc, "starting the compute thread");
    }
    if (st != STATUS_OK) {
        worker_close(w);
        return st;
    }
    *ret = w;
    return STATUS_OK;
}

static void join_compute(struct worker *w)
{
    if (!w->started)
        return;
    pthread_mutex_lock(&w->lock);
    w->stop = true;
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->thread, NULL);
    w->started = false;
}

void worker_stop(struct worker *w)
{
    if (!w)
        return;
    join_compute(w);
    struct outputs *left[] = {&w->ready, &w->fill}; // in the order they were made
    for (int i = 0; i < 2; i++) {
        if (left[i]->n_items > 0)
            w->config.on_outputs(w->config.ctx, left[i]);
        outputs_clear(left[i]);
    }
}

void worker_close(struct worker *w)
{
    if (!w)
        return;
    join_compute(w);
    struct commands *queues[] = {&w->inbox, &w->taken};
    for (int q = 0; q < 2; q++) {
        for (size_t i = 0; i < queues[q]->n; i++)
            if (queues[q]->v[i].kind == COMMAND_SUBMIT)
                free(queues[q]->v[i].job);
            else if (queues[q]->v[i].kind == COMMAND_TRACE)
                trace_free(queues[q]->v[i].trace);
        free(queues[q]->v);
    }
    engine_close(w->engine); // before its weights
    loader_close(w->loader);
    for (struct worker_trace *next; w->traced; w->traced = next) {
        next = w->traced->next;
        trace_free(w->traced);
    }
    outputs_done(&w->ready);
    outputs_done(&w->fill);
    outputs_done(&w->drain);
    device_close(w->device);
    pthread_cond_destroy(&w->wake);
    pthread_mutex_destroy(&w->lock);
    free(w);
}
