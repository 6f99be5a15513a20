// Steps; see step.h for the invariants. Runs on the loop's thread.
#include "orchestrator/step.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"
#include "orchestrator/orch.h"
#include "orchestrator/stale.h"
#include "rl/admission.h"
#include "rl/advantage.h"
#include "rl/filter.h"
#include "rl/schedule.h"

static int64_t stage_step_now(const struct orch *o)
{
    return o->committed_steps - stage_first_step(o, o->stage.index);
}

int64_t step_consumed_groups(const struct orch *o)
{
    const struct run_stage *s = orch_stage(o);
    return (stage_step_now(o) + o->step.prepared) * s->groups_per_step;
}

static bool is_last(const struct orch *o, int64_t stage_step)
{
    return stage_step + 1 >= orch_stage(o)->steps;
}

bool step_evaluates(const struct orch *o, int64_t stage_step)
{
    return o->cfg->eval.every > 0 && o->cfg->eval.n > 0 && o->tasks.n > 0 &&
           (stage_step + 1) % o->cfg->eval.every == 0 &&
           !is_last(o, stage_step); // the end of the stage has its own evaluation
}

bool step_publishes(const struct orch *o, int64_t stage_step)
{
    const struct run_stage *s = orch_stage(o);
    if (is_last(o, stage_step) || step_evaluates(o, stage_step))
        return true;
    return s->kind == RUN_STAGE_RL && (stage_step + 1) % (s->sync_interval > 0 ? s->sync_interval : 1) == 0;
}

bool step_checkpoints(const struct orch *o, int64_t stage_step)
{
    int64_t every = o->cfg->trainer.checkpoint_every;
    return is_last(o, stage_step) || o->stopping || (every > 0 && (o->committed_steps + 1) % every == 0);
}

enum status step_fits(int64_t step, const char *stage, int64_t n_members, int64_t n_tokens, struct error *err)
{
    if (n_members <= MSG_MEMBERS && n_tokens <= MSG_BATCH_MAX)
        return STATUS_OK;
    return error_set(err, STATUS_UNSUPPORTED,
                     "step %lld has %lld segments with %lld tokens; the trainer takes %d and %d in one step: "
                     "lower groups_per_step, group_size or batch_rows of stage %s",
                     (long long)step, (long long)n_members, (long long)n_tokens, MSG_MEMBERS, MSG_BATCH_MAX,
                     stage);
}

// Into the open transaction; refused before it is durable when it is more than a message holds.
static enum status record(struct orch *o, const struct ledger_step *s, struct error *err)
{
    int64_t n_tokens;
    enum status rc = ledger_step_prepare(o->ledger, s, err);
    if (!rc)
        rc = ledger_step_tokens(o->ledger, s->step, &n_tokens, err);
    return rc ? rc : step_fits(s->step, orch_stage(o)->name, s->n_members, n_tokens, err);
}

void step_prepare(struct orch *o, const struct ledger_member *members, int32_t n)
{
    const struct run_stage *stage = orch_stage(o);
    int64_t at = stage_step_now(o);
    uint64_t seed_key[2] = {0x7061636b, (uint64_t)o->committed_steps};
    struct error err;
    struct ledger_step s = {
        .step = o->committed_steps,
        .stage = (int32_t)o->stage.index,
        .stage_step = at,
        .stage_first = at == 0,
        .publish = step_publishes(o, at),
        .checkpoint = step_checkpoints(o, at),
        .optimizer_reset = stage->optimizer.reset_on_sync && at > 0 && stage->kind == RUN_STAGE_RL &&
                           step_publishes(o, at - 1),
        .lr = schedule_lr(&stage->optimizer, at, stage->steps),
        .packing_seed = hash64_seed(seed_key, sizeof seed_key, o->cfg->seed),
        .updates = (int32_t)(stage->updates_per_batch > 0 ? stage->updates_per_batch : 1),
        .n_members = n,
        .members = members,
    };
    if (journal_begin(o, &err) || record(o, &s, &err)) {
        orch_fail(o, &err);
        return;
    }
    int64_t now = orch_now(o);
    o->step.prepared = true;
    o->step.prepared_ms = now;
    o->step.wait_ms = o->step.idle_since_ms ? (double)(now - o->step.idle_since_ms) : 0;
    o->step.hold_since_ms = 0;
    o->step.loaded = -1;
    if (journal_flush(o, true))
        trainer_send(o);
}

// ---- from groups --------------------------------------------------------------------------------------------------------------

struct candidate {
    struct group *g;
    int64_t version_min;
};

