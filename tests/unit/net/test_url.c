// net/url.h: what is parsed, what is refused, how segments are encoded.
#include <arpa/inet.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
// cmocka wants the four above first
#include <cmocka.h>

#include "net/url.h"

static void test_parse(void **state)
{
    (void)state;
    static const struct {
        const char *text, *host, *path;
        int port;
        bool tls;
    } good[] = {
        {"http://127.0.0.1:8000", "127.0.0.1", "/", 8000, false},
        {"HTTP://LocalHost/a/b?c=d", "localhost", "/a/b?c=d", 80, false},
        {"https://tasks.example.org/x", "tasks.example.org", "/x", 443, true},
        {"http://[::1]:9/", "::1", "/", 9, false},
        {"http://h?q", "h", "/?q", 80, false},
        {"http://my_task-1/", "my_task-1", "/", 80, false},
    };
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        struct url u;
        struct error err;
        assert_int_equal(url_parse(good[i].text, &u, &err), STATUS_OK);
        assert_string_equal(u.host, good[i].host);
        assert_string_equal(u.path, good[i].path);
        assert_int_equal(u.port, good[i].port);
        assert_int_equal(u.tls, good[i].tls);
    }
}

static void test_parse_refuses(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        "localhost:80",
        "ftp://h/",
        "file:///etc/passwd",
        "gopher://h/",
        "http://",
        "http:///x",
        "http://u@h/",
        "http://u:p@h/",
        "http://h:0/",
        "http://h:65536/",
        "http://h:/",
        "http://h:8x/",
        "http://h/ x",
        "http://h/\r\nX: y",
        "http://h/#f",
        "http://h\\@evil/",
        "http://[::1",
        "http://[zz]/",
        "http://[fe80::1%25eth0]/",
        "http://2852039166/",
        "http://0xA9FEA9FE/",
        "http://0251.0376.0251.0376/",
        "http://169.254.43518/",
        "http://127.1/",
        "http://h%2e/",
        "http://[::1]x/",
        "http://h\xc3\xa9/",
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct url u = {.port = -7};
        struct error err = {0};
        enum status s = url_parse(bad[i], &u, &err);
        assert_true(s == STATUS_INVALID || s == STATUS_UNSUPPORTED);
        assert_int_equal(u.port, -7);
        assert_non_null(strstr(err.text, "url"));
    }
    char text[3000] = "http://h/";
    memset(text + 9, 'a', sizeof(text) - 10);
    struct url u;
    struct error err;
    assert_int_equal(url_parse(text, &u, &err), STATUS_INVALID);
    text[URL_MAX - 1] = 0;
    assert_int_equal(url_parse(text, &u, &err), STATUS_OK);
    memcpy(text, "http://h?", 9); // one more byte: the slash put in front
    assert_int_equal(url_parse(text, &u, &err), STATUS_OK);
    assert_int_equal(strlen(u.path), URL_MAX - 1 - 8 + 1);
}

static void test_check(void **state)
{
    (void)state;
    static const char *const refused[] = {
        "http://169.254.169.254/latest/meta-data/",
        "http://169.254.0.1:80/",
        "http://[fe80::1]/",
        "http://[febf::1]/",
        "http://[fd00:ec2::254]/",
        "http://[::ffff:169.254.169.254]/",
        "http://[::ffff:a9fe:a9fe]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://[2002:a9fe:a9fe::1]/",
        "http://100.100.100.200/",
        "http://192.0.0.192/",
        "http://168.63.129.16/",
        "http://224.0.0.1/",
        "http://[ff02::1]/",
        "http://metadata.google.internal/x",
        "http://METADATA.google.internal./x",
    };
    struct error err;
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        assert_int_equal(url_check(refused[i], &err), STATUS_REFUSED);
    }
    static const char *const allowed[] = {"http://127.0.0.1:1/", "http://[::1]/",        "http://10.0.0.1/",
                                          "https://example.org", "http://169.253.1.1/x", "http://[fec0::1]/",
                                          "http://[fd00::1]/"};
    for (size_t i = 0; i < sizeof(allowed) / sizeof(allowed[0]); i++) {
        assert_int_equal(url_check(allowed[i], &err), STATUS_OK);
    }
}

static void test_loopback(void **state)
{
    (void)state;
    assert_true(url_host_is_loopback("127.0.0.1"));
    assert_true(url_host_is_loopback("127.9.9.9"));
    assert_true(url_host_is_loopback("::1"));
    assert_true(url_host_is_loopback("LOCALHOST"));
    assert_true(url_host_is_loopback("::ffff:127.0.0.1"));
    assert_false(url_host_is_loopback("0.0.0.0"));
    assert_false(url_host_is_loopback("localhost.evil.org"));
    assert_false(url_host_is_loopback("127.0.0.1.evil.org"));
    assert_false(url_host_is_loopback(""));
}

static void test_segments(void **state)
{
    (void)state;
    static const char raw[] = "a/b c?%#\xc3\xa9~-_.";
    struct buf b = {0};
    url_put_segment(&b, raw, sizeof(raw) - 1);
    assert_string_equal(b.data, "a%2Fb%20c%3F%25%23%C3%A9~-_.");
    char *back;
    struct error err;
    assert_int_equal(url_decode(b.data, b.len, false, &back, &err), STATUS_OK);
    assert_string_equal(back, raw);
    free(back);
    buf_clear(&b);
    url_put_segment(&b, "..", 2);
    assert_string_equal(b.data, "%2E%2E");
    buf_done(&b);
    static const char *const bad[] = {"%", "%1", "%zz", "a%0", "%00", "%%41"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(url_decode(bad[i], strlen(bad[i]), false, &back, &err), STATUS_INVALID);
    }
    assert_int_equal(url_decode("a+b%2B", 6, true, &back, &err), STATUS_OK);
    assert_string_equal(back, "a b+");
    free(back);
    assert_int_equal(url_decode("%41", 3, false, &back, &err), STATUS_OK); // an escape that ends the text
    assert_string_equal(back, "A");
    free(back);
}

static void test_join(void **state)
{
    (void)state;
    static const char *const in[][3] = {{"http://h", "x", "http://h/x"},
                                        {"http://h/", "/x", "http://h/x"},
                                        {"http://h/base//", "x/y", "http://h/base/x/y"}};
    for (size_t i = 0; i < 3; i++) {
        char *u = url_join(in[i][0], in[i][1]);
        assert_string_equal(u, in[i][2]);
        free(u);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse),    cmocka_unit_test(test_parse_refuses), cmocka_unit_test(test_check),
        cmocka_unit_test(test_loopback), cmocka_unit_test(test_segments),      cmocka_unit_test(test_join),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
