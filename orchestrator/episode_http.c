// Calls to task services; see episode.h, invariants 2 to 4, for what a failure means. Runs on the loop's thread.
//
//   call ─► on_create / on_step ── a reply ──► take it
//                 ├── the service says {error:{kind}} ──► kind decides
//                 ├── refused, unresolved ──► task_suspect, EP_PAUSED until it is up (or the deadline: environment)
//                 ├── hang, broken, 5xx ──► canary ── well ──► the call again, once ── again ──► a step: policy; else timeout, environment
//                 │                            └── not well ──► task_suspect, EP_PAUSED; for the DEATHS_MAXth time: environment
//                 └── 404 of a step: the service lost the episode ──► gateway;  nonsense ──► environment
//                 (many of these in a row: see task_useless)
#include "orchestrator/episode_http.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "net/url.h"
#include "orchestrator/orch.h"

#define REPLY_MAX  ((size_t)4 << 20)
#define DEATHS_MAX 3 // calls after which the service was gone each time: it is not asked for ever

static void pause_for(struct episode *ep, enum drop_reason reason, const char *why, int64_t delay_ms)
{
    int64_t now = orch_now(ep->o);
    if (ep->state != EP_PAUSED)
        ep->pause_deadline_ms = now + ep->task->cfg.step_timeout_ms;
    ep->state = EP_PAUSED;
    ep->resume_ms = now + delay_ms;
    ep->trouble.reason = reason;
    char text[sizeof ep->trouble.text]; // why may be the text of the last trouble
    snprintf(text, sizeof text, "%s", why);
    memcpy(ep->trouble.text, text, sizeof text);
}

static void call_again(struct episode *ep)
{
    if (ep->id)
        episode_call_step(ep);
    else
        episode_call_create(ep);
}

void episode_unpause(struct episode *ep, bool too_late)
{
    if (too_late) {
        episode_fail(ep, ep->trouble.reason, ep->trouble.text);
        return;
    }
    if (!task_is_up(ep->task)) {
        ep->resume_ms = orch_now(ep->o) + 1000;
        return;
    }
    call_again(ep);
}

static void idempotency_key(const struct episode *ep, int turn, char *ret, size_t n)
{
    // The run is part of it, since a service may outlive runs; for evaluations also the incarnation and which of its evaluations it
    // is, since all of them ask the same prompts under the same numbers.
    if (ep->eval)
        snprintf(ret, n, "%.16s-e%" PRId64 ".%" PRId64 "-%" PRIx64 "-%u-%d", ep->o->run_id, ep->o->epoch,
                 ep->o->eval.round, ep->trajectory, ep->attempt, turn);
    else
        snprintf(ret, n, "%.16s-%" PRIu64 "-%u-%d", ep->o->run_id, ep->trajectory, ep->attempt, turn);
}

static bool call(struct episode *ep, const char *rest, const char *body, size_t n, int turn,
                 void (*on_done)(void *ctx, const struct http_result *r))
{
    char key[128];
    struct error err;
    char *url = url_join(ep->task->url, rest);
    idempotency_key(ep, turn, key, sizeof key);
    struct http_call_spec spec = {
        .method = "POST",
        .url = url,
        .body = body,
        .body_len = n,
        .idempotency_key = key,
        .connect_timeout_ms = ep->task->cfg.connect_timeout_ms,
        .timeout_ms = ep->task->cfg.step_timeout_ms,
        .max_reply_bytes = REPLY_MAX,
        .on_done = on_done,
        .ctx = ep,
    };
    enum status rc = http_call_start(ep->o->http, &spec, &ep->call, &err);
    free(url);
    if (rc)
        pause_for(ep, DROP_ENVIRONMENT, err.text, rc == STATUS_AGAIN ? 100 : 1000);
    return rc == STATUS_OK;
}

// ---- failures -------------------------------------------------------------------------------------------------------------

