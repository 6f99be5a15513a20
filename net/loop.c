// The event loop: a thin layer over libuv that gives every handle an owner, a bound and a close that cannot
// be got wrong. It exists so that one thread carries ZeroMQ, HTTP both ways, timers, signals and children,
// and so that no other room sees uv.h. Runs on its owner's thread; only loop_post is called from elsewhere.
//
//  1. A handle lives on the heap and starts with its loop_owned; it is in the loop's list from open to close.
//  2. Close unlinks at once and frees in libuv's close callback; no user callback runs in between.
//  3. posts is guarded by posts_lock, fds_needed by fds_lock; everything else belongs to the loop's thread.
#include "net/loop.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <uv.h>

#include "base/mem.h"
#include "net/loop_owned.h"

struct post {
    loop_fn *fn;
    void *ctx;
};

struct loop {
    uv_loop_t uv;
    struct loop_owned owned; // head of a ring
    uv_async_t wake;
    uv_timer_t run_limit;
    bool stopped;
    pthread_mutex_t posts_lock;
    struct post *posts;
    size_t n_posts, posts_cap;
    bool closing;
};

void loop_own(struct loop *l, struct loop_owned *o, void (*close)(struct loop_owned *))
{
    o->close = close;
    o->prev = l->owned.prev;
    o->next = &l->owned;
    o->prev->next = o;
    o->next->prev = o;
}

void loop_disown(struct loop_owned *o)
{
    o->prev->next = o->next;
    o->next->prev = o->prev;
    o->prev = o->next = o;
}

static void run_posts(uv_async_t *wake)
{
    struct loop *l = wake->data;
    pthread_mutex_lock(&l->posts_lock);
    struct post *posts = l->posts;
    size_t n = l->n_posts;
    l->posts = NULL;
    l->n_posts = l->posts_cap = 0;
    pthread_mutex_unlock(&l->posts_lock);
    for (size_t i = 0; i < n; i++) {
        posts[i].fn(posts[i].ctx);
    }
    free(posts);
}

enum status loop_post(struct loop *l, loop_fn *fn, void *ctx)
{
    enum status s = STATUS_OK;
    pthread_mutex_lock(&l->posts_lock);
    if (l->closing) {
        s = STATUS_CANCELED;
    } else if (l->n_posts == LOOP_POSTS_MAX) {
        s = STATUS_AGAIN;
    } else {
        if (l->n_posts == l->posts_cap) {
            l->posts_cap = l->posts_cap ? 2 * l->posts_cap : 64;
            l->posts = mem_grow(l->posts, l->posts_cap, sizeof(*l->posts));
        }
        l->posts[l->n_posts++] = (struct post){fn, ctx};
        uv_async_send(&l->wake); // under the lock, so that loop_close cannot overtake it
    }
    pthread_mutex_unlock(&l->posts_lock);
    return s;
}

enum status loop_open(struct loop **ret_loop, struct error *err)
{
    struct loop *l = mem_must(1, sizeof(*l));
    int e = uv_loop_init(&l->uv);
    if (e) {
        free(l);
        return error_set(err, STATUS_IO, "event loop: %s", uv_strerror(e));
    }
    e = uv_async_init(&l->uv, &l->wake, run_posts);
    if (e) {
        uv_loop_close(&l->uv);
        free(l);
        return error_set(err, STATUS_IO, "event loop: %s", uv_strerror(e));
    }
    uv_timer_init(&l->uv, &l->run_limit);
    l->wake.data = l->run_limit.data = l;
    l->owned.prev = l->owned.next = &l->owned;
    pthread_mutex_init(&l->posts_lock, NULL);
    *ret_loop = l;
    return STATUS_OK;
}

