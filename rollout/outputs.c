// Growing arrays of a step's results: see outputs.h.
#include "rollout/outputs.h"

#include <stdlib.h>
#include <string.h>

void outputs_init(struct outputs *o)
{
    *o = (struct outputs){0};
    arena_init(&o->strings, 0);
}

void outputs_done(struct outputs *o)
{
    if (!o)
        return;
    free(o->items);
    free(o->ids);
    free(o->logprobs);
    free(o->spans);
    free(o->kv);
    free(o->prompt_logprobs);
    free(o->top_ids);
    free(o->top_logprobs);
    arena_done(&o->strings);
    *o = (struct outputs){0};
}

void outputs_clear(struct outputs *o)
{
    o->n_items = o->n_tokens = o->n_spans = o->n_kv = o->n_prompt = o->n_top = 0;
    arena_reset(&o->strings);
}

// New capacity when `more` are to follow `n`; the old one when they fit.
static size_t room_for(size_t n, size_t more, size_t cap)
{
    if (n + more <= cap)
        return cap;
    size_t grown = cap ? cap * 2 : 64;
    return grown < n + more ? n + more : grown;
}

#define GROW(array, n, more, cap)                                                                            \
    do {                                                                                                     \
        size_t grown_ = room_for(n, more, cap);                                                              \
        if (grown_ != (cap)) {                                                                               \
            (array) = mem_grow(array, grown_, sizeof *(array));                                              \
            (cap) = grown_;                                                                                  \
        }                                                                                                    \
    } while (0)

struct output *outputs_add(struct outputs *o, uint64_t job, int32_t offset)
{
    GROW(o->items, o->n_items, 1, o->cap_items);
    struct output *item = &o->items[o->n_items++];
    *item = (struct output){.job = job,
                            .offset = offset,
                            .error = "",
                            .first_token = o->n_tokens,
                            .first_span = o->n_spans,
                            .first_kv = o->n_kv,
                            .first_prompt = o->n_prompt,
                            .first_top = o->n_top};
    return item;
}

static struct output *last(struct outputs *o)
{
    return &o->items[o->n_items - 1];
}

void outputs_add_tokens(struct outputs *o, const int32_t *ids, const float *logprobs, int32_t n)
{
    if (n == 0)
        return;
    size_t cap = room_for(o->n_tokens, (size_t)n, o->cap_tokens);
    if (cap != o->cap_tokens) {
        o->ids = mem_grow(o->ids, cap, sizeof *o->ids);
        o->logprobs = mem_grow(o->logprobs, cap, sizeof *o->logprobs);
        o->cap_tokens = cap;
    }
    memcpy(o->ids + o->n_tokens, ids, (size_t)n * sizeof *ids);
    memcpy(o->logprobs + o->n_tokens, logprobs, (size_t)n * sizeof *logprobs);
    o->n_tokens += (size_t)n;
    last(o)->n += n;
}

void outputs_add_top(struct outputs *o, const int32_t *ids, const float *logprobs, int32_t n_tokens,
                     int32_t n_top)
{
    last(o)->n_top = n_top;
    size_t n = (size_t)n_tokens * (size_t)n_top;
    if (n == 0)
        return;
    size_t cap = room_for(o->n_top, n, o->cap_top);
    if (cap != o->cap_top) {
        o->top_ids = mem_grow(o->top_ids, cap, sizeof *o->top_ids);
        o->top_logprobs = mem_grow(o->top_logprobs, cap, sizeof *o->top_logprobs);
        o->cap_top = cap;
    }
    memcpy(o->top_ids + o->n_top, ids, n * sizeof *ids);
    memcpy(o->top_logprobs + o->n_top, logprobs, n * sizeof *logprobs);
    o->n_top += n;
}

void outputs_add_span(struct outputs *o, int64_t version, int32_t start, int32_t end)
{
    GROW(o->spans, o->n_spans, 1, o->cap_spans);
    o->spans[o->n_spans++] = (struct msg_span){.version = version, .start = start, .end = end};
    last(o)->n_spans++;
}

void outputs_add_kv(struct outputs *o, const struct msg_kv *kv, int32_t n)
{
    if (n == 0)
        return;
    GROW(o->kv, o->n_kv, (size_t)n, o->cap_kv);
    memcpy(o->kv + o->n_kv, kv, (size_t)n * sizeof *kv);
    o->n_kv += (size_t)n;
    last(o)->n_kv += n;
}

void outputs_add_prompt(struct outputs *o, const float *logprobs, int32_t n)
{
    if (n == 0)
        return;
    GROW(o->prompt_logprobs, o->n_prompt, (size_t)n, o->cap_prompt);
    memcpy(o->prompt_logprobs + o->n_prompt, logprobs, (size_t)n * sizeof *logprobs);
    o->n_prompt += (size_t)n;
    last(o)->n_prompt_logprobs += n;
}

void outputs_finish(struct outputs *o, enum msg_finish finish, const char *error)
{
    struct output *item = last(o);
    item->finish = (int32_t)finish;
    if (error && *error) {
        const char *copy = arena_strndup(&o->strings, error, strlen(error));
        item->error = copy ? copy : "failed, and no memory to say why";
    }
}
