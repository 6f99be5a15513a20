// Connections; see peers.h for the invariants. Runs on the loop's thread.
#include "orchestrator/peers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/log.h"
#include "orchestrator/orch.h"
#include "orchestrator/status.h"

#define LOAD_RETRY_MS 2000
// HELLOs that waited here together were said a second apart by an impatient peer: the first one's answer is on its way.
#define HELLO_TOGETHER_MS 500

// A routing id may be anybody's; with the key that it came by it is one peer's.
static bool same_wire(const struct wire_peer *a, const struct wire_peer *b)
{
    return a->n == b->n && memcmp(a->id, b->id, (size_t)a->n) == 0 && strcmp(a->user, b->user) == 0;
}

static struct peer *peer_of_wire(struct orch *o, const struct wire_peer *w)
{
    for (int i = 0; i < PEERS_MAX; i++)
        if (o->peers.v[i].role && same_wire(&o->peers.v[i].wire, w))
            return &o->peers.v[i];
    return NULL;
}

struct peer *peers_by_serial(struct orch *o, uint32_t serial)
{
    for (int i = 0; i < PEERS_MAX; i++)
        if (o->peers.v[i].role && o->peers.v[i].serial == serial)
            return &o->peers.v[i];
    return NULL;
}

struct peer *peers_trainer(struct orch *o)
{
    for (int i = 0; i < PEERS_MAX; i++)
        if (o->peers.v[i].role == ROLE_TRAINER && o->peers.v[i].up)
            return &o->peers.v[i];
    return NULL;
}

int peers_engines_up(const struct orch *o)
{
    return peers_engines_holding(o, -1);
}

int peers_engines_holding(const struct orch *o, int64_t version)
{
    int n = 0;
    for (int i = 0; i < PEERS_MAX; i++) {
        const struct peer *p = &o->peers.v[i];
        n += p->role == ROLE_ENGINE && p->up && p->version >= version;
    }
    return n;
}

static void peer_down(struct orch *o, struct peer *p, const char *cause)
{
    if (!p->up)
        return;
    p->up = false;
    orch_warn(o, "peer_down", "peer=%s pid=%lld cause=\"%s\"", p->name, (long long)p->pid, cause);
    if (p->role == ROLE_ENGINE)
        router_engine_lost(o, p);
    else
        trainer_on_lost(o);
    orch_kick(o);
}

bool peers_send(struct orch *o, struct peer *p, const struct msg *m)
{
    struct error err;
    if (!p->up)
        return false;
    enum status rc = wire_send(o->wire, &p->wire, m, &err);
    if (rc == STATUS_OK)
        return true;
    if (rc == STATUS_INVALID || rc == STATUS_LIMIT)
        orch_fail(o,
                  &err); // a message of ours that breaks our own protocol: a bug, not to be repeated for ever
    return false;        // AGAIN: tried again by who needs it; PEER: silence or its next HELLO settles it
}

static void send_welcome(struct orch *o, const struct wire_peer *to, const struct peer *p, bool accepted,
                         const char *reason)
{
    struct msg m = {.type = MSG_WELCOME};
    m.welcome = (struct msg_welcome){
        .run = o->run_id,
        .orchestrator_epoch = o->epoch,
        .accepted = accepted,
        .reason = reason,
        .ping_interval_ms = o->cfg->orchestrator.ping_interval_ms,
        .silence_ms = o->cfg->orchestrator.silence_ms,
        .checkpoint = "",
        .checkpoint_hash = "",
        .version = -1,
        .version_path = "",
        .version_hash = "",
    };
    if (p && p->role == ROLE_TRAINER)
        trainer_fill_welcome(o, &m.welcome);
    if (p && p->role == ROLE_ENGINE && o->weights.version >= 0) {
        m.welcome.version = o->weights.version;
        if (p->remote)
            chunks_offer(&o->chunks, o->weights.version, o->weights.path, orch_now(o));
        else
            m.welcome.version_path = o->weights.path;
        m.welcome.version_hash = o->weights.hash;
    }
    struct error err;
    if (wire_send(o->wire, to, &m, &err))
        return; // HELLO is repeated every second until a WELCOME arrives
}