void loop_close(struct loop *l)
{
    if (!l) {
        return;
    }
    pthread_mutex_lock(&l->posts_lock);
    l->closing = true;
    pthread_mutex_unlock(&l->posts_lock);
    while (l->owned.next != &l->owned) {
        l->owned.next->close(l->owned.next);
    }
    uv_close((uv_handle_t *)&l->wake, NULL);
    uv_close((uv_handle_t *)&l->run_limit, NULL);
    uv_run(&l->uv, UV_RUN_DEFAULT); // only close callbacks are left
    int e = uv_loop_close(&l->uv);
    assert(e == 0);
    (void)e;
    pthread_mutex_destroy(&l->posts_lock);
    free(l->posts);
    free(l);
}

void loop_run(struct loop *l)
{
    l->stopped = false;
    while (!l->stopped) {
        uv_run(&l->uv, UV_RUN_DEFAULT);
    }
}

static void run_limit_hit(uv_timer_t *t)
{
    uv_stop(t->loop);
}

bool loop_run_for(struct loop *l, int64_t timeout_ms)
{
    l->stopped = false;
    uv_update_time(&l->uv);
    uv_timer_start(&l->run_limit, run_limit_hit, (uint64_t)timeout_ms, 0);
    uv_run(&l->uv, UV_RUN_DEFAULT);
    uv_timer_stop(&l->run_limit);
    return l->stopped;
}

void loop_stop(struct loop *l)
{
    l->stopped = true;
    uv_stop(&l->uv);
}

int64_t loop_now_ms(const struct loop *l)
{
    return (int64_t)uv_now(&l->uv);
}

#define OTHER_FDS 64 // what a process has open anyhow
static pthread_mutex_t fds_lock = PTHREAD_MUTEX_INITIALIZER;
static size_t fds_needed = OTHER_FDS;

static enum status raise_fd_limit(size_t n, struct error *err)
{
    struct rlimit lim;
    if (getrlimit(RLIMIT_NOFILE, &lim)) {
        return error_errno(err, errno, "limit of open files");
    }
    if (lim.rlim_cur >= n) {
        return STATUS_OK;
    }
    if (lim.rlim_max < n) {
        return error_set(
            err, STATUS_LIMIT,
            "%zu open files needed, the hard limit is %llu: raise it (ulimit -Hn) or lower the number "
            "of connections",
            n, (unsigned long long)lim.rlim_max);
    }
    lim.rlim_cur = n;
    return setrlimit(RLIMIT_NOFILE, &lim)
               ? error_errno(err, errno, "raising the limit of open files to %zu", n)
               : STATUS_OK;
}

enum status loop_need_fds(size_t n, struct error *err)
{
    pthread_mutex_lock(&fds_lock);
    enum status s = raise_fd_limit(fds_needed + n, err);
    if (s == STATUS_OK) {
        fds_needed += n;
    }
    pthread_mutex_unlock(&fds_lock);
    return s;
}

void loop_release_fds(size_t n)
{
    pthread_mutex_lock(&fds_lock);
    fds_needed -= n;
    pthread_mutex_unlock(&fds_lock);
}

static void free_data(uv_handle_t *h)
{
    free(h->data);
}

// ---- timers ----

struct loop_timer {
    struct loop_owned owned;
    uv_timer_t uv;
    loop_fn *fn;
    void *ctx;
};

static void timer_close(struct loop_owned *o)
{
    struct loop_timer *t = (struct loop_timer *)o;
    loop_disown(o);
    uv_close((uv_handle_t *)&t->uv, free_data);
}

static void timer_fired(uv_timer_t *uv)
{
    struct loop_timer *t = uv->data;
    t->fn(t->ctx);
}

struct loop_timer *loop_timer_open(struct loop *l, loop_fn *fn, void *ctx)
{
    struct loop_timer *t = mem_must(1, sizeof(*t));
    uv_timer_init(&l->uv, &t->uv);
    t->uv.data = t;
    t->fn = fn;
    t->ctx = ctx;
    loop_own(l, &t->owned, timer_close);
    return t;
}

