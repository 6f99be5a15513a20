// Evaluation; see eval.h for the invariants. Runs on the loop's thread.
#include "orchestrator/eval.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"
#include "orchestrator/orch.h"
#include "orchestrator/sampler.h"

#define IN_FLIGHT_MAX 4096

static void label_key(const char *label, char *ret, size_t n)
{
    snprintf(ret, n, "eval/%s", label);
}

bool eval_is_done(struct orch *o, const char *label)
{
    char key[128], *text = NULL;
    struct error err;
    label_key(label, key, sizeof key);
    bool known = ledger_meta_get(o->ledger, key, &text, &err) == STATUS_OK;
    free(text);
    return known;
}

// Limits and sampling come from the next reinforcement stage, so that all evaluations of a run are alike.
static const struct run_stage *reference_stage(const struct orch *o)
{
    const struct run_config *c = o->cfg;
    int from = o->stage.index < c->n_stages ? o->stage.index : 0;
    for (int i = from; i < c->n_stages; i++)
        if (c->stages[i].kind == RUN_STAGE_RL)
            return &c->stages[i];
    for (int i = from; i >= 0; i--)
        if (c->stages[i].kind == RUN_STAGE_RL)
            return &c->stages[i];
    return &c->stages[from];
}

static void item_start(struct orch *o, int32_t i)
{
    struct eval_item *it = &o->eval.items[i];
    uint64_t key[3] = {(uint64_t)it->task->id, (uint64_t)it->index, (uint64_t)it->sample};
    struct episode_spec spec = {
        .task = it->task,
        .member = i,
        .eval = true,
        .trajectory = hash64(key, sizeof key) | (uint64_t)1 << 63, // never a training trajectory's number
        .attempt = it->attempt,
        .index = it->index,
        .group_id = 0,
        .seed = sampler_seed(o, it->task, it->index, 0, true),
        .stage = reference_stage(o),
        .temperature = o->cfg->eval.temperature,
        .min_version = o->eval.version,
    };
    it->ep = episode_start(o, &spec);
}

static void add_items(struct orch *o, struct task *t)
{
    struct eval *e = &o->eval;
    int64_t n = o->cfg->eval.n;
    int32_t samples = o->cfg->eval.samples > 0 ? (int32_t)o->cfg->eval.samples : 1;
    if (t->n_eval >= 0 && n > t->n_eval)
        n = t->n_eval;
    e->items = mem_grow(e->items, (size_t)(e->n + n * samples + 1), sizeof *e->items);
    for (int64_t i = 0; i < n; i++)
        for (int32_t s = 0; s < samples; s++)
            e->items[e->n++] = (struct eval_item){.task = t, .index = i, .sample = s};
}

void eval_start(struct orch *o, const char *label)
{
    struct eval *e = &o->eval;
    if (e->running)
        return;
    free(e->items);
    e->items = NULL;
    e->n = e->next = e->n_done = e->n_failed = 0;
    e->running = true;
    e->round++;
    e->version = o->weights.version;
    e->stage = o->stage.index;
    e->started_ms = orch_now(o);
    snprintf(e->label, sizeof e->label, "%s", label);
    // A task that is down now is waited for: its episodes fail when it stays down.
    for (int i = 0; i < o->tasks.n; i++)
        if (o->tasks.v[i]->state != TASK_REMOVED && o->tasks.v[i]->ever_up)
            add_items(o, o->tasks.v[i]);
    log_event(LOG_INFO, "eval", "label=%s version=%" PRId64 " episodes=%d", label, e->version, e->n);
    orch_kick(o);
}

struct eval_sums {
    bool asked;
    int n, n_success, prompts;
    double reward, pass;
};

// Items of a task stand prompt by prompt, sample by sample.
static struct eval_sums task_sums(const struct eval *e, const struct task *t)
{
    struct eval_sums s = {0};
    for (int32_t i = 0; i < e->n;) {
        int n = 0, right = 0, k = 0;
        int32_t j = i;
        for (; j < e->n && e->items[j].task == e->items[i].task && e->items[j].index == e->items[i].index;
             j++) {
            k++;
            s.asked |= e->items[j].task == t;
            if (e->items[j].failed || e->items[j].task != t)
                continue;
            n++;
            right += e->items[j].result.success;
            s.reward += e->items[j].result.reward;
        }
        s.n += n;
        s.n_success += right;
        if (n > 0) {
            s.prompts++;
            s.pass += eval_pass_at(n, right, k < n ? k : n);
        }
        i = j;
    }
    return s;
}

double eval_pass_at(int n, int c, int k)
{
    if (n - c < k)
        return 1;
    double miss = 1;
    for (int i = n - c + 1; i <= n; i++)
        miss *= 1 - (double)k / i;
    return 1 - miss;
}

