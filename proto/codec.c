// Message ↔ frames: see codec.h. The envelope is protobuf (ooze.proto); arrays follow as raw little-endian frames.
// Pure functions on caller-owned memory, any thread.
//
// Everything protobuf-c allocates while it unpacks comes out of the caller's arena and is never given back singly, so a
// frame that lies about itself can cost no more than the arena's limit.
#include "proto/codec.h"

#include <string.h>

#include "proto/codec_fields.h"
#include "proto/msg_check.h"
#include "proto/ooze.pb-c.h"
#include "proto/parity.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "array frames are little-endian");

#define ENVELOPE_MAX ((size_t)MSG_JSON + (1u << 20)) // JSON texts and the largest table of members

// ---- encode ----------------------------------------------------------------------------------------------

// put_hello, put_welcome, …: the fields of the lists; puts of tables follow below.
#define DEFINE_PUT(TYPE, member, field, CASE, Pb, lower)                                                     \
    static void put_##TYPE(const struct msg_##member *m, Ooze__V1__##Pb *pb)                                 \
    {                                                                                                        \
        ooze__v1__##lower##__init(pb);                                                                       \
        FIELDS_##member(PUT_N, PUT_S)                                                                        \
    }
CODEC_BODIES(DEFINE_PUT)

static bool put_sampling(const struct msg_sampling *m, struct arena *arena, Ooze__V1__Job *job)
{
    Ooze__V1__Sampling *pb = arena_alloc(arena, sizeof(*pb));
    if (!pb)
        return false;
    ooze__v1__sampling__init(pb);
    FIELDS_sampling(PUT_N, PUT_S);
    pb->n_stop = (size_t)m->n_stop;
    pb->stop = (int32_t *)m->stop;
    job->sampling = pb;
    return true;
}

static bool put_token_tables(const struct msg_tokens *t, struct arena *arena, Ooze__V1__Tokens *out)
{
    Ooze__V1__Span *spans;
    Ooze__V1__KvEvent *events;
    if (!NEW_TABLE(arena, t->n_spans, spans, out->spans) || !NEW_TABLE(arena, t->n_kv, events, out->kv))
        return false;
    for (int i = 0; i < t->n_spans; i++) {
        const struct msg_span *m = &t->spans[i];
        Ooze__V1__Span *pb = out->spans[i] = &spans[i];
        ooze__v1__span__init(pb);
        FIELDS_span(PUT_N, PUT_S)
    }
    for (int i = 0; i < t->n_kv; i++) {
        const struct msg_kv *m = &t->kv[i];
        Ooze__V1__KvEvent *pb = out->kv[i] = &events[i];
        ooze__v1__kv_event__init(pb);
        FIELDS_kv(PUT_N, PUT_S)
    }
    out->n_spans = (size_t)t->n_spans;
    out->n_kv = (size_t)t->n_kv;
    return true;
}

static bool put_members(const struct msg_prepare *p, struct arena *arena, Ooze__V1__Prepare *out)
{
    Ooze__V1__Member *members;
    if (!NEW_TABLE(arena, p->n_members, members, out->members))
        return false;
    for (int i = 0; i < p->n_members; i++) {
        const struct msg_member *m = &p->members[i];
        Ooze__V1__Member *pb = out->members[i] = &members[i];
        ooze__v1__member__init(pb);
        FIELDS_member(PUT_N, PUT_S)
    }
    out->n_members = (size_t)p->n_members;
    return true;
}

static bool put_metrics(const struct msg_step_done *s, struct arena *arena, Ooze__V1__StepDone *out)
{
    Ooze__V1__Metric *metrics;
    if (!NEW_TABLE(arena, s->n_metrics, metrics, out->metrics))
        return false;
    for (int i = 0; i < s->n_metrics; i++) {
        const struct msg_metric *m = &s->metrics[i];
        Ooze__V1__Metric *pb = out->metrics[i] = &metrics[i];
        ooze__v1__metric__init(pb);
        FIELDS_metric(PUT_N, PUT_S)
    }
    out->n_metrics = (size_t)s->n_metrics;
    return true;
}

// The message's own body into `body`, a union big enough for any; tables from the arena.
union body {
#define BODY_MEMBER(TYPE, member, field, CASE, Pb, lower) Ooze__V1__##Pb TYPE;
    CODEC_BODIES(BODY_MEMBER)
#undef BODY_MEMBER
};

