// client: see client.h. The calling thread owns the wire; it never computes, so that PONGs flow during long steps.
//
//   start ──► HELLO every HELLO_MS ──► WELCOME(accepted) ──► messages go to the worker, its answers to the orchestrator
//               ▲                                                     │
//               └───────── nothing heard for the silence limit ◄─────┘
//
// Invariants
//   1. Nothing reaches the worker before the first WELCOME; the session drops what is of another epoch. A newer epoch in a
//      PREPARE means that we missed a WELCOME.
//   2. The edge-triggered descriptor of the wire is polled only after wire_pending said that nothing waits.
#include "trainer/client.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/log.h"
#include "proto/wire.h"
#include "trainer/worker.h"

#define HELLO_MS 1000
#define RETRY_MS 50 // a full send queue is tried again so soon

struct client {
    const struct client_options *options;
    const struct clock *clock;
    struct wire *wire;
    struct worker *worker;
    char numerics_id[KV_NUMERICS_ID];
    char name[64];
    int wake_fd;
    bool welcomed, silent;
    bool blocked; // the last send found the queue full
    int64_t epoch, silence_ms, heard_ms, hello_ms;
    int64_t busy_ns, busy_since_ns; // at the last PONG
    uint64_t garbage;
};

static int64_t now_ms(const struct client *c)
{
    return clock_mono_ms(c->clock);
}

// A full queue is no failure: false, try again.
static enum status send_message(struct client *c, const struct msg *m, bool *ret_sent, struct error *err)
{
    enum status rc = wire_send(c->wire, NULL, m, err);
    *ret_sent = rc == STATUS_OK;
    return rc == STATUS_AGAIN || rc == STATUS_PEER ? STATUS_OK : rc;
}

static enum status say_hello(struct client *c, struct error *err)
{
    struct worker_load load;
    bool sent;
    worker_load(c->worker, &load);
    struct msg m = {.type = MSG_HELLO,
                    .hello = {.role = ROLE_TRAINER,
                              .run = c->options->run,
                              .name = "trainer-0",
                              .build = OOZE_VERSION " " __VERSION__,
                              .numerics_id = c->numerics_id,
                              .pid = getpid(),
                              .version = load.version,
                              .version_hash = load.hash,
                              .restarts = c->options->restarts}};
    c->hello_ms = now_ms(c);
    return send_message(c, &m, &sent, err);
}

static enum status say_pong(struct client *c, uint64_t nonce, struct error *err)
{
    struct worker_load load;
    bool sent;
    int64_t now = clock_mono_ns(c->clock), interval = now - c->busy_since_ns;
    worker_load(c->worker, &load);
    double busy = interval > 0 ? (double)(load.busy_ns - c->busy_ns) / (double)interval : 0;
    // work under way is booked when it ends: until then it counts as busy
    if (load.step >= 0 || busy > 1)
        busy = 1;
    c->busy_ns = load.busy_ns;
    c->busy_since_ns = now;
    struct msg m = {.type = MSG_PONG,
                    .ping = {.nonce = nonce,
                             .version = load.version,
                             .step = load.step,
                             .busy = busy,
                             .prefill_tokens = load.tokens}};
    return send_message(c, &m, &sent, err);
}

// A full inbox drops the message: the orchestrator repeats whatever matters.
static enum status post(struct client *c, const struct msg *m, struct error *err)
{
    enum status rc = worker_post(c->worker, m, err);
    if (rc != STATUS_LIMIT)
        return rc;
    log_event(LOG_WARN, "inbox_full", "dropped=%s", msg_type_name(m->type));
    return STATUS_OK;
}

static enum status take_welcome(struct client *c, const struct msg *m, struct error *err)
{
    const struct msg_welcome *w = &m->welcome;
    if (!w->accepted)
        return error_set(err, STATUS_REFUSED, "the orchestrator refused this trainer: %s", w->reason);
    if (strcmp(w->run, c->options->run) != 0)
        return error_set(err, STATUS_REFUSED, "WELCOME is of run %.80s, we belong to %.80s", w->run,
                         c->options->run);
    if (!c->welcomed || c->epoch != w->epoch)
        log_event(LOG_INFO, "welcome", "epoch=%lld checkpoint_step=%lld committed_steps=%lld",
                  (long long)w->epoch, (long long)w->checkpoint_step, (long long)w->committed_steps);
    c->welcomed = true;
    c->epoch = w->epoch;
    c->silence_ms = w->silence_ms > 0 ? w->silence_ms : c->silence_ms;
    if (w->ping_interval_ms > 0 && 3 * w->ping_interval_ms < c->silence_ms)
        c->silence_ms = 3 * w->ping_interval_ms;
    return post(c, m, err);
}

static enum status take_message(struct client *c, const struct msg *m, struct error *err)
{
    c->heard_ms = now_ms(c);
    switch (m->type) {
    case MSG_WELCOME:
        return take_welcome(c, m, err);
    case MSG_PING:
        return say_pong(c, m->ping.nonce, err);
    case MSG_PREPARE:
        if (!c->welcomed || m->prepare.epoch > c->epoch)
            return now_ms(c) - c->hello_ms >= HELLO_MS ? say_hello(c, err) : STATUS_OK;
        break;
    case MSG_COMMIT_ACK:
    case MSG_CHECKPOINT:
    case MSG_CHECK:
    case MSG_TRACE:
        break;
    default:
        return STATUS_OK; // nothing that a trainer needs
    }
    return c->welcomed ? post(c, m, err) : STATUS_OK;
}

