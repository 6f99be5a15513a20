// Schema tables, one value at a time: text → number, flag, name, text or path, with every complaint carrying its place.
// See config_value.h. Pure functions on caller-owned memory, any thread.
#include "base/config_value.h"

#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *config_value_where(const struct yaml_node *n, char *buf, size_t size)
{
    if (n->line)
        snprintf(buf, size, "%s:%d:%d: ", n->file, n->line, n->column);
    else
        snprintf(buf, size, "override '%.200s': ", n->file);
    return buf;
}

enum status config_value_fail(const struct config_apply_state *a, enum status s, const struct yaml_node *n,
                              const char *path, const char *what)
{
    char where[512];
    return error_set(a->err, s, "%s%s: %s", config_value_where(n, where, sizeof(where)), path, what);
}

// ---- scalars ---------------------------------------------------------------------------------------------

static bool parse_real(const char *text, double *ret)
{
    if (strspn(text, "0123456789+-.eE") != strlen(text) || !*text)
        return false; // keeps out hex, inf, nan and blanks
    locale_t c_locale =
        newlocale(LC_ALL_MASK, "C", (locale_t)0); // a decimal point whatever the process speaks
    if (!c_locale)
        return false;
    char *end;
    *ret = strtod_l(text, &end, c_locale);
    freelocale(c_locale);
    return *end == 0 && isfinite(*ret);
}

bool config_value_int(const char *text, int64_t *ret)
{
    const char *digits = text + (*text == '-' || *text == '+');
    if (!*digits || strspn(digits, "0123456789") != strlen(digits))
        return false;
    errno = 0;
    char *end;
    *ret = strtoll(text, &end, 10);
    return errno == 0;
}

static bool parse_u64(const char *text, uint64_t *ret)
{
    if (!*text || strspn(text, "0123456789") != strlen(text))
        return false;
    errno = 0;
    *ret = strtoull(text, NULL, 10);
    return errno == 0;
}

static int name_index(const char *const *names, const char *text)
{
    for (int i = 0; names[i]; i++)
        if (strcmp(names[i], text) == 0)
            return i;
    return -1;
}

static enum status bad_name(const struct config_apply_state *a, const struct config_field *f,
                            const char *shown, const struct yaml_node *n)
{
    struct buf b = {0};
    buf_printf(&b, "'%.64s' is not one of", n->text);
    for (int i = 0; f->names[i]; i++)
        buf_printf(&b, "%s %s", i ? "," : "", f->names[i][0] ? f->names[i] : "\"\"");
    enum status rc = config_value_fail(a, STATUS_RANGE, n, shown, b.data);
    buf_done(&b);
    return rc;
}

