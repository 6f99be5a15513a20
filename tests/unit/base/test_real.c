// base/real.h: digits that are enough, and of which none is too many.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/real.h"
#include "base/rng.h"

static bool reads_back(double v, int digits)
{
    char text[40];
    snprintf(text, sizeof text, "%.*e", digits - 1, v);
    return strtod(text, NULL) == v;
}

static void test_known(void **state)
{
    (void)state;
    static const struct {
        double v;
        int digits;
    } cases[] = {{0, 1},
                 {1, 1},
                 {-0.1, 1},
                 {0.25, 2},
                 {1e22, 1},
                 {1e23, 1},
                 {5e-324, 1},
                 {1e-6, 1},
                 {123456.789, 9},
                 {0.1 + 0.2, 17},
                 {1.0 / 3, 16},
                 {2.0 / 3, 16},
                 {65504.0, 5},
                 {-1e16, 1},
                 {9007199254740993.0, 16},
                 {1.7976931348623157e308, 17}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (real_digits(cases[i].v) != cases[i].digits)
            fail_msg("%.17g: %d digits, not %d", cases[i].v, real_digits(cases[i].v), cases[i].digits);
}

static void test_random(void **state)
{
    (void)state;
    struct rng r;
    rng_init(&r, 5, 5);
    for (int i = 0; i < 20000; i++) {
        uint64_t bits = (uint64_t)rng_u32(&r) << 32 | rng_u32(&r);
        double v;
        memcpy(&v, &bits, sizeof v);
        if (!isfinite(v))
            continue;
        int digits = real_digits(v);
        assert_in_range(digits, 1, 17);
        assert_true(reads_back(v, digits) && (digits == 1 || !reads_back(v, digits - 1)));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_known), cmocka_unit_test(test_random)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
