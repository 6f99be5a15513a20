// Groups; see group.h for the state diagram and invariants. Runs on the loop's thread.
#include "orchestrator/group.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "orchestrator/orch.h"
#include "orchestrator/sampler.h"
#include "rl/admission.h"
#include "rl/advantage.h"
#include "rl/filter.h"

static struct group *group_new(struct orch *o, int64_t id, struct task *t, int size)
{
    struct group *g = mem_must(1, sizeof *g + (size_t)size * sizeof g->members[0]);
    g->id = id;
    g->task = t;
    g->size = size;
    g->prev = o->groups.last;
    *(o->groups.last ? &o->groups.last->next : &o->groups.first) = g;
    o->groups.last = g;
    o->groups.n_running++;
    return g;
}

static void group_free(struct orch *o, struct group *g)
{
    *(g->prev ? &g->prev->next : &o->groups.first) = g->next;
    *(g->next ? &g->next->prev : &o->groups.last) = g->prev;
    *(g->state == GROUP_READY ? &o->groups.n_ready : &o->groups.n_running) -= 1;
    free(g);
    orch_kick(o);
}

void group_consumed(struct orch *o, struct group *g)
{
    group_free(o, g);
}

static void member_start(struct orch *o, struct group *g, int32_t i, const char *episode_id, bool restored)
{
    struct member *m = &g->members[i];
    const struct run_stage *stage = orch_stage(o);
    struct episode_spec spec = {
        .task = g->task,
        .group = g,
        .member = i,
        .trajectory = m->trajectory,
        .attempt = m->attempt,
        .index = g->index,
        .group_id = g->id,
        .seed = g->seed,
        .stage = stage,
        .temperature = stage->sampling.temperature,
        .min_version = g->min_version,
    };
    m->state = MEMBER_RUNNING;
    if (!restored) {
        m->ep = episode_start(o, &spec);
        return;
    }
    struct episode *ep = episode_restore(o, &spec, episode_id);
    if (ep)
        m->ep = ep;
}

static enum status unit_add(struct orch *o, struct group *g, int32_t i, struct error *err)
{
    struct ledger_unit u = {
        .trajectory = (int64_t)g->members[i].trajectory,
        .attempt = (int32_t)g->members[i].attempt,
        .group = g->id,
        .member = i,
        .stage = (int32_t)o->stage.index,
        .task = g->task->id,
        .source = SOURCE_ROLLOUT,
    };
    return ledger_unit_add(o->ledger, &u, err);
}

// ---- admission --------------------------------------------------------------------------------------------------------------

static bool group_issue(struct orch *o, struct task *t)
{
    const struct run_stage *stage = orch_stage(o);
    struct error err;
    int64_t epoch;
    int64_t index = sampler_next(o, t, &epoch);
    struct group *g = group_new(o, o->next_group++, t, (int)stage->group_size);
    g->index = index;
    g->epoch = epoch;
    g->seed = sampler_seed(o, t, index, epoch, false);
    g->min_version = o->weights.version;
    struct ledger_group row = {
        .id = g->id,
        .stage = (int32_t)o->stage.index,
        .task = t->id,
        .prompt_index = index,
        .prompt_epoch = epoch,
        .seed = g->seed,
        .size = g->size,
    };
    if (journal_begin(o, &err) || ledger_group_add(o->ledger, &row, &err) || sampler_save(o, t, &err))
        goto failed;
    for (int32_t i = 0; i < g->size; i++) {
        g->members[i].trajectory = (uint64_t)o->next_trajectory++;
        if (unit_add(o, g, i, &err))
            goto failed;
    }
    for (int32_t i = 0; i < g->size; i++)
        member_start(o, g, i, NULL, false);
    o->groups.issued++;
    return true;
failed:
    orch_fail(o, &err);
    return false;
}

