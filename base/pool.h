// A thread pool for data-parallel loops. Work is split into tasks whose results do not depend on who runs
// them, so the number of threads never changes a bit (contract 3). The calling thread works too. One thread
// at a time may call pool_run on a pool.
//
// Waiting: a worker without a task, and a caller whose last tasks others have, look again for some ten microseconds (loops follow
// each other that fast inside a forward pass), then sleep: an idle pool uses no processor. A pool with more threads than
// the process may run on cores goes to sleep at once, since whoever spins would keep the one that works from it.
#ifndef BASE_POOL_H
#define BASE_POOL_H

#include "base/status.h"

struct pool;

// n_threads >= 1, the caller included; n_threads - 1 workers are started. Every worker (and, by
// pool_thread_init, every caller) runs with flush-to-zero and denormals-are-zero set, so that no kernel's
// bits depend on its thread.
enum status pool_open(int n_threads, struct pool **ret_pool, struct error *err) OOZE_MUST_USE;
void pool_close(struct pool *p); // NULL is fine

int pool_threads(const struct pool *p);

// Runs fn(ctx, task, thread) for task = 0 … n_tasks-1, each exactly once, and returns when all are done.
// Tasks are handed out in order to whoever is free. thread is in [0, pool_threads). p may be NULL: then the
// caller runs all.
void pool_run(struct pool *p, int n_tasks, void (*fn)(void *ctx, int task, int thread), void *ctx);

// Thread k of the pool on cpus[k], n = pool_threads (n 0: nothing happens): the workers now, the caller of pool_run when it says that
// it is thread 0 (pool_adopt, on its own thread).
enum status pool_pin(struct pool *p, const int *cpus, int n, struct error *err) OOZE_MUST_USE;
enum status pool_adopt(struct pool *p, struct error *err) OOZE_MUST_USE;

// Sets FTZ/DAZ for the calling thread; every thread that calls kernels does so first.
void pool_thread_init(void);

#endif
