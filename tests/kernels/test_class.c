// One class of kernels: can it run here? kernels_class CLASS exits 0 when it can, 77 (a counted skip) when this processor or build
// lacks it; tests/run.sh asks before it masks. Without CLASS: the classes below the best one can all be had, and the ones above
// it are refused with a reason.
#include "kernels/cpu.h"
#include "tests/kernels/check.h"

static void test_chain(void **state)
{
    (void)state;
    for (int i = ISA_REF; i <= ISA_AMX; i++) {
        struct device *d = NULL;
        struct error err;
        enum status s = device_open("cpu", isa_name((enum isa)i), 4, &d, &err);
        if (cpu_built((enum isa)i) && cpu_has((enum isa)i)) {
            assert_int_equal(s, STATUS_OK);
            assert_int_equal(d->isa, i);
        } else {
            assert_int_equal(s, STATUS_UNSUPPORTED);
            assert_non_null(strstr(err.text, isa_name((enum isa)i)));
            assert_true(i > (int)device_best_isa());
        }
        device_close(d);
    }
}

// Tiles are asked for more than once, and from any thread's kernels: permission stays.
static void test_permission(void **state)
{
    (void)state;
    bool first = cpu_has(ISA_AMX);
    assert_int_equal(first, cpu_has(ISA_AMX));
}

int main(int argc, char **argv)
{
    if (argc > 1) {
        struct device *d;
        struct error err;
        if (device_open("cpu", argv[1], 4, &d, &err)) {
            printf("%s\n", err.text);
            return err.status == STATUS_UNSUPPORTED ? 77 : 1;
        }
        printf("%s, %s\n", d->name, d->numerics_id);
        device_close(d);
        return 0;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_chain), cmocka_unit_test(test_permission)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
