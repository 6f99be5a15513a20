// What may be in a message: limits and invariants of msg.h, checked where a message leaves and where it arrives.
// Pure functions, any thread.
#include "proto/msg.h"

#include <math.h>
#include <string.h>

#include "base/utf8.h"
#include "proto/msg_check.h"
#include "proto/ooze.pb-c.h"
#include "proto/parity.h"

#define LOGPROB_MAX 1e-3f // rounding of a log-sum-exp may end a hair above 0
#define KV_MAX      (1 << 16)
#define PRUNE_MAX   1024

const char *msg_type_name(enum msg_type t)
{
    static const char *const names[] = {
        [MSG_NONE] = "NONE",
        [MSG_HELLO] = "HELLO",
        [MSG_WELCOME] = "WELCOME",
        [MSG_PING] = "PING",
        [MSG_PONG] = "PONG",
        [MSG_JOB] = "JOB",
        [MSG_TOKEN_DATA] = "TOKENS",
        [MSG_ACK] = "ACK",
        [MSG_CANCEL] = "CANCEL",
        [MSG_PREPARE] = "PREPARE",
        [MSG_STEP_DONE] = "STEP_DONE",
        [MSG_COMMIT_ACK] = "COMMIT_ACK",
        [MSG_CHECKPOINT] = "CHECKPOINT",
        [MSG_VERSION] = "VERSION",
        [MSG_LOADED] = "LOADED",
        [MSG_CHUNK_REQUEST] = "CREDIT",
        [MSG_CHUNK_DATA] = "CHUNK",
        [MSG_QUERY] = "QUERY",
        [MSG_REPLY] = "REPLY",
        [MSG_CHECK] = "CHECK",
        [MSG_CHECK_DONE] = "CHECK_DONE",
        [MSG_TRACE] = "TRACE",
        [MSG_TRACE_DONE] = "TRACE_DONE",
        [MSG_BYE] = "BYE",
    };
    return (unsigned)t < sizeof(names) / sizeof(names[0]) ? names[t] : "UNKNOWN";
}

// ---- arrays ----------------------------------------------------------------------------------------------

size_t msg_element_bytes(int element)
{
    return element == OOZE__V1__ELEMENT__ELEMENT_U64                                                ? 8
           : element == OOZE__V1__ELEMENT__ELEMENT_U8                                               ? 1
           : element == OOZE__V1__ELEMENT__ELEMENT_I32 || element == OOZE__V1__ELEMENT__ELEMENT_F32 ? 4
                                                                                                    : 0;
}

int msg_arrays(struct msg *m, struct msg_array ret[MSG_ARRAYS])
{
    int n = 0;
#define ARRAY(k, e, cnt, field)                                                                              \
    if ((cnt) > 0)                                                                                           \
        ret[n++] = (struct msg_array)                                                                        \
        {                                                                                                    \
            OOZE__V1__ARRAY_KIND__ARRAY_##k, OOZE__V1__ELEMENT__ELEMENT_##e, (uint64_t)(cnt), &(field)       \
        }
    switch (m->type) {
    case MSG_JOB:
        ARRAY(IDS, I32, m->job.n_ids, m->job.ids);
        break;
    case MSG_TOKEN_DATA:
        ARRAY(IDS, I32, m->tokens.n, m->tokens.ids);
        ARRAY(LOGPROBS, F32, m->tokens.n, m->tokens.logprobs);
        ARRAY(PROMPT_LOGPROBS, F32, m->tokens.n_prompt_logprobs, m->tokens.prompt_logprobs);
        break;
    case MSG_PREPARE:
        ARRAY(IDS, I32, m->prepare.n_tokens, m->prepare.ids);
        ARRAY(MASK, U8, m->prepare.n_tokens, m->prepare.mask);
        ARRAY(LOGPROBS, F32, m->prepare.n_tokens, m->prepare.logprobs);
        ARRAY(VERSIONS, I32, m->prepare.n_tokens, m->prepare.versions);
        ARRAY(TEMPERATURES, F32, m->prepare.n_tokens, m->prepare.temperatures);
        break;
    case MSG_CHECK:
        ARRAY(IDS, I32, m->check.n_tokens, m->check.ids);
        ARRAY(MASK, U8, m->check.n_tokens, m->check.mask);
        ARRAY(LOGPROBS, F32, m->check.n_tokens, m->check.logprobs);
        ARRAY(VERSIONS, I32, m->check.n_tokens, m->check.versions);
        ARRAY(TEMPERATURES, F32, m->check.n_tokens, m->check.temperatures);
        break;
    case MSG_TRACE:
        ARRAY(IDS, I32, m->trace.n_ids, m->trace.ids);
        break;
    case MSG_TRACE_DONE:
        ARRAY(DIGESTS, U64, m->trace_done.n_ops, m->trace_done.digests);
        ARRAY(LOGPROBS, F32, m->trace_done.n_logprobs, m->trace_done.logprobs);
        break;
    case MSG_CHUNK_DATA:
        ARRAY(BYTES, U8, m->chunk_data.n, m->chunk_data.data);
        break;
    default:
        break;
    }
#undef ARRAY
    return n;
}

