// base/mem.h: alignment, zeroing, arenas.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
// cmocka wants its four first
#include <cmocka.h>

#include "base/mem.h"

static bool all_zero(const void *p, size_t n)
{
    const unsigned char *b = p;
    for (size_t i = 0; i < n; i++) {
        if (b[i]) {
            return false;
        }
    }
    return true;
}

static void test_alloc(void **state)
{
    (void)state;
    for (size_t n = 1; n < 100000; n = n * 3 + 1) {
        char *p = mem_alloc(n);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % MEM_ALIGN, 0);
        assert_true(all_zero(p, n));
        memset(p, 1, n);
        mem_free(p);
    }
    assert_null(mem_alloc(0));
    assert_null(mem_alloc(SIZE_MAX - 8));
    mem_free(NULL);
}

// Whole lines and what is left of them, from any address, and not a byte more.
static void test_copy_past(void **state)
{
    (void)state;
    enum { N = 1000 };
    unsigned char *from = mem_alloc(N), *to = mem_alloc(N);
    for (int i = 0; i < N; i++)
        from[i] = (unsigned char)(i * 7 + 1);
    for (size_t shift = 0; shift < 3; shift++)
        for (size_t n = 0; n < N - 3; n++) {
            memset(to, 0xee, N);
            mem_copy_past(to, from + shift, n);
            assert_memory_equal(to, from + shift, n);
            assert_int_equal(to[n], 0xee);
        }
    mem_free(from);
    mem_free(to);
}

static void test_must(void **state)
{
    (void)state;
    int *v = mem_must(10, sizeof(*v));
    assert_true(all_zero(v, 10 * sizeof(*v)));
    v[9] = 7;
    v = mem_grow(v, 1000, sizeof(*v));
    assert_int_equal(v[9], 7);
    free(v);
    char *s = mem_strndup("hello", 3), *t = mem_printf("%s-%d", s, 5);
    assert_string_equal(t, "hel-5");
    free(s);
    free(t);
}

static void test_arena(void **state)
{
    (void)state;
    struct arena a;
    arena_init(&a, 0);
    char *first = arena_alloc(&a, 1);
    for (int i = 0; i < 1000; i++) {
        size_t n = (size_t)(i * 37 % 5000) + 1;
        char *p = arena_zalloc(&a, n);
        assert_int_equal((uintptr_t)p % MEM_ALIGN, 0);
        assert_true(all_zero(p, n));
        memset(p, 0xAA, n);
    }
    *first = 'x';
    char *big = arena_alloc(&a, 10 << 20); // larger than any chunk
    assert_non_null(big);
    memset(big, 1, 10 << 20);
    assert_string_equal(arena_strndup(&a, "abcdef", 4), "abcd");
    assert_memory_equal(arena_memdup(&a, "\1\0\2", 3), "\1\0\2", 3);
    assert_true(a.used > 10u << 20);
    arena_reset(&a);
    assert_int_equal(a.used, 0);
    assert_true(all_zero(arena_zalloc(&a, 100000), 100000)); // old bytes are cleared
    arena_done(&a);
    arena_done(&a);
}

static void test_arena_limit(void **state)
{
    (void)state;
    struct arena a;
    arena_init(&a, 4096);
    assert_non_null(arena_alloc(&a, 2048));
    assert_null(arena_alloc(&a, 4096));
    assert_null(arena_alloc(&a, SIZE_MAX - 32));
    assert_null(arena_zalloc(&a, 1 << 20));
    assert_non_null(arena_alloc(&a, 64)); // a refusal spoils nothing
    arena_reset(&a);
    assert_non_null(arena_alloc(&a, 4096));
    arena_done(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_alloc), cmocka_unit_test(test_copy_past),
                                       cmocka_unit_test(test_must), cmocka_unit_test(test_arena),
                                       cmocka_unit_test(test_arena_limit)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
