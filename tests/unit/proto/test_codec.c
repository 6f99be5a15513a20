// proto/codec.h: every message there and back with random content; nothing crashes on damaged frames; what breaks an
// invariant of msg.h is refused on both sides.
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

#define MSG_LAST MSG_TRACE_DONE

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
    case MSG_NONE:
        break;
    }
}

// ---- comparison ------------------------------------------------------------------------------------------

// Everything behind a pointer is compared and the pointer cleared; the rest is compared as bytes, so that a field the
// codec does not know shows.
#define TEXTS(field)                                                                                         \
    do {                                                                                                     \
        assert_string_equal(a.field, b.field);                                                               \
        a.field = b.field = NULL;                                                                            \
    } while (0)
#define ITEMS(field, n)                                                                                      \
    do {                                                                                                     \
        if (n)                                                                                               \
            assert_memory_equal(a.field, b.field, (n) * sizeof(*a.field));                                   \
        a.field = b.field = NULL;                                                                            \
    } while (0)

static void compare_parity_tables(struct msg *pa, struct msg *pb)
{
    struct msg a = *pa, b = *pb;
    if (a.type == MSG_CHECK) {
        size_t n = (size_t)a.check.n_tokens;
        for (int i = 0; i < a.check.n_weights; i++) {
            assert_int_equal(a.check.weights[i].version, b.check.weights[i].version);
            assert_string_equal(a.check.weights[i].path, b.check.weights[i].path);
            assert_string_equal(a.check.weights[i].hash, b.check.weights[i].hash);
        }
        a.check.weights = b.check.weights = NULL;
        ITEMS(check.segments, (size_t)a.check.n_segments);
        ITEMS(check.kv, (size_t)a.check.n_kv);
        ITEMS(check.ids, n);
        ITEMS(check.mask, n);
        ITEMS(check.logprobs, n);
        ITEMS(check.versions, n);
        ITEMS(check.temperatures, n);
    } else if (a.type == MSG_TRACE) {
        ITEMS(trace.ids, (size_t)a.trace.n_ids);
    } else if (a.type == MSG_TRACE_DONE) {
        for (int i = 0; i < a.trace_done.n_ops; i++) {
            assert_int_equal(a.trace_done.ops[i].layer, b.trace_done.ops[i].layer);
            assert_int_equal(a.trace_done.ops[i].nth, b.trace_done.ops[i].nth);
            assert_string_equal(a.trace_done.ops[i].block, b.trace_done.ops[i].block);
            assert_string_equal(a.trace_done.ops[i].op, b.trace_done.ops[i].op);
        }
        a.trace_done.ops = b.trace_done.ops = NULL;
        ITEMS(trace_done.digests, (size_t)a.trace_done.n_ops);
        ITEMS(trace_done.logprobs, (size_t)a.trace_done.n_logprobs);
    }
    *pa = a;
    *pb = b;
}

static void compare_tables(struct msg *pa, struct msg *pb)
{
    struct msg a = *pa, b = *pb;
    if (a.type == MSG_JOB) {
        ITEMS(job.ids, (size_t)a.job.n_ids);
    } else if (a.type == MSG_TOKEN_DATA) {
        TEXTS(tokens.error);
        ITEMS(tokens.ids, (size_t)a.tokens.n);
        ITEMS(tokens.logprobs, (size_t)a.tokens.n);
        ITEMS(tokens.spans, (size_t)a.tokens.n_spans);
        ITEMS(tokens.prompt_logprobs, (size_t)a.tokens.n_prompt_logprobs);
        ITEMS(tokens.kv, (size_t)a.tokens.n_kv);
    } else if (a.type == MSG_PREPARE) {
        size_t n = (size_t)a.prepare.n_tokens;
        TEXTS(prepare.expect_hash);
        ITEMS(prepare.members, (size_t)a.prepare.n_members);
        ITEMS(prepare.ids, n);
        ITEMS(prepare.mask, n);
        ITEMS(prepare.logprobs, n);
        ITEMS(prepare.versions, n);
        ITEMS(prepare.temperatures, n);
    } else if (a.type == MSG_STEP_DONE) {
        for (int i = 0; i < a.step_done.n_metrics; i++) {
            assert_string_equal(a.step_done.metrics[i].name, b.step_done.metrics[i].name);
            assert_true(a.step_done.metrics[i].value == b.step_done.metrics[i].value);
        }
        a.step_done.metrics = b.step_done.metrics = NULL;
    } else if (a.type == MSG_CHECKPOINT) {
        for (int i = 0; i < a.checkpoint.n_prune; i++)
            assert_string_equal(a.checkpoint.prune[i], b.checkpoint.prune[i]);
        a.checkpoint.prune = b.checkpoint.prune = NULL;
    } else if (a.type == MSG_CHUNK_DATA) {
        ITEMS(chunk_data.data, (size_t)a.chunk_data.n);
    }
    *pa = a;
    *pb = b;
}

