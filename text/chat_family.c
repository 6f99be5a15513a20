// chat_family: the templates. Each function writes what the family's standard Jinja template writes, marker by marker; the oracle is
// transformers' apply_chat_template (tests/golden/text_chat.py has the templates).
//
// Runs on the caller's thread; the state is struct render.
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "text/chat_impl.h"

static const char qwen_tools_before[] = "# Tools\n\nYou may call one or more functions to assist with the "
                                        "user query.\n\nYou are provided with function "
                                        "signatures within <tools></tools> XML tags:\n<tools>";
static const char qwen_tools_after[] =
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": "
    "<args-json-object>}\n</tool_call>";
static const char glm_tools_before[] = "\n# Tools\n\nYou may call one or more functions to assist with the "
                                       "user query.\n\nYou are provided with function "
                                       "signatures within <tools></tools> XML tags:\n<tools>\n";
static const char glm_tools_after[] =
    "</tools>\n\nFor each function call, output the function name and arguments within the following XML "
    "format:\n<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key><arg_value>{arg-value-1}</"
    "arg_value><arg_key>{arg-key-2}"
    "</arg_key><arg_value>{arg-value-2}</arg_value>...</tool_call>";

static const json_t *message_at(const struct render *r, size_t i)
{
    return json_array_get(r->messages, i);
}

static bool role_is(const struct render *r, size_t i, enum role role)
{
    return i < json_array_size(r->messages) && message_role(message_at(r, i)) == role;
}

static const json_t *calls_of(const json_t *message)
{
    const json_t *calls = json_object_get(message, "tool_calls");
    return json_array_size(calls) ? calls : NULL;
}

static void put_message_text(struct render *r, const json_t *message, bool trim)
{
    struct content c;
    content_init(&c, message);
    if (trim)
        content_trim(&c);
    render_content(r, &c, message_trains(message));
    content_done(&c);
}

static void put_tool_schemas(struct render *r, const char *before, const char *after)
{
    for (size_t i = 0; i < json_array_size(r->tools); i++) {
        struct buf b = {0};
        chat_put_json(&b, json_array_get(r->tools, i));
        render_puts(r, before);
        render_plain(r, b.data, b.len);
        render_puts(r, after);
        buf_done(&b);
    }
}

// ---- ChatML and Qwen: <|im_start|>role\n … <|im_end|>\n

static void chatml_open(struct render *r, const char *role)
{
    render_mask(r, false);
    render_marker(r, r->c->turn);
    render_puts(r, role);
    render_puts(r, "\n");
}

// The end token is the speaker's, the newline behind it the template's.
static void chatml_end(struct render *r, bool train)
{
    render_mask(r, train);
    render_marker(r, r->c->turn_end);
    render_mask(r, false);
    render_puts(r, "\n");
}

static void chatml_prelude(struct render *r)
{
    bool has_system = role_is(r, 0, ROLE_SYSTEM);
    bool qwen = r->c->family == CHAT_QWEN2 || r->c->family == CHAT_QWEN3;
    if (!has_system && !r->c->default_system && !(qwen && r->tools))
        return;
    if (has_system && !(qwen && r->tools))
        return; // written as messages[0]
    chatml_open(r, "system");
    if (has_system)
        put_message_text(r, message_at(r, 0), false);
    else if (r->c->default_system)
        render_puts(r, r->c->default_system);
    if (qwen && r->tools) {
        if (has_system || r->c->default_system)
            render_puts(r, "\n\n");
        render_puts(r, qwen_tools_before);
        put_tool_schemas(r, "\n", "");
        render_trusted(r, qwen_tools_after);
    }
    chatml_end(r, false);
}

static void hermes_calls(struct render *r, const json_t *calls, bool after_content)
{
    for (size_t i = 0; i < json_array_size(calls); i++) {
        const json_t *f = chat_call_function(json_array_get(calls, i));
        if (after_content || i > 0)
            render_puts(r, "\n");
        render_trusted(r, "<tool_call>");
        struct buf b = {0};
        buf_printf(&b, "\n{\"name\": \"%s\", \"arguments\": ", json_string_value(json_object_get(f, "name")));
        chat_put_arguments(&b, json_object_get(f, "arguments"));
        buf_puts(&b, "}\n");
        render_plain(r, b.data, b.len);
        buf_done(&b);
        render_trusted(r, "</tool_call>");
    }
}

