// kernels/fmath.h against libm in double.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
// cmocka wants the four above first
#include <cmocka.h>

#include "base/rng.h"
#include "kernels/fmath.h"

// Units in the last place of the f32 nearest to want.
static double ulps(double want, float got)
{
    int e;
    frexp(want, &e);
    return fabs((double)got - want) / ldexp(1, e - 24);
}

static void test_exp(void **state)
{
    (void)state;
    double worst = 0;
    for (int i = 0; i <= 2000000; i++) {
        float x = (float)(-87.3 + 176.0 * i / 2000000);
        double u = ulps(exp((double)x), fmath_exp(x));
        worst = u > worst ? u : worst;
    }
    print_message("exp: %.3f ulp at worst\n", worst);
    assert_true(worst < 1.1);
    assert_true(fmath_exp(0) == 1);
    assert_true(fmath_exp(-87.31f) == 0 && fmath_exp(-INFINITY) == 0);
    assert_true(fmath_exp(88.71f) == INFINITY && fmath_exp(INFINITY) == INFINITY);
    assert_true(isnan(fmath_exp(NAN)));
}

static void test_log(void **state)
{
    (void)state;
    struct rng r;
    rng_init(&r, 1, 0);
    double worst = 0;
    for (int i = 0; i < 1000000; i++) {
        uint32_t u = 0x00800000u + (uint32_t)rng_below(&r, 0x7f800000u - 0x00800000u);
        if (i % 2) // around 1, where cancellation would show
            u = 0x3f000000u + (uint32_t)rng_below(&r, 0x01000000u);
        float x;
        memcpy(&x, &u, 4);
        double want = log((double)x), e = want == 0 ? fabs((double)fmath_log(x)) : ulps(want, fmath_log(x));
        worst = e > worst ? e : worst;
    }
    print_message("log: %.3f ulp at worst\n", worst);
    assert_true(worst < 0.51);
    assert_true(fmath_log(1) == 0);
    assert_true(fmath_log(0) == -INFINITY && fmath_log(-0.0f) == -INFINITY);
    assert_true(fmath_log(INFINITY) == INFINITY);
    assert_true(isnan(fmath_log(-1)) && isnan(fmath_log(NAN)));
}

static void test_sincos(void **state)
{
    (void)state;
    struct rng r;
    rng_init(&r, 2, 0);
    for (int i = 0; i < 1000000; i++) {
        double x = (rng_uniform(&r) - 0.25) * (i % 2 ? 1e6 : 20);
        float s, c;
        fmath_sincos(x, &s, &c);
        assert_true(fabs((double)s - sin(x)) < 3.1e-8 && fabs((double)c - cos(x)) < 3.1e-8);
    }
    float s, c;
    fmath_sincos(0, &s, &c);
    assert_true(s == 0 && c == 1);
}

static void test_pow(void **state)
{
    (void)state;
    for (int i = 0; i < 128; i++)
        for (int b = 0; b < 3; b++) {
            double base = b == 0 ? 10000 : b == 1 ? 100000 : 1e6, e = i / 128.0, want = pow(base, -e);
            assert_true(fabs(fmath_pow(base, e) - want) <= want * 1e-14);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_exp), cmocka_unit_test(test_log),
                                       cmocka_unit_test(test_sincos), cmocka_unit_test(test_pow)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
