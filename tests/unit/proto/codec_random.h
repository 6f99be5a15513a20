// Messages of every type with random content, and their frames: what the tests of the codec share. One generator, three arenas; a test
// program's main hands setup and teardown to cmocka.
#ifndef TESTS_CODEC_RANDOM_H
#define TESTS_CODEC_RANDOM_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
// cmocka wants the four above first
#include <cmocka.h>

#include "base/buf.h"
#include "base/file.h"
#include "base/rng.h"
#include "proto/codec.h"

#define MSG_LAST MSG_BYE

static struct rng rng;
static struct arena made, coded, decoded; // what the messages, the frames, the decoded messages live in
static struct error err;

static int setup(void **state)
{
    (void)state;
    rng_init(&rng, 7, 0);
    arena_init(&made, 0);
    arena_init(&coded, 0);
    arena_init(&decoded, (size_t)256 << 20);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    arena_done(&made);
    arena_done(&coded);
    arena_done(&decoded);
    return 0;
}

// ---- random messages -------------------------------------------------------------------------------------

static int64_t below(int64_t n)
{
    return (int64_t)rng_below(&rng, (uint64_t)n);
}

static int64_t count(void) // spread over the magnitudes, never 0, so that a lost field shows
{
    return 1 + (int64_t)(rng_u64(&rng) >> (1 + below(62)));
}

static const char *text(void)
{
    static const char *const pieces[] = {
        "a", "run-7", "/tmp/x y", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\"\\\n"};
    char buf[256];
    size_t n = 0;
    for (int64_t i = 1 + below(8); i > 0; i--) {
        const char *p = pieces[below(7)];
        memcpy(buf + n, p, strlen(p));
        n += strlen(p);
    }
    return arena_strndup(&made, buf, n);
}

static float logprob(void)
{
    return -(float)rng_uniform(&rng) * 9 - 0.001f;
}

static void *many(int64_t n, size_t size)
{
    return arena_zalloc(&made, (size_t)n * size);
}

static void random_sampling(struct msg_sampling *s)
{
    s->train = below(2);
    s->temperature = 0.5f + (float)rng_uniform(&rng);
    s->top_p = s->train ? 1 : 0.25f;
    s->min_p = s->train ? 0 : 0.125f;
    s->top_k = s->train ? 0 : (int32_t)below(100);
    s->max_new = 1 + (int32_t)below(100);
    s->min_new = (int32_t)below(s->max_new + 1);
    s->n_stop = (int32_t)below(MSG_STOP_IDS + 1);
    for (int i = 0; i < s->n_stop; i++)
        s->stop[i] = (int32_t)below(INT32_MAX);
    s->ignore_eos = below(2);
}

static void random_job(struct msg_job *j)
{
    *j = (struct msg_job){.job = rng_u64(&rng),
                          .orchestrator_epoch = count(),
                          .run_seed = rng_u64(&rng),
                          .trajectory = rng_u64(&rng),
                          .attempt = rng_u32(&rng),
                          .segment = rng_u32(&rng),
                          .min_version = count(),
                          .session = rng_u64(&rng),
                          .deadline_ms = count(),
                          .n_ids = 1 + (int32_t)below(300),
                          .prompt_logprobs = true};
    random_sampling(&j->sampling);
    int32_t *ids = many(j->n_ids, sizeof(*ids));
    for (int i = 0; i < j->n_ids; i++)
        ids[i] = (int32_t)below(200000);
    j->ids = ids;
}

static void random_tokens(struct msg_tokens *t)
{
    *t = (struct msg_tokens){.job = rng_u64(&rng),
                             .offset = (int32_t)below(5000),
                             .n = (int32_t)below(40),
                             .finish = (int32_t)below(5),
                             .error = text(),
                             .cached_tokens = (int32_t)below(100),
                             .n_prompt_logprobs = (int32_t)below(30),
                             .n_kv = (int32_t)below(5)};
    int32_t *ids = many(t->n, sizeof(*ids)), at = 0;
    float *lp = many(t->n, sizeof(*lp)), *plp = many(t->n_prompt_logprobs, sizeof(*plp));
    struct msg_span *spans = many(t->n, sizeof(*spans));
    struct msg_kv *kv = many(t->n_kv, sizeof(*kv));
    for (int i = 0; i < t->n; i++) {
        ids[i] = (int32_t)below(200000);
        lp[i] = logprob();
    }
    for (int i = 0; i < t->n_prompt_logprobs; i++)
        plp[i] = logprob();
    while (at < t->n) {
        int32_t end = at + 1 + (int32_t)below(t->n - at);
        spans[t->n_spans] = (struct msg_span){t->n_spans + 3, t->offset + at, t->offset + end};
        t->n_spans++;
        at = end;
    }
    for (int i = 0; i < t->n_kv; i++)
        kv[i] = (struct msg_kv){1 + (int32_t)below(4), (int32_t)below(99), (int32_t)below(9),
                                9 + (int32_t)below(9), count()};
    t->ids = ids;
    t->logprobs = lp;
    t->prompt_logprobs = plp;
    t->spans = spans;
    t->kv = kv;
}