// Thinking given as reasoning_content, or found in front of </think> in the content, which is then cut. Points into the message
// or into c.
static void take_thinking(const json_t *message, struct content *c, const char **ret, size_t *ret_n)
{
    const json_t *given = json_object_get(message, "reasoning_content");
    if (json_is_string(given)) {
        *ret = json_string_value(given);
        *ret_n = json_string_length(given);
        return;
    }
    *ret = "";
    *ret_n = 0;
    const char *s = c->text.data, *close = s ? strstr(s, "</think>") : NULL;
    if (!close)
        return;
    const char *from = s, *open;
    while ((open = strstr(from, "<think>")) && open < close)
        from = open + strlen("<think>");
    const char *end = close, *last = close;
    for (const char *next; (next = strstr(last + 1, "</think>"));)
        last = next;
    while (end > from && end[-1] == '\n')
        end--;
    while (from < end && *from == '\n')
        from++;
    *ret = from;
    *ret_n = (size_t)(end - from);
    c->from = (size_t)(last - s) + strlen("</think>");
    content_trim_char(c, '\n', true, false);
}

static void qwen3_assistant(struct render *r, size_t i)
{
    const json_t *message = message_at(r, i);
    bool train = message_trains(message), last = i + 1 == json_array_size(r->messages);
    struct content c;
    const char *think = "";
    size_t n_think = 0;
    content_init(&c, message);
    if (r->c->reasons)
        take_thinking(message, &c, &think, &n_think);
    bool recent = i > r->last_query && (last || n_think > 0);
    render_mask(r, train);
    if (r->c->reasons && (recent || (r->options.keep_thinking && n_think > 0))) {
        while (n_think > 0 && *think == '\n') {
            think++;
            n_think--;
        }
        while (n_think > 0 && think[n_think - 1] == '\n')
            n_think--;
        render_trusted(r, "<think>");
        render_puts(r, "\n");
        render_plain(r, think, n_think);
        render_puts(r, "\n");
        render_trusted(r, "</think>");
        render_puts(r, "\n\n");
        content_trim_char(&c, '\n', true, false);
    }
    render_content(r, &c, train);
    hermes_calls(r, calls_of(message), c.to > c.from);
    content_done(&c);
}

static void chatml_message(struct render *r, size_t i)
{
    const json_t *message = message_at(r, i);
    enum role role = message_role(message);
    bool qwen = r->c->family != CHAT_CHATML;
    if (i == 0 && role == ROLE_SYSTEM && qwen && r->tools)
        return; // the prelude has said it
    if (qwen && role == ROLE_TOOL) {
        render_mask(r, false);
        if (i == 0 || !role_is(r, i - 1, ROLE_TOOL)) {
            render_marker(r, r->c->turn);
            render_puts(r, "user");
        }
        render_trusted(r, "\n<tool_response>\n");
        put_message_text(r, message, false);
        render_trusted(r, "\n</tool_response>");
        if (!role_is(r, i + 1, ROLE_TOOL))
            chatml_end(r, false);
        return;
    }
    chatml_open(r, message_role_name(message));
    if (role == ROLE_ASSISTANT && r->c->family == CHAT_QWEN3) {
        qwen3_assistant(r, i);
    } else {
        struct content c;
        content_init(&c, message);
        render_mask(r, message_trains(message));
        render_content(r, &c, message_trains(message));
        if (role == ROLE_ASSISTANT)
            hermes_calls(r, calls_of(message), c.to > c.from);
        content_done(&c);
    }
    chatml_end(r, message_trains(message));
}

// ---- Llama 3: <|start_header_id|>role<|end_header_id|>\n\n … <|eot_id|>

static void llama3_open(struct render *r, const char *role)
{
    render_mask(r, false);
    render_marker(r, r->c->turn);
    render_puts(r, role);
    render_marker(r, r->c->header_end);
    render_puts(r, "\n\n");
}

static void llama3_message(struct render *r, size_t i)
{
    const json_t *message = message_at(r, i);
    llama3_open(r, message_role_name(message));
    render_mask(r, message_trains(message));
    put_message_text(r, message, true);
    render_marker(r, r->c->turn_end);
    render_mask(r, false);
}

// ---- GLM: [gMASK]<sop>, then a header a role; the next header ends a turn, so it is what an assistant samples last

static void glm_header(struct render *r, size_t i, int32_t id)
{
    int32_t held = r->held_end;
    r->held_end = -1;
    if (held == id)
        return;
    render_mask(r, i > 0 && role_is(r, i - 1, ROLE_ASSISTANT) && held < 0 &&
                       message_trains(message_at(r, i - 1)));
    render_marker(r, id);
    render_mask(r, false);
}

