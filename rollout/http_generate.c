// POST /generate: a call becomes n jobs (sampling_params.n), their outputs are gathered here until the reply or, in a stream,
// until the client has taken them. Runs on the I/O thread.
//
// Invariants
//   1. A call lives from its request until every one of its jobs has sent its finish, also when the client is gone; then the
//      request is ended, exactly once.
//   2. A stream's client that does not read holds up nothing but its own events: what it has not been sent stays in the call.
#include "rollout/http_generate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/hash.h"
#include "base/mem.h"
#include "rollout/request.h"
#include "rollout/sampler.h"

#define CALL_BUCKETS 1024
#define CALLS_MAX    65536
#define N_MAX        64 // samples of one call

struct part { // one job of a call
    int32_t *ids;
    float *logprobs;
    int32_t n, cap, sent; // sent: to the stream
    int32_t *top_ids;     // [n, n_top]
    float *top_logprobs;
    struct msg_span spans[16]; // the last takes what comes after 16 refits
    int32_t n_spans;
    float *prompt_logprobs;
    int32_t n_prompt_logprobs;
    int32_t cached, finish;
    char error[512];
};

struct call {
    uint64_t first_job; // jobs first_job … first_job + n - 1
    int32_t n, n_left;
    struct part *parts;
    struct http_request *request;
    bool stream, began, want_logprobs;
    int32_t n_top, logprob_start; // -1: no input logprobs
    int32_t n_prompt;
    int32_t *prompt;
    char rid[128];
    struct generate *owner;
    struct call *chain;
};

struct generate {
    struct worker *worker;
    struct model_config model;
    struct call *buckets[CALL_BUCKETS];
    int n_calls;
    uint64_t next_job;
};

struct generate *generate_open(struct worker *w, const struct model_config *m)
{
    struct generate *g = mem_must(1, sizeof *g);
    g->worker = w;
    g->model = *m;
    g->next_job = HTTP_JOB_BIT;
    return g;
}

static void call_free(struct call *c)
{
    for (int32_t i = 0; i < c->n; i++) {
        struct part *p = &c->parts[i];
        free(p->ids);
        free(p->logprobs);
        free(p->top_ids);
        free(p->top_logprobs);
        free(p->prompt_logprobs);
    }
    free(c->parts);
    free(c->prompt);
    free(c);
}

void generate_close(struct generate *g)
{
    if (!g)
        return;
    for (int b = 0; b < CALL_BUCKETS; b++)
        for (struct call *c = g->buckets[b], *next; c; c = next) {
            next = c->chain;
            if (c->began)
                http_stream_end(c->request);
            else
                http_reply_error(c->request, 503, NULL, "the engine is stopping");
            call_free(c);
        }
    free(g);
}

int generate_calls(const struct generate *g)
{
    return g->n_calls;
}

// A call's jobs share its bucket: job ids are handed out in blocks of N_MAX.
static struct call **find(struct generate *g, uint64_t job)
{
    uint64_t first = job / N_MAX * N_MAX;
    struct call **at = &g->buckets[first / N_MAX % CALL_BUCKETS];
    while (*at && (*at)->first_job != first)
        at = &(*at)->chain;
    return at;
}

static void cancel_call(struct generate *g, const struct call *c)
{
    for (int32_t i = 0; i < c->n; i++)
        if (c->parts[i].finish == FINISH_NONE)
            worker_cancel(g->worker, c->first_job + (uint64_t)i);
}

int generate_abort(struct generate *g, const char *rid)
{
    int n = 0;
    for (int b = 0; b < CALL_BUCKETS; b++)
        for (struct call *c = g->buckets[b]; c; c = c->chain)
            if (!rid || strcmp(c->rid, rid) == 0) {
                cancel_call(g, c);
                n++;
            }
    return n;
}

// ---- reading a request --------------------------------------------------------------------------------------------------

static const char *session_of(const json_t *body)
{
    const char *s = json_string_value(json_object_get(body, "session_id"));
    return s && *s ? s : NULL;
}

