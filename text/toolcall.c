// toolcall: takes an assistant's completion apart. See toolcall.h for the formats.
//
// Pure functions, any thread. A call that does not parse stays in the content, byte for byte, so that what
// the policy said is still there to be read and judged.
#include "text/toolcall.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/utf8.h"

struct markers {
    const char *open, *close;
};

static const char *find(const char *s, size_t n, const char *what)
{
    return memmem(s, n, what, strlen(what));
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

static void skip_newlines(const char *text, size_t *at, size_t *n)
{
    while (*n > 0 && text[*at] == '\n') {
        ++*at;
        --*n;
    }
}

static void drop_newlines(const char *text, size_t at, size_t *n)
{
    while (*n > 0 && text[at + *n - 1] == '\n')
        --*n;
}

size_t toolcall_split_think(const char *text, size_t n, struct toolcall_span *ret_think)
{
    static const char open[] = "<think>", close[] = "</think>";
    *ret_think = (struct toolcall_span){0, 0};
    size_t start = 0;
    while (start < n && (text[start] == '\n' || text[start] == ' '))
        start++;
    bool opened = n - start >= sizeof open - 1 && memcmp(text + start, open, sizeof open - 1) == 0;
    size_t from = opened ? start + sizeof open - 1 : 0;
    const char *end = find(text + from, n - from, close);
    if (!end && !opened)
        return 0;
    size_t stop = end ? (size_t)(end - text) : n; // thinking that was cut off is all thinking
    struct toolcall_span think = {from, stop - from};
    skip_newlines(text, &think.at, &think.n);
    drop_newlines(text, think.at, &think.n);
    if (think.n > 0)
        *ret_think = think;
    size_t rest = end ? stop + sizeof close - 1 : n, left = n - rest;
    skip_newlines(text, &rest, &left);
    return rest;
}

static void __attribute__((format(printf, 2, 3))) complain(struct toolcall_parsed *p, const char *fmt, ...)
{
    if (p->malformed)
        return;
    p->malformed = true;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(p->reason, sizeof p->reason, fmt, ap);
    va_end(ap);
    utf8_mend(p->reason); // the cut may have split a character; the reason goes into JSON
}

// The function object of a tool, whether wrapped as {type, function} or bare; NULL when there is none of that
// name.
static const json_t *tool_function(const json_t *tools, size_t i)
{
    const json_t *tool = json_array_get(tools, i);
    const json_t *f = json_object_get(tool, "function");
    return json_is_object(f) ? f : tool;
}

static const json_t *tool_by_name(const json_t *tools, const char *name)
{
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *f = tool_function(tools, i);
        const char *n = json_string_value(json_object_get(f, "name"));
        if (n && strcmp(n, name) == 0)
            return f;
    }
    return NULL;
}

// Consumes args.
static void add_call(struct toolcall_parsed *p, json_t *calls, const char *id_prefix, const char *name,
                     json_t *args)
{
    char *text = json_text(args);
    char *id = mem_printf("call_%s_%d", id_prefix, p->n_calls++);
    json_array_append_new(calls, json_pack("{s:s, s:s, s:{s:s, s:s}}", "id", id, "type", "function",
                                           "function", "name", name, "arguments", text));
    free(id);
    free(text);
    json_decref(args);
}

static bool parse_hermes(struct toolcall_parsed *p, json_t *calls, const char *id_prefix, const char *s,
                         size_t n)
{
    struct error err;
    json_t *doc = NULL;
    if (json_parse(s, n, "tool call", &doc, &err)) {
        complain(p, "%.140s", err.text);
        return false;
    }
    const char *name = json_string_value(json_object_get(doc, "name"));
    const json_t *args = json_object_get(doc, "arguments");
    json_t *copy = NULL;
    if (!name || !*name)
        complain(p, "tool call: \"name\" must be a string");
    else if (!args)
        copy = json_object();
    else if (json_is_object(args))
        copy = json_deep_copy(args);
    else if (!json_is_string(args) ||
             json_parse(json_string_value(args), json_string_length(args), "tool call: arguments", &copy,
                        &err) ||
             !json_is_object(copy))
        complain(p, "tool call: \"arguments\" must be an object");
    bool ok = name && *name && json_is_object(copy);
    if (ok)
        add_call(p, calls, id_prefix, name, json_incref(copy));
    json_decref(copy);
    json_decref(doc);
    return ok;
}