void groups_admit(struct orch *o)
{
    const struct run_stage *stage = orch_stage(o);
    if (!stage || stage->kind != RUN_STAGE_RL || !stage_training(o) || o->stopping || o->weights.version < 0)
        return;
    int64_t version = o->weights.version - stage_first_step(o, o->stage.index);
    int64_t bound = admission_bound(stage->max_lag, version, stage->groups_per_step, stage->steps);
    int64_t consumed = step_consumed_groups(o);
    while (!o->failed && admission_open(o->groups.n_running, o->groups.n_ready + consumed, bound)) {
        struct task *t = sampler_pick(o);
        if (!t || !group_issue(o, t))
            return;
    }
}

// ---- results ----------------------------------------------------------------------------------------------------------------

static void member_drop_row(struct orch *o, struct group *g, int32_t i, enum drop_reason reason,
                            const char *detail)
{
    struct member *m = &g->members[i];
    struct error err;
    struct episode *ep = m->ep;
    m->ep = NULL;
    episode_cancel(o, ep);
    if (journal_begin(o, &err) ||
        ledger_unit_drop(o->ledger, (int64_t)m->trajectory, (int32_t)m->attempt, reason, detail, &err))
        orch_fail(o, &err);
    if (m->state == MEMBER_SCORED)
        g->n_scored--;
    m->state = MEMBER_FAILED;
    g->n_failed++;
    if (reason == DROP_STALE)
        o->groups.stale++;
}

void group_drop_member(struct orch *o, struct group *g, int32_t member, enum drop_reason reason,
                       const char *detail)
{
    if (g->members[member].state != MEMBER_FAILED)
        member_drop_row(o, g, member, reason, detail);
}

void group_drop(struct orch *o, struct group *g, enum drop_reason reason, const char *detail)
{
    for (int32_t i = 0; i < g->size && !o->failed; i++)
        group_drop_member(o, g, i, reason, detail);
    if (!o->failed)
        group_free(o, g);
}

// Too few members are left for padding, whatever the others do.
static bool group_hopeless(const struct group *g)
{
    return 2 * (g->size - g->n_failed) <= g->size;
}

static void group_complete(struct orch *o, struct group *g)
{
    const struct run_stage *stage = orch_stage(o);
    struct error err;
    int n = 0;
    double *rewards = mem_must((size_t)g->size * 2, sizeof *rewards), *advantages = rewards + g->size;
    int64_t *keys = mem_must((size_t)g->size, sizeof *keys);
    for (int i = 0; i < g->size; i++)
        if (g->members[i].state == MEMBER_SCORED) {
            keys[n] = g->id;
            rewards[n++] = g->members[i].result.reward;
        }
    if (stage->permute_rewards)
        filter_permute_rewards(o->cfg->seed, g->id, rewards, n);
    enum run_advantage kind = (enum run_advantage)stage->advantage;
    if (group_hopeless(g) || n < advantage_least_members(kind)) {
        group_drop(o, g, DROP_GROUP_INCOMPLETE, "too few members with a policy outcome");
        goto out;
    }
    if (filter_drops((enum run_zero_variance)stage->zero_variance, rewards, n)) {
        group_drop(o, g, DROP_ZERO_VARIANCE, "all rewards are equal");
        goto out;
    }
    // reinforce_pp is over the prepared step: until then the reward itself is noted; step.c puts the final figure into the step.
    if (advantage_is_batch(kind))
        memcpy(advantages, rewards, (size_t)n * sizeof *advantages);
    else
        advantage_compute(kind, keys, rewards, n, advantages);
    n = 0;
    for (int i = 0; i < g->size; i++) {
        struct member *m = &g->members[i];
        if (m->state != MEMBER_SCORED)
            continue;
        m->advantage = advantages[n++];
        if (journal_begin(o, &err) ||
            ledger_unit_ready(o->ledger, (int64_t)m->trajectory, (int32_t)m->attempt, m->advantage, &err)) {
            orch_fail(o, &err);
            goto out;
        }
    }
    g->state = GROUP_READY;
    o->groups.n_running--;
    o->groups.n_ready++;
    orch_kick(o);
out:
    free(keys);
    free(rewards);
}