// ---- words of the checks ---------------------------------------------------------------------------------

void check_expect(struct check *c, bool ok, const char *what)
{
    if (ok || c->failed)
        return;
    c->failed = true;
    error_set(c->err, c->on_fail, "%s: %s", c->message, what);
}

void check_text(struct check *c, const char *s, size_t most, const char *what)
{
    if (!s || c->failed) // a sender may leave a text out: it arrives as ""
        return;
    size_t n = strnlen(s, most + 1);
    check_expect(c, n <= most && utf8_valid_prefix(s, n) == n, what);
}

static bool is_logprob(float v)
{
    return isfinite(v) && v <= LOGPROB_MAX;
}

static bool is_time(double ms)
{
    return isfinite(ms) && ms >= 0;
}

// ---- one function a message ------------------------------------------------------------------------------

static void check_hello(struct check *c, const struct msg_hello *m)
{
    EXPECT(m->role >= ROLE_ENGINE && m->role <= ROLE_CLI);
    EXPECT(m->pid >= 0 && m->version >= -1 && m->kv_tokens >= 0 && m->max_running >= 0 && m->restarts >= 0);
    EXPECT(m->version >= 0 || !m->version_hash || !*m->version_hash);
    EXPECT(!m->remote || m->role == ROLE_ENGINE);
    TEXT(m->run);
    TEXT(m->name);
    TEXT(m->build);
    TEXT(m->numerics_id);
    TEXT(m->version_hash);
}

static void check_welcome(struct check *c, const struct msg_welcome *m)
{
    EXPECT(m->orchestrator_epoch >= 0 && m->epoch >= 0 && m->version >= -1);
    EXPECT(m->ping_interval_ms >= 0 && m->silence_ms >= 0);
    EXPECT(m->checkpoint_step >= 0 && m->committed_steps >= m->checkpoint_step);
    TEXT(m->run);
    TEXT(m->reason);
    TEXT(m->checkpoint);
    TEXT(m->checkpoint_hash);
    TEXT(m->version_path);
    TEXT(m->version_hash);
}

static void check_ping(struct check *c, const struct msg_ping *m)
{
    EXPECT(m->version >= -1 && m->step >= -1);
    EXPECT(m->running >= 0 && m->waiting >= 0 && m->kv_used >= 0 && m->kv_capacity >= 0);
    EXPECT(m->generated_tokens >= 0 && m->prefill_tokens >= 0 && m->cached_tokens >= 0 &&
           m->preemptions >= 0);
    EXPECT(m->busy >= 0 && m->busy <= 1.001); // the quotient of two clock readings
}

static void check_sampling(struct check *c, const struct msg_sampling *m)
{
    EXPECT(isfinite(m->temperature) && m->temperature >= 0);
    EXPECT(m->top_p > 0 && m->top_p <= 1 && m->min_p >= 0 && m->min_p <= 1 && m->top_k >= 0);
    EXPECT(m->max_new >= 0 && m->max_new <= MSG_TOKENS_MAX && m->min_new >= 0 && m->min_new <= m->max_new);
    EXPECT(m->n_stop >= 0 && m->n_stop <= MSG_STOP_IDS);
    for (int i = 0; !c->failed && i < m->n_stop; i++)
        EXPECT(m->stop[i] >= 0);
    EXPECT(!m->train || (m->temperature > 0 && m->top_p == 1 && m->min_p == 0 && m->top_k == 0));
}

static void check_job(struct check *c, const struct msg_job *m)
{
    check_sampling(c, &m->sampling);
    EXPECT(m->orchestrator_epoch >= 0 && m->min_version >= -1 && m->deadline_ms >= 0);
    EXPECT(m->n_ids >= 1 && m->n_ids <= MSG_TOKENS_MAX);
    EXPECT(m->n_ids <= MSG_TOKENS_MAX - m->sampling.max_new);
    EXPECT(m->sampling.max_new > 0 || m->prompt_logprobs);
}

void check_kv(struct check *c, const struct msg_kv *k)
{
    EXPECT(k->kind >= KV_REFIT && k->kind <= KV_PREFILL && k->version >= 0);
    EXPECT(k->from >= 0 && k->to >= k->from && k->to <= MSG_TOKENS_MAX);
    EXPECT(k->at_token >= 0 && k->at_token <= MSG_TOKENS_MAX);
}

