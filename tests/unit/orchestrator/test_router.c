// Choosing an engine, the table of jobs, prompts, pass@k, and what a task says of itself.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/hash.h"
#include "base/mem.h"
#include "base/rng.h"
#include "orchestrator/eval.h"
#include "orchestrator/router.h"
#include "orchestrator/sampler.h"
#include "orchestrator/task.h"

static const uint64_t names[] = {11, 22, 33, 44};

static void test_choice_is_sticky(void **state)
{
    (void)state;
    int load[4] = {0}, room[4] = {100, 100, 100, 100}, count[4] = {0};
    int moved = 0;
    for (uint64_t s = 1; s <= 1000; s++) {
        uint64_t session = hash64(&s, sizeof s);
        int a = router_choose(session, names, load, room, 4);
        assert_int_equal(a, router_choose(session, names, load, room, 4));
        count[a]++;
        // Without engine 3 only its own sessions move (rendezvous hashing).
        int b = router_choose(session, names, load, room, 3);
        if (a != 3)
            assert_int_equal(a, b);
        else
            moved++;
    }
    for (int i = 0; i < 4; i++)
        assert_in_range(count[i], 200, 300);
    assert_int_equal(moved, count[3]);
}

static void test_choice_is_bounded(void **state)
{
    (void)state;
    int room[4] = {10, 10, 10, 10}, load[4] = {0};
    uint64_t session = 5;
    for (int i = 0; i < 40; i++) { // forty times the same session
        int k = router_choose(session, names, load, room, 4);
        assert_true(k >= 0 && load[k] < room[k]);
        load[k]++;
        int total = i + 1, most = 0;
        for (int e = 0; e < 4; e++)
            most = load[e] > most ? load[e] : most;
        assert_true(most <= (total * 5 + 15) / 16 + 1); // 5/4 of the mean, rounded up
    }
    assert_int_equal(router_choose(session, names, load, room, 4), -1);
    load[2]--;
    assert_int_equal(router_choose(session, names, load, room, 4), 2);
}

static void test_table(void **state)
{
    (void)state;
    struct table t = {0};
    static int values[5000];
    struct rng r;
    bool in[5000] = {false};
    size_t n = 0;
    rng_init(&r, 1, 1);
    for (int i = 0; i < 50000; i++) {
        size_t k = rng_below(&r, 5000);
        if (in[k])
            table_remove(&t, k * 1024 + 1);
        else
            table_set(&t, k * 1024 + 1, &values[k]);
        n += in[k] ? (size_t)-1 : 1;
        in[k] = !in[k];
        assert_int_equal(t.n, n);
    }
    for (size_t k = 0; k < 5000; k++)
        assert_ptr_equal(table_get(&t, k * 1024 + 1), in[k] ? &values[k] : NULL);
    table_done(&t);
    assert_null(table_get(&t, 1));
}

static void test_prompts(void **state)
{
    (void)state;
    int64_t epoch, e2;
    bool seen[100] = {false};
    int same = 0;
    for (int64_t i = 0; i < 100; i++) {
        int64_t p = sampler_prompt(3, "sort", 100, i, &epoch);
        assert_true(epoch == 0 && p >= 0 && p < 100 && !seen[p]);
        seen[p] = true;
        same += p == sampler_prompt(3, "tool", 100, i, &e2);
        sampler_prompt(3, "sort", 100, i + 100, &e2);
        assert_int_equal(e2, 1);
    }
    assert_true(same < 20);
    assert_int_equal(sampler_prompt(3, "sort", -1, 12345, &epoch), 12345); // unbounded: in order
}

static void test_pass_at(void **state)
{
    (void)state;
    assert_true(fabs(eval_pass_at(4, 1, 1) - 0.25) < 1e-12);
    assert_true(fabs(eval_pass_at(4, 1, 2) - 0.5) < 1e-12); // 1 - C(3,2)/C(4,2) = 1 - 3/6
    assert_true(fabs(eval_pass_at(10, 3, 5) - (1 - 21.0 / 252)) < 1e-12);
    assert_true(eval_pass_at(4, 0, 4) == 0);
    assert_true(eval_pass_at(4, 4, 1) == 1);
}

static enum status describe(struct task *t, const char *text, struct error *err)
{
    return task_describe(t, text, strlen(text), err);
}

#define HEAD                                                                                                 \
    "{\"protocol\":\"ooze-task/1\",\"name\":\"x\",\"mode\":\"env\",\"splits\":{\"train\":null,\"eval\":7}"

static void test_task_describes_itself(void **state)
{
    (void)state;
    struct task t = {0};
    struct error err;
    if (describe(&t, HEAD ",\"max_turns\":3,\"tools\":[{}],\"reward\":{\"min\":-1,\"max\":2}}", &err))
        fail_msg("%s", err.text);
    assert_int_equal(t.n_train, -1);
    assert_int_equal(t.n_eval, 7);
    assert_int_equal(t.max_turns, 3);
    assert_true(t.reward_min == -1 && t.reward_max == 2 && json_array_size(t.tools) == 1);
    t.cfg.max_turns = 2; // the run's own limit wins
    assert_int_equal(describe(&t, HEAD "}", &err), STATUS_OK);
    assert_true(t.max_turns == 2 && t.tools == NULL && t.reward_max == 1);
    assert_int_equal(describe(&t, "{\"protocol\":\"ooze-task/1\",\"mode\":\"agent\",\"splits\":{}}", &err),
                     STATUS_UNSUPPORTED);
    assert_non_null(strstr(err.text, "agent"));
    assert_int_equal(describe(&t, "{\"protocol\":\"other/1\",\"mode\":\"env\",\"splits\":{}}", &err),
                     STATUS_UNSUPPORTED);
    assert_int_not_equal(describe(&t, "{\"protocol\":\"ooze-task/1\",\"mode\":\"env\"}", &err), STATUS_OK);
    assert_int_not_equal(describe(&t, HEAD ",\"reward\":{\"min\":1,\"max\":1}}", &err), STATUS_OK);
    assert_int_not_equal(describe(&t, HEAD ",\"tools\":3}", &err), STATUS_OK);
    assert_int_not_equal(
        describe(&t, "{\"protocol\":\"ooze-task/1\",\"mode\":\"env\",\"splits\":{\"train\":-4}}", &err),
        STATUS_OK);
    assert_int_not_equal(describe(&t, "[1", &err), STATUS_OK);
    assert_int_not_equal(describe(&t, "[]", &err), STATUS_OK);
    json_decref(t.tools);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choice_is_sticky),
        cmocka_unit_test(test_choice_is_bounded),
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_pass_at),
        cmocka_unit_test(test_task_describes_itself),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
