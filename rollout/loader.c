// Loading weights while the engine works: see loader.h. Runs on the loader thread, on a device object of its own (one thread),
// so that packing never meets the compute thread in a kernel.
//
// Invariants
//   1. busy: from taking a request until its result is queued. Requests wait in one place, `next`, where a newer version replaces
//      an older one.
//   2. `spare` is NULL or filled by nobody else (the compute thread helps through `loading` only). After worker_give_weights the loader waits until the compute thread has swapped:
//      then that object is the engine's and `old` is the spare.
//   3. `loading` lives while it is set here and as long as `helping`: it is taken away under the lock, then waited for. Its file
//      (`filled`) is let go when the new weights are in use; the map stays for the next version in these pages (model/kept.h).
#include "rollout/loader.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "model/folder.h"
#include "model/loading.h"

#define RESULTS 16 // not yet taken by the I/O thread; more than the updates that http_api.c lets wait

struct loader {
    struct worker *worker;
    struct worker_config config;
    struct device *device;
    struct layout layout;
    struct kept kept; // loader thread
    pthread_t thread;
    bool started;

    pthread_mutex_t lock; // guards what follows
    pthread_cond_t wake;
    bool stop, busy, waiting, swapped;
    bool helping;            // the compute thread works on `loading`
    bool offered;            // given to the compute thread, which has not seen it yet, or about to be
    struct loading *loading; // under way, NULL = none
    struct loading *filled;  // loader thread: what filled the weights just given
    struct worker_load next; // when waiting
    int64_t newest;          // held, under way or waiting
    int64_t held;
    double stall_ms;
    int64_t swapped_ns;
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

// Without the lock.
static void post_results(struct loader *l)
{
    if (loop_post(l->config.loop, deliver, l) != STATUS_OK)
        return; // the loop is closing; else the next post takes these along
}

// Loader thread. Somebody may wait for this result, so it waits for room; the I/O thread makes some, or stops us.
static void report(struct loader *l, const struct worker_loaded *r)
{
    pthread_mutex_lock(&l->lock);
    while (l->n_results == RESULTS && !l->stop)
        pthread_cond_wait(&l->wake, &l->lock);
    if (!l->stop)
        l->results[l->n_results++] = *r;
    pthread_mutex_unlock(&l->lock);
    post_results(l);
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

static enum status load_file(struct loader *l, const struct worker_load *load, struct error *err)
{
    struct loading *loading;
    enum status st =
        loading_open(l->spare, load->path, load->hash[0] ? load->hash : NULL, &l->kept, &loading, err);
    if (st != STATUS_OK)
        return st;
    pthread_mutex_lock(&l->lock);
    l->loading = loading;
    l->offered = true;
    pthread_mutex_unlock(&l->lock);
    worker_wake(l->worker);
    loading_work(loading, l->device, l->config.engine.clock, INT64_MAX);
    pthread_mutex_lock(&l->lock);
    l->loading = NULL;
    while (l->helping)
        pthread_cond_wait(&l->wake, &l->lock);
    pthread_mutex_unlock(&l->lock);
    l->filled = loading;
    return loading_finish(loading, err);
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
    return load_file(l, load, err);
}

// The offer ends: the weights are the compute thread's, or there are none.
static void end_offer(struct loader *l)
{
    pthread_mutex_lock(&l->lock);
    l->offered = false;
    pthread_cond_broadcast(&l->wake);
    pthread_mutex_unlock(&l->lock);
}

// Hands the spare to the compute thread and waits for the swap. false: stopped meanwhile.
static bool swap(struct loader *l, const struct worker_load *load, double load_ms)
{
    worker_give_weights(l->worker, l->spare, load, load_ms);
    end_offer(l);
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
    if (st != STATUS_OK)
        end_offer(l);
    bool swapped = st == STATUS_OK && swap(l, load, r.load_ms);
    loading_free(l->filled);
    l->filled = NULL;
    if (st == STATUS_OK && !swapped)
        return;
    pthread_mutex_lock(&l->lock);
    r.ok = st == STATUS_OK;
    r.stall_ms = l->stall_ms;
    r.swapped_ns = l->swapped_ns;
    if (r.ok)
        l->held = load->version;
    else
        l->newest = l->waiting ? l->newest : l->held;
    pthread_mutex_unlock(&l->lock);
    snprintf(r.error, sizeof r.error, "%s", err.text);
    report(l, &r);
}

// The second object before it is needed: its memory is touched once, and that takes longer than filling it.
static void make_spare(struct loader *l)
{
    struct error err;
    struct weights *w = NULL;
    if (!l->spare && weights_open(l->device, &l->config.model, &l->layout, l->config.dtype, false, &w, &err))
        return; // no memory now: the next load tries again and says so
    if (w)
        l->spare = w;
}

static void *loader_main(void *arg)
{
    struct loader *l = arg;
    pool_thread_init();
    make_spare(l);
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
        make_spare(l);
        pthread_mutex_lock(&l->lock);
        l->busy = false;
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

enum status loader_start(struct loader *l, const struct worker_load *load, struct error *err)
{
    bool replaces = false;
    if (load->version < 0 || load->version > INT32_MAX) // pages keep the version of their rows in 32 bits
        return error_set(err, STATUS_INVALID, "version %lld is not within 0 … %d", (long long)load->version,
                         INT32_MAX);
    pthread_mutex_lock(&l->lock);
    enum status st = STATUS_OK;
    if (load->version <= l->newest) {
        st = error_set(err, STATUS_EXISTS, "version %lld is not newer than %lld", (long long)load->version,
                       (long long)l->newest);
    } else if (l->waiting && l->n_results == RESULTS) {
        st = error_set(err, STATUS_AGAIN, "%d loads have ended that nobody has taken note of", RESULTS);
    } else {
        replaces = l->waiting;
        if (replaces) {
            struct worker_loaded *r = &l->results[l->n_results++];
            *r = (struct worker_loaded){.load = l->next};
            snprintf(r->error, sizeof r->error, "version %lld came before this one was loaded",
                     (long long)load->version);
        }
        l->next = *load;
        l->waiting = true;
        l->newest = load->version;
        pthread_cond_broadcast(&l->wake);
    }
    pthread_mutex_unlock(&l->lock);
    if (replaces)
        post_results(l);
    return st;
}

int64_t loader_newest(struct loader *l)
{
    pthread_mutex_lock(&l->lock);
    int64_t v = l->newest;
    pthread_mutex_unlock(&l->lock);
    return v;
}

bool loader_wants_help(struct loader *l)
{
    pthread_mutex_lock(&l->lock);
    bool yes = l->loading && loading_left_ns(l->loading) != 0;
    pthread_mutex_unlock(&l->lock);
    return yes;
}

// With the lock held: until the weights are given or refused, at most ns.
static void await_offer(struct loader *l, int64_t ns)
{
    struct timespec t;
    if (ns <= 0)
        return;
    clock_gettime(CLOCK_MONOTONIC, &t);
    ns += t.tv_nsec;
    t.tv_sec += ns / 1000000000;
    t.tv_nsec = ns % 1000000000;
    while (l->offered && !l->stop)
        if (pthread_cond_timedwait(&l->wake, &l->lock, &t))
            return;
}

void loader_help(struct loader *l, struct device *d, int64_t patience_ns)
{
    const struct clock *clock = l->config.engine.clock;
    int64_t now = clock_mono_ns(clock);
    int64_t deadline = patience_ns == INT64_MAX ? INT64_MAX : now + patience_ns;
    pthread_mutex_lock(&l->lock);
    struct loading *loading = l->loading;
    int64_t left = loading ? loading_left_ns(loading) : 0;
    bool worth =
        loading && (deadline == INT64_MAX || (left >= 0 && left / pool_threads(d->pool) < patience_ns));
    l->helping = worth;
    pthread_mutex_unlock(&l->lock);
    if (!worth)
        return;
    loading_work(loading, d, clock, deadline);
    pthread_mutex_lock(&l->lock);
    l->helping = false;
    pthread_cond_broadcast(&l->wake);
    // What is left is the piece that the loader has in hands and a comparison of hashes.
    if (deadline != INT64_MAX)
        await_offer(l, deadline - clock_mono_ns(clock));
    pthread_mutex_unlock(&l->lock);
}

void loader_return(struct loader *l, struct weights *old, double stall_ms, int64_t swapped_ns)
{
    pthread_mutex_lock(&l->lock);
    l->in_use = l->spare;
    l->spare = old;
    l->stall_ms = stall_ms;
    l->swapped_ns = swapped_ns;
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
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&l->wake, &attr);
    pthread_condattr_destroy(&attr);
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
    kept_done(&l->kept);
    weights_close(l->spare);
    weights_close(l->in_use);
    device_close(l->device);
    layout_done(&l->layout);
    pthread_cond_destroy(&l->wake);
    pthread_mutex_destroy(&l->lock);
    free(l);
}
