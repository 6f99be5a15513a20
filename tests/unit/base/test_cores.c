// base/cores.h: lists of CPUs, the division of 1 to 64 cores, what is pinned where and what is refused.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
// cmocka wants its four first
#include <cmocka.h>

#include <stdio.h>

#include "base/cores.h"
#include "base/mem.h"

static struct run_config *c;
static struct cores_share s;
static struct error err;

static struct cores_list host(int cores, int first)
{
    struct cores_list l = {.n = cores};
    for (int i = 0; i < cores; i++)
        l.cpus[i] = first + i;
    return l;
}

static void run(int engines, int trainer, int rollout, int max_lag)
{
    memset(c, 0, sizeof *c);
    c->n_stages = 2;
    c->stages[0].kind = RUN_STAGE_SFT;
    c->stages[1] = (struct run_stage){.kind = RUN_STAGE_RL, .max_lag = max_lag};
    c->rollout.engines = engines;
    c->rollout.threads = rollout;
    c->trainer.threads = trainer;
}

static int trainer(int cores)
{
    struct cores_list l = host(cores, 0);
    assert_int_equal(cores_for_trainer(c, &l, &s, &err), STATUS_OK);
    return s.threads;
}

static int engine(int cores, int i)
{
    struct cores_list l = host(cores, 0);
    assert_int_equal(cores_for_engine(c, &l, i, &s, &err), STATUS_OK);
    return s.threads;
}

static void test_parse(void **state)
{
    (void)state;
    static const char *const bad[] = {"",    ",",    "1,", "a",    "1-",  "3-1",   "1;2",
                                      "1 2", "1024", "-1", "0-0x", "1,1", "0-3,2", "9999999999999999999"};
    struct cores_list l;
    assert_int_equal(cores_parse("0-2,8,4-4", &l, &err), STATUS_OK);
    assert_int_equal(l.n, 5);
    const int want[] = {0, 1, 2, 8, 4};
    assert_memory_equal(l.cpus, want, sizeof want);
    assert_int_equal(cores_parse("0-1023", &l, &err), STATUS_OK);
    assert_int_equal(l.n, CORES_MAX);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        if (cores_parse(bad[i], &l, &err) == STATUS_OK)
            fail_msg("'%s' was read", bad[i]);
}

// Asynchronous: nobody gets nothing, and as long as there are cores enough everyone together gets all of them.
static void test_shares(void **state)
{
    (void)state;
    for (int cores = 1; cores <= 64; cores++)
        for (int engines = 1; engines <= 5; engines++) {
            run(engines, 0, 0, 2);
            int sum = trainer(cores), most = 0, least = 1000;
            assert_true(sum >= 1 && sum == (cores + 1) / 2);
            for (int i = 0; i < engines; i++) {
                int n = engine(cores, i);
                sum += n;
                most = n > most ? n : most;
                least = n < least ? n : least;
            }
            assert_true(least >= 1 && most - least <= 1);
            bool enough = cores / 2 >= engines;
            if (enough)
                assert_int_equal(sum, cores);
            assert_int_equal(*s.warning == 0, enough);
        }
    run(1, 0, 0, 1);
    assert_int_equal(trainer(2), 1);
    assert_int_equal(engine(2, 0), 1);
    assert_int_equal(trainer(8), 4);
    assert_int_equal(engine(8, 0), 4);
    assert_int_equal(trainer(64), 32);
    assert_int_equal(engine(64, 0), 32);
}

