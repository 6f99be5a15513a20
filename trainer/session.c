// session: see session.h. The compute thread owns it.
#include "trainer/session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "trainer/checkpoint.h"

enum status session_open(const struct run_config *c, const char *run_dir, const char *run, const char *shm,
                         const struct clock *clock, struct session **ret, struct error *err)
{
    struct session *s = mem_must(1, sizeof *s);
    s->clock = clock;
    snprintf(s->run_dir, sizeof s->run_dir, "%s", run_dir);
    snprintf(s->run, sizeof s->run, "%s", run);
    enum status rc = publish_init(&s->publish, run_dir, run, shm, err);
    if (!rc)
        rc = checkpoint_clean(run_dir, err);
    if (!rc)
        rc = trainer_open(c, run_dir, &s->trainer, err);
    if (rc) {
        session_close(s);
        return rc;
    }
    *ret = s;
    return STATUS_OK;
}

void session_close(struct session *s)
{
    if (!s)
        return;
    rescore_done(&s->rescore); // before its device
    trainer_close(s->trainer);
    publish_done(&s->publish);
    free(s);
}

// Everything that decides the step's bits; whether and where it is published does not.
static uint64_t digest(const struct msg_prepare *p)
{
    uint64_t h = 0;
    size_t n = (size_t)p->n_tokens;
    const int64_t numbers[] = {p->step,    p->stage,           p->stage_first, (int64_t)p->packing_seed,
                               p->updates, p->optimizer_reset, p->n_members,   p->n_tokens};
    h = hash64_seed(numbers, sizeof numbers, h);
    h = hash64_seed(&p->lr, sizeof p->lr, h);
    for (int32_t i = 0; i < p->n_members; i++) {
        const struct msg_member *m = &p->members[i];
        const uint64_t fields[] = {m->trajectory,
                                   m->attempt,
                                   m->segment,
                                   m->group,
                                   (uint64_t)m->n_tokens,
                                   (uint64_t)m->multiplicity};
        h = hash64_seed(fields, sizeof fields, h);
        h = hash64_seed(&m->advantage, sizeof m->advantage, h);
    }
    h = hash64_seed(p->ids, n * sizeof *p->ids, h);
    h = hash64_seed(p->mask, n, h);
    h = hash64_seed(p->logprobs, n * sizeof *p->logprobs, h);
    return hash64_seed(p->temperatures, n * sizeof *p->temperatures, h);
}

static void say_done(const struct session *s, struct msg *ret)
{
    const struct session_done *d = &s->done;
    *ret = (struct msg){.type = MSG_STEP_DONE,
                        .step_done = {.epoch = s->epoch,
                                      .step = d->step,
                                      .outcome = d->result.outcome,
                                      .reason = d->result.reason,
                                      .version = d->version,
                                      .hash = d->hash,
                                      .path = d->path,
                                      .bytes = d->bytes,
                                      .n_metrics = d->result.metrics.n,
                                      .metrics = d->result.metrics.items}};
}

void session_pending(const struct session *s, struct msg *ret)
{
    *ret = (struct msg){.type = MSG_NONE};
    if (s->written.valid)
        *ret = (struct msg){.type = MSG_CHECKPOINT,
                            .checkpoint = {.epoch = s->epoch,
                                           .step = s->written.step,
                                           .path = s->written.path,
                                           .hash = s->written.hash}};
}

static enum status restore(struct session *s, struct error *err)
{
    s->holding = false;
    s->done.valid = false;
    enum status rc = *s->checkpoint ? checkpoint_read(s->trainer, s->checkpoint, s->checkpoint_hash, err)
                                    : trainer_restart(s->trainer, err);
    if (!rc && s->trainer->step != s->checkpoint_step)
        rc = error_set(err, STATUS_CORRUPT, "checkpoint %s holds step %lld, the ledger says %lld",
                       s->checkpoint, (long long)s->trainer->step, (long long)s->checkpoint_step);
    s->holding = rc == STATUS_OK;
    return rc;
}

static enum status publish_now(struct session *s, bool write, struct error *err)
{
    struct session_done *d = &s->done;
    d->version = s->trainer->step;
    return publish_weights(&s->publish, s->trainer, write, d->path, d->hash, &d->bytes, err);
}

// Publishes what was restored, as the outcome of the step before it.
static enum status publish_restored(struct session *s, struct error *err)
{
    struct session_done *d = &s->done;
    d->valid = false;
    enum status rc = publish_now(s, true, err);
    if (rc)
        return rc;
    publish_prune(&s->publish, s->trainer->config->trainer.keep_weights);
    d->step = s->checkpoint_step - 1;
    d->checkpoint = false;
    d->digest = 0; // never equal to a PREPARE's: step differs from any that can come
    d->result.outcome = STEP_APPLIED;
    d->result.reason[0] = 0;
    d->result.metrics.n = 0;
    d->valid = true;
    return STATUS_OK;
}