// All processes of a run compute alike, which the first of this host defines: that is not for an engine of another one to say. One
// that is earlier is not answered (STATUS_AGAIN), upon which it says HELLO again.
static enum status check_numerics(struct orch *o, const struct wire_peer *from, const struct msg_hello *h,
                                  struct error *err)
{
    char *known = NULL;
    enum status rc = ledger_meta_get(o->ledger, "numerics_id", &known, err);
    if (rc == STATUS_NOTFOUND) {
        if (from->user[0])
            return error_set(err, STATUS_AGAIN, "no process of this host has said HELLO yet");
        if (!(rc = journal_begin(o, err)))
            rc = ledger_meta_set(o->ledger, "numerics_id", h->numerics_id, err);
    }
    if (rc)
        orch_fail(o, err);
    if (!known || strcmp(known, h->numerics_id) == 0) {
        free(known);
        return rc;
    }
    if (o->cfg->check.numerics == RUN_NUMERICS_RELAXED)
        orch_warn(o, "other_numerics", "peer=%s numerics_id=\"%s\" run=\"%s\" band=%g", h->name,
                  h->numerics_id, known, o->cfg->check.band);
    else
        rc =
            error_set(err, STATUS_REFUSED,
                      "numerics_id %.200s, but this run computes with %.200s: same build and instruction set "
                      "for all, or check.numerics: relaxed",
                      h->numerics_id, known);
    free(known);
    return rc;
}

static bool is_remote(const struct wire_peer *from, const struct msg_hello *h)
{
    return from->user[0] || h->remote;
}

// STATUS_REFUSED: the peer is told why.
static enum status check_hello(struct orch *o, const struct wire_peer *from, const struct msg_hello *h,
                               struct error *err)
{
    if (strcmp(h->run, o->run_id) != 0)
        return error_set(err, STATUS_REFUSED, "you belong to another run");
    if (h->role != ROLE_ENGINE && (h->role != ROLE_TRAINER || from->user[0]))
        return error_set(err, STATUS_REFUSED,
                         from->user[0] ? "only engines join a run from another host" : "unknown role");
    if (!h->name[0] || strlen(h->name) >= PEERS_NAME)
        return error_set(err, STATUS_REFUSED, "name is empty or too long");
    if (h->role == ROLE_ENGINE && h->max_running <= 0)
        return error_set(err, STATUS_REFUSED, "max_running must be positive");
    for (int i = 0; i < PEERS_MAX; i++) {
        const struct peer *p = &o->peers.v[i];
        if (p->role && p->up && p->remote != is_remote(from, h) && strcmp(p->name, h->name) == 0)
            return error_set(err, STATUS_REFUSED, "a process of this name is up on another host");
    }
    if (from->user[0] && strcmp(from->user, h->name) != 0)
        return error_set(err, STATUS_REFUSED,
                         "your key is that of \"%s\" in the run's keys/allowed, not of \"%s\"", from->user,
                         h->name);
    return check_numerics(o, from, h, err);
}

static struct peer *peer_slot(struct orch *o, const struct msg_hello *h)
{
    struct peer *empty = NULL, *down = NULL;
    for (int i = 0; i < PEERS_MAX; i++) {
        struct peer *p = &o->peers.v[i];
        if (p->role == h->role && (h->role == ROLE_TRAINER || strcmp(p->name, h->name) == 0))
            return p;
        if (!p->role && !empty)
            empty = p;
        if (p->role == ROLE_ENGINE && !p->up && !down)
            down = p;
    }
    return empty ? empty : down;
}