static bool put_body(const struct msg *m, struct arena *arena, union body *body, Ooze__V1__Envelope *envelope)
{
    switch (m->type) {
#define CASE_PUT(TYPE, member, field, CASE, Pb, lower)                                                       \
    case MSG_##TYPE:                                                                                         \
        put_##TYPE(&m->member, &body->TYPE);                                                                 \
        envelope->body_case = OOZE__V1__ENVELOPE__BODY_##CASE;                                               \
        envelope->field = &body->TYPE;                                                                       \
        break;
        CODEC_BODIES(CASE_PUT)
    case MSG_NONE:
        return false;
    }
    switch (m->type) {
    case MSG_JOB:
        return put_sampling(&m->job.sampling, arena, &body->JOB);
    case MSG_TOKEN_DATA:
        return put_token_tables(&m->tokens, arena, &body->TOKEN_DATA);
    case MSG_PREPARE:
        return put_members(&m->prepare, arena, &body->PREPARE);
    case MSG_STEP_DONE:
        return put_metrics(&m->step_done, arena, &body->STEP_DONE);
    case MSG_CHECKPOINT:
        body->CHECKPOINT.n_prune = (size_t)m->checkpoint.n_prune;
        body->CHECKPOINT.prune = (char **)m->checkpoint.prune;
        return true;
    case MSG_CHECK:
        return parity_put_check(&m->check, arena, &body->CHECK);
    case MSG_TRACE_DONE:
        return parity_put_trace(&m->trace_done, arena, &body->TRACE_DONE);
    default:
        return true;
    }
}

enum status codec_encode(const struct msg *m, struct arena *arena, struct codec_frame frames[CODEC_FRAMES],
                         int *ret_n, struct error *err)
{
    struct msg copy = *m; // msg_arrays hands out addresses of pointers; the message itself stays untouched
    struct msg_array arrays[MSG_ARRAYS];
    Ooze__V1__Envelope envelope = OOZE__V1__ENVELOPE__INIT;
    Ooze__V1__Array table[MSG_ARRAYS], *pointers[MSG_ARRAYS];
    union body body;
    enum status rc = msg_check_head(m, STATUS_INVALID, err);
    if (rc != STATUS_OK)
        return rc;
    int n = msg_arrays(&copy, arrays);
    for (int i = 0; i < n; i++) {
        memcpy(&frames[1 + i].data, arrays[i].at, sizeof(void *));
        frames[1 + i].n = arrays[i].count * msg_element_bytes(arrays[i].element);
        if (!frames[1 + i].data)
            return error_set(err, STATUS_INVALID, "%s: array %d is NULL", msg_type_name(m->type), i);
    }
    rc = msg_check_arrays(m, STATUS_INVALID, err);
    if (rc != STATUS_OK)
        return rc;
    for (int i = 0; i < n; i++) {
        ooze__v1__array__init(&table[i]);
        table[i].kind = (Ooze__V1__ArrayKind)arrays[i].kind;
        table[i].element = (Ooze__V1__Element)arrays[i].element;
        table[i].count = arrays[i].count;
        pointers[i] = &table[i];
    }
    envelope.protocol = MSG_PROTOCOL;
    envelope.n_arrays = (size_t)n;
    envelope.arrays = pointers;
    if (!put_body(m, arena, &body, &envelope))
        return error_set(err, STATUS_NOMEM, "%s: out of memory", msg_type_name(m->type));
    size_t bytes = ooze__v1__envelope__get_packed_size(&envelope);
    if (bytes > ENVELOPE_MAX)
        return error_set(err, STATUS_INVALID, "%s: the envelope has %zu bytes", msg_type_name(m->type),
                         bytes);
    uint8_t *packed = arena_alloc(arena, bytes);
    if (!packed)
        return error_set(err, STATUS_NOMEM, "%s: out of memory", msg_type_name(m->type));
    ooze__v1__envelope__pack(&envelope, packed);
    frames[0] = (struct codec_frame){packed, bytes};
    *ret_n = 1 + n;
    return STATUS_OK;
}

// ---- decode ----------------------------------------------------------------------------------------------

static void *unpack_alloc(void *arena, size_t bytes)
{
    return arena_alloc(arena, bytes);
}

static void unpack_free(void *arena, void *p)
{
    (void)arena;
    (void)p;
}

