// Jobs by id and their unacknowledged tokens: see jobs.h. Runs on the I/O thread.
//
// Invariants
//   1. durable <= sent <= n. A job is queued when sent < n, or when its finish is known and not sent.
//   2. A kv event travels with the token it precedes: event e belongs to sampled token e.at_token - n_prompt.
#include "rollout/jobs.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

#define BUCKETS 16384

struct jobs {
    struct job *buckets[BUCKETS];
    int32_t n;
    int64_t kept;
    struct job *first, *last; // queued
    struct msg_span *spans;   // of the message under way
    int32_t cap_spans;
};

struct jobs *jobs_open(void)
{
    return mem_must(1, sizeof(struct jobs));
}

static struct job **slot(struct jobs *j, uint64_t job)
{
    struct job **at = &j->buckets[job * 0x9E3779B97F4A7C15u >> 50]; // the top 14 bits: BUCKETS
    while (*at && (*at)->job != job)
        at = &(*at)->chain;
    return at;
}

static void job_free(struct job *b)
{
    free(b->ids);
    free(b->logprobs);
    free(b->spans);
    free(b->kv);
    free(b->prompt_logprobs);
    free(b->error);
    free(b);
}

void jobs_close(struct jobs *j)
{
    if (!j)
        return;
    for (int i = 0; i < BUCKETS; i++)
        for (struct job *b = j->buckets[i], *next; b; b = next) {
            next = b->chain;
            job_free(b);
        }
    free(j->spans);
    free(j);
}

int32_t jobs_count(const struct jobs *j)
{
    return j->n;
}

int64_t jobs_kept_tokens(const struct jobs *j)
{
    return j->kept;
}

struct job *jobs_find(struct jobs *j, uint64_t job)
{
    return *slot(j, job);
}

struct job *jobs_add(struct jobs *j, const struct msg_job *m)
{
    struct job **at = slot(j, m->job);
    assert(!*at);
    struct job *b = mem_must(1, sizeof *b);
    b->job = m->job;
    b->epoch = m->orchestrator_epoch;
    b->n_prompt = m->n_ids;
    *at = b;
    j->n++;
    return b;
}

void jobs_forget(struct jobs *j, struct job *b)
{
    if (b->queued) {
        struct job **at = &j->first, *before = NULL;
        while (*at != b) {
            before = *at;
            at = &(*at)->next_queued;
        }
        *at = b->next_queued;
        if (j->last == b)
            j->last = before;
    }
    *slot(j, b->job) = b->chain;
    j->n--;
    j->kept -= b->n - b->durable;
    job_free(b);
}

static void add_span(struct job *b, struct msg_span s)
{
    if (b->n_spans > 0 && b->spans[b->n_spans - 1].version == s.version) {
        b->spans[b->n_spans - 1].end = s.end;
        return;
    }
    if (b->n_spans == b->cap_spans) {
        b->cap_spans = b->cap_spans ? 2 * b->cap_spans : 2;
        b->spans = mem_grow(b->spans, (size_t)b->cap_spans, sizeof *b->spans);
    }
    b->spans[b->n_spans++] = s;
}

void jobs_take(struct jobs *j, struct job *b, const struct outputs *o, const struct output *i)
{
    assert(i->offset == b->n && b->finish == FINISH_NONE);
    if (b->n + i->n > b->cap) {
        b->cap = b->n + i->n > 2 * b->cap ? b->n + i->n : 2 * b->cap;
        b->ids = mem_grow(b->ids, (size_t)b->cap, sizeof *b->ids);
        b->logprobs = mem_grow(b->logprobs, (size_t)b->cap, sizeof *b->logprobs);
    }
    if (i->n > 0) {
        memcpy(b->ids + b->n, o->ids + i->first_token, (size_t)i->n * sizeof *b->ids);
        memcpy(b->logprobs + b->n, o->logprobs + i->first_token, (size_t)i->n * sizeof *b->logprobs);
    }
    for (int32_t k = 0; k < i->n_spans; k++)
        add_span(b, o->spans[i->first_span + (size_t)k]);
    if (b->n_kv + i->n_kv > b->cap_kv) {
        b->cap_kv = b->n_kv + i->n_kv > 2 * b->cap_kv ? b->n_kv + i->n_kv : 2 * b->cap_kv;
        b->kv = mem_grow(b->kv, (size_t)b->cap_kv, sizeof *b->kv);
    }
    for (int32_t k = 0; k < i->n_kv; k++)
        b->kv[b->n_kv++] = o->kv[i->first_kv + (size_t)k];
    if (i->n_prompt_logprobs > 0) {
        b->n_prompt_logprobs = i->n_prompt_logprobs;
        b->prompt_logprobs = mem_must((size_t)i->n_prompt_logprobs, sizeof(float));
        memcpy(b->prompt_logprobs, o->prompt_logprobs + i->first_prompt,
               (size_t)i->n_prompt_logprobs * sizeof(float));
    }
    b->n += i->n;
    j->kept += i->n;
    b->finish = i->finish;
    b->cached = i->cached_tokens;
    if (*i->error)
        b->error = mem_strndup(i->error, strnlen(i->error, MSG_STRING - 1));
    jobs_queue(j, b);
}