// The text between an opening tag at *s and its close; moves *s, *n behind it. False when *s does not begin
// with it.
static bool take_tag(const char **s, size_t *n, struct markers tag, const char **ret, size_t *ret_n)
{
    while (*n > 0 && is_blank(**s)) {
        ++*s;
        --*n;
    }
    size_t len = strlen(tag.open);
    if (*n < len || memcmp(*s, tag.open, len) != 0)
        return false;
    const char *end = find(*s + len, *n - len, tag.close);
    if (!end)
        return false;
    *ret = *s + len;
    *ret_n = (size_t)(end - *ret);
    const char *next = end + strlen(tag.close);
    *n -= (size_t)(next - *s);
    *s = next;
    return true;
}

// Raw text where the schema says string, or where it is not JSON; the JSON value otherwise.
static json_t *glm_value(const json_t *function, const char *key, const char *s, size_t n)
{
    const json_t *schema =
        json_object_get(json_object_get(json_object_get(function, "parameters"), "properties"), key);
    const char *type = json_string_value(json_object_get(schema, "type"));
    json_t *v = NULL;
    struct error err;
    if ((type && strcmp(type, "string") == 0) || json_parse(s, n, "value", &v, &err))
        v = json_stringn(s, n);
    return v;
}

static bool parse_glm(struct toolcall_parsed *p, json_t *calls, const char *id_prefix, const json_t *tools,
                      const char *s, size_t n)
{
    const char *key_at = find(s, n, "<arg_key>");
    size_t n_name = key_at ? (size_t)(key_at - s) : n;
    const char *name_at = s;
    s += n_name;
    n -= n_name;
    while (n_name > 0 && is_blank(*name_at)) {
        name_at++;
        n_name--;
    }
    while (n_name > 0 && is_blank(name_at[n_name - 1]))
        n_name--;
    if (n_name == 0 || n_name > 256 || memchr(name_at, '<', n_name) || memchr(name_at, '\n', n_name) ||
        memchr(name_at, '\0', n_name)) {
        complain(p, "tool call: the function's name is missing");
        return false;
    }
    char *name = mem_strndup(name_at, n_name);
    const json_t *function = tool_by_name(tools, name);
    json_t *args = json_object();
    const char *k, *v;
    size_t n_k, n_v;
    bool ok = true;
    while (ok && take_tag(&s, &n, (struct markers){"<arg_key>", "</arg_key>"}, &k, &n_k)) {
        char *key = mem_strndup(k, n_k);
        if (strlen(key) != n_k || json_object_get(args, key)) {
            complain(p, "tool call %.60s: argument \"%.40s\" is not usable or repeated", name, key);
            ok = false;
        } else if (!take_tag(&s, &n, (struct markers){"<arg_value>", "</arg_value>"}, &v, &n_v)) {
            complain(p, "tool call %.60s: argument \"%.40s\" has no value", name, key);
            ok = false;
        } else {
            json_object_set_new(args, key, glm_value(function, key, v, n_v));
        }
        free(key);
    }
    while (n > 0 && is_blank(*s)) {
        s++;
        n--;
    }
    if (ok && n > 0) {
        complain(p, "tool call %.60s: junk behind the arguments", name);
        ok = false;
    }
    if (ok)
        add_call(p, calls, id_prefix, name, json_incref(args));
    json_decref(args);
    free(name);
    return ok;
}

// Which argument of the only function the text of a tiny call is.
static const char *tiny_argument(const json_t *function)
{
    const json_t *schema = json_object_get(function, "parameters");
    const char *first = json_string_value(json_array_get(json_object_get(schema, "required"), 0));
    if (first)
        return first;
    const char *key = json_object_iter_key(json_object_iter(json_object_get(schema, "properties")));
    return key ? key : "input";
}

