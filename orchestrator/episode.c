// The episode state machine; see episode.h for states and invariants. Runs on the loop's thread. What is said over HTTP is in
// episode_http.c; here is what follows from it.
#include "orchestrator/episode.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"
#include "orchestrator/episode_http.h"
#include "orchestrator/orch.h"

static struct episode *episode_new(struct orch *o, const struct episode_spec *s)
{
    struct episode *ep = mem_must(1, sizeof *ep);
    ep->o = o;
    ep->serial = ++o->episodes.next_serial;
    ep->task = s->task;
    ep->group = s->group;
    ep->member = s->member;
    ep->eval = s->eval;
    ep->trajectory = s->trajectory;
    ep->attempt = s->attempt;
    ep->index = s->index;
    ep->seed = s->seed;
    ep->group_id = s->group_id;
    ep->stage = s->stage;
    ep->temperature = s->temperature;
    ep->min_version = s->min_version;
    ep->session.version_min = ep->session.version_max = -1; // nothing sampled yet
    table_set(&o->episodes.by_serial, ep->serial, ep);
    return ep;
}

static void queue_remove(struct episode *ep)
{
    struct task *t = ep->task;
    *(ep->queue_prev ? &ep->queue_prev->queue_next : &t->queue_first) = ep->queue_next;
    *(ep->queue_next ? &ep->queue_next->queue_prev : &t->queue_last) = ep->queue_prev;
    ep->queue_prev = ep->queue_next = NULL;
    t->n_queued--;
}

static void queue_add(struct episode *ep)
{
    struct task *t = ep->task;
    ep->state = EP_QUEUED;
    ep->queue_prev = t->queue_last;
    *(t->queue_last ? &t->queue_last->queue_next : &t->queue_first) = ep;
    t->queue_last = ep;
    t->n_queued++;
}

// The service may forget an episode only when its end is durable: a crash before that repeats the last step.
// One note each, run in the order of the ends: a note of this commit must not take along an end that the next one makes durable.
static void gone_note(struct orch *o, uint64_t unused_a, uint64_t unused_b)
{
    (void)unused_a;
    (void)unused_b;
    struct episodes *e = &o->episodes;
    struct episode_gone g = e->gone[e->first_gone++];
    if (e->first_gone == e->n_gone)
        e->first_gone = e->n_gone = 0;
    episode_send_delete(o, tasks_by_id(o, g.task), g.id);
    free(g.id);
}

static void gone_add(struct orch *o, struct task *t, char *id)
{
    struct episodes *e = &o->episodes;
    if (e->n_gone == e->cap_gone && e->first_gone > 0) {
        e->n_gone -= e->first_gone;
        memmove(e->gone, e->gone + e->first_gone, e->n_gone * sizeof *e->gone);
        e->first_gone = 0;
    }
    if (e->n_gone == e->cap_gone) {
        e->cap_gone = e->cap_gone ? e->cap_gone * 2 : 64;
        e->gone = mem_grow(e->gone, e->cap_gone, sizeof *e->gone);
    }
    e->gone[e->n_gone++] = (struct episode_gone){t->id, id};
    journal_after(o, gone_note, 0, 0);
}

// The one end of every episode.
static void episode_free(struct orch *o, struct episode *ep)
{
    struct task *t = ep->task;
    if (ep->state == EP_QUEUED)
        queue_remove(ep);
    if (ep->has_place)
        t->running--;
    if (ep->call)
        http_call_cancel(ep->call);
    router_cancel(o, ep->job);
    if (ep->id)
        gone_add(o, t, ep->id);
    table_remove(&o->episodes.by_serial, ep->serial);
    session_close(&ep->session);
    free(ep->message);
    free(ep->components);
    free(ep);
}

static void next_note(struct orch *o, uint64_t task, uint64_t unused)
{
    (void)unused;
    struct task *t = tasks_by_id(o, (int64_t)task);
    if (t)
        episodes_next(o, t);
}

void episode_cancel(struct orch *o, struct episode *ep)
{
    if (!ep)
        return;
    uint64_t task = (uint64_t)ep->task->id;
    episode_free(o, ep);
    journal_after(o, next_note, task, 0);
}