static void random_prepare(struct msg_prepare *p)
{
    *p = (struct msg_prepare){.epoch = count(),
                              .step = 100 + below(100),
                              .stage = 1 + (int32_t)below(9),
                              .stage_step = count(),
                              .stage_first = true,
                              .lr = rng_uniform(&rng),
                              .packing_seed = rng_u64(&rng),
                              .updates = 1 + (int32_t)below(4),
                              .publish = below(2),
                              .checkpoint = below(2),
                              .replay = below(2),
                              .expect_hash = text(),
                              .optimizer_reset = below(2),
                              .n_members = 1 + (int32_t)below(6)};
    struct msg_member *m = many(p->n_members, sizeof(*m));
    for (int i = 0; i < p->n_members; i++) {
        m[i] = (struct msg_member){rng_u64(&rng),    rng_u32(&rng),          rng_u32(&rng),
                                   rng_u64(&rng),    1 + (int32_t)below(20), 1 + (int32_t)below(3),
                                   rng_normal(&rng), (int32_t)below(5) - 1};
        p->n_tokens += m[i].n_tokens;
    }
    int32_t *ids = many(p->n_tokens, 4), *versions = many(p->n_tokens, 4);
    float *lp = many(p->n_tokens, 4), *temperatures = many(p->n_tokens, 4);
    uint8_t *mask = many(p->n_tokens, 1);
    for (int64_t i = 0; i < p->n_tokens; i++) {
        ids[i] = (int32_t)below(200000);
        mask[i] = (uint8_t)below(2);
        lp[i] = mask[i] ? logprob() : 0;
        versions[i] = mask[i] ? 50 + (int32_t)(i / 20) : -1;
        temperatures[i] = mask[i] ? 0.7f : 1;
    }
    p->members = m;
    p->ids = ids;
    p->mask = mask;
    p->logprobs = lp;
    p->versions = versions;
    p->temperatures = temperatures;
}

static void random_step_done(struct msg_step_done *s)
{
    *s = (struct msg_step_done){.epoch = count(),
                                .step = count(),
                                .outcome = 1 + (int32_t)below(2),
                                .reason = text(),
                                .version = count(),
                                .hash = text(),
                                .path = text(),
                                .bytes = count(),
                                .n_metrics = (int32_t)below(9)};
    struct msg_metric *m = many(s->n_metrics, sizeof(*m));
    for (int i = 0; i < s->n_metrics; i++)
        m[i] = (struct msg_metric){text(), rng_uniform(&rng)};
    s->metrics = m;
}

static void random_checkpoint(struct msg_checkpoint *c)
{
    *c = (struct msg_checkpoint){
        .epoch = count(), .step = count(), .path = text(), .hash = text(), .n_prune = (int32_t)below(4)};
    const char **prune = many(c->n_prune, sizeof(*prune));
    for (int i = 0; i < c->n_prune; i++)
        prune[i] = text();
    c->prune = prune;
}

static void random_chunk(struct msg_chunk_data *c)
{
    *c = (struct msg_chunk_data){.version = count(), .offset = below(1 << 30), .n = below(5000)};
    c->total = c->offset + c->n + below(99);
    uint8_t *data = many(c->n, 1);
    for (int64_t i = 0; i < c->n; i++)
        data[i] = (uint8_t)rng_u32(&rng);
    c->data = data;
}