// Fills job and call from the body.
static enum status read_call(struct generate *g, const json_t *body, struct engine_job *job, struct call *c,
                             struct error *err)
{
    static const char *const what = "the request", *const sampling = "sampling_params";
    static const struct request_style style = {"max_new_tokens", "min_new_tokens", "sampling_seed", -1};
    if (json_object_get(body, "text"))
        return error_set(
            err, STATUS_UNSUPPORTED,
            "this engine speaks token ids: send input_ids instead of text (the run's gateway speaks text)");
    struct msg_job *m = &job->msg;
    int64_t n = 1, seed = -1, n_top = 0, start = -1;
    const json_t *params = json_object_get(body, sampling);
    json_t *none = params ? NULL : json_object();
    params = params ? params : none;
    enum status st = request_sampling(params, sampling, &style, &m->sampling, &seed, err);
    if (st == STATUS_OK)
        st = json_get_int(params, "n", false, 1, 1, N_MAX, sampling, &n, err);
    json_decref(none);
    const char *rid = "";
    if (st == STATUS_OK)
        st = json_get_bool(body, "return_logprob", false, false, what, &c->want_logprobs, err);
    if (st == STATUS_OK)
        st = json_get_int(body, "logprob_start_len", false, -1, -1, MSG_TOKENS_MAX, what, &start, err);
    if (st == STATUS_OK)
        st = json_get_int(body, "top_logprobs_num", false, 0, 0, SAMPLER_TOP_MAX, what, &n_top, err);
    if (st == STATUS_OK)
        st = json_get_bool(body, "stream", false, false, what, &c->stream, err);
    if (st == STATUS_OK)
        st = json_get_string(body, "rid", false, "", what, &rid, err);
    if (st == STATUS_OK && strlen(rid) >= sizeof c->rid)
        st = error_set(err, STATUS_LIMIT, "rid: at most %zu bytes", sizeof c->rid - 1);
    if (st == STATUS_OK && c->stream && n > 1)
        st = error_set(err, STATUS_UNSUPPORTED, "a stream holds one sample: send n separate requests");
    if (st == STATUS_OK)
        st = request_ids(json_object_get(body, "input_ids"), "input_ids", MSG_TOKENS_MAX, &c->prompt,
                         &c->n_prompt, err);
    if (st != STATUS_OK)
        return st;
    if (seed < 0 && getrandom(&m->run_seed, sizeof m->run_seed, 0) != sizeof m->run_seed)
        return error_set(err, STATUS_IO, "no random seed");
    if (seed >= 0)
        m->run_seed = (uint64_t)seed;
    c->n = c->n_left = (int32_t)n;
    c->parts = mem_must((size_t)n, sizeof *c->parts);
    c->n_top = c->want_logprobs ? (int32_t)n_top : 0;
    c->logprob_start = c->want_logprobs ? (int32_t)start : -1;
    c->first_job = g->next_job;
    snprintf(c->rid, sizeof c->rid, "%s", rid);
    if (!*rid)
        snprintf(c->rid, sizeof c->rid, "%016llx", (unsigned long long)(c->first_job & ~HTTP_JOB_BIT));
    const char *session = session_of(body);
    m->session = session ? hash64(session, strlen(session)) | 1 : 0;
    m->n_ids = c->n_prompt;
    m->ids = c->prompt;
    m->prompt_logprobs = c->logprob_start >= 0;
    m->min_version = -1;
    job->top_logprobs = c->n_top;
    job->flush_tokens = c->stream ? 1 : 64;
    return STATUS_OK;
}

static void call_end(struct generate *g, struct call *c)
{
    struct call **at = find(g, c->first_job);
    *at = c->chain;
    g->n_calls--;
    call_free(c);
}

static void on_gone(void *ctx, struct http_request *r)
{
    struct call *c = ctx;
    if (c->n_left > 0) {
        cancel_call(c->owner, c); // the end comes with the last output
        return;
    }
    http_stream_end(r); // only a stream waits for its client after the last output
    call_end(c->owner, c);
}

static void on_drain(void *ctx, struct http_request *r);

void generate_request(struct generate *g, struct http_request *r)
{
    json_t *body = NULL;
    if (!http_request_json(r, &body))
        return;
    struct call *c = mem_must(1, sizeof *c);
    struct engine_job job = {0};
    struct error err = {0};
    enum status st = read_call(g, body, &job, c, &err);
    if (st == STATUS_OK)
        st = sampler_check(&job.msg.sampling, g->model.vocab, &err); // the engine would too, but later
    json_decref(body);
    int code = 400;
    if (st == STATUS_OK && g->n_calls >= CALLS_MAX) {
        st = error_set(&err, STATUS_AGAIN, "%d calls are under way already", g->n_calls);
        code = 503;
    }
    int32_t submitted = 0;
    for (; st == STATUS_OK && submitted < c->n; submitted++) {
        job.msg.job = c->first_job + (uint64_t)submitted;
        job.msg.trajectory = (uint64_t)submitted;
        st = worker_submit(g->worker, &job, &err);
        code = 503;
    }
    if (st != STATUS_OK) {
        for (int32_t i = 0; i + 1 < submitted; i++)
            worker_cancel(g->worker,
                          c->first_job + (uint64_t)i); // their outputs find no call and are dropped
        g->next_job += N_MAX;
        http_reply_error(r, code, NULL, "%s", err.text);
        call_free(c);
        return;
    }
    g->next_job += N_MAX;
    c->owner = g;
    c->request = r;
    struct call **bucket = find(g, c->first_job);
    c->chain = NULL;
    *bucket = c;
    g->n_calls++;
    http_request_on_disconnect(r, on_gone, c);
    http_request_set_data(r, c);
}

