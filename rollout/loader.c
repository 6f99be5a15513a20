// Loading weights while the engine works: see loader.h. Runs on the loader thread, on a device object of its own (one thread),
// so that packing never meets the compute thread in a kernel.
//
// Invariants
//   1. busy: from taking a request until its result is queued. Requests wait in one place, `next`, where a newer version replaces
//      an older one.
//   2. `spare` is NULL or filled by nobody else. After worker_give_weights the loader waits until the compute thread has swapped:
//      then that object is the engine's and `old` is the spare.
#include "rollout/loader.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "model/folder.h"

#define RESULTS 4

struct loader {
    struct worker *worker;
    struct worker_config config;
    struct device *device;
    struct layout layout;
    pthread_t thread;
    bool started;

    pthread_mutex_t lock; // guards what follows
    pthread_cond_t wake;
    bool stop, busy, waiting, swapped;
    struct worker_load next; // when waiting
    int64_t newest;          // held, under way or waiting
    int64_t held;
    double stall_ms;
    struct weights *spare, *in_use;
    struct worker_loaded results[RESULTS]; // for the I/O thread
    int n_results;
};

// I/O thread.
static void deliver(void *ctx)
{
    struct loader *l = ctx;
    for (;;) {
        pthread_mutex_lock(&l->lock);
        if (l->n_results == 0) {
            pthread_mutex_unlock(&l->lock);
            return;
        }
        struct worker_loaded r = l->results[0];
        l->n_results--;
        memmove(&l->results[0], &l->results[1], (size_t)l->n_results * sizeof r);
        pthread_cond_broadcast(&l->wake);
        pthread_mutex_unlock(&l->lock);
        l->config.on_loaded(l->config.ctx, &r);
    }
}

// With the lock held. The oldest result gives way when nobody takes them.
static void queue_result(struct loader *l, const struct worker_loaded *r)
{
    if (l->n_results == RESULTS) {
        memmove(&l->results[0], &l->results[1], (RESULTS - 1) * sizeof *r);
        l->n_results--;
    }
    l->results[l->n_results++] = *r;
}

static void report(struct loader *l, const struct worker_loaded *r)
{
    pthread_mutex_lock(&l->lock);
    queue_result(l, r);
    pthread_mutex_unlock(&l->lock);
    if (loop_post(l->config.loop, deliver, l) != STATUS_OK)
        return; // the loop is closing; else the next result takes this one along
}

static enum status load_folder(struct loader *l, const struct worker_load *load, struct error *err)
{
    struct model_config c;
    enum status st = model_config_read(load->path, &c, err);
    if (st != STATUS_OK)
        return st;
    const struct model_config *m = &l->config.model;
    if (strcmp(c.arch, m->arch) || c.hidden != m->hidden || c.n_layers != m->n_layers ||
        c.n_heads != m->n_heads || c.n_kv_heads != m->n_kv_heads || c.head_dim != m->head_dim ||
        c.ffn != m->ffn || c.vocab != m->vocab || c.tie_embeddings != m->tie_embeddings)
        return error_set(err, STATUS_INVALID,
                         "%s/config.json is not the shape of the model being served (%s, hidden %lld)",
                         load->path, m->arch, (long long)m->hidden);
    float *master = NULL;
    st = model_folder_read(load->path, m, &l->layout, &master, err);
    if (st != STATUS_OK)
        return st;
    weights_set(l->spare, master);
    mem_free(master);
    return STATUS_OK;
}

static enum status fill_spare(struct loader *l, const struct worker_load *load, struct error *err)
{
    if (!l->spare) {
        enum status st =
            weights_open(l->device, &l->config.model, &l->layout, l->config.dtype, false, &l->spare, err);
        if (st != STATUS_OK)
            return st;
    }
    weights_bind(l->spare, l->device);
    if (load->folder)
        return load_folder(l, load, err);
    return weights_load(l->spare, load->path, load->hash[0] ? load->hash : NULL, err);
}

// Hands the spare to the compute thread and waits for the swap. false: stopped meanwhile.
static bool swap(struct loader *l, const struct worker_load *load, double load_ms)
{
    worker_give_weights(l->worker, l->spare, load, load_ms);
    pthread_mutex_lock(&l->lock);
    while (!l->swapped && !l->stop)
        pthread_cond_wait(&l->wake, &l->lock);
    bool ok = l->swapped;
    l->swapped = false;
    pthread_mutex_unlock(&l->lock);
    return ok;
}

