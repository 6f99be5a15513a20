// base/pool.h: every task once, any number of threads, many small rounds.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
// cmocka wants its four first
#include <cmocka.h>

#include <sched.h>
#include <stdatomic.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/pool.h"

#define TASKS 1000
struct round {
    atomic_int count[TASKS];
    atomic_int wrong_thread, denormals, by_workers;
    int n_threads;
};

static void task(void *ctx, int i, int thread)
{
    struct round *r = ctx;
    r->count[i]++;
    if (thread < 0 || thread >= r->n_threads) {
        r->wrong_thread++;
    }
    volatile float tiny = 1e-30f, more = 1e-12f;
    if (tiny * more != 0) { // 1e-42 is subnormal: flushed
        r->denormals++;
    }
}

static void test_each_task_once(void **state)
{
    (void)state;
    pool_thread_init();
    for (int n_threads = 1; n_threads <= 5; n_threads++) {
        struct pool *p;
        struct error err;
        assert_int_equal(pool_open(n_threads, &p, &err), STATUS_OK);
        assert_int_equal(pool_threads(p), n_threads);
        static struct round r;
        memset(&r, 0, sizeof(r));
        r.n_threads = n_threads;
        for (int n = 0; n <= TASKS; n += 100) {
            pool_run(p, n, task, &r);
        }
        for (int i = 0; i < TASKS; i++) {
            assert_int_equal(r.count[i], (TASKS - i / 100 * 100) / 100);
        }
        assert_int_equal(r.wrong_thread, 0);
#if defined(__x86_64__)
        assert_int_equal(r.denormals, 0);
#endif
        pool_close(p);
    }
    pool_close(NULL);
}

static void test_no_pool(void **state)
{
    (void)state;
    static struct round r = {.n_threads = 1};
    pool_run(NULL, TASKS, task, &r);
    for (int i = 0; i < TASKS; i++) {
        assert_int_equal(r.count[i], 1);
    }
}

static void test_many_rounds(void **state)
{
    (void)state;
    struct pool *p;
    struct error err;
    assert_int_equal(pool_open(3, &p, &err), STATUS_OK);
    static struct round r = {.n_threads = 3};
    for (int i = 0; i < 20000; i++) { // rounds so short that workers are late for them
        pool_run(p, 3, task, &r);
        assert_int_equal(r.count[0], i + 1);
        assert_int_equal(r.count[2], i + 1);
    }
    pool_close(p);
}

static void slow_task(void *ctx, int i, int thread)
{
    struct round *r = ctx;
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    r->count[i]++;
    if (thread > 0) {
        r->by_workers++;
    }
}

static void test_everyone_sleeps(void **state)
{
    (void)state;
    struct pool *p;
    struct error err;
    assert_int_equal(pool_open(3, &p, &err), STATUS_OK);
    static struct round r;
    for (int i = 0; i < 50; i++) { // longer than anyone spins: workers before the loop, the caller in it
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        pool_run(p, 2 + i % 3, slow_task, &r);
        assert_int_equal(r.count[1], i + 1);
    }
    assert_true(r.by_workers > 0);
    pool_close(p);
}

static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void test_idle_pool_sleeps(void **state)
{
    (void)state;
    struct pool *p;
    struct error err;
    static struct round r;
    assert_int_equal(pool_open(2, &p, &err), STATUS_OK); // two: on most machines it may spin
    r.n_threads = 2;
    pool_run(p, TASKS, task, &r);
    double t0 = cpu_seconds();
    nanosleep(&(struct timespec){.tv_nsec = 400000000}, NULL);
    double used = cpu_seconds() - t0;
    if (used > 0.02) // a worker that never sleeps would use all of it
        fail_msg("an idle pool used %.3f s of processor time in 0.4 s", used);
    pool_close(p);
}