static void check_tokens(struct check *c, const struct msg_tokens *m)
{
    EXPECT(m->offset >= 0 && m->offset <= MSG_TOKENS_MAX && m->n >= 0 && m->n <= MSG_TOKENS_MAX - m->offset);
    EXPECT(m->n_prompt_logprobs >= 0 && m->n_prompt_logprobs <= MSG_TOKENS_MAX);
    EXPECT(m->cached_tokens >= 0 && m->finish >= FINISH_NONE && m->finish <= FINISH_ERROR);
    EXPECT(m->n_spans >= 0 && m->n_spans <= m->n && m->n_kv >= 0 && m->n_kv <= KV_MAX);
    TEXT(m->error);
    int32_t at = m->offset;
    int64_t version = 0;
    for (int i = 0; !c->failed && i < m->n_spans; i++) {
        const struct msg_span *s = &m->spans[i];
        EXPECT(s->start == at && s->end > s->start && s->end <= m->offset + m->n && s->version >= version);
        at = s->end;
        version = s->version;
    }
    check_expect(c, c->failed || at == m->offset + m->n, "spans do not cover the tokens");
    for (int i = 0; !c->failed && i < m->n_kv; i++)
        check_kv(c, &m->kv[i]);
}

static void check_prepare(struct check *c, const struct msg_prepare *m)
{
    EXPECT(m->epoch >= 0 && m->step >= 0 && m->stage >= 0 && m->stage_step >= 0 && m->updates >= 1);
    EXPECT(isfinite(m->lr) && m->lr >= 0);
    EXPECT(m->n_members >= 1 && m->n_members <= MSG_MEMBERS && m->n_tokens >= 1 &&
           m->n_tokens <= MSG_BATCH_MAX);
    TEXT(m->expect_hash);
    int64_t sum = 0;
    for (int i = 0; !c->failed && i < m->n_members; i++) {
        const struct msg_member *b = &m->members[i];
        EXPECT(b->n_tokens >= 1 && b->n_tokens <= MSG_TOKENS_MAX && b->multiplicity >= 1);
        EXPECT(isfinite(b->advantage) && b->task >= -1);
        sum += b->n_tokens;
    }
    EXPECT(sum == m->n_tokens);
}

static void check_step_done(struct check *c, const struct msg_step_done *m)
{
    EXPECT(m->epoch >= 0 && m->step >= -1 && m->version >= 0 && m->bytes >= 0);
    EXPECT(m->outcome == STEP_APPLIED || m->outcome == STEP_REJECTED);
    EXPECT(m->n_metrics >= 0 && m->n_metrics <= MSG_METRICS);
    TEXT(m->reason);
    TEXT(m->hash);
    TEXT(m->path);
    for (int i = 0; !c->failed && i < m->n_metrics; i++) {
        EXPECT(m->metrics[i].name && m->metrics[i].name[0]);
        TEXT(m->metrics[i].name);
    }
}

static void check_checkpoint(struct check *c, const struct msg_checkpoint *m)
{
    EXPECT(m->epoch >= 0 && m->step >= 0 && m->n_prune >= 0 && m->n_prune <= PRUNE_MAX);
    TEXT(m->path);
    TEXT(m->hash);
    for (int i = 0; !c->failed && i < m->n_prune; i++)
        TEXT(m->prune[i]);
}

static void check_chunk_data(struct check *c, const struct msg_chunk_data *m)
{
    EXPECT(m->version >= 0 && m->n >= 0 && m->n <= MSG_CHUNK);
    EXPECT(m->offset >= 0 && m->offset <= m->total && m->n <= m->total - m->offset);
}

// Messages of a few fields.
static void check_small(struct check *c, const struct msg *m)
{
    switch (m->type) {
    case MSG_ACK:
        EXPECT(m->ack.durable_to >= 0 && m->ack.durable_to <= MSG_TOKENS_MAX);
        break;
    case MSG_CANCEL:
    case MSG_BYE:
        break;
    case MSG_COMMIT_ACK:
        EXPECT(m->commit_ack.epoch >= 0 && m->commit_ack.step >= -1);
        EXPECT(m->commit_ack.result >= COMMIT_OK && m->commit_ack.result <= COMMIT_CONFLICT);
        TEXT(m->commit_ack.reason);
        break;
    case MSG_VERSION:
        EXPECT(m->version.version >= 0 && m->version.bytes >= 0);
        TEXT(m->version.path);
        TEXT(m->version.hash);
        break;
    case MSG_LOADED:
        EXPECT(m->loaded.version >= 0 && is_time(m->loaded.load_ms) && is_time(m->loaded.stall_ms));
        TEXT(m->loaded.hash);
        TEXT(m->loaded.error);
        break;
    case MSG_CHUNK_REQUEST:
        EXPECT(m->chunk_request.version >= 0 && m->chunk_request.offset >= 0);
        EXPECT(m->chunk_request.bytes >= 1 && m->chunk_request.bytes <= MSG_CHUNK);
        break;
    case MSG_QUERY:
        EXPECT(m->query.verb && m->query.verb[0]);
        TEXT(m->query.verb);
        JSON(m->query.args);
        break;
    case MSG_REPLY:
        EXPECT(m->reply.status >= STATUS_INTERNAL && m->reply.status <= STATUS_OK);
        JSON(m->reply.json);
        break;
    default:
        check_expect(c, false, "no such message");
    }
}

