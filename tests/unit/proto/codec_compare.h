// Whether a message that came back is the one that was sent.
#ifndef TESTS_CODEC_COMPARE_H
#define TESTS_CODEC_COMPARE_H

#include "codec_random.h"

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

#endif
