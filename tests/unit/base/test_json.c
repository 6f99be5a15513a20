// base/json.h: documents, typed members, arrays of numbers, strings.
#include <float.h>
#include <locale.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
// cmocka wants the four above first
#include <cmocka.h>

#include "base/json.h"
#include "base/rng.h"

static enum status parse(const char *text, json_t **ret, struct error *err)
{
    return json_parse(text, strlen(text), "here", ret, err);
}

static void test_parse_refuses(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",     "{",    "{\"a\":1,\"a\":2}",     "[1] x",   "[NaN]",    "[Infinity]",   "{'a':1}",
        "[1,]", "[01]", "[9223372036854775808]", "[1e999]", "\"\xff\"", "[\"\\u0000\"]"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        json_t *j = NULL;
        struct error err = {0};
        assert_int_equal(parse(bad[i], &j, &err), STATUS_INVALID);
        assert_null(j);
        assert_non_null(strstr(err.text, "here:"));
    }
    json_t *j;
    struct error err;
    assert_int_equal(parse("{\n \"a\": tru}", &j, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "here:2:"));
}

static void test_parse_depth(void **state)
{
    (void)state;
    char text[400];
    struct error err;
    json_t *j;
    memset(text, '[', 64);
    memset(text + 64, ']', 64);
    assert_int_equal(json_parse(text, 128, "deep", &j, &err), STATUS_OK);
    json_decref(j);
    memset(text, '[', 65);
    memset(text + 65, ']', 65);
    assert_int_equal(json_parse(text, 130, "deep", &j, &err), STATUS_LIMIT);
    // brackets in strings do not count, also after an escaped quote
    size_t n = (size_t)snprintf(text, sizeof(text), "[\"\\\"");
    memset(text + n, '{', 100);
    memcpy(text + n + 100, "\"]", 3);
    assert_int_equal(parse(text, &j, &err), STATUS_OK);
    json_decref(j);
}

static void test_text(void **state)
{
    (void)state;
    json_t *j;
    struct error err;
    const char *text = "{\"z\":9007199254740993,\"a\":[true,null,\"\\u00e9\\n\"],\"r\":0.10000000000000001}";
    assert_int_equal(parse(text, &j, &err), STATUS_OK);
    char *out = json_text(j);
    assert_string_equal(
        out, "{\"z\":9007199254740993,\"a\":[true,null,\"\xc3\xa9\\n\"],\"r\":0.10000000000000001}");
    free(out);
    json_decref(j);
    assert_int_equal(parse("7", &j, &err), STATUS_OK);
    out = json_text(j);
    assert_string_equal(out, "7");
    free(out);
    json_decref(j);
}

static void test_members(void **state)
{
    (void)state;
    json_t *j;
    struct error err;
    assert_int_equal(parse("{\"s\":\"x\",\"i\":5,\"r\":2.5,\"b\":true,\"n\":null}", &j, &err), STATUS_OK);
    const char *s = NULL;
    int64_t i = 0;
    double r = 0;
    bool b = false;
    assert_int_equal(json_get_string(j, "s", true, NULL, "w", &s, &err), STATUS_OK);
    assert_string_equal(s, "x");
    assert_int_equal(json_get_string(j, "none", false, "def", "w", &s, &err), STATUS_OK);
    assert_string_equal(s, "def");
    assert_int_equal(json_get_string(j, "n", false, "def", "w", &s, &err), STATUS_OK);
    assert_string_equal(s, "def");
    assert_int_equal(json_get_string(j, "n", true, NULL, "w", &s, &err), STATUS_TYPE);
    assert_int_equal(json_get_string(j, "none", true, NULL, "w", &s, &err), STATUS_NOTFOUND);
    assert_non_null(strstr(err.text, "w: member \"none\""));
    assert_int_equal(json_get_int(j, "i", true, 0, 0, 5, "w", &i, &err), STATUS_OK);
    assert_int_equal(i, 5);
    assert_int_equal(json_get_int(j, "i", true, 0, 0, 4, "w", &i, &err), STATUS_RANGE);
    assert_int_equal(json_get_int(j, "r", true, 0, 0, 4, "w", &i, &err), STATUS_TYPE);
    assert_int_equal(json_get_int(j, "none", false, 9, 0, 4, "w", &i, &err), STATUS_OK);
    assert_int_equal(i, 9);
    assert_int_equal(json_get_real(j, "r", true, 0, 0, 4, "w", &r, &err), STATUS_OK);
    assert_true(r == 2.5);
    assert_int_equal(json_get_real(j, "i", true, 0, 0, 9, "w", &r, &err), STATUS_OK);
    assert_true(r == 5.0);
    assert_int_equal(json_get_real(j, "i", true, 0, 0, 4, "w", &r, &err), STATUS_RANGE);
    assert_int_equal(json_get_real(j, "b", true, 0, 0, 4, "w", &r, &err), STATUS_TYPE);
    assert_int_equal(json_get_bool(j, "b", true, false, "w", &b, &err), STATUS_OK);
    assert_true(b);
    assert_int_equal(json_get_bool(j, "i", true, false, "w", &b, &err), STATUS_TYPE);
    json_t *arr = json_array();
    assert_int_equal(json_get_bool(arr, "i", false, false, "w", &b, &err), STATUS_TYPE);
    json_decref(arr);
    json_decref(j);
}

static void test_i32_array(void **state)
{
    (void)state;
    int32_t *v = NULL;
    size_t n, used;
    struct error err;
    const char *text = " [ 1,-2 ,\n2147483647,-2147483648,0,-0]tail";
    assert_int_equal(json_parse_i32_array(text, strlen(text), 6, &v, &n, &used, &err), STATUS_OK);
    static const int32_t want[] = {1, -2, INT32_MAX, INT32_MIN, 0, 0};
    assert_int_equal(n, 6);
    assert_memory_equal(v, want, sizeof(want));
    assert_string_equal(text + used, "tail");
    free(v);
    assert_int_equal(json_parse_i32_array(text, strlen(text), 5, &v, &n, &used, &err), STATUS_LIMIT);
    assert_int_equal(json_parse_i32_array("[]", 2, 0, &v, &n, &used, &err), STATUS_OK);
    assert_int_equal(n, 0);
    free(v);
    static const char *const bad[] = {"",
                                      "1",
                                      "[",
                                      "[1",
                                      "[1,",
                                      "[1,]",
                                      "[,1]",
                                      "[1.0]",
                                      "[1e3]",
                                      "[01]",
                                      "[-]",
                                      "[+1]",
                                      "[2147483648]",
                                      "[-2147483649]",
                                      "[99999999999999999999999]",
                                      "[1 2]",
                                      "[null]",
                                      "[\"1\"]",
                                      "[[1]]",
                                      "[1}"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        v = NULL;
        assert_int_equal(json_parse_i32_array(bad[i], strlen(bad[i]), 99, &v, &n, &used, &err),
                         STATUS_INVALID);
        assert_null(v);
    }
}

static void test_i32_round_trip(void **state)
{
    (void)state;
    enum { N = 20000 };
    int32_t *v = malloc(N * sizeof(*v)), *back;
    struct rng r;
    rng_init(&r, 1, 2);
    for (int i = 0; i < N; i++) {
        v[i] = (int32_t)(rng_u32(&r) >> rng_below(&r, 32));
        v[i] = i % 3 ? v[i] : (int32_t)(0u - (uint32_t)v[i]);
    }
    v[0] = INT32_MIN;
    struct buf b = {0};
    json_put_i32_array(&b, v, N);
    size_t n, used;
    struct error err;
    assert_int_equal(json_parse_i32_array(b.data, b.len, N, &back, &n, &used, &err), STATUS_OK);
    assert_int_equal(n, N);
    assert_int_equal(used, b.len);
    assert_memory_equal(v, back, N * sizeof(*v));
    json_t *j; // jansson agrees
    assert_int_equal(json_parse(b.data, b.len, "array", &j, &err), STATUS_OK);
    assert_int_equal(json_array_size(j), N);
    assert_int_equal(json_integer_value(json_array_get(j, 0)), INT32_MIN);
    json_decref(j);
    free(back);
    free(v);
    buf_done(&b);
}

static void test_f32_array(void **state)
{
    (void)state;
    struct buf b = {0};
    const float simple[] = {0.1f, -1.5f, 3.0f, 1e-45f, FLT_MAX, NAN, -INFINITY, 16777216.0f};
    json_put_f32_array(&b, simple, 8);
    assert_string_equal(b.data, "[0.1,-1.5,3,1e-45,3.4028235e+38,null,null,16777216]");
    struct rng r;
    rng_init(&r, 3, 4);
    for (int i = 0; i < 20000; i++) {
        uint32_t u = rng_u32(&r);
        float f;
        memcpy(&f, &u, 4);
        if (!isfinite(f)) {
            continue;
        }
        buf_clear(&b);
        json_put_f32_array(&b, &f, 1);
        assert_true(strtof(b.data + 1, NULL) == f);
    }
    buf_done(&b);
}

static void test_f32_locale(void **state)
{
    (void)state;
    if (!setlocale(LC_NUMERIC, "de_DE.UTF-8") && !setlocale(LC_NUMERIC, "fr_FR.UTF-8")) {
        skip();
    }
    struct buf b = {0};
    const float v[] = {0.25f, 1.5e-30f};
    json_put_f32_array(&b, v, 2);
    setlocale(LC_NUMERIC, "C");
    assert_string_equal(b.data, "[0.25,1.5e-30]");
    buf_done(&b);
}

static void check_string(const char *in, size_t n, const char *want)
{
    struct buf b = {0};
    json_put_string(&b, in, n);
    assert_string_equal(b.data, want);
    json_t *j;
    struct error err;
    if (!memchr(in, 0, n)) {
        assert_int_equal(json_parse(b.data, b.len, "string", &j, &err), STATUS_OK);
        json_decref(j);
    }
    buf_done(&b);
}

static void test_put_string(void **state)
{
    (void)state;
    check_string("", 0, "\"\"");
    check_string("a\"b\\c\n\t\x01\x7f", 9, "\"a\\\"b\\\\c\\n\\t\\u0001\x7f\"");
    check_string("a\0b", 3, "\"a\\u0000b\"");
    check_string("\xc3\xa9\xf0\x9f\x98\x80", 6, "\"\xc3\xa9\xf0\x9f\x98\x80\"");
    check_string("\xff", 1, "\"\xEF\xBF\xBD\"");
    check_string("x\xc3", 2, "\"x\xEF\xBF\xBD\"");                               // cut short
    check_string("\xe2\x82z", 3, "\"\xEF\xBF\xBDz\"");                           // as utf8_repair
    check_string("\xc0\xaf", 2, "\"\xEF\xBF\xBD\xEF\xBF\xBD\"");                 // overlong
    check_string("\xed\xa0\x80", 3, "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\""); // surrogate
    check_string("\xf4\x90\x80\x80", 4,
                 "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\""); // over U+10FFFF
}

// No document is a mistake of whoever made it, and is not blamed on memory.
static void test_text_of_nothing(void **state)
{
    (void)state;
    int pipes[2], status;
    char said[200] = "";
    assert_int_equal(pipe(pipes), 0);
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        signal(SIGABRT, SIG_DFL);
        dup2(pipes[1], 2);
        free(json_text(json_pack("{s:s}", "error", "caf\xC3")));
        _exit(0);
    }
    close(pipes[1]);
    assert_true(read(pipes[0], said, sizeof said - 1) > 0);
    close(pipes[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    assert_non_null(strstr(said, "UTF-8"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse_refuses), cmocka_unit_test(test_parse_depth),
        cmocka_unit_test(test_text),          cmocka_unit_test(test_members),
        cmocka_unit_test(test_i32_array),     cmocka_unit_test(test_i32_round_trip),
        cmocka_unit_test(test_f32_array),     cmocka_unit_test(test_f32_locale),
        cmocka_unit_test(test_put_string),    cmocka_unit_test(test_text_of_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