struct episode *episode_start(struct orch *o, const struct episode_spec *s)
{
    struct episode *ep = episode_new(o, s);
    queue_add(ep);
    journal_after(o, next_note, (uint64_t)s->task->id, 0);
    return ep;
}

void episodes_next(struct orch *o, struct task *t)
{
    while (t->queue_first && t->running < t->cfg.max_concurrency && task_is_up(t) && !o->failed) {
        struct episode *ep = t->queue_first;
        queue_remove(ep);
        ep->has_place = true;
        t->running++;
        t->episodes++;
        if (ep->id) { // restored: it has its place again
            ep->state = EP_COMMIT;
            episode_resume(ep);
        } else {
            episode_call_create(ep);
        }
    }
}

void episodes_task_up(struct orch *o, struct task *t)
{
    int64_t now = orch_now(o);
    for (size_t i = 0; i < o->episodes.by_serial.cap; i++) {
        struct episode *ep = o->episodes.by_serial.slots[i].key ? o->episodes.by_serial.slots[i].value : NULL;
        if (ep && ep->task == t && ep->state == EP_PAUSED)
            ep->resume_ms = now;
    }
    journal_after(o, next_note, (uint64_t)t->id, 0);
}

// ---- ends -----------------------------------------------------------------------------------------------------------------

static double clamp_zero(const struct task *t)
{
    return t->reward_min > 0 ? t->reward_min : t->reward_max < 0 ? t->reward_max : 0;
}

void episode_finish(struct episode *ep, double reward, bool truncated)
{
    struct orch *o = ep->o;
    struct error err;
    if (ep->eval) {
        struct eval_result r = {.reward = reward,
                                .success = reward >= ep->task->reward_max - 1e-9,
                                .n_tokens = ep->session.n_sampled};
        int32_t item = ep->member;
        episode_cancel(o, ep);
        eval_on_result(o, item, &r);
        return;
    }
    struct group *g = ep->group;
    struct member_result r = {
        .reward = reward,
        .truncated = truncated,
        .n_sampled = ep->session.n_sampled,
        .n_segments = ep->session.segment + 1,
        .n_turns = ep->turn,
        .version_min = ep->session.version_min,
        .version_max = ep->session.version_max,
    };
    if (journal_begin(o, &err) || ledger_unit_scored(o->ledger, (int64_t)ep->trajectory, (int32_t)ep->attempt,
                                                     reward, ep->components, truncated, &err)) {
        orch_fail(o, &err);
        return;
    }
    int32_t member = ep->member;
    g->members[member].ep = NULL;
    episode_cancel(o, ep);
    group_on_scored(o, g, member, &r);
}

void episode_finish_at_limit(struct episode *ep)
{
    episode_finish(ep, ep->has_reward ? ep->last_reward : clamp_zero(ep->task), true);
}

void episode_finish_policy(struct episode *ep)
{
    // Without a sampled token there is nothing to train: the prompt alone was over the limit.
    if (ep->session.n_sampled == 0) {
        episode_fail(ep, DROP_OVER_BUDGET, "the prompt leaves no room for an answer (max_context)");
        return;
    }
    episode_finish(ep, clamp_zero(ep->task), true);
}

void episode_fail(struct episode *ep, enum drop_reason reason, const char *detail)
{
    struct orch *o = ep->o;
    struct task *t = ep->task;
    int32_t member = ep->member;
    t->failures++;
    log_event(LOG_DEBUG, "episode_failed", "task=%s trajectory=%" PRIu64 " attempt=%u reason=%s cause=\"%s\"",
              t->cfg.name, ep->trajectory, ep->attempt, drop_reason_name(reason), detail);
    if (ep->eval) {
        bool again = ep->attempt + 1 < (uint32_t)t->cfg.max_attempts;
        episode_cancel(o, ep);
        eval_on_failure(o, member, reason, detail, again);
        return;
    }
    struct group *g = ep->group;
    char text[200];
    snprintf(text, sizeof text, "%s", detail);
    g->members[member].ep = NULL;
    episode_cancel(o, ep);
    group_on_failed(o, g, member, reason, text);
}

// Attempts that follow queue up again, so that a service that stays away uses up max_attempts of them and its groups
// make room for those of other tasks.
void episodes_task_gone(struct orch *o, struct task *t)
{
    for (int n = t->n_queued; n > 0 && t->queue_first && !o->failed; n--)
        episode_fail(t->queue_first, DROP_ENVIRONMENT, "the service is down");
}

