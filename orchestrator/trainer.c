// The trainer's side of the ledger; see trainer.h for states and invariants. Runs on the loop's thread.
#include "orchestrator/trainer.h"

#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "orchestrator/checkpoints.h"
#include "orchestrator/orch.h"

#define META_INCARNATION "trainer_incarnation"

enum status trainer_open(struct orch *o, struct error *err)
{
    struct trainer_link *t = &o->trainer;
    char *text = NULL;
    struct error none;
    t->sent = -1;
    trainer_lease(o); // one of before our restart, too, is given this long to be heard of
    if (ledger_meta_get(o->ledger, META_INCARNATION, &text, &none) == STATUS_OK) {
        if (sscanf(text, "%" SCNd64 " %" SCNd64 " %" SCNd64, &t->epoch, &t->pid, &t->restarts) != 3)
            t->epoch = 0;
        free(text);
    }
    return checkpoints_open(o, err);
}

bool trainer_is_ready(const struct orch *o)
{
    const struct trainer_link *t = &o->trainer;
    return t->state == LINK_READY && t->sent < 0 && !t->ack_pending && t->position == o->committed_steps;
}

void trainer_lease(struct orch *o)
{
    o->trainer.deadline_ms = orch_now(o) + o->cfg->orchestrator.lease_ms;
}

// A trainer that is not over but says nothing (a wedged thread, a stopped process) holds the device and would keep its successor out:
// nobody but us can know. `ooze run`, whose child it is as we are, starts the next one and counts. Pids are used again: only a sibling.
static void end_trainer(struct orch *o, const char *why)
{
    const int64_t pid = o->trainer.pid;
    char path[64];
    int parent = 0;
    snprintf(path, sizeof path, "/proc/%" PRId64 "/stat", pid);
    FILE *f = pid > 1 && pid != getpid() ? fopen(path, "re") : NULL;
    if (!f)
        return;
    const bool sibling = fscanf(f, "%*d (ooze-trainer) %*c %d", &parent) == 1 && parent == getppid();
    fclose(f);
    if (!sibling)
        return;
    orch_warn(o, "trainer_killed", "pid=%" PRId64 " cause=\"%s\"", pid, why);
    kill((pid_t)pid, SIGKILL);
}

void trainer_on_lost(struct orch *o)
{
    trainer_lease(o);
    o->trainer.state = LINK_NONE;
    o->trainer.sent = -1;
    o->trainer.ack_pending = false;
}

static bool grant_epoch(struct orch *o, const struct msg_hello *h)
{
    struct trainer_link *t = &o->trainer;
    struct error err;
    char text[96];
    int64_t epoch;
    if (journal_begin(o, &err) || ledger_next_epoch(o->ledger, "trainer", &epoch, &err))
        goto failed;
    snprintf(text, sizeof text, "%" PRId64 " %" PRId64 " %" PRId64, epoch, h->pid, h->restarts);
    if (ledger_meta_set(o->ledger, META_INCARNATION, text, &err))
        goto failed;
    t->epoch = epoch;
    t->pid = h->pid;
    t->restarts = h->restarts;
    t->fenced = false;
    return journal_flush(o, true);
failed:
    orch_fail(o, &err);
    return false;
}

bool trainer_on_hello(struct orch *o, struct peer *p, const struct msg_hello *h, bool again)
{
    struct trainer_link *t = &o->trainer;
    (void)p;
    if (again && t->state != LINK_NONE && !t->fenced)
        return true; // an impatient repetition: same answer
    // The same process after a silence or after our own restart keeps its epoch and its weights; any other is a new incarnation.
    // (Unless nobody has its weights any more: only a restart publishes them again.)
    bool survived = t->epoch > 0 && o->weights.version >= 0 && t->pid == h->pid &&
                    t->restarts == h->restarts && !t->fenced && h->version >= 0;
    if (!survived && !grant_epoch(o, h))
        return false;
    t->sent = -1;
    t->ack_pending = false;
    check_on_trainer(o);
    t->position = survived ? h->version : o->checkpoint.step;
    bool ahead =
        survived &&
        h->version > o->committed_steps; // it has done the prepared step: PREPARE makes it say so again
    if (ahead)
        t->position = o->committed_steps;
    // The acknowledgement of its last step may have been lost with us or with the connection, and with it the word to write that
    // step's checkpoint, for which the end of a stage waits. Said twice it changes nothing.
    if (survived && t->position > 0) {
        t->ack = (struct msg_commit_ack){
            .epoch = t->epoch, .step = t->position - 1, .result = COMMIT_OK, .reason = ""};
        t->ack_pending = true;
    }
    if (t->position < o->committed_steps)
        t->state = LINK_REPLAYING;
    else
        t->state = survived ? LINK_READY : LINK_RESTORING;
    trainer_lease(o);
    log_event(LOG_INFO, "trainer_welcome",
              "epoch=%" PRId64 " position=%" PRId64 " committed=%" PRId64 " survived=%d", t->epoch,
              t->position, o->committed_steps, survived);
    return true;
}