static enum status rows_write(struct orch *o, struct error *err)
{
    struct eval *e = &o->eval;
    char key[128], value[32];
    enum status rc = journal_begin(o, err);
    for (int32_t i = 0; i < e->n && !rc; i++) {
        const struct eval_item *it = &e->items[i];
        if (it->failed)
            continue;
        struct ledger_eval row = {
            .version = e->version,
            .stage = e->stage,
            .label = e->label,
            .task = it->task->id,
            .prompt_index = it->index,
            .sample = it->sample,
            .reward = it->result.reward,
            .success = it->result.success,
            .n_tokens = it->result.n_tokens,
        };
        rc = ledger_eval_add(o->ledger, &row, err);
    }
    label_key(e->label, key, sizeof key);
    snprintf(value, sizeof value, "%" PRId64, e->version);
    return rc ? rc : ledger_meta_set(o->ledger, key, value, err);
}

static void finish(struct orch *o)
{
    struct eval *e = &o->eval;
    struct error err;
    struct buf line = {0};
    double sum = 0;
    int n_tasks = 0, n_asked = 0;
    if (rows_write(o, &err) || !journal_flush(o, true)) {
        if (!o->failed)
            orch_fail(o, &err);
        return;
    }
    e->running = false;
    for (int i = 0; i < o->tasks.n; i++) {
        struct task *t = o->tasks.v[i];
        struct eval_sums s = task_sums(e, t);
        n_asked += s.asked && t->state != TASK_REMOVED;
        if (s.n == 0)
            continue;
        double mean = s.reward / s.n, success = (double)s.n_success / s.n;
        buf_printf(&line, ",\"eval/%s/mean\":%.9g,\"eval/%s/success\":%.9g", t->cfg.name, mean, t->cfg.name,
                   success);
        buf_printf(&line, ",\"eval/%s/pass@%d\":%.9g", t->cfg.name, (int)o->cfg->eval.samples,
                   s.pass / s.prompts);
        log_event(LOG_INFO, "eval_result", "label=%s task=%s success=%.4f mean=%.4f n=%d", e->label,
                  t->cfg.name, success, mean, s.n);
        sum += mean;
        n_tasks++;
    }
    e->last_version = e->version;
    // keep_best compares like with like: not a mean that lacks a task.
    e->last_mean = n_tasks > 0 && n_tasks >= n_asked ? sum / n_tasks : NAN;
    if (n_tasks) {
        metrics_eval(o, e, line.data);
        if (isfinite(e->last_mean))
            trainer_note_eval(o, e->version, e->last_mean);
    }
    if (e->n_failed)
        orch_warn(o, "eval_incomplete", "label=%s failed=%d of=%d", e->label, e->n_failed, e->n);
    buf_done(&line);
    orch_kick(o);
}

double eval_mean_of(const struct orch *o, int64_t version)
{
    return o->eval.last_version == version && o->eval.n_done > 0 ? o->eval.last_mean : NAN;
}

static void item_ended(struct orch *o, int32_t i)
{
    o->eval.items[i].done = true;
    o->eval.items[i].ep = NULL;
    o->eval.n_done++;
    orch_kick(o);
}

void eval_on_result(struct orch *o, int32_t item, const struct eval_result *r)
{
    o->eval.items[item].result = *r;
    item_ended(o, item);
}

void eval_on_failure(struct orch *o, int32_t item, enum drop_reason reason, const char *detail, bool again)
{
    struct eval_item *it = &o->eval.items[item];
    it->ep = NULL;
    // No room for an answer is a wrong answer, not a missing one.
    if (reason == DROP_OVER_BUDGET) {
        it->result = (struct eval_result){.reward = it->task->reward_min};
        item_ended(o, item);
        return;
    }
    if (again && it->task->state != TASK_REMOVED) {
        it->attempt++;
        item_start(o, item);
        return;
    }
    log_event(LOG_WARN, "eval_episode_failed", "task=%s index=%" PRId64 " reason=%s cause=\"%s\"",
              it->task->cfg.name, it->index, drop_reason_name(reason), detail);
    it->failed = true;
    o->eval.n_failed++;
    item_ended(o, item);
}

void eval_task_removed(struct orch *o, struct task *t)
{
    struct eval *e = &o->eval;
    if (!e->running)
        return;
    for (int32_t i = 0; i < e->n; i++) {
        struct eval_item *it = &e->items[i];
        if (it->task != t || it->done)
            continue;
        struct episode *ep = it->ep;
        it->failed = true;
        e->n_failed++;
        item_ended(o, i);
        episode_cancel(o, ep);
    }
}

void eval_tick(struct orch *o)
{
    struct eval *e = &o->eval;
    if (!e->running)
        return;
    while (e->next < e->n && e->next - e->n_done < IN_FLIGHT_MAX) {
        if (!e->items[e->next].done)
            item_start(o, e->next);
        e->next++;
    }
    if (e->n_done == e->n)
        finish(o);
}

void eval_close(struct orch *o)
{
    free(o->eval.items);
    o->eval = (struct eval){0};
}
