// kernels/dtype.h: every bf16, half and FP8 code, and rounding to nearest even checked against all neighbours.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
// cmocka wants the four above first
#include <cmocka.h>

#include "base/rng.h"
#include "kernels/dtype.h"

static void test_names(void **state)
{
    (void)state;
    assert_string_equal(dtype_name(DT_F32), "F32");
    assert_string_equal(dtype_name(DT_FP8), "F8_E4M3");
    assert_int_equal(dtype_bytes(DT_FP8), 1);
    assert_int_equal(dtype_bytes(DT_BF16), 2);
    assert_int_equal(dtype_bytes(DT_I32), 4);
}

// value of an E4M3 code by its definition
static double fp8_value(int q)
{
    int e = q >> 3 & 15, m = q & 7;
    double v = e ? ldexp(1 + m / 8.0, e - 7) : ldexp(m / 8.0, -6);
    return q & 0x80 ? -v : v;
}

static void test_fp8_codes(void **state)
{
    (void)state;
    for (int q = 0; q < 256; q++) {
        float f = fp8_to_f32((uint8_t)q);
        if ((q & 0x7f) == 0x7f) {
            assert_true(isnan(f));
            assert_int_equal(f32_to_fp8(f) & 0x7f, 0x7f);
            continue;
        }
        assert_true((double)f == fp8_value(q) && !signbit(f) == !(q & 0x80));
        assert_int_equal(f32_to_fp8(f), q);
    }
}

static void test_fp8_rounding(void **state)
{
    (void)state;
    // midpoints go to the even code, a hair to either side to the nearer one
    for (int q = 0; q < 0x7e; q++) {
        float lo = fp8_to_f32((uint8_t)q), hi = fp8_to_f32((uint8_t)(q + 1)), mid = (lo + hi) / 2;
        assert_int_equal(f32_to_fp8(mid), q % 2 ? q + 1 : q);
        assert_int_equal(f32_to_fp8(nextafterf(mid, 0)), q);
        assert_int_equal(f32_to_fp8(nextafterf(mid, 1000)), q + 1);
        assert_int_equal(f32_to_fp8(-mid), (q % 2 ? q + 1 : q) | 0x80);
    }
    assert_int_equal(f32_to_fp8(448), 0x7e);
    assert_int_equal(f32_to_fp8(1e9f), 0x7e);
    assert_int_equal(f32_to_fp8(INFINITY), 0x7e);
    assert_int_equal(f32_to_fp8(-INFINITY), 0xfe);
    assert_int_equal(f32_to_fp8(1e-45f), 0);
    assert_int_equal(f32_to_fp8(-0.0f), 0x80);
}

static void test_bf16(void **state)
{
    (void)state;
    for (int h = 0; h < 0x10000; h++) {
        float f = bf16_to_f32((uint16_t)h);
        if (isnan(f))
            assert_true(isnan(bf16_to_f32(f32_to_bf16(f))));
        else
            assert_int_equal(f32_to_bf16(f), h);
        if (isfinite(f) && (h & 0x7fff) < 0x7f7f) { // the midpoint to the next code goes to the even one
            uint32_t u = (uint32_t)h << 16 | 0x8000;
            float mid;
            memcpy(&mid, &u, 4);
            assert_int_equal(f32_to_bf16(mid), h % 2 ? h + 1 : h);
        }
    }
    assert_int_equal(f32_to_bf16(3.4e38f), 0x7f80);
}

static void test_f16(void **state)
{
    (void)state;
    for (int h = 0; h < 0x10000; h++) {
        int e = h >> 10 & 31, m = h & 0x3ff;
        float f = f16_to_f32((uint16_t)h);
        if (e == 31) {
            assert_true(m ? isnan(f) : isinf(f));
            continue;
        }
        double v = e ? ldexp(1 + m / 1024.0, e - 15) : ldexp(m / 1024.0, -14);
        assert_true((double)f == (h & 0x8000 ? -v : v));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_names), cmocka_unit_test(test_fp8_codes),
                                       cmocka_unit_test(test_fp8_rounding), cmocka_unit_test(test_bf16),
                                       cmocka_unit_test(test_f16)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
