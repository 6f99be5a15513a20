// Schema tables, the writing half: struct → YAML, and the reference of all keys → Markdown. See config.h.
// Pure functions, any thread.
#include <stdio.h>
#include <string.h>

#include "base/config.h"
#include "base/real.h"

static void put_string(struct buf *out, const char *s)
{
    buf_putc(out, '"');
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            buf_printf(out, "\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            buf_printf(out, "\\x%02x", c);
        else
            buf_putc(out, (char)c);
    }
    buf_putc(out, '"');
}

// Shortest decimal that reads back to the same double.
static void put_real(struct buf *out, double v)
{
    char text[40];
    snprintf(text, sizeof(text), "%.*g", real_digits(v), v);
    for (char *p = text; *p; p++) // a decimal comma of the process's locale
        if (*p == ',')
            *p = '.';
    buf_puts(out, text);
}

static void put_value(struct buf *out, const struct config_field *f, const char *base)
{
    const char *p = base + f->offset;
    switch (f->type) {
    case CONFIG_INT:
        buf_printf(out, "%lld", (long long)*(const int64_t *)p);
        break;
    case CONFIG_U64:
        buf_printf(out, "%llu", (unsigned long long)*(const uint64_t *)p);
        break;
    case CONFIG_REAL:
        put_real(out, *(const double *)p);
        break;
    case CONFIG_BOOL:
        buf_puts(out, *(const bool *)p ? "true" : "false");
        break;
    case CONFIG_STRING:
        put_string(out, p);
        break;
    case CONFIG_ENUM:
        buf_puts(out, f->names[*(const int64_t *)p]);
        break;
    case CONFIG_STRINGS:
        buf_putc(out, '[');
        for (int64_t i = 0; i < *(const int64_t *)(base + f->count_offset); i++) {
            buf_puts(out, i ? ", " : "");
            put_string(out, p + f->size * (size_t)i);
        }
        buf_putc(out, ']');
        break;
    case CONFIG_LIST:
        break;
    }
}

static void put_indent(struct buf *out, int depth)
{
    for (int i = 0; i < depth; i++)
        buf_puts(out, "  ");
}

// Opens the sections of `path` that `before` (the path of the row above) had not opened; returns the row's
// depth.
static int open_sections(struct buf *out, const char *before, const char *path, int depth)
{
    const char *part = path, *dot;
    bool same = true;
    while ((dot = strchr(part, '.'))) {
        size_t n = (size_t)(dot - path) + 1;
        same = same && strncmp(before, path, n) == 0;
        if (!same) {
            put_indent(out, depth);
            buf_printf(out, "%.*s:\n", (int)(dot - part), part);
        }
        depth++;
        part = dot + 1;
    }
    return depth;
}

static void print_level(const struct config_schema *s, const char *base, int depth, struct buf *out)
{
    const char *before = "";
    for (int i = 0; i < s->n_fields; i++) {
        const struct config_field *f = &s->fields[i];
        int d = open_sections(out, before, f->path, depth);
        const char *dot = strrchr(f->path, '.');
        before = f->path;
        put_indent(out, d);
        buf_printf(out, "%s:", dot ? dot + 1 : f->path);
        if (f->type != CONFIG_LIST) {
            buf_putc(out, ' ');
            put_value(out, f, base);
            buf_putc(out, '\n');
            continue;
        }
        int64_t n = *(const int64_t *)(base + f->count_offset);
        buf_puts(out, n ? "\n" : " []\n");
        for (int64_t k = 0; k < n; k++) {
            size_t start = out->len;
            print_level(f->item, base + f->offset + f->size * (size_t)k, d + 2, out);
            out->data[start + 2 * (size_t)d + 2] = '-'; // "    name:" becomes "  - name:"
        }
    }
}

void config_print(const struct config_schema *s, const void *c, struct buf *out)
{
    print_level(s, c, 0, out);
}

// ---- documentation ---------------------------------------------------------------------------------------

static void put_bound(struct buf *out, double v)
{
    if (v >= 9e15)
        buf_puts(out, "2^63");
    else
        put_real(out, v);
}

static void put_range(struct buf *out, const struct config_field *f)
{
    if (f->type == CONFIG_U64) {
        buf_puts(out, "0 … 2^64 - 1");
        return;
    }
    buf_puts(out, f->flags & CONFIG_ABOVE_MIN ? "above " : "");
    put_bound(out, f->min);
    buf_puts(out, f->flags & CONFIG_BELOW_MAX ? " … below " : " … ");
    put_bound(out, f->max);
}

static void put_type(struct buf *out, const struct config_field *f)
{
    switch (f->type) {
    case CONFIG_INT:
    case CONFIG_U64:
        buf_puts(out, "whole number, ");
        put_range(out, f);
        break;
    case CONFIG_REAL:
        buf_puts(out, "number, ");
        put_range(out, f);
        break;
    case CONFIG_BOOL:
        buf_puts(out, "true, false");
        break;
    case CONFIG_STRING:
    case CONFIG_ENUM:
        if (!f->names)
            buf_puts(out, f->flags & CONFIG_PATH ? "path" : f->flags & CONFIG_WORD ? "word" : "text");
        for (int i = 0; f->names && f->names[i]; i++)
            buf_printf(out, "%s`%s`", i ? ", " : "", f->names[i][0] ? f->names[i] : "\"\"");
        break;
    case CONFIG_STRINGS:
        buf_printf(out, "list of texts, at most %d", f->max_items);
        break;
    case CONFIG_LIST:
        buf_printf(out, "list, at most %d", f->max_items);
        break;
    }
}

static void put_default(struct buf *out, const struct config_field *f)
{
    if (f->type == CONFIG_STRINGS || f->type == CONFIG_LIST)
        buf_puts(out, "`[]`");
    else if (f->def[0] == '(')
        buf_puts(out, f->def);
    else
        buf_printf(out, "`%s`", f->def[0] ? f->def : "\"\"");
}

static void docs_level(const struct config_schema *s, const char *prefix, struct buf *out)
{
    const char *before = NULL;
    size_t n_before = 0;
    for (int i = 0; i < s->n_fields; i++) {
        const struct config_field *f = &s->fields[i];
        if (f->type == CONFIG_LIST)
            continue;
        const char *dot = strrchr(f->path, '.');
        size_t n = dot ? (size_t)(dot - f->path) : 0;
        if (!before || n != n_before || strncmp(before, f->path, n) != 0) {
            const char *join = *prefix && n ? "." : "";
            if (*prefix || n)
                buf_printf(out, "\n## `%s%s%.*s`\n", prefix, join, (int)n, f->path);
            buf_puts(out, "\n| key | value | default | meaning |\n|---|---|---|---|\n");
            before = f->path;
            n_before = n;
        }
        buf_printf(out, "| `%s` | ", dot ? dot + 1 : f->path);
        put_type(out, f);
        buf_puts(out, " | ");
        put_default(out, f);
        buf_printf(out, " | %s |\n", f->doc);
    }
    for (int i = 0; i < s->n_fields; i++) {
        const struct config_field *f = &s->fields[i];
        if (f->type != CONFIG_LIST)
            continue;
        char name[128];
        snprintf(name, sizeof(name), "%s[]", f->path);
        buf_printf(out, "\n# `%s`\n\n%s\n", name, f->doc);
        docs_level(f->item, name, out);
    }
}

void config_print_docs(const struct config_schema *s, struct buf *out)
{
    docs_level(s, "", out);
}
