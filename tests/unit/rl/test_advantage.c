// Advantages against values computed by hand.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "rl/advantage.h"

static void near(double got, double want)
{
    if (fabs(got - want) > 1e-12 * (1 + fabs(want)))
        fail_msg("got %.17g, want %.17g", got, want);
}

// Two uneven groups, interleaved: {1, 0, 0} and {2, 4}.
static const int64_t keys[] = {7, -3, 7, -3, 7};
static const double rewards[] = {1, 2, 0, 4, 0};

static void test_grpo(void **state)
{
    (void)state;
    double a[5];
    advantage_compute(RUN_ADV_GRPO, keys, rewards, 5, a);
    double std7 = sqrt(1.0 / 3), std3 = sqrt(2.0); // unbiased: (4/9 + 1/9 + 1/9) / 2 and (1 + 1) / 1
    near(a[0], (2.0 / 3) / (std7 + 1e-6));
    near(a[2], (-1.0 / 3) / (std7 + 1e-6));
    near(a[4], (-1.0 / 3) / (std7 + 1e-6));
    near(a[1], -1 / (std3 + 1e-6));
    near(a[3], 1 / (std3 + 1e-6));
}

static void test_group_centered(void **state)
{
    (void)state;
    double a[5];
    advantage_compute(RUN_ADV_GROUP_CENTERED, keys, rewards, 5, a);
    near(a[0], 2.0 / 3);
    near(a[2], -1.0 / 3);
    near(a[1], -1);
    near(a[3], 1);
}

static void test_rloo(void **state)
{
    (void)state;
    double a[5];
    advantage_compute(RUN_ADV_RLOO, keys, rewards, 5, a);
    near(a[0], 1);    // 1 - (0 + 0) / 2
    near(a[2], -0.5); // 0 - (1 + 0) / 2
    near(a[4], -0.5);
    near(a[1], -2); // 2 - 4
    near(a[3], 2);
}

static void test_reinforce_pp(void **state)
{
    (void)state;
    double a[5];
    advantage_compute(RUN_ADV_REINFORCE_PP, keys, rewards, 5, a);
    double mean = 7.0 / 5, square = 0.16 + 0.36 + 1.96 + 6.76 + 1.96;
    double std = sqrt(square / 4);
    for (int i = 0; i < 5; i++)
        near(a[i], (rewards[i] - mean) / (std + 1e-6));
    assert_true(advantage_is_batch(RUN_ADV_REINFORCE_PP));
    assert_false(advantage_is_batch(RUN_ADV_GRPO));
}

// 0.1 three times has a mean that is not exactly 0.1: the advantage must be 0 all the same, not noise / 1e-6.
static void test_equal_rewards(void **state)
{
    (void)state;
    const int64_t g[] = {1, 1, 1};
    const double r[] = {0.1, 0.1, 0.1};
    for (enum run_advantage k = RUN_ADV_GRPO; k <= RUN_ADV_REINFORCE_PP; k++) {
        double a[3] = {9, 9, 9};
        advantage_compute(k, g, r, 3, a);
        for (int i = 0; i < 3; i++)
            assert_true(a[i] == 0);
    }
}

static void test_single_member(void **state)
{
    (void)state;
    const int64_t g[] = {1};
    const double r[] = {1};
    assert_int_equal(advantage_least_members(RUN_ADV_GRPO), 2);
    assert_int_equal(advantage_least_members(RUN_ADV_RLOO), 2);
    for (enum run_advantage k = RUN_ADV_GRPO; k <= RUN_ADV_REINFORCE_PP; k++) {
        double a[1] = {9};
        advantage_compute(k, g, r, 1, a);
        assert_true(a[0] == 0);
    }
    assert_string_equal(advantage_name(RUN_ADV_REINFORCE_PP), "reinforce_pp");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grpo),          cmocka_unit_test(test_group_centered),
        cmocka_unit_test(test_rloo),          cmocka_unit_test(test_reinforce_pp),
        cmocka_unit_test(test_equal_rewards), cmocka_unit_test(test_single_member),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
