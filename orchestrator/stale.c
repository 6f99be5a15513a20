// Staleness; see stale.h. Runs on the loop's thread, called by step.c when a step could be prepared.
#include "orchestrator/stale.h"

#include "orchestrator/orch.h"
#include "rl/admission.h"

static int64_t member_version_min(const struct member *m)
{
    return m->state == MEMBER_SCORED             ? m->result.version_min
           : m->state == MEMBER_RUNNING && m->ep ? m->ep->session.version_min
                                                 : -1;
}

void stale_sweep(struct orch *o, int64_t step)
{
    int64_t max_lag = orch_stage(o)->max_lag;
    for (struct group *g = o->groups.first, *next; g && !o->failed; g = next) {
        next = g->next;
        bool any = false;
        g->held = true;
        for (int32_t i = 0; i < g->size && !o->failed; i++) {
            int64_t v = member_version_min(&g->members[i]);
            if (v < 0 || !lag_is_stale(step, v, max_lag))
                continue;
            group_drop_member(o, g, i, DROP_STALE, "older than max_lag allows");
            any = true;
        }
        g->held = false;
        if (any && !o->failed)
            group_settle(o, g);
    }
}

bool stale_holds(struct orch *o, int64_t step, int64_t since_ms)
{
    const struct run_stage *stage = orch_stage(o);
    if (stage->on_stale != RUN_STALE_WAIT || orch_now(o) - since_ms >= stage->stale_wait_ms)
        return false;
    int64_t due = step - stage->max_lag; // version whose last step this is
    int64_t n_due = 0;
    bool waiting = false;
    for (struct group *g = o->groups.first; g; g = g->next) {
        int64_t v = group_version_min(g);
        if (v < 0 || v > due)
            continue;
        if (g->state == GROUP_READY)
            n_due++;
        else
            waiting = true;
    }
    return waiting && n_due < stage->groups_per_step; // else there is no place for it in this step anyway
}