static void run_load(struct loader *l, const struct worker_load *load)
{
    struct worker_loaded r = {.load = *load};
    const struct clock *clock = l->config.engine.clock;
    struct error err = {0};
    int64_t t0 = clock_mono_ns(clock);
    enum status st = fill_spare(l, load, &err);
    r.load_ms = (double)(clock_mono_ns(clock) - t0) * 1e-6;
    if (st == STATUS_OK && !swap(l, load, r.load_ms))
        return;
    pthread_mutex_lock(&l->lock);
    r.ok = st == STATUS_OK;
    r.stall_ms = l->stall_ms;
    if (r.ok)
        l->held = load->version;
    else
        l->newest = l->waiting ? l->newest : l->held;
    pthread_mutex_unlock(&l->lock);
    snprintf(r.error, sizeof r.error, "%s", err.text);
    report(l, &r);
}

static void *loader_main(void *arg)
{
    struct loader *l = arg;
    pool_thread_init();
    pthread_mutex_lock(&l->lock);
    while (!l->stop) {
        if (!l->waiting) {
            pthread_cond_wait(&l->wake, &l->lock);
            continue;
        }
        struct worker_load load = l->next;
        l->waiting = false;
        l->busy = true;
        pthread_mutex_unlock(&l->lock);
        run_load(l, &load);
        pthread_mutex_lock(&l->lock);
        l->busy = false;
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

enum status loader_start(struct loader *l, const struct worker_load *load, struct error *err)
{
    pthread_mutex_lock(&l->lock);
    enum status st = STATUS_OK;
    if (load->version <= l->newest) {
        st = error_set(err, STATUS_EXISTS, "version %lld is not newer than %lld", (long long)load->version,
                       (long long)l->newest);
    } else {
        if (l->waiting) {
            struct worker_loaded r = {.load = l->next};
            snprintf(r.error, sizeof r.error, "version %lld came before this one was loaded",
                     (long long)load->version);
            queue_result(l, &r);
        }
        l->next = *load;
        l->waiting = true;
        l->newest = load->version;
        pthread_cond_broadcast(&l->wake);
    }
    pthread_mutex_unlock(&l->lock);
    return st;
}

int64_t loader_newest(struct loader *l)
{
    pthread_mutex_lock(&l->lock);
    int64_t v = l->newest;
    pthread_mutex_unlock(&l->lock);
    return v;
}

void loader_return(struct loader *l, struct weights *old, double stall_ms)
{
    pthread_mutex_lock(&l->lock);
    l->in_use = l->spare;
    l->spare = old;
    l->stall_ms = stall_ms;
    l->swapped = true;
    pthread_cond_broadcast(&l->wake);
    pthread_mutex_unlock(&l->lock);
}

enum status loader_open(struct worker *w, const struct worker_config *c, struct loader **ret,
                        struct error *err)
{
    struct loader *l = mem_must(1, sizeof *l);
    l->worker = w;
    l->config = *c;
    l->newest = l->held = -1;
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->wake, NULL);
    enum status st = layout_open(&c->model, &l->layout, err);
    if (st == STATUS_OK)
        st = device_open("cpu", c->isa, 1, &l->device, err);
    if (st == STATUS_OK) {
        int rc = pthread_create(&l->thread, NULL, loader_main, l);
        l->started = rc == 0;
        if (rc)
            st = error_errno(err, rc, "starting the loader thread");
    }
    if (st != STATUS_OK) {
        loader_close(l);
        return st;
    }
    *ret = l;
    return STATUS_OK;
}

void loader_close(struct loader *l)
{
    if (!l)
        return;
    if (l->started) {
        pthread_mutex_lock(&l->lock);
        l->stop = true;
        pthread_cond_broadcast(&l->wake);
        pthread_mutex_unlock(&l->lock);
        pthread_join(l->thread, NULL);
    }
    weights_close(l->spare);
    weights_close(l->in_use);
    device_close(l->device);
    layout_done(&l->layout);
    pthread_cond_destroy(&l->wake);
    pthread_mutex_destroy(&l->lock);
    free(l);
}