static void compare_texts(struct msg *pa, struct msg *pb)
{
    struct msg a = *pa, b = *pb;
    if (a.type == MSG_HELLO) {
        TEXTS(hello.run);
        TEXTS(hello.name);
        TEXTS(hello.build);
        TEXTS(hello.numerics_id);
        TEXTS(hello.version_hash);
    } else if (a.type == MSG_WELCOME) {
        TEXTS(welcome.run);
        TEXTS(welcome.reason);
        TEXTS(welcome.checkpoint);
        TEXTS(welcome.checkpoint_hash);
        TEXTS(welcome.version_path);
        TEXTS(welcome.version_hash);
    } else if (a.type == MSG_STEP_DONE) {
        TEXTS(step_done.reason);
        TEXTS(step_done.hash);
        TEXTS(step_done.path);
    } else if (a.type == MSG_COMMIT_ACK) {
        TEXTS(commit_ack.reason);
    } else if (a.type == MSG_CHECKPOINT) {
        TEXTS(checkpoint.path);
        TEXTS(checkpoint.hash);
    } else if (a.type == MSG_VERSION) {
        TEXTS(version.path);
        TEXTS(version.hash);
    } else if (a.type == MSG_LOADED) {
        TEXTS(loaded.hash);
        TEXTS(loaded.error);
    } else if (a.type == MSG_QUERY) {
        TEXTS(query.verb);
        TEXTS(query.args);
    } else if (a.type == MSG_REPLY) {
        TEXTS(reply.json);
    } else if (a.type == MSG_CHECK_DONE) {
        TEXTS(check_done.error);
    } else if (a.type == MSG_TRACE) {
        TEXTS(trace.path);
        TEXTS(trace.hash);
    } else if (a.type == MSG_TRACE_DONE) {
        TEXTS(trace_done.error);
    }
    *pa = a;
    *pb = b;
}

static void assert_equal(struct msg a, struct msg b)
{
    assert_int_equal(a.type, b.type);
    compare_tables(&a, &b);
    compare_parity_tables(&a, &b);
    compare_texts(&a, &b);
    assert_memory_equal(&a, &b, sizeof(a));
}

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

// ---- tests -----------------------------------------------------------------------------------------------

static void test_round_trip(void **state)
{
    (void)state;
    for (int round = 0; round < 200; round++)
        for (int type = MSG_HELLO; type <= MSG_LAST; type++) {
            struct msg m, back;
            struct codec_frame frames[CODEC_FRAMES];
            arena_reset(&made);
            random_msg((enum msg_type)type, &m);
            int n = encode(&m, frames);
            memset(&back, 0x5a, sizeof(back));
            if (decode(frames, n, &back) != STATUS_OK)
                fail_msg("%s: %s", msg_type_name(m.type), err.text);
            assert_equal(m, back);
        }
}