// ---- generation -----------------------------------------------------------------------------------------------------------

static void generate_note(struct orch *o, uint64_t serial, uint64_t unused)
{
    (void)unused;
    struct episode *ep = table_get(&o->episodes.by_serial, serial);
    if (ep && ep->state == EP_COMMIT)
        episode_generate(ep);
}

void episode_generate_when_durable(struct episode *ep)
{
    ep->state = EP_COMMIT;
    if (ep->eval)
        generate_note(ep->o, ep->serial, 0);
    else
        journal_after(ep->o, generate_note, ep->serial, 0);
}

void episode_generate(struct episode *ep)
{
    struct orch *o = ep->o;
    const struct run_sampling *s = &ep->stage->sampling;
    int64_t room = ep->stage->max_context - (int64_t)ep->session.tokens.n;
    int64_t max_new = s->max_new_tokens < room ? s->max_new_tokens : room;
    if (max_new < 1 || (ep->task->max_turns > 0 && ep->turn >= ep->task->max_turns)) {
        if (ep->turn > 0)
            episode_finish_at_limit(ep);
        else
            episode_finish_policy(ep);
        return;
    }
    // An evaluation asks the same prompts as the one before: as a session of its own, or with kv_on_refit: keep it would read KV rows
    // that the weights of the one before have made.
    uint64_t round = ep->eval ? (uint64_t)o->epoch << 32 | (uint64_t)o->eval.round : 0;
    uint64_t key[4] = {ep->trajectory, ep->attempt, (uint64_t)ep->session.segment, round};
    struct job spec = {
        .ep = ep,
        .session = hash64(key, sizeof key),
        .trajectory = ep->trajectory,
        .attempt = ep->attempt,
        .segment = (uint32_t)ep->session.segment,
        .min_version = ep->session.version_max > ep->min_version ? ep->session.version_max : ep->min_version,
        .prefix = ep->session.tokens.ids,
        .n_prefix = (int32_t)ep->session.tokens.n,
        .sampling = {.temperature = (float)ep->temperature,
                     .top_p = 1,
                     .min_p = 0,
                     .top_k = 0,
                     .max_new = (int32_t)max_new,
                     .train = !ep->eval},
    };
    if (ep->eval &&
        ep->temperature >
            0) { // evaluation requests are free (contract 3); training samples the full distribution
        spec.sampling.top_p = (float)s->top_p;
        spec.sampling.min_p = (float)s->min_p;
        spec.sampling.top_k = (int32_t)s->top_k;
    }
    size_t n_stop;
    const int32_t *stop = chat_stop_ids(o->chat, &n_stop);
    for (size_t i = 0; i < n_stop && i < MSG_STOP_IDS; i++)
        spec.sampling.stop[spec.sampling.n_stop++] = stop[i];
    ep->state = EP_GENERATING;
    ep->job = router_start(o, &spec);
}

static void step_note(struct orch *o, uint64_t serial, uint64_t unused)
{
    (void)unused;
    struct episode *ep = table_get(&o->episodes.by_serial, serial);
    if (ep && ep->state == EP_COMMIT)
        episode_call_step(ep);
}

// A NUL that the policy sampled is legal JSON, but many parsers refuse it or cut the string there: the service gets U+FFFD. A
// refusal would count as the environment's failure, and a byte must not be a way out of a bad reward.
static void replace_nuls(char *json)
{
    for (char *c = json; *c; c++) {
        if (*c != '\\')
            continue;
        int slashes = 1;
        while (c[1] == '\\') {
            slashes++;
            c++;
        }
        // An odd backslash begins an escape here. Arguments of a tool call are JSON inside JSON: of an even number half are left
        // there.
        bool escape = slashes & 1 || slashes / 2 & 1;
        if (escape && strncmp(c + 1, "u0000", 5) == 0)
            memcpy(c + 1, "ufffd", 5);
    }
}

static void take_message(struct episode *ep)
{
    struct toolcall_parsed parsed;
    char prefix[64];
    snprintf(prefix, sizeof prefix, "%" PRIu64 "_%d", ep->trajectory, ep->turn);
    session_parse(&ep->session, prefix, &parsed);
    free(ep->message);
    ep->message = json_text(parsed.message);
    replace_nuls(ep->message);
    ep->calls = parsed.n_calls > 0;
    toolcall_parsed_done(&parsed);
}

