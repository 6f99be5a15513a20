// Tasks, groups and units: every move along the state diagram of ledger.h is one guarded UPDATE here, and
// tokens enter here.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "ledger/db.h"

enum status ledger_task_set(struct ledger *l, const struct ledger_task *t, struct error *err)
{
    enum status rc = db_writable(l, "task", err);
    if (rc)
        return rc;
    return db_exec(l, err,
                   "INSERT INTO task VALUES(?1,?2,?3,?4,?5,?6,?7) ON CONFLICT(id) DO UPDATE SET name=?2, "
                   "url=?3, origin=?4,"
                   " ratio=?5, max_concurrency=?6, removed=?7",
                   "itttdii", t->id, t->name, t->url, t->origin, t->ratio, t->max_concurrency,
                   (int64_t)t->removed);
}

enum status ledger_group_add(struct ledger *l, const struct ledger_group *g, struct error *err)
{
    enum status rc = db_writable(l, "group", err);
    if (rc)
        return rc;
    return db_exec(l, err, "INSERT INTO grp VALUES(?1,?2,?3,?4,?5,?6,?7,?8)", "iiiiiiii", g->id,
                   (int64_t)g->stage, g->task, g->prompt_index, g->prompt_epoch, (int64_t)g->seed,
                   (int64_t)g->size, clock_wall_ms(l->clock));
}

enum status ledger_unit_add(struct ledger *l, const struct ledger_unit *u, struct error *err)
{
    enum status rc = db_writable(l, "unit", err);
    if (rc)
        return rc;
    return db_exec(l, err,
                   "INSERT INTO unit(trajectory,attempt,grp,member,stage,task,source,state,issued_ms)"
                   " VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9)",
                   "iiiiiiiii", u->trajectory, (int64_t)u->attempt, u->group, (int64_t)u->member,
                   (int64_t)u->stage, u->task, (int64_t)u->source, (int64_t)UNIT_ISSUED,
                   clock_wall_ms(l->clock));
}

// After a guarded UPDATE: exactly one row must have moved.
static enum status moved(struct ledger *l, int64_t trajectory, int32_t attempt, const char *to,
                         struct error *err)
{
    if (db_changes(l) == 1)
        return STATUS_OK;
    int64_t state = -1;
    struct error none;
    enum status rc = db_int(l, &none, -1, &state, "SELECT state FROM unit WHERE trajectory=?1 AND attempt=?2",
                            "ii", trajectory, (int64_t)attempt);
    ledger_rollback(l);
    if (rc || state < 0)
        return error_set(err, STATUS_INTERNAL,
                         "trajectory %lld attempt %d is not in the ledger, cannot become %s",
                         (long long)trajectory, attempt, to);
    return error_set(err, STATUS_INTERNAL, "trajectory %lld attempt %d is %s and cannot become %s",
                     (long long)trajectory, attempt, unit_state_name((enum unit_state)state), to);
}

enum status ledger_unit_generating(struct ledger *l, int64_t trajectory, int32_t attempt, const char *episode,
                                   struct error *err)
{
    enum status rc = db_writable(l, "unit generating", err);
    if (rc)
        return rc;
    rc = db_exec(l, err, "UPDATE unit SET state=1, episode=?3 WHERE trajectory=?1 AND attempt=?2 AND state=0",
                 "iit", trajectory, (int64_t)attempt, episode);
    return rc ? rc : moved(l, trajectory, attempt, "generating", err);
}

enum status ledger_unit_drop(struct ledger *l, int64_t trajectory, int32_t attempt, enum drop_reason reason,
                             const char *detail, struct error *err)
{
    enum status rc = db_writable(l, "unit drop", err);
    if (rc)
        return rc;
    if (reason <= DROP_NONE || reason >= DROP_REASON_COUNT)
        return error_set(err, STATUS_INTERNAL, "drop reason %d is not in the list", (int)reason);
    rc = db_exec(l, err,
                 "UPDATE unit SET state=6, reason=?3, detail=?4, ended_ms=?5 WHERE trajectory=?1 AND "
                 "attempt=?2 AND state<=3",
                 "iiiti", trajectory, (int64_t)attempt, (int64_t)reason, detail, clock_wall_ms(l->clock));
    return rc ? rc : moved(l, trajectory, attempt, "dropped", err);
}

