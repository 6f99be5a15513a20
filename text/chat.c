// chat: which template a model folder means, and what ends a turn. See chat.h.
//
// A template is recognised by the markers it writes and refused by features that the family's renderer does not have: a guess
// that is nearly right would train on prompts that the model never saw. Runs on the opening thread; immutable afterwards.
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/mem.h"
#include "text/chat_impl.h"

#define CONFIG_MAX_BYTES ((size_t)32 << 20)

static const char *const family_names[] = {"chatml", "llama3", "qwen2", "qwen3", "glm", "tiny"};

const char *chat_family_name(enum chat_family f)
{
    return family_names[f];
}

static int32_t marker(const struct tokenizer *t, const char *text)
{
    return tokenizer_find(t, text, strlen(text));
}

static enum status need_marker(const struct chat *c, const char *text, const char *what, int32_t *ret,
                               struct error *err)
{
    *ret = marker(c->t, text);
    if (*ret < 0 || !tokenizer_is_marker(c->t, *ret))
        return error_set(err, STATUS_INVALID,
                         "%s: the %s template needs the token %s, which the tokenizer does not have", what,
                         family_names[c->family], text);
    return STATUS_OK;
}

static void put_stop(struct chat *c, int32_t id)
{
    if (id < 0 || c->n_stops == CHAT_MAX_STOPS || chat_is_stop(c, id))
        return;
    c->stops[c->n_stops++] = id;
}

// The text that a ChatML template writes as system message by itself: a literal between <|im_start|>system\n and <|im_end|>.
static char *find_default_system(const char *text)
{
    static const char open[] = "<|im_start|>system";
    for (const char *at = text; (at = strstr(at, open));) {
        at += sizeof open - 1;
        const char *from = at;
        if (strncmp(from, "\\n", 2) == 0)
            from += 2;
        else if (*from == '\n')
            from++;
        else
            continue;
        const char *end = strstr(from, "<|im_end|>");
        size_t n = end ? (size_t)(end - from) : 0;
        if (n > 0 && !memchr(from, '\'', n) && !memchr(from, '"', n) && !memchr(from, '{', n) &&
            !memchr(from, '\\', n))
            return mem_strndup(from, n);
    }
    return NULL;
}

static enum status open_chatml(struct chat *c, const char *text, const char *what, struct error *err)
{
    if (strstr(text, "<tool_call>")) {
        if (strstr(text, "<function=") || !strstr(text, "</tool_response>") || !strstr(text, "\"arguments\""))
            return error_set(
                err, STATUS_UNSUPPORTED,
                "%s: the chat template writes tool calls in a form that is not handled (Hermes JSON is)",
                what);
        c->default_system = find_default_system(text);
        c->reasons = strstr(text, "reasoning_content") != NULL;
        c->family = c->default_system && !c->reasons ? CHAT_QWEN2 : CHAT_QWEN3;
        c->think_switch = strstr(text, "enable_thinking") != NULL;
        c->think_forced = strstr(text, "<|im_start|>assistant\\n<think>") != NULL;
    } else if (strstr(text, "tools") || strstr(text, "think")) {
        return error_set(err, STATUS_UNSUPPORTED,
                         "%s: the chat template is a ChatML variant that is not handled", what);
    } else {
        c->family = CHAT_CHATML;
        c->default_system = find_default_system(text);
    }
    enum status st = need_marker(c, "<|im_start|>", what, &c->turn, err);
    if (!st)
        st = need_marker(c, "<|im_end|>", what, &c->turn_end, err);
    put_stop(c, c->turn_end);
    put_stop(c, marker(c->t, "<|endoftext|>"));
    c->close = c->turn_end;
    return st;
}