static void glm_calls(struct render *r, const json_t *calls)
{
    for (size_t i = 0; i < json_array_size(calls); i++) {
        const json_t *f = chat_call_function(json_array_get(calls, i)),
                     *given = json_object_get(f, "arguments");
        json_t *args = NULL;
        struct error ignored;
        if (!json_is_string(given))
            args = json_incref((json_t *)given);
        else if (json_parse(json_string_value(given), json_string_length(given), "arguments", &args,
                            &ignored))
            args = NULL; // not JSON: a call without arguments is all that the format can say
        render_trusted(r, "<tool_call>");
        render_puts(r, json_string_value(json_object_get(f, "name")));
        const char *key;
        json_t *value;
        json_object_foreach(args, key, value)
        {
            struct buf b = {0};
            if (json_is_string(value))
                buf_append(&b, json_string_value(value), json_string_length(value));
            else
                chat_put_json(&b, value);
            render_trusted(r, "<arg_key>");
            render_puts(r, key);
            render_trusted(r, "</arg_key><arg_value>");
            render_plain(r, b.data, b.len);
            render_trusted(r, "</arg_value>");
            buf_done(&b);
        }
        json_decref(args);
        render_trusted(r, "</tool_call>");
    }
}

static void glm_assistant(struct render *r, size_t i)
{
    const json_t *message = message_at(r, i);
    bool train = message_trains(message);
    struct content c;
    const char *think;
    size_t n_think;
    content_init(&c, message);
    take_thinking(message, &c, &think, &n_think);
    render_mask(r, false);
    render_marker(r, r->c->assistant);
    if (n_think > 0 && (r->options.keep_thinking || i > r->last_query)) {
        render_trusted(r, "<think>"); // forced by the prompt
        render_mask(r, train);
        render_plain(r, think, n_think);
    }
    render_trusted(r, "</think>");
    render_mask(r, train);
    content_trim(&c);
    render_content(r, &c, train);
    glm_calls(r, calls_of(message));
    render_mask(r, false);
    content_done(&c);
}

static void glm_message(struct render *r, size_t i)
{
    const json_t *message = message_at(r, i);
    switch (message_role(message)) {
    case ROLE_SYSTEM:
        glm_header(r, i, r->c->system);
        put_message_text(r, message, false);
        break;
    case ROLE_USER:
        glm_header(r, i, r->c->user);
        put_message_text(r, message, false);
        break;
    case ROLE_TOOL:
        if (i == 0 || !role_is(r, i - 1, ROLE_TOOL))
            glm_header(r, i, r->c->observation);
        render_trusted(r, "<tool_response>");
        put_message_text(r, message, false);
        render_trusted(r, "</tool_response>");
        break;
    case ROLE_ASSISTANT:
        glm_assistant(r, i);
        break;
    }
}

static void glm_prelude(struct render *r)
{
    render_trusted(r, "[gMASK]<sop>");
    if (!r->tools)
        return;
    render_marker(r, r->c->system);
    render_puts(r, glm_tools_before);
    put_tool_schemas(r, "", "\n");
    render_trusted(r, glm_tools_after);
}

// ---- Tiny: see chat.h

// The text of a call: a single string argument as it is, anything else as JSON.
static void tiny_call(struct render *r, const json_t *call)
{
    struct buf b = {0};
    const json_t *given = json_object_get(chat_call_function(call), "arguments");
    json_t *args = NULL;
    struct error ignored;
    if (json_is_string(given)) {
        if (json_parse(json_string_value(given), json_string_length(given), "arguments", &args, &ignored))
            args = json_incref((json_t *)given);
    } else if (given) {
        args = json_incref((json_t *)given);
    }
    const json_t *only = json_object_size(args) == 1 ? json_object_iter_value(json_object_iter(args)) : args;
    if (json_is_string(only))
        buf_append(&b, json_string_value(only), json_string_length(only));
    else
        chat_put_arguments(&b, given);
    render_marker(r, r->c->call);
    render_plain(r, b.data, b.len);
    render_marker(r, r->c->call_end);
    json_decref(args);
    buf_done(&b);
}