enum status ledger_unit_scored(struct ledger *l, int64_t trajectory, int32_t attempt, double reward,
                               const char *components, bool truncated, struct error *err)
{
    enum status rc = db_writable(l, "unit scored", err);
    if (rc)
        return rc;
    if (!isfinite(reward))
        return error_set(err, STATUS_NUMERIC, "reward of trajectory %lld is not finite",
                         (long long)trajectory);
    rc = db_exec(l, err,
                 "UPDATE unit SET state=2, reward=?3, components=?4, truncated=?5, scored_ms=?6"
                 " WHERE trajectory=?1 AND attempt=?2 AND state=1",
                 "iidtii", trajectory, (int64_t)attempt, reward, components, (int64_t)truncated,
                 clock_wall_ms(l->clock));
    return rc ? rc : moved(l, trajectory, attempt, "scored", err);
}

enum status ledger_unit_ready(struct ledger *l, int64_t trajectory, int32_t attempt, double advantage,
                              struct error *err)
{
    enum status rc = db_writable(l, "unit ready", err);
    if (rc)
        return rc;
    if (!isfinite(advantage))
        return error_set(err, STATUS_NUMERIC, "advantage of trajectory %lld is not finite",
                         (long long)trajectory);
    rc = db_exec(l, err,
                 "UPDATE unit SET state=3, advantage=?3 WHERE trajectory=?1 AND attempt=?2"
                 " AND (state=2 OR (state=0 AND source=1))",
                 "iid", trajectory, (int64_t)attempt, advantage);
    return rc ? rc : moved(l, trajectory, attempt, "ready", err);
}

static enum status piece_check(const struct ledger_piece *p, struct error *err)
{
    const char *what = NULL;
    bool sampled = p->kind == PIECE_SAMPLED;
    if (p->n <= 0 || !p->ids)
        what = "is empty";
    else if (sampled != (p->logprobs != NULL) || sampled != (p->n_spans > 0))
        what = sampled ? "is sampled but lacks logprobs or versions"
                       : "is not sampled but has logprobs or versions";
    else if (sampled && !(p->temperature >= 0))
        what = "has no temperature";
    if (!what && sampled) {
        int32_t at = 0;
        int64_t version = -1;
        for (int32_t i = 0; i < p->n_spans && !what; i++) {
            if (p->spans[i].start != at || p->spans[i].end <= at || p->spans[i].version < version)
                what = "has version spans with gaps or going back";
            at = p->spans[i].end;
            version = p->spans[i].version;
        }
        if (!what && at != p->n)
            what = "has version spans that do not cover it";
        for (int32_t i = 0; i < p->n && !what; i++)
            if (!(p->logprobs[i] <= 1e-3f) || !isfinite(p->logprobs[i]))
                what = "has a logprob that is not finite or above 0";
    }
    for (int32_t i = 0; i < p->n && !what; i++)
        if (p->ids[i] < 0)
            what = "has a negative token id";
    if (what)
        return error_set(err, STATUS_INVALID, "piece at %d of segment %d of trajectory %lld attempt %d %s",
                         p->offset, p->segment, (long long)p->trajectory, p->attempt, what);
    return STATUS_OK;
}