static enum status open_llama3(struct chat *c, const char *text, const char *what, struct error *err)
{
    c->family = CHAT_LLAMA3;
    if (strstr(text, "tools") || strstr(text, "Cutting Knowledge"))
        return error_set(
            err, STATUS_UNSUPPORTED,
            "%s: the chat template is that of Llama 3.1 or later (dates, tools); Llama 3's is handled", what);
    enum status st = need_marker(c, "<|begin_of_text|>", what, &c->bos, err);
    if (!st)
        st = need_marker(c, "<|start_header_id|>", what, &c->turn, err);
    if (!st)
        st = need_marker(c, "<|end_header_id|>", what, &c->header_end, err);
    if (!st)
        st = need_marker(c, "<|eot_id|>", what, &c->turn_end, err);
    put_stop(c, c->turn_end);
    put_stop(c, marker(c->t, "<|end_of_text|>"));
    c->close = c->turn_end;
    return st;
}

static enum status open_glm(struct chat *c, const char *text, const char *what, struct error *err)
{
    c->family = CHAT_GLM;
    if (!strstr(text, "<arg_key>") || !strstr(text, "</think>") || strstr(text, "<|user|>\\n") ||
        strstr(text, "<|user|>\n"))
        return error_set(err, STATUS_UNSUPPORTED,
                         "%s: the chat template is an older GLM's; that of GLM-5 is handled", what);
    int32_t ignored;
    static const char *const others[] = {
        "[gMASK]",   "<sop>",      "<think>",     "</think>",     "<tool_call>",     "</tool_call>",
        "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<tool_response>", "</tool_response>"};
    enum status st = STATUS_OK;
    for (size_t i = 0; i < sizeof others / sizeof *others && !st; i++)
        st = need_marker(c, others[i], what, &ignored, err);
    if (!st)
        st = need_marker(c, "<|system|>", what, &c->system, err);
    if (!st)
        st = need_marker(c, "<|user|>", what, &c->user, err);
    if (!st)
        st = need_marker(c, "<|assistant|>", what, &c->assistant, err);
    if (!st)
        st = need_marker(c, "<|observation|>", what, &c->observation, err);
    put_stop(c, c->user);
    put_stop(c, c->observation);
    put_stop(c, marker(c->t, "<|endoftext|>"));
    return st;
}

static enum status open_tiny(struct chat *c, const char *what, struct error *err)
{
    c->family = CHAT_TINY;
    enum status st = need_marker(c, "<BOS>", what, &c->bos, err);
    if (!st)
        st = need_marker(c, "<EOS>", what, &c->turn_end, err);
    if (!st)
        st = need_marker(c, "<CALL>", what, &c->call, err);
    if (!st)
        st = need_marker(c, "</CALL>", what, &c->call_end, err);
    if (!st)
        st = need_marker(c, "<RES>", what, &c->result, err);
    if (!st)
        st = need_marker(c, "</RES>", what, &c->result_end, err);
    c->answer = marker(c->t, "<ANS>");
    c->system = marker(c->t, "<SYS>");
    c->user = marker(c->t, "<USER>");
    c->assistant = marker(c->t, "<ASST>");
    if (c->system < 0)
        c->system = c->bos;
    if (c->user < 0)
        c->user = c->bos;
    put_stop(c, c->turn_end);
    put_stop(c, c->call_end);
    c->close = c->turn_end;
    return st;
}

enum status chat_open_template(const char *text, const char *what, const struct tokenizer *t,
                               struct chat **ret_chat, struct error *err)
{
    struct chat *c = mem_must(1, sizeof *c);
    *c = (struct chat){.t = t,
                       .close = -1,
                       .bos = -1,
                       .turn = -1,
                       .turn_end = -1,
                       .header_end = -1,
                       .system = -1,
                       .user = -1,
                       .assistant = -1,
                       .observation = -1,
                       .call = -1,
                       .call_end = -1,
                       .result = -1,
                       .result_end = -1,
                       .answer = -1};
    enum status st;
    if (!text)
        st = open_tiny(c, what, err);
    else if (strstr(text, "<|start_header_id|>"))
        st = open_llama3(c, text, what, err);
    else if (strstr(text, "[gMASK]"))
        st = open_glm(c, text, what, err);
    else if (strstr(text, "<|im_start|>"))
        st = open_chatml(c, text, what, err);
    else
        st = error_set(
            err, STATUS_UNSUPPORTED,
            "%s: the chat template is of no known family (ChatML, Llama 3, Qwen 2.5, Qwen 3, GLM-5)", what);
    if (st) {
        chat_close(c);
        return st;
    }
    *ret_chat = c;
    return STATUS_OK;
}

