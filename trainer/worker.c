// worker: see worker.h. Two threads meet here: everything below `lock` is shared, the session is the compute thread's alone.
//
// Invariants
//   1. inbox[head … head + count) are deep copies, each with an arena of its own, handled in order of arrival.
//   2. out is set by the compute thread and cleared by the I/O thread; while it is set the compute thread waits, so the pointers
//      inside stay valid without a copy.
//   3. A checkpoint that nobody acknowledged is offered again every REMIND_MS while idle.
#include "trainer/worker.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define INBOX     16
#define REMIND_MS 3000

struct letter {
    struct msg msg;
    struct arena arena;
};

struct worker {
    struct session *session;
    int wake_fd;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct letter inbox[INBOX];
    int head, count;
    bool stop, ended;
    const struct msg *out;
    int64_t prepare_epoch, prepare_step; // newest one posted and not yet finished; step -1 = none
    int64_t welcome_epoch;               // newest one posted; -1 = none
    bool checking;                       // CHECK check_epoch, check_id was posted and is not finished
    int64_t check_epoch;
    uint64_t check_id;
    struct error error;
    struct worker_load load;
};

// ---- deep copies ------------------------------------------------------------------------------------------------------------

// NULL stays NULL; *ok becomes false when memory is out.
static const void *copy_bytes(struct arena *a, const void *p, size_t n, bool *ok)
{
    if (!p || !n)
        return p;
    void *q = arena_memdup(a, p, n);
    *ok = *ok && q;
    return q;
}

static const char *copy_string(struct arena *a, const char *s, bool *ok)
{
    return copy_bytes(a, s, s ? strlen(s) + 1 : 0, ok);
}

static void copy_prepare(struct arena *a, struct msg_prepare *p, bool *ok)
{
    size_t n = (size_t)p->n_tokens;
    p->expect_hash = copy_string(a, p->expect_hash, ok);
    p->members = copy_bytes(a, p->members, (size_t)p->n_members * sizeof *p->members, ok);
    p->ids = copy_bytes(a, p->ids, n * sizeof *p->ids, ok);
    p->mask = copy_bytes(a, p->mask, n * sizeof *p->mask, ok);
    p->logprobs = copy_bytes(a, p->logprobs, n * sizeof *p->logprobs, ok);
    p->versions = copy_bytes(a, p->versions, n * sizeof *p->versions, ok);
    p->temperatures = copy_bytes(a, p->temperatures, n * sizeof *p->temperatures, ok);
}

static void copy_checkpoint(struct arena *a, struct msg_checkpoint *c, bool *ok)
{
    c->path = copy_string(a, c->path, ok);
    c->hash = copy_string(a, c->hash, ok);
    size_t n = (size_t)c->n_prune;
    const char **prune = n ? arena_alloc(a, n * sizeof *prune) : NULL;
    *ok = *ok && (!n || prune);
    for (size_t i = 0; i < n && prune; i++)
        prune[i] = copy_string(a, c->prune[i], ok);
    c->prune = prune;
}

static void copy_check(struct arena *a, struct msg_check *c, bool *ok)
{
    size_t n = (size_t)c->n_tokens, n_weights = (size_t)c->n_weights;
    c->segments = copy_bytes(a, c->segments, (size_t)c->n_segments * sizeof *c->segments, ok);
    c->kv = copy_bytes(a, c->kv, (size_t)c->n_kv * sizeof *c->kv, ok);
    c->ids = copy_bytes(a, c->ids, n * sizeof *c->ids, ok);
    c->mask = copy_bytes(a, c->mask, n * sizeof *c->mask, ok);
    c->logprobs = copy_bytes(a, c->logprobs, n * sizeof *c->logprobs, ok);
    c->versions = copy_bytes(a, c->versions, n * sizeof *c->versions, ok);
    c->temperatures = copy_bytes(a, c->temperatures, n * sizeof *c->temperatures, ok);
    struct msg_weights *w = n_weights ? arena_alloc(a, n_weights * sizeof *w) : NULL;
    *ok = *ok && (!n_weights || w);
    for (size_t i = 0; i < n_weights && w; i++)
        w[i] = (struct msg_weights){c->weights[i].version, copy_string(a, c->weights[i].path, ok),
                                    copy_string(a, c->weights[i].hash, ok)};
    c->weights = w;
}