static enum status receive_all(struct client *c, struct error *err)
{
    for (;;) {
        struct wire_peer peer;
        struct msg m;
        enum status rc = wire_recv(c->wire, &peer, &m, err);
        if (rc == STATUS_AGAIN)
            break;
        if (!rc)
            rc = take_message(c, &m, err);
        wire_release(c->wire);
        if (rc)
            return rc;
    }
    if (wire_garbage(c->wire) != c->garbage) {
        c->garbage = wire_garbage(c->wire);
        log_event(LOG_WARN, "garbage", "frames_dropped=%llu", (unsigned long long)c->garbage);
    }
    return STATUS_OK;
}

static void log_sent(const struct msg *m)
{
    if (m->type == MSG_STEP_DONE)
        log_event(m->step_done.outcome == STEP_APPLIED ? LOG_INFO : LOG_WARN, "step_done",
                  "step=%lld version=%lld hash=%.16s%s%.200s", (long long)m->step_done.step,
                  (long long)m->step_done.version, m->step_done.hash,
                  *m->step_done.reason ? " rejected=" : "", m->step_done.reason);
    else if (m->type == MSG_CHECK_DONE)
        log_event(m->check_done.differs ? LOG_WARN : LOG_INFO, "check",
                  "segments=%d crossing=%d skipped=%d tokens=%lld max_abs_diff=%.9g%s%.200s",
                  m->check_done.compared, m->check_done.crossing, m->check_done.skipped,
                  (long long)m->check_done.tokens, m->check_done.max_abs_diff,
                  *m->check_done.error ? " cause=" : "", m->check_done.error);
    else if (m->type == MSG_TRACE_DONE)
        log_event(LOG_INFO, "trace", "version=%lld tokens=%d ops=%d%s%.200s",
                  (long long)m->trace_done.version, m->trace_done.n_logprobs, m->trace_done.n_ops,
                  *m->trace_done.error ? " cause=" : "", m->trace_done.error);
    else
        log_event(LOG_INFO, "checkpoint", "step=%lld path=%s", (long long)m->checkpoint.step,
                  m->checkpoint.path);
}

static enum status send_all(struct client *c, struct error *err)
{
    const struct msg *m = worker_outgoing(c->worker);
    bool sent = false;
    c->blocked = false;
    if (!m)
        return STATUS_OK;
    enum status rc = send_message(c, m, &sent, err);
    if (rc)
        return rc;
    c->blocked = !sent;
    if (!sent)
        return STATUS_OK;
    log_sent(m);
    worker_sent(c->worker);
    return STATUS_OK;
}

// HELLO until welcomed, and again while nothing is heard: an orchestrator that was started anew knows us only by it. Messages of
// our epoch are taken all the same. Returns how long the next poll may wait.
static enum status keep_alive(struct client *c, int *ret_timeout_ms, struct error *err)
{
    int64_t now = now_ms(c);
    bool silent = now - c->heard_ms > c->silence_ms;
    if (c->welcomed && silent && !c->silent)
        log_event(LOG_WARN, "orchestrator_silent", "silence_ms=%lld", (long long)(now - c->heard_ms));
    c->silent = silent;
    bool greet = !c->welcomed || silent;
    if (greet && now - c->hello_ms >= HELLO_MS) {
        enum status rc = say_hello(c, err);
        if (rc)
            return rc;
    }
    int64_t wait = greet ? c->hello_ms + HELLO_MS - now : c->heard_ms + c->silence_ms + 1 - now;
    if (c->blocked && wait > RETRY_MS)
        wait = RETRY_MS;
    *ret_timeout_ms = wait < 1 ? 1 : wait > HELLO_MS * 10 ? HELLO_MS * 10 : (int)wait;
    return STATUS_OK;
}

static enum status serve(struct client *c, struct error *err)
{
    for (;;) {
        int timeout_ms = 0;
        enum status rc = receive_all(c, err);
        if (!rc)
            rc = send_all(c, err);
        if (!rc && worker_ended(c->worker, err))
            rc = err->status;
        if (!rc)
            rc = keep_alive(c, &timeout_ms, err);
        if (rc)
            return rc;
        struct pollfd fds[] = {{.fd = wire_fd(c->wire), .events = POLLIN},
                               {.fd = c->wake_fd, .events = POLLIN},
                               {.fd = c->options->stop_fd, .events = POLLIN}};
        if (wire_pending(c->wire))
            timeout_ms = 0;
        if (poll(fds, 3, timeout_ms) < 0 && errno != EINTR)
            return error_errno(err, errno, "waiting for messages");
        if (fds[1].revents) {
            uint64_t count;
            ssize_t n = read(c->wake_fd, &count, sizeof count);
            (void)n; // non-blocking: only clears the counter
        }
        if (fds[2].revents)
            return STATUS_OK;
    }
}

enum status client_run(struct session *s, const struct client_options *o, struct error *err)
{
    struct client c = {.options = o, .clock = s->clock, .silence_ms = 10000};
    kv_numerics_id(s->trainer->device, run_kv_choice(s->trainer->config), c.numerics_id,
                   sizeof c.numerics_id);
    c.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (c.wake_fd < 0)
        return error_errno(err, errno, "making an eventfd");
    snprintf(c.name, sizeof c.name, "trainer-0-%ld", (long)getpid());
    c.hello_ms = now_ms(&c) - HELLO_MS;
    c.busy_since_ns = clock_mono_ns(c.clock);
    enum status rc = wire_connect(o->endpoint, c.name, NULL, &c.wire, err);
    if (!rc)
        rc = worker_open(s, c.wake_fd, &c.worker, err);
    if (!rc)
        rc = serve(&c, err);
    worker_close(c.worker);
    wire_close(c.wire);
    close(c.wake_fd);
    return rc;
}
