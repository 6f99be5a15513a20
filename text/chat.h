// Chat templates: OpenAI messages to token ids, written straight as special ids and separately tokenised
// plain text.
//
// Families built in, recognised from the model folder: ChatML (SmolLM2, Qwen 2), Llama 3, Qwen 2.5, Qwen 3,
// GLM and our own "tiny" for byte tokenizers. Which one is read from
// tokenizer_config.json's chat_template or chat_template.jinja; a template that is none of these is
// STATUS_UNSUPPORTED with an error that names the file. A folder with an ooze-bytes tokenizer is tiny.
//
// Invariants
//   1. Content yields no marker (tokenizer.h, invariant 2): only the template itself writes special ids.
//   2. render(messages) is token for token what transformers' apply_chat_template gives for the family's
//   standard template
//      and content free of markers (oracle: tests/golden/make_text.py).
//   3. Tails start at a special-token boundary: held ids + tail == ids of the whole conversation, whenever
//   the held ids
//      themselves were rendered and chat_tail_rewrites is false.
//   4. mask is 1 on what an assistant turn would sample: thinking, content, calls and the token that ends the
//   turn; 0 on headers,
//      on everything of other roles, on a message with "train": false, and on content parts with "train":
//      false.
//   5. A chat is immutable once open; any thread.
//
// Tiny: BOS (or SYS where the tokenizer has one) system text, BOS (or USER) user text, ASST where there is
// one, then the assistant's turn: CALL text /CALL for each call, or content EOS; content is led by ANS when
// the conversation has tools. A tool result is RES text /RES. A single string argument is written raw,
// anything else as JSON. So, with the recipe's letters: ^T98+93-48= [98+93] {191} [191-48] {143} @143$. A
// turn ends with EOS or, after a call, with /CALL.
#ifndef TEXT_CHAT_H
#define TEXT_CHAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/json.h"
#include "base/status.h"
#include "text/tokenizer.h"
#include "text/toolcall.h"

enum chat_family { CHAT_CHATML, CHAT_LLAMA3, CHAT_QWEN2, CHAT_QWEN3, CHAT_GLM, CHAT_TINY };

enum chat_thinking { CHAT_THINKING_DEFAULT, CHAT_THINKING_ON, CHAT_THINKING_OFF };

struct chat_options {
    enum chat_thinking thinking; // chat_template_kwargs.enable_thinking; families without it ignore it
    bool keep_thinking; // chat_template_kwargs.clear_thinking = false: thinking of earlier rounds stays
};

struct chat;

// t must outlive the chat.
enum status chat_open(const char *model_dir, const struct tokenizer *t, struct chat **ret_chat,
                      struct error *err) OOZE_MUST_USE;
// From a template's text (NULL for the tiny family); `what` names its file in errors.
enum status chat_open_template(const char *text, const char *what, const struct tokenizer *t,
                               struct chat **ret_chat, struct error *err) OOZE_MUST_USE;
void chat_close(struct chat *c); // NULL is fine

enum chat_family chat_family(const struct chat *c);
const char *chat_family_name(enum chat_family f); // "chatml", "llama3", "qwen2", "qwen3", "glm", "tiny"
const struct tokenizer *chat_tokenizer(const struct chat *c);
enum toolcall_format chat_toolcall_format(const struct chat *c);

// Ids that end an assistant turn: give them to the sampler as stop ids. Life: the chat's.
const int32_t *chat_stop_ids(const struct chat *c, size_t *ret_n);
bool chat_is_stop(const struct chat *c, int32_t id);
// The id that closes a turn which was cut off (mask 0); -1 for GLM, where the next header closes it.
int32_t chat_close_id(const struct chat *c);

// messages: array of {role: system|developer|user|assistant|tool, content: string, null or array of
// {type:"text", text, train?}, reasoning_content?, tool_calls?, tool_call_id?, train?}; tools: array of
// OpenAI tools, or NULL; o may be NULL: defaults. Appends the whole conversation and, when generate is set,
// the generation prompt. On error *out is as it was. STATUS_INVALID names the message at fault
// ("messages[3].content: …").
enum status chat_render(const struct chat *c, const json_t *messages, const json_t *tools,
                        const struct chat_options *o, bool generate, struct tokens *out,
                        struct error *err) OOZE_MUST_USE;

// messages[0, n_held) are already in the session as ids whose last one is last_id, and messages[n_held - 1]
// is the assistant's. Appends, all with mask as in invariant 4: the close of a cut-off turn if last_id does
// not end a turn, messages[n_held, …), and the generation prompt when generate is set.
enum status chat_render_tail(const struct chat *c, const json_t *messages, size_t n_held, const json_t *tools,
                             const struct chat_options *o, int32_t last_id, bool generate, struct tokens *out,
                             struct error *err) OOZE_MUST_USE;
// True when appending messages[n_held, …) makes the template change what is already held (thinking of earlier
// rounds is cleared by a new user turn): the session must FORK instead of taking a tail
// ("Token in, token out" of algorithms.md).
bool chat_tail_rewrites(const struct chat *c, const json_t *messages, size_t n_held,
                        const struct chat_options *o);

// The sampled ids of one assistant turn, its end token included, as a message: see toolcall.h. A turn that was cut off has no
// end token; a call that it leaves open is malformed.
void chat_parse(const struct chat *c, const int32_t *ids, size_t n, const json_t *tools,
                const char *id_prefix, struct toolcall_parsed *ret);

#endif
