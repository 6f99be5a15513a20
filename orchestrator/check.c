// The drift gate; see check.h for states and invariants. Runs on the loop's thread.
#include "orchestrator/check.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/log.h"
#include "base/rng.h"
#include "orchestrator/orch.h"
#include "orchestrator/recall.h"

#define CHECK_TRIES  3 // CHECKs of one step, when trainers are lost over them
#define PROBE_TOKENS 192

static double gate_of(const struct orch *o)
{
    return o->cfg->check.numerics == RUN_NUMERICS_RELAXED ? o->cfg->check.band : 0;
}

static bool is_rl(const struct orch *o, int64_t step)
{
    for (int i = 0; i < o->cfg->n_stages; i++)
        if (step < stage_first_step(o, i + 1))
            return o->cfg->stages[i].kind == RUN_STAGE_RL;
    return false;
}

static void due(struct orch *o, enum parity_kind kind, int64_t step)
{
    struct check *c = &o->check;
    c->state = CHECK_DUE;
    c->kind = kind;
    c->step = step;
    c->tries = 0;
    c->loaded = false;
}

enum status check_open(struct orch *o, struct error *err)
{
    struct check *c = &o->check;
    arena_init(&c->arena, 0);
    trace_open(&c->trace);
    c->next_id = (uint64_t)o->epoch << 32; // answers to whom we follow are not ours
    enum status rc = ledger_parity_totals_read(o->ledger, &c->totals, err);
    if (!rc && o->cfg->check.every > 0 && o->committed_steps > 0 && is_rl(o, o->committed_steps - 1))
        due(o, PARITY_RESUME, o->committed_steps - 1);
    return rc;
}

void check_close(struct orch *o)
{
    trace_close(&o->check.trace);
    arena_done(&o->check.arena);
}

bool check_busy(const struct orch *o)
{
    return o->check.state != CHECK_IDLE;
}

bool check_failing(const struct orch *o)
{
    return o->check.state == CHECK_FAILING;
}

// ---- sending and the answer ---------------------------------------------------------------------------------------------------

static enum status load(struct orch *o, struct error *err)
{
    struct check *c = &o->check;
    const struct recall r = {o->ledger, o->cfg->seed, o->cfg->check.share, c->step};
    if (c->loaded)
        return STATUS_OK;
    arena_reset(&c->arena);
    enum status rc = recall_step(&r, &c->arena, &c->message, err);
    c->loaded = !rc;
    return rc;
}

static void finish(struct orch *o)
{
    o->check.state = CHECK_IDLE;
    o->check.loaded = false;
    arena_reset(&o->check.arena);
    orch_kick(o);
}

static bool record(struct orch *o, const struct ledger_parity *p)
{
    struct error err;
    if (journal_begin(o, &err) || ledger_parity_add(o->ledger, p, &err)) {
        orch_fail(o, &err);
        return false;
    }
    return journal_flush(o, true);
}

// Nothing was compared: said and recorded, no reason to stop.
static void without_outcome(struct orch *o, int32_t skipped, const char *why)
{
    const struct ledger_parity row = {.kind = o->check.kind,
                                      .step = o->check.step,
                                      .version = -1,
                                      .peer = "",
                                      .skipped = skipped,
                                      .max_abs_diff = NAN,
                                      .gate = gate_of(o),
                                      .ok = true,
                                      .trajectory = -1,
                                      .detail = why};
    orch_warn(o, "check_skipped", "step=%" PRId64 " cause=\"%s\"", o->check.step, why);
    o->check.state = CHECK_IDLE; // before anything that waits for the commit can come back here
    if (record(o, &row)) {
        o->check.totals.checks++;
        o->check.totals.skipped += skipped;
        finish(o);
    }
}

void check_on_commit(struct orch *o, int64_t step, bool applied)
{
    struct check *c = &o->check;
    const struct run_stage *stage = orch_stage(o);
    struct error err;
    int64_t trained, at = step - stage_first_step(o, o->stage.index);
    if (!stage || stage->kind != RUN_STAGE_RL || !applied)
        return;
    if (ledger_step_trained_tokens(o->ledger, step, &trained, &err)) {
        orch_fail(o, &err);
        return;
    }
    c->totals.tokens_trained += trained;
    if (o->cfg->check.every <= 0 || at % o->cfg->check.every != 0)
        return;
    if (c->state == CHECK_IDLE)
        due(o, PARITY_STEP, step);
    else
        orch_warn(o, "check_skipped", "step=%" PRId64 " cause=\"that of step %" PRId64 " is under way\"",
                  step, c->step);
}