static void on_canary(void *ctx, const struct http_result *r)
{
    struct episode *ep = ctx;
    ep->call = NULL;
    if (r->outcome != HTTP_OUTCOME_OK || r->status != 200) {
        task_suspect(ep->task, "canary failed");
        if (++ep->deaths >= DEATHS_MAX) {
            episode_fail(ep, ep->trouble.reason, ep->trouble.text);
            return;
        }
        pause_for(ep, ep->trouble.reason, ep->trouble.text, 1000);
        return;
    }
    if (ep->repeats++ < 1) {
        call_again(ep);
        return;
    }
    // The service is well and yet this call fails twice: what the policy asked for did that.
    if (ep->id)
        episode_finish_policy(ep);
    else
        episode_fail(ep, ep->trouble.reason, ep->trouble.text);
}

static void ask_canary(struct episode *ep, enum drop_reason reason, const char *why)
{
    struct error err;
    char *url = url_join(ep->task->url, "health");
    pause_for(ep, reason, why, ep->task->cfg.step_timeout_ms); // until the canary answers
    struct http_call_spec spec = {
        .method = "GET",
        .url = url,
        .connect_timeout_ms = ep->task->cfg.connect_timeout_ms,
        .timeout_ms = ep->task->cfg.connect_timeout_ms,
        .max_reply_bytes = 1 << 16,
        .on_done = on_canary,
        .ctx = ep,
    };
    if (http_call_start(ep->o->http, &spec, &ep->call, &err))
        ep->resume_ms = orch_now(ep->o) + 100;
    free(url);
}

// True when the transport gave a reply worth reading; else the failure has been dealt with.
// A 5xx that says itself what kind of failure it is ("Task services" of protocols.md) is an answer like any other.
static bool names_kind(const struct http_result *r)
{
    json_t *j;
    struct error none;
    if (json_parse(r->body, r->body_len, "reply", &j, &none))
        return false;
    bool named = json_is_string(json_object_get(json_object_get(j, "error"), "kind"));
    json_decref(j);
    return named;
}

static bool reply_arrived(struct episode *ep, const struct http_result *r)
{
    char why[160];
    if (r->outcome == HTTP_OUTCOME_OK && (r->status < 500 || names_kind(r)))
        return true;
    snprintf(why, sizeof why, "%s%s%s", http_outcome_text(r->outcome), r->status ? ", HTTP status " : "",
             r->status >= 500 ? "5xx" : "");
    switch (r->outcome) {
    case HTTP_OUTCOME_QUEUE_TIMEOUT:
        pause_for(ep, DROP_TIMEOUT, why, 100);
        return false;
    case HTTP_OUTCOME_REFUSED:
    case HTTP_OUTCOME_RESOLVE:
    case HTTP_OUTCOME_TLS:
        task_suspect(ep->task, why);
        pause_for(ep, DROP_ENVIRONMENT, why, 1000);
        return false;
    case HTTP_OUTCOME_TOO_LARGE:
    case HTTP_OUTCOME_FORBIDDEN:
    case HTTP_OUTCOME_PROTOCOL:
        episode_fail(ep, DROP_ENVIRONMENT, why);
        return false;
    default:
        ask_canary(ep, r->outcome == HTTP_OUTCOME_TIMEOUT ? DROP_TIMEOUT : DROP_ENVIRONMENT, why);
        return false;
    }
}

// An answer that is the service's fault.
static void fail_useless(struct episode *ep, enum drop_reason reason, const char *why)
{
    task_useless(ep->task, why);
    episode_fail(ep, reason, why);
}

// {error:{kind, message}} or a status over 400. True when there was one.
static bool reply_is_error(struct episode *ep, const struct http_result *r, const json_t *j)
{
    char why[200];
    const json_t *e = json_object_get(j, "error");
    if (!e && r->status < 400)
        return false;
    const char *kind = json_string_value(json_object_get(e, "kind"));
    const char *message = json_string_value(json_object_get(e, "message"));
    snprintf(why, sizeof why, "HTTP %d: %s", r->status, message ? message : "no message");
    if (kind && strcmp(kind, "policy") == 0 && ep->id)
        episode_finish_policy(ep);
    else if (kind && strcmp(kind, "grader") == 0)
        fail_useless(ep, DROP_GRADER, why);
    else if (kind && strcmp(kind, "timeout") == 0)
        fail_useless(ep, DROP_TIMEOUT, why);
    else if (!kind && r->status == 404 && ep->id)
        fail_useless(ep, DROP_GATEWAY, "the service does not know the episode any more");
    else
        fail_useless(ep, DROP_ENVIRONMENT, why);
    return true;
}