// ---- gathering outputs ----------------------------------------------------------------------------------------------------

static void part_add(struct part *p, const struct outputs *o, const struct output *i)
{
    if (p->n + i->n > p->cap) {
        p->cap = p->n + i->n > 2 * p->cap ? p->n + i->n : 2 * p->cap;
        p->ids = mem_grow(p->ids, (size_t)p->cap, sizeof *p->ids);
        p->logprobs = mem_grow(p->logprobs, (size_t)p->cap, sizeof *p->logprobs);
        if (i->n_top > 0) {
            p->top_ids = mem_grow(p->top_ids, (size_t)p->cap * (size_t)i->n_top, sizeof *p->top_ids);
            p->top_logprobs =
                mem_grow(p->top_logprobs, (size_t)p->cap * (size_t)i->n_top, sizeof *p->top_logprobs);
        }
    }
    if (i->n > 0) {
        memcpy(p->ids + p->n, o->ids + i->first_token, (size_t)i->n * sizeof *p->ids);
        memcpy(p->logprobs + p->n, o->logprobs + i->first_token, (size_t)i->n * sizeof *p->logprobs);
    }
    if (i->n > 0 && i->n_top > 0) {
        size_t at = (size_t)p->n * (size_t)i->n_top, n = (size_t)i->n * (size_t)i->n_top;
        memcpy(p->top_ids + at, o->top_ids + i->first_top, n * sizeof *p->top_ids);
        memcpy(p->top_logprobs + at, o->top_logprobs + i->first_top, n * sizeof *p->top_logprobs);
    }
    for (int32_t k = 0; k < i->n_spans; k++) {
        struct msg_span s = o->spans[i->first_span + (size_t)k];
        struct msg_span *last = p->n_spans ? &p->spans[p->n_spans - 1] : NULL;
        if (last && (last->version == s.version || p->n_spans == 16))
            *last = (struct msg_span){.version = s.version, .start = last->start, .end = s.end};
        else
            p->spans[p->n_spans++] = s;
    }
    if (i->n_prompt_logprobs > 0) {
        p->n_prompt_logprobs = i->n_prompt_logprobs;
        p->prompt_logprobs = mem_must((size_t)i->n_prompt_logprobs, sizeof(float));
        memcpy(p->prompt_logprobs, o->prompt_logprobs + i->first_prompt,
               (size_t)i->n_prompt_logprobs * sizeof(float));
    }
    p->n += i->n;
    p->cached = i->cached_tokens;
    p->finish = i->finish;
    snprintf(p->error, sizeof p->error, "%s", i->error);
}

// ---- writing replies --------------------------------------------------------------------------------------------------------

static void put_logprob(struct buf *b, float logprob, int32_t id)
{
    buf_printf(b, "[%.9g,%d,null]", (double)logprob, id);
}

static void put_finish(struct buf *b, const struct part *p)
{
    buf_puts(b, ",\"finish_reason\":");
    switch (p->finish) {
    case FINISH_STOP:
        buf_printf(b, "{\"type\":\"stop\",\"matched\":%d}", p->ids[p->n - 1]);
        break;
    case FINISH_LENGTH:
        buf_printf(b, "{\"type\":\"length\",\"length\":%d}", p->n);
        break;
    case FINISH_NONE:
        buf_puts(b, "null");
        break;
    default: {
        const char *why = p->finish == FINISH_ABORT ? "aborted" : p->error;
        buf_puts(b, "{\"type\":\"abort\",\"message\":");
        json_put_string(b, why, strlen(why));
        buf_putc(b, '}');
    }
    }
}

