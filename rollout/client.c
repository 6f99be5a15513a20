// Talking to the orchestrator: see client.h. Runs on the I/O thread.
#include "rollout/client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "rollout/fetch.h"
#include "rollout/jobs.h"

#define HELLO_MS        1000
#define CHECK_MS        500
#define RETRY_MS        1000 // after a send that failed otherwise than for want of room, which is logged each time
#define RECEIVE_AT_ONCE 256
#define PING_DEFAULT_MS 1000
#define FETCHED         8 // files fetched and not yet loaded
#define UNANSWERED_WARN 5 // HELLOs, one a second
#define UNANSWERED_MAX  60
#define FINISH_MS       2000 // at the end: an orchestrator that does not read for so long hears the rest no more
#define BYE_LINGER_MS   100 // the same, where no job is left that the BYE would move

struct client {
    struct client_config config;
    char run[128], name[64];
    struct wire *wire;
    struct loop_pump *pump;
    struct loop_timer *hello, *check, *retry;
    struct jobs *jobs;
    struct fetch *fetch;
    bool welcome;
    bool full;     // the queue had no room for what is to be sent
    int64_t epoch; // newest orchestrator epoch seen, -1 = none
    int64_t heard_ms, ping_ms;
    int64_t pong_ns, pong_busy_ns; // of the last PONG
    int64_t sent_messages, resent;
    bool known; // was welcomed once
    int unanswered;
    struct fetched { // files of fetch.c, ours to remove
        int64_t version;
        char path[1024];
    } fetched[FETCHED];
    int n_fetched;
};

// STATUS_INVALID: this message can never be sent. STATUS_AGAIN: when there is room in the queue.
static enum status try_send(struct client *c, const struct msg *m, struct error *err)
{
    enum status st = wire_send(c->wire, NULL, m, err);
    if (st != STATUS_OK && st != STATUS_AGAIN) {
        char quoted[1200];
        log_event(LOG_WARN, "send_failed", "message=%s cause=%s", msg_type_name(m->type),
                  log_quote(err->text, quoted, sizeof quoted));
    }
    c->sent_messages += st == STATUS_OK;
    return st;
}

static void send(struct client *c, const struct msg *m)
{
    struct error err;
    (void)!try_send(c, m, &err);
}

// From another host there is more that can be wrong than an orchestrator that is still starting, and CURVE does not say what: a
// key that is not on the list is met with silence.
static void count_unanswered(struct client *c)
{
    if (!c->config.remote || c->known)
        return;
    c->unanswered++;
    if (c->unanswered == UNANSWERED_WARN)
        log_event(LOG_WARN, "no_answer", "endpoint=%s", wire_address(c->wire));
    if (c->unanswered == UNANSWERED_MAX)
        c->config.on_refused(c->config.ctx,
                             "it does not answer. Does the run go on at this address, and is this "
                             "engine's key in the run's keys/allowed (`ooze keys`)?");
}

static void send_hello(void *ctx)
{
    struct client *c = ctx;
    struct worker_stats s;
    count_unanswered(c);
    worker_stats(c->config.worker, &s);
    struct msg m = {.type = MSG_HELLO};
    m.hello = (struct msg_hello){
        .role = ROLE_ENGINE,
        .run = c->run,
        .name = c->name,
        .build = OOZE_VERSION,
        .numerics_id = worker_numerics_id(c->config.worker),
        .pid = getpid(),
        .version = s.engine.version,
        .version_hash = s.version_hash,
        .kv_tokens = s.engine.kv_capacity,
        .max_running = s.engine.max_running,
        .restarts = c->config.restarts,
        .remote = c->config.remote,
    };
    send(c, &m);
}

static void ask_again(struct client *c)
{
    c->welcome = false;
    loop_timer_set(c->hello, 0, HELLO_MS);
}

static void check_silence(void *ctx)
{
    struct client *c = ctx;
    if (c->welcome && loop_now_ms(c->config.loop) - c->heard_ms > 3 * c->ping_ms)
        ask_again(c); // it may have been restarted, and not know us
}

// ---- tokens -------------------------------------------------------------------------------------------------------------