bool check_send(struct orch *o)
{
    struct check *c = &o->check;
    struct peer *p = peers_trainer(o);
    struct error err;
    if (c->state != CHECK_DUE)
        return true;
    if (!p || o->trainer.state != LINK_READY)
        return false;
    if (c->tries == CHECK_TRIES) {
        without_outcome(o, 0, "the trainer was lost over it each time");
        return !o->failed;
    }
    if (load(o, &err)) {
        orch_fail(o, &err);
        return false;
    }
    if (c->message.n_segments == 0) {
        without_outcome(o, 0, "its first trajectory is longer than a message holds");
        return !o->failed;
    }
    struct msg m = {.type = MSG_CHECK, .check = c->message};
    m.check.epoch = o->trainer.epoch;
    m.check.id = c->next_id + 1;
    if (!peers_send(o, p, &m))
        return false;
    c->id = ++c->next_id;
    c->tries++;
    c->state = CHECK_SENT;
    c->loaded = false; // read again when it is to be sent again
    trainer_lease(o);
    return true;
}

void check_on_trainer(struct orch *o)
{
    if (o->check.state == CHECK_SENT)
        o->check.state = CHECK_DUE;
    trace_on_trainer(o);
}

static void passed(struct orch *o, const struct msg_check_done *m, const struct ledger_parity *row)
{
    struct check *c = &o->check;
    struct error err;
    if (!record(o, row))
        return;
    if (c->kind == PARITY_RESUME) { // the step may have been checked before
        if (ledger_parity_totals_read(o->ledger, &c->totals, &err)) {
            orch_fail(o, &err);
            return;
        }
    } else {
        c->totals.checks++;
        c->totals.segments += m->compared;
        c->totals.skipped += m->skipped;
        c->totals.crossing += m->crossing;
        c->totals.tokens += m->tokens;
        c->totals.max_abs_diff = fmax(c->totals.max_abs_diff, row->max_abs_diff);
    }
    log_event(
        LOG_INFO, "parity",
        "step=%" PRId64 " kind=%s segments=%d crossing=%d skipped=%d tokens=%" PRId64 " max_abs_diff=%.9g",
        c->step, parity_kind_name(c->kind), m->compared, m->crossing, m->skipped, m->tokens, m->max_abs_diff);
    metrics_parity(o, c->step, m);
    finish(o);
}

// No log-probability differs, but some could not be scored: the ledger and the engine do not agree on what was computed.
static void odd_history(struct orch *o, const struct msg_check_done *m)
{
    struct error err;
    o->check.state = CHECK_IDLE;
    if (!record(o, &o->check.failed))
        return;
    error_set(&err, STATUS_CORRUPT, "parity: step %lld: %s; `ooze show RUN trajectory N` shows it",
              (long long)o->check.step, m->error);
    orch_fail(o, &err);
}

void check_on_done(struct orch *o, const struct msg_check_done *m)
{
    struct check *c = &o->check;
    if (c->state != CHECK_SENT || m->id != c->id || m->epoch != o->trainer.epoch)
        return;
    trainer_lease(o); // what stood behind the check begins now
    if (m->error[0] && m->compared + m->skipped == 0) {
        without_outcome(o, 0, m->error);
        return;
    }
    // Beside an outcome, the error names a recorded history that contradicts itself: no better than a bit that differs.
    const bool odd = m->error[0] && o->cfg->check.numerics == RUN_NUMERICS_STRICT;
    const bool within = m->max_abs_diff <= gate_of(o), ok = within && !odd;
    if (m->error[0])
        orch_warn(o, "parity_history", "step=%" PRId64 " cause=\"%s\"", c->step, m->error);
    c->failed = (struct ledger_parity){.kind = c->kind,
                                       .step = c->step,
                                       .version = -1,
                                       .peer = "",
                                       .segments = m->compared,
                                       .skipped = m->skipped,
                                       .crossing = m->crossing,
                                       .tokens = m->tokens,
                                       .max_abs_diff = m->compared ? m->max_abs_diff : NAN,
                                       .gate = gate_of(o),
                                       .ok = ok,
                                       .trajectory = m->differs ? (int64_t)m->trajectory : -1,
                                       .attempt = (int32_t)m->attempt,
                                       .segment = (int32_t)m->segment,
                                       .position = m->position,
                                       .recorded = (double)m->recorded,
                                       .rescored = (double)m->rescored,
                                       .detail = m->error[0]   ? m->error
                                                 : m->compared ? ""
                                                               : "the weights are gone"};
    if (ok) {
        passed(o, m, &c->failed);
        return;
    }
    if (within) {
        odd_history(o, m);
        return;
    }
    c->failed_version = m->version;
    c->state = CHECK_FAILING;
    c->engines[0] = c->reason[0] = 0;
    c->n_asked = 0;
    c->trace.active = false; // a probe may wait
    log_event(LOG_ERROR, "parity", "step=%" PRId64 " max_abs_diff=%.9g trajectory=%" PRIu64 " position=%d",
              c->step, m->max_abs_diff, m->trajectory, m->position);
    check_tick(o);
}

