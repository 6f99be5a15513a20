// A thread pool: see pool.h.
//
// Invariants
//   1. `generation` grows by one per pool_run; a worker runs each generation once.
//   2. A task index is claimed by one atomic increment; `left` reaches 0 exactly when all tasks have returned.
//   3. Idle spinning is bounded (SPIN rounds), then the worker sleeps on a condition variable.
#include "base/pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/mem.h"

#define SPIN 2000

struct worker {
    struct pool *pool;
    pthread_t thread;
    int index;
};

struct pool {
    int n_threads;
    struct worker *workers; // n_threads - 1 of them
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    _Atomic unsigned long generation;
    _Atomic int active; // workers inside a generation
    bool stop;
    void (*fn)(void *, int, int);
    void *ctx;
    int n_tasks;
    _Atomic int next;
};

void pool_thread_init(void)
{
#if defined(__x86_64__)
    _mm_setcsr(_mm_getcsr() | 0x8040); // FTZ | DAZ
#endif
}

static void pause_cpu(void)
{
#if defined(__x86_64__)
    _mm_pause();
#endif
}

static void run_tasks(struct pool *p, int thread)
{
    for (int t; (t = atomic_fetch_add(&p->next, 1)) < p->n_tasks;)
        p->fn(p->ctx, t, thread);
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct pool *p = w->pool;
    unsigned long seen = 0;
    pool_thread_init();
    for (;;) {
        for (int i = 0; i < SPIN && atomic_load(&p->generation) == seen; i++)
            pause_cpu();
        pthread_mutex_lock(&p->lock);
        while (atomic_load(&p->generation) == seen && !p->stop)
            pthread_cond_wait(&p->wake, &p->lock);
        bool stop = p->stop;
        seen = atomic_load(&p->generation);
        pthread_mutex_unlock(&p->lock);
        if (stop)
            return NULL;
        run_tasks(p, w->index);
        if (atomic_fetch_sub(&p->active, 1) == 1) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->done);
            pthread_mutex_unlock(&p->lock);
        }
    }
}

enum status pool_open(int n_threads, struct pool **ret_pool, struct error *err)
{
    if (n_threads < 1 || n_threads > 1024)
        return error_set(err, STATUS_RANGE, "a pool needs 1 to 1024 threads, not %d", n_threads);
    struct pool *p = mem_must(1, sizeof *p);
    p->n_threads = 1;
    p->workers = mem_must((size_t)n_threads, sizeof *p->workers);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->done, NULL);
    for (int i = 1; i < n_threads; i++) {
        struct worker *w = &p->workers[i - 1];
        *w = (struct worker){.pool = p, .index = i};
        int rc = pthread_create(&w->thread, NULL, worker_main, w);
        if (rc) {
            pool_close(p);
            return error_errno(err, rc, "starting thread %d of %d", i + 1, n_threads);
        }
        p->n_threads++;
    }
    *ret_pool = p;
    return STATUS_OK;
}

void pool_close(struct pool *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i + 1 < p->n_threads; i++)
        pthread_join(p->workers[i].thread, NULL);
    pthread_cond_destroy(&p->wake);
    pthread_cond_destroy(&p->done);
    pthread_mutex_destroy(&p->lock);
    free(p->workers);
    free(p);
}

int pool_threads(const struct pool *p)
{
    return p ? p->n_threads : 1;
}

void pool_run(struct pool *p, int n_tasks, void (*fn)(void *ctx, int task, int thread), void *ctx)
{
    if (!p || p->n_threads == 1 || n_tasks <= 1) {
        for (int i = 0; i < n_tasks; i++)
            fn(ctx, i, 0);
        return;
    }
    pthread_mutex_lock(&p->lock);
    p->fn = fn;
    p->ctx = ctx;
    p->n_tasks = n_tasks;
    atomic_store(&p->next, 0);
    atomic_store(&p->active, p->n_threads - 1);
    atomic_fetch_add(&p->generation, 1);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    run_tasks(p, 0);
    for (int i = 0; i < SPIN && atomic_load(&p->active); i++)
        pause_cpu();
    pthread_mutex_lock(&p->lock);
    while (atomic_load(&p->active))
        pthread_cond_wait(&p->done, &p->lock);
    pthread_mutex_unlock(&p->lock);
}