static bool parse_reply(struct episode *ep, const struct http_result *r, const char *what, json_t **ret)
{
    struct error err;
    json_t *j = NULL;
    enum status rc = json_parse(r->body, r->body_len, what, &j, &err);
    if (!rc && !json_is_object(j))
        rc = error_set(&err, STATUS_INVALID, "%s: expected a JSON object", what);
    if (rc && r->status < 400) {
        json_decref(j);
        task_suspect(ep->task, "nonsense reply");
        fail_useless(ep, DROP_ENVIRONMENT, err.text);
        return false;
    }
    bool error = reply_is_error(ep, r, rc ? NULL : j);
    if (error || rc) {
        json_decref(j);
        return false;
    }
    *ret = j;
    return true;
}

// ---- creation -------------------------------------------------------------------------------------------------------------

static enum status write_given(struct episode *ep, int32_t from, struct error *err)
{
    struct ledger_piece p = {
        .trajectory = (int64_t)ep->trajectory,
        .attempt = (int32_t)ep->attempt,
        .segment = ep->session.segment,
        .offset = from,
        .turn = ep->turn,
        .kind = PIECE_GIVEN,
        .n = (int32_t)ep->session.tokens.n - from,
        .ids = ep->session.tokens.ids + from,
    };
    return p.n > 0 ? ledger_piece_add(ep->o->ledger, &p, err) : STATUS_OK;
}

static void on_create(void *ctx, const struct http_result *r)
{
    struct episode *ep = ctx;
    struct orch *o = ep->o;
    struct error err;
    json_t *j;
    ep->call = NULL;
    if (!reply_arrived(ep, r) || !parse_reply(ep, r, "POST /episodes", &j))
        return;
    const char *id;
    enum status rc = json_get_string(j, "episode_id", true, NULL, "POST /episodes", &id, &err);
    if (!rc && (!id[0] || strlen(id) > 1024))
        rc = error_set(&err, STATUS_INVALID, "POST /episodes: episode_id is empty or too long");
    json_t *tools = json_object_get(j, "tools");
    if (!tools || json_is_null(tools))
        tools = ep->task->tools;
    if (!rc)
        rc = session_open(&ep->session, o->chat, json_object_get(j, "messages"), tools, &err);
    if (!rc)
        ep->id = mem_strdup(id);
    json_decref(j);
    if (rc) {
        error_prefix(&err, "POST /episodes");
        fail_useless(ep, DROP_ENVIRONMENT, err.text);
        return;
    }
    ep->repeats = ep->deaths = 0;
    ep->turn = 0;
    if (!ep->eval) {
        struct ledger_turn t = {.trajectory = (int64_t)ep->trajectory,
                                .attempt = (int32_t)ep->attempt,
                                .turn = -1,
                                .reply = r->body,
                                .done = false};
        if (journal_begin(o, &err) ||
            ledger_unit_generating(o->ledger, (int64_t)ep->trajectory, (int32_t)ep->attempt, ep->id, &err) ||
            ledger_turn_add(o->ledger, &t, &err) || write_given(ep, 0, &err)) {
            orch_fail(o, &err);
            return;
        }
    }
    episode_generate_when_durable(ep);
}

void episode_call_create(struct episode *ep)
{
    char body[512];
    int n = snprintf(body, sizeof body,
                     "{\"split\":\"%s\",\"index\":%" PRId64 ",\"seed\":%" PRIu64 ",\"group_id\":%" PRId64
                     ",\"attempt\":%u}",
                     ep->eval ? "eval" : "train", ep->index, ep->seed, ep->group_id, ep->attempt);
    if (call(ep, "episodes", body, (size_t)n, -1, on_create))
        ep->state = EP_CREATING;
}

// ---- steps ----------------------------------------------------------------------------------------------------------------