// Its tokens break a limit of msg.h, so that no message can carry them: the job ends with an error, at what was sent of it. If
// even that cannot be said it is forgotten; the orchestrator's lease ends it there.
static void give_up(struct client *c, struct job *b, const char *why)
{
    if (b->unsendable) {
        jobs_forget(c->jobs, b);
        return;
    }
    char text[1200];
    snprintf(text, sizeof text, "the engine's tokens cannot be sent: %s", why);
    if (b->finish == FINISH_NONE)
        worker_cancel(c->config.worker, b->job);
    b->unsendable = true;
    jobs_fail_unsent(c->jobs, b, text);
}

static void send_queued(struct client *c)
{
    if (c->full && !wire_has_room(c->wire))
        return;
    c->full = false;
    if (!c->welcome)
        return; // all is sent again after WELCOME
    for (struct job *b; (b = jobs_queued(c->jobs));) {
        struct msg m;
        struct error err;
        jobs_message(c->jobs, b, &m);
        enum status st = try_send(c, &m, &err);
        if (st == STATUS_INVALID) {
            give_up(c, b, err.text);
            continue;
        }
        if (st != STATUS_OK) {
            c->full = st == STATUS_AGAIN; // pending() tells when it is no more
            if (!c->full)
                loop_timer_set(c->retry, RETRY_MS, 0);
            return;
        }
        b->sent = b->n;
        b->finish_sent = b->finish != FINISH_NONE;
        jobs_unqueue(c->jobs);
    }
}

static void on_retry(void *ctx)
{
    send_queued(ctx);
}

void client_outputs(struct client *c, const struct outputs *o)
{
    for (size_t i = 0; i < o->n_items; i++) {
        struct job *b = jobs_find(c->jobs, o->items[i].job);
        if (b && b->finish == FINISH_NONE) // unknown: of the HTTP API, or aborted with its epoch
            jobs_take(c->jobs, b, o, &o->items[i]);
    }
    send_queued(c);
}

// ---- traces -------------------------------------------------------------------------------------------------------------

void client_traced(struct client *c, const struct worker_trace *t)
{
    size_t n = t->ok ? (size_t)t->trace.n_ops : 0;
    struct msg_trace_op *ops = mem_must(n + 1, sizeof *ops);
    uint64_t *digests = mem_must(n + 1, sizeof *digests);
    for (size_t i = 0; i < n; i++) {
        const struct trace_op *op = &t->trace.ops[i];
        ops[i] = (struct msg_trace_op){op->layer, op->nth, op->block, op->op};
        digests[i] = op->digest;
    }
    struct msg m = {.type = MSG_TRACE_DONE};
    m.trace_done = (struct msg_trace_done){.epoch = t->epoch,
                                           .id = t->id,
                                           .version = t->version,
                                           .ok = t->ok,
                                           .error = t->error,
                                           .n_ops = (int32_t)n,
                                           .ops = ops,
                                           .digests = digests,
                                           .n_logprobs = t->ok ? t->trace.n : 0,
                                           .logprobs = t->trace.logprobs};
    send(c, &m); // when lost: the orchestrator's deadline passes
    free(ops);
    free(digests);
}

static void on_trace(struct client *c, const struct msg_trace *m)
{
    struct worker_trace refused = {.id = m->id, .epoch = m->epoch, .version = m->version};
    struct error err;
    if (worker_trace(c->config.worker, m, &err) == STATUS_OK)
        return;
    memcpy(refused.error, err.text, sizeof refused.error);
    client_traced(c, &refused);
}

// ---- weights --------------------------------------------------------------------------------------------------------------

static void send_loaded(struct client *c, const struct worker_loaded *l)
{
    struct msg m = {.type = MSG_LOADED};
    m.loaded = (struct msg_loaded){.version = l->load.version,
                                   .hash = l->load.hash,
                                   .ok = l->ok,
                                   .error = l->error,
                                   .load_ms = l->load_ms,
                                   .stall_ms = l->stall_ms};
    send(c, &m); // when lost: HELLO says the version held, and VERSION is repeated
}