void jobs_fail(struct jobs *j, struct job *b, const char *error)
{
    b->finish = FINISH_ERROR;
    free(b->error);
    b->error = mem_strndup(error, strnlen(error, MSG_STRING - 1));
    jobs_queue(j, b);
}

void jobs_fail_unsent(struct jobs *j, struct job *b, const char *error)
{
    j->kept -= b->n - b->sent;
    b->n = b->sent;
    while (b->n_spans > 0 && b->spans[b->n_spans - 1].start >= b->n)
        b->n_spans--;
    if (b->n_spans > 0 && b->spans[b->n_spans - 1].end > b->n)
        b->spans[b->n_spans - 1].end = b->n;
    while (b->n_kv > 0 && b->kv[b->n_kv - 1].at_token - b->n_prompt >= b->n)
        b->n_kv--;
    b->n_prompt_logprobs = 0;
    jobs_fail(j, b, error);
}

void jobs_queue(struct jobs *j, struct job *b)
{
    if (b->queued)
        return;
    b->queued = true;
    b->next_queued = NULL;
    *(j->last ? &j->last->next_queued : &j->first) = b;
    j->last = b;
}

struct job *jobs_queued(const struct jobs *j)
{
    return j->first;
}

void jobs_unqueue(struct jobs *j)
{
    struct job *b = j->first;
    j->first = b->next_queued;
    if (!j->first)
        j->last = NULL;
    b->queued = false;
}

void jobs_message(struct jobs *j, const struct job *b, struct msg *ret)
{
    int32_t from = b->sent, n_spans = 0, first_kv = 0;
    if (b->n_spans > j->cap_spans) {
        j->cap_spans = b->n_spans;
        j->spans = mem_grow(j->spans, (size_t)j->cap_spans, sizeof *j->spans);
    }
    for (int32_t i = 0; i < b->n_spans; i++) {
        struct msg_span s = b->spans[i];
        if (s.end <= from)
            continue;
        s.start = s.start > from ? s.start : from;
        j->spans[n_spans++] = s;
    }
    while (first_kv < b->n_kv && b->kv[first_kv].at_token - b->n_prompt < from)
        first_kv++;
    *ret = (struct msg){.type = MSG_TOKEN_DATA};
    ret->tokens = (struct msg_tokens){
        .job = b->job,
        .offset = from,
        .n = b->n - from,
        .ids = b->ids + from,
        .logprobs = b->logprobs + from,
        .n_spans = n_spans,
        .spans = j->spans,
        .n_kv = b->n_kv - first_kv,
        .kv = b->kv + first_kv,
        .finish = b->finish,
        .error = b->error ? b->error : "",
        .cached_tokens = b->cached,
        .n_prompt_logprobs = b->finish != FINISH_NONE ? b->n_prompt_logprobs : 0,
        .prompt_logprobs = b->prompt_logprobs,
    };
}

void jobs_rewind(struct jobs *j, struct job *b)
{
    b->sent = b->durable;
    b->finish_sent = false;
    if (b->sent < b->n || b->finish != FINISH_NONE)
        jobs_queue(j, b);
}

static void rewind_one(void *ctx, struct job *b)
{
    jobs_rewind(ctx, b);
}

void jobs_rewind_all(struct jobs *j)
{
    jobs_each(j, rewind_one, j);
}

void jobs_each(struct jobs *j, void (*fn)(void *ctx, struct job *b), void *ctx)
{
    for (int i = 0; i < BUCKETS; i++)
        for (struct job *b = j->buckets[i], *next; b; b = next) {
            next = b->chain;
            fn(ctx, b);
        }
}

void jobs_acknowledge(struct jobs *j, struct job *b, int32_t durable_to)
{
    if (durable_to > b->n)
        durable_to = b->n; // an acknowledgement of tokens this incarnation never sent
    if (durable_to > b->durable) {
        j->kept -= durable_to - b->durable;
        b->durable = durable_to;
    }
    if (b->sent < b->durable)
        b->sent = b->durable;
    if (b->finish != FINISH_NONE && b->finish_sent && b->durable == b->n)
        jobs_forget(j, b);
}
