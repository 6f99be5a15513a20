// Comparisons of trainer and engine op by op; see trace.h for states and invariants. Runs on the loop's thread.
#include "orchestrator/trace.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/log.h"
#include "orchestrator/orch.h"

#define TRACE_TRIES 50 // versions that went by before both could be asked

void trace_open(struct trace *t)
{
    arena_init(&t->trainer.arena, 0);
    arena_init(&t->of_engine.arena, 0);
}

void trace_close(struct trace *t)
{
    arena_done(&t->trainer.arena);
    arena_done(&t->of_engine.arena);
}

static void forget(struct trace_answer *a)
{
    a->id = 0;
    a->have = false;
    arena_reset(&a->arena);
}

void trace_start(struct orch *o, const struct peer *engine, const int32_t *ids, int32_t n)
{
    struct trace *t = &o->check.trace;
    t->active = true;
    t->engine = engine->serial;
    t->version = -1;
    t->deadline_ms = orch_now(o) + o->cfg->orchestrator.lease_ms;
    t->tries = 0;
    t->why[0] = 0;
    t->n_ids = n;
    memcpy(t->ids, ids, (size_t)n * sizeof *ids);
    forget(&t->trainer);
    forget(&t->of_engine);
    trace_tick(o);
}

static void done(struct orch *o, const struct trace_result *r)
{
    o->check.trace.active = false;
    check_on_trace(o, r);
}

static void give_up(struct orch *o, const char *engine, const char *why)
{
    const struct trace_result r = {
        .error = why, .engine = engine, .version = o->check.trace.version, .max_abs_diff = NAN};
    done(o, &r);
}

static double logprobs_apart(const struct msg_trace_done *a, const struct msg_trace_done *b)
{
    double most = 0;
    if (a->n_logprobs != b->n_logprobs)
        return NAN;
    for (int32_t i = 0; i < a->n_logprobs; i++) {
        double d = fabs((double)a->logprobs[i] - (double)b->logprobs[i]);
        if (isnan(d))
            return NAN;
        most = d > most ? d : most;
    }
    return most;
}

static void compare(struct orch *o, const struct peer *engine)
{
    struct trace *t = &o->check.trace;
    const struct msg_trace_done *ours = &t->trainer.m, *theirs = &t->of_engine.m;
    struct trace_result r = {
        .error = "", .engine = engine->name, .version = t->version, .n_ops = ours->n_ops};
    for (int32_t i = 0; i < ours->n_ops; i++) // what follows the last layer is marked with their number
        r.n_layers = ours->ops[i].layer > r.n_layers ? ours->ops[i].layer : r.n_layers;
    int32_t at = msg_trace_compare(ours, theirs);
    r.parted = at >= 0;
    if (at >= 0)
        r.op = ours->ops[at];
    r.max_abs_diff = logprobs_apart(ours, theirs);
    done(o, &r);
}

// Neither can be asked about this version any more: both again, about the one that the engine has by then.
static void again(struct orch *o, const struct peer *engine, const char *why)
{
    struct trace *t = &o->check.trace;
    snprintf(t->why, sizeof t->why, "%s", why);
    t->version = -1;
    forget(&t->trainer);
    forget(&t->of_engine);
    if (++t->tries >= TRACE_TRIES)
        give_up(o, engine->name, t->why);
}

static bool ask(struct orch *o, struct peer *p, struct trace_answer *a, int64_t epoch,
                const struct ledger_weights_file *f)
{
    struct trace *t = &o->check.trace;
    struct msg m = {.type = MSG_TRACE,
                    .trace = {.epoch = epoch,
                              .id = ++o->check.next_id,
                              .version = t->version,
                              .path = f->path,
                              .hash = f->hash,
                              .n_ids = t->n_ids,
                              .ids = t->ids}};
    if (!peers_send(o, p, &m))
        return false;
    a->id = m.trace.id;
    return true;
}

void trace_tick(struct orch *o)
{
    struct trace *t = &o->check.trace;
    struct ledger_weights_file file, none = {"", ""};
    struct error err;
    if (!t->active || o->failed)
        return;
    struct peer *engine = peers_by_serial(o, t->engine), *trainer = peers_trainer(o);
    if (!engine || !engine->up) {
        give_up(o, engine ? engine->name : "the engine", "the engine went away");
        return;
    }
    if (orch_now(o) > t->deadline_ms) {
        give_up(o, engine->name, t->why[0] ? t->why : "no answer within orchestrator.lease_ms");
        return;
    }
    if (!trainer || o->trainer.state != LINK_READY)
        return;
    if (t->version < 0)
        t->version = engine->version;
    if (t->version < 0 || (t->trainer.id && t->of_engine.id))
        return;
    if (ledger_weights_read(o->ledger, t->version, &file, &err) || !file_exists(file.path)) {
        t->version = -1; // until the engine has a newer one
        return;
    }
    if (!t->trainer.id && !ask(o, trainer, &t->trainer, o->trainer.epoch, &file))
        return;
    if (!t->of_engine.id)
        ask(o, engine, &t->of_engine, 0, &none);
}

void trace_on_trainer(struct orch *o)
{
    struct trace *t = &o->check.trace;
    if (t->active && !t->trainer.have)
        forget(&t->trainer);
}

static bool copy(struct trace_answer *a, const struct msg_trace_done *m)
{
    size_t n = (size_t)m->n_ops;
    struct msg_trace_op *ops = arena_memdup(&a->arena, m->ops, n * sizeof *ops);
    a->m = *m;
    a->m.error = "";
    a->m.ops = ops;
    a->m.digests = arena_memdup(&a->arena, m->digests, n * sizeof *m->digests);
    a->m.logprobs = arena_memdup(&a->arena, m->logprobs, (size_t)m->n_logprobs * sizeof *m->logprobs);
    if ((n && (!ops || !a->m.digests)) || (m->n_logprobs && !a->m.logprobs))
        return false;
    for (size_t i = 0; i < n; i++) {
        ops[i].block = arena_strndup(&a->arena, m->ops[i].block, strlen(m->ops[i].block));
        ops[i].op = arena_strndup(&a->arena, m->ops[i].op, strlen(m->ops[i].op));
        if (!ops[i].block || !ops[i].op)
            return false;
    }
    a->have = true;
    return true;
}

void trace_on_answer(struct orch *o, const struct peer *p, const struct msg_trace_done *m)
{
    struct trace *t = &o->check.trace;
    struct trace_answer *a = p->role == ROLE_TRAINER ? &t->trainer : &t->of_engine;
    struct peer *engine = peers_by_serial(o, t->engine);
    if (!t->active || !engine || !a->id || m->id != a->id || a->have)
        return;
    if (!m->ok) {
        again(o, engine, m->error);
        return;
    }
    if (!copy(a, m)) {
        give_up(o, engine->name, "no memory for a trace");
        return;
    }
    if (t->trainer.have && t->of_engine.have)
        compare(o, engine);
}

void trace_place(const struct trace_result *r, char *ret, size_t n)
{
    char layer[32] = "before the layers", nth[16] = "";
    if (r->op.layer >= r->n_layers)
        snprintf(layer, sizeof layer, "after the layers");
    else if (r->op.layer >= 0)
        snprintf(layer, sizeof layer, "layer %d", r->op.layer);
    if (r->op.nth > 0)
        snprintf(nth, sizeof nth, " (number %d)", r->op.nth + 1);
    snprintf(ret, n, "%s, block %s, op %s%s", layer, r->op.block, r->op.op, nth);
}