void chat_close(struct chat *c)
{
    if (!c)
        return;
    free(c->default_system);
    free(c);
}

// chat_template of tokenizer_config.json: a text, or a list of named ones of which "default" counts. NULL when there is none.
static const char *config_template(const json_t *config)
{
    const json_t *v = json_object_get(config, "chat_template");
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *item = json_array_get(v, i);
        const char *name = json_string_value(json_object_get(item, "name"));
        if (name && strcmp(name, "default") == 0)
            return json_string_value(json_object_get(item, "template"));
    }
    return json_string_value(v);
}

enum status chat_open(const char *model_dir, const struct tokenizer *t, struct chat **ret_chat,
                      struct error *err)
{
    char path[4096];
    if (tokenizer_is_bytes(t))
        return chat_open_template(NULL, model_dir, t, ret_chat, err);
    enum status st = file_join(path, sizeof path, model_dir, "chat_template.jinja", err);
    if (st)
        return st;
    if (file_exists(path)) {
        char *text;
        size_t n;
        if ((st = file_read(path, CONFIG_MAX_BYTES, &text, &n, err)))
            return st;
        st = chat_open_template(text, path, t, ret_chat, err);
        free(text);
        return st;
    }
    if ((st = file_join(path, sizeof path, model_dir, "tokenizer_config.json", err)))
        return st;
    json_t *config = NULL;
    if ((st = json_parse_file(path, CONFIG_MAX_BYTES, &config, err)))
        return error_prefix(err, "looking for the chat template");
    const char *text = config_template(config);
    st = text ? chat_open_template(text, path, t, ret_chat, err)
              : error_set(err, STATUS_UNSUPPORTED,
                          "%s: no chat_template here and no chat_template.jinja beside it", path);
    json_decref(config);
    return st;
}

enum chat_family chat_family(const struct chat *c)
{
    return c->family;
}

const struct tokenizer *chat_tokenizer(const struct chat *c)
{
    return c->t;
}

enum toolcall_format chat_toolcall_format(const struct chat *c)
{
    static const enum toolcall_format formats[] = {
        [CHAT_CHATML] = TOOLCALL_NONE,  [CHAT_LLAMA3] = TOOLCALL_NONE, [CHAT_QWEN2] = TOOLCALL_HERMES,
        [CHAT_QWEN3] = TOOLCALL_HERMES, [CHAT_GLM] = TOOLCALL_GLM,     [CHAT_TINY] = TOOLCALL_TINY,
    };
    return formats[c->family];
}

const int32_t *chat_stop_ids(const struct chat *c, size_t *ret_n)
{
    *ret_n = c->n_stops;
    return c->stops;
}

bool chat_is_stop(const struct chat *c, int32_t id)
{
    for (size_t i = 0; i < c->n_stops; i++)
        if (c->stops[i] == id)
            return true;
    return false;
}

int32_t chat_close_id(const struct chat *c)
{
    return c->close;
}

void chat_parse(const struct chat *c, const int32_t *ids, size_t n, const json_t *tools,
                const char *id_prefix, struct toolcall_parsed *ret)
{
    struct buf text = {0};
    bool tiny = c->family == CHAT_TINY;
    while (n > 0 && chat_is_stop(c, ids[n - 1]) && !(tiny && ids[n - 1] == c->call_end))
        n--;
    tokenizer_decode(c->t, ids, n, false, &text);
    toolcall_parse(chat_toolcall_format(c), text.data ? text.data : "", text.len, tools, id_prefix, ret);
    buf_done(&text);
}
