// base/pool.h: every task once, any number of threads, many small rounds.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
// cmocka wants its four first
#include <cmocka.h>

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

static void test_refuses(void **state)
{
    (void)state;
    struct pool *p;
    struct error err;
    assert_int_not_equal(pool_open(0, &p, &err), STATUS_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_each_task_once), cmocka_unit_test(test_no_pool),
                                       cmocka_unit_test(test_many_rounds),
                                       cmocka_unit_test(test_everyone_sleeps),
                                       cmocka_unit_test(test_refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