static void test_empty_texts(void **state)
{
    (void)state;
    struct msg m = {.type = MSG_HELLO, .hello = {.role = ROLE_CLI, .version = -1}}, back; // every text NULL
    struct codec_frame frames[CODEC_FRAMES];
    assert_int_equal(decode(frames, encode(&m, frames), &back), STATUS_OK);
    assert_string_equal(back.hello.run, "");
    assert_string_equal(back.hello.version_hash, "");
    assert_int_equal(back.hello.version, -1);
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

static void test_misaligned(void **state)
{
    (void)state;
    for (int type = MSG_HELLO; type <= MSG_LAST; type++) {
        struct msg m, back;
        struct codec_frame frames[CODEC_FRAMES], odd[CODEC_FRAMES];
        char *blocks[CODEC_FRAMES];
        random_msg((enum msg_type)type, &m);
        int n = copy_frames(frames, encode(&m, frames), 1, odd, blocks);
        assert_int_equal(decode(odd, n, &back), STATUS_OK);
        assert_equal(m, back);
        free_frames(blocks, n);
    }
}

static void test_truncation(void **state)
{
    (void)state;
    for (int type = MSG_HELLO; type <= MSG_LAST; type++) {
        struct msg m, back;
        struct codec_frame frames[CODEC_FRAMES];
        random_msg((enum msg_type)type, &m);
        int n = encode(&m, frames);
        for (int f = 0; f < n; f++)
            for (size_t cut = 0; cut < frames[f].n; cut++) {
                struct codec_frame cutted[CODEC_FRAMES];
                memcpy(cutted, frames, sizeof(cutted[0]) * (size_t)n);
                char *exact = malloc(cut + 1);
                memcpy(exact, frames[f].data, cut);
                cutted[f] = (struct codec_frame){exact, cut};
                enum status rc = decode(cutted, n, &back);
                if (f >
                    0) // an array never parses when its frame is short; an envelope may, by luck, at a field's end
                    assert_int_equal(rc, STATUS_PROTOCOL);
                free(exact);
            }
        for (int fewer = 0; fewer < n; fewer++)
            assert_int_not_equal(decode(frames, fewer, &back), STATUS_OK);
        frames[n] = frames[0];
        assert_int_equal(decode(frames, n + 1, &back), STATUS_PROTOCOL);
    }
}

static void test_flips(void **state)
{
    (void)state;
    for (int type = MSG_HELLO; type <= MSG_LAST; type++) {
        struct msg m, back;
        struct codec_frame frames[CODEC_FRAMES], copy[CODEC_FRAMES];
        char *blocks[CODEC_FRAMES];
        random_msg((enum msg_type)type, &m);
        int n = copy_frames(frames, encode(&m, frames), 0, copy, blocks);
        for (size_t i = 0; i < frames[0].n; i++)
            for (int bit = 0; bit < 8; bit++) {
                blocks[0][i] ^= (char)(1 << bit);
                (void)!decode(copy, n, &back);
                blocks[0][i] ^= (char)(1 << bit);
            }
        for (int k = 0; k < 2000; k++) { // several at once, in any frame
            char old[4], *at[4];
            for (int j = 0; j < 4; j++) {
                int f = (int)below(n);
                at[j] = blocks[f] + below((int64_t)frames[f].n + 1);
                old[j] = *at[j];
                *at[j] = (char)rng_u32(&rng);
            }
            (void)!decode(copy, n, &back);
            for (int j = 3; j >= 0; j--)
                *at[j] = old[j];
        }
        assert_int_equal(decode(copy, n, &back), STATUS_OK);
        free_frames(blocks, n);
    }
}

static void test_noise(void **state)
{
    (void)state;
    uint8_t noise[64];
    for (int k = 0; k < 20000; k++) {
        size_t n = (size_t)below(sizeof(noise));
        struct msg back;
        for (size_t i = 0; i < n; i++)
            noise[i] = (uint8_t)rng_u32(&rng);
        assert_int_not_equal(decode(&(struct codec_frame){noise, n}, 1, &back), STATUS_OK);
    }
}

// The sender's check refuses it, and so does the receiver's when the frames are made to say it.
#define REFUSED(type, break_it)                                                                              \
    do {                                                                                                     \
        struct msg m;                                                                                        \
        struct codec_frame frames[CODEC_FRAMES];                                                             \
        int n;                                                                                               \
        do {                                                                                                 \
            random_msg(type, &m);                                                                            \
        } while (type == MSG_TOKEN_DATA && (m.tokens.n < 4 || m.tokens.n_kv < 1));                           \
        break_it;                                                                                            \
        arena_reset(&coded);                                                                                 \
        memset(&err, 0, sizeof(err));                                                                        \
        if (codec_encode(&m, &coded, frames, &n, &err) != STATUS_INVALID)                                    \
            fail_msg("sent in spite of: %s", #break_it);                                                     \
        assert_int_equal(err.status, STATUS_INVALID);                                                        \
        assert_non_null(strstr(err.text, msg_type_name(type)));                                              \
    } while (0)

static void test_sender_is_checked(void **state)
{
    (void)state;
    char longest[MSG_STRING + 2];
    memset(longest, 'x', sizeof(longest) - 1);
    longest[sizeof(longest) - 1] = 0;
    REFUSED(MSG_HELLO, m.hello.role = 4);
    REFUSED(MSG_HELLO, m.hello.version = -2);
    REFUSED(MSG_HELLO, m.hello.version = -1); // with a hash
    REFUSED(MSG_HELLO, (m.hello.role = ROLE_TRAINER, m.hello.remote = true));
    REFUSED(MSG_HELLO, m.hello.name = longest);
    REFUSED(MSG_HELLO, m.hello.name = "\xff");
    REFUSED(MSG_HELLO, m.hello.name = "\xc0\x80");
    REFUSED(MSG_HELLO, m.hello.name = "\xed\xa0\x80");
    REFUSED(MSG_HELLO, m.hello.name = "\xe2\x82");
    REFUSED(MSG_WELCOME, m.welcome.committed_steps = 4);
    REFUSED(MSG_PING, m.ping.busy = NAN);
    REFUSED(MSG_PONG, m.ping.kv_used = -1);
    REFUSED(MSG_JOB, m.job.n_ids = 0);
    REFUSED(MSG_JOB, m.job.n_ids = MSG_TOKENS_MAX);
    REFUSED(MSG_JOB, ((int32_t *)m.job.ids)[0] = -1);
    REFUSED(MSG_JOB, m.job.ids = NULL);
    REFUSED(MSG_JOB, (m.job.sampling.train = true, m.job.sampling.temperature = 0));
    REFUSED(MSG_JOB, (m.job.sampling.train = true, m.job.sampling.top_p = 0.5f));
    REFUSED(MSG_JOB, m.job.sampling.temperature = INFINITY);
    REFUSED(MSG_JOB, m.job.sampling.n_stop = MSG_STOP_IDS + 1);
    REFUSED(MSG_JOB, (m.job.sampling.max_new = 0, m.job.sampling.min_new = 0, m.job.prompt_logprobs = false));
    REFUSED(MSG_TOKEN_DATA, ((float *)m.tokens.logprobs)[1] = 0.01f);
    REFUSED(MSG_TOKEN_DATA, ((float *)m.tokens.logprobs)[1] = NAN);
    REFUSED(MSG_TOKEN_DATA, ((float *)m.tokens.logprobs)[1] = -INFINITY);
    REFUSED(MSG_TOKEN_DATA, ((int32_t *)m.tokens.ids)[3] = -5);
    REFUSED(MSG_TOKEN_DATA, m.tokens.offset = MSG_TOKENS_MAX);
    REFUSED(MSG_TOKEN_DATA, m.tokens.n_spans = 0);
    REFUSED(MSG_TOKEN_DATA, ((struct msg_span *)m.tokens.spans)[0].end = m.tokens.offset + m.tokens.n + 1);
    REFUSED(MSG_TOKEN_DATA, ((struct msg_span *)m.tokens.spans)[0].start++);
    REFUSED(MSG_TOKEN_DATA, ((struct msg_span *)m.tokens.spans)[0].version = -1);
    REFUSED(MSG_TOKEN_DATA, ((struct msg_kv *)m.tokens.kv)[0].kind = 6);
    REFUSED(MSG_TOKEN_DATA, m.tokens.finish = 9);
    REFUSED(MSG_ACK, m.ack.durable_to = -1);
    REFUSED(MSG_PREPARE, m.prepare.n_tokens++);
    REFUSED(MSG_PREPARE, m.prepare.n_members = 0);
    REFUSED(MSG_PREPARE, ((struct msg_member *)m.prepare.members)[0].multiplicity = 0);
    REFUSED(MSG_PREPARE, ((struct msg_member *)m.prepare.members)[0].advantage = NAN);
    REFUSED(MSG_PREPARE, ((uint8_t *)m.prepare.mask)[0] = 2);
    // the token says it was not sampled, and its array the opposite
    REFUSED(MSG_PREPARE, (((uint8_t *)m.prepare.mask)[0] = 0, ((float *)m.prepare.logprobs)[0] = -1));
    REFUSED(MSG_PREPARE, {
        int64_t k = m.prepare.n_tokens - 1; // a sampled token of weights that are not there yet
        ((uint8_t *)m.prepare.mask)[k] = 1;
        ((float *)m.prepare.logprobs)[k] = -1;
        ((int32_t *)m.prepare.versions)[k] = (int32_t)m.prepare.step + 1;
    });
    REFUSED(MSG_JOB, m.job.sampling.max_new = INT32_MIN);
    REFUSED(MSG_TOKEN_DATA, m.tokens.offset = INT32_MAX);
    REFUSED(MSG_PREPARE, ((float *)m.prepare.temperatures)[0] = 0);
    REFUSED(MSG_PREPARE, m.prepare.updates = 0);
    REFUSED(MSG_PREPARE, m.prepare.lr = -1);
    REFUSED(MSG_STEP_DONE, m.step_done.outcome = 0);
    REFUSED(MSG_STEP_DONE, m.step_done.n_metrics = MSG_METRICS + 1);
    REFUSED(MSG_COMMIT_ACK, m.commit_ack.result = 4);
    REFUSED(MSG_CHECKPOINT, m.checkpoint.step = -1);
    REFUSED(MSG_LOADED, m.loaded.stall_ms = -1);
    REFUSED(MSG_CHUNK_REQUEST, m.chunk_request.bytes = MSG_CHUNK + 1);
    REFUSED(MSG_CHUNK_DATA, m.chunk_data.total = m.chunk_data.offset + m.chunk_data.n - 1);
    REFUSED(MSG_QUERY, m.query.verb = "");
    REFUSED(MSG_REPLY, m.reply.status = 1);
}

static void test_parity_sender_is_checked(void **state)
{
    (void)state;
    static const struct msg_weights twice[] = {{4, "a", "b"}, {4, "a", "b"}};
    REFUSED(MSG_CHECK, m.check.n_tokens++);
    REFUSED(MSG_CHECK, m.check.n_segments = 0);
    REFUSED(MSG_CHECK, ((struct msg_check_segment *)m.check.segments)[0].n_kv++);
    REFUSED(MSG_CHECK, ((struct msg_check_segment *)m.check.segments)[0].n_tokens = 0);
    REFUSED(MSG_CHECK, (m.check.weights = twice, m.check.n_weights = 2));
    REFUSED(MSG_CHECK, ((int32_t *)m.check.ids)[0] = -1);
    REFUSED(MSG_CHECK, ((uint8_t *)m.check.mask)[0] = 2);
    REFUSED(MSG_CHECK, ((uint8_t *)m.check.mask)[0] ^= 1);
    REFUSED(MSG_CHECK, ((float *)m.check.logprobs)[0] = NAN);
    REFUSED(MSG_CHECK, ((float *)m.check.temperatures)[0] = -1);
    REFUSED(MSG_CHECK, m.check.n_kv = MSG_CHECK_KV + 1);
    REFUSED(MSG_CHECK_DONE, m.check_done.max_abs_diff = NAN);
    REFUSED(MSG_CHECK_DONE, m.check_done.crossing = m.check_done.compared + 1);
    REFUSED(MSG_CHECK_DONE, m.check_done.differs = false);
    REFUSED(MSG_CHECK_DONE, m.check_done.error = "\xff");
    REFUSED(MSG_TRACE, m.trace.n_ids = 1);
    REFUSED(MSG_TRACE, m.trace.n_ids = MSG_TRACE_IDS + 1);
    REFUSED(MSG_TRACE, ((int32_t *)m.trace.ids)[1] = -1);
    REFUSED(MSG_TRACE, m.trace.version = -1);
    REFUSED(MSG_TRACE_DONE, m.trace_done.ok = false); // with a trace
    REFUSED(MSG_TRACE_DONE, m.trace_done.n_logprobs = MSG_TRACE_IDS + 1);
    REFUSED(MSG_TRACE_DONE, ((struct msg_trace_op *)m.trace_done.ops)[0].layer = -2);
}

static void test_trace_compare(void **state)
{
    (void)state;
    const struct msg_trace_op ops[] = {{-1, 0, "embedding", "embed"},
                                       {0, 0, "mlp", "gemm"},
                                       {0, 1, "mlp", "gemm"},
                                       {1, 0, "head", "rmsnorm"}};
    const struct msg_trace_op more[] = {{-1, 0, "embedding", "embed"},
                                        {0, 0, "mlp", "round_bf16"},
                                        {0, 0, "mlp", "gemm"},
                                        {0, 1, "mlp", "gemm"},
                                        {1, 0, "head", "rmsnorm"}};
    const uint64_t same[] = {1, 2, 3, 4}, other[] = {1, 2, 30, 40}, same_more[] = {1, 99, 2, 3, 4};
    struct msg_trace_done a = {.ok = true, .n_ops = 4, .ops = ops, .digests = same}, b = a,
                          c = {.ok = true, .n_ops = 5, .ops = more, .digests = same_more};
    assert_int_equal(msg_trace_compare(&a, &b), -1);
    assert_int_equal(msg_trace_compare(&a, &c), -1); // what only one has is passed over
    assert_int_equal(msg_trace_compare(&c, &a), -1);
    b.digests = other;
    assert_int_equal(msg_trace_compare(&a, &b), 2);
    assert_int_equal(msg_trace_compare(&c, &b), 3);
}

// What an honest sender would never put on the wire: arrays whose contents were changed after the check.
static void expect_refused(struct msg *m, int frame, size_t at, const void *bytes, size_t n_bytes)
{
    struct msg back;
    struct codec_frame frames[CODEC_FRAMES], copy[CODEC_FRAMES];
    char *blocks[CODEC_FRAMES];
    int n = copy_frames(frames, encode(m, frames), 0, copy, blocks);
    assert_int_equal(decode(copy, n, &back), STATUS_OK);
    memcpy(blocks[frame] + at, bytes, n_bytes);
    assert_int_equal(decode(copy, n, &back), STATUS_PROTOCOL);
    free_frames(blocks, n);
}

static void test_receiver_is_checked(void **state)
{
    (void)state;
    struct msg m;
    const int32_t negative = -1;
    const float high = 0.5f, nan = NAN;
    do {
        random_msg(MSG_TOKEN_DATA, &m);
    } while (m.tokens.n < 4 || m.tokens.n_prompt_logprobs < 1);
    expect_refused(&m, 1, 4, &negative, 4);
    expect_refused(&m, 2, 0, &high, 4);
    expect_refused(&m, 2, 8, &nan, 4);
    expect_refused(&m, 3, 0, &nan, 4);
    random_msg(MSG_JOB, &m);
    expect_refused(&m, 1, 0, &negative, 4);
    random_msg(MSG_PREPARE, &m);
    expect_refused(&m, 1, 0, &negative, 4);
    expect_refused(&m, 2, 0, "\2", 1);
    expect_refused(&m, 3, 0, &nan, 4);
    expect_refused(&m, 5, 0, &nan, 4);
    struct codec_frame frames[CODEC_FRAMES];
    struct msg back;
    random_msg(MSG_JOB, &m);
    int n = encode(&m, frames);
    uint8_t *envelope = (uint8_t *)frames[0].data;
    // protocol, one array: its length, kind, element, and then the count of ids
    static const uint8_t announced[] = {0x08, 1, 0x10, 2, 0x18};
    assert_memory_equal(envelope + 4, announced, sizeof(announced));
    envelope[4 + sizeof(announced)] ^= 1;
    assert_int_equal(decode(frames, n, &back), STATUS_PROTOCOL);
    assert_non_null(strstr(err.text, "not as announced"));
    random_msg(MSG_CANCEL, &m);
    n = encode(&m, frames);
    envelope = (uint8_t *)frames[0].data;
    assert_int_equal(envelope[0], 0x08); // field 1, the protocol version
    assert_int_equal(envelope[1], MSG_PROTOCOL);
    envelope[1] = MSG_PROTOCOL + 1;
    assert_int_equal(decode(frames, n, &back), STATUS_PROTOCOL);
    assert_non_null(strstr(err.text, "protocol version 2"));
}

// An envelope that announces much in few bytes is stopped by the arena's limit.
static void test_memory_limit(void **state)
{
    (void)state;
    size_t n = 4u << 20;
    uint8_t *bytes = malloc(n);
    struct arena small;
    struct msg back;
    assert_non_null(bytes);
    for (size_t i = 0; i + 1 < n; i += 2) { // field 2 (arrays), length 0, over and over
        bytes[i] = 0x12;
        bytes[i + 1] = 0;
    }
    arena_init(&small, 1 << 20);
    assert_int_not_equal(codec_decode(&(struct codec_frame){bytes, n}, 1, &small, &back, &err), STATUS_OK);
    assert_true(small.used <= 1 << 20);
    arena_done(&small);
    free(bytes);
}

// One message of each type for tests/fuzz/corpus/codec, in the form fuzz_codec.c reads.
static int write_corpus(const char *folder)
{
    setup(NULL);
    for (int type = MSG_HELLO; type <= MSG_LAST; type++) {
        char path[1024];
        struct msg m;
        struct buf b = {0};
        struct codec_frame frames[CODEC_FRAMES];
        random_msg((enum msg_type)type, &m);
        int n = encode(&m, frames);
        for (int i = 0; i < n; i++) {
            uint32_t length = (uint32_t)frames[i].n;
            buf_append(&b, &length, sizeof(length));
            buf_append(&b, frames[i].data, frames[i].n);
        }
        snprintf(path, sizeof(path), "%s/%s", folder, msg_type_name(m.type));
        if (file_write_atomic(path, b.data, b.len, 0644, &err) != STATUS_OK)
            return 1;
        buf_done(&b);
    }
    return teardown(NULL);
}

int main(void)
{
    if (getenv("OOZE_WRITE_CORPUS"))
        return write_corpus(getenv("OOZE_WRITE_CORPUS"));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_empty_texts),
        cmocka_unit_test(test_misaligned),
        cmocka_unit_test(test_truncation),
        cmocka_unit_test(test_flips),
        cmocka_unit_test(test_noise),
        cmocka_unit_test(test_sender_is_checked),
        cmocka_unit_test(test_parity_sender_is_checked),
        cmocka_unit_test(test_trace_compare),
        cmocka_unit_test(test_receiver_is_checked),
        cmocka_unit_test(test_memory_limit),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