// NaN cannot occur in JSON, huge numbers can.
enum status episode_take_reward(struct episode *ep, const json_t *j, bool done, struct error *err)
{
    const json_t *reward = json_object_get(j, "reward"), *parts = json_object_get(j, "reward_components");
    if (!reward || json_is_null(reward)) {
        if (done)
            return error_set(err, STATUS_INVALID, "POST step: done without a reward");
        return STATUS_OK;
    }
    if (!json_is_number(reward) || !isfinite(json_number_value(reward)))
        return error_set(err, STATUS_INVALID, "POST step: reward is not a finite number");
    ep->last_reward = json_number_value(reward);
    ep->has_reward = true;
    free(ep->components);
    ep->components = json_is_object(parts) ? json_text(parts) : NULL;
    return STATUS_OK;
}

static void on_step(void *ctx, const struct http_result *r)
{
    struct episode *ep = ctx;
    struct orch *o = ep->o;
    struct error err;
    json_t *j;
    ep->call = NULL;
    if (!reply_arrived(ep, r) || !parse_reply(ep, r, "POST step", &j))
        return;
    bool done = false;
    int32_t from = 0;
    enum status rc = json_get_bool(j, "done", true, false, "POST step", &done, &err);
    if (!rc)
        rc = episode_take_reward(ep, j, done, &err);
    if (!rc && !done) {
        const json_t *messages = json_object_get(j, "messages");
        json_t *none = messages ? NULL : json_array();
        rc = session_tail(&ep->session, messages ? messages : none, &from, &err);
        json_decref(none);
    }
    json_decref(j);
    if (rc) {
        fail_useless(ep, DROP_ENVIRONMENT, err.text);
        return;
    }
    ep->repeats = ep->deaths = 0;
    task_useful(ep->task);
    if (!ep->eval) {
        struct ledger_turn t = {.trajectory = (int64_t)ep->trajectory,
                                .attempt = (int32_t)ep->attempt,
                                .turn = ep->turn,
                                .message = ep->message,
                                .reply = r->body,
                                .done = done};
        ep->turn++;
        if (journal_begin(o, &err) || ledger_turn_add(o->ledger, &t, &err) ||
            (!done && write_given(ep, from, &err))) {
            orch_fail(o, &err);
            return;
        }
    } else {
        ep->turn++;
    }
    if (done)
        episode_finish(ep, ep->last_reward, ep->cut);
    else
        episode_generate_when_durable(ep);
}

void episode_call_step(struct episode *ep)
{
    struct buf rest = {0}, body = {0};
    buf_puts(&rest, "episodes/");
    url_put_segment(&rest, ep->id, strlen(ep->id));
    buf_puts(&rest, "/step");
    const char *finish = ep->cut ? "length" : ep->calls ? "tool_calls" : "stop";
    buf_puts(&body, "{\"message\":");
    buf_puts(&body, ep->message);
    buf_printf(&body, ",\"finish_reason\":\"%s\"}", finish);
    if (call(ep, rest.data, body.data, body.len, ep->turn, on_step))
        ep->state = EP_STEPPING;
    buf_done(&rest);
    buf_done(&body);
}

static void on_delete(void *ctx, const struct http_result *r)
{
    (void)ctx; // a service that keeps an episode too long is its own affair
    (void)r;
}

void episode_send_delete(struct orch *o, struct task *t, const char *id)
{
    struct buf rest = {0};
    struct error err;
    if (!t || !task_is_up(t))
        return;
    buf_puts(&rest, "episodes/");
    url_put_segment(&rest, id, strlen(id));
    char *url = url_join(t->url, rest.data);
    struct http_call_spec spec = {
        .method = "DELETE",
        .url = url,
        .connect_timeout_ms = t->cfg.connect_timeout_ms,
        .timeout_ms = t->cfg.connect_timeout_ms,
        .max_reply_bytes = 1 << 16,
        .on_done = on_delete,
    };
    if (http_call_start(o->http, &spec, NULL, &err))
        (void)err; // full queue: the service's own expiry takes care
    free(url);
    buf_done(&rest);
}