static void test_turns_and_explicit(void **state)
{
    (void)state;
    run(2, 0, 0, 0); // synchronous: they never compute at the same time
    assert_int_equal(trainer(8), 8);
    assert_int_equal(engine(8, 0), 4);
    assert_int_equal(engine(8, 1), 4);
    assert_string_equal(s.warning, "");
    run(1, 0, 0, 3);
    c->eval.only = true;
    assert_int_equal(engine(8, 0), 8);
    run(1, 6, 0, 1); // what one is given, the other leaves
    assert_int_equal(trainer(8), 6);
    assert_int_equal(engine(8, 0), 2);
    run(2, 0, 3, 1);
    assert_int_equal(trainer(8), 2);
    assert_int_equal(engine(8, 1), 3);
    assert_string_equal(s.warning, "");
    run(1, 9, 3, 1);
    assert_int_equal(trainer(8), 9);
    assert_int_equal(engine(8, 0), 3);
    assert_non_null(strstr(s.warning, "12 threads on 8 cores"));
    run(0, 0, 0, 1); // a trainer alone
    assert_int_equal(trainer(8), 8);
    assert_string_equal(s.warning, "");
}

static void pinned(const int *want, int n)
{
    assert_int_equal(s.pin.n, n);
    if (n)
        assert_memory_equal(s.pin.cpus, want, (size_t)n * sizeof *want);
}

static void test_pin(void **state)
{
    (void)state;
    struct cores_list l = host(8, 10); // CPUs 10 … 17
    run(2, 0, 0, 1);
    assert_int_equal(cores_for_trainer(c, &l, &s, &err), STATUS_OK);
    pinned(NULL, 0);
    strcpy(c->trainer.pin, "off");
    assert_int_equal(cores_for_trainer(c, &l, &s, &err), STATUS_OK);
    pinned(NULL, 0);
    strcpy(c->trainer.pin, "auto");
    strcpy(c->rollout.pin, "auto");
    assert_int_equal(cores_for_trainer(c, &l, &s, &err), STATUS_OK);
    pinned((const int[]){10, 11, 12, 13}, 4);
    assert_int_equal(cores_for_engine(c, &l, 0, &s, &err), STATUS_OK);
    pinned((const int[]){14, 15}, 2);
    assert_int_equal(cores_for_engine(c, &l, 1, &s, &err), STATUS_OK);
    pinned((const int[]){16, 17}, 2);
    strcpy(c->rollout.pin, "17,12-14");
    assert_int_equal(cores_for_engine(c, &l, 0, &s, &err), STATUS_OK);
    pinned((const int[]){17, 12}, 2);
    assert_int_equal(cores_for_engine(c, &l, 1, &s, &err), STATUS_OK);
    pinned((const int[]){13, 14}, 2);
    strcpy(c->rollout.pin, "16-18"); // one beyond
    assert_int_equal(cores_for_engine(c, &l, 0, &s, &err), STATUS_INVALID);
    assert_string_equal(err.text, "rollout.pin: this process may not run on CPU 18 (it may on 10-17)");
    strcpy(c->trainer.pin, "x");
    assert_int_equal(cores_for_trainer(c, &l, &s, &err), STATUS_INVALID);
    run(1, 8, 8, 1); // too many threads to nail each to a core of its own
    strcpy(c->trainer.pin, "auto");
    assert_int_equal(cores_for_trainer(c, &l, &s, &err), STATUS_OK);
    pinned(NULL, 0);
    run(1, 0, 0, 0);
    strcpy(c->rollout.pin, "auto");
    assert_int_equal(cores_for_engine(c, &l, 0, &s, &err), STATUS_OK);
    pinned((const int[]){10, 11, 12, 13, 14, 15, 16, 17}, 8);
}

static void test_here(void **state)
{
    (void)state;
    struct cores_list l;
    cores_allowed(&l);
    assert_true(l.n >= 1 && l.n == cores_count());
    for (int i = 1; i < l.n; i++)
        assert_true(l.cpus[i] > l.cpus[i - 1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_parse), cmocka_unit_test(test_shares),
                                       cmocka_unit_test(test_turns_and_explicit), cmocka_unit_test(test_pin),
                                       cmocka_unit_test(test_here)};
    c = mem_must(1, sizeof *c);
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    free(c);
    return rc;
}
