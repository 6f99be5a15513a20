// chat_render: the frame of every rendering: checks the messages, collects plain text and markers, keeps the mask.
//
// Plain text is collected in a run across template and content, because tokenizers merge across that seam, and is tokenised in
// plain mode, so that no content makes a marker. A run ends where a marker stands and where the mask changes.
// Runs on the caller's thread; the state is struct render.
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/utf8.h"
#include "text/chat_impl.h"
#include "text/tokenizer_impl.h"
#include "text/unicode.h"

void render_flush(struct render *r)
{
    if (r->run.len && r->status == STATUS_OK)
        r->status =
            tokenizer_encode(r->c->t, r->run.data, r->run.len, TOKENIZER_PLAIN, r->mask, r->out, r->err);
    buf_clear(&r->run);
}

void render_mask(struct render *r, bool mask)
{
    if (mask != r->mask)
        render_flush(r);
    r->mask = mask;
}

void render_marker(struct render *r, int32_t id)
{
    render_flush(r);
    if (id >= 0 && r->status == STATUS_OK)
        tokens_push(r->out, id, r->mask);
}

void render_plain(struct render *r, const char *s, size_t n)
{
    buf_append(&r->run, s, n);
}

void render_puts(struct render *r, const char *s)
{
    render_plain(r, s, strlen(s));
}

void render_trusted(struct render *r, const char *s)
{
    struct added_walk w = {.text = s, .n = strlen(s)};
    struct added_match m;
    size_t plain = 0;
    while (added_next(&r->c->t->raw, &w, true, &m)) {
        render_plain(r, s + plain, m.at - plain);
        render_marker(r, m.id);
        plain = m.end;
    }
    render_plain(r, s + plain, w.n - plain);
}

enum role message_role(const json_t *message)
{
    const char *role = json_string_value(json_object_get(message, "role"));
    if (strcmp(role, "user") == 0)
        return ROLE_USER;
    if (strcmp(role, "assistant") == 0)
        return ROLE_ASSISTANT;
    return strcmp(role, "tool") == 0 ? ROLE_TOOL : ROLE_SYSTEM;
}

const char *message_role_name(const json_t *message)
{
    static const char *const names[] = {"system", "user", "assistant", "tool"};
    return names[message_role(message)];
}

bool message_trains(const json_t *message)
{
    return message_role(message) == ROLE_ASSISTANT && !json_is_false(json_object_get(message, "train"));
}

void content_init(struct content *c, const json_t *message)
{
    *c = (struct content){0};
    const json_t *content = json_object_get(message, "content");
    size_t n = json_is_array(content) ? json_array_size(content) : json_is_string(content) ? 1 : 0;
    c->ends = mem_must(n + 1, sizeof *c->ends);
    c->trains = mem_must(n + 1, sizeof *c->trains);
    for (size_t i = 0; i < n; i++) {
        const json_t *part = json_is_array(content) ? json_array_get(content, i) : content;
        const json_t *text = json_is_string(part) ? part : json_object_get(part, "text");
        buf_append(&c->text, json_string_value(text), json_string_length(text));
        c->ends[i] = c->text.len;
        c->trains[i] = !json_is_false(json_object_get(part, "train"));
    }
    c->n_parts = n;
    c->to = c->text.len;
}

void content_done(struct content *c)
{
    buf_done(&c->text);
    free(c->ends);
    free(c->trains);
}

// Python's str.isspace is White_Space and the four separators of ASCII.
static bool python_space(uint32_t cp)
{
    return unicode_is_space(cp) || (cp >= 0x1C && cp <= 0x1F);
}

void content_trim(struct content *c)
{
    uint32_t cp;
    size_t len;
    while (c->from < c->to && (len = utf8_decode(c->text.data + c->from, c->to - c->from, &cp)) &&
           python_space(cp))
        c->from += len;
    while (c->to > c->from) {
        size_t at = c->to - 1;
        while (at > c->from && ((unsigned char)c->text.data[at] & 0xC0) == 0x80)
            at--;
        if (!utf8_decode(c->text.data + at, c->to - at, &cp) || !python_space(cp))
            break;
        c->to = at;
    }
}