static void random_check(struct msg_check *c)
{
    *c = (struct msg_check){.epoch = count(),
                            .id = rng_u64(&rng),
                            .step = count(),
                            .n_segments = 1 + (int32_t)below(5),
                            .n_weights = (int32_t)below(4)};
    struct msg_check_segment *s = many(c->n_segments, sizeof(*s));
    for (int i = 0; i < c->n_segments; i++) {
        s[i] = (struct msg_check_segment){rng_u64(&rng), rng_u32(&rng), rng_u32(&rng), 1 + (int32_t)below(20),
                                          (int32_t)below(3)};
        c->n_tokens += s[i].n_tokens;
        c->n_kv += s[i].n_kv;
    }
    struct msg_weights *w = many(c->n_weights, sizeof(*w));
    for (int i = 0; i < c->n_weights; i++)
        w[i] = (struct msg_weights){5 + i, text(), text()};
    struct msg_kv *kv = many(c->n_kv, sizeof(*kv));
    for (int i = 0; i < c->n_kv; i++)
        kv[i] = (struct msg_kv){1 + (int32_t)below(4), (int32_t)below(99), (int32_t)below(9),
                                9 + (int32_t)below(9), count()};
    int32_t *ids = many(c->n_tokens, 4), *versions = many(c->n_tokens, 4);
    float *lp = many(c->n_tokens, 4), *temperatures = many(c->n_tokens, 4);
    uint8_t *mask = many(c->n_tokens, 1);
    for (int64_t i = 0; i < c->n_tokens; i++) {
        ids[i] = (int32_t)below(200000);
        mask[i] = (uint8_t)below(2);
        lp[i] = mask[i] ? logprob() : 0;
        versions[i] = mask[i] ? 5 + (int32_t)(i / 20) : -1;
        temperatures[i] = mask[i] ? 0.7f : 1;
    }
    c->segments = s;
    c->weights = w;
    c->kv = kv;
    c->ids = ids;
    c->mask = mask;
    c->logprobs = lp;
    c->versions = versions;
    c->temperatures = temperatures;
}

static void random_check_done(struct msg_check_done *c)
{
    *c = (struct msg_check_done){.epoch = count(),
                                 .id = rng_u64(&rng),
                                 .compared = 50 + (int32_t)below(50),
                                 .skipped = 1 + (int32_t)below(50),
                                 .crossing = 1 + (int32_t)below(50),
                                 .tokens = count(),
                                 .tokens_skipped = count(),
                                 .max_abs_diff = below(2) ? rng_uniform(&rng) : (double)INFINITY,
                                 .differs = true,
                                 .trajectory = rng_u64(&rng),
                                 .attempt = rng_u32(&rng),
                                 .segment = rng_u32(&rng),
                                 .position = 1 + (int32_t)below(100),
                                 .version = count(),
                                 .recorded = logprob(),
                                 .rescored = logprob(),
                                 .error = text()};
}

static void random_trace(struct msg_trace *t)
{
    *t = (struct msg_trace){.epoch = count(),
                            .id = rng_u64(&rng),
                            .version = count(),
                            .path = text(),
                            .hash = text(),
                            .n_ids = 2 + (int32_t)below(50)};
    int32_t *ids = many(t->n_ids, 4);
    for (int i = 0; i < t->n_ids; i++)
        ids[i] = (int32_t)below(200000);
    t->ids = ids;
}

static void random_trace_done(struct msg_trace_done *t)
{
    *t = (struct msg_trace_done){.epoch = count(),
                                 .id = rng_u64(&rng),
                                 .version = count(),
                                 .ok = true,
                                 .error = text(),
                                 .n_ops = 1 + (int32_t)below(30),
                                 .n_logprobs = 1 + (int32_t)below(30)};
    struct msg_trace_op *ops = many(t->n_ops, sizeof(*ops));
    uint64_t *digests = many(t->n_ops, 8);
    float *lp = many(t->n_logprobs, 4);
    for (int i = 0; i < t->n_ops; i++) {
        ops[i] = (struct msg_trace_op){i / 3 - 1, i % 3, text(), text()};
        digests[i] = rng_u64(&rng);
    }
    for (int i = 0; i < t->n_logprobs; i++)
        lp[i] = logprob();
    t->ops = ops;
    t->digests = digests;
    t->logprobs = lp;
}