void trainer_fill_welcome(struct orch *o, struct msg_welcome *w)
{
    w->epoch = o->trainer.epoch;
    w->checkpoint_step = o->checkpoint.step;
    w->checkpoint = o->checkpoint.path;
    w->checkpoint_hash = o->checkpoint.hash;
    w->committed_steps = o->committed_steps;
    w->version = o->weights.version;
    w->version_path = o->weights.path;
    w->version_hash = o->weights.hash;
}

void trainer_after_welcome(struct orch *o)
{
    trainer_send(o);
}

// Which step the trainer should be computing now, -1 = none.
static int64_t step_due(const struct orch *o)
{
    const struct trainer_link *t = &o->trainer;
    if (t->state == LINK_REPLAYING)
        return t->position;
    if (t->state == LINK_READY && o->step.prepared)
        return o->committed_steps;
    return -1;
}

void trainer_send(struct orch *o)
{
    struct trainer_link *t = &o->trainer;
    struct peer *p = peers_trainer(o);
    struct error err;
    if (!p || t->state == LINK_NONE || o->failed)
        return;
    if (t->ack_pending) {
        struct msg ack = {.type = MSG_COMMIT_ACK, .commit_ack = t->ack};
        if (!peers_send(o, p, &ack))
            return;
        t->ack_pending = false;
    }
    if (t->state == LINK_READY && (!check_send(o) || check_failing(o)))
        return;
    int64_t n = step_due(o);
    if (n < 0 || t->sent == n)
        return;
    if (step_load(o, n, &err)) {
        orch_fail(o, &err);
        return;
    }
    struct msg m = {.type = MSG_PREPARE, .prepare = o->step.message};
    m.prepare.epoch = t->epoch;
    if (t->state == LINK_REPLAYING) {
        m.prepare.replay = true;
        m.prepare.expect_hash = o->step.hash;
        m.prepare.publish = n == o->committed_steps - 1;
        m.prepare.checkpoint = o->step.recorded_checkpoint && !trainer_has_checkpoint(o, n + 1);
    }
    if (!peers_send(o, p, &m))
        return;
    t->sent = n;
    trainer_lease(o);
}

static void answer(struct orch *o, struct peer *p, const struct msg_step_done *m, enum msg_commit result,
                   const char *reason)
{
    struct msg_commit_ack ack = {.epoch = m->epoch, .step = m->step, .result = result, .reason = reason};
    if (result == COMMIT_OK) { // must arrive: kept until it fits
        o->trainer.ack = ack;
        o->trainer.ack_pending = true;
        trainer_send(o);
        return;
    }
    struct msg msg = {.type = MSG_COMMIT_ACK, .commit_ack = ack};
    peers_send(o, p, &msg);
}

static void conflict(struct orch *o, struct peer *p, const struct msg_step_done *m, struct error *err)
{
    answer(o, p, m, COMMIT_CONFLICT, err->text);
    orch_fail(o, err);
}

static bool is_published(const struct orch *o, const struct msg_step_done *m)
{
    return m->path[0] && m->version >= o->weights.version;
}

static void take_published(struct orch *o, const struct msg_step_done *m)
{
    if (!is_published(o, m))
        return;
    o->weights.version = m->version;
    snprintf(o->weights.path, sizeof o->weights.path, "%s", m->path);
    snprintf(o->weights.hash, sizeof o->weights.hash, "%s", m->hash);
    o->weights.bytes = m->bytes;
    peers_announce(o);
    orch_kick(o);
}

// A step that has its outcome already, or restored weights: the hash must be the recorded one.
static void verify_done(struct orch *o, struct peer *p, const struct msg_step_done *m)
{
    struct trainer_link *t = &o->trainer;
    struct ledger_weights w = {.version = m->version, .hash = m->hash, .path = m->path, .bytes = m->bytes};
    struct error err;
    if (journal_begin(o, &err)) {
        orch_fail(o, &err);
        return;
    }
    enum status rc = ledger_weights_set(o->ledger, &w, &err);
    if (rc == STATUS_CORRUPT) {
        conflict(o, p, m, &err);
        return;
    }
    if (!rc && is_published(o, m))
        rc = weights_note(o, m->version, m->path, m->hash, m->bytes, &err);
    if (rc) {
        orch_fail(o, &err);
        return;
    }
    if (!journal_flush(o, true))
        return;
    if (t->sent == m->step)
        t->sent = -1;
    if (m->version > t->position || t->state == LINK_RESTORING)
        t->position = m->version;
    if (t->position >= o->committed_steps && t->state != LINK_NONE)
        t->state = LINK_READY;
    trainer_lease(o);
    take_published(o, m);
    answer(o, p, m, COMMIT_OK, "");
    orch_kick(o);
}

