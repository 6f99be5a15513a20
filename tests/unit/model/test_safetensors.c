// The safetensors reader: a good file, and every way in which one can be wrong.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
// cmocka wants the four above first
#include <cmocka.h>

#include "base/mem.h"
#include "model/safetensors.h"

// header length + header + data_bytes of zeros, in a block of exactly that size (so that ASan sees overreads).
static uint8_t *file_make(const char *header, size_t data_bytes, size_t *ret_len)
{
    size_t n = strlen(header);
    uint8_t *p = mem_must(8 + n + data_bytes, 1);
    for (int i = 0; i < 8; i++)
        p[i] = (uint8_t)((uint64_t)n >> 8 * i);
    memcpy(p + 8, header, n);
    *ret_len = 8 + n + data_bytes;
    return p;
}

static enum status parse(const char *header, size_t data_bytes, struct error *err)
{
    struct safetensors s = {0};
    size_t n;
    uint8_t *p = file_make(header, data_bytes, &n);
    enum status rc = safetensors_parse(p, n, "here", &s, err);
    safetensors_close(&s);
    free(p);
    return rc;
}

#define A "\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}"

static void test_good(void **state)
{
    struct safetensors s;
    struct error err;
    size_t n;
    (void)state;
    uint8_t *p = file_make("{\"__metadata__\":{\"version\":\"7\"}," A
                           ",\"c\":{\"dtype\":\"F8_E4M3\",\"shape\":[],\"data_offsets\":[30,31]}"
                           ",\"b\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[24,30]}"
                           ",\"empty\":{\"dtype\":\"F32\",\"shape\":[0,4],\"data_offsets\":[24,24]}}   ",
                           31, &n);
    assert_int_equal(safetensors_parse(p, n, "here", &s, &err), STATUS_OK);
    assert_int_equal(s.n, 4);
    const struct safetensor *a = safetensors_find(&s, "a"), *b = safetensors_find(&s, "b");
    assert_true(a && a->dtype == DT_F32 && a->n_dims == 2 && a->dims[0] == 2 && a->dims[1] == 3 &&
                a->bytes == 24);
    assert_true(b && b->dtype == DT_BF16 && b->data == a->data + 24 && b->data + 7 == p + n);
    assert_null(safetensors_find(&s, "d"));
    assert_string_equal(safetensors_metadata(&s, "version"), "7");
    assert_null(safetensors_metadata(&s, "dtype"));
    safetensors_close(&s);
    // Cut anywhere, it is refused.
    for (size_t cut = 0; cut < n; cut++) {
        uint8_t *q = mem_must(cut ? cut : 1, 1);
        memcpy(q, p, cut);
        assert_int_not_equal(safetensors_parse(q, cut, "here", &s, &err), STATUS_OK);
        assert_non_null(strstr(err.text, "here"));
        free(q);
    }
    free(p);
}

static void test_bad(void **state)
{
    static const struct {
        const char *header;
        size_t data;
        const char *says;
    } bad[] = {
        {"{" A "}", 25, "after the last"},
        {"{" A "}", 23, "truncated"},
        {"{" A "," A "}", 24, "here"},
        {"[]", 0, "not a JSON object"},
        {"{\"a\":1}", 0, "want exactly"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[6]}}", 24, "want exactly"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":[0,24],\"x\":1}}", 24, "want exactly"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":6,\"data_offsets\":[0,24]}}", 24, "want exactly"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":[0,24,24]}}", 24, "want exactly"},
        {"{\"a\":{\"dtype\":\"Q4\",\"shape\":[6],\"data_offsets\":[0,24]}}", 24, "Q4"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[7],\"data_offsets\":[0,24]}}", 24, "24 bytes for a shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-6],\"data_offsets\":[0,24]}}", 24, "impossible shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[6.0],\"data_offsets\":[0,24]}}", 24, "impossible shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,0]}}", 0,
         "impossible shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,6],\"data_offsets\":[0,24]}}", 24, "dimensions"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":[24,0]}}", 24, "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":[-24,0]}}", 24, "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":[0,\"24\"]}}", 24, "data_offsets"},
        {"{" A ",\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[20,24]}}", 24, "overlap"},
        {"{" A ",\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[28,32]}}", 32, "hole"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":[4,28]}}", 28, "hole"},
        {"{\"__metadata__\":7," A "}", 24, "__metadata__"},
        {"{\"__metadata__\":{\"v\":1}," A "}", 24, "__metadata__"},
        {"{\"a\":", 24, "here"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct error err = {0};
        if (parse(bad[i].header, bad[i].data, &err) == STATUS_OK || !strstr(err.text, bad[i].says))
            fail_msg("%s: \"%s\"", bad[i].header, err.text);
    }
}

static void test_header_length(void **state)
{
    struct safetensors s;
    struct error err;
    uint8_t p[16] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, '{', '}'};
    (void)state;
    assert_int_equal(safetensors_parse(p, sizeof(p), "here", &s, &err), STATUS_CORRUPT);
    memset(p, 0, 8);
    p[0] = 9;
    assert_int_equal(safetensors_parse(p, sizeof(p), "here", &s, &err), STATUS_CORRUPT);
    p[0] = 2;
    assert_int_equal(safetensors_parse(p, 10, "here", &s, &err), STATUS_OK);
    assert_int_equal(s.n, 0);
    assert_null(safetensors_find(&s, "a"));
    safetensors_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_good), cmocka_unit_test(test_bad),
                                       cmocka_unit_test(test_header_length)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