static void random_msg(enum msg_type type, struct msg *m)
{
    memset(m, 0, sizeof(*m));
    m->type = type;
    switch (type) {
    case MSG_HELLO:
        m->hello = (struct msg_hello){1 + (int32_t)below(3),
                                      text(),
                                      text(),
                                      text(),
                                      text(),
                                      count(),
                                      count(),
                                      text(),
                                      count(),
                                      count(),
                                      count(),
                                      false};
        m->hello.remote = m->hello.role == ROLE_ENGINE && m->hello.pid % 2;
        break;
    case MSG_WELCOME:
        m->welcome = (struct msg_welcome){text(), count(), count(), true, text(),  count(), count(),
                                          5,      text(),  text(),  6,    count(), text(),  text()};
        break;
    case MSG_PING:
    case MSG_PONG:
        m->ping = (struct msg_ping){rng_u64(&rng), count(), count(), count(), count(), count(),
                                    count(),       count(), count(), count(), count(), 0.25};
        break;
    case MSG_JOB:
        random_job(&m->job);
        break;
    case MSG_TOKEN_DATA:
        random_tokens(&m->tokens);
        break;
    case MSG_ACK:
        m->ack = (struct msg_ack){rng_u64(&rng), (int32_t)below(MSG_TOKENS_MAX)};
        break;
    case MSG_CANCEL:
        m->cancel.job = rng_u64(&rng);
        break;
    case MSG_PREPARE:
        random_prepare(&m->prepare);
        break;
    case MSG_STEP_DONE:
        random_step_done(&m->step_done);
        break;
    case MSG_COMMIT_ACK:
        m->commit_ack = (struct msg_commit_ack){count(), count(), 1 + (int32_t)below(3), text()};
        break;
    case MSG_CHECKPOINT:
        random_checkpoint(&m->checkpoint);
        break;
    case MSG_VERSION:
        m->version = (struct msg_version){count(), text(), text(), count()};
        break;
    case MSG_LOADED:
        m->loaded = (struct msg_loaded){count(), text(), true, text(), rng_uniform(&rng), rng_uniform(&rng)};
        break;
    case MSG_CHUNK_REQUEST:
        m->chunk_request = (struct msg_chunk_request){count(), count(), 1 + below(MSG_CHUNK)};
        break;
    case MSG_CHUNK_DATA:
        random_chunk(&m->chunk_data);
        break;
    case MSG_QUERY:
        m->query = (struct msg_query){rng_u64(&rng), text(), text()};
        break;
    case MSG_REPLY:
        m->reply = (struct msg_reply){rng_u64(&rng), -(int32_t)below(20), text()};
        break;
    case MSG_CHECK:
        random_check(&m->check);
        break;
    case MSG_CHECK_DONE:
        random_check_done(&m->check_done);
        break;
    case MSG_TRACE:
        random_trace(&m->trace);
        break;
    case MSG_TRACE_DONE:
        random_trace_done(&m->trace_done);
        break;
    case MSG_BYE:
        m->bye.failed = below(2) == 1;
        break;
    case MSG_NONE:
        break;
    }
}

// ---- frames ----------------------------------------------------------------------------------------------

static int encode(const struct msg *m, struct codec_frame frames[CODEC_FRAMES])
{
    int n = 0;
    arena_reset(&coded);
    if (codec_encode(m, &coded, frames, &n, &err) != STATUS_OK)
        fail_msg("%s", err.text);
    return n;
}

static enum status decode(const struct codec_frame *frames, int n, struct msg *ret)
{
    arena_reset(&decoded);
    memset(&err, 0, sizeof(err));
    enum status rc = codec_decode(frames, n, &decoded, ret, &err);
    assert_int_equal(rc, err.status); // a failure says why
    return rc;
}

// Frames copied to blocks of their exact size, so that the sanitizer sees a read past an end; `shift` misaligns them.
static int copy_frames(const struct codec_frame *in, int n, int shift, struct codec_frame *out, char **blocks)
{
    for (int i = 0; i < n; i++) {
        blocks[i] = malloc(in[i].n + (size_t)shift + 1);
        assert_non_null(blocks[i]);
        if (in[i].n)
            memcpy(blocks[i] + shift, in[i].data, in[i].n);
        out[i] = (struct codec_frame){blocks[i] + shift, in[i].n};
    }
    return n;
}

static void free_frames(char **blocks, int n)
{
    for (int i = 0; i < n; i++)
        free(blocks[i]);
}

#endif