// Removes the fetched files of versions up to this one: loaded, refused, or passed over for a newer one.
static void drop_fetched(struct client *c, int64_t version)
{
    int n = 0;
    for (int i = 0; i < c->n_fetched; i++)
        if (c->fetched[i].version <= version)
            unlink(c->fetched[i].path);
        else
            c->fetched[n++] = c->fetched[i];
    c->n_fetched = n;
}

void client_loaded(struct client *c, const struct worker_loaded *l)
{
    drop_fetched(c, l->load.version);
    send_loaded(c, l);
}

static void load_failed(struct client *c, const struct msg_version *v, const char *why)
{
    struct worker_loaded l = {.load.version = v->version};
    snprintf(l.load.hash, sizeof l.load.hash, "%s", v->hash);
    snprintf(l.error, sizeof l.error, "%s", why);
    send_loaded(c, &l);
}

static void start_load(struct client *c, const struct msg_version *v, const char *path)
{
    struct worker_load load = {.version = v->version};
    snprintf(load.path, sizeof load.path, "%s", path);
    snprintf(load.hash, sizeof load.hash, "%s", v->hash);
    struct error err;
    enum status st = worker_load_start(c->config.worker, &load, &err);
    if (st == STATUS_EXISTS)
        log_event(LOG_DEBUG, "load_skipped", "version=%lld",
                  (long long)v->version); // a newer one came meanwhile
    else if (st != STATUS_OK)
        load_failed(c, v, err.text);
}

static void on_version(struct client *c, const struct msg_version *v)
{
    struct worker_stats s;
    worker_stats(c->config.worker, &s);
    if (v->version == s.engine.version && strcmp(v->hash, s.version_hash) == 0) {
        struct worker_loaded l = {.load.version = v->version, .ok = true};
        snprintf(l.load.hash, sizeof l.load.hash, "%s", v->hash);
        send_loaded(c, &l);
        return;
    }
    if (v->version <= worker_newest(c->config.worker))
        return;
    if (*v->path && access(v->path, R_OK) == 0)
        start_load(c, v, v->path);
    else
        fetch_start(c->fetch, v); // another host's file
}

static void fetch_send(void *ctx, const struct msg *m)
{
    send(ctx, m);
}

static void fetch_done(void *ctx, const struct msg_version *v, const char *path, const char *error)
{
    struct client *c = ctx;
    if (error) {
        load_failed(c, v, error);
        return;
    }
    if (c->n_fetched == FETCHED) // more than the loader can hold on to
        drop_fetched(c, c->fetched[0].version);
    struct fetched *f = &c->fetched[c->n_fetched++];
    f->version = v->version;
    snprintf(f->path, sizeof f->path, "%s", path);
    log_event(LOG_INFO, "fetched", "version=%lld bytes=%lld", (long long)v->version, (long long)v->bytes);
    start_load(c, v, path);
}

// ---- messages -------------------------------------------------------------------------------------------------------------

struct aborting {
    struct client *client;
    int64_t epoch;
};

static void abort_older(void *ctx, struct job *b)
{
    struct aborting *a = ctx;
    if (b->epoch >= a->epoch)
        return;
    if (b->finish == FINISH_NONE)
        worker_cancel(a->client->config.worker, b->job);
    jobs_forget(a->client->jobs, b);
}

static void see_epoch(struct client *c, int64_t epoch)
{
    if (epoch <= c->epoch)
        return;
    c->epoch = epoch;
    struct aborting a = {c, epoch};
    jobs_each(c->jobs, abort_older, &a);
}

static void on_welcome(struct client *c, const struct msg_welcome *w)
{
    if (!w->accepted) {
        c->config.on_refused(c->config.ctx, w->reason);
        return;
    }
    if (strcmp(w->run, c->run) != 0) {
        c->config.on_refused(c->config.ctx, "the orchestrator at this address belongs to another run");
        return;
    }
    if (w->orchestrator_epoch < c->epoch)
        return; // from an orchestrator that is gone
    // HELLO is repeated until the first WELCOME, and each is answered. After the first answer all is sent again: behind the last HELLO, so
    // the other answers change nothing.
    bool again = c->welcome && w->orchestrator_epoch == c->epoch;
    see_epoch(c, w->orchestrator_epoch);
    c->welcome = c->known = true;
    c->ping_ms = w->ping_interval_ms > 0 ? w->ping_interval_ms : PING_DEFAULT_MS;
    loop_timer_stop(c->hello);
    if (!again) {
        c->resent += jobs_count(c->jobs);
        jobs_rewind_all(c->jobs);
    }
    if (w->version >= 0 && *w->version_hash) {
        const struct msg_version v = {
            .version = w->version, .path = w->version_path, .hash = w->version_hash};
        on_version(c, &v);
    }
}