void episode_on_tokens(struct orch *o, struct episode *ep, struct job *j)
{
    struct error err;
    int32_t at = (int32_t)ep->session.tokens.n;
    ep->job = NULL;
    if (j->n == 0 || session_sampled(&ep->session, j->ids, j->logprobs, j->n, j->spans, j->n_spans, &err)) {
        if (j->n == 0)
            error_set(&err, STATUS_INVALID, "the engine finished a turn without a token");
        orch_warn(o, "tito", "trajectory=%" PRIu64 " cause=\"%s\"", ep->trajectory, err.text);
        router_done(o, j, false);
        episode_fail(ep, DROP_TITO, err.text);
        return;
    }
    ep->cut = j->finish == FINISH_LENGTH;
    ep->state = EP_COMMIT;
    if (!ep->eval) {
        struct ledger_span *spans = mem_must((size_t)j->n_spans, sizeof *spans);
        for (int32_t i = 0; i < j->n_spans; i++)
            spans[i] = (struct ledger_span){j->spans[i].version, j->spans[i].start, j->spans[i].end};
        struct ledger_piece p = {
            .trajectory = (int64_t)ep->trajectory,
            .attempt = (int32_t)ep->attempt,
            .segment = ep->session.segment,
            .offset = at,
            .turn = ep->turn,
            .kind = PIECE_SAMPLED,
            .n = j->n,
            .ids = j->ids,
            .logprobs = j->logprobs,
            .n_spans = j->n_spans,
            .spans = spans,
            .temperature = (float)ep->temperature,
            .kv = j->n_kv ? j->kv : NULL,
            .kv_bytes = j->n_kv * (int32_t)sizeof *j->kv,
        };
        bool bad = journal_begin(o, &err) || ledger_piece_add(o->ledger, &p, &err);
        // The model has stop ids of its own: what the last token does not tell is kept for whoever goes on with the episode.
        if (!bad && !ep->cut && !chat_is_stop(o->chat, j->ids[j->n - 1]))
            bad = ledger_turn_stopped_set(o->ledger, p.trajectory, p.attempt, p.turn, &err);
        free(spans);
        if (bad) {
            orch_fail(o, &err);
            return;
        }
        journal_after(o, step_note, ep->serial, 0);
    }
    router_done(o, j, !ep->eval);
    take_message(ep);
    if (ep->eval)
        step_note(o, ep->serial, 0);
}

void episode_on_engine_failure(struct orch *o, struct episode *ep, struct job *j)
{
    ep->job = NULL;
    router_done(o, j, false);
    episode_fail(ep, DROP_ENGINE, "no engine finished the turn");
}

// ---- resume ---------------------------------------------------------------------------------------------------------------

struct restore {
    struct episode *ep;
    int32_t last_turn;    // newest durable reply, -2 = none at all
    int32_t sampled_turn; // newest sampled piece, -1 = none
    const json_t *tail;   // messages of the newest reply
};

static enum status restore_turn(void *ctx, const struct ledger_turn *t, struct error *err)
{
    struct restore *r = ctx;
    struct session *s = &r->ep->session;
    json_t *reply = NULL, *message = NULL;
    enum status rc = json_parse(t->reply, strlen(t->reply), "stored reply", &reply, err);
    if (rc)
        return rc;
    const json_t *messages = json_object_get(reply, "messages");
    if (t->turn < 0) {
        const json_t *tools = json_object_get(reply, "tools");
        if (!tools || json_is_null(tools))
            tools = r->ep->task->tools;
        s->messages = json_copy((json_t *)messages);
        s->tools = tools && json_array_size(tools) ? json_incref((json_t *)tools) : NULL;
    } else {
        if (!t->message || (rc = json_parse(t->message, strlen(t->message), "stored message", &message, err)))
            goto out;
        session_restore_message(s, message);
        json_array_extend(s->messages, (json_t *)messages);
        rc = episode_take_reward(r->ep, reply, false, err);
    }
    r->last_turn = t->turn;
out:
    json_decref(message);
    json_decref(reply);
    return rc;
}

