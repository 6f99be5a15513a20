// UTF-8: every code point there and back, every two-byte and a grid of longer ill-formed sequences, maximal-subpart repair.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/utf8.h"

static void test_every_scalar_value(void **state)
{
    (void)state;
    for (uint32_t cp = 0; cp < 0x110000; cp++) {
        if (cp >= 0xD800 && cp < 0xE000)
            continue;
        char s[4];
        uint32_t back = 0;
        size_t n = utf8_encode(cp, s);
        if (utf8_decode(s, n, &back) != n || back != cp || utf8_valid_prefix(s, n) != n)
            fail_msg("U+%04X", cp);
        if (n > 1 && (utf8_decode(s, n - 1, &back) != 0 || utf8_valid_prefix(s, n - 1) != 0))
            fail_msg("U+%04X cut short is taken", cp);
    }
}

static void test_ill_formed(void **state)
{
    (void)state;
    static const char *const bad[] = {"\xC0\x80",
                                      "\xC1\xBF",
                                      "\xE0\x80\x80",
                                      "\xE0\x9F\xBF",
                                      "\xED\xA0\x80",
                                      "\xED\xBF\xBF",
                                      "\xF0\x80\x80\x80",
                                      "\xF0\x8F\xBF\xBF",
                                      "\xF4\x90\x80\x80",
                                      "\xF5\x80\x80\x80",
                                      "\x80",
                                      "\xFF"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        uint32_t cp;
        assert_int_equal(utf8_decode(bad[i], strlen(bad[i]), &cp), 0);
        assert_int_equal(utf8_valid_prefix(bad[i], strlen(bad[i])), 0);
    }
    assert_int_equal(utf8_valid_prefix("0123456789\xC3", 11), 10);
    bool incomplete;
    assert_int_equal(utf8_bad_length("\xF0\x9F\x98", 3, &incomplete), 3);
    assert_true(incomplete);
    assert_int_equal(utf8_bad_length("\xF0\x9F\x98x", 4, &incomplete), 3);
    assert_false(incomplete);
}

static void expect_repair(const char *s, size_t n, const char *want)
{
    struct buf b = {0};
    utf8_repair(&b, s, n);
    assert_string_equal(b.data, want);
    buf_done(&b);
}

// The examples of the Unicode standard, tables 3-8 and 3-9; equal to Python's errors="replace".
static void test_repair(void **state)
{
    (void)state;
#define R "\xEF\xBF\xBD"
    expect_repair("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41", 9, R R R R R R R R "A");
    expect_repair("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41", 9, R R R R R R R R "A");
    expect_repair("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", 9, R R R R "A");
    expect_repair("a\xE2\x82", 3, "a" R);
}

static void expect_mend(const char *s, const char *want)
{
    char text[40];
    snprintf(text, sizeof text, "%s", s);
    utf8_mend(text);
    assert_string_equal(text, want);
}

// What is there stays, what was cut off at the end goes, the rest of what is no UTF-8 becomes '?'.
static void test_mend(void **state)
{
    (void)state;
    expect_mend("", "");
    expect_mend("caf\xC3\xA9 \xF0\x9F\x98\x80", "caf\xC3\xA9 \xF0\x9F\x98\x80");
    expect_mend("caf\xC3", "caf");
    expect_mend("\xF0\x9F\x98", "");
    expect_mend("\"caf\xC3\" and \xE2\x82\" more", "\"caf?\" and ?\" more");
    expect_mend("\xFF\xC0\xAFz\x80", "???z?");
    expect_mend("a\xFF\xE2\x82", "a?");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_scalar_value),
        cmocka_unit_test(test_ill_formed),
        cmocka_unit_test(test_repair),
        cmocka_unit_test(test_mend),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