static void on_ping(struct client *c, const struct msg_ping *p)
{
    struct worker_stats s;
    worker_stats(c->config.worker, &s);
    int64_t now = clock_mono_ns(clock_system());
    double busy = c->pong_ns > 0 && now > c->pong_ns
                      ? (double)(s.busy_ns - c->pong_busy_ns) / (double)(now - c->pong_ns)
                      : 0;
    c->pong_ns = now;
    c->pong_busy_ns = s.busy_ns;
    struct msg m = {.type = MSG_PONG};
    m.ping = (struct msg_ping){
        .nonce = p->nonce,
        .version = s.engine.version,
        .running = s.engine.running,
        .waiting = s.engine.waiting,
        .kv_used = s.engine.kv_used,
        .kv_capacity = s.engine.kv_capacity,
        .generated_tokens = s.engine.generated_tokens,
        .prefill_tokens = s.engine.prefill_tokens,
        .cached_tokens = s.engine.cached_tokens,
        .preemptions = s.engine.preemptions,
        .step = -1,
        .busy = busy < 0   ? 0
                : busy > 1 ? 1
                           : busy,
    };
    send(c, &m);
}

static void on_job(struct client *c, const struct msg_job *m)
{
    if (m->orchestrator_epoch < c->epoch)
        return;
    if (m->orchestrator_epoch > c->epoch) {
        see_epoch(c, m->orchestrator_epoch);
        ask_again(c);
    }
    struct job *b = jobs_find(c->jobs, m->job);
    if (b) {
        jobs_rewind(c->jobs, b); // asked again: say again what is not acknowledged
        return;
    }
    bool full = jobs_count(c->jobs) >= CLIENT_JOBS;
    if (full || m->job & ((uint64_t)1 << 63)) {
        struct msg reply = {.type = MSG_TOKEN_DATA};
        reply.tokens = (struct msg_tokens){.job = m->job,
                                           .finish = FINISH_ERROR,
                                           .error = full ? "this engine has all the jobs it takes"
                                                         : "job ids have 63 bits"};
        send(c, &reply);
        return;
    }
    b = jobs_add(c->jobs, m);
    struct engine_job job = {.msg = *m, .flush_tokens = c->config.flush_tokens};
    struct error err;
    if (worker_submit(c->config.worker, &job, &err) != STATUS_OK)
        jobs_fail(c->jobs, b, err.text);
}

// The orchestrator has given the job up, and its number is never used again: whatever is said of it, the answer is another CANCEL.
// So the last word must not be ours, or the two would go on for ever.
static void on_cancel(struct client *c, uint64_t id)
{
    struct job *b = jobs_find(c->jobs, id);
    if (b && b->finish == FINISH_NONE)
        worker_cancel(c->config.worker, id);
    else if (b)
        jobs_forget(c->jobs, b);
}

static void on_ack(struct client *c, const struct msg_ack *a)
{
    struct job *b = jobs_find(c->jobs, a->job);
    if (b)
        jobs_acknowledge(c->jobs, b, a->durable_to);
}

static void on_message(struct client *c, const struct msg *m)
{
    c->heard_ms = loop_now_ms(c->config.loop);
    switch (m->type) {
    case MSG_WELCOME:
        on_welcome(c, &m->welcome);
        break;
    case MSG_PING:
        on_ping(c, &m->ping);
        break;
    case MSG_JOB:
        on_job(c, &m->job);
        break;
    case MSG_ACK:
        on_ack(c, &m->ack);
        break;
    case MSG_CANCEL:
        on_cancel(c, m->cancel.job);
        break;
    case MSG_VERSION:
        on_version(c, &m->version);
        break;
    case MSG_TRACE:
        on_trace(c, &m->trace);
        break;
    case MSG_CHUNK_DATA:
        fetch_chunk(c->fetch, &m->chunk_data);
        break;
    default:
        log_event(LOG_WARN, "unexpected_message", "type=%s", msg_type_name(m->type));
    }
}