// ---- the gate fails: where do trainer and engines part? ------------------------------------------------------------------------

// The failing segment up to the failing token.
static enum status failing_ids(struct orch *o, int32_t *ids, int32_t *ret_n, struct error *err)
{
    const struct ledger_parity *f = &o->check.failed;
    struct arena a;
    struct ledger_sequence *q;
    int32_t n;
    arena_init(&a, 0);
    enum status rc = ledger_unit_tokens(o->ledger, f->trajectory, f->attempt, &a, &q, &n, err);
    if (!rc && (f->segment >= n || f->position >= q[f->segment].n))
        rc = error_set(err, STATUS_PROTOCOL, "CHECK_DONE names a token that was not asked for");
    if (!rc) {
        int32_t len = f->position + 1 < 2 ? 2 : f->position + 1;
        len = len > MSG_TRACE_IDS ? MSG_TRACE_IDS : len > q[f->segment].n ? q[f->segment].n : len;
        memcpy(ids, q[f->segment].ids, (size_t)len * sizeof *ids);
        *ret_n = len;
    }
    arena_done(&a);
    return rc;
}

static struct peer *next_engine(struct orch *o)
{
    struct check *c = &o->check;
    for (int i = 0; i < PEERS_MAX && c->n_asked < PEERS_MAX; i++) {
        struct peer *p = &o->peers.v[i];
        bool asked = false;
        for (int k = 0; k < c->n_asked; k++)
            asked = asked || c->asked[k] == p->serial;
        if (p->role == ROLE_ENGINE && p->up && p->version >= 0 && !asked)
            return p;
    }
    return NULL;
}

void check_conclude(struct orch *o)
{
    struct check *c = &o->check;
    struct ledger_parity *f = &c->failed;
    char detail[1024];
    struct error err;
    if (c->state != CHECK_FAILING || o->failed)
        return;
    if (c->reason[0])
        snprintf(detail, sizeof detail, "%s", c->reason);
    else if (c->engines[0])
        snprintf(
            detail, sizeof detail,
            "a forward pass over the same tokens agrees now, op by op, between the trainer and %s: the KV "
            "history or a passing fault is to blame",
            c->engines);
    else
        snprintf(detail, sizeof detail, "no engine could be compared with the trainer");
    f->detail = detail;
    if (!record(o, f))
        return;
    error_set(&err, STATUS_NUMERIC,
              "parity: trajectory %lld attempt %d segment %d token %d, sampled by weights %lld: recorded "
              "log-probability %.9g, scored again %.9g (largest difference %.9g, allowed %.9g); %s",
              (long long)f->trajectory, f->attempt, f->segment, f->position, (long long)c->failed_version,
              f->recorded, f->rescored, f->max_abs_diff, f->gate, detail);
    orch_fail(o, &err);
}

static void failing_tick(struct orch *o)
{
    struct check *c = &o->check;
    struct peer *p = next_engine(o);
    struct error err;
    int32_t ids[MSG_TRACE_IDS], n = 0;
    if (c->trace.active)
        return;
    if (c->reason[0] || !p || c->failed.trajectory < 0 || !peers_trainer(o)) {
        check_conclude(o);
        return;
    }
    if (failing_ids(o, ids, &n, &err)) {
        orch_fail(o, &err);
        return;
    }
    c->asked[c->n_asked++] = p->serial;
    trace_start(o, p, ids, n);
}

static void on_failing_trace(struct orch *o, const struct trace_result *r)
{
    struct check *c = &o->check;
    char place[256];
    size_t used = strlen(c->engines);
    if (r->error[0]) {
        log_event(LOG_WARN, "trace_failed", "engine=%s cause=\"%s\"", r->engine, r->error);
    } else if (r->parted) {
        trace_place(r, place, sizeof place);
        snprintf(c->reason, sizeof c->reason, "the trainer and %s first part in %s (weights %lld)", r->engine,
                 place, (long long)r->version);
    } else {
        snprintf(c->engines + used, sizeof c->engines - used, "%s%s", used ? ", " : "", r->engine);
    }
    check_tick(o);
}

