// base/rng.h: Philox4x32-10 against the known answers published with Random123, and the laws of what is built on it.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
// cmocka wants its four first
#include <cmocka.h>

#include <math.h>

#include "base/rng.h"

static void test_known_answers(void **state)
{
    (void)state;
    static const struct {
        uint32_t ctr[4], key[2], out[4];
    } kat[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < 3; i++) {
        uint32_t out[4];
        rng_philox(kat[i].key, kat[i].ctr, out);
        assert_memory_equal(out, kat[i].out, sizeof(out));
    }
}

static void test_token_uniform(void **state)
{
    (void)state;
    const struct rng_token_key k = {.run_seed = 7, .trajectory = 1ull << 40, .attempt = 2, .segment = 3};
    double sum = 0, sum2 = 0;
    int n = 100000, low = 0;
    for (int i = 0; i < n; i++) {
        float u = rng_token_uniform(&k, (uint32_t)i);
        assert_true(u > 0 && u < 1);
        assert_true(u == rng_token_uniform(&k, (uint32_t)i));
        float grid = u * 0x1p24f; // odd multiples of 2^-24
        assert_true(grid == floorf(grid) && fmodf(grid, 2) == 1);
        sum += u;
        sum2 += (double)u * u;
        low += u < 0.01f;
    }
    assert_true(fabs(sum / n - 0.5) < 0.005); // five standard errors
    assert_true(fabs(sum2 / n - 1.0 / 3) < 0.005);
    assert_true(abs(low - n / 100) < 160);
    // every part of the key matters
    const struct rng_token_key other[] = {{8, 1ull << 40, 2, 3},
                                          {7, 1ull << 41, 2, 3},
                                          {7, 1ull << 40, 1, 3},
                                          {7, 1ull << 40, 2, 4},
                                          {7, 1, 2, 3}};
    for (size_t o = 0; o < sizeof(other) / sizeof(other[0]); o++) {
        int same = 0;
        for (uint32_t i = 0; i < 100; i++) {
            same += rng_token_uniform(&k, i) == rng_token_uniform(&other[o], i);
        }
        assert_true(same < 3);
    }
}

static void test_stream(void **state)
{
    (void)state;
    struct rng a, b, c;
    rng_init(&a, 1, 2);
    rng_init(&b, 1, 2);
    rng_init(&c, 1, 3);
    int same = 0;
    for (int i = 0; i < 1000; i++) {
        uint64_t x = rng_u64(&a);
        assert_true(x == rng_u64(&b));
        same += x == rng_u64(&c);
    }
    assert_int_equal(same, 0);
    int count[7] = {0};
    for (int i = 0; i < 70000; i++) {
        count[rng_below(&a, 7)]++;
    }
    for (int i = 0; i < 7; i++) {
        assert_true(abs(count[i] - 10000) < 500);
    }
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(rng_below(&a, 1), 0);
        assert_true(rng_below(&a, (1ull << 63) + 1) <= 1ull << 63);
    }
    double sum = 0, sum2 = 0, uniform = 0;
    for (int i = 0; i < 100000; i++) {
        double x = rng_normal(&a), u = rng_uniform(&a);
        assert_true(u >= 0 && u < 1 && isfinite(x));
        sum += x;
        sum2 += x * x;
        uniform += u;
    }
    assert_true(fabs(sum / 1e5) < 0.02 && fabs(sum2 / 1e5 - 1) < 0.03 && fabs(uniform / 1e5 - 0.5) < 0.005);
}

static void test_shuffle(void **state)
{
    (void)state;
    struct rng r;
    rng_init(&r, 9, 9);
    int seen[6] = {0};
    for (int i = 0; i < 60000; i++) { // the six orders of three are equally likely
        uint32_t v[3] = {0, 1, 2};
        rng_shuffle_u32(&r, v, 3);
        assert_int_equal((1u << v[0]) | (1u << v[1]) | (1u << v[2]), 7);
        seen[v[0] * 2 + (v[1] > v[2])]++;
    }
    for (int i = 0; i < 6; i++) {
        assert_true(abs(seen[i] - 10000) < 500);
    }
    rng_shuffle_u32(&r, NULL, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_known_answers),
                                       cmocka_unit_test(test_token_uniform), cmocka_unit_test(test_stream),
                                       cmocka_unit_test(test_shuffle)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
