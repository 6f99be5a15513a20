// The token array of one trajectory ("Token in, token out" of algorithms.md). What the engine sampled stays as it was sampled; what
// the task says is rendered behind it with mask 0.
//
// Invariants, checked on every turn; training is refused (drop reason tito) on violation
//   1. A turn's prefix is the array as it was sent: appending is the only change within a segment.
//   2. One finite logprob <= 0 (+ rounding) for each sampled token; version spans cover them without gaps, never going back.
//   3. A tail starts where the assistant's turn ends; a cut-off turn is closed by its end token with mask 0.
//   4. When the template would rewrite what is held (thinking of earlier rounds is cleared), a new segment begins: FORK.
// Pure but for allocation; belongs to its episode.
#ifndef ORCHESTRATOR_SESSION_H
#define ORCHESTRATOR_SESSION_H

#include <stdbool.h>
#include <stdint.h>

#include "base/json.h"
#include "proto/msg.h"
#include "text/chat.h"
#include "text/tokens.h"

struct session {
    const struct chat *chat;          // borrowed
    json_t *messages;                 // array: what is held, in order; owned
    json_t *tools;                    // NULL = none; owned
    struct tokens tokens;             // of the segment under way; mask 1 = sampled
    int32_t segment;                  // index of the segment under way
    int32_t turn_at;                  // where the turn being sampled starts
    int32_t n_sampled;                // over all segments
    int64_t version_min, version_max; // over all sampled tokens, -1 = none
    bool open_turn; // a generation prompt is at the end: the next tokens are the assistant's
};

// Renders messages (array) and the generation prompt as segment 0. Takes its own references to messages and tools.
enum status session_open(struct session *s, const struct chat *c, json_t *messages, json_t *tools,
                         struct error *err) OOZE_MUST_USE;
void session_close(struct session *s);

// One whole assistant turn as sampled. ids, logprobs [n]; spans count from 0 and cover [0, n).
enum status session_sampled(struct session *s, const int32_t *ids, const float *logprobs, int32_t n,
                            const struct msg_span *spans, int32_t n_spans, struct error *err) OOZE_MUST_USE;
// The sampled turn as an OpenAI message, added to the held ones. id_prefix names its tool calls.
void session_parse(struct session *s, const char *id_prefix, struct toolcall_parsed *ret);
// What the task answered: adds messages (array) and renders the tail and the next generation prompt. *ret_from is where the new
// tokens start in s->tokens; 0 with a new segment (FORK).
enum status session_tail(struct session *s, const json_t *messages, int32_t *ret_from,
                         struct error *err) OOZE_MUST_USE;

// Resume: puts back what the ledger holds. given: mask 0.
enum status session_restore(struct session *s, int32_t segment, int32_t offset, const int32_t *ids, int32_t n,
                            bool sampled, struct error *err) OOZE_MUST_USE;
void session_restore_message(struct session *s, json_t *message);

#endif
