// A thread pool: see pool.h. The caller publishes a loop in one store; whoever spins takes tasks without a lock, whoever sleeps is
// woken. Nobody waits for a worker that took no task, so one that the system runs late delays no loop.
//
// Invariants
//   1. `open` counts the tasks not yet taken. A task is taken by lowering it by one from above 0, in one atomic step; the loop's
//      fields (fn, ctx, n_tasks) are written only while open and left are 0, and read only between taking a task and giving it
//      back. Any worker may take a task of any loop: a late one that finds the next loop open helps with that.
//   2. `left` counts the tasks that have not returned; it reaches 0 exactly when all have, and pool_run returns then.
//   3. Idle spinning is bounded (`spin` rounds), then the thread sleeps on a condition variable. No wake-up is lost: the
//      sleeper announces itself (`sleepers`, `waiting`) before it looks at open or left a last time, the other side changes
//      open or left before it looks for sleepers, and all four accesses are sequentially consistent.
#include "base/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/mem.h"

#define SPIN 2000 // pauses of some 40 cycles: 20 microseconds

struct worker {
    struct pool *pool;
    pthread_t thread;
    int index;
};

struct pool {
    int n_threads;
    int spin;               // rounds before sleeping
    int caller_cpu;         // of thread 0; -1 = not pinned
    struct worker *workers; // n_threads - 1 of them
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    _Atomic int sleepers; // workers on wake, or about to be; changed under the lock
    _Atomic bool waiting; // the caller is on done, or about to be
    bool stop;            // under the lock
    void (*fn)(void *, int, int);
    void *ctx;
    int n_tasks;
    char pad[64]; // idle workers watch open: keep it off the lines that others write
    _Atomic int open;
    char pad2[64];
    _Atomic int left;
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
    for (int open = atomic_load(&p->open); open > 0;) {
        if (!atomic_compare_exchange_weak(&p->open, &open, open - 1))
            continue;
        p->fn(p->ctx, p->n_tasks - open, thread);
        if (atomic_fetch_sub(&p->left, 1) == 1 && atomic_load(&p->waiting)) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->done);
            pthread_mutex_unlock(&p->lock);
        }
        open = atomic_load(&p->open);
    }
}

// Returns when tasks are open, or false: the pool closes.
static bool worker_wait(struct pool *p)
{
    for (int i = 0; i < p->spin; i++) {
        if (atomic_load(&p->open))
            return true;
        pause_cpu();
    }
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    while (!atomic_load(&p->open) && !p->stop)
        pthread_cond_wait(&p->wake, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    bool stop = p->stop;
    pthread_mutex_unlock(&p->lock);
    return !stop;
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    pool_thread_init();
    while (worker_wait(w->pool))
        run_tasks(w->pool, w->index);
    return NULL;
}

static int cores(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1024;
}

enum status pool_open(int n_threads, struct pool **ret_pool, struct error *err)
{
    if (n_threads < 1 || n_threads > 1024)
        return error_set(err, STATUS_RANGE, "a pool needs 1 to 1024 threads, not %d", n_threads);
    struct pool *p = mem_must(1, sizeof *p);
    p->n_threads = 1;
    p->caller_cpu = -1;
    p->spin = n_threads <= cores() ? SPIN : 1;
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

static enum status thread_pin(pthread_t thread, int cpu, int index, struct error *err)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    int rc = pthread_setaffinity_np(thread, sizeof set, &set);
    return rc ? error_errno(err, rc, "pinning thread %d to CPU %d", index, cpu) : STATUS_OK;
}

enum status pool_pin(struct pool *p, const int *cpus, int n, struct error *err)
{
    enum status rc = STATUS_OK;
    if (n == 0)
        return STATUS_OK;
    if (n != p->n_threads)
        return error_set(err, STATUS_INVALID, "%d CPUs for %d threads", n, p->n_threads);
    for (int i = 0; i < n && !rc; i++)
        if (cpus[i] < 0 || cpus[i] >= CPU_SETSIZE)
            rc = error_set(err, STATUS_RANGE, "CPU %d", cpus[i]);
    for (int i = 1; i < n && !rc; i++)
        rc = thread_pin(p->workers[i - 1].thread, cpus[i], i, err);
    if (!rc)
        p->caller_cpu = cpus[0];
    return rc;
}

enum status pool_adopt(struct pool *p, struct error *err)
{
    pool_thread_init();
    return p->caller_cpu < 0 ? STATUS_OK : thread_pin(pthread_self(), p->caller_cpu, 0, err);
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
    p->fn = fn;
    p->ctx = ctx;
    p->n_tasks = n_tasks;
    atomic_store(&p->left, n_tasks);
    atomic_store(&p->open, n_tasks);
    if (atomic_load(&p->sleepers)) {
        pthread_mutex_lock(&p->lock);
        if (n_tasks - 1 >= atomic_load(&p->sleepers))
            pthread_cond_broadcast(&p->wake);
        else
            for (int i = 1; i < n_tasks; i++)
                pthread_cond_signal(&p->wake);
        pthread_mutex_unlock(&p->lock);
    }
    run_tasks(p, 0);
    for (int i = 0; i < p->spin && atomic_load(&p->left); i++)
        pause_cpu();
    if (!atomic_load(&p->left))
        return;
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->waiting, true);
    while (atomic_load(&p->left))
        pthread_cond_wait(&p->done, &p->lock);
    atomic_store(&p->waiting, false);
    pthread_mutex_unlock(&p->lock);
}