static void copy_trace(struct arena *a, struct msg_trace *t, bool *ok)
{
    t->path = copy_string(a, t->path, ok);
    t->hash = copy_string(a, t->hash, ok);
    t->ids = copy_bytes(a, t->ids, (size_t)t->n_ids * sizeof *t->ids, ok);
}

static enum status letter_init(struct letter *l, const struct msg *m, struct error *err)
{
    bool ok = true;
    l->msg = *m;
    arena_init(&l->arena, 0);
    if (m->type == MSG_PREPARE) {
        copy_prepare(&l->arena, &l->msg.prepare, &ok);
    } else if (m->type == MSG_WELCOME) {
        struct msg_welcome *w = &l->msg.welcome;
        const char **strings[] = {&w->run,          &w->reason,      &w->checkpoint, &w->checkpoint_hash,
                                  &w->version_path, &w->version_hash};
        for (size_t i = 0; i < sizeof strings / sizeof strings[0]; i++)
            *strings[i] = copy_string(&l->arena, *strings[i], &ok);
    } else if (m->type == MSG_COMMIT_ACK) {
        l->msg.commit_ack.reason = copy_string(&l->arena, m->commit_ack.reason, &ok);
    } else if (m->type == MSG_CHECKPOINT) {
        copy_checkpoint(&l->arena, &l->msg.checkpoint, &ok);
    } else if (m->type == MSG_CHECK) {
        copy_check(&l->arena, &l->msg.check, &ok);
    } else if (m->type == MSG_TRACE) {
        copy_trace(&l->arena, &l->msg.trace, &ok);
    } else {
        ok = false;
    }
    if (ok)
        return STATUS_OK;
    arena_done(&l->arena);
    return error_set(err, STATUS_NOMEM, "no memory for a %s message", msg_type_name(m->type));
}

// ---- compute thread ---------------------------------------------------------------------------------------------------------

static void wake_io(struct worker *w)
{
    uint64_t one = 1;
    ssize_t rc = write(w->wake_fd, &one, sizeof one);
    (void)rc; // a full counter wakes just as well
}

// Lock held. Offers m and waits until it was sent or the worker is told to stop.
static void offer(struct worker *w, const struct msg *m)
{
    w->out = m;
    wake_io(w);
    while (w->out && !w->stop)
        pthread_cond_wait(&w->changed, &w->lock);
    w->out = NULL;
}

static enum status handle(struct session *s, const struct msg *m, struct msg *ret, struct error *err)
{
    *ret = (struct msg){.type = MSG_NONE};
    switch (m->type) {
    case MSG_WELCOME:
        return session_welcome(s, &m->welcome, ret, err);
    case MSG_PREPARE:
        return session_prepare(s, &m->prepare, ret, err);
    case MSG_COMMIT_ACK:
        return session_commit(s, &m->commit_ack, ret, err);
    case MSG_CHECK:
        return session_check(s, &m->check, ret, err);
    case MSG_TRACE:
        return session_trace(s, &m->trace, ret, err);
    default:
        return session_checkpoint(s, &m->checkpoint, ret, err);
    }
}

// Lock held; released while the session works.
static enum status work(struct worker *w, struct letter *l, struct msg *ret)
{
    struct session *s = w->session;
    w->load.step = l->msg.type == MSG_PREPARE ? l->msg.prepare.step : -1;
    pthread_mutex_unlock(&w->lock);
    int64_t start = clock_mono_ns(s->clock);
    struct error err = {0};
    enum status rc = handle(s, &l->msg, ret, &err);
    int64_t spent = clock_mono_ns(s->clock) - start;
    pthread_mutex_lock(&w->lock);
    if (l->msg.type == MSG_PREPARE && l->msg.prepare.epoch == w->prepare_epoch &&
        l->msg.prepare.step == w->prepare_step)
        w->prepare_step = -1;
    if (l->msg.type == MSG_CHECK && l->msg.check.id == w->check_id)
        w->checking = false;
    w->load.step = -1;
    w->load.busy_ns += spent;
    w->load.version = s->holding ? s->trainer->step : -1;
    snprintf(w->load.hash, sizeof w->load.hash, "%s", s->holding && s->done.valid ? s->done.hash : "");
    if (rc)
        w->error = err;
    arena_done(&l->arena);
    return rc;
}

// Lock held. Waits for a letter; false when REMIND_MS passed without one.
static bool await(struct worker *w)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += REMIND_MS / 1000;
    while (!w->count && !w->stop)
        if (pthread_cond_timedwait(&w->changed, &w->lock, &until) == ETIMEDOUT)
            return w->count > 0;
    return true;
}