// ---- probes ---------------------------------------------------------------------------------------------------------------------

static int32_t probe_tokens(const struct orch *o)
{
    int64_t n = PROBE_TOKENS;
    for (int i = 0; i < o->cfg->n_stages; i++) {
        const struct run_stage *s = &o->cfg->stages[i];
        int64_t longest = s->kind == RUN_STAGE_RL ? s->max_context : s->max_tokens;
        n = longest < n ? longest : n;
    }
    return (int32_t)(n < 2 ? 2 : n);
}

static void probe_next(struct orch *o)
{
    struct peer *p = NULL;
    for (int i = 0; i < PEERS_MAX && !p; i++) {
        struct peer *x = &o->peers.v[i];
        if (x->role == ROLE_ENGINE && x->up && x->version >= 0 && !x->probed)
            p = x;
    }
    if (!p || o->trainer.state != LINK_READY)
        return;
    int32_t ids[PROBE_TOKENS], n = probe_tokens(o);
    struct rng r;
    rng_init(&r, o->cfg->seed, hash64("parity probe", 12));
    for (int32_t i = 0; i < n; i++)
        ids[i] = (int32_t)rng_below(&r, (uint64_t)tokenizer_vocab_size(o->tokenizer));
    p->probed = true;
    trace_start(o, p, ids, n);
}

static void on_probe(struct orch *o, const struct trace_result *r)
{
    char place[256], detail[768] = "";
    struct error err;
    struct ledger_parity row = {.kind = PARITY_PROBE,
                                .step = o->committed_steps,
                                .version = r->version,
                                .peer = r->engine,
                                .tokens = o->check.trace.n_ids,
                                .ops = r->n_ops,
                                .max_abs_diff = r->max_abs_diff,
                                .gate = gate_of(o),
                                .trajectory = -1,
                                .detail = detail};
    if (r->error[0]) {
        orch_warn(o, "probe_failed", "engine=%s cause=\"%s\"", r->engine, r->error);
        return;
    }
    bool strict = o->cfg->check.numerics == RUN_NUMERICS_STRICT;
    row.ok = r->max_abs_diff <= row.gate && !(strict && r->parted);
    if (!row.ok) {
        if (r->parted)
            trace_place(r, place, sizeof place);
        else
            snprintf(place, sizeof place, "the log-probabilities");
        snprintf(detail, sizeof detail,
                 "the trainer and %s first part in %s (weights %lld, log-probabilities up to %.9g apart, "
                 "allowed %.9g)",
                 r->engine, place, (long long)r->version, r->max_abs_diff, row.gate);
    }
    if (!record(o, &row))
        return;
    o->check.totals.probes++;
    if (!row.ok) {
        error_set(&err, STATUS_NUMERIC, "parity: over the same random tokens %s", detail);
        orch_fail(o, &err);
        return;
    }
    log_event(LOG_INFO, "parity_probe", "engine=%s version=%lld tokens=%d ops=%d agree=1 max_abs_diff=%.9g",
              r->engine, (long long)r->version, o->check.trace.n_ids, r->n_ops, r->max_abs_diff);
}

void check_on_trace(struct orch *o, const struct trace_result *r)
{
    if (o->check.state == CHECK_FAILING)
        on_failing_trace(o, r);
    else
        on_probe(o, r);
}

void check_tick(struct orch *o)
{
    struct check *c = &o->check;
    if (o->failed || o->finished || o->cfg->check.every <= 0)
        return;
    trace_tick(o);
    if (c->state == CHECK_FAILING && !o->failed)
        failing_tick(o);
    else if (!c->trace.active && !o->failed && !o->stopping)
        probe_next(o);
}

json_t *check_status(const struct orch *o)
{
    static const char *const names[] = {"idle", "due", "under way", "failing"};
    const struct ledger_parity_totals *t = &o->check.totals;
    double coverage = t->tokens_trained > 0 ? (double)t->tokens / (double)t->tokens_trained : 0;
    return json_pack("{s:s, s:f, s:f, s:I, s:I, s:I, s:I, s:I}", "state", names[o->check.state],
                     "max_abs_diff", t->max_abs_diff, "coverage", coverage, "trajectories",
                     (json_int_t)t->segments, "refit_crossings", (json_int_t)t->crossing, "skipped",
                     (json_int_t)t->skipped, "checks", (json_int_t)t->checks, "probes",
                     (json_int_t)t->probes);
}