#define DEFINE_GET(TYPE, member, field, CASE, Pb, lower)                                                     \
    static void get_##TYPE(const Ooze__V1__##Pb *pb, struct msg_##member *m)                                 \
    {                                                                                                        \
        FIELDS_##member(GET_N, GET_S)                                                                        \
    }
CODEC_BODIES(DEFINE_GET)

static enum status too_many(struct error *err, const char *what)
{
    return error_set(err, STATUS_LIMIT, "too many %s", what);
}

static enum status get_sampling(const Ooze__V1__Sampling *pb, struct msg_sampling *m, struct error *err)
{
    if (!pb)
        return error_set(err, STATUS_PROTOCOL, "JOB: sampling is missing");
    if (pb->n_stop > MSG_STOP_IDS)
        return too_many(err, "stop ids");
    FIELDS_sampling(GET_N, GET_S);
    m->n_stop = (int32_t)pb->n_stop;
    for (int i = 0; i < m->n_stop; i++)
        m->stop[i] = pb->stop[i];
    return STATUS_OK;
}

static enum status get_token_tables(const Ooze__V1__Tokens *in, struct arena *arena, struct msg_tokens *t,
                                    struct error *err)
{
    if (in->n_spans > MSG_TOKENS_MAX || in->n_kv > MSG_TOKENS_MAX)
        return too_many(err, "spans or KV events");
    struct msg_span *spans = arena_zalloc(arena, in->n_spans * sizeof(*spans));
    struct msg_kv *events = arena_zalloc(arena, in->n_kv * sizeof(*events));
    if (!spans || !events)
        return error_set(err, STATUS_LIMIT, "TOKENS: no memory within the limit");
    for (size_t i = 0; i < in->n_spans; i++) {
        const Ooze__V1__Span *pb = in->spans[i];
        struct msg_span *m = &spans[i];
        FIELDS_span(GET_N, GET_S)
    }
    for (size_t i = 0; i < in->n_kv; i++) {
        const Ooze__V1__KvEvent *pb = in->kv[i];
        struct msg_kv *m = &events[i];
        FIELDS_kv(GET_N, GET_S)
    }
    t->n_spans = (int32_t)in->n_spans;
    t->spans = spans;
    t->n_kv = (int32_t)in->n_kv;
    t->kv = events;
    return STATUS_OK;
}

static enum status get_members(const Ooze__V1__Prepare *in, struct arena *arena, struct msg_prepare *p,
                               struct error *err)
{
    if (in->n_members > MSG_MEMBERS)
        return too_many(err, "members");
    struct msg_member *members = arena_zalloc(arena, in->n_members * sizeof(*members));
    if (!members)
        return error_set(err, STATUS_LIMIT, "PREPARE: no memory within the limit");
    for (size_t i = 0; i < in->n_members; i++) {
        const Ooze__V1__Member *pb = in->members[i];
        struct msg_member *m = &members[i];
        FIELDS_member(GET_N, GET_S)
    }
    p->n_members = (int32_t)in->n_members;
    p->members = members;
    return STATUS_OK;
}

static enum status get_metrics(const Ooze__V1__StepDone *in, struct arena *arena, struct msg_step_done *s,
                               struct error *err)
{
    if (in->n_metrics > MSG_METRICS)
        return too_many(err, "metrics");
    struct msg_metric *metrics = arena_zalloc(arena, in->n_metrics * sizeof(*metrics));
    if (!metrics)
        return error_set(err, STATUS_LIMIT, "STEP_DONE: no memory within the limit");
    for (size_t i = 0; i < in->n_metrics; i++) {
        const Ooze__V1__Metric *pb = in->metrics[i];
        struct msg_metric *m = &metrics[i];
        FIELDS_metric(GET_N, GET_S)
    }
    s->n_metrics = (int32_t)in->n_metrics;
    s->metrics = metrics;
    return STATUS_OK;
}

