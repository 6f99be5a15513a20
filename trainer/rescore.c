// rescore: see rescore.h. Compute thread, between two steps. The device, its threads and, where dtypes agree, the activations are
// those of training; a step finds them as it left them but for contents that each step writes anew.
#include "trainer/rescore.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "model/replay.h"

#define ROWS_MIN 512                 // of activations opened for checks alone: short segments are packed
#define KV_BYTES ((size_t)256 << 20) // pages of segments whose keys are of several versions

static void forget_answer(struct rescore *r)
{
    trace_done(&r->trace);
    free(r->ops);
    free(r->digests);
    r->ops = NULL;
    r->digests = NULL;
    r->error.text[0] = 0;
}

void rescore_done(struct rescore *r)
{
    forget_answer(r);
    train_close(r->train);
    weights_close(r->w);
    *r = (struct rescore){0};
}

// ---- weights and activations ------------------------------------------------------------------------------------------

static enum status load_file(struct rescore *r, struct weights *w, int64_t version, const char *path,
                             const char *hash, struct error *err)
{
    if (*hash && r->version == version && strcmp(r->hash, hash) == 0)
        return STATUS_OK;
    if (!*path || !file_exists(path))
        return error_set(err, STATUS_NOTFOUND, "weights %lld are gone", (long long)version);
    r->hash[0] = 0;
    enum status rc = weights_load(w, path, *hash ? hash : NULL, err);
    if (rc == STATUS_NOTFOUND && file_exists(path))
        rc = err->status = STATUS_CORRUPT; // there, but not what it should be
    if (rc)
        return rc;
    r->version = version;
    snprintf(r->hash, sizeof r->hash, "%s", hash);
    return STATUS_OK;
}

struct shelf {
    struct rescore *rescore;
    const struct msg_check *m;
};

static enum status load_version(void *ctx, struct weights *w, int64_t version, struct error *err)
{
    const struct shelf *s = ctx;
    for (int32_t i = 0; i < s->m->n_weights; i++) {
        const struct msg_weights *f = &s->m->weights[i];
        if (f->version == version)
            return load_file(s->rescore, w, version, f->path, f->hash, err);
    }
    return error_set(err, STATUS_NOTFOUND, "nobody says where weights %lld are", (long long)version);
}

static enum dtype kv_dtype_of(const struct trainer *t, enum dtype weights)
{
    return kv_dtype_choose(run_kv_choice(t->config), weights);
}

// The trainer's own activations serve where they are of the rollout's dtypes: literally the training pass.
static bool own_serve(const struct trainer *t)
{
    enum dtype theirs = trainer_dtype(t->config), rollout = rollout_dtype(t->config);
    return theirs == rollout && kv_dtype_of(t, theirs) == kv_dtype_of(t, rollout);
}

static enum status reserve(struct rescore *r, struct trainer *t, int32_t rows, struct train **ret,
                           int32_t *ret_rows, struct error *err)
{
    enum dtype dtype = rollout_dtype(t->config);
    enum status rc = STATUS_OK;
    if (!r->w)
        rc = weights_open(t->device, &t->model, &t->layout, dtype, false, &r->w, err);
    if (!rc && own_serve(t)) {
        rc = trainer_reserve(t, rows, err);
        *ret = t->train;
        *ret_rows = t->train_rows;
        return rc;
    }
    if (!rc && rows > r->train_rows) {
        train_close(r->train);
        r->train = NULL;
        r->train_rows = 0;
        rows = rows > ROWS_MIN ? rows : ROWS_MIN;
        rc = train_open(t->device, &t->model, &t->layout, dtype, kv_dtype_of(t, dtype), rows, true, &r->train,
                        err);
        r->train_rows = rc ? 0 : rows;
    }
    *ret = r->train;
    *ret_rows = r->train_rows;
    return rc ? error_prefix(err, "scoring segments again") : STATUS_OK;
}

// ---- CHECK ------------------------------------------------------------------------------------------------------------

struct batch_of_segments {
    struct replay_segment *segments;
    struct replay_event *events;
    float *rescored;
    int32_t longest; // in rows
};

static void segments_init(struct batch_of_segments *b, const struct msg_check *m)
{
    int64_t token = 0;
    int32_t event = 0;
    *b = (struct batch_of_segments){
        .segments = mem_must((size_t)m->n_segments, sizeof *b->segments),
        .events = mem_must((size_t)m->n_kv + 1, sizeof *b->events),
        .rescored = mem_must((size_t)m->n_tokens, sizeof *b->rescored),
        .longest = 1,
    };
    for (int32_t i = 0; i < m->n_kv; i++)
        b->events[i] = (struct replay_event){m->kv[i].at_token, m->kv[i].from, m->kv[i].to, m->kv[i].version};
    for (int32_t i = 0; i < m->n_segments; i++) {
        const struct msg_check_segment *s = &m->segments[i];
        b->segments[i] = (struct replay_segment){.n = s->n_tokens,
                                                 .ids = m->ids + token,
                                                 .mask = m->mask + token,
                                                 .logprobs = m->logprobs + token,
                                                 .versions = m->versions + token,
                                                 .temperatures = m->temperatures + token,
                                                 .n_events = s->n_kv,
                                                 .events = b->events + event,
                                                 .rescored = b->rescored + token};
        b->longest = s->n_tokens - 1 > b->longest ? s->n_tokens - 1 : b->longest;
        token += s->n_tokens;
        event += s->n_kv;
    }
}