// A step that cannot be applied is an accident; one after another is a run that throws all its data away: it ends with the first cause.
static void note_outcome(struct orch *o, int64_t step, bool applied, const char *reason)
{
    struct trainer_link *t = &o->trainer;
    struct error err;
    if (applied) {
        t->rejected = 0;
        return;
    }
    orch_warn(o, "step_rejected", "step=%" PRId64 " cause=\"%s\"", step, reason);
    if (t->rejected++ == 0)
        snprintf(t->rejected_first, sizeof t->rejected_first, "%s", reason);
    if (t->rejected <= o->cfg->orchestrator.max_rejected)
        return;
    error_set(&err, STATUS_NUMERIC,
              "%d steps in a row were rejected, the last of them step %" PRId64 "; the first cause: %s",
              t->rejected, step, t->rejected_first);
    orch_fail(o, &err);
}

static void commit_step(struct orch *o, struct peer *p, const struct msg_step_done *m)
{
    struct trainer_link *t = &o->trainer;
    struct ledger_weights w = {.version = m->version, .hash = m->hash, .path = m->path, .bytes = m->bytes};
    struct error err;
    bool applied = m->outcome == STEP_APPLIED;
    char *metrics = metrics_step_json(o, m);
    enum status rc = journal_begin(o, &err);
    if (!rc)
        rc = ledger_step_commit(o->ledger, m->step, applied, applied ? NULL : m->reason, &w, metrics, &err);
    if (!rc && is_published(o, m)) // with the commit: a restart must know where the weights are
        rc = weights_note(o, m->version, m->path, m->hash, m->bytes, &err);
    if (rc == STATUS_CORRUPT)
        conflict(o, p, m, &err);
    else if (rc)
        orch_fail(o, &err);
    if (rc || !journal_flush(o, true)) {
        free(metrics);
        return;
    }
    o->committed_steps = m->step + 1;
    o->step.prepared = false;
    o->step.loaded = -1;
    o->step.idle_since_ms = orch_now(o);
    t->sent = -1;
    t->position = o->committed_steps;
    note_outcome(o, m->step, applied, m->reason);
    check_on_commit(o, m->step, applied);
    answer(o, p, m, COMMIT_OK, "");
    take_published(o, m);
    metrics_step_written(o, m, metrics);
    free(metrics);
    stage_on_commit(o);
    orch_kick(o);
}

void trainer_on_step_done(struct orch *o, struct peer *p, const struct msg_step_done *m)
{
    struct trainer_link *t = &o->trainer;
    struct error err;
    if (m->epoch != t->epoch || t->fenced || t->state == LINK_NONE) {
        answer(o, p, m, COMMIT_FENCED, "another incarnation of the trainer holds the run");
        return;
    }
    if (m->version != m->step + 1 || m->step < -1 || !m->hash[0] || strlen(m->hash) >= HASH_HEX ||
        strlen(m->path) >= sizeof o->weights.path) {
        error_set(&err, STATUS_PROTOCOL,
                  "trainer: STEP_DONE of step %" PRId64 " carries version %" PRId64 " or no proper hash",
                  m->step, m->version);
        orch_fail(o, &err);
        return;
    }
    if (m->step < o->committed_steps)
        verify_done(o, p, m);
    else if (m->step == o->committed_steps && o->step.prepared)
        commit_step(o, p, m);
    else
        answer(o, p, m, COMMIT_FENCED, "this step was never prepared");
}

// The lease is over: the epoch is fenced, the same step goes to the next incarnation.
static void fence(struct orch *o)
{
    struct trainer_link *t = &o->trainer;
    orch_warn(o, "trainer_fenced", "epoch=%" PRId64 " step=%" PRId64 " cause=\"no answer within lease_ms\"",
              t->epoch, t->sent);
    t->fenced = true;
    t->state = LINK_NONE;
    t->sent = -1;
    struct peer *p = peers_trainer(o);
    if (p) {
        struct msg m = {.type = MSG_COMMIT_ACK,
                        .commit_ack = {.epoch = t->epoch,
                                       .step = o->committed_steps,
                                       .result = COMMIT_FENCED,
                                       .reason = "lease over"}};
        peers_send(o, p, &m);
        p->up = false;
    }
    trainer_lease(o);
    end_trainer(o, "no answer within lease_ms");
}

void trainer_tick(struct orch *o)
{
    struct trainer_link *t = &o->trainer;
    if (t->state == LINK_NONE) {
        if (t->epoch > 0 && orch_now(o) > t->deadline_ms) {
            trainer_lease(o);
            end_trainer(o, "not heard of for lease_ms");
        }
        return;
    }
    bool owes = t->sent >= 0 || t->state == LINK_RESTORING || o->check.state == CHECK_SENT;
    if (owes && orch_now(o) > t->deadline_ms) {
        fence(o);
        return;
    }
    trainer_send(o);
}