static int older_first(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->version_min != y->version_min)
        return x->version_min < y->version_min ? -1 : 1;
    return (x->g->id > y->g->id) - (x->g->id < y->g->id);
}

static int lower_id_first(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    return (x->g->id > y->g->id) - (x->g->id < y->g->id);
}

struct batch {
    struct ledger_member *v;
    int32_t n, cap;
};

static void batch_add(struct batch *b, struct ledger_member m)
{
    if (b->n == b->cap) {
        b->cap = b->cap ? b->cap * 2 : 256;
        b->v = mem_grow(b->v, (size_t)b->cap, sizeof *b->v);
    }
    b->v[b->n++] = m;
}

// reinforce_pp: over all members of the step at once; rewards as they count (permuted in the control).
static void whiten_batch(struct orch *o, struct candidate *c, int n)
{
    int total = 0, at = 0;
    for (int i = 0; i < n; i++)
        total += c[i].g->n_scored;
    double *rewards = mem_must((size_t)total * 2, sizeof *rewards), *advantages = rewards + total;
    int64_t *keys = mem_must((size_t)total, sizeof *keys);
    for (int i = 0; i < n; i++)
        for (int m = 0; m < c[i].g->size; m++)
            if (c[i].g->members[m].state == MEMBER_SCORED) {
                keys[at] = c[i].g->id;
                rewards[at++] = c[i].g->members[m].advantage; // group.c noted the reward here
            }
    advantage_compute((enum run_advantage)orch_stage(o)->advantage, keys, rewards, total, advantages);
    at = 0;
    for (int i = 0; i < n; i++)
        for (int m = 0; m < c[i].g->size; m++)
            if (c[i].g->members[m].state == MEMBER_SCORED)
                c[i].g->members[m].advantage = advantages[at++];
    free(keys);
    free(rewards);
}

// Segments with at least one trained token; a restored member does not know how many it has.
static enum status count_segments(struct orch *o, struct member *m, struct error *err)
{
    if (m->result.n_segments > 0)
        return STATUS_OK;
    struct arena arena;
    struct ledger_sequence *s;
    int32_t n = 0;
    arena_init(&arena, 0);
    enum status rc =
        ledger_unit_tokens(o->ledger, (int64_t)m->trajectory, (int32_t)m->attempt, &arena, &s, &n, err);
    arena_done(&arena);
    if (!rc)
        m->result.n_segments = n;
    return rc;
}

static enum status add_group(struct orch *o, struct group *g, struct batch *b, struct error *err)
{
    int32_t *multiplicity = mem_must((size_t)g->size, sizeof *multiplicity);
    int k = 0;
    enum status rc = STATUS_OK;
    if (!filter_pad(g->n_scored, g->size, multiplicity)) {
        free(multiplicity);
        return error_set(err, STATUS_INTERNAL, "group %lld is ready with %d of %d members", (long long)g->id,
                         g->n_scored, g->size);
    }
    for (int i = 0; i < g->size && !rc; i++) {
        struct member *m = &g->members[i];
        if (m->state != MEMBER_SCORED)
            continue;
        if ((rc = count_segments(o, m, err)))
            break;
        for (int32_t s = 0; s < m->result.n_segments; s++)
            batch_add(b, (struct ledger_member){(int64_t)m->trajectory, (int32_t)m->attempt, s,
                                                multiplicity[k], m->advantage});
        metrics_step_member(o, g->task, &m->result, o->committed_steps);
        k++;
    }
    free(multiplicity);
    return rc;
}

static void prepare_from_groups(struct orch *o)
{
    const struct run_stage *stage = orch_stage(o);
    int64_t now = orch_now(o), need = stage->groups_per_step;
    struct error err;
    stale_sweep(o, o->committed_steps);
    if (o->failed || o->groups.n_ready < need) {
        o->step.hold_since_ms = 0;
        return;
    }
    if (!o->step.hold_since_ms)
        o->step.hold_since_ms = now ? now : 1;
    if (stale_holds(o, o->committed_steps, o->step.hold_since_ms) && !o->stopping)
        return;
    struct candidate *c = mem_must((size_t)o->groups.n_ready, sizeof *c);
    int n = 0;
    for (struct group *g = o->groups.first; g; g = g->next)
        if (g->state == GROUP_READY)
            c[n++] = (struct candidate){g, group_version_min(g)};
    qsort(c, (size_t)n, sizeof *c, older_first);
    n = (int)need;
    qsort(c, (size_t)n, sizeof *c, lower_id_first);
    if (advantage_is_batch((enum run_advantage)stage->advantage))
        whiten_batch(o, c, n);
    struct batch b = {0};
    enum status rc = STATUS_OK;
    metrics_step_begin(o);
    for (int i = 0; i < n && !rc; i++)
        rc = add_group(o, c[i].g, &b, &err);
    if (rc)
        orch_fail(o, &err);
    else
        step_prepare(o, b.v, b.n);
    for (int i = 0; i < n && !o->failed; i++)
        group_consumed(o, c[i].g);
    free(b.v);
    free(c);
}