void loop_timer_set(struct loop_timer *t, int64_t delay_ms, int64_t repeat_ms)
{
    assert(delay_ms >= 0 && repeat_ms >= 0);
    uv_update_time(t->uv.loop); // delays count from now, not from the start of a long turn
    uv_timer_start(&t->uv, timer_fired, (uint64_t)delay_ms, (uint64_t)repeat_ms);
}

void loop_timer_stop(struct loop_timer *t)
{
    uv_timer_stop(&t->uv);
}

void loop_timer_close(struct loop_timer *t)
{
    if (t) {
        timer_close(&t->owned);
    }
}

static void after_fired(uv_timer_t *uv)
{
    struct loop_timer *t = uv->data;
    loop_fn *fn = t->fn;
    void *ctx = t->ctx;
    timer_close(&t->owned);
    fn(ctx);
}

void loop_after(struct loop *l, int64_t delay_ms, loop_fn *fn, void *ctx)
{
    struct loop_timer *t = loop_timer_open(l, fn, ctx);
    uv_update_time(&l->uv);
    uv_timer_start(&t->uv, after_fired, (uint64_t)delay_ms, 0);
}

// ---- file descriptors ----

struct loop_fd {
    struct loop_owned owned;
    uv_poll_t uv;
    loop_fd_fn *fn;
    void *ctx;
    int events; // asked for
};

static void fd_close(struct loop_owned *o)
{
    struct loop_fd *w = (struct loop_fd *)o;
    loop_disown(o);
    uv_close((uv_handle_t *)&w->uv, free_data);
}

static void fd_ready(uv_poll_t *uv, int status, int events)
{
    struct loop_fd *w = uv->data;
    if (status < 0) {
        w->fn(w->ctx, w->events);
        return;
    }
    w->fn(w->ctx, (events & UV_READABLE ? LOOP_READ : 0) | (events & UV_WRITABLE ? LOOP_WRITE : 0) |
                      (events & UV_DISCONNECT ? LOOP_HANGUP : 0));
}

enum status loop_fd_open(struct loop *l, int fd, int events, loop_fd_fn *fn, void *ctx,
                         struct loop_fd **ret_watch, struct error *err)
{
    struct loop_fd *w = mem_must(1, sizeof(*w));
    int e = uv_poll_init(&l->uv, &w->uv, fd);
    if (e) {
        free(w);
        return error_set(err, STATUS_IO, "watching descriptor %d: %s", fd, uv_strerror(e));
    }
    w->uv.data = w;
    w->fn = fn;
    w->ctx = ctx;
    loop_own(l, &w->owned, fd_close);
    loop_fd_set(w, events);
    *ret_watch = w;
    return STATUS_OK;
}

void loop_fd_set(struct loop_fd *w, int events)
{
    w->events = events;
    if (!events) {
        uv_poll_stop(&w->uv);
        return;
    }
    int e = uv_poll_start(&w->uv,
                          (events & LOOP_READ ? UV_READABLE : 0) | (events & LOOP_WRITE ? UV_WRITABLE : 0) |
                              (events & LOOP_HANGUP ? UV_DISCONNECT : 0),
                          fd_ready);
    assert(e == 0);
    (void)e;
}

void loop_fd_close(struct loop_fd *w)
{
    if (w) {
        fd_close(&w->owned);
    }
}

// ---- signals ----

struct loop_signal {
    struct loop_owned owned;
    uv_signal_t uv;
    loop_signal_fn *fn;
    void *ctx;
};

static void signal_close(struct loop_owned *o)
{
    struct loop_signal *s = (struct loop_signal *)o;
    loop_disown(o);
    uv_close((uv_handle_t *)&s->uv, free_data);
}

static void signal_came(uv_signal_t *uv, int signum)
{
    struct loop_signal *s = uv->data;
    s->fn(s->ctx, signum);
}