static enum status get_body(const Ooze__V1__Envelope *envelope, struct arena *arena, struct msg *m,
                            struct error *err)
{
    switch (envelope->body_case) {
#define CASE_GET(TYPE, member, field, CASE, Pb, lower)                                                       \
    case OOZE__V1__ENVELOPE__BODY_##CASE:                                                                    \
        m->type = MSG_##TYPE;                                                                                \
        get_##TYPE(envelope->field, &m->member);                                                             \
        break;
        CODEC_BODIES(CASE_GET)
    default:
        return error_set(err, STATUS_PROTOCOL, "an envelope without a message this build knows");
    }
    switch (m->type) {
    case MSG_JOB:
        return get_sampling(envelope->job->sampling, &m->job.sampling, err);
    case MSG_TOKEN_DATA:
        return get_token_tables(envelope->tokens, arena, &m->tokens, err);
    case MSG_PREPARE:
        return get_members(envelope->prepare, arena, &m->prepare, err);
    case MSG_STEP_DONE:
        return get_metrics(envelope->step_done, arena, &m->step_done, err);
    case MSG_CHECKPOINT:
        if (envelope->checkpoint->n_prune > MSG_MEMBERS)
            return too_many(err, "checkpoints to remove");
        m->checkpoint.n_prune = (int32_t)envelope->checkpoint->n_prune;
        m->checkpoint.prune = (const char *const *)envelope->checkpoint->prune;
        return STATUS_OK;
    case MSG_CHECK:
        return parity_get_check(envelope->check, arena, &m->check, err);
    case MSG_TRACE_DONE:
        return parity_get_trace(envelope->trace_done, arena, &m->trace_done, err);
    default:
        return STATUS_OK;
    }
}

// Points the message's arrays at the frames, after comparing announcement, frame and the message's own counts.
static enum status get_arrays(const Ooze__V1__Envelope *envelope, const struct codec_frame *frames, int n,
                              struct arena *arena, struct msg *m, struct error *err)
{
    struct msg_array arrays[MSG_ARRAYS];
    const char *name = msg_type_name(m->type);
    int expected = msg_arrays(m, arrays);
    if (envelope->n_arrays != (size_t)expected || n != 1 + expected)
        return error_set(err, STATUS_PROTOCOL, "%s: %d arrays belong to it, %zu are announced, %d have come",
                         name, expected, envelope->n_arrays, n - 1);
    for (int i = 0; i < expected; i++) {
        const struct msg_array *a = &arrays[i];
        const Ooze__V1__Array *told = envelope->arrays[i];
        const struct codec_frame *f = &frames[1 + i];
        size_t element = msg_element_bytes(a->element);
        if ((int)told->kind != a->kind || (int)told->element != a->element || told->count != a->count ||
            f->n != a->count * element)
            return error_set(err, STATUS_PROTOCOL,
                             "%s: array %d is not as announced (%zu bytes for %llu elements)", name, i, f->n,
                             (unsigned long long)a->count);
        const void *p = f->data;
        if ((uintptr_t)p % element != 0 && !(p = arena_memdup(arena, p, f->n)))
            return error_set(err, STATUS_LIMIT, "%s: no memory within the limit", name);
        memcpy(a->at, &p, sizeof(p));
    }
    return STATUS_OK;
}

enum status codec_decode(const struct codec_frame *frames, int n, struct arena *arena, struct msg *ret,
                         struct error *err)
{
    if (n < 1 || n > CODEC_FRAMES)
        return error_set(err, STATUS_PROTOCOL, "%d frames are no message", n);
    if (frames[0].n > ENVELOPE_MAX)
        return error_set(err, STATUS_LIMIT, "an envelope of %zu bytes", frames[0].n);
    ProtobufCAllocator allocator = {unpack_alloc, unpack_free, arena};
    Ooze__V1__Envelope *envelope = ooze__v1__envelope__unpack(&allocator, frames[0].n, frames[0].data);
    if (!envelope)
        return error_set(err, STATUS_CORRUPT, "the envelope does not parse");
    if (envelope->protocol != MSG_PROTOCOL)
        return error_set(err, STATUS_PROTOCOL, "protocol version %u; this build speaks %d",
                         envelope->protocol, MSG_PROTOCOL);
    struct msg m = {0};
    enum status rc = get_body(envelope, arena, &m, err);
    if (rc == STATUS_OK)
        rc = msg_check_head(&m, STATUS_PROTOCOL, err);
    if (rc == STATUS_OK)
        rc = get_arrays(envelope, frames, n, arena, &m, err);
    if (rc == STATUS_OK)
        rc = msg_check_arrays(&m, STATUS_PROTOCOL, err);
    if (rc == STATUS_OK)
        *ret = m;
    return rc;
}
