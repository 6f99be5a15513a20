// base/buf.h and base/clock.h.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
// cmocka wants its four first
#include <cmocka.h>

#include "base/buf.h"
#include "base/clock.h"

static void test_append(void **state)
{
    (void)state;
    struct buf b = {0};
    char want[20001] = "";
    for (int i = 0; i < 10000; i++) {
        buf_putc(&b, (char)('a' + i % 26));
        buf_append(&b, "\0", 1);
        want[2 * i] = (char)('a' + i % 26);
    }
    assert_int_equal(b.len, 20000);
    assert_memory_equal(b.data, want, 20001); // the NUL after the end, too
    buf_consume(&b, 19998);
    assert_int_equal(b.len, 2);
    assert_memory_equal(b.data, want + 19998, 3);
    buf_clear(&b);
    buf_puts(&b, "x=");
    buf_printf(&b, "%d%s", 42, ";");
    assert_string_equal(b.data, "x=42;");
    buf_printf(&b, "%5000d", 1);
    assert_int_equal(b.len, 5005);
    size_t n;
    char *text = buf_take(&b, &n);
    assert_int_equal(n, 5005);
    assert_int_equal(strlen(text), 5005);
    free(text);
    assert_int_equal(b.len, 0);
    text = buf_take(&b, NULL);
    assert_string_equal(text, ""); // never NULL
    free(text);
    buf_done(&b);
    buf_puts(&b, "usable again");
    assert_string_equal(b.data, "usable again");
    buf_done(&b);
}

static void test_clock(void **state)
{
    (void)state;
    struct clock_fake f;
    clock_fake_init(&f, 5000000);
    assert_int_equal(clock_mono_ms(&f.clock), 5);
    clock_fake_advance_ms(&f, 20);
    assert_int_equal(clock_mono_ms(&f.clock), 25);
    assert_int_equal(clock_mono_ns(&f.clock), 25000000);
    const struct clock *c = clock_system();
    int64_t a = clock_mono_ns(c), b = clock_mono_ns(c);
    assert_true(a > 0 && b >= a);
    assert_true(clock_wall_ms(c) > 1700000000000); // after 2023
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_append), cmocka_unit_test(test_clock)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
