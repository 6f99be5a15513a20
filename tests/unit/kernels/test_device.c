// kernels/device.h: opening, refusing, naming; equal classes have equal numerics ids.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
// cmocka wants the four above first
#include <cmocka.h>

#include "kernels/kernels.h"

static void test_open(void **state)
{
    (void)state;
    struct device *d = NULL;
    struct error err;
    assert_int_equal(device_open("cpu", "auto", 1, &d, &err), STATUS_OK);
    assert_int_equal(d->isa, device_best_isa());
    assert_non_null(strstr(d->name, isa_name(d->isa)));
    assert_non_null(strstr(d->name, "1 thread"));
    const void *const *ops = (const void *const *)d->k; // every field is filled
    for (size_t i = 0; i < sizeof *d->k / sizeof *ops; i++)
        assert_non_null(ops[i]);
    float *p = device_alloc(d, 1000 * sizeof *p);
    assert_non_null(p);
    assert_int_equal((uintptr_t)p % 64, 0);
    for (int i = 0; i < 1000; i++)
        assert_true(p[i] == 0);
    device_free(d, p);
    device_close(d);
    device_close(NULL);
}

static void test_refuses(void **state)
{
    (void)state;
    struct device *d = NULL;
    struct error err;
    assert_int_equal(device_open("tpu", "auto", 1, &d, &err), STATUS_UNSUPPORTED);
    assert_non_null(strstr(err.text, "tpu"));
    assert_int_equal(device_open("cpu", "sse9", 1, &d, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "sse9"));
    assert_int_equal(device_open("cpu", "ref", -1, &d, &err), STATUS_RANGE);
    assert_null(d);
}

static void test_numerics_id(void **state)
{
    (void)state;
    char fma[128] = "", own[128] = "";
    for (int i = ISA_REF; i <= (int)device_best_isa(); i++) {
        struct device *d, *e;
        struct error err;
        if (device_open("cpu", isa_name((enum isa)i), 1, &d, &err))
            continue;
        assert_int_equal(device_open("cpu", isa_name((enum isa)i), 3, &e, &err), STATUS_OK);
        assert_string_equal(d->numerics_id, e->numerics_id); // threads change no bits
        char *slot = i <= ISA_AVX512 ? fma : own;
        if (i <= ISA_AVX512 && *slot)
            assert_string_equal(slot, d->numerics_id);
        memcpy(slot, d->numerics_id, sizeof fma);
        device_close(d);
        device_close(e);
    }
    assert_string_not_equal(fma, own);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_open), cmocka_unit_test(test_refuses),
                                       cmocka_unit_test(test_numerics_id)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
