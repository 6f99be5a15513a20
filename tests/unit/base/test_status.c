// base/status.h: names, texts that grow, truncation.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
// cmocka wants its four first
#include <cmocka.h>

#include <errno.h>

#include "base/status.h"
#include "base/utf8.h"

static void test_names(void **state)
{
    (void)state;
    assert_string_equal(status_name(STATUS_OK), "OK");
    assert_string_equal(status_name(STATUS_FENCED), "FENCED");
    assert_string_equal(status_text(STATUS_TIMEOUT), "deadline passed");
    assert_non_null(status_name((enum status) - 999));
    assert_non_null(status_text((enum status)77));
}

static void test_texts(void **state)
{
    (void)state;
    struct error e;
    assert_int_equal(error_set(&e, STATUS_RANGE, "lr = %g", 2.5), STATUS_RANGE);
    assert_int_equal(e.status, STATUS_RANGE);
    assert_string_equal(e.text, "lr = 2.5");
    assert_int_equal(error_prefix(&e, "%s:%d", "run.yaml", 3), STATUS_RANGE);
    assert_string_equal(e.text, "run.yaml:3: lr = 2.5");
    assert_int_equal(error_set(NULL, STATUS_IO, "nobody listens"), STATUS_IO);
    static const struct {
        int errnum;
        enum status status;
    } cases[] = {
        {ENOENT, STATUS_NOTFOUND}, {ENOMEM, STATUS_NOMEM}, {EEXIST, STATUS_EXISTS}, {EPIPE, STATUS_IO}};
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(error_errno(&e, cases[i].errnum, "opening %s", "x"), cases[i].status);
        assert_non_null(strstr(e.text, "opening x: "));
        assert_non_null(strstr(e.text, strerror(cases[i].errnum)));
        assert_int_equal(error_errno(NULL, cases[i].errnum, "x"), cases[i].status);
    }
}

static void test_truncation(void **state)
{
    (void)state;
    struct {
        struct error e;
        char guard[8];
    } g = {.guard = "guard"};
    char big[3000];
    memset(big, 'b', sizeof(big) - 1);
    big[sizeof(big) - 1] = 0;
    error_set(&g.e, STATUS_IO, "%s", big);
    assert_int_equal(strlen(g.e.text), sizeof(g.e.text) - 1);
    error_prefix(&g.e, "%s", "front");
    assert_memory_equal(g.e.text, "front: bbb", 10);
    error_prefix(&g.e, "%s", big);
    error_errno(&g.e, EIO, "%s", big);
    assert_int_equal(strlen(g.e.text), sizeof(g.e.text) - 1);
    assert_string_equal(g.guard, "guard");
}

// Cut by a precision, or by the end of the text, in the middle of a character: what stands there can go into a document.
static void test_utf8(void **state)
{
    (void)state;
    struct error e;
    char big[3000];
    error_set(&e, STATUS_INVALID, "no query \"%.4s\"; there are others", "abc\xC3\xA9");
    assert_string_equal(e.text, "no query \"abc?\"; there are others");
    error_set(&e, STATUS_INVALID, "no query %.5s", "ab\xE2\x82\xAC and more");
    assert_string_equal(e.text, "no query ab\xE2\x82\xAC");
    error_prefix(&e, "%.1s", "\xC3\xA9");
    assert_string_equal(e.text, "?: no query ab\xE2\x82\xAC");
    error_errno(&e, ENOENT, "opening %.2s", "x\xFF");
    assert_memory_equal(e.text, "opening x?: ", 12);
    for (size_t shift = 0; shift < 3; shift++) {
        for (size_t i = 0; i < sizeof big - 1; i++)
            big[i] = i < shift ? 'x' : "\xE2\x82\xAC"[(i - shift) % 3];
        big[sizeof big - 1] = 0;
        error_set(&e, STATUS_INVALID, "%s", big);
        size_t n = strlen(e.text);
        assert_true(n >= sizeof e.text - 3 && utf8_valid_prefix(e.text, n) == n);
        error_prefix(&e, "%s", "yz");
        n = strlen(e.text);
        assert_true(n >= sizeof e.text - 3 && utf8_valid_prefix(e.text, n) == n);
        error_errno(&e, EIO, "%s", big);
        n = strlen(e.text);
        assert_true(n >= sizeof e.text - 3 && utf8_valid_prefix(e.text, n) == n);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_names), cmocka_unit_test(test_texts),
                                       cmocka_unit_test(test_truncation), cmocka_unit_test(test_utf8)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
