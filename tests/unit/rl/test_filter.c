// Zero variance, padding, permutation of rewards, admission and shuffles.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "rl/admission.h"
#include "rl/filter.h"
#include "rl/shuffle.h"

static void test_zero_variance(void **state)
{
    (void)state;
    const double same[] = {0.3, 0.3, 0.3}, other[] = {0.3, 0.3, 0.30000001};
    assert_true(filter_drops(RUN_ZV_DROP, same, 3));
    assert_false(filter_drops(RUN_ZV_DROP, other, 3));
    assert_true(filter_drops(RUN_ZV_DROP, same, 1));
    assert_false(filter_drops(RUN_ZV_KEEP, same, 3));
}

static void test_pad(void **state)
{
    (void)state;
    int32_t m[16];
    assert_false(filter_pad(0, 8, m));
    assert_false(filter_pad(4, 8, m)); // half is not more than half
    assert_true(filter_pad(5, 8, m));
    const int32_t five[] = {2, 2, 2, 1, 1};
    assert_memory_equal(m, five, sizeof five);
    assert_true(filter_pad(8, 8, m));
    for (int i = 0; i < 8; i++)
        assert_int_equal(m[i], 1);
    assert_true(filter_pad(1, 1, m));
    assert_int_equal(m[0], 1);
    assert_true(filter_pad(2, 3, m));
    assert_int_equal(m[0], 2);
    assert_int_equal(m[1], 1);
}

static void test_permute(void **state)
{
    (void)state;
    int moved = 0;
    for (int64_t group = 1; group <= 50; group++) {
        double r[] = {0, 1, 2, 3, 4, 5, 6, 7}, again[8], sum = 0;
        memcpy(again, r, sizeof r);
        filter_permute_rewards(1, group, r, 8);
        filter_permute_rewards(1, group, again, 8);
        assert_memory_equal(r, again, sizeof r);
        int seen[8] = {0};
        for (int i = 0; i < 8; i++) {
            seen[(int)r[i]]++;
            sum += r[i];
            moved += r[i] != i;
        }
        for (int i = 0; i < 8; i++)
            assert_int_equal(seen[i], 1);
        assert_true(sum == 28);
    }
    assert_in_range(moved, 300, 390); // 7/8 of 400 on average
}

static void test_admission(void **state)
{
    (void)state;
    assert_int_equal(admission_bound(0, 0, 4, 100), 4);
    assert_int_equal(admission_bound(2, 0, 4, 100), 12);
    assert_int_equal(admission_bound(2, 5, 4, 100), 32);
    assert_int_equal(admission_bound(2, 99, 4, 100), 400); // the stage needs no more
    assert_true(admission_open(3, 0, 4));
    assert_true(admission_open(0, 3, 4));
    assert_false(admission_open(3, 1, 4));
    assert_int_equal(lag_of(7, 4), 3);
    assert_false(lag_is_stale(7, 4, 3));
    assert_true(lag_is_stale(8, 4, 3));
}

static void test_shuffle(void **state)
{
    (void)state;
    for (uint64_t n = 1; n < 300; n++) {
        unsigned char seen[300] = {0};
        for (uint64_t i = 0; i < n; i++) {
            uint64_t p = shuffle_at(5, n, n, i);
            assert_true(p < n && !seen[p]);
            seen[p] = 1;
        }
    }
    int same = 0;
    for (uint64_t i = 0; i < 1000; i++)
        same += shuffle_at(1, 1, 1000, i) == shuffle_at(1, 2, 1000, i);
    assert_in_range(same, 0, 8); // another stream is another order: 1 in expectation
    assert_true(shuffle_at(3, 3, (uint64_t)1 << 40, 12345) < (uint64_t)1 << 40);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_zero_variance), cmocka_unit_test(test_pad),     cmocka_unit_test(test_permute),
        cmocka_unit_test(test_admission),     cmocka_unit_test(test_shuffle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