static bool parse_tiny(struct toolcall_parsed *p, json_t *calls, const char *id_prefix, const json_t *tools,
                       const char *s, size_t n)
{
    const json_t *function = json_array_size(tools) ? tool_function(tools, 0) : NULL;
    const char *name = json_string_value(json_object_get(function, "name"));
    json_t *args = json_object();
    json_object_set_new(args, tiny_argument(function), json_stringn(s, n));
    add_call(p, calls, id_prefix, name ? name : "call", args);
    return true;
}

// Cuts the calls out of text; what is no call goes to content.
static void parse_calls(struct toolcall_parsed *p, enum toolcall_format format, const char *text, size_t n,
                        const json_t *tools, const char *id_prefix, json_t *calls, struct buf *content)
{
    struct markers tag = format == TOOLCALL_TINY ? (struct markers){"<CALL>", "</CALL>"}
                                                 : (struct markers){"<tool_call>", "</tool_call>"};
    while (n > 0) {
        const char *open = format == TOOLCALL_NONE ? NULL : find(text, n, tag.open);
        if (!open)
            break;
        const char *body = open + strlen(tag.open);
        size_t left = n - (size_t)(body - text);
        const char *close = find(body, left, tag.close);
        if (!close) {
            complain(p, "tool call: %s is missing", tag.close);
            break;
        }
        size_t len = (size_t)(close - body);
        buf_append(content, text, (size_t)(open - text));
        bool ok = false;
        if (p->n_calls == TOOLCALL_MAX)
            complain(p, "more than %d tool calls in one turn", TOOLCALL_MAX);
        else if (format == TOOLCALL_HERMES)
            ok = parse_hermes(p, calls, id_prefix, body, len);
        else if (format == TOOLCALL_GLM)
            ok = parse_glm(p, calls, id_prefix, tools, body, len);
        else
            ok = parse_tiny(p, calls, id_prefix, tools, body, len);
        const char *next = close + strlen(tag.close);
        if (!ok)
            buf_append(content, open, (size_t)(next - open));
        n -= (size_t)(next - text);
        text = next;
    }
    buf_append(content, text, n);
}

void toolcall_parse(enum toolcall_format format, const char *text, size_t n, const json_t *tools,
                    const char *id_prefix, struct toolcall_parsed *ret)
{
    *ret = (struct toolcall_parsed){0};
    struct buf clean = {0}, content = {0};
    utf8_repair(&clean, text, n);
    text = clean.data ? clean.data : "";
    n = clean.len;
    struct toolcall_span think;
    size_t rest = toolcall_split_think(text, n, &think);
    json_t *calls = json_array();
    ret->message = json_pack("{s:s}", "role", "assistant");
    if (think.n > 0)
        json_object_set_new(ret->message, "reasoning_content", json_stringn(text + think.at, think.n));
    const char *body = text + rest;
    size_t n_body = n - rest;
    if (format == TOOLCALL_TINY && n_body >= 5 && memcmp(body, "<ANS>", 5) == 0) {
        body += 5;
        n_body -= 5;
    }
    parse_calls(ret, format, body, n_body, tools, id_prefix, calls, &content);
    if (ret->n_calls > 0 && format != TOOLCALL_TINY) // the newlines that templates put around calls
        while (content.len > 0 && is_blank(content.data[content.len - 1]))
            content.len--;
    bool none = ret->n_calls > 0 && content.len == 0;
    json_object_set_new(ret->message, "content",
                        none ? json_null() : json_stringn(content.data ? content.data : "", content.len));
    if (ret->n_calls > 0)
        json_object_set(ret->message, "tool_calls", calls);
    json_decref(calls);
    buf_done(&clean);
    buf_done(&content);
}

void toolcall_parsed_done(struct toolcall_parsed *p)
{
    json_decref(p->message);
    p->message = NULL;
}