static void on_hello(struct orch *o, const struct wire_peer *from, const struct msg_hello *h)
{
    struct error err;
    if (h->role == ROLE_CLI && !from->user[0] && strcmp(h->run, o->run_id) == 0) {
        send_welcome(o, from, NULL, true, "");
        return;
    }
    enum status rc = check_hello(o, from, h, &err);
    struct peer *p = rc ? NULL : peer_slot(o, h);
    if (!rc && !p)
        rc = error_set(&err, STATUS_REFUSED, "too many peers");
    if (rc) {
        char name[4 * PEERS_NAME], cause[sizeof err.text];
        if (rc != STATUS_REFUSED)
            return;
        orch_warn(o, "hello_refused", "peer=%s cause=%s", log_quote(h->name, name, sizeof name),
                  log_quote(err.text, cause, sizeof cause));
        send_welcome(o, from, NULL, false, err.text);
        return;
    }
    bool same = p->role && p->pid == h->pid && p->restarts == h->restarts && strcmp(p->name, h->name) == 0;
    bool again = same && p->up;
    if (!same) {
        if (p->role)
            peer_down(o, p, "replaced by a new incarnation");
        *p = (struct peer){
            .role = h->role, .serial = ++o->peers.next_serial, .pid = h->pid, .restarts = h->restarts};
        snprintf(p->name, sizeof p->name, "%s", h->name);
        p->name_hash = hash64(p->name, strlen(p->name));
    }
    int64_t now = orch_now(o);
    p->wire = *from;
    p->up = true;
    p->seen_ms = p->progress_ms = now;
    p->remote = is_remote(from, h);
    p->kv_tokens = h->kv_tokens;
    p->max_running = h->max_running;
    // A version counts only when it is the one of this run: the hash tells.
    p->version =
        h->version >= 0 && h->version == o->weights.version && strcmp(h->version_hash, o->weights.hash) != 0
            ? -1
            : h->version;
    p->announced = o->weights.version; // WELCOME says it
    if (!again)
        log_event(LOG_INFO, "peer_up", "peer=%s pid=%lld restarts=%lld version=%lld remote=%d build=\"%s\"",
                  p->name, (long long)p->pid, (long long)p->restarts, (long long)h->version, p->remote,
                  h->build);
    if (p->role == ROLE_TRAINER && !trainer_on_hello(o, p, h, again))
        return;
    send_welcome(o, from, p, true, "");
    if (p->role == ROLE_TRAINER)
        trainer_after_welcome(o);
    else if (!again || now - p->hello_ms >= HELLO_TOGETHER_MS)
        router_engine_resend(o, p);
    p->hello_ms = now;
    orch_kick(o);
}

static void on_loaded(struct orch *o, struct peer *p, const struct msg_loaded *l)
{
    if (!l->ok) {
        char text[512];
        // A newer one overtook it, as happens when steps follow each other faster than loads: no failure.
        if (l->version < p->announced)
            return;
        orch_warn(o, "load_failed", "engine=%s version=%lld cause=%s", p->name, (long long)l->version,
                  log_quote(l->error ? l->error : "", text, sizeof text));
        p->announced = -1; // the trainer may have published it elsewhere by then
        p->retry_version = l->version;
        p->retry_ms = orch_now(o) + LOAD_RETRY_MS;
        return;
    }
    if (l->version > p->version)
        p->version = l->version;
    metrics_on_loaded(o, l);
    orch_kick(o);
}

static void on_chunk_request(struct orch *o, struct peer *p, const struct msg_chunk_request *q)
{
    struct msg m = {.type = MSG_CHUNK_DATA};
    if (q->version == o->weights.version)
        chunks_offer(&o->chunks, q->version, o->weights.path, orch_now(o));
    chunks_answer(&o->chunks, q, orch_now(o), &m.chunk_data);
    peers_send(o, p, &m); // when it does not fit it is asked for again
}

// Whoever holds a listed key is an engine of the run (peers.h, 5), and this is what an engine says.
static bool engine_says(enum msg_type t)
{
    switch (t) {
    case MSG_HELLO:
    case MSG_PONG:
    case MSG_TOKEN_DATA:
    case MSG_LOADED:
    case MSG_CHUNK_REQUEST:
    case MSG_TRACE_DONE:
    case MSG_BYE:
        return true;
    default:
        return false;
    }
}

