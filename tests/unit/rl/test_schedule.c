// rl/schedule.h
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
// cmocka wants the four above first
#include <cmocka.h>

#include "rl/schedule.h"

static void test_schedules(void **state)
{
    (void)state;
    struct run_optimizer o = {
        .lr = 2e-3, .warmup_steps = 4, .schedule = RUN_LR_LINEAR, .final_lr_ratio = 0.1};
    assert_true(schedule_lr(&o, 0, 104) == 5e-4);
    assert_true(schedule_lr(&o, 3, 104) == 2e-3);
    assert_true(fabs(schedule_lr(&o, 53, 104) - 1.1e-3) < 1e-12); // half of the way
    assert_true(fabs(schedule_lr(&o, 103, 104) - 2e-4) < 1e-15);
    assert_true(fabs(schedule_lr(&o, 1000, 104) - 2e-4) < 1e-15);
    o.schedule = RUN_LR_COSINE;
    assert_true(fabs(schedule_lr(&o, 53, 104) - 1.1e-3) < 1e-12);
    assert_true(fabs(schedule_lr(&o, 103, 104) - 2e-4) < 1e-15);
    assert_true(schedule_lr(&o, 20, 104) > schedule_lr(&o, 21, 104));
    o.schedule = RUN_LR_CONSTANT;
    assert_true(schedule_lr(&o, 4, 104) == 2e-3 && schedule_lr(&o, 103, 104) == 2e-3);
    o.warmup_steps = 0;
    o.schedule = RUN_LR_LINEAR;
    assert_true(fabs(schedule_lr(&o, 0, 1) - 2e-4) < 1e-15); // a stage of one step is its own end
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_schedules)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
