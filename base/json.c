// JSON for everybody: jansson reads and writes documents, our own code reads and writes long arrays of
// numbers and strings of uncertain encoding. Pure functions; any thread.
//
//  1. No document deeper than JSON_MAX_DEPTH reaches jansson, whose parser recurses.
//  2. Nothing here depends on the locale: a comma as decimal point never gets into or out of a document.
#include "base/json.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/utf8.h"

#define JSON_MAX_DEPTH 64

// The deepest nesting of brackets outside strings; broken documents are counted too, the parser refuses them
// later.
static bool json_too_deep(const char *data, size_t n, size_t *ret_at)
{
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < n; i++) {
        char c = data[i];
        if (in_string) {
            if (c == '\\') {
                i++;
            } else if (c == '"') {
                in_string = false;
            }
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > JSON_MAX_DEPTH) {
                *ret_at = i;
                return true;
            }
        } else if (c == '}' || c == ']') {
            depth--;
        }
    }
    return false;
}

enum status json_parse(const char *data, size_t n, const char *what, json_t **ret, struct error *err)
{
    size_t at;
    if (json_too_deep(data, n, &at)) {
        return error_set(err, STATUS_LIMIT, "%s: JSON nested deeper than %d at byte %zu: flatten it", what,
                         JSON_MAX_DEPTH, at);
    }
    json_error_t je;
    json_t *j = json_loadb(data, n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &je);
    if (!j) {
        return error_set(err, STATUS_INVALID, "%s:%d:%d: not valid JSON: %s", what, je.line, je.column,
                         je.text);
    }
    *ret = j;
    return STATUS_OK;
}

enum status json_parse_file(const char *path, size_t max_bytes, json_t **ret, struct error *err)
{
    char *data;
    size_t n;
    enum status s = file_read(path, max_bytes, &data, &n, err);
    if (s != STATUS_OK) {
        return s;
    }
    s = json_parse(data, n, path, ret, err);
    free(data);
    return s;
}

