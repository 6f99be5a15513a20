// The messages of the parity check (msg.h: CHECK, CHECK_DONE, TRACE, TRACE_DONE): their tables on the wire, their bounds, and
// where two traces part. Pure functions, any thread.
#include "proto/parity.h"

#include <math.h>
#include <string.h>

#include "proto/codec_fields.h"
#include "proto/ooze.pb-c.h"

// ---- tables --------------------------------------------------------------------------------------------------

bool parity_put_check(const struct msg_check *check, struct arena *arena, void *ret_check)
{
    Ooze__V1__Check *out = ret_check;
    Ooze__V1__CheckSegment *segments;
    Ooze__V1__Weights *weights;
    Ooze__V1__KvEvent *events;
    if (!NEW_TABLE(arena, check->n_segments, segments, out->segments) ||
        !NEW_TABLE(arena, check->n_weights, weights, out->weights) ||
        !NEW_TABLE(arena, check->n_kv, events, out->kv))
        return false;
    for (int32_t i = 0; i < check->n_segments; i++) {
        const struct msg_check_segment *m = &check->segments[i];
        Ooze__V1__CheckSegment *pb = out->segments[i] = &segments[i];
        ooze__v1__check_segment__init(pb);
        FIELDS_check_segment(PUT_N, PUT_S)
    }
    for (int32_t i = 0; i < check->n_weights; i++) {
        const struct msg_weights *m = &check->weights[i];
        Ooze__V1__Weights *pb = out->weights[i] = &weights[i];
        ooze__v1__weights__init(pb);
        FIELDS_weights(PUT_N, PUT_S)
    }
    for (int32_t i = 0; i < check->n_kv; i++) {
        const struct msg_kv *m = &check->kv[i];
        Ooze__V1__KvEvent *pb = out->kv[i] = &events[i];
        ooze__v1__kv_event__init(pb);
        FIELDS_kv(PUT_N, PUT_S)
    }
    out->n_segments = (size_t)check->n_segments;
    out->n_weights = (size_t)check->n_weights;
    out->n_kv = (size_t)check->n_kv;
    return true;
}

enum status parity_get_check(const void *check, struct arena *arena, struct msg_check *ret, struct error *err)
{
    const Ooze__V1__Check *in = check;
    if (in->n_segments > MSG_MEMBERS || in->n_weights > MSG_WEIGHTS || in->n_kv > MSG_CHECK_KV)
        return error_set(err, STATUS_LIMIT, "too many segments, versions or KV events");
    struct msg_check_segment *segments = arena_zalloc(arena, in->n_segments * sizeof(*segments));
    struct msg_weights *weights = arena_zalloc(arena, in->n_weights * sizeof(*weights));
    struct msg_kv *events = arena_zalloc(arena, in->n_kv * sizeof(*events));
    if (!segments || !weights || !events)
        return error_set(err, STATUS_LIMIT, "CHECK: no memory within the limit");
    for (size_t i = 0; i < in->n_segments; i++) {
        const Ooze__V1__CheckSegment *pb = in->segments[i];
        struct msg_check_segment *m = &segments[i];
        FIELDS_check_segment(GET_N, GET_S)
    }
    for (size_t i = 0; i < in->n_weights; i++) {
        const Ooze__V1__Weights *pb = in->weights[i];
        struct msg_weights *m = &weights[i];
        FIELDS_weights(GET_N, GET_S)
    }
    for (size_t i = 0; i < in->n_kv; i++) {
        const Ooze__V1__KvEvent *pb = in->kv[i];
        struct msg_kv *m = &events[i];
        FIELDS_kv(GET_N, GET_S)
    }
    ret->n_segments = (int32_t)in->n_segments;
    ret->segments = segments;
    ret->n_weights = (int32_t)in->n_weights;
    ret->weights = weights;
    ret->n_kv = (int32_t)in->n_kv;
    ret->kv = events;
    return STATUS_OK;
}

bool parity_put_trace(const struct msg_trace_done *t, struct arena *arena, void *ret_trace_done)
{
    Ooze__V1__TraceDone *out = ret_trace_done;
    Ooze__V1__TraceOp *ops;
    if (!NEW_TABLE(arena, t->n_ops, ops, out->ops))
        return false;
    for (int32_t i = 0; i < t->n_ops; i++) {
        const struct msg_trace_op *m = &t->ops[i];
        Ooze__V1__TraceOp *pb = out->ops[i] = &ops[i];
        ooze__v1__trace_op__init(pb);
        FIELDS_trace_op(PUT_N, PUT_S)
    }
    out->n_ops = (size_t)t->n_ops;
    return true;
}

enum status parity_get_trace(const void *trace_done, struct arena *arena, struct msg_trace_done *ret,
                             struct error *err)
{
    const Ooze__V1__TraceDone *in = trace_done;
    if (in->n_ops > MSG_TRACE_OPS)
        return error_set(err, STATUS_LIMIT, "too many ops in a trace");
    struct msg_trace_op *ops = arena_zalloc(arena, in->n_ops * sizeof(*ops));
    if (!ops)
        return error_set(err, STATUS_LIMIT, "TRACE_DONE: no memory within the limit");
    for (size_t i = 0; i < in->n_ops; i++) {
        const Ooze__V1__TraceOp *pb = in->ops[i];
        struct msg_trace_op *m = &ops[i];
        FIELDS_trace_op(GET_N, GET_S)
    }
    ret->n_ops = (int32_t)in->n_ops;
    ret->ops = ops;
    return STATUS_OK;
}

