// What one step may hold, whether a step is recorded at all being decided by it.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "orchestrator/step.h"

static void test_limits(void **unused)
{
    (void)unused;
    struct error err;
    assert_int_equal(step_fits(7, "rl", MSG_MEMBERS, MSG_BATCH_MAX, &err), STATUS_OK);
    assert_int_equal(step_fits(7, "rl", MSG_MEMBERS + 1, 10, &err), STATUS_UNSUPPORTED);
    assert_non_null(strstr(err.text, "step 7 has 131073 segments"));
    assert_int_equal(step_fits(7, "rl", 10, (int64_t)MSG_BATCH_MAX + 1, &err), STATUS_UNSUPPORTED);
    assert_non_null(strstr(err.text, "lower groups_per_step, group_size or batch_rows of stage rl"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_limits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