static bool is_word(const char *s)
{
    static const char tail[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
    return *s == 0 || (strchr(tail, *s) < tail + 52 && strspn(s, tail) == strlen(s));
}

// Copies n's text into dst[size], zero-padded; makes relative paths absolute.
static enum status store_string(const struct config_apply_state *a, const struct config_field *f, bool path,
                                const char *shown, const struct yaml_node *n, char *dst)
{
    const char *text = n->text;
    char joined[8192];
    if (path && *text && *text != '/') {
        if (snprintf(joined, sizeof(joined), "%s/%s", a->folder, text) >= (int)sizeof(joined))
            return config_value_fail(a, STATUS_LIMIT, n, shown, "path too long");
        text = joined;
    }
    char what[96];
    snprintf(what, sizeof(what), "longer than %zu bytes", f->size - 1);
    if (strlen(text) >= f->size)
        return config_value_fail(a, STATUS_LIMIT, n, shown, what);
    memset(dst, 0, f->size);
    memcpy(dst, text, strlen(text));
    return STATUS_OK;
}

static enum status out_of_range(const struct config_apply_state *a, const struct config_field *f,
                                const char *shown, const struct yaml_node *n)
{
    char what[200];
    snprintf(what, sizeof(what), "%.40s is out of range: %s %.15g and %s %.15g", n->text,
             f->flags & CONFIG_ABOVE_MIN ? "above" : "at least", f->min,
             f->flags & CONFIG_BELOW_MAX ? "below" : "at most", f->max);
    return config_value_fail(a, STATUS_RANGE, n, shown, what);
}

static enum status store_number(const struct config_apply_state *a, const struct config_field *f,
                                const char *shown, const struct yaml_node *n, void *dst)
{
    double d = 0;
    int64_t i = 0;
    uint64_t u = 0;
    bool ok = !n->quoted;
    if (f->type == CONFIG_INT) {
        ok = ok && config_value_int(n->text, &i);
        d = (double)i;
    } else if (f->type == CONFIG_U64) {
        ok = ok && parse_u64(n->text, &u);
        d = (double)u;
    } else {
        ok = ok && parse_real(n->text, &d);
    }
    if (!ok) {
        char what[160];
        snprintf(what, sizeof(what), "'%.64s' is not %s", n->text,
                 f->type == CONFIG_REAL ? "a number" : "a whole number");
        return config_value_fail(a, STATUS_TYPE, n, shown, what);
    }
    if (d < f->min || d > f->max || (d == f->min && (f->flags & CONFIG_ABOVE_MIN)) ||
        (d == f->max && (f->flags & CONFIG_BELOW_MAX)))
        return out_of_range(a, f, shown, n);
    if (f->type == CONFIG_INT)
        *(int64_t *)dst = i;
    else if (f->type == CONFIG_U64)
        *(uint64_t *)dst = u;
    else
        *(double *)dst = d == 0 ? 0 : d; // no -0: equal configurations are equal bytes
    return STATUS_OK;
}

enum status config_value_scalar(const struct config_apply_state *a, const struct config_field *f,
                                const char *shown, const struct yaml_node *n, void *dst)
{
    if (n->kind != YAML_SCALAR)
        return config_value_fail(a, STATUS_TYPE, n, shown, "one value expected, not a list or a map");
    if (!n->quoted && (n->text[0] == 0 || strcmp(n->text, "~") == 0 || strcmp(n->text, "null") == 0))
        return config_value_fail(a, STATUS_TYPE, n, shown, "no value given (an empty text is written \"\")");
    switch (f->type) {
    case CONFIG_BOOL:
        if (n->quoted || (strcmp(n->text, "true") != 0 && strcmp(n->text, "false") != 0))
            return config_value_fail(a, STATUS_TYPE, n, shown, "true or false expected");
        *(bool *)dst = n->text[0] == 't';
        return STATUS_OK;
    case CONFIG_STRING: {
        if (f->names && name_index(f->names, n->text) < 0)
            return bad_name(a, f, shown, n);
        if ((f->flags & CONFIG_WORD) && !is_word(n->text))
            return config_value_fail(a, STATUS_INVALID, n, shown,
                                     "letters, digits, - and _ only, starting with a letter");
        bool bytes = (f->flags & CONFIG_OR_BYTES) && strcmp(n->text, "bytes") == 0;
        return store_string(a, f, (f->flags & CONFIG_PATH) && !bytes, shown, n, dst);
    }
    case CONFIG_ENUM: {
        int k = name_index(f->names, n->text);
        if (k < 0)
            return bad_name(a, f, shown, n);
        *(int64_t *)dst = k;
        return STATUS_OK;
    }
    default:
        return store_number(a, f, shown, n, dst);
    }
}

// ---- lists of texts --------------------------------------------------------------------------------------

enum status config_value_strings(const struct config_apply_state *a, const struct config_field *f,
                                 const char *shown, const struct yaml_node *n, char *base)
{
    if (n->kind != YAML_LIST)
        return config_value_fail(a, STATUS_TYPE, n, shown, "a list expected, e.g. [one, two]");
    if (n->n > f->max_items)
        return config_value_fail(a, STATUS_LIMIT, n, shown, "too many items");
    char *dst = base + f->offset;
    memset(dst, 0, f->size * (size_t)f->max_items);
    int i = 0;
    for (const struct yaml_node *item = n->child; item; item = item->next, i++) {
        if (item->kind != YAML_SCALAR)
            return config_value_fail(a, STATUS_TYPE, item, shown, "the items are texts");
        bool path = (f->flags & CONFIG_PROGRAM) && i == 0 && strchr(item->text, '/');
        enum status rc = store_string(a, f, path, shown, item, dst + f->size * (size_t)i);
        if (rc != STATUS_OK)
            return rc;
    }
    *(int64_t *)(base + f->count_offset) = i;
    return STATUS_OK;
}