static void tiny_message(struct render *r, size_t i)
{
    const json_t *message = message_at(r, i), *calls = calls_of(message);
    bool train = message_trains(message);
    render_mask(r, false);
    switch (message_role(message)) {
    case ROLE_SYSTEM:
        render_marker(r, r->c->system);
        put_message_text(r, message, false);
        break;
    case ROLE_USER:
        render_marker(r, r->c->user);
        put_message_text(r, message, false);
        break;
    case ROLE_TOOL:
        render_marker(r, r->c->result);
        put_message_text(r, message, false);
        render_marker(r, r->c->result_end);
        break;
    case ROLE_ASSISTANT:
        if (!role_is(r, i - 1, ROLE_TOOL) || i == 0)
            render_marker(r, r->c->assistant);
        render_mask(r, train);
        if (!calls && r->tools)
            render_marker(r, r->c->answer);
        put_message_text(r, message, false);
        for (size_t k = 0; k < json_array_size(calls); k++)
            tiny_call(r, json_array_get(calls, k));
        if (!calls)
            render_marker(r, r->c->turn_end);
        render_mask(r, false);
        break;
    }
}

// ---- All

void family_prelude(struct render *r)
{
    render_mask(r, false);
    switch (r->c->family) {
    case CHAT_CHATML:
    case CHAT_QWEN2:
    case CHAT_QWEN3:
        chatml_prelude(r);
        break;
    case CHAT_GLM:
        glm_prelude(r);
        break;
    case CHAT_LLAMA3:
        render_marker(r, r->c->bos);
        break;
    case CHAT_TINY: // BOS opens the first turn itself, unless roles have markers of their own
        if ((role_is(r, 0, ROLE_SYSTEM) ? r->c->system : r->c->user) != r->c->bos)
            render_marker(r, r->c->bos);
        break;
    }
}

void family_message(struct render *r, size_t i)
{
    switch (r->c->family) {
    case CHAT_CHATML:
    case CHAT_QWEN2:
    case CHAT_QWEN3:
        chatml_message(r, i);
        break;
    case CHAT_LLAMA3:
        llama3_message(r, i);
        break;
    case CHAT_GLM:
        glm_message(r, i);
        break;
    case CHAT_TINY:
        tiny_message(r, i);
        break;
    }
}

void family_resume(struct render *r, int32_t last_id)
{
    const struct chat *c = r->c;
    render_mask(r, false);
    if (c->family == CHAT_GLM) {
        if (last_id == c->user || last_id == c->observation)
            r->held_end = last_id;
        return;
    }
    if (last_id != c->turn_end && !(c->family == CHAT_TINY && last_id == c->call_end))
        render_marker(r, c->turn_end);
    if (c->family != CHAT_LLAMA3 && c->family != CHAT_TINY)
        render_puts(r, "\n");
}

void family_generation_prompt(struct render *r)
{
    const struct chat *c = r->c;
    bool off = r->options.thinking == CHAT_THINKING_OFF;
    size_t n = json_array_size(r->messages);
    switch (c->family) {
    case CHAT_CHATML:
    case CHAT_QWEN2:
    case CHAT_QWEN3:
        chatml_open(r, "assistant");
        if (c->think_forced)
            render_trusted(r, "<think>\n");
        else if (c->think_switch && off)
            render_trusted(r, "<think>\n\n</think>\n\n");
        break;
    case CHAT_LLAMA3:
        llama3_open(r, "assistant");
        break;
    case CHAT_GLM:
        render_marker(r, c->assistant);
        render_trusted(r, off ? "</think>" : "<think>");
        break;
    case CHAT_TINY:
        if (!role_is(r, n - 1, ROLE_TOOL))
            render_marker(r, c->assistant);
        break;
    }
}

// Qwen 3 does not take a tool result written as a user message for a query.
static bool is_query(const struct chat *c, const json_t *message)
{
    if (message_role(message) != ROLE_USER)
        return false;
    const char *s = json_string_value(json_object_get(message, "content"));
    if (c->family != CHAT_QWEN3)
        return true;
    static const char open[] = "<tool_response>", close[] = "</tool_response>";
    size_t n = s ? strlen(s) : 0, n_close = sizeof close - 1;
    return s &&
           !(strncmp(s, open, sizeof open - 1) == 0 && n >= n_close && strcmp(s + n - n_close, close) == 0);
}

size_t family_last_query(const struct chat *c, const json_t *messages, size_t n)
{
    for (size_t i = n; i > 0; i--)
        if (is_query(c, json_array_get(messages, i - 1)))
            return i - 1;
    return n ? n - 1 : 0;
}