static void put_logprobs(struct buf *b, const struct call *c, const struct part *p, int32_t from)
{
    if (c->logprob_start >= 0 && p->n_prompt_logprobs > 0) {
        buf_puts(b, ",\"input_token_logprobs\":[");
        for (int32_t i = c->logprob_start; i < p->n_prompt_logprobs; i++) {
            buf_puts(b, i > c->logprob_start ? "," : "");
            if (i == 0)
                buf_printf(b, "[null,%d,null]", c->prompt[0]); // nothing comes before it
            else
                put_logprob(b, p->prompt_logprobs[i], c->prompt[i]);
        }
        buf_putc(b, ']');
    }
    buf_puts(b, ",\"output_token_logprobs\":[");
    for (int32_t i = from; i < p->n; i++) {
        buf_puts(b, i > from ? "," : "");
        put_logprob(b, p->logprobs[i], p->ids[i]);
    }
    buf_putc(b, ']');
    if (c->n_top == 0)
        return;
    buf_puts(b, ",\"output_top_logprobs\":[");
    for (int32_t i = from; i < p->n; i++) {
        buf_puts(b, i > from ? ",[" : "[");
        for (int32_t k = 0; k < c->n_top && p->top_ids[i * c->n_top + k] >= 0; k++) {
            buf_puts(b, k ? "," : "");
            put_logprob(b, p->top_logprobs[i * c->n_top + k], p->top_ids[i * c->n_top + k]);
        }
        buf_putc(b, ']');
    }
    buf_putc(b, ']');
}

// One result, of the tokens from `from` on. weight_version is that of the last span (none sampled: of the engine).
static void put_result(struct buf *b, struct generate *g, const struct call *c, int32_t index, int32_t from)
{
    const struct part *p = &c->parts[index];
    buf_puts(b, "{\"output_ids\":");
    json_put_i32_array(b, p->ids + from, (size_t)(p->n - from));
    buf_puts(b, ",\"meta_info\":{\"id\":");
    json_put_string(b, c->rid, strlen(c->rid));
    put_finish(b, p);
    struct worker_stats stats;
    worker_stats(g->worker, &stats);
    int64_t version = p->n_spans ? p->spans[p->n_spans - 1].version : stats.engine.version;
    buf_printf(
        b,
        ",\"prompt_tokens\":%d,\"completion_tokens\":%d,\"cached_tokens\":%d,\"weight_version\":\"%lld\","
        "\"weight_versions\":[",
        c->n_prompt, p->n, p->cached, (long long)version);
    for (int32_t i = 0; i < p->n_spans; i++)
        buf_printf(b, "%s{\"version\":\"%lld\",\"start\":%d,\"end\":%d}", i ? "," : "",
                   (long long)p->spans[i].version, p->spans[i].start, p->spans[i].end);
    buf_putc(b, ']');
    if (c->want_logprobs)
        put_logprobs(b, c, p, from);
    buf_puts(b, "}}");
}

static void reply_whole(struct generate *g, struct call *c)
{
    // What the engine refused before the first token was the request's fault.
    const struct part *first = &c->parts[0];
    if (first->finish == FINISH_ERROR && first->n == 0) {
        http_reply_error(c->request, 400, NULL, "%s", first->error);
        call_end(g, c);
        return;
    }
    struct buf b = {0};
    if (c->n > 1)
        buf_putc(&b, '[');
    for (int32_t i = 0; i < c->n; i++) {
        if (i > 0)
            buf_putc(&b, ',');
        put_result(&b, g, c, i, 0);
    }
    if (c->n > 1)
        buf_putc(&b, ']');
    http_reply(c->request, 200, "application/json", b.data, b.len);
    buf_done(&b);
    call_end(g, c);
}

static void stream_more(struct generate *g, struct call *c)
{
    struct part *p = &c->parts[0];
    if (!c->began && p->finish == FINISH_ERROR && p->n == 0) {
        reply_whole(g, c);
        return;
    }
    if (!c->began) {
        http_stream_begin(c->request, 200, "text/event-stream");
        http_stream_on_drain(c->request, on_drain, c);
        c->began = true;
    }
    if (p->sent == p->n && p->finish == FINISH_NONE)
        return;
    struct buf b = {0};
    buf_puts(&b, "data: ");
    put_result(&b, g, c, 0, p->sent);
    buf_puts(&b, p->finish == FINISH_NONE ? "\n\n" : "\n\ndata: [DONE]\n\n");
    enum status st = http_stream_write(c->request, b.data, b.len);
    buf_done(&b);
    if (st == STATUS_OK)
        p->sent = p->n;
    if (p->finish == FINISH_NONE || st == STATUS_AGAIN)
        return; // AGAIN: on_drain comes
    http_stream_end(c->request);
    call_end(g, c);
}

static void on_drain(void *ctx, struct http_request *r)
{
    (void)r;
    struct call *c = ctx;
    stream_more(c->owner, c);
}

void generate_output(struct generate *g, const struct outputs *o, const struct output *item)
{
    struct call *c = *find(g, item->job);
    if (!c)
        return;
    struct part *p = &c->parts[item->job - c->first_job];
    part_add(p, o, item);
    c->n_left -= p->finish != FINISH_NONE;
    if (c->stream)
        stream_more(g, c);
    else if (c->n_left == 0)
        reply_whole(g, c);
}