// ---- bounds --------------------------------------------------------------------------------------------------

static void check_check(struct check *c, const struct msg_check *m)
{
    EXPECT(m->epoch >= 0 && m->step >= 0);
    EXPECT(m->n_segments >= 1 && m->n_segments <= MSG_MEMBERS);
    EXPECT(m->n_tokens >= 1 && m->n_tokens <= MSG_BATCH_MAX);
    EXPECT(m->n_weights >= 0 && m->n_weights <= MSG_WEIGHTS && m->n_kv >= 0 && m->n_kv <= MSG_CHECK_KV);
    int64_t tokens = 0, events = 0;
    for (int32_t i = 0; !c->failed && i < m->n_segments; i++) {
        const struct msg_check_segment *s = &m->segments[i];
        EXPECT(s->n_tokens >= 1 && s->n_tokens <= MSG_TOKENS_MAX && s->n_kv >= 0 && s->n_kv <= m->n_kv);
        tokens += s->n_tokens;
        events += s->n_kv;
    }
    EXPECT(tokens == m->n_tokens && events == m->n_kv);
    for (int32_t i = 0; !c->failed && i < m->n_weights; i++) {
        EXPECT(m->weights[i].version >= 0);
        EXPECT(i == 0 || m->weights[i].version > m->weights[i - 1].version);
        TEXT(m->weights[i].path);
        TEXT(m->weights[i].hash);
    }
    for (int32_t i = 0; !c->failed && i < m->n_kv; i++)
        check_kv(c, &m->kv[i]);
}

static void check_check_done(struct check *c, const struct msg_check_done *m)
{
    EXPECT(m->epoch >= 0 && m->compared >= 0 && m->skipped >= 0);
    EXPECT(m->crossing >= 0 && m->crossing <= m->compared);
    EXPECT(m->tokens >= 0 && m->tokens_skipped >= 0);
    EXPECT(m->max_abs_diff >= 0); // infinity is a difference, NaN is none
    EXPECT(m->position >= 0 && m->version >= 0);
    EXPECT(m->differs || m->max_abs_diff == 0);
    TEXT(m->error);
}

static void check_trace_done(struct check *c, const struct msg_trace_done *m)
{
    EXPECT(m->epoch >= 0 && m->version >= 0);
    EXPECT(m->n_ops >= 0 && m->n_ops <= MSG_TRACE_OPS);
    EXPECT(m->n_logprobs >= 0 && m->n_logprobs <= MSG_TRACE_IDS);
    EXPECT(m->ok || (m->n_ops == 0 && m->n_logprobs == 0));
    TEXT(m->error);
    for (int32_t i = 0; !c->failed && i < m->n_ops; i++) {
        EXPECT(m->ops[i].layer >= -1 && m->ops[i].nth >= 0);
        TEXT(m->ops[i].block);
        TEXT(m->ops[i].op);
    }
}

void parity_check_head(struct check *c, const struct msg *m)
{
    switch (m->type) {
    case MSG_CHECK:
        check_check(c, &m->check);
        break;
    case MSG_CHECK_DONE:
        check_check_done(c, &m->check_done);
        break;
    case MSG_TRACE:
        EXPECT(m->trace.epoch >= 0 && m->trace.version >= 0);
        EXPECT(m->trace.n_ids >= 2 && m->trace.n_ids <= MSG_TRACE_IDS);
        TEXT(m->trace.path);
        TEXT(m->trace.hash);
        break;
    case MSG_TRACE_DONE:
        check_trace_done(c, &m->trace_done);
        break;
    default:
        break;
    }
}

static void check_check_tokens(struct check *c, const struct msg_check *m)
{
    int64_t at = 0;
    for (int32_t k = 0; k < m->n_segments && !c->failed; at += m->segments[k++].n_tokens)
        check_sampled(c, m->segments[k].n_tokens, m->mask + at, m->logprobs + at, m->versions + at,
                      m->temperatures + at, INT64_MAX);
    for (int64_t i = 0; i < m->n_tokens && !c->failed; i++)
        check_expect(c, m->mask[i] == (m->versions[i] >= 0), "a sampled token has no version");
}

void parity_check_arrays(struct check *c, const struct msg *m)
{
    switch (m->type) {
    case MSG_CHECK:
        check_expect(c, check_ids_ok(m->check.ids, m->check.n_tokens), "a token id is negative");
        check_check_tokens(c, &m->check);
        break;
    case MSG_TRACE:
        check_expect(c, check_ids_ok(m->trace.ids, m->trace.n_ids), "a token id is negative");
        break;
    default:
        break; // a trace's logprobs are whatever a broken model made of them
    }
}

// ---- traces --------------------------------------------------------------------------------------------------

static bool same_op(const struct msg_trace_op *a, const struct msg_trace_op *b)
{
    return a->layer == b->layer && a->nth == b->nth && !strcmp(a->op, b->op) && !strcmp(a->block, b->block);
}

int32_t msg_trace_compare(const struct msg_trace_done *a, const struct msg_trace_done *b)
{
    int32_t from = 0; // both are in order of execution
    for (int32_t i = 0; i < a->n_ops; i++) {
        int32_t j = from;
        while (j < b->n_ops && !same_op(&a->ops[i], &b->ops[j]))
            j++;
        if (j == b->n_ops)
            continue;
        if (a->digests[i] != b->digests[j])
            return i;
        from = j + 1;
    }
    return -1;
}