void content_trim_char(struct content *c, char ch, bool left, bool right)
{
    while (left && c->from < c->to && c->text.data[c->from] == ch)
        c->from++;
    while (right && c->to > c->from && c->text.data[c->to - 1] == ch)
        c->to--;
}

void render_content(struct render *r, const struct content *c, bool train)
{
    size_t at = c->from;
    for (size_t i = 0; i < c->n_parts && at < c->to; i++) {
        size_t end = c->ends[i] < c->to ? c->ends[i] : c->to;
        if (end <= at)
            continue;
        render_mask(r, train && c->trains[i]);
        render_plain(r, c->text.data + at, end - at);
        at = end;
    }
    render_mask(r, train);
}

static enum status check_content(const json_t *content, size_t i, struct error *err)
{
    if (!content || json_is_null(content) || json_is_string(content))
        return STATUS_OK;
    if (!json_is_array(content))
        return error_set(err, STATUS_INVALID,
                         "messages[%zu].content must be a string, null or an array of text parts", i);
    for (size_t k = 0; k < json_array_size(content); k++) {
        const json_t *part = json_array_get(content, k);
        const char *type = json_string_value(json_object_get(part, "type"));
        if (json_is_string(part))
            continue;
        if (!type || strcmp(type, "text") != 0 || !json_is_string(json_object_get(part, "text")))
            return error_set(err, STATUS_INVALID,
                             "messages[%zu].content[%zu] must be {\"type\": \"text\", \"text\": …}", i, k);
    }
    return STATUS_OK;
}

static enum status check_calls(const struct chat *c, const json_t *calls, size_t i, struct error *err)
{
    if (!calls || json_is_null(calls))
        return STATUS_OK;
    if (!json_is_array(calls))
        return error_set(err, STATUS_INVALID, "messages[%zu].tool_calls must be an array", i);
    if (json_array_size(calls) > 0 && chat_toolcall_format(c) == TOOLCALL_NONE)
        return error_set(err, STATUS_UNSUPPORTED,
                         "messages[%zu].tool_calls: the %s template has no tool calls", i,
                         chat_family_name(c->family));
    for (size_t k = 0; k < json_array_size(calls); k++) {
        const json_t *f = chat_call_function(json_array_get(calls, k));
        const json_t *args = json_object_get(f, "arguments");
        if (!json_is_string(json_object_get(f, "name")))
            return error_set(err, STATUS_INVALID,
                             "messages[%zu].tool_calls[%zu]: the function's name must be a string", i, k);
        if (args && !json_is_null(args) && !json_is_string(args) && !json_is_object(args))
            return error_set(err, STATUS_INVALID,
                             "messages[%zu].tool_calls[%zu]: arguments must be a JSON text or an object", i,
                             k);
    }
    return STATUS_OK;
}

static enum status check_messages(const struct chat *c, const json_t *messages, const json_t *tools,
                                  struct error *err)
{
    if (!json_is_array(messages) || json_array_size(messages) == 0)
        return error_set(err, STATUS_INVALID, "messages must be an array of at least one message");
    if (tools && !json_is_null(tools) && !json_is_array(tools))
        return error_set(err, STATUS_INVALID, "tools must be an array");
    if (json_array_size(tools) > 0 && chat_toolcall_format(c) == TOOLCALL_NONE)
        return error_set(err, STATUS_UNSUPPORTED, "tools: the %s template has no tool calls",
                         chat_family_name(c->family));
    static const char *const roles[] = {"system", "developer", "user", "assistant", "tool"};
    for (size_t i = 0; i < json_array_size(messages); i++) {
        const json_t *m = json_array_get(messages, i);
        const char *role = json_string_value(json_object_get(m, "role"));
        size_t k = 0;
        while (role && k < 5 && strcmp(role, roles[k]) != 0)
            k++;
        if (!role || k == 5)
            return error_set(err, STATUS_INVALID,
                             "messages[%zu].role must be system, developer, user, assistant or tool", i);
        const json_t *reasoning = json_object_get(m, "reasoning_content"),
                     *train = json_object_get(m, "train");
        if (reasoning && !json_is_null(reasoning) && !json_is_string(reasoning))
            return error_set(err, STATUS_INVALID, "messages[%zu].reasoning_content must be a string", i);
        if (train && !json_is_boolean(train))
            return error_set(err, STATUS_INVALID, "messages[%zu].train must be true or false", i);
        enum status st = check_content(json_object_get(m, "content"), i, err);
        if (!st)
            st = check_calls(c, json_object_get(m, "tool_calls"), i, err);
        if (st)
            return st;
    }
    return STATUS_OK;
}

