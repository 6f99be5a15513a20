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

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_names), cmocka_unit_test(test_texts),
                                       cmocka_unit_test(test_truncation)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