static void group_check(struct orch *o, struct group *g)
{
    if (o->failed || g->held)
        return;
    if (group_hopeless(g))
        group_drop(o, g, DROP_GROUP_INCOMPLETE, "too few members with a policy outcome");
    else if (g->state == GROUP_RUNNING && g->n_scored + g->n_failed == g->size)
        group_complete(o, g);
}

void group_settle(struct orch *o, struct group *g)
{
    g->held = false;
    group_check(o, g);
}

void group_on_scored(struct orch *o, struct group *g, int32_t member, const struct member_result *r)
{
    struct member *m = &g->members[member];
    m->state = MEMBER_SCORED;
    m->result = *r;
    g->n_scored++;
    metrics_on_scored(o, g->task, r);
    group_check(o, g);
}

void group_on_failed(struct orch *o, struct group *g, int32_t member, enum drop_reason reason,
                     const char *detail)
{
    struct member *m = &g->members[member];
    struct error err;
    if (journal_begin(o, &err) ||
        ledger_unit_drop(o->ledger, (int64_t)m->trajectory, (int32_t)m->attempt, reason, detail, &err)) {
        orch_fail(o, &err);
        return;
    }
    // What cannot go better the next time (no room for an answer) is not tried again.
    if (reason != DROP_OVER_BUDGET && (int64_t)m->attempt + 1 < g->task->cfg.max_attempts && !o->stopping) {
        m->attempt++;
        if (unit_add(o, g, member, &err))
            orch_fail(o, &err);
        else
            member_start(o, g, member, NULL, false);
        return;
    }
    m->state = MEMBER_FAILED;
    g->n_failed++;
    group_check(o, g);
}

int64_t group_version_min(const struct group *g)
{
    int64_t least = -1;
    for (int i = 0; i < g->size; i++) {
        const struct member *m = &g->members[i];
        int64_t v = m->state == MEMBER_SCORED ? m->result.version_min
                    : m->ep                   ? m->ep->session.version_min
                                              : -1;
        if (v >= 0 && (least < 0 || v < least))
            least = v;
    }
    return least;
}

void groups_task_removed(struct orch *o, struct task *t)
{
    for (struct group *g = o->groups.first, *next; g && !o->failed; g = next) {
        next = g->next;
        if (g->task == t)
            group_drop(o, g, DROP_TASK_REMOVED, "the task was removed");
    }
}

void groups_drop_all(struct orch *o, enum drop_reason reason, const char *detail)
{
    while (o->groups.first && !o->failed)
        group_drop(o, o->groups.first, reason, detail);
}

void groups_close(struct orch *o)
{
    for (struct group *g = o->groups.first, *next; g; g = next) {
        next = g->next;
        free(g);
    }
    o->groups = (struct groups){0};
}

// ---- restoring --------------------------------------------------------------------------------------------------------------

struct restored_unit {
    struct ledger_group group;
    struct ledger_unit_row row;
    char *episode;
};
struct restored {
    struct restored_unit *v;
    size_t n, cap;
};

static enum status collect_unit(void *ctx, const struct ledger_group *g, const struct ledger_unit_row *u,
                                struct error *err)
{
    (void)err;
    struct restored *r = ctx;
    if (u->unit.source != SOURCE_ROLLOUT)
        return STATUS_OK;
    if (r->n == r->cap) {
        r->cap = r->cap ? r->cap * 2 : 256;
        r->v = mem_grow(r->v, r->cap, sizeof *r->v);
    }
    r->v[r->n] = (struct restored_unit){*g, *u, u->episode ? mem_strdup(u->episode) : NULL};
    r->v[r->n++].row.episode = NULL;
    return STATUS_OK;
}

static struct member_result result_of_row(const struct ledger_unit_row *u)
{
    return (struct member_result){
        .reward = u->reward,
        .truncated = u->truncated,
        .n_sampled = u->n_sampled,
        .n_segments = 0, // counted where it is needed (step.c reads the ledger)
        .n_turns = u->n_turns,
        .version_min = u->version_min,
        .version_max = u->version_max,
    };
}