static enum status restore_piece(void *ctx, const struct ledger_piece *p, struct error *err)
{
    struct restore *r = ctx;
    struct session *s = &r->ep->session;
    if (p->kind == PIECE_SAMPLED) {
        r->sampled_turn = p->turn;
        if (s->version_min < 0 || p->spans[0].version < s->version_min)
            s->version_min = p->spans[0].version;
        if (p->spans[p->n_spans - 1].version > s->version_max)
            s->version_max = p->spans[p->n_spans - 1].version;
    }
    return session_restore(s, p->segment, p->offset, p->ids, p->n, p->kind == PIECE_SAMPLED, err);
}

struct episode *episode_restore(struct orch *o, const struct episode_spec *spec, const char *episode_id)
{
    struct error err;
    struct episode *ep = episode_start(o, spec);
    if (!episode_id)
        return ep; // issued only: created (again) under the same key
    ep->session = (struct session){.chat = o->chat, .version_min = -1, .version_max = -1};
    struct restore r = {.ep = ep, .last_turn = -2, .sampled_turn = -1};
    if (ledger_turns(o->ledger, (int64_t)ep->trajectory, (int32_t)ep->attempt, restore_turn, &r, &err) ||
        ledger_pieces(o->ledger, (int64_t)ep->trajectory, (int32_t)ep->attempt, restore_piece, &r, &err) ||
        r.last_turn == -2 || !json_is_array(ep->session.messages)) {
        const char *cause = r.last_turn == -2 ? "the episode has no stored reply" : err.text;
        orch_warn(o, "resume_failed", "trajectory=%" PRIu64 " cause=\"%s\"", ep->trajectory, cause);
        session_close(&ep->session);
        episode_fail(ep, DROP_GATEWAY, cause);
        return NULL;
    }
    ep->id = mem_strdup(episode_id);
    ep->turn = r.last_turn + 1;
    return ep;
}

// Where the ledger left it: tokens of this turn are there (say them to the service again, same key) or are still to be sampled.
void episode_resume(struct episode *ep)
{
    if (ep->session.open_turn) {
        episode_generate(ep);
        return;
    }
    struct error err;
    bool stopped = chat_is_stop(ep->o->chat, ep->session.tokens.ids[ep->session.tokens.n - 1]);
    if (!stopped && ledger_turn_stopped(ep->o->ledger, (int64_t)ep->trajectory, (int32_t)ep->attempt,
                                        ep->turn, &stopped, &err)) {
        orch_fail(ep->o, &err);
        return;
    }
    ep->cut = !stopped;
    take_message(ep);
    episode_call_step(ep);
}

void episodes_tick(struct orch *o)
{
    int64_t now = orch_now(o);
    struct table *t = &o->episodes.by_serial;
    uint64_t due[256];
    int n = 0;
    for (size_t i = 0; i < t->cap && n < 256; i++) {
        struct episode *ep = t->slots[i].key ? t->slots[i].value : NULL;
        // One whose canary is under way waits for its answer, whoever came up meanwhile: a second call would take the place of the
        // first, which then ends in an episode that has gone on, or is gone.
        if (ep && ep->state == EP_PAUSED && !ep->call &&
            (now >= ep->resume_ms || now >= ep->pause_deadline_ms))
            due[n++] = ep->serial;
    }
    for (int i = 0; i < n && !o->failed; i++) {
        struct episode *ep = table_get(t, due[i]);
        if (ep && ep->state == EP_PAUSED)
            episode_unpause(ep, now >= ep->pause_deadline_ms && !task_is_up(ep->task));
    }
}

void episodes_close(struct orch *o)
{
    struct table *t = &o->episodes.by_serial;
    for (size_t i = 0; i < t->cap; i++) {
        struct episode *ep = t->slots[i].key ? t->slots[i].value : NULL;
        if (!ep)
            continue;
        if (ep->call)
            http_call_cancel(ep->call);
        session_close(&ep->session);
        free(ep->id);
        free(ep->message);
        free(ep->components);
        free(ep);
    }
    table_done(t);
    for (size_t i = o->episodes.first_gone; i < o->episodes.n_gone; i++)
        free(o->episodes.gone[i].id);
    free(o->episodes.gone);
    o->episodes = (struct episodes){0};
}