static void segments_done(struct batch_of_segments *b)
{
    free(b->segments);
    free(b->events);
    free(b->rescored);
}

static void answer_check(struct rescore *r, const struct msg_check *m, const struct batch_of_segments *b,
                         struct msg_check_done *ret)
{
    struct replay_summary s;
    replay_summarize(m->n_segments, b->segments, &s);
    r->error.text[0] = 0; // weights that are gone are counted, not complained of
    ret->compared = s.compared;
    ret->skipped = s.no_weights + s.broken;
    ret->crossing = s.crossing;
    ret->tokens = s.tokens;
    ret->tokens_skipped = s.tokens_skipped;
    ret->max_abs_diff = s.max_abs_diff;
    if (s.broken > 0) {
        const struct msg_check_segment *f = &m->segments[s.first_broken];
        error_set(&r->error, STATUS_CORRUPT,
                  "%d segments have a history that contradicts itself or tokens that cannot be scored, the "
                  "first is "
                  "trajectory %llu attempt %u segment %u",
                  s.broken, (unsigned long long)f->trajectory, f->attempt, f->segment);
    }
    if (s.segment < 0)
        return;
    const struct msg_check_segment *at = &m->segments[s.segment];
    const struct replay_segment *seg = &b->segments[s.segment];
    ret->differs = true;
    ret->trajectory = at->trajectory;
    ret->attempt = at->attempt;
    ret->segment = at->segment;
    ret->position = s.position;
    ret->version = seg->versions[s.position];
    ret->recorded = seg->logprobs[s.position];
    ret->rescored = seg->rescored[s.position];
}

enum status rescore_check(struct rescore *r, struct trainer *t, const struct msg_check *m,
                          struct msg_check_done *ret, struct error *err)
{
    struct batch_of_segments b;
    struct shelf shelf = {r, m};
    struct replay p = {.d = t->device,
                       .kv_dtype = kv_dtype_of(t, rollout_dtype(t->config)),
                       .kv_bytes = KV_BYTES,
                       .cancel = &t->cancel,
                       .load = load_version,
                       .ctx = &shelf};
    forget_answer(r);
    *ret = (struct msg_check_done){.epoch = m->epoch, .id = m->id, .error = r->error.text};
    segments_init(&b, m);
    int32_t rows = b.longest < t->model.max_position ? b.longest : (int32_t)t->model.max_position;
    enum status rc = reserve(r, t, rows, &p.train, &p.train_rows, &r->error);
    p.w = r->w;
    if (!rc)
        rc = replay_run(&p, m->n_segments, b.segments, &r->error);
    if (!rc)
        answer_check(r, m, &b, ret);
    segments_done(&b);
    if (rc == STATUS_CANCELED)
        return error_set(err, rc, "%s", r->error.text);
    return STATUS_OK;
}

// ---- TRACE ------------------------------------------------------------------------------------------------------------

static enum status make_trace(struct rescore *r, struct trainer *t, const struct msg_trace *m,
                              struct error *err)
{
    struct train *train = NULL;
    int32_t rows = 0;
    for (int32_t i = 0; i < m->n_ids; i++)
        if (m->ids[i] >= t->model.vocab)
            return error_set(err, STATUS_INVALID, "token %d is not in the vocabulary of %lld", m->ids[i],
                             (long long)t->model.vocab);
    if (m->n_ids - 1 > t->model.max_position)
        return error_set(err, STATUS_RANGE, "%d tokens: the model has %lld positions", m->n_ids,
                         (long long)t->model.max_position);
    enum status rc = reserve(r, t, m->n_ids - 1, &train, &rows, err);
    if (!rc)
        rc = load_file(r, r->w, m->version, m->path, m->hash, err);
    if (!rc)
        trace_train(train, r->w, m->n_ids, m->ids, &r->trace);
    return rc;
}

void rescore_trace(struct rescore *r, struct trainer *t, const struct msg_trace *m,
                   struct msg_trace_done *ret)
{
    forget_answer(r);
    *ret = (struct msg_trace_done){
        .epoch = m->epoch, .id = m->id, .version = m->version, .error = r->error.text};
    if (make_trace(r, t, m, &r->error))
        return;
    size_t n = (size_t)r->trace.n_ops;
    r->ops = mem_must(n, sizeof *r->ops);
    r->digests = mem_must(n, sizeof *r->digests);
    for (size_t i = 0; i < n; i++) {
        const struct trace_op *op = &r->trace.ops[i];
        r->ops[i] = (struct msg_trace_op){op->layer, op->nth, op->block, op->op};
        r->digests[i] = op->digest;
    }
    ret->ok = true;
    ret->n_ops = r->trace.n_ops;
    ret->ops = r->ops;
    ret->digests = r->digests;
    ret->n_logprobs = r->trace.n;
    ret->logprobs = r->trace.logprobs;
}
