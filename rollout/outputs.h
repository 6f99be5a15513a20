// What an engine step hands out: for each job with something to say, a slice of tokens and what belongs to them. One
// block of growing arrays, reused: nothing is allocated per token. Owner: whoever holds it; the worker swaps two of them
// between the compute thread and the I/O thread.
#ifndef ROLLOUT_OUTPUTS_H
#define ROLLOUT_OUTPUTS_H

#include "base/mem.h"
#include "proto/msg.h"

// One job's news. The n tokens begin at outputs.ids[first_token], and so on.
struct output {
    uint64_t job;
    int32_t offset, n; // of the first token, counted from the job's first new token
    int32_t n_spans, n_kv, n_prompt_logprobs;
    int32_t n_top;  // alternatives a token: outputs.top_ids[first_top + i * n_top …]
    int32_t finish; // enum msg_finish
    int32_t prompt_tokens, cached_tokens;
    const char *error; // with FINISH_ERROR, else ""; life: until outputs_clear
    size_t first_token, first_span, first_kv, first_prompt, first_top;
};

struct outputs {
    struct output *items;
    size_t n_items, cap_items;
    int32_t *ids;
    float *logprobs;
    size_t n_tokens, cap_tokens;
    struct msg_span *spans;
    size_t n_spans, cap_spans;
    struct msg_kv *kv;
    size_t n_kv, cap_kv;
    float *prompt_logprobs;
    size_t n_prompt, cap_prompt;
    int32_t *top_ids;
    float *top_logprobs;
    size_t n_top, cap_top;
    struct arena strings;
};

void outputs_init(struct outputs *o);
void outputs_done(struct outputs *o);
void outputs_clear(struct outputs *o);

// Opens a new item at the end; what is added next belongs to it.
struct output *outputs_add(struct outputs *o, uint64_t job, int32_t offset);
void outputs_add_tokens(struct outputs *o, const int32_t *ids, const float *logprobs, int32_t n);
void outputs_add_top(struct outputs *o, const int32_t *ids, const float *logprobs, int32_t n_tokens,
                     int32_t n_top);
void outputs_add_span(struct outputs *o, int64_t version, int32_t start, int32_t end);
void outputs_add_kv(struct outputs *o, const struct msg_kv *kv, int32_t n);
void outputs_add_prompt(struct outputs *o, const float *logprobs, int32_t n);
void outputs_finish(struct outputs *o, enum msg_finish finish, const char *error);

#endif