enum status loop_signal_open(struct loop *l, int signum, loop_signal_fn *fn, void *ctx,
                             struct loop_signal **ret_signal, struct error *err)
{
    struct loop_signal *s = mem_must(1, sizeof(*s));
    int e = uv_signal_init(&l->uv, &s->uv);
    if (e) {
        free(s);
        return error_set(err, STATUS_IO, "signal %d: %s", signum, uv_strerror(e));
    }
    s->uv.data = s;
    s->fn = fn;
    s->ctx = ctx;
    loop_own(l, &s->owned, signal_close);
    e = uv_signal_start(&s->uv, signal_came, signum);
    if (e) {
        signal_close(&s->owned);
        return error_set(err, STATUS_INVALID, "signal %d: %s", signum, uv_strerror(e));
    }
    *ret_signal = s;
    return STATUS_OK;
}

void loop_signal_close(struct loop_signal *s)
{
    if (s) {
        signal_close(&s->owned);
    }
}

// ---- foreign queues ----
// The descriptor only wakes the loop. Before each sleep, prepare asks the queue itself; with work waiting, an
// active idle handle turns the sleep into a poll, and check, right after it, does the work.

struct loop_pump {
    struct loop_owned owned;
    uv_poll_t poll;
    uv_prepare_t prepare;
    uv_idle_t idle;
    uv_check_t check;
    int n_open; // handles whose close callback is outstanding
    int (*pending)(void *ctx);
    void (*pump)(void *ctx);
    void *ctx;
};

static void pump_handle_closed(uv_handle_t *h)
{
    struct loop_pump *p = h->data;
    if (--p->n_open == 0) {
        free(p);
    }
}

static void pump_close(struct loop_owned *o)
{
    struct loop_pump *p = (struct loop_pump *)o;
    loop_disown(o);
    uv_close((uv_handle_t *)&p->poll, pump_handle_closed);
    uv_close((uv_handle_t *)&p->prepare, pump_handle_closed);
    uv_close((uv_handle_t *)&p->idle, pump_handle_closed);
    uv_close((uv_handle_t *)&p->check, pump_handle_closed);
}

static void pump_woken(uv_poll_t *uv, int status, int events)
{
    (void)uv;
    (void)status;
    (void)events;
}

static void pump_no_sleep(uv_idle_t *uv)
{
    (void)uv;
}

static void pump_before_sleep(uv_prepare_t *uv)
{
    struct loop_pump *p = uv->data;
    if (p->pending(p->ctx)) {
        uv_idle_start(&p->idle, pump_no_sleep);
    } else {
        uv_idle_stop(&p->idle);
    }
}

static void pump_after_sleep(uv_check_t *uv)
{
    struct loop_pump *p = uv->data;
    if (p->pending(p->ctx)) {
        p->pump(p->ctx); // may close p
    }
}

enum status loop_pump_open(struct loop *l, int fd, int (*pending)(void *ctx), void (*pump)(void *ctx),
                           void *ctx, struct loop_pump **ret_pump, struct error *err)
{
    struct loop_pump *p = mem_must(1, sizeof(*p));
    int e = uv_poll_init(&l->uv, &p->poll, fd);
    if (e) {
        free(p);
        return error_set(err, STATUS_IO, "watching queue descriptor %d: %s", fd, uv_strerror(e));
    }
    uv_prepare_init(&l->uv, &p->prepare);
    uv_idle_init(&l->uv, &p->idle);
    uv_check_init(&l->uv, &p->check);
    p->poll.data = p->prepare.data = p->idle.data = p->check.data = p;
    p->n_open = 4;
    p->pending = pending;
    p->pump = pump;
    p->ctx = ctx;
    loop_own(l, &p->owned, pump_close);
    uv_poll_start(&p->poll, UV_READABLE, pump_woken);
    uv_prepare_start(&p->prepare, pump_before_sleep);
    uv_check_start(&p->check, pump_after_sleep);
    *ret_pump = p;
    return STATUS_OK;
}

void loop_pump_close(struct loop_pump *p)
{
    if (p) {
        pump_close(&p->owned);
    }
}