static int pending(void *ctx)
{
    const struct client *c = ctx;
    return wire_pending(c->wire) || (c->full && wire_has_room(c->wire));
}

static void receive(void *ctx)
{
    struct client *c = ctx;
    struct error err;
    for (int i = 0; i < RECEIVE_AT_ONCE; i++) {
        struct msg m;
        enum status st = wire_recv(c->wire, NULL, &m, &err);
        if (st == STATUS_AGAIN)
            break;
        if (st != STATUS_OK) {
            char quoted[1200];
            log_event(LOG_WARN, "receive_failed", "cause=%s", log_quote(err.text, quoted, sizeof quoted));
            break;
        }
        on_message(c, &m);
        wire_release(c->wire);
    }
    send_queued(c);
}

// ---- life -------------------------------------------------------------------------------------------------------------------

enum status client_open(const struct client_config *config, struct client **ret, struct error *err)
{
    struct client *c = mem_must(1, sizeof *c);
    c->config = *config;
    snprintf(c->run, sizeof c->run, "%s", config->run);
    snprintf(c->name, sizeof c->name, "%s", config->name);
    c->epoch = -1;
    c->ping_ms = PING_DEFAULT_MS;
    c->jobs = jobs_open();
    char id[128];
    snprintf(id, sizeof id, "%s/%ld", c->name, (long)getpid());
    enum status st = wire_connect(config->endpoint, id, config->curve, &c->wire, err);
    if (st == STATUS_OK)
        st = loop_pump_open(config->loop, wire_fd(c->wire), pending, receive, c, &c->pump, err);
    if (st == STATUS_OK) {
        const struct fetch_config f = {
            .loop = config->loop, .dir = config->fetch_dir, .send = fetch_send, .done = fetch_done, .ctx = c};
        c->fetch = fetch_open(&f);
        c->hello = loop_timer_open(config->loop, send_hello, c);
        c->check = loop_timer_open(config->loop, check_silence, c);
        c->retry = loop_timer_open(config->loop, on_retry, c);
        loop_timer_set(c->check, CHECK_MS, CHECK_MS);
        ask_again(c);
        *ret = c;
    } else {
        client_close(c);
    }
    return st;
}

void client_finish(struct client *c, bool failed)
{
    if (!c || !c->welcome)
        return; // nobody listens
    const struct clock *clock = clock_system();
    int64_t deadline = clock_mono_ms(clock) + FINISH_MS, left = FINISH_MS;
    struct error err;
    enum status st;
    for (send_queued(c); c->full && left > 0; left = deadline - clock_mono_ms(clock))
        if ((st = wire_wait_room(c->wire, (int)left, &err)) == STATUS_OK)
            send_queued(c);
        else if (st != STATUS_TIMEOUT)
            break;
    if (jobs_count(c->jobs) == 0)
        wire_linger(c->wire, BYE_LINGER_MS);
    const struct msg m = {.type = MSG_BYE, .bye = {.failed = failed}};
    send(c, &m); // when it does not fit, silence says the same
}

void client_close(struct client *c)
{
    if (!c)
        return;
    loop_pump_close(c->pump);
    loop_timer_close(c->hello);
    loop_timer_close(c->check);
    loop_timer_close(c->retry);
    fetch_close(c->fetch);
    drop_fetched(c, INT64_MAX);
    if (c->wire)
        wire_close(c->wire);
    jobs_close(c->jobs);
    free(c);
}

void client_stats(const struct client *c, struct client_stats *ret)
{
    *ret = (struct client_stats){
        .welcome = c->welcome,
        .orchestrator_epoch = c->epoch,
        .jobs = jobs_count(c->jobs),
        .kept_tokens = jobs_kept_tokens(c->jobs),
        .sent_messages = c->sent_messages,
        .resent = c->resent,
    };
}