void peers_on_message(struct orch *o, const struct wire_peer *from, const struct msg *m)
{
    if (from->user[0] && !engine_says(m->type)) {
        log_event(LOG_WARN, "message_refused",
                  "user=%s type=%s cause=\"no message for an engine of another host\"", from->user,
                  msg_type_name(m->type));
        if (m->type == MSG_QUERY)
            query_refuse(o, from, &m->query);
        return;
    }
    if (m->type == MSG_HELLO) {
        on_hello(o, from, &m->hello);
        return;
    }
    if (m->type == MSG_QUERY) {
        query_on_message(o, from, &m->query);
        return;
    }
    struct peer *p = peer_of_wire(o, from);
    if (!p || !p->up)
        return; // it gets no PING either, so it says HELLO soon
    p->seen_ms = orch_now(o);
    switch (m->type) {
    case MSG_PING: {
        struct msg pong = {
            .type = MSG_PONG,
            .ping = {.nonce = m->ping.nonce, .version = o->weights.version, .step = o->committed_steps}};
        peers_send(o, p, &pong);
        p->load = m->ping;
        break;
    }
    case MSG_PONG:
        p->load = m->ping;
        break;
    case MSG_TOKEN_DATA:
        if (p->role == ROLE_ENGINE)
            router_on_tokens(o, p, &m->tokens);
        break;
    case MSG_LOADED:
        if (p->role == ROLE_ENGINE)
            on_loaded(o, p, &m->loaded);
        break;
    case MSG_CHUNK_REQUEST:
        if (p->role == ROLE_ENGINE)
            on_chunk_request(o, p, &m->chunk_request);
        break;
    case MSG_STEP_DONE:
        if (p->role == ROLE_TRAINER)
            trainer_on_step_done(o, p, &m->step_done);
        break;
    case MSG_CHECK_DONE:
        if (p->role == ROLE_TRAINER)
            check_on_done(o, &m->check_done);
        break;
    case MSG_TRACE_DONE:
        trace_on_answer(o, p, &m->trace_done);
        break;
    case MSG_CHECKPOINT:
        if (p->role == ROLE_TRAINER)
            trainer_on_checkpoint(o, p, &m->checkpoint);
        break;
    case MSG_BYE:
        peer_down(o, p, m->bye.failed ? "failed" : "left");
        break;
    default:
        log_event(LOG_WARN, "unexpected_message", "peer=%s type=%s", p->name, msg_type_name(m->type));
    }
}

void peers_announce(struct orch *o)
{
    int64_t now = orch_now(o);
    if (o->weights.version < 0)
        return;
    struct msg m = {.type = MSG_VERSION,
                    .version = {.version = o->weights.version,
                                .path = o->weights.path,
                                .hash = o->weights.hash,
                                .bytes = o->weights.bytes}};
    for (int i = 0; i < PEERS_MAX; i++) {
        struct peer *p = &o->peers.v[i];
        if (p->role != ROLE_ENGINE || !p->up || p->announced >= o->weights.version ||
            (now < p->retry_ms && p->retry_version == o->weights.version))
            continue;
        if (p->remote)
            chunks_offer(&o->chunks, o->weights.version, o->weights.path, now);
        m.version.path = p->remote ? "" : o->weights.path;
        if (peers_send(o, p, &m))
            p->announced = o->weights.version;
    }
}

void peers_tick(struct orch *o)
{
    int64_t now = orch_now(o);
    for (int i = 0; i < PEERS_MAX; i++) {
        struct peer *p = &o->peers.v[i];
        if (p->role && p->up && now - p->seen_ms > o->cfg->orchestrator.silence_ms)
            peer_down(o, p, "silent for too long");
    }
    peers_announce(o);
    chunks_tick(&o->chunks, now);
    if (now < o->peers.next_ping_ms)
        return;
    o->peers.next_ping_ms = now + o->cfg->orchestrator.ping_interval_ms;
    struct msg m = {
        .type = MSG_PING,
        .ping = {.nonce = ++o->peers.nonce, .version = o->weights.version, .step = o->committed_steps}};
    for (int i = 0; i < PEERS_MAX; i++)
        if (o->peers.v[i].role && o->peers.v[i].up)
            peers_send(o, &o->peers.v[i], &m);
}