char *json_text(const json_t *j)
{
    if (!j) { // what json_pack returns for a text that is no UTF-8
        fprintf(stderr, "json_text: there is no document: a text that went into it is not UTF-8\n");
        abort();
    }
    char *text = json_dumps(j, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
    if (!text) { // a cycle cannot be built through our parsers, so this is memory
        fprintf(stderr, "json_text: out of memory\n");
        abort();
    }
    return text;
}

// Looks a member up. *ret_member is NULL where the default applies: missing and not required, or null and not
// required.
static enum status json_member(const json_t *obj, const char *key, bool required, const char *what,
                               const json_t **ret_member, struct error *err)
{
    if (!json_is_object(obj)) {
        return error_set(err, STATUS_TYPE, "%s: expected an object (with member \"%s\")", what, key);
    }
    const json_t *m = json_object_get(obj, key);
    if (!m && required) {
        return error_set(err, STATUS_NOTFOUND, "%s: member \"%s\" is missing", what, key);
    }
    *ret_member = m && json_is_null(m) && !required ? NULL : m;
    return STATUS_OK;
}

static const char *json_type_name(const json_t *j)
{
    switch (json_typeof(j)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a real number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    default:
        return "null";
    }
}

static enum status json_wrong_type(const json_t *m, const char *key, const char *want, const char *what,
                                   struct error *err)
{
    return error_set(err, STATUS_TYPE, "%s: member \"%s\" must be %s, not %s", what, key, want,
                     json_type_name(m));
}

enum status json_get_string(const json_t *obj, const char *key, bool required, const char *def,
                            const char *what, const char **ret, struct error *err)
{
    const json_t *m;
    enum status s = json_member(obj, key, required, what, &m, err);
    if (s != STATUS_OK) {
        return s;
    }
    if (m && !json_is_string(m)) {
        return json_wrong_type(m, key, "a string", what, err);
    }
    *ret = m ? json_string_value(m) : def;
    return STATUS_OK;
}

enum status json_get_int(const json_t *obj, const char *key, bool required, int64_t def, int64_t min,
                         int64_t max, const char *what, int64_t *ret, struct error *err)
{
    const json_t *m;
    enum status s = json_member(obj, key, required, what, &m, err);
    if (s != STATUS_OK) {
        return s;
    }
    if (!m) {
        *ret = def;
        return STATUS_OK;
    }
    if (!json_is_integer(m)) {
        return json_wrong_type(m, key, "an integer", what, err);
    }
    int64_t v = json_integer_value(m);
    if (v < min || v > max) {
        return error_set(err, STATUS_RANGE,
                         "%s: member \"%s\" = %" PRId64 " is outside [%" PRId64 ", %" PRId64 "]", what, key,
                         v, min, max);
    }
    *ret = v;
    return STATUS_OK;
}

enum status json_get_real(const json_t *obj, const char *key, bool required, double def, double min,
                          double max, const char *what, double *ret, struct error *err)
{
    const json_t *m;
    enum status s = json_member(obj, key, required, what, &m, err);
    if (s != STATUS_OK) {
        return s;
    }
    if (!m) {
        *ret = def;
        return STATUS_OK;
    }
    if (!json_is_number(m)) {
        return json_wrong_type(m, key, "a number", what, err);
    }
    double v = json_number_value(m);
    if (!isfinite(v) || v < min || v > max) {
        return error_set(err, STATUS_RANGE, "%s: member \"%s\" = %g is outside [%g, %g]", what, key, v, min,
                         max);
    }
    *ret = v;
    return STATUS_OK;
}

enum status json_get_bool(const json_t *obj, const char *key, bool required, bool def, const char *what,
                          bool *ret, struct error *err)
{
    const json_t *m;
    enum status s = json_member(obj, key, required, what, &m, err);
    if (s != STATUS_OK) {
        return s;
    }
    if (m && !json_is_boolean(m)) {
        return json_wrong_type(m, key, "true or false", what, err);
    }
    *ret = m ? json_is_true(m) : def;
    return STATUS_OK;
}

// ---- arrays of numbers ----

static size_t json_skip_space(const char *d, size_t n, size_t i)
{
    while (i < n && (d[i] == ' ' || d[i] == '\n' || d[i] == '\r' || d[i] == '\t')) {
        i++;
    }
    return i;
}

// One JSON integer at d[i]; returns the index after it, or 0 with *ret_why set (a number never ends at index
// 0).
static size_t json_i32(const char *d, size_t n, size_t i, int32_t *ret, const char **ret_why)
{
    bool negative = i < n && d[i] == '-';
    size_t digits = i += negative;
    int64_t v = 0;
    while (i < n && d[i] >= '0' && d[i] <= '9') {
        v = v * 10 + (d[i++] - '0');
        if (v > (int64_t)INT32_MAX + 1) {
            *ret_why = "does not fit 32 bits";
            return 0;
        }
    }
    v = negative ? -v : v;
    if (i == digits || (i < n && (d[i] == '.' || d[i] == 'e' || d[i] == 'E'))) {
        *ret_why = "is not an integer";
        return 0;
    }
    if (i - digits > 1 && d[digits] == '0') {
        *ret_why = "has a leading zero";
        return 0;
    }
    if (v > INT32_MAX) {
        *ret_why = "does not fit 32 bits";
        return 0;
    }
    *ret = (int32_t)v;
    return i;
}

enum status json_parse_i32_array(const char *data, size_t n, size_t max_n, int32_t **ret, size_t *ret_n,
                                 size_t *ret_consumed, struct error *err)
{
    size_t i = json_skip_space(data, n, 0), len = 0, cap = 64;
    if (i == n || data[i] != '[') {
        return error_set(err, STATUS_INVALID, "byte %zu: expected '[' of an array of integers", i);
    }
    int32_t *v = malloc(cap * sizeof(*v));
    if (!v) {
        return error_set(err, STATUS_NOMEM, "array of integers: out of memory");
    }
    enum status s = STATUS_OK;
    i = json_skip_space(data, n, i + 1);
    bool more = !(i < n && data[i] == ']');
    while (more) {
        const char *why;
        if (len == max_n) {
            s = error_set(err, STATUS_LIMIT, "array of integers has more than %zu elements", max_n);
            goto out;
        }
        if (len == cap) {
            int32_t *grown = realloc(v, (cap *= 2) * sizeof(*v));
            if (!grown) {
                s = error_set(err, STATUS_NOMEM, "array of %zu integers: out of memory", cap);
                goto out;
            }
            v = grown;
        }
        size_t end = json_i32(data, n, i, &v[len], &why);
        if (!end) {
            s = error_set(err, STATUS_INVALID, "byte %zu: element %zu of the array %s", i, len, why);
            goto out;
        }
        len++;
        i = json_skip_space(data, n, end);
        more = i < n && data[i] == ',';
        if (more) {
            i = json_skip_space(data, n, i + 1);
        }
    }
    if (i == n || data[i] != ']') {
        s = error_set(err, STATUS_INVALID, "byte %zu: expected ',' or ']' after element %zu of the array", i,
                      len);
        goto out;
    }
    *ret = v;
    *ret_n = len;
    *ret_consumed = i + 1;
    return STATUS_OK;
out:
    free(v);
    return s;
}

void json_put_i32_array(struct buf *b, const int32_t *v, size_t n)
{
    buf_reserve(b, n * 12 + 2);
    buf_putc(b, '[');
    for (size_t i = 0; i < n; i++) {
        char tmp[12];
        char *p = tmp + sizeof(tmp);
        uint32_t u = v[i] < 0 ? 0u - (uint32_t)v[i] : (uint32_t)v[i];
        do {
            *--p = (char)('0' + u % 10);
            u /= 10;
        } while (u);
        if (v[i] < 0) {
            *--p = '-';
        }
        if (i) {
            *--p = ',';
        }
        buf_append(b, p, (size_t)(tmp + sizeof(tmp) - p));
    }
    buf_putc(b, ']');
}

// Six digits decide whether a shorter text exists: half an ulp (6e-8 relative) is far below half a unit of
// the sixth digit, so rounding to six digits finds it, and %g drops its zeros. Subnormals have fewer bits:
// start from one digit.
static void json_put_f32(struct buf *b, float v)
{
    if (!isfinite(v)) {
        buf_puts(b, "null"); // JSON has no other word for it
        return;
    }
    char text[32];
    for (int digits = fabsf(v) < FLT_MIN ? 1 : 6; digits <= 9; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, (double)v);
        if (strtof(text, NULL) == v) {
            break;
        }
    }
    char *odd = text + strspn(text, "0123456789+-e");
    if (*odd) {
        *odd = '.'; // whatever the locale uses instead
    }
    buf_puts(b, text);
}