enum status ledger_piece_add(struct ledger *l, const struct ledger_piece *p, struct error *err)
{
    int64_t end;
    enum status rc = db_writable(l, "piece", err);
    if (rc || (rc = piece_check(p, err)))
        return rc;
    if ((rc = db_int(l, err, 0, &end,
                     "SELECT pos + n FROM piece WHERE trajectory=?1 AND attempt=?2 AND segment=?3 ORDER BY "
                     "pos DESC LIMIT 1",
                     "iii", p->trajectory, (int64_t)p->attempt, (int64_t)p->segment)))
        return rc;
    if (end != p->offset)
        return error_set(err, STATUS_INVALID,
                         "piece at %d of segment %d of trajectory %lld attempt %d: the segment ends at %lld",
                         p->offset, p->segment, (long long)p->trajectory, p->attempt, (long long)end);
    bool sampled = p->kind == PIECE_SAMPLED;
    if ((rc = db_exec(
             l, err,
             "INSERT INTO piece(trajectory,attempt,segment,pos,turn,kind,n,ids,logprobs,spans,temperature,kv)"
             " VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12)",
             "iiiiiiibbbdb", p->trajectory, (int64_t)p->attempt, (int64_t)p->segment, (int64_t)p->offset,
             (int64_t)p->turn, (int64_t)p->kind, (int64_t)p->n, (const void *)p->ids, p->n * 4,
             (const void *)p->logprobs, p->logprobs ? p->n * 4 : 0, (const void *)p->spans,
             p->n_spans * (int)sizeof *p->spans, sampled ? (double)p->temperature : NAN, p->kv, p->kv_bytes)))
        return rc;
    rc = db_exec(l, err,
                 "UPDATE unit SET n_tokens=n_tokens+?3, n_sampled=n_sampled+?4,"
                 " version_min=CASE WHEN ?5<0 THEN version_min ELSE MIN(COALESCE(version_min,?5),?5) END,"
                 " version_max=CASE WHEN ?6<0 THEN version_max ELSE MAX(COALESCE(version_max,?6),?6) END"
                 " WHERE trajectory=?1 AND attempt=?2 AND state<=1",
                 "iiiiii", p->trajectory, (int64_t)p->attempt, (int64_t)p->n, (int64_t)(sampled ? p->n : 0),
                 sampled ? p->spans[0].version : (int64_t)-1,
                 sampled ? p->spans[p->n_spans - 1].version : (int64_t)-1);
    return rc ? rc : moved(l, p->trajectory, p->attempt, "longer", err);
}

enum status ledger_turn_stopped_set(struct ledger *l, int64_t trajectory, int32_t attempt, int32_t turn,
                                    struct error *err)
{
    enum status rc = db_writable(l, "turn", err);
    if (rc)
        return rc;
    return db_exec(l, err, "INSERT OR REPLACE INTO turn_stopped VALUES(?1,?2,?3)", "iii", trajectory,
                   (int64_t)attempt, (int64_t)turn);
}

enum status ledger_turn_stopped(struct ledger *l, int64_t trajectory, int32_t attempt, int32_t turn,
                                bool *ret, struct error *err)
{
    int64_t n;
    enum status rc = db_int(
        l, err, 0, &n, "SELECT COUNT(*) FROM turn_stopped WHERE trajectory=?1 AND attempt=?2 AND turn=?3",
        "iii", trajectory, (int64_t)attempt, (int64_t)turn);
    if (!rc)
        *ret = n > 0;
    return rc;
}

enum status ledger_turn_add(struct ledger *l, const struct ledger_turn *t, struct error *err)
{
    enum status rc = db_writable(l, "turn", err);
    if (rc)
        return rc;
    if ((rc = db_exec(
             l, err, "INSERT INTO turn(trajectory,attempt,turn,message,reply,done) VALUES(?1,?2,?3,?4,?5,?6)",
             "iiitti", t->trajectory, (int64_t)t->attempt, (int64_t)t->turn, t->message, t->reply,
             (int64_t)t->done)))
        return rc;
    if (t->turn < 0)
        return STATUS_OK;
    rc = db_exec(l, err, "UPDATE unit SET n_turns=n_turns+1 WHERE trajectory=?1 AND attempt=?2 AND state<=1",
                 "ii", t->trajectory, (int64_t)t->attempt);
    return rc ? rc : moved(l, t->trajectory, t->attempt, "longer by a turn", err);
}