static void *run(void *arg)
{
    struct worker *w = arg;
    struct error pinned = {0};
    enum status rc = pool_adopt(w->session->trainer->device->pool, &pinned);
    pthread_mutex_lock(&w->lock);
    if (rc)
        w->error = pinned;
    while (!w->stop && !rc) {
        struct msg reply = {.type = MSG_NONE};
        if (!await(w)) {
            session_pending(w->session, &reply);
        } else if (w->count) {
            struct letter l = w->inbox[w->head];
            w->head = (w->head + 1) % INBOX;
            w->count--;
            rc = work(w, &l, &reply);
        }
        if (!rc && reply.type != MSG_NONE)
            offer(w, &reply);
    }
    w->ended = rc && rc != STATUS_CANCELED;
    wake_io(w);
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

// ---- any thread -------------------------------------------------------------------------------------------------------------

enum status worker_open(struct session *s, int wake_fd, struct worker **ret, struct error *err)
{
    struct worker *w = mem_must(1, sizeof *w);
    pthread_condattr_t attr;
    w->session = s;
    w->wake_fd = wake_fd;
    w->prepare_step = w->welcome_epoch = -1;
    w->load.version = w->load.step = -1;
    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&w->changed, &attr);
    pthread_condattr_destroy(&attr);
    int rc = pthread_create(&w->thread, NULL, run, w);
    if (rc) {
        pthread_cond_destroy(&w->changed);
        pthread_mutex_destroy(&w->lock);
        free(w);
        return error_errno(err, rc, "starting the compute thread");
    }
    *ret = w;
    return STATUS_OK;
}

void worker_close(struct worker *w)
{
    if (!w)
        return;
    atomic_store(&w->session->trainer->cancel, true);
    pthread_mutex_lock(&w->lock);
    w->stop = true;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->thread, NULL);
    for (int i = 0; i < w->count; i++)
        arena_done(&w->inbox[(w->head + i) % INBOX].arena);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

// Lock held. Is m on its way to the session already? (HELLO is repeated, so WELCOME is too.)
static bool is_repeat(const struct worker *w, const struct msg *m)
{
    if (m->type == MSG_PREPARE)
        return m->prepare.epoch == w->prepare_epoch && m->prepare.step == w->prepare_step;
    if (m->type == MSG_CHECK)
        return w->checking && m->check.epoch == w->check_epoch && m->check.id == w->check_id;
    return m->type == MSG_WELCOME && m->welcome.epoch == w->welcome_epoch;
}

enum status worker_post(struct worker *w, const struct msg *m, struct error *err)
{
    enum status rc = STATUS_OK;
    pthread_mutex_lock(&w->lock);
    if (w->stop || w->ended || is_repeat(w, m))
        goto out;
    if (w->count == INBOX) {
        rc = error_set(err, STATUS_LIMIT, "%d messages wait for the compute thread", INBOX);
        goto out;
    }
    rc = letter_init(&w->inbox[(w->head + w->count) % INBOX], m, err);
    if (rc)
        goto out;
    w->count++;
    if (m->type == MSG_WELCOME)
        w->welcome_epoch = m->welcome.epoch;
    if (m->type == MSG_PREPARE) {
        w->prepare_epoch = m->prepare.epoch;
        w->prepare_step = m->prepare.step;
    }
    if (m->type == MSG_CHECK) {
        w->checking = true;
        w->check_epoch = m->check.epoch;
        w->check_id = m->check.id;
    }
    pthread_cond_broadcast(&w->changed);
out:
    pthread_mutex_unlock(&w->lock);
    return rc;
}

const struct msg *worker_outgoing(struct worker *w)
{
    pthread_mutex_lock(&w->lock);
    const struct msg *m = w->out;
    pthread_mutex_unlock(&w->lock);
    return m;
}

void worker_sent(struct worker *w)
{
    pthread_mutex_lock(&w->lock);
    w->out = NULL;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

bool worker_ended(struct worker *w, struct error *ret_err)
{
    pthread_mutex_lock(&w->lock);
    bool ended = w->ended;
    if (ended)
        *ret_err = w->error;
    pthread_mutex_unlock(&w->lock);
    return ended;
}

void worker_load(struct worker *w, struct worker_load *ret)
{
    pthread_mutex_lock(&w->lock);
    *ret = w->load;
    pthread_mutex_unlock(&w->lock);
    ret->tokens = atomic_load(&w->session->trainer->done_tokens);
}