enum status msg_check_head(const struct msg *m, enum status s, struct error *err)
{
    struct check check = {msg_type_name(m->type), s, err, false}, *c = &check;
    switch (m->type) {
    case MSG_HELLO:
        check_hello(c, &m->hello);
        break;
    case MSG_WELCOME:
        check_welcome(c, &m->welcome);
        break;
    case MSG_PING:
    case MSG_PONG:
        check_ping(c, &m->ping);
        break;
    case MSG_JOB:
        check_job(c, &m->job);
        break;
    case MSG_TOKEN_DATA:
        check_tokens(c, &m->tokens);
        break;
    case MSG_PREPARE:
        check_prepare(c, &m->prepare);
        break;
    case MSG_STEP_DONE:
        check_step_done(c, &m->step_done);
        break;
    case MSG_CHECKPOINT:
        check_checkpoint(c, &m->checkpoint);
        break;
    case MSG_CHUNK_DATA:
        check_chunk_data(c, &m->chunk_data);
        break;
    case MSG_CHECK:
    case MSG_CHECK_DONE:
    case MSG_TRACE:
    case MSG_TRACE_DONE:
        parity_check_head(c, m);
        break;
    default:
        check_small(c, m);
    }
    return check.failed ? s : STATUS_OK;
}

// ---- contents of the arrays ------------------------------------------------------------------------------

bool check_ids_ok(const int32_t *ids, int64_t n)
{
    int32_t all = 0;
    for (int64_t i = 0; i < n; i++)
        all |= ids[i];
    return all >= 0;
}

bool check_logprobs_ok(const float *lp, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (!is_logprob(lp[i]))
            return false;
    return true;
}

void check_sampled(struct check *c, int64_t n, const uint8_t *mask, const float *logprobs,
                   const int32_t *versions, const float *temperatures, int64_t newest)
{
    int32_t version = -1; // of the response under way
    for (int64_t i = 0; i < n && !c->failed; i++) {
        float lp = logprobs[i], temperature = temperatures[i];
        if (mask[i] > 1) {
            check_expect(c, false, "a mask is neither 0 nor 1");
        } else if (!mask[i] || versions[i] == -1) {
            if (lp != 0 || versions[i] != -1 || temperature != 1)
                check_expect(c, false,
                             "a token that was not sampled has a logprob, a version or a temperature");
            version = -1;
        } else {
            if (!is_logprob(lp) || !isfinite(temperature) || temperature <= 0)
                check_expect(c, false, "a logprob or a temperature is out of range");
            if (versions[i] < version || versions[i] > newest)
                check_expect(c, false, "versions fall within a response, or are newer than the step");
            version = versions[i];
        }
    }
}

static void check_prepare_tokens(struct check *c, const struct msg_prepare *m)
{
    int64_t at = 0;
    for (int k = 0; k < m->n_members && !c->failed; at += m->members[k++].n_tokens)
        check_sampled(c, m->members[k].n_tokens, m->mask + at, m->logprobs + at, m->versions + at,
                      m->temperatures + at, m->step);
}

enum status msg_check_arrays(const struct msg *m, enum status s, struct error *err)
{
    struct check check = {msg_type_name(m->type), s, err, false}, *c = &check;
    if (m->type == MSG_JOB) {
        check_expect(c, check_ids_ok(m->job.ids, m->job.n_ids), "a token id is negative");
    } else if (m->type == MSG_TOKEN_DATA) {
        check_expect(c, check_ids_ok(m->tokens.ids, m->tokens.n), "a token id is negative");
        check_expect(c, check_logprobs_ok(m->tokens.logprobs, m->tokens.n),
                     "a logprob is not finite or above 0");
        check_expect(c, check_logprobs_ok(m->tokens.prompt_logprobs, m->tokens.n_prompt_logprobs),
                     "a logprob of the prompt is not finite or above 0");
    } else if (m->type == MSG_PREPARE) {
        check_expect(c, check_ids_ok(m->prepare.ids, m->prepare.n_tokens), "a token id is negative");
        check_prepare_tokens(c, &m->prepare);
    } else {
        parity_check_arrays(c, m);
    }
    return check.failed ? s : STATUS_OK;
}