void json_put_f32_array(struct buf *b, const float *v, size_t n)
{
    buf_putc(b, '[');
    for (size_t i = 0; i < n; i++) {
        if (i) {
            buf_putc(b, ',');
        }
        json_put_f32(b, v[i]);
    }
    buf_putc(b, ']');
}

// ---- strings ----

static void json_put_escape(struct buf *b, unsigned char c)
{
    static const char two[] = "\"\"\\\\\bb\ff\nn\rr\tt"; // pairs: character, letter after the backslash
    for (size_t i = 0; i + 1 < sizeof(two); i += 2) {
        if ((unsigned char)two[i] == c) {
            buf_putc(b, '\\');
            buf_putc(b, two[i + 1]);
            return;
        }
    }
    buf_printf(b, "\\u%04x", c);
}

void json_put_string(struct buf *b, const char *s, size_t n)
{
    buf_putc(b, '"');
    size_t plain = 0; // start of the run that goes out unchanged
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        size_t len = utf8_decode(s + i, n - i, &cp);
        if (len && cp >= 0x20 && cp != '"' && cp != '\\') {
            i += len;
            continue;
        }
        if (i > plain) {
            buf_append(b, s + plain, i - plain);
        }
        if (len) {
            json_put_escape(b, (unsigned char)cp);
            i += len;
        } else {
            bool incomplete;
            buf_puts(b, "\xEF\xBF\xBD");
            i += utf8_bad_length(s + i, n - i, &incomplete);
        }
        plain = i;
    }
    if (n > plain) {
        buf_append(b, s + plain, n - plain);
    }
    buf_putc(b, '"');
}