enum status session_welcome(struct session *s, const struct msg_welcome *w, struct msg *ret,
                            struct error *err)
{
    *ret = (struct msg){.type = MSG_NONE};
    if (s->holding && w->epoch == s->epoch) { // our HELLO was answered twice
        session_pending(s, ret);
        return STATUS_OK;
    }
    if (strlen(w->checkpoint) >= sizeof s->checkpoint ||
        strlen(w->checkpoint_hash) >= sizeof s->checkpoint_hash || w->checkpoint_step < 0 ||
        w->committed_steps < w->checkpoint_step)
        return error_set(err, STATUS_PROTOCOL,
                         "WELCOME names checkpoint %.200s of step %lld with %lld steps committed",
                         w->checkpoint, (long long)w->checkpoint_step, (long long)w->committed_steps);
    s->epoch = w->epoch;
    s->checkpoint_step = w->checkpoint_step;
    s->committed_steps = w->committed_steps;
    snprintf(s->checkpoint, sizeof s->checkpoint, "%s", w->checkpoint);
    snprintf(s->checkpoint_hash, sizeof s->checkpoint_hash, "%s", w->checkpoint_hash);
    int64_t ahead = s->trainer->step - w->committed_steps;
    bool newest = w->checkpoint_step == w->committed_steps;
    bool useful = s->holding && (ahead == 0 || (ahead == 1 && s->done.valid && !newest));
    enum status rc = useful ? STATUS_OK : restore(s, err);
    if (!rc && newest) {
        rc = publish_restored(s, err);
        if (!rc)
            say_done(s, ret);
    }
    return rc;
}

// The weights of the step being computed.
struct taking {
    struct session *s;
    bool write, published;
};

// The step's last update and its publication in one pass over the weights (trainer.h). Where publishing fails, the step publishes once
// more when it is done, and that counts.
static void take(void *ctx, struct trainer *t, int64_t version, struct weights_before *before)
{
    struct taking *a = ctx;
    struct session_done *d = &a->s->done;
    struct error err;
    d->version = version;
    a->published = publish_update(&a->s->publish, t, version, before, a->write, d->path, d->hash, &d->bytes,
                                  &err) == STATUS_OK;
    if (!a->published)
        log_event(LOG_WARN, "publish_again", "version=%lld cause=\"%s\"", (long long)version, err.text);
}

static enum status compute(struct session *s, const struct msg_prepare *p, uint64_t d, struct error *err)
{
    struct trainer *t = s->trainer;
    struct session_done *done = &s->done;
    int64_t start = clock_mono_ns(s->clock);
    int64_t tokens = atomic_load(&t->done_tokens);
    done->valid = false;
    struct taking taking = {.s = s, .write = p->publish};
    t->taker = (struct trainer_taker){take, &taking};
    enum status rc = trainer_step(t, p, &done->result, err);
    t->taker = (struct trainer_taker){0};
    if (rc)
        return rc;
    double seconds = (double)(clock_mono_ns(s->clock) - start) / 1e9;
    tokens = atomic_load(&t->done_tokens) - tokens;
    metrics_put(&done->result.metrics, "time/train", seconds);
    if (seconds > 0) {
        metrics_put(&done->result.metrics, "perf/tokens_per_s", (double)tokens / seconds);
        metrics_put(&done->result.metrics, "perf/train_gflops", done->result.flops / seconds / 1e9);
        metrics_put(&done->result.metrics, "perf/mfu", done->result.flops / seconds / t->peak_flops);
    }
    start =
        clock_mono_ns(s->clock); // from here on is time/publish: all of it only when the step was rejected
    rc = taking.published ? STATUS_OK : publish_now(s, p->publish, err);
    if (rc)
        return error_prefix(err, "publishing weights %lld", (long long)t->step);
    metrics_put(&done->result.metrics, "time/publish", (double)(clock_mono_ns(s->clock) - start) / 1e9);
    done->step = p->step;
    done->digest = d;
    done->checkpoint = p->checkpoint;
    done->valid = true;
    return STATUS_OK;
}

enum status session_prepare(struct session *s, const struct msg_prepare *p, struct msg *ret,
                            struct error *err)
{
    enum status rc = STATUS_OK;
    *ret = (struct msg){.type = MSG_NONE};
    if (p->epoch != s->epoch)
        return STATUS_OK; // of another incarnation: late, or WELCOME with its epoch is still to come
    uint64_t d = digest(p);
    if (s->done.valid && s->done.step == p->step) {
        if (s->done.digest != d)
            return error_set(err, STATUS_CORRUPT, "step %lld was prepared twice with different contents",
                             (long long)p->step);
        if (p->publish && !*s->done.path)
            rc = publish_now(s, true, err);
        s->done.checkpoint = p->checkpoint;
    } else {
        if (p->replay && s->trainer->step != p->step && p->step == s->checkpoint_step)
            rc = restore(s, err);
        else if (p->step < s->trainer->step)
            return STATUS_OK; // a late repeat of a step that was committed long ago
        if (!rc)
            rc = compute(s, p, d, err);
    }
    if (!rc)
        say_done(s, ret);
    return rc;
}