void step_try(struct orch *o)
{
    const struct run_stage *stage = orch_stage(o);
    if (!stage || !stage_training(o) || o->step.prepared || o->failed || stage_step_now(o) >= stage->steps)
        return;
    if (!trainer_is_ready(o) || check_failing(o))
        return;
    if (!o->step.idle_since_ms)
        o->step.idle_since_ms = orch_now(o);
    if (o->stopping && o->stage.stop_step_done)
        return;
    if (stage->kind == RUN_STAGE_SFT)
        sft_prepare(o);
    else
        prepare_from_groups(o);
}

// ---- the message -----------------------------------------------------------------------------------------------------------------

static enum status fill_arrays(struct msg_prepare *m, const struct ledger_step_full *f, struct arena *a,
                               struct error *err)
{
    int64_t total = 0, at = 0;
    for (int32_t i = 0; i < f->step.n_members; i++)
        total += f->sequences[i].n;
    assert(total <= MSG_BATCH_MAX && f->step.n_members <= MSG_MEMBERS); // or it were not recorded: step_fits
    size_t n = (size_t)total;
    struct msg_member *members = arena_zalloc(a, (size_t)f->step.n_members * sizeof *members);
    int32_t *ids = arena_alloc(a, n * 4), *versions = arena_alloc(a, n * 4);
    float *logprobs = arena_alloc(a, n * 4), *temperatures = arena_alloc(a, n * 4);
    uint8_t *mask = arena_alloc(a, n);
    if (!members || !ids || !versions || !logprobs || !temperatures || !mask)
        return error_set(err, STATUS_NOMEM, "no memory for the %lld tokens of step %lld", (long long)total,
                         (long long)f->step.step);
    for (int32_t i = 0; i < f->step.n_members; i++) {
        const struct ledger_sequence *s = &f->sequences[i];
        size_t k = (size_t)s->n;
        members[i] = (struct msg_member){
            .trajectory = (uint64_t)s->member.trajectory,
            .attempt = (uint32_t)s->member.attempt,
            .segment = (uint32_t)s->member.segment,
            .group = s->task < 0 ? (uint64_t)s->member.trajectory
                                 : (uint64_t)s->group, // SFT: each row is its own group
            .n_tokens = s->n,
            .multiplicity = s->member.multiplicity,
            .advantage = (float)s->member.advantage,
            .task = (int32_t)s->task,
        };
        memcpy(ids + at, s->ids, k * 4);
        memcpy(mask + at, s->mask, k);
        memcpy(logprobs + at, s->logprobs, k * 4);
        memcpy(versions + at, s->versions, k * 4);
        memcpy(temperatures + at, s->temperatures, k * 4);
        at += s->n;
    }
    m->n_members = f->step.n_members;
    m->members = members;
    m->n_tokens = total;
    m->ids = ids;
    m->mask = mask;
    m->logprobs = logprobs;
    m->versions = versions;
    m->temperatures = temperatures;
    return STATUS_OK;
}

enum status step_load(struct orch *o, int64_t n, struct error *err)
{
    struct step *s = &o->step;
    struct ledger_step_full f;
    if (s->loaded == n)
        return STATUS_OK;
    s->loaded = -1;
    arena_reset(&s->arena);
    enum status rc = ledger_step_read(o->ledger, n, &s->arena, &f, err);
    if (rc)
        return rc;
    s->message = (struct msg_prepare){
        .step = n,
        .stage = f.step.stage,
        .stage_step = f.step.stage_step,
        .stage_first = f.step.stage_first,
        .lr = f.step.lr,
        .packing_seed = f.step.packing_seed,
        .updates = f.step.updates,
        .publish = f.step.publish,
        .checkpoint = f.step.checkpoint,
        .optimizer_reset = f.step.optimizer_reset,
        .expect_hash = "",
    };
    s->recorded_checkpoint = f.step.checkpoint;
    memcpy(s->hash, f.hash, sizeof s->hash);
    if ((rc = fill_arrays(&s->message, &f, &s->arena, err)))
        return rc;
    s->loaded = n;
    return STATUS_OK;
}

void step_close(struct orch *o)
{
    arena_done(&o->step.arena);
}