// One group: rows [from, to), ordered by member, attempt. The last attempt of a member tells where it stands.
static void restore_group(struct orch *o, const struct restored_unit *v, size_t from, size_t to)
{
    struct task *t = tasks_by_id(o, v[from].group.task);
    struct error err;
    bool leased = false, all_ready = true;
    for (size_t i = from; i < to; i++)
        leased |= v[i].row.state == UNIT_LEASED;
    if (leased) { // step.c has it; its figures go to the step's
        for (size_t i = from; i < to; i++) {
            struct member_result r = result_of_row(&v[i].row);
            if (v[i].row.state == UNIT_LEASED)
                metrics_step_member(o, t, &r, v[i].row.leased_step);
        }
        return;
    }
    if (!t) {
        error_set(&err, STATUS_CORRUPT, "group %lld belongs to task %lld, which the ledger does not have",
                  (long long)v[from].group.id, (long long)v[from].group.task);
        orch_fail(o, &err);
        return;
    }
    struct group *g = group_new(o, v[from].group.id, t, v[from].group.size);
    g->index = v[from].group.prompt_index;
    g->epoch = v[from].group.prompt_epoch;
    g->seed = v[from].group.seed;
    g->min_version = 0; // engines never go back; step.c looks at what was sampled
    const struct restored_unit **last = mem_must((size_t)g->size, sizeof *last);
    for (size_t i = from; i < to; i++)
        if (v[i].row.unit.member >= 0 && v[i].row.unit.member < g->size)
            last[v[i].row.unit.member] = &v[i];
    // Ended members first: what restarts below may end the group.
    for (int i = 0; i < g->size; i++) {
        struct member *m = &g->members[i];
        if (!last[i]) {
            m->state = MEMBER_FAILED;
            g->n_failed++;
            continue;
        }
        m->trajectory = (uint64_t)last[i]->row.unit.trajectory;
        m->attempt = (uint32_t)last[i]->row.unit.attempt;
        m->result = result_of_row(&last[i]->row);
        m->advantage = last[i]->row.advantage;
        if (last[i]->row.state == UNIT_SCORED || last[i]->row.state == UNIT_READY) {
            m->state = MEMBER_SCORED;
            g->n_scored++;
            all_ready &= last[i]->row.state == UNIT_READY;
        } else if (last[i]->row.state == UNIT_DROPPED) {
            m->state = MEMBER_FAILED;
            g->n_failed++;
        }
    }
    bool ready = all_ready && g->n_scored > 0 && g->n_scored + g->n_failed == g->size;
    if (ready) {
        g->state = GROUP_READY;
        o->groups.n_running--;
        o->groups.n_ready++;
    } else if (t->state == TASK_REMOVED) {
        group_drop(o, g, DROP_TASK_REMOVED, "the task was removed");
    } else {
        g->held = true; // members that fail below must not end the group before all are restored
        for (int i = 0; i < g->size; i++)
            if (last[i] && (last[i]->row.state == UNIT_ISSUED || last[i]->row.state == UNIT_GENERATING))
                member_start(o, g, i, last[i]->episode, true);
        group_settle(o, g);
    }
    free(last);
}

enum status groups_restore(struct orch *o, struct error *err)
{
    struct restored r = {0};
    enum status rc = ledger_open_groups(o->ledger, (int32_t)o->stage.index, collect_unit, &r, err);
    for (size_t from = 0, to; from < r.n && !rc; from = to) {
        for (to = from; to < r.n && r.v[to].group.id == r.v[from].group.id; to++)
            ;
        restore_group(o, r.v, from, to);
    }
    for (size_t i = 0; i < r.n; i++)
        free(r.v[i].episode);
    free(r.v);
    if (!rc && (o->groups.n_running || o->groups.n_ready))
        log_event(LOG_INFO, "groups_restored", "running=%d ready=%d", o->groups.n_running, o->groups.n_ready);
    return rc;
}