static enum status write_checkpoint(struct session *s, struct error *err)
{
    char path[2 * RUNCONFIG_PATH];
    int n = snprintf(path, sizeof path, "%s/checkpoints/step-%lld", s->run_dir, (long long)s->trainer->step);
    if (n >= (int)sizeof s->written.path)
        return error_set(err, STATUS_LIMIT, "path too long: %.200s…", path);
    s->written.valid = false;
    enum status rc = checkpoint_write(s->trainer, path, s->run, s->written.hash, err);
    if (rc)
        return rc;
    memcpy(s->written.path, path, (size_t)n + 1);
    s->written.step = s->trainer->step;
    s->written.valid = true;
    return STATUS_OK;
}

enum status session_commit(struct session *s, const struct msg_commit_ack *a, struct msg *ret,
                           struct error *err)
{
    *ret = (struct msg){.type = MSG_NONE};
    if (a->epoch != s->epoch)
        return STATUS_OK;
    if (a->result == COMMIT_FENCED)
        return error_set(err, STATUS_FENCED, "epoch %lld was fenced: %s", (long long)a->epoch, a->reason);
    if (a->result == COMMIT_CONFLICT)
        return error_set(err, STATUS_CORRUPT, "step %lld disagrees with the ledger: %s", (long long)a->step,
                         a->reason);
    if (!s->done.valid || s->done.step != a->step)
        return STATUS_OK; // acknowledged again
    s->committed_steps = a->step + 1 > s->committed_steps ? a->step + 1 : s->committed_steps;
    publish_prune(&s->publish, s->trainer->config->trainer.keep_weights);
    if (!s->done.checkpoint)
        return STATUS_OK;
    enum status rc = write_checkpoint(s, err);
    s->done.checkpoint = rc != STATUS_OK;
    if (!rc)
        session_pending(s, ret);
    return rc;
}

// Asked for a checkpoint (no path): of the step that is held and committed, unless it is recorded already.
static enum status checkpoint_asked(struct session *s, const struct msg_checkpoint *c, struct msg *ret,
                                    struct error *err)
{
    if (c->epoch != s->epoch || !s->holding || c->step != s->trainer->step || c->step != s->committed_steps)
        return STATUS_OK; // late: the next step has begun, or another incarnation was meant
    bool written = s->written.valid && s->written.step == c->step;
    enum status rc = written ? STATUS_OK : write_checkpoint(s, err);
    if (!rc)
        session_pending(s, ret);
    return rc;
}

enum status session_checkpoint(struct session *s, const struct msg_checkpoint *c, struct msg *ret,
                               struct error *err)
{
    enum status rc = STATUS_OK;
    *ret = (struct msg){.type = MSG_NONE};
    if (!c->path[0])
        return checkpoint_asked(s, c, ret, err);
    if (c->epoch != s->epoch || !s->written.valid || c->step != s->written.step)
        return STATUS_OK;
    s->written.valid = false;
    // the newest recorded checkpoint is where a restore begins from now on
    s->checkpoint_step = s->written.step;
    memcpy(s->checkpoint, s->written.path, sizeof s->checkpoint);
    memcpy(s->checkpoint_hash, s->written.hash, sizeof s->checkpoint_hash);
    for (int32_t i = 0; i < c->n_prune && !rc; i++)
        if (strcmp(c->prune[i], s->written.path) != 0)
            rc = checkpoint_remove(s->run_dir, c->prune[i], err);
    return rc;
}

enum status session_check(struct session *s, const struct msg_check *c, struct msg *ret, struct error *err)
{
    *ret = (struct msg){.type = MSG_NONE};
    if (c->epoch != s->epoch)
        return STATUS_OK; // of another incarnation
    enum status rc = rescore_check(&s->rescore, s->trainer, c, &ret->check_done, err);
    if (!rc)
        ret->type = MSG_CHECK_DONE;
    return rc;
}

enum status session_trace(struct session *s, const struct msg_trace *t, struct msg *ret, struct error *err)
{
    (void)err;
    *ret = (struct msg){.type = MSG_NONE};
    if (t->epoch != s->epoch)
        return STATUS_OK;
    rescore_trace(&s->rescore, s->trainer, t, &ret->trace_done);
    ret->type = MSG_TRACE_DONE;
    return STATUS_OK;
}
