// Stages; see stage.h for the diagram. Runs on the loop's thread.
#include "orchestrator/stage.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "orchestrator/orch.h"

const char *phase_name(enum phase p)
{
    static const char *const names[] = {"starting", "evaluating", "training", "checkpointing", "done"};
    return names[p];
}

int64_t stage_first_step(const struct orch *o, int index)
{
    int64_t n = 0;
    for (int i = 0; i < index; i++)
        n += o->cfg->stages[i].steps;
    return n;
}

int stage_of_committed(const struct orch *o)
{
    int i = 0;
    while (i < o->cfg->n_stages && o->committed_steps >= stage_first_step(o, i + 1))
        i++;
    return i;
}

bool stage_ends_at(const struct orch *o, int64_t step)
{
    for (int i = 1; i <= o->cfg->n_stages; i++)
        if (stage_first_step(o, i) == step)
            return true;
    return false;
}

const struct run_stage *orch_stage(const struct orch *o)
{
    return o->stage.index < o->cfg->n_stages ? &o->cfg->stages[o->stage.index] : NULL;
}

bool stage_training(const struct orch *o)
{
    return o->stage.phase == PHASE_TRAIN && o->stage.entered;
}

static void stage_waits(struct orch *o, const char *what)
{
    int64_t now = orch_now(o);
    if (now - o->stage.said_ms < 10000)
        return;
    o->stage.said_ms = now;
    log_event(LOG_INFO, "waiting", "for=\"%s\" step=%lld", what, (long long)o->committed_steps);
}

static void step_label(int64_t version, char *ret, size_t n)
{
    snprintf(ret, n, "step:%lld", (long long)version);
}

// Entered in the middle, after a restart: an evaluation of eval.every that was cut short is done again while its weights are the newest.
static void eval_again(struct orch *o)
{
    const int64_t first = stage_first_step(o, o->stage.index), every = o->cfg->eval.every;
    const int64_t at = every > 0 ? (o->committed_steps - first) / every * every : 0; // the last that was due
    char label[48];
    step_label(first + at, label, sizeof label);
    if (at <= 0 || !step_evaluates(o, at - 1) || eval_is_done(o, label))
        return;
    if (o->weights.version == first + at && o->committed_steps == first + at)
        eval_start(o, label);
    else
        orch_warn(o, "eval_lost",
                  "label=%s cause=\"it did not end before the restart, and training has gone on\"", label);
}

static void enter(struct orch *o, int index)
{
    struct error err;
    o->stage.index = index;
    o->stage.phase = PHASE_TRAIN;
    const struct run_stage *s = orch_stage(o);
    if (s->kind == RUN_STAGE_SFT && sft_open(o, &err)) {
        orch_fail(o, &err);
        return;
    }
    o->stage.entered = true;
    o->step.idle_since_ms = 0;
    log_event(LOG_INFO, "stage", "name=%s index=%d from_step=%lld of=%lld", s->name, index,
              (long long)o->committed_steps, (long long)(stage_first_step(o, index) + s->steps));
    eval_again(o);
}

static bool eval_due(struct orch *o, const char *label)
{
    return o->cfg->eval.n > 0 && o->tasks.n > 0 && !eval_is_done(o, label);
}

// True when the blocking evaluation is over (or not wanted), false while it runs.
static bool evaluated(struct orch *o, const char *label)
{
    if (!eval_due(o, label))
        return true;
    o->stage.phase = PHASE_EVAL;
    if (o->eval.running)
        return false; // this one, or one of eval.every that ends first
    if (!tasks_all_up(o)) {
        stage_waits(o, "task services");
        return false;
    }
    if (o->weights.version != o->committed_steps || !peers_engines_holding(o, o->committed_steps)) {
        stage_waits(o, "an engine with the stage's weights");
        return false;
    }
    eval_start(o, label);
    return false;
}

// The stage `index` has all its steps: its checkpoint, its evaluation.
static bool ended(struct orch *o, int index)
{
    char label[RUNCONFIG_NAME + 16];
    // After a restart at this very step nothing was entered: groups that were restored belong to the next stage.
    if (o->stage.entered && o->stage.index == index) {
        groups_drop_all(o, DROP_SURPLUS, "the stage is over");
        sft_close(o);
    }
    o->stage.index = index;
    o->stage.entered = false;
    if (o->checkpoint.step != o->committed_steps) {
        o->stage.phase = PHASE_CHECKPOINT;
        stage_waits(o, "the stage's checkpoint");
        return false;
    }
    snprintf(label, sizeof label, "stage:%s", o->cfg->stages[index].name);
    return evaluated(o, label);
}

void stage_advance(struct orch *o)
{
    if (o->failed || o->stage.phase == PHASE_DONE)
        return;
    int current = stage_of_committed(o);
    if (stage_training(o) && o->stage.index == current)
        return;
    if (o->stopping)
        return;
    if (o->weights.version < 0) {
        stage_waits(o, "the trainer's weights");
        return;
    }
    if (o->committed_steps == 0 && (o->cfg->eval.at_start || o->cfg->eval.only) && !evaluated(o, "start"))
        return;
    if (o->cfg->eval.only) {
        o->stage.phase = PHASE_DONE;
        orch_finish(o, "done");
        return;
    }
    bool boundary = current > 0 && o->committed_steps == stage_first_step(o, current);
    if (boundary && !ended(o, current - 1))
        return;
    if (o->eval.running)
        return;
    if (current == o->cfg->n_stages && check_busy(o)) {
        stage_waits(o, "a parity check");
        return;
    }
    if (current == o->cfg->n_stages) {
        o->stage.phase = PHASE_DONE;
        orch_finish(o, "done");
        return;
    }
    if (o->cfg->stages[current].kind == RUN_STAGE_RL && !tasks_all_up(o)) {
        stage_waits(o, "task services");
        return;
    }
    enter(o, current);
}

void stage_on_commit(struct orch *o)
{
    int64_t done = o->committed_steps - stage_first_step(o, o->stage.index);
    char label[48];
    // One that was prepared before the stop brings no checkpoint: the next does, or the trainer is asked for one.
    if (o->stopping && o->step.recorded_checkpoint)
        o->stage.stop_step_done = true;
    if (step_evaluates(o, done - 1) && !o->stopping) {
        step_label(o->committed_steps, label, sizeof label);
        if (o->eval.running)
            orch_warn(o, "eval_skipped", "label=%s cause=\"the last one is still running\"", label);
        else if (o->weights.version == o->committed_steps)
            eval_start(o, label);
    }
}