static void render_init(struct render *r, const struct chat *c, const json_t *messages, const json_t *tools,
                        const struct chat_options *o, struct tokens *out, struct error *err)
{
    *r = (struct render){.c = c, .messages = messages, .out = out, .held_end = -1, .err = err};
    r->tools = json_array_size(tools) ? tools : NULL;
    if (o)
        r->options = *o;
    r->last_query = family_last_query(c, messages, json_array_size(messages));
}

static enum status render_end(struct render *r, bool generate, size_t before)
{
    render_mask(r, false);
    if (generate)
        family_generation_prompt(r);
    render_flush(r);
    buf_done(&r->run);
    if (r->status)
        r->out->n = before;
    return r->status;
}

enum status chat_render(const struct chat *c, const json_t *messages, const json_t *tools,
                        const struct chat_options *o, bool generate, struct tokens *out, struct error *err)
{
    enum status st = check_messages(c, messages, tools, err);
    if (st)
        return st;
    size_t before = out->n;
    struct render r;
    render_init(&r, c, messages, tools, o, out, err);
    family_prelude(&r);
    for (size_t i = 0; i < json_array_size(messages); i++)
        family_message(&r, i);
    return render_end(&r, generate, before);
}

enum status chat_render_tail(const struct chat *c, const json_t *messages, size_t n_held, const json_t *tools,
                             const struct chat_options *o, int32_t last_id, bool generate, struct tokens *out,
                             struct error *err)
{
    enum status st = check_messages(c, messages, tools, err);
    if (st)
        return st;
    if (n_held == 0 || n_held > json_array_size(messages) ||
        message_role(json_array_get(messages, n_held - 1)) != ROLE_ASSISTANT)
        return error_set(err, STATUS_INVALID, "a tail follows an assistant's message; messages[%zu] is none",
                         n_held - 1);
    size_t before = out->n;
    struct render r;
    render_init(&r, c, messages, tools, o, out, err);
    family_resume(&r, last_id);
    for (size_t i = n_held; i < json_array_size(messages); i++)
        family_message(&r, i);
    return render_end(&r, generate, before);
}

static bool has_thinking(const json_t *message)
{
    const json_t *reasoning = json_object_get(message, "reasoning_content");
    struct content c;
    content_init(&c, message);
    bool yes = json_string_length(reasoning) > 0 || (c.text.len && strstr(c.text.data, "</think>"));
    content_done(&c);
    return yes;
}

bool chat_tail_rewrites(const struct chat *c, const json_t *messages, size_t n_held,
                        const struct chat_options *o)
{
    bool clears = c->family == CHAT_GLM || (c->family == CHAT_QWEN3 && c->reasons);
    if (!clears || (o && o->keep_thinking) || n_held > json_array_size(messages))
        return false;
    size_t before = family_last_query(c, messages, n_held);
    size_t after = family_last_query(c, messages, json_array_size(messages));
    for (size_t i = before + 1; i < n_held && i < after; i++)
        if (message_role(json_array_get(messages, i)) == ROLE_ASSISTANT &&
            has_thinking(json_array_get(messages, i)))
            return true;
    return false;
}