static void short_sleep(void *ctx, int i, int thread)
{
    struct round *r = ctx;
    nanosleep(&(struct timespec){.tv_nsec = 300000 * (i + 1)}, NULL);
    r->count[i]++;
    if (thread < 0 || thread >= r->n_threads)
        r->wrong_thread++;
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

// More threads than cores: whoever waits leaves the core to those that work.
static void test_oversubscribed(void **state)
{
    (void)state;
    struct pool *p;
    struct error err;
    cpu_set_t before, one;
    static struct round r = {.n_threads = 6};
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    CPU_ZERO(&one);
    for (size_t i = 0; i < CPU_SETSIZE && !CPU_COUNT(&one); i++)
        if (CPU_ISSET(i, &before))
            CPU_SET(i, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    assert_int_equal(pool_open(6, &p, &err), STATUS_OK);
    double t0 = cpu_seconds(), wall = seconds();
    for (int i = 0; i < 100; i++)
        pool_run(p, 6, short_sleep, &r);
    double share = (cpu_seconds() - t0) / (seconds() - wall);
    for (int i = 0; i < 6; i++)
        assert_int_equal(r.count[i], 100);
    assert_int_equal(r.wrong_thread, 0);
#if !defined(__SANITIZE_THREAD__) &&                                                                         \
    !defined(__SANITIZE_ADDRESS__) // their bookkeeping at each wake-up would be counted too
    if (share > 0.2)               // everybody sleeps nearly all the time
        fail_msg("six threads waiting for one another used %.0f %% of a core", 100 * share);
#else
    (void)share;
#endif
    pool_close(p);
    assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
}

static void where_task(void *ctx, int i, int thread)
{
    atomic_int *where = ctx;
    (void)i;
    where[thread] = sched_getcpu() + 1;
    nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL); // so that everyone gets one
}

static void test_pinned(void **state)
{
    (void)state;
    struct pool *p;
    struct error err;
    cpu_set_t before, now;
    int cpus[2] = {-1, -1}, last = -1;
    atomic_int where[2] = {0};
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET((size_t)i, &before)) {
            cpus[0] = cpus[0] < 0 ? i : cpus[0];
            last = i;
        }
    cpus[1] = last;
    assert_int_equal(pool_open(2, &p, &err), STATUS_OK);
    assert_int_equal(pool_pin(p, cpus, 0, &err), STATUS_OK); // nothing happens
    assert_int_equal(pool_adopt(p, &err), STATUS_OK);
    assert_int_equal(sched_getaffinity(0, sizeof now, &now), 0);
    assert_true(CPU_EQUAL(&now, &before));
    assert_int_not_equal(pool_pin(p, cpus, 1, &err), STATUS_OK);
    assert_int_equal(pool_pin(p, cpus, 2, &err), STATUS_OK);
    assert_int_equal(pool_adopt(p, &err), STATUS_OK);
    assert_int_equal(sched_getaffinity(0, sizeof now, &now), 0);
    assert_true(CPU_COUNT(&now) == 1 && CPU_ISSET((size_t)cpus[0], &now));
    for (int i = 0; i < 5; i++)
        pool_run(p, 6, where_task, where);
    assert_int_equal(where[0] - 1, cpus[0]);
    assert_int_equal(where[1] - 1, cpus[1]);
    const int none[2] = {cpus[0], CPU_SETSIZE - 1}; // no machine of ours has that many
    assert_int_not_equal(pool_pin(p, none, 2, &err), STATUS_OK);
    pool_close(p);
    assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
}

static void test_refuses(void **state)
{
    (void)state;
    struct pool *p;
    struct error err;
    assert_int_not_equal(pool_open(0, &p, &err), STATUS_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_task_once),   cmocka_unit_test(test_no_pool),
        cmocka_unit_test(test_many_rounds),      cmocka_unit_test(test_everyone_sleeps),
        cmocka_unit_test(test_idle_pool_sleeps), cmocka_unit_test(test_oversubscribed),
        cmocka_unit_test(test_pinned),           cmocka_unit_test(test_refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
