// What a model said, taken apart: thinking, content and tool calls, as an OpenAI assistant message.
//
// Formats
//   HERMES  (Qwen 2.5/3, Hermes) <tool_call>{"name":…,"arguments":{…}}</tool_call>, any number of them
//   GLM     <tool_call>name<arg_key>k</arg_key><arg_value>v</arg_value>…</tool_call>; a value is JSON if it
//   parses and the
//           tool's schema does not call it a string, else the raw text
//   TINY    <CALL>text</CALL>: the function is the first of `tools` ("call" without), its one argument the
//   first name
//           in the schema's `required` or else of its `properties` ("input" without); <ANS> before content is
//           dropped
//   NONE    content only
// In every format a leading <think>…</think> (or text up to a lone </think>, when the prompt forced the
// opening tag) becomes reasoning_content.
//
// A malformed call is the policy's failure, never ours: it stays in the content as text, `malformed` is set
// and `reason` says what was wrong with the first of them. No input is an error.
#ifndef TEXT_TOOLCALL_H
#define TEXT_TOOLCALL_H

#include <stdbool.h>
#include <stddef.h>

#include "base/json.h"

enum toolcall_format { TOOLCALL_NONE, TOOLCALL_HERMES, TOOLCALL_GLM, TOOLCALL_TINY };

#define TOOLCALL_MAX 64 // calls in one completion; more is malformed

struct toolcall_parsed {
    json_t *message; // {role:"assistant", content: string or null, reasoning_content?, tool_calls?}; owned
    int n_calls;
    bool malformed;
    char reason[160];
};

// text: the decoded completion without its end token; invalid UTF-8 is repaired first (utf8_repair). tools:
// OpenAI tools array or NULL. id_prefix: call i gets the id "call_<id_prefix>_<i>". arguments are a JSON
// text, as OpenAI has it.
void toolcall_parse(enum toolcall_format format, const char *text, size_t n, const json_t *tools,
                    const char *id_prefix, struct toolcall_parsed *ret);
void toolcall_parsed_done(struct toolcall_parsed *p); // after parse, once or more

// Splits off thinking: *ret_think is the offset and length of the reasoning inside text (length 0: none), and
// the return value the offset where the rest begins. The newlines that templates put around thinking are left
// out.
struct toolcall_span {
    size_t at, n;
};
size_t toolcall_split_think(const char *text, size_t n, struct toolcall_span *ret_think);

#endif
