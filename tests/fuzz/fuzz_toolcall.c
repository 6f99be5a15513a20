// Fuzz: completions and conversations. The first byte chooses the format. A completion must always become a message that the tiny
// template can render; bytes that start with '[' are also tried as messages.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"
#include "text/chat.h"

static void render(const struct chat *c, const json_t *messages, bool must_work)
{
    struct error err;
    struct tokens ids = {0};
    enum status st = chat_render(c, messages, NULL, NULL, true, &ids, &err);
    if (st && (must_work || ids.n > 0))
        abort();
    for (size_t held = 1; !st && held < json_array_size(messages); held++) {
        chat_tail_rewrites(c, messages, held, NULL);
        if (chat_render_tail(c, messages, held, NULL, NULL, 0, true, &ids, &err))
            continue;
    }
    tokens_done(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct tokenizer *t; // live as long as the process
    static struct chat *c;
    struct error err;
    if (!t && (tokenizer_open_bytes(tokenizer_tiny_specials, tokenizer_n_tiny_specials, &t, &err) ||
               chat_open_template(NULL, "tiny", t, &c, &err)))
        abort();
    if (size == 0)
        return 0;
    const char *text = (const char *)data + 1;
    static const char tools[] =
        "[{\"function\":{\"name\":\"f\",\"parameters\":{\"properties\":{\"a\":{\"type\":\"string\"}}}}}]";
    json_t *tool_list = NULL, *messages = NULL;
    if (json_parse(tools, sizeof tools - 1, "tools", &tool_list, &err))
        abort();
    struct toolcall_parsed p;
    toolcall_parse((enum toolcall_format)(data[0] % 4), text, size - 1, tool_list, "z", &p);
    if (!json_is_object(p.message) || p.malformed != (p.reason[0] != '\0'))
        abort();
    char *written = json_text(p.message); // everything in it is JSON and UTF-8
    free(written);
    messages = json_pack("[{s:s,s:s},O]", "role", "user", "content", "q", p.message);
    render(c, messages, true);
    json_decref(messages);
    toolcall_parsed_done(&p);
    messages = NULL;
    if (size > 1 && text[0] == '[' && json_parse(text, size - 1, "fuzz", &messages, &err) == STATUS_OK)
        render(c, messages, false);
    json_decref(messages);
    json_decref(tool_list);
    return 0;
}
